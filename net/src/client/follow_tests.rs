//! The core against a scripted cluster in memory: who is followed, and what becomes of frames.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::client::answer::{FrameAnswer, FrameResult, FrameToken, LossReason};
use crate::client::batch::Batch;
use crate::client::core::{ClientCore, ClientEffects, ClientInput, CoreOptions, Follow};
use crate::client::error::ClientError;
use crate::client::freshness::Freshness;
use crate::client::nodes::NodeBook;
use crate::frame::{Assembled, FrameAssembler, FrameKind, HEADER_BYTES};
use crate::ids::{Lsn, TableId};
use crate::limits::FRAME_PAYLOAD_BYTES_MAX;
use crate::message::{
    self, Hello, MemberAddress, OutcomeHead, OutcomeStatus, Outcomes, Refusal, RefusalCode, Submit,
    Welcome,
};

const SESSION: u64 = 77;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const SHARD: u16 = 1;

fn options() -> CoreOptions {
    CoreOptions {
        session: SESSION,
        shard: SHARD,
        frames_in_flight_max: 16,
        request_timeout_nanos: 2 * SECOND,
        give_up_nanos: 30 * SECOND,
        seed: 5,
        ..CoreOptions::new(NodeBook::new(["n1:100"]))
    }
}

/// How a node behaves.
#[derive(Clone, Debug)]
struct Member {
    /// Refuses connections.
    is_down: bool,
    /// Takes bytes and says nothing.
    is_silent: bool,
    /// Executes and does not answer.
    is_mute: bool,
    /// Ends every connection once it has greeted.
    flaps: bool,
    /// Takes this node for the leader, 0 for none.
    leader: u16,
    /// It has not heard of the session yet.
    lags: bool,
    /// Answers so many reads that it is behind.
    behind: u32,
    shards: u16,
    /// The term that it claims, if not the right one.
    epoch: Option<u64>,
}

struct Connection {
    node: u16,
    shard: u16,
    hello: Option<Hello>,
    assembler: FrameAssembler,
}

/// What a frame ended with.
#[derive(Clone, Debug, PartialEq)]
enum Ended {
    Outcomes(Vec<u16>),
    Refused(RefusalCode),
    Unknown(LossReason),
    NotSent(LossReason),
    Answer,
}

/// Three nodes that agree on what was executed, their network, and the core.
struct Cluster {
    now: u64,
    core: ClientCore,
    wire: Wire,
    members: BTreeMap<u16, Member>,
    epoch: u64,
    leader: u16,
    connection: Option<Connection>,
    /// Content of what was executed, by first number.
    executed: BTreeMap<u64, Vec<u8>>,
    /// Node, shard and session of every connection that was made.
    made: Vec<(u16, u16, u64)>,
    /// Frames that nodes saw, with their nodes.
    seen: Vec<(u16, u64)>,
    acknowledged_below: u64,
    read_modes: Vec<(u8, u64)>,
    submitted: u8,
}

#[derive(Default)]
struct Wire {
    connect: Option<String>,
    closed: bool,
    to_node: Vec<u8>,
    ended: Vec<(FrameToken, u64, Ended)>,
}

impl ClientEffects for Wire {
    fn connect(&mut self, address: &str) {
        assert!(self.connect.is_none(), "one connection at a time");
        self.connect = Some(address.to_owned());
    }

    fn send(&mut self, frame: &[u8]) {
        self.to_node.extend_from_slice(frame);
    }

    fn close(&mut self) {
        self.closed = true;
        self.to_node.clear();
        self.connect = None;
    }

    fn answer(&mut self, answer: FrameAnswer<'_>) {
        let ended = match answer.result {
            FrameResult::Outcomes { outcomes, .. } => {
                Ended::Outcomes(outcomes.iter().map(|o| o.status.to_native()).collect())
            }
            FrameResult::Answer { .. } => Ended::Answer,
            FrameResult::Refused { code, .. } => Ended::Refused(code),
            FrameResult::Unknown(reason) => Ended::Unknown(reason),
            FrameResult::NotSent(reason) => Ended::NotSent(reason),
        };
        self.ended.push((answer.token, answer.first_number, ended));
    }
}

/// Shard s of node n listens at n * 100 + s * n: no two nodes count alike.
fn place_of(address: &str) -> (u16, u16) {
    let (host, port) = address.rsplit_once(':').expect("host and port");
    let node: u16 = host.strip_prefix('n').expect("a node").parse().expect("a number");
    let port: u16 = port.parse().expect("a port");
    (node, (port - node * 100) / node)
}

fn ports_of(node: u16, shards: u16) -> Vec<u16> {
    (0..shards).map(|shard| node * 100 + shard * node).collect()
}

fn address_of(node: u16) -> String {
    if node == 0 { String::new() } else { format!("n{node}:{}", node * 100) }
}

impl Cluster {
    /// Node 1 leads in term 1, and all know.
    fn new(options: CoreOptions) -> Self {
        let member = Member {
            is_down: false,
            is_silent: false,
            is_mute: false,
            flaps: false,
            leader: 1,
            lags: false,
            behind: 0,
            shards: 2,
            epoch: None,
        };
        let mut cluster = Self {
            now: SECOND,
            core: ClientCore::new(options),
            wire: Wire::default(),
            members: (1..=3).map(|node| (node, member.clone())).collect(),
            epoch: 1,
            leader: 1,
            connection: None,
            executed: BTreeMap::new(),
            made: Vec::new(),
            seen: Vec::new(),
            acknowledged_below: 0,
            read_modes: Vec::new(),
            submitted: 0,
        };
        cluster.step(ClientInput::Start);
        cluster
    }

    fn ready() -> Self {
        let mut cluster = Self::new(options());
        cluster.run(SECOND);
        assert!(cluster.core.is_ready());
        cluster
    }

    fn member(&mut self, node: u16) -> &mut Member {
        self.members.get_mut(&node).expect("a member")
    }

    /// The node leads in a new term; `known` says whether the others know.
    fn elect(&mut self, node: u16, known: bool) {
        self.epoch += 1;
        self.leader = node;
        for (member, state) in &mut self.members {
            if *member == node || known {
                state.leader = node;
            }
        }
        let is_deposed = self.connection.as_ref().is_some_and(|open| open.node != node);
        if is_deposed && known {
            self.cut();
        }
    }

    fn kill(&mut self, node: u16) {
        self.member(node).is_down = true;
        if self.connection.as_ref().is_some_and(|connection| connection.node == node) {
            self.cut();
        }
    }

    fn step(&mut self, input: ClientInput<'_>) {
        self.core.step(self.now, input, &mut self.wire);
        if std::mem::take(&mut self.wire.closed) {
            self.connection = None;
        }
    }

    /// The connection ends under the client.
    fn cut(&mut self) {
        if self.connection.take().is_some() {
            self.wire.to_node.clear();
            self.step(ClientInput::Disconnected("cut"));
        }
    }

    fn welcome(&self, node: u16, shard: u16) -> Welcome {
        let member = &self.members[&node];
        let address = |node: &u16| MemberAddress { node: *node, address: address_of(*node) };
        Welcome {
            cluster: 9,
            node,
            epoch: member.epoch.unwrap_or(if member.leader == node { self.epoch } else { 1 }),
            leader: member.leader,
            leader_address: address_of(member.leader),
            members: self.members.keys().map(address).collect(),
            partitions: 256,
            shard,
            shard_ports: ports_of(node, member.shards),
        }
    }

    /// Carries out what the core wants until it wants nothing more at this moment.
    fn settle(&mut self) {
        loop {
            if let Some(address) = self.wire.connect.take() {
                let (node, shard) = place_of(&address);
                let member = &self.members[&node];
                if member.is_down {
                    self.step(ClientInput::Disconnected("refused"));
                } else if !member.is_silent {
                    let assembler = FrameAssembler::default();
                    self.connection = Some(Connection { node, shard, hello: None, assembler });
                    self.step(ClientInput::Connected);
                }
            } else if self.connection.is_some() && !self.wire.to_node.is_empty() {
                let answer = self.serve();
                if !answer.is_empty() {
                    self.step(ClientInput::Received(&answer));
                }
                let greeted = self.connection.as_ref().filter(|open| open.hello.is_some());
                if greeted.is_some_and(|open| self.members[&open.node].flaps) {
                    self.cut();
                }
            } else {
                return;
            }
        }
    }

    /// Lets time pass until nothing is in flight and the core is at rest, or for so long.
    fn run(&mut self, nanos: u64) {
        let until = self.now + nanos;
        loop {
            self.settle();
            let is_done = self.core.is_ready() && self.core.in_flight() == 0;
            let Some(deadline) = self.core.deadline().filter(|_| !is_done) else { return };
            if deadline > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(deadline);
            self.step(ClientInput::Tick);
        }
    }

    fn serve(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.wire.to_node);
        let mut rest = bytes.as_slice();
        let mut out = Vec::new();
        let mut spare = Vec::new();
        loop {
            let connection = self.connection.as_mut().expect("it is served");
            let next = connection.assembler.next(&mut rest, FRAME_PAYLOAD_BYTES_MAX, &mut spare);
            let (header, frame) = match next.expect("the client sends good frames") {
                Assembled::InPlace(header, frame) => (header, frame.to_vec()),
                Assembled::Owned(header, frame) => (header, frame),
                Assembled::Incomplete => return out,
            };
            self.take(header.kind, header.request, &frame[HEADER_BYTES..], &mut out);
        }
    }

    fn take(&mut self, kind: FrameKind, request: u64, payload: &[u8], out: &mut Vec<u8>) {
        let connection = self.connection.as_mut().expect("it is served");
        let (node, shard) = (connection.node, connection.shard);
        let member = self.members.get_mut(&node).expect("a member");
        if kind == FrameKind::Hello {
            let hello = message::decode::<Hello>(payload).expect("valid");
            self.made.push((node, shard, hello.session));
            let is_unknown = member.lags && hello.session != 0;
            connection.hello = Some(hello);
            if is_unknown {
                refuse(out, request, RefusalCode::SessionUnknown, 0);
            } else {
                let welcome = self.welcome(node, shard);
                message::write_frame(out, FrameKind::Welcome, request, Lsn(0), &welcome);
            }
            return;
        }
        assert_eq!(kind, FrameKind::Submit, "the tests send nothing else");
        let hello = connection.hello.as_ref().expect("hello comes first");
        let submit = message::decode::<Submit>(payload).expect("valid");
        self.seen.push((node, submit.first_number));
        self.read_modes.push((submit.read_mode, submit.read_bound));
        let mut outcome = OutcomeHead { status: 0, operation: 0, data_length: 0 };
        if submit.read_mode == 0 {
            if member.leader != node {
                refuse(out, request, RefusalCode::NotLeader, member.leader);
                return;
            }
            assert_eq!(hello.session, SESSION, "the session is attached before frames come");
            assert!(submit.first_number >= self.acknowledged_below, "an acknowledged number");
            self.acknowledged_below = self.acknowledged_below.max(submit.acknowledged_below);
            let content = submit.bytes.clone();
            let before = self.executed.insert(submit.first_number, content.clone());
            assert!(before.is_none_or(|before| before == content), "other content");
        } else if member.behind > 0 {
            member.behind -= 1;
            outcome.status = OutcomeStatus::Behind as u16;
        }
        if !member.is_mute {
            let outcomes = vec![outcome; submit.transactions.len()];
            let answer = Outcomes { retry_after_ms: 0, outcomes, bytes: Vec::new() };
            message::write_frame(out, FrameKind::Outcomes, request, Lsn(40), &answer);
        }
    }

    fn submit(&mut self) -> FrameToken {
        self.submitted += 1;
        let mut batch = Batch::new();
        batch.begin();
        batch.insert(TableId(1), &[self.submitted], b"row").expect("it fits");
        batch.end().expect("it has an operation");
        self.core.submit(self.now, &mut batch, &mut self.wire).expect("free")
    }

    fn read(&mut self, freshness: Freshness) -> FrameToken {
        let mut batch = Batch::new();
        batch.begin();
        batch.get(TableId(1), b"k").expect("it fits");
        batch.end().expect("it has an operation");
        batch.set_freshness(freshness);
        self.core.submit(self.now, &mut batch, &mut self.wire).expect("free")
    }

    fn ended(&self, token: FrameToken) -> Option<&Ended> {
        let mut found = self.wire.ended.iter().filter(|(ended, _, _)| *ended == token);
        let first = found.next();
        assert!(found.next().is_none(), "{token:?} ended twice");
        first.map(|(_, _, ended)| ended)
    }

    fn assert_committed(&self, token: FrameToken) {
        assert_eq!(self.ended(token), Some(&Ended::Outcomes(vec![0])), "{token:?}");
    }
}

fn refuse(out: &mut Vec<u8>, request: u64, code: RefusalCode, leader: u16) {
    let refusal = Refusal {
        leader,
        leader_address: address_of(leader),
        ..Refusal::new(code, "because".to_owned())
    };
    message::write_frame(out, FrameKind::Refusal, request, Lsn(0), &refusal);
}

#[test]
fn a_shard_s_port_is_asked_for_once_and_members_are_learned() {
    let cluster = Cluster::ready();
    assert_eq!(cluster.made, [(1, 0, 0), (1, SHARD, SESSION)]);
    let addresses: Vec<_> = cluster.core.nodes().addresses().collect();
    assert_eq!(addresses, ["n1:100", "n2:200", "n3:300"]);
    assert_eq!(cluster.core.nodes().leader(), Some((1, 1)));
}

#[test]
fn members_that_change_are_told_while_the_connection_stands() {
    let mut cluster = Cluster::ready();
    let address = |node: u16| MemberAddress { node, address: address_of(node) };
    let mut welcome = cluster.welcome(1, SHARD);
    welcome.members = [1, 4, 5].map(address).into();
    let mut frame = Vec::new();
    message::write_frame(&mut frame, FrameKind::Welcome, 0, Lsn(0), &welcome);
    cluster.step(ClientInput::Received(&frame));
    assert!(cluster.core.is_ready(), "nothing ends for it");
    let addresses: Vec<_> = cluster.core.nodes().addresses().collect();
    assert!(addresses.contains(&"n4:400") && addresses.contains(&"n5:500"), "{addresses:?}");
    let token = cluster.submit();
    cluster.run(SECOND);
    cluster.assert_committed(token);
    // From another node than the one at the other end it means nothing good.
    welcome.cluster += 1;
    frame.clear();
    message::write_frame(&mut frame, FrameKind::Welcome, 0, Lsn(0), &welcome);
    cluster.step(ClientInput::Received(&frame));
    assert!(!cluster.core.is_ready());
}

#[test]
fn a_follower_points_to_the_leader() {
    let nodes = NodeBook::new(["n3:300"]);
    let mut cluster = Cluster::new(CoreOptions { nodes, ..options() });
    cluster.run(0);
    assert!(cluster.core.is_ready(), "a hint is followed without a wait");
    let token = cluster.submit();
    cluster.run(SECOND);
    cluster.assert_committed(token);
    assert_eq!(cluster.seen, [(1, 1)]);
    assert!(cluster.made.iter().all(|(node, _, session)| *node == 1 || *session == 0));
}

#[test]
fn a_new_leader_is_followed_by_hint_and_gives_the_first_outcome() {
    let mut cluster = Cluster::ready();
    cluster.member(1).is_mute = true;
    let tokens = [cluster.submit(), cluster.submit()];
    cluster.settle();
    let lost_at = cluster.now;
    cluster.elect(2, true);
    let later = cluster.submit();
    cluster.run(SECOND);
    assert!(cluster.now - lost_at <= 5 * MS, "{} ns", cluster.now - lost_at);
    for token in [tokens[0], tokens[1], later] {
        cluster.assert_committed(token);
    }
    assert_eq!(cluster.seen, [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]);
    // Once more at the old one, which points to the new one: ports first, then the session.
    let made = &cluster.made[cluster.made.len() - 3..];
    assert_eq!(made, [(1, SHARD, SESSION), (2, 0, 0), (2, SHARD, SESSION)]);
    assert_eq!(cluster.executed.len(), 3);
}

#[test]
fn a_new_leader_is_found_without_hints() {
    let mut cluster = Cluster::ready();
    for node in 1..=3 {
        cluster.member(node).leader = 0;
    }
    let lost_at = cluster.now;
    cluster.cut();
    cluster.elect(3, false);
    let token = cluster.submit();
    cluster.run(SECOND);
    cluster.assert_committed(token);
    assert!(cluster.now - lost_at <= 30 * MS, "{} ns", cluster.now - lost_at);
}

#[test]
fn a_dead_leader_is_left_and_the_next_one_met_soon_after_it_serves() {
    let mut cluster = Cluster::ready();
    cluster.kill(1);
    let token = cluster.submit();
    let made = cluster.made.len();
    // For a while the others still take the dead one for the leader.
    cluster.run(300 * MS);
    assert_eq!(cluster.ended(token), None);
    let attempts = cluster.made.len() - made;
    assert!((10..100).contains(&attempts), "{attempts} connections in 300 ms");
    let elected_at = cluster.now;
    cluster.elect(3, true);
    cluster.run(SECOND);
    cluster.assert_committed(token);
    assert!(cluster.now - elected_at <= 30 * MS, "{} ns", cluster.now - elected_at);
}

#[test]
fn a_silent_leader_is_left_after_a_time_out_and_not_asked_again_at_once() {
    let mut cluster = Cluster::ready();
    cluster.member(1).is_mute = true;
    let token = cluster.submit();
    cluster.settle();
    cluster.member(1).is_silent = true;
    let sent_at = cluster.now;
    cluster.run(2 * SECOND - 1);
    assert_eq!(cluster.made.len(), 2);
    cluster.elect(2, false);
    // Node 3 still points to node 1, which would cost another time-out.
    cluster.run(10 * SECOND);
    cluster.assert_committed(token);
    let took = cluster.now - sent_at - 2 * SECOND;
    assert!(took <= 30 * MS, "{took} ns after the time-out");
    assert_eq!(cluster.executed.len(), 1);
}

#[test]
fn a_flapping_leader_is_lost_once_and_met_less_and_less_often() {
    let mut cluster = Cluster::ready();
    cluster.member(1).flaps = true;
    cluster.cut();
    let token = cluster.submit();
    let made = cluster.made.len();
    cluster.run(3 * SECOND);
    let attempts = cluster.made.len() - made;
    assert!((20..120).contains(&attempts), "{attempts} connections in 3 s");
    assert_eq!(cluster.ended(token), None, "one leader was lost, if often");
    cluster.member(1).flaps = false;
    cluster.run(SECOND);
    cluster.assert_committed(token);
}

/// Loses a frame's first two leaders, both of which have executed it.
fn lose_two_leaders() -> (Cluster, FrameToken) {
    let mut cluster = Cluster::ready();
    for node in 1..=3 {
        cluster.member(node).is_mute = true;
    }
    let token = cluster.submit();
    cluster.settle();
    // The same leader in the same term counts once.
    cluster.cut();
    cluster.run(100 * MS);
    cluster.elect(2, true);
    cluster.run(100 * MS);
    assert_eq!(cluster.seen, [(1, 1), (1, 1), (2, 1)]);
    assert_eq!(cluster.ended(token), None);
    cluster.elect(3, true);
    (cluster, token)
}

#[test]
fn a_frame_that_lost_two_leaders_is_unknown_and_can_be_resolved() {
    let (mut cluster, token) = lose_two_leaders();
    assert_eq!(cluster.ended(token), Some(&Ended::Unknown(LossReason::LeadersLost)));
    assert_eq!(cluster.core.ended(), None, "the session goes on");
    cluster.member(3).is_mute = false;
    let next = cluster.submit();
    cluster.run(SECOND);
    cluster.assert_committed(next);
    assert_eq!(cluster.acknowledged_below, 1, "the unknown number is not acknowledged");
    assert_eq!(cluster.seen.last(), Some(&(3, 2)), "and not sent by itself");
    assert_eq!(cluster.core.unresolved().collect::<Vec<_>>(), [token]);
    let again = cluster.core.resolve(cluster.now, token, &mut cluster.wire).expect("kept");
    cluster.run(SECOND);
    cluster.assert_committed(again);
    assert_eq!(cluster.seen.last(), Some(&(3, 1)));
    assert_eq!(cluster.executed.len(), 2);
    let twice = cluster.core.resolve(cluster.now, token, &mut cluster.wire);
    assert!(matches!(twice, Err(ClientError::NotUnresolved)));
    cluster.submit();
    cluster.run(SECOND);
    assert_eq!(cluster.acknowledged_below, 3);
}

#[test]
fn a_leader_that_comes_back_in_a_new_term_is_another_one() {
    let mut cluster = Cluster::ready();
    cluster.member(1).is_mute = true;
    let token = cluster.submit();
    cluster.settle();
    cluster.cut();
    cluster.epoch += 1;
    cluster.run(100 * MS);
    cluster.cut();
    assert_eq!(cluster.ended(token), Some(&Ended::Unknown(LossReason::LeadersLost)));
}

#[test]
fn a_leader_of_a_term_that_is_over_is_not_believed() {
    let mut cluster = Cluster::ready();
    cluster.elect(2, true);
    cluster.run(SECOND);
    let token = cluster.submit();
    cluster.run(SECOND);
    cluster.assert_committed(token);
    // The first leader was cut off, and takes itself for the leader still.
    (cluster.member(1).leader, cluster.member(1).epoch) = (1, Some(1));
    cluster.kill(2);
    let token = cluster.submit();
    cluster.run(SECOND);
    assert!(!cluster.core.is_ready(), "nobody else leads");
    assert!(cluster.made.iter().filter(|(node, ..)| *node == 1).count() > 1, "it was asked");
    cluster.elect(3, false);
    cluster.member(3).leader = 3;
    cluster.run(10 * SECOND);
    cluster.assert_committed(token);
    assert_eq!(cluster.seen.last().map(|(node, _)| *node), Some(3));
    assert!(cluster.seen.iter().all(|(node, _)| *node != 1), "it was sent no transaction");
}

#[test]
fn frames_that_were_on_no_way_lose_no_leader() {
    let mut cluster = Cluster::ready();
    for epoch in 0..10 {
        let token = cluster.submit();
        cluster.wire.to_node.clear();
        cluster.run(0);
        cluster.elect(epoch % 3 + 1, true);
        if epoch == 0 {
            cluster.cut();
        }
        cluster.run(SECOND);
        cluster.assert_committed(token);
    }
}

#[test]
fn unresolved_frames_make_room_for_new_ones() {
    let (mut cluster, token) = lose_two_leaders();
    cluster.member(3).is_mute = false;
    cluster.run(SECOND);
    // New numbers beyond the window of the unknown one: it is forgotten.
    let mut batch = Batch::new();
    for _ in 0..3 {
        for _ in 0..50_000 {
            batch.begin();
            batch.get(TableId(1), b"k").expect("it fits");
            batch.end().expect("it has an operation");
        }
        assert!(cluster.core.can_submit());
        cluster.core.submit(cluster.now, &mut batch, &mut cluster.wire).expect("free");
        cluster.run(SECOND);
    }
    assert_eq!(cluster.core.unresolved().count(), 0);
    let resolved = cluster.core.resolve(cluster.now, token, &mut cluster.wire);
    assert!(matches!(resolved, Err(ClientError::NotUnresolved)));
}

#[test]
fn nodes_that_point_to_each_other_are_asked_at_a_bounded_rate() {
    let mut cluster = Cluster::ready();
    cluster.member(1).leader = 2;
    cluster.member(2).leader = 1;
    cluster.member(3).leader = 2;
    cluster.cut();
    let token = cluster.submit();
    let made = cluster.made.len();
    cluster.run(2 * SECOND);
    let attempts = cluster.made.len() - made;
    assert!((20..400).contains(&attempts), "{attempts} connections in 2 s");
    cluster.run(40 * SECOND);
    assert_eq!(cluster.ended(token), Some(&Ended::NotSent(LossReason::GaveUp)));
}

#[test]
fn an_impatient_core_asks_every_node_once_and_says_that_none_leads() {
    let mut cluster = Cluster::new(options());
    for node in 1..=3 {
        cluster.member(node).leader = 0;
    }
    cluster.run(SECOND);
    assert_eq!(cluster.core.ended(), Some(LossReason::NoLeader));
    let asked: BTreeSet<u16> = cluster.made.iter().map(|(node, _, _)| *node).collect();
    assert_eq!(asked.len(), 3);
    let error = cluster.core.take_error().expect("it says why");
    assert!(error.to_string().contains("n1:100, n2:200, n3:300"), "{error}");
}

#[test]
fn a_frame_refused_by_a_follower_is_sent_to_the_leader() {
    let mut cluster = Cluster::ready();
    // It stepped down and kept the connection.
    cluster.elect(2, false);
    cluster.member(1).leader = 2;
    let token = cluster.submit();
    cluster.run(SECOND);
    cluster.assert_committed(token);
    assert_eq!(cluster.seen, [(1, 1), (2, 1)]);
}

#[test]
fn late_bytes_of_an_old_leader_are_ignored() {
    let mut cluster = Cluster::ready();
    cluster.member(1).is_mute = true;
    let token = cluster.submit();
    cluster.settle();
    cluster.elect(2, true);
    let mut late = Vec::new();
    let outcome = OutcomeHead { status: 2, operation: 0, data_length: 0 };
    let answer = Outcomes { retry_after_ms: 0, outcomes: vec![outcome], bytes: Vec::new() };
    message::write_frame(&mut late, FrameKind::Outcomes, 1, Lsn(9), &answer);
    cluster.step(ClientInput::Received(&late));
    cluster.now = cluster.core.deadline().expect("it waits");
    cluster.step(ClientInput::Tick);
    assert!(cluster.wire.connect.is_some());
    cluster.step(ClientInput::Received(&late));
    assert_eq!(cluster.ended(token), None);
    cluster.run(SECOND);
    cluster.assert_committed(token);
}

#[test]
fn a_follower_that_does_not_know_the_session_has_not_the_last_word() {
    let mut cluster = Cluster::ready();
    cluster.kill(1);
    cluster.member(2).lags = true;
    cluster.elect(3, true);
    let token = cluster.submit();
    cluster.run(SECOND);
    cluster.assert_committed(token);
    // Of the leader it is final.
    cluster.member(3).lags = true;
    let lost = cluster.submit();
    cluster.wire.to_node.clear();
    cluster.cut();
    cluster.run(SECOND);
    assert_eq!(cluster.core.ended(), Some(LossReason::SessionUnknown));
    assert_eq!(cluster.ended(lost), Some(&Ended::Unknown(LossReason::SessionUnknown)));
}

#[test]
fn a_leader_with_another_number_of_shards_is_an_error_that_says_so() {
    let mut cluster = Cluster::ready();
    cluster.member(2).shards = 3;
    cluster.elect(2, true);
    cluster.run(SECOND);
    assert_eq!(cluster.core.ended(), Some(LossReason::Protocol));
    let error = cluster.core.take_error().expect("it says why");
    assert!(matches!(error, ClientError::ShardsDiffer { node: 2, shards: 3, expected: 2 }));
}

#[test]
fn what_another_core_learned_is_acted_upon_at_once() {
    let mut scout = Cluster::ready();
    scout.elect(3, true);
    scout.run(SECOND);
    let nodes = scout.core.nodes().clone();
    assert!(scout.core.take_news() && !scout.core.take_news());
    // A core that waits.
    let mut waiting = Cluster::new(CoreOptions { is_scout: false, ..options() });
    waiting.run(SECOND);
    waiting.kill(1);
    waiting.run(500 * MS);
    waiting.elect(3, true);
    let now = waiting.now;
    waiting.step(ClientInput::Learned(&nodes));
    waiting.run(0);
    assert!(waiting.core.is_ready() && waiting.now == now);
    // A core whose leader is cut off and does not know.
    let mut cut_off = Cluster::ready();
    cut_off.member(1).is_mute = true;
    let token = cut_off.submit();
    cut_off.settle();
    cut_off.elect(3, false);
    cut_off.step(ClientInput::Learned(&nodes));
    cut_off.run(0);
    cut_off.assert_committed(token);
    // No news, nothing done.
    let made = cut_off.made.len();
    cut_off.step(ClientInput::Learned(&nodes));
    cut_off.run(0);
    assert_eq!(cut_off.made.len(), made);
}

#[test]
fn reads_say_what_they_must_have_seen() {
    let mut cluster = Cluster::ready();
    let strong = cluster.read(Freshness::Strong);
    let at = cluster.read(Freshness::AtLsn(Lsn(12)));
    let stale = cluster.read(Freshness::Stale(std::time::Duration::from_millis(3)));
    cluster.run(SECOND);
    for token in [strong, at, stale] {
        cluster.assert_committed(token);
    }
    assert_eq!(cluster.read_modes, [(0, 0), (1, 12), (2, 3_000)]);
    assert_eq!(cluster.core.lsn(), Lsn(40));
}

fn reader(nodes: &[&str]) -> Cluster {
    let nodes = NodeBook::new(nodes.iter().copied());
    let options = CoreOptions { nodes, follow: Follow::Any, session: 0, ..options() };
    let mut cluster = Cluster::new(options);
    cluster.run(SECOND);
    cluster
}

#[test]
fn a_reader_stays_at_its_follower() {
    let mut cluster = reader(&["n2:200"]);
    assert!(cluster.core.is_ready() && cluster.core.can_submit());
    let token = cluster.read(Freshness::AtLsn(Lsn(12)));
    cluster.run(SECOND);
    cluster.assert_committed(token);
    let strong = cluster.read(Freshness::Strong);
    cluster.run(SECOND);
    assert_eq!(cluster.ended(strong), Some(&Ended::Refused(RefusalCode::NotLeader)));
    assert!(cluster.seen.iter().all(|(node, _)| *node == 2));
    // Another one is tried if it is gone.
    cluster.kill(2);
    let token = cluster.read(Freshness::AtLsn(Lsn(12)));
    cluster.run(SECOND);
    cluster.assert_committed(token);
    assert_eq!(cluster.seen.last().map(|(node, _)| *node), Some(1));
}

#[test]
fn a_node_that_is_behind_is_asked_again_and_then_another_one() {
    let mut cluster = reader(&["n2:200"]);
    cluster.member(2).behind = 2;
    let token = cluster.read(Freshness::AtLsn(Lsn(12)));
    let started_at = cluster.now;
    cluster.run(SECOND);
    cluster.assert_committed(token);
    assert!(cluster.now - started_at <= 5 * MS);
    assert!(cluster.seen.iter().all(|(node, _)| *node == 2));
    cluster.member(2).behind = u32::MAX;
    let token = cluster.read(Freshness::AtLsn(Lsn(13)));
    cluster.run(SECOND);
    cluster.assert_committed(token);
    assert_eq!(cluster.seen.last().map(|(node, _)| *node), Some(1));
    // All are behind: the caller is told in time.
    for node in 1..=3 {
        cluster.member(node).behind = u32::MAX;
    }
    let token = cluster.read(Freshness::AtLsn(Lsn(14)));
    let started_at = cluster.now;
    cluster.run(10 * SECOND);
    let behind = OutcomeStatus::Behind as u16;
    assert_eq!(cluster.ended(token), Some(&Ended::Outcomes(vec![behind])));
    assert!((SECOND..2 * SECOND).contains(&(cluster.now - started_at)));
}

#[derive(Clone, Debug)]
enum Event {
    Submit,
    Run(u64),
    Cut,
    Kill(u16),
    Revive(u16),
    Elect(u16, bool),
    Mute(u16, bool),
    Silent(u16, bool),
    Resolve,
}

fn event() -> impl Strategy<Value = Event> {
    let node = 1u16..=3;
    prop_oneof![
        5 => Just(Event::Submit),
        5 => (0u64..300).prop_map(|ms| Event::Run(ms * MS)),
        1 => Just(Event::Cut),
        1 => node.clone().prop_map(Event::Kill),
        2 => node.clone().prop_map(Event::Revive),
        3 => (node.clone(), any::<bool>()).prop_map(|(node, known)| Event::Elect(node, known)),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, is)| Event::Mute(node, is)),
        1 => (node, any::<bool>()).prop_map(|(node, is)| Event::Silent(node, is)),
        1 => Just(Event::Resolve),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_to_nodes_each_frame_is_executed_once_and_can_be_resolved(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut cluster = Cluster::ready();
        let mut open: Vec<FrameToken> = Vec::new();
        for event in events {
            match event {
                Event::Submit if cluster.core.can_submit() => open.push(cluster.submit()),
                Event::Submit => {}
                Event::Run(nanos) => cluster.run(nanos),
                Event::Cut => cluster.cut(),
                Event::Kill(node) => cluster.kill(node),
                Event::Revive(node) => cluster.member(node).is_down = false,
                Event::Elect(node, known) => cluster.elect(node, known),
                Event::Mute(node, is_mute) => cluster.member(node).is_mute = is_mute,
                Event::Silent(node, is_silent) => cluster.member(node).is_silent = is_silent,
                Event::Resolve => {
                    let unresolved: Vec<_> = cluster.core.unresolved().collect();
                    for token in unresolved {
                        let free = cluster.core.resolve(cluster.now, token, &mut cluster.wire);
                        if let Ok(again) = free {
                            open.push(again);
                        }
                    }
                }
            }
        }
        // All is well again: what is unknown is asked for until it is known.
        for member in cluster.members.values_mut() {
            (member.is_down, member.is_mute, member.is_silent) = (false, false, false);
        }
        cluster.elect(2, true);
        for _ in 0..3 {
            cluster.run(60 * SECOND);
            let unresolved: Vec<_> = cluster.core.unresolved().collect();
            for token in unresolved {
                let again = cluster.core.resolve(cluster.now, token, &mut cluster.wire);
                open.push(again.expect("nothing is in flight"));
            }
        }
        prop_assert_eq!(cluster.core.ended(), None);
        prop_assert_eq!(cluster.core.in_flight(), 0);
        let mut committed = BTreeSet::new();
        let mut unknown = BTreeSet::new();
        for (token, number, ended) in &cluster.wire.ended {
            prop_assert!(open.contains(token));
            match ended {
                Ended::Outcomes(outcomes) => {
                    prop_assert_eq!(outcomes, &[0]);
                    prop_assert!(committed.insert(*number), "one outcome each");
                }
                Ended::Unknown(_) => drop(unknown.insert(*number)),
                Ended::NotSent(LossReason::GaveUp) => {}
                other => prop_assert!(false, "{:?} ended with {:?}", token, other),
            }
        }
        prop_assert_eq!(cluster.wire.ended.len(), open.len());
        let executed: BTreeSet<u64> = cluster.executed.keys().copied().collect();
        prop_assert!(committed.is_subset(&executed));
        // As many unknown ones are kept as may be in flight; older ones were told as unknown.
        prop_assert!(unknown.len() > 16 || committed == executed);
        prop_assert!(executed.difference(&committed).all(|number| unknown.contains(number)));
    }
}
