//! The slot ring step by step. Beside the ring and not in it: a model checker compiles its file.

use crate::buffer::BUFFER_ALIGNMENT;
use crate::slot_ring::{Slot, SlotMut, SlotRing};

const PAGE: usize = BUFFER_ALIGNMENT;

fn ring(pages: usize) -> SlotRing {
    SlotRing::new("test", pages * PAGE).expect("map")
}

#[test]
fn slots_are_aligned_exact_and_in_order() {
    let mut ring = ring(8);
    let first = ring.reserve(5_000).expect("room");
    let second = ring.reserve(1).expect("room");
    assert_eq!((first.len(), second.len()), (5_000, 1));
    assert!(first.address().is_multiple_of(PAGE));
    assert_eq!(second.address(), first.address() + 2 * PAGE);
    assert_eq!((ring.bytes_used(), ring.bytes_total()), (3 * PAGE, 8 * PAGE));
    assert!(ring.reserve(8 * PAGE + 1).is_none() && ring.reserve(6 * PAGE).is_none());
    assert!(ring.reserve(usize::MAX).is_none());
    drop((first, second));
    assert_eq!(ring.reserve(8 * PAGE).expect("all of it").len(), 8 * PAGE);
}

#[test]
fn reclaim_is_strictly_fifo_and_wraps_in_one_piece() {
    let mut ring = ring(4);
    let first = ring.reserve(PAGE).expect("room");
    let second = ring.reserve(2 * PAGE).expect("room");
    let base = first.address();
    drop(second);
    // The younger one is free, but it waits for the older one.
    assert!(ring.reserve(2 * PAGE).is_none());
    let third = ring.reserve(PAGE).expect("the last page");
    assert_eq!(third.address(), base + 3 * PAGE);
    drop(first);
    let fourth = ring.reserve(3 * PAGE).expect("wraps");
    assert_eq!((fourth.address(), ring.bytes_used()), (base, 4 * PAGE));
    assert!(ring.reserve(1).is_none());
    drop(third);
    // The end is left out: two pages are in one piece nowhere until the fourth ends.
    assert!(ring.reserve(2 * PAGE).is_none());
    assert_eq!(ring.bytes_used(), 3 * PAGE);
    drop(fourth);
    ring.reclaim();
    assert_eq!((ring.bytes_used(), ring.reservations()), (0, 0));
}

#[test]
fn bytes_left_out_come_back_with_what_was_before_them() {
    let mut ring = ring(4);
    let first = ring.reserve(3 * PAGE).expect("room");
    let base = first.address();
    let second = ring.reserve(2 * PAGE);
    assert!(second.is_none());
    drop(first);
    let second = ring.reserve(2 * PAGE).expect("room");
    let third = ring.reserve(PAGE).expect("room");
    drop(second);
    let fourth = ring.reserve(2 * PAGE).expect("wraps over the last page");
    assert_eq!((fourth.address(), ring.bytes_used()), (base, 4 * PAGE));
    drop(third);
    ring.reclaim();
    assert_eq!(ring.bytes_used(), 2 * PAGE);
    assert_eq!(ring.reserve(2 * PAGE).expect("the end").address(), base + 2 * PAGE);
}

#[test]
fn shrinking_the_newest_gives_room_back() {
    let mut ring = ring(4);
    let mut older = ring.reserve(PAGE).expect("room");
    let mut newest = ring.reserve(3 * PAGE).expect("room");
    ring.shrink(&mut older, 10);
    assert_eq!((older.len(), ring.bytes_used()), (10, 4 * PAGE));
    ring.shrink(&mut newest, PAGE + 1);
    assert_eq!((newest.len(), ring.bytes_used()), (PAGE + 1, 3 * PAGE));
    let next = ring.reserve(PAGE).expect("the room that came back");
    assert_eq!(next.address(), newest.address() + 2 * PAGE);
    ring.shrink(&mut newest, 0);
    assert_eq!(ring.bytes_used(), 4 * PAGE);
    let mut heap = SlotMut::heap(100);
    ring.shrink(&mut heap, 7);
    assert_eq!(heap.len(), 7);
}

#[test]
fn only_the_last_part_gives_room_back() {
    let mut ring = ring(4);
    let slot = ring.reserve(4 * PAGE).expect("room");
    let (mut head, mut tail) = slot.split_at(PAGE + 100);
    tail.fill(7);
    ring.shrink(&mut head, 0);
    assert_eq!(ring.bytes_used(), 4 * PAGE);
    ring.shrink(&mut tail, PAGE - 100);
    assert_eq!(ring.bytes_used(), 2 * PAGE);
    ring.reserve(2 * PAGE).expect("room").fill(9);
    assert!(tail.iter().all(|byte| *byte == 7));
    drop(tail);
    ring.reclaim();
    assert_eq!(ring.reservations(), 2, "the head still lives");
    drop(head);
    ring.reclaim();
    assert_eq!(ring.bytes_used(), 0);
}

#[test]
fn parts_join_again() {
    let mut ring = ring(4);
    let slot = ring.reserve(2 * PAGE).expect("room");
    let next = ring.reserve(PAGE).expect("room").freeze();
    let address = slot.address();
    let (head, body) = slot.split_at(512);
    let mut whole = SlotMut::joined(head, body).expect("adjacent");
    assert_eq!((whole.address(), whole.len()), (address, 2 * PAGE));
    whole[..512].fill(1);
    whole[512..].fill(2);
    let (mut head, body) = whole.split_at(512);
    let body = body.freeze();
    head[0] = 3;
    let head = head.freeze();
    assert!(Slot::joined(&body, &head).is_none());
    assert!(Slot::joined(&body, &next).is_none(), "another reservation");
    assert!(Slot::joined(&head, &body.slice(1..2)).is_none());
    let whole = Slot::joined(&head, &body).expect("adjacent");
    assert_eq!((whole.address(), whole.len()), (address, 2 * PAGE));
    assert_eq!((whole[0], whole[511], whole[512]), (3, 1, 2));
    assert_eq!(whole.slice(512..2 * PAGE), body);
}

#[test]
fn heap_slots_are_aligned_and_owned() {
    for bytes in [0, 1, 4_096, 5_000] {
        let slot = Slot::from_vec(vec![9; bytes]);
        assert!(slot.address().is_multiple_of(PAGE));
        assert_eq!(&slot[..], vec![9; bytes]);
    }
    let (head, body) = SlotMut::heap(10).split_at(4);
    assert!(SlotMut::joined(body, head).is_none());
}

#[test]
fn region_outlives_the_ring() {
    let mut ring = ring(2);
    let mut slot = ring.reserve(PAGE).expect("room");
    drop(ring);
    slot.fill(5);
    let slot = slot.freeze();
    let clone = slot.slice(1..3);
    drop(slot);
    assert_eq!(&clone[..], [5, 5]);
}

#[test]
fn slots_end_on_other_threads() {
    let mut ring = ring(8);
    let (sender, receiver) = std::sync::mpsc::channel::<Slot>();
    let reader = move || {
        for slot in receiver {
            let first = slot[0];
            assert!(slot.iter().all(|byte| *byte == first), "changed while it lived");
        }
    };
    let reader = crate::thread::spawn("reader", None, reader).expect("spawn");
    let (mut sent, count) = (0u32, if cfg!(miri) { 40 } else { 20_000 });
    while sent < count {
        let Some(mut slot) = ring.reserve(1 + sent as usize % 3_000 * 3) else {
            std::thread::yield_now();
            continue;
        };
        slot.fill(sent as u8);
        let slot = slot.freeze();
        sender.send(slot.clone()).expect("the reader lives");
        sender.send(slot.slice(slot.len() / 2..slot.len())).expect("the reader lives");
        sent += 1;
    }
    drop(sender);
    reader.join().expect("reader");
    ring.reclaim();
    assert_eq!(ring.bytes_used(), 0);
    assert!(ring.spare_counts() <= 8, "counts are used again: {}", ring.spare_counts());
}

#[test]
#[should_panic(expected = "leaves a slot of 10 bytes")]
fn range_outside_is_refused() {
    assert_eq!(Slot::from_vec(vec![0; 10]).slice(5..11).len(), 6);
}
