//! The table of connections of one ring.

use std::collections::TryReserveError;
use std::os::fd::RawFd;

use super::socket::RawAddress;
use super::{CloseReason, ConnectionId};

/// Capacity above which an outgoing buffer is cut down after a burst.
const OUTGOING_BYTES_KEPT: usize = 1024 * 1024;
/// Capacity that a slot keeps for its next connection.
const OUTGOING_BYTES_FREE_SLOT: usize = 16 * 1024;

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
    /// Appended to by the owner.
    pub(super) queued: Vec<u8>,
    /// Read by the kernel while `is_sending`; not touched then.
    pub(super) flight: Vec<u8>,
    pub(super) flight_sent: usize,
    pub(super) is_sending: bool,
    pub(super) is_receiving: bool,
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
            queued: Vec::new(),
            flight: Vec::new(),
            flight_sent: 0,
            is_sending: false,
            is_receiving: false,
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

    /// The bytes in flight are sent.
    pub(super) fn flight_done(&mut self) {
        assert!(!self.is_sending, "the kernel reads the bytes in flight");
        self.flight.clear();
        self.flight_sent = 0;
        if self.flight.capacity() > OUTGOING_BYTES_KEPT {
            self.flight.shrink_to(OUTGOING_BYTES_KEPT);
        }
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
        assert!(connection.queued.is_empty() && connection.flight.is_empty(), "slot {index}");
        connection.fd = fd;
        connection.state = state;
        connection.is_receive_wanted = true;
        connection.is_draining = false;
        Some(ConnectionId { index, generation: connection.generation })
    }

    /// Frees a slot and returns its descriptor, to be closed. The id is dead from here on.
    pub(super) fn free(&mut self, index: u32) -> RawFd {
        let connection = self.slot(index);
        assert!(matches!(connection.state, State::Closing(_)), "slot {index} is not closing");
        assert!(!connection.is_pending(), "slot {index} has operations in the kernel");
        connection.state = State::Free;
        connection.generation = connection.generation.wrapping_add(1);
        connection.flight_sent = 0;
        for buffer in [&mut connection.queued, &mut connection.flight] {
            buffer.clear();
            buffer.shrink_to(OUTGOING_BYTES_FREE_SLOT);
        }
        let fd = std::mem::replace(&mut connection.fd, -1);
        self.free.push(index);
        fd
    }

    pub(super) fn used_indices(&self) -> Vec<u32> {
        let used = |index: &u32| self.slots[*index as usize].state != State::Free;
        (0..self.slots.len() as u32).filter(used).collect()
    }
}
