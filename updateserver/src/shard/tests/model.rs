//! What a shard should do, as plainly as it can be said, and random transactions for both.

use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::prelude::*;
use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::FoundRow;
use spillway_net::key::partition_of;
use spillway_net::layout::TableLayout;
use spillway_net::message::{OperationKind, OutcomeStatus};
use spillway_net::patch::patch_write;
use spillway_net::row::row_write;
use spillway_net::schema::ColumnType;
use spillway_net::value::Value;

use super::{Operation, ScannedRow, TABLE, key, layout};

pub const KEYS: i64 = 10;
/// The greatest decimal(12, 2), scaled.
const PRICE_MAX: i128 = 999_999_999_999;

#[derive(Clone, Debug, PartialEq)]
pub struct ModelRow {
    pub values: [Value; 4],
    pub version: u64,
}

/// A change of some columns.
#[derive(Clone, Debug)]
pub struct Columns(pub [Option<Value>; 4]);

#[derive(Clone, Debug)]
pub enum Step {
    Get,
    Exists,
    Absent,
    /// Against the present values if true, else against these.
    Equals(bool, Columns),
    /// The present version plus this.
    Version(u64),
    Insert([Value; 4]),
    Upsert([Value; 4]),
    Update(Columns),
    /// Column 0 or 1, addend and bounds.
    Add(usize, i128, Option<i128>, Option<i128>),
    Delete,
}

fn text() -> impl Strategy<Value = String> {
    let bytes = prop_oneof![
        6 => 0usize..30,
        3 => 60usize..400,
        3 => 1000usize..6000,
        1 => 20_000usize..60_000,
    ];
    (bytes, prop::char::range('a', 'z')).prop_map(|(n, c)| c.to_string().repeat(n))
}

fn balance() -> impl Strategy<Value = Value> {
    prop_oneof![8 => -1000i64..1000, 1 => Just(i64::MAX - 3)].prop_map(Value::Int8)
}

fn price() -> impl Strategy<Value = Value> {
    let price = prop_oneof![6 => 0i128..5000, 1 => Just(PRICE_MAX)].prop_map(Value::Decimal);
    prop_oneof![4 => price, 1 => Just(Value::Null)]
}

fn values() -> impl Strategy<Value = [Value; 4]> {
    let note = prop_oneof![text().prop_map(Value::Text), Just(Value::Null)];
    let tag = (0usize..9).prop_map(|n| Value::Text("x".repeat(n)));
    (balance(), price(), note, tag).prop_map(|(a, b, c, d)| [a, b, c, d])
}

fn columns() -> impl Strategy<Value = Columns> {
    // Mostly small columns, so that patches are worth it.
    (values(), prop_oneof![6 => 1usize..4, 2 => 8usize..12, 1 => 1usize..16]).prop_map(
        |(values, chosen)| {
            let mut at = 0;
            Columns(values.map(|value| {
                at += 1;
                (chosen & (1 << (at - 1)) != 0).then_some(value)
            }))
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let bound = || prop::option::weighted(0.3, -800i128..800);
    prop_oneof![
        3 => Just(Step::Get),
        1 => Just(Step::Exists),
        1 => Just(Step::Absent),
        1 => (prop::bool::weighted(0.8), columns()).prop_map(|(same, c)| Step::Equals(same, c)),
        1 => prop_oneof![5 => Just(0u64), 1 => Just(1u64)].prop_map(Step::Version),
        3 => values().prop_map(Step::Insert),
        3 => values().prop_map(Step::Upsert),
        5 => columns().prop_map(Step::Update),
        5 => (0usize..2, -50i128..50, bound(), bound()).prop_map(|(c, d, a, b)| {
            match (a, b) {
                (Some(a), Some(b)) => Step::Add(c, d, Some(a.min(b)), Some(a.max(b))),
                _ => Step::Add(c, d, a, b),
            }
        }),
        1 => Just(Step::Delete),
    ]
}

pub type Transaction = Vec<(i64, Step)>;

pub fn transaction() -> impl Strategy<Value = Transaction> {
    let count = prop_oneof![4 => 1usize..3, 2 => 3usize..7];
    count.prop_flat_map(|count| prop::collection::vec((0..KEYS, step()), count))
}

/// Rows by key and the next version of every partition.
#[derive(Clone)]
pub struct Model {
    pub rows: BTreeMap<i64, Rc<ModelRow>>,
    next: BTreeMap<u16, u64>,
    partitions: u32,
    layout: Rc<TableLayout>,
}

/// What a transaction should come to.
pub struct Expected {
    pub operations: Vec<Operation>,
    pub status: OutcomeStatus,
    pub operation: u16,
    pub gets: Vec<Option<FoundRow>>,
    pub writes: bool,
}

impl Model {
    pub fn new(partitions: u32) -> Self {
        let layout = Rc::new(layout());
        Self { rows: BTreeMap::new(), next: BTreeMap::new(), partitions, layout }
    }

    pub fn encode(&self, values: &[Value; 4]) -> Vec<u8> {
        let mut out = Vec::new();
        row_write(&self.layout, values, &mut out).expect("it fits");
        out
    }

    fn patch(&self, columns: &Columns) -> Vec<u8> {
        let set: Vec<_> = columns
            .0
            .iter()
            .enumerate()
            .filter_map(|(at, value)| value.as_ref().map(|value| (at, value.view())))
            .collect();
        let mut out = Vec::new();
        patch_write(&self.layout, &set, &mut out).expect("it fits");
        out
    }

    /// Executes a transaction and encodes it; a failed one leaves no trace.
    pub fn execute(&mut self, transaction: &Transaction) -> Expected {
        let before = (self.rows.clone(), self.next.clone());
        let mut expected = Expected {
            operations: Vec::new(),
            status: OutcomeStatus::Committed,
            operation: 0,
            gets: Vec::new(),
            writes: false,
        };
        for (at, (k, step)) in transaction.iter().enumerate() {
            let operation = self.encode_step(*k, step);
            expected.writes |= operation.kind.writes();
            expected.operations.push(operation);
            if expected.status != OutcomeStatus::Committed {
                continue;
            }
            if let Err(status) = self.apply(*k, step, &mut expected.gets) {
                (expected.status, expected.operation) = (status, at as u16);
            }
        }
        if expected.status != OutcomeStatus::Committed {
            (self.rows, self.next) = before;
            expected.gets.clear();
            expected.writes = false;
        }
        expected
    }

    fn encode_step(&self, k: i64, step: &Step) -> Operation {
        let mut column = 0;
        let (kind, value) = match step {
            Step::Get => (OperationKind::Get, Vec::new()),
            Step::Exists => (OperationKind::CheckExists, Vec::new()),
            Step::Absent => (OperationKind::CheckAbsent, Vec::new()),
            Step::Equals(same, columns) => {
                let columns = self.equals_columns(k, *same, columns);
                (OperationKind::CheckEquals, self.patch(&columns))
            }
            Step::Version(off) => {
                let version = self.rows.get(&k).map_or(1, |row| row.version) + off;
                (OperationKind::CheckVersion, version.to_le_bytes().to_vec())
            }
            Step::Insert(values) => (OperationKind::Insert, self.encode(values)),
            Step::Upsert(values) => (OperationKind::Upsert, self.encode(values)),
            Step::Update(columns) => (OperationKind::Update, self.patch(columns)),
            Step::Add(at, delta, min, max) => {
                column = *at as u16 + 1;
                let (delta, min, max) = (*delta, *min, *max);
                let mut value = Vec::new();
                if *at == 0 {
                    let small = |v: i128| i64::try_from(v).expect("small");
                    let (min, max) = (min.map(small), max.map(small));
                    let add = AddBounded { delta: small(delta), min, max };
                    AddArgument::Int(add).encode(ColumnType::Int8, &mut value).expect("it fits");
                } else {
                    let column_type = ColumnType::Decimal { precision: 12, scale: 2 };
                    let add = AddArgument::Decimal(AddBounded { delta, min, max });
                    add.encode(column_type, &mut value).expect("it fits");
                }
                (OperationKind::Add, value)
            }
            Step::Delete => (OperationKind::Delete, Vec::new()),
        };
        Operation { kind, table: TABLE, column, key: key(k), value }
    }

    fn equals_columns(&self, k: i64, same: bool, columns: &Columns) -> Columns {
        let mut columns = columns.clone();
        if let Some(row) = self.rows.get(&k).filter(|_| same) {
            for (at, column) in columns.0.iter_mut().enumerate() {
                if column.is_some() {
                    *column = Some(row.values[at].clone());
                }
            }
        }
        columns
    }

    fn apply(
        &mut self,
        k: i64,
        step: &Step,
        gets: &mut Vec<Option<FoundRow>>,
    ) -> Result<(), OutcomeStatus> {
        use OutcomeStatus as S;
        let row = self.rows.get(&k).cloned();
        let check = |holds: bool| if holds { Ok(()) } else { Err(S::CheckFailed) };
        match (step, row) {
            (Step::Get, row) => {
                gets.push(
                    row.map(|row| FoundRow { version: row.version, row: self.encode(&row.values) }),
                );
                Ok(())
            }
            (Step::Exists, row) => check(row.is_some()),
            (Step::Absent, row) => check(row.is_none()),
            (Step::Equals(same, columns), Some(row)) => {
                let columns = self.equals_columns(k, *same, columns);
                let mut pairs = columns.0.iter().zip(&row.values);
                check(pairs.all(|(set, held)| set.as_ref().is_none_or(|set| set == held)))
            }
            (Step::Version(off), Some(_)) => check(*off == 0),
            (Step::Equals(..) | Step::Version(_), None) => Err(S::CheckFailed),
            (Step::Insert(_), Some(_)) => Err(S::Duplicate),
            (Step::Insert(values) | Step::Upsert(values), _) => {
                self.write(k, Some(values.clone()));
                Ok(())
            }
            (Step::Update(_) | Step::Add(..) | Step::Delete, None) => Err(S::NotFound),
            (Step::Update(columns), Some(row)) => {
                let mut values = row.values.clone();
                for (value, set) in values.iter_mut().zip(&columns.0) {
                    if let Some(set) = set {
                        *value = set.clone();
                    }
                }
                self.write(k, Some(values));
                Ok(())
            }
            (Step::Add(column, delta, min, max), Some(row)) => {
                let mut values = row.values.clone();
                values[*column] = add(&values[*column], *delta, *min, *max)?;
                self.write(k, Some(values));
                Ok(())
            }
            (Step::Delete, Some(_)) => {
                self.write(k, None);
                Ok(())
            }
        }
    }

    fn write(&mut self, k: i64, values: Option<[Value; 4]>) {
        let partition = partition_of(&key(k), self.partitions).0;
        let next = self.next.entry(partition).or_insert(1);
        let version = *next;
        *next += 1;
        match values {
            Some(values) => self.rows.insert(k, Rc::new(ModelRow { values, version })),
            None => self.rows.remove(&k),
        };
    }

    /// All rows as a scan should find them.
    pub fn listing(&self) -> Vec<ScannedRow> {
        let one =
            |(k, row): (&i64, &Rc<ModelRow>)| (key(*k), self.encode(&row.values), row.version);
        self.rows.iter().map(one).collect()
    }
}

fn add(
    held: &Value,
    delta: i128,
    min: Option<i128>,
    max: Option<i128>,
) -> Result<Value, OutcomeStatus> {
    let (old, least, greatest) = match held {
        Value::Null => return Err(OutcomeStatus::NullOperand),
        Value::Int8(old) => (i128::from(*old), i128::from(i64::MIN), i128::from(i64::MAX)),
        Value::Decimal(old) => (*old, -PRICE_MAX, PRICE_MAX),
        other => panic!("no number: {other:?}"),
    };
    let sum = old + delta;
    if min.is_some_and(|min| sum < min) || max.is_some_and(|max| sum > max) {
        return Err(OutcomeStatus::BoundsViolated);
    }
    if sum < least || sum > greatest {
        return Err(OutcomeStatus::Overflow);
    }
    Ok(match held {
        Value::Int8(_) => Value::Int8(i64::try_from(sum).expect("checked")),
        _ => Value::Decimal(sum),
    })
}
