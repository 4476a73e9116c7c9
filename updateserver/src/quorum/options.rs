//! How a replica is set up.

use spillway_net::ids::{ClusterId, Lsn, NodeId};
use spillway_runtime::slot_ring::Slot;

use super::election::ElectionSpan;
use super::failure::ReplicaFailure;
use super::membership::{ConfigEntry, Membership};
use super::replica::config_entry;
use crate::log::{EntryIndex, FrameKind, LogPosition, LogWriterOptions, Superblock};

/// Settings. [`ReplicaOptions::new`] has values for all.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaOptions {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Everything random follows from it; the same on no two nodes is not required.
    pub seed: u64,
    /// Length of a tick.
    pub tick_nanos: u64,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Shortest election timeout, ticks.
    pub election_ticks_min: usize,
    /// Election timeouts are shorter than this, ticks.
    pub election_ticks_max: usize,
    /// Entries sent to a peer and not answered.
    pub inflight_messages_max: usize,
    /// Bytes sent to a peer and not answered, or waiting in its connection.
    pub inflight_bytes_max: u64,
    /// With more bytes proposed and not committed, batches wait.
    pub uncommitted_bytes_max: u64,
    /// How far the tail may run ahead of the committed end (LAL): with more, items wait.
    pub tail_bytes_max: u64,
    /// Entries kept in memory for peers that are a little behind: well below half of the slot ring.
    pub cache_bytes_max: u64,
    /// With fewer entries in flight a batch goes at once, however small.
    pub in_flight_small_max: usize,
    /// With more entries in flight a batch waits until it holds this much, or one completes.
    pub batch_bytes_wait: usize,
    /// Own frames that may wait for the own disk while the others commit.
    pub backlog_frames_max: usize,
    /// Reads of old entries in flight.
    pub reads_max: usize,
    /// A leader whose own disk is this far behind what is committed hands over.
    pub disk_lag_nanos_max: u64,
    /// A peer that is silent for this long holds no memory when memory is short.
    pub peer_silence_nanos_max: u64,
    /// Of the log writer. Term, vote and boot are those of the superblock.
    pub writer: LogWriterOptions,
}

impl ReplicaOptions {
    /// The usual settings.
    pub fn new(writer: LogWriterOptions, seed: u64) -> Self {
        Self {
            node: writer.node,
            cluster: writer.cluster,
            seed,
            tick_nanos: 10_000_000,
            heartbeat_ticks: 5,
            election_ticks_min: 50,
            election_ticks_max: 100,
            inflight_messages_max: 64,
            inflight_bytes_max: 32 << 20,
            uncommitted_bytes_max: 64 << 20,
            tail_bytes_max: 64 << 20,
            cache_bytes_max: 128 << 20,
            in_flight_small_max: 2,
            batch_bytes_wait: 32 << 10,
            backlog_frames_max: 256,
            reads_max: 8,
            disk_lag_nanos_max: 500_000_000,
            peer_silence_nanos_max: 250_000_000,
            writer,
        }
    }

    /// The span of election timeouts.
    pub(super) fn span(&self) -> ElectionSpan {
        ElectionSpan { min: self.election_ticks_min, max: self.election_ticks_max }
    }

    pub(super) fn check(&self, superblock: &Superblock) {
        let writer = &self.writer;
        assert_eq!((writer.cluster, writer.node), (self.cluster, self.node), "one node");
        assert_eq!((superblock.cluster, superblock.node), (self.cluster, self.node), "its log");
        assert_eq!((writer.term, writer.vote), (superblock.term, superblock.vote), "hard state");
        assert_eq!(writer.boot, superblock.boot, "boot of the superblock");
        assert!(self.tick_nanos > 0 && self.heartbeat_ticks > 0, "time passes");
        assert!(self.heartbeat_ticks < self.election_ticks_min, "heartbeats keep a leader");
        assert!(self.election_ticks_min < self.election_ticks_max, "a span of timeouts");
        assert!(self.inflight_messages_max > 0 && self.inflight_bytes_max > 0, "windows");
        assert!(self.backlog_frames_max >= writer.in_flight_max, "frames in flight are backlog");
    }
}

/// What recovery found.
#[derive(Debug)]
pub struct ReplicaStart {
    /// Where the log goes on.
    pub position: LogPosition,
    /// All entries from the floor on.
    pub entries: EntryIndex,
    /// Bodies of all entries above `applied`, in order.
    pub tail: Vec<(Lsn, Slot)>,
    /// The superblock of this boot, durable.
    pub superblock: Superblock,
    /// Everything up to here is committed and applied on all shards.
    pub applied: Lsn,
    /// Contents of the configuration entries above the floor and at or below `applied`, in order.
    pub config_entries: Vec<Vec<u8>>,
}

impl ReplicaStart {
    /// The members at `applied`: those of the floor, and the changes since.
    ///
    /// # Errors
    /// The log has a change that this build cannot read, or that does not follow from what is
    /// before it.
    pub fn membership(&self) -> Result<Membership, ReplicaFailure> {
        let mut membership = Membership::of_members(&self.superblock.members);
        for (number, bytes) in self.config_entries.iter().enumerate() {
            let taken = ConfigEntry::decode(bytes).and_then(|entry| membership.take(&entry));
            if taken.is_err() {
                let reason = "it does not follow from the members before it in this node's log";
                return Err(ReplicaFailure::Config { lsn: self.config_lsn(number), reason });
            }
        }
        Ok(membership)
    }

    /// Index of the configuration entry of this number behind the floor.
    fn config_lsn(&self, number: usize) -> Lsn {
        let (first, last) = (self.entries.first().0, self.entries.last().0);
        let is_config =
            |lsn: &Lsn| self.entries.get(*lsn).is_some_and(|meta| meta.kind == FrameKind::Config);
        (first..=last).map(Lsn).filter(is_config).nth(number).unwrap_or(self.applied)
    }

    /// What a replica relies on and the checksums of the log do not cover: that every change of
    /// members can be read, and that those up to `applied` follow from each other. To be asked
    /// before anything is written.
    ///
    /// # Errors
    /// The first that cannot be carried out.
    pub fn check(&self) -> Result<(), ReplicaFailure> {
        self.membership()?;
        let is_config = |lsn: Lsn| self.entries.get(lsn).map(|meta| meta.kind);
        for (lsn, body) in &self.tail {
            if is_config(*lsn) == Some(FrameKind::Config) {
                config_entry(&self.superblock.geometry, *lsn, body)?;
            }
        }
        Ok(())
    }
}
