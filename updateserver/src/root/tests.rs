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
    root.replay(&open, 0);
    assert!(directory.is_live(SessionId(3 * SLOTS as u64)));
    root.replay(&SystemCommand::SessionClose { session: 3 * SLOTS as u64 }, 0);
    let create = SystemCommand::TableCreate { table: 7, definition: definition("t") };
    root.replay(&create, 0);
    step(&mut root, RootInput::Lead { epoch: Epoch(1) });
    let out = command(&mut root, RootCommand::SessionOpen { client_name: String::new() });
    assert_eq!(out.items.len(), 1);
    assert_eq!(root.generations[0], 4);
    assert_eq!(root.table_next, 8);
}
