//! The command line of a burst.

use std::path::PathBuf;

use crate::error::PerfError;
use crate::identity::{CONNECTIONS_MAX, IdOrder};
use crate::schedule::Phases;
use crate::workload::{WorkloadKind, WorkloadOptions};
use spillway_net::limits::{FRAME_TRANSACTIONS_MAX, SESSION_FRAMES_IN_FLIGHT_MAX};

/// What can be chosen about a burst.
#[derive(Clone, Debug, clap::Args)]
pub struct BurstArguments {
    /// Nodes of the cluster under test.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1))]
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
    /// Where to put the node's directories. Default: the system's temporary directory. What the
    /// burst created there is removed at the end.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Keep the node's directories.
    #[arg(long)]
    pub keep: bool,
    /// Size of the log, GiB. Default: estimated from rate and length.
    #[arg(long)]
    pub log_gib: Option<f64>,
    /// Memory budget of the node, GiB. Default: 60 % of what is available.
    #[arg(long)]
    pub memory_gib: Option<f64>,
    /// Shards of the node.
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// Bind the generator to one CPU and the node to the others. Default: with three or more.
    #[arg(long, overrides_with = "no_pin")]
    pub pin: bool,
    /// Let the kernel place node and generator.
    #[arg(long)]
    pub no_pin: bool,
    /// Kill the node so many seconds after the load began, wherever it is then.
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_kill")]
    pub kill_after: Option<f64>,
    /// Do not kill: let all answers come in, verify, and stop the node in an orderly way.
    #[arg(long)]
    pub no_kill: bool,
    /// Microseconds of the grid that arrivals fall on when --rate is given: what is due together
    /// is sent together.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 100)]
    pub arrival_grid: u64,
    /// Write the result as JSON to this file; `-` is the standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// A burst: what was chosen, and the binary to start nodes with.
#[derive(Clone, Debug)]
pub struct BurstOptions {
    /// The `spillway` binary.
    pub program: PathBuf,
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
        for (name, value) in [
            ("rate", self.rate),
            ("ramp", self.ramp),
            ("hold", self.hold),
            ("fall", self.fall),
            ("kill-after", self.kill_after.unwrap_or(0.0)),
            ("log-gib", self.log_gib.unwrap_or(1.0)),
            ("memory-gib", self.memory_gib.unwrap_or(1.0)),
        ] {
            if !value.is_finite() || !(0.0..=1e9).contains(&value) {
                return wrong(format!("--{name} {value}: a number from 0"));
            }
        }
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
        ] {
            parse(line).check().expect_err(line);
        }
    }
}
