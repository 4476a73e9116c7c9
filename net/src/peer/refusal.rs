//! Why a node does not talk to another one.

use super::Message;
use super::hello::{LogFormat, PEER_PROTOCOL_VERSION};
use crate::ids::{ClusterId, NodeId};

/// The reason that a handshake ended for. The text fits both sides: the *refuser* found the
/// fault, the *refused* one is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no message of this protocol, or were damaged.
    #[error(
        "what arrived is no message between nodes: check that the address in cluster.nodes is \
         the peer's cluster.listen_peers and not its node.listen"
    )]
    Protocol,
    /// One side speaks TLS and the other does not.
    #[error("one side speaks TLS and the other does not: set cluster.tls on all nodes or on none")]
    Tls,
    /// Another version of the protocol.
    #[error(
        "peer protocol version {refused} against {refuser}: install the same release on both \
         nodes"
    )]
    Version {
        /// The refuser's.
        refuser: u16,
        /// The other's.
        refused: u16,
    },
    /// Another cluster.
    #[error(
        "cluster {:032x} against {:032x}: the address belongs to a node of another cluster, or \
         one of the two was formatted with another cluster.id; correct the address, or format \
         that node again",
        refused.0, refuser.0
    )]
    Cluster {
        /// The refuser's.
        refuser: ClusterId,
        /// The other's.
        refused: ClusterId,
    },
    /// Another set of limits.
    #[error(
        "limits fingerprint {refused:016x} against {refuser:016x}: the builds differ in their \
         limits; install the same release on both nodes"
    )]
    Limits {
        /// The refuser's.
        refuser: u64,
        /// The other's.
        refused: u64,
    },
    /// Another log format.
    #[error(
        "log blocks of {} bytes, batches of {}, {} partitions against {}, {}, {}: the node that \
         differs must be formatted again with the node.partitions of the others, on a disk with \
         their block size",
        refused.block_bytes, refused.batch_bytes_max, refused.partitions,
        refuser.block_bytes, refuser.batch_bytes_max, refuser.partitions
    )]
    Format {
        /// The refuser's.
        refuser: LogFormat,
        /// The other's.
        refused: LogFormat,
    },
    /// The node is no member: it was replaced, or no log names members yet and the configuration
    /// does not have it.
    #[error(
        "node {node} is no member of the cluster: take it in with `spillway admin replace-node`, \
         or correct its node.id, or the cluster.nodes of all"
    )]
    NodeUnknown {
        /// The stranger.
        node: NodeId,
    },
    /// Two processes have one number: the connecting one has the number of the refuser, or of
    /// another process that was seen since.
    #[error(
        "node id {node} is used twice: two processes claim it, or one was started on an old copy \
         of its disk; stop one of them and give it an id that no node ever had"
    )]
    NodeTwice {
        /// The number.
        node: NodeId,
    },
    /// The address leads to another node.
    #[error(
        "the address of node {expected} leads to node {found}: correct the addresses in \
         cluster.nodes"
    )]
    NodeOther {
        /// Wanted by the refuser.
        expected: NodeId,
        /// The one that answered.
        found: NodeId,
    },
    /// The proof does not fit the key.
    #[error(
        "the cluster keys differ: copy one cluster.key_file to all nodes (compare them with \
         `sha256sum`)"
    )]
    Key,
    /// The certificate is for another node.
    #[error(
        "the certificate is not for node {node}: it must name node-{node}.spillway as a subject \
         alternative name"
    )]
    Certificate {
        /// The node that the hello names.
        node: NodeId,
    },
    /// A message that is not due now.
    #[error("a message of the handshake came out of turn: install the same release on both nodes")]
    Order,
    /// A reason of a later release.
    #[error("reason {0}, which this release does not know: see the log of the other node")]
    Other(u16),
}

impl Refusal {
    /// What strange first bytes most likely are.
    pub(super) fn of_strange_bytes(message: &Message) -> Refusal {
        // A TLS record: handshake or alert, major version 3.
        if matches!(message[0], 0x15 | 0x16) && message[1] == 3 {
            return Refusal::Tls;
        }
        Refusal::Protocol
    }

    /// Names the kind of fault, whatever the values: what is told once is told by this.
    #[must_use]
    pub fn reason(&self) -> u16 {
        self.to_wire().0
    }

    pub(super) fn to_wire(self) -> (u16, u128, u128) {
        match self {
            Refusal::Protocol => (1, 0, 0),
            Refusal::Version { refuser, refused } => (2, refuser.into(), refused.into()),
            Refusal::Cluster { refuser, refused } => (3, refuser.0, refused.0),
            Refusal::Limits { refuser, refused } => (4, refuser.into(), refused.into()),
            Refusal::Format { refuser, refused } => {
                (5, format_to_wire(refuser), format_to_wire(refused))
            }
            Refusal::NodeUnknown { node } => (6, 0, node.0.into()),
            Refusal::NodeTwice { node } => (7, 0, node.0.into()),
            Refusal::NodeOther { expected, found } => (8, expected.0.into(), found.0.into()),
            Refusal::Key => (10, 0, 0),
            Refusal::Certificate { node } => (11, 0, node.0.into()),
            Refusal::Order => (12, 0, 0),
            Refusal::Tls => (13, 0, 0),
            Refusal::Other(reason) => (reason, 0, 0),
        }
    }

    /// Values beyond a field's range are cut: the text is for people.
    pub(super) fn from_wire(reason: u16, refuser: u128, refused: u128) -> Refusal {
        let (refuser_node, refused_node) = (NodeId(refuser as u16), NodeId(refused as u16));
        match reason {
            1 => Refusal::Protocol,
            2 => Refusal::Version { refuser: refuser as u16, refused: refused as u16 },
            3 => Refusal::Cluster { refuser: ClusterId(refuser), refused: ClusterId(refused) },
            4 => Refusal::Limits { refuser: refuser as u64, refused: refused as u64 },
            5 => Refusal::Format {
                refuser: format_from_wire(refuser),
                refused: format_from_wire(refused),
            },
            6 => Refusal::NodeUnknown { node: refused_node },
            7 => Refusal::NodeTwice { node: refused_node },
            8 => Refusal::NodeOther { expected: refuser_node, found: refused_node },
            10 => Refusal::Key,
            11 => Refusal::Certificate { node: refused_node },
            12 => Refusal::Order,
            13 => Refusal::Tls,
            reason => Refusal::Other(reason),
        }
    }
}

fn format_to_wire(format: LogFormat) -> u128 {
    u128::from(format.block_bytes)
        | u128::from(format.batch_bytes_max) << 32
        | u128::from(format.partitions) << 64
}

fn format_from_wire(value: u128) -> LogFormat {
    LogFormat {
        block_bytes: value as u32,
        batch_bytes_max: (value >> 32) as u32,
        partitions: (value >> 64) as u16,
    }
}

const _: () = assert!(PEER_PROTOCOL_VERSION > 0);

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn all() -> Vec<Refusal> {
        let format =
            |block_bytes| LogFormat { block_bytes, batch_bytes_max: 1 << 20, partitions: 256 };
        let node = NodeId(3);
        vec![
            Refusal::Protocol,
            Refusal::Tls,
            Refusal::Version { refuser: 1, refused: 2 },
            Refusal::Cluster { refuser: ClusterId(u128::MAX), refused: ClusterId(7) },
            Refusal::Limits { refuser: u64::MAX, refused: 4 },
            Refusal::Format { refuser: format(512), refused: format(4096) },
            Refusal::NodeUnknown { node },
            Refusal::NodeTwice { node },
            Refusal::NodeOther { expected: node, found: NodeId(65_535) },
            Refusal::Key,
            Refusal::Certificate { node },
            Refusal::Order,
            Refusal::Other(999),
        ]
    }

    #[test]
    fn every_refusal_travels_and_says_what_to_do() {
        let mut reasons = Vec::new();
        for refusal in all() {
            let (reason, refuser, refused) = refusal.to_wire();
            assert_eq!(Refusal::from_wire(reason, refuser, refused), refusal);
            assert!(!reasons.contains(&reason), "{refusal:?}");
            reasons.push(reason);
            let text = refusal.to_string();
            assert!(text.contains(':') || text.contains("install"), "no way out: {text}");
            assert!(text.is_ascii() && text.len() < 400, "{text}");
        }
    }

    #[test]
    fn tls_is_told_from_noise() {
        let mut message = [0; 128];
        assert_eq!(Refusal::of_strange_bytes(&message), Refusal::Protocol);
        message[..2].copy_from_slice(&[0x16, 3]);
        assert_eq!(Refusal::of_strange_bytes(&message), Refusal::Tls);
    }
}
