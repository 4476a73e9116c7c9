//! Moves money between two accounts, three times; the third time there is not enough.
//!
//! `cargo run --example transfer -- 127.0.0.1:7400`, with the addresses of one or more nodes of a
//! running cluster. Works on while another node takes the lead.

use std::error::Error;

use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::{Client, ClientError, ClientOptions, Transaction};
use spillway_net::message::OutcomeStatus;
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value::Int8;

const ACCOUNTS: &str = "accounts(branch int8, id int8, balance int8, \
                        primary key (branch, id), partition key (branch))";

fn main() {
    let mut addresses: Vec<String> = std::env::args().skip(1).collect();
    if addresses.is_empty() {
        addresses.push("127.0.0.1:7400".to_owned());
    }
    if let Err(error) = run(addresses) {
        eprintln!("{error}\nThis example needs a running node; the README says how to start one.");
        std::process::exit(1);
    }
}

/// Runs a transaction. Whether it took effect may be unknown, for example because leaders failed
/// while it was on its way: then the client asks again, and it takes effect once in any case.
fn execute(
    client: &mut Client,
    transaction: &mut Transaction,
) -> Result<OutcomeStatus, ClientError> {
    match client.execute(transaction) {
        Err(ClientError::Unknown(reason)) => {
            println!("unknown so far: {}", reason.describe());
            let outcomes = client.resolve()?;
            Ok(outcomes.first().expect("one transaction has one outcome").status)
        }
        outcome => Ok(outcome?.status),
    }
}

fn run(addresses: Vec<String>) -> Result<(), Box<dyn Error>> {
    let mut client = Client::connect_with(ClientOptions::cluster(addresses))?;
    let accounts = client.create_table(&TableDefinition::parse(ACCOUNTS)?)?;

    let mut open = Transaction::new();
    open.upsert(&accounts, &[Int8(1), Int8(1), Int8(100)])?;
    open.upsert(&accounts, &[Int8(1), Int8(2), Int8(0)])?;
    println!("open:     {:?}", execute(&mut client, &mut open)?);

    let add = |delta, min| AddArgument::Int(AddBounded { delta, min, max: None });
    for _ in 0..3 {
        let mut transfer = Transaction::new();
        transfer.add(&accounts, &[Int8(1), Int8(1)], "balance", add(-40, Some(0)))?;
        transfer.add(&accounts, &[Int8(1), Int8(2)], "balance", add(40, None))?;
        println!("transfer: {:?}", execute(&mut client, &mut transfer)?);
    }
    for id in [1, 2] {
        println!("account {id}: {:?}", client.get(&accounts, &[Int8(1), Int8(id)])?);
    }
    Ok(client.close()?)
}
