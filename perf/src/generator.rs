//! The generator: fills frames, keeps them in flight, and keeps account of the answers.

use std::collections::VecDeque;
use std::sync::Arc;

use spillway_net::client::{
    Batch, BatchError, ClientError, FrameAnswer, FrameResult, FrameToken, LossReason, Pipeline,
    Wait,
};
use spillway_net::message::{ArchivedOutcomeHead, OutcomeStatus, RefusalCode};
use spillway_runtime::clock::{MonotonicNanos, monotonic_now};
use spillway_runtime::metrics::Histogram;

use crate::disturbance::{Gaps, WindowLatency};
use crate::drive::{LoadPlan, Moment, Pace, Snapshot};
use crate::error::PerfError;
use crate::identity::Origin;
use crate::ledger::Ledger;
use crate::recorder::{Counts, Latency, Recorder};
use crate::report::Lateness;
use crate::schedule::Phases;
use crate::script::LoadView;
use crate::workload::{Answer, Workload};

/// Sleep at most so long, so that time itself is noticed.
pub(crate) const TICK_NS: u64 = 1_000_000;
/// How long a connection rests whose frame was refused because no node leads.
const TAKEOVER_PAUSE_MS: u32 = 20;
/// Queued payload after which what was filled is sent before more is filled.
const QUEUED_BYTES_MAX: usize = 64 << 10;

/// A frame without an answer.
#[derive(Clone, Copy, Debug)]
struct OpenFrame {
    sequence: u64,
    intended_ns: u64,
    counter: u64,
    transactions: u64,
    /// Number of the event of its sending.
    sent: u64,
}

#[derive(Clone, Debug, Default)]
struct Connection {
    frames: VecDeque<OpenFrame>,
    /// The node asked not to be sent anything before.
    paused_until_ns: u64,
}

/// Which answers end the burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// While loading rows: anything but committed.
    Load,
    /// During the burst: what a sound node and generator never say to each other.
    Burst,
    /// After the restart: nothing; what is wrong is counted.
    Resolve,
}

/// What became of the frames that were unanswered when the node was killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Frames sent again and answered.
    pub frames: u64,
    /// Their transactions.
    pub transactions: u64,
    /// Of these, committed.
    pub committed: u64,
    /// Of these, answered as a repeated transaction never may.
    pub wrong: u64,
    /// Transactions whose outcome the node could not tell.
    pub unknown: u64,
    /// What was wrong, for people.
    pub findings: Vec<String>,
}

/// What answers change.
pub(crate) struct Books<'w> {
    pub(crate) workload: &'w mut dyn Workload,
    pub(crate) ledger: Ledger,
    pub(crate) recorder: Recorder,
    pub(crate) resolved: Resolved,
    pub(crate) strictness: Strictness,
    /// Whether nodes are killed in the middle of the load: then some answers are no failure.
    pub(crate) is_disturbed: bool,
    /// Who wants to know of commits as they happen.
    pub(crate) view: Option<Arc<LoadView>>,
    pub(crate) gaps: Gaps,
    /// Transactions that were sent but whose outcome nobody could tell.
    pub(crate) unknown: u64,
    /// Transactions whose outcome was asked for again after it had been told to be unknown.
    asked_again: u64,
    /// Frames with an unknown outcome that is to be asked for again.
    doubtful: Vec<(FrameToken, OpenFrame)>,
    workload_name: &'static str,
    connections: Vec<Connection>,
    /// Frames of all connections.
    open: usize,
    event: u64,
    began: MonotonicNanos,
    failure: Option<PerfError>,
}

/// The generator.
pub struct Generator<'w> {
    pub(crate) pipeline: Pipeline,
    pub(crate) books: Books<'w>,
    batch: Batch,
    batch_transactions: usize,
    queued_bytes: usize,
    /// When a frame that was due last found no connection with room.
    blocked_at_ns: Option<u64>,
}

impl<'w> Generator<'w> {
    /// Over connections that are ready.
    pub fn new(
        pipeline: Pipeline,
        workload: &'w mut dyn Workload,
        workload_name: &'static str,
        batch_transactions: usize,
        phases: Phases,
    ) -> Self {
        let connections = pipeline.connections();
        Self {
            pipeline,
            books: Books {
                workload,
                ledger: Ledger::new(connections),
                recorder: Recorder::new(phases),
                resolved: Resolved::default(),
                strictness: Strictness::Load,
                is_disturbed: false,
                view: None,
                gaps: Gaps::default(),
                unknown: 0,
                asked_again: 0,
                doubtful: Vec::new(),
                workload_name,
                connections: vec![Connection::default(); connections],
                open: 0,
                event: 0,
                began: monotonic_now(),
                failure: None,
            },
            batch: Batch::new(),
            batch_transactions,
            queued_bytes: 0,
            blocked_at_ns: None,
        }
    }

    /// From now on time counts from here, and answers are judged like this.
    pub fn begin(&mut self, strictness: Strictness) {
        self.books.strictness = strictness;
        self.books.began = monotonic_now();
        self.blocked_at_ns = None;
        for connection in &mut self.books.connections {
            connection.paused_until_ns = 0;
        }
    }

    /// When [`Generator::begin`] was.
    pub fn began(&self) -> MonotonicNanos {
        self.books.began
    }

    /// Nanoseconds since [`Generator::begin`].
    pub fn now_ns(&self) -> u64 {
        monotonic_now().saturating_nanos_since(self.books.began)
    }

    /// Frames without an answer.
    pub fn open_frames(&self) -> usize {
        self.books.open
    }

    /// Frames of one connection without an answer.
    pub fn open_frames_of(&self, connection: usize) -> usize {
        self.books.connections[connection].frames.len()
    }

    /// Fails if no connection will ever take a frame again.
    pub(crate) fn check_connections(&self) -> Result<(), PerfError> {
        let mut ended = (0..self.pipeline.connections()).map(|at| self.pipeline.ended(at));
        match ended.next().flatten() {
            Some(reason) if ended.all(|other| other.is_some()) => {
                let text = format!("all connections have ended: {}", reason.describe());
                Err(PerfError::Refused(text))
            }
            _ => Ok(()),
        }
    }

    /// Whether a connection would take a frame and the node did not ask for patience.
    pub fn has_room(&self, connection: usize, frames_max: usize, now_ns: u64) -> bool {
        let state = &self.books.connections[connection];
        state.frames.len() < frames_max
            && state.paused_until_ns <= now_ns
            && self.pipeline.can_submit(connection)
    }

    /// Fills a frame with the connection's next transactions and queues it.
    pub fn submit(
        &mut self,
        connection: usize,
        intended_ns: u64,
        was_blocked: bool,
    ) -> Result<(), PerfError> {
        let counter = self.books.ledger.connections[connection].sent;
        self.batch.clear();
        for offset in 0..self.batch_transactions as u64 {
            let origin = Origin { connection: connection as u16, counter: counter + offset };
            if !appended(self.books.workload.fill(origin, &mut self.batch), &mut self.batch)? {
                break;
            }
        }
        let transactions = self.batch.len() as u64;
        self.books.ledger.connections[connection].sent += transactions;
        self.queue(connection, intended_ns, counter, transactions)?;
        let now_ns = self.now_ns();
        self.books.recorder.sent(now_ns, intended_ns, transactions, was_blocked);
        self.flush_if_much()
    }

    /// Queues what the batch holds.
    fn queue(
        &mut self,
        connection: usize,
        intended_ns: u64,
        counter: u64,
        transactions: u64,
    ) -> Result<(), PerfError> {
        self.queued_bytes += self.batch.payload_bytes();
        let token = self
            .pipeline
            .submit(connection, &mut self.batch)
            .map_err(PerfError::client("submitting a frame"))?;
        self.books.event += 1;
        self.books.open += 1;
        self.books.connections[connection].frames.push_back(OpenFrame {
            sequence: token.sequence,
            intended_ns,
            counter,
            transactions,
            sent: self.books.event,
        });
        Ok(())
    }

    fn flush_if_much(&mut self) -> Result<(), PerfError> {
        if self.queued_bytes >= QUEUED_BYTES_MAX {
            self.poll(Wait::No)?;
        }
        Ok(())
    }

    /// A frame is due and no connection has room for it.
    pub(crate) fn blocked(&mut self, now_ns: u64) {
        self.blocked_at_ns = Some(now_ns);
    }

    /// Whether a frame that was due at `due_ns` had to wait for room.
    pub(crate) fn was_blocked_since(&self, due_ns: u64) -> bool {
        self.blocked_at_ns.is_some_and(|blocked_at_ns| blocked_at_ns >= due_ns)
    }

    /// The load as an observer sees it.
    pub(crate) fn snapshot(&self, plan: &LoadPlan, now_ns: u64, moment: Moment) -> Snapshot {
        let mut total = self.books.recorder.total;
        total.offered = total.sent;
        let mut backlog = 0;
        if let Pace::Open(pacer) = &plan.pace {
            backlog = pacer.backlog(now_ns);
            total.offered += backlog * self.batch_transactions as u64;
        }
        Snapshot {
            now_ns,
            phase: plan.phases.at(now_ns),
            total,
            // Reading a histogram costs some microseconds.
            latency: match moment {
                Moment::Second => Latency::of(&self.books.recorder.latency_second),
                _ => Latency::default(),
            },
            frames_open: self.books.open,
            backlog,
        }
    }

    /// Sends what is queued and takes the answers that are there.
    pub fn poll(&mut self, wait: Wait) -> Result<usize, PerfError> {
        self.queued_bytes = 0;
        let Self { pipeline, books, .. } = self;
        let answers = pipeline
            .poll(wait, &mut |answer| books.answered(&answer))
            .map_err(PerfError::client("exchanging frames"))?;
        if !self.books.doubtful.is_empty() {
            self.resolve();
        }
        match self.books.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(answers),
        }
    }

    /// Asks again for outcomes that were told to be unknown.
    fn resolve(&mut self) {
        for (token, frame) in std::mem::take(&mut self.books.doubtful) {
            match self.pipeline.resolve(token) {
                Ok(FrameToken { connection, sequence }) => {
                    self.books.asked_again += frame.transactions;
                    self.books.open += 1;
                    let frames = &mut self.books.connections[connection].frames;
                    frames.push_back(OpenFrame { sequence, ..frame });
                }
                Err(ClientError::InFlightMax(_)) => self.books.doubtful.push((token, frame)),
                Err(_) => self.books.unknown += frame.transactions,
            }
        }
    }

    /// Inserts the rows that must be there before the burst. `progress` gets the rows done.
    pub fn load(
        &mut self,
        frames_max: usize,
        progress: &mut dyn FnMut(u64) -> Result<(), PerfError>,
    ) -> Result<(), PerfError> {
        self.begin(Strictness::Load);
        let rows = self.books.workload.load_rows();
        let connections = self.pipeline.connections();
        let shards: Vec<u16> = (0..connections).map(|at| self.pipeline.shard_of(at)).collect();
        let mut cursors = Cursors::new(&shards);
        while cursors.advance(self, rows, frames_max)? {
            self.poll(Wait::Nanos(TICK_NS))?;
            progress(cursors.done(rows))?;
        }
        while self.books.open > 0 {
            self.poll(Wait::Nanos(TICK_NS))?;
            progress(rows)?;
        }
        Ok(())
    }

    /// Fills a frame with rows of one shard from `next` on and queues it; tells where to go on.
    fn submit_load(
        &mut self,
        connection: usize,
        shard: Option<u16>,
        mut next: u64,
        rows: u64,
    ) -> Result<u64, PerfError> {
        const ROWS_PER_FRAME: usize = 1000;
        self.batch.clear();
        while next < rows && self.batch.len() < ROWS_PER_FRAME {
            let is_here = shard.is_none_or(|shard| self.books.workload.load_shard(next) == shard);
            if is_here
                && !appended(self.books.workload.load(next, &mut self.batch), &mut self.batch)?
            {
                break;
            }
            next += 1;
        }
        let transactions = self.batch.len() as u64;
        if transactions > 0 {
            let now_ns = self.now_ns();
            self.queue(connection, now_ns, 0, transactions)?;
            self.flush_if_much()?;
        }
        Ok(next)
    }

    /// Fills every connection up to what it may have in flight, and one frame more, without
    /// waiting for answers: the node is about to be killed while it works on them.
    pub fn last_volley(&mut self, in_flight: usize) -> Result<(), PerfError> {
        let now_ns = self.now_ns();
        for connection in 0..self.pipeline.connections() {
            for _ in self.open_frames_of(connection)..=in_flight {
                if self.pipeline.can_submit(connection) {
                    self.submit(connection, now_ns, false)?;
                }
            }
        }
        self.poll(Wait::No)?;
        Ok(())
    }

    /// Rows that are loaded before the burst.
    pub fn load_rows(&self) -> u64 {
        self.books.workload.load_rows()
    }

    /// Transactions of the hold phase so far.
    pub fn hold_counts(&self) -> Counts {
        self.books.recorder.hold
    }

    /// Transactions whose outcome nobody could tell to the end.
    pub fn unknown(&self) -> u64 {
        let doubtful: u64 = self.books.doubtful.iter().map(|(_, frame)| frame.transactions).sum();
        self.books.unknown + doubtful
    }

    /// Transactions whose outcome was told to be unknown, and asked for again.
    pub fn asked_again(&self) -> u64 {
        self.books.asked_again
    }

    /// Pauses between committed answers.
    pub fn gaps(&self) -> &Gaps {
        &self.books.gaps
    }

    /// Some answers are no failure, for nodes are killed on purpose; and these stretches are
    /// looked at by themselves.
    pub fn expect_disturbance(&mut self, windows: Vec<(String, u64, u64)>) {
        self.books.is_disturbed = true;
        self.books.recorder.watch(windows);
    }

    /// What the stretches were like.
    pub fn windows(&self) -> Vec<WindowLatency> {
        self.books.recorder.windows()
    }

    /// Latency of the hold phase.
    pub fn latency(&self) -> Latency {
        Latency::of(&self.books.recorder.latency_hold)
    }

    /// How punctual frames left in the hold phase.
    pub fn lateness(&self) -> Lateness {
        let Recorder { lateness, lateness_blocked, .. } = &self.books.recorder;
        let p99_us = |of: &Histogram| of.percentile(99.0) as f64 / 1e3;
        Lateness {
            p99_us: p99_us(lateness),
            blocked_p99_us: p99_us(lateness_blocked),
            frames: lateness.count(),
            blocked_frames: lateness_blocked.count(),
        }
    }

    /// What became of the frames that were unanswered when the node was killed; those that still
    /// are count as unknown.
    pub fn resolved(&self) -> Resolved {
        let mut resolved = self.books.resolved.clone();
        let frames = self.books.connections.iter().flat_map(|connection| &connection.frames);
        let unanswered: u64 = frames.map(|frame| frame.transactions).sum();
        resolved.unknown += unanswered;
        if resolved.unknown > 0 {
            let unknown = resolved.unknown;
            resolved.findings.push(format!(
                "{unknown} transactions in flight at the kill got no answer after the restart"
            ));
        }
        resolved
    }

    /// Ends all connections; what is left is the account.
    pub fn finish(self) -> (Counts, Ledger) {
        (self.books.recorder.total, self.books.ledger)
    }

    /// Takes answers until none has come for `quiet_ns`, or all are there.
    pub fn drain(&mut self, quiet_ns: u64) -> Result<(), PerfError> {
        let mut quiet_since = monotonic_now();
        while self.books.open > 0 || !self.books.doubtful.is_empty() {
            if self.poll(Wait::Nanos(TICK_NS))? > 0 {
                quiet_since = monotonic_now();
            } else if monotonic_now().saturating_nanos_since(quiet_since) >= quiet_ns {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Whether a node refuses a frame like this while another one takes over.
const fn is_of_takeover(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::NotLeader | RefusalCode::Stopping | RefusalCode::LogUnavailable)
}

/// Whether an operation went into the batch; false if the frame is full and must go first.
fn appended(result: Result<(), BatchError>, batch: &mut Batch) -> Result<bool, PerfError> {
    match result {
        Ok(()) => Ok(true),
        Err(BatchError::FrameFull | BatchError::Transactions) if !batch.is_empty() => {
            batch.cancel();
            Ok(false)
        }
        Err(error) => Err(PerfError::Client { doing: "filling a frame", error: error.into() }),
    }
}

/// How far the loading of each shard's rows has come.
struct Cursors {
    /// The shard to select by; none if there is but one. Its connections. The next row.
    shards: Vec<(Option<u16>, Vec<usize>, u64)>,
}

impl Cursors {
    fn new(connection_shards: &[u16]) -> Self {
        let mut names = connection_shards.to_vec();
        names.sort_unstable();
        names.dedup();
        let select = |shard| (names.len() > 1).then_some(shard);
        let connections = |shard| {
            let all = connection_shards.iter().enumerate();
            all.filter(|(_, one)| **one == shard).map(|(at, _)| at).collect()
        };
        Self { shards: names.iter().map(|&s| (select(s), connections(s), 0)).collect() }
    }

    /// Queues as many frames as there is room for; false once all rows are queued.
    fn advance(
        &mut self,
        generator: &mut Generator<'_>,
        rows: u64,
        frames_max: usize,
    ) -> Result<bool, PerfError> {
        let mut is_unfinished = false;
        for (shard, connections, next) in &mut self.shards {
            for &connection in &*connections {
                let now_ns = generator.now_ns();
                if *next < rows && generator.has_room(connection, frames_max, now_ns) {
                    *next = generator.submit_load(connection, *shard, *next, rows)?;
                }
            }
            is_unfinished |= *next < rows;
        }
        Ok(is_unfinished)
    }

    fn done(&self, rows: u64) -> u64 {
        self.shards.iter().map(|shard| shard.2).min().unwrap_or(rows)
    }
}

impl Books<'_> {
    fn answered(&mut self, answer: &FrameAnswer<'_>) {
        self.event += 1;
        let connection = answer.token.connection;
        let frames = &mut self.connections[connection].frames;
        let at = frames.iter().position(|frame| frame.sequence == answer.token.sequence);
        let Some(frame) = at.and_then(|at| frames.remove(at)) else {
            self.fail(PerfError::Refused("an answer to a frame that was never sent".to_owned()));
            return;
        };
        self.open -= 1;
        match &answer.result {
            FrameResult::Outcomes { retry_after_ms, outcomes, bytes, .. } => {
                self.outcomes(connection, &frame, *retry_after_ms, outcomes, bytes);
            }
            FrameResult::Refused { code, message, retry_after_ms } => {
                self.refused(connection, &frame, *retry_after_ms);
                if *retry_after_ms == 0 && !(self.is_disturbed && is_of_takeover(*code)) {
                    let text = format!("the node refused a frame ({code:?}): {message}");
                    self.fail(PerfError::Refused(text));
                }
            }
            FrameResult::NotSent(_) => self.refused(connection, &frame, 0),
            FrameResult::Unknown(reason) => self.lost_sight(answer.token, frame, *reason),
            FrameResult::Answer { .. } => {
                self.fail(PerfError::Refused("an answer of another kind".to_owned()));
            }
        }
    }

    fn outcomes(
        &mut self,
        connection: usize,
        frame: &OpenFrame,
        retry_after_ms: u32,
        outcomes: &[ArchivedOutcomeHead],
        bytes: &[u8],
    ) {
        let now_ns = monotonic_now().saturating_nanos_since(self.began);
        if outcomes.len() as u64 != frame.transactions {
            let (found, sent) = (outcomes.len(), frame.transactions);
            let text = format!("{found} outcomes for a frame of {sent} transactions");
            self.fail(PerfError::Refused(text));
            return;
        }
        let is_committed = |outcome: &ArchivedOutcomeHead| {
            outcome.status.to_native() <= OutcomeStatus::CommittedResultsNotKept as u16
        };
        let mut committed = 0;
        if self.strictness != Strictness::Load && outcomes.iter().all(is_committed) {
            committed = frame.transactions;
            let ledger = &mut self.ledger.connections[connection];
            ledger.acknowledged.insert(frame.counter, frame.counter + frame.transactions);
        } else {
            for (counter, outcome) in (frame.counter..).zip(outcomes) {
                let status = OutcomeStatus::from_wire(outcome.status.to_native());
                committed += u64::from(self.outcome(connection, counter, status));
            }
        }
        if retry_after_ms > 0 {
            self.pause(connection, now_ns, retry_after_ms);
        }
        if self.strictness != Strictness::Load && self.workload.observes() {
            self.observe(connection, frame, outcomes, bytes);
        }
        match self.strictness {
            Strictness::Load => {}
            Strictness::Burst => {
                let refused = frame.transactions - committed;
                if committed > 0 {
                    self.gaps.committed(now_ns);
                }
                if let Some(view) = &self.view {
                    view.committed_add(committed);
                }
                self.recorder.answered(now_ns, frame.intended_ns, committed, refused);
            }
            Strictness::Resolve => {
                self.resolved.frames += 1;
                self.resolved.transactions += frame.transactions;
                self.resolved.committed += committed;
            }
        }
    }

    /// Books one outcome; tells whether it is a commit.
    fn outcome(&mut self, connection: usize, counter: u64, status: Option<OutcomeStatus>) -> bool {
        let Some(status) = status else {
            self.fail(PerfError::Refused("an outcome that nobody knows".to_owned()));
            return false;
        };
        if self.strictness == Strictness::Load {
            if !status.is_committed() {
                self.fail_outcome(status);
            }
            return status.is_committed();
        }
        let ledger = &mut self.ledger.connections[connection];
        if status.is_committed() {
            ledger.acknowledged.insert(counter, counter + 1);
            return true;
        }
        let is_business = matches!(status, OutcomeStatus::BoundsViolated);
        // A leader whose log has failed takes nothing in until another one leads.
        let is_of_takeover = self.is_disturbed
            && matches!(
                status,
                OutcomeStatus::Unavailable | OutcomeStatus::Behind | OutcomeStatus::LogFailed
            );
        if is_business || is_of_takeover || status == OutcomeStatus::Overloaded {
            ledger.refused.insert(counter, counter + 1);
            return false;
        }
        if self.strictness == Strictness::Resolve {
            self.resolved.wrong += 1;
            if self.resolved.findings.len() < 8 {
                self.resolved.findings.push(format!(
                    "transaction {counter} of connection {connection}, sent again after the \
                     restart, was answered {status:?}"
                ));
            }
            return false;
        }
        ledger.refused.insert(counter, counter + 1);
        self.fail_outcome(status);
        false
    }

    fn observe(
        &mut self,
        connection: usize,
        frame: &OpenFrame,
        outcomes: &[ArchivedOutcomeHead],
        bytes: &[u8],
    ) {
        let mut rest = bytes;
        for (counter, outcome) in (frame.counter..).zip(outcomes) {
            let length = outcome.data_length.to_native() as usize;
            let Some((data, after)) = rest.split_at_checked(length) else {
                self.fail(PerfError::Refused("outcomes with too little data".to_owned()));
                return;
            };
            rest = after;
            let status = OutcomeStatus::from_wire(outcome.status.to_native());
            if status.is_some_and(OutcomeStatus::is_committed) {
                self.workload.answered(&Answer {
                    origin: Origin { connection: connection as u16, counter },
                    sent: frame.sent,
                    answered: self.event,
                    data,
                });
            }
        }
    }

    fn refused(&mut self, connection: usize, frame: &OpenFrame, retry_after_ms: u32) {
        let now_ns = monotonic_now().saturating_nanos_since(self.began);
        if self.strictness == Strictness::Load {
            let text = "the node refused a frame while rows were loaded".to_owned();
            self.fail(PerfError::Refused(text));
            return;
        }
        let ledger = &mut self.ledger.connections[connection];
        ledger.refused.insert(frame.counter, frame.counter + frame.transactions);
        self.recorder.answered(now_ns, frame.intended_ns, 0, frame.transactions);
        self.pause(connection, now_ns, retry_after_ms);
    }

    fn lost_sight(&mut self, token: FrameToken, frame: OpenFrame, reason: LossReason) {
        use LossReason::{GaveUp, LeadersLost, NoLeader, Refused};
        if self.is_disturbed && matches!(reason, GaveUp | LeadersLost | NoLeader | Refused) {
            self.doubtful.push((token, frame));
            return;
        }
        self.unknown += frame.transactions;
        if self.strictness == Strictness::Resolve {
            self.resolved.unknown += frame.transactions;
            return;
        }
        let text = format!("a frame has an unknown outcome: {}", reason.describe());
        self.fail(PerfError::Refused(text));
    }

    fn pause(&mut self, connection: usize, now_ns: u64, retry_after_ms: u32) {
        let retry_after_ms = match retry_after_ms {
            0 if self.is_disturbed => TAKEOVER_PAUSE_MS,
            given => given,
        };
        let until_ns = now_ns + u64::from(retry_after_ms) * 1_000_000;
        self.connections[connection].paused_until_ns = until_ns;
    }

    fn fail_outcome(&mut self, status: OutcomeStatus) {
        let hint = match status {
            OutcomeStatus::MemoryFull => {
                ": its memory is full; give it more with --memory-gib, or make the burst smaller"
            }
            OutcomeStatus::LogFull => {
                ": its log is full; give it more with --log-gib, or make the burst smaller"
            }
            OutcomeStatus::LogFailed => ": its log device failed; see its output with --keep",
            _ => "",
        };
        let workload = self.workload_name;
        self.fail(PerfError::Outcome { status, workload, hint });
    }

    fn fail(&mut self, failure: PerfError) {
        // The first failure is the cause, later ones follow from it.
        self.failure.get_or_insert(failure);
    }
}
