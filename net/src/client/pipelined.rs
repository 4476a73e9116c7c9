//! The pipelined face: many connections in one thread, many frames in flight on each.

use std::io;
use std::net::SocketAddr;

use spillway_runtime::clock::monotonic_now;
use spillway_runtime::tcp::{
    self, CloseReason, ConnectionId, ReceivedBuffer, TcpEvent, TcpRing, TcpRingOptions,
};

use crate::client::answer::{FrameAnswer, FrameResult, FrameToken, LossReason};
use crate::client::batch::Batch;
use crate::client::blocking::payload_of;
use crate::client::core::{ClientCore, ClientEffects, ClientInput, CoreOptions, Follow};
use crate::client::error::ClientError;
use crate::client::link::{connect_error, socket_addresses};
use crate::client::nodes::NodeBook;
use crate::client::plan::Plan;
use crate::client::table::Router;
use crate::frame::FrameKind;
use crate::ids::Lsn;
use crate::message::{self, Payload, SessionClose, SessionOpen, SessionOpened, Welcome};

const NANOS_PER_MS: u64 = 1_000_000;
/// Bytes of one receive buffer: an answer to a frame of 1,000 transactions fits.
const RECEIVE_BUFFER_BYTES: u32 = 16 << 10;

/// How long [`Pipeline::poll`] may sleep when nothing has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// At most so many nanoseconds.
    Nanos(u64),
    /// Until something arrives or a time-out of the client is due.
    Event,
}

/// Which shards the connections go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Connection i goes to shard i modulo shards.
    RoundRobin,
    /// All to this shard.
    Shard(u16),
}

/// How a [`Pipeline`] connects. [`PipelineOptions::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct PipelineOptions {
    /// Addresses of nodes' shards 0, each `host:port`, at least one. One that runs is enough:
    /// the others are learned from it. A host name is looked up when it is connected to, which
    /// holds the thread up; write numbers where that matters.
    pub nodes: Vec<String>,
    /// Which node serves. Default the leader. With [`Follow::Any`] the connections have no
    /// sessions and only read.
    pub follow: Follow,
    /// For the operator's lists.
    pub client_name: String,
    /// Connections, each with a session of its own. Default 1.
    pub connections: usize,
    /// Which shards they go to. Default round robin.
    pub spread: Spread,
    /// Unanswered frames per connection at most. Default 64, at most
    /// [`crate::limits::SESSION_FRAMES_IN_FLIGHT_MAX`].
    pub frames_in_flight_max: usize,
    /// An answer that takes longer makes the client turn to another node and ask again. Default
    /// 10,000.
    pub request_timeout_ms: u64,
    /// A frame without an answer for so long, whatever was tried, is reported as lost with an
    /// unknown outcome. Default 60,000.
    pub give_up_ms: u64,
    /// A frame that was on its way to so many leaders that were lost ends with an unknown
    /// outcome. Default 2.
    pub leaders_lost_max: usize,
    /// For how long a read is repeated while nodes are behind what it must have seen. Default
    /// 1,000.
    pub behind_ms: u64,
    /// How long one attempt to connect to one node may take. Default 1,000.
    pub connect_timeout_ms: u64,
    /// How long connecting may take, all attempts included; 0: every node is tried once.
    /// Default 0.
    pub connect_ms: u64,
    /// Whether a lost connection is made anew and its frames sent again. Default true.
    pub reconnect: bool,
    /// Seed of the reconnect jitter.
    pub seed: u64,
}

impl PipelineOptions {
    /// One connection to the node at `address`, with the defaults.
    pub fn new(address: SocketAddr) -> Self {
        Self::cluster([address.to_string()])
    }

    /// One connection to the cluster of the nodes at these addresses, each `host:port`, with the
    /// defaults.
    ///
    /// # Panics
    /// If there is no address.
    pub fn cluster(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let nodes: Vec<String> = addresses.into_iter().map(Into::into).collect();
        assert!(!nodes.is_empty(), "a client knows at least one node");
        Self {
            nodes,
            follow: Follow::Leader,
            client_name: "pipeline".to_owned(),
            connections: 1,
            spread: Spread::RoundRobin,
            frames_in_flight_max: 64,
            request_timeout_ms: 10_000,
            give_up_ms: 60_000,
            leaders_lost_max: 2,
            behind_ms: 1_000,
            connect_timeout_ms: 1_000,
            connect_ms: 0,
            reconnect: true,
            seed: 1,
        }
    }
}

/// One connection.
#[derive(Debug)]
struct Link {
    core: ClientCore,
    id: Option<ConnectionId>,
}

/// Many connections, each with a session of its own, driven by one thread.
///
/// Bound to the thread that made it. [`Pipeline::poll`] does all the work; the other calls queue.
pub struct Pipeline {
    options: PipelineOptions,
    ring: TcpRing,
    links: Vec<Link>,
    /// Index into `links` by the ring's connection slot.
    link_of_slot: Vec<usize>,
    events: Vec<TcpEvent>,
    outbox: Vec<u8>,
    /// What all connections together know of the nodes.
    nodes: NodeBook,
    welcome: Welcome,
    /// Time as of the last poll.
    now: u64,
    /// No core has a deadline before this.
    tick_at: u64,
}

impl Pipeline {
    /// Connects all connections and opens their sessions; returns when all are ready.
    ///
    /// # Panics
    /// If `connections` is 0 or `frames_in_flight_max` is out of range.
    pub fn connect(options: PipelineOptions) -> Result<Self, ClientError> {
        assert!(options.connections > 0, "a pipeline has at least one connection");
        let connections = u32::try_from(options.connections).expect("connections fit 32 bits");
        // Twice as many, since a lost connection may still be closing while the next one is made.
        let connections_max = connections * 2 + 2;
        let buffers = (connections * 2).next_power_of_two().clamp(64, 4096) as u16;
        let ring = TcpRing::new(TcpRingOptions {
            entries: (connections * 2).next_power_of_two().clamp(64, 4096),
            receive_buffers: buffers,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
            connections_max,
        })?;
        let mut pipeline = Self {
            ring,
            links: Vec::new(),
            link_of_slot: vec![usize::MAX; connections_max as usize],
            events: Vec::new(),
            outbox: Vec::new(),
            nodes: NodeBook::new(options.nodes.iter().cloned()),
            welcome: Welcome::default(),
            now: monotonic_now().0,
            tick_at: u64::MAX,
            options,
        };
        pipeline.open_control()?;
        let sessions = match pipeline.options.follow {
            Follow::Leader => pipeline.open_sessions()?,
            Follow::Any => vec![0; pipeline.options.connections],
        };
        pipeline.close_links();
        pipeline.open_links(&sessions)?;
        Ok(pipeline)
    }

    /// What the node said of itself on the first connection.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The node that a connection was served by last, and its term; `None` before that.
    pub fn node_of(&self, connection: usize) -> Option<(u16, u64)> {
        let welcome = self.links[connection].core.welcome();
        welcome.map(|welcome| (welcome.node, welcome.epoch))
    }

    /// The nodes as far as the connections know them.
    pub fn nodes(&self) -> &NodeBook {
        &self.nodes
    }

    /// The highest committed LSN of any answer. A read at it sees, at any node, all that these
    /// connections have written and read.
    pub fn lsn(&self) -> Lsn {
        self.links.iter().map(|link| link.core.lsn()).max().unwrap_or_default()
    }

    /// Frames of a connection whose outcome was reported as unknown, oldest first, as far as they
    /// can still be resolved: as many as may be in flight are kept.
    pub fn unresolved(&self, connection: usize) -> impl Iterator<Item = FrameToken> {
        self.links[connection].core.unresolved()
    }

    /// Finds the shard of a key.
    pub fn router(&self) -> Router {
        Router::new(&self.welcome).expect("checked when the node greeted")
    }

    /// Connections.
    pub fn connections(&self) -> usize {
        self.links.len()
    }

    /// The shard that a connection talks to.
    pub fn shard_of(&self, connection: usize) -> u16 {
        self.links[connection].core.shard()
    }

    /// Unanswered frames and requests of a connection.
    pub fn in_flight(&self, connection: usize) -> usize {
        self.links[connection].core.in_flight()
    }

    /// Whether [`Pipeline::submit`] would take a batch as long as the connection's last one.
    pub fn can_submit(&self, connection: usize) -> bool {
        self.links[connection].core.can_submit()
    }

    /// Why the connection takes no more frames at all, if so.
    pub fn ended(&self, connection: usize) -> Option<LossReason> {
        self.links[connection].core.ended()
    }

    /// What went wrong last on a connection, if anything did since the last call.
    pub fn take_error(&mut self, connection: usize) -> Option<ClientError> {
        self.links[connection].core.take_error()
    }

    /// Queues the batch as one frame and leaves it empty. It is sent by the next `poll`.
    ///
    /// # Errors
    /// The batch keeps its content if it cannot be taken.
    pub fn submit(
        &mut self,
        connection: usize,
        batch: &mut Batch,
    ) -> Result<FrameToken, ClientError> {
        let link = &mut self.links[connection];
        let mut outgoing = Outgoing { ring: &mut self.ring, id: link.id };
        let token = link.core.submit(self.now, batch, &mut outgoing)?;
        self.watch_deadline();
        Ok(token)
    }

    /// Asks again for the outcome of a frame that was reported as unknown: it is sent again with
    /// the same numbers, and answered under the token returned. What has taken effect gives its
    /// first outcome, what has not takes effect now.
    pub fn resolve(&mut self, token: FrameToken) -> Result<FrameToken, ClientError> {
        let link = self.links.get_mut(token.connection).ok_or(ClientError::NotUnresolved)?;
        let mut outgoing = Outgoing { ring: &mut self.ring, id: link.id };
        let token = link.core.resolve(self.now, token, &mut outgoing)?;
        self.watch_deadline();
        Ok(token)
    }

    /// Queues a request other than a submit, for example `Status` or `TableCreate` (the latter
    /// on a connection to shard 0). Only requests that may be repeated harmlessly are sent again
    /// after a lost connection; that is all but `TableDrop` and `SessionClose`.
    pub fn request<T: Payload>(
        &mut self,
        connection: usize,
        kind: FrameKind,
        message: &T,
    ) -> Result<FrameToken, ClientError> {
        let link = &mut self.links[connection];
        let mut outgoing = Outgoing { ring: &mut self.ring, id: link.id };
        let token = link.core.request(self.now, kind, message, &mut outgoing)?;
        self.watch_deadline();
        Ok(token)
    }

    /// What was just queued may be the first to time out.
    fn watch_deadline(&mut self) {
        let timeout = self.options.request_timeout_ms.min(self.options.give_up_ms);
        self.tick_at = self.tick_at.min(self.now + timeout.saturating_mul(NANOS_PER_MS));
    }

    /// Sends what is queued and receives, with one entry into the kernel, and calls back for
    /// every frame that has ended. Returns how many did. With nothing in flight it does not sleep
    /// for an event.
    pub fn poll(
        &mut self,
        wait: Wait,
        answers: &mut dyn FnMut(FrameAnswer<'_>),
    ) -> Result<usize, ClientError> {
        let wait = match wait {
            Wait::Event if self.links.iter().all(|link| link.core.in_flight() == 0) => Wait::No,
            wait => wait,
        };
        self.turn(wait, answers)
    }

    fn turn(
        &mut self,
        wait: Wait,
        answers: &mut dyn FnMut(FrameAnswer<'_>),
    ) -> Result<usize, ClientError> {
        let until_tick = self.tick_at.saturating_sub(self.now);
        let wait = match wait {
            Wait::No => tcp::Wait::Not,
            Wait::Nanos(nanos) => tcp::Wait::For(nanos.min(until_tick)),
            Wait::Event if self.tick_at == u64::MAX => tcp::Wait::Forever,
            Wait::Event => tcp::Wait::For(until_tick),
        };
        let mut events = std::mem::take(&mut self.events);
        self.ring.turn(wait, &mut events)?;
        self.now = monotonic_now().0;
        let mut ended = 0;
        for event in events.drain(..) {
            ended += self.event(event, answers);
        }
        self.events = events;
        if self.tick_at <= self.now {
            ended += self.tick_all(answers);
        }
        Ok(ended)
    }

    fn tick_all(&mut self, answers: &mut dyn FnMut(FrameAnswer<'_>)) -> usize {
        self.tick_at = u64::MAX;
        (0..self.links.len()).map(|link| self.step(link, ClientInput::Tick, answers)).sum()
    }

    fn event(&mut self, event: TcpEvent, answers: &mut dyn FnMut(FrameAnswer<'_>)) -> usize {
        match event {
            TcpEvent::Connected { connection } => match self.link_of(connection) {
                Some(link) => self.step(link, ClientInput::Connected, answers),
                None => 0,
            },
            TcpEvent::Received { connection, buffer } => {
                let ended = match self.link_of(connection) {
                    Some(link) => self.receive(link, &buffer, answers),
                    None => 0,
                };
                self.ring.release(buffer);
                ended
            }
            TcpEvent::Closed { connection, reason } => match self.link_of(connection) {
                Some(link) => {
                    self.links[link].id = None;
                    self.step(link, ClientInput::Disconnected(&describe(reason)), answers)
                }
                None => 0,
            },
            // A client neither listens, nor watches, nor frames its connections.
            TcpEvent::Accepted { .. }
            | TcpEvent::Header { .. }
            | TcpEvent::Body { .. }
            | TcpEvent::Ready { .. }
            | TcpEvent::Woken => 0,
        }
    }

    /// The link whose present connection this is. A closed connection's last events have none.
    fn link_of(&self, connection: ConnectionId) -> Option<usize> {
        let link = *self.link_of_slot.get(connection.index as usize)?;
        (self.links.get(link)?.id == Some(connection)).then_some(link)
    }

    fn receive(
        &mut self,
        link: usize,
        buffer: &ReceivedBuffer,
        answers: &mut dyn FnMut(FrameAnswer<'_>),
    ) -> usize {
        let bytes = self.ring.bytes(buffer);
        let mut plan = Plan::new(&mut self.outbox, answers);
        self.links[link].core.step(self.now, ClientInput::Received(bytes), &mut plan);
        let Plan { close, connect, ended, .. } = plan;
        let ended = self.carry_out(link, close, connect, answers) + ended;
        if self.links[link].core.take_news() { ended + self.spread(link, answers) } else { ended }
    }

    fn step(
        &mut self,
        link: usize,
        input: ClientInput<'_>,
        answers: &mut dyn FnMut(FrameAnswer<'_>),
    ) -> usize {
        let mut plan = Plan::new(&mut self.outbox, answers);
        self.links[link].core.step(self.now, input, &mut plan);
        let Plan { close, connect, ended, .. } = plan;
        let ended = self.carry_out(link, close, connect, answers) + ended;
        if self.links[link].core.take_news() { ended + self.spread(link, answers) } else { ended }
    }

    /// Tells all connections what one has learned of the nodes.
    fn spread(&mut self, from: usize, answers: &mut dyn FnMut(FrameAnswer<'_>)) -> usize {
        self.nodes.merge(self.links[from].core.nodes());
        let nodes = self.nodes.clone();
        let others = (0..self.links.len()).filter(|link| *link != from);
        others.map(|link| self.step(link, ClientInput::Learned(&nodes), answers)).sum()
    }

    /// Does what a step planned. Returns how many more frames have ended by that.
    fn carry_out(
        &mut self,
        index: usize,
        close: bool,
        connect: Option<String>,
        answers: &mut dyn FnMut(FrameAnswer<'_>),
    ) -> usize {
        let link = &mut self.links[index];
        if let Some(id) = link.id
            && !self.outbox.is_empty()
            && let Some(outgoing) = self.ring.outgoing(id)
        {
            // If the ring is closing the connection, `Closed` will tell the core.
            outgoing.extend_from_slice(&self.outbox);
        }
        if close && let Some(id) = link.id.take() {
            self.ring.close(id);
        }
        let mut ended = 0;
        if let Some(address) = connect {
            let id = first_address(&address).and_then(|address| {
                self.ring.connect(address).map_err(|error| io::Error::other(error.to_string()))
            });
            match id {
                Ok(id) => {
                    link.id = Some(id);
                    self.link_of_slot[id.index as usize] = index;
                }
                Err(error) => {
                    // Ends here: after a lost connection a core waits before the next attempt.
                    let cause = error.to_string();
                    ended = self.step(index, ClientInput::Disconnected(&cause), answers);
                }
            }
        }
        if let Some(deadline) = self.links[index].core.deadline() {
            self.tick_at = self.tick_at.min(deadline);
        }
        ended
    }

    fn core(&self, connection: usize, session: u64, shard: u16) -> ClientCore {
        let options = &self.options;
        ClientCore::new(CoreOptions {
            nodes: self.nodes.clone(),
            follow: options.follow,
            is_scout: connection == 0,
            leaders_lost_max: options.leaders_lost_max,
            behind_nanos: options.behind_ms.saturating_mul(NANOS_PER_MS),
            connect_timeout_nanos: options.connect_timeout_ms.saturating_mul(NANOS_PER_MS),
            connection,
            session,
            cluster: self.welcome.cluster,
            shard,
            shards: self.welcome.shard_ports.len(),
            frames_in_flight_max: options.frames_in_flight_max,
            request_timeout_nanos: options.request_timeout_ms.saturating_mul(NANOS_PER_MS),
            give_up_nanos: options.give_up_ms.saturating_mul(NANOS_PER_MS),
            connect_nanos: options.connect_ms.saturating_mul(NANOS_PER_MS),
            reconnect: options.reconnect,
            seed: options.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(connection as u64),
        })
    }

    /// Starts the links and turns until all are ready.
    fn start_links(&mut self, links: Vec<Link>) -> Result<(), ClientError> {
        assert!(self.links.is_empty(), "links are started together");
        self.links = links;
        self.now = monotonic_now().0;
        for index in 0..self.links.len() {
            self.step(index, ClientInput::Start, &mut |_| {});
        }
        loop {
            for link in &mut self.links {
                if let Some(reason) = link.core.ended() {
                    return Err(connect_error(&mut link.core, reason));
                }
            }
            if self.links.iter().all(|link| link.core.is_ready()) {
                return Ok(());
            }
            self.turn(Wait::Event, &mut |_| {})?;
        }
    }

    /// Makes a connection without session to shard 0.
    fn open_control(&mut self) -> Result<(), ClientError> {
        let core = self.core(0, 0, 0);
        self.start_links(vec![Link { core, id: None }])?;
        let welcome = self.links[0].core.welcome().expect("a ready core was greeted");
        self.welcome = welcome.clone();
        // All connections of readers go to one node, as long as it serves.
        self.nodes.begin_with(welcome.node);
        Ok(())
    }

    /// Asks for as many sessions as there are to be connections.
    fn open_sessions(&mut self) -> Result<Vec<u64>, ClientError> {
        let message = SessionOpen { client_name: self.options.client_name.clone() };
        let mut asked = 0;
        let mut sessions = Vec::new();
        let mut failure = None;
        while sessions.len() < self.options.connections {
            while asked < self.options.connections
                && self.in_flight(0) < self.options.frames_in_flight_max
            {
                self.request(0, FrameKind::SessionOpen, &message)?;
                asked += 1;
            }
            self.poll(Wait::Event, &mut |answer| match session_opened(&answer.result) {
                Ok(session) => sessions.push(session),
                Err(error) => failure = Some(error),
            })?;
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(sessions)
    }

    /// Closes all connections and forgets them.
    fn close_links(&mut self) {
        for link in self.links.drain(..) {
            if let Some(id) = link.id {
                self.ring.close(id);
            }
        }
    }

    fn open_links(&mut self, sessions: &[u64]) -> Result<(), ClientError> {
        let shards = self.welcome.shard_ports.len();
        let mut links = Vec::with_capacity(sessions.len());
        for (connection, session) in sessions.iter().enumerate() {
            let shard = match self.options.spread {
                Spread::RoundRobin => (connection % shards) as u16,
                Spread::Shard(shard) => shard,
            };
            if usize::from(shard) >= shards {
                return Err(ClientError::ShardUnknown(shard));
            }
            links.push(Link { core: self.core(connection, *session, shard), id: None });
        }
        self.start_links(links)
    }

    /// Closes all connections and ends their sessions, if they have any, so that the node can
    /// forget them at once instead of when they expire.
    pub fn close(mut self) -> Result<(), ClientError> {
        let sessions: Vec<u64> = self.links.iter().map(|link| link.core.session()).collect();
        self.close_links();
        if self.options.follow == Follow::Any {
            return Ok(());
        }
        self.open_control()?;
        let mut failure = None;
        let mut note = |answer: FrameAnswer<'_>| {
            if let Err(error) = payload_of(&answer.result) {
                failure = Some(error);
            }
        };
        for session in sessions {
            while self.in_flight(0) >= self.options.frames_in_flight_max {
                self.poll(Wait::Event, &mut note)?;
            }
            self.request(0, FrameKind::SessionClose, &SessionClose { session })?;
        }
        while self.in_flight(0) > 0 {
            self.poll(Wait::Event, &mut note)?;
        }
        failure.map_or(Ok(()), Err)
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Pipeline")
            .field("options", &self.options)
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
}

/// Effects of queueing a frame: sending, at most.
struct Outgoing<'a> {
    ring: &'a mut TcpRing,
    id: Option<ConnectionId>,
}

impl ClientEffects for Outgoing<'_> {
    fn connect(&mut self, _address: &str) {
        unreachable!("queueing a frame connects nothing");
    }

    fn send(&mut self, frame: &[u8]) {
        // If the ring is closing the connection, `Closed` will tell the core.
        if let Some(outgoing) = self.id.and_then(|id| self.ring.outgoing(id)) {
            outgoing.extend_from_slice(frame);
        }
    }

    fn close(&mut self) {
        unreachable!("queueing a frame closes nothing");
    }

    fn answer(&mut self, _answer: FrameAnswer<'_>) {
        unreachable!("queueing a frame ends nothing");
    }
}

/// What an address stands for first.
fn first_address(address: &str) -> io::Result<SocketAddr> {
    let first = socket_addresses(address)?.into_iter().next();
    first.ok_or_else(|| io::Error::other("the host has no address"))
}

fn describe(reason: CloseReason) -> String {
    match reason {
        CloseReason::Local => "closed by this side".to_owned(),
        CloseReason::Peer => "closed by the node".to_owned(),
        CloseReason::Reset => "reset by the node".to_owned(),
        CloseReason::ConnectFailed(errno) | CloseReason::Failed(errno) => errno.to_string(),
    }
}

/// The session that a `SessionOpen` was answered with.
fn session_opened(result: &FrameResult<'_>) -> Result<u64, ClientError> {
    let (_, payload) = payload_of(result)?;
    match message::decode::<SessionOpened>(payload)?.session {
        0 => Err(ClientError::Protocol("it opened session 0, which is none")),
        session => Ok(session),
    }
}
