//! From a frame's bytes to checked operations, before anything is executed.
//!
//! Nothing here changes state: a transaction that does not fit the schema, the limits or this
//! shard gets its outcome without touching a row.

use spillway_net::add::AddArgument;
use spillway_net::ids::{ShardIndex, TableId};
use spillway_net::key::{key_validate, partition_of};
use spillway_net::limits::{FRAME_TRANSACTIONS_MAX, KEY_BYTES_MAX, TRANSACTION_OPERATIONS_MAX};
use spillway_net::message::{ArchivedOperationHead, ArchivedSubmit, OperationKind, OutcomeStatus};
use spillway_net::patch::patch_validate;
use spillway_net::row::row_validate;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::catalog::ShardTable;
use crate::memtable::key_hash;

use super::store::{PreparedOperation, Store, arena_bytes_max};

/// How partitions are spread over shards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    pub index: ShardIndex,
    pub shards: u16,
    pub partitions: u32,
}

/// A transaction ready to execute, or refused with its outcome.
#[derive(Clone, Copy, Debug)]
pub(super) struct PreparedTransaction {
    /// Position of its frame among the frames of the step.
    pub frame: u32,
    pub last_of_frame: bool,
    /// Transactions of its frame.
    pub frame_transactions: u32,
    pub number: u64,
    pub request_hash: u32,
    /// Its operations in the group's list.
    pub operations: (u32, u32),
    pub writes: bool,
    /// The local number of the lowest partition it touches: its outcome is kept there.
    pub outcome_partition: u16,
    /// Upper bound of what it takes from the arena.
    pub arena_bytes: usize,
    pub refused: Option<(OutcomeStatus, u16)>,
}

/// Walks the transactions of one validated frame.
pub(super) struct FrameWalk<'a> {
    submit: &'a ArchivedSubmit,
    frame: u32,
    transaction: usize,
    operation: usize,
    bytes: &'a [u8],
    last_offset: Option<u32>,
}

/// The frame's parts contradict each other: nothing of it is executed any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FrameInconsistent(pub &'static str);

impl<'a> FrameWalk<'a> {
    pub fn new(submit: &'a ArchivedSubmit, frame: u32) -> Result<Self, FrameInconsistent> {
        let operations: usize =
            submit.transactions.iter().map(|head| usize::from(head.operations.to_native())).sum();
        if submit.transactions.is_empty() {
            return Err(FrameInconsistent("a frame carries at least one transaction"));
        }
        if submit.transactions.len() > FRAME_TRANSACTIONS_MAX {
            return Err(FrameInconsistent("too many transactions in one frame"));
        }
        if operations != submit.operations.len() {
            return Err(FrameInconsistent("transactions and operations differ in count"));
        }
        let bytes: usize = submit
            .operations
            .iter()
            .map(|head| {
                usize::from(head.key_length.to_native()) + head.value_length.to_native() as usize
            })
            .sum();
        if bytes != submit.bytes.len() {
            return Err(FrameInconsistent("keys and values do not add up to the bytes"));
        }
        Ok(Self {
            submit,
            frame,
            transaction: 0,
            operation: 0,
            bytes: &submit.bytes,
            last_offset: None,
        })
    }

    /// Prepares the next transaction, appending its operations; `None` at the end.
    pub fn next(
        &mut self,
        store: &Store,
        spread: Spread,
        operations: &mut Vec<PreparedOperation<'a>>,
    ) -> Option<PreparedTransaction> {
        let head = self.submit.transactions.get(self.transaction)?;
        self.transaction += 1;
        let count = usize::from(head.operations.to_native());
        let heads = &self.submit.operations[self.operation..self.operation + count];
        self.operation += count;
        let offset = head.number_offset.to_native();
        let number = self.submit.first_number.to_native().saturating_add(u64::from(offset));
        let begin = operations.len() as u32;
        let mut prepared = PreparedTransaction {
            frame: self.frame,
            last_of_frame: self.transaction == self.submit.transactions.len(),
            frame_transactions: self.submit.transactions.len() as u32,
            number,
            request_hash: 0,
            operations: (begin, begin),
            writes: false,
            outcome_partition: u16::MAX,
            arena_bytes: 0,
            refused: None,
        };
        let start = self.bytes;
        let mut other_shard = None;
        let mut own_shard = false;
        for (i, head) in heads.iter().enumerate() {
            let (key, rest) = self.bytes.split_at(usize::from(head.key_length.to_native()));
            let (value, rest) = rest.split_at(head.value_length.to_native() as usize);
            self.bytes = rest;
            if prepared.refused.is_some() {
                continue;
            }
            match prepare_operation(store, spread, head, key, value) {
                Ok(operation) => {
                    own_shard = true;
                    prepared.writes |= operation.kind.writes();
                    prepared.outcome_partition =
                        prepared.outcome_partition.min(operation.partition);
                    prepared.arena_bytes += operation.arena_bytes as usize;
                    operations.push(operation);
                }
                Err(Misfit::Shard(shard)) => {
                    if *other_shard.get_or_insert(shard) != shard {
                        own_shard = true;
                    }
                }
                Err(Misfit::Status(status)) => prepared.refused = Some((status, i as u16)),
            }
        }
        prepared.operations.1 = operations.len() as u32;
        prepared.request_hash = request_hash(heads, &start[..start.len() - self.bytes.len()]);
        let offset_falls = self.last_offset.is_some_and(|last| last >= offset);
        if let Some(refused) = refusal_of_form(count, offset_falls) {
            prepared.refused = Some(refused);
        } else if let (None, Some(shard)) = (prepared.refused, other_shard) {
            prepared.refused = Some(match own_shard {
                true => (OutcomeStatus::CrossShard, 0),
                false => (OutcomeStatus::WrongShard, shard),
            });
        }
        self.last_offset = Some(offset);
        Some(prepared)
    }
}

/// What is wrong with a transaction whatever its operations say.
fn refusal_of_form(operations: usize, offset_falls: bool) -> Option<(OutcomeStatus, u16)> {
    if operations == 0 || offset_falls {
        Some((OutcomeStatus::Malformed, 0))
    } else if operations > TRANSACTION_OPERATIONS_MAX {
        Some((OutcomeStatus::TooLarge, 0))
    } else {
        None
    }
}

enum Misfit {
    Shard(u16),
    Status(OutcomeStatus),
}

fn prepare_operation<'a>(
    store: &Store,
    spread: Spread,
    head: &ArchivedOperationHead,
    key: &'a [u8],
    value: &'a [u8],
) -> Result<PreparedOperation<'a>, Misfit> {
    let malformed = Misfit::Status(OutcomeStatus::Malformed);
    let Some(kind) = OperationKind::from_wire(head.kind) else { return Err(malformed) };
    let id = TableId(head.table.to_native());
    let Some(table) = store.table(id) else {
        return Err(Misfit::Status(OutcomeStatus::UnknownTable));
    };
    if head.reserved != 0 || key.len() > KEY_BYTES_MAX {
        return Err(malformed);
    }
    let Ok(prefix) = key_validate(&table.layout, key) else { return Err(malformed) };
    let partition = partition_of(&key[..prefix], spread.partitions);
    let shard = partition.0 % spread.shards;
    if shard != spread.index.0 {
        return Err(Misfit::Shard(shard));
    }
    let Some(column) = value_fits(table, kind, head.column.to_native(), value) else {
        return Err(malformed);
    };
    let hash = key_hash(key);
    Ok(PreparedOperation {
        kind,
        table: id,
        partition: partition.0 / spread.shards,
        slice: (table.slice_base + usize::from(partition.0 / spread.shards)) as u32,
        column,
        arena_bytes: arena_bytes_max(&table.layout, kind, key.len(), value.len()) as u32,
        hash,
        key,
        value,
    })
}

/// Checks an operation's value; returns the value column of an `Add`, else 0.
fn value_fits(table: &ShardTable, kind: OperationKind, column: u16, value: &[u8]) -> Option<u16> {
    let layout = &table.layout;
    if kind != OperationKind::Add && column != 0 {
        return None;
    }
    match kind {
        OperationKind::Get
        | OperationKind::CheckExists
        | OperationKind::CheckAbsent
        | OperationKind::Delete => value.is_empty().then_some(0),
        OperationKind::CheckVersion => (value.len() == 8).then_some(0),
        OperationKind::CheckEquals | OperationKind::Update => {
            patch_validate(layout, value).ok().map(|()| 0)
        }
        OperationKind::Insert | OperationKind::Upsert => {
            row_validate(layout, value).ok().map(|()| 0)
        }
        OperationKind::Add => {
            let column = layout.value_column(usize::from(column))?;
            AddArgument::decode(layout.value_columns()[column].column_type, value).ok()?;
            Some(column as u16)
        }
    }
}

/// Hash of what the client asked for, to tell a retry from another request under its number.
fn request_hash(heads: &[ArchivedOperationHead], bytes: &[u8]) -> u32 {
    let mut seed = heads.len() as u64;
    for head in heads {
        let what = u64::from(head.kind)
            | u64::from(head.table.to_native()) << 8
            | u64::from(head.column.to_native()) << 24
            | u64::from(head.value_length.to_native()) << 40;
        let head = what ^ (u64::from(head.key_length.to_native()) << 30);
        seed = (seed ^ head).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
    xxh3_64_with_seed(bytes, seed) as u32
}
