//! An entry of the log, taken apart.

use std::rc::Rc;

use spillway_net::ids::{Epoch, Lsn, PartitionId, WallMicros};
use spillway_updateserver::log::{BodyView, FrameKind, Geometry};
use spillway_updateserver::shard::{ApplyBatch, ApplySection};

use crate::Failure;

/// What a section holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrySection {
    /// Its partition.
    pub partition: u16,
    /// The partition's running digest behind it.
    pub digest: u128,
    /// Its redo.
    pub bytes: Vec<u8>,
}

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index.
    pub lsn: Lsn,
    /// Term in which it was proposed.
    pub term: Epoch,
    /// Its timestamp.
    pub timestamp: WallMicros,
    /// What it is.
    pub kind: FrameKind,
    /// Checksum of its shared header.
    pub checksum: u64,
    /// That of the entry before.
    pub previous: u64,
    /// Its sections.
    pub sections: Vec<EntrySection>,
    /// As it stands on the disks.
    pub body: Vec<u8>,
}

impl Entry {
    /// Takes a body apart; `None` if it is a watermark's.
    pub fn of(geometry: &Geometry, body: &[u8]) -> Result<Option<Rc<Self>>, Failure> {
        let view = BodyView::new(geometry, body)
            .map_err(|fault| Failure::new(format!("the body of a frame: {fault}")))?;
        if !view.shared.kind.is_entry() {
            return Ok(None);
        }
        let sections = view
            .sections()
            .map(|section| EntrySection {
                partition: section.partition.0,
                digest: section.digest,
                bytes: section.bytes.to_vec(),
            })
            .collect();
        Ok(Some(Rc::new(Self {
            lsn: view.shared.index,
            term: view.shared.entry_term,
            timestamp: view.shared.timestamp,
            kind: view.shared.kind,
            checksum: view.shared.checksum,
            previous: view.shared.previous,
            sections,
            body: body.to_vec(),
        })))
    }

    /// Whether there is anything to apply.
    pub fn has_sections(&self) -> bool {
        self.kind == FrameKind::Data && !self.sections.is_empty()
    }

    /// As the shard core takes it.
    pub fn with_batch<T>(&self, give: impl FnOnce(&ApplyBatch<'_>) -> T) -> T {
        // A change of members is the quorum's business.
        let applied = if self.kind == FrameKind::Data { &self.sections[..] } else { &[] };
        let sections: Vec<ApplySection<'_>> = applied
            .iter()
            .map(|section| ApplySection {
                partition: PartitionId(section.partition),
                digest: section.digest,
                bytes: &section.bytes,
            })
            .collect();
        give(&ApplyBatch { lsn: self.lsn, timestamp: self.timestamp, sections: &sections })
    }
}
