//! What it takes to mend a damaged frame (rule R17).
//!
//! A frame whose local header is whole is known although its body is not: the local header names
//! the checksum of the shared header, and that one covers everything else. A body with this
//! checksum, from whomever, is the one that stood there, and makes the log what it was, bit for
//! bit. Where the local header itself is damaged nothing says what stood there, and nothing is
//! mended.

use spillway_net::ids::{ClusterId, Lsn};

use super::bytes::header_checksum;
use super::entries::EntryIndex;
use super::entry_frame::body_verify;
use super::frame::{
    FrameFault, FrameSizes, LocalHeader, SharedHeader, body_seal, watermark_header,
};
use super::geometry::Geometry;
use super::position::ChainState;
use super::superblock::Superblock;

/// A frame that is readable again when its body - all behind the local header - is written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameRepair {
    /// Segment file.
    pub segment: u32,
    /// Offset of the frame, which begins with its intact local header.
    pub offset: u64,
    /// Whole frame, the local header included.
    pub frame_bytes: u32,
    /// Checksum of the shared header that stood there.
    pub checksum: u64,
    /// What stood there, as far as it is known.
    pub content: RepairContent,
}

/// What is known of the content of a damaged frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairContent {
    /// A watermark, which follows from the frames before it: this is its body.
    Own(Vec<u8>),
    /// An entry with one of these indexes, both included. Usually the last one; lower ones are
    /// those that a frame may still supersede.
    Entry {
        /// Lowest.
        first: Lsn,
        /// Highest.
        last: Lsn,
    },
}

impl FrameRepair {
    /// Where the body begins.
    pub fn body_offset(&self, geometry: &Geometry) -> u64 {
        self.offset + u64::from(geometry.block_bytes)
    }

    /// Checks that a body is the one that stood there.
    ///
    /// # Errors
    /// What is wrong with it first.
    pub fn verify(
        &self,
        geometry: &Geometry,
        cluster: ClusterId,
        body: &[u8],
    ) -> Result<SharedHeader, FrameFault> {
        let (expected, found) = (self.frame_bytes as usize, geometry.block() + body.len());
        if expected != found {
            return Err(FrameFault::Length { expected, found });
        }
        let shared = body_verify(geometry, cluster, body, self.checksum)?;
        let fits = match self.content {
            RepairContent::Own(_) => !shared.kind.is_entry(),
            RepairContent::Entry { first, last } => {
                shared.kind.is_entry() && (first..=last).contains(&shared.index)
            }
        };
        if fits { Ok(shared) } else { Err(FrameFault::Other) }
    }
}

/// What a repair is judged by.
pub(super) struct RepairPlanner<'a> {
    pub superblock: &'a Superblock,
    pub chain: &'a ChainState,
    pub entries: &'a EntryIndex,
    /// Highest of the frames before.
    pub commit_hint: Lsn,
}

impl RepairPlanner<'_> {
    /// How to mend the frame with this local header, which continues the log. `frame` is its bytes
    /// as far as they could be read. `None` when the log would not be lawful with the right body,
    /// or when the body says that it is the right one already.
    pub fn plan(&self, local: &LocalHeader, frame: Option<&[u8]>) -> Option<Box<FrameRepair>> {
        let geometry = &self.superblock.geometry;
        let last = self.entries.last_identity();
        let commit_hint = self.commit_hint.max(local.commit_hint);
        if commit_hint > last.lsn || local.term < last.term {
            return None;
        }
        let area = frame.map(|frame| &frame[geometry.block()..local.header_bytes as usize]);
        // What its checksum does not cover is not needed to know that the rest is right.
        let area = area.filter(|area| header_checksum(area) == local.shared);
        let header = area.map(|area| SharedHeader::decode(geometry, area));
        let header = header.filter(|header| !header.is_err_and(FrameFault::is_of_bytes));
        let content = match header {
            Some(header) => {
                let shared = header.ok()?;
                let lawful = shared.frame_bytes == local.frame_bytes
                    && shared.cluster == local.cluster
                    && shared.entry_term <= local.term
                    && self.entries.accepts(&shared, commit_hint);
                lawful
                    .then_some(RepairContent::Entry { first: shared.index, last: shared.index })?
            }
            None => self.watermark(local).map_or_else(
                || {
                    let next = |lsn: Lsn| Lsn(lsn.0 + 1);
                    RepairContent::Entry { first: next(commit_hint), last: next(last.lsn) }
                },
                RepairContent::Own,
            ),
        };
        Some(Box::new(FrameRepair {
            segment: local.segment,
            offset: local.offset,
            frame_bytes: local.frame_bytes,
            checksum: local.shared,
            content,
        }))
    }

    /// The body of the watermark that belongs here, if that is what stood here.
    fn watermark(&self, local: &LocalHeader) -> Option<Vec<u8>> {
        let geometry = &self.superblock.geometry;
        let sizes = FrameSizes::of(geometry, 0, 0);
        if local.frame_bytes as usize != sizes.frame_bytes {
            return None;
        }
        let mut body = vec![0; sizes.frame_bytes - geometry.block()];
        let header = watermark_header(self.superblock.cluster, self.chain);
        let shared = body_seal(geometry, &mut body, &[], header);
        (shared.checksum == local.shared).then_some(body)
    }
}
