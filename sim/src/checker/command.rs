//! `spillway-sim check FILE...`: judges histories that are in files.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use spillway_runtime::file;

use super::{check, text};

/// Judges histories: whether what clients saw is strictly serializable. Exit code 1: it is not.
/// Exit code 2: a file is no history.
#[derive(Args, Debug)]
pub struct CheckArguments {
    /// Histories, one JSON object a line, as Jepsen and Elle write them.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// See the module.
pub fn command(arguments: &CheckArguments) -> ExitCode {
    let mut findings = 0;
    for path in &arguments.files {
        let history = match file::read(path) {
            Err(error) => Err(error.to_string()),
            Ok(bytes) => text::read(&bytes).map_err(|e| format!("{}: {e}", path.display())),
        };
        let history = match history {
            Ok(history) => history,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(2);
            }
        };
        let verdict = check(&history);
        let found: u64 = verdict.findings.counts.values().sum();
        findings += found;
        println!(
            "{}: {} transactions, {} steps between them, {found} finding(s)",
            path.display(),
            history.transactions().len(),
            verdict.edges
        );
        print!("{}", verdict.findings.text(&history));
    }
    if findings > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
