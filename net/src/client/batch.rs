//! A batch: the transactions of one frame, built column by column.

use std::marker::PhantomData;

use rkyv::rancor::{self, Fallible};
use rkyv::ser::Writer;
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::{Archive, Place, Portable, Serialize};

use crate::client::freshness::Freshness;
use crate::frame::{self, FrameKind};
use crate::ids::{Lsn, TableId};
use crate::limits::{
    FRAME_PAYLOAD_BYTES_MAX, FRAME_TRANSACTIONS_MAX, KEY_BYTES_MAX, ROW_BYTES_MAX,
    TRANSACTION_OPERATIONS_MAX,
};
use crate::message::{
    ArchivedOperationHead, ArchivedSubmit, ArchivedTransactionHead, OperationKind,
};
use crate::patch::PATCH_BYTES_MAX;

const TRANSACTION_HEAD_BYTES: usize = size_of::<ArchivedTransactionHead>();
const OPERATION_HEAD_BYTES: usize = size_of::<ArchivedOperationHead>();
const TRANSACTION_HEADS_BYTES_MAX: usize = TRANSACTION_OPERATIONS_MAX * OPERATION_HEAD_BYTES;
const ROOT_BYTES: usize = size_of::<ArchivedSubmit>();

// The columns are written in their archived form: no padding, little-endian, alignment 1.
const _: () = assert!(TRANSACTION_HEAD_BYTES == 6 && align_of::<ArchivedTransactionHead>() == 1);
const _: () = assert!(OPERATION_HEAD_BYTES == 12 && align_of::<ArchivedOperationHead>() == 1);
const _: () = assert!(align_of::<ArchivedSubmit>() == 1);

/// Why an operation does not fit a batch. The batch is as it was before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The encoded key is too long or empty.
    #[error("a key of {0} bytes: keys have 1 to {KEY_BYTES_MAX}")]
    Key(usize),
    /// The encoded row, patch or argument is too long.
    #[error("a value of {bytes} bytes exceeds the limit of {limit}")]
    Value {
        /// Its length.
        bytes: usize,
        /// The longest allowed for this kind of operation.
        limit: usize,
    },
    /// The transaction has too many operations.
    #[error("a transaction has at most {TRANSACTION_OPERATIONS_MAX} operations")]
    Operations,
    /// The transaction has no operation.
    #[error("a transaction needs at least one operation")]
    Empty,
    /// The frame has too many transactions.
    #[error("a frame has at most {FRAME_TRANSACTIONS_MAX} transactions: submit, then go on")]
    Transactions,
    /// The frame is full: cancel the open transaction, submit, begin it again in the next frame.
    #[error("a frame has at most {FRAME_PAYLOAD_BYTES_MAX} bytes of payload: submit, then go on")]
    FrameFull,
    /// The batch was submitted with a transaction begun but not ended.
    #[error("the last transaction was begun but not ended")]
    Open,
    /// The batch was submitted without a transaction.
    #[error("the batch has no transaction")]
    NoTransaction,
    /// Transactions that change rows were to read something older than everything.
    #[error("a frame that changes rows reads everything: leave its freshness strong")]
    WritesNotStrong,
}

/// The longest value of an operation. A patch of a whole row is a little longer than the row.
const fn value_bytes_max(kind: OperationKind) -> usize {
    match kind {
        OperationKind::CheckEquals | OperationKind::Update => PATCH_BYTES_MAX,
        _ => ROW_BYTES_MAX,
    }
}

/// Where the open transaction began.
#[derive(Clone, Copy, Debug)]
struct OpenTransaction {
    operations: usize,
    bytes: usize,
}

/// The transactions of one frame under construction. Reuse it: after [`Batch::clear`], and after
/// a submit, it is empty and keeps its capacity.
///
/// A transaction is `begin`, one or more operations, `end`. Keys, rows, patches and arguments are
/// in their encoded form (see [`crate::schema`]). After an error the batch is as it was before
/// the call; [`Batch::cancel`] takes the whole open transaction back.
#[derive(Debug, Default)]
pub struct Batch {
    /// Archived `TransactionHead`s.
    transactions: Vec<u8>,
    /// Archived `OperationHead`s.
    operations: Vec<u8>,
    /// Keys and values.
    bytes: Vec<u8>,
    open: Option<OpenTransaction>,
    freshness: Freshness,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says what the reads must have seen. Strong again after [`Batch::clear`] and a submit.
    pub fn set_freshness(&mut self, freshness: Freshness) {
        self.freshness = freshness;
    }

    /// Begins a transaction.
    ///
    /// # Panics
    /// If the transaction before was neither ended nor cancelled.
    pub fn begin(&mut self) {
        assert!(self.open.is_none(), "a transaction is open: end or cancel it first");
        self.open =
            Some(OpenTransaction { operations: self.operations.len(), bytes: self.bytes.len() });
    }

    /// Ends the transaction begun last.
    ///
    /// # Panics
    /// If none is open.
    pub fn end(&mut self) -> Result<(), BatchError> {
        let open = self.open.expect("begin comes before end");
        let operations = (self.operations.len() - open.operations) / OPERATION_HEAD_BYTES;
        let number_offset = self.len();
        if operations == 0 {
            return Err(BatchError::Empty);
        }
        if number_offset == FRAME_TRANSACTIONS_MAX {
            return Err(BatchError::Transactions);
        }
        let operations = u16::try_from(operations).expect("checked when operations were added");
        let mut head = [0; TRANSACTION_HEAD_BYTES];
        head[0..4].copy_from_slice(&(number_offset as u32).to_le_bytes());
        head[4..6].copy_from_slice(&operations.to_le_bytes());
        self.transactions.extend_from_slice(&head);
        self.open = None;
        Ok(())
    }

    /// Forgets the open transaction, if there is one.
    pub fn cancel(&mut self) {
        if let Some(open) = self.open.take() {
            self.operations.truncate(open.operations);
            self.bytes.truncate(open.bytes);
        }
    }

    /// Asks for the row and its version.
    pub fn get(&mut self, table: TableId, key: &[u8]) -> Result<(), BatchError> {
        self.operation(OperationKind::Get, table, 0, key, &[])
    }

    /// Fails the transaction unless the row exists.
    pub fn check_exists(&mut self, table: TableId, key: &[u8]) -> Result<(), BatchError> {
        self.operation(OperationKind::CheckExists, table, 0, key, &[])
    }

    /// Fails the transaction if the row exists.
    pub fn check_absent(&mut self, table: TableId, key: &[u8]) -> Result<(), BatchError> {
        self.operation(OperationKind::CheckAbsent, table, 0, key, &[])
    }

    /// Fails the transaction unless the row's columns equal those of `patch`.
    pub fn check_equals(
        &mut self,
        table: TableId,
        key: &[u8],
        patch: &[u8],
    ) -> Result<(), BatchError> {
        self.operation(OperationKind::CheckEquals, table, 0, key, patch)
    }

    /// Fails the transaction unless the row has this version.
    pub fn check_version(
        &mut self,
        table: TableId,
        key: &[u8],
        version: u64,
    ) -> Result<(), BatchError> {
        self.operation(OperationKind::CheckVersion, table, 0, key, &version.to_le_bytes())
    }

    /// Inserts a row; fails on a duplicate.
    pub fn insert(&mut self, table: TableId, key: &[u8], row: &[u8]) -> Result<(), BatchError> {
        self.operation(OperationKind::Insert, table, 0, key, row)
    }

    /// Inserts a row or replaces the one that is there.
    pub fn upsert(&mut self, table: TableId, key: &[u8], row: &[u8]) -> Result<(), BatchError> {
        self.operation(OperationKind::Upsert, table, 0, key, row)
    }

    /// Changes columns of an existing row.
    pub fn update(&mut self, table: TableId, key: &[u8], patch: &[u8]) -> Result<(), BatchError> {
        self.operation(OperationKind::Update, table, 0, key, patch)
    }

    /// Adds to a numeric column (by its index in the definition) of an existing row;
    /// `argument` is an encoded `AddArgument`.
    pub fn add(
        &mut self,
        table: TableId,
        column: u16,
        key: &[u8],
        argument: &[u8],
    ) -> Result<(), BatchError> {
        self.operation(OperationKind::Add, table, column, key, argument)
    }

    /// Deletes an existing row.
    pub fn delete(&mut self, table: TableId, key: &[u8]) -> Result<(), BatchError> {
        self.operation(OperationKind::Delete, table, 0, key, &[])
    }

    /// [`Batch::insert`] by [`Batch::operation_with`].
    pub fn insert_with(
        &mut self,
        table: TableId,
        key: impl FnOnce(&mut Vec<u8>),
        row: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), BatchError> {
        self.operation_with(OperationKind::Insert, table, 0, key, row)
    }

    /// [`Batch::add`] by [`Batch::operation_with`].
    pub fn add_with(
        &mut self,
        table: TableId,
        column: u16,
        key: impl FnOnce(&mut Vec<u8>),
        argument: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), BatchError> {
        self.operation_with(OperationKind::Add, table, column, key, argument)
    }

    /// Any operation from its encoded parts.
    ///
    /// # Panics
    /// If no transaction is open.
    #[inline]
    pub fn operation(
        &mut self,
        kind: OperationKind,
        table: TableId,
        column: u16,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), BatchError> {
        let start = self.bytes.len();
        self.bytes.reserve(key.len() + value.len());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.push_head(kind, table, column, start, start + key.len())
    }

    /// Any operation, its key and value written straight into the frame's byte column. The
    /// closures may only append; the column they get is not empty.
    ///
    /// # Panics
    /// If no transaction is open, or a closure shortens the column.
    #[inline]
    pub fn operation_with(
        &mut self,
        kind: OperationKind,
        table: TableId,
        column: u16,
        key: impl FnOnce(&mut Vec<u8>),
        value: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), BatchError> {
        let start = self.bytes.len();
        key(&mut self.bytes);
        let value_start = self.bytes.len();
        value(&mut self.bytes);
        self.push_head(kind, table, column, start, value_start)
    }

    /// Adds the head of the operation whose key begins at `start` and whose value begins at
    /// `value_start` and ends the column; takes the bytes back if it does not fit.
    #[inline]
    fn push_head(
        &mut self,
        kind: OperationKind,
        table: TableId,
        column: u16,
        start: usize,
        value_start: usize,
    ) -> Result<(), BatchError> {
        let end = self.bytes.len();
        assert!(start <= value_start && value_start <= end, "closures may only append");
        let (key_length, value_length) = (value_start - start, end - value_start);
        let open = self.open.as_ref().expect("begin comes before operations");
        let payload = self.payload_bytes() + TRANSACTION_HEAD_BYTES + OPERATION_HEAD_BYTES;
        let fits = key_length.wrapping_sub(1) < KEY_BYTES_MAX
            && value_length <= ROW_BYTES_MAX
            && self.operations.len() - open.operations < TRANSACTION_HEADS_BYTES_MAX
            && payload <= FRAME_PAYLOAD_BYTES_MAX;
        if !fits && let Some(error) = self.misfit(kind, key_length, value_length, payload) {
            self.bytes.truncate(start);
            return Err(error);
        }
        let mut head = [0; OPERATION_HEAD_BYTES];
        head[0] = kind as u8;
        head[2..4].copy_from_slice(&table.0.to_le_bytes());
        head[4..6].copy_from_slice(&column.to_le_bytes());
        head[6..8].copy_from_slice(&(key_length as u16).to_le_bytes());
        head[8..12].copy_from_slice(&(value_length as u32).to_le_bytes());
        self.operations.extend_from_slice(&head);
        Ok(())
    }

    /// Why an operation does not fit, which the caller found out.
    #[cold]
    fn misfit(
        &self,
        kind: OperationKind,
        key_length: usize,
        value_length: usize,
        payload: usize,
    ) -> Option<BatchError> {
        let limit = value_bytes_max(kind);
        let begun = self.open.map_or(0, |open| open.operations);
        if key_length == 0 || key_length > KEY_BYTES_MAX {
            Some(BatchError::Key(key_length))
        } else if value_length > limit {
            Some(BatchError::Value { bytes: value_length, limit })
        } else if self.operations.len() - begun >= TRANSACTION_HEADS_BYTES_MAX {
            Some(BatchError::Operations)
        } else if payload > FRAME_PAYLOAD_BYTES_MAX {
            Some(BatchError::FrameFull)
        } else {
            None
        }
    }

    /// Transactions ended.
    pub fn len(&self) -> usize {
        self.transactions.len() / TRANSACTION_HEAD_BYTES
    }

    /// Whether no transaction was ended.
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// Whether a transaction was begun and neither ended nor cancelled.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Operations, those of an open transaction included.
    pub fn operations(&self) -> usize {
        self.operations.len() / OPERATION_HEAD_BYTES
    }

    /// Keys and values of all operations, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the frame's payload as far as it is built.
    pub fn payload_bytes(&self) -> usize {
        self.transactions.len() + self.operations.len() + self.bytes.len() + ROOT_BYTES
    }

    /// Whether nothing in it can change a row: such a batch needs no session.
    pub fn is_read_only(&self) -> bool {
        // The kind is the first byte of a head.
        let kinds = self.operations.iter().step_by(size_of::<ArchivedOperationHead>());
        kinds.copied().all(|kind| OperationKind::from_wire(kind).is_some_and(|kind| !kind.writes()))
    }

    /// Empties the batch and keeps its capacity.
    pub fn clear(&mut self) {
        self.transactions.clear();
        self.operations.clear();
        self.bytes.clear();
        self.open = None;
        self.freshness = Freshness::Strong;
    }

    /// Appends the transactions of `other` for which `wanted` says so, in order; `wanted` gets
    /// their indices. Takes its freshness over. For sending again what an overloaded node
    /// refused.
    pub fn extend_from(
        &mut self,
        other: &Batch,
        mut wanted: impl FnMut(usize) -> bool,
    ) -> Result<(), BatchError> {
        self.freshness = other.freshness;
        let mut operations = other.operations.chunks_exact(OPERATION_HEAD_BYTES);
        let mut rest = other.bytes.as_slice();
        let heads = other.transactions.chunks_exact(TRANSACTION_HEAD_BYTES);
        for (index, head) in heads.enumerate() {
            let count = usize::from(u16::from_le_bytes([head[4], head[5]]));
            let start =
                OpenTransaction { operations: self.operations.len(), bytes: self.bytes.len() };
            let wanted = wanted(index);
            for operation in operations.by_ref().take(count) {
                let key = u16::from_le_bytes([operation[6], operation[7]]);
                let value =
                    u32::from_le_bytes([operation[8], operation[9], operation[10], operation[11]]);
                let (now, later) = rest.split_at(usize::from(key) + value as usize);
                rest = later;
                if wanted {
                    self.operations.extend_from_slice(operation);
                    self.bytes.extend_from_slice(now);
                }
            }
            if !wanted {
                continue;
            }
            assert!(self.open.is_none(), "a transaction is open: end or cancel it first");
            self.open = Some(start);
            if self.payload_bytes() + TRANSACTION_HEAD_BYTES > FRAME_PAYLOAD_BYTES_MAX {
                self.cancel();
                return Err(BatchError::FrameFull);
            }
            self.end().inspect_err(|_| self.cancel())?;
        }
        Ok(())
    }

    /// Whether the batch can be sent as it is.
    pub fn check_complete(&self) -> Result<(), BatchError> {
        if self.open.is_some() {
            Err(BatchError::Open)
        } else if self.is_empty() {
            Err(BatchError::NoTransaction)
        } else if self.freshness != Freshness::Strong && !self.is_read_only() {
            Err(BatchError::WritesNotStrong)
        } else {
            Ok(())
        }
    }

    /// Appends the whole frame to `out`.
    ///
    /// # Panics
    /// If [`Batch::check_complete`] fails.
    pub fn write_frame(
        &self,
        out: &mut Vec<u8>,
        request: u64,
        first_number: u64,
        acknowledged_below: u64,
    ) {
        self.check_complete().expect("only complete batches are written");
        let start = frame::begin(out);
        out.reserve(self.payload_bytes());
        let (read_mode, read_bound) = self.freshness.to_wire();
        let columns = SubmitColumns {
            acknowledged_below,
            first_number,
            read_mode,
            read_bound,
            transactions: Column::new(&self.transactions),
            operations: Column::new(&self.operations),
            bytes: Column::new(&self.bytes),
        };
        rkyv::api::serialize_using::<_, rancor::Error>(&columns, out)
            .expect("writing to memory cannot fail");
        assert_eq!(out.len() - start - frame::HEADER_BYTES, self.payload_bytes(), "payload size");
        frame::finish(&mut out[start..], FrameKind::Submit, request, Lsn(0));
    }
}

/// [`crate::message::Submit`] with its columns borrowed; has the same archive.
#[derive(Archive, Serialize)]
#[rkyv(as = ArchivedSubmit, serialize_bounds(__S: Writer))]
struct SubmitColumns<'a> {
    acknowledged_below: u64,
    first_number: u64,
    read_mode: u8,
    read_bound: u64,
    #[rkyv(omit_bounds)]
    transactions: Column<'a, ArchivedTransactionHead>,
    #[rkyv(omit_bounds)]
    operations: Column<'a, ArchivedOperationHead>,
    #[rkyv(omit_bounds)]
    bytes: Column<'a, u8>,
}

/// A column whose elements are in their archived form already.
struct Column<'a, T> {
    bytes: &'a [u8],
    elements: PhantomData<T>,
}

impl<'a, T> Column<'a, T> {
    fn new(bytes: &'a [u8]) -> Self {
        assert!(bytes.len().is_multiple_of(size_of::<T>()), "a column holds whole elements");
        assert!(align_of::<T>() == 1, "a column is written without padding in front");
        Self { bytes, elements: PhantomData }
    }
}

impl<T: Portable> Archive for Column<'_, T> {
    type Archived = ArchivedVec<T>;
    type Resolver = VecResolver;

    fn resolve(&self, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(self.bytes.len() / size_of::<T>(), resolver, out);
    }
}

impl<T: Portable, S: Fallible + Writer + ?Sized> Serialize<S> for Column<'_, T> {
    fn serialize(&self, serializer: &mut S) -> Result<VecResolver, S::Error> {
        let position = serializer.pos();
        serializer.write(self.bytes)?;
        Ok(VecResolver::from_pos(position))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{FrameHeader, HEADER_BYTES};
    use crate::message::{self, OperationHead, Submit, TransactionHead};

    type Operation = (u8, u16, u16, Vec<u8>, Vec<u8>);

    fn operation() -> impl Strategy<Value = Operation> {
        let key = prop::collection::vec(any::<u8>(), 1..40);
        let value = prop::collection::vec(any::<u8>(), 0..100);
        (1u8..=10, any::<u16>(), any::<u16>(), key, value)
    }

    fn build(batch: &mut Batch, transactions: &[Vec<Operation>]) {
        for operations in transactions {
            batch.begin();
            for (kind, table, column, key, value) in operations {
                let kind = OperationKind::from_wire(*kind).expect("1 to 10 are kinds");
                batch.operation(kind, TableId(*table), *column, key, value).expect("it fits");
            }
            batch.end().expect("it has operations");
        }
    }

    fn expected(transactions: &[Vec<Operation>], first: u64, acknowledged: u64) -> Submit {
        let mut submit =
            Submit { first_number: first, acknowledged_below: acknowledged, ..Submit::default() };
        for (index, operations) in transactions.iter().enumerate() {
            submit.transactions.push(TransactionHead {
                number_offset: index as u32,
                operations: operations.len() as u16,
            });
            for (kind, table, column, key, value) in operations {
                submit.operations.push(OperationHead {
                    kind: *kind,
                    reserved: 0,
                    table: *table,
                    column: *column,
                    key_length: key.len() as u16,
                    value_length: value.len() as u32,
                });
                submit.bytes.extend_from_slice(key);
                submit.bytes.extend_from_slice(value);
            }
        }
        submit
    }

    fn read(frame: &[u8]) -> (FrameHeader, Submit) {
        let head = frame.first_chunk::<HEADER_BYTES>().expect("a frame has a header");
        let header = FrameHeader::parse(head, FRAME_PAYLOAD_BYTES_MAX).expect("a good header");
        header.check(frame).expect("a good checksum");
        (header, message::decode(&frame[HEADER_BYTES..]).expect("a valid archive"))
    }

    proptest! {
        #[test]
        fn a_frame_reads_as_what_was_built(
            transactions in prop::collection::vec(prop::collection::vec(operation(), 1..6), 1..8),
            first in any::<u64>(),
            acknowledged in any::<u64>(),
            offset in 0usize..20,
        ) {
            let mut batch = Batch::new();
            build(&mut batch, &transactions);
            let mut out = vec![0xEE; offset];
            batch.write_frame(&mut out, 9, first, acknowledged);
            let (header, submit) = read(&out[offset..]);
            prop_assert_eq!((header.kind, header.request), (FrameKind::Submit, 9));
            let expected = expected(&transactions, first, acknowledged);
            prop_assert_eq!(&submit, &expected);
            // Byte for byte what the owned message archives to.
            let mut archive = Vec::new();
            message::archive(&mut archive, &expected);
            prop_assert_eq!(&out[offset + HEADER_BYTES..], &archive[..]);
        }

        #[test]
        fn chosen_transactions_are_copied_whole(
            transactions in prop::collection::vec(prop::collection::vec(operation(), 1..6), 1..12),
            chosen in prop::collection::vec(any::<bool>(), 12),
        ) {
            let mut batch = Batch::new();
            build(&mut batch, &transactions);
            let mut copy = Batch::new();
            copy.extend_from(&batch, |index| chosen[index]).expect("it fits");
            let kept = transactions.into_iter().enumerate().filter(|(index, _)| chosen[*index]);
            let kept: Vec<_> = kept.map(|(_, transaction)| transaction).collect();
            prop_assert_eq!(copy.len(), kept.len());
            if !kept.is_empty() {
                let mut out = Vec::new();
                copy.write_frame(&mut out, 1, 5, 2);
                prop_assert_eq!(read(&out).1, expected(&kept, 5, 2));
            }
        }
    }

    const TABLE: TableId = TableId(1);

    #[test]
    fn limits_are_typed_errors_and_leave_the_batch_alone() {
        let mut batch = Batch::new();
        batch.begin();
        batch.insert(TABLE, b"a", b"row").expect("it fits");
        let before = (batch.operations(), batch.payload_bytes());
        let long_key = vec![0; KEY_BYTES_MAX + 1];
        let long_row = vec![0; ROW_BYTES_MAX + 1];
        assert_eq!(batch.get(TABLE, &[]), Err(BatchError::Key(0)));
        assert_eq!(batch.get(TABLE, &long_key), Err(BatchError::Key(KEY_BYTES_MAX + 1)));
        let (bytes, limit) = (ROW_BYTES_MAX + 1, ROW_BYTES_MAX);
        let too_long = Err(BatchError::Value { bytes, limit });
        assert_eq!(batch.insert(TABLE, b"a", &long_row), too_long);
        assert_eq!((batch.operations(), batch.payload_bytes()), before);
        // A patch may be longer by what it says about each column.
        batch.update(TABLE, b"a", &long_row).expect("a patch has its own limit");
        batch.get(TABLE, &long_key[1..]).expect("the longest key is a key");
        assert_eq!(batch.check_complete(), Err(BatchError::Open));
        batch.cancel();
        assert_eq!(batch.check_complete(), Err(BatchError::NoTransaction));
        assert_eq!(batch.payload_bytes(), ROOT_BYTES);
    }

    #[test]
    fn a_transaction_has_operations_but_not_too_many() {
        let mut batch = Batch::new();
        batch.begin();
        assert_eq!(batch.end(), Err(BatchError::Empty));
        for _ in 0..TRANSACTION_OPERATIONS_MAX {
            batch.get(TABLE, b"k").expect("it fits");
        }
        assert_eq!(batch.get(TABLE, b"k"), Err(BatchError::Operations));
        batch.end().expect("as many as allowed");
        assert_eq!((batch.len(), batch.operations()), (1, TRANSACTION_OPERATIONS_MAX));
    }

    #[test]
    fn only_reads_may_ask_for_less_than_everything() {
        let mut batch = Batch::new();
        batch.begin();
        batch.get(TABLE, b"k").expect("it fits");
        batch.end().expect("it has an operation");
        batch.set_freshness(Freshness::AtLsn(Lsn(9)));
        let mut out = Vec::new();
        batch.write_frame(&mut out, 1, 1, 1);
        let submit = read(&out).1;
        assert_eq!((submit.read_mode, submit.read_bound), (1, 9));
        batch.begin();
        batch.delete(TABLE, b"k").expect("it fits");
        batch.end().expect("it has an operation");
        assert_eq!(batch.check_complete(), Err(BatchError::WritesNotStrong));
        batch.clear();
        assert_eq!(batch.freshness, Freshness::Strong);
    }

    #[test]
    fn a_full_frame_is_within_the_limit() {
        let mut batch = Batch::new();
        let row = [7; 1000];
        let error = loop {
            batch.begin();
            if let Err(error) = batch.insert(TABLE, b"key", &row) {
                break error;
            }
            batch.end().expect("it has an operation");
        };
        assert_eq!(error, BatchError::FrameFull);
        batch.cancel();
        let mut out = Vec::new();
        batch.write_frame(&mut out, 1, 1, 1);
        let (header, submit) = read(&out);
        assert_eq!(submit.transactions.len(), batch.len());
        let left = FRAME_PAYLOAD_BYTES_MAX - header.length as usize;
        assert!(left < 1000 + 3 + TRANSACTION_HEAD_BYTES + OPERATION_HEAD_BYTES, "{left} left");
    }

    #[test]
    fn a_frame_has_a_highest_number_of_transactions() {
        // One byte of key is 19 bytes of payload: the byte limit comes first at 55,186.
        let mut batch = Batch::new();
        let mut count = 0;
        loop {
            batch.begin();
            if batch.get(TABLE, b"k").and_then(|()| batch.end()).is_err() {
                break;
            }
            count += 1;
        }
        assert_eq!(count, (FRAME_PAYLOAD_BYTES_MAX - ROOT_BYTES) / 19);
        assert!(count <= FRAME_TRANSACTIONS_MAX);
    }

    #[test]
    fn closures_write_in_place_and_clear_keeps_capacity() {
        let mut batch = Batch::new();
        batch.begin();
        batch
            .insert_with(TABLE, |k| k.extend_from_slice(b"key"), |r| r.extend_from_slice(b"row"))
            .expect("it fits");
        batch.add_with(TABLE, 2, |k| k.extend_from_slice(b"key"), |a| a.push(1)).expect("it fits");
        batch.end().expect("it has operations");
        assert_eq!(batch.bytes(), b"keyrowkey\x01");
        let capacity = batch.bytes.capacity();
        batch.clear();
        assert!(batch.is_empty() && batch.bytes.capacity() == capacity);
    }

    #[test]
    #[should_panic(expected = "closures may only append")]
    fn a_closure_that_takes_bytes_away_is_a_bug() {
        let mut batch = Batch::new();
        batch.begin();
        batch.get(TABLE, b"key").expect("it fits");
        batch.insert_with(TABLE, |key| key.clear(), |_| {}).expect("it panics before");
    }
}
