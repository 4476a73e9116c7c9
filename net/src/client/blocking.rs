//! The blocking face: one call, one answer. For tools and for people.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use spillway_runtime::clock::monotonic_now;
use spillway_runtime::thread;

use crate::client::answer::{FrameAnswer, FrameResult, FrameToken};
use crate::client::batch::Batch;
use crate::client::core::{ClientCore, CoreOptions, Follow, answer_kind};
use crate::client::error::ClientError;
use crate::client::freshness::Freshness;
use crate::client::link::Link;
use crate::client::nodes::NodeBook;
use crate::client::outcome::{self, Outcome};
use crate::client::plan::Plan;
use crate::client::scan::{ScanRange, ScanRows};
use crate::client::table::{Router, TableHandle};
use crate::client::transaction::Transaction;
use crate::frame::FrameKind;
use crate::ids::{Lsn, TableId};
use crate::message::{
    self, ClusterCommand, ClusterReport, ClusterStatus, Done, Payload, SessionClose, SessionOpen,
    SessionOpened, Status, StatusReport, StatusValue, TableCreate, TableCreated, TableDrop,
    TableEntry, TableList, TableListing, Welcome,
};
use crate::schema::TableDefinition;
use crate::value::Value;

const NANOS_PER_MS: u64 = 1_000_000;
/// Wait before a transaction is sent again that the node refused without naming a time.
const RETRY_MS_DEFAULT: u32 = 10;

/// How a [`Client`] behaves. [`ClientOptions::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Addresses of nodes' shards 0, each `host:port`, at least one. One that runs is enough:
    /// the others are learned from it.
    pub nodes: Vec<String>,
    /// Which node serves. Default the leader.
    pub follow: Follow,
    /// For the operator's lists.
    pub client_name: String,
    /// How long connecting may take, all attempts included; 0: every node is tried once.
    /// Default 0.
    pub connect_ms: u64,
    /// How long one attempt to connect to one node may take. Default 1,000.
    pub connect_timeout_ms: u64,
    /// An answer that takes longer makes the client turn to another node and ask again. Default
    /// 10,000.
    pub request_timeout_ms: u64,
    /// A call takes no longer than about this, whatever was tried. Default 30,000.
    pub give_up_ms: u64,
    /// A request that was on its way to so many leaders that were lost ends with an unknown
    /// outcome. Default 2.
    pub leaders_lost_max: usize,
    /// For how long a read is repeated while nodes are behind what it must have seen. Default
    /// 1,000.
    pub behind_ms: u64,
    /// For how long transactions that an overloaded node refused are sent again before the
    /// refusal is handed to the caller. Default 0: not at all.
    pub retry_ms: u64,
    /// Seed of the reconnect jitter.
    pub seed: u64,
}

impl ClientOptions {
    /// The defaults, for the node whose shard 0 listens at `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self::cluster([address.to_string()])
    }

    /// The defaults, for the nodes whose shards 0 listen at these addresses, each `host:port`.
    ///
    /// # Panics
    /// If there is no address.
    pub fn cluster(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let nodes: Vec<String> = addresses.into_iter().map(Into::into).collect();
        assert!(!nodes.is_empty(), "a client knows at least one node");
        Self {
            nodes,
            follow: Follow::Leader,
            client_name: "client".to_owned(),
            connect_ms: 0,
            connect_timeout_ms: 1_000,
            request_timeout_ms: 10_000,
            give_up_ms: 30_000,
            leaders_lost_max: 2,
            behind_ms: 1_000,
            retry_ms: 0,
            seed: u64::from(std::process::id()),
        }
    }
}

/// A row as people read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// One value per column of the table's definition.
    pub values: Vec<Value>,
    /// The row's version, for `check_version`.
    pub version: u64,
}

/// Connections to one shard, made when first needed.
#[derive(Debug, Default)]
struct ShardLinks {
    /// For requests, without session.
    plain: Option<Link>,
    /// For transactions, with a session of its own.
    session: Option<Link>,
}

/// A call whose outcome is unknown.
#[derive(Debug)]
struct Unresolved {
    shard: u16,
    token: FrameToken,
    /// What the batch's transactions had come to before; empty if nothing. Those that are worth
    /// a retry are the ones asked about.
    outcomes: Vec<Outcome>,
}

/// A client that waits for every answer.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    nodes: NodeBook,
    welcome: Welcome,
    router: Router,
    shards: Vec<ShardLinks>,
    lsn: Lsn,
    unresolved: Option<Unresolved>,
}

impl Client {
    /// Connects to the cluster of the nodes whose shards 0 listen at `addresses`, one or several,
    /// with the default options.
    pub fn connect(addresses: impl ToSocketAddrs) -> Result<Self, ClientError> {
        let addresses =
            addresses.to_socket_addrs().map_err(|error| ClientError::Address(error.to_string()))?;
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        if addresses.is_empty() {
            return Err(ClientError::Address("no such host".to_owned()));
        }
        Self::connect_with(ClientOptions::cluster(addresses))
    }

    /// Connects with these options.
    pub fn connect_with(options: ClientOptions) -> Result<Self, ClientError> {
        let nodes = NodeBook::new(options.nodes.iter().cloned());
        let plain = Link::open(core_options(&options, &nodes, None, 0, 0))?;
        let welcome = plain.core().welcome().expect("a ready core was greeted").clone();
        let router = Router::new(&welcome)?;
        let nodes = plain.core().nodes().clone();
        let mut shards: Vec<ShardLinks> = Vec::new();
        shards.resize_with(usize::from(router.shards()), ShardLinks::default);
        shards[0].plain = Some(plain);
        let (lsn, unresolved) = (Lsn(0), None);
        Ok(Self { options, nodes, welcome, router, shards, lsn, unresolved })
    }

    /// What the node that served last said of itself.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The nodes as far as the client knows them.
    pub fn nodes(&self) -> &NodeBook {
        &self.nodes
    }

    /// The highest committed LSN of any answer. A read with [`Freshness::AtLsn`] of it sees, at
    /// any node, all that this client has written and read.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Finds the shard of a key.
    pub fn router(&self) -> Router {
        self.router
    }

    fn open_link(&self, shard: u16, session: u64) -> Result<Link, ClientError> {
        if usize::from(shard) >= self.shards.len() {
            return Err(ClientError::ShardUnknown(shard));
        }
        let mut nodes = self.nodes.clone();
        // All shards of one node, as long as it serves.
        nodes.begin_with(self.welcome.node);
        Link::open(core_options(&self.options, &nodes, Some(&self.welcome), shard, session))
    }

    /// Sends a request to a shard and decodes its answer with `read`.
    fn request<T: Payload, R>(
        &mut self,
        shard: u16,
        kind: FrameKind,
        message: &T,
        read: fn(&[u8]) -> Result<R, message::MessageError>,
    ) -> Result<R, ClientError> {
        self.plain(shard)?;
        self.call(
            shard,
            |links| &mut links.plain,
            |core, now, plan| core.request(now, kind, message, plan),
            |answer| {
                let (answered, payload) = payload_of(&answer.result)?;
                assert_eq!(Some(answered), answer_kind(kind), "the core checked the kind");
                Ok(read(payload)?)
            },
        )
    }

    /// Queues something on a link that is open, waits for its end, and learns from the link what
    /// it has learned meanwhile.
    fn call<R>(
        &mut self,
        shard: u16,
        choose: impl FnOnce(&mut ShardLinks) -> &mut Option<Link>,
        launch: impl FnOnce(&mut ClientCore, u64, &mut Plan<'_>) -> Result<FrameToken, ClientError>,
        take: impl FnMut(&FrameAnswer<'_>) -> Result<R, ClientError>,
    ) -> Result<R, ClientError> {
        let link = choose(&mut self.shards[usize::from(shard)]).as_mut();
        let link = link.expect("the caller opened it");
        if link.core().nodes().leader() < self.nodes.leader() {
            link.learn(&self.nodes);
        }
        let result = link.call(launch, take);
        if link.take_news() {
            self.nodes.merge(link.core().nodes());
        }
        let core = link.core();
        self.lsn = self.lsn.max(core.lsn());
        if let Some(welcome) = core.welcome()
            && (welcome.node, welcome.epoch) != (self.welcome.node, self.welcome.epoch)
        {
            self.welcome.clone_from(welcome);
        }
        result
    }

    /// Opens the connection to a shard that has no session, if there is none.
    fn plain(&mut self, shard: u16) -> Result<(), ClientError> {
        let ended = |link: &Link| link.core().ended().is_some();
        if self.links(shard)?.plain.as_ref().is_none_or(ended) {
            let link = self.open_link(shard, 0)?;
            self.links(shard)?.plain = Some(link);
        }
        Ok(())
    }

    fn links(&mut self, shard: u16) -> Result<&mut ShardLinks, ClientError> {
        self.shards.get_mut(usize::from(shard)).ok_or(ClientError::ShardUnknown(shard))
    }

    /// Creates a table, or finds the one that has this definition already.
    pub fn create_table(
        &mut self,
        definition: &TableDefinition,
    ) -> Result<TableHandle, ClientError> {
        definition.validate()?;
        let message = TableCreate { definition: definition.clone() };
        let read = message::decode::<TableCreated>;
        let created = self.request(0, FrameKind::TableCreate, &message, read)?;
        Ok(TableHandle::new(TableId(created.table), definition.clone(), self.router)?)
    }

    /// Drops a table and its rows.
    pub fn drop_table(&mut self, name: &str) -> Result<(), ClientError> {
        let message = TableDrop { name: name.to_owned() };
        let Done {} = self.request(0, FrameKind::TableDrop, &message, message::decode::<Done>)?;
        Ok(())
    }

    /// All tables by id, with the rows of all shards.
    pub fn tables(&mut self) -> Result<Vec<TableEntry>, ClientError> {
        let read = message::decode::<TableListing>;
        let mut tables = self.request(0, FrameKind::TableList, &TableList {}, read)?.tables;
        for shard in 1..self.router.shards() {
            let listing = self.request(shard, FrameKind::TableList, &TableList {}, read)?;
            for entry in listing.tables {
                if let Some(table) = tables.iter_mut().find(|table| table.id == entry.id) {
                    table.rows = table.rows.saturating_add(entry.rows);
                }
            }
        }
        tables.sort_by_key(|table| table.id);
        Ok(tables)
    }

    /// The table of that name.
    pub fn table(&mut self, name: &str) -> Result<TableHandle, ClientError> {
        let read = message::decode::<TableListing>;
        let tables = self.request(0, FrameKind::TableList, &TableList {}, read)?.tables;
        let entry = tables.into_iter().find(|table| table.definition.name == name);
        let entry = entry.ok_or_else(|| ClientError::TableUnknown(name.to_owned()))?;
        Ok(TableHandle::new(TableId(entry.id), entry.definition, self.router)?)
    }

    /// The numbers of every shard, by shard.
    pub fn status(&mut self) -> Result<Vec<Vec<StatusValue>>, ClientError> {
        let read = message::decode::<StatusReport>;
        let mut reports = Vec::new();
        for shard in 0..self.router.shards() {
            reports.push(self.request(shard, FrameKind::Status, &Status {}, read)?.values);
        }
        Ok(reports)
    }

    /// How the node that serves sees the cluster.
    pub fn cluster_status(&mut self) -> Result<ClusterReport, ClientError> {
        let read = message::decode::<ClusterReport>;
        self.request(0, FrameKind::ClusterStatus, &ClusterStatus {}, read)
    }

    /// Gives the leader a command for the cluster. It is accepted, not carried out, when this
    /// returns. [`ClientError::Unknown`] is to be expected if it makes the leader hand over.
    pub fn cluster_command(&mut self, command: &ClusterCommand) -> Result<(), ClientError> {
        let read = message::decode::<Done>;
        let Done {} = self.request(0, FrameKind::ClusterCommand, command, read)?;
        Ok(())
    }

    /// Sends the batch's transactions to a shard (see [`TableHandle::shard_of`]) and waits for
    /// their outcomes, one per transaction. The batch is empty afterwards, unless it could not be
    /// sent at all.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] means that transactions may or may not have taken effect;
    /// [`Client::resolve`] asks again.
    pub fn submit(&mut self, shard: u16, batch: &mut Batch) -> Result<Vec<Outcome>, ClientError> {
        batch.check_complete()?;
        let mut pending = Batch::new();
        let mut keep = Batch::new();
        if self.options.retry_ms > 0 {
            keep.extend_from(batch, |_| true)?;
        }
        let until = monotonic_now().0 + self.options.retry_ms.saturating_mul(NANOS_PER_MS);
        let (mut outcomes, mut retry_after_ms) = self.submit_once(shard, batch, &[])?;
        loop {
            let wait = u64::from(retry_after_ms.max(1)) * NANOS_PER_MS;
            let in_time = monotonic_now().0.saturating_add(wait) < until;
            if !in_time || !outcomes.iter().any(is_transient) {
                return Ok(outcomes);
            }
            thread::sleep(Duration::from_nanos(wait));
            pending.extend_from(&keep, |index| is_transient(&outcomes[index]))?;
            let (again, later) = self.submit_once(shard, &mut pending, &outcomes)?;
            fill(&mut outcomes, again);
            retry_after_ms = later;
        }
    }

    /// One frame on the shard's session. `outcomes` are those of the batch that the frame is the
    /// rest of.
    fn submit_once(
        &mut self,
        shard: u16,
        batch: &mut Batch,
        outcomes: &[Outcome],
    ) -> Result<(Vec<Outcome>, u32), ClientError> {
        let ended = |link: &Link| link.core().ended().is_some();
        if self.links(shard)?.session.as_ref().is_none_or(ended) {
            let message = SessionOpen { client_name: self.options.client_name.clone() };
            let read = message::decode::<SessionOpened>;
            let opened = self.request(0, FrameKind::SessionOpen, &message, read)?;
            if opened.session == 0 {
                return Err(ClientError::Protocol("it opened session 0, which is none"));
            }
            let link = self.open_link(shard, opened.session)?;
            self.links(shard)?.session = Some(link);
        }
        self.unresolved = None;
        let launch =
            |core: &mut ClientCore, now, plan: &mut Plan<'_>| core.submit(now, batch, plan);
        let result = self.call(shard, |links| &mut links.session, launch, read_outcomes);
        self.keep_unresolved(shard, &result, outcomes);
        result
    }

    fn keep_unresolved<R>(
        &mut self,
        shard: u16,
        result: &Result<R, ClientError>,
        outcomes: &[Outcome],
    ) {
        let link = self.shards[usize::from(shard)].session.as_ref();
        let core = link.map(Link::core).filter(|core| core.ended().is_none());
        if let (Err(ClientError::Unknown(_)), Some(core)) = (result, core) {
            let token = core.unresolved().last();
            let outcomes = outcomes.to_vec();
            self.unresolved = token.map(|token| Unresolved { shard, token, outcomes });
        }
    }

    /// Asks again about the last call of [`Client::submit`] or [`Client::execute`], which ended
    /// with [`ClientError::Unknown`]: its transactions are sent again with the same numbers.
    /// Those that have taken effect give their first outcome, the others take effect now.
    /// Returns what the call would have.
    ///
    /// # Errors
    /// [`ClientError::Unknown`]: the outcome is still unknown, ask again.
    /// [`ClientError::NotUnresolved`]: the last call was answered, or its session has ended.
    pub fn resolve(&mut self) -> Result<Vec<Outcome>, ClientError> {
        let unresolved = self.unresolved.take().ok_or(ClientError::NotUnresolved)?;
        let Unresolved { shard, token, mut outcomes } = unresolved;
        let launch =
            |core: &mut ClientCore, now, plan: &mut Plan<'_>| core.resolve(now, token, plan);
        let result = self.call(shard, |links| &mut links.session, launch, read_outcomes);
        self.keep_unresolved(shard, &result, &outcomes);
        let (again, _) = result?;
        if outcomes.is_empty() {
            return Ok(again);
        }
        fill(&mut outcomes, again);
        Ok(outcomes)
    }

    /// Runs one transaction and waits for its outcome.
    pub fn execute(&mut self, transaction: &mut Transaction) -> Result<Outcome, ClientError> {
        let shard = transaction.complete()?;
        let mut outcomes = self.submit(shard, &mut transaction.batch)?;
        *transaction = Transaction::new();
        outcomes.pop().ok_or(ClientError::Protocol("it answered without an outcome"))
    }

    /// Runs the batch's transactions, which only read, without a session, and waits for their
    /// outcomes. See [`Batch::set_freshness`]. The batch is empty afterwards, unless it could not
    /// be sent at all.
    ///
    /// # Errors
    /// [`ClientError::NoSession`] if a transaction writes.
    pub fn read(&mut self, shard: u16, batch: &mut Batch) -> Result<Vec<Outcome>, ClientError> {
        self.plain(shard)?;
        let launch =
            |core: &mut ClientCore, now, plan: &mut Plan<'_>| core.submit(now, batch, plan);
        let answer = self.call(shard, |links| &mut links.plain, launch, read_outcomes);
        answer.map(|(outcomes, _)| outcomes)
    }

    /// The row with this key, if there is one, as of now.
    pub fn get(&mut self, table: &TableHandle, key: &[Value]) -> Result<Option<Row>, ClientError> {
        self.get_at(table, key, Freshness::Strong)
    }

    /// The row with this key, if there is one, as fresh as asked for.
    ///
    /// # Errors
    /// [`ClientError::NotCommitted`] with `Behind`: no node that was asked is so fresh yet.
    pub fn get_at(
        &mut self,
        table: &TableHandle,
        key: &[Value],
        freshness: Freshness,
    ) -> Result<Option<Row>, ClientError> {
        let mut transaction = Transaction::new();
        transaction.get(table, key)?;
        transaction.batch.set_freshness(freshness);
        let shard = transaction.complete()?;
        // Without a session: a read needs none, and a node whose log is full opens none.
        let mut outcomes = self.read(shard, &mut transaction.batch)?;
        let answer = outcomes.pop();
        let outcome = answer.ok_or(ClientError::Protocol("it answered without an outcome"))?;
        if !outcome.is_committed() {
            return Err(ClientError::NotCommitted(outcome.status));
        }
        let [found] = outcome.gets.as_slice() else {
            return Err(ClientError::Protocol("it answered one get with another number of rows"));
        };
        let Some(found) = found else { return Ok(None) };
        let mut encoded = Vec::new();
        table.write_key(key, &mut encoded)?;
        let values = table.read_row(&encoded, &found.row)?;
        Ok(Some(Row { values, version: found.version }))
    }

    /// The rows of a range, of all shards, in key order. Not a snapshot: every page is an atomic
    /// read of its shard, the pages are not one of the table.
    pub fn scan<'a>(&'a mut self, table: &'a TableHandle, range: ScanRange) -> ScanRows<'a> {
        ScanRows::new(self, table, range)
    }

    /// Ends the sessions that transactions have opened, so that the node can forget them at once
    /// instead of when they expire.
    pub fn close(mut self) -> Result<(), ClientError> {
        let sessions = std::mem::take(&mut self.shards).into_iter();
        let sessions: Vec<u64> =
            sessions.filter_map(|links| Some(links.session?.core().session())).collect();
        self.shards.resize_with(usize::from(self.router.shards()), ShardLinks::default);
        for session in sessions {
            let close = SessionClose { session };
            let read = message::decode::<Done>;
            let Done {} = self.request(0, FrameKind::SessionClose, &close, read)?;
        }
        Ok(())
    }

    /// One page of a shard.
    pub(crate) fn scan_page(
        &mut self,
        shard: u16,
        scan: &message::Scan,
    ) -> Result<message::ScanPage, ClientError> {
        self.request(shard, FrameKind::Scan, scan, message::decode::<message::ScanPage>)
    }
}

fn is_transient(outcome: &Outcome) -> bool {
    outcome.status.is_transient()
}

/// Puts the outcomes of a second try in the places of those that were worth one.
fn fill(outcomes: &mut [Outcome], again: Vec<Outcome>) {
    let places = outcomes.iter_mut().filter(|outcome| is_transient(outcome));
    for (place, outcome) in places.zip(again) {
        *place = outcome;
    }
}

/// For a link's core. Once the cluster was met (`welcome`), links are opened with the patience of
/// a call.
fn core_options(
    options: &ClientOptions,
    nodes: &NodeBook,
    welcome: Option<&Welcome>,
    shard: u16,
    session: u64,
) -> CoreOptions {
    CoreOptions {
        nodes: nodes.clone(),
        follow: options.follow,
        is_scout: true,
        leaders_lost_max: options.leaders_lost_max,
        behind_nanos: options.behind_ms.saturating_mul(NANOS_PER_MS),
        connect_timeout_nanos: options.connect_timeout_ms.saturating_mul(NANOS_PER_MS),
        connection: usize::from(shard),
        session,
        cluster: welcome.map_or(0, |welcome| welcome.cluster),
        shard,
        shards: welcome.map_or(0, |welcome| welcome.shard_ports.len()),
        frames_in_flight_max: 1,
        request_timeout_nanos: options.request_timeout_ms.saturating_mul(NANOS_PER_MS),
        give_up_nanos: options.give_up_ms.saturating_mul(NANOS_PER_MS),
        connect_nanos: match welcome {
            Some(_) => options.connect_ms.max(options.give_up_ms),
            None => options.connect_ms,
        }
        .saturating_mul(NANOS_PER_MS),
        reconnect: true,
        seed: options.seed.wrapping_add(u64::from(shard)),
    }
}

/// Kind and payload of an answer to a request, or why there is none.
pub(crate) fn payload_of<'a>(
    result: &FrameResult<'a>,
) -> Result<(FrameKind, &'a [u8]), ClientError> {
    match *result {
        FrameResult::Answer { kind, payload, .. } => Ok((kind, payload)),
        FrameResult::Outcomes { .. } => Err(ClientError::Protocol("outcomes answer no request")),
        FrameResult::Refused { code, message, retry_after_ms } => {
            Err(ClientError::refused(code, message, retry_after_ms))
        }
        FrameResult::Unknown(reason) => Err(ClientError::Unknown(reason)),
        FrameResult::NotSent(reason) => Err(ClientError::NotSent(reason)),
    }
}

fn read_outcomes(answer: &FrameAnswer<'_>) -> Result<(Vec<Outcome>, u32), ClientError> {
    match answer.result {
        FrameResult::Outcomes { outcomes, bytes, retry_after_ms, .. } => {
            let retry_after_ms = match retry_after_ms {
                0 => RETRY_MS_DEFAULT,
                given => given,
            };
            Ok((outcome::outcomes(outcomes, bytes)?, retry_after_ms))
        }
        ref result => match payload_of(result) {
            Ok(_) => Err(ClientError::Protocol("it answered transactions without outcomes")),
            Err(error) => Err(error),
        },
    }
}
