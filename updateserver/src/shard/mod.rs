//! The shard core: executes transactions, keeps sessions and answers, and produces redo.
//!
//! Pure: [`Shard::step`] takes the time and an input and fills effects. It lives on one core and
//! owns its partitions alone; whatever it lets a client see, it has first handed over to the log.

mod connection;
mod execute;
mod item;
mod partition;
mod prepare;
mod replay;
mod reply;
mod scan;
mod store;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use spillway_net::frame::{FrameHeader, FrameKind};
use spillway_net::ids::{
    ClusterId, Epoch, Lsn, NodeId, PartitionId, SessionId, ShardIndex, TableId,
};
use spillway_net::message::{Refusal, RefusalCode};
use spillway_net::schema::TableDefinition;

use crate::memtable::{ChunkSource, Stamp};
use crate::session::{SessionDirectory, SessionTable};

pub use item::{ItemSection, LogItem, ORIGIN_ROOT};
pub use replay::{ReplayCounts, ReplayError};
pub use reply::{Outgoing, Released};

use connection::Connections;
use execute::Scratch;
use item::Sealer;
use prepare::Spread;
use reply::HeldReplies;
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
    /// The leader's term.
    pub epoch: Epoch,
    /// Port of every shard.
    pub shard_ports: Vec<u16>,
    /// Hand-overs that may wait for their commit before no new transaction is executed.
    pub handovers_in_flight_max: u64,
    /// Bytes of answers held before no new transaction is executed.
    pub held_bytes_max: usize,
    /// Bytes of sessions' outcomes beyond which no new writes are executed.
    pub outcomes_bytes_max: usize,
}

/// A frame whose header and checksum were checked.
#[derive(Debug, Clone, Copy)]
pub struct InboundFrame<'a> {
    /// Where it came from.
    pub connection: u64,
    /// Its header.
    pub header: FrameHeader,
    /// Its payload, not yet validated.
    pub payload: &'a [u8],
}

/// What the log tells the shards: state that is overwritten, not a queue that can fill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogState {
    /// Committed end of the log.
    pub vdl: Lsn,
    /// Whether its budget is used up.
    pub full: bool,
    /// Whether its device failed.
    pub failed: bool,
}

/// Orders of the root service.
#[derive(Debug, Clone, PartialEq)]
pub enum RootOrder {
    /// The table is committed: use it.
    TableCreate {
        /// Its id.
        table: TableId,
        /// Its definition.
        definition: TableDefinition,
    },
    /// Stop using the table; its drop is logged after all shards said so.
    TableDrop {
        /// Its id.
        table: TableId,
    },
    /// Forget the session.
    SessionClose {
        /// Its id.
        session: SessionId,
    },
}

/// One input of the core.
#[derive(Debug)]
pub enum ShardInput<'a> {
    /// A client connected.
    Opened(u64),
    /// A connection is gone.
    Closed(u64),
    /// Frames in the order of their arrival.
    Frames(&'a [InboundFrame<'a>]),
    /// The log has committed this shard's hand-overs up to a stamp, or its state changed.
    Log {
        /// Newest committed hand-over of this shard.
        stamp: u64,
        /// The log's state.
        state: LogState,
    },
    /// The root service orders something; to be acknowledged.
    Root(RootOrder),
    /// The end of a turn: open fragments are handed over.
    TurnEnd,
}

/// A client's request for the root service, on shard 0.
#[derive(Debug, Clone, PartialEq)]
pub enum RootCommand {
    /// Open a session.
    SessionOpen {
        /// For lists.
        client_name: String,
    },
    /// Close one.
    SessionClose {
        /// Its id.
        session: SessionId,
    },
    /// Create a table.
    TableCreate {
        /// Its definition, not yet validated.
        definition: TableDefinition,
    },
    /// Drop a table.
    TableDrop {
        /// Its name.
        name: String,
    },
}

/// Who asked the root service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootOrigin {
    /// The connection.
    pub connection: u64,
    /// The frame's request number.
    pub request: u64,
}

/// What a step wants done. Reused from step to step.
#[derive(Debug, Default)]
pub struct ShardEffects {
    /// Hand-overs in order; the boxes come back through [`Shard::recycle`].
    pub items: Vec<Box<LogItem>>,
    /// Frames that may leave.
    pub released: Released,
    /// Connections to close once what was released for them is sent.
    pub closes: Vec<u64>,
    /// Requests for the root service.
    pub root_commands: Vec<(RootOrigin, RootCommand)>,
    /// How many orders of the root service were carried out.
    pub orders_done: u32,
    /// Status requests, answered by the shell, which knows the numbers of all cores.
    pub status_requests: Vec<RootOrigin>,
    /// How many of the last [`ShardInput::Frames`] were executed. The others, if any, are to be
    /// given again once [`Shard::accepts_frames`].
    pub frames_taken: usize,
}

impl ShardEffects {
    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.items.clear();
        self.released.clear();
        self.closes.clear();
        self.root_commands.clear();
        self.orders_done = 0;
        self.status_requests.clear();
    }

    fn refuse(&mut self, connection: u64, request: u64, code: RefusalCode, message: String) {
        let refusal = Refusal::new(code, message);
        self.released.push(connection, FrameKind::Refusal, request, &refusal);
    }

    fn refuse_log_failed(&mut self, connection: u64, request: u64) {
        let text = "the log device failed: repair it and start the node again".to_owned();
        self.refuse(connection, request, RefusalCode::LogUnavailable, text);
    }

    fn refuse_and_close(
        &mut self,
        connection: u64,
        request: u64,
        code: RefusalCode,
        message: String,
    ) {
        self.refuse(connection, request, code, message);
        self.closes.push(connection);
    }
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
    log: LogState,
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
            log: LogState::default(),
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
            ShardInput::Root(order) => self.root_order(&order, out),
            ShardInput::TurnEnd => self.hand_over(out),
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
        self.store.order_keep_up();
        self.sealer.seal(&mut self.store, &mut item);
        self.counters.handovers += 1;
        out.items.push(item);
    }

    /// The hand-over that an answer given now has to wait for: the one that will carry the open
    /// fragments, or the last one. With a failed log answers report no effects, only the failure,
    /// and wait for nothing.
    fn stamp_to_wait_for(&self) -> u64 {
        if self.log.failed {
            return self.store.floor.0;
        }
        if self.store.open.is_empty() { self.store.stamp.0 - 1 } else { self.store.stamp.0 }
    }

    fn log_moved(&mut self, stamp: u64, state: LogState, out: &mut ShardEffects) {
        assert!(stamp < self.store.stamp.0, "only what was handed over is committed");
        assert!(Stamp(stamp) >= self.store.floor, "commits do not go back");
        assert!(!self.log.failed || state.failed, "a failed log stays failed");
        self.store.floor = Stamp(stamp);
        self.log = state;
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

    /// Lets go of all answers whose hand-over is committed.
    fn release(&mut self, out: &mut ShardEffects) {
        let before = out.released.frames.len();
        self.held.release(self.store.floor.0, self.log.vdl, &mut out.released);
        for frame in &out.released.frames[before..] {
            if frame.answers_submit {
                self.connections.answered(frame.connection);
            }
        }
    }

    fn root_order(&mut self, order: &RootOrder, out: &mut ShardEffects) {
        match order {
            RootOrder::TableCreate { table, definition } => {
                self.store.table_create(*table, definition.clone());
            }
            RootOrder::TableDrop { table } => {
                self.hand_over(out);
                self.store.table_drop(*table);
            }
            RootOrder::SessionClose { session } => {
                self.hand_over(out);
                if let Some(connection) = self.sessions.close(*session) {
                    self.connection_closed(connection);
                    out.refuse_and_close(
                        connection,
                        0,
                        RefusalCode::SessionUnknown,
                        format!("session {session} was closed"),
                    );
                }
            }
        }
        out.orders_done += 1;
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
