//! What goes into a replica and what comes out.

use spillway_net::ids::{Epoch, Lsn, NodeId, WallMicros};
use spillway_net::limits::NODES_MAX;
use spillway_runtime::slot_ring::Slot;

use super::failure::ReplicaFailure;
use super::round::Round;
use super::wire::PeerHeader;
use crate::log::{EntryFrame, LogSpace, LogWrite, Poisoned, RawWrite};

/// The time, as the shell read it when the input came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Never goes back.
    pub monotonic_nanos: u64,
    /// May jump.
    pub wall: WallMicros,
}

/// What happened.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "inputs are taken in one by one, never stored")]
pub enum ReplicaInput {
    /// The shell has appended what it had, and reported what there was.
    TurnEnd,
    /// Time has passed.
    Tick,
    /// A frame write ended: bytes written, or errno.
    WriteCompleted {
        /// Of the [`LogWrite`].
        sequence: u64,
        /// Bytes written, or errno.
        result: Result<u32, i32>,
    },
    /// A [`RawWrite`] ended: bytes written, or errno.
    RawCompleted {
        /// Of the write.
        id: u32,
        /// Bytes written, or errno.
        result: Result<u32, i32>,
    },
    /// A message came. Header and entry were checked by the link, and the connection belongs to
    /// `from`.
    Peer {
        /// Who sent it.
        from: NodeId,
        /// What it says.
        header: PeerHeader,
        /// The entry behind it, if the header announced one.
        frame: Option<EntryFrame>,
    },
    /// Messages to this node will arrive from now on.
    PeerConnected(NodeId),
    /// Messages to this node were lost; none will arrive until it is connected again.
    PeerLost(NodeId),
    /// How much waits to be sent to a node.
    PeerOutgoing {
        /// The node.
        node: NodeId,
        /// Bytes that its connection has not taken yet.
        bytes: usize,
    },
    /// An [`EntryReadRequest`] ended: exactly the bytes asked for, or errno.
    EntryRead {
        /// Of the request.
        lsn: Lsn,
        /// The body, or errno.
        result: Result<Slot, i32>,
    },
    /// On all shards everything up to here is applied, or was executed there.
    Applied(Lsn),
    /// All shards have acted on this role change.
    RoleAcknowledged(u64),
    /// A read waits until this round of leadership is confirmed.
    RoundWanted(u64),
    /// From the operator, or from the replicated state.
    Command(ReplicaCommand),
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaCommand {
    /// Hand leadership over, to the best follower if no node is named.
    Transfer {
        /// To whom.
        to: Option<NodeId>,
    },
    /// A node joins as a learner, and votes when it has caught up, in place of another one or
    /// besides the others.
    MemberReplace {
        /// Who goes.
        old: Option<NodeId>,
        /// Who comes.
        new: NodeId,
    },
    /// These nodes are kept from leading. Replaces the list before; never refused.
    Drained(Vec<NodeId>),
}

/// What became of a command: accepted, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandAnswer {
    /// The command.
    pub command: ReplicaCommand,
    /// Accepted, or the reason.
    pub result: Result<(), CommandRefusal>,
}

/// Why a command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandRefusal {
    /// Ask the leader.
    #[error("this node does not lead; send the command to the leader")]
    NotLeader,
    /// The first of them must end before.
    #[error("a change of members or a hand-over is under way; see spillway admin status")]
    Busy,
    /// Not a voter of the cluster.
    #[error("node {0} is no voting member; see spillway admin status")]
    NotVoter(NodeId),
    /// It votes already.
    #[error("node {0} is a voting member already")]
    Member(NodeId),
    /// No more may vote.
    #[error(
        "the cluster has {NODES_MAX} voting members, and no more may vote: name one to replace"
    )]
    Full,
    /// No node could lead as well.
    #[error("no other voter is connected and close to the end of the log; try again later")]
    NobodyReady,
    /// Not given out as node ids.
    #[error("node id {0} is out of range")]
    NodeId(NodeId),
}

/// A message to send. The slot is the memory that the entry was assembled, or received, in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSend {
    /// To whom.
    pub to: NodeId,
    /// What it says.
    pub header: PeerHeader,
    /// The entry behind it.
    pub body: Option<Slot>,
}

/// An entry to read back. The bytes at this place are its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryReadRequest {
    /// Index; comes back with the completion.
    pub lsn: Lsn,
    /// Segment file.
    pub segment: u32,
    /// Offset in the file, a multiple of the block.
    pub offset: u64,
    /// Length, a multiple of the block.
    pub bytes: usize,
}

/// A committed end of the log (VDL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Term in which the entry was proposed.
    pub epoch: Epoch,
    /// Index.
    pub lsn: Lsn,
    /// Highest ticket of this node's own items that are committed. It does not move while another
    /// node leads.
    pub ticket: u64,
    /// Timestamp of the entry.
    pub timestamp: WallMicros,
}

/// What the shards are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Execute, in this epoch.
    Lead {
        /// The term.
        epoch: Epoch,
    },
    /// Apply what the leader commits.
    Follow,
}

/// The role changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// Rises by one with every change; comes back in [`ReplicaInput::RoleAcknowledged`].
    pub number: u64,
    /// From now on.
    pub role: Role,
    /// The committed end at this moment. Of a leadership that ended, everything above was not
    /// committed by it and is rolled back.
    pub barrier: Committed,
}

/// Whether an item can be appended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Append it.
    Fits,
    /// Keep the item: memory, the tail's limit or a hand-over is in the way.
    Later,
    /// The log is full up to its reserve: refuse work until the floor rises.
    LogFull(LogSpace),
    /// A write failed; nothing is accepted any more.
    Poisoned,
    /// This node does not lead.
    NotLeading,
}

/// What the shell has to do, in the order of the fields where that matters: a role change before
/// what follows, a round before any message of it.
#[derive(Debug, Default)]
pub struct ReplicaEffects {
    /// Leadership ended, or began. A change to [`Role::Follow`] comes before `committed`, one to
    /// [`Role::Lead`] after it.
    pub role: Option<RoleChange>,
    /// Rounds went on. Must be seen by the shards before `sends` leave.
    pub round: Option<Round>,
    /// The committed end moved.
    pub committed: Option<Committed>,
    /// Frames to write, durably.
    pub writes: Vec<LogWrite>,
    /// Other writes, durable as well.
    pub raw_writes: Vec<RawWrite>,
    /// Messages, in order for each node.
    pub sends: Vec<PeerSend>,
    /// Entries to read back.
    pub reads: Vec<EntryReadRequest>,
    /// Connections to close and open again: their queues hold memory that is needed.
    pub resets: Vec<NodeId>,
    /// The leader that this node knows changed.
    pub leader: Option<Option<NodeId>>,
    /// The members changed: who is connected to whom should follow.
    pub members: Option<Vec<NodeId>>,
    /// Answers to commands.
    pub answers: Vec<CommandAnswer>,
    /// The log takes no more writes. Reported once.
    pub poisoned: Option<Poisoned>,
    /// The replica has stopped for good. Reported once.
    pub failed: Option<ReplicaFailure>,
    /// A tick is wanted at this time.
    pub next_deadline_nanos: Option<u64>,
}

impl ReplicaEffects {
    /// Empties the lists and keeps their memory.
    pub fn clear(&mut self) {
        self.role = None;
        self.round = None;
        self.committed = None;
        self.writes.clear();
        self.raw_writes.clear();
        self.sends.clear();
        self.reads.clear();
        self.resets.clear();
        self.leader = None;
        self.members = None;
        self.answers.clear();
        self.poisoned = None;
        self.failed = None;
        self.next_deadline_nanos = None;
    }
}
