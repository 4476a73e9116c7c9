//! Arbitrary and mutated bytes as a log: no panic, no wrong data, no wild allocation.

use super::harness::Node;
use crate::log::bytes::header_seal;
use crate::log::frame::{LOCAL_MAGIC, SHARED_MAGIC};
use crate::log::fuzz::{FUZZ_GEOMETRY, fuzz_scan};
use crate::log::segment::SEGMENT_MAGIC;
use crate::log::superblock::SUPERBLOCK_MAGIC;
use crate::log::testing::{CLUSTER, Draw, SeedReport};

/// A disk image with real frames, as `fuzz_scan` reads it.
fn image(seed: u64) -> Vec<u8> {
    let mut node = Node::new(FUZZ_GEOMETRY, seed);
    for _ in 0..3 {
        let Some(mut boot) = node.boot().expect("no damage") else { continue };
        (0..40).for_each(|_| node.event(&mut boot));
        node.crash();
    }
    let mut bytes = node.disk.superblock.clone();
    node.disk.segments.iter().for_each(|segment| bytes.extend_from_slice(segment));
    bytes
}

/// Gives every header of the image, after a mutation, a checksum that fits: so that the checks
/// behind the checksum are met.
fn reseal(bytes: &mut [u8]) {
    for block in bytes.as_chunks_mut::<512>().0 {
        let magic = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        if [LOCAL_MAGIC, SHARED_MAGIC, SEGMENT_MAGIC, SUPERBLOCK_MAGIC].contains(&magic) {
            header_seal(block);
        }
    }
}

#[test]
fn random_bytes_do_no_harm() {
    for seed in 0..1000 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed);
        let length = draw.below(300_000);
        let mut bytes = draw.bytes(length);
        for _ in 0..draw.below(20) {
            if length > 512 {
                let at = draw.below(length / 512) * 512;
                let magic = draw.pick(&[LOCAL_MAGIC, SHARED_MAGIC, SEGMENT_MAGIC]);
                bytes[at..at + 4].copy_from_slice(&magic.to_le_bytes());
            }
        }
        reseal(&mut bytes);
        fuzz_scan(&bytes);
    }
    assert_eq!(fuzz_scan(&[]), 0);
}

#[test]
fn mutated_logs_do_no_harm() {
    let mut entries = 0;
    for seed in 0..200 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed);
        let image = image(seed);
        entries += fuzz_scan(&image);
        for _ in 0..30 {
            let mut bytes = image.clone();
            for _ in 0..draw.range(1, 12) {
                // Mostly fields of headers: the first bytes of a block.
                let block = draw.below(bytes.len() / 512);
                let at =
                    block * 512 + if draw.once_in(3) { draw.below(512) } else { draw.below(128) };
                match draw.below(4) {
                    0 => bytes[at] ^= 1 << draw.below(8),
                    1 => bytes[at] = draw.pick(&[0, 1, 0x7f, 0x80, 0xff]),
                    2 => {
                        let end = (at + 8).min(bytes.len());
                        bytes[at..end].fill(draw.pick(&[0, 0xff, 0x3f]));
                    }
                    _ => {
                        let from = draw.below(bytes.len() / 512) * 512;
                        bytes.copy_within(from..from + 512, block * 512);
                    }
                }
            }
            if draw.once_in(2) {
                reseal(&mut bytes);
            }
            bytes.truncate(draw.pick(&[usize::MAX, 100_000]).min(bytes.len()));
            fuzz_scan(&bytes);
        }
    }
    assert!(entries > 1000, "{entries} entries in the unmutated images of cluster {CLUSTER}");
}
