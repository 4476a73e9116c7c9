//! What the operator does to the cluster: nodes are replaced under a new number, because their disk
//! is lost or because somebody wants it so; nodes are drained for a while.
//!
//! The operator asks whoever leads, again and again until it is so. What it began it ends after
//! the faults, too, unless the log is full.

use std::collections::BTreeMap;

use spillway_net::ids::NodeId;
use spillway_updateserver::quorum::MemberKind;
use spillway_updateserver::root::Member;
use spillway_updateserver::shard::RootCommand;

use super::faults::is_victim;
use super::{CLOCKS_APART_MICROS, Event, Machine, World};
use crate::Failure;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::draw::Draw;
use crate::node::{Node, Scene, member};

/// Time between two looks.
const OPERATE_NANOS: u64 = 30_000_000;
/// Replacements of a run at most: as many nodes are known at a time.
const REPLACEMENTS_MAX: usize = 5;

/// A node that takes the place of another; both count from 0.
#[derive(Clone, Copy, Debug)]
struct Replacing {
    old: u16,
    new: u16,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Operator {
    replacing: Option<Replacing>,
    replaced: usize,
    /// Nodes that shall be drained, or not any more.
    drains: BTreeMap<u16, bool>,
    is_called: bool,
    draw: Draw,
}

impl Operator {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            replacing: None,
            replaced: 0,
            drains: BTreeMap::new(),
            is_called: false,
            draw: Draw::stream(seed, "operator"),
        }
    }

    /// Whether a replacement is under way.
    pub(super) fn is_replacing(&self) -> bool {
        self.replacing.is_some()
    }

    /// Whether it has ended what it began.
    pub(super) fn is_done(&self) -> bool {
        self.replacing.is_none()
    }
}

impl World {
    /// A new node takes the place of the one in this slot; with `is_lost` that one's disk is lost.
    /// False: another replacement is under way.
    pub(super) fn replace(&mut self, slot: usize, is_lost: bool, draw: &mut Draw) -> bool {
        let busy = self.operator.replacing.is_some() || self.operator.replaced >= REPLACEMENTS_MAX;
        let old = self.slots[slot];
        if busy || self.machines[usize::from(old)].is_gone {
            return false;
        }
        if is_lost {
            self.lost(old, draw);
        }
        self.replace_gone(slot);
        true
    }

    /// The nodes that vote and are not gone.
    pub(super) fn members(&self) -> Vec<u16> {
        let replacing = self.operator.replacing;
        let of = |node: &u16| match replacing {
            Some(what) if what.new == *node => what.old,
            _ => *node,
        };
        let mut members: Vec<u16> = self.slots.iter().map(of).collect();
        members.retain(|node| !self.machine_is_gone(*node));
        members
    }

    /// A node is gone for good.
    pub(super) fn lost(&mut self, node: u16, draw: &mut Draw) {
        self.power_loss(node, draw);
        self.machines[usize::from(node)].is_gone = true;
    }

    fn replace_gone(&mut self, slot: usize) {
        let old = self.slots[slot];
        let new = self.machines.len() as u16;
        let mut disk = Disk::format_joining(self.sizes.geometry, NodeId(new + 1));
        disk.remembers = is_victim(&self.options, slot);
        let draw = Draw::stream(self.options.seed, &format!("machine {new}"));
        let clock = Clock::new(self.operator.draw.below(CLOCKS_APART_MICROS));
        let known = (0..=new).filter(|node| !self.machine_is_gone(*node)).collect();
        self.machines.push(Machine::new(disk, clock, known, draw));
        self.links.add(self.options.seed, new);
        self.oracle.node_added();
        self.slots[slot] = new;
        self.operator.replacing = Some(Replacing { old, new });
        self.operator.replaced += 1;
        let nanos = self.operator.draw.nanos(20_000_000);
        self.after(nanos, Event::Start(new));
        for other in 0..new {
            self.link_retry((other, new));
        }
        self.operator_call();
    }

    fn machine_is_gone(&self, node: u16) -> bool {
        self.machines.get(usize::from(node)).is_some_and(|machine| machine.is_gone)
    }

    /// Leadership and reads are kept away from a node, or not any more.
    pub(super) fn drain(&mut self, node: u16, drained: bool) {
        self.operator.drains.insert(node, drained);
        self.operator_call();
    }

    /// Nobody shall stay drained.
    pub(super) fn undrain_all(&mut self) {
        self.operator.drains.values_mut().for_each(|drained| *drained = false);
        self.operator_call();
    }

    /// A member that is gone and that nobody replaces yet.
    fn slot_gone(&self) -> Option<usize> {
        let free = self.operator.replacing.is_none() && self.operator.replaced < REPLACEMENTS_MAX;
        let gone = self.slots.iter().position(|node| self.machine_is_gone(*node));
        gone.filter(|_| free && self.sizes.nodes > 1)
    }

    pub(super) fn operator_call(&mut self) {
        let replaces = self.operator.replacing.is_some() || self.slot_gone().is_some();
        let work = replaces || !self.operator.drains.is_empty();
        if work && !std::mem::replace(&mut self.operator.is_called, true) {
            let nanos = self.operator.draw.nanos(OPERATE_NANOS);
            self.after(nanos, Event::Operate);
        }
    }

    /// The operator looks what the leader says, and asks it for what is missing.
    pub(super) fn operate(&mut self) -> Result<(), Failure> {
        self.operator.is_called = false;
        if let Some(slot) = self.slot_gone() {
            self.replace_gone(slot);
        }
        let leads = |machine: &Machine| {
            machine.held.is_none() && machine.node.as_ref().is_some_and(Node::leads)
        };
        let leader = self.machines.iter().position(leads);
        if let Some(leader) = leader {
            let leader = leader as u16;
            self.replacement_turn(leader)?;
            self.drains_turn(leader)?;
        }
        self.operator_call();
        Ok(())
    }

    fn replacement_turn(&mut self, leader: u16) -> Result<(), Failure> {
        let Some(Replacing { old, new }) = self.operator.replacing else { return Ok(()) };
        let (old_id, new_id) = (NodeId(old + 1), NodeId(new + 1));
        let mut is_done = false;
        self.with_node(leader, |node: &mut Node, scene: &mut Scene<'_>| {
            let members = node.members(scene);
            let is_there = |id: NodeId| members.iter().any(|(member, _)| *member == id);
            is_done = members.contains(&(new_id, MemberKind::Voter)) && !is_there(old_id);
            if is_there(new_id) {
                return Ok(());
            }
            let Member { peer_address, client_address } = member(new);
            let (old, new) = (Some(old_id), new_id);
            let command = RootCommand::MemberReplace { old, new, peer_address, client_address };
            node.command(command, scene)
        })?;
        if is_done {
            self.operator.replacing = None;
            self.operator.drains.remove(&old);
            if !self.machines[usize::from(old)].is_gone {
                let mut draw = self.operator.draw.fork();
                self.lost(old, &mut draw);
            }
        }
        Ok(())
    }

    fn drains_turn(&mut self, leader: u16) -> Result<(), Failure> {
        let drains = std::mem::take(&mut self.operator.drains);
        for (of, drained) in drains {
            let mut is_so = self.machines[usize::from(of)].is_gone;
            self.with_node(leader, |node: &mut Node, scene: &mut Scene<'_>| {
                let id = NodeId(of + 1);
                is_so |= node.has_drained(id) == drained;
                if is_so {
                    return Ok(());
                }
                node.command(RootCommand::ZoneDrain { node: id, drained }, scene)
            })?;
            // What is drained is kept in mind until it is not.
            if !is_so || (drained && !self.machines[usize::from(of)].is_gone) {
                self.operator.drains.entry(of).or_insert(drained);
            }
        }
        Ok(())
    }
}
