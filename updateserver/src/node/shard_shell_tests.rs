//! A shard's shell over loopback, with a client and the log's published state in one thread.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use spillway_net::client::Batch;
use spillway_net::frame::{Assembled, FrameAssembler, FrameKind, HEADER_BYTES};
use spillway_net::ids::{ClusterId, Lsn, NodeId, ShardIndex, TableId};
use spillway_net::limits::{FRAME_PAYLOAD_BYTES_MAX, fingerprint};
use spillway_net::message::{
    self, Hello, OperationKind, OutcomeStatus, Outcomes, Payload, ReadMode, Submit,
};
use spillway_runtime::clock;
use spillway_runtime::queue::state::StateWriter;
use spillway_runtime::queue::{mpsc, spsc, state};
use spillway_runtime::tcp::{TcpEvent, TcpRing, TcpRingOptions, Wait};

use crate::config::NetworkConfig;
use crate::memtable::HeapChunks;
use crate::session::SessionDirectory;
use crate::shard::{Shard, ShardOptions};

use super::board::Board;
use super::outbox::Outbox;
use super::published::{Published, ShardWord};
use super::shard_shell::{RootLink, RootPlace, ShardShell, ShardShellOptions};
use super::status::{LogNumbers, ReplayNumbers};

const CLUSTER: ClusterId = ClusterId(77);
const CHUNK_BYTES: usize = 1 << 20;
/// Turns after which something that should happen did not.
const TURNS_MAX: usize = 40_000;

struct Rig {
    ring: TcpRing,
    shell: ShardShell,
    state: StateWriter<{ Published::WORDS }>,
    client: TcpStream,
    assembler: FrameAssembler,
    request: u64,
}

fn shell(state: state::StateCell<{ Published::WORDS }>) -> ShardShell {
    let shard = ShardOptions {
        index: ShardIndex(1),
        shards: 2,
        partitions: 8,
        cluster: CLUSTER,
        node: NodeId(1),
        shard_ports: vec![7400, 7401],
        handovers_in_flight_max: 8,
        held_bytes_max: 1 << 20,
        outcomes_bytes_max: 1 << 20,
    };
    let chunks = Box::new(HeapChunks::new(CHUNK_BYTES, 8));
    let directory = Arc::new(SessionDirectory::default());
    let root = RootLink { orders: spsc::ring(8).1, done: spsc::ring(8).0 };
    ShardShell::new(ShardShellOptions {
        shard: Shard::new(shard, directory, chunks, 0),
        root: RootPlace::There(root),
        outbox: Outbox::new(mpsc::ring(64).0),
        recycle: spsc::ring(8).1,
        state,
        word: state::cell(ShardWord::default().words()).0,
        apply: spsc::ring(8).1,
        board: Board::new(Vec::new()),
        alone: false,
        numbers: state::cell([0; LogNumbers::WORDS]).1,
        network: NetworkConfig::default(),
        replay: ReplayNumbers::default(),
        started_at_nanos: 0,
    })
}

impl Rig {
    fn new() -> Self {
        let mut ring = TcpRing::new(TcpRingOptions {
            entries: 64,
            receive_buffers: 16,
            receive_buffer_bytes: 4096,
            connections_max: 8,
        })
        .expect("a ring");
        let any = "127.0.0.1:0".parse().expect("an address");
        let (_, address) = ring.listen(any, 8).expect("a listener");
        let client = TcpStream::connect(address).expect("connected");
        client.set_nonblocking(true).expect("a socket");
        let (state, cell) = state::cell(Published::default().words());
        let (shell, assembler) = (shell(cell), FrameAssembler::default());
        let mut rig = Self { ring, shell, state, client, assembler, request: 0 };
        let hello =
            Hello { limits_fingerprint: fingerprint(), cluster: CLUSTER.0, session: 0, attempt: 0 };
        let (kind, _) = rig.ask(FrameKind::Hello, &hello);
        assert_eq!(kind, FrameKind::Welcome);
        rig
    }

    /// What a core's loop does in a turn.
    fn turn(&mut self) {
        let mut events = Vec::new();
        self.ring.turn(Wait::For(100_000), &mut events).expect("a turn");
        for event in events {
            match event {
                TcpEvent::Accepted { connection, .. } => {
                    self.shell.accepted(&mut self.ring, connection);
                }
                TcpEvent::Received { connection, buffer } => {
                    self.shell.received(&mut self.ring, connection, buffer);
                }
                TcpEvent::Closed { connection, .. } => self.shell.closed(connection),
                _ => {}
            }
        }
        self.shell.turn(&mut self.ring);
        self.shell.log_moved(&mut self.ring);
    }

    /// Sends a frame and turns until it is answered.
    fn ask<T: Payload>(&mut self, kind: FrameKind, payload: &T) -> (FrameKind, Vec<u8>) {
        self.request += 1;
        let mut frame = Vec::new();
        message::write_frame(&mut frame, kind, self.request, Lsn(0), payload);
        self.client.write_all(&frame).expect("a few bytes");
        for _ in 0..TURNS_MAX {
            self.turn();
            let mut bytes = [0; 4096];
            let read = match self.client.read(&mut bytes) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => panic!("{error}"),
            };
            assert!(read > 0, "the connection ended");
            let (mut rest, limit) = (&bytes[..read], FRAME_PAYLOAD_BYTES_MAX);
            match self.assembler.next(&mut rest, limit, &mut Vec::new()).expect("a frame") {
                Assembled::InPlace(header, frame) => {
                    return (header.kind, frame[HEADER_BYTES..].to_vec());
                }
                Assembled::Owned(header, frame) => {
                    return (header.kind, frame[HEADER_BYTES..].to_vec());
                }
                Assembled::Incomplete => {}
            }
        }
        panic!("no answer");
    }

    /// Reads something that may be as old as `bound_micros`. True when this node was too old. Of a
    /// table that does not exist: a node that is fresh enough says that.
    fn is_behind(&mut self, bound_micros: u64) -> bool {
        let mut batch = Batch::new();
        batch.begin();
        batch.operation(OperationKind::Get, TableId(1), 0, &[1; 8], &[]).expect("it fits");
        batch.end().expect("one operation");
        let mut frame = Vec::new();
        batch.write_frame(&mut frame, 0, 1, 0);
        let mut submit = message::decode::<Submit>(&frame[HEADER_BYTES..]).expect("valid");
        (submit.read_mode, submit.read_bound) = (ReadMode::Stale as u8, bound_micros);
        let (kind, payload) = self.ask(FrameKind::Submit, &submit);
        assert_eq!(kind, FrameKind::Outcomes);
        let outcomes = message::decode::<Outcomes>(&payload).expect("valid").outcomes;
        assert_eq!(outcomes.len(), 1);
        outcomes[0].status == OutcomeStatus::Behind as u16
    }
}

/// A follower is cut off, or its leader stands still: nothing is published any more, and what it
/// has grows old all the same.
#[test]
fn a_node_to_which_nothing_is_said_grows_old() {
    const BOUND_MICROS: u64 = 60_000_000;
    let mut rig = Rig::new();
    // In a moment the bound is passed.
    let fresh_micros = clock::wall_now_micros() - BOUND_MICROS + 50_000;
    let published = Published { lsn: 5, leader: 2, epoch: 3, fresh_micros, ..Published::default() };
    rig.state.publish(published.words());
    rig.turn();
    while clock::wall_now_micros() <= fresh_micros + BOUND_MICROS {
        std::hint::spin_loop();
    }
    assert!(rig.is_behind(BOUND_MICROS), "the clock at which it was told is no measure");
    assert!(!rig.is_behind(2 * BOUND_MICROS), "old, and not too old");
}
