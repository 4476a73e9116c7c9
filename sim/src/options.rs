//! What a run is made of, drawn from its seed.

use std::collections::BTreeSet;

use spillway_runtime::faults::Point;
use spillway_updateserver::log::Geometry;

pub use crate::bug::Bug;
use crate::draw::Draw;
use crate::plan::FaultKinds;

/// One second of virtual time.
pub const SECOND: u64 = 1_000_000_000;

/// Which faults a run meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Those that one node promises to survive.
    Promised,
    /// Wrong bytes in what was durable, too: then a start may refuse, but never lose silently.
    Beyond,
}

/// A run.
#[derive(Clone, Debug)]
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
    /// Kinds of faults instead of those that the seed draws.
    pub kinds: Option<FaultKinds>,
    /// Kinds of faults that are left out; all others stay where they are.
    pub kinds_off: FaultKinds,
    /// Faults that are left out, by their number in [`crate::plan::plan`]; all others stay where
    /// they are.
    pub faults_skipped: BTreeSet<u64>,
    /// The faults end, and with them the clients' work, before their time: the plan is the same.
    pub until_nanos: Option<u64>,
    /// No point in the product forces anything.
    pub points_off: bool,
    /// Points in the product that force nothing; all others do what they did.
    pub points_disarmed: BTreeSet<Point>,
    /// Other chance around the same plan and the same sizes.
    pub salt: u64,
    /// Fewer clients than the seed draws.
    pub workers_max: Option<u16>,
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
            kinds: None,
            kinds_off: FaultKinds::NONE,
            faults_skipped: BTreeSet::new(),
            until_nanos: None,
            points_off: false,
            points_disarmed: BTreeSet::new(),
            salt: 0,
            workers_max: None,
        }
    }

    /// A run of a cluster.
    pub fn cluster(seed: u64, nodes: u16) -> Self {
        assert!(nodes > 1, "a cluster has nodes");
        Self { nodes, faults_nanos: 5 * SECOND, ..Self::new(seed) }
    }

    /// When faults and work end.
    pub fn faults_end(&self) -> u64 {
        self.until_nanos.map_or(self.faults_nanos, |until| until.min(self.faults_nanos))
    }

    /// What all chance follows from that neither plans nor sizes.
    pub fn chance(&self) -> u64 {
        self.seed ^ self.salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The same run over so many seconds of virtual time.
    #[must_use]
    pub fn seconds(self, seconds: u64) -> Self {
        assert!((1..=60).contains(&seconds), "sizes are drawn for 1 to 60 seconds");
        Self { faults_nanos: seconds * SECOND, ..self }
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
    /// Clients that read only, at any node, what may be old.
    pub readers: u16,
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
    /// Memory for entries in flight.
    pub slots_bytes: usize,
    /// Length of the state machine's tick.
    pub tick_nanos: u64,
    /// How far the clock of each node is ahead, microseconds.
    pub skews_micros: Vec<u64>,
    /// Typical latency between nodes.
    pub peer_nanos: u64,
}

impl Sizes {
    /// Draws them.
    pub fn draw(draw: &mut Draw, options: &Options) -> Self {
        let nodes = options.nodes;
        let alone = nodes == 1;
        // Nothing raises the floor yet: a small log fills, and is full from then on.
        let log_small = draw.once_in(4);
        // A long run has about as much work as one of ten seconds, over a longer time: every
        // restart reads the whole log.
        let stretch = options.faults_nanos.div_ceil(10 * SECOND).max(1);
        let geometry = Geometry {
            block_bytes: draw.pick(&[512, 512, 4096]),
            segment_bytes: draw.pick(&[256 << 10, 320 << 10]),
            segments_count: if log_small { draw.range(6, 10) } else { draw.range(40, 80) } as u32
                * if stretch > 1 { 2 } else { 1 },
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
            workers: (draw.range(1, 4) as u16).min(options.workers_max.unwrap_or(u16::MAX)),
            accounts: draw.range(4, 60) as i64,
            frame_transactions: draw.range(1, 9),
            client_frames: draw.range(1, 6) as usize,
            disk_nanos: draw.pick(&latencies),
            network_nanos: draw.pick(&latencies),
            think_nanos: draw.pick(&[200_000, 2_000_000, 10_000_000]) * stretch,
            slots_bytes: draw.pick(&[1 << 20, 3 << 19]),
            tick_nanos: if alone { 10_000_000 } else { draw.pick(&[1_000_000, 2_000_000]) }
                * stretch.min(3),
            skews_micros: (0..nodes).map(|node| u64::from(node) * draw.below(100_000)).collect(),
            peer_nanos: draw.pick(&[20_000, 100_000, 500_000]),
            readers: if alone { 0 } else { draw.below(4) as u16 },
        }
    }
}
