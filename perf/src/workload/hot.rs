//! Every transaction adds one to the same row.

use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::{Batch, BatchError};
use spillway_net::ids::TableId;
use spillway_net::row::{RowView, RowWriter};
use spillway_net::schema::ColumnType;
use spillway_net::value::ValueRef;

use crate::error::PerfError;
use crate::identity::Origin;
use crate::ledger::Ledger;
use crate::verification::{RowSource, Verification};
use crate::workload::{Placement, Table, Workload};

const COUNTER_ID: i64 = 1;
/// Index of the column `value` in the definition.
const COLUMN_VALUE: u16 = 1;

/// `counters(id int8, value int8)` with one row.
#[derive(Debug)]
pub struct Hot {
    tables: [Table; 1],
    shard: u16,
}

impl Hot {
    /// There is nothing to choose.
    pub fn new(placement: Placement) -> Self {
        let table = Table::parse("counters(id int8, value int8, primary key (id))");
        let shard = table.shard_int8(&[COUNTER_ID], placement, &mut Vec::new());
        Self { tables: [table], shard }
    }
}

impl Workload for Hot {
    fn tables(&self) -> &[Table] {
        &self.tables
    }

    fn bind(&mut self, tables: &[TableId], _connection_shards: &[u16]) {
        self.tables[0].id = tables[0];
    }

    fn shard_only(&self) -> Option<u16> {
        Some(self.shard)
    }

    fn load_rows(&self) -> u64 {
        1
    }

    fn load_shard(&mut self, _index: u64) -> u16 {
        self.shard
    }

    fn load(&mut self, _index: u64, batch: &mut Batch) -> Result<(), BatchError> {
        let table = &self.tables[0];
        batch.begin();
        batch.insert_with(
            table.id,
            |out| {
                table.key_int8(&[COUNTER_ID], out);
            },
            |out| {
                let mut row = RowWriter::new(&table.layout, out);
                row.push(ValueRef::Int8(0)).expect("the counter's type");
                row.finish().expect("all columns are given");
            },
        )?;
        batch.end()
    }

    fn fill(&mut self, _origin: Origin, batch: &mut Batch) -> Result<(), BatchError> {
        let table = &self.tables[0];
        let argument = AddArgument::Int(AddBounded { delta: 1, min: None, max: None });
        batch.begin();
        batch.add_with(
            table.id,
            COLUMN_VALUE,
            |out| {
                table.key_int8(&[COUNTER_ID], out);
            },
            |out| argument.encode(ColumnType::Int8, out).expect("the counter's type"),
        )?;
        batch.end()
    }

    fn payload_bytes(&self) -> f64 {
        8.0
    }

    fn verify(&self, ledger: &Ledger, rows: &mut dyn RowSource) -> Result<Verification, PerfError> {
        let acknowledged = ledger.acknowledged();
        let possible = ledger.sent() - ledger.refused();
        let mut verification = Verification { acknowledged, ..Verification::default() };
        let mut counter = None;
        let table = &self.tables[0];
        rows.scan(0, &mut |key, row| {
            verification.rows += 1;
            let value = RowView::new(&table.layout, row).and_then(|row| row.int8(0));
            match (table.key_read_int8::<1>(key), value) {
                (Some([COUNTER_ID]), Ok(Some(value))) if counter.is_none() => counter = Some(value),
                _ => {
                    verification.foreign += 1;
                    verification.note(|| format!("a row that is not the counter: {key:02x?}"));
                }
            }
        })?;
        let value = counter.map_or(0, |value| value.max(0).cast_unsigned());
        verification.lost = acknowledged.saturating_sub(value);
        verification.verified = acknowledged - verification.lost;
        verification.unanswered = value.saturating_sub(acknowledged);
        if counter.is_none() {
            verification.damage(|| "the counter's row is missing".to_owned());
        }
        if value < acknowledged {
            verification.note(|| format!("counter {value}, acknowledged {acknowledged}"));
        }
        if value > possible {
            verification.imbalanced += 1;
            verification.note(|| format!("counter {value}, but only {possible} were sent"));
        }
        Ok(verification)
    }
}
