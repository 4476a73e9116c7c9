//! A client that does no harm and must be served whatever others do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use spillway_net::client::{Client, ClientOptions, TableHandle, Transaction};
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;

/// Longest that one request may take, milliseconds: far above what a busy machine needs, and
/// below any time-out of the node that would hide a standstill.
const PATIENCE_MS: u64 = 8_000;

/// Later requests only read, so that a long test does not fill a small log.
const ROWS_MAX: i64 = 500;

fn row_of(id: i64) -> [Value; 3] {
    [Value::Int8(id), Value::Int4(7), Value::Text(format!("row {id}"))]
}

#[derive(Default)]
struct Progress {
    served: Mutex<(u64, bool)>,
    moved: Condvar,
    stop: AtomicBool,
}

/// Inserts and reads rows, one after the other, on a thread of its own.
pub struct Bystander {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

/// Sets the end when its thread ends, however it ends.
struct EndOnDrop(Arc<Progress>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.served.lock().expect("nobody panics with it").1 = true;
        self.0.moved.notify_all();
    }
}

/// A client that gives up soon, so that a node that stands still fails the test.
pub fn impatient(address: SocketAddr) -> Client {
    let mut options = ClientOptions::new(address);
    options.request_timeout_ms = PATIENCE_MS;
    options.give_up_ms = PATIENCE_MS;
    Client::connect_with(options).expect("connected")
}

/// The table that bystanders use, as a client sees it.
pub fn table(client: &mut Client) -> TableHandle {
    let text = "bystander(id int8, count int4, note text, primary key (id))";
    let definition = TableDefinition::parse(text).expect("a valid definition");
    client.create_table(&definition).expect("created")
}

impl Bystander {
    /// Begins; returns after the first request was served.
    pub fn start(address: SocketAddr) -> Self {
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let thread = std::thread::spawn(move || {
            let _end = EndOnDrop(Arc::clone(&shared));
            let mut client = impatient(address);
            let table = table(&mut client);
            let mut id = 0;
            while !shared.stop.load(Ordering::Acquire) {
                let row = row_of(id % ROWS_MAX);
                if id < ROWS_MAX {
                    let mut transaction = Transaction::new();
                    transaction.insert(&table, &row).expect("fits");
                    let outcome = client.execute(&mut transaction);
                    let outcome = outcome.expect("the bystander is served");
                    assert!(outcome.is_committed(), "{outcome:?}");
                }
                let found = client.get(&table, &row[..1]).expect("the bystander is served");
                assert_eq!(found.expect("it was inserted").values, row);
                id += 1;
                shared.served.lock().expect("nobody panics with it").0 += 1;
                shared.moved.notify_all();
            }
        });
        let bystander = Self { progress, thread: Some(thread) };
        bystander.served_anew();
        bystander
    }

    /// Returns after two more requests: at least one of them began after this call.
    pub fn served_anew(&self) {
        let mut served = self.progress.served.lock().expect("nobody panics with it");
        let target = served.0 + 2;
        while served.0 < target {
            assert!(!served.1, "the bystander was not served");
            served = self.progress.moved.wait(served).expect("nobody panics with it");
        }
    }

    /// Ends; every request must have been served.
    pub fn finish(mut self) {
        self.served_anew();
        self.progress.stop.store(true, Ordering::Release);
        self.thread.take().expect("once").join().expect("the bystander was served");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::Release);
    }
}
