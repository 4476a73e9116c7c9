//! The core of the client: one session on one connection to one shard. Pure: time, bytes and
//! connection events come in, frames, connects and results go out.

use crate::client::answer::{FrameAnswer, FrameResult, FrameToken, LossReason};
use crate::client::backoff::Backoff;
use crate::client::batch::Batch;
use crate::client::error::ClientError;
use crate::client::table::Router;
use crate::client::window::Window;
use crate::frame::{Assembled, FrameAssembler, FrameHeader, FrameKind, HEADER_BYTES};
use crate::ids::Lsn;
use crate::limits::{
    ANSWER_PAYLOAD_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, SESSION_FRAMES_IN_FLIGHT_MAX,
    SESSION_NUMBERS_WINDOW, fingerprint,
};
use crate::message::{
    self, ArchivedOutcomes, ArchivedRefusal, Hello, OutcomeStatus, Outcomes, Payload, Refusal,
    RefusalCode, Welcome,
};

/// Request id of the greeting and of what the node says unasked.
const REQUEST_CONNECTION: u64 = 0;
/// Payload limit until the node has greeted, bytes.
const GREETING_BYTES_MAX: usize = 64 << 10;
/// Damaged frames after one another that are taken for accidents of the network.
const DAMAGED_MAX: u32 = 3;
/// Wait before a frame is sent again that the node refused without naming a time.
const RESEND_NANOS_DEFAULT: u64 = 100_000_000;
const NANOS_PER_MS: u64 = 1_000_000;

/// What a core is to do.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// Index of the connection, for tokens.
    pub connection: usize,
    /// The session to attach, 0 for none: then only requests can be sent.
    pub session: u64,
    /// The cluster that must answer, 0 for any.
    pub cluster: u128,
    /// The shard that must answer.
    pub shard: u16,
    /// How many shards the node must have, 0 for any number.
    pub shards: usize,
    /// Unanswered frames at most.
    pub frames_in_flight_max: usize,
    /// An answer that takes longer makes the core reconnect and ask again.
    pub request_timeout_nanos: u64,
    /// A frame without an answer for so long is reported as lost.
    pub give_up_nanos: u64,
    /// How long the first connection may take, all attempts included; 0: one attempt.
    pub connect_nanos: u64,
    /// Whether a lost connection is made anew.
    pub reconnect: bool,
    /// Seed of the reconnect jitter.
    pub seed: u64,
}

/// What happens to a core.
#[derive(Debug)]
pub enum ClientInput<'a> {
    /// Begin: comes first, once.
    Start,
    /// The connection asked for stands.
    Connected,
    /// Bytes arrived on it.
    Received(&'a [u8]),
    /// It could not be made, or it ended. The text is for people.
    Disconnected(&'a str),
    /// Time has passed; see [`ClientCore::deadline`].
    Tick,
}

/// What a core wants done. Calls come in the order in which they must be carried out.
pub trait ClientEffects {
    /// Make a connection; answer with `Connected` or `Disconnected`.
    fn connect(&mut self);
    /// Send a frame on it.
    fn send(&mut self, frame: &[u8]);
    /// Close it, or stop making it. Nothing of it may reach the core any more.
    fn close(&mut self);
    /// A frame has ended.
    fn answer(&mut self, answer: FrameAnswer<'_>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Waiting { until: u64 },
    Connecting { deadline: u64 },
    Greeting { deadline: u64 },
    Ready,
    Ended(LossReason),
}

/// See the module.
#[derive(Debug)]
pub struct ClientCore {
    options: CoreOptions,
    state: State,
    started_at: u64,
    /// See `Hello::attempt`.
    attempt: u64,
    assembler: FrameAssembler,
    spare: Vec<Vec<u8>>,
    window: Window,
    backoff: Backoff,
    damaged: u32,
    transactions_last: usize,
    welcome: Option<Welcome>,
    error: Option<ClientError>,
}

/// The kind that answers a request of `kind`.
pub const fn answer_kind(kind: FrameKind) -> Option<FrameKind> {
    Some(match kind {
        FrameKind::Hello => FrameKind::Welcome,
        FrameKind::SessionOpen => FrameKind::SessionOpened,
        FrameKind::Submit => FrameKind::Outcomes,
        FrameKind::Scan => FrameKind::ScanPage,
        FrameKind::TableCreate => FrameKind::TableCreated,
        FrameKind::TableDrop | FrameKind::SessionClose => FrameKind::Done,
        FrameKind::TableList => FrameKind::TableListing,
        FrameKind::Status => FrameKind::StatusReport,
        _ => return None,
    })
}

/// Whether a second copy of a request does no harm and gets the answer of the first.
const fn is_repeatable(kind: FrameKind) -> bool {
    !matches!(kind, FrameKind::TableDrop | FrameKind::SessionClose)
}

impl ClientCore {
    /// A core that has not begun.
    ///
    /// # Panics
    /// If `frames_in_flight_max` is 0 or above the limit.
    pub fn new(options: CoreOptions) -> Self {
        assert!(
            (1..=SESSION_FRAMES_IN_FLIGHT_MAX).contains(&options.frames_in_flight_max),
            "1 to {SESSION_FRAMES_IN_FLIGHT_MAX} frames may be in flight"
        );
        Self {
            backoff: Backoff::new(options.seed),
            options,
            state: State::New,
            started_at: 0,
            attempt: 0,
            assembler: FrameAssembler::default(),
            spare: Vec::new(),
            window: Window::default(),
            damaged: 0,
            transactions_last: 1,
            welcome: None,
            error: None,
        }
    }

    /// What the node said of itself last.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// Whether frames can be sent at once.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Why the core has ended, if it has.
    pub fn ended(&self) -> Option<LossReason> {
        match self.state {
            State::Ended(reason) => Some(reason),
            _ => None,
        }
    }

    /// What went wrong last. Cleared by taking it.
    pub fn take_error(&mut self) -> Option<ClientError> {
        self.error.take()
    }

    /// The session, 0 for none.
    pub fn session(&self) -> u64 {
        self.options.session
    }

    /// The shard it talks to.
    pub fn shard(&self) -> u16 {
        self.options.shard
    }

    /// Frames and requests without an end.
    pub fn in_flight(&self) -> usize {
        self.window.unanswered()
    }

    /// Whether [`ClientCore::submit`] would take a batch as long as the last one.
    pub fn can_submit(&self) -> bool {
        self.options.session != 0 && self.free(self.transactions_last).is_ok()
    }

    fn free(&self, transactions: usize) -> Result<(), ClientError> {
        let numbers = self.window.next_number() - self.window.acknowledged_below();
        if let State::Ended(reason) = self.state {
            Err(ClientError::Ended(reason.describe()))
        } else if self.window.unanswered() >= self.options.frames_in_flight_max
            || numbers + transactions as u64 > SESSION_NUMBERS_WINDOW
        {
            Err(ClientError::InFlightMax(self.window.unanswered()))
        } else {
            Ok(())
        }
    }

    /// Takes the batch's content as one frame and leaves the batch empty. The frame is sent at
    /// once if the connection stands, else when it does.
    pub fn submit(
        &mut self,
        now: u64,
        batch: &mut Batch,
        effects: &mut impl ClientEffects,
    ) -> Result<FrameToken, ClientError> {
        batch.check_complete()?;
        if self.options.session == 0 && !batch.is_read_only() {
            return Err(ClientError::NoSession);
        }
        self.free(batch.len())?;
        let mut buffer = self.window.buffer();
        let request = self.window.next_sequence() + 1;
        let first_number = self.window.next_number();
        batch.write_frame(&mut buffer, request, first_number, self.window.acknowledged_below());
        self.transactions_last = batch.len();
        let sequence = self.window.push(now, FrameKind::Submit, batch.len(), buffer);
        batch.clear();
        Ok(self.launch(now, sequence, effects))
    }

    /// Sends a request other than a submit. After a lost connection it is repeated if that does
    /// no harm, and else reported as unknown.
    ///
    /// # Panics
    /// If `kind` is not such a request.
    pub fn request<T: Payload>(
        &mut self,
        now: u64,
        kind: FrameKind,
        message: &T,
        effects: &mut impl ClientEffects,
    ) -> Result<FrameToken, ClientError> {
        assert!(
            answer_kind(kind).is_some() && !matches!(kind, FrameKind::Submit | FrameKind::Hello),
            "{kind:?} is not a request of the caller"
        );
        self.free(0)?;
        let mut buffer = self.window.buffer();
        message::write_frame(&mut buffer, kind, self.window.next_sequence() + 1, Lsn(0), message);
        if buffer.len() - HEADER_BYTES > FRAME_PAYLOAD_BYTES_MAX {
            return Err(ClientError::RequestTooLarge(buffer.len() - HEADER_BYTES));
        }
        let sequence = self.window.push(now, kind, 0, buffer);
        Ok(self.launch(now, sequence, effects))
    }

    fn launch(&mut self, now: u64, sequence: u64, effects: &mut impl ClientEffects) -> FrameToken {
        if self.is_ready() {
            effects.send(&self.window.sent(now, sequence).frame);
        }
        FrameToken { connection: self.options.connection, sequence }
    }

    /// One step. `now` never goes back.
    pub fn step(&mut self, now: u64, input: ClientInput<'_>, effects: &mut impl ClientEffects) {
        match input {
            ClientInput::Start => {
                assert_eq!(self.state, State::New, "a core starts once");
                self.started_at = now;
                self.connect(now, effects);
            }
            ClientInput::Connected => self.connected(now, effects),
            ClientInput::Received(bytes) => self.received(now, bytes, effects),
            ClientInput::Disconnected(cause) => {
                if !matches!(self.state, State::Ended(_)) {
                    self.error = Some(ClientError::Lost(cause.to_owned()));
                    self.disconnected(now, 0, LossReason::Disconnected, effects);
                }
            }
            ClientInput::Tick => self.tick(now, effects),
        }
    }

    /// When the core wants a tick, if nothing happens before.
    pub fn deadline(&self) -> Option<u64> {
        let phase = match self.state {
            State::New | State::Ended(_) => return None,
            State::Waiting { until } => Some(until),
            State::Connecting { deadline } | State::Greeting { deadline } => Some(deadline),
            State::Ready => self
                .window
                .oldest_awaiting()
                .map(|entry| entry.sent_at.saturating_add(self.options.request_timeout_nanos)),
        };
        let give_up = self
            .window
            .oldest()
            .map(|(_, entry)| entry.submitted_at.saturating_add(self.options.give_up_nanos));
        [phase, give_up, self.window.resend_at_min()].into_iter().flatten().min()
    }

    fn connect(&mut self, now: u64, effects: &mut impl ClientEffects) {
        let deadline = now.saturating_add(self.options.request_timeout_nanos);
        self.state = State::Connecting { deadline };
        self.attempt += 1;
        self.assembler = FrameAssembler::default();
        effects.connect();
    }

    fn connected(&mut self, now: u64, effects: &mut impl ClientEffects) {
        let State::Connecting { deadline } = self.state else { return };
        self.state = State::Greeting { deadline: deadline.max(now) };
        let hello = Hello {
            limits_fingerprint: fingerprint(),
            cluster: self.options.cluster,
            session: self.options.session,
            attempt: self.attempt,
        };
        let mut buffer = Vec::new();
        message::write_frame(&mut buffer, FrameKind::Hello, REQUEST_CONNECTION, Lsn(0), &hello);
        effects.send(&buffer);
    }

    /// The connection is gone and its shell knows. What may be sent again waits for the next.
    fn disconnected(
        &mut self,
        now: u64,
        wait_nanos_min: u64,
        reason: LossReason,
        effects: &mut impl ClientEffects,
    ) {
        self.window.connection_lost();
        let wait = self.backoff.next_nanos().max(wait_nanos_min);
        let patient = match &self.welcome {
            Some(_) => self.options.reconnect,
            None => {
                now.saturating_add(wait)
                    <= self.started_at.saturating_add(self.options.connect_nanos)
            }
        };
        if !patient {
            self.end(reason, effects);
            return;
        }
        self.state = State::Waiting { until: now.saturating_add(wait) };
        for sequence in self.window.sequences() {
            let entry = self.window.get(sequence).expect("it has no end yet");
            if entry.attempts > 0 && !is_repeatable(entry.kind) {
                self.report(sequence, FrameResult::Unknown(reason), effects);
            }
        }
    }

    /// Closes the connection and tries again, or ends.
    fn drop_connection(
        &mut self,
        now: u64,
        error: ClientError,
        reason: LossReason,
        effects: &mut impl ClientEffects,
    ) {
        self.error = Some(error);
        effects.close();
        self.disconnected(now, 0, reason, effects);
    }

    /// Closes the connection for good.
    fn fail(&mut self, error: ClientError, reason: LossReason, effects: &mut impl ClientEffects) {
        self.error = Some(error);
        effects.close();
        self.end(reason, effects);
    }

    fn violation(&mut self, what: &'static str, effects: &mut impl ClientEffects) {
        self.fail(ClientError::Protocol(what), LossReason::Protocol, effects);
    }

    fn end(&mut self, reason: LossReason, effects: &mut impl ClientEffects) {
        self.state = State::Ended(reason);
        for sequence in self.window.sequences() {
            self.report_lost(sequence, reason, effects);
        }
        assert_eq!(self.window.unanswered(), 0, "every frame ends with its core");
    }

    fn report_lost(&mut self, sequence: u64, reason: LossReason, effects: &mut impl ClientEffects) {
        let entry = self.window.get(sequence).expect("it has no end yet");
        let result = match entry.attempts {
            0 => FrameResult::NotSent(reason),
            _ => FrameResult::Unknown(reason),
        };
        self.report(sequence, result, effects);
    }

    fn report(&mut self, sequence: u64, result: FrameResult<'_>, effects: &mut impl ClientEffects) {
        let token = FrameToken { connection: self.options.connection, sequence };
        let (first_number, transactions) = self.window.end(sequence);
        effects.answer(FrameAnswer { token, first_number, transactions, result });
    }

    fn received(&mut self, now: u64, mut bytes: &[u8], effects: &mut impl ClientEffects) {
        loop {
            let limit = match self.state {
                State::Greeting { .. } => GREETING_BYTES_MAX,
                State::Ready => ANSWER_PAYLOAD_BYTES_MAX,
                _ => return,
            };
            match self.assembler.next(&mut bytes, limit, &mut self.spare) {
                Ok(Assembled::InPlace(header, frame)) => {
                    self.frame(now, header, &frame[HEADER_BYTES..], effects);
                }
                Ok(Assembled::Owned(header, mut frame)) => {
                    self.frame(now, header, &frame[HEADER_BYTES..], effects);
                    frame.clear();
                    if self.spare.is_empty() {
                        self.spare.push(frame);
                    }
                }
                Ok(Assembled::Incomplete) => return,
                Err(error) => {
                    self.damaged += 1;
                    if self.welcome.is_none() || self.damaged > DAMAGED_MAX {
                        self.fail(error.into(), LossReason::Protocol, effects);
                    } else {
                        self.drop_connection(now, error.into(), LossReason::Protocol, effects);
                    }
                    return;
                }
            }
        }
    }

    fn frame(
        &mut self,
        now: u64,
        header: FrameHeader,
        payload: &[u8],
        effects: &mut impl ClientEffects,
    ) {
        if header.request == REQUEST_CONNECTION {
            match (self.state, header.kind) {
                (State::Greeting { .. }, FrameKind::Welcome) => self.greeted(now, payload, effects),
                (_, FrameKind::Refusal) => self.connection_refused(now, payload, effects),
                _ => self.violation("it sent what nobody asked for", effects),
            }
            return;
        }
        let sequence = header.request - 1;
        let Some(entry) = self.window.get(sequence).filter(|entry| entry.awaiting) else {
            self.violation("it answered what was not asked", effects);
            return;
        };
        let kind = entry.kind;
        self.damaged = 0;
        self.backoff.reset();
        if header.kind == FrameKind::Refusal {
            self.refused(now, sequence, payload, effects);
        } else if answer_kind(kind) != Some(header.kind) {
            self.violation("its answer is of another kind than the request", effects);
        } else if kind == FrameKind::Submit {
            self.outcomes(now, sequence, header.lsn, payload, effects);
        } else {
            let answer = FrameResult::Answer { kind: header.kind, lsn: header.lsn, payload };
            self.report(sequence, answer, effects);
        }
    }

    fn greeted(&mut self, now: u64, payload: &[u8], effects: &mut impl ClientEffects) {
        let welcome = match message::decode::<Welcome>(payload) {
            Ok(welcome) => welcome,
            Err(error) => {
                self.fail(error.into(), LossReason::Protocol, effects);
                return;
            }
        };
        let options = &self.options;
        let wrong = if options.cluster != 0 && welcome.cluster != options.cluster {
            Some("another cluster answered")
        } else if welcome.shard != options.shard {
            Some("another shard answered")
        } else if usize::from(welcome.shard) >= welcome.shard_ports.len() {
            Some("it has fewer shards than it says")
        } else if Router::new(&welcome).is_err() {
            Some("its number of partitions or shards is impossible")
        } else if options.shards != 0 && welcome.shard_ports.len() != options.shards {
            Some("it came back with another number of shards")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            self.violation(wrong, effects);
            return;
        }
        self.options.cluster = welcome.cluster;
        self.options.shards = welcome.shard_ports.len();
        self.welcome = Some(welcome);
        self.state = State::Ready;
        for sequence in self.window.sequences() {
            effects.send(&self.window.sent(now, sequence).frame);
        }
    }

    /// The node refuses the connection as a whole.
    fn connection_refused(&mut self, now: u64, payload: &[u8], effects: &mut impl ClientEffects) {
        let Some((code, refusal)) = self.read_refusal(payload, effects) else { return };
        let retry_nanos = u64::from(refusal.retry_after_ms.to_native()) * NANOS_PER_MS;
        let error = ClientError::refused(
            code,
            refusal.message.as_str(),
            refusal.retry_after_ms.to_native(),
        );
        let reason = match code {
            RefusalCode::SessionUnknown => LossReason::SessionUnknown,
            RefusalCode::SessionFenced => LossReason::Fenced,
            _ => LossReason::Refused,
        };
        if matches!(code, RefusalCode::Stopping | RefusalCode::LimitReached) || retry_nanos > 0 {
            self.error = Some(error);
            effects.close();
            self.disconnected(now, retry_nanos, reason, effects);
        } else {
            self.fail(error, reason, effects);
        }
    }

    fn read_refusal<'a>(
        &mut self,
        payload: &'a [u8],
        effects: &mut impl ClientEffects,
    ) -> Option<(RefusalCode, &'a ArchivedRefusal)> {
        match message::access::<Refusal>(payload) {
            Ok(refusal) => {
                let code = RefusalCode::from_wire(refusal.code.to_native());
                if code.is_none() {
                    self.violation("its refusal has an unknown code", effects);
                }
                Some((code?, refusal))
            }
            Err(error) => {
                self.fail(error.into(), LossReason::Protocol, effects);
                None
            }
        }
    }

    /// The node refuses one request.
    fn refused(
        &mut self,
        now: u64,
        sequence: u64,
        payload: &[u8],
        effects: &mut impl ClientEffects,
    ) {
        let Some((code, refusal)) = self.read_refusal(payload, effects) else { return };
        let retry_after_ms = refusal.retry_after_ms.to_native();
        let message = refusal.message.as_str();
        let sent_before = self.window.get(sequence).is_some_and(|entry| entry.attempts > 1);
        if sent_before && (retry_after_ms > 0 || code == RefusalCode::Stopping) {
            self.postpone(now, sequence, retry_after_ms);
            return;
        }
        let result = if sent_before {
            FrameResult::Unknown(LossReason::Refused)
        } else {
            FrameResult::Refused { code, message, retry_after_ms }
        };
        self.report(sequence, result, effects);
        let reason = match code {
            RefusalCode::SessionUnknown => LossReason::SessionUnknown,
            RefusalCode::SessionFenced => LossReason::Fenced,
            _ => return,
        };
        self.fail(ClientError::refused(code, message, retry_after_ms), reason, effects);
    }

    /// Sends the same frame again later: a refusal of a second attempt says nothing of the first.
    fn postpone(&mut self, now: u64, sequence: u64, retry_after_ms: u32) {
        let wait = match u64::from(retry_after_ms) * NANOS_PER_MS {
            0 => RESEND_NANOS_DEFAULT,
            wait => wait,
        };
        self.window.postpone(sequence, now.saturating_add(wait));
    }

    fn outcomes(
        &mut self,
        now: u64,
        sequence: u64,
        lsn: Lsn,
        payload: &[u8],
        effects: &mut impl ClientEffects,
    ) {
        let answer = match message::access::<Outcomes>(payload) {
            Ok(answer) => answer,
            Err(error) => {
                self.fail(error.into(), LossReason::Protocol, effects);
                return;
            }
        };
        let entry = self.window.get(sequence).expect("the caller looked it up");
        let (attempts, transactions) = (entry.attempts, entry.transactions);
        let verdict = match verdict_of(answer, transactions) {
            Ok(verdict) => verdict,
            Err(wrong) => {
                self.violation(wrong, effects);
                return;
            }
        };
        let retry_after_ms = answer.retry_after_ms.to_native();
        match verdict {
            // The first attempt may have taken effect although the second was not let in.
            Verdict::Transient if attempts > 1 => self.postpone(now, sequence, retry_after_ms),
            Verdict::NotExecuted if attempts > 1 => {
                self.report(sequence, FrameResult::Unknown(LossReason::Refused), effects);
            }
            _ => {
                let outcomes = answer.outcomes.as_slice();
                let bytes = answer.bytes.as_slice();
                let result = FrameResult::Outcomes { lsn, retry_after_ms, outcomes, bytes };
                self.report(sequence, result, effects);
            }
        }
    }

    fn tick(&mut self, now: u64, effects: &mut impl ClientEffects) {
        self.give_up(now, effects);
        match self.state {
            State::Waiting { until } if until <= now => self.connect(now, effects),
            State::Connecting { deadline } | State::Greeting { deadline } if deadline <= now => {
                self.timed_out(now, effects);
            }
            State::Ready => {
                let timeout = self.options.request_timeout_nanos;
                let oldest = self.window.oldest_awaiting();
                if oldest.is_some_and(|entry| entry.sent_at.saturating_add(timeout) <= now) {
                    self.timed_out(now, effects);
                    return;
                }
                while let Some(sequence) = self.window.resend_due(now) {
                    effects.send(&self.window.sent(now, sequence).frame);
                }
            }
            _ => {}
        }
    }

    fn timed_out(&mut self, now: u64, effects: &mut impl ClientEffects) {
        let error = ClientError::TimedOut(self.options.request_timeout_nanos / NANOS_PER_MS);
        self.drop_connection(now, error, LossReason::GaveUp, effects);
    }

    /// Reports frames that have waited too long over all attempts. Their answers could still
    /// come on a standing connection, which is therefore dropped.
    fn give_up(&mut self, now: u64, effects: &mut impl ClientEffects) {
        let mut on_connection = false;
        while let Some((sequence, entry)) = self.window.oldest() {
            if entry.submitted_at.saturating_add(self.options.give_up_nanos) > now {
                break;
            }
            on_connection |= entry.awaiting;
            self.report_lost(sequence, LossReason::GaveUp, effects);
        }
        if on_connection {
            self.timed_out(now, effects);
        }
    }
}

/// What the outcomes of a frame say about another attempt of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All were decided.
    Decided,
    /// Some were not let in for now.
    Transient,
    /// Some were not let in at all.
    NotExecuted,
}

/// Checks an answer against its request.
fn verdict_of(answer: &ArchivedOutcomes, transactions: usize) -> Result<Verdict, &'static str> {
    if answer.outcomes.len() != transactions {
        return Err("its answer has another number of outcomes than the request had transactions");
    }
    let mut data_bytes = 0u64;
    let mut verdict = Verdict::Decided;
    for outcome in answer.outcomes.iter() {
        data_bytes += u64::from(outcome.data_length.to_native());
        let Some(status) = OutcomeStatus::from_wire(outcome.status.to_native()) else {
            return Err("its answer has an unknown outcome");
        };
        match status {
            OutcomeStatus::SessionUnknown
            | OutcomeStatus::NumberOutOfWindow
            | OutcomeStatus::LogFailed
            | OutcomeStatus::Unavailable => verdict = Verdict::NotExecuted,
            _ if status.is_transient() && verdict == Verdict::Decided => {
                verdict = Verdict::Transient;
            }
            _ => {}
        }
    }
    if data_bytes != answer.bytes.len() as u64 {
        return Err("the data of its answer does not add up");
    }
    Ok(verdict)
}
