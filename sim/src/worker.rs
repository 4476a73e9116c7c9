//! Clients: each a [`ClientCore`] as it runs in production, with a workload.
//!
//! Worker 0 is the operator: it creates the tables and opens the others' sessions. Every other
//! worker has one session on one shard and moves money between accounts there, reads, scans,
//! changes notes, and writes a journal row with every transfer. Readers have no session: they ask
//! any node for rows that may be old, but not older than they say.

use std::collections::BTreeMap;
use std::time::Duration;

use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::core::{ClientCore, ClientEffects, ClientInput, CoreOptions, Follow};
use spillway_net::client::{
    Batch, FrameAnswer, FrameResult, FrameToken, Freshness, LossReason, NodeBook, Router,
    TableHandle,
};
use spillway_net::frame::FrameKind;
use spillway_net::ids::{Lsn, TableId};
use spillway_net::layout::TableLayout;
use spillway_net::message::{
    self, ArchivedOutcomeHead, Done, OutcomeStatus, RefusalCode, Scan, ScanPage, SessionClose,
    SessionOpen, SessionOpened, TableCreate, TableCreated, TableDrop, Welcome,
};
use spillway_net::row::RowView;
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;

use crate::Failure;
use crate::disk::CLUSTER;
use crate::draw::Draw;
use crate::options::{SECOND, Sizes};
use crate::recorder::{Recorder, Told};

const PORT_BASE: u16 = 7400;
/// Ports of a node.
const PORTS: u16 = 100;
/// What every account begins with.
pub const BALANCE_INITIAL: i64 = 1000;

/// Where a shard of a node listens; both count from 0.
pub fn port(node: u16, shard: u16) -> u16 {
    PORT_BASE + node * PORTS + shard
}

/// Where shard 0 of a node listens.
pub fn address(node: u16) -> String {
    format!("sim:{}", port(node, 0))
}

/// The tables of all runs, known in advance: the first two that a node creates.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Balances.
    pub account: TableHandle,
    /// One row per transfer.
    pub journal: TableHandle,
    /// Partitions of the node.
    pub partitions: u32,
}

impl Tables {
    /// For a node of these sizes.
    pub fn new(sizes: &Sizes) -> Self {
        let partitions = u32::from(sizes.geometry.partitions);
        let welcome = Welcome {
            cluster: CLUSTER.0,
            node: 1,
            epoch: 1,
            leader: 1,
            partitions,
            shard: 0,
            shard_ports: vec![1; usize::from(sizes.shards)],
            ..Welcome::default()
        };
        let router = Router::new(&welcome).expect("drawn sizes are possible");
        let table = |id, text| {
            let definition = TableDefinition::parse(text).expect("the text is right");
            TableHandle::new(TableId(id), definition, router).expect("the definition is right")
        };
        Self {
            account: table(
                1,
                "account(id int8, balance int8, note text null, primary key (id), \
                 partition key (id))",
            ),
            journal: table(
                2,
                "journal(salt int8, worker int8, sequence int8, note text null, \
                 primary key (salt, worker, sequence), partition key (salt))",
            ),
            partitions,
        }
    }

    /// The layout of a table.
    pub fn layout(&self, table: TableId) -> &TableLayout {
        if table == self.account.id() { self.account.layout() } else { self.journal.layout() }
    }

    /// The balance in an account's row.
    pub fn balance(&self, row: &[u8]) -> i64 {
        let view = RowView::new(self.account.layout(), row).expect("rows in the log are valid");
        match view.get(0).map(Value::from) {
            Ok(Value::Int8(balance)) => balance,
            other => panic!("a balance is {other:?}"),
        }
    }
}

/// What a worker's core wants of the world, in order.
#[derive(Debug)]
pub enum Wish {
    /// Connect to this shard of this node; both count from 0.
    Connect(u16, u16),
    /// Send.
    Send(Vec<u8>),
    /// Close.
    Close,
}

#[derive(Debug)]
struct Ended {
    token: FrameToken,
    first_number: u64,
    transactions: usize,
    result: EndedResult,
}

#[derive(Debug)]
enum EndedResult {
    Outcomes(Vec<Told>),
    Answer(FrameKind, Vec<u8>),
    GaveUp,
    RefusedLog,
    None,
}

#[derive(Debug, Default)]
struct Effects {
    wishes: Vec<Wish>,
    ended: Vec<Ended>,
}

impl ClientEffects for Effects {
    fn connect(&mut self, address: &str) {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let place = port.and_then(|port| port.checked_sub(PORT_BASE));
        let place = place.expect("an address of a simulated node");
        self.wishes.push(Wish::Connect(place / PORTS, place % PORTS));
    }

    fn send(&mut self, frame: &[u8]) {
        self.wishes.push(Wish::Send(frame.to_vec()));
    }

    fn close(&mut self) {
        self.wishes.push(Wish::Close);
    }

    fn answer(&mut self, answer: FrameAnswer<'_>) {
        let FrameAnswer { token, first_number, transactions, result } = answer;
        let result = match result {
            FrameResult::Outcomes { outcomes, bytes, .. } => {
                EndedResult::Outcomes(told(outcomes, bytes))
            }
            FrameResult::Answer { kind, payload, .. } => {
                EndedResult::Answer(kind, payload.to_vec())
            }
            FrameResult::Unknown(LossReason::GaveUp) | FrameResult::NotSent(LossReason::GaveUp) => {
                EndedResult::GaveUp
            }
            FrameResult::Refused { code: RefusalCode::LogUnavailable, .. } => {
                EndedResult::RefusedLog
            }
            FrameResult::Refused { .. } | FrameResult::Unknown(_) | FrameResult::NotSent(_) => {
                EndedResult::None
            }
        };
        self.ended.push(Ended { token, first_number, transactions, result });
    }
}

/// The outcomes of a frame, one by one.
fn told(outcomes: &[ArchivedOutcomeHead], mut bytes: &[u8]) -> Vec<Told> {
    let mut one = |outcome: &ArchivedOutcomeHead| {
        let (results, rest) = bytes.split_at(outcome.data_length.to_native() as usize);
        bytes = rest;
        let status = OutcomeStatus::from_wire(outcome.status.to_native());
        let status = status.expect("the core let known ones pass");
        Told { status, operation: outcome.operation.to_native(), results: results.to_vec() }
    };
    outcomes.iter().map(&mut one).collect()
}

/// A transaction's end, as a client heard it.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// Its number.
    pub number: u64,
    /// How it ended.
    pub status: OutcomeStatus,
    /// Whether it writes.
    pub writes: bool,
}

/// What came of a step.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To carry out.
    pub wishes: Vec<Wish>,
    /// Ends of transactions.
    pub heard: Vec<Heard>,
    /// Sessions that the operator opened.
    pub sessions: Vec<u64>,
    /// Requests that were not answered in the client's patience.
    pub gave_up: u64,
    /// Requests that the root service's shard refused because of the log.
    pub refused_log: u64,
}

/// How long a client repeats a request.
pub const PATIENCE_NANOS: u64 = 20 * SECOND;

/// See the module.
#[derive(Debug)]
pub struct Worker {
    core: ClientCore,
    effects: Effects,
    shard: u16,
    number: i64,
    /// Accounts that live on its shard.
    accounts: Vec<i64>,
    /// Journal salts that live on its shard.
    salts: Vec<i64>,
    sequence: i64,
    batch: Batch,
    /// Whether each transaction in flight writes, by frame.
    writes: BTreeMap<u64, Vec<bool>>,
    sessions_wanted: usize,
    tables_created: u16,
    /// The operator's steps beyond its duties, and a session that it opened for nobody.
    idle_steps: u64,
    spare_session: Option<u64>,
    unrepeatable: Option<u64>,
    /// What it saw.
    pub recorder: Recorder,
    /// Whether it only reads, without a session.
    is_reader: bool,
    /// A committed LSN that it has heard of.
    pub lsn_known: u64,
    /// When it wants to work next.
    pub work_at: u64,
    /// Its connection, while there is one.
    pub connection: Option<u64>,
    /// The time its next tick is scheduled for.
    pub tick_at: Option<u64>,
}

impl Worker {
    /// The worker of this number for a shard; session 0 makes it the operator.
    pub fn new(
        number: usize,
        shard: u16,
        session: u64,
        sizes: &Sizes,
        tables: &Tables,
        draw: &mut Draw,
    ) -> Self {
        let lives = |table: &TableHandle, values: &[Value]| {
            table.write_key(values, &mut Vec::new()).expect("a key") == shard
        };
        let salt = |salt: &i64| {
            lives(&tables.journal, &[Value::Int8(*salt), Value::Int8(0), Value::Int8(0)])
        };
        let ports = (0..sizes.shards).map(|shard| port(0, shard)).collect();
        let nodes = match sizes.nodes {
            1 => NodeBook::with_ports(address(0), ports),
            nodes => NodeBook::new((0..nodes).map(address)),
        };
        let options = CoreOptions {
            connection: number,
            session,
            cluster: CLUSTER.0,
            shard,
            shards: usize::from(sizes.shards),
            frames_in_flight_max: sizes.client_frames,
            request_timeout_nanos: draw.pick(&[100_000_000, 300_000_000, SECOND]),
            give_up_nanos: PATIENCE_NANOS,
            connect_nanos: 300 * SECOND,
            // A node may be killed any number of times before a request is answered.
            leaders_lost_max: usize::MAX,
            seed: draw.bits(),
            ..CoreOptions::new(nodes)
        };
        Self {
            core: ClientCore::new(options),
            effects: Effects::default(),
            shard,
            number: number as i64,
            accounts: (0..sizes.accounts)
                .filter(|id| lives(&tables.account, &[Value::Int8(*id)]))
                .collect(),
            salts: (0..200).filter(salt).collect(),
            sequence: 0,
            batch: Batch::new(),
            writes: BTreeMap::new(),
            sessions_wanted: if session == 0 {
                usize::from(sizes.shards * sizes.workers)
            } else {
                0
            },
            tables_created: 0,
            idle_steps: 0,
            spare_session: None,
            unrepeatable: None,
            recorder: Recorder::new(tables, sizes.accounts),
            is_reader: false,
            lsn_known: 0,
            work_at: 0,
            connection: None,
            tick_at: None,
        }
    }

    /// A reader of a shard, at first at this node.
    pub fn reader(
        number: usize,
        place: (u16, u16),
        sizes: &Sizes,
        tables: &Tables,
        draw: &mut Draw,
    ) -> Self {
        let (node, shard) = place;
        let mut reader = Self::new(number, shard, 0, sizes, tables, draw);
        let nodes = (0..sizes.nodes).map(|step| address((node + step) % sizes.nodes));
        let options = CoreOptions {
            follow: Follow::Any,
            connection: number,
            cluster: CLUSTER.0,
            shard,
            shards: usize::from(sizes.shards),
            frames_in_flight_max: sizes.client_frames,
            request_timeout_nanos: draw.pick(&[100_000_000, 300_000_000, SECOND]),
            give_up_nanos: PATIENCE_NANOS,
            connect_nanos: 300 * SECOND,
            leaders_lost_max: usize::MAX,
            seed: draw.bits(),
            ..CoreOptions::new(NodeBook::new(nodes))
        };
        reader.core = ClientCore::new(options);
        reader.is_reader = true;
        reader.sessions_wanted = 0;
        reader
    }

    /// Whether it is the operator.
    pub fn is_operator(&self) -> bool {
        self.session() == 0 && !self.is_reader
    }

    /// Its shard.
    pub fn shard(&self) -> u16 {
        self.shard
    }

    /// Its session.
    pub fn session(&self) -> u64 {
        self.core.session()
    }

    /// Requests without an end.
    pub fn in_flight(&self) -> usize {
        self.core.in_flight()
    }

    /// Whether the operator has done all it has to.
    pub fn is_done(&self) -> bool {
        self.sessions_wanted == 0 && (!self.is_operator() || self.tables_created == 2)
    }

    /// The operator shall open one more session.
    pub fn session_want(&mut self) {
        assert!(self.is_operator(), "the operator opens sessions");
        self.sessions_wanted += 1;
    }

    /// When it wants a tick.
    pub fn deadline(&self, working: bool) -> Option<u64> {
        let wants = working || (self.is_operator() && !self.is_done());
        let work = wants.then_some(self.work_at);
        [self.core.deadline(), work].into_iter().flatten().min()
    }

    /// One step of its core, and new work if it is time for it.
    pub fn step(
        &mut self,
        now: u64,
        input: ClientInput<'_>,
        working: bool,
        world: (&Sizes, &Tables),
        draw: &mut Draw,
    ) -> Result<Outcome, Failure> {
        self.core.step(now, input, &mut self.effects);
        let mut outcome = Outcome::default();
        self.ended(now, &mut outcome, world.1)?;
        if let Some(reason) = self.core.ended() {
            let error = self.core.take_error();
            return Err(Failure::new(format!(
                "client {} ended: {reason:?}, {error:?}",
                self.number
            )));
        }
        let (sizes, tables) = world;
        if now >= self.work_at && self.is_operator() && (working || !self.is_done()) {
            self.work_at = now + 20_000_000;
            if self.core.in_flight() == 0 && self.is_done() {
                self.idle(now, tables);
            } else if self.core.in_flight() == 0 {
                self.operate(now, tables);
            }
        } else if now >= self.work_at && !self.is_operator() && working {
            self.work_at = now + draw.nanos(sizes.think_nanos);
            if self.is_reader {
                self.read(now, sizes, tables, draw)?;
            } else {
                self.work(now, sizes, tables, draw)?;
            }
        }
        outcome.wishes = std::mem::take(&mut self.effects.wishes);
        Ok(outcome)
    }

    fn ended(&mut self, now: u64, outcome: &mut Outcome, tables: &Tables) -> Result<(), Failure> {
        for ended in std::mem::take(&mut self.effects.ended) {
            let sequence = ended.token.sequence;
            let writes = self.writes.remove(&sequence);
            if !matches!(ended.result, EndedResult::Outcomes(_) | EndedResult::Answer(..)) {
                self.recorder.lost(sequence, tables)?;
            }
            match ended.result {
                EndedResult::None => {}
                EndedResult::RefusedLog => outcome.refused_log += 1,
                // What may not be repeated ends with its connection, which is no lost answer.
                EndedResult::GaveUp if self.unrepeatable == Some(ended.token.sequence) => {}
                EndedResult::GaveUp => outcome.gave_up += 1,
                EndedResult::Outcomes(told) => {
                    let writes = writes.ok_or(Failure::new("an answer without a frame"))?;
                    assert_eq!(told.len(), ended.transactions, "the core checked the count");
                    if self.is_reader {
                        // What it reads may be old.
                        self.recorder.forget(sequence);
                        continue;
                    }
                    self.recorder.heard(now, sequence, &told, tables)?;
                    for (at, Told { status, .. }) in told.into_iter().enumerate() {
                        let number = ended.first_number + at as u64;
                        outcome.heard.push(Heard { number, status, writes: writes[at] });
                    }
                }
                EndedResult::Answer(FrameKind::TableCreated, payload) => {
                    let created = message::decode::<TableCreated>(&payload)
                        .map_err(|error| Failure::new(error.to_string()))?;
                    if self.tables_created == 2 {
                        continue;
                    }
                    if created.table > self.tables_created + 1 {
                        let expected = [tables.account.id(), tables.journal.id()];
                        return Err(Failure::new(format!(
                            "a new table got id {}, expected one of {expected:?}",
                            created.table
                        )));
                    }
                    self.tables_created = self.tables_created.max(created.table);
                }
                EndedResult::Answer(FrameKind::SessionOpened, payload) => {
                    let opened = message::decode::<SessionOpened>(&payload)
                        .map_err(|error| Failure::new(error.to_string()))?;
                    if self.sessions_wanted > 0 {
                        self.sessions_wanted -= 1;
                        outcome.sessions.push(opened.session);
                    } else {
                        self.spare_session = Some(opened.session);
                    }
                }
                EndedResult::Answer(FrameKind::ScanPage, payload) => {
                    let page = message::decode::<ScanPage>(&payload)
                        .map_err(|error| Failure::new(error.to_string()))?;
                    self.recorder.scanned(now, sequence, &page, tables)?;
                }
                EndedResult::Answer(kind, payload) => {
                    if kind == FrameKind::Done {
                        message::decode::<Done>(&payload)
                            .map_err(|error| Failure::new(error.to_string()))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The operator's work, one request at a time.
    fn operate(&mut self, now: u64, tables: &Tables) {
        let table = match self.tables_created {
            0 => Some(&tables.account),
            1 => Some(&tables.journal),
            _ => None,
        };
        let sent = match table {
            Some(table) => {
                let create = TableCreate { definition: table.definition().clone() };
                self.core.request(now, FrameKind::TableCreate, &create, &mut self.effects)
            }
            None => {
                let open = SessionOpen { client_name: "sim".to_owned() };
                self.core.request(now, FrameKind::SessionOpen, &open, &mut self.effects)
            }
        };
        sent.expect("nothing else is in flight");
    }

    /// Tables and sessions come and go beside the workload.
    fn idle(&mut self, now: u64, tables: &Tables) {
        self.idle_steps += 1;
        let name = format!("scratch{}", self.idle_steps / 4 % 3);
        let closes = self.idle_steps % 2 == 1 && self.spare_session.is_some();
        let unrepeatable = closes || self.idle_steps % 4 == 2;
        let sent = match (self.idle_steps % 4, self.spare_session.take()) {
            (0, spare) => {
                self.spare_session = spare;
                let definition = TableDefinition { name, ..tables.journal.definition().clone() };
                let create = TableCreate { definition };
                self.core.request(now, FrameKind::TableCreate, &create, &mut self.effects)
            }
            (2, spare) => {
                self.spare_session = spare;
                let drop = TableDrop { name };
                self.core.request(now, FrameKind::TableDrop, &drop, &mut self.effects)
            }
            (_, Some(session)) => {
                let close = SessionClose { session };
                self.core.request(now, FrameKind::SessionClose, &close, &mut self.effects)
            }
            (_, None) => {
                let open = SessionOpen { client_name: "sim".to_owned() };
                self.core.request(now, FrameKind::SessionOpen, &open, &mut self.effects)
            }
        };
        let token = sent.expect("nothing else is in flight");
        self.unrepeatable = unrepeatable.then_some(token.sequence);
    }

    fn work(
        &mut self,
        now: u64,
        sizes: &Sizes,
        tables: &Tables,
        draw: &mut Draw,
    ) -> Result<(), Failure> {
        if !self.core.can_submit() || self.accounts.is_empty() || self.salts.is_empty() {
            return Ok(());
        }
        if draw.once_in(12) {
            let table = draw.pick(&[tables.account.id().0, tables.journal.id().0]);
            let rows_max = draw.pick(&[1, 3, 50, 1000]);
            let mut start = Vec::new();
            if draw.once_in(2) && table == tables.account.id().0 {
                let from = draw.pick(&self.accounts);
                tables
                    .account
                    .write_key(&[Value::Int8(from)], &mut start)
                    .map_err(|error| Failure::new(error.to_string()))?;
            }
            let scan = Scan { table, start, end: Vec::new(), rows_max };
            let sent = self.core.request(now, FrameKind::Scan, &scan, &mut self.effects);
            let token = sent.map_err(|error| Failure::new(error.to_string()))?;
            if table == tables.account.id().0 {
                self.recorder.scan_sent(now, token.sequence);
            }
            return Ok(());
        }
        let mut writes = Vec::new();
        for _ in 0..draw.range(1, sizes.frame_transactions + 1) {
            self.batch.begin();
            self.recorder.begin();
            let wrote = self.transaction(tables, draw);
            writes.push(wrote);
            self.batch.end().map_err(|error| Failure::new(error.to_string()))?;
        }
        let token = self
            .core
            .submit(now, &mut self.batch, &mut self.effects)
            .map_err(|error| Failure::new(error.to_string()))?;
        self.recorder.sent(now, token.sequence);
        self.writes.insert(token.sequence, writes);
        Ok(())
    }

    /// Asks for rows that may be old.
    fn read(
        &mut self,
        now: u64,
        sizes: &Sizes,
        tables: &Tables,
        draw: &mut Draw,
    ) -> Result<(), Failure> {
        if !self.core.can_submit() || self.accounts.is_empty() {
            return Ok(());
        }
        let freshness = match draw.below(3) {
            0 => Freshness::AtLsn(Lsn(self.lsn_known)),
            1 => Freshness::AtLsn(Lsn(self.lsn_known.saturating_sub(draw.below(50)))),
            _ => Freshness::Stale(Duration::from_millis(draw.pick(&[1, 100, 1000, 10_000]))),
        };
        self.batch.set_freshness(freshness);
        let mut writes = Vec::new();
        for _ in 0..draw.range(1, sizes.frame_transactions + 1) {
            self.batch.begin();
            self.recorder.begin();
            let (batch, recorder) = (&mut self.batch, &mut self.recorder);
            let mut build = Build { tables, batch, recorder };
            for _ in 0..draw.range(1, 4) {
                build.account_get(draw.pick(&self.accounts));
            }
            writes.push(false);
            self.batch.end().map_err(|error| Failure::new(error.to_string()))?;
        }
        let token = self
            .core
            .submit(now, &mut self.batch, &mut self.effects)
            .map_err(|error| Failure::new(error.to_string()))?;
        self.recorder.sent(now, token.sequence);
        self.writes.insert(token.sequence, writes);
        Ok(())
    }

    /// Builds a transaction; returns whether it writes.
    fn transaction(&mut self, tables: &Tables, draw: &mut Draw) -> bool {
        let (a, b) = (draw.pick(&self.accounts), draw.pick(&self.accounts));
        let (batch, recorder) = (&mut self.batch, &mut self.recorder);
        let mut build = Build { tables, batch, recorder };
        match draw.below(20) {
            0..3 => {
                build.account_insert(a, &note(draw));
            }
            3..6 => {
                build.account_get(a);
                build.account_get(b);
                return false;
            }
            6..8 => {
                build.account_note(a, &note(draw));
                if draw.once_in(2) {
                    build.account_get(a);
                }
            }
            8 => {
                build.account_get(a);
                build.account_check_version(a, draw.below(50));
                build.account_note(a, &note(draw));
            }
            9 if self.sequence > 0 => {
                let sequence = draw.below(self.sequence as u64) as i64 + 1;
                let salt = self.salts[sequence as usize % self.salts.len()];
                build.journal_delete(salt, self.number, sequence);
            }
            _ => {
                let amount = draw.range(1, 300) as i64;
                if draw.once_in(3) {
                    build.account_get(a);
                }
                if a != b {
                    build.account_add(a, -amount);
                    build.account_add(b, amount);
                }
                self.sequence += 1;
                let salt = self.salts[self.sequence as usize % self.salts.len()];
                build.journal_insert(salt, self.number, self.sequence, &note(draw));
                if draw.once_in(4) {
                    build.account_get(b);
                }
                // A row twice, and an end that fails behind the writes.
                match draw.below(12) {
                    0 => build.account_note(a, &note(draw)),
                    1 => build.account_check_version(b, 0),
                    2 => {
                        build.account_note(a, &note(draw));
                        build.account_check_version(b, 0);
                    }
                    _ => {}
                }
            }
        }
        true
    }

    /// Gives the core its first step.
    pub fn start(&mut self, now: u64) -> Vec<Wish> {
        self.core.step(now, ClientInput::Start, &mut self.effects);
        self.work_at = now;
        std::mem::take(&mut self.effects.wishes)
    }
}

/// Mostly short, sometimes longer than what is held as a patch.
fn note(draw: &mut Draw) -> Value {
    let length = match draw.below(8) {
        0 => return Value::Null,
        1 => draw.range(200, 700),
        _ => draw.below(30),
    };
    let letter = |_| char::from(b'a' + (draw.below(26) as u8));
    Value::Text((0..length).map(letter).collect())
}

struct Build<'a> {
    tables: &'a Tables,
    batch: &'a mut Batch,
    recorder: &'a mut Recorder,
}

impl Build<'_> {
    fn account_key(&self, id: i64) -> Vec<u8> {
        let mut key = Vec::new();
        self.tables.account.write_key(&[Value::Int8(id)], &mut key).expect("a key");
        key
    }

    fn account_insert(&mut self, id: i64, note: &Value) {
        self.recorder.write(id);
        let values = [Value::Int8(id), Value::Int8(BALANCE_INITIAL), note.clone()];
        let (mut key, mut row) = (Vec::new(), Vec::new());
        self.tables.account.write_row(&values, &mut key, &mut row).expect("a row");
        self.batch.insert(self.tables.account.id(), &key, &row).expect("small");
    }

    fn account_get(&mut self, id: i64) {
        self.recorder.get(id);
        let key = self.account_key(id);
        self.batch.get(self.tables.account.id(), &key).expect("small");
    }

    fn account_check_version(&mut self, id: i64, version: u64) {
        self.recorder.other();
        let key = self.account_key(id);
        self.batch.check_version(self.tables.account.id(), &key, version).expect("small");
    }

    fn account_note(&mut self, id: i64, note: &Value) {
        self.recorder.write(id);
        let key = self.account_key(id);
        let mut patch = Vec::new();
        self.tables.account.write_patch(&[("note", note.clone())], &mut patch).expect("a patch");
        self.batch.update(self.tables.account.id(), &key, &patch).expect("small");
    }

    fn account_add(&mut self, id: i64, delta: i64) {
        self.recorder.write(id);
        let key = self.account_key(id);
        let add = AddArgument::Int(AddBounded { delta, min: Some(0), max: None });
        let mut argument = Vec::new();
        let column =
            self.tables.account.write_add("balance", &add, &mut argument).expect("an argument");
        self.batch.add(self.tables.account.id(), column, &key, &argument).expect("small");
    }

    fn journal_insert(&mut self, salt: i64, worker: i64, sequence: i64, note: &Value) {
        self.recorder.other();
        let values = [Value::Int8(salt), Value::Int8(worker), Value::Int8(sequence), note.clone()];
        let (mut key, mut row) = (Vec::new(), Vec::new());
        self.tables.journal.write_row(&values, &mut key, &mut row).expect("a row");
        self.batch.insert(self.tables.journal.id(), &key, &row).expect("small");
    }

    fn journal_delete(&mut self, salt: i64, worker: i64, sequence: i64) {
        self.recorder.other();
        let mut key = Vec::new();
        let values = [Value::Int8(salt), Value::Int8(worker), Value::Int8(sequence)];
        self.tables.journal.write_key(&values, &mut key).expect("a key");
        self.batch.delete(self.tables.journal.id(), &key).expect("small");
    }
}
