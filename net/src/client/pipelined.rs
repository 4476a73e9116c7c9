//! The pipelined face: many connections in one thread, many frames in flight on each.

use std::net::SocketAddr;

use crate::client::answer::{FrameAnswer, FrameToken, LossReason};
use crate::client::batch::Batch;
use crate::client::error::ClientError;
use crate::frame::FrameKind;
use crate::message::{Payload, Welcome};

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
    /// How long connecting may take, all attempts included; 0: one attempt. Default 0.
    pub connect_ms: u64,
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
            connect_ms: 0,
            reconnect: true,
            seed: 1,
        }
    }
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
