//! Anomalies planted into histories that are valid otherwise, from seeds.
//!
//! Two or three transactions on two keys that the clients leave alone meanwhile take their steps
//! in an order that no correct database allows, or one of their results is changed. The clients go
//! on with other keys in between. What the checker must find is known by construction.

use super::finding::Class;
use super::generator::{Generator, Shape, Workload};
use super::history::{Datum, History, Kind, Micro};
use crate::draw::Draw;

/// All classes that can be planted into lists.
pub const LISTS: [Class; 17] = [
    Class::Internal,
    Class::AbortedRead,
    Class::IntermediateRead,
    Class::ImpossibleValue,
    Class::DuplicateElement,
    Class::DuplicateWrite,
    Class::IncompatibleOrder,
    Class::DirtyWrite,
    Class::CircularInformation,
    Class::LostUpdate,
    Class::ReadSkew,
    Class::WriteSkew,
    Class::DirtyWriteRealtime,
    Class::CircularInformationRealtime,
    Class::StaleRead,
    Class::ReadSkewRealtime,
    Class::WriteSkewRealtime,
];

/// All that can be planted into registers without versions.
pub const REGISTERS: [Class; 12] = [
    Class::Internal,
    Class::AbortedRead,
    Class::IntermediateRead,
    Class::ImpossibleValue,
    Class::CircularInformation,
    Class::LostUpdate,
    Class::ReadSkew,
    Class::WriteSkew,
    Class::CircularInformationRealtime,
    Class::StaleRead,
    Class::ReadSkewRealtime,
    Class::WriteSkewRealtime,
];

/// All that can be planted into registers with versions.
pub const VERSIONS: [Class; 16] = [
    Class::Internal,
    Class::AbortedRead,
    Class::IntermediateRead,
    Class::ImpossibleValue,
    Class::DuplicateWrite,
    Class::IncompatibleVersions,
    Class::DirtyWrite,
    Class::CircularInformation,
    Class::LostUpdate,
    Class::ReadSkew,
    Class::WriteSkew,
    Class::DirtyWriteRealtime,
    Class::CircularInformationRealtime,
    Class::StaleRead,
    Class::ReadSkewRealtime,
    Class::WriteSkewRealtime,
];

/// What a planted transaction does.
#[derive(Clone, Copy, Debug)]
enum Plan {
    ReadX,
    ReadY,
    WriteX,
    WriteY,
    /// Registers are ordered by updates: a read before the write, but not for lists.
    UpdateX,
    UpdateY,
}

/// Something happens to a planted transaction, by its number.
#[derive(Clone, Copy, Debug)]
enum Act {
    Invoke(usize),
    /// Its next step takes effect.
    Step(usize),
    /// All the rest of it takes effect.
    Rest(usize),
    Complete(usize),
    Abort(usize),
}

use Act::{Abort, Complete, Invoke, Rest, Step};
use Plan::{ReadX, ReadY, UpdateX, UpdateY, WriteX, WriteY};

type Script = (&'static [&'static [Plan]], &'static [Act]);

const WRITE_AND_TWO_READS: Script = (
    &[&[UpdateX], &[ReadX], &[ReadX]],
    &[
        Invoke(0),
        Rest(0),
        Complete(0),
        Invoke(1),
        Invoke(2),
        Rest(1),
        Rest(2),
        Complete(2),
        Complete(1),
    ],
);

fn script(class: Class) -> Script {
    match class {
        Class::Internal => (&[&[WriteX, ReadX]], &[Invoke(0), Rest(0), Complete(0)]),
        Class::AbortedRead => (
            &[&[WriteX], &[ReadX]],
            &[Invoke(0), Invoke(1), Rest(0), Rest(1), Complete(1), Abort(0)],
        ),
        Class::IntermediateRead => (
            &[&[WriteX, WriteX], &[ReadX]],
            &[Invoke(0), Invoke(1), Step(0), Rest(1), Rest(0), Complete(0), Complete(1)],
        ),
        Class::ImpossibleValue | Class::DuplicateElement | Class::IncompatibleVersions => {
            WRITE_AND_TWO_READS
        }
        Class::DuplicateWrite => (
            &[&[WriteX], &[WriteX], &[ReadX]],
            &[
                Invoke(0),
                Rest(0),
                Invoke(1),
                Rest(1),
                Complete(0),
                Complete(1),
                Invoke(2),
                Rest(2),
                Complete(2),
            ],
        ),
        Class::IncompatibleOrder => (
            &[&[WriteX], &[WriteX], &[ReadX], &[ReadX]],
            &[
                Invoke(0),
                Invoke(1),
                Rest(0),
                Rest(1),
                Complete(0),
                Complete(1),
                Invoke(2),
                Rest(2),
                Complete(2),
                Invoke(3),
                Rest(3),
                Complete(3),
            ],
        ),
        _ => script_cycle(class),
    }
}

/// Cycles without real time.
fn script_cycle(class: Class) -> Script {
    match class {
        Class::DirtyWrite => (
            &[&[WriteX, WriteY], &[WriteX, WriteY], &[ReadX, ReadY]],
            &[
                Invoke(0),
                Invoke(1),
                Step(0),
                Step(1),
                Step(1),
                Step(0),
                Complete(0),
                Complete(1),
                Invoke(2),
                Rest(2),
                Complete(2),
            ],
        ),
        Class::CircularInformation => (
            &[&[WriteX, ReadY], &[WriteY, ReadX]],
            &[Invoke(0), Invoke(1), Step(0), Step(1), Step(0), Step(1), Complete(0), Complete(1)],
        ),
        Class::LostUpdate => (
            &[&[ReadX, WriteX], &[ReadX, WriteX]],
            &[Invoke(0), Invoke(1), Step(0), Step(1), Step(1), Step(0), Complete(1), Complete(0)],
        ),
        Class::ReadSkew => (
            &[&[ReadX, ReadY], &[UpdateX, WriteY]],
            &[Invoke(0), Invoke(1), Step(0), Rest(1), Step(0), Complete(0), Complete(1)],
        ),
        Class::WriteSkew => (
            &[&[ReadX, ReadY, WriteY], &[ReadX, ReadY, WriteX]],
            &[
                Invoke(0),
                Invoke(1),
                Step(0),
                Step(0),
                Step(1),
                Step(1),
                Step(0),
                Step(1),
                Complete(0),
                Complete(1),
            ],
        ),
        _ => script_realtime(class),
    }
}

/// Steps take effect before the invocation or after the completion.
fn script_realtime(class: Class) -> Script {
    match class {
        Class::DirtyWriteRealtime => (
            &[&[WriteX], &[WriteX], &[ReadX]],
            &[
                Rest(1),
                Invoke(0),
                Rest(0),
                Complete(0),
                Invoke(1),
                Complete(1),
                Invoke(2),
                Rest(2),
                Complete(2),
            ],
        ),
        Class::CircularInformationRealtime => (
            &[&[WriteX], &[ReadX]],
            &[Rest(0), Invoke(1), Rest(1), Complete(1), Invoke(0), Complete(0)],
        ),
        Class::StaleRead => (
            &[&[UpdateX], &[ReadX]],
            &[Rest(1), Invoke(0), Rest(0), Complete(0), Invoke(1), Complete(1)],
        ),
        Class::ReadSkewRealtime => (
            &[&[UpdateX, WriteY], &[ReadY], &[ReadX]],
            &[
                Invoke(0),
                Rest(2),
                Rest(0),
                Invoke(1),
                Rest(1),
                Complete(1),
                Invoke(2),
                Complete(2),
                Complete(0),
            ],
        ),
        Class::WriteSkewRealtime => (
            &[&[ReadX], &[ReadY, UpdateX], &[UpdateY]],
            &[
                Rest(0),
                Invoke(1),
                Rest(1),
                Invoke(2),
                Rest(2),
                Complete(2),
                Invoke(0),
                Complete(0),
                Complete(1),
            ],
        ),
        _ => unreachable!("{class:?} is not planted"),
    }
}

/// A history with one anomaly of a class.
pub fn planted(workload: Workload, class: Class, seed: u64) -> History {
    let mut draw = Draw::new(seed);
    let shape = Shape::draw(&mut draw, workload);
    let mut generator = Generator::new(shape, draw);
    for _ in 0..generator.draw.below(shape.transactions as u64 * 3) {
        generator.step();
    }
    plant(&mut generator, class);
    generator.run();
    generator.finish()
}

/// Plants an anomaly into what a generator is at.
pub fn plant(generator: &mut Generator, class: Class) {
    let x = generator.key();
    generator.reserved.push(x);
    let y = generator.key();
    generator.reserved.push(y);
    let lists = generator.shape.workload == Workload::Lists;
    let (plans, acts) = script(class);
    let mut drafts = Vec::new();
    for plan in plans {
        let mut micros = Vec::new();
        for plan in *plan {
            let key = if matches!(plan, ReadX | WriteX | UpdateX) { x } else { y };
            let updates = matches!(plan, UpdateX | UpdateY);
            if matches!(plan, ReadX | ReadY) || (updates && !lists) {
                micros.push(Generator::read(key));
            }
            if matches!(plan, WriteX | WriteY) || updates {
                micros.push(generator.write(key));
            }
        }
        let process = generator.process();
        drafts.push((generator.draft(process, micros), 0));
    }
    let before = generator.cells[x as usize].clone();
    for act in acts {
        // Others go on meanwhile.
        for _ in 0..generator.draw.below(6) {
            generator.step();
        }
        self::act(generator, &mut drafts, *act);
        if matches!(act, Abort(_)) && generator.draw.once_in(2) {
            let cell = &mut generator.cells[x as usize];
            (cell.list, cell.value, cell.version) =
                (before.list.clone(), before.value, before.version);
        }
    }
    let drafts: Vec<usize> = drafts.into_iter().map(|(draft, _)| draft).collect();
    corrupt(generator, class, &drafts, &before.list, (before.value, before.version));
    generator.reserved.clear();
}

fn act(generator: &mut Generator, drafts: &mut [(usize, usize)], act: Act) {
    let (Invoke(of) | Step(of) | Rest(of) | Complete(of) | Abort(of)) = act;
    let (draft, done) = &mut drafts[of];
    match act {
        Invoke(_) => generator.drafts[*draft].invoked = generator.tick(),
        Step(_) => {
            step(generator, *draft, *done);
            *done += 1;
        }
        Rest(_) => {
            while *done < generator.drafts[*draft].micros.len() {
                step(generator, *draft, *done);
                *done += 1;
            }
        }
        Complete(_) => generator.complete(*draft, Kind::Ok),
        Abort(_) => generator.complete(*draft, Kind::Fail),
    }
}

/// A step takes effect, and a version that it makes is reported.
fn step(generator: &mut Generator, draft: usize, at: usize) {
    generator.execute(draft, at);
    if let Micro::Write { key, version, .. } = &mut generator.drafts[draft].micros[at] {
        *version = generator.cells[*key as usize].version;
    }
}

/// Changes a result, where that is the anomaly.
fn corrupt(
    generator: &mut Generator,
    class: Class,
    drafts: &[usize],
    list: &[i64],
    register: (Datum, Option<std::num::NonZeroU64>),
) {
    let lists = generator.shape.workload == Workload::Lists;
    // A read by the last of the planted transactions, and what it is to have read.
    let last = *drafts.last().expect("something was planted");
    let at = generator.drafts[last].micros.len() - 1;
    let read = generator.drafts[last].micros[at];
    let elements = match read {
        Micro::List { start, length, .. } => generator.history.elements(start, length).to_vec(),
        _ => Vec::new(),
    };
    let draw = &mut generator.draw;
    let changed = match (class, read) {
        (Class::Internal, Micro::List { key, .. }) => generator.history.list(key, list),
        (Class::Internal, Micro::Read { key, .. }) => {
            Micro::Read { key, value: register.0, version: register.1 }
        }
        (Class::ImpossibleValue, Micro::List { key, .. }) => {
            let mut elements = elements;
            let at = draw.below(elements.len() as u64 + 1) as usize;
            elements.insert(at, 1_000_000_007);
            generator.history.list(key, &elements)
        }
        (Class::ImpossibleValue, Micro::Read { key, version, .. }) => {
            Micro::Read { key, value: Datum::Is(1_000_000_007), version }
        }
        (Class::DuplicateElement, Micro::List { key, .. }) => {
            let mut elements = elements;
            let element = draw.pick(&elements);
            let at = draw.below(elements.len() as u64 + 1) as usize;
            elements.insert(at, element);
            generator.history.list(key, &elements)
        }
        (Class::IncompatibleOrder, Micro::List { key, .. }) => {
            let mut elements = elements;
            let length = elements.len();
            elements.swap(length - 1, length - 2);
            generator.history.list(key, &elements)
        }
        (Class::IncompatibleVersions, Micro::Read { key, value, version: Some(version) }) => {
            let version = version.checked_add(1_000_000);
            Micro::Read { key, value, version }
        }
        (Class::DuplicateWrite, _) => {
            // The second write takes the first one's name.
            let first = generator.drafts[drafts[0]].micros[0];
            let second = &mut generator.drafts[drafts[1]].micros[0];
            match (first, second) {
                (Micro::Append { value, .. }, Micro::Append { value: other, .. }) => *other = value,
                (Micro::Write { version, .. }, Micro::Write { version: other, .. }) => {
                    *other = version;
                }
                _ => unreachable!("both write"),
            }
            return;
        }
        _ => return,
    };
    assert!(lists || !matches!(changed, Micro::List { .. }), "registers are no lists");
    generator.drafts[last].micros[at] = changed;
}
