//! The root service without shards and log: the tests act as both.

use super::*;

const ORIGIN: RootOrigin = RootOrigin { connection: 1, request: 9 };

fn root(shards: u16) -> (Root, Arc<SessionDirectory>) {
    let (mut root, directory) = follower(shards);
    step(&mut root, RootInput::Lead { epoch: Epoch(1) });
    (root, directory)
}

fn follower(shards: u16) -> (Root, Arc<SessionDirectory>) {
    let directory = Arc::new(SessionDirectory::default());
    (Root::new(Arc::clone(&directory), shards), directory)
}

fn definition(name: &str) -> TableDefinition {
    let text = format!("{name}(id int8, v int8, primary key (id), partition key (id))");
    TableDefinition::parse(&text).expect("a valid definition")
}

fn command(root: &mut Root, command: RootCommand) -> RootEffects {
    let mut out = RootEffects::default();
    root.step(0, RootInput::Command(ORIGIN, command), &mut out);
    out
}

fn step(root: &mut Root, input: RootInput) -> RootEffects {
    let mut out = RootEffects::default();
    root.step(0, input, &mut out);
    out
}

#[test]
fn a_session_is_live_only_when_its_opening_is_committed() {
    let (mut root, directory) = root(2);
    let out = command(&mut root, RootCommand::SessionOpen { client_name: "t".into() });
    assert_eq!(out.items.len(), 1);
    assert!(out.answers.frames.is_empty());
    let session = SessionId(SLOTS as u64);
    assert!(!directory.is_live(session));
    let out = step(&mut root, RootInput::Committed { stamp: 1 });
    assert!(directory.is_live(session));
    assert_eq!(out.answers.frames.len(), 1);
}

#[test]
fn a_table_is_told_to_the_shards_when_committed_and_answered_when_all_have_it() {
    let (mut root, _) = root(2);
    let create = RootCommand::TableCreate { definition: definition("t") };
    assert!(command(&mut root, create.clone()).orders.is_empty());
    assert!(command(&mut root, create).items.is_empty(), "the same again is not logged again");
    let out = step(&mut root, RootInput::Committed { stamp: 1 });
    assert_eq!(out.orders.len(), 1);
    assert!(step(&mut root, RootInput::OrderDone { shard: 0 }).answers.frames.is_empty());
    let out = step(&mut root, RootInput::OrderDone { shard: 1 });
    assert_eq!(out.answers.frames.len(), 2, "both clients are answered");
}

#[test]
fn a_table_goes_into_the_log_as_dropped_only_after_all_shards_let_it_go() {
    let (mut root, _) = root(1);
    command(&mut root, RootCommand::TableCreate { definition: definition("t") });
    step(&mut root, RootInput::Committed { stamp: 1 });
    let busy = command(&mut root, RootCommand::TableDrop { name: "t".into() });
    assert!(busy.orders.is_empty(), "not while it is being created");
    step(&mut root, RootInput::OrderDone { shard: 0 });
    let out = command(&mut root, RootCommand::TableDrop { name: "t".into() });
    assert_eq!((out.orders.len(), out.items.len()), (1, 0));
    let out = step(&mut root, RootInput::OrderDone { shard: 0 });
    assert_eq!(out.items.len(), 1);
    let out = step(&mut root, RootInput::Committed { stamp: 2 });
    assert_eq!(out.answers.frames.len(), 1);
    let again = command(&mut root, RootCommand::TableCreate { definition: definition("t") });
    assert_eq!(again.items.len(), 1, "the name is free, the id is new");
    assert_eq!(root.table_next, 3);
}

#[test]
fn idle_sessions_are_closed_by_the_sweep() {
    let (mut root, directory) = root(1);
    command(&mut root, RootCommand::SessionOpen { client_name: String::new() });
    step(&mut root, RootInput::Committed { stamp: 1 });
    let mut out = RootEffects::default();
    let late = u64::from(SESSION_IDLE_SECONDS_MAX + 1) * 1_000_000_000;
    for _ in 0..SLOTS / SWEEP_SLOTS {
        root.step(late, RootInput::Tick { log_takes: false }, &mut out);
    }
    assert!(out.orders.is_empty(), "not while the log has no room for it");
    for _ in 0..SLOTS / SWEEP_SLOTS {
        root.step(late, RootInput::Tick { log_takes: true }, &mut out);
    }
    assert_eq!(out.orders.len(), 1);
    assert!(!directory.is_live(SessionId(SLOTS as u64)));
}

#[test]
fn replay_gives_no_id_out_again() {
    let (mut root, directory) = follower(1);
    let open = SystemCommand::SessionOpen { session: 3 * SLOTS as u64, client_name: String::new() };
    root.replay(&open, 0).expect("it follows");
    assert!(directory.is_live(SessionId(3 * SLOTS as u64)));
    let close = SystemCommand::SessionClose { session: 3 * SLOTS as u64 };
    root.replay(&close, 0).expect("it follows");
    let create = SystemCommand::TableCreate { table: 7, definition: definition("t") };
    root.replay(&create, 0).expect("it follows");
    step(&mut root, RootInput::Lead { epoch: Epoch(1) });
    let out = command(&mut root, RootCommand::SessionOpen { client_name: String::new() });
    assert_eq!(out.items.len(), 1);
    assert_eq!(root.generations[0], 4);
    assert_eq!(root.table_next, 8);
}

#[test]
fn commands_that_cannot_follow_upon_the_log_are_told_and_change_nothing() {
    let (mut root, directory) = follower(1);
    let opened = |session: u64| SystemCommand::SessionOpen { session, client_name: "".into() };
    let created = |table: u16| SystemCommand::TableCreate { table, definition: definition("t") };
    let slots = SLOTS as u64;
    for good in [opened(2 * slots + 5), created(4)] {
        root.replay(&good, 0).expect("it follows");
    }
    let unnamed = TableDefinition { name: String::new(), ..definition("t") };
    let wrong = [
        created(4),
        created(3),
        created(0),
        created(u16::MAX),
        SystemCommand::TableCreate { table: 9, definition: unnamed },
        SystemCommand::TableDrop { table: 3 },
        opened(0),
        opened(5),
        opened(2 * slots + 5),
        opened(3 * slots + 5),
        opened((1 << 32) * slots),
        SystemCommand::SessionClose { session: slots + 5 },
        SystemCommand::SessionClose { session: 3 * slots + 5 },
        SystemCommand::SessionClose { session: slots + 6 },
        SystemCommand::MemberRemove { node: 0 },
    ];
    for command in wrong {
        let out = step(&mut root, RootInput::Apply(command.clone()));
        assert!(matches!(out.diverged, Some(RedoError::Contradiction(_))), "{command:?}");
    }
    assert_eq!((root.tables.len(), root.table_next, root.sessions_count()), (1, 5, 1));
    assert!(directory.is_live(SessionId(2 * slots + 5)));
    root.replay(&SystemCommand::SessionClose { session: 2 * slots + 5 }, 0).expect("it is open");
    root.replay(&opened(3 * slots + 5), 0).expect("its slot is free");
}

const ACK: RootInput = RootInput::OrderDone { shard: 0 };

fn open() -> RootCommand {
    RootCommand::SessionOpen { client_name: String::new() }
}

fn create(name: &str) -> RootCommand {
    RootCommand::TableCreate { definition: definition(name) }
}

fn refusal(out: &RootEffects) -> Option<RefusalCode> {
    use spillway_net::frame::HEADER_BYTES;
    if let Some((_, RootAnswer::Refusal(refusal))) = out.answers_of_state.last() {
        return RefusalCode::from_wire(refusal.code);
    }
    let frame = out.answers.frames.last()?;
    let payload = &out.answers.bytes[frame.start + HEADER_BYTES..frame.end];
    let refusal = message::decode::<Refusal>(payload).ok()?;
    RefusalCode::from_wire(refusal.code)
}

/// Two tables, one of them with its name, and one session, all committed.
fn settled() -> (Root, Arc<SessionDirectory>, SessionId) {
    let (mut root, directory) = root(1);
    command(&mut root, create("a"));
    command(&mut root, create("b"));
    command(&mut root, open());
    let out = step(&mut root, RootInput::Committed { stamp: 3 });
    assert_eq!(out.orders.len(), 2);
    step(&mut root, ACK);
    step(&mut root, ACK);
    assert_eq!(root.orders_outstanding(), 0);
    (root, directory, SessionId(SLOTS as u64))
}

#[test]
fn a_follower_decides_nothing() {
    let (mut root, _) = follower(1);
    for wanted in [open(), create("t"), RootCommand::TableDrop { name: "t".into() }] {
        let out = command(&mut root, wanted.clone());
        assert_eq!(refusal(&out), Some(RefusalCode::NotLeader), "{wanted:?}");
        assert!(out.items.is_empty() && out.orders.is_empty());
        let out = step(&mut root, RootInput::Internal(wanted));
        assert!(out.items.is_empty() && out.answers.frames.is_empty());
    }
    let out = step(&mut root, RootInput::Tick { log_takes: true });
    assert!(out.orders.is_empty());
    step(&mut root, RootInput::StepDown { stamp: 77 });
    assert_eq!(root.orders_outstanding(), 0);
}

#[test]
fn what_is_not_committed_when_leadership_ends_is_taken_back() {
    let (mut root, directory, session) = settled();
    // Proposed: a session, two tables. Hidden: a table; a session, whose end is proposed too.
    let session_next = SessionId(SLOTS as u64 + 1);
    command(&mut root, open());
    command(&mut root, create("c"));
    command(&mut root, create("d"));
    command(&mut root, RootCommand::SessionClose { session });
    command(&mut root, RootCommand::TableDrop { name: "a".into() });
    let out = step(&mut root, ACK);
    assert_eq!(out.items[0].stamp, 7, "the end of the session is in the log's queue");
    assert!(!directory.is_live(session));
    let out = step(&mut root, RootInput::StepDown { stamp: 3 });
    assert!(out.answers.frames.is_empty() && out.items.is_empty());
    assert_eq!(root.orders_outstanding(), 1, "the table's hiding");
    step(&mut root, ACK);
    assert_eq!(root.orders_outstanding(), 0);
    assert!(directory.is_live(session) && !directory.is_live(session_next));
    assert_eq!((root.sessions_count(), root.tables.len(), root.table_next), (1, 2, 3));
    // What the next leader had in its log after all comes as a committed command.
    let open_again =
        SystemCommand::SessionOpen { session: session_next.0, client_name: String::new() };
    step(&mut root, RootInput::Apply(open_again));
    step(&mut root, RootInput::Apply(SystemCommand::SessionClose { session: session.0 }));
    assert!(directory.is_live(session_next) && !directory.is_live(session));
    let created = SystemCommand::TableCreate { table: 3, definition: definition("c") };
    step(&mut root, RootInput::Apply(created));
    // And in the next term everything goes on from there.
    step(&mut root, RootInput::Lead { epoch: Epoch(3) });
    let out = command(&mut root, create("d"));
    assert_eq!((out.items[0].stamp, out.items[0].epoch), (8, Epoch(3)));
    assert_eq!(root.table_next, 5, "3 is in the log, 4 was never told to anybody");
    command(&mut root, RootCommand::TableDrop { name: "a".into() });
    let out = step(&mut root, ACK);
    assert_eq!(out.items.len(), 1, "a drop that was taken back can be ordered again");
}

#[test]
fn what_is_committed_when_leadership_ends_is_done() {
    let (mut root, directory, session) = settled();
    command(&mut root, RootCommand::SessionClose { session });
    command(&mut root, RootCommand::TableDrop { name: "a".into() });
    step(&mut root, ACK);
    step(&mut root, ACK);
    command(&mut root, create("c"));
    command(&mut root, create("d"));
    // Up to the creation of c; nobody had told the root before.
    let out = step(&mut root, RootInput::StepDown { stamp: 6 });
    let expected = [
        RootOrder::SessionRemove { session },
        RootOrder::TableRemove { table: TableId(1) },
        RootOrder::TableCreate { table: TableId(3), definition: definition("c") },
    ];
    assert_eq!(out.orders, expected);
    assert!(out.answers.frames.is_empty(), "nobody is connected any more");
    assert!(!directory.is_live(session));
    assert_eq!((root.tables.len(), root.table_next, root.sessions_count()), (2, 4, 0));
    for outstanding in [3, 2, 1] {
        assert_eq!(root.orders_outstanding(), outstanding);
        assert!(step(&mut root, ACK).answers.frames.is_empty());
    }
    assert_eq!(root.orders_outstanding(), 0);
}

/// A leader that was deposed and has not noticed does not know what the next one changed.
#[test]
fn what_rests_on_state_alone_is_not_answered_without_proof() {
    let (mut root, _, session) = settled();
    let unknown = SessionId(session.0 + 1);
    let cases = [
        (RootCommand::SessionClose { session: unknown }, Some(RefusalCode::SessionUnknown)),
        (RootCommand::TableDrop { name: "c".into() }, Some(RefusalCode::Schema)),
        (create("a"), None),
    ];
    for (wanted, code) in cases {
        let out = command(&mut root, wanted.clone());
        assert!(out.answers.frames.is_empty() && out.items.is_empty(), "{wanted:?}");
        assert_eq!((out.answers_of_state.len(), refusal(&out)), (1, code), "{wanted:?}");
    }
    // What is not committed may be taken back: what is said of it waits for the commit.
    command(&mut root, create("c"));
    let other = TableDefinition::parse("c(id int8, w int8, primary key (id))").expect("valid");
    let out = command(&mut root, RootCommand::TableCreate { definition: other });
    assert!(out.answers.frames.is_empty() && out.answers_of_state.is_empty());
    let out = step(&mut root, RootInput::Committed { stamp: 4 });
    assert_eq!(refusal(&out), Some(RefusalCode::Schema));
    // Who waits when leadership ends hears nothing.
    command(&mut root, create("d"));
    command(&mut root, RootCommand::TableDrop { name: "e".into() });
    let out = step(&mut root, RootInput::StepDown { stamp: 5 });
    assert!(out.answers.frames.is_empty() && out.answers_of_state.is_empty());
}

#[test]
fn a_removal_is_ordered_when_its_end_is_committed() {
    let (mut root, _, session) = settled();
    let out = command(&mut root, RootCommand::TableDrop { name: "a".into() });
    assert_eq!(out.orders, [RootOrder::TableHide { table: TableId(1) }]);
    let out = step(&mut root, ACK);
    assert_eq!((out.items.len(), out.orders.len()), (1, 0));
    let out = step(&mut root, RootInput::Committed { stamp: 4 });
    assert_eq!(out.orders, [RootOrder::TableRemove { table: TableId(1) }]);
    assert_eq!(out.answers.frames.len(), 1);
    step(&mut root, ACK);
    let out = command(&mut root, RootCommand::SessionClose { session });
    assert_eq!(out.orders, [RootOrder::SessionHide { session }]);
    step(&mut root, ACK);
    let out = step(&mut root, RootInput::Committed { stamp: 5 });
    assert_eq!(out.orders, [RootOrder::SessionRemove { session }]);
}

#[test]
fn a_new_leader_gives_every_session_its_idle_time_anew() {
    let (mut root, directory) = follower(1);
    let session = SessionId(SLOTS as u64);
    let open = SystemCommand::SessionOpen { session: session.0, client_name: "".into() };
    root.replay(&open, 0).expect("it follows");
    let mut out = RootEffects::default();
    let late = u64::from(SESSION_IDLE_SECONDS_MAX + 1) * 1_000_000_000;
    root.step(late, RootInput::Lead { epoch: Epoch(1) }, &mut out);
    for _ in 0..SLOTS / SWEEP_SLOTS {
        root.step(late, RootInput::Tick { log_takes: true }, &mut out);
    }
    assert!(out.orders.is_empty() && directory.is_live(session));
}

fn member(node: u16) -> (NodeId, String, String) {
    (NodeId(node), format!("zone{node}:7500"), format!("zone{node}:7400"))
}

fn member_set(node: u16) -> RootCommand {
    let (node, peer_address, client_address) = member(node);
    RootCommand::MemberSet { node, peer_address, client_address }
}

fn replace(old: u16, new: u16) -> RootCommand {
    let (new, peer_address, client_address) = member(new);
    let old = (old != 0).then_some(NodeId(old));
    RootCommand::MemberReplace { old, new, peer_address, client_address }
}

fn drain(node: u16, drained: bool) -> RootCommand {
    RootCommand::ZoneDrain { node: NodeId(node), drained }
}

/// A leader with members 1 to 3.
fn with_members() -> (Root, u64) {
    let (mut root, _) = root(1);
    for node in 1..=3 {
        let out = step(&mut root, RootInput::Internal(member_set(node)));
        assert_eq!(out.items.len(), 1);
        assert!(!root.members().contains_key(&NodeId(node)), "not before the commit");
        step(&mut root, RootInput::Committed { stamp: u64::from(node) });
    }
    assert_eq!(root.members()[&NodeId(2)].client_address, "zone2:7400");
    (root, 3)
}

#[test]
fn members_and_drains_change_when_committed() {
    let (mut root, mut stamp) = with_members();
    assert!(step(&mut root, RootInput::Internal(member_set(2))).items.is_empty(), "it is so");
    assert!(command(&mut root, drain(2, true)).answers.frames.is_empty());
    assert!(root.drained().is_empty());
    assert_eq!(refusal(&command(&mut root, drain(3, true))), Some(RefusalCode::ClusterBusy));
    stamp += 1;
    let out = step(&mut root, RootInput::Committed { stamp });
    assert_eq!(out.answers.frames.len(), 1);
    assert!(root.drained().contains(&NodeId(2)));
    let out = command(&mut root, drain(2, true));
    assert!(out.items.is_empty() && out.answers.frames.is_empty());
    assert_eq!(out.answers_of_state, [(ORIGIN, RootAnswer::Done)], "it is so already");
    command(&mut root, drain(3, true));
    stamp += 1;
    step(&mut root, RootInput::Committed { stamp });
    let last = command(&mut root, drain(1, true));
    assert_eq!(refusal(&last), Some(RefusalCode::ClusterBusy), "somebody has to lead");
    command(&mut root, drain(2, false));
    stamp += 1;
    step(&mut root, RootInput::Committed { stamp });
    step(&mut root, RootInput::Internal(RootCommand::MemberRemove { node: NodeId(3) }));
    stamp += 1;
    step(&mut root, RootInput::Committed { stamp });
    assert!(root.drained().is_empty(), "a node that is gone is not drained");
    assert_eq!(root.members().len(), 2);
    assert_eq!(refusal(&command(&mut root, drain(3, true))), Some(RefusalCode::ClusterBusy));
}

#[test]
fn a_removed_member_comes_back_only_by_an_operator() {
    let (mut root, stamp) = with_members();
    step(&mut root, RootInput::Internal(RootCommand::MemberRemove { node: NodeId(3) }));
    step(&mut root, RootInput::Committed { stamp: stamp + 1 });
    assert!(root.removed().contains(&NodeId(3)) && !root.members().contains_key(&NodeId(3)));
    // The configuration of some node still names it.
    let out = step(&mut root, RootInput::Internal(member_set(3)));
    assert!(out.items.is_empty(), "what is forgotten stays forgotten");
    // So it does on the other nodes, and after a restart, whoever leads then.
    let (mut other, _) = follower(1);
    for node in 1..=3 {
        let (NodeId(node), peer_address, client_address) = member(node);
        let set = SystemCommand::MemberSet { node, peer_address, client_address };
        other.replay(&set, 0).expect("it follows");
    }
    other.replay(&SystemCommand::MemberRemove { node: 3 }, 0).expect("it follows");
    step(&mut other, RootInput::Lead { epoch: Epoch(2) });
    assert!(step(&mut other, RootInput::Internal(member_set(3))).items.is_empty());
    assert_eq!(step(&mut other, RootInput::Internal(member_set(4))).items.len(), 1);
    // An operator who names it means it.
    let out = command(&mut root, replace(2, 3));
    assert_eq!(out.items.len(), 1);
    step(&mut root, RootInput::Committed { stamp: stamp + 2 });
    assert!(root.removed().is_empty() && root.members().contains_key(&NodeId(3)));
}

#[test]
fn a_replacement_goes_on_when_the_new_node_s_addresses_are_committed() {
    let (mut root, stamp) = with_members();
    let out = command(&mut root, replace(2, 4));
    assert_eq!((out.items.len(), out.replacements.len()), (1, 0));
    let out = step(&mut root, RootInput::Committed { stamp: stamp + 1 });
    let (old, new) = (Some(NodeId(2)), NodeId(4));
    assert_eq!(out.replacements, [Replacement { origin: Some(ORIGIN), old, new }]);
    assert!(out.answers.frames.is_empty(), "the shell answers");
    assert_eq!(root.members().len(), 4);
    let again = command(&mut root, replace(2, 4));
    assert_eq!((again.items.len(), again.replacements.len()), (0, 1));
    let wrong = [
        (replace(9, 5), RefusalCode::ClusterBusy),
        (replace(2, 2), RefusalCode::Malformed),
        (replace(2, 0), RefusalCode::Malformed),
        (
            RootCommand::MemberSet {
                node: NodeId(5),
                peer_address: "zone5".into(),
                client_address: "zone5:1".into(),
            },
            RefusalCode::Malformed,
        ),
    ];
    for (wanted, code) in wrong {
        assert_eq!(refusal(&command(&mut root, wanted.clone())), Some(code), "{wanted:?}");
    }
}

#[test]
fn a_change_of_the_cluster_that_is_not_committed_is_as_if_it_had_never_been() {
    let (mut root, stamp) = with_members();
    command(&mut root, drain(2, true));
    step(&mut root, RootInput::StepDown { stamp });
    assert!(root.drained().is_empty());
    step(&mut root, RootInput::Apply(SystemCommand::ZoneDrain { node: 2, drained: true }));
    assert!(root.drained().contains(&NodeId(2)), "the next leader had it in its log");
    step(&mut root, RootInput::Lead { epoch: Epoch(2) });
    assert_eq!(command(&mut root, drain(2, false)).items.len(), 1);
}
