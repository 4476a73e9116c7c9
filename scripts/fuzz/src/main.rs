//! `cargo xtask fuzz`: the command line of the fuzz targets.

use clap::Parser;
use spillway_fuzz::run;
use spillway_fuzz::targets::{TARGETS, find};
use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;

/// Feeds a decoder with broken inputs; a failure prints the line that repeats it.
#[derive(Parser)]
#[command(name = "cargo xtask fuzz", bin_name = "cargo xtask fuzz")]
struct Arguments {
    /// Name of the target; without one, lists them.
    target: Option<String>,
    /// Number of inputs.
    #[arg(long, default_value_t = 100_000)]
    runs: u64,
    /// Seed of the first input; drawn if absent.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let Arguments { target, runs, seed } = Arguments::parse();
    let Some(name) = target else {
        for target in TARGETS {
            println!("{:<16} {}", target.name, target.about);
        }
        return ExitCode::SUCCESS;
    };
    let Some(target) = find(&name) else {
        eprintln!("no target `{name}`; `cargo xtask fuzz` lists them");
        return ExitCode::FAILURE;
    };
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
    println!("fuzz {name}: {runs} runs from seed {seed}");
    run::print_reproduction_on_panic();
    let step = (runs / 10).max(1);
    run::run(target, seed, runs, |done| {
        if done % step == 0 {
            println!("fuzz {name}: {done} of {runs}");
        }
    });
    ExitCode::SUCCESS
}
