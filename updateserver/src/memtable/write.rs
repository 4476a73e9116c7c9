//! Writing versions: one per row and fragment, pushed in front of the older ones.

use super::arena::{Arena, SizeClass};
use super::row::RowRef;
use super::undo::{UndoEntry, UndoLog, free_version, version_ptr};
use super::version::{
    Stamp, VERSION_HEAD_BYTES, VersionHead, VersionKind, VersionRef, kind_patches, version_bytes,
};
use std::ptr::{self, NonNull};

/// A version to write.
#[derive(Clone, Copy, Debug)]
pub struct WriteVersion<'a> {
    /// The fragment that writes.
    pub stamp: Stamp,
    /// The record's number in its partition.
    pub number: u64,
    /// What the value is.
    pub kind: VersionKind,
    /// The newest fragment whose effects every reader sees, now and later: of the versions at or
    /// below it only the newest is ever read again.
    pub floor: Stamp,
    /// The value. Replaces the value of an earlier write of the same fragment: a patch that
    /// follows a write of its own fragment must be laid over it by the caller.
    pub value: &'a [u8],
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// The row had no version of this fragment.
    NewInFragment,
    /// The row's version of this fragment was overwritten or replaced.
    SameFragment,
}

/// A chain found longer than this is looked at again only after as many pushes as it had
/// versions: under an old snapshot a push still costs constant time on average.
const KEPT_MAX: usize = 8;
/// Most pushes between two looks at a chain.
const TRIM_INTERVAL_MAX: usize = 1 << 15;
/// Most versions that one push recycles. More stay behind the base, where nobody looks.
const TRIM_VERSIONS_MAX: usize = 64;

/// Writes a version of a row.
///
/// The stamp must not be below that of the row's newest version. Room must have been checked
/// before ([`Arena::has_room`] with `block_bytes_max(version_bytes(value.len()))`): a
/// transaction cannot stop half-way.
pub fn write(arena: &mut Arena, row: RowRef, write: WriteVersion<'_>, undo: &mut UndoLog) -> Wrote {
    let newest = row.newest();
    let final_already = write.stamp == Stamp::REPLAYED;
    assert!(write.stamp > write.floor || final_already, "an uncommitted stamp at the floor");
    match newest {
        Some(old) if old.stamp() == write.stamp => {
            overwrite(arena, row, old, write, undo);
            Wrote::SameFragment
        }
        _ => {
            let new = new_version(arena, &write, newest);
            row.set_newest(new.0.as_ptr());
            undo.push(UndoEntry::Pushed { row, version: new });
            if let Some(old) = newest {
                assert!(old.stamp() < write.stamp, "a stamp below the row's newest version");
                trim(arena, row, new, write.floor);
            }
            Wrote::NewInFragment
        }
    }
}

#[inline]
fn overwrite(
    arena: &mut Arena,
    row: RowRef,
    old: VersionRef,
    write: WriteVersion<'_>,
    undo: &mut UndoLog,
) {
    let before = kind_patches(old.kind(), old.patches());
    if write.value.len() <= old.capacity() && !spillway_runtime::fault_point!(VersionReplaced) {
        let after = match (write.kind, old.kind()) {
            (VersionKind::Patch, VersionKind::Patch) => before,
            (kind, _) => kind_patches(kind, patches_with(kind, old.next())),
        };
        undo.push_overwritten(old, before);
        // SAFETY: the value fits, it is the caller's memory and not the arena's, and nobody
        // else reads while the owner writes.
        unsafe { old.overwrite(write.number, after, write.value) };
        return;
    }
    let new = new_version(arena, &write, old.next());
    row.set_newest(new.0.as_ptr());
    undo.push_replaced(arena, row, old);
}

/// How many patches lie upon the base when a version of this kind comes upon `next`.
#[inline]
fn patches_with(kind: VersionKind, next: Option<VersionRef>) -> u8 {
    if kind != VersionKind::Patch {
        return 0;
    }
    next.map_or(0, |next| next.patches()) + 1
}

#[inline]
fn new_version(
    arena: &mut Arena,
    write: &WriteVersion<'_>,
    next: Option<VersionRef>,
) -> VersionRef {
    let class = SizeClass::of(version_bytes(write.value.len()));
    let block = arena.alloc(class).expect("room was checked before the transaction began");
    assert!(class.bytes() >= VERSION_HEAD_BYTES + write.value.len(), "a class holds its block");
    let head: NonNull<VersionHead> = block.cast();
    // SAFETY: a fresh block, 16-byte aligned, large enough for the head and the value.
    unsafe {
        head.write(VersionHead {
            next: version_ptr(next),
            stamp: write.stamp,
            number: write.number,
            value_bytes: write.value.len() as u32,
            pushes: next.map_or(0, |next| (*next.0.as_ptr()).pushes).saturating_add(1),
            class,
            kind_patches: kind_patches(write.kind, patches_with(write.kind, next)),
        });
        let value = head.add(1).cast::<u8>().as_ptr();
        ptr::copy_nonoverlapping(write.value.as_ptr(), value, write.value.len());
    }
    VersionRef(head)
}

/// Recycles what is older than the newest version at or below the floor and that version's base.
#[inline]
fn trim(arena: &mut Arena, row: RowRef, newest: VersionRef, floor: Stamp) {
    // SAFETY: the newest version is valid, and only the owner touches its counter.
    let pushes = usize::from(unsafe { (*newest.0.as_ptr()).pushes });
    if pushes < row.trim_interval() || spillway_runtime::fault_point!(VersionsKept) {
        return;
    }
    let mut kept = 1;
    let mut last = newest;
    while last.stamp() > floor || last.kind() == VersionKind::Patch {
        let Some(next) = last.next() else { break };
        last = next;
        kept += 1;
    }
    let mut rest = last.next();
    for _ in 0..TRIM_VERSIONS_MAX {
        let Some(version) = rest else { break };
        rest = version.next();
        // SAFETY: the chain is cut above it. Undo logs refer only to versions of fragments
        // that are not final, whose stamps are above the floor, and those were kept.
        unsafe { free_version(arena, version) };
    }
    // SAFETY: `last` is in the chain; the owner alone changes it, and nobody reads meanwhile.
    unsafe { (*last.0.as_ptr()).next = version_ptr(rest) };
    // SAFETY: as above.
    unsafe { (*newest.0.as_ptr()).pushes = 0 };
    let interval = if kept > KEPT_MAX { kept.min(TRIM_INTERVAL_MAX) } else { 1 };
    row.set_trim_interval(interval);
}

/// Recycles the versions of a row with stamps above the given one.
pub(super) fn drop_above(arena: &mut Arena, row: RowRef, stamp: Stamp) {
    while let Some(version) = row.newest().filter(|version| version.stamp() > stamp) {
        row.set_newest(version_ptr(version.next()));
        // SAFETY: the version has left the chain; the caller has no undo log open.
        unsafe { free_version(arena, version) };
    }
}
