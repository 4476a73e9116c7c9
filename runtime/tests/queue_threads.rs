//! The queues with the machine's own atomics, on real threads.
//!
//! `queue_model.rs` and `queue_memory_order.rs` explore orders with the slots and atomics of a
//! model; here the real ones run. Under miri (`cargo xtask miri`) every access is held against the
//! language's memory model, stores are seen late where it allows that, and a seed draws the
//! schedule: what is judged is the unsafe code of the slots.

#![expect(clippy::disallowed_methods, reason = "threads that sleep and wake as a test wants")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use spillway_runtime::queue::park::WakeFlag;
use spillway_runtime::queue::{mpsc, spsc, state};

const ITEMS: u64 = if cfg!(miri) { 12 } else { 2_000 };
const PRODUCERS: u64 = 3;

/// On the heap, so that a value that was taken twice or never is a double free or a leak.
type Item = Box<(u64, u64)>;

#[test]
fn mpsc_hands_over_each_item_once_in_ticket_order() {
    let (producer, mut consumer) = mpsc::ring::<Item>(4);
    let threads: Vec<_> = (0..PRODUCERS)
        .map(|number| {
            let producer = producer.clone();
            thread::spawn(move || {
                for count in 0..ITEMS {
                    let mut item = Box::new((number, count));
                    while let Err(mpsc::Full(back)) = producer.try_push(item) {
                        item = back;
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut next = [0; PRODUCERS as usize];
    let mut popped = 0;
    while popped < PRODUCERS * ITEMS {
        let Some((ticket, item)) = consumer.pop() else {
            thread::yield_now();
            continue;
        };
        popped += 1;
        assert_eq!(ticket.0, popped, "tickets have no gap");
        let (number, count) = *item;
        assert_eq!(count, next[number as usize], "a producer's items keep their order");
        next[number as usize] += 1;
    }
    for thread in threads {
        thread.join().expect("join");
    }
    assert!(consumer.pop().is_none());
}

#[test]
fn mpsc_drops_what_nobody_took() {
    let (producer, mut consumer) = mpsc::ring::<Item>(8);
    let other = producer.clone();
    let pusher = thread::spawn(move || {
        (0..5).filter(|count| other.try_push(Box::new((0, *count))).is_ok()).count()
    });
    drop(consumer.pop());
    drop(consumer);
    assert_eq!(pusher.join().expect("join"), 5);
    assert!(producer.try_push(Box::new((1, 0))).is_ok());
}

#[test]
fn spsc_hands_over_each_item_once_in_order() {
    let (mut producer, mut consumer) = spsc::ring::<Item>(2);
    let pusher = thread::spawn(move || {
        for count in 0..ITEMS {
            let mut item = Box::new((0, count));
            while let Err(spsc::Full(back)) = producer.try_push(item) {
                item = back;
                thread::yield_now();
            }
        }
        // One that nobody takes.
        while producer.stage(Box::new((0, ITEMS))).is_err() {
            thread::yield_now();
        }
    });
    let mut next = 0;
    while next < ITEMS {
        match consumer.pop() {
            Some(item) => {
                assert_eq!(*item, (0, next));
                next += 1;
            }
            None => thread::yield_now(),
        }
    }
    pusher.join().expect("join");
    assert!(consumer.is_ready(), "dropping the producer publishes what was staged");
}

#[test]
fn state_is_of_one_publication() {
    let (mut writer, cell) = state::cell([0u64; 6]);
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let cell = cell.clone();
            thread::spawn(move || {
                let mut newest = 0;
                while newest < ITEMS {
                    let words = cell.read();
                    assert!(words.iter().all(|word| *word == words[0]), "torn: {words:?}");
                    assert!(words[0] >= newest, "went back");
                    newest = words[0];
                    thread::yield_now();
                }
            })
        })
        .collect();
    for value in 1..=ITEMS {
        writer.publish([value; 6]);
    }
    for reader in readers {
        reader.join().expect("join");
    }
}

#[test]
fn no_sleeper_is_forgotten() {
    let (producer, mut consumer) = mpsc::ring::<Item>(4);
    let flag = Arc::new(WakeFlag::new());
    let wakes = Arc::new(AtomicU64::new(0));
    let sleeper = thread::current();
    let pusher = {
        let (flag, wakes) = (Arc::clone(&flag), Arc::clone(&wakes));
        thread::spawn(move || {
            for count in 0..ITEMS {
                let mut item = Box::new((0, count));
                while let Err(mpsc::Full(back)) = producer.try_push(item) {
                    item = back;
                    thread::yield_now();
                }
                if flag.needs_wake() {
                    wakes.fetch_add(1, Ordering::Relaxed);
                    sleeper.unpark();
                }
            }
        })
    };
    let (mut popped, mut announced) = (0, 0);
    while popped < ITEMS {
        if consumer.pop().is_some() {
            popped += 1;
            continue;
        }
        flag.prepare_to_park();
        announced += 1;
        if !consumer.is_ready() {
            // Sleeps for ever if nobody wakes it: miri reports the deadlock.
            thread::park();
        }
        flag.cancel();
    }
    pusher.join().expect("join");
    assert!(wakes.load(Ordering::Relaxed) <= announced, "a wake went to who was awake");
}
