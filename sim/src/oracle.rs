//! The judge: watches what goes into the shards and what comes out, and holds both against the
//! [`Model`] and against what is committed in the log.
//!
//! Every leadership has a model of its own: it begins as what was committed then, and executes
//! what the leader's shards answer, in their order. When the next leadership begins, that model,
//! with what was executed, committed and not answered, must be what the log holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use spillway_net::frame::{Assembled, FrameAssembler, FrameHeader, FrameKind, HEADER_BYTES};
use spillway_net::ids::{Epoch, Lsn, PartitionId};
use spillway_net::limits::ANSWER_PAYLOAD_BYTES_MAX;
use spillway_net::message::{
    self, Hello, OutcomeStatus, Outcomes, ReadMode, Refusal, RefusalCode, Scan, ScanPage, Submit,
};
use spillway_updateserver::log::{EntryIndex, Geometry};
use spillway_updateserver::quorum::{PeerHeader, PeerMessage};
use spillway_updateserver::redo::{FragmentReader, PARTITION_SYSTEM};
use spillway_updateserver::shard::Shard;

use crate::Failure;
use crate::counts::counted;
use crate::entry::Entry;
use crate::history::{History, Proposed};
use crate::model::{Model, Predicted, Transaction, transactions};
use crate::plan::FaultCounts;
use crate::reads::OldRead;
use crate::replicas::Replicas;
use crate::unanswered::{Attempt, carried_out};
use crate::worker::{BALANCE_INITIAL, Tables};

#[derive(Clone, Debug)]
enum Request {
    Submit { session: u64, transactions: Vec<Transaction>, old: Option<OldRead> },
    Scan(Scan),
}

/// A request that a shard has executed and not answered.
#[derive(Clone, Debug)]
struct Executed {
    /// Of its node.
    shard: u16,
    connection: u64,
    request: u64,
    /// The newest leadership that had answered anybody when the request arrived.
    answered_epoch: u64,
    what: Request,
}

/// A shard of a node: both numbers count from 0.
pub type At = (u16, u16);

counted! {
/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transactions that a shard answered as committed, repeated ones included.
    pub committed: u64,
    /// Of them, answered from an outcome that was kept.
    pub repeated: u64,
    /// Ended without effect.
    pub failed: u64,
    /// Refused for memory, log or session.
    pub refused: u64,
    /// Of them, because the log was full.
    pub log_full: u64,
    /// Of them, because memory was full.
    pub memory_full: u64,
    /// Reads that may be old, answered by a node that did not lead.
    pub old_reads: u64,
    /// The same, answered by a leader.
    pub old_reads_leader: u64,
    /// Reads that a node could not serve as fresh as they were wanted.
    pub behind: u64,
    /// Scans compared.
    pub scans: u64,
    /// Restarts.
    pub restarts: u64,
    /// Restarts that dropped a torn tail.
    pub torn: u64,
    /// Connections lost.
    pub resets: u64,
    /// Write errors.
    pub write_errors: u64,
    /// Leaders that were asked to hand over.
    pub transfers: u64,
    /// Leaderships that began.
    pub leaderships: u64,
    /// Restarts that held back entries which were not known to be committed.
    pub held_back: u64,
    /// Entries that a follower's disk gave back for a peer that was behind.
    pub read_back: u64,
    /// Messages between nodes that arrived.
    pub messages: u64,
    /// Of them, with an entry.
    pub messages_entries: u64,
    /// Messages lost for a cut direction or by chance.
    pub messages_lost: u64,
    /// Entries superseded by another leader's, found at restarts.
    pub superseded: u64,
    /// Starts refused because of damage.
    pub refused_starts: u64,
    /// Runs that did not come to rest because a member's log had no room left.
    pub spent_logs: u64,
    /// Starts that needed a larger budget.
    pub budget_raised: u64,
    /// Requests to the root service that were refused because of the log.
    pub refused_log: u64,
    /// Requests that clients gave up.
    pub gave_up: u64,
    /// Transactions and scans of clients whose history was judged.
    pub seen: u64,
    /// Events.
    pub events: u64,
    /// Faults that struck, by kind.
    pub faults: FaultCounts,
}
}

/// What the judge knows of a shard of a node.
#[derive(Debug, Default)]
struct Place {
    /// The leadership in which it executes, or did last; 0: none.
    epoch: u64,
    open: BTreeSet<u64>,
    executed: VecDeque<Executed>,
    /// The last attempt by which a session was attached.
    attempts: BTreeMap<u64, u64>,
}

/// One leadership.
#[derive(Debug)]
struct Leadership {
    model: Model,
    /// Of all partitions, when it began.
    digests: Vec<u128>,
    /// Executed and not answered when it ended: nobody will answer.
    abandoned: Vec<Executed>,
    /// A newer one began first: this one must not answer anything.
    is_late: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Oracle {
    tables: Tables,
    shards: u16,
    /// What is committed.
    pub history: History,
    /// Whether nothing that is found counts.
    pub blind: bool,
    replicas: Replicas,
    sessions: BTreeMap<u64, u64>,
    /// By node and shard.
    places: Vec<Vec<Place>>,
    /// By epoch.
    leaderships: BTreeMap<u64, Leadership>,
    /// All that ever began, forgotten ones too.
    begun: BTreeSet<u64>,
    /// The newest leadership that has answered anybody.
    answered_epoch: u64,
    /// The newest term in which each node has said something that binds it.
    terms: BTreeMap<u16, u64>,
    /// For whom each node has voted, by node and term.
    votes: BTreeMap<(u16, u64), u16>,
    /// Writers that a shard answered as committed.
    acknowledged: BTreeSet<(u64, u64)>,
    /// Writers whose end without effect a client was told.
    denied: BTreeSet<(u64, u64)>,
    /// Transactions whose end a client was told.
    heard: BTreeSet<(u64, u64)>,
    /// Virtual time.
    pub now: u64,
    /// How far the clocks of two nodes differ at most; none: nobody knows.
    pub clocks_apart_nanos: Option<u64>,
    /// What happened.
    pub counts: Counts,
}

impl Oracle {
    /// Of nodes without rows.
    pub fn new(tables: Tables, shards: u16, nodes: u16, geometry: Geometry) -> Self {
        let places = || (0..shards).map(|_| Place::default()).collect();
        Self {
            tables,
            shards,
            history: History::new(geometry, nodes == 1),
            blind: false,
            replicas: Replicas::new(nodes),
            sessions: BTreeMap::new(),
            places: (0..nodes).map(|_| places()).collect(),
            leaderships: BTreeMap::new(),
            begun: BTreeSet::new(),
            answered_epoch: 0,
            terms: BTreeMap::new(),
            votes: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            denied: BTreeSet::new(),
            heard: BTreeSet::new(),
            now: 0,
            clocks_apart_nanos: None,
            counts: Counts::default(),
        }
    }

    /// There is one node more.
    pub fn node_added(&mut self) {
        self.places.push((0..self.shards).map(|_| Place::default()).collect());
    }

    fn place(&mut self, at: At) -> &mut Place {
        &mut self.places[usize::from(at.0)][usize::from(at.1)]
    }

    /// What was found, if that counts.
    pub fn verdict(&self, found: Result<(), Failure>) -> Result<(), Failure> {
        if self.blind { Ok(()) } else { found }
    }

    /// A shard heard of a connection.
    pub fn opened(&mut self, at: At, connection: u64) {
        self.place(at).open.insert(connection);
    }

    /// A shard heard of its end, or ended it.
    pub fn closed(&mut self, at: At, connection: u64) {
        self.place(at).open.remove(&connection);
    }

    /// The newest leadership that has answered anybody, for requests that arrive now.
    pub fn answered_epoch(&self) -> u64 {
        self.answered_epoch
    }

    /// A shard that had applied the log so far has executed a frame that arrived when
    /// `answered_epoch` was the newest one.
    pub fn execute(
        &mut self,
        at: At,
        connection: u64,
        answered_epoch: u64,
        header: &FrameHeader,
        payload: &[u8],
        applied: Lsn,
    ) -> Result<(), Failure> {
        if !self.place(at).open.contains(&connection) {
            return Ok(());
        }
        let what = match header.kind {
            FrameKind::Hello => {
                let hello = decode::<Hello>(message::decode(payload))?;
                self.hello(at, connection, &hello);
                return Ok(());
            }
            FrameKind::Submit => {
                let submit = decode::<Submit>(message::decode(payload))?;
                let session = self.sessions.get(&connection).copied().unwrap_or(0);
                let transactions = transactions(&submit, &self.tables)?;
                let old = self.old_read(at, &submit, &transactions, applied)?;
                Request::Submit { session, transactions, old }
            }
            FrameKind::Scan => Request::Scan(decode::<Scan>(message::decode(payload))?),
            _ => return Ok(()),
        };
        let request = header.request;
        let executed = Executed { shard: at.1, connection, request, answered_epoch, what };
        self.place(at).executed.push_back(executed);
        Ok(())
    }

    /// How old a frame's reads may be, if it only reads and they may.
    fn old_read(
        &self,
        place: At,
        submit: &Submit,
        transactions: &[Transaction],
        applied: Lsn,
    ) -> Result<Option<OldRead>, Failure> {
        let mode = ReadMode::from_wire(submit.read_mode).ok_or(Failure::new("a read mode"))?;
        if mode == ReadMode::Strong || transactions.iter().any(Transaction::writes) {
            return Ok(None);
        }
        let epoch = self.places[usize::from(place.0)][usize::from(place.1)].epoch;
        Ok(Some(OldRead { mode, bound: submit.read_bound, epoch, applied, at: self.now }))
    }

    /// A hello that is not late fences the other connections of its session; a late one ends its
    /// own. What is fenced is served nothing any more, in the same turn already.
    fn hello(&mut self, at: At, connection: u64, hello: &Hello) {
        if hello.session != 0 {
            let place = &mut self.places[usize::from(at.0)][usize::from(at.1)];
            let last = place.attempts.entry(hello.session).or_default();
            let is_late = hello.attempt < *last;
            *last = hello.attempt.max(*last);
            let sessions = &self.sessions;
            place.open.retain(|open| {
                let same = sessions.get(open) == Some(&hello.session);
                if *open == connection { !is_late } else { is_late || !same }
            });
        }
        self.sessions.insert(connection, hello.session);
    }

    /// The log failed: what is not answered now will not be.
    pub fn log_failed(&mut self, at: At) {
        let place = self.place(at);
        let (epoch, executed) = (place.epoch, std::mem::take(&mut place.executed));
        for executed in &executed {
            // Whoever waited is disconnected, and what it sent meanwhile is not served.
            place.open.remove(&executed.connection);
        }
        self.abandon(epoch, executed);
    }

    fn abandon(&mut self, epoch: u64, executed: VecDeque<Executed>) {
        if let Some(leadership) = self.leaderships.get_mut(&epoch) {
            leadership.abandoned.extend(executed);
        }
    }

    /// A shard takes back what is not committed, and all its connections end.
    pub fn stepped_down(&mut self, at: At) {
        let place = self.place(at);
        place.open.clear();
        let executed = std::mem::take(&mut place.executed);
        let epoch = std::mem::take(&mut place.epoch);
        self.abandon(epoch, executed);
    }

    /// A node lost its power.
    pub fn crashed(&mut self, node: u16) {
        for shard in 0..self.shards {
            self.stepped_down((node, shard));
            self.place((node, shard)).attempts.clear();
        }
    }

    /// A node sends a message. Over all its starts its term never falls, and it votes once in each.
    pub fn sent(&mut self, header: &PeerHeader) -> Result<(), Failure> {
        self.replicas.sent(header, &self.history)?;
        let (node, term) = (header.from.0, header.term.0);
        let vote = match header.message {
            PeerMessage::Append { .. }
            | PeerMessage::AppendReply { .. }
            | PeerMessage::Heartbeat { .. }
            | PeerMessage::HeartbeatReply { .. }
            | PeerMessage::VoteReply { pre: false, reject: true, .. } => None,
            PeerMessage::Vote { pre: false, .. } => Some(node),
            PeerMessage::VoteReply { pre: false, reject: false, .. } => Some(header.to.0),
            _ => return Ok(()),
        };
        let last = self.terms.entry(node).or_default();
        if term < *last {
            return Err(Failure::new(format!("node {node} speaks in term {term} after {last}")));
        }
        *last = term;
        let Some(vote) = vote else { return Ok(()) };
        let before = *self.votes.entry((node, term)).or_insert(vote);
        if before != vote {
            return Err(Failure::new(format!(
                "node {node} votes for {vote} in term {term}, and has voted for {before}"
            )));
        }
        Ok(())
    }

    /// A node has started with what its disk holds.
    pub fn started(&mut self, node: u16, entries: &EntryIndex) {
        self.replicas.started(node, entries, &self.history);
    }

    /// A node sends the body of a frame. Returns the entry if it is new.
    pub fn proposed(&mut self, body: &[u8]) -> Result<Option<Rc<Entry>>, Failure> {
        let proposed = self.history.propose(body)?;
        Ok(proposed.filter(|proposed| proposed.is_new).map(|proposed| proposed.entry))
    }

    /// A node writes a frame with this body. Returns the entry if it is new.
    pub fn wrote(
        &mut self,
        node: u16,
        sequence: u64,
        body: &[u8],
    ) -> Result<Option<Rc<Entry>>, Failure> {
        let Some(Proposed { entry, is_new }) = self.history.propose(body)? else {
            return Ok(None);
        };
        self.replicas.wrote(node, sequence, &entry, &self.history)?;
        Ok(Some(entry).filter(|_| is_new))
    }

    /// Whether everything that is committed is on the medium of a node.
    pub fn is_durable(&self, node: u16) -> bool {
        self.replicas.durable(node) >= self.history.last().0
    }

    /// A frame of a node is on its medium.
    pub fn landed(&mut self, node: u16, sequence: u64) {
        self.replicas.landed(node, sequence, &self.history);
    }

    /// A node says that everything up to an entry is committed.
    pub fn committed(&mut self, node: u16, lsn: Lsn, term: Epoch) -> Result<(), Failure> {
        let new = self.history.commit(self.now, lsn, term, &self.tables)?;
        self.replicas.committed(node, lsn, &new, &self.history)?;
        for entry in new {
            for section in entry.sections.iter().filter(|s| s.partition != PARTITION_SYSTEM) {
                let reader = FragmentReader::new(&section.bytes)
                    .map_err(|error| Failure::new(error.to_string()))?;
                let names: Vec<_> = reader.outcomes().map(|o| (o.session, o.number)).collect();
                let denied = names.into_iter().filter(|name| self.denied.contains(name));
                self.denied_check(&denied.collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// A node leads, and has everything up to an entry.
    pub fn leads(&mut self, node: u16, epoch: Epoch, lsn: Lsn) -> Result<(), Failure> {
        self.replicas.leads(node, epoch.0, &self.history)?;
        let history = &self.history;
        let of_epoch = history.at(lsn).is_some_and(|entry| entry.term == epoch);
        if !of_epoch {
            return Err(Failure::new(format!("term {epoch} began without an entry of its own")));
        }
        let last = history.at(history.last()).expect("there is one");
        let is_late = last.term > epoch;
        if last.lsn > lsn && !is_late {
            return Err(Failure::new(format!(
                "the leader of term {epoch} begins at LSN {lsn}, and {} is committed",
                last.lsn
            )));
        }
        if !is_late {
            self.settle(epoch.0)?;
        }
        self.counts.leaderships += 1;
        let leadership = Leadership {
            // Row numbers of transactions that failed or were lost are given out again.
            model: if is_late { Model::default() } else { self.history.model.clone() },
            digests: self.history.digests.clone(),
            abandoned: Vec::new(),
            is_late,
        };
        self.leaderships.insert(epoch.0, leadership);
        if !self.begun.insert(epoch.0) {
            return Err(Failure::new(format!("term {epoch} has two leaders")));
        }
        // One that is late is not what the next one is held against.
        let used: BTreeSet<u64> = self.places.iter().flatten().map(|place| place.epoch).collect();
        self.leaderships.retain(|of, _| is_late || *of >= epoch.0 || used.contains(of));
        Ok(())
    }

    /// What the last leadership before this one has done must be what the log holds: everything
    /// acknowledged, once; what was not acknowledged in full or not at all.
    fn settle(&self, epoch: u64) -> Result<(), Failure> {
        let log = &self.history.model;
        if let Some((session, number)) =
            self.acknowledged.iter().find(|name| !log.outcomes.contains_key(name))
        {
            return Err(Failure::new(format!(
                "transaction {number} of session {session} was acknowledged and is lost"
            )));
        }
        let before = self.leaderships.iter().rev().find(|(of, l)| **of < epoch && !l.is_late);
        let mut difference = Model::default().difference(log);
        if let Some((of, leadership)) = before {
            let places = self.places.iter().flatten().filter(|place| place.epoch == *of);
            let unanswered = places.flat_map(|place| &place.executed);
            let attempts = self.unanswered(leadership.abandoned.iter().chain(unanswered));
            let model = leadership.model.clone();
            let (model, gave_up) = carried_out(model, &attempts, log, &self.tables);
            difference = model.difference(log);
            if let Some(difference) = difference.as_mut().filter(|_| gave_up) {
                difference.push_str(" (or too many ways to get there)");
            }
        }
        if let Some(difference) = difference {
            return Err(Failure::new(format!("before term {epoch}: {difference}")));
        }
        let (sum, accounts) = log.balances(&self.tables);
        if sum != accounts * BALANCE_INITIAL {
            return Err(Failure::new(format!("{accounts} accounts hold {sum}")));
        }
        let denied: Vec<_> = self.denied.iter().copied().collect();
        self.denied_check(&denied)
    }

    /// Of what nobody was answered, the transactions that are in the log, in the order in which
    /// each shard met them. One may be named twice.
    fn unanswered<'a>(&self, executed: impl Iterator<Item = &'a Executed>) -> Vec<Attempt<'a>> {
        let mut attempts = Vec::new();
        for executed in executed {
            let Request::Submit { session, transactions, .. } = &executed.what else { continue };
            for transaction in transactions {
                let lsn = self.history.lsn_of.get(&(*session, transaction.number));
                attempts.extend(lsn.map(|lsn| Attempt {
                    shard: executed.shard,
                    session: *session,
                    transaction,
                    lsn: *lsn,
                }));
            }
        }
        attempts
    }

    /// Everything has come to rest.
    pub fn settled(&self) -> Result<(), Failure> {
        self.settle(u64::MAX)
    }

    /// A shard begins to execute.
    pub fn shard_leads(&mut self, at: At, epoch: Epoch, shard: &Shard) -> Result<(), Failure> {
        let place = self.place(at);
        place.epoch = epoch.0;
        place.executed.clear();
        if !self.begun.contains(&epoch.0) {
            return Err(Failure::new("a shard leads, and its node does not"));
        }
        // It may hear of its leadership when a newer one has begun: whatever it answers is late.
        let leadership = self.leaderships.get(&epoch.0);
        let Some(leadership) = leadership.filter(|leadership| !leadership.is_late) else {
            return Ok(());
        };
        digests_check(at.1, self.shards, shard, &leadership.digests)
    }

    /// A shard has applied everything that is committed.
    pub fn is_complete(&self, shard: u16, core: &Shard) -> Result<(), Failure> {
        digests_check(shard, self.shards, core, &self.history.digests)
    }

    /// A shard lets a frame go.
    pub fn released(&mut self, at: At, connection: u64, frame: &[u8]) -> Result<(), Failure> {
        let mut rest = frame;
        let next = FrameAssembler::default()
            .next(&mut rest, ANSWER_PAYLOAD_BYTES_MAX, &mut Vec::new())
            .map_err(|error| Failure::new(format!("a shard sent no frame: {error}")))?;
        let Assembled::InPlace(header, frame) = next else {
            return Err(Failure::new("a shard sent a piece of a frame"));
        };
        let payload = &frame[HEADER_BYTES..];
        match header.kind {
            FrameKind::Refusal => {
                let refusal = decode::<Refusal>(message::decode(payload))?;
                self.refused(at, connection, header.request, refusal.code);
                Ok(())
            }
            FrameKind::Outcomes | FrameKind::ScanPage => {
                let executed = self.place(at).executed.pop_front();
                let executed = executed.ok_or(Failure::new("an answer that nobody waits for"))?;
                if (executed.connection, executed.request) != (connection, header.request) {
                    return Err(Failure::new(format!(
                        "answers in another order than requests: request {} of connection \
                         {connection} before {} of {}",
                        header.request, executed.request, executed.connection
                    )));
                }
                self.answered(at, executed, header.lsn, header.kind, payload)
            }
            _ => Ok(()),
        }
    }

    fn answered(
        &mut self,
        at: At,
        executed: Executed,
        lsn: Lsn,
        kind: FrameKind,
        payload: &[u8],
    ) -> Result<(), Failure> {
        let epoch = self.place(at).epoch;
        let told = match (executed.what, kind) {
            (Request::Submit { transactions, old: Some(old), .. }, FrameKind::Outcomes) => {
                let answer = decode::<Outcomes>(message::decode(payload))?;
                return self.old_outcomes(&old, &transactions, &answer);
            }
            (Request::Submit { session, transactions, .. }, FrameKind::Outcomes) => {
                let answer = decode::<Outcomes>(message::decode(payload))?;
                self.outcomes(epoch, session, &transactions, &answer, lsn)?
            }
            (Request::Scan(scan), FrameKind::ScanPage) => {
                let page = decode::<ScanPage>(message::decode(payload))?;
                self.page(epoch, at.1, &scan, &page)?;
                true
            }
            _ => return Err(Failure::new("an answer to another request")),
        };
        if !told {
            return Ok(());
        }
        let late = self.leaderships.get(&epoch).is_none_or(|leadership| leadership.is_late);
        if late || executed.answered_epoch > epoch {
            return Err(Failure::new(format!(
                "the leader of term {epoch} answered a request that came when term {} served",
                executed.answered_epoch
            )));
        }
        self.answered_epoch = self.answered_epoch.max(epoch);
        Ok(())
    }

    /// Answers to reads that may be old, of a leader or of any other node.
    fn old_outcomes(
        &mut self,
        old: &OldRead,
        transactions: &[Transaction],
        answer: &Outcomes,
    ) -> Result<(), Failure> {
        if answer.outcomes.len() != transactions.len() {
            return Err(Failure::new("an outcome is missing"));
        }
        let mut bytes = answer.bytes.as_slice();
        for (transaction, outcome) in transactions.iter().zip(&answer.outcomes) {
            let (results, rest) = bytes.split_at(outcome.data_length as usize);
            bytes = rest;
            let status = OutcomeStatus::from_wire(outcome.status);
            let status = status.ok_or(Failure::new("an unknown outcome"))?;
            if status == OutcomeStatus::Behind {
                self.counts.behind += 1;
                continue;
            }
            if self.not_let_in(status) {
                continue;
            }
            if !matches!(status, OutcomeStatus::Committed | OutcomeStatus::CheckFailed) {
                // Its table is not there yet, or not any more.
                continue;
            }
            self.history.versions.fresh_check(old, self.clocks_apart_nanos)?;
            let predicted = match self.leaderships.get_mut(&old.epoch) {
                // What a leader has whose time is over is known to nobody.
                Some(leadership) if leadership.is_late => continue,
                Some(leadership) => leadership.model.execute(0, transaction, &self.tables),
                None => {
                    let mut model = self.history.versions.model_at(transaction, old.applied);
                    model.execute(0, transaction, &self.tables)
                }
            };
            let by_leader = u64::from(old.epoch != 0);
            self.counts.old_reads_leader += by_leader;
            self.counts.old_reads += 1 - by_leader;
            predicted_check(0, transaction, &predicted, status, outcome.operation, results)?;
        }
        Ok(())
    }

    /// A refused request has no other answer, and what the connection sent behind a refused
    /// frame of transactions is not executed, unless only the node is the wrong one.
    fn refused(&mut self, at: At, connection: u64, request: u64, code: u16) {
        let place = self.place(at);
        let of = |e: &Executed| e.connection == connection && e.request == request;
        let Some(found) = place.executed.iter().position(of) else {
            if request == 0 {
                // The node ends the connection on its own account.
                place.open.remove(&connection);
            }
            return;
        };
        let submit = !matches!(place.executed[found].what, Request::Scan(_));
        let elsewhere = [RefusalCode::NotLeader as u16, RefusalCode::Drained as u16];
        place.executed.remove(found);
        if submit && !elsewhere.contains(&code) {
            let mut index = 0;
            place.executed.retain(|executed| {
                index += 1;
                index <= found || executed.connection != connection
            });
            place.open.remove(&connection);
        }
    }

    /// Returns whether the answer says anything of the data.
    fn outcomes(
        &mut self,
        epoch: u64,
        session: u64,
        transactions: &[Transaction],
        answer: &Outcomes,
        lsn: Lsn,
    ) -> Result<bool, Failure> {
        let mut told = false;
        if answer.outcomes.len() != transactions.len() {
            return Err(Failure::new("an outcome is missing"));
        }
        let mut bytes = answer.bytes.as_slice();
        for (transaction, outcome) in transactions.iter().zip(&answer.outcomes) {
            let (results, rest) = bytes.split_at(outcome.data_length as usize);
            bytes = rest;
            let status = OutcomeStatus::from_wire(outcome.status);
            let status = status.ok_or(Failure::new("an unknown outcome"))?;
            let name = (session, transaction.number);
            if status == OutcomeStatus::NumberOutOfWindow && !self.heard.contains(&name) {
                return Err(Failure::new(format!(
                    "transaction {} of session {session} is refused as one that its client has \
                     read, and it has not",
                    transaction.number
                )));
            }
            if self.not_let_in(status) {
                continue;
            }
            told = true;
            let leadership = self.leaderships.get_mut(&epoch).ok_or_else(leaderless)?;
            let model = &mut leadership.model;
            let repeated = model.outcomes.contains_key(&name);
            let predicted = model.execute(session, transaction, &self.tables);
            let at = outcome.operation;
            predicted_check(session, transaction, &predicted, status, at, results)?;
            if !status.is_committed() {
                self.counts.failed += 1;
                continue;
            }
            self.counts.committed += 1;
            self.counts.repeated += u64::from(repeated);
            if transaction.writes() {
                self.acknowledged.insert(name);
                let committed = self.history.lsn_of.get(&name);
                if committed.is_none_or(|at| *at > lsn) {
                    return Err(Failure::new(format!(
                        "transaction {} of session {session} was acknowledged at LSN {lsn}, and \
                         is committed at {committed:?}",
                        transaction.number,
                    )));
                }
            }
        }
        Ok(told)
    }

    fn not_let_in(&mut self, status: OutcomeStatus) -> bool {
        match status {
            OutcomeStatus::LogFull => self.counts.log_full += 1,
            OutcomeStatus::MemoryFull => self.counts.memory_full += 1,
            OutcomeStatus::Overloaded
            | OutcomeStatus::LogFailed
            | OutcomeStatus::SessionUnknown
            | OutcomeStatus::NumberOutOfWindow
            | OutcomeStatus::Unavailable => {}
            _ => return false,
        }
        self.counts.refused += 1;
        true
    }

    fn page(
        &mut self,
        epoch: u64,
        shard: u16,
        scan: &Scan,
        page: &ScanPage,
    ) -> Result<(), Failure> {
        let shards = self.shards;
        let leadership = self.leaderships.get(&epoch).ok_or_else(leaderless)?;
        let expected = leadership.model.scan(scan, shard, shards);
        let mut bytes = page.bytes.as_slice();
        for (at, row) in page.rows.iter().enumerate() {
            let (key, rest) = bytes.split_at(usize::from(row.key_length));
            let (value, rest) = rest.split_at(row.row_length as usize);
            bytes = rest;
            if expected.get(at) != Some(&(key, value, row.version)) {
                return Err(Failure::new(format!(
                    "row {at} of a scan is {key:?} version {}, expected {:?}",
                    row.version,
                    expected.get(at)
                )));
            }
        }
        let wanted = expected.len().min(scan.rows_max as usize);
        // Deleted rows may stand behind the page's end: then `more` promises too much.
        let more_missed = expected.len() > page.rows.len() && !page.more;
        // A page may be short, if it says where to go on.
        let is_short = page.rows.len() < wanted;
        self.counts.scans += u64::from(!is_short);
        let goes_on = !page.more || goes_on_well(scan, page, &expected);
        if page.rows.len() > wanted || more_missed || !goes_on {
            return Err(Failure::new(format!(
                "a scan found {} rows, more: {}; expected {wanted} of {}",
                page.rows.len(),
                page.more,
                expected.len()
            )));
        }
        Ok(())
    }

    /// A client heard of a transaction's end.
    pub fn client_heard(
        &mut self,
        session: u64,
        number: u64,
        committed: bool,
        writes: bool,
    ) -> Result<(), Failure> {
        let name = (session, number);
        self.heard.insert(name);
        if committed && writes && !self.acknowledged.contains(&name) {
            return Err(Failure::new(format!(
                "a client heard that transaction {number} of session {session} had committed, and \
                 no shard had said so"
            )));
        }
        if !committed {
            self.denied.insert(name);
            self.denied_check(&[name])?;
        }
        Ok(())
    }

    fn denied_check(&self, names: &[(u64, u64)]) -> Result<(), Failure> {
        match names.iter().find(|name| self.history.model.outcomes.contains_key(name)) {
            Some((session, number)) => Err(Failure::new(format!(
                "transaction {number} of session {session} took effect, and its client heard that \
                 it had not"
            ))),
            None => Ok(()),
        }
    }
}

/// Whether the place where a page says to go on lies behind its rows and before what it left out.
fn goes_on_well(scan: &Scan, page: &ScanPage, expected: &[(&[u8], &[u8], u64)]) -> bool {
    let count = page.rows.len();
    let before_rest = expected.get(count).is_none_or(|(key, ..)| page.next[..] <= **key);
    let behind_rows = match count.checked_sub(1) {
        Some(last) => page.next[..] > *expected[last].0,
        None => page.next >= scan.start,
    };
    before_rest && behind_rows
}

/// An outcome must be what the model says.
fn predicted_check(
    session: u64,
    transaction: &Transaction,
    predicted: &Predicted,
    status: OutcomeStatus,
    operation: u16,
    results: &[u8],
) -> Result<(), Failure> {
    let Predicted { status: expected, operation: at, results: found } = predicted;
    if (*expected, *at, &found[..]) == (status, operation, results) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "transaction {} of session {session} ({transaction:?}) must end with {predicted:?}, the \
         answer was {status:?} at {operation} with {results:?}",
        transaction.number
    )))
}

/// The shard's partitions must be what the log made of them.
fn digests_check(shard: u16, shards: u16, core: &Shard, expected: &[u128]) -> Result<(), Failure> {
    for (partition, digest) in (0..).zip(expected) {
        if partition % shards == shard && core.digest(PartitionId(partition)) != *digest {
            let text = format!("partition {partition} is not what the log makes of it");
            return Err(Failure::new(text));
        }
    }
    Ok(())
}

fn leaderless() -> Failure {
    Failure::new("an answer of a node that does not lead")
}

fn decode<T>(result: Result<T, message::MessageError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::new(format!("a message: {error}")))
}
