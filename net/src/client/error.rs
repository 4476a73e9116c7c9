//! What can go wrong between a caller and a node.

use std::net::SocketAddr;

use crate::client::batch::BatchError;
use crate::frame::FrameError;
use crate::message::RefusalCode;

/// Why a call of the client library failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the network is down.
    #[error("cannot connect to {address}: {cause}. Is the node running? (spillway start)")]
    Connect {
        /// Where the connection was to go.
        address: SocketAddr,
        /// What the system said.
        cause: String,
    },
    /// The connection ended before the answer came and reconnecting was not asked for.
    #[error("the connection to {address} was lost: {cause}")]
    Lost {
        /// The peer.
        address: SocketAddr,
        /// What the system said.
        cause: String,
    },
    /// The node did not answer in time.
    #[error("no answer from {address} within {waited_ms} ms")]
    TimedOut {
        /// The peer.
        address: SocketAddr,
        /// How long the caller waited.
        waited_ms: u64,
    },
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
    /// The node sent bytes that are no frame.
    #[error("the node's answer is no frame: {0}")]
    Frame(#[from] FrameError),
    /// The node sent a frame that does not answer what was asked.
    #[error("the node broke the protocol: {0}")]
    Protocol(&'static str),
    /// The batch cannot be sent as it is.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// As many frames as allowed are unanswered.
    #[error("{0} frames are unanswered: poll before submitting more")]
    InFlightMax(usize),
    /// The connection or its session ended for good.
    #[error("the session has ended: {0}")]
    Ended(&'static str),
    /// The operating system refused something the client needs.
    #[error("{0}")]
    System(String),
}
