//! Why a replica must stop: going on could lose or fork what was acknowledged.

use spillway_net::ids::{Epoch, Lsn, NodeId, WallMicros};

/// Nothing is acknowledged any more. The quorum goes on without this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaFailure {
    /// The leader counts on entries that this node acknowledged and does not have (rule R20).
    #[error(
        "node {leader} leads term {term} and knows everything up to {known} to be on this node, \
         whose log ends at {last}: acknowledged writes were lost here. The log disk dropped them. \
         Replace the disk and let the node join anew: spillway admin replace-node"
    )]
    LogShort {
        /// Who leads.
        leader: NodeId,
        /// In which term.
        term: Epoch,
        /// What this node has acknowledged.
        known: Lsn,
        /// What is here.
        last: Lsn,
    },
    /// An entry does not continue the one that is before it here although both have its term.
    #[error(
        "entry {lsn} from node {from} does not continue the entry before it in this node's log: \
         two logs of one term differ. Compare the logs of both nodes; the one that differs from \
         the others must join anew: spillway admin replace-node"
    )]
    ChainBroken {
        /// Index.
        lsn: Lsn,
        /// Who sent it.
        from: NodeId,
    },
    /// An entry of this index and term is here with other content.
    #[error(
        "entry {lsn} of term {term} from node {from} is not the one in this node's log: two \
         leaders in one term, or a log that was changed. Compare the logs of both nodes; the one \
         that differs from the others must join anew: spillway admin replace-node"
    )]
    EntryDiffers {
        /// Index.
        lsn: Lsn,
        /// Its term on both.
        term: Epoch,
        /// Who sent it.
        from: NodeId,
    },
    /// An entry would replace one that is committed here.
    #[error(
        "entry {lsn} of term {term} from node {from} contradicts what is committed on this node \
         up to {committed}: the cluster has forked. Stop both nodes and compare their logs"
    )]
    CommittedDiffers {
        /// Index.
        lsn: Lsn,
        /// Term of the entry that came.
        term: Epoch,
        /// What is committed here.
        committed: Lsn,
        /// Who sent it.
        from: NodeId,
    },
    /// Batch timestamps must rise.
    #[error(
        "entry {lsn} from node {from} has timestamp {found}, the entry before it {before}: time \
         in the log must rise. The sender runs another build, or its memory is bad"
    )]
    TimestampBack {
        /// Index.
        lsn: Lsn,
        /// Who sent it.
        from: NodeId,
        /// Microseconds of the entry.
        found: u64,
        /// Microseconds of the entry before.
        before: u64,
    },
    /// A configuration entry cannot be read, or contradicts the members.
    #[error(
        "the configuration entry {lsn} cannot be carried out here: {reason}. Install the build \
         that runs on the other nodes"
    )]
    Config {
        /// Index.
        lsn: Lsn,
        /// What is wrong.
        reason: &'static str,
    },
}

impl ReplicaFailure {
    pub(super) fn timestamp_back(
        lsn: Lsn,
        from: NodeId,
        found: WallMicros,
        before: WallMicros,
    ) -> Self {
        assert!(found <= before, "time rises");
        Self::TimestampBack { lsn, from, found: found.0, before: before.0 }
    }
}
