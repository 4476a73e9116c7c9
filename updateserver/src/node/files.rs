//! The files of a node: where they are, and the superblock's way to disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use spillway_runtime::buffer::AlignedBuffer;
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::error::{Errno, RuntimeError};
use spillway_runtime::{clock, file, thread};

use crate::config::Config;
use crate::log::{
    BLOCK_BYTES_MAX, Geometry, Superblock, SuperblockChosen, SuperblockError, SuperblockWrite,
    superblock_choose,
};

use super::NodeError;

/// Sizes that a copy of the superblock can have: those of a block.
const COPY_BYTES: [usize; 4] = [512, 1024, 2048, COPY_BYTES_MAX];
const COPY_BYTES_MAX: usize = BLOCK_BYTES_MAX as usize;
const EIO: i32 = 5;
const EINVAL: i32 = 22;

/// Paths of a node.
#[derive(Debug, Clone)]
pub(super) struct NodeFiles {
    pub log: PathBuf,
    pub data: PathBuf,
}

impl NodeFiles {
    pub fn new(config: &Config) -> Self {
        Self { log: config.node.directory_log.clone(), data: config.node.directory_data.clone() }
    }

    pub fn superblock(&self) -> PathBuf {
        self.log.join("superblock")
    }

    /// The superblock's name until it is complete.
    pub fn superblock_new(&self) -> PathBuf {
        self.log.join("superblock.new")
    }

    pub fn segment(&self, segment: u32) -> PathBuf {
        self.log.join(format!("segment-{segment:05}.log"))
    }

    /// Opens all segments, for nobody else.
    pub fn segments_open(&self, geometry: &Geometry) -> Result<Vec<DirectFile>, RuntimeError> {
        (0..geometry.segments_count).map(|segment| open_alone(&self.segment(segment))).collect()
    }
}

/// How long writes that a killed process left under way are waited for.
const BUSY_SECONDS_MAX: u64 = 30;
/// How often that is looked at.
const BUSY_LOOK: Duration = Duration::from_millis(5);

/// Opens a file that nobody else uses: not even the kernel, for a process that was killed. A write
/// of that one which came later would overwrite what this one has written and acknowledged.
fn open_alone(path: &Path) -> Result<DirectFile, RuntimeError> {
    let file = DirectFile::open(path, DirectMode::ReadWrite)?;
    let began = clock::monotonic_now();
    while !file.try_lock()? {
        if clock::monotonic_now().saturating_since(began).as_secs() >= BUSY_SECONDS_MAX {
            let (path, seconds) = (path.to_owned(), BUSY_SECONDS_MAX);
            return Err(RuntimeError::FileBusy { path, seconds });
        }
        thread::sleep(BUSY_LOOK);
    }
    Ok(file)
}

/// Writes copies of the superblock round by round, each round durable before the next begins, so
/// that at every moment two copies are whole.
pub(super) fn superblock_write(
    file: &DirectFile,
    rounds: &[Vec<SuperblockWrite>; 2],
) -> Result<(), RuntimeError> {
    for round in rounds {
        for write in round {
            let mut buffer = AlignedBuffer::new(write.bytes.len().next_multiple_of(4096));
            buffer[..write.bytes.len()].copy_from_slice(&write.bytes);
            file.write_at(&buffer[..write.bytes.len()], write.offset)?;
        }
        file.sync_data()?;
    }
    Ok(())
}

/// Reads the superblock, and how many of its copies are in order.
pub(super) fn superblock_read(path: &Path) -> Result<(DirectFile, SuperblockChosen), NodeError> {
    if !file::exists(path) {
        return Err(NodeError::NotFormatted { path: path.to_owned() });
    }
    let file = open_alone(path)?;
    let mut buffer = AlignedBuffer::new(COPY_BYTES_MAX);
    let found = superblock_find(&mut |copy, block| {
        let read = file.read_at(&mut buffer[..block], (copy * block) as u64);
        read.map(|bytes| buffer[..bytes].to_vec())
    });
    let checked = found.and_then(|chosen| {
        chosen.superblock.check_fingerprint()?;
        Ok(chosen)
    });
    let chosen = checked.map_err(|error| NodeError::Superblock { path: path.to_owned(), error })?;
    Ok((file, chosen))
}

/// The size of a block is not known before, so the copies are looked for at the offsets of every
/// possible size. Each is read on its own: a sector that cannot be read costs one of them.
fn superblock_find(
    read: &mut dyn FnMut(usize, usize) -> Result<Vec<u8>, RuntimeError>,
) -> Result<SuperblockChosen, SuperblockError> {
    let mut best = Err(SuperblockError::AllBad);
    for block in COPY_BYTES {
        let copies = std::array::from_fn(|copy| match read(copy, block) {
            Ok(bytes) if bytes.len() == block => Superblock::decode(copy, &bytes),
            Ok(_) => Err(SuperblockError::Magic),
            // A device of larger blocks holds no copies of this size.
            Err(RuntimeError::File { errno: Errno(EINVAL), .. }) => Err(SuperblockError::Magic),
            Err(RuntimeError::File { errno, .. }) => Err(SuperblockError::Unreadable(errno.0)),
            Err(_) => Err(SuperblockError::Unreadable(EIO)),
        });
        match superblock_choose(&copies) {
            Ok(chosen) if chosen.superblock.geometry.block() == block => return Ok(chosen),
            Ok(_) | Err(SuperblockError::AllBad) => {}
            Err(error) => best = Err(error),
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::SUPERBLOCK_COPIES;
    use crate::log::testing::{SimDisk, small_geometry};

    /// The copies of a node whose blocks have this size.
    fn file_of(block_bytes: u32) -> Vec<u8> {
        let geometry = Geometry { block_bytes, segment_bytes: 512 << 10, ..small_geometry() };
        SimDisk::format(geometry).superblock
    }

    /// Looks for the superblock where reads that touch `bad` fail with `errno`.
    fn find(
        file: &[u8],
        bad: &[std::ops::Range<usize>],
        errno: i32,
    ) -> Result<SuperblockChosen, SuperblockError> {
        superblock_find(&mut |copy, block| {
            let (from, to) = (copy * block, ((copy + 1) * block).min(file.len()));
            if bad.iter().any(|bad| from < bad.end && bad.start < to) {
                let path = PathBuf::from("superblock");
                return Err(RuntimeError::File { operation: "read", path, errno: Errno(errno) });
            }
            Ok(file.get(from..to).unwrap_or_default().to_vec())
        })
    }

    #[test]
    fn a_copy_that_cannot_be_read_costs_no_other_one() {
        for block in COPY_BYTES {
            let file = file_of(block as u32);
            let whole = find(&file, &[], EIO).expect("a superblock");
            assert_eq!((whole.copies_bad, whole.superblock.geometry.block()), (0, block));
            for left in 0..SUPERBLOCK_COPIES {
                let others = (0..SUPERBLOCK_COPIES).filter(|copy| *copy != left);
                let bad: Vec<_> = others.map(|copy| copy * block..(copy + 1) * block).collect();
                let found = find(&file, &bad, EIO).expect("one copy is left");
                assert_eq!((found.superblock, found.copies_bad), (whole.superblock, 3));
            }
            let all = 0..file.len();
            let error = find(&file, std::slice::from_ref(&all), EIO);
            assert_eq!(error, Err(SuperblockError::Unreadable(EIO)), "it may be whole");
            let damaged: Vec<u8> = file.iter().map(|byte| !byte).collect();
            assert_eq!(find(&damaged, &[], EIO), Err(SuperblockError::AllBad));
        }
    }

    /// Such a device refuses reads of less than its block.
    #[test]
    fn copies_on_a_device_of_large_blocks_are_found() {
        let file = file_of(4096);
        let found = superblock_find(&mut |copy, block| {
            if block < 4096 {
                let path = PathBuf::from("superblock");
                return Err(RuntimeError::File { operation: "read", path, errno: Errno(EINVAL) });
            }
            Ok(file[copy * block..(copy + 1) * block].to_vec())
        });
        assert_eq!(found.map(|chosen| chosen.copies_bad), Ok(0));
    }
}
