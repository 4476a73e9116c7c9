//! The writing half of the log: items in, batches out, acknowledgement of the contiguous durable
//! prefix.
//!
//! A pure core. The shell appends items while its turn lasts, ends the turn with
//! [`LogInput::TurnEnd`], performs the writes it finds in [`LogEffects`], and reports every
//! completion. Rules kept here: R6-R9, R12, R13, R21 of the consensus notes, and two more:
//!
//! - The first frame of a segment is issued only when everything before it is durable. So the
//!   frames that a crash may tear lie in one segment.
//! - Remains of frames that recovery dropped are overwritten with zeros before the first frame of
//!   a boot, so that every block behind the log has contents that recovery knows.

use std::collections::VecDeque;

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, WallMicros};
use spillway_net::limits::LOG_WRITES_IN_FLIGHT_MAX;

use super::batch::{
    Batch, BatchBuffers, Committed, InFlight, Section, batch_buffer_bytes, sections_bytes,
};
use super::bytes::block_checksum;
use super::clock::BatchClock;
use super::frame::{
    FrameKind, FrameSealed, FrameSizes, LocalHeader, SectionEntry, SharedHeader, frame_seal,
    sector_checksum,
};
use super::geometry::Geometry;
use super::position::Floor;
use super::recovery::LogPosition;

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
    /// Current term; entries are proposed in it.
    pub term: Epoch,
    /// Vote in that term.
    pub vote: NodeId,
    /// This start of the node; durable in the superblock before the writer is made.
    pub boot: u64,
    /// Frames in flight, at most [`LOG_WRITES_IN_FLIGHT_MAX`].
    pub in_flight_max: usize,
    /// With fewer frames in flight a batch goes at once, however small. One more than none lets
    /// the next batch be assembled while the device works; many small ones cost more than they
    /// gain.
    pub in_flight_small_max: usize,
    /// With more frames in flight, a batch waits until it holds this much or one of them
    /// completes.
    pub batch_bytes_wait: usize,
    /// Silence after which a watermark frame covers the last frames.
    pub watermark_idle_nanos: u64,
    /// Number of batch buffers: more than `in_flight_max`.
    pub buffers: u16,
}

/// Whether an item can be appended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Append it.
    Fits,
    /// All buffers are busy: keep the item until a write completes.
    Later,
    /// The log is full up to its reserve: refuse work until the floor rises.
    LogFull(LogSpace),
    /// A write failed; nothing is accepted any more.
    Poisoned,
}

/// How much of the log is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpace {
    /// Bytes that frames occupy or can no longer use.
    pub used_bytes: u64,
    /// Bytes for frames in all segments, the reserve included.
    pub total_bytes: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum LogInput {
    /// The shell has appended what it had.
    TurnEnd,
    /// A frame write ended: bytes written, or errno.
    WriteCompleted {
        /// Of the [`LogWrite`].
        sequence: u64,
        /// Bytes written, or errno.
        result: Result<u32, i32>,
    },
    /// A [`RawWrite`] ended: bytes written, or errno.
    RawCompleted {
        /// Of the write.
        id: u32,
        /// Bytes written, or errno.
        result: Result<u32, i32>,
    },
    /// Time has passed.
    Tick,
}

/// A frame to write, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogWrite {
    /// Physical sequence; comes back with the completion.
    pub sequence: u64,
    /// Buffer that holds the frame. It must not change until the write has completed.
    pub buffer: u16,
    /// Where the frame starts in the buffer, a multiple of the block.
    pub buffer_offset: u32,
    /// Length, a multiple of the block.
    pub bytes: u32,
    /// Segment file.
    pub segment: u32,
    /// Offset in the file, a multiple of the block.
    pub offset: u64,
}

/// Content of a write that is no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawContent {
    /// This many zeros.
    Zeros(u32),
    /// Header and table of a segment.
    Bytes(Vec<u8>),
}

impl RawContent {
    /// Length.
    pub fn len(&self) -> u32 {
        match self {
            Self::Zeros(bytes) => *bytes,
            Self::Bytes(bytes) => bytes.len() as u32,
        }
    }

    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A write to a segment that is no frame, durable like one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawWrite {
    /// Comes back with the completion.
    pub id: u32,
    /// Segment file.
    pub segment: u32,
    /// Offset in the file, a multiple of the block.
    pub offset: u64,
    /// What to write.
    pub content: RawContent,
}

/// Why a log takes no more writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Poisoned {
    /// The device returned an error.
    #[error(
        "the log device failed a write to segment {segment} at offset {offset} (errno {errno}): \
         nothing more is acknowledged; replace or check the log disk, then start the node again, \
         which reads back what is durable"
    )]
    Failed {
        /// Error number.
        errno: i32,
        /// Segment file.
        segment: u32,
        /// Offset in it.
        offset: u64,
    },
    /// The device wrote less than it was asked to.
    #[error(
        "the log device wrote {written} of {expected} bytes to segment {segment} at offset \
         {offset}: nothing more is acknowledged; check that the segment files have their full \
         size, then start the node again, which reads back what is durable"
    )]
    Short {
        /// Bytes written.
        written: u32,
        /// Bytes asked for.
        expected: u32,
        /// Segment file.
        segment: u32,
        /// Offset in it.
        offset: u64,
    },
}

/// What the shell has to do.
#[derive(Clone, Debug, Default)]
pub struct LogEffects {
    /// Frames to write.
    pub writes: Vec<LogWrite>,
    /// Other writes.
    pub raw_writes: Vec<RawWrite>,
    /// The committed end moved here.
    pub committed: Option<Committed>,
    /// The log takes no more writes. Reported once.
    pub poisoned: Option<Poisoned>,
    /// A tick is wanted at this time.
    pub next_deadline_nanos: Option<u64>,
}

impl LogEffects {
    /// Empties the lists and keeps their memory.
    pub fn clear(&mut self) {
        self.writes.clear();
        self.raw_writes.clear();
        self.committed = None;
        self.poisoned = None;
        self.next_deadline_nanos = None;
    }
}

#[derive(Clone, Copy, Debug)]
struct RawPending {
    id: u32,
    segment: u32,
    offset: u64,
    bytes: u32,
    prepares: bool,
}

/// The writer.
#[derive(Debug)]
pub struct LogWriter {
    options: LogWriterOptions,
    geometry: Geometry,
    position: LogPosition,
    clock: BatchClock,
    digests: Vec<u128>,
    open: Option<Batch>,
    closed: VecDeque<Batch>,
    /// Issued frames from `durable_sequence + 1` on, without gaps.
    in_flight: VecDeque<InFlight>,
    durable_sequence: u64,
    durable: Committed,
    ticket: u64,
    buffers_free: Vec<u16>,
    directories_free: Vec<Vec<SectionEntry>>,
    raw_pending: Vec<RawPending>,
    raw_id: u32,
    /// Writes of zeros that must be durable before the first frame.
    wipes_open: usize,
    wipes_issued: bool,
    /// Data or no-op frames were written that no later frame covers yet.
    uncovered: bool,
    last_frame_nanos: u64,
    shutting_down: bool,
    poisoned: Option<Poisoned>,
}

impl LogWriter {
    /// A writer that continues at `position` with the running digests of all partitions there. Its
    /// first frame is a no-op of the new boot, issued at the first step.
    ///
    /// # Panics
    /// On options that contradict each other or the log: a programming error of the shell.
    pub fn new(options: LogWriterOptions, position: LogPosition, digests: Vec<u128>) -> Self {
        let geometry = *position.ring.geometry();
        let chain = position.cursor.chain;
        geometry.check().expect("the superblock's geometry was checked");
        assert!((1..=LOG_WRITES_IN_FLIGHT_MAX).contains(&options.in_flight_max), "in flight");
        assert!(options.in_flight_small_max > 0, "with none in flight a batch goes at once");
        assert!(usize::from(options.buffers) > options.in_flight_max, "one buffer stays to fill");
        assert_eq!(digests.len(), usize::from(geometry.partitions), "a digest per partition");
        assert!(options.term >= chain.entry_term, "the term never falls");
        assert_eq!(position.cursor.ordinal, position.ring.current(), "cursor and ring agree");
        assert!(options.boot > 0, "a boot is numbered from 1");
        let buffers_free = (1..options.buffers).rev().collect();
        let durable = Committed {
            epoch: chain.entry_term,
            lsn: chain.lsn,
            ticket: 0,
            timestamp: chain.timestamp,
        };
        Self {
            options,
            geometry,
            clock: BatchClock::new(chain.timestamp),
            digests,
            open: None,
            closed: VecDeque::from([Batch::new(FrameKind::NoOp, 0, Vec::new())]),
            in_flight: VecDeque::with_capacity(options.in_flight_max),
            durable_sequence: chain.sequence - 1,
            durable,
            ticket: 0,
            buffers_free,
            directories_free: Vec::new(),
            raw_pending: Vec::new(),
            raw_id: 0,
            wipes_open: 0,
            wipes_issued: false,
            uncovered: false,
            last_frame_nanos: 0,
            shutting_down: false,
            poisoned: None,
            position,
        }
    }

    /// Changes the term and vote that frames repeat, and the term of new entries. The superblock
    /// that says so is durable before.
    pub fn hard_state_set(&mut self, term: Epoch, vote: NodeId) {
        assert!(term >= self.options.term, "the term never falls");
        let kept = term > self.options.term || vote == self.options.vote;
        assert!(kept || self.options.vote == NodeId(0), "one vote in a term");
        self.options.term = term;
        self.options.vote = vote;
    }

    /// Whether an item of this many sections and payload bytes (each section rounded up to 16)
    /// can be appended now. Data keeps off the reserve.
    pub fn room(&self, sections: usize, bytes: usize) -> Room {
        self.room_with_reserve(sections, bytes, RESERVE_SEGMENTS)
    }

    /// Like [`Self::room`] for freeze and configuration entries, which may use the reserve.
    pub fn room_reserved(&self, sections: usize, bytes: usize) -> Room {
        self.room_with_reserve(sections, bytes, 0)
    }

    fn room_with_reserve(&self, sections: usize, bytes: usize, reserve: usize) -> Room {
        assert!(sections > 0 && bytes > 0, "an item has sections");
        assert!(sections <= self.geometry.sections_max(), "an item fits a batch: {sections}");
        assert!(bytes <= self.geometry.payload_bytes_max(), "an item fits a batch: {bytes} bytes");
        if self.poisoned.is_some() {
            return Room::Poisoned;
        }
        let joins = self.open.as_ref().filter(|b| b.has_room(&self.geometry, sections, bytes));
        if joins.is_none() && self.buffers_free.is_empty() {
            return Room::Later;
        }
        let last = match joins {
            Some(batch) => batch.frame_bytes_with(&self.geometry, sections, bytes),
            None => FrameSizes::of(&self.geometry, sections, bytes).frame_bytes,
        };
        let before = self.open.iter().filter(|_| joins.is_none());
        let pending = self.closed.iter().chain(before).map(|b| b.frame_bytes(&self.geometry));
        let segments = self.segments_needed(pending.chain([last]));
        match self.position.ring.free_count().checked_sub(reserve) {
            Some(free) if segments <= free => Room::Fits,
            _ => Room::LogFull(self.space()),
        }
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

    /// The durable, committed end of the log.
    pub fn committed(&self) -> Committed {
        self.durable
    }

    /// Up to this frame everything is durable. Every superblock that is written repeats it.
    pub fn durable_sequence(&self) -> u64 {
        self.durable_sequence
    }

    /// The running digest of every partition after everything appended so far.
    pub fn digests(&self) -> &[u128] {
        &self.digests
    }

    /// The index that the batch now open, or the next one, will have.
    pub fn lsn_next(&self) -> Lsn {
        let waiting = self.closed.iter().filter(|batch| batch.kind.is_entry()).count();
        Lsn(self.position.cursor.chain.lsn.0 + waiting as u64 + 1)
    }

    /// The floor to write into the superblock once everything up to `lsn` is covered by a
    /// checkpoint.
    pub fn floor_for(&self, lsn: Lsn) -> Floor {
        self.position.ring.floor_for(lsn)
    }

    /// Releases the segments before a floor whose superblock is durable. They are prepared for
    /// their next use one by one.
    pub fn floor_raise(&mut self, floor: &Floor) {
        self.position.ring.release(floor);
    }

    /// Announces the end: nothing more is appended, and when all is durable a last watermark frame
    /// covers it.
    pub fn shutdown(&mut self) {
        self.shutting_down = true;
    }

    /// True when nothing is open, waiting or in flight, and the last frames are covered.
    pub fn is_quiet(&self) -> bool {
        let empty = self.open.is_none() && self.closed.is_empty() && self.in_flight.is_empty();
        empty && self.raw_pending.is_empty() && !self.uncovered
    }

    /// Copies an item into the open batch. [`Self::room`] must have said that it fits. Returns the
    /// index that the item will have.
    pub fn append(
        &mut self,
        ticket: u64,
        item: &[Section<'_>],
        buffers: &mut (impl BatchBuffers + ?Sized),
    ) -> Lsn {
        assert!(self.poisoned.is_none(), "nothing is appended to a poisoned log");
        assert!(!self.shutting_down, "nothing is appended after the shutdown began");
        assert!(ticket > self.ticket, "tickets rise: {ticket} after {}", self.ticket);
        assert!(!item.is_empty(), "an item has sections");
        assert_eq!(buffers.count(), self.options.buffers, "the buffers of the options");
        let bytes = sections_bytes(item);
        let full = self.open.take_if(|batch| !batch.has_room(&self.geometry, item.len(), bytes));
        self.closed.extend(full);
        let batch = self.open.get_or_insert_with(|| {
            let buffer = self.buffers_free.pop().expect("room was asked for before");
            let directory = self.directories_free.pop().unwrap_or_default();
            Batch::new(FrameKind::Data, buffer, directory)
        });
        assert!(batch.has_room(&self.geometry, item.len(), bytes), "an item fits a batch");
        let buffer = buffers.buffer_mut(batch.buffer);
        assert!(buffer.len() >= batch_buffer_bytes(&self.geometry), "buffers of full size");
        for section in item {
            batch.push(&self.geometry, section, buffer);
        }
        batch.ticket = ticket;
        self.ticket = ticket;
        self.lsn_next()
    }

    /// Moves the core on.
    pub fn step(
        &mut self,
        now_nanos: u64,
        wall: WallMicros,
        input: LogInput,
        buffers: &mut (impl BatchBuffers + ?Sized),
        out: &mut LogEffects,
    ) {
        if self.poisoned.is_some() {
            return;
        }
        let completion = match input {
            LogInput::WriteCompleted { sequence, result } => {
                self.write_completed(sequence, result, out);
                true
            }
            LogInput::RawCompleted { id, result } => {
                self.raw_completed(id, result, out);
                true
            }
            LogInput::TurnEnd | LogInput::Tick => false,
        };
        if self.poisoned.is_some() {
            return;
        }
        self.issue_wipes(out);
        self.issue_prepare(out);
        if !matches!(input, LogInput::Tick) {
            self.pump(completion, now_nanos, wall, buffers, out);
        }
        self.watermark(now_nanos, wall, buffers, out);
    }

    /// Issues batches in order as long as the rules allow it.
    fn pump(
        &mut self,
        completion: bool,
        now_nanos: u64,
        wall: WallMicros,
        buffers: &mut (impl BatchBuffers + ?Sized),
        out: &mut LogEffects,
    ) {
        loop {
            if self.closed.is_empty() {
                let wait = self.options.batch_bytes_wait;
                let few = self.in_flight.len() < self.options.in_flight_small_max;
                let ripe = |batch: &mut Batch| completion || few || batch.payload_bytes >= wait;
                let free = self.in_flight.len() < self.options.in_flight_max;
                let batch = if free { self.open.take_if(ripe) } else { None };
                self.closed.extend(batch);
            }
            if self.closed.is_empty() || !self.can_issue() {
                return;
            }
            let batch = self.closed.pop_front().expect("checked above");
            self.issue(batch, now_nanos, wall, buffers, out);
        }
    }

    /// True when the first closed batch may be written now; enters the next segment for it.
    fn can_issue(&mut self) -> bool {
        if self.in_flight.len() >= self.options.in_flight_max || self.wipes_open > 0 {
            return false;
        }
        let batch = self.closed.front().expect("asked for the first closed batch");
        let bytes = batch.frame_bytes(&self.geometry) as u64;
        let cursor = &mut self.position.cursor;
        if cursor.offset + bytes <= u64::from(self.geometry.segment_bytes) {
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

    fn headers(&mut self, batch: &Batch, stamp: WallMicros) -> (SharedHeader, LocalHeader) {
        let cursor = &self.position.cursor;
        let chain = &cursor.chain;
        let entry = batch.kind.is_entry();
        let shared = SharedHeader {
            kind: batch.kind,
            checksum: 0,
            cluster: self.options.cluster,
            entry_term: if entry { self.options.term } else { chain.entry_term },
            index: if entry { Lsn(chain.lsn.0 + 1) } else { chain.lsn },
            previous: chain.shared,
            timestamp: stamp,
            section_count: batch.directory.len() as u32,
            payload_bytes: batch.payload_bytes as u32,
            frame_bytes: 0,
        };
        let local = LocalHeader {
            cluster: self.options.cluster,
            node: self.options.node,
            boot: self.options.boot,
            segment: self.geometry.slot(cursor.ordinal),
            generation: self.geometry.generation(cursor.ordinal),
            offset: cursor.offset,
            sequence: chain.sequence,
            previous: chain.local,
            term: self.options.term,
            vote: self.options.vote,
            durable_sequence: self.durable_sequence,
            commit_hint: self.durable.lsn,
            frame_bytes: 0,
            header_bytes: 0,
            shared: 0,
        };
        (shared, local)
    }

    /// Finishes the frame of a batch in its buffer and orders its write.
    fn issue(
        &mut self,
        mut batch: Batch,
        now_nanos: u64,
        wall: WallMicros,
        buffers: &mut (impl BatchBuffers + ?Sized),
        out: &mut LogEffects,
    ) {
        let entry = batch.kind.is_entry();
        let last = self.position.cursor.chain.timestamp;
        let stamp = if entry { self.clock.stamp(now_nanos, wall) } else { last };
        assert!(!entry || stamp > last, "batch timestamps rise strictly");
        let (shared, local) = self.headers(&batch, stamp);
        let start = self.geometry.header_bytes_max();
        let buffer = buffers.buffer_mut(batch.buffer);
        let sealed = frame_seal(&self.geometry, buffer, start, &batch.directory, shared, local);
        let frame = &buffer[sealed.start..sealed.start + sealed.sizes.frame_bytes];
        self.record_frame(frame, &sealed, shared.index);
        let frame_bytes = sealed.sizes.frame_bytes as u32;
        out.writes.push(LogWrite {
            sequence: local.sequence,
            buffer: batch.buffer,
            buffer_offset: sealed.start as u32,
            bytes: frame_bytes,
            segment: local.segment,
            offset: local.offset,
        });
        let cursor = &mut self.position.cursor;
        cursor.offset += u64::from(frame_bytes);
        cursor.chain.sequence += 1;
        cursor.chain.local = sealed.local;
        let previous = self.in_flight.back().map_or(self.durable.ticket, |f| f.committed.ticket);
        if entry {
            cursor.chain.lsn = shared.index;
            cursor.chain.shared = sealed.shared;
            cursor.chain.timestamp = stamp;
            cursor.chain.entry_term = shared.entry_term;
        }
        let ticket = if batch.kind == FrameKind::Data { batch.ticket } else { previous };
        let (epoch, lsn) = (shared.entry_term, shared.index);
        self.in_flight.push_back(InFlight {
            buffer: batch.buffer,
            segment: local.segment,
            offset: local.offset,
            frame_bytes,
            done: false,
            kind: batch.kind,
            committed: Committed { epoch, lsn, ticket, timestamp: stamp },
        });
        batch.directory.clear();
        self.directories_free.push(batch.directory);
        self.uncovered = entry;
        self.last_frame_nanos = now_nanos;
    }

    /// Notes what the frame makes of the blocks it covers, for the time when its segment is
    /// recycled.
    fn record_frame(&mut self, frame: &[u8], sealed: &FrameSealed, lsn: Lsn) {
        let block = self.geometry.block();
        let (headers, area) =
            (&frame[..sealed.sizes.header_bytes], &frame[block..sealed.sizes.header_bytes]);
        let sectors = (0..sealed.sizes.payload_blocks).map(|i| sector_checksum(area, i));
        let blocks = headers.chunks_exact(block).map(block_checksum).chain(sectors);
        self.position.ring.record(self.position.cursor.offset, lsn, blocks);
    }

    fn write_completed(&mut self, sequence: u64, result: Result<u32, i32>, out: &mut LogEffects) {
        let index = sequence.checked_sub(self.durable_sequence + 1).map(|index| index as usize);
        let frame = index.and_then(|index| self.in_flight.get_mut(index));
        let frame = frame.expect("a completion belongs to a frame in flight");
        assert!(!frame.done, "frame {sequence} completed twice");
        if result != Ok(frame.frame_bytes) {
            let (expected, segment, offset) = (frame.frame_bytes, frame.segment, frame.offset);
            self.poison(result, expected, segment, offset, out);
            return;
        }
        frame.done = true;
        self.buffers_free.push(frame.buffer);
        while self.in_flight.front().is_some_and(|frame| frame.done) {
            let frame = self.in_flight.pop_front().expect("checked above");
            self.durable_sequence += 1;
            if frame.kind.is_entry() {
                assert!(frame.committed.lsn > self.durable.lsn, "acknowledged in log order");
                self.durable = frame.committed;
                out.committed = Some(frame.committed);
            }
        }
    }

    fn raw_completed(&mut self, id: u32, result: Result<u32, i32>, out: &mut LogEffects) {
        let at = self.raw_pending.iter().position(|raw| raw.id == id);
        let raw = self.raw_pending.swap_remove(at.expect("a completion belongs to a write"));
        if result != Ok(raw.bytes) {
            self.poison(result, raw.bytes, raw.segment, raw.offset, out);
        } else if raw.prepares {
            self.position.ring.prepared(raw.segment);
        } else {
            self.wipes_open -= 1;
        }
    }

    fn poison(
        &mut self,
        result: Result<u32, i32>,
        expected: u32,
        segment: u32,
        offset: u64,
        out: &mut LogEffects,
    ) {
        assert!(self.poisoned.is_none(), "a log is poisoned once");
        let poisoned = match result {
            Err(errno) => Poisoned::Failed { errno, segment, offset },
            Ok(written) => Poisoned::Short { written, expected, segment, offset },
        };
        self.poisoned = Some(poisoned);
        out.poisoned = Some(poisoned);
    }

    fn raw_write(
        &mut self,
        segment: u32,
        offset: u64,
        content: RawContent,
        prepares: bool,
        out: &mut LogEffects,
    ) {
        let id = self.raw_id;
        self.raw_id = self.raw_id.wrapping_add(1);
        let bytes = content.len();
        self.raw_pending.push(RawPending { id, segment, offset, bytes, prepares });
        out.raw_writes.push(RawWrite { id, segment, offset, content });
    }

    /// Orders the zeros over the remains of dropped frames.
    fn issue_wipes(&mut self, out: &mut LogEffects) {
        if self.wipes_issued {
            return;
        }
        self.wipes_issued = true;
        let segment = self.geometry.slot(self.position.cursor.ordinal);
        let mut offset = self.position.cursor.offset;
        while offset < self.position.dirty_end {
            let bytes = (self.position.dirty_end - offset).min(WIPE_BYTES_MAX);
            self.raw_write(segment, offset, RawContent::Zeros(bytes as u32), false, out);
            self.wipes_open += 1;
            offset += bytes;
        }
    }

    /// Orders the header of the next segment that must be prepared.
    fn issue_prepare(&mut self, out: &mut LogEffects) {
        let chain = self.position.cursor.chain;
        if let Some((segment, bytes)) = self.position.ring.prepare_next(&chain) {
            self.raw_write(segment, 0, RawContent::Bytes(bytes), true, out);
        }
    }

    /// Writes a watermark frame when the log has been silent (or ends) and its last frames are not
    /// covered by a later one; else says when to look again.
    fn watermark(
        &mut self,
        now_nanos: u64,
        wall: WallMicros,
        buffers: &mut (impl BatchBuffers + ?Sized),
        out: &mut LogEffects,
    ) {
        let idle = self.open.is_none() && self.closed.is_empty() && self.in_flight.is_empty();
        if !idle || !self.uncovered {
            return;
        }
        let deadline = self.last_frame_nanos.saturating_add(self.options.watermark_idle_nanos);
        if !self.shutting_down && now_nanos < deadline {
            out.next_deadline_nanos = Some(deadline);
            return;
        }
        let left = u64::from(self.geometry.segment_bytes) - self.position.cursor.offset;
        let roomy = left >= u64::from(self.geometry.batch_bytes_max);
        if !roomy && self.position.ring.free_count() == 0 {
            // The last bytes of a full log belong to the entries that empty it.
            return;
        }
        let buffer = self.buffers_free.pop().expect("no frame holds a buffer");
        self.closed.push_back(Batch::new(FrameKind::Watermark, buffer, Vec::new()));
        self.pump(false, now_nanos, wall, buffers, out);
    }
}
