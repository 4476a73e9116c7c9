//! Makes a formatted node write with RWF_DSYNC, whatever its disk looks like.
//!
//! A node decides at format how it makes writes durable, by what /sys tells of the disk; of a
//! file system of a process it tells nothing.

use std::path::Path;

use spillway_runtime::file;
use spillway_updateserver::config::Config;
use spillway_updateserver::log::{DurableWrite, SUPERBLOCK_COPIES, Superblock};

use crate::error::RigError;

/// Sizes that a block may have.
const BLOCKS: [usize; 4] = [512, 1024, 2048, 4096];

/// Changes the superblock of the node with this configuration file.
///
/// # Errors
/// If it is not just formatted.
pub fn run(config: &Path) -> Result<(), RigError> {
    let options = |why: String| RigError::Options(format!("{}: {why}", config.display()));
    let config = Config::load(config).map_err(|error| options(error.to_string()))?;
    let path = config.node.directory_log.join("superblock");
    let mut bytes = file::read(&path)?;
    let first = |block: &usize| Superblock::decode(0, bytes.get(..*block)?).ok();
    let found = BLOCKS.iter().find_map(first);
    let superblock = found.ok_or_else(|| options("its superblock cannot be read".to_owned()))?;
    let block = superblock.geometry.block();
    for copy in 0..SUPERBLOCK_COPIES {
        let place = &mut bytes[copy * block..(copy + 1) * block];
        let old = Superblock::decode(copy, place).map_err(|error| options(error.to_string()))?;
        let new = Superblock { durable_write: DurableWrite::SyncedWrite, ..old };
        new.encode(copy, place);
    }
    Ok(file::write_atomic(&path, &bytes)?)
}
