//! The queues under a model checker: the same source files, compiled against shuttle's atomics.
//!
//! Each test runs thousands of schedules. A failure prints the schedule; replay it with
//! `shuttle::replay`. The last tests plant a bug each and require that it is found, so that the
//! checks are known to be able to fail.

#[path = "queue_model/sync.rs"]
mod sync;

#[path = "../src/queue/mpsc.rs"]
#[expect(dead_code, reason = "the model uses a part of the file")]
mod mpsc;
#[path = "../src/queue/park.rs"]
mod park;
#[path = "../src/queue/spsc.rs"]
#[expect(dead_code, reason = "the model uses a part of the file")]
mod spsc;
#[path = "../src/queue/state.rs"]
#[expect(dead_code, reason = "the model uses a part of the file")]
mod state;

use std::panic::{AssertUnwindSafe, catch_unwind};

use mpsc::{Full, Ticket};
use park::WakeFlag;
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shuttle::thread;

const SCHEDULES: usize = 10_000;

/// Checks under uniformly random schedules and under schedules with few, well placed switches.
fn check(model: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(model.clone(), SCHEDULES);
    shuttle::check_pct(model, SCHEDULES, 3);
}

/// Whether any schedule breaks the model: all schedules of a small one are tried, in order.
fn is_caught(model: impl Fn() + Send + Sync + Clone + 'static) -> bool {
    const SCHEDULES_ALL: usize = 100_000;
    let tried = || {
        check(model.clone());
        shuttle::check_dfs(model.clone(), Some(SCHEDULES_ALL));
    };
    catch_unwind(AssertUnwindSafe(tried)).is_err()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    producer: u64,
    number: u64,
}

/// Pushes until there is room, which the consumer will make.
fn push_waiting(producer: &mpsc::Producer<Item>, mut item: Item) -> Ticket {
    loop {
        match producer.try_push(item) {
            Ok(ticket) => return ticket,
            Err(Full(back)) => {
                assert_eq!(back, item, "a full ring gives the item back");
                item = back;
                thread::yield_now();
            }
        }
    }
}

fn pop_all(consumer: &mut mpsc::Consumer<Item>, count: usize) -> Vec<(Ticket, Item)> {
    let mut popped = Vec::new();
    while popped.len() < count {
        match consumer.pop() {
            Some(entry) => popped.push(entry),
            None => thread::yield_now(),
        }
    }
    popped
}

#[test]
fn mpsc_loses_nothing_doubles_nothing_and_keeps_ticket_order() {
    check(|| {
        const EACH: u64 = 3;
        let (producer, mut consumer) = mpsc::ring(2);
        let producers: Vec<_> = (0..2)
            .map(|number| {
                let producer = producer.clone();
                thread::spawn(move || {
                    let item = |count| Item { producer: number, number: count };
                    (0..EACH).map(|count| push_waiting(&producer, item(count))).collect::<Vec<_>>()
                })
            })
            .collect();
        let popped = pop_all(&mut consumer, 2 * EACH as usize);
        let tickets: Vec<Vec<Ticket>> =
            producers.into_iter().map(|handle| handle.join().expect("join")).collect();
        for (position, (ticket, item)) in popped.iter().enumerate() {
            assert_eq!(ticket.0, position as u64 + 1, "tickets start at one and have no gap");
            let given = tickets[item.producer as usize][item.number as usize];
            assert_eq!(*ticket, given, "the consumer sees the ticket that the producer got");
        }
        for given in &tickets {
            assert!(given.is_sorted_by(|one, two| one < two), "strictly rising: {given:?}");
        }
        assert!(consumer.pop().is_none());
    });
}

#[test]
fn mpsc_tickets_are_a_causal_cut() {
    check(|| {
        let (producer, mut consumer) = mpsc::ring(4);
        // What A has made known after its push.
        let known = Arc::new(AtomicU64::new(0));
        let (first, first_known) = (producer.clone(), Arc::clone(&known));
        let a = thread::spawn(move || {
            for number in 1..=2 {
                push_waiting(&first, Item { producer: 0, number });
                first_known.store(number, Ordering::Release);
            }
        });
        let b = thread::spawn(move || {
            // What B pushes depends on what it has seen of A.
            for _ in 0..2 {
                let seen = known.load(Ordering::Acquire);
                push_waiting(&producer, Item { producer: 1, number: seen });
            }
        });
        let popped = pop_all(&mut consumer, 4);
        a.join().expect("join");
        b.join().expect("join");
        let mut newest_of_a = 0;
        for (_, item) in popped {
            if item.producer == 0 {
                newest_of_a = item.number;
            } else {
                assert!(item.number <= newest_of_a, "an effect came before its cause");
            }
        }
    });
}

#[test]
fn mpsc_full_ring_reserves_nothing() {
    check(|| {
        let (producer, mut consumer) = mpsc::ring(2);
        let other = producer.clone();
        let pusher = thread::spawn(move || {
            let item = |number| Item { producer: 0, number };
            (0..4).filter(|number| other.try_push(item(*number)).is_ok()).count() as u64
        });
        let accepted_here = (0..3)
            .filter(|number| producer.try_push(Item { producer: 1, number: *number }).is_ok())
            .count() as u64;
        let mut popped = Vec::new();
        while let Some((ticket, _)) = consumer.pop() {
            popped.push(ticket.0);
        }
        let accepted = accepted_here + pusher.join().expect("join");
        while let Some((ticket, _)) = consumer.pop() {
            popped.push(ticket.0);
        }
        assert_eq!(popped, (1..=accepted).collect::<Vec<_>>(), "a refusal left a gap");
    });
}

#[test]
fn mpsc_drops_each_item_once() {
    check(|| {
        let (producer, mut consumer) = mpsc::ring(4);
        let counted = Arc::new(AtomicU64::new(0));
        struct Counted(Arc<AtomicU64>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let for_pusher = Arc::clone(&counted);
        let pusher = thread::spawn(move || {
            for _ in 0..3 {
                assert!(producer.try_push(Counted(Arc::clone(&for_pusher))).is_ok());
            }
        });
        drop(consumer.pop());
        drop(consumer);
        pusher.join().expect("join");
        assert_eq!(counted.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn spsc_keeps_order_and_loses_nothing() {
    check(|| {
        let (mut producer, mut consumer) = spsc::ring(2);
        let pusher = thread::spawn(move || {
            for number in 0..6u64 {
                let mut item = number;
                while let Err(spsc::Full(back)) = producer.try_push(item) {
                    item = back;
                    thread::yield_now();
                }
            }
        });
        for expected in 0..6 {
            let popped = loop {
                match consumer.pop() {
                    Some(item) => break item,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(popped, expected);
        }
        pusher.join().expect("join");
        assert!(consumer.pop().is_none() && !consumer.is_ready());
    });
}

#[test]
fn spsc_shows_staged_items_only_when_published() {
    check(|| {
        let (mut producer, mut consumer) = spsc::ring(4);
        let is_published = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_published);
        let pusher = thread::spawn(move || {
            producer.stage(1u64).expect("room");
            producer.stage(2).expect("room");
            flag.store(true, Ordering::Release);
            producer.publish();
            producer.stage(3).expect("room");
            // Dropping the producer publishes the rest.
        });
        let mut popped = Vec::new();
        while popped.len() < 3 {
            match consumer.pop() {
                Some(item) => {
                    assert!(is_published.load(Ordering::Acquire), "seen before publication");
                    popped.push(item);
                }
                None => thread::yield_now(),
            }
        }
        pusher.join().expect("join");
        assert_eq!(popped, [1, 2, 3]);
    });
}

/// A consumer that sleeps in a counted semaphore, as a ring sleeps in the kernel: a wake that comes
/// before the sleep is not lost. `recheck` is what the protocol demands.
fn run_parking(recheck: bool) {
    const EACH: u64 = 2;
    let (producer, mut consumer) = mpsc::ring(8);
    let flag = Arc::new(WakeFlag::new());
    let sleeper = thread::current();
    let wakes = Arc::new(AtomicU64::new(0));
    let producers: Vec<_> = (0..2)
        .map(|number| {
            let (producer, flag) = (producer.clone(), Arc::clone(&flag));
            let (sleeper, wakes) = (sleeper.clone(), Arc::clone(&wakes));
            thread::spawn(move || {
                for count in 0..EACH {
                    push_waiting(&producer, Item { producer: number, number: count });
                    if flag.needs_wake() {
                        wakes.fetch_add(1, Ordering::Relaxed);
                        sleeper.unpark();
                    }
                }
            })
        })
        .collect();
    let (mut popped, mut announced) = (0, 0);
    while popped < 2 * EACH {
        if consumer.pop().is_some() {
            popped += 1;
            continue;
        }
        flag.prepare_to_park();
        announced += 1;
        if recheck && consumer.is_ready() {
            flag.cancel();
            continue;
        }
        // Never wakes if a wake-up was lost: the checker reports the deadlock.
        thread::park();
        flag.cancel();
    }
    for handle in producers {
        handle.join().expect("join");
    }
    assert!(wakes.load(Ordering::Relaxed) <= announced, "a wake went to who was awake");
}

#[test]
fn no_wake_up_is_lost() {
    check(|| run_parking(true));
}

#[test]
fn planted_sleep_without_recheck_is_caught() {
    assert!(is_caught(|| run_parking(false)), "the lost wake-up was not found");
}

#[test]
fn nobody_wakes_who_is_awake_and_one_wakes_who_sleeps() {
    check(|| {
        let flag = Arc::new(WakeFlag::new());
        assert!(!flag.needs_wake(), "awake from the start");
        flag.prepare_to_park();
        let askers: Vec<_> = (0..3)
            .map(|_| {
                let flag = Arc::clone(&flag);
                thread::spawn(move || u32::from(flag.needs_wake()))
            })
            .collect();
        let told: u32 = askers.into_iter().map(|asker| asker.join().expect("join")).sum();
        assert_eq!(told, 1, "one of the producers wakes");
        flag.cancel();
        assert!(!flag.needs_wake());
    });
}

#[test]
fn state_is_never_torn_and_never_goes_back() {
    check(|| {
        let (mut writer, cell) = state::cell([0u64; 4]);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let cell = cell.clone();
                thread::spawn(move || {
                    let mut newest = 0;
                    for _ in 0..3 {
                        let words = cell.read();
                        assert!(words.iter().all(|word| *word == words[0]), "torn: {words:?}");
                        assert!(words[0] >= newest, "went back");
                        newest = words[0];
                    }
                })
            })
            .collect();
        for value in 1..=3 {
            writer.publish([value; 4]);
        }
        for reader in readers {
            reader.join().expect("join");
        }
        assert_eq!(cell.read(), [3; 4]);
    });
}

#[test]
fn planted_unguarded_state_is_caught() {
    // The same words without the sequence.
    let caught = is_caught(|| {
        let words: Arc<[AtomicU64; 4]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
        let shared = Arc::clone(&words);
        let reader = thread::spawn(move || {
            let seen: Vec<u64> = shared.iter().map(|word| word.load(Ordering::Acquire)).collect();
            assert!(seen.iter().all(|word| *word == seen[0]), "torn: {seen:?}");
        });
        for word in words.iter() {
            word.store(1, Ordering::Release);
        }
        reader.join().expect("join");
    });
    assert!(caught, "the torn read was not found");
}

#[test]
fn planted_rings_per_producer_are_no_causal_cut() {
    // What one shared tail is for: two rings drained one after the other show an effect before
    // its cause.
    let caught = is_caught(|| {
        let (mut producer_a, mut consumer_a) = spsc::ring(4);
        let (mut producer_b, mut consumer_b) = spsc::ring(4);
        let known = Arc::new(AtomicBool::new(false));
        let a_known = Arc::clone(&known);
        let a = thread::spawn(move || {
            producer_a.try_push(()).expect("room");
            a_known.store(true, Ordering::Release);
        });
        let b = thread::spawn(move || {
            producer_b.try_push(known.load(Ordering::Acquire)).expect("room");
        });
        let seen_a = consumer_a.pop().is_some();
        if let Some(b_knew_a) = consumer_b.pop() {
            assert!(!b_knew_a || seen_a, "an effect came before its cause");
        }
        a.join().expect("join");
        b.join().expect("join");
    });
    assert!(caught, "the broken cut was not found");
}

#[test]
fn planted_early_publication_is_caught() {
    // A slot shown before it is filled: what the sequence of each place prevents.
    let caught = is_caught(|| {
        let slot = Arc::new(sync::Slot::empty());
        let is_published = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (Arc::clone(&slot), Arc::clone(&is_published));
        let pusher = thread::spawn(move || {
            flag.store(true, Ordering::Release);
            // SAFETY: the model's slot is safe whatever the order; it reports the misuse.
            unsafe { shared.put(7u64) };
        });
        if is_published.load(Ordering::Acquire) {
            // SAFETY: as above.
            assert_eq!(unsafe { slot.take() }, 7);
        }
        pusher.join().expect("join");
    });
    assert!(caught, "the early publication was not found");
}
