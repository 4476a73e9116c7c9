//! The simulator on the command line. See the library.

mod flip_command;
mod images_command;
mod matrix_command;

use std::num::NonZero;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use spillway_runtime::clock::monotonic_now;
use spillway_runtime::faults::Point;
use spillway_sim::arguments::{RunArguments, seconds};
use spillway_sim::checker::command::{self, CheckArguments};
use spillway_sim::detect::{HEAD, SEEDS_MAX, detect};
use spillway_sim::runner::{Found, Plan, Summary, run_seeds, seed_of};
use spillway_sim::shrink::{faults_of, points_of, shrink};
use spillway_sim::{Bug, Failure, Options, Report};

/// Runs that shrinking one failure may take.
const SHRINK_RUNS_MAX: u64 = 2000;
/// Runs that shrinking a planted bug may take.
const DETECT_RUNS_MAX: u64 = 300;
/// Faults that a person can look at one by one.
const FAULTS_FEW: usize = 20;
/// How often a long run tells how far it is.
const PROGRESS_NANOS: u64 = 10_000_000_000;

/// Runs seeds of the simulated cluster.
#[derive(Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many seeds.
    #[arg(long, default_value_t = 100, conflicts_with = "seed")]
    seeds: u64,
    /// The first one; a word (the hash of a commit) is a seed too.
    #[arg(long, default_value_t = 0, conflicts_with = "seed", value_parser = seed_of)]
    start: u64,
    #[command(flatten)]
    run: RunArguments,
    /// Threads; as many as there are CPUs unless told.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Run every seed twice; both runs must be the same.
    #[arg(long)]
    twice: bool,
    /// Make the first failure small: less time, fewer kinds of faults, fewer faults, fewer clients.
    #[arg(long)]
    shrink: bool,
    /// Go on behind a failure.
    #[arg(long)]
    keep_going: bool,
    /// Fail if there is something that runs of this kind may meet and none has met.
    #[arg(long)]
    require_all: bool,
}

impl Arguments {
    fn plan(&self) -> Plan {
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        Plan {
            options: self.run.options(0),
            start: self.run.seed.unwrap_or(self.start),
            seeds: if self.run.seed.is_some() { 1 } else { self.seeds },
            jobs: self.jobs.map_or(cpus, usize::from),
            twice: self.twice,
            keep_going: self.keep_going,
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Plant every bug and look for it.
    Detect(DetectArguments),
    /// Power losses at every moment of short sequences of log operations.
    Images(images_command::Arguments),
    /// Every single fault of a disk, on three nodes.
    Matrix(matrix_command::Arguments),
    /// A flipped bit in one log of five and a power loss of all, again and again.
    Flip(flip_command::Arguments),
    /// Judge histories of clients that are in files.
    Check(CheckArguments),
}

#[derive(Args)]
struct DetectArguments {
    /// Only this bug.
    #[arg(long, value_parser = Bug::parse)]
    bug: Option<Bug>,
    /// Seeds for each.
    #[arg(long, default_value_t = SEEDS_MAX)]
    seeds: u64,
    /// Nodes; the least number that shows a bug unless told.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: Option<u16>,
    /// Make what finds each bug small; nine of ten must be shown by at most 20 faults.
    #[arg(long)]
    shrink: bool,
}

impl DetectArguments {
    fn run(&self) -> ExitCode {
        if cfg!(panic = "abort") {
            eprintln!("assertions find bugs too: run a build that unwinds (--profile sim)");
            return ExitCode::FAILURE;
        }
        let bugs = self.bug.map_or_else(Bug::all, |bug| vec![bug]);
        println!("{HEAD}");
        let (mut shrunk, mut few) = (0, 0);
        let missed = detect(&bugs, self.nodes, self.seeds, |bug, found| match found {
            Some(found) => {
                println!("{}", found.line());
                if self.shrink {
                    let left = shrink(&bug.options(found.seed, self.nodes), DETECT_RUNS_MAX);
                    let left = left.expect("a seed that failed fails again");
                    shrunk += 1;
                    few += usize::from(left.faults.len() <= FAULTS_FEW);
                    println!("  {} faults: {}", left.faults.len(), left.options.to_line());
                }
            }
            None => {
                println!("| {} | {} | MISSED in {} seeds |", bug.name(), bug.text(), self.seeds)
            }
        });
        if self.shrink {
            println!("{few} of {shrunk} are shown by at most {FAULTS_FEW} faults");
        }
        let small = few * 10 >= shrunk * 9;
        if missed.is_empty() && small { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.command {
        Some(Command::Detect(detect)) => detect.run(),
        Some(Command::Images(images)) => images_command::run_images(images),
        Some(Command::Matrix(matrix)) => matrix_command::run_matrix(matrix),
        Some(Command::Flip(flip)) => flip_command::run_flips(flip),
        Some(Command::Check(check)) => command::command(check),
        None => run_plan(&arguments),
    }
}

fn run_plan(arguments: &Arguments) -> ExitCode {
    let plan = arguments.plan();
    if plan.seeds == 0 || plan.start.checked_add(plan.seeds - 1).is_none() {
        eprintln!("there are no such seeds");
        return ExitCode::FAILURE;
    }
    println!("seeds {} to {}, commit {}", plan.start, plan.start + (plan.seeds - 1), commit());
    let began = monotonic_now();
    let mut told_at = began;
    let summary = run_seeds(&plan, |runs, options, result| {
        if arguments.run.seed.is_some() {
            print_run(options, result);
        }
        let now = monotonic_now();
        if now.saturating_nanos_since(told_at) > PROGRESS_NANOS {
            told_at = now;
            eprintln!("{runs} of {} seeds", plan.seeds);
        }
        if let Err(failure) = result {
            print_failure(options, failure);
        }
    });
    let took = monotonic_now().saturating_since(began).as_secs_f64();
    if arguments.shrink
        && let Some(found) = summary.found.first()
    {
        print_shrunk(found);
    }
    print_summary(&plan, &summary, took);
    let missing = summary.never_met(&plan.options);
    if arguments.require_all && !missing.is_empty() {
        eprintln!("never met: {}", missing.join(", "));
        return ExitCode::FAILURE;
    }
    if summary.found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What runs; `cargo xtask` tells.
fn commit() -> String {
    std::env::var("SPILLWAY_COMMIT").unwrap_or_else(|_| "unknown".to_owned())
}

fn print_run(options: &Options, result: &Result<Report, Failure>) {
    for fault in faults_of(options) {
        println!("{fault}");
    }
    let points: Vec<String> = points_of(options).into_iter().map(Point::name).collect();
    println!("points: {}", points.join(", "));
    let Ok(report) = result else { return };
    let (trace, nanos) = (report.trace.0, report.nanos);
    println!("seed {}: trace {trace:016x}, {} s", options.seed, seconds(nanos));
}

fn print_failure(options: &Options, failure: &Failure) {
    eprintln!("seed {}: {failure}", options.seed);
    eprintln!("commit {}, repeat with: {}", commit(), options.to_line());
}

fn print_shrunk(found: &Found) {
    eprintln!("seed {} shrinks, in up to {SHRINK_RUNS_MAX} runs", found.options.seed);
    let Some(shrunk) = shrink(&found.options, SHRINK_RUNS_MAX) else {
        eprintln!("it does not fail any more: one seed has two runs (see --twice)");
        return;
    };
    println!("after {} runs: {}", shrunk.runs, shrunk.failure);
    for fault in &shrunk.faults {
        println!("{fault}");
    }
    println!("{} faults, repeat with: {}", shrunk.faults.len(), shrunk.options.to_line());
}

fn print_summary(plan: &Plan, summary: &Summary, took: f64) {
    for counter in summary.counters() {
        println!("{:>14} {}", counter.count, counter.name);
    }
    println!(
        "{} seed(s), {} s of virtual time in {took:.1} s on {} thread(s): {} failed",
        summary.runs,
        summary.nanos / 1_000_000_000,
        plan.jobs,
        summary.found.len()
    );
}
