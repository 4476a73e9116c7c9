//! `cargo xtask rig`: runs real nodes on a file system that fails on demand.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use spillway_rigs::RigError;
use spillway_rigs::file_system::{CONTROL, Disks};
use spillway_rigs::load::{Outcome, Programs};
use spillway_rigs::mount;
use spillway_rigs::rigs::errors::{self, ErrorsArguments};
use spillway_rigs::rigs::flip::{self, FlipArguments};
use spillway_rigs::rigs::full::{self, FullArguments};
use spillway_rigs::rigs::pause::{self, PauseArguments};
use spillway_rigs::rigs::power::{self, PowerArguments};
use spillway_rigs::rigs::slow::{self, SlowArguments};
use spillway_rigs::rigs::synced;

/// Runs real nodes on a file system that fails on demand, under a load whose every
/// acknowledgement is held against what is there afterwards. Exits with 2 if anything is missing.
#[derive(Parser)]
#[command(name = "cargo xtask rig", bin_name = "cargo xtask rig", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    rig: Rig,
}

#[derive(Subcommand)]
enum Rig {
    /// Power cuts of one node, of a minority, of all: what was not flushed is gone.
    Power(PowerArguments),
    /// Errors of writes and flushes under load, and of reads at start.
    Eio(ErrorsArguments),
    /// Writes of which only the first sectors arrive.
    Torn(ErrorsArguments),
    /// Disks a hundred times slower.
    Slow(SlowArguments),
    /// Disks that answer nothing for a while; then what a killed process had asked for arrives.
    Stall(SlowArguments),
    /// Disks without room, at format and while nodes serve.
    Full(FullArguments),
    /// Bits of logs that flip while all nodes are without power.
    Flip(FlipArguments),
    /// Nodes that stand still and wake up, with reads that must not be stale.
    Pause(PauseArguments),
    /// Mounts a directory elsewhere, until the input ends; orders go into the file `.disks`.
    Mount {
        /// The directory with the files.
        below: PathBuf,
        /// Where to mount it.
        at: PathBuf,
        /// How many disks there are: a directory `node-N` is on disk N.
        #[arg(long, default_value_t = 1)]
        disks: usize,
        /// What is random about faults follows from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Lets a node that was just formatted write with RWF_DSYNC.
    #[command(hide = true)]
    Synced {
        /// Its configuration file.
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse().rig) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(outcome)) => {
            println!("{}", outcome.report.text());
            for finding in &outcome.report.verification.findings {
                println!("{finding}");
            }
            println!("{}", outcome.line);
            if outcome.is_good { ExitCode::SUCCESS } else { ExitCode::from(2) }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(rig: &Rig) -> Result<Option<Outcome>, RigError> {
    let programs = Programs::find;
    let outcome = match rig {
        Rig::Power(arguments) => power::run(arguments, &programs()?)?,
        Rig::Eio(arguments) => errors::run("eio", arguments, &programs()?)?,
        Rig::Torn(arguments) => errors::run("torn", arguments, &programs()?)?,
        Rig::Slow(arguments) => slow::run("slow", arguments, &programs()?)?,
        Rig::Stall(arguments) => slow::run("stall", arguments, &programs()?)?,
        Rig::Full(arguments) => full::run(arguments, &programs()?)?,
        Rig::Flip(arguments) => flip::run(arguments, &programs()?)?,
        Rig::Pause(arguments) => pause::run(arguments, &programs()?)?,
        Rig::Mount { below, at, disks, seed } => {
            let disks = Disks::new(below, (*disks).max(1), *seed)?;
            let session = mount::mount(&disks, at)?;
            println!("mounted; orders go into {}", at.join(CONTROL).display());
            let mut input = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut input);
            read.map_err(RigError::system("waiting for the end of the input"))?;
            session.umount_and_join().map_err(RigError::system("unmounting"))?;
            return Ok(None);
        }
        Rig::Synced { config } => {
            synced::run(config)?;
            return Ok(None);
        }
    };
    Ok(Some(outcome))
}
