//! Damaged, repeated and misplaced sections.

use proptest::prelude::*;
use spillway_net::message::OperationKind;

use super::{
    LoggedItem, Node, OPTIONS, Operation, ReplayError, TABLE, add, definition, get, operation, row,
    session, submit, upsert,
};
use crate::redo::{FragmentReader, Record, RedoError, SystemCommand};

/// Items with full rows, patches, deletions, overwritten rows, outcomes with and without results.
fn history() -> Node {
    let mut node = Node::new();
    let big = |k| operation(OperationKind::Upsert, k, &row(5, 1000));
    node.one(1, &[big(1), big(2), upsert(3, 1), upsert(4, 1), get(3)]);
    node.one(2, &[add(1, 7), add(2, 8), get(1)]);
    let delete = operation(OperationKind::Delete, 4, &[]);
    node.one(3, &[add(1, 1), add(1, 1), delete, upsert(5, 2), upsert(5, 3)]);
    node.one(4, &[add(1, 1), add(2, 1), add(3, 1)]);
    assert_eq!(node.items.len(), 4);
    node
}

fn records(bytes: &[u8]) -> Option<(u64, Vec<Record<'_>>)> {
    let reader = FragmentReader::new(bytes).ok()?;
    Some((reader.next_number(), reader.records().collect()))
}

#[test]
fn the_history_has_every_kind_of_record() {
    let node = history();
    let mut kinds: Vec<u8> = Vec::new();
    for section in node.items.iter().flat_map(|item| &item.sections) {
        kinds.extend(records(&section.bytes).expect("valid").1.iter().map(|r| r.kind as u8));
    }
    for kind in 1..=3 {
        assert!(kinds.contains(&kind), "record kind {kind}");
    }
}

proptest! {
    #[test]
    fn a_flipped_byte_among_the_records_is_found(
        item in any::<prop::sample::Index>(),
        section in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..=255,
    ) {
        let mut items = history().items;
        let item = item.index(items.len());
        let section = section.index(items[item].sections.len());
        let damaged = &mut items[item].sections[section];
        let good = damaged.bytes.clone();
        let at = at.index(good.len());
        damaged.bytes[at] ^= flip;
        // Outcomes are under the log's checksums alone, the digest is one of rows.
        let same_records = records(&damaged.bytes).is_some_and(|now| Some(now) == records(&good));
        if !same_records {
            let replayed = Node::replayed(&items, OPTIONS).map(|_| ());
            prop_assert!(replayed.is_err(), "byte {} of {}", at, good.len());
        }
    }

    #[test]
    fn cut_sections_are_found(
        item in any::<prop::sample::Index>(), bytes in 1usize..40,
    ) {
        let mut items = history().items;
        let item = item.index(items.len());
        let damaged = &mut items[item].sections[0].bytes;
        damaged.truncate(damaged.len().saturating_sub(bytes));
        let replayed = Node::replayed(&items, OPTIONS).map(|_| ());
        prop_assert!(matches!(replayed, Err(ReplayError::Redo { .. })), "{:?}", replayed);
    }
}

/// Applies the sections of one partition in this order.
fn apply(items: &[LoggedItem], order: &[usize]) -> Result<(), ReplayError> {
    let chosen: Vec<_> = order.iter().map(|at| items[*at].clone()).collect();
    Node::replayed(&chosen, OPTIONS).map(|_| ())
}

/// Items that all write to one row.
fn of_one_row(operations: &[Operation]) -> Vec<LoggedItem> {
    let mut node = Node::new();
    for (at, operation) in operations.iter().enumerate() {
        node.one(at as u64 + 1, std::slice::from_ref(operation));
    }
    node.items
}

#[test]
fn a_section_twice_or_out_of_order_or_left_out_is_found() {
    let items = of_one_row(&[upsert(1, 1), upsert(1, 2), upsert(1, 3)]);
    apply(&items, &[0, 1, 2]).expect("the right order");
    for order in [&[0, 0, 1][..], &[1, 0, 2], &[0, 2, 1], &[0, 2], &[1], &[0, 1, 1]] {
        let applied = apply(&items, order);
        let found =
            matches!(applied, Err(ReplayError::NumbersFall { .. } | ReplayError::Digest { .. }));
        assert!(found, "{order:?}: {applied:?}");
    }
}

#[test]
fn older_numbers_are_refused_before_anything_is_applied() {
    let items = of_one_row(&[upsert(1, 1), upsert(1, 2)]);
    let mut node = Node::followed(&items, OPTIONS).expect("good");
    let applied = node.replay(3, &items[0].sections[0]);
    assert!(matches!(applied, Err(ReplayError::NumbersFall { .. })), "{applied:?}");
    node.lead(2);
    node.connect(1, session(1).0);
    assert_eq!(node.rows().len(), 1);
    assert_eq!(node.rows()[0].2, 2, "the newer row stands");
}

#[test]
fn a_patch_needs_its_row_and_a_record_its_table() {
    let big = operation(OperationKind::Upsert, 1, &row(5, 1000));
    let items = of_one_row(&[big, add(1, 1)]);
    let applied = apply(&items, &[1]);
    assert!(matches!(applied, Err(ReplayError::PatchWithoutRow { .. })), "{applied:?}");
    let mut bare = Node::bare(OPTIONS);
    let applied = bare.replay(1, &items[0].sections[0]);
    assert!(matches!(applied, Err(ReplayError::UnknownTable { .. })), "{applied:?}");
}

#[test]
fn a_table_twice_or_a_number_twice_is_found() {
    let create = SystemCommand::TableCreate { table: TABLE.0, definition: definition() };
    Node::bare(OPTIONS).shard.replay_command(&create).expect("the first one");
    let mut node = Node::followed(&of_one_row(&[upsert(1, 1)]), OPTIONS).expect("good");
    let twice = node.shard.replay_command(&create);
    assert!(matches!(twice, Err(RedoError::Contradiction(_))), "{twice:?}");
    // Rows that continue the partition, with the number of what is committed already.
    let mut again = Node::replayed(&of_one_row(&[upsert(1, 1)]), OPTIONS).expect("good");
    again.shard.sessions.forget(session(1), 1);
    again.one(1, &[upsert(1, 2)]);
    let twice = node.replay(2, &again.items[0].sections[0]);
    assert!(matches!(twice, Err(ReplayError::Redo { .. })), "{twice:?}");
}

#[test]
fn a_small_budget_ends_a_replay_with_an_error() {
    let mut node = Node::new();
    for number in 1..60 {
        let large = operation(OperationKind::Upsert, number as i64, &row(1, 50_000));
        node.one(number, &[large]);
    }
    let options = super::NodeOptions { chunks: 4, ..OPTIONS };
    let replayed = Node::replayed(&node.items, options).map(|_| ());
    assert!(matches!(replayed, Err(ReplayError::MemoryFull)), "{replayed:?}");
}

#[test]
fn work_goes_on_after_a_restart() {
    let mut before = history();
    let mut node = Node::replayed(&before.items, OPTIONS).expect("good");
    let outcomes = [&mut before, &mut node].map(|node| {
        let request = submit(1, 9, 5, 0, &[vec![add(1, 1), get(1)], vec![get(4), upsert(4, 9)]]);
        node.ask(request).outcomes()
    });
    assert_eq!(outcomes[0], outcomes[1]);
    assert_eq!(before.rows(), node.rows(), "row versions go on where they were");
}
