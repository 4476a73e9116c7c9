//! Everything that is wrong has a typed answer.

use spillway_net::frame::FrameKind;
use spillway_net::ids::TableId;
use spillway_net::key::partition_of;
use spillway_net::limits::KEY_BYTES_MAX;
use spillway_net::message::{
    Done, OperationHead, OperationKind, OutcomeStatus, RefusalCode, Scan, SessionClose,
    SessionOpen, Submit, TableCreate, TableDrop, TransactionHead,
};

use super::{
    Node, NodeOptions, OPTIONS, Operation, add, definition, frame_of, get, key, operation, row,
    session, submit, upsert,
};
use crate::shard::{LogState, ShardInput};

fn malformed(operation: Operation) {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 1)]);
    let outcome = node.one(2, &[get(1), operation.clone(), upsert(2, 2)]);
    assert_eq!((outcome.status, outcome.operation), (OutcomeStatus::Malformed, 1), "{operation:?}");
    assert_eq!(node.rows(), [(key(1), row(1, 4), 1)]);
}

#[test]
fn operations_that_do_not_fit_their_table_are_malformed() {
    let with = |kind, value: &[u8]| operation(kind, 1, value);
    malformed(with(OperationKind::Insert, b"short"));
    malformed(with(OperationKind::Upsert, &row(1, 4)[1..]));
    malformed(with(OperationKind::Get, b"a value"));
    malformed(with(OperationKind::Delete, b"x"));
    malformed(with(OperationKind::CheckExists, b"x"));
    malformed(with(OperationKind::CheckVersion, b"1234567"));
    malformed(with(OperationKind::Add, b""));
    malformed(with(OperationKind::Add, &[0; 9]));
    malformed(Operation { column: 4, ..add(1, 1) });
    malformed(Operation { column: 99, ..add(1, 1) });
    malformed(Operation { column: 1, ..get(1) });
    malformed(Operation { key: key(1)[1..].to_vec(), ..get(1) });
    malformed(Operation { key: vec![0x80; 9], ..upsert(1, 1) });
    malformed(Operation { key: vec![0x80; KEY_BYTES_MAX], ..upsert(1, 1) });
    // Patches: no column, a column twice, in the wrong order, unknown, null where there is none.
    let set = |column: u8| {
        let mut entry = vec![column, 0];
        entry.extend_from_slice(&5i64.to_le_bytes());
        entry
    };
    for kind in [OperationKind::Update, OperationKind::CheckEquals] {
        malformed(with(kind, &[]));
        malformed(with(kind, &[0]));
        malformed(with(kind, &[&[2][..], &set(0), &set(0)].concat()));
        malformed(with(kind, &[&[2][..], &[1, 1], &set(0)].concat()));
        malformed(with(kind, &[&[1][..], &set(9)].concat()));
        malformed(with(kind, &[1, 0, 1]));
        malformed(with(kind, &[&[2][..], &set(0)].concat()));
        malformed(with(kind, &[&[1][..], &set(0), b"x"].concat()));
    }
    // Text that is none, a number above the column's precision.
    malformed(with(OperationKind::Update, &[1, 3, 0, 1, 0, 0, 0, 0xff]));
    let price = 1_000_000_000_000i128.to_le_bytes();
    malformed(with(OperationKind::Update, &[&[1, 1, 0][..], &price].concat()));
}

#[test]
fn unknown_tables_have_their_own_status() {
    for table in [0, 2, 4000, u16::MAX] {
        let mut node = Node::new();
        let outcome = node.one(1, &[get(1), Operation { table: TableId(table), ..get(1) }]);
        assert_eq!((outcome.status, outcome.operation), (OutcomeStatus::UnknownTable, 1));
    }
}

#[test]
fn a_row_may_not_outgrow_its_limit_by_patches() {
    let mut node = Node::new();
    node.one(1, &[operation(OperationKind::Insert, 1, &row(1, 60_000))]);
    let before = node.rows();
    let mut patch = vec![1, 2, 0];
    patch.extend_from_slice(&10_000u32.to_le_bytes());
    patch.extend_from_slice(&[b'n'; 10_000]);
    let outcome = node.one(2, &[add(1, 1), operation(OperationKind::Update, 1, &patch)]);
    assert_eq!((outcome.status, outcome.operation), (OutcomeStatus::Malformed, 1));
    assert_eq!(node.rows(), before);
}

fn head(kind: u8) -> OperationHead {
    OperationHead { kind, reserved: 0, table: 1, column: 0, key_length: 8, value_length: 0 }
}

fn raw(operations: Vec<OperationHead>, heads: &[(u32, u16)], bytes: Vec<u8>) -> Submit {
    let transactions = heads
        .iter()
        .map(|(number_offset, operations)| TransactionHead {
            number_offset: *number_offset,
            operations: *operations,
        })
        .collect();
    Submit { first_number: 1, transactions, operations, bytes, ..Submit::default() }
}

#[test]
fn columns_that_do_not_add_up_end_the_connection() {
    let two = [&key(1)[..], &key(2)].concat();
    let longer = OperationHead { value_length: u32::MAX, ..head(1) };
    let frames = [
        raw(Vec::new(), &[], Vec::new()),
        raw(vec![head(1)], &[], key(1)),
        raw(vec![head(1)], &[(0, 2)], key(1)),
        raw(vec![head(1); 2], &[(0, 1)], two.clone()),
        raw(vec![head(1)], &[(0, 1)], two.clone()),
        raw(vec![head(1); 2], &[(0, 2)], key(1)),
        raw(vec![longer; 2], &[(0, 2)], two),
    ];
    for frame in frames {
        let mut node = Node::new();
        let behind = submit(1, 2, 5, 0, &[vec![upsert(1, 1)]]);
        node.frames(&[frame_of(1, 1, FrameKind::Submit, &frame), behind]);
        node.settle();
        let answers = node.take_answers();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].refusal(), Some(RefusalCode::Malformed), "{frame:?}");
        assert_eq!(node.closes, [1]);
        assert!(node.rows_to(2).is_empty());
    }
    let mut node = Node::new();
    node.frames(&[frame_of(1, 1, FrameKind::Submit, &Done {})]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::Malformed));
}

#[test]
fn heads_that_make_no_sense_concern_their_transaction_alone() {
    let three = key(1).repeat(3);
    let reserved = OperationHead { reserved: 1, ..head(1) };
    let cases = [
        (raw(vec![head(0), head(1), head(1)], &[(0, 1), (1, 1), (2, 1)], three.clone()), 0),
        (raw(vec![head(11), head(1), head(1)], &[(0, 1), (1, 1), (2, 1)], three.clone()), 0),
        (raw(vec![reserved, head(1), head(1)], &[(0, 1), (1, 1), (2, 1)], three.clone()), 0),
        (raw(vec![head(1); 3], &[(5, 1), (5, 1), (6, 1)], three.clone()), 1),
        (raw(vec![head(1); 3], &[(5, 1), (4, 1), (6, 1)], three), 1),
    ];
    for (frame, wrong) in cases {
        let mut node = Node::new();
        let outcomes = node.ask(frame_of(1, 1, FrameKind::Submit, &frame)).outcomes();
        for (at, outcome) in outcomes.iter().enumerate() {
            let expected =
                if at == wrong { OutcomeStatus::Malformed } else { OutcomeStatus::Committed };
            assert_eq!(outcome.status, expected, "{at} of {frame:?}");
        }
    }
}

#[test]
fn rows_of_other_shards_are_pointed_to() {
    let options = NodeOptions { index: 0, shards: 3, partitions: 16, ..OPTIONS };
    let mut node = Node::with(options);
    let shard_of = |k: &i64| partition_of(&key(*k), 16).0 % 3;
    let keys: Vec<Vec<i64>> =
        (0..3).map(|shard| (0..200).filter(|k| shard_of(k) == shard).collect()).collect();
    let (own, first, second) = (&keys[0], &keys[1], &keys[2]);
    let mut number = 0;
    let mut ask = |operations: &[Operation]| {
        number += 1;
        let outcome = node.one(number, operations);
        (outcome.status, outcome.operation)
    };
    assert_eq!(ask(&[upsert(own[0], 1), upsert(own[1], 1)]), (OutcomeStatus::Committed, 0));
    assert_eq!(ask(&[upsert(first[0], 1), get(first[1])]), (OutcomeStatus::WrongShard, 1));
    assert_eq!(ask(&[get(second[0])]), (OutcomeStatus::WrongShard, 2));
    assert_eq!(ask(&[get(own[0]), upsert(first[0], 1)]), (OutcomeStatus::CrossShard, 0));
    assert_eq!(ask(&[upsert(first[0], 1), upsert(own[0], 1)]), (OutcomeStatus::CrossShard, 0));
    assert_eq!(ask(&[get(first[0]), get(second[0])]), (OutcomeStatus::CrossShard, 0));
    assert_eq!(node.rows().len(), 2);
}

#[test]
fn the_root_service_is_on_shard_0() {
    let commands = [
        frame_of(1, 5, FrameKind::SessionOpen, &SessionOpen { client_name: "c".to_owned() }),
        frame_of(1, 5, FrameKind::SessionClose, &SessionClose { session: session(1).0 }),
        frame_of(1, 5, FrameKind::TableCreate, &TableCreate { definition: definition() }),
        frame_of(1, 5, FrameKind::TableDrop, &TableDrop { name: "t".to_owned() }),
    ];
    for command in commands {
        let mut node = Node::with(NodeOptions { index: 1, shards: 2, ..OPTIONS });
        node.frames(&[command]);
        assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::WrongShard));
        assert!(node.closes.is_empty());
    }
}

#[test]
fn a_full_log_refuses_writes_and_no_reads() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 1)]);
    node.log(LogState { full: true, ..node.state });
    let requests = submit(1, 2, 2, 0, &[vec![upsert(1, 2)], vec![get(1)], vec![get(1), add(1, 1)]]);
    let outcomes = node.ask(requests).outcomes();
    let statuses: Vec<_> = outcomes.iter().map(|outcome| outcome.status).collect();
    let expected = [OutcomeStatus::LogFull, OutcomeStatus::Committed, OutcomeStatus::LogFull];
    assert_eq!(statuses, expected);
    assert_eq!(node.one(1, &[upsert(1, 1)]).status, OutcomeStatus::Committed, "a repetition");
    node.log(LogState { full: false, ..node.state });
    assert_eq!(node.one(2, &[upsert(1, 2)]).status, OutcomeStatus::Committed);
}

#[test]
fn a_failed_log_lets_no_held_answer_out() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 1)]);
    // In flight: one hand-over, one open fragment, a scan that saw both.
    node.frames(&[submit(1, 2, 2, 0, &[vec![upsert(2, 2)]])]);
    node.turn_end();
    node.frames(&[submit(2, 3, 1, 0, &[vec![upsert(3, 3)]])]);
    node.log(LogState { failed: true, ..node.state });
    assert!(node.answers.is_empty(), "nobody knows whether it is durable");
    assert_eq!(node.closes, [1, 2]);
    node.step(ShardInput::Closed(1));
    node.step(ShardInput::Closed(2));
    node.turn_end();
    // Who comes back is told, although nothing is committed any more.
    assert!(node.shard.accepts_frames());
    node.connect(8, session(1).0);
    let scan = Scan { table: 1, start: Vec::new(), end: Vec::new(), rows_max: 10 };
    node.frames(&[
        submit(8, 4, 2, 0, &[vec![upsert(2, 2)], vec![get(2)]]),
        frame_of(8, 5, FrameKind::Scan, &scan),
    ]);
    let answers = node.take_answers();
    assert_eq!(answers.len(), 2, "{answers:?}");
    let outcomes = answers.iter().find(|answer| answer.request == 4).expect("answered");
    let failed =
        |outcome: &spillway_net::client::Outcome| outcome.status == OutcomeStatus::LogFailed;
    assert!(outcomes.outcomes().iter().all(failed));
    let page = answers.iter().find(|answer| answer.request == 5).expect("answered");
    assert_eq!(page.refusal(), Some(RefusalCode::LogUnavailable));
    assert_eq!(node.shard.connections_count(), 1);
}

#[test]
fn a_failed_log_keeps_no_client_waiting_when_much_was_in_flight() {
    let mut node = Node::new();
    let mut number = 0;
    while node.shard.accepts_frames() {
        number += 1;
        node.frames(&[submit(1, number, number, 0, &[vec![upsert(1, 1)]])]);
        node.turn_end();
    }
    assert_eq!(number, 64, "as many hand-overs as may be in flight");
    node.log(LogState { failed: true, ..node.state });
    assert!(node.shard.accepts_frames(), "else nobody would be told");
    assert!(node.take_answers().is_empty());
}
