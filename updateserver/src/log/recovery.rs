//! Reading the log at start: good frames in order, and a verdict about its end (rules R16-R19).
//!
//! [`LogScanner`] is a pure core: it names the next read, is fed the result, and hands every good
//! entry to a sink. It reads all segment headers, then the frames from the floor on, then - behind
//! the first place without a good frame - the rest of that segment, the start of the next and the
//! first block of the others, in search of evidence that something acknowledged is missing.
//!
//! A frame that goes back in the log (a conflict that a new leader resolved, rule R9) supersedes
//! what it overwrites: the sink hears [`ScanItem::Truncated`] first. So a sink that applies entries
//! must hold back what is above the commit hint.

use std::collections::VecDeque;

use spillway_net::ids::{Epoch, Lsn, NodeId, WallMicros};
use spillway_net::limits::LOG_WRITES_IN_FLIGHT_MAX;

use super::bytes::block_checksum;
use super::damage::{DamageReason, LogDamaged};
use super::entries::{EntryIndex, EntryMeta, EntryPlace};
use super::examine::{Examined, Examiner, Finding, block_checksums, looks_like_header};
use super::frame::{BodyView, FrameView, LocalHeader};
use super::geometry::Geometry;
use super::position::{Cursor, Floor, Tail};
use super::repair::{FrameRepair, RepairPlanner};
use super::ring::{HeldSegment, SegmentRing, Slot, SlotState};
use super::segment::{Contents, SegmentHeader, segment_table, table_of_zeros};
use super::superblock::Superblock;

/// Size of the reads that a scanner asks for unless told otherwise, bytes.
pub const SCAN_READ_BYTES_DEFAULT: usize = 4 << 20;

/// A read that the scanner needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Segment file.
    pub segment: u32,
    /// Offset in it, a multiple of the block.
    pub offset: u64,
    /// Length, a multiple of the block.
    pub bytes: usize,
}

/// An entry as the scanner met it.
#[derive(Clone, Copy, Debug)]
pub struct ScanEntry<'a> {
    /// Header and sections, all checked.
    pub view: BodyView<'a>,
    /// The body that the view is of: shared header area and payload with its padding, as other
    /// nodes get it.
    pub body: &'a [u8],
    /// What the index says of it.
    pub meta: EntryMeta,
    /// The frames read so far, this one included, say that everything up to here is committed.
    /// Entries above may still be superseded, here or by a leader after the start.
    pub commit_hint: Lsn,
}

/// What the scanner tells its sink.
#[derive(Clone, Copy, Debug)]
pub enum ScanItem<'a> {
    /// The next entry of the log.
    Entry(&'a ScanEntry<'a>),
    /// Entries behind this index are superseded.
    Truncated(Lsn),
}

/// How the log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing stands behind the last frame.
    Clean,
    /// Writes were cut short by a crash; none of them was acknowledged. They were dropped.
    TailTorn {
        /// Sequence of the first dropped frame.
        sequence: u64,
        /// Frame headers of the last boot among the remains.
        frames: u64,
        /// Bytes of the segment that are zeroed before the log goes on.
        wiped_bytes: u64,
    },
}

/// Where a writer continues.
#[derive(Clone, Debug)]
pub struct LogPosition {
    /// Next byte and chain.
    pub cursor: Cursor,
    /// The segments.
    pub ring: SegmentRing,
    /// From the cursor to here the segment holds remains that are zeroed before the first frame.
    pub dirty_end: u64,
    /// The entries that may still be superseded: those above the commit hint.
    pub tail: EntryIndex,
}

/// A readable log.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Where a writer continues.
    pub position: LogPosition,
    /// What the superblock of the next boot says about the tail.
    pub tail: Tail,
    /// All entries from the floor on.
    pub entries: EntryIndex,
    /// Index of the last entry.
    pub last_lsn: Lsn,
    /// Everything up to here is known to be committed: the highest hint of all frames, or the
    /// floor. Not above `last_lsn`.
    pub commit_hint: Lsn,
    /// Its timestamp.
    pub last_timestamp: WallMicros,
    /// Highest term of superblock and frames.
    pub term: Epoch,
    /// Vote in that term, nobody (0) if it is not known to be of that term.
    pub vote: NodeId,
    /// Good frames, watermarks included.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How the log ended.
    pub verdict: Verdict,
}

impl Recovered {
    /// The superblock that begins the next boot. It must be durable before the writer's first
    /// effect.
    pub fn superblock_next(&self, last: &Superblock, term: Epoch, vote: NodeId) -> Superblock {
        assert!(term >= self.term, "the term never falls");
        Superblock {
            sequence: last.sequence + 1,
            boot: last.boot + 1,
            tail: self.tail,
            durable_sequence: self.tail.sequence - 1,
            term,
            vote,
            ..*last
        }
    }
}

#[derive(Debug)]
struct SlotScan {
    /// Generation of a valid header.
    header: Option<SegmentHeader>,
    /// What stood in the frame area before that generation.
    before: Contents,
    /// What stands there now, as far as it was read.
    now: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Reading the header of this segment file.
    Headers(u32),
    /// Reading frames at the cursor.
    Frames,
    /// Reading the rest of the segment from this offset on.
    Rest(u64),
    /// Reading the first block of the next segment.
    NextFirst,
    /// Reading the start of the next segment.
    NextWindow(u64),
    /// Reading the first block of a segment further ahead, by ordinal.
    Ahead(u64),
    /// Reading a segment that must be prepared, by ordinal and offset.
    Free(u64, u64),
    Done,
}

#[derive(Clone, Copy, Debug)]
struct End {
    finding: Finding,
    dirty_end: u64,
    /// Frame headers of the last boot behind the end.
    frames: u64,
    /// Something behind the end proves that acknowledged frames are missing.
    lost: bool,
    lsn_last: Option<Lsn>,
    boot_unknown: bool,
    next_dirty: bool,
    /// The first block of the next segment is neither a frame header nor what was there before.
    next_damaged: Option<DamageReason>,
}

/// The scanner.
#[derive(Debug)]
pub struct LogScanner {
    superblock: Superblock,
    read_bytes: usize,
    /// Present length of reads: halves at a read error, to come as near to it as possible.
    read_limit: usize,
    /// The frame at the cursor is known to need this much.
    read_need: usize,
    phase: Phase,
    slots: Vec<SlotScan>,
    cursor: Cursor,
    held: VecDeque<HeldSegment>,
    entries: EntryIndex,
    end: Option<End>,
    /// How to mend the frame at the cursor, whose local header is whole, if that is all it takes.
    repair: Option<Box<FrameRepair>>,
    boot_last: u64,
    term: Epoch,
    commit_hint: Lsn,
    frames: u64,
    bytes: u64,
}

impl LogScanner {
    /// A scanner of the log that `superblock` describes. `read_bytes` is rounded to what the
    /// geometry needs: at least one largest batch.
    ///
    /// # Panics
    /// When the superblock was not checked (decoding checks it).
    pub fn new(superblock: &Superblock, read_bytes: usize) -> Self {
        let geometry = superblock.geometry;
        geometry.check().expect("a decoded superblock has a checked geometry");
        let read_bytes = read_bytes.max(geometry.batch_bytes_max as usize);
        let read_bytes = read_bytes - read_bytes % geometry.block();
        let Floor { ordinal, chain } = superblock.floor;
        let offset = geometry.data_offset();
        Self {
            superblock: *superblock,
            read_bytes,
            read_limit: read_bytes,
            read_need: geometry.block(),
            phase: Phase::Headers(0),
            slots: Vec::new(),
            cursor: Cursor { ordinal, offset, chain },
            held: VecDeque::from([HeldSegment::new(chain)]),
            entries: EntryIndex::behind(&chain),
            end: None,
            repair: None,
            boot_last: 0,
            term: superblock.term,
            commit_hint: chain.lsn,
            frames: 0,
            bytes: 0,
        }
    }

    fn geometry(&self) -> Geometry {
        self.superblock.geometry
    }

    /// The longest read that [`Self::next_read`] asks for.
    pub fn read_bytes_max(&self) -> usize {
        self.read_bytes.max(self.geometry().data_offset() as usize)
    }

    /// The next read, until the scan is complete.
    pub fn next_read(&self) -> Option<ReadRequest> {
        let geometry = self.geometry();
        let request = |ordinal: u64, offset: u64, bytes: usize, end: u64| {
            let bytes = bytes.min((end - offset) as usize);
            Some(ReadRequest { segment: geometry.slot(ordinal), offset, bytes })
        };
        let end = u64::from(geometry.segment_bytes);
        let (ordinal, block) = (self.cursor.ordinal, geometry.block());
        match self.phase {
            Phase::Headers(segment) => {
                let bytes = geometry.data_offset() as usize;
                Some(ReadRequest { segment, offset: 0, bytes })
            }
            Phase::Frames => {
                let bytes = self.read_limit.max(self.read_need);
                request(ordinal, self.cursor.offset, bytes, end)
            }
            Phase::Rest(offset) => request(ordinal, offset, self.read_limit, end),
            Phase::NextFirst => request(ordinal + 1, geometry.data_offset(), block, end),
            Phase::NextWindow(offset) => {
                request(ordinal + 1, offset, self.read_limit, self.window_end())
            }
            Phase::Ahead(ordinal) => request(ordinal, geometry.data_offset(), block, end),
            Phase::Free(ordinal, offset) => request(ordinal, offset, self.read_limit, end),
            Phase::Done => None,
        }
    }

    /// How far frames in flight can have come in a segment whose first frame never completed.
    fn window_end(&self) -> u64 {
        let geometry = self.geometry();
        let window = LOG_WRITES_IN_FLIGHT_MAX as u64 * u64::from(geometry.batch_bytes_max);
        geometry.data_offset() + window
    }

    /// Takes the result of the read that [`Self::next_read`] named: its bytes, or errno.
    ///
    /// # Errors
    /// The log is damaged. The scan is over.
    ///
    /// # Panics
    /// When the scan was already complete, or more bytes come than were asked for.
    pub fn feed(
        &mut self,
        result: Result<&[u8], i32>,
        sink: &mut dyn FnMut(ScanItem<'_>),
    ) -> Result<(), LogDamaged> {
        let request = self.next_read().expect("nothing is fed to a complete scan");
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(errno) => return self.read_failed(&request, errno),
        };
        assert!(bytes.len() <= request.bytes, "more bytes than were asked for");
        if bytes.len() < request.bytes {
            return Err(self.damaged_at(&request, DamageReason::ReadShort));
        }
        match self.phase {
            Phase::Headers(segment) => self.feed_header(segment, bytes),
            Phase::Frames => self.feed_frames(bytes, sink),
            Phase::Rest(offset) => {
                self.feed_rest(offset, bytes);
                self.settle()
            }
            Phase::NextFirst => self.feed_next_first(bytes),
            Phase::NextWindow(offset) => {
                self.feed_next_window(offset, bytes);
                self.settle()
            }
            Phase::Ahead(ordinal) => self.feed_ahead(ordinal, bytes),
            Phase::Free(ordinal, offset) => {
                self.feed_free(ordinal, offset, bytes);
                self.settle()
            }
            Phase::Done => unreachable!("a complete scan names no read"),
        }
    }

    /// Comes nearer to an unreadable sector, so that all frames before it are still read.
    fn read_failed(&mut self, request: &ReadRequest, errno: i32) -> Result<(), LogDamaged> {
        let block = self.geometry().block();
        let least = if self.phase == Phase::Frames { self.read_need } else { block };
        let fixed = matches!(self.phase, Phase::Headers(_) | Phase::NextFirst | Phase::Ahead(_));
        if fixed || request.bytes <= least {
            let unreadable = self.damaged_at(request, DamageReason::ReadFailed { errno });
            return Err(self.frame_damaged().unwrap_or(unreadable));
        }
        let half = request.bytes / 2;
        self.read_limit = (half - half % block).max(least);
        Ok(())
    }

    fn damaged_at(&self, request: &ReadRequest, reason: DamageReason) -> LogDamaged {
        let ReadRequest { segment, offset, .. } = *request;
        let damaged = self.damaged(reason);
        let repair = damaged.repair.filter(|_| self.phase == Phase::Frames);
        LogDamaged { segment, offset, repair, ..damaged }
    }

    /// The damage that ended the frames, if it can be mended: what is unreadable behind it comes
    /// up again when it is.
    fn frame_damaged(&self) -> Option<LogDamaged> {
        let end = self.end?;
        let damaged = match end.finding {
            Finding::Damaged(reason) => self.damaged(reason),
            Finding::Torn if end.lost || self.was_durable() => {
                self.damaged(DamageReason::WriteLost)
            }
            Finding::Torn | Finding::Nothing => return None,
        };
        damaged.repair.is_some().then_some(damaged)
    }

    fn repair_of(&self, local: &LocalHeader, frame: Option<&[u8]>) -> Option<Box<FrameRepair>> {
        let planner = RepairPlanner {
            superblock: &self.superblock,
            chain: &self.cursor.chain,
            entries: &self.entries,
            commit_hint: self.commit_hint,
        };
        planner.plan(local, frame)
    }

    fn damaged(&self, reason: DamageReason) -> LogDamaged {
        LogDamaged {
            segment: self.geometry().slot(self.cursor.ordinal),
            offset: self.cursor.offset,
            sequence: self.cursor.chain.sequence,
            lsn_good: self.cursor.chain.lsn,
            lsn_last: self.end.and_then(|end| end.lsn_last),
            reason,
            repair: self.repair.clone().filter(|_| reason.is_in_body()),
        }
    }

    fn feed_header(&mut self, segment: u32, bytes: &[u8]) -> Result<(), LogDamaged> {
        let geometry = self.geometry();
        let (block, area) = bytes.split_at(geometry.block());
        let header = SegmentHeader::decode(block).ok().filter(|header| {
            header.cluster == self.superblock.cluster
                && header.node == self.superblock.node
                && header.segment == segment
                && header.block_bytes == geometry.block_bytes
                && header.segment_bytes == geometry.segment_bytes
        });
        let table = header.as_ref().and_then(|header| segment_table(&geometry, header, area));
        let before = table.unwrap_or(Contents::Unknown);
        self.slots.push(SlotScan { header, before, now: Vec::new() });
        if segment + 1 < geometry.segments_count {
            self.phase = Phase::Headers(segment + 1);
            return Ok(());
        }
        self.enter_segment()
    }

    /// True when the segment's header says that it is prepared for, or in, the use of this ordinal.
    fn header_fits(&self, ordinal: u64) -> bool {
        let geometry = self.geometry();
        let slot = &self.slots[geometry.slot(ordinal) as usize];
        slot.header.is_some_and(|header| header.generation == geometry.generation(ordinal))
    }

    /// Begins to read frames in the cursor's segment.
    fn enter_segment(&mut self) -> Result<(), LogDamaged> {
        let geometry = self.geometry();
        if !self.header_fits(self.cursor.ordinal) {
            let damaged = self.damaged(DamageReason::SegmentHeader);
            return Err(LogDamaged { offset: 0, ..damaged });
        }
        let slot = &mut self.slots[geometry.slot(self.cursor.ordinal) as usize];
        slot.now = match &slot.before {
            Contents::Known(table) => table.clone(),
            Contents::Zeros | Contents::Unknown => table_of_zeros(&geometry),
        };
        self.phase = Phase::Frames;
        self.settle()
    }

    fn examiner(&self) -> Examiner<'_> {
        let slot = &self.slots[self.geometry().slot(self.cursor.ordinal) as usize];
        Examiner {
            superblock: &self.superblock,
            cursor: &self.cursor,
            before: &slot.before,
            boot_last: self.boot_last,
            sequence_min: slot.header.map_or(0, |header| header.first_sequence),
        }
    }

    fn feed_frames(
        &mut self,
        bytes: &[u8],
        sink: &mut dyn FnMut(ScanItem<'_>),
    ) -> Result<(), LogDamaged> {
        let block = self.geometry().block();
        let mut at = 0;
        while bytes.len() - at >= block && self.phase == Phase::Frames {
            match self.examiner().examine(&bytes[at..]) {
                Examined::Good(view) => {
                    let frame = &bytes[at..at + view.local.frame_bytes as usize];
                    self.accept(&view, frame, sink)?;
                    at += frame.len();
                    self.read_need = block;
                    let short = spillway_runtime::fault_point!(ScanReadShort);
                    self.read_limit = if short { block } else { self.read_bytes };
                    self.settle()?;
                }
                Examined::Incomplete(local) => {
                    self.read_need = local.frame_bytes as usize;
                    self.repair = self.repair_of(&local, None);
                    return Ok(());
                }
                Examined::Bad(finding, local) => {
                    let local = local.filter(|_| finding.is_in_body());
                    self.repair =
                        local.and_then(|local| self.repair_of(&local, Some(&bytes[at..])));
                    return self.begin_rest(finding);
                }
            }
        }
        Ok(())
    }

    /// Takes a good frame into the log.
    fn accept(
        &mut self,
        view: &FrameView<'_>,
        frame: &[u8],
        sink: &mut dyn FnMut(ScanItem<'_>),
    ) -> Result<(), LogDamaged> {
        let geometry = self.geometry();
        let (local, shared) = (&view.local, &view.body.shared);
        let last = self.entries.last_identity();
        let commit_hint = self.commit_hint.max(local.commit_hint);
        let is_entry = shared.kind.is_entry();
        let lawful = commit_hint <= last.lsn
            && local.term >= last.term
            && (!is_entry || self.entries.accepts(shared, commit_hint));
        if !lawful {
            return Err(self.damaged(DamageReason::OrderBroken));
        }
        self.commit_hint = commit_hint;
        self.repair = None;
        let place = EntryPlace {
            ordinal: self.cursor.ordinal,
            offset: self.cursor.offset as u32,
            bytes: local.frame_bytes,
        };
        self.note_frame(view, frame);
        if !is_entry {
            return Ok(());
        }
        if shared.index <= last.lsn {
            sink(ScanItem::Truncated(Lsn(shared.index.0 - 1)));
        }
        self.entries.take(shared, place);
        let chain = &mut self.cursor.chain;
        chain.lsn = shared.index;
        chain.shared = shared.checksum;
        chain.timestamp = shared.timestamp;
        chain.entry_term = shared.entry_term;
        self.held.back_mut().expect("the floor's segment is held").note(shared.index);
        sink(ScanItem::Entry(&ScanEntry {
            view: view.body,
            body: &frame[geometry.block()..],
            meta: EntryMeta::of(shared, place),
            commit_hint,
        }));
        Ok(())
    }

    /// Moves the cursor behind a good frame.
    fn note_frame(&mut self, view: &FrameView<'_>, frame: &[u8]) {
        let geometry = self.geometry();
        let slot = &mut self.slots[geometry.slot(self.cursor.ordinal) as usize];
        let from = geometry.block_index(self.cursor.offset);
        let checksums = block_checksums(&geometry, view, frame);
        for (entry, checksum) in slot.now[from..].iter_mut().zip(checksums) {
            *entry = checksum;
        }
        self.cursor.offset += frame.len() as u64;
        self.cursor.chain.sequence += 1;
        self.cursor.chain.local = super::frame::local_checksum(frame);
        self.boot_last = view.local.boot;
        self.term = self.term.max(view.local.term);
        self.frames += 1;
        self.bytes += frame.len() as u64;
    }

    fn begin_rest(&mut self, finding: Finding) -> Result<(), LogDamaged> {
        if finding == Finding::Damaged(DamageReason::SuperblockOld) {
            return Err(self.damaged(DamageReason::SuperblockOld));
        }
        self.end = Some(End {
            finding,
            dirty_end: self.cursor.offset,
            frames: 0,
            lost: false,
            lsn_last: None,
            boot_unknown: false,
            next_dirty: false,
            next_damaged: None,
        });
        self.phase = Phase::Rest(self.cursor.offset);
        self.read_limit = self.read_bytes;
        self.settle()
    }

    /// Leaves phases that have nothing more to read.
    fn settle(&mut self) -> Result<(), LogDamaged> {
        let geometry = self.geometry();
        let end = u64::from(geometry.segment_bytes);
        match self.phase {
            Phase::Frames => {
                let tail = &self.superblock.tail;
                let at_tail = self.cursor.chain.sequence == tail.sequence;
                if at_tail && tail.ordinal == self.cursor.ordinal + 1 {
                    return self.begin_rest(Finding::Nothing);
                }
                let here = (tail.ordinal, tail.offset) == (self.cursor.ordinal, self.cursor.offset);
                // The boot's first frame goes to the next segment when it finds no room. Its chain
                // says that nothing stands between.
                let moved = tail.ordinal + 1 == self.cursor.ordinal
                    && self.cursor.offset == geometry.data_offset();
                let least = 2 * u64::from(geometry.block_bytes);
                if at_tail && !here && !moved {
                    return Err(self.damaged(DamageReason::TailMissed));
                }
                if end - self.cursor.offset < least {
                    return self.begin_rest(Finding::Nothing);
                }
                Ok(())
            }
            Phase::Rest(offset) if offset == end => {
                if self.cursor.ordinal + 1 < self.ordinal_end() {
                    self.phase = Phase::NextFirst;
                    Ok(())
                } else {
                    self.conclude()
                }
            }
            Phase::NextWindow(offset) if offset == self.window_end() => {
                self.go_ahead(self.cursor.ordinal + 2)
            }
            Phase::Free(ordinal, offset) if offset == end => self.next_free(ordinal + 1),
            _ => Ok(()),
        }
    }

    /// First ordinal that would overwrite the floor.
    fn ordinal_end(&self) -> u64 {
        self.superblock.floor.ordinal + u64::from(self.geometry().segments_count)
    }

    /// Notes what a frame header behind the end of the log says about the frames before it.
    fn note_evidence(&mut self, local: &LocalHeader) {
        let chain = self.cursor.chain;
        let read_before = chain.sequence < self.superblock.tail.sequence;
        let end = self.end.as_mut().expect("evidence is sought behind the end");
        end.boot_unknown |= local.boot > self.superblock.boot;
        let remains = local.boot < self.superblock.boot && !read_before;
        if remains || local.sequence < chain.sequence {
            return;
        }
        end.frames += 1;
        end.lost |= local.durable_sequence >= chain.sequence || local.commit_hint > chain.lsn;
        if local.commit_hint > chain.lsn {
            end.lsn_last = end.lsn_last.max(Some(local.commit_hint));
        }
    }

    fn feed_rest(&mut self, from: u64, bytes: &[u8]) {
        let geometry = self.geometry();
        let slot = geometry.slot(self.cursor.ordinal) as usize;
        for (index, block) in bytes.chunks_exact(geometry.block()).enumerate() {
            let offset = from + (index * geometry.block()) as u64;
            let examiner = self.examiner();
            let old = examiner.is_old(offset, block);
            let local =
                looks_like_header(block).then(|| examiner.local_here(offset, block).ok()).flatten();
            if let Some(local) = local {
                self.note_evidence(&local);
            }
            if !old {
                let end = self.end.as_mut().expect("the end was found");
                end.dirty_end = offset + geometry.block() as u64;
            }
            self.slots[slot].now[geometry.block_index(offset)] = block_checksum(block);
        }
        self.read_limit = self.read_bytes;
        self.phase = Phase::Rest(from + bytes.len() as u64);
    }

    /// The log goes on in the next segment if a frame that continues it stands there, or if the
    /// superblock says that the current boot began there. The chain of that frame proves that no
    /// frame follows in this segment, whatever an earlier boot left or wiped behind its end.
    fn feed_next_first(&mut self, block: &[u8]) -> Result<(), LogDamaged> {
        let geometry = self.geometry();
        let chain = self.cursor.chain;
        let next =
            Cursor { ordinal: self.cursor.ordinal + 1, offset: geometry.data_offset(), chain };
        let slot = &self.slots[geometry.slot(next.ordinal) as usize];
        let examiner = Examiner { cursor: &next, before: &slot.before, ..self.examiner() };
        let local = examiner.local_here(next.offset, block);
        let known = slot.before != Contents::Unknown && self.header_fits(next.ordinal);
        let old = slot.before.holds(0, block);
        let next_damaged = local.err().filter(|_| known && !old);
        let local = local.ok();
        let tail = &self.superblock.tail;
        let of_tail = chain.sequence >= tail.sequence;
        let continues = local.is_some_and(|local| {
            local.sequence == chain.sequence
                && local.previous == chain.local
                && (local.boot >= self.superblock.boot) == of_tail
        });
        let forced = chain.sequence == tail.sequence && tail.ordinal == next.ordinal;
        let finding = self.end.expect("the end was found").finding;
        if let Some(local) = local {
            self.note_evidence(&local);
        }
        let end = self.end.as_mut().expect("the end was found");
        end.next_damaged = next_damaged;
        if !finding.is_frame() && (continues || forced) && !end.lost {
            self.cursor = next;
            self.end = None;
            self.held.push_back(HeldSegment::new(chain));
            return self.enter_segment();
        }
        if !self.header_fits(next.ordinal) {
            return self.go_ahead(next.ordinal + 1);
        }
        self.phase = Phase::NextWindow(next.offset);
        self.settle()
    }

    fn feed_next_window(&mut self, from: u64, bytes: &[u8]) {
        let geometry = self.geometry();
        let next = Cursor { ordinal: self.cursor.ordinal + 1, ..self.cursor };
        for (index, block) in bytes.chunks_exact(geometry.block()).enumerate() {
            let offset = from + (index * geometry.block()) as u64;
            let slot = &self.slots[geometry.slot(next.ordinal) as usize];
            let known = slot.before != Contents::Unknown;
            let disturbed = known && !slot.before.holds(geometry.block_index(offset), block);
            let examiner = Examiner { cursor: &next, before: &slot.before, ..self.examiner() };
            let local =
                looks_like_header(block).then(|| examiner.local_here(offset, block).ok()).flatten();
            if let Some(local) = local {
                self.note_evidence(&local);
            }
            let end = self.end.as_mut().expect("the end was found");
            end.next_dirty |= disturbed;
        }
        self.read_limit = self.read_bytes;
        self.phase = Phase::NextWindow(from + bytes.len() as u64);
    }

    /// Goes to the next segment ahead that may hold frames. A segment is entered only when all
    /// before it is durable, so a frame there proves that a whole segment is missing.
    fn go_ahead(&mut self, from: u64) -> Result<(), LogDamaged> {
        match (from..self.ordinal_end()).find(|ordinal| self.header_fits(*ordinal)) {
            Some(ordinal) => {
                self.phase = Phase::Ahead(ordinal);
                Ok(())
            }
            None => self.conclude(),
        }
    }

    fn feed_ahead(&mut self, ordinal: u64, block: &[u8]) -> Result<(), LogDamaged> {
        let offset = self.geometry().data_offset();
        let ahead = Cursor { ordinal, offset, ..self.cursor };
        let local = Examiner { cursor: &ahead, ..self.examiner() }.local_here(offset, block);
        if let Ok(local) = local {
            self.note_evidence(&local);
        }
        self.go_ahead(ordinal + 1)
    }

    /// True when the superblock says that the frame at the cursor was durable.
    fn was_durable(&self) -> bool {
        let sequence = self.cursor.chain.sequence;
        let sb = &self.superblock;
        sequence < sb.tail.sequence || sequence <= sb.durable_sequence
    }

    /// Decides what the end of the log is.
    fn conclude(&mut self) -> Result<(), LogDamaged> {
        let end = self.end.expect("the end was found");
        if end.boot_unknown {
            return Err(self.damaged(DamageReason::SuperblockOld));
        }
        let read_before = self.was_durable();
        if let (Finding::Nothing, Some(reason)) = (end.finding, end.next_damaged) {
            let (segment, offset) =
                (self.geometry().slot(self.cursor.ordinal + 1), self.geometry().data_offset());
            return Err(LogDamaged { segment, offset, ..self.damaged(reason) });
        }
        let slot = &self.slots[self.geometry().slot(self.cursor.ordinal) as usize];
        let table_known = slot.before != Contents::Unknown;
        let reason = match end.finding {
            Finding::Damaged(_) if !table_known && !end.lost => Some(DamageReason::SegmentTable),
            Finding::Damaged(reason) => Some(reason),
            _ if end.lost => Some(DamageReason::WriteLost),
            Finding::Torn if read_before => Some(DamageReason::WriteLost),
            Finding::Nothing if read_before => Some(DamageReason::TailMissed),
            Finding::Torn | Finding::Nothing => end.next_damaged,
        };
        if let Some(reason) = reason {
            return Err(self.damaged(reason));
        }
        self.next_free(self.cursor.ordinal + 1)
    }

    /// True when the free segment of this ordinal can take frames as it is.
    fn is_ready(&self, ordinal: u64) -> bool {
        let slot = &self.slots[self.geometry().slot(ordinal) as usize];
        let next_dirty = self.end.is_some_and(|end| end.next_dirty);
        let disturbed = next_dirty && ordinal == self.cursor.ordinal + 1;
        self.header_fits(ordinal) && slot.before != Contents::Unknown && !disturbed
    }

    /// Goes to the next free segment whose contents must be read because it is not ready.
    fn next_free(&mut self, from: u64) -> Result<(), LogDamaged> {
        let geometry = self.geometry();
        let unready = (from..self.ordinal_end()).find(|ordinal| !self.is_ready(*ordinal));
        self.read_limit = self.read_bytes;
        self.phase = match unready {
            Some(ordinal) => {
                let slot = &mut self.slots[geometry.slot(ordinal) as usize];
                slot.now = table_of_zeros(&geometry);
                Phase::Free(ordinal, geometry.data_offset())
            }
            None => Phase::Done,
        };
        Ok(())
    }

    fn feed_free(&mut self, ordinal: u64, from: u64, bytes: &[u8]) {
        let geometry = self.geometry();
        let slot = &mut self.slots[geometry.slot(ordinal) as usize];
        let first = geometry.block_index(from);
        let blocks = bytes.chunks_exact(geometry.block());
        for (entry, block) in slot.now[first..].iter_mut().zip(blocks) {
            *entry = block_checksum(block);
        }
        self.read_limit = self.read_bytes;
        self.phase = Phase::Free(ordinal, from + bytes.len() as u64);
    }

    /// The result of a complete scan.
    ///
    /// # Panics
    /// When [`Self::next_read`] still names a read.
    pub fn finish(mut self) -> Recovered {
        assert_eq!(self.phase, Phase::Done, "the scan is complete");
        let geometry = self.geometry();
        let end = self.end.expect("a complete scan has found the end");
        let (cursor, sb) = (self.cursor, self.superblock);
        let mut wipe_end = end.dirty_end.max(cursor.offset);
        if sb.tail.ordinal == cursor.ordinal {
            wipe_end = wipe_end.max(sb.tail.wipe_end);
        }
        let zero = table_of_zeros(&geometry)[0];
        let current = &mut self.slots[geometry.slot(cursor.ordinal) as usize].now;
        let from =
            ((cursor.offset - geometry.data_offset()) / u64::from(geometry.block_bytes)) as usize;
        let wiped = ((wipe_end - cursor.offset) / u64::from(geometry.block_bytes)) as usize;
        current[from..from + wiped].fill(zero);
        let torn = end.dirty_end > cursor.offset || end.next_dirty;
        let verdict = if torn {
            Verdict::TailTorn {
                sequence: cursor.chain.sequence,
                frames: end.frames,
                wiped_bytes: end.dirty_end - cursor.offset,
            }
        } else {
            Verdict::Clean
        };
        let is_known = sb.term == self.term && !spillway_runtime::planted!(VoteForgotten);
        let vote = if is_known { sb.vote } else { NodeId(0) };
        let tail_entries = self.entries.tail(self.commit_hint);
        let entries = std::mem::replace(&mut self.entries, EntryIndex::behind(&cursor.chain));
        Recovered {
            tail: Tail {
                ordinal: cursor.ordinal,
                offset: cursor.offset,
                sequence: cursor.chain.sequence,
                wipe_end,
            },
            commit_hint: self.commit_hint,
            last_lsn: cursor.chain.lsn,
            last_timestamp: cursor.chain.timestamp,
            term: self.term,
            vote,
            frames: self.frames,
            bytes: self.bytes,
            verdict,
            position: LogPosition {
                cursor,
                dirty_end: end.dirty_end,
                tail: tail_entries,
                ring: self.into_ring(),
            },
            entries,
        }
    }

    fn into_ring(mut self) -> SegmentRing {
        let geometry = self.geometry();
        let floor = self.superblock.floor.ordinal;
        let mut slots: Vec<Option<Slot>> = (0..geometry.segments_count).map(|_| None).collect();
        for ordinal in floor..self.ordinal_end() {
            let ready = self.is_ready(ordinal);
            let scan = &mut self.slots[geometry.slot(ordinal) as usize];
            let (before, now) = (&mut scan.before, std::mem::take(&mut scan.now));
            let slot = if ordinal <= self.cursor.ordinal {
                Slot { state: SlotState::Held, contents: Contents::Known(now) }
            } else if ready {
                let contents = std::mem::replace(before, Contents::Unknown);
                Slot { state: SlotState::Ready, contents }
            } else {
                Slot { state: SlotState::Dirty, contents: Contents::Known(now) }
            };
            slots[geometry.slot(ordinal) as usize] = Some(slot);
        }
        let slots = slots.into_iter().map(|slot| slot.expect("every slot has an ordinal"));
        let (cluster, node) = (self.superblock.cluster, self.superblock.node);
        SegmentRing::new(geometry, cluster, node, floor, self.held, slots.collect())
    }
}
