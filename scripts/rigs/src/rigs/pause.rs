//! Nodes that stand still and wake up: a former leader must not answer reads from what it knew.
//!
//! A counter in a row of its own is raised, and read from every single node at once, over
//! connections that follow no leader. The counter only rises, so no read may see less than what
//! was acknowledged, or read by anybody, before it began.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::batch::Batch;
use spillway_net::client::outcome::{GetResults, Outcome};
use spillway_net::client::{Client, ClientOptions, Freshness, TableHandle, Transaction};
use spillway_net::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use spillway_net::ids::Lsn;
use spillway_net::limits::{ANSWER_PAYLOAD_BYTES_MAX, fingerprint};
use spillway_net::message::{Hello, OutcomeStatus, Outcomes, decode, write_frame};
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;
use spillway_perf::PerfError;
use spillway_perf::identity::Draw;
use spillway_perf::script::{Field, Script};
use spillway_runtime::clock::monotonic_now;
use spillway_runtime::thread;

use crate::error::RigError;
use crate::load::{self, LoadArguments, Programs, Stage, Tally, refuse, tallied, tally, target};

/// The longest that a reader waits for an answer: longer than any node stands still.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a reader leaves a node alone that serves no reads.
const REST: Duration = Duration::from_millis(2);

/// What can be chosen about pauses.
#[derive(Clone, Debug, clap::Args)]
pub struct PauseArguments {
    /// The longest pause, milliseconds.
    #[arg(long, default_value_t = 2_500)]
    pub pause_ms_max: u64,
    /// The load.
    #[command(flatten)]
    pub load: LoadArguments,
}

/// What everybody knows of the counter.
#[derive(Debug, Default)]
struct Register {
    /// No read that begins now may see less.
    floor: AtomicU64,
    /// No read may see more.
    begun: AtomicU64,
    /// A moment of the log, and what the counter was then at least.
    known: std::sync::Mutex<(u64, u64)>,
    served: AtomicU64,
    served_by_followers: AtomicU64,
    refused: AtomicU64,
    stale: AtomicU64,
    is_over: AtomicBool,
}

impl Register {
    fn raised(&self, count: u64, lsn: u64) {
        self.floor.fetch_max(count, Ordering::SeqCst);
        let mut known = self.known.lock().expect("nobody panics with it");
        *known = (*known).max((lsn, count));
    }

    /// A read has seen `value`; it must be within what it could see.
    fn seen(&self, value: u64, floor: u64, who: &str) {
        self.served.fetch_add(1, Ordering::Relaxed);
        let begun = self.begun.load(Ordering::SeqCst);
        if value < floor || value > begun {
            self.stale.fetch_add(1, Ordering::SeqCst);
            eprintln!("rig pause: {who} answered {value}, not within {floor} and {begun}");
        }
    }
}

/// A connection to one node, which follows nobody.
struct Direct {
    stream: TcpStream,
    request: u64,
}

/// What a node said.
enum Said {
    Value(u64),
    /// It does not serve this read now.
    Refused,
}

impl Direct {
    fn connect(address: SocketAddr) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        let mut direct = Self { stream, request: 0 };
        let hello = Hello { limits_fingerprint: fingerprint(), cluster: 0, session: 0, attempt: 0 };
        let mut frame = Vec::new();
        write_frame(&mut frame, FrameKind::Hello, 0, Lsn(0), &hello);
        match direct.ask(&frame)? {
            (FrameKind::Welcome, _) => Ok(direct),
            (kind, _) => Err(format!("{kind:?} for a hello")),
        }
    }

    fn ask(&mut self, frame: &[u8]) -> Result<(FrameKind, Vec<u8>), String> {
        let text = |error: std::io::Error| error.to_string();
        self.request += 1;
        self.stream.write_all(frame).map_err(text)?;
        let mut head = [0; HEADER_BYTES];
        self.stream.read_exact(&mut head).map_err(text)?;
        let header = FrameHeader::parse(&head, ANSWER_PAYLOAD_BYTES_MAX)
            .map_err(|error| error.to_string())?;
        let mut frame = vec![0; header.frame_bytes()];
        frame[..HEADER_BYTES].copy_from_slice(&head);
        self.stream.read_exact(&mut frame[HEADER_BYTES..]).map_err(text)?;
        header.check(&frame).map_err(|error| error.to_string())?;
        Ok((header.kind, frame.split_off(HEADER_BYTES)))
    }

    fn read(&mut self, table: &TableHandle, freshness: Freshness) -> Result<Said, String> {
        let mut key = Vec::new();
        table.write_key(&[Value::Int8(1)], &mut key).map_err(|error| error.to_string())?;
        let mut batch = Batch::new();
        batch.set_freshness(freshness);
        batch.begin();
        batch.get(table.id(), &key).map_err(|error| error.to_string())?;
        batch.end().map_err(|error| error.to_string())?;
        let mut frame = Vec::new();
        batch.write_frame(&mut frame, self.request, 1, 1);
        let (kind, payload) = self.ask(&frame)?;
        if kind == FrameKind::Refusal {
            return Ok(Said::Refused);
        }
        let outcomes: Outcomes = decode(&payload).map_err(|error| error.to_string())?;
        let [head] = outcomes.outcomes.as_slice() else {
            return Err("one outcome for one transaction".to_owned());
        };
        if OutcomeStatus::from_wire(head.status) != Some(OutcomeStatus::Committed) {
            return Ok(Said::Refused);
        }
        let mut gets = GetResults::new(&outcomes.bytes);
        let found = gets.next().and_then(Result::ok).flatten();
        let (_, row) = found.ok_or("the row is gone")?;
        let values = table.read_row(&key, row).map_err(|error| error.to_string())?;
        match values.as_slice() {
            [_, Value::Int8(count)] => Ok(Said::Value(count.cast_unsigned())),
            other => Err(format!("{other:?} is no counter")),
        }
    }
}

fn client(addresses: &[SocketAddr]) -> Result<Client, String> {
    let mut options = ClientOptions::cluster(addresses.iter().map(SocketAddr::to_string));
    options.connect_ms = 20_000;
    options.request_timeout_ms = 1_000;
    Client::connect_with(options).map_err(|error| error.to_string())
}

/// Raises the counter, one transaction after the other, until it is over.
fn write(addresses: &[SocketAddr], table: &TableHandle, register: &Register) {
    let mut known = None;
    while !register.is_over.load(Ordering::Acquire) {
        let Some(client) = &mut known else {
            known = client(addresses).ok();
            continue;
        };
        let mut raise = Transaction::new();
        let one = AddArgument::Int(AddBounded { delta: 1, min: None, max: None });
        raise.add(table, &[Value::Int8(1)], "count", one).expect("fits");
        raise.get(table, &[Value::Int8(1)]).expect("fits");
        register.begun.fetch_add(1, Ordering::SeqCst);
        match client.execute(&mut raise).map(|outcome| count_of(table, &outcome)) {
            Ok(Some(count)) => register.raised(count, client.lsn().0),
            // Nobody knows whether it happened: it may, and need not.
            Ok(None) | Err(_) => known = None,
        }
        thread::sleep(REST);
    }
}

/// What the counter is after it was raised; none if it was not.
fn count_of(table: &TableHandle, outcome: &Outcome) -> Option<u64> {
    let [Some(found)] = outcome.gets.as_slice() else { return None };
    let mut key = Vec::new();
    table.write_key(&[Value::Int8(1)], &mut key).ok()?;
    match table.read_row(&key, &found.row).ok()?.as_slice() {
        [_, Value::Int8(count)] if outcome.is_committed() => Some(count.cast_unsigned()),
        _ => None,
    }
}

/// Reads the counter from one node until it is over.
fn read(node: usize, address: SocketAddr, table: &TableHandle, register: &Register) {
    let mut connection = None;
    let mut is_strong = true;
    while !register.is_over.load(Ordering::Acquire) {
        let Some(direct) = &mut connection else {
            connection = Direct::connect(address).ok();
            thread::sleep(REST);
            continue;
        };
        is_strong = !is_strong;
        let (freshness, floor) = if is_strong {
            (Freshness::Strong, register.floor.load(Ordering::SeqCst))
        } else {
            let (lsn, count) = *register.known.lock().expect("nobody panics with it");
            (Freshness::AtLsn(Lsn(lsn)), count)
        };
        match direct.read(table, freshness) {
            Ok(Said::Value(value)) => {
                let who = format!("node {}, asked for {freshness:?},", node + 1);
                register.seen(value, floor, &who);
                if is_strong {
                    register.floor.fetch_max(value, Ordering::SeqCst);
                } else {
                    register.served_by_followers.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(Said::Refused) => {
                register.refused.fetch_add(1, Ordering::Relaxed);
                thread::sleep(REST);
            }
            Err(_) => connection = None,
        }
    }
}

/// Writer and readers; they end with it.
struct Watchers {
    register: Arc<Register>,
    threads: Vec<JoinHandle<()>>,
}

impl Watchers {
    fn start(addresses: Vec<SocketAddr>, register: &Arc<Register>) -> Result<Self, RigError> {
        let refused = |text| RigError::Options(format!("the counter: {text}"));
        let mut first = client(&addresses).map_err(refused)?;
        let text = "registers(id int8, count int8, primary key (id))";
        let definition = TableDefinition::parse(text).expect("a valid definition");
        let made = |error: spillway_net::client::ClientError| refused(error.to_string());
        let table = first.create_table(&definition).map_err(made)?;
        let mut insert = Transaction::new();
        insert.insert(&table, &[Value::Int8(1), Value::Int8(0)]).expect("fits");
        if !first.execute(&mut insert).map_err(made)?.is_committed() {
            return Err(refused("it could not be made".to_owned()));
        }
        let mut watchers = Self { register: Arc::clone(register), threads: Vec::new() };
        for (node, address) in addresses.iter().copied().enumerate() {
            let (table, register) = (table.clone(), Arc::clone(register));
            let run = move || read(node, address, &table, &register);
            watchers.threads.push(thread::spawn("reader", None, run)?);
        }
        let register = Arc::clone(register);
        let run = move || write(&addresses, &table, &register);
        watchers.threads.push(thread::spawn("writer", None, run)?);
        Ok(watchers)
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.register.is_over.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    leaders: u32,
    followers: u32,
    moved: u32,
}

/// One burst of pauses of one node.
fn round(
    field: &mut Field<'_>,
    draw: &mut Draw,
    pause_ms_max: u64,
    seen: &Tally<Seen>,
) -> Result<(), PerfError> {
    field.sleep(Duration::from_millis(draw.below(200)))?;
    let is_leader = draw.below(3) > 0;
    let node = target(field, draw, is_leader)?;
    let kind = if is_leader { "leader paused" } else { "follower paused" };
    field.note(kind, &[node], monotonic_now());
    for _ in 0..1 + draw.below(3) {
        // Shorter and longer than a lease and an election.
        let pause = Duration::from_millis(1 + draw.below(pause_ms_max));
        field.cluster.pause(node)?;
        let slept = field.sleep(pause);
        field.cluster.resume(node)?;
        slept?;
        field.sleep(Duration::from_millis(draw.below(30)))?;
    }
    let moved = field.cluster.leader_wait()? != node;
    field.progress_wait()?;
    tally(seen, |seen| {
        seen.leaders += u32::from(is_leader);
        seen.followers += u32::from(!is_leader);
        seen.moved += u32::from(is_leader && moved);
    });
    Ok(())
}

/// Runs the rig.
///
/// # Errors
/// If it could not be run to its end.
pub fn run(arguments: &PauseArguments, programs: &Programs) -> Result<load::Outcome, RigError> {
    if arguments.load.nodes == Some(1) || arguments.load.shards != 1 {
        let text = "--nodes 3 or 5, and --shards 1: readers ask shard 0 of every node";
        return Err(RigError::Options(text.to_owned()));
    }
    let stage = Stage::new("pause", &arguments.load, programs, (3, 30))?;
    let seen: Tally<Seen> = Arc::default();
    let register: Arc<Register> = Arc::default();
    let (tallies, shared) = (Arc::clone(&seen), Arc::clone(&register));
    let (times, seed, pause_ms_max) = (stage.times, stage.seed, arguments.pause_ms_max.max(1));
    let script: Script = Box::new(move |field| {
        let mut draw = Draw::new(seed, 0x9A5E);
        field.progress_wait()?;
        let watchers = Watchers::start(field.cluster.clients(), &shared).map_err(refuse)?;
        for at in 0..times {
            round(field, &mut draw, pause_ms_max, &tallies)?;
            if (at + 1) % 10 == 0 {
                field.say(format!("{} of {times}", at + 1));
            }
        }
        drop(watchers);
        field.caught_up_wait()
    });
    let seconds = f64::from(stage.times) * (2.0 * pause_ms_max as f64 / 1000.0 + 2.0);
    // The counter's own transactions need as much log as the load's, and more.
    let report = stage.play(3.0 * seconds, script)?;
    let seen = tallied(&seen);
    let number = |of: &AtomicU64| of.load(Ordering::SeqCst);
    let stale = number(&register.stale);
    let what = format!(
        "{} leaders and {} followers paused, {} leaders replaced meanwhile; {} reads served ({} \
         at an LSN), {} refused, {stale} stale; the counter rose to {}",
        seen.leaders,
        seen.followers,
        seen.moved,
        number(&register.served),
        number(&register.served_by_followers),
        number(&register.refused),
        number(&register.floor)
    );
    let is_good = stale == 0 && number(&register.served) > 0;
    Ok(stage.outcome(report, is_good, &what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_reads_are_counted() {
        let register = Register::default();
        register.begun.store(9, Ordering::SeqCst);
        register.raised(5, 70);
        register.raised(4, 60);
        assert_eq!(*register.known.lock().expect("nobody panics with it"), (70, 5));
        let floor = register.floor.load(Ordering::SeqCst);
        for (value, stale) in [(5, 0), (9, 0), (4, 1), (10, 2)] {
            register.seen(value, floor, "somebody");
            assert_eq!(register.stale.load(Ordering::SeqCst), stale, "{value}");
        }
    }
}
