//! What a connection still has to send: bytes of its own, and slots between them.
//!
//! Slots leave by plain sendmsg, from where they are to the socket in one copy by the kernel. Its
//! zero-copy form was measured against it by benches/send_slots.rs (64 KiB bodies, loopback, two
//! CPUs that were busy with other work besides, Linux 6.18, medians of five interleaved runs):
//!
//! | | messages/s | ns CPU of the sender | of the receiver |
//! |---|---|---|---|
//! | SENDMSG | 18,800 | 22,872 | 17,200 |
//! | SENDMSG_ZC | 15,822 | 26,353 | 21,351 |
//!
//! Over loopback the kernel reports that it copied all of them after all, so this says nothing
//! about network cards; but the plain form is not the slower one anywhere it could be measured,
//! owes one completion instead of two, and lets go of a slot when the socket has the bytes
//! instead of when the other side has acknowledged them.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};

use crate::slot_ring::Slot;

/// Capacity above which a buffer is cut down after a burst.
const BYTES_KEPT: usize = 1024 * 1024;
/// Capacity that a place in the table keeps for its next connection.
const BYTES_KEPT_FREE: usize = 16 * 1024;
/// The kernel's own limit of one transfer is 2 GiB less a page.
const SEND_BYTES_MAX: usize = 1 << 30;
/// Pieces of memory in one send: the kernel's own limit.
const PIECES_MAX: usize = 1024;
/// No further piece is added to a send with so many bytes, so that slots of a long backlog become
/// free while it is sent and not all at its end.
const PIECES_BYTES_ENOUGH: usize = 1 << 20;

const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

/// A slot that stands behind the first `after` bytes of the buffer beside it.
struct Inserted {
    after: usize,
    slot: Slot,
}

/// Bytes and the slots between them, in the order in which they are sent.
#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    slots: VecDeque<Inserted>,
    /// Bytes of all `slots`.
    slots_bytes: usize,
    /// How many of `bytes` are sent.
    bytes_sent: usize,
    /// How many bytes of the first slot are sent. Slots that are sent are gone.
    slot_sent: usize,
}

impl Stream {
    fn rest(&self) -> usize {
        self.bytes.len() - self.bytes_sent + self.slots_bytes - self.slot_sent
    }

    /// Counts `bytes` as sent and lets go of the slots that are.
    fn advance(&mut self, mut bytes: usize) {
        assert!(bytes <= self.rest(), "more was sent than there was");
        while bytes > 0 {
            let next = self.slots.front().map(|next| (next.after, next.slot.len()));
            match next {
                Some((after, slot_bytes)) if after == self.bytes_sent => {
                    let taken = bytes.min(slot_bytes - self.slot_sent);
                    self.slot_sent += taken;
                    bytes -= taken;
                    if self.slot_sent == slot_bytes {
                        self.slots.pop_front();
                        self.slots_bytes -= slot_bytes;
                        self.slot_sent = 0;
                    }
                }
                _ => {
                    let end = next.map_or(self.bytes.len(), |(after, _)| after);
                    let taken = bytes.min(end - self.bytes_sent);
                    assert!(taken > 0, "a piece has bytes");
                    self.bytes_sent += taken;
                    bytes -= taken;
                }
            }
        }
    }

    /// Lists what is to be sent next, up to the limits of one send.
    fn pieces(&self, pieces: &mut Vec<libc::iovec>) {
        pieces.clear();
        let (mut bytes, mut position, mut sent) = (0, self.bytes_sent, self.slot_sent);
        let mut add = |piece: &[u8]| {
            if piece.is_empty() {
                return true;
            }
            let rest = piece.len().min(SEND_BYTES_MAX - bytes);
            pieces.push(libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: rest });
            bytes += rest;
            bytes < PIECES_BYTES_ENOUGH && pieces.len() < PIECES_MAX
        };
        for next in &self.slots {
            if !add(&self.bytes[position..next.after]) || !add(&next.slot[sent..]) {
                return;
            }
            (position, sent) = (next.after, 0);
        }
        add(&self.bytes[position..]);
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.slots.clear();
        (self.slots_bytes, self.bytes_sent, self.slot_sent) = (0, 0, 0);
    }
}

/// The message header of a send of several pieces. On the heap, so that it stays in place.
struct Message {
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
}

#[derive(Default)]
pub(super) struct Outgoing {
    /// Appended to by the owner.
    queued: Stream,
    /// Read by the kernel while a send is in flight; not touched then.
    flight: Stream,
    /// Of the send in flight if it has slots; kept once it was needed.
    message: Option<Box<Message>>,
}

impl Outgoing {
    /// Where the owner appends bytes.
    pub(super) fn queue(&mut self) -> &mut Vec<u8> {
        &mut self.queued.bytes
    }

    /// Queues `header`, and `body` behind it.
    pub(super) fn queue_slots(&mut self, header: &[u8], body: Option<Slot>) {
        self.queued.bytes.extend_from_slice(header);
        let Some(slot) = body.filter(|body| !body.is_empty()) else { return };
        self.queued.slots_bytes += slot.len();
        self.queued.slots.push_back(Inserted { after: self.queued.bytes.len(), slot });
    }

    pub(super) fn has_queued(&self) -> bool {
        self.queued.rest() > 0
    }

    /// Whether a send can begin with what is queued.
    pub(super) fn is_flight_empty(&self) -> bool {
        self.flight.rest() == 0 && self.flight.bytes.is_empty()
    }

    /// Bytes not sent yet.
    pub(super) fn bytes(&self) -> usize {
        self.queued.rest() + self.flight.rest()
    }

    /// What is queued is to be sent next.
    pub(super) fn launch(&mut self) {
        assert!(self.is_flight_empty(), "the kernel reads the bytes in flight");
        std::mem::swap(&mut self.queued, &mut self.flight);
    }

    /// The send of the rest of what is in flight.
    pub(super) fn entry(&mut self, fd: RawFd) -> squeue::Entry {
        // WAITALL: the kernel goes on by itself after a partial send.
        if self.flight.slots.is_empty() {
            let rest = &self.flight.bytes[self.flight.bytes_sent..];
            let bytes = rest.len().min(SEND_BYTES_MAX) as u32;
            return opcode::Send::new(types::Fd(fd), rest.as_ptr(), bytes).flags(FLAGS).build();
        }
        let message = self.message.get_or_insert_with(|| {
            // SAFETY: all-zero is a valid message header: no name, no pieces, no control data.
            let header = unsafe { std::mem::zeroed() };
            Box::new(Message { header, pieces: Vec::new() })
        });
        self.flight.pieces(&mut message.pieces);
        message.header.msg_iov = message.pieces.as_mut_ptr();
        message.header.msg_iovlen = message.pieces.len();
        let header: *const libc::msghdr = &raw const message.header;
        opcode::SendMsg::new(types::Fd(fd), header).flags(FLAGS as u32).build()
    }

    /// Counts bytes as sent; `true` if nothing is left in flight. The kernel is done with them.
    pub(super) fn sent(&mut self, bytes: usize) -> bool {
        self.flight.advance(bytes);
        if self.flight.rest() > 0 {
            return false;
        }
        self.flight.clear();
        if self.flight.bytes.capacity() > BYTES_KEPT {
            self.flight.bytes.shrink_to(BYTES_KEPT);
        }
        true
    }

    /// Lets go of everything: the connection is gone.
    pub(super) fn clear(&mut self) {
        self.message = None;
        for stream in [&mut self.queued, &mut self.flight] {
            stream.clear();
            stream.bytes.shrink_to(BYTES_KEPT_FREE);
            stream.slots = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(stream: &Stream) -> Vec<(usize, usize)> {
        let mut pieces = Vec::new();
        stream.pieces(&mut pieces);
        pieces.iter().map(|piece| (piece.iov_base as usize, piece.iov_len)).collect()
    }

    #[test]
    fn pieces_are_those_not_sent_yet() {
        let mut outgoing = Outgoing::default();
        let first = Slot::from_vec(vec![1; 100]);
        let second = Slot::from_vec(vec![2; 50]);
        outgoing.queue().extend_from_slice(&[0; 3]);
        outgoing.queue_slots(&[0; 10], Some(first.clone()));
        outgoing.queue_slots(&[], Some(second.clone()));
        outgoing.queue_slots(&[0; 5], None);
        outgoing.queue_slots(&[0; 5], Some(Slot::from_vec(Vec::new())));
        outgoing.queue().push(0);
        assert_eq!(outgoing.bytes(), 13 + 100 + 50 + 11);
        outgoing.launch();
        outgoing.queue().push(7);
        assert!(outgoing.has_queued() && outgoing.bytes() == 175);
        let base = outgoing.flight.bytes.as_ptr() as usize;
        let (one, two) = (first.address(), second.address());
        assert_eq!(listed(&outgoing.flight), [(base, 13), (one, 100), (two, 50), (base + 13, 11)]);
        assert!(!outgoing.sent(12));
        assert_eq!(listed(&outgoing.flight)[..2], [(base + 12, 1), (one, 100)]);
        assert!(!outgoing.sent(2));
        assert_eq!(listed(&outgoing.flight)[..2], [(one + 1, 99), (two, 50)]);
        assert!(!outgoing.sent(99 + 50 + 4));
        assert_eq!(listed(&outgoing.flight), [(base + 17, 7)]);
        assert_eq!((outgoing.flight.slots.len(), outgoing.bytes()), (0, 8));
        assert!(outgoing.sent(7) && outgoing.is_flight_empty() && outgoing.bytes() == 1);
    }

    #[test]
    fn one_send_has_limits() {
        let mut outgoing = Outgoing::default();
        let slot = Slot::from_vec(vec![1; 4096]);
        for _ in 0..1_000 {
            outgoing.queue_slots(&[0; 128], Some(slot.clone()));
        }
        outgoing.launch();
        let pieces = listed(&outgoing.flight);
        let bytes = pieces.iter().map(|(_, bytes)| bytes).sum::<usize>();
        assert!((PIECES_BYTES_ENOUGH..PIECES_BYTES_ENOUGH + 4096).contains(&bytes));
        outgoing.clear();
        for _ in 0..1_000 {
            outgoing.queue_slots(&[0; 1], Some(slot.slice(0..1)));
        }
        outgoing.launch();
        assert_eq!(listed(&outgoing.flight).len(), PIECES_MAX);
    }

    #[test]
    #[should_panic(expected = "more was sent than there was")]
    fn more_than_all_is_refused() {
        let mut outgoing = Outgoing::default();
        outgoing.queue().push(1);
        outgoing.launch();
        assert!(outgoing.sent(2));
    }
}
