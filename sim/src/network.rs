//! The simulated network.
//!
//! Fault model, that of TCP: a connection is two ordered streams of bytes. Bytes arrive late and
//! in pieces of any size, cut anywhere; some connections deliver a few bytes at a time. One
//! direction, or both, may stand still for a while: a client that does not read, or whose bytes
//! arrive when it has long given the connection up and made another one. A connection may be lost
//! at any moment; then each side has received some prefix of what the other one sent, and hears of
//! the loss at a time of its own. Bytes are neither changed nor repeated within a connection; a
//! client that reconnects repeats its frames. A node that loses power loses all its connections. A
//! client may go away in the middle, with or without a word, and never return.

use std::collections::BTreeMap;

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The client.
    Client,
    /// The node.
    Node,
}

/// One connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// The client's end.
    pub worker: usize,
    /// The node, counted from 0.
    pub node: u16,
    /// Its end there.
    pub shard: u16,
    /// Whether the client has not heard of its end.
    pub client_open: bool,
    /// Whether the node has accepted it and not heard of its end.
    pub node_open: bool,
    /// Whether what is sent from now on gets lost.
    pub broken: bool,
    /// The node has said its last word: what still arrives there is dropped.
    pub node_ending: bool,
    /// Bytes of a piece at most; 0: any number.
    pub piece_bytes_max: usize,
    /// Time of the last arrival at the client and at the node.
    pub last_at: [u64; 2],
}

/// All connections, by number.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// They.
    pub connections: BTreeMap<u64, Connection>,
    next: u64,
}

impl Network {
    /// A new connection, not yet accepted.
    pub fn connect(&mut self, worker: usize, node: u16, shard: u16) -> u64 {
        self.next += 1;
        let connection = Connection {
            worker,
            node,
            shard,
            client_open: true,
            node_open: false,
            broken: false,
            node_ending: false,
            piece_bytes_max: 0,
            last_at: [0; 2],
        };
        self.connections.insert(self.next, connection);
        self.next
    }

    /// A time of arrival that keeps the stream's order.
    pub fn arrival(&mut self, number: u64, side: Side, at: u64) -> u64 {
        let Some(connection) = self.connections.get_mut(&number) else { return at };
        let last = &mut connection.last_at[side as usize];
        *last = at.max(*last + 1);
        *last
    }

    /// Forgets a connection that both ends know to be gone.
    pub fn sweep(&mut self, number: u64) {
        if self.connections.get(&number).is_some_and(|c| !c.client_open && !c.node_open) {
            self.connections.remove(&number);
        }
    }
}
