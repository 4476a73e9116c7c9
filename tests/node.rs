//! A node as its users see it: formatted, started, killed, started again.

#![expect(clippy::disallowed_methods, reason = "tests prepare and damage files on their own")]

mod common;

use common::TestNode;
use common::raw::{Raw, RawOperation, frame_of, hello_frame, submit_of};
use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::{Client, ClientError, ScanRange, TableHandle, Transaction};
use spillway_net::frame::FrameKind;
use spillway_net::message::{
    self, OperationKind, OutcomeStatus, RefusalCode, SessionClose, TableCreate, TableList,
    TableListing,
};
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;

fn accounts(client: &mut Client) -> TableHandle {
    let text = "accounts(branch int8, id int8, balance int8, note text null, \
                primary key (branch, id), partition key (branch))";
    let definition = TableDefinition::parse(text).expect("a valid definition");
    client.create_table(&definition).expect("created")
}

fn amount(delta: i64, min: Option<i64>) -> AddArgument {
    AddArgument::Int(AddBounded { delta, min, max: None })
}

#[test]
fn a_transfer_survives_kill_nine() {
    let mut node = TestNode::start("kill");
    let mut client = Client::connect(node.address()).expect("connected");
    let table = accounts(&mut client);
    for id in 1..=2 {
        let mut insert = Transaction::new();
        let row = [Value::Int8(1), Value::Int8(id), Value::Int8(100), Value::Null];
        insert.insert(&table, &row).expect("fits");
        let outcome = client.execute(&mut insert).expect("answered");
        assert_eq!(outcome.status, OutcomeStatus::Committed);
    }
    let mut transfer = Transaction::new();
    let key = |id| [Value::Int8(1), Value::Int8(id)];
    transfer.add(&table, &key(1), "balance", amount(-70, Some(0))).unwrap();
    transfer.add(&table, &key(2), "balance", amount(70, None)).unwrap();
    let outcome = client.execute(&mut transfer).expect("answered");
    assert_eq!(outcome.status, OutcomeStatus::Committed);
    let mut again = Transaction::new();
    again.add(&table, &key(2), "balance", amount(70, None)).unwrap();
    again.add(&table, &key(1), "balance", amount(-70, Some(0))).unwrap();
    let outcome = client.execute(&mut again).expect("answered");
    assert_eq!(outcome.status, OutcomeStatus::BoundsViolated);
    assert_eq!(outcome.operation, 1);

    node.kill_and_restart();
    let mut client = Client::connect(node.address()).expect("connected again");
    let table = client.table("accounts").expect("the table is in the log");
    let balances: Vec<_> = client
        .scan(&table, ScanRange::default())
        .map(|row| row.expect("a row").values[2].clone())
        .collect();
    assert_eq!(balances, [Value::Int8(30), Value::Int8(170)]);
}

/// Key and row of an account, encoded.
fn encoded(table: &TableHandle, branch: i64, id: i64, balance: i64) -> (Vec<u8>, Vec<u8>, u16) {
    let values = [Value::Int8(branch), Value::Int8(id), Value::Int8(balance), Value::Null];
    let (mut key, mut row) = (Vec::new(), Vec::new());
    let shard = table.write_row(&values, &mut key, &mut row).expect("fits");
    (key, row, shard)
}

fn balance(client: &mut Client, table: &TableHandle, branch: i64, id: i64) -> Option<Value> {
    let row = client.get(table, &[Value::Int8(branch), Value::Int8(id)]).expect("served");
    row.map(|row| row.values[2].clone())
}

#[test]
fn a_transaction_sent_again_after_a_kill_gets_its_first_outcome() {
    let mut node = TestNode::start("again");
    let mut client = Client::connect(node.address()).expect("connected");
    let table = accounts(&mut client);
    let (key, row, _) = encoded(&table, 1, 1, 100);
    let column = table.column("balance").expect("a column");
    let mut argument = Vec::new();
    table.write_add("balance", &amount(5, None), &mut argument).expect("fits");
    let id = table.id().0;
    let insert: [RawOperation<'_>; 1] = [(OperationKind::Insert, id, 0, &key, &row)];
    let add: [RawOperation<'_>; 1] = [(OperationKind::Add, id, column, &key, &argument)];
    let read: [RawOperation<'_>; 2] =
        [(OperationKind::Delete, id, 0, &key, b""), (OperationKind::Get, id, 0, &key, b"")];

    let (mut raw, session) = Raw::with_session(node.address());
    assert_eq!(raw.submit(1, &insert).status(), OutcomeStatus::Committed);
    assert_eq!(raw.submit(2, &insert).status(), OutcomeStatus::Duplicate);
    assert_eq!(raw.submit(3, &add).status(), OutcomeStatus::Committed);
    for _ in 0..2 {
        node.kill_and_restart();
        let mut raw = Raw::greeted(node.address(), session);
        assert_eq!(raw.submit(3, &add).status(), OutcomeStatus::Committed);
        assert_eq!(raw.submit(1, &insert).status(), OutcomeStatus::Committed);
        assert_eq!(raw.submit(3, &insert).status(), OutcomeStatus::NumberReused);
        let mut client = Client::connect(node.address()).expect("connected again");
        let table = client.table("accounts").expect("it is in the log");
        assert_eq!(balance(&mut client, &table, 1, 1), Some(Value::Int8(105)), "added once");
    }
    // A failed check is not in the log: it is made again, with what is there now.
    let mut raw = Raw::greeted(node.address(), session);
    assert_eq!(raw.submit(2, &insert).status(), OutcomeStatus::Duplicate);
    // Results are kept with the outcome.
    let first = raw.submit(4, &read);
    assert_eq!(first.status(), OutcomeStatus::Committed);
    node.kill_and_restart();
    let mut raw = Raw::greeted(node.address(), session);
    let again = raw.submit(4, &read);
    assert_eq!(again.status(), OutcomeStatus::Committed);
    assert_eq!(first.payload, again.payload);
    assert_eq!(raw.submit(5, &add).status(), OutcomeStatus::NotFound);
    // What the client has acknowledged is refused, never executed.
    let mut late = submit_of(6, &insert);
    late.acknowledged_below = 6;
    raw.send(&frame_of(FrameKind::Submit, 6, &late));
    assert_eq!(raw.answer().status(), OutcomeStatus::Committed);
    assert_eq!(raw.submit(3, &add).status(), OutcomeStatus::NumberOutOfWindow);
}

#[test]
fn a_closed_session_stays_closed_after_a_kill() {
    let mut node = TestNode::start("closed");
    let (raw, session) = Raw::with_session(node.address());
    drop(raw);
    let mut raw = Raw::greeted(node.address(), 0);
    raw.send(&frame_of(FrameKind::SessionClose, 2, &SessionClose { session }));
    assert_eq!(raw.answer().kind, FrameKind::Done);
    for _ in 0..2 {
        let mut raw = Raw::connect(node.address());
        raw.send(&hello_frame(session));
        assert_eq!(raw.end().expect("a refusal").0, RefusalCode::SessionUnknown);
        let (_, newer) = Raw::with_session(node.address());
        assert!(newer > session, "numbers of sessions are not given out again");
        node.kill_and_restart();
    }
}

#[test]
fn tables_created_and_dropped_are_so_after_a_kill() {
    let mut node = TestNode::start("tables");
    let mut client = Client::connect(node.address()).expect("connected");
    let first = accounts(&mut client);
    for id in 0..10 {
        let mut insert = Transaction::new();
        let row = [Value::Int8(1), Value::Int8(id), Value::Int8(id), Value::Null];
        insert.insert(&first, &row).expect("fits");
        assert!(client.execute(&mut insert).expect("answered").is_committed());
    }
    client.drop_table("accounts").expect("dropped");
    let stale = client.get(&first, &[Value::Int8(1), Value::Int8(1)]);
    assert!(matches!(stale, Err(ClientError::NotCommitted(OutcomeStatus::UnknownTable))));

    node.kill_and_restart();
    let mut client = Client::connect(node.address()).expect("connected again");
    assert!(client.tables().expect("served").is_empty());
    let second = accounts(&mut client);
    assert_ne!(first.id(), second.id(), "numbers of tables are not given out again");
    assert_eq!(balance(&mut client, &second, 1, 1), None, "the new table is empty");
    let mut insert = Transaction::new();
    let row = [Value::Int8(1), Value::Int8(1), Value::Int8(77), Value::Null];
    insert.insert(&second, &row).expect("fits");
    assert!(client.execute(&mut insert).expect("answered").is_committed());

    node.kill_and_restart();
    let mut client = Client::connect(node.address()).expect("connected again");
    let tables = client.tables().expect("served");
    assert_eq!(tables.len(), 1);
    assert_eq!((tables[0].id, tables[0].rows), (second.id().0, 1));
    assert_eq!(tables[0].definition, *second.definition());
    assert_eq!(accounts(&mut client).id(), second.id(), "the same definition is the same table");
    assert_eq!(balance(&mut client, &second, 1, 1), Some(Value::Int8(77)));
}

/// Two branches that live on different shards, by shard.
fn branches_of_two_shards(table: &TableHandle) -> [i64; 2] {
    [0, 1].map(|wanted| {
        let on_shard = |branch: &i64| encoded(table, *branch, 0, 0).2 == wanted;
        (0..1000).find(on_shard).expect("a thousand branches lie on both shards")
    })
}

#[test]
fn two_shards_share_tables_and_keep_their_rows_apart() {
    two_shards("shards", "shards = 2");
}

#[test]
fn a_log_with_a_thread_of_its_own_serves_all_shards() {
    two_shards("ownlog", "shards = 2\n[threads]\nlog = 'own'\npin = true");
}

fn two_shards(name: &str, settings: &str) {
    let mut node = TestNode::start_with(name, settings);
    assert_eq!(node.addresses().len(), 2);
    let mut client = Client::connect(node.address()).expect("connected");
    let table = accounts(&mut client);
    let branches = branches_of_two_shards(&table);
    for address in node.addresses() {
        let mut raw = Raw::greeted(*address, 0);
        raw.send(&frame_of(FrameKind::TableList, 3, &TableList {}));
        let listing = message::decode::<TableListing>(&raw.answer().payload).expect("valid");
        assert_eq!(listing.tables.len(), 1, "every shard knows the table");
    }
    for branch in branches {
        let mut insert = Transaction::new();
        for id in 0..2 {
            let row = [Value::Int8(branch), Value::Int8(id), Value::Int8(100), Value::Null];
            insert.insert(&table, &row).expect("fits");
        }
        assert!(client.execute(&mut insert).expect("answered").is_committed());
    }

    let id = table.id().0;
    let rows = branches.map(|branch| encoded(&table, branch, 9, 1));
    let (_, session) = Raw::with_session(node.address());
    let mut raws = [0, 1].map(|shard| Raw::greeted(node.addresses()[shard], session));
    let both: Vec<RawOperation<'_>> = rows
        .iter()
        .map(|(key, row, _)| (OperationKind::Insert, id, 0, &key[..], &row[..]))
        .collect();
    for (shard, raw) in raws.iter_mut().enumerate() {
        assert_eq!(raw.submit(1, &both).status(), OutcomeStatus::CrossShard);
        let other = 1 - shard;
        let answer = raw.submit(2, &both[other..=other]);
        assert_eq!(answer.status(), OutcomeStatus::WrongShard);
        assert_eq!(usize::from(answer.outcomes()[0].operation), other, "it names the right one");
        assert_eq!(raw.submit(3, &both[shard..=shard]).status(), OutcomeStatus::Committed);
        assert_eq!(raw.submit(3, &both[shard..=shard]).status(), OutcomeStatus::Committed);
    }
    // The root service answers on shard 0 only.
    let create = TableCreate { definition: table.definition().clone() };
    raws[1].send(&frame_of(FrameKind::TableCreate, 9, &create));
    assert_eq!(raws[1].answer().refusal().0, RefusalCode::WrongShard);

    node.kill_and_restart();
    let mut raws = [0, 1].map(|shard| Raw::greeted(node.addresses()[shard], session));
    for (shard, raw) in raws.iter_mut().enumerate() {
        assert_eq!(raw.submit(3, &both[shard..=shard]).status(), OutcomeStatus::Committed);
        assert_eq!(raw.submit(4, &both[shard..=shard]).status(), OutcomeStatus::Duplicate);
    }
    let mut client = Client::connect(node.address()).expect("connected again");
    assert_eq!(client.tables().expect("served")[0].rows, 6);
}

#[test]
fn another_number_of_shards_keeps_everything() {
    let mut node = TestNode::start_with("reshard", "shards = 2");
    let mut client = Client::connect(node.address()).expect("connected");
    let table = accounts(&mut client);
    let mut expected = Vec::new();
    for branch in 0..40 {
        let mut insert = Transaction::new();
        for id in 0..3 {
            let row = [Value::Int8(branch), Value::Int8(id), Value::Int8(branch), Value::Null];
            insert.insert(&table, &row).expect("fits");
            expected.push(row);
        }
        assert!(client.execute(&mut insert).expect("answered").is_committed());
    }
    let branches = branches_of_two_shards(&table);
    let id = table.id().0;
    let rows = branches.map(|branch| encoded(&table, branch, 9, 1));
    let (_, session) = Raw::with_session(node.address());
    for (number, (key, row, shard)) in rows.iter().enumerate() {
        let mut raw = Raw::greeted(node.addresses()[usize::from(*shard)], session);
        let insert: [RawOperation<'_>; 1] = [(OperationKind::Insert, id, 0, key, row)];
        assert_eq!(raw.submit(number as u64 + 1, &insert).status(), OutcomeStatus::Committed);
        let values = [branches[number], 9, 1].map(Value::Int8);
        let [branch, id, balance] = values;
        expected.push([branch, id, balance, Value::Null]);
    }
    expected.sort_by_key(|row| match row {
        [Value::Int8(branch), Value::Int8(id), ..] => (*branch, *id),
        _ => panic!("keys are integers"),
    });
    for shards in [1, 3, 1, 2] {
        assert!(node.stop());
        let config = std::fs::read_to_string(node.config()).expect("read");
        let line = config.lines().find(|line| line.starts_with("shards = ")).expect("a line");
        let changed = config.replace(line, &format!("shards = {shards}"));
        node.place().configure_text(&changed);
        node.start_again();
        assert_eq!(node.addresses().len(), shards);
        let mut client = Client::connect(node.address()).expect("connected again");
        let table = client.table("accounts").expect("it is in the log");
        let found: Vec<Vec<Value>> =
            client.scan(&table, ScanRange::all()).map(|row| row.expect("a row").values).collect();
        assert_eq!(found, expected, "{shards} shards");
        // Outcomes went with their partitions.
        for (number, (key, row, _)) in rows.iter().enumerate() {
            let shard = table.shard_of(key).expect("a key");
            let mut raw = Raw::greeted(node.addresses()[usize::from(shard)], session);
            let insert: [RawOperation<'_>; 1] = [(OperationKind::Insert, id, 0, key, row)];
            assert_eq!(raw.submit(number as u64 + 1, &insert).status(), OutcomeStatus::Committed);
        }
        let mut upsert = Transaction::new();
        for row in &expected[..3] {
            upsert.upsert(&table, row).expect("fits");
        }
        assert!(client.execute(&mut upsert).expect("answered").is_committed());
    }
}
