//! The simulator on the command line. See the library.

mod images_command;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use spillway_sim::{BUGS, BUGS_CLUSTER, Bug, Mode, Options, Report, run};

/// Runs seeds of the simulated node.
#[derive(Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many seeds.
    #[arg(long, default_value_t = 100, conflicts_with = "seed")]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Only this one, with its numbers.
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,
    /// Links between nodes lose and repeat single messages.
    #[arg(long)]
    lossy: bool,
    /// Flip bits of what is durable: a start may then refuse, but never lose silently.
    #[arg(long, conflicts_with = "nodes")]
    beyond: bool,
    /// Plant a bug.
    #[arg(long, value_parser = bug_of)]
    bug: Option<Bug>,
}

#[derive(Subcommand)]
enum Command {
    /// Power losses at every moment of short sequences of log operations.
    Images(images_command::Arguments),
}

/// `OrderLost` as `order-lost`.
fn kebab(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

fn bug_of(name: &str) -> Result<Bug, String> {
    let named = |bug: &Bug| kebab(&format!("{bug:?}"));
    let bugs: Vec<Bug> = BUGS.into_iter().chain(BUGS_CLUSTER).collect();
    let names: Vec<_> = bugs.iter().map(named).collect();
    let known = bugs.into_iter().find(|bug| named(bug) == name);
    known.ok_or_else(|| format!("one of {}", names.join(", ")))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Images(arguments)) => return images_command::run_images(&arguments),
        None => {}
    }
    let (first, count) = match arguments.seed {
        Some(seed) => (seed, 1),
        None => (arguments.start, arguments.seeds),
    };
    println!("seeds {first} to {}", first + count.max(1) - 1);
    let mut total = [0u64; 7];
    for seed in first..first + count {
        let mut options = match arguments.nodes {
            1 => Options::new(seed),
            nodes => Options::cluster(seed, nodes),
        };
        options.bug = arguments.bug;
        options.lossy = arguments.lossy;
        if arguments.beyond {
            options.mode = Mode::Beyond;
        }
        let mut line = format!("cargo xtask sim --seed {seed}");
        if arguments.nodes > 1 {
            line.push_str(&format!(" --nodes {}", arguments.nodes));
        }
        line.push_str(if arguments.lossy { " --lossy" } else { "" });
        line.push_str(if arguments.beyond { " --beyond" } else { "" });
        if let Some(bug) = options.bug {
            line.push_str(&format!(" --bug {}", kebab(&format!("{bug:?}"))));
        }
        let repeat = line.clone();
        std::panic::set_hook(Box::new(move |panic| {
            eprintln!("seed {seed}: {panic}\nrepeat with: {repeat}");
        }));
        match run(options) {
            Ok(report) => {
                if arguments.seed.is_some() {
                    print_report(seed, &report);
                }
                let c = &report.counts;
                let counted = [
                    c.committed,
                    c.repeated,
                    c.restarts,
                    c.torn,
                    c.resets,
                    c.write_errors,
                    c.leaderships,
                ];
                total.iter_mut().zip(counted).for_each(|(total, count)| *total += count);
            }
            Err(failure) => {
                eprintln!("seed {seed}: {failure}\nrepeat with: {line}");
                return ExitCode::FAILURE;
            }
        }
    }
    let [committed, repeated, restarts, torn, resets, write_errors, leaderships] = total;
    println!(
        "{count} seed(s): nothing found in {committed} committed transactions, {repeated} answered \
         again, {restarts} starts, {torn} torn tails, {resets} lost connections, {write_errors} \
         write errors, {leaderships} leaderships"
    );
    ExitCode::SUCCESS
}

fn print_report(seed: u64, report: &Report) {
    println!("seed {seed}: trace {:016x}, {} ms", report.trace.0, report.nanos / 1_000_000);
    println!("{:#?}", report.counts);
}
