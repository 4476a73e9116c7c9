//! Files that bypass the page cache: log segments, tablets, runs.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Errno, RuntimeError};
use crate::file;

/// Offsets and lengths of direct I/O are multiples of this at least; a device may ask for more.
pub const DIRECT_BLOCK_BYTES: u64 = 512;

/// How a [`DirectFile`] is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectMode {
    /// An existing file, to be read.
    Read,
    /// An existing file, to be read and written.
    ReadWrite,
    /// A new file, to be read and written; it is an error if the name exists.
    Create,
}

/// A file opened with O_DIRECT. Holding one proves that the file system supports it.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    path: PathBuf,
}

impl DirectFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`RuntimeError::DirectUnsupported`] on a file system without O_DIRECT; else as the file
    /// system fails.
    pub fn open(path: &Path, mode: DirectMode) -> Result<DirectFile, RuntimeError> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC);
        match mode {
            DirectMode::Read => {}
            DirectMode::ReadWrite => {
                options.write(true);
            }
            DirectMode::Create => {
                options.write(true).create_new(true);
            }
        }
        let opened = options.open(path);
        let file = opened.map_err(|error| RuntimeError::direct_open(path, Errno::of(&error)))?;
        Ok(DirectFile { file, path: path.to_owned() })
    }

    /// The descriptor, valid for as long as the file lives.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the file, unless somebody else has it locked; tells whether that was done.
    ///
    /// The lock belongs to the descriptor, and every request under way on it in any ring keeps it
    /// open. So it outlives a killed process until the last of its writes has been carried out:
    /// nobody who holds it need fear that one of them comes late and overwrites newer ones.
    ///
    /// # Errors
    /// Fails as the file system does.
    pub fn try_lock(&self) -> Result<bool, RuntimeError> {
        // SAFETY: the descriptor is open; flock touches no memory of ours.
        if unsafe { libc::flock(self.fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(true);
        }
        match Errno::last() {
            Errno(libc::EWOULDBLOCK) => Ok(false),
            errno => Err(RuntimeError::file("lock", &self.path, errno)),
        }
    }

    /// Its size now, in bytes.
    ///
    /// # Errors
    /// Fails as the file system does.
    pub fn bytes(&self) -> Result<u64, RuntimeError> {
        let facts = self.file.metadata().map_err(|error| self.explain("stat", &error))?;
        Ok(facts.len())
    }

    /// Reads at `offset` until `buffer` is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// Fails as the file system does.
    ///
    /// # Panics
    /// If the buffer, its length or the offset is not aligned.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, RuntimeError> {
        assert_aligned(buffer, offset);
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.explain("read", &error)),
            }
            if !(done as u64).is_multiple_of(DIRECT_BLOCK_BYTES) {
                // Only the end of the file breaks a block.
                break;
            }
        }
        Ok(done)
    }

    /// Writes all of `buffer` at `offset`. Durable only after [`DirectFile::sync_data`].
    ///
    /// # Errors
    /// Fails as the file system does.
    ///
    /// # Panics
    /// If the buffer, its length or the offset is not aligned.
    pub fn write_at(&self, buffer: &[u8], offset: u64) -> Result<(), RuntimeError> {
        assert_aligned(buffer, offset);
        match self.file.write_all_at(buffer, offset) {
            Ok(()) => Ok(()),
            Err(error) => match Errno::of(&error) {
                Errno(libc::ENOSPC | libc::EDQUOT) => {
                    Err(file::disk_full(&self.path, buffer.len() as u64))
                }
                errno => {
                    let bytes = buffer.len() as u64;
                    Err(RuntimeError::direct_write(&self.path, errno, offset, bytes))
                }
            },
        }
    }

    /// Makes the data of the file durable, and what is needed to find it.
    ///
    /// # Errors
    /// Fails as the file system does. The content is unknown then: read it again.
    pub fn sync_data(&self) -> Result<(), RuntimeError> {
        self.file.sync_data().map_err(|error| self.explain("fdatasync", &error))
    }

    /// Sets the size: zeros are added, or the end is cut off.
    ///
    /// # Errors
    /// Fails as the file system does.
    pub fn resize(&self, bytes: u64) -> Result<(), RuntimeError> {
        self.file.set_len(bytes).map_err(|error| self.explain("truncate", &error))
    }

    /// Reserves space for the first `bytes` and makes the file at least that long.
    ///
    /// # Errors
    /// [`RuntimeError::DiskFull`] if there is none; else as the file system fails.
    pub fn allocate(&self, bytes: u64) -> Result<(), RuntimeError> {
        // Asked first, because a file system may take all that is free before it refuses, and
        // until that is given back nobody else can write.
        let facts = self.file.metadata().map_err(|error| self.explain("stat", &error))?;
        let missing = bytes.saturating_sub(facts.blocks() * 512);
        if missing > file::free_bytes(&self.path)? {
            return Err(file::disk_full(&self.path, missing));
        }
        let length = libc::off_t::try_from(bytes).expect("a file size fits 63 bits");
        loop {
            // SAFETY: the descriptor is open; the call touches no memory of ours.
            if unsafe { libc::fallocate(self.fd(), 0, 0, length) } == 0 {
                return Ok(());
            }
            return match Errno::last() {
                Errno(libc::EINTR) => continue,
                Errno(libc::ENOSPC | libc::EDQUOT) => Err(file::disk_full(&self.path, bytes)),
                // A file system without preallocation: the writes themselves allocate.
                Errno(libc::EOPNOTSUPP) => self.resize(bytes),
                errno => Err(RuntimeError::file("fallocate", &self.path, errno)),
            };
        }
    }

    fn explain(&self, operation: &'static str, error: &std::io::Error) -> RuntimeError {
        RuntimeError::file(operation, &self.path, Errno::of(error))
    }
}

fn assert_aligned(buffer: &[u8], offset: u64) {
    assert!(
        (buffer.as_ptr() as u64).is_multiple_of(DIRECT_BLOCK_BYTES),
        "the buffer is not aligned for direct I/O"
    );
    assert!(
        (buffer.len() as u64).is_multiple_of(DIRECT_BLOCK_BYTES)
            && offset.is_multiple_of(DIRECT_BLOCK_BYTES),
        "{} bytes at {offset} are not whole blocks",
        buffer.len()
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::AlignedBuffer;

    #[test]
    fn reads_back_what_was_written() {
        let root = tempfile::tempdir_in(".").expect("temp dir");
        let path = root.path().join("direct");
        let file = DirectFile::open(&path, DirectMode::Create).expect("create");
        let mut buffer = AlignedBuffer::new(8192);
        buffer.fill(3);
        file.write_at(&buffer, 4096).expect("write");
        file.sync_data().expect("sync");
        assert_eq!(file.bytes().expect("stat"), 12_288);
        buffer.fill(0);
        let file = DirectFile::open(&path, DirectMode::Read).expect("open");
        assert_eq!(file.read_at(&mut buffer, 8192).expect("read"), 4096);
        assert_eq!((buffer[0], buffer[4095], buffer[4096]), (3, 3, 0));
    }

    #[test]
    fn a_lock_lasts_as_long_as_a_request_is_under_way() {
        use io_uring::{IoUring, opcode, types};
        let root = tempfile::tempdir_in(".").expect("temp dir");
        let path = root.path().join("direct");
        let first = DirectFile::open(&path, DirectMode::Create).expect("create");
        assert!(first.try_lock().expect("flock"));
        let second = DirectFile::open(&path, DirectMode::ReadWrite).expect("open");
        assert!(!second.try_lock().expect("flock"), "somebody has it");
        // A request on a registered file that goes on until somebody writes into the pipe.
        let mut pipe = [0; 2];
        // SAFETY: the array has room for two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        let mut ring = IoUring::new(4).expect("a ring");
        ring.submitter().register_files(&[first.fd(), pipe[0]]).expect("registered");
        let mut byte = [0u8; 1];
        let wait = opcode::Read::new(types::Fixed(1), byte.as_mut_ptr(), 1).build();
        // SAFETY: the byte outlives the completion, which is waited for below.
        unsafe { ring.submission().push(&wait) }.expect("room");
        ring.submit().expect("submitted");
        drop(first);
        assert!(!second.try_lock().expect("flock"), "the ring still has it");
        // SAFETY: the byte is there, and the descriptor open.
        assert_eq!(unsafe { libc::write(pipe[1], [1u8].as_ptr().cast(), 1) }, 1);
        ring.submit_and_wait(1).expect("completed");
        ring.submitter().unregister_files().expect("let go");
        drop(ring);
        // The kernel takes a ring apart a moment later.
        let freed = (0..5_000).any(|_| {
            crate::thread::sleep(std::time::Duration::from_millis(1));
            second.try_lock().expect("flock")
        });
        assert!(freed, "nobody has it any more");
        for end in pipe {
            // SAFETY: it is open and used nowhere else.
            assert_eq!(unsafe { libc::close(end) }, 0);
        }
    }

    #[test]
    fn end_inside_a_block_is_a_short_read() {
        let root = tempfile::tempdir_in(".").expect("temp dir");
        let path = root.path().join("direct");
        file::write_atomic(&path, &[5; 1000]).expect("write");
        let file = DirectFile::open(&path, DirectMode::Read).expect("open");
        let mut buffer = AlignedBuffer::new(4096);
        assert_eq!(file.read_at(&mut buffer, 0).expect("read"), 1000);
    }

    #[test]
    fn create_does_not_overwrite() {
        let root = tempfile::tempdir_in(".").expect("temp dir");
        let path = root.path().join("direct");
        DirectFile::open(&path, DirectMode::Create).expect("create");
        let error = DirectFile::open(&path, DirectMode::Create).expect_err("exists");
        assert!(error.to_string().contains("File exists"), "{error}");
    }

    #[test]
    fn file_system_without_direct_is_named() {
        // procfs refuses O_DIRECT on every kernel.
        let path = Path::new("/proc/self/status");
        let error = DirectFile::open(path, DirectMode::Read).expect_err("procfs");
        assert_eq!(error, RuntimeError::DirectUnsupported { path: path.to_owned() });
    }

    #[test]
    fn impossible_allocation_is_disk_full() {
        let root = tempfile::tempdir_in(".").expect("temp dir");
        let path = root.path().join("direct");
        let file = DirectFile::open(&path, DirectMode::Create).expect("create");
        let error = file.allocate(1 << 60).expect_err("an exbibyte");
        assert!(
            matches!(error, RuntimeError::DiskFull { bytes_needed, .. } if bytes_needed == 1 << 60),
            "{error}"
        );
        assert_eq!(file.bytes().expect("stat"), 0);
    }
}
