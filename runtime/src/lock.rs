//! An advisory lock on a directory, so that two processes never open one node.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::error::{Errno, RuntimeError};

/// Holding one proves that no other holder of this lock, in any process, exists. The kernel
/// releases it when the value is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _directory: File,
}

impl DirectoryLock {
    /// Takes the lock without waiting.
    ///
    /// # Errors
    /// [`RuntimeError::DirectoryLocked`] if somebody holds it; else as the file system fails.
    #[expect(clippy::disallowed_methods, reason = "a directory, opened only to be locked")]
    pub fn acquire(path: &Path) -> Result<DirectoryLock, RuntimeError> {
        let opened = File::open(path);
        let directory =
            opened.map_err(|error| RuntimeError::file("open", path, Errno::of(&error)))?;
        // SAFETY: the descriptor is open; flock touches no memory of ours.
        if unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(DirectoryLock { _directory: directory });
        }
        match Errno::last() {
            Errno(libc::EWOULDBLOCK) => {
                Err(RuntimeError::DirectoryLocked { path: path.to_owned() })
            }
            errno => Err(RuntimeError::file("lock", path, errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_holder_is_refused_until_the_first_drops() {
        let root = tempfile::tempdir().expect("temp dir");
        let first = DirectoryLock::acquire(root.path()).expect("free");
        let error = DirectoryLock::acquire(root.path()).expect_err("held");
        assert!(error.to_string().contains("fuser -v"), "{error}");
        drop(first);
        DirectoryLock::acquire(root.path()).expect("free again");
    }
}
