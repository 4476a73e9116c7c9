//! The checker of histories: nothing in valid ones, everything that is planted, and small ones
//! against all orders that are possible.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use spillway_sim::checker::finding::Class;
use spillway_sim::checker::generator::{Shape, Workload, valid};
use spillway_sim::checker::history::{NEVER, VALUE_MIN, Version};
use spillway_sim::checker::planter::{LISTS, REGISTERS, VERSIONS, planted};
use spillway_sim::checker::{Datum, History, Kind, Micro, Name, check, text};
use spillway_sim::draw::Draw;

const WORKLOADS: [Workload; 3] = [Workload::Lists, Workload::Registers, Workload::Versions];
const PLANTED_SEEDS: u64 = 25;

fn planted_classes(workload: Workload) -> &'static [Class] {
    match workload {
        Workload::Lists => &LISTS,
        Workload::Registers => &REGISTERS,
        Workload::Versions => &VERSIONS,
    }
}

#[test]
fn valid_histories_have_no_findings() {
    let (mut failed, mut unknown) = (0, 0);
    for workload in WORKLOADS {
        for seed in 0..150 {
            let mut draw = Draw::new(seed);
            let shape = Shape::draw(&mut draw, workload);
            let history = valid(shape, seed);
            let verdict = check(&history);
            let found = verdict.findings.text(&history);
            assert!(found.is_empty(), "{workload:?}, seed {seed}, {shape:?}:\n{found}");
            assert!(shape.transactions < 50 || verdict.edges > 0, "seed {seed} orders nothing");
            let count = |kind| history.transactions().iter().filter(|t| t.kind == kind).count();
            (failed, unknown) = (failed + count(Kind::Fail), unknown + count(Kind::Info));
        }
    }
    assert!(failed > 1000 && unknown > 1000, "{failed} failed, {unknown} unknown");
}

/// What comes with a class, truly and always: the planted transactions show it, too.
fn may_come_with(class: Class) -> &'static [Class] {
    match class {
        // Whoever reads between two writes of one transaction comes before and behind it.
        Class::IntermediateRead => &[Class::ReadSkew],
        // One name for two writes leaves the other nameless.
        Class::DuplicateWrite => {
            &[Class::ImpossibleValue, Class::IncompatibleVersions, Class::DuplicateElement]
        }
        // A write that has two versions has the later one, too.
        Class::IncompatibleVersions => &[Class::StaleRead],
        _ => &[],
    }
}

#[test]
fn every_planted_anomaly_is_found_and_named() {
    let mut count = 0;
    for workload in WORKLOADS {
        for class in planted_classes(workload) {
            for seed in 0..PLANTED_SEEDS {
                let history = planted(workload, *class, seed);
                let findings = check(&history).findings;
                let text = findings.text(&history);
                let of = format!("{workload:?}, {class:?}, seed {seed}");
                assert!(findings.counts.contains_key(class), "{of}: not found, but:\n{text}");
                let others = findings.counts.keys().filter(|other| *other != class);
                for other in others {
                    assert!(may_come_with(*class).contains(other), "{of}: {other:?}\n{text}");
                }
                count += 1;
            }
        }
    }
    println!("{count} planted anomalies were found");
    assert!(count >= 1000);
}

#[test]
fn planted_cycles_are_told_of_shortly() {
    for seed in 0..PLANTED_SEEDS {
        for (class, length) in [
            (Class::DirtyWrite, 2),
            (Class::CircularInformation, 2),
            (Class::LostUpdate, 2),
            (Class::ReadSkew, 2),
            (Class::WriteSkew, 2),
            (Class::DirtyWriteRealtime, 2),
            (Class::CircularInformationRealtime, 2),
            (Class::StaleRead, 2),
            (Class::ReadSkewRealtime, 3),
            (Class::WriteSkewRealtime, 3),
        ] {
            let history = planted(Workload::Lists, class, seed);
            let findings = check(&history).findings;
            let finding = findings.kept.iter().find(|finding| finding.class == class);
            let finding = finding.expect("it is found");
            let text = finding.text(&history);
            assert_eq!(finding.cycle.len(), length, "{class:?}, seed {seed}: {text}");
            assert!(!finding.is_cut);
            for (at, step) in finding.cycle.iter().enumerate() {
                assert_eq!(step.to, finding.cycle[(at + 1) % length].from, "{text}");
            }
        }
    }
}

#[test]
fn text_says_the_same() {
    for workload in WORKLOADS {
        for seed in 0..20 {
            for class in planted_classes(workload) {
                let history = planted(workload, *class, seed);
                let written = text::write(&history);
                let read = text::read(written.as_bytes()).expect("what was written can be read");
                assert_eq!(read.transactions().len(), history.transactions().len());
                let (before, after) = (check(&history), check(&read));
                assert_eq!(before.findings.counts, after.findings.counts, "{class:?}, seed {seed}");
                assert_eq!(
                    text::read(text::write(&read).as_bytes()).map(|h| text::write(&h)),
                    Ok(text::write(&read))
                );
            }
        }
    }
}

const STALE: &str = r#"
{"index":0,"type":"invoke","process":0,"f":"txn","time":1,"value":[["append","x",1]]}
{"index":1,"type":"ok","process":0,"f":"txn","time":4,"value":[["append","x",1]]}
{"index":2,"type":"invoke","process":"nemesis","f":"kill","time":4}
{"index":3,"type":"invoke","process":1,"f":"txn","time":5,"value":[["r","x",null]]}
{"index":4,"type":"ok","process":1,"f":"txn","time":6,"value":[["r","x",[]]]}
"#;

#[test]
fn a_finding_can_be_read() {
    let history = text::read(STALE.as_bytes()).expect("it is well formed");
    let expected = "\
stale-read (a write was over, and the read misses it)
  T1 (process 1, ok, 5 to 6): r x []
  T0 (process 0, ok, 2 to 3): append x 1
  T1 -rw x-> T0: T1 read x without what T0 wrote
  T0 -realtime-> T1: T0 had ended before T1 began
";
    assert_eq!(check(&history).findings.text(&history), expected);
}

#[test]
fn bad_text_is_refused_with_its_line() {
    let invoke = r#"{"type":"invoke","process":0,"value":[["append",1,2],["r",1,null]]}"#;
    let cases = [
        ("{", 1, "EOF"),
        (r#"{"type":"ok","process":0,"value":[]}"#, 1, "has not invoked"),
        (r#"{"type":"begin","process":0}"#, 1, "unknown variant"),
        (r#"{"type":"invoke","process":-1,"value":[]}"#, 1, "below 0"),
        (r#"{"type":"invoke","process":0}"#, 1, "without a value"),
        (r#"{"type":"invoke","process":0,"value":[["cas",1,2]]}"#, 1, "unknown variant"),
        (r#"{"type":"invoke","process":0,"value":[["w"]]}"#, 1, "without a key"),
        (r#"{"type":"invoke","process":0,"value":[["w",1,2,3,4]]}"#, 1, "more than four"),
        (r#"{"type":"invoke","process":0,"value":[["w",1,1.5]]}"#, 1, "64 bits"),
        (r#"{"type":"invoke","process":0,"value":[["r",1,[[1]]]]}"#, 1, "list in a list"),
        (r#"{"type":"invoke","process":0,"value":[["w",null,1]]}"#, 1, "a key is"),
        (r#"{"type":"invoke","process":0,"value":[["w",1,2,0]]}"#, 1, "nonzero"),
        (r#"{"type":"invoke","process":0,"value":[["w",1,18446744073709551615]]}"#, 1, "2^63"),
        ("INVOKE\nINVOKE", 2, "has not completed that of line 1"),
        ("INVOKE\n\n{\"type\":\"ok\",\"process\":0}", 3, "ok without a value"),
        ("INVOKE\n{\"type\":\"ok\",\"process\":0,\"value\":[]}", 2, "not what process 0 invoked"),
        (
            "INVOKE\n{\"type\":\"ok\",\"process\":0,\"value\":[[\"append\",1,3],[\"r\",1,[2]]]}",
            2,
            "not what process 0 invoked",
        ),
        (
            "INVOKE\n{\"type\":\"ok\",\"process\":0,\"value\":[[\"append\",1,2],[\"r\",1,5]]}",
            2,
            "as a list and as a register",
        ),
        (
            r#"{"type":"invoke","process":0,"index":5,"value":[]}
{"type":"ok","process":0,"index":5,"value":[]}"#,
            2,
            "index does not rise",
        ),
        (
            r#"{"type":"invoke","process":0,"time":5,"value":[]}
{"type":"ok","process":0,"time":4,"value":[]}"#,
            2,
            "time goes back",
        ),
    ];
    for (case, line, what) in cases {
        let case = case.replace("INVOKE", invoke);
        let error = text::read(case.as_bytes()).expect_err(&case);
        assert_eq!(error.line, line, "{case}: {error}");
        assert!(error.what.contains(what), "{case}: {error}");
    }
    let small = VALUE_MIN - 1;
    let case = format!(r#"{{"type":"info","process":0,"value":[["w",1,{small}]]}}"#);
    assert!(text::read(case.as_bytes()).is_err());
}

#[test]
fn a_key_is_a_list_or_a_register_and_times_go_forward() {
    let mut history = History::new();
    let key = history.key(Name::Number(1));
    let append = Micro::Append { key, value: 1 };
    let write = Micro::Write { key, value: Datum::Nil, version: None };
    let nameless = Micro::Write { key, value: Datum::Unknown, version: NonZeroU64::new(1) };
    assert!(history.push(0, (1, 2), Kind::Ok, &[append]).is_ok());
    assert!(history.push(0, (3, 4), Kind::Ok, &[write]).is_err());
    assert!(history.push(0, (3, 4), Kind::Ok, &[nameless]).is_err());
    assert!(history.push(0, (6, 5), Kind::Ok, &[append]).is_err());
    assert_eq!(history.transactions().len(), 1);
}

/// A small history whose steps take effect in any order, at any time.
fn chaos(workload: Workload, draw: &mut Draw) -> History {
    let mut history = History::new();
    let keys = [0, 1].map(|key| history.key(Name::Number(key)));
    let count = draw.range(2, 6) as usize;
    let mut kinds = Vec::new();
    let mut drafts: Vec<Vec<Micro>> = Vec::new();
    let mut next_value = 1;
    for _ in 0..count {
        let mut micros = Vec::new();
        for _ in 0..draw.range(1, 4) {
            let key = draw.pick(&keys);
            next_value += 1;
            let value = Datum::Is(next_value);
            let read = Micro::Read { key, value: Datum::Unknown, version: None };
            micros.push(match (draw.below(2), workload) {
                (0, Workload::Lists) => Micro::Append { key, value: next_value },
                (0, _) => Micro::Write { key, value, version: None },
                _ => read,
            });
        }
        kinds.push(draw.pick(&[Kind::Ok, Kind::Ok, Kind::Ok, Kind::Info, Kind::Fail]));
        drafts.push(micros);
    }
    // Mostly whole transactions, sometimes steps, take effect.
    let mut turns: Vec<(usize, usize)> = Vec::new();
    let atomic = draw.once_in(2);
    let mut at = vec![0; count];
    let mut waiting: Vec<usize> = (0..count).collect();
    while !waiting.is_empty() {
        let place = draw.below(waiting.len() as u64) as usize;
        let of = waiting[place];
        let left = drafts[of].len() - at[of];
        for _ in 0..if atomic { left } else { 1 } {
            turns.push((of, at[of]));
            at[of] += 1;
        }
        if at[of] == drafts[of].len() {
            waiting.swap_remove(place);
        }
    }
    let mut cells = [(Vec::new(), Datum::Nil, None::<NonZeroU64>), (Vec::new(), Datum::Nil, None)];
    let mut executed = vec![0u64; count];
    for (time, (of, at)) in (1..).zip(turns) {
        if kinds[of] != Kind::Ok && draw.once_in(2) {
            continue;
        }
        executed[of] = time;
        let micro = drafts[of][at];
        let cell = &mut cells[micro.key() as usize];
        drafts[of][at] = match micro {
            Micro::Append { value, .. } => {
                cell.0.push(value);
                micro
            }
            Micro::Write { key, value, .. } => {
                (cell.1, cell.2) = (value, NonZeroU64::new(time));
                let is_told = workload == Workload::Versions && draw.once_in(2);
                Micro::Write { key, value, version: cell.2.filter(|_| is_told) }
            }
            Micro::List { key, .. } | Micro::Read { key, .. } => match workload {
                Workload::Lists => history.list(key, &cell.0),
                Workload::Registers => Micro::Read { key, value: cell.1, version: None },
                Workload::Versions => Micro::Read { key, value: cell.1, version: cell.2 },
            },
        };
    }
    for (of, mut micros) in drafts.into_iter().enumerate() {
        let invoked = (executed[of] * 2).saturating_sub(draw.below(6));
        let completed = executed[of] * 2 + draw.below(6);
        if kinds[of] != Kind::Ok {
            for micro in &mut micros {
                match micro {
                    Micro::List { key, .. } | Micro::Read { key, .. } => {
                        *micro = Micro::Read { key: *key, value: Datum::Unknown, version: None };
                    }
                    Micro::Write { version, .. } => *version = None,
                    Micro::Append { .. } => {}
                }
            }
        }
        let times = (invoked, completed);
        history.push(of as u64, times, kinds[of], &micros).expect("it is well formed");
    }
    history
}

/// What a key holds: elements, or a value, and the last version that is known.
#[derive(Clone, Default)]
struct Cell {
    list: Vec<i64>,
    value: Option<Datum>,
    version: Version,
    is_current: bool,
}

/// Executes a transaction; false if it does not see what it saw.
fn explains(history: &History, number: u32, cells: &mut BTreeMap<u32, Cell>) -> bool {
    let is_ok = history.transaction(number).kind == Kind::Ok;
    history.micros(number).iter().all(|micro| {
        let cell = cells.entry(micro.key()).or_default();
        match *micro {
            Micro::Append { value, .. } => {
                cell.list.push(value);
                true
            }
            Micro::List { start, length, .. } => cell.list == history.elements(start, length),
            Micro::Write { value, version, .. } => {
                let rises = version.is_none() || version > cell.version;
                cell.value = Some(value);
                cell.version = version.or(cell.version);
                cell.is_current = version.is_some();
                rises
            }
            Micro::Read { value: Datum::Unknown, .. } => true,
            Micro::Read { value, version, .. } => {
                let is_same = cell.value.unwrap_or(Datum::Nil) == value;
                let fits = match (version, cell.is_current) {
                    (None, _) => true,
                    (version, true) => version == cell.version,
                    (version, false) => version > cell.version && cell.value.is_some(),
                };
                if version.is_some() {
                    (cell.version, cell.is_current) = (version, true);
                }
                is_same && fits
            }
        }
    }) || !is_ok
}

/// Whether some order explains everything: all that is ok, and of the unknown what one likes.
fn is_explained(history: &History, left: &[u32], cells: &BTreeMap<u32, Cell>) -> bool {
    let transaction = |number: &u32| history.transaction(*number);
    if left.iter().all(|number| transaction(number).kind != Kind::Ok) {
        return true;
    }
    left.iter().any(|next| {
        let is_early =
            left.iter().any(|other| transaction(other).completed < transaction(next).invoked);
        let mut cells = cells.clone();
        let rest: Vec<u32> = left.iter().copied().filter(|other| other != next).collect();
        !is_early && explains(history, *next, &mut cells) && is_explained(history, &rest, &cells)
    })
}

#[test]
fn small_histories_are_judged_as_all_orders_judge_them() {
    for workload in WORKLOADS {
        let (mut explained, mut not, mut missed) = (0, 0, 0);
        for seed in 0..6000 {
            let history = chaos(workload, &mut Draw::new(seed));
            let count = history.transactions().len() as u32;
            let left = (0..count).filter(|n| history.transaction(*n).kind != Kind::Fail);
            let left: Vec<u32> = left.collect();
            let holds = is_explained(&history, &left, &BTreeMap::new());
            let findings = check(&history).findings;
            let found = findings.text(&history);
            let written = text::write(&history);
            if holds {
                explained += 1;
                assert!(found.is_empty(), "{workload:?}, seed {seed}:\n{written}{found}");
            } else {
                not += 1;
                missed += u32::from(found.is_empty());
                // Lists show the order of all writes; registers only of some.
                let is_full = workload == Workload::Lists;
                assert!(!is_full || !found.is_empty(), "{workload:?}, seed {seed}:\n{written}");
            }
        }
        println!("{workload:?}: {explained} explained, {not} not, of these {missed} missed");
        assert!(explained > 1000 && not > 1000, "{explained} {not}");
    }
    assert_eq!(NEVER, u64::MAX);
}
