//! The world of one run: virtual time, the node, its disk, the network, clients, and what goes
//! wrong.

use std::collections::{BTreeMap, BTreeSet};

use spillway_net::client::core::ClientInput;

use crate::Failure;
use crate::disk::{Disk, EIO, File};
use crate::draw::{Draw, Trace};
use crate::network::{Network, Side};
use crate::node::{Actions, Entries, Node, Scene, Seat, Token};
use crate::options::{Bug, Mode, Options, SECOND, Sizes};
use crate::oracle::{Counts, Oracle};
use crate::start::{StartError, StartScene, Started, is_torn, start};
use crate::worker::{Tables, Wish, Worker};

/// After the faults, everything must come to rest within this virtual time.
const REST_NANOS_MAX: u64 = 120 * SECOND;
/// More events than any run needs: a run that reaches this does not come to rest.
const EVENTS_MAX: u64 = 3_000_000;
const CHECKPOINT_NANOS: u64 = 20_000_000;
const TICK_NANOS: u64 = 500_000_000;
const OPERATOR_NANOS: u64 = 100_000_000;

#[derive(Clone, Debug)]
enum Event {
    /// A write reaches the medium; with an error in part.
    Landed { id: u64, result: Landing },
    /// A connection is made.
    Connected(u64),
    /// Bytes arrive.
    Arrived(u64, Side, Vec<u8>),
    /// One side hears that a connection is gone.
    Gone(u64, Side),
    /// A seat takes a turn.
    Turn(u64, Seat),
    /// The node's slow clock.
    Tick(u64),
    /// Time for a checkpoint.
    Checkpoint(u64),
    /// A worker's deadline.
    Worker(usize),
    /// The network loses a connection.
    Reset,
    /// The power goes.
    PowerLoss,
    /// The operator restarts a node of this start whose log failed.
    Operator(u64),
    /// The power is back.
    Start,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landing {
    Whole,
    /// The node has been told before; planted.
    WholeSilent,
    Error,
    Short,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Hash over all events.
    pub trace: Trace,
    /// What happened.
    pub counts: Counts,
    /// Virtual time that passed.
    pub nanos: u64,
}

/// See the module.
pub struct World {
    options: Options,
    sizes: Sizes,
    tables: Tables,
    draw: Draw,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    events_count: u64,
    disk: Disk,
    network: Network,
    node: Option<Node>,
    /// Starts so far: events of an earlier one are void.
    starts: u64,
    turns: BTreeSet<Seat>,
    log_tick_at: Option<u64>,
    operator_called: bool,
    tokens: BTreeMap<u64, (Token, Vec<u8>)>,
    workers: Vec<Worker>,
    sessions: usize,
    oracle: Oracle,
    entries: Entries,
    trace: Trace,
}

impl World {
    /// Before its first event.
    pub fn new(options: Options) -> Self {
        let mut draw = Draw::new(options.seed);
        let sizes = Sizes::draw(&mut draw);
        let tables = Tables::new(&sizes);
        let disk = Disk::format(sizes.geometry);
        let oracle = Oracle::new(tables.clone(), sizes.shards);
        let operator = Worker::new(0, 0, 0, &sizes, &tables, &mut draw);
        let mut world = Self {
            options,
            sizes,
            tables,
            draw,
            now: 1,
            events: BTreeMap::new(),
            events_count: 0,
            disk,
            network: Network::default(),
            node: None,
            starts: 0,
            turns: BTreeSet::new(),
            log_tick_at: None,
            operator_called: false,
            tokens: BTreeMap::new(),
            workers: vec![operator],
            sessions: 0,
            oracle,
            entries: Entries::new(),
            trace: Trace::default(),
        };
        world.after(0, Event::Start);
        let (crash, reset) = (world.sizes.crash_nanos, world.sizes.reset_nanos);
        world.after_about(crash, Event::PowerLoss);
        world.after_about(reset, Event::Reset);
        world
    }

    fn after(&mut self, nanos: u64, event: Event) {
        self.events_count += 1;
        self.events.insert((self.now + nanos, self.events_count), event);
    }

    fn after_about(&mut self, typical: u64, event: Event) {
        let nanos = self.draw.nanos(typical);
        self.after(nanos, event);
    }

    fn at(&mut self, at: u64, event: Event) {
        self.after(at.saturating_sub(self.now), event);
    }

    fn has_faults(&self) -> bool {
        self.now < self.options.faults_nanos
    }

    /// Runs to the end.
    pub fn run(mut self) -> Result<Report, Failure> {
        let wishes = self.workers[0].start(self.now);
        self.wishes(0, wishes);
        self.worker_schedule(0);
        let refused = self.run_events()?;
        if !refused {
            // Once more without warning: what is acknowledged is durable at any moment.
            self.power_loss();
            self.now += 1;
            self.start()?;
        }
        self.oracle.counts.events = self.events_count;
        Ok(Report { trace: self.trace, counts: self.oracle.counts, nanos: self.now })
    }

    /// Returns whether a start was refused, which ends a run beyond the promised faults.
    fn run_events(&mut self) -> Result<bool, Failure> {
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = self.now.max(at);
            if !self.has_faults() && self.is_at_rest() {
                return Ok(false);
            }
            let late = self.now > self.options.faults_nanos + REST_NANOS_MAX;
            if late || self.events_count > EVENTS_MAX {
                return Err(Failure::new(self.unrest()));
            }
            if self.event(event)? {
                return Ok(true);
            }
        }
        Err(Failure::new("nothing happens any more"))
    }

    fn is_at_rest(&self) -> bool {
        // With a full log the operator may never get what it wants; it is told so.
        let full = self.oracle.counts.log_full + self.oracle.counts.refused_log > 0;
        let idle = |worker: &Worker| worker.in_flight() == 0 && (full || worker.is_done());
        self.node.as_ref().is_some_and(|node| !node.failed) && self.workers.iter().all(idle)
    }

    fn unrest(&self) -> String {
        let busy = |(at, worker): (usize, &Worker)| {
            let waits = worker.in_flight() > 0 || !worker.is_done();
            waits.then(|| format!("client {at}: {} unanswered", worker.in_flight()))
        };
        let busy: Vec<_> = self.workers.iter().enumerate().filter_map(busy).collect();
        format!(
            "no rest {} s after the last fault ({} events; node up: {}): {}",
            self.now.saturating_sub(self.options.faults_nanos) / SECOND,
            self.events_count,
            self.node.is_some(),
            busy.join(", ")
        )
    }

    fn event(&mut self, event: Event) -> Result<bool, Failure> {
        match event {
            Event::Landed { id, result } => self.landed(id, result)?,
            Event::Connected(connection) => self.connected(connection)?,
            Event::Arrived(connection, side, bytes) => self.arrived(connection, side, &bytes)?,
            Event::Gone(connection, side) => self.gone(connection, side)?,
            Event::Turn(start, seat) if start == self.starts => self.turn(seat)?,
            Event::Tick(start) if start == self.starts && self.node.is_some() => {
                self.with_node(|node, scene| node.tick(scene))?;
                self.after(TICK_NANOS, Event::Tick(start));
            }
            Event::Checkpoint(start) if start == self.starts && self.has_faults() => {
                self.with_node(|node, scene| {
                    node.checkpoint(scene);
                    Ok(())
                })?;
                self.after(CHECKPOINT_NANOS, Event::Checkpoint(start));
            }
            Event::Turn(..) | Event::Tick(_) | Event::Checkpoint(_) => {}
            Event::Worker(at) => {
                if self.workers[at].tick_at.is_some_and(|tick| tick <= self.now) {
                    self.workers[at].tick_at = None;
                    self.worker(at, ClientInput::Tick)?;
                }
            }
            Event::Reset => self.reset(),
            Event::PowerLoss if self.has_faults() => {
                if self.node.is_some() {
                    self.power_loss();
                    self.after_about(20_000_000, Event::Start);
                }
                self.after_about(self.sizes.crash_nanos, Event::PowerLoss);
            }
            Event::Operator(start) if start == self.starts && self.node.is_some() => {
                self.power_loss();
                self.after_about(20_000_000, Event::Start);
            }
            Event::PowerLoss | Event::Operator(_) => {}
            Event::Start => {
                if self.options.mode == Mode::Beyond && self.starts > 3 {
                    self.disk.damage(&mut self.draw);
                    self.trace.note("damage", self.now, self.starts, 0);
                }
                return self.start();
            }
        }
        Ok(false)
    }

    fn power_loss(&mut self) {
        self.trace.note("power", self.now, self.starts, 0);
        self.disk.crash(&mut self.draw);
        self.node = None;
        self.tokens.clear();
        let numbers: Vec<u64> = self.network.connections.keys().copied().collect();
        for number in numbers {
            if let Some(connection) = self.network.connections.get_mut(&number) {
                connection.node_open = false;
                connection.broken = true;
            }
            self.after_about(self.sizes.network_nanos, Event::Gone(number, Side::Client));
        }
    }

    /// Returns whether the node refused, where it may.
    fn start(&mut self) -> Result<bool, Failure> {
        let scene = &mut StartScene {
            disk: &self.disk,
            sizes: &self.sizes,
            tables: &self.tables,
            entries: &mut self.entries,
            bug: self.options.bug,
            draw: &mut self.draw,
            now: self.now,
        };
        let started = match start(scene) {
            Ok(started) => started,
            Err(StartError::Refused(_)) if self.options.mode == Mode::Beyond => {
                self.oracle.counts.refused_starts += 1;
                return Ok(true);
            }
            Err(StartError::Refused(why)) => {
                return Err(Failure::new(format!("the start was refused: {why}")));
            }
            Err(StartError::MemoryFull) => {
                self.oracle.counts.budget_raised += 1;
                self.sizes.chunks *= 2;
                return self.start();
            }
            Err(StartError::Failure(failure)) => return Err(failure),
        };
        self.oracle.counts.torn += u64::from(is_torn(&started.recovered));
        let found = started.recovered.last_lsn.0;
        self.trace.note("start", self.now, found, started.recovered.bytes);
        self.starts += 1;
        self.started(started)?;
        Ok(false)
    }

    fn started(&mut self, mut started: Started) -> Result<(), Failure> {
        let model = std::mem::take(&mut started.model);
        self.oracle.restarted(model, std::mem::take(&mut started.lsn_of))?;
        let rounds = spillway_updateserver::log::superblock_update(&started.superblock);
        let torn = self.has_faults() && self.draw.once_in(8);
        let torn_round = if torn { self.draw.below(2) as usize } else { 2 };
        for (at, round) in rounds.iter().enumerate() {
            if self.options.bug == Some(Bug::SuperblockNotWritten) {
                break;
            }
            if at == torn_round {
                self.disk.superblock_round(round, Some(&mut self.draw));
                self.after_about(20_000_000, Event::Start);
                return Ok(());
            }
            self.disk.superblock_round(round, None);
        }
        self.node = Some(Node::new(started, &self.sizes));
        self.turns.clear();
        self.log_tick_at = None;
        self.operator_called = false;
        let seats = (0..self.sizes.shards).map(Seat::Shard).chain([Seat::Log]);
        self.turns_schedule(seats.collect());
        self.after(TICK_NANOS, Event::Tick(self.starts));
        if self.sizes.checkpoints {
            self.after(CHECKPOINT_NANOS, Event::Checkpoint(self.starts));
        }
        Ok(())
    }

    fn with_node(
        &mut self,
        step: impl FnOnce(&mut Node, &mut Scene<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Some(node) = &mut self.node else { return Ok(()) };
        let mut actions = Actions::default();
        let mut scene = Scene {
            now: self.now,
            sizes: &self.sizes,
            bug: self.options.bug,
            oracle: &mut self.oracle,
            draw: &mut self.draw,
            entries: &mut self.entries,
            actions: &mut actions,
        };
        step(node, &mut scene)?;
        let (deadline, failed) = (node.log_deadline, node.failed);
        if let Some(deadline) = deadline
            && self.log_tick_at.is_none_or(|at| at > deadline || at <= self.now)
        {
            self.log_tick_at = Some(deadline);
            self.at(deadline.max(self.now + 1), Event::Turn(self.starts, Seat::Log));
        }
        if failed && !self.operator_called {
            self.operator_called = true;
            self.after_about(OPERATOR_NANOS, Event::Operator(self.starts));
        }
        self.actions(actions);
        Ok(())
    }

    fn actions(&mut self, actions: Actions) {
        for (connection, bytes) in actions.frames {
            self.trace.bytes(&bytes);
            let open = self.network.connections.get(&connection).is_some_and(|c| !c.node_ending);
            if open {
                self.send(connection, Side::Client, &bytes);
            }
        }
        for connection in actions.closes {
            let Some(state) = self.network.connections.get_mut(&connection) else { continue };
            state.node_ending = true;
            for side in [Side::Client, Side::Node] {
                let at = self.now + self.draw.nanos(self.sizes.network_nanos);
                let at = self.network.arrival(connection, side, at);
                self.at(at, Event::Gone(connection, side));
            }
        }
        for (file, offset, bytes, token) in actions.writes {
            self.write(file, offset, bytes, token);
        }
        self.turns_schedule(actions.turns);
    }

    fn turns_schedule(&mut self, seats: BTreeSet<Seat>) {
        for seat in seats {
            if self.turns.insert(seat) {
                // Now and then a thread gets no CPU for a while.
                let typical = if self.draw.once_in(100) { 1_000_000 } else { 5_000 };
                self.after_about(typical, Event::Turn(self.starts, seat));
            }
        }
    }

    fn write(&mut self, file: File, offset: u64, bytes: Vec<u8>, token: Token) {
        self.trace.note("write", self.now, offset, bytes.len() as u64);
        let id = self.disk.submit(file, offset, bytes.clone());
        let bug = self.options.bug;
        let error_in = match bug {
            Some(Bug::WriteErrorIgnored) => 100,
            _ => self.sizes.write_error_in,
        };
        let segment = matches!(file, File::Segment(_));
        let mut result = Landing::Whole;
        if segment && error_in > 0 && self.has_faults() && self.draw.once_in(error_in) {
            self.oracle.counts.write_errors += 1;
            result = if self.draw.once_in(3) { Landing::Short } else { Landing::Error };
        }
        self.tokens.insert(id, (token, bytes));
        let frame = matches!(self.tokens[&id].0, Token::Frame(..));
        if bug == Some(Bug::WriteConfirmedEarly) && frame {
            self.after(1, Event::Landed { id, result: Landing::WholeSilent });
        }
        self.after_about(self.sizes.disk_nanos, Event::Landed { id, result });
    }

    fn landed(&mut self, id: u64, landing: Landing) -> Result<(), Failure> {
        let landed = match landing {
            Landing::Whole => self.disk.complete(id).is_some(),
            Landing::WholeSilent => true,
            Landing::Error | Landing::Short => self.disk.fail(id, &mut self.draw).is_some(),
        };
        let Some((token, bytes)) = self.tokens.remove(&id).filter(|_| landed) else {
            return Ok(());
        };
        self.trace.note("landed", self.now, id, landing as u64);
        let length = bytes.len() as u32;
        let result = match landing {
            Landing::Error if self.options.bug != Some(Bug::WriteErrorIgnored) => Err(EIO),
            Landing::Short if self.options.bug != Some(Bug::WriteErrorIgnored) => Ok(length / 2),
            _ => Ok(length),
        };
        self.with_node(|node, scene| node.written(&token, &bytes, result, scene))
    }

    fn turn(&mut self, seat: Seat) -> Result<(), Failure> {
        self.turns.remove(&seat);
        self.trace.note("turn", self.now, seat_number(seat), 0);
        self.with_node(|node, scene| match seat {
            Seat::Shard(shard) => node.shard_turn(shard, scene),
            Seat::Log => node.log_turn(scene),
        })
    }

    /// Puts bytes on a connection, in pieces.
    fn send(&mut self, number: u64, to: Side, mut bytes: &[u8]) {
        let alive = self.network.connections.get(&number).is_some_and(|c| !c.broken);
        while alive && !bytes.is_empty() {
            let cut = match self.draw.below(4) {
                0 => self.draw.below(bytes.len() as u64) as usize + 1,
                _ => bytes.len(),
            };
            let (piece, rest) = bytes.split_at(cut);
            bytes = rest;
            let at = self.now + self.draw.nanos(self.sizes.network_nanos);
            let at = self.network.arrival(number, to, at);
            self.at(at, Event::Arrived(number, to, piece.to_vec()));
        }
    }

    fn connected(&mut self, number: u64) -> Result<(), Failure> {
        let Some(connection) = self.network.connections.get_mut(&number) else { return Ok(()) };
        if !connection.client_open || connection.broken {
            return Ok(());
        }
        let (worker, shard) = (connection.worker, connection.shard);
        if self.node.is_none() {
            return self.gone(number, Side::Client);
        }
        connection.node_open = true;
        self.with_node(|node, scene| {
            node.accepted(shard, number, scene);
            Ok(())
        })?;
        self.worker(worker, ClientInput::Connected)
    }

    fn arrived(&mut self, number: u64, side: Side, bytes: &[u8]) -> Result<(), Failure> {
        let Some(connection) = self.network.connections.get(&number) else { return Ok(()) };
        let (worker, shard) = (connection.worker, connection.shard);
        self.trace.note("arrived", self.now, number, bytes.len() as u64);
        match side {
            Side::Client if connection.client_open => {
                self.worker(worker, ClientInput::Received(bytes))
            }
            Side::Node if connection.node_open && !connection.node_ending => {
                self.with_node(|node, scene| node.received(shard, number, bytes, scene))
            }
            _ => Ok(()),
        }
    }

    fn gone(&mut self, number: u64, side: Side) -> Result<(), Failure> {
        let Some(connection) = self.network.connections.get_mut(&number) else { return Ok(()) };
        let (worker, shard) = (connection.worker, connection.shard);
        connection.broken = true;
        match side {
            Side::Client if connection.client_open => {
                connection.client_open = false;
                self.workers[worker].connection = None;
                self.worker(worker, ClientInput::Disconnected("reset by peer"))?;
            }
            Side::Node if connection.node_open => {
                connection.node_open = false;
                self.with_node(|node, scene| {
                    node.closed(shard, number, scene);
                    Ok(())
                })?;
            }
            _ => {}
        }
        self.network.sweep(number);
        Ok(())
    }

    fn reset(&mut self) {
        if !self.has_faults() {
            return;
        }
        let alive: Vec<u64> = self
            .network
            .connections
            .iter()
            .filter(|(_, connection)| !connection.broken)
            .map(|(number, _)| *number)
            .collect();
        if !alive.is_empty() {
            let number = self.draw.pick(&alive);
            if let Some(connection) = self.network.connections.get_mut(&number) {
                connection.broken = true;
            }
            self.oracle.counts.resets += 1;
            self.trace.note("reset", self.now, number, 0);
            for side in [Side::Client, Side::Node] {
                self.after_about(self.sizes.network_nanos, Event::Gone(number, side));
            }
        }
        self.after_about(self.sizes.reset_nanos, Event::Reset);
    }

    fn worker(&mut self, at: usize, input: ClientInput<'_>) -> Result<(), Failure> {
        let working = self.has_faults();
        let world = (&self.sizes, &self.tables);
        let worker = &mut self.workers[at];
        let outcome = worker.step(self.now, input, working, world, &mut self.draw)?;
        let session = worker.session();
        self.oracle.counts.gave_up += outcome.gave_up;
        self.oracle.counts.refused_log += outcome.refused_log;
        // A log or a budget that stays full is answered with "later" until the client gives up;
        // the operator's requests are never put off.
        let counts = &self.oracle.counts;
        let full = at != 0 && counts.log_full + counts.memory_full > 0;
        if outcome.gave_up > 0 && !full {
            return Err(Failure::new(format!("client {at} got no answer in its patience")));
        }
        for heard in outcome.heard {
            if !heard.status.is_transient() || heard.status.is_committed() {
                self.trace.note("heard", self.now, heard.number, heard.status as u64);
            }
            let committed = heard.status.is_committed();
            self.oracle.client_heard(session, heard.number, committed, heard.writes)?;
        }
        self.wishes(at, outcome.wishes);
        self.worker_schedule(at);
        for session in outcome.sessions {
            self.worker_new(session);
        }
        Ok(())
    }

    fn worker_new(&mut self, session: u64) {
        let at = self.workers.len();
        let shard = (self.sessions % usize::from(self.sizes.shards)) as u16;
        self.sessions += 1;
        let mut worker = Worker::new(at, shard, session, &self.sizes, &self.tables, &mut self.draw);
        let wishes = worker.start(self.now);
        self.workers.push(worker);
        self.wishes(at, wishes);
        self.worker_schedule(at);
    }

    fn worker_schedule(&mut self, at: usize) {
        let working = self.has_faults();
        let Some(deadline) = self.workers[at].deadline(working) else { return };
        let deadline = deadline.max(self.now + 1);
        if self.workers[at].tick_at.is_none_or(|tick| tick > deadline) {
            self.workers[at].tick_at = Some(deadline);
            self.at(deadline, Event::Worker(at));
        }
    }

    fn wishes(&mut self, at: usize, wishes: Vec<Wish>) {
        for wish in wishes {
            match wish {
                Wish::Connect(shard) => {
                    let number = self.network.connect(at, shard);
                    self.workers[at].connection = Some(number);
                    self.after_about(self.sizes.network_nanos, Event::Connected(number));
                }
                Wish::Send(bytes) => {
                    if let Some(number) = self.workers[at].connection {
                        self.send(number, Side::Node, &bytes);
                    }
                }
                Wish::Close => {
                    let Some(number) = self.workers[at].connection.take() else { continue };
                    if let Some(connection) = self.network.connections.get_mut(&number) {
                        connection.client_open = false;
                    }
                    let at = self.now + self.draw.nanos(self.sizes.network_nanos);
                    let at = self.network.arrival(number, Side::Node, at);
                    self.at(at, Event::Gone(number, Side::Node));
                }
            }
        }
    }
}

fn seat_number(seat: Seat) -> u64 {
    match seat {
        Seat::Shard(shard) => u64::from(shard),
        Seat::Log => u64::MAX,
    }
}
