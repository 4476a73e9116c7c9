//! What clients did and saw, as they saw it: transactions with their times and micro-operations.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU64;

/// Completion time of a transaction that nobody saw complete.
pub const NEVER: u64 = u64::MAX;

/// Values below stand for texts: this one for the first, the next for the second.
const TEXT_FIRST: i64 = i64::MIN;
/// The smallest number that a value may be.
pub const VALUE_MIN: i64 = i64::MIN + (1 << 32);

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It took effect.
    Ok,
    /// It had no effect.
    Fail,
    /// Nobody knows, and it may take effect at any time after its invocation.
    Info,
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Datum {
    /// Not known to who wrote the history.
    Unknown,
    /// Nothing: every register begins with it, and a write of it deletes.
    Nil,
    /// A value; [`History::text_value`] gives texts one.
    Is(i64),
}

/// A row version as the database reports it; it rises with every write of a key.
pub type Version = Option<NonZeroU64>;

/// One step of a transaction. Keys are indexes into the history's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Micro {
    /// Appends to a list.
    Append {
        /// List.
        key: u32,
        /// New last element, unique in the list.
        value: i64,
    },
    /// Reads a whole list, which stands among the history's elements.
    List {
        /// List.
        key: u32,
        /// Where its elements begin.
        start: u32,
        /// How many they are.
        length: u32,
    },
    /// Writes a register.
    Write {
        /// Register.
        key: u32,
        /// New value.
        value: Datum,
        /// Version that the write made, if it was reported.
        version: Version,
    },
    /// Reads a register. `Nil` is also the empty list, and `Unknown` a read without a result.
    Read {
        /// Register.
        key: u32,
        /// Value.
        value: Datum,
        /// Version of the value, if it was reported.
        version: Version,
    },
}

impl Micro {
    /// Its key.
    pub fn key(self) -> u32 {
        match self {
            Self::Append { key, .. }
            | Self::List { key, .. }
            | Self::Write { key, .. }
            | Self::Read { key, .. } => key,
        }
    }

    /// Whether it writes.
    pub fn writes(self) -> bool {
        matches!(self, Self::Append { .. } | Self::Write { .. })
    }
}

/// A transaction. Its number is its place in the history.
#[derive(Clone, Copy, Debug)]
pub struct Transaction {
    /// Who ran it.
    pub process: u64,
    /// When it was sent.
    pub invoked: u64,
    /// When its end was heard, or [`NEVER`].
    pub completed: u64,
    /// Its end.
    pub kind: Kind,
    first: u32,
    count: u32,
}

/// A key's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyUse {
    Unknown,
    List,
    Register,
}

/// Why a transaction does not fit into the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit(pub String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct History {
    transactions: Vec<Transaction>,
    micros: Vec<Micro>,
    elements: Vec<i64>,
    keys: Vec<Name>,
    uses: Vec<KeyUse>,
    key_of: HashMap<Name, u32>,
    texts: Vec<String>,
    text_of: HashMap<String, i64>,
}

impl History {
    /// Without transactions.
    pub fn new() -> Self {
        Self::default()
    }

    /// The index of a key, new or not.
    pub fn key(&mut self, name: Name) -> u32 {
        if let Some(key) = self.key_of.get(&name) {
            return *key;
        }
        let key = u32::try_from(self.keys.len()).expect("keys fit 32 bits");
        self.keys.push(name.clone());
        self.uses.push(KeyUse::Unknown);
        self.key_of.insert(name, key);
        key
    }

    /// A value that stands for a text.
    pub fn text_value(&mut self, text: &str) -> i64 {
        if let Some(value) = self.text_of.get(text) {
            return *value;
        }
        let value = TEXT_FIRST + self.texts.len() as i64;
        assert!(value < VALUE_MIN, "texts are fewer than 2^32");
        self.texts.push(text.to_owned());
        self.text_of.insert(text.to_owned(), value);
        value
    }

    /// The text that a value stands for, if it does.
    pub fn text_of(&self, value: i64) -> Option<&str> {
        let place = usize::try_from(value.wrapping_sub(TEXT_FIRST)).ok()?;
        self.texts.get(place).map(String::as_str)
    }

    /// Keeps the elements of a list that was read.
    pub fn list(&mut self, key: u32, elements: &[i64]) -> Micro {
        let start = u32::try_from(self.elements.len()).expect("elements read fit 32 bits");
        let length = u32::try_from(elements.len()).expect("elements read fit 32 bits");
        self.elements.extend_from_slice(elements);
        Micro::List { key, start, length }
    }

    /// Adds a transaction. Nothing is added if a key is used as a list and as a register.
    pub fn push(
        &mut self,
        process: u64,
        times: (u64, u64),
        kind: Kind,
        micros: &[Micro],
    ) -> Result<(), Unfit> {
        let (invoked, completed) = times;
        if invoked > completed {
            return Err(Unfit("a transaction completed before it was invoked".to_owned()));
        }
        for micro in micros {
            if let Micro::Read { value: Datum::Unknown, version: Some(_), .. }
            | Micro::Write { value: Datum::Unknown, version: Some(_), .. } = micro
            {
                return Err(Unfit("a version of a value that is not known".to_owned()));
            }
            let of = match micro {
                Micro::Append { .. } | Micro::List { .. } => KeyUse::List,
                Micro::Write { .. } => KeyUse::Register,
                Micro::Read { value: Datum::Is(_), .. } => KeyUse::Register,
                Micro::Read { version: Some(_), .. } => KeyUse::Register,
                Micro::Read { .. } => continue,
            };
            let used = &mut self.uses[micro.key() as usize];
            if *used != KeyUse::Unknown && *used != of {
                let name = &self.keys[micro.key() as usize];
                return Err(Unfit(format!("key {name} is used as a list and as a register")));
            }
            *used = of;
        }
        let completed = if kind == Kind::Info { NEVER } else { completed };
        let first = u32::try_from(self.micros.len()).expect("micro-operations fit 32 bits");
        let count = u32::try_from(micros.len()).expect("micro-operations fit 32 bits");
        assert!(self.transactions.len() < u32::MAX as usize / 4, "transactions fit 30 bits");
        self.micros.extend_from_slice(micros);
        self.transactions.push(Transaction { process, invoked, completed, kind, first, count });
        Ok(())
    }

    /// All transactions.
    pub fn transactions(&self) -> &[Transaction] {
        &self.transactions
    }

    /// One of them.
    pub fn transaction(&self, number: u32) -> &Transaction {
        &self.transactions[number as usize]
    }

    /// The steps of one of them.
    pub fn micros(&self, number: u32) -> &[Micro] {
        let Transaction { first, count, .. } = self.transactions[number as usize];
        &self.micros[first as usize..][..count as usize]
    }

    /// A step by its place among all.
    pub(super) fn micro(&self, place: u32) -> Micro {
        self.micros[place as usize]
    }

    /// The elements of a list that was read.
    pub fn elements(&self, start: u32, length: u32) -> &[i64] {
        &self.elements[start as usize..][..length as usize]
    }

    /// Names of the keys.
    pub fn keys(&self) -> &[Name] {
        &self.keys
    }

    /// A key's name in words.
    pub fn key_name(&self, key: u32) -> String {
        self.keys[key as usize].to_string()
    }

    /// Whether a key is a list.
    pub fn is_list(&self, key: u32) -> bool {
        self.uses[key as usize] == KeyUse::List
    }

    /// Steps of all transactions.
    pub fn micros_count(&self) -> usize {
        self.micros.len()
    }

    /// All steps by key: where each key's begin, and the transaction and place of each. Those of
    /// one transaction stand together, in its order.
    pub(super) fn by_key(&self) -> (Vec<u32>, Vec<(u32, u32)>) {
        let mut begins = vec![0u32; self.keys.len() + 1];
        for micro in &self.micros {
            begins[micro.key() as usize + 1] += 1;
        }
        for at in 1..begins.len() {
            begins[at] += begins[at - 1];
        }
        let mut next = begins.clone();
        let mut steps = vec![(0, 0); self.micros.len()];
        for (number, transaction) in (0u32..).zip(&self.transactions) {
            for place in transaction.first..transaction.first + transaction.count {
                let next = &mut next[self.micros[place as usize].key() as usize];
                steps[*next as usize] = (number, place);
                *next += 1;
            }
        }
        (begins, steps)
    }

    /// A value in words.
    pub fn show(&self, value: Datum) -> String {
        match value {
            Datum::Unknown => "?".to_owned(),
            Datum::Nil => "nil".to_owned(),
            Datum::Is(value) => match self.text_of(value) {
                Some(text) => format!("{text:?}"),
                None => value.to_string(),
            },
        }
    }
}
