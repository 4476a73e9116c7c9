//! What the comparison of the tables with the ledger found.

use crate::error::PerfError;
use crate::identity::Origin;
use crate::ledger::{Ledger, Presence, Sighting};

/// Where verification reads rows from: a node over the network, or a test's own rows.
pub trait RowSource {
    /// Calls `row` with every key and row of a table, by its place in the workload's list, each
    /// exactly once.
    fn scan(&mut self, table: usize, row: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), PerfError>;
}

/// Findings that are told one by one; the rest is only counted.
const FINDINGS_MAX: usize = 20;

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Transactions that the node had answered as committed.
    pub acknowledged: u64,
    /// Of these, those whose effects are there.
    pub verified: u64,
    /// Of these, those whose effects are missing.
    pub lost: u64,
    /// Rows that nobody sent, that were sent once and are there twice, or that the node had
    /// refused.
    pub foreign: u64,
    /// Rows whose content is not what was sent.
    pub damaged: u64,
    /// Balances and totals that do not add up.
    pub imbalanced: u64,
    /// Transactions without an answer whose effects are there: allowed, and counted in.
    pub unanswered: u64,
    /// Rows read.
    pub rows: u64,
    /// The first findings, for people.
    pub findings: Vec<String>,
}

impl Verification {
    /// Whether nothing is wrong.
    pub const fn is_good(&self) -> bool {
        self.lost == 0 && self.foreign == 0 && self.damaged == 0 && self.imbalanced == 0
    }

    /// Notes something wrong, for people.
    pub fn note(&mut self, finding: impl FnOnce() -> String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding());
        }
    }

    /// Counts a row that is not what was sent.
    pub fn damage(&mut self, finding: impl FnOnce() -> String) {
        self.damaged += 1;
        self.note(finding);
    }

    /// Judges a row of this origin; tells whether it counts as there.
    pub fn see(&mut self, presence: &mut Presence<'_>, origin: Origin) -> bool {
        let Origin { connection, counter } = origin;
        let wrong = match presence.see(origin) {
            Sighting::Expected { acknowledged } => {
                self.unanswered += u64::from(!acknowledged);
                return true;
            }
            Sighting::Twice => "is there twice",
            Sighting::NeverSent => "was never sent",
            Sighting::Refused => "is there although it was refused",
        };
        self.foreign += 1;
        self.note(|| format!("transaction {counter} of connection {connection} {wrong}"));
        false
    }

    /// Counts what was acknowledged and not found.
    pub fn finish(&mut self, ledger: &Ledger, presence: &Presence<'_>) {
        self.acknowledged = ledger.acknowledged();
        let mut examples = Vec::new();
        self.lost = presence.missing(|origin| examples.push(origin));
        for Origin { connection, counter } in examples {
            self.note(|| {
                format!(
                    "transaction {counter} of connection {connection} was acknowledged and is lost"
                )
            });
        }
        self.verified = self.acknowledged - self.lost;
    }
}
