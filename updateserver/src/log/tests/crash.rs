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

#[test]
fn acknowledged_entries_survive_crashes() {
    let (mut torn, mut clean, mut full, mut later, mut wraps) = (0, 0, 0, 0, 0);
    for seed in 0..1500 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed);
        let mut node = Node::new(draw_geometry(&mut draw), seed);
        for _ in 0..draw.range(2, 8) {
            let (_, recovered) = node.scan().expect("a crash alone damages nothing");
            match recovered.verdict {
                Verdict::Clean => clean += 1,
                Verdict::TailTorn { .. } => torn += 1,
            }
            let Some(mut boot) = node.boot().expect("a crash alone damages nothing") else {
                continue;
            };
            let events = draw.pick(&[0, 1, 3, 10, 40, 100]);
            for _ in 0..draw.below(events + 1) {
                node.event(&mut boot);
            }
            full += boot.log_full;
            later += boot.later;
            if draw.once_in(5) {
                node.shutdown(&mut boot);
                let full_log = boot.writer.space();
                let (_, recovered) = node.scan().expect("a clean end is readable");
                assert_eq!(recovered.verdict, Verdict::Clean, "{full_log:?}");
            } else {
                node.crash();
            }
        }
        let (superblock, _) = node.scan().expect("a crash alone damages nothing");
        let wrapped = superblock.floor.ordinal >= u64::from(superblock.geometry.segments_count);
        wraps += usize::from(wrapped);
    }
    println!("{clean} clean, {torn} torn, {full} log full, {later} later, {wraps} wrapped");
    assert!(torn > 1000 && clean > 500, "{torn} torn, {clean} clean");
    assert!(full > 100 && later > 100, "{full} log full, {later} later");
    assert!(wraps > 10, "{wraps} wrapped");
}
