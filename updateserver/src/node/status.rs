//! Numbers for `admin status`.

use spillway_net::ids::{Lsn, NodeId};
use spillway_net::message::{ClusterReport, MemberReport, StatusReport, StatusValue};
use spillway_runtime::clock;

use crate::quorum::{MemberStatus, ReplicaStatus};
use crate::shard::Shard;

use super::board::Member;
use super::published::Published;

/// The log's numbers, published for all cores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LogNumbers {
    pub bytes: u64,
    pub batches: u64,
    pub write_p50_nanos: u64,
    pub write_p99_nanos: u64,
    pub used_bytes: u64,
    pub total_bytes: u64,
}

impl LogNumbers {
    pub const WORDS: usize = 6;

    pub fn words(&self) -> [u64; Self::WORDS] {
        [
            self.bytes,
            self.batches,
            self.write_p50_nanos,
            self.write_p99_nanos,
            self.used_bytes,
            self.total_bytes,
        ]
    }
}

/// What the start found in the log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReplayNumbers {
    pub records: u64,
    pub outcomes: u64,
    pub nanos: u64,
    pub log_bytes: u64,
}

/// Everything that a shard's thread knows.
pub(super) struct StatusSources<'a> {
    pub shard: &'a Shard,
    pub log: [u64; LogNumbers::WORDS],
    pub state: Published,
    pub replay: ReplayNumbers,
    pub handed_over: u64,
    pub started_at_nanos: u64,
    pub input_bytes: u64,
    pub sessions_open: u64,
}

/// The report of one shard. Numbers of the process and of the log are the same from every shard.
pub(super) fn report(sources: &StatusSources<'_>) -> StatusReport {
    let counters = sources.shard.counters();
    let (rows, used, reserved) = sources.shard.memory();
    let [bytes, batches, p50, p99, log_used, log_total] = sources.log;
    let now = clock::monotonic_now().0;
    let values = [
        ("uptime_ms", now.saturating_sub(sources.started_at_nanos) / 1_000_000),
        ("process_cpu_ns", clock::process_cpu_nanos()),
        ("vdl_lsn", sources.state.lsn),
        ("applied_lsn", sources.shard.applied_lsn().0),
        ("leading", u64::from(sources.state.leading)),
        ("epoch", sources.state.epoch),
        ("leader", sources.state.leader.into()),
        ("log_failed", u64::from(sources.state.failed)),
        ("log_full", u64::from(sources.state.full)),
        ("log_bytes", bytes),
        ("log_batches", batches),
        ("log_write_p50_ns", p50),
        ("log_write_p99_ns", p99),
        ("log_used_bytes", log_used),
        ("log_total_bytes", log_total),
        ("replay_records", sources.replay.records),
        ("replay_outcomes", sources.replay.outcomes),
        ("replay_ns", sources.replay.nanos),
        ("replay_log_bytes", sources.replay.log_bytes),
        ("sessions_open", sources.sessions_open),
        ("shard_sessions", sources.shard.sessions_count() as u64),
        ("shard_connections", sources.shard.connections_count() as u64),
        ("shard_input_bytes", sources.input_bytes),
        ("shard_handovers_waiting", sources.handed_over),
        ("transactions_committed", counters.committed),
        ("transactions_failed", counters.failed),
        ("transactions_refused", counters.refused),
        ("transactions_repeated", counters.repeated),
        ("records_applied", counters.records_applied),
        ("frames", counters.frames),
        ("handovers", counters.handovers),
        ("memtable_rows", rows),
        ("memtable_bytes", used),
        ("memtable_reserved_bytes", reserved),
        ("digest_all", sources.shard.digest_all()),
    ];
    let values =
        values.into_iter().map(|(name, value)| StatusValue { name: name.to_owned(), value });
    StatusReport { values: values.collect() }
}

/// How the node sees the cluster.
pub(super) fn cluster_report(
    status: &ReplicaStatus,
    addresses: &[Member],
    drained: &[NodeId],
) -> ClusterReport {
    let member = |member: &MemberStatus| {
        let address = addresses.iter().find(|known| known.node == member.node);
        MemberReport {
            node: member.node.0,
            address: address.map_or_else(String::new, |known| known.client_address.clone()),
            peer_address: address.map_or_else(String::new, |known| known.peer_address.clone()),
            kind: member.kind.name().to_owned(),
            state: member.state.name().to_owned(),
            drained: drained.contains(&member.node),
            matched: member.matched.0,
            applied: member.applied.0,
            silent_ms: member.silent_ms,
        }
    };
    let Lsn(applied) = status.applied;
    ClusterReport {
        node: status.node.0,
        role: status.role.name().to_owned(),
        term: status.term.0,
        leader: status.leader.map_or(0, |NodeId(node)| node),
        scl: status.scl.0,
        vcl: status.vcl.0,
        vdl: status.vdl.0,
        // Reads see the applied end of the node that they ask: nobody reads at an older one.
        pgmrpl: applied.min(status.vdl.0),
        applied,
        lal_bytes: status.lal_bytes,
        tail_bytes: status.tail_bytes,
        members: status.members.iter().map(member).collect(),
    }
}
