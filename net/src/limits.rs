//! Every limit that both sides of the wire, or all nodes of a cluster, must agree on.
//!
//! The relations between them are asserted at compile time, and [`fingerprint`] goes into the
//! handshake, so that two builds that disagree refuse each other before they exchange data.

use xxhash_rust::const_xxh3::xxh3_64;

/// Payload of a client's frame, bytes.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Payload of a server's answer, bytes: a scan page or the outcomes of one frame.
pub const ANSWER_PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// One log batch with its headers, bytes.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Redo records of one transaction, bytes.
pub const TRANSACTION_REDO_BYTES_MAX: usize = 512 << 10;
/// A shard hands its open fragments over once they hold this much, bytes.
pub const FRAGMENT_BYTES_CLOSE: usize = 256 << 10;
/// Encoded key, bytes.
pub const KEY_BYTES_MAX: usize = 1 << 10;
/// Encoded row without its key, bytes.
pub const ROW_BYTES_MAX: usize = 64 << 10;
/// Columns of a table.
pub const COLUMNS_MAX: usize = 256;
/// Bytes of a table's or a column's name.
pub const NAME_BYTES_MAX: usize = 63;
/// Tables of a cluster.
pub const TABLES_MAX: usize = 4096;
/// Operations of one transaction.
pub const TRANSACTION_OPERATIONS_MAX: usize = 4096;
/// Transactions of one frame.
pub const FRAME_TRANSACTIONS_MAX: usize = 65_535;
/// Open sessions of a node.
pub const SESSIONS_MAX: usize = 100_000;
/// Frames a session may have unanswered on one connection.
pub const SESSION_FRAMES_IN_FLIGHT_MAX: usize = 1024;
/// How far a transaction number may run ahead of the session's acknowledged mark. Outcomes of
/// this many transactions are all a server ever keeps for a session.
pub const SESSION_NUMBERS_WINDOW: u64 = 1 << 17;
/// Results kept with an outcome for a retry, bytes.
pub const OUTCOME_RESULT_BYTES_MAX: usize = 64;
/// Nodes of a cluster.
pub const NODES_MAX: usize = 7;
/// Largest number of a node. A number is never given out again after its node lost its disk, so
/// there are more of them than nodes.
pub const NODE_ID_MAX: u16 = 999;
/// Partitions of a cluster; always a power of two.
pub const PARTITIONS_MAX: usize = 1024;
/// Partitions unless the format says otherwise.
pub const PARTITIONS_DEFAULT: usize = 256;
/// Log writes in flight. Part of the format: recovery relies on it (consensus rule R12).
pub const LOG_WRITES_IN_FLIGHT_MAX: usize = 4;
/// Version of the wire protocol.
pub const PROTOCOL_VERSION: u16 = 2;
/// Fixed share of a batch that no fragment may use: local header block, shared header, sector
/// checksums and section directory of the largest batch, bytes.
pub const BATCH_HEADER_BYTES_MAX: usize = 64 << 10;
/// What an item adds per touched partition beside its records, bytes: archive root and padding.
pub const FRAGMENT_OVERHEAD_BYTES_MAX: usize = 128;

const _: () = assert!(PARTITIONS_DEFAULT.is_power_of_two() && PARTITIONS_MAX.is_power_of_two());
// The largest item: everything a shard may have open when it executes one more transaction of
// the largest size, with an overhead for every partition. It must fit one batch unsplit, or a
// transaction could be torn between two batches.
const _: () = assert!(
    FRAGMENT_BYTES_CLOSE
        + TRANSACTION_REDO_BYTES_MAX
        + PARTITIONS_MAX * FRAGMENT_OVERHEAD_BYTES_MAX
        + BATCH_HEADER_BYTES_MAX
        <= BATCH_BYTES_MAX
);
const _: () = assert!(KEY_BYTES_MAX + ROW_BYTES_MAX + 64 <= TRANSACTION_REDO_BYTES_MAX);
// A page always has room for one row of the largest size.
const _: () = assert!(KEY_BYTES_MAX + ROW_BYTES_MAX + 4096 <= ANSWER_PAYLOAD_BYTES_MAX);
const _: () = assert!(FRAME_TRANSACTIONS_MAX as u64 <= SESSION_NUMBERS_WINDOW);

/// A hash of the limits that all parties must share.
pub const fn fingerprint() -> u64 {
    let values = [
        FRAME_PAYLOAD_BYTES_MAX as u64,
        ANSWER_PAYLOAD_BYTES_MAX as u64,
        BATCH_BYTES_MAX as u64,
        TRANSACTION_REDO_BYTES_MAX as u64,
        KEY_BYTES_MAX as u64,
        ROW_BYTES_MAX as u64,
        COLUMNS_MAX as u64,
        TRANSACTION_OPERATIONS_MAX as u64,
        FRAME_TRANSACTIONS_MAX as u64,
        SESSION_NUMBERS_WINDOW,
        OUTCOME_RESULT_BYTES_MAX as u64,
        LOG_WRITES_IN_FLIGHT_MAX as u64,
        PROTOCOL_VERSION as u64,
    ];
    let mut bytes = [0u8; 13 * 8];
    let mut i = 0;
    while i < values.len() {
        let le = values[i].to_le_bytes();
        let mut j = 0;
        while j < 8 {
            bytes[i * 8 + j] = le[j];
            j += 1;
        }
        i += 1;
    }
    xxh3_64(&bytes)
}
