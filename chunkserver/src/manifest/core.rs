//! Writing the manifest: edits in, writes and flushes out, one at a time.
//!
//! A pure core. The shell performs each request and reports it; the next one comes with that
//! report. An edit is in force when it is durable, and not before: [`ManifestCore::state`] shows
//! what is in force.
//!
//! A change of the file has three steps, each durable before the next: the other file becomes all
//! zeros, the snapshot goes into it, the file in use so far is emptied. No edit is taken between:
//! so while the other file is not empty, both hold the same state.

use super::block::{RecordKind, RecordPlan, record_blocks};
use super::edit::ManifestEdit;
use super::recovery::{ManifestOptions, Recovered};
use super::state::{EditFault, ManifestState};
use crate::limits::MANIFEST_FILE_BYTES_MAX;
use spillway_runtime::Errno;

/// A file's length is a multiple of this, bytes.
const FILE_ALIGNMENT_BYTES: u64 = 4096;

/// What happened.
#[derive(Clone, Debug)]
pub enum ManifestInput {
    /// A change is wanted. Only while the core [is ready](ManifestCore::is_ready).
    Edit(ManifestEdit),
    /// The last request ended: done in full, or an error number.
    Ended(Result<(), Errno>),
}

/// What the shell has to do, or what has become of the edit. Files are numbered 0 and 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestEffect {
    /// Make the file this long and all zeros, durably. It may be any mixture of what it was and of
    /// zeros, of any length, if power fails meanwhile.
    Renew {
        /// Which file.
        file: usize,
        /// Its length, a multiple of 4,096.
        bytes: u64,
    },
    /// Write whole blocks. They need not be durable.
    Write {
        /// Which file.
        file: usize,
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Make everything that was written to the file durable.
    Flush {
        /// Which file.
        file: usize,
    },
    /// The edit is in force.
    Applied {
        /// Its number.
        sequence: u64,
    },
    /// The edit is not in force and leaves no trace. Another one may come.
    Refused(Refusal),
    /// A write or a flush failed. Whether the edit is in force shows when the manifest is read
    /// again; no other one is taken.
    Poisoned {
        /// Error number.
        errno: Errno,
    },
}

/// Why an edit was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A limit is in the way.
    #[error(transparent)]
    Limit(EditFault),
    /// The next file could not be prepared.
    #[error(
        "the next manifest file could not be prepared ({errno}): if the data disk is full, free \
         some of it; the edit may then be tried again"
    )]
    Space {
        /// Error number.
        errno: Errno,
    },
    /// An earlier write or flush failed.
    #[error(
        "an earlier write to the manifest failed, so what it holds is not known: check the data \
         disk, then start the node again, which reads it back"
    )]
    Poisoned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Ready,
    /// The other file becomes zeros.
    Preparing {
        bytes: u64,
    },
    /// The snapshot is being written, and takes this many bytes.
    SnapshotWriting {
        file_bytes: u64,
        record_bytes: u64,
    },
    SnapshotFlushing {
        file_bytes: u64,
        record_bytes: u64,
    },
    /// The other file is being emptied.
    Emptying,
    EditWriting,
    EditFlushing,
    Poisoned,
}

/// The edit on its way.
#[derive(Clone, Debug)]
struct Pending {
    edit: ManifestEdit,
    payload: Vec<u8>,
    checksum: u64,
    bytes: u64,
}

/// The writer.
#[derive(Clone, Debug)]
pub struct ManifestCore {
    options: ManifestOptions,
    state: ManifestState,
    sequence: u64,
    checksum: u64,
    /// The file in use.
    file: usize,
    generation: u64,
    generation_max: u64,
    end: u64,
    file_bytes: u64,
    /// Nothing can follow in the file in use.
    must_change: bool,
    other_is_blank: bool,
    stage: Stage,
    pending: Option<Pending>,
}

impl ManifestCore {
    /// A core that continues what was read.
    pub fn new(options: ManifestOptions, recovered: Recovered) -> ManifestCore {
        assert!(recovered.end <= recovered.file_bytes, "records lie in their file");
        assert!(recovered.generation <= recovered.generation_max, "the maximum of both files");
        assert_eq!(recovered.generation % 2, recovered.file as u64, "a generation has its file");
        ManifestCore {
            options,
            sequence: recovered.sequence,
            checksum: recovered.checksum,
            file: recovered.file,
            generation: recovered.generation,
            generation_max: recovered.generation_max,
            end: recovered.end,
            file_bytes: recovered.file_bytes,
            must_change: recovered.is_torn,
            other_is_blank: recovered.other_is_blank,
            state: recovered.state,
            stage: Stage::Ready,
            pending: None,
        }
    }

    /// The first file of a new manifest, to be written in full and flushed. The second is empty.
    pub fn format(options: &ManifestOptions) -> Vec<u8> {
        let state = ManifestState::default();
        let payload = state.snapshot().encode();
        let file_bytes = file_bytes_for(options, payload.len(), 0);
        let plan = RecordPlan {
            kind: RecordKind::Snapshot,
            payload: &payload,
            offset: 0,
            file_bytes,
            generation: 2,
            sequence: 0,
            previous: 0,
        };
        let (mut bytes, _) = plan.encode(options);
        bytes.resize(file_bytes as usize, 0);
        bytes
    }

    /// What is in force.
    pub fn state(&self) -> &ManifestState {
        &self.state
    }

    /// Number of the last edit in force.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// True while no edit is on its way.
    pub fn is_ready(&self) -> bool {
        self.pending.is_none()
    }

    /// Takes what happened, and appends what is to be done.
    ///
    /// # Panics
    /// On an edit that breaks a rule, an edit while another is on its way, and a report of what was
    /// not asked for: mistakes of the caller.
    pub fn step(&mut self, input: ManifestInput, effects: &mut Vec<ManifestEffect>) {
        match input {
            ManifestInput::Edit(edit) => self.begin(edit, effects),
            ManifestInput::Ended(result) => self.ended(result, effects),
        }
    }

    fn begin(&mut self, edit: ManifestEdit, effects: &mut Vec<ManifestEffect>) {
        assert!(self.pending.is_none(), "one edit after the other");
        if self.stage == Stage::Poisoned {
            effects.push(ManifestEffect::Refused(Refusal::Poisoned));
            return;
        }
        match self.state.check(&edit) {
            Ok(()) => {}
            Err(fault) if fault.is_limit() => {
                effects.push(ManifestEffect::Refused(Refusal::Limit(fault)));
                return;
            }
            Err(fault) => panic!("an edit of the manifest that breaks a rule: {fault}"),
        }
        let payload = edit.encode();
        let blocks = record_blocks(payload.len(), self.options.block_bytes());
        let bytes = (blocks * self.options.block_bytes()) as u64;
        self.pending = Some(Pending { edit, payload, checksum: 0, bytes });
        effects.push(self.next());
    }

    /// What has to be done first for the edit that is on its way.
    fn next(&mut self) -> ManifestEffect {
        let pending = self.pending.as_mut().expect("an edit is on its way");
        let other = 1 - self.file;
        if self.must_change || self.end + pending.bytes > self.file_bytes {
            let snapshot_bytes = self.state.snapshot_bytes();
            let bytes = file_bytes_for(&self.options, snapshot_bytes, pending.bytes);
            assert!(bytes <= MANIFEST_FILE_BYTES_MAX, "limits of state and file fit each other");
            self.stage = Stage::Preparing { bytes };
            return ManifestEffect::Renew { file: other, bytes };
        }
        if !self.other_is_blank {
            self.stage = Stage::Emptying;
            return ManifestEffect::Renew { file: other, bytes: 0 };
        }
        let plan = RecordPlan {
            kind: RecordKind::Edit,
            payload: &pending.payload,
            offset: self.end,
            file_bytes: self.file_bytes,
            generation: self.generation,
            sequence: self.sequence + 1,
            previous: self.checksum,
        };
        let (bytes, checksum) = plan.encode(&self.options);
        pending.checksum = checksum;
        self.stage = Stage::EditWriting;
        ManifestEffect::Write { file: self.file, offset: self.end, bytes }
    }

    fn snapshot(&mut self, file_bytes: u64) -> ManifestEffect {
        // Above everything that was seen, and of the other file's parity.
        let step = if self.generation_max % 2 == self.generation % 2 { 1 } else { 2 };
        self.generation_max += step;
        let payload = self.state.snapshot().encode();
        let plan = RecordPlan {
            kind: RecordKind::Snapshot,
            payload: &payload,
            offset: 0,
            file_bytes,
            generation: self.generation_max,
            sequence: self.sequence,
            previous: self.checksum,
        };
        let (bytes, _) = plan.encode(&self.options);
        let record_bytes = bytes.len() as u64;
        self.stage = Stage::SnapshotWriting { file_bytes, record_bytes };
        ManifestEffect::Write { file: 1 - self.file, offset: 0, bytes }
    }

    fn ended(&mut self, result: Result<(), Errno>, effects: &mut Vec<ManifestEffect>) {
        assert!(self.pending.is_some(), "nothing was asked for");
        let renewed = matches!(self.stage, Stage::Preparing { .. } | Stage::Emptying);
        match result {
            Err(errno) if renewed => {
                // The file in use is as it was; what the other one is now, nobody knows.
                self.other_is_blank = false;
                (self.stage, self.pending) = (Stage::Ready, None);
                effects.push(ManifestEffect::Refused(Refusal::Space { errno }));
            }
            Err(errno) => {
                (self.stage, self.pending) = (Stage::Poisoned, None);
                effects.push(ManifestEffect::Poisoned { errno });
            }
            Ok(()) => effects.push(self.advance()),
        }
    }

    fn advance(&mut self) -> ManifestEffect {
        let (file, other) = (self.file, 1 - self.file);
        match self.stage {
            Stage::Preparing { bytes } => {
                self.other_is_blank = true;
                self.snapshot(bytes)
            }
            Stage::SnapshotWriting { file_bytes, record_bytes } => {
                self.stage = Stage::SnapshotFlushing { file_bytes, record_bytes };
                self.other_is_blank = false;
                ManifestEffect::Flush { file: other }
            }
            Stage::SnapshotFlushing { file_bytes, record_bytes } => {
                (self.file, self.generation) = (other, self.generation_max);
                (self.end, self.file_bytes) = (record_bytes, file_bytes);
                (self.must_change, self.other_is_blank) = (false, false);
                assert_eq!(self.generation % 2, self.file as u64, "a generation has its file");
                self.next()
            }
            Stage::Emptying => {
                self.other_is_blank = true;
                self.next()
            }
            Stage::EditWriting => {
                self.stage = Stage::EditFlushing;
                ManifestEffect::Flush { file }
            }
            Stage::EditFlushing => {
                let pending = self.pending.take().expect("an edit is on its way");
                self.state.apply(&pending.edit);
                self.sequence += 1;
                (self.checksum, self.stage) = (pending.checksum, Stage::Ready);
                self.end += pending.bytes;
                ManifestEffect::Applied { sequence: self.sequence }
            }
            Stage::Ready | Stage::Poisoned => panic!("nothing was asked for"),
        }
    }
}

/// Length of a file that begins with a snapshot of this length: as much again for edits, so that
/// snapshots take at most half of what is written.
fn file_bytes_for(options: &ManifestOptions, snapshot_bytes: usize, edit_bytes: u64) -> u64 {
    let block_bytes = options.block_bytes();
    let snapshot_bytes = (record_blocks(snapshot_bytes, block_bytes) * block_bytes) as u64;
    let edits_bytes = snapshot_bytes.max(edit_bytes).max(options.edits_bytes_min);
    (snapshot_bytes + edits_bytes).next_multiple_of(FILE_ALIGNMENT_BYTES)
}
