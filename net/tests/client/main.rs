//! The client's two faces against a node on real sockets.

mod cluster;
mod node;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use node::{Faults, Node};
use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::{
    Batch, Client, ClientError, ClientOptions, FrameResult, LossReason, Pipeline, PipelineOptions,
    ScanRange, Spread, TableHandle, Transaction, Wait,
};
use spillway_net::message::OutcomeStatus;
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;

const ACCOUNTS: &str = "accounts(branch int8, id int8, balance int8, \
                        primary key (branch, id), partition key (branch))";

fn accounts(client: &mut Client) -> TableHandle {
    let definition = TableDefinition::parse(ACCOUNTS).expect("it parses");
    client.create_table(&definition).expect("created")
}

fn key(branch: i64, id: i64) -> [Value; 2] {
    [Value::Int8(branch), Value::Int8(id)]
}

fn account(branch: i64, id: i64, balance: i64) -> [Value; 3] {
    [Value::Int8(branch), Value::Int8(id), Value::Int8(balance)]
}

fn add(delta: i64, min: Option<i64>) -> AddArgument {
    AddArgument::Int(AddBounded { delta, min, max: None })
}

/// Fast enough that a lost answer does not slow the test down.
fn options(node: &Node) -> ClientOptions {
    ClientOptions { request_timeout_ms: 2_000, ..ClientOptions::new(node.address()) }
}

#[test]
fn a_transfer_takes_effect_once_and_within_its_bound() {
    let node = Node::start(3, Faults::default());
    let mut client = Client::connect(node.address()).expect("connected");
    let accounts = accounts(&mut client);
    let mut open = Transaction::new();
    open.insert(&accounts, &account(1, 1, 100)).expect("it fits");
    open.insert(&accounts, &account(1, 2, 0)).expect("it fits");
    assert!(client.execute(&mut open).expect("answered").is_committed());
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let mut transfer = Transaction::new();
        transfer.add(&accounts, &key(1, 1), "balance", add(-40, Some(0))).expect("it fits");
        transfer.add(&accounts, &key(1, 2), "balance", add(40, None)).expect("it fits");
        statuses.push(client.execute(&mut transfer).expect("answered").status);
    }
    let committed = OutcomeStatus::Committed;
    assert_eq!(statuses, [committed, committed, OutcomeStatus::BoundsViolated]);
    let balance = |client: &mut Client, id| {
        let row = client.get(&accounts, &key(1, id)).expect("answered").expect("there is one");
        row.values[2].clone()
    };
    assert_eq!(balance(&mut client, 1), Value::Int8(20));
    assert_eq!(balance(&mut client, 2), Value::Int8(80));
    assert_eq!(client.get(&accounts, &key(1, 3)).expect("answered"), None);
    assert_eq!(node.state().sessions.len(), 1);
    client.close().expect("closed");
    assert_eq!(node.state().sessions.len(), 0);
}

#[test]
fn scans_merge_all_shards_in_key_order() {
    let node = Node::start(4, Faults::default());
    let mut client = Client::connect(node.address()).expect("connected");
    let accounts = accounts(&mut client);
    let mut expected = Vec::new();
    for branch in 0..20 {
        let mut insert = Transaction::new();
        for id in 0..11 {
            insert.insert(&accounts, &account(branch, id, branch * id)).expect("it fits");
            expected.push(account(branch, id, branch * id).to_vec());
        }
        assert!(client.execute(&mut insert).expect("answered").is_committed());
    }
    let all = client.scan(&accounts, ScanRange::all());
    let all: Vec<_> = all.map(|row| row.expect("a row").values).collect();
    assert_eq!(all, expected);
    let range = ScanRange::prefix(&accounts, &[Value::Int8(7)]).expect("a prefix");
    let some: Vec<_> = client.scan(&accounts, range).map(|r| r.expect("a row").values).collect();
    assert_eq!(some, &expected[7 * 11..8 * 11]);
    let tables = client.tables().expect("answered");
    assert_eq!((tables.len(), tables[0].rows), (1, 220));
    assert_eq!(client.status().expect("answered").len(), 4);
}

#[test]
fn tables_are_found_dropped_and_missed() {
    let node = Node::start(1, Faults::default());
    let mut client = Client::connect(node.address()).expect("connected");
    let made = accounts(&mut client);
    assert_eq!(client.table("accounts").expect("found").id(), made.id());
    client.drop_table("accounts").expect("dropped");
    assert!(matches!(client.table("accounts"), Err(ClientError::TableUnknown(_))));
    assert!(matches!(client.drop_table("accounts"), Err(ClientError::Refused { .. })));
}

#[test]
fn lost_answers_are_fetched_again_by_number() {
    let node = Node::start(2, Faults { cut_every: 2, ..Faults::default() });
    let mut client = Client::connect_with(options(&node)).expect("connected");
    let accounts = accounts(&mut client);
    for id in 0..10 {
        let mut insert = Transaction::new();
        insert.insert(&accounts, &account(id % 3, id, id)).expect("it fits");
        // A second execution would be a duplicate.
        let outcome = client.execute(&mut insert).expect("answered");
        assert_eq!(outcome.status, OutcomeStatus::Committed);
    }
    let state = node.state();
    assert_eq!(state.executed, 10);
    assert!(state.repeated >= 3, "{} answers were lost", state.repeated);
}

#[test]
fn overload_is_retried_if_asked_for() {
    let node = Node::start(1, Faults { overload_first: 2, ..Faults::default() });
    let mut client = Client::connect_with(options(&node)).expect("connected");
    let accounts = accounts(&mut client);
    let mut insert = Transaction::new();
    insert.insert(&accounts, &account(1, 1, 1)).expect("it fits");
    let outcome = client.execute(&mut insert).expect("answered");
    assert_eq!(outcome.status, OutcomeStatus::Overloaded);
    let patient = ClientOptions { retry_ms: 60_000, ..options(&node) };
    let mut client = Client::connect_with(patient).expect("connected");
    let mut insert = Transaction::new();
    insert.insert(&accounts, &account(1, 1, 1)).expect("it fits");
    let outcome = client.execute(&mut insert).expect("answered");
    assert_eq!(outcome.status, OutcomeStatus::Committed);
}

#[test]
fn a_silent_node_makes_the_outcome_unknown() {
    let node = Node::start(1, Faults { is_silent: true, ..Faults::default() });
    let brief = ClientOptions { request_timeout_ms: 50, give_up_ms: 400, ..options(&node) };
    let mut client = Client::connect_with(brief).expect("connected");
    let accounts = accounts(&mut client);
    let mut insert = Transaction::new();
    insert.insert(&accounts, &account(1, 1, 1)).expect("it fits");
    let outcome = client.execute(&mut insert);
    assert!(matches!(outcome, Err(ClientError::Unknown(LossReason::GaveUp))), "{outcome:?}");
}

#[test]
fn a_forgotten_session_is_an_unknown_outcome_and_then_a_new_session() {
    let node = Node::start(1, Faults::default());
    let mut client = Client::connect_with(options(&node)).expect("connected");
    let accounts = accounts(&mut client);
    let insert = |client: &mut Client, id| {
        let mut insert = Transaction::new();
        insert.insert(&accounts, &account(1, id, 1)).expect("it fits");
        client.execute(&mut insert).map(|outcome| outcome.status)
    };
    assert_eq!(insert(&mut client, 1).expect("answered"), OutcomeStatus::Committed);
    {
        let mut state = node.state();
        state.sessions.clear();
        state.faults.cut_every = 1;
    }
    let unknown = insert(&mut client, 2);
    assert!(matches!(unknown, Err(ClientError::Unknown(LossReason::SessionUnknown))));
    node.state().faults.cut_every = 0;
    assert_eq!(insert(&mut client, 3).expect("answered"), OutcomeStatus::Committed);
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound")
}

#[test]
fn nobody_at_the_address_is_a_helpful_error() {
    let error = Client::connect(nobody()).expect_err("nobody listens");
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("spillway start"), "{error}");
    let error = Pipeline::connect(PipelineOptions::new(nobody())).expect_err("nobody listens");
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}

/// Inserts `frames` frames of `transactions` through the pipeline, `window` at a time, and
/// returns how many transactions committed.
fn drive(
    pipeline: &mut Pipeline,
    accounts: &TableHandle,
    frames: usize,
    transactions: usize,
) -> usize {
    let mut batch = Batch::new();
    let (mut key, mut row) = (Vec::new(), Vec::new());
    let mut id = 0;
    let mut submitted = 0;
    let mut ended = 0;
    let mut committed = 0;
    while ended < frames {
        for connection in 0..pipeline.connections() {
            while submitted < frames && pipeline.can_submit(connection) {
                // Branches are tried until one lives on the connection's shard.
                while batch.len() < transactions {
                    id += 1;
                    key.clear();
                    row.clear();
                    let values = account(id, id, 1);
                    let shard = accounts.write_row(&values, &mut key, &mut row).expect("it fits");
                    if shard == pipeline.shard_of(connection) {
                        batch.begin();
                        batch.insert(accounts.id(), &key, &row).expect("it fits");
                        batch.end().expect("it has an operation");
                    }
                }
                let token = pipeline.submit(connection, &mut batch).expect("it can submit");
                assert_eq!(token.connection, connection);
                submitted += 1;
            }
        }
        let polled = pipeline.poll(Wait::Event, &mut |answer| match answer.result {
            FrameResult::Outcomes { outcomes, .. } => {
                assert_eq!(outcomes.len(), answer.transactions);
                committed += outcomes.iter().filter(|o| o.status.to_native() == 0).count();
            }
            _ => panic!("frame {:?} was lost", answer.token),
        });
        ended += polled.expect("the ring works");
    }
    committed
}

#[test]
fn a_pipeline_drives_many_connections() {
    let node = Node::start(3, Faults::default());
    let mut client = Client::connect(node.address()).expect("connected");
    let accounts = accounts(&mut client);
    let options = PipelineOptions {
        connections: 7,
        frames_in_flight_max: 4,
        ..PipelineOptions::new(node.address())
    };
    let mut pipeline = Pipeline::connect(options).expect("connected");
    assert_eq!(pipeline.welcome().shard_ports.len(), 3);
    assert_eq!((0..7).map(|c| pipeline.shard_of(c)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0]);
    assert_eq!(drive(&mut pipeline, &accounts, 200, 10), 2_000);
    assert_eq!(client.tables().expect("answered")[0].rows, 2_000);
    assert_eq!(node.state().sessions.len(), 7);
    assert!((0..7).all(|connection| pipeline.in_flight(connection) == 0));
    // Nothing in flight: an event is not waited for.
    assert_eq!(pipeline.poll(Wait::Event, &mut |_| {}).expect("the ring works"), 0);
    pipeline.close().expect("closed");
    assert_eq!(node.state().sessions.len(), 0);
}

#[test]
fn a_pipeline_survives_lost_connections_without_losing_or_repeating() {
    let node = Node::start(2, Faults { cut_every: 17, ..Faults::default() });
    let mut client = Client::connect(node.address()).expect("connected");
    let accounts = accounts(&mut client);
    let options = PipelineOptions {
        connections: 3,
        frames_in_flight_max: 8,
        seed: 3,
        ..PipelineOptions::new(node.address())
    };
    let mut pipeline = Pipeline::connect(options).expect("connected");
    assert_eq!(drive(&mut pipeline, &accounts, 150, 5), 750);
    let state = node.state();
    assert_eq!(state.executed, 750);
    assert!(state.repeated > 0);
}

#[test]
fn a_frame_larger_than_a_receive_buffer_is_put_together() {
    let node = Node::start(1, Faults::default());
    let mut client = Client::connect(node.address()).expect("connected");
    let accounts = accounts(&mut client);
    let options =
        PipelineOptions { spread: Spread::Shard(0), ..PipelineOptions::new(node.address()) };
    let mut pipeline = Pipeline::connect(options).expect("connected");
    assert_eq!(drive(&mut pipeline, &accounts, 3, 10_000), 30_000);
}

#[test]
fn without_reconnect_a_lost_connection_ends() {
    let node = Node::start(1, Faults { cut_every: 1, ..Faults::default() });
    let mut client = Client::connect(node.address()).expect("connected");
    let accounts = accounts(&mut client);
    let options = PipelineOptions { reconnect: false, ..PipelineOptions::new(node.address()) };
    let mut pipeline = Pipeline::connect(options).expect("connected");
    let mut batch = Batch::new();
    let mut key = Vec::new();
    accounts.write_key(&self::key(1, 1), &mut key).expect("it fits");
    batch.begin();
    batch.get(accounts.id(), &key).expect("it fits");
    batch.end().expect("it has an operation");
    pipeline.submit(0, &mut batch).expect("free");
    let mut lost = None;
    while lost.is_none() {
        let note = &mut |answer: spillway_net::client::FrameAnswer<'_>| {
            let FrameResult::Unknown(reason) = answer.result else { panic!("it was answered") };
            lost = Some(reason);
        };
        pipeline.poll(Wait::Event, note).expect("the ring works");
    }
    assert_eq!(lost, Some(LossReason::Disconnected));
    assert_eq!(pipeline.ended(0), Some(LossReason::Disconnected));
    assert!(!pipeline.can_submit(0));
}

#[test]
fn a_shard_that_does_not_exist_is_an_error() {
    let node = Node::start(1, Faults::default());
    let options =
        PipelineOptions { spread: Spread::Shard(5), ..PipelineOptions::new(node.address()) };
    assert!(matches!(Pipeline::connect(options), Err(ClientError::ShardUnknown(5))));
    let mut client = Client::connect(node.address()).expect("connected");
    let mut batch = Batch::new();
    batch.begin();
    batch.get(spillway_net::ids::TableId(1), b"k").expect("it fits");
    batch.end().expect("it has an operation");
    assert!(matches!(client.submit(5, &mut batch), Err(ClientError::ShardUnknown(5))));
}
