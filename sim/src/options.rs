//! What a run is made of, drawn from its seed, and the bugs that can be planted into it.

use spillway_updateserver::log::Geometry;

use crate::draw::Draw;

/// One second of virtual time.
pub const SECOND: u64 = 1_000_000_000;

/// A bug of the glue around the cores, planted to prove that the oracles see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A log write is reported durable while it is still on its way to the disk.
    WriteConfirmedEarly,
    /// At the completion of one write, all issued ones count as durable.
    CommitOutOfOrder,
    /// Shards are told that what they handed over is committed at once.
    AnswerBeforeCommit,
    /// A write error is reported as success.
    WriteErrorIgnored,
    /// The last section of an item that has several does not reach the log.
    SectionDropped,
    /// An item now and then never reaches the log.
    HandOverLost,
    /// Replay leaves out the newest entry.
    ReplayOneLess,
    /// Replay leaves out one section now and then.
    ReplaySectionSkipped,
    /// After a restart the shards know no outcomes.
    SessionsForgotten,
    /// A restart does not write the superblock of its boot.
    SuperblockNotWritten,
    /// An order of the root service now and then does not reach a shard.
    OrderLost,
    /// A start takes entries for committed that may still be superseded.
    TailNotHeldBack,
    /// Shards are told that a round of leadership succeeded when it has only begun.
    RoundNotAwaited,
    /// A superblock write in service is reported durable, and lost.
    HardStateLost,
}

/// Those that show on a node of its own.
pub const BUGS: [Bug; 11] = [
    Bug::WriteConfirmedEarly,
    Bug::CommitOutOfOrder,
    Bug::AnswerBeforeCommit,
    Bug::WriteErrorIgnored,
    Bug::SectionDropped,
    Bug::HandOverLost,
    Bug::ReplayOneLess,
    Bug::ReplaySectionSkipped,
    Bug::SessionsForgotten,
    Bug::SuperblockNotWritten,
    Bug::OrderLost,
];

/// Those that are looked for in a cluster.
pub const BUGS_CLUSTER: [Bug; 7] = [
    Bug::WriteConfirmedEarly,
    Bug::AnswerBeforeCommit,
    Bug::HandOverLost,
    Bug::ReplaySectionSkipped,
    Bug::TailNotHeldBack,
    Bug::RoundNotAwaited,
    Bug::HardStateLost,
];

/// Which faults a run meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Those that one node promises to survive.
    Promised,
    /// Wrong bytes in what was durable, too: then a start may refuse, but never lose silently.
    Beyond,
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything else follows from it.
    pub seed: u64,
    /// Nodes of the cluster.
    pub nodes: u16,
    /// Its faults.
    pub mode: Mode,
    /// Whether links between nodes lose and repeat single messages.
    pub lossy: bool,
    /// The planted bug, if any.
    pub bug: Option<Bug>,
    /// Only what the clients saw is judged: what the oracle finds is no failure.
    pub blind: bool,
    /// Virtual time with faults; after it they stop, and everything must come to rest.
    pub faults_nanos: u64,
}

impl Options {
    /// A run of the usual length.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: 1,
            mode: Mode::Promised,
            lossy: false,
            bug: None,
            blind: false,
            faults_nanos: 3 * SECOND,
        }
    }

    /// A run of a cluster.
    pub fn cluster(seed: u64, nodes: u16) -> Self {
        assert!(nodes > 1, "a cluster has nodes");
        Self { nodes, faults_nanos: 5 * SECOND, ..Self::new(seed) }
    }
}

/// Sizes and rates, drawn small so that limits are met.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Nodes of the cluster.
    pub nodes: u16,
    /// Shards of a node.
    pub shards: u16,
    /// Log sizes.
    pub geometry: Geometry,
    /// Log writes in flight.
    pub in_flight_max: usize,
    /// See `LogWriterOptions`.
    pub batch_bytes_wait: usize,
    /// See `LogWriterOptions`.
    pub watermark_idle_nanos: u64,
    /// Chunks of 256 KiB per shard.
    pub chunks: usize,
    /// Hand-overs in flight per shard.
    pub handovers_max: u64,
    /// Frames of one turn.
    pub turn_frames: usize,
    /// Clients with a session, per shard.
    pub workers: u16,
    /// Accounts in all.
    pub accounts: i64,
    /// Transactions of a frame at most.
    pub frame_transactions: u64,
    /// Frames a client has in flight at most.
    pub client_frames: usize,
    /// Typical latency of a disk write.
    pub disk_nanos: u64,
    /// Typical latency of the network.
    pub network_nanos: u64,
    /// Typical time between two frames of a client.
    pub think_nanos: u64,
    /// Typical time between power losses.
    pub crash_nanos: u64,
    /// Typical time between lost connections.
    pub reset_nanos: u64,
    /// One write in so many fails; 0: none.
    pub write_error_in: u64,
    /// Memory for entries in flight.
    pub slots_bytes: usize,
    /// Length of the state machine's tick.
    pub tick_nanos: u64,
    /// How far the clock of each node is ahead, microseconds.
    pub skews_micros: Vec<u64>,
    /// Typical latency between nodes.
    pub peer_nanos: u64,
    /// One message between nodes in so many is lost, and its link with it, or if links are lossy
    /// that message alone, and one in so many doubled; 0: none.
    pub peer_loss_in: u64,
    /// Typical time between two cuts between nodes, and of a cut.
    pub cut_nanos: u64,
}

impl Sizes {
    /// Draws them.
    pub fn draw(draw: &mut Draw, nodes: u16) -> Self {
        let alone = nodes == 1;
        // Nothing raises the floor yet: a small log fills, and is full from then on.
        let log_small = draw.once_in(4);
        let geometry = Geometry {
            block_bytes: draw.pick(&[512, 512, 4096]),
            segment_bytes: draw.pick(&[256 << 10, 320 << 10]),
            segments_count: if log_small { draw.range(6, 10) } else { draw.range(40, 80) } as u32,
            partitions: draw.pick(&[8, 16, 32]),
            batch_bytes_max: 48 << 10,
        };
        let latencies =
            if alone { [20_000, 200_000, 2_000_000] } else { [20_000, 100_000, 500_000] };
        Self {
            nodes,
            shards: if alone { draw.range(1, 5) } else { draw.range(1, 4) } as u16,
            geometry,
            in_flight_max: draw.range(1, 5) as usize,
            batch_bytes_wait: draw.pick(&[1, 512, 4096, 16 << 10]),
            watermark_idle_nanos: draw.pick(&[200_000, 2_000_000, 20_000_000]),
            chunks: if alone { draw.pick(&[6, 8, 20, 40]) } else { draw.pick(&[20, 40]) },
            handovers_max: draw.range(1, 9),
            turn_frames: draw.range(1, 9) as usize,
            workers: draw.range(1, 4) as u16,
            accounts: draw.range(4, 60) as i64,
            frame_transactions: draw.range(1, 9),
            client_frames: draw.range(1, 6) as usize,
            disk_nanos: draw.pick(&latencies),
            network_nanos: draw.pick(&latencies),
            think_nanos: draw.pick(&[200_000, 2_000_000, 10_000_000]),
            crash_nanos: draw.pick(&[100_000_000, 300_000_000, 900_000_000])
                * if alone { 1 } else { 2 },
            reset_nanos: draw.pick(&[20_000_000, 100_000_000, 500_000_000]),
            write_error_in: draw.pick(&[0, 0, 200, 1000]),
            slots_bytes: draw.pick(&[1 << 20, 3 << 19]),
            tick_nanos: if alone { 10_000_000 } else { draw.pick(&[1_000_000, 2_000_000]) },
            skews_micros: (0..nodes).map(|node| u64::from(node) * draw.below(100_000)).collect(),
            peer_nanos: draw.pick(&[20_000, 100_000, 500_000]),
            peer_loss_in: draw.pick(&[0, 0, 50, 500]),
            cut_nanos: draw.pick(&[50_000_000, 200_000_000, 600_000_000]),
        }
    }
}
