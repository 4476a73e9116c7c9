//! Whole bursts against a child process that is really killed. This program is both: started with
//! `format` or `start` it is the node, else it runs the tests.

#[path = "support/fake_node.rs"]
mod fake_node;
#[path = "support/store.rs"]
mod store;

use clap::Parser;
use spillway_perf::disturbance::{
    ALL_KILLED, FOLLOWER_PAUSED, FOLLOWER_SLOWED, HANDED_OVER, LEADER_KILLED, summaries,
};
use spillway_perf::kills::{KillsArguments, TakeoverArguments};
use spillway_perf::{
    BurstArguments, BurstOptions, BurstReport, PerfError, Topology, burst, burst_with,
};
use spillway_runtime::file;

#[derive(Parser)]
#[command(args_override_self = true)]
struct Line {
    #[command(flatten)]
    burst: BurstArguments,
}

#[derive(Parser)]
struct Long<A: clap::Args> {
    #[command(flatten)]
    arguments: A,
}

/// A short burst against the fake node with a fault of this name.
fn run(fault: &str, line: &str) -> Result<BurstReport, PerfError> {
    let directory = tempfile::tempdir().expect("a directory");
    file::write_atomic(&directory.path().join("fault"), fault.as_bytes()).expect("a note");
    let directory = directory.path().to_str().expect("text");
    let line = format!(
        "burst --nodes 1 --dir {directory} --ramp 0.05 --hold 0.2 --fall 0.05 --accounts 3000 \
         --rows 200 --log-gib 0.1 --connections 4 --batch 20 {line}"
    );
    let arguments = Line::try_parse_from(line.split_whitespace()).expect("a good line").burst;
    let program = std::env::current_exe().expect("this program has a path");
    burst(&BurstOptions { program, topology: Topology::default(), arguments })
}

fn sound(line: &str) -> BurstReport {
    let report = run("", line).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(report.is_good(), "{line}: {}", report.text());
    assert!(report.verification.acknowledged > 0, "{line}");
    assert_eq!(report.verification.verified, report.verification.acknowledged, "{line}");
    report
}

fn bursts_of_a_sound_node_pass() {
    for workload in
        ["transfer", "insert", "hot", "ycsb-a", "cluster12", "cluster15", "cluster31", "cluster37"]
    {
        let report = sound(&format!("--workload {workload}"));
        assert!(report.resolved.is_some(), "{workload}: was not killed");
        let json = report.json();
        assert_eq!(json["workload"], workload);
        assert!(json["committed_tps"].as_f64().expect("a number") > 0.0);
        assert!(json["replay"]["records"].as_u64().expect("a number") > 0);
    }
}

fn rates_and_shapes_are_followed() {
    let report = sound("--rate 2000 --batch 10 --no-kill");
    // Ramp and fall are half of 50 ms each at 2,000 per second, the hold phase is 200 ms.
    assert_eq!(report.total.sent, 500);
    assert!((report.offered_tps - 2000.0).abs() < 1.0, "{}", report.offered_tps);
    assert!(report.resolved.is_none());
    let directory = tempfile::tempdir().expect("a directory");
    let shape = directory.path().join("shape.csv");
    file::write_atomic(&shape, b"timestamp,value\na,10\nb,20\nc,10\n").expect("written");
    let report = sound(&format!("--rate 2000 --no-kill --shape {}", shape.display()));
    // The mean of 10, 20, 10 is three quarters of the peak: 0.3 s of 1,500 per second.
    assert_eq!(report.total.sent, 460, "whole frames of 20");
}

fn a_kill_may_come_at_any_moment() {
    for after in ["0", "0.02", "0.1", "0.27"] {
        let line = format!("--kill-after {after}");
        let report = run("", &line).expect("runs");
        assert!(report.is_good(), "{line}: {}", report.text());
        assert!(report.resolved.is_some(), "{line}: was not killed");
    }
}

fn what_was_executed_but_not_answered_counts_once() {
    for workload in ["transfer", "insert", "hot", "ycsb-a"] {
        let report = run("mute", &format!("--workload {workload}")).expect("runs");
        assert!(report.is_good(), "{workload}: {}", report.text());
        let resolved = report.resolved.expect("was killed");
        assert!(resolved.transactions >= 4 * 20, "{workload}: {resolved:?}");
        assert_eq!(resolved.committed, resolved.transactions, "{workload}");
    }
}

fn a_node_that_lies_is_caught() {
    for (fault, line) in [
        ("lose", "--workload transfer"),
        ("lose", "--workload insert"),
        ("lose", "--workload hot"),
        ("lose", "--workload transfer --batch 1"),
        ("unbalance", "--workload transfer"),
        ("foreign", "--workload transfer"),
        ("foreign", "--workload insert"),
        ("forget", "--workload insert"),
        ("forget", "--workload hot"),
    ] {
        let report = run(fault, line).unwrap_or_else(|error| panic!("{fault}, {line}: {error}"));
        assert!(!report.is_good(), "{fault}, {line}: {}", report.text());
        let json = report.json();
        let v = &report.verification;
        match fault {
            "lose" => assert!(v.lost > 0 && json["lost"].as_u64() == Some(v.lost), "{line}"),
            "unbalance" => assert!(v.imbalanced == 2, "the account and the total: {v:?}"),
            "foreign" => assert!(v.foreign == 1, "{v:?}"),
            _ => {}
        }
        assert!(report.text().contains("FAILED"));
    }
}

fn clusters_go_on_without_their_leader() {
    let report = sound("--nodes 3 --rate 2000 --batch 10");
    assert!(report.resolved.is_none() && report.events.is_empty());
    assert_eq!(report.agreement.as_ref().expect("compared").nodes.len(), 3);
    let report = sound("--nodes 3 --kill-after 0.1");
    assert!(report.resolved.is_some(), "was not killed");
    let line = "--nodes 3 --rate 2000 --batch 10 --hold 3 --kill-leader-at 0.5 \
                --transfer-at 1.2 --pause-follower 0.3@2";
    let report = sound(line);
    let kinds: Vec<&str> = report.events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [LEADER_KILLED, HANDED_OVER, FOLLOWER_PAUSED]);
    let [killed, handed_over, _] = &report.events[..] else { panic!("three events") };
    assert!(killed.gap_ns > 0 && killed.ready_s.is_some() && killed.caught_up_s.is_some());
    // The fake leader leaves its place empty for a moment.
    assert!(handed_over.gap_ns > 1_000_000, "{}", report.text());
    let names: Vec<&str> = report.windows.iter().map(|window| window.name.as_str()).collect();
    let expected = ["before", LEADER_KILLED, HANDED_OVER, FOLLOWER_PAUSED, "after"];
    assert_eq!(names, expected);
    assert!(report.text().contains("leader killed"), "{}", report.text());
}

fn a_slow_disk_is_an_event() {
    let line = "--nodes 3 --rate 2000 --batch 10 --hold 0.6 --slow-follower 0.2@0.2";
    match run("", line) {
        Ok(report) => assert_eq!(report.events[0].kind, FOLLOWER_SLOWED),
        Err(error) => println!("skipped: {error}"),
    }
}

fn nodes_that_differ_are_caught() {
    let report = run("diverge", "--nodes 3").expect("runs");
    assert!(!report.is_good() && report.text().contains("node 3 holds"), "{}", report.text());
}

fn long_runs_kill_and_verify() {
    let directory = tempfile::tempdir().expect("a directory");
    let line = |task: &str, more: &str| {
        let directory = directory.path().to_str().expect("text");
        format!("{task} {more} --dir {directory} --log-gib 0.1 --accounts 3000 --rate 2000")
    };
    let options = |arguments| {
        let program = std::env::current_exe().expect("this program has a path");
        BurstOptions { program, topology: Topology::default(), arguments }
    };
    let text = line("takeover", "--times 3 --transfers 2");
    let arguments: TakeoverArguments = Long::parse_from(text.split_whitespace()).arguments;
    let burst = arguments.burst().expect("a good line");
    let report = burst_with(&options(burst), arguments.script()).expect("runs");
    assert!(report.is_good(), "{}", report.text());
    assert_eq!(summaries(&report.events)[LEADER_KILLED].count, 3);
    assert_eq!(summaries(&report.events)[HANDED_OVER].count, 2);
    let text = line("kills", "--times 6 --all-at-once 2 --seed 11");
    let arguments: KillsArguments = Long::parse_from(text.split_whitespace()).arguments;
    let burst = arguments.burst().expect("a good line");
    let report = burst_with(&options(burst), arguments.script(11)).expect("runs");
    assert!(report.is_good(), "{}", report.text());
    assert_eq!(report.events.len(), 6);
    assert_eq!(summaries(&report.events)[ALL_KILLED].count, 2);
}

fn failures_of_the_node_are_told() {
    let error = run("format", "").expect_err("cannot format").to_string();
    assert!(error.contains("exit code 3") && error.contains("on fire"), "{error}");
    let error = run("die", "").expect_err("dies").to_string();
    assert!(error.contains("exit code 4") && error.contains("cosmic ray"), "{error}");
    let error = run("", "--log-gib 1000000").expect_err("no such disk").to_string();
    assert!(error.contains("MiB free") && error.contains("--log-gib"), "{error}");
    let error = run("", "--shape /nowhere.csv --rate 1000").expect_err("no file").to_string();
    assert!(error.contains("/nowhere.csv"), "{error}");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if matches!(arguments.first().map(String::as_str), Some("format" | "start")) {
        fake_node::run(&arguments);
        return;
    }
    let tests: [(&str, fn()); 10] = [
        ("bursts_of_a_sound_node_pass", bursts_of_a_sound_node_pass),
        ("rates_and_shapes_are_followed", rates_and_shapes_are_followed),
        ("a_kill_may_come_at_any_moment", a_kill_may_come_at_any_moment),
        (
            "what_was_executed_but_not_answered_counts_once",
            what_was_executed_but_not_answered_counts_once,
        ),
        ("a_node_that_lies_is_caught", a_node_that_lies_is_caught),
        ("failures_of_the_node_are_told", failures_of_the_node_are_told),
        ("clusters_go_on_without_their_leader", clusters_go_on_without_their_leader),
        ("a_slow_disk_is_an_event", a_slow_disk_is_an_event),
        ("nodes_that_differ_are_caught", nodes_that_differ_are_caught),
        ("long_runs_kill_and_verify", long_runs_kill_and_verify),
    ];
    let filter = arguments.iter().find(|word| !word.starts_with('-'));
    for (name, test) in tests {
        if filter.is_none_or(|filter| name.contains(filter.as_str())) {
            eprintln!("test {name}");
            test();
            eprintln!("test {name} ... ok");
        }
    }
}
