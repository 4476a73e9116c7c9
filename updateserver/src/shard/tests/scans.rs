//! Pages of rows, and tables that come and go.

use std::collections::BTreeMap;

use proptest::prelude::*;
use spillway_net::frame::FrameKind;
use spillway_net::ids::TableId;
use spillway_net::message::{
    OperationKind, OutcomeStatus, RefusalCode, Scan, TableList, TableListing, decode,
};

use super::{
    Answer, Node, OPTIONS, Operation, TABLE, definition, frame_of, get, key, operation, row,
    submit, upsert,
};
use crate::shard::{RootOrder, ShardInput};

fn scan(node: &mut Node, start: &[u8], end: &[u8], rows_max: u32) -> (bool, Vec<i64>) {
    let scan = Scan { table: TABLE.0, start: start.to_vec(), end: end.to_vec(), rows_max };
    let (more, rows) = node.ask(frame_of(2, 7, FrameKind::Scan, &scan)).page();
    let ordered = rows.windows(2).all(|pair| pair[0].0 < pair[1].0);
    assert!(ordered, "keys rise");
    (more, rows.iter().map(|row| number(&row.0)).collect())
}

fn number(key: &[u8]) -> i64 {
    let layout = super::layout();
    let values = spillway_net::key::key_values(&layout, key).expect("a key");
    match values[0] {
        spillway_net::value::Value::Int8(k) => k,
        ref other => panic!("{other:?}"),
    }
}

fn delete(k: i64) -> Operation {
    operation(OperationKind::Delete, k, &[])
}

fn write(node: &mut Node, first: u64, operations: Vec<Operation>) {
    let transactions: Vec<_> = operations.into_iter().map(|operation| vec![operation]).collect();
    let outcomes = node.ask(submit(1, 1, first, 0, &transactions)).outcomes();
    assert!(outcomes.iter().all(|outcome| outcome.status == OutcomeStatus::Committed));
}

#[test]
fn pages_are_ordered_bounded_and_continued() {
    let mut node = Node::new();
    // Not in order, negative ones too, every third deleted.
    write(&mut node, 1, (0..300).map(|i| upsert((i * 77) % 300 - 150, i)).collect());
    write(&mut node, 1000, (-150..150).filter(|k| k % 3 == 0).map(delete).collect());
    let all: Vec<i64> = (-150..150).filter(|k| k % 3 != 0).collect();
    assert_eq!(scan(&mut node, &[], &[], 4096), (false, all.clone()));
    assert_eq!(scan(&mut node, &[], &[], u32::MAX), (false, all.clone()));
    assert_eq!(scan(&mut node, &[], &[], 0).1, all[..1], "no page without a row");
    let (mut found, mut start) = (Vec::new(), Vec::new());
    loop {
        let (more, page) = scan(&mut node, &start, &key(140), 7);
        assert!(page.len() <= 7);
        if let Some(last) = page.last() {
            start = [&key(*last)[..], &[0]].concat();
        }
        found.extend(page);
        if !more {
            break;
        }
    }
    let expected: Vec<_> = all.iter().copied().filter(|k| *k < 140).collect();
    assert_eq!(found, expected);
    let (more, page) = scan(&mut node, &key(10), &key(13), 100);
    assert_eq!((more, page), (false, vec![10, 11]));
    assert_eq!(scan(&mut node, &key(13), &key(10), 100), (false, Vec::new()));
    assert_eq!(scan(&mut node, &[0xff; 20], &[], 100), (false, Vec::new()));
}

#[test]
fn large_pages_end_by_their_bytes() {
    let mut node = Node::new();
    for k in 0..30 {
        node.one(k + 1, &[operation(OperationKind::Upsert, k as i64, &row(1, 60_000))]);
    }
    let (more, page) = scan(&mut node, &[], &[], 4096);
    assert!(more && page.len() >= 8 && page.len() < 20, "{}", page.len());
    assert_eq!(node.rows().len(), 30);
}

#[test]
fn a_page_waits_for_what_it_saw() {
    let mut node = Node::new();
    let ask = |node: &mut Node| {
        let scan = Scan { table: TABLE.0, start: Vec::new(), end: Vec::new(), rows_max: 100 };
        node.frames(&[frame_of(2, 7, FrameKind::Scan, &scan)]);
    };
    ask(&mut node);
    assert_eq!(node.take_answers().len(), 1, "nothing is open: nothing to wait for");
    node.frames(&[submit(1, 1, 1, 0, &[vec![upsert(1, 1)]])]);
    ask(&mut node);
    node.turn_end();
    ask(&mut node);
    assert!(node.answers.is_empty());
    node.confirm(1);
    let answers: Vec<Answer> = node.take_answers();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[1].page().1.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A scan that goes on while rows come and go finds what was there all the time, once.
    #[test]
    fn scans_go_on_while_rows_come_and_go(
        rounds in prop::collection::vec(
            prop::collection::vec((0i64..400, prop::bool::weighted(0.7)), 1..60), 1..12),
        rows_max in 1u32..60,
    ) {
        let mut node = Node::new();
        // Keys divisible by 4 stay, the others come and go.
        let stay: Vec<i64> = (0..400).filter(|k| k % 4 == 0).collect();
        write(&mut node, 1, stay.iter().map(|k| upsert(*k, 0)).collect());
        let mut model: BTreeMap<i64, ()> = stay.iter().map(|k| (*k, ())).collect();
        let mut first = 1000;
        let (mut found, mut start, mut more) = (Vec::new(), Vec::new(), true);
        let mut rounds = rounds.iter().cycle();
        while more {
            let mut operations = Vec::new();
            for (k, insert) in rounds.next().expect("it cycles") {
                if *insert {
                    model.insert(*k, ());
                    operations.push(upsert(*k, 1));
                } else if k % 4 != 0 && model.remove(k).is_some() {
                    operations.push(delete(*k));
                }
            }
            if !operations.is_empty() {
                write(&mut node, first, operations);
                first += 100;
            }
            let page;
            (more, page) = scan(&mut node, &start, &[], rows_max);
            let from = if start.is_empty() { 0 } else { number(&start[..8]) + 1 };
            let expected: Vec<_> =
                model.range(from..).map(|(k, ())| *k).take(rows_max as usize).collect();
            prop_assert_eq!(&page, &expected, "each page is what is there now");
            if let Some(last) = page.last() {
                start = [&key(*last)[..], &[0]].concat();
            }
            found.extend(page);
        }
        let met: Vec<_> = found.iter().copied().filter(|k| k % 4 == 0).collect();
        prop_assert_eq!(met, stay);
    }
}

fn tables(node: &mut Node) -> Vec<(u16, u64)> {
    node.frames(&[frame_of(2, 3, FrameKind::TableList, &TableList {})]);
    let answer = node.take_answers().remove(0);
    assert_eq!(answer.kind, FrameKind::TableListing);
    let listing = decode::<TableListing>(&answer.payload).expect("valid");
    listing.tables.iter().map(|table| (table.id, table.rows)).collect()
}

#[test]
fn a_table_dropped_and_created_again_is_empty() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 1)]);
    node.one(2, &[upsert(2, 1)]);
    assert_eq!(node.rows().len(), 2);
    node.frames(&[submit(1, 3, 3, 0, &[vec![upsert(3, 1)]])]);
    node.step(ShardInput::Root(RootOrder::TableHide { table: TABLE }));
    assert_eq!(node.items.len(), 3, "what stands in the table is handed over before it goes");
    node.settle();
    assert_eq!(node.take_answers()[0].status(), OutcomeStatus::Committed);
    assert_eq!(node.one(4, &[get(1)]).status, OutcomeStatus::UnknownTable);
    assert_eq!(node.one(1, &[upsert(1, 1)]).status, OutcomeStatus::Committed, "a repetition");
    let gone = Scan { table: TABLE.0, start: Vec::new(), end: Vec::new(), rows_max: 5 };
    let answer = node.ask(frame_of(1, 1, FrameKind::Scan, &gone));
    assert_eq!(answer.refusal(), Some(RefusalCode::Schema));
    assert!(tables(&mut node).is_empty());
    let (table, definition) = (TableId(2), definition());
    node.step(ShardInput::Root(RootOrder::TableCreate { table, definition }));
    assert_eq!(tables(&mut node), [(2, 0)]);
    let in_new = |operation: Operation| Operation { table, ..operation };
    let outcome = node.one(5, &[in_new(get(1)), in_new(upsert(1, 9)), in_new(get(1))]);
    assert!(outcome.gets[0].is_none() && outcome.gets[1].is_some());
    assert_eq!(tables(&mut node), [(2, 1)]);
}

#[test]
fn scans_of_no_table_leave_nothing_behind() {
    let mut node = Node::new();
    for table in [0, 2, 3, 5000, u16::MAX] {
        let scan = Scan { table, start: Vec::new(), end: Vec::new(), rows_max: 5 };
        let answer = node.ask(frame_of(1, 1, FrameKind::Scan, &scan));
        assert_eq!(answer.refusal(), Some(RefusalCode::Schema));
    }
    assert!(node.shard.store.ordered.is_empty());
    assert_eq!(node.shard.store.tables().count(), 1);
    assert_eq!(OPTIONS.shards, 1);
}

#[test]
fn a_scan_without_memory_is_refused_and_reads_go_on() {
    let mut node = Node::with(super::NodeOptions { chunks: 2, ..OPTIONS });
    let mut number = 1;
    while node.one(number, &[upsert(number as i64, 1)]).status == OutcomeStatus::Committed {
        number += 1;
    }
    // Rows took all but what no single block needs; the order of thousands of rows needs more.
    let scan = Scan { table: TABLE.0, start: Vec::new(), end: Vec::new(), rows_max: 5 };
    let answer = node.ask(frame_of(1, 1, FrameKind::Scan, &scan));
    let refused = answer.refusal();
    assert!(refused.is_none() || refused == Some(RefusalCode::LimitReached), "{refused:?}");
    let found = node.one(number + 10, &[get(1), get(number as i64 - 1)]);
    assert!(found.gets.iter().all(Option::is_some));
}
