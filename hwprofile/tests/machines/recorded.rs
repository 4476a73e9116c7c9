//! Recorded machines: small trees of files in place of `/sys` and `/proc`.

use spillway_hwprofile::{Machine, discover};
use std::path::Path;

/// A tree in a temporary directory.
pub struct Recorded {
    directory: tempfile::TempDir,
}

impl Recorded {
    /// `PATH = TEXT` is a file, `| TEXT` one more line of it, `PATH -> TARGET` a symbolic link.
    pub fn new(text: &str) -> Recorded {
        let recorded = Recorded { directory: tempfile::tempdir().expect("a temporary directory") };
        let mut open: Option<(&str, String)> = None;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some((path, target)) = line.split_once(" -> ") {
                recorded.link(path, target);
            } else if let Some(more) = line.strip_prefix("| ") {
                let (path, text) = open.as_mut().expect("a file is open");
                *text = format!("{text}\n{more}");
                recorded.file(path, text);
            } else {
                let (path, text) = line.split_once(" =").expect("PATH = TEXT");
                recorded.file(path, text.trim_start());
                open = Some((path, text.trim_start().to_owned()));
            }
        }
        recorded
    }

    #[expect(clippy::disallowed_methods, reason = "a test writes the tree that the crate reads")]
    pub fn file(&self, path: &str, text: &str) {
        let path = self.make_parent(path);
        std::fs::write(path, format!("{text}\n")).expect("writable");
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.make_parent(path);
        std::os::unix::fs::symlink(target, path).expect("writable");
    }

    #[expect(clippy::disallowed_methods, reason = "a test writes the tree that the crate reads")]
    fn make_parent(&self, path: &str) -> std::path::PathBuf {
        let path = self.directory.path().join(path);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
        path
    }

    pub fn discover(&self, log: &str, data: &str) -> Machine {
        discover(self.directory.path(), Path::new(log), Path::new(data)).expect("a machine")
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }
}

/// One socket, two CPUs, one virtual disk: recorded from a small virtual machine.
pub const SMALL: &str = "
    proc/sys/kernel/osrelease = 6.12.1
    proc/self/status = Name:\tspillway
    | Cpus_allowed:\t3
    | Cpus_allowed_list:\t0-1
    proc/self/cgroup = 0::/
    proc/self/limits = Limit  Soft  Hard  Units
    | Max locked memory         8388608  8388608  bytes
    proc/self/mountinfo = 27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
    proc/meminfo = MemTotal: 24684092 kB
    | MemAvailable: 23530028 kB
    | HugePages_Total: 0
    | HugePages_Free: 0
    | Hugepagesize: 2048 kB
    sys/kernel/mm/transparent_hugepage/enabled = always [madvise] never
    sys/devices/system/cpu/online = 0-1
    sys/devices/system/cpu/present = 0-1
    sys/devices/system/cpu/isolated =
    sys/devices/system/cpu/cpu0/topology/core_cpus_list = 0
    sys/devices/system/cpu/cpu0/topology/physical_package_id = 0
    sys/devices/system/cpu/cpu1/topology/core_cpus_list = 1
    sys/devices/system/cpu/cpu1/topology/physical_package_id = 0
    sys/devices/system/node/has_memory = 0
    sys/devices/system/node/node0/cpulist = 0-1
    sys/devices/system/node/node0/meminfo = Node 0 MemTotal: 24684092 kB
    | Node 0 HugePages_Free: 0
    sys/devices/virtio0/block/vda/size = 536870912
    sys/devices/virtio0/block/vda/queue/logical_block_size = 512
    sys/devices/virtio0/block/vda/queue/physical_block_size = 4096
    sys/devices/virtio0/block/vda/queue/write_cache = write back
    sys/devices/virtio0/block/vda/queue/fua = 0
    sys/devices/virtio0/block/vda/queue/rotational = 0
    sys/dev/block/254:0 -> ../../devices/virtio0/block/vda
";

/// The reference machine: two sockets with 16 CPUs and 96 GiB each, the log disk on node 1, the
/// data disk on node 0, both with partitions.
pub fn reference() -> Recorded {
    let recorded = Recorded::new(
        "
        proc/sys/kernel/osrelease = 6.12.1
        proc/self/status = Cpus_allowed_list:\t0-31
        proc/self/cgroup = 0::/system.slice/spillway.service
        proc/self/limits = Max locked memory         unlimited  unlimited  bytes
        proc/self/mountinfo = 27 1 259:9 / / rw - ext4 /dev/nvme2n1 rw
        | 28 27 259:1 / /srv/log rw - xfs /dev/nvme0n1p1 rw
        | 29 27 259:3 / /srv/data rw - xfs /dev/nvme1n1p1 rw
        proc/meminfo = MemTotal: 201326592 kB
        | MemAvailable: 190000000 kB
        | HugePages_Total: 65536
        | HugePages_Free: 65536
        | Hugepagesize: 2048 kB
        sys/devices/system/cpu/online = 0-31
        sys/devices/system/cpu/present = 0-31
        sys/devices/system/node/has_memory = 0-1
        sys/devices/system/node/node0/cpulist = 0-15
        sys/devices/system/node/node1/cpulist = 16-31
        sys/devices/system/node/node0/meminfo = Node 0 MemTotal: 100663296 kB
        | Node 0 HugePages_Free: 32768
        sys/devices/system/node/node1/meminfo = Node 1 MemTotal: 100663296 kB
        | Node 1 HugePages_Free: 32768
        sys/devices/pci/01/numa_node = 1
        sys/devices/pci/01/nvme0/model = flash
        sys/devices/pci/01/nvme0/nvme0n1/device -> ../../nvme0
        sys/devices/pci/01/nvme0/nvme0n1/size = 1875385008
        sys/devices/pci/01/nvme0/nvme0n1/queue/logical_block_size = 4096
        sys/devices/pci/01/nvme0/nvme0n1/queue/write_cache = write back
        sys/devices/pci/01/nvme0/nvme0n1/queue/fua = 1
        sys/devices/pci/01/nvme0/nvme0n1/nvme0n1p1/partition = 1
        sys/devices/pci/02/numa_node = 0
        sys/devices/pci/02/nvme1/model = flash
        sys/devices/pci/02/nvme1/nvme1n1/device -> ../../nvme1
        sys/devices/pci/02/nvme1/nvme1n1/size = 7501476528
        sys/devices/pci/02/nvme1/nvme1n1/queue/logical_block_size = 512
        sys/devices/pci/02/nvme1/nvme1n1/queue/write_cache = write through
        sys/devices/pci/02/nvme1/nvme1n1/nvme1n1p1/partition = 1
        sys/dev/block/259:1 -> ../../devices/pci/01/nvme0/nvme0n1/nvme0n1p1
        sys/dev/block/259:3 -> ../../devices/pci/02/nvme1/nvme1n1/nvme1n1p1
        ",
    );
    for cpu in 0..32 {
        let directory = format!("sys/devices/system/cpu/cpu{cpu}/topology");
        recorded.file(&format!("{directory}/core_cpus_list"), &cpu.to_string());
        recorded.file(&format!("{directory}/physical_package_id"), &(cpu / 16).to_string());
    }
    recorded
}

/// One socket with 8 cores of two hardware threads, numbered the usual way: 0 and 8 are siblings.
pub fn threaded() -> Recorded {
    let recorded = Recorded::new(SMALL);
    recorded.file("proc/self/status", "Cpus_allowed_list:\t0-15");
    for name in ["online", "present"] {
        recorded.file(&format!("sys/devices/system/cpu/{name}"), "0-15");
    }
    recorded.file("sys/devices/system/node/node0/cpulist", "0-15");
    for cpu in 0..16 {
        let siblings = format!("{},{}", cpu % 8, cpu % 8 + 8);
        recorded
            .file(&format!("sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"), &siblings);
    }
    recorded
}
