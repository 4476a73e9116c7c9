//! What a client saw, kept for the [`checker`](crate::checker).
//!
//! Accounts are registers, ordered by their row versions. A get tells a row and its version; an
//! insert, an update or an addition is a write whose value is not known to the client, and whose
//! version is known if the transaction reads the row afterwards. An addition, an update or a delete
//! that met no row has read that there was none. A page of a scan has read all its rows at once.
//! Not expressed are: the journal, which nobody reads; checks, and inserts that met a row.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use spillway_net::message::{GET_RESULT_HEADER_BYTES, OutcomeStatus, ScanPage};
use spillway_net::value::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::Failure;
use crate::checker::{self, Datum, History, Kind, Micro, Name};
use crate::worker::Tables;

/// One operation of a transaction, as far as it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Get(i64),
    Write(i64),
    Other,
}

#[derive(Clone, Debug)]
enum Sent {
    Transactions(Vec<Vec<Operation>>),
    Scan,
}

/// A row as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    version: NonZeroU64,
    /// The balance, and a hash of all.
    text: String,
}

#[derive(Clone, Debug)]
enum Step {
    Write(i64),
    Read(i64, Option<Row>),
    /// The result was not kept.
    Unread(i64),
}

#[derive(Clone, Debug)]
struct Seen {
    invoked: u64,
    completed: u64,
    kind: Kind,
    steps: Vec<Step>,
}

/// How a transaction ended, as a client heard it.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its status.
    pub status: OutcomeStatus,
    /// The operation that failed.
    pub operation: u16,
    /// Results of its gets.
    pub results: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Recorder {
    /// Accounts by their encoded keys.
    accounts: BTreeMap<Vec<u8>, i64>,
    /// Of the frame that is being built.
    building: Vec<Vec<Operation>>,
    /// Time and content of frames without an answer, by the client's sequence.
    sent: BTreeMap<u64, (u64, Sent)>,
    seen: Vec<Seen>,
}

impl Recorder {
    /// Of a client of these accounts.
    pub fn new(tables: &Tables, accounts: i64) -> Self {
        let key = |id| {
            let mut key = Vec::new();
            tables.account.write_key(&[Value::Int8(id)], &mut key).expect("a key");
            (key, id)
        };
        Self {
            accounts: (0..accounts).map(key).collect(),
            building: Vec::new(),
            sent: BTreeMap::new(),
            seen: Vec::new(),
        }
    }

    /// A transaction of the next frame begins.
    pub fn begin(&mut self) {
        self.building.push(Vec::new());
    }

    fn operation(&mut self, operation: Operation) {
        self.building.last_mut().expect("a transaction has begun").push(operation);
    }

    /// It reads an account.
    pub fn get(&mut self, account: i64) {
        self.operation(Operation::Get(account));
    }

    /// It writes an account.
    pub fn write(&mut self, account: i64) {
        self.operation(Operation::Write(account));
    }

    /// It does something that is not recorded.
    pub fn other(&mut self) {
        self.operation(Operation::Other);
    }

    /// The frame is sent.
    pub fn sent(&mut self, now: u64, sequence: u64) {
        let transactions = std::mem::take(&mut self.building);
        self.sent.insert(sequence, (now, Sent::Transactions(transactions)));
    }

    /// A scan of all accounts, or a part of them, is sent.
    pub fn scan_sent(&mut self, now: u64, sequence: u64) {
        self.sent.insert(sequence, (now, Sent::Scan));
    }

    /// The transactions of a frame have ended.
    pub fn heard(
        &mut self,
        now: u64,
        sequence: u64,
        told: &[Told],
        tables: &Tables,
    ) -> Result<(), Failure> {
        let Some((invoked, Sent::Transactions(transactions))) = self.sent.remove(&sequence) else {
            return Err(Failure::new("outcomes of what was not sent"));
        };
        for (operations, told) in transactions.iter().zip(told) {
            let (kind, steps) = match told.status {
                OutcomeStatus::Committed => {
                    (Kind::Ok, steps(operations, Some(&told.results), tables)?)
                }
                OutcomeStatus::CommittedResultsNotKept => {
                    (Kind::Ok, steps(operations, None, tables)?)
                }
                OutcomeStatus::NotFound => match missing(operations, told.operation) {
                    Some(account) => (Kind::Ok, vec![Step::Read(account, None)]),
                    None => continue,
                },
                // Without effect, and what it saw cannot be expressed.
                _ => (Kind::Fail, steps(operations, None, tables)?),
            };
            self.seen.push(Seen { invoked, completed: now, kind, steps });
        }
        Ok(())
    }

    /// The answer to a frame is nothing for the history.
    pub fn forget(&mut self, sequence: u64) {
        self.sent.remove(&sequence);
    }

    /// A page of a scan of accounts has come, or of something else.
    pub fn scanned(
        &mut self,
        now: u64,
        sequence: u64,
        page: &ScanPage,
        tables: &Tables,
    ) -> Result<(), Failure> {
        let Some((invoked, Sent::Scan)) = self.sent.remove(&sequence) else { return Ok(()) };
        let mut bytes = page.bytes.as_slice();
        let mut steps = Vec::new();
        for head in &page.rows {
            let lengths = (usize::from(head.key_length), head.row_length as usize);
            let row = bytes.split_at_checked(lengths.0).and_then(|(key, rest)| {
                let (row, rest) = rest.split_at_checked(lengths.1)?;
                Some((key, row, rest))
            });
            let (key, row, rest) = row.ok_or(Failure::new("a page ends within a row"))?;
            bytes = rest;
            let account = self.accounts.get(key).ok_or(Failure::new("a row that nobody wrote"))?;
            steps.push(Step::Read(*account, Some(self::row(head.version, row, tables)?)));
        }
        self.seen.push(Seen { invoked, completed: now, kind: Kind::Ok, steps });
        Ok(())
    }

    /// The client will not hear how a frame ended.
    pub fn lost(&mut self, sequence: u64, tables: &Tables) -> Result<(), Failure> {
        let Some((invoked, Sent::Transactions(transactions))) = self.sent.remove(&sequence) else {
            return Ok(());
        };
        for operations in &transactions {
            let (completed, kind) = (checker::history::NEVER, Kind::Info);
            let steps = steps(operations, None, tables)?;
            self.seen.push(Seen { invoked, completed, kind, steps });
        }
        Ok(())
    }

    /// Makes one history of what all clients saw. What has no answer is of unknown end.
    pub fn history<'a>(
        recorders: impl Iterator<Item = &'a Self>,
        tables: &Tables,
    ) -> Result<History, Failure> {
        let mut history = History::new();
        let mut process = 0;
        for recorder in recorders {
            let mut seen = recorder.seen.clone();
            for (invoked, sent) in recorder.sent.values() {
                let Sent::Transactions(transactions) = sent else { continue };
                for operations in transactions {
                    let steps = steps(operations, None, tables)?;
                    let (completed, kind) = (checker::history::NEVER, Kind::Info);
                    seen.push(Seen { invoked: *invoked, completed, kind, steps });
                }
            }
            for Seen { invoked, completed, kind, steps } in seen {
                let micros: Vec<_> = steps.iter().map(|step| micro(&mut history, step)).collect();
                // A client has several transactions in flight: each is a process of its own.
                process += 1;
                let pushed = history.push(process, (invoked, completed), kind, &micros);
                pushed.map_err(|unfit| Failure::new(unfit.to_string()))?;
            }
        }
        Ok(history)
    }
}

/// Judges what the clients saw. Returns how many transactions there were.
pub fn judge(history: &History) -> Result<u64, Failure> {
    let verdict = checker::check(history);
    if verdict.findings.is_empty() {
        return Ok(history.transactions().len() as u64);
    }
    let kinds: Vec<_> = verdict
        .findings
        .counts
        .iter()
        .map(|(class, n)| format!("{n} {}", class.names().0))
        .collect();
    let first = verdict.findings.kept.first().map(|finding| finding.text(history));
    Err(Failure::new(format!(
        "what clients saw is not strictly serializable: {}; the first:\n{}",
        kinds.join(", "),
        first.unwrap_or_default()
    )))
}

fn micro(history: &mut History, step: &Step) -> Micro {
    let mut key = |account: i64| history.key(Name::Text(format!("account {account}")));
    match step {
        Step::Write(account) => {
            Micro::Write { key: key(*account), value: Datum::Unknown, version: None }
        }
        Step::Unread(account) => {
            Micro::Read { key: key(*account), value: Datum::Unknown, version: None }
        }
        Step::Read(account, None) => {
            Micro::Read { key: key(*account), value: Datum::Nil, version: None }
        }
        Step::Read(account, Some(row)) => {
            let key = key(*account);
            let value = Datum::Is(history.text_value(&row.text));
            Micro::Read { key, value, version: Some(row.version) }
        }
    }
}

fn row(version: u64, row: &[u8], tables: &Tables) -> Result<Row, Failure> {
    let version = NonZeroU64::new(version).ok_or(Failure::new("a row of version 0"))?;
    let text = format!("{} #{:08x}", tables.balance(row), xxh3_64(row) as u32);
    Ok(Row { version, text })
}

/// What a transaction did, with the results of its gets if they are known.
fn steps(
    operations: &[Operation],
    mut results: Option<&[u8]>,
    tables: &Tables,
) -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    for operation in operations {
        match *operation {
            Operation::Other => {}
            Operation::Write(account) => steps.push(Step::Write(account)),
            Operation::Get(account) => {
                let Some(bytes) = &mut results else {
                    steps.push(Step::Unread(account));
                    continue;
                };
                let short = || Failure::new("a result is cut off");
                let (head, rest) =
                    bytes.split_first_chunk::<GET_RESULT_HEADER_BYTES>().ok_or_else(short)?;
                let version = u64::from_le_bytes(head[1..9].try_into().expect("8 bytes"));
                let length = u32::from_le_bytes(head[9..].try_into().expect("4 bytes"));
                let (value, rest) = rest.split_at_checked(length as usize).ok_or_else(short)?;
                *bytes = rest;
                let is_there = head[0] == 1;
                let found = is_there.then(|| row(version, value, tables)).transpose()?;
                steps.push(Step::Read(account, found));
            }
        }
    }
    match results {
        Some([_, ..]) => Err(Failure::new("results of gets that nobody asked for")),
        _ => Ok(steps),
    }
}

/// The account that a transaction did not find, if it had not written it before.
fn missing(operations: &[Operation], at: u16) -> Option<i64> {
    let (before, rest) = operations.split_at_checked(usize::from(at))?;
    let Operation::Write(account) = rest.first()? else { return None };
    (!before.contains(&Operation::Write(*account))).then_some(*account)
}
