//! The `perf` command: runs what was asked for, prints the result, tells whether it is good.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use spillway_runtime::error::{Errno, RuntimeError};
use spillway_runtime::file;

use crate::arguments::{BurstArguments, BurstOptions};
use crate::burst::{burst, burst_with};
use crate::error::PerfError;
use crate::kills::{KillsArguments, TakeoverArguments};
use crate::report::BurstReport;
use crate::site::Topology;

/// What `perf` can do.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum PerfCommand {
    /// Drives a burst of transactions at a cluster and verifies what it kept.
    ///
    /// Formats the nodes in a temporary directory, starts them as child processes, loads the
    /// workload's rows, raises the load, holds it, lets it fall. Checks that every acknowledged
    /// transaction is there, that the books balance, and that all nodes hold the same. A single
    /// node is stopped with SIGKILL while frames are in flight and started again before. Exits
    /// non-zero if anything is missing.
    Burst(Box<BurstArguments>),
    /// Kills the leader again and again under load, and lets it hand over; tells the write gaps.
    Takeover(Box<TakeoverArguments>),
    /// Kills nodes at random under load, sometimes all at once, and verifies what they kept.
    Kills(Box<KillsArguments>),
}

impl PerfCommand {
    /// Runs it with `program` as the nodes' binary. False: the nodes did not keep what they
    /// acknowledged; the output says what.
    pub fn run(self, program: PathBuf) -> Result<bool, PerfError> {
        let options =
            |arguments| BurstOptions { program, topology: Topology::default(), arguments };
        let (report, json) = match self {
            Self::Burst(arguments) => {
                let json = arguments.json.clone();
                (burst(&options(*arguments))?, json)
            }
            Self::Takeover(arguments) => {
                let json = arguments.load.json.clone();
                (burst_with(&options(arguments.burst()?), arguments.script())?, json)
            }
            Self::Kills(arguments) => {
                let json = arguments.load.json.clone();
                let options = options(arguments.burst()?);
                let seed = options.arguments.seed.expect("chosen above");
                (burst_with(&options, arguments.script(seed))?, json)
            }
        };
        output(&report, json.as_deref())?;
        Ok(report.is_good())
    }
}

/// The result, where it was asked for.
fn output(report: &BurstReport, json: Option<&Path>) -> Result<(), PerfError> {
    let is_json_out = json == Some(Path::new("-"));
    if let Some(path) = json {
        write_json(report, path, is_json_out)?;
    }
    if is_json_out {
        eprint!("{}", report.text());
        return Ok(());
    }
    print(&report.text())
}

fn print(text: &str) -> Result<(), PerfError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(PerfError::Runtime(RuntimeError::System {
            operation: "write the result",
            errno: Errno::of(&error),
        })),
        Ok(()) => Ok(()),
    }
}

fn write_json(report: &BurstReport, path: &Path, is_out: bool) -> Result<(), PerfError> {
    let mut text = format!("{:#}", report.json());
    text.push('\n');
    if is_out {
        return print(&text);
    }
    Ok(file::write_atomic(path, text.as_bytes())?)
}
