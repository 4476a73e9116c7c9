//! A cluster as its operators see it: nodes that do not belong together, nodes that die, all of
//! them at once, a leader that is asked to hand over.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::cluster::{Clique, Different, seed, under_load};
use common::spillway;
use spillway_net::client::Transaction;
use spillway_net::ids::{ClusterId, NodeId};
use spillway_net::limits::fingerprint;
use spillway_net::message::ClusterReport;
use spillway_net::peer::{
    ClusterKey, Handshake, Hello, LogFormat, MESSAGE_BYTES, Message, Refusal, Step,
};
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;
use spillway_perf::Topology;
use spillway_perf::disturbance::{ALL_KILLED, LEADER_KILLED};
use spillway_perf::probe;

/// Two nodes that belong together, and a third that differs: they must go on without it, and
/// somebody must say why, in these words.
fn a_stranger_is_refused(name: &str, different: Different<'_>, words: &[&str]) {
    let mut clique = Clique::new(name, 3);
    clique.configure(2, different);
    clique.start_all();
    let leader = clique.leader(&[0, 1]);
    let told = clique.wait("refusal with a reason", |clique| {
        (0..3).map(|node| clique.messages(node)).find(|text| {
            let text = text.to_lowercase();
            words.iter().all(|word| text.contains(word))
        })
    });
    eprintln!("{name}: {told}");
    let mut client = clique.client(leader);
    let text = "rows(id int8, primary key (id))";
    let table = client.create_table(&TableDefinition::parse(text).expect("valid")).expect("made");
    let mut insert = Transaction::new();
    insert.insert(&table, &[Value::Int8(1)]).expect("fits");
    assert!(client.execute(&mut insert).expect("answered").is_committed());
    assert!(clique.is_running(2), "a stranger waits until it is mended");
    let stranger = clique.wait("what the stranger says", |clique| clique.report(2));
    assert_ne!(stranger.role, "leader");
    assert_eq!(stranger.vdl, 0, "nothing of the cluster came to it");
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    let id = Some("0000000000000000000000000000beef");
    let different = Different { id, ..Different::default() };
    a_stranger_is_refused("id", different, &["another cluster", "cluster.id"]);
}

#[test]
fn a_node_with_another_key_is_refused() {
    let key = Some(&b"another key for tests, which nobody else has\n"[..]);
    let different = Different { key, ..Different::default() };
    a_stranger_is_refused("key", different, &["keys differ", "cluster.key_file"]);
}

#[test]
fn a_node_with_other_limits_is_refused() {
    let different = Different { node: "partitions = 128", ..Different::default() };
    a_stranger_is_refused("limits", different, &["256 partitions against", "formatted again"]);
}

/// What node 2 answers to somebody who calls itself node 1 and says `hello`, which may be spoilt
/// on the way.
fn refusal_of(
    clique: &Clique,
    hello: impl FnOnce(&mut Hello),
    spoil: impl FnOnce(&mut Message),
) -> Refusal {
    let mut own = Hello {
        cluster: clique.cluster(),
        limits: fingerprint(),
        format: LogFormat { block_bytes: 4096, batch_bytes_max: 1 << 20, partitions: 256 },
        node: NodeId(1),
        boot: 1,
        instance: 7,
        is_founded: false,
    };
    hello(&mut own);
    let key = ClusterKey::new(&clique.key()).expect("a key");
    let (mut handshake, mut first) = Handshake::initiator(own, NodeId(2), key, &[9; 32]);
    spoil(&mut first);
    let mut stream =
        clique.wait("listener", |clique| TcpStream::connect(clique.peer_address(1)).ok());
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    stream.write_all(&first).expect("sent");
    let mut answer: Message = [0; MESSAGE_BYTES];
    stream.read_exact(&mut answer).expect("an answer before the end");
    let Step::RefusedByPeer(refusal) = handshake.receive(&answer, &mut |_| Ok(())) else {
        panic!("it was let in");
    };
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "the connection ends");
    refusal
}

#[test]
fn strangers_at_the_door_are_told_why() {
    let mut clique = Clique::new("door", 3);
    clique.format(1);
    clique.start(1);
    let other = ClusterId(0xBEEF);
    let refusal = refusal_of(&clique, |hello| hello.cluster = other, |_| ());
    let refuser = clique.cluster();
    assert_eq!(refusal, Refusal::Cluster { refuser, refused: other });
    let refusal = refusal_of(&clique, |hello| hello.limits ^= 1, |_| ());
    let (refuser, refused) = (fingerprint(), fingerprint() ^ 1);
    assert_eq!(refusal, Refusal::Limits { refuser, refused });
    let refusal = refusal_of(&clique, |_| (), |message| message[4] = 77);
    let Refusal::Version { .. } = refusal else { panic!("{refusal:?}") };
    let refusal = refusal_of(&clique, |_| (), |message| message[20] ^= 1);
    assert_eq!(refusal, Refusal::Protocol, "a flipped bit is no message");
    clique.wait("reasons for the operator", |clique| {
        let text = clique.messages(1);
        let reasons = ["of another cluster", "limits fingerprint", "protocol version"];
        reasons.iter().all(|reason| text.contains(reason)).then_some(())
    });
    assert!(clique.is_running(1));
    assert_eq!(clique.report(1).expect("it serves whoever asks").leader, 0);
}

#[test]
fn a_cluster_survives_the_kill_of_any_node() {
    let seed = seed("a_cluster_survives_the_kill_of_any_node");
    let report = under_load(seed, "", Topology::default(), |field| {
        field.progress_wait()?;
        // Each by its number, and whoever leads then.
        for node in 0..3 {
            field.kill(&[node])?;
            field.progress_wait()?;
            field.restart()?;
            field.caught_up_wait()?;
            field.leader_kill()?;
        }
        Ok(())
    });
    assert_eq!(report.events.len(), 6);
    assert!(report.events.iter().filter(|event| event.kind == LEADER_KILLED).count() >= 3);
}

#[test]
fn a_cluster_survives_the_kill_of_all_nodes() {
    let seed = seed("a_cluster_survives_the_kill_of_all_nodes");
    let report = under_load(seed, "", Topology::default(), |field| {
        for _ in 0..3 {
            field.progress_wait()?;
            field.sleep(Duration::from_millis(100))?;
            field.kill(&[0, 1, 2])?;
            field.restart()?;
            field.progress_wait()?;
            field.caught_up_wait()?;
        }
        Ok(())
    });
    assert_eq!(report.events.len(), 3);
    assert!(report.events.iter().all(|event| event.kind == ALL_KILLED));
}

#[test]
fn five_nodes_survive_the_kill_of_any_two() {
    let seed = seed("five_nodes_survive_the_kill_of_any_two");
    let report = under_load(seed, "--nodes 5", Topology::default(), |field| {
        field.progress_wait()?;
        for at in 0..5 {
            field.kill(&[at, (at + 2) % 5])?;
            field.progress_wait()?;
            field.restart()?;
            field.caught_up_wait()?;
        }
        Ok(())
    });
    assert_eq!(report.agreement.expect("compared").nodes.len(), 5);
}

#[test]
fn a_paused_leader_is_replaced_and_comes_back_as_a_follower() {
    let seed = seed("a_paused_leader_is_replaced_and_comes_back_as_a_follower");
    // The client must not wait for the leader that stands still until somebody wakes it.
    let report = under_load(seed, "", Topology::default(), |field| {
        field.progress_wait()?;
        for _ in 0..3 {
            let old = field.cluster.leader_wait()?;
            field.cluster.pause(old)?;
            let next = field.cluster.wait("the election of another leader", |cluster| {
                cluster.leader().filter(|next| *next != old)
            })?;
            field.cluster.resume(old)?;
            field.progress_wait()?;
            field.caught_up_wait()?;
            field.say(format!("node {} took over from node {}", next + 1, old + 1));
        }
        Ok(())
    });
    assert!(report.total.committed > 0);
}

/// The log disk of a node takes nothing any more: it says so and ends, whether it leads or not,
/// the others go on, and with a disk that works it is one of them again.
#[test]
fn a_node_whose_log_fails_ends_and_the_others_go_on() {
    let mut clique = Clique::new("log-fails", 3);
    clique.start_all();
    for round in 0..4 {
        let leader = clique.leader(&[0, 1, 2]);
        let all_follow = |clique: &Clique| {
            let lsn = clique.report(leader)?.vdl;
            let has = |node: usize| clique.report(node).is_some_and(|it| it.vdl >= lsn);
            (0..3).all(has).then_some(())
        };
        clique.wait("agreement", all_follow);
        let node = (leader + round % 2) % 3;
        clique.log_fail(node);
        let definition = |number: usize| {
            let text = format!("rows_{round}_{number}(id int8, primary key (id))");
            TableDefinition::parse(&text).expect("valid")
        };
        // The leader may end before it answers.
        drop(clique.client(leader).create_table(&definition(1)));
        assert!(!clique.wait_end(node), "it did not end in order");
        let told = clique.messages(node);
        for words in ["the others go on", "log device failed", "File too large", "replace-node"] {
            assert!(told.contains(words), "{words} is missing in: {told}");
        }
        let others: Vec<usize> = (0..3).filter(|other| *other != node).collect();
        let next = clique.leader(&others);
        clique.client(next).create_table(&definition(2)).expect("the others go on");
        clique.start(node);
    }
}

#[test]
fn the_leader_hands_over_when_asked() {
    let seed = seed("the_leader_hands_over_when_asked");
    let report = under_load(seed, "", Topology::default(), |field| {
        field.progress_wait()?;
        for _ in 0..10 {
            field.hand_over()?;
        }
        field.caught_up_wait()
    });
    assert_eq!(report.events.len(), 10);
}

#[test]
fn every_node_shows_the_cluster() {
    let mut clique = Clique::new("status", 3);
    clique.start_all();
    let leader = clique.leader(&[0, 1, 2]);
    let reports: Vec<ClusterReport> = clique.wait("agreement on the leader", |clique| {
        let reports: Option<Vec<ClusterReport>> = (0..3).map(|node| clique.report(node)).collect();
        reports.filter(|all| all.iter().all(|one| usize::from(one.leader) == leader + 1))
    });
    for (node, report) in reports.iter().enumerate() {
        assert_eq!(usize::from(report.node), node + 1);
        assert_eq!(report.members.len(), 3, "{report:?}");
        assert_eq!(report.role == "leader", node == leader);
        let numbers = probe::status(clique.address(node)).expect("it answers");
        assert!(numbers.contains_key("digest_all") && numbers.contains_key("applied_lsn"));
        for command in ["status", "zones"] {
            let address = clique.address(node).to_string();
            let output = spillway(&["admin", command, "--node", &address]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(!text.is_empty(), "{command}");
            assert!(command != "zones" || text.contains("leader"), "{text}");
        }
    }
    let address = clique.address(leader).to_string();
    let output = spillway(&["admin", "transfer", "--node", &address]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    clique.wait("another leader", |clique| {
        let report = clique.report(leader)?;
        (report.leader != 0 && usize::from(report.leader) != leader + 1).then_some(())
    });
}
