//! The machine and its plan, told to a person.

use crate::list;
use crate::machine::Machine;
use crate::plan::Plan;
use crate::role::Role;
use crate::storage::Storage;
use std::fmt::Write;

/// CPUs of the reference machine.
pub const REFERENCE_CPUS: usize = 32;
/// Memory of the reference machine, bytes. A machine sold with 192 GiB shows a little less.
pub const REFERENCE_MEMORY_BYTES: u64 = 180 << 30;
/// Locked memory to allow for each CPU, bytes: twice the batches that the log keeps in flight
/// and the receive buffers beside them, rounded up.
pub const LOCKED_BYTES_PER_CPU: u64 = 16 << 20;

/// Something that differs from the reference machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Nothing works before this is mended; else it works, but less well.
    pub fatal: bool,
    /// What is so and what it means.
    pub text: String,
    /// The command that mends it, if a command can.
    pub command: Option<String>,
}

/// What is missing for the reference machine, the worst first.
pub fn findings(machine: &Machine) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |fatal, text: String, command: Option<&str>| {
        found.push(Finding { fatal, text, command: command.map(str::to_owned) });
    };
    if machine.io_uring_disabled == 2 {
        let command = Some("sysctl -w kernel.io_uring_disabled=0");
        add(true, "io_uring is switched off for everybody: no thread can start.".into(), command);
    } else if machine.io_uring_disabled != 0 {
        let text = "io_uring is for members of one group only (kernel.io_uring_group).";
        add(false, text.into(), Some("sysctl -w kernel.io_uring_disabled=0"));
    }
    let cpus = machine.cpus_allowed().count();
    let locked_needed = cpus as u64 * LOCKED_BYTES_PER_CPU;
    if let Some(locked) = machine.memory.locked_bytes_max.filter(|max| *max < locked_needed) {
        let (locked, needed) = (bytes(locked), bytes(locked_needed));
        let text = format!(
            "{locked} of memory may be locked; {needed} leave room for all registered buffers."
        );
        add(false, text, Some("ulimit -l unlimited  (systemd: LimitMEMLOCK=infinity)"));
    }
    if cpus < REFERENCE_CPUS {
        let text = format!("{cpus} CPUs are allowed, the reference machine has {REFERENCE_CPUS}.");
        add(false, text, None);
    }
    let memory = machine.memory_bytes_usable();
    if memory < REFERENCE_MEMORY_BYTES {
        add(
            false,
            format!("{} of memory, the reference machine has 192 GiB.", bytes(memory)),
            None,
        );
    }
    if machine.nodes_allowed().len() < 2 {
        add(false, "One NUMA node, the reference machine has two.".into(), None);
    }
    if machine.memory.huge_pages_total == 0 {
        let text = "No huge pages are reserved: arenas use transparent ones where there are any.";
        add(false, text.into(), Some("sysctl -w vm.nr_hugepages=N"));
    }
    if machine.memory.huge_pages_transparent == "never" && machine.memory.huge_pages_total == 0 {
        let command = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        add(false, "Transparent huge pages are off too.".into(), Some(command));
    }
    if machine.log_shares_disk() {
        add(false, "Log and data share a disk: a merge stands before every commit.".into(), None);
    }
    for (name, storage) in [("log", &machine.log), ("data", &machine.data)] {
        found.extend(storage_findings(name, storage));
    }
    found.sort_by_key(|finding| !finding.fatal);
    found
}

fn storage_findings(name: &str, storage: &Storage) -> Vec<Finding> {
    let note = |text| Finding { fatal: false, text, command: None };
    let Some(device) = &storage.device else {
        return vec![note(format!(
            "The {name} lies on {}, which has no block device: nothing survives a power cut.",
            storage.filesystem
        ))];
    };
    let mut found = Vec::new();
    if device.rotational {
        found.push(note(format!(
            "The {name} disk {} calls itself rotational (virtual ones may err): flash is wanted.",
            device.name
        )));
    }
    if name == "log" && !device.durable_by_itself() {
        found.push(note(format!(
            "The log disk {} has a volatile cache and no FUA: every batch costs a flush.",
            device.name
        )));
    }
    found
}

/// The whole report.
pub fn report(machine: &Machine, plan: &Plan) -> String {
    let mut out = String::new();
    machine_lines(&mut out, machine).expect("a String takes any text");
    plan_lines(&mut out, plan).expect("a String takes any text");
    findings_lines(&mut out, &findings(machine)).expect("a String takes any text");
    out
}

fn machine_lines(out: &mut String, machine: &Machine) -> std::fmt::Result {
    let ids = |keep: fn(&&crate::cpu::Cpu) -> bool| {
        list::format(machine.cpus.iter().filter(keep).map(|cpu| cpu.id))
    };
    writeln!(out, "Machine")?;
    writeln!(out, "  kernel    {}", machine.kernel)?;
    writeln!(
        out,
        "  CPUs      allowed {}, not allowed {}, offline {}",
        ids(|cpu| cpu.allowed),
        ids(|cpu| cpu.online && !cpu.allowed),
        ids(|cpu| !cpu.online)
    )?;
    if let Some(cpus) = machine.limits.cpus {
        writeln!(out, "  quota     {cpus:.1} CPUs (control group)")?;
    }
    for node in machine.nodes_allowed() {
        let cpus = machine.cpus_allowed().filter(|cpu| cpu.node == node).map(|cpu| cpu.id);
        let memory = machine.memory.nodes.iter().find(|memory| memory.node == node);
        let memory = memory.map_or("unknown".into(), |memory| bytes(memory.total_bytes));
        writeln!(out, "  node {node:<4} CPUs {}, memory {memory}", list::format(cpus))?;
    }
    let memory = &machine.memory;
    writeln!(
        out,
        "  memory    {} usable of {}; huge pages {} free of {} ({} each), transparent: {}",
        bytes(machine.memory_bytes_usable()),
        bytes(memory.total_bytes),
        memory.huge_pages_free,
        memory.huge_pages_total,
        bytes(memory.huge_page_bytes),
        if memory.huge_pages_transparent.is_empty() {
            "no"
        } else {
            &memory.huge_pages_transparent
        }
    )?;
    storage_line(out, "log", &machine.log)?;
    storage_line(out, "data", &machine.data)
}

fn storage_line(out: &mut String, name: &str, storage: &Storage) -> std::fmt::Result {
    write!(out, "  {name:<9} {} ({})", storage.path.display(), storage.filesystem)?;
    let Some(device) = &storage.device else { return writeln!(out, " on no block device") };
    writeln!(
        out,
        " on {}, {}; blocks {}/{}; cache {}{}{}",
        device.name,
        bytes(device.total_bytes),
        device.logical_block_bytes,
        device.physical_block_bytes,
        if device.write_back { "write-back" } else { "write-through" },
        if device.fua { ", FUA" } else { ", no FUA" },
        if device.rotational { ", rotational" } else { "" }
    )
}

fn plan_lines(out: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(out, "Plan")?;
    for role in Role::ALL {
        let cpus = plan.cpus_with(role);
        let threads = plan.threads.iter().filter(|thread| thread.roles.contains(role)).count();
        let (count, cpus) = (cpus.len(), list::format(cpus));
        writeln!(out, "  {role:<13} {count:>3} CPUs ({cpus}), {threads} threads")?;
    }
    let (shards, most) = (plan.shards(), plan.partitions_per_shard_max());
    writeln!(
        out,
        "  shards        {shards:>3}, each with up to {most} of {} partitions",
        plan.partitions
    )?;
    for reason in &plan.reasons {
        writeln!(out, "  {reason}")?;
    }
    Ok(())
}

fn findings_lines(out: &mut String, findings: &[Finding]) -> std::fmt::Result {
    if findings.is_empty() {
        return writeln!(out, "Nothing is missing for the reference machine.");
    }
    writeln!(out, "Missing for the reference machine")?;
    for finding in findings {
        let mark = if finding.fatal { "!" } else { "-" };
        writeln!(out, "  {mark} {}", finding.text)?;
        if let Some(command) = &finding.command {
            writeln!(out, "      {command}")?;
        }
    }
    Ok(())
}

/// A number of bytes in the largest unit that leaves at least one before the point.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if count >= size {
            return format!("{:.1} {unit}", count as f64 / size as f64);
        }
    }
    format!("{count} B")
}
