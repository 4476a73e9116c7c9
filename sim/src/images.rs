//! Crash images: every short sequence of operations on a log, with a power loss at every moment.
//!
//! A node does one thing after another on a small medium: see [`Operation`]. Whenever something
//! was submitted, and whenever a write has ended, the power may go. Then of what was in flight
//! nothing may have landed, or all, or one piece alone, or all but one piece, or any other subset:
//! all of them where there are few, else 64 random ones. A piece is what the disk writes whole.
//!
//! Each such image is read back by the production recovery, and held against what the node was
//! told and has told: what was reported durable is there, bit for bit and in order; what was never
//! written is not; neither term nor vote is forgotten; the start is not refused; a writer can go on
//! from there. A sample starts again on the image, writes, and loses power a second time.
//!
//! ```text
//! cargo xtask sim images                       # up to three operations
//! cargo xtask sim images --length 2 --limit 100000
//! cargo xtask sim images --run 4711            # one run
//! cargo xtask sim images --length 1 --plant write-confirmed-early
//! ```

mod judge;
mod medium;
mod node;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use spillway_net::ids::{Epoch, NodeId};
use spillway_runtime::slot_ring::SlotRing;
use spillway_updateserver::log::{Geometry, LogWriter, LogWriterOptions};

use crate::draw::Draw;
use judge::{Bad, Model, recover};
use medium::{Medium, Piece};
use node::Node;
pub use node::{OPERATIONS, Operation, SCHEDULES, Schedule};

/// The node of all images.
const NODE: NodeId = NodeId(1);
/// Random subsets of each cut.
const SUBSETS: usize = 64;
/// Up to so many pieces all subsets are tried.
const PIECES_EXHAUSTIVE: usize = 6;
/// Of more pieces than this, which come from blocks that tear within, not each is tried alone.
const PIECES_ALONE_MAX: usize = 80;
/// One image in so many is written to a second time.
const SECOND_LIFE_IN: u64 = 32;
/// Blocks that the bases leave in the segment, about.
const BLOCKS_LEFT: u64 = 24;
/// So many bad images are described.
const DESCRIBED_MAX: usize = 10;

/// The run under way, for a panic.
static RUN: AtomicU64 = AtomicU64::new(u64::MAX);

/// Number of the run under way, or that ran last, in this process.
pub fn run_current() -> u64 {
    RUN.load(Ordering::Relaxed)
}

/// A fault of the node's shell or disk, planted to prove that the images find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// Frames are reported durable when they are submitted.
    WriteConfirmedEarly,
    /// The superblock is reported durable when it is submitted.
    SuperblockConfirmedEarly,
    /// The zeros over the remains of dropped frames are reported durable and never written.
    WipeSkipped,
    /// The superblock of a boot is not written.
    BootNotWritten,
    /// Whichever frame has landed, the oldest one in flight is reported durable.
    GapIgnored,
}

/// All of them.
pub const PLANTS: [Plant; 5] = [
    Plant::WriteConfirmedEarly,
    Plant::SuperblockConfirmedEarly,
    Plant::WipeSkipped,
    Plant::BootNotWritten,
    Plant::GapIgnored,
];

/// What to make images of.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Operations of a sequence at most.
    pub length: u32,
    /// Not more images than this.
    pub limit: u64,
    /// Only this run.
    pub run: Option<u64>,
    /// Chooses the random subsets.
    pub seed: u64,
    /// The planted fault.
    pub plant: Option<Plant>,
}

/// Block and tear sizes, and whether the segment was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    block_bytes: u32,
    tear_bytes: usize,
    is_worn: bool,
}

const SETTINGS: [Setting; 6] = [
    Setting { block_bytes: 512, tear_bytes: 512, is_worn: false },
    Setting { block_bytes: 512, tear_bytes: 512, is_worn: true },
    Setting { block_bytes: 512, tear_bytes: 4096, is_worn: true },
    Setting { block_bytes: 4096, tear_bytes: 4096, is_worn: false },
    Setting { block_bytes: 4096, tear_bytes: 4096, is_worn: true },
    // The disk breaks its word: a start may be refused, and nothing may be lost.
    Setting { block_bytes: 4096, tear_bytes: 512, is_worn: true },
];

impl Setting {
    fn breaks_word(self) -> bool {
        self.tear_bytes < self.block_bytes as usize
    }

    /// A segment holds five of the largest frames, which are 14 blocks.
    fn geometry(self) -> Geometry {
        let batch_bytes_max = 14 * self.block_bytes;
        let table_blocks = (72 * 8u32).div_ceil(self.block_bytes);
        Geometry {
            block_bytes: self.block_bytes,
            segment_bytes: (1 + table_blocks) * self.block_bytes + 5 * batch_bytes_max,
            segments_count: 6,
            partitions: 4,
            batch_bytes_max,
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Sequences of operations that were run, and that there are.
    pub sequences: [u64; 2],
    /// Runs: a sequence with a schedule and a setting.
    pub runs: u64,
    /// Moments at which the power went.
    pub cuts: u64,
    /// Images.
    pub images: u64,
    /// Images of runs whose disk tears blocks, against its word.
    pub images_torn_within: u64,
    /// Of those: refused, which is lawful there.
    pub refused_lawfully: u64,
    /// Images with a torn end.
    pub torn: u64,
    /// Images that were written to again, and images of the second power loss.
    pub second: [u64; 2],
    /// Images that are not as they must be.
    pub bad: u64,
    /// The first of them.
    pub described: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.described {
            writeln!(f, "bad: {line}")?;
        }
        let Self { sequences: [done, all], runs, cuts, images, .. } = self;
        writeln!(f, "{done} of {all} sequences in {runs} runs, {cuts} power losses")?;
        writeln!(f, "{images} images, {} of them with a torn end", self.torn)?;
        let [lives, images] = self.second;
        writeln!(f, "{lives} written to again, with {images} images of a second power loss")?;
        let (within, refused) = (self.images_torn_within, self.refused_lawfully);
        writeln!(
            f,
            "{within} images torn within blocks: {refused} refused, which is lawful there"
        )?;
        write!(f, "{} bad", self.bad)
    }
}

/// All sequences up to a length, the short ones first.
fn sequences(length: u32) -> Vec<Vec<Operation>> {
    let mut all: Vec<Vec<Operation>> = Vec::new();
    let mut longest = vec![Vec::new()];
    for _ in 0..length {
        let longer = longest.iter().flat_map(|sequence: &Vec<Operation>| {
            OPERATIONS.map(|operation| {
                let mut sequence = sequence.clone();
                sequence.push(operation);
                sequence
            })
        });
        longest = longer.collect();
        all.extend(longest.iter().cloned());
    }
    all
}

/// One run: sequence, schedule, setting.
type Run = (usize, Schedule, usize);

/// Short sequences meet every setting; long ones one of them for each schedule, in turn.
fn runs(sequences: &[Vec<Operation>]) -> Vec<Run> {
    let mut runs = Vec::new();
    for (at, sequence) in sequences.iter().enumerate() {
        for (turn, schedule) in SCHEDULES.into_iter().enumerate() {
            if sequence.len() < 3 {
                runs.extend((0..SETTINGS.len()).map(|setting| (at, schedule, setting)));
            } else {
                let mix = Draw::new((at * SCHEDULES.len() + turn) as u64).bits();
                runs.push((at, schedule, mix as usize % SETTINGS.len()));
            }
        }
    }
    runs
}

/// A log that a run goes on from: the entries stand near the end of a segment, which held zeros or
/// older frames before.
struct Base {
    medium: Medium,
    model: Model,
}

fn base(setting: Setting, slots: &mut SlotRing) -> Base {
    let geometry = setting.geometry();
    let medium = Medium::format(geometry);
    let model = Model { hard_states: vec![(0, 0)], ..Model::default() };
    let mut node = Node::new(geometry, medium, model, slots, Schedule::Serial, None);
    let mut no_cut = |_: &mut Medium, _: &Model| Ok(());
    let mut operate = |node: &mut Node<'_>, operation| {
        node.operate(operation, &mut no_cut).expect("nothing fails without a power loss");
    };
    node.boot(&mut |_, _| Ok(())).expect("a fresh log is readable");
    operate(&mut node, Operation::Vote);
    operate(&mut node, Operation::Small);
    if setting.is_worn {
        for _ in 0..geometry.segments_count + 1 {
            operate(&mut node, Operation::Roll);
            operate(&mut node, Operation::Small);
            operate(&mut node, Operation::Floor);
        }
    }
    while node.place().0 > BLOCKS_LEFT {
        let large = node.place().0 > BLOCKS_LEFT + 14;
        operate(&mut node, if large { Operation::Large } else { Operation::Small });
    }
    node.down();
    assert!(node.medium.pending.is_empty(), "all has landed");
    Base { medium: node.medium, model: node.model }
}

/// Makes the images.
///
/// # Panics
/// When an assertion of a core fails: [`run_current`] names the run.
pub fn run(options: &Options) -> Report {
    let sequences = sequences(options.length);
    let runs = runs(&sequences);
    let mut slots = SlotRing::new("images", 2 << 20).expect("a little memory");
    let bases = SETTINGS.map(|setting| base(setting, &mut slots));
    let mut report = Report::default();
    report.sequences[1] = sequences.len() as u64;
    let mut seen = vec![false; sequences.len()];
    // With a limit a sample of all runs: each step goes as far as the golden ratio says.
    let (count, step) = (runs.len(), stride(runs.len()));
    for turn in 0..count {
        let number = (turn * step) % count;
        if options.run.is_some_and(|only| only != number as u64) || report.images >= options.limit {
            continue;
        }
        RUN.store(number as u64, Ordering::Relaxed);
        let (sequence, schedule, setting) = runs[number];
        seen[sequence] = true;
        report.runs += 1;
        let mut images = Images {
            setting: SETTINGS[setting],
            draw: Draw::new(options.seed ^ (number as u64) << 20),
            schedule,
            plant: options.plant,
            limit: options.limit,
            name: format!("run {number}, {:?} {schedule:?}", sequences[sequence]),
            report: &mut report,
            cut: 0,
        };
        images.run(&bases[setting], &sequences[sequence], &mut slots);
    }
    report.sequences[0] = seen.iter().filter(|seen| **seen).count() as u64;
    report
}

/// A step that visits all of `count`, spread evenly.
fn stride(count: usize) -> usize {
    let divides = |step: usize| {
        let (mut a, mut b) = (count, step);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    (count * 5 / 8 + 1..).find(|step| divides(*step)).expect("a larger prime is one")
}

/// The images of one run.
struct Images<'a> {
    setting: Setting,
    draw: Draw,
    schedule: Schedule,
    plant: Option<Plant>,
    limit: u64,
    name: String,
    report: &'a mut Report,
    cut: u64,
}

impl Images<'_> {
    fn run(&mut self, base: &Base, sequence: &[Operation], slots: &mut SlotRing) {
        let geometry = self.setting.geometry();
        let (medium, model) = (base.medium.clone(), base.model.clone());
        let mut ring = SlotRing::new("second", 2 << 20).expect("a little memory");
        let (schedule, plant) = (self.schedule, self.plant);
        let mut node = Node::new(geometry, medium, model, slots, schedule, plant);
        let mut done = node.boot(&mut |_, _| Ok(()));
        for operation in sequence {
            done = done.and_then(|()| {
                node.operate(*operation, &mut |medium, model| {
                    self.power_loss(medium, model, &mut ring);
                    Ok(())
                })
            });
        }
        done = done.and_then(|()| {
            node.drain(&mut |medium, model| {
                self.power_loss(medium, model, &mut ring);
                Ok(())
            })
        });
        if let Err(bad) = done {
            self.bad("without a power loss", &bad);
        }
    }

    fn bad(&mut self, image: &str, bad: &Bad) {
        if let Bad::Refused(_) = bad
            && self.setting.breaks_word()
        {
            self.report.refused_lawfully += 1;
            return;
        }
        self.report.bad += 1;
        if self.report.described.len() < DESCRIBED_MAX {
            let (name, cut) = (&self.name, self.cut);
            let line = format!("{name}, {:?}, power loss {cut}, {image}: {bad:?}", self.setting);
            self.report.described.push(line);
        }
    }

    /// Makes all images of this moment.
    fn power_loss(&mut self, medium: &mut Medium, model: &Model, ring: &mut SlotRing) {
        if self.report.images >= self.limit {
            return;
        }
        self.cut += 1;
        self.report.cuts += 1;
        let pieces = medium.pieces(self.setting.tear_bytes);
        for subset in subsets(pieces.len(), &mut self.draw) {
            self.image(medium, model, &pieces, &subset, ring);
        }
    }

    fn image(
        &mut self,
        medium: &mut Medium,
        model: &Model,
        pieces: &[Piece],
        subset: &[bool],
        ring: &mut SlotRing,
    ) {
        self.report.images += 1;
        self.report.images_torn_within += u64::from(self.setting.breaks_word());
        let mark = medium.mark();
        for (piece, _) in pieces.iter().zip(subset).filter(|(_, landed)| **landed) {
            medium.land_piece(*piece);
        }
        let pending = std::mem::take(&mut medium.pending);
        let read_bytes = self.draw.pick(&[0, 1 << 20]);
        match recover(medium, model, read_bytes) {
            Err(bad) => self.bad(&describe(subset), &bad),
            Ok((superblock, recovered)) => {
                self.report.torn += u64::from(crate::start::is_torn(&recovered));
                // What it finds wrong it says by a failed assertion.
                let next = recovered.superblock_next(&superblock, recovered.term, recovered.vote);
                let options = LogWriterOptions {
                    cluster: next.cluster,
                    node: next.node,
                    term: Epoch(next.term.0),
                    vote: next.vote,
                    boot: next.boot,
                    in_flight_max: 4,
                    watermark_idle_nanos: 1_000_000,
                };
                drop(LogWriter::new(options, recovered.position));
                if self.draw.once_in(SECOND_LIFE_IN) {
                    self.second_life(medium, model, subset, ring);
                }
            }
        }
        medium.pending = pending;
        medium.rollback(mark);
    }

    /// A start on the image, some entries, and power loss again.
    fn second_life(
        &mut self,
        medium: &mut Medium,
        model: &Model,
        first: &[bool],
        ring: &mut SlotRing,
    ) {
        self.report.second[0] += 1;
        let geometry = self.setting.geometry();
        let schedule = self.draw.pick(&SCHEDULES);
        let second = std::mem::take(medium);
        let mut node = Node::new(geometry, second, model.clone(), ring, schedule, self.plant);
        let operations =
            [self.draw.pick(&OPERATIONS), self.draw.pick(&OPERATIONS), Operation::Small];
        // The moment: so many cuts later.
        let mut left = self.draw.below(16);
        let mut bad = Vec::new();
        let (tear, draw) = (self.setting.tear_bytes, &mut self.draw);
        let mut images = 0;
        let mut cut = |medium: &mut Medium, model: &Model| {
            left = left.saturating_sub(1);
            if left > 0 {
                return Ok(());
            }
            let pieces = medium.pieces(tear);
            for at in 0..8 {
                let mark = medium.mark();
                for piece in &pieces {
                    if at == 1 || (at > 1 && draw.once_in(2)) {
                        medium.land_piece(*piece);
                    }
                }
                images += 1;
                bad.extend(recover(medium, model, 0).err());
                medium.rollback(mark);
            }
            // The power is gone: nothing more happens.
            Err(Bad::Wrong(String::new()))
        };
        let mut done = node.boot(&mut cut);
        for operation in operations {
            done = done.and_then(|()| node.operate(operation, &mut cut));
        }
        done = done.and_then(|()| node.drain(&mut cut));
        match done {
            Err(Bad::Wrong(what)) if what.is_empty() => {}
            Err(other) => bad.push(other),
            Ok(()) => {}
        }
        node.medium.pending.clear();
        *medium = node.medium;
        self.report.second[1] += images;
        self.report.images += images;
        self.report.images_torn_within += images * u64::from(self.setting.breaks_word());
        for bad in bad {
            let image = format!("{}, then {schedule:?} {operations:?}", describe(first));
            self.bad(&image, &bad);
        }
    }
}

/// The subsets of so many pieces that are tried.
fn subsets(pieces: usize, draw: &mut Draw) -> Vec<Vec<bool>> {
    if pieces <= PIECES_EXHAUSTIVE {
        let subset = |bits: u32| (0..pieces).map(|at| bits >> at & 1 == 1).collect();
        return (0..1 << pieces).map(subset).collect();
    }
    let one = |at: usize, value: bool| (0..pieces).map(|piece| (piece == at) == value).collect();
    let mut all = vec![vec![false; pieces], vec![true; pieces]];
    let every = pieces.div_ceil(PIECES_ALONE_MAX);
    all.extend((0..pieces).step_by(every).map(|at| one(at, true)));
    all.extend((0..pieces).step_by(every).map(|at| one(at, false)));
    let random = |draw: &mut Draw| (0..pieces).map(|_| draw.once_in(2)).collect();
    all.extend((0..SUBSETS).map(|_| random(draw)));
    all
}

fn describe(subset: &[bool]) -> String {
    let landed: Vec<String> =
        (0..subset.len()).filter(|at| subset[*at]).map(|at| at.to_string()).collect();
    format!("landed of {} pieces: [{}]", subset.len(), landed.join(" "))
}
