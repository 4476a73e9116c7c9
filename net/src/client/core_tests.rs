//! The core against a scripted node in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::client::answer::{FrameAnswer, FrameResult, FrameToken, LossReason};
use crate::client::batch::Batch;
use crate::client::core::{ClientCore, ClientEffects, ClientInput, CoreOptions};
use crate::client::error::ClientError;
use crate::client::nodes::NodeBook;
use crate::frame::{self, Assembled, FrameAssembler, FrameKind, HEADER_BYTES};
use crate::ids::{Lsn, TableId};
use crate::limits::FRAME_PAYLOAD_BYTES_MAX;
use crate::message::{
    self, Done, Hello, OutcomeHead, OutcomeStatus, Outcomes, Refusal, RefusalCode, Status,
    StatusReport, Submit, TableDrop, Welcome,
};

const SESSION: u64 = 77;
const SECOND: u64 = 1_000_000_000;
const TIMEOUT: u64 = SECOND;
const GIVE_UP: u64 = 30 * SECOND;

fn options() -> CoreOptions {
    CoreOptions {
        connection: 3,
        session: SESSION,
        shard: 1,
        frames_in_flight_max: 16,
        request_timeout_nanos: TIMEOUT,
        give_up_nanos: GIVE_UP,
        connect_timeout_nanos: TIMEOUT,
        seed: 5,
        ..CoreOptions::new(NodeBook::with_ports("n1:7001", vec![7001, 7002]))
    }
}

fn welcome() -> Welcome {
    Welcome {
        cluster: 9,
        node: 1,
        epoch: 1,
        leader: 1,
        partitions: 256,
        shard: 1,
        shard_ports: vec![7001, 7002],
        ..Welcome::default()
    }
}

/// What a frame ended with.
#[derive(Clone, Debug, PartialEq)]
enum Ended {
    Outcomes(Vec<u16>),
    Answer(FrameKind),
    Refused(RefusalCode),
    Unknown(LossReason),
    NotSent(LossReason),
}

#[derive(Debug, PartialEq)]
struct Recorded {
    token: FrameToken,
    first_number: u64,
    transactions: usize,
    ended: Ended,
}

/// The kernel's part: one connection at a time, and a record of results.
#[derive(Debug, Default)]
struct Wire {
    connect_wanted: bool,
    /// Where the last connection goes.
    address: String,
    up: bool,
    closes: usize,
    connects: usize,
    to_node: Vec<u8>,
    to_client: Vec<u8>,
    answers: Vec<Recorded>,
}

impl ClientEffects for Wire {
    fn connect(&mut self, address: &str) {
        self.address = address.to_owned();
        assert!(!self.up && !self.connect_wanted, "one connection at a time");
        self.connect_wanted = true;
    }

    fn send(&mut self, frame: &[u8]) {
        assert!(self.up, "frames are sent on a standing connection");
        self.to_node.extend_from_slice(frame);
    }

    fn close(&mut self) {
        assert!(self.up || self.connect_wanted, "there is something to close");
        self.lose();
        self.closes += 1;
    }

    fn answer(&mut self, answer: FrameAnswer<'_>) {
        let ended = match answer.result {
            FrameResult::Outcomes { outcomes, .. } => {
                Ended::Outcomes(outcomes.iter().map(|o| o.status.to_native()).collect())
            }
            FrameResult::Answer { kind, .. } => Ended::Answer(kind),
            FrameResult::Refused { code, .. } => Ended::Refused(code),
            FrameResult::Unknown(reason) => Ended::Unknown(reason),
            FrameResult::NotSent(reason) => Ended::NotSent(reason),
        };
        let (first_number, transactions) = (answer.first_number, answer.transactions);
        let again = self.answers.iter().any(|before| before.token == answer.token);
        assert!(!again, "{:?} was reported before", answer.token);
        self.answers.push(Recorded { token: answer.token, first_number, transactions, ended });
    }
}

impl Wire {
    fn lose(&mut self) {
        self.up = false;
        self.connect_wanted = false;
        self.to_node.clear();
        self.to_client.clear();
    }
}

/// A node that executes each transaction once and keeps outcomes.
#[derive(Debug, Default)]
struct Node {
    /// The shard connected to.
    shard: u16,
    assembler: FrameAssembler,
    greeted: bool,
    /// Content of each executed transaction's frame, by the frame's first number.
    executed: BTreeMap<u64, Vec<u8>>,
    frames_seen: usize,
    acknowledged_below: u64,
}

impl Node {
    fn connection_lost(&mut self) {
        self.assembler = FrameAssembler::default();
        self.greeted = false;
    }

    fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        let mut spare = Vec::new();
        loop {
            let next = self.assembler.next(&mut bytes, FRAME_PAYLOAD_BYTES_MAX, &mut spare);
            match next.expect("the client sends good frames") {
                Assembled::InPlace(header, frame) => {
                    self.serve(header.kind, header.request, &frame[HEADER_BYTES..], out);
                }
                Assembled::Owned(header, frame) => {
                    self.serve(header.kind, header.request, &frame[HEADER_BYTES..], out);
                }
                Assembled::Incomplete => return,
            }
        }
    }

    fn serve(&mut self, kind: FrameKind, request: u64, payload: &[u8], out: &mut Vec<u8>) {
        assert_eq!(self.greeted, kind != FrameKind::Hello, "hello comes first, and once");
        match kind {
            FrameKind::Hello => {
                let hello = message::decode::<Hello>(payload).expect("valid");
                // Shard 0 is only asked for the ports of the others.
                assert_eq!(hello.session, if self.shard == 1 { SESSION } else { 0 });
                self.greeted = true;
                let welcome = Welcome { shard: self.shard, ..welcome() };
                message::write_frame(out, FrameKind::Welcome, request, Lsn(0), &welcome);
            }
            FrameKind::Submit => self.execute(request, payload, out),
            FrameKind::Status => {
                let report = StatusReport { values: Vec::new() };
                message::write_frame(out, FrameKind::StatusReport, request, Lsn(1), &report);
            }
            other => panic!("the test sends no {other:?}"),
        }
    }

    fn execute(&mut self, request: u64, payload: &[u8], out: &mut Vec<u8>) {
        let submit = message::decode::<Submit>(payload).expect("valid");
        self.frames_seen += 1;
        assert!(submit.first_number >= self.acknowledged_below, "an acknowledged number came back");
        self.acknowledged_below = self.acknowledged_below.max(submit.acknowledged_below);
        let before = self.executed.insert(submit.first_number, payload.to_vec());
        if let Some(before) = before {
            assert_eq!(before, payload, "the same numbers came with other content");
        }
        let outcome = OutcomeHead { status: 0, operation: 0, data_length: 0 };
        let outcomes = vec![outcome; submit.transactions.len()];
        write_outcomes(out, request, outcomes, 0);
    }
}

fn write_outcomes(out: &mut Vec<u8>, request: u64, outcomes: Vec<OutcomeHead>, retry: u32) {
    let answer = Outcomes { retry_after_ms: retry, outcomes, bytes: Vec::new() };
    message::write_frame(out, FrameKind::Outcomes, request, Lsn(4), &answer);
}

fn write_refusal(out: &mut Vec<u8>, request: u64, code: RefusalCode, retry_after_ms: u32) {
    let refusal = Refusal { retry_after_ms, ..Refusal::new(code, "because".to_owned()) };
    message::write_frame(out, FrameKind::Refusal, request, Lsn(0), &refusal);
}

struct World {
    now: u64,
    core: ClientCore,
    wire: Wire,
    node: Node,
    batch: Batch,
    submitted: Vec<FrameToken>,
}

impl World {
    fn new(options: CoreOptions) -> Self {
        let mut world = Self {
            now: SECOND,
            core: ClientCore::new(options),
            wire: Wire::default(),
            node: Node::default(),
            batch: Batch::new(),
            submitted: Vec::new(),
        };
        world.core.step(world.now, ClientInput::Start, &mut world.wire);
        world
    }

    /// A world whose connection is greeted.
    fn ready() -> Self {
        let mut world = Self::new(options());
        world.connect();
        world.deliver();
        assert!(world.core.is_ready());
        world
    }

    fn connect(&mut self) {
        assert!(std::mem::take(&mut self.wire.connect_wanted), "nobody wants a connection");
        self.wire.up = true;
        self.wire.connects += 1;
        self.node.connection_lost();
        self.node.shard = match self.wire.address.as_str() {
            "n1:7001" => 0,
            "n1:7002" => 1,
            other => panic!("nobody listens at {other}"),
        };
        self.core.step(self.now, ClientInput::Connected, &mut self.wire);
    }

    fn lose(&mut self) {
        if self.wire.up || self.wire.connect_wanted {
            self.wire.lose();
            self.node.connection_lost();
            self.core.step(self.now, ClientInput::Disconnected("test"), &mut self.wire);
        }
    }

    fn tick(&mut self, nanos: u64) {
        self.now += nanos;
        self.core.step(self.now, ClientInput::Tick, &mut self.wire);
    }

    fn feed_node(&mut self, bytes: usize) {
        let bytes: Vec<u8> = self.wire.to_node.drain(..bytes).collect();
        self.node.take(&bytes, &mut self.wire.to_client);
    }

    fn feed_client(&mut self, bytes: usize) {
        let bytes: Vec<u8> = self.wire.to_client.drain(..bytes).collect();
        self.core.step(self.now, ClientInput::Received(&bytes), &mut self.wire);
    }

    /// Delivers everything in both directions.
    fn deliver(&mut self) {
        while !self.wire.to_node.is_empty() || !self.wire.to_client.is_empty() {
            self.feed_node(self.wire.to_node.len());
            self.feed_client(self.wire.to_client.len());
        }
    }

    /// Hands raw bytes to the client as if the node had sent them.
    fn inject(&mut self, bytes: &[u8]) {
        self.core.step(self.now, ClientInput::Received(bytes), &mut self.wire);
    }

    fn fill(&mut self, transactions: usize) {
        for index in 0..transactions {
            let key = [self.submitted.len() as u8 + 1, index as u8 + 1];
            self.batch.begin();
            self.batch.insert(TableId(1), &key, b"row").expect("it fits");
            self.batch.end().expect("it has an operation");
        }
    }

    fn submit(&mut self, transactions: usize) -> FrameToken {
        self.fill(transactions);
        let token = self.core.submit(self.now, &mut self.batch, &mut self.wire).expect("free");
        assert!(self.batch.is_empty());
        self.submitted.push(token);
        token
    }

    /// Ticks, connects and delivers until nothing is in flight.
    fn settle(&mut self) {
        for _ in 0..100 {
            if self.wire.connect_wanted {
                self.connect();
            }
            self.deliver();
            if self.core.in_flight() == 0 {
                return;
            }
            self.tick(SECOND / 4);
        }
        panic!("frames are in flight for ever: {:?}", self.core);
    }

    fn ended(&self, token: FrameToken) -> &Ended {
        let found = self.wire.answers.iter().find(|answer| answer.token == token);
        &found.unwrap_or_else(|| panic!("{token:?} has not ended")).ended
    }

    /// Everything submitted was answered as committed, once, and executed once.
    fn check_all_committed(&self) {
        assert_eq!(self.wire.answers.len(), self.submitted.len());
        for token in &self.submitted {
            let Ended::Outcomes(outcomes) = self.ended(*token) else {
                panic!("{token:?} ended with {:?}", self.ended(*token));
            };
            assert!(outcomes.iter().all(|status| *status == 0));
        }
        assert_eq!(self.node.executed.len(), self.submitted.len());
    }
}

#[test]
fn frames_are_numbered_and_acknowledged() {
    let mut world = World::ready();
    let first = world.submit(3);
    let second = world.submit(2);
    assert_eq!(first, FrameToken { connection: 3, sequence: 0 });
    assert_eq!(world.core.in_flight(), 2);
    world.deliver();
    assert_eq!((world.wire.answers[0].first_number, world.wire.answers[0].transactions), (1, 3));
    assert_eq!((world.wire.answers[1].first_number, world.wire.answers[1].token), (4, second));
    assert_eq!(world.node.acknowledged_below, 1);
    world.submit(1);
    world.deliver();
    assert_eq!(world.node.acknowledged_below, 6);
    world.check_all_committed();
}

#[test]
fn frames_submitted_before_the_greeting_wait_for_it() {
    let mut world = World::new(options());
    world.submit(1);
    assert!(world.wire.to_node.is_empty());
    world.settle();
    world.check_all_committed();
}

#[test]
fn a_connection_lost_at_any_byte_loses_and_repeats_nothing() {
    let run = |cut_to_node: usize, cut_to_client: usize| {
        let mut world = World::new(CoreOptions { connect_nanos: u64::MAX, ..options() });
        world.connect();
        world.feed_node(world.wire.to_node.len());
        let greeting = world.wire.to_client.len().min(cut_to_client);
        world.feed_client(greeting);
        for transactions in [1, 3, 2] {
            world.submit(transactions);
        }
        let cut = world.wire.to_node.len().min(cut_to_node);
        let all = cut < cut_to_node;
        world.feed_node(cut);
        let cut = world.wire.to_client.len().min(cut_to_client - greeting);
        let all = all && cut < cut_to_client - greeting;
        world.feed_client(cut);
        world.lose();
        world.tick(SECOND);
        world.settle();
        world.check_all_committed();
        (all, world.node.frames_seen)
    };
    // First the client's stream, then the node's, cut after every byte.
    for cut in 0.. {
        let (all, frames) = run(cut, usize::MAX);
        assert_eq!(frames, 3, "what was cut off was not seen, what was seen was answered");
        if all || cut > 5_000 {
            assert!(cut > 300, "the stream is longer than {cut} bytes");
            break;
        }
    }
    let mut resent = [0; 4];
    for cut in 0.. {
        let (all, frames) = run(usize::MAX, cut);
        resent[frames - 3] += 1;
        if all || cut > 5_000 {
            assert!(cut > 300, "the stream is longer than {cut} bytes");
            break;
        }
    }
    assert!(resent.iter().all(|cuts| *cuts > 0), "0 to 3 frames were sent again: {resent:?}");
}

#[derive(Clone, Debug)]
enum Action {
    Submit(usize),
    ToNode(usize),
    ToClient(usize),
    Lose,
    Connect,
    Tick(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (1usize..4).prop_map(Action::Submit),
        4 => (0usize..400).prop_map(Action::ToNode),
        4 => (0usize..400).prop_map(Action::ToClient),
        1 => Just(Action::Lose),
        3 => Just(Action::Connect),
        2 => (0u64..SECOND).prop_map(Action::Tick),
    ]
}

proptest! {
    #[test]
    fn any_course_of_events_executes_and_answers_each_frame_once(
        actions in prop::collection::vec(action(), 0..80),
    ) {
        // Patient: the first connection may be lost, too.
        let mut world = World::new(CoreOptions { connect_nanos: u64::MAX, ..options() });
        for action in actions {
            match action {
                Action::Submit(count) if world.core.can_submit() => { world.submit(count); }
                Action::Submit(_) => prop_assert_eq!(world.core.in_flight(), 16),
                Action::ToNode(bytes) => world.feed_node(bytes.min(world.wire.to_node.len())),
                Action::ToClient(bytes) => world.feed_client(bytes.min(world.wire.to_client.len())),
                Action::Lose => world.lose(),
                Action::Connect if world.wire.connect_wanted => world.connect(),
                Action::Connect => {}
                Action::Tick(nanos) => world.tick(nanos),
            }
            let deadline = world.core.deadline();
            let is_waiting = !world.core.is_ready() || world.core.in_flight() > 0;
            prop_assert_eq!(deadline.is_some(), is_waiting);
        }
        world.settle();
        world.check_all_committed();
    }

    #[test]
    fn arbitrary_bytes_from_the_node_do_no_harm(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..100), 1..20),
        mutate in any::<prop::sample::Index>(),
        bit in 0usize..8,
    ) {
        let mut world = World::ready();
        world.submit(2);
        world.feed_node(world.wire.to_node.len());
        // A good answer with one bit changed, then rubbish.
        let mut answer = std::mem::take(&mut world.wire.to_client);
        let at = mutate.index(answer.len());
        answer[at] ^= 1 << bit;
        world.inject(&answer);
        prop_assert!(world.wire.answers.is_empty());
        for piece in pieces {
            world.inject(&piece);
        }
        prop_assert!(!world.wire.answers.iter().any(|a| matches!(a.ended, Ended::Outcomes(_))));
    }
}

#[test]
fn no_answer_in_time_reconnects_and_sends_again() {
    let mut world = World::ready();
    world.submit(1);
    world.wire.to_node.clear();
    assert_eq!(world.core.deadline(), Some(world.now + TIMEOUT));
    world.tick(TIMEOUT - 1);
    assert_eq!(world.wire.closes, 0);
    world.tick(1);
    assert_eq!(world.wire.closes, 1);
    assert!(matches!(world.core.take_error(), Some(ClientError::TimedOut(1000))));
    world.settle();
    assert_eq!(world.wire.connects, 2);
    world.check_all_committed();
}

#[test]
fn a_connection_that_never_greets_times_out() {
    let mut world = World::new(CoreOptions { connect_nanos: 10 * SECOND, ..options() });
    let token = world.submit(1);
    world.connect();
    while world.core.ended().is_none() {
        world.wire.to_node.clear();
        world.tick(SECOND / 10);
        if world.wire.connect_wanted {
            world.connect();
        }
        assert!(world.now < 14 * SECOND);
    }
    assert!(world.wire.connects > 5);
    assert_eq!(world.ended(token), &Ended::NotSent(LossReason::GaveUp));
}

#[test]
fn a_frame_that_never_gets_an_answer_is_reported_as_unknown() {
    let mut world = World::ready();
    let sent = world.submit(1);
    world.wire.to_node.clear();
    world.lose();
    let unsent = world.submit(1);
    // Nobody ever connects.
    world.tick(GIVE_UP - 1);
    assert!(world.wire.answers.is_empty());
    world.tick(1);
    assert_eq!(world.ended(sent), &Ended::Unknown(LossReason::GaveUp));
    assert_eq!(world.ended(unsent), &Ended::NotSent(LossReason::GaveUp));
    assert_eq!(world.core.ended(), None, "the session goes on");
}

#[test]
fn without_reconnect_the_core_ends_with_its_connection() {
    let mut world = World::new(CoreOptions { reconnect: false, ..options() });
    world.connect();
    world.deliver();
    let token = world.submit(1);
    world.lose();
    assert_eq!(world.ended(token), &Ended::Unknown(LossReason::Disconnected));
    assert_eq!(world.core.ended(), Some(LossReason::Disconnected));
    world.fill(1);
    let refused = world.core.submit(world.now, &mut world.batch, &mut world.wire);
    assert!(matches!(refused, Err(ClientError::Ended(_))));
    assert_eq!(world.core.deadline(), None);
}

#[test]
fn a_connection_that_cannot_be_made_ends_an_impatient_core() {
    let mut world = World::new(options());
    world.lose();
    assert_eq!(world.core.ended(), Some(LossReason::Disconnected));
    assert!(matches!(world.core.take_error(), Some(ClientError::Lost(cause)) if cause == "test"));
}

/// Loses the connection with one frame sent and one not, and refuses the new connection.
fn refuse_reattaching(code: RefusalCode) -> (World, Vec<Ended>) {
    let mut world = World::ready();
    let sent = world.submit(1);
    world.lose();
    let unsent = world.submit(1);
    world.tick(SECOND);
    world.connect();
    let mut refusal = Vec::new();
    write_refusal(&mut refusal, 0, code, 0);
    world.inject(&refusal);
    let ended = [sent, unsent].map(|token| world.ended(token).clone()).to_vec();
    (world, ended)
}

#[test]
fn a_session_the_node_forgot_makes_outcomes_unknown() {
    let (world, ended) = refuse_reattaching(RefusalCode::SessionUnknown);
    let reason = LossReason::SessionUnknown;
    assert_eq!(ended, vec![Ended::Unknown(reason), Ended::NotSent(reason)]);
    assert_eq!(world.core.ended(), Some(reason));
    assert_eq!(world.wire.closes, 1);
}

#[test]
fn a_fenced_session_makes_outcomes_unknown() {
    let (world, ended) = refuse_reattaching(RefusalCode::SessionFenced);
    let reason = LossReason::Fenced;
    assert_eq!(ended, vec![Ended::Unknown(reason), Ended::NotSent(reason)]);
    assert_eq!(world.core.ended(), Some(reason));
}

#[test]
fn a_stopping_node_is_waited_for() {
    let mut world = World::ready();
    world.submit(1);
    world.wire.to_node.clear();
    let mut refusal = Vec::new();
    write_refusal(&mut refusal, 0, RefusalCode::Stopping, 3_000);
    world.inject(&refusal);
    assert_eq!(world.wire.closes, 1);
    assert_eq!(world.core.deadline(), Some(world.now + 3 * SECOND));
    world.tick(3 * SECOND);
    world.settle();
    world.check_all_committed();
}

#[test]
fn overload_of_a_first_attempt_is_the_callers_business() {
    let mut world = World::ready();
    let token = world.submit(2);
    world.wire.to_node.clear();
    let overloaded = OutcomeStatus::Overloaded as u16;
    let head = |status| OutcomeHead { status, operation: 0, data_length: 0 };
    let mut answer = Vec::new();
    write_outcomes(&mut answer, 1, vec![head(0), head(overloaded)], 50);
    world.inject(&answer);
    assert_eq!(world.ended(token), &Ended::Outcomes(vec![0, overloaded]));
    let refused = world.submit(1);
    let mut answer = Vec::new();
    write_refusal(&mut answer, 2, RefusalCode::LimitReached, 50);
    world.inject(&answer);
    assert_eq!(world.ended(refused), &Ended::Refused(RefusalCode::LimitReached));
}

#[test]
fn overload_of_a_second_attempt_says_nothing_and_is_tried_again() {
    let head = |status: OutcomeStatus| {
        vec![OutcomeHead { status: status as u16, operation: 0, data_length: 0 }]
    };
    for by_refusal in [false, true] {
        let mut world = World::ready();
        world.submit(1);
        // The node executes it, its answer is lost.
        world.feed_node(world.wire.to_node.len());
        world.lose();
        world.tick(SECOND);
        world.connect();
        world.deliver_greeting();
        world.wire.to_node.clear();
        let mut answer = Vec::new();
        if by_refusal {
            write_refusal(&mut answer, 1, RefusalCode::LimitReached, 50);
        } else {
            write_outcomes(&mut answer, 1, head(OutcomeStatus::Overloaded), 50);
        }
        world.inject(&answer);
        assert!(world.wire.answers.is_empty());
        assert_eq!(world.core.deadline(), Some(world.now + 50_000_000));
        world.tick(50_000_000);
        world.deliver();
        world.check_all_committed();
        assert_eq!(world.node.frames_seen, 2);
    }
}

#[test]
fn a_second_attempt_that_is_not_let_in_leaves_the_first_unknown() {
    for status in [OutcomeStatus::LogFailed, OutcomeStatus::SessionUnknown] {
        let mut world = World::ready();
        let token = world.submit(1);
        world.feed_node(world.wire.to_node.len());
        world.lose();
        world.tick(SECOND);
        world.connect();
        world.deliver_greeting();
        let mut answer = Vec::new();
        let head = OutcomeHead { status: status as u16, operation: 0, data_length: 0 };
        write_outcomes(&mut answer, 1, vec![head], 0);
        world.inject(&answer);
        assert_eq!(world.ended(token), &Ended::Unknown(LossReason::Refused));
    }
}

impl World {
    /// Greets without serving what is sent behind the greeting.
    fn deliver_greeting(&mut self) {
        self.feed_node(self.wire.to_node.len());
        self.feed_client(self.wire.to_client.len());
        assert!(self.core.is_ready());
    }
}

#[test]
fn requests_are_answered_and_harmful_ones_not_repeated() {
    let mut world = World::ready();
    let status = world
        .core
        .request(world.now, FrameKind::Status, &Status {}, &mut world.wire)
        .expect("free");
    let drop = TableDrop { name: "t".to_owned() };
    let drop =
        world.core.request(world.now, FrameKind::TableDrop, &drop, &mut world.wire).expect("free");
    world.lose();
    assert_eq!(world.ended(drop), &Ended::Unknown(LossReason::Disconnected));
    world.tick(SECOND);
    world.settle();
    assert_eq!(world.ended(status), &Ended::Answer(FrameKind::StatusReport));
}

#[test]
fn a_connection_without_session_takes_requests_only() {
    let mut world = World::new(CoreOptions { session: 0, ..options() });
    world.fill(1);
    let refused = world.core.submit(world.now, &mut world.batch, &mut world.wire);
    assert!(matches!(refused, Err(ClientError::NoSession)));
    assert!(!world.core.can_submit());
    assert_eq!(world.batch.len(), 1, "a refused batch keeps its content");
}

#[test]
fn frames_and_numbers_in_flight_are_limited() {
    let mut world = World::ready();
    for _ in 0..16 {
        assert!(world.core.can_submit());
        world.submit(1);
    }
    assert!(!world.core.can_submit());
    world.fill(1);
    let refused = world.core.submit(world.now, &mut world.batch, &mut world.wire);
    assert!(matches!(refused, Err(ClientError::InFlightMax(16))));
    world.batch.clear();
    world.deliver();
    // Three frames of 50,000 numbers would span more than the session's window.
    for expected in [true, true, false] {
        for _ in 0..50_000 {
            world.batch.begin();
            world.batch.get(TableId(1), b"k").expect("it fits");
            world.batch.end().expect("it has an operation");
        }
        let taken = world.core.submit(world.now, &mut world.batch, &mut world.wire).is_ok();
        assert_eq!(taken, expected);
    }
    assert!(!world.core.can_submit());
}

/// Lets the node answer a submit of two transactions with `bytes`; the core must end.
fn hostile(bytes: &[u8]) -> ClientError {
    let mut world = World::ready();
    let token = world.submit(2);
    world.inject(bytes);
    assert_eq!(world.core.ended(), Some(LossReason::Protocol));
    assert_eq!(world.ended(token), &Ended::Unknown(LossReason::Protocol));
    assert_eq!(world.wire.closes, 1);
    // Whatever comes after is not read.
    world.inject(bytes);
    world.core.take_error().expect("the error is kept")
}

fn hostile_message<T: message::Payload>(kind: FrameKind, request: u64, message: &T) -> ClientError {
    let mut bytes = Vec::new();
    message::write_frame(&mut bytes, kind, request, Lsn(0), message);
    hostile(&bytes)
}

#[test]
fn answers_that_do_not_match_their_request_end_the_connection() {
    let head = OutcomeHead { status: 0, operation: 0, data_length: 0 };
    let answer = |heads: &[OutcomeHead], data: &[u8]| Outcomes {
        retry_after_ms: 0,
        outcomes: heads.to_vec(),
        bytes: data.to_vec(),
    };
    let protocol = |error| assert!(matches!(error, ClientError::Protocol(_)), "{error}");
    let outcomes = FrameKind::Outcomes;
    protocol(hostile_message(outcomes, 1, &answer(&[head], b"")));
    protocol(hostile_message(outcomes, 1, &answer(&[head; 3], b"")));
    protocol(hostile_message(outcomes, 2, &answer(&[head; 2], b"")));
    protocol(hostile_message(outcomes, 0, &answer(&[head; 2], b"")));
    protocol(hostile_message(outcomes, u64::MAX, &answer(&[head; 2], b"")));
    protocol(hostile_message(outcomes, 1, &answer(&[head; 2], b"x")));
    let data = OutcomeHead { data_length: u32::MAX, ..head };
    protocol(hostile_message(outcomes, 1, &answer(&[data, data], b"x")));
    let unknown = OutcomeHead { status: 999, ..head };
    protocol(hostile_message(outcomes, 1, &answer(&[head, unknown], b"")));
    protocol(hostile_message(FrameKind::Done, 1, &Done {}));
    protocol(hostile_message(FrameKind::Submit, 1, &Done {}));
    let elsewhere = Welcome { cluster: welcome().cluster + 1, ..welcome() };
    protocol(hostile_message(FrameKind::Welcome, 0, &elsewhere));
    let elsewhere = Welcome { shard: welcome().shard + 1, ..welcome() };
    protocol(hostile_message(FrameKind::Welcome, 0, &elsewhere));
    protocol(hostile_message(FrameKind::Welcome, 1, &welcome()));
    protocol(hostile_message(FrameKind::Done, 0, &Done {}));
    let refusal = Refusal { code: 999, ..Refusal::default() };
    protocol(hostile_message(FrameKind::Refusal, 1, &refusal));
    protocol(hostile_message(FrameKind::Refusal, 0, &refusal));
}

#[test]
fn an_answer_given_twice_ends_the_connection() {
    let mut world = World::ready();
    let token = world.submit(1);
    world.feed_node(world.wire.to_node.len());
    let answer = world.wire.to_client.clone();
    world.deliver();
    assert_eq!(world.ended(token), &Ended::Outcomes(vec![0]));
    world.inject(&answer);
    assert_eq!(world.core.ended(), Some(LossReason::Protocol));
}

#[test]
fn archives_that_do_not_validate_end_the_connection() {
    for (kind, request) in [(FrameKind::Outcomes, 1), (FrameKind::Refusal, 1)] {
        let mut bytes = Vec::new();
        let start = frame::begin(&mut bytes);
        bytes.extend_from_slice(&[0xFF; 5]);
        frame::finish(&mut bytes[start..], kind, request, Lsn(0));
        assert!(matches!(hostile(&bytes), ClientError::Message(_)));
    }
}

#[test]
fn damaged_frames_are_forgiven_a_few_times() {
    let mut bytes = Vec::new();
    write_outcomes(&mut bytes, 1, Vec::new(), 0);
    bytes[HEADER_BYTES] ^= 1;
    let mut oversize = bytes.clone();
    oversize[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut foreign = bytes.clone();
    foreign[8] ^= 1;
    for damaged in [bytes, oversize, foreign] {
        let mut world = World::ready();
        let token = world.submit(1);
        for closes in 1..=4 {
            assert_eq!(world.core.ended(), None);
            world.inject(&damaged);
            assert_eq!(world.wire.closes, closes);
            assert!(matches!(world.core.take_error(), Some(ClientError::Frame(_))));
            if closes < 4 {
                world.tick(SECOND);
                world.connect();
                world.deliver_greeting();
            }
        }
        assert_eq!(world.ended(token), &Ended::Unknown(LossReason::Protocol));
    }
}

#[test]
fn a_peer_that_speaks_another_protocol_is_refused_at_once() {
    let mut world = World::new(CoreOptions { connect_nanos: u64::MAX, ..options() });
    world.connect();
    world.inject(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n");
    assert_eq!(world.core.ended(), Some(LossReason::Protocol));
    assert!(matches!(world.core.take_error(), Some(ClientError::Frame(_))));
}

#[test]
fn a_greeting_must_be_that_of_the_node_expected() {
    let greet = |change: fn(&mut Welcome)| {
        let mut world = World::new(CoreOptions { cluster: 9, shards: 2, ..options() });
        world.connect();
        let mut welcome = welcome();
        change(&mut welcome);
        let mut bytes = Vec::new();
        message::write_frame(&mut bytes, FrameKind::Welcome, 0, Lsn(0), &welcome);
        world.inject(&bytes);
        (world.core.ended(), world.core.is_ready())
    };
    let refused = (Some(LossReason::Protocol), false);
    assert_eq!(greet(|_| {}), (None, true));
    assert_eq!(greet(|welcome| welcome.cluster = 10), refused);
    assert_eq!(greet(|welcome| welcome.shard = 0), refused);
    assert_eq!(greet(|welcome| welcome.shard_ports = vec![7001]), refused);
    assert_eq!(greet(|welcome| welcome.shard_ports.push(7003)), refused);
}
