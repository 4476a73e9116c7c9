//! Making connections to other nodes.

use std::net::SocketAddr;

use spillway_net::ids::NodeId;
use spillway_net::peer::MESSAGE_BYTES;
use spillway_runtime::tcp::TcpRing;

use super::link::{Link, Phase, Transport};
use super::notice::Fault;
use super::resolve::Resolver;
use super::{PeerEvent, PeerLinks, PeerNotice};
use crate::peer_book::Due;

impl PeerLinks {
    /// Makes all connections that are due.
    pub(super) fn dial(&mut self, ring: &mut TcpRing) {
        while let Some(answer) = self.resolver.as_ref().and_then(Resolver::answer) {
            match answer.found {
                Ok(target) => self.connect(ring, answer.node, answer.address, target),
                Err(text) => self.unreachable(answer.node, answer.address, text),
            }
        }
        while let Some(due) = self.book.due(self.now_nanos) {
            if self.has_dialed(due.node) {
                // It still ends, and its end leads here again.
                continue;
            }
            match due.address.parse::<SocketAddr>() {
                Ok(target) => self.connect(ring, due.node, due.address, target),
                Err(_) => self.resolve(ring, due),
            }
        }
    }

    fn has_dialed(&self, node: NodeId) -> bool {
        self.links.iter().any(|link| !link.is_accepted && link.node == Some(node))
    }

    fn resolve(&mut self, ring: &TcpRing, due: Due) {
        if self.resolver.is_none() {
            match Resolver::new(ring.waker()) {
                Ok(resolver) => self.resolver = Some(resolver),
                Err(error) => return self.unreachable(due.node, due.address, error.to_string()),
            }
        }
        self.resolver.as_ref().expect("it was just made").ask(due);
    }

    fn connect(&mut self, ring: &mut TcpRing, node: NodeId, address: String, target: SocketAddr) {
        // The members may have changed while a name was looked up, and the other side may have
        // connected.
        if !self.book.contains(node) || self.has_dialed(node) {
            return;
        }
        if self.book.is_linked(node) {
            self.book.ended(node, self.now_nanos);
            return;
        }
        let (connection, transport) = match &self.tls {
            None => (ring.connect_framed(target, MESSAGE_BYTES), Transport::Plain),
            Some(tls) => (ring.connect(target), Transport::Tls(Box::new(tls.connect(node)))),
        };
        match connection {
            Ok(connection) => {
                let (phase, now) = (Phase::Connecting, self.now_nanos);
                let link = Link::new(connection, transport, phase, Some(node), address, now);
                self.links.push(link);
            }
            Err(error) => self.unreachable(node, address, error.to_string()),
        }
    }

    /// There will be no `Closed` to try again at.
    fn unreachable(&mut self, node: NodeId, address: String, text: String) {
        self.book.ended(node, self.now_nanos);
        let fault = Fault::Unreachable(text);
        self.tell(PeerNotice { node: Some(node), address, fault });
    }

    /// Tells a fault, unless it was told already or may pass by itself.
    pub(super) fn tell(&mut self, notice: PeerNotice) {
        let node = notice.node.unwrap_or(NodeId(0));
        let is_brief = !self.book.is_tried_long(node, self.now_nanos);
        if matches!(notice.fault, Fault::Unreachable(_)) && is_brief {
            return;
        }
        if let Some(notice) = self.notices.once(notice) {
            self.events.push_back(PeerEvent::Notice(notice));
        }
    }
}
