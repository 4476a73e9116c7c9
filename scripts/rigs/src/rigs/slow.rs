//! Disks that are slow, that answer nothing for a while, and that carry out late what a killed
//! process had asked for.

use std::sync::Arc;
use std::time::Duration;

use spillway_perf::PerfError;
use spillway_perf::identity::Draw;
use spillway_perf::script::{Field, Script};
use spillway_runtime::clock::monotonic_now;
use spillway_runtime::thread;

use super::errors::extremes;
use crate::error::RigError;
use crate::file_system::Disks;
use crate::load::{
    LoadArguments, Outcome, Programs, Stage, Tally, millis_since, order, tallied, tally, target,
};
use crate::order::Order;

/// How long after the kill what the dead had asked for is carried out.
const GHOST_AFTER: Duration = Duration::from_secs(2);

/// What can be chosen about slow disks.
#[derive(Clone, Debug, clap::Args)]
pub struct SlowArguments {
    /// Milliseconds that each operation of a slow disk takes longer: about a hundred times what a
    /// healthy one takes.
    #[arg(long, default_value_t = 20)]
    pub delay_ms: u64,
    /// Seconds for which a disk is slow, or answers nothing.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// The load.
    #[command(flatten)]
    pub load: LoadArguments,
}

/// What the disk of a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Slow,
    Stall,
    /// It stalls, the node is killed and started again, and only then what it had asked for is
    /// carried out.
    Ghost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    wait: Duration,
    is_leader: bool,
    kind: Kind,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    slow: u32,
    stalls: u32,
    ghosts: u32,
    /// Writes that were carried out after their process was killed and started again.
    ghost_writes: u64,
    leaders: u32,
    moved: u32,
    gap_ms: Vec<f64>,
}

fn draw_rounds(times: u32, is_stall: bool, nodes: usize, seed: u64) -> Vec<Round> {
    let mut draw = Draw::new(seed, 0x510);
    let round = |at: u32| Round {
        wait: Duration::from_millis(100 + draw.below(400)),
        is_leader: nodes == 1 || at.is_multiple_of(2),
        kind: match (is_stall, draw.below(2)) {
            (false, _) => Kind::Slow,
            (true, 0) => Kind::Stall,
            (true, _) => Kind::Ghost,
        },
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
        (slow, lasts): (Duration, Duration),
    ) -> Result<(), PerfError> {
        field.sleep(self.wait)?;
        let node = target(field, draw, self.is_leader)?;
        let is_alone = field.cluster.len() == 1;
        let began = monotonic_now();
        let what = match self.kind {
            Kind::Slow => (Order::Slow(slow), "disk slow"),
            Kind::Stall => (Order::Stall, "disk stalled"),
            Kind::Ghost => (Order::StallOpen, "disk stalled, node killed"),
        };
        order(disks, node, what.0)?;
        field.note(what.1, &[node], began);
        if self.kind == Kind::Ghost {
            self.ghost(field, disks, node, draw, seen)?;
        } else {
            if !is_alone || self.kind == Kind::Slow {
                // What was on its way is not what counts.
                field.sleep(Duration::from_millis(50))?;
                field.progress_wait()?;
            }
            let gap_ms = millis_since(began.0);
            let left = lasts.saturating_sub(monotonic_now().saturating_since(began));
            field.sleep(left)?;
            tally(seen, |seen| seen.gap_ms.push(gap_ms));
        }
        let moved = field.cluster.leader().is_some_and(|leader| leader != node);
        order(disks, node, Order::Heal)?;
        field.progress_wait()?;
        field.caught_up_wait()?;
        tally(seen, |seen| {
            match self.kind {
                Kind::Slow => seen.slow += 1,
                Kind::Stall => seen.stalls += 1,
                Kind::Ghost => seen.ghosts += 1,
            }
            seen.leaders += u32::from(self.is_leader);
            seen.moved += u32::from(self.is_leader && moved);
        });
        Ok(())
    }

    /// The node is killed while writes of it hang; it comes back and serves; then they arrive.
    fn ghost(
        &self,
        field: &mut Field<'_>,
        disks: &Disks,
        node: usize,
        draw: &mut Draw,
        seen: &Tally<Seen>,
    ) -> Result<(), PerfError> {
        field.sleep(Duration::from_millis(20 + draw.below(100)))?;
        field.cluster.kill(&[node])?;
        let before = disks.counters(node).ghosts;
        let late = disks.clone();
        let wake = move || {
            thread::sleep(GHOST_AFTER);
            order(&late, node, Order::Resume)
        };
        let waker = thread::spawn("waker", None, wake)?;
        // It may come back at once, or wait until nothing of the dead is left.
        let back = field.restart().and_then(|()| field.progress_wait());
        waker.join().expect("it does not panic")?;
        back?;
        field.sleep(Duration::from_millis(200))?;
        let ghosts = disks.counters(node).ghosts - before;
        tally(seen, |seen| seen.ghost_writes += ghosts);
        // What it has on disk must be what it says.
        field.cluster.kill(&[node])?;
        field.restart()?;
        field.progress_wait().map(drop)
    }
}

/// Runs the rig `slow`, or `stall`.
///
/// # Errors
/// If it could not be run to its end.
pub fn run(
    name: &'static str,
    arguments: &SlowArguments,
    programs: &Programs,
) -> Result<Outcome, RigError> {
    let stage = Stage::new(name, &arguments.load, programs, (3, 10))?;
    let rounds = draw_rounds(stage.times, name == "stall", stage.nodes, stage.seed);
    let seen: Tally<Seen> = Arc::default();
    let slow = Duration::from_millis(arguments.delay_ms);
    let lasts = Duration::from_secs_f64(arguments.seconds);
    let (disks, tallies, seed) = (stage.mount.disks().clone(), Arc::clone(&seen), stage.seed);
    let script: Script = Box::new(move |field| {
        let mut draw = Draw::new(seed, 0x7A6);
        field.progress_wait()?;
        for (at, round) in rounds.iter().enumerate() {
            round.carry_out(field, &disks, &mut draw, &tallies, (slow, lasts))?;
            let Round { kind, is_leader, .. } = round;
            let who = if *is_leader { "leader" } else { "follower" };
            field.say(format!("{} of {}: {kind:?} {who}", at + 1, rounds.len()));
        }
        Ok(())
    });
    let seconds = f64::from(stage.times) * (arguments.seconds + 5.0);
    let report = stage.play(seconds, script)?;
    let seen = tallied(&seen);
    let what = format!(
        "disks {} times {} ms slower, {} times stalled for {} s, {} times stalled over a kill and \
         a start ({} writes of the dead arrived after it); of {} leaders hit {} had handed over; \
         next commit after {} ms (median, longest)",
        seen.slow,
        arguments.delay_ms,
        seen.stalls,
        arguments.seconds,
        seen.ghosts,
        seen.ghost_writes,
        seen.leaders,
        seen.moved,
        extremes(&seen.gap_ms).1
    );
    Ok(stage.outcome(report, true, &what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_of_their_rig() {
        let rounds = draw_rounds(40, true, 3, 7);
        assert_eq!(rounds, draw_rounds(40, true, 3, 7), "the seed decides");
        assert!(rounds.iter().all(|round| round.kind != Kind::Slow));
        assert!(rounds.iter().any(|round| round.kind == Kind::Ghost));
        assert_eq!(rounds.iter().filter(|round| round.is_leader).count(), 20);
        assert!(draw_rounds(40, false, 1, 7).iter().all(|round| round.is_leader));
    }
}
