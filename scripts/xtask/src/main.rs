//! `cargo xtask`: the command line of the house.

mod interleavings;
mod miri;
mod mutants;

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use xtask::{house, tree};

/// Daily work on Spillway.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// House rules, format and lints: what must hold before a commit.
    Check,
    /// The house rules alone (docs/STYLE.md).
    House,
    /// Feeds a decoder with broken inputs; a failure prints the line that repeats it.
    Fuzz {
        /// TARGET, --runs N, --seed S; without any, lists the targets.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Runs the simulated cluster from seeds; a failure prints the line that repeats it.
    Sim {
        /// --seeds N, --start S, or --seed S; --nodes N, --seconds V, --shrink, --help says more.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Kills a node under load again and again, and counts what was lost (scripts/kill9.sh).
    Kill9 {
        /// Number of kills.
        #[arg(long, default_value_t = 200)]
        times: u32,
        /// Further arguments for the script, after `--`.
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Kills the leader of a cluster under load again and again, and lets it hand over; tells how
    /// long nothing was committed (`spillway perf takeover`).
    Takeover {
        /// --times N, --transfers N, --nodes N, --rate R, --seed S and what else it takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Kills random nodes of a cluster under load, sometimes all at once, and counts what was
    /// lost (`spillway perf kills`).
    #[command(name = "kill_random", alias = "kill-random")]
    KillRandom {
        /// --times N, --all-at-once N, --nodes N, --rate R, --seed S and what else it takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Holds the unsafe code without system calls against the language's rules.
    Miri {
        /// memtable, memory, slots or queues; without any, all of them.
        part: Option<String>,
        /// The newer rules of aliasing instead of the default ones.
        #[arg(long)]
        tree_borrows: bool,
        /// Schedules of what runs on several threads.
        #[arg(long, default_value_t = 8)]
        seeds: u32,
    },
    /// Explores the orders in which threads meet in queues, wake flags and slots.
    Interleavings {
        /// Part of a test's name.
        filter: Option<String>,
    },
    /// Changes log and quorum in small ways and looks whether a test notices.
    Mutants {
        /// k/n: every n-th mutant, from the k-th on (from 0).
        #[arg(long)]
        shard: Option<String>,
        /// Only these files.
        #[arg(long = "file")]
        files: Vec<String>,
        /// Prints the mutants and tests none.
        #[arg(long)]
        list: bool,
    },
    /// Runs real nodes on a file system that fails on demand - power cuts, errors, torn writes,
    /// slow and full disks, flipped bits - and verifies what they kept. Needs /dev/fuse.
    Rig {
        /// NAME, --times N, --nodes N, --seed S and what else it takes; `--help` lists the rigs.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Check => check(),
        Task::House => check_house(),
        Task::Fuzz { rest } => fuzz(&rest),
        Task::Sim { rest } => sim(&rest),
        Task::Kill9 { times, rest } => kill9(times, &rest),
        Task::Takeover { rest } => perf("takeover", &rest),
        Task::KillRandom { rest } => perf("kills", &rest),
        Task::Miri { part, tree_borrows, seeds } => miri::run(part.as_deref(), tree_borrows, seeds),
        Task::Interleavings { filter } => interleavings::run(filter.as_deref()),
        Task::Mutants { shard, files, list } => mutants::run(shard.as_deref(), &files, list),
        Task::Rig { rest } => rig(&rest),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<(), String> {
    check_house()?;
    run("cargo", &["fmt", "--all", "--check"])?;
    run("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn check_house() -> Result<(), String> {
    let root = tree::root();
    let files = tree::files(&root).map_err(|e| format!("cannot read {}: {e}", root.display()))?;
    let violations = house::check(&files);
    for violation in &violations {
        eprintln!("{violation}");
    }
    match violations.len() {
        0 => {
            println!("house rules: {} files, all in order", files.len());
            Ok(())
        }
        count => Err(format!("{count} violations of the house rules (docs/STYLE.md says why)")),
    }
}

/// The targets are a crate of their own: this one has to build without the others.
fn fuzz(rest: &[String]) -> Result<(), String> {
    let mut arguments = vec!["run", "--quiet", "--package", "spillway-fuzz", "--"];
    arguments.extend(rest.iter().map(String::as_str));
    run("cargo", &arguments)
}

/// A crate of its own for the same reason; with optimizations, because seeds are many, and with
/// panics that end one seed and not all.
fn sim(rest: &[String]) -> Result<(), String> {
    let mut arguments =
        vec!["run", "--quiet", "--profile", "sim", "--package", "spillway-sim", "--"];
    arguments.extend(rest.iter().map(String::as_str));
    run_with("cargo", &arguments, &[("SPILLWAY_COMMIT", &commit())])
}

/// What a failure must name to be repeated: the commit, and whether the tree differs from it.
fn commit() -> String {
    let arguments = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"];
    let output = Command::new("git").args(arguments).current_dir(tree::root()).output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

fn kill9(times: u32, rest: &[String]) -> Result<(), String> {
    let script = tree::root().join("scripts/kill9.sh");
    if !script.is_file() {
        return Err(format!("{} is missing", script.display()));
    }
    let times = times.to_string();
    let script = script.to_string_lossy();
    let mut arguments = vec![script.as_ref(), "--times", times.as_str()];
    arguments.extend(rest.iter().map(String::as_str));
    run("bash", &arguments)
}

/// Runs `spillway perf` with the release build, or with the binary that SPILLWAY names. It is a
/// copy that runs: a build that replaces the binary must not change it under a long run.
#[expect(clippy::disallowed_methods, reason = "the tools are built without the runtime")]
fn perf(task: &str, rest: &[String]) -> Result<(), String> {
    let binary = match std::env::var_os("SPILLWAY") {
        Some(binary) => PathBuf::from(binary),
        None => {
            run("cargo", &["build", "--release", "--quiet"])?;
            tree::root().join("target/release/spillway")
        }
    };
    let name = format!("spillway-{task}-{}", std::process::id());
    let copy = std::env::temp_dir().join(name);
    std::fs::copy(&binary, &copy)
        .map_err(|e| format!("cannot copy {} to {}: {e}", binary.display(), copy.display()))?;
    let mut arguments = vec!["perf", task];
    arguments.extend(rest.iter().map(String::as_str));
    let outcome = run(&copy.to_string_lossy(), &arguments);
    let removed = std::fs::remove_file(&copy);
    outcome?;
    removed.map_err(|e| format!("cannot remove {}: {e}", copy.display()))
}

/// A crate of its own. The nodes are the release build, or the binary that SPILLWAY names.
fn rig(rest: &[String]) -> Result<(), String> {
    if std::env::var_os("SPILLWAY").is_none() {
        run("cargo", &["build", "--release", "--quiet", "--package", "spillway"])?;
    }
    let mut arguments = vec!["run", "--quiet", "--release", "--package", "spillway-rigs", "--"];
    arguments.extend(rest.iter().map(String::as_str));
    run("cargo", &arguments)
}

/// Runs a program in the root of the workspace, its output on ours.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    run_with(program, arguments, &[])
}

/// The same with variables of the environment.
fn run_with(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<(), String> {
    println!("+ {program} {}", arguments.join(" "));
    let root: &Path = &tree::root();
    let status = Command::new(program)
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(root)
        .status()
        .map_err(|e| format!("cannot start {program}: {e}; is it installed and in PATH?"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} failed: {status}")) }
}
