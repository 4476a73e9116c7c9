//! Redo: what a shard puts into the log for one partition, and how a replica reads it in place.
//!
//! A **fragment** is one rkyv archive: columns of record heads, outcomes and bytes. Records hold
//! after-images (a full row, a patch of columns, a deletion), never increments, so applying one
//! twice is harmless and the order within a fragment does not matter: a fragment has at most one
//! record per row.
//!
//! Validation of such an archive is a range check on five arrays. Lengths inside the byte column
//! are data: [`FragmentReader`] takes every slice with a check of its own.

use rkyv::with::InlineAsBox;
use rkyv::{Archive, Deserialize, Serialize};
use spillway_net::limits::{
    KEY_BYTES_MAX, OUTCOME_RESULT_BYTES_MAX, ROW_BYTES_MAX, SESSION_NUMBERS_WINDOW,
};
use spillway_net::message::{self, MessageError};
use spillway_net::patch::PATCH_BYTES_MAX;
use xxhash_rust::xxh3::xxh3_128;

/// The partition number of the section that carries [`SystemCommand`]s.
pub const PARTITION_SYSTEM: u16 = u16::MAX;

/// What a record does to its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// The value is the whole row.
    Full = 1,
    /// The value is a patch of the row's columns.
    Patch = 2,
    /// The row is gone; no value.
    Delete = 3,
}

impl RecordKind {
    const fn from_wire(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Full,
            2 => Self::Patch,
            3 => Self::Delete,
            _ => return None,
        })
    }
}

/// Head of one record: 9 bytes in the log.
#[derive(Archive, Serialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// A [`RecordKind`].
    pub kind: u8,
    /// The table's id.
    pub table: u16,
    /// Bytes of the key.
    pub key_length: u16,
    /// Bytes of the value.
    pub value_length: u32,
}

/// Committed transactions of one session whose lowest partition this is.
#[derive(Archive, Serialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRun {
    /// The session.
    pub session: u64,
    /// Number that the outcomes' deltas count from.
    pub base_number: u64,
    /// How many outcomes follow for it.
    pub outcomes: u32,
    /// The client has read everything below `base_number` minus this: replicas forget it too, or
    /// they would keep outcomes without end.
    pub acknowledged_behind: u32,
}

/// Outcome of one committed transaction: 7 bytes in the log.
#[derive(Archive, Serialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutcomeRecord {
    /// The transaction's number minus its run's `base_number`.
    pub number_delta: u16,
    /// Hash of the request, to tell a retry from another request under the same number.
    pub request_hash: u32,
    /// Bytes of results kept, or [`RESULTS_NOT_KEPT`].
    pub result_length: u8,
}

/// `result_length` of an outcome whose results were too large to be kept.
pub const RESULTS_NOT_KEPT: u8 = u8::MAX;

const _: () = assert!(spillway_net::limits::OUTCOME_RESULT_BYTES_MAX < RESULTS_NOT_KEPT as usize);

/// One fragment as it is written: borrowed columns.
#[derive(Archive, Serialize, Debug)]
pub struct Fragment<'a> {
    /// Row version of the first write in the fragment.
    pub first_number: u64,
    /// One entry per record.
    #[rkyv(with = InlineAsBox)]
    pub records: &'a [RecordHead],
    /// Row version of each record, counted from `first_number`; empty when record i has i.
    #[rkyv(with = InlineAsBox)]
    pub numbers: &'a [u32],
    /// Sessions with outcomes here.
    #[rkyv(with = InlineAsBox)]
    pub runs: &'a [SessionRun],
    /// The runs' outcomes, one run after the other.
    #[rkyv(with = InlineAsBox)]
    pub outcomes: &'a [OutcomeRecord],
    /// Per record its key and value; then the outcomes' results.
    #[rkyv(with = InlineAsBox)]
    pub bytes: &'a [u8],
}

pub use system_command::{ArchivedSystemCommand, SystemCommand, SystemCommandResolver};

mod system_command {
    #![expect(missing_docs, reason = "the derive leaves the fields of the resolvers bare")]

    use rkyv::{Archive, Deserialize, Serialize};
    use spillway_net::schema::TableDefinition;

    /// Changes of the replicated state that no partition owns.
    #[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
    pub enum SystemCommand {
        /// A table exists from here on.
        TableCreate {
            /// Its id, never used before.
            table: u16,
            /// Its columns and keys.
            definition: TableDefinition,
        },
        /// A table and all its rows are gone.
        TableDrop {
            /// Its id.
            table: u16,
        },
        /// A session may be used from here on.
        SessionOpen {
            /// Its id, never used before.
            session: u64,
            /// For lists.
            client_name: String,
        },
        /// A session's outcomes are forgotten and its numbers refused.
        SessionClose {
            /// Its id.
            session: u64,
        },
        /// Where a node of the cluster is reached.
        MemberSet {
            /// The node.
            node: u16,
            /// By its peers.
            peer_address: String,
            /// By clients: its shard 0.
            client_address: String,
        },
        /// A node is no member any more.
        MemberRemove {
            /// The node.
            node: u16,
        },
        /// Leadership and reads are kept away from a node, or no longer.
        ZoneDrain {
            /// The node.
            node: u16,
            /// Which of the two.
            drained: bool,
        },
    }
}

/// The system section of a batch.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct SystemFragment {
    /// In order of execution.
    pub commands: Vec<SystemCommand>,
}

/// Digest of a system section: its bytes' XXH3-128.
pub fn system_digest(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}

/// Digest of one record: XXH3-128 over table, key, row version and the whole row as it stands
/// after the record (`None`: deleted). It does not depend on whether the row is held or logged as
/// a patch, so a replica computes it from what its memtable holds, and a patch applied to a wrong
/// base is seen.
///
/// Two chained one-shot hashes: the 64-bit hash of the head and key seeds the row's, which is
/// four times faster than one streaming hash for the usual 100 bytes.
pub fn record_digest(table: u16, key: &[u8], number: u64, row: Option<&[u8]>) -> u128 {
    use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};
    let head = number.rotate_left(17)
        ^ (u64::from(table) << 48)
        ^ ((key.len() as u64) << 33)
        ^ (u64::from(row.is_some()) << 32);
    let seed = xxh3_64_with_seed(key, head);
    let row = row.unwrap_or(&[]);
    xxh3_128_with_seed(row, seed ^ row.len() as u64)
}

/// Bytes that passed every checksum of the log and still make no sense: a bug in the writer or
/// another release's format.
#[derive(Debug, thiserror::Error)]
pub enum RedoError {
    /// The archive itself.
    #[error("redo {0}")]
    Archive(#[from] MessageError),
    /// Its columns contradict each other.
    #[error("redo fragment is inconsistent: {0}")]
    Inconsistent(&'static str),
    /// What it says cannot follow upon what stands in the log before it.
    #[error("redo contradicts the log before it: {0}")]
    Contradiction(&'static str),
}

/// One record, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The table's id.
    pub table: u16,
    /// What it does.
    pub kind: RecordKind,
    /// Row version.
    pub number: u64,
    /// Encoded key.
    pub key: &'a [u8],
    /// Row or patch; empty for a deletion.
    pub value: &'a [u8],
}

/// One outcome, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// The session.
    pub session: u64,
    /// The transaction's number.
    pub number: u64,
    /// Hash of its request.
    pub request_hash: u32,
    /// Its results, `None` when they were too large to be kept.
    pub results: Option<&'a [u8]>,
}

/// How far a session's client has read, as of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The session.
    pub session: u64,
    /// Outcomes of numbers below were read.
    pub below: u64,
}

/// A validated fragment. Holding one proves that every length adds up, that no number overflows
/// and that no value is larger than the memtable and the sessions take, so iteration cannot fail.
#[derive(Clone, Copy)]
pub struct FragmentReader<'a> {
    archived: &'a ArchivedFragment<'a>,
    record_bytes: usize,
    next_number: u64,
}

impl<'a> FragmentReader<'a> {
    /// Validates one section's bytes.
    pub fn new(bytes: &'a [u8]) -> Result<Self, RedoError> {
        let archived = message::access::<Fragment<'a>>(bytes)?;
        let record_bytes = records_check(archived)?;
        let next_number = next_number(archived)?;
        let result_bytes = outcomes_check(archived)?;
        if record_bytes + result_bytes != archived.bytes.len() {
            return Err(RedoError::Inconsistent("lengths do not add up to the bytes"));
        }
        Ok(Self { archived, record_bytes, next_number })
    }

    /// Number of records.
    pub fn records_count(&self) -> usize {
        self.archived.records.len()
    }

    /// Row version of the first write in this fragment: none of an earlier one is as high.
    pub fn first_number(&self) -> u64 {
        self.archived.first_number.to_native()
    }

    /// The partition's running record number after this fragment.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// The records in order.
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let archived = self.archived;
        let first = archived.first_number.to_native();
        let numbers: &'a [_] = &archived.numbers;
        let mut rest: &'a [u8] = &archived.bytes;
        archived.records.iter().enumerate().map(move |(i, head)| {
            let (key, after) = rest.split_at(usize::from(head.key_length.to_native()));
            let (value, after) = after.split_at(head.value_length.to_native() as usize);
            rest = after;
            let delta = numbers.get(i).map_or(i as u64, |n| u64::from(n.to_native()));
            Record {
                table: head.table.to_native(),
                kind: RecordKind::from_wire(head.kind).expect("checked by new"),
                number: first + delta,
                key,
                value,
            }
        })
    }

    /// How far the clients of the fragment's sessions have read.
    pub fn acknowledged(&self) -> impl Iterator<Item = Acknowledged> + use<'a> {
        self.archived.runs.iter().map(|run| Acknowledged {
            session: run.session.to_native(),
            below: run.base_number.to_native() - u64::from(run.acknowledged_behind.to_native()),
        })
    }

    /// The outcomes in order.
    pub fn outcomes(&self) -> impl Iterator<Item = Outcome<'a>> + use<'a> {
        let archived = self.archived;
        let mut results: &'a [u8] = &archived.bytes[self.record_bytes..];
        let mut at = 0usize;
        archived
            .runs
            .iter()
            .flat_map(move |run| {
                let count = run.outcomes.to_native() as usize;
                let slice = &archived.outcomes[at..at + count];
                at += count;
                slice.iter().map(move |outcome| (run, outcome))
            })
            .map(move |(run, outcome)| {
                let kept = kept_length(outcome.result_length);
                let (now, after) = results.split_at(kept);
                results = after;
                Outcome {
                    session: run.session.to_native(),
                    number: run.base_number.to_native()
                        + u64::from(outcome.number_delta.to_native()),
                    request_hash: outcome.request_hash.to_native(),
                    results: (outcome.result_length != RESULTS_NOT_KEPT).then_some(now),
                }
            })
    }
}

/// Checks every record by itself. Returns the bytes of all keys and values.
fn records_check(archived: &ArchivedFragment<'_>) -> Result<usize, RedoError> {
    let mut bytes = 0usize;
    for head in archived.records.iter() {
        let key = usize::from(head.key_length.to_native());
        let value = head.value_length.to_native() as usize;
        let Some(kind) = RecordKind::from_wire(head.kind) else {
            return Err(RedoError::Inconsistent("unknown record kind"));
        };
        let value_max = match kind {
            RecordKind::Full => ROW_BYTES_MAX,
            RecordKind::Patch => PATCH_BYTES_MAX,
            RecordKind::Delete => 0,
        };
        if key > KEY_BYTES_MAX || value > value_max {
            return Err(RedoError::Inconsistent("a key or a value above the limit"));
        }
        bytes += key + value;
    }
    Ok(bytes)
}

/// The partition's next number behind a fragment, if all of its numbers exist.
fn next_number(archived: &ArchivedFragment<'_>) -> Result<u64, RedoError> {
    let count = archived.records.len();
    let writes = match archived.numbers.iter().map(|number| number.to_native()).max() {
        None => count as u64,
        Some(_) if archived.numbers.len() != count => {
            return Err(RedoError::Inconsistent("row versions and records differ in count"));
        }
        Some(last) => u64::from(last) + 1,
    };
    let next = archived.first_number.to_native().checked_add(writes);
    next.ok_or(RedoError::Inconsistent("row versions overflow"))
}

/// Checks runs and outcomes. Returns the bytes of all results.
fn outcomes_check(archived: &ArchivedFragment<'_>) -> Result<usize, RedoError> {
    let mut rest: &[ArchivedOutcomeRecord] = &archived.outcomes;
    let mut bytes = 0;
    for run in archived.runs.iter() {
        let base = run.base_number.to_native();
        let behind = u64::from(run.acknowledged_behind.to_native());
        if run.session == 0 {
            return Err(RedoError::Inconsistent("outcomes of no session"));
        }
        if behind >= base || behind >= SESSION_NUMBERS_WINDOW {
            return Err(RedoError::Inconsistent("an acknowledged mark outside the window"));
        }
        let outcomes = rest.split_at_checked(run.outcomes.to_native() as usize);
        let (outcomes, behind) =
            outcomes.ok_or(RedoError::Inconsistent("session runs and outcomes differ in count"))?;
        rest = behind;
        for outcome in outcomes {
            if base.checked_add(u64::from(outcome.number_delta.to_native())).is_none() {
                return Err(RedoError::Inconsistent("transaction numbers overflow"));
            }
            let kept = kept_length(outcome.result_length);
            if kept > OUTCOME_RESULT_BYTES_MAX {
                return Err(RedoError::Inconsistent("results above the limit"));
            }
            bytes += kept;
        }
    }
    if rest.is_empty() {
        return Ok(bytes);
    }
    Err(RedoError::Inconsistent("session runs and outcomes differ in count"))
}

const fn kept_length(result_length: u8) -> usize {
    if result_length == RESULTS_NOT_KEPT { 0 } else { result_length as usize }
}

/// Reads arbitrary bytes as a fragment: must not panic. Fuzz target `redo`.
pub fn fuzz_redo(data: &[u8]) {
    if let Ok(reader) = FragmentReader::new(data) {
        let records = reader.records().count();
        assert_eq!(records, reader.records_count());
        assert!(reader.records().all(|record| record.number < reader.next_number()));
        assert_eq!(reader.outcomes().count(), reader.archived.outcomes.len());
        assert!(reader.outcomes().all(|outcome| outcome.session != 0 && outcome.number > 0));
        assert!(reader.acknowledged().all(|mark| mark.session != 0 && mark.below > 0));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(numbers: &[u32]) -> Vec<u8> {
        let records = [
            RecordHead { kind: 1, table: 3, key_length: 2, value_length: 4 },
            RecordHead { kind: 3, table: 3, key_length: 1, value_length: 0 },
        ];
        let fragment = Fragment {
            first_number: 100,
            records: &records,
            numbers,
            runs: &[SessionRun {
                session: 9,
                base_number: 50,
                outcomes: 2,
                acknowledged_behind: 5,
            }],
            outcomes: &[
                OutcomeRecord { number_delta: 0, request_hash: 7, result_length: 3 },
                OutcomeRecord { number_delta: 4, request_hash: 8, result_length: RESULTS_NOT_KEPT },
            ],
            bytes: &[],
        };
        // Keys "k1", "r"; value "roww"; then 3 bytes of results.
        let bytes = [&b"k1roww"[..], b"z", b"res"].concat();
        let fragment = Fragment { bytes: &bytes, ..fragment };
        let mut out = Vec::new();
        message::archive(&mut out, &fragment);
        out
    }

    #[test]
    fn a_fragment_reads_back() {
        let bytes = sample(&[]);
        let reader = FragmentReader::new(&bytes).expect("valid");
        let records: Vec<_> = reader.records().collect();
        assert_eq!(records[0].key, b"k1");
        assert_eq!(records[0].value, b"roww");
        assert_eq!((records[0].number, records[1].number), (100, 101));
        assert_eq!(records[1].kind, RecordKind::Delete);
        assert_eq!(reader.next_number(), 102);
        let acknowledged: Vec<_> = reader.acknowledged().collect();
        assert_eq!(acknowledged, [Acknowledged { session: 9, below: 45 }]);
        let outcomes: Vec<_> = reader.outcomes().collect();
        assert_eq!(outcomes[0].results, Some(&b"res"[..]));
        assert_eq!((outcomes[1].number, outcomes[1].results), (54, None));
    }

    #[test]
    fn overwritten_rows_carry_their_numbers() {
        let bytes = sample(&[5, 9]);
        let reader = FragmentReader::new(&bytes).expect("valid");
        assert_eq!(reader.records().map(|r| r.number).collect::<Vec<_>>(), [105, 109]);
        assert_eq!(reader.next_number(), 110);
        assert!(FragmentReader::new(&sample(&[5])).is_err(), "one number for two records");
    }

    #[test]
    fn numbers_and_lengths_beyond_their_limits_are_refused() {
        let head = RecordHead { kind: 3, table: 1, key_length: 0, value_length: 0 };
        let run = SessionRun { session: 9, base_number: 50, outcomes: 1, acknowledged_behind: 5 };
        let outcome = OutcomeRecord { number_delta: 0, request_hash: 7, result_length: 0 };
        let read =
            |first_number, head: RecordHead, run, outcome: OutcomeRecord, numbers: &[u32]| {
                let length = usize::from(head.key_length) + head.value_length as usize;
                let kept = kept_length(outcome.result_length);
                let fragment = Fragment {
                    first_number,
                    records: &[head],
                    numbers,
                    runs: &[run],
                    outcomes: &[outcome],
                    bytes: &vec![b'x'; length + kept],
                };
                let mut bytes = Vec::new();
                message::archive(&mut bytes, &fragment);
                fuzz_redo(&bytes);
                FragmentReader::new(&bytes).is_ok()
            };
        assert!(read(u64::MAX - 1, head, run, outcome, &[]), "the last number there is");
        assert!(!read(u64::MAX, head, run, outcome, &[]));
        assert!(read(u64::MAX - 8, head, run, outcome, &[7]));
        assert!(!read(u64::MAX - 8, head, run, outcome, &[8]));
        assert!(!read(1, head, SessionRun { session: 0, ..run }, outcome, &[]));
        let last = SessionRun { base_number: u64::MAX, ..run };
        assert!(read(1, head, last, outcome, &[]), "a client may give its last number");
        assert!(!read(1, head, last, OutcomeRecord { number_delta: 1, ..outcome }, &[]));
        let long = OUTCOME_RESULT_BYTES_MAX as u8;
        assert!(read(1, head, run, OutcomeRecord { result_length: long, ..outcome }, &[]));
        assert!(!read(1, head, run, OutcomeRecord { result_length: long + 1, ..outcome }, &[]));
        let key = KEY_BYTES_MAX as u16;
        assert!(read(1, RecordHead { key_length: key, ..head }, run, outcome, &[]));
        assert!(!read(1, RecordHead { key_length: key + 1, ..head }, run, outcome, &[]));
        assert!(!read(1, RecordHead { value_length: 1, ..head }, run, outcome, &[]));
        let full = |value_length| RecordHead { kind: 1, value_length, ..head };
        assert!(read(1, full(ROW_BYTES_MAX as u32), run, outcome, &[]));
        assert!(!read(1, full(ROW_BYTES_MAX as u32 + 1), run, outcome, &[]));
    }

    #[test]
    fn commands_of_the_root_service_read_back() {
        let (peer_address, client_address) = ("a:1".to_owned(), "b-long-enough:2".to_owned());
        let commands = vec![
            SystemCommand::SessionClose { session: 7 },
            SystemCommand::MemberSet { node: 3, peer_address, client_address },
            SystemCommand::MemberRemove { node: 3 },
            SystemCommand::ZoneDrain { node: 2, drained: true },
        ];
        assert_eq!(size_of::<ArchivedSystemCommand>(), 29, "as the format says");
        let fragment = SystemFragment { commands };
        let mut bytes = Vec::new();
        message::archive(&mut bytes, &fragment);
        assert_eq!(message::decode::<SystemFragment>(&bytes).expect("valid"), fragment);
        let drained = bytes.windows(4).any(|bytes| bytes == [6, 2, 0, 1]);
        assert!(drained, "tag, node, whether it is drained");
    }

    #[test]
    fn digests_tell_rows_apart() {
        let base = record_digest(1, b"key", 5, Some(b"row"));
        assert_ne!(base, record_digest(2, b"key", 5, Some(b"row")));
        assert_ne!(base, record_digest(1, b"kez", 5, Some(b"row")));
        assert_ne!(base, record_digest(1, b"key", 6, Some(b"row")));
        assert_ne!(base, record_digest(1, b"key", 5, Some(b"rox")));
        assert_ne!(
            record_digest(1, b"key", 5, None),
            record_digest(1, b"key", 5, Some(b"")),
            "a deleted row is not an empty one"
        );
    }

    proptest! {
        #[test]
        fn mutated_fragments_do_no_harm(
            at in any::<prop::sample::Index>(), value in any::<u8>(), cut in 0usize..30,
        ) {
            let mut bytes = sample(&[1, 2]);
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes.truncate(bytes.len() - cut);
            fuzz_redo(&bytes);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz_redo(&data);
        }
    }
}
