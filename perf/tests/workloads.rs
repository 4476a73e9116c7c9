//! Every workload against a plain model: a sound node passes, and whatever is planted is found.

mod support;

use proptest::prelude::*;
use spillway_net::client::Batch;
use spillway_net::frame::HEADER_BYTES;
use spillway_net::ids::TableId;
use spillway_net::limits::PARTITIONS_DEFAULT;
use spillway_net::message::{OutcomeStatus, Outcomes, Submit, decode};
use spillway_perf::PerfError;
use spillway_perf::identity::{IdOrder, Origin};
use spillway_perf::ledger::Ledger;
use spillway_perf::verification::{RowSource, Verification};
use spillway_perf::workload::{Answer, Placement, Workload, WorkloadKind, WorkloadOptions, build};
use support::store::Store;

const KINDS: [WorkloadKind; 8] = [
    WorkloadKind::Transfer,
    WorkloadKind::Insert,
    WorkloadKind::Hot,
    WorkloadKind::YcsbA,
    WorkloadKind::Cluster12,
    WorkloadKind::Cluster15,
    WorkloadKind::Cluster31,
    WorkloadKind::Cluster37,
];
const CONNECTIONS: usize = 4;
const BATCH: u64 = 25;

/// The model's rows as a verification reads them.
struct ModelRows<'a>(&'a Store);

impl RowSource for ModelRows<'_> {
    fn scan(&mut self, table: usize, row: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), PerfError> {
        for (key, value) in &self.0.tables[table].rows {
            row(key, value);
        }
        Ok(())
    }
}

/// A workload that was run against the model.
struct Played {
    workload: Box<dyn Workload>,
    store: Store,
    ledger: Ledger,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Executed and answered.
    Answered,
    /// Executed, the answer is lost.
    Executed,
    /// Lost on the way.
    Lost,
}

impl Played {
    fn start(kind: WorkloadKind, shards: u16, seed: u64) -> Self {
        let options = WorkloadOptions {
            kind,
            accounts: 12_000,
            any_account: false,
            ids: IdOrder::Random,
            payload: None,
            rows: Some(50),
            seed,
        };
        let placement = Placement { partitions: PARTITIONS_DEFAULT as u32, shards };
        let mut workload = build(&options, placement).expect("good options");
        let mut store = Store::default();
        let tables: Vec<TableId> = workload
            .tables()
            .iter()
            .map(|table| TableId(store.create_table(&table.definition)))
            .collect();
        let connection_shards: Vec<u16> = (0..CONNECTIONS as u16)
            .map(|connection| workload.shard_only().unwrap_or(connection % shards))
            .collect();
        workload.bind(&tables, &connection_shards);
        let mut batch = Batch::new();
        for index in 0..workload.load_rows() {
            workload.load(index, &mut batch).expect("fits a frame");
            let outcomes = execute(&mut store, 99, index + 1, &mut batch);
            assert_eq!(outcomes.outcomes[0].status, OutcomeStatus::Committed as u16);
        }
        Self { workload, store, ledger: Ledger::new(CONNECTIONS) }
    }

    /// One frame of a connection.
    fn frame(&mut self, connection: usize, fate: Fate, event: &mut u64) {
        let ledger = &mut self.ledger.connections[connection];
        let first = ledger.sent;
        let mut batch = Batch::new();
        for counter in first..first + BATCH {
            let origin = Origin { connection: connection as u16, counter };
            self.workload.fill(origin, &mut batch).expect("fits a frame");
        }
        ledger.sent += BATCH;
        let sent = *event;
        *event += 2;
        if fate == Fate::Lost {
            return;
        }
        let outcomes = execute(&mut self.store, connection as u64 + 1, first + 1, &mut batch);
        if fate == Fate::Executed {
            return;
        }
        let mut rest = &outcomes.bytes[..];
        for (counter, outcome) in (first..).zip(&outcomes.outcomes) {
            let (data, after) = rest.split_at(outcome.data_length as usize);
            rest = after;
            assert_eq!(outcome.status, OutcomeStatus::Committed as u16);
            ledger.acknowledged.insert(counter, counter + 1);
            let origin = Origin { connection: connection as u16, counter };
            if self.workload.observes() {
                self.workload.answered(&Answer { origin, sent, answered: sent + 1, data });
            }
        }
    }

    fn play(&mut self, frames: &[(usize, Fate)]) {
        let mut event = 1;
        for (connection, fate) in frames {
            self.frame(*connection, *fate, &mut event);
        }
    }

    fn verify(&self) -> Verification {
        self.workload
            .verify(&self.ledger, &mut ModelRows(&self.store))
            .expect("the model has no errors")
    }
}

fn execute(store: &mut Store, session: u64, first_number: u64, batch: &mut Batch) -> Outcomes {
    let mut frame = Vec::new();
    batch.write_frame(&mut frame, 1, first_number, 1);
    batch.clear();
    let submit: Submit = decode(&frame[HEADER_BYTES..]).expect("a valid archive");
    store.execute(session, &submit)
}

fn some_frames() -> Vec<(usize, Fate)> {
    (0..40).map(|frame| (frame % CONNECTIONS, Fate::Answered)).collect()
}

fn played(kind: WorkloadKind) -> Played {
    let mut played = Played::start(kind, 1, 7);
    played.play(&some_frames());
    assert_eq!(played.verify().findings, Vec::<String>::new());
    played
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_sound_node_passes_whatever_is_answered(
        kind in 0usize..KINDS.len(),
        shards in 1u16..4,
        seed in any::<u64>(),
        frames in prop::collection::vec(
            (0usize..CONNECTIONS, prop_oneof![
                4 => Just(Fate::Answered), 1 => Just(Fate::Executed), 1 => Just(Fate::Lost),
            ]),
            0..30,
        ),
    ) {
        let mut played = Played::start(KINDS[kind], shards, seed);
        played.play(&frames);
        let verification = played.verify();
        prop_assert!(verification.is_good(), "{:?}: {verification:?}", KINDS[kind]);
        let answered = frames.iter().filter(|frame| frame.1 == Fate::Answered).count() as u64;
        prop_assert_eq!(verification.acknowledged, answered * BATCH);
        prop_assert_eq!(verification.verified, verification.acknowledged);
    }
}

#[test]
fn every_transaction_of_a_shard_stays_on_it() {
    for kind in KINDS {
        let placement = Placement { partitions: PARTITIONS_DEFAULT as u32, shards: 3 };
        let mut played = Played::start(kind, 3, 5);
        for connection in 0..CONNECTIONS as u16 {
            let shard = played.workload.shard_only().unwrap_or(connection % 3);
            for counter in 0..50 {
                let mut batch = Batch::new();
                played.workload.fill(Origin { connection, counter }, &mut batch).expect("fits");
                let mut frame = Vec::new();
                batch.write_frame(&mut frame, 1, 1, 1);
                let submit: Submit = decode(&frame[HEADER_BYTES..]).expect("valid");
                let mut bytes = &submit.bytes[..];
                for head in &submit.operations {
                    let layout = &played.store.tables[usize::from(head.table) - 1].layout;
                    let key = &bytes[..usize::from(head.key_length)];
                    let prefix = spillway_net::key::key_validate(layout, key).expect("a key");
                    assert_eq!(placement.shard_of(&key[..prefix]), shard, "{kind:?}");
                    bytes = &bytes[key.len() + head.value_length as usize..];
                }
            }
        }
    }
}

#[test]
fn a_transfer_row_has_80_bytes() {
    let played = played(WorkloadKind::Transfer);
    assert!(played.store.tables[1].rows.values().all(|row| row.len() == 80));
}

#[test]
fn a_missing_row_is_lost() {
    for (kind, table) in [(WorkloadKind::Transfer, 1), (WorkloadKind::Insert, 0)] {
        let mut played = played(kind);
        played.store.tables[table].rows.pop_first().expect("has rows");
        let verification = played.verify();
        assert_eq!(verification.lost, 1, "{kind:?}");
        assert_eq!(verification.verified, verification.acknowledged - 1);
        assert!(verification.findings[0].contains("lost") || kind == WorkloadKind::Transfer);
        // The balances still hold what the lost transfer did: both accounts are told.
        let expected = if kind == WorkloadKind::Transfer { 2 } else { 0 };
        assert_eq!(verification.imbalanced, expected, "{kind:?}");
    }
}

#[test]
fn a_foreign_row_is_told() {
    for (kind, table) in [(WorkloadKind::Transfer, 1), (WorkloadKind::Insert, 0)] {
        let mut played = played(kind);
        let rows = &mut played.store.tables[table].rows;
        let (mut key, row) = rows.first_key_value().map(|(k, r)| (k.clone(), r.clone())).expect("");
        let last = key.len() - 1;
        key[last] ^= 1;
        rows.insert(key, row);
        let verification = played.verify();
        assert_eq!((verification.foreign, verification.lost), (1, 0), "{kind:?}");
    }
}

#[test]
fn a_refused_transaction_must_leave_no_trace() {
    for kind in [WorkloadKind::Transfer, WorkloadKind::Insert] {
        let mut played = played(kind);
        let ledger = &mut played.ledger.connections[0];
        ledger.acknowledged = Default::default();
        ledger.acknowledged.insert(1, ledger.sent);
        ledger.refused.insert(0, 1);
        let verification = played.verify();
        assert_eq!((verification.foreign, verification.lost), (1, 0), "{kind:?}");
    }
}

#[test]
fn a_damaged_row_is_told() {
    for (kind, table) in [
        (WorkloadKind::Transfer, 1),
        (WorkloadKind::Insert, 0),
        (WorkloadKind::YcsbA, 0),
        (WorkloadKind::Cluster31, 0),
        (WorkloadKind::Cluster37, 0),
    ] {
        let mut played = played(kind);
        let rows = &mut played.store.tables[table].rows;
        *rows.first_entry().expect("has rows").get_mut().last_mut().expect("has bytes") ^= 0x10;
        assert_eq!(played.verify().damaged, 1, "{kind:?}");
    }
}

#[test]
fn an_imbalance_is_told_even_if_the_total_is_right() {
    let mut played = played(WorkloadKind::Transfer);
    let mut rows = played.store.tables[0].rows.values_mut();
    let (first, second) = (rows.next().expect("a row"), rows.next().expect("a row"));
    let add = |row: &mut Vec<u8>, by: i64| {
        let balance = i64::from_le_bytes(row[..8].try_into().expect("8 bytes")) + by;
        row[..8].copy_from_slice(&balance.to_le_bytes());
    };
    add(first, 1);
    add(second, -1);
    assert_eq!(played.verify().imbalanced, 2);
    let first = played.store.tables[0].rows.values_mut().next().expect("a row");
    add(first, -1);
    // One account right again, the other wrong, and now the total too.
    assert_eq!(played.verify().imbalanced, 2);
}

#[test]
fn a_missing_account_is_told() {
    let mut played = played(WorkloadKind::Transfer);
    played.store.tables[0].rows.pop_last().expect("has rows");
    assert!(played.verify().damaged == 1);
}

#[test]
fn a_counter_too_low_or_too_high_is_told() {
    for (by, lost, imbalanced) in [(-3i64, 3, 0), (2, 0, 1)] {
        let mut played = played(WorkloadKind::Hot);
        let row = played.store.tables[0].rows.values_mut().next().expect("the counter");
        let value = i64::from_le_bytes(row[..].try_into().expect("8 bytes")) + by;
        row.copy_from_slice(&value.to_le_bytes());
        let verification = played.verify();
        assert_eq!((verification.lost, verification.imbalanced), (lost, imbalanced));
    }
    let mut played = played(WorkloadKind::Hot);
    played.store.tables[0].rows.clear();
    assert_eq!(played.verify().lost, 40 * BATCH);
}

#[test]
fn an_old_value_is_a_lost_write() {
    for kind in [WorkloadKind::YcsbA, WorkloadKind::Cluster15, WorkloadKind::Cluster37] {
        let mut played = Played::start(kind, 1, 3);
        let loaded = played.store.tables[0].rows.clone();
        played.play(&some_frames());
        assert!(played.verify().is_good(), "{kind:?}");
        let newest = std::mem::replace(&mut played.store.tables[0].rows, loaded);
        let verification = played.verify();
        assert!(verification.lost > 10, "{kind:?}: {verification:?}");
        assert_eq!((verification.damaged, verification.foreign), (0, 0), "{kind:?}");
        played.store.tables[0].rows = newest;
        played.store.tables[0].rows.pop_first().expect("has rows");
        assert_eq!(played.verify().damaged, 1, "{kind:?}: a record is missing");
    }
}
