//! The writing half of the log: finished entries in, frames in segments out, a report of the
//! contiguous durable prefix.
//!
//! A pure core, the same on leader and follower. The caller gives it entries in the order of the
//! physical log ([`LogWriter::write`]), ends its turn with [`LogInput::TurnEnd`], performs the
//! writes it finds in [`LogEffects`], and reports every completion. It neither decides what an
//! entry is nor when it is committed. Rules kept here: R6-R9, R12, R13, R21 of the consensus notes,
//! and three more:
//!
//! - The first frame of a segment is issued only when everything before it is durable. So the
//!   frames that a crash may tear lie in one segment.
//! - A change of members is issued only when everything before it is durable. It was proposed when
//!   the change before it was committed; so its frame, whose hint may then name that one, is never
//!   read back without the knowledge that it is.
//! - Remains of frames that recovery dropped are overwritten with zeros before the first frame of
//!   a boot, so that every block behind the log has contents that recovery knows.

use std::collections::VecDeque;

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId};
use spillway_net::limits::LOG_WRITES_IN_FLIGHT_MAX;
use spillway_runtime::slot_ring::{Slot, SlotMut, SlotRing};

use super::bytes::block_checksum;
use super::effects::{
    Issued, LogEffects, LogInput, LogWrite, Poisoned, RawContent, RawFile, RawWrite,
};
use super::entries::EntryPlace;
use super::entry_frame::EntryFrame;
use super::frame::{
    FrameKind, FrameSizes, LocalHeader, SharedHeader, body_seal, sector_checksum, watermark_header,
};
use super::geometry::Geometry;
use super::position::Floor;
use super::recovery::LogPosition;
use super::superblock::{Superblock, SuperblockWrite, superblock_update};

/// Segments that data may not use: room for no-op, freeze and configuration entries, without which
/// a full log could never be emptied.
pub const RESERVE_SEGMENTS: usize = 1;
/// Largest single write of zeros, bytes.
const WIPE_BYTES_MAX: u64 = 1 << 20;

/// Settings of a writer.
#[derive(Clone, Copy, Debug)]
pub struct LogWriterOptions {
    /// Cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Current term, which frames repeat.
    pub term: Epoch,
    /// Vote in that term.
    pub vote: NodeId,
    /// This start of the node; durable in the superblock before the writer's first effect.
    pub boot: u64,
    /// Frames in flight, at most [`LOG_WRITES_IN_FLIGHT_MAX`].
    pub in_flight_max: usize,
    /// Silence after which a watermark frame covers the last frames.
    pub watermark_idle_nanos: u64,
}

/// How much of the log is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpace {
    /// Bytes that frames occupy or can no longer use.
    pub used_bytes: u64,
    /// Bytes for frames in all segments, the reserve included.
    pub total_bytes: u64,
}

/// A frame that was issued.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    segment: u32,
    offset: u64,
    frame_bytes: u32,
    done: bool,
    /// Write number and index; a watermark has none.
    entry: Option<(u64, Lsn)>,
}

/// What an open [`RawWrite`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RawPurpose {
    Wipe,
    Prepare(u32),
    Superblock,
}

#[derive(Clone, Copy, Debug)]
struct RawPending {
    id: u32,
    file: RawFile,
    offset: u64,
    bytes: u32,
    purpose: RawPurpose,
}

/// A superblock on its way.
#[derive(Debug)]
struct SuperblockUpdate {
    sequence: u64,
    /// Not yet ordered, the next one last.
    rounds: Vec<Vec<SuperblockWrite>>,
    /// Writes of the present round that have not completed.
    open: usize,
}

/// The writer.
#[derive(Debug)]
pub struct LogWriter {
    options: LogWriterOptions,
    geometry: Geometry,
    position: LogPosition,
    /// Waiting entries in physical order, each with its write number.
    queue: VecDeque<(u64, EntryFrame)>,
    /// Issued frames from `durable_sequence + 1` on, without gaps.
    in_flight: VecDeque<InFlight>,
    durable_sequence: u64,
    /// Last index of the durable prefix of the physical log.
    durable_lsn: Lsn,
    committed: Lsn,
    write_number: u64,
    raw_pending: Vec<RawPending>,
    raw_id: u32,
    superblock: Option<SuperblockUpdate>,
    /// Writes of zeros that must be durable before the first frame.
    wipes_open: usize,
    wipes_issued: bool,
    /// Entries were written that no later frame covers yet.
    uncovered: bool,
    last_frame_nanos: u64,
    shutting_down: bool,
    poisoned: Option<Poisoned>,
}

impl LogWriter {
    /// A writer that continues at `position`.
    ///
    /// # Panics
    /// On options that contradict each other or the log: a programming error of the shell.
    pub fn new(options: LogWriterOptions, position: LogPosition) -> Self {
        let geometry = *position.ring.geometry();
        let chain = position.cursor.chain;
        geometry.check().expect("the superblock's geometry was checked");
        assert!((1..=LOG_WRITES_IN_FLIGHT_MAX).contains(&options.in_flight_max), "in flight");
        assert!(options.term >= chain.entry_term, "the term never falls");
        assert_eq!(position.cursor.ordinal, position.ring.current(), "cursor and ring agree");
        assert!(options.boot > 0, "a boot is numbered from 1");
        let last = position.tail.last_identity();
        assert_eq!((last.lsn, last.checksum), (chain.lsn, chain.shared), "tail and chain agree");
        Self {
            options,
            geometry,
            queue: VecDeque::new(),
            in_flight: VecDeque::with_capacity(options.in_flight_max),
            durable_sequence: chain.sequence - 1,
            durable_lsn: chain.lsn,
            committed: position.tail.base().lsn,
            write_number: 0,
            raw_pending: Vec::new(),
            raw_id: 0,
            superblock: None,
            wipes_open: 0,
            wipes_issued: false,
            uncovered: false,
            last_frame_nanos: 0,
            shutting_down: false,
            poisoned: None,
            position,
        }
    }

    /// Queues an entry: the next one in the log, or one with a smaller index, which supersedes the
    /// entry there and all behind it (rule R9). Returns its write number, counted from 1 in the
    /// order of these calls. A poisoned writer takes it and never reports it durable.
    ///
    /// # Panics
    /// When recovery would refuse the log with this entry in it: it does not continue the one
    /// before it, or supersedes what is committed. See [`super::EntryIndex::accepts`].
    pub fn write(&mut self, frame: EntryFrame) -> u64 {
        let shared = &frame.shared;
        let (tail, committed) = (&self.position.tail, self.committed);
        assert!(tail.accepts(shared, committed), "{shared:?} behind {:?}", tail.last_identity());
        assert!(shared.entry_term <= self.options.term, "no entry of a later term than the node's");
        assert_eq!(frame.head.len(), self.geometry.block(), "a block for the local header");
        assert_eq!(frame.frame_bytes(), shared.frame_bytes as usize, "a whole frame");
        self.position.tail.take(shared, EntryPlace::NOWHERE);
        self.write_number += 1;
        if self.poisoned.is_none() {
            self.queue.push_back((self.write_number, frame));
        }
        self.write_number
    }

    /// Changes the term and vote that frames repeat. A vote is durable in the superblock before.
    pub fn hard_state_set(&mut self, term: Epoch, vote: NodeId) {
        assert!(term >= self.options.term, "the term never falls");
        let kept = term > self.options.term || vote == self.options.vote;
        assert!(kept || self.options.vote == NodeId(0), "one vote in a term");
        self.options.term = term;
        self.options.vote = vote;
    }

    /// Everything up to `lsn` is committed. Later frames say so as far as it is durable here (rule
    /// R8); no later entry may supersede it. The entries up to `lsn` were given to
    /// [`Self::write`] before, in the form in which they are committed.
    pub fn committed_set(&mut self, lsn: Lsn) {
        let known = lsn.min(self.position.tail.last());
        if known > self.committed {
            self.committed = known;
            self.position.tail.release_to(known);
        }
    }

    /// Entries that wait or are in flight.
    pub fn pending_count(&self) -> usize {
        self.queue.len() + self.in_flight.len()
    }

    /// Whether frames of these sizes, behind all that waits, find room and leave
    /// `reserve_segments` free. Data of a leader leaves [`RESERVE_SEGMENTS`]; a follower writes
    /// what fits at all.
    pub fn has_room(
        &self,
        frames: impl IntoIterator<Item = usize>,
        reserve_segments: usize,
    ) -> bool {
        let waiting = self.queue.iter().map(|(_, frame)| frame.frame_bytes());
        let segments = self.segments_needed(waiting.chain(frames));
        let free = self.position.ring.free_count().checked_sub(reserve_segments);
        free.is_some_and(|free| segments <= free)
    }

    /// Segments beyond the current one that frames of these sizes would take.
    fn segments_needed(&self, frames: impl Iterator<Item = usize>) -> usize {
        let mut left = u64::from(self.geometry.segment_bytes) - self.position.cursor.offset;
        let mut segments = 0;
        for bytes in frames.map(|bytes| bytes as u64) {
            if bytes > left {
                segments += 1;
                left = self.geometry.data_bytes();
            }
            left -= bytes;
        }
        segments
    }

    /// How much of the log is in use.
    pub fn space(&self) -> LogSpace {
        let data_bytes = self.geometry.data_bytes();
        let sealed = self.position.ring.held_count() as u64 - 1;
        let current = self.position.cursor.offset - self.geometry.data_offset();
        LogSpace {
            used_bytes: sealed * data_bytes + current,
            total_bytes: u64::from(self.geometry.segments_count) * data_bytes,
        }
    }

    /// Sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Up to this frame everything is durable. Every superblock that is written repeats it.
    pub fn durable_sequence(&self) -> u64 {
        self.durable_sequence
    }

    /// Why nothing is taken any more.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.poisoned
    }

    /// The floor to write into the superblock once everything up to `lsn` is covered by a
    /// checkpoint. It also stays behind what is committed and durable here, so that the entry in
    /// front of it is final.
    pub fn floor_for(&self, lsn: Lsn) -> Floor {
        self.position.ring.floor_for(lsn.min(self.commit_hint()))
    }

    /// Releases the segments before a floor whose superblock is durable. They are prepared for
    /// their next use one by one. Entries up to that before the floor can no longer be read back.
    pub fn floor_raise(&mut self, floor: &Floor) {
        self.position.ring.release(floor);
    }

    /// Announces the end: when all is durable a last watermark frame covers it.
    pub fn shutdown(&mut self) {
        self.shutting_down = true;
    }

    /// True when nothing is waiting or in flight, and the last frames are covered or cannot be.
    pub fn is_quiet(&self) -> bool {
        let covered = !self.uncovered || !self.has_room_for_watermark();
        self.pending_count() == 0 && self.raw_pending.is_empty() && covered
    }

    /// Begins to write a superblock, in two rounds. [`LogEffects::superblock_durable`] names its
    /// sequence when it is in force. It has the present term and vote, or later ones: frames that
    /// carry them may lie before its floor.
    ///
    /// # Panics
    /// When another one is on its way (see [`Self::superblock_is_open`]), or on an earlier term.
    pub fn superblock_write(&mut self, superblock: &Superblock) {
        assert!(self.superblock.is_none(), "one superblock at a time");
        assert!(superblock.term >= self.options.term, "a superblock never forgets a term");
        assert_eq!(superblock.boot, self.options.boot, "of this boot");
        assert!(superblock.durable_sequence <= self.durable_sequence, "never ahead");
        let mut rounds = superblock_update(superblock).to_vec();
        rounds.reverse();
        self.superblock = Some(SuperblockUpdate { sequence: superblock.sequence, rounds, open: 0 });
    }

    /// True while a superblock is on its way.
    pub fn superblock_is_open(&self) -> bool {
        self.superblock.is_some()
    }

    /// Moves the core on.
    pub fn step(
        &mut self,
        now_nanos: u64,
        input: LogInput,
        slots: &mut SlotRing,
        out: &mut LogEffects,
    ) {
        out.next_deadline_nanos = None;
        if self.poisoned.is_some() {
            return;
        }
        match input {
            LogInput::WriteCompleted { sequence, result } => {
                self.write_completed(sequence, result, out);
            }
            LogInput::RawCompleted { id, result } => self.raw_completed(id, result, out),
            LogInput::TurnEnd | LogInput::Tick => {}
        }
        if self.poisoned.is_some() {
            return;
        }
        self.issue_wipes(out);
        self.issue_prepare(out);
        self.issue_superblock(out);
        let held = self.pump(now_nanos, out);
        let watermark = self.watermark(now_nanos, slots, out);
        // What waits for nothing has no completion that leads here again.
        out.next_deadline_nanos = if held { Some(now_nanos) } else { watermark };
    }

    /// Issues entries in order as long as the rules allow it. True when the next one waits for
    /// nothing but the next step.
    fn pump(&mut self, now_nanos: u64, out: &mut LogEffects) -> bool {
        while let Some((_, frame)) = self.queue.front() {
            if spillway_runtime::fault_point!(WriteHeld) {
                return true;
            }
            let is_config = frame.shared.kind == FrameKind::Config;
            let waits = is_config && !self.in_flight.is_empty();
            if waits || !self.can_issue(frame.frame_bytes() as u64) {
                return false;
            }
            // A change of members names the one before it as committed: never less is said there.
            let is_old = !is_config && spillway_runtime::fault_point!(CommitHintOld);
            let commit_hint = if is_old { Lsn(0) } else { self.commit_hint() };
            let (number, frame) = self.queue.pop_front().expect("seen above");
            self.issue(Some(number), frame, commit_hint, now_nanos, out);
        }
        false
    }

    /// True when a frame of this size may be written now; enters the next segment for it.
    fn can_issue(&mut self, bytes: u64) -> bool {
        let alone = spillway_runtime::fault_point!(WriteAlone);
        let in_flight_max = if alone { 1 } else { self.options.in_flight_max };
        if self.in_flight.len() >= in_flight_max || self.wipes_open > 0 {
            return false;
        }
        let cursor = &mut self.position.cursor;
        let ring = &self.position.ring;
        let may_leave = self.in_flight.is_empty()
            && ring.next_ready()
            && cursor.offset > self.geometry.data_offset()
            && ring.free_count() * 4 > self.geometry.segments_count as usize * 3;
        let leaves = may_leave && spillway_runtime::fault_point!(SegmentLeftEarly);
        if cursor.offset + bytes <= u64::from(self.geometry.segment_bytes) && !leaves {
            return true;
        }
        if !self.in_flight.is_empty() || !self.position.ring.next_ready() {
            return false;
        }
        self.position.ring.advance(cursor.chain);
        cursor.ordinal += 1;
        cursor.offset = self.geometry.data_offset();
        true
    }

    /// What a frame issued now may say is committed: no entry that is not durable here in the form
    /// in which it was committed.
    fn commit_hint(&self) -> Lsn {
        if spillway_runtime::planted!(CommitHintAhead) {
            return self.committed.min(self.position.cursor.chain.lsn);
        }
        let issued = self.in_flight.iter().filter_map(|frame| frame.entry.map(|(_, lsn)| lsn));
        let waiting = self.queue.iter().map(|(_, frame)| frame.shared.index);
        let pending = issued.chain(waiting).min().map_or(self.durable_lsn, |lsn| Lsn(lsn.0 - 1));
        self.committed.min(self.durable_lsn).min(pending)
    }

    /// Writes the local header in front of the body and orders the write of the frame.
    fn issue(
        &mut self,
        number: Option<u64>,
        frame: EntryFrame,
        commit_hint: Lsn,
        now_nanos: u64,
        out: &mut LogEffects,
    ) {
        let EntryFrame { shared, mut head, body, .. } = frame;
        let local = self.local_header(&shared, commit_hint);
        let checksum = local.encode(&mut head);
        let slot = Slot::joined(&head.freeze(), &body);
        let slot = slot.expect("the block for the local header lies in front of the body");
        self.record_frame(&slot, &shared);
        let cursor = &mut self.position.cursor;
        let place = EntryPlace {
            ordinal: cursor.ordinal,
            offset: cursor.offset as u32,
            bytes: shared.frame_bytes,
        };
        cursor.offset += u64::from(shared.frame_bytes);
        if spillway_runtime::planted!(FramePlaceOverlaps) {
            cursor.offset -= u64::from(self.geometry.block_bytes);
        }
        cursor.chain.sequence += 1;
        cursor.chain.local = checksum;
        let entry = number.map(|number| (number, shared.index));
        if let Some((number, lsn)) = entry {
            cursor.chain.lsn = lsn;
            cursor.chain.shared = shared.checksum;
            cursor.chain.timestamp = shared.timestamp;
            cursor.chain.entry_term = shared.entry_term;
            out.issued.push(Issued { number, lsn, checksum: shared.checksum, place });
        }
        self.uncovered = entry.is_some();
        self.last_frame_nanos = now_nanos;
        let (sequence, frame_bytes) = (local.sequence, shared.frame_bytes);
        let (segment, offset) = (local.segment, local.offset);
        out.writes.push(LogWrite { sequence, slot, bytes: frame_bytes, segment, offset });
        self.in_flight.push_back(InFlight { segment, offset, frame_bytes, done: false, entry });
    }

    fn local_header(&self, shared: &SharedHeader, commit_hint: Lsn) -> LocalHeader {
        let cursor = &self.position.cursor;
        assert!(commit_hint <= cursor.chain.lsn, "a commit hint names an entry before the frame");
        let mut durable_sequence = self.durable_sequence;
        if spillway_runtime::planted!(DurableClaimedEarly) {
            durable_sequence = cursor.chain.sequence - 1;
        }
        LocalHeader {
            cluster: self.options.cluster,
            node: self.options.node,
            boot: self.options.boot,
            segment: self.geometry.slot(cursor.ordinal),
            generation: self.geometry.generation(cursor.ordinal),
            offset: cursor.offset,
            sequence: cursor.chain.sequence,
            previous: cursor.chain.local,
            term: self.options.term,
            vote: self.options.vote,
            durable_sequence,
            commit_hint,
            frame_bytes: shared.frame_bytes,
            header_bytes: shared.sizes(&self.geometry).header_bytes as u32,
            shared: shared.checksum,
        }
    }

    /// Notes what the frame makes of the blocks it covers, for the time when its segment is
    /// recycled.
    fn record_frame(&mut self, frame: &[u8], shared: &SharedHeader) {
        let block = self.geometry.block();
        let sizes = shared.sizes(&self.geometry);
        let (headers, area) = (&frame[..sizes.header_bytes], &frame[block..sizes.header_bytes]);
        let sectors = (0..sizes.payload_blocks).map(|i| sector_checksum(area, i));
        let blocks = headers.chunks_exact(block).map(block_checksum).chain(sectors);
        let entry = shared.kind.is_entry().then_some(shared.index);
        self.position.ring.record(self.position.cursor.offset, entry, blocks);
    }

    fn write_completed(&mut self, sequence: u64, result: Result<u32, i32>, out: &mut LogEffects) {
        let index = sequence.checked_sub(self.durable_sequence + 1).map(|index| index as usize);
        let frame = index.and_then(|index| self.in_flight.get_mut(index));
        let frame = frame.expect("a completion belongs to a frame in flight");
        assert!(!frame.done, "frame {sequence} completed twice");
        if result != Ok(frame.frame_bytes) {
            let (expected, file) = (frame.frame_bytes, RawFile::Segment(frame.segment));
            let offset = frame.offset;
            self.poison(result, expected, file, offset, out);
            return;
        }
        frame.done = true;
        let counts =
            |frame: &InFlight| frame.done || spillway_runtime::planted!(CompletionCountsForAll);
        while self.in_flight.front().is_some_and(counts) {
            let frame = self.in_flight.pop_front().expect("checked above");
            self.durable_sequence += 1;
            if let Some((number, lsn)) = frame.entry {
                self.durable_lsn = lsn;
                out.durable = Some(number);
            }
        }
    }

    fn raw_completed(&mut self, id: u32, result: Result<u32, i32>, out: &mut LogEffects) {
        let at = self.raw_pending.iter().position(|raw| raw.id == id);
        let raw = self.raw_pending.swap_remove(at.expect("a completion belongs to a write"));
        if result != Ok(raw.bytes) {
            self.poison(result, raw.bytes, raw.file, raw.offset, out);
            return;
        }
        match raw.purpose {
            RawPurpose::Wipe => self.wipes_open -= 1,
            RawPurpose::Prepare(segment) => self.position.ring.prepared(segment),
            RawPurpose::Superblock => {
                let update = self.superblock.as_mut().expect("its writes are open");
                update.open -= 1;
                if update.open == 0 && update.rounds.is_empty() {
                    out.superblock_durable = Some(update.sequence);
                    self.superblock = None;
                }
            }
        }
    }

    fn poison(
        &mut self,
        result: Result<u32, i32>,
        expected: u32,
        file: RawFile,
        offset: u64,
        out: &mut LogEffects,
    ) {
        assert!(self.poisoned.is_none(), "a log is poisoned once");
        let poisoned = match result {
            Err(errno) => Poisoned::Failed { errno, file, offset },
            Ok(written) => Poisoned::Short { written, expected, file, offset },
        };
        self.poisoned = Some(poisoned);
        self.queue.clear();
        out.poisoned = Some(poisoned);
    }

    fn raw_write(
        &mut self,
        file: RawFile,
        offset: u64,
        content: RawContent,
        purpose: RawPurpose,
        out: &mut LogEffects,
    ) {
        let id = self.raw_id;
        self.raw_id = self.raw_id.wrapping_add(1);
        let bytes = content.len();
        self.raw_pending.push(RawPending { id, file, offset, bytes, purpose });
        out.raw_writes.push(RawWrite { id, file, offset, content });
    }

    /// Orders the zeros over the remains of dropped frames.
    fn issue_wipes(&mut self, out: &mut LogEffects) {
        if self.wipes_issued || spillway_runtime::planted!(RemainsNotWiped) {
            return;
        }
        self.wipes_issued = true;
        let file = RawFile::Segment(self.geometry.slot(self.position.cursor.ordinal));
        let mut offset = self.position.cursor.offset;
        while offset < self.position.dirty_end {
            let block_bytes = u64::from(self.geometry.block_bytes);
            let pieces = spillway_runtime::fault_point!(WipeInPieces);
            let bytes_max = if pieces { 8 * block_bytes } else { WIPE_BYTES_MAX };
            let bytes = (self.position.dirty_end - offset).min(bytes_max);
            let zeros = RawContent::Zeros(bytes as u32);
            self.raw_write(file, offset, zeros, RawPurpose::Wipe, out);
            self.wipes_open += 1;
            offset += bytes;
        }
    }

    /// Orders the header of the next segment that must be prepared.
    fn issue_prepare(&mut self, out: &mut LogEffects) {
        let chain = self.position.cursor.chain;
        if let Some((segment, bytes)) = self.position.ring.prepare_next(&chain) {
            let (file, content) = (RawFile::Segment(segment), RawContent::Bytes(bytes));
            self.raw_write(file, 0, content, RawPurpose::Prepare(segment), out);
        }
    }

    /// Orders the next round of the superblock when the one before it is durable.
    fn issue_superblock(&mut self, out: &mut LogEffects) {
        let Some(update) = self.superblock.as_mut().filter(|update| update.open == 0) else {
            return;
        };
        let round = update.rounds.pop().expect("an update ends with its last round");
        update.open = round.len();
        for SuperblockWrite { offset, bytes } in round {
            let content = RawContent::Bytes(bytes);
            self.raw_write(RawFile::Superblock, offset, content, RawPurpose::Superblock, out);
        }
    }

    /// The last bytes of a full log belong to the entries that empty it.
    fn has_room_for_watermark(&self) -> bool {
        let left = u64::from(self.geometry.segment_bytes) - self.position.cursor.offset;
        let roomy = left >= u64::from(self.geometry.batch_bytes_max);
        roomy || self.position.ring.free_count() > 0
    }

    /// Writes a watermark frame when the log has been silent (or ends) and its last frames are not
    /// covered by a later one; else says when to look again.
    fn watermark(
        &mut self,
        now_nanos: u64,
        slots: &mut SlotRing,
        out: &mut LogEffects,
    ) -> Option<u64> {
        let idle = self.pending_count() == 0;
        if !idle || !self.uncovered || !self.has_room_for_watermark() {
            return None;
        }
        let idle_nanos = self.options.watermark_idle_nanos;
        let deadline = self.last_frame_nanos.saturating_add(idle_nanos);
        let now_at_once = spillway_runtime::fault_point!(WatermarkNow);
        if !self.shutting_down && now_nanos < deadline && !now_at_once {
            return Some(deadline);
        }
        if !self.shutting_down && spillway_runtime::fault_point!(WatermarkLate) {
            return Some(now_nanos.saturating_add(idle_nanos));
        }
        let bytes = FrameSizes::of(&self.geometry, 0, 0).frame_bytes;
        if !self.can_issue(bytes as u64) {
            // The next segment is being prepared; its completion leads here again.
            return None;
        }
        let Some(slot) = slots.reserve(bytes) else {
            return Some(now_nanos.saturating_add(idle_nanos));
        };
        let frame = self.watermark_frame(slot);
        self.issue(None, frame, self.commit_hint(), now_nanos, out);
        None
    }

    fn watermark_frame(&self, slot: SlotMut) -> EntryFrame {
        let header = watermark_header(self.options.cluster, &self.position.cursor.chain);
        let (head, mut body) = slot.split_at(self.geometry.block());
        let shared = body_seal(&self.geometry, &mut body, &[], header);
        EntryFrame { shared, head, body: body.freeze(), ticket: 0 }
    }
}
