//! The table of connections of one ring.

use std::collections::TryReserveError;
use std::os::fd::RawFd;

use super::framed::Framed;
use super::outgoing::Outgoing;
use super::socket::RawAddress;
use super::{CloseReason, ConnectionId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Connecting,
    Open,
    /// Waits for its pending operations to end; then the slot is freed and `Closed` told.
    Closing(CloseReason),
}

pub(super) struct Connection {
    pub(super) generation: u32,
    pub(super) state: State,
    pub(super) fd: RawFd,
    /// Its flight is read by the kernel while `is_sending`.
    pub(super) outgoing: Outgoing,
    /// Where exact lengths are received to, written by the kernel while `is_receiving`; none if
    /// the connection receives whatever comes.
    pub(super) framed: Option<Box<Framed>>,
    pub(super) is_sending: bool,
    pub(super) is_receiving: bool,
    /// Whether a receive was ever started.
    pub(super) has_received: bool,
    pub(super) is_receive_wanted: bool,
    /// Close when all outgoing bytes are sent.
    pub(super) is_draining: bool,
    /// In the ring's list of connections with something to send. Outlives the connection in the
    /// slot: it says what the list holds.
    pub(super) is_dirty: bool,
    /// In the ring's list of connections that wait for a receive buffer. As `is_dirty`.
    pub(super) is_starved: bool,
    /// Where to connect, while the kernel may read it.
    pub(super) address: Option<Box<RawAddress>>,
}

impl Connection {
    fn new() -> Connection {
        Connection {
            generation: 0,
            state: State::Free,
            fd: -1,
            outgoing: Outgoing::default(),
            framed: None,
            is_sending: false,
            is_receiving: false,
            has_received: false,
            is_receive_wanted: false,
            is_draining: false,
            is_dirty: false,
            is_starved: false,
            address: None,
        }
    }

    /// Whether the kernel still has an operation that may touch this connection.
    pub(super) fn is_pending(&self) -> bool {
        self.is_sending || self.is_receiving || self.address.is_some()
    }
}

pub(super) struct ConnectionTable {
    slots: Vec<Connection>,
    free: Vec<u32>,
}

impl ConnectionTable {
    pub(super) fn new(connections_max: u32) -> Result<ConnectionTable, TryReserveError> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(connections_max as usize)?;
        slots.resize_with(connections_max as usize, Connection::new);
        Ok(ConnectionTable { slots, free: (0..connections_max).rev().collect() })
    }

    pub(super) fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(super) fn used(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    pub(super) fn slot(&mut self, index: u32) -> &mut Connection {
        &mut self.slots[index as usize]
    }

    /// The connection of an id, unless that one is gone.
    pub(super) fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let connection = self.slots.get_mut(id.index as usize)?;
        let is_current = connection.generation == id.generation && connection.state != State::Free;
        is_current.then_some(connection)
    }

    pub(super) fn peek(&self, id: ConnectionId) -> Option<&Connection> {
        let connection = self.slots.get(id.index as usize)?;
        let is_current = connection.generation == id.generation && connection.state != State::Free;
        is_current.then_some(connection)
    }

    pub(super) fn open(&mut self, fd: RawFd, state: State) -> Option<ConnectionId> {
        let index = self.free.pop()?;
        let connection = self.slot(index);
        assert!(connection.state == State::Free && !connection.is_pending(), "slot {index}");
        assert!(connection.outgoing.bytes() == 0 && connection.framed.is_none(), "slot {index}");
        connection.fd = fd;
        connection.state = state;
        connection.is_receive_wanted = true;
        connection.is_draining = false;
        connection.has_received = false;
        Some(ConnectionId { index, generation: connection.generation })
    }

    /// Frees a slot and returns its descriptor, to be closed. The id is dead from here on.
    pub(super) fn free(&mut self, index: u32) -> RawFd {
        let connection = self.slot(index);
        assert!(matches!(connection.state, State::Closing(_)), "slot {index} is not closing");
        assert!(!connection.is_pending(), "slot {index} has operations in the kernel");
        connection.state = State::Free;
        connection.generation = connection.generation.wrapping_add(1);
        connection.framed = None;
        connection.outgoing.clear();
        let fd = std::mem::replace(&mut connection.fd, -1);
        self.free.push(index);
        fd
    }

    pub(super) fn used_indices(&self) -> Vec<u32> {
        let used = |index: &u32| self.slots[*index as usize].state != State::Free;
        (0..self.slots.len() as u32).filter(used).collect()
    }
}
