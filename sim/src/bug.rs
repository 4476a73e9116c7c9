//! The bugs that can be planted: mistakes of the shells, made in the glue around the cores, and
//! mistakes in the product itself.
//!
//! A simulator that finds nothing proves nothing. Each bug here must be found, within minutes, by a
//! rule of the judge or by an assertion of the product: see [`crate::detect`].

use spillway_runtime::faults::Planted;

use crate::options::{Mode, Options, SECOND};
use crate::plan::{FaultKind, FaultKinds};

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A log write is reported durable while it is still on its way to the disk.
    WriteConfirmedEarly,
    /// At the completion of one write, all issued ones count as durable.
    CommitOutOfOrder,
    /// Shards are told that what they handed over is committed at once.
    AnswerBeforeCommit,
    /// A write error is reported as success.
    WriteErrorIgnored,
    /// The last section of an item that has several does not reach the log.
    SectionDropped,
    /// An item now and then never reaches the log.
    HandOverLost,
    /// Replay leaves out the newest entry.
    ReplayOneLess,
    /// Replay leaves out one section now and then.
    ReplaySectionSkipped,
    /// After a restart the shards know no outcomes.
    SessionsForgotten,
    /// A restart does not write the superblock of its boot.
    SuperblockNotWritten,
    /// An order of the root service now and then does not reach a shard.
    OrderLost,
    /// A start takes entries for committed that may still be superseded.
    TailNotHeldBack,
    /// Shards are told that a round of leadership succeeded when it has only begun.
    RoundNotAwaited,
    /// A superblock write in service is reported durable, and lost.
    HardStateLost,
    /// One in the product.
    Product(Planted),
}

/// Those of the shells that show on a node of its own.
pub const BUGS: [Bug; 11] = [
    Bug::WriteConfirmedEarly,
    Bug::CommitOutOfOrder,
    Bug::AnswerBeforeCommit,
    Bug::WriteErrorIgnored,
    Bug::SectionDropped,
    Bug::HandOverLost,
    Bug::ReplayOneLess,
    Bug::ReplaySectionSkipped,
    Bug::SessionsForgotten,
    Bug::SuperblockNotWritten,
    Bug::OrderLost,
];

/// Those of the shells that are looked for in a cluster.
pub const BUGS_CLUSTER: [Bug; 7] = [
    Bug::WriteConfirmedEarly,
    Bug::AnswerBeforeCommit,
    Bug::HandOverLost,
    Bug::ReplaySectionSkipped,
    Bug::TailNotHeldBack,
    Bug::RoundNotAwaited,
    Bug::HardStateLost,
];

impl Bug {
    /// All of them, each once.
    pub fn all() -> Vec<Self> {
        let shells = BUGS.into_iter().chain(BUGS_CLUSTER);
        let mut all: Vec<Self> = Vec::new();
        for bug in shells.chain(Planted::ALL.into_iter().map(Self::Product)) {
            if !all.contains(&bug) {
                all.push(bug);
            }
        }
        all
    }

    /// The bug of the product, if it is one.
    pub fn planted(self) -> Option<Planted> {
        match self {
            Self::Product(planted) => Some(planted),
            _ => None,
        }
    }

    /// Its name on the command line: `OrderLost` is `order-lost`.
    pub fn name(self) -> String {
        if let Self::Product(planted) = self {
            return planted.name();
        }
        let mut out = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !out.is_empty() {
                out.push('-');
            }
            out.push(letter.to_ascii_lowercase());
        }
        out
    }

    /// The bug of this name.
    pub fn parse(name: &str) -> Result<Self, String> {
        let bugs = Self::all();
        let names: Vec<_> = bugs.iter().map(|bug| bug.name()).collect();
        let known = bugs.into_iter().find(|bug| bug.name() == name);
        known.ok_or_else(|| format!("one of {}", names.join(", ")))
    }

    /// What is broken, a sentence.
    pub const fn text(self) -> &'static str {
        match self {
            Self::WriteConfirmedEarly => "A frame's write is reported durable on its way.",
            Self::CommitOutOfOrder => "One completed write makes all that were issued count.",
            Self::AnswerBeforeCommit => "Shards hear that all they handed over is committed.",
            Self::WriteErrorIgnored => "A write error is reported as success.",
            Self::SectionDropped => "The last of several sections does not reach the log.",
            Self::HandOverLost => "Now and then an item does not reach the log.",
            Self::ReplayOneLess => "Replay leaves out the newest entry.",
            Self::ReplaySectionSkipped => "Replay leaves out a section now and then.",
            Self::SessionsForgotten => "After a restart the shards know no outcomes.",
            Self::SuperblockNotWritten => "A start does not write its superblock.",
            Self::OrderLost => "An order of the root service does not reach a shard.",
            Self::TailNotHeldBack => "A start applies what may still be superseded.",
            Self::RoundNotAwaited => "A round of leadership succeeds when it begins.",
            Self::HardStateLost => "A superblock is reported durable, and lost.",
            Self::Product(planted) => planted.text(),
        }
    }

    /// The least cluster in which it is looked for.
    pub fn nodes(self) -> u16 {
        use Planted::{
            ClientForgetsDoubt, ClockNotCarriedOver, CommitHintAhead, CommitsOlderTerm,
            DeadlineLost, FollowerAcknowledgesEarly, FollowerReadsEarly, LeadsBeforeApplied,
            LeadsBeforeOwnEntry, LogMatchingSkipped, OutcomesNotApplied, RoundConfirmedAlone,
            RoundOfThePast, SectionsAppliedBackwards, StepDownKeepsOutcomes, StepDownKeepsRows,
            VoteForShortLog, VoteForgotten, VoteNotAwaited, VotesTwice,
        };
        let cluster = match self {
            Self::Product(planted) => matches!(
                planted,
                ClientForgetsDoubt
                    | ClockNotCarriedOver
                    | CommitHintAhead
                    | CommitsOlderTerm
                    | DeadlineLost
                    | FollowerAcknowledgesEarly
                    | FollowerReadsEarly
                    | LeadsBeforeApplied
                    | LeadsBeforeOwnEntry
                    | LogMatchingSkipped
                    | OutcomesNotApplied
                    | RoundConfirmedAlone
                    | RoundOfThePast
                    | SectionsAppliedBackwards
                    | StepDownKeepsOutcomes
                    | StepDownKeepsRows
                    | VoteForShortLog
                    | VoteForgotten
                    | VoteNotAwaited
                    | VotesTwice
            ),
            _ => !BUGS.contains(&self),
        };
        if cluster { 3 } else { 1 }
    }

    /// Whether it shows only where disks change what was durable.
    pub fn needs_damage(self) -> bool {
        matches!(self, Self::Product(Planted::DamageTakenForTorn))
    }

    /// A run in which it is looked for, on so many nodes or on the least number.
    pub fn options(self, seed: u64, nodes: Option<u16>) -> Options {
        let mut options = match nodes.unwrap_or(self.nodes()) {
            1 => Options::new(seed),
            nodes => Options::cluster(seed, nodes),
        };
        options.bug = Some(self);
        if self.needs_damage() {
            options.mode = Mode::Beyond;
            options.faults_nanos = 6 * SECOND;
            options.kinds = Some(FaultKinds::of([FaultKind::PowerLoss, FaultKind::BitFlip]));
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_bugs() {
        let all = Bug::all();
        assert!(all.len() >= 53, "{} bugs", all.len());
        for bug in all {
            assert_eq!(Bug::parse(&bug.name()), Ok(bug));
            assert!(bug.text().ends_with('.'), "{}", bug.text());
        }
        assert!(Bug::parse("none").is_err());
    }
}
