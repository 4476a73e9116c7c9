//! `spillway admin`: look at a running node and change its tables.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};

use clap::{Args, Subcommand};
use spillway_net::client::{Client, ClientError, ClientOptions, Row, ScanRange, TableHandle};
use spillway_net::message::StatusValue;
use spillway_net::schema::{ColumnType, TableDefinition};
use spillway_net::schema_text::SchemaTextError;
use spillway_net::value::Value;
use spillway_net::value_text::{ValueTextError, value_parse, value_to_text};

/// Rows that are aligned together.
const PAGE_ROWS: usize = 1000;

/// Look at a running node and change its tables.
#[derive(Debug, Args)]
pub struct AdminArguments {
    /// Address of the node's shard 0, as its configuration has it.
    #[arg(long, global = true, value_name = "HOST:PORT", default_value = "127.0.0.1:7400")]
    pub address: String,
    /// Give up if an answer takes longer.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// What to do.
    #[command(subcommand)]
    pub command: AdminCommand,
}

/// One command of `spillway admin`.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Print the node's counters, one column per shard.
    Status {
        /// Print JSON: one object per shard, in an array.
        #[arg(long)]
        json: bool,
    },
    /// List the tables with their rows and definitions.
    Tables,
    /// Create a table. Creating the same definition again changes nothing.
    ///
    /// Types: bool, int2, int4, int8, float8, decimal(P,S), text, bytea, date, timestamptz, uuid.
    /// A column takes nulls if `null` follows its type. The partition key is a prefix of the
    /// primary key: rows that agree in it live on one shard and can change in one transaction.
    #[command(after_help = "Example:\n  spillway admin create-table \\\n    \
        'accounts(branch int8, id int8, balance int8,\n              \
        primary key (branch, id), partition key (branch))'")]
    CreateTable {
        /// The definition, in quotes.
        definition: String,
    },
    /// Drop a table and all its rows.
    DropTable {
        /// The table's name.
        table: String,
        /// Really drop it: there is no way back.
        #[arg(long)]
        yes: bool,
    },
    /// Print one row.
    Get {
        /// The table's name.
        table: String,
        /// The primary key, one value per column, in the key's order.
        #[arg(required = true, allow_negative_numbers = true)]
        key: Vec<String>,
    },
    /// Print rows in key order.
    ///
    /// Every page is an atomic read of one shard; the pages together are no snapshot.
    Scan {
        /// The table's name.
        table: String,
        /// Only rows whose key begins with these values.
        #[arg(allow_negative_numbers = true)]
        prefix: Vec<String>,
        /// Stop after so many rows; 0: print all.
        #[arg(long, value_name = "ROWS", default_value_t = 100)]
        limit: usize,
        /// Print tab-separated values without alignment and without a header, for other programs.
        #[arg(long)]
        tsv: bool,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The node, the way to it, or what was asked of it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The address given is none.
    #[error("`{address}` is no address to connect to: {cause}. Write HOST:PORT")]
    Address {
        /// The address given.
        address: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The definition given is none.
    #[error("{0}")]
    Definition(#[from] SchemaTextError),
    /// A key value given is none of its column.
    #[error("key column {column}: {error}")]
    Value {
        /// The column.
        column: String,
        /// What is wrong with the value.
        error: ValueTextError,
    },
    /// Another number of key values than the key has columns.
    #[error("the key of {table} is ({columns}): {given} values were given")]
    KeyColumns {
        /// The table.
        table: String,
        /// Names of the key's columns.
        columns: String,
        /// Values given.
        given: usize,
    },
    /// There is no such row.
    #[error("there is no such row in {0}")]
    NoRow(String),
    /// A drop that was not confirmed.
    #[error("this drops {0} and all its rows for ever; add --yes if you mean it")]
    NotConfirmed(String),
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Runs a command and prints its result to `out`.
pub fn run(arguments: &AdminArguments, out: &mut dyn Write) -> Result<(), AdminError> {
    match &arguments.command {
        AdminCommand::CreateTable { definition } => {
            let definition = TableDefinition::parse(definition)?;
            with_client(arguments, |client| create_table(client, &definition, out))
        }
        AdminCommand::DropTable { table, yes: false } => {
            Err(AdminError::NotConfirmed(table.clone()))
        }
        AdminCommand::DropTable { table, yes: true } => {
            with_client(arguments, |client| drop_table(client, table, out))
        }
        AdminCommand::Status { json } => {
            with_client(arguments, |client| status(client, *json, out))
        }
        AdminCommand::Tables => with_client(arguments, |client| tables(client, out)),
        AdminCommand::Get { table, key } => {
            with_client(arguments, |client| get(client, table, key, out))
        }
        AdminCommand::Scan { table, prefix, limit, tsv } => {
            let limit = if *limit == 0 { usize::MAX } else { *limit };
            with_client(arguments, |client| scan(client, table, prefix, limit, *tsv, out))
        }
    }
}

/// Runs `command` on a connection to the node.
fn with_client(
    arguments: &AdminArguments,
    command: impl FnOnce(&mut Client) -> Result<(), AdminError>,
) -> Result<(), AdminError> {
    let mut client = connect(arguments)?;
    let outcome = command(&mut client);
    // A session that could not be ended expires.
    drop(client.close());
    outcome
}

fn connect(arguments: &AdminArguments) -> Result<Client, AdminError> {
    let text = &arguments.address;
    let wrong = |cause: String| AdminError::Address { address: text.clone(), cause };
    let mut addresses = text.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    let address: Option<SocketAddr> = addresses.next();
    let address = address.ok_or_else(|| wrong("the host has no address".to_owned()))?;
    let timeout_ms = arguments.timeout * 1000;
    Ok(Client::connect_with(ClientOptions {
        client_name: "spillway admin".to_owned(),
        request_timeout_ms: timeout_ms,
        give_up_ms: timeout_ms,
        ..ClientOptions::new(address)
    })?)
}

/// Prints the node's counters.
pub fn status(client: &mut Client, json: bool, out: &mut dyn Write) -> Result<(), AdminError> {
    let shards = client.status()?;
    if json {
        out.write_all(status_json(&shards).as_bytes())?;
        return Ok(());
    }
    let welcome = client.welcome();
    let (node, cluster, epoch) = (welcome.node, welcome.cluster, welcome.epoch);
    writeln!(out, "node {node} of cluster {cluster:032x}, epoch {epoch}")?;
    let mut table = TextTable::default();
    if shards.len() > 1 {
        let names = (0..shards.len()).map(|shard| Cell::number(format!("shard {shard}")));
        table.row(std::iter::once(Cell::text(String::new())).chain(names).collect());
    }
    for name in status_names(&shards) {
        let value = |shard: &Vec<StatusValue>| {
            let found = shard.iter().find(|value| value.name == name);
            Cell::number(found.map_or(String::new(), |value| value.value.to_string()))
        };
        let cells = shards.iter().map(value);
        table.row(std::iter::once(Cell::text(printable(&name))).chain(cells).collect());
    }
    out.write_all(table.print().as_bytes())?;
    Ok(())
}

/// Every name that any shard reports, in the order of first appearance.
fn status_names(shards: &[Vec<StatusValue>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for value in shards.iter().flatten() {
        if !names.contains(&value.name) {
            names.push(value.name.clone());
        }
    }
    names
}

fn status_json(shards: &[Vec<StatusValue>]) -> String {
    let mut text = "[\n".to_owned();
    for (index, shard) in shards.iter().enumerate() {
        let value =
            |value: &StatusValue| format!("    {}: {}", json_string(&value.name), value.value);
        let values: Vec<_> = shard.iter().map(value).collect();
        let comma = if index + 1 < shards.len() { "," } else { "" };
        text.push_str(&format!("  {{\n{}\n  }}{comma}\n", values.join(",\n")));
    }
    text.push_str("]\n");
    text
}

fn json_string(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            c if c.is_control() => {
                write!(quoted, "\\u{:04x}", u32::from(c)).expect("a string takes everything");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Lists the tables.
pub fn tables(client: &mut Client, out: &mut dyn Write) -> Result<(), AdminError> {
    let tables = client.tables()?;
    if tables.is_empty() {
        writeln!(out, "no tables (spillway admin create-table makes one)")?;
        return Ok(());
    }
    let mut text = TextTable::default();
    let head = [Cell::number("id".to_owned()), Cell::number("rows".to_owned())];
    text.row(head.into_iter().chain([Cell::text("definition".to_owned())]).collect());
    for table in tables {
        text.row(vec![
            Cell::number(table.id.to_string()),
            Cell::number(table.rows.to_string()),
            Cell::text(printable(&table.definition.to_string())),
        ]);
    }
    out.write_all(text.print().as_bytes())?;
    Ok(())
}

/// Creates a table.
pub fn create_table(
    client: &mut Client,
    definition: &TableDefinition,
    out: &mut dyn Write,
) -> Result<(), AdminError> {
    let table = client.create_table(definition)?;
    writeln!(out, "table {} has id {}", definition.name, table.id())?;
    Ok(())
}

/// Drops a table.
pub fn drop_table(client: &mut Client, table: &str, out: &mut dyn Write) -> Result<(), AdminError> {
    client.drop_table(table)?;
    writeln!(out, "dropped table {table}")?;
    Ok(())
}

/// Prints one row, one line per column.
pub fn get(
    client: &mut Client,
    table: &str,
    key: &[String],
    out: &mut dyn Write,
) -> Result<(), AdminError> {
    let table = client.table(table)?;
    let values = key_values(&table, key, true)?;
    let name = || table.definition().name.clone();
    let row = client.get(&table, &values)?.ok_or_else(|| AdminError::NoRow(name()))?;
    let mut text = TextTable::default();
    for (column, value) in table.definition().columns.iter().zip(&row.values) {
        let value = value_to_text(column.column_type, value.view());
        text.row(vec![Cell::text(column.name.clone()), Cell::text(value)]);
    }
    text.row(vec![Cell::text("(version)".to_owned()), Cell::text(row.version.to_string())]);
    out.write_all(text.print().as_bytes())?;
    Ok(())
}

/// Prints the rows whose key begins with `prefix`, at most `limit`.
pub fn scan(
    client: &mut Client,
    table: &str,
    prefix: &[String],
    limit: usize,
    tsv: bool,
    out: &mut dyn Write,
) -> Result<(), AdminError> {
    let table = client.table(table)?;
    let range = match prefix {
        [] => ScanRange::all(),
        _ => ScanRange::prefix(&table, &key_values(&table, prefix, false)?)
            .map_err(ClientError::from)?,
    };
    let columns = &table.definition().columns;
    let print = |row: &Row| -> Vec<String> {
        let text = |(value, column): (&Value, _)| value_to_text(column, value.view());
        row.values.iter().zip(columns.iter().map(|c| c.column_type)).map(text).collect()
    };
    let mut rows = client.scan(&table, range);
    let mut printed = 0;
    let mut text = TextTable::default();
    text.row(columns.iter().map(|c| Cell::of(c.column_type, c.name.clone())).collect());
    while printed < limit
        && let Some(row) = rows.next().transpose()?
    {
        let cells = print(&row);
        printed += 1;
        if tsv {
            writeln!(out, "{}", cells.join("\t"))?;
            continue;
        }
        let cells = cells.into_iter().zip(columns);
        text.row(cells.map(|(cell, column)| Cell::of(column.column_type, cell)).collect());
        if text.rows.len() == PAGE_ROWS {
            out.write_all(std::mem::take(&mut text).print().as_bytes())?;
        }
    }
    if !tsv {
        out.write_all(text.print().as_bytes())?;
        let more = rows.next().transpose()?.is_some();
        let note = if more { ", more follow (see --limit)" } else { "" };
        writeln!(out, "{printed} row{}{note}", if printed == 1 { "" } else { "s" })?;
    }
    Ok(())
}

/// Reads key values in the key's order; a prefix of the key unless it must be `whole`.
fn key_values(
    table: &TableHandle,
    texts: &[String],
    whole: bool,
) -> Result<Vec<Value>, AdminError> {
    let columns = table.layout().key_columns();
    let name = |column: u16| table.definition().columns[usize::from(column)].name.clone();
    if texts.len() > columns.len() || (whole && texts.len() < columns.len()) {
        let names: Vec<_> = columns.iter().map(|column| name(column.column)).collect();
        let table = table.definition().name.clone();
        let given = texts.len();
        return Err(AdminError::KeyColumns { table, columns: names.join(", "), given });
    }
    let parse = |(text, column): (&String, &spillway_net::layout::KeyColumn)| {
        value_parse(column.column_type, text)
            .map_err(|error| AdminError::Value { column: name(column.column), error })
    };
    texts.iter().zip(columns).map(parse).collect()
}

/// Text from the node, without what could steer a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A cell of a printed table.
#[derive(Debug)]
struct Cell {
    text: String,
    is_number: bool,
}

impl Cell {
    fn text(text: String) -> Self {
        Self { text, is_number: false }
    }

    fn number(text: String) -> Self {
        Self { text, is_number: true }
    }

    fn of(column_type: ColumnType, text: String) -> Self {
        let is_number = matches!(
            column_type,
            ColumnType::Int2
                | ColumnType::Int4
                | ColumnType::Int8
                | ColumnType::Float8
                | ColumnType::Decimal { .. }
        );
        Self { text, is_number }
    }
}

/// Rows of cells, printed with aligned columns: numbers to the right, the rest to the left.
#[derive(Debug, Default)]
struct TextTable {
    rows: Vec<Vec<Cell>>,
}

impl TextTable {
    fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    fn print(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (width, cell) in widths.iter().copied().zip(row) {
                let text = &cell.text;
                let written = match cell.is_number {
                    true => write!(line, "{text:>width$}  "),
                    false => write!(line, "{text:<width$}  "),
                };
                written.expect("a string takes everything");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        arguments: AdminArguments,
    }

    #[test]
    fn arguments_parse() {
        let parse = |words: &[&str]| {
            let words = std::iter::once(&"admin").chain(words);
            Command::try_parse_from(words).map(|command| command.arguments)
        };
        let get = parse(&["get", "accounts", "-5", "7", "--address", "h:1"]).expect("it parses");
        assert_eq!(get.address, "h:1");
        let AdminCommand::Get { table, key } = get.command else { panic!("a get") };
        assert_eq!((table.as_str(), key), ("accounts", vec!["-5".to_owned(), "7".to_owned()]));
        let scan = parse(&["--timeout", "3", "scan", "t", "--limit", "0", "--tsv"]);
        let AdminArguments { timeout, command, .. } = scan.expect("it parses");
        assert_eq!(timeout, 3);
        let AdminCommand::Scan { limit: 0, tsv: true, .. } = command else { panic!("a scan") };
        assert!(parse(&["get", "accounts"]).is_err());
        assert!(parse(&["status", "--timeout", "0"]).is_err());
    }

    #[test]
    fn a_drop_must_be_meant() {
        let command = AdminCommand::DropTable { table: "t".to_owned(), yes: false };
        let arguments = AdminArguments { address: "x".to_owned(), timeout: 1, command };
        let error = run(&arguments, &mut Vec::new()).expect_err("not confirmed");
        assert!(matches!(error, AdminError::NotConfirmed(_)));
    }

    #[test]
    fn a_bad_address_is_told() {
        let arguments = AdminArguments {
            address: "nowhere".to_owned(),
            timeout: 1,
            command: AdminCommand::Tables,
        };
        let error = run(&arguments, &mut Vec::new()).expect_err("no port");
        assert!(error.to_string().contains("HOST:PORT"), "{error}");
    }

    #[test]
    fn tables_are_aligned() {
        let mut table = TextTable::default();
        table.row(vec![Cell::text("name".to_owned()), Cell::number("rows".to_owned())]);
        table.row(vec![Cell::text("a".to_owned()), Cell::number("12345".to_owned())]);
        assert_eq!(table.print(), "name   rows\na     12345\n");
    }

    #[test]
    fn json_is_quoted() {
        let value = |name: &str, value| StatusValue { name: name.to_owned(), value };
        let text = status_json(&[vec![value("a\"\\\n", 1), value("b", 2)], vec![value("a", 3)]]);
        let expected =
            "[\n  {\n    \"a\\\"\\\\\\u000a\": 1,\n    \"b\": 2\n  },\n  {\n    \"a\": 3\n  }\n]\n";
        assert_eq!(text, expected);
    }
}
