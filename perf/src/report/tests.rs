use super::*;
use crate::disturbance::LEADER_KILLED;

fn status(log_bytes: u64, log_batches: u64) -> Option<StatusNumbers> {
    let named = [
        ("log_bytes", log_bytes),
        ("log_batches", log_batches),
        ("log_write_p50_ns", 80_000),
        ("memtable_rows", 1000),
        ("memtable_bytes", 180_000),
    ];
    Some(named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn sample(at_s: u64, committed: u64, client: u64, server: u64) -> Sample {
    Sample {
        at_ns: at_s * 1_000_000_000,
        total: Counts { offered: committed, sent: committed, committed, refused: 0 },
        client_cpu_ns: client,
        nodes_cpu_ns: vec![server],
        status: status(committed * 150, committed / 1000),
    }
}

fn report() -> BurstReport {
    let machine = Machine {
        cpus: 2,
        cpu_model: "some CPU".to_owned(),
        kernel: "6.1".to_owned(),
        memory_bytes: 1 << 30,
        log_device: "vda".to_owned(),
        log_write_mode: "O_DSYNC",
    };
    BurstReport {
        nodes: 1,
        leader: 0,
        workload: "insert",
        batch: 1000,
        connections: 8,
        in_flight: 2,
        shards: 1,
        seed: 7,
        rate: 0.0,
        is_pinned: true,
        server_cpus: 1,
        total: Counts { offered: 6000, sent: 6000, committed: 5000, refused: 0 },
        hold: Counts { offered: 4000, sent: 4000, committed: 4_000_000, refused: 0 },
        offered_tps: 2_000_000.0,
        latency: Latency { p50: 1.0, p99: 2.0, p999: 3.0, max: 4.0 },
        lateness: Lateness::default(),
        samples: Some([
            sample(2, 1_000_000, 1_000_000_000, 1_000_000_000),
            sample(4, 5_000_000, 1_400_000_000, 2_980_000_000),
        ]),
        payload_bytes: 100.0,
        seconds: Seconds { hold: 2.0, restart: Some(0.5), ..Seconds::default() },
        status_restart: Some(StatusNumbers::from([
            ("replay_records".to_owned(), 6_000_000),
            ("replay_ns".to_owned(), 2_000_000_000),
        ])),
        resolved: Some(Resolved::default()),
        events: Vec::new(),
        windows: Vec::new(),
        unknown: 0,
        asked_again: 0,
        agreement: None,
        verification: Verification { acknowledged: 9, verified: 9, ..Verification::default() },
        device: DeviceWrite { write_p50_us: 79, write_p99_us: 200 },
        machine,
        kept: None,
    }
}

#[test]
fn json_has_the_keys_that_others_rely_on() {
    let json = report().json();
    for key in [
        "nodes",
        "workload",
        "batch",
        "connections",
        "in_flight",
        "offered_tps",
        "committed_tps",
        "acknowledged",
        "verified",
        "lost",
        "latency_us.p50",
        "latency_us.p99",
        "latency_us.p999",
        "latency_us.max",
        "cpu_ns_per_txn.leader",
        "cpu_ns_per_txn.follower",
        "cpu_ns_per_txn.client",
        "log.bytes",
        "log.batches",
        "log.write_p50_us",
        "log.write_p99_us",
        "machine.cpus",
        "machine.kernel",
        "machine.log_device",
        "replay.seconds",
        "replay.records",
        "replay.records_per_s",
        "device.write_p50_us",
        "memory.rows",
        "memory.bytes",
        "seconds.hold",
    ] {
        let pointer = format!("/{}", key.replace('.', "/"));
        assert!(json.pointer(&pointer).is_some(), "{key} is missing in {json:#}");
    }
    assert_eq!(json["committed_tps"], 2_000_000.0);
    assert_eq!(json["cpu_ns_per_txn"]["leader"], 495);
    assert_eq!(json["cpu_ns_per_txn"]["client"], 100);
    assert_eq!(json["cpu_ns_per_txn"]["follower"], Value::Null);
    assert_eq!(json["log"]["bytes"], 600_000_000);
    assert_eq!(json["log"]["bytes_per_payload_byte"], 1.5);
    assert_eq!(json["log"]["write_p99_us"], Value::Null);
    assert_eq!(json["replay"]["records_per_s"], 3_000_000.0);
}

fn applied(digest: u64) -> Applied {
    Applied { lsn: 9, digest: Some(digest), rows: 5 }
}

#[test]
fn a_cluster_tells_its_nodes_apart() {
    let mut report = report();
    (report.nodes, report.leader, report.server_cpus) = (3, 1, 2);
    let samples = report.samples.as_mut().expect("has samples");
    samples[0].nodes_cpu_ns = vec![1_000_000_000; 3];
    samples[1].nodes_cpu_ns = vec![1_400_000_000, 2_200_000_000, 1_800_000_000];
    report.agreement = Some(Agreement::of(vec![applied(7); 3]));
    let event = |gap_ns| Event {
        kind: LEADER_KILLED,
        nodes: vec![1],
        at_ns: 3_000_000_000,
        ready_s: Some(0.5),
        caught_up_s: None,
        gap_ns,
    };
    report.events = vec![event(200_000_000), event(400_000_000)];
    report.windows = vec![WindowLatency {
        name: "before".to_owned(),
        begin_ns: 0,
        end_ns: 2_000_000_000,
        committed: 1000,
        latency: Latency::default(),
    }];
    assert!(report.is_good());
    let json = report.json();
    let expected = json!({ "leader": 300, "follower": 150, "client": 100,
        "nodes": [100, 300, 200] });
    assert_eq!(json["cpu_ns_per_txn"], expected);
    assert_eq!(json["leader"], 2);
    assert_eq!(json["log"]["bytes"], Value::Null, "counters of two processes");
    assert_eq!(json["gaps"][LEADER_KILLED]["p99_ms"], 400.0);
    assert_eq!(json["events"][0]["gap_ms"], 200.0);
    assert_eq!(json["windows"][0]["committed_tps"], 500.0);
    assert_eq!(json["agreement"]["nodes"][2]["digest"], "0000000000000007");
    assert_eq!(report.limit(), "network and frames in flight");
    let text = report.text();
    for part in [
        "3 nodes, insert",
        "leader 300 ns, follower 150 ns",
        "2 times, write gap p50 200 ms, p99 400 ms",
        "before: p50",
        "all 3 hold 5 rows with digest 0000000000000007 at LSN 9",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    report.is_pinned = false;
    assert_eq!(report.limit(), "network and frames in flight");
    let samples = report.samples.as_mut().expect("has samples");
    samples[1].nodes_cpu_ns = vec![2_700_000_000, 2_200_000_000, 1_800_000_000];
    assert_eq!(report.limit(), "shared CPU");
}

#[test]
fn the_limit_is_named() {
    let mut report = report();
    assert_eq!(report.limit(), "server CPU");
    let samples = report.samples.as_mut().expect("has samples");
    samples[1].client_cpu_ns = 2_990_000_000;
    assert_eq!(report.limit(), "generator");
    assert!(report.text().contains("the generator, not the node"));
    let samples = report.samples.as_mut().expect("has samples");
    samples[1].client_cpu_ns = 1_200_000_000;
    samples[1].nodes_cpu_ns = vec![1_500_000_000];
    assert_eq!(report.limit(), "network and frames in flight");
    report.rate = 2_000_000.0;
    assert_eq!(report.limit(), "rate");
    report.samples = None;
    assert_eq!(report.limit(), "unknown");
    assert_eq!(report.json()["log"]["bytes"], Value::Null);
}

#[test]
fn anything_wrong_is_a_failure() {
    assert!(report().is_good());
    assert!(report().text().contains("the books balance"));
    let spoil: [fn(&mut BurstReport); 8] = [
        |report| report.unknown = 1,
        |report| report.agreement = Some(Agreement::of(vec![applied(1), applied(2)])),
        |report| report.verification.lost = 1,
        |report| report.verification.foreign = 1,
        |report| report.verification.damaged = 1,
        |report| report.verification.imbalanced = 1,
        |report| report.resolved = Some(Resolved { wrong: 1, ..Resolved::default() }),
        |report| report.resolved = Some(Resolved { unknown: 1, ..Resolved::default() }),
    ];
    for spoil in spoil {
        let mut report = report();
        spoil(&mut report);
        assert!(!report.is_good());
        assert_eq!(report.json()["good"], false);
        assert!(report.text().contains("FAILED"));
    }
}

#[test]
fn numbers_are_readable() {
    assert_eq!(thousands(0), "0");
    assert_eq!(thousands(999), "999");
    assert_eq!(thousands(1_000), "1,000");
    assert_eq!(thousands(1_234_567), "1,234,567");
    assert_eq!(time_text(12.4), "12 us");
    assert_eq!(time_text(12_400.0), "12.4 ms");
    assert_eq!(time_text(12_400_000.0), "12.4 s");
}
