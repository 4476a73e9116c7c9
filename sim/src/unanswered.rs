//! What became of transactions that were executed and never answered.
//!
//! The log says that a transaction took effect, not at which of its attempts: a client that heard
//! nothing sends it again, and a shard may refuse an attempt for now - no memory, too much under
//! way - or fail it for a check that holds when it comes again. So the judge looks for one way in
//! which the shard may have met them: each attempt in its order, each transaction at exactly one
//! attempt that succeeds then, with the very versions that the log has. Whatever fits no way is a
//! finding.

use std::collections::BTreeMap;

use spillway_net::ids::Lsn;

use crate::model::{Model, RowKey, Transaction};
use crate::worker::Tables;

/// Attempts that are looked at before the search ends without a result: some tens of milliseconds.
/// Versions tell nearly every wrong way at its first step.
const ATTEMPTS_MAX: usize = 20_000;

/// An attempt of a transaction whose effect is in the log.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The shard that met it.
    pub shard: u16,
    /// Of its client.
    pub session: u64,
    /// What it does.
    pub transaction: &'a Transaction,
    /// Where the log has it.
    pub lsn: Lsn,
}

impl Attempt<'_> {
    fn name(&self) -> (u64, u64) {
        (self.session, self.transaction.number)
    }
}

/// One way, as far as it was followed.
struct Way {
    model: Model,
    next: usize,
    /// Where the log has the last transaction that took effect: a shard hands over in order.
    lsn: Lsn,
}

struct Search<'a> {
    log: &'a Model,
    tables: &'a Tables,
    /// Who wrote a version, as far as the log still shows it.
    owners: BTreeMap<(u16, u64), &'a RowKey>,
}

/// What the log must hold if these attempts, in the order in which each shard met them, came on
/// top of `model`. Where no way leads to what it holds, what came of each first attempt; and
/// whether that is so because there were too many ways.
pub fn carried_out(
    mut model: Model,
    attempts: &[Attempt<'_>],
    log: &Model,
    tables: &Tables,
) -> (Model, bool) {
    let mut gave_up = false;
    let owners = log.rows.iter().map(|(key, row)| ((key.0, row.number), key)).collect();
    let search = Search { log, tables, owners };
    let mut shards: Vec<u16> = attempts.iter().map(|attempt| attempt.shard).collect();
    shards.sort_unstable();
    shards.dedup();
    for shard in shards {
        // No row and no session's number is of two shards.
        let own: Vec<_> = attempts.iter().filter(|attempt| attempt.shard == shard).collect();
        let mut looked_at = 0;
        let way = search.way(&model, &own, &mut looked_at);
        gave_up |= looked_at > ATTEMPTS_MAX;
        model = way.unwrap_or_else(|| {
            let mut first = model.clone();
            for attempt in own {
                first.execute(attempt.session, attempt.transaction, tables);
            }
            first
        });
    }
    (model, gave_up)
}

impl Search<'_> {
    fn way(
        &self,
        model: &Model,
        attempts: &[&Attempt<'_>],
        looked_at: &mut usize,
    ) -> Option<Model> {
        let mut last = BTreeMap::new();
        for (at, attempt) in attempts.iter().enumerate() {
            last.insert(attempt.name(), at);
        }
        let mut open = vec![Way { model: model.clone(), next: 0, lsn: Lsn(0) }];
        while let Some(mut way) = open.pop() {
            loop {
                let Some(attempt) = attempts.get(way.next) else {
                    if self.is_reached(&way.model, attempts) {
                        return Some(way.model);
                    }
                    break;
                };
                *looked_at += 1;
                if *looked_at > ATTEMPTS_MAX {
                    return None;
                }
                way.next += 1;
                if way.model.outcomes.contains_key(&attempt.name()) {
                    // It has taken effect: answered as before.
                    continue;
                }
                let is_last = last[&attempt.name()] == way.next - 1;
                let refused = (!is_last).then(|| way.model.clone());
                let (next, lsn) = (way.next, way.lsn);
                let took = self.takes_effect(&mut way, attempt);
                match refused {
                    Some(model) if took => open.push(Way { model, next, lsn }),
                    Some(model) => way = Way { model, next, lsn },
                    None if took => {}
                    None => break,
                }
            }
        }
        None
    }

    /// Executes an attempt. False if it cannot have been the one that is in the log.
    fn takes_effect(&self, way: &mut Way, attempt: &Attempt<'_>) -> bool {
        if attempt.lsn < way.lsn {
            return false;
        }
        way.lsn = attempt.lsn;
        let predicted = way.model.execute(attempt.session, attempt.transaction, self.tables);
        predicted.status.is_committed()
            && attempt.transaction.operations.iter().all(|operation| {
                let key = operation.row_key();
                way.model.rows.get(&key).is_none_or(|row| {
                    let owner = self.owners.get(&(key.0, row.number));
                    let held = self.log.rows.get(&key);
                    owner.is_none_or(|owner| **owner == key)
                        && held.is_some_and(|held| row.number < held.number || row == held)
                })
            })
    }

    /// Whether the rows that the attempts name are as the log has them.
    fn is_reached(&self, model: &Model, attempts: &[&Attempt<'_>]) -> bool {
        let operations = attempts.iter().flat_map(|attempt| &attempt.transaction.operations);
        operations
            .map(|operation| operation.row_key())
            .all(|key| model.rows.get(&key) == self.log.rows.get(&key))
    }
}

#[cfg(test)]
mod tests {
    use spillway_net::key::key_write;
    use spillway_net::message::{OperationHead, OperationKind, Submit, TransactionHead};
    use spillway_net::row::row_write;
    use spillway_net::value::Value;

    use super::*;
    use crate::draw::Draw;
    use crate::model::transactions;
    use crate::options::{Options, Sizes};

    fn tables() -> Tables {
        Tables::new(&Sizes::draw(&mut Draw::new(1), &Options::cluster(1, 3)))
    }

    /// A transaction of one write to one account.
    fn write(tables: &Tables, number: u64, kind: OperationKind, account: i64) -> Transaction {
        let layout = tables.account.layout();
        let (mut bytes, mut value) = (Vec::new(), Vec::new());
        key_write(layout, &[Value::Int8(account)], &mut bytes).expect("a key");
        if kind != OperationKind::Delete {
            let balance = Value::Int8(1000 + number as i64);
            row_write(layout, &[balance, Value::Null], &mut value).expect("a row");
        }
        let operation = OperationHead {
            kind: kind as u8,
            reserved: 0,
            table: tables.account.id().0,
            column: 0,
            key_length: bytes.len() as u16,
            value_length: value.len() as u32,
        };
        bytes.extend(value);
        let submit = Submit {
            first_number: number,
            transactions: vec![TransactionHead { number_offset: 0, operations: 1 }],
            operations: vec![operation],
            bytes,
            ..Submit::default()
        };
        transactions(&submit, tables).expect("it is whole").remove(0)
    }

    /// What the log holds after these, one after the other.
    fn log_of(tables: &Tables, order: &[&Transaction]) -> Model {
        let mut log = Model::default();
        for transaction in order {
            assert!(log.execute(7, transaction, tables).status.is_committed());
        }
        log
    }

    fn differs(tables: &Tables, met: &[&Transaction], lsns: &[u64], log: &Model) -> bool {
        let attempts: Vec<_> = met
            .iter()
            .zip(lsns)
            .map(|(transaction, lsn)| Attempt { shard: 1, session: 7, transaction, lsn: Lsn(*lsn) })
            .collect();
        let (model, gave_up) = carried_out(Model::default(), &attempts, log, tables);
        assert!(!gave_up, "too many ways");
        model.difference(log).is_some()
    }

    #[test]
    fn a_check_that_fails_at_first_and_holds_later() {
        let tables = tables();
        let insert = write(&tables, 1, OperationKind::Insert, 5);
        let delete = write(&tables, 2, OperationKind::Delete, 5);
        let log = log_of(&tables, &[&insert, &delete]);
        assert!(!differs(&tables, &[&delete, &insert, &delete], &[3; 3], &log));
        // Nobody met the second one behind the first.
        assert!(differs(&tables, &[&delete, &insert], &[3; 2], &log));
    }

    #[test]
    fn one_at_its_first_attempt_and_one_at_its_last() {
        let tables = tables();
        let a = write(&tables, 1, OperationKind::Upsert, 5);
        let b = write(&tables, 2, OperationKind::Upsert, 5);
        let log = log_of(&tables, &[&b, &a]);
        assert!(!differs(&tables, &[&a, &b, &a, &b], &[3; 4], &log));
        assert!(differs(&tables, &[&a, &b, &b], &[3; 3], &log), "a came first and only once");
        // The log has a in an earlier batch than b, which it builds on.
        assert!(differs(&tables, &[&a, &b, &a, &b], &[3, 4, 3, 4], &log));
    }

    #[test]
    fn what_the_log_lacks_or_has_twice_is_found() {
        let tables = tables();
        let [a, b] = [5, 6].map(|account| write(&tables, 1, OperationKind::Upsert, account));
        let again = write(&tables, 2, OperationKind::Upsert, 5);
        let log = log_of(&tables, &[&a]);
        assert!(!differs(&tables, &[&a, &a, &a], &[3; 3], &log));
        assert!(differs(&tables, &[&b, &b], &[3; 2], &log), "another row");
        let twice = log_of(&tables, &[&a, &again]);
        assert!(differs(&tables, &[&a, &a], &[3; 2], &twice), "written twice");
    }

    /// More than the clients of a run have waiting, each met several times.
    #[test]
    fn many_attempts_are_told_apart_soon() {
        let tables = tables();
        let all: Vec<Transaction> =
            (0..16).map(|n| write(&tables, n + 1, OperationKind::Upsert, (n % 7) as i64)).collect();
        let mut order: Vec<&Transaction> = all.iter().collect();
        for at in 0..order.len() {
            let other = (at * 31 + 7) % order.len();
            order.swap(at, other);
        }
        let log = log_of(&tables, &order);
        // Everything is refused, but for the last round, which comes in the order of the log.
        let met: Vec<&Transaction> =
            all.iter().chain(&all).chain(all.iter().rev()).chain(order.iter().copied()).collect();
        assert!(!differs(&tables, &met, &vec![3; met.len()], &log));
    }
}
