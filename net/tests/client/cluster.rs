//! The client's two faces against several nodes on real sockets.

use spillway_net::client::{
    Batch, Client, ClientError, ClientOptions, Follow, FrameAnswer, FrameResult, FrameToken,
    Freshness, LossReason, Pipeline, PipelineOptions, TableHandle, Transaction, Wait,
};
use spillway_net::ids::Lsn;
use spillway_net::message::{OutcomeStatus, RefusalCode};

use crate::node::{Faults, Node};
use crate::{account, accounts, drive, key};

fn addresses(nodes: &[Node]) -> Vec<String> {
    nodes.iter().map(|node| node.address().to_string()).collect()
}

fn connect(nodes: &[Node]) -> Client {
    Client::connect_with(ClientOptions::cluster(addresses(nodes))).expect("connected")
}

fn insert(client: &mut Client, accounts: &TableHandle, id: i64) -> Result<bool, ClientError> {
    let mut insert = Transaction::new();
    insert.insert(accounts, &account(id, id, 1)).expect("it fits");
    client.execute(&mut insert).map(|outcome| outcome.is_committed())
}

#[test]
fn a_client_follows_the_leader() {
    let nodes = Node::cluster(3, 2, Faults::default());
    // One address is enough, and it may be a follower's.
    let mut client = connect(&nodes[2..]);
    assert_eq!(client.welcome().node, 1);
    assert_eq!(client.nodes().len(), 3);
    let accounts = accounts(&mut client);
    for id in 0..30 {
        {
            let mut state = nodes[0].state();
            match id {
                10 => state.elect(2),
                20 => {
                    state.elect(3);
                    state.down = vec![1, 2];
                }
                _ => {}
            }
        }
        assert!(insert(&mut client, &accounts, id).expect("answered"), "row {id}");
    }
    assert_eq!(nodes[0].state().executed, 30);
    assert_eq!(client.welcome().node, 3);
    client.close().expect("closed");
    assert_eq!(nodes[0].state().sessions.len(), 0);
}

#[test]
fn a_dead_address_does_no_harm() {
    let nodes = Node::cluster(3, 1, Faults::default());
    nodes[0].state().down = vec![1];
    nodes[0].state().elect(2);
    let mut client = connect(&nodes);
    assert_eq!(client.welcome().node, 2);
    accounts(&mut client);
    nodes[0].state().down = vec![1, 2, 3];
    let options = ClientOptions::cluster(addresses(&nodes));
    let error = Client::connect_with(options).expect_err("all are down");
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    let text = error.to_string();
    assert!(addresses(&nodes).iter().all(|address| text.contains(address)), "{text}");
}

#[test]
fn a_cluster_without_a_leader_is_a_helpful_error() {
    let nodes = Node::cluster(3, 1, Faults::default());
    nodes[0].state().elect(0);
    let error = Client::connect(nodes[1].address()).expect_err("nobody leads");
    assert!(matches!(error, ClientError::NoLeader { .. }), "{error}");
    assert!(error.to_string().contains("admin zones"), "{error}");
}

#[test]
fn a_transaction_that_lost_two_leaders_is_resolved() {
    let nodes = Node::cluster(3, 2, Faults::default());
    let mut client = connect(&nodes);
    let accounts = accounts(&mut client);
    assert!(insert(&mut client, &accounts, 1).expect("answered"));
    assert!(matches!(client.resolve(), Err(ClientError::NotUnresolved)));
    nodes[0].state().faults.elect_every = 1;
    let unknown = insert(&mut client, &accounts, 2);
    assert!(matches!(unknown, Err(ClientError::Unknown(LossReason::LeadersLost))), "{unknown:?}");
    // Still no luck.
    let unknown = client.resolve();
    assert!(matches!(unknown, Err(ClientError::Unknown(LossReason::LeadersLost))), "{unknown:?}");
    nodes[0].state().faults.elect_every = 0;
    let outcomes = client.resolve().expect("answered");
    assert_eq!(outcomes.iter().map(|o| o.status).collect::<Vec<_>>(), [OutcomeStatus::Committed]);
    assert!(matches!(client.resolve(), Err(ClientError::NotUnresolved)));
    assert_eq!(nodes[0].state().executed, 2);
    // A second insert of the row would be a duplicate: it was the first outcome.
    assert!(!insert(&mut client, &accounts, 2).expect("answered"));
}

#[test]
fn a_time_out_is_resolved_too() {
    let nodes = Node::cluster(1, 1, Faults::default());
    let options = ClientOptions {
        request_timeout_ms: 50,
        give_up_ms: 300,
        ..ClientOptions::cluster(addresses(&nodes))
    };
    let mut client = Client::connect_with(options).expect("connected");
    let accounts = accounts(&mut client);
    nodes[0].state().faults.is_silent = true;
    let unknown = insert(&mut client, &accounts, 1);
    assert!(matches!(unknown, Err(ClientError::Unknown(LossReason::GaveUp))), "{unknown:?}");
    nodes[0].state().faults.is_silent = false;
    assert!(client.resolve().expect("answered")[0].is_committed());
    assert_eq!(nodes[0].state().executed, 1);
}

#[test]
fn reads_at_a_follower_see_own_writes() {
    let nodes = Node::cluster(3, 2, Faults::default());
    let mut writer = connect(&nodes);
    let accounts = accounts(&mut writer);
    assert!(insert(&mut writer, &accounts, 7).expect("answered"));
    assert!(writer.lsn() > Lsn(0));
    let follow = Follow::Any;
    let options = ClientOptions { follow, ..ClientOptions::new(nodes[2].address()) };
    let mut reader = Client::connect_with(options.clone()).expect("connected");
    assert_eq!(reader.welcome().node, 3);
    nodes[0].state().faults.behind_first = 4;
    nodes[0].state().served.clear();
    let at = Freshness::AtLsn(writer.lsn());
    let found = reader.get_at(&accounts, &key(7, 7), at).expect("answered");
    assert_eq!(found.expect("it was inserted").values, account(7, 7, 1));
    let served = nodes[0].state().served.clone();
    assert_eq!(served, [3, 3, 3, 1], "after some tries another one was asked");
    // At a follower there is nothing but such reads.
    let mut strict = Client::connect_with(options.clone()).expect("connected");
    let refused = strict.get(&accounts, &key(7, 7));
    let code = RefusalCode::NotLeader;
    assert!(matches!(refused, Err(ClientError::Refused { code: c, .. }) if c == code));
    let refused = insert(&mut strict, &accounts, 8);
    assert!(matches!(refused, Err(ClientError::Refused { code: c, .. }) if c == code));
    // Nobody is fresh enough: told, not waited for without end.
    nodes[0].state().faults.behind_first = u64::MAX;
    let impatient = ClientOptions { behind_ms: 20, ..options };
    let mut reader = Client::connect_with(impatient).expect("connected");
    nodes[0].state().elect(0);
    let behind = reader.get_at(&accounts, &key(7, 7), at);
    assert!(matches!(behind, Err(ClientError::NotCommitted(OutcomeStatus::Behind))), "{behind:?}");
}

#[test]
fn a_pipeline_follows_the_leader_without_losing_or_repeating() {
    let nodes = Node::cluster(3, 2, Faults::default());
    let mut client = connect(&nodes);
    let accounts = accounts(&mut client);
    let options = PipelineOptions {
        connections: 6,
        frames_in_flight_max: 8,
        leaders_lost_max: usize::MAX,
        ..PipelineOptions::cluster(addresses(&nodes[1..]))
    };
    let mut pipeline = Pipeline::connect(options).expect("connected");
    nodes[0].state().faults.elect_every = 41;
    assert_eq!(drive(&mut pipeline, &accounts, 400, 5), 2_000);
    let state = nodes[0].state();
    assert_eq!(state.executed, 2_000);
    assert!(state.epoch > 5 && state.repeated > 0, "{} terms", state.epoch);
    drop(state);
    assert!(pipeline.nodes().leader().is_some_and(|(_, epoch)| epoch > 5));
    assert!(pipeline.lsn() > Lsn(0));
    pipeline.close().expect("closed");
}

/// Polls until a frame has ended.
fn end_of(pipeline: &mut Pipeline, token: FrameToken) -> Result<usize, LossReason> {
    let mut end = None;
    while end.is_none() {
        let take = &mut |answer: FrameAnswer<'_>| {
            assert_eq!(answer.token, token);
            end = Some(match answer.result {
                FrameResult::Outcomes { outcomes, .. } => Ok(outcomes.len()),
                FrameResult::Unknown(reason) => Err(reason),
                _ => panic!("neither answered nor unknown"),
            });
        };
        pipeline.poll(Wait::Event, take).expect("the ring works");
    }
    end.expect("the loop ends with it")
}

#[test]
fn a_pipeline_resolves_what_lost_two_leaders() {
    let nodes = Node::cluster(3, 1, Faults::default());
    let mut client = connect(&nodes);
    let accounts = accounts(&mut client);
    let mut pipeline =
        Pipeline::connect(PipelineOptions::cluster(addresses(&nodes))).expect("connected");
    nodes[0].state().faults.elect_every = 1;
    let (mut key, mut row) = (Vec::new(), Vec::new());
    accounts.write_row(&account(1, 1, 1), &mut key, &mut row).expect("it fits");
    let mut batch = Batch::new();
    batch.begin();
    batch.insert(accounts.id(), &key, &row).expect("it fits");
    batch.end().expect("it has an operation");
    let token = pipeline.submit(0, &mut batch).expect("free");
    assert_eq!(end_of(&mut pipeline, token), Err(LossReason::LeadersLost));
    assert_eq!(pipeline.unresolved(0).collect::<Vec<_>>(), [token]);
    nodes[0].state().faults.elect_every = 0;
    let again = pipeline.resolve(token).expect("it is kept");
    assert_eq!(end_of(&mut pipeline, again), Ok(1));
    assert_eq!(nodes[0].state().executed, 1);
    assert_eq!(pipeline.node_of(0), Some((3, nodes[0].state().epoch)));
}

#[test]
fn a_pipeline_of_readers_needs_no_sessions() {
    let nodes = Node::cluster(2, 2, Faults::default());
    let mut client = connect(&nodes);
    let accounts = accounts(&mut client);
    let options = PipelineOptions {
        connections: 4,
        follow: Follow::Any,
        ..PipelineOptions::new(nodes[1].address())
    };
    let mut pipeline = Pipeline::connect(options).expect("connected");
    assert_eq!(nodes[0].state().sessions.len(), 0);
    let mut encoded = Vec::new();
    let shard = accounts.write_key(&key(1, 1), &mut encoded).expect("it fits");
    let mut batch = Batch::new();
    batch.begin();
    batch.get(accounts.id(), &encoded).expect("it fits");
    batch.end().expect("it has an operation");
    batch.set_freshness(Freshness::Stale(std::time::Duration::from_secs(1)));
    let connection = (0..4).find(|at| pipeline.shard_of(*at) == shard).expect("round robin");
    let token = pipeline.submit(connection, &mut batch).expect("free");
    assert_eq!(end_of(&mut pipeline, token), Ok(1));
    assert_eq!(nodes[0].state().served, [2]);
    pipeline.close().expect("closed");
}
