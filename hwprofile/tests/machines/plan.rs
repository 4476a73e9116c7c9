//! Plans for recorded and for random machines.

use crate::recorded::{Recorded, SMALL, reference, threaded};
use proptest::prelude::*;
use spillway_hwprofile::plan::{shards_tight, summary};
use spillway_hwprofile::role::Role;
use spillway_hwprofile::{Machine, Plan, PlanError, PlanOptions, plan, report};
use std::collections::BTreeSet;

const OPTIONS: PlanOptions = PlanOptions { partitions: 256, shards: None };

fn counts(plan: &Plan) -> [usize; 4] {
    Role::ALL.map(|role| plan.cpus_with(role).len())
}

#[test]
fn two_cpus_share_one_thread_for_log_and_shard() {
    let machine = Recorded::new(SMALL).discover("/a", "/b");
    let plan = plan(&machine, OPTIONS).expect("a plan");
    assert_eq!(plan.shards(), 1);
    let thread = plan.threads[0];
    assert!(thread.roles.contains(Role::Log) && thread.roles.contains(Role::Shard));
    assert!(plan.threads.iter().all(|thread| thread.cpu.is_none()), "nothing is pinned");
    assert_eq!(plan.cpus.len(), 2);
}

#[test]
fn the_reference_machine() {
    let machine = reference().discover("/srv/log", "/srv/data");
    // With 1,024 partitions every one of the 25 CPUs that are left shortens the longest share.
    let plan = plan(&machine, PlanOptions { partitions: 1024, shards: None }).expect("a plan");
    assert_eq!(counts(&plan), [2, 1, 25, 4]);
    assert_eq!(plan.shards(), 25);
    let log = plan.cpus_with(Role::Log)[0];
    assert_eq!(machine.cpus[log as usize].node, 1, "beside the log disk");
    let nodes = |role| -> Vec<u32> {
        plan.cpus_with(role).iter().map(|cpu| machine.cpus[*cpu as usize].node).collect()
    };
    assert_eq!(nodes(Role::Housekeeping), [0, 1]);
    assert_eq!(nodes(Role::Background), [0, 0, 1, 1]);
    assert!(plan.threads.iter().all(|thread| thread.cpu.is_some()));
}

#[test]
fn a_cpu_that_shortens_nothing_is_no_shard() {
    let machine = reference().discover("/srv/log", "/srv/data");
    let plan = plan(&machine, OPTIONS).expect("a plan");
    // 256 partitions on 25 shards: 11 on the fullest; on 24 just the same.
    assert_eq!(counts(&plan), [2, 1, 24, 5]);
    assert_eq!(plan.partitions_per_shard_max(), 11);
    assert!(plan.reasons.iter().any(|reason| reason.contains("24 shards")), "{:?}", plan.reasons);
}

#[test]
fn the_logs_sibling_keeps_house() {
    let machine = threaded().discover("/a", "/b");
    let plan = plan(&machine, OPTIONS).expect("a plan");
    let log = plan.cpus_with(Role::Log)[0];
    let keepers: BTreeSet<u32> = plan.cpus_with(Role::Housekeeping).into_iter().collect();
    let siblings = &machine.cpus[log as usize].siblings;
    assert!(siblings.iter().all(|cpu| *cpu == log || keepers.contains(cpu)), "{}", summary(&plan));
}

#[test]
fn a_quota_unpins() {
    let mut machine = reference().discover("/srv/log", "/srv/data");
    machine.limits.cpus = Some(4.5);
    let four = plan(&machine, OPTIONS).expect("a plan");
    assert!(four.threads.iter().all(|thread| thread.cpu.is_none()));
    assert_eq!(four.shards(), 2);
    machine.limits.cpus = Some(0.5);
    assert_eq!(plan(&machine, OPTIONS).expect("a plan").shards(), 1);
    machine.limits.cpus = Some(64.0);
    assert_eq!(plan(&machine, OPTIONS).expect("a plan").shards(), 24);
}

#[test]
fn shards_as_asked_for() {
    let asked = |shards| PlanOptions { partitions: 256, shards: Some(shards) };
    let small = Recorded::new(SMALL).discover("/a", "/b");
    assert_eq!(plan(&small, asked(2)).expect("a plan").shards(), 2);
    let large = reference().discover("/srv/log", "/srv/data");
    let few = plan(&large, asked(8)).expect("a plan");
    assert_eq!(counts(&few), [2, 1, 8, 21]);
    let many = plan(&large, asked(64)).expect("a plan");
    assert_eq!(many.shards(), 64);
    let pinned = many.threads.iter().filter(|t| t.shard.is_some() && t.cpu.is_some()).count();
    assert_eq!(pinned, 0, "no two shards are pinned to one CPU");
    let error = PlanError::Shards { shards: 257, partitions: 256 };
    assert_eq!(plan(&large, asked(257)), Err(error));
    assert_eq!(plan(&large, asked(0)), Err(PlanError::Shards { shards: 0, partitions: 256 }));
    let none = PlanOptions { partitions: 0, shards: None };
    assert_eq!(plan(&large, none), Err(PlanError::NoPartition));
}

#[test]
fn no_cpu_no_plan() {
    let mut machine = Recorded::new(SMALL).discover("/a", "/b");
    for cpu in &mut machine.cpus {
        cpu.allowed = false;
    }
    assert_eq!(plan(&machine, OPTIONS), Err(PlanError::NoCpu));
}

#[test]
fn the_report_says_what_is_missing_and_what_mends_it() {
    let machine = Recorded::new(SMALL).discover("/a", "/b");
    let text = report(&machine, &plan(&machine, OPTIONS).expect("a plan"));
    for words in
        ["vda", "share a disk", "2 CPUs are allowed", "ulimit -l", "no FUA", "shards          1"]
    {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
    let machine = reference().discover("/srv/log", "/srv/data");
    let text = report(&machine, &plan(&machine, OPTIONS).expect("a plan"));
    assert!(text.contains("Nothing is missing"), "{text}");
    let mut machine = machine;
    machine.io_uring_disabled = 2;
    let text = report(&machine, &plan(&machine, OPTIONS).expect("a plan"));
    assert!(text.contains("! io_uring is switched off"), "{text}");
}

/// Any machine: up to 96 CPUs on up to 4 nodes, with or without sibling threads, some CPUs
/// offline, some not allowed, with or without a quota.
fn machines() -> impl Strategy<Value = Machine> {
    let cpu = (any::<u8>(), 0u32..4);
    let template_machine = Recorded::new(SMALL).discover("/a", "/b");
    (
        proptest::collection::vec(cpu, 1..96),
        any::<bool>(),
        proptest::option::of(0.1f64..80.0),
        proptest::option::of(0u32..6),
    )
        .prop_map(move |(cpus, threaded, quota, log_node)| {
            let mut machine = template_machine.clone();
            let template = machine.cpus[0].clone();
            let count = cpus.len() as u32;
            machine.cpus = (0u32..)
                .zip(cpus)
                .map(|(id, (dice, node))| {
                    let mut cpu = template.clone();
                    (cpu.id, cpu.node) = (id, node);
                    cpu.online = dice % 8 != 0;
                    cpu.allowed = cpu.online && dice % 8 > 1;
                    cpu.isolated = dice > 200;
                    cpu.siblings = BTreeSet::from([id]);
                    if threaded && (id ^ 1) < count {
                        cpu.siblings.insert(id ^ 1);
                    }
                    cpu
                })
                .collect();
            machine.limits.cpus = quota;
            machine.log.device.as_mut().expect("recorded").node = log_node;
            machine
        })
}

proptest! {
    #[test]
    fn every_plan_holds(
        machine in machines(),
        partitions in 1u32..1025,
        shards in proptest::option::of(1u32..1025),
    ) {
        let allowed: Vec<u32> = machine.cpus_allowed().map(|cpu| cpu.id).collect();
        let result = plan(&machine, PlanOptions { partitions, shards });
        if allowed.is_empty() || shards.is_some_and(|shards| shards > partitions) {
            prop_assert!(result.is_err());
            return Ok(());
        }
        let plan = result.expect("there are CPUs and partitions");
        let planned: Vec<u32> = plan.cpus.iter().map(|cpu| cpu.cpu).collect();
        prop_assert_eq!(&planned, &allowed, "every allowed CPU once, no other");
        prop_assert!(plan.cpus.iter().all(|cpu| !cpu.roles.is_empty()));
        for role in Role::ALL {
            prop_assert!(!plan.cpus_with(role).is_empty(), "{} has a CPU", role);
        }
        let logs = plan.threads.iter().filter(|t| t.roles.contains(Role::Log)).count();
        prop_assert_eq!(logs, 1, "one thread owns the log");
        prop_assert!(plan.threads.iter().any(|t| t.roles.contains(Role::Background)));
        let numbers: Vec<u32> = plan.threads.iter().filter_map(|t| t.shard).collect();
        prop_assert_eq!(numbers, (0..plan.shards()).collect::<Vec<_>>());
        prop_assert!(plan.shards() >= 1 && plan.shards() <= partitions);
        prop_assert!(shards.is_none_or(|shards| shards == plan.shards()));
        let mut homes = BTreeSet::new();
        for thread in &plan.threads {
            prop_assert_eq!(thread.shard.is_some(), thread.roles.contains(Role::Shard));
            let Some(cpu) = thread.cpu else { continue };
            prop_assert!(homes.insert(cpu), "two threads are pinned to CPU {}", cpu);
            let home = plan.cpus.iter().find(|c| c.cpu == cpu).expect("allowed");
            let mut roles = Role::ALL.into_iter().filter(|role| thread.roles.contains(*role));
            let stays = roles.all(|role| home.roles.contains(role));
            prop_assert!(stays, "the thread's roles are its CPU's");
        }
        prop_assert!(!report(&machine, &plan).is_empty());
    }

    #[test]
    fn tight_means_that_no_core_is_wasted(partitions in 1u32..1025, available in 1u32..128) {
        let shards = shards_tight(partitions, available);
        let fullest = partitions.div_ceil(shards);
        prop_assert!(shards <= available && shards <= partitions);
        prop_assert_eq!(fullest, partitions.div_ceil(available.min(partitions)), "as good as all");
        prop_assert!(shards == 1 || partitions.div_ceil(shards - 1) > fullest, "one less is worse");
    }
}
