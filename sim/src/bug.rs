//! The bugs that can be planted.

/// A bug of the glue around the cores, planted to prove that the oracles see it.
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
}

/// Those that show on a node of its own.
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

/// Those that are looked for in a cluster.
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
    /// Its name on the command line: `OrderLost` is `order-lost`.
    pub fn name(self) -> String {
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
        let bugs: Vec<Self> = BUGS.into_iter().chain(BUGS_CLUSTER).collect();
        let names: Vec<_> = bugs.iter().map(|bug| bug.name()).collect();
        let known = bugs.into_iter().find(|bug| bug.name() == name);
        known.ok_or_else(|| format!("one of {}", names.join(", ")))
    }
}
