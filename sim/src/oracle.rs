//! The judge: watches what goes into the shards and what comes out, and holds both against the
//! [`Model`] and against what a restart finds in the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use spillway_net::frame::{Assembled, FrameAssembler, FrameHeader, FrameKind, HEADER_BYTES};
use spillway_net::ids::Lsn;
use spillway_net::limits::ANSWER_PAYLOAD_BYTES_MAX;
use spillway_net::message::{self, Hello, OutcomeStatus, Outcomes, Scan, ScanPage, Submit};
use spillway_updateserver::redo::FragmentReader;

use crate::Failure;
use crate::model::{Model, Transaction, transactions};
use crate::worker::{BALANCE_INITIAL, Tables};

#[derive(Clone, Debug)]
enum Request {
    Submit { session: u64, transactions: Vec<Transaction> },
    Scan(Scan),
}

/// A request that a shard has executed and not answered.
#[derive(Clone, Debug)]
struct Executed {
    connection: u64,
    request: u64,
    what: Request,
}

/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transactions that a shard answered as committed, repeated ones included.
    pub committed: u64,
    /// Of them, answered from an outcome that was kept.
    pub repeated: u64,
    /// Ended without effect.
    pub failed: u64,
    /// Refused for memory, log or session.
    pub refused: u64,
    /// Of them, because the log was full.
    pub log_full: u64,
    /// Of them, because memory was full.
    pub memory_full: u64,
    /// Scans compared.
    pub scans: u64,
    /// Restarts.
    pub restarts: u64,
    /// Restarts that dropped a torn tail.
    pub torn: u64,
    /// Connections lost.
    pub resets: u64,
    /// Write errors.
    pub write_errors: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Uses of segments beyond the first of each.
    pub recycled: u64,
    /// Starts refused because of damage.
    pub refused_starts: u64,
    /// Starts that needed a larger budget.
    pub budget_raised: u64,
    /// Requests to the root service that were refused because of the log.
    pub refused_log: u64,
    /// Requests that clients gave up.
    pub gave_up: u64,
    /// Events.
    pub events: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Oracle {
    tables: Tables,
    shards: u16,
    model: Model,
    sessions: BTreeMap<u64, u64>,
    /// The last attempt by which a session was attached, by shard and session.
    attempts: BTreeMap<(u16, u64), u64>,
    open: Vec<BTreeSet<u64>>,
    executed: Vec<VecDeque<Executed>>,
    /// Executed before the log failed: nobody will answer them.
    abandoned: Vec<Vec<Executed>>,
    /// Writers that a shard answered as committed.
    acknowledged: BTreeSet<(u64, u64)>,
    /// Writers whose end without effect a client was told.
    denied: BTreeSet<(u64, u64)>,
    /// LSN of every outcome that was appended in the present boot or found at its start.
    lsn_of: BTreeMap<(u64, u64), Lsn>,
    /// What happened.
    pub counts: Counts,
}

impl Oracle {
    /// Of a node without rows.
    pub fn new(tables: Tables, shards: u16) -> Self {
        Self {
            tables,
            shards,
            model: Model::default(),
            sessions: BTreeMap::new(),
            attempts: BTreeMap::new(),
            open: vec![BTreeSet::new(); usize::from(shards)],
            executed: vec![VecDeque::new(); usize::from(shards)],
            abandoned: vec![Vec::new(); usize::from(shards)],
            acknowledged: BTreeSet::new(),
            denied: BTreeSet::new(),
            lsn_of: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// A shard heard of a connection.
    pub fn opened(&mut self, shard: u16, connection: u64) {
        self.open[usize::from(shard)].insert(connection);
    }

    /// A shard heard of its end.
    pub fn closed(&mut self, shard: u16, connection: u64) {
        self.open[usize::from(shard)].remove(&connection);
    }

    /// A shard is about to execute a frame.
    pub fn execute(
        &mut self,
        shard: u16,
        connection: u64,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), Failure> {
        if !self.open[usize::from(shard)].contains(&connection) {
            return Ok(());
        }
        let what = match header.kind {
            FrameKind::Hello => {
                let hello = decode::<Hello>(message::decode(payload))?;
                self.hello(shard, connection, &hello);
                return Ok(());
            }
            FrameKind::Submit => {
                let submit = decode::<Submit>(message::decode(payload))?;
                let session = self.sessions.get(&connection).copied().unwrap_or(0);
                let transactions = transactions(&submit, &self.tables)?;
                Request::Submit { session, transactions }
            }
            FrameKind::Scan => Request::Scan(decode::<Scan>(message::decode(payload))?),
            _ => return Ok(()),
        };
        let executed = Executed { connection, request: header.request, what };
        self.executed[usize::from(shard)].push_back(executed);
        Ok(())
    }

    /// A hello that is not late fences the other connections of its session; a late one ends its
    /// own. What is fenced is served nothing any more, in the same turn already.
    fn hello(&mut self, shard: u16, connection: u64, hello: &Hello) {
        if hello.session != 0 {
            let last = self.attempts.entry((shard, hello.session)).or_default();
            let is_late = hello.attempt < *last;
            *last = hello.attempt.max(*last);
            let sessions = &self.sessions;
            self.open[usize::from(shard)].retain(|open| {
                let same = sessions.get(open) == Some(&hello.session);
                if *open == connection { !is_late } else { is_late || !same }
            });
        }
        self.sessions.insert(connection, hello.session);
    }

    /// The log failed: what is not answered now will not be.
    pub fn log_failed(&mut self, shard: u16) {
        let at = usize::from(shard);
        let executed = std::mem::take(&mut self.executed[at]);
        for executed in &executed {
            // Whoever waited is disconnected, and what it sent meanwhile is not served.
            self.open[at].remove(&executed.connection);
        }
        self.abandoned[at].extend(executed);
    }

    /// A shard lets a frame go.
    pub fn released(&mut self, shard: u16, connection: u64, frame: &[u8]) -> Result<(), Failure> {
        let mut rest = frame;
        let next = FrameAssembler::default()
            .next(&mut rest, ANSWER_PAYLOAD_BYTES_MAX, &mut Vec::new())
            .map_err(|error| Failure::new(format!("a shard sent no frame: {error}")))?;
        let Assembled::InPlace(header, frame) = next else {
            return Err(Failure::new("a shard sent a piece of a frame"));
        };
        let payload = &frame[HEADER_BYTES..];
        match header.kind {
            FrameKind::Refusal => {
                self.refused(shard, connection, header.request);
                Ok(())
            }
            FrameKind::Outcomes | FrameKind::ScanPage => {
                let executed = self.executed[usize::from(shard)]
                    .pop_front()
                    .ok_or(Failure::new("an answer that nobody waits for"))?;
                if (executed.connection, executed.request) != (connection, header.request) {
                    return Err(Failure::new(format!(
                        "answers in another order than requests: request {} of connection \
                         {connection} before {} of {}",
                        header.request, executed.request, executed.connection
                    )));
                }
                match executed.what {
                    Request::Submit { session, transactions } => {
                        let answer = decode::<Outcomes>(message::decode(payload))?;
                        self.outcomes(session, &transactions, &answer, header.lsn)
                    }
                    Request::Scan(scan) => {
                        let page = decode::<ScanPage>(message::decode(payload))?;
                        self.page(shard, &scan, &page)
                    }
                }
            }
            _ => Ok(()),
        }
    }

    /// A refused request has no other answer, and what the connection sent behind a refused
    /// frame of transactions is not executed.
    fn refused(&mut self, shard: u16, connection: u64, request: u64) {
        let queue = &mut self.executed[usize::from(shard)];
        let of = |e: &Executed| e.connection == connection && e.request == request;
        let Some(at) = queue.iter().position(of) else {
            if request == 0 {
                // The node ends the connection on its own account.
                self.open[usize::from(shard)].remove(&connection);
            }
            return;
        };
        let submit = matches!(queue[at].what, Request::Submit { .. });
        queue.remove(at);
        if submit {
            let mut index = 0;
            queue.retain(|executed| {
                index += 1;
                index <= at || executed.connection != connection
            });
            self.open[usize::from(shard)].remove(&connection);
        }
    }

    fn outcomes(
        &mut self,
        session: u64,
        transactions: &[Transaction],
        answer: &Outcomes,
        lsn: Lsn,
    ) -> Result<(), Failure> {
        if answer.outcomes.len() != transactions.len() {
            return Err(Failure::new("an outcome is missing"));
        }
        let mut bytes = answer.bytes.as_slice();
        for (transaction, outcome) in transactions.iter().zip(&answer.outcomes) {
            let (results, rest) = bytes.split_at(outcome.data_length as usize);
            bytes = rest;
            let status = OutcomeStatus::from_wire(outcome.status);
            let status = status.ok_or(Failure::new("an unknown outcome"))?;
            if self.not_let_in(status) {
                continue;
            }
            let name = (session, transaction.number);
            let repeated = self.model.outcomes.contains_key(&name);
            let predicted = self.model.execute(session, transaction, &self.tables);
            let equal = predicted.status == status
                && predicted.operation == outcome.operation
                && predicted.results == results;
            if !equal {
                return Err(Failure::new(format!(
                    "transaction {} of session {session} ({transaction:?}) must end with \
                     {predicted:?}, the answer was {status:?} at {} with {results:?}",
                    transaction.number, outcome.operation
                )));
            }
            if !status.is_committed() {
                self.counts.failed += 1;
                continue;
            }
            self.counts.committed += 1;
            self.counts.repeated += u64::from(repeated);
            if transaction.writes() {
                self.acknowledged.insert(name);
                if self.lsn_of.get(&name).is_none_or(|at| *at > lsn) {
                    return Err(Failure::new(format!(
                        "transaction {} of session {session} was acknowledged at LSN {lsn}, and \
                         is in the log at {:?}",
                        transaction.number,
                        self.lsn_of.get(&name)
                    )));
                }
            }
        }
        Ok(())
    }

    fn not_let_in(&mut self, status: OutcomeStatus) -> bool {
        match status {
            OutcomeStatus::LogFull => self.counts.log_full += 1,
            OutcomeStatus::MemoryFull => self.counts.memory_full += 1,
            OutcomeStatus::Overloaded
            | OutcomeStatus::LogFailed
            | OutcomeStatus::SessionUnknown
            | OutcomeStatus::NumberOutOfWindow
            | OutcomeStatus::Unavailable => {}
            _ => return false,
        }
        self.counts.refused += 1;
        true
    }

    fn page(&mut self, shard: u16, scan: &Scan, page: &ScanPage) -> Result<(), Failure> {
        self.counts.scans += 1;
        let expected = self.model.scan(scan, shard, self.shards);
        let mut bytes = page.bytes.as_slice();
        for (at, row) in page.rows.iter().enumerate() {
            let (key, rest) = bytes.split_at(usize::from(row.key_length));
            let (value, rest) = rest.split_at(row.row_length as usize);
            bytes = rest;
            if expected.get(at) != Some(&(key, value, row.version)) {
                return Err(Failure::new(format!(
                    "row {at} of a scan is {key:?} version {}, expected {:?}",
                    row.version,
                    expected.get(at)
                )));
            }
        }
        let wanted = expected.len().min(scan.rows_max as usize);
        // Deleted rows may stand behind the page's end: then `more` promises too much.
        let more_missed = expected.len() > page.rows.len() && !page.more;
        if page.rows.len() != wanted || more_missed {
            return Err(Failure::new(format!(
                "a scan found {} rows, more: {}; expected {wanted} of {}",
                page.rows.len(),
                page.more,
                expected.len()
            )));
        }
        Ok(())
    }

    /// A section went into the log.
    pub fn appended(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<(), Failure> {
        let reader = FragmentReader::new(bytes)
            .map_err(|error| Failure::new(format!("a shard handed over no redo: {error}")))?;
        for outcome in reader.outcomes() {
            self.lsn_of.insert((outcome.session, outcome.number), lsn);
        }
        Ok(())
    }

    /// A client heard of a transaction's end.
    pub fn client_heard(
        &mut self,
        session: u64,
        number: u64,
        committed: bool,
        writes: bool,
    ) -> Result<(), Failure> {
        let name = (session, number);
        if committed && writes && !self.acknowledged.contains(&name) {
            return Err(Failure::new(format!(
                "a client heard that transaction {number} of session {session} had committed, and \
                 no shard had said so"
            )));
        }
        if !committed {
            self.denied.insert(name);
            self.denied_check(&[name])?;
        }
        Ok(())
    }

    fn denied_check(&self, names: &[(u64, u64)]) -> Result<(), Failure> {
        match names.iter().find(|name| self.model.outcomes.contains_key(name)) {
            Some((session, number)) => Err(Failure::new(format!(
                "transaction {number} of session {session} took effect, and its client heard that \
                 it had not"
            ))),
            None => Ok(()),
        }
    }

    /// A restart found this in the log. Everything acknowledged must be there, once; what was not
    /// acknowledged is there in full or not at all.
    pub fn restarted(
        &mut self,
        log: Model,
        lsn_of: BTreeMap<(u64, u64), Lsn>,
    ) -> Result<(), Failure> {
        self.counts.restarts += 1;
        if let Some((session, number)) =
            self.acknowledged.iter().find(|name| !log.outcomes.contains_key(name))
        {
            return Err(Failure::new(format!(
                "transaction {number} of session {session} was acknowledged and is lost"
            )));
        }
        for shard in 0..usize::from(self.shards) {
            self.open[shard].clear();
            self.attempts.clear();
            let abandoned = std::mem::take(&mut self.abandoned[shard]);
            let executed = std::mem::take(&mut self.executed[shard]);
            for executed in abandoned.into_iter().chain(executed) {
                let Request::Submit { session, transactions } = executed.what else { continue };
                for transaction in &transactions {
                    let name = (session, transaction.number);
                    if log.outcomes.contains_key(&name) {
                        self.model.execute(session, transaction, &self.tables);
                    }
                }
            }
        }
        if let Some(difference) = self.model.difference(&log) {
            return Err(Failure::new(format!("after a restart: {difference}")));
        }
        let (sum, accounts) = log.balances(&self.tables);
        if sum != accounts * BALANCE_INITIAL {
            return Err(Failure::new(format!("{accounts} accounts hold {sum}")));
        }
        let denied: Vec<_> = self.denied.iter().copied().collect();
        self.denied_check(&denied)?;
        self.lsn_of = lsn_of;
        // Row numbers of transactions that failed or were lost are given out again.
        self.model = log;
        Ok(())
    }
}

fn decode<T>(result: Result<T, message::MessageError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::new(format!("a message: {error}")))
}
