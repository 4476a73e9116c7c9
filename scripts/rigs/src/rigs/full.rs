//! Disks without room: at format, while a node serves, and where even overwriting takes room.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use spillway_perf::PerfError;
use spillway_perf::config::NodeConfig;
use spillway_perf::identity::Draw;
use spillway_perf::node::directories;
use spillway_perf::script::{Field, Script};
use spillway_runtime::clock::monotonic_now;
use spillway_runtime::{file, thread};

use crate::disk::{Effect, Fault, Operation, Part, When};
use crate::error::RigError;
use crate::file_system::Disks;
use crate::load::{
    LoadArguments, Outcome, Programs, Stage, Tally, fence_wait, kill_up, log_failed, order,
    tallied, tally, target,
};
use crate::mount::Mount;
use crate::order::Order;

/// What can be chosen about full disks.
#[derive(Clone, Debug, clap::Args)]
pub struct FullArguments {
    /// The load.
    #[command(flatten)]
    pub load: LoadArguments,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    growth: u32,
    one: u32,
    all: u32,
    /// Transactions acknowledged while no node could write.
    acknowledged_full: u64,
}

/// How long a majority may take to fail.
const FAILED_MAX: Duration = Duration::from_secs(60);
/// Bytes of the log of the node that is formatted without room.
const FORMAT_LOG_BYTES: u64 = 64 << 20;

/// A format without room says how much is missing and leaves nothing; with room it works.
fn format(mount: &Mount, program: &Path) -> Result<(), RigError> {
    let home = mount.path().join("format").join("node-1");
    let [directory_log, directory_data] = directories(&home);
    file::create_dir_all(&home)?;
    let config = NodeConfig {
        id: 1,
        directory_log: &directory_log,
        directory_data: &directory_data,
        listen: "127.0.0.1:0".parse().expect("an address"),
        shards: 1,
        log_bytes: FORMAT_LOG_BYTES,
        segment_bytes: 8 << 20,
        memory_bytes: 256 << 20,
        cluster: None,
        extra: "",
    };
    let path = home.join("node.toml");
    file::write_atomic(&path, config.text().as_bytes())?;
    let format = || {
        let mut command = Command::new(program);
        command.arg("format").arg("--config").arg(&path).output()
    };
    let wrong = |text: &str| Err(RigError::Options(text.to_owned()));
    for room in [0, 4 << 20, FORMAT_LOG_BYTES - 1] {
        mount.disks().order(0, Order::Room(Some(room)))?;
        let output = format().map_err(RigError::system("running the node's format"))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() || !text.contains("bytes needed") {
            return wrong(&format!("with room for {room} bytes the format said: {text:?}"));
        }
        if file::exists(&directory_log.join("superblock")) {
            return wrong("a format without room left a superblock");
        }
    }
    mount.disks().order(0, Order::Room(None))?;
    let output = format().map_err(RigError::system("running the node's format"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return wrong(&format!("with room again the format said: {text:?}"));
    }
    Ok(file::remove_dir_all(&home)?)
}

fn no_room() -> Fault {
    Fault {
        operation: Operation::Write,
        part: Some(Part::Segments),
        effect: Effect::Error(libc::ENOSPC),
        when: When::From(1),
    }
}

/// No file may grow: a log that was written out at format does not need to.
fn growth(field: &mut Field<'_>, disks: &Disks) -> Result<(), PerfError> {
    let all = 0..disks.len();
    all.clone().try_for_each(|disk| order(disks, disk, Order::Room(Some(0))))?;
    field.note("no room to grow", &all.clone().collect::<Vec<_>>(), monotonic_now());
    for _ in 0..4 {
        field.sleep(Duration::from_millis(250))?;
        field.progress_wait()?;
    }
    all.into_iter().try_for_each(|disk| order(disks, disk, Order::Room(None)))
}

fn failed_wait(field: &mut Field<'_>, node: usize) -> Result<(), PerfError> {
    fence_wait(field.cluster, node)?;
    let told = field.cluster.tail(node);
    if told.contains("errno 28") || told.contains("No space left") {
        return Ok(());
    }
    let text = format!("node {} does not say that the disk is full: {told}", node + 1);
    Err(PerfError::Refused(text))
}

/// Overwriting takes room, and one node has none: it is out, the others go on.
fn one(field: &mut Field<'_>, disks: &Disks, node: usize) -> Result<(), PerfError> {
    order(disks, node, Order::Fault(no_room()))?;
    field.note("no room to overwrite", &[node], monotonic_now());
    failed_wait(field, node)?;
    field.cluster.wait("another leader", |cluster| cluster.leader().filter(|it| *it != node))?;
    field.progress_wait()?;
    order(disks, node, Order::Heal)?;
    kill_up(field.cluster, &[node])?;
    field.restart()?;
    field.caught_up_wait()
}

/// No node can write: nothing is acknowledged. With room, and started again, all serve.
fn all(field: &mut Field<'_>, disks: &Disks, seen: &Tally<Seen>) -> Result<(), PerfError> {
    let nodes: Vec<usize> = (0..disks.len()).collect();
    nodes.iter().try_for_each(|node| order(disks, *node, Order::Fault(no_room())))?;
    field.note("no room anywhere", &nodes, monotonic_now());
    // What is left when a majority has failed has nobody to write for.
    let majority = nodes.len() / 2 + 1;
    let began = monotonic_now();
    let mut failed = 0;
    while failed < majority {
        failed = 0;
        for node in &nodes {
            let is_down = !field.cluster.is_up(*node);
            let has_failed = is_down
                || match field.cluster.is_ready(*node) {
                    Ok(_) => log_failed(field.cluster, *node) == Some(true),
                    Err(_) => true,
                };
            if has_failed && !is_down {
                failed_wait(field, *node)?;
            }
            failed += usize::from(has_failed);
        }
        if monotonic_now().saturating_since(began) > FAILED_MAX {
            let text = "a majority without room did not say so".to_owned();
            return Err(PerfError::Refused(text));
        }
        thread::sleep(Duration::from_millis(1));
    }
    // Answers that were on their way.
    thread::sleep(Duration::from_millis(300));
    let before = field.committed();
    thread::sleep(Duration::from_secs(1));
    let acknowledged = field.committed() - before;
    tally(seen, |seen| seen.acknowledged_full += acknowledged);
    nodes.iter().try_for_each(|node| order(disks, *node, Order::Heal))?;
    kill_up(field.cluster, &nodes)?;
    field.restart()?;
    field.progress_wait()?;
    field.caught_up_wait()
}

/// Runs the rig.
///
/// # Errors
/// If it could not be run to its end.
pub fn run(arguments: &FullArguments, programs: &Programs) -> Result<Outcome, RigError> {
    let stage = Stage::new("full", &arguments.load, programs, (3, 6))?;
    format(&stage.mount, &programs.node)?;
    eprintln!("rig full: formats without room were refused and left nothing");
    let seen: Tally<Seen> = Arc::default();
    let (disks, tallies) = (stage.mount.disks().clone(), Arc::clone(&seen));
    let (times, seed) = (stage.times, stage.seed);
    let script: Script = Box::new(move |field| {
        let mut draw = Draw::new(seed, 0xF011);
        field.progress_wait()?;
        for round in 0..times {
            match round % 3 {
                0 => growth(field, &disks)?,
                1 if field.cluster.len() > 1 => {
                    let is_leader = draw.below(2) == 0;
                    let node = target(field, &mut draw, is_leader)?;
                    one(field, &disks, node)?;
                }
                _ => all(field, &disks, &tallies)?,
            }
            tally(&tallies, |seen| match round % 3 {
                0 => seen.growth += 1,
                1 => seen.one += 1,
                _ => seen.all += 1,
            });
            field.say(format!("{} of {times}", round + 1));
        }
        Ok(())
    });
    let report = stage.play(f64::from(stage.times) * 6.0, script)?;
    let seen = tallied(&seen);
    let what = format!(
        "3 formats refused, {} times no room to grow, {} times none to overwrite on one node, {} \
         times on none ({} acknowledged meanwhile)",
        seen.growth, seen.one, seen.all, seen.acknowledged_full
    );
    Ok(stage.outcome(report, seen.acknowledged_full == 0, &what))
}
