//! Changes of members.

use spillway_net::ids::{Lsn, NodeId};
use spillway_net::limits::NODES_MAX;

use super::node::SimNode;
use super::world::{MILLI, World, geometry};
use crate::log::testing::SeedReport;
use crate::log::{FrameKind, Members};
use crate::quorum::{
    CommandRefusal, MemberKind, ReplicaCommand, ReplicaFailure, ReplicaInput, ReplicaStart,
};

fn replace(old: u16, new: u16) -> ReplicaCommand {
    ReplicaCommand::MemberReplace { old: Some(NodeId(old)), new: NodeId(new) }
}

/// A node that joins: formatted without members.
fn join(world: &mut World, id: u16) {
    let node = SimNode::new(geometry(), NodeId(id), Members::default());
    world.nodes.insert(id, node);
    world.start(id);
}

fn voters(world: &World, id: u16) -> Vec<u16> {
    let membership = &world.nodes[&id].up.as_ref().expect("it runs").replica.membership;
    let voters = if membership.is_joint() { &[] } else { membership.voters() };
    voters.iter().map(|node| node.0).collect()
}

#[test]
fn a_lost_node_is_replaced() {
    let mut world = World::new(200, 3);
    let leader = world.wait_leader();
    world.run(500 * MILLI);
    let old = leader % 3 + 1;
    world.crash(old);
    world.nodes.remove(&old);
    join(&mut world, 4);
    world.command(leader, replace(old, 4));
    assert!(world.up(leader).shards.answers.iter().all(|answer| answer.result.is_ok()));
    let mut wanted: Vec<u16> = (1..=4).filter(|id| *id != old).collect();
    let all = wanted.clone();
    world.run_until(3_000 * MILLI, "all know the new voters", |world| {
        all.iter().all(|id| voters(world, *id) == all)
    });
    world.run(300 * MILLI);
    // The new node counts: with another one gone it elects and commits.
    wanted.retain(|id| *id != leader && *id != 4);
    world.crash(wanted[0]);
    let acked = world.oracle.acked.len();
    world.run(1_500 * MILLI);
    assert!(world.oracle.acked.len() > acked + 50);
    world.start(wanted[0]);
    world.check_end();
    for id in [4, leader] {
        world.crash(id);
        world.start(id);
    }
    world.check_end();
    assert_eq!(voters(&world, 4), all, "read back from the log");
}

/// A connection to the new node that breaks when it has the whole log does not keep it from voting,
/// though nothing more is written that it could acknowledge.
#[test]
fn a_new_node_that_has_everything_votes_without_another_write() {
    let mut world = World::new(202, 3);
    let leader = world.wait_leader();
    world.run(300 * MILLI);
    world.items_max = world.item;
    world.run(300 * MILLI);
    let old = leader % 3 + 1;
    join(&mut world, 4);
    world.command(leader, replace(old, 4));
    world.step(leader, ReplicaInput::TurnEnd);
    let mut steps = 0;
    loop {
        let replica = &world.up(leader).replica;
        if replica.membership.replacement().is_some() && replica.matched(NodeId(4)) > 0 {
            let (has, last) = (replica.matched(NodeId(4)), replica.last_index());
            assert!(!replica.membership.is_joint(), "seen before it votes");
            if has == last {
                break;
            }
        }
        world.run(MILLI / 20);
        steps += 1;
        assert!(steps < 20_000, "it gets the log");
    }
    world.reconnect(leader, 4);
    let all: Vec<u16> = (1..=4).filter(|id| *id != old).collect();
    world.run_until(3_000 * MILLI, "the new voters", |world| voters(world, leader) == all);
    world.items_max = u64::MAX;
    world.check_end();
}

/// A drained node leads when nobody else can, and then sees to what a leader has to.
#[test]
fn a_replacement_ends_where_all_voters_are_drained() {
    for leader_leaves in [false, true] {
        let mut world = World::new(203, 3);
        let leader = world.wait_leader();
        world.run(300 * MILLI);
        let drained: Vec<NodeId> = (1..=3).map(NodeId).collect();
        for id in 1..=3 {
            world.command(id, ReplicaCommand::Drained(drained.clone()));
        }
        let old = if leader_leaves { leader } else { leader % 3 + 1 };
        join(&mut world, 4);
        world.command(leader, replace(old, 4));
        let all: Vec<u16> = (1..=4).filter(|id| *id != old).collect();
        let through = |world: &World| world.leader().is_some_and(|at| voters(world, at) == all);
        world.run_until(5_000 * MILLI, "the new voters", through);
        let acked = world.oracle.acked.len();
        world.run(500 * MILLI);
        assert!(world.oracle.acked.len() > acked, "it goes on");
    }
}

#[test]
fn a_leader_that_is_replaced_hands_over_first() {
    let mut world = World::new(201, 3);
    let leader = world.wait_leader();
    world.run(300 * MILLI);
    join(&mut world, 5);
    world.command(leader, replace(leader, 5));
    let all: Vec<u16> = [1, 2, 3, 5].into_iter().filter(|id| *id != leader).collect();
    world.run_until(5_000 * MILLI, "the others know", |world| {
        all.iter().all(|id| voters(world, *id) == all)
    });
    assert!(world.leader().is_some_and(|now| now != leader));
    let kind = |world: &World, id: u16| {
        let membership = &world.nodes[&all[0]].up.as_ref().expect("it runs").replica.membership;
        membership.kind(NodeId(id))
    };
    assert_eq!(kind(&world, leader), None);
    assert_eq!(kind(&world, 5), Some(MemberKind::Voter));
    world.crash(leader);
    world.nodes.remove(&leader);
    world.check_end();
}

#[test]
fn a_single_node_grows_to_three() {
    let mut world = World::new(202, 1);
    world.wait_leader();
    world.run(300 * MILLI);
    for new in [2, 3] {
        join(&mut world, new);
        let command = ReplicaCommand::MemberReplace { old: None, new: NodeId(new) };
        world.command(1, command);
        world.run_until(3_000 * MILLI, "it votes", |world| {
            voters(world, 1).len() == usize::from(new)
        });
    }
    world.run(300 * MILLI);
    world.crash(1);
    world.run_until(3_000 * MILLI, "the new ones lead", |world| world.leader().is_some());
    world.check_end();
}

#[test]
fn a_single_node_with_an_absent_learner_goes_on() {
    let mut world = World::new(204, 1);
    world.wait_leader();
    world.run(100 * MILLI);
    for round in 0..6 {
        let command = ReplicaCommand::MemberReplace { old: None, new: NodeId(2 + round % 2) };
        world.command(1, command);
        world.run(u64::from(round) * MILLI);
        world.crash(1);
        world.start(1);
        world.run_until(100 * MILLI, "it leads", |world| world.leader() == Some(1));
        world.run(50 * MILLI);
    }
    assert!(world.oracle.acked.len() > 50);
    world.check_end();
}

/// A node that decides alone is elected before anything is durable; its learners hear of it after.
#[test]
fn a_single_node_tells_its_learner_nothing_before_its_term_is_durable() {
    let mut world = World::new(205, 1);
    world.wait_leader();
    world.run(100 * MILLI);
    join(&mut world, 2);
    // The learner hears, and is not heard: it stays one.
    world.net.cut.insert((2, 1));
    let command = ReplicaCommand::MemberReplace { old: None, new: NodeId(2) };
    world.command(1, command);
    world.run(100 * MILLI);
    for _ in 0..5 {
        world.crash(1);
        world.keep_sends = true;
        world.sent.clear();
        world.start(1);
        world.run(100 * MILLI);
        let to_learner = world.sent.iter().filter(|(from, send)| *from == 1 && send.to.0 == 2);
        assert!(to_learner.count() > 0, "it is told in the end");
    }
    world.check_end();
}

#[test]
fn a_new_node_that_dies_can_be_replaced_itself() {
    let mut world = World::new(203, 3);
    let leader = world.wait_leader();
    world.run(300 * MILLI);
    let old = leader % 3 + 1;
    // Node 4 never starts; node 5 takes its place.
    world.command(leader, replace(old, 4));
    world.run(500 * MILLI);
    assert_eq!(voters(&world, leader), [1, 2, 3]);
    join(&mut world, 5);
    world.command(leader, replace(old, 5));
    assert!(world.up(leader).shards.answers.iter().all(|answer| answer.result.is_ok()));
    let all: Vec<u16> = [1, 2, 3, 5].into_iter().filter(|id| *id != old).collect();
    world.run_until(3_000 * MILLI, "node 5 votes", |world| voters(world, leader) == all);
    let membership = &world.nodes[&leader].up.as_ref().expect("it runs").replica.membership;
    assert_eq!(membership.kind(NodeId(4)), None, "node 4 is no learner any more");
    world.crash(old);
    world.nodes.remove(&old);
    world.check_end();
}

/// The index of the end of a change - its third step - in a node's log, once it is durable there.
fn leave_durable(world: &World, id: u16) -> Option<Lsn> {
    let up = world.nodes[&id].up.as_ref().expect("it runs");
    let index = &up.replica.raft.store().index;
    let is_config =
        |lsn: &u64| index.get(Lsn(*lsn)).map(|meta| meta.kind) == Some(FrameKind::Config);
    let lsn = Lsn((1..=index.last().0).filter(is_config).nth(2)?);
    let checksum = index.get(lsn).expect("just seen").checksum;
    (up.durable.log.get(&lsn) == Some(&checksum)).then_some(lsn)
}

/// A node that has the end of a change must know, after any crash, that the change had begun. With
/// the old voters it could elect one who lacks what the new ones have committed: 1, 2, 3 become 1,
/// 2, 4; 2 and 4 commit an entry; 1 starts with 1, 2, 3, and is elected by 3.
#[test]
fn a_follower_killed_behind_the_end_of_a_change_knows_that_it_began() {
    for seed in 250..290 {
        let _report = SeedReport(seed);
        let mut world = World::new(seed, 3);
        world.items_max = 20;
        let leader = world.wait_leader();
        world.run(300 * MILLI);
        join(&mut world, 4);
        let old = leader % 3 + 1;
        let follower = 6 - leader - old;
        // The commit of the first step reaches it with the last one, or both are on their way to
        // its disk at once.
        if seed % 2 == 0 {
            world.net.loss = 250;
        } else {
            world.disk_nanos.insert(follower, 30 * MILLI);
        }
        world.command(leader, replace(old, 4));
        let end = world.now + 5_000 * MILLI;
        while leave_durable(&world, follower).is_none() {
            assert!(world.now < end, "the change never ended");
            world.run(MILLI / 50);
        }
        world.crash(follower);
        let (start, _) = world.nodes.get_mut(&follower).expect("a node").recover().expect("whole");
        let members = start.membership().expect("its changes follow from each other");
        assert!(members.is_voter(NodeId(4)), "seed {seed}: {members:?}");
        world.start(follower);
        world.crash(old);
        world.nodes.remove(&old);
        world.check_end();
    }
}

/// A node that leaves is the only one but the leader that has the end of the change, and is elected
/// with it. It leads until it has handed over, also when the change is committed before its own
/// disk has what it appended, and leads no more after that.
#[test]
fn a_node_elected_with_its_own_end_in_its_log_hands_over_first() {
    for seed in 300..316 {
        let _report = SeedReport(seed);
        let mut world = World::new(seed, 3);
        world.items_max = 40;
        let leader = world.wait_leader();
        world.run(300 * MILLI);
        join(&mut world, 4);
        let old = leader % 3 + 1;
        let other = 6 - leader - old;
        world.command(leader, replace(old, 4));
        let joint = |world: &World| {
            world.nodes[&leader].up.as_ref().expect("it runs").replica.membership.is_joint()
        };
        let end = world.now + 5_000 * MILLI;
        while !joint(&world) {
            assert!(world.now < end, "the change does not begin");
            world.run(MILLI / 50);
        }
        // From here on only the node that leaves hears the leader.
        world.net.cut.extend([(leader, other), (leader, 4)]);
        world.run_until(3_000 * MILLI, "it leads", |world| {
            let up = world.nodes[&old].up.as_ref().expect("it runs");
            up.replica.leading().is_some()
        });
        assert!(leave_durable(&world, old).is_some(), "seed {seed}: it has the end of the change");
        assert_eq!(voters(&world, old), [0u16; 0], "seed {seed}: which is not committed");
        world.net.cut.clear();
        if seed % 2 == 0 {
            world.disk_nanos.insert(old, 30 * MILLI);
        }
        let all: Vec<u16> = (1..=4).filter(|id| *id != old).collect();
        world.run_until(5_000 * MILLI, "the others know, and one of them leads", |world| {
            let leads = world.leader().is_some_and(|leader| leader != old);
            leads && (1..=4).all(|id| voters(world, id) == all)
        });
        assert!(world.up(old).replica.leading().is_none());
        world.crash(old);
        world.nodes.remove(&old);
        world.check_end();
    }
}

/// A cluster has its limit, and one change more than fits is refused, not carried out in part.
#[test]
fn a_cluster_grows_to_its_limit_and_no_further() {
    let mut world = World::new(206, NODES_MAX as u16);
    let leader = world.wait_leader();
    world.run(200 * MILLI);
    let grow = ReplicaCommand::MemberReplace { old: None, new: NodeId(9) };
    world.command(leader, grow);
    let answer = world.up(leader).shards.answers.pop().expect("answered");
    assert_eq!(answer.result, Err(CommandRefusal::Full));
    join(&mut world, 9);
    let old = leader % NODES_MAX as u16 + 1;
    world.command(leader, replace(old, 9));
    let answer = world.up(leader).shards.answers.pop().expect("answered");
    assert_eq!(answer.result, Ok(()));
    world.run_until(5_000 * MILLI, "it votes", |world| voters(world, leader).contains(&9));
    world.crash(old);
    world.nodes.remove(&old);
    world.check_end();
}

/// What the checksums of a log cannot rule out - another build, another history - is an error that
/// says where, before anything is written.
#[test]
fn a_start_with_changes_that_do_not_follow_is_refused() {
    let mut world = World::new(207, 1);
    world.wait_leader();
    join(&mut world, 2);
    world.command(1, ReplicaCommand::MemberReplace { old: None, new: NodeId(2) });
    world.run_until(3_000 * MILLI, "it votes", |world| voters(world, 1).len() == 2);
    world.run(100 * MILLI);
    world.crash(1);
    let mut recover = || world.nodes.get_mut(&1).expect("a node").recover().expect("whole").0;
    assert_eq!(recover().check(), Ok(()));
    assert_eq!(recover().config_entries.len(), 3);
    let fails = |start: &ReplicaStart, number: usize| {
        let is_config =
            |lsn: &u64| start.entries.get(Lsn(*lsn)).map(|m| m.kind) == Some(FrameKind::Config);
        let lsn = (1..).filter(is_config).nth(number).map(Lsn).expect("three of them");
        let error = start.check().expect_err("refused");
        assert!(matches!(error, ReplicaFailure::Config { lsn: at, .. } if at == lsn), "{error}");
    };
    let mut start = recover();
    start.config_entries[1][0] = 99;
    fails(&start, 1);
    let mut start = recover();
    start.config_entries.swap(1, 2);
    fails(&start, 1);
    let mut start = recover();
    start.superblock.members = Members::of_voters([NodeId(1), NodeId(2)]);
    fails(&start, 0);
}

#[test]
fn replacements_survive_crashes_at_any_point() {
    for seed in 210..240 {
        let _report = SeedReport(seed);
        let mut world = World::new(seed, 3);
        world.items_max = 400;
        let leader = world.wait_leader();
        world.run(200 * MILLI);
        join(&mut world, 4);
        let old = 1 + world.draw.below(3) as u16;
        world.command(leader, replace(old, 4));
        let step = world.draw.next() % (20 * MILLI);
        for _ in 0..6 {
            world.run(step);
            let id = 1 + world.draw.below(4) as u16;
            if world.is_up(id) {
                world.crash(id);
            }
            world.run(world.seed % 7 * 50 * MILLI);
            for id in 1..=4 {
                if !world.is_up(id) {
                    world.start(id);
                }
            }
        }
        // It was accepted or died with the leader; either way it can be asked for again.
        let all: Vec<u16> = (1..=4).filter(|id| *id != old).collect();
        for _ in 0..20 {
            world.run(500 * MILLI);
            let Some(leader) = world.leader() else { continue };
            if voters(&world, leader) == all {
                break;
            }
            world.command(leader, replace(old, 4));
        }
        let leader = world.wait_leader();
        assert_eq!(voters(&world, leader), all, "seed {seed}");
        world.crash(old);
        world.nodes.remove(&old);
        world.check_end();
    }
}
