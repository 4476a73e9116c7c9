//! The command line. It has no logic: every command is a function of a crate below.

mod admin;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use spillway_updateserver::config::{Config, ConfigError};
use spillway_updateserver::node::{self, NodeError, RunOptions};

/// An update server that absorbs bursts of transactions.
const _: () = assert!(
    cfg!(debug_assertions) || !spillway_runtime::faults::BUILT_IN,
    "a release has no fault points: build without --workspace"
);

#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lay out the files of a new node: write the whole log, then the superblock.
    Format {
        /// The node's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run a node until SIGTERM or SIGINT.
    ///
    /// Prints `ready shard=N address=IP:PORT` for every shard and then `ready` on standard output
    /// once it serves. Messages for the operator go to standard error.
    Start {
        /// The node's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Look at a running node, create tables, read rows.
    Admin(admin::AdminArguments),
    /// Measure and verify.
    #[command(subcommand)]
    Perf(spillway_perf::PerfCommand),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Format { config } => format(&config),
        Command::Start { config } => start(&config),
        Command::Admin(arguments) => {
            admin::run(&arguments, &mut std::io::stdout().lock()).map_err(Into::into)
        }
        Command::Perf(command) => match std::env::current_exe() {
            Ok(program) => match command.run(program) {
                Ok(true) => Ok(()),
                Ok(false) => return ExitCode::from(2),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if is_usage(&*error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Whether the configuration or an argument is at fault.
fn is_usage(error: &(dyn std::error::Error + 'static)) -> bool {
    use NodeError::{Config, Fixed, FixedCluster, Geometry, Ports, Tls};
    error.is::<ConfigError>()
        || error.downcast_ref().is_some_and(admin::AdminError::is_usage)
        || matches!(
            error.downcast_ref(),
            Some(
                Config(_)
                    | Fixed { .. }
                    | FixedCluster { .. }
                    | Geometry(_)
                    | Ports { .. }
                    | Tls(_)
            )
        )
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn format(path: &std::path::Path) -> Outcome {
    let config = Config::load(path)?;
    let total = config.log.bytes_total.max(1);
    let mut told = 0;
    let report = node::format(&config, &mut |bytes| {
        let percent = bytes * 100 / total;
        if percent >= told + 10 {
            told = percent - percent % 10;
            eprintln!("writing the log: {told} %");
        }
    })?;
    println!("formatted node {} of cluster {:032x}", config.node.id, report.cluster.0);
    println!("log: {} MiB on {}", report.log_bytes >> 20, report.device.name);
    Ok(())
}

fn start(path: &std::path::Path) -> Outcome {
    let config = Config::load(path)?;
    let mut ready = |ready: &node::Ready| {
        for note in &ready.notes {
            eprintln!("note: {note}");
        }
        let mut out = std::io::stdout().lock();
        for (shard, address) in ready.addresses.iter().enumerate() {
            // Nobody may be reading: the node serves all the same.
            drop(writeln!(out, "ready shard={shard} address={address}"));
        }
        drop(writeln!(out, "ready"));
        drop(out.flush());
    };
    node::start(&config, RunOptions { ready: &mut ready })?;
    Ok(())
}
