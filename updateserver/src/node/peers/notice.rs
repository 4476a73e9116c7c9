//! What an operator is told about the links, and that it is told once.

use std::collections::BTreeSet;
use std::fmt;

use spillway_net::ids::NodeId;
use spillway_net::peer::Refusal;
use spillway_runtime::tcp::CloseReason;

/// Different things told at most, until somebody connects. Strangers can make up node numbers.
const TOLD_MAX: usize = 256;

/// What is wrong with a link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// This node refused the other one.
    #[error("refused by this node: {0}")]
    Refused(Refusal),
    /// The other one refused this node.
    #[error("it refuses this node: {0}")]
    RefusedByPeer(Refusal),
    /// It is let in although this node does not know it.
    #[error(
        "this node's log does not know it yet; if that stays so, take it in with `spillway admin \
         replace-node`, or correct its node.id"
    )]
    Guest,
    /// No connection comes about.
    #[error(
        "not reachable ({0}): is it running, and is its address in cluster.nodes its \
         cluster.listen_peers?"
    )]
    Unreachable(String),
    /// The handshake did not end in time.
    #[error("the handshake took too long: the node or the network between is overloaded")]
    HandshakeSlow,
    /// The connection ended within the handshake.
    #[error(
        "it closed the connection during the handshake without a reason: see its log; is \
         cluster.tls set on both nodes or on neither?"
    )]
    HandshakeCut,
    /// It said what makes no sense.
    #[error("it sent rubbish ({0}), so the connection was closed: install the same release")]
    Rubbish(String),
    /// It was not heard any more.
    #[error("it went silent: its process is stopped, or the network between is cut")]
    Silent,
    /// Certificates.
    #[error("TLS: {0}")]
    Tls(String),
}

impl Fault {
    pub(super) fn unreachable(reason: CloseReason) -> Fault {
        Fault::Unreachable(match reason {
            CloseReason::ConnectFailed(errno) | CloseReason::Failed(errno) => errno.to_string(),
            CloseReason::Local => "given up".to_owned(),
            CloseReason::Peer | CloseReason::Reset => "closed at once".to_owned(),
        })
    }

    /// Faults with the same number are the same to an operator.
    fn number(&self) -> u32 {
        match self {
            Fault::Refused(refusal) => 0x1_0000 | u32::from(refusal.reason()),
            Fault::RefusedByPeer(refusal) => 0x2_0000 | u32::from(refusal.reason()),
            Fault::Unreachable(_) => 1,
            Fault::HandshakeSlow => 2,
            Fault::HandshakeCut => 3,
            Fault::Rubbish(_) => 4,
            Fault::Silent => 5,
            Fault::Tls(_) => 6,
            Fault::Guest => 7,
        }
    }
}

/// A fault and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNotice {
    /// The node it is about: proven only if it had connected. None for a stranger.
    pub node: Option<NodeId>,
    /// Its address.
    pub address: String,
    /// What is wrong.
    pub fault: Fault,
}

impl fmt::Display for PeerNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, address, fault } = self;
        match node {
            Some(node) => write!(f, "node {node} at {address}: {fault}"),
            None => write!(f, "a stranger at {address}: {fault}"),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Notices {
    told: BTreeSet<(NodeId, u32)>,
}

impl Notices {
    /// The notice, if it is new.
    pub fn once(&mut self, notice: PeerNotice) -> Option<PeerNotice> {
        let key = (notice.node.unwrap_or(NodeId(0)), notice.fault.number());
        (self.told.len() < TOLD_MAX && self.told.insert(key)).then_some(notice)
    }

    /// A node has connected: what was told of it is over, and so is what strangers did.
    pub fn connected(&mut self, node: NodeId) {
        self.told.retain(|(told, _)| *told != node);
        if self.told.len() == TOLD_MAX {
            self.told.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(node: u16, fault: Fault) -> PeerNotice {
        PeerNotice { node: Some(NodeId(node)), address: "h:1".to_owned(), fault }
    }

    #[test]
    fn each_fault_of_a_node_is_told_once_until_it_connects() {
        let mut notices = Notices::default();
        let key = || notice(1, Fault::Refused(Refusal::Key));
        assert_eq!(notices.once(key()), Some(key()));
        assert_eq!(notices.once(key()), None);
        assert!(notices.once(notice(2, Fault::Refused(Refusal::Key))).is_some());
        assert!(notices.once(notice(1, Fault::RefusedByPeer(Refusal::Key))).is_some());
        assert!(notices.once(notice(1, Fault::Unreachable("a".to_owned()))).is_some());
        assert!(notices.once(notice(1, Fault::Unreachable("b".to_owned()))).is_none());
        notices.connected(NodeId(1));
        assert!(notices.once(key()).is_some());
        assert!(notices.once(notice(2, Fault::Refused(Refusal::Key))).is_none());
    }

    #[test]
    fn strangers_cannot_fill_the_log() {
        let mut notices = Notices::default();
        let told = (1..=u16::MAX).filter_map(|n| notices.once(notice(n, Fault::Silent))).count();
        assert_eq!(told, TOLD_MAX);
        notices.connected(NodeId(60_000));
        assert!(notices.once(notice(60_001, Fault::Silent)).is_some());
    }

    #[test]
    fn the_text_names_node_address_and_way_out() {
        let text = notice(3, Fault::RefusedByPeer(Refusal::Key)).to_string();
        assert!(text.starts_with("node 3 at h:1: it refuses this node"), "{text}");
        assert!(text.contains("sha256sum"), "{text}");
        let stranger = PeerNotice { node: None, ..notice(1, Fault::HandshakeSlow) };
        assert!(stranger.to_string().starts_with("a stranger at h:1"), "{stranger}");
    }
}
