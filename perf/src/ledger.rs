//! What was sent, and what became of it: per connection a counter and two interval sets.

use crate::identity::Origin;
use crate::interval_set::{Bitmap, IntervalSet};

/// What one connection knows of its transactions.
#[derive(Clone, Debug, Default)]
pub struct ConnectionLedger {
    /// Counters `0..sent` left the generator.
    pub sent: u64,
    /// Answered as committed.
    pub acknowledged: IntervalSet,
    /// Answered as anything else: must have left no trace.
    pub refused: IntervalSet,
}

/// The generator's memory of a burst: what the node is held to afterwards.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// By connection.
    pub connections: Vec<ConnectionLedger>,
}

/// What the ledger says about an origin that was found in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody sent it.
    NeverSent,
    /// It was sent; no answer came.
    Unanswered,
    /// It was answered as committed.
    Acknowledged,
    /// It was answered as not committed.
    Refused,
}

impl Ledger {
    /// A ledger of so many connections.
    pub fn new(connections: usize) -> Self {
        Self { connections: vec![ConnectionLedger::default(); connections] }
    }

    /// Transactions that left the generator.
    pub fn sent(&self) -> u64 {
        self.connections.iter().map(|connection| connection.sent).sum()
    }

    /// Transactions answered as committed.
    pub fn acknowledged(&self) -> u64 {
        self.connections.iter().map(|connection| connection.acknowledged.len()).sum()
    }

    /// Transactions answered as not committed.
    pub fn refused(&self) -> u64 {
        self.connections.iter().map(|connection| connection.refused.len()).sum()
    }

    /// What is known about an origin.
    pub fn standing(&self, origin: Origin) -> Standing {
        match self.connections.get(usize::from(origin.connection)) {
            Some(connection) if origin.counter < connection.sent => {
                if connection.acknowledged.contains(origin.counter) {
                    Standing::Acknowledged
                } else if connection.refused.contains(origin.counter) {
                    Standing::Refused
                } else {
                    Standing::Unanswered
                }
            }
            _ => Standing::NeverSent,
        }
    }
}

/// Which origins were found in the rows of a table.
#[derive(Debug)]
pub struct Presence<'a> {
    ledger: &'a Ledger,
    found: Vec<Bitmap>,
}

/// What to make of one more row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// A row that may be there, seen for the first time; whether it was acknowledged.
    Expected {
        /// Whether the node had answered.
        acknowledged: bool,
    },
    /// Seen before.
    Twice,
    /// Nobody sent it.
    NeverSent,
    /// The node had answered that it is not there.
    Refused,
}

impl<'a> Presence<'a> {
    /// Nothing was found so far.
    pub fn new(ledger: &'a Ledger) -> Self {
        let found = ledger.connections.iter().map(|one| Bitmap::with_length(one.sent)).collect();
        Self { ledger, found }
    }

    /// A row of this origin was found.
    pub fn see(&mut self, origin: Origin) -> Sighting {
        let acknowledged = match self.ledger.standing(origin) {
            Standing::NeverSent => return Sighting::NeverSent,
            Standing::Refused => return Sighting::Refused,
            Standing::Unanswered => false,
            Standing::Acknowledged => true,
        };
        if self.found[usize::from(origin.connection)].insert(origin.counter) {
            Sighting::Expected { acknowledged }
        } else {
            Sighting::Twice
        }
    }

    /// Acknowledged transactions that were not found; `example` sees some of them.
    pub fn missing(&self, mut example: impl FnMut(Origin)) -> u64 {
        let mut missing = 0;
        for (connection, (ledger, found)) in
            self.ledger.connections.iter().zip(&self.found).enumerate()
        {
            let connection = connection as u16;
            missing += found.missing(&ledger.acknowledged, |counter| {
                example(Origin { connection, counter });
            });
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(connection: u16, counter: u64) -> Origin {
        Origin { connection, counter }
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(2);
        ledger.connections[0].sent = 10;
        ledger.connections[0].acknowledged.insert(0, 7);
        ledger.connections[0].refused.insert(7, 8);
        ledger.connections[1].sent = 5;
        ledger.connections[1].acknowledged.insert(0, 5);
        ledger
    }

    #[test]
    fn standings() {
        let ledger = ledger();
        assert_eq!((ledger.sent(), ledger.acknowledged(), ledger.refused()), (15, 12, 1));
        assert_eq!(ledger.standing(origin(0, 6)), Standing::Acknowledged);
        assert_eq!(ledger.standing(origin(0, 7)), Standing::Refused);
        assert_eq!(ledger.standing(origin(0, 8)), Standing::Unanswered);
        assert_eq!(ledger.standing(origin(0, 10)), Standing::NeverSent);
        assert_eq!(ledger.standing(origin(2, 0)), Standing::NeverSent);
    }

    #[test]
    fn presence_finds_what_is_missing_and_what_should_not_be() {
        let ledger = ledger();
        let mut presence = Presence::new(&ledger);
        for counter in 0..5 {
            assert_eq!(presence.see(origin(1, counter)), Sighting::Expected { acknowledged: true });
        }
        for counter in [0, 1, 2, 4, 5, 6] {
            presence.see(origin(0, counter));
        }
        assert_eq!(presence.see(origin(0, 9)), Sighting::Expected { acknowledged: false });
        assert_eq!(presence.see(origin(0, 9)), Sighting::Twice);
        assert_eq!(presence.see(origin(0, 7)), Sighting::Refused);
        assert_eq!(presence.see(origin(1, 5)), Sighting::NeverSent);
        let mut examples = Vec::new();
        assert_eq!(presence.missing(|origin| examples.push(origin)), 1);
        assert_eq!(examples, [origin(0, 3)]);
    }
}
