//! Which node to turn to next, and when.

use crate::client::backoff::{Backoff, Eagerness};
use crate::client::nodes::NodeBook;

/// Hints that are followed without a wait, one after the other: two nodes that each take the
/// other for the leader must not keep a client running between them.
const HINTS_MAX: u32 = 2;
/// How long a node that could not be reached is left alone while there are others, nanoseconds.
const UNREACHABLE_NANOS: u64 = 50_000_000;
/// The same for a node that was silent, nanoseconds: each attempt costs a time-out.
const SILENT_NANOS: u64 = 1_000_000_000;

/// Why a connection was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It was lost: the node may have another one.
    Lost,
    /// It could not be made.
    Unreachable,
    /// Nothing was heard of the node for too long.
    Silent,
    /// The node wants to be left alone for so many nanoseconds.
    Busy(u64),
    /// The node knows better: the leader, 0 if it knows none, and its address.
    Hint(u16, String),
}

/// See the module.
#[derive(Debug)]
pub struct Course {
    book: NodeBook,
    target: String,
    /// Nodes to be left alone, and until when.
    avoided: Vec<(String, u64)>,
    hints: u32,
    departures: usize,
    backoff: Backoff,
}

impl Course {
    /// Begins at the book's first node.
    ///
    /// # Panics
    /// If the book is empty.
    pub fn new(book: NodeBook, seed: u64, eagerness: Eagerness) -> Self {
        let first = book.addresses().next().expect("a client knows at least one node");
        let target = first.to_owned();
        Self {
            book,
            target,
            avoided: Vec::new(),
            hints: 0,
            departures: 0,
            backoff: Backoff::new(seed, eagerness),
        }
    }

    /// The nodes.
    pub fn book(&self) -> &NodeBook {
        &self.book
    }

    /// The nodes, to learn about them.
    pub fn book_mut(&mut self) -> &mut NodeBook {
        &mut self.book
    }

    /// Address of the shard 0 of the node to connect to.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Whether there are nodes that were not tried since the last success.
    pub fn has_untried(&self) -> bool {
        self.departures < self.book.len()
    }

    /// Something worked.
    pub fn succeeded(&mut self) {
        self.hints = 0;
        self.departures = 0;
        self.backoff.reset();
        self.avoided.clear();
    }

    /// Turns to the leader that the book knows.
    pub fn turn_to_leader(&mut self) {
        let leader = self.book.leader().and_then(|(leader, _)| self.book.address_of(leader));
        if let Some(address) = leader.map(str::to_owned) {
            self.avoided.retain(|(avoided, _)| *avoided != address);
            self.target = address;
        }
    }

    /// Decides where to go. Returns how long to wait before, in nanoseconds.
    pub fn depart(&mut self, now: u64, departure: Departure) -> u64 {
        self.departures += 1;
        self.avoided.retain(|(_, until)| *until > now);
        let wait_min = match departure {
            Departure::Lost => {
                if spillway_runtime::fault_point!(ClientTurnsElsewhere) {
                    self.next();
                }
                0
            }
            Departure::Unreachable => {
                let target = self.target.clone();
                // The node may have come back with other ports.
                self.book.forget_ports(&target);
                self.leave(now, UNREACHABLE_NANOS);
                0
            }
            Departure::Silent => {
                self.leave(now, SILENT_NANOS);
                0
            }
            Departure::Busy(nanos) => {
                self.leave(now, nanos);
                // With nobody else to turn to, its wish is respected.
                if self.book.len() > 1 { 0 } else { nanos }
            }
            Departure::Hint(node, address) => {
                if self.follow(node, &address) {
                    return 0;
                }
                self.next();
                0
            }
        };
        self.hints = 0;
        self.backoff.next_nanos().max(wait_min)
    }

    /// Turns to the node hinted at; false if that is not sensible now.
    fn follow(&mut self, node: u16, address: &str) -> bool {
        let Some(mut known) = self.book.heard_of(node, address).map(str::to_owned) else {
            return false;
        };
        if self.is_avoided(&known) && known != address && self.book.add(node, address).is_some() {
            // It cannot be reached where it was: it may have moved.
            address.clone_into(&mut known);
        }
        let address = known;
        if self.hints >= HINTS_MAX || address == self.target || self.is_avoided(&address) {
            return false;
        }
        self.hints += 1;
        self.target = address;
        true
    }

    fn is_avoided(&self, address: &str) -> bool {
        self.avoided.iter().any(|(avoided, _)| avoided == address)
    }

    /// Turns to the next node and avoids this one.
    fn leave(&mut self, now: u64, nanos: u64) {
        if !self.is_avoided(&self.target) {
            self.avoided.push((self.target.clone(), now.saturating_add(nanos)));
        }
        self.next();
    }

    fn next(&mut self) {
        let next = self.book.next_after(&self.target, |address| self.is_avoided(address));
        self.target = next.to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn course(addresses: &[&str]) -> Course {
        Course::new(NodeBook::new(addresses.iter().copied()), 1, Eagerness::Scout)
    }

    fn hint(node: u16, address: &str) -> Departure {
        Departure::Hint(node, address.to_owned())
    }

    #[test]
    fn a_lost_connection_is_made_anew_soon_and_to_the_same_node() {
        let mut course = course(&["a:1", "b:1"]);
        let wait = course.depart(0, Departure::Lost);
        assert!((MS..=5 * MS).contains(&wait), "{wait}");
        assert_eq!(course.target(), "a:1");
    }

    #[test]
    fn a_hint_is_followed_at_once_but_not_for_ever() {
        let mut course = course(&["a:1", "b:1"]);
        let mut waits = Vec::new();
        for (node, address) in [(2, "b:1"), (1, "a:1"), (2, "b:1"), (1, "a:1"), (2, "b:1")] {
            waits.push(course.depart(0, hint(node, address)));
        }
        assert!(waits[0] == 0 && waits[1] == 0 && waits[2] > 0, "{waits:?}");
        assert!(waits[3] == 0 && waits[4] == 0, "{waits:?}");
        assert!(course.depart(0, hint(1, "a:1")) > 0);
    }

    #[test]
    fn a_hint_to_a_node_that_was_silent_is_not_followed_for_a_while() {
        let mut course = course(&["a:1", "b:1", "c:1"]);
        course.depart(0, Departure::Silent);
        assert_eq!(course.target(), "b:1");
        assert!(course.depart(MS, hint(1, "a:1")) > 0);
        assert_eq!(course.target(), "c:1");
        assert!(course.depart(2 * MS, hint(0, "")) > 0);
        assert_eq!(course.target(), "b:1", "a is left alone");
        assert_eq!(course.depart(2 * SILENT_NANOS, hint(1, "a:1")), 0);
        assert_eq!(course.target(), "a:1");
    }

    #[test]
    fn a_node_that_cannot_be_reached_where_it_was_is_sought_where_it_says() {
        let mut course = course(&["a:1", "b:1"]);
        course.book_mut().heard_of(1, "a:1");
        course.depart(0, Departure::Unreachable);
        assert_eq!(course.target(), "b:1");
        assert_eq!(course.depart(MS, hint(1, "new:1")), 0);
        assert_eq!(course.target(), "new:1");
    }

    #[test]
    fn a_busy_node_is_waited_for_only_if_there_is_no_other() {
        let mut alone = course(&["a:1"]);
        assert_eq!(alone.depart(0, Departure::Busy(3_000 * MS)), 3_000 * MS);
        assert_eq!(alone.target(), "a:1");
        let mut pair = course(&["a:1", "b:1"]);
        assert!(pair.depart(0, Departure::Busy(3_000 * MS)) < 5 * MS);
        assert_eq!(pair.target(), "b:1");
    }

    #[test]
    fn every_node_is_tried_before_an_impatient_client_gives_up() {
        let mut course = course(&["a:1", "b:1", "c:1"]);
        for expected in ["b:1", "c:1"] {
            course.depart(0, Departure::Unreachable);
            assert_eq!((course.target(), course.has_untried()), (expected, true));
        }
        course.depart(0, Departure::Unreachable);
        assert!(!course.has_untried());
        course.succeeded();
        assert!(course.has_untried());
    }
}
