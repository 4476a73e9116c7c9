//! Named scenarios: elections, hand-over, lost disks, lost peers.

use spillway_net::ids::{Epoch, Lsn, NodeId, WallMicros};

use super::world::{MILLI, World, geometry};
use crate::log::testing::File;
use crate::quorum::{
    CommandRefusal, MemberState, PeerHeader, PeerMessage, ReplicaCommand, ReplicaFailure,
    ReplicaInput, ReplicaRole,
};

/// A cluster in which node 1 leads: the others start later.
fn led_by_one(seed: u64, count: u16) -> World {
    let mut world = World::new(seed, count);
    let leader = world.wait_leader();
    if leader != 1 {
        let to = Some(NodeId(1));
        world.run(100 * MILLI);
        world.command(leader, ReplicaCommand::Transfer { to });
        world.run_until(3_000 * MILLI, "node 1 leads", |world| world.leader() == Some(1));
    }
    world
}

fn status(world: &World, id: u16) -> crate::quorum::ReplicaStatus {
    world.nodes[&id].up.as_ref().expect("it runs").replica.status(world.now())
}

#[test]
fn three_nodes_elect_commit_and_agree() {
    let mut world = World::new(1, 3);
    let leader = world.wait_leader();
    world.run(2_000 * MILLI);
    assert_eq!(world.leader(), Some(leader), "a healthy leader stays");
    assert!(world.oracle.acked.len() > 100, "{} answered", world.oracle.acked.len());
    let report = status(&world, leader);
    assert_eq!((report.role, report.leader), (ReplicaRole::Leader, Some(NodeId(leader))));
    assert!(report.vcl >= report.vdl && report.last >= report.vdl);
    assert!(report.members.iter().all(|member| member.matched > Lsn(0)));
    let follower = (1..=3).find(|id| *id != leader).expect("two of them");
    assert_eq!(status(&world, follower).role, ReplicaRole::Follower);
    world.check_end();
}

#[test]
fn a_single_node_leads_at_once() {
    let mut world = World::new(2, 1);
    let took = world.run_until(100 * MILLI, "it leads", |world| world.leader() == Some(1));
    assert!(took <= 5 * MILLI, "{took} ns");
    world.run(500 * MILLI);
    assert!(world.oracle.acked.len() > 30);
    world.up(1).shards.rounds.clear();
    let next = world.up(1).shards.round_started + 1;
    world.step(1, ReplicaInput::RoundWanted(next));
    let round = world.up(1).replica.rounds.round();
    assert_eq!((round.started, round.confirmed), (next, next), "alone it is sure");
    for _ in 0..5 {
        world.crash(1);
        world.start(1);
        world.run(200 * MILLI);
        assert_eq!(world.leader(), Some(1));
    }
    world.check_end();
}

#[test]
fn a_leader_sends_before_its_disk_and_commits_without_it() {
    let mut world = led_by_one(3, 3);
    world.items_max = world.item;
    world.run(300 * MILLI);
    world.disk_nanos.insert(1, 200 * MILLI);
    let before = world.published(1);
    let item = world.item + 1;
    world.item = item;
    world.keep_sends = true;
    assert!(world.up(1).append(item, 100));
    world.step(1, ReplicaInput::TurnEnd);
    let entries = world.sent.iter().filter(|(from, send)| *from == 1 && send.body.is_some());
    assert_eq!(entries.count(), 2, "both peers get it at once");
    world.run(10 * MILLI);
    assert!(world.published(1) > before && world.oracle.acked.contains(&item));
    assert!(status(&world, 1).scl <= before, "its own disk is not through");
    world.disk_nanos.clear();
    world.check_end();
}

#[test]
fn a_follower_acknowledges_only_what_is_durable() {
    let mut world = led_by_one(4, 3);
    world.items_max = world.item;
    world.run(300 * MILLI);
    // Leader and node 2 have slow disks, node 3 is cut off: nothing can be committed soon.
    for id in [1, 2] {
        world.disk_nanos.insert(id, 100 * MILLI);
    }
    world.cut(1, 3);
    let before = world.published(1);
    let item = world.item + 1;
    world.item = item;
    assert!(world.up(1).append(item, 100));
    world.step(1, ReplicaInput::TurnEnd);
    world.run(40 * MILLI);
    assert_eq!(world.published(1), before, "no quorum is durable");
    world.run(200 * MILLI);
    assert!(world.published(1) > before, "now it is");
    world.check_end();
}

/// T4: truncating a damaged log at its last good block would lose what was committed.
#[test]
fn t4_a_damaged_follower_does_not_elect_a_leader_that_lacks_its_entry() {
    let (mut world, lsn) = damaged_follower(5);
    assert!(world.nodes.get_mut(&2).expect("a node").start(5).is_err(), "it must not start");
    world.net.cut.clear();
    let before = world.oracle.leaders();
    world.run(5_000 * MILLI);
    assert_eq!(world.oracle.leaders(), before, "node 3 alone elects nobody");
    world.start(1);
    world.run_until(5_000 * MILLI, "node 1 leads", |world| world.leader() == Some(1));
    assert!(world.oracle.committed.contains_key(&lsn));
    repair(&mut world, lsn);
    world.start(2);
    world.check_end();
}

/// T4b: the damaged node takes the entry from a peer and only then takes part again.
#[test]
fn t4b_a_damaged_follower_is_repaired_from_a_peer() {
    let (mut world, lsn) = damaged_follower(6);
    assert!(world.nodes.get_mut(&2).expect("a node").start(6).is_err());
    world.start(1);
    world.run(3_000 * MILLI);
    assert_eq!(world.leader(), None, "node 1 alone leads nobody");
    repair(&mut world, lsn);
    world.start(2);
    world.run_until(5_000 * MILLI, "a leader", |world| world.leader().is_some());
    world.net.cut.clear();
    world.check_end();
    assert!(world.oracle.committed.contains_key(&lsn));
}

/// An entry is committed on nodes 1 and 2 only; both lose power, and the entry's last block on node
/// 2 is damaged. Node 3 is cut off.
fn damaged_follower(seed: u64) -> (World, Lsn) {
    let mut world = led_by_one(seed, 3);
    world.items_max = world.item;
    world.run(500 * MILLI);
    world.cut(1, 3);
    world.cut(2, 3);
    let item = world.item + 1;
    world.item = item;
    assert!(world.up(1).append(item, 3000));
    world.step(1, ReplicaInput::TurnEnd);
    let acked = |world: &World| world.oracle.acked.contains(&item);
    world.run_until(50 * MILLI, "answered", acked);
    let lsn = world.oracle.acked_lsn;
    let place = world.up(2).replica.raft.store().index.get(lsn).expect("there").place;
    world.crash(1);
    world.crash(2);
    let plan = place.read_plan(&geometry());
    let disk = &mut world.nodes.get_mut(&2).expect("a node").disk;
    let last = plan.offset as usize + plan.bytes - 512;
    disk.file_mut(File::Segment(plan.segment))[last + 5] ^= 0x10;
    (world, lsn)
}

/// Asks node 1 for the entry and puts it where the damaged one is.
fn repair(world: &mut World, lsn: Lsn) {
    world.keep_sends = true;
    world.step(1, ReplicaInput::PeerConnected(NodeId(2)));
    let header = PeerHeader {
        cluster: crate::log::testing::CLUSTER,
        from: NodeId(2),
        to: NodeId(1),
        term: Epoch(0),
        committed: Lsn(0),
        time: WallMicros(0),
        applied: Lsn(0),
        body_bytes: 0,
        message: PeerMessage::Fetch { lsn },
    };
    world.step(1, ReplicaInput::Peer { from: NodeId(2), header, frame: None });
    world.run(5 * MILLI);
    let reply = world.sent.iter().find_map(|(from, send)| match send.header.message {
        PeerMessage::FetchReply { lsn: at, found: true, .. } if *from == 1 && at == lsn => {
            send.body.clone()
        }
        _ => None,
    });
    let body = reply.expect("node 1 has the entry");
    let place = world.nodes[&1].up.as_ref().expect("it runs").replica.raft.store();
    let frame_bytes = place.index.get(lsn).expect("there").place.bytes;
    // The damaged frame stands where a body of this size and checksum belongs.
    let node = world.nodes.get_mut(&2).expect("a node");
    let (segment, offset) = find_frame(&node.disk.segments, &body).expect("its header is whole");
    assert_eq!(frame_bytes as usize, body.len() + 512);
    node.disk.write(File::Segment(segment), offset + 512, &body);
}

/// Where a local header names the shared checksum of this body.
fn find_frame(segments: &[Vec<u8>], body: &[u8]) -> Option<(u32, u64)> {
    let checksum = &body[8..16];
    for (segment, bytes) in segments.iter().enumerate() {
        for (index, block) in bytes.chunks(512).enumerate() {
            if block[112..120] == *checksum && block[..4] == *b"SPLF" {
                return Some((segment as u32, index as u64 * 512));
            }
        }
    }
    None
}

/// T5: an old leader that does not know that it was replaced confirms no round, and so answers no
/// read, whatever restarts meanwhile.
#[test]
fn t5_an_old_leader_confirms_no_round() {
    let mut asked = 0;
    for seed in 10..20 {
        let mut world = led_by_one(seed, 3);
        world.run(300 * MILLI);
        world.cut(1, 2);
        world.cut(1, 3);
        // A restart inside the lease: the node has forgotten that it heard a leader.
        world.crash(2);
        world.start(2);
        world.step(3, ReplicaInput::PeerLost(NodeId(1)));
        world.step(3, ReplicaInput::PeerConnected(NodeId(1)));
        let other = |world: &World| world.leader().is_some_and(|leader| leader != 1);
        let took = world.run_until(5_000 * MILLI, "a new leader", other);
        let confirmed = world.up(1).replica.rounds.round().confirmed;
        if world.up(1).shards.leading.is_some() {
            asked += 1;
            let next = world.up(1).shards.round_started + 1;
            world.step(1, ReplicaInput::RoundWanted(next));
        }
        world.run(400 * MILLI);
        assert_eq!(world.up(1).replica.rounds.round().confirmed, confirmed, "{took}");
        let leader = world.leader().expect("elected");
        let next = world.up(leader).shards.round_started + 1;
        world.step(leader, ReplicaInput::RoundWanted(next));
        world.run(50 * MILLI);
        assert!(world.up(leader).replica.rounds.round().confirmed >= next);
        world.check_end();
    }
    assert!(asked > 0, "no old leader was left that could be asked");
}

/// T6: a follower whose disk lost what it acknowledged stops; it is not filled up in silence.
#[test]
fn t6_a_follower_that_lost_an_acknowledged_entry_stops() {
    let mut world = led_by_one(20, 3);
    world.run(200 * MILLI);
    world.crash(2);
    let saved = world.nodes[&2].disk.clone();
    world.start(2);
    world.run(300 * MILLI);
    assert!(world.published(2) > Lsn(0));
    world.crash(2);
    world.nodes.get_mut(&2).expect("a node").disk = saved;
    world.start(2);
    world.run(200 * MILLI);
    assert!(world.up(2).shards.failed, "it has noticed");
    let failure = world.up(2).replica.failed;
    assert!(matches!(failure, Some(ReplicaFailure::LogShort { .. })), "{failure:?}");
    let acked = world.oracle.acked.len();
    world.run(500 * MILLI);
    assert!(world.oracle.acked.len() > acked + 20, "the others go on");
    assert_eq!(world.leader(), Some(1));
}

#[test]
fn a_dead_leader_is_replaced_in_a_fraction_of_the_timeout() {
    let mut worst = 0;
    for seed in 30..50 {
        let mut world = World::new(seed, if seed % 2 == 0 { 3 } else { 5 });
        let leader = world.wait_leader();
        world.run(500 * MILLI);
        world.crash(leader);
        let other = |world: &World| world.leader().is_some();
        worst = worst.max(world.run_until(3_000 * MILLI, "a new leader", other));
        world.check_end();
    }
    assert!(worst <= 250 * MILLI, "{} ms", worst / MILLI);
}

/// The follower that must lead notices first, while the other one still believes in the leader.
#[test]
fn a_leader_lost_at_different_times_is_replaced_as_fast() {
    for seed in 400..420 {
        let mut world = led_by_one(seed, 3);
        world.run(300 * MILLI);
        // Node 2 gets what node 3 does not.
        world.cut(1, 3);
        world.run(60 * MILLI);
        assert!(world.up(2).replica.last_index() > world.up(3).replica.last_index());
        world.cut(1, 2);
        world.step(2, ReplicaInput::PeerLost(NodeId(1)));
        let at = world.now;
        world.run((seed - 400) * 5 * MILLI);
        world.step(3, ReplicaInput::PeerLost(NodeId(1)));
        world.net.cut.clear();
        world.crash(1);
        world.run_until(1_000 * MILLI, "node 2 leads", |world| world.leader() == Some(2));
        assert!(world.now - at <= 300 * MILLI, "seed {seed}: {} ms", (world.now - at) / MILLI);
        world.check_end();
    }
}

#[test]
fn a_planned_hand_over_is_short_and_loses_nothing() {
    let mut worst = 0;
    for seed in 50..70 {
        let mut world = World::new(seed, 3);
        let leader = world.wait_leader();
        world.run(500 * MILLI);
        world.command(leader, ReplicaCommand::Transfer { to: None });
        let other = move |world: &World| world.leader().is_some_and(|now| now != leader);
        worst = worst.max(world.run_until(1_000 * MILLI, "another leader", other));
        assert!(world.up(leader).shards.answers.iter().all(|answer| answer.result.is_ok()));
        world.check_end();
    }
    assert!(worst <= 20 * MILLI, "{} us", worst / 1000);
}

#[test]
fn commands_are_refused_with_a_reason() {
    let mut world = led_by_one(70, 3);
    world.run(200 * MILLI);
    world.crash(3);
    let mut ask = |id: u16, command: ReplicaCommand| {
        world.command(id, command);
        world.up(id).shards.answers.pop().expect("answered").result
    };
    let transfer = |to: u16| ReplicaCommand::Transfer { to: Some(NodeId(to)) };
    assert_eq!(ask(2, transfer(1)), Err(CommandRefusal::NotLeader));
    assert_eq!(ask(1, transfer(3)), Err(CommandRefusal::NobodyReady));
    assert_eq!(ask(1, transfer(6)), Err(CommandRefusal::NotVoter(NodeId(6))));
    assert_eq!(ask(1, transfer(1)), Ok(()));
    let replace = |old: u16, new: u16| ReplicaCommand::MemberReplace {
        old: Some(NodeId(old)),
        new: NodeId(new),
    };
    assert_eq!(ask(2, replace(3, 4)), Err(CommandRefusal::NotLeader));
    assert_eq!(ask(1, replace(3, 2)), Err(CommandRefusal::Member(NodeId(2))));
    assert_eq!(ask(1, replace(5, 4)), Err(CommandRefusal::NotVoter(NodeId(5))));
    assert_eq!(ask(1, replace(3, 1000)), Err(CommandRefusal::NodeId(NodeId(1000))));
}

#[test]
fn a_leader_whose_disk_lags_hands_over() {
    let mut world = led_by_one(80, 3);
    world.run(300 * MILLI);
    world.disk_nanos.insert(1, 3_000 * MILLI);
    let other = |world: &World| world.leader().is_some_and(|leader| leader != 1);
    let took = world.run_until(2_000 * MILLI, "another leader", other);
    assert!(took > 400 * MILLI, "not at the first slow write: {} ms", took / MILLI);
    world.check_end();
}

#[test]
fn a_leader_whose_log_fails_hands_over_and_falls_silent() {
    let mut world = led_by_one(81, 3);
    world.run(300 * MILLI);
    world.disk_nanos.insert(1, 20 * MILLI);
    let up = world.up(1);
    assert!(up.append(1_000_000, 100));
    world.step(1, ReplicaInput::TurnEnd);
    let sequence = world.nodes[&1].disk.pending.iter().find(|p| p.id.is_multiple_of(2));
    let sequence = sequence.expect("a frame is on its way").id / 2;
    world.step(1, ReplicaInput::WriteCompleted { sequence, result: Err(5) });
    assert!(world.up(1).shards.poisoned);
    let other = |world: &World| world.leader().is_some_and(|leader| leader != 1);
    world.run_until(1_500 * MILLI, "another leader", other);
    assert_eq!(world.up(1).shards.leading, None);
    // Its events are of no use any more.
    world.crash(1);
    world.check_end();
}

/// Fails the oldest frame that is on its way to a node's disk.
fn fail_write(world: &mut World, id: u16) {
    let pending = &world.nodes[&id].disk.pending;
    let sequences = pending.iter().filter(|write| write.id.is_multiple_of(2)).map(|w| w.id / 2);
    let sequence = sequences.min().expect("a frame is on its way");
    world.step(id, ReplicaInput::WriteCompleted { sequence, result: Err(5) });
    assert!(world.up(id).shards.poisoned);
}

/// A node is elected, and its log fails before its first entry is committed: it must not lead.
#[test]
fn a_node_whose_log_fails_at_its_election_gives_way_at_once() {
    for seed in 420..430 {
        let mut world = led_by_one(seed, 3);
        world.items_max = world.item;
        world.run(300 * MILLI);
        for id in 1..=3 {
            world.disk_nanos.insert(id, 30 * MILLI);
        }
        world.crash(1);
        let elected = |world: &World| {
            let is_elected = |id: &u16| status(world, *id).role == ReplicaRole::Elected;
            [2, 3].iter().copied().find(|id| {
                let pending = &world.nodes[id].disk.pending;
                is_elected(id) && pending.iter().any(|write| write.id.is_multiple_of(2))
            })
        };
        world.run_until(3_000 * MILLI, "an election", |world| elected(world).is_some());
        let failing = elected(&world).expect("just seen");
        fail_write(&mut world, failing);
        world.start(1);
        let other = |world: &World| world.leader().is_some_and(|leader| leader != failing);
        let led = std::cell::Cell::new(false);
        world.run_until(3_000 * MILLI, "another leader", |world| {
            led.set(led.get() || world.leader() == Some(failing));
            other(world)
        });
        assert!(!led.get(), "seed {seed}: it led although it cannot write");
        world.crash(failing);
        world.check_end();
    }
}

/// Without its log a node is of no use to others: once they can do without it, it ends.
#[test]
fn a_node_whose_log_failed_is_through_when_it_does_not_lead() {
    let mut world = led_by_one(83, 3);
    world.run(300 * MILLI);
    let ended = |world: &World, id: u16| {
        world.nodes[&id].up.as_ref().expect("it runs").replica.ended().is_some()
    };
    for id in 1..=3 {
        assert!(!ended(&world, id));
        world.disk_nanos.insert(id, 20 * MILLI);
    }
    world.shard_nanos = 5 * MILLI;
    world.run(100 * MILLI);
    world.run_until(500 * MILLI, "frames on their way", |world| {
        let on_their_way =
            |id: u16| world.nodes[&id].disk.pending.iter().any(|write| write.id.is_multiple_of(2));
        on_their_way(1) && on_their_way(2)
    });
    fail_write(&mut world, 1);
    assert!(!ended(&world, 1), "it leads");
    world.run_until(1_500 * MILLI, "it is through", |world| ended(world, 1));
    assert_eq!(world.up(1).shards.leading, None, "its shards know");
    world.crash(1);
    world.start(1);
    world.run_until(1_500 * MILLI, "a leader", |world| world.leader().is_some());
    world.check_end();
    // A follower has nothing to hand over.
    let leader = world.wait_leader();
    let follower = leader % 3 + 1;
    world.items_max = u64::MAX;
    world.disk_nanos.insert(follower, 20 * MILLI);
    world.run_until(500 * MILLI, "a frame on its way", |world| {
        world.nodes[&follower].disk.pending.iter().any(|write| write.id.is_multiple_of(2))
    });
    fail_write(&mut world, follower);
    assert!(ended(&world, follower));
    world.crash(follower);
    world.check_end();
}

#[test]
fn a_node_that_decides_alone_stays_when_its_log_fails() {
    let mut world = World::new(84, 1);
    world.wait_leader();
    world.run_until(500 * MILLI, "a frame on its way", |world| {
        world.nodes[&1].disk.pending.iter().any(|write| write.id.is_multiple_of(2))
    });
    fail_write(&mut world, 1);
    world.run(3_000 * MILLI);
    assert!(world.up(1).replica.ended().is_none(), "its clients are told");
    world.crash(1);
    world.check_end();
}

#[test]
fn a_drained_leader_gives_way_and_drained_nodes_lead_only_in_need() {
    let mut world = led_by_one(82, 3);
    world.run(200 * MILLI);
    let drain = |world: &mut World, nodes: &[u16]| {
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        for id in 1..=3 {
            if world.is_up(id) {
                world.command(id, ReplicaCommand::Drained(nodes.clone()));
            }
        }
    };
    drain(&mut world, &[1, 2]);
    world.run_until(500 * MILLI, "node 3 leads", |world| world.leader() == Some(3));
    world.run(2_000 * MILLI);
    assert_eq!(world.leader(), Some(3), "the only one left stays");
    assert!(status(&world, 3).members.iter().filter(|member| member.drained).count() == 2);
    world.crash(3);
    world.run_until(3_000 * MILLI, "one must lead", |world| world.leader().is_some());
    world.start(3);
    drain(&mut world, &[1, 2]);
    world.run_until(3_000 * MILLI, "node 3 leads again", |world| world.leader() == Some(3));
    world.check_end();
}

#[test]
fn a_leader_cut_off_from_the_quorum_steps_down_and_its_items_are_not_answered() {
    for seed in 90..100 {
        let mut world = led_by_one(seed, 5);
        world.run(300 * MILLI);
        for id in 2..=5 {
            world.cut(1, id);
        }
        let other = |world: &World| world.leader().is_some_and(|leader| leader != 1);
        world.run_until(3_000 * MILLI, "a new leader", other);
        world.run(1_500 * MILLI);
        assert_eq!(world.up(1).shards.leading, None, "it knows that it lost its quorum");
        world.check_end();
    }
}

#[test]
fn a_bridge_between_two_halves_does_not_stop_the_cluster() {
    // Node 5 hears everybody; 1-2 and 3-4 do not hear each other.
    let mut world = led_by_one(100, 5);
    world.run(300 * MILLI);
    for (a, b) in [(1, 3), (1, 4), (2, 3), (2, 4)] {
        world.cut(a, b);
    }
    world.run(3_000 * MILLI);
    let acked = world.oracle.acked.len();
    world.run(2_000 * MILLI);
    assert!(world.oracle.acked.len() > acked + 50, "it goes on");
    world.check_end();
}

#[test]
fn a_stopped_follower_costs_nothing() {
    let mut world = led_by_one(101, 3);
    world.run(500 * MILLI);
    let healthy = world.oracle.acked.len();
    world.run(1_000 * MILLI);
    let rate = world.oracle.acked.len() - healthy;
    world.paused.insert(3);
    let before = world.oracle.acked.len();
    world.run(1_000 * MILLI);
    let paused = world.oracle.acked.len() - before;
    assert!(paused * 10 >= rate * 9, "{paused} in place of {rate}");
    assert_eq!(world.leader(), Some(1));
    let report = status(&world, 1);
    let state = report.members.iter().find(|member| member.node == NodeId(3));
    assert_eq!(state.map(|member| member.state), Some(MemberState::Unreachable));
    world.check_end();
}

#[test]
fn shutdown_hands_over_and_falls_quiet() {
    let mut world = led_by_one(102, 3);
    world.run(300 * MILLI);
    world.up(1).replica.shutdown();
    let other = |world: &World| world.leader().is_some_and(|leader| leader != 1);
    world.run_until(500 * MILLI, "another leader", other);
    world.items_max = world.item;
    world.run(100 * MILLI);
    assert!(world.up(1).replica.is_quiet());
    world.crash(1);
    world.check_end();
}
