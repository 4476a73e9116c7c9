//! A batch: the transactions of one frame, built column by column.

use crate::ids::TableId;
use crate::limits::{
    FRAME_PAYLOAD_BYTES_MAX, FRAME_TRANSACTIONS_MAX, KEY_BYTES_MAX, ROW_BYTES_MAX,
    TRANSACTION_OPERATIONS_MAX,
};
use crate::message::OperationKind;

/// Why an operation does not fit a batch. The batch is as it was before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The encoded key is too long or empty.
    #[error("a key of {0} bytes: keys have 1 to {KEY_BYTES_MAX}")]
    Key(usize),
    /// The encoded row, patch or argument is too long.
    #[error("a value of {0} bytes exceeds the limit of {ROW_BYTES_MAX}")]
    Value(usize),
    /// The transaction has too many operations.
    #[error("a transaction has at most {TRANSACTION_OPERATIONS_MAX} operations")]
    Operations,
    /// The transaction has no operation.
    #[error("a transaction needs at least one operation")]
    Empty,
    /// The frame has too many transactions.
    #[error("a frame has at most {FRAME_TRANSACTIONS_MAX} transactions")]
    Transactions,
    /// The frame is full: send it and start the transaction again in the next one.
    #[error("a frame has at most {FRAME_PAYLOAD_BYTES_MAX} bytes of payload: submit, then go on")]
    FrameFull,
    /// The frame was submitted with a transaction begun but not ended.
    #[error("the last transaction was begun but not ended")]
    Open,
}

/// The transactions of one frame under construction. Reuse it: after [`Batch::clear`], and after
/// a submit, it is empty and keeps its capacity.
///
/// A transaction is `begin`, one or more operations, `end`. Keys, rows, patches and arguments are
/// in their encoded form (see [`crate::schema`]).
#[derive(Debug, Default)]
pub struct Batch {
    /// Archived `TransactionHead`s.
    pub(crate) transactions: Vec<u8>,
    /// Archived `OperationHead`s.
    pub(crate) operations: Vec<u8>,
    /// Keys and values.
    pub(crate) bytes: Vec<u8>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a transaction.
    ///
    /// # Panics
    /// If the transaction before was neither ended nor cancelled.
    pub fn begin(&mut self) {
        unimplemented!()
    }

    /// Ends the transaction begun last.
    pub fn end(&mut self) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Forgets the open transaction, if there is one.
    pub fn cancel(&mut self) {
        unimplemented!()
    }

    /// Asks for the row and its version.
    pub fn get(&mut self, _table: TableId, _key: &[u8]) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Fails the transaction unless the row exists.
    pub fn check_exists(&mut self, _table: TableId, _key: &[u8]) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Fails the transaction if the row exists.
    pub fn check_absent(&mut self, _table: TableId, _key: &[u8]) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Fails the transaction unless the row's columns equal those of `patch`.
    pub fn check_equals(
        &mut self,
        _table: TableId,
        _key: &[u8],
        _patch: &[u8],
    ) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Fails the transaction unless the row has this version.
    pub fn check_version(
        &mut self,
        _table: TableId,
        _key: &[u8],
        _version: u64,
    ) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Inserts a row; fails on a duplicate.
    pub fn insert(&mut self, _table: TableId, _key: &[u8], _row: &[u8]) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Inserts a row or replaces the one that is there.
    pub fn upsert(&mut self, _table: TableId, _key: &[u8], _row: &[u8]) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Changes columns of an existing row.
    pub fn update(
        &mut self,
        _table: TableId,
        _key: &[u8],
        _patch: &[u8],
    ) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Adds to a numeric column (by its index in the definition) of an existing row;
    /// `argument` is an encoded `AddArgument`.
    pub fn add(
        &mut self,
        _table: TableId,
        _column: u16,
        _key: &[u8],
        _argument: &[u8],
    ) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Deletes an existing row.
    pub fn delete(&mut self, _table: TableId, _key: &[u8]) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Any operation, its key and value written straight into the frame's byte column. The
    /// closures append; what they get is not empty.
    pub fn operation_with(
        &mut self,
        _kind: OperationKind,
        _table: TableId,
        _column: u16,
        _key: impl FnOnce(&mut Vec<u8>),
        _value: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// [`Batch::insert`] by [`Batch::operation_with`].
    pub fn insert_with(
        &mut self,
        _table: TableId,
        _key: impl FnOnce(&mut Vec<u8>),
        _row: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// [`Batch::add`] by [`Batch::operation_with`].
    pub fn add_with(
        &mut self,
        _table: TableId,
        _column: u16,
        _key: impl FnOnce(&mut Vec<u8>),
        _argument: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), BatchError> {
        unimplemented!()
    }

    /// Transactions ended.
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Whether no transaction was ended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Operations of the ended transactions.
    pub fn operations(&self) -> usize {
        unimplemented!()
    }

    /// Bytes the frame's payload will have.
    pub fn payload_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Empties the batch and keeps its capacity.
    pub fn clear(&mut self) {
        unimplemented!()
    }
}
