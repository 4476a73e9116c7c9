//! Versions of a row: newest first, each in one block of the arena, value behind the header.

use super::arena::{BLOCK_BYTES_MAX, SizeClass};
use spillway_net::limits::ROW_BYTES_MAX;
use std::ptr::{self, NonNull};

/// The fragment that wrote a version: its id on a leader, its LSN on a follower. Along the
/// versions of one row stamps fall from the newest to the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

impl Stamp {
    /// From replay: visible to all.
    pub const REPLAYED: Stamp = Stamp(0);
}

/// What a version's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VersionKind {
    /// The whole row.
    Full = 0,
    /// Some columns, to be laid over the next older version or the baseline.
    Patch = 1,
    /// The row does not exist.
    Delete = 2,
}

/// 32 bytes before the value. `next` and the value change only on the owner's thread.
#[repr(C, align(16))]
pub(super) struct VersionHead {
    pub(super) next: *mut VersionHead,
    pub(super) stamp: Stamp,
    pub(super) number: u64,
    pub(super) value_bytes: u32,
    /// Pushes since the chain was last looked through for versions to recycle; saturates.
    pub(super) pushes: u16,
    pub(super) class: SizeClass,
    /// Kind in the low two bits, above them how many patches lie on the base; saturates.
    pub(super) kind_patches: u8,
}

pub(super) const VERSION_HEAD_BYTES: usize = size_of::<VersionHead>();
const _: () = assert!(VERSION_HEAD_BYTES == 32);
const PATCHES_MAX: u8 = 63;

pub(super) fn kind_patches(kind: VersionKind, patches: u8) -> u8 {
    kind as u8 | patches.min(PATCHES_MAX) << 2
}

/// Bytes of the block for a version with a value of this length.
pub const fn version_bytes(value_bytes: usize) -> usize {
    VERSION_HEAD_BYTES + value_bytes
}

const _: () = assert!(version_bytes(ROW_BYTES_MAX) <= BLOCK_BYTES_MAX);

/// A version in the memtable.
///
/// Valid until its row is written to or undone, and while the arena lives. The memtable has one
/// owner and recycles versions only in its writing methods, so whoever reads between two writes
/// reads what is there; nobody may keep a `VersionRef` across a write to its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRef(pub(super) NonNull<VersionHead>);

// SAFETY: see the type: the handle is used while nobody writes, by one thread or by several.
unsafe impl Send for VersionRef {}

impl VersionRef {
    pub(super) fn from_ptr(version: *mut VersionHead) -> Option<VersionRef> {
        NonNull::new(version).map(VersionRef)
    }

    #[inline]
    fn head(&self) -> &VersionHead {
        // SAFETY: a valid handle (see the type) points to an initialised head.
        unsafe { self.0.as_ref() }
    }

    /// What the value is.
    #[inline]
    pub fn kind(&self) -> VersionKind {
        match self.head().kind_patches & 3 {
            0 => VersionKind::Full,
            1 => VersionKind::Patch,
            2 => VersionKind::Delete,
            _ => unreachable!("a version kind that nobody writes"),
        }
    }

    /// How many patches in a row lie here upon a full image, a delete or the baseline (saturates
    /// at 63). Who writes folds them into a full image before this gets long: patches are
    /// recycled only when a newer version no longer needs them.
    #[inline]
    pub fn patches(&self) -> u8 {
        self.head().kind_patches >> 2
    }

    /// The fragment that wrote it.
    #[inline]
    pub fn stamp(&self) -> Stamp {
        self.head().stamp
    }

    /// The row version: the partition's running record number.
    #[inline]
    pub fn number(&self) -> u64 {
        self.head().number
    }

    /// The value's bytes.
    #[inline]
    pub fn value(&self) -> &[u8] {
        let bytes = self.head().value_bytes as usize;
        // SAFETY: a valid version has its value behind its head, in the same block.
        unsafe { std::slice::from_raw_parts(self.value_ptr(), bytes) }
    }

    /// The next older version.
    #[inline]
    pub fn next(&self) -> Option<VersionRef> {
        VersionRef::from_ptr(self.head().next)
    }

    #[inline]
    pub(super) fn value_ptr(&self) -> *mut u8 {
        // SAFETY: the value's bytes follow the head in the same block.
        unsafe { self.0.as_ptr().add(1).cast() }
    }

    /// Bytes that fit behind the head.
    #[inline]
    pub(super) fn capacity(&self) -> usize {
        self.head().class.bytes() - VERSION_HEAD_BYTES
    }

    /// Overwrites the value and what describes it.
    ///
    /// # Safety
    /// The handle is valid, `value` fits the capacity and lies outside of this version, and
    /// nobody else reads it now.
    #[inline]
    pub(super) unsafe fn overwrite(self, number: u64, kind_patches: u8, value: &[u8]) {
        assert!(value.len() <= self.capacity(), "a value larger than its block");
        // SAFETY: the caller's promise; the block has `capacity` bytes behind its head.
        unsafe {
            let head = self.0.as_ptr();
            (*head).number = number;
            (*head).kind_patches = kind_patches;
            (*head).value_bytes = value.len() as u32;
            ptr::copy_nonoverlapping(value.as_ptr(), self.value_ptr(), value.len());
        }
    }
}

/// A row's versions, newest first.
#[derive(Clone, Debug)]
pub struct Versions(pub(super) Option<VersionRef>);

impl Iterator for Versions {
    type Item = VersionRef;

    fn next(&mut self) -> Option<VersionRef> {
        let version = self.0?;
        self.0 = version.next();
        Some(version)
    }
}
