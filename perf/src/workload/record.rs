//! Reads and writes of records by key, with the sizes, shares and popularity of real ones.

use spillway_net::client::{Batch, BatchError};
use spillway_net::ids::TableId;
use spillway_net::key::{KeyReader, KeyWriter};
use spillway_net::limits::{KEY_BYTES_MAX, ROW_BYTES_MAX};
use spillway_net::message::OperationKind;
use spillway_net::patch::PatchWriter;
use spillway_net::row::{RowView, RowWriter};
use spillway_net::value::{Value, ValueRef};

use crate::error::PerfError;
use crate::identity::{CONNECTION_LOADER, Draw, Origin, mix, unmix};
use crate::latest::LatestWrites;
use crate::ledger::{Ledger, Standing};
use crate::verification::{RowSource, Verification};
use crate::workload::{Answer, Placement, Table, Workload, WorkloadOptions, get_result};
use crate::zipf::Popularity;

/// Records are loaded up to so many bytes unless `--rows` says otherwise.
const LOAD_BYTES_DEFAULT: u64 = 128 << 20;
/// Every value begins with its origin.
const VALUE_BYTES_MIN: usize = 9;
/// Bytes of a key that name its record, as hexadecimal digits.
const KEY_NAME_BYTES: usize = 16;

/// Sizes, shares and popularity.
#[derive(Clone, Copy, Debug)]
pub struct RecordProfile {
    /// Bytes of a key.
    pub key_bytes: usize,
    /// Bytes of a field.
    pub value_bytes: usize,
    /// Fields of a record; a write of one of several is an update, of a single one an upsert.
    pub fields: u64,
    /// Writes among a thousand requests.
    pub writes_permille: u64,
    /// Exponent of Zipf's law.
    pub alpha: f64,
}

impl RecordProfile {
    /// YCSB's workload A.
    pub const YCSB_A: Self =
        Self { key_bytes: 24, value_bytes: 100, fields: 10, writes_permille: 500, alpha: 0.99 };
    /// Twitter's cluster 12.
    pub const CLUSTER_12: Self = Self::cluster(44, 1030, 800, 0.305);
    /// Twitter's cluster 15.
    pub const CLUSTER_15: Self = Self::cluster(18, 102, 1000, 0.024);
    /// Twitter's cluster 31.
    pub const CLUSTER_31: Self = Self::cluster(41, 15, 940, 0.0);
    /// Twitter's cluster 37.
    pub const CLUSTER_37: Self = Self::cluster(72, 20_134, 370, 0.425);

    const fn cluster(
        key_bytes: usize,
        value_bytes: usize,
        writes_permille: u64,
        alpha: f64,
    ) -> Self {
        Self { key_bytes, value_bytes, fields: 1, writes_permille, alpha }
    }
}

/// `records(id text, field0 bytea, ...)`.
#[derive(Debug)]
pub struct Record {
    profile: RecordProfile,
    tables: [Table; 1],
    placement: Placement,
    connection_shards: Vec<u16>,
    records: u64,
    popularity: Popularity,
    seed: u64,
    latest: LatestWrites,
    /// Reads whose answer held what nobody wrote.
    reads_damaged: u64,
    key: String,
    value: Vec<u8>,
}

/// What a transaction does.
#[derive(Clone, Copy, Debug)]
struct Request {
    record: u64,
    /// The field it writes; none if it reads.
    field: Option<u64>,
}

impl Record {
    /// From a profile and the command line's options.
    pub fn new(
        mut profile: RecordProfile,
        options: &WorkloadOptions,
        placement: Placement,
    ) -> Result<Self, PerfError> {
        profile.value_bytes = options.payload.unwrap_or(profile.value_bytes);
        let record_bytes = profile.key_bytes as u64 + profile.fields * profile.value_bytes as u64;
        if profile.value_bytes < VALUE_BYTES_MIN || record_bytes > ROW_BYTES_MAX as u64 - 64 {
            return Err(PerfError::Options(format!(
                "--payload {}: a value needs {VALUE_BYTES_MIN} bytes, a record of {} such fields \
                 must stay below {ROW_BYTES_MAX}",
                profile.value_bytes, profile.fields
            )));
        }
        assert!(profile.key_bytes >= KEY_NAME_BYTES && profile.key_bytes < KEY_BYTES_MAX);
        let records = options
            .rows
            .unwrap_or_else(|| (LOAD_BYTES_DEFAULT / record_bytes).clamp(1000, 1_000_000));
        if records == 0 {
            return Err(PerfError::Options("--rows 0: there must be a record".to_owned()));
        }
        let fields: String =
            (0..profile.fields).map(|field| format!("field{field} bytea, ")).collect();
        let table = Table::parse(&format!("records(id text, {fields}primary key (id))"));
        Ok(Self {
            profile,
            tables: [table],
            placement,
            connection_shards: Vec::new(),
            records,
            popularity: Popularity::new(records, profile.alpha, options.seed),
            seed: options.seed,
            latest: LatestWrites::default(),
            reads_damaged: 0,
            key: String::new(),
            value: Vec::new(),
        })
    }

    /// The text that names a record: 16 digits that look random, and filling.
    fn key_text(&self, record: u64, out: &mut String) {
        use std::fmt::Write as _;

        out.clear();
        write!(out, "{:016x}", mix(record ^ self.seed)).expect("writing to memory");
        out.extend(std::iter::repeat_n('k', self.profile.key_bytes - KEY_NAME_BYTES));
    }

    /// The record that has this key.
    fn record_of(&self, key: &[u8]) -> Option<u64> {
        let Some(Ok(Value::Text(text))) = KeyReader::new(&self.tables[0].layout, key).next() else {
            return None;
        };
        let name = u64::from_str_radix(text.get(..KEY_NAME_BYTES)?, 16).ok()?;
        let record = unmix(name) ^ self.seed;
        let mut expected = String::new();
        self.key_text(record, &mut expected);
        (record < self.records && expected == text).then_some(record)
    }

    fn key_write(&self, text: &str, out: &mut Vec<u8>) -> usize {
        let mut writer = KeyWriter::new(&self.tables[0].layout, out);
        writer.push_text(text).expect("the key's type");
        writer.finish().expect("the key's length was checked")
    }

    fn shard_of(&self, record: u64) -> u16 {
        if self.placement.shards == 1 {
            return 0;
        }
        let (mut text, mut key) = (String::new(), Vec::new());
        self.key_text(record, &mut text);
        let prefix = self.key_write(&text, &mut key);
        self.placement.shard_of(&key[..prefix])
    }

    /// What the transaction of this origin does: nothing but seed and origin decide.
    fn request(&self, origin: Origin) -> Request {
        let mut draw = Draw::new(self.seed, origin.pack(0));
        let shard = self.connection_shards[usize::from(origin.connection)];
        let writes = draw.below(1000) < self.profile.writes_permille;
        let field = writes.then(|| draw.below(self.profile.fields));
        loop {
            let record = self.popularity.choose(&mut draw);
            if self.shard_of(record) == shard {
                return Request { record, field };
            }
        }
    }

    fn cell(&self, record: u64, field: u64) -> u64 {
        record * self.profile.fields + field
    }

    /// What a write of this origin leaves in a cell.
    fn value(&self, origin: Origin, cell: u64, out: &mut Vec<u8>) {
        let packed = origin.pack(0);
        out.clear();
        out.extend_from_slice(&packed.to_le_bytes());
        Draw::new(self.seed ^ cell, packed).fill(out, self.profile.value_bytes - 8);
    }

    /// The origin of a cell's value; none if nobody ever wrote such a value to it.
    fn origin_of(&self, value: &[u8], cell: u64, scratch: &mut Vec<u8>) -> Option<Origin> {
        let (origin, attempt) = Origin::unpack(u64::from_le_bytes(*value.first_chunk()?));
        if attempt != 0 || origin.counter >= 1 << 39 {
            return None;
        }
        self.value(origin, cell, scratch);
        if scratch != value {
            return None;
        }
        if origin.connection == CONNECTION_LOADER {
            return (origin.counter == 0).then_some(origin);
        }
        if usize::from(origin.connection) >= self.connection_shards.len() {
            return None;
        }
        let Request { record, field } = self.request(origin);
        (field.map(|field| self.cell(record, field)) == Some(cell)).then_some(origin)
    }

    fn row_write(&self, record: u64, origin: Origin, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
        let mut row = RowWriter::new(&self.tables[0].layout, out);
        for field in 0..self.profile.fields {
            self.value(origin, self.cell(record, field), scratch);
            row.push(ValueRef::Bytea(scratch)).expect("the field's type");
        }
        row.finish().expect("all columns are given");
    }

    /// Whether the data of a read holds a row that was written.
    fn read_is_sound(&self, record: u64, data: &[u8], scratch: &mut Vec<u8>) -> bool {
        let Some(Some(row)) = get_result(data) else { return false };
        let Ok(row) = RowView::new(&self.tables[0].layout, row) else { return false };
        (0..self.profile.fields).all(|field| {
            let cell = self.cell(record, field);
            matches!(row.bytea(field as usize), Ok(Some(value))
                if self.origin_of(value, cell, scratch).is_some())
        })
    }

    /// Judges one cell of a row.
    fn verify_cell(
        &self,
        ledger: &Ledger,
        cell: u64,
        value: &[u8],
        scratch: &mut Vec<u8>,
        verification: &mut Verification,
    ) {
        let Some(origin) = self.origin_of(value, cell, scratch) else {
            verification.damage(|| format!("cell {cell} holds what nobody wrote"));
            return;
        };
        let Origin { connection, counter } = origin;
        let stayed = if connection == CONNECTION_LOADER {
            !self.latest.is_written(cell)
        } else {
            match ledger.standing(origin) {
                Standing::Acknowledged => self.latest.may_stay(cell, origin),
                Standing::Unanswered => {
                    verification.unanswered += 1;
                    true
                }
                Standing::NeverSent | Standing::Refused => {
                    verification.foreign += 1;
                    verification.note(|| {
                        format!("cell {cell}: {counter} of connection {connection} has no business")
                    });
                    return;
                }
            }
        };
        if !stayed {
            verification.lost += 1;
            verification.note(|| {
                format!("cell {cell} holds {counter} of {connection}, a later write is lost")
            });
        }
    }
}

impl Workload for Record {
    fn tables(&self) -> &[Table] {
        &self.tables
    }

    fn bind(&mut self, tables: &[TableId], connection_shards: &[u16]) {
        self.tables[0].id = tables[0];
        self.connection_shards = connection_shards.to_vec();
    }

    fn load_rows(&self) -> u64 {
        self.records
    }

    fn load_shard(&mut self, index: u64) -> u16 {
        self.shard_of(index)
    }

    fn load(&mut self, index: u64, batch: &mut Batch) -> Result<(), BatchError> {
        let mut key = std::mem::take(&mut self.key);
        let mut value = std::mem::take(&mut self.value);
        self.key_text(index, &mut key);
        let origin = Origin { connection: CONNECTION_LOADER, counter: 0 };
        batch.begin();
        let appended = batch.insert_with(
            self.tables[0].id,
            |out| {
                self.key_write(&key, out);
            },
            |out| self.row_write(index, origin, &mut value, out),
        );
        (self.key, self.value) = (key, value);
        appended?;
        batch.end()
    }

    fn fill(&mut self, origin: Origin, batch: &mut Batch) -> Result<(), BatchError> {
        let Request { record, field } = self.request(origin);
        let mut key = std::mem::take(&mut self.key);
        let mut value = std::mem::take(&mut self.value);
        self.key_text(record, &mut key);
        let layout = &self.tables[0].layout;
        let kind = match field {
            None => OperationKind::Get,
            Some(_) if self.profile.fields > 1 => OperationKind::Update,
            Some(_) => OperationKind::Upsert,
        };
        batch.begin();
        let appended = batch.operation_with(
            kind,
            self.tables[0].id,
            0,
            |out| {
                self.key_write(&key, out);
            },
            |out| match (kind, field) {
                (OperationKind::Update, Some(field)) => {
                    self.value(origin, self.cell(record, field), &mut value);
                    let mut patch = PatchWriter::new(layout, out);
                    patch.set(field as usize, ValueRef::Bytea(&value)).expect("the field's type");
                    patch.finish().expect("one field is given");
                }
                (OperationKind::Upsert, _) => self.row_write(record, origin, &mut value, out),
                _ => {}
            },
        );
        (self.key, self.value) = (key, value);
        appended?;
        batch.end()
    }

    fn observes(&self) -> bool {
        true
    }

    fn answered(&mut self, answer: &Answer<'_>) {
        let Request { record, field } = self.request(answer.origin);
        if let Some(field) = field {
            let cell = self.cell(record, field);
            self.latest.acknowledged(cell, answer.origin, answer.sent, answer.answered);
            return;
        }
        // A repeated read may be answered without its data.
        if !answer.data.is_empty() {
            let mut scratch = std::mem::take(&mut self.value);
            let sound = self.read_is_sound(record, answer.data, &mut scratch);
            self.reads_damaged += u64::from(!sound);
            self.value = scratch;
        }
    }

    fn payload_bytes(&self) -> f64 {
        let written = (self.profile.key_bytes + self.profile.value_bytes) as f64;
        written * self.profile.writes_permille as f64 / 1000.0
    }

    fn verify(&self, ledger: &Ledger, rows: &mut dyn RowSource) -> Result<Verification, PerfError> {
        let mut verification =
            Verification { acknowledged: ledger.acknowledged(), ..Verification::default() };
        let mut scratch = Vec::new();
        rows.scan(0, &mut |key, row| {
            verification.rows += 1;
            let Some(record) = self.record_of(key) else {
                verification.foreign += 1;
                verification.note(|| format!("a key that nobody wrote: {key:02x?}"));
                return;
            };
            let Ok(row) = RowView::new(&self.tables[0].layout, row) else {
                verification.damage(|| format!("record {record} is no row"));
                return;
            };
            for field in 0..self.profile.fields {
                let cell = self.cell(record, field);
                let value = row.bytea(field as usize).ok().flatten().unwrap_or(&[]);
                self.verify_cell(ledger, cell, value, &mut scratch, &mut verification);
            }
        })?;
        if verification.rows != self.records {
            let found = verification.rows;
            verification.damage(|| format!("{found} of {} records are there", self.records));
        }
        if self.reads_damaged > 0 {
            verification.damaged += self.reads_damaged;
            verification.note(|| format!("{} reads gave what nobody wrote", self.reads_damaged));
        }
        verification.verified = verification.acknowledged.saturating_sub(verification.lost);
        Ok(verification)
    }
}
