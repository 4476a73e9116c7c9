//! Mends a damaged log from the peers, before the node takes part (rules R17 and R19).
//!
//! There is no replica here: nothing is voted for, acknowledged, served or given to a shard, and
//! of all messages only [`PeerMessage::FetchReply`] is heard. What is damaged may have been
//! acknowledged by this node. As long as it is not back, a leader that was elected with this
//! node's vote could be one that never had it; so the node rather waits, for as long as it takes.

use std::collections::{BTreeMap, BTreeSet};

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, WallMicros};
use spillway_net::limits::NODES_MAX;
use spillway_net::peer::Message;
use spillway_runtime::buffer::AlignedBuffer;
use spillway_runtime::clock;
use spillway_runtime::direct::DirectFile;
use spillway_runtime::error::RuntimeError;
use spillway_runtime::shutdown::Shutdown;
use spillway_runtime::slot_ring::{SlotMut, SlotRing};
use spillway_runtime::tcp::{TcpEvent, TcpRing, Wait};

use crate::config::Config;
use crate::log::{FrameRepair, Geometry, LogDamaged, RepairContent, Superblock};
use crate::quorum::{PeerHeader, PeerMessage};

use super::NodeError;
use super::files::{NodeFiles, superblock_read};
use super::peer_plan;
use super::peers::{PeerEvent, PeerLinks};
use super::recover;
use super::start::{PEER_CONNECTIONS_MAX, listen_peers, ring_options_of_log};

/// How often the peers are asked again.
const ASK_NANOS: u64 = 500_000_000;
/// How long nothing is said about peers that do not have what is asked for: links need a moment.
const PATIENCE_NANOS: u64 = 2_000_000_000;

/// How a repair ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repaired {
    /// The log is readable.
    Whole,
    /// The process was told to stop.
    Stopped,
}

/// Mends frame after frame until the log is readable.
///
/// # Errors
/// Damage that cannot be mended; its text says what to do.
pub(super) fn repair(
    config: &Config,
    damaged: LogDamaged,
    shutdown: &Shutdown,
) -> Result<Repaired, NodeError> {
    let files = NodeFiles::new(config);
    let (_, chosen) = superblock_read(&files.superblock())?;
    let superblock = chosen.superblock;
    let segments = files.segments_open(&superblock.geometry)?;
    eprintln!("warning: {damaged}");
    eprintln!("note: repairing the log from the peers; until it is whole this node takes no part");
    let mut fetcher = None;
    let mut mended = BTreeSet::new();
    let mut next = Some(damaged);
    while let Some(damaged) = next {
        let Some(repair) = damaged.repair.clone() else { return Err(damaged.into()) };
        let unmendable = |cause: String| {
            let (path, offset) = (files.segment(repair.segment), repair.offset);
            NodeError::Unmendable { path, offset, cause }
        };
        // Each turn mends another frame, so there are no more turns than frames.
        if !mended.insert((repair.segment, repair.offset)) {
            let cause = "it was written anew and is damaged again".to_owned();
            return Err(unmendable(cause));
        }
        let body = match &repair.content {
            RepairContent::Own(body) => body.clone(),
            RepairContent::Entry { first, last } => {
                let fetcher = match &mut fetcher {
                    Some(fetcher) => fetcher,
                    None => fetcher.insert(Fetcher::new(config, &superblock, shutdown)?),
                };
                match fetcher.fetch(&repair, (*first, *last), shutdown)? {
                    Some(body) => body,
                    None => return Ok(Repaired::Stopped),
                }
            }
        };
        let file = &segments[repair.segment as usize];
        let written = body_write(file, &superblock.geometry, &repair, &body);
        written.map_err(|error| unmendable(error.to_string()))?;
        next = recover::check(&superblock, &segments).err();
    }
    eprintln!("note: the log is whole again: {} frame(s) repaired", mended.len());
    Ok(Repaired::Whole)
}

/// Writes a body behind the local header that is there, durably.
fn body_write(
    file: &DirectFile,
    geometry: &Geometry,
    repair: &FrameRepair,
    body: &[u8],
) -> Result<(), RuntimeError> {
    assert_eq!(geometry.block() + body.len(), repair.frame_bytes as usize, "the whole frame");
    let mut buffer = AlignedBuffer::new(body.len().next_multiple_of(4096));
    buffer[..body.len()].copy_from_slice(body);
    file.write_at(&buffer[..body.len()], repair.body_offset(geometry))?;
    file.sync_data()
}

/// Asks the peers for entries.
struct Fetcher {
    geometry: Geometry,
    cluster: ClusterId,
    node: NodeId,
    term: Epoch,
    peers: Vec<NodeId>,
    ring: TcpRing,
    slots: SlotRing,
    links: PeerLinks,
    events: Vec<TcpEvent>,
    /// The waiting was explained.
    is_told: bool,
}

/// One entry that is looked for.
struct Search<'a> {
    repair: &'a FrameRepair,
    /// Indexes that it may have.
    first: Lsn,
    last: Lsn,
    /// Which index each peer was asked for last.
    asked: BTreeMap<NodeId, Lsn>,
    /// Peers that said of all indexes that it is not there.
    lacking: BTreeSet<NodeId>,
}

impl Fetcher {
    fn new(
        config: &Config,
        superblock: &Superblock,
        shutdown: &Shutdown,
    ) -> Result<Self, NodeError> {
        let geometry = superblock.geometry;
        let plan = peer_plan::of(config, superblock)?.expect("only a node with peers repairs");
        let mut ring = TcpRing::new(ring_options_of_log(PEER_CONNECTIONS_MAX))?;
        ring.watch(shutdown.fd(), 1);
        let listener = listen_peers(&mut ring, config)?;
        // One body of each peer, and as much again for what the ring's end and order waste.
        let body_bytes = (geometry.batch_bytes_max as usize).next_multiple_of(4096);
        let slots = SlotRing::new("repair", 2 * NODES_MAX * body_bytes)?;
        let links = PeerLinks::new(plan.repairing().links(listener), clock::monotonic_now().0);
        let nodes = config.cluster.nodes.iter().map(|node| NodeId(node.id));
        Ok(Self {
            geometry,
            cluster: superblock.cluster,
            node: superblock.node,
            term: superblock.term,
            peers: nodes.filter(|node| *node != superblock.node).collect(),
            ring,
            slots,
            links,
            events: Vec::new(),
            is_told: false,
        })
    }

    /// The body of the frame; none if the process was told to stop.
    fn fetch(
        &mut self,
        repair: &FrameRepair,
        (first, last): (Lsn, Lsn),
        shutdown: &Shutdown,
    ) -> Result<Option<Vec<u8>>, NodeError> {
        assert!(first <= last, "an entry has an index");
        let (asked, lacking) = (BTreeMap::new(), BTreeSet::new());
        let mut search = Search { repair, first, last, asked, lacking };
        let began = clock::monotonic_now().0;
        let mut ask_at = began;
        let mut told = Vec::new();
        loop {
            let now = clock::monotonic_now().0;
            if now >= ask_at {
                ask_at = now + ASK_NANOS;
                self.ask_all(&mut search);
                self.tell(&search, now - began);
            }
            let deadline = ask_at.min(self.links.deadline_nanos());
            self.turn(deadline.saturating_sub(now), &mut told)?;
            if shutdown.requested() {
                return Ok(None);
            }
            for event in told.drain(..) {
                match event {
                    PeerEvent::Connected(node) => self.ask(&mut search, node),
                    PeerEvent::Message { from, header, body: slot } => {
                        if let Some(body) = self.reply(&mut search, from, &header, slot) {
                            return Ok(Some(body));
                        }
                    }
                    PeerEvent::Lost(_) => {}
                    PeerEvent::Notice(notice) => eprintln!("{notice}"),
                }
            }
        }
    }

    fn turn(&mut self, nanos: u64, told: &mut Vec<PeerEvent>) -> Result<(), NodeError> {
        let wait = Wait::For(nanos.clamp(1, ASK_NANOS));
        self.ring.turn(wait, &mut self.events)?;
        for event in self.events.drain(..) {
            if let Some(TcpEvent::Received { buffer, .. }) = self.links.event(&mut self.ring, event)
            {
                self.ring.release(buffer);
            }
        }
        let now = clock::monotonic_now().0;
        let slots = &mut self.slots;
        self.links.turn(&mut self.ring, &mut |bytes| slots.reserve(bytes), now, told);
        Ok(())
    }

    /// Asks everybody from the first index on who has said no, and the others the same again.
    fn ask_all(&mut self, search: &mut Search<'_>) {
        for at in 0..self.peers.len() {
            let node = self.peers[at];
            if search.lacking.contains(&node) {
                search.asked.remove(&node);
            }
            self.ask(search, node);
        }
    }

    fn ask(&mut self, search: &mut Search<'_>, node: NodeId) {
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
        // Whoever is not connected is asked when it is.
        self.links.send(&mut self.ring, node, &header.encode(), None);
    }

    /// What a peer says. The body, if it is the one.
    fn reply(
        &mut self,
        search: &mut Search<'_>,
        from: NodeId,
        header: &Message,
        slot: Option<SlotMut>,
    ) -> Option<Vec<u8>> {
        let header = PeerHeader::decode(&self.geometry, header).ok()?;
        let ours = header.from == from && header.to == self.node && header.cluster == self.cluster;
        let PeerMessage::FetchReply { lsn, .. } = header.message else { return None };
        if !ours || search.asked.get(&from) != Some(&lsn) {
            return None;
        }
        if let Some(slot) = slot {
            let body = &slot[self.geometry.block()..];
            if search.repair.verify(&self.geometry, self.cluster, body).is_ok() {
                return Some(body.to_vec());
            }
        }
        if lsn > search.first {
            search.asked.insert(from, Lsn(lsn.0 - 1));
            self.ask(search, from);
        } else {
            search.lacking.insert(from);
        }
        None
    }

    /// Says once why the node waits.
    fn tell(&mut self, search: &Search<'_>, waited_nanos: u64) {
        if self.is_told || waited_nanos < PATIENCE_NANOS {
            return;
        }
        self.is_told = true;
        let state = |node: &NodeId| {
            let state = match (self.links.is_connected(*node), search.lacking.contains(node)) {
                (true, true) => "does not have it",
                (true, false) => "has not answered",
                (false, _) => "is not connected",
            };
            format!("node {node} {state}")
        };
        let states: Vec<String> = self.peers.iter().map(state).collect();
        eprintln!(
            "note: LSN {} cannot be had from a peer yet: {}. This node may have acknowledged it, \
             so it neither votes nor serves without it: better no leader for a while than one \
             that lost it. Start the other nodes, this one keeps asking. Only if nobody has it \
             any more, let this node join anew with `spillway admin replace-node`",
            search.last,
            states.join(", "),
        );
    }
}
