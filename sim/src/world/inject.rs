//! One fault, ordered exactly: what of which node's disk, how, and at which moment.

use super::{Event, Landing, World};
use crate::Failure;
use crate::disk::{Disk, EIO, File};
use crate::draw::Draw;
use crate::options::SECOND;
use crate::places::{FrameAt, Part, Place, Which, frames};

const MILLI: u64 = 1_000_000;
/// How soon a moment that has not come is looked for again.
const RETRY_NANOS: u64 = 20_000;
/// How often at most.
const RETRIES_MAX: u64 = 20_000;

/// What happens to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFault {
    /// It holds zeros.
    Zero,
    /// It holds noise.
    Garbage,
    /// One bit is another.
    Bit,
    /// It holds what belongs to another place of the file.
    Misdirected,
    /// It holds what it held before its last write.
    Stale,
    /// It cannot be read.
    ReadError,
    /// The next write fails.
    WriteError,
    /// The power goes while it is written.
    Torn,
}

/// All of them.
pub const BLOCK_FAULTS: [BlockFault; 8] = [
    BlockFault::Zero,
    BlockFault::Garbage,
    BlockFault::Bit,
    BlockFault::Misdirected,
    BlockFault::Stale,
    BlockFault::ReadError,
    BlockFault::WriteError,
    BlockFault::Torn,
];

/// On which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The one that leads.
    Leader,
    /// One that follows.
    Follower,
    /// One that was down for most of a second, and comes back to what it missed.
    Lagging,
}

/// All of them.
pub const VICTIMS: [Victim; 3] = [Victim::Leader, Victim::Follower, Victim::Lagging];

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// While it is down, before it starts.
    Rest,
    /// While it runs; it loses power a moment later.
    Running,
    /// While it is down, and another node is, too.
    OtherRecovers,
    /// While another node takes over.
    TakeOver,
}

/// All of them.
pub const MOMENTS: [Moment; 4] =
    [Moment::Rest, Moment::Running, Moment::OtherRecovers, Moment::TakeOver];

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Injection {
    /// What it strikes.
    pub place: Place,
    /// How.
    pub fault: BlockFault,
    /// Whose.
    pub victim: Victim,
    /// When.
    pub moment: Moment,
    /// The virtual time at which that begins.
    pub at: u64,
}

/// Damage and its consequences.
#[derive(Debug, Default)]
pub(super) struct State {
    injection: Option<Injection>,
    target: u16,
    retries: u64,
}

/// What was damaged, and what became of it.
#[derive(Debug, Default)]
pub struct Exposure {
    pub(super) state: State,
    /// Blocks as they were before.
    originals: Vec<(u16, File, u64, Vec<u8>)>,
    /// Blocks that were changed.
    pub struck: u64,
    /// Repairs from peers that began.
    pub repairs_begun: u64,
    /// Repairs that ended with a whole log.
    pub repairs_ended: u64,
    /// The longest of them.
    pub repair_nanos_max: u64,
    /// Transactions that were acknowledged before the last flip.
    exposed: u64,
    /// Nodes that were replaced because nobody had what they had lost.
    pub(super) nobody_has: u64,
    /// Why nodes must be replaced.
    pub(super) refusals: Vec<String>,
    /// What was committed when the fault had struck.
    committed_then: u64,
    /// What was committed late in the load.
    committed_late: u64,
}

impl Exposure {
    /// A repair wrote a body: what was damaged in it must be what it was, bit for bit.
    pub(super) fn mended(
        &mut self,
        disk: &Disk,
        node: u16,
        write: &spillway_updateserver::quorum::RepairWrite,
    ) -> Result<(), Failure> {
        let end = write.offset + write.body.len() as u64;
        for (of, file, offset, bytes) in &self.originals {
            let within = *of == node
                && *file == File::Segment(write.segment)
                && (write.offset..end).contains(offset);
            let at = *offset as usize;
            if within && disk.bytes(*file)[at..at + bytes.len()] != bytes[..] {
                return Err(Failure::new(format!(
                    "node {} was repaired with something else than what stood there",
                    node + 1
                )));
            }
        }
        Ok(())
    }
}

/// What became of a fault.
#[derive(Clone, Debug)]
pub struct InjectionReport {
    /// Blocks that were changed, writes that failed, power losses in a write.
    pub struck: u64,
    /// Repairs from peers that began, and that ended with a whole log.
    pub repairs: [u64; 2],
    /// The longest of them.
    pub repair_nanos_max: u64,
    /// Transactions that were acknowledged before the last flip.
    pub exposed: u64,
    /// Of the nodes that must be replaced: those that looked for what nobody has.
    pub nobody_has: u64,
    /// Why nodes must be replaced.
    pub retired: Vec<String>,
    /// Entries that were committed from one second after the fault to the end of the load.
    pub committed_after: u64,
}

/// A step of an injection.
#[derive(Clone, Copy, Debug)]
pub enum Inject {
    /// The one that is to lag goes down.
    Lag,
    /// The moment has come.
    Begin,
    /// The disk is struck.
    Strike,
    /// The node loses power; it starts a moment later.
    Restart,
    /// What is committed is noted.
    NoteThen,
    /// Again.
    NoteLate,
    /// A bit of the log of one node flips, and all nodes lose power; again after so long.
    Flip(u64),
}

impl World {
    /// Orders a fault, before the run begins.
    pub fn inject(&mut self, injection: Injection) {
        assert!(self.sizes.nodes > 1, "a node alone has no peers");
        self.exposure.state.injection = Some(injection);
        if injection.victim == Victim::Lagging {
            self.at(injection.at - 800 * MILLI, Event::Inject(Inject::Lag));
        }
        self.at(injection.at, Event::Inject(Inject::Begin));
    }

    /// What became of it, after the run.
    pub(super) fn injection_report(&self) -> InjectionReport {
        let exposure = &self.exposure;
        InjectionReport {
            struck: exposure.struck,
            repairs: [exposure.repairs_begun, exposure.repairs_ended],
            repair_nanos_max: exposure.repair_nanos_max,
            exposed: exposure.exposed,
            nobody_has: exposure.nobody_has,
            retired: exposure.refusals.clone(),
            committed_after: exposure.committed_late.saturating_sub(exposure.committed_then),
        }
    }

    fn leader(&self) -> Option<u16> {
        let leads = |machine: &super::Machine| machine.node.as_ref().is_some_and(|n| n.leads());
        self.machines.iter().position(leads).map(|at| at as u16)
    }

    fn down(&mut self, node: u16) {
        if self.machines[usize::from(node)].is_connectable() {
            let mut draw = self.machines[usize::from(node)].draw.fork();
            self.power_loss(node, &mut draw);
        }
    }

    fn again(&mut self, inject: Inject) {
        self.exposure.state.retries += 1;
        if self.exposure.state.retries < RETRIES_MAX {
            self.after(RETRY_NANOS, Event::Inject(inject));
        }
    }

    pub(super) fn inject_step(&mut self, inject: Inject) -> Result<bool, Failure> {
        if let Inject::Flip(nanos) = inject {
            self.flip(nanos);
            return Ok(false);
        }
        let injection = self.exposure.state.injection.expect("a fault was ordered");
        self.trace.note("inject", self.now, injection.fault as u64, 0);
        match inject {
            Inject::Flip(_) => unreachable!("seen above"),
            Inject::Lag => match self.leader() {
                Some(leader) => {
                    self.exposure.state.target = (leader + 1) % self.sizes.nodes;
                    self.down(self.exposure.state.target);
                }
                None => self.again(inject),
            },
            Inject::Begin => match self.leader() {
                Some(leader) => self.inject_begin(&injection, leader),
                None => self.again(inject),
            },
            Inject::Strike => self.inject_strike(&injection),
            Inject::Restart => {
                let node = self.exposure.state.target;
                if !self.machines[usize::from(node)].is_gone {
                    self.down(node);
                    self.after(50 * MILLI, Event::Start(node));
                }
            }
            Inject::NoteThen => self.exposure.committed_then = self.oracle.history.last().0,
            Inject::NoteLate => self.exposure.committed_late = self.oracle.history.last().0,
        }
        Ok(false)
    }

    /// Lays out what happens to whom from now on.
    fn inject_begin(&mut self, injection: &Injection, leader: u16) {
        let nodes = self.sizes.nodes;
        let target = match injection.victim {
            Victim::Leader => leader,
            Victim::Follower => (leader + 1) % nodes,
            Victim::Lagging => self.exposure.state.target,
        };
        self.exposure.state.target = target;
        let third = (0..nodes).find(|node| *node != target && *node != leader);
        let third = third.unwrap_or((target + 1) % nodes);
        match injection.moment {
            Moment::Rest | Moment::Running => {}
            Moment::OtherRecovers => {
                self.down(third);
                self.after(100 * MILLI, Event::Start(third));
            }
            Moment::TakeOver if target != leader => {
                self.down(leader);
                self.after(500 * MILLI, Event::Start(leader));
            }
            Moment::TakeOver => {}
        }
        if matches!(injection.fault, BlockFault::WriteError | BlockFault::Torn) {
            self.inject_live(injection, target);
        } else {
            self.inject_change(injection, target, target == leader);
        }
        self.after(SECOND, Event::Inject(Inject::NoteThen));
        let late = self.options.faults_end().saturating_sub(self.now + MILLI);
        self.after(late, Event::Inject(Inject::NoteLate));
    }

    /// What strikes a write: the node runs.
    fn inject_live(&mut self, injection: &Injection, target: u16) {
        if injection.victim == Victim::Lagging {
            self.after(0, Event::Start(target));
        }
        self.after(1, Event::Inject(Inject::Strike));
    }

    /// What changes the medium. A leader that is struck while another takes over is down itself.
    fn inject_change(&mut self, injection: &Injection, target: u16, leads: bool) {
        let lags = injection.victim == Victim::Lagging;
        let strike = Event::Inject(Inject::Strike);
        match injection.moment {
            Moment::Rest | Moment::OtherRecovers => {
                self.down(target);
                self.after(1, strike);
                self.after(50 * MILLI, Event::Start(target));
            }
            Moment::TakeOver if leads => {
                self.down(target);
                self.after(1, strike);
                self.after(500 * MILLI, Event::Start(target));
            }
            Moment::TakeOver if lags => {
                self.after(1, strike);
                self.after(MILLI, Event::Start(target));
            }
            Moment::Running if lags => {
                self.after(0, Event::Start(target));
                self.after(5 * MILLI, strike);
                self.after(400 * MILLI, Event::Inject(Inject::Restart));
            }
            Moment::TakeOver | Moment::Running => {
                self.after(1, strike);
                let wait = if injection.moment == Moment::Running { 400 } else { 1200 };
                self.after(wait * MILLI, Event::Inject(Inject::Restart));
            }
        }
    }

    /// Orders flips with power losses of all nodes, the first one after so long.
    pub fn flips(&mut self, nanos: u64) {
        self.after(nanos, Event::Inject(Inject::Flip(nanos)));
    }

    /// One node is damaged at a time: the next flip waits until it is repaired, or replaced.
    fn flip(&mut self, nanos: u64) {
        if self.now + nanos > self.options.faults_end() {
            return;
        }
        self.after(nanos, Event::Inject(Inject::Flip(nanos)));
        let up = self.members();
        let is_up = |node: &u16| self.machines[usize::from(*node)].node.is_some();
        let complete = up.len() == usize::from(self.sizes.nodes) && up.iter().all(is_up);
        if !complete || !self.operator.is_done() || self.leader().is_none() {
            return;
        }
        let geometry = self.sizes.geometry;
        let mut draw = Draw::stream(self.options.seed ^ self.exposure.struck, "flip");
        let target = draw.pick(&up);
        let frames = frames(&self.machines[usize::from(target)].disk, &geometry);
        let bytes: u64 = frames.iter().map(|frame| frame.bytes).sum();
        if bytes == 0 {
            return;
        }
        for node in &up {
            self.down(*node);
            self.after(50 * MILLI, Event::Start(*node));
        }
        let mut at = draw.below(bytes);
        let mut within = |frame: &&FrameAt| {
            let is_here = at < frame.bytes;
            at -= if is_here { 0 } else { frame.bytes };
            is_here
        };
        let frame = frames.iter().find(&mut within).expect("the place lies in a frame");
        let (file, offset) = (File::Segment(frame.segment), frame.offset + at);
        let machine = &mut self.machines[usize::from(target)];
        let block = offset - offset % u64::from(geometry.block_bytes);
        let from = block as usize;
        let before = machine.disk.bytes(file)[from..from + geometry.block()].to_vec();
        let bit = 1 << draw.below(8);
        let byte = machine.disk.bytes(file)[offset as usize] ^ bit;
        machine.disk.change(file, offset, &[byte]);
        machine.is_suspect = true;
        self.exposure.originals.push((target, file, block, before));
        self.exposure.struck += 1;
        let counts = &self.oracle.counts;
        self.exposure.exposed = counts.committed - counts.repeated;
        self.trace.note("flip", self.now, offset, target.into());
    }

    fn inject_strike(&mut self, injection: &Injection) {
        let node = self.exposure.state.target;
        let geometry = self.sizes.geometry;
        let mut draw = Draw::stream(self.options.seed, "inject");
        match injection.fault {
            BlockFault::WriteError => {
                let machine = &mut self.machines[usize::from(node)];
                machine.landings_next.push_back(Landing::Error(EIO));
                self.exposure.struck += 1;
            }
            BlockFault::Torn if matches!(injection.place, Place::Superblock(_)) => {
                let machine = &mut self.machines[usize::from(node)];
                let round = usize::from(injection.place == Place::Superblock(0b1100));
                machine.start_torn = Some((round, draw));
                self.exposure.struck += 1;
                self.down(node);
                self.after(50 * MILLI, Event::Start(node));
            }
            BlockFault::Torn => {
                let machine = &mut self.machines[usize::from(node)];
                if machine.node.is_none() || !machine.disk.has_frame_pending() {
                    return self.again(Inject::Strike);
                }
                self.exposure.struck += 1;
                self.down(node);
                self.after(50 * MILLI, Event::Start(node));
            }
            fault => {
                let machine = &mut self.machines[usize::from(node)];
                let blocks = injection.place.blocks(&machine.disk, &geometry);
                for (file, offset) in blocks {
                    let before = change(&mut machine.disk, file, offset, fault, &mut draw);
                    machine.is_suspect = true;
                    self.exposure.originals.push((node, file, offset, before));
                    self.exposure.struck += 1;
                }
            }
        }
    }
}

/// Damages a block; returns what it held.
fn change(disk: &mut Disk, file: File, offset: u64, fault: BlockFault, draw: &mut Draw) -> Vec<u8> {
    let block = disk.superblock_before(0).len();
    let at = offset as usize;
    let before = disk.bytes(file)[at..at + block].to_vec();
    let after = match fault {
        BlockFault::Zero => vec![0; block],
        BlockFault::Garbage => (0..block).map(|_| draw.bits() as u8).collect(),
        BlockFault::Bit => {
            let mut bytes = before.clone();
            let bit = draw.below(8 * block as u64) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        }
        BlockFault::Misdirected => {
            let bytes = disk.bytes(file);
            let from = if at >= block { at - block } else { at + block };
            bytes[from..from + block].to_vec()
        }
        BlockFault::Stale => disk.superblock_before(offset).to_vec(),
        BlockFault::ReadError => {
            match file {
                File::Segment(segment) => disk.unreadable.push((segment, offset)),
                // A copy that cannot be read counts as a bad one.
                File::Superblock => disk.change(file, offset, &vec![0; block]),
            }
            return before;
        }
        BlockFault::WriteError | BlockFault::Torn => unreachable!("no block changes at rest"),
    };
    disk.change(file, offset, &after);
    before
}

/// Why a combination means nothing.
pub fn is_nonsense(injection: &Injection) -> Option<&'static str> {
    let Injection { place, fault, moment, victim, .. } = *injection;
    let is_superblock = matches!(place, Place::Superblock(_));
    match (fault, place) {
        (_, Place::Frame(Which::Config, _)) => {
            Some("the simulated cluster does not change its members")
        }
        (BlockFault::Stale, Place::Superblock(_)) => None,
        (BlockFault::Stale, Place::Behind) => Some("nothing was written there before"),
        (BlockFault::Stale, _) => Some("segments are used once: equal to zeros"),
        (BlockFault::Zero, Place::Behind) => Some("it holds zeros"),
        (BlockFault::WriteError, Place::Frame(Which::Last, Part::Local)) => {
            (moment == Moment::Rest).then_some("nothing is written at rest")
        }
        (BlockFault::WriteError, _) => Some("a write of a frame fails as a whole"),
        (BlockFault::Torn, Place::Superblock(0b0011 | 0b1100)) => (moment != Moment::Rest
            || victim == Victim::Lagging)
            .then_some("equal to the same at rest: a start writes it"),
        (BlockFault::Torn, Place::Frame(Which::Last, Part::Body)) => {
            (moment == Moment::Rest).then_some("nothing is written at rest")
        }
        (BlockFault::Torn, _) => Some("only what is being written can be torn"),
        (BlockFault::ReadError, _) if is_superblock => Some("counts as a bad copy: equal to zeros"),
        _ => None,
    }
}
