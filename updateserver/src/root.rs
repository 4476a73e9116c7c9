//! The root service: tables and sessions, the state that no partition owns.
//!
//! Pure, driven by client commands, by acknowledgements of the shards and by committed log
//! entries. It decides on the leader alone; every decision is a [`SystemCommand`] in the log, and
//! takes effect when that is committed: on the leader by [`RootInput::Committed`], on followers
//! by [`RootInput::Apply`], at the start by [`Root::replay`].
//!
//! What comes into being is logged first and told to the shards when committed, so no fragment
//! can stand in the log before the creation it needs. What goes away is hidden by the shards
//! first and logged when all have stopped using it, so no fragment can stand behind the end of
//! what it needs; when that is committed it is removed. A crash in between leaves it alive, and
//! nobody was told otherwise. So does the end of leadership: what is not committed by then is
//! taken back, and what was hidden is shown again.

mod cluster;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use spillway_net::frame::FrameKind;
use spillway_net::ids::{Epoch, NodeId, PartitionId, SessionId, TableId};
use spillway_net::limits::{NAME_BYTES_MAX, SESSIONS_MAX, TABLES_MAX};
use spillway_net::message::{self, Done, Refusal, RefusalCode, SessionOpened, TableCreated};
use spillway_net::schema::TableDefinition;

use crate::redo::{PARTITION_SYSTEM, RedoError, SystemCommand, SystemFragment, system_digest};
use crate::session::{SLOTS, SessionDirectory, slot_of};
pub use cluster::{Member, Replacement};

use crate::shard::{
    ItemSection, LogItem, ORIGIN_ROOT, Released, RootAnswer, RootCommand, RootOrder, RootOrigin,
};

/// A session that has not done anything for this long is closed when its slot is wanted, or at
/// the latest by the sweep. Seconds.
pub const SESSION_IDLE_SECONDS_MAX: u32 = 3600;
/// Slots that one tick's sweep looks at: all of them in 128 ticks, about a minute.
const SWEEP_SLOTS: usize = 1024;
/// Commands that may wait for shards or the log at a time; more are refused.
const PENDING_MAX: usize = 4096;

/// What a step wants done.
#[derive(Debug, Default)]
pub struct RootEffects {
    /// Items for the log, in order.
    pub items: Vec<Box<LogItem>>,
    /// Orders for all shards, in order.
    pub orders: Vec<RootOrder>,
    /// Answers to clients of shard 0.
    pub answers: Released,
    /// Answers that rest on what is known here, which another leader may have changed since: shard
    /// 0 holds them until it is proven that this node leads.
    pub answers_of_state: Vec<(RootOrigin, RootAnswer)>,
    /// Members to replace: the new node's addresses are committed, the quorum's part remains.
    /// The shell gives it to the quorum and answers the client.
    pub replacements: Vec<Replacement>,
    /// A committed command could not be applied: this replica is not what the leader has, and
    /// the node must stop.
    pub diverged: Option<RedoError>,
}

impl RootEffects {
    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.items.clear();
        self.orders.clear();
        self.answers.clear();
        self.answers_of_state.clear();
        self.replacements.clear();
        self.diverged = None;
    }
}

/// One input of the core.
#[derive(Debug)]
pub enum RootInput {
    /// A client's command.
    Command(RootOrigin, RootCommand),
    /// A command of the node itself. Nobody hears what becomes of it; if it cannot be carried
    /// out now, nothing happens.
    Internal(RootCommand),
    /// One shard has carried out its oldest order that it had not yet acknowledged.
    OrderDone {
        /// Which shard.
        shard: u16,
    },
    /// The log has committed the root's items up to this number.
    Committed {
        /// See [`LogItem::stamp`].
        stamp: u64,
    },
    /// About twice per second.
    Tick {
        /// Whether the log takes entries: it is neither full nor failed.
        log_takes: bool,
    },
    /// A committed command, while this node follows.
    Apply(SystemCommand),
    /// This node leads.
    Lead {
        /// The term.
        epoch: Epoch,
    },
    /// This node does not lead any more: what is not committed is taken back. Before the node
    /// applies anything, [`Root::orders_outstanding`] must have come to 0. Changes nothing on a
    /// follower.
    StepDown {
        /// The newest of the root's items that is committed.
        stamp: u64,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Change {
    TableCreate(TableId),
    TableDrop(TableId),
    SessionOpen(SessionId),
    SessionClose(SessionId),
    /// A change of the members or of what is drained, and the replacement it prepares.
    Cluster(SystemCommand, Option<(Option<NodeId>, NodeId)>),
    /// Nothing: this is answered when what it rests on is committed.
    Nothing(RootAnswer),
}

/// A change between its command and its answer.
#[derive(Debug)]
struct Pending {
    origin: Option<RootOrigin>,
    change: Change,
    /// The order's number that all shards must have carried out, if it waits for one.
    order: Option<u64>,
    /// The item that must be committed, if it waits for one.
    stamp: Option<u64>,
}

#[derive(Debug)]
struct RootTable {
    definition: TableDefinition,
    dropping: bool,
}

/// The root service's state. Lives on shard 0's core. What a term's leader decides shows in it at
/// once, so that no id is given out twice; `pending` is what may have to be taken back.
#[derive(Debug)]
pub struct Root {
    epoch: Option<Epoch>,
    directory: Arc<SessionDirectory>,
    tables: BTreeMap<TableId, RootTable>,
    table_next: u32,
    /// Last generation given out per slot; a session id is never given out twice.
    generations: Vec<u32>,
    live: Vec<bool>,
    sessions_count: usize,
    slot_next: usize,
    members: BTreeMap<NodeId, Member>,
    drained: BTreeSet<NodeId>,
    /// Nodes that were members and are not: their configurations may still name them.
    removed: BTreeSet<NodeId>,
    sweep_next: usize,
    pending: VecDeque<Pending>,
    orders_sent: u64,
    orders_done: Vec<u64>,
    stamp: u64,
    now_seconds: u32,
}

impl Root {
    /// No tables, no sessions.
    pub fn new(directory: Arc<SessionDirectory>, shards: u16) -> Self {
        assert!(shards > 0, "a node has shards");
        Self {
            epoch: None,
            directory,
            tables: BTreeMap::new(),
            table_next: 1,
            generations: vec![0; SLOTS],
            live: vec![false; SLOTS],
            sessions_count: 0,
            slot_next: 0,
            members: BTreeMap::new(),
            drained: BTreeSet::new(),
            removed: BTreeSet::new(),
            sweep_next: 0,
            pending: VecDeque::new(),
            orders_sent: 0,
            orders_done: vec![0; usize::from(shards)],
            stamp: 0,
            now_seconds: 0,
        }
    }

    /// Takes over a committed command of the log while this node follows.
    ///
    /// # Errors
    /// It cannot follow upon what was applied before. Nothing has changed then.
    pub fn replay(&mut self, command: &SystemCommand, now_nanos: u64) -> Result<(), RedoError> {
        assert!(self.epoch.is_none(), "a leader knows what it would replay");
        self.replay_check(command).map_err(RedoError::Contradiction)?;
        match command {
            SystemCommand::TableCreate { table, definition } => {
                let entry = RootTable { definition: definition.clone(), dropping: false };
                self.tables.insert(TableId(*table), entry);
                if !spillway_runtime::planted!(TableIdReused) {
                    self.table_next = u32::from(*table) + 1;
                }
            }
            SystemCommand::TableDrop { table } => {
                self.tables.remove(&TableId(*table));
            }
            SystemCommand::SessionOpen { session, .. } => {
                let session = SessionId(*session);
                self.occupy(session);
                self.directory.open(session, (now_nanos / 1_000_000_000) as u32);
            }
            SystemCommand::SessionClose { session } => {
                let session = SessionId(*session);
                self.directory.close(session);
                self.vacate(session);
            }
            SystemCommand::MemberSet { .. }
            | SystemCommand::MemberRemove { .. }
            | SystemCommand::ZoneDrain { .. } => self.cluster_apply(command),
        }
        Ok(())
    }

    /// Whether a command can follow upon what was applied: no id comes twice, and only what is
    /// there ends.
    fn replay_check(&self, command: &SystemCommand) -> Result<(), &'static str> {
        let (good, wrong) = match command {
            SystemCommand::TableCreate { table, .. } if u32::from(*table) < self.table_next => {
                (false, "a table's id is used twice")
            }
            SystemCommand::TableCreate { table, definition } => {
                let good = *table < u16::MAX && definition.validate().is_ok();
                (good, "a table's definition is not valid")
            }
            SystemCommand::TableDrop { table } => {
                (self.tables.contains_key(&TableId(*table)), "a table is dropped that is not there")
            }
            SystemCommand::SessionOpen { session, .. } => {
                let slot = slot_of(SessionId(*session));
                let generation = session / SLOTS as u64;
                let is_next = generation > u64::from(self.generations[slot]);
                let good = is_next && !self.live[slot] && generation <= u64::from(u32::MAX);
                (good, "a session's id is used twice")
            }
            SystemCommand::SessionClose { session } => {
                let slot = slot_of(SessionId(*session));
                let good = self.live[slot] && self.session_in(slot).0 == *session;
                (good, "a session is closed that is not open")
            }
            SystemCommand::MemberSet { node, .. }
            | SystemCommand::MemberRemove { node }
            | SystemCommand::ZoneDrain { node, .. } => (*node != 0, "a member has no number"),
        };
        if good { Ok(()) } else { Err(wrong) }
    }

    fn occupy(&mut self, session: SessionId) {
        let slot = slot_of(session);
        assert!(!self.live[slot], "a slot has one session at a time");
        let generation = (session.0 / SLOTS as u64) as u32;
        assert!(generation > self.generations[slot], "a session id is never given out twice");
        self.live[slot] = true;
        self.generations[slot] = generation;
        self.sessions_count += 1;
    }

    fn vacate(&mut self, session: SessionId) {
        let slot = slot_of(session);
        assert!(self.live[slot], "only a live session ends");
        self.live[slot] = false;
        self.sessions_count -= 1;
    }

    /// The session that lives in a slot, or lived there last.
    fn session_in(&self, slot: usize) -> SessionId {
        SessionId(u64::from(self.generations[slot]) * SLOTS as u64 + slot as u64)
    }

    /// Open sessions.
    pub fn sessions_count(&self) -> usize {
        self.sessions_count
    }

    /// Takes one input. `now_nanos` is the monotonic clock.
    pub fn step(&mut self, now_nanos: u64, input: RootInput, out: &mut RootEffects) {
        self.now_seconds = (now_nanos / 1_000_000_000) as u32;
        match input {
            RootInput::Command(origin, command) => {
                if let Err((code, text)) = self.command(Some(origin), command, out) {
                    self.refuse(origin, Refusal::new(code, text), code, out);
                }
            }
            RootInput::Internal(command) => drop(self.command(None, command, out)),
            RootInput::OrderDone { shard } => {
                let done = &mut self.orders_done[usize::from(shard)];
                *done += 1;
                assert!(*done <= self.orders_sent, "a shard carries out what was ordered");
                self.orders_moved(out);
            }
            RootInput::Committed { stamp } => self.committed(stamp, out),
            // Every closing is an entry. What is left of a full log is for what was handed over:
            // idle sessions must not use it up.
            RootInput::Tick { log_takes } => {
                if log_takes && self.epoch.is_some() {
                    self.sweep(out);
                }
            }
            RootInput::Apply(command) => {
                if let Err(error) = self.replay(&command, now_nanos) {
                    out.diverged = Some(error);
                }
            }
            RootInput::Lead { epoch } => self.lead(epoch),
            RootInput::StepDown { stamp } => self.step_down(stamp, out),
        }
    }

    /// Orders that some shard has not carried out yet.
    pub fn orders_outstanding(&self) -> u64 {
        let done = self.orders_done.iter().copied().min().expect("a node has shards");
        self.orders_sent - done
    }

    fn lead(&mut self, epoch: Epoch) {
        assert!(self.epoch.is_none(), "a term begins after the last one has ended");
        assert!(self.pending.is_empty(), "a follower decides nothing");
        self.epoch = Some(epoch);
        // Only the leader sees sessions at work: their idle time begins anew.
        for slot in (0..SLOTS).filter(|slot| self.live[*slot]) {
            self.directory.touch(self.session_in(slot), self.now_seconds);
        }
    }

    fn step_down(&mut self, stamp: u64, out: &mut RootEffects) {
        if self.epoch.is_none() {
            return;
        }
        self.committed(stamp, out);
        // Nobody is connected any more who could be answered.
        out.answers.clear();
        out.answers_of_state.clear();
        out.replacements.clear();
        self.epoch = None;
        while let Some(pending) = self.pending.pop_back() {
            self.take_back(pending);
        }
        assert!(self.tables.values().all(|table| !table.dropping), "drops are pending or done");
    }

    /// A change that is not committed when leadership ends is as if it had never been decided.
    fn take_back(&mut self, pending: Pending) {
        match pending.change {
            // Committed, and being told to the shards.
            Change::TableCreate(_) if pending.order.is_some() => {}
            Change::TableCreate(id) => {
                self.tables.remove(&id);
                self.table_next = self.table_next.min(u32::from(id.0));
            }
            Change::TableDrop(id) => {
                let table = self.tables.get_mut(&id);
                table.expect("a drop that is not committed leaves its table").dropping = false;
            }
            Change::SessionOpen(session) => {
                self.vacate(session);
                self.generations[slot_of(session)] -= 1;
            }
            Change::SessionClose(session) => self.directory.open(session, self.now_seconds),
            Change::Cluster(..) | Change::Nothing(_) => {}
        }
    }

    fn refuse(
        &mut self,
        origin: RootOrigin,
        refusal: Refusal,
        code: RefusalCode,
        out: &mut RootEffects,
    ) {
        let at_once = match code {
            // Whatever other nodes know. What is at its limit is worth another attempt anyway.
            RefusalCode::NotLeader | RefusalCode::Malformed | RefusalCode::LimitReached => true,
            // So is what waits for another change.
            RefusalCode::ClusterBusy => self.changes_cluster(),
            _ => false,
        };
        if at_once {
            let (to, request) = (origin.connection, origin.request);
            out.answers.push(to, FrameKind::Refusal, request, &refusal);
        } else {
            self.answer_of_state(Some(origin), RootAnswer::Refusal(refusal), out);
        }
    }

    /// Answers without changing anything: behind the commit of what the answer may rest on.
    fn answer_of_state(
        &mut self,
        origin: Option<RootOrigin>,
        answer: RootAnswer,
        out: &mut RootEffects,
    ) {
        let Some(asked) = origin else { return };
        match self.pending.iter().filter_map(|pending| pending.stamp).max() {
            Some(stamp) => self.wait(origin, Change::Nothing(answer), None, Some(stamp)),
            None => out.answers_of_state.push((asked, answer)),
        }
    }

    fn command(
        &mut self,
        origin: Option<RootOrigin>,
        command: RootCommand,
        out: &mut RootEffects,
    ) -> Result<(), (RefusalCode, String)> {
        if self.epoch.is_none() {
            let text = "this node does not lead: ask the leader".to_owned();
            return Err((RefusalCode::NotLeader, text));
        }
        let busy = origin.is_some() && spillway_runtime::fault_point!(RootBusy);
        if self.pending.len() >= PENDING_MAX || busy {
            let text = "too many commands of the root service are waiting: try again".to_owned();
            return Err((RefusalCode::LimitReached, text));
        }
        match command {
            RootCommand::SessionOpen { client_name } => self.session_open(origin, client_name, out),
            RootCommand::SessionClose { session } => {
                if !self.directory.is_live(session) {
                    let text = format!("session {session} is not open");
                    return Err((RefusalCode::SessionUnknown, text));
                }
                self.session_close(origin, session, out);
                Ok(())
            }
            RootCommand::TableCreate { definition } => self.table_create(origin, definition, out),
            RootCommand::TableDrop { name } => self.table_drop(origin, &name, out),
            RootCommand::MemberSet { .. }
            | RootCommand::MemberRemove { .. }
            | RootCommand::ZoneDrain { .. }
            | RootCommand::MemberReplace { .. } => self.cluster_command(origin, command, out),
        }
    }

    fn session_open(
        &mut self,
        origin: Option<RootOrigin>,
        client_name: String,
        out: &mut RootEffects,
    ) -> Result<(), (RefusalCode, String)> {
        if client_name.len() > NAME_BYTES_MAX {
            let text = format!("a client's name has at most {NAME_BYTES_MAX} bytes");
            return Err((RefusalCode::Malformed, text));
        }
        if self.sessions_count >= SESSIONS_MAX {
            let text = format!("{SESSIONS_MAX} sessions are open: close some, or wait for expiry");
            return Err((RefusalCode::LimitReached, text));
        }
        if spillway_runtime::fault_point!(SessionSlotReused) {
            self.slot_next = 0;
        }
        while self.live[self.slot_next] {
            self.slot_next = (self.slot_next + 1) % SLOTS;
        }
        let slot = self.slot_next;
        self.slot_next = (slot + 1) % SLOTS;
        let mut generation = u64::from(self.generations[slot]) + 1;
        if generation > 1 && spillway_runtime::planted!(SessionIdReused) {
            generation -= 1;
        }
        let session = SessionId(generation * SLOTS as u64 + slot as u64);
        self.occupy(session);
        let command = SystemCommand::SessionOpen { session: session.0, client_name };
        let stamp = self.propose(command, out);
        self.wait(origin, Change::SessionOpen(session), None, Some(stamp));
        Ok(())
    }

    fn session_close(
        &mut self,
        origin: Option<RootOrigin>,
        session: SessionId,
        out: &mut RootEffects,
    ) {
        self.directory.close(session);
        let order = self.order(RootOrder::SessionHide { session }, out);
        self.wait(origin, Change::SessionClose(session), Some(order), None);
    }

    fn table_create(
        &mut self,
        origin: Option<RootOrigin>,
        definition: TableDefinition,
        out: &mut RootEffects,
    ) -> Result<(), (RefusalCode, String)> {
        if let Err(error) = definition.validate() {
            return Err((RefusalCode::Schema, error.to_string()));
        }
        if let Some((id, table)) = self.by_name(&definition.name) {
            if table.dropping || table.definition != definition {
                let text = format!("a table named {} exists with another form", definition.name);
                return Err((RefusalCode::Schema, text));
            }
            // The same again: the answer waits for whatever the first one waits for.
            let waits = self.pending.iter().find(|p| p.change == Change::TableCreate(id));
            match waits.map(|waits| (waits.order, waits.stamp)) {
                Some((order, stamp)) => {
                    self.wait(origin, Change::TableCreate(id), order, stamp);
                }
                None => {
                    let answer = RootAnswer::TableCreated(TableCreated { table: id.0 });
                    self.answer_of_state(origin, answer, out);
                }
            }
            return Ok(());
        }
        if self.tables.len() >= TABLES_MAX || self.table_next >= u32::from(u16::MAX) {
            let text = format!("no more than {TABLES_MAX} tables, and 65,534 over all time");
            return Err((RefusalCode::LimitReached, text));
        }
        let id = TableId(self.table_next as u16);
        self.table_next += 1;
        let command = SystemCommand::TableCreate { table: id.0, definition: definition.clone() };
        self.tables.insert(id, RootTable { definition, dropping: false });
        let stamp = self.propose(command, out);
        self.wait(origin, Change::TableCreate(id), None, Some(stamp));
        Ok(())
    }

    fn table_drop(
        &mut self,
        origin: Option<RootOrigin>,
        name: &str,
        out: &mut RootEffects,
    ) -> Result<(), (RefusalCode, String)> {
        let Some(id) = self.by_name(name).map(|(id, _)| id) else {
            return Err((RefusalCode::Schema, format!("there is no table {name}")));
        };
        let unfinished = self
            .pending
            .iter()
            .any(|p| p.change == Change::TableCreate(id) || p.change == Change::TableDrop(id));
        if unfinished {
            let text = format!("table {name} is just being created or dropped: try again");
            return Err((RefusalCode::Schema, text));
        }
        self.tables.get_mut(&id).expect("found by name").dropping = true;
        let order = self.order(RootOrder::TableHide { table: id }, out);
        self.wait(origin, Change::TableDrop(id), Some(order), None);
        Ok(())
    }

    fn by_name(&self, name: &str) -> Option<(TableId, &RootTable)> {
        self.tables
            .iter()
            .find(|(_, table)| table.definition.name == name)
            .map(|(id, table)| (*id, table))
    }

    fn wait(
        &mut self,
        origin: Option<RootOrigin>,
        change: Change,
        order: Option<u64>,
        stamp: Option<u64>,
    ) {
        assert!(order.is_some() != stamp.is_some(), "a change waits for one thing at a time");
        self.pending.push_back(Pending { origin, change, order, stamp });
    }

    fn order(&mut self, order: RootOrder, out: &mut RootEffects) -> u64 {
        out.orders.push(order);
        self.orders_sent += 1;
        self.orders_sent
    }

    fn propose(&mut self, command: SystemCommand, out: &mut RootEffects) -> u64 {
        let mut item = Box::new(LogItem::default());
        self.stamp += 1;
        item.origin = ORIGIN_ROOT;
        item.epoch = self.epoch.expect("only a leader proposes");
        item.stamp = self.stamp;
        message::archive(&mut item.bytes, &SystemFragment { commands: vec![command] });
        item.sections.push(ItemSection {
            partition: PartitionId(PARTITION_SYSTEM),
            digest: system_digest(&item.bytes),
            start: 0,
            end: item.bytes.len() as u32,
        });
        out.items.push(item);
        self.stamp
    }

    /// All shards have carried out some more orders.
    fn orders_moved(&mut self, out: &mut RootEffects) {
        let done = self.orders_done.iter().copied().min().expect("a node has shards");
        let ready = |p: &Pending| p.order.is_some_and(|order| order <= done);
        for mut pending in self.take(ready) {
            pending.order = None;
            let command = match pending.change {
                Change::TableCreate(id) => {
                    answer_created(pending.origin, id, out);
                    continue;
                }
                Change::TableDrop(id) => SystemCommand::TableDrop { table: id.0 },
                Change::SessionClose(session) => SystemCommand::SessionClose { session: session.0 },
                Change::SessionOpen(_) | Change::Cluster(..) | Change::Nothing(_) => {
                    unreachable!("only tables and the ends of sessions are ordered")
                }
            };
            pending.stamp = Some(self.propose(command, out));
            self.pending.push_back(pending);
        }
    }

    fn committed(&mut self, stamp: u64, out: &mut RootEffects) {
        assert!(stamp <= self.stamp, "only what was proposed is committed");
        let ready = |p: &Pending| p.stamp.is_some_and(|waits| waits <= stamp);
        let mut created: BTreeMap<TableId, u64> = BTreeMap::new();
        for mut pending in self.take(ready) {
            match pending.change {
                Change::SessionOpen(session) => {
                    self.directory.open(session, self.now_seconds);
                    if let Some(origin) = pending.origin {
                        let answer = SessionOpened { session: session.0 };
                        let (to, request) = (origin.connection, origin.request);
                        out.answers.push(to, FrameKind::SessionOpened, request, &answer);
                    }
                }
                Change::SessionClose(session) => {
                    self.vacate(session);
                    self.order(RootOrder::SessionRemove { session }, out);
                    answer_done(pending.origin, out);
                }
                Change::TableDrop(id) => {
                    self.tables.remove(&id);
                    self.order(RootOrder::TableRemove { table: id }, out);
                    answer_done(pending.origin, out);
                }
                Change::Cluster(command, replacement) => {
                    self.cluster_committed(pending.origin, &command, replacement, out);
                }
                Change::Nothing(answer) => {
                    let origin = pending.origin.expect("somebody waits for an answer");
                    out.answers_of_state.push((origin, answer));
                }
                Change::TableCreate(id) => {
                    let order = match created.get(&id) {
                        Some(order) => *order,
                        None => {
                            let definition = self.tables[&id].definition.clone();
                            self.order(RootOrder::TableCreate { table: id, definition }, out)
                        }
                    };
                    created.insert(id, order);
                    pending.stamp = None;
                    pending.order = Some(order);
                    self.pending.push_back(pending);
                }
            }
        }
    }

    fn take(&mut self, ready: impl Fn(&Pending) -> bool) -> VecDeque<Pending> {
        let (taken, kept) = std::mem::take(&mut self.pending).into_iter().partition(ready);
        self.pending = kept;
        taken
    }

    /// Closes sessions that nobody has used for long, a few slots at a time.
    fn sweep(&mut self, out: &mut RootEffects) {
        for _ in 0..SWEEP_SLOTS {
            let slot = self.sweep_next;
            self.sweep_next = (slot + 1) % SLOTS;
            let session = self.session_in(slot);
            if !self.live[slot] || !self.directory.is_live(session) {
                continue;
            }
            let idle = self.now_seconds.saturating_sub(self.directory.used_at_seconds(session));
            if idle >= SESSION_IDLE_SECONDS_MAX && self.pending.len() < PENDING_MAX {
                self.session_close(None, session, out);
            }
        }
    }
}

fn answer_created(origin: Option<RootOrigin>, id: TableId, out: &mut RootEffects) {
    let Some(origin) = origin else { return };
    let answer = TableCreated { table: id.0 };
    out.answers.push(origin.connection, FrameKind::TableCreated, origin.request, &answer);
}

fn answer_done(origin: Option<RootOrigin>, out: &mut RootEffects) {
    if let Some(origin) = origin {
        out.answers.push(origin.connection, FrameKind::Done, origin.request, &Done {});
    }
}

#[cfg(test)]
mod tests;
