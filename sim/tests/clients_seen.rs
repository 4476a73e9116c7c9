//! What the clients of simulated runs saw, judged on its own: the oracle is blind here.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use spillway_sim::checker::{Class, Findings, History, Kind, Micro, check, text};
use spillway_sim::{Bug, Options, run_recorded};

fn seen(options: Options) -> Option<History> {
    let run = || run_recorded(Options { blind: true, ..options });
    // A broken assertion of a core ends the run, and what was seen up to then is lost.
    let (_, history) = catch_unwind(AssertUnwindSafe(run)).ok()?.expect("clients can be recorded");
    Some(history)
}

fn found(options: Options) -> Option<(Findings, String)> {
    let history = seen(options)?;
    let findings = check(&history).findings;
    let text = findings.text(&history);
    (!findings.is_empty()).then_some((findings, text))
}

/// The first seed with a finding, its classes and its first finding.
fn find(options: Options, bug: Bug, seeds: u64) -> Option<(u64, BTreeSet<Class>, String)> {
    (0..seeds).find_map(|seed| {
        let (findings, text) = found(Options { seed, bug: Some(bug), ..options.clone() })?;
        Some((seed, findings.counts.keys().copied().collect(), text))
    })
}

#[test]
fn an_answer_before_the_commit_shows_to_clients() {
    let bug = Bug::AnswerBeforeCommit;
    let options = Options::new(0);
    let (seed, classes, text) =
        find(options.clone(), bug, 40).unwrap_or_else(|| panic!("clients saw nothing of {bug:?}"));
    println!("{bug:?}: seed {seed}: {classes:?}\n{text}");
    let without = found(Options { seed, bug: None, ..options });
    assert!(without.is_none(), "seed {seed}: found without {bug:?}, too: {without:?}");
    assert!(classes.contains(&Class::StaleRead), "nobody read what was stale");
}

#[test]
fn clients_see_enough_to_be_judged() {
    let (mut reads, mut absent, mut writes, mut failed, mut versions) = (0, 0, 0, 0, 0);
    for seed in 0..20 {
        let history = seen(Options::new(seed)).expect("the run comes to its end");
        let verdict = check(&history);
        let findings = verdict.findings.text(&history);
        assert!(findings.is_empty(), "seed {seed}: {findings}");
        versions += verdict.edges;
        for (number, transaction) in (0u32..).zip(history.transactions()) {
            failed += u64::from(transaction.kind == Kind::Fail);
            for micro in history.micros(number) {
                match micro {
                    Micro::Read { version: Some(_), .. } => reads += 1,
                    Micro::Read { .. } if transaction.kind == Kind::Ok => absent += 1,
                    Micro::Write { .. } if transaction.kind == Kind::Ok => writes += 1,
                    _ => {}
                }
            }
        }
        // The history of a run can be kept as a file and judged there.
        let read = text::read(text::write(&history).as_bytes()).expect("it is well formed");
        assert_eq!(check(&read).edges, verdict.edges, "seed {seed}");
    }
    println!(
        "{reads} reads, {absent} of nothing, {writes} writes, {failed} failed, {versions} steps"
    );
    assert!(reads > 2_000 && absent > 500 && writes > 2_000 && failed > 500);
    assert!(versions > 10_000);
}
