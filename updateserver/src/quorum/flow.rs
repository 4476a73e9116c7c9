//! What is known of each peer, and how many bytes it may be sent.
//!
//! The state machine's window counts messages. Beside it every peer has a budget of bytes, sent and
//! not answered or still waiting in its connection: when it is used up the window is closed, and
//! opens again when half is free. So a slow peer holds a bounded part of the memory.

use std::collections::VecDeque;

use spillway_net::ids::{Lsn, NodeId};

/// Another node.
#[derive(Debug)]
pub struct Peer {
    /// Its id.
    pub node: NodeId,
    /// Messages arrive there.
    pub connected: bool,
    /// When its last message came.
    pub heard_nanos: Option<u64>,
    /// Applied there, as it said.
    pub applied: Lsn,
    /// Bytes that wait in its connection.
    outgoing_bytes: usize,
    /// Entries sent and not answered.
    flight: VecDeque<(Lsn, u64)>,
    flight_bytes: u64,
    /// Its window is closed.
    paused: bool,
    /// Ticks since an answer, while there is something to answer.
    ticks: u64,
}

/// What becomes of a peer's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowChange {
    /// Send no more entries.
    Close,
    /// Go on.
    Open,
}

impl Peer {
    fn new(node: NodeId) -> Self {
        Self {
            node,
            connected: false,
            heard_nanos: None,
            applied: Lsn(0),
            outgoing_bytes: 0,
            flight: VecDeque::new(),
            flight_bytes: 0,
            paused: false,
            ticks: 0,
        }
    }

    /// Time passes. True when nothing of what was sent was answered for too long although the
    /// connection has taken it; it counts as lost then.
    pub fn tick(&mut self, ticks_max: u64) -> bool {
        if self.flight.is_empty() || self.outgoing_bytes > 0 {
            self.ticks = 0;
            return false;
        }
        self.ticks += 1;
        if self.ticks < ticks_max && !spillway_runtime::fault_point!(FlightTakenForLost) {
            return false;
        }
        self.flight_clear();
        assert!(self.ticks == 0 && self.flight_bytes == 0, "counted anew");
        true
    }

    /// Bytes sent and not answered.
    pub fn flight_bytes(&self) -> u64 {
        self.flight_bytes
    }

    /// True when its connection still holds memory of ours.
    pub fn holds_memory(&self) -> bool {
        self.connected && self.outgoing_bytes > 0
    }

    /// Bytes that wait in its connection.
    pub fn outgoing_set(&mut self, bytes: usize) {
        self.outgoing_bytes = bytes;
    }

    /// An entry was sent.
    pub fn sent(&mut self, lsn: Lsn, bytes: u64) {
        assert!(lsn.0 > 0 && bytes > 0, "an entry with a body");
        // Sent again from further back: the state machine has given up what was on its way.
        while let Some((_, again)) = self.flight.pop_back_if_from(lsn) {
            self.flight_bytes -= again;
        }
        self.flight.push_back((lsn, bytes));
        self.flight_bytes += bytes;
    }

    /// Everything up to `lsn` was answered.
    pub fn answered(&mut self, lsn: Lsn) {
        self.ticks = 0;
        while self.flight.front().is_some_and(|(at, _)| *at <= lsn) {
            let (_, bytes) = self.flight.pop_front().expect("seen above");
            assert!(self.flight_bytes >= bytes, "bytes are those of the entries");
            self.flight_bytes -= bytes;
        }
    }

    /// What was on its way is lost, or was refused.
    pub fn flight_clear(&mut self) {
        self.flight.clear();
        self.flight_bytes = 0;
        self.ticks = 0;
    }

    /// Connection lost.
    pub fn lost(&mut self) {
        self.connected = false;
        self.outgoing_bytes = 0;
        self.flight_clear();
    }

    /// Whether the window must change for this budget.
    pub fn window_change(&mut self, bytes_max: u64) -> Option<WindowChange> {
        let used = self.flight_bytes.max(self.outgoing_bytes as u64);
        let early = used > bytes_max / 2 && spillway_runtime::fault_point!(PeerWindowClosed);
        if !self.paused && (used >= bytes_max || early) {
            self.paused = true;
            return Some(WindowChange::Close);
        }
        if self.paused && used <= bytes_max / 2 {
            self.paused = false;
            return Some(WindowChange::Open);
        }
        None
    }

    /// Nanoseconds since its last message.
    pub fn silent_nanos(&self, now_nanos: u64) -> u64 {
        self.heard_nanos.map_or(u64::MAX, |heard| now_nanos.saturating_sub(heard))
    }
}

trait PopBackFrom {
    fn pop_back_if_from(&mut self, lsn: Lsn) -> Option<(Lsn, u64)>;
}

impl PopBackFrom for VecDeque<(Lsn, u64)> {
    fn pop_back_if_from(&mut self, lsn: Lsn) -> Option<(Lsn, u64)> {
        if self.back()?.0 >= lsn { self.pop_back() } else { None }
    }
}

/// All other nodes, in ascending order.
#[derive(Debug, Default)]
pub struct PeerTable {
    peers: Vec<Peer>,
}

impl PeerTable {
    /// A peer, if it was ever heard of.
    pub fn get(&self, node: NodeId) -> Option<&Peer> {
        let at = self.peers.binary_search_by_key(&node, |peer| peer.node).ok()?;
        self.peers.get(at)
    }

    /// A peer; made on first use.
    pub fn get_mut(&mut self, node: NodeId) -> &mut Peer {
        assert!(node.0 > 0, "node 0 is nobody");
        let at = match self.peers.binary_search_by_key(&node, |peer| peer.node) {
            Ok(at) => at,
            Err(at) => {
                self.peers.insert(at, Peer::new(node));
                at
            }
        };
        &mut self.peers[at]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    /// All of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.peers.iter_mut()
    }

    /// A new leader starts with open windows and nothing on its way.
    pub fn lead(&mut self) {
        for peer in &mut self.peers {
            peer.flight_clear();
            peer.paused = false;
        }
    }

    /// True when messages arrive at this node.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|peer| peer.connected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_close_at_the_budget_and_open_at_half() {
        let mut table = PeerTable::default();
        let peer = table.get_mut(NodeId(3));
        peer.connected = true;
        for lsn in 1..=3 {
            peer.sent(Lsn(lsn), 400);
        }
        assert_eq!(peer.flight_bytes(), 1200);
        assert_eq!(peer.window_change(1000), Some(WindowChange::Close));
        assert_eq!(peer.window_change(1000), None);
        peer.answered(Lsn(1));
        assert_eq!(peer.window_change(1000), None);
        peer.answered(Lsn(2));
        assert_eq!(peer.window_change(1000), Some(WindowChange::Open));
        peer.outgoing_set(1000);
        assert!(peer.holds_memory());
        assert_eq!(peer.window_change(1000), Some(WindowChange::Close));
        peer.sent(Lsn(4), 10);
        peer.sent(Lsn(3), 20);
        assert_eq!(peer.flight_bytes(), 20);
        peer.outgoing_set(0);
        assert!((0..9).all(|_| !peer.tick(10)) && peer.tick(10) && !peer.tick(10));
        assert_eq!(peer.flight_bytes(), 0);
        peer.lost();
        assert_eq!((peer.flight_bytes(), peer.holds_memory()), (0, false));
        assert_eq!(peer.window_change(1000), Some(WindowChange::Open));
    }
}
