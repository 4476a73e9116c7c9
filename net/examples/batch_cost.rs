//! What a transfer costs the client, in nanoseconds: two additions with a bound and one insert,
//! 1,000 to a frame, from random account numbers to the bytes handed to the socket.
//!
//! `cargo run --release -p spillway-net --example batch_cost`

use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::core::{ClientCore, ClientEffects, ClientInput, CoreOptions};
use spillway_net::client::{Batch, FrameAnswer, NodeBook, Router, TableHandle};
use spillway_net::frame::FrameKind;
use spillway_net::ids::{Lsn, TableId};
use spillway_net::key::KeyWriter;
use spillway_net::message::{self, OutcomeHead, Outcomes, Welcome};
use spillway_net::row::RowWriter;
use spillway_net::schema::{ColumnType, TableDefinition};
use spillway_net::value::ValueRef;
use spillway_runtime::clock::thread_cpu_nanos;

const FRAME: usize = 1_000;
const FRAMES: usize = 2_000;

/// Stands for the socket.
#[derive(Default)]
struct Sink {
    bytes: Vec<u8>,
    ended: usize,
}

impl ClientEffects for Sink {
    fn connect(&mut self, _address: &str) {}

    fn send(&mut self, frame: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(frame);
    }

    fn close(&mut self) {}

    fn answer(&mut self, _answer: FrameAnswer<'_>) {
        self.ended += 1;
    }
}

fn table(id: u16, text: &str, router: Router) -> TableHandle {
    let definition = TableDefinition::parse(text).expect("it parses");
    TableHandle::new(TableId(id), definition, router).expect("it is valid")
}

/// One transfer between two accounts; `payload` fills the transfer's row.
fn transfer(
    batch: &mut Batch,
    accounts: &TableHandle,
    transfers: &TableHandle,
    ids: [i64; 3],
    payload: &[u8],
) {
    let key = |table: &TableHandle, id: i64, out: &mut Vec<u8>| {
        let mut writer = KeyWriter::new(table.layout(), out);
        writer.push_int8(id & 255).and_then(|w| w.push_int8(id)).expect("two numbers are a key");
        writer.finish().expect("two numbers are a key");
    };
    batch.begin();
    for (id, delta, min) in [(ids[0], -1, Some(0)), (ids[1], 1, None)] {
        let argument = AddArgument::Int(AddBounded { delta, min, max: None });
        let added = batch.add_with(
            accounts.id(),
            2,
            |out| key(accounts, id, out),
            |out| argument.encode(ColumnType::Int8, out).expect("a number suits a number"),
        );
        added.expect("the frame has room");
    }
    let row = |out: &mut Vec<u8>| {
        let mut writer = RowWriter::new(transfers.layout(), out);
        writer.push(ValueRef::Bytea(payload)).expect("bytes are a row");
        writer.finish().expect("bytes are a row");
    };
    let inserted = batch.insert_with(transfers.id(), |out| key(transfers, ids[2], out), row);
    inserted.expect("the frame has room");
    batch.end().expect("it has operations");
}

/// A core whose connection stands.
fn ready_core(welcome: &Welcome) -> (ClientCore, Sink) {
    let mut core = ClientCore::new(CoreOptions {
        session: 1,
        frames_in_flight_max: 16,
        ..CoreOptions::new(NodeBook::new(["localhost:1"]))
    });
    let mut sink = Sink::default();
    core.step(0, ClientInput::Start, &mut sink);
    core.step(0, ClientInput::Connected, &mut sink);
    let mut greeting = Vec::new();
    message::write_frame(&mut greeting, FrameKind::Welcome, 0, Lsn(0), welcome);
    core.step(0, ClientInput::Received(&greeting), &mut sink);
    (core, sink)
}

fn main() {
    let welcome = Welcome {
        cluster: 1,
        node: 1,
        epoch: 1,
        leader: 1,
        partitions: 256,
        shard: 0,
        shard_ports: vec![1],
        ..Welcome::default()
    };
    let router = Router::new(&welcome).expect("possible");
    let key = "primary key (branch, id), partition key (branch)";
    let accounts = table(1, &format!("a(branch int8, id int8, balance int8, {key})"), router);
    let transfers = table(2, &format!("t(branch int8, id int8, note bytea, {key})"), router);
    let (mut core, mut sink) = ready_core(&welcome);
    let outcome = OutcomeHead { status: 0, operation: 0, data_length: 0 };
    let outcomes = Outcomes { outcomes: vec![outcome; FRAME], ..Outcomes::default() };
    let mut batch = Batch::new();
    let (mut build, mut submit, mut answer, mut bytes) = (0, 0, 0, 0);
    let mut random = 1u64;
    let payload = [7; 80];
    for frame in 0..FRAMES {
        let start = thread_cpu_nanos();
        for _ in 0..FRAME {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let ids = [random >> 44, (random >> 24) & 0xF_FFFF, random >> 1].map(|id| id as i64);
            transfer(&mut batch, &accounts, &transfers, ids, &payload);
        }
        let built = thread_cpu_nanos();
        core.submit(0, &mut batch, &mut sink).expect("nothing is in flight");
        let submitted = thread_cpu_nanos();
        bytes += sink.bytes.len();
        let mut received = Vec::new();
        message::write_frame(
            &mut received,
            FrameKind::Outcomes,
            frame as u64 + 1,
            Lsn(1),
            &outcomes,
        );
        let received_at = thread_cpu_nanos();
        core.step(0, ClientInput::Received(&received), &mut sink);
        build += built - start;
        submit += submitted - built;
        answer += thread_cpu_nanos() - received_at;
    }
    assert_eq!(sink.ended, FRAMES, "every frame was answered");
    let count = (FRAMES * FRAME) as u64;
    let each = |nanos: u64| nanos as f64 / count as f64;
    println!("bytes per transfer: {}", bytes / (FRAMES * FRAME));
    println!("build the batch:    {:.1} ns", each(build));
    println!("frame and send:     {:.1} ns", each(submit));
    println!("read the answer:    {:.1} ns", each(answer));
}
