//! Nanoseconds per message between two threads, and the ratio to the standard library's channel
//! in the same run: the ratio is what can be compared between machines.

use spillway_runtime::clock::monotonic_now;
use spillway_runtime::queue::{mpsc, spsc};
use spillway_runtime::thread;

const MESSAGES: u64 = 2_000_000;
const CAPACITY: usize = 1024;
type Message = [u64; 8];

fn nanos_per_message(run: impl FnOnce()) -> f64 {
    let start = monotonic_now();
    run();
    monotonic_now().saturating_nanos_since(start) as f64 / MESSAGES as f64
}

fn consume(mut pop: impl FnMut() -> Option<Message>) {
    let mut sum = 0;
    let mut count = 0;
    while count < MESSAGES {
        match pop() {
            Some(message) => {
                sum += message[0];
                count += 1;
            }
            None => std::hint::spin_loop(),
        }
    }
    assert_eq!(sum, MESSAGES * (MESSAGES - 1) / 2);
}

fn produce(mut push: impl FnMut(Message) -> bool + Send + 'static) -> impl FnOnce() + Send {
    move || {
        for number in 0..MESSAGES {
            while !push([number; 8]) {
                std::hint::spin_loop();
            }
        }
    }
}

fn run_std() {
    let (sender, receiver) = std::sync::mpsc::sync_channel(CAPACITY);
    let producer = produce(move |message| sender.try_send(message).is_ok());
    let producer = thread::spawn("producer", None, producer).expect("spawn");
    consume(|| receiver.try_recv().ok());
    producer.join().expect("join");
}

fn run_mpsc() {
    let (ring, mut consumer) = mpsc::ring(CAPACITY);
    let producer = produce(move |message| ring.try_push(message).is_ok());
    let producer = thread::spawn("producer", None, producer).expect("spawn");
    consume(|| consumer.pop().map(|(_, message)| message));
    producer.join().expect("join");
}

fn run_spsc(batch: u64) {
    let (mut ring, mut consumer) = spsc::ring(CAPACITY);
    let producer = produce(move |message| {
        let is_staged = ring.stage(message).is_ok();
        if !is_staged || (message[0] + 1).is_multiple_of(batch) || message[0] + 1 == MESSAGES {
            ring.publish();
        }
        is_staged
    });
    let producer = thread::spawn("producer", None, producer).expect("spawn");
    consume(|| consumer.pop());
    producer.join().expect("join");
}

fn main() {
    println!("{MESSAGES} messages of 64 bytes, one producer, one consumer");
    for round in 1..=3 {
        let reference = nanos_per_message(run_std);
        let mpsc = nanos_per_message(run_mpsc);
        let spsc = nanos_per_message(|| run_spsc(1));
        let batched = nanos_per_message(|| run_spsc(64));
        println!(
            "round {round}: std {reference:.1} ns | mpsc {mpsc:.1} ns ({:.2}) | spsc {spsc:.1} ns \
             ({:.2}) | spsc by 64 {batched:.1} ns ({:.2})",
            mpsc / reference,
            spsc / reference,
            batched / reference
        );
    }
}
