//! One connection to another node, from its first byte to its last.

use spillway_net::ids::NodeId;
use spillway_net::peer::{Handshake, Message, Refusal};
use spillway_runtime::slot_ring::{Slot, SlotMut};
use spillway_runtime::tcp::{ConnectionId, TcpRing};

use super::tls::TlsLink;
use super::{
    BODY_BYTES_MIN, BODY_PERIOD_NANOS, HANDSHAKE_NANOS_MAX, PING_NANOS, SILENCE_NANOS_MAX,
};

/// How far a link has come.
pub(super) enum Phase {
    /// This node connects and has no answer yet.
    Connecting,
    /// Nobody has proven anything yet.
    Shaking(Box<Handshake>),
    /// Messages travel.
    Up,
    /// Nothing is told any more; the ring still has to end it.
    Ending,
}

/// What a link that stands receives now.
pub(super) enum Receiving {
    /// A header, or nothing because the link is ending.
    Header,
    /// Nothing: memory for the body is missing.
    Memory { header: Message, body_bytes: usize },
    /// The body. The head is the front of its slot. From `since_nanos` on the other side has a
    /// period to end it or to send its least; `before_bytes` is what the connection had received
    /// then, not asked for in the first period, in which almost all bodies end.
    Body { header: Message, head: SlotMut, since_nanos: u64, before_bytes: Option<u64> },
}

/// What carries the bytes.
pub(super) enum Transport {
    /// A framed connection of the ring.
    Plain,
    /// An ordinary one, with TLS on it.
    Tls(Box<TlsLink>),
}

/// See the module.
pub(super) struct Link {
    pub connection: ConnectionId,
    pub transport: Transport,
    pub phase: Phase,
    /// Whom it leads to: whom this node wants to reach, or who the other side says it is. Proven
    /// when the link is up.
    pub node: Option<NodeId>,
    /// Whether the other side made it.
    pub is_accepted: bool,
    /// Boot and instance of the process at the other end, when the link is up.
    pub process: Option<(u64, u64)>,
    pub address: String,
    pub receiving: Receiving,
    began_nanos: u64,
    /// When the other side was heard.
    pub heard_nanos: u64,
    /// When something was sent to it.
    said_nanos: u64,
}

impl Link {
    pub fn new(
        connection: ConnectionId,
        transport: Transport,
        phase: Phase,
        node: Option<NodeId>,
        address: String,
        now_nanos: u64,
    ) -> Self {
        Self {
            connection,
            transport,
            phase,
            node,
            is_accepted: node.is_none(),
            process: None,
            address,
            receiving: Receiving::Header,
            began_nanos: now_nanos,
            heard_nanos: now_nanos,
            said_nanos: now_nanos,
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up)
    }

    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending)
    }

    /// Whether it was accepted and has not proven itself.
    pub fn is_stranger(&self) -> bool {
        self.is_accepted && matches!(self.phase, Phase::Shaking(_))
    }

    /// Moves all times: this process was stopped for so long.
    pub fn delay(&mut self, nanos: u64) {
        self.began_nanos += nanos;
        self.heard_nanos += nanos;
        self.said_nanos += nanos;
        if let Receiving::Body { since_nanos, .. } = &mut self.receiving {
            *since_nanos += nanos;
        }
    }

    /// When a link that is up has lost its other side.
    pub fn gone_nanos(&self) -> u64 {
        let silence = self.heard_nanos + SILENCE_NANOS_MAX;
        match &self.receiving {
            Receiving::Body { since_nanos, .. } => silence.min(since_nanos + BODY_PERIOD_NANOS),
            _ => silence,
        }
    }

    /// Whether a body whose period is over may go on: after the first one, and then as long as it
    /// comes at the least rate.
    pub fn body_goes_on(&mut self, ring: &mut TcpRing, now_nanos: u64) -> bool {
        let connection = self.connection;
        let Receiving::Body { since_nanos, before_bytes, .. } = &mut self.receiving else {
            return false;
        };
        // If the kernel does not say, a body has the time of one.
        let Ok(received) = ring.received_bytes(connection) else { return false };
        if let Some(before) = before_bytes.replace(received) {
            if received.saturating_sub(before) < BODY_BYTES_MIN {
                return false;
            }
            self.heard_nanos = now_nanos;
        }
        *since_nanos = now_nanos;
        true
    }

    /// When something is due.
    pub fn deadline_nanos(&self) -> u64 {
        match self.phase {
            Phase::Connecting | Phase::Shaking(_) => self.began_nanos + HANDSHAKE_NANOS_MAX,
            Phase::Up => self.gone_nanos().min(self.said_nanos + PING_NANOS),
            Phase::Ending => u64::MAX,
        }
    }

    /// Whether it was sent.
    pub fn send(
        &mut self,
        ring: &mut TcpRing,
        header: &Message,
        body: Option<Slot>,
        now_nanos: u64,
    ) -> bool {
        self.said_nanos = now_nanos;
        match &mut self.transport {
            Transport::Plain => ring.send_slots(self.connection, header, body),
            Transport::Tls(tls) => {
                let Some(outgoing) = ring.outgoing(self.connection) else { return false };
                tls.send(header, body.as_ref(), outgoing);
                true
            }
        }
    }

    pub fn receive_header(&mut self, ring: &mut TcpRing) {
        match &mut self.transport {
            Transport::Plain => ring.receive_header(self.connection),
            Transport::Tls(tls) => tls.receive_header(),
        }
    }

    pub fn receive_body(&mut self, ring: &mut TcpRing, body: SlotMut) {
        match &mut self.transport {
            Transport::Plain => ring.receive_body(self.connection, body),
            Transport::Tls(tls) => tls.receive_body(body),
        }
    }

    /// Sends what the library wants to say by itself, and receives only what can be taken.
    pub fn tls_flush(&mut self, ring: &mut TcpRing) {
        let Transport::Tls(tls) = &mut self.transport else { return };
        if let Some(outgoing) = ring.outgoing(self.connection) {
            tls.flush(outgoing);
        }
        match (tls.is_held_up(), tls.is_paused) {
            (true, false) => ring.receive_pause(self.connection),
            (false, true) => ring.receive_resume(self.connection),
            _ => {}
        }
        tls.is_paused = tls.is_held_up();
    }

    /// Whether a certificate, if there must be one, is for the node that a hello names.
    pub fn certified(transport: &Transport, node: NodeId) -> Result<(), Refusal> {
        match transport {
            Transport::Tls(tls) if !tls.is_certified(node) => Err(Refusal::Certificate { node }),
            Transport::Plain | Transport::Tls(_) => Ok(()),
        }
    }
}
