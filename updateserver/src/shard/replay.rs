//! Applying redo to a shard's memtable: in bulk at a restart, batch by batch on a follower.
//!
//! Replicas decide nothing: they write what the records say, and then prove it. The digest is
//! computed from what the memtable holds after applying, row by row, and must lead to the
//! running digest that the leader put into the log.

use spillway_net::ids::{Lsn, PartitionId, SessionId, TableId, WallMicros};
use spillway_net::limits::ROW_BYTES_MAX;
use spillway_net::{message, patch};

use crate::memtable::{
    RowRef, Stamp, VersionKind, WriteVersion, block_bytes_max, key_hash, row_insert_bytes_max,
    version_bytes,
};
use crate::redo::{
    FragmentReader, PARTITION_SYSTEM, Record, RecordKind, RedoError, SystemCommand, SystemFragment,
    record_digest, system_digest,
};

use super::role::Role;
use super::store::Store;
use super::{ApplyBatch, ApplySection, Shard, ShardEffects};

/// Records applied together, so that their cache misses overlap.
const GROUP: usize = 16;

/// Why a section of the log could not be applied. The start stops with it, and so does a
/// follower: the memtable would not be what was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The section's bytes.
    #[error("partition {partition}, LSN {lsn}: {error}")]
    Redo {
        /// Where.
        partition: PartitionId,
        /// Where.
        lsn: Lsn,
        /// What.
        error: RedoError,
    },
    /// A record names a table that the log never created.
    #[error("partition {partition}, LSN {lsn}: a record names table {table}, which does not exist")]
    UnknownTable {
        /// Where.
        partition: PartitionId,
        /// Where.
        lsn: Lsn,
        /// The table's id.
        table: TableId,
    },
    /// A patch without the row it changes.
    #[error("partition {partition}, LSN {lsn}: a patch meets no row that it fits")]
    PatchWithoutRow {
        /// Where.
        partition: PartitionId,
        /// Where.
        lsn: Lsn,
    },
    /// Row versions must rise.
    #[error("partition {partition}, LSN {lsn}: row versions do not rise")]
    NumbersFall {
        /// Where.
        partition: PartitionId,
        /// Where.
        lsn: Lsn,
    },
    /// What the memtable holds is not what the leader had.
    #[error(
        "partition {partition}, LSN {lsn}: the digest of the applied records differs from the \
         one in the log; the node's memory or its release is faulty: test the memory, then start \
         again with the release that wrote the log"
    )]
    Digest {
        /// Where.
        partition: PartitionId,
        /// Where.
        lsn: Lsn,
    },
    /// The budget is smaller than what the log holds.
    #[error("the log holds more than the memory budget of this shard: raise memory.budget_bytes")]
    MemoryFull,
}

/// What replay did on one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayCounts {
    /// Records applied.
    pub records: u64,
    /// Outcomes noted.
    pub outcomes: u64,
}

/// Reads the commands of a system section, for the shards and the root service alike.
pub fn system_commands(
    lsn: Lsn,
    section: &ApplySection<'_>,
) -> Result<Vec<SystemCommand>, ReplayError> {
    let partition = section.partition;
    assert_eq!(partition.0, PARTITION_SYSTEM, "commands stand in the system section");
    if system_digest(section.bytes) != section.digest {
        return Err(ReplayError::Digest { partition, lsn });
    }
    let fragment = message::decode::<SystemFragment>(section.bytes)
        .map_err(|error| ReplayError::Redo { partition, lsn, error: error.into() })?;
    Ok(fragment.commands)
}

/// By whom versions are written, and what every reader sees already.
#[derive(Clone, Copy)]
struct Stamps {
    stamp: Stamp,
    floor: Stamp,
}

impl Stamps {
    /// A bug of tests: see [`spillway_runtime::faults`].
    fn forgets_outcomes(self) -> bool {
        self.stamp != Stamp::REPLAYED && spillway_runtime::planted!(OutcomesNotApplied)
    }
}

impl Shard {
    /// Everything up to here was replayed at the start, whether it concerned this shard or not.
    pub fn replayed_to(&mut self, lsn: Lsn, timestamp: WallMicros) {
        assert!(self.role == Role::Follow && lsn >= self.applied_lsn, "a replay comes first");
        (self.applied_lsn, self.applied_timestamp) = (lsn, timestamp);
    }

    /// Applies a committed batch in service; see [`super::ShardInput::Apply`]. It counts as a
    /// hand-over that is committed at once, so that older versions can be recycled.
    pub(super) fn apply(&mut self, batch: &ApplyBatch<'_>, out: &mut ShardEffects) {
        assert!(!self.leads(), "a leader has executed what it would apply");
        if self.role == Role::Diverged {
            return;
        }
        assert!(batch.lsn > self.applied_lsn, "batches are applied in order, each once");
        let stamps = Stamps { stamp: self.store.stamp, floor: self.store.floor };
        assert_eq!(stamps.floor.0 + 1, stamps.stamp.0, "a follower has nothing uncommitted");
        let count = batch.sections.len();
        for at in 0..count {
            let backwards = spillway_runtime::planted!(SectionsAppliedBackwards);
            let section = &batch.sections[if backwards { count - 1 - at } else { at }];
            if let Err(error) = self.apply_section(batch.lsn, section, stamps, out) {
                self.role = Role::Diverged;
                out.diverged = Some(error);
                return;
            }
        }
        self.store.stamp.0 += 1;
        self.store.commit(stamps.stamp);
        (self.applied_lsn, self.applied_timestamp) = (batch.lsn, batch.timestamp);
    }

    fn apply_section(
        &mut self,
        lsn: Lsn,
        section: &ApplySection<'_>,
        stamps: Stamps,
        out: &mut ShardEffects,
    ) -> Result<(), ReplayError> {
        let partition = section.partition;
        if partition.0 == PARTITION_SYSTEM {
            for command in system_commands(lsn, section)? {
                let applied = self.apply_command(&command, out);
                applied.map_err(|error| ReplayError::Redo { partition, lsn, error })?;
            }
        } else if partition.0 % self.spread.shards == self.spread.index.0 {
            let counts = self.section(lsn, partition, section.bytes, section.digest, stamps)?;
            self.counters.records_applied += counts.records;
        }
        Ok(())
    }

    /// Applies one section that belongs to this shard at the start. `digest` is the partition's
    /// running digest behind it, as the log gives it.
    pub fn replay_section(
        &mut self,
        lsn: Lsn,
        partition: PartitionId,
        bytes: &[u8],
        digest: u128,
    ) -> Result<ReplayCounts, ReplayError> {
        assert!(self.role == Role::Follow, "a leader has executed what it would replay");
        let stamps = Stamps { stamp: Stamp::REPLAYED, floor: Stamp::REPLAYED };
        self.section(lsn, partition, bytes, digest, stamps)
    }

    fn section(
        &mut self,
        lsn: Lsn,
        partition: PartitionId,
        bytes: &[u8],
        digest_after: u128,
        stamps: Stamps,
    ) -> Result<ReplayCounts, ReplayError> {
        assert_eq!(partition.0 % self.spread.shards, self.spread.index.0, "not this shard's");
        let local = partition.0 / self.spread.shards;
        let redo = |error| ReplayError::Redo { partition, lsn, error };
        let reader = FragmentReader::new(bytes).map_err(redo)?;
        if reader.first_number() < self.store.partitions[usize::from(local)].next_number {
            return Err(ReplayError::NumbersFall { partition, lsn });
        }
        let mut group: Vec<(Record<'_>, u64, u32)> = Vec::with_capacity(GROUP);
        let mut digest = 0u128;
        let mut records = reader.records();
        loop {
            group.clear();
            for record in records.by_ref().take(GROUP) {
                let id = TableId(record.table);
                let Some(table) = self.store.table_held(id) else {
                    return Err(ReplayError::UnknownTable { partition, lsn, table: id });
                };
                let slice = (table.slice_base + usize::from(local)) as u32;
                let hash = key_hash(record.key);
                self.store.slice(slice).prefetch_slot(hash);
                group.push((record, hash, slice));
            }
            if group.is_empty() {
                break;
            }
            for (_, hash, slice) in &group {
                self.store.slice(*slice).prefetch_head(*hash);
            }
            for (_, hash, slice) in &group {
                self.store.slice(*slice).prefetch_version(*hash);
            }
            for (_, hash, slice) in &group {
                self.store.slice(*slice).prefetch_older(*hash);
            }
            for (record, hash, slice) in &group {
                let row = self
                    .store
                    .replay(record, *hash, *slice, stamps)?
                    .ok_or(ReplayError::PatchWithoutRow { partition, lsn })?;
                digest = digest.wrapping_add(self.store.digest(record.table, row));
            }
        }
        let state = &mut self.store.partitions[usize::from(local)];
        if state.digest.wrapping_add(digest) != digest_after {
            return Err(ReplayError::Digest { partition, lsn });
        }
        state.digest = digest_after;
        state.next_number = reader.next_number();
        state.first_number = state.next_number;
        for mark in reader.acknowledged() {
            self.sessions.replay_acknowledged(SessionId(mark.session), mark.below);
        }
        let mut outcomes = 0;
        for outcome in reader.outcomes().filter(|_| !stamps.forgets_outcomes()) {
            let session = SessionId(outcome.session);
            let (number, request_hash) = (outcome.number, outcome.request_hash);
            self.sessions.replay(session, number, request_hash, outcome.results).map_err(redo)?;
            outcomes += 1;
        }
        Ok(ReplayCounts { records: reader.records_count() as u64, outcomes })
    }

    /// Applies a command of the root service at the start.
    ///
    /// # Errors
    /// It cannot follow upon what was applied before.
    pub fn replay_command(&mut self, command: &SystemCommand) -> Result<(), RedoError> {
        let mut out = ShardEffects::default();
        self.apply_command(command, &mut out)?;
        assert!(out.closes.is_empty(), "nobody is connected while the log is replayed");
        Ok(())
    }

    fn apply_command(
        &mut self,
        command: &SystemCommand,
        out: &mut ShardEffects,
    ) -> Result<(), RedoError> {
        match command {
            SystemCommand::TableCreate { table, definition } => {
                self.store.table_create(TableId(*table), definition.clone())?;
            }
            SystemCommand::TableDrop { table } => self.store.table_remove(TableId(*table)),
            SystemCommand::SessionClose { session } => {
                self.session_remove(SessionId(*session), out);
            }
            SystemCommand::SessionOpen { .. }
            | SystemCommand::MemberSet { .. }
            | SystemCommand::MemberRemove { .. }
            | SystemCommand::ZoneDrain { .. } => {}
        }
        Ok(())
    }
}

impl Store {
    /// Writes one record; `None` when a patch meets no row.
    fn replay(
        &mut self,
        record: &Record<'_>,
        hash: u64,
        slice: u32,
        stamps: Stamps,
    ) -> Result<Option<RowRef>, ReplayError> {
        let mut patched = std::mem::take(&mut self.row_next);
        let (kind, value) = match record.kind {
            RecordKind::Full => (VersionKind::Full, record.value),
            RecordKind::Delete => (VersionKind::Delete, record.value),
            RecordKind::Patch => {
                let found = self.slice(slice).find(hash, record.key);
                let table = self.table_held(TableId(record.table)).expect("looked up before");
                let (mut row, mut spare) = (Vec::new(), Vec::new());
                let base =
                    found.and_then(|found| Self::resolve(table, found, &mut row, &mut spare));
                patched.clear();
                let applied = base.is_some_and(|(base, _)| {
                    patch::patch_apply(&table.layout, base, record.value, &mut patched).is_ok()
                        && patched.len() <= ROW_BYTES_MAX
                });
                if !applied {
                    return Ok(None);
                }
                (VersionKind::Full, &patched[..])
            }
        };
        let (arena, undo) = (&mut self.arena, &mut self.replay_undo);
        let created = row_insert_bytes_max(record.key.len());
        // What was withheld from transactions is there for this: rows fill chunks a little
        // differently than when they came, and what was acknowledged must fit again.
        let bytes = created + block_bytes_max(version_bytes(value.len()));
        if !arena.has_room_withheld(bytes) {
            return Err(ReplayError::MemoryFull);
        }
        let slice = &mut self.slices[slice as usize];
        let (row, _) = slice.upsert_row(arena, hash, record.key, undo);
        let version = WriteVersion {
            stamp: stamps.stamp,
            number: record.number,
            kind,
            floor: stamps.floor,
            value,
        };
        crate::memtable::write(arena, row, version, undo);
        self.row_next = patched;
        Ok(Some(row))
    }

    /// Digest of a row as the memtable holds it.
    fn digest(&mut self, table: u16, row: RowRef) -> u128 {
        let newest = row.newest().expect("the row was just written");
        let value = match newest.kind() {
            VersionKind::Delete => None,
            VersionKind::Full => Some(newest.value()),
            VersionKind::Patch => unreachable!("replay writes whole rows"),
        };
        record_digest(table, row.key(), newest.number(), value)
    }
}
