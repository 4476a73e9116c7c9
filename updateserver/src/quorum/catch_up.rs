//! Entries that peers need and memory no longer holds: read back from the disk, a few at a time.

use std::collections::VecDeque;

use raft::GetEntriesContext;
use spillway_net::ids::{Lsn, NodeId};

use super::cache::CachedEntry;

/// Entries that were read back and are kept for a moment, to be sent.
pub const READ_BACK_ENTRIES_MAX: usize = 32;
/// Peers that may wait for one read.
const WAITERS_MAX: usize = 8;

/// Bodies that were read back from the disk, newest last.
#[derive(Debug, Default)]
pub struct ReadBack {
    entries: VecDeque<(Lsn, CachedEntry)>,
}

impl ReadBack {
    /// The entry with this index, if it was read back lately.
    pub fn get(&self, lsn: Lsn) -> Option<&CachedEntry> {
        self.entries.iter().find(|(at, _)| *at == lsn).map(|(_, entry)| entry)
    }

    /// Keeps an entry; the oldest gives way.
    pub fn insert(&mut self, lsn: Lsn, entry: CachedEntry) {
        assert!(lsn.0 > 0 && !entry.body.is_empty(), "an entry");
        self.entries.retain(|(at, _)| *at != lsn);
        if self.entries.len() == READ_BACK_ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back((lsn, entry));
        assert!(self.entries.len() <= READ_BACK_ENTRIES_MAX, "bounded");
    }

    /// Forgets the entries behind `lsn`.
    pub fn truncate_after(&mut self, lsn: Lsn) {
        self.entries.retain(|(at, _)| *at <= lsn);
    }
}

/// A read in flight.
#[derive(Debug)]
pub struct EntryRead {
    /// Index of the entry.
    pub lsn: Lsn,
    /// Shared checksum that it must have.
    pub checksum: u64,
    /// Questions of the state machine that wait for it.
    pub waiters: Vec<GetEntriesContext>,
    /// Nodes that repair their log with it.
    pub fetchers: Vec<NodeId>,
}

/// The reads in flight.
#[derive(Debug)]
pub struct CatchUp {
    reads: Vec<EntryRead>,
    reads_max: usize,
}

/// What becomes of a wish for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPlan {
    /// Read it now.
    Issue,
    /// It is on its way.
    Joined,
    /// Too much is on its way: it will be asked for again.
    Dropped,
}

impl CatchUp {
    /// At most this many reads in flight.
    pub fn new(reads_max: usize) -> Self {
        assert!(reads_max > 0 && reads_max <= READ_BACK_ENTRIES_MAX / 2, "reads in flight");
        Self { reads: Vec::new(), reads_max }
    }

    /// Reads in flight.
    pub fn in_flight(&self) -> usize {
        self.reads.len()
    }

    fn plan(&mut self, lsn: Lsn, checksum: u64) -> (ReadPlan, Option<&mut EntryRead>) {
        if let Some(at) = self.reads.iter().position(|read| read.lsn == lsn) {
            return (ReadPlan::Joined, self.reads.get_mut(at));
        }
        if self.reads.len() >= self.reads_max || spillway_runtime::fault_point!(ReadBackDropped) {
            return (ReadPlan::Dropped, None);
        }
        self.reads.push(EntryRead { lsn, checksum, waiters: Vec::new(), fetchers: Vec::new() });
        assert!(self.reads.len() <= self.reads_max, "bounded");
        (ReadPlan::Issue, self.reads.last_mut())
    }

    /// The state machine wants this entry for a peer.
    pub fn want(&mut self, lsn: Lsn, checksum: u64, context: GetEntriesContext) -> ReadPlan {
        assert!(context.can_async(), "only what can wait is read from the disk");
        let (plan, read) = self.plan(lsn, checksum);
        if let Some(read) = read.filter(|read| read.waiters.len() < WAITERS_MAX) {
            read.waiters.push(context);
        }
        plan
    }

    /// It will be wanted soon.
    pub fn want_soon(&mut self, lsn: Lsn, checksum: u64) -> ReadPlan {
        self.plan(lsn, checksum).0
    }

    /// A node that repairs its log wants this entry.
    pub fn want_fetch(&mut self, lsn: Lsn, checksum: u64, node: NodeId) -> ReadPlan {
        let (plan, read) = self.plan(lsn, checksum);
        if let Some(read) = read.filter(|read| !read.fetchers.contains(&node)) {
            read.fetchers.push(node);
        }
        plan
    }

    /// A read ended.
    ///
    /// # Panics
    /// When it was not in flight: a programming error of the shell.
    pub fn ended(&mut self, lsn: Lsn) -> EntryRead {
        let at = self.reads.iter().position(|read| read.lsn == lsn);
        self.reads.swap_remove(at.expect("a completion belongs to a read in flight"))
    }
}
