//! The slot ring's hand-over between threads under loom: the ring's own source file, every
//! execution that the language's memory model allows within a bound of preemptions.
//!
//! Loom does not see accesses through raw pointers. So each page of the ring has a cell of loom's
//! beside it, which whoever writes or reads the page touches too: loom then reports a page that is
//! handed out again before everything its last readers did is ordered before it.

#![expect(clippy::duplicate_mod, reason = "one file against two counts of owners")]

#[path = "slot_ring_memory_order/planted.rs"]
mod planted;
#[path = "slot_ring_memory_order/sound.rs"]
mod sound;

/// What the ring's file takes from the crate it belongs to.
mod error {
    pub use spillway_runtime::error::RuntimeError;
}

mod region {
    pub use spillway_runtime::region::{HUGE_PAGE_BYTES, HugePages, PageKind, Region};
}

mod buffer {
    pub use spillway_runtime::buffer::BUFFER_ALIGNMENT;

    /// The buffer of slots in no ring, which the model does not use.
    #[derive(Debug)]
    pub struct AlignedBuffer(spillway_runtime::buffer::AlignedBuffer);

    impl AlignedBuffer {
        pub fn new(bytes: usize) -> AlignedBuffer {
            AlignedBuffer(spillway_runtime::buffer::AlignedBuffer::new(bytes))
        }

        pub fn start_ptr(&self) -> *mut u8 {
            self.0.as_ptr().cast_mut()
        }
    }
}

macro_rules! fault_point {
    ($name:ident) => {
        false
    };
}
pub(crate) use fault_point;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use loom::cell::UnsafeCell;
use loom::thread;

const PAGE: usize = buffer::BUFFER_ALIGNMENT;
const PAGES: usize = 2;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Loom's view of the ring's pages.
struct Pages {
    base: usize,
    cells: Vec<UnsafeCell<()>>,
}

// SAFETY: loom reports accesses of two threads that no ordering protects.
unsafe impl Sync for Pages {}
// SAFETY: as above.
unsafe impl Send for Pages {}

impl Pages {
    fn new(base: usize) -> Arc<Pages> {
        Arc::new(Pages { base, cells: (0..PAGES).map(|_| UnsafeCell::new(())).collect() })
    }

    fn of(&self, address: usize, bytes: usize) -> &[UnsafeCell<()>] {
        let first = (address - self.base) / PAGE;
        &self.cells[first..first + bytes.div_ceil(PAGE)]
    }

    fn written(&self, address: usize, bytes: usize) {
        self.of(address, bytes).iter().for_each(|cell| cell.with_mut(|_| ()));
    }

    fn read(&self, address: usize, bytes: usize) {
        self.of(address, bytes).iter().for_each(|cell| cell.with(|_| ()));
    }
}

/// The same model of both rings: their types differ, their text is one.
macro_rules! model {
    ($ring:ident) => {
        /// One page goes to a reader as two parts; the ring tries to hand all pages out again
        /// while the reader may still have them, and once more when it has not.
        pub fn hand_over(reused: &AtomicU64, refused: &AtomicU64) {
            use crate::$ring::slot_ring::SlotRing;
            let mut ring = SlotRing::new("model", PAGES * PAGE).expect("map");
            let mut first = ring.reserve(PAGE).expect("empty");
            let pages = Pages::new(first.address());
            pages.written(first.address(), first.len());
            first.fill(1);
            let slot = first.freeze();
            let (part, theirs) = (slot.slice(10..20), Arc::clone(&pages));
            let reader = thread::spawn(move || {
                theirs.read(part.address(), part.len());
                assert!(part.iter().all(|byte| *byte == 1), "overwritten while it lived");
                drop(part);
            });
            pages.read(slot.address(), slot.len());
            drop(slot);
            match ring.reserve(PAGES * PAGE) {
                Some(mut again) => {
                    reused.fetch_add(1, Ordering::Relaxed);
                    pages.written(again.address(), again.len());
                    again.fill(2);
                }
                None => {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            reader.join().expect("join");
            let mut last = ring.reserve(PAGES * PAGE).expect("everything has ended");
            pages.written(last.address(), last.len());
            last.fill(3);
        }

        /// Two parts that were written apart by two threads, and joined by a third owner.
        pub fn written_apart() {
            use crate::$ring::slot_ring::{Slot, SlotRing};
            let mut ring = SlotRing::new("model", PAGES * PAGE).expect("map");
            let whole = ring.reserve(PAGES * PAGE).expect("empty");
            let pages = Pages::new(whole.address());
            let (mut head, mut body) = whole.split_at(PAGE);
            let theirs = Arc::clone(&pages);
            let writer = thread::spawn(move || {
                theirs.written(body.address(), body.len());
                body.fill(2);
                body.freeze()
            });
            pages.written(head.address(), head.len());
            head.fill(1);
            let head = head.freeze();
            let body = writer.join().expect("join");
            let joined = Slot::joined(&head, &body).expect("adjacent");
            drop((head, body));
            let (address, bytes) = (joined.address(), joined.len());
            let theirs = Arc::clone(&pages);
            let reader = thread::spawn(move || {
                theirs.read(address, bytes);
                assert_eq!((joined[PAGE - 1], joined[PAGE]), (1, 2));
                drop(joined);
            });
            if let Some(mut again) = ring.reserve(PAGE) {
                pages.written(again.address(), again.len());
                again.fill(3);
            }
            reader.join().expect("join");
            ring.reclaim();
            assert_eq!(ring.bytes_used(), 0);
        }
    };
}

mod sound_model {
    use super::*;
    model!(sound);
}

mod planted_model {
    use super::*;
    model!(planted);
}

#[test]
fn a_page_is_handed_out_again_only_after_its_readers() {
    let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let theirs = Arc::clone(&counts);
    check(move || sound_model::hand_over(&theirs.0, &theirs.1));
    let (reused, refused) = (counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed));
    assert!(reused > 0 && refused > 0, "not explored: {reused} reused, {refused} refused");
}

#[test]
fn parts_written_apart_are_seen_whole() {
    check(sound_model::written_apart);
}

/// Whether loom finds an access that nothing orders.
fn is_caught(model: impl Fn() + Send + Sync + 'static) -> bool {
    match catch_unwind(AssertUnwindSafe(|| check(model))) {
        Ok(()) => false,
        Err(cause) => {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("");
            assert!(text.contains("Causality violation"), "another failure: {text}");
            true
        }
    }
}

#[test]
fn planted_relaxed_count_is_caught() {
    let (reused, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let caught = is_caught(move || planted_model::hand_over(&reused, &refused));
    assert!(caught, "the reuse that nothing orders after the reader was not found");
    assert!(is_caught(planted_model::written_apart));
}
