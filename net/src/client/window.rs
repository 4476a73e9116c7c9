//! The frames and requests of one connection that have no answer yet.

use std::collections::VecDeque;

use crate::frame::FrameKind;

/// Buffers kept for the next frames, together at most [`SPARE_BYTES_MAX`].
const SPARE_BUFFERS_MAX: usize = 1024;
const SPARE_BYTES_MAX: usize = 16 << 20;

/// A frame or request on its way.
#[derive(Debug)]
pub struct InFlight {
    /// The whole frame as sent, kept for sending it again.
    pub frame: Vec<u8>,
    /// What it is.
    pub kind: FrameKind,
    /// Number of its first transaction, 0 for a request.
    pub first_number: u64,
    /// Its transactions, 0 for a request.
    pub transactions: usize,
    /// When the caller gave it.
    pub submitted_at: u64,
    /// When it was sent last.
    pub sent_at: u64,
    /// How often it was sent.
    pub attempts: u32,
    /// It is on the present connection and its answer is awaited.
    pub awaiting: bool,
    /// When to send it again on the present connection, if it has to be.
    pub resend_at: Option<u64>,
    /// It was reported to the caller.
    ended: bool,
}

/// Frames by sequence. Those at the front have no end yet; ended ones behind an unanswered one
/// stay as a mark.
#[derive(Debug, Default)]
pub struct Window {
    entries: VecDeque<InFlight>,
    /// Sequence of the front entry.
    front_sequence: u64,
    unanswered: usize,
    resends: usize,
    transactions: u64,
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
}

impl Window {
    /// Frames and requests without an end.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// The number that the next transaction gets.
    pub fn next_number(&self) -> u64 {
        self.transactions + 1
    }

    /// The sequence that the next frame gets.
    pub fn next_sequence(&self) -> u64 {
        self.front_sequence + self.entries.len() as u64
    }

    /// All numbers below this one have ended.
    pub fn acknowledged_below(&self) -> u64 {
        self.entries
            .iter()
            .find(|entry| !entry.ended && entry.transactions > 0)
            .map_or(self.next_number(), |entry| entry.first_number)
    }

    /// An empty buffer for a frame.
    pub fn buffer(&mut self) -> Vec<u8> {
        let buffer = self.spare.pop().unwrap_or_default();
        self.spare_bytes -= buffer.capacity();
        buffer
    }

    /// Adds a frame of so many transactions; returns its sequence.
    pub fn push(&mut self, now: u64, kind: FrameKind, transactions: usize, frame: Vec<u8>) -> u64 {
        assert!(!frame.is_empty(), "a frame has a header");
        assert_eq!(kind == FrameKind::Submit, transactions > 0, "submits have transactions");
        let sequence = self.next_sequence();
        self.entries.push_back(InFlight {
            frame,
            kind,
            first_number: if transactions > 0 { self.next_number() } else { 0 },
            transactions,
            submitted_at: now,
            sent_at: now,
            attempts: 0,
            awaiting: false,
            resend_at: None,
            ended: false,
        });
        self.unanswered += 1;
        self.transactions += transactions as u64;
        sequence
    }

    /// The frame of that sequence, if it has no end.
    pub fn get(&self, sequence: u64) -> Option<&InFlight> {
        let index = usize::try_from(sequence.checked_sub(self.front_sequence)?).ok()?;
        self.entries.get(index).filter(|entry| !entry.ended)
    }

    /// The oldest frame without an end.
    pub fn oldest(&self) -> Option<(u64, &InFlight)> {
        self.entries.front().map(|entry| (self.front_sequence, entry))
    }

    /// The oldest frame whose answer is awaited.
    pub fn oldest_awaiting(&self) -> Option<&InFlight> {
        self.entries.iter().find(|entry| entry.awaiting)
    }

    /// Sequences of the frames without an end, oldest first.
    pub fn sequences(&self) -> Vec<u64> {
        let sequence = |(index, _)| self.front_sequence + index as u64;
        let open = |(_, entry): &(usize, &InFlight)| !entry.ended;
        self.entries.iter().enumerate().filter(open).map(sequence).collect()
    }

    /// Marks a frame as sent now and returns it.
    pub fn sent(&mut self, now: u64, sequence: u64) -> &InFlight {
        let entry = self.entry(sequence);
        assert!(!entry.awaiting, "a frame is sent once per connection until it is answered");
        entry.sent_at = now;
        entry.attempts += 1;
        entry.awaiting = true;
        if entry.resend_at.take().is_some() {
            self.resends -= 1;
        }
        self.entry(sequence)
    }

    /// The frame is to be sent again at `at`: the node did not say what became of it.
    pub fn postpone(&mut self, sequence: u64, at: u64) {
        let entry = self.entry(sequence);
        assert!(entry.awaiting && entry.resend_at.is_none(), "only a sent frame is postponed");
        entry.awaiting = false;
        entry.resend_at = Some(at);
        self.resends += 1;
    }

    /// When the first postponed frame is due.
    pub fn resend_at_min(&self) -> Option<u64> {
        if self.resends == 0 {
            return None;
        }
        self.entries.iter().filter_map(|entry| entry.resend_at).min()
    }

    /// The oldest postponed frame that is due.
    pub fn resend_due(&self, now: u64) -> Option<u64> {
        if self.resends == 0 {
            return None;
        }
        let due = |entry: &InFlight| entry.resend_at.is_some_and(|at| at <= now);
        let index = self.entries.iter().position(due)?;
        Some(self.front_sequence + index as u64)
    }

    /// Nothing is on its way any more.
    pub fn connection_lost(&mut self) {
        for entry in &mut self.entries {
            entry.awaiting = false;
            entry.resend_at = None;
        }
        self.resends = 0;
    }

    /// The frame has ended: its buffer is recycled, its numbers count as acknowledged. Returns
    /// first number and transactions.
    pub fn end(&mut self, sequence: u64) -> (u64, usize) {
        let entry = self.entry(sequence);
        entry.ended = true;
        entry.awaiting = false;
        let postponed = entry.resend_at.take().is_some();
        let result = (entry.first_number, entry.transactions);
        let mut buffer = std::mem::take(&mut entry.frame);
        self.unanswered -= 1;
        self.resends -= usize::from(postponed);
        if self.spare.len() < SPARE_BUFFERS_MAX && self.spare_bytes < SPARE_BYTES_MAX {
            buffer.clear();
            self.spare_bytes += buffer.capacity();
            self.spare.push(buffer);
        }
        while self.entries.front().is_some_and(|entry| entry.ended) {
            self.entries.pop_front();
            self.front_sequence += 1;
        }
        result
    }

    fn entry(&mut self, sequence: u64) -> &mut InFlight {
        let index = sequence.checked_sub(self.front_sequence).expect("the frame has ended");
        let entry = self.entries.get_mut(index as usize).expect("the frame was pushed");
        assert!(!entry.ended, "the frame has ended");
        entry
    }
}
