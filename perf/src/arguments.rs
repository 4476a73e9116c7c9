//! The command line of a burst.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::PerfError;
use crate::identity::{CONNECTIONS_MAX, IdOrder};
use crate::plan::Plan;
use crate::schedule::Phases;
use crate::site::Topology;
use crate::workload::{WorkloadKind, WorkloadOptions};
use spillway_net::limits::{FRAME_TRANSACTIONS_MAX, SESSION_FRAMES_IN_FLIGHT_MAX};

/// How many nodes a cluster under test may have.
pub const NODES: [u16; 3] = [1, 3, 5];

/// What can be chosen about a burst.
#[derive(Clone, Debug, clap::Args)]
pub struct BurstArguments {
    /// Nodes of the cluster under test: 1, 3 or 5, all on this machine.
    #[arg(long, default_value_t = 3)]
    pub nodes: u16,
    /// What a transaction does.
    #[arg(long, value_enum, default_value_t = WorkloadKind::Transfer)]
    pub workload: WorkloadKind,
    /// Transactions per frame.
    #[arg(long, default_value_t = 1000)]
    pub batch: usize,
    /// Connections, each with a session of its own.
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    /// Unanswered frames per connection at most.
    #[arg(long, default_value_t = 2)]
    pub in_flight: usize,
    /// Offered transactions per second at the peak; latency then counts from the intended send
    /// time. 0: as fast as the answers come back.
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// Seconds in which the load rises.
    #[arg(long, default_value_t = 2.0)]
    pub ramp: f64,
    /// Seconds at the peak; the figures are taken here.
    #[arg(long, default_value_t = 5.0)]
    pub hold: f64,
    /// Seconds in which the load falls.
    #[arg(long, default_value_t = 2.0)]
    pub fall: f64,
    /// A series of volumes (CSV lines of `timestamp,value`) whose curve the load follows: its peak
    /// becomes --rate, its span ramp + hold + fall.
    #[arg(long, value_name = "FILE.csv")]
    pub shape: Option<PathBuf>,
    /// Bytes of the value that the workload lets you choose: the memo of a transfer, the payload
    /// of an insert, a field of a record. Default: the workload's own.
    #[arg(long)]
    pub payload: Option<usize>,
    /// Accounts of the transfer workload, 1,000 to a branch.
    #[arg(long, default_value_t = 1_000_000)]
    pub accounts: u64,
    /// Let a transfer join accounts of any two branches; needs --shards 1.
    #[arg(long)]
    pub any_account: bool,
    /// Order of the ids of inserted rows.
    #[arg(long, value_enum, default_value_t = IdOrder::Random)]
    pub ids: IdOrder,
    /// Records of ycsb-a and the clusters. Default: 128 MiB of them, at most a million.
    #[arg(long)]
    pub rows: Option<u64>,
    /// Everything that is drawn follows from it. Default: another one each time; it is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where to put the nodes' directories. Default: the system's temporary directory. What the
    /// burst created there is removed at the end.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Keep the nodes' directories.
    #[arg(long)]
    pub keep: bool,
    /// Size of each node's log, GiB. Default: estimated from rate and length.
    #[arg(long)]
    pub log_gib: Option<f64>,
    /// Memory budget of each node, GiB. Default: 60 % of what is available, shared by all.
    #[arg(long)]
    pub memory_gib: Option<f64>,
    /// Shards of each node.
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// Bind the generator to one CPU and the nodes to the others. Default: with three or more.
    #[arg(long, overrides_with = "no_pin")]
    pub pin: bool,
    /// Let the kernel place nodes and generator.
    #[arg(long)]
    pub no_pin: bool,
    /// Kill all nodes so many seconds after the load began, wherever it is then, and start them
    /// again. A single node is killed at the end of the load by default.
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_kill")]
    pub kill_after: Option<f64>,
    /// Do not kill a single node: let all answers come in, verify, and stop it in an orderly way.
    #[arg(long)]
    pub no_kill: bool,
    /// Kill the leader so many seconds after the load began, and start it again once another node
    /// leads. May be given several times.
    #[arg(long, value_name = "SECONDS")]
    pub kill_leader_at: Vec<f64>,
    /// Let a follower stand still: for so many seconds, so many seconds after the load began.
    #[arg(long, value_name = "SECONDS@SECONDS")]
    pub pause_follower: Vec<Pause>,
    /// Slow a follower's log disk down 100 times: for so many seconds, so many seconds after the
    /// load began. Needs root.
    #[arg(long, value_name = "SECONDS@SECONDS")]
    pub slow_follower: Vec<Pause>,
    /// Ask the leader to hand over so many seconds after the load began.
    #[arg(long, value_name = "SECONDS")]
    pub transfer_at: Vec<f64>,
    /// Microseconds of the grid that arrivals fall on when --rate is given: what is due together
    /// is sent together.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 100)]
    pub arrival_grid: u64,
    /// Write the result as JSON to this file; `-` is the standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// How long something stands still, and from when on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pause {
    /// Seconds.
    pub seconds: f64,
    /// Seconds after the load began.
    pub at: f64,
}

impl FromStr for Pause {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not two numbers of seconds such as 3@2");
        let (seconds, at) = text.split_once('@').ok_or_else(wrong)?;
        let number = |text: &str| text.parse().map_err(|_| wrong());
        Ok(Self { seconds: number(seconds)?, at: number(at)? })
    }
}

/// A burst: what was chosen, and the binary to start nodes with.
#[derive(Clone, Debug)]
pub struct BurstOptions {
    /// The `spillway` binary.
    pub program: PathBuf,
    /// How the nodes are laid out.
    pub topology: Topology,
    /// What was chosen.
    pub arguments: BurstArguments,
}

impl BurstArguments {
    /// Refuses what cannot be run, before anything is started.
    pub fn check(&self) -> Result<(), PerfError> {
        let wrong = |text: String| Err(PerfError::Options(text));
        if self.batch == 0 || self.batch > FRAME_TRANSACTIONS_MAX {
            return wrong(format!("--batch {}: 1 to {FRAME_TRANSACTIONS_MAX}", self.batch));
        }
        if self.connections == 0 || self.connections > CONNECTIONS_MAX {
            return wrong(format!("--connections {}: 1 to {CONNECTIONS_MAX}", self.connections));
        }
        let frames_max = SESSION_FRAMES_IN_FLIGHT_MAX - 1;
        if self.in_flight == 0 || self.in_flight > frames_max {
            return wrong(format!("--in-flight {}: 1 to {frames_max}", self.in_flight));
        }
        if !NODES.contains(&self.nodes) {
            return wrong(format!("--nodes {}: one of {NODES:?}", self.nodes));
        }
        for (name, value) in self.numbers() {
            if !value.is_finite() || !(0.0..=1e9).contains(&value) {
                return wrong(format!("--{name} {value}: a number from 0"));
            }
        }
        self.check_disturbance()?;
        if self.hold <= 0.0 {
            return wrong("--hold 0: the figures are taken while the load holds".to_owned());
        }
        if self.shape.is_some() && self.rate <= 0.0 {
            return wrong("--shape needs --rate: the rate at its peak".to_owned());
        }
        let frames = self.rate * self.hold / self.batch as f64;
        if self.rate > 0.0 && frames < 1.0 {
            return wrong(format!(
                "--rate {} is less than one frame of {} transactions in --hold {} s: choose a \
                 smaller --batch",
                self.rate, self.batch, self.hold
            ));
        }
        if self.arrival_grid == 0 || self.arrival_grid > 100_000 {
            return wrong(format!("--arrival-grid {}: 1 to 100000", self.arrival_grid));
        }
        if self.shards == 0 || self.connections < usize::from(self.shards) {
            return wrong(format!(
                "--shards {} with --connections {}: every shard needs a connection",
                self.shards, self.connections
            ));
        }
        Ok(())
    }

    /// Every number that must be one, by the name of its option.
    fn numbers(&self) -> Vec<(&'static str, f64)> {
        let mut numbers = vec![
            ("rate", self.rate),
            ("ramp", self.ramp),
            ("hold", self.hold),
            ("fall", self.fall),
            ("kill-after", self.kill_after.unwrap_or(0.0)),
            ("log-gib", self.log_gib.unwrap_or(1.0)),
            ("memory-gib", self.memory_gib.unwrap_or(1.0)),
        ];
        numbers.extend(self.kill_leader_at.iter().map(|at| ("kill-leader-at", *at)));
        numbers.extend(self.transfer_at.iter().map(|at| ("transfer-at", *at)));
        for (name, pauses) in
            [("pause-follower", &self.pause_follower), ("slow-follower", &self.slow_follower)]
        {
            let both = pauses.iter().flat_map(|pause| [pause.seconds, pause.at]);
            numbers.extend(both.map(|seconds| (name, seconds)));
        }
        numbers
    }

    /// Refuses what cannot be done to nodes while the load runs.
    fn check_disturbance(&self) -> Result<(), PerfError> {
        let plan = Plan::of(self);
        let Some(last_ns) = plan.last_ns() else { return Ok(()) };
        if self.nodes == 1 {
            let text = "a single node has no followers: choose --nodes 3, or --kill-after";
            return Err(PerfError::Options(text.to_owned()));
        }
        if self.kill_after.is_some() {
            let text = "--kill-after ends the load, which others are to go on under";
            return Err(PerfError::Options(text.to_owned()));
        }
        if last_ns >= self.phases().ramp_ns + self.phases().hold_ns {
            let text = "what is done to nodes must begin before the hold phase ends";
            return Err(PerfError::Options(text.to_owned()));
        }
        Ok(())
    }

    /// Whether all nodes are killed at the end of the load.
    pub fn kills_at_end(&self) -> bool {
        !self.no_kill && (self.nodes == 1 || self.kill_after.is_some())
    }

    /// Lengths of the phases.
    pub fn phases(&self) -> Phases {
        Phases::from_seconds(self.ramp, self.hold, self.fall)
    }

    /// What the workload is built from.
    pub fn workload_options(&self, seed: u64) -> WorkloadOptions {
        WorkloadOptions {
            kind: self.workload,
            accounts: self.accounts,
            any_account: self.any_account,
            ids: self.ids,
            payload: self.payload,
            rows: self.rows,
            seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        burst: BurstArguments,
    }

    fn parse(line: &str) -> BurstArguments {
        let words = std::iter::once("burst").chain(line.split_whitespace());
        Line::try_parse_from(words).expect("a good line").burst
    }

    #[test]
    fn defaults_are_sound() {
        let arguments = parse("");
        arguments.check().expect("defaults");
        assert_eq!(arguments.workload, WorkloadKind::Transfer);
        assert_eq!(arguments.batch, 1000);
    }

    #[test]
    fn what_is_done_to_nodes_is_read() {
        let arguments = parse("--kill-leader-at 3 --kill-leader-at 5 --pause-follower 1.5@4");
        arguments.check().expect("a good line");
        assert_eq!(arguments.kill_leader_at, [3.0, 5.0]);
        assert_eq!(arguments.pause_follower, [Pause { seconds: 1.5, at: 4.0 }]);
        for text in ["", "3", "3@", "@3", "a@b"] {
            text.parse::<Pause>().expect_err(text);
        }
        assert!(!arguments.kills_at_end() && parse("--nodes 1").kills_at_end());
        assert!(parse("--kill-after 2").kills_at_end());
        assert!(!parse("--nodes 1 --no-kill").kills_at_end());
    }

    #[test]
    fn every_workload_has_the_name_it_prints() {
        for name in [
            "transfer",
            "insert",
            "hot",
            "ycsb-a",
            "cluster12",
            "cluster15",
            "cluster31",
            "cluster37",
        ] {
            assert_eq!(parse(&format!("--workload {name}")).workload.name(), name);
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "--batch 0",
            "--batch 70000",
            "--connections 0",
            "--in-flight 1024",
            "--shape x.csv",
            "--hold 0",
            "--rate 10 --batch 1000",
            "--shards 9 --connections 8",
            "--arrival-grid 0",
            "--ramp NaN",
            "--nodes 2",
            "--nodes 1 --kill-leader-at 3",
            "--kill-leader-at 99",
            "--kill-leader-at 3 --kill-after 4",
            "--pause-follower 2@inf",
        ] {
            parse(line).check().expect_err(line);
        }
    }
}
