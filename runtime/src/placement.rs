//! Which CPUs this process may use, and which memory is near them.

use std::path::Path;

use crate::error::{Errno, RuntimeError};
use crate::file;

/// A logical CPU, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub u32);

/// A NUMA node, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NumaNode(pub u32);

/// Highest CPU number plus one that one affinity mask of libc can hold.
pub const CPUS_MAX: u32 = libc::CPU_SETSIZE as u32;

/// The CPUs the calling thread may run on, ascending.
///
/// # Errors
/// Fails if the kernel refuses the question, which means more CPUs than libc's mask holds.
pub fn cpus_allowed() -> Result<Vec<CpuId>, RuntimeError> {
    // SAFETY: an all-zero cpu_set_t is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the size given is that of `set`, which the call fills.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result != 0 {
        return Err(RuntimeError::System { operation: "sched_getaffinity", errno: Errno::last() });
    }
    // SAFETY: every index asked is below CPU_SETSIZE.
    let allowed = |cpu: &u32| unsafe { libc::CPU_ISSET(*cpu as usize, &set) };
    Ok((0..CPUS_MAX).filter(allowed).map(CpuId).collect())
}

/// The NUMA nodes that are online, ascending; node 0 alone if the machine does not tell.
/// `sysfs` is "/sys", or a tree of the same shape.
#[must_use]
pub fn numa_nodes(sysfs: &Path) -> Vec<NumaNode> {
    let path = sysfs.join("devices/system/node/online");
    let nodes: Vec<NumaNode> = file::read_to_string(&path)
        .ok()
        .and_then(|text| parse_list(&text))
        .map(|numbers| numbers.into_iter().map(NumaNode).collect())
        .unwrap_or_default();
    if nodes.is_empty() { vec![NumaNode(0)] } else { nodes }
}

/// The NUMA node of a CPU; node 0 if the machine does not tell.
/// `sysfs` is "/sys", or a tree of the same shape.
#[must_use]
pub fn numa_node_of(sysfs: &Path, cpu: CpuId) -> NumaNode {
    let holds = |node: &NumaNode| {
        let path = sysfs.join(format!("devices/system/node/node{}/cpulist", node.0));
        let list = file::read_to_string(&path).ok().and_then(|text| parse_list(&text));
        list.is_some_and(|cpus| cpus.contains(&cpu.0))
    };
    numa_nodes(sysfs).into_iter().find(holds).unwrap_or(NumaNode(0))
}

/// Asks the kernel to take memory that this thread touches first from `node`, as long as `node`
/// has any. Does nothing on a machine with one node.
///
/// # Errors
/// Fails if the node does not exist or the kernel refuses.
pub fn memory_prefer_node(sysfs: &Path, node: NumaNode) -> Result<(), RuntimeError> {
    let nodes = numa_nodes(sysfs);
    if nodes.len() <= 1 {
        return Ok(());
    }
    const MASK_BITS: u32 = 1024;
    if node.0 >= MASK_BITS || !nodes.contains(&node) {
        let errno = Errno(libc::EINVAL);
        return Err(RuntimeError::System { operation: "set_mempolicy of an absent node", errno });
    }
    let mut mask = [0u64; (MASK_BITS / 64) as usize];
    mask[(node.0 / 64) as usize] |= 1 << (node.0 % 64);
    // SAFETY: the mask lives through the call and has the number of bits announced; the kernel
    // reads one bit less than announced, which is why one is added.
    let result = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            libc::MPOL_PREFERRED,
            mask.as_ptr(),
            u64::from(MASK_BITS) + 1,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(RuntimeError::System { operation: "set_mempolicy", errno: Errno::last() })
}

/// Parses the kernel's list format, such as "0-3,8,10-11". An empty text is an empty list.
#[must_use]
pub fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.trim().parse().ok()?;
        let last: u32 = last.trim().parse().ok()?;
        if last < first || last >= 1 << 20 {
            return None;
        }
        numbers.extend(first..=last);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_tree(nodes: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temp dir");
        let base = root.path().join("devices/system/node");
        file::create_dir_all(&base).expect("create");
        let online = format!("0-{}\n", nodes.len() - 1);
        file::write_atomic(&base.join("online"), online.as_bytes()).expect("write");
        for (number, list) in nodes.iter().enumerate() {
            let node = base.join(format!("node{number}"));
            file::create_dir_all(&node).expect("create");
            file::write_atomic(&node.join("cpulist"), list.as_bytes()).expect("write");
        }
        root
    }

    #[test]
    fn lists() {
        assert_eq!(parse_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse_list("\n"), Some(vec![]));
        assert_eq!(parse_list("3-1"), None);
        assert_eq!(parse_list("x"), None);
        assert_eq!(parse_list("0-4294967295"), None);
    }

    #[test]
    fn nodes_of_a_two_socket_tree() {
        let root = fake_tree(&["0-15\n", "16-31\n"]);
        assert_eq!(numa_nodes(root.path()), vec![NumaNode(0), NumaNode(1)]);
        assert_eq!(numa_node_of(root.path(), CpuId(15)), NumaNode(0));
        assert_eq!(numa_node_of(root.path(), CpuId(16)), NumaNode(1));
    }

    #[test]
    fn no_tree_means_one_node() {
        let root = tempfile::tempdir().expect("temp dir");
        assert_eq!(numa_nodes(root.path()), vec![NumaNode(0)]);
        assert_eq!(numa_node_of(root.path(), CpuId(1)), NumaNode(0));
        memory_prefer_node(root.path(), NumaNode(7)).expect("no-op with one node");
    }

    #[test]
    fn absent_node_is_refused() {
        let root = fake_tree(&["0\n", "1\n"]);
        assert!(memory_prefer_node(root.path(), NumaNode(5)).is_err());
    }

    #[test]
    fn this_machine_prefers_its_own_node() {
        let sysfs = Path::new("/sys");
        let cpu = cpus_allowed().expect("affinity")[0];
        memory_prefer_node(sysfs, numa_node_of(sysfs, cpu)).expect("own node");
    }
}
