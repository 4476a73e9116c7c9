//! `cargo xtask sim matrix`.

use std::process::ExitCode;

use spillway_sim::matrix::{Outcome, Summary, cells, describe, run_cell};

/// Every single fault of a disk, on three nodes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this cell.
    #[arg(long)]
    cell: Option<usize>,
    /// One cell of so many: a sample.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    every: u16,
    /// The first of the seeds of each cell.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs the cells and tells what was found.
pub fn run_matrix(arguments: &Arguments) -> ExitCode {
    let mut summary = Summary::default();
    let all = cells();
    let every = usize::from(arguments.every);
    for (number, cell) in all.iter().enumerate() {
        let chosen = match arguments.cell {
            Some(only) => number == only,
            None => number % every == 0,
        };
        if !chosen {
            continue;
        }
        let outcome = run_cell(number, cell, arguments.seed, None);
        if let Outcome::Unsafe(why) = &outcome {
            eprintln!("cell {number}, {}: {why}", describe(cell));
            eprintln!(
                "repeat with: cargo xtask sim matrix --cell {number} --seed {}",
                arguments.seed
            );
        } else if arguments.cell.is_some() {
            println!("cell {number}, {}: {outcome:?}", describe(cell));
        }
        summary.note(*cell, outcome);
    }
    println!("{summary}");
    if summary.bad() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
