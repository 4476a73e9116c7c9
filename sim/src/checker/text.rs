//! Histories as text: one JSON object a line, with the fields of Jepsen and Elle.
//!
//! ```text
//! {"index":0,"type":"invoke","process":0,"time":5,"f":"txn","value":[["append",1,7],["r",1,null]]}
//! {"index":1,"type":"ok","process":0,"time":9,"f":"txn","value":[["append",1,7],["r",1,[7]]]}
//! ```
//!
//! A register is written by `["w",k,v]` and read by `["r",k,v]`; `null` is the register without a
//! value, a missing value one that is not known, and a fourth element the version that the database
//! reported. The order of the lines is the order of time. What never completes is unknown.

use std::collections::HashMap;
use std::fmt;
use std::fmt::Write as _;
use std::num::NonZeroU64;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::history::{Datum, History, Kind, Micro, NEVER, Name, VALUE_MIN};

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// Counted from 1.
    pub line: usize,
    /// In words.
    pub what: String,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EventType {
    Invoke,
    Ok,
    Fail,
    Info,
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    event_type: EventType,
    process: Process,
    #[serde(default)]
    index: Option<u64>,
    #[serde(default)]
    time: Option<u64>,
    #[serde(default)]
    value: Option<Vec<Step>>,
}

/// Whoever has a name instead of a number is no client.
#[derive(Debug, PartialEq, Eq)]
enum Process {
    Client(u64),
    Other,
}

impl<'de> Deserialize<'de> for Process {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(deserializer)? {
            Scalar::Number(number) => {
                let number = u64::try_from(number);
                number.map(Self::Client).map_err(|_| D::Error::custom("a process below 0"))
            }
            Scalar::Text(_) => Ok(Self::Other),
            _ => Err(D::Error::custom("a process is a number or a name")),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Scalar {
    Nothing,
    Number(i64),
    Text(String),
    List(Vec<Scalar>),
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a number of 64 bits, a text or a list of them")
    }

    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Nothing)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Scalar, E> {
        i64::try_from(number).map(Scalar::Number).map_err(|_| E::custom("a number above 2^63"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = seq.next_element::<Scalar>()? {
            if matches!(element, Scalar::List(_)) {
                return Err(A::Error::custom("a list in a list"));
            }
            list.push(element);
        }
        Ok(Scalar::List(list))
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// Function, key, value if there is one, version if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    function: Function,
    key: Scalar,
    value: Option<Scalar>,
    version: Option<NonZeroU64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Function {
    #[serde(rename = "append")]
    Append,
    #[serde(rename = "w")]
    Write,
    #[serde(rename = "r")]
    Read,
}

struct StepVisitor;

impl<'de> Visitor<'de> for StepVisitor {
    type Value = Step;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[\"append\", key, value], [\"r\", key, value] or [\"w\", key, value]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Step, A::Error> {
        let missing = |what: &str| A::Error::custom(format!("a step without a {what}"));
        let function = seq.next_element()?.ok_or_else(|| missing("function"))?;
        let key = seq.next_element::<Scalar>()?.ok_or_else(|| missing("key"))?;
        if !matches!(key, Scalar::Number(_) | Scalar::Text(_)) {
            return Err(A::Error::custom("a key is a number or a text"));
        }
        let value = seq.next_element::<Scalar>()?;
        let version = seq.next_element::<Option<NonZeroU64>>()?.flatten();
        if seq.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::custom("a step of more than four elements"));
        }
        Ok(Step { function, key, value, version })
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(StepVisitor)
    }
}

/// A transaction without an end so far.
struct Open {
    invoked: u64,
    steps: Vec<Step>,
}

#[derive(Default)]
struct Reader {
    history: History,
    open: HashMap<u64, (Open, usize)>,
    index: Option<u64>,
    time: Option<u64>,
    micros: Vec<Micro>,
    elements: Vec<i64>,
}

/// Reads a history.
pub fn read(bytes: &[u8]) -> Result<History, TextError> {
    let mut reader = Reader::default();
    for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if !text.iter().all(u8::is_ascii_whitespace) {
            reader.line(line, text).map_err(|what| TextError { line, what })?;
        }
    }
    let mut open: Vec<_> = std::mem::take(&mut reader.open).into_iter().collect();
    open.sort_unstable_by_key(|(_, (_, line))| *line);
    for (process, (open, line)) in open {
        let added = reader.add(process, &open, NEVER, Kind::Info, &open.steps);
        added.map_err(|what| TextError { line, what })?;
    }
    Ok(reader.history)
}

impl Reader {
    fn line(&mut self, line: usize, text: &[u8]) -> Result<(), String> {
        let event: Event = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if event.index.is_some() && event.index <= self.index {
            return Err("the index does not rise".to_owned());
        }
        if event.time.is_some() && event.time < self.time {
            return Err("time goes back".to_owned());
        }
        self.index = event.index.or(self.index);
        self.time = event.time.or(self.time);
        let Process::Client(process) = event.process else { return Ok(()) };
        let kind = match event.event_type {
            EventType::Invoke => {
                let steps = event.value.ok_or("an invocation without a value")?;
                let open = Open { invoked: line as u64, steps };
                return match self.open.insert(process, (open, line)) {
                    None => Ok(()),
                    Some((_, before)) => Err(format!(
                        "process {process} invokes, and has not completed that of line {before}"
                    )),
                };
            }
            EventType::Ok => Kind::Ok,
            EventType::Fail => Kind::Fail,
            EventType::Info => Kind::Info,
        };
        let (open, _) = self
            .open
            .remove(&process)
            .ok_or_else(|| format!("process {process} completes, and has not invoked"))?;
        let steps = match event.value {
            Some(steps) if kind == Kind::Ok => steps,
            None if kind == Kind::Ok => return Err("ok without a value".to_owned()),
            _ => return self.add(process, &open, line as u64, kind, &open.steps),
        };
        let same = |(asked, got): (&Step, &Step)| {
            let writes = asked.function != Function::Read;
            let value = !writes || asked.value == got.value;
            (asked.function, &asked.key) == (got.function, &got.key) && value
        };
        if steps.len() != open.steps.len() || !open.steps.iter().zip(&steps).all(same) {
            return Err(format!("not what process {process} invoked in line {}", open.invoked));
        }
        self.add(process, &open, line as u64, kind, &steps)
    }

    fn add(
        &mut self,
        process: u64,
        open: &Open,
        completed: u64,
        kind: Kind,
        steps: &[Step],
    ) -> Result<(), String> {
        let mut micros = std::mem::take(&mut self.micros);
        micros.clear();
        for step in steps {
            micros.push(self.micro(step, kind)?);
        }
        let added = self.history.push(process, (open.invoked, completed), kind, &micros);
        self.micros = micros;
        added.map_err(|unfit| unfit.to_string())
    }

    fn micro(&mut self, step: &Step, kind: Kind) -> Result<Micro, String> {
        let key = self.history.key(match &step.key {
            Scalar::Number(number) => Name::Number(*number),
            Scalar::Text(text) => Name::Text(text.clone()),
            _ => return Err("a key is a number or a text".to_owned()),
        });
        let version = step.version;
        Ok(match (step.function, &step.value) {
            (Function::Append, Some(value)) => Micro::Append { key, value: self.value(value)? },
            (Function::Append, None) => return Err("an append without a value".to_owned()),
            (Function::Read, _) if kind != Kind::Ok => {
                Micro::Read { key, value: Datum::Unknown, version: None }
            }
            (Function::Read, Some(Scalar::List(list))) => {
                let mut elements = std::mem::take(&mut self.elements);
                elements.clear();
                for value in list {
                    elements.push(self.value(value)?);
                }
                let micro = self.history.list(key, &elements);
                self.elements = elements;
                micro
            }
            (Function::Read, value) => Micro::Read { key, value: self.datum(value)?, version },
            (Function::Write, value) => Micro::Write { key, value: self.datum(value)?, version },
        })
    }

    fn datum(&mut self, value: &Option<Scalar>) -> Result<Datum, String> {
        match value {
            None => Ok(Datum::Unknown),
            Some(Scalar::Nothing) => Ok(Datum::Nil),
            Some(value) => self.value(value).map(Datum::Is),
        }
    }

    fn value(&mut self, value: &Scalar) -> Result<i64, String> {
        match value {
            Scalar::Number(number) if *number < VALUE_MIN => Err("a value too small".to_owned()),
            Scalar::Number(number) => Ok(*number),
            Scalar::Text(text) => Ok(self.history.text_value(text)),
            Scalar::Nothing | Scalar::List(_) => Err("a value is a number or a text".to_owned()),
        }
    }
}

/// Writes a history. What happened at one time is written as if it had overlapped.
///
/// # Panics
/// If a process began a transaction before the end of its last one.
pub fn write(history: &History) -> String {
    // Time, whether it is a completion, transaction.
    let mut events = Vec::new();
    for (number, transaction) in (0u32..).zip(history.transactions()) {
        events.push((transaction.invoked, false, number));
        if transaction.completed != NEVER {
            events.push((transaction.completed, true, number));
        }
    }
    events.sort_unstable();
    let mut open = std::collections::HashSet::new();
    let mut out = String::new();
    for (index, (time, completes, number)) in events.into_iter().enumerate() {
        let transaction = history.transaction(number);
        let is_next = if completes {
            open.remove(&transaction.process)
        } else {
            open.insert(transaction.process)
        };
        assert!(is_next, "process {} overlaps itself", transaction.process);
        let event = match (completes, transaction.kind) {
            (false, _) => "invoke",
            (true, Kind::Ok) => "ok",
            (true, Kind::Fail) => "fail",
            (true, Kind::Info) => "info",
        };
        write!(
            out,
            "{{\"index\":{index},\"type\":\"{event}\",\"process\":{},\"time\":{time},\"f\":\"txn\",\
             \"value\":[",
            transaction.process
        )
        .expect("a string takes all");
        let has_results = completes && transaction.kind == Kind::Ok;
        for (at, micro) in history.micros(number).iter().enumerate() {
            out.push_str(if at > 0 { "," } else { "" });
            write_micro(&mut out, history, *micro, has_results);
        }
        out.push_str("]}\n");
    }
    out
}

fn write_micro(out: &mut String, history: &History, micro: Micro, has_results: bool) {
    let key = match &history.keys()[micro.key() as usize] {
        Name::Number(number) => number.to_string(),
        Name::Text(text) => quoted(text),
    };
    let value = |value: i64| match history.text_of(value) {
        Some(text) => quoted(text),
        None => value.to_string(),
    };
    let datum = |of: Datum, version: Option<NonZeroU64>| {
        let value = match of {
            // A version needs something in front of it, and a reader takes nothing else for it.
            Datum::Unknown if version.is_some() => panic!("a version of an unknown value"),
            Datum::Unknown => String::new(),
            Datum::Nil => ",null".to_owned(),
            Datum::Is(of) => format!(",{}", value(of)),
        };
        match version {
            Some(version) => format!("{value},{version}"),
            None => value,
        }
    };
    let text = match micro {
        Micro::Append { value: of, .. } => format!("[\"append\",{key},{}]", value(of)),
        Micro::List { .. } | Micro::Read { .. } if !has_results => format!("[\"r\",{key},null]"),
        Micro::List { start, length, .. } => {
            let elements = history.elements(start, length);
            let elements: Vec<_> = elements.iter().map(|of| value(*of)).collect();
            format!("[\"r\",{key},[{}]]", elements.join(","))
        }
        Micro::Write { value: of, version, .. } => {
            format!("[\"w\",{key}{}]", datum(of, version.filter(|_| has_results)))
        }
        Micro::Read { value: of, version, .. } => format!("[\"r\",{key}{}]", datum(of, version)),
    };
    out.push_str(&text);
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
