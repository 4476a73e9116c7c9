//! Who is a member, who leads, and who serves which reads.

mod common;

use std::time::Duration;

use common::cluster::{Clique, Different};
use common::raw::{Raw, frame_of, submit_of};
use common::spillway;
use spillway_net::client::{Client, ClientOptions, Follow, Freshness, TableHandle, Transaction};
use spillway_net::frame::FrameKind;
use spillway_net::message::{OperationKind, ReadMode, RefusalCode};
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;
use spillway_perf::probe::{self, Probe};

/// A client of a table of numbers, made at the node that leads.
fn table_of(clique: &Clique, leader: usize) -> (Client, TableHandle) {
    let mut client = clique.client(leader);
    let text = "numbers(id int8, value int8, primary key (id))";
    let definition = TableDefinition::parse(text).expect("a valid definition");
    let table = client.create_table(&definition).expect("created");
    (client, table)
}

fn insert(client: &mut Client, table: &TableHandle, id: i64) {
    let mut transaction = Transaction::new();
    transaction.insert(table, &[Value::Int8(id), Value::Int8(id * id)]).expect("fits");
    assert!(client.execute(&mut transaction).expect("answered").is_committed(), "row {id}");
}

fn admin(clique: &Clique, node: usize, arguments: &[&str]) {
    let address = clique.address(node).to_string();
    let output = spillway(&[&["admin"], arguments, &["--node", &address]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A client that stays with the node it was given.
fn reader(clique: &Clique, node: usize) -> Client {
    let mut options = ClientOptions::new(clique.address(node));
    options.follow = Follow::Any;
    options.behind_ms = 60_000;
    Client::connect_with(options).expect("connected")
}

#[test]
fn a_new_node_takes_the_place_of_one_that_lost_its_disk() {
    let mut clique = Clique::new("replace", 4);
    let founders = Different { founders: Some(3), ..Different::default() };
    for node in 0..4 {
        clique.configure(node, founders);
    }
    clique.start_all();
    let leader = clique.leader(&[0, 1, 2]);
    let (mut client, table) = table_of(&clique, leader);
    (0..100).for_each(|id| insert(&mut client, &table, id));
    let lost = (leader + 1) % 3;
    clique.kill(lost);
    let (old, peer, address) =
        ((lost + 1).to_string(), clique.peer_address(3).to_string(), clique.address(3).to_string());
    let new = ["--new", "4", "--peer-address", &peer, "--address", &address];
    admin(&clique, leader, &[&["replace-node", "--old", &old][..], &new[..]].concat());
    clique.wait("a voter that has everything", |clique| {
        let report = clique.report(leader)?;
        let member = report.members.iter().find(|member| member.node == 4)?;
        let gone = report.members.iter().all(|member| usize::from(member.node) != lost + 1);
        (gone && member.kind == "voter" && member.matched >= report.vdl).then_some(())
    });
    (100..200).for_each(|id| insert(&mut client, &table, id));
    // Of the first members only one is left: without the new node's vote nobody could lead.
    let other = (0..3).find(|node| *node != leader && *node != lost).expect("three nodes");
    clique.kill(leader);
    let now = clique.leader(&[other, 3]);
    let mut client = clique.client(now);
    let table = client.table("numbers").expect("known");
    for id in 0..200 {
        let row = client.get(&table, &[Value::Int8(id)]).expect("answered");
        assert!(row.is_some(), "row {id} is there after the replacement");
    }
    insert(&mut client, &table, 200);
}

/// The nodes whose addresses a node knows, and tells its clients.
fn known(clique: &Clique, node: usize) -> Option<Vec<u16>> {
    let probe = Probe::connect(clique.address(node)).ok()?;
    Some(probe.welcome().members.iter().map(|member| member.node).collect())
}

#[test]
fn a_node_that_was_replaced_is_forgotten_for_good() {
    let mut clique = Clique::new("forget", 4);
    let founders = Different { founders: Some(3), ..Different::default() };
    for node in 0..4 {
        clique.configure(node, founders);
    }
    clique.start_all();
    let leader = clique.leader(&[0, 1, 2]);
    let (mut client, _) = table_of(&clique, leader);
    let lost = (leader + 1) % 3;
    let other = (leader + 2) % 3;
    clique.kill(lost);
    let (old, peer, address) =
        ((lost + 1).to_string(), clique.peer_address(3).to_string(), clique.address(3).to_string());
    let new = ["--new", "4", "--peer-address", &peer, "--address", &address];
    admin(&clique, leader, &[&["replace-node", "--old", &old][..], &new[..]].concat());
    let mut left: Vec<u16> = vec![leader as u16 + 1, other as u16 + 1, 4];
    left.sort_unstable();
    let is_left = |clique: &Clique, node| (known(clique, node)? == left).then_some(());
    clique.wait("the leader to forget the node", |clique| is_left(clique, leader));
    // What is committed later shows what the root service did meanwhile.
    let create = |client: &mut Client, name: &str| {
        let text = format!("{name}(id int8, primary key (id))");
        let definition = TableDefinition::parse(&text).expect("a valid definition");
        client.create_table(&definition).expect("created");
    };
    create(&mut client, "second");
    assert_eq!(known(&clique, leader), Some(left.clone()));
    // The configuration of this one still names the node.
    assert!(clique.stop(other));
    clique.start(other);
    clique.wait("a follower to forget it", |clique| is_left(clique, other));
    clique.wait("a leader with that configuration", |clique| {
        if clique.leader(&[0, 1, 2, 3]) == other {
            return Some(());
        }
        let now = clique.leader(&[0, 1, 2, 3]);
        let to = (other + 1).to_string();
        let address = clique.address(now).to_string();
        spillway(&["admin", "transfer", "--to", &to, "--node", &address]);
        None
    });
    let mut client = clique.client(other);
    create(&mut client, "third");
    for node in [leader, other, 3] {
        clique.wait("nobody to know it", |clique| is_left(clique, node));
    }
}

/// Transactions that a node itself has served, reads included.
fn served(clique: &Clique, node: usize) -> u64 {
    probe::status(clique.address(node)).expect("it answers")["transactions_committed"]
}

/// What a node says to a read that need not be strong.
fn read_refused(clique: &Clique, node: usize) -> Option<RefusalCode> {
    let mut raw = Raw::greeted(clique.address(node), 0);
    let mut submit = submit_of(1, &[(OperationKind::Get, 1, 0, &[0; 8], &[])]);
    submit.read_mode = ReadMode::AtLsn as u8;
    raw.send(&frame_of(FrameKind::Submit, 2, &submit));
    let answer = raw.answer();
    (answer.kind == FrameKind::Refusal).then(|| answer.refusal().0)
}

#[test]
fn a_follower_serves_reads_that_need_not_be_strong() {
    let mut clique = Clique::new("reads", 3);
    clique.start_all();
    let leader = clique.leader(&[0, 1, 2]);
    let (mut client, table) = table_of(&clique, leader);
    insert(&mut client, &table, 7);
    let written = client.lsn();
    let follower = (leader + 1) % 3;
    let mut reader = reader(&clique, follower);
    let table = clique.wait("the table on the follower", |_| reader.table("numbers").ok());
    let key = [Value::Int8(7)];
    let before = served(&clique, follower);
    for freshness in [Freshness::AtLsn(written), Freshness::Stale(Duration::from_secs(5))] {
        let row = reader.get_at(&table, &key, freshness).expect("served by a follower");
        assert!(row.is_some(), "{freshness:?}");
    }
    assert_eq!(served(&clique, follower), before + 2, "the follower itself served both");
    // No follower is as fresh as that: the client goes on to the leader.
    let row = reader.get_at(&table, &key, Freshness::Stale(Duration::ZERO)).expect("served");
    assert!(row.is_some());
}

#[test]
fn a_drained_node_neither_leads_nor_serves_reads_until_it_is_undrained() {
    let mut clique = Clique::new("drain", 3);
    clique.start_all();
    let leader = clique.leader(&[0, 1, 2]);
    let (mut client, table) = table_of(&clique, leader);
    insert(&mut client, &table, 1);
    let written = client.lsn();
    let name = (leader + 1).to_string();
    // The leader writes the members into the log first.
    clique.wait("the drain", |clique| {
        let address = clique.address(leader).to_string();
        spillway(&["admin", "drain", &name, "--node", &address]).status.success().then_some(())
    });
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    let next = clique.leader(&others);
    clique.wait("what is drained to be known to all", |clique| {
        let shows = |node: usize| {
            let report = clique.report(node)?;
            let member = report.members.iter().find(|m| usize::from(m.node) == leader + 1)?;
            member.drained.then_some(())
        };
        (0..3).map(shows).collect::<Option<Vec<()>>>()
    });
    assert_eq!(read_refused(&clique, leader), Some(RefusalCode::Drained));
    assert_eq!(read_refused(&clique, next), None, "the others go on serving");
    assert_ne!(clique.report(leader).expect("it answers").role, "leader");
    insert(&mut client, &table, 2);
    clique.kill(others.into_iter().find(|node| *node != next).expect("three nodes"));
    // It goes on voting: with it there is still a majority.
    insert(&mut client, &table, 3);
    admin(&clique, next, &["undrain", &name]);
    let again = |clique: &Clique| read_refused(clique, leader).is_none().then_some(());
    clique.wait("the end of the drain", again);
    let mut reader = reader(&clique, leader);
    let table = reader.table("numbers").expect("known");
    let before = served(&clique, leader);
    let row = reader.get_at(&table, &[Value::Int8(1)], Freshness::AtLsn(written));
    assert!(row.expect("served").is_some());
    assert!(served(&clique, leader) > before, "it serves reads again itself");
}
