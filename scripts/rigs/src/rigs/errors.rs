//! Disks that fail: errors of writes, flushes and reads, and writes that are torn. A node whose
//! write failed must say so and acknowledge nothing more; the others go on.

use std::sync::Arc;
use std::time::Duration;

use spillway_perf::PerfError;
use spillway_perf::identity::Draw;
use spillway_perf::script::{Field, Script};
use spillway_runtime::clock::monotonic_now;

use crate::disk::{Effect, Fault, Operation, Part, When};
use crate::error::RigError;
use crate::file_system::Disks;
use crate::load::{
    Fenced, LoadArguments, Outcome, Programs, Stage, Tally, fence_wait, kill_up, millis_since,
    order, power_off, refuse, report_of, tallied, tally, target, wait,
};
use crate::order::Order;
use crate::sectors::Keep;

/// Seconds that a failure takes with all that follows, on the high side.
const ROUND_SECONDS: f64 = 6.0;
/// How old a node's account of itself may be, and then some.
const REPORT_AGE_MAX: Duration = Duration::from_millis(250);
/// Entries that the others must commit without the failed node before it is looked at again.
const ENTRIES_WITHOUT: u64 = 20;
/// Sectors of a write that arrive at most before it is torn.
const TORN_SECTORS_MAX: u64 = 24;

/// What can be chosen about failing disks.
#[derive(Clone, Debug, clap::Args)]
pub struct ErrorsArguments {
    /// Milliseconds from the error to the node's own word that its log has failed, at most.
    #[arg(long, default_value_t = 100.0)]
    pub fence_ms_max: f64,
    /// The load.
    #[command(flatten)]
    pub load: LoadArguments,
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// A write or flush of the redo file, with this effect.
    Redo(Operation, Effect, When),
    /// Reads of the redo files, when the node is started.
    ReadAtStart(When),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    wait: Duration,
    is_leader: bool,
    failure: Failure,
    /// The power goes as well, and this much is kept; else the node is only killed.
    cut: Option<Keep>,
}

/// What all rounds together showed.
#[derive(Clone, Debug, Default)]
struct Seen {
    leaders: u32,
    followers: u32,
    writes: u32,
    flushes: u32,
    torn: u32,
    /// Nodes that ended by themselves because of it.
    ended: u32,
    reads_refused: u32,
    reads_passed: u32,
    /// Entries acknowledged by nodes whose log had failed.
    acknowledged_after: u64,
    fence_ms: Vec<f64>,
    takeover_ms: Vec<f64>,
}

fn draw_rounds(times: u32, is_torn: bool, is_synced: bool, seed: u64) -> Vec<Round> {
    let mut draw = Draw::new(seed, 0xE10);
    let round = |at: u32| {
        let error = Effect::Error(libc::EIO);
        let when = if draw.below(2) == 0 { When::Nth(1) } else { When::From(1) };
        let kinds = if is_synced { 2 } else { 3 };
        let failure = match (is_torn, draw.below(kinds)) {
            (true, _) => {
                let torn = Effect::Torn(draw.below(TORN_SECTORS_MAX));
                Failure::Redo(Operation::Write, torn, When::Nth(1))
            }
            (false, 0) => Failure::ReadAtStart(When::From(1 + draw.below(4))),
            (false, 1) => Failure::Redo(Operation::Write, error, when),
            (false, _) => Failure::Redo(Operation::Flush, error, when),
        };
        Round {
            wait: Duration::from_millis(100 + draw.below(500)),
            is_leader: at.is_multiple_of(2),
            failure,
            cut: (draw.below(2) == 0).then(|| Keep::draw(&mut draw)),
        }
    };
    (0..times).map(round).collect()
}

impl Round {
    fn carry_out(
        &self,
        field: &mut Field<'_>,
        disks: &Disks,
        draw: &mut Draw,
        seen: &Tally<Seen>,
    ) -> Result<(), PerfError> {
        field.sleep(self.wait)?;
        let node = target(field, draw, self.is_leader)?;
        match self.failure {
            Failure::Redo(operation, effect, when) => {
                let fault = Fault { operation, part: Some(Part::Segments), effect, when };
                order(disks, node, Order::Fault(fault))?;
                watch(field, disks, node, self.is_leader, seen)?;
                tally(seen, |seen| {
                    seen.leaders += u32::from(self.is_leader);
                    seen.followers += u32::from(!self.is_leader);
                    match (operation, effect) {
                        (_, Effect::Torn(_)) => seen.torn += 1,
                        (Operation::Flush, _) => seen.flushes += 1,
                        _ => seen.writes += 1,
                    }
                });
                self.take_down(field, disks, node)?;
            }
            Failure::ReadAtStart(when) => {
                self.take_down(field, disks, node)?;
                start_unreadable(field, disks, node, when, seen)?;
            }
        }
        if !field.cluster.is_up(node) {
            field.restart()?;
        }
        field.progress_wait()?;
        field.caught_up_wait()
    }

    /// Kills the node, or takes its power; its disk is healthy then.
    fn take_down(
        &self,
        field: &mut Field<'_>,
        disks: &Disks,
        node: usize,
    ) -> Result<(), PerfError> {
        match self.cut {
            Some(keep) => {
                power_off(field, disks, &[node], "power cut")?;
                order(disks, node, Order::PowerOn(keep))?;
            }
            None => {
                let at = kill_up(field.cluster, &[node])?;
                field.note("failed node killed", &[node], at);
            }
        }
        order(disks, node, Order::Heal)
    }
}

/// Waits for the fault and looks at what follows: the node says that it failed and acknowledges
/// nothing, another one leads, commits go on.
fn watch(
    field: &mut Field<'_>,
    disks: &Disks,
    node: usize,
    is_leader: bool,
    seen: &Tally<Seen>,
) -> Result<(), PerfError> {
    let kind = if is_leader { "leader's disk failed" } else { "follower's disk failed" };
    let fault_nanos = wait(field.cluster, "the fault", |_| {
        Some(disks.counters(node).fault_nanos).filter(|nanos| *nanos > 0)
    })?;
    field.note(kind, &[node], monotonic_now());
    let Fenced { at, has_ended } = fence_wait(field.cluster, node)?;
    let fence_ms = at.0.saturating_sub(fault_nanos) as f64 / 1e6;
    let leader = wait(field.cluster, "a leader that can write", |cluster| {
        cluster.leader().filter(|leader| *leader != node)
    })?;
    let takeover_ms = millis_since(fault_nanos);
    if has_ended {
        // The dead acknowledge nothing.
        field.progress_wait()?;
        tally(seen, |seen| {
            seen.ended += 1;
            seen.fence_ms.push(fence_ms);
            if is_leader {
                seen.takeover_ms.push(takeover_ms);
            }
        });
        return Ok(());
    }
    field.sleep(REPORT_AGE_MAX)?;
    let own = wait(field.cluster, "the failed node's report", |it| report_of(it, node))?;
    field.progress_wait()?;
    // What it may have acknowledged before is at most what it had on disk when it failed.
    let enough = own.scl + ENTRIES_WITHOUT;
    let view = wait(field.cluster, "commits without the failed node", |cluster| {
        let report = report_of(cluster, cluster.leader().unwrap_or(leader))?;
        (report.role == "leader" && report.vdl >= enough).then_some(report)
    })?;
    let again = wait(field.cluster, "the failed node's report", |it| report_of(it, node))?;
    let member = view.members.iter().find(|member| usize::from(member.node) == node + 1);
    let matched = member.map_or(0, |member| member.matched);
    let claimed = matched.max(again.scl).saturating_sub(own.scl);
    if claimed > 0 || again.role == "leader" {
        field.say(format!(
            "node {} acknowledges with a failed log: first {own:?}, then {again:?}, and its \
             leader knows of {matched}",
            node + 1
        ));
    }
    tally(seen, |seen| {
        seen.acknowledged_after += claimed + u64::from(again.role == "leader");
        seen.fence_ms.push(fence_ms);
        if is_leader {
            seen.takeover_ms.push(takeover_ms);
        }
    });
    Ok(())
}

/// Starts a node whose log cannot be read: it must refuse in words, or not have met the error.
fn start_unreadable(
    field: &mut Field<'_>,
    disks: &Disks,
    node: usize,
    when: When,
    seen: &Tally<Seen>,
) -> Result<(), PerfError> {
    let effect = Effect::Error(libc::EIO);
    let fault = Fault { operation: Operation::Read, part: Some(Part::Segments), effect, when };
    order(disks, node, Order::Fault(fault))?;
    match field.cluster.start(node) {
        Ok(_) => {
            if disks.counters(node).fault_nanos > 0 {
                field.say(format!("node {} serves although a read failed", node + 1));
            }
            tally(seen, |seen| seen.reads_passed += 1);
        }
        Err(PerfError::Node { what, tail }) => {
            field.cluster.bury(&[node])?;
            if !tail.contains("error") {
                let text = format!("{what}, without a reason: {tail}");
                return Err(refuse(RigError::Options(text)));
            }
            tally(seen, |seen| seen.reads_refused += 1);
        }
        Err(other) => return Err(other),
    }
    order(disks, node, Order::Heal)
}

fn script(disks: Disks, rounds: Vec<Round>, seed: u64, seen: Tally<Seen>) -> Script {
    Box::new(move |field| {
        let mut draw = Draw::new(seed, 0x7A6);
        field.progress_wait()?;
        for (at, round) in rounds.iter().enumerate() {
            round.carry_out(field, &disks, &mut draw, &seen)?;
            field.say(format!("{} of {}: {:?}", at + 1, rounds.len(), round.failure));
        }
        Ok(())
    })
}

/// Runs the rig `eio`, or `torn`.
///
/// # Errors
/// If it could not be run to its end.
pub fn run(
    name: &'static str,
    arguments: &ErrorsArguments,
    programs: &Programs,
) -> Result<Outcome, RigError> {
    if arguments.load.nodes == Some(1) {
        return Err(RigError::Options("--nodes 1: nobody can go on; choose 3 or 5".to_owned()));
    }
    let stage = Stage::new(name, &arguments.load, programs, (3, 30))?;
    let is_torn = name == "torn";
    let rounds = draw_rounds(stage.times, is_torn, arguments.load.synced, stage.seed);
    let seen = Arc::default();
    let script = script(stage.mount.disks().clone(), rounds, stage.seed, Arc::clone(&seen));
    let report = stage.play(f64::from(stage.times) * ROUND_SECONDS, script)?;
    let seen = tallied(&seen);
    let fence = extremes(&seen.fence_ms);
    let what = format!(
        "{} leaders' and {} followers' disks failed ({} writes, {} flushes, {} torn writes), {} \
         of them ended by themselves, {} \
         starts without reads refused and {} not met by them; {} entries acknowledged after the \
         failure; fenced after {} ms (at most {} allowed), another leader after {} ms \
         (median, longest)",
        seen.leaders,
        seen.followers,
        seen.writes,
        seen.flushes,
        seen.torn,
        seen.ended,
        seen.reads_refused,
        seen.reads_passed,
        seen.acknowledged_after,
        fence.1,
        arguments.fence_ms_max,
        extremes(&seen.takeover_ms).1
    );
    let is_good = seen.acknowledged_after == 0 && fence.0 <= arguments.fence_ms_max;
    Ok(stage.outcome(report, is_good, &what))
}

/// The longest, and median and longest as text.
pub fn extremes(all: &[f64]) -> (f64, String) {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    let longest = all.last().copied().unwrap_or(0.0);
    let median = all.get(all.len() / 2).copied().unwrap_or(0.0);
    (longest, format!("{median:.1}, {longest:.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_of_all_kinds() {
        let rounds = draw_rounds(100, false, false, 7);
        assert_eq!(rounds, draw_rounds(100, false, false, 7), "the seed decides");
        let count = |operation| {
            let is =
                |round: &&Round| matches!(round.failure, Failure::Redo(o, ..) if o == operation);
            rounds.iter().filter(is).count()
        };
        assert!(count(Operation::Write) > 15 && count(Operation::Flush) > 15);
        assert!(count(Operation::Write) + count(Operation::Flush) < 85, "some fail at start");
        let synced = draw_rounds(100, false, true, 7);
        let is_flush = |round: &Round| matches!(round.failure, Failure::Redo(Operation::Flush, ..));
        assert!(!synced.iter().any(is_flush), "they do not flush");
        assert_eq!(extremes(&[3.0, 1.0, 2.0]), (3.0, "2.0, 3.0".to_owned()));
    }
}
