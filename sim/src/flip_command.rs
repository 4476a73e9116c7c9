//! `cargo xtask sim flip`.

use std::process::ExitCode;

use spillway_sim::flip::{line, options, run};

/// A flipped bit in one log of five and a power loss of all, again and again.
#[derive(clap::Args)]
pub struct Arguments {
    /// Transactions to expose.
    #[arg(long, default_value_t = 1_000_000)]
    transactions: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Only this seed.
    #[arg(long, conflicts_with = "start")]
    seed: Option<u64>,
    /// Virtual time of each run, seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=60))]
    seconds: u64,
}

/// Runs seeds until enough was exposed, and tells what was found.
pub fn run_flips(arguments: &Arguments) -> ExitCode {
    let (mut exposed, mut runs, mut flips, mut replaced) = (0u64, 0u64, 0u64, 0u64);
    let (mut repairs, mut repair_nanos_max, mut nobody_has) = ([0u64; 2], 0, 0);
    let mut seed = arguments.seed.unwrap_or(arguments.start);
    while exposed < arguments.transactions {
        if let Some(options) = options(seed, arguments.seconds) {
            let repeat = line(&options);
            let found = match run(options) {
                Ok((_, found)) => found,
                Err(failure) => {
                    eprintln!("seed {seed}: {failure}\nrepeat with: {repeat}");
                    eprintln!("before it {exposed} transactions were exposed, and none lost");
                    return ExitCode::FAILURE;
                }
            };
            runs += 1;
            exposed += found.exposed;
            flips += found.struck;
            replaced += found.retired.len() as u64;
            nobody_has += found.nobody_has;
            repairs = [repairs[0] + found.repairs[0], repairs[1] + found.repairs[1]];
            repair_nanos_max = repair_nanos_max.max(found.repair_nanos_max);
        }
        seed += 1;
        if arguments.seed.is_some() {
            break;
        }
    }
    println!(
        "{exposed} acknowledged transactions exposed to {flips} flipped bits with power losses of \
         all 5 nodes, in {runs} runs up to seed {}: 0 lost; {} of {} repairs ended, the longest \
         after {} ms; {replaced} nodes were replaced, {nobody_has} of them for an entry that \
         nobody has",
        seed - 1,
        repairs[1],
        repairs[0],
        repair_nanos_max / 1_000_000,
    );
    ExitCode::SUCCESS
}
