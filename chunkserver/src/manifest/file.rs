//! The manifest on the data disk. These calls wait for the disk: they are for background cores and
//! for the start, not for shards.

use super::core::{ManifestCore, ManifestEffect, ManifestInput, Refusal};
use super::edit::ManifestEdit;
use super::recovery::{ManifestDamaged, ManifestOptions, recover};
use super::state::ManifestState;
use crate::file::ENOSPC;
use crate::limits::MANIFEST_FILE_BYTES_MAX;
use spillway_runtime::buffer::{AlignedBuffer, BUFFER_ALIGNMENT};
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::{Errno, RuntimeError, file};
use std::path::{Path, PathBuf};

/// Bytes of one read or write.
const PIECE_BYTES: usize = 1 << 20;
/// Input/output error.
const EIO: Errno = Errno(5);

/// Why a manifest could not be opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The file system failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// What was read is not whole.
    #[error(transparent)]
    Damaged(#[from] ManifestDamaged),
}

/// Why an edit is not in force.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It was refused and leaves no trace.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk failed. With `is_poisoned` nobody knows whether the edit is in force, and no other
    /// one is taken.
    #[error("changing the manifest: {error}")]
    Runtime {
        /// How it failed.
        error: RuntimeError,
        /// The manifest takes no more edits.
        is_poisoned: bool,
    },
}

/// The manifest of this node, open for edits. Nobody else has it open.
#[derive(Debug)]
pub struct ManifestFiles {
    core: ManifestCore,
    files: [DirectFile; 2],
}

/// The two files in a directory.
pub fn paths(directory: &Path) -> [PathBuf; 2] {
    ["manifest-0", "manifest-1"].map(|name| directory.join(name))
}

/// Creates an empty manifest.
///
/// # Errors
/// As the file system fails; also if there is one.
pub fn format(directory: &Path, options: &ManifestOptions) -> Result<(), RuntimeError> {
    let [first, second] = paths(directory);
    let bytes = ManifestCore::format(options);
    let other = DirectFile::open(&second, DirectMode::Create)?;
    other.sync_data()?;
    let target = DirectFile::open(&first, DirectMode::Create)?;
    target.allocate(bytes.len() as u64)?;
    write(&target, 0, &bytes)?;
    target.sync_data()?;
    file::sync_dir(directory)
}

impl ManifestFiles {
    /// Locks both files, makes durable what is in them, and reads them.
    ///
    /// # Errors
    /// As the file system fails; [`RuntimeError::DirectoryLocked`] if another process has it open;
    /// and [`ManifestDamaged`].
    pub fn open(directory: &Path, options: &ManifestOptions) -> Result<ManifestFiles, OpenError> {
        let [first, second] = paths(directory);
        let files = [
            DirectFile::open(&first, DirectMode::ReadWrite)?,
            DirectFile::open(&second, DirectMode::ReadWrite)?,
        ];
        for target in &files {
            if !target.try_lock()? {
                return Err(RuntimeError::DirectoryLocked { path: directory.to_owned() }.into());
            }
            // What a killed process wrote and did not flush would be believed now, and might be
            // gone after the next loss of power.
            target.sync_data()?;
        }
        let bytes = [read(&files[0])?, read(&files[1])?];
        let recovered = recover(options, [&bytes[0], &bytes[1]])?;
        Ok(ManifestFiles { core: ManifestCore::new(*options, recovered), files })
    }

    /// What is in force.
    pub fn state(&self) -> &ManifestState {
        self.core.state()
    }

    /// Number of the last edit in force.
    pub fn sequence(&self) -> u64 {
        self.core.sequence()
    }

    /// Changes the manifest; returns the edit's number once it is in force.
    ///
    /// # Errors
    /// When it is not in force, or nobody knows.
    ///
    /// # Panics
    /// If the edit breaks a rule: [`ManifestState::check`] tells.
    pub fn apply(&mut self, edit: ManifestEdit) -> Result<u64, EditError> {
        let (mut input, mut effects) = (ManifestInput::Edit(edit), Vec::new());
        let mut failed = None;
        loop {
            self.core.step(input, &mut effects);
            let effect = effects.pop().expect("every step asks for something or ends the edit");
            assert!(effects.is_empty(), "one request at a time");
            let result = match effect {
                ManifestEffect::Applied { sequence } => return Ok(sequence),
                ManifestEffect::Refused(refusal) => {
                    return Err(failed.map_or(EditError::Refused(refusal), |error| {
                        EditError::Runtime { error, is_poisoned: false }
                    }));
                }
                ManifestEffect::Poisoned { .. } => {
                    let error = failed.expect("what failed was kept");
                    return Err(EditError::Runtime { error, is_poisoned: true });
                }
                ManifestEffect::Renew { file, bytes } => renew(&self.files[file], bytes),
                ManifestEffect::Write { file, offset, bytes } => {
                    write(&self.files[file], offset, &bytes)
                }
                ManifestEffect::Flush { file } => self.files[file].sync_data(),
            };
            input = ManifestInput::Ended(result.map_err(|error| {
                let errno = errno_of(&error);
                failed = Some(error);
                errno
            }));
        }
    }
}

fn errno_of(error: &RuntimeError) -> Errno {
    match error {
        RuntimeError::File { errno, .. } => *errno,
        RuntimeError::DiskFull { .. } => ENOSPC,
        _ => EIO,
    }
}

fn renew(target: &DirectFile, bytes: u64) -> Result<(), RuntimeError> {
    // Emptied durably first: else the old content might come back with the new length.
    target.resize(0)?;
    target.sync_data()?;
    if bytes > 0 {
        target.allocate(bytes)?;
        target.sync_data()?;
    }
    Ok(())
}

fn write(target: &DirectFile, offset: u64, bytes: &[u8]) -> Result<(), RuntimeError> {
    let mut buffer = AlignedBuffer::new(bytes.len().min(PIECE_BYTES));
    for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
        buffer[..piece.len()].copy_from_slice(piece);
        target.write_at(&buffer[..piece.len()], offset + (number * PIECE_BYTES) as u64)?;
    }
    Ok(())
}

fn read(target: &DirectFile) -> Result<Vec<u8>, RuntimeError> {
    // A file beyond the limit is read up to behind it, and refused for its length.
    let total = target.bytes()?.min(MANIFEST_FILE_BYTES_MAX + 1) as usize;
    let mut bytes = Vec::with_capacity(total);
    let mut buffer = AlignedBuffer::new(PIECE_BYTES);
    while bytes.len() < total {
        let wanted = (total - bytes.len()).next_multiple_of(BUFFER_ALIGNMENT).min(PIECE_BYTES);
        let got = target.read_at(&mut buffer[..wanted], bytes.len() as u64)?;
        if got == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..got.min(total - bytes.len())]);
    }
    Ok(bytes)
}

const _: () = assert!(PIECE_BYTES.is_multiple_of(BUFFER_ALIGNMENT));
