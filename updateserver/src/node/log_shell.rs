//! The log's shell: takes items from the queue into the writer core, and moves its effects onto
//! the log ring.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use spillway_net::ids::{Lsn, WallMicros};
use spillway_runtime::buffer::{BufferIndex, BufferPool};
use spillway_runtime::clock;
use spillway_runtime::direct::DirectFile;
use spillway_runtime::disk::{
    DiskCompletion, DiskRing, DiskRingOptions, Durability, FileSlot, WriteRequest,
};
use spillway_runtime::error::{Errno, RuntimeError};
use spillway_runtime::metrics::{Histogram, Precision};
use spillway_runtime::queue::mpsc::{Consumer, Ticket};
use spillway_runtime::queue::spsc;
use spillway_runtime::queue::state::StateWriter;
use spillway_runtime::slot_ring::SlotRing;

use crate::log::{
    AssemblerRoom, BatchAssembler, BatchClock, EntryBase, FrameKind, LogEffects, LogInput,
    LogPosition, LogWriter, LogWriterOptions, PARTITION_SYSTEM, Poisoned, RESERVE_SEGMENTS,
    RawContent, RawFile, RawWrite, SealIdentity, Section,
};
use crate::shard::{LogItem, ORIGIN_ROOT};

use super::status::LogNumbers;

/// Marks tokens of writes that are no frames.
const TOKEN_RAW: u64 = 1 << 63;
/// Batches of full size that are assembled or in flight.
const SLOTS_BATCHES: usize = 16;
/// Largest raw write of zeros, bytes.
const ZEROS_BYTES_MAX: usize = 1 << 20;

/// What the log tells everybody: see [`super::core_loop`] for who reads it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Published {
    pub lsn: u64,
    pub ticket: u64,
    pub full: bool,
    pub failed: bool,
}

impl Published {
    pub fn words(self) -> [u64; 3] {
        [self.lsn, self.ticket, u64::from(self.full) | u64::from(self.failed) << 1]
    }

    pub fn of(words: [u64; 3]) -> Self {
        let [lsn, ticket, flags] = words;
        Self { lsn, ticket, full: flags & 1 != 0, failed: flags & 2 != 0 }
    }
}

/// What the log's shell is made of.
pub(super) struct LogShellOptions {
    pub writer: LogWriterOptions,
    /// See [`BatchAssembler::new`].
    pub in_flight_small_max: usize,
    /// See [`BatchAssembler::new`].
    pub batch_bytes_wait: usize,
    pub position: LogPosition,
    pub digests: Vec<u128>,
    pub files: Vec<DirectFile>,
    pub durability: Durability,
    pub queue: Consumer<Box<LogItem>>,
    /// Where emptied items go back, by shard.
    pub recycle: Vec<spsc::Producer<Box<LogItem>>>,
    pub state: StateWriter<3>,
    pub numbers: StateWriter<{ LogNumbers::WORDS }>,
    /// Space that must stay free for items already handed over when the log counts as full.
    pub margin_bytes: u64,
}

/// See the module. Lives on the log's thread.
pub(super) struct LogShell {
    writer: LogWriter,
    writer_options: LogWriterOptions,
    assembler: BatchAssembler,
    batch_slots: SlotRing,
    clock: BatchClock,
    /// Running digest of every partition.
    digests: Vec<u128>,
    last: EntryBase,
    /// Number, index and ticket of entries that are not durable.
    open: VecDeque<(u64, Lsn, u64)>,
    disk: DiskRing,
    buffers_free: Vec<u16>,
    slots: Vec<FileSlot>,
    durability: Durability,
    queue: Consumer<Box<LogItem>>,
    waiting: Option<(Ticket, Box<LogItem>)>,
    recycle: Vec<spsc::Producer<Box<LogItem>>>,
    state: StateWriter<3>,
    published: Published,
    numbers_out: StateWriter<{ LogNumbers::WORDS }>,
    numbers: LogNumbers,
    numbers_at_nanos: u64,
    write_times: Histogram,
    effects: LogEffects,
    completions: Vec<DiskCompletion>,
    raw_waiting: VecDeque<RawWrite>,
    raw_buffer: BufferIndex,
    /// Start and buffer of each frame write in flight, by sequence.
    started: VecDeque<(u64, u64, u16)>,
    deadline_nanos: Option<u64>,
    margin_bytes: u64,
    poisoned: Option<Poisoned>,
}

impl LogShell {
    /// Registers files and buffers with a ring of their own.
    pub fn new(options: LogShellOptions) -> Result<Self, RuntimeError> {
        let geometry = *options.position.ring.geometry();
        let mut disk = DiskRing::new(DiskRingOptions {
            entries: 64,
            files_max: geometry.segments_count,
            name: "log".to_owned(),
        })?;
        let frame_bytes = geometry.batch_bytes_max as usize;
        // A raw write is zeros, or header and table of a segment.
        let raw_bytes = (geometry.data_offset() as usize).max(ZEROS_BYTES_MAX);
        let buffer_bytes = frame_bytes.max(raw_bytes).next_multiple_of(4096);
        let buffers = options.writer.in_flight_max as u16;
        let pool = BufferPool::new(buffers + 1, buffer_bytes)?;
        if let Some(warning) = disk.register_buffers(pool)? {
            eprintln!("warning: {warning}");
        }
        let slots =
            options.files.iter().map(|file| disk.register_file(file)).collect::<Result<_, _>>()?;
        let raw_buffer = BufferIndex(buffers);
        let published =
            Published { lsn: options.position.cursor.chain.lsn.0, ..Published::default() };
        Ok(Self {
            writer_options: options.writer,
            assembler: BatchAssembler::new(
                geometry,
                options.in_flight_small_max,
                options.batch_bytes_wait,
            ),
            batch_slots: SlotRing::new("log", SLOTS_BATCHES * frame_bytes.next_multiple_of(4096))?,
            clock: BatchClock::new(options.position.cursor.chain.timestamp),
            digests: options.digests,
            last: options.position.tail.last_identity(),
            open: VecDeque::new(),
            writer: LogWriter::new(options.writer, options.position),
            disk,
            buffers_free: (0..buffers).collect(),
            slots,
            durability: options.durability,
            queue: options.queue,
            waiting: None,
            recycle: options.recycle,
            state: options.state,
            published,
            numbers_out: options.numbers,
            numbers: LogNumbers::default(),
            numbers_at_nanos: 0,
            write_times: Histogram::new(Precision::TwoDigits),
            effects: LogEffects::default(),
            completions: Vec::new(),
            raw_waiting: VecDeque::new(),
            raw_buffer,
            started: VecDeque::new(),
            deadline_nanos: None,
            margin_bytes: options.margin_bytes,
            poisoned: None,
        })
    }

    /// Readable when a write has completed.
    pub fn fd(&self) -> RawFd {
        self.disk.fd()
    }

    /// When [`Self::turn`] wants to be called although nothing happened.
    pub fn deadline_nanos(&self) -> Option<u64> {
        self.deadline_nanos
    }

    /// Whether there is work that no completion will announce.
    pub fn has_work(&self) -> bool {
        self.waiting.is_none() && self.queue.is_ready()
    }

    /// One turn: completions in, items in, writes out. Returns whether what the shards see
    /// changed.
    pub fn turn(&mut self) -> Result<bool, RuntimeError> {
        let now = clock::monotonic_now().0;
        // Items first: a completion then lets a fuller batch go.
        self.drain();
        self.reap(now)?;
        if self.deadline_nanos.is_some_and(|deadline| deadline <= now) {
            self.step(now, LogInput::Tick)?;
        }
        loop {
            self.drain();
            let issued = self.numbers.batches;
            self.step(now, LogInput::TurnEnd)?;
            if self.numbers.batches == issued || self.waiting.is_none() {
                break;
            }
        }
        self.disk.submit()?;
        self.numbers_publish(now);
        Ok(self.publish())
    }

    fn reap(&mut self, now: u64) -> Result<(), RuntimeError> {
        let mut completions = std::mem::take(&mut self.completions);
        self.disk.reap(&mut completions);
        for completion in completions.drain(..) {
            let result = completion.result.map_err(|Errno(errno)| errno);
            if completion.token & TOKEN_RAW != 0 {
                let id = (completion.token & !TOKEN_RAW) as u32;
                self.step(now, LogInput::RawCompleted { id, result })?;
                self.raw_next();
                continue;
            }
            let sequence = completion.token;
            if let Some(at) = self.started.iter().position(|(started, ..)| *started == sequence) {
                let (_, started, buffer) = self.started.remove(at).expect("found above");
                self.buffers_free.push(buffer);
                self.write_times.record(now.saturating_sub(started));
            }
            self.step(now, LogInput::WriteCompleted { sequence, result })?;
        }
        self.completions = completions;
        Ok(())
    }

    /// Moves items into the open batch until it is full or there are none.
    fn drain(&mut self) {
        loop {
            let Some((ticket, mut item)) = self.waiting.take().or_else(|| self.queue.pop()) else {
                return;
            };
            let sections: Vec<Section<'_>> = item
                .sections
                .iter()
                .map(|section| Section {
                    partition: section.partition,
                    digest: section.digest,
                    bytes: &item.bytes[section.start as usize..section.end as usize],
                })
                .collect();
            if !self.fits(&sections) {
                drop(sections);
                self.waiting = Some((ticket, item));
                return;
            }
            let running: Vec<Section<'_>> = sections
                .iter()
                .map(|section| Section {
                    digest: digest_next(&mut self.digests, section),
                    ..*section
                })
                .collect();
            self.assembler.append(ticket.0, &running, &mut self.batch_slots);
            drop(running);
            drop(sections);
            item.clear();
            if item.origin != ORIGIN_ROOT
                && let Some(back) = self.recycle.get_mut(usize::from(item.origin))
            {
                // A full ring only means that the shard has spares enough.
                drop(back.try_push(item));
            }
        }
    }

    /// Whether there is room for an item. Handed over before the shards knew that the log is full,
    /// it may use the reserve: the margin has room for it.
    fn fits(&mut self, sections: &[Section<'_>]) -> bool {
        let (count, bytes) = (sections.len(), crate::log::sections_bytes(sections));
        let room =
            |reserve| self.writer.has_room(self.assembler.frames_with(count, bytes), reserve);
        self.poisoned.is_none()
            && (room(RESERVE_SEGMENTS) || room(0))
            && self.assembler.room(count, bytes, &mut self.batch_slots) == AssemblerRoom::Fits
    }

    /// Seals what is ripe and gives it to the writer: on a node of its own an entry is committed
    /// when it is durable.
    fn seal(&mut self, now: u64, completion: bool) {
        let in_flight_max = self.writer_options.in_flight_max;
        while self.assembler.ripe(self.writer.pending_count(), in_flight_max, completion) {
            let wall = WallMicros(clock::wall_now_micros());
            let identity = SealIdentity {
                cluster: self.writer_options.cluster,
                term: self.writer_options.term,
                index: Lsn(self.last.lsn.0 + 1),
                previous: self.last.checksum,
                timestamp: self.clock.stamp(now, wall),
            };
            let frame = self.assembler.seal(identity, &mut self.batch_slots);
            let frame = frame.expect("what is ripe can be sealed");
            assert_eq!(frame.shared.kind, FrameKind::Data, "a batch");
            self.last = EntryBase {
                lsn: identity.index,
                term: identity.term,
                checksum: frame.shared.checksum,
                timestamp: identity.timestamp,
            };
            let ticket = frame.ticket;
            let number = self.writer.write(frame);
            self.open.push_back((number, identity.index, ticket));
        }
    }

    fn step(&mut self, now: u64, input: LogInput) -> Result<(), RuntimeError> {
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        let completed =
            matches!(input, LogInput::WriteCompleted { .. } | LogInput::RawCompleted { .. });
        if completed {
            self.writer.step(now, input, &mut self.batch_slots, &mut effects);
        }
        if self.poisoned.is_none() && effects.poisoned.is_none() {
            self.seal(now, completed);
        }
        let input = if completed { LogInput::TurnEnd } else { input };
        self.writer.step(now, input, &mut self.batch_slots, &mut effects);
        for write in &effects.writes {
            let buffer = self.buffers_free.pop().expect("a buffer for each write in flight");
            let target = self.disk.buffer_mut(BufferIndex(buffer));
            target[..write.slot.len()].copy_from_slice(&write.slot);
            self.started.push_back((write.sequence, now, buffer));
            self.numbers.batches += 1;
            self.numbers.bytes += u64::from(write.bytes);
            self.disk.write(WriteRequest {
                file: self.slots[write.segment as usize],
                file_offset: write.offset,
                buffer: BufferIndex(buffer),
                buffer_offset: 0,
                bytes: write.bytes,
                durability: self.durability,
                token: write.sequence,
            });
        }
        let idle = self.raw_waiting.is_empty();
        self.raw_waiting.extend(effects.raw_writes.drain(..));
        if idle {
            self.raw_submit();
        }
        while let Some((number, lsn, ticket)) = self.open.front().copied()
            && effects.durable.is_some_and(|durable| number <= durable)
        {
            self.open.pop_front();
            self.published.lsn = lsn.0;
            self.published.ticket = ticket;
            self.writer.committed_set(lsn);
        }
        if let Some(poisoned) = effects.poisoned {
            eprintln!("error: {poisoned}");
            self.poisoned = Some(poisoned);
            self.published.failed = true;
        }
        self.deadline_nanos = effects.next_deadline_nanos;
        self.effects = effects;
        Ok(())
    }

    /// The raw write in front has completed.
    fn raw_next(&mut self) {
        self.raw_waiting.pop_front().expect("a raw write was in flight");
        self.raw_submit();
    }

    /// Raw writes share one buffer, so they go one by one. They are rare: one per segment.
    fn raw_submit(&mut self) {
        let Some(write) = self.raw_waiting.front() else { return };
        let RawFile::Segment(segment) = write.file else {
            unreachable!("this shell gives the writer no superblock")
        };
        let buffer = self.disk.buffer_mut(self.raw_buffer);
        let bytes = write.content.len() as usize;
        match &write.content {
            RawContent::Zeros(_) => buffer[..bytes].fill(0),
            RawContent::Bytes(content) => buffer[..bytes].copy_from_slice(content),
        }
        self.disk.write(WriteRequest {
            file: self.slots[segment as usize],
            file_offset: write.offset,
            buffer: self.raw_buffer,
            buffer_offset: 0,
            bytes: bytes as u32,
            durability: self.durability,
            token: TOKEN_RAW | u64::from(write.id),
        });
    }

    fn publish(&mut self) -> bool {
        let space = self.writer.space();
        self.published.full = space.used_bytes + self.margin_bytes >= space.total_bytes;
        let words = self.published.words();
        if self.numbers.published == words {
            return false;
        }
        self.numbers.published = words;
        self.state.publish(words);
        true
    }

    /// Percentiles are read by other cores: now and then, not per batch.
    fn numbers_publish(&mut self, now: u64) {
        if now.saturating_sub(self.numbers_at_nanos) < 100_000_000 {
            return;
        }
        self.numbers_at_nanos = now;
        self.numbers.write_p50_nanos = self.write_times.percentile(50.0);
        self.numbers.write_p99_nanos = self.write_times.percentile(99.0);
        let space = self.writer.space();
        self.numbers.used_bytes = space.used_bytes;
        self.numbers.total_bytes = space.total_bytes;
        self.numbers_out.publish(self.numbers.words());
    }

    /// Begins the orderly end; the log is quiet when [`Self::is_quiet`] says so.
    pub fn shutdown(&mut self) -> Result<(), RuntimeError> {
        self.writer.shutdown();
        let now = clock::monotonic_now().0;
        self.step(now, LogInput::Tick)?;
        self.disk.submit()
    }

    /// Whether nothing is in flight or waiting.
    pub fn is_quiet(&self) -> bool {
        let quiet = self.writer.is_quiet() && self.assembler.pending_bytes() == 0;
        self.poisoned.is_some() || (quiet && self.disk.in_flight() == 0)
    }
}

/// The running digest of the section's partition behind it.
fn digest_next(digests: &mut [u128], section: &Section<'_>) -> u128 {
    if section.partition == PARTITION_SYSTEM {
        return section.digest;
    }
    let running = &mut digests[usize::from(section.partition.0)];
    *running = running.wrapping_add(section.digest);
    *running
}
