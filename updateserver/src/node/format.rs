//! Laying out the files of a new node.

use std::path::Path;

use spillway_net::ids::{ClusterId, NodeId};
use spillway_net::limits::{BATCH_BYTES_MAX, PARTITIONS_MAX};
use spillway_runtime::buffer::AlignedBuffer;
use spillway_runtime::clock;
use spillway_runtime::device::{DeviceFacts, DurableWriteMode};
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::error::RuntimeError;
use spillway_runtime::file;
use spillway_runtime::lock::DirectoryLock;
use spillway_runtime::prewrite::prewrite;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::Config;
use crate::log::{DurableWrite, FormatPlan, Geometry, Members, SUPERBLOCK_COPIES};

use super::NodeError;
use super::files::{NodeFiles, superblock_write};

/// What was laid out.
#[derive(Debug, Clone)]
pub struct FormatReport {
    /// The new cluster.
    pub cluster: ClusterId,
    /// Bytes of the log, all of them written.
    pub log_bytes: u64,
    /// What the log disk is.
    pub device: DeviceFacts,
}

/// Formats a node. Tells `progress` the bytes written so far.
///
/// # Errors
/// A node is there already, the disk is too small, the file system knows no O_DIRECT.
pub fn format(config: &Config, progress: &mut dyn FnMut(u64)) -> Result<FormatReport, NodeError> {
    let files = NodeFiles::new(config);
    file::create_dir_all(&files.log)?;
    file::create_dir_all(&files.data)?;
    let _lock = DirectoryLock::acquire(&files.log)?;
    if file::exists(&files.superblock()) {
        return Err(NodeError::AlreadyFormatted { path: files.superblock() });
    }
    let device = DeviceFacts::of(&files.log)?;
    let geometry = Geometry {
        block_bytes: match config.log.block_bytes {
            0 => device.physical_block_bytes.clamp(512, 4096),
            configured => configured,
        },
        segment_bytes: config.log.segment_bytes as u32,
        segments_count: (config.log.bytes_total / config.log.segment_bytes) as u32,
        partitions: config.node.partitions,
        batch_bytes_max: BATCH_BYTES_MAX as u32,
    };
    assert!(usize::from(geometry.partitions) <= PARTITIONS_MAX, "checked with the configuration");
    let durable_write = match device.durable_write_mode() {
        DurableWriteMode::DataSync => DurableWrite::SyncedWrite,
        DurableWriteMode::WriteThenFlush => DurableWrite::WriteThenFlush,
    };
    let cluster = config.cluster.id.unwrap_or_else(|| cluster_id(config));
    let node = NodeId(config.node.id);
    let members = if config.cluster.join {
        Members::default()
    } else {
        Members::of_voters(config.cluster.members(node))
    };
    let plan = FormatPlan::new(cluster, node, geometry, durable_write, members)?;
    direct_check(&files, geometry.block_bytes)?;
    space_check(&files.log, config.log.bytes_total)?;
    segments_remove(&files)?;
    for segment in 0..plan.segments() {
        let done = u64::from(segment) * config.log.segment_bytes;
        let path = files.segment(segment);
        prewrite(&path, config.log.segment_bytes, &mut |bytes| progress(done + bytes))?;
        let start = plan.segment_start(segment);
        let mut buffer = AlignedBuffer::new(start.len().next_multiple_of(4096));
        buffer[..start.len()].copy_from_slice(&start);
        let file = DirectFile::open(&path, DirectMode::ReadWrite)?;
        file.write_at(&buffer[..start.len()], 0)?;
        file.sync_data()?;
    }
    superblock_create(&files, &plan)?;
    Ok(FormatReport { cluster, log_bytes: config.log.bytes_total, device })
}

/// Segments of a format that was cut short are in the way and hold nothing: without a superblock
/// there never was a node.
fn segments_remove(files: &NodeFiles) -> Result<(), RuntimeError> {
    for path in file::list_dir(&files.log)? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if name.is_some_and(|name| name.starts_with("segment-") && name.ends_with(".log")) {
            file::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The superblock comes last and under another name first: a format that is cut short leaves no
/// node.
fn superblock_create(files: &NodeFiles, plan: &FormatPlan) -> Result<(), NodeError> {
    let (path, new) = (files.superblock(), files.superblock_new());
    if file::exists(&new) {
        file::remove_file(&new)?;
    }
    let bytes = (SUPERBLOCK_COPIES * plan.geometry.block()).next_multiple_of(4096) as u64;
    prewrite(&new, bytes, &mut |_| {})?;
    let file = DirectFile::open(&new, DirectMode::ReadWrite)?;
    superblock_write(&file, &plan.superblock_writes())?;
    file::rename(&new, &path)?;
    file::sync_dir(&files.log)?;
    Ok(())
}

/// Whether blocks of this size can be written past the page cache. Before the space: file systems
/// without O_DIRECT tell no sensible numbers of that.
fn direct_check(files: &NodeFiles, block_bytes: u32) -> Result<(), RuntimeError> {
    let path = files.superblock_new();
    if file::exists(&path) {
        file::remove_file(&path)?;
    }
    let block = AlignedBuffer::new(block_bytes as usize);
    let checked = DirectFile::open(&path, DirectMode::Create)
        .and_then(|file| file.write_at(&block, block_bytes.into()));
    // An open that fails for its flags may have made the file.
    if file::exists(&path) {
        file::remove_file(&path)?;
    }
    checked
}

fn space_check(directory: &Path, bytes: u64) -> Result<(), RuntimeError> {
    let free = file::free_bytes(directory)?;
    if free < bytes { Err(RuntimeError::disk_full(directory, bytes, free)) } else { Ok(()) }
}

/// A cluster's id needs to be new, not secret: time, process and place are hashed.
fn cluster_id(config: &Config) -> ClusterId {
    let text = format!(
        "{} {} {} {}",
        clock::wall_now_micros(),
        clock::monotonic_now().0,
        std::process::id(),
        config.node.directory_log.display()
    );
    ClusterId(xxh3_128(text.as_bytes()).max(1))
}
