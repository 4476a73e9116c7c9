//! Client sessions: which exist (node view), and what a shard remembers of theirs (shard view).
//!
//! Exactly once rests on three facts. A committed outcome stands in the log in the very fragment
//! of its transaction, so memory and log cannot disagree after a restart. A number is looked up
//! before it is executed. And numbers outside the window between the client's acknowledged mark
//! and `SESSION_NUMBERS_WINDOW` beyond it are refused, so forgetting an outcome can never turn a
//! late duplicate into a second execution.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spillway_net::ids::SessionId;
use spillway_net::limits::{OUTCOME_RESULT_BYTES_MAX, SESSION_NUMBERS_WINDOW, SESSIONS_MAX};

/// Slots of the directory: a session's id is `generation * SLOTS + slot`.
pub const SLOTS: usize = 1 << 17;
const _: () = assert!(SESSIONS_MAX <= SLOTS);

/// The slot of a session id.
pub const fn slot_of(session: SessionId) -> usize {
    (session.0 % SLOTS as u64) as usize
}

/// Which sessions are open. The root service writes, every shard reads, without messages: a slot
/// holds the id that lives there, or 0. An id is stored only after its opening is committed, and
/// removed before its closing is logged, so a shard never serves a session that a restart would
/// not know.
#[derive(Debug)]
pub struct SessionDirectory {
    live: Box<[AtomicU64]>,
    used_at_seconds: Box<[AtomicU32]>,
}

impl Default for SessionDirectory {
    fn default() -> Self {
        Self {
            live: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            used_at_seconds: (0..SLOTS).map(|_| AtomicU32::new(0)).collect(),
        }
    }
}

impl SessionDirectory {
    /// Whether the session is open.
    pub fn is_live(&self, session: SessionId) -> bool {
        session.0 != 0 && self.live[slot_of(session)].load(Ordering::Acquire) == session.0
    }

    /// Notes that a session did something; decides its expiry.
    pub fn touch(&self, session: SessionId, now_seconds: u32) {
        self.used_at_seconds[slot_of(session)].store(now_seconds, Ordering::Relaxed);
    }

    /// When a session last did something.
    pub fn used_at_seconds(&self, session: SessionId) -> u32 {
        self.used_at_seconds[slot_of(session)].load(Ordering::Relaxed)
    }

    /// Opens a session. Only the root service calls this.
    pub fn open(&self, session: SessionId, now_seconds: u32) {
        assert_ne!(session.0, 0, "0 is no session");
        self.touch(session, now_seconds);
        let before = self.live[slot_of(session)].swap(session.0, Ordering::AcqRel);
        assert!(before == 0 || before == session.0, "a slot has one live session");
    }

    /// Closes a session. Only the root service calls this.
    pub fn close(&self, session: SessionId) {
        let slot = &self.live[slot_of(session)];
        if slot.load(Ordering::Acquire) == session.0 {
            slot.store(0, Ordering::Release);
        }
    }
}

/// What is known of a transaction number.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// Never committed here: execute it.
    New,
    /// Committed before; its results.
    Committed(&'a [u8]),
    /// Committed before; its results were too large to be kept.
    CommittedResultsNotKept,
    /// Committed before with another request: a bug of the client.
    Reused,
    /// Below the acknowledged mark, or too far ahead of it.
    OutOfWindow,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    request_hash: u32,
    state: EntryState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum EntryState {
    #[default]
    Unknown,
    CommittedEmpty,
    CommittedWithResults,
    CommittedResultsNotKept,
}

/// What one shard remembers of one session.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    /// Numbers below are acknowledged by the client; `entries[0]` is this number.
    floor: u64,
    entries: VecDeque<Entry>,
    results: BTreeMap<u64, Box<[u8]>>,
    /// The one live connection that may use the session on this shard.
    pub connection: Option<u64>,
}

impl Session {
    fn new(id: SessionId) -> Self {
        Self { id, floor: 1, entries: VecDeque::new(), results: BTreeMap::new(), connection: None }
    }

    /// Looks a number up before it is executed.
    pub fn lookup(&self, number: u64, request_hash: u32) -> Lookup<'_> {
        if number < self.floor || number - self.floor >= SESSION_NUMBERS_WINDOW {
            return Lookup::OutOfWindow;
        }
        let Some(entry) = self.entries.get((number - self.floor) as usize) else {
            return Lookup::New;
        };
        if entry.state != EntryState::Unknown && entry.request_hash != request_hash {
            return Lookup::Reused;
        }
        match entry.state {
            EntryState::Unknown => Lookup::New,
            EntryState::CommittedEmpty => Lookup::Committed(&[]),
            EntryState::CommittedWithResults => {
                Lookup::Committed(self.results.get(&number).map_or(&[], |r| r))
            }
            EntryState::CommittedResultsNotKept => Lookup::CommittedResultsNotKept,
        }
    }

    fn state_of(&mut self, number: u64, results: Option<&[u8]>) -> EntryState {
        match results {
            None => EntryState::CommittedResultsNotKept,
            Some([]) => EntryState::CommittedEmpty,
            Some(results) => {
                assert!(results.len() <= OUTCOME_RESULT_BYTES_MAX, "large results are not kept");
                self.results.insert(number, results.into());
                EntryState::CommittedWithResults
            }
        }
    }

    /// Notes a committed outcome; `results` is `None` when they are too large to be kept.
    /// Returns bytes of memory added.
    pub fn record(&mut self, number: u64, request_hash: u32, results: Option<&[u8]>) -> usize {
        assert!(number >= self.floor, "an outcome below the acknowledged mark");
        let at = (number - self.floor) as usize;
        assert!(at < SESSION_NUMBERS_WINDOW as usize, "an outcome beyond the window");
        let before = self.entries.capacity();
        if self.entries.len() <= at {
            self.entries.resize(at + 1, Entry::default());
        }
        let state = self.state_of(number, results);
        self.entries[at] = Entry { request_hash, state };
        (self.entries.capacity() - before) * size_of::<Entry>()
            + results.map_or(0, |results| results.len())
    }

    /// Forgets a committed outcome whose transaction is rolled back.
    pub fn forget(&mut self, number: u64) {
        if let Some(entry) =
            number.checked_sub(self.floor).and_then(|at| self.entries.get_mut(at as usize))
        {
            *entry = Entry::default();
            self.results.remove(&number);
        }
    }

    /// Notes an outcome found in the log. A number the client could send only after it had
    /// acknowledged those a window below moves the floor: they need no outcome any more.
    pub fn replay(&mut self, number: u64, request_hash: u32, results: Option<&[u8]>) {
        if number < self.floor {
            return;
        }
        if number - self.floor >= SESSION_NUMBERS_WINDOW {
            self.acknowledge_below(number - SESSION_NUMBERS_WINDOW + 1);
        }
        self.record(number, request_hash, results);
    }

    /// Drops outcomes that the client has read.
    pub fn acknowledge_below(&mut self, number: u64) {
        if number <= self.floor {
            return;
        }
        let gone = ((number - self.floor) as usize).min(self.entries.len());
        self.entries.drain(..gone);
        self.floor = number;
        if !self.results.is_empty() {
            self.results = self.results.split_off(&number);
        }
    }

    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.id
    }
}

/// The sessions one shard has met.
#[derive(Debug)]
pub struct SessionTable {
    slots: Vec<Option<Box<Session>>>,
    count: usize,
}

impl Default for SessionTable {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| None).collect(), count: 0 }
    }
}

impl SessionTable {
    /// The session's state here, created at its first use. An older session in the same slot is
    /// replaced: it was closed, or the newer one could not exist.
    pub fn enter(&mut self, session: SessionId) -> &mut Session {
        assert_ne!(session.0, 0, "0 is no session");
        let slot = &mut self.slots[slot_of(session)];
        if slot.as_ref().is_none_or(|held| held.id != session) {
            if slot.is_none() {
                self.count += 1;
            }
            *slot = Some(Box::new(Session::new(session)));
        }
        slot.as_mut().expect("filled above")
    }

    /// The session's state here, if it was ever used here.
    pub fn get_mut(&mut self, session: SessionId) -> Option<&mut Session> {
        self.slots[slot_of(session)].as_deref_mut().filter(|held| held.id == session)
    }

    /// Forgets a session; returns the connection that used it.
    pub fn close(&mut self, session: SessionId) -> Option<u64> {
        let connection = self.get_mut(session)?.connection;
        self.slots[slot_of(session)] = None;
        self.count -= 1;
        connection
    }

    /// Sessions with state here.
    pub fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_number_finds_its_first_outcome() {
        let mut session = Session::new(SessionId(SLOTS as u64));
        assert_eq!(session.lookup(1, 10), Lookup::New);
        session.record(1, 10, Some(b""));
        session.record(3, 30, Some(b"result"));
        session.record(4, 40, None);
        assert_eq!(session.lookup(1, 10), Lookup::Committed(b""));
        assert_eq!(session.lookup(1, 11), Lookup::Reused);
        assert_eq!(session.lookup(2, 99), Lookup::New, "a gap is not an outcome");
        assert_eq!(session.lookup(3, 30), Lookup::Committed(b"result"));
        assert_eq!(session.lookup(4, 40), Lookup::CommittedResultsNotKept);
    }

    #[test]
    fn forgotten_numbers_are_refused_not_executed() {
        let mut session = Session::new(SessionId(5));
        session.record(1, 10, Some(b"x"));
        session.record(2, 20, Some(b"y"));
        session.acknowledge_below(2);
        assert_eq!(session.lookup(1, 10), Lookup::OutOfWindow);
        assert_eq!(session.lookup(2, 20), Lookup::Committed(b"y"));
        assert_eq!(session.results.len(), 1);
        session.acknowledge_below(100);
        assert_eq!(session.lookup(99, 0), Lookup::OutOfWindow);
        assert_eq!(session.lookup(100, 0), Lookup::New);
        assert_eq!(session.lookup(100 + SESSION_NUMBERS_WINDOW, 0), Lookup::OutOfWindow);
        assert!(session.results.is_empty());
    }

    #[test]
    fn replay_keeps_a_window_and_no_more() {
        let mut session = Session::new(SessionId(5));
        for number in 1..=SESSION_NUMBERS_WINDOW + 10 {
            session.replay(number, number as u32, Some(b""));
        }
        assert_eq!(session.entries.len() as u64, SESSION_NUMBERS_WINDOW);
        assert_eq!(session.lookup(10, 10), Lookup::OutOfWindow);
        assert_eq!(session.lookup(11, 11), Lookup::Committed(b""));
        session.replay(3, 3, Some(b""));
        assert_eq!(session.lookup(3, 3), Lookup::OutOfWindow, "late news of a forgotten number");
    }

    #[test]
    fn a_rolled_back_outcome_is_gone() {
        let mut session = Session::new(SessionId(5));
        session.record(1, 10, Some(b"x"));
        session.forget(1);
        assert_eq!(session.lookup(1, 10), Lookup::New);
        assert!(session.results.is_empty());
    }

    #[test]
    fn a_slot_serves_one_session_at_a_time() {
        let directory = SessionDirectory::default();
        let first = SessionId(SLOTS as u64 + 7);
        let second = SessionId(2 * SLOTS as u64 + 7);
        directory.open(first, 1);
        assert!(directory.is_live(first) && !directory.is_live(second));
        directory.close(second);
        assert!(directory.is_live(first), "closing another session of the slot changes nothing");
        directory.close(first);
        directory.open(second, 2);
        assert!(!directory.is_live(first) && directory.is_live(second));
        assert!(!directory.is_live(SessionId(0)));

        let mut table = SessionTable::default();
        table.enter(first).record(1, 1, Some(b""));
        assert_eq!(table.enter(second).lookup(1, 1), Lookup::New);
        assert!(table.get_mut(first).is_none());
        assert_eq!(table.count(), 1);
    }
}
