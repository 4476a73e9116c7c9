//! Random transactions against the model: outcomes, held answers, restarts.

use std::collections::BTreeMap;

use proptest::prelude::*;
use spillway_net::client::Outcome;
use spillway_net::frame::FrameKind;
use spillway_net::limits::OUTCOME_RESULT_BYTES_MAX;
use spillway_net::message::{GET_RESULT_HEADER_BYTES, OutcomeStatus, Scan};

use super::model::{Model, Transaction, transaction};
use super::{Node, OPTIONS, Operation, Request, ScannedRow, TABLE, frame_of, session, submit};

#[derive(Clone, Debug)]
enum Action {
    /// Frames of one step: whose, and what.
    Frames(Vec<(u64, Vec<Transaction>)>),
    TurnEnd,
    /// The log commits all but some.
    Confirm(u64),
    Scan,
}

fn action() -> impl Strategy<Value = Action> {
    let frame = (1u64..3, prop::collection::vec(transaction(), 1..12));
    prop_oneof![
        6 => prop::collection::vec(frame, 1..4).prop_map(Action::Frames),
        3 => Just(Action::TurnEnd),
        3 => (0u64..4).prop_map(Action::Confirm),
        1 => Just(Action::Scan),
    ]
}

/// A committed transaction that wrote something.
pub(super) struct Written {
    pub(super) connection: u64,
    pub(super) number: u64,
    pub(super) operations: Vec<Operation>,
    pub(super) outcome: Outcome,
}

enum Awaited {
    Outcomes(Vec<Outcome>),
    Page(Vec<ScannedRow>),
}

/// A node, the model beside it, and the answers that have to come.
struct Run {
    node: Node,
    model: Model,
    /// The model after every committed transaction that wrote, the first one before all.
    history: Vec<Model>,
    written: Vec<Written>,
    /// By connection and request: the answer, and how many transactions must be durable first.
    awaited: BTreeMap<(u64, u64), (Awaited, u64)>,
    next_number: BTreeMap<u64, u64>,
    request: u64,
    checked: usize,
}

impl Run {
    fn new() -> Self {
        let model = Model::new(OPTIONS.partitions);
        Self {
            node: Node::new(),
            history: vec![model.clone()],
            model,
            written: Vec::new(),
            awaited: BTreeMap::new(),
            next_number: BTreeMap::from([(1, 1), (2, 1)]),
            request: 0,
            checked: 0,
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Frames(frames) => {
                let mut requests = Vec::new();
                for (connection, transactions) in frames {
                    requests.push(self.frame(*connection, transactions));
                }
                self.node.frames(&requests);
            }
            Action::TurnEnd => self.node.turn_end(),
            Action::Confirm(lag) => {
                let last = (self.node.items.len() as u64).saturating_sub(*lag);
                self.node.confirm(last.max(self.node.confirmed));
            }
            Action::Scan => {
                self.request += 1;
                let scan =
                    Scan { table: TABLE.0, start: Vec::new(), end: Vec::new(), rows_max: 4096 };
                let page = Awaited::Page(self.model.listing());
                self.awaited.insert((1, self.request), (page, self.written.len() as u64));
                self.node.frames(&[frame_of(1, self.request, FrameKind::Scan, &scan)]);
            }
        }
        self.check_answers();
    }

    fn frame(&mut self, connection: u64, transactions: &[Transaction]) -> Request {
        let first = self.next_number[&connection];
        let mut encoded = Vec::new();
        let mut outcomes = Vec::new();
        for (at, transaction) in transactions.iter().enumerate() {
            let expected = self.model.execute(transaction);
            let outcome = Outcome {
                status: expected.status,
                operation: expected.operation,
                gets: expected.gets,
            };
            if expected.writes {
                self.history.push(self.model.clone());
                self.written.push(Written {
                    connection,
                    number: first + at as u64,
                    operations: expected.operations.clone(),
                    outcome: outcome.clone(),
                });
            }
            outcomes.push(outcome);
            encoded.push(expected.operations);
        }
        self.next_number.insert(connection, first + transactions.len() as u64);
        self.request += 1;
        let awaited = (Awaited::Outcomes(outcomes), self.written.len() as u64);
        self.awaited.insert((connection, self.request), awaited);
        submit(connection, self.request, first, 0, &encoded)
    }

    /// Every answer that left is right, was awaited, and follows only what is durable.
    fn check_answers(&mut self) {
        let durable = self.node.outcomes_confirmed();
        for answer in self.node.take_answers() {
            let awaited = self.awaited.remove(&(answer.connection, answer.request));
            let (expected, written) = awaited.expect("every request is answered once");
            assert!(
                written <= durable,
                "request {} follows {written} transactions, {durable} are durable",
                answer.request
            );
            match expected {
                Awaited::Outcomes(expected) => assert_eq!(answer.outcomes(), expected),
                Awaited::Page(expected) => assert_eq!(answer.page(), (false, expected)),
            }
            self.checked += 1;
        }
        assert!(self.node.closes.is_empty(), "nothing was wrong");
    }

    /// Replays the log up to an item and compares all that can be seen.
    fn check_replay(&mut self, items: usize) {
        let items = &self.node.items[..items];
        let count: u64 = items.iter().map(|item| item.outcomes).sum();
        let mut node = Node::replayed(items, OPTIONS).expect("the log is good");
        assert_eq!(node.rows(), self.history[count as usize].listing());
        for written in &self.written[..count as usize] {
            let (operations, number) = (written.operations.clone(), written.number);
            let answer = node.ask(submit(written.connection, 1, number, 0, &[operations]));
            assert_eq!(answer.outcomes(), [repeated(&written.outcome)]);
        }
        assert!(node.items.is_empty(), "nothing was executed again");
        // Row versions go on where they ended, not anew.
        if count as usize == self.written.len() {
            let expected = self.model.clone().execute(&vec![(0, super::model::Step::Delete)]);
            let outcome = node.ask(submit(1, 1, 1 << 16, 0, &[expected.operations])).outcomes();
            assert_eq!(outcome[0].status, expected.status);
        }
    }
}

/// What a repeated transaction is told.
pub(super) fn repeated(first: &Outcome) -> Outcome {
    let row =
        |row: &Option<spillway_net::client::FoundRow>| row.as_ref().map_or(0, |r| r.row.len());
    let bytes: usize = first.gets.iter().map(|get| GET_RESULT_HEADER_BYTES + row(get)).sum();
    if bytes <= OUTCOME_RESULT_BYTES_MAX {
        return first.clone();
    }
    let status = OutcomeStatus::CommittedResultsNotKept;
    Outcome { status, operation: 0, gets: Vec::new() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_shard_does_what_the_model_does(
        actions in prop::collection::vec(action(), 1..40),
        prefix in any::<prop::sample::Index>(),
    ) {
        let mut run = Run::new();
        for action in &actions {
            run.act(action);
        }
        // Before and after confirmation a repetition is told the same.
        for at in [0, run.written.len() / 2, run.written.len().saturating_sub(1)] {
            let Some(written) = run.written.get(at) else { break };
            run.request += 1;
            let (connection, operations) = (written.connection, written.operations.clone());
            let repetition = submit(connection, run.request, written.number, 0, &[operations]);
            let expected = Awaited::Outcomes(vec![repeated(&written.outcome)]);
            run.awaited.insert((connection, run.request), (expected, at as u64 + 1));
            run.node.frames(&[repetition]);
            run.check_answers();
        }
        run.node.settle();
        run.check_answers();
        prop_assert!(run.awaited.is_empty(), "all answers left once all was committed");
        prop_assert_eq!(run.node.outcomes_confirmed(), run.written.len() as u64);
        prop_assert_eq!(run.node.rows(), run.model.listing());
        let committed = run.node.shard.counters();
        prop_assert!(committed.committed >= run.written.len() as u64);
        run.check_replay(prefix.index(run.node.items.len() + 1));
        run.check_replay(run.node.items.len());
        // A session that nobody used knows nothing of the others' numbers.
        prop_assert!(run.node.directory.is_live(session(3)));
    }
}

/// The random runs are worth something only if they reach the cases that are hard.
#[test]
fn random_transactions_reach_every_kind_of_record_and_outcome() {
    use crate::redo::{FragmentReader, RecordKind};
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use std::collections::BTreeSet;

    let mut runner = TestRunner::deterministic();
    let strategy = prop::collection::vec(action(), 30..40);
    let (mut kinds, mut statuses, mut chains) = (BTreeSet::new(), BTreeSet::new(), 0);
    for _ in 0..24 {
        let actions = strategy.new_tree(&mut runner).expect("it generates").current();
        let mut run = Run::new();
        for action in &actions {
            run.act(action);
        }
        statuses.extend(run.awaited.values().flat_map(|(awaited, _)| match awaited {
            Awaited::Outcomes(outcomes) => outcomes.iter().map(|o| o.status).collect(),
            Awaited::Page(_) => Vec::new(),
        }));
        let mut patched: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        for section in run.node.items.iter().flat_map(|item| &item.sections) {
            for record in FragmentReader::new(&section.bytes).expect("valid").records() {
                kinds.insert(record.kind as u8);
                let chain = patched.entry(record.key.to_vec()).or_default();
                *chain = if record.kind == RecordKind::Patch { *chain + 1 } else { 0 };
                chains = chains.max(*chain);
            }
        }
    }
    assert_eq!(kinds, BTreeSet::from([1, 2, 3]), "full rows, patches and deletions");
    assert_eq!(chains, 4, "the longest chain of patches");
    let wanted = [
        OutcomeStatus::Committed,
        OutcomeStatus::CheckFailed,
        OutcomeStatus::Duplicate,
        OutcomeStatus::NotFound,
        OutcomeStatus::BoundsViolated,
        OutcomeStatus::Overflow,
        OutcomeStatus::NullOperand,
    ];
    assert!(statuses.is_superset(&BTreeSet::from(wanted)), "{statuses:?}");
}
