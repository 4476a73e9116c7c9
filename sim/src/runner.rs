//! Many seeds on several threads, and what came of them in the order of the seeds.
//!
//! A run is a thread's own: nothing is shared between two of them, so that a seed gives the same
//! run however many run beside it. A panic - a broken assertion of a core - ends its run only, if
//! the build unwinds; a build that aborts prints the line that repeats the run, and dies.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Once};

use spillway_runtime::faults;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::counts::{Counted, Counter, fault_name};
use crate::oracle::Counts;
use crate::plan::FAULT_KINDS;
use crate::{Failure, Mode, Options, Report, run};

thread_local! {
    /// What the last panic of this thread said, and where.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    /// The line that repeats the run of this thread.
    static REPEAT: RefCell<String> = const { RefCell::new(String::new()) };
}

static HOOK: Once = Once::new();

fn panicked(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = text_of(payload).unwrap_or("a panic without words");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let text = format!("panic at {place}: {text}");
    if cfg!(panic = "abort") {
        eprintln!("{text}");
        REPEAT.with_borrow(|line| eprintln!("repeat with: {line}"));
    }
    PANIC.set(Some(text));
}

fn text_of(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
}

/// One run whose panics are failures.
pub fn run_caught(options: &Options) -> Result<Report, Failure> {
    caught(options.to_line(), || run(options.clone()))
}

/// A run whose panics are failures; the line repeats it.
pub fn caught<T>(line: String, run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // The hook is the process's: what panics elsewhere is told as before.
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_run = REPEAT.with_borrow(|line| !line.is_empty());
            if is_run { panicked(panic) } else { before(panic) }
        }));
    });
    REPEAT.set(line);
    let result = catch_unwind(AssertUnwindSafe(run));
    REPEAT.set(String::new());
    result.unwrap_or_else(|payload| {
        let text = PANIC.take();
        let text = text.or_else(|| text_of(&*payload).map(str::to_owned));
        Err(Failure::new(text.unwrap_or_default()))
    })
}

/// Two runs, which must be equal event by event.
pub fn run_twice(options: &Options) -> Result<Report, Failure> {
    let first = run_caught(options)?;
    let second = run_caught(options)
        .map_err(|failure| Failure::new(format!("the second run alone failed: {failure}")))?;
    if first != second {
        let (first, second) = (first.trace.0, second.trace.0);
        let text = format!("two runs of one seed differ: trace {first:016x} and {second:016x}");
        return Err(Failure::new(text));
    }
    Ok(first)
}

/// A seed in decimal, or any other word - the hash of a commit - of which one is made. That one is
/// small enough to have many behind it.
pub fn seed_of(text: &str) -> Result<u64, String> {
    if text.is_empty() {
        return Err("a number or a word".to_owned());
    }
    Ok(text.parse().unwrap_or_else(|_| xxh3_64_with_seed(text.as_bytes(), 0x5345_4544) >> 16))
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The runs but for their seeds.
    pub options: Options,
    /// The first seed.
    pub start: u64,
    /// How many.
    pub seeds: u64,
    /// Threads.
    pub jobs: usize,
    /// Every seed twice.
    pub twice: bool,
    /// Failures do not end it.
    pub keep_going: bool,
}

/// A run that failed.
#[derive(Clone, Debug)]
pub struct Found {
    /// The run.
    pub options: Options,
    /// How it failed.
    pub failure: Failure,
}

/// What came of a plan.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Runs that ended.
    pub runs: u64,
    /// Of those that did not fail.
    pub counts: Counts,
    /// What the points in the product have counted in those.
    pub faults: faults::Counts,
    /// Virtual time of those, nanoseconds.
    pub nanos: u64,
    /// Those that failed, in the order of their seeds.
    pub found: Vec<Found>,
}

impl Summary {
    fn add(&mut self, options: Options, result: Result<Report, Failure>) {
        self.runs += 1;
        match result {
            Ok(report) => {
                self.counts.add(&report.counts);
                self.faults.add(&report.faults);
                self.nanos += report.nanos;
            }
            Err(failure) => self.found.push(Found { options, failure }),
        }
    }
}

impl Summary {
    /// Everything that is counted.
    pub fn counters(&self) -> Vec<Counter> {
        let mut counters = self.counts.counters();
        counters.extend(self.faults.counters());
        counters
    }

    /// What runs of these options may meet, and none has met.
    pub fn never_met(&self, options: &Options) -> Vec<String> {
        let missing = self.counters().into_iter().filter(|counter| counter.count == 0);
        missing.map(|Counter { name, .. }| name).filter(|name| may_meet(name, options)).collect()
    }
}

type Outcome = (u64, Options, Result<Report, Failure>);

/// Runs a plan; tells of every run, in the order of the seeds, and how many are behind it.
/// Without `keep_going` the lowest seed that fails is the last one told of.
pub fn run_seeds(
    plan: &Plan,
    mut told: impl FnMut(u64, &Options, &Result<Report, Failure>),
) -> Summary {
    assert!(plan.jobs > 0, "a plan needs a thread");
    let next = Arc::new(AtomicU64::new(0));
    let stopped = Arc::new(AtomicBool::new(false));
    let (sender, outcomes) = channel::<Outcome>();
    let threads: Vec<_> = (0..plan.jobs)
        .map(|job| {
            let (plan, sender) = (plan.clone(), sender.clone());
            let (next, stopped) = (Arc::clone(&next), Arc::clone(&stopped));
            spillway_runtime::thread::spawn(&format!("sim-{job}"), None, move || {
                while !stopped.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= plan.seeds {
                        return;
                    }
                    let seed = plan.start.wrapping_add(at);
                    let options = Options { seed, ..plan.options.clone() };
                    let run = if plan.twice { run_twice } else { run_caught };
                    let result = run(&options);
                    if sender.send((at, options, result)).is_err() {
                        return;
                    }
                }
            })
            .expect("the kernel has a thread for us")
        })
        .collect();
    drop(sender);
    let mut waiting = BTreeMap::new();
    let mut summary = Summary::default();
    'told: for (at, options, result) in outcomes {
        waiting.insert(at, (options, result));
        while let Some((options, result)) = waiting.remove(&summary.runs) {
            let failed = result.is_err();
            told(summary.runs + 1, &options, &result);
            summary.add(options, result);
            if failed && !plan.keep_going {
                stopped.store(true, Ordering::Relaxed);
                break 'told;
            }
        }
    }
    for thread in threads {
        assert!(thread.join().is_ok(), "a run's panic is caught");
    }
    summary
}

/// Whether runs of these options can count something of this name.
fn may_meet(name: &str, options: &Options) -> bool {
    let alone = options.nodes == 1;
    if let Some(kind) = FAULT_KINDS.into_iter().find(|kind| fault_name(*kind) == name) {
        return kind.is_possible(options);
    }
    match name {
        "refused_starts" => options.mode == Mode::Beyond,
        // Good if there is none.
        "spent_logs" => false,
        "transfers" | "held_back" | "read_back" | "messages" | "messages_entries"
        | "messages_lost" | "superseded" | "old_reads" | "old_reads_leader" | "behind" => !alone,
        _ => true,
    }
}
