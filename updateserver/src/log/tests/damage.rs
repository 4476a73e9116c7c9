//! Disks that lie: flipped bits, lost writes, stale files, unreadable sectors.

use super::crash::draw_geometry;
use super::harness::{Kept, Node};
use crate::log::damage::{DamageReason, LogDamaged};
use crate::log::testing::{Draw, EIO, SeedReport};

/// A node after a few boots; the last one ended by a crash or, sometimes, cleanly.
pub(super) fn lived(seed: u64, draw: &mut Draw) -> Node {
    let mut node = Node::new(draw_geometry(draw), seed);
    for _ in 0..draw.range(1, 4) {
        let Some(mut boot) = node.boot().expect("no damage yet") else { continue };
        for _ in 0..draw.range(5, 60) {
            node.event(&mut boot);
        }
        if draw.once_in(3) {
            node.shutdown(&mut boot);
        } else {
            node.crash();
        }
    }
    node
}

/// Frames that are on the medium, hold an acknowledged entry, and are above the floor.
fn acknowledged(node: &mut Node) -> Vec<(u64, Kept)> {
    let mut frames = acknowledged_frames(node);
    frames.retain(|(_, kept)| kept.is_entry());
    frames
}

/// The same with watermarks.
pub(super) fn acknowledged_frames(node: &mut Node) -> Vec<(u64, Kept)> {
    let (superblock, recovered) = node.scan().expect("no damage yet");
    let end = recovered.position.cursor.chain.sequence;
    let floor = superblock.floor.chain.sequence;
    assert!(end > node.acknowledged, "all of them are there");
    let kept = node.kept.range(floor..end).filter(|(sequence, _)| **sequence <= node.acknowledged);
    kept.map(|(sequence, issued)| (*sequence, issued.clone())).collect()
}

fn flip(node: &mut Node, draw: &mut Draw, issued: &Kept) {
    let bit = draw.below(issued.write.bytes as usize * 8);
    let at = issued.write.offset as usize + bit / 8;
    node.disk.segments[issued.write.segment as usize][at] ^= 1 << (bit % 8);
}

#[test]
fn a_flipped_bit_in_an_acknowledged_frame_is_damage() {
    let mut met = 0;
    for seed in 0..1200 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0xf11b);
        let mut node = lived(seed, &mut draw);
        let frames = acknowledged(&mut node);
        if frames.is_empty() {
            continue;
        }
        // The last frames are the hardest to tell from a torn tail.
        let from = if draw.once_in(2) { frames.len() - 1 } else { 0 };
        let (sequence, issued) = &frames[draw.range(from, frames.len())];
        let segments = node.disk.segments.clone();
        flip(&mut node, &mut draw, issued);
        let damaged = node.scan().expect_err("a flipped bit in an acknowledged frame");
        assert_eq!(damaged.sequence, *sequence, "{damaged}");
        assert_eq!(damaged.lsn_good, node.lsn_before(*sequence), "{damaged}");
        assert_eq!(damaged.segment, issued.write.segment);
        met += 1;
        // The scan changed nothing: the repaired disk is readable.
        node.disk.segments = segments;
        node.scan().expect("the damage is gone");
    }
    assert!(met > 1000, "{met} frames damaged");
}

#[test]
fn flipped_bits_anywhere_never_give_wrong_data() {
    let (mut refused, mut read) = (0, 0);
    for seed in 0..1500 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0xa11);
        let mut node = lived(seed, &mut draw);
        for _ in 0..draw.range(1, 5) {
            let segment = draw.below(node.disk.segments.len());
            let bytes = &mut node.disk.segments[segment];
            let at = draw.below(bytes.len());
            bytes[at] ^= 1 << draw.below(8);
        }
        // The scan compares what it yields with the model.
        match node.scan() {
            Ok((_, recovered)) => {
                node.is_all_there(&recovered);
                read += 1;
                // And the node goes on: the flips that did no harm never do.
                let Ok(Some(mut boot)) = node.boot() else { continue };
                (0..20).for_each(|_| node.event(&mut boot));
                node.crash();
                if let Ok((_, recovered)) = node.scan() {
                    node.is_all_there(&recovered);
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 200 && read > 200, "{refused} refused, {read} read");
}

/// Takes sectors of a frame back to what they held before.
fn lose(node: &mut Node, draw: &mut Draw, issued: &Kept) {
    let block = node.disk.block;
    let all = draw.once_in(2);
    let sectors = issued.write.bytes as usize / block;
    let sure = draw.below(sectors);
    for index in 0..sectors {
        if all || index == sure || draw.once_in(2) {
            let from = issued.write.offset as usize + index * block;
            let old = &issued.before[index * block..(index + 1) * block];
            node.disk.segments[issued.write.segment as usize][from..from + block]
                .copy_from_slice(old);
        }
    }
}

#[test]
fn a_lost_write_is_found_when_any_later_frame_covers_it() {
    let (mut found, mut blind) = (0, 0);
    for seed in 0..2000 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0x105e);
        let mut node = lived(seed, &mut draw);
        let frames = acknowledged(&mut node);
        if frames.is_empty() {
            continue;
        }
        let from = frames.len().saturating_sub(if draw.once_in(2) { 3 } else { 1000 });
        let (sequence, issued) = &frames[draw.range(from, frames.len())];
        let (superblock, recovered) = node.scan().expect("no damage yet");
        let end = recovered.position.cursor.chain.sequence;
        let covered = *sequence < superblock.tail.sequence
            || node.kept.iter().any(|(later, issued)| {
                *later > *sequence && *later < end && issued.durable_sequence >= *sequence
            });
        let intact = node.disk.segments.clone();
        lose(&mut node, &mut draw, issued);
        if node.disk.segments == intact {
            continue;
        }
        match node.scan() {
            Err(damaged) => {
                assert_eq!(damaged.sequence, *sequence, "{damaged}");
                found += 1;
            }
            Ok((_, recovered)) => {
                assert!(!covered, "a later frame says that {sequence} was durable");
                let end = recovered.position.cursor.chain.sequence;
                assert!(end >= *sequence, "nothing before it is dropped");
                blind += 1;
            }
        }
    }
    // The remainder that rule R21 names: the last writes of a boot with nothing behind them.
    assert!(found > 1000 && blind > 10, "{found} found, {blind} blind");
}

#[test]
fn everything_acknowledged_before_a_quiet_moment_is_covered() {
    let mut met = 0;
    for seed in 0..300 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0x9_1e7);
        let mut node = Node::new(draw_geometry(&mut draw), seed);
        let Some(mut boot) = node.boot().expect("no damage yet") else { continue };
        (0..30).for_each(|_| node.event(&mut boot));
        node.shutdown(&mut boot);
        let frames = acknowledged(&mut node);
        let Some((sequence, issued)) = frames.last() else { continue };
        let intact = node.disk.segments.clone();
        lose(&mut node, &mut draw, issued);
        if !boot.writer.is_quiet() || node.disk.segments == intact {
            // A full log has no room for a watermark; and what held the same before is not lost.
            continue;
        }
        met += 1;
        let damaged = node.scan().expect_err("the watermark covers the last entry");
        assert_eq!(damaged.sequence, *sequence);
    }
    assert!(met > 200, "{met} frames lost");
}

#[test]
fn an_unreadable_sector_is_damage_and_all_before_it_is_read() {
    let mut met = 0;
    for seed in 0..500 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0xe10);
        let mut node = lived(seed, &mut draw);
        let frames = acknowledged(&mut node);
        if frames.is_empty() {
            continue;
        }
        let (sequence, issued) = &frames[draw.below(frames.len())];
        let block = node.disk.block as u64;
        let sector = draw.below((u64::from(issued.write.bytes) / block) as usize) as u64;
        node.disk.unreadable = vec![(issued.write.segment, issued.write.offset + sector * block)];
        let damaged = node.scan().expect_err("an unreadable sector");
        assert_eq!(damaged.reason, DamageReason::ReadFailed { errno: EIO });
        assert_eq!(damaged.sequence, *sequence, "all before it was read: {damaged}");
        assert_eq!(damaged.lsn_good, node.lsn_before(*sequence));
        met += 1;
    }
    assert!(met > 300, "{met}");
}

#[test]
fn an_unreadable_header_or_end_is_damage() {
    for seed in 0..100 {
        let mut draw = Draw(seed);
        let mut node = lived(seed, &mut draw);
        let (_, recovered) = node.scan().expect("no damage yet");
        let cursor = recovered.position.cursor;
        let geometry = node.geometry;
        let place = if draw.once_in(2) || cursor.offset == u64::from(geometry.segment_bytes) {
            (draw.below(node.disk.segments.len()) as u32, 0)
        } else {
            (geometry.slot(cursor.ordinal), cursor.offset)
        };
        node.disk.unreadable = vec![place];
        let damaged = node.scan().expect_err("an unreadable sector");
        assert_eq!(damaged.reason, DamageReason::ReadFailed { errno: EIO });
        assert_eq!((damaged.segment, damaged.offset), place);
    }
}

#[test]
fn files_restored_from_an_old_copy_are_refused() {
    let (mut segments_met, mut superblocks_met) = (0, 0);
    for seed in 0..400 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0x01d);
        let mut node = lived(seed, &mut draw);
        let old = node.disk.clone();
        let Some(mut boot) = node.boot().expect("no damage yet") else { continue };
        let sequence = boot.superblock.tail.sequence;
        (0..60).for_each(|_| node.event(&mut boot));
        node.shutdown(&mut boot);
        let floor = boot.superblock.floor.chain.sequence;
        let new = node.disk.clone();
        let written = node.kept.range(sequence.max(floor)..).next();
        let Some((first, issued)) = written.map(|(first, issued)| (*first, issued.clone())) else {
            continue;
        };
        // A superblock file that does not know the last boot.
        node.disk.superblock = old.superblock.clone();
        let damaged: LogDamaged = node.scan().expect_err("the superblock is old");
        superblocks_met += 1;
        assert!(!damaged.to_string().is_empty());
        // A segment file without what this boot wrote into it.
        node.disk = new;
        let segment = issued.write.segment as usize;
        let mut later = node.kept.range(first..);
        let elsewhere = later.any(|(_, issued)| issued.write.segment as usize != segment);
        if boot.superblock.durable_sequence < first && !elsewhere {
            // All that was written since the superblock is in that one file: nothing knows of it.
            continue;
        }
        node.disk.segments[segment] = old.segments[segment].clone();
        node.scan().expect_err("the segment is old");
        segments_met += 1;
    }
    assert!(segments_met > 200 && superblocks_met > 300, "{segments_met} {superblocks_met}");
}

#[test]
fn a_truncated_segment_file_is_refused() {
    let mut node = lived(3, &mut Draw(3));
    let superblock = node.disk.superblock().expect("readable").superblock;
    let mut scanner = crate::log::recovery::LogScanner::new(&superblock, 0);
    let read = scanner.next_read().expect("a first read");
    let bytes = node.disk.read(&read).expect("readable").to_vec();
    let damaged = scanner.feed(Ok(&bytes[..bytes.len() - 512]), &mut |_| {});
    assert_eq!(damaged.expect_err("short").reason, DamageReason::ReadShort);
    node.scan().expect("the file is whole");
}

#[test]
fn a_damaged_table_stops_only_a_node_that_needs_it() {
    let (mut needed, mut spared) = (0, 0);
    for seed in 0..400 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0x7ab1e);
        let mut node = lived(seed, &mut draw);
        if let Some(mut boot) = node.boot().expect("no damage yet") {
            (0..400).for_each(|_| node.event(&mut boot));
            node.crash();
        }
        let (superblock, recovered) = node.scan().expect("no damage yet");
        let (geometry, ordinal) = (node.geometry, recovered.position.cursor.ordinal);
        let recycled = |ordinal: &u64| geometry.generation(*ordinal) > 1;
        let reach = superblock.floor.ordinal + u64::from(geometry.segments_count);
        let Some(damaged) = (superblock.floor.ordinal..reach).filter(recycled).min_by_key(|o| {
            // Mostly the current segment, when it has a table.
            o.abs_diff(ordinal)
        }) else {
            continue;
        };
        let at = geometry.block() + draw.below(geometry.data_blocks() * 8);
        node.disk.segments[geometry.slot(damaged) as usize][at] ^= 1;
        match node.scan() {
            Ok((_, recovered)) => {
                node.is_all_there(&recovered);
                // A free segment is prepared again, with what it holds now.
                if let Ok(Some(mut boot)) = node.boot() {
                    (0..100).for_each(|_| node.event(&mut boot));
                    node.crash();
                }
                node.scan().expect("a crash alone damages nothing");
                spared += 1;
            }
            Err(error) => {
                assert_eq!((damaged, error.reason), (ordinal, DamageReason::SegmentTable));
                needed += 1;
            }
        }
    }
    assert!(needed > 5 && spared > 5, "{needed} needed, {spared} spared");
}
