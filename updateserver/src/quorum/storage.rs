//! The log as the state machine reads it: identities from the index, bodies from the cache.

use std::cell::RefCell;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use spillway_net::ids::Lsn;

use super::cache::{CachedEntry, EntryCache};
use super::catch_up::ReadBack;
use super::convert::entry_type;
use crate::log::EntryIndex;

/// A read that the state machine asked for and did not get.
#[derive(Debug)]
pub struct EntryWanted {
    /// Index of the entry.
    pub lsn: Lsn,
    /// Goes back to the state machine when the entry is there.
    pub context: GetEntriesContext,
}

/// The log behind the state machine. It hands out what is in memory; what is not is noted in
/// `wanted`, to be read from the disk by the driver.
#[derive(Debug)]
pub struct RaftStore {
    /// Identity and place of every entry from the floor on.
    pub index: EntryIndex,
    /// Bodies of the newest.
    pub cache: EntryCache,
    /// Bodies that were read back from the disk for peers that lag.
    pub read_back: ReadBack,
    wanted: RefCell<Vec<EntryWanted>>,
    state: RaftState,
}

impl RaftStore {
    /// A store that starts with this log and state.
    pub fn new(
        index: EntryIndex,
        cache: EntryCache,
        hard_state: HardState,
        conf_state: ConfState,
    ) -> Self {
        assert_eq!(cache.next().0, index.last().0 + 1, "the cache ends where the log ends");
        assert!(hard_state.commit <= index.last().0, "what is committed is in the log");
        assert!(hard_state.commit >= index.base().lsn.0, "the floor is committed");
        let state = RaftState::new(hard_state, conf_state);
        let read_back = ReadBack::default();
        Self { index, cache, read_back, wanted: RefCell::default(), state }
    }

    /// Adds an entry; it supersedes those with its index and above.
    pub fn append(&mut self, lsn: Lsn, meta: crate::log::EntryMeta, entry: CachedEntry) {
        assert_eq!(meta.term, entry.term, "meta and body are of one entry");
        assert!(lsn > self.index.base().lsn, "the floor is never superseded");
        if lsn <= self.index.last() {
            let kept = Lsn(lsn.0 - 1);
            self.index.truncate_after(kept);
            self.cache.truncate_after(kept);
            self.read_back.truncate_after(kept);
        }
        self.index.push(lsn, meta);
        self.cache.push(lsn, entry);
    }

    /// The body of an entry, from the cache or as it was read back.
    pub fn body(&self, lsn: Lsn) -> Option<&CachedEntry> {
        self.cache.get(lsn).or_else(|| self.read_back.get(lsn))
    }

    /// Takes the reads that were asked for since.
    pub fn wanted_take(&mut self) -> Option<EntryWanted> {
        self.wanted.get_mut().pop()
    }

    fn entry(&self, lsn: Lsn) -> Entry {
        let meta = self.index.get(lsn).expect("the range was checked");
        let mut entry = Entry::default();
        entry.set_entry_type(entry_type(meta.kind));
        entry.term = meta.term.0;
        entry.index = lsn.0;
        if let Some(cached) = self.body(lsn) {
            assert_eq!(cached.term, meta.term, "index and bodies agree");
            entry.data = cached.data.clone();
        }
        entry
    }
}

impl Storage for RaftStore {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(self.state.clone())
    }

    /// For peers: at least one entry with its body, or a note that it is wanted. For the state
    /// machine's own questions, which are only about kinds, entries without a body will do.
    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.index.base().lsn.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(low <= high && high <= self.index.last().0 + 1, "entries {low}..{high} of the log");
        let for_peer = context.can_async();
        if for_peer && low < high && self.body(Lsn(low)).is_none() {
            self.wanted.borrow_mut().push(EntryWanted { lsn: Lsn(low), context });
            return Err(Error::Store(StorageError::LogTemporarilyUnavailable));
        }
        let size_max = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let mut entries = Vec::new();
        for lsn in low..high {
            let entry = self.entry(Lsn(lsn));
            size += entry.data.len() as u64;
            let missing = for_peer && entry.data.is_empty();
            if lsn > low && (size > size_max || missing) {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        match self.index.identity(Lsn(index)) {
            Some(identity) => Ok(identity.term.0),
            None if index < self.index.base().lsn.0 => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.index.first().0)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.index.last().0)
    }

    /// A peer behind the floor of every log must be filled by other means.
    fn snapshot(&self, _request_index: u64, _to: u64) -> Result<Snapshot> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
