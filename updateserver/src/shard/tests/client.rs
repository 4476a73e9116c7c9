//! The client's side: keys, rows, operations, frames, and what comes back.

use spillway_net::client::{Batch, Outcome, outcome};
use spillway_net::frame::{FrameKind, HEADER_BYTES};
use spillway_net::ids::{ClusterId, Lsn, SessionId, TableId};
use spillway_net::layout::TableLayout;
use spillway_net::limits;
use spillway_net::message::{
    self, Hello, OperationKind, OutcomeStatus, Outcomes, ReadMode, Refusal, RefusalCode, ScanPage,
    Submit,
};
use spillway_net::schema::TableDefinition;
use spillway_net::value::Value;

use crate::session::SLOTS;

/// A row of a page: key, row, version.
pub(super) type ScannedRow = (Vec<u8>, Vec<u8>, u64);

pub(super) const TABLE: TableId = TableId(1);
pub(super) const CLUSTER: ClusterId = ClusterId(77);
/// Value columns: 0 balance, 1 price, 2 note, 3 tag; in the definition one more.
pub(super) const TABLE_TEXT: &str = "t(k int8, balance int8, price decimal(12, 2) null, \
    note text null, \
                          tag text, primary key (k))";

pub(super) fn session(number: u64) -> SessionId {
    SessionId(number * SLOTS as u64 + number)
}

pub(super) fn definition() -> TableDefinition {
    TableDefinition::parse(TABLE_TEXT).expect("it parses")
}

pub(super) fn layout() -> TableLayout {
    TableLayout::new(&definition()).expect("valid")
}

pub(super) fn key(k: i64) -> Vec<u8> {
    let mut out = Vec::new();
    spillway_net::key::key_write(&layout(), &[Value::Int8(k)], &mut out).expect("it fits");
    out
}

/// A row with this balance and a tag of this length.
pub(super) fn row(balance: i64, tag_bytes: usize) -> Vec<u8> {
    let values =
        [Value::Int8(balance), Value::Null, Value::Null, Value::Text("t".repeat(tag_bytes))];
    let mut out = Vec::new();
    spillway_net::row::row_write(&layout(), &values, &mut out).expect("it fits");
    out
}

/// One operation in its encoded form.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) kind: OperationKind,
    pub(super) table: TableId,
    pub(super) column: u16,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

pub(super) fn operation(kind: OperationKind, k: i64, value: &[u8]) -> Operation {
    Operation { kind, table: TABLE, column: 0, key: key(k), value: value.to_vec() }
}

pub(super) fn get(k: i64) -> Operation {
    operation(OperationKind::Get, k, &[])
}

pub(super) fn upsert(k: i64, balance: i64) -> Operation {
    operation(OperationKind::Upsert, k, &row(balance, 4))
}

/// Adds to the balance, without bounds.
pub(super) fn add(k: i64, delta: i64) -> Operation {
    let mut value = vec![0];
    value.extend_from_slice(&delta.to_le_bytes());
    Operation { column: 1, ..operation(OperationKind::Add, k, &value) }
}

/// A frame from a client, whole.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) connection: u64,
    pub(super) frame: Vec<u8>,
}

pub(super) fn frame_of<T: message::Payload>(
    connection: u64,
    request: u64,
    kind: FrameKind,
    payload: &T,
) -> Request {
    let mut frame = Vec::new();
    message::write_frame(&mut frame, kind, request, Lsn(0), payload);
    Request { connection, frame }
}

pub(super) fn submit(
    connection: u64,
    request: u64,
    first_number: u64,
    acknowledged_below: u64,
    transactions: &[Vec<Operation>],
) -> Request {
    let mut batch = Batch::new();
    for operations in transactions {
        batch.begin();
        for op in operations {
            batch.operation(op.kind, op.table, op.column, &op.key, &op.value).expect("it fits");
        }
        batch.end().expect("it has operations");
    }
    let mut frame = Vec::new();
    batch.write_frame(&mut frame, request, first_number, acknowledged_below);
    Request { connection, frame }
}

/// A frame of reads that may be old.
pub(super) fn read(
    connection: u64,
    request: u64,
    mode: ReadMode,
    bound: u64,
    transactions: &[Vec<Operation>],
) -> Request {
    let strong = submit(connection, request, 1, 0, transactions);
    let mut message = message::decode::<Submit>(&strong.frame[HEADER_BYTES..]).expect("valid");
    (message.read_mode, message.read_bound) = (mode as u8, bound);
    frame_of(connection, request, FrameKind::Submit, &message)
}

pub(super) fn hello(connection: u64, session: u64) -> Request {
    let hello = Hello {
        limits_fingerprint: limits::fingerprint(),
        cluster: CLUSTER.0,
        session,
        attempt: 0,
    };
    frame_of(connection, 0, FrameKind::Hello, &hello)
}

/// A frame that left.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) connection: u64,
    pub(super) request: u64,
    pub(super) kind: FrameKind,
    pub(super) payload: Vec<u8>,
}

impl Answer {
    pub(super) fn outcomes(&self) -> Vec<Outcome> {
        assert_eq!(self.kind, FrameKind::Outcomes, "{:?}", self.refusal());
        let read = message::access::<Outcomes>(&self.payload).expect("valid");
        outcome::outcomes(read.outcomes.as_slice(), read.bytes.as_slice()).expect("valid")
    }

    pub(super) fn status(&self) -> OutcomeStatus {
        let outcomes = self.outcomes();
        assert_eq!(outcomes.len(), 1, "one transaction was asked for");
        outcomes[0].status
    }

    pub(super) fn refusal(&self) -> Option<RefusalCode> {
        (self.kind == FrameKind::Refusal).then(|| {
            let refusal = self.refusal_whole();
            assert!(!refusal.message.is_empty(), "a refusal says why");
            RefusalCode::from_wire(refusal.code).expect("a known code")
        })
    }

    pub(super) fn refusal_whole(&self) -> Refusal {
        assert_eq!(self.kind, FrameKind::Refusal);
        message::decode::<Refusal>(&self.payload).expect("valid")
    }

    /// The page's flag, and its rows as key, row and version.
    pub(super) fn page(&self) -> (bool, Vec<ScannedRow>) {
        assert_eq!(self.kind, FrameKind::ScanPage, "{:?}", self.refusal());
        let page = message::decode::<ScanPage>(&self.payload).expect("valid");
        (page.more, page_rows(&page))
    }
}

pub(super) fn page_rows(page: &ScanPage) -> Vec<ScannedRow> {
    let mut rest = &page.bytes[..];
    let mut rows = Vec::new();
    for head in &page.rows {
        let (key, after) = rest.split_at(usize::from(head.key_length));
        let (row, after) = after.split_at(head.row_length as usize);
        rest = after;
        rows.push((key.to_vec(), row.to_vec(), head.version));
    }
    assert!(rest.is_empty(), "a page has no other bytes");
    rows
}
