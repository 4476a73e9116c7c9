//! One node whose power goes, for real: started, loaded, cut, started again, verified.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use spillway_perf::PerfError;
use spillway_rigs::RigError;
use spillway_rigs::load::Programs;
use spillway_rigs::rigs::power::{self, PowerArguments};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    power: PowerArguments,
}

/// The programs. A run of the tests of all crates has built the node; else it is built here.
fn programs() -> Programs {
    let rigs = PathBuf::from(env!("CARGO_BIN_EXE_spillway-rigs"));
    let node = rigs.with_file_name("spillway");
    if !node.exists() {
        build(&rigs);
    }
    Programs { node, rigs }
}

/// Builds the node with the profile of this test.
fn build(rigs: &Path) {
    let profile = rigs.parent().expect("a directory of the profile");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "spillway", "--bin", "spillway"]);
    if profile.ends_with("release") {
        build.arg("--release");
    }
    // What this test was told of its own crate would make build scripts run anew.
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            build.env_remove(name);
        }
    }
    let target = profile.parent().expect("a target directory");
    let built = build.arg("--target-dir").arg(target).status().expect("cargo runs");
    assert!(built.success(), "the node does not build");
}

fn seed(test: &str) -> u64 {
    let given = std::env::var("SPILLWAY_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| spillway_runtime::clock::wall_now_micros() & 0xFFFF_FFFF);
    eprintln!("{test}: seed {seed} (repeat: SPILLWAY_SEED={seed} cargo test {test})");
    seed
}

fn arguments(seed: u64, line: &str) -> PowerArguments {
    let directory = env!("CARGO_TARGET_TMPDIR");
    let line = format!(
        "power --nodes 1 --seed {seed} --dir {directory} --rate 1000 --accounts 1000 \
         --log-gib 0.0625 --memory-gib 0.25 {line}"
    );
    Line::try_parse_from(line.split_whitespace()).expect("a good line").power
}

#[test]
fn one_node_keeps_what_it_acknowledged_over_power_cuts() {
    let test = "one_node_keeps_what_it_acknowledged_over_power_cuts";
    let seed = seed(test);
    let programs = programs();
    for line in ["--times 2", "--times 2 --synced"] {
        let outcome = match power::run(&arguments(seed, line), &programs) {
            Ok(outcome) => outcome,
            Err(error @ RigError::NoFuse(_)) => return eprintln!("{test}: skipped: {error}"),
            Err(error) => panic!("{line}: {error}"),
        };
        eprintln!("{}", outcome.line);
        assert!(outcome.is_good, "{line}: {}\n{}", outcome.line, outcome.report.text());
        let kept = &outcome.report.verification;
        assert!(kept.acknowledged > 0 && kept.verified == kept.acknowledged);
    }
}

#[test]
fn a_disk_that_lies_about_flushes_is_found_out() {
    let test = "a_disk_that_lies_about_flushes_is_found_out";
    let seed = seed(test);
    match power::run(&arguments(seed, "--times 4 --lying-disks"), &programs()) {
        Ok(outcome) => {
            eprintln!("{}", outcome.line);
            assert!(!outcome.is_good, "what was never flushed is there: {}", outcome.line);
        }
        Err(error @ RigError::NoFuse(_)) => eprintln!("{test}: skipped: {error}"),
        // The node itself may find that its log ends too early, and refuse to start.
        Err(error @ RigError::Perf(PerfError::Node { .. })) => eprintln!("{test}: {error}"),
        Err(error) => panic!("{error}"),
    }
}
