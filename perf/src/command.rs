//! The `perf` command: runs what was asked for, prints the result, tells whether it is good.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use spillway_runtime::error::{Errno, RuntimeError};
use spillway_runtime::file;

use crate::arguments::{BurstArguments, BurstOptions};
use crate::burst::burst;
use crate::error::PerfError;
use crate::report::BurstReport;

/// What `perf` can do.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum PerfCommand {
    /// Drives a burst of transactions at a node, kills it, restarts it, and verifies.
    ///
    /// Formats a node in a temporary directory, starts it as a child process, loads the workload's
    /// rows, raises the load, holds it, lets it fall, and stops the node with SIGKILL while frames
    /// are in flight. Then it starts the node again, has every unanswered transaction answered,
    /// and checks that every acknowledged one is there and that the books balance. Exits non-zero
    /// if anything is missing.
    Burst(Box<BurstArguments>),
}

impl PerfCommand {
    /// Runs it with `program` as the node's binary. False: the node did not keep what it
    /// acknowledged; the output says what.
    pub fn run(self, program: PathBuf) -> Result<bool, PerfError> {
        let Self::Burst(arguments) = self;
        let json = arguments.json.clone();
        let report = burst(&BurstOptions { program, arguments: *arguments })?;
        let is_json_out = json.as_deref() == Some(Path::new("-"));
        if let Some(path) = &json {
            write_json(&report, path, is_json_out)?;
        }
        if is_json_out {
            eprint!("{}", report.text());
        } else {
            print(&report.text())?;
        }
        Ok(report.is_good())
    }
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
