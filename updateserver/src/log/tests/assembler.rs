//! The assembler alone: room, closing, memory, identity.

use spillway_net::ids::{Epoch, Lsn, PartitionId, WallMicros};
use spillway_runtime::slot_ring::SlotRing;

use super::harness::sections_of;
use crate::log::assembler::{AssemblerRoom, BatchAssembler, SealIdentity, Section, sections_bytes};
use crate::log::frame::{FrameKind, FrameSizes, PARTITION_SYSTEM};
use crate::log::geometry::Geometry;
use crate::log::testing::{CLUSTER, Draw, SeedReport, small_geometry};

fn identity(index: u64) -> SealIdentity {
    SealIdentity {
        cluster: CLUSTER,
        term: Epoch(2),
        index: Lsn(index),
        previous: index - 1,
        timestamp: WallMicros(index),
    }
}

fn section(bytes: &[u8]) -> Section<'_> {
    Section { partition: PartitionId(1), digest: 1, bytes }
}

fn rig(batches: usize) -> (Geometry, BatchAssembler, SlotRing) {
    let geometry = small_geometry();
    let ring = SlotRing::new("test", batches * geometry.batch_bytes_max as usize);
    (geometry, BatchAssembler::new(geometry, 1, 1000), ring.expect("memory"))
}

#[test]
fn one_batch_is_open_and_one_closed() {
    let (geometry, mut assembler, mut slots) = rig(4);
    let large = vec![7; geometry.payload_bytes_max()];
    for ticket in 1..=2 {
        assert_eq!(assembler.room(1, large.len(), &mut slots), AssemblerRoom::Fits);
        assembler.append(ticket, &[section(&large)], &mut slots);
    }
    assert_eq!(assembler.room(1, 16, &mut slots), AssemblerRoom::Later, "one is closed");
    assert_eq!(assembler.pending_bytes(), 2 * large.len());
    let frames: Vec<usize> = assembler.frames_with(1, 16).collect();
    let largest = FrameSizes::of(&geometry, 1, large.len()).frame_bytes;
    assert_eq!(frames, [largest, largest, 3 * 512]);
    assert!(assembler.ripe(3, 4, false), "a closed batch does not wait");
    assert!(!assembler.ripe(4, 4, true), "but for the window");
    let first = assembler.seal(identity(1), &mut slots).expect("closed");
    assert_eq!((first.ticket, first.shared.index), (1, Lsn(1)));
    assert_eq!(assembler.room(1, 16, &mut slots), AssemblerRoom::Fits);
    assembler.append(3, &[section(&[1])], &mut slots);
    let second = assembler.seal(identity(2), &mut slots).expect("closed");
    let third = assembler.seal(identity(3), &mut slots).expect("open");
    assert_eq!((second.ticket, third.ticket, assembler.ticket()), (2, 3, 3));
    assert!(assembler.seal(identity(4), &mut slots).is_none());
    assert!(!assembler.ripe(0, 4, true), "nothing to seal");
}

#[test]
fn a_small_batch_gives_its_end_back() {
    let (geometry, mut assembler, mut slots) = rig(4);
    assembler.append(1, &[section(&[1; 100])], &mut slots);
    assert_eq!(slots.bytes_used(), geometry.batch_bytes_max as usize);
    let frame = assembler.seal(identity(1), &mut slots).expect("open");
    let used = (geometry.header_bytes_max() + 512).next_multiple_of(4096);
    assert_eq!(slots.bytes_used(), used);
    assert_eq!(frame.head.address() + 512, frame.body.address(), "in front of the body");
    assert_eq!(frame.frame_bytes(), 3 * 512);
    drop(frame);
    slots.reclaim();
    assert_eq!(slots.bytes_used(), 0);
}

#[test]
fn a_full_ring_means_later() {
    let (geometry, mut assembler, mut slots) = rig(2);
    let large = vec![7; geometry.payload_bytes_max()];
    assembler.append(1, &[section(&large)], &mut slots);
    let held = assembler.seal(identity(1), &mut slots).expect("open");
    assembler.append(2, &[section(&large)], &mut slots);
    assert_eq!(assembler.room(1, 16, &mut slots), AssemblerRoom::Later, "no memory");
    let identity = identity(2);
    assert!(assembler.seal_system(identity, FrameKind::NoOp, &[], &mut slots).is_none());
    drop(held);
    assert_eq!(assembler.room(1, 16, &mut slots), AssemblerRoom::Fits);
    assert_eq!(assembler.pending_bytes(), large.len(), "nothing was lost meanwhile");
}

#[test]
fn what_is_abandoned_is_gone_with_its_memory() {
    let (geometry, mut assembler, mut slots) = rig(4);
    let large = vec![7; geometry.payload_bytes_max()];
    assembler.append(1, &[section(&large)], &mut slots);
    assembler.append(2, &[section(&large)], &mut slots);
    assembler.abandon();
    assert_eq!((assembler.pending_bytes(), assembler.ticket()), (0, 2));
    assert!(assembler.seal(identity(1), &mut slots).is_none());
    slots.reclaim();
    assert_eq!(slots.bytes_used(), 0);
    assembler.append(3, &[section(b"new term")], &mut slots);
    let frame = assembler.seal(identity(1), &mut slots).expect("open");
    assert_eq!(sections_of(&frame.view(&geometry)), [(1, 1, b"new term".as_slice())]);
}

#[test]
fn entries_that_are_no_batch_pass_by_the_open_one() {
    let (geometry, mut assembler, mut slots) = rig(4);
    assembler.append(1, &[section(b"open")], &mut slots);
    let change = Section { partition: PARTITION_SYSTEM, digest: 5, bytes: b"change" };
    let sealed = assembler.seal_system(identity(1), FrameKind::Config, &[change], &mut slots);
    let config = sealed.expect("room");
    assert_eq!((config.shared.kind, config.ticket), (FrameKind::Config, 0));
    assert_eq!(sections_of(&config.view(&geometry)), [(0xFFFF, 5, b"change".as_slice())]);
    let sealed = assembler.seal_system(identity(2), FrameKind::NoOp, &[], &mut slots);
    assert_eq!(sealed.expect("room").frame_bytes(), 2 * 512);
    let batch = assembler.seal(identity(3), &mut slots).expect("open");
    assert_eq!((batch.shared.index, batch.ticket), (Lsn(3), 1));
}

/// Items of any shape come out as they went in, over many laps of a small ring.
#[test]
fn batches_hold_what_was_appended() {
    for seed in 0..60 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed);
        let (geometry, mut assembler, mut slots) = rig(3);
        let mut expected: Vec<(u16, u128, Vec<u8>)> = Vec::new();
        let (mut index, mut ticket) = (0, 0);
        for _ in 0..200 {
            let count = draw.range(1, 5);
            let limit = draw.pick(&[40, 2000, geometry.payload_bytes_max() / 5]);
            let item: Vec<(u16, u128, Vec<u8>)> = (0..count)
                .map(|_| {
                    let length = draw.range(1, limit);
                    (draw.below(8) as u16, u128::from(draw.next()), draw.bytes(length))
                })
                .collect();
            let sections: Vec<Section<'_>> = item
                .iter()
                .map(|(partition, digest, bytes)| Section {
                    partition: PartitionId(*partition),
                    digest: *digest,
                    bytes,
                })
                .collect();
            let room = assembler.room(sections.len(), sections_bytes(&sections), &mut slots);
            if room == AssemblerRoom::Fits {
                ticket += 1;
                assembler.append(ticket, &sections, &mut slots);
                expected.extend(item);
            }
            while assembler.ripe(draw.below(4), 4, draw.once_in(3)) {
                index += 1;
                let frame = assembler.seal(identity(index), &mut slots).expect("ripe");
                let view = frame.view(&geometry);
                let seen = sections_of(&view);
                let rest = expected.split_off(seen.len());
                let batch = expected.iter().map(|(p, digest, bytes)| (*p, *digest, &bytes[..]));
                assert!(seen.into_iter().eq(batch));
                expected = rest;
            }
        }
        assert!(index > 10 && ticket > 100, "{index} batches of {ticket} items");
    }
}
