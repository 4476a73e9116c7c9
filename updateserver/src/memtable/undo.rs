//! What it takes to roll back the writes of transactions that are not final yet.

use super::arena::Arena;
use super::row::RowRef;
use super::slice::{SliceIndex, TableSlice};
use super::version::VersionRef;

/// A position in an undo log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UndoMark(usize);

#[derive(Debug)]
pub(super) enum UndoEntry {
    /// The row was created.
    Created { slice: SliceIndex, row: RowRef, hash: u64 },
    /// A version was pushed in front.
    Pushed { row: RowRef, version: VersionRef },
    /// The newest version was replaced by a larger one; the old one waits here.
    Replaced { row: RowRef, old: VersionRef },
    /// The newest version was overwritten; its value is in the log's bytes, from `offset` on.
    Overwritten { version: VersionRef, number: u64, kind_patches: u8, offset: usize },
}

/// The writes since the last commit, with what they replaced.
///
/// Several may be open at a time (a piece that voted keeps its own) as long as no row is in two
/// of them: locks see to that.
#[derive(Debug, Default)]
pub struct UndoLog {
    entries: Vec<UndoEntry>,
    bytes: Vec<u8>,
    replaced: usize,
    off: bool,
}

impl UndoLog {
    /// An empty log.
    pub fn new() -> UndoLog {
        UndoLog::default()
    }

    /// A log that keeps nothing, for writes that are final: replay and a follower's apply.
    pub fn off() -> UndoLog {
        let mut undo = UndoLog::default();
        undo.off = true;
        undo
    }

    /// Where the log stands: what is written from now on is undone by `rollback_to` this mark.
    #[must_use]
    pub fn mark(&self) -> UndoMark {
        UndoMark(self.entries.len())
    }

    /// Whether there is nothing to roll back.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[inline]
    pub(super) fn push(&mut self, entry: UndoEntry) {
        if !self.off {
            self.entries.push(entry);
        }
    }

    #[inline]
    pub(super) fn push_overwritten(&mut self, version: VersionRef, kind_patches: u8) {
        if self.off {
            return;
        }
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(version.value());
        let number = version.number();
        self.entries.push(UndoEntry::Overwritten { version, number, kind_patches, offset });
    }

    /// Keeps the version that another one replaced, or recycles it if this log keeps nothing.
    pub(super) fn push_replaced(&mut self, arena: &mut Arena, row: RowRef, old: VersionRef) {
        if self.off {
            // SAFETY: the version has left its chain, and no undo log refers to it.
            unsafe { free_version(arena, old) };
            return;
        }
        self.replaced += 1;
        self.entries.push(UndoEntry::Replaced { row, old });
    }

    /// Undoes all writes since the mark, newest first. For whoever reads, the memtable is then
    /// as it was, apart from versions that no reader could need any more. `slices[i]` must be
    /// the slice with index `i`.
    pub fn rollback_to(&mut self, mark: UndoMark, arena: &mut Arena, slices: &mut [TableSlice]) {
        assert!(!self.off, "a log that keeps nothing cannot roll back");
        assert!(mark.0 <= self.entries.len(), "a mark behind the end of the log");
        while self.entries.len() > mark.0 {
            let oldest_first = spillway_runtime::planted!(UndoOldestFirst);
            let last = if oldest_first { mark.0 } else { self.entries.len() - 1 };
            let entry = self.entries.remove(last);
            match entry {
                UndoEntry::Created { slice, row, hash } => {
                    slices[slice.0 as usize].remove_row(arena, row, hash);
                }
                UndoEntry::Pushed { row, version } => {
                    assert!(row.newest() == Some(version), "a row is in one undo log only");
                    row.set_newest(version_ptr(version.next()));
                    // SAFETY: the version has left its chain, and its entry has left the log.
                    unsafe { free_version(arena, version) };
                }
                UndoEntry::Replaced { row, old } => {
                    let version = row.newest().expect("a replacing version is still there");
                    assert!(version.stamp() == old.stamp(), "a row is in one undo log only");
                    row.set_newest(old.0.as_ptr());
                    self.replaced -= 1;
                    // SAFETY: as above.
                    unsafe { free_version(arena, version) };
                }
                UndoEntry::Overwritten { version, number, kind_patches, offset } => {
                    // SAFETY: the version held these bytes before, and is valid as long as its
                    // entry is in the log; nobody reads while the owner writes.
                    unsafe { version.overwrite(number, kind_patches, &self.bytes[offset..]) };
                    self.bytes.truncate(offset);
                }
            }
        }
    }

    /// Makes all writes final and recycles what they replaced.
    #[inline]
    pub fn commit(&mut self, arena: &mut Arena) {
        if self.replaced > 0 {
            for entry in &self.entries {
                if let UndoEntry::Replaced { old, .. } = entry {
                    // SAFETY: the version has left its chain, and its entry leaves the log.
                    unsafe { free_version(arena, *old) };
                }
            }
            self.replaced = 0;
        }
        self.entries.clear();
        self.bytes.clear();
    }
}

impl Drop for UndoLog {
    fn drop(&mut self) {
        // Dropping an open log would make its writes final and leak what they replaced. While a
        // panic unwinds in a test the message that matters is the first one.
        if !std::thread::panicking() {
            assert!(self.entries.is_empty(), "an undo log is committed or rolled back");
        }
    }
}

#[inline]
pub(super) fn version_ptr(version: Option<VersionRef>) -> *mut super::version::VersionHead {
    version.map_or(std::ptr::null_mut(), |version| version.0.as_ptr())
}

/// Recycles a version.
///
/// # Safety
/// The version came from this arena, is in no chain and in no undo log, and nobody reads it.
#[inline]
pub(super) unsafe fn free_version(arena: &mut Arena, version: VersionRef) {
    // SAFETY: the head is valid until the block is freed, which the caller allows.
    unsafe {
        let class = (*version.0.as_ptr()).class;
        arena.free(version.0.cast(), class);
    }
}
