//! Receiving in exact lengths, straight into the memory that the owner names.
//!
//! A framed connection receives a header of a fixed size, tells it, and then waits for its owner
//! to say what comes next: another header, or a body that fills a slot. Not a byte is received
//! that nobody asked for, so the body lands where it stays, without a copy in between.

use std::net::SocketAddr;
use std::ops::Deref;

use io_uring::{opcode, squeue, types};

use super::connection::State;
use super::{CloseReason, ConnectionId, ListenerId, TcpEvent, TcpRing, socket};
use crate::error::RuntimeError;
use crate::slot_ring::{Slot, SlotMut};

/// Most bytes of a header.
pub const HEADER_BYTES_MAX: usize = 256;

/// A header as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderBytes(Box<[u8]>);

impl Deref for HeaderBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for HeaderBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

enum Step {
    /// The owner has been told something and has not said what comes next.
    Told,
    /// The kernel writes the header's bytes while a receive is in flight.
    Header(Box<[u8]>),
    /// The kernel writes the slot's bytes while a receive is in flight.
    Body(SlotMut),
}

/// The receiving side of a framed connection.
pub(super) struct Framed {
    header_bytes: usize,
    step: Step,
    /// Bytes of the header or body that arrived.
    filled: usize,
}

impl Framed {
    fn new(header_bytes: usize) -> Framed {
        assert!((1..=HEADER_BYTES_MAX).contains(&header_bytes), "a header of {header_bytes} bytes");
        Framed { header_bytes, step: Step::Header(zeroed(header_bytes)), filled: 0 }
    }

    /// Whether a receive can be started.
    pub(super) fn is_wanting(&self) -> bool {
        !matches!(self.step, Step::Told)
    }

    /// The receive of what is missing.
    pub(super) fn entry(&mut self, fd: i32) -> squeue::Entry {
        let (start, bytes) = match &mut self.step {
            Step::Told => panic!("nobody said what to receive"),
            Step::Header(header) => (header.as_mut_ptr(), header.len()),
            Step::Body(slot) => (slot.start_ptr(), slot.len()),
        };
        assert!(self.filled < bytes, "{} of {bytes} bytes arrived", self.filled);
        // SAFETY: the offset is inside the header or slot.
        let start = unsafe { start.add(self.filled) };
        // WAITALL: the kernel goes on by itself after a part. The limit of one transfer is 2 GiB
        // less a page.
        let bytes = (bytes - self.filled).min(1 << 30) as u32;
        opcode::Recv::new(types::Fd(fd), start, bytes).flags(libc::MSG_WAITALL).build()
    }

    /// `bytes` more arrived. What is to be told if that was the last of them.
    pub(super) fn received(&mut self, connection: ConnectionId, bytes: usize) -> Option<TcpEvent> {
        self.filled += bytes;
        let wanted = match &self.step {
            Step::Told => panic!("bytes that nobody asked for"),
            Step::Header(header) => header.len(),
            Step::Body(slot) => slot.len(),
        };
        assert!(self.filled <= wanted, "{} of {wanted} bytes arrived", self.filled);
        if self.filled < wanted {
            return None;
        }
        match std::mem::replace(&mut self.step, Step::Told) {
            Step::Told => None,
            Step::Header(header) => {
                Some(TcpEvent::Header { connection, header: HeaderBytes(header) })
            }
            Step::Body(slot) => Some(TcpEvent::Body { connection, slot }),
        }
    }

    fn next(&mut self, step: Step) {
        assert!(!self.is_wanting(), "a receive of this connection has not ended");
        (self.step, self.filled) = (step, 0);
    }
}

fn zeroed(bytes: usize) -> Box<[u8]> {
    vec![0; bytes].into_boxed_slice()
}

impl TcpRing {
    /// As [`TcpRing::listen`], but all connections are framed from their first byte: see
    /// [`TcpRing::set_framed`].
    ///
    /// # Errors
    /// As [`TcpRing::listen`].
    ///
    /// # Panics
    /// If `header_bytes` is zero or above [`HEADER_BYTES_MAX`].
    pub fn listen_framed(
        &mut self,
        address: SocketAddr,
        backlog: u32,
        header_bytes: usize,
    ) -> Result<(ListenerId, SocketAddr), RuntimeError> {
        assert!((1..=HEADER_BYTES_MAX).contains(&header_bytes), "a header of {header_bytes} bytes");
        let (listener, bound) = self.listen(address, backlog)?;
        self.listeners[listener.0 as usize].header_bytes = Some(header_bytes);
        Ok((listener, bound))
    }

    /// As [`TcpRing::connect`], for a connection that is framed: see [`TcpRing::set_framed`].
    ///
    /// # Errors
    /// As [`TcpRing::connect`].
    ///
    /// # Panics
    /// If `header_bytes` is zero or above [`HEADER_BYTES_MAX`].
    pub fn connect_framed(
        &mut self,
        address: SocketAddr,
        header_bytes: usize,
    ) -> Result<ConnectionId, RuntimeError> {
        let connection = self.connect(address)?;
        self.set_framed(connection, header_bytes);
        Ok(connection)
    }

    /// Makes a connection receive in exact lengths: a header of `header_bytes` is received and
    /// told by [`TcpEvent::Header`]; after that, and after each [`TcpEvent::Body`], the owner says
    /// by [`TcpRing::receive_body`] or [`TcpRing::receive_header`] what comes next, and until then
    /// nothing is received; the end of the connection is not noticed then either, except by a send
    /// that fails. `Received` is never told.
    ///
    /// To be called on a connection that is still being made, or before the first turn after its
    /// `Accepted` or `Connected`. Does nothing if the connection is gone.
    ///
    /// # Panics
    /// If it is later than that, or `header_bytes` is zero or above [`HEADER_BYTES_MAX`].
    pub fn set_framed(&mut self, id: ConnectionId, header_bytes: usize) {
        let framed = Box::new(Framed::new(header_bytes));
        let Some(connection) = self.connections.get(id) else { return };
        if matches!(connection.state, State::Closing(_)) {
            return;
        }
        assert!(!connection.has_received, "the connection receives already: set it framed earlier");
        connection.framed = Some(framed);
    }

    /// Goes on with a header on a framed connection. Does nothing if the connection is gone.
    ///
    /// # Panics
    /// If the connection is not framed, or what it was told to receive has not arrived.
    pub fn receive_header(&mut self, id: ConnectionId) {
        let Some(framed) = self.framed(id) else { return };
        let header = zeroed(framed.header_bytes);
        framed.next(Step::Header(header));
        self.arm_receive(id.index);
    }

    /// Goes on with a body that fills `slot` on a framed connection. [`TcpEvent::Body`] gives the
    /// slot back; if the connection ends before that, or is gone already, the slot is dropped.
    ///
    /// # Panics
    /// If the slot is empty, the connection is not framed, or what it was told to receive has not
    /// arrived.
    pub fn receive_body(&mut self, id: ConnectionId, slot: SlotMut) {
        assert!(!slot.is_empty(), "a body has bytes");
        let Some(framed) = self.framed(id) else { return };
        framed.next(Step::Body(slot));
        self.arm_receive(id.index);
    }

    fn framed(&mut self, id: ConnectionId) -> Option<&mut Framed> {
        let connection = self.connections.get(id)?;
        if matches!(connection.state, State::Closing(_)) {
            return None;
        }
        Some(connection.framed.as_mut().expect("the connection is framed"))
    }

    /// Queues `header`, which is copied, and `body` behind it, which is not: the slot is held until
    /// its bytes are sent. They leave at the next turn, in order with what [`TcpRing::outgoing`]
    /// got. `false` if the connection is gone or closing.
    pub fn send_slots(&mut self, id: ConnectionId, header: &[u8], body: Option<Slot>) -> bool {
        let Some(outgoing) = self.outgoing_of(id) else { return false };
        outgoing.queue_slots(header, body);
        true
    }

    /// Has the kernel give the other side up that takes nothing for `millis`, or is silent for
    /// about that long (whole seconds, two at least) while there is nothing to send. `Closed`
    /// follows, with `ETIMEDOUT` or as if the peer had closed or reset. A side that is alive and
    /// does not read for that long while there is something to send to it is given up as well.
    /// Does nothing if the connection is gone.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub fn set_silence_max(&mut self, id: ConnectionId, millis: u32) -> Result<(), RuntimeError> {
        let Some(connection) = self.connections.get(id) else { return Ok(()) };
        socket::set_silence_max(connection.fd, millis)
            .map_err(|errno| RuntimeError::System { operation: "set TCP_USER_TIMEOUT", errno })
    }

    /// Bytes that the kernel has received on a connection since it was made, told to the owner or
    /// not. 0 if the connection is gone or being made.
    ///
    /// # Errors
    /// Fails if the kernel does not say.
    pub fn received_bytes(&mut self, id: ConnectionId) -> Result<u64, RuntimeError> {
        let Some(connection) = self.connections.get(id) else { return Ok(0) };
        socket::received_bytes(connection.fd)
            .map_err(|errno| RuntimeError::System { operation: "read TCP_INFO", errno })
    }

    /// The kernel ended a receive of a framed connection.
    pub(super) fn complete_framed(&mut self, index: u32, result: i32) {
        let connection = self.connections.slot(index);
        assert!(connection.is_receiving, "slot {index} receives nothing");
        connection.is_receiving = false;
        let id = ConnectionId { index, generation: connection.generation };
        let is_open = connection.state == State::Open;
        match result {
            0 => self.begin_close(index, CloseReason::Peer),
            bytes if bytes > 0 => {
                let framed = connection.framed.as_mut().expect("it is framed for good");
                let told = framed.received(id, bytes as usize);
                self.events.extend(told.filter(|_| is_open));
                self.arm_receive(index);
            }
            error => self.receive_failed(index, -error),
        }
        self.finish_close(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ConnectionId = ConnectionId { index: 3, generation: 5 };

    #[test]
    fn parts_add_up() {
        let mut framed = Framed::new(10);
        for bytes in [4, 5] {
            assert!(framed.received(ID, bytes).is_none() && framed.is_wanting());
        }
        let told = framed.received(ID, 1);
        let Some(TcpEvent::Header { connection: ID, header }) = told else { panic!("{told:?}") };
        assert_eq!(&header[..], [0; 10]);
        assert!(!framed.is_wanting());
        let slot = SlotMut::heap(7);
        let address = slot.address();
        framed.next(Step::Body(slot));
        assert!(framed.received(ID, 6).is_none());
        let told = framed.received(ID, 1);
        let Some(TcpEvent::Body { connection: ID, slot }) = told else { panic!("{told:?}") };
        assert_eq!((slot.address(), slot.len()), (address, 7));
    }

    #[test]
    #[should_panic(expected = "11 of 10 bytes arrived")]
    fn more_than_asked_for_is_refused() {
        let mut framed = Framed::new(10);
        assert!(framed.received(ID, 11).is_none());
    }

    #[test]
    #[should_panic(expected = "a header of 257 bytes")]
    fn long_header_is_refused() {
        assert!(Framed::new(HEADER_BYTES_MAX + 1).is_wanting());
    }
}
