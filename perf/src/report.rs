//! The result of a burst: for machines as JSON, for people as a table.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::cluster::Agreement;
use crate::control::StatusNumbers;
use crate::disturbance::{
    Event, FOLLOWER_PAUSED, FOLLOWER_SLOWED, GapSummary, WindowLatency, summaries,
};
use crate::generator::Resolved;
use crate::machine::{DeviceWrite, Machine};
use crate::probe::Applied;
use crate::recorder::{Counts, Latency};
use crate::verification::Verification;

/// CPU time and the node's numbers at one moment of the load.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Nanoseconds since the load began.
    pub at_ns: u64,
    /// Everything so far.
    pub total: Counts,
    /// CPU time of the generator, nanoseconds.
    pub client_cpu_ns: u64,
    /// CPU time of each node, nanoseconds.
    pub nodes_cpu_ns: Vec<u64>,
    /// The node's numbers, taken just after; none if the answer did not come in time.
    pub status: Option<StatusNumbers>,
}

/// Nanoseconds of CPU per committed transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CpuPerTransaction {
    /// Of the node that led at the end.
    pub leader: Option<u64>,
    /// Of the other nodes, on average.
    pub follower: Option<u64>,
    /// Of the generator.
    pub client: Option<u64>,
    /// Of each node.
    pub nodes: Vec<u64>,
}

/// How long each part took, seconds.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Seconds {
    /// Formatting the nodes.
    pub format: f64,
    /// Their first start, to the election of a leader.
    pub start: f64,
    /// Loading the workload's rows.
    pub load: f64,
    /// The load itself.
    pub burst: f64,
    /// Of which in the hold phase.
    pub hold: f64,
    /// The start after the kill of all nodes, to the election of a leader; null without one.
    pub restart: Option<f64>,
    /// Getting answers for what was in flight at the kill.
    pub resolve: Option<f64>,
    /// Verification.
    pub verify: f64,
}

/// How the load went on the generator's side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lateness {
    /// 99th percentile of how late frames left that did not wait for the node, microseconds.
    pub p99_us: f64,
    /// The same of frames that waited for room in flight.
    pub blocked_p99_us: f64,
    /// Frames of the hold phase that left without waiting for the node.
    pub frames: u64,
    /// Frames of the hold phase that waited for room in flight.
    pub blocked_frames: u64,
}

/// Everything a burst found out.
#[derive(Clone, Debug)]
pub struct BurstReport {
    /// Nodes.
    pub nodes: u16,
    /// The node that led at the end, counted from 0.
    pub leader: usize,
    /// Name of the workload.
    pub workload: &'static str,
    /// Transactions per frame.
    pub batch: usize,
    /// Connections.
    pub connections: usize,
    /// Unanswered frames per connection at most.
    pub in_flight: usize,
    /// Shards of the node.
    pub shards: u16,
    /// What was drawn follows from it.
    pub seed: u64,
    /// The rate asked for; 0: as fast as possible.
    pub rate: f64,
    /// Whether generator and node had CPUs of their own.
    pub is_pinned: bool,
    /// CPUs the node could use.
    pub server_cpus: usize,
    /// Transactions of the whole load.
    pub total: Counts,
    /// Transactions of the hold phase.
    pub hold: Counts,
    /// Transactions due per second in the hold phase.
    pub offered_tps: f64,
    /// Latency of the hold phase.
    pub latency: Latency,
    /// How punctual the generator was.
    pub lateness: Lateness,
    /// Begin and end of the hold phase; none if the load ended before.
    pub samples: Option<[Sample; 2]>,
    /// Bytes of keys and values per transaction.
    pub payload_bytes: f64,
    /// Parts of the burst.
    pub seconds: Seconds,
    /// The node's numbers after its restart.
    pub status_restart: Option<StatusNumbers>,
    /// What was in flight at the kill of all nodes; none without one.
    pub resolved: Option<Resolved>,
    /// What was done to the nodes while the load ran.
    pub events: Vec<Event>,
    /// Stretches of the load around that.
    pub windows: Vec<WindowLatency>,
    /// Transactions whose outcome nobody could tell to the end.
    pub unknown: u64,
    /// Transactions whose outcome was told to be unknown, and asked for again.
    pub asked_again: u64,
    /// What all nodes hold at the end; none with a single one.
    pub agreement: Option<Agreement>,
    /// Comparison of the tables with what was acknowledged.
    pub verification: Verification,
    /// Durable 4 KiB writes on the idle device.
    pub device: DeviceWrite,
    /// The machine.
    pub machine: Machine,
    /// Where the node's directories are, if they were kept.
    pub kept: Option<String>,
}

/// A share of a core above which it is taken to be the limit.
const BUSY: f64 = 0.9;

impl BurstReport {
    /// Whether everything acknowledged is there and the books balance.
    pub fn is_good(&self) -> bool {
        let resolved = self.resolved.as_ref();
        self.verification.is_good()
            && self.unknown == 0
            && self.agreement.as_ref().is_none_or(Agreement::is_good)
            && resolved.is_none_or(|resolved| resolved.wrong == 0 && resolved.unknown == 0)
    }

    /// Transactions committed per second in the hold phase.
    pub fn committed_tps(&self) -> f64 {
        if self.seconds.hold > 0.0 { self.hold.committed as f64 / self.seconds.hold } else { 0.0 }
    }

    /// The difference of one of the leader's numbers over the hold phase. None if another node may
    /// have led, or the same one begun to count anew.
    fn status_difference(&self, name: &str) -> Option<u64> {
        let moves = |event: &Event| !matches!(event.kind, FOLLOWER_PAUSED | FOLLOWER_SLOWED);
        if self.events.iter().any(moves) {
            return None;
        }
        let [begin, end] = self.samples.as_ref()?;
        let value = |sample: &Sample| sample.status.as_ref()?.get(name).copied();
        value(end)?.checked_sub(value(begin)?)
    }

    /// One of the node's numbers at the end of the hold phase.
    fn status_end(&self, name: &str) -> Option<u64> {
        self.samples.as_ref()?[1].status.as_ref()?.get(name).copied()
    }

    /// Nanoseconds of CPU per committed transaction of the hold phase: each node, generator.
    fn cpu_ns(&self) -> Option<(Vec<u64>, u64)> {
        let [begin, end] = self.samples.as_ref()?;
        let committed = end.total.committed.checked_sub(begin.total.committed)?;
        let per = |end: u64, begin: u64| end.checked_sub(begin)?.checked_div(committed);
        let pairs = end.nodes_cpu_ns.iter().zip(&begin.nodes_cpu_ns);
        let nodes: Option<Vec<u64>> = pairs.map(|(end, begin)| per(*end, *begin)).collect();
        Some((nodes?, per(end.client_cpu_ns, begin.client_cpu_ns)?))
    }

    /// Nanoseconds of CPU per committed transaction.
    pub fn cpu_ns_per_txn(&self) -> CpuPerTransaction {
        let Some((nodes, client)) = self.cpu_ns() else { return CpuPerTransaction::default() };
        let others = nodes.iter().enumerate().filter(|(at, _)| *at != self.leader);
        let (count, sum) = others.fold((0, 0), |(count, sum), (_, ns)| (count + 1, sum + ns));
        CpuPerTransaction {
            leader: nodes.get(self.leader).copied(),
            follower: u64::checked_div(sum, count),
            client: Some(client),
            nodes,
        }
    }

    /// Cores' worth of CPU used in the hold phase: each node, generator.
    fn cores(&self) -> Option<(Vec<f64>, f64)> {
        let [begin, end] = self.samples.as_ref()?;
        let wall = end.at_ns.checked_sub(begin.at_ns).filter(|wall| *wall > 0)? as f64;
        let share = |end: u64, begin: u64| end.saturating_sub(begin) as f64 / wall;
        let pairs = end.nodes_cpu_ns.iter().zip(&begin.nodes_cpu_ns);
        let nodes = pairs.map(|(end, begin)| share(*end, *begin)).collect();
        Some((nodes, share(end.client_cpu_ns, begin.client_cpu_ns)))
    }

    /// Log bytes per transaction of the hold phase.
    fn log_bytes_per_txn(&self) -> Option<f64> {
        let [begin, end] = self.samples.as_ref()?;
        let committed = end.total.committed.checked_sub(begin.total.committed)?;
        if committed == 0 {
            return None;
        }
        Some(self.status_difference("log_bytes")? as f64 / committed as f64)
    }

    /// What kept the load from being faster, for machines.
    pub fn limit(&self) -> &'static str {
        let Some((nodes, generator)) = self.cores() else { return "unknown" };
        let servers: f64 = nodes.iter().sum();
        let busiest = nodes.iter().copied().fold(0.0, f64::max);
        let is_open = self.rate > 0.0;
        let kept_up = self.committed_tps() >= 0.98 * self.offered_tps;
        let waited = self.lateness.blocked_frames > self.lateness.frames / 100;
        let late = self.lateness.p99_us > 10_000.0 && !waited;
        if generator > BUSY || (is_open && late && !kept_up) {
            return "generator";
        }
        if is_open && kept_up && !waited {
            return "rate";
        }
        let is_alone = nodes.len() == 1;
        let is_all = servers > BUSY * self.server_cpus as f64;
        if (is_all && (is_alone || self.is_pinned)) || (self.shards == 1 && busiest > BUSY) {
            return "server CPU";
        }
        if !self.is_pinned && servers + generator > BUSY * self.machine.cpus as f64 {
            return "shared CPU";
        }
        if self.disk_busy().is_some_and(|busy| busy > BUSY) {
            return "disk";
        }
        "network and frames in flight"
    }

    /// The share of the hold phase in which a log write was under way, by count and median.
    fn disk_busy(&self) -> Option<f64> {
        let batches = self.status_difference("log_batches")? as f64;
        let write_ns = self.status_end("log_write_p50_ns")? as f64;
        Some(batches * write_ns / (self.seconds.hold * 1e9))
    }

    fn limit_text(&self) -> String {
        let cores = self.cores().map_or_else(String::new, |(nodes, generator)| {
            let nodes: Vec<String> =
                nodes.iter().map(|share| format!("{:.0} %", share * 100.0)).collect();
            format!(
                " (node{} {} of a core, generator {:.0} %)",
                if nodes.len() == 1 { "" } else { "s" },
                nodes.join(", "),
                generator * 100.0
            )
        });
        let text = match self.limit() {
            "generator" => "the generator, not the node",
            "rate" => "nothing: the node kept up with the offered rate",
            "server CPU" => "the node's CPU",
            "shared CPU" => "the CPUs that nodes and generator share",
            "disk" => "the log disk",
            "network and frames in flight" => "round trips: frames in flight, network, wake-ups",
            _ => "unknown: the load ended before the hold phase did",
        };
        format!("{text}{cores}")
    }

    /// The result for machines.
    pub fn json(&self) -> Value {
        let mut all = json!({
            "nodes": self.nodes,
            "workload": self.workload,
            "batch": self.batch,
            "connections": self.connections,
            "in_flight": self.in_flight,
            "shards": self.shards,
            "seed": self.seed,
            "rate": self.rate,
            "pinned": self.is_pinned,
            "offered_tps": self.offered_tps.round(),
            "committed_tps": self.committed_tps().round(),
            "sent": self.total.sent,
            "refused": self.total.refused,
            "acknowledged": self.verification.acknowledged,
            "verified": self.verification.verified,
            "lost": self.verification.lost,
            "foreign": self.verification.foreign,
            "damaged": self.verification.damaged,
            "imbalanced": self.verification.imbalanced,
            "unanswered_durable": self.verification.unanswered,
            "findings": self.verification.findings,
            "good": self.is_good(),
            "limit": self.limit(),
            "latency_us": self.latency,
            "lateness_us": {
                "p99": self.lateness.p99_us,
                "blocked_p99": self.lateness.blocked_p99_us,
                "blocked_frames": self.lateness.blocked_frames,
            },
            "device": self.device,
            "seconds": self.seconds,
            "machine": self.machine,
        });
        all["cpu_ns_per_txn"] = json!(self.cpu_ns_per_txn());
        all["leader"] = json!(self.leader + 1);
        all["unknown"] = json!(self.unknown);
        all["asked_again"] = json!(self.asked_again);
        all["events"] = self.events.iter().map(Event::json).collect();
        all["gaps"] = json!(summaries(&self.events));
        all["windows"] = self.windows.iter().map(WindowLatency::json).collect();
        all["agreement"] = self.json_agreement();
        all["log"] = self.json_log();
        all["memory"] = json!({
            "rows": self.status_end("memtable_rows"),
            "bytes": self.status_end("memtable_bytes"),
        });
        all["replay"] = self.json_replay();
        all["resent"] = self.json_resent();
        all
    }

    fn json_log(&self) -> Value {
        let us = |name| self.status_end(name).map(|nanos| nanos as f64 / 1000.0);
        let per_txn = self.log_bytes_per_txn();
        json!({
            "bytes": self.status_difference("log_bytes"),
            "batches": self.status_difference("log_batches"),
            "write_p50_us": us("log_write_p50_ns"),
            "write_p99_us": us("log_write_p99_ns"),
            "bytes_per_txn": per_txn,
            "bytes_per_payload_byte": per_txn.map(|bytes| bytes / self.payload_bytes),
        })
    }

    fn json_replay(&self) -> Value {
        let number = |name: &str| self.status_restart.as_ref()?.get(name).copied();
        let records = number("replay_records");
        let seconds = number("replay_ns").map(|nanos| nanos as f64 / 1e9);
        let rate = records
            .zip(seconds)
            .filter(|(_, seconds)| *seconds > 0.0)
            .map(|(records, seconds)| (records as f64 / seconds).round());
        json!({ "seconds": seconds, "records": records, "records_per_s": rate })
    }

    fn json_agreement(&self) -> Value {
        let Some(agreement) = &self.agreement else { return Value::Null };
        let node = |node: &Applied| {
            let digest = node.digest.map(|digest| format!("{digest:016x}"));
            json!({ "applied_lsn": node.lsn, "digest": digest, "rows": node.rows })
        };
        json!({
            "good": agreement.is_good(),
            "nodes": agreement.nodes.iter().map(node).collect::<Value>(),
            "findings": agreement.findings,
        })
    }

    fn json_resent(&self) -> Value {
        let Some(resolved) = &self.resolved else { return Value::Null };
        json!({
            "frames": resolved.frames,
            "transactions": resolved.transactions,
            "committed": resolved.committed,
            "wrong": resolved.wrong,
            "unknown": resolved.unknown,
        })
    }

    /// The result for people.
    pub fn text(&self) -> String {
        let mut table = Table::default();
        self.text_load(&mut table);
        self.text_node(&mut table);
        self.text_disturbance(&mut table);
        self.text_verification(&mut table);
        self.text_agreement(&mut table);
        let mut text = table.text();
        let resolved = self.resolved.iter().flat_map(|resolved| &resolved.findings);
        let agreement = self.agreement.iter().flat_map(|agreement| &agreement.findings);
        for finding in self.verification.findings.iter().chain(resolved).chain(agreement) {
            writeln!(text, "  ! {finding}").expect("writing to memory");
        }
        if let Some(kept) = &self.kept {
            writeln!(text, "The nodes' directories are in {kept}").expect("writing to memory");
        }
        let verdict = if self.is_good() {
            "Nothing acknowledged is missing, and the books balance."
        } else {
            "FAILED: what was acknowledged was not kept, or the nodes differ; see above."
        };
        writeln!(text, "{verdict}").expect("writing to memory");
        text
    }

    fn text_load(&self, table: &mut Table) {
        table.line(
            "workload",
            format!(
                "{} node{}, {}, {} per frame, {} connections x {} in flight, {} shard{}, seed {}",
                self.nodes,
                if self.nodes == 1 { "" } else { "s" },
                self.workload,
                thousands(self.batch as u64),
                self.connections,
                self.in_flight,
                self.shards,
                if self.shards == 1 { "" } else { "s" },
                self.seed
            ),
        );
        let rate = |value: f64| format!("{}/s", thousands(value.round() as u64));
        if self.rate > 0.0 {
            table.line("offered", rate(self.offered_tps));
        }
        let hold = format!("{} (over {:.1} s)", rate(self.committed_tps()), self.seconds.hold);
        table.line("committed", hold);
        let Latency { p50, p99, p999, max } = self.latency;
        let [p50, p99, p999, max] = [p50, p99, p999, max].map(time_text);
        table.line("latency", format!("p50 {p50}, p99 {p99}, p99.9 {p999}, longest {max}"));
        if self.rate > 0.0 {
            let late = time_text(self.lateness.p99_us);
            let mut text = format!("frames left {late} after their time (p99)");
            if self.lateness.blocked_frames > 0 {
                write!(
                    text,
                    ", {} more waited for room in flight, {} (p99)",
                    thousands(self.lateness.blocked_frames),
                    time_text(self.lateness.blocked_p99_us)
                )
                .expect("writing to memory");
            }
            table.line("punctuality", text);
        }
        table.line("limited by", self.limit_text());
        let cpu = self.cpu_ns_per_txn();
        let ns = |cpu: Option<u64>| {
            cpu.map_or_else(|| "?".to_owned(), |ns| format!("{} ns", thousands(ns)))
        };
        let nodes = match self.nodes {
            1 => format!("node {}", ns(cpu.leader)),
            _ => format!("leader {}, follower {}", ns(cpu.leader), ns(cpu.follower)),
        };
        table.line("CPU per transaction", format!("{nodes}, generator {}", ns(cpu.client)));
    }

    /// What was done to the nodes, and what it cost.
    fn text_disturbance(&self, table: &mut Table) {
        for (kind, gap) in summaries(&self.events) {
            let GapSummary { count, p50_ms, p99_ms, max_ms } = gap;
            table.line(
                kind,
                format!(
                    "{count} times, write gap p50 {p50_ms:.0} ms, p99 {p99_ms:.0} ms, longest \
                     {max_ms:.0} ms"
                ),
            );
        }
        for window in &self.windows {
            let seconds = (window.end_ns - window.begin_ns) as f64 / 1e9;
            table.line(
                "latency",
                format!(
                    "{}: p50 {}, p99 {}, {}/s over {seconds:.1} s",
                    window.name,
                    time_text(window.latency.p50),
                    time_text(window.latency.p99),
                    thousands((window.committed as f64 / seconds) as u64)
                ),
            );
        }
        if self.asked_again > 0 || self.unknown > 0 {
            let (all, left) = (thousands(self.asked_again), thousands(self.unknown));
            let text = format!("{all} transactions asked for again, {left} left unknown");
            table.line("unknown outcomes", text);
        }
    }

    fn text_node(&self, table: &mut Table) {
        if let (Some(bytes), Some(batches)) =
            (self.status_difference("log_bytes"), self.status_difference("log_batches"))
        {
            let per = self.log_bytes_per_txn().unwrap_or(0.0);
            table.line(
                "log",
                format!(
                    "{} MB in {} batches, {per:.0} bytes per transaction ({:.2} x payload)",
                    thousands(bytes / 1_000_000),
                    thousands(batches),
                    per / self.payload_bytes
                ),
            );
        }
        let write = |name| {
            self.status_end(name).map_or_else(|| "?".to_owned(), |ns| time_text(ns as f64 / 1e3))
        };
        table.line(
            "log writes",
            format!(
                "p50 {}, p99 {} (idle device, 4 KiB: p50 {}, p99 {})",
                write("log_write_p50_ns"),
                write("log_write_p99_ns"),
                time_text(self.device.write_p50_us as f64),
                time_text(self.device.write_p99_us as f64)
            ),
        );
        if let (Some(rows), Some(bytes)) =
            (self.status_end("memtable_rows"), self.status_end("memtable_bytes"))
        {
            table.line(
                "memory",
                format!(
                    "{} rows in {} MB, {} bytes per row",
                    thousands(rows),
                    thousands(bytes / 1_000_000),
                    thousands(bytes.checked_div(rows).unwrap_or(0))
                ),
            );
        }
        let machine = &self.machine;
        table.line(
            "machine",
            format!(
                "{} CPUs {}, Linux {}, log on {} ({}), {}",
                machine.cpus,
                machine.cpu_model,
                machine.kernel,
                if machine.log_device.is_empty() { "no disk" } else { &machine.log_device },
                machine.log_write_mode,
                if self.is_pinned { "pinned" } else { "not pinned" }
            ),
        );
    }

    fn text_agreement(&self, table: &mut Table) {
        if let Some(agreement) = self.agreement.as_ref().filter(|one| one.is_good()) {
            let first = &agreement.nodes[0];
            table.line(
                "nodes",
                format!(
                    "all {} hold {} rows with digest {:016x} at LSN {}",
                    agreement.nodes.len(),
                    thousands(first.rows),
                    first.digest.unwrap_or(0),
                    thousands(first.lsn)
                ),
            );
        }
    }

    fn text_verification(&self, table: &mut Table) {
        let seconds = &self.seconds;
        if let Some(restart) = seconds.restart {
            let restart_number =
                |name: &str| self.status_restart.as_ref().and_then(|all| all.get(name)).copied();
            let mut text = format!("ready after {restart:.2} s");
            if let (Some(records), Some(nanos)) =
                (restart_number("replay_records"), restart_number("replay_ns"))
            {
                let rate = records as f64 / (nanos.max(1) as f64 / 1e9);
                write!(
                    text,
                    ", {} records replayed in {:.2} s ({}/s)",
                    thousands(records),
                    nanos as f64 / 1e9,
                    thousands(rate as u64)
                )
                .expect("writing to memory");
            }
            table.line("restart after SIGKILL", text);
        }
        if let Some(resolved) = &self.resolved {
            table.line(
                "in flight at the kill",
                format!(
                    "{} transactions in {} frames sent again: {} committed, {} wrong, {} unknown",
                    thousands(resolved.transactions),
                    thousands(resolved.frames),
                    thousands(resolved.committed),
                    resolved.wrong,
                    resolved.unknown
                ),
            );
        }
        let v = &self.verification;
        table.line(
            "verification",
            format!(
                "{} acknowledged, {} verified, {} lost; {} rows read in {:.1} s",
                thousands(v.acknowledged),
                thousands(v.verified),
                thousands(v.lost),
                thousands(v.rows),
                seconds.verify
            ),
        );
        if !v.is_good() {
            table.line(
                "found wrong",
                format!(
                    "{} foreign, {} damaged, {} imbalanced",
                    thousands(v.foreign),
                    thousands(v.damaged),
                    thousands(v.imbalanced)
                ),
            );
        }
    }
}

/// Lines of name and value, aligned.
#[derive(Default)]
struct Table {
    lines: Vec<(&'static str, String)>,
}

impl Table {
    fn line(&mut self, name: &'static str, value: String) {
        self.lines.push((name, value));
    }

    fn text(&self) -> String {
        let width = self.lines.iter().map(|line| line.0.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.lines {
            writeln!(text, "{name:<width$}  {value}").expect("writing to memory");
        }
        text
    }
}

/// A number with a comma at every third digit.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in microseconds, in the unit that suits it.
pub fn time_text(us: f64) -> String {
    if us < 10_000.0 {
        format!("{us:.0} us")
    } else if us < 10_000_000.0 {
        format!("{:.1} ms", us / 1e3)
    } else {
        format!("{:.1} s", us / 1e6)
    }
}

#[cfg(test)]
mod tests;
