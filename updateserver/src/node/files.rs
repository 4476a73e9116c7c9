//! The files of a node: where they are, and the superblock's way to disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use spillway_runtime::buffer::AlignedBuffer;
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::error::RuntimeError;
use spillway_runtime::{clock, file, thread};

use crate::config::Config;
use crate::log::{
    Geometry, SUPERBLOCK_COPIES, Superblock, SuperblockError, SuperblockWrite, superblock_choose,
};

use super::NodeError;

/// Bytes that every copy of the superblock is read with: the largest block.
const COPY_READ_BYTES: usize = 4096;

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

/// Reads the superblock. The size of a block is not known before, so the copies are looked for
/// at the offsets of every possible size.
pub(super) fn superblock_read(path: &Path) -> Result<(DirectFile, Superblock), NodeError> {
    if !file::exists(path) {
        return Err(NodeError::NotFormatted { path: path.to_owned() });
    }
    let file = open_alone(path)?;
    let mut buffer = AlignedBuffer::new(SUPERBLOCK_COPIES * COPY_READ_BYTES);
    let bytes = file.read_at(&mut buffer, 0)?;
    let mut best: Result<Superblock, SuperblockError> = Err(SuperblockError::AllBad);
    for block in [512, 1024, 2048, 4096] {
        let copies = std::array::from_fn(|copy| {
            let at = copy * block;
            match buffer.get(at..(at + block).min(bytes)) {
                Some(slice) if slice.len() == block => Superblock::decode(copy, slice),
                _ => Err(SuperblockError::Magic),
            }
        });
        match superblock_choose(&copies) {
            Ok(chosen) if chosen.superblock.geometry.block() == block => {
                best = Ok(chosen.superblock);
                break;
            }
            Ok(_) | Err(SuperblockError::AllBad) => {}
            Err(error) => best = Err(error),
        }
    }
    let superblock =
        best.map_err(|error| NodeError::Superblock { path: path.to_owned(), error })?;
    superblock
        .check_fingerprint()
        .map_err(|error| NodeError::Superblock { path: path.to_owned(), error })?;
    Ok((file, superblock))
}
