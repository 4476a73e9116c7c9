//! The world of one run: virtual time, the nodes, their disks, the networks, clients, and what goes
//! wrong.

mod faults;
mod inject;
mod operator;
mod peers;
mod repair;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use spillway_net::client::core::ClientInput;
use spillway_net::ids::NodeId;
use spillway_runtime::faults as points;
use spillway_updateserver::log::ReadRequest;
use spillway_updateserver::shard::ReplayError;

use crate::Failure;
use crate::calendar::Calendar;
use crate::checker::History;
use crate::clock::Clock;
use crate::disk::{Disk, File};
use crate::draw::{Draw, Trace};
use crate::links::{Links, Pair};
use crate::network::{Connection, Network, Side};
use crate::node::{Actions, Door, Node, PeerMessage, Scene, Seat, Token};
use crate::options::{Bug, Options, SECOND, Sizes};
use crate::oracle::{Counts, Oracle};
use crate::plan::{Fault, FaultKind, is_left_out, plan};
use crate::recorder::{self, Recorder};
use crate::start::{StartError, StartScene, Started, is_torn, start};
use crate::worker::{PATIENCE_NANOS, Tables, Wish, Worker};
use faults::is_victim;
use inject::Inject;
pub use inject::{
    BLOCK_FAULTS, BlockFault, Exposure, Injection, InjectionReport, MOMENTS, Moment, VICTIMS,
    Victim, is_nonsense,
};
use operator::Operator;
use repair::{Begun, Repairing};

/// After the faults, everything must come to rest within this virtual time.
const REST_NANOS_MAX: u64 = 120 * SECOND;
/// More events than any run needs: a run that reaches this does not come to rest.
const EVENTS_MAX: u64 = 6_000_000;
const TICK_NANOS: u64 = 500_000_000;
const OPERATOR_NANOS: u64 = 100_000_000;
/// How far the clock of a node that joins is ahead at most, microseconds.
pub(crate) const CLOCKS_APART_MICROS: u64 = 100_000;
/// How soon a message that found no memory is looked at again.
const MEMORY_RETRY_NANOS: u64 = 1_000_000;

#[derive(Clone, Debug)]
enum Event {
    /// A write reaches the medium of a node; with an error in part.
    Landed { node: u16, id: u64, result: Landing },
    /// A start of a node reads an entry back.
    ReadBack { node: u16, start: u64, lsn: u64, request: ReadRequest },
    /// A connection is made.
    Connected(u64),
    /// Bytes arrive.
    Arrived(u64, Side, Vec<u8>),
    /// One side hears that a connection is gone.
    Gone(u64, Side),
    /// A seat of a start of a node takes a turn.
    Turn(u16, u64, Seat),
    /// The slow clock of a start of a node.
    Tick(u16, u64),
    /// A worker's deadline.
    Worker(usize),
    /// A fault of the plan strikes.
    Fault(Fault),
    /// What went wrong is over.
    FaultsEnd,
    /// A start of a node goes on after it stood still.
    Resume(u16, u64),
    /// A direction of a link, from this side, is clogged until then.
    Clog(Pair, usize, u64),
    /// It is free again.
    Unclog(Pair, usize),
    /// A link of this generation ends.
    LinkEnd(Pair, u64),
    /// What goes to a side of a connection gets through again.
    ConnectionUnclog(u64, Side),
    /// The operator restarts a node of this start whose log failed.
    Operator(u16, u64),
    /// The power of a node is back.
    Start(u16),
    /// The operator looks after the members.
    Operate,
    /// Nobody keeps a node from leading any more.
    Undrain(u16),
    /// Two nodes try to connect.
    LinkTry(Pair),
    /// A node hears that a link stands, in this generation, or that it is gone.
    LinkTold { pair: Pair, side: usize, up: Option<u64> },
    /// A message between nodes arrives.
    PeerArrived { from: u16, to: u16, message: PeerMessage },
    /// A body has landed that a start of a node repairs its log with.
    RepairLanded { node: u16, start: u64, id: u64 },
    /// A start of a node that repairs its log asks its peers again.
    RepairTick(u16, u64),
    /// A step of the one fault that was ordered.
    Inject(Inject),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landing {
    Whole,
    /// The node has been told before; planted.
    WholeSilent,
    /// The error that the node hears of.
    Error(i32),
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
    /// What the points in the product have counted.
    pub faults: points::Counts,
}

/// A place for a node: what outlives it, and what the world notes of it.
struct Machine {
    disk: Disk,
    /// The nodes that it is configured with, counted from 0.
    configured: Vec<u16>,
    /// Something happened to its disk that it may refuse to go on with.
    is_suspect: bool,
    /// For good: it never starts again.
    is_gone: bool,
    node: Option<Node>,
    /// It is down, and asks its peers for what its disk has lost.
    repair: Option<Repairing>,
    /// Starts so far: events of an earlier one are void.
    starts: u64,
    turns: BTreeSet<Seat>,
    log_tick_at: Option<u64>,
    /// When the log looks again for memory that was short.
    memory_retry_at: u64,
    operator_called: bool,
    tokens: BTreeMap<u64, (Token, Vec<u8>)>,
    /// How the next writes end.
    landings_next: VecDeque<Landing>,
    /// In which round of its superblock the next start loses power, and how that tears.
    start_torn: Option<(usize, Draw)>,
    /// What has happened to it while it stands still; none: it runs.
    held: Option<Vec<Event>>,
    clock: Clock,
    /// Nothing of its disk completes until then.
    stalled_until: u64,
    /// Its disk is slow until then.
    disk_slow_until: u64,
    /// Who of it gets little CPU, and until when.
    slow_seats: BTreeMap<Seat, u64>,
    /// Chance of its disk and of its threads.
    draw: Draw,
}

impl Machine {
    fn new(disk: Disk, clock: Clock, configured: Vec<u16>, draw: Draw) -> Self {
        Self {
            disk,
            configured,
            is_suspect: false,
            is_gone: false,
            node: None,
            repair: None,
            starts: 0,
            turns: BTreeSet::new(),
            log_tick_at: None,
            memory_retry_at: 0,
            operator_called: false,
            tokens: BTreeMap::new(),
            landings_next: VecDeque::new(),
            start_torn: None,
            held: None,
            clock,
            stalled_until: 0,
            disk_slow_until: 0,
            slow_seats: BTreeMap::new(),
            draw,
        }
    }
}

/// See the module.
pub struct World {
    options: Options,
    sizes: Sizes,
    tables: Tables,
    draw: Draw,
    now: u64,
    events: Calendar<Event>,
    machines: Vec<Machine>,
    /// Which machine is each of the members now.
    slots: Vec<u16>,
    operator: Operator,
    links: Links,
    /// What waits in clogged directions of links, by the side that sent it.
    link_clogs: BTreeMap<(Pair, usize), Vec<Event>>,
    network: Network,
    /// What waits in connections that let nothing through, by the side that it goes to.
    connection_clogs: BTreeMap<(u64, Side), Vec<Event>>,
    workers: Vec<Worker>,
    /// Workers that went away.
    workers_gone: BTreeSet<usize>,
    /// Chance of each worker and of its connections.
    workers_draws: Vec<Draw>,
    sessions: usize,
    readers: u16,
    oracle: Oracle,
    trace: Trace,
    exposure: Exposure,
}

impl World {
    /// Before its first event.
    pub fn new(options: Options) -> Self {
        let (chance, nodes) = (options.chance(), options.nodes);
        let sizes = Sizes::draw(&mut Draw::new(options.seed), &options);
        let draw = Draw::stream(chance, "world");
        let tables = Tables::new(&sizes);
        let machine = |node: u16| {
            let mut disk = Disk::format(sizes.geometry, NodeId(node + 1), nodes);
            disk.remembers = is_victim(&options, node.into());
            let clock = Clock::new(sizes.skews_micros[usize::from(node)]);
            let all = (0..nodes).collect();
            Machine::new(disk, clock, all, Draw::stream(chance, &format!("machine {node}")))
        };
        let machines = (0..nodes).map(machine).collect();
        let mut oracle = Oracle::new(tables.clone(), sizes.shards, nodes, sizes.geometry);
        oracle.blind = options.blind;
        let faults = plan(&options);
        let mut world = Self {
            options,
            sizes,
            tables,
            draw,
            now: 1,
            events: Calendar::default(),
            machines,
            slots: (0..nodes).collect(),
            operator: Operator::new(chance),
            links: Links::new(chance, nodes),
            link_clogs: BTreeMap::new(),
            network: Network::default(),
            connection_clogs: BTreeMap::new(),
            workers: Vec::new(),
            workers_gone: BTreeSet::new(),
            workers_draws: Vec::new(),
            sessions: 0,
            readers: 0,
            oracle,
            trace: Trace::default(),
            exposure: Exposure::default(),
        };
        for node in 0..nodes {
            world.after(0, Event::Start(node));
        }
        let clocks = [FaultKind::ClockJump, FaultKind::ClockDrift];
        if !faults.iter().any(|fault| clocks.contains(&fault.kind)) {
            let apart = world.sizes.skews_micros.iter().max().copied().unwrap_or(0);
            world.oracle.clocks_apart_nanos = Some((apart + CLOCKS_APART_MICROS) * 1000);
        }
        for fault in faults {
            if !is_left_out(&fault, &world.options) && fault.at < world.options.faults_end() {
                world.at(fault.at, Event::Fault(fault));
            }
        }
        world.at(world.options.faults_end(), Event::FaultsEnd);
        world.links_begin();
        world
    }

    fn after(&mut self, nanos: u64, event: Event) {
        self.events.push(self.now + nanos, event);
    }

    /// After a time that a machine's own chance decides.
    fn after_about(&mut self, node: u16, typical: u64, event: Event) {
        let nanos = self.machines[usize::from(node)].draw.nanos(typical);
        self.after(nanos, event);
    }

    /// A latency of a client's connection.
    fn network_nanos(&mut self, connection: u64) -> u64 {
        let worker = self.network.connections.get(&connection).map_or(0, |c| c.worker);
        self.workers_draws[worker].nanos(self.sizes.network_nanos)
    }

    fn at(&mut self, at: u64, event: Event) {
        self.after(at.saturating_sub(self.now), event);
    }

    fn has_faults(&self) -> bool {
        self.now < self.options.faults_end()
    }

    /// Runs to the end.
    pub fn run(mut self) -> Result<Report, Failure> {
        self.run_to_end()
    }

    /// Runs to the end, with the faults that were ordered.
    pub fn run_injected(mut self) -> Result<(Report, InjectionReport), Failure> {
        let report = self.run_to_end()?;
        Ok((report, self.injection_report()))
    }

    /// Runs to the end or to a failure, and returns what the clients saw, too.
    pub fn run_recorded(mut self) -> Result<(Result<Report, Failure>, History), Failure> {
        let result = self.run_to_end();
        Ok((result, self.seen()?))
    }

    fn seen(&self) -> Result<History, Failure> {
        let recorders = self.workers.iter().map(|worker| &worker.recorder);
        Recorder::history(recorders, &self.tables)
    }

    fn run_to_end(&mut self) -> Result<Report, Failure> {
        self.worker_add(0, 0);
        let refused = self.run_events()?;
        if !refused {
            self.finish()?;
        }
        self.oracle.counts.seen = recorder::judge(&self.seen()?)?;
        self.oracle.counts.events = self.events.count();
        let (trace, counts, nanos) = (self.trace, self.oracle.counts, self.now);
        Ok(Report { trace, counts, nanos, faults: points::counts() })
    }

    /// At rest: all nodes have the same, and that is what is in the log.
    fn finish(&mut self) -> Result<(), Failure> {
        self.oracle.verdict(self.oracle.settled())?;
        let nodes = self.members();
        for node in &nodes {
            let machine = &self.machines[usize::from(*node)];
            let node = machine.node.as_ref().ok_or(Failure::new("a node is down at rest"))?;
            self.oracle.verdict(node.check_complete(&self.oracle))?;
        }
        // Once more without warning: what is acknowledged is durable at any moment.
        let mut draw = self.draw.fork();
        nodes.iter().for_each(|node| self.power_loss(*node, &mut draw));
        self.now += 1;
        let last = self.oracle.history.last();
        let checksum = self.oracle.history.at(last).map(|entry| entry.checksum);
        let mut have = 0;
        for node in nodes {
            let Begun::Started(started) = self.started_log(node)? else { continue };
            let log = started.log;
            let found = log.recovered.entries.get(last).map(|meta| meta.checksum);
            have += u16::from(found == checksum);
        }
        let refused = self.sizes.nodes == 1 && self.machines[0].is_gone;
        if last.0 > 0 && have <= self.sizes.nodes / 2 && !refused {
            return Err(Failure::new(format!("LSN {last} is left on {have} node(s)")));
        }
        Ok(())
    }

    /// Returns whether a start was refused, which ends a run beyond the promised faults.
    fn run_events(&mut self) -> Result<bool, Failure> {
        while let Some((at, event)) = self.events.pop() {
            self.now = self.now.max(at);
            self.oracle.now = self.now;
            if !self.has_faults() {
                points::quiet();
                if self.is_at_rest() {
                    return Ok(false);
                }
            }
            let late = self.now > self.options.faults_end() + REST_NANOS_MAX;
            if late || self.events.count() > EVENTS_MAX {
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
        let last = self.oracle.history.last().0;
        let complete = |node: &Node| !node.failed() && node.applied() == last && node.is_through();
        let members = self.members();
        let node = |node: &u16| self.machines[usize::from(*node)].node.as_ref();
        let nodes = || members.iter().map(node);
        let present = |(at, _): &(usize, _)| !self.workers_gone.contains(at);
        self.workers.iter().enumerate().filter(present).all(|(_, worker)| idle(worker))
            && (full || self.operator.is_done())
            && nodes().all(|node| node.is_some_and(complete))
            // A member that counts may have applied what only others have on their disks.
            && members.iter().all(|node| self.oracle.is_durable(*node))
            && nodes().flatten().filter(|node| node.leads()).count() == 1
    }

    fn unrest(&self) -> String {
        let busy = |(at, worker): (usize, &Worker)| {
            let waits = worker.in_flight() > 0 || !worker.is_done();
            let waits = waits && !self.workers_gone.contains(&at);
            waits.then(|| format!("client {at}: {} unanswered", worker.in_flight()))
        };
        let busy: Vec<_> = self.workers.iter().enumerate().filter_map(busy).collect();
        let node = |machine: &Machine| match &machine.node {
            None if machine.is_gone => "gone".to_owned(),
            None if machine.repair.is_some() => "repairs its log".to_owned(),
            None => "down".to_owned(),
            Some(node) if node.failed() => "log failed".to_owned(),
            Some(node) => {
                let clock = &machine.clock;
                node.report(clock.monotonic(self.now), clock.wall(self.now))
            }
        };
        let nodes: Vec<_> = self.machines.iter().map(node).collect();
        format!(
            "no rest {} s after the last fault ({} events; committed to LSN {}; nodes: {}; {:?}): \
             {}",
            self.now.saturating_sub(self.options.faults_end()) / SECOND,
            self.events.count(),
            self.oracle.history.last(),
            nodes.join("; "),
            self.operator,
            busy.join(", ")
        )
    }

    fn event(&mut self, event: Event) -> Result<bool, Failure> {
        let Some(event) = self.held_up(event) else { return Ok(false) };
        match event {
            Event::Landed { node, id, result } => self.landed(node, id, result)?,
            Event::ReadBack { node, start, lsn, request } => {
                self.read_back(node, start, lsn, &request)?;
            }
            Event::Connected(connection) => self.connected(connection)?,
            Event::Arrived(connection, side, bytes) => self.arrived(connection, side, &bytes)?,
            Event::Gone(connection, side) => self.gone(connection, side)?,
            Event::Turn(node, start, seat) if self.is_now(node, start) => self.turn(node, seat)?,
            Event::Tick(node, start) if self.is_now(node, start) => {
                self.with_node(node, |node, scene| node.tick(scene))?;
                self.after(TICK_NANOS, Event::Tick(node, start));
            }
            Event::Worker(at) => {
                if self.workers[at].tick_at.is_some_and(|tick| tick <= self.now) {
                    self.workers[at].tick_at = None;
                    self.worker(at, ClientInput::Tick)?;
                }
            }
            Event::Fault(fault) => self.strike(&fault)?,
            Event::FaultsEnd => return self.faults_end(),
            Event::Resume(node, start) if self.is_now(node, start) => return self.resume(node),
            Event::Clog(pair, side, until) => self.clog(pair, side, until),
            Event::Unclog(pair, side) => return self.unclog(pair, side),
            Event::LinkEnd(pair, generation) => {
                if self.links.get_mut(pair).generation == generation {
                    self.link_down(pair.0, pair.1);
                }
            }
            Event::ConnectionUnclog(connection, side) => {
                return self.connection_unclog(connection, side);
            }
            Event::Operator(node, start) if self.is_now(node, start) => self.restart(node),
            Event::Turn(..) | Event::Tick(..) | Event::Operator(..) | Event::Resume(..) => {}
            Event::Start(node) if self.machines[usize::from(node)].is_gone => {}
            Event::Start(node) => return self.start(node),
            Event::Operate => self.operate()?,
            Event::Undrain(node) => self.drain(node, false),
            Event::LinkTry(pair) => self.link_try(pair),
            Event::LinkTold { pair, side, up } => self.link_told(pair, side, up)?,
            Event::PeerArrived { from, to, message } => self.peer_arrived(from, to, message)?,
            Event::RepairLanded { node, start, id } => return self.repair_landed(node, start, id),
            Event::RepairTick(node, start) => return self.repair_tick(node, start),
            Event::Inject(inject) => return self.inject_step(inject),
        }
        Ok(false)
    }

    /// Whether a node still runs in this start.
    fn is_now(&self, node: u16, start: u64) -> bool {
        let machine = &self.machines[usize::from(node)];
        machine.starts == start && machine.node.is_some()
    }

    fn restart(&mut self, node: u16) {
        let mut draw = self.machines[usize::from(node)].draw.fork();
        self.restart_torn(node, &mut draw);
    }

    /// Takes a node's power, tears what it was writing, and gives the power back.
    fn restart_torn(&mut self, node: u16, draw: &mut Draw) {
        self.power_loss(node, draw);
        self.after(draw.nanos(20_000_000), Event::Start(node));
    }

    fn power_loss(&mut self, node: u16, draw: &mut Draw) {
        let machine = &mut self.machines[usize::from(node)];
        self.trace.note("power", self.now, machine.starts, node.into());
        machine.disk.crash(draw);
        machine.node = None;
        machine.repair = None;
        machine.held = None;
        machine.tokens.clear();
        machine.clock.begin(self.now, draw.below(SECOND * 1_000_000));
        self.oracle.crashed(node);
        self.links_down_of(node);
        let connections = self.network.connections.iter();
        let numbers: Vec<u64> =
            connections.filter(|(_, c)| c.node == node).map(|(number, _)| *number).collect();
        for number in numbers {
            if let Some(connection) = self.network.connections.get_mut(&number) {
                connection.node_open = false;
                connection.broken = true;
            }
            let nanos = self.network_nanos(number);
            self.after(nanos, Event::Gone(number, Side::Client));
        }
    }

    /// Reads a node's log.
    fn started_log(&mut self, node: u16) -> Result<Begun, Failure> {
        loop {
            let machine = &mut self.machines[usize::from(node)];
            let is_suspect = machine.is_suspect && self.sizes.nodes > 1;
            let scene = &mut StartScene {
                disk: &machine.disk,
                sizes: &self.sizes,
                history: &self.oracle.history,
                bug: self.options.bug,
                draw: &mut machine.draw,
                now: machine.clock.monotonic(self.now),
            };
            match start(scene) {
                Ok(started) => return Ok(Begun::Started(Box::new(started))),
                Err(StartError::MemoryFull) => self.budget_raise(),
                Err(StartError::Failure(failure)) => return Err(failure),
                Err(StartError::Damaged(damaged)) if is_suspect => {
                    return Ok(Begun::Damaged(damaged));
                }
                Err(StartError::Damaged(why)) => {
                    self.refused(node, &why.to_string())?;
                    return Ok(Begun::Refused);
                }
                Err(StartError::Refused(why)) => {
                    self.refused(node, &why)?;
                    return Ok(Begun::Refused);
                }
            }
        }
    }

    /// A node refuses to go on. It may if something happened to its disk; then it is lost.
    fn refused(&mut self, node: u16, why: &str) -> Result<(), Failure> {
        if !self.machines[usize::from(node)].is_suspect {
            return Err(Failure::new(format!("node {} refuses to go on: {why}", node + 1)));
        }
        self.oracle.counts.refused_starts += 1;
        self.trace.note("refused", self.now, node.into(), 0);
        self.exposure.refusals.push(why.to_owned());
        let mut draw = self.machines[usize::from(node)].draw.fork();
        self.lost(node, &mut draw);
        self.operator_call();
        Ok(())
    }

    fn budget_raise(&mut self) {
        self.oracle.counts.budget_raised += 1;
        self.sizes.chunks *= 2;
    }

    /// Returns whether the node refused, where it may.
    fn start(&mut self, node: u16) -> Result<bool, Failure> {
        let started = match self.started_log(node)? {
            Begun::Started(started) => *started,
            Begun::Refused => return Ok(self.sizes.nodes == 1),
            Begun::Damaged(damaged) => return self.repair_begin(node, *damaged),
        };
        let log = &started.log;
        let counts = &mut self.oracle.counts;
        counts.restarts += 1;
        counts.torn += u64::from(is_torn(&log.recovered));
        counts.held_back += u64::from(!log.tail.is_empty());
        counts.superseded += log.superseded;
        self.trace.note("start", self.now, log.recovered.last_lsn.0, log.recovered.bytes);
        self.machines[usize::from(node)].starts += 1;
        self.started(node, started);
        Ok(false)
    }

    fn started(&mut self, node: u16, started: Started) {
        let rounds = spillway_updateserver::log::superblock_update(&started.superblock);
        let machine = &mut self.machines[usize::from(node)];
        let mut torn = machine.start_torn.take();
        for (at, round) in rounds.iter().enumerate() {
            if self.options.bug == Some(Bug::SuperblockNotWritten) {
                break;
            }
            if let Some((_, draw)) = torn.as_mut().filter(|(round, _)| *round == at) {
                machine.disk.superblock_round(round, Some(draw));
                let nanos = draw.nanos(20_000_000);
                self.oracle.counts.faults.note(FaultKind::PowerLossInStart);
                self.after(nanos, Event::Start(node));
                return;
            }
            machine.disk.superblock_round(round, None);
        }
        self.oracle.started(node, &started.log.recovered.entries);
        let door = Door::new(
            &started.superblock,
            machine.starts,
            &machine.configured,
            machine.clock.monotonic(self.now),
        );
        machine.node = Some(Node::new(started, &self.sizes, &machine.configured, door));
        machine.turns.clear();
        machine.log_tick_at = None;
        machine.operator_called = false;
        let starts = machine.starts;
        let seats = (0..self.sizes.shards).map(Seat::Shard).chain([Seat::Log]);
        self.turns_schedule(node, seats.collect());
        self.after(TICK_NANOS, Event::Tick(node, starts));
    }

    fn with_node(
        &mut self,
        number: u16,
        step: impl FnOnce(&mut Node, &mut Scene<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let machine = &mut self.machines[usize::from(number)];
        let Some(node) = &mut machine.node else { return Ok(()) };
        let mut actions = Actions::default();
        let mut scene = Scene {
            now: machine.clock.monotonic(self.now),
            wall: machine.clock.wall(self.now),
            sizes: &self.sizes,
            bug: self.options.bug,
            oracle: &mut self.oracle,
            draw: &mut machine.draw,
            actions: &mut actions,
        };
        step(node, &mut scene)?;
        node.limits_check(&self.sizes)?;
        if let Some(failure) = node.failure() {
            return self.refused(number, &failure.to_string());
        }
        let (deadline, failed, diverged) =
            (node.log_deadline(), node.failed(), node.diverged_take());
        let (starts, now) = (machine.starts, self.now);
        let mut call_operator = failed && !machine.operator_called;
        machine.operator_called |= failed;
        if let Some(deadline) = deadline.map(|deadline| machine.clock.virtual_at(deadline))
            && machine.log_tick_at.is_none_or(|at| at > deadline || at <= now)
        {
            machine.log_tick_at = Some(deadline);
            self.at(deadline.max(now + 1), Event::Turn(number, starts, Seat::Log));
        }
        match diverged {
            None => {}
            Some(ReplayError::MemoryFull) => {
                self.budget_raise();
                call_operator = true;
            }
            Some(error) => {
                return Err(Failure::new(format!("node {} has diverged: {error}", number + 1)));
            }
        }
        if call_operator {
            self.after_about(number, OPERATOR_NANOS, Event::Operator(number, starts));
        }
        self.actions(number, starts, actions);
        Ok(())
    }

    fn actions(&mut self, node: u16, start: u64, actions: Actions) {
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
                let at = self.now + self.network_nanos(connection);
                let at = self.network.arrival(connection, side, at);
                self.at(at, Event::Gone(connection, side));
            }
        }
        for (from, generation, bytes) in actions.taken {
            self.peer_taken(from.0 - 1, node, generation, bytes);
        }
        for (to, message) in actions.sends {
            self.peer_send(node, to.0 - 1, message);
        }
        for to in actions.resets {
            self.link_down(node, to.0 - 1);
        }
        for (file, offset, bytes, token) in actions.writes {
            self.write(node, file, offset, bytes, token);
        }
        for (lsn, request) in actions.reads {
            let event = Event::ReadBack { node, start, lsn, request };
            self.after_about(node, self.disk_nanos(node), event);
        }
        let machine = &mut self.machines[usize::from(node)];
        if actions.memory_short && self.now >= machine.memory_retry_at {
            machine.memory_retry_at = self.now + MEMORY_RETRY_NANOS;
            self.after(MEMORY_RETRY_NANOS, Event::Turn(node, start, Seat::Log));
        }
        self.turns_schedule(node, actions.turns);
    }

    fn turns_schedule(&mut self, node: u16, seats: BTreeSet<Seat>) {
        for seat in seats {
            let machine = &mut self.machines[usize::from(node)];
            let starts = machine.starts;
            if machine.turns.insert(seat) {
                // Now and then a thread gets no CPU for a while.
                let typical = if machine.draw.once_in(100) { 1_000_000 } else { 5_000 };
                let slow = machine.slow_seats.get(&seat).is_some_and(|until| self.now < *until);
                let typical = if slow { 100 * typical } else { typical };
                self.after_about(node, typical, Event::Turn(node, starts, seat));
            }
        }
    }

    fn write(&mut self, node: u16, file: File, offset: u64, bytes: Vec<u8>, token: Token) {
        self.trace.note("write", self.now, offset, bytes.len() as u64);
        let machine = &mut self.machines[usize::from(node)];
        let id = machine.disk.submit(file, offset, bytes.clone());
        let bug = self.options.bug;
        let frame = matches!(token, Token::Frame(..));
        machine.tokens.insert(id, (token, bytes));
        let result = machine.landings_next.pop_front().unwrap_or(Landing::Whole);
        if result != Landing::Whole {
            self.oracle.counts.write_errors += 1;
            self.oracle.counts.faults.note(FaultKind::WriteError);
        }
        if bug == Some(Bug::WriteConfirmedEarly) && frame {
            self.after(1, Event::Landed { node, id, result: Landing::WholeSilent });
        }
        if bug == Some(Bug::HardStateLost) && file == File::Superblock {
            self.machines[usize::from(node)].disk.lose(id);
            self.after(1, Event::Landed { node, id, result: Landing::WholeSilent });
            return;
        }
        self.after_about(node, self.disk_nanos(node), Event::Landed { node, id, result });
    }

    /// Typical latency of a disk now.
    fn disk_nanos(&self, node: u16) -> u64 {
        let slow = self.now < self.machines[usize::from(node)].disk_slow_until;
        if slow { 100 * self.sizes.disk_nanos } else { self.sizes.disk_nanos }
    }

    fn landed(&mut self, node: u16, id: u64, landing: Landing) -> Result<(), Failure> {
        let machine = &mut self.machines[usize::from(node)];
        let landed = match landing {
            Landing::Whole => machine.disk.complete(id).is_some(),
            Landing::WholeSilent => true,
            Landing::Error(_) | Landing::Short => {
                machine.disk.fail(id, &mut machine.draw).is_some()
            }
        };
        let Some((token, bytes)) = machine.tokens.remove(&id).filter(|_| landed) else {
            return Ok(());
        };
        self.trace.note("landed", self.now, id, u64::from(landing == Landing::Whole));
        if let (Landing::Whole, Token::Frame(sequence, _)) = (landing, &token) {
            self.oracle.landed(node, *sequence);
        }
        let length = bytes.len() as u32;
        let result = match landing {
            Landing::Error(errno) if self.options.bug != Some(Bug::WriteErrorIgnored) => Err(errno),
            Landing::Short if self.options.bug != Some(Bug::WriteErrorIgnored) => Ok(length / 2),
            _ => Ok(length),
        };
        self.with_node(node, |node, scene| node.written(&token, &bytes, result, scene))
    }

    fn read_back(
        &mut self,
        node: u16,
        start: u64,
        lsn: u64,
        request: &ReadRequest,
    ) -> Result<(), Failure> {
        if !self.is_now(node, start) {
            return Ok(());
        }
        let result = self.machines[usize::from(node)].disk.read(request).map(<[u8]>::to_vec);
        self.with_node(node, |node, scene| node.read(lsn, result, scene))
    }

    fn turn(&mut self, node: u16, seat: Seat) -> Result<(), Failure> {
        self.machines[usize::from(node)].turns.remove(&seat);
        self.trace.note("turn", self.now, seat_number(seat), node.into());
        self.with_node(node, |node, scene| match seat {
            Seat::Shard(shard) => node.shard_turn(shard, scene),
            Seat::Log => node.log_turn(scene),
        })
    }

    /// Puts bytes on a connection, in pieces.
    fn send(&mut self, number: u64, to: Side, mut bytes: &[u8]) {
        let Some(connection) = self.network.connections.get(&number) else { return };
        let (worker, alive) = (connection.worker, !connection.broken);
        let pieces_max = match connection.piece_bytes_max {
            0 => usize::MAX,
            // So small that frames come in many pieces, and so large that their number is bounded.
            small => small.max(bytes.len() / 50),
        };
        while alive && !bytes.is_empty() {
            let draw = &mut self.workers_draws[worker];
            let cut = match draw.below(4) {
                0 => draw.below(bytes.len() as u64) as usize + 1,
                _ => bytes.len(),
            };
            let (piece, rest) = bytes.split_at(cut.min(pieces_max));
            bytes = rest;
            let at = self.now + draw.nanos(self.sizes.network_nanos);
            let at = self.network.arrival(number, to, at);
            self.at(at, Event::Arrived(number, to, piece.to_vec()));
        }
    }

    fn connected(&mut self, number: u64) -> Result<(), Failure> {
        let Some(connection) = self.network.connections.get_mut(&number) else { return Ok(()) };
        if !connection.client_open || connection.broken {
            return Ok(());
        }
        let Connection { worker, node, shard, .. } = *connection;
        if self.machines[usize::from(node)].node.is_none() {
            return self.gone(number, Side::Client);
        }
        connection.node_open = true;
        self.with_node(node, |node, scene| {
            node.accepted(shard, number, scene);
            Ok(())
        })?;
        self.worker(worker, ClientInput::Connected)
    }

    fn arrived(&mut self, number: u64, side: Side, bytes: &[u8]) -> Result<(), Failure> {
        let Some(connection) = self.network.connections.get(&number) else { return Ok(()) };
        let Connection { worker, node, shard, .. } = *connection;
        self.trace.note("arrived", self.now, number, bytes.len() as u64);
        match side {
            Side::Client if connection.client_open => {
                self.worker(worker, ClientInput::Received(bytes))
            }
            Side::Node if connection.node_open && !connection.node_ending => {
                self.with_node(node, |node, scene| node.received(shard, number, bytes, scene))
            }
            _ => Ok(()),
        }
    }

    fn gone(&mut self, number: u64, side: Side) -> Result<(), Failure> {
        let Some(connection) = self.network.connections.get_mut(&number) else { return Ok(()) };
        let Connection { worker, node, shard, .. } = *connection;
        connection.broken = true;
        match side {
            Side::Client if connection.client_open => {
                connection.client_open = false;
                self.workers[worker].connection = None;
                self.worker(worker, ClientInput::Disconnected("reset by peer"))?;
            }
            Side::Node if connection.node_open => {
                connection.node_open = false;
                self.with_node(node, |node, scene| {
                    node.closed(shard, number, scene);
                    Ok(())
                })?;
            }
            _ => {}
        }
        self.network.sweep(number);
        Ok(())
    }

    fn worker(&mut self, at: usize, input: ClientInput<'_>) -> Result<(), Failure> {
        if self.workers_gone.contains(&at) {
            return Ok(());
        }
        let working = self.has_faults();
        let world = (&self.sizes, &self.tables);
        let worker = &mut self.workers[at];
        worker.lsn_known = self.oracle.history.last().0;
        let outcome =
            match worker.step(self.now, input, working, world, &mut self.workers_draws[at]) {
                Ok(outcome) => outcome,
                Err(failure) => {
                    let number = worker.connection;
                    let connection =
                        number.and_then(|number| self.network.connections.get(&number));
                    let node = connection.map_or(0, |connection| connection.node + 1);
                    let rest = self.unrest();
                    return Err(Failure::new(format!(
                        "{failure}; connected to node {node}; {rest}"
                    )));
                }
            };
        let worker = &mut self.workers[at];
        let session = worker.session();
        self.oracle.counts.gave_up += outcome.gave_up;
        self.oracle.counts.refused_log += outcome.refused_log;
        // A log or a budget that stays full is answered with "later" until the client gives up;
        // the operator's requests are never put off. And as long as faults go on there is no promise:
        // links that break faster than an election takes leave nobody to answer.
        let counts = &self.oracle.counts;
        let full = at != 0 && counts.log_full + counts.memory_full > 0;
        let is_late = self.now >= self.options.faults_end() + PATIENCE_NANOS;
        if outcome.gave_up > 0 && !full && is_late {
            let rest = self.unrest();
            return Err(Failure::new(format!("client {at} got no answer in its patience; {rest}")));
        }
        for heard in outcome.heard {
            if !heard.status.is_transient() || heard.status.is_committed() {
                self.trace.note("heard", self.now, heard.number, heard.status as u64);
            }
            let committed = heard.status.is_committed();
            let verdict = self.oracle.client_heard(session, heard.number, committed, heard.writes);
            self.oracle.verdict(verdict)?;
        }
        self.wishes(at, outcome.wishes);
        self.worker_schedule(at);
        for session in outcome.sessions {
            self.worker_new(session);
        }
        Ok(())
    }

    fn worker_new(&mut self, session: u64) {
        let shard = (self.sessions % usize::from(self.sizes.shards)) as u16;
        self.sessions += 1;
        self.worker_add(shard, session);
        if self.readers < self.sizes.readers {
            self.readers += 1;
            self.reader_add();
        }
    }

    fn reader_add(&mut self) {
        let at = self.workers.len();
        let mut draw = Draw::stream(self.options.chance(), &format!("worker {at}"));
        let node = draw.below(self.sizes.nodes.into()) as u16;
        let place = (node, draw.below(self.sizes.shards.into()) as u16);
        let worker = Worker::reader(at, place, &self.sizes, &self.tables, &mut draw);
        self.worker_begin(worker, draw);
    }

    fn worker_add(&mut self, shard: u16, session: u64) {
        let at = self.workers.len();
        let mut draw = Draw::stream(self.options.chance(), &format!("worker {at}"));
        let worker = Worker::new(at, shard, session, &self.sizes, &self.tables, &mut draw);
        self.worker_begin(worker, draw);
    }

    fn worker_begin(&mut self, mut worker: Worker, draw: Draw) {
        let at = self.workers.len();
        let wishes = worker.start(self.now);
        self.workers.push(worker);
        self.workers_draws.push(draw);
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
                Wish::Connect(node, shard) => {
                    let number = self.network.connect(at, node, shard);
                    self.workers[at].connection = Some(number);
                    let nanos = self.network_nanos(number);
                    self.after(nanos, Event::Connected(number));
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
                    let at = self.now + self.network_nanos(number);
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
