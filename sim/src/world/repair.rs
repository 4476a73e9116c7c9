//! Nodes whose log is damaged: the production repair from the peers, or the end.

use spillway_net::ids::NodeId;
use spillway_net::peer::Hello;
use spillway_updateserver::log::LogDamaged;
use spillway_updateserver::quorum::{LogRepair, RepairEffects, RepairInput, RepairWrite};

use super::{Event, Machine, World};
use crate::Failure;
use crate::disk::File;
use crate::node::{Door, PeerEvent, PeerMessage};
use crate::start::{StartError, Started, check};

/// A node that repairs its log.
pub(super) struct Repairing {
    core: LogRepair,
    door: Door,
    /// The body on its way to the disk, by the write's name.
    write: Option<(u64, RepairWrite)>,
    /// When the next tick is scheduled.
    tick_at: Option<u64>,
    began: u64,
    /// Since when every other member says that it does not have what is looked for.
    lacking_since: Option<u64>,
}

/// After so long the operator believes that nobody has what is looked for: it was never committed,
/// and is gone. The node itself would wait for ever.
const LACKING_NANOS: u64 = 5_000_000_000;

/// How a start began.
pub(super) enum Begun {
    /// The log is whole.
    Started(Box<Started>),
    /// The node refused, and is gone.
    Refused,
    /// It is damaged; the peers may have what stood there.
    Damaged(Box<LogDamaged>),
}

impl Machine {
    /// Whether other nodes can connect to it.
    pub(super) fn is_connectable(&self) -> bool {
        self.node.is_some() || self.repair.is_some()
    }

    /// Whom it knows and connects to, if it is up.
    pub(super) fn door_mut(&mut self) -> Option<&mut Door> {
        let repairs = self.repair.as_mut().map(|repair| &mut repair.door);
        self.node.as_mut().map_or(repairs, |node| Some(&mut node.door))
    }
}

impl World {
    /// A start met damage: the peers are asked. Returns whether that ends the run.
    pub(super) fn repair_begin(&mut self, node: u16, damaged: LogDamaged) -> Result<bool, Failure> {
        assert!(self.sizes.nodes > 1, "a node alone has nobody to ask");
        let machine = &mut self.machines[usize::from(node)];
        let superblock = machine.disk.superblock().expect("it was read a moment ago");
        machine.starts += 1;
        let core =
            LogRepair::new(&superblock, machine.configured.iter().map(|node| NodeId(node + 1)));
        let began = self.now;
        let (write, tick_at, lacking_since) = (None, None, None);
        let now = machine.clock.monotonic(self.now);
        let instance = Hello::INSTANCE_REPAIRING;
        let door = Door::new(&superblock, instance, &machine.configured, now);
        machine.repair = Some(Repairing { core, door, write, tick_at, began, lacking_since });
        self.trace.note("repair", self.now, node.into(), damaged.sequence);
        self.exposure.repairs_begun += 1;
        self.repair_step(node, RepairInput::Damaged(&damaged))
    }

    fn repair_step(&mut self, node: u16, input: RepairInput<'_>) -> Result<bool, Failure> {
        let machine = &mut self.machines[usize::from(node)];
        let Some(repair) = &mut machine.repair else { return Ok(false) };
        let mut out = RepairEffects::default();
        repair.core.step(machine.clock.monotonic(self.now), input, &mut out);
        if let Some(write) = out.write {
            let (file, bytes) = (File::Segment(write.segment), write.body.clone());
            let id = machine.disk.submit(file, write.offset, bytes);
            repair.write = Some((id, write));
            let start = machine.starts;
            self.after_about(node, self.sizes.disk_nanos, Event::RepairLanded { node, start, id });
        }
        if let Some(failure) = out.failed {
            self.refused(node, &failure.to_string())?;
            return Ok(false);
        }
        for (to, header) in out.sends {
            let message = PeerMessage { header: header.encode(), body: None, generation: 0 };
            self.peer_send(node, to.0 - 1, message);
        }
        self.repair_tick_schedule(node);
        Ok(false)
    }

    fn repair_tick_schedule(&mut self, node: u16) {
        let machine = &mut self.machines[usize::from(node)];
        let (start, clock) = (machine.starts, &machine.clock);
        let Some(repair) = &mut machine.repair else { return };
        let Some(deadline) = repair.core.deadline_nanos() else { return };
        let deadline = clock.virtual_at(deadline).max(self.now + 1);
        if repair.tick_at.is_none_or(|at| at != deadline) {
            repair.tick_at = Some(deadline);
            self.at(deadline, Event::RepairTick(node, start));
        }
    }

    fn is_repairing(&self, node: u16, start: u64) -> bool {
        let machine = &self.machines[usize::from(node)];
        machine.starts == start && machine.repair.is_some()
    }

    /// Time has passed.
    pub(super) fn repair_tick(&mut self, node: u16, start: u64) -> Result<bool, Failure> {
        if !self.is_repairing(node, start) {
            return Ok(false);
        }
        let mut others = self.members();
        others.retain(|other| *other != node);
        let Some(repair) = &mut self.machines[usize::from(node)].repair else { return Ok(false) };
        let lacking = others.iter().all(|other| repair.core.is_lacking(NodeId(other + 1)));
        let since = lacking.then(|| repair.lacking_since.unwrap_or(self.now));
        repair.lacking_since = since;
        if since.is_some_and(|since| self.now > since + LACKING_NANOS) {
            self.exposure.nobody_has += 1;
            self.refused(node, "nobody has the damaged entry any more")?;
            return Ok(false);
        }
        self.repair_step(node, RepairInput::Tick)
    }

    /// A link tells something.
    pub(super) fn repair_peer_event(
        &mut self,
        node: u16,
        from: u16,
        event: &PeerEvent,
    ) -> Result<(), Failure> {
        let from = NodeId(from + 1);
        let input = match event {
            PeerEvent::Connected => RepairInput::Connected(from),
            PeerEvent::Lost => return Ok(()),
            PeerEvent::Message(PeerMessage { header, body, .. }) => {
                RepairInput::Message { from, header, body: body.as_deref() }
            }
        };
        self.repair_step(node, input).map(|_| ())
    }

    /// A body has landed: the log is read again.
    pub(super) fn repair_landed(
        &mut self,
        node: u16,
        start: u64,
        id: u64,
    ) -> Result<bool, Failure> {
        if !self.is_repairing(node, start) {
            return Ok(false);
        }
        let machine = &mut self.machines[usize::from(node)];
        let Some(repair) = &mut machine.repair else { return Ok(false) };
        let Some((_, write)) = repair.write.take_if(|(open, _)| *open == id) else {
            return Ok(false);
        };
        let began = repair.began;
        machine.disk.complete(id).expect("it was on its way");
        self.exposure.mended(&machine.disk, node, &write)?;
        match check(&machine.disk) {
            Err(StartError::Damaged(damaged)) => {
                return self.repair_step(node, RepairInput::Damaged(&damaged));
            }
            Err(StartError::Refused(why)) => {
                self.refused(node, &why)?;
                return Ok(false);
            }
            Err(other) => return Err(Failure::new(format!("a repaired log: {other:?}"))),
            Ok(()) => {}
        }
        self.exposure.repair_nanos_max = self.exposure.repair_nanos_max.max(self.now - began);
        self.exposure.repairs_ended += 1;
        self.trace.note("repaired", self.now, node.into(), 0);
        // The links of a repair end with it.
        self.links_down_of(node);
        self.machines[usize::from(node)].repair = None;
        self.start(node)
    }
}
