//! The faults of the plan: how each strikes, and how all of them end.

use super::peers::SILENCE_NANOS_MAX;
use super::{Event, Landing, World};
use crate::Failure;
use crate::clock::RATE_OFF_MAX;
use crate::disk::{EIO, ENOSPC};
use crate::draw::Draw;
use crate::links::{Pair, pair_of};
use crate::network::Side;
use crate::node::{Node, Seat};
use crate::options::{Options, SECOND};
use crate::plan::{Fault, FaultKind};

const MILLI: u64 = 1_000_000;
/// Longest stand-still of a node.
const PAUSE_NANOS_MAX: u64 = 5 * SECOND;
/// Longest stand-still of a disk.
const STALL_NANOS_MAX: u64 = 3 * SECOND;
/// Longest jump of a wall clock.
const JUMP_MICROS_MAX: u64 = 3_600_000_000;

impl World {
    /// A fault strikes. What it does is drawn from it alone; if there is nothing that it could
    /// strike now, nothing happens. Faults that wait for their moment are counted then.
    pub(super) fn strike(&mut self, fault: &Fault) -> Result<(), Failure> {
        self.trace.note("fault", self.now, fault.ordinal, fault.kind as u64);
        let mut draw = fault.draw();
        let slot = draw.below(self.sizes.nodes.into()) as usize;
        let node = self.slots[slot];
        let struck = match fault.kind {
            FaultKind::PowerLoss
            | FaultKind::PowerLossAll
            | FaultKind::PowerLossInStart
            | FaultKind::Pause
            | FaultKind::CoreSlow
            | FaultKind::ClockJump
            | FaultKind::ClockDrift
            | FaultKind::Transfer => self.strike_node(fault.kind, node, draw)?,
            FaultKind::WriteError | FaultKind::DiskStall | FaultKind::DiskSlow => {
                self.strike_disk(fault.kind, node, &mut draw)
            }
            FaultKind::Cut
            | FaultKind::MessageLost
            | FaultKind::MessageTwice
            | FaultKind::Bridge
            | FaultKind::Clog
            | FaultKind::Swizzle
            | FaultKind::LinkReset
            | FaultKind::LinkSlow => self.strike_links(fault.kind, node, &mut draw),
            FaultKind::ConnectionReset
            | FaultKind::ConnectionClog
            | FaultKind::ConnectionDribble
            | FaultKind::ClientGone => self.strike_clients(fault.kind, &mut draw),
            FaultKind::Drain => {
                self.drain(node, true);
                self.after(draw.nanos(200 * MILLI), Event::Undrain(node));
                true
            }
            FaultKind::Replace => self.replace(slot, false, &mut draw),
            FaultKind::DiskLost => {
                let slot = self.victim(&mut draw);
                self.replace(slot, true, &mut draw)
            }
            FaultKind::WritesLost => {
                let slot = self.victim(&mut draw);
                self.writes_lost(self.slots[slot], &mut draw)
            }
            FaultKind::BitFlip
            | FaultKind::ReadError
            | FaultKind::BlockStale
            | FaultKind::BlockMisdirected
            | FaultKind::SectorTorn => {
                let slot = self.victim(&mut draw);
                self.damage(fault.kind, self.slots[slot], &mut draw)
            }
        };
        if struck {
            self.oracle.counts.faults.note(fault.kind);
        }
        Ok(())
    }

    fn strike_node(&mut self, kind: FaultKind, node: u16, mut draw: Draw) -> Result<bool, Failure> {
        let now = self.now;
        let machine = &mut self.machines[usize::from(node)];
        match kind {
            FaultKind::PowerLoss => return Ok(self.power_loss_of(&[node], &mut draw)),
            FaultKind::PowerLossAll => {
                return Ok(self.power_loss_of(&self.slots.clone(), &mut draw));
            }
            FaultKind::PowerLossInStart => {
                let round = draw.below(2) as usize;
                machine.start_torn = Some((round, draw));
                return Ok(false);
            }
            FaultKind::Pause => return Ok(self.pause(node, &mut draw)),
            FaultKind::CoreSlow => {
                let shard = draw.below(u64::from(self.sizes.shards) + 1) as u16;
                let is_log = shard == self.sizes.shards;
                let seat = if is_log { Seat::Log } else { Seat::Shard(shard) };
                machine.slow_seats.insert(seat, now + draw.nanos(300 * MILLI));
            }
            FaultKind::ClockJump => {
                let typical = draw.pick(&[1_000, 1_000_000, JUMP_MICROS_MAX]);
                let micros = draw.below(typical.min(JUMP_MICROS_MAX) + 1) as i64;
                machine.clock.jump(now, if draw.once_in(2) { micros } else { -micros });
            }
            FaultKind::ClockDrift => {
                let off = draw.below(2 * RATE_OFF_MAX as u64 + 1) as i64 - RATE_OFF_MAX;
                machine.clock.rate_set(now, off);
                machine.log_tick_at = None;
            }
            _ => {
                if machine.node.is_none() || machine.held.is_some() {
                    return Ok(false);
                }
                self.with_node(node, |node, scene| node.transfer(scene))?;
            }
        }
        Ok(true)
    }

    fn strike_disk(&mut self, kind: FaultKind, node: u16, draw: &mut Draw) -> bool {
        let machine = &mut self.machines[usize::from(node)];
        match kind {
            FaultKind::WriteError => {
                let landing = match draw.below(6) {
                    0 | 1 => Landing::Short,
                    2 => Landing::Error(ENOSPC),
                    _ => Landing::Error(EIO),
                };
                machine.landings_next.push_back(landing);
                return false;
            }
            FaultKind::DiskStall => {
                let nanos = draw_of(draw, &[100 * MILLI, 500 * MILLI]);
                machine.stalled_until = self.now + nanos.min(STALL_NANOS_MAX);
            }
            _ => machine.disk_slow_until = self.now + draw.nanos(300 * MILLI),
        }
        true
    }

    fn strike_links(&mut self, kind: FaultKind, node: u16, draw: &mut Draw) -> bool {
        let other = self.other(node, draw);
        let (pair, side) = pair_of(node, other);
        let now = self.now;
        let link = self.links.get_mut(pair);
        match kind {
            FaultKind::Cut => self.cut(node, other, draw),
            FaultKind::MessageLost => {
                link.lose_next[side] += 1;
                return false;
            }
            FaultKind::MessageTwice => {
                link.twice_next[side] += 1;
                return false;
            }
            FaultKind::Bridge => self.bridge(node, draw),
            FaultKind::Clog => {
                let typical = draw.pick(&[20 * MILLI, 200 * MILLI]);
                self.clog(pair, side, now + draw.nanos(typical));
            }
            FaultKind::Swizzle => self.swizzle(draw),
            FaultKind::LinkReset => {
                let (is_up, generation) = (link.is_up, link.generation);
                let nanos = draw.below(20 * MILLI);
                if draw.once_in(2) {
                    self.clog(pair, side, now + nanos + 1);
                }
                self.after(nanos, Event::LinkEnd(pair, generation));
                return is_up;
            }
            _ => link.slow_until = now + draw.nanos(300 * MILLI),
        }
        true
    }

    fn strike_clients(&mut self, kind: FaultKind, draw: &mut Draw) -> bool {
        if kind == FaultKind::ClientGone {
            return self.client_gone(draw);
        }
        let connections = self.network.connections.iter();
        let alive: Vec<u64> =
            connections.filter(|(_, c)| !c.broken).map(|(number, _)| *number).collect();
        if alive.is_empty() {
            return false;
        }
        let number = draw.pick(&alive);
        let connection = self.network.connections.get_mut(&number).expect("listed above");
        match kind {
            FaultKind::ConnectionReset => {
                connection.broken = true;
                self.oracle.counts.resets += 1;
                for side in [Side::Client, Side::Node] {
                    let nanos = draw.nanos(self.sizes.network_nanos);
                    self.after(nanos, Event::Gone(number, side));
                }
            }
            FaultKind::ConnectionDribble => connection.piece_bytes_max = draw.range(1, 40) as usize,
            _ => {
                let until = draw_of(draw, &[50 * MILLI, 400 * MILLI]);
                let sides = draw.pick(&[[true, false], [false, true], [true, true]]);
                for side in [Side::Client, Side::Node] {
                    if sides[side as usize] {
                        self.connection_clogs.entry((number, side)).or_default();
                        self.after(until, Event::ConnectionUnclog(number, side));
                    }
                }
            }
        }
        true
    }

    /// From now on nothing goes wrong, and what is still wrong ends.
    pub(super) fn faults_end(&mut self) -> Result<bool, Failure> {
        for machine in &mut self.machines {
            machine.landings_next.clear();
            machine.start_torn = None;
            machine.stalled_until = 0;
            machine.disk_slow_until = 0;
            machine.slow_seats.clear();
        }
        for pair in self.links.pairs() {
            let link = self.links.get_mut(pair);
            (link.lose_next, link.twice_next, link.cut_until) = ([0; 2], [0; 2], [0; 2]);
            link.slow_until = 0;
        }
        self.undrain_all();
        let mut ended = false;
        for node in 0..self.machines.len() as u16 {
            ended |= self.resume(node)?;
        }
        for (pair, side) in self.link_clogs.keys().copied().collect::<Vec<_>>() {
            ended |= self.unclog(pair, side)?;
        }
        for (number, side) in self.connection_clogs.keys().copied().collect::<Vec<_>>() {
            ended |= self.connection_unclog(number, side)?;
        }
        Ok(ended)
    }

    /// Keeps back what cannot happen now: a node stands still, a disk does, nothing gets through.
    pub(super) fn held_up(&mut self, event: Event) -> Option<Event> {
        let clog = match &event {
            Event::PeerArrived { from, to, .. } => self.link_clogs.get_mut(&pair_of(*from, *to)),
            Event::Arrived(number, side, _) | Event::Gone(number, side) => {
                self.connection_clogs.get_mut(&(*number, *side))
            }
            _ => None,
        };
        if let Some(clog) = clog {
            clog.push(event);
            return None;
        }
        let Some(node) = self.node_of(&event) else { return Some(event) };
        let machine = &mut self.machines[usize::from(node)];
        let stalled = machine.stalled_until > self.now;
        if stalled && matches!(event, Event::Landed { .. } | Event::ReadBack { .. }) {
            let until = machine.stalled_until + machine.draw.below(self.sizes.disk_nanos);
            self.at(until, event);
            return None;
        }
        match &mut machine.held {
            Some(held) => held.push(event),
            None => return Some(event),
        }
        None
    }

    /// The node that has to run for something to happen.
    fn node_of(&self, event: &Event) -> Option<u16> {
        match event {
            Event::Landed { node, .. }
            | Event::ReadBack { node, .. }
            | Event::Turn(node, ..)
            | Event::Tick(node, _)
            | Event::Operator(node, _) => Some(*node),
            Event::Connected(number)
            | Event::Arrived(number, Side::Node, _)
            | Event::Gone(number, Side::Node) => {
                self.network.connections.get(number).map(|connection| connection.node)
            }
            Event::LinkTold { pair, side, .. } => Some(if *side == 0 { pair.0 } else { pair.1 }),
            Event::PeerArrived { to, .. } => Some(*to),
            _ => None,
        }
    }

    fn pause(&mut self, node: u16, draw: &mut Draw) -> bool {
        let machine = &mut self.machines[usize::from(node)];
        if machine.node.is_none() || machine.held.is_some() {
            return false;
        }
        machine.held = Some(Vec::new());
        let starts = machine.starts;
        let typical = draw.pick(&[10 * MILLI, 100 * MILLI, SECOND]);
        let nanos = draw.nanos(typical).clamp(10 * MILLI, PAUSE_NANOS_MAX);
        self.after(nanos, Event::Resume(node, starts));
        if nanos > SILENCE_NANOS_MAX {
            for pair in self.links.pairs() {
                if pair.0 == node || pair.1 == node {
                    let generation = self.links.get_mut(pair).generation;
                    self.after(SILENCE_NANOS_MAX, Event::LinkEnd(pair, generation));
                }
            }
        }
        true
    }

    /// A node goes on: what has happened meanwhile reaches it at once, in its order.
    pub(super) fn resume(&mut self, node: u16) -> Result<bool, Failure> {
        let held = self.machines[usize::from(node)].held.take();
        self.events_now(held)
    }

    fn events_now(&mut self, events: Option<Vec<Event>>) -> Result<bool, Failure> {
        for event in events.into_iter().flatten() {
            if self.event(event)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A direction of a link lets nothing through.
    pub(super) fn clog(&mut self, pair: Pair, side: usize, until: u64) {
        if self.now >= self.options.faults_nanos || self.link_clogs.contains_key(&(pair, side)) {
            return;
        }
        self.link_clogs.insert((pair, side), Vec::new());
        self.at(until, Event::Unclog(pair, side));
        if until > self.now + SILENCE_NANOS_MAX {
            let generation = self.links.get_mut(pair).generation;
            self.after(SILENCE_NANOS_MAX, Event::LinkEnd(pair, generation));
        }
    }

    /// It does again: what belongs to an earlier link is gone.
    pub(super) fn unclog(&mut self, pair: Pair, side: usize) -> Result<bool, Failure> {
        let held = self.link_clogs.remove(&(pair, side));
        self.events_now(held)
    }

    /// A connection lets everything through again.
    pub(super) fn connection_unclog(&mut self, number: u64, side: Side) -> Result<bool, Failure> {
        let held = self.connection_clogs.remove(&(number, side));
        self.events_now(held)
    }

    /// Two halves see of each other only this node.
    fn bridge(&mut self, middle: u16, draw: &mut Draw) {
        let others: Vec<u16> = self.slots.iter().copied().filter(|node| *node != middle).collect();
        // One side has one node at least, the other one too.
        let cut = draw.range(1, others.len() as u64) as usize;
        let until = self.now + draw_of(draw, &[100 * MILLI, 400 * MILLI]);
        let noticed = draw.once_in(2);
        let (left, right) = others.split_at(cut);
        let apart = left.iter().flat_map(|a| right.iter().map(|b| pair_of(*a, *b).0));
        let apart: Vec<Pair> = apart.collect();
        for pair in apart {
            self.links.get_mut(pair).cut_until = [until.min(self.options.faults_nanos); 2];
            if noticed || until > self.now + SILENCE_NANOS_MAX {
                self.link_down(pair.0, pair.1);
            }
        }
    }

    fn swizzle(&mut self, draw: &mut Draw) {
        let typical = draw.pick(&[10 * MILLI, 100 * MILLI]);
        let directions = self.links.pairs().into_iter().flat_map(|pair| [(pair, 0), (pair, 1)]);
        for (pair, side) in directions.collect::<Vec<_>>() {
            let (from, nanos) = (self.now + draw.nanos(typical), draw.nanos(typical));
            if draw.once_in(2) {
                self.at(from, Event::Clog(pair, side, from + nanos));
            }
        }
    }

    /// A client goes; another one will come in its place.
    fn client_gone(&mut self, draw: &mut Draw) -> bool {
        let present = (1..self.workers.len()).filter(|at| !self.workers_gone.contains(at));
        let busy: Vec<usize> = present.filter(|at| self.workers[*at].in_flight() > 0).collect();
        if busy.is_empty() {
            return false;
        }
        let at = draw.pick(&busy);
        self.workers_gone.insert(at);
        self.workers[0].session_want();
        self.worker_schedule(0);
        let Some(number) = self.workers[at].connection.take() else { return true };
        let Some(connection) = self.network.connections.get_mut(&number) else { return true };
        connection.client_open = false;
        // Without a word: the node never hears of it.
        if draw.once_in(2) {
            let at = self.network.arrival(number, Side::Node, self.now);
            self.at(at, Event::Gone(number, Side::Node));
        }
        true
    }

    fn power_loss_of(&mut self, nodes: &[u16], draw: &mut Draw) -> bool {
        let mut struck = false;
        for node in nodes {
            if self.machines[usize::from(*node)].node.is_some() {
                self.restart_torn(*node, draw);
                struck = true;
            }
        }
        struck
    }

    /// Another member.
    fn other(&self, node: u16, draw: &mut Draw) -> u16 {
        let others = self.slots.iter().copied().filter(|other| *other != node);
        draw.pick(&others.collect::<Vec<_>>())
    }

    /// A member that may lose what is durable.
    fn victim(&self, draw: &mut Draw) -> usize {
        let slots = 0..usize::from(self.sizes.nodes);
        let victims: Vec<usize> = slots.filter(|slot| is_victim(&self.options, *slot)).collect();
        draw.pick(&victims)
    }

    /// A node loses power, and its disk what it had acknowledged last. Only a leader that stays
    /// can see that: nothing happens unless there is one, and everybody else is well.
    fn writes_lost(&mut self, node: u16, draw: &mut Draw) -> bool {
        if !self.is_calm(node) {
            return false;
        }
        let machine = &mut self.machines[usize::from(node)];
        machine.is_suspect = true;
        let count = draw.range(1, 5) as usize;
        self.power_loss(node, draw);
        let lost = self.machines[usize::from(node)].disk.writes_lose(count);
        self.after(draw.range(MILLI, 50 * MILLI), Event::Start(node));
        lost > 0
    }

    /// Whether everybody is well, and somebody else than this node leads.
    fn is_calm(&self, node: u16) -> bool {
        let is_well = |at: &u16| {
            let machine = &self.machines[usize::from(*at)];
            let is_up = machine.node.as_ref().is_some_and(|node| !node.failed());
            let disk = machine.stalled_until.max(machine.disk_slow_until) <= self.now;
            is_up && disk && machine.held.is_none() && machine.landings_next.is_empty()
        };
        let leads = |at: &u16| {
            let other = self.machines[usize::from(*at)].node.as_ref();
            *at != node && other.is_some_and(Node::leads)
        };
        !self.operator.is_replacing()
            && self.link_clogs.is_empty()
            && self.slots.iter().all(is_well)
            && self.slots.iter().filter(|at| leads(at)).count() == 1
            && self.links.are_well(&self.slots, self.now)
    }

    /// Something happens to the medium of a disk, mostly while the node has no power.
    fn damage(&mut self, kind: FaultKind, node: u16, draw: &mut Draw) -> bool {
        let machine = &mut self.machines[usize::from(node)];
        if machine.is_gone || self.operator.is_replacing() {
            return false;
        }
        let disk = &mut machine.disk;
        let struck = match kind {
            FaultKind::BitFlip => {
                disk.flip(draw);
                true
            }
            FaultKind::ReadError => {
                disk.spoil(draw);
                true
            }
            FaultKind::BlockStale => disk.block_stale(draw),
            FaultKind::BlockMisdirected => disk.block_misdirect(draw),
            _ => std::mem::replace(&mut disk.tear_bytes, 512) != 512,
        };
        if struck {
            machine.is_suspect = true;
            if machine.node.is_some() && !draw.once_in(4) {
                self.restart_torn(node, draw);
            }
        }
        struck
    }
}

/// Whether the member in this slot may lose what is durable: the same few in the whole run, a
/// minority; a lone node is what runs beyond its promise are about.
pub(super) fn is_victim(options: &Options, slot: usize) -> bool {
    let nodes = usize::from(options.nodes);
    let first = Draw::stream(options.seed, "victims").below(nodes as u64) as usize;
    let victims = if nodes == 1 { 1 } else { (nodes - 1) / 2 };
    (slot + nodes - first) % nodes < victims
}

/// A time near one of these.
fn draw_of(draw: &mut Draw, typical: &[u64]) -> u64 {
    let typical = draw.pick(typical);
    draw.nanos(typical)
}
