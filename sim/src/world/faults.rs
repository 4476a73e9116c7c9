//! The faults of the plan: how each strikes, and how all of them end.

use super::{Event, Landing, World};
use crate::Failure;
use crate::disk::{EIO, ENOSPC};
use crate::draw::Draw;
use crate::links::pair_of;
use crate::network::Side;
use crate::plan::{Fault, FaultKind};

impl World {
    /// A fault strikes. What it does is drawn from it alone; if there is nothing that it could
    /// strike now, nothing happens. Faults that wait for their moment are counted then.
    pub(super) fn strike(&mut self, fault: &Fault) -> Result<(), Failure> {
        self.trace.note("fault", self.now, fault.ordinal, fault.kind as u64);
        let mut draw = fault.draw();
        let node = draw.below(self.sizes.nodes.into()) as u16;
        let struck = match fault.kind {
            FaultKind::PowerLoss => self.power_loss_of(&[node], &mut draw),
            FaultKind::PowerLossAll => {
                let all: Vec<u16> = (0..self.sizes.nodes).collect();
                self.power_loss_of(&all, &mut draw)
            }
            FaultKind::PowerLossInStart => {
                let round = draw.below(2) as usize;
                self.machines[usize::from(node)].start_torn = Some((round, draw));
                false
            }
            FaultKind::WriteError => {
                let landing = match draw.below(6) {
                    0 | 1 => Landing::Short,
                    2 => Landing::Error(ENOSPC),
                    _ => Landing::Error(EIO),
                };
                self.machines[usize::from(node)].landings_next.push_back(landing);
                false
            }
            FaultKind::ConnectionReset => self.connection_reset(&mut draw),
            FaultKind::Cut => {
                self.cut(&mut draw);
                true
            }
            FaultKind::MessageLost | FaultKind::MessageTwice => {
                self.message_arm(fault.kind, node, &mut draw);
                false
            }
            FaultKind::Transfer => {
                self.with_node(node, |node, scene| node.transfer(scene))?;
                true
            }
        };
        if struck {
            self.oracle.counts.faults.note(fault.kind);
        }
        Ok(())
    }

    /// From now on nothing goes wrong, and what is still wrong ends.
    pub(super) fn faults_end(&mut self) {
        for machine in &mut self.machines {
            machine.landings_next.clear();
            machine.start_torn = None;
        }
        for pair in self.links.pairs() {
            let link = self.links.get_mut(pair);
            (link.lose_next, link.twice_next, link.cut_until) = ([0; 2], [0; 2], [0; 2]);
        }
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

    fn connection_reset(&mut self, draw: &mut Draw) -> bool {
        let connections = self.network.connections.iter();
        let alive: Vec<u64> =
            connections.filter(|(_, c)| !c.broken).map(|(number, _)| *number).collect();
        if alive.is_empty() {
            return false;
        }
        let number = draw.pick(&alive);
        if let Some(connection) = self.network.connections.get_mut(&number) {
            connection.broken = true;
        }
        self.oracle.counts.resets += 1;
        for side in [Side::Client, Side::Node] {
            self.after(draw.nanos(self.sizes.network_nanos), Event::Gone(number, side));
        }
        true
    }

    /// The next message, or some, of a node to another one.
    fn message_arm(&mut self, kind: FaultKind, node: u16, draw: &mut Draw) {
        let other = self.other(node, draw);
        let (pair, side) = pair_of(node, other);
        let link = self.links.get_mut(pair);
        match kind {
            FaultKind::MessageTwice => link.twice_next[side] += 1,
            _ => link.lose_next[side] += 1,
        }
    }

    /// Another node.
    fn other(&self, node: u16, draw: &mut Draw) -> u16 {
        let step = draw.range(1, self.sizes.nodes.into()) as u16;
        (node + step) % self.sizes.nodes
    }
}
