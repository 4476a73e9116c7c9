//! The pipelined face: many connections in one thread, many frames in flight on each.

use std::net::SocketAddr;

use crate::client::batch::Batch;
use crate::client::error::ClientError;
use crate::frame::FrameKind;
use crate::ids::Lsn;
use crate::message::{ArchivedOutcomeHead, Payload, RefusalCode, Welcome};

/// How long [`Pipeline::poll`] may sleep when nothing has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// At most so many nanoseconds.
    Nanos(u64),
    /// Until something arrives or a time-out of the client is due.
    Event,
}

/// Which shards the connections go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Connection i goes to shard i modulo shards.
    RoundRobin,
    /// All to this shard.
    Shard(u16),
}

/// How a [`Pipeline`] connects. [`PipelineOptions::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct PipelineOptions {
    /// Address of the node's shard 0.
    pub address: SocketAddr,
    /// For the operator's lists.
    pub client_name: String,
    /// Connections, each with a session of its own. Default 1.
    pub connections: usize,
    /// Which shards they go to. Default round robin.
    pub spread: Spread,
    /// Unanswered frames per connection at most. Default 64, at most
    /// [`crate::limits::SESSION_FRAMES_IN_FLIGHT_MAX`].
    pub frames_in_flight_max: usize,
    /// An answer that takes longer makes the client reconnect and ask again. Default 10,000.
    pub request_timeout_ms: u64,
    /// A frame without an answer for so long, whatever was tried, is reported as lost with an
    /// unknown outcome. Default 60,000.
    pub give_up_ms: u64,
    /// Whether a lost connection is made anew and its frames sent again. Default true.
    pub reconnect: bool,
    /// Seed of the reconnect jitter.
    pub seed: u64,
}

impl PipelineOptions {
    /// One connection to the node at `address`, with the defaults.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            client_name: "pipeline".to_owned(),
            connections: 1,
            spread: Spread::RoundRobin,
            frames_in_flight_max: 64,
            request_timeout_ms: 10_000,
            give_up_ms: 60_000,
            reconnect: true,
            seed: 1,
        }
    }
}

/// Names a submitted frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameToken {
    /// The connection it was submitted on.
    pub connection: usize,
    /// The connection's frames and requests are counted from 0.
    pub sequence: u64,
}

/// Why a frame's outcome is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The connection ended and reconnecting was not asked for.
    Disconnected,
    /// It had no answer within the time it was given, over all attempts.
    GaveUp,
    /// A newer connection took the session over.
    Fenced,
    /// The node does not know the session any more.
    SessionUnknown,
    /// The node broke the protocol or came back with other shards.
    Protocol,
}

/// What became of a frame.
pub enum FrameResult<'a> {
    /// Every transaction has an outcome; `outcomes` has one entry per transaction.
    Outcomes {
        /// Committed LSN at or above everything the answer saw.
        lsn: Lsn,
        /// For outcomes worth a retry: not before this; else 0.
        retry_after_ms: u32,
        /// One entry per transaction, in the batch's order. `status` is checked to be known.
        outcomes: &'a [ArchivedOutcomeHead],
        /// Data of all outcomes.
        bytes: &'a [u8],
    },
    /// An answer to [`Pipeline::request`].
    Answer {
        /// What the payload is.
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
    /// Whether its transactions took effect is not known.
    Unknown(LossReason),
    /// It never left the client; none of its transactions took effect.
    NotSent(LossReason),
}

/// What [`Pipeline::poll`] calls back with.
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

/// Many connections, each with a session of its own, driven by one thread.
#[derive(Debug)]
pub struct Pipeline {
    welcome: Welcome,
}

impl Pipeline {
    /// Connects all connections and opens their sessions; returns when all are ready.
    pub fn connect(_options: PipelineOptions) -> Result<Self, ClientError> {
        unimplemented!()
    }

    /// What the node said of itself.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Connections.
    pub fn connections(&self) -> usize {
        unimplemented!()
    }

    /// The shard that a connection talks to.
    pub fn shard_of(&self, _connection: usize) -> u16 {
        unimplemented!()
    }

    /// Session of a connection.
    pub fn session_of(&self, _connection: usize) -> u64 {
        unimplemented!()
    }

    /// Unanswered frames and requests of a connection.
    pub fn in_flight(&self, _connection: usize) -> usize {
        unimplemented!()
    }

    /// Whether [`Pipeline::submit`] would take a frame now.
    pub fn can_submit(&self, _connection: usize) -> bool {
        unimplemented!()
    }

    /// Why the connection takes no more frames at all, if so.
    pub fn ended(&self, _connection: usize) -> Option<LossReason> {
        unimplemented!()
    }

    /// Queues the batch as one frame and leaves it empty. It is sent by the next `poll`.
    pub fn submit(
        &mut self,
        _connection: usize,
        _batch: &mut Batch,
    ) -> Result<FrameToken, ClientError> {
        unimplemented!()
    }

    /// Queues a request other than a submit, for example `Status` or `TableCreate` (the latter
    /// on a connection to shard 0). Only requests that may be
    /// repeated harmlessly are sent again after a lost connection; that is all but `TableDrop`.
    pub fn request<T: Payload>(
        &mut self,
        _connection: usize,
        _kind: FrameKind,
        _message: &T,
    ) -> Result<FrameToken, ClientError> {
        unimplemented!()
    }

    /// Sends what is queued, receives, and calls back for every frame that has ended. Returns
    /// how many did.
    pub fn poll(
        &mut self,
        _wait: Wait,
        _answers: &mut dyn FnMut(FrameAnswer<'_>),
    ) -> Result<usize, ClientError> {
        unimplemented!()
    }
}
