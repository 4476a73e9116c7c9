//! What a shard hands over to the log: one item, never split across batches.

use spillway_net::ids::{Epoch, PartitionId};
use spillway_net::limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES_MAX};
use spillway_net::message;

use crate::memtable::VersionKind;
use crate::redo::{Fragment, RecordHead, RecordKind, record_digest};

use super::store::Store;

/// The origin of an item that comes from the root service, not from a shard.
pub const ORIGIN_ROOT: u16 = u16::MAX;

/// One fragment within an item's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemSection {
    /// The partition, or [`crate::redo::PARTITION_SYSTEM`].
    pub partition: PartitionId,
    /// The partition's running digest behind the fragment; a system section's own digest.
    pub digest: u128,
    /// Where its archive lies in the item's bytes.
    pub start: u32,
    /// Its end.
    pub end: u32,
}

/// All fragments that a shard had open at one moment. Recycled: the log core gives it back.
#[derive(Debug, Default)]
pub struct LogItem {
    /// The shard, or [`ORIGIN_ROOT`].
    pub origin: u16,
    /// The term it was made in: the log drops it if the node does not lead in that term.
    pub epoch: Epoch,
    /// The origin's number of this hand-over; rises, also over terms.
    pub stamp: u64,
    /// The fragments.
    pub sections: Vec<ItemSection>,
    /// Their archives.
    pub bytes: Vec<u8>,
}

impl LogItem {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.sections.clear();
        self.bytes.clear();
    }
}

/// Scratch columns, reused from fragment to fragment.
#[derive(Default)]
pub(super) struct Sealer {
    records: Vec<RecordHead>,
    numbers: Vec<u32>,
    bytes: Vec<u8>,
    row: Vec<u8>,
    spare: Vec<u8>,
}

impl Sealer {
    /// Writes all open fragments into `item` and closes them. The records are the touched rows'
    /// newest versions, so what is logged, what is digested and what the memtable holds are one.
    pub fn seal(&mut self, store: &mut Store, item: &mut LogItem) {
        assert!(item.sections.is_empty() && item.bytes.is_empty(), "items are handed back empty");
        item.stamp = store.stamp.0;
        store.history.begin(store.stamp);
        let mut open = std::mem::take(&mut store.open);
        for &local in &open {
            let (sum, start, end) = self.seal_partition(store, usize::from(local), item);
            let partition = &mut store.partitions[usize::from(local)];
            let before = partition.digest;
            partition.digest = before.wrapping_add(sum);
            let (id, digest) = (partition.id, partition.digest);
            item.sections.push(ItemSection { partition: id, digest, start, end });
            store.history.keep(local, partition, before);
            partition.clear();
        }
        assert!(
            item.bytes.len() + BATCH_HEADER_BYTES_MAX <= BATCH_BYTES_MAX,
            "an item of {} bytes does not fit a batch",
            item.bytes.len()
        );
        open.clear();
        store.open = open;
        store.open_bytes = 0;
        store.stamp.0 += 1;
    }

    /// Appends a partition's fragment to the item's bytes. Returns the sum of its records'
    /// digests and where it lies.
    fn seal_partition(
        &mut self,
        store: &Store,
        local: usize,
        item: &mut LogItem,
    ) -> (u128, u32, u32) {
        let partition = &store.partitions[local];
        assert!(partition.open, "only open fragments are sealed");
        self.records.clear();
        self.numbers.clear();
        self.bytes.clear();
        let mut digest = 0u128;
        for touched in &partition.touched {
            let version = touched.row.newest().expect("a touched row has a version");
            assert_eq!(version.stamp(), store.stamp, "a touched row was written by this fragment");
            let (key, value) = (touched.row.key(), version.value());
            let (kind, row) = match version.kind() {
                VersionKind::Full => (RecordKind::Full, Some(value)),
                VersionKind::Delete => (RecordKind::Delete, None),
                VersionKind::Patch => {
                    let id = spillway_net::ids::TableId(touched.table);
                    let table = store.table_held(id).expect("tables outlive their open fragments");
                    let row = Store::resolve(table, touched.row, &mut self.row, &mut self.spare);
                    (RecordKind::Patch, row.map(|(row, _)| row))
                }
            };
            let record = record_digest(touched.table, key, version.number(), row);
            if row.is_some() || !spillway_runtime::planted!(DigestSkipped) {
                digest = digest.wrapping_add(record);
            }
            self.records.push(RecordHead {
                kind: kind as u8,
                table: touched.table,
                key_length: key.len() as u16,
                value_length: value.len() as u32,
            });
            if partition.overwritten {
                self.numbers.push((version.number() - partition.first_number) as u32);
            }
            self.bytes.extend_from_slice(key);
            self.bytes.extend_from_slice(value);
        }
        self.bytes.extend_from_slice(&partition.results);
        let start = item.bytes.len() as u32;
        message::archive(
            &mut item.bytes,
            &Fragment {
                first_number: partition.first_number,
                records: &self.records,
                numbers: &self.numbers,
                runs: &partition.runs,
                outcomes: &partition.outcomes,
                bytes: &self.bytes,
            },
        );
        (digest, start, item.bytes.len() as u32)
    }
}
