//! A node that keeps a plain model in memory and every request in a file, and that can be told
//! to lie. It is slow and simple, but it is a real process that is really killed.
//!
//! Nodes of a cluster share one file. Whoever holds the lock beside it leads, and the kernel gives
//! the lock to the next one when its holder is killed.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spillway_net::frame::{Assembled, FrameAssembler, FrameHeader, FrameKind, HEADER_BYTES};
use spillway_net::ids::Lsn;
use spillway_net::limits::{FRAME_PAYLOAD_BYTES_MAX, PARTITIONS_DEFAULT};
use spillway_net::message::{
    ClusterReport, Done, Hello, Refusal, RefusalCode, RowHead, Scan, ScanPage, SessionOpened,
    StatusReport, StatusValue, Submit, TableCreate, TableCreated, Welcome, decode, write_frame,
};
use spillway_runtime::{file, thread};

use crate::store::Store;

/// Kinds of records in the file.
const RECORD_SUBMIT: u8 = 1;
const RECORD_TABLE: u8 = 2;
const RECORD_SESSION: u8 = 3;
const RECORD_TERM: u8 = 4;

struct FakeNode {
    store: Store,
    sessions: u64,
    file: File,
    fault: String,
    records_replayed: u64,
    submits: u64,
    port: u16,
    id: u16,
    /// The file with all requests.
    path: PathBuf,
    is_cluster: bool,
    /// The lock that makes it the leader of a cluster.
    lead: Option<File>,
    /// How many nodes have led before, and whoever leads.
    term: u64,
}

/// Runs `format` or `start` as the real binary would.
pub fn run(arguments: &[String]) {
    assert_eq!(arguments[1], "--config");
    let text = file::read_to_string(Path::new(&arguments[2])).expect("a configuration");
    let config: toml::Table = text.parse().expect("TOML");
    let directory = PathBuf::from(config["node"]["directory_log"].as_str().expect("text"));
    let is_cluster = config.contains_key("cluster");
    let root = if is_cluster { directory.join("../..") } else { directory.clone() };
    let path = root.join("requests");
    // The test leaves a note above the burst's own directory.
    let note = if is_cluster { root.join("../fault") } else { directory.join("../../fault") };
    let fault = file::read_to_string(&note).unwrap_or_default();
    if arguments[0] == "format" {
        if fault == "format" {
            eprintln!("the log directory is on fire");
            std::process::exit(3);
        }
        file::append(&path).expect("a new file");
        return;
    }
    let listen = config["node"]["listen"].as_str().expect("text").to_owned();
    let id = config["node"]["id"].as_integer().expect("a number") as u16;
    start(&path, &listen, fault, is_cluster.then_some(id));
}

fn start(path: &Path, listen: &str, fault: String, id: Option<u16>) {
    // SAFETY: the handler calls nothing but `_exit`, which is allowed in a handler.
    unsafe { libc::signal(libc::SIGTERM, leave as *const () as libc::sighandler_t) };
    let listener = TcpListener::bind(listen).expect("the port is free");
    let port = listener.local_addr().expect("is bound").port();
    let mut node = FakeNode {
        store: Store::default(),
        sessions: 0,
        file: file::append(path).expect("was formatted"),
        fault,
        records_replayed: 0,
        submits: 0,
        port,
        id: id.unwrap_or(1),
        path: path.to_owned(),
        is_cluster: id.is_some(),
        lead: None,
        term: 0,
    };
    if !node.is_cluster {
        let bytes = file::read(path).expect("was formatted");
        node.replay(&bytes);
    }
    println!("ready shard=0 address=127.0.0.1:{port}");
    println!("ready");
    let node = Arc::new(Mutex::new(node));
    if id.is_some() {
        let candidate = node.clone();
        thread::spawn("candidate", None, move || run_for_leader(&candidate)).expect("a thread");
    }
    for stream in listener.incoming() {
        let (stream, node) = (stream.expect("a connection"), node.clone());
        thread::spawn("connection", None, move || serve(stream, &node)).expect("a thread");
    }
}

/// Leads whenever the lock can be had.
fn run_for_leader(node: &Mutex<FakeNode>) {
    let path = node.lock().expect("nobody panics").path.clone();
    loop {
        let lock = file::append(&path.with_extension("lock")).expect("a file");
        // SAFETY: the call has no pointers, and the descriptor is open.
        let locked = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) };
        assert_eq!(locked, 0, "a local file can be locked");
        let mut node = node.lock().expect("nobody panics");
        node.become_leader(lock);
        drop(node);
        while is_leading(&path) {
            thread::sleep(Duration::from_millis(5));
        }
        // Gives the others a chance.
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether this process is the one that leads.
fn is_leading(path: &Path) -> bool {
    let text = file::read_to_string(&path.with_extension("leader")).unwrap_or_default();
    text.trim() == std::process::id().to_string()
}

extern "C" fn leave(_signal: libc::c_int) {
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(0) };
}

impl FakeNode {
    /// Takes over what the leader before has left.
    fn become_leader(&mut self, lock: File) {
        let bytes = file::read(&self.path).expect("it is there");
        (self.store, self.sessions, self.submits) = (Store::default(), 0, 0);
        let whole = self.replay(&bytes);
        // Whoever led before may have been killed in the middle of a record.
        self.file.set_len(whole as u64).expect("the file can be cut");
        self.record(RECORD_TERM, 0, &[]);
        self.term += 1;
        let name = self.path.with_extension("leader");
        let process = std::process::id().to_string();
        file::write_atomic(&name, process.as_bytes()).expect("a note");
        self.lead = Some(lock);
    }

    /// Leaves the lead to another node.
    fn step_down(&mut self) {
        let name = self.path.with_extension("leader");
        file::write_atomic(&name, b"nobody").expect("a note");
        self.lead = None;
    }

    fn report(&self) -> ClusterReport {
        let applied = file::bytes_of(&self.path).expect("it is there");
        ClusterReport {
            node: self.id,
            role: if self.lead.is_some() { "leader" } else { "follower" }.to_owned(),
            term: self.term,
            vdl: applied,
            applied,
            ..ClusterReport::default()
        }
    }

    fn record(&mut self, kind: u8, session: u64, payload: &[u8]) {
        let mut record = vec![kind];
        record.extend_from_slice(&session.to_le_bytes());
        record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        record.extend_from_slice(payload);
        self.file.write_all(&record).expect("the file takes it");
    }

    /// Does again what the file says, as far as the fault allows. Returns how much of it is whole
    /// records.
    fn replay(&mut self, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        let mut records = Vec::new();
        while let Some((head, rest)) = bytes.split_at_checked(13) {
            let session = u64::from_le_bytes(head[1..9].try_into().expect("8 bytes"));
            let length = u32::from_le_bytes(head[9..13].try_into().expect("4 bytes")) as usize;
            let Some((payload, rest)) = rest.split_at_checked(length) else { break };
            records.push((head[0], session, payload));
            bytes = rest;
        }
        // The first frame that is not its session's first belongs to the burst, not to the
        // loading of rows, and was answered long before the kill.
        let is_lost = |(kind, _, payload): &(u8, u64, &[u8])| {
            *kind == RECORD_SUBMIT
                && decode::<Submit>(payload).expect("was decoded before").first_number > 1
        };
        let lost = if self.fault == "lose" { records.iter().position(is_lost) } else { None };
        self.term = 0;
        for (at, (kind, session, payload)) in records.iter().enumerate() {
            match *kind {
                _ if Some(at) == lost => {}
                RECORD_SUBMIT => {
                    let submit: Submit = decode(payload).expect("was decoded before");
                    self.store.execute(*session, &submit);
                }
                RECORD_TABLE => {
                    let create: TableCreate = decode(payload).expect("was decoded before");
                    self.store.create_table(&create.definition);
                }
                RECORD_SESSION => self.sessions = *session,
                RECORD_TERM => self.term += 1,
                other => panic!("record kind {other}"),
            }
        }
        // A node that has replayed anything is one after a kill.
        self.records_replayed = records.len() as u64;
        if !records.is_empty() {
            self.spoil();
        }
        all - bytes.len()
    }

    /// Lies about what it kept.
    fn spoil(&mut self) {
        match self.fault.as_str() {
            "forget" => self.store.committed.clear(),
            "unbalance" => {
                let rows = &mut self.store.tables[0].rows;
                rows.values_mut().next().expect("accounts")[0] ^= 1;
            }
            "foreign" => {
                let rows = &mut self.store.tables.last_mut().expect("tables").rows;
                let (key, row) = rows.first_key_value().expect("rows");
                let (mut key, row) = (key.clone(), row.clone());
                *key.last_mut().expect("a key") ^= 1;
                rows.insert(key, row);
            }
            _ => {}
        }
    }

    fn answer(&mut self, header: &FrameHeader, payload: &[u8], session: &mut u64) -> Vec<u8> {
        let mut out = Vec::new();
        let request = header.request;
        let is_for_leader =
            !matches!(header.kind, FrameKind::Hello | FrameKind::Status | FrameKind::ClusterStatus);
        if self.is_cluster && self.lead.is_none() && is_for_leader {
            let refusal = Refusal::new(RefusalCode::NotLeader, "somebody else".to_owned());
            write_frame(&mut out, FrameKind::Refusal, request, Lsn(0), &refusal);
            return out;
        }
        match header.kind {
            FrameKind::ClusterStatus => {
                write_frame(&mut out, FrameKind::ClusterReport, request, Lsn(0), &self.report());
            }
            FrameKind::ClusterCommand => {
                self.step_down();
                write_frame(&mut out, FrameKind::Done, request, Lsn(0), &Done {});
            }
            FrameKind::Hello => {
                *session = decode::<Hello>(payload).expect("a hello").session;
                let welcome = Welcome {
                    cluster: 7,
                    node: self.id,
                    epoch: self.term.max(1),
                    leader: if self.lead.is_some() || !self.is_cluster { self.id } else { 0 },
                    partitions: PARTITIONS_DEFAULT as u32,
                    shard: 0,
                    shard_ports: vec![self.port],
                    ..Welcome::default()
                };
                write_frame(&mut out, FrameKind::Welcome, request, Lsn(0), &welcome);
            }
            FrameKind::SessionOpen => {
                self.sessions += 1;
                self.record(RECORD_SESSION, self.sessions, &[]);
                let opened = SessionOpened { session: self.sessions };
                write_frame(&mut out, FrameKind::SessionOpened, request, Lsn(1), &opened);
            }
            FrameKind::TableCreate => {
                self.record(RECORD_TABLE, 0, payload);
                let create: TableCreate = decode(payload).expect("a table");
                let created = TableCreated { table: self.store.create_table(&create.definition) };
                write_frame(&mut out, FrameKind::TableCreated, request, Lsn(1), &created);
            }
            FrameKind::Submit => {
                self.submits += 1;
                if self.fault == "die" && self.submits > 50 {
                    eprintln!("a cosmic ray");
                    std::process::exit(4);
                }
                self.record(RECORD_SUBMIT, *session, payload);
                let submit: Submit = decode(payload).expect("a submit");
                let outcomes = self.store.execute(*session, &submit);
                let is_mute = matches!(self.fault.as_str(), "mute" | "forget");
                if is_mute && self.records_replayed == 0 && self.submits > 20 {
                    return out;
                }
                write_frame(&mut out, FrameKind::Outcomes, request, Lsn(1), &outcomes);
            }
            FrameKind::Scan => {
                let page = self.scan(&decode(payload).expect("a scan"));
                write_frame(&mut out, FrameKind::ScanPage, request, Lsn(1), &page);
            }
            FrameKind::Status => {
                let value = |name: &str, value| StatusValue { name: name.to_owned(), value };
                let values = vec![
                    value("log_bytes", self.submits * 4096),
                    value("log_batches", self.submits),
                    value("replay_records", self.records_replayed),
                    value("replay_ns", 1_000_000),
                    value("applied_lsn", file::bytes_of(&self.path).expect("it is there")),
                    value("digest_all", self.digest()),
                ];
                let report = StatusReport { values };
                write_frame(&mut out, FrameKind::StatusReport, request, Lsn(0), &report);
            }
            FrameKind::SessionClose => {
                write_frame(&mut out, FrameKind::Done, request, Lsn(0), &Done {});
            }
            other => panic!("{other:?} is no request of the generator"),
        }
        out
    }

    /// Of what all nodes have; with a fault, of what only this one has.
    fn digest(&self) -> u64 {
        let bytes = file::read(&self.path).expect("it is there");
        let digest = bytes
            .iter()
            .fold(7, |digest: u64, byte| digest.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        digest ^ u64::from(self.fault == "diverge" && self.id == 3)
    }

    fn scan(&self, scan: &Scan) -> ScanPage {
        let mut page = ScanPage::default();
        let rows = &self.store.tables[usize::from(scan.table) - 1].rows;
        // Small pages, so that their seams are tested.
        for (key, row) in rows.range(scan.start.clone()..) {
            if page.rows.len() == 100 {
                page.more = true;
                page.next.clone_from(key);
                break;
            }
            page.rows.push(RowHead {
                key_length: key.len() as u16,
                row_length: row.len() as u32,
                version: 1,
            });
            page.bytes.extend_from_slice(key);
            page.bytes.extend_from_slice(row);
        }
        page
    }
}

fn serve(mut stream: TcpStream, node: &Mutex<FakeNode>) {
    stream.set_nodelay(true).expect("a socket");
    let mut assembler = FrameAssembler::default();
    let (mut spare, mut session) = (Vec::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let received = match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(received) => received,
        };
        let mut rest = &buffer[..received];
        let mut answers = Vec::new();
        loop {
            let step = assembler.next(&mut rest, FRAME_PAYLOAD_BYTES_MAX, &mut spare);
            let (header, frame) = match step.expect("the generator sends good frames") {
                Assembled::InPlace(header, frame) => (header, frame.to_vec()),
                Assembled::Owned(header, frame) => (header, frame),
                Assembled::Incomplete => break,
            };
            let mut node = node.lock().expect("nobody panics");
            answers.extend(node.answer(&header, &frame[HEADER_BYTES..], &mut session));
        }
        if stream.write_all(&answers).is_err() {
            return;
        }
    }
}
