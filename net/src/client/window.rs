//! The frames and requests of one connection that have no answer yet.

use std::collections::{BTreeMap, VecDeque};

use crate::frame::{self, FrameKind};
use crate::ids::Lsn;

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
    /// An earlier attempt ended without an answer: it may have taken effect.
    pub is_doubtful: bool,
    /// The leaders that were lost while it was on its way to them.
    pub leaders_lost: Vec<LeaderTerm>,
    /// It is on the present connection and its answer is awaited.
    pub awaiting: bool,
    /// When to send it again on the present connection, if it has to be.
    pub resend_at: Option<u64>,
    /// It was reported to the caller.
    ended: bool,
    /// It was parked before: its numbers are older than those of the frames in front of it.
    resumed: bool,
}

impl InFlight {
    /// Whether it may have taken effect.
    pub fn is_uncertain(&self) -> bool {
        self.is_doubtful || self.awaiting
    }
}

/// A node in a term. One that comes back in a later term is another leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderTerm {
    /// The node.
    pub node: u16,
    /// Its term.
    pub epoch: u64,
}

/// A frame that was reported as unknown: kept, its numbers not acknowledged, so that it can be
/// sent again.
#[derive(Debug)]
struct Parked {
    frame: Vec<u8>,
    first_number: u64,
    transactions: usize,
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
    /// By sequence.
    parked: BTreeMap<u64, Parked>,
    resumed: usize,
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

    /// All numbers below this one have ended, and none of them is parked.
    pub fn acknowledged_below(&self) -> u64 {
        if spillway_runtime::planted!(ClientAcknowledgesUnread) {
            return self.next_number();
        }
        let parked = self.parked.values().map(|parked| parked.first_number).min();
        parked.map_or_else(|| self.ended_below(), |parked| parked.min(self.ended_below()))
    }

    /// All numbers below this one have ended or are parked.
    pub fn ended_below(&self) -> u64 {
        let open = |entry: &&InFlight| !entry.ended && entry.transactions > 0;
        let first = self.entries.iter().filter(open).find(|entry| !entry.resumed);
        let first = first.map_or(self.next_number(), |entry| entry.first_number);
        if self.resumed == 0 {
            return first;
        }
        let resumed = self.entries.iter().filter(open).filter(|entry| entry.resumed);
        resumed.map(|entry| entry.first_number).min().map_or(first, |number| number.min(first))
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
        let first_number = if transactions > 0 { self.next_number() } else { 0 };
        self.transactions += transactions as u64;
        self.append(now, kind, Parked { frame, first_number, transactions })
    }

    fn append(&mut self, now: u64, kind: FrameKind, content: Parked) -> u64 {
        let sequence = self.next_sequence();
        self.entries.push_back(InFlight {
            frame: content.frame,
            kind,
            first_number: content.first_number,
            transactions: content.transactions,
            submitted_at: now,
            sent_at: now,
            is_doubtful: false,
            leaders_lost: Vec::new(),
            awaiting: false,
            resend_at: None,
            ended: false,
            resumed: false,
        });
        self.unanswered += 1;
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

    /// The node gave a frame back without touching it: it is as it was before it was sent.
    pub fn returned(&mut self, sequence: u64) {
        let entry = self.entry(sequence);
        assert!(entry.awaiting, "only a sent frame is given back");
        entry.awaiting = false;
    }

    /// Nothing is on its way any more. What was, may have taken effect; `leader` is the one that
    /// was lost with it, if one was.
    pub fn connection_lost(&mut self, leader: Option<LeaderTerm>) {
        for entry in &mut self.entries {
            if entry.awaiting {
                entry.is_doubtful = !spillway_runtime::planted!(ClientForgetsDoubt);
                if let Some(leader) = leader.filter(|leader| !entry.leaders_lost.contains(leader)) {
                    entry.leaders_lost.push(leader);
                }
            }
            entry.awaiting = false;
            entry.resend_at = None;
        }
        self.resends = 0;
    }

    /// The frame has ended: its buffer is recycled, its numbers count as acknowledged. Returns
    /// first number and transactions.
    pub fn end(&mut self, sequence: u64) -> (u64, usize) {
        let Parked { frame: mut buffer, first_number, transactions } = self.take(sequence);
        if self.spare.len() < SPARE_BUFFERS_MAX && self.spare_bytes < SPARE_BYTES_MAX {
            buffer.clear();
            self.spare_bytes += buffer.capacity();
            self.spare.push(buffer);
        }
        (first_number, transactions)
    }

    /// The frame has ended with an unknown outcome and is kept, at most `parked_max` of them. Its
    /// numbers do not count as acknowledged. Returns first number and transactions.
    pub fn park(&mut self, sequence: u64, parked_max: usize) -> (u64, usize) {
        let content = self.take(sequence);
        assert!(content.transactions > 0, "requests have no numbers to ask again by");
        let result = (content.first_number, content.transactions);
        self.parked.insert(sequence, content);
        while self.parked.len() > parked_max {
            self.parked.pop_first();
        }
        result
    }

    /// Sequences of the parked frames, oldest first.
    pub fn parked(&self) -> impl Iterator<Item = u64> {
        self.parked.keys().copied()
    }

    /// Forgets the oldest parked frame. False: there is none.
    pub fn parked_forget(&mut self) -> bool {
        self.parked.pop_first().is_some()
    }

    /// A parked frame is to be sent again with its numbers; returns its new sequence.
    pub fn resume(&mut self, now: u64, sequence: u64) -> Option<u64> {
        let mut content = self.parked.remove(&sequence)?;
        let request = self.next_sequence() + 1;
        frame::finish(&mut content.frame, FrameKind::Submit, request, Lsn(0));
        let sequence = self.append(now, FrameKind::Submit, content);
        let entry = self.entry(sequence);
        entry.resumed = true;
        entry.is_doubtful = true;
        self.resumed += 1;
        Some(sequence)
    }

    /// Ends an entry and takes its content.
    fn take(&mut self, sequence: u64) -> Parked {
        let entry = self.entry(sequence);
        entry.ended = true;
        entry.awaiting = false;
        let postponed = entry.resend_at.take().is_some();
        let resumed = entry.resumed;
        let (first_number, transactions) = (entry.first_number, entry.transactions);
        let frame = std::mem::take(&mut entry.frame);
        self.unanswered -= 1;
        self.resends -= usize::from(postponed);
        self.resumed -= usize::from(resumed);
        while self.entries.front().is_some_and(|entry| entry.ended) {
            self.entries.pop_front();
            self.front_sequence += 1;
        }
        Parked { frame, first_number, transactions }
    }

    fn entry(&mut self, sequence: u64) -> &mut InFlight {
        let index = sequence.checked_sub(self.front_sequence).expect("the frame has ended");
        let entry = self.entries.get_mut(index as usize).expect("the frame was pushed");
        assert!(!entry.ended, "the frame has ended");
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let mut frame = Vec::new();
        frame::begin(&mut frame);
        frame
    }

    fn push(window: &mut Window, transactions: usize) -> u64 {
        window.push(0, FrameKind::Submit, transactions, frame())
    }

    #[test]
    fn parked_numbers_are_not_acknowledged() {
        let mut window = Window::default();
        let first = push(&mut window, 3);
        let second = push(&mut window, 2);
        assert_eq!(window.park(first, 4), (1, 3));
        assert_eq!((window.acknowledged_below(), window.ended_below()), (1, 4));
        window.end(second);
        assert_eq!((window.acknowledged_below(), window.ended_below()), (1, 6));
        let third = push(&mut window, 1);
        let again = window.resume(9, first).expect("it is parked");
        assert_eq!(window.get(again).map(|entry| entry.first_number), Some(1));
        assert_eq!((window.acknowledged_below(), window.ended_below()), (1, 1));
        assert!(window.resume(9, first).is_none(), "once");
        window.end(third);
        assert_eq!(window.acknowledged_below(), 1);
        assert_eq!(window.end(again), (1, 3));
        assert_eq!((window.acknowledged_below(), window.unanswered()), (7, 0));
    }

    #[test]
    fn the_oldest_parked_frame_makes_room() {
        let mut window = Window::default();
        let frames: Vec<u64> = (0..3).map(|_| push(&mut window, 1)).collect();
        for sequence in &frames {
            window.park(*sequence, 2);
        }
        assert_eq!(window.parked().collect::<Vec<_>>(), frames[1..]);
        assert_eq!(window.acknowledged_below(), 2);
        assert!(window.parked_forget() && window.parked_forget() && !window.parked_forget());
        assert_eq!(window.acknowledged_below(), 4);
    }

    #[test]
    fn a_leader_in_one_term_is_lost_once() {
        let mut window = Window::default();
        let sequence = push(&mut window, 1);
        let lost = |window: &Window| window.get(sequence).expect("open").leaders_lost.len();
        let leader = LeaderTerm { node: 1, epoch: 5 };
        window.connection_lost(Some(leader));
        assert_eq!(lost(&window), 0, "it was not on its way");
        for (leader, expected) in [(leader, 1), (leader, 1), (LeaderTerm { node: 1, epoch: 6 }, 2)]
        {
            window.sent(1, sequence);
            window.connection_lost(Some(leader));
            assert_eq!(lost(&window), expected);
        }
        window.sent(1, sequence);
        window.connection_lost(None);
        assert_eq!(lost(&window), 2);
    }
}
