//! What becomes of a frame.

use crate::frame::FrameKind;
use crate::ids::Lsn;
use crate::message::{ArchivedOutcomeHead, RefusalCode};

/// Names a submitted frame or request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameToken {
    /// The connection it was submitted on.
    pub connection: usize,
    /// The connection's frames and requests are counted from 0.
    pub sequence: u64,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The connection ended and is not made anew.
    Disconnected,
    /// There was no answer within the time given, over all attempts.
    GaveUp,
    /// It was on its way to as many leaders that were lost as is allowed. Not sent to another one
    /// unless the caller asks to resolve it: it may be what they were lost by.
    LeadersLost,
    /// No node leads.
    NoLeader,
    /// A newer connection took the session over.
    Fenced,
    /// The node does not know the session any more.
    SessionUnknown,
    /// The node refused the connection, or refused to say what became of an earlier attempt.
    Refused,
    /// The node broke the protocol, or came back as another cluster or with other shards.
    Protocol,
}

impl LossReason {
    /// For people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Disconnected => "the connection was lost",
            Self::GaveUp => "there was no answer in the time given",
            Self::LeadersLost => "the leaders it was sent to were lost, one after the other",
            Self::NoLeader => "no node leads",
            Self::Fenced => "another connection took the session over",
            Self::SessionUnknown => "the node does not know the session any more",
            Self::Refused => "the node refused",
            Self::Protocol => "the node broke the protocol",
        }
    }
}

/// What became of a frame.
pub enum FrameResult<'a> {
    /// Every transaction has an outcome.
    Outcomes {
        /// Committed LSN at or above everything the answer saw.
        lsn: Lsn,
        /// For outcomes worth a retry: not before this; else 0.
        retry_after_ms: u32,
        /// One entry per transaction, in the batch's order; every `status` is a known one.
        outcomes: &'a [ArchivedOutcomeHead],
        /// Data of all outcomes; their `data_length`s add up to it.
        bytes: &'a [u8],
    },
    /// The answer to a request other than a submit.
    Answer {
        /// What the payload is: the kind that answers the request's kind.
        kind: FrameKind,
        /// Committed LSN at or above everything the answer saw.
        lsn: Lsn,
        /// The archive, not validated yet: use [`crate::message::decode`].
        payload: &'a [u8],
    },
    /// The node refused the frame; none of its transactions took effect.
    Refused {
        /// Why.
        code: RefusalCode,
        /// The node's explanation.
        message: &'a str,
        /// Worth a retry after this many milliseconds; 0: not worth one.
        retry_after_ms: u32,
    },
    /// Whether its transactions took effect is not known. Asking again resolves it, see
    /// [`crate::client::Pipeline::resolve`].
    Unknown(LossReason),
    /// It never left the client; none of its transactions took effect.
    NotSent(LossReason),
}

/// A frame that has ended.
pub struct FrameAnswer<'a> {
    /// The frame.
    pub token: FrameToken,
    /// Number of its first transaction; the others follow without gaps. 0 for a request.
    pub first_number: u64,
    /// Its transactions. 0 for a request.
    pub transactions: usize,
    /// What became of it.
    pub result: FrameResult<'a>,
}
