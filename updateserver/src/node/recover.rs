//! Reading the log at start, and giving every shard its part.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use spillway_net::ids::Lsn;
use spillway_runtime::buffer::AlignedBuffer;
use spillway_runtime::clock;
use spillway_runtime::direct::DirectFile;
use spillway_runtime::error::RuntimeError;
use spillway_runtime::slot_ring::Slot;

use crate::log::{FrameKind, Geometry, LogDamaged, LogScanner, Recovered, ScanItem, Superblock};
use crate::redo::PARTITION_SYSTEM;
use crate::root::Root;
use crate::shard::{ReplayCounts, ReplayError, Shard, system_commands};

use super::NodeError;
use super::apply::ApplyEntry;

/// Entries on their way to a shard.
pub(super) const ENTRIES_AHEAD: usize = 16;
/// Bytes of one read.
const READ_BYTES: usize = 4 << 20;

/// The log as it was found.
pub(super) struct RecoveredLog {
    pub recovered: Recovered,
    /// Everything up to here is committed, and was given to the shards.
    pub applied: Lsn,
    /// Entries behind that, which a leader may still replace: their bodies.
    pub tail: Vec<(Lsn, Slot)>,
    /// Changes of members up to `applied`, in order.
    pub config_entries: Vec<Vec<u8>>,
}

/// Entries that are not known to be committed.
struct HeldBack<'a> {
    geometry: Geometry,
    shards: &'a [SyncSender<Arc<ApplyEntry>>],
    entries: VecDeque<(Lsn, Slot)>,
    config_entries: Vec<Vec<u8>>,
    applied: Lsn,
}

impl HeldBack<'_> {
    /// Gives everything up to `committed` to the shards. A shard that has failed is not sent
    /// anything more: its thread tells why.
    fn release(&mut self, committed: Lsn) {
        while self.entries.front().is_some_and(|(lsn, _)| *lsn <= committed) {
            let (lsn, body) = self.entries.pop_front().expect("seen above");
            assert!(lsn > self.applied, "entries are applied in order");
            self.applied = lsn;
            let entry = ApplyEntry::of(&self.geometry, body);
            if entry.kind() == FrameKind::Config {
                self.config_entries.push(entry.first_section().to_vec());
            } else if entry.has_sections() {
                for shard in self.shards {
                    drop(shard.send(Arc::clone(&entry)));
                }
            }
        }
    }
}

/// Reads the whole log.
fn read_all(
    superblock: &Superblock,
    files: &[DirectFile],
    sink: &mut dyn FnMut(ScanItem<'_>),
) -> Result<Recovered, LogDamaged> {
    let mut scanner = LogScanner::new(superblock, READ_BYTES);
    let mut buffer = AlignedBuffer::new(scanner.read_bytes_max().next_multiple_of(4096));
    while let Some(request) = scanner.next_read() {
        let file = &files[request.segment as usize];
        let read = file.read_at(&mut buffer[..request.bytes], request.offset);
        let result = match &read {
            Ok(bytes) => Ok(&buffer[..*bytes]),
            Err(RuntimeError::File { errno, .. }) => Err(errno.0),
            Err(_) => Err(5),
        };
        scanner.feed(result, sink)?;
    }
    Ok(scanner.finish())
}

/// Reads the whole log and does nothing with it.
pub(super) fn check(superblock: &Superblock, files: &[DirectFile]) -> Result<(), LogDamaged> {
    read_all(superblock, files, &mut |_| {}).map(drop)
}

/// Scans the whole log and sends its committed entries to the shards.
pub(super) fn scan(
    superblock: &Superblock,
    files: &[DirectFile],
    shards: &[SyncSender<Arc<ApplyEntry>>],
) -> Result<RecoveredLog, NodeError> {
    let geometry = superblock.geometry;
    let mut held = HeldBack {
        geometry,
        shards,
        entries: VecDeque::new(),
        config_entries: Vec::new(),
        applied: superblock.floor.chain.lsn,
    };
    let recovered = read_all(superblock, files, &mut |item| match item {
        ScanItem::Truncated(lsn) => {
            assert!(lsn >= held.applied, "a committed entry was superseded");
            while held.entries.back().is_some_and(|(last, _)| *last > lsn) {
                held.entries.pop_back();
            }
        }
        ScanItem::Entry(entry) => {
            let body = Slot::from_vec(entry.body.to_vec());
            held.entries.push_back((entry.view.shared.index, body));
            held.release(entry.commit_hint);
        }
    })?;
    held.release(recovered.commit_hint);
    Ok(RecoveredLog {
        applied: held.applied,
        tail: held.entries.into(),
        config_entries: held.config_entries,
        recovered,
    })
}

/// Applies the entries that belong to one shard, and to the root service where it is.
pub(super) fn replay(
    shard: &mut Shard,
    shard_index: u16,
    shards: u16,
    mut root: Option<&mut Root>,
    entries: &Receiver<Arc<ApplyEntry>>,
) -> Result<ReplayCounts, ReplayError> {
    let mut total = ReplayCounts::default();
    let now = clock::monotonic_now().0;
    while let Ok(entry) = entries.recv() {
        entry.with_batch(|batch| {
            for section in batch.sections {
                let partition = section.partition;
                if partition.0 == PARTITION_SYSTEM {
                    let lsn = batch.lsn;
                    let wrong = |error| ReplayError::Redo { partition, lsn, error };
                    for command in system_commands(lsn, section)? {
                        shard.replay_command(&command).map_err(wrong)?;
                        if let Some(root) = &mut root {
                            root.replay(&command, now).map_err(wrong)?;
                        }
                    }
                } else if partition.0 % shards == shard_index {
                    let (bytes, digest) = (section.bytes, section.digest);
                    let counts = shard.replay_section(batch.lsn, partition, bytes, digest)?;
                    total.records += counts.records;
                    total.outcomes += counts.outcomes;
                }
            }
            Ok(())
        })?;
    }
    Ok(total)
}
