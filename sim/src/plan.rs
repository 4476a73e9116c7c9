//! Which faults a run meets, and when.
//!
//! The whole plan follows from the seed before the run begins. Every kind of fault has a stream of
//! chance of its own, and every single fault one for what it does, so that leaving out a kind
//! ([`Options::kinds_off`]) or a fault ([`Options::faults_skipped`]) moves no other. Faults are
//! numbered in the order of their times, those left out included: the numbers of a seed stay.
//!
//! Most seeds meet a few kinds only, some meet all: a kind that is always there hides what shows
//! in its absence only (swarm testing).

use std::fmt;

use crate::draw::Draw;
use crate::options::{Bug, Mode, Options, SECOND};

/// A kind of fault. What each does stands at the head of the device that it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A node loses its power.
    PowerLoss,
    /// All nodes lose their power at once.
    PowerLossAll,
    /// The next start of a node loses power while it writes its superblock.
    PowerLossInStart,
    /// The next write of a node fails, or is short.
    WriteError,
    /// A client's connection is lost.
    ConnectionReset,
    /// One direction, or both, of one link of a node, or of all, is cut for a while.
    Cut,
    /// A message between nodes is lost, and its link with it unless links are lossy.
    MessageLost,
    /// A message between nodes arrives twice: lossy links only.
    MessageTwice,
    /// The operator wants another leader.
    Transfer,
    /// A node stands still for a while; its disk and its clocks go on.
    Pause,
    /// A shard, or the log of a node, gets little CPU for a while.
    CoreSlow,
    /// The wall clock of a node jumps.
    ClockJump,
    /// The clocks of a node run at another rate.
    ClockDrift,
    /// A disk does nothing for a while, then all of it.
    DiskStall,
    /// A disk takes a hundred times as long for a while.
    DiskSlow,
    /// Two halves of a cluster see of each other only one node in the middle.
    Bridge,
    /// One direction of a link lets nothing through for a while, then everything.
    Clog,
    /// Directions of a random set of links are clogged one by one and freed in another order.
    Swizzle,
    /// A link ends; what was on its way arrives in one direction at most.
    LinkReset,
    /// A link takes a hundred times as long for a while.
    LinkSlow,
    /// One direction of a client's connection, or both, lets nothing through for a while.
    ConnectionClog,
    /// Bytes of a client's connection arrive in small pieces from now on.
    ConnectionDribble,
    /// A client goes away in the middle of its requests and never returns.
    ClientGone,
    /// A node is kept from leading and from serving reads for a while.
    Drain,
    /// A node is replaced by a new one while it is well.
    Replace,
    /// A node loses its disk and is replaced by a new one: always the same few, a minority.
    DiskLost,
    /// A node loses power, and its disk the last writes that it had acknowledged, at most four:
    /// of the few that lose disks, and while everybody else is well.
    WritesLost,
    /// A bit of what is durable changes. This and all below: beyond the promise of one node, and
    /// in a cluster on the few that lose disks.
    BitFlip,
    /// A place cannot be read any more.
    ReadError,
    /// A block of an acknowledged write has never reached the medium.
    BlockStale,
    /// A block of an acknowledged write went to another place.
    BlockMisdirected,
    /// From now on a power loss tears what the disk claims to write whole.
    SectorTorn,
}

/// All of them.
pub const FAULT_KINDS: [FaultKind; FAULT_KINDS_COUNT] = [
    FaultKind::PowerLoss,
    FaultKind::PowerLossAll,
    FaultKind::PowerLossInStart,
    FaultKind::WriteError,
    FaultKind::ConnectionReset,
    FaultKind::Cut,
    FaultKind::MessageLost,
    FaultKind::MessageTwice,
    FaultKind::Transfer,
    FaultKind::Pause,
    FaultKind::CoreSlow,
    FaultKind::ClockJump,
    FaultKind::ClockDrift,
    FaultKind::DiskStall,
    FaultKind::DiskSlow,
    FaultKind::Bridge,
    FaultKind::Clog,
    FaultKind::Swizzle,
    FaultKind::LinkReset,
    FaultKind::LinkSlow,
    FaultKind::ConnectionClog,
    FaultKind::ConnectionDribble,
    FaultKind::ClientGone,
    FaultKind::Drain,
    FaultKind::Replace,
    FaultKind::DiskLost,
    FaultKind::WritesLost,
    FaultKind::BitFlip,
    FaultKind::ReadError,
    FaultKind::BlockStale,
    FaultKind::BlockMisdirected,
    FaultKind::SectorTorn,
];

/// How many there are.
pub const FAULT_KINDS_COUNT: usize = 32;

const MILLI: u64 = 1_000_000;
/// How long nothing else happens before a disk loses its last writes, and afterwards.
const CALM_BEFORE: u64 = 300 * MILLI;
const CALM: u64 = 1500 * MILLI;

impl FaultKind {
    /// For reports and the command line: `power-loss`.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    /// The kind of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        FAULT_KINDS.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether a run of these options may meet it.
    pub fn is_possible(self, options: &Options) -> bool {
        let cluster = options.nodes > 1;
        match self {
            Self::PowerLoss
            | Self::PowerLossInStart
            | Self::WriteError
            | Self::ConnectionReset
            | Self::Pause
            | Self::CoreSlow
            | Self::ClockJump
            | Self::ClockDrift
            | Self::DiskStall
            | Self::DiskSlow
            | Self::ConnectionClog
            | Self::ConnectionDribble
            | Self::ClientGone => true,
            Self::PowerLossAll
            | Self::Cut
            | Self::MessageLost
            | Self::Transfer
            | Self::Clog
            | Self::Swizzle
            | Self::LinkReset
            | Self::LinkSlow
            | Self::Drain
            | Self::Replace => cluster,
            Self::Bridge | Self::DiskLost | Self::WritesLost => options.nodes > 2,
            Self::BitFlip
            | Self::ReadError
            | Self::BlockStale
            | Self::BlockMisdirected
            | Self::SectorTorn => options.mode == Mode::Beyond && options.nodes != 2,
            Self::MessageTwice => cluster && options.lossy,
        }
    }

    /// Typical times between two of them: one is drawn for each seed.
    fn intervals(self, options: &Options) -> [u64; 3] {
        let alone = options.nodes == 1;
        let millis = match self {
            Self::PowerLoss if alone => [60, 200, 600],
            Self::PowerLoss => [150, 400, 1200],
            Self::PowerLossAll => [800, 1500, 3000],
            Self::PowerLossInStart => [200, 500, 1500],
            Self::WriteError if options.bug == Some(Bug::WriteErrorIgnored) => [10, 20, 40],
            Self::WriteError => [200, 500, 1500],
            Self::ConnectionReset => [20, 100, 500],
            Self::Cut => [100, 400, 1200],
            Self::MessageLost => [10, 100, 400],
            Self::MessageTwice => [5, 20, 100],
            Self::Transfer => [200, 400, 1000],
            Self::Pause => [200, 600, 2000],
            Self::CoreSlow => [100, 400, 1500],
            Self::ClockJump => [300, 1000, 2000],
            Self::ClockDrift => [500, 1000, 2000],
            Self::DiskStall => [300, 800, 2000],
            Self::DiskSlow => [300, 800, 2000],
            Self::Bridge => [300, 800, 2000],
            Self::Clog => [50, 200, 800],
            Self::Swizzle => [400, 1000, 2000],
            Self::LinkReset => [50, 200, 800],
            Self::LinkSlow => [200, 600, 1500],
            Self::ConnectionClog => [30, 150, 600],
            Self::ConnectionDribble => [30, 150, 600],
            Self::ClientGone => [200, 600, 1500],
            Self::Drain => [200, 600, 1500],
            Self::Replace => [1000, 2000, 3000],
            Self::DiskLost => [1000, 2000, 3000],
            Self::WritesLost => [1200, 1500, 2000],
            Self::BitFlip
            | Self::ReadError
            | Self::BlockStale
            | Self::BlockMisdirected
            | Self::SectorTorn => [400, 800, 1500],
        };
        millis.map(|millis| millis * MILLI)
    }

    /// Whether this seed meets it whatever else it meets.
    fn is_certain(self, options: &Options) -> bool {
        self == Self::WriteError && options.bug == Some(Bug::WriteErrorIgnored)
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultKinds(u64);

impl FaultKinds {
    /// No kind.
    pub const NONE: Self = Self(0);

    /// All kinds.
    pub const ALL: Self = Self((1 << FAULT_KINDS_COUNT) - 1);

    /// Of these.
    pub fn of(kinds: impl IntoIterator<Item = FaultKind>) -> Self {
        Self(kinds.into_iter().fold(0, |set, kind| set | 1 << kind as u64))
    }

    /// Whether a kind is one of them.
    pub fn contains(self, kind: FaultKind) -> bool {
        self.0 & 1 << kind as u64 != 0
    }

    /// With one kind more.
    #[must_use]
    pub fn with(self, kind: FaultKind) -> Self {
        Self(self.0 | 1 << kind as u64)
    }

    /// They, in order.
    pub fn iter(self) -> impl Iterator<Item = FaultKind> {
        FAULT_KINDS.into_iter().filter(move |kind| self.contains(*kind))
    }
}

impl fmt::Debug for FaultKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// One fault of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number in the plan of its seed.
    pub ordinal: u64,
    /// When it strikes, nanoseconds of virtual time.
    pub at: u64,
    /// What it is.
    pub kind: FaultKind,
    /// What everything else of it is drawn from.
    pub seed: u64,
}

impl Fault {
    /// The chance that only this fault draws from.
    pub fn draw(&self) -> Draw {
        Draw::new(self.seed)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.at / MILLI;
        write!(f, "fault {} at {millis} ms: {}", self.ordinal, self.kind.name())
    }
}

/// The kinds that a seed meets.
pub fn kinds_of(options: &Options) -> FaultKinds {
    if let Some(kinds) = options.kinds {
        return kinds;
    }
    let mut draw = Draw::stream(options.seed, "kinds of faults");
    let rarity = draw.pick(&[6, 4, 3, 2, 1]);
    let mut kinds = FaultKinds::NONE;
    for kind in FAULT_KINDS {
        // Nearly everything that is promised is promised over a restart.
        let rarity = if kind == FaultKind::PowerLoss { rarity.min(2) } else { rarity };
        if draw.once_in(rarity) || kind.is_certain(options) {
            kinds = kinds.with(kind);
        }
    }
    kinds
}

/// All faults of a run in the order of their times, those included that it leaves out.
pub fn plan(options: &Options) -> Vec<Fault> {
    let kinds = kinds_of(options);
    // A longer run meets more faults, but fewer in a second: every restart reads a longer log.
    let seconds = (options.faults_nanos / SECOND).max(1);
    let stretch = if seconds > 6 { seconds.div_ceil(6).min(8) } else { 1 };
    let mut faults = Vec::new();
    for kind in kinds.iter().filter(|kind| kind.is_possible(options)) {
        let mut draw = Draw::stream(options.seed, &kind.name());
        let typical = draw.pick(&kind.intervals(options)) * stretch;
        let mut at = draw.nanos(typical);
        while at < options.faults_nanos {
            faults.push(Fault { ordinal: 0, at, kind, seed: draw.bits() });
            at += draw.nanos(typical);
        }
    }
    calm_down(&mut faults);
    faults.sort_by_key(|fault| (fault.at, fault.kind));
    for (ordinal, fault) in (0..).zip(&mut faults) {
        fault.ordinal = ordinal;
    }
    faults
}

/// A majority that is not well may forget what a disk has lost without a trace: around such a loss
/// nothing else happens.
fn calm_down(faults: &mut Vec<Fault>) {
    let lost = faults.iter().filter(|fault| fault.kind == FaultKind::WritesLost);
    let lost: Vec<u64> = lost.map(|fault| fault.at).collect();
    let is_near = |at: u64| lost.iter().any(|lost| at + CALM_BEFORE > *lost && at < *lost + CALM);
    faults.retain(|fault| fault.kind == FaultKind::WritesLost || !is_near(fault.at));
}

/// How many faults of each kind struck.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts([u64; FAULT_KINDS_COUNT]);

impl FaultCounts {
    /// Another one.
    pub fn note(&mut self, kind: FaultKind) {
        self.0[kind as usize] += 1;
    }

    /// Of a kind.
    pub fn of(&self, kind: FaultKind) -> u64 {
        self.0[kind as usize]
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }
}

impl fmt::Debug for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let struck = FAULT_KINDS.into_iter().filter(|kind| self.of(*kind) > 0);
        f.debug_map().entries(struck.map(|kind| (kind, self.of(kind)))).finish()
    }
}

/// Whether a run of these options leaves a fault out.
pub fn is_left_out(fault: &Fault, options: &Options) -> bool {
    options.kinds_off.contains(fault.kind) || options.faults_skipped.contains(&fault.ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_places_and_names() {
        for (at, kind) in FAULT_KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            assert_eq!(FaultKind::of_name(&kind.name()), Some(kind));
        }
        assert_eq!(FaultKinds::of(FAULT_KINDS), FaultKinds::ALL);
    }

    #[test]
    fn what_is_left_out_moves_nothing() {
        for seed in 0..50 {
            let options = Options::cluster(seed, 3);
            let whole = plan(&options);
            assert!(whole.windows(2).all(|pair| pair[0].at <= pair[1].at));
            let off = FaultKinds::of([FaultKind::PowerLoss, FaultKind::Cut]);
            let skipped = [1, 5].into();
            let less = Options { kinds_off: off, faults_skipped: skipped, ..options };
            assert_eq!(plan(&less), whole);
            let left_out = whole.iter().filter(|fault| is_left_out(fault, &less));
            assert!(
                left_out
                    .clone()
                    .all(|fault| off.contains(fault.kind) || [1, 5].contains(&fault.ordinal))
            );
            assert!(whole.len() < 6 || left_out.count() >= 2);
        }
    }

    #[test]
    fn some_seeds_meet_few_kinds_and_some_all() {
        let counts: Vec<usize> =
            (0..200).map(|seed| kinds_of(&Options::cluster(seed, 3)).iter().count()).collect();
        assert!(counts.contains(&FAULT_KINDS_COUNT));
        assert!(counts.iter().filter(|count| **count <= FAULT_KINDS_COUNT / 2).count() > 50);
    }
}
