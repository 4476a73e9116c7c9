//! What a disk does to an operation: carries it out, fails it, or is without power. Decides, and
//! touches nothing.

use std::time::Duration;

use spillway_perf::identity::Draw;

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To read.
    Read,
    /// To write, durably or not.
    Write,
    /// To make durable what was written.
    Flush,
}

/// Which files of a node are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The redo files.
    Segments,
    /// The superblock.
    Superblock,
}

/// How a fault looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The operation fails with this number of errno.h. Any sectors of a write may have arrived.
    Error(i32),
    /// So many sectors of a write arrive durably, the others do not, and it fails with EIO.
    Torn(u64),
    /// A bit of what is read is wrong.
    FlippedBit,
    /// A flush, or the durable part of a write, is reported as done and is not.
    Lie,
}

/// Which of the operations that it fits a fault hits, counted from 1 from when it was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// This one alone.
    Nth(u64),
    /// This one and all after it.
    From(u64),
    /// One in so many, at random.
    OneIn(u64),
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// With which operation.
    pub operation: Operation,
    /// With which files; none: all.
    pub part: Option<Part>,
    /// How.
    pub effect: Effect,
    /// When.
    pub when: When,
}

/// Faults that may be under way at once.
const FAULTS_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Armed {
    fault: Fault,
    seen: u64,
}

/// What is to be done about an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Done,
    /// It fails with this number. Of a write each sector may have arrived, but not durably; what
    /// a flush was to flush is still volatile, or lost if so said.
    Fail {
        /// Of errno.h.
        errno: i32,
        /// Whether the disk has dropped what it could not flush.
        drops: bool,
    },
    /// So many sectors are written durably, and it fails with EIO.
    Torn(u64),
    /// It is carried out, and this bit of the answer flipped, modulo its length.
    FlipBit(u64),
    /// It is reported as done; nothing becomes durable.
    Lie,
    /// There is no power: nobody will hear the answer. Of a write each sector may arrive.
    Dark,
}

/// What has happened to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Of these, those that ask for durability by themselves (O_DSYNC, RWF_DSYNC).
    pub writes_synced: u64,
    /// Flushes (fsync, fdatasync).
    pub flushes: u64,
    /// Operations that faults hit.
    pub faults: u64,
    /// When a fault hit last, on the monotonic clock.
    pub fault_nanos: u64,
    /// Writes that began after a fault had hit.
    pub writes_after_fault: u64,
    /// Writes that were carried out late: whoever asked for them may be dead by then.
    pub ghosts: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Operations that a power cut left without an answer.
    pub unanswered: u64,
    /// Sectors that power cuts lost.
    pub sectors_lost: u64,
    /// Sectors that were not flushed and outlived power cuts.
    pub sectors_kept: u64,
}

/// One disk.
#[derive(Debug)]
pub struct Disk {
    draw: Draw,
    is_powered: bool,
    faults: Vec<Armed>,
    delay: Duration,
    /// Handles below it get no answer.
    stalled_below: u64,
    /// The power goes with this operation of its kind, counted down from now.
    cut_at: Option<(Operation, u64)>,
    room_bytes: Option<u64>,
    /// See there.
    pub counters: Counters,
}

impl Disk {
    /// A healthy disk. What is random about its faults follows from the seed and its number.
    pub fn new(seed: u64, number: u64) -> Self {
        Self {
            draw: Draw::new(seed, 0xD15C ^ number << 16),
            is_powered: true,
            faults: Vec::new(),
            delay: Duration::ZERO,
            stalled_below: 0,
            cut_at: None,
            room_bytes: None,
            counters: Counters::default(),
        }
    }

    /// Draws that belong to it.
    pub fn draw(&mut self) -> &mut Draw {
        &mut self.draw
    }

    /// From now on this goes wrong. False: too much goes wrong already.
    pub fn arm(&mut self, fault: Fault) -> bool {
        if self.faults.len() == FAULTS_MAX {
            return false;
        }
        self.faults.push(Armed { fault, seen: 0 });
        true
    }

    /// Nothing goes wrong any more, nothing is slow; its power is another matter.
    pub fn heal(&mut self) {
        self.faults.clear();
        self.delay = Duration::ZERO;
        self.stalled_below = 0;
        self.room_bytes = None;
        self.counters.writes_after_fault = 0;
        self.counters.fault_nanos = 0;
    }

    /// How much longer every operation takes.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// See [`Disk::delay`].
    pub fn delay_set(&mut self, delay: Duration) {
        self.delay = delay;
    }

    /// Whether nothing is answered for the time being to who has this handle of a file.
    pub fn is_stalled(&self, handle: u64) -> bool {
        handle < self.stalled_below && self.is_powered
    }

    /// Stops answering to who has a handle below this one.
    pub fn stall(&mut self, handles_below: u64) {
        self.stalled_below = handles_below;
    }

    /// Whether there is power.
    pub fn is_powered(&self) -> bool {
        self.is_powered
    }

    /// The power goes: from now on nothing becomes durable and nothing is answered in time.
    pub fn cut(&mut self) {
        self.cut_at = None;
        if self.is_powered {
            self.is_powered = false;
            self.counters.cuts += 1;
        }
    }

    /// The power goes with the `nth` of these operations, counted from 1, before it is answered.
    pub fn cut_at(&mut self, operation: Operation, nth: u64) {
        self.cut_at = Some((operation, nth));
    }

    /// The power is back.
    pub fn power_on(&mut self) {
        self.is_powered = true;
    }

    /// Bytes that files may still grow by; none: as far as the file system below lets them.
    pub fn room_bytes(&self) -> Option<u64> {
        self.room_bytes
    }

    /// See [`Disk::room_bytes`].
    pub fn room_set(&mut self, room_bytes: Option<u64>) {
        self.room_bytes = room_bytes;
    }

    /// Takes room for growth. False: there is not enough.
    pub fn grow(&mut self, bytes: u64) -> bool {
        match &mut self.room_bytes {
            None => true,
            Some(room) if *room < bytes => false,
            Some(room) => {
                *room -= bytes;
                true
            }
        }
    }

    /// What happens to this operation, at this moment of the monotonic clock.
    pub fn judge(
        &mut self,
        operation: Operation,
        part: Part,
        is_synced: bool,
        now_nanos: u64,
    ) -> Verdict {
        let counters = &mut self.counters;
        match operation {
            Operation::Read => counters.reads += 1,
            Operation::Write => {
                counters.writes += 1;
                counters.writes_synced += u64::from(is_synced);
                counters.writes_after_fault += u64::from(counters.fault_nanos > 0);
            }
            Operation::Flush => counters.flushes += 1,
        }
        if let Some((of, left)) = &mut self.cut_at
            && *of == operation
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.cut();
            }
        }
        let counters = &mut self.counters;
        if !self.is_powered {
            counters.unanswered += 1;
            return Verdict::Dark;
        }
        let Some(effect) = self.effect(operation, part, is_synced) else { return Verdict::Done };
        self.counters.faults += 1;
        self.counters.fault_nanos = now_nanos;
        match effect {
            Effect::Error(errno) => Verdict::Fail { errno, drops: self.draw.below(2) == 0 },
            Effect::Torn(sectors) => Verdict::Torn(sectors),
            Effect::FlippedBit => Verdict::FlipBit(self.draw.bits()),
            Effect::Lie => Verdict::Lie,
        }
    }

    fn effect(&mut self, operation: Operation, part: Part, is_synced: bool) -> Option<Effect> {
        let draw = &mut self.draw;
        let mut effect = None;
        for armed in &mut self.faults {
            let Fault { operation: of, part: in_part, effect: what, when } = armed.fault;
            // A write that is durable by itself has a flush in it.
            let is_flush = of == Operation::Flush && is_synced && what == Effect::Lie;
            if (of != operation && !is_flush) || in_part.is_some_and(|only| only != part) {
                continue;
            }
            armed.seen += 1;
            let hits = match when {
                When::Nth(nth) => armed.seen == nth,
                When::From(first) => armed.seen >= first,
                When::OneIn(many) => draw.below(many.max(1)) == 0,
            };
            if hits && effect.is_none() {
                effect = Some(what);
            }
        }
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(operation: Operation, part: Option<Part>, when: When) -> Fault {
        Fault { operation, part, effect: Effect::Error(libc::EIO), when }
    }

    fn verdicts(disk: &mut Disk, operation: Operation, part: Part, count: usize) -> Vec<bool> {
        (0..count).map(|_| disk.judge(operation, part, false, 5) != Verdict::Done).collect()
    }

    #[test]
    fn faults_hit_what_they_name() {
        let mut disk = Disk::new(1, 0);
        assert!(disk.arm(error(Operation::Write, Some(Part::Segments), When::Nth(2))));
        assert_eq!(verdicts(&mut disk, Operation::Write, Part::Superblock, 3), [false; 3]);
        assert_eq!(verdicts(&mut disk, Operation::Flush, Part::Segments, 3), [false; 3]);
        let hits = verdicts(&mut disk, Operation::Write, Part::Segments, 4);
        assert_eq!(hits, [false, true, false, false]);
        assert_eq!((disk.counters.faults, disk.counters.fault_nanos), (1, 5));
        assert_eq!(disk.counters.writes_after_fault, 2);
        disk.heal();
        assert!(disk.arm(error(Operation::Read, None, When::From(2))));
        let hits = verdicts(&mut disk, Operation::Read, Part::Superblock, 3);
        assert_eq!(hits, [false, true, true]);
        disk.heal();
        assert!(disk.arm(error(Operation::Read, None, When::OneIn(4))));
        let hits = verdicts(&mut disk, Operation::Read, Part::Segments, 4000);
        let count = hits.iter().filter(|hit| **hit).count();
        assert!((800..1200).contains(&count), "{count}");
    }

    #[test]
    fn a_lie_is_told_about_flushes_and_writes_that_flush() {
        let mut disk = Disk::new(1, 0);
        let lie = Fault {
            operation: Operation::Flush,
            part: None,
            effect: Effect::Lie,
            when: When::From(1),
        };
        assert!(disk.arm(lie));
        assert_eq!(disk.judge(Operation::Flush, Part::Segments, false, 1), Verdict::Lie);
        assert_eq!(disk.judge(Operation::Write, Part::Segments, true, 1), Verdict::Lie);
        assert_eq!(disk.judge(Operation::Write, Part::Segments, false, 1), Verdict::Done);
    }

    #[test]
    fn without_power_nothing_is_done() {
        let mut disk = Disk::new(1, 0);
        disk.stall(9);
        assert!(disk.is_stalled(8) && !disk.is_stalled(9));
        disk.cut();
        assert!(!disk.is_stalled(8), "what waits must end");
        assert_eq!(disk.judge(Operation::Write, Part::Segments, true, 1), Verdict::Dark);
        disk.power_on();
        assert_eq!(disk.judge(Operation::Write, Part::Segments, true, 1), Verdict::Done);
        assert_eq!((disk.counters.cuts, disk.counters.unanswered), (1, 1));
    }

    #[test]
    fn the_power_goes_with_an_operation() {
        let mut disk = Disk::new(1, 0);
        disk.cut_at(Operation::Flush, 2);
        assert_eq!(disk.judge(Operation::Flush, Part::Segments, false, 1), Verdict::Done);
        assert_eq!(disk.judge(Operation::Write, Part::Segments, false, 1), Verdict::Done);
        assert_eq!(disk.judge(Operation::Flush, Part::Segments, false, 1), Verdict::Dark);
        disk.cut();
        assert_eq!((disk.is_powered(), disk.counters.cuts), (false, 1), "one and the same cut");
        disk.power_on();
        assert_eq!(disk.judge(Operation::Flush, Part::Segments, false, 1), Verdict::Done);
    }

    #[test]
    fn growth_ends_where_the_room_does() {
        let mut disk = Disk::new(1, 0);
        assert!(disk.grow(u64::MAX));
        disk.room_set(Some(100));
        assert!(disk.grow(60) && !disk.grow(60) && disk.grow(40) && !disk.grow(1));
    }

    #[test]
    fn faults_have_a_limit() {
        let mut disk = Disk::new(1, 0);
        let fault = error(Operation::Read, None, When::Nth(1));
        assert!((0..FAULTS_MAX).all(|_| disk.arm(fault)));
        assert!(!disk.arm(fault));
    }
}
