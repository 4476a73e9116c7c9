//! Logs that are damaged on one node of a cluster, and whole on others.
#![expect(clippy::disallowed_methods, reason = "tests damage the files of nodes")]

mod common;

use std::path::PathBuf;

use common::cluster::Clique;
use spillway_net::client::{Client, ScanRange, TableHandle, Transaction};
use spillway_net::ids::Lsn;
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;
use spillway_perf::probe;
use spillway_updateserver::log::{FrameKind, Geometry, LocalHeader, SharedHeader, Superblock};

const MENDED: &str = "the log is whole again";

/// A frame in the files of a node that does not run.
struct Frame {
    path: PathBuf,
    local: LocalHeader,
    shared: SharedHeader,
}

impl Frame {
    /// Flips a bit so far behind the frame's first byte.
    fn flip(&self, at: usize) {
        let mut bytes = std::fs::read(&self.path).expect("read");
        bytes[self.local.offset as usize + at] ^= 0x10;
        std::fs::write(&self.path, bytes).expect("written");
    }

    fn flip_payload(&self) {
        assert_eq!(self.shared.kind, FrameKind::Data);
        self.flip(self.local.header_bytes as usize + 5);
    }

    /// The index in the shared header.
    fn flip_index(&self, geometry: &Geometry) {
        self.flip(geometry.block() + 40);
    }
}

fn geometry(clique: &Clique, node: usize) -> Geometry {
    let bytes = std::fs::read(clique.log_file(node, "superblock")).expect("read");
    let blocks = [512, 1024, 2048, 4096];
    let superblock = blocks.iter().find_map(|block| Superblock::decode(0, &bytes[..*block]).ok());
    superblock.expect("a superblock").geometry
}

/// All frames, in the order of the log.
fn frames(clique: &Clique, node: usize) -> Vec<Frame> {
    let geometry = geometry(clique, node);
    let mut frames = Vec::new();
    for segment in 0..geometry.segments_count {
        let path = clique.log_file(node, &format!("segment-{segment:05}.log"));
        let bytes = std::fs::read(&path).expect("read");
        let mut at = geometry.data_offset() as usize;
        while let Some(block) = bytes.get(at..at + geometry.block()) {
            let Ok(local) = LocalHeader::decode(block) else {
                at += geometry.block();
                continue;
            };
            let area = &bytes[at + geometry.block()..at + local.header_bytes as usize];
            let shared = SharedHeader::decode(&geometry, area).expect("nothing is damaged yet");
            frames.push(Frame { path: path.clone(), local, shared });
            at += local.frame_bytes as usize;
        }
    }
    frames.sort_by_key(|frame| frame.local.sequence);
    frames
}

fn table(client: &mut Client) -> TableHandle {
    let text = "rows(id int8, body text, primary key (id))";
    client.create_table(&TableDefinition::parse(text).expect("valid")).expect("made")
}

fn insert(client: &mut Client, table: &TableHandle, ids: std::ops::Range<i64>) {
    for id in ids {
        let mut insert = Transaction::new();
        let body = format!("body of row {id:08}").repeat(20);
        insert.insert(table, &[Value::Int8(id), Value::Text(body)]).expect("fits");
        assert!(client.execute(&mut insert).expect("answered").is_committed());
    }
}

fn ids(client: &mut Client) -> Vec<i64> {
    let table = client.table("rows").expect("it exists");
    let rows = client.scan(&table, ScanRange::all());
    rows.map(|row| match row.expect("a row").values[0] {
        Value::Int8(id) => id,
        ref other => panic!("{other:?} is no id"),
    })
    .collect()
}

fn numbers(clique: &Clique, node: usize) -> Option<(u64, u64)> {
    let numbers = probe::status(clique.address(node)).ok()?;
    Some((*numbers.get("applied_lsn")?, *numbers.get("digest_all")?))
}

/// Waits until these nodes have applied the same, at least up to `lsn`.
fn agree(clique: &Clique, nodes: &[usize], lsn: Lsn) {
    clique.wait("agreement", |clique| {
        let all: Option<Vec<_>> = nodes.iter().map(|node| numbers(clique, *node)).collect();
        let all = all?;
        let same = all.iter().all(|one| *one == all[0]) && all[0].0 >= lsn.0;
        // Those that are equally far must be equal.
        let (far, digest) = all[0];
        assert!(all.iter().all(|one| one.0 != far || one.1 == digest), "{all:?}");
        same.then_some(())
    });
}

fn applied(clique: &Clique, node: usize) -> Lsn {
    Lsn(numbers(clique, node).expect("it answers").0)
}

#[test]
fn a_damaged_follower_is_repaired_from_its_peers() {
    let mut clique = Clique::new("repair", 3);
    clique.start_all();
    let leader = clique.leader(&[0, 1, 2]);
    let follower = (leader + 1) % 3;
    let mut client = clique.client(leader);
    let rows = table(&mut client);
    insert(&mut client, &rows, 0..60);
    agree(&clique, &[0, 1, 2], applied(&clique, leader));
    assert!(clique.stop(follower));
    let geometry = geometry(&clique, follower);
    let frames = frames(&clique, follower);
    let data: Vec<&Frame> = frames.iter().filter(|f| f.shared.kind == FrameKind::Data).collect();
    assert!(data.len() > 20, "{} data frames", data.len());
    let others: Vec<&Frame> = frames.iter().filter(|f| f.shared.kind != FrameKind::Data).collect();
    data[0].flip_payload();
    data[data.len() / 2].flip_payload();
    data[data.len() / 3].flip_index(&geometry);
    data[data.len() - 1].flip_payload();
    // An election's entry at the front, a watermark at the end.
    let [first, .., last] = others[..] else { panic!("{} other frames", others.len()) };
    assert_eq!(last.shared.kind, FrameKind::Watermark);
    first.flip_index(&geometry);
    last.flip_index(&geometry);
    insert(&mut client, &rows, 60..70);
    clique.start(follower);
    clique.wait("repair", |clique| clique.messages(follower).contains(MENDED).then_some(()));
    let text = clique.messages(follower);
    assert!(text.contains("log damaged in segment file 0"), "{text}");
    assert!(text.contains("repairing the log from the peers"), "{text}");
    assert!(text.contains("6 frame(s) repaired"), "{text}");
    agree(&clique, &[0, 1, 2], applied(&clique, leader));
    // And it can do what it could before: with it alone the leader goes on.
    let third = (leader + 2) % 3;
    clique.kill(third);
    insert(&mut client, &rows, 70..80);
    agree(&clique, &[leader, follower], applied(&clique, leader));
    assert_eq!(ids(&mut client), (0..80).collect::<Vec<i64>>());
    // Where a local header is damaged nothing says what stood there, and nobody guesses.
    clique.kill(follower);
    data[1].flip(100);
    clique.start(follower);
    clique.wait("refusal", |clique| {
        clique.messages(follower).contains("`spillway admin replace-node`").then_some(())
    });
    assert!(!clique.wait_end(follower));
}

#[test]
fn nobody_leads_while_what_was_acknowledged_is_damaged_here_and_missing_there() {
    let mut clique = Clique::new("nobody", 3);
    clique.start_all();
    let leader = clique.leader(&[0, 1, 2]);
    let (holder, stranger) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut client = clique.client(leader);
    let rows = table(&mut client);
    insert(&mut client, &rows, 0..20);
    agree(&clique, &[0, 1, 2], applied(&clique, leader));
    clique.kill(stranger);
    // Committed by the leader and the holder alone.
    insert(&mut client, &rows, 20..40);
    let committed = applied(&clique, leader);
    agree(&clique, &[leader, holder], committed);
    assert!(clique.stop(holder));
    clique.kill(leader);
    let frames = frames(&clique, holder);
    let newest = frames.iter().rfind(|frame| frame.shared.kind == FrameKind::Data).expect("some");
    assert!(newest.shared.index > Lsn(20));
    newest.flip_payload();
    clique.start(stranger);
    clique.start(holder);
    let missing = format!("node {} does not have it", stranger + 1);
    let text = clique.wait("explanation", |clique| {
        let text = clique.messages(holder);
        text.contains(&missing).then_some(text)
    });
    assert!(text.contains(&format!("node {} is not connected", leader + 1)), "{text}");
    assert!(text.contains("neither votes nor serves"), "{text}");
    // Long enough for several elections that the damaged node did not vote in.
    let alone = clique.report(stranger).expect("it answers");
    assert!(alone.role != "leader" && alone.leader == 0, "{alone:?}");
    assert!(clique.report(holder).is_none(), "it serves nobody");
    assert!(clique.is_running(holder) && !clique.messages(holder).contains(MENDED));
    // It can be stopped and started again, any number of times.
    assert!(clique.stop(holder), "{}", clique.messages(holder));
    clique.start(holder);
    clique.wait("explanation", |clique| clique.messages(holder).contains(&missing).then_some(()));
    clique.start(leader);
    clique.wait("repair", |clique| clique.messages(holder).contains(MENDED).then_some(()));
    let next = clique.leader(&[0, 1, 2]);
    agree(&clique, &[0, 1, 2], committed);
    let mut client = clique.client(next);
    assert_eq!(ids(&mut client), (0..40).collect::<Vec<i64>>());
    let rows = client.table("rows").expect("it exists");
    insert(&mut client, &rows, 40..50);
    agree(&clique, &[0, 1, 2], committed);
}
