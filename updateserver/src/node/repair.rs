//! The shell of a repair of the log from the peers: see [`crate::quorum::LogRepair`].

use spillway_net::ids::NodeId;
use spillway_net::limits::NODES_MAX;
use spillway_runtime::buffer::AlignedBuffer;
use spillway_runtime::clock;
use spillway_runtime::direct::DirectFile;
use spillway_runtime::error::RuntimeError;
use spillway_runtime::shutdown::Shutdown;
use spillway_runtime::slot_ring::SlotRing;
use spillway_runtime::tcp::{TcpEvent, TcpRing, Wait};

use crate::config::Config;
use crate::log::{LogDamaged, Superblock};
use crate::quorum::{
    LogRepair, REPAIR_ASK_NANOS, RepairEffects, RepairFailure, RepairInput, RepairWrite,
};

use super::NodeError;
use super::files::{NodeFiles, superblock_read};
use super::peer_plan;
use super::peers::{PeerEvent, PeerLinks};
use super::recover;
use super::start::{PEER_CONNECTIONS_MAX, listen_peers, ring_options_of_log};

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
    let peers = config.cluster.nodes.iter().map(|node| NodeId(node.id));
    let mut core = LogRepair::new(&superblock, peers);
    let mut fetcher = None;
    let mut next = Some(damaged);
    while let Some(damaged) = next {
        let mut out = RepairEffects::default();
        core.step(clock::monotonic_now().0, RepairInput::Damaged(&damaged), &mut out);
        let unmendable = |segment: u32, offset: u64, cause: String| NodeError::Unmendable {
            path: files.segment(segment),
            offset,
            cause,
        };
        match out.failed.take() {
            Some(RepairFailure::Unmendable(damaged)) => return Err(damaged.into()),
            Some(RepairFailure::Again { segment, offset }) => {
                let cause = RepairFailure::Again { segment, offset }.to_string();
                return Err(unmendable(segment, offset, cause));
            }
            None => {}
        }
        if out.write.is_none() {
            let fetcher = match &mut fetcher {
                Some(fetcher) => fetcher,
                None => fetcher.insert(Fetcher::new(config, &superblock, shutdown)?),
            };
            fetcher.fetch(&mut core, &mut out, shutdown)?;
        }
        let Some(write) = out.write else { return Ok(Repaired::Stopped) };
        let written = body_write(&segments[write.segment as usize], &write);
        let offset = write.offset - u64::from(superblock.geometry.block_bytes);
        written.map_err(|error| unmendable(write.segment, offset, error.to_string()))?;
        next = recover::check(&superblock, &segments).err();
    }
    eprintln!("note: the log is whole again: {} frame(s) repaired", core.mended());
    Ok(Repaired::Whole)
}

/// Writes a body behind the local header that is there, durably.
fn body_write(file: &DirectFile, write: &RepairWrite) -> Result<(), RuntimeError> {
    let body = &write.body;
    let mut buffer = AlignedBuffer::new(body.len().next_multiple_of(4096));
    buffer[..body.len()].copy_from_slice(body);
    file.write_at(&buffer[..body.len()], write.offset)?;
    file.sync_data()
}

/// The links to the peers, which are asked for entries.
struct Fetcher {
    block: usize,
    ring: TcpRing,
    slots: SlotRing,
    links: PeerLinks,
    events: Vec<TcpEvent>,
    /// The waiting was explained.
    is_told: bool,
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
        let block = geometry.block();
        Ok(Self { block, ring, slots, links, events: Vec::new(), is_told: false })
    }

    /// Goes on until there is something to write, or the process is told to stop.
    fn fetch(
        &mut self,
        core: &mut LogRepair,
        out: &mut RepairEffects,
        shutdown: &Shutdown,
    ) -> Result<(), NodeError> {
        let began = clock::monotonic_now().0;
        let mut told = Vec::new();
        while out.write.is_none() {
            // Whoever is not connected is asked when it is.
            for (node, header) in out.sends.drain(..) {
                self.links.send(&mut self.ring, node, &header.encode(), None);
            }
            let now = clock::monotonic_now().0;
            let asks_at = core.deadline_nanos().expect("an entry is looked for");
            self.turn(asks_at.min(self.links.deadline_nanos()).saturating_sub(now), &mut told)?;
            if shutdown.requested() {
                return Ok(());
            }
            let now = clock::monotonic_now().0;
            for event in told.drain(..) {
                match event {
                    PeerEvent::Connected(node) => {
                        core.step(now, RepairInput::Connected(node), out);
                    }
                    PeerEvent::Message { from, header, body } => {
                        let body = body.as_ref().map(|slot| &slot[self.block..]);
                        let header = &header;
                        core.step(now, RepairInput::Message { from, header, body }, out);
                    }
                    PeerEvent::Lost(_) => {}
                    PeerEvent::Notice(notice) => eprintln!("{notice}"),
                }
            }
            core.step(now, RepairInput::Tick, out);
            self.tell(core, now - began);
        }
        Ok(())
    }

    fn turn(&mut self, nanos: u64, told: &mut Vec<PeerEvent>) -> Result<(), NodeError> {
        let wait = Wait::For(nanos.clamp(1, REPAIR_ASK_NANOS));
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

    /// Says once why the node waits.
    fn tell(&mut self, core: &LogRepair, waited_nanos: u64) {
        let Some(last) = core.wanted() else { return };
        if self.is_told || waited_nanos < PATIENCE_NANOS {
            return;
        }
        self.is_told = true;
        let state = |node: &NodeId| {
            let state = match (self.links.is_connected(*node), core.is_lacking(*node)) {
                (true, true) => "does not have it",
                (true, false) => "has not answered",
                (false, _) => "is not connected",
            };
            format!("node {node} {state}")
        };
        let states: Vec<String> = core.peers().iter().map(state).collect();
        eprintln!(
            "note: LSN {last} cannot be had from a peer yet: {}. This node may have acknowledged \
             it, so it neither votes nor serves without it: better no leader for a while than one \
             that lost it. Start the other nodes, this one keeps asking. Only if nobody has it \
             any more, let this node join anew with `spillway admin replace-node`",
            states.join(", "),
        );
    }
}
