//! The quorum: one log on several nodes, by Raft.
//!
//! [`Replica`] is a pure core: no I/O, no clock, no threads, no randomness. It owns the state
//! machine (the `raft` crate, whose types do not leave this module), the log writer and the batches
//! of a leader. One batch is one entry of the log, one frame on every disk and one message to every
//! peer, in the memory in which it was assembled or received.
//!
//! What a shell does:
//!
//! 1. Recover the log, write the superblock of the boot, and make a [`Replica`].
//! 2. Each turn: report what happened, [`Replica::room`] and [`Replica::append`] for the items of
//!    shards, and [`ReplicaInput::TurnEnd`]. After every step perform the effects, in the order
//!    that [`ReplicaEffects`] names.
//! 3. While it follows: take [`Replica::apply_next`] to the shards, and report
//!    [`ReplicaInput::Applied`].
//! 4. Memory for what peers send comes from [`Replica::reserve`].
//! 5. At the end: [`Replica::shutdown`], and steps until [`Replica::is_quiet`].
//!
//! The slot ring must hold well more than twice the tail's limit: it gives memory back in order,
//! and the tails of two leaders may stand in it at once.

mod cache;
mod catch_up;
mod convert;
mod driver;
mod effects;
mod election;
mod failure;
mod flow;
mod freshness;
mod handover;
mod hard_state;
mod leader;
mod membership;
mod options;
mod peer;
mod ready;
mod repair;
mod replica;
mod report;
mod roles;
mod round;
mod status;
mod storage;
mod tail;
mod transfer;
mod wire;

#[cfg(test)]
mod tests;

pub use effects::{
    CommandAnswer, CommandRefusal, Committed, EntryReadRequest, Now, PeerSend, ReplicaCommand,
    ReplicaEffects, ReplicaInput, Role, RoleChange, Room,
};
pub use failure::ReplicaFailure;
pub use freshness::Freshness;
pub use membership::{
    ConfigChange, ConfigEntry, ConfigEntryFault, MemberKind, Membership, Replacement,
};
pub use options::{ReplicaOptions, ReplicaStart};
pub use repair::{
    LogRepair, REPAIR_ASK_NANOS, RepairEffects, RepairFailure, RepairInput, RepairWrite,
};
pub use replica::Replica;
pub use round::Round;
pub use status::{MemberState, MemberStatus, ReplicaRole, ReplicaStatus};
pub use wire::{
    AppendReject, PEER_HEADER_BYTES, PeerHeader, PeerHeaderFault, PeerMessage, fuzz_peer_header,
};
