//! A transaction built from values, for people and tools.

use crate::add::AddArgument;
use crate::client::batch::{Batch, BatchError};
use crate::client::error::ClientError;
use crate::client::table::{TableError, TableHandle};
use crate::message::OperationKind;
use crate::value::Value;

/// One transaction from typed values. All its rows must live on one shard; the first one decides
/// where it is sent. After an error it holds what it held before the call.
#[derive(Debug)]
pub struct Transaction {
    pub(crate) batch: Batch,
    pub(crate) shard: Option<u16>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Transaction {
    fn default() -> Self {
        Self::new()
    }
}

impl Transaction {
    /// Without operations.
    pub fn new() -> Self {
        let mut batch = Batch::new();
        batch.begin();
        Self { batch, shard: None, key: Vec::new(), value: Vec::new() }
    }

    /// Ends it for sending; returns its shard.
    pub(crate) fn complete(&mut self) -> Result<u16, ClientError> {
        if self.batch.is_open() {
            self.batch.end()?;
        }
        Ok(self.shard.ok_or(BatchError::Empty)?)
    }

    fn operation(
        &mut self,
        kind: OperationKind,
        table: &TableHandle,
        column: u16,
        shard: u16,
    ) -> Result<&mut Self, ClientError> {
        self.batch.operation(kind, table.id(), column, &self.key, &self.value)?;
        self.shard.get_or_insert(shard);
        Ok(self)
    }

    /// An operation whose value `write` appends; it returns the column.
    fn by_key(
        &mut self,
        kind: OperationKind,
        table: &TableHandle,
        key: &[Value],
        write: impl FnOnce(&mut Vec<u8>) -> Result<u16, TableError>,
    ) -> Result<&mut Self, ClientError> {
        self.key.clear();
        self.value.clear();
        let shard = table.write_key(key, &mut self.key)?;
        let column = write(&mut self.value)?;
        self.operation(kind, table, column, shard)
    }

    fn by_row(
        &mut self,
        kind: OperationKind,
        table: &TableHandle,
        values: &[Value],
    ) -> Result<&mut Self, ClientError> {
        self.key.clear();
        self.value.clear();
        let shard = table.write_row(values, &mut self.key, &mut self.value)?;
        self.operation(kind, table, 0, shard)
    }

    /// Asks for a row and its version.
    pub fn get(&mut self, table: &TableHandle, key: &[Value]) -> Result<&mut Self, ClientError> {
        self.by_key(OperationKind::Get, table, key, |_| Ok(0))
    }

    /// Fails unless the row exists.
    pub fn check_exists(
        &mut self,
        table: &TableHandle,
        key: &[Value],
    ) -> Result<&mut Self, ClientError> {
        self.by_key(OperationKind::CheckExists, table, key, |_| Ok(0))
    }

    /// Fails if the row exists.
    pub fn check_absent(
        &mut self,
        table: &TableHandle,
        key: &[Value],
    ) -> Result<&mut Self, ClientError> {
        self.by_key(OperationKind::CheckAbsent, table, key, |_| Ok(0))
    }

    /// Fails unless these columns of the row have these values.
    pub fn check_equals(
        &mut self,
        table: &TableHandle,
        key: &[Value],
        columns: &[(&str, Value)],
    ) -> Result<&mut Self, ClientError> {
        self.by_key(OperationKind::CheckEquals, table, key, |out| {
            table.write_patch(columns, out).map(|()| 0)
        })
    }

    /// Fails unless the row has this version.
    pub fn check_version(
        &mut self,
        table: &TableHandle,
        key: &[Value],
        version: u64,
    ) -> Result<&mut Self, ClientError> {
        self.by_key(OperationKind::CheckVersion, table, key, |out| {
            out.extend_from_slice(&version.to_le_bytes());
            Ok(0)
        })
    }

    /// Inserts a row, one value per column of the definition; fails on a duplicate.
    pub fn insert(
        &mut self,
        table: &TableHandle,
        values: &[Value],
    ) -> Result<&mut Self, ClientError> {
        self.by_row(OperationKind::Insert, table, values)
    }

    /// Inserts a row or replaces the one that is there.
    pub fn upsert(
        &mut self,
        table: &TableHandle,
        values: &[Value],
    ) -> Result<&mut Self, ClientError> {
        self.by_row(OperationKind::Upsert, table, values)
    }

    /// Changes columns of an existing row.
    pub fn update(
        &mut self,
        table: &TableHandle,
        key: &[Value],
        columns: &[(&str, Value)],
    ) -> Result<&mut Self, ClientError> {
        self.by_key(OperationKind::Update, table, key, |out| {
            table.write_patch(columns, out).map(|()| 0)
        })
    }

    /// Adds to a numeric column of an existing row.
    pub fn add(
        &mut self,
        table: &TableHandle,
        key: &[Value],
        column: &str,
        argument: AddArgument,
    ) -> Result<&mut Self, ClientError> {
        self.by_key(OperationKind::Add, table, key, |out| table.write_add(column, &argument, out))
    }

    /// Deletes an existing row.
    pub fn delete(&mut self, table: &TableHandle, key: &[Value]) -> Result<&mut Self, ClientError> {
        self.by_key(OperationKind::Delete, table, key, |_| Ok(0))
    }
}
