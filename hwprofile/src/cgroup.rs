//! Limits that a container or a service manager put on this process.

use crate::mount::Mount;
use crate::tree::Tree;
use std::path::{Path, PathBuf};

/// What the control groups allow; `None` where nothing is said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// CPU time per time, in CPUs: 1.5 is three halves of a CPU.
    pub cpus: Option<f64>,
    /// Memory, bytes.
    pub memory_bytes: Option<u64>,
}

/// The tightest limits along the way from this process's group to the root.
pub fn discover(tree: &Tree, mounts: &[Mount]) -> Limits {
    let mut limits = Limits::default();
    let table = tree.read("/proc/self/cgroup").unwrap_or_default();
    for line in table.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let Some(mount) = mount_of(mounts, controllers) else { continue };
        for directory in directories(mount, Path::new(group)) {
            let (cpus, memory) = read(tree, &directory);
            limits.cpus = tighter(limits.cpus, cpus);
            limits.memory_bytes = tighter(limits.memory_bytes, memory);
        }
    }
    limits
}

/// The mount of a hierarchy: of version 2 if no controllers are named, else of version 1.
fn mount_of<'a>(mounts: &'a [Mount], controllers: &str) -> Option<&'a Mount> {
    if controllers.is_empty() {
        return mounts.iter().rfind(|mount| mount.kind == "cgroup2");
    }
    let wanted: Vec<&str> = controllers.split(',').collect();
    mounts.iter().rfind(|mount| {
        mount.kind == "cgroup" && wanted.iter().all(|w| mount.options.iter().any(|o| o == w))
    })
}

/// The directories of a group and of the groups around it, as far as they can be seen from here.
fn directories(mount: &Mount, group: &Path) -> Vec<PathBuf> {
    // In a container the mount shows the tree from the container's own group on.
    let below = group.strip_prefix(&mount.root).unwrap_or(Path::new(""));
    let below = below.strip_prefix("/").unwrap_or(below);
    below.ancestors().map(|ancestor| mount.point.join(ancestor)).collect()
}

/// Version 2 writes `max` for no limit; version 1 writes -1, or a number near 2^63.
fn read(tree: &Tree, directory: &Path) -> (Option<f64>, Option<u64>) {
    const UNLIMITED: u64 = 1 << 60;
    let share = |quota: f64, period: f64| (quota > 0.0 && period > 0.0).then(|| quota / period);
    let version_2 = tree.read(directory.join("cpu.max")).and_then(|text| {
        let (quota, period) = text.split_once(' ')?;
        share(quota.parse().ok()?, period.parse().ok()?)
    });
    let quota = tree.read(directory.join("cpu.cfs_quota_us")).and_then(|text| text.parse().ok());
    let period = tree.number(directory.join("cpu.cfs_period_us"));
    let version_1 = quota.zip(period).and_then(|(quota, period)| share(quota, period as f64));
    let memory = tree
        .number(directory.join("memory.max"))
        .or_else(|| tree.number(directory.join("memory.limit_in_bytes")))
        .filter(|bytes| *bytes < UNLIMITED);
    (version_2.or(version_1), memory)
}

fn tighter<T: PartialOrd>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b < a { b } else { a }),
        (a, b) => a.or(b),
    }
}
