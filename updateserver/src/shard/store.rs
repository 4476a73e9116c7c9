//! The data of one shard: its tables and partitions, and what one operation does to them.
//!
//! A transaction runs to completion here without concurrency. Everything it does can be undone
//! until [`Store::transaction_commit`]: memtable versions through the undo log, row versions and
//! touched rows through partition marks.

use spillway_net::add::{AddArgument, AddError, row_add};
use spillway_net::ids::{PartitionId, TableId};
use spillway_net::layout::TableLayout;
use spillway_net::limits::{ROW_BYTES_MAX, TRANSACTION_REDO_BYTES_MAX};
use spillway_net::message::{OperationKind, OutcomeStatus};
use spillway_net::patch::{self, PatchWriter};
use spillway_net::row::RowView;
use spillway_net::schema::TableDefinition;

use crate::catalog::ShardTable;
use crate::memtable::{
    Arena, ChunkSource, RowRef, SliceIndex, Stamp, TableSlice, UndoLog, UndoMark, VersionKind,
    WriteVersion, Wrote, block_bytes_max, row_insert_bytes_max, version_bytes,
};
use crate::redo::RedoError;

use super::handover::History;
use super::partition::{Partition, Touched};

/// Rows up to this size are always written whole: a patch would save less than it costs to
/// resolve. Bytes.
const ROW_WHOLE_BYTES_MAX: usize = 128;
/// A patch of one column of a fixed width is smaller, bytes.
const PATCH_BYTES_ONE: usize = 32;
/// Patches a read may have to resolve before a write replaces them by a whole row.
const PATCH_CHAIN_MAX: usize = 4;
/// What a record costs in the log beside its key and value: its head and row version, bytes.
const RECORD_OVERHEAD_BYTES: usize = 16;
/// The most that one operation takes from the arena: a row head with its place in the index, and
/// a version. Summed before a transaction runs, so that no allocation within it can fail.
pub(super) fn arena_bytes_max(
    layout: &TableLayout,
    kind: OperationKind,
    key_bytes: usize,
    value_bytes: usize,
) -> usize {
    let row_bytes = match kind {
        OperationKind::Insert | OperationKind::Upsert => value_bytes,
        // What comes of a row of unknown length is known only when it is met.
        OperationKind::Update | OperationKind::Add => {
            layout.row_bytes_fixed().unwrap_or(ROW_BYTES_MAX)
        }
        OperationKind::Delete => 0,
        _ => return 0,
    };
    let created = match kind {
        OperationKind::Insert | OperationKind::Upsert => row_insert_bytes_max(key_bytes),
        _ => 0,
    };
    created + block_bytes_max(version_bytes(row_bytes))
}

/// An operation whose table, key, value and partition were checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct PreparedOperation<'a> {
    pub kind: OperationKind,
    pub table: TableId,
    /// Local partition number.
    pub partition: u16,
    /// The table's slice of that partition.
    pub slice: u32,
    /// Value column of an `Add`.
    pub column: u16,
    /// The most it takes from the arena.
    pub arena_bytes: u32,
    pub hash: u64,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

struct PartitionMark {
    partition: u16,
    next_number: u64,
    touched: usize,
    overwritten: bool,
}

/// Tables, partitions and memory of one shard.
pub(super) struct Store {
    tables: Vec<Option<Box<ShardTable>>>,
    pub(super) slices: Vec<TableSlice>,
    /// Tables that were scanned, whose rows are kept in order.
    pub(super) ordered: Vec<TableId>,
    pub partitions: Vec<Partition>,
    pub arena: Arena,
    undo: UndoLog,
    /// For writes that are final.
    pub(super) replay_undo: UndoLog,
    /// Fragments are stamped with the hand-over they will leave in.
    pub stamp: Stamp,
    /// Newest stamp known to be committed.
    pub floor: Stamp,
    /// Hand-overs above the floor.
    pub(super) history: History,
    /// Local partitions with an open fragment, in order of their first write.
    pub open: Vec<u16>,
    /// Upper bound of the open fragments' bytes.
    pub open_bytes: usize,
    transaction: u64,
    transaction_bytes: usize,
    marks: Vec<PartitionMark>,
    mark: Option<UndoMark>,
    row: Vec<u8>,
    pub(super) row_next: Vec<u8>,
    patch: Vec<u8>,
}

impl Store {
    pub fn new(
        partitions: impl Iterator<Item = PartitionId>,
        chunks: Box<dyn ChunkSource>,
        memory_bytes_withheld: usize,
    ) -> Self {
        Self {
            tables: Vec::new(),
            slices: Vec::new(),
            ordered: Vec::new(),
            partitions: partitions.map(Partition::new).collect(),
            arena: Arena::new(chunks, memory_bytes_withheld),
            undo: UndoLog::new(),
            replay_undo: UndoLog::off(),
            stamp: Stamp(1),
            floor: Stamp(0),
            history: History::default(),
            open: Vec::new(),
            open_bytes: 0,
            transaction: 0,
            transaction_bytes: 0,
            marks: Vec::new(),
            mark: None,
            row: Vec::new(),
            row_next: Vec::new(),
            patch: Vec::new(),
        }
    }

    /// A table that clients may use.
    pub fn table(&self, id: TableId) -> Option<&ShardTable> {
        self.table_held(id).filter(|table| !table.hidden)
    }

    /// A table, also one whose drop is on its way.
    pub fn table_held(&self, id: TableId) -> Option<&ShardTable> {
        self.tables.get(usize::from(id.0))?.as_deref()
    }

    /// All tables that clients may use.
    pub fn tables(&self) -> impl Iterator<Item = &ShardTable> {
        self.tables.iter().flatten().map(|table| &**table).filter(|table| !table.hidden)
    }

    pub fn slice(&self, slice: u32) -> &TableSlice {
        &self.slices[slice as usize]
    }

    /// The table's slices, one per local partition.
    pub fn slices(&self, table: &ShardTable) -> &[TableSlice] {
        &self.slices[table.slice_base..table.slice_base + self.partitions.len()]
    }

    /// The table's slices and the arena, to bring their order up to date.
    pub fn slices_mut(&mut self, id: TableId) -> Option<(&mut [TableSlice], &mut Arena)> {
        let base = self.table(id)?.slice_base;
        let count = self.partitions.len();
        Some((&mut self.slices[base..base + count], &mut self.arena))
    }

    /// A table exists from now on.
    ///
    /// # Errors
    /// There is one with this id, or the definition is not valid. Nothing has changed then.
    pub fn table_create(
        &mut self,
        id: TableId,
        definition: TableDefinition,
    ) -> Result<(), RedoError> {
        let at = usize::from(id.0);
        if self.table_held(id).is_some() {
            return Err(RedoError::Contradiction("a table is created twice"));
        }
        let base = self.slices.len();
        let table = ShardTable::new(id, definition, base)
            .map_err(|_| RedoError::Contradiction("a table's definition is not valid"))?;
        for i in 0..self.partitions.len() {
            self.slices.push(TableSlice::new(SliceIndex((base + i) as u32)));
        }
        if self.tables.len() <= at {
            self.tables.resize_with(at + 1, || None);
        }
        self.tables[at] = Some(Box::new(table));
        Ok(())
    }

    /// Clients do not see the table any more.
    pub fn table_hide(&mut self, id: TableId) {
        assert!(self.open.is_empty(), "open fragments are handed over before a table is hidden");
        if let Some(table) = self.tables.get_mut(usize::from(id.0)).and_then(Option::as_mut) {
            table.hidden = true;
        }
    }

    /// Shows all hidden tables again: their drops will not be committed.
    pub fn tables_show(&mut self) {
        for table in self.tables.iter_mut().flatten() {
            table.hidden = false;
        }
    }

    /// A table is gone for good. Its rows' memory returns with the memtable, at the next freeze.
    pub fn table_remove(&mut self, id: TableId) {
        self.ordered.retain(|ordered| *ordered != id);
        if let Some(slot) = self.tables.get_mut(usize::from(id.0)) {
            *slot = None;
        }
    }

    /// The stages of fetching an operation's row into the cache; each reads what the one
    /// before asked for. Groups of transactions go through a stage together.
    pub fn prefetch(&self, stage: PrefetchStage, operation: &PreparedOperation<'_>) {
        let slice = &self.slices[operation.slice as usize];
        match stage {
            PrefetchStage::Slot => slice.prefetch_slot(operation.hash),
            PrefetchStage::Head => slice.prefetch_head(operation.hash),
            PrefetchStage::Version => slice.prefetch_version(operation.hash),
            PrefetchStage::Older => slice.prefetch_older(operation.hash),
        }
    }

    pub fn transaction_begin(&mut self) {
        assert!(self.marks.is_empty() && self.mark.is_none(), "transactions do not nest");
        self.transaction += 1;
        self.transaction_bytes = 0;
        self.mark = Some(self.undo.mark());
    }

    pub fn transaction_commit(&mut self) {
        assert!(self.mark.take().is_some(), "commit ends what begin began");
        self.undo.commit(&mut self.arena);
        self.marks.clear();
        self.open_bytes += self.transaction_bytes;
    }

    pub fn transaction_rollback(&mut self) {
        let mark = self.mark.take().expect("rollback ends what begin began");
        self.undo.rollback_to(mark, &mut self.arena, &mut self.slices);
        while let Some(mark) = self.marks.pop() {
            let partition = &mut self.partitions[usize::from(mark.partition)];
            partition.next_number = mark.next_number;
            partition.touched.truncate(mark.touched);
            partition.overwritten = mark.overwritten;
            if !partition.open {
                assert!(partition.touched.is_empty(), "a closed fragment has no rows");
            }
        }
    }

    /// Saves a partition's counters once per transaction, before its first write there.
    fn mark_partition(&mut self, local: u16) {
        let partition = &mut self.partitions[usize::from(local)];
        if partition.transaction == self.transaction {
            return;
        }
        partition.transaction = self.transaction;
        self.marks.push(PartitionMark {
            partition: local,
            next_number: partition.next_number,
            touched: partition.touched.len(),
            overwritten: partition.overwritten,
        });
    }

    /// Puts every partition that the transaction wrote to, and the one that keeps its outcome,
    /// into the list of open fragments. Called when the transaction cannot fail any more.
    pub fn open_written(&mut self, outcome_partition: u16) {
        for i in 0..=self.marks.len() {
            let local = self.marks.get(i).map_or(outcome_partition, |mark| mark.partition);
            let partition = &mut self.partitions[usize::from(local)];
            if !partition.open {
                partition.open = true;
                self.open.push(local);
                self.open_bytes += spillway_net::limits::FRAGMENT_OVERHEAD_BYTES_MAX;
            }
        }
    }

    /// The row as the transaction sees it now: in the memtable itself if it is held whole, else
    /// resolved into a scratch buffer. Returns it with its version.
    fn current<'s>(
        table: &ShardTable,
        row: RowRef,
        scratch: &'s mut Vec<u8>,
        spare: &mut Vec<u8>,
    ) -> Option<(&'s [u8], u64, usize)> {
        let newest = row.newest()?;
        let number = newest.number();
        let mut patches = [newest; PATCH_CHAIN_MAX];
        let mut count = 0;
        let mut version = newest;
        loop {
            match version.kind() {
                VersionKind::Delete => {
                    assert_eq!(count, 0, "a patch is never written over a deletion");
                    return None;
                }
                VersionKind::Full => break,
                VersionKind::Patch => {
                    patches[count] = version;
                    count += 1;
                    version = version.next().expect("a patch stands on a whole row");
                }
            }
        }
        scratch.clear();
        scratch.extend_from_slice(version.value());
        for patch in patches[..count].iter().rev() {
            spare.clear();
            patch::patch_apply(&table.layout, scratch, patch.value(), spare)
                .expect("patches in the memtable were validated when they came in");
            std::mem::swap(scratch, spare);
        }
        Some((scratch, number, count))
    }

    /// Resolves a row into `out`; `None` when it is deleted or was never there. For readers
    /// outside of transactions and for digests.
    pub fn resolve<'s>(
        table: &ShardTable,
        row: RowRef,
        out: &'s mut Vec<u8>,
        spare: &mut Vec<u8>,
    ) -> Option<(&'s [u8], u64)> {
        Self::current(table, row, out, spare).map(|(row, number, _)| (row, number))
    }

    /// Executes one operation of the transaction in progress. `results` gets what a `Get` found.
    pub fn execute(
        &mut self,
        operation: &PreparedOperation<'_>,
        results: &mut Vec<u8>,
    ) -> Result<(), OutcomeStatus> {
        let table = self.tables[usize::from(operation.table.0)].as_deref();
        let table = table.expect("prepared operations name existing tables");
        let slice = &self.slices[operation.slice as usize];
        let found = slice.find(operation.hash, operation.key);
        let (mut scratch, mut spare) =
            (std::mem::take(&mut self.row), std::mem::take(&mut self.row_next));
        let current = found.and_then(|row| Self::current(table, row, &mut scratch, &mut spare));
        let outcome = match (operation.kind, current) {
            (OperationKind::Get, current) => {
                get_result(results, current.map(|(row, number, _)| (row, number)));
                Ok(())
            }
            (OperationKind::CheckAbsent, None) => Ok(()),
            (OperationKind::CheckExists, Some(_)) => Ok(()),
            (OperationKind::CheckEquals, Some((row, _, _))) => {
                let equal = patch::patch_equals(&table.layout, row, operation.value);
                if equal { Ok(()) } else { Err(OutcomeStatus::CheckFailed) }
            }
            (OperationKind::CheckVersion, Some((_, number, _)))
                if operation.value == number.to_le_bytes() =>
            {
                Ok(())
            }
            (OperationKind::Insert, Some(_)) => Err(OutcomeStatus::Duplicate),
            (OperationKind::Insert, None) | (OperationKind::Upsert, _) => {
                self.write(operation, found, VersionKind::Full, operation.value)
            }
            (OperationKind::Update, Some((row, _, chain))) => {
                let row = row.len();
                self.update(operation, found, &scratch[..row], &mut spare, chain)
            }
            (OperationKind::Add, Some((_, _, chain))) => {
                self.add(operation, found, &mut scratch, chain)
            }
            (OperationKind::Delete, Some(_)) => {
                self.write(operation, found, VersionKind::Delete, &[])
            }
            (OperationKind::Update | OperationKind::Add | OperationKind::Delete, None) => {
                Err(OutcomeStatus::NotFound)
            }
            (
                OperationKind::CheckExists
                | OperationKind::CheckAbsent
                | OperationKind::CheckEquals
                | OperationKind::CheckVersion,
                _,
            ) => Err(OutcomeStatus::CheckFailed),
        };
        (self.row, self.row_next) = (scratch, spare);
        outcome
    }

    fn update(
        &mut self,
        operation: &PreparedOperation<'_>,
        found: Option<RowRef>,
        row: &[u8],
        next: &mut Vec<u8>,
        chain: usize,
    ) -> Result<(), OutcomeStatus> {
        next.clear();
        let table = self.table(operation.table).expect("prepared");
        patch::patch_apply(&table.layout, row, operation.value, next)
            .map_err(|_| OutcomeStatus::Malformed)?;
        if whole(row.len(), operation.value.len(), chain) {
            return self.write(operation, found, VersionKind::Full, next);
        }
        self.write_patch(operation, found, operation.value, next)
    }

    fn add(
        &mut self,
        operation: &PreparedOperation<'_>,
        found: Option<RowRef>,
        row: &mut [u8],
        chain: usize,
    ) -> Result<(), OutcomeStatus> {
        let mut patch = std::mem::take(&mut self.patch);
        let table = self.table(operation.table).expect("prepared");
        let column = usize::from(operation.column);
        let column_type = table.layout.value_columns()[column].column_type;
        let mut argument = AddArgument::decode(column_type, operation.value)
            .map_err(|_| OutcomeStatus::Malformed)?;
        if spillway_runtime::planted!(BoundsIgnored)
            && let AddArgument::Int(bounded) = &mut argument
        {
            bounded.min = None;
        }
        row_add(&table.layout, row, column, &argument).map_err(|error| match error {
            AddError::BoundsViolated => OutcomeStatus::BoundsViolated,
            AddError::Overflow => OutcomeStatus::Overflow,
            AddError::IsNull => OutcomeStatus::NullOperand,
            _ => OutcomeStatus::Malformed,
        })?;
        if whole(row.len(), 0, chain) {
            return self.write(operation, found, VersionKind::Full, row);
        }
        patch.clear();
        let mut writer = PatchWriter::new(&table.layout, &mut patch);
        writer
            .copy(column, &RowView::validated(&table.layout, row))
            .map(|_| ())
            .and_then(|()| writer.finish())
            .expect("a patch of one column of a valid row is valid");
        let outcome = self.write_patch(operation, found, &patch, row);
        self.patch = patch;
        outcome
    }

    /// Writes a patch; if the row already has a version of this fragment the two become one, and
    /// if that version is a whole row it stays one.
    fn write_patch(
        &mut self,
        operation: &PreparedOperation<'_>,
        found: Option<RowRef>,
        patch: &[u8],
        row_after: &[u8],
    ) -> Result<(), OutcomeStatus> {
        let newest = found.and_then(|row| row.newest()).expect("updates meet a row");
        if newest.stamp() != self.stamp {
            return self.write(operation, found, VersionKind::Patch, patch);
        }
        if newest.kind() == VersionKind::Full {
            return self.write(operation, found, VersionKind::Full, row_after);
        }
        let mut merged = Vec::new();
        let table = self.table(operation.table).expect("prepared");
        patch::patch_merge(&table.layout, newest.value(), patch, &mut merged)
            .map_err(|_| OutcomeStatus::Malformed)?;
        self.write(operation, found, VersionKind::Patch, &merged)
    }

    fn write(
        &mut self,
        operation: &PreparedOperation<'_>,
        found: Option<RowRef>,
        kind: VersionKind,
        value: &[u8],
    ) -> Result<(), OutcomeStatus> {
        self.transaction_bytes += operation.key.len() + value.len() + RECORD_OVERHEAD_BYTES;
        if self.transaction_bytes > TRANSACTION_REDO_BYTES_MAX {
            return Err(OutcomeStatus::TooLarge);
        }
        self.mark_partition(operation.partition);
        let partition = &mut self.partitions[usize::from(operation.partition)];
        let number = partition.next_number;
        partition.next_number += 1;
        if number.is_multiple_of(16) && spillway_runtime::planted!(RowVersionReused) {
            partition.next_number = number;
        }
        let slice = &mut self.slices[operation.slice as usize];
        let row = match found {
            Some(row) => row,
            None => {
                let (hash, key) = (operation.hash, operation.key);
                slice.create_row(&mut self.arena, hash, key, &mut self.undo)
            }
        };
        let version = WriteVersion { stamp: self.stamp, number, kind, floor: self.floor, value };
        match crate::memtable::write(&mut self.arena, row, version, &mut self.undo) {
            Wrote::NewInFragment => {
                partition.touched.push(Touched { table: operation.table.0, row });
            }
            Wrote::SameFragment => partition.overwritten = true,
        }
        Ok(())
    }
}

/// Whether a write should be a whole row rather than a patch.
fn whole(row_bytes: usize, patch_bytes: usize, chain: usize) -> bool {
    let must = patch_bytes * 2 >= row_bytes || chain >= PATCH_CHAIN_MAX;
    // The room that was checked is that of a row: what replaces it must be clearly smaller.
    if !must && row_bytes > 2 * PATCH_BYTES_ONE && spillway_runtime::fault_point!(RowWrittenAsPatch)
    {
        return false;
    }
    must || row_bytes <= ROW_WHOLE_BYTES_MAX || spillway_runtime::fault_point!(RowWrittenWhole)
}

fn get_result(results: &mut Vec<u8>, row: Option<(&[u8], u64)>) {
    let (present, (row, number)) = (u8::from(row.is_some()), row.unwrap_or((&[], 0)));
    results.push(present);
    results.extend_from_slice(&number.to_le_bytes());
    results.extend_from_slice(&(row.len() as u32).to_le_bytes());
    results.extend_from_slice(row);
}

/// See [`Store::prefetch`].
#[derive(Clone, Copy, Debug)]
pub(super) enum PrefetchStage {
    Slot,
    Head,
    Version,
    /// What a write will recycle and write next.
    Older,
}

impl PrefetchStage {
    pub const ALL: [Self; 4] = [Self::Slot, Self::Head, Self::Version, Self::Older];
}
