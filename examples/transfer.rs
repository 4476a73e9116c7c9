//! Moves money between two accounts, three times; the third time there is not enough.
//!
//! `cargo run --example transfer -- 127.0.0.1:7400`, with the address of a running node.

use std::error::Error;

use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::{Client, Transaction};
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value::Int8;

const ACCOUNTS: &str = "accounts(branch int8, id int8, balance int8, \
                        primary key (branch, id), partition key (branch))";

fn main() {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    if let Err(error) = run(&address) {
        eprintln!("{error}\nThis example needs a running node; the README says how to start one.");
        std::process::exit(1);
    }
}

fn run(address: &str) -> Result<(), Box<dyn Error>> {
    let mut client = Client::connect(address)?;
    let accounts = client.create_table(&TableDefinition::parse(ACCOUNTS)?)?;

    let mut open = Transaction::new();
    open.upsert(&accounts, &[Int8(1), Int8(1), Int8(100)])?;
    open.upsert(&accounts, &[Int8(1), Int8(2), Int8(0)])?;
    println!("open:     {:?}", client.execute(&mut open)?.status);

    let add = |delta, min| AddArgument::Int(AddBounded { delta, min, max: None });
    for _ in 0..3 {
        let mut transfer = Transaction::new();
        transfer.add(&accounts, &[Int8(1), Int8(1)], "balance", add(-40, Some(0)))?;
        transfer.add(&accounts, &[Int8(1), Int8(2)], "balance", add(40, None))?;
        println!("transfer: {:?}", client.execute(&mut transfer)?.status);
    }
    for id in [1, 2] {
        println!("account {id}: {:?}", client.get(&accounts, &[Int8(1), Int8(id)])?);
    }
    Ok(client.close()?)
}
