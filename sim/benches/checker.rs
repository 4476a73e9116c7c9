//! What the check of a large history costs: seconds on one core, and memory.
//! `cargo bench -p spillway-sim --bench checker -- [TRANSACTIONS]`

use std::hint::black_box;
use std::path::Path;

use spillway_runtime::file;
use spillway_sim::checker::generator::{Shape, Workload, valid};
use spillway_sim::checker::{check, text};

fn shape(workload: Workload, transactions: usize) -> Shape {
    Shape {
        workload,
        transactions,
        clients: 64,
        keys: 1000,
        key_writes_max: 64,
        steps_max: 5,
        write_percent: 50,
        update_percent: 50,
        hot_in: 0,
        fail_in: 20,
        info_in: 100,
    }
}

/// The most memory that the process has had so far.
fn peak_mib() -> u64 {
    let status = file::read_to_string(Path::new("/proc/self/status")).expect("the kernel tells");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it has a peak");
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("a number") / 1024
}

/// CPU time of the process, which has one thread: what else the machine does hardly counts.
fn cpu_seconds() -> f64 {
    let stat = file::read_to_string(Path::new("/proc/self/stat")).expect("the kernel tells");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>());
    // The kernel counts in hundredths for every program.
    ticks.map(|ticks| ticks.expect("a number")).sum::<u64>() as f64 / 100.0
}

fn main() {
    let count = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let usual = |workload| shape(workload, count);
    let shapes = [
        ("lists", usual(Workload::Lists)),
        ("registers", usual(Workload::Registers)),
        ("registers with versions", usual(Workload::Versions)),
        ("lists, 10,000 clients", Shape { clients: 10_000, ..usual(Workload::Lists) }),
        ("lists, hot key", Shape { hot_in: 3, ..usual(Workload::Lists) }),
        (
            "versions, 8 keys for ever",
            Shape { keys: 8, key_writes_max: u32::MAX, ..usual(Workload::Versions) },
        ),
    ];
    for (name, shape) in shapes {
        let history = valid(shape, 1);
        let start = cpu_seconds();
        let verdict = black_box(check(&history));
        let taken = cpu_seconds() - start;
        assert!(verdict.findings.is_empty(), "{}", verdict.findings.text(&history));
        println!(
            "{name}: {count} transactions, {} steps, {} keys, {} nodes, {} edges: {taken:.2} s, \
             peak {} MiB",
            history.micros_count(),
            history.keys().len(),
            verdict.nodes,
            verdict.edges,
            peak_mib()
        );
        if name == "lists" {
            let start = cpu_seconds();
            let written = text::write(&history);
            let (wrote, start) = (cpu_seconds() - start, cpu_seconds());
            let read = text::read(written.as_bytes()).expect("what was written can be read");
            assert_eq!(read.transactions().len(), count);
            let bytes = written.len() >> 20;
            println!(
                "  {bytes} MiB of text: written in {wrote:.2} s, read in {:.2} s",
                cpu_seconds() - start
            );
        }
    }
}
