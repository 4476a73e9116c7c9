//! What the disk under a path can do, and which durable write follows from it.

use std::path::{Path, PathBuf};

use crate::disk::Durability;
use crate::error::RuntimeError;
use crate::file;

/// The way to make a write durable. Chosen once, at format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurableWriteMode {
    /// RWF_DSYNC: the device has no volatile cache, or passes single writes through it (FUA).
    DataSync,
    /// A write linked with FDATASYNC. Without FUA a synchronous write completes through a kernel
    /// worker on the interrupt's CPU, which a busy thread there delays by a scheduler tick.
    WriteThenFlush,
}

impl DurableWriteMode {
    /// The durability to put into a write request.
    #[must_use]
    pub fn durability(self) -> Durability {
        match self {
            DurableWriteMode::DataSync => Durability::DataSync,
            DurableWriteMode::WriteThenFlush => Durability::WriteThenFlush,
        }
    }
}

/// Facts about a block device, from /sys. What cannot be read takes the cautious value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Name of the whole disk, such as "nvme0n1"; empty if there is none (tmpfs, network).
    pub name: String,
    /// Smallest write in bytes. 512 if unknown.
    pub logical_block_bytes: u32,
    /// What the device writes as a whole or not at all, in bytes (Linux,
    /// Documentation/ABI/stable/sysfs-block). If unknown the logical block, which is the least that
    /// a device can promise: a larger guess takes a write that a power cut tore for damage.
    pub physical_block_bytes: u32,
    /// Whether the cache loses its content with the power. True if unknown.
    pub write_cache_volatile: bool,
    /// Whether a single write can go through the cache. False if unknown.
    pub force_unit_access: bool,
    /// Whether it spins. False if unknown.
    pub rotational: bool,
}

impl DeviceFacts {
    /// The device under an existing file or directory.
    ///
    /// # Errors
    /// Fails if `path` cannot be looked up; an unreadable /sys is no error.
    pub fn of(path: &Path) -> Result<DeviceFacts, RuntimeError> {
        let (major, minor) = file::device_of(path)?;
        Ok(DeviceFacts::read(Path::new("/sys"), major, minor))
    }

    /// The device `major:minor` in a tree of the shape of /sys.
    #[must_use]
    pub fn read(sysfs: &Path, major: u32, minor: u32) -> DeviceFacts {
        let link = sysfs.join(format!("dev/block/{major}:{minor}"));
        let directory = file::canonical(&link).ok().map(whole_disk_of);
        let name = directory.as_deref().and_then(Path::file_name);
        let text = |file_name: &str| {
            let path = directory.as_ref()?.join("queue").join(file_name);
            Some(file::read_to_string(&path).ok()?.trim().to_owned())
        };
        let number = |file_name: &str| text(file_name)?.parse::<u32>().ok();
        let logical_block_bytes = number("logical_block_size").unwrap_or(512);
        let physical_block_bytes = number("physical_block_size").unwrap_or(logical_block_bytes);
        DeviceFacts {
            name: name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            logical_block_bytes,
            physical_block_bytes,
            write_cache_volatile: text("write_cache").is_none_or(|mode| mode != "write through"),
            force_unit_access: number("fua") == Some(1),
            rotational: number("rotational") == Some(1),
        }
    }

    /// The durable write that suits the device.
    #[must_use]
    pub fn durable_write_mode(&self) -> DurableWriteMode {
        if !self.write_cache_volatile || self.force_unit_access {
            DurableWriteMode::DataSync
        } else {
            DurableWriteMode::WriteThenFlush
        }
    }
}

/// A partition's directory lies inside its disk's, and has no queue of its own.
fn whole_disk_of(directory: PathBuf) -> PathBuf {
    match directory.parent() {
        Some(parent) if file::exists(&directory.join("partition")) => parent.to_owned(),
        _ => directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_tree(write_cache: &str, fua: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temp dir");
        let disk = root.path().join("devices/pci/nvme0n1");
        for directory in [disk.join("queue"), disk.join("nvme0n1p2"), root.path().join("dev/block")]
        {
            file::create_dir_all(&directory).expect("create");
        }
        let put = |name: &str, text: &str| {
            file::write_atomic(&disk.join(name), text.as_bytes()).expect("write");
        };
        put("queue/write_cache", write_cache);
        put("queue/fua", fua);
        put("queue/logical_block_size", "4096\n");
        put("queue/physical_block_size", "8192\n");
        put("queue/rotational", "1\n");
        put("nvme0n1p2/partition", "2\n");
        let link = |name: &str, target: &str| {
            let link = root.path().join("dev/block").join(name);
            std::os::unix::fs::symlink(target, link).expect("link");
        };
        link("259:0", "../../devices/pci/nvme0n1");
        link("259:2", "../../devices/pci/nvme0n1/nvme0n1p2");
        root
    }

    #[test]
    fn partition_has_the_facts_of_its_disk() {
        let root = fake_tree("write back\n", "0\n");
        let facts = DeviceFacts::read(root.path(), 259, 2);
        assert_eq!(facts, DeviceFacts::read(root.path(), 259, 0));
        assert_eq!(facts.name, "nvme0n1");
        assert_eq!((facts.logical_block_bytes, facts.physical_block_bytes), (4096, 8192));
        assert!(facts.rotational && facts.write_cache_volatile && !facts.force_unit_access);
    }

    #[test]
    fn mode_follows_cache_and_fua() {
        for (write_cache, fua, mode) in [
            ("write back\n", "0\n", DurableWriteMode::WriteThenFlush),
            ("write back\n", "1\n", DurableWriteMode::DataSync),
            ("write through\n", "0\n", DurableWriteMode::DataSync),
        ] {
            let root = fake_tree(write_cache, fua);
            assert_eq!(DeviceFacts::read(root.path(), 259, 0).durable_write_mode(), mode);
        }
    }

    #[test]
    fn unknown_device_is_treated_with_caution() {
        let root = tempfile::tempdir().expect("temp dir");
        let facts = DeviceFacts::read(root.path(), 0, 99);
        assert_eq!(facts.durable_write_mode(), DurableWriteMode::WriteThenFlush);
        assert_eq!((facts.name.as_str(), facts.logical_block_bytes), ("", 512));
        assert_eq!(facts.physical_block_bytes, 512, "the least that a write can tear at");
    }

    #[test]
    fn device_of_this_directory_has_sane_blocks() {
        let facts = DeviceFacts::of(Path::new(".")).expect("stat");
        assert!(facts.logical_block_bytes.is_power_of_two());
        assert!(facts.logical_block_bytes <= facts.physical_block_bytes);
    }
}
