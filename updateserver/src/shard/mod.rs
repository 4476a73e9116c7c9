//! The shard core: executes transactions, keeps sessions and answers, and produces redo.
//!
//! Pure: [`Shard::step`] takes the time and an input and fills effects. It lives on one core and
//! owns its partitions alone; whatever it lets a client see, it has first handed over to the log.
//!
//! It begins as a follower: it applies what is committed, and executes only from
//! [`ShardInput::Lead`] to [`ShardInput::StepDown`].

mod connection;
mod effects;
mod execute;
mod handover;
mod input;
mod item;
mod partition;
mod prepare;
mod replay;
mod reply;
mod role;
mod scan;
mod store;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use spillway_net::ids::{
    ClusterId, Epoch, Lsn, NodeId, PartitionId, SessionId, ShardIndex, WallMicros,
};
use spillway_net::message::{MemberAddress, RefusalCode};

use crate::memtable::{ChunkSource, Stamp};
use crate::session::{SessionDirectory, SessionTable};

pub use effects::{RootCommand, RootOrigin, ShardEffects};
pub use input::{
    ApplyBatch, ApplySection, InboundFrame, LogState, RootAnswer, RootOrder, ShardInput,
};
pub use item::{ItemSection, LogItem, ORIGIN_ROOT};
pub use replay::{ReplayCounts, ReplayError, system_commands};
pub use reply::{Outgoing, Released};

use connection::Connections;
use execute::Scratch;
use item::Sealer;
use partition::Partition;
use prepare::Spread;
use reply::{HeldReplies, Waits};
use role::Role;
use store::Store;

/// What a shard must know of its node.
#[derive(Debug, Clone)]
pub struct ShardOptions {
    /// This shard.
    pub index: ShardIndex,
    /// Shards of the process.
    pub shards: u16,
    /// Partitions of the cluster.
    pub partitions: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Port of every shard.
    pub shard_ports: Vec<u16>,
    /// Hand-overs that may wait for their commit before no new transaction is executed.
    pub handovers_in_flight_max: u64,
    /// Bytes of answers held before no new transaction is executed.
    pub held_bytes_max: usize,
    /// Bytes of sessions' outcomes beyond which no new writes are executed.
    pub outcomes_bytes_max: usize,
}

/// Numbers of one shard since its start.
#[derive(Debug, Default, Clone, Copy)]
pub struct ShardCounters {
    /// Transactions by their end: committed.
    pub committed: u64,
    /// Failed checks, duplicates, bounds.
    pub failed: u64,
    /// Refused for limits, schema, shard.
    pub refused: u64,
    /// Found in the session's outcomes instead of being executed.
    pub repeated: u64,
    /// Frames with transactions.
    pub frames: u64,
    /// Hand-overs.
    pub handovers: u64,
    /// Records applied as a follower since the start, without those of the replay.
    pub records_applied: u64,
}

/// One shard. See the module's documentation.
pub struct Shard {
    options: ShardOptions,
    spread: Spread,
    store: Store,
    sessions: SessionTable,
    directory: Arc<SessionDirectory>,
    connections: Connections,
    held: HeldReplies,
    sealer: Sealer,
    scratch: Scratch,
    #[expect(clippy::vec_box, reason = "items travel through rings as boxes and come back so")]
    items_spare: Vec<Box<LogItem>>,
    role: Role,
    /// The newest term it has led in.
    epoch_led: Epoch,
    log: LogState,
    /// The newest stamp that the log told.
    stamp_told: u64,
    members: Arc<[MemberAddress]>,
    applied_lsn: Lsn,
    applied_timestamp: WallMicros,
    counters: ShardCounters,
    now_seconds: u32,
}

impl Shard {
    /// An empty shard. `memory_bytes_withheld` of the chunks are kept for work that cannot be
    /// refused.
    pub fn new(
        options: ShardOptions,
        directory: Arc<SessionDirectory>,
        chunks: Box<dyn ChunkSource>,
        memory_bytes_withheld: usize,
    ) -> Self {
        assert!(options.index.0 < options.shards, "a shard is one of the process's shards");
        assert!(options.partitions.is_power_of_two(), "partitions are a power of two");
        assert!(u32::from(options.shards) <= options.partitions, "every shard has a partition");
        let spread =
            Spread { index: options.index, shards: options.shards, partitions: options.partitions };
        let own = (0..options.partitions as u16)
            .filter(|p| p % options.shards == options.index.0)
            .map(PartitionId);
        Self {
            store: Store::new(own, chunks, memory_bytes_withheld),
            spread,
            sessions: SessionTable::default(),
            directory,
            connections: Connections::default(),
            held: HeldReplies::default(),
            sealer: Sealer::default(),
            scratch: Scratch::default(),
            items_spare: Vec::new(),
            role: Role::Follow,
            epoch_led: Epoch(0),
            log: LogState::default(),
            stamp_told: 0,
            members: Arc::new([]),
            applied_lsn: Lsn(0),
            applied_timestamp: WallMicros(0),
            counters: ShardCounters::default(),
            now_seconds: 0,
            options,
        }
    }

    /// Takes one input. `now_nanos` is the monotonic clock.
    pub fn step(&mut self, now_nanos: u64, input: ShardInput<'_>, out: &mut ShardEffects) {
        self.now_seconds = (now_nanos / 1_000_000_000) as u32;
        match input {
            ShardInput::Opened(connection) => self.connections.open(connection),
            ShardInput::Closed(connection) => self.connection_closed(connection),
            ShardInput::Frames(frames) => self.frames(frames, out),
            ShardInput::Log { stamp, state } => self.log_moved(stamp, state, out),
            ShardInput::Members(members) => self.members = members,
            ShardInput::Root(order) => self.root_order(&order, out),
            ShardInput::Answer(origin, answer) => self.root_answer(origin, &answer, out),
            ShardInput::TurnEnd => self.hand_over(out),
            ShardInput::Apply(batch) => self.apply(batch, out),
            ShardInput::Lead { epoch } => self.lead(epoch, out),
            ShardInput::StepDown { stamp } => self.step_down(stamp, out),
        }
    }

    /// Whether frames may be given to the shard: not while too many hand-overs or answers wait.
    /// Control inputs are always taken.
    ///
    /// With a failed log nothing is committed any more, and frames are taken to say so.
    pub fn accepts_frames(&self) -> bool {
        if self.log.failed {
            return true;
        }
        let in_flight = self.store.stamp.0 - 1 - self.store.floor.0;
        in_flight < self.options.handovers_in_flight_max
            && self.held.bytes() < self.options.held_bytes_max
    }

    /// Takes back an item whose content is in the log.
    pub fn recycle(&mut self, mut item: Box<LogItem>) {
        if self.items_spare.len() < 16 {
            item.clear();
            self.items_spare.push(item);
        }
    }

    /// Hands the open fragments over as one item.
    fn hand_over(&mut self, out: &mut ShardEffects) {
        if self.store.open.is_empty() {
            return;
        }
        let mut item = self.items_spare.pop().unwrap_or_default();
        item.origin = self.options.index.0;
        item.epoch = self.epoch_led;
        self.store.order_keep_up();
        self.sealer.seal(&mut self.store, &mut item);
        self.counters.handovers += 1;
        out.items.push(item);
    }

    /// What an answer given now has to wait for: the hand-over that will carry the open fragments,
    /// which is proof of leadership too; or the last one and, if it must have seen everything
    /// that was acknowledged before, a leadership round. With a failed log answers report no
    /// effects, only the failure, and wait for nothing.
    fn waits(&self, strong: bool, out: &mut ShardEffects) -> Waits {
        if self.log.failed || !self.leads() {
            return Waits { stamp: self.store.floor.0, round: 0 };
        }
        if !self.store.open.is_empty() {
            return Waits { stamp: self.store.stamp.0, round: 0 };
        }
        let mut round = if strong { self.log.round_next } else { 0 };
        if spillway_runtime::planted!(RoundOfThePast) {
            round = round.saturating_sub(1);
        }
        if round > self.log.round_confirmed {
            out.round_wanted = out.round_wanted.max(round);
        }
        let mut stamp = self.store.stamp.0 - 1;
        if spillway_runtime::planted!(ReadAnswersUncommitted) {
            stamp = self.store.floor.0;
        }
        Waits { stamp, round }
    }

    fn log_moved(&mut self, stamp: u64, state: LogState, out: &mut ShardEffects) {
        assert!(stamp < self.store.stamp.0, "only what was handed over is committed");
        assert!(stamp >= self.stamp_told, "commits do not go back");
        assert!(!self.log.failed || state.failed, "a failed log stays failed");
        self.stamp_told = stamp;
        self.log = state;
        if self.leads() {
            self.store.commit(Stamp(stamp));
            // Whatever is committed in its own term a leader has executed.
            self.applied_lsn = self.applied_lsn.max(state.vdl);
        }
        self.release(out);
        if state.failed {
            // What these answers report may or may not be durable: the client must hear
            // "unknown", and only a lost connection says that.
            for connection in self.held.abandon() {
                self.connection_closed(connection);
                out.closes.push(connection);
            }
        }
    }

    /// Lets go of all answers that need not wait any more.
    fn release(&mut self, out: &mut ShardEffects) {
        let before = out.released.frames.len();
        let lsn = if self.leads() { self.log.vdl } else { self.applied_lsn };
        let (floor, round) = (self.store.floor.0, self.log.round_confirmed);
        let closes = out.closes.len();
        self.held.release(floor, round, lsn, &mut out.released, &mut out.closes);
        for frame in &out.released.frames[before..] {
            if frame.answers_submit {
                self.connections.answered(frame.connection);
            }
        }
        for connection in &out.closes[closes..] {
            self.connection_closed(*connection);
        }
    }

    fn root_order(&mut self, order: &RootOrder, out: &mut ShardEffects) {
        match order {
            RootOrder::TableCreate { table, definition } => {
                let created = self.store.table_create(*table, definition.clone());
                created.expect("the root service has validated it and uses no id twice");
            }
            RootOrder::TableHide { table } if self.leads() => {
                self.hand_over(out);
                self.store.table_hide(*table);
            }
            RootOrder::SessionHide { session } if self.leads() => {
                self.hand_over(out);
                let held = self.sessions.get_mut(*session);
                let connection = held.and_then(|held| held.connection.take());
                if self.log.round_next == 0 {
                    self.session_connection_close(connection, *session, out);
                } else if let Some(connection) = connection {
                    // Who asks again hears why, once it is proven that this node leads.
                    self.connection_closed(connection);
                    out.closes.push(connection);
                }
            }
            // Ordered by a leader that leads no more: nothing will come of it.
            RootOrder::TableHide { .. } | RootOrder::SessionHide { .. } => {}
            RootOrder::TableRemove { table } => self.store.table_remove(*table),
            RootOrder::SessionRemove { session } => self.session_remove(*session, out),
        }
        out.orders_done += 1;
    }

    /// A session is gone for good.
    fn session_remove(&mut self, session: SessionId, out: &mut ShardEffects) {
        let connection = self.sessions.close(session);
        self.session_connection_close(connection, session, out);
    }

    fn session_connection_close(
        &mut self,
        connection: Option<u64>,
        session: SessionId,
        out: &mut ShardEffects,
    ) {
        let Some(connection) = connection else { return };
        self.connection_closed(connection);
        let text = format!("session {session} was closed");
        out.refuse_and_close(connection, 0, RefusalCode::SessionUnknown, text);
    }

    fn connection_closed(&mut self, connection: u64) {
        let Some(session) = self.connections.close(connection) else { return };
        if let Some(session) = self.sessions.get_mut(session)
            && session.connection == Some(connection)
        {
            session.connection = None;
        }
    }

    /// Numbers since the start.
    pub fn counters(&self) -> ShardCounters {
        self.counters
    }

    /// Up to this batch everything of this shard is applied: on a follower what it was given, on
    /// a leader the committed end.
    pub fn applied_lsn(&self) -> Lsn {
        self.applied_lsn
    }

    /// Timestamp of the newest batch that was applied while following.
    pub fn applied_timestamp(&self) -> WallMicros {
        self.applied_timestamp
    }

    /// Running digest of a partition of this shard, the open fragment left out.
    pub fn digest(&self, partition: PartitionId) -> u128 {
        assert_eq!(partition.0 % self.spread.shards, self.spread.index.0, "not this shard's");
        self.store.partitions[usize::from(partition.0 / self.spread.shards)].digest
    }

    /// One number for the digests of all partitions of this shard, what is open left out: the
    /// sum over all shards is the same on all nodes that have applied the same log, however many
    /// shards they have.
    pub fn digest_all(&self) -> u64 {
        let one = |partition: &Partition| {
            let (id, digest) = (u128::from(partition.id.0) + 1, partition.digest);
            let bytes = digest.wrapping_add(id.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes();
            xxhash_rust::xxh3::xxh3_64(&bytes)
        };
        self.store.partitions.iter().map(one).fold(0, u64::wrapping_add)
    }

    /// Rows held, deleted ones included; bytes of the arena in use and taken from the budget.
    pub fn memory(&self) -> (u64, u64, u64) {
        let rows = self.store.slices.iter().map(|slice| slice.rows_count() as u64).sum();
        (rows, self.store.arena.bytes_used() as u64, self.store.arena.bytes_reserved() as u64)
    }

    /// Sessions that have state on this shard.
    pub fn sessions_count(&self) -> usize {
        self.sessions.count()
    }

    /// Connections open.
    pub fn connections_count(&self) -> usize {
        self.connections.count()
    }
}
