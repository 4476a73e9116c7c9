//! Long runs in one lifetime of a cluster: nodes are killed under load again and again.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use spillway_runtime::clock::wall_now_micros;

use crate::arguments::BurstArguments;
use crate::error::PerfError;
use crate::identity::{Draw, mix};
use crate::script::{Field, Script};

/// Bytes that one transaction leaves in the log.
const BYTES_PER_TRANSACTION: f64 = 300.0;
/// Bytes that one frame costs there besides: it is often a batch of its own, with blocks that it
/// does not fill, and one that follows when nothing else does.
const BYTES_PER_FRAME: f64 = 16_384.0;
/// The load lasts as long as the script, which gives up much sooner than this.
const SECONDS_MAX: f64 = 1e6;

/// The load under a long run. It is paced, for it must fit into the log.
#[derive(Clone, Debug, clap::Args)]
pub struct LongLoadArguments {
    /// Nodes of the cluster: 3 or 5.
    #[arg(long, default_value_t = 3)]
    pub nodes: u16,
    /// Transactions per frame.
    #[arg(long, default_value_t = 10)]
    pub batch: usize,
    /// Connections, each with a session of its own.
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    /// Unanswered frames per connection at most.
    #[arg(long, default_value_t = 4)]
    pub in_flight: usize,
    /// Accounts of the transfer workload, 1,000 to a branch.
    #[arg(long, default_value_t = 10_000)]
    pub accounts: u64,
    /// Shards of each node.
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// Everything that is drawn follows from it. Default: another one each time; it is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where to put the nodes' directories. Default: the system's temporary directory.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Keep the nodes' directories.
    #[arg(long)]
    pub keep: bool,
    /// Size of each node's log, GiB. Default: estimated from rate and number of kills.
    #[arg(long)]
    pub log_gib: Option<f64>,
    /// Memory budget of each node, GiB. Default: 60 % of what is available, shared by all.
    #[arg(long)]
    pub memory_gib: Option<f64>,
    /// Write the result as JSON to this file; `-` is the standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl LongLoadArguments {
    /// The burst that this load is: transfers at `rate` per second for about `seconds`.
    fn burst(&self, rate: f64, seconds: f64) -> Result<BurstArguments, PerfError> {
        #[derive(Parser)]
        struct Defaults {
            #[command(flatten)]
            burst: BurstArguments,
        }
        if self.nodes < 3 {
            let text = format!("--nodes {}: kills need 3 or 5", self.nodes);
            return Err(PerfError::Options(text));
        }
        let defaults = Defaults::parse_from(["burst"]).burst;
        let load_bytes = self.accounts as f64 * 120.0;
        let per_transaction = BYTES_PER_TRANSACTION + BYTES_PER_FRAME / self.batch.max(1) as f64;
        let log_bytes = rate * seconds * per_transaction + load_bytes;
        let log_gib = log_bytes / f64::from(1 << 30) + 0.5;
        Ok(BurstArguments {
            nodes: self.nodes,
            batch: self.batch,
            connections: self.connections,
            in_flight: self.in_flight,
            accounts: self.accounts,
            shards: self.shards,
            seed: Some(self.seed.unwrap_or_else(|| mix(wall_now_micros()) >> 16)),
            dir: self.dir.clone(),
            keep: self.keep,
            log_gib: self.log_gib.or(Some(log_gib)),
            memory_gib: self.memory_gib,
            rate,
            ramp: 0.5,
            hold: SECONDS_MAX,
            fall: 0.0,
            ..defaults
        })
    }
}

/// What can be chosen about take-overs.
#[derive(Clone, Debug, clap::Args)]
pub struct TakeoverArguments {
    /// How often the leader is killed.
    #[arg(long, default_value_t = 50)]
    pub times: u32,
    /// How often it is asked to hand over. Default: as often as it is killed.
    #[arg(long)]
    pub transfers: Option<u32>,
    /// Offered transactions per second.
    #[arg(long, default_value_t = 10_000.0)]
    pub rate: f64,
    /// The load.
    #[command(flatten)]
    pub load: LongLoadArguments,
}

/// Seconds that one kill of the leader takes, on the high side: the estimate of the log's size.
const TAKEOVER_SECONDS: f64 = 3.0;
/// The same of a hand-over.
const TRANSFER_SECONDS: f64 = 0.6;

impl TakeoverArguments {
    fn transfers(&self) -> u32 {
        self.transfers.unwrap_or(self.times)
    }

    /// The burst under which all that happens.
    pub fn burst(&self) -> Result<BurstArguments, PerfError> {
        let seconds = f64::from(self.times) * TAKEOVER_SECONDS
            + f64::from(self.transfers()) * TRANSFER_SECONDS;
        self.load.burst(self.rate, seconds + 5.0)
    }

    /// Kills the leader, then lets it hand over, each so many times.
    pub fn script(&self) -> Script {
        let (times, transfers) = (self.times, self.transfers());
        Box::new(move |field| {
            field.progress_wait()?;
            for kill in 1..=times {
                field.sleep(Duration::from_millis(300))?;
                field.leader_kill()?;
                field.say(format!("leader killed: {kill} of {times}"));
            }
            for _ in 0..transfers {
                field.sleep(Duration::from_millis(200))?;
                field.hand_over()?;
            }
            field.caught_up_wait()
        })
    }
}

/// What can be chosen about random kills.
#[derive(Clone, Debug, clap::Args)]
pub struct KillsArguments {
    /// Kills, each of a random minority of the nodes.
    #[arg(long, default_value_t = 300)]
    pub times: u32,
    /// Of these, kills of all nodes at once.
    #[arg(long, default_value_t = 30)]
    pub all_at_once: u32,
    /// Offered transactions per second.
    #[arg(long, default_value_t = 1_500.0)]
    pub rate: f64,
    /// The load.
    #[command(flatten)]
    pub load: LongLoadArguments,
}

/// Seconds that one random kill takes, on the high side: the estimate of the log's size.
const KILL_SECONDS: f64 = 4.0;

impl KillsArguments {
    /// The burst under which all that happens. Its seed is chosen.
    pub fn burst(&self) -> Result<BurstArguments, PerfError> {
        if self.all_at_once > self.times {
            let text = format!("--all-at-once {} of --times {}", self.all_at_once, self.times);
            return Err(PerfError::Options(text));
        }
        self.load.burst(self.rate, f64::from(self.times) * KILL_SECONDS + 5.0)
    }

    /// Kills as `seed` says.
    pub fn script(&self, seed: u64) -> Script {
        let kills = draw_kills(self.times, self.all_at_once, usize::from(self.load.nodes), seed);
        Box::new(move |field| {
            field.progress_wait()?;
            let count = kills.len();
            for (at, kill) in kills.iter().enumerate() {
                kill.carry_out(field)?;
                if (at + 1) % 10 == 0 {
                    field.say(format!("killed {} times of {count}", at + 1));
                }
            }
            field.caught_up_wait()
        })
    }
}

/// One kill.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kill {
    /// Load before it.
    wait: Duration,
    nodes: Vec<usize>,
    /// How long they stay down.
    down: Duration,
    /// Whether the next kill waits until they have caught up, or only until commits go on.
    is_patient: bool,
}

impl Kill {
    fn carry_out(&self, field: &mut Field<'_>) -> Result<(), PerfError> {
        field.sleep(self.wait)?;
        field.kill(&self.nodes)?;
        field.sleep(self.down)?;
        field.restart()?;
        field.progress_wait()?;
        if self.is_patient { field.caught_up_wait() } else { Ok(()) }
    }
}

/// `times` kills, `all_at_once` of them of all nodes, spread evenly at random.
fn draw_kills(times: u32, all_at_once: u32, nodes: usize, seed: u64) -> Vec<Kill> {
    let mut draw = Draw::new(seed, 0x4B11);
    let mut ms = |limit| Duration::from_millis(draw.below(limit));
    let mut kills: Vec<Kill> = (0..times)
        .map(|_| Kill {
            wait: ms(700),
            nodes: (0..nodes).collect(),
            down: ms(400),
            is_patient: ms(2).is_zero(),
        })
        .collect();
    let mut left = all_at_once;
    for (at, kill) in kills.iter_mut().enumerate() {
        // Selection sampling: exactly so many, every choice as likely as any other.
        if draw.below(u64::from(times) - at as u64) < u64::from(left) {
            left -= 1;
            continue;
        }
        let minority = nodes.div_ceil(2) - 1;
        let count = 1 + draw.below(minority as u64) as usize;
        while kill.nodes.len() > count {
            kill.nodes.remove(draw.below(kill.nodes.len() as u64) as usize);
        }
    }
    kills
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    struct Line<A: clap::Args> {
        #[command(flatten)]
        arguments: A,
    }

    #[test]
    fn long_runs_are_bursts() {
        let words = ["takeover", "--times", "10", "--transfers", "0", "--rate", "1000"];
        let arguments: TakeoverArguments = Line::parse_from(words).arguments;
        let burst = arguments.burst().expect("a good line");
        burst.check().expect("a burst");
        assert_eq!((burst.nodes, burst.rate), (3, 1000.0));
        let gib = burst.log_gib.expect("estimated");
        assert!((0.5..0.7).contains(&gib), "{gib}");
        let arguments: KillsArguments = Line::parse_from(["kills", "--seed", "5"]).arguments;
        let burst = arguments.burst().expect("a good line");
        burst.check().expect("a burst");
        assert_eq!((arguments.times, arguments.all_at_once, burst.seed), (300, 30, Some(5)));
        let line = ["kills", "--times", "2", "--all-at-once", "3"];
        let arguments: KillsArguments = Line::parse_from(line).arguments;
        arguments.burst().expect_err("more than all");
        let arguments: KillsArguments = Line::parse_from(["kills", "--nodes", "1"]).arguments;
        arguments.burst().expect_err("nobody takes over");
    }

    #[test]
    fn kills_are_as_many_as_asked_for_and_of_minorities() {
        for (nodes, minority) in [(3, 1), (5, 2)] {
            let kills = draw_kills(300, 30, nodes, 7);
            assert_eq!(kills.len(), 300);
            let all = kills.iter().filter(|kill| kill.nodes.len() == nodes).count();
            assert_eq!(all, 30);
            for node in 0..nodes {
                assert!(kills.iter().any(|kill| kill.nodes == [node]), "{node} of {nodes}");
            }
            let counts = kills.iter().map(|kill| kill.nodes.len());
            assert!(counts.filter(|count| *count < nodes).all(|count| count <= minority));
            assert_eq!(kills, draw_kills(300, 30, nodes, 7), "the seed decides");
            assert_ne!(kills, draw_kills(300, 30, nodes, 8));
        }
    }
}
