//! Files written out in full before use, so that a later write neither allocates nor meets a full
//! disk.

use std::path::Path;

use crate::buffer::{BufferIndex, BufferPool};
use crate::direct::{DirectFile, DirectMode};
use crate::disk::{DiskCompletion, DiskRing, DiskRingOptions, Durability, FileSlot, WriteRequest};
use crate::error::{Errno, RuntimeError};
use crate::file;

const PIECE_BYTES: u32 = 1024 * 1024;
/// Pieces in flight. All read the same buffer of zeros.
const PIECES_MAX: u32 = 8;

/// Creates `path` with `bytes` zeros that are really written and durable, telling `progress` the
/// bytes done so far. The name must not exist.
///
/// # Errors
/// [`RuntimeError::DiskFull`] if there is no room; else as the file system fails. The partial file
/// is removed.
///
/// # Panics
/// If `bytes` is zero or not a multiple of 4,096.
pub fn prewrite(
    path: &Path,
    bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), RuntimeError> {
    assert!(bytes > 0 && bytes.is_multiple_of(4096), "{bytes} bytes are not whole blocks");
    let target = DirectFile::open(path, DirectMode::Create)?;
    let written = target
        .allocate(bytes)
        .and_then(|()| write_zeros(&target, bytes, progress))
        .and_then(|()| target.sync_data())
        .and_then(|()| file::sync_dir(file::parent_of(path)));
    if let Err(cause) = written {
        // The first error is the one to report.
        drop(file::remove_file(path));
        return Err(cause);
    }
    Ok(())
}

fn write_zeros(
    target: &DirectFile,
    bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), RuntimeError> {
    let name = "prewrite".to_owned();
    let options = DiskRingOptions { entries: PIECES_MAX, files_max: 1, name };
    let mut ring = DiskRing::new(options)?;
    ring.attach_buffers(BufferPool::new(1, PIECE_BYTES as usize)?);
    let slot = ring.register_file(target)?;
    let mut ended = Vec::with_capacity(PIECES_MAX as usize);
    let (mut begun, mut done) = (0, 0);
    while done < bytes {
        while begun < bytes && ring.room() > 0 {
            let piece = u64::from(PIECE_BYTES).min(bytes - begun);
            ring.write(piece_request(slot, begun, piece as u32));
            begun += piece;
        }
        ring.submit_and_wait(1)?;
        ring.reap(&mut ended);
        for DiskCompletion { token: _, result } in ended.drain(..) {
            match result {
                Ok(moved) => done += u64::from(moved),
                Err(Errno(libc::ENOSPC | libc::EDQUOT)) => {
                    return Err(file::disk_full(target.path(), bytes - done));
                }
                Err(errno) => return Err(RuntimeError::file("write", target.path(), errno)),
            }
        }
        progress(done);
    }
    Ok(())
}

fn piece_request(file: FileSlot, offset: u64, bytes: u32) -> WriteRequest {
    WriteRequest {
        file,
        file_offset: offset,
        buffer: BufferIndex(0),
        buffer_offset: 0,
        bytes,
        durability: Durability::None,
        token: offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_full_of_written_zeros() {
        let root = tempfile::tempdir_in(".").expect("temp dir");
        let path = root.path().join("segment");
        let bytes = 5 * 1024 * 1024 + 4096;
        let mut seen = Vec::new();
        prewrite(&path, bytes, &mut |done| seen.push(done)).expect("prewrite");
        assert!(seen.is_sorted() && seen.last() == Some(&bytes));
        let content = file::read(&path).expect("read");
        assert_eq!(content.len() as u64, bytes);
        assert!(content.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn no_room_is_typed_and_leaves_nothing() {
        let root = tempfile::tempdir_in(".").expect("temp dir");
        let path = root.path().join("segment");
        let error = prewrite(&path, 1 << 60, &mut |_| {}).expect_err("an exbibyte");
        assert!(error.to_string().contains("1152921504606846976 bytes needed"), "{error}");
        assert!(!file::exists(&path));
    }

    #[test]
    fn existing_file_is_not_touched() {
        let root = tempfile::tempdir_in(".").expect("temp dir");
        let path = root.path().join("segment");
        file::write_atomic(&path, b"precious").expect("write");
        prewrite(&path, 4096, &mut |_| {}).expect_err("exists");
        assert_eq!(file::read(&path).expect("read"), b"precious");
    }
}
