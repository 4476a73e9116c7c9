//! Power cuts: of one node, of a minority, of all at once. Whatever was not flushed is gone, or
//! some sectors of it are.

use std::sync::Arc;
use std::time::Duration;

use spillway_perf::PerfError;
use spillway_perf::identity::Draw;
use spillway_perf::script::{Field, Script};
use spillway_runtime::clock::monotonic_now;
use spillway_runtime::thread;

use crate::disk::{Effect, Fault, Operation, When};
use crate::error::RigError;
use crate::file_system::Disks;
use crate::load::{
    LoadArguments, Outcome, Programs, Stage, Tally, order, power_off, tallied, tally,
};
use crate::order::Order;
use crate::sectors::Keep;

/// Seconds that a cut takes, on the high side.
const CUT_SECONDS: f64 = 4.0;

/// How long a write is waited for that the power is to go with.
const OPERATION_WAIT: Duration = Duration::from_millis(500);

/// What can be chosen about power cuts.
#[derive(Clone, Debug, clap::Args)]
pub struct PowerArguments {
    /// Disks report flushes as done and do nothing: acknowledged transactions must get lost, and
    /// the rig must say so.
    #[arg(long)]
    pub lying_disks: bool,
    /// The load.
    #[command(flatten)]
    pub load: LoadArguments,
}

/// One cut.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cut {
    /// Load before it.
    wait: Duration,
    nodes: Vec<usize>,
    /// The power goes in the middle of this operation of the first of them; else at any moment.
    at: Option<(Operation, u64)>,
    /// How long there is no power.
    dark: Duration,
    /// What each of the nodes keeps of what was not flushed.
    keep: Vec<Keep>,
    /// Whether the next one waits until all have caught up, or only until commits go on.
    is_patient: bool,
}

fn draw_cuts(times: u32, nodes: usize, is_synced: bool, seed: u64) -> Vec<Cut> {
    let mut draw = Draw::new(seed, 0xDA2C);
    let cut = |_| {
        let mut hit: Vec<usize> = (0..nodes).collect();
        // Every third cut is of all nodes, the others of minorities.
        if nodes > 1 && draw.below(3) > 0 {
            let count = 1 + draw.below(nodes.div_ceil(2) as u64 - 1) as usize;
            while hit.len() > count {
                hit.remove(draw.below(hit.len() as u64) as usize);
            }
        }
        Cut {
            wait: Duration::from_millis(50 + draw.below(700)),
            at: match draw.below(4) {
                0 => None,
                1 if !is_synced => Some((Operation::Flush, 1 + draw.below(4))),
                _ => Some((Operation::Write, 1 + draw.below(4))),
            },
            dark: Duration::from_millis(draw.below(300)),
            keep: hit.iter().map(|_| Keep::draw(&mut draw)).collect(),
            is_patient: draw.below(2) == 0,
            nodes: hit,
        }
    };
    (0..times).map(cut).collect()
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: u32,
    minority: u32,
}

impl Cut {
    fn carry_out(&self, field: &mut Field<'_>, disks: &Disks) -> Result<(), PerfError> {
        field.sleep(self.wait)?;
        if let Some((operation, nth)) = self.at {
            order(disks, self.nodes[0], Order::CutAt(operation, nth))?;
            let began = monotonic_now();
            let waited = || monotonic_now().saturating_since(began);
            while disks.is_powered(self.nodes[0]) && waited() < OPERATION_WAIT {
                thread::sleep(Duration::from_micros(100));
            }
        }
        power_off(field, disks, &self.nodes, "power cut")?;
        field.sleep(self.dark)?;
        for (node, keep) in self.nodes.iter().zip(&self.keep) {
            order(disks, *node, Order::PowerOn(*keep))?;
        }
        field.restart()?;
        field.progress_wait()?;
        if self.is_patient { field.caught_up_wait() } else { Ok(()) }
    }
}

fn script(disks: Disks, cuts: Vec<Cut>, lies: bool, count: Tally<Count>) -> Script {
    Box::new(move |field| {
        field.progress_wait()?;
        if lies {
            let (operation, effect, when) = (Operation::Flush, Effect::Lie, When::From(1));
            let lie = Fault { operation, part: None, effect, when };
            (0..disks.len()).try_for_each(|disk| order(&disks, disk, Order::Fault(lie)))?;
        }
        for (at, cut) in cuts.iter().enumerate() {
            cut.carry_out(field, &disks)?;
            let is_all = cut.nodes.len() == field.cluster.len();
            tally(&count, |count| {
                count.all += u32::from(is_all);
                count.minority += u32::from(!is_all);
            });
            if (at + 1) % 10 == 0 {
                field.say(format!("{} power cuts of {}", at + 1, cuts.len()));
            }
        }
        field.caught_up_wait()
    })
}

/// Runs the rig.
///
/// # Errors
/// If it could not be run to its end.
pub fn run(arguments: &PowerArguments, programs: &Programs) -> Result<Outcome, RigError> {
    let stage = Stage::new("power", &arguments.load, programs, (3, 50))?;
    let mut cuts = draw_cuts(stage.times, stage.nodes, arguments.load.synced, stage.seed);
    if arguments.lying_disks {
        // By chance all cuts could keep all that was never flushed, and no lie would show.
        cuts.iter_mut().take(1).for_each(|cut| cut.keep.fill(Keep::None));
    }
    let count = Arc::default();
    let disks = stage.mount.disks().clone();
    let script = script(disks, cuts, arguments.lying_disks, Arc::clone(&count));
    let report = stage.play(f64::from(stage.times) * CUT_SECONDS, script)?;
    let (Count { all, minority }, sum) = (tallied(&count), stage.counters());
    let what = format!(
        "{} power cuts of {} nodes, {all} of all at once and {minority} of minorities; {} \
         operations unanswered, {} sectors lost, {} kept by chance ({} flushes, {} writes with \
         RWF_DSYNC)",
        all + minority,
        stage.nodes,
        sum.unanswered,
        sum.sectors_lost,
        sum.sectors_kept,
        sum.flushes,
        sum.writes_synced
    );
    Ok(stage.outcome(report, all + minority == stage.times, &what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_of_minorities_or_of_all() {
        for (nodes, minority) in [(1, 1), (3, 1), (5, 2)] {
            let cuts = draw_cuts(300, nodes, false, 7);
            assert_eq!(cuts, draw_cuts(300, nodes, false, 7), "the seed decides");
            assert_ne!(cuts, draw_cuts(300, nodes, false, 8));
            let all = cuts.iter().filter(|cut| cut.nodes.len() == nodes).count();
            assert!(if nodes == 1 { all == 300 } else { (60..140).contains(&all) }, "{all}");
            assert!(cuts.iter().all(|cut| cut.keep.len() == cut.nodes.len()));
            let others = cuts.iter().filter(|cut| cut.nodes.len() < nodes);
            assert!(others.clone().all(|cut| (1..=minority).contains(&cut.nodes.len())));
        }
    }
}
