//! Committed entries on their way from the log core to the shards of a follower.
//!
//! The memory is the very slot that the entry was received into: shards read the archives in
//! place, and the slot is free for the next entry when the last shard lets go of it.

use std::ops::Range;
use std::sync::Arc;

use spillway_net::ids::{Lsn, PartitionId, WallMicros};
use spillway_runtime::slot_ring::Slot;

use crate::log::{BodyView, FrameKind, Geometry};
use crate::shard::{ApplyBatch, ApplySection};

/// Entries that may wait for one shard.
pub(super) const APPLY_ENTRIES_MAX: usize = 64;

/// One committed entry.
#[derive(Debug)]
pub(super) struct ApplyEntry {
    lsn: Lsn,
    timestamp: WallMicros,
    kind: FrameKind,
    sections: Vec<(PartitionId, u128, Range<usize>)>,
    body: Slot,
}

impl ApplyEntry {
    /// The directory of an entry's body, which was verified when it came in.
    pub fn of(geometry: &Geometry, body: Slot) -> Arc<Self> {
        let view = BodyView::new(geometry, &body).expect("the body was verified when it came in");
        let base = body.as_ptr().addr();
        let sections = view
            .sections()
            .map(|section| {
                let start = section.bytes.as_ptr().addr() - base;
                (section.partition, section.digest, start..start + section.bytes.len())
            })
            .collect();
        let (lsn, timestamp, kind) = (view.shared.index, view.shared.timestamp, view.shared.kind);
        Arc::new(Self { lsn, timestamp, kind, sections, body })
    }

    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// Whether there is anything to apply.
    pub fn has_sections(&self) -> bool {
        self.kind == FrameKind::Data && !self.sections.is_empty()
    }

    /// The content of a change of members.
    pub fn first_section(&self) -> &[u8] {
        let (_, _, range) = self.sections.first().expect("such an entry has a section");
        &self.body[range.clone()]
    }

    /// As the shard core takes it.
    pub fn with_batch<T>(&self, give: impl FnOnce(&ApplyBatch<'_>) -> T) -> T {
        // A change of members is the quorum's business.
        let applied = if self.kind == FrameKind::Data { &self.sections[..] } else { &[] };
        let sections: Vec<ApplySection<'_>> = applied
            .iter()
            .map(|(partition, digest, range)| ApplySection {
                partition: *partition,
                digest: *digest,
                bytes: &self.body[range.clone()],
            })
            .collect();
        give(&ApplyBatch { lsn: self.lsn, timestamp: self.timestamp, sections: &sections })
    }
}
