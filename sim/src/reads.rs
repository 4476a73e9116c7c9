//! Reads that may be old, served by any node, held against what the log was.
//!
//! - What a follower answers is what the log makes of the rows up to what that shard had applied.
//! - [`ReadMode::AtLsn`]: that is at least the LSN that was asked for.
//! - [`ReadMode::Stale`]: it has everything that was committed so long before, as exactly as the
//!   nodes' clocks agree. Where clocks jump or drift in a run, nothing is promised.
//!
//! A leader answers such a read from what it executes, as any other: the leadership's model says
//! what it must find, and only its age is judged here.

use std::collections::BTreeMap;

use spillway_net::ids::Lsn;
use spillway_net::message::ReadMode;

use crate::Failure;
use crate::model::{Model, ModelRow, RowKey, Transaction};

/// What a frame of reads asks for, and what was there when it was executed.
#[derive(Clone, Copy, Debug)]
pub struct OldRead {
    /// How old the answer may be.
    pub mode: ReadMode,
    /// The LSN, or the microseconds.
    pub bound: u64,
    /// The leadership in which the shard executed it; 0: it did not lead.
    pub epoch: u64,
    /// Up to here the shard had applied the log.
    pub applied: Lsn,
    /// Virtual time when it was executed.
    pub at: u64,
}

/// Every version of every row, and when the log was committed.
#[derive(Debug, Default)]
pub struct Versions {
    rows: BTreeMap<RowKey, Vec<(u64, ModelRow)>>,
    /// Virtual time when the first node said that an entry is committed, from LSN 1 on.
    committed_at: Vec<u64>,
}

impl Versions {
    /// One more entry is committed.
    pub fn entry(&mut self, now: u64) {
        self.committed_at.push(now);
    }

    /// It changed a row.
    pub fn changed(&mut self, key: &RowKey, row: &ModelRow) {
        let lsn = self.committed_at.len() as u64;
        self.rows.entry(key.clone()).or_default().push((lsn, row.clone()));
    }

    fn row(&self, key: &RowKey, lsn: Lsn) -> Option<&ModelRow> {
        let versions = self.rows.get(key)?;
        let newer = versions.partition_point(|(at, _)| *at <= lsn.0);
        Some(&versions[newer.checked_sub(1)?].1)
    }

    /// The rows that a transaction touches, as they were at an LSN.
    pub fn model_at(&self, transaction: &Transaction, lsn: Lsn) -> Model {
        let mut model = Model::default();
        for operation in &transaction.operations {
            let key = operation.row_key();
            if let Some(row) = self.row(&key, lsn) {
                model.rows.insert(key, row.clone());
            }
        }
        model
    }

    /// A read that was answered must be as fresh as it promises. `clocks_nanos` is how far clocks
    /// are apart; none: too far to promise anything.
    pub fn fresh_check(&self, read: &OldRead, clocks_nanos: Option<u64>) -> Result<(), Failure> {
        let last = Lsn(self.committed_at.len() as u64);
        if read.applied > last {
            return Err(Failure::new(format!(
                "a read saw LSN {}, and only {last} is committed",
                read.applied
            )));
        }
        let needed = match (read.mode, clocks_nanos) {
            (ReadMode::AtLsn, _) => read.bound,
            // A leader has executed more than it knows to be committed.
            (ReadMode::Stale, Some(clocks)) if read.epoch == 0 => {
                let age = read.bound.saturating_mul(1000).saturating_add(clocks);
                let until = read.at.saturating_sub(age);
                self.committed_at.partition_point(|at| *at < until) as u64
            }
            (ReadMode::Stale | ReadMode::Strong, _) => 0,
        };
        if read.applied.0 < needed {
            return Err(Failure::new(format!(
                "an old read ({:?}, {}) saw LSN {}, and promised {needed}",
                read.mode, read.bound, read.applied
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions() -> Versions {
        let mut versions = Versions::default();
        for (now, number) in [(1_000_000, 1), (2_000_000, 2), (5_000_000, 3)] {
            versions.entry(now);
            let row = ModelRow { number, value: None };
            versions.changed(&(1, 1, b"key".to_vec()), &row);
        }
        versions
    }

    #[test]
    fn rows_are_found_as_they_were() {
        let (versions, key) = (versions(), (1, 1, b"key".to_vec()));
        let number = |lsn| versions.row(&key, Lsn(lsn)).map(|row| row.number);
        assert_eq!([number(0), number(1), number(2), number(9)], [None, Some(1), Some(2), Some(3)]);
        assert!(versions.row(&(2, 1, b"key".to_vec()), Lsn(9)).is_none());
    }

    #[test]
    fn old_reads_are_not_too_old() {
        let versions = versions();
        let fresh = |mode, bound, applied, clocks| {
            let read = OldRead { mode, bound, epoch: 0, applied: Lsn(applied), at: 6_000_000 };
            versions.fresh_check(&read, clocks).is_ok()
        };
        assert!(fresh(ReadMode::AtLsn, 2, 2, Some(0)) && !fresh(ReadMode::AtLsn, 3, 2, Some(0)));
        // 3 ms before now, two entries were committed.
        assert!(fresh(ReadMode::Stale, 3_000, 2, Some(0)));
        assert!(!fresh(ReadMode::Stale, 3_000, 1, Some(0)));
        assert!(fresh(ReadMode::Stale, 3_000, 1, Some(1_000_001)));
        assert!(fresh(ReadMode::Stale, 0, 0, None));
        assert!(!fresh(ReadMode::AtLsn, 0, 4, Some(0)), "nothing behind the log's end is read");
    }
}
