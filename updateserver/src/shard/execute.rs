//! Executing frames of transactions, in groups whose cache misses overlap.

use spillway_net::frame::FrameKind;
use spillway_net::ids::SessionId;
use spillway_net::limits::{
    ANSWER_PAYLOAD_BYTES_MAX, FRAGMENT_BYTES_CLOSE, FRAME_PAYLOAD_BYTES_MAX,
    OUTCOME_RESULT_BYTES_MAX, SESSION_FRAMES_IN_FLIGHT_MAX,
};
use spillway_net::message::{
    self, ArchivedOperationHead, ArchivedOutcomeHead, ArchivedOutcomes, ArchivedSubmit,
    ArchivedTransactionHead, OperationKind, OutcomeHead, OutcomeStatus, Outcomes, ReadMode,
    Refusal, RefusalCode, Submit,
};

use crate::session::Lookup;

use super::prepare::{FrameWalk, PreparedTransaction};
use super::role::Role;
use super::store::{PrefetchStage, PreparedOperation};
use super::{InboundFrame, Shard, ShardEffects};

/// Transactions whose rows are fetched together. Measured: halves the cost of one
/// (hot-path measurement, groups of 16); more only fill the cache's queue of misses.
const GROUP_TRANSACTIONS: usize = 16;

/// The retry hint for refusals that end by themselves, milliseconds.
pub(super) const RETRY_AFTER_MS: u32 = 50;

/// What an outcome takes in an answer without results that are too large to be kept, bytes.
const OUTCOME_ANSWER_BYTES_MAX: usize = size_of::<ArchivedOutcomeHead>() + OUTCOME_RESULT_BYTES_MAX;
// A frame as full of transactions as can be has an answer within the limit: each of them takes
// a head, an operation's head and a byte of key.
const _: () = assert!(
    FRAME_PAYLOAD_BYTES_MAX
        / (size_of::<ArchivedTransactionHead>() + size_of::<ArchivedOperationHead>() + 1)
        * OUTCOME_ANSWER_BYTES_MAX
        + size_of::<ArchivedOutcomes>()
        <= ANSWER_PAYLOAD_BYTES_MAX
);

/// Buffers that live from frame to frame.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    outcomes: Outcomes,
    results: Vec<u8>,
}

/// Transactions prepared but not yet executed. They point into the frames of the step; the
/// group is drained before the step ends, so no receive buffer moves under it.
#[derive(Default)]
struct Group<'a> {
    transactions: Vec<PreparedTransaction>,
    operations: Vec<PreparedOperation<'a>>,
    /// How each frame is served that has transactions in the group, by the frame's position.
    frames: Vec<FrameService>,
}

/// How the transactions of one frame are served.
#[derive(Clone, Copy, Debug, Default)]
struct FrameService {
    /// The connection's session, which it holds while the frame is prepared; none for reads that
    /// may be old: nothing of theirs has to be found again.
    session: SessionId,
    consistency: Consistency,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Consistency {
    /// Sees whatever was acknowledged before.
    #[default]
    Strong,
    /// Sees at least what the frame asks for, and needs no proof of leadership.
    Covered,
    /// What the frame asks for is not applied here: not executed.
    Behind,
}

/// Why a frame with transactions is not executed.
enum Unserved {
    /// It breaks the protocol.
    Close(RefusalCode, String),
    /// Another node may serve it.
    Elsewhere(Refusal),
}

fn unserved(code: RefusalCode, text: impl Into<String>) -> Unserved {
    Unserved::Close(code, text.into())
}

fn only_reads(submit: &ArchivedSubmit) -> bool {
    let kinds = submit.operations.iter().map(|head| OperationKind::from_wire(head.kind));
    !kinds.flatten().any(OperationKind::writes)
}

/// Whether a transaction's results fit the answer of its frame beside what is there already and
/// what the frame's other transactions need at least. If not, it is not executed: worth another
/// attempt in a smaller frame, unless they fit no answer.
fn answer_fits(
    transaction: &PreparedTransaction,
    answer_bytes: usize,
    results: &[u8],
) -> Result<(), OutcomeStatus> {
    if results.len() <= OUTCOME_RESULT_BYTES_MAX {
        return Ok(());
    }
    let room = |transactions: usize| {
        (ANSWER_PAYLOAD_BYTES_MAX - size_of::<ArchivedOutcomes>())
            .saturating_sub(transactions * OUTCOME_ANSWER_BYTES_MAX)
    };
    if results.len() > room(1) {
        return Err(OutcomeStatus::TooLarge);
    }
    if answer_bytes + results.len() > room(transaction.frame_transactions as usize) {
        return Err(OutcomeStatus::Overloaded);
    }
    Ok(())
}

impl Shard {
    pub(super) fn frames(&mut self, frames: &[InboundFrame<'_>], out: &mut ShardEffects) {
        let mut group =
            Group { frames: vec![FrameService::default(); frames.len()], ..Group::default() };
        out.frames_taken = frames.len();
        for (at, frame) in frames.iter().enumerate() {
            let full = self.held.bytes() >= self.options.held_bytes_max;
            if at > 0 && (full || spillway_runtime::fault_point!(TurnEndsEarly)) {
                // A few bytes may ask for a large answer: the rest waits until these have left.
                out.frames_taken = at;
                break;
            }
            if self.connections.get_mut(frame.connection).is_none_or(|held| held.ending) {
                continue;
            }
            if frame.header.kind != FrameKind::Submit {
                self.execute_group(&mut group, frames, out);
                let closes = out.closes.len();
                self.frame_of_control(frame, out);
                // Frames behind it on a refused or fenced connection are not to be served.
                for connection in &out.closes[closes..] {
                    self.connection_closed(*connection);
                }
                continue;
            }
            let walk = match self.submit_checked(frame, at as u32) {
                Ok((walk, service)) => {
                    group.frames[at] = service;
                    walk
                }
                Err(Unserved::Elsewhere(refusal)) => {
                    out.refusal(frame.connection, frame.header.request, &refusal);
                    continue;
                }
                Err(Unserved::Close(code, text)) => {
                    self.execute_group(&mut group, frames, out);
                    let request = frame.header.request;
                    out.refuse_and_close(frame.connection, request, code, text);
                    // Frames behind it on the same connection are not to be executed.
                    self.connection_closed(frame.connection);
                    continue;
                }
            };
            self.walk(walk, &mut group, frames, out);
        }
        self.execute_group(&mut group, frames, out);
        self.release(out);
    }

    /// Checks all of a frame that is not one transaction's own business.
    fn submit_checked<'a>(
        &mut self,
        frame: &InboundFrame<'a>,
        at: u32,
    ) -> Result<(FrameWalk<'a>, FrameService), Unserved> {
        let connection = self.connections.get_mut(frame.connection).expect("looked up before");
        if !connection.greeted {
            return Err(unserved(RefusalCode::OutOfOrder, "the first frame must be a hello"));
        }
        if connection.frames_in_flight >= SESSION_FRAMES_IN_FLIGHT_MAX {
            let text = format!("more than {SESSION_FRAMES_IN_FLIGHT_MAX} unanswered frames");
            return Err(unserved(RefusalCode::LimitReached, text));
        }
        let session = connection.session.unwrap_or(SessionId(0));
        let submit = message::access::<Submit>(frame.payload)
            .map_err(|error| unserved(RefusalCode::Malformed, error.to_string()))?;
        let service = self.service(submit, session)?;
        let walk = FrameWalk::new(submit, at)
            .map_err(|error| unserved(RefusalCode::Malformed, error.0))?;
        if let Some(connection) = self.connections.get_mut(frame.connection) {
            connection.frames_in_flight += 1;
        }
        self.counters.frames += 1;
        if session.0 != 0 && self.leads() {
            self.directory.touch(session, self.now_seconds);
            let acknowledged = submit.acknowledged_below.to_native();
            self.sessions.acknowledge_below(session, acknowledged, self.store.floor);
        }
        Ok((walk, service))
    }

    /// Whether and how a frame of a session is served here. Reads that may be old are served by
    /// any node that has what they ask for, everything else by the leader.
    fn service(
        &self,
        submit: &ArchivedSubmit,
        session: SessionId,
    ) -> Result<FrameService, Unserved> {
        let Some(mode) = ReadMode::from_wire(submit.read_mode) else {
            let text = format!("there is no read mode {}", submit.read_mode);
            return Err(unserved(RefusalCode::Malformed, text));
        };
        if mode == ReadMode::Strong || !only_reads(submit) {
            return match self.role {
                Role::Lead(_) if !spillway_runtime::fault_point!(LeaderRefuses) => {
                    Ok(FrameService { session, consistency: Consistency::Strong })
                }
                _ => Err(Unserved::Elsewhere(self.refusal_not_leader())),
            };
        }
        if self.role == Role::Diverged {
            return Err(Unserved::Elsewhere(self.refusal_not_leader()));
        }
        if self.log.drained && !self.leads() {
            let text = "an operator keeps reads away from this node: ask another one".to_owned();
            return Err(Unserved::Elsewhere(Refusal::new(RefusalCode::Drained, text)));
        }
        let mut bound = submit.read_bound.to_native();
        if spillway_runtime::planted!(FollowerReadsEarly) {
            bound = if mode == ReadMode::AtLsn { 0 } else { u64::MAX };
        }
        let consistency = match mode {
            ReadMode::Stale if self.is_fresh(bound) => Consistency::Covered,
            // A leader is as fresh as can be once it has proof that it leads.
            ReadMode::Stale if self.leads() => Consistency::Strong,
            ReadMode::AtLsn if self.applied_lsn.0 >= bound => Consistency::Covered,
            _ => Consistency::Behind,
        };
        Ok(FrameService { session: SessionId(0), consistency })
    }

    /// Whether what this node has is no older than so many microseconds.
    fn is_fresh(&self, micros_max: u64) -> bool {
        self.log.wall.0.saturating_sub(self.log.fresh.0) <= micros_max
    }

    fn walk<'a>(
        &mut self,
        mut walk: FrameWalk<'a>,
        group: &mut Group<'a>,
        frames: &[InboundFrame<'_>],
        out: &mut ShardEffects,
    ) {
        while let Some(transaction) = walk.next(&self.store, self.spread, &mut group.operations) {
            group.transactions.push(transaction);
            if group.transactions.len() == GROUP_TRANSACTIONS
                || spillway_runtime::fault_point!(GroupOfOne)
            {
                self.execute_group(group, frames, out);
            }
        }
    }

    fn execute_group(
        &mut self,
        group: &mut Group<'_>,
        frames: &[InboundFrame<'_>],
        out: &mut ShardEffects,
    ) {
        // Each stage in a tight loop of its own, so that the loads it depends on overlap.
        for stage in PrefetchStage::ALL {
            for operation in &group.operations {
                self.store.prefetch(stage, operation);
            }
        }
        for transaction in &group.transactions {
            let operations = &group.operations
                [transaction.operations.0 as usize..transaction.operations.1 as usize];
            let frame = &frames[transaction.frame as usize];
            let service = group.frames[transaction.frame as usize];
            self.execute_transaction(transaction, operations, service);
            if transaction.last_of_frame {
                self.answer(frame, service, out);
            }
            if self.store.open_bytes >= FRAGMENT_BYTES_CLOSE
                || spillway_runtime::fault_point!(FragmentClosedEarly)
            {
                self.hand_over(out);
            }
        }
        group.transactions.clear();
        group.operations.clear();
    }

    /// Executes one transaction and adds its outcome to the frame's answer.
    fn execute_transaction(
        &mut self,
        transaction: &PreparedTransaction,
        operations: &[PreparedOperation<'_>],
        service: FrameService,
    ) {
        let mut results = std::mem::take(&mut self.scratch.results);
        results.clear();
        let (status, operation) = match service.consistency {
            Consistency::Behind => (OutcomeStatus::Behind, 0),
            Consistency::Strong | Consistency::Covered => {
                self.outcome_of(transaction, operations, service.session, &mut results)
            }
        };
        self.count(status);
        let outcomes = &mut self.scratch.outcomes;
        if status.is_transient() {
            outcomes.retry_after_ms = RETRY_AFTER_MS;
        }
        if !status.is_committed() {
            results.clear();
        }
        outcomes.outcomes.push(OutcomeHead {
            status: status as u16,
            operation,
            data_length: results.len() as u32,
        });
        outcomes.bytes.extend_from_slice(&results);
        self.scratch.results = results;
    }

    fn count(&mut self, status: OutcomeStatus) {
        match status {
            // Counted where it is known whether it was executed now or before.
            OutcomeStatus::Committed | OutcomeStatus::CommittedResultsNotKept => {}
            OutcomeStatus::CheckFailed
            | OutcomeStatus::Duplicate
            | OutcomeStatus::NotFound
            | OutcomeStatus::BoundsViolated
            | OutcomeStatus::Overflow
            | OutcomeStatus::NullOperand => self.counters.failed += 1,
            _ => self.counters.refused += 1,
        }
    }

    fn outcome_of(
        &mut self,
        transaction: &PreparedTransaction,
        operations: &[PreparedOperation<'_>],
        session: SessionId,
        results: &mut Vec<u8>,
    ) -> (OutcomeStatus, u16) {
        if self.log.failed && self.leads() {
            return (OutcomeStatus::LogFailed, 0);
        }
        if let Some(status) = self.known_outcome(transaction, session, results) {
            return (status, 0);
        }
        if let Some(refused) = transaction.refused {
            return refused;
        }
        if transaction.writes {
            if self.log.full {
                return (OutcomeStatus::LogFull, 0);
            }
            if self.log.limited || spillway_runtime::fault_point!(OverloadedOnce) {
                return (OutcomeStatus::Overloaded, 0);
            }
            if self.sessions.bytes() > self.options.outcomes_bytes_max {
                // Clients that acknowledge nothing: their outcomes must not fill the memory.
                return (OutcomeStatus::Overloaded, 0);
            }
            let has_room = self.store.arena.has_room(transaction.arena_bytes);
            if !has_room || spillway_runtime::fault_point!(MemoryRefused) {
                return (OutcomeStatus::MemoryFull, 0);
            }
        }
        self.run(transaction, operations, session, results)
    }

    /// How a transaction ended without being executed now: what its session knows of its number.
    fn known_outcome(
        &mut self,
        transaction: &PreparedTransaction,
        session: SessionId,
        results: &mut Vec<u8>,
    ) -> Option<OutcomeStatus> {
        if session.0 == 0 && !transaction.writes {
            return None;
        }
        let Some(held) = self.sessions.get_mut(session) else {
            return Some(OutcomeStatus::SessionUnknown);
        };
        match held.lookup(transaction.number, transaction.request_hash) {
            Lookup::New => None,
            Lookup::Committed(kept) => {
                results.extend_from_slice(kept);
                self.counters.repeated += 1;
                Some(OutcomeStatus::Committed)
            }
            Lookup::CommittedResultsNotKept => {
                self.counters.repeated += 1;
                Some(OutcomeStatus::CommittedResultsNotKept)
            }
            Lookup::Reused => Some(OutcomeStatus::NumberReused),
            Lookup::OutOfWindow => Some(OutcomeStatus::NumberOutOfWindow),
        }
    }

    fn run(
        &mut self,
        transaction: &PreparedTransaction,
        operations: &[PreparedOperation<'_>],
        session: SessionId,
        results: &mut Vec<u8>,
    ) -> (OutcomeStatus, u16) {
        self.store.transaction_begin();
        let answer_bytes = self.scratch.outcomes.bytes.len();
        for (at, operation) in operations.iter().enumerate() {
            let executed = self.store.execute(operation, results);
            let told = executed.and_then(|()| answer_fits(transaction, answer_bytes, results));
            if let Err(status) = told {
                self.store.transaction_rollback();
                return (status, at as u16);
            }
        }
        if transaction.writes {
            let local = transaction.outcome_partition;
            self.store.open_written(local);
            let kept = (results.len() <= OUTCOME_RESULT_BYTES_MAX).then_some(&results[..]);
            let held = self.sessions.get_mut(session).expect("looked up before");
            let acknowledged_below = held.acknowledged_below();
            self.store.open_bytes += self.store.partitions[usize::from(local)].push_outcome(
                session.0,
                transaction.number,
                acknowledged_below,
                transaction.request_hash,
                kept,
            );
            let (number, request_hash) = (transaction.number, transaction.request_hash);
            self.sessions.record(session, number, request_hash, kept, self.store.stamp);
        }
        self.store.transaction_commit();
        self.counters.committed += 1;
        (OutcomeStatus::Committed, 0)
    }

    /// Ends a frame's answer: it waits for the newest effect it may have seen.
    fn answer(&mut self, frame: &InboundFrame<'_>, service: FrameService, out: &mut ShardEffects) {
        let waits = self.waits(service.consistency == Consistency::Strong, out);
        let outcomes = &mut self.scratch.outcomes;
        let (connection, request) = (frame.connection, frame.header.request);
        self.held.hold(waits, connection, FrameKind::Outcomes, request, outcomes);
        outcomes.retry_after_ms = 0;
        outcomes.outcomes.clear();
        outcomes.bytes.clear();
    }
}
