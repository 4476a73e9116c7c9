//! Answers that wait for the log.
//!
//! Every answer waits for the hand-over that carries the newest effect it saw - an answer to a
//! read or to a failed check too, or a client could see what a crash then takes back. What saw no
//! effect that is still to be handed over waits for proof of leadership besides: a round of the
//! quorum that began after the request arrived, or the commit of a later hand-over. Answers leave
//! in the order they were given. Those that wait for the same wait together; nobody waits in a
//! thread.

use std::collections::VecDeque;

use spillway_net::frame::{self, FrameKind};
use spillway_net::ids::Lsn;
use spillway_net::message::{self, Payload, Refusal};

#[derive(Clone, Copy, Debug)]
struct HeldReply {
    connection: u64,
    start: usize,
    end: usize,
    request: u64,
    kind: FrameKind,
    /// The connection ends with it.
    closes: bool,
}

/// Batches kept for reuse, and the bytes that each of them may have: one that held more than
/// usual gives its memory back.
const SPARE_MAX: usize = 16;
const SPARE_BYTES_MAX: usize = 1 << 20;

/// What an answer waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waits {
    /// The hand-over that must be committed.
    pub stamp: u64,
    /// The leadership round that must have succeeded, unless a later hand-over is committed; 0:
    /// none.
    pub round: u64,
}

impl Waits {
    fn is_over(self, stamp: u64, round_confirmed: u64) -> bool {
        self.stamp < stamp || (self.stamp == stamp && self.round <= round_confirmed)
    }
}

#[derive(Debug, Default)]
struct HeldBatch {
    waits: Waits,
    replies: Vec<HeldReply>,
    bytes: Vec<u8>,
}

impl HeldBatch {
    fn capacity_bytes(&self) -> usize {
        self.bytes.capacity() + self.replies.capacity() * size_of::<HeldReply>()
    }
}

/// A finished frame for a connection, within [`Released::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub connection: u64,
    /// Where the frame begins.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// Whether it answers a `Submit`, which counts against the frames in flight.
    pub answers_submit: bool,
}

/// Frames that may leave now.
#[derive(Debug, Default)]
pub struct Released {
    /// The frames in order.
    pub frames: Vec<Outgoing>,
    /// Their bytes.
    pub bytes: Vec<u8>,
}

impl Released {
    /// Forgets all frames, keeping the memory.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes.clear();
    }

    /// Adds a frame that waits for nothing.
    pub fn push<T: Payload>(
        &mut self,
        connection: u64,
        kind: FrameKind,
        request: u64,
        payload: &T,
    ) {
        let start = self.bytes.len();
        message::write_frame(&mut self.bytes, kind, request, Lsn(0), payload);
        let end = self.bytes.len();
        self.frames.push(Outgoing { connection, start, end, answers_submit: false });
    }
}

/// Answers by the hand-over they wait for, oldest first.
#[derive(Debug, Default)]
pub(super) struct HeldReplies {
    batches: VecDeque<HeldBatch>,
    spare: Vec<HeldBatch>,
    bytes: usize,
}

impl HeldReplies {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds an answer.
    pub fn hold<T: Payload>(
        &mut self,
        waits: Waits,
        connection: u64,
        kind: FrameKind,
        request: u64,
        payload: &T,
    ) {
        self.push(
            waits,
            HeldReply { connection, start: 0, end: 0, request, kind, closes: false },
            payload,
        );
    }

    /// Holds the last answer of a connection, which is to be closed behind it.
    pub fn hold_and_close(
        &mut self,
        waits: Waits,
        connection: u64,
        request: u64,
        refusal: &Refusal,
    ) {
        let kind = FrameKind::Refusal;
        self.push(
            waits,
            HeldReply { connection, start: 0, end: 0, request, kind, closes: true },
            refusal,
        );
    }

    fn push<T: Payload>(&mut self, waits: Waits, reply: HeldReply, payload: &T) {
        if self.batches.back().is_none_or(|batch| batch.waits != waits) {
            assert!(
                self.batches.back().is_none_or(|batch| batch.waits.stamp <= waits.stamp),
                "answers are held in the order of hand-overs"
            );
            let mut batch = self.spare.pop().unwrap_or_default();
            batch.waits = waits;
            self.batches.push_back(batch);
        }
        let batch = self.batches.back_mut().expect("pushed above");
        let start = frame::begin(&mut batch.bytes);
        message::archive(&mut batch.bytes, payload);
        let end = batch.bytes.len();
        self.bytes += end - start;
        batch.replies.push(HeldReply { start, end, ..reply });
    }

    /// Moves the answers that need not wait any more into `released`: hand-overs up to `stamp`
    /// are committed, rounds up to `round_confirmed` succeeded. Adds to `closes` the connections
    /// that end with their answer.
    pub fn release(
        &mut self,
        stamp: u64,
        round_confirmed: u64,
        lsn: Lsn,
        released: &mut Released,
        closes: &mut Vec<u64>,
    ) {
        let is_over = |batch: &HeldBatch| batch.waits.is_over(stamp, round_confirmed);
        while self.batches.front().is_some_and(&is_over) {
            let mut batch = self.batches.pop_front().expect("seen above");
            for reply in batch.replies.drain(..) {
                let frame = &mut batch.bytes[reply.start..reply.end];
                frame::finish(frame, reply.kind, reply.request, lsn);
                self.bytes -= frame.len();
                let start = released.bytes.len();
                released.bytes.extend_from_slice(frame);
                released.frames.push(Outgoing {
                    connection: reply.connection,
                    start,
                    end: released.bytes.len(),
                    answers_submit: reply.kind == FrameKind::Outcomes,
                });
                if reply.closes {
                    closes.push(reply.connection);
                }
            }
            batch.bytes.clear();
            if self.spare.len() < SPARE_MAX && batch.capacity_bytes() <= SPARE_BYTES_MAX {
                self.spare.push(batch);
            }
        }
    }

    /// Drops every answer: what they report will never be known to be durable. Returns the
    /// connections that waited.
    pub fn abandon(&mut self) -> Vec<u64> {
        let mut connections: Vec<u64> = self
            .batches
            .drain(..)
            .flat_map(|batch| batch.replies.into_iter().map(|reply| reply.connection))
            .collect();
        self.bytes = 0;
        connections.sort_unstable();
        connections.dedup();
        connections
    }
}

#[cfg(test)]
mod tests {
    use spillway_net::message::{Done, RefusalCode};

    use super::*;

    fn hold(held: &mut HeldReplies, stamp: u64, connection: u64) {
        hold_round(held, stamp, 0, connection);
    }

    fn hold_round(held: &mut HeldReplies, stamp: u64, round: u64, connection: u64) {
        held.hold(Waits { stamp, round }, connection, FrameKind::Done, 5, &Done {});
    }

    fn release(held: &mut HeldReplies, stamp: u64, round: u64, released: &mut Released) {
        let mut closes = Vec::new();
        held.release(stamp, round, Lsn(1), released, &mut closes);
        assert!(closes.is_empty(), "no answer is the last one");
    }

    fn to(released: &Released) -> Vec<u64> {
        released.frames.iter().map(|f| f.connection).collect()
    }

    #[test]
    fn reads_wait_for_their_round_or_for_a_later_commit_and_keep_their_order() {
        let mut held = HeldReplies::default();
        hold_round(&mut held, 1, 7, 10);
        hold_round(&mut held, 1, 0, 11);
        hold(&mut held, 2, 12);
        let mut released = Released::default();
        release(&mut held, 1, 6, &mut released);
        assert!(released.frames.is_empty(), "committed, but the round is not over");
        release(&mut held, 0, 7, &mut released);
        assert!(released.frames.is_empty(), "the round is over, but nothing is committed");
        release(&mut held, 1, 7, &mut released);
        assert_eq!(to(&released), [10, 11]);
        released.clear();
        hold_round(&mut held, 2, 9, 13);
        release(&mut held, 2, 7, &mut released);
        assert_eq!(to(&released), [12]);
        hold(&mut held, 3, 14);
        release(&mut held, 3, 7, &mut released);
        assert_eq!(to(&released), [12, 13, 14], "a later commit is proof enough");
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn a_connection_ends_with_its_last_answer_and_not_before() {
        let mut held = HeldReplies::default();
        let refusal = Refusal::new(RefusalCode::SessionUnknown, String::new());
        hold(&mut held, 1, 10);
        held.hold_and_close(Waits { stamp: 1, round: 7 }, 11, 3, &refusal);
        let (mut released, mut closes) = (Released::default(), Vec::new());
        held.release(1, 6, Lsn(1), &mut released, &mut closes);
        assert_eq!((to(&released), closes.as_slice()), (vec![10], &[][..]));
        held.release(1, 7, Lsn(1), &mut released, &mut closes);
        assert_eq!((to(&released), closes.as_slice()), (vec![10, 11], &[11][..]));
    }

    #[test]
    fn answers_leave_when_their_hand_over_is_committed_and_not_before() {
        let mut held = HeldReplies::default();
        hold(&mut held, 1, 10);
        hold(&mut held, 1, 11);
        hold(&mut held, 2, 12);
        let mut released = Released::default();
        release(&mut held, 0, 0, &mut released);
        assert!(released.frames.is_empty());
        release(&mut held, 1, 0, &mut released);
        assert_eq!(to(&released), [10, 11]);
        assert!(held.bytes() > 0);
        release(&mut held, 7, 0, &mut released);
        assert_eq!(released.frames.len(), 3);
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn memory_of_large_answers_is_given_back() {
        let mut held = HeldReplies::default();
        let text = "x".repeat(300 << 10);
        for stamp in 1..=64u64 {
            let kept_bytes = if stamp <= 32 { 6 * text.len() } else { 100 };
            for _ in 0..kept_bytes.div_ceil(text.len()) {
                let refusal = message::Refusal::new(message::RefusalCode::Malformed, text.clone());
                held.hold(Waits { stamp, round: 0 }, 1, FrameKind::Refusal, 1, &refusal);
            }
        }
        let mut released = Released::default();
        release(&mut held, 64, 0, &mut released);
        assert_eq!(held.bytes(), 0);
        let kept: usize = held.spare.iter().map(HeldBatch::capacity_bytes).sum();
        assert!(!held.spare.is_empty() && kept <= SPARE_MAX * SPARE_BYTES_MAX, "{kept} bytes");
    }

    #[test]
    fn abandoned_answers_never_leave() {
        let mut held = HeldReplies::default();
        hold(&mut held, 1, 10);
        hold(&mut held, 2, 10);
        assert_eq!(held.abandon(), [10]);
        let mut released = Released::default();
        release(&mut held, 9, 0, &mut released);
        assert!(released.frames.is_empty());
    }
}
