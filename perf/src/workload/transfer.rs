//! Transfers between accounts: two conditional adds and one inserted row per transaction.

use spillway_net::add::{AddArgument, AddBounded};
use spillway_net::client::{Batch, BatchError};
use spillway_net::ids::TableId;
use spillway_net::limits::ROW_BYTES_MAX;
use spillway_net::row::{RowView, RowWriter};
use spillway_net::schema::ColumnType;
use spillway_net::value::ValueRef;

use crate::error::PerfError;
use crate::identity::{Draw, IdCode, Origin};
use crate::ledger::{Ledger, Presence};
use crate::verification::{RowSource, Verification};
use crate::workload::{Placement, Table, Workload, WorkloadOptions};

/// Accounts of a branch.
const BRANCH_ACCOUNTS: u64 = 1000;
/// Balance of every account before the burst.
const BALANCE_INITIAL: i64 = 1_000_000;
/// Highest amount of one transfer.
const AMOUNT_MAX: u64 = 100;
/// Bytes of a transfer's row unless `--payload` chooses its memo.
const ROW_BYTES_DEFAULT: usize = 80;
/// Index of the column `balance` in the definition.
const COLUMN_BALANCE: u16 = 2;

const ACCOUNTS: usize = 0;
const TRANSFERS: usize = 1;

/// `accounts(branch, id, balance)` and `transfers(branch, id, debit, credit, amount, memo)`.
#[derive(Debug)]
pub struct Transfer {
    tables: [Table; 2],
    connection_shards: Vec<u16>,
    accounts: u64,
    branch_accounts: u64,
    any_account: bool,
    /// Branches of each shard.
    branches: Vec<Vec<u64>>,
    /// Shard of each branch.
    shards: Vec<u16>,
    ids: IdCode,
    memo_bytes: usize,
    seed: u64,
    memo: Vec<u8>,
}

/// What a transfer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Terms {
    id: i64,
    branch: u64,
    debit: u64,
    credit: u64,
    amount: i64,
}

impl Transfer {
    /// From the command line's options.
    pub fn new(options: &WorkloadOptions, placement: Placement) -> Result<Self, PerfError> {
        let tables = [
            Table::parse(
                "accounts(branch int8, id int8, balance int8, primary key (branch, id), \
                 partition key (branch))",
            ),
            Table::parse(
                "transfers(branch int8, id int8, debit int8, credit int8, amount int8, \
                 memo bytea, primary key (branch, id), partition key (branch))",
            ),
        ];
        let row_bytes = tables[TRANSFERS].layout.row_bytes_min();
        let memo_bytes = options.payload.unwrap_or(ROW_BYTES_DEFAULT - row_bytes);
        if memo_bytes > ROW_BYTES_MAX - row_bytes {
            return Err(PerfError::Options(format!(
                "--payload {memo_bytes}: a row has at most {ROW_BYTES_MAX} bytes"
            )));
        }
        if options.accounts < 2 {
            return Err(PerfError::Options("--accounts: a transfer needs two".to_owned()));
        }
        let branch_accounts = options.accounts.min(BRANCH_ACCOUNTS);
        let branch_count = options.accounts / branch_accounts;
        let mut branches = vec![Vec::new(); usize::from(placement.shards)];
        let mut scratch = Vec::new();
        let shards: Vec<u16> = (0..branch_count)
            .map(|branch| {
                let key = [branch.cast_signed(), 0];
                let shard = tables[ACCOUNTS].shard_int8(&key, placement, &mut scratch);
                branches[usize::from(shard)].push(branch);
                shard
            })
            .collect();
        if let Some(shard) = branches.iter().position(Vec::is_empty) {
            return Err(PerfError::Options(format!(
                "no branch of {branch_count} falls on shard {shard}: choose more --accounts"
            )));
        }
        Ok(Self {
            tables,
            connection_shards: Vec::new(),
            accounts: branch_count * branch_accounts,
            branch_accounts,
            any_account: options.any_account,
            branches,
            shards,
            ids: IdCode::new(options.ids, options.seed),
            memo_bytes,
            seed: options.seed,
            memo: Vec::new(),
        })
    }

    /// What the transaction of this origin does: nothing but seed and origin decide.
    fn terms(&self, origin: Origin) -> Terms {
        let mut draw = Draw::new(self.seed, origin.pack(0));
        let amount = 1 + draw.below(AMOUNT_MAX).cast_signed();
        let id = self.ids.encode(origin, 0);
        if self.any_account {
            let debit = draw.below(self.accounts);
            let credit = (debit + 1 + draw.below(self.accounts - 1)) % self.accounts;
            return Terms { id, branch: debit / self.branch_accounts, debit, credit, amount };
        }
        let shard = self.connection_shards[usize::from(origin.connection)];
        let branches = &self.branches[usize::from(shard)];
        let branch = branches[draw.below(branches.len() as u64) as usize];
        let debit = draw.below(self.branch_accounts);
        let credit = (debit + 1 + draw.below(self.branch_accounts - 1)) % self.branch_accounts;
        let first = branch * self.branch_accounts;
        Terms { id, branch, debit: first + debit, credit: first + credit, amount }
    }

    fn memo(&self, id: i64, out: &mut Vec<u8>) {
        out.clear();
        Draw::new(self.seed, id.cast_unsigned()).fill(out, self.memo_bytes);
    }

    fn account_add(
        &self,
        account: u64,
        argument: AddArgument,
        batch: &mut Batch,
    ) -> Result<(), BatchError> {
        let table = &self.tables[ACCOUNTS];
        let branch = account / self.branch_accounts;
        batch.add_with(
            table.id,
            COLUMN_BALANCE,
            |out| {
                table.key_int8(&[branch.cast_signed(), account.cast_signed()], out);
            },
            |out| argument.encode(ColumnType::Int8, out).expect("the balance's type"),
        )
    }

    /// Appends the row of a transfer.
    fn row_write(&self, terms: &Terms, memo: &[u8], out: &mut Vec<u8>) {
        let mut row = RowWriter::new(&self.tables[TRANSFERS].layout, out);
        for value in [
            ValueRef::Int8(terms.debit.cast_signed()),
            ValueRef::Int8(terms.credit.cast_signed()),
            ValueRef::Int8(terms.amount),
            ValueRef::Bytea(memo),
        ] {
            row.push(value).expect("the columns' types");
        }
        row.finish().expect("all columns are given");
    }

    /// Judges the rows of `transfers` and sums up what they did to every account.
    fn verify_transfers(
        &self,
        ledger: &Ledger,
        rows: &mut dyn RowSource,
        verification: &mut Verification,
    ) -> Result<Vec<i64>, PerfError> {
        let mut changes = vec![0i64; self.accounts as usize];
        let mut presence = Presence::new(ledger);
        let (mut memo, mut expected) = (Vec::new(), Vec::new());
        let table = &self.tables[TRANSFERS];
        rows.scan(TRANSFERS, &mut |key, row| {
            verification.rows += 1;
            let Some([branch, id]) = table.key_read_int8::<2>(key) else {
                verification.damage(|| format!("a transfer's key that is none: {key:02x?}"));
                return;
            };
            let (origin, attempt) = self.ids.decode(id);
            if attempt != 0 {
                verification.foreign += 1;
                verification.note(|| format!("transfer {id} has an id that was never drawn"));
                return;
            }
            if !verification.see(&mut presence, origin) {
                return;
            }
            let terms = self.terms(origin);
            self.memo(id, &mut memo);
            expected.clear();
            self.row_write(&terms, &memo, &mut expected);
            if branch != terms.branch.cast_signed() || row != expected {
                verification.damage(|| format!("transfer {id} does not hold what was sent"));
            }
            changes[terms.debit as usize] -= terms.amount;
            changes[terms.credit as usize] += terms.amount;
        })?;
        verification.finish(ledger, &presence);
        Ok(changes)
    }

    /// Compares every balance with what the transfers that are there make of it.
    fn verify_accounts(
        &self,
        changes: &[i64],
        rows: &mut dyn RowSource,
        verification: &mut Verification,
    ) -> Result<(), PerfError> {
        let table = &self.tables[ACCOUNTS];
        let (mut seen, mut total) = (0u64, 0i128);
        rows.scan(ACCOUNTS, &mut |key, row| {
            verification.rows += 1;
            let account = table.key_read_int8::<2>(key).filter(|[branch, id]| {
                (0..self.accounts.cast_signed()).contains(id)
                    && id / self.branch_accounts.cast_signed() == *branch
            });
            let balance = RowView::new(&table.layout, row).and_then(|row| row.int8(0));
            let (Some([_, id]), Ok(Some(balance))) = (account, balance) else {
                verification.foreign += 1;
                verification.note(|| format!("an account that was never opened: {key:02x?}"));
                return;
            };
            seen += 1;
            total += i128::from(balance);
            let expected = BALANCE_INITIAL + changes[id as usize];
            if balance != expected {
                verification.imbalanced += 1;
                verification.note(|| {
                    format!("account {id} holds {balance}, its transfers make it {expected}")
                });
            }
        })?;
        if seen != self.accounts {
            verification.damage(|| format!("{seen} of {} accounts are there", self.accounts));
        }
        let expected = i128::from(BALANCE_INITIAL) * i128::from(self.accounts);
        if total != expected {
            verification.imbalanced += 1;
            verification.note(|| format!("all balances sum up to {total} instead of {expected}"));
        }
        Ok(())
    }
}

impl Workload for Transfer {
    fn tables(&self) -> &[Table] {
        &self.tables
    }

    fn bind(&mut self, tables: &[TableId], connection_shards: &[u16]) {
        for (table, id) in self.tables.iter_mut().zip(tables) {
            table.id = *id;
        }
        self.connection_shards = connection_shards.to_vec();
    }

    fn load_rows(&self) -> u64 {
        self.accounts
    }

    fn load_shard(&mut self, index: u64) -> u16 {
        self.shards[(index / self.branch_accounts) as usize]
    }

    fn load(&mut self, index: u64, batch: &mut Batch) -> Result<(), BatchError> {
        let table = &self.tables[ACCOUNTS];
        let branch = index / self.branch_accounts;
        batch.begin();
        batch.insert_with(
            table.id,
            |out| {
                table.key_int8(&[branch.cast_signed(), index.cast_signed()], out);
            },
            |out| {
                let mut row = RowWriter::new(&table.layout, out);
                row.push(ValueRef::Int8(BALANCE_INITIAL)).expect("the balance's type");
                row.finish().expect("all columns are given");
            },
        )?;
        batch.end()
    }

    fn fill(&mut self, origin: Origin, batch: &mut Batch) -> Result<(), BatchError> {
        let terms = self.terms(origin);
        let mut memo = std::mem::take(&mut self.memo);
        self.memo(terms.id, &mut memo);
        let add = |delta, min| AddArgument::Int(AddBounded { delta, min, max: None });
        let table = &self.tables[TRANSFERS];
        batch.begin();
        self.account_add(terms.debit, add(-terms.amount, Some(0)), batch)?;
        self.account_add(terms.credit, add(terms.amount, Some(0)), batch)?;
        batch.insert_with(
            table.id,
            |out| {
                table.key_int8(&[terms.branch.cast_signed(), terms.id], out);
            },
            |out| self.row_write(&terms, &memo, out),
        )?;
        self.memo = memo;
        batch.end()
    }

    fn payload_bytes(&self) -> f64 {
        (self.tables[TRANSFERS].layout.row_bytes_min() + self.memo_bytes) as f64
    }

    fn verify(&self, ledger: &Ledger, rows: &mut dyn RowSource) -> Result<Verification, PerfError> {
        let mut verification = Verification::default();
        let changes = self.verify_transfers(ledger, rows, &mut verification)?;
        self.verify_accounts(&changes, rows, &mut verification)?;
        Ok(verification)
    }
}
