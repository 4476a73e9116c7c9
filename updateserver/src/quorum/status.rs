//! How a replica sees itself and the others.

use spillway_net::ids::{Epoch, Lsn, NodeId};

use super::membership::MemberKind;

/// What a node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaRole {
    /// Leads, and has committed an entry of its term.
    Leader,
    /// Elected; its first entry is not committed, or not applied, yet.
    Elected,
    /// Asks for votes.
    Candidate,
    /// Follows, or waits for a leader.
    Follower,
    /// Receives the log without a vote.
    Learner,
}

impl ReplicaRole {
    /// The word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Elected | Self::Candidate => "candidate",
            Self::Follower => "follower",
            Self::Learner => "learner",
        }
    }
}

/// What the answering node knows of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It leads.
    Leader,
    /// It follows, close to the end of the log.
    Follower,
    /// It follows, far from the end of the log.
    Lagging,
    /// It does not answer.
    Unreachable,
    /// Only the leader would know.
    Unknown,
}

impl MemberState {
    /// The word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Lagging => "lagging",
            Self::Unreachable => "unreachable",
            Self::Unknown => "unknown",
        }
    }
}

/// A member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// The node.
    pub node: NodeId,
    /// Whether it votes.
    pub kind: MemberKind,
    /// What it does.
    pub state: MemberState,
    /// Kept from leading.
    pub drained: bool,
    /// Up to here its log is known to equal the leader's; 0 if not known here.
    pub matched: Lsn,
    /// Applied there; 0 if not known here.
    pub applied: Lsn,
    /// Since its last message, milliseconds; 0 for the node itself, the largest number for one
    /// that was never heard.
    pub silent_ms: u64,
}

/// How a replica sees itself and the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// This node.
    pub node: NodeId,
    /// What it does.
    pub role: ReplicaRole,
    /// Its term.
    pub term: Epoch,
    /// The leader that it knows.
    pub leader: Option<NodeId>,
    /// End of the contiguous durable log here (SCL).
    pub scl: Lsn,
    /// End of what a quorum has durable, of any term (VCL); on the leader only, elsewhere the VDL.
    pub vcl: Lsn,
    /// Committed end (VDL).
    pub vdl: Lsn,
    /// Last index here, durable or not.
    pub last: Lsn,
    /// Applied on all shards here.
    pub applied: Lsn,
    /// How far the tail may run ahead of the committed end, bytes (LAL).
    pub lal_bytes: u64,
    /// How far it is ahead, bytes.
    pub tail_bytes: u64,
    /// All members.
    pub members: Vec<MemberStatus>,
    /// Entries of the own log that could not be read back for a peer since the start.
    pub entries_unreadable: u64,
}
