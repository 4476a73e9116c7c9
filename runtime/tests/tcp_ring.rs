//! The network ring over real loopback sockets.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{self, SocketAddr, TcpStream};

use spillway_runtime::Errno;
use spillway_runtime::buffer::{BufferIndex, BufferPool};
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::disk::{DiskRing, DiskRingOptions, Durability, WriteRequest};
use spillway_runtime::shutdown::Shutdown;
use spillway_runtime::tcp::{
    CloseReason, ConnectionId, ListenerId, TcpEvent, TcpRing, TcpRingOptions, Wait,
};
use spillway_runtime::thread;

const OPTIONS: TcpRingOptions = TcpRingOptions {
    entries: 64,
    receive_buffers: 64,
    receive_buffer_bytes: 4096,
    connections_max: 512,
};

/// A ring that listens, and its events one by one.
struct Server {
    ring: TcpRing,
    address: SocketAddr,
    listener: ListenerId,
    events: Vec<TcpEvent>,
}

impl Server {
    fn new(options: TcpRingOptions) -> Server {
        let mut ring = TcpRing::new(options).expect("ring");
        let any_port = "127.0.0.1:0".parse().expect("valid");
        let (listener, address) = ring.listen(any_port, 1024).expect("listen");
        Server { ring, address, listener, events: Vec::new() }
    }

    /// The next event; sleeps for it.
    fn next(&mut self) -> TcpEvent {
        while self.events.is_empty() {
            self.ring.turn(Wait::Forever, &mut self.events).expect("turn");
        }
        self.events.remove(0)
    }

    /// A connected pair: the ring's end and a blocking client.
    fn accept(&mut self) -> (ConnectionId, TcpStream) {
        // The ring must have armed its accept, or the client's connect is only in the backlog;
        // both are fine.
        let client = TcpStream::connect(self.address).expect("connect");
        match self.next() {
            TcpEvent::Accepted { connection, peer, listener } => {
                assert_eq!(peer, client.local_addr().expect("address"));
                assert_eq!(listener, self.listener);
                (connection, client)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Receives `bytes` bytes on one connection, releasing every buffer.
    fn receive(&mut self, from: ConnectionId, bytes: usize) -> Vec<u8> {
        let mut received = Vec::new();
        while received.len() < bytes {
            match self.next() {
                TcpEvent::Received { connection, buffer } => {
                    assert_eq!(connection, from);
                    received.extend_from_slice(self.ring.bytes(&buffer));
                    self.ring.release(buffer);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received.len(), bytes);
        received
    }

    fn closed(&mut self) -> (ConnectionId, CloseReason) {
        match self.next() {
            TcpEvent::Closed { connection, reason } => (connection, reason),
            other => panic!("{other:?}"),
        }
    }

    /// Does what is queued, without waiting, and expects nothing to happen.
    fn quiet_turn(&mut self) {
        self.ring.turn(Wait::Not, &mut self.events).expect("turn");
        assert!(self.events.is_empty(), "{:?}", self.events);
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|position| (position * 31 % 251) as u8).collect()
}

#[test]
fn echo_over_one_connection() {
    let mut server = Server::new(OPTIONS);
    let (connection, mut client) = server.accept();
    for round in 0..100u8 {
        client.write_all(&[round; 64]).expect("write");
        assert_eq!(server.receive(connection, 64), [round; 64]);
        server.ring.outgoing(connection).expect("open").extend_from_slice(&[round; 16]);
        assert_eq!(server.ring.outgoing_bytes(connection), 16);
        server.quiet_turn();
        let mut answer = [0; 16];
        client.read_exact(&mut answer).expect("read");
        assert_eq!(answer, [round; 16]);
    }
    drop(client);
    // The completion of the last send may come with the close; it is no event.
    assert_eq!(server.closed(), (connection, CloseReason::Peer));
    assert!(server.ring.outgoing(connection).is_none());
    assert_eq!(server.ring.connections(), 0);
}

/// Client side of the echo test: many connections, each with a window of requests in flight.
fn run_echo_client(address: SocketAddr, connections: usize, rounds: u32) {
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    let mut left: HashMap<ConnectionId, (u32, Vec<u8>)> = HashMap::new();
    for _ in 0..connections {
        left.insert(ring.connect(address).expect("connect"), (0, Vec::new()));
    }
    let mut events = Vec::new();
    while !left.is_empty() {
        ring.turn(Wait::Forever, &mut events).expect("turn");
        for event in events.drain(..) {
            match event {
                TcpEvent::Connected { connection } => {
                    let first = 0u32.to_le_bytes();
                    ring.outgoing(connection).expect("open").extend_from_slice(&first);
                }
                TcpEvent::Received { connection, buffer } => {
                    let (round, partial) = left.get_mut(&connection).expect("known");
                    partial.extend_from_slice(ring.bytes(&buffer));
                    ring.release(buffer);
                    while partial.len() >= 4 {
                        assert_eq!(partial[..4], round.to_le_bytes());
                        partial.drain(..4);
                        *round += 1;
                        if *round == rounds {
                            ring.close(connection);
                            break;
                        }
                        let next = round.to_le_bytes();
                        ring.outgoing(connection).expect("open").extend_from_slice(&next);
                    }
                }
                TcpEvent::Closed { connection, reason } => {
                    assert_eq!(reason, CloseReason::Local);
                    let (round, _) = left.remove(&connection).expect("told once");
                    assert_eq!(round, rounds);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn echo_over_many_connections_of_two_rings() {
    const CONNECTIONS: usize = 200;
    let mut server = Server::new(OPTIONS);
    let address = server.address;
    let client = move || run_echo_client(address, CONNECTIONS, 50);
    let client = thread::spawn("client", None, client).expect("spawn");
    let (mut accepted, mut closed) = (HashSet::new(), HashSet::new());
    while closed.len() < CONNECTIONS {
        match server.next() {
            TcpEvent::Accepted { connection, .. } => assert!(accepted.insert(connection)),
            TcpEvent::Received { connection, buffer } => {
                let bytes = server.ring.bytes(&buffer).to_vec();
                server.ring.release(buffer);
                if let Some(outgoing) = server.ring.outgoing(connection) {
                    outgoing.extend_from_slice(&bytes);
                }
            }
            TcpEvent::Closed { connection, .. } => {
                assert!(accepted.contains(&connection) && closed.insert(connection));
            }
            other => panic!("{other:?}"),
        }
    }
    client.join().expect("client");
    assert_eq!(server.ring.connections(), 0);
}

#[test]
fn slow_reader_gets_everything_in_order() {
    let mut server = Server::new(OPTIONS);
    let (connection, mut client) = server.accept();
    // Far more than the socket buffers hold, queued in many pieces while a send is in flight.
    let all = pattern(24 * 1024 * 1024);
    for piece in all.chunks(1024 * 1024) {
        server.ring.outgoing(connection).expect("open").extend_from_slice(piece);
        server.quiet_turn();
    }
    assert!(server.ring.outgoing_bytes(connection) > 1024 * 1024, "it cannot all be sent yet");
    let reader = move || {
        let mut got = vec![0; 24 * 1024 * 1024];
        client.read_exact(&mut got).expect("read");
        client.write_all(b"done").expect("write");
        (got, client)
    };
    let reader = thread::spawn("reader", None, reader).expect("spawn");
    assert_eq!(server.receive(connection, 4), b"done");
    let (got, _client) = reader.join().expect("join");
    assert!(got == all, "bytes differ");
    while server.ring.outgoing_bytes(connection) > 0 {
        server.ring.turn(Wait::Forever, &mut server.events).expect("turn");
    }
    let kept = server.ring.outgoing(connection).expect("open").capacity();
    assert!(kept <= 1024 * 1024, "{kept} bytes kept after a burst");
}

#[test]
fn close_during_send_is_told_once() {
    let mut server = Server::new(OPTIONS);
    let (connection, client) = server.accept();
    let burst = pattern(16 * 1024 * 1024);
    server.ring.outgoing(connection).expect("open").extend_from_slice(&burst);
    server.quiet_turn();
    assert!(server.ring.outgoing_bytes(connection) > 0, "the send is in flight");
    server.ring.close(connection);
    server.ring.close(connection);
    assert!(server.ring.outgoing(connection).is_none());
    assert_eq!(server.closed(), (connection, CloseReason::Local));
    server.ring.close(connection);
    // The slot is used again, under another generation.
    let (next, _other) = server.accept();
    assert_eq!(next.index, connection.index);
    assert_ne!(next.generation, connection.generation);
    server.ring.close(connection);
    assert!(server.ring.outgoing(next).is_some(), "an old id must not reach the new connection");
    drop(client);
}

#[test]
fn peer_that_resets_during_send_is_told_once() {
    let mut server = Server::new(OPTIONS);
    let (connection, client) = server.accept();
    let burst = pattern(16 * 1024 * 1024);
    server.ring.outgoing(connection).expect("open").extend_from_slice(&burst);
    server.quiet_turn();
    // Unread bytes in the client's socket make its close a reset.
    drop(client);
    let (closed, reason) = server.closed();
    assert_eq!(closed, connection);
    assert!(matches!(reason, CloseReason::Reset | CloseReason::Peer), "{reason:?}");
    assert_eq!(server.ring.connections(), 0);
    server.quiet_turn();
}

#[test]
fn close_after_send_sends_all() {
    let mut server = Server::new(OPTIONS);
    let (connection, mut client) = server.accept();
    let all = pattern(8 * 1024 * 1024);
    server.ring.outgoing(connection).expect("open").extend_from_slice(&all);
    server.ring.close_after_send(connection);
    server.ring.close_after_send(connection);
    assert!(server.ring.outgoing(connection).is_none());
    let reader = move || {
        let mut got = Vec::new();
        client.read_to_end(&mut got).expect("read");
        got
    };
    let reader = thread::spawn("reader", None, reader).expect("spawn");
    assert_eq!(server.closed(), (connection, CloseReason::Local));
    assert!(reader.join().expect("join") == all, "bytes differ");
}

#[test]
fn close_after_send_without_bytes_closes() {
    let mut server = Server::new(OPTIONS);
    let (connection, mut client) = server.accept();
    server.ring.close_after_send(connection);
    assert_eq!(server.closed(), (connection, CloseReason::Local));
    assert_eq!(client.read(&mut [0; 8]).expect("end"), 0);
}

#[test]
fn paused_receive_holds_the_sender_up() {
    let mut server = Server::new(OPTIONS);
    let (connection, mut client) = server.accept();
    server.ring.receive_pause(connection);
    server.quiet_turn();
    // A second connection proves that turns go on and that the first stays silent.
    let (other, mut other_client) = server.accept();
    client.write_all(b"held").expect("write");
    other_client.write_all(b"free").expect("write");
    assert_eq!(server.receive(other, 4), b"free");
    server.quiet_turn();
    server.ring.receive_resume(connection);
    assert_eq!(server.receive(connection, 4), b"held");
    // Pause and resume in one turn, while the receive is armed: the cancellation crosses.
    server.ring.receive_pause(connection);
    server.ring.receive_resume(connection);
    client.write_all(b"more").expect("write");
    assert_eq!(server.receive(connection, 4), b"more");
}

#[test]
fn starved_receives_resume_when_buffers_come_back() {
    let options = TcpRingOptions { receive_buffers: 2, receive_buffer_bytes: 512, ..OPTIONS };
    let mut server = Server::new(options);
    let (connection, client) = server.accept();
    let all = pattern(1024 * 1024);
    let expected = all.clone();
    let writer = move || {
        let mut client = client;
        client.write_all(&all).expect("write");
        client
    };
    let writer = thread::spawn("writer", None, writer).expect("spawn");
    // Hold both buffers until the ring has none.
    let mut held = Vec::new();
    while held.len() < 2 {
        match server.next() {
            TcpEvent::Received { buffer, .. } => held.push(buffer),
            other => panic!("{other:?}"),
        }
    }
    while server.ring.statistics().receives_starved == 0 {
        server.ring.turn(Wait::Forever, &mut server.events).expect("turn");
    }
    assert!(server.events.is_empty(), "there was no buffer to receive into");
    let mut got = Vec::new();
    for buffer in held {
        got.extend_from_slice(server.ring.bytes(&buffer));
        server.ring.release(buffer);
    }
    let rest = expected.len() - got.len();
    got.extend(server.receive(connection, rest));
    assert!(got == expected, "bytes differ");
    drop(writer.join().expect("join"));
}

#[test]
fn connections_beyond_the_limit_are_closed_at_once() {
    let mut server = Server::new(TcpRingOptions { connections_max: 2, ..OPTIONS });
    let (first, _first_client) = server.accept();
    let (_second, _second_client) = server.accept();
    let mut third = TcpStream::connect(server.address).expect("connect");
    while server.ring.statistics().connections_refused == 0 {
        server.ring.turn(Wait::Forever, &mut server.events).expect("turn");
    }
    assert!(server.events.is_empty());
    assert_eq!(third.read(&mut [0; 8]).expect("end"), 0);
    let error = server.ring.connect(server.address).expect_err("full");
    assert!(error.to_string().contains("connections_max"), "{error}");
    // Room again after a close.
    server.ring.close(first);
    assert_eq!(server.closed(), (first, CloseReason::Local));
    server.accept();
}

#[test]
fn half_closed_peer_is_closed() {
    let mut server = Server::new(OPTIONS);
    let (connection, mut client) = server.accept();
    client.write_all(b"bye").expect("write");
    client.shutdown(net::Shutdown::Write).expect("shutdown");
    assert_eq!(server.receive(connection, 3), b"bye");
    assert_eq!(server.closed(), (connection, CloseReason::Peer));
}

#[test]
fn refused_connect_is_told() {
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    // A port that was just free: bound and let go.
    let free = {
        let mut other = TcpRing::new(OPTIONS).expect("ring");
        let (_, address) = other.listen("127.0.0.1:0".parse().expect("valid"), 1).expect("listen");
        address
    };
    let connection = ring.connect(free).expect("begins");
    ring.outgoing(connection).expect("queue early").extend_from_slice(b"lost");
    let mut events = Vec::new();
    while events.is_empty() {
        ring.turn(Wait::Forever, &mut events).expect("turn");
    }
    let [TcpEvent::Closed { connection: closed, reason }] = events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(closed, connection);
    assert_eq!(reason, CloseReason::ConnectFailed(Errno(libc::ECONNREFUSED)));
}

#[test]
fn connect_can_be_closed_before_it_stands() {
    let mut server = Server::new(OPTIONS);
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    let connection = ring.connect(server.address).expect("begins");
    ring.close(connection);
    let mut events = Vec::new();
    while events.is_empty() {
        ring.turn(Wait::Forever, &mut events).expect("turn");
    }
    assert!(
        matches!(events[..], [TcpEvent::Closed { connection: closed, reason: CloseReason::Local }]
            if closed == connection),
        "{events:?}"
    );
    ring.turn(Wait::Not, &mut events).expect("turn");
    assert_eq!((events.len(), ring.connections()), (1, 0));
    // The server may or may not have seen it; either way it goes on.
    server.ring.turn(Wait::Not, &mut server.events).expect("turn");
}

#[test]
fn bytes_queued_before_connected_are_sent() {
    let mut server = Server::new(OPTIONS);
    let address = server.address;
    let client = move || {
        let mut ring = TcpRing::new(OPTIONS).expect("ring");
        let connection = ring.connect(address).expect("begins");
        ring.outgoing(connection).expect("queue").extend_from_slice(b"early");
        ring.close_after_send(connection);
        let mut events = Vec::new();
        while events.len() < 2 {
            ring.turn(Wait::Forever, &mut events).expect("turn");
        }
        assert!(
            matches!(
                events[..],
                [TcpEvent::Connected { .. }, TcpEvent::Closed { reason: CloseReason::Local, .. }]
            ),
            "{events:?}"
        );
    };
    let client = thread::spawn("client", None, client).expect("spawn");
    let TcpEvent::Accepted { connection, .. } = server.next() else { panic!("not accepted") };
    assert_eq!(server.receive(connection, 5), b"early");
    assert_eq!(server.closed(), (connection, CloseReason::Peer));
    client.join().expect("join");
}

#[test]
fn rings_wake_each_other_and_survive_a_gone_ring() {
    let mut here = TcpRing::new(OPTIONS).expect("ring");
    let here_fd = here.ring_fd();
    let (sender, receiver) = std::sync::mpsc::channel();
    let there = move || {
        let mut ring = TcpRing::new(OPTIONS).expect("ring");
        sender.send(ring.ring_fd()).expect("send");
        let mut events = Vec::new();
        for _ in 0..100 {
            while !events.iter().any(|event| matches!(event, TcpEvent::Woken)) {
                ring.turn(Wait::Forever, &mut events).expect("turn");
            }
            events.clear();
            ring.wake_ring(here_fd);
        }
        // The last wake leaves with a turn of its own.
        ring.turn(Wait::Not, &mut events).expect("turn");
    };
    let there = thread::spawn("there", None, there).expect("spawn");
    let there_fd = receiver.recv().expect("fd");
    let mut events = Vec::new();
    for _ in 0..100 {
        here.wake_ring(there_fd);
        events.clear();
        while !events.iter().any(|event| matches!(event, TcpEvent::Woken)) {
            here.turn(Wait::Forever, &mut events).expect("turn");
        }
        assert_eq!(events.len(), 1, "{events:?}");
    }
    there.join().expect("join");
    // No ring lives behind this descriptor any more: counted, and nothing worse.
    here.wake_ring(-1);
    while here.statistics().wakes_failed == 0 {
        here.turn(Wait::Forever, &mut events).expect("turn");
    }
}

#[test]
fn waker_wakes_from_any_thread() {
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    let mut events = Vec::new();
    for _ in 0..50 {
        let waker = ring.waker();
        let other = thread::spawn("other", None, move || waker.wake()).expect("spawn");
        while events.is_empty() {
            ring.turn(Wait::Forever, &mut events).expect("turn");
        }
        assert!(matches!(events[..], [TcpEvent::Woken]), "{events:?}");
        events.clear();
        other.join().expect("join");
    }
    // Wakes that come before the ring looks are one event.
    ring.waker().wake();
    ring.waker().wake();
    ring.turn(Wait::Forever, &mut events).expect("turn");
    ring.turn(Wait::Not, &mut events).expect("turn");
    assert_eq!(events.len(), 1, "{events:?}");
}

#[test]
fn time_limit_ends_the_turn() {
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    let mut events = Vec::new();
    ring.turn(Wait::For(1_000), &mut events).expect("turn");
    ring.turn(Wait::Not, &mut events).expect("turn");
    assert!(events.is_empty(), "{events:?}");
}

#[test]
fn watched_disk_ring_tells_each_completion() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temp dir");
    let file = DirectFile::open(&root.path().join("log"), DirectMode::Create).expect("create");
    let name = "test".to_owned();
    let mut disk = DiskRing::new(DiskRingOptions { entries: 8, files_max: 1, name }).expect("disk");
    disk.attach_buffers(BufferPool::new(8, 4096).expect("pool"));
    let slot = disk.register_file(&file).expect("register");
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    ring.watch(disk.fd(), 77);
    let (mut events, mut ended) = (Vec::new(), Vec::new());
    for round in 0..50u64 {
        disk.write(WriteRequest {
            file: slot,
            file_offset: round * 4096,
            buffer: BufferIndex((round % 8) as u16),
            buffer_offset: 0,
            bytes: 4096,
            durability: Durability::WriteThenFlush,
            token: round,
        });
        disk.submit().expect("submit");
        ended.clear();
        while ended.is_empty() {
            ring.turn(Wait::Forever, &mut events).expect("turn");
            for event in events.drain(..) {
                assert!(matches!(event, TcpEvent::Ready { token: 77 }), "{event:?}");
                disk.reap(&mut ended);
            }
        }
        assert_eq!((ended.len(), ended[0].token, ended[0].result), (1, round, Ok(4096)));
    }
    ring.unwatch(77);
    ring.turn(Wait::Not, &mut events).expect("turn");
    ring.watch(disk.fd(), 78);
    disk.write(WriteRequest {
        file: slot,
        file_offset: 0,
        buffer: BufferIndex(0),
        buffer_offset: 0,
        bytes: 4096,
        durability: Durability::None,
        token: 99,
    });
    disk.submit().expect("submit");
    while !events.iter().any(|event| matches!(event, TcpEvent::Ready { token: 78 })) {
        ring.turn(Wait::Forever, &mut events).expect("turn");
    }
}

#[test]
fn listening_can_end() {
    let mut server = Server::new(OPTIONS);
    let (connection, mut client) = server.accept();
    server.ring.listen_end(server.listener);
    server.ring.listen_end(server.listener);
    // Whoever comes while the socket closes is either refused or dropped.
    let mut turns = 0;
    while TcpStream::connect(server.address).is_ok() {
        server.ring.turn(Wait::Not, &mut server.events).expect("turn");
        turns += 1;
        assert!(turns < 10_000, "still listening");
    }
    assert!(server.events.is_empty(), "{:?}", server.events);
    client.write_all(b"still").expect("write");
    assert_eq!(server.receive(connection, 5), b"still");
}

#[test]
fn more_completions_than_the_queue_holds_are_not_lost() {
    // A tiny queue: 2 * 2 + 2 entries, rounded up to 8, against 200 connections at once.
    let options = TcpRingOptions { entries: 2, receive_buffers: 2, ..OPTIONS };
    let mut server = Server::new(options);
    server.quiet_turn();
    let mut clients: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(server.address).expect("connect")).collect();
    for client in &mut clients {
        client.write_all(b"x").expect("write");
    }
    let (mut accepted, mut received) = (HashSet::new(), HashSet::new());
    while received.len() < 200 {
        match server.next() {
            TcpEvent::Accepted { connection, .. } => assert!(accepted.insert(connection)),
            TcpEvent::Received { connection, buffer } => {
                assert_eq!(server.ring.bytes(&buffer), b"x");
                server.ring.release(buffer);
                assert!(received.insert(connection));
            }
            other => panic!("{other:?}"),
        }
    }
    drop(clients);
    let mut closed = HashSet::new();
    while closed.len() < 200 {
        assert!(closed.insert(server.closed().0));
    }
}

#[test]
fn dropping_a_busy_ring_closes_everything() {
    let mut server = Server::new(OPTIONS);
    let (connection, mut client) = server.accept();
    server.ring.outgoing(connection).expect("open").extend_from_slice(&pattern(16 << 20));
    server.quiet_turn();
    server.ring.connect(server.address).expect("begins");
    drop(server);
    let mut got = Vec::new();
    // The stream ends, cleanly or by reset; it must not hang.
    let _end = client.read_to_end(&mut got);
    assert!(got.len() < 16 << 20);
}

/// Runs one of the ignored tests below in a process of its own.
fn run_alone(test: &str) {
    let program = std::env::current_exe().expect("test binary");
    let output = std::process::Command::new(program)
        .args([test, "--exact", "--ignored", "--nocapture"])
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

#[test]
fn accepting_survives_a_lack_of_descriptors() {
    run_alone("child_accepts_with_few_descriptors");
}

#[test]
#[ignore = "limits the process; run by accepting_survives_a_lack_of_descriptors"]
fn child_accepts_with_few_descriptors() {
    let mut server = Server::new(OPTIONS);
    let mut clients: Vec<TcpStream> =
        (0..6).map(|_| TcpStream::connect(server.address).expect("connect")).collect();
    let highest = (0..1024).rev().find(|fd| peer_port(*fd).is_some()).expect("a client");
    // Room for two more descriptors.
    let most = highest as u64 + 3;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the limit lives through the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    let mut accepted = Vec::new();
    while server.ring.statistics().accepts_failed == 0 {
        server.ring.turn(Wait::Forever, &mut server.events).expect("turn");
    }
    // Room comes back one by one; the others waited in the backlog.
    while accepted.len() < 6 {
        match server.next() {
            TcpEvent::Accepted { connection, peer, .. } => {
                accepted.push(connection);
                let gone = clients.iter().position(|client| client.local_addr().ok() == Some(peer));
                drop(clients.remove(gone.expect("one of ours")));
            }
            TcpEvent::Closed { connection, .. } => assert!(accepted.contains(&connection)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn watched_signal_is_told() {
    run_alone("child_is_told_of_a_signal");
}

#[test]
#[ignore = "signals the process; run by watched_signal_is_told"]
fn child_is_told_of_a_signal() {
    // The harness has threads that do not block the signal, so it is sent to this thread alone.
    let shutdown = Shutdown::install().expect("install");
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    ring.watch(shutdown.fd(), 5);
    let mut events = Vec::new();
    ring.turn(Wait::Not, &mut events).expect("turn");
    assert!(events.is_empty() && !shutdown.requested());
    // SAFETY: the target is the calling thread.
    assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) }, 0);
    while events.is_empty() {
        ring.turn(Wait::Forever, &mut events).expect("turn");
    }
    assert!(matches!(events[..], [TcpEvent::Ready { token: 5 }]), "{events:?}");
    assert!(shutdown.requested());
}

#[test]
fn accepted_sockets_do_not_delay_small_frames() {
    let mut server = Server::new(OPTIONS);
    let (_connection, client) = server.accept();
    // The accepted socket is the one whose peer is our client.
    let port = client.local_addr().ok().map(|address| address.port());
    let ours = (0..4096).find(|fd| peer_port(*fd) == port);
    let fd = ours.expect("the accepted socket");
    let mut value: libc::c_int = 0;
    let mut bytes = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is writable for the length given.
    let result = unsafe {
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_NODELAY);
        libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut bytes)
    };
    assert_eq!((result, value), (0, 1));
}

fn peer_port(fd: i32) -> Option<u16> {
    // SAFETY: all-zero is a valid sockaddr_in.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut bytes = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the address is writable for the length given.
    let result = unsafe { libc::getpeername(fd, (&raw mut address).cast(), &raw mut bytes) };
    (result == 0).then(|| u16::from_be(address.sin_port))
}
