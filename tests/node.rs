//! A node as its users see it: formatted, started, killed, started again.

mod common;

use common::TestNode;
use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::{Client, ScanRange, Transaction};
use spillway_net::message::OutcomeStatus;
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;

fn accounts(client: &mut Client) -> spillway_net::client::TableHandle {
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
