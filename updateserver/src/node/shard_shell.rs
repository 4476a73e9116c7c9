//! A shard's shell: connections and frames in, answers and hand-overs out; on shard 0 the root
//! service too.

use std::collections::VecDeque;
use std::sync::Arc;

use spillway_net::frame::{FrameAssembler, FrameError, FrameKind};
use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId, WallMicros};
use spillway_net::message::{
    self, ClusterAction, ClusterCommand, ClusterReport, Done, Refusal, RefusalCode,
};
use spillway_runtime::clock;
use spillway_runtime::queue::spsc;
use spillway_runtime::queue::state::{StateCell, StateWriter};
use spillway_runtime::tcp::{ConnectionId, ReceivedBuffer, TcpRing};

use crate::config::NetworkConfig;
use crate::quorum::ReplicaCommand;
use crate::redo::PARTITION_SYSTEM;
use crate::root::{Root, RootEffects, RootInput};
use crate::shard::{
    ApplyBatch, LogItem, LogState, Released, ReplayError, RootCommand, RootOrder, RootOrigin,
    Shard, ShardEffects, ShardInput, system_commands,
};

use super::apply::ApplyEntry;
use super::board::{Board, Member};
use super::inbound::{Inbound, connection_of, number_of};
use super::outbox::Outbox;
use super::published::{Published, ShardWord};
use super::status::{self, LogNumbers, ReplayNumbers, StatusSources};

/// Frames and bytes executed before the log gets its turn.
const TURN_FRAMES_MAX: usize = 1024;
const TURN_BYTES_MAX: usize = 256 << 10;
/// Committed entries applied before clients and the log get their turn.
const TURN_ENTRIES_MAX: usize = 16;
/// Time between looks at idle connections and sessions.
const TICK_NANOS: u64 = 500_000_000;
/// What a frame may take of its time once its client is the one that may go on beyond the input
/// budget: others wait for it.
const FRAME_FAVOURED_DIVISOR: u64 = 10;

struct Client {
    id: ConnectionId,
    assembler: FrameAssembler,
    first_frame: bool,
    opened_at_nanos: u64,
    paused: bool,
    unfinished: Option<Unfinished>,
    /// Closing, since when: what still arrives is dropped.
    ending_since_nanos: Option<u64>,
}

/// A frame of which a part has arrived.
#[derive(Clone, Copy)]
struct Unfinished {
    /// Frames that began earlier have lower numbers.
    number: u64,
    since_nanos: u64,
}

/// The root service's place on shard 0's thread.
pub(super) struct RootShell {
    pub root: Root,
    pub effects: RootEffects,
    /// Orders to shards 1 and up, in that order.
    pub orders: Vec<spsc::Producer<RootOrder>>,
    /// Orders that found a full ring: nobody waits for room.
    pub orders_waiting: Vec<VecDeque<RootOrder>>,
    /// Acknowledgements from shards 1 and up.
    pub done: Vec<spsc::Consumer<u32>>,
}

/// The far end of the root service, on shards 1 and up.
pub(super) struct RootLink {
    pub orders: spsc::Consumer<RootOrder>,
    pub done: spsc::Producer<u32>,
}

/// Where this shard stands to the root service.
pub(super) enum RootPlace {
    Here(Box<RootShell>),
    There(RootLink),
}

/// What a shard's shell is made of.
pub(super) struct ShardShellOptions {
    pub shard: Shard,
    pub root: RootPlace,
    pub outbox: Outbox,
    pub recycle: spsc::Consumer<Box<LogItem>>,
    pub state: StateCell<{ Published::WORDS }>,
    /// What the log core is told.
    pub word: StateWriter<{ ShardWord::WORDS }>,
    /// Committed entries of a leader elsewhere.
    pub apply: spsc::Consumer<Arc<ApplyEntry>>,
    pub board: Arc<Board>,
    /// The only voter: nobody else can lead, and no round is needed.
    pub alone: bool,
    pub numbers: StateCell<{ LogNumbers::WORDS }>,
    pub network: NetworkConfig,
    pub replay: ReplayNumbers,
    pub started_at_nanos: u64,
}

/// See the module. Lives on the shard's thread.
pub(super) struct ShardShell {
    options: ShardShellOptions,
    effects: ShardEffects,
    inbound: Inbound,
    clients: Vec<Option<Client>>,
    clients_count: u32,
    partial_bytes: usize,
    paused: Vec<ConnectionId>,
    unfinished_count: u64,
    /// Beyond the input budget, the one client that may finish its frame: see [`Self::resume`].
    favoured: Option<(ConnectionId, u64)>,
    committed_stamp: u64,
    committed_root_stamp: u64,
    root_told: u64,
    seen: Published,
    leading: bool,
    role_acted: u64,
    word: ShardWord,
    word_told: ShardWord,
    board_version: u64,
    members_known: Vec<Member>,
    members_removed: Vec<NodeId>,
    diverged: Option<ReplayError>,
    tick_at_nanos: u64,
    stopping: bool,
}

impl ShardShell {
    pub fn new(options: ShardShellOptions) -> Self {
        Self {
            options,
            effects: ShardEffects::default(),
            inbound: Inbound::default(),
            clients: Vec::new(),
            clients_count: 0,
            partial_bytes: 0,
            paused: Vec::new(),
            unfinished_count: 0,
            favoured: None,
            committed_stamp: 0,
            committed_root_stamp: 0,
            root_told: 0,
            seen: Published::default(),
            leading: false,
            role_acted: 0,
            word: ShardWord::default(),
            word_told: ShardWord::default(),
            board_version: u64::MAX,
            members_known: Vec::new(),
            members_removed: Vec::new(),
            diverged: None,
            tick_at_nanos: 0,
            stopping: false,
        }
    }

    /// Whether there is work that no event will announce.
    pub fn has_work(&self) -> bool {
        let log_moved = Published::of(self.options.state.read()) != self.seen;
        let orders = match &self.options.root {
            RootPlace::Here(root) => root.done.iter().any(spsc::Consumer::is_ready),
            RootPlace::There(link) => link.orders.is_ready(),
        };
        log_moved || orders || self.options.apply.is_ready() || self.can_execute()
    }

    fn can_execute(&self) -> bool {
        self.inbound.len() > 0
            && self.options.outbox.is_empty()
            && !self.stopping
            && self.options.shard.accepts_frames()
    }

    /// When [`Self::turn`] wants to be called although nothing happened.
    pub fn deadline_nanos(&self) -> u64 {
        self.tick_at_nanos
    }

    /// Stops executing; [`Self::is_drained`] says when everything handed over is committed.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// See [`Self::stop`].
    pub fn is_drained(&self) -> bool {
        self.stopping && (self.seen.failed || self.options.outbox.is_drained())
    }

    /// Why the replica cannot go on, if it cannot.
    pub fn diverged_take(&mut self) -> Option<ReplayError> {
        self.diverged.take()
    }

    pub fn accepted(&mut self, ring: &mut TcpRing, connection: ConnectionId) {
        if self.clients_count >= self.options.network.connections_max {
            // The places beyond are for peers: clients must not be able to cut a node off.
            ring.close(connection);
            return;
        }
        // A machine that vanished must give its place back, and nobody else would notice.
        let silence_ms = self.options.network.silence_timeout_ms;
        if let Err(error) = ring.set_silence_max(connection, silence_ms) {
            eprintln!("warning: a client's connection is refused: {error}");
            ring.close(connection);
            return;
        }
        self.clients_count += 1;
        let at = connection.index as usize;
        if self.clients.len() <= at {
            self.clients.resize_with(at + 1, || None);
        }
        self.clients[at] = Some(Client {
            id: connection,
            assembler: FrameAssembler::default(),
            first_frame: true,
            opened_at_nanos: clock::monotonic_now().0,
            paused: false,
            unfinished: None,
            ending_since_nanos: None,
        });
        let now = clock::monotonic_now().0;
        let opened = ShardInput::Opened(number_of(connection));
        self.options.shard.step(now, opened, &mut self.effects);
    }

    pub fn closed(&mut self, connection: ConnectionId) {
        let at = connection.index as usize;
        let Some(client) = self.clients.get_mut(at).and_then(Option::take) else { return };
        assert_eq!(client.id, connection, "a slot is told closed before it is used again");
        self.clients_count -= 1;
        self.partial_bytes -= client.assembler.held_bytes();
        let now = clock::monotonic_now().0;
        let closed = ShardInput::Closed(number_of(connection));
        self.options.shard.step(now, closed, &mut self.effects);
    }

    pub fn received(
        &mut self,
        ring: &mut TcpRing,
        connection: ConnectionId,
        buffer: ReceivedBuffer,
    ) {
        let client = self.clients.get_mut(connection.index as usize).and_then(Option::as_mut);
        let is_served =
            |client: &&mut Client| client.id == connection && client.ending_since_nanos.is_none();
        let Some(client) = client.filter(is_served) else {
            ring.release(buffer);
            return;
        };
        let before = client.assembler.held_bytes();
        let frames_before = self.inbound.len();
        let Client { assembler, first_frame, .. } = client;
        let cut = self.inbound.receive(ring, connection, assembler, first_frame, buffer);
        self.partial_bytes = self.partial_bytes + assembler.held_bytes() - before;
        if let Err(error) = cut {
            refuse(ring, connection, RefusalCode::Malformed, &error);
            client.ending_since_nanos = Some(clock::monotonic_now().0);
            return;
        }
        if client.assembler.held_bytes() == 0 {
            client.unfinished = None;
        } else if client.unfinished.is_none() || self.inbound.len() > frames_before {
            self.unfinished_count += 1;
            let since_nanos = clock::monotonic_now().0;
            client.unfinished = Some(Unfinished { number: self.unfinished_count, since_nanos });
        }
        self.pause_if_beyond(ring, connection);
    }

    /// Stops receiving from a client that would take more of an input budget that is used up:
    /// one that holds a part of a frame, or anyone while too many whole frames wait. Others are
    /// not disturbed.
    fn pause_if_beyond(&mut self, ring: &mut TcpRing, connection: ConnectionId) {
        let input_bytes_max = self.options.network.input_bytes_max;
        if self.input_bytes() <= input_bytes_max {
            return;
        }
        let Some(client) = self.clients[connection.index as usize].as_mut() else { return };
        let number = client.unfinished.map(|unfinished| unfinished.number);
        let favoured = number.is_some_and(|number| self.favoured == Some((connection, number)));
        let wanted = match number {
            Some(_) => !favoured,
            None => self.inbound.owned_bytes() > input_bytes_max / 2,
        };
        if wanted && !client.paused {
            client.paused = true;
            ring.receive_pause(connection);
            self.paused.push(connection);
        }
    }

    fn input_bytes(&self) -> usize {
        self.inbound.owned_bytes() + self.partial_bytes
    }

    /// One turn: what the log and the root service say, then frames. Returns whether the log core
    /// has something to see.
    pub fn turn(&mut self, ring: &mut TcpRing) -> bool {
        let now = clock::monotonic_now().0;
        // Read after the frames arrived: a leadership round that begins later proves that this
        // node led when they came.
        self.state_take(ring, now);
        self.root_turn(ring, now);
        self.entries_apply(ring, now);
        self.apply(ring, now);
        if self.can_execute() {
            let count = self.inbound.portion(TURN_FRAMES_MAX, TURN_BYTES_MAX);
            let frames = self.inbound.frames(ring, count);
            self.options.shard.step(now, ShardInput::Frames(&frames), &mut self.effects);
            drop(frames);
            self.inbound.done(ring, self.effects.frames_taken);
            self.options.shard.step(now, ShardInput::TurnEnd, &mut self.effects);
            self.apply(ring, now);
        }
        self.resume(ring);
        if now >= self.tick_at_nanos {
            self.tick_at_nanos = now + TICK_NANOS;
            self.tick(ring, now);
        }
        let handed_over = self.hand_over();
        self.word_publish() || handed_over
    }

    /// Takes over what the log has committed. Returns whether the log core has something to see
    /// because of it.
    pub fn log_moved(&mut self, ring: &mut TcpRing) -> bool {
        while let Some(item) = self.options.recycle.pop() {
            self.options.shard.recycle(item);
        }
        let now = clock::monotonic_now().0;
        self.state_take(ring, now);
        let handed_over = self.hand_over();
        self.word_publish() || handed_over
    }

    /// Acts on what the log core has published since the last look.
    fn state_take(&mut self, ring: &mut TcpRing, now: u64) {
        let published = Published::of(self.options.state.read());
        if self.options.board.version() != self.board_version {
            self.board_version = self.options.board.version();
            let members = self.options.board.addresses().into();
            self.options.shard.step(now, ShardInput::Members(members), &mut self.effects);
        }
        // Reads that may be old are judged by the clock, which goes on while the log stands still.
        if published == self.seen && self.inbound.len() == 0 {
            return;
        }
        self.seen = published;
        if published.role_number != self.role_acted {
            self.role_change(ring, now, published);
        } else if self.leading {
            self.committed_to(published.ticket);
        }
        let root_before = self.root_told;
        self.log_told(now, self.state_of(published));
        if self.leading && self.root_told > root_before {
            // Before it is asked who is new: a node that was just forgotten is not. The root
            // service changes one member at a time.
            self.members_publish();
            self.members_propose(now);
        }
        self.apply(ring, now);
    }

    fn state_of(&self, published: Published) -> LogState {
        LogState {
            vdl: Lsn(published.lsn),
            full: published.full,
            failed: published.failed,
            limited: published.limited,
            drained: published.drained,
            round_next: if self.options.alone { 0 } else { published.round_started + 1 },
            round_confirmed: published.round_confirmed,
            leader: NodeId(published.leader),
            epoch: Epoch(published.epoch),
            fresh: WallMicros(published.fresh_micros),
            wall: WallMicros(clock::wall_now_micros()),
        }
    }

    fn log_told(&mut self, now: u64, state: LogState) {
        let input = ShardInput::Log { stamp: self.committed_stamp, state };
        self.options.shard.step(now, input, &mut self.effects);
        if self.leading {
            self.root_step(now, RootInput::Committed { stamp: self.committed_root_stamp });
            self.root_told = self.committed_root_stamp;
        }
    }

    /// Everything up to a ticket is committed.
    fn committed_to(&mut self, committed: u64) {
        let (shard, root) = self.options.outbox.committed_to(committed);
        self.committed_stamp = shard.unwrap_or(self.committed_stamp);
        self.committed_root_stamp = root.unwrap_or(self.committed_root_stamp);
    }

    /// Ends leadership, begins it, or both. What was committed by the end of leadership is
    /// released first; everything else is taken back, here and by the log core, which drops the
    /// items of a term that is over.
    fn role_change(&mut self, ring: &mut TcpRing, now: u64, published: Published) {
        assert!(published.role_number > self.role_acted, "role changes are numbered upwards");
        if self.leading {
            self.committed_to(published.barrier_ticket);
            let mut state = self.state_of(published);
            state.vdl = Lsn(published.barrier_lsn);
            self.log_told(now, state);
            self.apply(ring, now);
            self.leading = false;
            self.options.outbox.clear();
            self.root_step(now, RootInput::StepDown { stamp: self.committed_root_stamp });
            let input = ShardInput::StepDown { stamp: self.committed_stamp };
            self.options.shard.step(now, input, &mut self.effects);
            self.apply(ring, now);
            assert!(self.options.outbox.is_empty(), "a node that does not lead hands nothing over");
        }
        if published.leading {
            let epoch = Epoch(published.epoch);
            self.options.shard.step(now, ShardInput::Lead { epoch }, &mut self.effects);
            self.root_step(now, RootInput::Lead { epoch });
            self.leading = true;
            self.members_propose(now);
        }
        self.role_acted = published.role_number;
    }

    /// A leader puts the addresses that only its configuration knows into the replicated state.
    fn members_propose(&mut self, now: u64) {
        let RootPlace::Here(shell) = &self.options.root else { return };
        if !self.log_takes() {
            return;
        }
        let (known, removed) = (shell.root.members(), shell.root.removed());
        let news: Vec<Member> = self.options.board.members();
        let is_new = |member: &Member| {
            let is_known = known.contains_key(&member.node) || removed.contains(&member.node);
            !is_known && !member.peer_address.is_empty()
        };
        let news: Vec<Member> = news.into_iter().filter(is_new).collect();
        for Member { node, peer_address, client_address } in news {
            let command = RootCommand::MemberSet { node, peer_address, client_address };
            self.root_step(now, RootInput::Internal(command));
        }
    }

    /// A leader forgets the addresses of nodes that are members no more. What the root service
    /// cannot take now is tried again.
    fn gone_propose(&mut self, now: u64) {
        let log_takes = self.log_takes();
        let RootPlace::Here(shell) = &mut self.options.root else { return };
        if !log_takes {
            return;
        }
        let board = &self.options.board;
        let is_member = |node: NodeId| {
            let status = board.status();
            status.is_some_and(|status| status.members.iter().any(|member| member.node == node))
        };
        for node in board.gone() {
            if !shell.root.members().contains_key(&node) {
                board.gone_done(node);
            } else if !is_member(node) {
                let command = RootCommand::MemberRemove { node };
                shell.root.step(now, RootInput::Internal(command), &mut shell.effects);
            }
        }
    }

    /// Whether entries can be written: what is left of a full log is for what was handed over.
    fn log_takes(&self) -> bool {
        self.leading && !self.seen.full && !self.seen.failed
    }

    /// Applies committed entries of a leader elsewhere, in place.
    fn entries_apply(&mut self, ring: &mut TcpRing, now: u64) {
        for _ in 0..TURN_ENTRIES_MAX {
            let Some(entry) = self.options.apply.pop() else { return };
            assert!(!self.leading, "a leader has executed what it would apply");
            let (shard, effects) = (&mut self.options.shard, &mut self.effects);
            entry.with_batch(|batch| {
                shard.step(now, ShardInput::Apply(batch), effects);
                if let RootPlace::Here(root) = &mut self.options.root
                    && let Err(error) = root_apply(root, now, batch)
                {
                    effects.diverged = Some(error);
                }
            });
            self.apply(ring, now);
        }
    }

    /// Tells the log core how far this shard is. Returns whether that is news.
    fn word_publish(&mut self) -> bool {
        let outstanding = match &self.options.root {
            RootPlace::Here(shell) => shell.root.orders_outstanding() > 0,
            RootPlace::There(_) => false,
        };
        // While shards still carry out orders of a term that is over, nothing new may be applied.
        if !outstanding || self.leading {
            self.word.role_number = self.role_acted;
        }
        self.word.applied = self.options.shard.applied_lsn().0;
        if self.word == self.word_told {
            return false;
        }
        self.word_told = self.word;
        self.options.word.publish(self.word.words());
        true
    }

    fn hand_over(&mut self) -> bool {
        let any = self.options.outbox.hand_over();
        if let RootPlace::There(link) = &mut self.options.root {
            self.options.outbox.orders_tell(|count| link.done.try_push(count).is_ok());
        }
        any
    }

    fn root_step(&mut self, now: u64, input: RootInput) {
        let RootPlace::Here(shell) = &mut self.options.root else { return };
        shell.root.step(now, input, &mut shell.effects);
    }

    /// Carries orders and acknowledgements between the root service and the shards.
    fn root_turn(&mut self, ring: &mut TcpRing, now: u64) {
        match &mut self.options.root {
            RootPlace::There(link) => {
                while let Some(order) = link.orders.pop() {
                    self.options.shard.step(now, ShardInput::Root(order), &mut self.effects);
                }
            }
            RootPlace::Here(shell) => {
                for (at, done) in shell.done.iter_mut().enumerate() {
                    while let Some(count) = done.pop() {
                        for _ in 0..count {
                            let input = RootInput::OrderDone { shard: at as u16 + 1 };
                            shell.root.step(now, input, &mut shell.effects);
                        }
                    }
                }
            }
        }
        self.apply(ring, now);
    }

    /// Carries out what the cores want done, until they want nothing more.
    fn apply(&mut self, ring: &mut TcpRing, now: u64) {
        loop {
            let mut effects = std::mem::take(&mut self.effects);
            self.send(ring, &effects.released);
            for number in effects.closes.drain(..) {
                self.end(ring, connection_of(number));
            }
            self.options.outbox.push(effects.items.drain(..));
            for origin in effects.status_requests.drain(..) {
                let report = self.report();
                self.answer(ring, origin, FrameKind::StatusReport, &report);
            }
            for (origin, command) in effects.root_commands.drain(..) {
                self.root_step(now, RootInput::Command(origin, command));
            }
            self.orders_done(now, effects.orders_done);
            for (origin, command) in effects.cluster_commands.drain(..) {
                self.cluster_command(ring, origin, &command);
            }
            for origin in effects.cluster_status_requests.drain(..) {
                let report = self.cluster_report();
                self.answer(ring, origin, FrameKind::ClusterReport, &report);
            }
            self.word.round_wanted = self.word.round_wanted.max(effects.round_wanted);
            if let Some(diverged) = effects.diverged.take() {
                self.diverged = Some(diverged);
            }
            effects.clear();
            // What the root service orders of this shard comes as new effects.
            self.effects = effects;
            if !self.root_effects(ring, now) {
                return;
            }
        }
    }

    fn orders_done(&mut self, now: u64, count: u32) {
        match &mut self.options.root {
            RootPlace::Here(_) => {
                for _ in 0..count {
                    self.root_step(now, RootInput::OrderDone { shard: 0 });
                }
            }
            RootPlace::There(_) => self.options.outbox.orders_done(count),
        }
    }

    /// Carries out what the root service wants done. Returns whether this shard was told something.
    fn root_effects(&mut self, ring: &mut TcpRing, now: u64) -> bool {
        let RootPlace::Here(shell) = &mut self.options.root else { return false };
        let mut effects = std::mem::take(&mut shell.effects);
        for (waiting, producer) in shell.orders_waiting.iter_mut().zip(&mut shell.orders) {
            waiting.extend(effects.orders.iter().cloned());
            while let Some(order) = waiting.pop_front() {
                if let Err(spsc::Full(order)) = producer.try_push(order) {
                    waiting.push_front(order);
                    break;
                }
            }
        }
        let has_news = !effects.orders.is_empty() || !effects.answers_of_state.is_empty();
        for order in effects.orders.drain(..) {
            self.options.shard.step(now, ShardInput::Root(order), &mut self.effects);
        }
        // Behind the shard's own: what the shard handed over because of the order comes first.
        self.options.outbox.push(self.effects.items.drain(..));
        self.options.outbox.push(effects.items.drain(..));
        self.send(ring, &effects.answers);
        for (origin, answer) in effects.answers_of_state.drain(..) {
            self.options.shard.step(now, ShardInput::Answer(origin, answer), &mut self.effects);
        }
        for replacement in effects.replacements.drain(..) {
            let (old, new) = (replacement.old, replacement.new);
            let taken = self.options.board.command(ReplicaCommand::MemberReplace { old, new });
            if let Some(origin) = replacement.origin {
                self.answer_command(ring, origin, taken);
            }
        }
        effects.clear();
        if let RootPlace::Here(shell) = &mut self.options.root {
            shell.effects = effects;
        }
        has_news
    }

    fn send(&mut self, ring: &mut TcpRing, released: &Released) {
        for frame in &released.frames {
            let connection = connection_of(frame.connection);
            let Some(out) = ring.outgoing(connection) else { continue };
            out.extend_from_slice(&released.bytes[frame.start..frame.end]);
            if ring.outgoing_bytes(connection) > self.options.network.output_bytes_max {
                ring.close(connection);
            }
        }
    }

    fn answer<T: message::Payload>(
        &mut self,
        ring: &mut TcpRing,
        origin: RootOrigin,
        kind: FrameKind,
        payload: &T,
    ) {
        let mut released = Released::default();
        released.push(origin.connection, kind, origin.request, payload);
        self.send(ring, &released);
    }

    fn answer_command(&mut self, ring: &mut TcpRing, origin: RootOrigin, taken: bool) {
        if taken {
            self.answer(ring, origin, FrameKind::Done, &Done {});
        } else {
            let text = "too many commands for the cluster are waiting: try again".to_owned();
            let refusal = Refusal::new(RefusalCode::ClusterBusy, text);
            self.answer(ring, origin, FrameKind::Refusal, &refusal);
        }
    }

    /// Commands for the quorum alone; the root service has those that are replicated state.
    fn cluster_command(
        &mut self,
        ring: &mut TcpRing,
        origin: RootOrigin,
        command: &ClusterCommand,
    ) {
        assert_eq!(command.action, ClusterAction::Transfer as u8, "the only one for the quorum");
        let to = (command.node != 0).then_some(NodeId(command.node));
        let taken = self.options.board.command(ReplicaCommand::Transfer { to });
        self.answer_command(ring, origin, taken);
    }

    fn cluster_report(&self) -> ClusterReport {
        let board = &self.options.board;
        board.status().map_or_else(ClusterReport::default, |status| {
            status::cluster_report(&status, &board.members(), &board.drained())
        })
    }

    /// Tells the other threads which members the root service knows.
    fn members_publish(&mut self) {
        let RootPlace::Here(shell) = &self.options.root else { return };
        let known: Vec<Member> = shell
            .root
            .members()
            .iter()
            .map(|(node, member)| Member {
                node: *node,
                peer_address: member.peer_address.clone(),
                client_address: member.client_address.clone(),
            })
            .collect();
        let drained: Vec<NodeId> = shell.root.drained().iter().copied().collect();
        let removed: Vec<NodeId> = shell.root.removed().iter().copied().collect();
        let is_news = known != self.members_known
            || removed != self.members_removed
            || drained != self.options.board.drained();
        if is_news {
            self.options.board.members_merge(&known, &removed, &drained);
            (self.members_known, self.members_removed) = (known, removed);
        }
    }

    fn end(&mut self, ring: &mut TcpRing, connection: ConnectionId) {
        let client = self.clients.get_mut(connection.index as usize).and_then(Option::as_mut);
        if let Some(client) = client.filter(|client| client.id == connection) {
            client.ending_since_nanos.get_or_insert_with(|| clock::monotonic_now().0);
            ring.close_after_send(connection);
        }
    }

    /// Goes on receiving where the input budget had stopped it. While unfinished frames alone
    /// use it up, they cannot end by waiting: then the one that began first may go on, alone, so
    /// that the budget is exceeded by one frame at most.
    fn resume(&mut self, ring: &mut TcpRing) {
        if self.paused.is_empty() {
            return;
        }
        let half = self.options.network.input_bytes_max / 2;
        let (all, whole) = (self.input_bytes() <= half, self.inbound.owned_bytes() <= half);
        let favoured = self.favoured_choose();
        let paused = std::mem::take(&mut self.paused);
        let now = clock::monotonic_now().0;
        for connection in paused {
            let Some(client) = client_of(&mut self.clients, connection) else { continue };
            let chosen = match client.unfinished {
                Some(unfinished) => favoured == Some((connection, unfinished.number)),
                None => whole,
            };
            if !all && !chosen {
                self.paused.push(connection);
                continue;
            }
            client.paused = false;
            if let Some(unfinished) = &mut client.unfinished {
                unfinished.since_nanos = now;
            }
            ring.receive_resume(connection);
        }
    }

    /// The client that may finish its frame: the last one chosen until it has, then the one
    /// whose frame began first.
    fn favoured_choose(&mut self) -> Option<(ConnectionId, u64)> {
        let number_of = |client: &mut Client| client.unfinished.map(|unfinished| unfinished.number);
        if let Some((connection, number)) = self.favoured {
            let client = client_of(&mut self.clients, connection)
                .filter(|client| client.ending_since_nanos.is_none());
            if client.and_then(number_of) == Some(number) {
                return self.favoured;
            }
        }
        let clients = &mut self.clients;
        let unfinished = self.paused.iter().filter_map(|connection| {
            let number = client_of(clients, *connection).and_then(number_of)?;
            Some((*connection, number))
        });
        self.favoured = unfinished.min_by_key(|(_, number)| *number);
        self.favoured
    }

    fn tick(&mut self, ring: &mut TcpRing, now: u64) {
        let patience = self.options.network.hello_timeout_ms * 1_000_000;
        let patience_frame = self.options.network.frame_timeout_ms * 1_000_000;
        let favoured = self.favoured.filter(|_| !self.paused.is_empty());
        for client in self.clients.iter_mut().flatten() {
            let silent =
                client.first_frame && now.saturating_sub(client.opened_at_nanos) > patience;
            let slow = client.unfinished.is_some_and(|unfinished| {
                let favoured = favoured == Some((client.id, unfinished.number));
                let divisor = if favoured { FRAME_FAVOURED_DIVISOR } else { 1 };
                let nanos_max = patience_frame / divisor;
                !client.paused && now.saturating_sub(unfinished.since_nanos) > nanos_max
            });
            // It was to read what was still to be sent, and does not.
            let stuck = client
                .ending_since_nanos
                .is_some_and(|since| now.saturating_sub(since) > patience_frame);
            if silent || slow || stuck {
                client.ending_since_nanos.get_or_insert(now);
                ring.close(client.id);
            }
        }
        self.members_publish();
        self.gone_propose(now);
        let log_takes = self.log_takes();
        self.root_step(now, RootInput::Tick { log_takes });
        self.apply(ring, now);
    }

    fn report(&self) -> message::StatusReport {
        let sessions_open = match &self.options.root {
            RootPlace::Here(shell) => shell.root.sessions_count() as u64,
            RootPlace::There(_) => 0,
        };
        status::report(&StatusSources {
            shard: &self.options.shard,
            log: self.options.numbers.read(),
            state: self.seen,
            replay: self.options.replay,
            handed_over: self.options.outbox.waiting(),
            started_at_nanos: self.options.started_at_nanos,
            input_bytes: self.input_bytes() as u64,
            sessions_open,
        })
    }
}

/// Applies the commands of a committed entry to the root service of a follower.
fn root_apply(shell: &mut RootShell, now: u64, batch: &ApplyBatch<'_>) -> Result<(), ReplayError> {
    let (lsn, partition) = (batch.lsn, PartitionId(PARTITION_SYSTEM));
    for section in batch.sections.iter().filter(|section| section.partition == partition) {
        for command in system_commands(lsn, section)? {
            shell.root.step(now, RootInput::Apply(command), &mut shell.effects);
            if let Some(error) = shell.effects.diverged.take() {
                return Err(ReplayError::Redo { partition, lsn, error });
            }
        }
    }
    Ok(())
}

fn client_of(clients: &mut [Option<Client>], connection: ConnectionId) -> Option<&mut Client> {
    let client = clients.get_mut(connection.index as usize).and_then(Option::as_mut);
    client.filter(|client| client.id == connection)
}

/// Says why before closing: a client of another release should learn it.
fn refuse(ring: &mut TcpRing, connection: ConnectionId, code: RefusalCode, error: &FrameError) {
    if let Some(out) = ring.outgoing(connection) {
        let refusal = Refusal::new(code, error.to_string());
        message::write_frame(out, FrameKind::Refusal, 0, Lsn(0), &refusal);
    }
    ring.close_after_send(connection);
}

/// For tests and the compiler: the shell moves to its thread when it is made.
#[expect(dead_code, reason = "asserts at compile time what the threads rely on")]
fn shard_is_send(shard: Arc<std::sync::Mutex<Shard>>) -> impl Send {
    shard
}
