//! Client sessions: which exist (node view), and what a shard remembers of theirs (shard view).
//!
//! Exactly once rests on three facts. A committed outcome stands in the log in the very fragment
//! of its transaction, so memory and log cannot disagree after a restart. A number is looked up
//! before it is executed. And numbers outside the window between the client's acknowledged mark
//! and `SESSION_NUMBERS_WINDOW` beyond it are refused, so forgetting an outcome can never turn a
//! late duplicate into a second execution.
//!
//! An outcome may be taken back while its hand-over is not committed, and come again as committed
//! redo. So the acknowledged mark never passes an outcome that is not committed, whatever a
//! client claims to have read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spillway_net::ids::SessionId;
use spillway_net::limits::{OUTCOME_RESULT_BYTES_MAX, SESSION_NUMBERS_WINDOW, SESSIONS_MAX};

use crate::memtable::Stamp;
use crate::redo::RedoError;

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
/// not know. It comes back if the closing is not committed.
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

/// What a kept result costs beside its bytes: its place in the map.
const RESULT_OVERHEAD_BYTES: usize = 64;
/// Entries below which memory is not given back.
const ENTRIES_KEPT_MIN: usize = 4096;

/// What one shard remembers of one session.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    /// Numbers below are acknowledged by the client; `entries[0]` is this number.
    floor: u64,
    entries: VecDeque<Entry>,
    results: BTreeMap<u64, Box<[u8]>>,
    results_bytes: usize,
    /// Of each hand-over that may not be committed: its stamp and the lowest number it carries.
    uncommitted: VecDeque<(Stamp, u64)>,
    /// The one live connection that may use the session on this shard.
    pub connection: Option<u64>,
    /// The attempt by which that connection attached, see `Hello::attempt`.
    pub attempt: u64,
}

impl Session {
    fn new(id: SessionId) -> Self {
        Self {
            id,
            floor: 1,
            entries: VecDeque::new(),
            results: BTreeMap::new(),
            results_bytes: 0,
            uncommitted: VecDeque::new(),
            connection: None,
            attempt: 0,
        }
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
                self.results_bytes += results.len() + RESULT_OVERHEAD_BYTES;
                let before = self.results.insert(number, results.into());
                assert!(before.is_none(), "a number commits once");
                EntryState::CommittedWithResults
            }
        }
    }

    /// Bytes that its outcomes take.
    fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
            + self.uncommitted.capacity() * size_of::<(Stamp, u64)>()
            + self.results_bytes
    }

    /// Notes a committed outcome; `results` is `None` when they are too large to be kept.
    fn record(&mut self, number: u64, request_hash: u32, results: Option<&[u8]>) {
        assert!(number >= self.floor, "an outcome below the acknowledged mark");
        let at = (number - self.floor) as usize;
        assert!(at < SESSION_NUMBERS_WINDOW as usize, "an outcome beyond the window");
        if self.entries.len() <= at {
            self.entries.resize(at + 1, Entry::default());
        }
        let state = self.state_of(number, results);
        self.entries[at] = Entry { request_hash, state };
    }

    /// Notes an outcome that leaves with hand-over `stamp`.
    fn record_uncommitted(
        &mut self,
        number: u64,
        request_hash: u32,
        results: Option<&[u8]>,
        stamp: Stamp,
    ) {
        self.record(number, request_hash, results);
        match self.uncommitted.back_mut() {
            Some((newest, lowest)) if *newest == stamp => *lowest = number.min(*lowest),
            _ => self.uncommitted.push_back((stamp, number)),
        }
    }

    /// Forgets an outcome whose hand-over is taken back.
    fn forget(&mut self, number: u64) {
        let at = number.checked_sub(self.floor);
        let at = at.expect("the acknowledged mark passes no uncommitted outcome");
        let entry = self.entries.get_mut(at as usize);
        let entry = entry.filter(|entry| entry.state != EntryState::Unknown);
        *entry.expect("what is taken back was recorded") = Entry::default();
        let gone = self.results.remove(&number);
        self.results_bytes -= gone.map_or(0, |gone| gone.len() + RESULT_OVERHEAD_BYTES);
    }

    /// The highest mark that passes no outcome above the committed hand-over `floor`.
    fn acknowledgeable(&mut self, number: u64, floor: Stamp) -> u64 {
        while self.uncommitted.front().is_some_and(|(stamp, _)| *stamp <= floor) {
            self.uncommitted.pop_front();
        }
        self.uncommitted.iter().fold(number, |number, (_, lowest)| number.min(*lowest))
    }

    /// Notes an outcome found in the log. A number the client could send only after it had
    /// acknowledged those a window below moves the floor: they need no outcome any more.
    fn replay(
        &mut self,
        number: u64,
        request_hash: u32,
        results: Option<&[u8]>,
    ) -> Result<(), RedoError> {
        if number < self.floor {
            return Ok(());
        }
        if number - self.floor >= SESSION_NUMBERS_WINDOW {
            self.acknowledge_below(number - SESSION_NUMBERS_WINDOW + 1);
        }
        let before = self.entries.get((number - self.floor) as usize);
        if before.is_some_and(|entry| entry.state != EntryState::Unknown) {
            return Err(RedoError::Contradiction("a transaction's number commits twice"));
        }
        self.record(number, request_hash, results);
        Ok(())
    }

    /// Drops outcomes that the client has read.
    fn acknowledge_below(&mut self, number: u64) {
        if number <= self.floor {
            return;
        }
        let gone = ((number - self.floor) as usize).min(self.entries.len());
        self.entries.drain(..gone);
        self.floor = number;
        if !self.results.is_empty() {
            let read = number + u64::from(spillway_runtime::planted!(ResultsForgottenEarly));
            self.results = self.results.split_off(&read);
            let bytes: usize = self.results.values().map(|kept| kept.len()).sum();
            self.results_bytes = bytes + self.results.len() * RESULT_OVERHEAD_BYTES;
        }
        if self.entries.capacity() > ENTRIES_KEPT_MIN.max(8 * self.entries.len()) {
            self.entries.shrink_to(2 * self.entries.len());
        }
    }

    /// Numbers below are acknowledged.
    pub fn acknowledged_below(&self) -> u64 {
        self.floor
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
    bytes: usize,
}

impl Default for SessionTable {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| None).collect(), count: 0, bytes: 0 }
    }
}

impl SessionTable {
    /// The session's state here, created at its first use. An older session in the same slot is
    /// replaced: it was closed, or the newer one could not exist.
    pub fn enter(&mut self, session: SessionId) -> &mut Session {
        assert_ne!(session.0, 0, "0 is no session");
        let slot = &mut self.slots[slot_of(session)];
        if slot.as_ref().is_none_or(|held| held.id != session) {
            match slot {
                None => self.count += 1,
                Some(before) => self.bytes -= before.bytes(),
            }
            *slot = Some(Box::new(Session::new(session)));
        }
        slot.as_mut().expect("filled above")
    }

    /// Another session that has state here in this one's slot.
    pub fn older_in_slot(&self, session: SessionId) -> Option<SessionId> {
        let held = self.slots[slot_of(session)].as_deref()?;
        (held.id != session).then_some(held.id)
    }

    /// The session's state here, if it was ever used here.
    pub fn get(&self, session: SessionId) -> Option<&Session> {
        self.slots[slot_of(session)].as_deref().filter(|held| held.id == session)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, session: SessionId) -> Option<&mut Session> {
        self.slots[slot_of(session)].as_deref_mut().filter(|held| held.id == session)
    }

    /// Forgets a session; returns the connection that used it.
    pub fn close(&mut self, session: SessionId) -> Option<u64> {
        self.get_mut(session)?;
        let gone = self.slots[slot_of(session)].take()?;
        self.bytes -= gone.bytes();
        self.count -= 1;
        gone.connection
    }

    /// Notes an outcome of a session that was entered, which leaves with hand-over `stamp`;
    /// `results` is `None` when they are too large to be kept.
    pub fn record(
        &mut self,
        session: SessionId,
        number: u64,
        request_hash: u32,
        results: Option<&[u8]>,
        stamp: Stamp,
    ) {
        self.change(session, |held| held.record_uncommitted(number, request_hash, results, stamp));
    }

    /// Forgets an outcome whose hand-over is taken back.
    pub fn forget(&mut self, session: SessionId, number: u64) {
        self.change(session, |held| held.forget(number));
    }

    /// Notes an outcome found in the log.
    ///
    /// # Errors
    /// Its number was committed before.
    pub fn replay(
        &mut self,
        session: SessionId,
        number: u64,
        request_hash: u32,
        results: Option<&[u8]>,
    ) -> Result<(), RedoError> {
        self.enter(session);
        let mut replayed = Ok(());
        self.change(session, |held| replayed = held.replay(number, request_hash, results));
        replayed
    }

    /// Takes over from the log how far the client of a session has read.
    pub fn replay_acknowledged(&mut self, session: SessionId, below: u64) {
        self.enter(session);
        self.change(session, |held| held.acknowledge_below(below));
    }

    /// Drops outcomes that the client of a session has read. Outcomes above the committed
    /// hand-over `floor` stay: nobody can have read them. A session without state here has none.
    pub fn acknowledge_below(&mut self, session: SessionId, number: u64, floor: Stamp) {
        if self.get(session).is_none() {
            return;
        }
        self.change(session, |held| {
            let number = held.acknowledgeable(number, floor);
            held.acknowledge_below(
                number + u64::from(spillway_runtime::planted!(OutcomeEvictedEarly)),
            );
        });
    }

    fn change(&mut self, session: SessionId, change: impl FnOnce(&mut Session)) {
        let held = self.slots[slot_of(session)].as_deref_mut().filter(|held| held.id == session);
        let held = held.expect("a session that does something was entered");
        let before = held.bytes();
        change(held);
        self.bytes = self.bytes + held.bytes() - before;
    }

    /// Bytes that the outcomes of all sessions take.
    pub fn bytes(&self) -> usize {
        self.bytes
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
            session.replay(number, number as u32, Some(b"")).expect("a number of its own");
        }
        assert_eq!(session.entries.len() as u64, SESSION_NUMBERS_WINDOW);
        assert_eq!(session.lookup(10, 10), Lookup::OutOfWindow);
        assert_eq!(session.lookup(11, 11), Lookup::Committed(b""));
        session.replay(3, 3, Some(b"")).expect("a number of its own");
        assert_eq!(session.lookup(3, 3), Lookup::OutOfWindow, "late news of a forgotten number");
    }

    #[test]
    fn a_rolled_back_outcome_is_gone() {
        let mut session = Session::new(SessionId(5));
        session.record_uncommitted(1, 10, Some(b"x"), Stamp(1));
        session.forget(1);
        assert_eq!(session.lookup(1, 10), Lookup::New);
        assert!(session.results.is_empty());
        session.replay(1, 10, Some(b"x")).expect("a number of its own");
        assert_eq!(session.lookup(1, 10), Lookup::Committed(b"x"), "it came back as redo");
    }

    #[test]
    fn the_acknowledged_mark_passes_no_uncommitted_outcome() {
        let mut table = SessionTable::default();
        let session = SessionId(5);
        table.enter(session);
        for (number, stamp) in [(1, 1), (3, 1), (5, 2), (4, 2), (9, 3)] {
            table.record(session, number, 1, Some(b"x"), Stamp(stamp));
        }
        let mut floor_after = |number, floor| {
            table.acknowledge_below(session, number, Stamp(floor));
            table.get_mut(session).expect("entered").floor
        };
        assert_eq!(floor_after(9, 0), 1, "nothing is committed");
        assert_eq!(floor_after(2, 1), 2);
        assert_eq!(floor_after(9, 1), 4, "5 and 4 are not committed");
        assert_eq!(floor_after(20, 2), 9);
        assert_eq!(floor_after(20, 3), 20);
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
        table.enter(first);
        table.record(first, 1, 1, Some(b"result"), Stamp(1));
        assert!(table.bytes() > 6);
        assert_eq!(table.enter(second).lookup(1, 1), Lookup::New);
        assert_eq!(table.bytes(), 0, "a replaced session gives its memory back");
        assert!(table.get_mut(first).is_none());
        assert_eq!(table.count(), 1);
    }

    #[test]
    fn memory_of_outcomes_is_counted_and_given_back() {
        let mut table = SessionTable::default();
        let session = SessionId(5);
        table.enter(session);
        for number in 1..=100_000 {
            table.record(session, number, 1, Some(b"x"), Stamp(1));
        }
        let full = table.bytes();
        assert!(full >= 100_000 * (size_of::<Entry>() + 1));
        table.acknowledge_below(session, 100_000, Stamp(1));
        assert!(table.bytes() < full / 100, "{} of {full} bytes", table.bytes());
        table.close(session);
        assert_eq!(table.bytes(), 0);
    }
}
