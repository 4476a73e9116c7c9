//! Everything that was found, in one value.

use crate::cgroup::{self, Limits};
use crate::cpu::{self, Cpu};
use crate::memory::{self, Memory};
use crate::mount;
use crate::storage::{self, Storage};
use crate::tree::Tree;
use std::collections::BTreeSet;
use std::path::Path;

/// A machine as this process may use it. Plain data: a test writes one by hand.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// CPUs that are plugged in, by number.
    pub cpus: Vec<Cpu>,
    /// Memory.
    pub memory: Memory,
    /// Limits of the control groups.
    pub limits: Limits,
    /// What `kernel.io_uring_disabled` says: 0 is for all, 1 for members of a group, 2 for nobody.
    pub io_uring_disabled: u64,
    /// Where the log is to be.
    pub log: Storage,
    /// Where the data is to be.
    pub data: Storage,
}

impl Machine {
    /// The CPUs that this process may run on, by number.
    pub fn cpus_allowed(&self) -> impl Iterator<Item = &Cpu> {
        self.cpus.iter().filter(|cpu| cpu.allowed)
    }

    /// NUMA nodes of the allowed CPUs.
    pub fn nodes_allowed(&self) -> BTreeSet<u32> {
        self.cpus_allowed().map(|cpu| cpu.node).collect()
    }

    /// Memory that the process may count on: of the machine, or less if a group says so.
    pub fn memory_bytes_usable(&self) -> u64 {
        let limit = self.limits.memory_bytes.unwrap_or(u64::MAX);
        self.memory.total_bytes.min(limit)
    }

    /// Whether log and data end on a common disk. Without a device for either there is no saying,
    /// and the answer is the cautious one.
    pub fn log_shares_disk(&self) -> bool {
        match (&self.log.device, &self.data.device) {
            (Some(log), Some(data)) => log.shares_disk_with(data),
            _ => true,
        }
    }
}

/// Why a machine could not be looked at.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DiscoverError {
    /// `/proc` is missing or not that of this kernel.
    #[error(
        "cannot read which CPUs are allowed from /proc/self/status; \
         mount it: mount -t proc proc /proc"
    )]
    NoProc,
    /// The mount table does not hold the path.
    #[error(
        "no file system holds {path}; is the path absolute, and /proc/self/mountinfo readable?"
    )]
    NoMount {
        /// The path asked for.
        path: String,
    },
}

/// Looks at the machine whose `/sys` and `/proc` lie below `root`.
pub fn discover(root: &Path, log: &Path, data: &Path) -> Result<Machine, DiscoverError> {
    let tree = Tree::new(root);
    let mounts = mount::discover(&tree);
    let storage = |path: &Path| {
        let missing = || DiscoverError::NoMount { path: path.display().to_string() };
        storage::discover(&tree, &mounts, path).ok_or_else(missing)
    };
    Ok(Machine {
        kernel: tree.read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        cpus: cpu::discover(&tree).ok_or(DiscoverError::NoProc)?,
        memory: memory::discover(&tree),
        limits: cgroup::discover(&tree, &mounts),
        io_uring_disabled: tree.number("/proc/sys/kernel/io_uring_disabled").unwrap_or(0),
        log: storage(log)?,
        data: storage(data)?,
    })
}
