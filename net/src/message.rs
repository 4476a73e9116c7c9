//! What frames carry: rkyv archives, validated before use.
//!
//! Requests and answers of the hot path are **columns**: arrays of integers and one array of
//! bytes. Validation of such an archive is a range check; offsets inside the byte column are
//! plain data that the archive's validation knows nothing of, so readers take slices with `get`.

use rkyv::rancor;
use rkyv::{Archive, Deserialize, Serialize};

use crate::frame::{self, FrameKind};
use crate::ids::Lsn;
use crate::schema::TableDefinition;

/// First frame of a connection, at most [`HELLO_BYTES_MAX`] of payload.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`crate::limits::fingerprint`] of the client's build.
    pub limits_fingerprint: u64,
    /// The cluster the client expects, 0 for any.
    pub cluster: u128,
    /// The session to attach to this connection, 0 for none. Attaching fences every earlier
    /// connection of the same session to the same shard.
    pub session: u64,
    /// Rises with every connection that a client makes for a session, or stays 0. A hello with a
    /// lower one than the session's last is refused: it was sent on a connection that the client
    /// has given up since, and must not fence the newer one.
    pub attempt: u64,
}

/// Payload limit until a connection has said hello, bytes.
pub const HELLO_BYTES_MAX: usize = 1 << 10;

/// Answer to [`Hello`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Welcome {
    /// Cluster of this node.
    pub cluster: u128,
    /// This node.
    pub node: u16,
    /// The leader's term.
    pub epoch: u64,
    /// The leader, 0 if unknown.
    pub leader: u16,
    /// Where the leader's shard 0 listens, as `address:port`; empty if unknown.
    pub leader_address: String,
    /// All nodes of the cluster that this one knows of.
    pub members: Vec<MemberAddress>,
    /// Partitions of the cluster.
    pub partitions: u32,
    /// The shard that answers on this connection.
    pub shard: u16,
    /// Port of every shard on this node's address; partition p belongs to shard p % ports.
    pub shard_ports: Vec<u16>,
}

/// Where clients reach a node.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct MemberAddress {
    /// The node.
    pub node: u16,
    /// Where its shard 0 listens, as `address:port`.
    pub address: String,
}

/// Asks for a new session; served by shard 0.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct SessionOpen {
    /// For the operator's lists, up to [`crate::limits::NAME_BYTES_MAX`] bytes.
    pub client_name: String,
}

/// Answer to [`SessionOpen`]: durable, never given out again.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct SessionOpened {
    /// The new session.
    pub session: u64,
}

/// Ends a session; its outcomes are forgotten and its numbers refused. Served by shard 0.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct SessionClose {
    /// The session to end.
    pub session: u64,
}

/// A frame of independent one-shot transactions of the connection's session - or of none, for
/// transactions that only read -, executed in order,
/// each with an outcome of its own.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Submit {
    /// All numbers below this one have been answered and read by the client: their outcomes may
    /// be forgotten.
    pub acknowledged_below: u64,
    /// Number of the transaction with `number_offset` 0.
    pub first_number: u64,
    /// A [`ReadMode`]: what the frame's reads must have seen. Frames that write are strong.
    pub read_mode: u8,
    /// The LSN of [`ReadMode::AtLsn`], the microseconds of [`ReadMode::Stale`]; else 0.
    pub read_bound: u64,
    /// One entry per transaction.
    pub transactions: Vec<TransactionHead>,
    /// The operations of all transactions, one after the other.
    pub operations: Vec<OperationHead>,
    /// Per operation its key and then its value, without gaps, to the last byte.
    pub bytes: Vec<u8>,
}

/// What the reads of a frame must have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReadMode {
    /// Everything acknowledged before the request. Only the leader serves it, and only with a
    /// quorum's word that it still leads.
    #[default]
    Strong = 0,
    /// Everything up to an LSN. Any node that has applied it serves it.
    AtLsn = 1,
    /// Everything older than so many microseconds by the leader's clock. Any node that is so
    /// fresh serves it; as exact as the nodes' clocks agree.
    Stale = 2,
}

impl ReadMode {
    /// Reads the wire's form.
    pub const fn from_wire(mode: u8) -> Option<Self> {
        Some(match mode {
            0 => Self::Strong,
            1 => Self::AtLsn,
            2 => Self::Stale,
            _ => return None,
        })
    }
}

/// One transaction of a [`Submit`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy))]
pub struct TransactionHead {
    /// The transaction's number is `first_number + number_offset`; rises within a frame.
    pub number_offset: u32,
    /// How many of the frame's operations are its, 1 to `TRANSACTION_OPERATIONS_MAX`.
    pub operations: u16,
}

/// One operation of a [`Submit`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy))]
pub struct OperationHead {
    /// An [`OperationKind`].
    pub kind: u8,
    /// Zero.
    pub reserved: u8,
    /// The table's id.
    pub table: u16,
    /// The column of an `Add`, by its index in the definition; else 0.
    pub column: u16,
    /// Bytes of the encoded key.
    pub key_length: u16,
    /// Bytes of the value; its form depends on the kind.
    pub value_length: u32,
}

/// What an operation does. A transaction whose check fails, or that violates a bound, leaves no
/// trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OperationKind {
    /// Returns the row and its version, or that there is none. No value.
    Get = 1,
    /// Fails unless the row exists. No value.
    CheckExists = 2,
    /// Fails if the row exists. No value.
    CheckAbsent = 3,
    /// Fails unless the row exists and its columns equal those of a patch (see `patch`).
    CheckEquals = 4,
    /// Fails unless the row exists and has this version: 8 bytes little-endian.
    CheckVersion = 5,
    /// Inserts a row (see `row`); fails on a duplicate.
    Insert = 6,
    /// Inserts a row or replaces the one that is there.
    Upsert = 7,
    /// Changes columns of an existing row by a patch (see `patch`); fails if there is none.
    Update = 8,
    /// Adds to a numeric column of an existing row within bounds (see `patch::AddArgument`).
    Add = 9,
    /// Deletes an existing row; fails if there is none. No value.
    Delete = 10,
}

impl OperationKind {
    /// Reads the wire's form.
    pub const fn from_wire(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Get,
            2 => Self::CheckExists,
            3 => Self::CheckAbsent,
            4 => Self::CheckEquals,
            5 => Self::CheckVersion,
            6 => Self::Insert,
            7 => Self::Upsert,
            8 => Self::Update,
            9 => Self::Add,
            10 => Self::Delete,
            _ => return None,
        })
    }

    /// Whether it may change a row.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Insert | Self::Upsert | Self::Update | Self::Add | Self::Delete)
    }
}

/// Answer to [`Submit`]: one entry per transaction, in the frame's order.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// For refusals that are worth a retry: not before this many milliseconds; else 0.
    pub retry_after_ms: u32,
    /// One entry per transaction.
    pub outcomes: Vec<OutcomeHead>,
    /// The data of all outcomes, one after the other: for every `Get` in order of operations a
    /// [`GetResult`] header of 13 bytes (present u8, version u64, row length u32) and the row.
    pub bytes: Vec<u8>,
}

/// Outcome of one transaction.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy))]
pub struct OutcomeHead {
    /// An [`OutcomeStatus`].
    pub status: u16,
    /// The operation that failed, counted from 0 within the transaction; a shard's index for
    /// `WrongShard`; else 0.
    pub operation: u16,
    /// Bytes of its data.
    pub data_length: u32,
}

/// Bytes in front of every row that a `Get` returns: present u8, version u64, row length u32.
pub const GET_RESULT_HEADER_BYTES: usize = 13;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum OutcomeStatus {
    /// All its operations took effect and are durable.
    Committed = 0,
    /// A repeated transaction that had committed; its results were too large to be kept.
    CommittedResultsNotKept = 1,
    /// A check failed. Nothing took effect.
    CheckFailed = 2,
    /// An insert met an existing row.
    Duplicate = 3,
    /// An update, add or delete met no row.
    NotFound = 4,
    /// An add left its bounds.
    BoundsViolated = 5,
    /// An add left the range of its type.
    Overflow = 6,
    /// An add met a null.
    NullOperand = 7,
    /// The transaction's rows lie on more than one shard: not supported yet.
    CrossShard = 8,
    /// The rows lie on another shard: the one in `operation`.
    WrongShard = 9,
    /// No such table.
    UnknownTable = 10,
    /// The key, row, patch or argument does not fit the table.
    Malformed = 11,
    /// Too many operations or too much redo, or results that no answer can hold.
    TooLarge = 12,
    /// Same number, other content: a bug of the client.
    NumberReused = 13,
    /// The number lies below the acknowledged mark or beyond the window.
    NumberOutOfWindow = 14,
    /// The session was never opened, was closed or has expired.
    SessionUnknown = 15,
    /// The memory budget is used up: retry after a freeze, see `retry_after_ms`.
    MemoryFull = 16,
    /// The log's budget is used up.
    LogFull = 17,
    /// The log device failed: this node takes no writes until it is repaired.
    LogFailed = 18,
    /// Too much is in flight: retry after `retry_after_ms`.
    Overloaded = 19,
    /// The table is being dropped, or the node is stopping.
    Unavailable = 20,
    /// This node has not yet applied what the read must have seen: retry, or ask another node.
    Behind = 21,
}

impl OutcomeStatus {
    /// Reads the wire's form.
    pub const fn from_wire(status: u16) -> Option<Self> {
        Some(match status {
            0 => Self::Committed,
            1 => Self::CommittedResultsNotKept,
            2 => Self::CheckFailed,
            3 => Self::Duplicate,
            4 => Self::NotFound,
            5 => Self::BoundsViolated,
            6 => Self::Overflow,
            7 => Self::NullOperand,
            8 => Self::CrossShard,
            9 => Self::WrongShard,
            10 => Self::UnknownTable,
            11 => Self::Malformed,
            12 => Self::TooLarge,
            13 => Self::NumberReused,
            14 => Self::NumberOutOfWindow,
            15 => Self::SessionUnknown,
            16 => Self::MemoryFull,
            17 => Self::LogFull,
            18 => Self::LogFailed,
            19 => Self::Overloaded,
            20 => Self::Unavailable,
            21 => Self::Behind,
            _ => return None,
        })
    }

    /// Whether the transaction's effects are in the log.
    pub const fn is_committed(self) -> bool {
        matches!(self, Self::Committed | Self::CommittedResultsNotKept)
    }

    /// Whether the same transaction may succeed when sent again later, unchanged.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::MemoryFull | Self::LogFull | Self::Overloaded | Self::Behind)
    }
}

/// Asks for rows of one table that this shard holds, in key order. Each page is one atomic read
/// of the shard; a scan of several pages is not one snapshot.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Table's id.
    pub table: u16,
    /// First encoded key to return; empty: from the beginning.
    pub start: Vec<u8>,
    /// First encoded key not to return; empty: to the end.
    pub end: Vec<u8>,
    /// Rows wanted at most; a page may hold fewer although more follow.
    pub rows_max: u32,
}

/// Answer to [`Scan`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// Whether rows may follow: ask again from `next`. A page may hold few rows or none although
    /// more follow: what a shard does for one page is bounded.
    pub more: bool,
    /// The encoded key to go on from; not below the page's last key.
    pub next: Vec<u8>,
    /// One entry per row.
    pub rows: Vec<RowHead>,
    /// Per row its key and then its value.
    pub bytes: Vec<u8>,
}

/// One row of a [`ScanPage`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy))]
pub struct RowHead {
    /// Bytes of the encoded key.
    pub key_length: u16,
    /// Bytes of the encoded row.
    pub row_length: u32,
    /// The row's version.
    pub version: u64,
}

/// Creates a table; served by shard 0; logged. Creating the same definition again succeeds.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct TableCreate {
    /// The table.
    pub definition: TableDefinition,
}

/// Answer to [`TableCreate`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TableCreated {
    /// The table's id.
    pub table: u16,
}

/// Drops a table and its rows; served by shard 0; logged; answered by [`Done`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TableDrop {
    /// The table's name.
    pub name: String,
}

/// Answer to commands that return nothing.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Done {}

/// Asks for all tables; any shard.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TableList {}

/// Answer to [`TableList`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct TableListing {
    /// By id.
    pub tables: Vec<TableEntry>,
}

/// One table of a [`TableListing`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct TableEntry {
    /// The table's id.
    pub id: u16,
    /// Its definition.
    pub definition: TableDefinition,
    /// Rows that the answering shard holds, deleted ones included until they are merged away.
    pub rows: u64,
}

/// Asks one shard for its numbers.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Status {}

/// Answer to [`Status`]: named numbers, so that a new one breaks no client. Names end in their
/// unit; `docs/ARCHITECTURE.md` says what each means.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct StatusReport {
    /// Name and value, in display order.
    pub values: Vec<StatusValue>,
}

/// One number of a [`StatusReport`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct StatusValue {
    /// For example `log_write_p50_ns`.
    pub name: String,
    /// The value.
    pub value: u64,
}

/// Asks a node how it sees the cluster; shard 0 of any node.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {}

/// Answer to [`ClusterStatus`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterReport {
    /// The node that answers.
    pub node: u16,
    /// Its role: `leader`, `follower`, `candidate`, `learner`.
    pub role: String,
    /// Its term.
    pub term: u64,
    /// The leader it knows, 0 if none.
    pub leader: u16,
    /// End of the contiguous durable log of this node, LSN.
    pub scl: u64,
    /// End of what a quorum has durable, LSN. On the leader only, elsewhere the VDL.
    pub vcl: u64,
    /// Committed end, LSN: answers leave up to here.
    pub vdl: u64,
    /// The oldest LSN at which anybody may still read.
    pub pgmrpl: u64,
    /// Up to this LSN everything is applied on this node.
    pub applied: u64,
    /// Bytes that the tail may run ahead of the VDL (allocation limit).
    pub lal_bytes: u64,
    /// Bytes that it is ahead now.
    pub tail_bytes: u64,
    /// All members.
    pub members: Vec<MemberReport>,
}

/// One member of a [`ClusterReport`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberReport {
    /// The node.
    pub node: u16,
    /// Where clients reach its shard 0.
    pub address: String,
    /// Where peers reach it.
    pub peer_address: String,
    /// `voter`, `learner`, `joining` or `leaving` (a change of members is under way).
    pub kind: String,
    /// What the answering node knows of it: `leader`, `follower`, `lagging`, `unreachable`,
    /// `unknown`.
    pub state: String,
    /// Whether leadership and reads are kept away from it.
    pub drained: bool,
    /// Up to this LSN its log is known to equal the leader's; 0 if not known here.
    pub matched: u64,
    /// Up to this LSN it has applied; 0 if not known here.
    pub applied: u64,
    /// Since its last message, milliseconds; 0 for the answering node itself.
    pub silent_ms: u64,
}

/// An operator's command for the whole cluster; shard 0 of the leader; answered by [`Done`] when
/// it is accepted. What became of it is in [`ClusterReport`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ClusterCommand {
    /// A [`ClusterAction`].
    pub action: u8,
    /// The node it concerns, 0 for none.
    pub node: u16,
    /// For a replacement: the new node.
    pub node_new: u16,
    /// For a replacement: where peers reach the new node.
    pub peer_address: String,
    /// For a replacement: where clients reach the new node's shard 0.
    pub address: String,
}

/// What a [`ClusterCommand`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ClusterAction {
    /// Hand leadership over to `node`, or to the best follower.
    Transfer = 1,
    /// Keep leadership and reads away from `node`; it goes on voting.
    Drain = 2,
    /// The end of a drain.
    Undrain = 3,
    /// Let `node_new` join as a learner, and vote in place of `node` when it has caught up.
    Replace = 4,
}

impl ClusterAction {
    /// Reads the wire's form.
    pub const fn from_wire(action: u8) -> Option<Self> {
        Some(match action {
            1 => Self::Transfer,
            2 => Self::Drain,
            3 => Self::Undrain,
            4 => Self::Replace,
            _ => return None,
        })
    }
}

/// The request as a whole could not be served.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// A [`RefusalCode`].
    pub code: u16,
    /// For people: cause and, where there is one, the command that mends it.
    pub message: String,
    /// Worth a retry after this many milliseconds; 0: not worth one.
    pub retry_after_ms: u32,
    /// The leader as far as this node knows, 0 if it does not.
    pub leader: u16,
    /// Where the leader's shard 0 listens, as `address:port`; empty if unknown.
    pub leader_address: String,
}

impl Refusal {
    /// A refusal that is not worth a retry.
    pub fn new(code: RefusalCode, message: String) -> Self {
        Self { code: code as u16, message, ..Self::default() }
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RefusalCode {
    /// The archive did not validate, or its parts contradict each other.
    Malformed = 1,
    /// Another cluster, or other limits compiled in.
    Mismatch = 2,
    /// Something was sent before `Hello`, a second hello, or an answer's kind.
    OutOfOrder = 3,
    /// The session was never opened, was closed or has expired.
    SessionUnknown = 4,
    /// A newer connection took the session over.
    SessionFenced = 5,
    /// A limit on connections, sessions, tables or requests in flight.
    LimitReached = 6,
    /// The command must go to shard 0.
    WrongShard = 7,
    /// Schema errors: bad definition, name taken, no such table.
    Schema = 8,
    /// The log device failed, or its budget is used up.
    LogUnavailable = 9,
    /// The node is stopping.
    Stopping = 10,
    /// This node does not lead: ask the leader, if it is known, or try the others.
    NotLeader = 11,
    /// An operator keeps reads away from this node: ask another one.
    Drained = 12,
    /// A command for the cluster that cannot be carried out now.
    ClusterBusy = 13,
}

impl RefusalCode {
    /// Reads the wire's form.
    pub const fn from_wire(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Malformed,
            2 => Self::Mismatch,
            3 => Self::OutOfOrder,
            4 => Self::SessionUnknown,
            5 => Self::SessionFenced,
            6 => Self::LimitReached,
            7 => Self::WrongShard,
            8 => Self::Schema,
            9 => Self::LogUnavailable,
            10 => Self::Stopping,
            11 => Self::NotLeader,
            12 => Self::Drained,
            13 => Self::ClusterBusy,
            _ => return None,
        })
    }
}

/// Bytes that are not the archive they should be.
#[derive(Debug, thiserror::Error)]
#[error("the message does not validate: {0}")]
pub struct MessageError(#[from] rancor::Error);

/// Nesting an archive may have. Ours need 4: message, table, column, name.
const DEPTH_MAX: usize = 8;

type Validator<'a> = rkyv::validation::Validator<
    rkyv::validation::archive::ArchiveValidator<'a>,
    rkyv::validation::shared::SharedValidator,
>;

/// Validates `payload` as an archived `T` and returns it in place.
pub fn access<T>(payload: &[u8]) -> Result<&T::Archived, MessageError>
where
    T: Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rancor::Strategy<Validator<'a>, rancor::Error>>
        + rkyv::Portable,
{
    use rkyv::validation::archive::ArchiveValidator;
    use rkyv::validation::shared::SharedValidator;
    use std::num::NonZeroUsize;

    let depth = NonZeroUsize::new(DEPTH_MAX);
    let mut validator = rkyv::validation::Validator::new(
        ArchiveValidator::with_max_depth(payload, depth),
        SharedValidator::new(),
    );
    Ok(rkyv::api::access_with_context::<T::Archived, _, rancor::Error>(payload, &mut validator)?)
}

/// Validates `payload` and copies it out. For messages off the hot path.
pub fn decode<T>(payload: &[u8]) -> Result<T, MessageError>
where
    T: Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rancor::Strategy<Validator<'a>, rancor::Error>>
        + rkyv::Portable
        + Deserialize<T, rancor::Strategy<rkyv::de::Pool, rancor::Error>>,
{
    Ok(rkyv::deserialize::<T, rancor::Error>(access::<T>(payload)?)?)
}

/// What can be written as a payload.
pub trait Payload:
    for<'a> Serialize<
    rancor::Strategy<
        rkyv::ser::Serializer<
            &'a mut Vec<u8>,
            rkyv::ser::allocator::ArenaHandle<'a>,
            rkyv::ser::sharing::Share,
        >,
        rancor::Error,
    >,
>
{
}

impl<T> Payload for T where
    T: for<'a> Serialize<
        rancor::Strategy<
            rkyv::ser::Serializer<
                &'a mut Vec<u8>,
                rkyv::ser::allocator::ArenaHandle<'a>,
                rkyv::ser::sharing::Share,
            >,
            rancor::Error,
        >,
    >
{
}

/// Appends the archive of `message` to `out`. Archives need no alignment.
pub fn archive<T: Payload>(out: &mut Vec<u8>, message: &T) {
    rkyv::util::with_arena(|arena| {
        let mut serializer =
            rkyv::ser::Serializer::new(out, arena.acquire(), rkyv::ser::sharing::Share::new());
        rkyv::api::serialize_using::<_, rancor::Error>(message, &mut serializer)
    })
    .expect("writing to memory cannot fail");
}

/// Appends one whole frame with `message` as its payload.
pub fn write_frame<T: Payload>(
    out: &mut Vec<u8>,
    kind: FrameKind,
    request: u64,
    lsn: Lsn,
    message: &T,
) {
    let start = frame::begin(out);
    archive(out, message);
    frame::finish(&mut out[start..], kind, request, lsn);
}

/// Validates arbitrary bytes as every request and the richest answers: must neither panic nor
/// allocate by an announced length. The fuzz target `message` and the tests call this.
pub fn fuzz_message(data: &[u8]) {
    let Some((kind, payload)) = data.split_first() else { return };
    match kind % 10 {
        0 => drop(decode::<Hello>(payload)),
        1 => drop(decode::<Submit>(payload)),
        2 => drop(decode::<Scan>(payload)),
        3 => drop(decode::<Outcomes>(payload)),
        4 => drop(decode::<TableCreate>(payload)),
        5 => drop(decode::<ClusterCommand>(payload)),
        6 => drop(decode::<StatusReport>(payload)),
        7 => drop(decode::<Welcome>(payload)),
        8 => drop(decode::<Refusal>(payload)),
        _ => drop(decode::<ClusterReport>(payload)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn submit() -> Submit {
        Submit {
            acknowledged_below: 3,
            first_number: 4,
            read_mode: 0,
            read_bound: 0,
            transactions: vec![TransactionHead { number_offset: 0, operations: 1 }],
            operations: vec![OperationHead {
                kind: 6,
                reserved: 0,
                table: 1,
                column: 0,
                key_length: 8,
                value_length: 3,
            }],
            bytes: b"keykeykeval".to_vec(),
        }
    }

    #[test]
    fn archives_round_trip_at_any_offset() {
        for offset in 0..17 {
            let mut out = vec![0xEE; offset];
            archive(&mut out, &submit());
            assert_eq!(decode::<Submit>(&out[offset..]).expect("valid"), submit());
        }
    }

    #[test]
    fn a_transfer_frame_stays_small() {
        // 1,000 transactions of 3 operations: heads cost 42 bytes each beside keys and values.
        let mut frame = submit();
        frame.transactions = vec![frame.transactions[0]; 1000];
        frame.operations = vec![frame.operations[0]; 3000];
        frame.bytes.clear();
        let mut out = Vec::new();
        archive(&mut out, &frame);
        assert!(out.len() <= 42 * 1000 + 64, "{} bytes", out.len());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(data in prop::collection::vec(any::<u8>(), 0..400)) {
            fuzz_message(&data);
        }

        #[test]
        fn mutated_archives_do_no_harm(
            at in any::<prop::sample::Index>(), value in any::<u8>(), cut in 0usize..20,
        ) {
            let mut out = vec![1];
            archive(&mut out, &submit());
            let at = at.index(out.len());
            out[at] = value;
            out.truncate(out.len() - cut.min(out.len()));
            fuzz_message(&out);
        }
    }
}
