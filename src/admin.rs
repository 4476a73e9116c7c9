//! `spillway admin`: look at a running cluster, change its tables, move work between its nodes.

mod cluster;

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::{Args, Subcommand};
use spillway_net::client::{
    Client, ClientError, ClientOptions, Follow, Row, ScanRange, TableHandle,
};
use spillway_net::message::StatusValue;
use spillway_net::schema::{ColumnType, TableDefinition};
use spillway_net::schema_text::SchemaTextError;
use spillway_net::value::Value;
use spillway_net::value_text::{ValueTextError, value_parse, value_to_text};

/// Rows that are aligned together.
const PAGE_ROWS: usize = 1000;

/// Look at a running cluster, change its tables, move work between its nodes.
#[derive(Debug, Args)]
pub struct AdminArguments {
    /// Address of a node's shard 0, as its configuration has it. Several: separated by commas, or
    /// the option repeated. One that runs is enough, the leader is found by itself.
    #[arg(long = "node", global = true, value_name = "HOST:PORT", value_delimiter = ',')]
    #[arg(default_value = "127.0.0.1:7400")]
    pub nodes: Vec<String>,
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
    /// Print how a node sees the cluster, and its counters, one column per shard.
    ///
    /// Of the first of the given nodes that answers, whether it leads or not.
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
    /// List the nodes: role, state, how far each is behind.
    ///
    /// As the leader sees them; without a leader, as the first node that answers does.
    Zones {
        /// Print JSON: one object.
        #[arg(long)]
        json: bool,
    },
    /// Keep leadership and reads away from a node. It goes on voting.
    Drain {
        /// Number of the node.
        #[arg(value_name = "NODE", value_parser = clap::value_parser!(u16).range(1..))]
        zone: u16,
    },
    /// End a drain.
    Undrain {
        /// Number of the node.
        #[arg(value_name = "NODE", value_parser = clap::value_parser!(u16).range(1..))]
        zone: u16,
    },
    /// Hand leadership over to another node and wait until it leads.
    Transfer {
        /// Number of the node that is to lead; else the one that is closest.
        #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u16).range(1..))]
        to: Option<u16>,
    },
    /// Let a new node take the place of one that is lost.
    ///
    /// It joins without a vote, is sent the log, and votes in the place of the old one when it
    /// has caught up.
    ReplaceNode {
        /// Number of the node to be replaced.
        #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u16).range(1..))]
        old: u16,
        /// Number of the new node, which no node of the cluster has had.
        #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u16).range(1..))]
        new: u16,
        /// Where other nodes reach the new one.
        #[arg(long, value_name = "HOST:PORT")]
        peer_address: String,
        /// Where clients reach the new node's shard 0.
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
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
    /// A node was to be replaced by itself.
    #[error("node {0} cannot replace itself: give the new node a number of its own")]
    NodeSame(u16),
    /// There is no such node.
    #[error("there is no node {node}: the cluster has {known} (spillway admin zones)")]
    NodeUnknown {
        /// The node given.
        node: u16,
        /// Those that there are.
        known: String,
    },
    /// The number of the new node is taken.
    #[error("node {0} is in the cluster already: give the new node another number")]
    NodeTaken(u16),
    /// Something accepted was not carried out in time.
    #[error("{what} within {seconds} s; {seen}")]
    NotDone {
        /// What did not happen.
        what: String,
        /// How long it was waited for.
        seconds: u64,
        /// What was seen last, and what may help.
        seen: String,
    },
    /// Leadership went to another node than wanted.
    #[error(
        "leadership went to node {leader}, not to node {wanted}: see how far that one is behind \
         (spillway admin zones), and try again"
    )]
    OtherLeader {
        /// The node wanted.
        wanted: u16,
        /// The one that leads.
        leader: u16,
    },
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl AdminError {
    /// Whether the arguments are at fault.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Address { .. }
                | Self::Definition(_)
                | Self::Value { .. }
                | Self::KeyColumns { .. }
                | Self::NotConfirmed(_)
                | Self::NodeSame(_)
        )
    }
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
            let mut client = connect(arguments, Follow::Any)?;
            status(&mut client, *json, out)
        }
        AdminCommand::Tables => with_client(arguments, |client| tables(client, out)),
        AdminCommand::Get { table, key } => {
            with_client(arguments, |client| get(client, table, key, out))
        }
        AdminCommand::Scan { table, prefix, limit, tsv } => {
            let limit = if *limit == 0 { usize::MAX } else { *limit };
            with_client(arguments, |client| scan(client, table, prefix, limit, *tsv, out))
        }
        AdminCommand::Zones { json } => cluster::zones(arguments, *json, out),
        AdminCommand::Drain { zone } => cluster::drain(arguments, *zone, true, out),
        AdminCommand::Undrain { zone } => cluster::drain(arguments, *zone, false, out),
        AdminCommand::Transfer { to } => cluster::transfer(arguments, *to, out),
        AdminCommand::ReplaceNode { old, new, peer_address, address } => {
            let members = cluster::Replacement { old: *old, new: *new, peer_address, address };
            cluster::replace_node(arguments, &members, out)
        }
    }
}

/// Runs `command` on a connection to the leader.
fn with_client(
    arguments: &AdminArguments,
    command: impl FnOnce(&mut Client) -> Result<(), AdminError>,
) -> Result<(), AdminError> {
    let mut client = connect(arguments, Follow::Leader)?;
    let outcome = command(&mut client);
    // A session that could not be ended expires.
    drop(client.close());
    outcome
}

fn connect(arguments: &AdminArguments, follow: Follow) -> Result<Client, AdminError> {
    for address in &arguments.nodes {
        check_address(address)?;
    }
    let timeout_ms = arguments.timeout * 1000;
    Ok(Client::connect_with(ClientOptions {
        client_name: "spillway admin".to_owned(),
        follow,
        connect_timeout_ms: timeout_ms.min(3_000),
        request_timeout_ms: timeout_ms,
        give_up_ms: timeout_ms,
        ..ClientOptions::cluster(arguments.nodes.iter().cloned())
    })?)
}

/// Whether a text is a host and a port.
fn check_address(text: &str) -> Result<(), AdminError> {
    let wrong = |cause: &str| AdminError::Address { address: text.into(), cause: cause.into() };
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    if host.is_empty() {
        return Err(wrong("the host is missing"));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(()),
        _ => Err(wrong("the port is no number from 1 to 65535")),
    }
}

/// Prints how a node sees the cluster, and its counters.
pub fn status(client: &mut Client, json: bool, out: &mut dyn Write) -> Result<(), AdminError> {
    let shards = client.status()?;
    if json {
        out.write_all(status_json(&shards).as_bytes())?;
        return Ok(());
    }
    let report = client.cluster_status()?;
    let cluster = client.welcome().cluster;
    out.write_all(cluster::view(&report, cluster).as_bytes())?;
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
        let get = ["get", "accounts", "-5", "7", "--node", "h:1,h:2", "--node", "h:3"];
        let get = parse(&get).expect("it parses");
        assert_eq!(get.nodes, ["h:1", "h:2", "h:3"]);
        let AdminCommand::Get { table, key } = get.command else { panic!("a get") };
        assert_eq!((table.as_str(), key), ("accounts", vec!["-5".to_owned(), "7".to_owned()]));
        let scan = parse(&["--timeout", "3", "scan", "t", "--limit", "0", "--tsv"]);
        let AdminArguments { timeout, command, .. } = scan.expect("it parses");
        assert_eq!(timeout, 3);
        let AdminCommand::Scan { limit: 0, tsv: true, .. } = command else { panic!("a scan") };
        assert!(parse(&["get", "accounts"]).is_err());
        assert!(parse(&["status", "--timeout", "0"]).is_err());
        assert_eq!(parse(&["status"]).expect("it parses").nodes, ["127.0.0.1:7400"]);
        let drain = parse(&["drain", "2", "--node", "h:1"]).expect("it parses");
        assert!(matches!(drain.command, AdminCommand::Drain { zone: 2 }));
        assert!(parse(&["drain"]).is_err() && parse(&["drain", "0"]).is_err());
        let transfer = parse(&["transfer", "--to", "3"]).expect("it parses");
        assert!(matches!(transfer.command, AdminCommand::Transfer { to: Some(3) }));
        let replace = ["replace-node", "--old", "2", "--new", "4", "--address", "h:1"];
        assert!(parse(&replace).is_err(), "the peers' address is missing");
        let replace = [&replace[..], &["--peer-address", "h:2"]].concat();
        assert!(matches!(
            parse(&replace).expect("it parses").command,
            AdminCommand::ReplaceNode { old: 2, new: 4, .. }
        ));
    }

    #[test]
    fn a_drop_must_be_meant() {
        let command = AdminCommand::DropTable { table: "t".to_owned(), yes: false };
        let arguments = AdminArguments { nodes: vec!["x".to_owned()], timeout: 1, command };
        let error = run(&arguments, &mut Vec::new()).expect_err("not confirmed");
        assert!(matches!(error, AdminError::NotConfirmed(_)) && error.is_usage());
    }

    #[test]
    fn a_bad_address_is_told() {
        for node in ["nowhere", ":1", "h:0", "h:http"] {
            let nodes = vec!["127.0.0.1:1".to_owned(), node.to_owned()];
            let arguments = AdminArguments { nodes, timeout: 1, command: AdminCommand::Tables };
            let error = run(&arguments, &mut Vec::new()).expect_err("no address");
            assert!(error.to_string().contains("HOST:PORT") && error.is_usage(), "{error}");
        }
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
