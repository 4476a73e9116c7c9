//! What is to happen, by virtual time: events of one moment in the order in which they were put in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// See the module. Only small keys are moved to find the order; an event stays where it was put.
#[derive(Debug)]
pub struct Calendar<E> {
    order: BinaryHeap<Reverse<(u64, u64, usize)>>,
    places: Vec<Option<E>>,
    places_free: Vec<usize>,
    count: u64,
}

impl<E> Default for Calendar<E> {
    fn default() -> Self {
        let (order, places, places_free) = (BinaryHeap::new(), Vec::new(), Vec::new());
        Self { order, places, places_free, count: 0 }
    }
}

impl<E> Calendar<E> {
    /// Puts in an event for this moment.
    pub fn push(&mut self, at_nanos: u64, event: E) {
        self.count += 1;
        let place = self.places_free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        assert!(self.places[place].replace(event).is_none(), "place {place} of the calendar");
        self.order.push(Reverse((at_nanos, self.count, place)));
    }

    /// Takes out the first event, with its moment.
    pub fn pop(&mut self) -> Option<(u64, E)> {
        let Reverse((at_nanos, _, place)) = self.order.pop()?;
        let event = self.places[place].take().expect("what is in the order has its place");
        self.places_free.push(place);
        Some((at_nanos, event))
    }

    /// How many events were ever put in.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_as_they_were_put_in() {
        let mut calendar = Calendar::default();
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            calendar.push(at, event);
        }
        assert_eq!(calendar.pop(), Some((1, 'a')));
        calendar.push(5, 'e');
        calendar.push(0, 'z');
        let rest: String = std::iter::from_fn(|| calendar.pop()).map(|(_, event)| event).collect();
        assert_eq!((rest.as_str(), calendar.count()), ("zbcde", 6));
        assert_eq!(calendar.places.len(), 5, "places are used again");
    }
}
