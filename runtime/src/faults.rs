//! Rare paths that a test forces, and bugs that a test plants.
//!
//! Some paths of the product are met once in a long time: a ring without room, a batch cut short,
//! an entry that has left the memory. At such a place stands [`fault_point!`](crate::fault_point),
//! and the product goes the rare way whenever the point fires. What a point forces is **legal**: it
//! may happen without the point too, and nothing that is promised may break by it.
//!
//! [`planted!`](crate::planted) is the opposite: what it forces is **wrong**, so that a test can
//! prove that the mistake is found. At most one bug is planted at a time.
//!
//! Both are `false` unless the crate is built with its feature `faults` *and* [`arm`] was called on
//! this thread. Without the feature [`BUILT_IN`] is a constant `false`, and nothing of it is left
//! in the program. Only simulators build it in.
//!
//! State is of the thread: a simulated run lives in one thread, and several may run at a time. What
//! fires follows from the seed alone: each point has a generator of its own, so that a new one does
//! not change the others.

use std::cell::Cell;
use std::marker::PhantomData;

/// Whether the points are part of this build.
pub const BUILT_IN: bool = cfg!(feature = "faults");

/// One point in so many is armed in a run.
const ARMED_IN: u64 = 4;
/// An armed point fires once in one of these numbers of times.
const FIRES_IN: [u64; 4] = [2, 8, 40, 200];

macro_rules! table {
    ($(#[$about:meta])* $table:ident { $($name:ident: $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $table {
            $(#[doc = $text] $name,)*
        }

        impl $table {
            /// All of them.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];

            /// What it does, a sentence.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Its name on command lines and in reports: `RowReused` is `row-reused`.
            #[must_use]
            pub fn name(self) -> String {
                let name = match self {
                    $(Self::$name => stringify!($name),)*
                };
                kebab(name)
            }
        }
    };
}

table! {
    /// A place where a rare path can be forced.
    Point {
        ApplyHeld: "A committed entry is not given to the shards yet.",
        BatchKeptBack: "A batch that could be proposed waits for the next step.",
        BatchSealedEarly: "A batch is proposed however small it is.",
        ClientConnectsInHaste: "A client hardly waits for a connection that it makes.",
        ClientProbesFirst: "A client asks a node who leads before it sends anything there.",
        ClientRetriesAtOnce: "A client connects again without waiting.",
        ClientTimesOut: "A client gives a connection up whose answer is not late yet.",
        ClientTurnsElsewhere: "A client turns to another node after a lost connection.",
        CommitHintOld: "A frame says of nothing that it is committed.",
        CommitNotTold: "Followers hear of the committed end with a later turn.",
        ElectionTimeoutNow: "A node that does not lead loses patience at once.",
        EntryEvicted: "An entry leaves the memory although there is room.",
        FlightTakenForLost: "What was sent to a peer counts as lost at the next tick.",
        FragmentClosedEarly: "Open fragments are handed over behind a transaction.",
        GroupOfOne: "A transaction is executed alone instead of with its group.",
        HandoverWanted: "A leader wants another node to lead.",
        ItemLater: "An item finds no room in the open batch.",
        LeaderRefuses: "A leader refuses a frame as if it did not lead yet.",
        MemoryRefused: "A transaction is refused for memory.",
        OrderKeptWaiting: "New rows go on waiting for their place in the order of keys.",
        OverloadedOnce: "A transaction is refused for load.",
        PeerMessageLost: "A message to a peer is not sent.",
        PeerWindowClosed: "The window of a peer closes with half of its budget used up.",
        PersistHeld: "What is durable counts one step later.",
        ReadAheadStopped: "Entries behind the one that a peer wants are not read with it.",
        ReadBackDropped: "An entry that a peer wants is not read now.",
        RootBusy: "The root service refuses a command for the number of those that wait.",
        RoundAskedAgain: "A round of leadership is asked for once more.",
        RoundDelayed: "A round of leadership begins a turn later.",
        RowWrittenAsPatch: "A change of a small row is kept as a patch.",
        RowWrittenWhole: "A change of a large row is kept as a whole row.",
        ScanOrderBehind: "A scan finds the order of keys incomplete.",
        ScanPageShort: "A page of a scan ends behind any row.",
        ScanReadShort: "Recovery reads the log in the smallest pieces.",
        SegmentLeftEarly: "A segment is left although the next frame would fit.",
        SessionSlotReused: "A new session gets the first free slot.",
        SlotRingFull: "The ring of slots has no room.",
        SuperblockHeld: "A superblock that is due is written a step later.",
        TickDoubled: "The state machine's clock ticks twice.",
        TickSkipped: "The state machine's clock misses a tick.",
        TurnEndsEarly: "A shard leaves the rest of its frames to the next turn.",
        VersionReplaced: "A version that could be overwritten in place is replaced.",
        VersionsKept: "Versions that nobody needs are not recycled yet.",
        WatermarkLate: "A watermark frame is put off.",
        WatermarkNow: "A watermark frame is written without the silence before it.",
        WipeInPieces: "Remains of dropped frames are wiped in small pieces.",
        WriteAlone: "A frame waits until no other is being written.",
        WriteHeld: "A frame that could be written waits for the next step.",
    }
}

impl Point {
    /// It fires at most once in so many times.
    const fn fires_in_min(self) -> u64 {
        match self {
            // A connection that stands loses nothing: what is lost is what follows an answer that
            // came late, or an entry that has left the memory. An election takes four messages.
            // With every other one lost for ever most fail, and no node can mend that.
            Self::PeerMessageLost => 8,
            _ => 1,
        }
    }
}

table! {
    /// A bug that can be planted.
    Planted {
        BoundsIgnored: "An addition goes below the least value that was asked for.",
        ClientAcknowledgesUnread: "A client claims to have read answers that it has not.",
        ClientForgetsDoubt: "A client forgets that a frame may have taken effect.",
        ClockNotCarriedOver: "A new leader's time does not begin behind the log's last one.",
        CommitHintAhead: "A frame says that entries are committed which are not durable here.",
        CommitsOlderTerm: "A leader commits an entry of an older term by counting.",
        CompletionCountsForAll: "One completed write makes all that are in flight count.",
        DamageTakenForTorn: "Recovery takes a damaged sector for a write that was cut short.",
        DeadlineLost: "The replica does not ask for its next tick.",
        DigestSkipped: "A deletion is left out of the digest of its partition.",
        DurableClaimedEarly: "A frame says that the frames before it are durable.",
        FenceForgotten: "A newer connection of a session does not end the older one.",
        FollowerAcknowledgesEarly: "A follower acknowledges entries that are not durable there.",
        FollowerReadsEarly: "A read at a follower does not wait for what it must have seen.",
        FramePlaceOverlaps: "A frame begins in the last block of the one before it.",
        LeadsBeforeApplied: "A leader begins before its shards have applied the log.",
        LeadsBeforeOwnEntry: "A leader begins before an entry of its own term is committed.",
        LogMatchingSkipped: "A follower takes an entry without comparing the one before it.",
        OutcomeEvictedEarly: "The outcome behind the last one that was read is forgotten.",
        OutcomesNotApplied: "Followers do not note the outcomes that they apply.",
        OwnAppendCountedEarly: "A leader counts itself before its write is durable.",
        ReadAnswersUncommitted: "An answer does not wait for the commit of what it saw.",
        RemainsNotWiped: "Remains of dropped frames are not wiped before the log goes on.",
        ResultsForgottenEarly: "Results of the oldest outcome are dropped before it was read.",
        RoundConfirmedAlone: "A round of leadership succeeds with the leader's own answer.",
        RoundOfThePast: "A read trusts a round that began before it came.",
        RowVersionReused: "Now and then two writes get one row version.",
        ScanSkipsBehindDeleted: "A scan leaves out the row behind a deleted one.",
        SectionsAppliedBackwards: "A follower applies the sections of an entry backwards.",
        SessionIdReused: "A session gets the id of the one before it in its slot.",
        StepDownKeepsOutcomes: "Outcomes of what is taken back are not forgotten.",
        StepDownKeepsRows: "Rows of what is taken back keep their versions.",
        SuperblockOldestChosen: "A start believes the oldest copy of the superblock.",
        TableIdReused: "After a restart ids of tables begin anew.",
        UndoOldestFirst: "A transaction that fails is undone oldest write first.",
        VoteForShortLog: "A vote goes to a node whose log ends earlier.",
        VoteForgotten: "A restart forgets the vote of the present term.",
        VoteNotAwaited: "A vote leaves before it is durable.",
        VotesTwice: "A node votes again in a term.",
    }
}

/// True when the point is armed in this run and fires now.
#[macro_export]
macro_rules! fault_point {
    ($name:ident) => {
        $crate::faults::BUILT_IN && $crate::faults::fires($crate::faults::Point::$name)
    };
}

/// True when this bug is planted in this run.
#[macro_export]
macro_rules! planted {
    ($name:ident) => {
        $crate::faults::BUILT_IN && $crate::faults::is_planted($crate::faults::Planted::$name)
    };
}

fn kebab(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

/// How often a point was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PointCount {
    /// The product came by, in a run that had the point armed or not.
    pub passed: u64,
    /// It fired.
    pub fired: u64,
}

/// What the points of a run have counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Counts([PointCount; Point::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self([PointCount::default(); Point::ALL.len()])
    }
}

impl Counts {
    /// Of one point.
    pub fn of(&self, point: Point) -> PointCount {
        self.0[point as usize]
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(&other.0) {
            sum.passed += count.passed;
            sum.fired += count.fired;
        }
    }

    /// The points that have not fired.
    pub fn never_fired(&self) -> impl Iterator<Item = Point> {
        Point::ALL.into_iter().filter(|point| self.of(*point).fired == 0)
    }
}

impl std::fmt::Debug for Counts {
    /// Only the points that were passed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let passed = Point::ALL.into_iter().filter(|point| self.of(*point).passed > 0);
        let text = |point: Point| {
            let PointCount { passed, fired } = self.of(point);
            (point.name(), format!("{fired} of {passed}"))
        };
        f.debug_map().entries(passed.map(text)).finish()
    }
}

/// One point on this thread.
struct PointState {
    /// It fires once in so many times; 0: not armed.
    fires_in: Cell<u64>,
    random: Cell<u64>,
    passed: Cell<u64>,
    fired: Cell<u64>,
}

struct State {
    armed: Cell<bool>,
    quiet: Cell<bool>,
    planted: Cell<Option<Planted>>,
    points: [PointState; Point::ALL.len()],
}

thread_local! {
    static STATE: State = const {
        State {
            armed: Cell::new(false),
            quiet: Cell::new(false),
            planted: Cell::new(None),
            points: [const {
                PointState {
                    fires_in: Cell::new(0),
                    random: Cell::new(0),
                    passed: Cell::new(0),
                    fired: Cell::new(0),
                }
            }; Point::ALL.len()],
        }
    };
}

/// SplitMix64.
fn draw(random: &Cell<u64>) -> u64 {
    random.set(random.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
    let mut z = random.get();
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A generator that follows from a seed and a point's name: points may come and go.
fn random_of(seed: u64, point: Point) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in point.name().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    seed ^ hash
}

/// Draws how often a point fires; 0: not at all.
fn fires_in(random: &Cell<u64>, point: Point) -> u64 {
    let armed = draw(random).is_multiple_of(ARMED_IN);
    let fires_in = FIRES_IN[(draw(random) % FIRES_IN.len() as u64) as usize];
    if armed { fires_in.max(point.fires_in_min()) } else { 0 }
}

/// The points that [`arm`] arms with this seed.
pub fn armed_by(seed: u64) -> impl Iterator<Item = Point> {
    let is_armed = move |point: &Point| fires_in(&Cell::new(random_of(seed, *point)), *point) > 0;
    Point::ALL.into_iter().filter(is_armed)
}

/// Whether the points of this thread are armed; they are until this is dropped, also by a panic.
#[derive(Debug)]
pub struct Armed(PhantomData<*const ()>);

/// Draws from the seed which points are armed on this thread and how often each fires, and plants a
/// bug, if one is named.
///
/// # Panics
/// If the points of this thread are armed already, or are not part of this build.
#[must_use]
pub fn arm(seed: u64, bug: Option<Planted>) -> Armed {
    if !BUILT_IN {
        panic!("the points are not part of this build: enable the feature faults");
    }
    STATE.with(|state| {
        assert!(!state.armed.replace(true), "points are armed once per thread at a time");
        state.quiet.set(false);
        state.planted.set(bug);
        for (point, of) in Point::ALL.into_iter().zip(&state.points) {
            of.random.set(random_of(seed, point));
            of.fires_in.set(fires_in(&of.random, point));
            of.passed.set(0);
            of.fired.set(0);
        }
    });
    Armed(PhantomData)
}

impl Armed {
    /// From now on no point fires; a planted bug stays.
    pub fn disarm(self) -> Counts {
        counts()
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        STATE.with(|state| {
            state.armed.set(false);
            state.planted.set(None);
            state.points.iter().for_each(|point| point.fires_in.set(0));
        });
    }
}

/// This point of this thread does not fire until the next [`arm`]; nothing changes for the others.
pub fn disarm(point: Point) {
    STATE.with(|state| state.points[point as usize].fires_in.set(0));
}

/// No point of this thread fires until the next [`arm`]: everything shall come to rest. A planted
/// bug stays.
pub fn quiet() {
    STATE.with(|state| state.quiet.set(true));
}

/// What the points of this thread have counted since [`arm`].
pub fn counts() -> Counts {
    STATE.with(|state| {
        let count = |of: &PointState| PointCount { passed: of.passed.get(), fired: of.fired.get() };
        Counts(std::array::from_fn(|at| count(&state.points[at])))
    })
}

/// See [`fault_point!`](crate::fault_point).
pub fn fires(point: Point) -> bool {
    STATE.with(|state| {
        if !state.armed.get() {
            return false;
        }
        let of = &state.points[point as usize];
        of.passed.set(of.passed.get() + 1);
        let fires_in = of.fires_in.get();
        if fires_in == 0 || state.quiet.get() || !draw(&of.random).is_multiple_of(fires_in) {
            return false;
        }
        of.fired.set(of.fired.get() + 1);
        true
    })
}

/// See [`planted!`](crate::planted).
pub fn is_planted(bug: Planted) -> bool {
    STATE.with(|state| state.planted.get() == Some(bug))
}

#[cfg(all(test, feature = "faults"))]
mod tests {
    use super::*;

    fn fired(seed: u64) -> Vec<bool> {
        let armed = arm(seed, None);
        let all = Point::ALL.into_iter();
        let fired = all.flat_map(|point| (0..100).map(move |_| fires(point))).collect();
        drop(armed);
        fired
    }

    #[test]
    fn nothing_fires_unless_armed() {
        assert!(!fault_point!(ItemLater) && !planted!(VotesTwice));
        assert_eq!(counts(), Counts::default());
        drop(arm(1, Some(Planted::VotesTwice)));
        assert!(Point::ALL.into_iter().all(|point| (0..1000).all(|_| !fires(point))));
        assert!(!planted!(VotesTwice));
    }

    #[test]
    fn what_fires_follows_from_the_seed() {
        assert_eq!(fired(7), fired(7));
        assert_ne!(fired(7), fired(8));
        let mut sum = Counts::default();
        for seed in 0..60 {
            let armed = arm(seed, None);
            for point in Point::ALL {
                let fired = (0..1000).filter(|_| fires(point)).count();
                assert!(fired < 1000, "never always");
            }
            let counts = armed.disarm();
            let armed = Point::ALL.into_iter().filter(|point| counts.of(*point).fired > 0).count();
            assert!(armed < Point::ALL.len() / 2, "{armed} points in seed {seed}");
            sum.add(&counts);
        }
        assert_eq!(sum.never_fired().collect::<Vec<_>>(), []);
        assert_eq!(sum.of(Point::ItemLater).passed, 60_000);
    }

    #[test]
    fn a_quiet_thread_keeps_its_bug() {
        let armed = arm(3, Some(Planted::DigestSkipped));
        assert!(planted!(DigestSkipped) && !planted!(VotesTwice));
        quiet();
        assert!(Point::ALL.into_iter().all(|point| (0..1000).all(|_| !fires(point))));
        assert!(planted!(DigestSkipped));
        assert_eq!(armed.disarm().of(Point::TickSkipped), PointCount { passed: 1000, fired: 0 });
        assert!(!planted!(DigestSkipped));
    }

    #[test]
    fn a_disarmed_point_leaves_the_others() {
        let fired = |off: Option<Point>| -> Vec<u64> {
            let guard = arm(7, None);
            off.into_iter().for_each(disarm);
            for point in Point::ALL {
                (0..1000).for_each(|_| drop(fires(point)));
            }
            let counts = guard.disarm();
            Point::ALL.into_iter().map(|point| counts.of(point).fired).collect()
        };
        let all: Vec<Point> = armed_by(7).collect();
        let before = fired(None);
        let fires = |point: &Point| before[*point as usize] > 0;
        assert_eq!(Point::ALL.into_iter().filter(fires).collect::<Vec<_>>(), all);
        let mut after = fired(Some(all[1]));
        assert!(before[all[1] as usize] > 0 && after[all[1] as usize] == 0);
        after[all[1] as usize] = before[all[1] as usize];
        assert_eq!(after, before);
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!(Point::ItemLater.name(), "item-later");
        assert_eq!(Planted::VotesTwice.text(), "A node votes again in a term.");
        let mut names: Vec<String> = Planted::ALL.into_iter().map(Planted::name).collect();
        names.extend(Point::ALL.into_iter().map(Point::name));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
