//! Memory: how much, where, and how much of it in huge pages.

use crate::list;
use crate::tree::Tree;

/// Memory of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// All memory that the kernel manages, bytes.
    pub total_bytes: u64,
    /// What could be used now without swapping, bytes.
    pub available_bytes: u64,
    /// Size of a huge page of the default kind, bytes.
    pub huge_page_bytes: u64,
    /// Reserved huge pages of the default kind.
    pub huge_pages_total: u64,
    /// Those not in use.
    pub huge_pages_free: u64,
    /// Mode of transparent huge pages: `always`, `madvise` or `never`; empty if unknown.
    pub huge_pages_transparent: String,
    /// Nodes with memory, by number.
    pub nodes: Vec<NodeMemory>,
    /// Soft limit on locked memory of this process; `None` is no limit.
    pub locked_bytes_max: Option<u64>,
}

/// Memory of one NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeMemory {
    /// The node.
    pub node: u32,
    /// Its memory, bytes.
    pub total_bytes: u64,
    /// Its free huge pages of the default kind.
    pub huge_pages_free: u64,
}

/// Reads it; a field that the kernel does not show is 0.
pub fn discover(tree: &Tree) -> Memory {
    let info = tree.read("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| info.lines().find_map(|line| value(line, name)).unwrap_or(0);
    let transparent = tree.read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = transparent.split(['[', ']']).nth(1).unwrap_or("");
    Memory {
        total_bytes: field("MemTotal:"),
        available_bytes: field("MemAvailable:"),
        huge_page_bytes: field("Hugepagesize:"),
        huge_pages_total: field("HugePages_Total:"),
        huge_pages_free: field("HugePages_Free:"),
        huge_pages_transparent: chosen.to_owned(),
        nodes: nodes(tree),
        locked_bytes_max: locked(tree),
    }
}

/// The value behind `name`; a unit of kB becomes bytes.
fn value(line: &str, name: &str) -> Option<u64> {
    let mut words = line[line.find(name)? + name.len()..].split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    match words.next() {
        Some("kB") => number.checked_mul(1024),
        _ => Some(number),
    }
}

fn nodes(tree: &Tree) -> Vec<NodeMemory> {
    const NODES: &str = "/sys/devices/system/node";
    let with_memory = tree.read(format!("{NODES}/has_memory"));
    let with_memory = with_memory.and_then(|text| list::parse(&text)).unwrap_or_default();
    let node = |node: u32| {
        let info = tree.read(format!("{NODES}/node{node}/meminfo")).unwrap_or_default();
        let field = |name: &str| info.lines().find_map(|line| value(line, name)).unwrap_or(0);
        NodeMemory {
            node,
            total_bytes: field("MemTotal:"),
            huge_pages_free: field("HugePages_Free:"),
        }
    };
    with_memory.into_iter().map(node).collect()
}

/// A line of `/proc/self/limits` has its name in 26 columns, then soft limit, hard limit, unit.
fn locked(tree: &Tree) -> Option<u64> {
    let limits = tree.read("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}
