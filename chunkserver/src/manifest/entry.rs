//! One file of the data disk, as the manifest describes it.

use crate::bytes::ByteReader;
use crate::digest::ContentDigest;
use spillway_net::ids::{PartitionId, TableId};
use spillway_net::limits::{KEY_BYTES_MAX, PARTITIONS_MAX};
use std::fmt;

/// Name of a file of the data disk: rises, never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Counters on disk stay below this, so that adding to one that was read cannot overflow.
pub const COUNTER_LIMIT: u64 = 1 << 62;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// The frozen memtable of one partition: what changed between two freezes.
    Run {
        /// Which partition.
        partition: PartitionId,
    },
    /// A key range of one table.
    Tablet {
        /// The table.
        table: TableId,
        /// Fingerprint of its schema.
        schema: u64,
        /// Key of the first row.
        first_key: Vec<u8>,
        /// Key of the last row: the range includes it.
        last_key: Vec<u8>,
        /// The first version at which it is not in force any more, because the merge to that
        /// version replaced it; `None` while it is in force at every later one.
        until: Option<u64>,
    },
}

/// A file in the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name.
    pub id: FileId,
    /// Run: the freeze that it belongs to. Tablet: the freeze up to which changes are in it. At
    /// least 1.
    pub version: u64,
    /// What it holds.
    pub kind: FileKind,
    /// Rows, deletions included.
    pub rows: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Its content.
    pub digest: ContentDigest,
    /// XXH3-64 of its footer, which vouches for everything else in it: tells another file under
    /// this name.
    pub footer_checksum: u64,
}

/// Bytes of an encoded entry beside its keys.
pub const ENTRY_BYTES: usize = 88;
/// The largest encoded entry, bytes.
pub const ENTRY_BYTES_MAX: usize = ENTRY_BYTES + 2 * KEY_BYTES_MAX;

const KIND_RUN: u16 = 1;
const KIND_TABLET: u16 = 2;

impl FileEntry {
    /// Length of its encoded form.
    pub fn encoded_bytes(&self) -> usize {
        match &self.kind {
            FileKind::Run { .. } => ENTRY_BYTES,
            FileKind::Tablet { first_key, last_key, .. } => {
                ENTRY_BYTES + first_key.len() + last_key.len()
            }
        }
    }

    /// Whether it is a tablet that is in force at `version`.
    pub fn is_tablet_at(&self, version: u64) -> bool {
        match &self.kind {
            FileKind::Run { .. } => false,
            FileKind::Tablet { until, .. } => {
                self.version <= version && until.is_none_or(|until| version < until)
            }
        }
    }

    /// Which rule of a single entry it breaks.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let counters = [self.id.0, self.version, self.rows, self.bytes];
        if counters.iter().any(|counter| *counter == 0 || *counter >= COUNTER_LIMIT) {
            return Some("a counter of a file is out of range");
        }
        match &self.kind {
            FileKind::Run { partition } if usize::from(partition.0) >= PARTITIONS_MAX => {
                Some("a run of a partition that no cluster has")
            }
            FileKind::Run { .. } => None,
            FileKind::Tablet { table: TableId(0), .. } => Some("a tablet of no table"),
            FileKind::Tablet { first_key, last_key, until, .. } => {
                let keys = !first_key.is_empty()
                    && first_key <= last_key
                    && first_key.len().max(last_key.len()) <= KEY_BYTES_MAX;
                let ends = until.is_none_or(|until| self.version < until && until < COUNTER_LIMIT);
                match (keys, ends) {
                    (false, _) => Some("key range of a tablet"),
                    (_, false) => Some("a tablet that ends before it begins"),
                    _ => None,
                }
            }
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let none: &[u8] = &[];
        let (kind, table, partition, schema, until, first, last) = match &self.kind {
            FileKind::Run { partition } => (KIND_RUN, 0, partition.0, 0, 0, none, none),
            FileKind::Tablet { table, schema, first_key, last_key, until } => {
                let until = until.unwrap_or(0);
                (KIND_TABLET, table.0, 0, *schema, until, &first_key[..], &last_key[..])
            }
        };
        for word in [self.id.0, self.version, until, schema, self.rows, self.bytes] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.digest.0.to_le_bytes());
        out.extend_from_slice(&self.footer_checksum.to_le_bytes());
        let lengths = [first, last].map(|key| u16::try_from(key.len()).expect("keys are limited"));
        for short in [kind, table, partition, lengths[0], lengths[1], 0, 0, 0] {
            out.extend_from_slice(&short.to_le_bytes());
        }
        out.extend_from_slice(first);
        out.extend_from_slice(last);
    }

    /// Reads one entry. `None` if it is cut off or breaks a rule of a single entry.
    pub(super) fn decode(reader: &mut ByteReader<'_>) -> Option<FileEntry> {
        let mut words = [0; 6];
        for word in &mut words {
            *word = reader.take_u64()?;
        }
        let [id, version, until, schema, rows, bytes] = words;
        let digest = ContentDigest(reader.take_u128()?);
        let footer_checksum = reader.take_u64()?;
        let mut shorts = [0; 8];
        for short in &mut shorts {
            *short = reader.take_u16()?;
        }
        let [kind, table, partition, first_bytes, last_bytes, reserved @ ..] = shorts;
        let first_key = reader.take(usize::from(first_bytes))?.to_vec();
        let last_key = reader.take(usize::from(last_bytes))?.to_vec();
        let is_run = kind == KIND_RUN;
        let of_tablet = table != 0 || schema != 0 || until != 0 || !last_key.is_empty();
        if reserved != [0; 3] || (is_run && (of_tablet || !first_key.is_empty())) {
            return None;
        }
        let kind = match kind {
            KIND_RUN => FileKind::Run { partition: PartitionId(partition) },
            KIND_TABLET if partition == 0 => {
                let until = (until != 0).then_some(until);
                FileKind::Tablet { table: TableId(table), schema, first_key, last_key, until }
            }
            _ => return None,
        };
        let entry =
            FileEntry { id: FileId(id), version, kind, rows, bytes, digest, footer_checksum };
        entry.fault().is_none().then_some(entry)
    }
}
