//! Judging one place of the log: is a good frame here, nothing, the remains of a write that never
//! completed, or damage?

use super::bytes::{block_checksum, get_u64, header_checksum, is_zero};
use super::damage::DamageReason;
use super::frame::{FrameFault, FrameKind, FrameView, LocalHeader, SharedHeader, sector_checksum};
use super::geometry::Geometry;
use super::position::{ChainState, Cursor};
use super::segment::Contents;
use super::superblock::Superblock;

/// What stands at the end of the good log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// No frame was ever written here, or the remains of one that an earlier start dropped.
    Nothing,
    /// A frame of the current boot, some of whose sectors still have their old contents and the
    /// rest of which is in order.
    Torn,
    /// Anything else.
    Damaged(DamageReason),
}

impl Finding {
    /// True when a frame that continues the log stands here, and the right body would mend it.
    pub fn is_in_body(self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Torn => true,
            Self::Damaged(reason) => reason.is_in_body(),
        }
    }

    /// True when a frame that continues the log begins here, good or not.
    pub fn is_frame(self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Torn => true,
            Self::Damaged(reason) => matches!(
                reason,
                DamageReason::SharedHeader(_) | DamageReason::Sector | DamageReason::OrderBroken
            ),
        }
    }
}

/// Judgement on the bytes at the cursor.
pub(super) enum Examined<'a> {
    /// A frame that continues the log.
    Good(FrameView<'a>),
    /// The bytes given end within the frame with this header.
    Incomplete(LocalHeader),
    /// No good frame. The local header is there when it continues the log.
    Bad(Finding, Option<LocalHeader>),
}

/// What an examination needs to know.
pub(super) struct Examiner<'a> {
    pub superblock: &'a Superblock,
    pub cursor: &'a Cursor,
    /// Contents of the cursor's segment before its present generation.
    pub before: &'a Contents,
    /// Boot of the last good frame.
    pub boot_last: u64,
    /// Lowest sequence in this segment.
    pub sequence_min: u64,
}

impl Examiner<'_> {
    fn geometry(&self) -> &Geometry {
        &self.superblock.geometry
    }

    /// True when the block at `offset` of the cursor's segment holds what was there before the
    /// current boot wrote.
    pub fn is_old(&self, offset: u64, block: &[u8]) -> bool {
        let tail = &self.superblock.tail;
        if tail.ordinal == self.cursor.ordinal && (tail.offset..tail.wipe_end).contains(&offset) {
            return is_zero(block);
        }
        self.before.holds(self.geometry().block_index(offset), block)
    }

    /// True when the block at `offset` was not written by the current boot, whether or not that
    /// boot came to write its zeros.
    fn is_from_before_boot(&self, offset: u64, block: &[u8]) -> bool {
        let tail = &self.superblock.tail;
        let wiped = tail.ordinal == self.cursor.ordinal && offset < tail.wipe_end;
        let remains = |local: LocalHeader| wiped && local.boot < self.superblock.boot;
        self.is_old(offset, block)
            || self.before.holds(self.geometry().block_index(offset), block)
            || self.local_here(offset, block).is_ok_and(remains)
    }

    /// A valid local header that belongs exactly to this place and generation.
    pub fn local_here(&self, offset: u64, block: &[u8]) -> Result<LocalHeader, DamageReason> {
        let local = LocalHeader::decode(block).map_err(DamageReason::LocalHeader)?;
        let geometry = self.geometry();
        let here = local.cluster == self.superblock.cluster
            && local.node == self.superblock.node
            && local.segment == geometry.slot(self.cursor.ordinal)
            && local.generation == geometry.generation(self.cursor.ordinal)
            && local.offset == offset;
        if here { Ok(local) } else { Err(DamageReason::Misplaced) }
    }

    /// Examines the bytes at the cursor, at least one block.
    pub fn examine<'b>(&self, bytes: &'b [u8]) -> Examined<'b> {
        let block = &bytes[..self.geometry().block()];
        let (offset, chain) = (self.cursor.offset, &self.cursor.chain);
        let tail = &self.superblock.tail;
        let local = match self.local_here(offset, block) {
            Ok(local) => local,
            Err(reason) => return Examined::Bad(self.no_header(reason, block), None),
        };
        let of_tail = chain.sequence >= tail.sequence;
        if local.boot > self.superblock.boot {
            return Examined::Bad(Finding::Damaged(DamageReason::SuperblockOld), None);
        }
        if of_tail && local.boot < self.superblock.boot {
            return Examined::Bad(self.no_header(DamageReason::ChainBroken, block), None);
        }
        let continues = local.sequence == chain.sequence
            && local.previous == chain.local
            && local.sequence >= self.sequence_min
            && local.boot >= self.boot_last
            && (of_tail || local.boot < self.superblock.boot);
        if !continues {
            return Examined::Bad(Finding::Damaged(DamageReason::ChainBroken), None);
        }
        self.examine_body(local, bytes)
    }

    fn no_header(&self, reason: DamageReason, block: &[u8]) -> Finding {
        let offset = self.cursor.offset;
        let first_of_boot = self.cursor.chain.sequence == self.superblock.tail.sequence;
        let old = if first_of_boot {
            self.is_from_before_boot(offset, block)
        } else {
            self.is_old(offset, block)
        };
        if old { Finding::Nothing } else { Finding::Damaged(reason) }
    }

    fn examine_body<'b>(&self, local: LocalHeader, bytes: &'b [u8]) -> Examined<'b> {
        let geometry = self.geometry();
        let (frame_bytes, header_bytes) = (local.frame_bytes as usize, local.header_bytes as usize);
        let left = u64::from(geometry.segment_bytes) - self.cursor.offset;
        let sizes_ok = frame_bytes <= geometry.batch_bytes_max as usize
            && frame_bytes as u64 <= left
            && header_bytes <= frame_bytes
            && header_bytes >= 2 * geometry.block()
            && frame_bytes.is_multiple_of(geometry.block())
            && header_bytes.is_multiple_of(geometry.block());
        if !sizes_ok {
            let fault = FrameFault::Field("sizes in the local header");
            return Examined::Bad(Finding::Damaged(DamageReason::LocalHeader(fault)), None);
        }
        if bytes.len() < frame_bytes {
            return Examined::Incomplete(local);
        }
        let frame = &bytes[..frame_bytes];
        let shared = match self.examine_shared(&local, frame) {
            Ok(shared) => shared,
            Err(finding) => return Examined::Bad(finding, Some(local)),
        };
        if let Some(finding) = self.examine_sectors(&local, &shared, frame) {
            return Examined::Bad(finding, Some(local));
        }
        Examined::Good(FrameView::new(geometry, local, shared, frame))
    }

    /// The shared header has one checksum over all its blocks. When it does not fit, a block with
    /// old contents proves that the write never completed; without one, the header was written and
    /// is damaged.
    fn examine_shared(&self, local: &LocalHeader, frame: &[u8]) -> Result<SharedHeader, Finding> {
        let block = self.geometry().block();
        let area = &frame[block..local.header_bytes as usize];
        if header_checksum(area) != local.shared {
            let offset = |index: usize| self.cursor.offset + ((index + 1) * block) as u64;
            let mut blocks = area.chunks_exact(block).enumerate();
            let torn = blocks.any(|(index, bytes)| self.is_old(offset(index), bytes));
            let damaged = Finding::Damaged(DamageReason::SharedHeader(FrameFault::Checksum));
            return Err(if torn { Finding::Torn } else { damaged });
        }
        let damaged = |fault| Finding::Damaged(DamageReason::SharedHeader(fault));
        let shared = SharedHeader::decode(self.geometry(), area).map_err(damaged)?;
        if shared.frame_bytes != local.frame_bytes {
            return Err(damaged(FrameFault::Field("frame size")));
        }
        if shared.cluster != local.cluster {
            return Err(Finding::Damaged(DamageReason::Misplaced));
        }
        Ok(shared)
    }

    fn examine_sectors(
        &self,
        local: &LocalHeader,
        shared: &SharedHeader,
        frame: &[u8],
    ) -> Option<Finding> {
        let block = self.geometry().block();
        let header_bytes = local.header_bytes as usize;
        let area = &frame[block..header_bytes];
        let mut torn = false;
        for (index, sector) in frame[header_bytes..].chunks_exact(block).enumerate() {
            if block_checksum(sector) == sector_checksum(area, index) {
                continue;
            }
            let offset = self.cursor.offset + (header_bytes + index * block) as u64;
            if !self.is_old(offset, sector) && !spillway_runtime::planted!(DamageTakenForTorn) {
                return Some(Finding::Damaged(DamageReason::Sector));
            }
            torn = true;
        }
        if torn {
            return Some(Finding::Torn);
        }
        let order = shared_order(&self.cursor.chain, local, shared);
        (!order).then_some(Finding::Damaged(DamageReason::OrderBroken))
    }
}

/// The part of the order that needs no history: a frame that goes back in the log is judged by the
/// scanner, which remembers earlier entries.
fn shared_order(chain: &ChainState, local: &LocalHeader, shared: &SharedHeader) -> bool {
    if shared.entry_term > local.term {
        return false;
    }
    match shared.kind {
        FrameKind::Watermark => {
            shared.index == chain.lsn
                && shared.previous == chain.shared
                && shared.timestamp == chain.timestamp
                && shared.entry_term == chain.entry_term
        }
        _ if shared.index.0 == chain.lsn.0 + 1 => {
            shared.previous == chain.shared
                && shared.timestamp > chain.timestamp
                && shared.entry_term >= chain.entry_term
                && shared.entry_term.0 > 0
        }
        _ => (1..=chain.lsn.0).contains(&shared.index.0),
    }
}

/// Checksums of all blocks of a good frame as they stand on disk.
pub(super) fn block_checksums<'a>(
    geometry: &Geometry,
    view: &FrameView<'_>,
    frame: &'a [u8],
) -> impl Iterator<Item = u64> + use<'a> {
    let block = geometry.block();
    let sizes = view.body.shared.sizes(geometry);
    let headers = frame[..sizes.header_bytes].chunks_exact(block).map(block_checksum);
    let area = &frame[block..sizes.header_bytes];
    headers.chain((0..sizes.payload_blocks).map(move |index| sector_checksum(area, index)))
}

/// True when the block starts like a local header; cheap enough to ask of every block.
pub(super) fn looks_like_header(block: &[u8]) -> bool {
    get_u64(block, 0) as u32 == super::frame::LOCAL_MAGIC
}
