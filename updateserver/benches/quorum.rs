//! What a batch costs the log cores. `cargo bench -p spillway-updateserver --bench quorum`
//!
//! Three or five replicas on one thread; disks and network take no time and copy nothing but what a
//! follower receives. Figures are nanoseconds per batch spent in the replica of the leader and of
//! one follower, everything in it included: assembling, checksums of the headers and of one block
//! of payload, the log writer, the state machine. Median over stretches of 200 batches, of the best
//! of three runs. "one" has one batch on its way at a time, "two" up to two.

use std::collections::VecDeque;
use std::hint::black_box;

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, PartitionId, WallMicros};
use spillway_runtime::clock::monotonic_now;
use spillway_runtime::slot_ring::SlotRing;
use spillway_updateserver::log::{
    DurableWrite, EntryFrame, FormatPlan, Geometry, LogScanner, LogWriterOptions, Members, Section,
};
use spillway_updateserver::quorum::{
    Now, PeerHeader, PeerSend, Replica, ReplicaEffects, ReplicaInput, ReplicaOptions, ReplicaStart,
    Role, Room,
};

const CLUSTER: ClusterId = ClusterId(1);
const GEOMETRY: Geometry = Geometry {
    block_bytes: 4096,
    segment_bytes: 512 << 20,
    segments_count: 8,
    partitions: 8,
    batch_bytes_max: 1 << 20,
};
const BATCHES: u64 = 40_000;
const STRETCH: u64 = 200;
const RUNS: usize = 3;
const RING_BYTES: usize = 256 << 20;

struct Node {
    replica: Replica,
    slots: SlotRing,
    nanos: u64,
    leading: Option<Epoch>,
    committed: u64,
    inbox: VecDeque<PeerSend>,
}

/// The log of a fresh node, read from a disk that is zero where nothing was written.
fn start(node: NodeId, nodes: u16) -> ReplicaStart {
    let members = Members::of_voters((1..=nodes).map(NodeId));
    let plan = FormatPlan::new(CLUSTER, node, GEOMETRY, DurableWrite::SyncedWrite, members);
    let plan = plan.expect("sizes that hold");
    let mut scanner = LogScanner::new(&plan.superblock, 1 << 20);
    while let Some(request) = scanner.next_read() {
        let mut bytes = vec![0; request.bytes];
        if request.offset == 0 {
            let head = plan.segment_start(request.segment);
            bytes[..head.len()].copy_from_slice(&head);
        }
        scanner.feed(Ok(&bytes), &mut |_| {}).expect("an empty log is in order");
    }
    let recovered = scanner.finish();
    let superblock = recovered.superblock_next(&plan.superblock, Epoch(0), NodeId(0));
    ReplicaStart {
        position: recovered.position,
        entries: recovered.entries,
        tail: Vec::new(),
        superblock,
        applied: Lsn(0),
        config_entries: Vec::new(),
    }
}

impl Node {
    fn new(id: u16, nodes: u16) -> Self {
        let start = start(NodeId(id), nodes);
        let writer = LogWriterOptions {
            cluster: CLUSTER,
            node: NodeId(id),
            term: start.superblock.term,
            vote: start.superblock.vote,
            boot: start.superblock.boot,
            in_flight_max: 4,
            watermark_idle_nanos: 1_000_000,
        };
        let mut options = ReplicaOptions::new(writer, 7);
        options.cache_bytes_max = 64 << 20;
        Self {
            replica: Replica::new(options, start),
            slots: SlotRing::new("bench", RING_BYTES).expect("memory"),
            nanos: 0,
            leading: None,
            committed: 0,
            inbox: VecDeque::new(),
        }
    }

    fn step(&mut self, now: Now, input: ReplicaInput, out: &mut ReplicaEffects) {
        let from = monotonic_now();
        self.replica.step(now, input, &mut self.slots, out);
        self.nanos += monotonic_now().saturating_nanos_since(from);
    }
}

struct Cluster {
    nodes: Vec<Node>,
    now: Now,
    out: ReplicaEffects,
    ticket: u64,
}

impl Cluster {
    fn new(count: u16) -> Self {
        let nodes = (1..=count).map(|id| Node::new(id, count)).collect();
        let wall = WallMicros(1_790_000_000_000_000);
        let now = Now { monotonic_nanos: 1, wall };
        let out = ReplicaEffects::default();
        let mut cluster = Self { nodes, now, out, ticket: 0 };
        for at in 0..cluster.nodes.len() {
            for other in (1..=count).filter(|other| usize::from(*other) != at + 1) {
                cluster.step(at, ReplicaInput::PeerConnected(NodeId(other)));
            }
        }
        while cluster.leader().is_none() {
            cluster.now.monotonic_nanos += 10_000_000;
            for at in 0..cluster.nodes.len() {
                cluster.step(at, ReplicaInput::Tick);
            }
            cluster.deliver();
        }
        cluster
    }

    fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.leading.is_some())
    }

    /// A step, and all that its disk and its shards have to do.
    fn step(&mut self, at: usize, input: ReplicaInput) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut out = std::mem::take(&mut self.out);
            let node = &mut self.nodes[at];
            node.step(self.now, input, &mut out);
            if let Some(change) = out.role {
                node.leading = match change.role {
                    Role::Lead { epoch } => Some(epoch),
                    Role::Follow => None,
                };
                inputs.push_back(ReplicaInput::RoleAcknowledged(change.number));
            }
            if let Some(committed) = out.committed {
                node.committed = committed.lsn.0;
            }
            for write in out.writes.drain(..) {
                let (sequence, result) = (write.sequence, Ok(write.bytes));
                inputs.push_back(ReplicaInput::WriteCompleted { sequence, result });
            }
            for raw in out.raw_writes.drain(..) {
                let result = Ok(raw.content.len());
                inputs.push_back(ReplicaInput::RawCompleted { id: raw.id, result });
            }
            for send in out.sends.drain(..) {
                self.nodes[usize::from(send.to.0) - 1].inbox.push_back(send);
            }
            let node = &mut self.nodes[at];
            let mut applied = None;
            while let Some((lsn, body)) = node.replica.apply_next() {
                black_box(body);
                node.replica.apply_taken();
                applied = Some(lsn);
            }
            inputs.extend(applied.map(ReplicaInput::Applied));
            out.clear();
            self.out = out;
        }
    }

    /// Delivers messages until there are none.
    fn deliver(&mut self) {
        loop {
            let mut quiet = true;
            for at in 0..self.nodes.len() {
                while let Some(send) = self.nodes[at].inbox.pop_front() {
                    quiet = false;
                    let input = self.receive(at, send);
                    self.step(at, input);
                }
                self.step(at, ReplicaInput::TurnEnd);
            }
            if quiet {
                return;
            }
        }
    }

    fn receive(&mut self, at: usize, send: PeerSend) -> ReplicaInput {
        let node = &mut self.nodes[at];
        let header: PeerHeader = send.header;
        let frame = send.body.map(|body| {
            let bytes = GEOMETRY.block() + body.len();
            let slot = node.replica.reserve(bytes, &mut node.slots);
            let mut slot = slot.expect("the ring holds what is on its way");
            slot[GEOMETRY.block()..].copy_from_slice(&body);
            EntryFrame::verify(&GEOMETRY, CLUSTER, slot).expect("an entry")
        });
        ReplicaInput::Peer { from: header.from, header, frame }
    }

    /// Appends items as batches of their own, `depth` of them before the others hear of any.
    fn run(&mut self, batches: u64, depth: u64, payload: &[u8]) {
        let leader = self.leader().expect("elected");
        let epoch = self.nodes[leader].leading.expect("elected");
        for _ in 0..batches / depth {
            for _ in 0..depth {
                self.ticket += 1;
                self.now.monotonic_nanos += 100;
                self.now.wall.0 += 1;
                let node = &mut self.nodes[leader];
                let from = monotonic_now();
                let room = node.replica.room(1, payload.len(), &mut node.slots);
                assert_eq!(room, Room::Fits, "the log is large enough");
                let section = Section { partition: PartitionId(0), digest: 0, bytes: payload };
                assert!(node.replica.append(epoch, self.ticket, &[section], &mut node.slots));
                node.nanos += monotonic_now().saturating_nanos_since(from);
                self.step(leader, ReplicaInput::TurnEnd);
            }
            self.deliver();
        }
    }
}

fn measure(nodes: u16, depth: u64) -> (u64, u64) {
    let (mut leader_best, mut follower_best) = (u64::MAX, u64::MAX);
    for _ in 0..RUNS {
        let mut cluster = Cluster::new(nodes);
        let payload = [7u8; 64];
        cluster.run(BATCHES / 10, depth, &payload);
        let leader = cluster.leader().expect("it stays");
        let follower = (leader + 1) % cluster.nodes.len();
        let mut stretches: [Vec<u64>; 2] = Default::default();
        for _ in 0..BATCHES / STRETCH {
            let before = cluster.nodes[leader].committed;
            for node in &mut cluster.nodes {
                node.nanos = 0;
            }
            cluster.run(STRETCH, depth, &payload);
            assert_eq!(cluster.nodes[leader].committed - before, STRETCH, "every item a batch");
            assert!(cluster.nodes[follower].committed + 1 >= before + STRETCH, "all is committed");
            for (list, at) in stretches.iter_mut().zip([leader, follower]) {
                list.push(cluster.nodes[at].nanos / STRETCH);
            }
        }
        let [leader, follower] = stretches.map(|mut list| {
            list.sort_unstable();
            list[list.len() / 2]
        });
        leader_best = leader_best.min(leader);
        follower_best = follower_best.min(follower);
    }
    (leader_best, follower_best)
}

fn main() {
    let clock = (0..1000).map(|_| {
        let from = monotonic_now();
        black_box(monotonic_now().saturating_nanos_since(from))
    });
    println!("reading the clock: {} ns, twice in every step", clock.min().unwrap_or(0));
    println!("{:>6} {:>6} {:>12} {:>12}", "nodes", "depth", "leader ns", "follower ns");
    for nodes in [1, 3, 5] {
        for (depth, name) in [(1, "one"), (2, "two")] {
            if nodes == 1 && depth > 1 {
                continue;
            }
            let (leader, follower) = measure(nodes, depth);
            println!("{nodes:>6} {name:>6} {leader:>12} {follower:>12}");
        }
    }
}
