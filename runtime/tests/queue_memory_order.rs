//! The memory orderings of the queues, under loom: the same source files, every execution that the
//! language's memory model allows within a bound of preemptions.
//!
//! `queue_model.rs` explores more threads and longer runs, but knows only sequential consistency;
//! a missing fence or a relaxed store in the wrong place is seen only here. The last tests plant
//! such bugs and require that they are found.

#[path = "queue_memory_order/sync.rs"]
mod sync;

#[path = "../src/queue/mpsc.rs"]
#[expect(dead_code, reason = "the model uses a part of the file")]
mod mpsc;
#[path = "../src/queue/park.rs"]
#[expect(dead_code, reason = "the model uses a part of the file")]
mod park;
#[path = "../src/queue/spsc.rs"]
#[expect(dead_code, reason = "the model uses a part of the file")]
mod spsc;
#[path = "../src/queue/state.rs"]
#[expect(dead_code, reason = "the model uses a part of the file")]
mod state;

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn is_caught(model: impl Fn() + Send + Sync + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(model))).is_err()
}

#[test]
fn mpsc_hands_items_over_whole() {
    check(|| {
        let (producer, mut consumer) = mpsc::ring(2);
        let other = producer.clone();
        let pusher = thread::spawn(move || other.try_push(Box::new(1u64)).expect("room").0);
        let here = producer.try_push(Box::new(2u64)).expect("room").0;
        let mut popped = Vec::new();
        if let Some((ticket, item)) = consumer.pop() {
            popped.push((ticket.0, *item));
        }
        let there = pusher.join().expect("join");
        while let Some((ticket, item)) = consumer.pop() {
            popped.push((ticket.0, *item));
        }
        let mut expected = vec![(here, 2), (there, 1)];
        expected.sort_unstable();
        assert_eq!(popped, expected);
    });
}

#[test]
fn mpsc_place_is_reused_only_when_emptied() {
    check(|| {
        let (producer, mut consumer) = mpsc::ring(2);
        let pusher = thread::spawn(move || {
            (0..3u64).filter(|number| producer.try_push(Box::new(*number)).is_ok()).count()
        });
        let mut popped = 0;
        for _ in 0..2 {
            popped += usize::from(consumer.pop().is_some());
        }
        let pushed = pusher.join().expect("join");
        while consumer.pop().is_some() {
            popped += 1;
        }
        assert!((2..=3).contains(&pushed) && popped == pushed, "{popped} of {pushed}");
    });
}

#[test]
fn mpsc_tickets_are_a_causal_cut() {
    check(|| {
        let (producer, mut consumer) = mpsc::ring(2);
        let known = Arc::new(AtomicBool::new(false));
        let (first, first_known) = (producer.clone(), Arc::clone(&known));
        let a = thread::spawn(move || {
            first.try_push('a').expect("room");
            first_known.store(true, Ordering::Release);
        });
        let b = thread::spawn(move || {
            let item = if known.load(Ordering::Acquire) { 'B' } else { 'b' };
            producer.try_push(item).expect("room");
        });
        a.join().expect("join");
        b.join().expect("join");
        let order = [consumer.pop().expect("pushed").1, consumer.pop().expect("pushed").1];
        assert_ne!(order, ['B', 'a'], "an effect came before its cause");
    });
}

#[test]
fn spsc_hands_items_over_whole() {
    check(|| {
        let (mut producer, mut consumer) = spsc::ring(1);
        let pusher = thread::spawn(move || {
            (0..3u64).filter(|number| producer.try_push(Box::new(*number)).is_ok()).count()
        });
        let mut popped = 0;
        for _ in 0..2 {
            popped += usize::from(consumer.pop().is_some());
        }
        let pushed = pusher.join().expect("join");
        popped += usize::from(consumer.pop().is_some());
        assert_eq!(popped, pushed);
    });
}

#[test]
fn state_is_never_torn() {
    check(|| {
        let (mut writer, cell) = state::cell([0u64; 2]);
        let reader = thread::spawn(move || {
            if let Some(words) = cell.try_read() {
                assert_eq!(words[0], words[1], "torn");
            }
        });
        writer.publish([1; 2]);
        writer.publish([2; 2]);
        reader.join().expect("join");
    });
}

/// Whether the consumer may sleep for ever: it saw nothing, and nobody was told to wake it.
fn run_wake_flag(fenced: bool) {
    let flag = Arc::new(park::WakeFlag::new());
    let parked = Arc::new(AtomicBool::new(false));
    let news = Arc::new(AtomicU64::new(0));
    let (their_flag, their_parked, their_news) = (flag.clone(), parked.clone(), news.clone());
    let producer = thread::spawn(move || {
        their_news.store(1, Ordering::Release);
        if fenced { their_flag.needs_wake() } else { their_parked.load(Ordering::Acquire) }
    });
    if fenced {
        flag.prepare_to_park();
    } else {
        // Planted: what `prepare_to_park` would be without its fence.
        parked.store(true, Ordering::Release);
    }
    let sleeps = news.load(Ordering::Acquire) == 0;
    let is_woken = producer.join().expect("join");
    assert!(!sleeps || is_woken, "a lost wake-up");
}

#[test]
fn no_wake_up_is_lost() {
    check(|| run_wake_flag(true));
}

#[test]
fn planted_wake_flag_without_fences_is_caught() {
    assert!(is_caught(|| run_wake_flag(false)), "the lost wake-up was not found");
}

#[test]
fn planted_relaxed_publication_is_caught() {
    let caught = is_caught(|| {
        let slot = Arc::new(sync::Slot::empty());
        let is_published = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (Arc::clone(&slot), Arc::clone(&is_published));
        let pusher = thread::spawn(move || {
            // SAFETY: loom reports the misuse instead of committing it.
            unsafe { shared.put(7u64) };
            flag.store(true, Ordering::Relaxed);
        });
        if is_published.load(Ordering::Acquire) {
            // SAFETY: as above.
            assert_eq!(unsafe { slot.take() }, 7);
        }
        pusher.join().expect("join");
    });
    assert!(caught, "the unordered access was not found");
}
