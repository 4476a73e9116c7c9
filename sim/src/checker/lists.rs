//! Lists: every read shows the order of all appends before it.
//!
//! The longest read of a key that contradicts nothing is the order of its appends; every other read
//! must be its beginning. Appends that no read shows, but which took effect, come behind all of it.

use super::Judge;
use super::finding::Class;
use super::graph::EdgeKind;
use super::history::{Datum, Kind, Micro};

#[derive(Clone, Copy, Debug)]
struct Append {
    value: i64,
    transaction: u32,
    /// Whether it is its transaction's last to this key.
    last: bool,
}

/// A read of a transaction: of `length` elements others wrote `external`.
#[derive(Clone, Copy, Debug)]
struct Read {
    transaction: u32,
    start: u32,
    length: u32,
    external: u32,
    /// Whether the transaction reads the state that others left here for the first time.
    is_first: bool,
    /// Whether it appends, too.
    updates: bool,
}

/// Memory that is used again for every key.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    appends: Vec<Append>,
    /// Value and place among the appends, sorted.
    by_value: Vec<(i64, u32)>,
    reads: Vec<Read>,
    /// Of transactions that also append, how much they had read.
    updates: Vec<(u32, u32)>,
    own: Vec<i64>,
    /// Per element of the order, its place among the appends.
    order: Vec<u32>,
}

/// Judges one key.
pub(super) fn judge_key(
    judge: &mut Judge<'_>,
    key: u32,
    steps: &[(u32, u32)],
    scratch: &mut Scratch,
) {
    scratch.appends.clear();
    scratch.reads.clear();
    scratch.updates.clear();
    for run in steps.chunk_by(|a, b| a.0 == b.0) {
        gather(judge, key, run, scratch);
    }
    index(judge, key, scratch);
    let Some(longest) = longest(judge, key, scratch) else { return };
    compare(judge, key, longest, scratch);
    edges(judge, key, scratch);
    let updates = scratch.reads.iter().filter(|read| read.is_first && read.updates);
    scratch.updates.extend(updates.map(|read| (read.external, read.transaction)));
    scratch.updates.sort_unstable();
    judge.lost_updates(key, &scratch.updates);
}

/// One transaction's steps: it must see its own appends, and nothing new of others.
fn gather(judge: &mut Judge<'_>, key: u32, run: &[(u32, u32)], scratch: &mut Scratch) {
    let history = judge.history;
    let transaction = run[0].0;
    let kind = judge.kind(transaction);
    scratch.own.clear();
    // What was read last, and how many own appends there were then.
    let mut before: Option<(u32, u32, usize)> = None;
    let mut external = None;
    let (appends_before, reads_before) = (scratch.appends.len(), scratch.reads.len());
    for (_, place) in run {
        let (start, length) = match history.micro(*place) {
            Micro::Append { value, .. } => {
                scratch.own.push(value);
                scratch.appends.push(Append { value, transaction, last: false });
                continue;
            }
            Micro::List { start, length, .. } => (start, length),
            Micro::Read { value: Datum::Nil, .. } => (0, 0),
            Micro::Read { .. } | Micro::Write { .. } => continue,
        };
        if kind != Kind::Ok {
            continue;
        }
        let elements = history.elements(start, length);
        let (known, own) = match before {
            Some((start, length, own)) => (Some(history.elements(start, length)), own),
            None => (None, 0),
        };
        let new = &scratch.own[own..];
        let rest = elements.strip_suffix(new);
        if rest.is_none() || known.is_some_and(|known| rest != Some(known)) {
            judge
                .findings
                .note(Class::Internal, &[transaction], || format!("key {}", history.key_name(key)));
            continue;
        }
        let is_first = external.is_none();
        let external = *external.get_or_insert(length - new.len() as u32);
        let updates = false;
        scratch.reads.push(Read { transaction, start, length, external, is_first, updates });
        before = Some((start, length, scratch.own.len()));
    }
    if let Some(last) = scratch.appends[appends_before..].last_mut() {
        last.last = true;
        scratch.reads[reads_before..].iter_mut().for_each(|read| read.updates = true);
    }
}

fn index(judge: &mut Judge<'_>, key: u32, scratch: &mut Scratch) {
    let Scratch { appends, by_value, .. } = scratch;
    by_value.clear();
    by_value.extend((0..).zip(appends.iter()).map(|(at, append)| (append.value, at)));
    by_value.sort_unstable();
    for pair in by_value.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        let writers = [pair[0].1, pair[1].1].map(|at| appends[at as usize].transaction);
        let history = judge.history;
        judge.findings.note(Class::DuplicateWrite, &writers, || {
            let (value, name) = (history.show(Datum::Is(pair[0].0)), history.key_name(key));
            format!("{value} was appended to {name} twice")
        });
    }
    by_value.dedup_by_key(|(value, _)| *value);
}

fn append_of(by_value: &[(i64, u32)], value: i64) -> Option<u32> {
    let at = by_value.binary_search_by_key(&value, |(value, _)| *value).ok()?;
    Some(by_value[at].1)
}

/// The longest read without elements that are impossible; its elements become the order. If the
/// longest has some, no read that has any counts.
fn longest(judge: &mut Judge<'_>, key: u32, scratch: &mut Scratch) -> Option<Read> {
    let mut longest = *scratch.reads.iter().max_by_key(|read| read.length)?;
    if is_impossible(judge, key, longest, scratch, false) {
        let mut reads = std::mem::take(&mut scratch.reads);
        reads.retain(|read| !is_impossible(judge, key, *read, scratch, true));
        scratch.reads = reads;
        longest = *scratch.reads.iter().max_by_key(|read| read.length)?;
    }
    let elements = judge.history.elements(longest.start, longest.length);
    let Scratch { order, by_value, .. } = scratch;
    order.clear();
    order.extend(
        elements.iter().map(|value| {
            append_of(by_value, *value).expect("an element of the order was appended")
        }),
    );
    Some(longest)
}

/// Whether an element of a read stands in it twice, or was never appended, or aborted.
fn is_impossible(
    judge: &mut Judge<'_>,
    key: u32,
    read: Read,
    scratch: &Scratch,
    tell: bool,
) -> bool {
    let history = judge.history;
    let mut sorted = history.elements(read.start, read.length).to_vec();
    sorted.sort_unstable();
    let reader = read.transaction;
    let mut is_impossible = false;
    let mut add = |class, of: &[u32], value: i64, what: &str| {
        is_impossible = true;
        if tell && read.is_first {
            judge.findings.note(class, of, || {
                let (value, name) = (history.show(Datum::Is(value)), history.key_name(key));
                format!("T{reader} read {value} from {name}, {what}")
            });
        }
    };
    for group in sorted.chunk_by(|a, b| a == b) {
        if group.len() > 1 {
            add(Class::DuplicateElement, &[reader], group[0], "and that more than once");
        }
        let Some(place) = append_of(&scratch.by_value, group[0]) else {
            add(Class::ImpossibleValue, &[reader], group[0], "which nobody appended");
            continue;
        };
        let writer = scratch.appends[place as usize].transaction;
        if history.transaction(writer).kind == Kind::Fail {
            let what = format!("which T{writer} appended and aborted");
            add(Class::AbortedRead, &[reader, writer], group[0], &what);
        }
    }
    is_impossible
}

/// Drops the reads that are not the beginning of the longest, and tells why.
fn compare(judge: &mut Judge<'_>, key: u32, longest: Read, scratch: &mut Scratch) {
    let history = judge.history;
    let order = history.elements(longest.start, longest.length);
    let mut reads = std::mem::take(&mut scratch.reads);
    reads.retain(|read| {
        let elements = history.elements(read.start, read.length);
        if order.starts_with(elements) {
            return true;
        }
        if !is_impossible(judge, key, *read, scratch, true) && read.is_first {
            let differ = elements.iter().zip(order).position(|(a, b)| a != b);
            let at = differ.expect("a read that is no beginning differs somewhere");
            let (reader, other) = (read.transaction, longest.transaction);
            judge.findings.note(Class::IncompatibleOrder, &[reader, other], || {
                let show = |list: &[i64]| history.show(Datum::Is(list[at]));
                let (one, two, name) = (show(elements), show(order), history.key_name(key));
                format!("element {at} of {name} is {one} for T{reader}, {two} for T{other}")
            });
        }
        false
    });
    scratch.reads = reads;
}

fn edges(judge: &mut Judge<'_>, key: u32, scratch: &Scratch) {
    let Scratch { appends, reads, order, .. } = scratch;
    let writer = |at: usize| order.get(at).map(|place| appends[*place as usize].transaction);
    for at in 1..order.len() {
        if let (Some(first), Some(second)) = (writer(at - 1), writer(at)) {
            judge.graph.edge(first, second, EdgeKind::WriteWrite, key);
        }
    }
    let mut sources = Vec::new();
    for read in reads.iter().filter(|read| read.is_first) {
        let external = read.external as usize;
        if let Some(last) = external.checked_sub(1) {
            let append = &appends[order[last] as usize];
            intermediate(judge, key, read.transaction, append);
            judge.graph.edge(append.transaction, read.transaction, EdgeKind::WriteRead, key);
        }
        match writer(external) {
            Some(writer) => {
                judge.graph.edge(read.transaction, writer, EdgeKind::ReadWrite, key);
            }
            None => sources.push((read.transaction, EdgeKind::ReadWrite)),
        }
    }
    let mut shown = vec![false; appends.len()];
    for place in order {
        shown[*place as usize] = true;
        judge.effective[appends[*place as usize].transaction as usize] = true;
    }
    let last = order.len().checked_sub(1).and_then(writer);
    sources.extend(last.map(|last| (last, EdgeKind::WriteWrite)));
    let unseen = appends.iter().zip(&shown).filter(|(_, shown)| !**shown);
    let unseen = unseen.map(|(append, _)| append.transaction).collect();
    judge.writers_after(key, sources, unseen);
}

fn intermediate(judge: &mut Judge<'_>, key: u32, reader: u32, append: &Append) {
    let writer = append.transaction;
    if append.last || writer == reader {
        return;
    }
    let history = judge.history;
    judge.findings.note(Class::IntermediateRead, &[reader, writer], || {
        let (name, value) = (history.key_name(key), history.show(Datum::Is(append.value)));
        format!("T{reader} read {name} up to {value}, and T{writer} appended more")
    });
}
