//! Random runs of whole clusters. Everything follows from the seed.

use super::world::{MILLI, World};
use crate::log::testing::SeedReport;
use crate::quorum::ReplicaCommand;

/// One fault, or the end of one.
fn disturb(world: &mut World, count: u16) {
    let node = 1 + world.draw.below(usize::from(count)) as u16;
    let other = 1 + (node - 1 + 1 + world.draw.below(usize::from(count) - 1) as u16) % count;
    match world.draw.below(16) {
        0 | 1 if world.is_up(node) => world.crash(node),
        2..=4 => {
            for id in 1..=count {
                if !world.is_up(id) {
                    world.start(id);
                }
            }
        }
        5 => world.cut(node, other),
        6 => {
            world.net.cut.insert((node, other));
        }
        7 | 8 => world.net.cut.clear(),
        9 => world.net.loss = world.draw.below(200),
        10 => world.net.repeat = world.draw.below(200),
        11 => {
            world.net.ordered = !world.net.ordered;
            world.net.jitter_nanos = MILLI / 4 + world.draw.next() % (20 * MILLI);
        }
        12 => {
            let slow = MILLI / 10 + world.draw.next() % (40 * MILLI);
            world.disk_nanos.insert(node, slow);
        }
        13 if world.is_up(node) => {
            if !world.paused.remove(&node) {
                world.paused.insert(node);
            } else {
                world.resume(node);
            }
        }
        14 => {
            if let Some(leader) = world.leader() {
                world.command(leader, ReplicaCommand::Transfer { to: None });
            }
        }
        15 if world.is_up(node) && world.is_up(other) => world.reconnect(node, other),
        _ => world.disk_nanos.clear(),
    }
}

fn run(seed: u64, count: u16, steps: usize) -> (u64, usize, usize) {
    let _report = SeedReport(seed);
    let mut world = World::formatted(seed, count);
    world.items_max = 700;
    if seed.is_multiple_of(3) {
        world.apply_once_in = 40;
        world.shard_nanos = 100 * MILLI;
    }
    if seed.is_multiple_of(2) {
        for node in world.nodes.values_mut() {
            node.tune = |options| options.cache_bytes_max = 8 << 10;
        }
    }
    if seed.is_multiple_of(5) {
        for node in world.nodes.values_mut() {
            node.tune = |options| {
                options.cache_bytes_max = 8 << 10;
                options.inflight_bytes_max = 6 << 10;
            };
        }
    }
    for id in 1..=count {
        world.start(id);
    }
    for _ in 0..steps {
        let nanos = 10 * MILLI + world.draw.next() % (600 * MILLI);
        world.run(nanos);
        disturb(&mut world, count);
    }
    world.check_end();
    (world.trace, world.oracle.acked.len(), world.oracle.leaders())
}

#[test]
fn clusters_of_three_survive() {
    let (mut acked, mut leaders) = (0, 0);
    for seed in 1..=60 {
        let (_, a, l) = run(seed, 3, 60);
        acked += a;
        leaders += l;
    }
    println!("3 nodes: {acked} items answered, {leaders} leaders");
    assert!(acked > 60 * 50 && leaders > 60 * 3, "{acked} items, {leaders} leaders");
}

#[test]
fn clusters_of_five_survive() {
    let (mut acked, mut leaders) = (0, 0);
    for seed in 1001..=1025 {
        let (_, a, l) = run(seed, 5, 60);
        acked += a;
        leaders += l;
    }
    println!("5 nodes: {acked} items answered, {leaders} leaders");
    assert!(acked > 25 * 50 && leaders > 25 * 3, "{acked} items, {leaders} leaders");
}

/// T7: with timeouts of our own, the same seed gives the same run, to the last message.
#[test]
fn t7_equal_seeds_give_equal_runs() {
    for seed in [7, 8, 9] {
        let (first, second) = (run(seed, 5, 40), run(seed, 5, 40));
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(run(7, 5, 40).0, run(8, 5, 40).0);
}

/// More runs: `QUORUM_RUNS` of them, 4 unless it says otherwise, from `QUORUM_SEED` on. A long run
/// takes thousands.
#[test]
fn many_clusters_survive() {
    let number = |name: &str, usual: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
    };
    let (first, runs) = (number("QUORUM_SEED", 10_000), number("QUORUM_RUNS", 4));
    for seed in first..first + runs {
        let count = if seed.is_multiple_of(4) { 5 } else { 3 };
        run(seed, count, 80);
    }
    println!("seeds {first}..{}", first + runs);
}
