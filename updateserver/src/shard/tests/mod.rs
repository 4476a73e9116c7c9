//! Tests of the shard core without I/O: they act as clients and as the log.

mod bounds;
mod client;
mod model;
mod model_tests;
mod refusals;
mod replay;
mod roles;
mod scans;
mod sessions;
mod takeover;

use std::sync::Arc;

use spillway_net::client::Outcome;
use spillway_net::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId, ShardIndex, WallMicros};
use spillway_net::limits::{self, FRAME_PAYLOAD_BYTES_MAX};
use spillway_net::message::{self, ClusterCommand, Scan};

use super::{
    ApplyBatch, ApplySection, InboundFrame, LogState, ReplayError, RootCommand, RootOrder, Shard,
    ShardEffects, ShardInput, ShardOptions,
};
use crate::memtable::HeapChunks;
use crate::redo::FragmentReader;
use crate::session::SessionDirectory;

use client::{
    Answer, CLUSTER, Operation, Request, ScannedRow, TABLE, add, definition, frame_of, get, hello,
    key, layout, operation, page_rows, row, session, submit, upsert,
};

/// One fragment as the log keeps it: with the partition's running digest behind it.
#[derive(Clone, Debug)]
struct LoggedSection {
    partition: PartitionId,
    digest_after: u128,
    bytes: Vec<u8>,
}

impl LoggedSection {
    fn view(&self) -> ApplySection<'_> {
        let (partition, digest) = (self.partition, self.digest_after);
        ApplySection { partition, digest, bytes: &self.bytes }
    }
}

#[derive(Clone, Debug)]
struct LoggedItem {
    stamp: u64,
    sections: Vec<LoggedSection>,
    outcomes: u64,
}

/// A shard with its log and all that left it.
struct Node {
    shard: Shard,
    directory: Arc<SessionDirectory>,
    items: Vec<LoggedItem>,
    /// The term it led in last.
    epoch: Epoch,
    /// Whether it has applied batches in service, which take stamps too.
    followed: bool,
    diverged: Option<ReplayError>,
    round_wanted: u64,
    root_commands: Vec<RootCommand>,
    cluster_commands: Vec<ClusterCommand>,
    cluster_status_requests: usize,
    orders_done: u32,
    confirmed: u64,
    state: LogState,
    answers: Vec<Answer>,
    closes: Vec<u64>,
    effects: ShardEffects,
}

#[derive(Clone, Copy)]
struct NodeOptions {
    index: u16,
    shards: u16,
    partitions: u32,
    chunks: usize,
}

const OPTIONS: NodeOptions = NodeOptions { index: 0, shards: 1, partitions: 4, chunks: 64 };
const CHUNK_BYTES: usize = 512 << 10;

impl Node {
    fn bare(options: NodeOptions) -> Self {
        let directory = Arc::new(SessionDirectory::default());
        for number in 1..=4 {
            directory.open(session(number), 0);
        }
        let shard_options = ShardOptions {
            index: ShardIndex(options.index),
            shards: options.shards,
            partitions: options.partitions,
            cluster: CLUSTER,
            node: NodeId(1),
            shard_ports: vec![7000; usize::from(options.shards)],
            handovers_in_flight_max: 64,
            held_bytes_max: 64 << 20,
            outcomes_bytes_max: 64 << 20,
        };
        let chunks = Box::new(HeapChunks::new(CHUNK_BYTES, options.chunks));
        Self {
            shard: Shard::new(shard_options, Arc::clone(&directory), chunks, 0),
            directory,
            items: Vec::new(),
            epoch: Epoch(0),
            followed: false,
            diverged: None,
            round_wanted: 0,
            root_commands: Vec::new(),
            cluster_commands: Vec::new(),
            cluster_status_requests: 0,
            orders_done: 0,
            confirmed: 0,
            state: LogState::default(),
            answers: Vec::new(),
            closes: Vec::new(),
            effects: ShardEffects::default(),
        }
    }

    /// With the table, and connection n of session n open for 1 and 2.
    fn with(options: NodeOptions) -> Self {
        let mut node = Self::bare(options);
        let order = RootOrder::TableCreate { table: TABLE, definition: definition() };
        node.step(ShardInput::Root(order));
        node.lead(1);
        node.connect(1, session(1).0);
        node.connect(2, session(2).0);
        node
    }

    fn lead(&mut self, epoch: u64) {
        self.epoch = Epoch(epoch);
        self.step(ShardInput::Lead { epoch: Epoch(epoch) });
    }

    fn new() -> Self {
        Self::with(OPTIONS)
    }

    fn connect(&mut self, connection: u64, session: u64) {
        self.step(ShardInput::Opened(connection));
        self.frames(&[hello(connection, session)]);
        let answers = std::mem::take(&mut self.answers);
        let welcome = answers.iter().find(|answer| answer.connection == connection);
        assert_eq!(welcome.map(|answer| answer.kind), Some(FrameKind::Welcome));
        self.answers.extend(answers.into_iter().filter(|a| a.kind != FrameKind::Welcome));
    }

    fn frames(&mut self, requests: &[Request]) {
        let frames: Vec<_> = requests
            .iter()
            .map(|request| {
                let head = request.frame.first_chunk::<HEADER_BYTES>().expect("whole");
                let header = FrameHeader::parse(head, FRAME_PAYLOAD_BYTES_MAX).expect("good");
                header.check(&request.frame).expect("a good checksum");
                let payload = &request.frame[HEADER_BYTES..];
                InboundFrame { connection: request.connection, header, payload }
            })
            .collect();
        self.step(ShardInput::Frames(&frames));
    }

    fn step(&mut self, input: ShardInput<'_>) {
        let mut effects = std::mem::take(&mut self.effects);
        self.shard.step(1_000_000_000, input, &mut effects);
        for item in effects.items.drain(..) {
            let last = self.items.last().map_or(0, |item| item.stamp);
            assert!(item.stamp == last + 1 || (self.followed && item.stamp > last), "stamps rise");
            assert_eq!(item.epoch, self.epoch);
            assert_eq!(item.origin, self.shard.options.index.0);
            let mut logged = LoggedItem { stamp: item.stamp, sections: Vec::new(), outcomes: 0 };
            for section in &item.sections {
                let bytes = item.bytes[section.start as usize..section.end as usize].to_vec();
                let reader = FragmentReader::new(&bytes).expect("a shard writes valid redo");
                logged.outcomes += reader.outcomes().count() as u64;
                let (partition, digest_after) = (section.partition, section.digest);
                logged.sections.push(LoggedSection { partition, digest_after, bytes });
            }
            self.items.push(logged);
            self.shard.recycle(item);
        }
        for frame in &effects.released.frames {
            let bytes = &effects.released.bytes[frame.start..frame.end];
            let head = bytes.first_chunk::<HEADER_BYTES>().expect("whole");
            let header = FrameHeader::parse(head, usize::MAX).expect("good");
            header.check(bytes).expect("a good checksum");
            assert!(bytes.len() - HEADER_BYTES <= limits::ANSWER_PAYLOAD_BYTES_MAX, "too long");
            self.answers.push(Answer {
                connection: frame.connection,
                request: header.request,
                kind: header.kind,
                payload: bytes[HEADER_BYTES..].to_vec(),
            });
        }
        self.closes.append(&mut effects.closes);
        self.root_commands.extend(effects.root_commands.drain(..).map(|(_, command)| command));
        self.cluster_commands
            .extend(effects.cluster_commands.drain(..).map(|(_, command)| command));
        self.cluster_status_requests += effects.cluster_status_requests.len();
        self.orders_done += effects.orders_done;
        self.round_wanted = self.round_wanted.max(effects.round_wanted);
        self.diverged = self.diverged.take().or(effects.diverged.take());
        effects.clear();
        self.effects = effects;
    }

    fn turn_end(&mut self) {
        self.step(ShardInput::TurnEnd);
    }

    /// The log has committed the items up to this number.
    fn confirm(&mut self, stamp: u64) {
        self.confirmed = stamp;
        self.state.vdl = Lsn(stamp);
        self.log(self.state);
    }

    fn log(&mut self, state: LogState) {
        self.state = state;
        self.step(ShardInput::Log { stamp: self.confirmed, state });
    }

    /// Ends the turn and commits all.
    fn settle(&mut self) {
        self.turn_end();
        self.confirm(self.items.last().map_or(0, |item| item.stamp));
    }

    /// Outcomes in items that are committed.
    fn outcomes_confirmed(&self) -> u64 {
        self.items[..self.confirmed as usize].iter().map(|item| item.outcomes).sum()
    }

    /// The answers that left since the last call.
    fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Sends frames, commits all, and returns the only answer.
    fn ask(&mut self, request: Request) -> Answer {
        assert!(self.answers.is_empty(), "{} other answers are open", self.answers.len());
        self.frames(&[request]);
        self.settle();
        let mut answers = self.take_answers();
        assert_eq!(answers.len(), 1, "one answer");
        answers.pop().expect("one")
    }

    /// Executes one transaction of connection and session 1.
    fn one(&mut self, number: u64, operations: &[Operation]) -> Outcome {
        let request = submit(1, number, number, 0, &[operations.to_vec()]);
        self.ask(request).outcomes().pop().expect("one")
    }

    /// All rows by a scan of the whole table.
    fn rows(&mut self) -> Vec<ScannedRow> {
        self.rows_to(1)
    }

    /// The same for another connection.
    fn rows_to(&mut self, connection: u64) -> Vec<ScannedRow> {
        let mut rows: Vec<ScannedRow> = Vec::new();
        loop {
            let start = match rows.last() {
                Some((key, ..)) => [&key[..], &[0]].concat(),
                None => Vec::new(),
            };
            let scan = Scan { table: TABLE.0, start, end: Vec::new(), rows_max: 100 };
            let (more, page) = self.ask(frame_of(connection, 9, FrameKind::Scan, &scan)).page();
            rows.extend(page);
            if !more {
                return rows;
            }
        }
    }

    /// The rows of these keys, which exist.
    fn rows_of_keys(&mut self, keys: &[i64]) -> Vec<Vec<u8>> {
        let gets: Vec<_> = keys.iter().map(|k| get(*k)).collect();
        let outcome = self.ask(submit(1, 0, 1 << 16, 0, &[gets])).outcomes().remove(0);
        outcome.gets.into_iter().map(|found| found.expect("it exists").row).collect()
    }

    /// A node that has applied these items, after a restart, and leads.
    fn replayed(items: &[LoggedItem], options: NodeOptions) -> Result<Self, ReplayError> {
        let mut node = Self::followed(items, options)?;
        node.lead(2);
        node.connect(1, session(1).0);
        node.connect(2, session(2).0);
        Ok(node)
    }

    /// A node that has applied these items, after a restart.
    fn followed(items: &[LoggedItem], options: NodeOptions) -> Result<Self, ReplayError> {
        let mut node = Self::bare(options);
        let order = RootOrder::TableCreate { table: TABLE, definition: definition() };
        node.step(ShardInput::Root(order));
        for item in items {
            for section in &item.sections {
                node.replay(item.stamp, section)?;
            }
        }
        Ok(node)
    }

    /// Applies an item of the log as a batch of its own, in service.
    fn apply(&mut self, lsn: u64, item: &LoggedItem) {
        let sections: Vec<_> = item.sections.iter().map(LoggedSection::view).collect();
        self.apply_sections(lsn, &sections);
    }

    fn apply_sections(&mut self, lsn: u64, sections: &[ApplySection<'_>]) {
        self.followed = true;
        let batch = ApplyBatch { lsn: Lsn(lsn), timestamp: WallMicros(lsn), sections };
        self.step(ShardInput::Apply(&batch));
    }

    /// The rows that the shard holds now, whatever its role is.
    fn held(&mut self) -> Vec<ScannedRow> {
        let scan = Scan { table: TABLE.0, start: Vec::new(), end: Vec::new(), rows_max: u32::MAX };
        let mut bytes = Vec::new();
        message::archive(&mut bytes, &scan);
        let scan = message::access::<Scan>(&bytes).expect("valid");
        let page = self.shard.store.scan(scan).expect("it has memory").expect("it has the table");
        page_rows(&page)
    }

    fn digests(&self) -> Vec<u128> {
        let partitions = &self.shard.store.partitions;
        partitions.iter().map(|partition| self.shard.digest(partition.id)).collect()
    }

    fn replay(&mut self, lsn: u64, section: &LoggedSection) -> Result<(), ReplayError> {
        let (partition, digest) = (section.partition, section.digest_after);
        let applied = self.shard.replay_section(Lsn(lsn), partition, &section.bytes, digest);
        applied.map(|counts| {
            let reader = FragmentReader::new(&section.bytes).expect("it was applied");
            assert_eq!(counts.records, reader.records_count() as u64);
            assert_eq!(counts.outcomes, reader.outcomes().count() as u64);
        })
    }
}
