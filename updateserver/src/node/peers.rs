//! The links to the other nodes of the cluster. They live on the log's thread and use its ring.
//!
//! Between any two nodes there is one connection, made again and again until it stands:
//! [`crate::peer_book`] says by whom, and who is let in. After the handshake of [`spillway_net::peer`] each message is a header of
//! 128 bytes, and a body if the header says so. A body is received into memory that the owner's
//! ring of slots gives, one block behind the slot's start, so that the node can put its own header
//! in front and write the whole to disk; a body to be sent is a slot, too. Neither is copied, but
//! with TLS both are.
//!
//! What holds: a message is told only between `Connected` and `Lost` of its node; messages of one
//! link are told in order; no memory is reserved for an announced length above the largest batch.
//! When there is no memory nothing more is received on that link until there is.
//!
//! A side that says nothing for half a second sends a *ping*, a header that is not told to the
//! owner; one that was not heard for three seconds is given up, and so is one that began a body and
//! sends less than half a megabit of it per second, because the memory for it holds up all that was
//! reserved later.

mod certificates;
mod dial;
mod link;
mod notice;
mod resolve;
mod tls;

use std::collections::VecDeque;

use spillway_net::ids::NodeId;
use spillway_net::peer::{ClusterKey, Handshake, Hello, MESSAGE_BYTES, Message, Step};
use spillway_runtime::random;
use spillway_runtime::slot_ring::{Slot, SlotMut};
use spillway_runtime::tcp::{CloseReason, ConnectionId, ListenerId, TcpEvent, TcpRing};

use link::{Link, Phase, Receiving, Transport};
use notice::Notices;
use resolve::Resolver;
use tls::TlsReceived;

use crate::peer_book::{LogMembers, PeerBook};

pub use certificates::{PeerTls, TlsError};
pub use notice::{Fault, PeerNotice};

/// From the connection to the end of the handshake.
const HANDSHAKE_NANOS_MAX: u64 = 3_000_000_000;
/// Connections that have not proven themselves. One more makes the oldest go.
const STRANGERS_MAX: usize = 16;
/// Silence after which a ping is sent.
const PING_NANOS: u64 = 500_000_000;
/// Silence after which the other side is given up.
const SILENCE_NANOS_MAX: u64 = 3_000_000_000;
/// A body that is not whole two periods after its header must have brought [`BODY_BYTES_MIN`] in
/// the second one, and go on so.
const BODY_PERIOD_NANOS: u64 = 500_000_000;
/// Half a megabit per second. Less is as good as nothing, and holds the memory for too long.
const BODY_BYTES_MIN: u64 = 32 << 10;
/// How soon memory is asked for again, if nothing else wakes the thread.
const MEMORY_RETRY_NANOS: u64 = 1_000_000;
/// A pause between turns that can only mean that this process was stopped: it heard nobody, which
/// is not the others' fault.
const PAUSE_NANOS: u64 = 1_000_000_000;

/// The header that only says: still here.
const PING: Message = {
    let mut ping = [0; MESSAGE_BYTES];
    let magic = *b"SPLWPEERPING";
    let mut at = 0;
    while at < magic.len() {
        ping[at] = magic[at];
        at += 1;
    }
    ping
};

/// Bytes of the body behind a header, 0 for none; or what is wrong with the header.
pub type BodyBytesOf = Box<dyn Fn(&Message) -> Result<u32, String> + Send>;

/// Where the memory for bodies comes from. The owner may let go of something else for it: nobody
/// else would, and a node that cannot receive can never learn that it needs less.
pub type Reserve<'a> = dyn FnMut(usize) -> Option<SlotMut> + 'a;

/// What links are made from.
pub struct PeerLinksOptions {
    /// What this node says of itself. The log's sizes in it bound the bodies.
    pub hello: Hello,
    /// The cluster's key; [`ClusterKey::certified`] if certificates alone prove who is there.
    pub key: ClusterKey,
    /// Certificates, if links are to be encrypted.
    pub tls: Option<PeerTls>,
    /// Where the others connect: a listener of the ring that all calls get.
    pub listener: Option<ListenerId>,
    /// The nodes of the configuration and where they listen, as `host:port`. This node may be
    /// among them.
    pub configured: Vec<(NodeId, String)>,
    /// Reads headers. What it lets pass is bounded here again.
    pub body_bytes_of: BodyBytesOf,
}

/// What the owner is told.
#[derive(Debug)]
pub enum PeerEvent {
    /// A link stands: messages may be sent.
    Connected(NodeId),
    /// It is gone. What was sent and not answered may or may not have arrived.
    Lost(NodeId),
    /// A message.
    Message {
        /// From whom.
        from: NodeId,
        /// Its header.
        header: Message,
        /// If it has a body: a slot with one block for the node's own use, and the body behind.
        body: Option<SlotMut>,
    },
    /// Something an operator should see. Each fault of a node is told once until it connects.
    Notice(PeerNotice),
}

/// See the module.
pub struct PeerLinks {
    hello: Hello,
    key: ClusterKey,
    tls: Option<PeerTls>,
    listener: Option<ListenerId>,
    body_bytes_of: BodyBytesOf,
    book: PeerBook,
    links: Vec<Link>,
    notices: Notices,
    resolver: Option<Resolver>,
    events: VecDeque<PeerEvent>,
    /// When the last turn was.
    now_nanos: u64,
    is_stopped: bool,
}

impl PeerLinks {
    /// Nothing is connected before the first turn.
    #[must_use]
    pub fn new(options: PeerLinksOptions, now_nanos: u64) -> Self {
        let PeerLinksOptions { hello, key, tls, listener, configured, body_bytes_of } = options;
        let format = &hello.format;
        assert!(format.block_bytes.is_power_of_two(), "blocks of {} bytes", format.block_bytes);
        assert!(format.batch_bytes_max >= format.block_bytes, "a batch has a block");
        Self {
            book: PeerBook::new(hello.node, configured, now_nanos),
            hello,
            key,
            tls,
            listener,
            body_bytes_of,
            links: Vec::new(),
            notices: Notices::default(),
            resolver: None,
            events: VecDeque::new(),
            now_nanos,
            is_stopped: false,
        }
    }

    /// Takes what happened on the ring and gives back what is not about peers. What follows from
    /// it is told by [`Self::turn`].
    pub fn event(&mut self, ring: &mut TcpRing, event: TcpEvent) -> Option<TcpEvent> {
        match event {
            TcpEvent::Accepted { listener, connection, peer }
                if self.listener == Some(listener) =>
            {
                self.accepted(ring, connection, peer.to_string());
            }
            TcpEvent::Connected { connection } => {
                let Some(at) = self.index_of(connection) else { return Some(event) };
                self.connected(ring, at);
            }
            TcpEvent::Header { connection, ref header } => {
                let Some(at) = self.index_of(connection) else { return Some(event) };
                let header = Message::try_from(&header[..]).expect("headers have this size");
                self.header(ring, at, header);
            }
            TcpEvent::Body { connection, slot } => {
                let Some(at) = self.index_of(connection) else {
                    return Some(TcpEvent::Body { connection, slot });
                };
                self.body(ring, at, slot);
            }
            TcpEvent::Received { connection, buffer } => {
                let Some(at) = self.index_of(connection) else {
                    return Some(TcpEvent::Received { connection, buffer });
                };
                let link = &mut self.links[at];
                let is_ending = link.is_ending();
                if let Transport::Tls(tls) = &mut link.transport
                    && !is_ending
                {
                    tls.received(ring.bytes(&buffer));
                }
                ring.release(buffer);
                self.decrypt(ring, at);
            }
            TcpEvent::Closed { connection, reason } => {
                let Some(at) = self.index_of(connection) else { return Some(event) };
                self.closed(ring, at, reason);
            }
            other => return Some(other),
        }
        None
    }

    /// Does what is due: connects, asks for memory, ends what took too long. To be called after
    /// the events of each turn of the ring, and at [`Self::deadline_nanos`]. Appends to `out`.
    pub fn turn(
        &mut self,
        ring: &mut TcpRing,
        reserve: &mut Reserve<'_>,
        now_nanos: u64,
        out: &mut Vec<PeerEvent>,
    ) {
        let pause = now_nanos.saturating_sub(self.now_nanos);
        if pause > PAUSE_NANOS {
            self.links.iter_mut().for_each(|link| link.delay(pause));
        }
        self.now_nanos = self.now_nanos.max(now_nanos);
        if !self.is_stopped {
            self.dial(ring);
        }
        for at in 0..self.links.len() {
            self.memory(ring, reserve, at);
            self.time(ring, at);
        }
        out.extend(self.events.drain(..));
    }

    /// When [`Self::turn`] wants to be called although nothing happened.
    #[must_use]
    pub fn deadline_nanos(&self) -> u64 {
        let links = self.links.iter().map(|link| self.deadline_of(link));
        let dial = if self.is_stopped { u64::MAX } else { self.book.deadline_nanos() };
        links.fold(dial, u64::min)
    }

    /// Sends a message. `false` if there is no link, and then nothing is sent.
    pub fn send(
        &mut self,
        ring: &mut TcpRing,
        to: NodeId,
        header: &Message,
        body: Option<Slot>,
    ) -> bool {
        let Some(at) = self.link_of(to) else { return false };
        self.links[at].send(ring, header, body, self.now_nanos)
    }

    /// Ends the link of a node and what waits in it; it is connected again soon.
    pub fn reset(&mut self, ring: &mut TcpRing, node: NodeId) {
        if let Some(at) = self.link_of(node) {
            ring.close(self.links[at].connection);
        }
    }

    /// Bytes sent to a node that its kernel has not taken yet. Bound it.
    #[must_use]
    pub fn outgoing_bytes(&self, ring: &TcpRing, to: NodeId) -> usize {
        self.link_of(to).map_or(0, |at| ring.outgoing_bytes(self.links[at].connection))
    }

    /// Whether messages can be sent to a node.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.link_of(node).is_some()
    }

    /// What the log says of the members. Links to those that it has removed end.
    pub fn members_set(&mut self, ring: &mut TcpRing, members: LogMembers) {
        self.book.set(members, self.now_nanos);
        self.hello.is_founded = self.book.is_founded();
        for at in 0..self.links.len() {
            let link = &self.links[at];
            // One that is still in its handshake is judged at the end of that.
            let is_judged = link.is_up() || !link.is_accepted;
            if is_judged && link.node.is_some_and(|node| !self.book.contains(node)) {
                self.end(ring, at);
            }
        }
    }

    /// Ends all links, and makes and accepts none any more.
    pub fn stop(&mut self, ring: &mut TcpRing) {
        self.is_stopped = true;
        if let Some(listener) = self.listener {
            ring.listen_end(listener);
        }
        for at in 0..self.links.len() {
            self.end(ring, at);
        }
    }

    fn index_of(&self, connection: ConnectionId) -> Option<usize> {
        self.links.iter().position(|link| link.connection == connection)
    }

    /// The link that stands to a node.
    fn link_of(&self, node: NodeId) -> Option<usize> {
        self.links.iter().position(|link| link.is_up() && link.node == Some(node))
    }

    fn accepted(&mut self, ring: &mut TcpRing, connection: ConnectionId, address: String) {
        let transport = match &self.tls {
            None => {
                ring.set_framed(connection, MESSAGE_BYTES);
                Transport::Plain
            }
            Some(tls) => Transport::Tls(Box::new(tls.accept())),
        };
        let nonce = random::bytes();
        let handshake = Handshake::responder(self.hello, self.key.clone(), &nonce);
        let phase = Phase::Shaking(Box::new(handshake));
        self.links.push(Link::new(connection, transport, phase, None, address, self.now_nanos));
        if self.is_stopped {
            self.end(ring, self.links.len() - 1);
        }
        if self.links.iter().filter(|link| link.is_stranger()).count() > STRANGERS_MAX {
            // Links are in the order in which they came about, so the first is the oldest. Those
            // that mean it need one round trip and are not the oldest for long.
            let oldest = self.links.iter().position(Link::is_stranger);
            self.end(ring, oldest.expect("there are some"));
        }
    }

    /// A connection that this node made stands: the handshake begins.
    fn connected(&mut self, ring: &mut TcpRing, at: usize) {
        let link = &mut self.links[at];
        if !matches!(link.phase, Phase::Connecting) {
            return;
        }
        let node = link.node.expect("it was made to reach a node");
        let nonce = random::bytes();
        let (handshake, first) = Handshake::initiator(self.hello, node, self.key.clone(), &nonce);
        link.phase = Phase::Shaking(Box::new(handshake));
        link.send(ring, &first, None, self.now_nanos);
    }

    fn header(&mut self, ring: &mut TcpRing, at: usize, header: Message) {
        let link = &mut self.links[at];
        link.heard_nanos = self.now_nanos;
        match link.phase {
            Phase::Shaking(_) => self.shake(ring, at, &header),
            Phase::Up => self.header_up(ring, at, header),
            // What was on its way when the link was ended.
            Phase::Connecting | Phase::Ending => {}
        }
    }

    fn shake(&mut self, ring: &mut TcpRing, at: usize, message: &Message) {
        let (link, book) = (&mut self.links[at], &self.book);
        let Phase::Shaking(handshake) = &mut link.phase else {
            panic!("a link that stands shakes no hands");
        };
        let transport = &link.transport;
        let mut admit = |peer: &Hello| {
            Link::certified(transport, peer.node)?;
            book.admit(peer)
        };
        let step = handshake.receive(message, &mut admit);
        if link.node.is_none() {
            link.node = handshake.claimed().map(|peer| peer.node);
        }
        let now = self.now_nanos;
        match step {
            Step::Reply(reply) => {
                link.send(ring, &reply, None, now);
                link.receive_header(ring);
            }
            Step::Established { peer, reply } => self.established(ring, at, &peer, reply.as_ref()),
            Step::Refused { refusal, reply } => {
                link.send(ring, &reply, None, now);
                self.fault(at, Fault::Refused(refusal));
                self.end_after_send(ring, at);
            }
            Step::RefusedByPeer(refusal) => {
                self.fault(at, Fault::RefusedByPeer(refusal));
                self.end(ring, at);
            }
        }
    }

    /// The other side has proven itself. `reply` proves this one to it.
    fn established(
        &mut self,
        ring: &mut TcpRing,
        at: usize,
        peer: &Hello,
        reply: Option<&Message>,
    ) {
        // The members may have changed since the hello, and another link may have come about.
        if let Err(refusal) = self.book.admit(peer) {
            self.fault(at, Fault::Refused(refusal));
            self.end(ring, at);
            return;
        }
        let older = self.link_of(peer.node);
        if older.is_some_and(|older| self.is_superfluous(at, older, peer)) {
            self.end(ring, at);
            return;
        }
        if let Some(older) = older {
            self.end(ring, older);
        }
        let (link, now) = (&mut self.links[at], self.now_nanos);
        if let Some(reply) = reply {
            link.send(ring, reply, None, now);
        }
        (link.phase, link.node) = (Phase::Up, Some(peer.node));
        link.process = Some((peer.boot, peer.instance));
        link.receive_header(ring);
        self.book.connected(peer, now);
        self.notices.connected(peer.node);
        if self.book.is_guest(peer.node) {
            self.fault(at, Fault::Guest);
        }
        self.events.push_back(PeerEvent::Connected(peer.node));
    }

    /// Whether a new link is one too many: both sides have connected at once, and the older one is
    /// that which both keep. In all other cases the other side has lost the older one. If it has
    /// lost it in this case, its silence ends it.
    fn is_superfluous(&self, new: usize, older: usize, peer: &Hello) -> bool {
        let (new, older) = (&self.links[new], &self.links[older]);
        let is_same_process = older.process == Some((peer.boot, peer.instance));
        let is_crossed = is_same_process && older.is_accepted != new.is_accepted;
        is_crossed && !self.book.is_preferred(peer.node, new.is_accepted)
    }

    fn header_up(&mut self, ring: &mut TcpRing, at: usize, header: Message) {
        let link = &mut self.links[at];
        if header == PING {
            link.receive_header(ring);
            return;
        }
        let from = link.node.expect("the other end of a link is known");
        match (self.body_bytes_of)(&header) {
            Ok(0) => {
                link.receive_header(ring);
                self.events.push_back(PeerEvent::Message { from, header, body: None });
            }
            Ok(bytes) => {
                let format = &self.hello.format;
                if bytes.is_multiple_of(format.block_bytes) && bytes <= format.batch_bytes_max {
                    link.receiving = Receiving::Memory { header, body_bytes: bytes as usize };
                } else {
                    self.rubbish(ring, at, format!("a body of {bytes} bytes"));
                }
            }
            Err(text) => self.rubbish(ring, at, text),
        }
    }

    fn rubbish(&mut self, ring: &mut TcpRing, at: usize, text: String) {
        self.fault(at, Fault::Rubbish(text));
        self.end(ring, at);
    }

    /// Receives a body that waits for memory, if there is some now.
    fn memory(&mut self, ring: &mut TcpRing, reserve: &mut Reserve<'_>, at: usize) {
        let (link, now) = (&mut self.links[at], self.now_nanos);
        let Receiving::Memory { header, body_bytes } = link.receiving else { return };
        let block = self.hello.format.block_bytes as usize;
        let Some(slot) = reserve(block + body_bytes) else {
            // Not heard because not listened to.
            link.heard_nanos = now;
            return;
        };
        let (head, body) = slot.split_at(block);
        link.receiving = Receiving::Body { header, head, since_nanos: now, before_bytes: None };
        link.receive_body(ring, body);
        self.decrypt(ring, at);
    }

    /// Takes what arrived on a link with TLS.
    fn decrypt(&mut self, ring: &mut TcpRing, at: usize) {
        loop {
            let link = &mut self.links[at];
            if link.is_ending() {
                return;
            }
            let Transport::Tls(tls) = &mut link.transport else { return };
            match tls.next() {
                Ok(Some(TlsReceived::Header(header))) => self.header(ring, at, header),
                Ok(Some(TlsReceived::Body(body))) => self.body(ring, at, body),
                Ok(None) => return link.tls_flush(ring),
                Err(error) => {
                    // The other side is told by what the library has to say yet.
                    link.tls_flush(ring);
                    let text = certificates::describe(&error, link.node);
                    self.fault(at, Fault::Tls(text));
                    self.end_after_send(ring, at);
                }
            }
        }
    }

    fn body(&mut self, ring: &mut TcpRing, at: usize, body: SlotMut) {
        let link = &mut self.links[at];
        link.heard_nanos = self.now_nanos;
        let receiving = std::mem::replace(&mut link.receiving, Receiving::Header);
        let Receiving::Body { header, head, .. } = receiving else {
            assert!(matches!(link.phase, Phase::Ending), "a body that nobody asked for");
            return;
        };
        let slot = SlotMut::joined(head, body).expect("both were one slot");
        let from = link.node.expect("the other end of a link is known");
        link.receive_header(ring);
        self.events.push_back(PeerEvent::Message { from, header, body: Some(slot) });
    }

    /// Ends a link that took too long, or shows the other side that this one is alive.
    fn time(&mut self, ring: &mut TcpRing, at: usize) {
        let (link, now) = (&mut self.links[at], self.now_nanos);
        if now < link.deadline_nanos() {
            return;
        }
        if link.is_up() && now >= link.gone_nanos() && link.body_goes_on(ring, now) {
            return;
        }
        match &link.phase {
            Phase::Connecting => {
                self.fault(at, Fault::Unreachable("no answer".to_owned()));
                self.end(ring, at);
            }
            Phase::Shaking(_) => {
                self.fault(at, Fault::HandshakeSlow);
                self.end(ring, at);
            }
            Phase::Up if now >= link.gone_nanos() => {
                self.fault(at, Fault::Silent);
                self.end(ring, at);
            }
            Phase::Up => {
                link.send(ring, &PING, None, now);
            }
            Phase::Ending => {}
        }
    }

    fn deadline_of(&self, link: &Link) -> u64 {
        match link.receiving {
            Receiving::Memory { .. } => self.now_nanos + MEMORY_RETRY_NANOS,
            _ => link.deadline_nanos(),
        }
    }

    /// Tells a fault of the other end of a link, unless it was told already, or there is another
    /// link that it cannot be about.
    fn fault(&mut self, at: usize, fault: Fault) {
        let link = &self.links[at];
        let is_linked = link.node.is_some_and(|node| self.book.is_linked(node));
        let is_vain =
            matches!(fault, Fault::HandshakeCut | Fault::HandshakeSlow | Fault::Unreachable(_));
        if is_linked && is_vain {
            return;
        }
        self.tell(PeerNotice { node: link.node, address: link.address.clone(), fault });
    }

    fn end(&mut self, ring: &mut TcpRing, at: usize) {
        self.ending(at);
        ring.close(self.links[at].connection);
    }

    /// Ends a link once the other side has been told why.
    fn end_after_send(&mut self, ring: &mut TcpRing, at: usize) {
        self.ending(at);
        ring.close_after_send(self.links[at].connection);
    }

    /// From here on nothing of the link is told. `Closed` follows from the ring.
    fn ending(&mut self, at: usize) {
        let link = &mut self.links[at];
        let before = std::mem::replace(&mut link.phase, Phase::Ending);
        link.receiving = Receiving::Header;
        let Some(node) = link.node else { return };
        if matches!(before, Phase::Up) {
            self.book.lost(node, self.now_nanos);
            self.events.push_back(PeerEvent::Lost(node));
        }
    }

    fn closed(&mut self, ring: &mut TcpRing, at: usize, reason: CloseReason) {
        match self.links[at].phase {
            Phase::Connecting => self.fault(at, Fault::unreachable(reason)),
            Phase::Shaking(_) => self.fault(at, Fault::HandshakeCut),
            Phase::Up | Phase::Ending => {}
        }
        self.end(ring, at);
        // The order of the others stays: it is that of their age.
        let link = self.links.remove(at);
        if let Some(node) = link.node.filter(|_| !link.is_accepted) {
            self.book.ended(node, self.now_nanos);
        }
    }
}

const _: () =
    assert!(2 * BODY_PERIOD_NANOS < SILENCE_NANOS_MAX && 4 * PING_NANOS < SILENCE_NANOS_MAX);

#[cfg(test)]
mod tests;
