//! A network between nodes that can be told to misbehave: every ordered pair of nodes has a TCP
//! proxy of its own, whose two directions can be cut, slowed down and broken off one by one.
//!
//! A cut direction takes nothing from its sender any more, and what it took before stays where it
//! is: to both ends it looks like a network that loses everything and a TCP that keeps trying.
//! Bytes are never lost, reordered or changed within a connection, for TCP does not do so either.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use spillway_runtime::thread;

use crate::config::ClusterNode;
use crate::error::PerfError;

/// Bytes that a direction takes at once.
const CHUNK_BYTES: usize = 256 << 10;
/// How long the proxy tries to reach the node behind it.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

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

/// What the threads of one proxy share.
#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// From the dialling node to the one that listens, and back.
    paths: [Arc<Path>; 2],
    connections: Mutex<Vec<Connection>>,
    is_over: Arc<AtomicBool>,
}

impl Shared {
    fn break_off(&self) -> usize {
        let mut connections = self.connections.lock().expect("nobody panics with it");
        let broken = connections.iter().filter(|one| !one.is_over.load(Ordering::Acquire)).count();
        for connection in connections.drain(..) {
            connection.end();
        }
        self.wake();
        broken
    }

    /// Lets those who wait at a cut path look whether their connection is over.
    fn wake(&self) {
        for path in &self.paths {
            drop(path.lock());
            path.changed.notify_all();
        }
    }

    /// Takes a connection: one thread for each direction.
    fn take(&self, near: TcpStream) -> std::io::Result<()> {
        let far = TcpStream::connect_timeout(&self.target, CONNECT_TIMEOUT)?;
        for end in [&near, &far] {
            end.set_nodelay(true)?;
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let directions =
            [(near.try_clone()?, far.try_clone()?), (far.try_clone()?, near.try_clone()?)];
        let mut connections = self.connections.lock().expect("nobody panics with it");
        connections.retain(|one| !one.is_over.load(Ordering::Acquire));
        connections.push(Connection { ends: [near, far], is_over: is_over.clone() });
        drop(connections);
        for ((from, to), path) in directions.into_iter().zip(&self.paths) {
            let (path, is_over, paths) = (path.clone(), is_over.clone(), self.paths.clone());
            let carry = move || {
                carry(&from, &to, &path, &is_over);
                is_over.store(true, Ordering::Release);
                for end in [&from, &to] {
                    drop(end.shutdown(Shutdown::Both));
                }
                // The other direction may wait at a cut.
                for path in &paths {
                    drop(path.lock());
                    path.changed.notify_all();
                }
            };
            // Runs until the connection ends, which closing the proxy sees to.
            drop(thread::spawn("proxy path", None, carry).map_err(std::io::Error::other)?);
        }
        Ok(())
    }
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

/// The proxy in front of one node for one other.
#[derive(Debug)]
struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn new(target: SocketAddr, paths: [Arc<Path>; 2]) -> Result<Self, PerfError> {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let listener = TcpListener::bind(any).map_err(PerfError::system("a port for a proxy"))?;
        let address = listener.local_addr().map_err(PerfError::system("the port of a proxy"))?;
        let shared = Arc::new(Shared {
            target,
            paths,
            connections: Mutex::default(),
            is_over: Arc::default(),
        });
        let taker = shared.clone();
        let accept = move || {
            for near in listener.incoming() {
                if taker.is_over.load(Ordering::Acquire) {
                    return;
                }
                if let Ok(near) = near {
                    // Whoever dials a node that is down sees its connection end.
                    drop(taker.take(near));
                }
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
        self.shared.break_off();
    }
}

/// Proxies between all pairs of nodes. Nodes are counted from 0 here.
#[derive(Debug)]
pub struct Mesh {
    nodes: usize,
    /// By sender and receiver of bytes.
    paths: Vec<Arc<Path>>,
    /// By the node that dials and the one that listens.
    proxies: Vec<Option<Proxy>>,
}

impl Mesh {
    /// Proxies between these nodes, all clear.
    pub fn new(nodes: &[ClusterNode]) -> Result<Self, PerfError> {
        let count = nodes.len();
        let paths: Vec<Arc<Path>> = (0..count * count).map(|_| Arc::default()).collect();
        let mut proxies = Vec::new();
        for from in 0..count {
            for (to, node) in nodes.iter().enumerate() {
                let both = [paths[from * count + to].clone(), paths[to * count + from].clone()];
                let proxy = if from == to { None } else { Some(Proxy::new(node.peer, both)?) };
                proxies.push(proxy);
            }
        }
        Ok(Self { nodes: count, paths, proxies })
    }

    /// The nodes as node `from` is to be told of them: it reaches all others through proxies.
    pub fn seen_from(&self, from: usize, nodes: &[ClusterNode]) -> Vec<ClusterNode> {
        assert_eq!(nodes.len(), self.nodes, "the nodes it was made for");
        let see = |(to, node): (usize, &ClusterNode)| {
            let proxy = &self.proxies[from * self.nodes + to];
            ClusterNode { peer: proxy.as_ref().map_or(node.peer, |proxy| proxy.address), ..*node }
        };
        nodes.iter().enumerate().map(see).collect()
    }

    /// From now on bytes from one node to another meet this weather, whoever dialled.
    pub fn set(&self, from: usize, to: usize, weather: Weather) {
        assert!(from != to && from < self.nodes && to < self.nodes, "two of the nodes");
        self.paths[from * self.nodes + to].set(weather);
    }

    /// Cuts one direction.
    pub fn cut(&self, from: usize, to: usize) {
        self.set(from, to, Weather { is_cut: true, ..Weather::default() });
    }

    /// Breaks off all connections between two nodes; they may dial again at once. Returns how
    /// many there were.
    pub fn break_off(&self, one: usize, other: usize) -> usize {
        let proxies = [one * self.nodes + other, other * self.nodes + one];
        let found = proxies.into_iter().filter_map(|at| self.proxies[at].as_ref());
        found.map(|proxy| proxy.shared.break_off()).sum()
    }

    /// All clear.
    pub fn heal(&self) {
        for path in &self.paths {
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
        let seen = mesh.seen_from(0, &nodes);
        assert_eq!(seen[0], nodes[0]);
        assert_ne!(seen[1].peer, peer);
        (mesh, listener, seen[1].peer)
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
        let mut near = TcpStream::connect(proxy).expect("the proxy accepts");
        let (mut far, _) = listener.accept().expect("it dials");
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
            let mut near = TcpStream::connect(proxy).expect("the proxy accepts");
            let (mut far, _) = listener.accept().expect("it dials");
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
        let near = TcpStream::connect(proxy).expect("the proxy accepts");
        let (mut far, _) = listener.accept().expect("it dials");
        mesh.heal();
        mesh.cut(1, 0);
        drop(near);
        assert!(!matches!(far.read(&mut [0]), Ok(1..)), "closed");
    }

    #[test]
    fn a_node_that_is_down_ends_its_callers_connection() {
        let (_mesh, listener, proxy) = pair();
        drop(listener);
        let mut near = TcpStream::connect(proxy).expect("the proxy accepts");
        assert!(!matches!(near.read(&mut [0]), Ok(1..)), "closed");
    }
}
