//! A verified load over nodes whose disks are ours.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use spillway_net::message::ClusterReport;
use spillway_perf::identity::{Draw, mix};
use spillway_perf::script::{Field, Script};
use spillway_perf::{BurstArguments, BurstOptions, BurstReport, PerfError, Topology, burst_with};
use spillway_perf::{cluster::Cluster, probe};
use spillway_runtime::clock::{MonotonicNanos, monotonic_now, wall_now_micros};
use spillway_runtime::{file, thread};

use crate::disk::Counters;
use crate::error::RigError;
use crate::file_system::Disks;
use crate::mount::Mount;
use crate::order::Order;

/// Bytes that one transaction leaves in the log, its share of a frame included, on the high side.
const LOG_BYTES_PER_TRANSACTION: f64 = 2_000.0;
/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a node that says that its log failed is given to end by itself.
const END_WAIT: Duration = Duration::from_secs(3);
/// How often somebody who waits looks again.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// What can be chosen about every rig.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArguments {
    /// Nodes: 1, 3 or 5. Default: what suits the rig.
    #[arg(long)]
    pub nodes: Option<u16>,
    /// How often it is done. Default: as often as suits the rig.
    #[arg(long)]
    pub times: Option<u32>,
    /// Everything that is drawn follows from it. Default: another one each time; it is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Offered transactions per second.
    #[arg(long, default_value_t = 1_500.0)]
    pub rate: f64,
    /// Transactions per frame.
    #[arg(long, default_value_t = 10)]
    pub batch: usize,
    /// Accounts of the transfer workload, 1,000 to a branch.
    #[arg(long, default_value_t = 3_000)]
    pub accounts: u64,
    /// Shards of each node.
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// Size of each node's log, GiB. Default: estimated.
    #[arg(long)]
    pub log_gib: Option<f64>,
    /// Memory budget of each node, GiB.
    #[arg(long, default_value_t = 0.5)]
    pub memory_gib: f64,
    /// Nodes make each write durable by itself (RWF_DSYNC) instead of by a flush behind it.
    #[arg(long)]
    pub synced: bool,
    /// Where to put the nodes' directories. Default: the system's temporary directory.
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// The programs that a rig runs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `spillway`.
    pub node: PathBuf,
    /// `spillway-rigs`.
    pub rigs: PathBuf,
}

impl Programs {
    /// The node that SPILLWAY names, or the one beside this program.
    ///
    /// # Errors
    /// If there is none.
    pub fn find() -> Result<Self, RigError> {
        let rigs = std::env::current_exe().map_err(RigError::system("finding this program"))?;
        let beside = rigs.with_file_name("spillway");
        let node = std::env::var_os("SPILLWAY").map_or(beside, PathBuf::from);
        if !file::exists(&node) {
            let node = node.display();
            let text = format!("{node} is missing: build it, or name it with SPILLWAY");
            return Err(RigError::Options(text));
        }
        Ok(Self { node, rigs })
    }
}

/// What a rig came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether the nodes kept what they promise.
    pub is_good: bool,
    /// The result in one line.
    pub line: String,
    /// The load's own account.
    pub report: BurstReport,
}

/// Nodes, disks and a load, made ready.
pub struct Stage {
    name: &'static str,
    arguments: LoadArguments,
    /// How many nodes there are.
    pub nodes: usize,
    /// How often the rig does what it does.
    pub times: u32,
    /// Everything that is drawn follows from it.
    pub seed: u64,
    /// What goes wrong where.
    pub mount: Mount,
    program: PathBuf,
}

impl Stage {
    /// Mounts the disks; `nodes` and `times` are what suits the rig.
    ///
    /// # Errors
    /// [`RigError::NoFuse`] on machines without.
    pub fn new(
        name: &'static str,
        arguments: &LoadArguments,
        programs: &Programs,
        (nodes, times): (u16, u32),
    ) -> Result<Self, RigError> {
        let seed = arguments.seed.unwrap_or_else(|| mix(wall_now_micros()) >> 16);
        let nodes = usize::from(arguments.nodes.unwrap_or(nodes));
        let times = arguments.times.unwrap_or(times);
        let mount = Mount::new(arguments.dir.as_deref(), nodes, seed)?;
        let program = program(&mount, programs, arguments.synced)?;
        eprintln!("rig {name}: seed {seed} (repeat: {})", repeat_line(name, seed));
        let arguments = arguments.clone();
        Ok(Self { name, arguments, nodes, times, seed, mount, program })
    }

    /// Runs a load for as long as the script lasts, about `seconds`, and verifies everything.
    ///
    /// # Errors
    /// If it could not be run to its end.
    pub fn play(&self, seconds: f64, script: Script) -> Result<BurstReport, RigError> {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            burst: BurstArguments,
        }
        let LoadArguments { rate, batch, accounts, shards, memory_gib, .. } = self.arguments;
        let bytes = rate * seconds * LOG_BYTES_PER_TRANSACTION;
        let gib = self.arguments.log_gib.unwrap_or(0.25 + bytes / f64::from(1 << 30));
        let connections = 4.max(shards);
        let line = format!(
            "burst --nodes {} --seed {} --rate {rate} --batch {batch} --connections {connections} \
             --in-flight 4 --accounts {accounts} --shards {shards} --log-gib {gib} \
             --memory-gib {memory_gib} --ramp 0.1 --hold 1000000 --fall 0",
            self.nodes, self.seed
        );
        let parsed = Line::try_parse_from(line.split_whitespace());
        let arguments = parsed.map_err(|error| RigError::Options(error.to_string()))?.burst;
        let arguments = BurstArguments { dir: Some(self.mount.path()), ..arguments };
        let program = self.program.clone();
        let options = BurstOptions { program, topology: Topology::default(), arguments };
        Ok(burst_with(&options, script)?)
    }

    /// The outcome of a load in which `what` was done.
    pub fn outcome(&self, report: BurstReport, is_good: bool, what: &str) -> Outcome {
        let found = &report.verification;
        let good = is_good && report.is_good() && found.acknowledged > 0;
        let verdict = if good { "good" } else { "BAD" };
        let differing = report.agreement.as_ref().map_or(0, |all| all.findings.len());
        let line = format!(
            "rig {}: {verdict}: {what}; {} acknowledged, {} lost, {} twice or foreign, {} damaged, \
             {} imbalanced, {differing} differing nodes; seed {}",
            self.name,
            found.acknowledged,
            found.lost,
            found.foreign,
            found.damaged,
            found.imbalanced,
            self.seed
        );
        Outcome { is_good: good, line, report }
    }

    /// What happened to all disks together.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for disk in 0..self.nodes {
            let one = self.mount.disks().counters(disk);
            sum.cuts += one.cuts;
            sum.unanswered += one.unanswered;
            sum.sectors_lost += one.sectors_lost;
            sum.sectors_kept += one.sectors_kept;
            sum.writes += one.writes;
            sum.writes_synced += one.writes_synced;
            sum.flushes += one.flushes;
            sum.faults += one.faults;
        }
        sum
    }
}

/// The arguments of this process, with the seed.
fn repeat_line(name: &str, seed: u64) -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let is_ours = words.first().is_some_and(|word| word == name);
    let mut line = "cargo xtask rig".to_owned();
    let words = if is_ours { words } else { vec![name.to_owned()] };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => drop(words.next()),
            word if word.starts_with("--seed=") => {}
            word => line = format!("{line} {word}"),
        }
    }
    format!("{line} --seed {seed}")
}

/// What is run as the node: a copy, for a build may replace the original under a long run.
fn program(mount: &Mount, programs: &Programs, is_synced: bool) -> Result<PathBuf, RigError> {
    let copy = mount.beside().join("spillway");
    install(&programs.node, &copy)?;
    if !is_synced {
        return Ok(copy);
    }
    let (text, script) = (mount.beside().join("synced.txt"), mount.beside().join("synced.sh"));
    let (node, rigs) = (copy.display(), programs.rigs.display());
    let lines = format!(
        "#!/bin/sh\nif [ \"$1\" = format ]; then\n  '{node}' \"$@\" || exit\n  \
         exec '{rigs}' synced \"$3\"\nfi\nexec '{node}' \"$@\"\n"
    );
    file::write_atomic(&text, lines.as_bytes())?;
    install(&text, &script)?;
    Ok(script)
}

/// Makes an executable copy. Another process does it: what this one has open to be written, a
/// child that it starts at the same moment has too, and nobody could execute it.
fn install(from: &Path, to: &Path) -> Result<(), RigError> {
    let output = Command::new("install").args(["-m", "755", "--"]).arg(from).arg(to).output();
    let output = output.map_err(RigError::system("running `install`"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(RigError::Options(format!("copying {}: {text}", from.display())))
}

/// A refusal within a script.
pub fn refuse(error: RigError) -> PerfError {
    match error {
        RigError::Perf(error) => error,
        other => PerfError::Refused(other.to_string()),
    }
}

/// What a script has counted, for whoever started it.
pub type Tally<T> = Arc<Mutex<T>>;

/// Changes what was counted.
pub fn tally<T>(tally: &Tally<T>, change: impl FnOnce(&mut T)) {
    change(&mut tally.lock().expect("nobody panics with it"));
}

/// What was counted.
pub fn tallied<T: Clone>(tally: &Tally<T>) -> T {
    tally.lock().expect("nobody panics with it").clone()
}

/// The power of these nodes goes in one moment: first the disks', so that nothing that is said
/// afterwards was made durable afterwards.
pub fn power_off(
    field: &mut Field<'_>,
    disks: &Disks,
    nodes: &[usize],
    kind: &'static str,
) -> Result<(), PerfError> {
    disks.cut(nodes);
    let at = kill_up(field.cluster, nodes)?;
    field.note(kind, nodes, at);
    Ok(())
}

/// Waits until `question` has an answer; `cluster` must stay alive meanwhile.
pub fn wait<R>(
    cluster: &mut Cluster,
    what: &'static str,
    mut question: impl FnMut(&Cluster) -> Option<R>,
) -> Result<R, PerfError> {
    let began = monotonic_now();
    loop {
        if let Some(answer) = question(cluster) {
            return Ok(answer);
        }
        cluster.check_alive()?;
        if monotonic_now().saturating_since(began) > PATIENCE {
            let (seconds, tail) = (PATIENCE.as_secs(), cluster.tails());
            return Err(PerfError::TimedOut { what, seconds, tail });
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// How a node sees the cluster; none if it does not answer.
pub fn report_of(cluster: &Cluster, node: usize) -> Option<ClusterReport> {
    probe::cluster(cluster.address(node)).ok()
}

/// Whether a node says that its log has failed; none if it does not answer.
pub fn log_failed(cluster: &Cluster, node: usize) -> Option<bool> {
    let numbers = probe::status(cluster.address(node)).ok()?;
    Some(numbers.get("log_failed").copied() == Some(1))
}

/// A node whose log has failed.
pub struct Fenced {
    /// When it said so, or had ended.
    pub at: MonotonicNanos,
    /// Whether it has ended, and is down.
    pub has_ended: bool,
}

/// Waits until a node whose log has failed says so, and a little for it to end by itself.
pub fn fence_wait(cluster: &mut Cluster, node: usize) -> Result<Fenced, PerfError> {
    let began = monotonic_now();
    let mut said: Option<MonotonicNanos> = None;
    loop {
        let now = monotonic_now();
        match cluster.is_ready(node) {
            Ok(_) if said.is_none() && log_failed(cluster, node) == Some(true) => {
                said = Some(monotonic_now());
            }
            Ok(_) => {}
            Err(error @ PerfError::Node { .. }) => {
                cluster.bury(&[node])?;
                let is_told = cluster.tail(node).contains("the log device failed");
                let at = said.unwrap_or(now);
                return if is_told { Ok(Fenced { at, has_ended: true }) } else { Err(error) };
            }
            Err(other) => return Err(other),
        }
        if let Some(at) = said.filter(|at| now.saturating_since(*at) > END_WAIT) {
            return Ok(Fenced { at, has_ended: false });
        }
        if now.saturating_since(began) > PATIENCE {
            let (seconds, tail) = (PATIENCE.as_secs(), cluster.tails());
            let what = "the node's word that its log failed";
            return Err(PerfError::TimedOut { what, seconds, tail });
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Kills those of the nodes that are still up.
pub fn kill_up(cluster: &mut Cluster, nodes: &[usize]) -> Result<MonotonicNanos, PerfError> {
    let up: Vec<usize> = nodes.iter().copied().filter(|node| cluster.is_up(*node)).collect();
    cluster.kill(&up)
}

/// Milliseconds since a moment of the monotonic clock.
pub fn millis_since(nanos: u64) -> f64 {
    monotonic_now().saturating_nanos_since(MonotonicNanos(nanos)) as f64 / 1e6
}

/// One of the nodes: the leader, or a follower.
pub fn target(field: &mut Field<'_>, draw: &mut Draw, is_leader: bool) -> Result<usize, PerfError> {
    let leader = field.cluster.leader_wait()?;
    let nodes = field.cluster.len();
    if is_leader || nodes == 1 {
        return Ok(leader);
    }
    Ok((leader + 1 + draw.below(nodes as u64 - 1) as usize) % nodes)
}

/// An order that cannot fail for lack of anything but a disk.
pub fn order(disks: &Disks, node: usize, order: Order) -> Result<(), PerfError> {
    disks.order(node, order).map_err(refuse)
}
