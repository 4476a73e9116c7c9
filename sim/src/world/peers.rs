//! What happens between the nodes.

use std::collections::BTreeSet;

use spillway_net::ids::NodeId;
use spillway_net::peer::Hello;

use super::{Event, World};
use crate::Failure;
use crate::draw::Draw;
use crate::links::{Pair, pair_of};
use crate::node::{PeerEvent, PeerMessage, Seat};
use crate::plan::FaultKind;
use crate::worker::address;

/// A link that is silent for longer is given up.
pub(super) const SILENCE_NANOS_MAX: u64 = 1_000_000_000;
/// Time between two attempts to connect.
const TRY_NANOS: u64 = 10_000_000;

impl World {
    /// Before the first event.
    pub(super) fn links_begin(&mut self) {
        for pair in self.links.pairs() {
            self.link_retry(pair);
        }
    }

    pub(super) fn link_retry(&mut self, pair: Pair) {
        let link = self.links.get_mut(pair);
        if !std::mem::replace(&mut link.is_tried, true) {
            let nanos = link.draw.nanos(TRY_NANOS);
            self.after(nanos, Event::LinkTry(pair));
        }
    }

    /// Two nodes connect, if one of them wants to and they can.
    pub(super) fn link_try(&mut self, pair: Pair) {
        let machine = |node: u16| &self.machines[usize::from(node)];
        if machine(pair.0).is_gone || machine(pair.1).is_gone {
            return;
        }
        let link = self.links.get_mut(pair);
        link.is_tried = false;
        if link.is_up {
            return;
        }
        if !self.dial(pair.0, pair.1) && !self.dial(pair.1, pair.0) {
            self.link_retry(pair);
            return;
        }
        let link = self.links.get_mut(pair);
        link.is_up = true;
        link.generation += 1;
        let up = Some(link.generation);
        self.link_tell(pair, up);
    }

    /// A node connects to another one, if it is due and both let each other in.
    fn dial(&mut self, node: u16, other: u16) -> bool {
        let link = self.links.get_mut(pair_of(node, other).0);
        let is_cut = link.cut_until.iter().any(|until| *until > self.now);
        let own = &mut self.machines[usize::from(node)];
        let now = own.clock.monotonic(self.now);
        let Some(door) = own.door_mut() else { return false };
        let Some(due) = door.book.due_to(NodeId(other + 1), now) else { return false };
        let is_there = !is_cut && due.address == address(other);
        if is_there && self.admits(other, node) && self.admits(node, other) {
            return true;
        }
        self.book_ended(node, other);
        false
    }

    /// Whether a node is up and lets another one in that is up.
    fn admits(&mut self, node: u16, other: u16) -> bool {
        let Some(hello) = self.hello(other) else { return false };
        let door = self.machines[usize::from(node)].door_mut();
        door.is_some_and(|door| door.book.admit(&hello).is_ok())
    }

    /// What a node that is up says of itself.
    fn hello(&mut self, node: u16) -> Option<Hello> {
        self.machines[usize::from(node)].door_mut().map(|door| door.hello())
    }

    fn link_tell(&mut self, pair: Pair, up: Option<u64>) {
        for side in [0, 1] {
            let link = self.links.get_mut(pair);
            let at = self.now + link.latency(self.now, self.sizes.peer_nanos);
            let at = link.arrival(side, at);
            self.at(at, Event::LinkTold { pair, side, up });
        }
    }

    /// A side hears that a link stands or is gone.
    pub(super) fn link_told(
        &mut self,
        pair: Pair,
        side: usize,
        up: Option<u64>,
    ) -> Result<(), Failure> {
        let link = self.links.get_mut(pair);
        let is_void = up.is_some_and(|generation| link.generation != generation);
        if is_void || link.told[side] == up.is_some() {
            return Ok(());
        }
        let (node, other) = if side == 0 { pair } else { (pair.1, pair.0) };
        if up.is_some() && !self.admits(node, other) {
            // What it knows of the members has changed meanwhile.
            self.link_down(node, other);
            return Ok(());
        }
        self.links.get_mut(pair).told[side] = up.is_some();
        self.book_tell(node, other, up.is_some());
        let event = if up.is_some() { PeerEvent::Connected } else { PeerEvent::Lost };
        self.trace.note("link", self.now, node.into(), other.into());
        self.peer_event(node, other, event)
    }

    /// A node that is up hears that a link stands or is gone.
    fn book_tell(&mut self, node: u16, other: u16, up: bool) {
        let hello = self.hello(other);
        let machine = &mut self.machines[usize::from(node)];
        let now = machine.clock.monotonic(self.now);
        let Some(door) = machine.door_mut() else { return };
        match hello {
            Some(hello) if up => door.book.connected(&hello, now),
            _ => door.book.lost(NodeId(other + 1), now),
        }
    }

    /// What a node dialed, if it did, has ended.
    fn book_ended(&mut self, node: u16, other: u16) {
        let machine = &mut self.machines[usize::from(node)];
        let now = machine.clock.monotonic(self.now);
        if let Some(door) = machine.door_mut() {
            door.book.ended(NodeId(other + 1), now);
        }
    }

    fn peer_event(&mut self, to: u16, from: u16, event: PeerEvent) -> Result<(), Failure> {
        let machine = &mut self.machines[usize::from(to)];
        if machine.repair.is_some() {
            return self.repair_peer_event(to, from, &event);
        }
        let Some(node) = &mut machine.node else { return Ok(()) };
        node.peer_event(NodeId(from + 1), event);
        self.turns_schedule(to, BTreeSet::from([Seat::Log]));
        Ok(())
    }

    /// A link ends, with everything on its way.
    pub(super) fn link_down(&mut self, node: u16, other: u16) {
        let (pair, _) = pair_of(node, other);
        let link = self.links.get_mut(pair);
        if !link.is_up {
            return;
        }
        link.is_up = false;
        link.generation += 1;
        link.outgoing = [0; 2];
        self.outgoing_tell(pair.0, pair.1, 0);
        self.outgoing_tell(pair.1, pair.0, 0);
        self.book_ended(pair.0, pair.1);
        self.book_ended(pair.1, pair.0);
        self.link_tell(pair, None);
        self.link_retry(pair);
    }

    fn outgoing_tell(&mut self, node: u16, other: u16, bytes: usize) {
        if let Some(node) = &mut self.machines[usize::from(node)].node {
            node.outgoing_set(NodeId(other + 1), bytes);
        }
    }

    /// A node is gone, and its links with it.
    pub(super) fn links_down_of(&mut self, node: u16) {
        for other in (0..self.machines.len() as u16).filter(|other| *other != node) {
            let (pair, side) = pair_of(node, other);
            // What comes after it knows nothing of its links.
            self.links.get_mut(pair).told[side] = false;
            self.link_down(node, other);
        }
    }

    /// A node sends a message.
    pub(super) fn peer_send(&mut self, from: u16, to: u16, mut message: PeerMessage) {
        let lossy = self.options.lossy;
        let (pair, side) = pair_of(from, to);
        let link = self.links.get_mut(pair);
        if !link.is_up || !link.told[side] {
            return;
        }
        let cut_until = link.cut_until[side];
        let is_lost = armed(&mut link.lose_next[side]);
        let twice = !is_lost && armed(&mut link.twice_next[side]);
        message.generation = link.generation;
        let faults = &mut self.oracle.counts.faults;
        if is_lost {
            faults.note(FaultKind::MessageLost);
        }
        if is_lost || (lossy && cut_until > self.now) {
            self.oracle.counts.messages_lost += 1;
            if !lossy {
                self.link_down(from, to);
            }
            return;
        }
        if twice {
            faults.note(FaultKind::MessageTwice);
        }
        let bytes = message.bytes();
        for _ in 0..if twice { 2 } else { 1 } {
            // What a cut holds up is sent again behind it.
            let link = self.links.get_mut(pair);
            let at = self.now.max(cut_until) + link.latency(self.now, self.sizes.peer_nanos);
            link.outgoing[side] += bytes;
            let at = link.arrival(1 - side, at);
            let message = message.clone();
            self.at(at, Event::PeerArrived { from, to, message });
        }
        let outgoing = self.links.get_mut(pair).outgoing[side];
        self.outgoing_tell(from, to, outgoing);
    }

    /// A message arrives.
    pub(super) fn peer_arrived(
        &mut self,
        from: u16,
        to: u16,
        message: PeerMessage,
    ) -> Result<(), Failure> {
        let (pair, side) = pair_of(from, to);
        let link = self.links.get_mut(pair);
        if link.generation != message.generation {
            return Ok(());
        }
        assert!(link.told[1 - side], "messages come after their link");
        if self.machines[usize::from(to)].node.is_none() {
            self.peer_taken(from, to, message.generation, message.bytes());
        }
        self.oracle.counts.messages += 1;
        self.oracle.counts.messages_entries += u64::from(message.body.is_some());
        self.trace.bytes(&message.header);
        self.peer_event(to, from, PeerEvent::Message(message))
    }

    /// A message was taken from its link. Until then it is on its way, and its sender's memory.
    pub(super) fn peer_taken(&mut self, from: u16, to: u16, generation: u64, bytes: usize) {
        let (pair, side) = pair_of(from, to);
        let link = self.links.get_mut(pair);
        if link.generation == generation {
            link.outgoing[side] -= bytes;
            let outgoing = link.outgoing[side];
            self.outgoing_tell(from, to, outgoing);
        }
    }

    /// Something comes between nodes: in one direction or both, for one link or all of a node.
    pub(super) fn cut(&mut self, node: u16, one: u16, draw: &mut Draw) {
        let all = draw.once_in(2);
        let (out, into) = draw.pick(&[(true, false), (false, true), (true, true)]);
        let typical = draw.pick(&[50_000_000, 200_000_000, 600_000_000]);
        let until = (self.now + draw.nanos(typical)).min(self.options.faults_end());
        let noticed = draw.once_in(3) || until > self.now + SILENCE_NANOS_MAX;
        let others = self.slots.clone().into_iter().filter(|other| *other != node);
        for other in others.filter(|other| all || *other == one) {
            let (pair, side) = pair_of(node, other);
            let link = self.links.get_mut(pair);
            for (direction, cut) in [(side, out), (1 - side, into)] {
                if cut {
                    link.cut_until[direction] = until;
                }
            }
            if noticed {
                self.link_down(node, other);
            }
        }
    }
}

/// Takes one of what is to happen next.
fn armed(next: &mut u32) -> bool {
    let is_armed = *next > 0;
    *next = next.saturating_sub(1);
    is_armed
}
