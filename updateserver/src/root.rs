//! The root service: tables and sessions, the state that no partition owns.
//!
//! Pure, driven by client commands, by acknowledgements of the shards and by committed log
//! entries. It decides on the leader alone; every decision is a [`SystemCommand`] in the log, and
//! [`Root::replay`] rebuilds the state from those.
//!
//! What comes into being is logged first and told to the shards when committed, so no fragment
//! can stand in the log before the creation it needs. What goes away is told to the shards first
//! and logged when all have stopped using it, so no fragment can stand behind the end of what it
//! needs. A crash in between leaves it alive, and nobody was told otherwise.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use spillway_net::frame::FrameKind;
use spillway_net::ids::{PartitionId, SessionId, TableId};
use spillway_net::limits::{NAME_BYTES_MAX, SESSIONS_MAX, TABLES_MAX};
use spillway_net::message::{self, Done, Refusal, RefusalCode, SessionOpened, TableCreated};
use spillway_net::schema::TableDefinition;

use crate::redo::{PARTITION_SYSTEM, SystemCommand, SystemFragment, system_digest};
use crate::session::{SLOTS, SessionDirectory, slot_of};
use crate::shard::{
    ItemSection, LogItem, ORIGIN_ROOT, Released, RootCommand, RootOrder, RootOrigin,
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
}

impl RootEffects {
    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.items.clear();
        self.orders.clear();
        self.answers.clear();
    }
}

/// One input of the core.
#[derive(Debug)]
pub enum RootInput {
    /// A client's command.
    Command(RootOrigin, RootCommand),
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
}

#[derive(Debug, Clone, PartialEq)]
enum Change {
    TableCreate(TableId),
    TableDrop(TableId),
    SessionOpen(SessionId),
    SessionClose(SessionId),
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

/// The root service's state. Lives on shard 0's core.
#[derive(Debug)]
pub struct Root {
    directory: Arc<SessionDirectory>,
    tables: BTreeMap<TableId, RootTable>,
    table_next: u32,
    /// Last generation given out per slot; a session id is never given out twice.
    generations: Vec<u32>,
    live: Vec<bool>,
    sessions_count: usize,
    slot_next: usize,
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
            directory,
            tables: BTreeMap::new(),
            table_next: 1,
            generations: vec![0; SLOTS],
            live: vec![false; SLOTS],
            sessions_count: 0,
            slot_next: 0,
            sweep_next: 0,
            pending: VecDeque::new(),
            orders_sent: 0,
            orders_done: vec![0; usize::from(shards)],
            stamp: 0,
            now_seconds: 0,
        }
    }

    /// Rebuilds the state from a command in the log.
    pub fn replay(&mut self, command: &SystemCommand, now_nanos: u64) {
        match command {
            SystemCommand::TableCreate { table, definition } => {
                let entry = RootTable { definition: definition.clone(), dropping: false };
                self.tables.insert(TableId(*table), entry);
                self.table_next = self.table_next.max(u32::from(*table) + 1);
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
        }
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

    /// Open sessions.
    pub fn sessions_count(&self) -> usize {
        self.sessions_count
    }

    /// Takes one input. `now_nanos` is the monotonic clock.
    pub fn step(&mut self, now_nanos: u64, input: RootInput, out: &mut RootEffects) {
        self.now_seconds = (now_nanos / 1_000_000_000) as u32;
        match input {
            RootInput::Command(origin, command) => {
                if let Err((code, text)) = self.command(origin, command, out) {
                    let refusal = Refusal::new(code, text);
                    let (to, request) = (origin.connection, origin.request);
                    out.answers.push(to, FrameKind::Refusal, request, &refusal);
                }
            }
            RootInput::OrderDone { shard } => {
                let done = &mut self.orders_done[usize::from(shard)];
                *done += 1;
                assert!(*done <= self.orders_sent, "a shard carries out what was ordered");
                self.orders_moved(out);
            }
            RootInput::Committed { stamp } => {
                assert!(stamp <= self.stamp, "only what was proposed is committed");
                self.committed(stamp, out);
            }
            // Every closing is an entry. What is left of a full log is for what was handed over:
            // idle sessions must not use it up.
            RootInput::Tick { log_takes: true } => self.sweep(out),
            RootInput::Tick { log_takes: false } => {}
        }
    }

    fn command(
        &mut self,
        origin: RootOrigin,
        command: RootCommand,
        out: &mut RootEffects,
    ) -> Result<(), (RefusalCode, String)> {
        if self.pending.len() >= PENDING_MAX {
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
                self.session_close(Some(origin), session, out);
                Ok(())
            }
            RootCommand::TableCreate { definition } => self.table_create(origin, definition, out),
            RootCommand::TableDrop { name } => self.table_drop(origin, &name, out),
        }
    }

    fn session_open(
        &mut self,
        origin: RootOrigin,
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
        while self.live[self.slot_next] {
            self.slot_next = (self.slot_next + 1) % SLOTS;
        }
        let slot = self.slot_next;
        self.slot_next = (slot + 1) % SLOTS;
        let generation = u64::from(self.generations[slot]) + 1;
        let session = SessionId(generation * SLOTS as u64 + slot as u64);
        self.occupy(session);
        let command = SystemCommand::SessionOpen { session: session.0, client_name };
        let stamp = self.propose(command, out);
        self.wait(Some(origin), Change::SessionOpen(session), None, Some(stamp));
        Ok(())
    }

    fn session_close(
        &mut self,
        origin: Option<RootOrigin>,
        session: SessionId,
        out: &mut RootEffects,
    ) {
        self.directory.close(session);
        let order = self.order(RootOrder::SessionClose { session }, out);
        self.wait(origin, Change::SessionClose(session), Some(order), None);
    }

    fn table_create(
        &mut self,
        origin: RootOrigin,
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
                    self.wait(Some(origin), Change::TableCreate(id), order, stamp);
                }
                None => answer_created(origin, id, out),
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
        self.wait(Some(origin), Change::TableCreate(id), None, Some(stamp));
        Ok(())
    }

    fn table_drop(
        &mut self,
        origin: RootOrigin,
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
        let order = self.order(RootOrder::TableDrop { table: id }, out);
        self.wait(Some(origin), Change::TableDrop(id), Some(order), None);
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
                    if let Some(origin) = pending.origin {
                        answer_created(origin, id, out);
                    }
                    continue;
                }
                Change::TableDrop(id) => SystemCommand::TableDrop { table: id.0 },
                Change::SessionClose(session) => SystemCommand::SessionClose { session: session.0 },
                Change::SessionOpen(_) => unreachable!("opening a session orders nothing"),
            };
            pending.stamp = Some(self.propose(command, out));
            self.pending.push_back(pending);
        }
    }

    fn committed(&mut self, stamp: u64, out: &mut RootEffects) {
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
                    answer_done(pending.origin, out);
                }
                Change::TableDrop(id) => {
                    self.tables.remove(&id);
                    answer_done(pending.origin, out);
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
            let session = SessionId(u64::from(self.generations[slot]) * SLOTS as u64 + slot as u64);
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

fn answer_created(origin: RootOrigin, id: TableId, out: &mut RootEffects) {
    let answer = TableCreated { table: id.0 };
    out.answers.push(origin.connection, FrameKind::TableCreated, origin.request, &answer);
}

fn answer_done(origin: Option<RootOrigin>, out: &mut RootEffects) {
    if let Some(origin) = origin {
        out.answers.push(origin.connection, FrameKind::Done, origin.request, &Done {});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: RootOrigin = RootOrigin { connection: 1, request: 9 };

    fn root(shards: u16) -> (Root, Arc<SessionDirectory>) {
        let directory = Arc::new(SessionDirectory::default());
        (Root::new(Arc::clone(&directory), shards), directory)
    }

    fn definition(name: &str) -> TableDefinition {
        let text = format!("{name}(id int8, v int8, primary key (id), partition key (id))");
        TableDefinition::parse(&text).expect("a valid definition")
    }

    fn command(root: &mut Root, command: RootCommand) -> RootEffects {
        let mut out = RootEffects::default();
        root.step(0, RootInput::Command(ORIGIN, command), &mut out);
        out
    }

    fn step(root: &mut Root, input: RootInput) -> RootEffects {
        let mut out = RootEffects::default();
        root.step(0, input, &mut out);
        out
    }

    #[test]
    fn a_session_is_live_only_when_its_opening_is_committed() {
        let (mut root, directory) = root(2);
        let out = command(&mut root, RootCommand::SessionOpen { client_name: "t".into() });
        assert_eq!(out.items.len(), 1);
        assert!(out.answers.frames.is_empty());
        let session = SessionId(SLOTS as u64);
        assert!(!directory.is_live(session));
        let out = step(&mut root, RootInput::Committed { stamp: 1 });
        assert!(directory.is_live(session));
        assert_eq!(out.answers.frames.len(), 1);
    }

    #[test]
    fn a_table_is_told_to_the_shards_when_committed_and_answered_when_all_have_it() {
        let (mut root, _) = root(2);
        let create = RootCommand::TableCreate { definition: definition("t") };
        assert!(command(&mut root, create.clone()).orders.is_empty());
        assert!(command(&mut root, create).items.is_empty(), "the same again is not logged again");
        let out = step(&mut root, RootInput::Committed { stamp: 1 });
        assert_eq!(out.orders.len(), 1);
        assert!(step(&mut root, RootInput::OrderDone { shard: 0 }).answers.frames.is_empty());
        let out = step(&mut root, RootInput::OrderDone { shard: 1 });
        assert_eq!(out.answers.frames.len(), 2, "both clients are answered");
    }

    #[test]
    fn a_table_goes_into_the_log_as_dropped_only_after_all_shards_let_it_go() {
        let (mut root, _) = root(1);
        command(&mut root, RootCommand::TableCreate { definition: definition("t") });
        step(&mut root, RootInput::Committed { stamp: 1 });
        let busy = command(&mut root, RootCommand::TableDrop { name: "t".into() });
        assert!(busy.orders.is_empty(), "not while it is being created");
        step(&mut root, RootInput::OrderDone { shard: 0 });
        let out = command(&mut root, RootCommand::TableDrop { name: "t".into() });
        assert_eq!((out.orders.len(), out.items.len()), (1, 0));
        let out = step(&mut root, RootInput::OrderDone { shard: 0 });
        assert_eq!(out.items.len(), 1);
        let out = step(&mut root, RootInput::Committed { stamp: 2 });
        assert_eq!(out.answers.frames.len(), 1);
        let again = command(&mut root, RootCommand::TableCreate { definition: definition("t") });
        assert_eq!(again.items.len(), 1, "the name is free, the id is new");
        assert_eq!(root.table_next, 3);
    }

    #[test]
    fn idle_sessions_are_closed_by_the_sweep() {
        let (mut root, directory) = root(1);
        command(&mut root, RootCommand::SessionOpen { client_name: String::new() });
        step(&mut root, RootInput::Committed { stamp: 1 });
        let mut out = RootEffects::default();
        let late = u64::from(SESSION_IDLE_SECONDS_MAX + 1) * 1_000_000_000;
        for _ in 0..SLOTS / SWEEP_SLOTS {
            root.step(late, RootInput::Tick { log_takes: false }, &mut out);
        }
        assert!(out.orders.is_empty(), "not while the log has no room for it");
        for _ in 0..SLOTS / SWEEP_SLOTS {
            root.step(late, RootInput::Tick { log_takes: true }, &mut out);
        }
        assert_eq!(out.orders.len(), 1);
        assert!(!directory.is_live(SessionId(SLOTS as u64)));
    }

    #[test]
    fn replay_gives_no_id_out_again() {
        let (mut root, directory) = root(1);
        let open =
            SystemCommand::SessionOpen { session: 3 * SLOTS as u64, client_name: String::new() };
        root.replay(&open, 0);
        assert!(directory.is_live(SessionId(3 * SLOTS as u64)));
        root.replay(&SystemCommand::SessionClose { session: 3 * SLOTS as u64 }, 0);
        let create = SystemCommand::TableCreate { table: 7, definition: definition("t") };
        root.replay(&create, 0);
        let out = command(&mut root, RootCommand::SessionOpen { client_name: String::new() });
        assert_eq!(out.items.len(), 1);
        assert_eq!(root.generations[0], 4);
        assert_eq!(root.table_next, 8);
    }
}
