//! `cargo xtask sim images`.

use std::process::ExitCode;

use spillway_sim::images::{Options, PLANTS, Plant, run, run_current};

/// Power losses at every moment of short sequences of log operations.
#[derive(clap::Args)]
pub struct Arguments {
    /// Operations of a sequence at most.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=4))]
    length: u32,
    /// Not more images than this, of runs that are spread over all.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    limit: u64,
    /// Only this run.
    #[arg(long)]
    run: Option<u64>,
    /// Chooses the random subsets of what was in flight.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Plant a fault.
    #[arg(long, value_parser = plant_of)]
    plant: Option<Plant>,
}

/// `WipeSkipped` as `wipe-skipped`.
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

fn plant_of(name: &str) -> Result<Plant, String> {
    let named = |plant: &Plant| kebab(&format!("{plant:?}"));
    let names = PLANTS.each_ref().map(named);
    let known = PLANTS.into_iter().find(|plant| named(plant) == name);
    known.ok_or_else(|| format!("one of {}", names.join(", ")))
}

/// Makes the images and tells what was found.
pub fn run_images(arguments: &Arguments) -> ExitCode {
    let Arguments { length, limit, run: only, seed, plant } = *arguments;
    let mut line = format!("cargo xtask sim images --length {length} --seed {seed}");
    if let Some(plant) = plant {
        line.push_str(&format!(" --plant {}", kebab(&format!("{plant:?}"))));
    }
    let repeat = line.clone();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("{panic}\nrepeat with: {repeat} --run {}", run_current());
    }));
    let report = run(&Options { length, limit, run: only, seed, plant });
    println!("{report}");
    if report.bad == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("repeat one with: {line} --run RUN");
    ExitCode::FAILURE
}
