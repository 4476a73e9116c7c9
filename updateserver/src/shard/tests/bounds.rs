//! Bounds on what transactions, frames, answers and hand-overs take.

use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::BatchError;
use spillway_net::frame::FrameKind;
use spillway_net::ids::TableId;
use spillway_net::limits::{FRAGMENT_BYTES_CLOSE, TRANSACTION_OPERATIONS_MAX};
use spillway_net::message::{OperationHead, OperationKind, OutcomeStatus, Submit, TransactionHead};
use spillway_net::schema::{ColumnType, TableDefinition};

use super::{
    Node, NodeOptions, OPTIONS, Operation, add, frame_of, get, key, operation, row, submit, upsert,
};
use crate::redo::FragmentReader;
use crate::shard::{RootOrder, ShardInput};

#[test]
fn thousands_of_additions_to_one_row_are_one_record() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 0)]);
    let adds: Vec<_> = (0..3000).map(|_| vec![add(1, 2)]).collect();
    let outcomes = node.ask(submit(1, 2, 2, 0, &adds)).outcomes();
    assert!(outcomes.iter().all(|outcome| outcome.status == OutcomeStatus::Committed));
    assert_eq!(node.items.len(), 2);
    let reader = FragmentReader::new(&node.items[1].sections[0].bytes).expect("valid");
    assert_eq!(reader.records_count(), 1);
    assert_eq!(reader.outcomes().count(), 3000);
    assert_eq!(reader.next_number(), 3002);
    assert_eq!(node.rows(), [(key(1), row(6000, 4), 3001)]);
    let mut node = Node::replayed(&node.items, OPTIONS).expect("good");
    assert_eq!(node.rows(), [(key(1), row(6000, 4), 3001)]);
    let last = node.ask(submit(1, 1, 3001, 0, &[vec![add(1, 2)]])).status();
    assert_eq!(last, OutcomeStatus::Committed);
    assert!(node.items.is_empty(), "it was not executed again");
}

#[test]
fn a_hot_large_row_is_one_patch_and_a_small_one() {
    let mut node = Node::new();
    node.one(1, &[operation(OperationKind::Upsert, 1, &row(0, 5000))]);
    let adds: Vec<_> = (0..2000).map(|_| vec![add(1, 1)]).collect();
    node.ask(submit(1, 2, 2, 0, &adds));
    let bytes: usize =
        node.items[1..].iter().flat_map(|i| &i.sections).map(|s| s.bytes.len()).sum();
    let records = node.items[1..].iter().flat_map(|item| &item.sections);
    let records = records.map(|s| FragmentReader::new(&s.bytes).expect("valid").records_count());
    assert_eq!(records.sum::<usize>(), node.items.len() - 1, "one record per hand-over");
    assert!(bytes < 2000 * 8 + 1000, "{bytes} bytes");
    assert_eq!(node.rows(), [(key(1), row(2000, 5000), 2001)]);
}

fn raw(
    connection: u64,
    operations: &[OperationHead],
    counts: &[u16],
    bytes: &[u8],
) -> super::Request {
    let transactions = counts
        .iter()
        .enumerate()
        .map(|(at, count)| TransactionHead { number_offset: at as u32, operations: *count })
        .collect();
    let message = Submit {
        acknowledged_below: 0,
        first_number: 1,
        transactions,
        operations: operations.to_vec(),
        bytes: bytes.to_vec(),
        ..Submit::default()
    };
    frame_of(connection, 1, FrameKind::Submit, &message)
}

#[test]
fn too_many_operations_are_refused() {
    let mut node = Node::new();
    let head = OperationHead {
        kind: OperationKind::Get as u8,
        reserved: 0,
        table: 1,
        column: 0,
        key_length: 8,
        value_length: 0,
    };
    let count = TRANSACTION_OPERATIONS_MAX + 1;
    let request = raw(1, &vec![head; count], &[count as u16], &key(1).repeat(count));
    assert_eq!(node.ask(request).status(), OutcomeStatus::TooLarge);
    let request = raw(1, &vec![head; count - 1], &[count as u16 - 1], &key(1).repeat(count - 1));
    assert_eq!(node.ask(request).status(), OutcomeStatus::Committed);
    let mut batch = spillway_net::client::Batch::new();
    batch.begin();
    assert_eq!(batch.end(), Err(BatchError::Empty), "no client sends an empty one");
    let request = raw(1, &[head], &[0, 1], &key(1));
    let outcomes = node.ask(request).outcomes();
    assert_eq!(outcomes[0].status, OutcomeStatus::Malformed);
    assert_eq!(outcomes[1].status, OutcomeStatus::Committed);
}

#[test]
fn too_much_redo_is_rolled_back() {
    let mut node = Node::new();
    let large = |k| operation(OperationKind::Upsert, k, &row(1, 60_000));
    let mut operations: Vec<_> = (0..10).map(large).collect();
    let outcome = node.one(1, &operations);
    assert_eq!((outcome.status, outcome.operation), (OutcomeStatus::TooLarge, 8));
    assert!(node.items.is_empty() && node.rows().is_empty());
    operations.truncate(8);
    assert_eq!(node.one(1, &operations).status, OutcomeStatus::Committed);
    assert_eq!(node.rows().len(), 8);
}

/// A table whose keys and rows are as short as can be.
fn tiny_table(node: &mut Node) -> TableId {
    let definition = TableDefinition::parse("tiny(k int2, primary key (k))").expect("it parses");
    let table = TableId(2);
    node.step(ShardInput::Root(RootOrder::TableCreate { table, definition }));
    table
}

#[test]
fn outcomes_count_for_the_size_of_a_hand_over() {
    let mut node = Node::with(NodeOptions { partitions: 1, ..OPTIONS });
    let table = tiny_table(&mut node);
    // 51 bytes of row and 13 of header are the most that an outcome keeps.
    let tag = 51 - row(0, 0).len();
    node.one(1, &[operation(OperationKind::Upsert, 1, &row(0, tag))]);
    let key = vec![0x80, 0x01];
    let write = Operation { kind: OperationKind::Upsert, table, column: 0, key, value: Vec::new() };
    let transactions = vec![vec![write, get(1)]; 20_000];
    for (at, chunk) in transactions.chunks(10_000).enumerate() {
        node.frames(&[submit(1, 2, 2 + at as u64 * 10_000, 0, chunk)]);
    }
    node.settle();
    let sizes = node.items.iter().flat_map(|item| &item.sections).map(|s| s.bytes.len());
    let largest = sizes.max().expect("there are items");
    assert!(largest < FRAGMENT_BYTES_CLOSE + 1000, "{largest} bytes in one hand-over");
    assert_eq!(node.outcomes_confirmed(), 20_001);
}

#[test]
fn answers_fit_their_limit() {
    let mut node = Node::new();
    let large = |k| operation(OperationKind::Upsert, k, &row(1, 60_000));
    node.one(1, &[large(1), large(2)]);
    // 120 times 60 KB do not fit one answer.
    let reads = vec![vec![get(1)]; 120];
    let outcomes = node.ask(submit(1, 2, 2, 0, &reads)).outcomes();
    let committed = outcomes.iter().filter(|o| o.status == OutcomeStatus::Committed).count();
    let later = outcomes.iter().filter(|o| o.status == OutcomeStatus::Overloaded).count();
    assert!(committed > 50 && committed + later == 120, "{committed} and {later}");
    assert!(outcomes.iter().all(|o| o.gets.len() == usize::from(o.status.is_committed())));
    // Writes that read are not executed either when their results do not fit.
    let changes: Vec<_> = (0..120).map(|_| vec![add(2, 1), get(2)]).collect();
    let outcomes = node.ask(submit(1, 3, 200, 0, &changes)).outcomes();
    let committed = outcomes.iter().filter(|o| o.status == OutcomeStatus::Committed).count();
    let expected = row(1 + committed as i64, 60_000);
    assert_eq!(node.rows()[1].1, expected, "what was not told was not done");
    // What never fits is not worth a retry.
    let reads: Vec<_> = (0..120).map(|_| get(1)).collect();
    assert_eq!(node.one(400, &reads).status, OutcomeStatus::TooLarge);
}

#[test]
fn memory_runs_out_by_refusals() {
    let mut node = Node::with(NodeOptions { chunks: 2, ..OPTIONS });
    let mut number = 1;
    let mut refused = None;
    while number < 200 {
        let outcome =
            node.one(number, &[operation(OperationKind::Insert, number as i64, &row(1, 9000))]);
        if outcome.status != OutcomeStatus::Committed {
            refused = Some(outcome.status);
            break;
        }
        number += 1;
    }
    assert_eq!(refused, Some(OutcomeStatus::MemoryFull));
    let rows = number - 1;
    assert!(rows > 20);
    let found = node.one(1000, &[get(1), get(rows as i64)]);
    assert!(found.gets.iter().all(Option::is_some), "reads go on");
    assert_eq!(
        node.one(1, &[operation(OperationKind::Insert, 1, &row(1, 9000))]).status,
        OutcomeStatus::Committed
    );
    for number in 2000..2100 {
        let status = node
            .one(number, &[operation(OperationKind::Insert, number as i64, &row(1, 9000))])
            .status;
        assert_eq!(status, OutcomeStatus::MemoryFull);
    }
    assert_eq!(node.shard.memory().0, rows);
}

#[test]
fn small_operations_on_large_rows_run_out_of_memory_by_refusals() {
    // An addition is small, but behind four patches it writes the whole row again.
    let mut node = Node::with(NodeOptions { chunks: 4, ..OPTIONS });
    let keys: Vec<i64> = (1..=7).collect();
    let mut number = 0;
    for k in &keys {
        number += 1;
        node.one(number, &[operation(OperationKind::Upsert, *k, &row(0, 60_000))]);
    }
    let mut value = Vec::new();
    let one = AddBounded { delta: 1, min: None, max: None };
    AddArgument::Int(one).encode(ColumnType::Int8, &mut value).expect("it fits");
    let adds: Vec<_> = keys
        .iter()
        .map(|k| Operation { column: 1, ..operation(OperationKind::Add, *k, &value) })
        .collect();
    for _ in 0..4 {
        number += 1;
        assert_eq!(node.one(number, &adds).status, OutcomeStatus::Committed);
    }
    // Leaves room for what the additions announce, not for what they write.
    let mut status = OutcomeStatus::Committed;
    while status == OutcomeStatus::Committed {
        number += 1;
        let filler = operation(OperationKind::Insert, number as i64 + 100, &row(0, 8000));
        status = node.one(number, &[filler]).status;
    }
    assert_eq!(status, OutcomeStatus::MemoryFull);
    number += 1;
    let outcome = node.one(number, &adds);
    assert_eq!(outcome.status, OutcomeStatus::MemoryFull);
    let rows = node.rows_of_keys(&keys);
    for found in rows {
        assert_eq!(found, row(4, 60_000), "all or nothing of every transaction");
    }
}
