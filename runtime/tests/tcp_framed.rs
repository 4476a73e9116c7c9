//! Framed connections and slots on the network ring, over real loopback sockets.

use std::io::{Read, Write};
use std::net::{self, SocketAddr, TcpStream};

use spillway_runtime::Errno;
use spillway_runtime::slot_ring::{Slot, SlotMut, SlotRing};
use spillway_runtime::tcp::{
    CloseReason, ConnectionId, HeaderBytes, ListenerId, TcpEvent, TcpRing, TcpRingOptions, Wait,
};
use spillway_runtime::thread;

const OPTIONS: TcpRingOptions = TcpRingOptions {
    entries: 64,
    receive_buffers: 64,
    receive_buffer_bytes: 4096,
    connections_max: 64,
};
const HEADER: usize = 128;
const PAGE: usize = 4096;
/// More than the buffers of a loopback connection hold.
const LARGE: usize = 16 << 20;

/// A ring with a framed and an ordinary listener, memory for bodies, and its events one by one.
struct Server {
    ring: TcpRing,
    slots: SlotRing,
    framed: SocketAddr,
    framed_listener: ListenerId,
    ordinary: SocketAddr,
    events: Vec<TcpEvent>,
}

impl Server {
    fn new(slot_pages: usize) -> Server {
        let mut ring = TcpRing::new(OPTIONS).expect("ring");
        let slots = SlotRing::new("bodies", slot_pages * PAGE).expect("map");
        let any = "127.0.0.1:0".parse().expect("valid");
        let (framed_listener, framed) = ring.listen_framed(any, 64, HEADER).expect("listen");
        let (_, ordinary) = ring.listen(any, 64).expect("listen");
        Server { ring, slots, framed, framed_listener, ordinary, events: Vec::new() }
    }

    fn next(&mut self) -> TcpEvent {
        while self.events.is_empty() {
            self.ring.turn(Wait::Forever, &mut self.events).expect("turn");
        }
        self.events.remove(0)
    }

    fn quiet_turn(&mut self) {
        self.ring.turn(Wait::Not, &mut self.events).expect("turn");
        assert!(self.events.is_empty(), "{:?}", self.events);
    }

    fn accept_at(&mut self, address: SocketAddr) -> (ConnectionId, TcpStream) {
        let client = TcpStream::connect(address).expect("connect");
        match self.next() {
            TcpEvent::Accepted { connection, listener, .. } => {
                assert_eq!(listener == self.framed_listener, address == self.framed);
                (connection, client)
            }
            other => panic!("{other:?}"),
        }
    }

    fn accept(&mut self) -> (ConnectionId, TcpStream) {
        self.accept_at(self.framed)
    }

    fn header(&mut self, from: ConnectionId) -> HeaderBytes {
        match self.next() {
            TcpEvent::Header { connection, header } if connection == from => header,
            other => panic!("{other:?}"),
        }
    }

    fn body(&mut self, from: ConnectionId) -> SlotMut {
        match self.next() {
            TcpEvent::Body { connection, slot } if connection == from => slot,
            other => panic!("{other:?}"),
        }
    }

    fn closed(&mut self) -> (ConnectionId, CloseReason) {
        match self.next() {
            TcpEvent::Closed { connection, reason } => (connection, reason),
            other => panic!("{other:?}"),
        }
    }

    /// Whether nobody holds any of the slot memory.
    fn is_slot_memory_free(&mut self) -> bool {
        self.slots.reclaim();
        self.slots.bytes_used() == 0
    }
}

fn pattern(seed: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|position| ((seed * 7 + position) * 31 % 251) as u8).collect()
}

#[test]
fn body_lands_in_the_slot_that_was_given() {
    let mut server = Server::new(64);
    let (connection, mut client) = server.accept();
    for round in 0..40 {
        let (header, body) = (pattern(round, HEADER), pattern(round, 1 + round * 997));
        client.write_all(&header).expect("write");
        client.write_all(&body).expect("write");
        assert_eq!(server.header(connection)[..], header);
        // As the log does: a block in front that the network does not touch.
        let slot = server.slots.reserve(PAGE + body.len()).expect("room");
        let address = slot.address();
        let (mut block, rest) = slot.split_at(PAGE);
        block.fill(9);
        server.ring.receive_body(connection, rest);
        let rest = server.body(connection);
        assert_eq!((rest.address(), &rest[..]), (address + PAGE, &body[..]));
        assert!(block.iter().all(|byte| *byte == 9));
        let whole = SlotMut::joined(block, rest).expect("still one reservation");
        assert_eq!(whole.address(), address);
        // Nothing is received before the owner says what.
        server.quiet_turn();
        server.ring.receive_header(connection);
    }
    drop(client);
    assert_eq!(server.closed(), (connection, CloseReason::Peer));
    assert!(server.is_slot_memory_free());
}

#[test]
fn nothing_is_received_that_nobody_asked_for() {
    let mut server = Server::new(64);
    let (connection, mut client) = server.accept();
    for number in 0..3 {
        client.write_all(&[number; HEADER]).expect("write");
    }
    for number in 0..3 {
        assert_eq!(server.header(connection)[..], [number; HEADER]);
        server.quiet_turn();
        server.ring.receive_header(connection);
    }
    server.quiet_turn();
    // A header in two parts, and a body in three: told once, when whole.
    client.write_all(&[7; HEADER - 1]).expect("write");
    server.quiet_turn();
    client.write_all(&[7]).expect("write");
    assert_eq!(server.header(connection)[..], [7; HEADER]);
    let body = pattern(1, 3 * PAGE);
    let slot = server.slots.reserve(body.len()).expect("room");
    let address = slot.address();
    server.ring.receive_body(connection, slot);
    for part in body.chunks(PAGE + 1) {
        server.quiet_turn();
        client.write_all(part).expect("write");
    }
    let slot = server.body(connection);
    assert_eq!((slot.address(), &slot[..]), (address, &body[..]));
}

#[test]
fn peer_that_dies_in_a_body_is_told_once_and_frees_the_slot() {
    let mut server = Server::new(16);
    for is_reset in [false, true] {
        let (connection, mut client) = server.accept();
        client.write_all(&[1; HEADER]).expect("write");
        client.write_all(&[2; 5 * PAGE]).expect("write");
        server.header(connection);
        if is_reset {
            // Bytes that the client leaves unread make its close a reset.
            assert!(server.ring.send_slots(connection, b"unread", None));
        }
        let slot = server.slots.reserve(16 * PAGE).expect("room");
        server.ring.receive_body(connection, slot);
        server.quiet_turn();
        if is_reset {
            client.peek(&mut [0]).expect("it is there");
        }
        assert!(!server.is_slot_memory_free(), "the kernel may write to it");
        drop(client);
        let (closed, reason) = server.closed();
        assert_eq!(closed, connection);
        assert!(matches!(reason, CloseReason::Peer | CloseReason::Reset), "{reason:?}");
        assert!(server.is_slot_memory_free());
        server.quiet_turn();
        // An id that is gone reaches nobody.
        server.ring.receive_header(connection);
        server.ring.receive_body(connection, SlotMut::heap(1));
        server.ring.set_framed(connection, HEADER);
        server.ring.set_silence_max(connection, 1).expect("nothing is done");
        assert!(!server.ring.send_slots(connection, b"x", None));
    }
}

#[test]
fn closing_in_a_body_keeps_the_slot_until_closed_is_told() {
    let mut server = Server::new(16);
    let (connection, mut client) = server.accept();
    client.write_all(&[1; HEADER + PAGE]).expect("write");
    server.header(connection);
    let slot = server.slots.reserve(16 * PAGE).expect("room");
    server.ring.receive_body(connection, slot);
    server.quiet_turn();
    server.ring.close(connection);
    assert!(!server.is_slot_memory_free(), "the kernel has not let go yet");
    // Too late: it is dropped, and the body in flight stays what it is.
    server.ring.receive_body(connection, SlotMut::heap(1));
    assert_eq!(server.closed(), (connection, CloseReason::Local));
    assert!(server.is_slot_memory_free());
    server.quiet_turn();
    assert_eq!(server.ring.connections(), 0);
}

#[test]
fn pause_in_a_body_loses_nothing() {
    let mut server = Server::new(16);
    let (connection, mut client) = server.accept();
    client.write_all(&[1; HEADER]).expect("write");
    server.header(connection);
    let body = pattern(3, 8 * PAGE);
    let slot = server.slots.reserve(body.len()).expect("room");
    server.ring.receive_body(connection, slot);
    for (number, part) in body.chunks(PAGE).enumerate() {
        server.ring.receive_pause(connection);
        if number % 2 == 0 {
            server.quiet_turn();
        }
        client.write_all(part).expect("write");
        if number % 3 == 0 {
            server.quiet_turn();
        }
        server.ring.receive_resume(connection);
        if number < 7 {
            server.quiet_turn();
        }
    }
    assert_eq!(server.body(connection)[..], body);
    // Paused before it is told what to receive: it waits.
    server.ring.receive_pause(connection);
    server.ring.receive_header(connection);
    client.write_all(&[4; HEADER]).expect("write");
    server.quiet_turn();
    server.quiet_turn();
    server.ring.receive_resume(connection);
    assert_eq!(server.header(connection)[..], [4; HEADER]);
}

#[test]
fn sent_slots_are_held_and_not_copied() {
    let mut server = Server::new(LARGE / PAGE);
    let (connection, mut client) = server.accept();
    let mut slot = server.slots.reserve(LARGE).expect("all of it");
    slot.copy_from_slice(&pattern(5, LARGE));
    let slot = slot.freeze();
    assert!(server.ring.send_slots(connection, b"header", Some(slot.clone())));
    assert_eq!(server.ring.outgoing_bytes(connection), 6 + LARGE);
    server.quiet_turn();
    let rest = server.ring.outgoing_bytes(connection);
    assert!(rest > 0, "it cannot all be sent yet");
    drop(slot);
    // A copy would let the memory go: the ring has nothing but the slot itself to send from.
    assert!(!server.is_slot_memory_free());
    let reader = move || {
        let mut got = vec![0; 6 + LARGE];
        client.read_exact(&mut got).expect("read");
        client.write_all(&[0; HEADER]).expect("write");
        (got, client)
    };
    let reader = thread::spawn("reader", None, reader).expect("spawn");
    server.header(connection);
    let (got, _client) = reader.join().expect("join");
    assert!(got[..6] == *b"header" && got[6..] == pattern(5, LARGE), "bytes differ");
    while server.ring.outgoing_bytes(connection) > 0 {
        server.ring.turn(Wait::Forever, &mut server.events).expect("turn");
    }
    assert!(server.is_slot_memory_free());
}

#[test]
fn slots_and_bytes_leave_in_order_on_any_connection() {
    let mut server = Server::new(16);
    for address in [server.framed, server.ordinary] {
        let (connection, mut client) = server.accept_at(address);
        let shared = Slot::from_vec(pattern(2, 3 * PAGE));
        let mut expected = Vec::new();
        for round in 0..50usize {
            let ring = &mut server.ring;
            ring.outgoing(connection).expect("open").push(round as u8);
            expected.push(round as u8);
            let part = shared.slice(round * 100..round * 200 + round % 3);
            expected.extend_from_slice(&[b'h'; 5]);
            expected.extend_from_slice(&part);
            assert!(ring.send_slots(connection, &[b'h'; 5], Some(part)));
            if round % 7 == 0 {
                assert!(ring.send_slots(connection, &[], Some(shared.clone())));
                expected.extend_from_slice(&shared);
                server.quiet_turn();
            }
        }
        server.ring.close_after_send(connection);
        assert!(!server.ring.send_slots(connection, b"late", None));
        let reader = move || {
            let mut got = Vec::new();
            client.read_to_end(&mut got).expect("read");
            got
        };
        let reader = thread::spawn("reader", None, reader).expect("spawn");
        assert_eq!(server.closed(), (connection, CloseReason::Local));
        assert!(reader.join().expect("join") == expected, "bytes differ");
    }
}

#[test]
fn closing_with_slots_in_flight_frees_them() {
    let mut server = Server::new(LARGE / PAGE);
    for is_reset in [false, true] {
        let (connection, client) = server.accept();
        let slot = server.slots.reserve(LARGE).expect("room").freeze();
        for part in 0..16 {
            let bytes = LARGE / 16;
            let body = slot.slice(part * bytes..(part + 1) * bytes);
            assert!(server.ring.send_slots(connection, &[1; HEADER], Some(body)));
        }
        drop(slot);
        server.quiet_turn();
        assert!(server.ring.outgoing_bytes(connection) > 0 && !server.is_slot_memory_free());
        if is_reset {
            drop(client);
        } else {
            server.ring.close(connection);
        }
        let (closed, reason) = server.closed();
        assert_eq!((closed, reason == CloseReason::Local), (connection, !is_reset));
        assert!(server.is_slot_memory_free());
        assert_eq!(server.ring.outgoing_bytes(connection), 0);
        server.quiet_turn();
    }
}

/// The body that belongs to message `number`: every fifth has none.
fn body_bytes(number: usize) -> usize {
    if number.is_multiple_of(5) { 0 } else { number * 2_657 % 70_000 + 1 }
}

const MESSAGES: usize = 600;

/// Queues all messages at once over one connection, and echoes bytes over an ordinary one.
fn run_sender(framed: SocketAddr, ordinary: SocketAddr) {
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    let connection = ring.connect_framed(framed, HEADER).expect("connect");
    let echo = ring.connect(ordinary).expect("connect");
    for number in 0..MESSAGES {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let body = body_bytes(number);
        let slot = (body > 0).then(|| Slot::from_vec(pattern(number, body)));
        assert!(ring.send_slots(connection, &header, slot));
    }
    let (mut events, mut answers) = (Vec::new(), 0);
    while answers < 2 {
        ring.turn(Wait::Forever, &mut events).expect("turn");
        for event in events.drain(..) {
            match event {
                TcpEvent::Connected { .. } => {}
                TcpEvent::Received { connection, buffer } => {
                    assert_eq!(connection, echo);
                    let bytes = ring.bytes(&buffer).to_vec();
                    ring.release(buffer);
                    ring.outgoing(echo).expect("open").extend_from_slice(&bytes);
                }
                TcpEvent::Header { connection: from, header } => {
                    assert_eq!((from, &header[..]), (connection, &[b'a'; HEADER][..]));
                    ring.receive_body(connection, SlotMut::heap(1_000));
                    answers += 1;
                }
                TcpEvent::Body { connection: from, slot } => {
                    assert_eq!((from, &slot[..]), (connection, &[b'b'; 1_000][..]));
                    answers += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    // All was received, so all was sent; the last send's end may be told later.
    while ring.outgoing_bytes(connection) > 0 {
        ring.turn(Wait::Forever, &mut events).expect("turn");
    }
}

#[test]
fn long_backlog_arrives_in_order_beside_ordinary_connections() {
    let mut server = Server::new(64);
    let (framed, ordinary) = (server.framed, server.ordinary);
    let sender = move || run_sender(framed, ordinary);
    let sender = thread::spawn("sender", None, sender).expect("spawn");
    let (mut number, mut echoed, mut echo, mut closed) = (0, 0, None, 0);
    while closed < 2 {
        match server.next() {
            TcpEvent::Accepted { listener, connection, .. } => {
                if listener != server.framed_listener {
                    server.ring.outgoing(connection).expect("open").extend_from_slice(b"ping");
                    echo = Some(connection);
                }
            }
            TcpEvent::Header { connection, header } => {
                assert_eq!(header[..8], (number as u64).to_le_bytes());
                match body_bytes(number) {
                    0 => number += 1,
                    bytes => {
                        let slot = server.slots.reserve(bytes).expect("room");
                        server.ring.receive_body(connection, slot);
                        continue;
                    }
                }
                server.ring.receive_header(connection);
            }
            TcpEvent::Body { connection, slot } => {
                assert!(slot[..] == pattern(number, body_bytes(number)), "message {number}");
                number += 1;
                if number == MESSAGES {
                    let body = Slot::from_vec(vec![b'b'; 1_000]);
                    assert!(server.ring.send_slots(connection, &[b'a'; HEADER], Some(body)));
                }
                server.ring.receive_header(connection);
            }
            TcpEvent::Received { connection, buffer } => {
                assert_eq!(Some(connection), echo);
                let bytes = server.ring.bytes(&buffer).to_vec();
                server.ring.release(buffer);
                // None at the end, when the other side has closed already.
                if let Some(outgoing) = server.ring.outgoing(connection) {
                    outgoing.extend_from_slice(&bytes);
                }
                echoed += bytes.len();
            }
            TcpEvent::Closed { .. } => closed += 1,
            other => panic!("{other:?}"),
        }
    }
    sender.join().expect("sender");
    assert_eq!(number, MESSAGES);
    assert!(echoed >= 4, "the ordinary connection went on");
    assert!(server.is_slot_memory_free());
}

#[test]
fn ordinary_listener_and_connect_can_be_framed_in_time() {
    let mut server = Server::new(16);
    let address = server.ordinary;
    let (accepted, mut client) = server.accept_at(address);
    client.write_all(&[1; 10 + PAGE]).expect("write");
    server.ring.set_framed(accepted, 10);
    assert_eq!(server.header(accepted)[..], [1; 10]);
    let listener = net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let connected = server.ring.connect(listener.local_addr().expect("bound")).expect("begin");
    let event = server.next();
    let (mut peer, _) = listener.accept().expect("accept");
    assert!(matches!(event, TcpEvent::Connected { connection } if connection == connected));
    server.ring.set_framed(connected, 256);
    server.ring.set_silence_max(connected, 2_000).expect("set");
    peer.write_all(&[2; 256]).expect("write");
    assert_eq!(server.header(connected)[..], [2; 256]);
}

#[test]
fn peer_that_takes_nothing_is_given_up() {
    let mut server = Server::new(LARGE / PAGE);
    let (connection, client) = server.accept();
    server.ring.set_silence_max(connection, 50).expect("set");
    let slot = server.slots.reserve(LARGE).expect("room").freeze();
    assert!(server.ring.send_slots(connection, &[0; HEADER], Some(slot)));
    // The kernel tells its reason once, perhaps to the part of the send that it had done.
    let timed_out = CloseReason::Failed(Errno(libc::ETIMEDOUT));
    let (closed, reason) = server.closed();
    assert_eq!(closed, connection);
    assert!([timed_out, CloseReason::Reset, CloseReason::Peer].contains(&reason), "{reason:?}");
    assert!(server.is_slot_memory_free());
    drop(client);
}

#[test]
fn dropping_a_busy_ring_lets_go_of_the_slots() {
    let mut server = Server::new(LARGE / PAGE + 16);
    let (connection, mut client) = server.accept();
    client.write_all(&[1; HEADER + PAGE]).expect("write");
    server.header(connection);
    let body = server.slots.reserve(16 * PAGE).expect("room");
    server.ring.receive_body(connection, body);
    let slot = server.slots.reserve(LARGE).expect("room").freeze();
    assert!(server.ring.send_slots(connection, &[0; HEADER], Some(slot)));
    server.quiet_turn();
    let Server { ring, mut slots, .. } = server;
    slots.reclaim();
    assert_eq!(slots.bytes_used(), LARGE + 16 * PAGE);
    drop(ring);
    slots.reclaim();
    assert_eq!(slots.bytes_used(), 0);
}

#[test]
#[should_panic(expected = "set it framed earlier")]
fn framing_a_connection_that_receives_already_is_refused() {
    let mut server = Server::new(1);
    let address = server.ordinary;
    let (connection, _client) = server.accept_at(address);
    server.quiet_turn();
    server.ring.set_framed(connection, HEADER);
}

#[test]
#[should_panic(expected = "has not ended")]
fn asking_twice_is_refused() {
    let mut server = Server::new(1);
    let (connection, mut client) = server.accept();
    client.write_all(&[0; HEADER]).expect("write");
    server.header(connection);
    server.ring.receive_header(connection);
    server.ring.receive_body(connection, SlotMut::heap(1));
}
