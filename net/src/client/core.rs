//! The core of the client: one session on one connection to one shard. Pure: time, bytes and
//! connection events come in, frames, connects and results go out.
//!
//! **Following the leader.** A connection serves only if its node's greeting says that it leads.
//! Else, and when a connection is lost, silent or refused, the core goes where it is pointed to,
//! or around the nodes it knows ([`Course`]). Nodes number their shards' ports differently: a core
//! of shard k that does not know a node's ports asks its shard 0 first (a *probe*, without
//! session).
//!
//! **Exactly once.** Frames without an answer are sent again with the same numbers once the
//! session is attached to the next leader; the node answers with the first outcome. A frame that
//! was on its way to two leaders that were lost is not sent to a third on its own account: it ends
//! as unknown, and [`ClientCore::resolve`] asks again.
//!
//! **Shards.** A core is bound to its shard, and all nodes must have as many shards as the first
//! one: partition p belongs to shard p modulo their number. A node that has another number ends
//! the core with [`ClientError::ShardsDiffer`].

use crate::client::answer::{FrameAnswer, FrameResult, FrameToken, LossReason};
use crate::client::backoff::Eagerness;
use crate::client::batch::Batch;
use crate::client::course::{Course, Departure};
use crate::client::error::ClientError;
use crate::client::nodes::NodeBook;
use crate::client::table::Router;
use crate::client::window::{LeaderTerm, Window};
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
/// Wait before a read is sent again to a node that was behind and named no time.
const BEHIND_NANOS_DEFAULT: u64 = 2_000_000;
/// Reads that a node is behind for, one after the other, before another node is asked.
const BEHIND_MAX: u32 = 3;
/// Leaders that a request may lose unless the caller says otherwise.
const LEADERS_LOST_MAX: usize = 2;
const NANOS_PER_MS: u64 = 1_000_000;

/// Which node serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Follow {
    /// The leader, whoever it is.
    #[default]
    Leader,
    /// The node that the connection was made to, whatever its role: for reads that need not be
    /// strong, and for looking at a node. Another one is tried if it cannot serve.
    Any,
}

/// What a core is to do. [`CoreOptions::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// The nodes known in advance, at least one.
    pub nodes: NodeBook,
    /// Which of them serves. Default the leader.
    pub follow: Follow,
    /// Whether it looks for a new leader eagerly; the others of a process are told by
    /// [`ClientInput::Learned`]. Default true.
    pub is_scout: bool,
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
    /// A request that was on its way to so many leaders that were lost ends as unknown.
    /// Default 2.
    pub leaders_lost_max: usize,
    /// For how long a read is repeated while nodes are behind it. Default 1 s.
    pub behind_nanos: u64,
    /// How long one attempt to connect and to be greeted may take. Attempts that follow one that
    /// took too long may take longer, up to an answer's time. Default 1 s.
    pub connect_timeout_nanos: u64,
    /// How long the first connection may take, all attempts included; 0: every node is tried
    /// once.
    pub connect_nanos: u64,
    /// Whether a lost connection is made anew.
    pub reconnect: bool,
    /// Seed of the reconnect jitter.
    pub seed: u64,
}

impl CoreOptions {
    /// A core without session, of shard 0, that follows the leader of these nodes.
    pub fn new(nodes: NodeBook) -> Self {
        Self {
            nodes,
            follow: Follow::Leader,
            is_scout: true,
            connection: 0,
            session: 0,
            cluster: 0,
            shard: 0,
            shards: 0,
            frames_in_flight_max: 1,
            request_timeout_nanos: 10_000 * NANOS_PER_MS,
            give_up_nanos: 30_000 * NANOS_PER_MS,
            leaders_lost_max: LEADERS_LOST_MAX,
            behind_nanos: 1_000 * NANOS_PER_MS,
            connect_timeout_nanos: 1_000 * NANOS_PER_MS,
            connect_nanos: 0,
            reconnect: true,
            seed: 1,
        }
    }
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
    /// Another core of the same cluster has learned this, see [`ClientCore::take_news`].
    Learned(&'a NodeBook),
    /// Time has passed; see [`ClientCore::deadline`].
    Tick,
}

/// What a core wants done. Calls come in the order in which they must be carried out.
pub trait ClientEffects {
    /// Make a connection to `address`, a host and a port; answer with `Connected` or
    /// `Disconnected`.
    fn connect(&mut self, address: &str);
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
    Connecting { deadline: u64, purpose: Purpose },
    Greeting { deadline: u64, purpose: Purpose },
    Ready,
    Ended(LossReason),
}

/// What a connection is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Frames.
    Serve,
    /// Only the greeting of the node's shard 0.
    Probe,
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
    course: Course,
    has_news: bool,
    /// It was ready once: from then on it is patient.
    was_ready: bool,
    /// The node of the present connection, once it has greeted and serves.
    present: Option<LeaderTerm>,
    /// The next connection is to ask whether its node leads.
    probe_wanted: bool,
    /// A probe has shown that the target leads.
    is_confirmed: bool,
    damaged: u32,
    behinds: u32,
    /// Attempts to connect, one after the other, that took too long.
    silences: u64,
    lsn: Lsn,
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
        FrameKind::TableDrop | FrameKind::SessionClose | FrameKind::ClusterCommand => {
            FrameKind::Done
        }
        FrameKind::ClusterStatus => FrameKind::ClusterReport,
        FrameKind::TableList => FrameKind::TableListing,
        FrameKind::Status => FrameKind::StatusReport,
        _ => return None,
    })
}

/// Whether a second copy of a request does no harm and gets the answer of the first.
const fn is_repeatable(kind: FrameKind) -> bool {
    !matches!(kind, FrameKind::TableDrop | FrameKind::SessionClose | FrameKind::ClusterCommand)
}

impl ClientCore {
    /// A core that has not begun.
    ///
    /// # Panics
    /// If `frames_in_flight_max` is 0 or above the limit, or if no node is known.
    pub fn new(mut options: CoreOptions) -> Self {
        assert!(
            (1..=SESSION_FRAMES_IN_FLIGHT_MAX).contains(&options.frames_in_flight_max),
            "1 to {SESSION_FRAMES_IN_FLIGHT_MAX} frames may be in flight"
        );
        let eagerness = if options.is_scout { Eagerness::Scout } else { Eagerness::Patient };
        let mut nodes = std::mem::take(&mut options.nodes);
        if let (Follow::Leader, Some((leader, _))) = (options.follow, nodes.leader()) {
            nodes.begin_with(leader);
        }
        Self {
            course: Course::new(nodes, options.seed, eagerness),
            options,
            state: State::New,
            started_at: 0,
            attempt: 0,
            assembler: FrameAssembler::default(),
            spare: Vec::new(),
            window: Window::default(),
            has_news: false,
            was_ready: false,
            present: None,
            probe_wanted: false,
            is_confirmed: false,
            damaged: 0,
            behinds: 0,
            silences: 0,
            lsn: Lsn(0),
            transactions_last: 1,
            welcome: None,
            error: None,
        }
    }

    /// What the node said of itself last.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// The nodes as far as it knows them.
    pub fn nodes(&self) -> &NodeBook {
        self.course.book()
    }

    /// Whether it has learned something about the nodes since the last call, for other cores.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// The highest committed LSN of any answer. A read at this LSN sees all that they saw.
    pub fn lsn(&self) -> Lsn {
        self.lsn
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

    /// Frames whose outcome was reported as unknown, oldest first, as far as they can still be
    /// resolved.
    pub fn unresolved(&self) -> impl Iterator<Item = FrameToken> {
        let connection = self.options.connection;
        self.window.parked().map(move |sequence| FrameToken { connection, sequence })
    }

    /// Whether [`ClientCore::submit`] would take a batch as long as the last one.
    pub fn can_submit(&self) -> bool {
        let takes_frames = self.options.session != 0 || self.options.follow == Follow::Any;
        takes_frames && self.free(self.transactions_last).is_ok()
    }

    fn free(&self, transactions: usize) -> Result<(), ClientError> {
        // Unresolved frames are forgotten if their numbers are in the way.
        let numbers = self.window.next_number() - self.window.ended_below();
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
        let numbers_after = self.window.next_number() + batch.len() as u64;
        while numbers_after - self.window.acknowledged_below() > SESSION_NUMBERS_WINDOW {
            assert!(self.window.parked_forget(), "only unresolved frames can be in the way");
        }
        let mut buffer = self.window.buffer();
        let request = self.window.next_sequence() + 1;
        let first_number = self.window.next_number();
        batch.write_frame(&mut buffer, request, first_number, self.window.acknowledged_below());
        self.transactions_last = batch.len();
        let sequence = self.window.push(now, FrameKind::Submit, batch.len(), buffer);
        batch.clear();
        Ok(self.launch(now, sequence, effects))
    }

    /// Asks again for the outcome of a frame that was reported as unknown, by sending it again
    /// with the same numbers: if it has taken effect, its first outcome comes back; if not, it
    /// takes effect now. The answer comes under the token returned.
    pub fn resolve(
        &mut self,
        now: u64,
        token: FrameToken,
        effects: &mut impl ClientEffects,
    ) -> Result<FrameToken, ClientError> {
        self.free(0)?;
        let is_own = token.connection == self.options.connection;
        let sequence = is_own.then(|| self.window.resume(now, token.sequence)).flatten();
        let sequence = sequence.ok_or(ClientError::NotUnresolved)?;
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
            ClientInput::Connected => self.connected(effects),
            ClientInput::Received(bytes) => self.received(now, bytes, effects),
            ClientInput::Disconnected(cause) => {
                let departure = match self.state {
                    State::Ready => Departure::Lost,
                    State::Connecting { .. } | State::Greeting { .. } => Departure::Unreachable,
                    State::New | State::Waiting { .. } | State::Ended(_) => return,
                };
                self.error = Some(ClientError::Lost(cause.to_owned()));
                self.depart(now, departure, LossReason::Disconnected, effects);
            }
            ClientInput::Learned(nodes) => self.learned(now, nodes, effects),
            ClientInput::Tick => self.tick(now, effects),
        }
    }

    /// When the core wants a tick, if nothing happens before.
    pub fn deadline(&self) -> Option<u64> {
        let phase = match self.state {
            State::New | State::Ended(_) => return None,
            State::Waiting { until } => Some(until),
            State::Connecting { deadline, .. } | State::Greeting { deadline, .. } => Some(deadline),
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
        let target = self.course.target();
        let known = self.course.book().shard_address(target, self.options.shard);
        let (address, purpose) = match known {
            Some(address)
                if !self.probe_wanted && !spillway_runtime::fault_point!(ClientProbesFirst) =>
            {
                (address, Purpose::Serve)
            }
            _ => (target.to_owned(), Purpose::Probe),
        };
        let mut timeout = self.connect_timeout_nanos();
        if spillway_runtime::fault_point!(ClientConnectsInHaste) {
            timeout /= 200;
        }
        let deadline = now.saturating_add(timeout);
        self.state = State::Connecting { deadline, purpose };
        self.attempt += 1;
        self.assembler = FrameAssembler::default();
        effects.connect(&address);
    }

    /// Longer after each that was not enough, so that a busy node is waited for in the end.
    fn connect_timeout_nanos(&self) -> u64 {
        let timeout = self.options.connect_timeout_nanos;
        let longest = timeout.max(self.options.request_timeout_nanos);
        timeout.saturating_mul(1 + self.silences).min(longest)
    }

    fn connected(&mut self, effects: &mut impl ClientEffects) {
        let State::Connecting { deadline, purpose } = self.state else { return };
        self.state = State::Greeting { deadline, purpose };
        let hello = Hello {
            limits_fingerprint: fingerprint(),
            cluster: self.options.cluster,
            session: if purpose == Purpose::Serve { self.options.session } else { 0 },
            attempt: self.attempt,
        };
        let mut buffer = Vec::new();
        message::write_frame(&mut buffer, FrameKind::Hello, REQUEST_CONNECTION, Lsn(0), &hello);
        effects.send(&buffer);
    }

    /// The connection is gone and its shell knows. What may be sent again waits for the next.
    fn depart(
        &mut self,
        now: u64,
        departure: Departure,
        reason: LossReason,
        effects: &mut impl ClientEffects,
    ) {
        // A node that is left because it said so is not lost.
        let is_loss = !matches!(departure, Departure::Busy(_) | Departure::Hint(..));
        self.window.connection_lost(self.present.take().filter(|_| is_loss));
        self.is_confirmed = false;
        self.behinds = 0;
        let wait = self.course.depart(now, departure);
        let at_once = spillway_runtime::fault_point!(ClientRetriesAtOnce);
        let until = now.saturating_add(if at_once { 1 } else { wait });
        let is_patient = if self.was_ready {
            self.options.reconnect
        } else {
            let connect_until = self.started_at.saturating_add(self.options.connect_nanos);
            until <= connect_until || self.course.has_untried()
        };
        if !is_patient {
            self.end(reason, effects);
            return;
        }
        self.state = State::Waiting { until };
        for sequence in self.window.sequences() {
            let entry = self.window.get(sequence).expect("it has no end yet");
            if entry.is_doubtful && !is_repeatable(entry.kind) {
                self.report_unknown(sequence, reason, effects);
            } else if entry.leaders_lost.len() >= self.options.leaders_lost_max {
                self.report_unknown(sequence, LossReason::LeadersLost, effects);
            }
        }
    }

    /// Another core has met a newer leader.
    fn learned(&mut self, now: u64, nodes: &NodeBook, effects: &mut impl ClientEffects) {
        let is_newer = self.course.book_mut().merge(nodes);
        let Some((leader, epoch)) = nodes.leader() else { return };
        if !is_newer || self.options.follow == Follow::Any {
            return;
        }
        let address = self.course.book().address_of(leader).map(str::to_owned);
        let Some(address) = address else { return };
        match self.state {
            State::Waiting { until } => {
                self.course.turn_to_leader();
                self.state = State::Waiting { until: until.min(now) };
            }
            State::Connecting { .. } | State::Greeting { .. }
                if self.course.target() != address => {}
            // The present one may be cut off and not know it.
            State::Ready if self.present.is_some_and(|present| present.epoch < epoch) => {}
            _ => return,
        }
        if !matches!(self.state, State::Waiting { .. }) {
            self.error = Some(ClientError::Lost("another node leads".to_owned()));
            effects.close();
            let hint = Departure::Hint(leader, address);
            self.depart(now, hint, LossReason::Disconnected, effects);
            if matches!(self.state, State::Waiting { .. }) {
                self.course.turn_to_leader();
                self.state = State::Waiting { until: now };
            }
        }
    }

    /// Closes the connection and tries again, or ends.
    fn drop_connection(
        &mut self,
        now: u64,
        departure: Departure,
        error: ClientError,
        reason: LossReason,
        effects: &mut impl ClientEffects,
    ) {
        self.error = Some(error);
        effects.close();
        self.depart(now, departure, reason, effects);
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
        if entry.is_uncertain() {
            self.report_unknown(sequence, reason, effects);
        } else {
            self.report(sequence, FrameResult::NotSent(reason), effects);
        }
    }

    /// Transactions can be asked for again, unless the core ends.
    fn report_unknown(
        &mut self,
        sequence: u64,
        reason: LossReason,
        effects: &mut impl ClientEffects,
    ) {
        let entry = self.window.get(sequence).expect("it has no end yet");
        let can_resolve = entry.kind == FrameKind::Submit && self.ended().is_none();
        let (first_number, transactions) = if can_resolve {
            self.window.park(sequence, self.options.frames_in_flight_max)
        } else {
            self.window.end(sequence)
        };
        let token = FrameToken { connection: self.options.connection, sequence };
        let result = FrameResult::Unknown(reason);
        effects.answer(FrameAnswer { token, first_number, transactions, result });
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
                    let (error, reason) = (error.into(), LossReason::Protocol);
                    if !self.was_ready || self.damaged > DAMAGED_MAX {
                        self.fail(error, reason, effects);
                    } else {
                        self.drop_connection(now, Departure::Lost, error, reason, effects);
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
                (State::Greeting { purpose, .. }, FrameKind::Welcome) => {
                    self.greeted(now, purpose, payload, effects);
                }
                (State::Ready, FrameKind::Welcome) => self.members_told(payload, effects),
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
        if header.kind == FrameKind::Refusal {
            self.refused(now, sequence, payload, effects);
            return;
        }
        self.course.succeeded();
        self.lsn = self.lsn.max(header.lsn);
        if answer_kind(kind) != Some(header.kind) {
            self.violation("its answer is of another kind than the request", effects);
        } else if kind == FrameKind::Submit {
            self.outcomes(now, sequence, header.lsn, payload, effects);
        } else {
            let answer = FrameResult::Answer { kind: header.kind, lsn: header.lsn, payload };
            self.report(sequence, answer, effects);
        }
    }

    fn greeted(
        &mut self,
        now: u64,
        purpose: Purpose,
        payload: &[u8],
        effects: &mut impl ClientEffects,
    ) {
        let welcome = match message::decode::<Welcome>(payload) {
            Ok(welcome) => welcome,
            Err(error) => {
                self.fail(error.into(), LossReason::Protocol, effects);
                return;
            }
        };
        if let Some(wrong) = self.wrong_with(&welcome, purpose) {
            self.fail(wrong, LossReason::Protocol, effects);
            return;
        }
        self.options.cluster = welcome.cluster;
        self.options.shards = welcome.shard_ports.len();
        let target = self.course.target().to_owned();
        self.has_news |= self.course.book_mut().greeted(&target, &welcome);
        if self.options.follow == Follow::Leader {
            if welcome.leader != welcome.node {
                self.redirect(now, welcome.leader, welcome.leader_address, effects);
                return;
            }
            if let Some((leader, epoch)) = self.course.book().leader()
                && welcome.epoch < epoch
            {
                // It was deposed and does not know it yet: a later term has its leader.
                let known = self.course.book().address_of(leader).unwrap_or_default().to_owned();
                self.redirect(now, leader, known, effects);
                return;
            }
        }
        if purpose == Purpose::Probe {
            self.probe_wanted = false;
            self.is_confirmed = true;
            effects.close();
            self.state = State::Waiting { until: now };
            return;
        }
        self.present = Some(LeaderTerm { node: welcome.node, epoch: welcome.epoch });
        self.welcome = Some(welcome);
        self.was_ready = true;
        self.silences = 0;
        self.state = State::Ready;
        for sequence in self.window.sequences() {
            effects.send(&self.window.sent(now, sequence).frame);
        }
    }

    /// The node that this core is connected to says that the members of its cluster have changed.
    fn members_told(&mut self, payload: &[u8], effects: &mut impl ClientEffects) {
        let welcome = match message::decode::<Welcome>(payload) {
            Ok(welcome) => welcome,
            Err(error) => {
                self.fail(error.into(), LossReason::Protocol, effects);
                return;
            }
        };
        if let Some(wrong) = self.wrong_with(&welcome, Purpose::Serve) {
            self.fail(wrong, LossReason::Protocol, effects);
            return;
        }
        let target = self.course.target().to_owned();
        self.has_news |= self.course.book_mut().greeted(&target, &welcome);
    }

    /// Why a greeting is not that of the node and shard expected.
    fn wrong_with(&self, welcome: &Welcome, purpose: Purpose) -> Option<ClientError> {
        let options = &self.options;
        let shard = if purpose == Purpose::Serve { options.shard } else { 0 };
        let shards = welcome.shard_ports.len();
        let wrong = if options.cluster != 0 && welcome.cluster != options.cluster {
            "another cluster answered"
        } else if welcome.shard != shard {
            "another shard answered"
        } else if usize::from(welcome.shard) >= shards {
            "it has fewer shards than it says"
        } else if Router::new(welcome).is_err() {
            "its number of partitions or shards is impossible"
        } else if options.shards != 0 && shards != options.shards {
            let (node, expected) = (welcome.node, options.shards);
            return Some(ClientError::ShardsDiffer { node, shards, expected });
        } else {
            return None;
        };
        Some(ClientError::Protocol(wrong))
    }

    /// The node does not lead: leaves it for the leader, or for the next node.
    fn redirect(
        &mut self,
        now: u64,
        leader: u16,
        address: String,
        effects: &mut impl ClientEffects,
    ) {
        let asked = self.course.book().addresses().collect::<Vec<_>>().join(", ");
        let departure = Departure::Hint(leader, address);
        let error = ClientError::NoLeader { asked };
        self.drop_connection(now, departure, error, LossReason::NoLeader, effects);
    }

    /// The node refuses the connection as a whole.
    fn connection_refused(&mut self, now: u64, payload: &[u8], effects: &mut impl ClientEffects) {
        let Some((code, refusal)) = self.read_refusal(payload, effects) else { return };
        let retry_after_ms = refusal.retry_after_ms.to_native();
        let retry_nanos = u64::from(retry_after_ms) * NANOS_PER_MS;
        let error = ClientError::refused(code, refusal.message.as_str(), retry_after_ms);
        let reason = match code {
            RefusalCode::NotLeader if self.options.follow == Follow::Leader => {
                let (leader, address) = hint_of(refusal);
                self.redirect(now, leader, address, effects);
                return;
            }
            RefusalCode::SessionUnknown if !self.is_confirmed && self.course.book().len() > 1 => {
                // A follower that lags behind does not know new sessions: does this one lead?
                self.error = Some(error);
                self.probe_wanted = true;
                effects.close();
                self.window.connection_lost(self.present.take());
                self.state = State::Waiting { until: now };
                return;
            }
            RefusalCode::SessionUnknown => LossReason::SessionUnknown,
            RefusalCode::SessionFenced => LossReason::Fenced,
            _ => LossReason::Refused,
        };
        let is_passing = matches!(
            code,
            RefusalCode::Stopping | RefusalCode::LimitReached | RefusalCode::Drained
        );
        if is_passing || retry_nanos > 0 {
            self.drop_connection(now, Departure::Busy(retry_nanos), error, reason, effects);
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
        if code == RefusalCode::NotLeader && self.options.follow == Follow::Leader {
            self.window.returned(sequence);
            let (leader, address) = hint_of(refusal);
            self.redirect(now, leader, address, effects);
            return;
        }
        let is_elsewhere = matches!(code, RefusalCode::Stopping | RefusalCode::Drained);
        if is_elsewhere && self.course.book().len() > 1 {
            self.window.returned(sequence);
            let departure = Departure::Busy(u64::from(retry_after_ms) * NANOS_PER_MS);
            let error = ClientError::refused(code, message, retry_after_ms);
            self.drop_connection(now, departure, error, LossReason::Refused, effects);
            return;
        }
        self.course.succeeded();
        let sent_before = self.window.get(sequence).is_some_and(|entry| entry.is_doubtful);
        if sent_before && (retry_after_ms > 0 || code == RefusalCode::Stopping) {
            self.postpone(now, sequence, retry_after_ms, RESEND_NANOS_DEFAULT);
            return;
        }
        if sent_before {
            self.report_unknown(sequence, LossReason::Refused, effects);
        } else {
            let result = FrameResult::Refused { code, message, retry_after_ms };
            self.report(sequence, result, effects);
        }
        let reason = match code {
            RefusalCode::SessionUnknown => LossReason::SessionUnknown,
            RefusalCode::SessionFenced => LossReason::Fenced,
            _ => return,
        };
        self.fail(ClientError::refused(code, message, retry_after_ms), reason, effects);
    }

    /// Sends the same frame again later.
    fn postpone(&mut self, now: u64, sequence: u64, retry_after_ms: u32, default_nanos: u64) {
        let wait = match u64::from(retry_after_ms) * NANOS_PER_MS {
            0 => default_nanos,
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
        let (is_doubtful, transactions) = (entry.is_doubtful, entry.transactions);
        let behind_until = entry.submitted_at.saturating_add(self.options.behind_nanos);
        let verdict = match verdict_of(answer, transactions) {
            Ok(verdict) => verdict,
            Err(wrong) => {
                self.violation(wrong, effects);
                return;
            }
        };
        let retry_after_ms = answer.retry_after_ms.to_native();
        match verdict {
            Verdict::Behind if now < behind_until => {
                self.behind(now, sequence, retry_after_ms, effects);
                return;
            }
            // The first attempt may have taken effect although the second was not let in.
            Verdict::Transient if is_doubtful => {
                self.postpone(now, sequence, retry_after_ms, RESEND_NANOS_DEFAULT);
            }
            Verdict::NotExecuted if is_doubtful => {
                self.report_unknown(sequence, LossReason::Refused, effects);
            }
            _ => {
                let outcomes = answer.outcomes.as_slice();
                let bytes = answer.bytes.as_slice();
                let result = FrameResult::Outcomes { lsn, retry_after_ms, outcomes, bytes };
                self.report(sequence, result, effects);
            }
        }
        self.behinds = 0;
    }

    /// The node has not applied what a read must have seen: asks again a little later, and after
    /// a few times another node. Such a frame only reads, so that repeating it does no harm.
    fn behind(
        &mut self,
        now: u64,
        sequence: u64,
        retry_after_ms: u32,
        effects: &mut impl ClientEffects,
    ) {
        self.behinds += 1;
        let is_free = self.options.follow == Follow::Any && self.course.book().len() > 1;
        if self.behinds < BEHIND_MAX || !is_free {
            self.postpone(now, sequence, retry_after_ms, BEHIND_NANOS_DEFAULT);
            return;
        }
        self.window.returned(sequence);
        let departure = Departure::Busy(u64::from(retry_after_ms) * NANOS_PER_MS);
        let error = ClientError::NotCommitted(OutcomeStatus::Behind);
        self.drop_connection(now, departure, error, LossReason::Refused, effects);
    }

    fn tick(&mut self, now: u64, effects: &mut impl ClientEffects) {
        self.give_up(now, effects);
        match self.state {
            State::Waiting { until } if until <= now => self.connect(now, effects),
            State::Connecting { deadline, .. } | State::Greeting { deadline, .. }
                if deadline <= now =>
            {
                let timeout = self.connect_timeout_nanos();
                self.silences += 1;
                self.timed_out(now, timeout, effects);
            }
            State::Ready => {
                let timeout = self.options.request_timeout_nanos;
                let oldest = self.window.oldest_awaiting();
                let is_late = oldest.is_some_and(|entry| {
                    entry.sent_at.saturating_add(timeout) <= now
                        || spillway_runtime::fault_point!(ClientTimesOut)
                });
                if is_late {
                    self.timed_out(now, timeout, effects);
                    return;
                }
                while let Some(sequence) = self.window.resend_due(now) {
                    effects.send(&self.window.sent(now, sequence).frame);
                }
            }
            _ => {}
        }
    }

    fn timed_out(&mut self, now: u64, timeout_nanos: u64, effects: &mut impl ClientEffects) {
        let error = ClientError::TimedOut(timeout_nanos / NANOS_PER_MS);
        self.drop_connection(now, Departure::Silent, error, LossReason::GaveUp, effects);
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
            self.timed_out(now, self.options.give_up_nanos, effects);
        }
    }
}

/// The leader and its address that a refusal names.
fn hint_of(refusal: &ArchivedRefusal) -> (u16, String) {
    (refusal.leader.to_native(), refusal.leader_address.as_str().to_owned())
}

/// What the outcomes of a frame say about another attempt of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All were decided.
    Decided,
    /// The node has not applied what some must have seen.
    Behind,
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
            OutcomeStatus::Behind => verdict = Verdict::Behind,
            _ if verdict == Verdict::Behind => {}
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
