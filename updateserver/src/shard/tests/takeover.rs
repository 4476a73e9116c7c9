//! Two nodes that lead and follow each other, against the plain model: random execution, commits,
//! ends of leadership and take-overs over one log.

use std::collections::BTreeMap;

use proptest::prelude::*;
use spillway_net::client::Outcome;
use spillway_net::frame::FrameKind;
use spillway_net::message::{OutcomeStatus, ReadMode, Scan};

use super::client::read;
use super::model::{KEYS, Model, Transaction, transaction};
use super::model_tests::{Written, repeated};
use super::{
    LogState, LoggedItem, Node, OPTIONS, Operation, RootOrder, ScannedRow, ShardInput, TABLE,
    definition, frame_of, get, session, submit,
};

#[derive(Clone, Debug)]
enum Action {
    /// Frames of one step: whose, and what.
    Frames(Vec<(u64, Vec<Transaction>)>),
    TurnEnd,
    /// The log commits all but some.
    Commit(usize),
    /// The quorum says that the leader leads.
    RoundConfirmed,
    /// The follower applies some more, so many items in one batch.
    Apply(usize, usize),
    /// The follower is asked for all rows as of an LSN that is so far above what it has.
    FollowerRead(u64),
    Scan,
    TakeOver(TakeOver),
}

#[derive(Clone, Debug)]
struct TakeOver {
    /// How many items that were not committed the next leader has in its log.
    survivors: usize,
    /// Whether the same node leads again.
    same: bool,
    /// Whether lost transactions are sent again, bit by bit.
    again: u64,
    /// How many items the new leader applies at a time.
    items_per_batch: usize,
}

fn action() -> impl Strategy<Value = Action> {
    let frame = (1u64..3, prop::collection::vec(transaction(), 1..8));
    let take_over = (0usize..4, any::<bool>(), any::<u64>(), 1usize..4).prop_map(
        |(survivors, same, again, items_per_batch)| {
            Action::TakeOver(TakeOver { survivors, same, again, items_per_batch })
        },
    );
    prop_oneof![
        8 => prop::collection::vec(frame, 1..4).prop_map(Action::Frames),
        5 => Just(Action::TurnEnd),
        3 => (0usize..4).prop_map(Action::Commit),
        2 => Just(Action::RoundConfirmed),
        3 => (0usize..4, 1usize..4).prop_map(|(count, per)| Action::Apply(count, per)),
        1 => (0u64..3).prop_map(Action::FollowerRead),
        1 => Just(Action::Scan),
        2 => take_over,
    ]
}

enum Awaited {
    Outcomes(Vec<Outcome>),
    Page(Vec<ScannedRow>),
}

/// Two nodes, the log they share, and the model beside them.
struct Cluster {
    nodes: [Node; 2],
    leader: usize,
    epoch: u64,
    /// Committed items; an item's LSN is its place, from 1.
    log: Vec<LoggedItem>,
    /// How far each node has executed or applied the log.
    applied: [usize; 2],
    /// The leader's items from here on are not in the log.
    uncommitted_from: usize,
    round: u64,
    model: Model,
    /// The model after every transaction that wrote and was not lost, the first one before all.
    history: Vec<Model>,
    written: Vec<Written>,
    /// By connection and request: the answer, and how many transactions must be durable first.
    awaited: BTreeMap<(u64, u64), (Awaited, u64)>,
    next_number: BTreeMap<u64, u64>,
    request: u64,
    answered: usize,
    taken_back: usize,
    /// Committed transactions that were sent again and found, lost ones that were executed anew.
    repeated: usize,
    executed_anew: usize,
}

impl Cluster {
    fn new() -> Self {
        let model = Model::new(OPTIONS.partitions);
        let node = || {
            let mut node = Node::bare(OPTIONS);
            node.followed = true;
            let order = RootOrder::TableCreate { table: TABLE, definition: definition() };
            node.step(ShardInput::Root(order));
            node
        };
        let mut cluster = Self {
            nodes: [node(), node()],
            leader: 0,
            epoch: 0,
            log: Vec::new(),
            applied: [0; 2],
            uncommitted_from: 0,
            round: 1,
            history: vec![model.clone()],
            model,
            written: Vec::new(),
            awaited: BTreeMap::new(),
            next_number: BTreeMap::from([(1, 1), (2, 1)]),
            request: 0,
            answered: 0,
            taken_back: 0,
            repeated: 0,
            executed_anew: 0,
        };
        cluster.lead(0);
        cluster
    }

    fn leading(&mut self) -> &mut Node {
        &mut self.nodes[self.leader]
    }

    /// The connection of a session to the leader of this term.
    fn connection(&self, session: u64) -> u64 {
        self.epoch * 10 + session
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Frames(frames) => {
                // Read after the frames arrived: a new round has not begun.
                self.tell_log();
                let sent = self.next_number[&2];
                let requests: Vec<_> = frames
                    .iter()
                    .map(|(session, transactions)| self.frame(*session, sent, transactions))
                    .collect();
                self.leading().frames(&requests);
            }
            Action::TurnEnd => self.leading().turn_end(),
            Action::Commit(lag) => self.commit(*lag),
            Action::RoundConfirmed => {
                self.round += 1;
                self.tell_log();
            }
            Action::Apply(count, per) => {
                let to = (self.applied[1 - self.leader] + count).min(self.log.len());
                self.apply(1 - self.leader, to, *per);
            }
            Action::FollowerRead(ahead) => self.follower_read(*ahead),
            Action::Scan => self.scan(),
            Action::TakeOver(take_over) => self.take_over(take_over),
        }
        self.check_answers();
    }

    /// Rounds below the present one have succeeded.
    fn tell_log(&mut self) {
        let stamp = match self.uncommitted_from {
            0 => 0,
            from => self.nodes[self.leader].items[from - 1].stamp,
        };
        let vdl = spillway_net::ids::Lsn(self.log.len() as u64);
        let (round_next, round_confirmed) = (self.round, self.round - 1);
        let state = LogState { vdl, round_next, round_confirmed, ..LogState::default() };
        self.leading().step(ShardInput::Log { stamp, state });
    }

    /// Executes a frame in the model, and encodes it. The second session claims to have read
    /// everything that it ever sent.
    fn frame(&mut self, session: u64, sent: u64, transactions: &[Transaction]) -> super::Request {
        let first = self.next_number[&session];
        self.next_number.insert(session, first + transactions.len() as u64);
        let acknowledged = if session == 2 { sent } else { 0 };
        self.frame_from(session, first, acknowledged, transactions)
    }

    fn frame_from(
        &mut self,
        session: u64,
        first: u64,
        acknowledged: u64,
        transactions: &[Transaction],
    ) -> super::Request {
        let (mut encoded, mut outcomes) = (Vec::new(), Vec::new());
        for (at, transaction) in transactions.iter().enumerate() {
            let expected = self.model.execute(transaction);
            let (status, operation) = (expected.status, expected.operation);
            let outcome = Outcome { status, operation, gets: expected.gets };
            if expected.writes {
                self.history.push(self.model.clone());
                self.written.push(Written {
                    connection: session,
                    number: first + at as u64,
                    operations: expected.operations.clone(),
                    outcome: outcome.clone(),
                });
            }
            outcomes.push(outcome);
            encoded.push(expected.operations);
        }
        self.request_of(session, first, acknowledged, &encoded, outcomes)
    }

    fn request_of(
        &mut self,
        session: u64,
        first: u64,
        acknowledged: u64,
        encoded: &[Vec<Operation>],
        outcomes: Vec<Outcome>,
    ) -> super::Request {
        self.request += 1;
        let connection = self.connection(session);
        let awaited = (Awaited::Outcomes(outcomes), self.written.len() as u64);
        self.awaited.insert((connection, self.request), awaited);
        submit(connection, self.request, first, acknowledged, encoded)
    }

    fn scan(&mut self) {
        self.tell_log();
        self.request += 1;
        let scan = Scan { table: TABLE.0, start: Vec::new(), end: Vec::new(), rows_max: 4096 };
        let page = Awaited::Page(self.model.listing());
        let (connection, request) = (self.connection(1), self.request);
        self.awaited.insert((connection, request), (page, self.written.len() as u64));
        self.leading().frames(&[frame_of(connection, request, FrameKind::Scan, &scan)]);
    }

    fn commit(&mut self, lag: usize) {
        let leader = self.leader;
        let items = &self.nodes[leader].items;
        let to = items.len().saturating_sub(lag).max(self.uncommitted_from);
        self.log.extend_from_slice(&items[self.uncommitted_from..to]);
        self.uncommitted_from = to;
        self.applied[leader] = self.log.len();
        self.tell_log();
    }

    /// Applies the log up to a place, several items in one batch.
    fn apply(&mut self, node: usize, to: usize, items_per_batch: usize) {
        while self.applied[node] < to {
            let end = (self.applied[node] + items_per_batch).min(to);
            let items = self.log[self.applied[node]..end].to_vec();
            let sections: Vec<_> =
                items.iter().flat_map(|item| &item.sections).map(|s| s.view()).collect();
            self.nodes[node].apply_sections(end as u64, &sections);
            assert!(self.nodes[node].diverged.is_none(), "{:?}", self.nodes[node].diverged);
            self.applied[node] = end;
        }
    }

    fn outcomes_in_log(&self, to: usize) -> usize {
        self.log[..to].iter().map(|item| item.outcomes as usize).sum()
    }

    fn follower_read(&mut self, ahead: u64) {
        let (follower, applied) = (1 - self.leader, self.applied[1 - self.leader]);
        let model = self.history[self.outcomes_in_log(applied)].clone();
        let node = &mut self.nodes[follower];
        node.connect(7, session(3).0);
        let gets: Vec<_> = (0..KEYS).map(get).collect();
        node.frames(&[read(7, 1, ReadMode::AtLsn, applied as u64 + ahead, &[gets])]);
        let answers = node.take_answers();
        assert_eq!(answers.len(), 1, "answered at once");
        let outcome = answers[0].outcomes().remove(0);
        node.step(ShardInput::Closed(7));
        if ahead > 0 {
            assert_eq!(outcome.status, OutcomeStatus::Behind);
            return;
        }
        assert_eq!(outcome.status, OutcomeStatus::Committed);
        let found: Vec<_> = outcome.gets.iter().flatten().map(|found| &found.row).collect();
        let listing = model.listing();
        assert_eq!(found, listing.iter().map(|row| &row.1).collect::<Vec<_>>());
    }

    /// Leadership ends; some of what was not committed is in the next leader's log, the rest is
    /// lost; then a node that has applied everything leads.
    fn take_over(&mut self, take_over: &TakeOver) {
        let before = self.leader;
        let stamp = match self.uncommitted_from {
            0 => 0,
            from => self.nodes[before].items[from - 1].stamp,
        };
        self.check_answers();
        self.leading().step(ShardInput::StepDown { stamp });
        self.check_taken_back();
        self.leading().step(ShardInput::StepDown { stamp });
        let items = &self.nodes[before].items;
        let survivors = (self.uncommitted_from + take_over.survivors).min(items.len());
        self.log.extend_from_slice(&items[self.uncommitted_from..survivors]);
        let kept = self.outcomes_in_log(self.log.len());
        let lost = self.written.split_off(kept);
        self.taken_back += lost.len();
        self.history.truncate(kept + 1);
        self.model = self.history[kept].clone();
        let next = if take_over.same { before } else { 1 - before };
        self.apply(next, self.log.len(), take_over.items_per_batch);
        assert_eq!(self.nodes[next].held(), self.model.listing());
        self.lead(next);
        self.lost_again(lost, take_over.again);
    }

    /// All connections are closed unanswered, and only what is committed is left.
    fn check_taken_back(&mut self) {
        let (epoch, leader) = (self.epoch, self.leader);
        let node = &mut self.nodes[leader];
        let mut closes = std::mem::take(&mut node.closes);
        closes.sort_unstable();
        assert_eq!(closes, [epoch * 10 + 1, epoch * 10 + 2]);
        assert!(node.take_answers().is_empty(), "nobody was answered");
        assert_eq!((node.shard.connections_count(), node.shard.store.history.count()), (0, 0));
        closes.iter().for_each(|connection| node.step(ShardInput::Closed(*connection)));
        self.awaited.clear();
        let committed = self.outcomes_in_log(self.log.len());
        assert_eq!(self.nodes[leader].held(), self.history[committed].listing());
    }

    fn lead(&mut self, node: usize) {
        self.epoch += 1;
        self.leader = node;
        self.uncommitted_from = self.nodes[node].items.len();
        let epoch = self.epoch;
        self.leading().lead(epoch);
        assert!(self.leading().closes.is_empty());
        for number in 1..=2 {
            let connection = self.connection(number);
            self.leading().connect(connection, session(number).0);
        }
        self.tell_log();
    }

    /// What is in the log is told again and not executed again; what was lost may be sent again
    /// under its number, and is executed now.
    fn lost_again(&mut self, lost: Vec<Written>, again: u64) {
        for at in [0, self.written.len() / 2, self.written.len().saturating_sub(1)] {
            let Some(written) = self.written.get(at).filter(|w| w.connection == 1) else {
                continue;
            };
            let (number, operations) = (written.number, written.operations.clone());
            let expected = vec![repeated(&written.outcome)];
            let request = self.request_of(1, number, 0, &[operations], expected);
            self.leading().frames(&[request]);
            assert!(self.leading().shard.store.open.is_empty(), "it was not executed again");
            self.repeated += 1;
        }
        for (at, lost) in lost.iter().enumerate() {
            if again >> (at % 64) & 1 == 1 {
                let transaction =
                    vec![(at as i64 % KEYS, super::model::Step::Get), upsert_again(at)];
                let request = self.frame_from(lost.connection, lost.number, 0, &[transaction]);
                self.leading().frames(&[request]);
                self.executed_anew += 1;
            }
        }
    }

    /// Every answer that left is right, was awaited, and follows only what is committed.
    fn check_answers(&mut self) {
        let durable = self.outcomes_in_log(self.log.len()) as u64;
        for answer in self.leading().take_answers() {
            let awaited = self.awaited.remove(&(answer.connection, answer.request));
            let (expected, written) = awaited.expect("every request is answered once");
            assert!(written <= durable, "it follows {written}, {durable} are durable");
            match expected {
                Awaited::Outcomes(expected) => assert_eq!(answer.outcomes(), expected),
                Awaited::Page(expected) => assert_eq!(answer.page(), (false, expected)),
            }
            self.answered += 1;
        }
        assert!(self.leading().closes.is_empty(), "nothing was wrong");
    }

    /// Everything is committed and applied: both nodes are what the model is.
    fn end(&mut self) {
        self.leading().turn_end();
        self.commit(0);
        self.round += 1;
        self.tell_log();
        self.check_answers();
        assert!(self.awaited.is_empty(), "all answers left once all was committed");
        self.apply(1 - self.leader, self.log.len(), 1);
        for node in &mut self.nodes {
            assert_eq!(node.held(), self.model.listing());
        }
        assert_eq!(self.nodes[0].digests(), self.nodes[1].digests());
        assert_eq!(self.nodes[0].shard.memory().0, self.nodes[1].shard.memory().0, "rows held");
        let numbers = |node: &Node| -> Vec<u64> {
            node.shard.store.partitions.iter().map(|partition| partition.next_number).collect()
        };
        assert_eq!(numbers(&self.nodes[0]), numbers(&self.nodes[1]));
        let replayed = Node::followed(&self.log, OPTIONS).expect("the log is good");
        assert_eq!(replayed.digests(), self.nodes[0].digests());
    }
}

/// A write that always succeeds, and differs from what was lost.
fn upsert_again(at: usize) -> (i64, super::model::Step) {
    use spillway_net::value::Value;
    let text = |text: &str| Value::Text(text.to_owned());
    let values = [Value::Int8(at as i64), Value::Null, text("again"), text("")];
    ((at as i64 + 3) % KEYS, super::model::Step::Upsert(values))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn leadership_comes_and_goes_and_the_log_is_the_truth(
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let mut cluster = Cluster::new();
        for action in &actions {
            cluster.act(action);
        }
        cluster.end();
    }
}

/// The random runs are worth something only if they reach the cases that are hard.
#[test]
fn random_runs_take_transactions_back_and_bring_some_again() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let strategy = prop::collection::vec(action(), 50..60);
    let (mut taken_back, mut answered, mut applied) = (0, 0, 0);
    let (mut repeated, mut executed_anew) = (0, 0);
    for _ in 0..16 {
        let actions = strategy.new_tree(&mut runner).expect("it generates").current();
        let mut cluster = Cluster::new();
        for action in &actions {
            cluster.act(action);
        }
        cluster.end();
        taken_back += cluster.taken_back;
        answered += cluster.answered;
        repeated += cluster.repeated;
        executed_anew += cluster.executed_anew;
        applied += cluster.nodes[0].shard.counters().records_applied;
    }
    let counts = [taken_back as u64, answered as u64, applied];
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    assert!(repeated > 10 && executed_anew > 10, "{repeated} {executed_anew}");
}
