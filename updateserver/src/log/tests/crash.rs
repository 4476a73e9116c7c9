//! Power losses at any moment, over many boots on one disk.

use super::harness::Node;
use crate::log::geometry::Geometry;
use crate::log::recovery::Verdict;
use crate::log::testing::{Draw, SeedReport, small_geometry};

pub fn draw_geometry(draw: &mut Draw) -> Geometry {
    let tiny = Geometry { segment_bytes: 64 << 10, batch_bytes_max: 8 << 10, ..small_geometry() };
    match draw.below(8) {
        0 => small_geometry(),
        1 => Geometry { block_bytes: 4096, batch_bytes_max: 40 << 10, ..small_geometry() },
        2 => Geometry { block_bytes: 1024, batch_bytes_max: 40 << 10, ..small_geometry() },
        3 => Geometry { segments_count: 6, ..tiny },
        _ => tiny,
    }
}

/// What a run over many seeds met, so that a test can tell that it tested something.
#[derive(Debug, Default)]
struct Met {
    clean: usize,
    torn: usize,
    full: usize,
    later: usize,
    wrapped: usize,
    superseded: usize,
    truncations: usize,
}

fn run(seed: u64, met: &mut Met) {
    let _report = SeedReport(seed);
    let mut draw = Draw(seed);
    let mut node = Node::new(draw_geometry(&mut draw), seed);
    for _ in 0..draw.range(2, 8) {
        let (_, recovered) = node.scan().expect("a crash alone damages nothing");
        match recovered.verdict {
            Verdict::Clean => met.clean += 1,
            Verdict::TailTorn { .. } => met.torn += 1,
        }
        let Some(mut boot) = node.boot().expect("a crash alone damages nothing") else {
            continue;
        };
        let events = draw.pick(&[0, 1, 3, 10, 40, 100, 300]);
        for _ in 0..draw.below(events + 1) {
            node.event(&mut boot);
        }
        met.full += boot.log_full;
        met.later += boot.later;
        met.superseded += boot.superseded;
        if draw.once_in(5) {
            node.shutdown(&mut boot);
            let (_, recovered) = node.scan().expect("a clean end is readable");
            assert_eq!(recovered.verdict, Verdict::Clean);
        } else {
            node.crash();
        }
    }
    let (superblock, _) = node.scan().expect("a crash alone damages nothing");
    let count = u64::from(superblock.geometry.segments_count);
    met.truncations += node.truncations;
    met.wrapped += usize::from(superblock.floor.ordinal >= count);
}

#[test]
fn acknowledged_entries_survive_crashes() {
    // More for a change of the format or of the rules of recovery: 200,000 take ten minutes.
    let seeds = std::env::var("SPILLWAY_CRASH_SEEDS").ok().and_then(|text| text.parse().ok());
    let mut met = Met::default();
    (0..seeds.unwrap_or(2000)).for_each(|seed| run(seed, &mut met));
    println!("{met:?}");
    assert!(met.torn > 1000 && met.clean > 500, "{met:?}");
    assert!(met.full > 100 && met.later > 100, "{met:?}");
    assert!(met.wrapped > 50 && met.superseded > 1000 && met.truncations > 1000, "{met:?}");
}

/// A disk that tears within a block breaks the assumption that the block is its atomic unit. Then
/// a power loss may look like damage, but it must never cost anything acknowledged.
#[test]
fn a_disk_that_tears_blocks_is_refused_at_worst() {
    let (mut refused, mut read) = (0, 0);
    for seed in 0..400 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0x7ea5);
        let geometry =
            Geometry { block_bytes: 4096, batch_bytes_max: 40 << 10, ..small_geometry() };
        let mut node = Node::new(geometry, seed);
        for _ in 0..3 {
            node.disk.tear = 4096;
            let Some(mut boot) = node.boot().expect("the last crash was read") else { continue };
            (0..draw.below(40)).for_each(|_| node.event(&mut boot));
            node.disk.tear = 512;
            node.crash();
            match node.scan() {
                Ok((_, recovered)) => {
                    node.is_all_there(&recovered);
                    read += 1;
                }
                Err(_) => {
                    refused += 1;
                    break;
                }
            }
        }
    }
    assert!(refused > 50 && read > 50, "{refused} refused, {read} read");
}
