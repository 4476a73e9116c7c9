//! Frames that have arrived at a shard and wait to be executed, with the memory they lie in.
//!
//! A frame that lies whole in a receive buffer is not copied: the buffer is held until its last
//! frame was executed. A frame in pieces is put together in memory of its own. Both are bounded:
//! receive buffers by their number, the rest by `input_bytes_max`.

use std::collections::VecDeque;

use spillway_net::frame::{Assembled, FrameAssembler, FrameError, FrameHeader, HEADER_BYTES};
use spillway_net::limits::FRAME_PAYLOAD_BYTES_MAX;
use spillway_net::message::HELLO_BYTES_MAX;
use spillway_runtime::tcp::{ConnectionId, ReceivedBuffer, TcpRing};

use crate::shard::InboundFrame;

/// Memory of frames that were executed, kept for the next ones. Bytes.
const SPARE_BYTES_MAX: usize = 4 << 20;

enum Place {
    Buffer { slot: usize, start: usize, end: usize },
    Owned(Vec<u8>),
}

struct Pending {
    connection: ConnectionId,
    header: FrameHeader,
    place: Place,
}

struct Held {
    buffer: ReceivedBuffer,
    frames: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct Inbound {
    pending: VecDeque<Pending>,
    held: Vec<Option<Held>>,
    held_free: Vec<usize>,
    spare: Vec<Vec<u8>>,
    owned_bytes: usize,
}

/// The number a core knows a connection by.
pub(super) fn number_of(connection: ConnectionId) -> u64 {
    u64::from(connection.generation) << 32 | u64::from(connection.index)
}

/// The connection behind a core's number.
pub(super) fn connection_of(number: u64) -> ConnectionId {
    ConnectionId { index: number as u32, generation: (number >> 32) as u32 }
}

impl Inbound {
    /// Frames waiting.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Memory of frames that were put together from pieces.
    pub fn owned_bytes(&self) -> usize {
        self.owned_bytes
    }

    /// Cuts what arrived into frames.
    pub fn receive(
        &mut self,
        ring: &mut TcpRing,
        connection: ConnectionId,
        assembler: &mut FrameAssembler,
        first_frame: &mut bool,
        buffer: ReceivedBuffer,
    ) -> Result<(), FrameError> {
        let slot = self.held_free.pop().unwrap_or_else(|| {
            self.held.push(None);
            self.held.len() - 1
        });
        let bytes = ring.bytes(&buffer);
        let base = bytes.as_ptr().addr();
        let mut rest = bytes;
        let mut frames = 0;
        let outcome = loop {
            // Until its first frame a connection has no right to more than a hello.
            let limit = if *first_frame { HELLO_BYTES_MAX } else { FRAME_PAYLOAD_BYTES_MAX };
            match assembler.next(&mut rest, limit, &mut self.spare) {
                Ok(Assembled::InPlace(header, frame)) => {
                    let start = frame.as_ptr().addr() - base;
                    let place = Place::Buffer { slot, start, end: start + frame.len() };
                    self.pending.push_back(Pending { connection, header, place });
                    frames += 1;
                    *first_frame = false;
                }
                Ok(Assembled::Owned(header, frame)) => {
                    self.owned_bytes += frame.capacity();
                    let place = Place::Owned(frame);
                    self.pending.push_back(Pending { connection, header, place });
                    *first_frame = false;
                }
                Ok(Assembled::Incomplete) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if frames == 0 {
            ring.release(buffer);
            self.held_free.push(slot);
        } else {
            self.held[slot] = Some(Held { buffer, frames });
        }
        outcome
    }

    /// How many of the oldest frames to execute at once: up to `frames_max`, and no more than
    /// `bytes_max` unless it is one.
    pub fn portion(&self, frames_max: usize, bytes_max: usize) -> usize {
        let mut bytes = 0;
        let mut count = 0;
        for pending in self.pending.iter().take(frames_max) {
            bytes += pending.header.frame_bytes();
            if count > 0 && bytes > bytes_max {
                break;
            }
            count += 1;
        }
        count
    }

    /// The oldest `count` frames, as the core takes them.
    pub fn frames<'a>(&'a self, ring: &'a TcpRing, count: usize) -> Vec<InboundFrame<'a>> {
        let held = &self.held;
        let frame_of = |pending: &'a Pending| {
            let frame = match &pending.place {
                Place::Owned(frame) => &frame[..],
                Place::Buffer { slot, start, end } => {
                    let held = held[*slot].as_ref().expect("held until its frames are executed");
                    &ring.bytes(&held.buffer)[*start..*end]
                }
            };
            InboundFrame {
                connection: number_of(pending.connection),
                header: pending.header,
                payload: &frame[HEADER_BYTES..],
            }
        };
        self.pending.iter().take(count).map(frame_of).collect()
    }

    /// Lets go of the oldest `count` frames after they were executed.
    pub fn done(&mut self, ring: &mut TcpRing, count: usize) {
        for pending in self.pending.drain(..count) {
            match pending.place {
                Place::Owned(mut frame) => {
                    self.owned_bytes -= frame.capacity();
                    frame.clear();
                    let bytes: usize = self.spare.iter().map(Vec::capacity).sum();
                    if bytes + frame.capacity() <= SPARE_BYTES_MAX {
                        self.spare.push(frame);
                    }
                }
                Place::Buffer { slot, .. } => {
                    let held = self.held[slot].as_mut().expect("held until its frames are done");
                    held.frames -= 1;
                    if held.frames == 0 {
                        let held = self.held[slot].take().expect("seen above");
                        ring.release(held.buffer);
                        self.held_free.push(slot);
                    }
                }
            }
        }
    }
}
