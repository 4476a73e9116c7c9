//! What is given to a shard.

use std::sync::Arc;

use spillway_net::frame::FrameHeader;
use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId, SessionId, TableId, WallMicros};
use spillway_net::message::{MemberAddress, Refusal, TableCreated};
use spillway_net::schema::TableDefinition;

use super::RootOrigin;

/// A frame whose header and checksum were checked.
#[derive(Debug, Clone, Copy)]
pub struct InboundFrame<'a> {
    /// Where it came from.
    pub connection: u64,
    /// Its header.
    pub header: FrameHeader,
    /// Its payload, not yet validated.
    pub payload: &'a [u8],
}

/// What the log tells the shards: state that is overwritten, not a queue that can fill.
///
/// A state that is given before frames must have been read **after** those frames arrived: a
/// round of `round_next` or later then begins after the requests, and its success proves that
/// nobody else led when they came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogState {
    /// Committed end of the log.
    pub vdl: Lsn,
    /// Whether its budget is used up.
    pub full: bool,
    /// Whether its device failed.
    pub failed: bool,
    /// Whether the tail or the quorum's applying runs too far ahead: writes are refused for now.
    pub limited: bool,
    /// Whether an operator keeps reads away from this node.
    pub drained: bool,
    /// The first leadership round that had not begun when this state was read. 0 where no round
    /// is needed because nobody else can lead.
    pub round_next: u64,
    /// The newest round in which a quorum said that this node leads.
    pub round_confirmed: u64,
    /// The leader as far as it is known, 0 if it is not.
    pub leader: NodeId,
    /// The newest term this node knows.
    pub epoch: Epoch,
    /// The time as of which what this node has applied is complete: on a follower by the
    /// leader's word, on the leader when it last had proof that it leads.
    pub fresh: WallMicros,
    /// The time when this state was read.
    pub wall: WallMicros,
}

/// Orders of the root service. To be given to the shard in order, and acknowledged by it.
#[derive(Debug, Clone, PartialEq)]
pub enum RootOrder {
    /// The table is committed: use it.
    TableCreate {
        /// Its id.
        table: TableId,
        /// Its definition.
        definition: TableDefinition,
    },
    /// Stop using the table; its drop is logged after all shards said so. A shard that does not
    /// lead any more only acknowledges.
    TableHide {
        /// Its id.
        table: TableId,
    },
    /// The table's drop is committed: forget it.
    TableRemove {
        /// Its id.
        table: TableId,
    },
    /// Stop serving the session; its end is logged after all shards said so. A shard that does
    /// not lead any more only acknowledges.
    SessionHide {
        /// Its id.
        session: SessionId,
    },
    /// The session's end is committed: forget it.
    SessionRemove {
        /// Its id.
        session: SessionId,
    },
}

/// What the root service answers from its state alone: nothing goes into the log whose commit would
/// prove that this node still leads.
#[derive(Debug, Clone, PartialEq)]
pub enum RootAnswer {
    /// It cannot be done.
    Refusal(Refusal),
    /// The table is there already.
    TableCreated(TableCreated),
    /// It is so already.
    Done,
}

/// One section of a committed batch, in place.
#[derive(Debug, Clone, Copy)]
pub struct ApplySection<'a> {
    /// The partition, or [`crate::redo::PARTITION_SYSTEM`].
    pub partition: PartitionId,
    /// The partition's running digest behind it, or the system section's own digest.
    pub digest: u128,
    /// Its archive.
    pub bytes: &'a [u8],
}

/// One committed batch for a follower. All its sections, also those of other shards.
#[derive(Debug, Clone, Copy)]
pub struct ApplyBatch<'a> {
    /// Its index; rises from batch to batch.
    pub lsn: Lsn,
    /// Its timestamp.
    pub timestamp: WallMicros,
    /// Its sections in order.
    pub sections: &'a [ApplySection<'a>],
}

/// One input of the core.
#[derive(Debug)]
pub enum ShardInput<'a> {
    /// A client connected.
    Opened(u64),
    /// A connection is gone.
    Closed(u64),
    /// Frames in the order of their arrival.
    Frames(&'a [InboundFrame<'a>]),
    /// The log has committed this shard's hand-overs up to a stamp, or its state changed.
    Log {
        /// Newest committed hand-over of this shard; while it follows, whatever was told last.
        stamp: u64,
        /// The log's state.
        state: LogState,
    },
    /// The members of the cluster, for clients that look for the leader.
    Members(Arc<[MemberAddress]>),
    /// The root service orders something; to be acknowledged.
    Root(RootOrder),
    /// The root service answers from its state, on shard 0: it leaves once it is proven that this
    /// node led when it was given.
    Answer(RootOrigin, RootAnswer),
    /// The end of a turn: open fragments are handed over.
    TurnEnd,
    /// A committed batch, while this node follows.
    Apply(&'a ApplyBatch<'a>),
    /// This node leads: everything before this term is applied, and its first entry committed.
    Lead {
        /// The term.
        epoch: Epoch,
    },
    /// This node does not lead any more: everything above a hand-over is taken back. Answers
    /// that wait are dropped and all connections closed. Changes nothing on a follower.
    StepDown {
        /// The newest hand-over of this shard that is committed.
        stamp: u64,
    },
}
