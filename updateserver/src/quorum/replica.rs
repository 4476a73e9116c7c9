//! The replica: the state machine, the log, and what stands between them.

use std::collections::VecDeque;

use raft::eraftpb::HardState;
use raft::{Config, NO_LIMIT, RawNode, ReadOnlyOption, StateRole};
use spillway_net::ids::{Epoch, Lsn, NodeId};
use spillway_runtime::slot_ring::{Slot, SlotRing};

use super::cache::{CachedEntry, EntryCache};
use super::catch_up::CatchUp;
use super::convert::node_of;
use super::effects::{Committed, Now, ReplicaEffects, ReplicaInput, Role};
use super::failure::ReplicaFailure;
use super::flow::PeerTable;
use super::handover::Handover;
use super::hard_state::HardStateKeeper;
use super::membership::{ConfigEntry, Membership};
use super::options::{ReplicaOptions, ReplicaStart};
use super::peer::LeaderLost;
use super::ready::HeldQueue;
use super::roles::Roles;
use super::round::{Round, Rounds};
use super::storage::RaftStore;
use super::tail::Tail;
use crate::log::{
    BatchAssembler, BatchClock, BodyView, EntryFrame, FrameKind, Geometry, LogEffects, LogInput,
    LogSpace, LogWriter,
};

/// Ticks that are made up for after a pause. A node that slept does not campaign before it has
/// read what came meanwhile.
const TICKS_AT_ONCE_MAX: usize = 3;

/// A node of the quorum. See the module.
pub struct Replica {
    pub(super) options: ReplicaOptions,
    pub(super) geometry: Geometry,
    pub(super) raft: RawNode<RaftStore>,
    pub(super) writer: LogWriter,
    log: LogEffects,
    /// The writer has something new to issue.
    pub(super) writer_due: bool,
    log_deadline: Option<u64>,
    pub(super) write_last: u64,
    write_durable: u64,
    pub(super) assembler: BatchAssembler,
    pub(super) clock: BatchClock,
    pub(super) keeper: HardStateKeeper,
    pub(super) held: HeldQueue,
    /// Frames whose entries the state machine has not handed back yet, in order.
    pub(super) staged: VecDeque<EntryFrame>,
    pub(super) membership: Membership,
    /// Configuration entries of the log that are not applied.
    pub(super) config_pending: VecDeque<(Lsn, ConfigEntry)>,
    /// Configuration entries up to here are committed and durable here.
    pub(super) config_due: Lsn,
    /// The configuration change that was proposed and has no frame yet.
    pub(super) config_proposed: Option<(Lsn, ConfigEntry)>,
    pub(super) peers: PeerTable,
    pub(super) rounds: Rounds,
    round_told: Round,
    pub(super) catch_up: CatchUp,
    pub(super) tail: Tail,
    pub(super) published: Committed,
    pub(super) roles: Roles,
    /// Given to the shards to apply, up to here.
    pub(super) taken: Lsn,
    pub(super) applied: Lsn,
    pub(super) drained: Vec<NodeId>,
    leader_told: Option<NodeId>,
    pub(super) leader_lost: Option<LeaderLost>,
    tick_next_nanos: Option<u64>,
    pub(super) ticks: u64,
    pub(super) handover: Handover,
    /// The tick since which items have found no room.
    pub(super) held_up_since: Option<u64>,
    /// The followers were told of the committed end up to here.
    pub(super) commit_sent: Lsn,
    /// Term, state and reluctance for which the election timeout was computed, and the timeout.
    timeout: (Epoch, StateRole, bool, usize),
    pub(super) stopping: bool,
    pub(super) entries_unreadable: u64,
    pub(super) failed: Option<ReplicaFailure>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let raft = &self.raft.raft;
        f.debug_struct("Replica")
            .field("node", &self.options.node)
            .field("state", &raft.state)
            .field("term", &raft.term)
            .field("last", &raft.raft_log.last_index())
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}

fn config_of(options: &ReplicaOptions, applied: Lsn) -> Config {
    Config {
        id: u64::from(options.node.0),
        election_tick: options.election_ticks_min,
        heartbeat_tick: options.heartbeat_ticks,
        applied: applied.0,
        // One entry in a message: one batch, one frame.
        max_size_per_msg: 0,
        max_inflight_msgs: options.inflight_messages_max,
        check_quorum: true,
        pre_vote: true,
        min_election_tick: options.election_ticks_min,
        max_election_tick: options.span().limit(),
        read_only_option: ReadOnlyOption::Safe,
        skip_bcast_commit: true,
        batch_append: false,
        priority: 0,
        // Bytes are counted here, with headers.
        max_uncommitted_size: NO_LIMIT,
        max_committed_size_per_ready: NO_LIMIT,
    }
}

/// The content of a configuration entry.
pub(super) fn config_entry(
    geometry: &Geometry,
    lsn: Lsn,
    body: &[u8],
) -> Result<ConfigEntry, ReplicaFailure> {
    let reason = "its content is not known to this build";
    let unknown = ReplicaFailure::Config { lsn, reason };
    let view = BodyView::new(geometry, body).map_err(|_| unknown)?;
    let mut sections = view.sections();
    let section = sections.next().ok_or(unknown)?;
    ConfigEntry::decode(section.bytes).map_err(|_| unknown)
}

/// Bodies and configuration changes behind the applied end.
fn tail_of(
    start: &mut ReplicaStart,
    geometry: &Geometry,
) -> (EntryCache, VecDeque<(Lsn, ConfigEntry)>, Tail) {
    let mut cache = EntryCache::new(Lsn(start.applied.0 + 1));
    let mut configs = VecDeque::new();
    let mut tail = Tail::default();
    for (lsn, body) in std::mem::take(&mut start.tail) {
        let meta = start.entries.get(lsn).expect("the tail is part of the log");
        if meta.kind == FrameKind::Config {
            let entry = config_entry(geometry, lsn, &body);
            configs.push_back((lsn, entry.unwrap_or_else(|failure| panic!("{failure}"))));
        }
        tail.push(lsn, (body.len() + geometry.block()) as u64, 0);
        cache.push(lsn, CachedEntry::new(meta.term, body));
    }
    assert_eq!(cache.next().0, start.entries.last().0 + 1, "all bodies above the applied end");
    (cache, configs, tail)
}

impl Replica {
    /// A replica that goes on where recovery ended. It does nothing before the first step.
    ///
    /// # Panics
    /// On options or a start that contradict each other, or a start that [`ReplicaStart::check`]
    /// refuses: a programming error of the shell.
    pub fn new(options: ReplicaOptions, mut start: ReplicaStart) -> Self {
        options.check(&start.superblock);
        let geometry = start.superblock.geometry;
        let membership = start.membership().unwrap_or_else(|failure| panic!("{failure}"));
        let (cache, config_pending, tail) = tail_of(&mut start, &geometry);
        let ReplicaStart { position, entries, superblock, applied, .. } = start;
        assert!(applied >= entries.base().lsn, "what is below the floor is applied");
        let identity = entries.identity(applied).expect("what is applied is in the log");
        let last = entries.last_identity();
        let hard_state = HardState {
            term: superblock.term.0,
            vote: u64::from(superblock.vote.0),
            commit: applied.max(position.tail.base().lsn).0,
            ..HardState::default()
        };
        let store = RaftStore::new(entries, cache, hard_state, membership.to_conf_state());
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&config_of(&options, applied), store, &logger);
        let mut replica = Self {
            raft: raft.expect("settings and state were checked"),
            writer: LogWriter::new(options.writer, position),
            log: LogEffects::default(),
            writer_due: true,
            log_deadline: None,
            write_last: 0,
            write_durable: 0,
            assembler: BatchAssembler::new(
                geometry,
                options.in_flight_small_max,
                options.batch_bytes_wait,
            ),
            clock: BatchClock::new(last.timestamp),
            keeper: HardStateKeeper::new(superblock),
            held: HeldQueue::default(),
            staged: VecDeque::new(),
            membership,
            config_pending,
            config_due: applied,
            config_proposed: None,
            peers: PeerTable::default(),
            rounds: Rounds::default(),
            round_told: Round::default(),
            catch_up: CatchUp::new(options.reads_max),
            tail,
            published: Committed {
                epoch: identity.term,
                lsn: applied,
                ticket: 0,
                timestamp: identity.timestamp,
            },
            roles: Roles::new(),
            taken: applied,
            applied,
            drained: Vec::new(),
            leader_told: None,
            leader_lost: None,
            tick_next_nanos: None,
            ticks: 0,
            handover: Handover::default(),
            held_up_since: None,
            commit_sent: applied,
            timeout: (Epoch(0), StateRole::Leader, false, options.election_ticks_min),
            stopping: false,
            entries_unreadable: 0,
            failed: None,
            options,
            geometry,
        };
        replica.touched();
        replica
    }

    /// Follows every call into the state machine (rule R4): it draws its election timeouts at
    /// random, and this overwrites what it drew.
    pub(super) fn touched(&mut self) {
        let raft = &self.raft.raft;
        let reluctant = self.drained.contains(&self.options.node);
        let (term, state, was_reluctant, mut ticks) = self.timeout;
        if (term.0, state, was_reluctant) != (raft.term, raft.state, reluctant) {
            let (term, state) = (Epoch(raft.term), raft.state);
            let Self { options, .. } = self;
            let span = options.span();
            ticks = span.timeout_ticks(options.seed, options.node, term, state as u8, reluctant);
            self.timeout = (term, state, reluctant, ticks);
        }
        self.raft.raft.set_randomized_election_timeout(ticks);
    }

    /// The term in which the state machine leads.
    pub(super) fn leading(&self) -> Option<Epoch> {
        let raft = &self.raft.raft;
        (raft.state == StateRole::Leader).then_some(Epoch(raft.term))
    }

    /// Number of this node in the state machine.
    pub(super) fn id(&self) -> u64 {
        u64::from(self.options.node.0)
    }

    /// The last index, durable or not.
    pub(super) fn last_index(&self) -> u64 {
        self.raft.raft.raft_log.last_index()
    }

    /// Stops for good.
    pub(super) fn fail(&mut self, failure: ReplicaFailure, out: &mut ReplicaEffects) {
        assert!(self.failed.is_none(), "a replica fails once");
        self.failed = Some(failure);
        out.failed = Some(failure);
    }

    /// Moves the replica on.
    pub fn step(
        &mut self,
        now: Now,
        input: ReplicaInput,
        slots: &mut SlotRing,
        out: &mut ReplicaEffects,
    ) {
        if self.failed.is_some() {
            return;
        }
        self.start(now, slots, out);
        let turn_end = matches!(input, ReplicaInput::TurnEnd);
        self.input(now, input, slots, out);
        self.ticks(now, slots, out);
        self.settle(now, slots, out);
        let committed = self.published.lsn;
        self.publish(out);
        let completion = self.published.lsn > committed;
        if self.propose_all(now, completion, slots) {
            self.settle(now, slots, out);
            self.publish(out);
        }
        if turn_end {
            self.turn_end(now, slots, out);
        }
        self.staged_check();
        self.report(now, out);
    }

    /// First step: a node that decides alone waits for nobody.
    fn start(&mut self, now: Now, slots: &mut SlotRing, out: &mut ReplicaEffects) {
        if self.tick_next_nanos.is_some() {
            return;
        }
        self.tick_next_nanos = Some(now.monotonic_nanos + self.options.tick_nanos);
        // Changes of members that were committed before the start come first.
        self.settle(now, slots, out);
        if self.membership.is_alone(self.options.node) && self.failed.is_none() {
            let campaign = self.raft.campaign();
            campaign.expect("a message of one's own is never refused");
            self.touched();
            assert!(self.leading().is_some(), "one vote of one is a majority");
        }
    }

    fn input(
        &mut self,
        now: Now,
        input: ReplicaInput,
        slots: &mut SlotRing,
        out: &mut ReplicaEffects,
    ) {
        match input {
            ReplicaInput::TurnEnd => {}
            ReplicaInput::Tick => self.log_step(now, LogInput::Tick, slots, out),
            ReplicaInput::WriteCompleted { sequence, result } => {
                self.log_step(now, LogInput::WriteCompleted { sequence, result }, slots, out);
            }
            ReplicaInput::RawCompleted { id, result } => {
                self.log_step(now, LogInput::RawCompleted { id, result }, slots, out);
            }
            ReplicaInput::Peer { from, header, frame } => {
                self.peer_message(now, from, header, frame, slots, out);
            }
            ReplicaInput::PeerConnected(node) => self.peer_connected(node),
            ReplicaInput::PeerLost(node) => self.peer_lost(node),
            ReplicaInput::PeerOutgoing { node, bytes } => {
                self.peers.get_mut(node).outgoing_set(bytes);
            }
            ReplicaInput::EntryRead { lsn, result } => self.entry_read(lsn, result, out),
            ReplicaInput::Applied(lsn) => self.applied_set(lsn),
            ReplicaInput::RoleAcknowledged(number) => self.roles.acknowledge(number),
            ReplicaInput::RoundWanted(number) => self.rounds.want(number),
            ReplicaInput::Command(command) => self.command(command, out),
        }
    }

    fn applied_set(&mut self, lsn: Lsn) {
        // Shards that lead have executed more than is committed.
        let lsn = lsn.min(self.published.lsn);
        if lsn > self.applied && (self.roles.epoch().is_some() || lsn <= self.taken) {
            self.applied = lsn;
        }
        assert!(self.applied <= self.published.lsn, "only what is committed is applied");
    }

    /// Time passes for the state machine.
    fn ticks(&mut self, now: Now, slots: &mut SlotRing, out: &mut ReplicaEffects) {
        let tick = self.options.tick_nanos;
        let mut next = self.tick_next_nanos.expect("set by the first step");
        let mut count = 0;
        while now.monotonic_nanos >= next && count < TICKS_AT_ONCE_MAX {
            next += tick;
            count += 1;
            self.ticks += 1;
            if self.may_tick() && !spillway_runtime::fault_point!(TickSkipped) {
                self.leaderless_tick();
                self.raft.tick();
                if spillway_runtime::fault_point!(TickDoubled) {
                    self.raft.tick();
                }
                self.touched();
            }
            self.duties(now, slots, out);
        }
        if now.monotonic_nanos >= next {
            next = now.monotonic_nanos + tick;
        }
        self.tick_next_nanos = Some(next);
    }

    /// A node that cannot write does not campaign. Nor does one that decides alone and is not
    /// through with writing: its election would be won before its log is durable.
    fn may_tick(&self) -> bool {
        if self.leading().is_some() {
            return true;
        }
        let log = &self.raft.raft.raft_log;
        let durable = log.persisted == log.last_index();
        let alone = self.membership.is_alone(self.options.node);
        self.writer.poisoned().is_none() && (durable || !alone)
    }

    /// Gives the log writer an input and takes in what it says.
    pub(super) fn log_step(
        &mut self,
        now: Now,
        input: LogInput,
        slots: &mut SlotRing,
        out: &mut ReplicaEffects,
    ) {
        self.log.clear();
        self.writer.step(now.monotonic_nanos, input, slots, &mut self.log);
        self.log_deadline = self.log.next_deadline_nanos;
        out.writes.append(&mut self.log.writes);
        out.raw_writes.append(&mut self.log.raw_writes);
        for issued in &self.log.issued {
            let index = &mut self.raft.mut_store().index;
            // False when it was superseded before it was issued: nobody will read it.
            let _current = index.place_set(issued.lsn, issued.checksum, issued.place);
        }
        if let Some(number) = self.log.durable {
            assert!(number > self.write_durable && number <= self.write_last, "in order");
            self.write_durable = number;
        }
        if let Some(sequence) = self.log.superblock_durable {
            self.keeper.written(sequence, &mut self.writer);
        }
        if let Some(poisoned) = self.log.poisoned {
            out.poisoned = Some(poisoned);
        }
    }

    /// Works until the state machine, the log and the held messages have nothing more to say.
    pub(super) fn settle(&mut self, now: Now, slots: &mut SlotRing, out: &mut ReplicaEffects) {
        loop {
            while self.failed.is_none() && self.raft.has_ready() {
                self.ready(now, slots, out);
            }
            if self.failed.is_none() {
                // Before frames are issued: those that follow from what is committed say so.
                self.writer.committed_set(Lsn(self.raft.raft.raft_log.committed));
            }
            self.writer_due |= self.keeper.write(&mut self.writer);
            if std::mem::take(&mut self.writer_due) {
                self.log_step(now, LogInput::TurnEnd, slots, out);
            }
            let released = self.release_held(out);
            let windows = self.windows_turn();
            if self.failed.is_some() || (!released && !windows && !self.raft.has_ready()) {
                break;
            }
        }
        self.reads_turn(out);
    }

    /// Lets go what waited for the log.
    fn release_held(&mut self, out: &mut ReplicaEffects) -> bool {
        let mut released = false;
        while !spillway_runtime::fault_point!(PersistHeld)
            && let Some(held) = self.held.pop(self.write_durable, self.keeper.durable())
        {
            self.raft.on_persist_ready(held.number);
            self.touched();
            for message in held.messages {
                self.send(message, out);
            }
            released = true;
        }
        released
    }

    /// Tells the shards about the committed end and the role.
    fn publish(&mut self, out: &mut ReplicaEffects) {
        if let Some(change) = self.roles.step_down(self.leading(), self.published) {
            assert!(self.published.lsn >= self.applied, "the barrier is behind what is applied");
            self.assembler.abandon();
            self.held_up_since = None;
            self.tail.tickets_forget();
            self.rounds.end();
            self.taken = change.barrier.lsn;
            self.applied = change.barrier.lsn;
            out.role = Some(change);
        }
        self.publish_committed(out);
        // A node whose log failed gives way instead.
        let able = self.leading().filter(|_| self.writer.poisoned().is_none());
        if let Some(change) = self.roles.lead(able, self.published, self.applied) {
            let Role::Lead { epoch } = change.role else { panic!("leadership began") };
            self.rounds.lead(epoch);
            out.role = Some(change);
        }
    }

    fn publish_committed(&mut self, out: &mut ReplicaEffects) {
        let committed = Lsn(self.raft.raft.raft_log.committed);
        assert!(committed >= self.published.lsn, "what is committed stays");
        if committed == self.published.lsn || self.failed.is_some() {
            return;
        }
        let identity = self.raft.store().index.identity(committed);
        let identity = identity.expect("what is committed is in the log");
        // An entry of an older term is committed by one of the leader's own behind it only.
        let own = self.leading().is_none_or(|term| term == identity.term);
        assert!(own, "a leader commits LSN {committed} of term {}", identity.term);
        let ticket = self.tail.commit(committed).max(self.published.ticket);
        self.published = Committed {
            epoch: identity.term,
            lsn: committed,
            ticket,
            timestamp: identity.timestamp,
        };
        self.writer.committed_set(committed);
        if self.roles.epoch().is_some() {
            self.taken = committed;
            self.applied = committed;
        }
        out.committed = Some(self.published);
        self.cache_trim();
    }

    /// Up to here an entry may leave the memory: durable, and nobody here needs it.
    fn evict_limit(&self) -> Lsn {
        self.applied.min(Lsn(self.raft.raft.raft_log.persisted))
    }

    fn cache_trim(&mut self) {
        let limit = self.evict_limit();
        let bytes_max = self.options.cache_bytes_max;
        let cache = &mut self.raft.mut_store().cache;
        let is_full =
            |bytes: u64| bytes > bytes_max || spillway_runtime::fault_point!(EntryEvicted);
        while is_full(cache.bytes()) && cache.evict_first(limit) {}
    }

    /// Lets go of about this many bytes of the oldest entries. False when there was nothing.
    pub(super) fn evict(&mut self, bytes: usize) -> bool {
        let limit = self.evict_limit();
        let cache = &mut self.raft.mut_store().cache;
        let until = cache.bytes().saturating_sub(bytes as u64);
        let mut evicted = false;
        while (!evicted || cache.bytes() > until) && cache.evict_first(limit) {
            evicted = true;
        }
        evicted
    }

    /// What was staged has been taken, unless the state machine did not want it.
    fn staged_check(&mut self) {
        assert!(self.leading().is_none() || self.staged.is_empty(), "a leader keeps its entries");
        self.staged.clear();
    }

    fn report(&mut self, now: Now, out: &mut ReplicaEffects) {
        let id = self.raft.raft.leader_id;
        let leader = (id != raft::INVALID_ID).then(|| node_of(id));
        if leader != self.leader_told {
            self.leader_told = leader;
            out.leader = Some(leader);
        }
        let round = self.rounds.round();
        if round != self.round_told {
            self.round_told = round;
            out.round = Some(round);
        }
        let tick = self.tick_next_nanos.expect("set by the first step");
        assert!(tick > now.monotonic_nanos, "the next tick is to come");
        out.next_deadline_nanos = Some(self.log_deadline.map_or(tick, |at| at.min(tick)));
        if spillway_runtime::planted!(DeadlineLost) {
            out.next_deadline_nanos = self.log_deadline;
        }
    }

    /// The next committed entry for the shards to apply, in order, while they follow: its index and
    /// its body, of any kind of entry. The same until [`Self::apply_taken`].
    pub fn apply_next(&self) -> Option<(Lsn, Slot)> {
        if !self.roles.applies() || self.failed.is_some() || self.taken >= self.published.lsn {
            return None;
        }
        if spillway_runtime::fault_point!(ApplyHeld) {
            return None;
        }
        let lsn = Lsn(self.taken.0 + 1);
        let entry = self.raft.store().cache.get(lsn);
        let entry = entry.expect("an entry stays in memory until it is applied");
        Some((lsn, entry.body.clone()))
    }

    /// The entry that [`Self::apply_next`] names went to the shards.
    pub fn apply_taken(&mut self) {
        assert!(self.roles.applies(), "only shards that follow apply");
        assert!(self.taken < self.published.lsn, "only what is committed is applied");
        self.taken.0 += 1;
    }

    /// How much of the log is in use.
    pub fn space(&self) -> LogSpace {
        self.writer.space()
    }

    /// Announces the end: a leader hands over if it can, nothing new is proposed, and a last frame
    /// covers the log.
    pub fn shutdown(&mut self) {
        self.stopping = true;
        self.assembler.abandon();
        self.writer.shutdown();
    }

    /// True when nothing is on its way to the log.
    pub fn is_quiet(&self) -> bool {
        self.assembler.pending_bytes() == 0 && self.staged.is_empty() && self.writer.is_quiet()
    }
}
