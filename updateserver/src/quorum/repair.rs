//! Mends a damaged log from the peers, before there is a replica (rules R17 and R19).
//!
//! A pure core: it is told of the damage that a scan met, asks the peers for the entry that stood
//! there, and orders the write of exactly that body; then the shell scans again. Nothing is voted
//! for, acknowledged or served meanwhile, and of all messages only [`PeerMessage::FetchReply`] is
//! heard. What is damaged may have been acknowledged by this node: as long as it is not back, a
//! leader that was elected with this node's vote could be one that never had it. So the node
//! rather waits, for as long as it takes.

use std::collections::{BTreeMap, BTreeSet};

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, WallMicros};
use spillway_net::limits::NODES_MAX;

use super::wire::{PEER_HEADER_BYTES, PeerHeader, PeerMessage};
use crate::log::{FrameRepair, Geometry, LogDamaged, RepairContent, Superblock};

/// How often the peers are asked again.
pub const REPAIR_ASK_NANOS: u64 = 500_000_000;

/// Peers that are asked again and again, at most.
const PEERS_MAX: usize = 2 * NODES_MAX;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum RepairInput<'a> {
    /// A scan ended here: the first one, or the one after a write.
    Damaged(&'a LogDamaged),
    /// A link to a peer stands.
    Connected(NodeId),
    /// A peer says something.
    Message {
        /// Who.
        from: NodeId,
        /// Its header.
        header: &'a [u8; PEER_HEADER_BYTES],
        /// The entry behind it.
        body: Option<&'a [u8]>,
    },
    /// Time has passed.
    Tick,
}

/// A body to write behind the local header that is there, durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairWrite {
    /// Segment file.
    pub segment: u32,
    /// Offset in it.
    pub offset: u64,
    /// All of the frame behind its local header.
    pub body: Vec<u8>,
}

/// Why a log stays damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairFailure {
    /// Nothing says for sure what stood there.
    #[error("{0}")]
    Unmendable(LogDamaged),
    /// A frame was written anew and is damaged again.
    #[error("it was written anew and is damaged again")]
    Again {
        /// Segment file.
        segment: u32,
        /// Offset of the frame.
        offset: u64,
    },
}

/// What the shell has to do.
#[derive(Clone, Debug, Default)]
pub struct RepairEffects {
    /// Messages. Whoever is not connected is asked when it is.
    pub sends: Vec<(NodeId, PeerHeader)>,
    /// Write this, then scan again: nothing else is asked for until then.
    pub write: Option<RepairWrite>,
    /// The node must be replaced.
    pub failed: Option<RepairFailure>,
}

/// One entry that is looked for.
#[derive(Clone, Debug)]
struct Search {
    repair: FrameRepair,
    /// Indexes that it may have.
    first: Lsn,
    last: Lsn,
    /// Which index each peer was asked for last.
    asked: BTreeMap<NodeId, Lsn>,
    /// Peers that said of all indexes that it is not there.
    lacking: BTreeSet<NodeId>,
    /// When all are asked again.
    ask_at: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct LogRepair {
    geometry: Geometry,
    cluster: ClusterId,
    node: NodeId,
    term: Epoch,
    peers: Vec<NodeId>,
    /// Segment and offset of the frames that were written anew. Each turn mends another one, so
    /// there are no more turns than frames.
    mended: BTreeSet<(u32, u64)>,
    search: Option<Search>,
}

impl LogRepair {
    /// Of the node with this superblock.
    pub fn new(superblock: &Superblock, peers: impl IntoIterator<Item = NodeId>) -> Self {
        let node = superblock.node;
        Self {
            geometry: superblock.geometry,
            cluster: superblock.cluster,
            node,
            term: superblock.term,
            peers: peers.into_iter().filter(|peer| *peer != node).collect(),
            mended: BTreeSet::new(),
            search: None,
        }
    }

    /// Frames that were written anew.
    pub fn mended(&self) -> usize {
        self.mended.len()
    }

    /// When a tick is wanted.
    pub fn deadline_nanos(&self) -> Option<u64> {
        self.search.as_ref().map(|search| search.ask_at)
    }

    /// The highest index that the looked-for entry may have; none while nothing is looked for.
    pub fn wanted(&self) -> Option<Lsn> {
        self.search.as_ref().map(|search| search.last)
    }

    /// All peers that are asked: those that were named, and those that have come.
    pub fn peers(&self) -> &[NodeId] {
        &self.peers
    }

    /// Whether this peer said that it does not have what is looked for.
    pub fn is_lacking(&self, peer: NodeId) -> bool {
        self.search.as_ref().is_some_and(|search| search.lacking.contains(&peer))
    }

    /// Moves the core on.
    pub fn step(&mut self, now_nanos: u64, input: RepairInput<'_>, out: &mut RepairEffects) {
        match input {
            RepairInput::Damaged(damaged) => self.damaged(now_nanos, damaged, out),
            RepairInput::Connected(node) => {
                // It may be one that the configuration does not name, and be asked again.
                if !self.peers.contains(&node) && self.peers.len() < PEERS_MAX {
                    self.peers.push(node);
                }
                self.ask(node, out);
            }
            RepairInput::Message { from, header, body } => self.reply(from, header, body, out),
            RepairInput::Tick => {
                if self.deadline_nanos().is_some_and(|deadline| deadline <= now_nanos) {
                    self.ask_all(now_nanos, out);
                }
            }
        }
    }

    fn damaged(&mut self, now_nanos: u64, damaged: &LogDamaged, out: &mut RepairEffects) {
        assert!(self.search.is_none(), "one frame at a time");
        let Some(repair) = damaged.repair.as_deref() else {
            out.failed = Some(RepairFailure::Unmendable(damaged.clone()));
            return;
        };
        if !self.mended.insert((repair.segment, repair.offset)) {
            let (segment, offset) = (repair.segment, repair.offset);
            out.failed = Some(RepairFailure::Again { segment, offset });
            return;
        }
        match &repair.content {
            RepairContent::Own(body) => out.write = Some(self.write_of(repair, body)),
            RepairContent::Entry { first, last } => {
                assert!(first <= last, "an entry has an index");
                self.search = Some(Search {
                    repair: repair.clone(),
                    first: *first,
                    last: *last,
                    asked: BTreeMap::new(),
                    lacking: BTreeSet::new(),
                    ask_at: 0,
                });
                self.ask_all(now_nanos, out);
            }
        }
    }

    fn write_of(&self, repair: &FrameRepair, body: &[u8]) -> RepairWrite {
        let (block, frame) = (self.geometry.block(), repair.frame_bytes as usize);
        assert_eq!(block + body.len(), frame, "the whole frame");
        let offset = repair.body_offset(&self.geometry);
        RepairWrite { segment: repair.segment, offset, body: body.to_vec() }
    }

    /// Asks everybody from the last index on who has said no, and the others the same again.
    fn ask_all(&mut self, now_nanos: u64, out: &mut RepairEffects) {
        let Some(search) = &mut self.search else { return };
        search.ask_at = now_nanos + REPAIR_ASK_NANOS;
        let Search { asked, lacking, .. } = search;
        asked.retain(|node, _| !lacking.contains(node));
        for at in 0..self.peers.len() {
            self.ask(self.peers[at], out);
        }
    }

    fn ask(&mut self, node: NodeId, out: &mut RepairEffects) {
        let Some(search) = &mut self.search else { return };
        let lsn = *search.asked.entry(node).or_insert(search.last);
        let header = PeerHeader {
            cluster: self.cluster,
            from: self.node,
            to: node,
            term: self.term,
            applied: Lsn(0),
            committed: Lsn(0),
            time: WallMicros(0),
            body_bytes: 0,
            message: PeerMessage::Fetch { lsn },
        };
        out.sends.push((node, header));
    }

    /// What a peer says: the body that stood there, or that it does not have it.
    fn reply(
        &mut self,
        from: NodeId,
        header: &[u8; PEER_HEADER_BYTES],
        body: Option<&[u8]>,
        out: &mut RepairEffects,
    ) {
        let Ok(header) = PeerHeader::decode(&self.geometry, header) else { return };
        let ours = header.from == from && header.to == self.node && header.cluster == self.cluster;
        let PeerMessage::FetchReply { lsn, .. } = header.message else { return };
        let Some(search) = &mut self.search else { return };
        if !ours || search.asked.get(&from) != Some(&lsn) {
            return;
        }
        let right = |body: &&[u8]| search.repair.verify(&self.geometry, self.cluster, body).is_ok();
        if let Some(body) = body.filter(right) {
            let repair = self.search.take().expect("seen above").repair;
            out.write = Some(self.write_of(&repair, body));
            return;
        }
        if lsn > search.first {
            search.asked.insert(from, Lsn(lsn.0 - 1));
            self.ask(from, out);
        } else {
            search.lacking.insert(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::testing::{CLUSTER, NODE, SimDisk, small_geometry};
    use crate::log::{DamageReason, FrameFault};

    const PEERS: [NodeId; 3] = [NodeId(1), NODE, NodeId(3)];

    fn core() -> LogRepair {
        let disk = SimDisk::format(small_geometry());
        let superblock = disk.superblock().expect("formatted").superblock;
        LogRepair::new(&superblock, PEERS)
    }

    fn damaged(content: RepairContent, offset: u64) -> LogDamaged {
        let repair = FrameRepair { segment: 0, offset, frame_bytes: 1536, checksum: 7, content };
        LogDamaged {
            segment: 0,
            offset,
            sequence: 9,
            lsn_good: Lsn(5),
            lsn_last: None,
            reason: DamageReason::SharedHeader(FrameFault::Checksum),
            repair: Some(Box::new(repair)),
        }
    }

    fn fetched(out: &RepairEffects) -> Vec<(u16, u64)> {
        let of = |(node, header): &(NodeId, PeerHeader)| match header.message {
            PeerMessage::Fetch { lsn } => (node.0, lsn.0),
            _ => panic!("a repairing node only fetches"),
        };
        out.sends.iter().map(of).collect()
    }

    fn lacks(core: &mut LogRepair, from: NodeId, lsn: u64) -> RepairEffects {
        let message = PeerMessage::FetchReply {
            lsn: Lsn(lsn),
            found: false,
            last: Lsn(9),
            commit: Lsn(4),
            leader: NodeId(0),
        };
        let header = PeerHeader {
            cluster: CLUSTER,
            from,
            to: NODE,
            term: Epoch(3),
            applied: Lsn(0),
            committed: Lsn(0),
            time: WallMicros(0),
            body_bytes: 0,
            message,
        };
        let mut out = RepairEffects::default();
        let header = header.encode();
        core.step(0, RepairInput::Message { from, header: &header, body: None }, &mut out);
        out
    }

    #[test]
    fn every_index_is_asked_for_at_every_peer_and_again_later() {
        let (mut core, mut out) = (core(), RepairEffects::default());
        let content = RepairContent::Entry { first: Lsn(5), last: Lsn(6) };
        core.step(100, RepairInput::Damaged(&damaged(content, 4096)), &mut out);
        assert_eq!(fetched(&out), [(1, 6), (3, 6)]);
        assert_eq!(fetched(&lacks(&mut core, NodeId(1), 6)), [(1, 5)]);
        // What was not asked for is not heard.
        assert!(lacks(&mut core, NodeId(1), 6).sends.is_empty());
        assert!(lacks(&mut core, NodeId(1), 5).sends.is_empty());
        assert!(core.is_lacking(NodeId(1)) && !core.is_lacking(NodeId(3)));
        let mut out = RepairEffects::default();
        core.step(100, RepairInput::Tick, &mut out);
        assert!(out.sends.is_empty(), "not yet");
        core.step(100 + REPAIR_ASK_NANOS, RepairInput::Tick, &mut out);
        assert_eq!(fetched(&out), [(1, 6), (3, 6)], "who said no is asked from the start");
        let mut out = RepairEffects::default();
        core.step(0, RepairInput::Connected(NodeId(3)), &mut out);
        assert_eq!(fetched(&out), [(3, 6)]);
        assert!(out.write.is_none() && out.failed.is_none());
    }

    #[test]
    fn what_the_node_knows_itself_is_written_at_once_and_only_once() {
        let (mut core, mut out) = (core(), RepairEffects::default());
        let body = vec![5; 1024];
        let own = damaged(RepairContent::Own(body.clone()), 4096);
        core.step(0, RepairInput::Damaged(&own), &mut out);
        let write = RepairWrite { segment: 0, offset: 4096 + 512, body };
        assert_eq!(out.write.take(), Some(write));
        core.step(0, RepairInput::Damaged(&own), &mut out);
        assert_eq!(out.failed.take(), Some(RepairFailure::Again { segment: 0, offset: 4096 }));
        let unknown = LogDamaged { repair: None, ..own };
        core.step(0, RepairInput::Damaged(&unknown), &mut out);
        assert!(matches!(out.failed, Some(RepairFailure::Unmendable(_))));
        assert!(out.write.is_none() && out.sends.is_empty());
    }

    #[test]
    fn a_peer_that_the_configuration_does_not_name_is_asked_again_too() {
        let (mut core, mut out) = (core(), RepairEffects::default());
        let content = RepairContent::Entry { first: Lsn(5), last: Lsn(5) };
        core.step(100, RepairInput::Damaged(&damaged(content, 4096)), &mut out);
        out.sends.clear();
        for node in 4..100 {
            core.step(200, RepairInput::Connected(NodeId(node)), &mut out);
        }
        assert_eq!(fetched(&out).len(), 96, "whoever comes is asked");
        assert!(lacks(&mut core, NodeId(4), 5).sends.is_empty());
        let mut out = RepairEffects::default();
        core.step(200 + REPAIR_ASK_NANOS, RepairInput::Tick, &mut out);
        let again = fetched(&out);
        assert_eq!(again.len(), PEERS_MAX, "and not all numbers are kept in mind");
        assert!(again.contains(&(4, 5)) && again.contains(&(1, 5)));
    }
}
