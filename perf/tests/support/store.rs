//! A plain model of a node's tables and sessions: maps, and no concern for speed.

use std::collections::{BTreeMap, HashMap};

use spillway_net::add::{AddArgument, AddError, row_add};
use spillway_net::layout::TableLayout;
use spillway_net::message::{
    OperationHead, OperationKind, OutcomeHead, OutcomeStatus, Outcomes, Submit,
};
use spillway_net::patch::patch_apply;
use spillway_net::schema::TableDefinition;

/// One table.
pub struct StoredTable {
    pub definition: TableDefinition,
    pub layout: TableLayout,
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All tables, and which transactions were committed.
#[derive(Default)]
pub struct Store {
    pub tables: Vec<StoredTable>,
    /// Committed transaction numbers by session.
    pub committed: HashMap<u64, std::collections::HashSet<u64>>,
}

/// A row to put back if the transaction fails.
type Undo = (usize, Vec<u8>, Option<Vec<u8>>);

impl Store {
    /// Creates a table, or finds it; ids count from 1.
    pub fn create_table(&mut self, definition: &TableDefinition) -> u16 {
        let same = |table: &StoredTable| table.definition == *definition;
        if let Some(at) = self.tables.iter().position(same) {
            return at as u16 + 1;
        }
        let layout = TableLayout::new(definition).expect("a valid definition");
        let definition = definition.clone();
        self.tables.push(StoredTable { definition, layout, rows: BTreeMap::new() });
        self.tables.len() as u16
    }

    /// Executes a frame.
    pub fn execute(&mut self, session: u64, submit: &Submit) -> Outcomes {
        let mut outcomes = Outcomes::default();
        let (mut operations, mut bytes) = (&submit.operations[..], &submit.bytes[..]);
        for transaction in &submit.transactions {
            let number = submit.first_number + u64::from(transaction.number_offset);
            let (now, later) = operations.split_at(usize::from(transaction.operations));
            operations = later;
            let length: usize =
                now.iter().map(|one| usize::from(one.key_length) + one.value_length as usize).sum();
            let (these, rest) = bytes.split_at(length);
            bytes = rest;
            let mut data = Vec::new();
            let is_repeated = self.committed.entry(session).or_default().contains(&number);
            let (status, operation) = if is_repeated {
                (OutcomeStatus::CommittedResultsNotKept, 0)
            } else {
                self.transaction(now, these, &mut data)
            };
            if status == OutcomeStatus::Committed {
                self.committed.entry(session).or_default().insert(number);
            } else {
                data.clear();
            }
            outcomes.outcomes.push(OutcomeHead {
                status: status as u16,
                operation,
                data_length: data.len() as u32,
            });
            outcomes.bytes.extend_from_slice(&data);
        }
        outcomes
    }

    fn transaction(
        &mut self,
        operations: &[OperationHead],
        mut bytes: &[u8],
        data: &mut Vec<u8>,
    ) -> (OutcomeStatus, u16) {
        let mut undo: Vec<Undo> = Vec::new();
        for (index, head) in operations.iter().enumerate() {
            let (key, rest) = bytes.split_at(usize::from(head.key_length));
            let (value, rest) = rest.split_at(head.value_length as usize);
            bytes = rest;
            let status = self.operation(head, key, value, data, &mut undo);
            if status != OutcomeStatus::Committed {
                for (table, key, row) in undo.into_iter().rev() {
                    let rows = &mut self.tables[table].rows;
                    match row {
                        Some(row) => rows.insert(key, row),
                        None => rows.remove(&key),
                    };
                }
                return (status, index as u16);
            }
        }
        (OutcomeStatus::Committed, 0)
    }

    fn operation(
        &mut self,
        head: &OperationHead,
        key: &[u8],
        value: &[u8],
        data: &mut Vec<u8>,
        undo: &mut Vec<Undo>,
    ) -> OutcomeStatus {
        let at = usize::from(head.table) - 1;
        let Some(table) = self.tables.get_mut(at) else { return OutcomeStatus::UnknownTable };
        let old = table.rows.get(key);
        let new = match (OperationKind::from_wire(head.kind), old) {
            (Some(OperationKind::Get), old) => {
                data.push(u8::from(old.is_some()));
                data.extend_from_slice(&1u64.to_le_bytes());
                let row = old.map_or(&[][..], Vec::as_slice);
                data.extend_from_slice(&(row.len() as u32).to_le_bytes());
                data.extend_from_slice(row);
                return OutcomeStatus::Committed;
            }
            (Some(OperationKind::Insert), Some(_)) => return OutcomeStatus::Duplicate,
            (Some(OperationKind::Insert | OperationKind::Upsert), _) => value.to_vec(),
            (Some(OperationKind::Update | OperationKind::Add), None) => {
                return OutcomeStatus::NotFound;
            }
            (Some(OperationKind::Update), Some(old)) => {
                let mut new = Vec::new();
                patch_apply(&table.layout, old, value, &mut new).expect("a good patch");
                new
            }
            (Some(OperationKind::Add), Some(old)) => {
                let column = usize::from(head.column);
                let column_type = table.definition.columns[column].column_type;
                let argument = AddArgument::decode(column_type, value).expect("a good argument");
                let value_column = table.layout.value_column(column).expect("outside the key");
                let mut new = old.clone();
                match row_add(&table.layout, &mut new, value_column, &argument) {
                    Ok(()) => new,
                    Err(AddError::BoundsViolated) => return OutcomeStatus::BoundsViolated,
                    Err(error) => panic!("an add failed: {error}"),
                }
            }
            (kind, _) => panic!("the model has no {kind:?}"),
        };
        undo.push((at, key.to_vec(), old.cloned()));
        table.rows.insert(key.to_vec(), new);
        OutcomeStatus::Committed
    }
}
