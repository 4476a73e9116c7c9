//! A connection beside the load's: tables, the node's own numbers, and scans.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use spillway_net::client::{FrameAnswer, FrameResult, Pipeline, PipelineOptions, Spread, Wait};
use spillway_net::frame::FrameKind;
use spillway_net::ids::TableId;
use spillway_net::message::{
    Payload, Scan, ScanPage, Status, StatusReport, TableCreate, TableCreated, access, decode,
};
use spillway_net::schema::TableDefinition;

use crate::error::PerfError;
use crate::verification::RowSource;
use crate::workload::Placement;

/// Rows wanted per page of a scan.
const PAGE_ROWS: u32 = 16_384;

/// The node's numbers by name, all shards together.
pub type StatusNumbers = BTreeMap<String, u64>;

/// The client library's options for nodes whose shards 0 listen at `addresses`, the one that
/// probably leads first.
pub(crate) fn pipeline_options(addresses: &[SocketAddr]) -> PipelineOptions {
    PipelineOptions::cluster(addresses.iter().map(SocketAddr::to_string))
}

/// One connection to every shard.
pub struct Control {
    pipeline: Pipeline,
    /// Reports of a status request under way, and how many are still to come.
    reports: Vec<StatusNumbers>,
    reports_missing: usize,
}

impl Control {
    /// Connects to the leader of the nodes whose shards 0 listen at `addresses`.
    pub fn connect(addresses: &[SocketAddr]) -> Result<Self, PerfError> {
        let connect = |connections| {
            let options = PipelineOptions {
                client_name: "perf control".to_owned(),
                connections,
                spread: Spread::RoundRobin,
                connect_ms: 10_000,
                ..pipeline_options(addresses)
            };
            Pipeline::connect(options).map_err(PerfError::client("connecting to the node"))
        };
        let mut pipeline = connect(1)?;
        let shards = pipeline.welcome().shard_ports.len();
        if shards > 1 {
            pipeline = connect(shards)?;
        }
        Ok(Self { pipeline, reports: Vec::new(), reports_missing: 0 })
    }

    /// Where keys live on this node.
    pub fn placement(&self) -> Placement {
        let welcome = self.pipeline.welcome();
        Placement { partitions: welcome.partitions, shards: welcome.shard_ports.len() as u16 }
    }

    fn request<T: Payload>(
        &mut self,
        connection: usize,
        kind: FrameKind,
        message: &T,
    ) -> Result<(), PerfError> {
        self.pipeline
            .request(connection, kind, message)
            .map(|_| ())
            .map_err(PerfError::client("asking the node"))
    }

    /// Creates a table; returns its id.
    pub fn create_table(&mut self, definition: &TableDefinition) -> Result<TableId, PerfError> {
        let message = TableCreate { definition: definition.clone() };
        self.request(0, FrameKind::TableCreate, &message)?;
        let mut result = None;
        while result.is_none() {
            poll(&mut self.pipeline, Wait::Event, &mut |_, payload| {
                let created: TableCreated = decode(payload).map_err(unreadable)?;
                result = Some(TableId(created.table));
                Ok(())
            })?;
        }
        Ok(result.expect("the loop ends with a result"))
    }

    /// Asks all shards for their numbers without waiting.
    pub fn status_begin(&mut self) -> Result<(), PerfError> {
        if self.reports_missing > 0 {
            return Ok(());
        }
        self.reports.clear();
        for connection in 0..self.pipeline.connections() {
            self.request(connection, FrameKind::Status, &Status {})?;
            self.reports_missing += 1;
        }
        Ok(())
    }

    /// The numbers asked for last, once all are there. Never waits.
    pub fn status_take(&mut self) -> Result<Option<StatusNumbers>, PerfError> {
        if self.reports_missing == 0 {
            return Ok(None);
        }
        self.status_poll(Wait::No)
    }

    fn status_poll(&mut self, wait: Wait) -> Result<Option<StatusNumbers>, PerfError> {
        let Self { pipeline, reports, reports_missing } = self;
        poll(pipeline, wait, &mut |_, payload| {
            let report: StatusReport = decode(payload).map_err(unreadable)?;
            reports.push(report.values.into_iter().map(|one| (one.name, one.value)).collect());
            *reports_missing -= 1;
            Ok(())
        })?;
        Ok((*reports_missing == 0).then(|| combine(reports)))
    }

    /// The numbers, waited for.
    pub fn status(&mut self) -> Result<StatusNumbers, PerfError> {
        self.status_begin()?;
        loop {
            if let Some(numbers) = self.status_poll(Wait::Event)? {
                return Ok(numbers);
            }
        }
    }
}

/// What every shard holds for itself is added up, and so are digests of it. A node has applied
/// what its slowest shard has. What the whole node counts is the same from all.
pub(crate) fn combine(reports: &[StatusNumbers]) -> StatusNumbers {
    let mut all = StatusNumbers::new();
    for report in reports {
        for (name, value) in report {
            let sum = |one: u64| match name.as_str() {
                name if name.starts_with("memtable_") => one + value,
                name if name.starts_with("digest_") => one.wrapping_add(*value),
                "applied_lsn" => one.min(*value),
                _ => one.max(*value),
            };
            all.entry(name.clone()).and_modify(|one| *one = sum(*one)).or_insert(*value);
        }
    }
    all
}

fn unreadable(error: impl std::fmt::Display) -> PerfError {
    PerfError::Refused(format!("an answer of the node cannot be read: {error}"))
}

/// Takes the connection and the payload of an answer.
type AnswerTaker<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<(), PerfError>;

/// Polls a pipeline that carries requests only.
fn poll(pipeline: &mut Pipeline, wait: Wait, answer: AnswerTaker<'_>) -> Result<(), PerfError> {
    let mut failure = None;
    let mut take = |one: FrameAnswer<'_>| {
        let result = match one.result {
            FrameResult::Answer { payload, .. } => answer(one.token.connection, payload),
            FrameResult::Refused { code, message, .. } => {
                Err(PerfError::Refused(format!("the node refused ({code:?}): {message}")))
            }
            FrameResult::Unknown(reason) | FrameResult::NotSent(reason) => {
                Err(PerfError::Refused(format!("the node did not answer: {}", reason.describe())))
            }
            FrameResult::Outcomes { .. } => {
                Err(PerfError::Refused("an answer of another kind".to_owned()))
            }
        };
        if let Err(error) = result {
            failure.get_or_insert(error);
        }
    };
    pipeline.poll(wait, &mut take).map_err(PerfError::client("asking the node"))?;
    failure.map_or(Ok(()), Err)
}

/// Reads the tables of a node, all shards at once.
pub struct NodeRows<'a> {
    control: &'a mut Control,
    tables: Vec<TableId>,
}

impl<'a> NodeRows<'a> {
    /// The tables in the workload's order.
    pub fn new(control: &'a mut Control, tables: Vec<TableId>) -> Self {
        Self { control, tables }
    }
}

/// Calls `row` with all rows of a page; returns where the next page begins, if there is one.
fn page_rows(
    payload: &[u8],
    row: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<Option<Vec<u8>>, PerfError> {
    let page = access::<ScanPage>(payload).map_err(unreadable)?;
    let mut rest = page.bytes.as_slice();
    let mut last: &[u8] = &[];
    for head in page.rows.iter() {
        let key_length = usize::from(head.key_length.to_native());
        let row_length = head.row_length.to_native() as usize;
        let split = rest.split_at_checked(key_length).and_then(|(key, rest)| {
            let (value, rest) = rest.split_at_checked(row_length)?;
            Some((key, value, rest))
        });
        let (key, value, after) = split.ok_or_else(|| unreadable("a page ends within a row"))?;
        row(key, value);
        last = key;
        rest = after;
    }
    if !page.more {
        return Ok(None);
    }
    if page.next.as_slice() < last {
        return Err(unreadable("a scan goes back"));
    }
    Ok(Some(page.next.to_vec()))
}

impl RowSource for NodeRows<'_> {
    fn scan(&mut self, table: usize, row: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), PerfError> {
        let table = self.tables[table].0;
        let shards = self.control.pipeline.connections();
        let mut wanted: Vec<(usize, Vec<u8>)> = (0..shards).map(|at| (at, Vec::new())).collect();
        let mut missing = 0;
        while !wanted.is_empty() || missing > 0 {
            for (connection, start) in wanted.drain(..) {
                let scan = Scan { table, start, end: Vec::new(), rows_max: PAGE_ROWS };
                self.control.request(connection, FrameKind::Scan, &scan)?;
                missing += 1;
            }
            poll(&mut self.control.pipeline, Wait::Event, &mut |connection, payload| {
                missing -= 1;
                if let Some(start) = page_rows(payload, row)? {
                    wanted.push((connection, start));
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use spillway_net::message::{RowHead, archive};

    use super::*;

    fn page(next: Option<&[u8]>, rows: &[(&[u8], &[u8])]) -> Vec<u8> {
        let more = next.is_some();
        let next = next.unwrap_or(&[]).to_vec();
        let mut page = ScanPage { more, next, ..ScanPage::default() };
        for (key, row) in rows {
            page.rows.push(RowHead {
                key_length: key.len() as u16,
                row_length: row.len() as u32,
                version: 1,
            });
            page.bytes.extend_from_slice(key);
            page.bytes.extend_from_slice(row);
        }
        let mut payload = Vec::new();
        archive(&mut payload, &page);
        payload
    }

    #[test]
    fn pages_continue_where_the_node_says() {
        let mut found = Vec::new();
        let mut take = |key: &[u8], row: &[u8]| found.push((key.to_vec(), row.to_vec()));
        let first = page(Some(b"c"), &[(b"a", b"1"), (b"b", b"22")]);
        assert_eq!(page_rows(&first, &mut take).expect("valid"), Some(b"c".to_vec()));
        assert_eq!(page_rows(&page(None, &[]), &mut take).expect("valid"), None);
        assert_eq!(found, [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"22".to_vec())]);
        let back = page(Some(b"a"), &[(b"b", b"22")]);
        page_rows(&back, &mut |_, _| ()).expect_err("a scan that goes back would never end");
        page_rows(b"nonsense", &mut |_, _| ()).expect_err("no archive");
    }

    #[test]
    fn only_what_shards_hold_is_added_up() {
        let report = |rows, log| -> StatusNumbers {
            let named = [
                ("memtable_rows", rows),
                ("log_bytes", log),
                ("digest_all", u64::MAX - rows),
                ("applied_lsn", rows),
            ];
            named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        };
        let all = combine(&[report(3, 100), report(4, 100)]);
        assert_eq!((all["memtable_rows"], all["log_bytes"]), (7, 100));
        assert_eq!((all["digest_all"], all["applied_lsn"]), (u64::MAX - 8, 3));
    }
}
