//! Links over loopback: several nodes, each with a ring of its own, turned by one thread. Time
//! passes by turns and as the tests say, so that nothing waits for a time-out or depends on load.

mod encrypted;
mod links;
mod refusals;
mod strangers;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use spillway_net::ids::{ClusterId, NodeId};
use spillway_net::peer::{
    ClusterKey, Handshake, Hello, LogFormat, MESSAGE_BYTES, Message, Refusal, Step,
};
use spillway_runtime::slot_ring::{Slot, SlotRing};
use spillway_runtime::tcp::{TcpEvent, TcpRing, TcpRingOptions, Wait};

use super::*;

const BLOCK: usize = 512;
const SLOTS_BYTES: usize = 4 << 20;
const SECOND: u64 = 1_000_000_000;
/// Longest wait of a turn, and by how much it moves the time.
const TURN_NANOS: u64 = 100_000;
/// Turns after which something that should happen did not.
const TURNS_MAX: usize = 40_000;

fn key(seed: u8) -> ClusterKey {
    let bytes: Vec<u8> = (0..32).map(|at| seed.wrapping_add(at)).collect();
    ClusterKey::new(&bytes).expect("32 bytes")
}

fn hello(node: u16, boot: u64) -> Hello {
    Hello {
        cluster: ClusterId(0xc1),
        limits: 5,
        format: LogFormat { block_bytes: 512, batch_bytes_max: 1 << 20, partitions: 4 },
        node: NodeId(node),
        boot,
        instance: u64::from(node) << 32 | boot,
        is_founded: false,
    }
}

/// Bytes of the body, and a number to know the message by.
fn header(body_bytes: u32, number: u32) -> Message {
    let mut header = [0xee; MESSAGE_BYTES];
    header[0..4].copy_from_slice(&body_bytes.to_le_bytes());
    header[4..8].copy_from_slice(&number.to_le_bytes());
    header
}

fn number_of(header: &Message) -> u32 {
    u32::from_le_bytes(header[4..8].try_into().expect("four bytes"))
}

fn body_bytes_of(header: &Message) -> Result<u32, String> {
    match u32::from_le_bytes(header[0..4].try_into().expect("four bytes")) {
        u32::MAX => Err("a bad header".to_owned()),
        bytes => Ok(bytes),
    }
}

fn body(bytes: usize, seed: u8) -> Slot {
    Slot::from_vec((0..bytes).map(|at| seed.wrapping_add(at as u8)).collect())
}

/// A node: ring, memory, links, and what they told.
struct Node {
    ring: TcpRing,
    slots: SlotRing,
    links: PeerLinks,
    address: SocketAddr,
    id: NodeId,
    now_nanos: u64,
    told: Vec<PeerEvent>,
    /// Events that the links gave back.
    foreign: Vec<TcpEvent>,
}

impl Node {
    fn new(hello: Hello, key: ClusterKey) -> Node {
        Node::at("127.0.0.1:0".parse().expect("an address"), hello, key)
    }

    fn at(address: SocketAddr, hello: Hello, key: ClusterKey) -> Node {
        Node::with(address, hello, key, None)
    }

    fn with(address: SocketAddr, hello: Hello, key: ClusterKey, tls: Option<PeerTls>) -> Node {
        let mut ring = TcpRing::new(TcpRingOptions {
            entries: 64,
            receive_buffers: 16,
            receive_buffer_bytes: 4096,
            connections_max: 64,
        })
        .expect("a ring");
        let (listener, address) = ring.listen(address, 32).expect("a listener");
        let options = PeerLinksOptions {
            hello,
            key,
            tls,
            listener: Some(listener),
            configured: vec![],
            body_bytes_of: Box::new(body_bytes_of),
        };
        Node {
            ring,
            slots: SlotRing::new("test", SLOTS_BYTES).expect("memory"),
            links: PeerLinks::new(options, SECOND),
            address,
            id: hello.node,
            now_nanos: SECOND,
            told: Vec::new(),
            foreign: Vec::new(),
        }
    }

    fn turn(&mut self) {
        let mut events = Vec::new();
        self.ring.turn(Wait::For(TURN_NANOS), &mut events).expect("a turn");
        for event in events {
            let back = self.links.event(&mut self.ring, event);
            self.foreign.extend(back.filter(|event| !matches!(event, TcpEvent::Woken)));
        }
        self.now_nanos += TURN_NANOS;
        let slots = &mut self.slots;
        let mut reserve = |bytes: usize| slots.reserve(bytes);
        self.links.turn(&mut self.ring, &mut reserve, self.now_nanos, &mut self.told);
    }

    fn send(&mut self, to: u16, header: &Message, body: Option<Slot>) -> bool {
        self.links.send(&mut self.ring, NodeId(to), header, body)
    }

    /// As a configuration does.
    fn members_set(&mut self, members: &[(NodeId, String)]) {
        let members = LogMembers { known: members.to_vec(), ..LogMembers::default() };
        self.links.members_set(&mut self.ring, members);
    }

    /// As a log does.
    fn log_set(&mut self, members: &[(NodeId, String)], removed: &[u16]) {
        let removed = removed.iter().map(|node| NodeId(*node)).collect();
        let members = LogMembers { known: members.to_vec(), removed, is_founded: true };
        self.links.members_set(&mut self.ring, members);
    }

    fn is_connected(&self, node: u16) -> bool {
        self.links.is_connected(NodeId(node))
    }

    fn numbers(&self) -> Vec<u32> {
        let number = |event: &PeerEvent| match event {
            PeerEvent::Message { header, .. } => Some(number_of(header)),
            _ => None,
        };
        self.told.iter().filter_map(number).collect()
    }

    fn faults(&self) -> Vec<&Fault> {
        let mut faults = Vec::new();
        for event in &self.told {
            if let PeerEvent::Notice(notice) = event {
                faults.push(&notice.fault);
            }
        }
        faults
    }

    fn count(&self, is: impl Fn(&PeerEvent) -> bool) -> usize {
        self.told.iter().filter(|event| is(event)).count()
    }

    fn lost(&self) -> usize {
        self.count(|event| matches!(event, PeerEvent::Lost(_)))
    }

    fn connected(&self) -> usize {
        self.count(|event| matches!(event, PeerEvent::Connected(_)))
    }
}

/// Makes all nodes members of each other.
fn introduce(nodes: &mut [Node]) {
    let members: Vec<(NodeId, String)> =
        nodes.iter().map(|node| (node.id, node.address.to_string())).collect();
    for node in nodes {
        node.members_set(&members);
    }
}

#[track_caller]
fn until(nodes: &mut [Node], what: &str, is: impl Fn(&[Node]) -> bool) {
    for _ in 0..TURNS_MAX {
        if is(nodes) {
            return;
        }
        nodes.iter_mut().for_each(Node::turn);
    }
    let told: Vec<_> = nodes.iter().map(|node| (node.id, &node.told)).collect();
    panic!("never happened: {what}; told: {told:?}");
}

/// Lets time pass in steps that no node takes for a pause of its own.
fn pass(nodes: &mut [Node], nanos: u64) {
    const STEP: u64 = 400_000_000;
    for _ in 0..nanos.div_ceil(STEP) {
        for node in &mut *nodes {
            node.now_nanos += STEP;
            node.turn();
        }
        // What was sent in this step arrives in it.
        for _ in 0..3 {
            nodes.iter_mut().for_each(Node::turn);
        }
    }
}

fn pair() -> [Node; 2] {
    let mut nodes = [Node::new(hello(1, 1), key(1)), Node::new(hello(2, 1), key(1))];
    introduce(&mut nodes);
    until(&mut nodes, "two nodes connect", |nodes| {
        nodes[0].is_connected(2) && nodes[1].is_connected(1)
    });
    nodes
}

/// A peer that a test plays by hand.
struct Raw(TcpStream);

impl Raw {
    fn connect(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).expect("somebody listens");
        stream.set_nonblocking(true).expect("a socket");
        Raw(stream)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("it fits the socket's buffer");
    }

    /// Reads until `bytes` or the end, while the nodes turn.
    #[track_caller]
    fn read(&mut self, nodes: &mut [Node], bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        let mut filled = 0;
        for _ in 0..TURNS_MAX {
            match self.0.read(&mut out[filled..]) {
                Ok(0) => {
                    out.truncate(filled);
                    return out;
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    out.truncate(filled);
                    return out;
                }
                Err(error) => panic!("{error}"),
            }
            if filled == bytes {
                return out;
            }
            nodes.iter_mut().for_each(Node::turn);
        }
        panic!("{filled} of {bytes} bytes arrived and no end");
    }

    fn read_message(&mut self, nodes: &mut [Node]) -> Message {
        self.read(nodes, MESSAGE_BYTES).try_into().expect("a whole message")
    }

    /// Shakes hands as node 1 with node 2, which is `nodes[0]`.
    fn shaken(nodes: &mut [Node], own: Hello, key: ClusterKey) -> Raw {
        let mut raw = Raw::connect(nodes[0].address);
        let (mut handshake, first) = Handshake::initiator(own, nodes[0].id, key, &[3; 32]);
        raw.write(&first);
        let hello = raw.read_message(nodes);
        let Step::Reply(proof) = handshake.receive(&hello, &mut |_| Ok(())) else {
            panic!("a proof is due");
        };
        raw.write(&proof);
        let proof = raw.read_message(nodes);
        let step = handshake.receive(&proof, &mut |_| Ok(()));
        assert!(matches!(step, Step::Established { .. }), "{step:?}");
        raw
    }

    /// What a node answers with to a refused hello.
    fn refusal(nodes: &mut [Node], first: &Message) -> Refusal {
        let mut raw = Raw::connect(nodes[0].address);
        raw.write(first);
        let reply = raw.read_message(nodes);
        assert_eq!(raw.read(nodes, 1), [], "and the end");
        let own = Hello { node: NodeId(1), ..hello(1, 1) };
        let (mut handshake, _) = Handshake::initiator(own, NodeId(2), key(1), &[3; 32]);
        match handshake.receive(&reply, &mut |_| Ok(())) {
            Step::RefusedByPeer(refusal) => refusal,
            other => panic!("a refusal is due, not {other:?}"),
        }
    }
}
