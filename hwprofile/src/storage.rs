//! The block device behind a path, and what it says about durability.

use crate::mount::{self, Mount};
use crate::tree::Tree;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A directory, the file system that holds it and the device below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The directory, free of symbolic links.
    pub path: PathBuf,
    /// Where its file system is mounted.
    pub mount_point: PathBuf,
    /// Type of the file system.
    pub filesystem: String,
    /// The device; `None` for a file system without one, such as tmpfs.
    pub device: Option<BlockDevice>,
}

/// A block device: a disk, or what stacks on disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// The kernel's name of the whole disk, not of a partition.
    pub name: String,
    /// Smallest unit that can be addressed, bytes.
    pub logical_block_bytes: u64,
    /// Smallest unit that the device writes without reading first, bytes.
    pub physical_block_bytes: u64,
    /// Has a volatile cache, so that a write needs a flush or FUA to be durable.
    pub write_back: bool,
    /// Can write through its cache, one write at a time.
    pub fua: bool,
    /// Turns.
    pub rotational: bool,
    /// Size, bytes.
    pub total_bytes: u64,
    /// The NUMA node that it hangs on; `None` if the machine has one node or does not say.
    pub node: Option<u32>,
    /// The disks at the bottom: itself, unless it stacks on others.
    pub disks: BTreeSet<String>,
}

impl BlockDevice {
    /// Whether a plain O_DSYNC write is durable without a flush of its own.
    pub fn durable_by_itself(&self) -> bool {
        self.fua || !self.write_back
    }

    /// Whether both end on a common disk, and so disturb each other and fail together.
    pub fn shares_disk_with(&self, other: &BlockDevice) -> bool {
        !self.disks.is_disjoint(&other.disks)
    }
}

/// Looks at the device behind `path`. `None` if no mount holds it.
pub fn discover(tree: &Tree, mounts: &[Mount], path: &Path) -> Option<Storage> {
    let path = tree.resolve(path);
    let mount = mount::holding(mounts, &path)?;
    Some(Storage {
        mount_point: mount.point.clone(),
        filesystem: mount.kind.clone(),
        device: device(tree, mount),
        path,
    })
}

fn device(tree: &Tree, mount: &Mount) -> Option<BlockDevice> {
    let link = match mount.device.strip_prefix("0:") {
        None => format!("/sys/dev/block/{}", mount.device),
        // Some file systems (btrfs) have a number of their own but name the device they lie on.
        Some(_) => format!("/sys/class/block/{}", mount.source.strip_prefix("/dev/")?),
    };
    if !tree.exists(&link) {
        return None;
    }
    let directory = tree.resolve(link);
    let is_partition = tree.exists(directory.join("partition"));
    let disk = if is_partition { directory.parent()?.to_owned() } else { directory };
    let queue = |name: &str| tree.read(disk.join("queue").join(name));
    let number = |name: &str| queue(name).and_then(|text| text.parse::<u64>().ok());
    let name = name_of(&disk);
    let logical_block_bytes = number("logical_block_size").unwrap_or(512);
    Some(BlockDevice {
        disks: disks(tree, &disk, 0),
        logical_block_bytes,
        physical_block_bytes: number("physical_block_size").unwrap_or(logical_block_bytes),
        // A device that does not say is taken to have a cache: the flush it may not need costs
        // time, the flush it does not get costs transactions.
        write_back: queue("write_cache").is_none_or(|text| text != "write through"),
        fua: number("fua") == Some(1),
        rotational: number("rotational") == Some(1),
        // The kernel counts in units of 512 bytes, whatever the block.
        total_bytes: tree.number(disk.join("size")).unwrap_or(0).saturating_mul(512),
        node: node(tree, &disk),
        name,
    })
}

fn name_of(disk: &Path) -> String {
    disk.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Follows device mapper, RAID and partitions down to the disks.
fn disks(tree: &Tree, disk: &Path, depth: usize) -> BTreeSet<String> {
    const DEPTH_MAX: usize = 8;
    let below = tree.list(disk.join("slaves"));
    if below.is_empty() || depth == DEPTH_MAX {
        return BTreeSet::from([name_of(disk)]);
    }
    let mut found = BTreeSet::new();
    for name in below {
        let member = tree.resolve(disk.join("slaves").join(name));
        let is_partition = tree.exists(member.join("partition"));
        let whole = if is_partition { member.parent().unwrap_or(&member) } else { &member };
        found.extend(disks(tree, whole, depth + 1));
    }
    found
}

/// The node of the device, or of the controller it hangs on. -1 means that there is no saying.
fn node(tree: &Tree, disk: &Path) -> Option<u32> {
    let device = tree.resolve(disk.join("device"));
    let stop = Path::new("/sys/devices");
    let steps = device.ancestors().take_while(|step| step.starts_with(stop) && *step != stop);
    let said: Vec<i64> = steps
        .filter_map(|step| tree.read(step.join("numa_node")).and_then(|text| text.parse().ok()))
        .collect();
    said.first().and_then(|node| u32::try_from(*node).ok())
}
