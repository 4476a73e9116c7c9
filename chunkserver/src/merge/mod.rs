//! Reading through the layers: each key's newest entry, out of memtables, runs and tablets.
//!
//! Everything here is pure. A source that has to be read from a disk says which block it needs
//! ([`BlockNeed`]); whoever drives it reads that block in its own way - a shard through its data
//! ring, going on with other work meanwhile; a merge by waiting - and hands it back. So the same
//! code serves a shard, which never waits, a background core, and the simulator.
//!
//! | module | holds |
//! |---|---|
//! | [`source`] | what a layer is, over blocks ([`TabletSource`]) or memory ([`SortedSource`]) |
//! | [`iterator`] | [`MergeIterator`]: many sources, one order |
//! | [`point`] | [`PointRead`]: one key |
//! | [`tree`] | which source is next |
//! | [`unit`] | [`UnitMerge`]: old tablets and changes into new tablets |
//! | [`cut`] | where blocks and tablets end |
//!
//! # The order of sources
//!
//! Newest first. Of two sources that both hold a key, the earlier one hides the later one; that its
//! row version is the higher one is checked. Sources that share no key, like the runs of two
//! partitions of one freeze, stand in any order. A source yields one entry per key: a memtable's
//! yields the newest version that its snapshot sees.

pub mod cut;
pub mod iterator;
pub mod point;
pub mod source;
pub mod tree;
pub mod unit;

pub use iterator::{MergeError, MergeIterator, MergeStep};
pub use point::{PointRead, PointStep};
pub use source::{BlockNeed, KeyRange, SortedSource, Source, TabletOfView, TabletSource};
pub use unit::{
    MergeTarget, MergeUnit, PlanError, UnitMerge, UnitNeed, UnitOutcome, UnitStep, is_done, plan,
    unit_edit,
};
