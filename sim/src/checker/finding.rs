//! What the checker finds, and how it is told.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::graph::EdgeKind;
use super::history::{Datum, History, Kind, Micro, NEVER};

/// Findings of one class that are kept; more are counted.
const KEPT_MAX: u64 = 100;
/// Elements of a list that are printed at its beginning and at its end.
const SHOWN: (usize, usize) = (2, 8);

/// An anomaly, by the names of Adya and Elle. The data classes come first, strongest first within
/// each kind; those in real time break strict serializability, but not serializability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A transaction does not read its own write, or reads one key twice and differently.
    Internal,
    /// G1a: a read of what an aborted transaction wrote.
    AbortedRead,
    /// G1b: a read of what its writer replaced itself.
    IntermediateRead,
    /// A read of what nobody wrote, or only the reader itself, later.
    ImpossibleValue,
    /// An element that stands in a list twice.
    DuplicateElement,
    /// One value or version that was written twice: the history cannot be judged there.
    DuplicateWrite,
    /// Two reads of one list, neither of which continues the other.
    IncompatibleOrder,
    /// Versions that contradict each other: two values of one, or two of one write.
    IncompatibleVersions,
    /// G0: writes of transactions interleave.
    DirtyWrite,
    /// G1c: transactions read from each other in a circle.
    CircularInformation,
    /// Two transactions read one state of a key, and both wrote it.
    LostUpdate,
    /// G-single: a circle with one read of what was replaced.
    ReadSkew,
    /// G2: a circle with several of them; write skew is the shortest.
    WriteSkew,
    /// A circle of writes and of one that ended before another began.
    DirtyWriteRealtime,
    /// The same of writes and of reads from them: somebody read the future.
    CircularInformationRealtime,
    /// A read of a key misses a write that was over before the read began.
    StaleRead,
    /// Read skew with a step in real time, over several keys.
    ReadSkewRealtime,
    /// Several reads of what was replaced, with a step in real time.
    WriteSkewRealtime,
}

impl Class {
    /// Its short name and its name in words.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Internal => ("internal", "a transaction contradicts itself"),
            Self::AbortedRead => ("G1a", "aborted read"),
            Self::IntermediateRead => ("G1b", "intermediate read"),
            Self::ImpossibleValue => ("impossible-value", "a value that nobody wrote"),
            Self::DuplicateElement => ("duplicate-element", "one element twice in a list"),
            Self::DuplicateWrite => ("duplicate-write", "one value or version was written twice"),
            Self::IncompatibleOrder => ("incompatible-order", "lists in different orders"),
            Self::IncompatibleVersions => ("incompatible-versions", "versions contradict"),
            Self::DirtyWrite => ("G0", "dirty write"),
            Self::CircularInformation => ("G1c", "circular information flow"),
            Self::LostUpdate => ("lost-update", "two read one state, and both wrote it"),
            Self::ReadSkew => ("G-single", "read skew"),
            Self::WriteSkew => ("G2", "write skew"),
            Self::DirtyWriteRealtime => ("G0-realtime", "writes against real time"),
            Self::CircularInformationRealtime => ("G1c-realtime", "a read of the future"),
            Self::StaleRead => ("stale-read", "a write was over, and the read misses it"),
            Self::ReadSkewRealtime => ("G-single-realtime", "read skew against real time"),
            Self::WriteSkewRealtime => ("G2-realtime", "write skew against real time"),
        }
    }
}

/// One who takes part in a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// A transaction of the history.
    Transaction(u32),
    /// Whoever wrote a version of a key.
    Writer {
        /// Key.
        key: u32,
        /// Version.
        version: u64,
    },
}

/// One step of a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who comes first.
    pub from: Party,
    /// Who comes second.
    pub to: Party,
    /// Why.
    pub kind: EdgeKind,
    /// Over which key; nothing in real time.
    pub key: u32,
}

/// One anomaly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub class: Class,
    /// Those concerned.
    pub transactions: Vec<u32>,
    /// What is wrong, if it is no cycle.
    pub note: String,
    /// The cycle, if it is one.
    pub cycle: Vec<Step>,
    /// Whether there may be a shorter cycle: the search has a limit.
    pub is_cut: bool,
}

/// All anomalies of a history.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The first of each class.
    pub kept: Vec<Finding>,
    /// How many there are of each class.
    pub counts: BTreeMap<Class, u64>,
}

impl Findings {
    /// Adds one that is no cycle.
    pub(super) fn note(
        &mut self,
        class: Class,
        transactions: &[u32],
        note: impl FnOnce() -> String,
    ) {
        let count = self.counts.entry(class).or_default();
        *count += 1;
        if *count <= KEPT_MAX {
            let transactions = transactions.to_vec();
            let (cycle, note) = (Vec::new(), note());
            self.kept.push(Finding { class, transactions, note, cycle, is_cut: false });
        }
    }

    /// Adds a cycle.
    pub(super) fn cycle(&mut self, class: Class, cycle: Vec<Step>, is_cut: bool) {
        let count = self.counts.entry(class).or_default();
        *count += 1;
        if *count > KEPT_MAX {
            return;
        }
        let mut transactions = Vec::new();
        for step in &cycle {
            if let Party::Transaction(number) = step.from {
                transactions.push(number);
            }
        }
        let note = String::new();
        self.kept.push(Finding { class, transactions, note, cycle, is_cut });
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// All in words.
    pub fn text(&self, history: &History) -> String {
        let mut out = String::new();
        for finding in &self.kept {
            out.push_str(&finding.text(history));
        }
        for (class, count) in &self.counts {
            if *count > KEPT_MAX {
                let (name, _) = class.names();
                let more = count - KEPT_MAX;
                writeln!(out, "{name}: {more} more").expect("a string takes all");
            }
        }
        out
    }
}

impl Finding {
    /// In words: the transactions, and why each comes before the next.
    pub fn text(&self, history: &History) -> String {
        let (name, words) = self.class.names();
        let mut out = format!("{name} ({words})");
        if !self.note.is_empty() {
            write!(out, ": {}", self.note).expect("a string takes all");
        }
        if self.is_cut {
            out.push_str(" (the search was cut short: there may be a shorter circle)");
        }
        out.push('\n');
        for number in &self.transactions {
            writeln!(out, "  {}", show_transaction(history, *number)).expect("a string takes all");
        }
        for step in &self.cycle {
            writeln!(out, "  {}", step.text(history)).expect("a string takes all");
        }
        out
    }
}

impl Step {
    fn text(&self, history: &History) -> String {
        let (from, to) = (party(history, self.from), party(history, self.to));
        if self.kind == EdgeKind::Realtime {
            return format!("{from} -realtime-> {to}: {from} had ended before {to} began");
        }
        let key = &history.keys()[self.key as usize];
        match self.kind {
            EdgeKind::WriteWrite => {
                format!("{from} -ww {key}-> {to}: {from} wrote {key} before {to} did")
            }
            EdgeKind::WriteRead => {
                format!("{from} -wr {key}-> {to}: {to} read from {key} what {from} wrote")
            }
            _ => format!("{from} -rw {key}-> {to}: {from} read {key} without what {to} wrote"),
        }
    }
}

fn party(history: &History, party: Party) -> String {
    match party {
        Party::Transaction(number) => format!("T{number}"),
        Party::Writer { key, version } => {
            format!("[writer of version {version} of {}]", history.keys()[key as usize])
        }
    }
}

fn show_transaction(history: &History, number: u32) -> String {
    let transaction = history.transaction(number);
    let kind = match transaction.kind {
        Kind::Ok => "ok",
        Kind::Fail => "failed",
        Kind::Info => "unknown",
    };
    let end = match transaction.completed {
        NEVER => "never".to_owned(),
        end => end.to_string(),
    };
    let micros: Vec<_> =
        history.micros(number).iter().map(|micro| show_micro(history, *micro)).collect();
    format!(
        "T{number} (process {}, {kind}, {} to {end}): {}",
        transaction.process,
        transaction.invoked,
        micros.join(", ")
    )
}

fn show_micro(history: &History, micro: Micro) -> String {
    let key = &history.keys()[micro.key() as usize];
    let version = |version: Option<std::num::NonZeroU64>| match version {
        Some(version) => format!(" version {version}"),
        None => String::new(),
    };
    match micro {
        Micro::Append { value, .. } => {
            format!("append {key} {}", history.show(Datum::Is(value)))
        }
        Micro::List { start, length, .. } => {
            format!("r {key} {}", show_list(history, history.elements(start, length)))
        }
        Micro::Write { value, version: of, .. } => {
            format!("w {key} {}{}", history.show(value), version(of))
        }
        Micro::Read { value, version: of, .. } => {
            format!("r {key} {}{}", history.show(value), version(of))
        }
    }
}

fn show_list(history: &History, elements: &[i64]) -> String {
    let show = |elements: &[i64]| {
        let shown: Vec<_> = elements.iter().map(|value| history.show(Datum::Is(*value))).collect();
        shown.join(" ")
    };
    let (head, tail) = SHOWN;
    if elements.len() <= head + tail {
        return format!("[{}]", show(elements));
    }
    let (first, last) = (&elements[..head], &elements[elements.len() - tail..]);
    format!("[{} .. {}] ({} elements)", show(first), show(last), elements.len())
}
