//! The manifest: which files are in force on this node.
//!
//! [`ManifestState`] holds them, and [`ManifestEdit`] changes them: a set of additions, ends of
//! validity and removals that is in force as a whole or not at all. On disk it is two files used in
//! turn. The one in use begins with a snapshot of the state and goes on with edits; when it is full
//! the other one gets a new snapshot, and this one is emptied ([`block`] draws the bytes,
//! [`recovery`] reads them, [`core`] writes them). All of that is pure; [`file`](mod@file) is the
//! shell.
//!
//! # What holds after a loss of power
//!
//! An edit whose write was confirmed durable is in force. One whose write was cut short is dropped.
//! One that was written and not confirmed is one of the two. Anything else is damage, and damage
//! is never dropped in silence: [`ManifestDamaged`] says what was found.
//!
//! The two can be told apart because a file is all zeros before it is used, and never written twice
//! at one place: a block of the last record that is zero was not reached; a block that is neither
//! zero nor whole is damage. So a block must be what the disk writes as a whole or not at all. What
//! one node cannot see is a drive that confirms its last writes and then loses all of them.

pub mod block;
pub mod core;
pub mod edit;
pub mod entry;
pub mod file;
pub mod recovery;
pub mod state;

pub use core::{ManifestCore, ManifestEffect, ManifestInput, Refusal};
pub use edit::ManifestEdit;
pub use entry::{FileEntry, FileId, FileKind};
pub use recovery::{DamageReason, ManifestDamaged, ManifestOptions, Recovered, recover};
pub use state::{EditFault, ManifestState};
