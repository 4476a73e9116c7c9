//! Logs as a follower would write them: frames that go back (rule R9), and durable frames that are
//! not committed.

use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId, WallMicros};

use crate::log::damage::{DamageReason, LogDamaged};
use crate::log::frame::{FrameKind, LocalHeader, SectionEntry, SharedHeader};
use crate::log::position::ChainState;
use crate::log::recovery::{LogScanner, Recovered, ScanItem};
use crate::log::superblock::Superblock;
use crate::log::testing::{CLUSTER, File, NODE, SimDisk, frame_seal, small_geometry};

/// Writes frames by hand into the first segment.
struct Hand {
    disk: SimDisk,
    offset: u64,
    chain: ChainState,
    term: u64,
    commit_hint: u64,
}

impl Hand {
    fn new() -> Self {
        let geometry = small_geometry();
        let offset = geometry.data_offset();
        let disk = SimDisk::format(geometry);
        Self { disk, offset, chain: ChainState::EMPTY, term: 1, commit_hint: 0 }
    }

    /// An entry with this index and term behind the entry whose checksum is `previous`. Returns
    /// its own.
    fn entry(&mut self, index: u64, entry_term: u64, previous: u64, timestamp: u64) -> u64 {
        let geometry = small_geometry();
        let start = geometry.header_bytes_max();
        let mut buffer = vec![index as u8; geometry.batch_bytes_max as usize];
        let entry = SectionEntry {
            partition: PartitionId(0),
            flags: 0,
            length: 16,
            digest: timestamp.into(),
        };
        let shared = SharedHeader {
            kind: FrameKind::Data,
            checksum: 0,
            cluster: CLUSTER,
            entry_term: Epoch(entry_term),
            index: Lsn(index),
            previous,
            timestamp: WallMicros(timestamp),
            section_count: 1,
            payload_bytes: 16,
            frame_bytes: 0,
        };
        let local = LocalHeader {
            cluster: CLUSTER,
            node: NODE,
            boot: 1,
            segment: 0,
            generation: 1,
            offset: self.offset,
            sequence: self.chain.sequence,
            previous: self.chain.local,
            term: Epoch(self.term),
            vote: NodeId(0),
            durable_sequence: self.chain.sequence - 1,
            commit_hint: Lsn(self.commit_hint),
            frame_bytes: 0,
            header_bytes: 0,
            shared: 0,
        };
        let sealed = frame_seal(&geometry, &mut buffer, start, &[entry], shared, local);
        let frame = &buffer[sealed.start..sealed.start + sealed.sizes.frame_bytes];
        self.disk.write(File::Segment(0), self.offset, frame);
        self.offset += frame.len() as u64;
        self.chain.sequence += 1;
        self.chain.local = sealed.local;
        sealed.shared
    }

    /// Entries 1 to 4 of term 1; returns their checksums, that of index 0 first.
    fn four(&mut self) -> Vec<u64> {
        let mut checksums = vec![0];
        for index in 1..=4 {
            let previous = checksums[index as usize - 1];
            checksums.push(self.entry(index, 1, previous, 100 * index));
        }
        checksums
    }

    /// What a sink that obeys keeps: index and term.
    fn scan(&self) -> Result<(Vec<(u64, u64)>, Recovered), LogDamaged> {
        let formatted = self.disk.superblock().expect("readable").superblock;
        let superblock = Superblock { boot: 1, ..formatted };
        let mut scanner = LogScanner::new(&superblock, 0);
        let mut kept = Vec::new();
        while let Some(read) = scanner.next_read() {
            let mut sink = |item: ScanItem<'_>| match item {
                ScanItem::Entry(entry) => {
                    let shared = &entry.view.shared;
                    kept.push((shared.index.0, shared.entry_term.0));
                }
                ScanItem::Truncated(lsn) => kept.truncate(lsn.0 as usize),
            };
            scanner.feed(self.disk.read(&read), &mut sink)?;
        }
        Ok((kept, scanner.finish()))
    }

    fn order_broken(&self) {
        let damaged = self.scan().expect_err("unlawful");
        assert_eq!(damaged.reason, DamageReason::OrderBroken);
        assert_eq!(damaged.lsn_good, Lsn(4));
    }
}

#[test]
fn a_lower_index_of_another_term_supersedes() {
    let mut hand = Hand::new();
    let checksums = hand.four();
    hand.term = 3;
    let third = hand.entry(3, 2, checksums[2], 250);
    hand.entry(4, 3, third, 260);
    let (kept, recovered) = hand.scan().expect("lawful");
    assert_eq!(kept, [(1, 1), (2, 1), (3, 2), (4, 3)]);
    assert_eq!((recovered.last_lsn, recovered.term), (Lsn(4), Epoch(3)));
    assert_eq!((recovered.last_timestamp, recovered.frames), (WallMicros(260), 6));
    assert_eq!(recovered.position.ring.floor_for(Lsn(9)).ordinal, 0);
}

#[test]
fn the_log_may_end_shorter_than_it_was() {
    let mut hand = Hand::new();
    hand.four();
    hand.term = 2;
    hand.entry(1, 2, 0, 50);
    let (kept, recovered) = hand.scan().expect("lawful");
    assert_eq!(kept, [(1, 2)]);
    assert_eq!(recovered.last_lsn, Lsn(1));
    assert_eq!(recovered.position.cursor.chain.timestamp, WallMicros(50));
}

#[test]
fn a_committed_entry_is_never_superseded() {
    let mut hand = Hand::new();
    let checksums = hand.four();
    hand.term = 2;
    hand.commit_hint = 3;
    hand.entry(5, 2, checksums[4], 500);
    hand.scan().expect("lawful");
    let mut hand = Hand::new();
    let checksums = hand.four();
    hand.term = 2;
    hand.commit_hint = 3;
    hand.entry(3, 2, checksums[2], 250);
    hand.order_broken();
}

#[test]
fn a_superseding_frame_must_continue_what_it_keeps() {
    type Case = (u64, u64, usize, u64);
    // Index, term, whose checksum it names, timestamp; each wrong in one thing.
    let cases: [Case; 6] = [
        (3, 2, 1, 250),
        (3, 1, 2, 250),
        (3, 2, 2, 200),
        (3, 9, 2, 250),
        (6, 2, 4, 600),
        (5, 2, 4, 400),
    ];
    for (index, term, previous, timestamp) in cases {
        let mut hand = Hand::new();
        let checksums = hand.four();
        hand.term = 2;
        hand.entry(index, term, checksums[previous], timestamp);
        hand.order_broken();
    }
    let mut hand = Hand::new();
    let checksums = hand.four();
    hand.commit_hint = 5;
    hand.entry(5, 1, checksums[4], 500);
    hand.order_broken();
}

#[test]
fn a_durable_frame_that_is_missing_was_lost_even_if_nothing_is_committed() {
    let mut hand = Hand::new();
    let checksums = hand.four();
    let (offset, sequence) = (hand.offset, hand.chain.sequence);
    hand.entry(5, 1, checksums[4], 500);
    let block = hand.disk.block;
    hand.entry(6, 1, 0, 600);
    // The frame behind says that it was durable; the superblock and all commit hints know nothing.
    for (from, blocks) in [(0, 3), (0, 1), (1, 1), (2, 1)] {
        let intact = hand.disk.clone();
        let from = offset + from * block as u64;
        hand.disk.write(File::Segment(0), from, &vec![0; blocks * block]);
        let damaged = hand.scan().expect_err("a confirmed write is missing");
        assert_eq!(damaged.reason, DamageReason::WriteLost);
        assert_eq!((damaged.sequence, damaged.lsn_good), (sequence, Lsn(4)));
        hand.disk = intact;
    }
}
