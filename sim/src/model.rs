//! The reference: what transactions do, on a plain map, one after the other.
//!
//! It shares the encodings of rows, patches and additions with the product, and nothing else: no
//! memtable, no fragments, no sessions' windows.

use std::collections::BTreeMap;

use spillway_net::add::{AddArgument, AddError, row_add};
use spillway_net::ids::{Lsn, TableId};
use spillway_net::key::{key_validate, partition_of};
use spillway_net::limits::OUTCOME_RESULT_BYTES_MAX;
use spillway_net::message::{OperationKind, OutcomeStatus, Scan, Submit};
use spillway_net::patch::{patch_apply, patch_equals};
use spillway_updateserver::redo::{FragmentReader, RecordKind};

use crate::Failure;
use crate::worker::Tables;

/// Partition, table, encoded key.
pub type RowKey = (u16, u16, Vec<u8>);

/// A row, or the mark of a deleted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRow {
    /// Its version.
    pub number: u64,
    /// Its encoding; none: deleted.
    pub value: Option<Vec<u8>>,
}

/// One operation of a transaction.
#[derive(Clone, Debug)]
pub struct Operation {
    kind: OperationKind,
    table: TableId,
    column: u16,
    key: Vec<u8>,
    value: Vec<u8>,
    partition: u16,
}

impl Operation {
    /// The row that it names.
    pub fn row_key(&self) -> RowKey {
        (self.partition, self.table.0, self.key.clone())
    }
}

/// A transaction as a client sent it.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Its number in its session.
    pub number: u64,
    /// What it does.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// Whether it may change rows.
    pub fn writes(&self) -> bool {
        self.operations.iter().any(|operation| operation.kind.writes())
    }
}

/// How a transaction must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicted {
    /// Its status.
    pub status: OutcomeStatus,
    /// The operation that failed.
    pub operation: u16,
    /// What its gets found.
    pub results: Vec<u8>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// All rows.
    pub rows: BTreeMap<RowKey, ModelRow>,
    /// Committed writers by session and number, with their results if those are kept.
    pub outcomes: BTreeMap<(u64, u64), Option<Vec<u8>>>,
    next_number: BTreeMap<u16, u64>,
}

/// Takes a frame's transactions apart.
pub fn transactions(submit: &Submit, tables: &Tables) -> Result<Vec<Transaction>, Failure> {
    let mut operations = submit.operations.iter();
    let mut bytes = submit.bytes.as_slice();
    let mut out = Vec::new();
    for head in &submit.transactions {
        let mut transaction = Transaction {
            number: submit.first_number + u64::from(head.number_offset),
            operations: Vec::new(),
        };
        for _ in 0..head.operations {
            let head = operations.next().ok_or(Failure::new("a frame without its operations"))?;
            let (key, rest) = bytes.split_at(usize::from(head.key_length));
            let (value, rest) = rest.split_at(head.value_length as usize);
            bytes = rest;
            let table = TableId(head.table);
            let layout = tables.layout(table);
            let prefix =
                key_validate(layout, key).map_err(|e| Failure::new(format!("a key: {e}")))?;
            transaction.operations.push(Operation {
                kind: OperationKind::from_wire(head.kind).ok_or(Failure::new("a kind"))?,
                table,
                column: head.column,
                key: key.to_vec(),
                value: value.to_vec(),
                partition: partition_of(&key[..prefix], tables.partitions).0,
            });
        }
        out.push(transaction);
    }
    Ok(out)
}

impl Model {
    /// What the transaction must answer if it is executed now. Takes effect unless it fails.
    pub fn execute(
        &mut self,
        session: u64,
        transaction: &Transaction,
        tables: &Tables,
    ) -> Predicted {
        if let Some(kept) = self.outcomes.get(&(session, transaction.number)) {
            let status = match kept {
                Some(_) => OutcomeStatus::Committed,
                None => OutcomeStatus::CommittedResultsNotKept,
            };
            let results = kept.clone().unwrap_or_default();
            return Predicted { status, operation: 0, results };
        }
        let mut undo = Vec::new();
        let numbers = self.next_number.clone();
        let mut results = Vec::new();
        for (at, operation) in transaction.operations.iter().enumerate() {
            if let Err(status) = self.operation(operation, tables, &mut results, &mut undo) {
                for (key, before) in undo.into_iter().rev() {
                    match before {
                        Some(row) => self.rows.insert(key, row),
                        None => self.rows.remove(&key),
                    };
                }
                self.next_number = numbers;
                return Predicted { status, operation: at as u16, results: Vec::new() };
            }
        }
        if transaction.writes() {
            let kept = (results.len() <= OUTCOME_RESULT_BYTES_MAX).then(|| results.clone());
            self.outcomes.insert((session, transaction.number), kept);
        }
        Predicted { status: OutcomeStatus::Committed, operation: 0, results }
    }

    fn operation(
        &mut self,
        operation: &Operation,
        tables: &Tables,
        results: &mut Vec<u8>,
        undo: &mut Vec<(RowKey, Option<ModelRow>)>,
    ) -> Result<(), OutcomeStatus> {
        let layout = tables.layout(operation.table);
        let key = operation.row_key();
        let held = self.rows.get(&key).cloned();
        let row = held.as_ref().and_then(|row| Some((row.value.clone()?, row.number)));
        let exists = row.is_some();
        let next = match operation.kind {
            OperationKind::Get => {
                let (value, number) = row.unwrap_or_default();
                results.push(u8::from(exists));
                results.extend_from_slice(&number.to_le_bytes());
                results.extend_from_slice(&(value.len() as u32).to_le_bytes());
                results.extend_from_slice(&value);
                return Ok(());
            }
            OperationKind::CheckExists => return check(exists),
            OperationKind::CheckAbsent => return check(!exists),
            OperationKind::CheckEquals => {
                return check(
                    row.is_some_and(|(row, _)| patch_equals(layout, &row, &operation.value)),
                );
            }
            OperationKind::CheckVersion => {
                return check(row.is_some_and(|(_, n)| n.to_le_bytes() == operation.value[..]));
            }
            OperationKind::Insert if exists => return Err(OutcomeStatus::Duplicate),
            OperationKind::Insert | OperationKind::Upsert => Some(operation.value.clone()),
            OperationKind::Update => {
                let (row, _) = row.ok_or(OutcomeStatus::NotFound)?;
                let mut next = Vec::new();
                patch_apply(layout, &row, &operation.value, &mut next)
                    .map_err(|_| OutcomeStatus::Malformed)?;
                Some(next)
            }
            OperationKind::Add => {
                let (mut row, _) = row.ok_or(OutcomeStatus::NotFound)?;
                let column = layout
                    .value_column(usize::from(operation.column))
                    .ok_or(OutcomeStatus::Malformed)?;
                let kind = layout.value_columns()[column].column_type;
                let argument = AddArgument::decode(kind, &operation.value)
                    .map_err(|_| OutcomeStatus::Malformed)?;
                row_add(layout, &mut row, column, &argument).map_err(|error| match error {
                    AddError::BoundsViolated => OutcomeStatus::BoundsViolated,
                    AddError::Overflow => OutcomeStatus::Overflow,
                    AddError::IsNull => OutcomeStatus::NullOperand,
                    _ => OutcomeStatus::Malformed,
                })?;
                Some(row)
            }
            OperationKind::Delete if exists => None,
            OperationKind::Delete => return Err(OutcomeStatus::NotFound),
        };
        let number = self.next_number.entry(operation.partition).or_insert(1);
        let row = ModelRow { number: *number, value: next };
        *number += 1;
        self.rows.insert(key.clone(), row);
        undo.push((key, held));
        Ok(())
    }

    /// The page that a scan on one shard must return, and the row behind it: encoded key, row and
    /// version.
    pub fn scan(&self, scan: &Scan, shard: u16, shards: u16) -> Vec<(&[u8], &[u8], u64)> {
        let Some(((last, ..), _)) = self.rows.last_key_value() else { return Vec::new() };
        let rows_max = scan.rows_max as usize + 1;
        let mut found = Vec::new();
        for partition in (shard..=*last).step_by(usize::from(shards)) {
            let start = (partition, scan.table, scan.start.clone());
            let rows = self
                .rows
                .range(start..)
                .take_while(|((of, table, key), _)| {
                    (*of, *table) == (partition, scan.table)
                        && (scan.end.is_empty() || key[..] < scan.end[..])
                })
                .filter_map(|((_, _, key), row)| {
                    Some((&key[..], row.value.as_deref()?, row.number))
                });
            found.extend(rows.take(rows_max));
        }
        found.sort_unstable();
        found.truncate(rows_max);
        found
    }

    /// Applies one section of the log; tells of every row that it changes.
    pub fn redo(
        &mut self,
        lsn: Lsn,
        partition: u16,
        bytes: &[u8],
        tables: &Tables,
        mut changed: impl FnMut(&RowKey, &ModelRow),
    ) -> Result<(), Failure> {
        let reader = FragmentReader::new(bytes)
            .map_err(|error| Failure::new(format!("LSN {lsn}: {error}")))?;
        for record in reader.records() {
            let key = (partition, record.table, record.key.to_vec());
            let before = self.rows.get(&key).map_or(0, |row| row.number);
            if record.number <= before {
                return Err(Failure::new(format!("LSN {lsn}: row versions do not rise")));
            }
            let value = match record.kind {
                RecordKind::Full => Some(record.value.to_vec()),
                RecordKind::Delete => None,
                RecordKind::Patch => {
                    let base = self.rows.get(&key).and_then(|row| row.value.clone());
                    let base = base.ok_or(Failure::new("a patch in the log meets no row"))?;
                    let mut next = Vec::new();
                    patch_apply(
                        tables.layout(TableId(record.table)),
                        &base,
                        record.value,
                        &mut next,
                    )
                    .map_err(|error| Failure::new(format!("LSN {lsn}: {error}")))?;
                    Some(next)
                }
            };
            let row = ModelRow { number: record.number, value };
            changed(&key, &row);
            self.rows.insert(key, row);
        }
        let next = self.next_number.entry(partition).or_insert(1);
        *next = reader.next_number().max(*next);
        for outcome in reader.outcomes() {
            let key = (outcome.session, outcome.number);
            let kept = outcome.results.map(<[u8]>::to_vec);
            if self.outcomes.insert(key, kept).is_some() {
                return Err(Failure::new(format!(
                    "LSN {lsn}: transaction {} of session {} took effect twice",
                    outcome.number, outcome.session
                )));
            }
        }
        Ok(())
    }

    /// Says how two models differ, if they do.
    pub fn difference(&self, other: &Self) -> Option<String> {
        for (key, row) in &self.rows {
            if other.rows.get(key) != Some(row) {
                let found = other.rows.get(key);
                return Some(format!("row {key:?}: expected {row:?}, the log has {found:?}"));
            }
        }
        if let Some(key) = other.rows.keys().find(|key| !self.rows.contains_key(*key)) {
            return Some(format!("row {key:?} is in the log, and nobody wrote it"));
        }
        if self.outcomes != other.outcomes {
            let differs = |key: &&(u64, u64)| self.outcomes.get(*key) != other.outcomes.get(*key);
            let key = self.outcomes.keys().chain(other.outcomes.keys()).find(differs);
            return Some(format!("outcome of session and number {key:?} differs"));
        }
        None
    }

    /// Sum of all balances and number of accounts.
    pub fn balances(&self, tables: &Tables) -> (i64, i64) {
        let rows = self.rows.iter().filter(|((_, table, _), _)| *table == tables.account.id().0);
        let balance = |value: &Vec<u8>| tables.balance(value);
        let mut sum = (0, 0);
        for value in rows.filter_map(|(_, row)| row.value.as_ref()) {
            sum = (sum.0 + balance(value), sum.1 + 1);
        }
        sum
    }
}

fn check(holds: bool) -> Result<(), OutcomeStatus> {
    if holds { Ok(()) } else { Err(OutcomeStatus::CheckFailed) }
}
