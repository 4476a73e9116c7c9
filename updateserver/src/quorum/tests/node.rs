//! A node of a simulated cluster: disk, replica, and a model of its shards.

use std::collections::{BTreeMap, VecDeque};

use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId};
use spillway_runtime::slot_ring::{Slot, SlotRing};

use crate::log::testing::{CLUSTER, File, SimDisk};
use crate::log::{
    BodyView, DurableWrite, FormatPlan, FrameKind, Geometry, LogDamaged, LogScanner,
    LogWriterOptions, Members, SUPERBLOCK_COPIES, ScanItem, Section, superblock_update,
};
use crate::quorum::{Replica, ReplicaOptions, ReplicaStart, Room};

/// Bytes of a node's slot ring.
pub const RING_BYTES: usize = 2 << 20;

/// A running node.
pub struct Up {
    pub replica: Replica,
    pub slots: SlotRing,
    pub shards: Shards,
    /// Start of the body of every entry that was written in this run of the node.
    pub bodies: BTreeMap<Lsn, (u64, usize)>,
    pub tick_at: Option<u64>,
    pub durable: Durable,
}

/// Sequence, index and checksum of an entry, done.
type IssuedFrame = (u64, Option<(Lsn, u64)>, bool);

/// What the disk has, by what completed: the physical log in order.
#[derive(Default)]
pub struct Durable {
    issued: VecDeque<IssuedFrame>,
    /// The log as recovery would read it.
    pub log: BTreeMap<Lsn, u64>,
}

impl Durable {
    pub fn issue(&mut self, sequence: u64, entry: Option<(Lsn, u64)>) {
        self.issued.push_back((sequence, entry, false));
    }

    pub fn complete(&mut self, sequence: u64) {
        let frame = self.issued.iter_mut().find(|frame| frame.0 == sequence);
        frame.expect("issued").2 = true;
        while self.issued.front().is_some_and(|frame| frame.2) {
            if let Some((_, Some((lsn, checksum)), _)) = self.issued.pop_front() {
                self.log.split_off(&lsn);
                self.log.insert(lsn, checksum);
            }
        }
    }
}

/// What the shards have seen.
#[derive(Default)]
pub struct Shards {
    pub leading: Option<Epoch>,
    pub ticket: u64,
    pub ticket_told: u64,
    /// Executed and not committed: ticket and item.
    pub open: VecDeque<(u64, u64)>,
    /// Checksums of all applied entries in order, from index 1 on.
    pub applied: Vec<u64>,
    pub published: Lsn,
    /// Started rounds, and what had been answered when they began.
    pub rounds: VecDeque<(u64, Lsn)>,
    pub round_started: u64,
    pub poisoned: bool,
    pub failed: bool,
    pub answers: Vec<crate::quorum::CommandAnswer>,
}

/// A node, running or not.
pub struct SimNode {
    pub id: NodeId,
    pub geometry: Geometry,
    pub disk: SimDisk,
    pub up: Option<Up>,
    pub boot: u64,
    pub tune: fn(&mut ReplicaOptions),
}

fn format(geometry: Geometry, node: NodeId, members: Members) -> SimDisk {
    let plan = FormatPlan::new(CLUSTER, node, geometry, DurableWrite::SyncedWrite, members);
    let plan = plan.expect("test geometry");
    let segment = |number| {
        let mut bytes = plan.segment_start(number);
        bytes.resize(geometry.segment_bytes as usize, 0);
        bytes
    };
    let mut disk = SimDisk {
        block: geometry.block(),
        tear: geometry.block(),
        segments: (0..plan.segments()).map(segment).collect(),
        superblock: vec![0; SUPERBLOCK_COPIES * geometry.block()],
        pending: Vec::new(),
        unreadable: Vec::new(),
    };
    for write in plan.superblock_writes().into_iter().flatten() {
        disk.write(File::Superblock, write.offset, &write.bytes);
    }
    disk
}

/// The items of an entry.
pub fn items_of(geometry: &Geometry, body: &[u8]) -> (FrameKind, u64, Vec<u64>) {
    let view = BodyView::new(geometry, body).expect("a checked body");
    let items = match view.shared.kind {
        FrameKind::Data => view
            .sections()
            .map(|section| u64::from_le_bytes(*section.bytes.first_chunk().expect("an item")))
            .collect(),
        _ => Vec::new(),
    };
    (view.shared.kind, view.shared.checksum, items)
}

impl SimNode {
    pub fn new(geometry: Geometry, id: NodeId, members: Members) -> Self {
        let disk = format(geometry, id, members);
        Self { id, geometry, disk, up: None, boot: 0, tune: |_| {} }
    }

    /// Reads the log back and begins the next boot.
    pub fn recover(&mut self) -> Result<(ReplicaStart, Vec<u64>), LogDamaged> {
        let superblock = self.disk.superblock().expect("a superblock").superblock;
        let mut scanner = LogScanner::new(&superblock, 64 << 10);
        let mut bodies: BTreeMap<Lsn, (FrameKind, Vec<u8>)> = BTreeMap::new();
        while let Some(request) = scanner.next_read() {
            let bytes = self.disk.read(&request);
            scanner.feed(bytes, &mut |item| match item {
                ScanItem::Entry(entry) => {
                    let shared = entry.view.shared;
                    bodies.insert(shared.index, (shared.kind, entry.body.to_vec()));
                }
                ScanItem::Truncated(lsn) => {
                    bodies.split_off(&Lsn(lsn.0 + 1));
                }
            })?;
        }
        let recovered = scanner.finish();
        let next = recovered.superblock_next(&superblock, recovered.term, recovered.vote);
        for write in superblock_update(&next).into_iter().flatten() {
            self.disk.write(File::Superblock, write.offset, &write.bytes);
        }
        let applied = recovered.commit_hint;
        let config = |body: &[u8]| {
            let view = BodyView::new(&self.geometry, body).expect("checked");
            let section = view.sections().next().expect("one section");
            section.bytes.to_vec()
        };
        let config_entries = bodies
            .range(..=applied)
            .filter(|(_, (kind, _))| *kind == FrameKind::Config)
            .map(|(_, (_, body))| config(body))
            .collect();
        let sums = bodies.range(..=applied).map(|(_, (_, body))| items_of(&self.geometry, body).1);
        let sums: Vec<u64> = sums.collect();
        let tail = bodies.range(Lsn(applied.0 + 1)..);
        let tail = tail.map(|(lsn, (_, body))| (*lsn, Slot::from_vec(body.clone()))).collect();
        let start = ReplicaStart {
            position: recovered.position,
            entries: recovered.entries,
            tail,
            superblock: next,
            applied,
            config_entries,
        };
        Ok((start, sums))
    }

    pub fn start(&mut self, seed: u64) -> Result<(), LogDamaged> {
        assert!(self.up.is_none(), "started once");
        let (start, applied) = self.recover()?;
        self.boot += 1;
        let writer = LogWriterOptions {
            cluster: CLUSTER,
            node: self.id,
            term: start.superblock.term,
            vote: start.superblock.vote,
            boot: start.superblock.boot,
            in_flight_max: 4,
            watermark_idle_nanos: 2_000_000,
        };
        let mut options = ReplicaOptions::new(writer, seed);
        options.inflight_bytes_max = 256 << 10;
        options.uncommitted_bytes_max = 512 << 10;
        options.tail_bytes_max = 512 << 10;
        options.cache_bytes_max = 512 << 10;
        (self.tune)(&mut options);
        let published = start.applied;
        let mut durable = Durable::default();
        for lsn in 1..=start.entries.last().0 {
            let meta = start.entries.get(Lsn(lsn)).expect("no floor in these tests");
            durable.log.insert(Lsn(lsn), meta.checksum);
        }
        self.up = Some(Up {
            replica: Replica::new(options, start),
            slots: SlotRing::new("test", RING_BYTES).expect("memory"),
            shards: Shards { applied, published, ..Shards::default() },
            bodies: BTreeMap::new(),
            tick_at: None,
            durable,
        });
        Ok(())
    }

    /// Loses power.
    pub fn crash(&mut self, draw: &mut crate::log::testing::Draw) {
        self.disk.crash(draw);
        self.up = None;
    }
}

impl Up {
    /// Appends an item of this many bytes if there is room.
    pub fn append(&mut self, item: u64, bytes: usize) -> bool {
        let Some(epoch) = self.shards.leading else { return false };
        let bytes = bytes.max(16);
        if self.replica.room(1, bytes.next_multiple_of(16), &mut self.slots) != Room::Fits {
            return false;
        }
        let mut content = vec![0x5a; bytes];
        content[..8].copy_from_slice(&item.to_le_bytes());
        let section = Section { partition: PartitionId(1), digest: 1, bytes: &content };
        let ticket = self.shards.ticket + 1;
        if !self.replica.append(epoch, ticket, &[section], &mut self.slots) {
            return false;
        }
        self.shards.ticket = ticket;
        self.shards.open.push_back((ticket, item));
        true
    }
}
