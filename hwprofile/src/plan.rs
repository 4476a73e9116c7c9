//! The placement plan: which CPU plays which role, and which threads run there.
//!
//! The plan is the same for the same machine and options. It orders CPUs by what their neighbours
//! do to them: the log core stands alone on its physical core and on the log disk's node,
//! interrupts stay on the first CPUs, background work is spread over the nodes, shards get the
//! rest.

use crate::cpu::Cpu;
use crate::list;
use crate::machine::Machine;
use crate::role::{Role, RoleSet};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// At this many CPUs or fewer no CPU is given away: threads float, so that the kernel can move
/// them aside for interrupts and for the load generator beside them.
pub const CPUS_SHARED_MAX: usize = 2;
/// From this many CPUs on housekeeping and background work no longer share one.
const CPUS_SEPARATE_MIN: usize = 8;
/// One housekeeping CPU for so many CPUs: 2 of 32.
const CPUS_PER_HOUSEKEEPING: usize = 16;
/// One background CPU for so many CPUs: 4 of 32.
const CPUS_PER_BACKGROUND: usize = 8;

/// What the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanOptions {
    /// Partitions of the node, fixed at format.
    pub partitions: u32,
    /// Number of shards; chosen by the plan if absent.
    pub shards: Option<u32>,
}

/// One allowed CPU and its roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuRoles {
    /// The CPU.
    pub cpu: u32,
    /// Its NUMA node.
    pub node: u32,
    /// Its roles: never none.
    pub roles: RoleSet,
}

/// One thread to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread {
    /// What it does.
    pub roles: RoleSet,
    /// The shard that it runs, if it runs one.
    pub shard: Option<u32>,
    /// The CPU to pin it to; `None` leaves it to the kernel.
    pub cpu: Option<u32>,
    /// The node to take its memory from; `None` leaves it to the kernel.
    pub node: Option<u32>,
}

/// Roles on CPUs and threads with roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Every allowed CPU once, by number.
    pub cpus: Vec<CpuRoles>,
    /// Threads; shards are numbered from 0 without a gap.
    pub threads: Vec<Thread>,
    /// Partitions that the shards divide among themselves.
    pub partitions: u32,
    /// Why it is so, in sentences.
    pub reasons: Vec<String>,
}

impl Plan {
    /// Number of shards: at least 1.
    pub fn shards(&self) -> u32 {
        self.threads.iter().filter(|thread| thread.shard.is_some()).count() as u32
    }

    /// Partitions of the fullest shard.
    pub fn partitions_per_shard_max(&self) -> u32 {
        self.partitions.div_ceil(self.shards())
    }

    /// CPUs that have the role, by number.
    pub fn cpus_with(&self, role: Role) -> Vec<u32> {
        self.cpus.iter().filter(|c| c.roles.contains(role)).map(|c| c.cpu).collect()
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// The affinity mask is empty.
    #[error("no CPU is both online and allowed; look at the mask: taskset -cp $$")]
    NoCpu,
    /// Nothing to divide.
    #[error("a node has at least one partition")]
    NoPartition,
    /// A shard without a partition would own nothing.
    #[error("{shards} shards cannot divide {partitions} partitions; ask for 1 to {partitions}")]
    Shards {
        /// Shards asked for.
        shards: u32,
        /// Partitions of the node.
        partitions: u32,
    },
}

/// Plans roles and threads for a machine.
pub fn plan(machine: &Machine, options: PlanOptions) -> Result<Plan, PlanError> {
    let PlanOptions { partitions, shards } = options;
    if partitions == 0 {
        return Err(PlanError::NoPartition);
    }
    if let Some(shards) = shards.filter(|shards| *shards == 0 || *shards > partitions) {
        return Err(PlanError::Shards { shards, partitions });
    }
    let allowed: Vec<&Cpu> = machine.cpus_allowed().collect();
    if allowed.is_empty() {
        return Err(PlanError::NoCpu);
    }
    let quota = machine.limits.cpus.map_or(usize::MAX, |cpus| (cpus.floor() as usize).max(1));
    let plan = if allowed.len() <= CPUS_SHARED_MAX || quota < allowed.len() {
        floating(&allowed, quota, options)
    } else {
        pinned(machine, &allowed, options)
    };
    assert_eq!(plan.cpus.len(), allowed.len(), "every allowed CPU has its roles");
    assert!(plan.shards() >= 1 && plan.shards() <= partitions, "every shard owns a partition");
    Ok(plan)
}

/// The smallest number of shards whose fullest one is no fuller than with `available` shards:
/// one more core would shorten nothing.
pub fn shards_tight(partitions: u32, available: u32) -> u32 {
    assert!(
        partitions > 0 && available > 0,
        "there is something to divide and somebody to take it"
    );
    partitions.div_ceil(partitions.div_ceil(available))
}

/// How many CPUs go to whom.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    housekeeping: usize,
    background: usize,
    shard: usize,
}

/// Divides `cpus` CPUs. The log takes one of them; with few, background work shares the
/// housekeeping CPU and has none of its own.
fn counts(cpus: usize) -> Counts {
    assert!(cpus > CPUS_SHARED_MAX, "fewer are not divided");
    if cpus < CPUS_SEPARATE_MIN {
        return Counts { housekeeping: 1, background: 0, shard: cpus - 2 };
    }
    let housekeeping = (cpus / CPUS_PER_HOUSEKEEPING).max(1);
    let background = (cpus / CPUS_PER_BACKGROUND).max(1);
    Counts { housekeeping, background, shard: cpus - 1 - housekeeping - background }
}

/// Threads that the kernel places: with two CPUs or fewer, or under a quota of CPU time, where a
/// pinned thread that is out of quota stands still while its CPU is idle.
fn floating(allowed: &[&Cpu], quota: usize, options: PlanOptions) -> Plan {
    let PlanOptions { partitions, shards } = options;
    let mut reasons = Vec::new();
    let cpus = allowed.len().min(quota);
    if quota < allowed.len() {
        reasons.push(format!(
            "The control group grants time for {quota} of {} allowed CPUs: threads are not pinned.",
            allowed.len()
        ));
    }
    let together = cpus <= CPUS_SHARED_MAX;
    let (shards_chosen, background) = if together {
        reasons.push(format!(
            "With {cpus} CPU(s) one thread carries log and shard: handing over costs nothing then, \
             and clients and interrupts have room."
        ));
        (1, 1)
    } else {
        let counts = counts(cpus);
        (shards_tight(partitions, counts.shard as u32), counts.background.max(1))
    };
    let count = choose(shards, shards_chosen, &mut reasons);
    let mut threads = Vec::new();
    let thread = |roles, shard| Thread { roles: RoleSet::of(roles), shard, cpu: None, node: None };
    if together {
        threads.push(thread(&[Role::Log, Role::Shard], Some(0)));
    } else {
        threads.push(thread(&[Role::Log], None));
        threads.push(thread(&[Role::Shard], Some(0)));
    }
    threads.extend((1..count).map(|shard| thread(&[Role::Shard], Some(shard))));
    threads.extend((0..background).map(|_| thread(&[Role::Background], None)));
    let all = RoleSet::of(&Role::ALL);
    let cpus = allowed.iter().map(|c| CpuRoles { cpu: c.id, node: c.node, roles: all }).collect();
    Plan { cpus, threads, partitions, reasons }
}

fn choose(asked: Option<u32>, chosen: u32, reasons: &mut Vec<String>) -> u32 {
    if let Some(asked) = asked.filter(|asked| *asked != chosen) {
        reasons.push(format!("{asked} shards as asked for; the plan's own choice is {chosen}."));
    }
    asked.unwrap_or(chosen)
}

/// One role per CPU, and every thread on a CPU of its own.
fn pinned(machine: &Machine, allowed: &[&Cpu], options: PlanOptions) -> Plan {
    let PlanOptions { partitions, shards } = options;
    let counts = counts(allowed.len());
    let nodes = allowed.iter().map(|cpu| (cpu.id, cpu.node)).collect();
    let (free, taken, reasons) = (allowed.to_vec(), BTreeMap::new(), Vec::new());
    let mut draft = Draft { free, taken, nodes, reasons };
    draft.place_housekeeping_and_log(machine, &counts);
    for _ in 0..counts.background {
        draft.take_spread(Role::Background);
    }

    let available = draft.free.len() as u32;
    assert!(available > 0, "counts leave a CPU for a shard");
    let chosen = shards_tight(partitions, available);
    if chosen < available {
        draft.reasons.push(format!(
            "{chosen} shards: with {available}, the fullest would own {} of {partitions} \
             partitions just the same. The CPUs left over do background work.",
            partitions.div_ceil(chosen)
        ));
    }
    let count = choose(shards, chosen, &mut draft.reasons);
    while draft.free.len() > count as usize {
        draft.take_spread(Role::Background);
    }
    let homes: Vec<&Cpu> = draft.free.clone();
    for cpu in &homes {
        draft.taken.insert(cpu.id, RoleSet::of(&[Role::Shard]));
    }
    let crowded = count as usize > homes.len();
    if crowded {
        draft.reasons.push(format!(
            "{count} shards on {} CPUs: they float, because two busy loops pinned to one CPU \
             wait for each other.",
            homes.len()
        ));
    }
    let threads = threads(allowed, &draft.taken, &homes, count, crowded);
    let cpus = allowed
        .iter()
        .map(|c| CpuRoles { cpu: c.id, node: c.node, roles: draft.taken[&c.id] })
        .collect();
    Plan { cpus, threads, partitions, reasons: draft.reasons }
}

fn threads(
    allowed: &[&Cpu],
    taken: &BTreeMap<u32, RoleSet>,
    homes: &[&Cpu],
    shards: u32,
    crowded: bool,
) -> Vec<Thread> {
    let on = |cpu: &Cpu, roles: &[Role], shard| Thread {
        roles: RoleSet::of(roles),
        shard,
        cpu: Some(cpu.id),
        node: Some(cpu.node),
    };
    let with = |role| allowed.iter().filter(move |cpu| taken[&cpu.id].contains(role));
    let mut threads: Vec<Thread> = with(Role::Log).map(|cpu| on(cpu, &[Role::Log], None)).collect();
    for shard in 0..shards {
        let home = homes[shard as usize % homes.len()];
        let mut thread = on(home, &[Role::Shard], Some(shard));
        if crowded {
            thread.cpu = None;
        }
        threads.push(thread);
    }
    threads.extend(with(Role::Background).map(|cpu| on(cpu, &[Role::Background], None)));
    threads
}

/// CPUs being given away.
struct Draft<'a> {
    free: Vec<&'a Cpu>,
    taken: BTreeMap<u32, RoleSet>,
    /// The node of every CPU.
    nodes: BTreeMap<u32, u32>,
    reasons: Vec<String>,
}

impl<'a> Draft<'a> {
    fn place_housekeeping_and_log(&mut self, machine: &Machine, counts: &Counts) {
        // Interrupts of devices that nobody steered come to the first CPU.
        let keeper_roles = match counts.background {
            0 => [Role::Housekeeping, Role::Background].as_slice(),
            _ => &[Role::Housekeeping],
        };
        let keeper = self.take(keeper_roles, |cpu| (cpu.isolated, cpu.id));
        if counts.background == 0 {
            self.reasons.push(format!(
                "CPU {} keeps house and does background work: {} CPUs are too few for more.",
                keeper.id,
                machine.cpus_allowed().count()
            ));
        }
        let disk_node = machine.log.device.as_ref().and_then(|device| device.node);
        let disk_node = disk_node.filter(|node| machine.nodes_allowed().contains(node));
        let log_node = disk_node.unwrap_or(keeper.node);
        let log = self.take(&[Role::Log], |cpu| {
            (cpu.node != log_node, cpu.siblings.contains(&keeper.id), cpu.id)
        });
        if disk_node == Some(log.node) && machine.nodes_allowed().len() > 1 {
            self.reasons.push(format!(
                "The log runs on CPU {}: the log disk hangs on node {}.",
                log.id, log.node
            ));
        }
        let mut keepers = 1;
        // A sibling shares execution units and first-level cache with the log: it gets the role
        // that is idle most of the time. Small machines cannot afford that.
        let separate = counts.background > 0;
        while let Some(sibling) =
            self.free.iter().find(|cpu| separate && log.siblings.contains(&cpu.id)).map(|c| c.id)
        {
            if self.free.len() <= counts.background + 1 {
                break;
            }
            self.take(&[Role::Housekeeping], |cpu| cpu.id != sibling);
            keepers += 1;
            self.reasons.push(format!(
                "CPU {sibling} keeps house: it shares a physical core with the log's CPU {}.",
                log.id
            ));
        }
        for _ in keepers..counts.housekeeping {
            let keepers_on = self.count_by_node(Role::Housekeeping);
            self.take(&[Role::Housekeeping], |cpu| {
                (keepers_on.get(&cpu.node).copied().unwrap_or(0), cpu.isolated, cpu.id)
            });
        }
    }

    /// Takes the last CPU of the node that has the fewest of this role.
    fn take_spread(&mut self, role: Role) {
        let on = self.count_by_node(role);
        self.take(&[role], |cpu| (on.get(&cpu.node).copied().unwrap_or(0), Reverse(cpu.id)));
    }

    fn take<K: Ord>(&mut self, roles: &[Role], key: impl Fn(&Cpu) -> K) -> &'a Cpu {
        let best = (0..self.free.len()).min_by_key(|at| key(self.free[*at]));
        let cpu = self.free.remove(best.expect("counts add up to the number of CPUs"));
        self.taken.insert(cpu.id, RoleSet::of(roles));
        cpu
    }

    fn count_by_node(&self, role: Role) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        for (id, _) in self.taken.iter().filter(|(_, roles)| roles.contains(role)) {
            *counts.entry(self.nodes[id]).or_default() += 1;
        }
        counts
    }
}

/// The CPUs of each role in one line, for logs.
pub fn summary(plan: &Plan) -> String {
    let parts: Vec<String> = Role::ALL
        .iter()
        .map(|role| format!("{role} {}", list::format(plan.cpus_with(*role))))
        .collect();
    format!("CPUs: {}; {} shards", parts.join(", "), plan.shards())
}
