//! Formatting, starting and stopping: what an operator can get wrong, what a disk can do, and
//! what the program then says. Wrong use exits with 2, whatever else fails with 1.

#![expect(clippy::disallowed_methods, reason = "tests prepare and damage files on their own")]

mod common;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::bystander::impatient;
use common::{Place, SMALL, Settings, TestNode, spillway};
use spillway_net::client::{Client, ClientError, ScanRange, TableHandle, Transaction};
use spillway_net::message::{OutcomeStatus, RefusalCode};
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn expect_exit(output: &Output, code: i32, parts: &[&str]) {
    let text = stderr_of(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} should say {part:?}");
    }
}

fn rows_table(client: &mut Client) -> TableHandle {
    let text = "rows(id int8, body bytea, primary key (id))";
    client.create_table(&TableDefinition::parse(text).expect("valid")).expect("created")
}

fn body(id: i64, bytes: usize) -> Value {
    let mut body = format!("this is the body of row {id:08};").into_bytes();
    body.resize(bytes.max(body.len()), b'.');
    Value::Bytea(body)
}

fn insert(client: &mut Client, table: &TableHandle, id: i64, bytes: usize) -> OutcomeStatus {
    let mut insert = Transaction::new();
    insert.insert(table, &[Value::Int8(id), body(id, bytes)]).expect("fits");
    match client.execute(&mut insert) {
        // Without a session nothing can be written, and a full log has no room for new ones.
        Err(ClientError::Refused { code: RefusalCode::LogUnavailable, .. }) => {
            OutcomeStatus::LogFull
        }
        answer => answer.expect("answered").status,
    }
}

/// Every row and its version.
fn content(node: &TestNode) -> Vec<(Vec<Value>, u64)> {
    let mut client = impatient(node.address());
    let table = client.table("rows").expect("it exists");
    let rows = client.scan(&table, ScanRange::all());
    rows.map(|row| row.expect("a row")).map(|row| (row.values, row.version)).collect()
}

/// A node whose log has `rows` rows, one frame each, killed.
fn killed_with_rows(name: &str, rows: i64) -> TestNode {
    let mut node = TestNode::start_settings(name, SMALL);
    let mut client = impatient(node.address());
    let table = rows_table(&mut client);
    for id in 0..rows {
        assert_eq!(insert(&mut client, &table, id, 3000), OutcomeStatus::Committed);
    }
    node.kill();
    node
}

#[test]
fn wrong_configurations_exit_with_2_and_name_file_and_key() {
    let place = Place::new("config", SMALL);
    let log = place.log_file("");
    let log = log.display();
    let minimal = format!("[node]\ndirectory_log = '{log}'\ndirectory_data = '{log}data'\n");
    let cases = [
        ("[log]\nbytes_totl = 1\n", "bytes_totl"),
        ("[lgo]\n", "lgo"),
        ("[log]\nbytes_total = 1000\n", "log.bytes_total = 1000"),
        ("[log]\nsegment_bytes = 4194304\nbytes_total = 67108864\n", "log.segment_bytes"),
        ("[log]\nbytes_total = 'much'\n", "bytes_total"),
        ("[network]\nhello_timeout_ms = 1\n", "network.hello_timeout_ms"),
        ("listen = 'here'\n", "listen"),
        ("listen = '127.0.0.1:65535'\nshards = 2\n", "node.listen"),
        ("partitions = 100\n", "node.partitions"),
        ("[log\n", "[log"),
    ];
    for (text, key) in cases {
        place.configure_text(&format!("{minimal}{text}"));
        for command in ["format", "start"] {
            expect_exit(&place.spillway(command), 2, &["spillway.toml", key]);
        }
    }
    assert!(files_of(&place).is_empty(), "nothing was laid out");
    place.configure_text("[log]\n");
    expect_exit(&place.spillway("start"), 2, &["spillway.toml", "node"]);
    std::fs::remove_file(place.config()).expect("removed");
    for command in ["format", "start"] {
        expect_exit(&place.spillway(command), 2, &["spillway.toml", "no such file"]);
    }
}

#[test]
fn wrong_command_lines_exit_with_2() {
    for arguments in [&["start"][..], &["strat"], &[], &["format", "--confg", "x"]] {
        let output = spillway(arguments);
        expect_exit(&output, 2, &["Usage: spillway"]);
    }
}

/// Every command of the program, found by asking the program.
fn commands() -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let mut at = 0;
    while at < found.len() {
        let mut arguments: Vec<&str> = found[at].iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = String::from_utf8_lossy(&spillway(&arguments).stdout).into_owned();
        let (_, commands) = help.split_once("Commands:\n").unwrap_or_default();
        for line in commands.lines().take_while(|line| !line.is_empty()) {
            // Continuation lines of a description stand further right.
            let name = line.strip_prefix("  ").filter(|line| !line.starts_with(' '));
            let name = name.and_then(|line| line.split_whitespace().next());
            if let Some(name) = name.filter(|name| *name != "help") {
                let command = found[at].iter().cloned().chain([name.to_owned()]).collect();
                found.push(command);
            }
        }
        at += 1;
    }
    found
}

#[test]
fn every_command_explains_itself() {
    let commands = commands();
    let lines: Vec<String> = commands.iter().map(|command| command.join(" ")).collect();
    for expected in ["format", "start", "perf burst", "perf takeover", "perf kills"] {
        assert!(lines.iter().any(|line| line == expected), "{lines:?}");
    }
    for command in &commands {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = spillway(&arguments);
        let help = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(help.contains("Usage: spillway") && help.contains("--help"), "{help}");
        assert!(output.stderr.is_empty());
    }
    let help = |arguments| String::from_utf8_lossy(&spillway(arguments).stdout).into_owned();
    assert!(help(&["format", "--help"]).contains("--config <FILE>"));
    assert!(help(&["start", "--help"]).contains("--config <FILE>"));
    let burst = help(&["perf", "burst", "--help"]);
    for option in [
        "nodes",
        "workload",
        "batch",
        "connections",
        "in-flight",
        "rate",
        "json",
        "dir",
        "kill-leader-at",
        "pause-follower",
    ] {
        assert!(burst.contains(&format!("--{option}")), "{option}");
    }
}

#[test]
fn a_node_is_formatted_once_before_it_starts() {
    let place = Place::new("format", SMALL);
    expect_exit(&place.spillway("start"), 1, &["does not exist", "spillway format --config"]);
    place.format();
    let before = files_of(&place);
    expect_exit(&place.spillway("format"), 1, &["already holds a node", "spillway start"]);
    assert!(before == files_of(&place), "a refused format touches nothing");
    let mut node = TestNode::start_place(place);
    expect_exit(&node.place().spillway("start"), 1, &["another process uses", "fuser -v"]);
    expect_exit(&node.place().spillway("format"), 1, &["another process uses", "fuser -v"]);
    drop(impatient(node.address()));
    assert!(node.is_running(), "the first one is not disturbed");
    assert!(node.stop());
}

#[test]
fn what_is_fixed_at_format_cannot_be_configured_away() {
    let log = "bytes_total = 67108864\nsegment_bytes = 8388608\nblock_bytes = 4096";
    let place = Place::new("fixed", Settings { log, ..SMALL });
    place.format();
    let changes = [
        (Settings { node: "partitions = 128", ..SMALL }, "node.partitions is 128"),
        (Settings { node: "id = 2", ..SMALL }, "node.id is 2"),
        (
            Settings { log: "bytes_total = 134217728\nsegment_bytes = 8388608", ..SMALL },
            "log.bytes_total is 134217728",
        ),
        (
            Settings { log: "bytes_total = 134217728\nsegment_bytes = 16777216", ..SMALL },
            "log.segment_bytes is 16777216",
        ),
        (
            Settings {
                log: "bytes_total = 67108864\nsegment_bytes = 8388608\nblock_bytes = 512",
                ..SMALL
            },
            "log.block_bytes is 512",
        ),
    ];
    for (settings, part) in changes {
        place.configure(settings);
        expect_exit(&place.spillway("start"), 2, &[part, "change the configuration back"]);
    }
    place.configure(SMALL);
    assert!(TestNode::start_place(place).stop());
}

#[test]
fn a_log_needs_direct_io() {
    let place = Place::new("direct", SMALL);
    let mount = place.log_file("");
    std::fs::create_dir_all(&mount).expect("created");
    // A ramfs knows no O_DIRECT; a mount namespace of one's own needs no privilege.
    let script = "mount -t ramfs ramfs \"$1\" || exit 77; exec \"$2\" format --config \"$3\"";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .args([&mount, Path::new(env!("CARGO_BIN_EXE_spillway")), &place.config()])
        .output();
    match output {
        Ok(output) if output.status.code() != Some(77) && started(&output) => {
            expect_exit(&output, 1, &["does not support O_DIRECT", "findmnt"]);
        }
        Ok(output) => println!("skipped: no ramfs may be mounted here: {}", stderr_of(&output)),
        Err(error) => println!("skipped: no mount namespace: {error}"),
    }
}

/// Whether the program ran: `unshare` itself failing says so under its own name.
fn started(output: &Output) -> bool {
    !stderr_of(output).contains("unshare:")
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_written() {
    // 64 TiB: more than any disk this runs on has free. Never allocated.
    let log = "bytes_total = 70368744177664\nsegment_bytes = 1073741824";
    let place = Place::new("space", Settings { log, ..SMALL });
    let needed = "no space left: 70368744177664 bytes needed";
    expect_exit(&place.spillway("format"), 1, &[needed, "free. Mend: free space", "df -h"]);
    assert!(files_of(&place).is_empty(), "nothing was laid out");
    place.configure(SMALL);
    place.format();
    assert!(TestNode::start_place(place).stop());
}

#[test]
fn a_port_in_use_is_named() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("bound");
    let node = format!("listen = '{address}'\nshards = 1");
    let place = Place::new("port", Settings { node: &node, ..SMALL });
    place.format();
    let named = address.to_string();
    expect_exit(&place.spillway("start"), 1, &[&named, "address in use", "ss -ltnp"]);
    drop(other);
    assert!(TestNode::start_place(place).stop());
}

fn files_of(place: &Place) -> BTreeMap<PathBuf, Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(place.log_file("")) else { return BTreeMap::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.map(|path| (path.clone(), std::fs::read(path).expect("a file"))).collect()
}

/// Size of a block of the log: the distance between the superblock's copies.
fn block_bytes(superblock: &[u8]) -> usize {
    let magic = &superblock[..4];
    assert_ne!(magic, [0; 4], "the first copy is whole");
    let block = [512, 1024, 2048, 4096].into_iter().find(|at| &superblock[*at..at + 4] == magic);
    block.expect("a second copy")
}

#[test]
fn one_whole_copy_of_the_superblock_suffices() {
    let mut node = killed_with_rows("superblock", 3);
    let path = node.place().log_file("superblock");
    for damaged in [&[0][..], &[3], &[0, 1], &[1, 3], &[0, 1, 2], &[1, 2, 3]] {
        let mut bytes = std::fs::read(&path).expect("read");
        let block = block_bytes(&bytes);
        for copy in damaged {
            bytes[copy * block + 40] ^= 0x10;
        }
        std::fs::write(&path, &bytes).expect("written");
        node.start_again();
        assert_eq!(content(&node).len(), 3, "copies {damaged:?} damaged");
        node.kill();
    }
    let good = std::fs::read(&path).expect("read");
    let mut bytes = good.clone();
    for copy in 0..4 {
        bytes[copy * block_bytes(&good) + 40] ^= 0x10;
    }
    std::fs::write(&path, &bytes).expect("written");
    let before = files_of(node.place());
    expect_exit(&node.place().spillway("start"), 1, &["superblock", "damaged"]);
    assert!(before == files_of(node.place()), "nothing was touched");
    std::fs::write(&path, &good).expect("written");
    node.start_again();
    assert_eq!(content(&node).len(), 3);
}

fn position(bytes: &[u8], part: &[u8]) -> usize {
    let found = bytes.windows(part.len()).position(|window| window == part);
    found.expect("the log holds the row")
}

#[test]
fn a_flipped_bit_in_the_log_stops_the_start_and_changes_nothing() {
    let mut node = killed_with_rows("flipped", 40);
    let path = node.place().log_file("segment-00000.log");
    let good = std::fs::read(&path).expect("read");
    for row in [0, 17, 30] {
        let at = position(&good, format!("body of row {row:08};").as_bytes());
        let mut bytes = good.clone();
        bytes[at + 12] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        let before = files_of(node.place());
        let output = node.place().spillway("start");
        expect_exit(&output, 1, &["log damaged in segment file 0", "Do not format or truncate"]);
        assert!(before == files_of(node.place()), "the log is left as it was");
    }
    std::fs::write(&path, &good).expect("written");
    node.start_again();
    assert_eq!(content(&node).len(), 40, "the repaired log starts");
}

#[test]
fn a_torn_tail_is_dropped_and_told() {
    let mut node = killed_with_rows("torn", 10);
    let path = node.place().log_file("segment-00000.log");
    let superblock = std::fs::read(node.place().log_file("superblock")).expect("read");
    let block = block_bytes(&superblock);
    let mut bytes = std::fs::read(&path).expect("read");
    // The last block of the last write did not reach the disk: what was there before are zeros.
    let last = bytes.chunks(block).rposition(|block| block.iter().any(|byte| *byte != 0));
    let last = last.expect("the log is not empty") * block;
    bytes[last..last + block].fill(0);
    std::fs::write(&path, &bytes).expect("written");
    node.start_again();
    let messages = node.messages();
    assert!(messages.contains("cut short and never acknowledged"), "{messages:?}");
    // The last write held the last row at most.
    let rows = content(&node);
    assert!(rows.len() >= 9, "{} rows", rows.len());
    for (at, (values, _)) in rows.iter().enumerate() {
        assert_eq!(*values, [Value::Int8(at as i64), body(at as i64, 3000)]);
    }
    let mut client = impatient(node.address());
    let table = client.table("rows").expect("it exists");
    assert_eq!(insert(&mut client, &table, 100, 10), OutcomeStatus::Committed);
    let before = content(&node);
    node.kill_and_restart();
    assert!(!node.messages().contains("cut short"), "told once: {}", node.messages());
    assert_eq!(content(&node), before);
}

#[test]
fn sigterm_ends_in_order_and_a_start_finds_the_same_content() {
    let mut node = TestNode::start_settings("sigterm", SMALL);
    let mut client = impatient(node.address());
    let table = rows_table(&mut client);
    for id in 0..50 {
        assert_eq!(insert(&mut client, &table, id, 100), OutcomeStatus::Committed);
    }
    let mut change = Transaction::new();
    change.delete(&table, &[Value::Int8(7)]).expect("fits");
    change.upsert(&table, &[Value::Int8(8), Value::Bytea(vec![1])]).expect("fits");
    assert!(client.execute(&mut change).expect("answered").is_committed());
    let before = content(&node);
    assert_eq!(before.len(), 49);
    for _ in 0..2 {
        assert!(node.stop(), "{}", node.messages());
        node.start_again();
        assert_eq!(content(&node), before);
        assert_eq!(node.messages(), "", "an orderly start has nothing to tell");
    }
}

/// Inserts rows until the node refuses one; returns how many it took.
fn fill(client: &mut Client, table: &TableHandle, expected: OutcomeStatus) -> i64 {
    let mut id = 0;
    loop {
        match insert(client, table, id, 60 << 10) {
            OutcomeStatus::Committed => id += 1,
            status => {
                assert_eq!(status, expected, "after {id} rows");
                return id;
            }
        }
        assert!(id < 20_000, "the node has limits");
    }
}

/// A full node reads, refuses writes, lives, and keeps everything over a kill.
fn full_node(name: &str, settings: Settings<'_>, expected: OutcomeStatus) {
    let mut node = TestNode::start_settings(name, settings);
    let mut client = impatient(node.address());
    let table = rows_table(&mut client);
    let rows = fill(&mut client, &table, expected);
    assert!(rows > 100, "{rows} rows");
    for _ in 0..2 {
        let mut client = impatient(node.address());
        assert_eq!(insert(&mut client, &table, 1_000_000, 60 << 10), expected);
        for id in [0, rows / 2, rows - 1] {
            let row = client.get(&table, &[Value::Int8(id)]).expect("reads are served");
            assert_eq!(row.expect("acknowledged").values[1], body(id, 60 << 10));
        }
        assert!(client.status().is_ok());
        assert!(node.is_running());
        node.kill_and_restart();
        let content = content(&node);
        assert_eq!(content.len() as i64, rows, "what was acknowledged, and nothing refused");
    }
    assert!(node.stop(), "a full node stops in order");
}

#[test]
fn a_full_log_refuses_writes_and_serves_reads() {
    full_node("logfull", SMALL, OutcomeStatus::LogFull);
}

#[test]
fn a_full_memory_refuses_writes_and_serves_reads() {
    let log = "bytes_total = 1073741824\nsegment_bytes = 67108864";
    full_node("memoryfull", Settings { log, ..SMALL }, OutcomeStatus::MemoryFull);
}

#[test]
fn a_memory_full_of_small_rows_is_found_again() {
    let log = "bytes_total = 1073741824\nsegment_bytes = 67108864";
    let mut node = TestNode::start_settings("smallrows", Settings { log, ..SMALL });
    let mut client = impatient(node.address());
    let text = "small(id int8, other int8, primary key (id))";
    let definition = TableDefinition::parse(text).expect("valid");
    let table = client.create_table(&definition).expect("created");
    let mut rows = 0;
    loop {
        let mut insert = Transaction::new();
        for id in rows..rows + 2000 {
            insert.insert(&table, &[Value::Int8(id), Value::Int8(-id)]).expect("fits");
        }
        match client.execute(&mut insert).expect("answered").status {
            OutcomeStatus::Committed => rows += 2000,
            status => break assert_eq!(status, OutcomeStatus::MemoryFull),
        }
    }
    assert!(rows > 500_000, "{rows} rows");
    // The order that scans need is made from what was withheld.
    let first = ScanRange { start: Vec::new(), end: key_of(&table, 100) };
    for _ in 0..2 {
        let mut client = impatient(node.address());
        let mut scanned = client.scan(&table, first.clone());
        assert!((0..100).all(|_| scanned.next().is_some_and(|row| row.is_ok())));
        assert!(scanned.next().is_none());
        drop(scanned);
        assert_eq!(client.tables().expect("served")[0].rows, rows as u64);
        let last = client.get(&table, &[Value::Int8(rows - 1)]).expect("served");
        assert_eq!(last.expect("acknowledged").values[1], Value::Int8(1 - rows));
        node.kill_and_restart();
    }
}

fn key_of(table: &TableHandle, id: i64) -> Vec<u8> {
    let mut key = Vec::new();
    table.write_key(&[Value::Int8(id)], &mut key).expect("fits");
    key
}
