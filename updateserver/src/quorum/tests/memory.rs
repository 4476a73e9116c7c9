//! Whose memory an entry stands in, and how much of it there is.

use spillway_net::ids::{Epoch, Lsn, NodeId, WallMicros};
use spillway_runtime::slot_ring::Slot;

use super::world::{MILLI, World, geometry};
use crate::log::EntryFrame;
use crate::log::testing::CLUSTER;
use crate::quorum::{PeerHeader, PeerMessage, ReplicaEffects, ReplicaFailure, ReplicaInput, Room};

fn leader_of(world: &mut World) -> u16 {
    let leader = world.wait_leader();
    world.items_max = world.item;
    world.run(300 * MILLI);
    leader
}

/// An item stands in one place from the batch it was copied into to the last send and the disk.
#[test]
fn a_proposal_stays_where_it_was_assembled() {
    let mut world = World::new(300, 3);
    let leader = leader_of(&mut world);
    let now = world.now();
    let up = world.up(leader);
    let (base, ring) = (up.slots.reserve(512).expect("room").address(), up.slots.bytes_total());
    assert!(up.append(1_000_000, 900));
    let mut out = ReplicaEffects::default();
    up.replica.step(now, ReplicaInput::TurnEnd, &mut up.slots, &mut out);
    assert_eq!((out.writes.len(), out.sends.len()), (1, 2));
    let body = out.writes[0].slot.address() + geometry().block();
    assert!(body.abs_diff(base) < ring, "in the ring");
    for send in &out.sends {
        let sent = send.body.as_ref().expect("the entry");
        assert_eq!((sent.address(), sent.len()), (body, out.writes[0].slot.len() - 512));
    }
    let log = &up.replica.raft.raft.raft_log;
    let last = Lsn(log.last_index());
    let cached = up.replica.raft.store().body(last).expect("in memory");
    assert_eq!((cached.body.address(), cached.data.as_ptr() as usize), (body, body));
}

/// A received entry is written from, and applied in, the memory that it was received in.
#[test]
fn an_entry_is_written_and_applied_where_it_was_received() {
    let mut world = World::new(301, 3);
    let leader = leader_of(&mut world);
    let follower = leader % 3 + 1;
    let now = world.now();
    let up = world.up(leader);
    assert!(up.append(1_000_000, 900));
    let mut out = ReplicaEffects::default();
    up.replica.step(now, ReplicaInput::TurnEnd, &mut up.slots, &mut out);
    let send = out.sends.iter().find(|send| send.to == NodeId(follower)).expect("sent");
    let (header, bytes) = (send.header, send.body.as_ref().expect("the entry").to_vec());
    let up = world.up(follower);
    let mut slot = up.replica.reserve(512 + bytes.len(), &mut up.slots).expect("room");
    slot[512..].copy_from_slice(&bytes);
    let received = slot.address() + 512;
    let frame = EntryFrame::verify(&geometry(), CLUSTER, slot).expect("an entry");
    let lsn = frame.shared.index;
    let input = ReplicaInput::Peer { from: NodeId(leader), header, frame: Some(frame) };
    let mut out = ReplicaEffects::default();
    up.replica.step(now, input, &mut up.slots, &mut out);
    assert_eq!(out.writes.len(), 1);
    assert_eq!(out.writes[0].slot.address() + 512, received, "written from there");
    assert!(out.sends.is_empty(), "nothing is said before it is durable");
    // The leader says that it is committed.
    let message = PeerMessage::Append {
        previous: lsn,
        previous_term: header.term,
        commit: lsn,
        entry_term: None,
        matched: Lsn(0),
    };
    let header = PeerHeader { body_bytes: 0, message, ..header };
    let input = ReplicaInput::Peer { from: NodeId(leader), header, frame: None };
    up.replica.step(now, input, &mut up.slots, &mut out);
    let (at, body) = up.replica.apply_next().expect("committed");
    assert_eq!((at, body.address()), (lsn, received), "applied there");
}

/// A copy of an entry with another header.
fn forged(body: &[u8], change: impl Fn(&mut crate::log::SharedHeader)) -> EntryFrame {
    let mut slot = spillway_runtime::slot_ring::SlotMut::heap(512 + body.len());
    slot[512..].copy_from_slice(body);
    let mut frame = EntryFrame::verify(&geometry(), CLUSTER, slot).expect("an entry");
    change(&mut frame.shared);
    frame
}

type Change = fn(&mut crate::log::SharedHeader);
type Expected = fn(&ReplicaFailure) -> bool;

/// Followers check the order of the log, and stop at what contradicts it.
#[test]
fn entries_that_break_the_order_stop_a_follower() {
    let cases: [(Change, Expected); 2] = [
        (|shared| shared.previous ^= 1, |f| matches!(f, ReplicaFailure::ChainBroken { .. })),
        (
            |shared| shared.timestamp = WallMicros(3),
            |f| matches!(f, ReplicaFailure::TimestampBack { .. }),
        ),
    ];
    for (seed, (change, expected)) in (310..).zip(cases) {
        let mut world = World::new(seed, 3);
        let leader = leader_of(&mut world);
        let follower = leader % 3 + 1;
        let now = world.now();
        let up = world.up(leader);
        assert!(up.append(1_000_000, 900));
        let mut out = ReplicaEffects::default();
        up.replica.step(now, ReplicaInput::TurnEnd, &mut up.slots, &mut out);
        let send = out.sends.iter().find(|send| send.to == NodeId(follower)).expect("sent");
        let frame = forged(send.body.as_ref().expect("the entry"), change);
        let header = send.header;
        let input = ReplicaInput::Peer { from: NodeId(leader), header, frame: Some(frame) };
        let mut out = ReplicaEffects::default();
        let up = world.up(follower);
        up.replica.step(now, input, &mut up.slots, &mut out);
        assert!(out.failed.as_ref().is_some_and(expected), "{:?}", out.failed);
        assert!(out.writes.is_empty() && out.sends.is_empty(), "never acknowledged");
    }
}

/// A leader names what a follower has acknowledged to it: one that does not have it stops, whatever
/// the message is.
#[test]
fn an_append_that_names_what_is_not_there_stops_a_follower() {
    let mut world = World::new(311, 3);
    let leader = leader_of(&mut world);
    let follower = leader % 3 + 1;
    let now = world.now();
    let up = world.up(follower);
    let last = Lsn(up.replica.last_index());
    let term = Epoch(up.replica.raft.raft.term);
    for (matched, stops) in [(last, false), (Lsn(last.0 + 1), true)] {
        let message = PeerMessage::Append {
            previous: last,
            previous_term: term,
            commit: Lsn(0),
            entry_term: None,
            matched,
        };
        let header = PeerHeader {
            cluster: CLUSTER,
            from: NodeId(leader),
            to: NodeId(follower),
            term,
            committed: Lsn(0),
            time: WallMicros(0),
            applied: Lsn(0),
            body_bytes: 0,
            message,
        };
        let input = ReplicaInput::Peer { from: NodeId(leader), header, frame: None };
        let mut out = ReplicaEffects::default();
        up.replica.step(now, input, &mut up.slots, &mut out);
        let short = matches!(out.failed, Some(ReplicaFailure::LogShort { .. }));
        assert_eq!(short, stops, "{:?}", out.failed);
    }
}

/// Two entries of one index and term cannot both be right.
#[test]
fn an_entry_with_other_content_stops_a_follower() {
    let mut world = World::new(312, 3);
    let leader = leader_of(&mut world);
    let follower = leader % 3 + 1;
    let now = world.now();
    let up = world.up(follower);
    let index = &up.replica.raft.store().index;
    let last = index.last();
    let (meta, before) = (*index.get(last).expect("there"), last.0 - 1);
    let before_term = index.identity(Lsn(before)).expect("there").term;
    let body = up.replica.raft.store().body(last).expect("in memory").body.to_vec();
    let frame = forged(&body, |shared| shared.checksum ^= 1);
    let message = PeerMessage::Append {
        previous: Lsn(before),
        previous_term: before_term,
        commit: Lsn(0),
        entry_term: Some(meta.term),
        matched: Lsn(0),
    };
    let header = PeerHeader {
        cluster: CLUSTER,
        from: NodeId(leader),
        to: NodeId(follower),
        term: Epoch(up.replica.raft.raft.term),
        committed: Lsn(0),
        time: WallMicros(0),
        applied: Lsn(0),
        body_bytes: body.len() as u32,
        message,
    };
    let input = ReplicaInput::Peer { from: NodeId(leader), header, frame: Some(frame) };
    let mut out = ReplicaEffects::default();
    up.replica.step(now, input, &mut up.slots, &mut out);
    assert!(matches!(out.failed, Some(ReplicaFailure::EntryDiffers { .. })), "{:?}", out.failed);
}

/// A peer that takes nothing holds no more than its budget, and when memory gets short its
/// connection is given up; commits go on all the while.
#[test]
fn a_peer_that_takes_nothing_holds_a_bounded_part_of_the_memory() {
    let mut world = World::new(320, 3);
    let leader = world.wait_leader();
    let stuck = leader % 3 + 1;
    world.item_bytes = 12_000;
    world.run(200 * MILLI);
    world.paused.insert(stuck);
    world.keep_sends = true;
    let mut held: Vec<(u16, Slot)> = Vec::new();
    let (mut most, mut closed) = (0, false);
    let acked = world.oracle.acked.len();
    for _ in 0..1_500 {
        world.run(2 * MILLI);
        for (from, send) in std::mem::take(&mut world.sent) {
            let body = send.body.filter(|_| from == leader && send.to == NodeId(stuck));
            held.extend(body.map(|body| (from, body)));
        }
        if world.resets > 0 {
            closed = true;
            held.clear();
        }
        let bytes: usize = held.iter().map(|(_, body)| body.len()).sum();
        most = most.max(bytes);
        let node = NodeId(stuck);
        if !closed {
            world.step(leader, ReplicaInput::PeerOutgoing { node, bytes });
        }
    }
    let answered = world.oracle.acked.len() - acked;
    assert!(answered > 300, "commits go on: {answered}");
    assert!(closed, "the ring was taken back from the stuck connection");
    assert!(most <= (256 << 10) + 2 * (16 << 10), "{most} bytes held");
    assert_eq!(world.leader(), Some(leader));
}

/// Entries that nobody needs any more fill the ring of a leader that rests: no reason to give up a
/// connection that carries much.
#[test]
fn memory_that_can_be_let_go_of_costs_no_connection() {
    let mut world = World::formatted(322, 3);
    for node in world.nodes.values_mut() {
        node.tune = |options| options.cache_bytes_max = 8 << 20;
    }
    for id in 1..=3 {
        world.start(id);
    }
    let leader = world.wait_leader();
    let busy = NodeId(leader % 3 + 1);
    world.item_bytes = 12_000;
    for _ in 0..1_000 {
        world.run(2 * MILLI);
        let slots = &world.up(leader).slots;
        if slots.bytes_used() > slots.bytes_total() / 8 * 7 {
            break;
        }
    }
    world.items_max = world.item;
    world.run(200 * MILLI);
    let up = world.up(leader);
    let (used, total) = (up.slots.bytes_used(), up.slots.bytes_total());
    assert!(used > total / 4 * 3, "{used} of {total} bytes hold what was sent long ago");
    let (last, half) = (up.replica.last_index(), up.replica.options.inflight_bytes_max / 2);
    up.replica.peers.get_mut(busy).sent(Lsn(last), half);
    let bytes = half as usize;
    for _ in 0..20 {
        world.step(leader, ReplicaInput::PeerOutgoing { node: busy, bytes });
        world.run(2 * MILLI);
    }
    assert_eq!((world.resets, world.leader()), (0, Some(leader)));
    assert!(world.up(leader).slots.bytes_used() <= total / 4 * 3, "it was let go of");
}

/// The ring gives memory back in order, and an entry stays until it is known to be committed, which
/// only a later message says: entries that were received behind it, twice or for nothing, do not
/// keep a follower from receiving that message.
#[test]
fn what_was_received_for_nothing_does_not_shut_a_follower_out() {
    let mut world = World::new(321, 3);
    let leader = leader_of(&mut world);
    let follower = leader % 3 + 1;
    world.cut(leader, follower);
    let now = world.now();
    let up = world.up(leader);
    assert!(up.append(1_000_000, 9_000));
    let mut out = ReplicaEffects::default();
    up.replica.step(now, ReplicaInput::TurnEnd, &mut up.slots, &mut out);
    let send = out.sends.iter().find(|send| send.to == NodeId(follower)).expect("sent");
    let (header, body) = (send.header.encode(), send.body.as_ref().expect("the entry").to_vec());
    world.deliver(leader, follower, &header, &body);
    let up = world.up(follower);
    let ring = up.slots.bytes_total();
    let last = Lsn(up.replica.last_index());
    let pinned = up.replica.raft.store().body(last).expect("in memory").body.address();
    for _ in 0..3 * ring / body.len() {
        let repeated = up.replica.reserve(512 + body.len(), &mut up.slots);
        if repeated.is_none() {
            // Its write is on the way, and is not to be moved.
            break;
        }
    }
    assert!(up.replica.reserve(512 + body.len(), &mut up.slots).is_none(), "the ring is full");
    world.run(20 * MILLI);
    let up = world.up(follower);
    assert!(up.replica.published.lsn < last, "not known to be committed");
    for _ in 0..3 * ring / body.len() {
        let repeated = up.replica.reserve(512 + body.len(), &mut up.slots);
        assert!(repeated.is_some(), "{} of {ring} bytes are in use", up.slots.bytes_used());
    }
    let kept = up.replica.raft.store().body(last).expect("in memory");
    assert!(kept.body.address() != pinned && kept.body[..] == body[..], "moved, the same bytes");
    assert_eq!(kept.body.address(), kept.data.as_ptr() as usize, "and nothing of it is left");
}

/// What memory no longer holds comes from the disk, a few entries at a time.
#[test]
fn a_peer_that_was_away_is_filled_from_the_disk() {
    let mut world = World::formatted(330, 3);
    for node in world.nodes.values_mut() {
        node.tune = |options| options.cache_bytes_max = 8 << 10;
    }
    for id in 1..=3 {
        world.start(id);
    }
    let leader = world.wait_leader();
    let away = leader % 3 + 1;
    world.run(200 * MILLI);
    world.crash(away);
    world.run(2_000 * MILLI);
    let (reads, behind) = (world.reads, world.published(leader));
    world.start(away);
    let took = world.run_until(2_000 * MILLI, "caught up", |world| world.published(away) >= behind);
    assert!(world.reads > reads + 200, "{} reads", world.reads - reads);
    assert!(took < 500 * MILLI, "{} ms", took / MILLI);
    world.check_end();
}

/// An entry that cannot be read back is not sent, and the leader gives way.
#[test]
fn an_unreadable_entry_moves_leadership() {
    let mut world = World::formatted(331, 3);
    for node in world.nodes.values_mut() {
        node.tune = |options| options.cache_bytes_max = 8 << 10;
    }
    for id in 1..=3 {
        world.start(id);
    }
    let leader = world.wait_leader();
    let away = leader % 3 + 1;
    world.run(200 * MILLI);
    world.crash(away);
    let lsn = Lsn(world.published(leader).0 + 20);
    world.run(2_000 * MILLI);
    let place = world.up(leader).replica.raft.store().index.get(lsn).expect("there").place;
    let plan = place.read_plan(&geometry());
    let disk = &mut world.nodes.get_mut(&leader).expect("a node").disk;
    disk.unreadable.push((plan.segment, plan.offset));
    world.start(away);
    let other = move |world: &World| world.leader().is_some_and(|now| now != leader);
    world.run_until(3_000 * MILLI, "another leader", other);
    let behind = world.published(world.leader().expect("seen"));
    world.run_until(3_000 * MILLI, "caught up", |world| world.published(away) >= behind);
    let up = world.up(leader);
    assert!(up.replica.status(crate::quorum::Now::default()).entries_unreadable > 0);
    world.nodes.get_mut(&leader).expect("a node").disk.unreadable.clear();
    world.check_end();
}

/// With the tail at its limit items wait; nothing is lost by it.
#[test]
fn the_tail_has_a_limit() {
    let mut world = World::formatted(340, 3);
    for node in world.nodes.values_mut() {
        node.tune = |options| options.tail_bytes_max = 40 << 10;
    }
    for id in 1..=3 {
        world.start(id);
    }
    let leader = leader_of(&mut world);
    for id in 1..=3 {
        if id != leader {
            world.cut(leader, id);
        }
    }
    let mut item = 2_000_000;
    while world.up(leader).append(item, 8_000) {
        item += 1;
        world.step(leader, ReplicaInput::TurnEnd);
        assert!(item < 2_001_000, "no limit");
    }
    let up = world.up(leader);
    assert_eq!(up.replica.room(1, 8_000, &mut up.slots), Room::Later);
    let report = up.replica.status(crate::quorum::Now::default());
    assert!(report.tail_bytes <= report.lal_bytes + (16 << 10), "{report:?}");
    assert!(report.tail_bytes + (32 << 10) >= report.lal_bytes, "{report:?}");
    assert!(!up.replica.is_held_up(), "not at once");
    let mut told = false;
    for _ in 0..200 {
        world.run(5 * MILLI);
        let up = world.up(leader);
        if up.replica.room(1, 8_000, &mut up.slots) != Room::Later {
            break;
        }
        told |= up.replica.is_held_up();
    }
    assert!(told, "new work is refused before the leader gives up");
    assert!(!world.up(leader).replica.is_held_up(), "who does not lead holds nobody up");
}

/// What waited for room goes on when there is some.
#[test]
fn the_tail_goes_on_after_a_cut() {
    let mut world = World::formatted(341, 3);
    for node in world.nodes.values_mut() {
        node.tune = |options| options.tail_bytes_max = 40 << 10;
    }
    for id in 1..=3 {
        world.start(id);
    }
    let leader = leader_of(&mut world);
    (1..=3).filter(|id| *id != leader).for_each(|id| world.cut(leader, id));
    let mut item = 2_000_000;
    while world.up(leader).append(item, 8_000) {
        item += 1;
        world.step(leader, ReplicaInput::TurnEnd);
        assert!(item < 2_001_000, "no limit");
    }
    world.net.cut.clear();
    world.run(200 * MILLI);
    let up = world.up(leader);
    assert_eq!(up.replica.room(1, 8_000, &mut up.slots), Room::Fits);
}

/// A replica goes to the thread of the log core.
#[test]
fn a_replica_can_be_sent() {
    fn is_send<T: Send>() {}
    is_send::<crate::quorum::Replica>();
    is_send::<ReplicaEffects>();
}
