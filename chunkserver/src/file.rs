//! Tablets on the data disk: whole images written and any part read, past the page cache, through
//! an io_uring that only the data disk has.
//!
//! These calls wait for the disk. They are for background cores, which have nothing else to do
//! meanwhile; a shard drives its own ring with [`crate::reader::TabletMeta`] and waits for nothing.

use crate::error::ReadError;
use crate::limits::TABLET_ALIGNMENT_BYTES;
use crate::reader::TabletReader;
use crate::run::RunReader;
use crate::source::{ByteSink, ByteSource};
use spillway_runtime::buffer::{BufferIndex, BufferPool};
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::disk::{
    DiskCompletion, DiskRing, DiskRingOptions, Durability, FileSlot, ReadRequest, WriteRequest,
};
use spillway_runtime::{Errno, RuntimeError, file};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of one request: large enough for the disk's full bandwidth at a few in flight.
const PIECE_BYTES: u32 = 256 << 10;
/// No space left.
pub(crate) const ENOSPC: Errno = Errno(28);
/// No space left for this user.
const EDQUOT: Errno = Errno(122);
/// Requests in flight.
const PIECES_IN_FLIGHT: u16 = 4;

/// The data disk: its ring and its buffers. One file is open at a time.
pub struct DataDisk {
    ring: DiskRing,
    free: Vec<BufferIndex>,
    ended: Vec<DiskCompletion>,
}

impl DataDisk {
    /// Creates the ring. With it comes the warning to log if the buffers could not be locked.
    pub fn new() -> Result<(DataDisk, Option<String>), RuntimeError> {
        let name = "data".to_owned();
        let entries = u32::from(PIECES_IN_FLIGHT);
        let mut ring = DiskRing::new(DiskRingOptions { entries, files_max: 1, name })?;
        let pool = BufferPool::new(PIECES_IN_FLIGHT, PIECE_BYTES as usize)?;
        let warning = ring.register_buffers(pool)?;
        let free = (0..PIECES_IN_FLIGHT).map(BufferIndex).collect();
        Ok((DataDisk { ring, free, ended: Vec::new() }, warning))
    }

    /// Begins a file that appears under `path` once it is complete and durable, or never.
    pub fn create(&mut self, path: &Path) -> Result<TabletFileWriter<'_>, RuntimeError> {
        let temporary = temporary_of(path);
        if file::exists(&temporary) {
            // What an earlier attempt left behind when the process died.
            file::remove_file(&temporary)?;
        }
        let target = DirectFile::open(&temporary, DirectMode::Create)?;
        let slot = self.ring.register_file(&target)?;
        let (path, pending) = (path.to_owned(), None);
        Ok(TabletFileWriter { disk: self, target, slot, path, pending, begun: 0, is_whole: false })
    }

    /// Writes an image as one file.
    pub fn write(&mut self, path: &Path, image: &[u8]) -> Result<(), RuntimeError> {
        let mut writer = self.create(path)?;
        writer.append(image)?;
        writer.finish()
    }

    /// Opens the tablet under `path`, and checks all of it that stays in memory.
    pub fn open(
        &mut self,
        path: &Path,
    ) -> Result<TabletReader<TabletFile<'_>>, ReadError<RuntimeError>> {
        TabletReader::open(self.open_file(path).map_err(ReadError::Source)?)
    }

    /// Opens the run under `path`, and checks its directory.
    pub fn open_run(
        &mut self,
        path: &Path,
    ) -> Result<RunReader<TabletFile<'_>>, ReadError<RuntimeError>> {
        RunReader::open(self.open_file(path).map_err(ReadError::Source)?)
    }

    fn open_file(&mut self, path: &Path) -> Result<TabletFile<'_>, RuntimeError> {
        let target = DirectFile::open(path, DirectMode::Read)?;
        let bytes = target.bytes()?;
        // A length that no writer leaves: its end is no tablet's end, and an empty image says so.
        let whole = bytes.is_multiple_of(TABLET_ALIGNMENT_BYTES);
        let bytes_total = if whole { bytes } else { 0 };
        let slot = self.ring.register_file(&target)?;
        Ok(TabletFile { disk: self, slot, bytes_total, path: path.to_owned() })
    }

    /// Waits for at least one request and takes its buffer back. Says which, and how it ended.
    fn wait(&mut self, path: &Path, operation: &'static str) -> Result<(), RuntimeError> {
        assert!(self.ring.in_flight() > 0, "somebody waits for nothing");
        self.ring.submit_and_wait(1)?;
        self.ring.reap(&mut self.ended);
        let failed = self.ended.iter().find_map(|completion| completion.result.err());
        match failed {
            Some(errno) => Err(explain(operation, path, errno)),
            None => Ok(()),
        }
    }

    /// Waits for everything in flight: a file may be let go of only then.
    fn drain(&mut self) {
        while self.ring.in_flight() > 0 {
            self.ring.submit_and_wait(1).expect("waiting on a ring that works");
            self.ring.reap(&mut self.ended);
        }
        self.ended.clear();
        self.free = (0..PIECES_IN_FLIGHT).map(BufferIndex).collect();
    }

    fn let_go(&mut self, slot: FileSlot) {
        self.drain();
        self.ring.unregister_file(slot).expect("a registered file without requests can go");
    }
}

/// A full disk by its name: what waits for room has to tell it from a broken one.
fn explain(operation: &'static str, path: &Path, errno: Errno) -> RuntimeError {
    if [ENOSPC, EDQUOT].contains(&errno) {
        let directory = path.parent().unwrap_or(path);
        // An unreadable free space is reported as none: the write just failed for lack of it.
        let free = file::free_bytes(directory).unwrap_or(0);
        return RuntimeError::disk_full(path, u64::from(PIECE_BYTES), free);
    }
    RuntimeError::file(operation, path, errno)
}

fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().expect("a tablet's path names a file").to_owned();
    name.push(".part");
    path.with_file_name(name)
}

/// A file being written front to back, a few requests in flight.
pub struct TabletFileWriter<'a> {
    disk: &'a mut DataDisk,
    target: DirectFile,
    slot: FileSlot,
    path: PathBuf,
    /// The buffer being filled, and how far.
    pending: Option<(BufferIndex, u32)>,
    /// Bytes whose writing has begun.
    begun: u64,
    is_whole: bool,
}

impl TabletFileWriter<'_> {
    /// Waits until all is durable, then gives the file its name. The image has to end on a
    /// multiple of [`TABLET_ALIGNMENT_BYTES`], as those of a writer of tablets do.
    pub fn finish(mut self) -> Result<(), RuntimeError> {
        self.submit_pending()?;
        while self.disk.ring.in_flight() > 0 {
            self.disk.wait(&self.path, "write")?;
            self.disk.ended.clear();
        }
        self.target.sync_data()?;
        file::rename(self.target.path(), &self.path)?;
        self.is_whole = true;
        Ok(())
    }

    fn submit_pending(&mut self) -> Result<(), RuntimeError> {
        let Some((buffer, bytes)) = self.pending.take() else { return Ok(()) };
        assert!(
            u64::from(bytes).is_multiple_of(TABLET_ALIGNMENT_BYTES),
            "a piece of {bytes} bytes"
        );
        self.disk.ring.write(WriteRequest {
            file: self.slot,
            file_offset: self.begun,
            buffer,
            buffer_offset: 0,
            bytes,
            // One flush at the end makes all of them durable.
            durability: Durability::None,
            token: u64::from(buffer.0),
        });
        self.begun += u64::from(bytes);
        self.disk.ring.submit()
    }

    fn buffer(&mut self) -> Result<(BufferIndex, u32), RuntimeError> {
        if let Some(pending) = self.pending.take() {
            return Ok(pending);
        }
        while self.disk.free.is_empty() {
            self.disk.wait(&self.path, "write")?;
            for completion in self.disk.ended.drain(..) {
                self.disk.free.push(BufferIndex(completion.token as u16));
            }
        }
        let buffer = self.disk.free.pop().expect("the loop above ends with one");
        Ok((buffer, 0))
    }
}

impl ByteSink for TabletFileWriter<'_> {
    type Error = RuntimeError;

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), RuntimeError> {
        while !bytes.is_empty() {
            let (buffer, filled) = self.buffer()?;
            let count = bytes.len().min((PIECE_BYTES - filled) as usize);
            let (now, later) = bytes.split_at(count);
            let start = filled as usize;
            self.disk.ring.buffer_mut(buffer)[start..start + count].copy_from_slice(now);
            let filled = filled + count as u32;
            self.pending = Some((buffer, filled));
            if filled == PIECE_BYTES {
                self.submit_pending()?;
            }
            bytes = later;
        }
        Ok(())
    }
}

impl Drop for TabletFileWriter<'_> {
    fn drop(&mut self) {
        self.disk.let_go(self.slot);
        if !self.is_whole {
            // The next attempt removes what cannot be removed now.
            drop(file::remove_file(self.target.path()));
        }
    }
}

/// A file of which any part can be read.
pub struct TabletFile<'a> {
    disk: &'a mut DataDisk,
    slot: FileSlot,
    bytes_total: u64,
    path: PathBuf,
}

impl ByteSource for TabletFile<'_> {
    type Error = RuntimeError;

    fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// Reads the blocks of the disk that hold the range, a few requests in flight.
    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>, RuntimeError> {
        assert!(range.start <= range.end && range.end <= self.bytes_total, "{range:?} lies inside");
        let window_end = range.end.next_multiple_of(TABLET_ALIGNMENT_BYTES);
        let mut next = range.start / TABLET_ALIGNMENT_BYTES * TABLET_ALIGNMENT_BYTES;
        let mut out = vec![0; (range.end - range.start) as usize];
        while next < window_end || self.disk.ring.in_flight() > 0 {
            while next < window_end {
                let Some(buffer) = self.disk.free.pop() else { break };
                let bytes = (window_end - next).min(u64::from(PIECE_BYTES)) as u32;
                // The token carries both: pieces begin at multiples of 4,096.
                let token = next | u64::from(buffer.0);
                self.disk.ring.read(ReadRequest {
                    file: self.slot,
                    file_offset: next,
                    buffer,
                    buffer_offset: 0,
                    bytes,
                    token,
                });
                next += u64::from(bytes);
            }
            if let Err(error) = self.take(&range, window_end, &mut out) {
                self.disk.drain();
                return Err(error);
            }
        }
        Ok(out)
    }
}

impl TabletFile<'_> {
    /// Waits for pieces and copies what the range wants of them.
    fn take(
        &mut self,
        range: &Range<u64>,
        window_end: u64,
        out: &mut [u8],
    ) -> Result<(), RuntimeError> {
        self.disk.wait(&self.path, "read")?;
        let DataDisk { ring, free, ended } = &mut *self.disk;
        for completion in ended.drain(..) {
            let buffer = BufferIndex((completion.token % TABLET_ALIGNMENT_BYTES) as u16);
            let begin = completion.token - u64::from(buffer.0);
            let end = (begin + u64::from(PIECE_BYTES)).min(window_end);
            if completion.result != Ok((end - begin) as u32) {
                let errno = Errno::SHORT_TRANSFER;
                return Err(RuntimeError::file("read", &self.path, errno));
            }
            let wanted = begin.max(range.start)..end.min(range.end);
            if wanted.start < wanted.end {
                let from = (wanted.start - begin) as usize..(wanted.end - begin) as usize;
                let to = (wanted.start - range.start) as usize..(wanted.end - range.start) as usize;
                out[to].copy_from_slice(&ring.buffer(buffer)[from]);
            }
            free.push(buffer);
        }
        Ok(())
    }
}

impl Drop for TabletFile<'_> {
    fn drop(&mut self) {
        self.disk.let_go(self.slot);
    }
}

const _: () = assert!(PIECES_IN_FLIGHT as u64 <= TABLET_ALIGNMENT_BYTES);
const _: () = assert!((PIECE_BYTES as u64).is_multiple_of(TABLET_ALIGNMENT_BYTES));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let path = Path::new("/tmp/1.data");
        for errno in [ENOSPC, EDQUOT] {
            let error = explain("write", path, errno);
            assert!(matches!(error, RuntimeError::DiskFull { .. }), "{error}");
        }
        let error = explain("write", path, Errno(5));
        assert!(matches!(error, RuntimeError::File { errno: Errno(5), .. }), "{error}");
    }
}
