//! A network between nodes that can be told to misbehave: every node is reached through a TCP
//! proxy in front of it, and each direction between two nodes can be cut, slowed down and broken
//! off by itself.
//!
//! A cut direction takes nothing from its sender any more, and what it took before stays where it
//! is: to both ends it looks like a network that loses everything and a TCP that keeps trying.
//! Bytes are never lost, reordered or changed within a connection, for TCP does not do so either.
//!
//! Who dials is told by the first message of the connection, which the proxy reads without taking
//! it: all nodes have to have the same addresses of each other, for they tell them on.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use spillway_runtime::clock::monotonic_now;
use spillway_runtime::thread;

use crate::config::ClusterNode;
use crate::error::PerfError;

/// Bytes that a direction takes at once.
const CHUNK_BYTES: usize = 256 << 10;
/// How long a proxy waits for who dials, and for the node behind it.
const PATIENCE: Duration = Duration::from_millis(500);
/// How a hello between nodes begins.
const HELLO_MAGIC: &[u8] = b"SPLH";
/// Where it has the number of the node that says it.
const NODE_AT: usize = 42;
/// Bytes that are looked at.
const HELLO_BYTES: usize = NODE_AT + 2;

/// What one direction between two nodes does, from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Nothing comes through.
    pub is_cut: bool,
    /// Everything is late by so much.
    pub delay: Duration,
}

/// One direction between two nodes, over all their connections.
#[derive(Debug, Default)]
struct Path {
    weather: Mutex<Weather>,
    changed: Condvar,
}

impl Path {
    fn lock(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().expect("nobody panics with it")
    }

    fn set(&self, weather: Weather) {
        *self.lock() = weather;
        self.changed.notify_all();
    }

    /// Waits until something may come through, or `is_over`; tells how late.
    fn wait_open(&self, is_over: &AtomicBool) -> Duration {
        let mut weather = self.lock();
        while weather.is_cut && !is_over.load(Ordering::Acquire) {
            weather = self.changed.wait(weather).expect("nobody panics with it");
        }
        weather.delay
    }
}

/// A connection through a proxy.
#[derive(Debug)]
struct Connection {
    /// The node that dialled.
    from: usize,
    ends: [TcpStream; 2],
    is_over: Arc<AtomicBool>,
}

impl Connection {
    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        for end in &self.ends {
            // It may have ended by itself.
            drop(end.shutdown(Shutdown::Both));
        }
    }
}

/// All directions, by sender and receiver of bytes.
#[derive(Debug)]
struct Paths {
    nodes: usize,
    all: Vec<Arc<Path>>,
}

impl Paths {
    fn of(&self, from: usize, to: usize) -> &Arc<Path> {
        assert!(from != to && from < self.nodes && to < self.nodes, "two of the nodes");
        &self.all[from * self.nodes + to]
    }

    /// Lets those who wait at a cut look whether their connection is over.
    fn wake(&self) {
        for path in &self.all {
            drop(path.lock());
            path.changed.notify_all();
        }
    }
}

/// What the threads of one proxy share.
#[derive(Debug)]
struct Shared {
    /// The node behind it.
    node: usize,
    target: SocketAddr,
    paths: Arc<Paths>,
    connections: Mutex<Vec<Connection>>,
    is_over: AtomicBool,
}

impl Shared {
    /// Ends the connections from one node, or all.
    fn break_off(&self, from: Option<usize>) -> usize {
        let mut connections = self.connections.lock().expect("nobody panics with it");
        let mut broken = 0;
        connections.retain(|connection| {
            if from.is_some_and(|from| from != connection.from) {
                return true;
            }
            broken += usize::from(!connection.is_over.load(Ordering::Acquire));
            connection.end();
            false
        });
        self.paths.wake();
        broken
    }

    /// Takes a connection: one thread for each direction.
    fn take(&self, near: TcpStream) -> io::Result<()> {
        let Some(from) = dialler(&near)?.filter(|from| *from < self.paths.nodes) else {
            return Ok(());
        };
        if from == self.node {
            return Ok(());
        }
        let far = TcpStream::connect_timeout(&self.target, PATIENCE)?;
        near.set_read_timeout(None)?;
        for end in [&near, &far] {
            end.set_nodelay(true)?;
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let directions = [
            (near.try_clone()?, far.try_clone()?, self.paths.of(from, self.node)),
            (far.try_clone()?, near.try_clone()?, self.paths.of(self.node, from)),
        ];
        let mut connections = self.connections.lock().expect("nobody panics with it");
        connections.retain(|one| !one.is_over.load(Ordering::Acquire));
        connections.push(Connection { from, ends: [near, far], is_over: is_over.clone() });
        drop(connections);
        for (from, to, path) in directions {
            let (path, is_over, paths) = (path.clone(), is_over.clone(), self.paths.clone());
            let carry = move || {
                carry(&from, &to, &path, &is_over);
                is_over.store(true, Ordering::Release);
                for end in [&from, &to] {
                    drop(end.shutdown(Shutdown::Both));
                }
                // The other direction may wait at a cut.
                paths.wake();
            };
            // Runs until the connection ends, which closing the proxy sees to.
            drop(thread::spawn("proxy path", None, carry).map_err(io::Error::other)?);
        }
        Ok(())
    }
}

/// The node that dials, counted from 0: read from its hello, which stays in the connection.
fn dialler(stream: &TcpStream) -> io::Result<Option<usize>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut hello = [0; HELLO_BYTES];
    let began = monotonic_now();
    while stream.peek(&mut hello)? < HELLO_BYTES {
        if monotonic_now().saturating_since(began) >= PATIENCE {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(1));
    }
    let node = u16::from_le_bytes([hello[NODE_AT], hello[NODE_AT + 1]]);
    let is_hello = hello.starts_with(HELLO_MAGIC);
    Ok(is_hello.then_some(usize::from(node)).and_then(|node| node.checked_sub(1)))
}

/// Carries bytes until one end closes.
fn carry(mut from: &TcpStream, mut to: &TcpStream, path: &Path, is_over: &AtomicBool) {
    let mut bytes = vec![0; CHUNK_BYTES];
    loop {
        path.wait_open(is_over);
        let Ok(read @ 1..) = from.read(&mut bytes) else { return };
        // The cut may have come while nothing was to be read.
        let delay = path.wait_open(is_over);
        if is_over.load(Ordering::Acquire) {
            return;
        }
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        if to.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
}

/// The proxy in front of one node.
#[derive(Debug)]
struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn new(node: usize, target: SocketAddr, paths: Arc<Paths>) -> Result<Self, PerfError> {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let listener = TcpListener::bind(any).map_err(PerfError::system("a port for a proxy"))?;
        let address = listener.local_addr().map_err(PerfError::system("the port of a proxy"))?;
        let shared = Arc::new(Shared {
            node,
            target,
            paths,
            connections: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let taker = shared.clone();
        let accept = move || {
            for near in listener.incoming() {
                if taker.is_over.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(near), taker) = (near, taker.clone()) else { continue };
                // Whoever dials a node that is down sees its connection end.
                let take = move || drop(taker.take(near));
                drop(thread::spawn("proxy connection", None, take));
            }
        };
        let thread = Some(thread::spawn("proxy", None, accept)?);
        Ok(Self { address, shared, thread })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        // Wakes the one that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        self.shared.break_off(None);
    }
}

/// Proxies in front of all nodes. Nodes are counted from 0 here.
#[derive(Debug)]
pub struct Mesh {
    paths: Arc<Paths>,
    proxies: Vec<Proxy>,
}

impl Mesh {
    /// Proxies in front of these nodes, all clear.
    pub fn new(nodes: &[ClusterNode]) -> Result<Self, PerfError> {
        let all = (0..nodes.len() * nodes.len()).map(|_| Arc::default()).collect();
        let paths = Arc::new(Paths { nodes: nodes.len(), all });
        let proxy = |(at, node): (usize, &ClusterNode)| Proxy::new(at, node.peer, paths.clone());
        let proxies: Result<Vec<Proxy>, PerfError> = nodes.iter().enumerate().map(proxy).collect();
        Ok(Self { proxies: proxies?, paths })
    }

    /// The nodes as all of them are to be told of each other.
    pub fn seen(&self, nodes: &[ClusterNode]) -> Vec<ClusterNode> {
        assert_eq!(nodes.len(), self.proxies.len(), "the nodes it was made for");
        let both = nodes.iter().zip(&self.proxies);
        both.map(|(node, proxy)| ClusterNode { peer: proxy.address, ..*node }).collect()
    }

    /// From now on bytes from one node to another meet this weather, whoever dialled.
    pub fn set(&self, from: usize, to: usize, weather: Weather) {
        self.paths.of(from, to).set(weather);
    }

    /// Cuts one direction.
    pub fn cut(&self, from: usize, to: usize) {
        self.set(from, to, Weather { is_cut: true, ..Weather::default() });
    }

    /// Breaks off all connections between two nodes; they may dial again at once. Returns how
    /// many there were.
    pub fn break_off(&self, one: usize, other: usize) -> usize {
        let [one_side, other_side] = [one, other].map(|at| &self.proxies[at].shared);
        one_side.break_off(Some(other)) + other_side.break_off(Some(one))
    }

    /// All clear.
    pub fn heal(&self) {
        for path in &self.paths.all {
            path.set(Weather::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes: one that only dials, and one behind a listener.
    fn pair() -> (Mesh, TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = listener.local_addr().expect("bound");
        let nodes = [1, 2].map(|id| ClusterNode { id, peer, client: peer });
        let mesh = Mesh::new(&nodes).expect("proxies");
        let seen = mesh.seen(&nodes);
        assert_eq!(seen[1].client, peer);
        assert_ne!(seen[1].peer, peer);
        (mesh, listener, seen[1].peer)
    }

    /// What node 1 says first.
    fn hello() -> [u8; 128] {
        let mut hello = [0; 128];
        hello[..4].copy_from_slice(HELLO_MAGIC);
        hello[NODE_AT] = 1;
        hello
    }

    /// A connection of node 1 to node 2, both ends.
    fn dial(listener: &TcpListener, proxy: SocketAddr) -> [TcpStream; 2] {
        let mut near = TcpStream::connect(proxy).expect("the proxy accepts");
        near.write_all(&hello()).expect("sent");
        let (far, _) = listener.accept().expect("it dials");
        receive(&far, &hello());
        [near, far]
    }

    fn receive(mut stream: &TcpStream, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        stream.read_exact(&mut bytes).expect("arrives");
        assert_eq!(bytes, expected);
    }

    fn is_silent(mut stream: &TcpStream) -> bool {
        stream.set_read_timeout(Some(Duration::from_millis(30))).expect("set");
        let silent = stream.read(&mut [0]).is_err();
        stream.set_read_timeout(None).expect("set");
        silent
    }

    #[test]
    fn one_direction_is_cut_and_heals_without_loss() {
        let (mesh, listener, proxy) = pair();
        let [mut near, mut far] = dial(&listener, proxy);
        near.write_all(b"one").expect("sent");
        receive(&far, b"one");
        mesh.cut(0, 1);
        near.write_all(b"two").expect("sent");
        assert!(is_silent(&far));
        far.write_all(b"back").expect("sent");
        receive(&near, b"back");
        mesh.heal();
        receive(&far, b"two");
        mesh.set(1, 0, Weather { is_cut: false, delay: Duration::from_millis(1) });
        far.write_all(b"late").expect("sent");
        receive(&near, b"late");
    }

    #[test]
    fn connections_are_broken_off_and_made_anew() {
        let (mesh, listener, proxy) = pair();
        for is_cut in [false, true] {
            let [mut near, mut far] = dial(&listener, proxy);
            near.write_all(b"x").expect("sent");
            receive(&far, b"x");
            if is_cut {
                mesh.cut(0, 1);
                near.write_all(b"never").expect("sent");
                assert!(is_silent(&far));
            }
            assert_eq!(mesh.break_off(1, 0), 1);
            assert!(!matches!(near.read(&mut [0]), Ok(1..)), "closed");
            assert!(!matches!(far.read(&mut [0]), Ok(1..)), "closed, and nothing came");
        }
        assert_eq!(mesh.break_off(0, 1), 0);
        // An end that closes by itself takes the other one along, also at a cut.
        mesh.heal();
        let [near, mut far] = dial(&listener, proxy);
        mesh.cut(1, 0);
        drop(near);
        assert!(!matches!(far.read(&mut [0]), Ok(1..)), "closed");
    }

    #[test]
    fn a_node_that_is_down_ends_its_callers_connection() {
        let (_mesh, listener, proxy) = pair();
        drop(listener);
        for first in [hello(), [7; 128]] {
            let mut near = TcpStream::connect(proxy).expect("the proxy accepts");
            near.write_all(&first).expect("sent");
            assert!(!matches!(near.read(&mut [0]), Ok(1..)), "closed");
        }
    }
}
