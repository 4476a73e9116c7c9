//! Exactly once, and who may use a session.

use spillway_net::frame::FrameKind;
use spillway_net::limits::{self, SESSION_FRAMES_IN_FLIGHT_MAX, SESSION_NUMBERS_WINDOW};
use spillway_net::message::{Hello, OperationKind, OutcomeStatus, RefusalCode, TableList};

use super::{
    CLUSTER, Node, OPTIONS, Operation, add, frame_of, get, hello, operation, row, session, submit,
    upsert,
};
use crate::shard::{RootOrder, ShardInput};

fn exists(k: i64) -> Operation {
    operation(OperationKind::CheckExists, k, &[])
}

#[test]
fn a_repeated_number_gets_the_first_outcome_and_changes_nothing() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 10), operation(OperationKind::Upsert, 2, &row(1, 500))]);
    let small = vec![add(1, 1), get(1)];
    let large = vec![add(1, 1), get(2)];
    let first = node.one(2, &small);
    assert_eq!(first.gets[0].as_ref().map(|found| found.row.clone()), Some(row(11, 4)));
    assert_eq!(node.one(3, &large).gets.len(), 1);
    let rows = node.rows();
    let ask = |node: &mut Node| {
        assert_eq!(node.one(2, &small), first);
        let again = node.one(3, &large);
        assert_eq!(again.status, OutcomeStatus::CommittedResultsNotKept);
        assert!(again.gets.is_empty());
        assert_eq!(node.rows(), rows);
    };
    ask(&mut node);
    assert_eq!(node.shard.counters().repeated, 2);
    let mut node = Node::replayed(&node.items, OPTIONS).expect("good");
    ask(&mut node);
}

#[test]
fn a_repetition_before_the_commit_waits_for_the_commit() {
    let mut node = Node::new();
    let transaction = [vec![upsert(1, 10)]];
    node.frames(&[submit(1, 1, 1, 0, &transaction), submit(1, 2, 1, 0, &transaction)]);
    node.turn_end();
    node.frames(&[submit(1, 3, 1, 0, &transaction)]);
    assert!(node.answers.is_empty(), "nothing is durable yet");
    node.settle();
    let answers = node.take_answers();
    assert_eq!(answers.iter().map(|answer| answer.request).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(answers.iter().all(|answer| answer.status() == OutcomeStatus::Committed));
    assert_eq!(node.items.len(), 1);
    assert_eq!(node.rows()[0].2, 1, "one write, version 1");
}

#[test]
fn the_same_number_with_another_content_is_refused() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 10)]);
    let others = [
        vec![upsert(1, 11)],
        vec![upsert(2, 10)],
        vec![add(1, 10)],
        vec![upsert(1, 10), get(1)],
        vec![operation(OperationKind::Insert, 1, &row(10, 4))],
    ];
    for other in others {
        assert_eq!(node.one(1, &other).status, OutcomeStatus::NumberReused, "{other:?}");
    }
    assert_eq!(node.rows()[0].2, 1);
    // Sessions do not share numbers.
    let of_another = submit(2, 1, 1, 0, &[vec![upsert(1, 11)]]);
    assert_eq!(node.ask(of_another).status(), OutcomeStatus::Committed);
}

#[test]
fn forgotten_and_far_numbers_are_not_executed() {
    let mut node = Node::new();
    node.one(1, &[add(1, 1), upsert(1, 0)]);
    let mut ask = |number: u64, acknowledged: u64| {
        let request = submit(1, number, number, acknowledged, &[vec![upsert(7, 1)]]);
        node.ask(request).status()
    };
    assert_eq!(ask(4, 5), OutcomeStatus::NumberOutOfWindow);
    assert_eq!(ask(5, 0), OutcomeStatus::Committed, "the mark itself is a number to use");
    assert_eq!(ask(4, 0), OutcomeStatus::NumberOutOfWindow, "a mark does not go back");
    assert_eq!(ask(5 + SESSION_NUMBERS_WINDOW, 0), OutcomeStatus::NumberOutOfWindow);
    assert_eq!(ask(4 + SESSION_NUMBERS_WINDOW, 0), OutcomeStatus::Committed);
    assert_eq!(ask(u64::MAX, 0), OutcomeStatus::NumberOutOfWindow);
    assert_eq!(ask(u64::MAX, u64::MAX), OutcomeStatus::Committed, "the last number there is");
    let versions: Vec<_> = node.rows().iter().map(|row| row.2).collect();
    assert_eq!(versions, [3], "three of them were executed");
}

#[test]
fn what_failed_may_be_executed_again() {
    let mut node = Node::new();
    assert_eq!(node.one(1, &[exists(1), upsert(2, 2)]).status, OutcomeStatus::CheckFailed);
    node.one(2, &[upsert(1, 1)]);
    assert_eq!(node.one(1, &[exists(1), upsert(2, 2)]).status, OutcomeStatus::Committed);
    // Reads leave nothing behind, so their number may carry something else.
    assert_eq!(node.one(3, &[get(1)]).status, OutcomeStatus::Committed);
    assert_eq!(node.one(3, &[upsert(1, 5)]).status, OutcomeStatus::Committed);
    assert_eq!(node.rows().len(), 2);
}

#[test]
fn a_second_connection_fences_the_first() {
    let mut node = Node::new();
    node.step(ShardInput::Opened(5));
    // All of one step: what comes before the hello counts, what comes after it does not.
    node.frames(&[
        submit(1, 1, 1, 0, &[vec![upsert(1, 1)]]),
        hello(5, session(1).0),
        submit(1, 2, 2, 0, &[vec![upsert(2, 2)]]),
        submit(5, 3, 3, 0, &[vec![upsert(3, 3)]]),
    ]);
    assert!(node.closes.contains(&1) && !node.closes.contains(&5));
    node.frames(&[submit(1, 4, 4, 0, &[vec![upsert(4, 4)]])]);
    node.settle();
    let answers = node.take_answers();
    let to_first: Vec<_> = answers.iter().filter(|answer| answer.connection == 1).collect();
    assert_eq!(to_first[0].refusal(), Some(RefusalCode::SessionFenced));
    assert!(to_first.iter().all(|answer| answer.request < 2 || answer.refusal().is_some()));
    let to_second: Vec<_> = answers.iter().filter(|answer| answer.connection == 5).collect();
    assert_eq!(to_second[0].kind, FrameKind::Welcome);
    assert_eq!(to_second[1].status(), OutcomeStatus::Committed);
    // The shell closes what was fenced; the session stays with the second.
    node.step(ShardInput::Closed(1));
    let scan_by = submit(5, 5, 5, 0, &[vec![get(1), get(2), get(3), get(4)]]);
    let gets = node.ask(scan_by).outcomes().remove(0).gets;
    assert_eq!(gets.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true, false]);
}

#[test]
fn a_late_hello_of_a_given_up_connection_does_not_fence_the_newer_one() {
    let mut node = Node::new();
    let hello = |connection, attempt| {
        let hello = Hello {
            limits_fingerprint: limits::fingerprint(),
            cluster: CLUSTER.0,
            session: session(1).0,
            attempt,
        };
        frame_of(connection, 1, FrameKind::Hello, &hello)
    };
    for connection in 5..=7 {
        node.step(ShardInput::Opened(connection));
    }
    // The network delivered the third attempt's hello before the second's.
    node.frames(&[hello(5, 3), hello(6, 2)]);
    assert!(node.closes.contains(&6) && !node.closes.contains(&5));
    node.frames(&[submit(5, 2, 1, 0, &[vec![upsert(1, 1)]])]);
    node.settle();
    node.frames(&[hello(7, 4)]);
    assert!(node.closes.contains(&5) && !node.closes.contains(&7));
    let answers = node.take_answers();
    assert!(answers.iter().any(|a| a.connection == 5 && a.kind == FrameKind::Outcomes));
}

#[test]
fn reads_need_no_session_and_writes_do() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 1)]);
    node.connect(9, 0);
    let outcomes = node.ask(submit(9, 2, 1, 0, &[vec![get(1)], vec![upsert(2, 2)]])).outcomes();
    assert_eq!(outcomes[0].status, OutcomeStatus::Committed);
    assert!(outcomes[0].gets[0].is_some());
    assert_eq!(outcomes[1].status, OutcomeStatus::SessionUnknown);
    // The same number again: without a session nothing is remembered.
    let outcomes = node.ask(submit(9, 3, 1, 0, &[vec![get(2)]])).outcomes();
    assert_eq!(outcomes[0].gets, [None], "nothing was written");
}

#[test]
fn a_fenced_connection_commands_nothing_any_more() {
    let mut node = Node::new();
    node.step(ShardInput::Opened(5));
    node.frames(&[hello(5, session(1).0), frame_of(1, 9, FrameKind::TableList, &TableList {})]);
    let answers = node.take_answers();
    assert!(answers.iter().all(|answer| answer.kind != FrameKind::TableListing), "{answers:?}");
}

#[test]
fn a_closed_session_is_refused_and_breaks_nothing() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 1)]);
    node.directory.close(session(1));
    node.step(ShardInput::Root(RootOrder::SessionHide { session: session(1) }));
    assert_eq!(node.closes, [1]);
    // A frame that was read before the connection was closed.
    node.frames(&[submit(1, 2, 2, 0, &[vec![upsert(2, 2)]])]);
    node.settle();
    let refusals: Vec<_> = node.take_answers().iter().map(|answer| answer.refusal()).collect();
    assert_eq!(refusals[0], Some(RefusalCode::SessionUnknown));
    assert!(refusals.iter().all(Option::is_some));
    node.step(ShardInput::Closed(1));
    node.step(ShardInput::Opened(6));
    node.frames(&[hello(6, session(1).0)]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::SessionUnknown));
    let gets = node.ask(submit(2, 1, 1, 0, &[vec![get(1), get(2)]])).outcomes().remove(0).gets;
    assert!(gets[0].is_some() && gets[1].is_none());
    assert_eq!(node.shard.sessions_count(), 2, "hidden until its end is committed");
    node.step(ShardInput::Root(RootOrder::SessionRemove { session: session(1) }));
    assert_eq!(node.shard.sessions_count(), 1);
}

#[test]
fn closing_a_session_hands_over_what_it_did() {
    let mut node = Node::new();
    node.frames(&[submit(1, 1, 1, 0, &[vec![upsert(1, 1)]])]);
    assert!(node.items.is_empty());
    node.step(ShardInput::Root(RootOrder::SessionHide { session: session(1) }));
    assert_eq!(node.items.len(), 1, "no fragment may follow the end of its session");
}

#[test]
fn hellos_that_do_not_fit_are_refused() {
    let good = Hello {
        limits_fingerprint: limits::fingerprint(),
        cluster: CLUSTER.0,
        session: session(1).0,
        attempt: 0,
    };
    let cases = [
        (Hello { limits_fingerprint: 1, ..good.clone() }, RefusalCode::Mismatch),
        (Hello { cluster: 5, ..good.clone() }, RefusalCode::Mismatch),
        (Hello { session: 12345, ..good.clone() }, RefusalCode::SessionUnknown),
        (Hello { session: u64::MAX, ..good.clone() }, RefusalCode::SessionUnknown),
    ];
    for (hello, code) in cases {
        let mut node = Node::new();
        node.step(ShardInput::Opened(9));
        let behind = submit(9, 2, 1, 0, &[vec![upsert(1, 1)]]);
        node.frames(&[frame_of(9, 1, FrameKind::Hello, &hello), behind]);
        node.settle();
        assert_eq!(node.take_answers()[0].refusal(), Some(code), "{hello:?}");
        assert!(node.closes.contains(&9));
        assert!(node.rows().is_empty(), "nothing was executed, session 1 was not fenced");
    }
    let mut node = Node::new();
    node.step(ShardInput::Opened(9));
    node.frames(&[frame_of(9, 1, FrameKind::Hello, &Hello { cluster: 0, ..good })]);
    let kinds: Vec<_> = node.take_answers().iter().map(|answer| answer.kind).collect();
    assert!(kinds.contains(&FrameKind::Welcome), "any cluster will do");
}

#[test]
fn frames_out_of_order_are_refused_and_nothing_behind_them_is_executed() {
    let write = |connection, number| submit(connection, number, number, 0, &[vec![upsert(1, 1)]]);
    let before_hello = |node: &mut Node| {
        node.step(ShardInput::Opened(9));
        node.frames(&[write(9, 1), hello(9, session(3).0), write(9, 2)]);
    };
    let twice = |node: &mut Node| {
        node.connect(9, session(3).0);
        node.frames(&[hello(9, session(3).0), write(9, 1)]);
    };
    let no_request = |node: &mut Node| {
        node.connect(9, session(3).0);
        let answer = frame_of(9, 1, FrameKind::TableListing, &TableList {});
        node.frames(&[answer, write(9, 1)]);
    };
    let malformed = |node: &mut Node| {
        node.connect(9, session(3).0);
        node.frames(&[frame_of(9, 1, FrameKind::Scan, &TableList {}), write(9, 1)]);
    };
    check(RefusalCode::OutOfOrder, before_hello);
    check(RefusalCode::OutOfOrder, twice);
    check(RefusalCode::OutOfOrder, no_request);
    check(RefusalCode::Malformed, malformed);
}

/// What `act` does on connection 9 is refused so, and nothing was executed for it.
fn check(code: RefusalCode, act: impl FnOnce(&mut Node)) {
    let mut node = Node::new();
    act(&mut node);
    node.settle();
    let answers = node.take_answers();
    assert_eq!(answers[0].refusal(), Some(code));
    assert!(node.closes.contains(&9));
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(node.items.is_empty(), "nothing was executed");
    assert!(node.rows().is_empty());
}

#[test]
fn too_many_frames_in_flight_end_the_connection() {
    let mut node = Node::new();
    let count = SESSION_FRAMES_IN_FLIGHT_MAX as u64;
    let frame = |number: u64| submit(1, number, number, 0, &[vec![upsert(number as i64, 1)]]);
    let frames: Vec<_> = (1..=count).map(frame).collect();
    node.frames(&frames);
    assert!(node.closes.is_empty());
    node.settle();
    assert_eq!(node.take_answers().len() as u64, count);
    // Answered frames do not count.
    node.frames(&(count + 1..=2 * count).map(frame).collect::<Vec<_>>());
    assert!(node.closes.is_empty());
    node.frames(&[frame(2 * count + 1), frame(2 * count + 2)]);
    assert_eq!(node.closes, [1]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::LimitReached));
    node.settle();
    node.take_answers();
    let written = node.rows_to(2).len() as u64;
    assert_eq!(written, 2 * count, "the last two were not executed");
    assert!(node.shard.accepts_frames());
}
