//! Clients that break the rules: each gets a typed answer or a closed connection, the node's
//! memory stays bounded, and a bystander is served throughout.

#![expect(clippy::disallowed_methods, reason = "tests prepare and damage files on their own")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::bystander::{Bystander, impatient, table};
use common::raw::{Answer, Raw, RawOperation, frame_of, frame_with, hello_frame, submit_of};
use common::{SMALL, Settings, TestNode};
use spillway_net::client::TableHandle;
use spillway_net::frame::{FrameKind, HEADER_BYTES};
use spillway_net::limits::{FRAME_PAYLOAD_BYTES_MAX, KEY_BYTES_MAX, ROW_BYTES_MAX};
use spillway_net::message::{
    HELLO_BYTES_MAX, Hello, OperationKind, OutcomeStatus, RefusalCode, Scan, SessionOpen, Status,
    TableCreate, TableDrop, TableList, TransactionHead,
};
use spillway_net::schema::{ColumnDefinition, TableDefinition};
use spillway_net::value::Value;
use spillway_perf::probe;

/// KiB that a small node may hold at its peak: its memory budget, its receive and log buffers,
/// and 192 MiB for everything that clients can make it hold.
const PEAK_KIB_MAX: u64 = (256 + 64 + 192) << 10;

fn start(name: &str, network: &str) -> (TestNode, Bystander) {
    let node = TestNode::start_settings(name, Settings { network, ..SMALL });
    let bystander = Bystander::start(node.address());
    (node, bystander)
}

/// The bystander and the node must have come through.
fn finish(mut node: TestNode, bystander: Bystander) {
    bystander.finish();
    assert!(node.is_running());
    let peak = node.memory_kib("VmHWM");
    assert!(peak <= PEAK_KIB_MAX, "the node held {} MiB at its peak", peak >> 10);
    assert!(node.stop(), "a node that was ill-treated stops in order: {}", node.messages());
}

fn with_length(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame[16..20].copy_from_slice(&(length as u32).to_le_bytes());
    frame
}

fn with_byte(mut frame: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    frame[at] = value;
    frame
}

fn expect_refused(raw: &mut Raw, expected: RefusalCode, part: &str) {
    let (code, message) = raw.end().expect("a refusal before the end");
    assert_eq!(code, expected, "{message}");
    assert!(message.contains(part), "{message:?} should say {part:?}");
}

#[test]
fn bad_headers_are_refused_and_the_connection_closed() {
    let (node, bystander) = start("headers", "");
    let cases = |good: &[u8], limit: usize| {
        let good = good.to_vec();
        [
            (with_byte(good.clone(), 8, b'X'), "magic"),
            (with_byte(good.clone(), 12, 9), "protocol version 9"),
            (with_byte(good.clone(), 14, 200), "unknown frame kind 200"),
            (with_byte(good.clone(), 20, 1), "reserved"),
            (with_byte(good.clone(), 0, !good[0]), "checksum"),
            (with_byte(good.clone(), HEADER_BYTES, !good[HEADER_BYTES]), "checksum"),
            (with_length(good.clone(), limit + 1), "exceeds the limit"),
            (with_length(good, u32::MAX as usize), "exceeds the limit"),
        ]
    };
    for (bytes, part) in cases(&hello_frame(0), HELLO_BYTES_MAX) {
        let mut raw = Raw::connect(node.address());
        raw.send(&bytes);
        expect_refused(&mut raw, RefusalCode::Malformed, part);
        bystander.served_anew();
    }
    for (bytes, part) in cases(&scan_frame(1, 1, 10), FRAME_PAYLOAD_BYTES_MAX) {
        let mut raw = Raw::greeted(node.address(), 0);
        raw.send(&bytes);
        expect_refused(&mut raw, RefusalCode::Malformed, part);
        bystander.served_anew();
    }
    finish(node, bystander);
}

#[test]
fn a_hello_has_no_right_to_more_than_a_kibibyte() {
    let (node, bystander) = start("hello", "");
    // Well-formed, with a right checksum, and one byte too long.
    let mut raw = Raw::connect(node.address());
    raw.send(&frame_with(FrameKind::Hello, 1, &[0; HELLO_BYTES_MAX + 1]));
    expect_refused(&mut raw, RefusalCode::Malformed, "exceeds the limit of 1024");
    let mut raw = Raw::connect(node.address());
    raw.send(&frame_with(FrameKind::Hello, 1, &[0xff; 10]));
    expect_refused(&mut raw, RefusalCode::Malformed, "");
    // Any bytes of sufficient length are a hello, but not one of this build.
    let mut raw = Raw::connect(node.address());
    raw.send(&frame_with(FrameKind::Hello, 1, &[0xff; HELLO_BYTES_MAX]));
    expect_refused(&mut raw, RefusalCode::Mismatch, "");
    let mut raw = Raw::connect(node.address());
    let other = Hello { limits_fingerprint: 1, cluster: 0, session: 0, attempt: 0 };
    raw.send(&frame_of(FrameKind::Hello, 1, &other));
    expect_refused(&mut raw, RefusalCode::Mismatch, "other limits");
    let mut raw = Raw::connect(node.address());
    raw.send(&hello_frame(1 << 40));
    expect_refused(&mut raw, RefusalCode::SessionUnknown, "is not open");
    finish(node, bystander);
}

#[test]
fn archives_that_do_not_validate_are_refused() {
    let (node, bystander) = start("archives", "");
    let kinds = [
        FrameKind::SessionOpen,
        FrameKind::SessionClose,
        FrameKind::Submit,
        FrameKind::Scan,
        FrameKind::TableCreate,
        FrameKind::TableDrop,
    ];
    // Too short for anything, and offsets and lengths that point out of the archive.
    let junk: [&[u8]; 4] = [&[], &[0xff; 7], &[0xbf; 64], &[0xbf; 5000]];
    for kind in kinds {
        // A number has no bytes that it could not have.
        let count = if kind == FrameKind::SessionClose { 2 } else { junk.len() };
        for payload in &junk[..count] {
            let (mut raw, _) = Raw::with_session(node.address());
            raw.send(&frame_with(kind, 7, payload));
            let answer = raw.answer();
            assert_eq!(answer.request, 7);
            assert_eq!(answer.refusal().0, RefusalCode::Malformed, "{kind:?}");
            assert!(raw.end().is_none());
        }
        bystander.served_anew();
    }
    finish(node, bystander);
}

#[test]
fn frames_in_the_wrong_place_are_refused() {
    let (node, bystander) = start("order", "");
    let open = SessionOpen { client_name: String::new() };
    let requests = [
        frame_of(FrameKind::SessionOpen, 5, &open),
        frame_of(FrameKind::Submit, 5, &submit_of(1, &[])),
        scan_frame(5, 1, 1),
        frame_of(FrameKind::TableList, 5, &TableList {}),
        frame_of(FrameKind::TableDrop, 5, &TableDrop { name: "bystander".to_owned() }),
        frame_of(FrameKind::Status, 5, &Status {}),
    ];
    for request in requests {
        let mut raw = Raw::connect(node.address());
        raw.send(&request);
        expect_refused(&mut raw, RefusalCode::OutOfOrder, "");
    }
    let answers = [
        FrameKind::Welcome,
        FrameKind::SessionOpened,
        FrameKind::Outcomes,
        FrameKind::ScanPage,
        FrameKind::TableCreated,
        FrameKind::Done,
        FrameKind::TableListing,
        FrameKind::StatusReport,
        FrameKind::Refusal,
    ];
    for kind in answers {
        for greeted in [false, true] {
            let mut raw = match greeted {
                true => Raw::greeted(node.address(), 0),
                false => Raw::connect(node.address()),
            };
            raw.send(&frame_with(kind, 5, &[0; 16]));
            let part = if greeted { "is not a request" } else { "must be a hello" };
            expect_refused(&mut raw, RefusalCode::OutOfOrder, part);
        }
    }
    let mut raw = Raw::greeted(node.address(), 0);
    raw.send(&hello_frame(0));
    expect_refused(&mut raw, RefusalCode::OutOfOrder, "second hello");
    let mut raw = Raw::greeted(node.address(), 0);
    assert_eq!(raw.submit(1, &[]).status(), OutcomeStatus::Malformed, "no operations");
    finish(node, bystander);
}

#[test]
fn silence_before_the_hello_ends_the_connection() {
    let (node, bystander) = start("silence", "hello_timeout_ms = 200");
    let hello = hello_frame(0);
    let mut silent: Vec<Raw> = [0, 1, HEADER_BYTES / 2, HEADER_BYTES, hello.len() - 1]
        .into_iter()
        .map(|sent| {
            let mut raw = Raw::connect(node.address());
            raw.send(&hello[..sent]);
            raw
        })
        .collect();
    let mut patient = Raw::greeted(node.address(), 0);
    for raw in &mut silent {
        assert!(raw.end().is_none(), "closed without an answer");
    }
    patient.send(&frame_of(FrameKind::Status, 9, &Status {}));
    assert_eq!(patient.answer().request, 9, "who said hello may be silent");
    finish(node, bystander);
}

/// Lets this process and the node open `wanted` files, as far as the machine allows; returns how
/// many connections that leaves.
fn connections_allowed(wanted: u64) -> u64 {
    let own = std::process::id().to_string();
    let limit = format!("--nofile={}:", wanted + 200);
    // Without the tool, or above the hard limit, what is allowed now must do.
    drop(Command::new("prlimit").args(["--pid", &own, &limit]).output());
    let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let soft = line.split_whitespace().nth(3).and_then(|soft| soft.parse().ok());
    wanted.min(soft.unwrap_or(u64::MAX).saturating_sub(200))
}

#[test]
fn thousands_of_half_open_connections_disturb_nobody() {
    let count = connections_allowed(2000);
    assert!(count >= 500, "the limit on open files leaves {count} connections: ulimit -n 4096");
    println!("{count} connections");
    // Started after the limit was raised: it inherits it.
    let (node, bystander) = start("halfopen", "hello_timeout_ms = 600000");
    let hello = hello_frame(0);
    let mut raws = Vec::new();
    for at in 0..count as usize {
        let mut raw = Raw::connect(node.address());
        raw.send(&hello[..at % hello.len()]);
        raws.push(raw);
    }
    bystander.served_anew();
    // All of them are held at once: each can still finish its hello.
    let mut client = impatient(node.address());
    let status = client.status().expect("served");
    let connections = status[0].iter().find(|value| value.name == "shard_connections");
    assert!(connections.expect("a number of every shard").value >= count);
    for (at, raw) in raws.iter_mut().enumerate() {
        raw.send(&hello[at % hello.len()..]);
        assert_eq!(raw.answer().kind, FrameKind::Welcome);
    }
    drop(raws);
    finish(node, bystander);
}

#[test]
fn connections_beyond_the_limit_are_closed_at_once() {
    let network = "connections_max = 8\nhello_timeout_ms = 600000";
    let (node, bystander) = start("many", network);
    let mut raws: Vec<Raw> = (0..40).map(|_| Raw::connect(node.address())).collect();
    let mut ended = 0;
    // The bystander has two of the eight.
    for raw in raws.iter_mut().skip(8) {
        raw.try_send(&hello_frame(0)[..1]);
        assert!(raw.end().is_none());
        ended += 1;
    }
    assert_eq!(ended, 32);
    bystander.served_anew();
    drop(raws);
    finish(node, bystander);
}

#[test]
fn announced_frames_hold_no_memory() {
    let (node, bystander) = start("announced", "");
    let mut raws = Vec::new();
    for _ in 0..200 {
        let mut raw = Raw::greeted(node.address(), 0);
        raw.send(&with_length(scan_frame(1, 1, 1), 1 << 20)[..HEADER_BYTES + 10]);
        raws.push(raw);
    }
    bystander.served_anew();
    let before = node.memory_kib("VmData");
    println!("data of the node: {} MiB", before >> 10);
    drop(raws);
    finish(node, bystander);
}

#[test]
fn unfinished_frames_beyond_the_input_budget_disturb_nobody() {
    // The least budget: four frames. Ten clients each send all but the last byte of one.
    let (node, bystander) =
        start("unfinished", "input_bytes_max = 4194304\nframe_timeout_ms = 500");
    let frame = frame_with(FrameKind::Scan, 3, &vec![0xff; FRAME_PAYLOAD_BYTES_MAX]);
    let address = node.address();
    let hostile: Vec<_> = (0..10)
        .map(|_| {
            let frame = frame.clone();
            std::thread::spawn(move || {
                let mut raw = Raw::greeted(address, 0);
                // Some can send no more: the node has stopped receiving from them.
                raw.try_send(&frame[..frame.len() - 1]);
                // They are all cut off in the end.
                raw.drained();
            })
        })
        .collect();
    bystander.served_anew();
    for _ in 0..50 {
        bystander.served_anew();
    }
    for thread in hostile {
        thread.join().expect("cut off");
        bystander.served_anew();
    }
    finish(node, bystander);
}

#[test]
fn large_frames_beyond_the_input_budget_are_all_served() {
    let (node, bystander) = start("large", "input_bytes_max = 4194304");
    let frame = frame_with(FrameKind::Scan, 3, &vec![0xff; FRAME_PAYLOAD_BYTES_MAX]);
    let mut raws: Vec<Raw> = (0..12).map(|_| Raw::greeted(node.address(), 0)).collect();
    let half = frame.len() / 2;
    // Together more than the budget before one of them is complete.
    for raw in &mut raws {
        raw.send(&frame[..half]);
    }
    bystander.served_anew();
    let threads: Vec<_> = raws
        .into_iter()
        .map(|mut raw| {
            let rest = frame[half..].to_vec();
            std::thread::spawn(move || {
                raw.send(&rest);
                assert_eq!(raw.answer().refusal().0, RefusalCode::Malformed);
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("each frame was answered");
    }
    finish(node, bystander);
}

fn scan_frame(request: u64, table: u16, rows_max: u32) -> Vec<u8> {
    let scan = Scan { table, start: Vec::new(), end: Vec::new(), rows_max };
    frame_of(FrameKind::Scan, request, &scan)
}

/// Rows of 60 KiB, so that a page of them is large.
fn fat_rows(node: &TestNode) -> u16 {
    let mut client = impatient(node.address());
    let text = "fat(id int8, body bytea, primary key (id))";
    let definition = TableDefinition::parse(text).expect("valid");
    let table = client.create_table(&definition).expect("created");
    for id in 0..20 {
        let mut insert = spillway_net::client::Transaction::new();
        let row = [Value::Int8(id), Value::Bytea(vec![7; 60 << 10])];
        insert.insert(&table, &row).expect("fits");
        assert!(client.execute(&mut insert).expect("served").is_committed());
    }
    table.id().0
}

#[test]
fn a_client_that_never_reads_its_pages_is_cut_off() {
    let (node, bystander) = start("pages", "output_bytes_max = 8388608");
    let table = fat_rows(&node);
    // All at once: a thousand pages of half a MiB, were they all made.
    let mut burst = Vec::new();
    for request in 0..1000 {
        burst.extend_from_slice(&scan_frame(request, table, 4096));
    }
    let mut raw = Raw::greeted(node.address(), 0);
    while raw.try_send(&burst) {
        bystander.served_anew();
    }
    raw.drained();
    finish(node, bystander);
}

#[test]
fn a_client_that_never_reads_its_outcomes_is_cut_off() {
    let (node, bystander) = start("outcomes", "output_bytes_max = 8388608");
    let table = fat_rows(&node);
    let (mut raw, _) = Raw::with_session(node.address());
    let key = key_of(&node, "fat", &[Value::Int8(3)]);
    let gets: Vec<RawOperation<'_>> =
        (0..16).map(|_| (OperationKind::Get, table, 0, &key[..], &b""[..])).collect();
    let mut number = 0;
    loop {
        let mut burst = Vec::new();
        for _ in 0..500 {
            number += 1;
            burst.extend(frame_of(FrameKind::Submit, number, &submit_of(number, &gets)));
        }
        if !raw.try_send(&burst) {
            break;
        }
        bystander.served_anew();
    }
    raw.drained();
    finish(node, bystander);
}

#[test]
fn a_client_that_does_not_read_its_end_gives_its_place_back() {
    let network = "frame_timeout_ms = 500\noutput_bytes_max = 67108864";
    let (mut node, bystander) = start("end", network);
    bystander.finish();
    let table = fat_rows(&node);
    let key = key_of(&node, "fat", &[Value::Int8(3)]);
    let gets: Vec<RawOperation<'_>> =
        (0..16).map(|_| (OperationKind::Get, table, 0, &key[..], &b""[..])).collect();
    let status = || probe::status(node.address()).expect("it answers");
    let before = status()["frames"];
    let mut raw = Raw::greeted(node.address(), 0);
    // More than the kernel's buffers hold, less than the node does.
    let frames = 40;
    for number in 1..=frames {
        raw.send(&frame_of(FrameKind::Submit, number, &submit_of(number, &gets)));
    }
    wait("the frames to be executed", || status()["frames"] == before + frames);
    wait("only this client and the one that asks", || status()["shard_connections"] == 2);
    // From here on the node only waits for the client to read the rest.
    raw.send(&[0xff; HEADER_BYTES]);
    wait("the end of the connection", || status()["shard_connections"] == 1);
    drop(raw);
    assert!(node.stop(), "{}", node.messages());
}

/// Asks until it is so. Far shorter than a silent client may keep its connection.
fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(30), "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_frame_that_asks_for_more_than_an_answer_holds_gets_what_fits() {
    let (node, bystander) = start("greedy", "");
    let table = fat_rows(&node);
    let (mut raw, _) = Raw::with_session(node.address());
    let key = key_of(&node, "fat", &[Value::Int8(3)]);
    // One transaction that can never be answered.
    let gets: Vec<RawOperation<'_>> =
        (0..4096).map(|_| (OperationKind::Get, table, 0, &key[..], &b""[..])).collect();
    assert_eq!(raw.submit(1, &gets).status(), OutcomeStatus::TooLarge);
    // Thousands that can, but not together.
    let mut submit = submit_of(2, &gets);
    submit.transactions =
        (0..4096).map(|number_offset| TransactionHead { number_offset, operations: 1 }).collect();
    raw.send(&frame_of(FrameKind::Submit, 2, &submit));
    let outcomes = raw.answer().outcomes();
    let count = |status: OutcomeStatus| {
        outcomes.iter().filter(|outcome| outcome.status == status as u16).count()
    };
    assert_eq!(outcomes.len(), 4096);
    assert!(count(OutcomeStatus::Committed) >= 32);
    assert_eq!(count(OutcomeStatus::Committed) + count(OutcomeStatus::Overloaded), 4096);
    // A write beside a read that does not fit leaves no trace.
    let mut torn = gets.clone();
    torn.truncate(100);
    torn.insert(0, (OperationKind::Delete, table, 0, &key, b""));
    torn.insert(0, (OperationKind::Get, table, 0, &key, b""));
    let other = key_of(&node, "fat", &[Value::Int8(4)]);
    for operation in &mut torn[2..] {
        operation.3 = &other;
    }
    assert_eq!(raw.submit(5000, &torn).status(), OutcomeStatus::TooLarge);
    let status = raw.submit(5001, &torn[..2]).status();
    assert_eq!(status, OutcomeStatus::Committed, "the row was there until now");
    finish(node, bystander);
}

fn key_of(node: &TestNode, table: &str, values: &[Value]) -> Vec<u8> {
    let mut client = impatient(node.address());
    let table = client.table(table).expect("it exists");
    let mut key = Vec::new();
    table.write_key(values, &mut key).expect("fits");
    key
}

#[test]
fn garbage_byte_by_byte_is_refused() {
    let (node, bystander) = start("garbage", "");
    let mut raw = Raw::connect(node.address());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut sent = 0;
    loop {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if !raw.try_send(&[(state >> 56) as u8]) || sent > 100_000 {
            break;
        }
        sent += 1;
    }
    assert!(sent <= 100_000, "a connection that sends garbage is closed");
    raw.drained();
    finish(node, bystander);
}

struct Site {
    raw: Raw,
    table: u16,
    key: Vec<u8>,
    row: Vec<u8>,
    handle: TableHandle,
}

fn site(node: &TestNode) -> Site {
    let mut client = impatient(node.address());
    let handle = table(&mut client);
    let (mut key, mut row) = (Vec::new(), Vec::new());
    let values = [Value::Int8(-5), Value::Int4(1), Value::Text("mine".to_owned())];
    handle.write_row(&values, &mut key, &mut row).expect("fits");
    let (raw, _) = Raw::with_session(node.address());
    Site { raw, table: handle.id().0, key, row, handle }
}

#[test]
fn transactions_that_do_not_fit_their_table_are_malformed() {
    use OperationKind::{Add, CheckEquals, CheckVersion, Delete, Get, Insert, Update, Upsert};
    let (node, bystander) = start("malformed", "");
    let Site { mut raw, table, key, row, handle } = site(&node);
    let (key_long, row_long) = (vec![1; KEY_BYTES_MAX + 1], vec![1; ROW_BYTES_MAX + 1]);
    let note = handle.column("note").expect("a column");
    let empty: &[u8] = &[];
    let cases: Vec<RawOperation<'_>> = vec![
        (Insert, table, 0, empty, &row),
        (Insert, table, 0, &key[..3], &row),
        (Insert, table, 0, &key_long, &row),
        (Insert, table, 0, &key, empty),
        (Insert, table, 0, &key, &row_long),
        (Insert, table, 0, &key, &[0xff; 9]),
        (Upsert, table, 0, &key, &row[..2]),
        (Update, table, 0, &key, &[0xff; 5]),
        (CheckEquals, table, 0, &key, &[0xff; 5]),
        (CheckVersion, table, 0, &key, &[1, 2, 3]),
        (Add, table, note, &key, &[0xff; 9]),
        (Add, table, note, &key, empty),
        (Add, table, 99, &key, &[0; 9]),
        (Get, table, 0, &key_long, empty),
        (Get, table, 0, &key, &row),
        (Delete, table, 0, &key, &row),
    ];
    let mut number = 0;
    for case in &cases {
        number += 1;
        let status = raw.submit(number, std::slice::from_ref(case)).status();
        assert_eq!(status, OutcomeStatus::Malformed, "{case:?}");
    }
    for unknown in [0, table + 1, u16::MAX] {
        number += 1;
        let status = raw.submit(number, &[(Insert, unknown, 0, &key, &row)]).status();
        assert_eq!(status, OutcomeStatus::UnknownTable);
    }
    // A part that does not fit undoes the part that does.
    number += 1;
    let torn: [RawOperation<'_>; 2] =
        [(Insert, table, 0, &key, &row), (Insert, table, 0, &key[..3], &row)];
    assert_eq!(raw.submit(number, &torn).status(), OutcomeStatus::Malformed);
    number += 1;
    let good = raw.submit(number, &[(Insert, table, 0, &key, &row)]).status();
    assert_eq!(good, OutcomeStatus::Committed, "nothing of the others took effect");
    finish(node, bystander);
}

#[test]
fn submits_whose_parts_contradict_each_other_are_refused() {
    let (node, bystander) = start("contradict", "");
    let Site { mut raw, table, key, row, .. } = site(&node);
    let good = submit_of(1, &[(OperationKind::Insert, table, 0, &key, &row)]);
    let mut bad = vec![good.clone(); 9];
    bad[0].operations[0].value_length += 1;
    bad[1].operations[0].value_length = u32::MAX;
    bad[2].operations[0].key_length = u16::MAX;
    bad[3].transactions[0].operations = 2;
    bad[4].transactions[0].operations = 0;
    bad[5].transactions.clear();
    bad[6].operations.clear();
    bad[7].bytes.clear();
    bad[8].bytes.push(0);
    for (at, submit) in bad.iter().enumerate() {
        let (mut raw, _) = Raw::with_session(node.address());
        raw.send(&frame_of(FrameKind::Submit, at as u64, submit));
        let (code, message) = raw.end().expect("a refusal before the end");
        assert_eq!(code, RefusalCode::Malformed, "{at}: {message}");
        bystander.served_anew();
    }
    let mut bad = vec![good.clone(); 4];
    bad[0].operations[0].kind = 0;
    bad[1].operations[0].kind = 77;
    bad[2].operations[0].reserved = 1;
    bad[3].first_number = 0;
    for (at, submit) in bad.iter().enumerate() {
        let (mut raw, _) = Raw::with_session(node.address());
        raw.send(&frame_of(FrameKind::Submit, at as u64, submit));
        let answer = raw.answer();
        let refused = answer.kind == FrameKind::Refusal;
        assert!(refused || !answer.status().is_committed(), "{at} was executed");
    }
    raw.send(&frame_of(FrameKind::Submit, 99, &good));
    assert_eq!(raw.answer().status(), OutcomeStatus::Committed, "the connection lives");
    finish(node, bystander);
}

#[test]
fn impossible_tables_are_refused() {
    let (node, bystander) = start("tables", "");
    let mut raw = Raw::greeted(node.address(), 0);
    let text = "made(id int8, note text, primary key (id))";
    let good = TableDefinition::parse(text).expect("valid");
    let mut bad = vec![good.clone(); 6];
    let twice: ColumnDefinition = good.columns[1].clone();
    bad[0].columns.push(twice.clone());
    bad[1].name = "x".repeat(64);
    bad[2].name = String::new();
    bad[3].columns =
        (0..300).map(|at| ColumnDefinition { name: format!("c{at}"), ..twice.clone() }).collect();
    bad[4].columns.clear();
    bad[5].name = "bystander".to_owned();
    for (at, definition) in bad.into_iter().enumerate() {
        raw.send(&frame_of(FrameKind::TableCreate, at as u64, &TableCreate { definition }));
        let (code, message) = raw.answer().refusal();
        assert_eq!(code, RefusalCode::Schema, "{at}: {message}");
        bystander.served_anew();
    }
    let drop = TableDrop { name: "nobody".to_owned() };
    raw.send(&frame_of(FrameKind::TableDrop, 9, &drop));
    assert_eq!(raw.answer().refusal().0, RefusalCode::Schema);
    raw.send(&scan_frame(10, 999, 1));
    assert_eq!(raw.answer().refusal().0, RefusalCode::Schema);
    finish(node, bystander);
}

#[test]
fn a_frame_in_two_pieces_is_a_frame_wherever_it_is_cut() {
    let (node, bystander) = start("pieces", "");
    let Site { mut raw, table, key, row, .. } = site(&node);
    let mut between = Raw::greeted(node.address(), 0);
    let length = frame_of(
        FrameKind::Submit,
        1,
        &submit_of(1, &[(OperationKind::Upsert, table, 0, &key, &row)]),
    )
    .len();
    for cut in 1..length {
        let number = cut as u64;
        let submit = submit_of(number, &[(OperationKind::Upsert, table, 0, &key, &row)]);
        let frame = frame_of(FrameKind::Submit, number, &submit);
        raw.send(&frame[..cut]);
        // Once this is answered the node has received the first piece.
        between.send(&frame_of(FrameKind::Status, number, &Status {}));
        assert_eq!(between.answer().request, number);
        raw.send(&frame[cut..]);
        let answer: Answer = raw.answer();
        assert_eq!(answer.request, number);
        assert_eq!(answer.status(), OutcomeStatus::Committed);
    }
    // And byte by byte, with the next frame's first byte behind the last one.
    let number = length as u64;
    let two: Vec<u8> = (number..number + 2)
        .flat_map(|number| {
            let submit = submit_of(number, &[(OperationKind::Upsert, table, 0, &key, &row)]);
            frame_of(FrameKind::Submit, number, &submit)
        })
        .collect();
    for byte in &two {
        raw.send(&[*byte]);
    }
    for number in number..number + 2 {
        let answer = raw.answer();
        assert_eq!((answer.request, answer.status()), (number, OutcomeStatus::Committed));
    }
    finish(node, bystander);
}

#[test]
fn many_small_frames_in_one_write_are_all_answered_in_order() {
    let (node, bystander) = start("many-small", "");
    let Site { mut raw, table, key, row, .. } = site(&node);
    let mut stream = Vec::new();
    for number in 1..=1000 {
        let submit = submit_of(number, &[(OperationKind::Upsert, table, 0, &key, &row)]);
        stream.extend(frame_of(FrameKind::Submit, number, &submit));
    }
    raw.send(&stream);
    for number in 1..=1000 {
        let answer = raw.answer();
        assert_eq!((answer.request, answer.status()), (number, OutcomeStatus::Committed));
    }
    finish(node, bystander);
}

#[test]
fn connections_that_end_in_the_middle_of_a_frame_leave_nothing() {
    let (node, bystander) = start("middle", "");
    let Site { table, key, row, .. } = site(&node);
    let submit = submit_of(1, &[(OperationKind::Insert, table, 0, &key, &row)]);
    let frame = frame_of(FrameKind::Submit, 1, &submit);
    for cut in (1..frame.len()).step_by(7) {
        let (mut raw, _) = Raw::with_session(node.address());
        raw.send(&frame[..cut]);
        drop(raw);
    }
    bystander.served_anew();
    let mut client = impatient(node.address());
    let handle = client.table("bystander").expect("it exists");
    assert_eq!(client.get(&handle, &[Value::Int8(-5)]).expect("served"), None);
    finish(node, bystander);
}

#[test]
fn a_newer_connection_of_a_session_fences_the_older() {
    let (node, bystander) = start("fence", "");
    let Site { table, key, row, .. } = site(&node);
    let (mut first, session) = Raw::with_session(node.address());
    let insert: [RawOperation<'_>; 1] = [(OperationKind::Insert, table, 0, &key, &row)];
    assert_eq!(first.submit(1, &insert).status(), OutcomeStatus::Committed);
    let mut second = Raw::greeted(node.address(), session);
    expect_refused(&mut first, RefusalCode::SessionFenced, "newer connection");
    // The session's outcomes are there: the insert is not executed again.
    assert_eq!(second.submit(1, &insert).status(), OutcomeStatus::Committed);
    assert_eq!(second.submit(2, &insert).status(), OutcomeStatus::Duplicate);
    finish(node, bystander);
}
