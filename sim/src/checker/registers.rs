//! Registers: a read shows the last write before it.
//!
//! What a read shows is a state: the beginning, a version, or what one write left. A version is the
//! database's own number for a write, so states with versions are in order; who wrote one may be
//! unknown, and is a node of its own then. Without versions a read is of the write of its value, if
//! only one wrote it, and a transaction that reads a state and writes makes the next one.

use super::Judge;
use super::finding::Class;
use super::graph::{EdgeKind, Extra};
use super::history::{Datum, Kind, Micro};

/// What a read shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Initial,
    Version(u64),
    /// Of a write without a version.
    Write(u32),
}

#[derive(Clone, Copy, Debug)]
struct Write {
    transaction: u32,
    kind: Kind,
    value: Datum,
    version: Option<u64>,
    /// Whether it is its transaction's last to this key.
    last: bool,
}

/// What a transaction read before it wrote.
#[derive(Clone, Copy, Debug)]
struct Read {
    transaction: u32,
    value: Datum,
    version: Option<u64>,
    /// Its last write, among the writes.
    update: Option<u32>,
    state: Option<State>,
}

/// A version in the order of all.
#[derive(Clone, Copy, Debug)]
struct Link {
    version: u64,
    /// Its writer, known or not.
    node: u32,
    /// Its write, if that is known.
    write: Option<u32>,
}

/// One key.
#[derive(Debug, Default)]
struct Register {
    key: u32,
    writes: Vec<Write>,
    reads: Vec<Read>,
    /// Values of writes that may have taken effect, and of failed ones, with their places, sorted.
    by_value: Vec<(i64, u32)>,
    failed: Vec<(i64, u32)>,
    /// Whether a write of nothing, or of an unknown value, is among them.
    has_nil: bool,
    has_unknown: bool,
}

/// Judges one key.
pub(super) fn judge_key(judge: &mut Judge<'_>, key: u32, steps: &[(u32, u32)]) {
    let mut register = Register { key, ..Register::default() };
    for run in steps.chunk_by(|a, b| a.0 == b.0) {
        register.gather(judge, run);
    }
    register.index();
    for at in 0..register.reads.len() {
        register.attribute(judge, at);
    }
    register.versions_agree(judge);
    register.states();
    register.edges(judge);
}

impl Register {
    /// One transaction's steps: it must see its own writes, and nothing new of others.
    fn gather(&mut self, judge: &mut Judge<'_>, run: &[(u32, u32)]) {
        let transaction = run[0].0;
        let kind = judge.kind(transaction);
        let first = self.writes.len();
        // What the next read must show.
        let mut known: Option<(Datum, Option<u64>)> = None;
        let mut read = None;
        for (_, place) in run {
            match judge.history.micro(*place) {
                Micro::Write { value, version, .. } => {
                    let version = version.map(u64::from);
                    let write = Write { transaction, kind, value, version, last: false };
                    self.writes.push(write);
                    known = Some((value, version));
                }
                Micro::Read { value, version, .. } if kind == Kind::Ok => {
                    let version = version.map(u64::from);
                    if value == Datum::Unknown && version.is_none() {
                        continue;
                    }
                    if known.is_some_and(|known| contradict(known, (value, version))) {
                        let name = judge.history.key_name(self.key);
                        judge
                            .findings
                            .note(Class::Internal, &[transaction], || format!("key {name}"));
                        continue;
                    }
                    if let Some(own) = self.writes[first..].last_mut() {
                        own.version = own.version.or(version);
                    } else if read.is_none() {
                        let update = None;
                        let state = None;
                        read = Some(Read { transaction, value, version, update, state });
                    }
                    let before = known.unwrap_or((Datum::Unknown, None));
                    let value = if value == Datum::Unknown { before.0 } else { value };
                    known = Some((value, version.or(before.1)));
                }
                _ => {}
            }
        }
        if let Some(last) = self.writes[first..].last_mut() {
            last.last = true;
            if let Some(read) = &mut read {
                read.update = Some(self.writes.len() as u32 - 1);
            }
        }
        self.reads.extend(read);
    }

    fn index(&mut self) {
        for (at, write) in (0..).zip(&self.writes) {
            let failed = write.kind == Kind::Fail;
            match write.value {
                Datum::Is(value) if failed => self.failed.push((value, at)),
                Datum::Is(value) => self.by_value.push((value, at)),
                Datum::Nil => self.has_nil |= !failed,
                Datum::Unknown => self.has_unknown |= !failed,
            }
        }
        self.by_value.sort_unstable();
        self.failed.sort_unstable();
    }

    /// Finds out what a read shows, as far as its value tells.
    fn attribute(&mut self, judge: &mut Judge<'_>, at: usize) {
        let Read { transaction, value, version, .. } = self.reads[at];
        let value = match value {
            Datum::Unknown => return,
            Datum::Nil => {
                if !self.has_nil && version.is_none() {
                    self.reads[at].state = Some(State::Initial);
                }
                return;
            }
            Datum::Is(value) => value,
        };
        let (history, key) = (judge.history, self.key);
        let words = || (history.show(Datum::Is(value)), history.key_name(key));
        match of_value(&self.by_value, value) {
            [] if !self.has_unknown => {
                // What it shows has no place among what took effect.
                self.reads[at].version = None;
                let failed = of_value(&self.failed, value).first();
                if let Some((_, failed)) = failed {
                    let writer = self.writes[*failed as usize].transaction;
                    judge.findings.note(Class::AbortedRead, &[transaction, writer], || {
                        let (shown, name) = words();
                        format!(
                            "T{transaction} read {shown} from {name}, which T{writer} wrote and \
                             aborted"
                        )
                    });
                } else {
                    judge.findings.note(Class::ImpossibleValue, &[transaction], || {
                        let (shown, name) = words();
                        format!("nobody wrote {shown} to {name}")
                    });
                }
            }
            [(_, write)] => {
                let write = *write;
                let Write { transaction: writer, last, .. } = self.writes[write as usize];
                judge.effective[writer as usize] = true;
                if writer == transaction {
                    judge.findings.note(Class::ImpossibleValue, &[transaction], || {
                        let (shown, name) = words();
                        format!("T{transaction} read {shown} from {name} before it wrote it")
                    });
                    return;
                }
                if !last {
                    intermediate(judge, key, transaction, writer);
                }
                self.reads[at].state = Some(State::Write(write));
            }
            // Whose write this is cannot be told.
            _ => {}
        }
    }

    /// One version is one write and one value.
    fn versions_agree(&mut self, judge: &mut Judge<'_>) {
        let name = judge.history.key_name(self.key);
        for read in &self.reads {
            let (Some(State::Write(write)), Some(version)) = (read.state, read.version) else {
                continue;
            };
            let write = &mut self.writes[write as usize];
            let known = *write.version.get_or_insert(version);
            if known != version {
                let of = [read.transaction, write.transaction];
                judge.findings.note(Class::IncompatibleVersions, &of, || {
                    format!("one write of {name} has versions {known} and {version}")
                });
            }
        }
        let written = self.writes.iter().filter(|write| write.kind != Kind::Fail);
        let mut written: Vec<_> =
            written.filter_map(|w| Some((w.version?, w.transaction, w.value))).collect();
        written.sort_unstable();
        for pair in written.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            judge.findings.note(Class::DuplicateWrite, &[pair[0].1, pair[1].1], || {
                format!("version {} of {name} was written twice", pair[0].0)
            });
        }
        let read = self.reads.iter().filter_map(|r| Some((r.version?, r.transaction, r.value)));
        written.extend(read);
        written.retain(|(_, _, value)| *value != Datum::Unknown);
        written.sort_unstable_by_key(|(version, transaction, _)| (*version, *transaction));
        for group in written.chunk_by(|a, b| a.0 == b.0) {
            let Some(other) = group.iter().find(|(_, _, value)| *value != group[0].2) else {
                continue;
            };
            let (history, of) = (judge.history, [group[0].1, other.1]);
            judge.findings.note(Class::IncompatibleVersions, &of, || {
                let (one, two) = (history.show(group[0].2), history.show(other.2));
                format!("version {} of {name} is {one} and {two}", other.0)
            });
        }
    }

    fn states(&mut self) {
        for read in &mut self.reads {
            let version = match read.state {
                // Of contradicting versions, the first one that was told counts.
                Some(State::Write(write)) => self.writes[write as usize].version,
                _ => read.version,
            };
            read.state = version.map(State::Version).or(read.state);
        }
        self.reads.sort_unstable_by_key(|read| (read.state, read.transaction));
    }

    fn edges(&mut self, judge: &mut Judge<'_>) {
        let chain = self.chain(judge);
        for pair in chain.windows(2) {
            judge.graph.edge(pair[0].node, pair[1].node, EdgeKind::WriteWrite, self.key);
        }
        let mut updates = Vec::new();
        for group in self.reads.chunk_by(|a, b| a.state == b.state) {
            let Some(state) = group[0].state else { continue };
            let sources = group.iter().map(|read| (read.transaction, EdgeKind::ReadWrite));
            let sources: Vec<_> = sources.collect();
            let mut next = None;
            let mut targets: Vec<u32> = Vec::new();
            match state {
                State::Initial => {
                    next = chain.first();
                    let writers = self.writes.iter().map(|write| write.transaction).collect();
                    judge.writers_after(self.key, sources.clone(), writers);
                }
                State::Version(version) => {
                    let at = chain.partition_point(|link| link.version < version);
                    self.written(judge, group, chain[at].node);
                    self.intermediate_version(judge, group, chain[at].write);
                    next = chain.get(at + 1);
                }
                State::Write(write) => {
                    self.written(judge, group, self.writes[write as usize].transaction);
                }
            }
            for read in group {
                let Some(update) = read.update else { continue };
                updates.push((state, read.transaction));
                if self.writes[update as usize].version.is_none() {
                    targets.push(read.transaction);
                }
            }
            targets.extend(next.map(|link| link.node));
            targets.sort_unstable();
            targets.dedup();
            if !targets.is_empty() {
                judge.graph.fan(&sources, &targets, self.key);
            }
        }
        judge.lost_updates(self.key, &updates);
    }

    /// All known versions in order, with their writers.
    fn chain(&self, judge: &mut Judge<'_>) -> Vec<Link> {
        let written = (0u32..).zip(&self.writes).filter(|(_, write)| write.kind != Kind::Fail);
        let written = written.filter_map(|(at, write)| Some((write.version?, Some(at))));
        let read = self.reads.iter().filter_map(|read| match read.state {
            Some(State::Version(version)) => Some((version, None)),
            _ => None,
        });
        let mut chain: Vec<(u64, Option<u32>)> = written.chain(read).collect();
        // Known writers first.
        chain.sort_unstable_by_key(|(version, write)| (*version, write.is_none(), *write));
        chain.dedup_by_key(|(version, _)| *version);
        let link = |(version, write): (u64, Option<u32>)| {
            let node = match write {
                Some(write) => self.writes[write as usize].transaction,
                None => judge.graph.extra(Extra::Writer { key: self.key, version }),
            };
            Link { version, node, write }
        };
        chain.into_iter().map(link).collect()
    }

    fn written(&self, judge: &mut Judge<'_>, readers: &[Read], writer: u32) {
        for read in readers {
            judge.graph.edge(writer, read.transaction, EdgeKind::WriteRead, self.key);
        }
    }

    /// Reads of a version whose value did not tell that its writer went on.
    fn intermediate_version(&self, judge: &mut Judge<'_>, readers: &[Read], write: Option<u32>) {
        let write = write.map(|at| &self.writes[at as usize]);
        let Some(write) = write.filter(|write| !write.last) else { return };
        for read in readers {
            let by_value = matches!(read.value, Datum::Is(value)
                if matches!(of_value(&self.by_value, value), [_]));
            if !by_value && read.transaction != write.transaction {
                intermediate(judge, self.key, read.transaction, write.transaction);
            }
        }
    }
}

fn of_value(sorted: &[(i64, u32)], value: i64) -> &[(i64, u32)] {
    let begin = sorted.partition_point(|(other, _)| *other < value);
    let length = sorted[begin..].partition_point(|(other, _)| *other == value);
    &sorted[begin..begin + length]
}

/// Whether two reads, or a write and a read of it, cannot both be right.
fn contradict(known: (Datum, Option<u64>), read: (Datum, Option<u64>)) -> bool {
    let values = known.0 != read.0 && known.0 != Datum::Unknown && read.0 != Datum::Unknown;
    let versions = matches!((known.1, read.1), (Some(one), Some(other)) if one != other);
    values || versions
}

fn intermediate(judge: &mut Judge<'_>, key: u32, reader: u32, writer: u32) {
    let name = judge.history.key_name(key);
    judge.findings.note(Class::IntermediateRead, &[reader, writer], || {
        format!("T{reader} read from {name} what T{writer} wrote and then replaced")
    });
}
