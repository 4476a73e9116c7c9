//! The slot ring against a model: random reservations, splits, shrinks, freezes and drops.

use std::collections::VecDeque;

use proptest::prelude::*;
use spillway_runtime::slot_ring::{Slot, SlotMut, SlotRing};

const PAGE: usize = 4096;
const PAGES: usize = 16;
/// Of the bytes of a part every so many are looked at: under miri each costs a microsecond.
const STRIDE: usize = if cfg!(miri) { 509 } else { 1 };

#[derive(Clone, Debug)]
enum Step {
    Reserve(usize),
    /// Drops a part.
    Drop(usize),
    /// Cuts a part to so many 256ths of it.
    Shrink(usize, u8),
    Split(usize, u8),
    /// Makes a part shared and adds a clone of it.
    Freeze(usize),
    /// Joins a part with the one after it.
    Join(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let part = any::<usize>();
    prop_oneof![
        4 => (1..6 * PAGE).prop_map(Step::Reserve),
        4 => part.prop_map(Step::Drop),
        2 => (part, any::<u8>()).prop_map(|(part, at)| Step::Shrink(part, at)),
        1 => (part, any::<u8>()).prop_map(|(part, at)| Step::Split(part, at)),
        1 => part.prop_map(Step::Freeze),
        1 => part.prop_map(Step::Join),
    ]
}

enum Bytes {
    Exclusive(SlotMut),
    Shared(Slot),
}

/// A live part: its reservation, its range as the model has it, and what was written into it.
struct Part {
    bytes: Bytes,
    reservation: u64,
    start: usize,
    end: usize,
    fill: u8,
}

impl Part {
    fn check(&self, base: usize) {
        let (address, bytes) = match &self.bytes {
            Bytes::Exclusive(slot) => (slot.address(), &slot[..]),
            Bytes::Shared(slot) => (slot.address(), &slot[..]),
        };
        assert_eq!((address - base, bytes.len()), (self.start, self.end - self.start));
        let mut looked_at = bytes.iter().step_by(STRIDE).chain(bytes.last());
        assert!(looked_at.all(|byte| *byte == self.fill), "overwritten while it lived");
    }
}

/// A reservation that the ring has not taken back: `start..end` in whole pages.
#[derive(Debug)]
struct Held {
    number: u64,
    start: usize,
    /// End of the bytes asked for.
    end_exact: usize,
    end: usize,
}

struct Model {
    ring: SlotRing,
    base: usize,
    held: VecDeque<Held>,
    parts: Vec<Part>,
    reservations: u64,
    fill: u8,
}

impl Model {
    fn new() -> Model {
        let mut ring = SlotRing::new("model", PAGES * PAGE).expect("map");
        let base = ring.reserve(1).expect("empty").address();
        let (held, parts) = (VecDeque::new(), Vec::new());
        Model { ring, base, held, parts, reservations: 0, fill: 0 }
    }

    /// Takes back from the front what has no part any more.
    fn reclaim(&mut self) {
        while let Some(oldest) = self.held.front() {
            if self.parts.iter().any(|part| part.reservation == oldest.number) {
                return;
            }
            self.held.pop_front();
        }
    }

    /// Where a reservation of `span` bytes must go.
    fn place(&self, span: usize) -> Option<usize> {
        let (Some(oldest), Some(newest)) = (self.held.front(), self.held.back()) else {
            return (span <= PAGES * PAGE).then_some(0);
        };
        if newest.end <= oldest.start {
            return (newest.end + span <= oldest.start).then_some(newest.end);
        }
        if newest.end + span <= PAGES * PAGE {
            return Some(newest.end);
        }
        (span <= oldest.start).then_some(0)
    }

    fn reserve(&mut self, bytes: usize) {
        self.reclaim();
        let span = bytes.next_multiple_of(PAGE);
        let expected = self.place(span);
        let reserved = self.ring.reserve(bytes);
        assert_eq!(reserved.as_ref().map(|slot| slot.address() - self.base), expected);
        let Some(mut slot) = reserved else { return };
        assert_eq!(slot.len(), bytes);
        let (start, number) = (slot.address() - self.base, self.reservations);
        let (end_exact, end) = (start + bytes, start + span);
        for held in &self.held {
            assert!(end <= held.start || held.end <= start, "{held:?} is not free");
        }
        self.reservations += 1;
        self.held.push_back(Held { number, start, end_exact, end });
        self.fill = self.fill.wrapping_add(1);
        slot.fill(self.fill);
        let (bytes, fill) = (Bytes::Exclusive(slot), self.fill);
        self.parts.push(Part { bytes, reservation: number, start, end: end_exact, fill });
    }

    fn shrink(&mut self, number: usize, at: u8) {
        let part = &mut self.parts[number];
        let Bytes::Exclusive(slot) = &mut part.bytes else { return };
        let bytes = slot.len() * usize::from(at) / 256;
        self.ring.shrink(slot, bytes);
        let end_before = part.end;
        part.end = part.start + bytes;
        let newest = self.held.back_mut().expect("a part's reservation is held");
        if newest.number == part.reservation && newest.end_exact == end_before {
            newest.end_exact = part.end;
            let span = (part.end - newest.start).next_multiple_of(PAGE).max(PAGE);
            newest.end = newest.start + span;
        }
    }

    fn split(&mut self, number: usize, at: u8) {
        let Part { bytes, reservation, start, end, fill } = self.parts.swap_remove(number);
        let middle = start + (end - start) * usize::from(at) / 256;
        let (head, tail) = match bytes {
            Bytes::Exclusive(slot) => {
                let (head, tail) = slot.split_at(middle - start);
                (Bytes::Exclusive(head), Bytes::Exclusive(tail))
            }
            Bytes::Shared(slot) => {
                let (head, tail) = (0..middle - start, middle - start..end - start);
                (Bytes::Shared(slot.slice(head)), Bytes::Shared(slot.slice(tail)))
            }
        };
        self.parts.push(Part { bytes: head, reservation, start, end: middle, fill });
        self.parts.push(Part { bytes: tail, reservation, start: middle, end, fill });
    }

    fn freeze(&mut self, number: usize) {
        let Part { bytes, reservation, start, end, fill } = self.parts.swap_remove(number);
        let slot = match bytes {
            Bytes::Exclusive(slot) => slot.freeze(),
            Bytes::Shared(slot) => slot,
        };
        let clone = Bytes::Shared(slot.clone());
        self.parts.push(Part { bytes: clone, reservation, start, end, fill });
        self.parts.push(Part { bytes: Bytes::Shared(slot), reservation, start, end, fill });
    }

    fn join(&mut self, number: usize) {
        let other = (number + 1) % self.parts.len();
        if other == number {
            return;
        }
        let (head, body) = (&self.parts[number], &self.parts[other]);
        let is_adjacent = head.reservation == body.reservation && head.end == body.start;
        match (&head.bytes, &body.bytes) {
            (Bytes::Shared(first), Bytes::Shared(second)) => {
                let joined = Slot::joined(first, second);
                assert_eq!(joined.is_some(), is_adjacent);
                let Some(slot) = joined else { return };
                assert_eq!(slot.address() - self.base, head.start);
                assert_eq!(slot.len(), body.end - head.start);
            }
            (Bytes::Exclusive(_), Bytes::Exclusive(_)) if is_adjacent => self.unite(number, other),
            _ => {}
        }
    }

    fn unite(&mut self, number: usize, other: usize) {
        let (low, high) = (number.min(other), number.max(other));
        let second = self.parts.swap_remove(high);
        let first = self.parts.swap_remove(low);
        let (head, body) = if number == low { (first, second) } else { (second, first) };
        let (Bytes::Exclusive(first), Bytes::Exclusive(second)) = (head.bytes, body.bytes) else {
            panic!("both are exclusive");
        };
        let mut slot = SlotMut::joined(first, second).expect("adjacent");
        slot.fill(head.fill);
        let (start, end, fill) = (head.start, body.end, head.fill);
        let bytes = Bytes::Exclusive(slot);
        self.parts.push(Part { bytes, reservation: head.reservation, start, end, fill });
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Reserve(bytes) => return self.reserve(bytes),
            _ if self.parts.is_empty() => return,
            _ => {}
        }
        let count = self.parts.len();
        match *step {
            Step::Reserve(_) => unreachable!("done above"),
            Step::Drop(part) => drop(self.parts.swap_remove(part % count)),
            Step::Shrink(part, at) => self.shrink(part % count, at),
            Step::Split(part, at) => self.split(part % count, at),
            Step::Freeze(part) => self.freeze(part % count),
            Step::Join(part) => self.join(part % count),
        }
    }

    fn check(&mut self) {
        for part in &self.parts {
            part.check(self.base);
        }
        self.ring.reclaim();
        self.reclaim();
        assert_eq!(self.ring.reservations(), self.held.len());
        let spans = self.held.iter().map(|held| held.end - held.start).sum::<usize>();
        let used = self.ring.bytes_used();
        assert!(used >= spans && used <= PAGES * PAGE, "{used} bytes for {spans}");
        let is_wrapped = self.held.back().is_some_and(|newest| newest.start < self.held[0].start);
        assert!(is_wrapped || used == spans, "{used} bytes for {spans}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]
    #[test]
    fn slots_never_overlap_and_room_comes_back_in_order(
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 60 } else { 300 })
    ) {
        let mut model = Model::new();
        for step in &steps {
            model.run(step);
            model.check();
        }
        model.parts.clear();
        model.check();
        prop_assert_eq!(model.ring.bytes_used(), 0);
    }
}
