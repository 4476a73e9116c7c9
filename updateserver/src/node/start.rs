//! Starting a node: recover, start the threads, serve, stop in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::time::Duration;

use spillway_net::ids::{ClusterId, Lsn, NodeId, ShardIndex, WallMicros};
use spillway_net::limits::{BATCH_BYTES_MAX, SESSIONS_MAX};
use spillway_runtime::clock;
use spillway_runtime::device::DurableWriteMode;
use spillway_runtime::direct::DirectFile;
use spillway_runtime::disk::Durability;
use spillway_runtime::error::RuntimeError;
use spillway_runtime::file;
use spillway_runtime::lock::DirectoryLock;
use spillway_runtime::placement::{self, CpuId};
use spillway_runtime::queue::park::WakeFlag;
use spillway_runtime::queue::{mpsc, spsc, state};
use spillway_runtime::shutdown::Shutdown;
use spillway_runtime::slot_ring::SlotRing;
use spillway_runtime::tcp::{ListenerId, RingWaker, TcpRing, TcpRingOptions, Wait};
use spillway_runtime::thread;

use crate::config::{Config, LogThread};
use crate::log::{
    DurableWrite, LogWriterOptions, Members, SUPERBLOCK_COPIES, Superblock, SuperblockChosen,
    Verdict, superblock_update,
};
use crate::quorum::{ReplicaOptions, ReplicaStart};
use crate::root::{Root, RootEffects};
use crate::session::SessionDirectory;
use crate::shard::{LogItem, ReplayCounts, RootOrder, Shard, ShardOptions};

use super::NodeError;
use super::apply::{APPLY_ENTRIES_MAX, ApplyEntry};
use super::board::{Board, Member};
use super::core_loop::{CoreLoop, Shared};
use super::files::{NodeFiles, superblock_read, superblock_write};
use super::log_shell::{LogShell, LogShellOptions};
use super::memory::{self, CHUNK_BYTES, RegionChunks};
use super::outbox::Outbox;
use super::peer_plan::{self, PeerPlan};
use super::peers::PeerLinks;
use super::published::{Published, ShardWord};
use super::recover::{self, ENTRIES_AHEAD, RecoveredLog};
use super::repair::{self, Repaired};
use super::shard_shell::{RootLink, RootPlace, RootShell, ShardShell, ShardShellOptions};
use super::status::{LogNumbers, ReplayNumbers};

/// Items that may wait for the log, per shard.
const HANDOVERS_PER_SHARD_MAX: usize = 8;
/// Answers that may wait for the log, per shard, bytes.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Outcomes of sessions, per shard, bytes: those of 256 sessions that use their whole window.
const OUTCOMES_BYTES_MAX: usize = 256 << 20;
/// Orders and acknowledgements between the root service and one shard.
const ORDERS_MAX: usize = 256;
/// Chunks of a shard's memory that transactions may not use: entering rows into the ordered index
/// must never fail.
const CHUNKS_WITHHELD: usize = 4;
/// The least memory of a shard: what is withheld and as much again.
const SHARD_BUDGET_BYTES_MIN: u64 = (2 * CHUNKS_WITHHELD * CHUNK_BYTES) as u64;
/// How often and how far apart a port that is taken is tried again: two seconds in all.
const LISTEN_RETRIES: u32 = 40;
const LISTEN_RETRY: Duration = Duration::from_millis(50);
/// Connections of peers, those that have not proven themselves included.
pub(super) const PEER_CONNECTIONS_MAX: u32 = 64;
/// How long a node that is alone may take to lead itself.
const LEAD_WAIT: Duration = Duration::from_secs(30);

/// What the caller wants to hear.
pub struct RunOptions<'a> {
    /// Called once when all shards serve.
    pub ready: &'a mut dyn FnMut(&Ready),
}

/// A node that serves.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Address of every shard.
    pub addresses: Vec<SocketAddr>,
    /// Records that were replayed.
    pub replay_records: u64,
    /// Time from the start, nanoseconds.
    pub start_nanos: u64,
    /// What the operator should know: torn tails, missing huge pages.
    pub notes: Vec<String>,
}

struct Plan {
    shards: u16,
    threads: Vec<ThreadPlan>,
    log_thread: usize,
}

#[derive(Clone, Copy)]
struct ThreadPlan {
    cpu: Option<CpuId>,
    shard: Option<ShardIndex>,
    log: bool,
}

impl ThreadPlan {
    fn of_shard(shard: ShardIndex) -> Self {
        Self { cpu: None, shard: Some(shard), log: false }
    }
}

enum ThreadNews {
    Bound { thread: usize, address: Option<SocketAddr>, ring: i32, waker: RingWaker },
    Serves,
    Replayed { thread: usize, counts: ReplayCounts },
    Failed(NodeError),
    Ended(String),
}

/// First message to a thread.
struct Prepare {
    options: Option<ShardOptions>,
    directory: Arc<SessionDirectory>,
    entries: Option<Receiver<Arc<ApplyEntry>>>,
    budget_bytes: u64,
}

/// Second message to a thread.
struct Go {
    shared: Arc<Shared>,
    shard: Option<ShardLinks>,
    log: Option<LogPlan>,
    replay: ReplayNumbers,
}

/// What the log's thread makes its shell of; the links to the peers are made on the thread.
struct LogPlan {
    options: LogShellOptions,
    peers: Option<PeerPlan>,
}

/// The files of the log disk.
struct LogDisk {
    segments: Vec<DirectFile>,
    superblock: DirectFile,
}

struct ShardLinks {
    root: RootWires,
    outbox: Outbox,
    recycle: spsc::Consumer<Box<LogItem>>,
    state: state::StateCell<{ Published::WORDS }>,
    word: state::StateWriter<{ ShardWord::WORDS }>,
    apply: spsc::Consumer<Arc<ApplyEntry>>,
    board: Arc<Board>,
    alone: bool,
    /// What was replayed: its end and that entry's timestamp.
    applied: (Lsn, WallMicros),
    numbers: state::StateCell<{ LogNumbers::WORDS }>,
}

enum RootWires {
    Here { orders: Vec<spsc::Producer<RootOrder>>, done: Vec<spsc::Consumer<u32>> },
    There(RootLink),
}

enum Order {
    Prepare(Box<Prepare>),
    Go(Box<Go>),
}

struct Thread {
    orders: Sender<Order>,
    waker: Option<RingWaker>,
    ring: i32,
}

/// Runs a node until SIGTERM or SIGINT. Returns after everything acknowledged - and everything
/// handed over - is durable.
///
/// # Errors
/// Whatever keeps the node from starting or going on; its text says what to do.
pub fn start(config: &Config, options: RunOptions<'_>) -> Result<(), NodeError> {
    let started_at = clock::monotonic_now();
    thread::install_abort_on_panic();
    let shutdown = Shutdown::install()?;
    let files = NodeFiles::new(config);
    if !file::exists(&files.superblock()) {
        return Err(NodeError::NotFormatted { path: files.superblock() });
    }
    // Before the superblock is read: another process may be about to write it.
    let _lock = DirectoryLock::acquire(&files.log)?;
    loop {
        match serve(config, &files, options.ready, &shutdown, started_at) {
            Err(NodeError::Damaged(damaged))
                if damaged.repair.is_some() && config.cluster.has_peers() =>
            {
                if repair::repair(config, damaged, &shutdown)? == Repaired::Stopped {
                    return Ok(());
                }
            }
            other => return other,
        }
    }
}

/// Recovers and runs.
fn serve(
    config: &Config,
    files: &NodeFiles,
    ready: &mut dyn FnMut(&Ready),
    shutdown: &Shutdown,
    started_at: clock::MonotonicNanos,
) -> Result<(), NodeError> {
    let (superblock_file, chosen) = superblock_read(&files.superblock())?;
    let superblock = chosen.superblock;
    fixed_check(config, &superblock)?;
    let segments = files.segments_open(&superblock.geometry)?;
    let plan = plan(config)?;
    let budget_bytes = shard_budget(config, &plan)?;
    let (news_out, news) = channel();
    let mut threads = spawn_all(config, &plan, &news_out, started_at.0)?;
    let addresses = bound_all(&plan, &mut threads, &news)?;

    let directory = Arc::new(SessionDirectory::default());
    let ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
    let mut entries = Vec::new();
    for (at, thread) in threads.iter().enumerate() {
        let shard = plan.threads[at].shard;
        let (sender, receiver) = sync_channel(ENTRIES_AHEAD);
        if shard.is_some() {
            entries.push(sender);
        }
        let prepare = Prepare {
            options: shard.map(|index| shard_options(index, &plan, &superblock, &ports)),
            directory: Arc::clone(&directory),
            entries: shard.map(|_| receiver),
            budget_bytes,
        };
        send(thread, Order::Prepare(Box::new(prepare)))?;
    }
    // A shard that cannot apply an entry says so below.
    let scanned = recover::scan(&superblock, &segments, &entries);
    drop(entries);
    let log = match scanned {
        Ok(log) => log,
        Err(error) => {
            end_all(threads, &news);
            return Err(error);
        }
    };
    let replay_counts = replayed_all(&plan, &news)?;
    let replay = ReplayNumbers {
        records: replay_counts.records,
        outcomes: replay_counts.outcomes,
        nanos: clock::monotonic_now().saturating_nanos_since(started_at),
        log_bytes: log.recovered.bytes,
    };
    let notes = notes(&log, &chosen);
    let (term, vote) = (log.recovered.term, log.recovered.vote);
    let next = log.recovered.superblock_next(&superblock, term, vote);
    let start = replica_start(log, &next);
    start.check().map_err(NodeError::Replica)?;
    superblock_write(&superblock_file, &superblock_update(&next))?;
    let disk = LogDisk { segments, superblock: superblock_file };
    let alone = is_alone(config, &next);
    let (shared, state) = go_all(config, &plan, &threads, start, disk, shutdown, replay)?;
    serving_all(&plan, &news, alone.then_some(&state), shutdown)?;
    ready(&Ready {
        addresses,
        replay_records: replay.records,
        start_nanos: clock::monotonic_now().saturating_nanos_since(started_at),
        notes,
    });
    run(&threads, &plan, &news, shutdown, &shared)
}

/// Ends threads that have no order to serve yet, and waits until nothing of them is left.
fn end_all(threads: Vec<Thread>, news: &Receiver<ThreadNews>) {
    let mut left = threads.len();
    drop(threads);
    while left > 0 {
        match news.recv() {
            Ok(ThreadNews::Ended(_) | ThreadNews::Failed(_)) => left -= 1,
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// Waits for a signal or for a thread that ends.
fn run(
    threads: &[Thread],
    plan: &Plan,
    news: &Receiver<ThreadNews>,
    shutdown: &Shutdown,
    shared: &Shared,
) -> Result<(), NodeError> {
    let mut ring = TcpRing::new(TcpRingOptions {
        entries: 8,
        receive_buffers: 8,
        receive_buffer_bytes: 4096,
        connections_max: 1,
    })?;
    ring.watch(shutdown.fd(), 1);
    let mut events = Vec::new();
    let mut ended = 0;
    while ended < plan.threads.len() {
        ring.turn(Wait::For(200_000_000), &mut events)?;
        events.clear();
        if shutdown.requested() {
            for waker in threads.iter().filter_map(|thread| thread.waker.as_ref()) {
                waker.wake();
            }
        }
        while let Ok(news) = news.try_recv() {
            match news {
                ThreadNews::Failed(error) => return Err(error),
                ThreadNews::Ended(_) if shared.stop.requested() => ended += 1,
                ThreadNews::Ended(name) => return Err(NodeError::ThreadEnded(name)),
                ThreadNews::Bound { .. } | ThreadNews::Replayed { .. } | ThreadNews::Serves => {}
            }
        }
    }
    Ok(())
}

fn notes(log: &RecoveredLog, superblock: &SuperblockChosen) -> Vec<String> {
    let mut notes = Vec::new();
    if let Verdict::TailTorn { sequence, frames, wiped_bytes } = log.recovered.verdict {
        notes.push(format!(
            "the last writes before the crash were cut short and never acknowledged: dropped \
             {frames} frame(s) from sequence {sequence} on, {wiped_bytes} bytes"
        ));
    }
    if superblock.copies_bad > 0 {
        notes.push(format!(
            "{} of {SUPERBLOCK_COPIES} copies of the superblock were unreadable or damaged, and \
             were written anew: check the log disk",
            superblock.copies_bad
        ));
    }
    notes
}

fn fixed_check(config: &Config, superblock: &Superblock) -> Result<(), NodeError> {
    let formatted = superblock.cluster.0;
    if let Some(ClusterId(configured)) = config.cluster.id.filter(|id| id.0 != formatted) {
        return Err(NodeError::FixedCluster { configured, formatted });
    }
    let geometry = &superblock.geometry;
    let total = u64::from(geometry.segment_bytes) * u64::from(geometry.segments_count);
    let block_bytes = u64::from(geometry.block_bytes);
    let block_configured = match config.log.block_bytes {
        0 => block_bytes,
        configured => configured.into(),
    };
    for (key, configured, formatted) in [
        ("node.id", u64::from(config.node.id), u64::from(superblock.node.0)),
        ("node.partitions", config.node.partitions.into(), geometry.partitions.into()),
        ("log.segment_bytes", config.log.segment_bytes, geometry.segment_bytes.into()),
        ("log.bytes_total", config.log.bytes_total, total),
        ("log.block_bytes", block_configured, block_bytes),
    ] {
        if configured != formatted {
            return Err(NodeError::Fixed { key, configured, formatted });
        }
    }
    Ok(())
}

/// Which thread carries what. With few CPUs one thread carries the log and shard 0: measured as
/// good as two, and it leaves the other CPU to the kernel and to clients.
fn plan(config: &Config) -> Result<Plan, NodeError> {
    let cpus = placement::cpus_allowed()?;
    let own_log = match config.threads.log {
        LogThread::Own => true,
        LogThread::Shared => false,
        LogThread::Auto => cpus.len() >= 4,
    };
    let shards = match config.node.shards {
        0 => {
            let spare = if cpus.len() >= 4 { 2 } else { 1 };
            (cpus.len().saturating_sub(spare)).clamp(1, usize::from(config.node.partitions)) as u16
        }
        shards => shards,
    };
    let mut threads: Vec<ThreadPlan> =
        (0..shards).map(|shard| ThreadPlan::of_shard(ShardIndex(shard))).collect();
    if own_log {
        threads.push(ThreadPlan { cpu: None, shard: None, log: true });
    } else {
        threads[0].log = true;
    }
    if config.threads.pin {
        // The last CPUs: the first ones take the kernel's interrupts.
        for (thread, cpu) in threads.iter_mut().zip(cpus.iter().rev().cycle()) {
            thread.cpu = Some(*cpu);
        }
    }
    let log_thread = if own_log { threads.len() - 1 } else { 0 };
    Ok(Plan { shards, threads, log_thread })
}

/// Each shard's part of the memory budget.
fn shard_budget(config: &Config, plan: &Plan) -> Result<u64, NodeError> {
    let budget = match config.memory.budget_bytes {
        0 => memory::budget_default()?,
        bytes => bytes,
    };
    let shard_budget = budget / u64::from(plan.shards);
    if shard_budget < SHARD_BUDGET_BYTES_MIN {
        return Err(NodeError::BudgetSmall { shards: plan.shards, budget });
    }
    Ok(shard_budget)
}

fn shard_options(
    index: ShardIndex,
    plan: &Plan,
    superblock: &Superblock,
    ports: &[u16],
) -> ShardOptions {
    ShardOptions {
        index,
        shards: plan.shards,
        partitions: superblock.geometry.partitions.into(),
        cluster: superblock.cluster,
        node: superblock.node,
        shard_ports: ports.to_vec(),
        handovers_in_flight_max: HANDOVERS_PER_SHARD_MAX as u64,
        held_bytes_max: HELD_BYTES_MAX,
        outcomes_bytes_max: OUTCOMES_BYTES_MAX,
    }
}

fn send(thread: &Thread, order: Order) -> Result<(), NodeError> {
    let ended = |_| NodeError::ThreadEnded("a thread that was being started".to_owned());
    thread.orders.send(order).map_err(ended)
}

fn spawn_all(
    config: &Config,
    plan: &Plan,
    news: &Sender<ThreadNews>,
    started_at_nanos: u64,
) -> Result<Vec<Thread>, NodeError> {
    let mut threads = Vec::new();
    for (at, thread_plan) in plan.threads.iter().copied().enumerate() {
        let name = match thread_plan.shard {
            Some(shard) => format!("shard-{shard}"),
            None => "log".to_owned(),
        };
        let (orders_out, orders) = channel();
        let (config, news, thread_name) = (config.clone(), news.clone(), name.clone());
        thread::spawn(&name, thread_plan.cpu, move || {
            let outcome = thread_run(at, thread_plan, &config, &orders, &news, started_at_nanos);
            let last = match outcome {
                Ok(()) => ThreadNews::Ended(thread_name),
                Err(error) => ThreadNews::Failed(error),
            };
            // Nobody listens any more when the process ends.
            drop(news.send(last));
        })?;
        threads.push(Thread { orders: orders_out, waker: None, ring: -1 });
    }
    Ok(threads)
}

fn bound_all(
    plan: &Plan,
    threads: &mut [Thread],
    news: &Receiver<ThreadNews>,
) -> Result<Vec<SocketAddr>, NodeError> {
    let mut addresses = vec![None; usize::from(plan.shards)];
    for _ in 0..threads.len() {
        match next(news)? {
            ThreadNews::Bound { thread, address, ring, waker } => {
                threads[thread].ring = ring;
                threads[thread].waker = Some(waker);
                if let Some(shard) = plan.threads[thread].shard {
                    addresses[usize::from(shard.0)] = address;
                }
            }
            _ => return Err(NodeError::ThreadEnded("a shard".to_owned())),
        }
    }
    Ok(addresses.into_iter().map(|address| address.expect("every shard is bound")).collect())
}

fn replayed_all(plan: &Plan, news: &Receiver<ThreadNews>) -> Result<ReplayCounts, NodeError> {
    let mut total = ReplayCounts::default();
    for _ in 0..plan.shards {
        match next(news)? {
            ThreadNews::Replayed { thread, counts } => {
                assert!(plan.threads[thread].shard.is_some(), "only shards replay");
                total.records += counts.records;
                total.outcomes += counts.outcomes;
            }
            _ => return Err(NodeError::ThreadEnded("a shard".to_owned())),
        }
    }
    Ok(total)
}

/// Waits until all threads serve. A node that is alone is told as ready when it leads itself; one
/// with peers serves in whatever role they give it.
fn serving_all(
    plan: &Plan,
    news: &Receiver<ThreadNews>,
    alone: Option<&state::StateCell<{ Published::WORDS }>>,
    shutdown: &Shutdown,
) -> Result<(), NodeError> {
    for _ in 0..plan.threads.len() {
        match next(news)? {
            ThreadNews::Serves => {}
            _ => return Err(NodeError::ThreadEnded("a thread that was being started".to_owned())),
        }
    }
    let Some(state) = alone else { return Ok(()) };
    let began = clock::monotonic_now();
    while !Published::of(state.read()).leading && !shutdown.requested() {
        match news.recv_timeout(Duration::from_millis(1)) {
            Ok(ThreadNews::Failed(error)) => return Err(error),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(NodeError::ThreadEnded("every core".to_owned()));
            }
        }
        let waited = Duration::from_nanos(clock::monotonic_now().saturating_nanos_since(began));
        if waited > LEAD_WAIT {
            return Err(NodeError::NotLeading { waited });
        }
    }
    Ok(())
}

/// Whether nobody but this node votes: nobody else did when the log began, and nobody can have
/// come since, because there are no links to anybody.
fn is_alone(config: &Config, superblock: &Superblock) -> bool {
    let (members, node) = (&superblock.members, superblock.node);
    let mut voters = Members::nodes(&members.voters);
    let only = voters.next() == Some(node) && voters.next().is_none() && members.learners[0] == 0;
    only && !config.cluster.has_peers()
}

fn next(news: &Receiver<ThreadNews>) -> Result<ThreadNews, NodeError> {
    match news.recv() {
        Ok(ThreadNews::Failed(error)) => Err(error),
        Ok(news) => Ok(news),
        Err(_) => Err(NodeError::ThreadEnded("every core".to_owned())),
    }
}

/// Between the log core and each shard, in the shards' order.
#[derive(Default)]
struct Rings {
    recycle_out: Vec<spsc::Producer<Box<LogItem>>>,
    recycle_in: Vec<spsc::Consumer<Box<LogItem>>>,
    apply_out: Vec<spsc::Producer<Arc<ApplyEntry>>>,
    apply_in: Vec<spsc::Consumer<Arc<ApplyEntry>>>,
    words_out: Vec<state::StateWriter<{ ShardWord::WORDS }>>,
    words: Vec<state::StateCell<{ ShardWord::WORDS }>>,
}

impl Rings {
    fn new(shards: usize, word: ShardWord) -> Self {
        let mut rings = Self::default();
        for _ in 0..shards {
            let (sender, receiver) = spsc::ring(32);
            rings.recycle_out.push(sender);
            rings.recycle_in.push(receiver);
            let (sender, receiver) = spsc::ring(APPLY_ENTRIES_MAX);
            rings.apply_out.push(sender);
            rings.apply_in.push(receiver);
            let (writer, cell) = state::cell(word.words());
            rings.words_out.push(writer);
            rings.words.push(cell);
        }
        rings
    }
}

fn go_all(
    config: &Config,
    plan: &Plan,
    threads: &[Thread],
    start: ReplicaStart,
    disk: LogDisk,
    shutdown: &Shutdown,
    replay: ReplayNumbers,
) -> Result<(Arc<Shared>, state::StateCell<{ Published::WORDS }>), NodeError> {
    let shared = Arc::new(Shared {
        wake_flags: threads.iter().map(|_| WakeFlag::new()).collect(),
        rings: threads.iter().map(|thread| thread.ring).collect(),
        log_thread: plan.log_thread,
        shards: plan.shards.into(),
        stop: shutdown.flag(),
        drained: AtomicU32::new(0),
        quiet: AtomicBool::new(false),
    });
    let shards = usize::from(plan.shards);
    let board = Board::new(members(config));
    let superblock = start.superblock;
    let alone = is_alone(config, &superblock);
    let queue_items = (shards * HANDOVERS_PER_SHARD_MAX + 64).next_power_of_two();
    let (producer, consumer) = mpsc::ring(queue_items);
    let published = Published { lsn: start.applied.0, ..Published::default() };
    let (state_out, state) = state::cell(published.words());
    let (numbers_out, numbers) = state::cell([0; LogNumbers::WORDS]);
    let word = ShardWord { applied: start.applied.0, ..ShardWord::default() };
    let mut rings = Rings::new(shards, word);
    let mut wires = root_wires(shards);
    let timestamp = start.entries.identity(start.applied).map(|entry| entry.timestamp);
    let applied = (start.applied, timestamp.unwrap_or_default());
    let options = LogShellOptions {
        replica: replica_options(config, &superblock),
        geometry: superblock.geometry,
        start,
        slots: SlotRing::new("log", config.cluster.slot_ring_bytes)?,
        files: disk.segments,
        superblock: disk.superblock,
        durability: durability(&superblock),
        queue: consumer,
        recycle: std::mem::take(&mut rings.recycle_out),
        apply: std::mem::take(&mut rings.apply_out),
        shards: std::mem::take(&mut rings.words),
        state: state_out,
        numbers: numbers_out,
        board: Arc::clone(&board),
        margin_bytes: margin_bytes(&superblock, shards),
    };
    let peers = peer_plan::of(config, &superblock)?;
    let mut log_plan = Some(LogPlan { options, peers });
    for (at, thread) in threads.iter().enumerate() {
        let links = plan.threads[at].shard.map(|shard| ShardLinks {
            root: wires[usize::from(shard.0)].take().expect("each shard is wired once"),
            outbox: Outbox::new(producer.clone()),
            recycle: rings.recycle_in.remove(0),
            state: state.clone(),
            word: rings.words_out.remove(0),
            apply: rings.apply_in.remove(0),
            board: Arc::clone(&board),
            alone,
            applied,
            numbers: numbers.clone(),
        });
        let log = if at == plan.log_thread { log_plan.take() } else { None };
        let go = Go { shared: Arc::clone(&shared), shard: links, log, replay };
        send(thread, Order::Go(Box::new(go)))?;
    }
    Ok((shared, state))
}

fn replica_start(log: RecoveredLog, superblock: &Superblock) -> ReplicaStart {
    ReplicaStart {
        position: log.recovered.position,
        entries: log.recovered.entries,
        tail: log.tail,
        superblock: *superblock,
        applied: log.applied,
        config_entries: log.config_entries,
    }
}

fn durability(superblock: &Superblock) -> Durability {
    match superblock.durable_write {
        DurableWrite::SyncedWrite => DurableWriteMode::DataSync.durability(),
        DurableWrite::WriteThenFlush => DurableWriteMode::WriteThenFlush.durability(),
    }
}

/// Where the members are, by the configuration.
fn members(config: &Config) -> Vec<Member> {
    let nodes = config.cluster.nodes.iter().map(|node| Member {
        node: NodeId(node.id),
        peer_address: node.peer.clone(),
        client_address: node.client.clone(),
    });
    let own = Member {
        node: NodeId(config.node.id),
        peer_address: config.cluster.listen_peers.map_or_else(String::new, |a| a.to_string()),
        client_address: config.node.listen.to_string(),
    };
    let known = nodes.clone().any(|member| member.node == own.node);
    nodes.chain((!known).then_some(own)).collect()
}

fn replica_options(config: &Config, superblock: &Superblock) -> ReplicaOptions {
    let cluster = &config.cluster;
    let slots = cluster.slot_ring_bytes as u64;
    ReplicaOptions {
        tick_nanos: cluster.tick_ms * 1_000_000,
        heartbeat_ticks: cluster.heartbeat_ticks,
        election_ticks_min: cluster.election_ticks_min,
        election_ticks_max: cluster.election_ticks_max,
        inflight_bytes_max: cluster.peer_bytes_in_flight_max,
        // What nobody can let go of must never fill the memory for batches.
        uncommitted_bytes_max: slots / 4,
        tail_bytes_max: slots / 4,
        cache_bytes_max: slots / 3,
        in_flight_small_max: config.log.writes_in_flight_small_max,
        batch_bytes_wait: config.log.batch_bytes_wait,
        ..ReplicaOptions::new(writer_options(config, superblock), superblock.boot)
    }
}

fn writer_options(config: &Config, superblock: &Superblock) -> LogWriterOptions {
    LogWriterOptions {
        cluster: superblock.cluster,
        node: superblock.node,
        term: superblock.term,
        vote: superblock.vote,
        boot: superblock.boot,
        in_flight_max: config.log.writes_in_flight_max,
        watermark_idle_nanos: config.log.watermark_idle_us * 1000,
    }
}

/// What may be handed over between the log counting as full and the last shard knowing it - every
/// hand-over in flight at its largest, some commands of the root service - plus the reserve and
/// the rest of a segment that is left because a batch does not fit it.
fn margin_bytes(superblock: &Superblock, shards: usize) -> u64 {
    let geometry = &superblock.geometry;
    let total = u64::from(geometry.segment_bytes) * u64::from(geometry.segments_count);
    let items = (shards * (HANDOVERS_PER_SHARD_MAX + 1) + 4) as u64;
    let wanted = items * BATCH_BYTES_MAX as u64 + 2 * u64::from(geometry.segment_bytes);
    wanted.min(total / 2)
}

fn root_wires(shards: usize) -> Vec<Option<RootWires>> {
    let (mut orders, mut done) = (Vec::new(), Vec::new());
    let mut wires = vec![None];
    for _ in 1..shards {
        let (orders_out, orders_in) = spsc::ring(ORDERS_MAX);
        let (done_out, done_in) = spsc::ring(ORDERS_MAX);
        orders.push(orders_out);
        done.push(done_in);
        let link = RootLink { orders: orders_in, done: done_out };
        wires.push(Some(RootWires::There(link)));
    }
    wires[0] = Some(RootWires::Here { orders, done });
    wires
}

/// A thread from its first ring to its end.
fn thread_run(
    thread: usize,
    plan: ThreadPlan,
    config: &Config,
    orders: &Receiver<Order>,
    news: &Sender<ThreadNews>,
    started_at_nanos: u64,
) -> Result<(), NodeError> {
    let ended = || NodeError::ThreadEnded("the start".to_owned());
    if let Some(cpu) = plan.cpu {
        // Before the first touch: buffers and rows of a pinned thread lie on its own node. The
        // thread that clears its memory ahead inherits this.
        let sysfs = Path::new("/sys");
        placement::memory_prefer_node(sysfs, placement::numa_node_of(sysfs, cpu))?;
    }
    let BoundRing { ring, listener, listener_peers, address } = thread_ring(plan, config)?;
    let bound = ThreadNews::Bound { thread, address, ring: ring.ring_fd(), waker: ring.waker() };
    news.send(bound).map_err(|_| ended())?;

    let Ok(Order::Prepare(prepare)) = orders.recv() else { return Err(ended()) };
    let prepare = *prepare;
    let mut shard = None;
    let mut root = None;
    if let (Some(options), Some(entries)) = (prepare.options, prepare.entries) {
        let (index, shards) = (options.index.0, options.shards);
        let chunks = RegionChunks::new(&format!("shard-{index}"), prepare.budget_bytes)?;
        let directory = Arc::clone(&prepare.directory);
        let withheld = CHUNKS_WITHHELD * CHUNK_BYTES;
        let mut made = Shard::new(options, directory, Box::new(chunks), withheld);
        root = (index == 0).then(|| Root::new(prepare.directory, shards));
        let counts = recover::replay(&mut made, index, shards, root.as_mut(), &entries)?;
        news.send(ThreadNews::Replayed { thread, counts }).map_err(|_| ended())?;
        shard = Some(made);
    }
    // An error of the main thread ends the start; this thread is not wanted any more.
    let Ok(Order::Go(go)) = orders.recv() else { return Ok(()) };
    let (state_of_replay, shared) = (go.replay, go.shared);
    let shard = match (shard, go.shard) {
        (Some(mut shard), Some(links)) => Some(ShardShell::new(ShardShellOptions {
            shard: {
                shard.replayed_to(links.applied.0, links.applied.1);
                shard
            },
            root: root_place(links.root, root),
            outbox: links.outbox,
            recycle: links.recycle,
            state: links.state,
            word: links.word,
            apply: links.apply,
            board: links.board,
            alone: links.alone,
            numbers: links.numbers,
            network: config.network.clone(),
            replay: state_of_replay,
            started_at_nanos,
        })),
        _ => None,
    };
    let log = match go.log {
        Some(plan) => {
            let now = clock::monotonic_now().0;
            let peers = plan.peers.map(|peers| PeerLinks::new(peers.links(listener_peers), now));
            Some(LogShell::new(plan.options, peers)?)
        }
        None => None,
    };
    news.send(ThreadNews::Serves).map_err(|_| ended())?;
    CoreLoop { thread, ring, listener, shard, log, shared, log_stopping: false }.run()?;
    Ok(())
}

fn root_place(wires: RootWires, root: Option<Root>) -> RootPlace {
    match wires {
        RootWires::There(link) => RootPlace::There(link),
        RootWires::Here { orders, done } => RootPlace::Here(Box::new(RootShell {
            root: root.expect("shard 0 has the root service"),
            effects: RootEffects::default(),
            orders_waiting: orders.iter().map(|_| Default::default()).collect(),
            orders,
            done,
        })),
    }
}

struct BoundRing {
    ring: TcpRing,
    listener: Option<ListenerId>,
    listener_peers: Option<ListenerId>,
    address: Option<SocketAddr>,
}

/// Of a ring that serves no clients.
pub(super) fn ring_options_of_log(peer_connections: u32) -> TcpRingOptions {
    TcpRingOptions {
        entries: 256,
        receive_buffers: 64,
        receive_buffer_bytes: 64 << 10,
        connections_max: 1 + peer_connections,
    }
}

/// Listens where the peers connect.
pub(super) fn listen_peers(
    ring: &mut TcpRing,
    config: &Config,
) -> Result<Option<ListenerId>, NodeError> {
    let Some(address) = config.cluster.listen_peers else { return Ok(None) };
    let (listener, _) = listen_patiently(ring, |ring| ring.listen(address, PEER_CONNECTIONS_MAX))?;
    Ok(Some(listener))
}

fn thread_ring(plan: ThreadPlan, config: &Config) -> Result<BoundRing, NodeError> {
    let network = &config.network;
    let peers = if plan.log && config.cluster.has_peers() { PEER_CONNECTIONS_MAX } else { 0 };
    let options = match plan.shard {
        Some(_) => TcpRingOptions {
            entries: 1024,
            receive_buffers: network.receive_buffers,
            receive_buffer_bytes: network.receive_buffer_bytes,
            connections_max: network.connections_max + peers,
        },
        None => ring_options_of_log(peers),
    };
    let mut ring = TcpRing::new(options)?;
    let listener_peers = if peers > 0 { listen_peers(&mut ring, config)? } else { None };
    let Some(shard) = plan.shard else {
        return Ok(BoundRing { ring, listener: None, listener_peers, address: None });
    };
    let mut address = config.node.listen;
    if address.port() != 0 {
        let port = address.port().checked_add(shard.0);
        address.set_port(port.ok_or(NodeError::Ports { address, shard })?);
    }
    let backlog = network.connections_max.min(4096);
    let (listener, address) =
        listen_patiently(&mut ring, |ring| ring.listen(address, backlog as _))?;
    Ok(BoundRing { ring, listener: Some(listener), listener_peers, address: Some(address) })
}

/// The kernel takes the sockets of a killed process back a moment after the process is gone, so
/// a node that is started again at once may find its own port still taken.
fn listen_patiently(
    ring: &mut TcpRing,
    mut listen: impl FnMut(&mut TcpRing) -> Result<(ListenerId, SocketAddr), RuntimeError>,
) -> Result<(ListenerId, SocketAddr), NodeError> {
    for _ in 0..LISTEN_RETRIES {
        match listen(ring) {
            Err(RuntimeError::AddressInUse { .. }) => thread::sleep(LISTEN_RETRY),
            other => return Ok(other?),
        }
    }
    Ok(listen(ring)?)
}

const _: () = assert!(SESSIONS_MAX > 0 && HANDOVERS_PER_SHARD_MAX > 0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::testing::{SimDisk, small_geometry};

    const ALONE: &str = "[node]\ndirectory_log = '/l'\ndirectory_data = '/d'\n";
    const PEERS: &str = "[cluster]\nid = '00112233445566778899aabbccddeeff'\nkey_file = '/k'\n\
                         listen_peers = '10.0.0.2:7500'\n";

    /// A node that was formatted alone and has become one of several: the superblock says who the
    /// members were when the log began.
    #[test]
    fn a_node_with_peers_is_not_alone_whatever_it_was_formatted_as() {
        let formatted = SimDisk::format(small_geometry()).superblock().expect("whole").superblock;
        let config = |text: &str| Config::parse(Path::new("test.toml"), text).expect("valid");
        let (without, with) = (config(ALONE), config(&format!("{ALONE}{PEERS}")));
        assert!(is_alone(&without, &formatted));
        assert!(!is_alone(&with, &formatted));
        let others = [1, 3].map(NodeId).into_iter().chain([formatted.node]);
        let members = Members::of_voters(others);
        assert!(!is_alone(&without, &Superblock { members, ..formatted }));
        let learners = Members::list([NodeId(3)]);
        let members = Members { learners, ..formatted.members };
        assert!(!is_alone(&without, &Superblock { members, ..formatted }));
    }
}
