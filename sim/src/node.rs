//! The node: the production cores, and around them in one thread what the shells do.
//!
//! A seat is what has a thread of its own in production: each shard, and the log. Seats take turns
//! at drawn times and see of each other only what the queues and the published state carry.
//! [`shards`] re-enacts the shell of a shard, [`log`] that of the log core.

mod limits;
mod log;
mod members;
mod shards;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use spillway_net::frame::{FrameAssembler, FrameHeader};
use spillway_net::ids::{NodeId, WallMicros};
use spillway_runtime::slot_ring::Slot;
use spillway_updateserver::log::ReadRequest;
use spillway_updateserver::quorum::{PEER_HEADER_BYTES, ReplicaFailure};
use spillway_updateserver::root::{Member, Root, RootEffects};
use spillway_updateserver::shard::{LogItem, ReplayError, RootOrder, Shard, ShardEffects};

use crate::Failure;
use crate::disk::File;
use crate::draw::Draw;
use crate::entry::Entry;
use crate::options::{Bug, Sizes};
use crate::oracle::Oracle;
use crate::start::Started;
use log::LogSeat;
pub use members::{Door, member};

/// Who takes a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seat {
    /// A shard.
    Shard(u16),
    /// The log.
    Log,
}

/// What a write was for.
#[derive(Clone, Debug)]
pub enum Token {
    /// A frame: its sequence, and the memory it is written from.
    Frame(u64, Slot),
    /// Something else, of this name.
    Raw(u32),
}

/// A message between nodes.
#[derive(Clone, Debug)]
pub struct PeerMessage {
    /// Its header as it is sent.
    pub header: [u8; PEER_HEADER_BYTES],
    /// The entry behind it: memory of the sender until the receiver takes it.
    pub body: Option<Slot>,
    /// The link that carries it; set when it is sent.
    pub generation: u64,
}

impl PeerMessage {
    /// Its length.
    pub fn bytes(&self) -> usize {
        self.header.len() + self.body.as_ref().map_or(0, |body| body.len())
    }
}

/// What the links tell a node of another one.
#[derive(Clone, Debug)]
pub enum PeerEvent {
    /// The link stands.
    Connected,
    /// It is gone.
    Lost,
    /// A message came.
    Message(PeerMessage),
}

/// What the node wants of the world.
#[derive(Debug, Default)]
pub struct Actions {
    /// Bytes for clients.
    pub frames: Vec<(u64, Vec<u8>)>,
    /// Connections to close behind them.
    pub closes: Vec<u64>,
    /// Writes.
    pub writes: Vec<(File, u64, Vec<u8>, Token)>,
    /// Entries to read back: LSN and place.
    pub reads: Vec<(u64, ReadRequest)>,
    /// Messages to other nodes.
    pub sends: Vec<(NodeId, PeerMessage)>,
    /// Messages that were taken from their links: sender, link, bytes.
    pub taken: Vec<(NodeId, u64, usize)>,
    /// Links to end.
    pub resets: Vec<NodeId>,
    /// Seats that have something to do.
    pub turns: BTreeSet<Seat>,
    /// A message found no memory: the log wants a turn soon.
    pub memory_short: bool,
}

/// What the log tells the shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Published {
    lsn: u64,
    ticket: u64,
    full: bool,
    limited: bool,
    failed: bool,
    leading: bool,
    drained: bool,
    leader: u16,
    epoch: u64,
    role_number: u64,
    barrier_ticket: u64,
    barrier_lsn: u64,
    round_started: u64,
    round_confirmed: u64,
    fresh_micros: u64,
}

/// What a shard tells the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ShardWord {
    role_number: u64,
    applied: u64,
    round_wanted: u64,
}

struct Client {
    assembler: FrameAssembler,
    first_frame: bool,
}

/// A frame that has arrived, and the newest leadership that had answered anybody then.
struct Inbound {
    connection: u64,
    header: FrameHeader,
    frame: Vec<u8>,
    answered_epoch: u64,
}

struct ShardSeat {
    shard: Shard,
    effects: ShardEffects,
    clients: BTreeMap<u64, Client>,
    inbound: VecDeque<Inbound>,
    backlog: VecDeque<Box<LogItem>>,
    handed_over: VecDeque<(u64, u16, u64)>,
    committed: u64,
    committed_root: u64,
    seen: Published,
    /// Which version of the members it was told.
    members_told: u64,
    leading: bool,
    role_acted: u64,
    word: ShardWord,
    /// What of it the log has been told.
    word_out: ShardWord,
    apply: VecDeque<Rc<Entry>>,
    orders: VecDeque<RootOrder>,
    diverged: Option<ReplayError>,
    #[expect(clippy::vec_box, reason = "the shard hands boxes over and takes boxes back")]
    recycled: Vec<Box<LogItem>>,
}

/// What a step of the node works with.
pub struct Scene<'a> {
    /// The machine's monotonic clock.
    pub now: u64,
    /// Its wall clock.
    pub wall: WallMicros,
    /// Sizes of the run.
    pub sizes: &'a Sizes,
    /// The planted bug.
    pub bug: Option<Bug>,
    /// The judge.
    pub oracle: &'a mut Oracle,
    /// Chance.
    pub draw: &'a mut Draw,
    /// What is wanted.
    pub actions: &'a mut Actions,
}

/// See the module.
pub struct Node {
    /// Counts from 0; the id is one more.
    number: u16,
    seats: Vec<ShardSeat>,
    root: Root,
    root_effects: RootEffects,
    /// The newest stamp of the root service that it knows to be committed.
    root_told: u64,
    /// Acknowledged orders on their way to the root service, by shard.
    done: VecDeque<u16>,
    /// Where all nodes are reached: as configured, then as the root service knows it.
    known: BTreeMap<NodeId, Member>,
    known_version: u64,
    /// Where it meets the others.
    pub door: Door,
    /// Those that the root service knew last.
    members_known: BTreeMap<NodeId, Member>,
    drained: Vec<NodeId>,
    alone: bool,
    queue: VecDeque<(u64, Box<LogItem>)>,
    queue_max: usize,
    ticket: u64,
    log: LogSeat,
    shown: Published,
    /// Steps so far.
    steps: u64,
}

impl Node {
    /// A node that has read its log and written its superblock, and is configured with these
    /// members, counted from 0.
    pub fn new(started: Started, sizes: &Sizes, configured: &[u16], door: Door) -> Self {
        let number = started.superblock.node.0 - 1;
        let Started { mut shards, root, log: recovered, superblock, .. } = started;
        let applied = recovered.applied;
        let timestamp = recovered.recovered.entries.identity(applied).map(|entry| entry.timestamp);
        for shard in &mut shards {
            shard.replayed_to(applied, timestamp.unwrap_or_default());
        }
        let word = ShardWord { applied: applied.0, ..ShardWord::default() };
        let seat = |shard| ShardSeat {
            shard,
            effects: ShardEffects::default(),
            clients: BTreeMap::new(),
            inbound: VecDeque::new(),
            backlog: VecDeque::new(),
            handed_over: VecDeque::new(),
            committed: 0,
            committed_root: 0,
            seen: Published::default(),
            members_told: 0,
            leading: false,
            role_acted: 0,
            word,
            word_out: word,
            apply: VecDeque::new(),
            orders: VecDeque::new(),
            diverged: None,
            recycled: Vec::new(),
        };
        let queue_max = (shards.len() * sizes.handovers_max as usize + 64).next_power_of_two();
        Self {
            number,
            seats: shards.into_iter().map(seat).collect(),
            root,
            root_effects: RootEffects::default(),
            root_told: 0,
            done: VecDeque::new(),
            known: configured.iter().map(|node| (NodeId(node + 1), member(*node))).collect(),
            known_version: 1,
            door,
            members_known: BTreeMap::new(),
            drained: Vec::new(),
            alone: sizes.nodes == 1,
            queue: VecDeque::new(),
            queue_max,
            ticket: 0,
            log: LogSeat::new(recovered, superblock, sizes, queue_max),
            shown: Published { lsn: applied.0, ..Published::default() },
            steps: 0,
        }
    }

    /// When the log wants a tick.
    pub fn log_deadline(&self) -> Option<u64> {
        self.log.deadline
    }

    /// Whether the log device has failed.
    pub fn failed(&self) -> bool {
        self.log.failed
    }

    /// Why it must not go on, if so.
    pub fn failure(&self) -> Option<ReplicaFailure> {
        self.log.failure
    }

    /// Whether it leads, as far as its shards know.
    pub fn leads(&self) -> bool {
        self.shown.leading
    }

    /// The least that all shards have applied or executed.
    pub fn applied(&self) -> u64 {
        let applied = self.seats.iter().map(|seat| seat.shard.applied_lsn().0);
        applied.min().expect("a node has shards")
    }

    /// Whether nothing that was executed is still to be committed: a client may be gone and leave
    /// that behind.
    pub fn is_through(&self) -> bool {
        let through = |seat: &ShardSeat| seat.backlog.is_empty() && seat.handed_over.is_empty();
        self.queue.is_empty() && self.seats.iter().all(through)
    }

    /// Whether some shard could not apply an entry, and why.
    pub fn diverged_take(&mut self) -> Option<ReplayError> {
        self.seats.iter_mut().find_map(|seat| seat.diverged.take())
    }

    /// Everything committed is applied here: it must be what the log makes.
    pub fn check_complete(&self, oracle: &Oracle) -> Result<(), Failure> {
        for (at, seat) in (0..).zip(&self.seats) {
            oracle.is_complete(at, &seat.shard)?;
        }
        Ok(())
    }
}
