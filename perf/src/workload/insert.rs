//! One inserted row per transaction.

use spillway_net::client::{Batch, BatchError};
use spillway_net::ids::TableId;
use spillway_net::limits::ROW_BYTES_MAX;
use spillway_net::row::{RowView, RowWriter};
use spillway_net::value::ValueRef;

use crate::error::PerfError;
use crate::identity::{Draw, IdCode, Origin};
use crate::ledger::{Ledger, Presence};
use crate::verification::{RowSource, Verification};
use crate::workload::{Placement, Table, Workload, WorkloadOptions};

const PAYLOAD_BYTES_DEFAULT: usize = 100;

/// `inserts(id int8, payload bytea)`.
#[derive(Debug)]
pub struct Insert {
    tables: [Table; 1],
    placement: Placement,
    connection_shards: Vec<u16>,
    ids: IdCode,
    payload_bytes: usize,
    seed: u64,
    scratch: Vec<u8>,
}

impl Insert {
    /// From the command line's options.
    pub fn new(options: &WorkloadOptions, placement: Placement) -> Result<Self, PerfError> {
        let payload_bytes = options.payload.unwrap_or(PAYLOAD_BYTES_DEFAULT);
        if payload_bytes > ROW_BYTES_MAX {
            return Err(PerfError::Options(format!(
                "--payload {payload_bytes}: a row has at most {ROW_BYTES_MAX} bytes"
            )));
        }
        Ok(Self {
            tables: [Table::parse("inserts(id int8, payload bytea, primary key (id))")],
            placement,
            connection_shards: Vec::new(),
            ids: IdCode::new(options.ids, options.seed),
            payload_bytes,
            seed: options.seed,
            scratch: Vec::new(),
        })
    }

    /// The id of a transaction's row: the first one that lies on the connection's shard.
    fn id_of(&self, origin: Origin, scratch: &mut Vec<u8>) -> i64 {
        let shard = self.connection_shards[usize::from(origin.connection)];
        for attempt in 0..=u8::MAX {
            let id = self.ids.encode(origin, attempt);
            if self.placement.shards == 1
                || self.tables[0].shard_int8(&[id], self.placement, scratch) == shard
            {
                return id;
            }
        }
        unreachable!("256 ids and none on shard {shard} of {}", self.placement.shards)
    }

    fn payload(&self, id: i64, out: &mut Vec<u8>) {
        out.clear();
        Draw::new(self.seed, id.cast_unsigned()).fill(out, self.payload_bytes);
    }
}

impl Workload for Insert {
    fn tables(&self) -> &[Table] {
        &self.tables
    }

    fn bind(&mut self, tables: &[TableId], connection_shards: &[u16]) {
        self.tables[0].id = tables[0];
        self.connection_shards = connection_shards.to_vec();
    }

    fn load_rows(&self) -> u64 {
        0
    }

    fn load_shard(&mut self, _index: u64) -> u16 {
        unreachable!("nothing is loaded")
    }

    fn load(&mut self, _index: u64, _batch: &mut Batch) -> Result<(), BatchError> {
        unreachable!("nothing is loaded")
    }

    fn fill(&mut self, origin: Origin, batch: &mut Batch) -> Result<(), BatchError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let id = self.id_of(origin, &mut scratch);
        self.payload(id, &mut scratch);
        let table = &self.tables[0];
        batch.begin();
        batch.insert_with(
            table.id,
            |out| {
                table.key_int8(&[id], out);
            },
            |out| {
                let mut row = RowWriter::new(&table.layout, out);
                row.push(ValueRef::Bytea(&scratch)).expect("the payload's length was checked");
                row.finish().expect("all columns are given");
            },
        )?;
        self.scratch = scratch;
        batch.end()
    }

    fn payload_bytes(&self) -> f64 {
        self.payload_bytes as f64
    }

    fn verify(&self, ledger: &Ledger, rows: &mut dyn RowSource) -> Result<Verification, PerfError> {
        let mut verification = Verification::default();
        let mut presence = Presence::new(ledger);
        let (mut scratch, mut payload) = (Vec::new(), Vec::new());
        let table = &self.tables[0];
        rows.scan(0, &mut |key, row| {
            verification.rows += 1;
            let Some([id]) = table.key_read_int8::<1>(key) else {
                verification.damage(|| format!("a key that is none: {key:02x?}"));
                return;
            };
            let (origin, _) = self.ids.decode(id);
            if !verification.see(&mut presence, origin) {
                return;
            }
            if self.id_of(origin, &mut scratch) != id {
                verification.damage(|| format!("row {id} has an id that was never drawn"));
                return;
            }
            self.payload(id, &mut payload);
            let view = RowView::new(&table.layout, row);
            if view.and_then(|view| view.bytea(0)) != Ok(Some(&payload)) {
                verification.damage(|| format!("row {id} does not hold what was sent"));
            }
        })?;
        verification.finish(ledger, &presence);
        Ok(verification)
    }
}
