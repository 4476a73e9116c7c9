//! CPUs: which there are, which run, which this process may use, and where they sit.

use crate::list;
use crate::tree::Tree;
use std::collections::BTreeSet;

const CPUS: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";

/// One hardware thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// The kernel's number.
    pub id: u32,
    /// Runs. An offline CPU keeps its number.
    pub online: bool,
    /// This process may run on it: online, and in its affinity mask (which a cpuset narrows).
    pub allowed: bool,
    /// Kept free of other processes by `isolcpus`.
    pub isolated: bool,
    /// The socket.
    pub package: u32,
    /// The NUMA node.
    pub node: u32,
    /// All hardware threads of its core, itself included.
    pub siblings: BTreeSet<u32>,
}

/// All CPUs that are plugged in, by number. `None` if the kernel does not say what is allowed.
pub fn discover(tree: &Tree) -> Option<Vec<Cpu>> {
    let status = tree.read("/proc/self/status")?;
    let field = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let allowed = list::parse(field)?;
    let named =
        |name: &str| tree.read(format!("{CPUS}/{name}")).and_then(|text| list::parse(&text));
    let online = named("online").unwrap_or_else(|| allowed.clone());
    let present = named("present").unwrap_or_else(|| online.clone());
    let isolated = named("isolated").unwrap_or_default();
    let nodes = nodes(tree);

    let mut cpus = Vec::new();
    for id in present.union(&online).copied() {
        let topology = |name: &str| tree.read(format!("{CPUS}/cpu{id}/topology/{name}"));
        let siblings = topology("core_cpus_list")
            .or_else(|| topology("thread_siblings_list"))
            .and_then(|text| list::parse(&text))
            .filter(|siblings| siblings.contains(&id))
            .unwrap_or_else(|| BTreeSet::from([id]));
        let package = topology("physical_package_id").and_then(|text| text.parse().ok());
        let node = nodes.iter().find(|(_, cpus)| cpus.contains(&id)).map(|(node, _)| *node);
        cpus.push(Cpu {
            id,
            online: online.contains(&id),
            allowed: online.contains(&id) && allowed.contains(&id),
            isolated: isolated.contains(&id),
            package: package.unwrap_or(0),
            node: node.unwrap_or(0),
            siblings,
        });
    }
    Some(cpus)
}

/// NUMA nodes and their CPUs; empty on a kernel built without NUMA.
fn nodes(tree: &Tree) -> Vec<(u32, BTreeSet<u32>)> {
    let mut nodes = Vec::new();
    for name in tree.list(NODES) {
        let Some(node) = name.strip_prefix("node").and_then(|n| n.parse().ok()) else { continue };
        let cpus = tree.read(format!("{NODES}/{name}/cpulist"));
        nodes.push((node, cpus.and_then(|text| list::parse(&text)).unwrap_or_default()));
    }
    nodes
}
