//! Damaged frames that are mended: with the right body, and only where it is known what that is.

use spillway_net::ids::Lsn;

use super::damage::{acknowledged_frames, lived};
use super::harness::{Kept, Node};
use crate::log::damage::{DamageReason, LogDamaged};
use crate::log::frame::FrameFault;
use crate::log::repair::{FrameRepair, RepairContent};
use crate::log::testing::{CLUSTER, Draw, File, SeedReport};

/// A node, one of its acknowledged frames and its segments as they should be.
struct Patient {
    node: Node,
    frames: Vec<(u64, Kept)>,
    chosen: usize,
    intact: Vec<Vec<u8>>,
}

impl Patient {
    fn new(seed: u64, draw: &mut Draw) -> Option<Self> {
        let mut node = lived(seed, draw);
        let frames = acknowledged_frames(&mut node);
        if frames.is_empty() {
            return None;
        }
        // The last frames are those whose index is in doubt.
        let from = if draw.once_in(2) { frames.len().saturating_sub(4) } else { 0 };
        let chosen = draw.range(from, frames.len());
        let intact = node.disk.segments.clone();
        Some(Self { node, frames, chosen, intact })
    }

    fn frame(&self) -> &Kept {
        &self.frames[self.chosen].1
    }

    fn damaged(&mut self) -> LogDamaged {
        let damaged = self.node.scan().expect_err("the frame is damaged");
        assert_eq!(damaged.sequence, self.frames[self.chosen].0, "{damaged}");
        damaged
    }

    /// What a scan says of the chosen frame, whose local header is intact.
    fn repair(&mut self) -> FrameRepair {
        let damaged = self.damaged();
        let repair = *damaged.repair.clone().unwrap_or_else(|| panic!("no repair: {damaged}"));
        assert!(damaged.to_string().contains("repairs this from them"), "{damaged}");
        self.is_right(&repair);
        repair
    }

    /// The repair names the frame, and only its own body will do.
    fn is_right(&self, repair: &FrameRepair) {
        let geometry = &self.node.geometry;
        let (frame, body) = (self.frame(), self.frame().body(geometry));
        assert_eq!(repair.segment, frame.write.segment);
        assert_eq!(repair.offset, frame.write.offset);
        assert_eq!(repair.frame_bytes, frame.write.bytes);
        assert_eq!(repair.checksum, frame.shared.checksum);
        match &repair.content {
            RepairContent::Own(own) => assert!(!frame.is_entry() && own == body),
            RepairContent::Entry { first, last } => {
                assert!(frame.is_entry() && (*first..=*last).contains(&frame.shared.index));
            }
        }
        assert_eq!(repair.verify(geometry, CLUSTER, body), Ok(frame.shared));
        for (_, other) in &self.frames {
            if other.shared != frame.shared {
                repair.verify(geometry, CLUSTER, other.body(geometry)).expect_err("another one");
            }
        }
    }

    /// Writes the body of the chosen frame, as a peer has it, and reads the log again.
    fn mend(&mut self, repair: &FrameRepair) {
        let geometry = self.node.geometry;
        let body = self.frame().body(&geometry).to_vec();
        let offset = repair.body_offset(&geometry);
        self.node.disk.write(File::Segment(repair.segment), offset, &body);
        assert!(self.node.disk.segments == self.intact, "the log is what it was, bit for bit");
        let (_, recovered) = self.node.scan().expect("the log is readable again");
        self.node.is_all_there(&recovered);
    }
}

/// Flips a bit of the frame's bytes in this range.
fn flip(node: &mut Node, draw: &mut Draw, frame: &Kept, from: usize, to: usize) {
    let at = frame.write.offset as usize + draw.range(from, to);
    node.disk.segments[frame.write.segment as usize][at] ^= 1 << draw.below(8);
}

#[test]
fn a_flipped_bit_in_the_body_is_mended() {
    let (mut headers, mut payloads, mut watermarks, mut doubtful) = (0, 0, 0, 0);
    for seed in 0..1200 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0x0b0d);
        let Some(mut patient) = Patient::new(seed, &mut draw) else { continue };
        let frame = patient.frame().clone();
        let block = patient.node.geometry.block();
        let sizes = frame.shared.sizes(&patient.node.geometry);
        let in_header = sizes.payload_blocks == 0 || draw.once_in(2);
        let range = if in_header {
            (block, sizes.header_bytes)
        } else {
            (sizes.header_bytes, sizes.frame_bytes)
        };
        for _ in 0..draw.range(1, 4) {
            flip(&mut patient.node, &mut draw, &frame, range.0, range.1);
        }
        if patient.node.disk.segments == patient.intact {
            continue;
        }
        let repair = patient.repair();
        match repair.content {
            RepairContent::Own(_) => watermarks += 1,
            RepairContent::Entry { first, last } if in_header => {
                doubtful += usize::from(first < last);
                assert_eq!(last, Lsn(patient.damaged().lsn_good.0 + 1));
                headers += 1;
            }
            RepairContent::Entry { first, last } => {
                assert_eq!((first, last), (frame.shared.index, frame.shared.index));
                payloads += 1;
            }
        }
        patient.mend(&repair);
    }
    assert!(headers > 200 && payloads > 200, "{headers} headers, {payloads} payloads");
    assert!(watermarks > 50 && doubtful > 20, "{watermarks} watermarks, {doubtful} doubtful");
}

#[test]
fn a_damaged_local_header_is_never_mended() {
    let mut met = 0;
    for seed in 0..400 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0x10ca1);
        let Some(mut patient) = Patient::new(seed, &mut draw) else { continue };
        let frame = patient.frame().clone();
        let block = patient.node.geometry.block();
        flip(&mut patient.node, &mut draw, &frame, 0, block);
        if draw.once_in(2) {
            // And its body, so that nothing of it is left.
            flip(&mut patient.node, &mut draw, &frame, block, frame.write.bytes as usize);
        }
        let damaged = patient.damaged();
        assert_eq!(damaged.repair, None, "{damaged}");
        assert!(damaged.to_string().contains("spillway admin replace-node"), "{damaged}");
        met += 1;
    }
    assert!(met > 300, "{met}");
}

#[test]
fn lost_sectors_of_the_body_are_mended_and_a_lost_header_is_not() {
    let (mut mended, mut refused) = (0, 0);
    for seed in 0..1000 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0x105ec);
        let Some(mut patient) = Patient::new(seed, &mut draw) else { continue };
        let frame = patient.frame().clone();
        let block = patient.node.geometry.block();
        let lost = draw.below(frame.write.bytes as usize / block);
        let from = frame.write.offset + (lost * block) as u64;
        let old = &frame.before[lost * block..(lost + 1) * block];
        patient.node.disk.write(File::Segment(frame.write.segment), from, old);
        // A loss that nothing later covers looks torn: it is dropped, and never mended.
        let Err(damaged) = patient.node.scan() else { continue };
        if patient.node.disk.segments == patient.intact {
            continue;
        }
        if lost == 0 {
            assert_eq!(damaged.repair, None, "{damaged}");
            refused += 1;
        } else {
            let repair = patient.repair();
            patient.mend(&repair);
            mended += 1;
        }
    }
    assert!(mended > 300 && refused > 50, "{mended} mended, {refused} refused");
}

#[test]
fn an_unreadable_sector_of_the_body_is_mended() {
    let (mut mended, mut refused) = (0, 0);
    for seed in 0..500 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0xe10e);
        let Some(mut patient) = Patient::new(seed, &mut draw) else { continue };
        let frame = patient.frame().clone();
        let block = patient.node.geometry.block();
        let sector = draw.below(frame.write.bytes as usize / block);
        let place = (frame.write.segment, frame.write.offset + (sector * block) as u64);
        patient.node.disk.unreadable = vec![place];
        let damaged = patient.damaged();
        assert!(matches!(damaged.reason, DamageReason::ReadFailed { .. }), "{damaged}");
        if sector == 0 {
            assert_eq!(damaged.repair, None, "{damaged}");
            refused += 1;
            continue;
        }
        let repair = patient.repair();
        // A disk replaces a sector that it cannot read when it is written.
        patient.node.disk.unreadable.clear();
        patient.mend(&repair);
        mended += 1;
    }
    assert!(mended > 200 && refused > 50, "{mended} mended, {refused} refused");
}

#[test]
fn many_damaged_bodies_are_mended_one_after_the_other() {
    let (mut most, mut refused) = (0, 0);
    for seed in 0..300 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0x3a17);
        let Some(mut patient) = Patient::new(seed, &mut draw) else { continue };
        let geometry = patient.node.geometry;
        for _ in 0..draw.range(2, 12) {
            let frame = patient.frames[draw.below(patient.frames.len())].1.clone();
            let bytes = frame.write.bytes as usize;
            flip(&mut patient.node, &mut draw, &frame, geometry.block(), bytes);
        }
        // An unreadable sector of a body does not hide the damage in front of it.
        let frame = patient.frames.last().expect("there are some").1.clone();
        let last = frame.write.offset + u64::from(frame.write.bytes) - geometry.block() as u64;
        patient.node.disk.unreadable = vec![(frame.write.segment, last)];
        let mut mended = Vec::new();
        while let Err(damaged) = patient.node.scan() {
            let Some(repair) = damaged.repair.clone() else {
                // Something that looks torn, and what would tell that it is not is unreadable.
                assert!(matches!(damaged.reason, DamageReason::ReadFailed { .. }), "{damaged}");
                patient.node.disk.unreadable.clear();
                refused += 1;
                continue;
            };
            let at = patient.frames.iter().position(|(sequence, _)| *sequence == damaged.sequence);
            patient.chosen = at.expect("an acknowledged frame");
            patient.is_right(&repair);
            let body = patient.frame().body(&geometry).to_vec();
            let offset = repair.body_offset(&geometry);
            patient.node.disk.write(File::Segment(repair.segment), offset, &body);
            if (repair.segment, repair.offset) == (frame.write.segment, frame.write.offset) {
                patient.node.disk.unreadable.clear();
            }
            assert!(!mended.contains(&damaged.sequence), "each frame once");
            mended.push(damaged.sequence);
        }
        assert!(patient.node.disk.segments == patient.intact, "bit for bit");
        assert!(mended.is_sorted(), "from the front");
        most = most.max(mended.len());
    }
    assert!(most > 5 && refused < 10, "{most} in one log, {refused} refused");
}

#[test]
fn what_comes_from_a_peer_is_checked_in_full() {
    for seed in 0..200 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed ^ 0xfa17);
        let Some(mut patient) = Patient::new(seed, &mut draw) else { continue };
        let geometry = patient.node.geometry;
        let frame = patient.frame().clone();
        let bytes = frame.write.bytes as usize;
        flip(&mut patient.node, &mut draw, &frame, geometry.block(), bytes);
        let repair = patient.repair();
        let mut body = frame.body(&geometry).to_vec();
        body[draw.below(bytes - geometry.block())] ^= 1 << draw.below(8);
        repair.verify(&geometry, CLUSTER, &body).expect_err("a flipped bit");
        let longer = [frame.body(&geometry), &vec![0; geometry.block()]].concat();
        let found = bytes + geometry.block();
        let fault = FrameFault::Length { expected: bytes, found };
        assert_eq!(repair.verify(&geometry, CLUSTER, &longer), Err(fault));
        assert_eq!(
            repair.verify(&geometry, CLUSTER, &[]),
            Err(FrameFault::Length { expected: bytes, found: geometry.block() })
        );
    }
}
