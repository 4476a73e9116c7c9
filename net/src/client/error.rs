//! What can go wrong between a caller and a node.

use crate::client::answer::LossReason;
use crate::client::batch::BatchError;
use crate::client::table::TableError;
use crate::frame::FrameError;
use crate::limits::FRAME_PAYLOAD_BYTES_MAX;
use crate::message::{MessageError, OutcomeStatus, RefusalCode};
use crate::schema::SchemaError;

/// Why a call of the client library failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the network is down.
    #[error("cannot connect to {address}: {cause}. Is the node running? (spillway start)")]
    Connect {
        /// Where the connection was to go: one address, or all that were tried.
        address: String,
        /// What the system said.
        cause: String,
    },
    /// The connection ended, or could not be made.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The node did not answer in time.
    #[error("no answer within {0} ms")]
    TimedOut(u64),
    /// The node refused the request.
    #[error("refused ({code:?}): {message}")]
    Refused {
        /// Why.
        code: RefusalCode,
        /// The node's explanation.
        message: String,
        /// Worth a retry after this many milliseconds; 0: not worth one.
        retry_after_ms: u32,
    },
    /// Whether the transactions took effect is not known. Asking again resolves it, see
    /// [`crate::client::Client::resolve`].
    #[error("the outcome is unknown: {}", .0.describe())]
    Unknown(LossReason),
    /// There is nothing to ask again for.
    #[error(
        "no unknown outcome can be resolved: the request was answered, never sent, resolved \
         before, its session has ended, or it was forgotten for newer ones"
    )]
    NotUnresolved,
    /// All nodes that were reached follow, and none knows the leader.
    #[error(
        "no node leads (asked {asked}): an election takes about a second; if it lasts, less than \
         a majority of the nodes is up (spillway admin zones)"
    )]
    NoLeader {
        /// Addresses of the nodes.
        asked: String,
    },
    /// The nodes of a cluster must have as many shards, each.
    #[error(
        "node {node} has {shards} shards where the nodes before had {expected}: configure all \
         nodes with the same number ([node] shards) and restart it"
    )]
    ShardsDiffer {
        /// The node.
        node: u16,
        /// Its shards.
        shards: usize,
        /// Those of the nodes before.
        expected: usize,
    },
    /// The request never left the client.
    #[error("not sent: {}", .0.describe())]
    NotSent(LossReason),
    /// The node sent bytes that are no frame.
    #[error("the node's answer is no frame: {0}")]
    Frame(#[from] FrameError),
    /// The node sent a frame whose payload does not validate.
    #[error("the node's answer is damaged: {0}")]
    Message(#[from] MessageError),
    /// The node sent a frame that does not answer what was asked.
    #[error("the node broke the protocol: {0}")]
    Protocol(&'static str),
    /// The batch cannot be sent as it is.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The request is larger than a frame may be.
    #[error("a request of {0} bytes exceeds the limit of {FRAME_PAYLOAD_BYTES_MAX}")]
    RequestTooLarge(usize),
    /// As many frames as allowed are unanswered, or their numbers span the session's window.
    #[error("{0} frames are unanswered: poll before submitting more")]
    InFlightMax(usize),
    /// Transactions need a session.
    #[error("this connection has no session: it takes no transactions")]
    NoSession,
    /// The connection or its session ended for good.
    #[error("the session has ended: {0}")]
    Ended(&'static str),
    /// The values do not fit the table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The table definition is not valid.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// No table of that name.
    #[error("there is no table {0} (spillway admin tables lists them)")]
    TableUnknown(String),
    /// The node has fewer shards.
    #[error("the node has no shard {0}")]
    ShardUnknown(u16),
    /// The transaction had no effect.
    #[error("the transaction was not committed: {0:?}")]
    NotCommitted(OutcomeStatus),
    /// Not an address, or its host is not known.
    #[error("not an address to connect to: {0}")]
    Address(String),
    /// The operating system refused something the client needs.
    #[error(transparent)]
    System(#[from] spillway_runtime::RuntimeError),
}

/// Characters of a node's explanation that are kept.
const EXPLANATION_CHARS_MAX: usize = 1000;

impl ClientError {
    /// A refusal as the node explains it, cut, and without what could steer a terminal.
    pub(crate) fn refused(code: RefusalCode, message: &str, retry_after_ms: u32) -> Self {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let message = message.chars().take(EXPLANATION_CHARS_MAX).map(plain).collect();
        Self::Refused { code, message, retry_after_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanations_are_cut_and_cannot_steer_a_terminal() {
        let message = format!("\x1b[2J{}", "x".repeat(5000));
        let text = ClientError::refused(RefusalCode::Schema, &message, 0).to_string();
        assert!(text.len() < EXPLANATION_CHARS_MAX + 100 && !text.contains('\x1b'), "{text}");
    }
}
