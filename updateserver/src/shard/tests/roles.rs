//! What leaders and followers serve, and what happens in between.

use std::sync::Arc;

use spillway_net::frame::FrameKind;
use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId, TableId, WallMicros};
use spillway_net::message::{
    self, ClusterAction, ClusterCommand, ClusterStatus, MemberAddress, OperationKind,
    OutcomeStatus, Outcomes, ReadMode, Refusal, RefusalCode, Scan, SessionOpen, Submit, TableDrop,
    TableList, Welcome,
};

use super::client::read;
use super::{
    LogState, LoggedItem, Node, NodeOptions, OPTIONS, ReplayError, TABLE, add, definition,
    frame_of, get, hello, key, operation, row, session, submit, upsert,
};
use crate::redo::{PARTITION_SYSTEM, SystemCommand, SystemFragment, system_digest};
use crate::shard::{ApplySection, RootAnswer, RootCommand, RootOrder, RootOrigin, ShardInput};

/// A node that follows, with the table, node 3 as its leader, and connection 1 of session 1.
fn follower() -> Node {
    let mut node = Node::bare(OPTIONS);
    node.followed = true;
    let order = RootOrder::TableCreate { table: TABLE, definition: definition() };
    node.step(ShardInput::Root(order));
    let address = |node: u16| MemberAddress { node, address: format!("zone{node}:7400") };
    node.step(ShardInput::Members(Arc::new([1, 2, 3].map(address))));
    node.log(LogState { leader: NodeId(3), epoch: Epoch(5), ..LogState::default() });
    node.connect(1, session(1).0);
    node
}

/// Two items: rows 1 and 2, and then another balance of row 1.
fn items() -> Vec<LoggedItem> {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 10), upsert(2, 20)]);
    node.one(2, &[add(1, 1)]);
    node.items
}

fn scan(connection: u64) -> super::Request {
    let scan = Scan { table: TABLE.0, start: Vec::new(), end: Vec::new(), rows_max: 10 };
    frame_of(connection, 4, FrameKind::Scan, &scan)
}

fn system_section<R>(commands: Vec<SystemCommand>, with: impl FnOnce(ApplySection<'_>) -> R) -> R {
    let mut bytes = Vec::new();
    message::archive(&mut bytes, &SystemFragment { commands });
    let (partition, digest) = (PartitionId(PARTITION_SYSTEM), system_digest(&bytes));
    with(ApplySection { partition, digest, bytes: &bytes })
}

fn apply_commands(node: &mut Node, lsn: u64, commands: Vec<SystemCommand>) {
    system_section(commands, |section| node.apply_sections(lsn, &[section]));
}

#[test]
fn a_follower_names_the_leader_and_executes_nothing() {
    let mut node = follower();
    let drop = TableDrop { name: "t".to_owned() };
    node.frames(&[
        submit(1, 1, 1, 0, &[vec![upsert(1, 1)]]),
        submit(1, 2, 2, 0, &[vec![get(1)]]),
        read(1, 3, ReadMode::AtLsn, 0, &[vec![get(1)], vec![add(1, 1)]]),
        scan(1),
        frame_of(1, 5, FrameKind::SessionOpen, &SessionOpen { client_name: String::new() }),
        frame_of(1, 6, FrameKind::TableDrop, &drop),
        frame_of(1, 7, FrameKind::ClusterCommand, &command(ClusterAction::Drain as u8)),
        frame_of(1, 8, FrameKind::ClusterCommand, &command(ClusterAction::Transfer as u8)),
    ]);
    node.turn_end();
    let answers = node.take_answers();
    assert_eq!(answers.iter().map(|a| a.request).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    for answer in answers {
        assert_eq!(answer.refusal(), Some(RefusalCode::NotLeader));
        let refusal = answer.refusal_whole();
        assert_eq!((refusal.leader, refusal.leader_address.as_str()), (3, "zone3:7400"));
        assert_eq!(refusal.retry_after_ms, 0, "not worth a retry here");
    }
    assert!(node.items.is_empty() && node.closes.is_empty() && node.held().is_empty());
    assert!(node.root_commands.is_empty() && node.cluster_commands.is_empty());
    // Nor with a failed log: what a follower cannot do does not depend on it.
    node.log(LogState { leader: NodeId(0), failed: true, ..node.state });
    node.frames(&[submit(1, 1, 1, 0, &[vec![upsert(1, 1)]])]);
    let refusal = node.take_answers()[0].refusal_whole();
    assert_eq!((refusal.leader, refusal.leader_address.as_str()), (0, ""));
    assert!(refusal.retry_after_ms > 0, "an election ends");
}

#[test]
fn the_same_connection_is_served_once_the_node_leads() {
    let mut node = follower();
    node.frames(&[submit(1, 1, 1, 0, &[vec![upsert(1, 1)]])]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::NotLeader));
    node.lead(6);
    assert_eq!(node.one(1, &[upsert(1, 1)]).status, OutcomeStatus::Committed);
    assert_eq!(node.items.len(), 1);
}

#[test]
fn the_welcome_tells_who_leads() {
    let mut node = follower();
    let welcome = |node: &mut Node, connection| {
        node.step(ShardInput::Opened(connection));
        node.frames(&[hello(connection, 0)]);
        let answer = node.take_answers().remove(0);
        message::decode::<Welcome>(&answer.payload).expect("a welcome")
    };
    let told = welcome(&mut node, 5);
    assert_eq!((told.node, told.leader, told.epoch), (1, 3, 5));
    assert_eq!(told.leader_address, "zone3:7400");
    assert_eq!(told.members.len(), 3);
    node.lead(6);
    let told = welcome(&mut node, 6);
    assert_eq!((told.node, told.leader, told.epoch), (1, 1, 6));
    assert_eq!(told.leader_address, "zone1:7400");
}

#[test]
fn a_follower_serves_reads_that_may_be_as_old_as_it_is() {
    let mut node = follower();
    let items = items();
    node.apply(7, &items[0]);
    assert_eq!(node.shard.applied_lsn(), Lsn(7));
    assert_eq!(node.shard.applied_timestamp(), WallMicros(7));
    let state =
        LogState { vdl: Lsn(9), fresh: WallMicros(1000), wall: WallMicros(1500), ..node.state };
    node.log(state);
    let ask = |node: &mut Node, mode, bound| {
        node.frames(&[read(1, 2, mode, bound, &[vec![get(1)], vec![get(2), get(3)]])]);
        let answer = node.take_answers().remove(0);
        let retry = message::decode::<Outcomes>(&answer.payload).expect("valid").retry_after_ms;
        let outcomes = answer.outcomes();
        let behind = outcomes.iter().all(|o| o.status == OutcomeStatus::Behind);
        assert_eq!(behind, retry > 0);
        assert!(behind || outcomes.iter().all(|o| o.status == OutcomeStatus::Committed));
        (!behind).then(|| outcomes[0].gets[0].clone().expect("row 1").row)
    };
    assert_eq!(ask(&mut node, ReadMode::AtLsn, 7), Some(row(10, 4)));
    assert_eq!(ask(&mut node, ReadMode::AtLsn, 8), None, "committed, but not applied here");
    assert_eq!(ask(&mut node, ReadMode::Stale, 500), Some(row(10, 4)));
    assert_eq!(ask(&mut node, ReadMode::Stale, 499), None);
    node.apply(8, &items[1]);
    assert_eq!(ask(&mut node, ReadMode::AtLsn, 8), Some(row(11, 4)));
    assert_eq!(node.round_wanted, 0);
    // A number that the session used is no matter for a read.
    node.frames(&[read(1, 2, ReadMode::AtLsn, 8, &[vec![get(2)]])]);
    assert_eq!(node.take_answers()[0].status(), OutcomeStatus::Committed);
    node.log(LogState { drained: true, ..node.state });
    node.frames(&[read(1, 3, ReadMode::AtLsn, 0, &[vec![get(1)]])]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::Drained));
    assert!(node.closes.is_empty());
}

#[test]
fn an_unknown_read_mode_ends_the_connection() {
    let mut node = Node::new();
    node.frames(&[frame_of(
        1,
        1,
        FrameKind::Submit,
        &Submit { read_mode: 3, ..Submit::default() },
    )]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::Malformed));
    assert_eq!(node.closes, [1]);
}

/// A leader in need of rounds, with rows 1 and 2 committed and no round in success.
fn contested() -> Node {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 10), upsert(2, 20)]);
    node.log(LogState { round_next: 5, round_confirmed: 4, ..node.state });
    node
}

#[test]
fn reads_on_the_leader_wait_for_a_round_that_began_after_them() {
    let exists = operation(OperationKind::CheckExists, 9, &[]);
    let requests = [
        submit(1, 2, 2, 0, &[vec![get(1)]]),
        submit(1, 3, 3, 0, &[vec![exists, upsert(3, 3)]]),
        submit(1, 4, 1, 0, &[vec![upsert(1, 10), upsert(2, 20)]]),
        scan(1),
    ];
    for request in requests {
        let mut node = contested();
        node.frames(&[request]);
        node.turn_end();
        assert_eq!((node.items.len(), node.round_wanted), (1, 5));
        node.log(LogState { round_next: 6, ..node.state });
        assert!(node.take_answers().is_empty(), "round 5 has begun and not succeeded");
        node.log(LogState { round_confirmed: 5, ..node.state });
        assert_eq!(node.take_answers().len(), 1);
    }
}

#[test]
fn the_commit_of_a_later_hand_over_is_proof_of_leadership_too() {
    let mut node = contested();
    node.frames(&[submit(1, 2, 2, 0, &[vec![upsert(3, 1)]])]);
    node.frames(&[submit(1, 3, 3, 0, &[vec![get(1)]])]);
    assert_eq!(node.round_wanted, 0, "its own hand-over is still to come");
    node.turn_end();
    node.frames(&[submit(1, 4, 4, 0, &[vec![get(1)]])]);
    assert_eq!(node.round_wanted, 5);
    node.confirm(2);
    let requests = |node: &mut Node| -> Vec<_> {
        node.take_answers().iter().map(|answer| answer.request).collect()
    };
    assert_eq!(requests(&mut node), [2, 3], "the last one was handed over before it came");
    node.frames(&[submit(1, 5, 5, 0, &[vec![upsert(3, 2)]])]);
    node.turn_end();
    assert!(node.take_answers().is_empty());
    node.confirm(3);
    assert_eq!(requests(&mut node), [4, 5]);
}

#[test]
fn old_reads_on_the_leader_wait_for_what_they_saw_and_for_no_round() {
    let mut node = contested();
    let statuses = |node: &mut Node| -> Vec<_> {
        node.take_answers().iter().map(|answer| (answer.request, answer.status())).collect()
    };
    node.frames(&[read(1, 2, ReadMode::AtLsn, 1, &[vec![get(1)]])]);
    assert_eq!(statuses(&mut node), [(2, OutcomeStatus::Committed)]);
    node.frames(&[read(1, 3, ReadMode::AtLsn, 2, &[vec![get(1)]])]);
    assert_eq!(statuses(&mut node), [(3, OutcomeStatus::Behind)], "another leader knows it");
    node.frames(&[submit(1, 4, 4, 0, &[vec![upsert(1, 99)]])]);
    node.turn_end();
    node.frames(&[read(1, 5, ReadMode::AtLsn, 1, &[vec![get(1)]])]);
    assert_eq!(statuses(&mut node), [], "it saw what is not committed");
    node.confirm(2);
    let expected = [(4, OutcomeStatus::Committed), (5, OutcomeStatus::Committed)];
    assert_eq!(statuses(&mut node), expected);
    node.log(LogState { fresh: WallMicros(100), wall: WallMicros(200), ..node.state });
    node.frames(&[read(1, 6, ReadMode::Stale, 100, &[vec![get(1)]])]);
    assert_eq!(statuses(&mut node), [(6, OutcomeStatus::Committed)]);
    assert_eq!(node.round_wanted, 0);
    // A leader that had no proof for longer gets one.
    node.frames(&[read(1, 7, ReadMode::Stale, 99, &[vec![get(1)]])]);
    assert_eq!((statuses(&mut node), node.round_wanted), (Vec::new(), 5));
    // Frames that write are strong whatever they say.
    node.frames(&[read(1, 8, ReadMode::AtLsn, 77, &[vec![upsert(5, 5)]])]);
    node.settle();
    let expected = [(7, OutcomeStatus::Committed), (8, OutcomeStatus::NumberReused)];
    node.log(LogState { round_confirmed: 5, ..node.state });
    assert_eq!(statuses(&mut node), expected);
}

#[test]
fn writes_are_refused_while_the_log_runs_too_far_ahead() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 1)]);
    node.log(LogState { limited: true, ..node.state });
    let answer = node.ask(submit(1, 2, 2, 0, &[vec![upsert(1, 2)], vec![get(1)]]));
    let statuses: Vec<_> = answer.outcomes().iter().map(|outcome| outcome.status).collect();
    assert_eq!(statuses, [OutcomeStatus::Overloaded, OutcomeStatus::Committed]);
    let decoded = message::decode::<Outcomes>(&answer.payload).expect("valid");
    assert!(decoded.retry_after_ms > 0);
    assert_eq!(node.one(1, &[upsert(1, 1)]).status, OutcomeStatus::Committed, "a repetition");
    node.log(LogState { limited: false, ..node.state });
    assert_eq!(node.one(2, &[upsert(1, 2)]).status, OutcomeStatus::Committed);
}

#[test]
fn a_replica_that_differs_says_where_and_does_nothing_more() {
    let mut items = items();
    let damaged = items[1].sections[0].partition;
    items[1].sections[0].digest_after ^= 1;
    let mut node = follower();
    node.apply(1, &items[0]);
    node.apply(2, &items[1]);
    let diverged = node.diverged.take();
    let named = |partition: PartitionId, lsn: Lsn| partition == damaged && lsn == Lsn(2);
    let named = matches!(diverged, Some(ReplayError::Digest { partition, lsn })
        if named(partition, lsn));
    assert!(named, "{diverged:?}");
    items[1].sections[0].digest_after ^= 1;
    node.apply(3, &items[1]);
    assert!(node.diverged.is_none(), "it was told once");
    assert_eq!(node.shard.applied_lsn(), Lsn(1));
    node.frames(&[read(1, 3, ReadMode::AtLsn, 0, &[vec![get(1)]])]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::NotLeader));
}

#[test]
fn what_is_left_out_repeated_or_damaged_is_found_in_service() {
    let items = items();
    for order in [&[0, 0][..], &[1], &[0, 1, 1]] {
        let mut node = follower();
        for (at, item) in order.iter().enumerate() {
            node.apply(at as u64 + 1, &items[*item]);
        }
        assert!(node.diverged.is_some(), "{order:?}");
    }
    let mut node = follower();
    let commands = vec![SystemCommand::TableDrop { table: TABLE.0 }];
    system_section(commands, |section| {
        node.apply_sections(1, &[ApplySection { digest: 1, ..section }]);
    });
    assert!(matches!(node.diverged, Some(ReplayError::Digest { .. })), "{:?}", node.diverged);
}

#[test]
fn sections_of_other_shards_are_left_to_them() {
    let mut leader = Node::with(NodeOptions { shards: 2, ..OPTIONS });
    let own = (0..100).find(|k| {
        spillway_net::key::partition_of(&key(*k), OPTIONS.partitions).0.is_multiple_of(2)
    });
    leader.one(1, &[upsert(own.expect("there is one"), 1)]);
    let mut other = Node::bare(NodeOptions { index: 1, shards: 2, ..OPTIONS });
    other.apply(1, &leader.items[0]);
    assert!(other.diverged.is_none());
    assert_eq!(other.shard.applied_lsn(), Lsn(1), "nothing of it concerned this shard");
    assert_eq!(other.shard.memory().0, 0);
}

#[test]
fn a_follower_recycles_old_versions() {
    let mut leader = Node::new();
    leader.one(1, &[operation(OperationKind::Upsert, 1, &row(0, 1000))]);
    for number in 2..600 {
        leader.one(number, &[add(1, 1)]);
    }
    let mut node = follower();
    for (at, item) in leader.items.iter().enumerate() {
        node.apply(at as u64 + 1, item);
    }
    assert!(node.diverged.is_none());
    assert_eq!(node.held(), leader.held());
    let bytes = node.shard.memory().1;
    assert!(bytes < 20_000, "{bytes} bytes for one row of 1,000");
}

#[test]
fn stepping_down_takes_back_what_is_not_committed_and_answers_nobody() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 10)]);
    let (before, digests) = (node.held(), node.digests());
    node.connect(3, 0);
    // One hand-over in flight, one fragment open, one read that saw both.
    node.frames(&[submit(1, 2, 2, 0, &[vec![upsert(1, 11)], vec![upsert(2, 2)]])]);
    node.turn_end();
    node.frames(&[submit(2, 3, 1, 0, &[vec![upsert(1, 12), upsert(3, 3)], vec![get(1)]])]);
    let bytes = node.shard.memory().1;
    node.step(ShardInput::StepDown { stamp: 1 });
    assert!(node.take_answers().is_empty());
    assert_eq!(node.closes, [1, 2, 3]);
    assert_eq!((node.held(), node.digests()), (before.clone(), digests));
    assert!(node.shard.memory().1 < bytes, "memory comes back");
    assert_eq!((node.shard.connections_count(), node.shard.memory().0), (0, 1));
    assert!(node.shard.accepts_frames() && !node.shard.leads());
    // A follower has nothing to take back, whatever stamp it is told.
    node.step(ShardInput::StepDown { stamp: 0 });
    assert_eq!(node.held(), before);
    // The stamps that are gone are not used again, and the numbers are free again.
    node.followed = true;
    node.lead(2);
    node.connect(11, session(1).0);
    node.closes.clear();
    node.frames(&[submit(11, 2, 2, 0, &[vec![upsert(7, 7)]])]);
    node.turn_end();
    assert_eq!(node.items.last().map(|item| item.stamp), Some(3));
    assert_eq!(node.held()[1].2, 1, "the row version that was taken back is given out again");
    node.confirm(3);
    assert_eq!(node.take_answers()[0].status(), OutcomeStatus::Committed);
}

#[test]
fn what_is_hidden_is_shown_again_when_leadership_ends() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 10)]);
    node.step(ShardInput::Root(RootOrder::TableHide { table: TABLE }));
    node.step(ShardInput::Root(RootOrder::SessionHide { session: session(2) }));
    assert_eq!(node.closes, [2]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::SessionUnknown));
    assert_eq!(node.one(2, &[get(1)]).status, OutcomeStatus::UnknownTable);
    node.frames(&[scan(1)]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::Schema));
    node.step(ShardInput::StepDown { stamp: 1 });
    // Orders that come late from the leader that was are acknowledged and not carried out.
    node.step(ShardInput::Root(RootOrder::TableHide { table: TABLE }));
    node.step(ShardInput::Root(RootOrder::SessionHide { session: session(1) }));
    assert_eq!(node.orders_done, 5);
    assert_eq!(node.held().len(), 1);
    node.followed = true;
    node.lead(2);
    node.connect(11, session(1).0);
    assert_eq!(node.shard.sessions_count(), 2);
    let answer = node.ask(submit(11, 2, 1, 0, &[vec![upsert(1, 10)]]));
    assert_eq!(answer.status(), OutcomeStatus::Committed, "its outcome is still known");
    assert_eq!(node.items.len(), 1);
}

#[test]
fn a_hidden_table_goes_with_the_commit_of_its_drop() {
    let mut node = Node::new();
    node.one(1, &[upsert(1, 10)]);
    node.step(ShardInput::Root(RootOrder::TableHide { table: TABLE }));
    // Another table goes on being written to meanwhile.
    let other = TableId(2);
    let order = RootOrder::TableCreate { table: other, definition: definition() };
    node.step(ShardInput::Root(order));
    let write = super::Operation { table: other, ..upsert(1, 1) };
    node.frames(&[submit(1, 2, 2, 0, &[vec![write]])]);
    node.step(ShardInput::Root(RootOrder::TableRemove { table: TABLE }));
    assert!(node.shard.store.table_held(TABLE).is_none());
    node.step(ShardInput::StepDown { stamp: 1 });
    assert!(node.shard.store.table_held(TABLE).is_none(), "committed is committed");
}

#[test]
fn a_follower_carries_out_committed_commands() {
    let mut node = follower();
    node.apply(1, &items()[0]);
    let other = TableId(9);
    let create = SystemCommand::TableCreate { table: other.0, definition: definition() };
    apply_commands(&mut node, 2, vec![create]);
    assert!(node.shard.store.table(other).is_some());
    let close = SystemCommand::SessionClose { session: session(1).0 };
    let drop = SystemCommand::TableDrop { table: TABLE.0 };
    let drain = SystemCommand::ZoneDrain { node: 2, drained: true };
    apply_commands(&mut node, 3, vec![close, drop, drain]);
    assert!(node.diverged.is_none());
    assert!(node.shard.store.table_held(TABLE).is_none());
    assert_eq!((node.closes.as_slice(), node.shard.sessions_count()), (&[1][..], 0));
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::SessionUnknown));
}

#[test]
fn a_session_that_a_follower_does_not_know_yet_is_no_lost_session() {
    let mut node = follower();
    node.connect(5, session(40).0);
    node.connect(6, session(2).0);
    node.apply(1, &items()[0]);
    node.frames(&[read(5, 2, ReadMode::AtLsn, 1, &[vec![get(1)]])]);
    assert_eq!(node.take_answers()[0].status(), OutcomeStatus::Committed);
    assert!(node.closes.is_empty());
    // Once the node leads, its word about sessions counts: they have to ask again.
    node.lead(6);
    assert_eq!(node.closes, [5]);
    node.step(ShardInput::Closed(5));
    node.step(ShardInput::Opened(8));
    node.frames(&[hello(8, session(40).0)]);
    assert_eq!(node.take_answers()[0].refusal(), Some(RefusalCode::SessionUnknown));
    assert_eq!(
        node.ask(submit(6, 2, 1, 0, &[vec![upsert(4, 4)]])).status(),
        OutcomeStatus::Committed
    );
}

/// A leader that was deposed and has not noticed does not know the sessions that another one has
/// opened since. A client that hears of it that its session is unknown gives it up.
#[test]
fn a_leader_refuses_a_session_only_with_proof_that_it_leads() {
    for outcome in ["proven", "deposed", "failed"] {
        let mut node = contested();
        node.step(ShardInput::Opened(8));
        let behind = frame_of(8, 9, FrameKind::TableList, &TableList {});
        node.frames(&[hello(8, session(40).0), behind]);
        assert!(node.take_answers().is_empty() && node.closes.is_empty());
        assert_eq!(node.round_wanted, 5);
        node.frames(&[frame_of(8, 9, FrameKind::TableList, &TableList {})]);
        match outcome {
            "proven" => node.log(LogState { round_confirmed: 5, ..node.state }),
            "deposed" => node.step(ShardInput::StepDown { stamp: node.confirmed }),
            _ => node.log(LogState { failed: true, ..node.state }),
        }
        let answers: Vec<_> = node.take_answers().iter().map(|a| a.refusal()).collect();
        let expected = [Some(RefusalCode::SessionUnknown)];
        assert_eq!(answers, if outcome == "proven" { &expected[..] } else { &[] }, "{outcome}");
        assert_eq!(node.closes.iter().filter(|closed| **closed == 8).count(), 1, "{outcome}");
        node.step(ShardInput::Closed(8));
        assert_eq!(node.shard.connections_count(), if outcome == "deposed" { 0 } else { 2 });
    }
}

#[test]
fn a_leader_says_what_there_is_not_only_with_proof_that_it_leads() {
    let mut node = contested();
    let scan = Scan { table: 77, start: Vec::new(), end: Vec::new(), rows_max: 1 };
    let origin = RootOrigin { connection: 1, request: 4 };
    let refusal = Refusal::new(RefusalCode::Schema, "there is no table x".to_owned());
    node.frames(&[
        frame_of(1, 2, FrameKind::Scan, &scan),
        frame_of(1, 3, FrameKind::TableList, &TableList {}),
    ]);
    node.step(ShardInput::Answer(origin, RootAnswer::Refusal(refusal)));
    node.step(ShardInput::Answer(origin, RootAnswer::Done));
    assert!(node.take_answers().is_empty());
    assert_eq!(node.round_wanted, 5);
    node.log(LogState { round_confirmed: 5, ..node.state });
    let kinds: Vec<_> = node.take_answers().iter().map(|answer| answer.kind).collect();
    let refused = FrameKind::Refusal;
    assert_eq!(kinds, [refused, FrameKind::TableListing, refused, FrameKind::Done]);
    // Whose session is to end is cut off at once, and hears why where it asks again.
    node.step(ShardInput::Root(RootOrder::SessionHide { session: session(1) }));
    assert_eq!(node.closes, [1]);
    node.step(ShardInput::StepDown { stamp: node.confirmed });
    node.step(ShardInput::Answer(origin, RootAnswer::Done));
    assert!(node.take_answers().is_empty());
}

#[test]
fn a_newer_session_in_the_slot_ends_the_connection_of_the_older_one() {
    let mut node = follower();
    let newer = spillway_net::ids::SessionId(session(1).0 + crate::session::SLOTS as u64);
    // The root service of this node is ahead of this shard.
    node.directory.close(session(1));
    node.directory.open(newer, 0);
    node.connect(5, newer.0);
    assert_eq!(node.closes, [1]);
    let close = SystemCommand::SessionClose { session: session(1).0 };
    apply_commands(&mut node, 1, vec![close]);
    node.lead(6);
    assert_eq!((node.closes.len(), node.shard.sessions_count()), (1, 1));
}

#[test]
fn a_session_that_was_ahead_of_its_slot_asks_again_when_the_node_leads() {
    let mut node = follower();
    let newer = spillway_net::ids::SessionId(session(1).0 + crate::session::SLOTS as u64);
    node.directory.close(session(1));
    node.directory.open(newer, 0);
    node.connect(5, newer.0);
    node.connect(6, session(2).0);
    // What the older session in the slot committed comes to this shard only now.
    let items = items();
    node.apply(1, &items[0]);
    node.apply(2, &items[1]);
    (node.closes, node.answers) = (Vec::new(), Vec::new());
    node.lead(6);
    assert_eq!(node.closes, [5]);
    node.frames(&[submit(5, 1, 1, 0, &[vec![upsert(1, 1)]])]);
    assert!(node.take_answers().is_empty(), "what it still sends is not executed");
    node.step(ShardInput::Closed(5));
    node.connect(7, newer.0);
    let answer = node.ask(submit(7, 1, 1, 0, &[vec![upsert(1, 1)]]));
    assert_eq!(answer.status(), OutcomeStatus::Committed);
    assert_eq!(node.ask(submit(6, 1, 1, 0, &[vec![get(2)]])).status(), OutcomeStatus::Committed);
}

fn command(action: u8) -> ClusterCommand {
    ClusterCommand {
        action,
        node: 2,
        node_new: 4,
        peer_address: "zone4:7500".to_owned(),
        address: "zone4:7400".to_owned(),
    }
}

#[test]
fn commands_for_the_cluster_go_to_those_who_carry_them_out() {
    let mut node = Node::new();
    let ask = |node: &mut Node, action: u8| {
        node.frames(&[frame_of(1, 3, FrameKind::ClusterCommand, &command(action))]);
        node.take_answers().pop().and_then(|answer| answer.refusal())
    };
    for action in 1..=4 {
        assert_eq!(ask(&mut node, action), None);
    }
    let (two, four) = (NodeId(2), NodeId(4));
    let expected = [
        RootCommand::ZoneDrain { node: two, drained: true },
        RootCommand::ZoneDrain { node: two, drained: false },
        RootCommand::MemberReplace {
            old: Some(two),
            new: four,
            peer_address: "zone4:7500".to_owned(),
            client_address: "zone4:7400".to_owned(),
        },
    ];
    assert_eq!(node.root_commands, expected);
    assert_eq!(node.cluster_commands, [command(ClusterAction::Transfer as u8)]);
    assert_eq!(ask(&mut node, 9), Some(RefusalCode::Malformed));
    node.log(LogState { full: true, ..node.state });
    assert_eq!(ask(&mut node, 2), Some(RefusalCode::LogUnavailable), "a drain is an entry");
    assert_eq!(ask(&mut node, 1), None, "a transfer is not");
    let mut second = Node::with(NodeOptions { index: 1, shards: 2, ..OPTIONS });
    assert_eq!(ask(&mut second, 1), Some(RefusalCode::WrongShard));
    assert_eq!(ask(&mut second, 2), Some(RefusalCode::WrongShard));
    let mut node = follower();
    node.frames(&[frame_of(1, 3, FrameKind::ClusterStatus, &ClusterStatus {})]);
    assert_eq!(node.cluster_status_requests, 1, "any node tells how it sees the cluster");
}
