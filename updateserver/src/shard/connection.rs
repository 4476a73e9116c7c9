//! What a shard knows of its clients' connections.

use std::collections::BTreeMap;

use spillway_net::frame::FrameKind;
use spillway_net::ids::{ClusterId, NodeId, SessionId, TableId};
use spillway_net::limits;
use spillway_net::message::{
    self, ClusterAction, ClusterCommand, Done, Hello, Refusal, RefusalCode, Scan, SessionClose,
    SessionOpen, TableCreate, TableDrop, TableEntry, TableListing, Welcome,
};

use super::{InboundFrame, RootAnswer, RootCommand, RootOrigin, Shard, ShardEffects};

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub greeted: bool,
    pub session: Option<SessionId>,
    /// It asked for a session that this node did not know while it followed.
    pub unattached: bool,
    /// Its last answer waits: what it still sends is not served.
    pub ending: bool,
    pub frames_in_flight: usize,
}

/// All connections of the shard, by the number the shell gave them.
#[derive(Debug, Default)]
pub(super) struct Connections {
    by_number: BTreeMap<u64, Connection>,
}

impl Connections {
    pub fn open(&mut self, connection: u64) {
        let before = self.by_number.insert(connection, Connection::default());
        assert!(before.is_none(), "connection numbers are not reused while open");
    }

    pub fn close(&mut self, connection: u64) -> Option<SessionId> {
        self.by_number.remove(&connection)?.session
    }

    pub fn get_mut(&mut self, connection: u64) -> Option<&mut Connection> {
        self.by_number.get_mut(&connection)
    }

    pub fn answered(&mut self, connection: u64) {
        if let Some(connection) = self.by_number.get_mut(&connection) {
            assert!(connection.frames_in_flight > 0, "an answer without a frame");
            connection.frames_in_flight -= 1;
        }
    }

    /// All connections.
    pub fn numbers(&self) -> Vec<u64> {
        self.by_number.keys().copied().collect()
    }

    /// Those that asked for a session which was not known, or whose session `is_lost`: it is told
    /// session and connection.
    pub fn unattached(&self, is_lost: impl Fn(SessionId, u64) -> bool) -> Vec<u64> {
        let is_unattached = |(number, connection): &(&u64, &Connection)| {
            connection.unattached
                || connection.session.is_some_and(|session| is_lost(session, **number))
        };
        self.by_number.iter().filter(is_unattached).map(|(number, _)| *number).collect()
    }

    pub fn count(&self) -> usize {
        self.by_number.len()
    }
}

impl Shard {
    /// Serves one frame that carries no transactions. Whatever is wrong with it closes the
    /// connection or gets a refusal, and concerns nobody else.
    pub(super) fn frame_of_control(&mut self, frame: &InboundFrame<'_>, out: &mut ShardEffects) {
        let (connection, request) = (frame.connection, frame.header.request);
        let origin = RootOrigin { connection, request };
        let greeted = self.connections.get_mut(connection).is_some_and(|c| c.greeted);
        let kind = frame.header.kind;
        if greeted == (kind == FrameKind::Hello) {
            let text = if greeted { "a second hello" } else { "the first frame must be a hello" };
            out.refuse_and_close(connection, request, RefusalCode::OutOfOrder, text.to_owned());
            return;
        }
        let served = match kind {
            FrameKind::Hello => message::decode::<Hello>(frame.payload)
                .map(|hello| self.hello(connection, request, &hello, out)),
            FrameKind::SessionOpen => message::decode::<SessionOpen>(frame.payload)
                .map(|open| self.to_root(origin, session_open(open), out)),
            FrameKind::SessionClose => {
                message::decode::<SessionClose>(frame.payload).map(|close| {
                    let command = RootCommand::SessionClose { session: SessionId(close.session) };
                    self.to_root(origin, command, out);
                })
            }
            FrameKind::TableCreate => message::decode::<TableCreate>(frame.payload).map(|create| {
                let command = RootCommand::TableCreate { definition: create.definition };
                self.to_root(origin, command, out);
            }),
            FrameKind::TableDrop => message::decode::<TableDrop>(frame.payload)
                .map(|drop| self.to_root(origin, RootCommand::TableDrop { name: drop.name }, out)),
            FrameKind::TableList => {
                let listing = self.table_listing();
                let waits = self.waits(true, out);
                self.held.hold(waits, connection, FrameKind::TableListing, request, &listing);
                Ok(())
            }
            FrameKind::Scan => message::access::<Scan>(frame.payload).map(|scan| {
                self.scan_page(connection, request, scan, out);
            }),
            FrameKind::Status => {
                out.status_requests.push(origin);
                Ok(())
            }
            FrameKind::ClusterStatus => {
                out.cluster_status_requests.push(origin);
                Ok(())
            }
            FrameKind::ClusterCommand => message::decode::<ClusterCommand>(frame.payload)
                .map(|command| self.cluster_command(origin, command, out)),
            _ => {
                let text = format!("{kind:?} is not a request");
                out.refuse_and_close(connection, request, RefusalCode::OutOfOrder, text);
                return;
            }
        };
        if let Err(error) = served {
            out.refuse_and_close(connection, request, RefusalCode::Malformed, error.to_string());
        }
    }

    fn hello(&mut self, connection: u64, request: u64, hello: &Hello, out: &mut ShardEffects) {
        let mismatch = if hello.limits_fingerprint != limits::fingerprint() {
            Some("the client was built with other limits: install matching releases".to_owned())
        } else if hello.cluster != 0 && ClusterId(hello.cluster) != self.options.cluster {
            Some(format!("this is cluster {:032x}", self.options.cluster.0))
        } else {
            None
        };
        if let Some(text) = mismatch {
            out.refuse_and_close(connection, request, RefusalCode::Mismatch, text);
            return;
        }
        let session = SessionId(hello.session);
        // A follower may not have applied the opening yet: the connection reads without it.
        let unattached = session.0 != 0 && !self.leads() && !self.directory.is_live(session);
        let session = if unattached { SessionId(0) } else { session };
        if session.0 != 0 {
            if !self.directory.is_live(session) {
                self.refuse_unknown(connection, request, session, out);
                return;
            }
            self.directory.touch(session, self.now_seconds);
            if let Some(older) = self.sessions.older_in_slot(session) {
                // A newer session is open in its slot, so its end is committed.
                self.session_remove(older, out);
            }
            let held = self.sessions.enter(session);
            if hello.attempt < held.attempt {
                let text = format!("session {session} was attached by a newer connection");
                out.refuse_and_close(connection, request, RefusalCode::SessionFenced, text);
                return;
            }
            held.attempt = hello.attempt;
            let fenced = held.connection.replace(connection);
            if let Some(fenced) = fenced.filter(|_| !spillway_runtime::planted!(FenceForgotten)) {
                let text = format!("a newer connection took over session {session}");
                out.refuse_and_close(fenced, 0, RefusalCode::SessionFenced, text);
                if let Some(fenced) = self.connections.get_mut(fenced) {
                    fenced.session = None;
                }
            }
        }
        let state = self.connections.get_mut(connection).expect("frames come from connections");
        state.greeted = true;
        state.session = (session.0 != 0).then_some(session);
        state.unattached = unattached;
        let options = &self.options;
        let (leader, leader_address) = self.leader();
        let welcome = Welcome {
            cluster: options.cluster.0,
            node: options.node.0,
            epoch: self.epoch().0,
            leader: leader.0,
            leader_address,
            members: self.members.to_vec(),
            partitions: options.partitions,
            shard: options.index.0,
            shard_ports: options.shard_ports.clone(),
        };
        out.released.push(connection, FrameKind::Welcome, request, &welcome);
    }

    /// Refuses a leader's hello for a session that is not open here. A leader that was deposed and
    /// has not noticed does not know what was opened since, and the client would give its session
    /// up: the refusal waits for proof that this node led when the hello came.
    fn refuse_unknown(
        &mut self,
        connection: u64,
        request: u64,
        session: SessionId,
        out: &mut ShardEffects,
    ) {
        assert!(self.leads(), "a follower does not know");
        let text = format!("session {session} is not open: open a new one");
        if self.log.round_next == 0 {
            out.refuse_and_close(connection, request, RefusalCode::SessionUnknown, text);
            return;
        }
        if self.log.failed {
            // Rounds prove nothing any more that anyone waits for: another node knows.
            out.closes.push(connection);
            return;
        }
        let refusal = Refusal::new(RefusalCode::SessionUnknown, text);
        let waits = self.waits(true, out);
        self.held.hold_and_close(waits, connection, request, &refusal);
        let state = self.connections.get_mut(connection).expect("frames come from connections");
        state.ending = true;
    }

    /// An answer of the root service that may be out of date if another node leads by now.
    pub(super) fn root_answer(
        &mut self,
        origin: RootOrigin,
        answer: &RootAnswer,
        out: &mut ShardEffects,
    ) {
        if !self.leads() {
            // Its connection ended with the leadership.
            return;
        }
        let RootOrigin { connection, request } = origin;
        if self.log.failed && self.log.round_next != 0 {
            self.connection_closed(connection);
            out.closes.push(connection);
            return;
        }
        let waits = self.waits(true, out);
        match answer {
            RootAnswer::Refusal(refusal) => {
                self.held.hold(waits, connection, FrameKind::Refusal, request, refusal);
            }
            RootAnswer::TableCreated(created) => {
                self.held.hold(waits, connection, FrameKind::TableCreated, request, created);
            }
            RootAnswer::Done => {
                self.held.hold(waits, connection, FrameKind::Done, request, &Done {});
            }
        }
        self.release(out);
    }

    fn to_root(&self, origin: RootOrigin, command: RootCommand, out: &mut ShardEffects) {
        if let Err(refusal) = self.root_serves().and_then(|()| self.log_takes()) {
            out.refusal(origin.connection, origin.request, &refusal);
            return;
        }
        out.root_commands.push((origin, command));
    }

    /// Whether commands for the root service are served here.
    fn root_serves(&self) -> Result<(), Refusal> {
        if !self.leads() {
            return Err(self.refusal_not_leader());
        }
        if self.options.index.0 != 0 {
            let text = "the root service answers on shard 0".to_owned();
            return Err(Refusal::new(RefusalCode::WrongShard, text));
        }
        Ok(())
    }

    /// Whether the log takes an entry of the root service.
    fn log_takes(&self) -> Result<(), Refusal> {
        let text = if self.log.failed {
            "the log device failed: check the log disk, then start the node again"
        } else if self.log.full {
            // Every command is an entry; what is left of the log is for what was handed over.
            "the log is full: tables and sessions cannot change until space is freed"
        } else {
            return Ok(());
        };
        Err(Refusal::new(RefusalCode::LogUnavailable, text.to_owned()))
    }

    fn cluster_command(&self, origin: RootOrigin, command: ClusterCommand, out: &mut ShardEffects) {
        let node = NodeId(command.node);
        let command = match ClusterAction::from_wire(command.action) {
            None => {
                let text = format!("there is no cluster action {}", command.action);
                out.refuse(origin.connection, origin.request, RefusalCode::Malformed, text);
                return;
            }
            Some(ClusterAction::Transfer) => {
                // Needs no entry of the root service.
                match self.root_serves() {
                    Ok(()) => out.cluster_commands.push((origin, command)),
                    Err(refusal) => out.refusal(origin.connection, origin.request, &refusal),
                }
                return;
            }
            Some(ClusterAction::Replace) => RootCommand::MemberReplace {
                old: (node.0 != 0).then_some(node),
                new: NodeId(command.node_new),
                peer_address: command.peer_address,
                client_address: command.address,
            },
            Some(ClusterAction::Drain) => RootCommand::ZoneDrain { node, drained: true },
            Some(ClusterAction::Undrain) => RootCommand::ZoneDrain { node, drained: false },
        };
        self.to_root(origin, command, out);
    }

    fn table_listing(&self) -> TableListing {
        let tables = self
            .store
            .tables()
            .map(|table| TableEntry {
                id: table.id.0,
                definition: table.definition.clone(),
                rows: self.store.slices(table).iter().map(|s| s.rows_count() as u64).sum(),
            })
            .collect();
        TableListing { tables }
    }

    fn scan_page(
        &mut self,
        connection: u64,
        request: u64,
        scan: &<Scan as rkyv::Archive>::Archived,
        out: &mut ShardEffects,
    ) {
        if !self.leads() {
            out.refusal(connection, request, &self.refusal_not_leader());
            return;
        }
        if self.log.failed {
            // What the scan would see may never have become durable.
            out.refuse_log_failed(connection, request);
            return;
        }
        match self.store.scan(scan) {
            Ok(Some(page)) => {
                let waits = self.waits(true, out);
                self.held.hold(waits, connection, FrameKind::ScanPage, request, &page);
            }
            Ok(None) => {
                let text = format!("there is no table {}", TableId(scan.table.to_native()));
                let refusal = Refusal::new(RefusalCode::Schema, text);
                let waits = self.waits(true, out);
                self.held.hold(waits, connection, FrameKind::Refusal, request, &refusal);
            }
            Err(full) => {
                out.refuse(connection, request, RefusalCode::LimitReached, full.to_string());
            }
        }
    }
}

fn session_open(open: SessionOpen) -> RootCommand {
    RootCommand::SessionOpen { client_name: open.client_name }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spillway_net::frame::{FrameHeader, HEADER_BYTES};
    use spillway_net::ids::{Epoch, Lsn, NodeId, ShardIndex};
    use spillway_net::message::Payload;

    use super::*;
    use crate::memtable::HeapChunks;
    use crate::session::SessionDirectory;
    use crate::shard::{LogState, ShardInput, ShardOptions};

    const CONNECTION: u64 = 7;

    fn shard() -> Shard {
        let options = ShardOptions {
            index: ShardIndex(0),
            shards: 1,
            partitions: 8,
            cluster: ClusterId(1),
            node: NodeId(1),
            shard_ports: vec![7400],
            handovers_in_flight_max: 8,
            held_bytes_max: 1 << 20,
            outcomes_bytes_max: 1 << 20,
        };
        let chunks = Box::new(HeapChunks::new(256 << 10, 8));
        Shard::new(options, Arc::new(SessionDirectory::default()), chunks, 0)
    }

    fn give<T: Payload>(shard: &mut Shard, kind: FrameKind, payload: &T, out: &mut ShardEffects) {
        let mut bytes = Vec::new();
        message::write_frame(&mut bytes, kind, 3, Lsn(0), payload);
        let head = bytes.first_chunk::<HEADER_BYTES>().expect("a frame has a header");
        let header = FrameHeader::parse(head, 1 << 20).expect("valid");
        let payload = &bytes[HEADER_BYTES..];
        let frame = InboundFrame { connection: CONNECTION, header, payload };
        shard.step(1, ShardInput::Frames(&[frame]), out);
    }

    #[test]
    fn the_root_service_takes_nothing_while_the_log_is_full_or_failed() {
        for (full, failed) in [(false, false), (true, false), (false, true)] {
            let (mut shard, mut out) = (shard(), ShardEffects::default());
            shard.step(1, ShardInput::Lead { epoch: Epoch(1) }, &mut out);
            shard.step(1, ShardInput::Opened(CONNECTION), &mut out);
            let limits_fingerprint = limits::fingerprint();
            let hello = Hello { limits_fingerprint, cluster: 0, session: 0, attempt: 0 };
            give(&mut shard, FrameKind::Hello, &hello, &mut out);
            let state = LogState { full, failed, ..LogState::default() };
            shard.step(1, ShardInput::Log { stamp: 0, state }, &mut out);
            out.clear();
            let open = SessionOpen { client_name: "a".to_owned() };
            give(&mut shard, FrameKind::SessionOpen, &open, &mut out);
            assert_eq!(out.root_commands.is_empty(), full || failed, "{full} {failed}");
            if let Some(frame) = out.released.frames.first() {
                let payload = &out.released.bytes[frame.start + HEADER_BYTES..frame.end];
                let refusal = message::decode::<Refusal>(payload).expect("a refusal");
                assert_eq!(refusal.code, RefusalCode::LogUnavailable as u16);
            }
            assert_eq!(out.released.frames.is_empty(), !(full || failed));
        }
    }
}
