//! Nodes for tests of the client: real sockets, a map for a store, and faults on demand. The
//! nodes of a cluster share their store: what one has executed, all have.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use spillway_net::add::{AddArgument, row_add};
use spillway_net::client::Router;
use spillway_net::frame::{Assembled, FrameAssembler, FrameKind, HEADER_BYTES};
use spillway_net::ids::Lsn;
use spillway_net::key::key_validate;
use spillway_net::layout::TableLayout;
use spillway_net::limits::{FRAME_PAYLOAD_BYTES_MAX, fingerprint};
use spillway_net::message::{
    self, ClusterAction, ClusterCommand, ClusterReport, Done, Hello, MemberAddress, MemberReport,
    OperationHead, OperationKind, OutcomeHead, OutcomeStatus, Outcomes, Payload, Refusal,
    RefusalCode, RowHead, Scan, ScanPage, SessionClose, SessionOpened, StatusReport, StatusValue,
    Submit, TableCreate, TableCreated, TableDrop, TableEntry, TableListing, Welcome,
};
use spillway_net::schema::TableDefinition;
use spillway_runtime::thread;

/// Rows of a scan page, few, so that small tables have several pages.
const PAGE_ROWS: usize = 7;

/// What goes wrong, counted in frames of transactions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Executes every n-th frame and then cuts the connection instead of answering; 0: never.
    pub cut_every: u64,
    /// Answers the first n frames as overloaded, without executing them.
    pub overload_first: u64,
    /// Never answers a frame.
    pub is_silent: bool,
    /// Lets the next node lead after every n-th frame, which is executed and not answered; 0:
    /// never.
    pub elect_every: u64,
    /// Answers the first n reads at a follower as behind.
    pub behind_first: u64,
    /// Accepts the command to hand leadership over, and does not.
    pub keeps_leading: bool,
}

type Rows = BTreeMap<(u16, Vec<u8>), (Vec<u8>, u64)>;

#[derive(Debug, Default)]
pub struct State {
    pub faults: Faults,
    /// The leader, 0 for none, and its term.
    pub leader: u16,
    pub epoch: u64,
    /// Nodes that cut every connection.
    pub down: Vec<u16>,
    pub drained: Vec<u16>,
    /// The last command for the cluster.
    pub command: Option<ClusterCommand>,
    /// Ports of all nodes, the first node's first.
    ports: Vec<Vec<u16>>,
    /// The node that each frame of transactions came to.
    pub served: Vec<u16>,
    pub frames: u64,
    pub executed: u64,
    pub repeated: u64,
    pub sessions: Vec<u64>,
    tables: Vec<(TableDefinition, TableLayout)>,
    rows: Rows,
    outcomes: HashMap<(u64, u64), (OutcomeHead, Vec<u8>)>,
    versions: u64,
}

impl State {
    fn nodes(&self) -> impl Iterator<Item = u16> {
        1..=self.ports.len() as u16
    }

    fn address(&self, node: u16) -> String {
        match usize::from(node).checked_sub(1).and_then(|at| self.ports.get(at)) {
            Some(ports) => SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0])).to_string(),
            None => String::new(),
        }
    }

    /// This node leads in a new term.
    pub fn elect(&mut self, node: u16) {
        self.leader = node;
        self.epoch += 1;
    }

    fn report(&self, node: u16) -> ClusterReport {
        let role = |member| if member == self.leader { "leader" } else { "follower" };
        let member = |member: u16| MemberReport {
            node: member,
            address: self.address(member),
            peer_address: format!("peer{member}:1"),
            kind: "voter".to_owned(),
            state: if self.down.contains(&member) { "unreachable" } else { role(member) }.into(),
            drained: self.drained.contains(&member),
            matched: 100 - u64::from(member),
            applied: 90 - u64::from(member),
            silent_ms: u64::from(member) - 1,
        };
        ClusterReport {
            node,
            role: role(node).to_owned(),
            term: self.epoch,
            leader: self.leader,
            scl: 100,
            vcl: 100,
            vdl: 100,
            pgmrpl: 80,
            applied: 90,
            lal_bytes: 1 << 20,
            tail_bytes: 4096,
            members: self.nodes().map(member).collect(),
        }
    }
}

/// A running node. Its threads end with the process.
#[derive(Clone, Debug)]
pub struct Node {
    pub number: u16,
    ports: Vec<u16>,
    state: Arc<Mutex<State>>,
}

impl Node {
    /// A node that is a cluster of its own.
    pub fn start(shards: usize, faults: Faults) -> Self {
        Self::cluster(1, shards, faults).remove(0)
    }

    /// Nodes 1 and on of a cluster; node 1 leads.
    pub fn cluster(nodes: u16, shards: usize, faults: Faults) -> Vec<Self> {
        let state = State { faults, leader: 1, epoch: 1, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        (1..=nodes).map(|number| Self::start_one(number, shards, &state)).collect()
    }

    fn start_one(number: u16, shards: usize, state: &Arc<Mutex<State>>) -> Self {
        let listen = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let listeners: Vec<_> = (0..shards).map(listen).collect();
        let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
        let ports: Vec<u16> = listeners.iter().map(port).collect();
        let node = Self { number, ports, state: Arc::clone(state) };
        node.state().ports.push(node.ports.clone());
        for (shard, listener) in listeners.into_iter().enumerate() {
            let node = node.clone();
            let accept = move || {
                for stream in listener.incoming().flatten() {
                    let node = node.clone();
                    let serve = move || Connection::new(node, shard as u16).serve(stream);
                    thread::spawn("connection", None, serve).expect("a thread");
                }
            };
            thread::spawn("listener", None, accept).expect("a thread");
        }
        node
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[0]))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics")
    }

    fn welcome(&self, state: &State, shard: u16) -> Welcome {
        let member = |node| MemberAddress { node, address: state.address(node) };
        Welcome {
            cluster: 11,
            node: self.number,
            epoch: state.epoch,
            leader: state.leader,
            leader_address: state.address(state.leader),
            members: state.nodes().map(member).collect(),
            partitions: 256,
            shard,
            shard_ports: self.ports.clone(),
        }
    }
}

struct Connection {
    node: Node,
    shard: u16,
    session: u64,
    out: Vec<u8>,
}

/// The connection is to be cut.
struct Cut;

impl Connection {
    fn new(node: Node, shard: u16) -> Self {
        Self { node, shard, session: 0, out: Vec::new() }
    }

    fn serve(mut self, mut stream: TcpStream) {
        let mut assembler = FrameAssembler::default();
        let mut spare = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let mut bytes = match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => &buffer[..count],
            };
            loop {
                let next = assembler.next(&mut bytes, FRAME_PAYLOAD_BYTES_MAX, &mut spare);
                let (header, frame) = match next {
                    Ok(Assembled::InPlace(header, frame)) => (header, frame.to_vec()),
                    Ok(Assembled::Owned(header, frame)) => (header, frame),
                    Ok(Assembled::Incomplete) => break,
                    Err(_) => return,
                };
                if self.take(header.kind, header.request, &frame[HEADER_BYTES..]).is_err() {
                    return;
                }
            }
            if stream.write_all(&self.out).is_err() {
                return;
            }
            self.out.clear();
        }
    }

    fn answer<T: Payload>(&mut self, kind: FrameKind, request: u64, message: &T) {
        message::write_frame(&mut self.out, kind, request, Lsn(1), message);
    }

    fn refuse(&mut self, state: &State, request: u64, code: RefusalCode) {
        let (leader, leader_address) = (state.leader, state.address(state.leader));
        let refusal = Refusal { leader, leader_address, ..Refusal::new(code, format!("{code:?}")) };
        self.answer(FrameKind::Refusal, request, &refusal);
    }

    fn take(&mut self, kind: FrameKind, request: u64, payload: &[u8]) -> Result<(), Cut> {
        let node = self.node.clone();
        let mut state = node.state();
        if state.down.contains(&node.number) {
            return Err(Cut);
        }
        let is_leaders = matches!(
            kind,
            FrameKind::SessionOpen
                | FrameKind::SessionClose
                | FrameKind::ClusterCommand
                | FrameKind::TableCreate
                | FrameKind::TableDrop
        );
        if is_leaders && state.leader != node.number {
            self.refuse(&state, request, RefusalCode::NotLeader);
            return Ok(());
        }
        match kind {
            FrameKind::Hello => {
                let hello = message::decode::<Hello>(payload).map_err(|_| Cut)?;
                assert_eq!(hello.limits_fingerprint, fingerprint());
                if hello.session != 0 && !state.sessions.contains(&hello.session) {
                    self.refuse(&state, request, RefusalCode::SessionUnknown);
                    return Ok(());
                }
                self.session = hello.session;
                let welcome = node.welcome(&state, self.shard);
                self.answer(FrameKind::Welcome, request, &welcome);
            }
            FrameKind::SessionOpen => {
                let session = state.sessions.iter().max().map_or(1, |last| last + 1);
                state.sessions.push(session);
                self.answer(FrameKind::SessionOpened, request, &SessionOpened { session });
            }
            FrameKind::SessionClose => {
                let close = message::decode::<SessionClose>(payload).map_err(|_| Cut)?;
                state.sessions.retain(|session| *session != close.session);
                self.answer(FrameKind::Done, request, &Done {});
            }
            FrameKind::Submit => return self.submit(&mut state, request, payload),
            FrameKind::ClusterStatus => {
                let report = state.report(node.number);
                self.answer(FrameKind::ClusterReport, request, &report);
            }
            FrameKind::ClusterCommand => {
                let command = message::decode::<ClusterCommand>(payload).map_err(|_| Cut)?;
                return self.command(&mut state, request, command);
            }
            FrameKind::Scan => {
                let scan = message::decode::<Scan>(payload).map_err(|_| Cut)?;
                let page = self.page(&state, &scan);
                self.answer(FrameKind::ScanPage, request, &page);
            }
            FrameKind::Status => {
                let value = StatusValue { name: "frames".to_owned(), value: state.frames };
                let report = StatusReport { values: vec![value] };
                self.answer(FrameKind::StatusReport, request, &report);
            }
            _ => return self.schema(&mut state, kind, request, payload),
        }
        Ok(())
    }

    fn command(
        &mut self,
        state: &mut State,
        request: u64,
        command: ClusterCommand,
    ) -> Result<(), Cut> {
        let node = command.node;
        let action = ClusterAction::from_wire(command.action).ok_or(Cut)?;
        state.command = Some(command);
        match action {
            ClusterAction::Transfer if state.faults.keeps_leading => {}
            ClusterAction::Transfer => {
                let next = state.leader % state.ports.len() as u16 + 1;
                state.elect(if node == 0 { next } else { node });
                // As a leader that steps down does.
                return Err(Cut);
            }
            ClusterAction::Drain => state.drained.push(node),
            ClusterAction::Undrain => state.drained.retain(|drained| *drained != node),
            ClusterAction::Replace => {}
        }
        self.answer(FrameKind::Done, request, &Done {});
        Ok(())
    }

    fn schema(
        &mut self,
        state: &mut State,
        kind: FrameKind,
        request: u64,
        payload: &[u8],
    ) -> Result<(), Cut> {
        match kind {
            FrameKind::TableCreate => {
                let create = message::decode::<TableCreate>(payload).map_err(|_| Cut)?;
                let definition = create.definition;
                let same = state.tables.iter().position(|(table, _)| *table == definition);
                let index = same.unwrap_or_else(|| {
                    let layout = TableLayout::new(&definition).expect("the client validates");
                    state.tables.push((definition, layout));
                    state.tables.len() - 1
                });
                let table = index as u16 + 1;
                self.answer(FrameKind::TableCreated, request, &TableCreated { table });
            }
            FrameKind::TableDrop => {
                let drop = message::decode::<TableDrop>(payload).map_err(|_| Cut)?;
                if state.tables.iter().any(|(table, _)| table.name == drop.name) {
                    state.tables.retain(|(table, _)| table.name != drop.name);
                    self.answer(FrameKind::Done, request, &Done {});
                } else {
                    self.refuse(state, request, RefusalCode::Schema);
                }
            }
            FrameKind::TableList => {
                let entry = |(index, (definition, _)): (usize, &(TableDefinition, _))| {
                    let id = index as u16 + 1;
                    let here = |key: &Vec<u8>| self.shard_of(state, id, key) == self.shard;
                    let rows = state.rows.keys().filter(|(table, key)| *table == id && here(key));
                    TableEntry { id, definition: definition.clone(), rows: rows.count() as u64 }
                };
                let tables = state.tables.iter().enumerate().map(entry).collect();
                self.answer(FrameKind::TableListing, request, &TableListing { tables });
            }
            _ => self.refuse(state, request, RefusalCode::Malformed),
        }
        Ok(())
    }

    fn shard_of(&self, state: &State, table: u16, key: &[u8]) -> u16 {
        let router = Router::new(&self.node.welcome(state, 0)).expect("possible");
        let layout = &state.tables[usize::from(table) - 1].1;
        let prefix = key_validate(layout, key).expect("the client encodes keys");
        router.shard_of(&key[..prefix])
    }

    fn page(&self, state: &State, scan: &Scan) -> ScanPage {
        let mut page = ScanPage::default();
        let range = state.rows.range((scan.table, scan.start.clone())..);
        for ((table, key), (row, version)) in range {
            let is_behind = !scan.end.is_empty() && *key >= scan.end;
            if *table != scan.table || is_behind {
                break;
            }
            if self.shard_of(state, *table, key) != self.shard {
                continue;
            }
            if page.rows.len() == PAGE_ROWS.min(scan.rows_max as usize) {
                page.more = true;
                page.next.clone_from(key);
                break;
            }
            page.rows.push(RowHead {
                key_length: key.len() as u16,
                row_length: row.len() as u32,
                version: *version,
            });
            page.bytes.extend_from_slice(key);
            page.bytes.extend_from_slice(row);
        }
        page
    }

    fn submit(&mut self, state: &mut State, request: u64, payload: &[u8]) -> Result<(), Cut> {
        let submit = message::decode::<Submit>(payload).map_err(|_| Cut)?;
        let kinds = || submit.operations.iter().filter_map(|o| OperationKind::from_wire(o.kind));
        assert!(self.session != 0 || !kinds().any(|kind| kind.writes()), "writes need a session");
        state.frames += 1;
        state.served.push(self.node.number);
        if state.faults.is_silent {
            return Ok(());
        }
        let is_follower = state.leader != self.node.number;
        if is_follower && submit.read_mode == 0 {
            self.refuse(state, request, RefusalCode::NotLeader);
            return Ok(());
        }
        let is_behind = is_follower && state.faults.behind_first > 0;
        state.faults.behind_first -= u64::from(is_behind);
        let mut answer = Outcomes::default();
        let is_overloaded = state.frames <= state.faults.overload_first;
        let mut operations = submit.operations.as_slice();
        let mut bytes = submit.bytes.as_slice();
        for head in &submit.transactions {
            let number = submit.first_number + u64::from(head.number_offset);
            let (own, rest) = operations.split_at(usize::from(head.operations));
            operations = rest;
            let length = own.iter().map(|o| usize::from(o.key_length) + o.value_length as usize);
            let (own_bytes, rest) = bytes.split_at(length.sum());
            bytes = rest;
            let (head, data) = if is_overloaded {
                (outcome(OutcomeStatus::Overloaded, 0), Vec::new())
            } else if is_behind {
                (outcome(OutcomeStatus::Behind, 0), Vec::new())
            } else {
                self.execute_once(state, number, own, own_bytes)
            };
            answer.outcomes.push(head);
            answer.bytes.extend_from_slice(&data);
        }
        assert!(operations.is_empty() && bytes.is_empty(), "columns are used up");
        let every = state.faults.elect_every;
        if every > 0 && state.frames.is_multiple_of(every) {
            let next = state.leader % state.ports.len() as u16 + 1;
            state.elect(next);
            return Err(Cut);
        }
        let every = state.faults.cut_every;
        if every > 0 && state.frames.is_multiple_of(every) {
            return Err(Cut);
        }
        answer.retry_after_ms = u32::from(is_overloaded);
        self.answer(FrameKind::Outcomes, request, &answer);
        Ok(())
    }

    fn execute_once(
        &self,
        state: &mut State,
        number: u64,
        operations: &[OperationHead],
        bytes: &[u8],
    ) -> (OutcomeHead, Vec<u8>) {
        let known = state.outcomes.get(&(self.session, number));
        if let Some(known) = known.filter(|_| self.session != 0) {
            let known = known.clone();
            state.repeated += 1;
            return known;
        }
        let mut changes = BTreeMap::new();
        let mut data = Vec::new();
        let mut rest = bytes;
        let mut head = outcome(OutcomeStatus::Committed, 0);
        for (index, operation) in operations.iter().enumerate() {
            let (key, later) = rest.split_at(usize::from(operation.key_length));
            let (value, later) = later.split_at(operation.value_length as usize);
            rest = later;
            if self.shard_of(state, operation.table, key) != self.shard {
                return (outcome(OutcomeStatus::WrongShard, index as u16), Vec::new());
            }
            let done = operate(state, &mut changes, operation, key, value, &mut data);
            if let Err(status) = done {
                head = outcome(status, index as u16);
                data.clear();
                changes.clear();
                break;
            }
        }
        for (key, row) in changes {
            match row {
                Some(row) => drop(state.rows.insert(key, row)),
                None => drop(state.rows.remove(&key)),
            }
        }
        state.executed += 1;
        head.data_length = data.len() as u32;
        if self.session != 0 {
            state.outcomes.insert((self.session, number), (head, data.clone()));
        }
        (head, data)
    }
}

fn outcome(status: OutcomeStatus, operation: u16) -> OutcomeHead {
    OutcomeHead { status: status as u16, operation, data_length: 0 }
}

type Changes = BTreeMap<(u16, Vec<u8>), Option<(Vec<u8>, u64)>>;

fn operate(
    state: &mut State,
    changes: &mut Changes,
    operation: &OperationHead,
    key: &[u8],
    value: &[u8],
    data: &mut Vec<u8>,
) -> Result<(), OutcomeStatus> {
    let place = (operation.table, key.to_vec());
    let stored = || state.rows.get(&place).cloned();
    let present = changes.get(&place).map_or_else(stored, Clone::clone);
    let (definition, layout) = &state.tables[usize::from(operation.table) - 1];
    state.versions += 1;
    let kind = OperationKind::from_wire(operation.kind).expect("the client sends kinds");
    let row = match (kind, present) {
        (OperationKind::Get, present) => {
            let (row, version) = present.clone().unwrap_or_default();
            data.push(u8::from(present.is_some()));
            data.extend_from_slice(&version.to_le_bytes());
            data.extend_from_slice(&(row.len() as u32).to_le_bytes());
            data.extend_from_slice(&row);
            return Ok(());
        }
        (OperationKind::Insert, Some(_)) => return Err(OutcomeStatus::Duplicate),
        (OperationKind::Insert | OperationKind::Upsert, _) => Some(value.to_vec()),
        (OperationKind::CheckExists, present) => {
            return present.map(drop).ok_or(OutcomeStatus::CheckFailed);
        }
        (_, None) => return Err(OutcomeStatus::NotFound),
        (OperationKind::Delete, Some(_)) => None,
        (OperationKind::Add, Some((mut row, _))) => {
            let column = usize::from(operation.column);
            let column_type = definition.columns[column].column_type;
            let argument = AddArgument::decode(column_type, value);
            let argument = argument.map_err(|_| OutcomeStatus::Malformed)?;
            let value_column = layout.value_column(column).ok_or(OutcomeStatus::Malformed)?;
            row_add(layout, &mut row, value_column, &argument)
                .map_err(|_| OutcomeStatus::BoundsViolated)?;
            Some(row)
        }
        (_, Some(_)) => return Err(OutcomeStatus::Malformed),
    };
    changes.insert(place, row.map(|row| (row, state.versions)));
    Ok(())
}
