//! Reading the log at start, and giving every shard its part.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use spillway_net::ids::{Lsn, PartitionId};
use spillway_net::message;
use spillway_runtime::buffer::AlignedBuffer;
use spillway_runtime::clock;
use spillway_runtime::direct::DirectFile;
use spillway_runtime::error::RuntimeError;

use crate::log::{LogScanner, Recovered, ScanEntry, ScanItem, Superblock};
use crate::redo::{PARTITION_SYSTEM, SystemFragment, system_digest};
use crate::root::Root;
use crate::shard::{ReplayCounts, ReplayError, Shard};

use super::NodeError;

/// Entries on their way to a shard.
pub(super) const ENTRIES_AHEAD: usize = 16;
/// Bytes of one read.
const READ_BYTES: usize = 4 << 20;

/// One entry of the log, for all shards.
pub(super) struct ReplayEntry {
    pub lsn: Lsn,
    sections: Vec<(PartitionId, u128, Range<usize>)>,
    bytes: Vec<u8>,
}

/// The log as it was found.
pub(super) struct RecoveredLog {
    pub recovered: Recovered,
    /// Running digest of every partition at its end.
    pub digests: Vec<u128>,
}

/// Scans the whole log and sends its entries to the shards. A shard that has failed is not sent
/// anything more: its thread tells why.
pub(super) fn scan(
    superblock: &Superblock,
    files: &[DirectFile],
    shards: &[SyncSender<Arc<ReplayEntry>>],
) -> Result<RecoveredLog, NodeError> {
    let mut scanner = LogScanner::new(superblock, READ_BYTES);
    let mut buffer = AlignedBuffer::new(scanner.read_bytes_max().next_multiple_of(4096));
    let mut digests = vec![0u128; usize::from(superblock.geometry.partitions)];
    let mut superseded = None;
    while let Some(request) = scanner.next_read() {
        let file = &files[request.segment as usize];
        let read = file.read_at(&mut buffer[..request.bytes], request.offset);
        let result = match &read {
            Ok(bytes) => Ok(&buffer[..*bytes]),
            Err(RuntimeError::File { errno, .. }) => Err(errno.0),
            Err(_) => Err(5),
        };
        scanner.feed(result, &mut |item| match item {
            ScanItem::Truncated(lsn) => superseded = Some(lsn),
            ScanItem::Entry(ScanEntry { view: frame, .. }) => {
                let mut entry = ReplayEntry {
                    lsn: frame.shared.index,
                    sections: Vec::new(),
                    bytes: Vec::with_capacity(frame.shared.payload_bytes as usize),
                };
                for section in frame.sections() {
                    let start = entry.bytes.len();
                    entry.bytes.extend_from_slice(section.bytes);
                    let range = start..entry.bytes.len();
                    entry.sections.push((section.partition, section.digest, range));
                    if section.partition.0 != PARTITION_SYSTEM {
                        digests[usize::from(section.partition.0)] = section.digest;
                    }
                }
                if !entry.sections.is_empty() {
                    let entry = Arc::new(entry);
                    for shard in shards {
                        drop(shard.send(Arc::clone(&entry)));
                    }
                }
            }
        })?;
        if let Some(lsn) = superseded {
            return Err(NodeError::Superseded(lsn));
        }
    }
    Ok(RecoveredLog { recovered: scanner.finish(), digests })
}

/// Applies the entries that belong to one shard, and to the root service where it is.
pub(super) fn replay(
    shard: &mut Shard,
    shard_index: u16,
    shards: u16,
    mut root: Option<&mut Root>,
    entries: &Receiver<Arc<ReplayEntry>>,
) -> Result<ReplayCounts, ReplayError> {
    let mut digests = vec![0u128; spillway_net::limits::PARTITIONS_MAX];
    let mut total = ReplayCounts::default();
    let now = clock::monotonic_now().0;
    while let Ok(entry) = entries.recv() {
        let lsn = entry.lsn;
        for (partition, digest, range) in &entry.sections {
            let bytes = &entry.bytes[range.clone()];
            if partition.0 == PARTITION_SYSTEM {
                if system_digest(bytes) != *digest {
                    return Err(ReplayError::Digest { partition: *partition, lsn });
                }
                let fragment = message::decode::<SystemFragment>(bytes).map_err(|error| {
                    ReplayError::Redo { partition: *partition, lsn, error: error.into() }
                })?;
                for command in &fragment.commands {
                    shard.replay_command(command);
                    if let Some(root) = &mut root {
                        root.replay(command, now);
                    }
                }
            } else if partition.0 % shards == shard_index {
                let before = &mut digests[usize::from(partition.0)];
                let counts = shard.replay_section(lsn, *partition, bytes, *before, *digest)?;
                *before = *digest;
                total.records += counts.records;
                total.outcomes += counts.outcomes;
            }
        }
    }
    Ok(total)
}
