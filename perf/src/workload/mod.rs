//! Workloads: which tables, which rows before the burst, which transactions in it, and how to
//! tell afterwards that nothing is lost and nothing is made up.

mod hot;
mod insert;
mod record;
mod transfer;

use spillway_net::client::{Batch, BatchError};
use spillway_net::ids::TableId;
use spillway_net::key::{KeyWriter, partition_of};
use spillway_net::layout::TableLayout;
use spillway_net::message::GET_RESULT_HEADER_BYTES;
use spillway_net::schema::TableDefinition;

use crate::error::PerfError;
use crate::identity::{IdOrder, Origin};
use crate::ledger::Ledger;
use crate::verification::{RowSource, Verification};

pub use hot::Hot;
pub use insert::Insert;
pub use record::{Record, RecordProfile};
pub use transfer::Transfer;

/// What a burst does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WorkloadKind {
    /// Two conditional adds to balances and one inserted row per transaction.
    Transfer,
    /// One inserted row per transaction.
    Insert,
    /// One add to the same row by every transaction.
    Hot,
    /// YCSB A: half reads, half updates of one of 10 fields of 100 bytes, Zipf 0.99.
    YcsbA,
    /// Twitter cluster 12: keys of 44, values of 1,030 bytes, 80 % sets, Zipf 0.305.
    Cluster12,
    /// Twitter cluster 15: keys of 18, values of 102 bytes, sets only, Zipf 0.024.
    Cluster15,
    /// Twitter cluster 31: keys of 41, values of 15 bytes, 94 % sets, even.
    Cluster31,
    /// Twitter cluster 37: keys of 72, values of 20,134 bytes, 37 % sets, Zipf 0.425.
    Cluster37,
}

impl WorkloadKind {
    /// As it is written on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transfer => "transfer",
            Self::Insert => "insert",
            Self::Hot => "hot",
            Self::YcsbA => "ycsb-a",
            Self::Cluster12 => "cluster12",
            Self::Cluster15 => "cluster15",
            Self::Cluster31 => "cluster31",
            Self::Cluster37 => "cluster37",
        }
    }
}

/// What a workload is built from.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    /// Which.
    pub kind: WorkloadKind,
    /// Accounts of `transfer`.
    pub accounts: u64,
    /// Whether a transfer may join accounts of two branches.
    pub any_account: bool,
    /// Order of ids of inserted rows.
    pub ids: IdOrder,
    /// Bytes of the value that the workload lets one choose.
    pub payload: Option<usize>,
    /// Records of `ycsb-a` and the clusters.
    pub rows: Option<u64>,
    /// Everything drawn follows from it.
    pub seed: u64,
}

/// Where keys live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Partitions of the cluster.
    pub partitions: u32,
    /// Shards of the node; partition p belongs to shard p % shards.
    pub shards: u16,
}

impl Placement {
    /// The shard of a key whose partition prefix is `prefix`.
    pub fn shard_of(&self, prefix: &[u8]) -> u16 {
        (u32::from(partition_of(prefix, self.partitions).0) % u32::from(self.shards)) as u16
    }
}

/// The answer to one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Which transaction.
    pub origin: Origin,
    /// Number of the generator's event in which it was sent first.
    pub sent: u64,
    /// Number of the event in which the answer was read: greater than that of every earlier send.
    pub answered: u64,
    /// Data of the outcome.
    pub data: &'a [u8],
}

/// One kind of load.
pub trait Workload {
    /// The tables it needs, in the order in which `bind` gets their ids.
    fn tables(&self) -> &[Table];

    /// Tells it the ids of its tables and the shard of every connection.
    fn bind(&mut self, tables: &[TableId], connection_shards: &[u16]);

    /// The only shard it works on, if there is but one.
    fn shard_only(&self) -> Option<u16> {
        None
    }

    /// Rows that must be there before the burst, each inserted by a transaction of its own.
    fn load_rows(&self) -> u64;

    /// The shard of a row to be loaded.
    fn load_shard(&mut self, index: u64) -> u16;

    /// Appends the transaction that inserts a row to be loaded.
    fn load(&mut self, index: u64, batch: &mut Batch) -> Result<(), BatchError>;

    /// Appends a transaction. The same origin always gives the same bytes.
    fn fill(&mut self, origin: Origin, batch: &mut Batch) -> Result<(), BatchError>;

    /// Whether [`Workload::answered`] is to be called: for workloads whose rows do not keep every
    /// transaction.
    fn observes(&self) -> bool {
        false
    }

    /// A transaction was answered as committed.
    fn answered(&mut self, _answer: &Answer<'_>) {}

    /// Bytes of keys and values that a transaction asks the node to write, on average.
    fn payload_bytes(&self) -> f64;

    /// Reads all tables and compares them with the ledger.
    fn verify(&self, ledger: &Ledger, rows: &mut dyn RowSource) -> Result<Verification, PerfError>;
}

/// A table of a workload.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its definition.
    pub definition: TableDefinition,
    /// Its definition, prepared for encoding.
    pub layout: TableLayout,
    /// Its id; none until it is known.
    pub id: TableId,
}

impl Table {
    fn parse(text: &str) -> Self {
        let definition = TableDefinition::parse(text).expect("the workload's own definition");
        let layout = TableLayout::new(&definition).expect("the workload's own definition");
        Self { definition, layout, id: TableId(0) }
    }

    /// Appends a key of int8 columns; returns the length of its partition prefix.
    fn key_int8(&self, values: &[i64], out: &mut Vec<u8>) -> usize {
        let mut writer = KeyWriter::new(&self.layout, out);
        for value in values {
            writer.push_int8(*value).expect("the workload's own key");
        }
        writer.finish().expect("the workload's own key")
    }

    /// The shard of a key of int8 columns.
    fn shard_int8(&self, values: &[i64], placement: Placement, scratch: &mut Vec<u8>) -> u16 {
        scratch.clear();
        let prefix = self.key_int8(values, scratch);
        placement.shard_of(&scratch[..prefix])
    }

    /// Reads a key of int8 columns.
    fn key_read_int8<const N: usize>(&self, key: &[u8]) -> Option<[i64; N]> {
        use spillway_net::key::key_values;
        use spillway_net::value::Value;

        let values = key_values(&self.layout, key).ok()?;
        let mut numbers = [0; N];
        if values.len() != N {
            return None;
        }
        for (number, value) in numbers.iter_mut().zip(values) {
            let Value::Int8(value) = value else { return None };
            *number = value;
        }
        Some(numbers)
    }
}

/// The row that a `Get` returned as the only data of an outcome; `Some(None)` if there is none.
fn get_result(data: &[u8]) -> Option<Option<&[u8]>> {
    let (header, row) = data.split_at_checked(GET_RESULT_HEADER_BYTES)?;
    let length = u32::from_le_bytes(header[9..13].try_into().ok()?);
    if length as usize != row.len() {
        return None;
    }
    match header[0] {
        0 => Some(None),
        1 => Some(Some(row)),
        _ => None,
    }
}

/// Builds a workload.
pub fn build(
    options: &WorkloadOptions,
    placement: Placement,
) -> Result<Box<dyn Workload>, PerfError> {
    if options.any_account && placement.shards > 1 {
        return Err(PerfError::Options(
            "--any-account joins accounts of two branches, which may lie on two shards: it needs \
             --shards 1"
                .to_owned(),
        ));
    }
    Ok(match options.kind {
        WorkloadKind::Transfer => Box::new(Transfer::new(options, placement)?),
        WorkloadKind::Insert => Box::new(Insert::new(options, placement)?),
        WorkloadKind::Hot => Box::new(Hot::new(placement)),
        WorkloadKind::YcsbA => Box::new(Record::new(RecordProfile::YCSB_A, options, placement)?),
        WorkloadKind::Cluster12 => {
            Box::new(Record::new(RecordProfile::CLUSTER_12, options, placement)?)
        }
        WorkloadKind::Cluster15 => {
            Box::new(Record::new(RecordProfile::CLUSTER_15, options, placement)?)
        }
        WorkloadKind::Cluster31 => {
            Box::new(Record::new(RecordProfile::CLUSTER_31, options, placement)?)
        }
        WorkloadKind::Cluster37 => {
            Box::new(Record::new(RecordProfile::CLUSTER_37, options, placement)?)
        }
    })
}
