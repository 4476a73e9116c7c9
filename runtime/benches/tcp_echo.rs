//! CPU per small request of a ring that answers 16 bytes to each 64, and requests per second, over
//! loopback. Client and server are rings of the same kind on threads of their own.

use std::net::SocketAddr;

use spillway_runtime::clock::{monotonic_now, thread_cpu_nanos};
use spillway_runtime::placement::{CpuId, cpus_allowed};
use spillway_runtime::tcp::{TcpEvent, TcpRing, TcpRingOptions, Wait};
use spillway_runtime::thread;

const REQUEST_BYTES: usize = 64;
const ANSWER_BYTES: usize = 16;
const OPTIONS: TcpRingOptions = TcpRingOptions {
    entries: 256,
    receive_buffers: 256,
    receive_buffer_bytes: 32 * 1024,
    connections_max: 64,
};

/// Answers until the last connection is gone; returns the CPU used.
fn serve(sender: &std::sync::mpsc::Sender<SocketAddr>) -> u64 {
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    let any_port = "127.0.0.1:0".parse().expect("valid");
    let (_, address) = ring.listen(any_port, 64).expect("listen");
    sender.send(address).expect("the client waits");
    let mut partial = vec![0usize; OPTIONS.connections_max as usize];
    let mut events = Vec::new();
    let start = thread_cpu_nanos();
    loop {
        ring.turn(Wait::Forever, &mut events).expect("turn");
        for event in events.drain(..) {
            match event {
                TcpEvent::Received { connection, buffer } => {
                    let bytes = partial[connection.index as usize] + buffer.len();
                    ring.release(buffer);
                    partial[connection.index as usize] = bytes % REQUEST_BYTES;
                    let answers = bytes / REQUEST_BYTES * ANSWER_BYTES;
                    if let Some(outgoing) = ring.outgoing(connection) {
                        outgoing.resize(outgoing.len() + answers, 7);
                    }
                }
                TcpEvent::Closed { .. } if ring.connections() == 0 => {
                    return thread_cpu_nanos() - start;
                }
                _ => {}
            }
        }
    }
}

/// Keeps `depth` requests in flight on each connection until `requests` were answered.
fn load(address: SocketAddr, connections: usize, depth: usize, requests: usize) {
    let mut ring = TcpRing::new(OPTIONS).expect("ring");
    for _ in 0..connections {
        let connection = ring.connect(address).expect("connect");
        ring.outgoing(connection).expect("open").resize(depth * REQUEST_BYTES, 1);
    }
    let mut partial = vec![0usize; OPTIONS.connections_max as usize];
    let (mut answered, mut events) = (0, Vec::new());
    while answered < requests {
        ring.turn(Wait::Forever, &mut events).expect("turn");
        for event in events.drain(..) {
            let TcpEvent::Received { connection, buffer } = event else { continue };
            let bytes = partial[connection.index as usize] + buffer.len();
            ring.release(buffer);
            partial[connection.index as usize] = bytes % ANSWER_BYTES;
            let answers = bytes / ANSWER_BYTES;
            answered += answers;
            let outgoing = ring.outgoing(connection).expect("open");
            outgoing.resize(outgoing.len() + answers * REQUEST_BYTES, 1);
        }
    }
}

fn main() {
    let cpus = cpus_allowed().expect("affinity");
    let (first, last): (CpuId, CpuId) = (cpus[0], cpus[cpus.len() - 1]);
    for (connections, depth, requests) in
        [(1, 1, 50_000), (16, 1, 200_000), (16, 16, 2_000_000), (16, 256, 10_000_000)]
    {
        let (sender, receiver) = std::sync::mpsc::channel();
        let server = thread::spawn("server", Some(first), move || serve(&sender)).expect("spawn");
        let address = receiver.recv().expect("the server listens");
        let start = monotonic_now();
        let client = move || load(address, connections, depth, requests);
        let client = thread::spawn("client", Some(last), client).expect("spawn");
        client.join().expect("client");
        let nanos = monotonic_now().saturating_nanos_since(start);
        let cpu = server.join().expect("server");
        println!(
            "{connections:3} connections x {depth:3}: {:9.0} requests/s, {:6.0} ns CPU per request",
            requests as f64 * 1e9 / nanos as f64,
            cpu as f64 / requests as f64
        );
    }
}
