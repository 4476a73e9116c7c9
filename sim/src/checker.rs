//! Whether what clients saw was strictly serializable.
//!
//! A [`History`] holds transactions of processes, with the times at which they were sent and
//! answered. They append to lists and read them, or write and read registers. From what was read
//! follows what must have come before what: [`lists`] and [`registers`] say how. If no order of all
//! transactions can have been the order of execution, there is a cycle, and [`cycles`] finds one
//! that is short. Nothing that a strictly serializable database can do is a finding.
//!
//! Failed transactions had no effect; unknown ones may have one at any time after they were sent,
//! or none. What is not known is not guessed: registers that were written twice with the same value
//! are ordered only by their versions, if the history has those.
//!
//! A transaction that is part of a cycle that was told of is not looked at for a further one, so
//! that one cause is told of once.

pub mod command;
mod cycles;
pub mod finding;
pub mod generator;
pub mod graph;
pub mod history;
mod lists;
pub mod planter;
mod registers;
pub mod text;

pub use finding::{Class, Finding, Findings};
pub use history::{Datum, History, Kind, Micro, Name};

use cycles::Search;
use finding::{Party, Step};
use graph::{Builder, EdgeKind};

/// What came of a check.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// All anomalies.
    pub findings: Findings,
    /// Transactions that were ordered, unknown writers among them.
    pub nodes: usize,
    /// Steps between them, without those in real time.
    pub edges: usize,
}

/// What is gathered key by key.
#[derive(Debug)]
struct Judge<'a> {
    history: &'a History,
    graph: Builder,
    findings: Findings,
    /// Those in cycles that were seen without the graph.
    in_cycles: Vec<u32>,
    /// Unknown transactions of which somebody saw something: they took effect.
    effective: Vec<bool>,
    deferred: Vec<Deferred>,
}

/// Sources come before those of the targets that turn out to have taken effect.
#[derive(Debug)]
struct Deferred {
    key: u32,
    sources: Vec<(u32, EdgeKind)>,
    targets: Vec<u32>,
}

impl Judge<'_> {
    fn kind(&self, number: u32) -> Kind {
        self.history.transaction(number).kind
    }

    /// Writers of a key come behind the sources, those of unknown end if they took effect.
    fn writers_after(&mut self, key: u32, sources: Vec<(u32, EdgeKind)>, mut writers: Vec<u32>) {
        writers.sort_unstable();
        writers.dedup();
        let mut targets = writers.clone();
        targets.retain(|writer| self.kind(*writer) == Kind::Info);
        writers.retain(|writer| self.kind(*writer) == Kind::Ok);
        if !writers.is_empty() {
            self.graph.fan(&sources, &writers, key);
        }
        if !targets.is_empty() {
            self.deferred.push(Deferred { key, sources, targets });
        }
    }

    fn deferred(&mut self) {
        for Deferred { key, sources, mut targets } in std::mem::take(&mut self.deferred) {
            targets.retain(|target| self.effective[*target as usize]);
            if !targets.is_empty() {
                self.graph.fan(&sources, &targets, key);
            }
        }
    }

    /// Two transactions read one state of a key and both wrote it: each precedes the other.
    fn lost_update(&mut self, key: u32, first: u32, second: u32) {
        let (one, other) = (Party::Transaction(first), Party::Transaction(second));
        let step = |from, to| Step { from, to, kind: EdgeKind::ReadWrite, key };
        let cycle = vec![step(one, other), step(other, one)];
        self.findings.cycle(Class::LostUpdate, cycle, false);
        self.in_cycles.extend([first, second]);
    }

    /// Of those who read a state, by state, and wrote the key.
    fn lost_updates<S: PartialEq>(&mut self, key: u32, updates: &[(S, u32)]) {
        for group in updates.chunk_by(|a, b| a.0 == b.0) {
            let of: Vec<u32> = group.iter().map(|(_, number)| *number).collect();
            for pair in of.chunks(2) {
                match *pair {
                    [first, second] => self.lost_update(key, first, second),
                    [last] if of.len() > 1 => self.lost_update(key, of[0], last),
                    _ => {}
                }
            }
        }
    }
}

/// Judges a history.
pub fn check(history: &History) -> Verdict {
    let mut judge = Judge {
        history,
        graph: Builder::new(history.transactions().len()),
        findings: Findings::default(),
        in_cycles: Vec::new(),
        effective: vec![false; history.transactions().len()],
        deferred: Vec::new(),
    };
    let (begins, steps) = history.by_key();
    let mut list = lists::Scratch::default();
    for key in 0..history.keys().len() as u32 {
        let steps = &steps[begins[key as usize] as usize..begins[key as usize + 1] as usize];
        if history.is_list(key) {
            lists::judge_key(&mut judge, key, steps, &mut list);
        } else {
            registers::judge_key(&mut judge, key, steps);
        }
    }
    drop((begins, steps, list));
    judge.deferred();
    let Judge { graph, mut findings, in_cycles, .. } = judge;
    let graph = graph.finish();
    let (nodes, edges) = (graph.nodes(), graph.edges());
    Search::new(history, &graph, &mut findings, &in_cycles).run();
    Verdict { findings, nodes, edges }
}
