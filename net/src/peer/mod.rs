//! How two nodes of a cluster come to trust each other, before anything else travels between them.
//!
//! ```text
//! initiator                         responder
//!   Hello(nonce_i)        ------>     checks protocol, version, cluster, limits, format, node
//!   checks the same       <------     Hello(nonce_r)
//!   Proof(initiator)      ------>     checks the proof
//!   checks the proof      <------     Proof(responder)
//! ```
//!
//! Every message has [`MESSAGE_BYTES`], so nothing is allocated by a length that a stranger
//! announces. A proof is HMAC-SHA256 with the cluster's key over a label of the prover's role and
//! both hellos. Each side's hello carries its own fresh nonce, so an old message proves nothing;
//! the roles differ, so a proof that is sent back proves nothing either. Whoever refuses says why
//! in a message of the same size: a [`Refusal`] that the other side can show to its operator.
//! Refusals are not authenticated; they are for people, and only ever end a connection.
//!
//! The proof says who is at the other end when the connection begins. It does not protect what
//! follows against somebody who can change packets on the way: that takes TLS.

mod handshake;
mod hello;
mod key;
mod refusal;

pub use handshake::{Handshake, Step, fuzz_handshake};
pub use hello::{Hello, LogFormat, PEER_PROTOCOL_VERSION, Role};
pub use key::{ClusterKey, KEY_BYTES_MIN, KeyError};
pub use refusal::Refusal;

/// Bytes of every message of the handshake, and of every header that follows it.
pub const MESSAGE_BYTES: usize = 128;

/// One message of the handshake.
pub type Message = [u8; MESSAGE_BYTES];

/// Bytes of a nonce. The caller draws one for each connection and never uses it again.
pub const NONCE_BYTES: usize = 32;
