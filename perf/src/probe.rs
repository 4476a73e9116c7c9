//! Questions to one particular node, whatever its role: one connection, one answer at a time.
//!
//! The client library follows the leader, which is just what a look at every single node must
//! not do.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use spillway_net::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use spillway_net::ids::Lsn;
use spillway_net::limits::{ANSWER_PAYLOAD_BYTES_MAX, fingerprint};
use spillway_net::message::{
    ClusterAction, ClusterCommand, ClusterReport, ClusterStatus, Hello, MessageError, Payload,
    Refusal, Status, StatusReport, Welcome, decode, write_frame,
};

use crate::control::{StatusNumbers, combine};

/// How long a node may take to answer before it counts as silent.
const PATIENCE: Duration = Duration::from_millis(1000);

/// Why a question got no answer. A node that is down, paused or cut off is no failure of the
/// burst, so this is for people only.
pub type Silence = String;

/// A connection to one shard of one node.
pub struct Probe {
    stream: TcpStream,
    welcome: Welcome,
    request: u64,
}

impl Probe {
    /// Connects and says hello.
    pub fn connect(address: SocketAddr) -> Result<Self, Silence> {
        let text = |error: std::io::Error| format!("{address}: {error}");
        let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(text)?;
        let mut probe = Self { stream, welcome: Welcome::default(), request: 0 };
        let limits_fingerprint = fingerprint();
        let hello = Hello { limits_fingerprint, cluster: 0, session: 0, attempt: 0 };
        let answer = probe.ask(FrameKind::Hello, &hello, FrameKind::Welcome)?;
        probe.welcome = decode(&answer).map_err(unreadable)?;
        Ok(probe)
    }

    /// What the node said of itself.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Sends a request and waits for the payload of its answer.
    fn ask<T: Payload>(
        &mut self,
        kind: FrameKind,
        message: &T,
        answer_kind: FrameKind,
    ) -> Result<Vec<u8>, Silence> {
        let mut frame = Vec::new();
        write_frame(&mut frame, kind, self.request, Lsn(0), message);
        self.stream.write_all(&frame).map_err(|error| error.to_string())?;
        self.request += 1;
        loop {
            let (header, payload) = self.frame()?;
            if header.kind == FrameKind::Refusal {
                let refusal: Refusal = decode(&payload).map_err(unreadable)?;
                return Err(format!("refused ({}): {}", refusal.code, refusal.message));
            }
            if header.kind == answer_kind {
                return Ok(payload);
            }
            // That the members of the cluster have changed is told without being asked for.
            if header.kind != FrameKind::Welcome {
                return Err(format!("{:?} is no answer to {kind:?}", header.kind));
            }
        }
    }

    /// The next frame that the node sends.
    fn frame(&mut self) -> Result<(FrameHeader, Vec<u8>), Silence> {
        let mut head = [0; HEADER_BYTES];
        self.stream.read_exact(&mut head).map_err(|error| error.to_string())?;
        let header = FrameHeader::parse(&head, ANSWER_PAYLOAD_BYTES_MAX)
            .map_err(|error| error.to_string())?;
        let mut frame = vec![0; header.frame_bytes()];
        frame[..HEADER_BYTES].copy_from_slice(&head);
        let rest = &mut frame[HEADER_BYTES..];
        self.stream.read_exact(rest).map_err(|error| error.to_string())?;
        header.check(&frame).map_err(|error| error.to_string())?;
        Ok((header, frame.split_off(HEADER_BYTES)))
    }

    /// How the node sees the cluster.
    pub fn cluster(&mut self) -> Result<ClusterReport, Silence> {
        let kind = FrameKind::ClusterStatus;
        decode(&self.ask(kind, &ClusterStatus {}, FrameKind::ClusterReport)?).map_err(unreadable)
    }

    /// The numbers of this shard.
    fn shard_status(&mut self) -> Result<StatusNumbers, Silence> {
        let answer = self.ask(FrameKind::Status, &Status {}, FrameKind::StatusReport)?;
        let report: StatusReport = decode(&answer).map_err(unreadable)?;
        Ok(report.values.into_iter().map(|one| (one.name, one.value)).collect())
    }

    /// Asks for something to be done to the whole cluster; the leader takes it.
    pub fn command(&mut self, command: &ClusterCommand) -> Result<(), Silence> {
        self.ask(FrameKind::ClusterCommand, command, FrameKind::Done).map(drop)
    }
}

fn unreadable(error: MessageError) -> Silence {
    format!("an answer that cannot be read: {error}")
}

/// How the node whose shard 0 listens at `address` sees the cluster.
pub fn cluster(address: SocketAddr) -> Result<ClusterReport, Silence> {
    Probe::connect(address)?.cluster()
}

/// The numbers of the node whose shard 0 listens at `address`, all shards together.
pub fn status(address: SocketAddr) -> Result<StatusNumbers, Silence> {
    let mut first = Probe::connect(address)?;
    let mut reports = vec![first.shard_status()?];
    for port in first.welcome().shard_ports.clone().into_iter().skip(1) {
        reports.push(Probe::connect(SocketAddr::new(address.ip(), port))?.shard_status()?);
    }
    Ok(combine(&reports))
}

/// Asks the leader to hand over, to `node` or, if that is 0, to the follower that it likes best.
pub fn transfer(leader: SocketAddr, node: u16) -> Result<(), Silence> {
    let action = ClusterAction::Transfer as u8;
    let (peer_address, address) = (String::new(), String::new());
    let command = ClusterCommand { action, node, node_new: 0, peer_address, address };
    Probe::connect(leader)?.command(&command)
}

/// What one node has applied, read at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Up to this LSN.
    pub lsn: u64,
    /// Running digests of all partitions there, folded; none if the node does not tell.
    pub digest: Option<u64>,
    /// Rows.
    pub rows: u64,
}

impl Applied {
    /// Reads it from a node's numbers.
    pub fn of(numbers: &BTreeMap<String, u64>) -> Self {
        let number = |name: &str| numbers.get(name).copied();
        Self {
            lsn: number("applied_lsn").or_else(|| number("vdl_lsn")).unwrap_or(0),
            digest: number("digest_all"),
            rows: number("memtable_rows").unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use spillway_net::message::StatusValue;
    use spillway_runtime::thread;

    use super::*;

    /// Answers one connection with these frames, one per request.
    fn node(answers: Vec<Vec<u8>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let serve = move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            for answer in answers {
                let mut head = [0; HEADER_BYTES];
                stream.read_exact(&mut head).expect("a request");
                let header = FrameHeader::parse(&head, 1 << 20).expect("a good header");
                let mut rest = vec![0; header.frame_bytes() - HEADER_BYTES];
                stream.read_exact(&mut rest).expect("all of it");
                stream.write_all(&answer).expect("sent");
            }
        };
        drop(thread::spawn("node", None, serve).expect("a thread"));
        address
    }

    fn frame<T: Payload>(kind: FrameKind, message: &T) -> Vec<u8> {
        let mut frame = Vec::new();
        write_frame(&mut frame, kind, 0, Lsn(0), message);
        frame
    }

    #[test]
    fn a_node_is_asked_and_refusals_are_told() {
        let welcome = Welcome { node: 3, shard_ports: vec![1], ..Welcome::default() };
        let hello = frame(FrameKind::Welcome, &welcome);
        let report = ClusterReport { node: 3, role: "leader".to_owned(), ..Default::default() };
        let at = node(vec![hello.clone(), frame(FrameKind::ClusterReport, &report)]);
        assert_eq!(cluster(at).expect("an answer"), report);
        let value = |name: &str, value| StatusValue { name: name.to_owned(), value };
        let values = vec![value("applied_lsn", 9), value("digest_all", 7), value("x", 1)];
        let at =
            node(vec![hello.clone(), frame(FrameKind::StatusReport, &StatusReport { values })]);
        let numbers = status(at).expect("an answer");
        assert_eq!(Applied::of(&numbers), Applied { lsn: 9, digest: Some(7), rows: 0 });
        let refusal = Refusal { message: "not now".to_owned(), ..Refusal::default() };
        let at = node(vec![hello, frame(FrameKind::Refusal, &refusal)]);
        assert!(transfer(at, 0).expect_err("refused").contains("not now"));
        let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        cluster(nobody).expect_err("nobody listens");
    }
}
