//! A change of the manifest, and its bytes.
//!
//! ```text
//! 0    8   version: every change up to this freeze is in files of this node
//! 8    8   baseline: the version at which tablets are read
//! 16   8   the highest file id ever given out
//! 24   4   additions
//! 28   4   ends of validity
//! 32   4   removals
//! 36   4   zero
//! 40       additions: entries, one behind the other
//!          ends: file id (8), the first version at which the tablet is not in force (8), 0 = none
//!          removals: file id (8)
//! ```
//!
//! An entry:
//!
//! ```text
//! 0    8   file id
//! 8    8   version
//! 16   8   tablet: until, 0 = no end
//! 24   8   tablet: fingerprint of the schema
//! 32   8   rows
//! 40   8   bytes of the file
//! 48   16  digest of the content
//! 64   8   XXH3-64 of the footer
//! 72   2   kind: 1 run, 2 tablet
//! 74   2   tablet: table
//! 76   2   run: partition
//! 78   2   tablet: length of the first key
//! 80   2   tablet: length of the last key
//! 82   6   zero
//! 88       tablet: first key, last key
//! ```
//!
//! What is of the other kind is zero. A snapshot is the edit that leads from nothing to the state.

use super::entry::{ENTRY_BYTES, FileEntry, FileId};
use crate::bytes::ByteReader;

/// Bytes of an encoded edit before its lists.
pub const EDIT_HEAD_BYTES: usize = 40;

/// A set of changes that is in force as a whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestEdit {
    /// Every change up to this freeze is in files of this node.
    pub version: u64,
    /// The version at which tablets are read; together with the runs behind it they are all there
    /// is.
    pub baseline: u64,
    /// The highest file id ever given out.
    pub file_id_max: u64,
    /// New files.
    pub adds: Vec<FileEntry>,
    /// Tablets, and the first version at which they are not in force any more; `None` takes an end
    /// back.
    pub ends: Vec<(FileId, Option<u64>)>,
    /// Files that are not needed any more.
    pub removes: Vec<FileId>,
}

impl ManifestEdit {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_bytes());
        for word in [self.version, self.baseline, self.file_id_max] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for count in [self.adds.len(), self.ends.len(), self.removes.len(), 0] {
            let count = u32::try_from(count).expect("the state limits edits");
            out.extend_from_slice(&count.to_le_bytes());
        }
        for entry in &self.adds {
            entry.encode(&mut out);
        }
        for (id, until) in &self.ends {
            assert_ne!(*until, Some(0), "versions begin at 1");
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&until.unwrap_or(0).to_le_bytes());
        }
        for id in &self.removes {
            out.extend_from_slice(&id.0.to_le_bytes());
        }
        assert_eq!(out.len(), self.encoded_bytes(), "the length announced is the length written");
        out
    }

    /// Length of its bytes.
    pub fn encoded_bytes(&self) -> usize {
        let adds: usize = self.adds.iter().map(FileEntry::encoded_bytes).sum();
        EDIT_HEAD_BYTES + adds + 16 * self.ends.len() + 8 * self.removes.len()
    }

    /// Reads an edit. `None` if the bytes are no edit from front to back.
    pub fn decode(bytes: &[u8]) -> Option<ManifestEdit> {
        let mut reader = ByteReader::new(bytes);
        let version = reader.take_u64()?;
        let baseline = reader.take_u64()?;
        let file_id_max = reader.take_u64()?;
        let mut counts = [0; 4];
        for count in &mut counts {
            *count = reader.take_u32()? as usize;
        }
        let [adds, ends, removes, zero] = counts;
        // Counts are held against the bytes before anything is allocated by them.
        let least = adds.checked_mul(ENTRY_BYTES)?;
        let least =
            least.checked_add(ends.checked_mul(16)?)?.checked_add(removes.checked_mul(8)?)?;
        if zero != 0 || least > reader.left() {
            return None;
        }
        let adds: Option<Vec<_>> = (0..adds).map(|_| FileEntry::decode(&mut reader)).collect();
        let (adds, mut edit_ends) = (adds?, Vec::with_capacity(ends));
        for _ in 0..ends {
            let (id, until) = (FileId(reader.take_u64()?), reader.take_u64()?);
            edit_ends.push((id, (until != 0).then_some(until)));
        }
        let removes: Option<Vec<_>> = (0..removes).map(|_| reader.take_u64().map(FileId)).collect();
        let (ends, removes) = (edit_ends, removes?);
        let edit = ManifestEdit { version, baseline, file_id_max, adds, ends, removes };
        (reader.left() == 0).then_some(edit)
    }
}
