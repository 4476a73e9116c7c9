//! The handshake's course on one connection, without I/O: messages in, messages out.

use super::hello::{self, Decoded, Hello, Role};
use super::{ClusterKey, MESSAGE_BYTES, Message, NONCE_BYTES, Refusal};
use crate::ids::NodeId;

/// What to do after a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this and wait for the next message.
    Reply(Message),
    /// The peer has proven itself. Send `reply` if there is one; from now on everything else may
    /// travel.
    Established {
        /// Who it is.
        peer: Hello,
        /// To be sent before anything else.
        reply: Option<Message>,
    },
    /// Send this and close.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The refusal as the other side gets it.
        reply: Message,
    },
    /// The other side does not want this node. Close.
    RefusedByPeer(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    HelloDue,
    ProofDue,
    Ended,
}

/// See the module. Made once per connection.
#[derive(Debug)]
pub struct Handshake {
    role: Role,
    own: Hello,
    key: ClusterKey,
    /// Whom the initiator wants to reach.
    expected: Option<NodeId>,
    own_message: Message,
    peer_message: Message,
    peer: Option<Hello>,
    state: State,
}

impl Handshake {
    /// Begins as the side that connects, to reach node `expected`. Returns the first message.
    #[must_use]
    pub fn initiator(
        own: Hello,
        expected: NodeId,
        key: ClusterKey,
        nonce: &[u8; NONCE_BYTES],
    ) -> (Self, Message) {
        assert!(own.node != expected, "nobody connects to itself: {expected}");
        let made = Self::new(Role::Initiator, own, Some(expected), key, nonce);
        let message = made.own_message;
        (made, message)
    }

    /// Begins as the side that was connected to. The other one speaks first.
    #[must_use]
    pub fn responder(own: Hello, key: ClusterKey, nonce: &[u8; NONCE_BYTES]) -> Self {
        Self::new(Role::Responder, own, None, key, nonce)
    }

    fn new(
        role: Role,
        own: Hello,
        expected: Option<NodeId>,
        key: ClusterKey,
        nonce: &[u8; NONCE_BYTES],
    ) -> Self {
        assert!(own.node != NodeId(0), "a node has a number");
        Self {
            role,
            own,
            key,
            expected,
            own_message: hello::hello_encode(role, &own, nonce),
            peer_message: [0; MESSAGE_BYTES],
            peer: None,
            state: State::HelloDue,
        }
    }

    /// What the peer claims to be, once it has said so. Proven only when the handshake stands.
    #[must_use]
    pub fn claimed(&self) -> Option<&Hello> {
        self.peer.as_ref()
    }

    /// Whom an initiator wants to reach.
    #[must_use]
    pub fn expected(&self) -> Option<NodeId> {
        self.expected
    }

    /// Takes the next message. `admit` is asked about the peer's hello once everything else about
    /// it is right: it knows the members.
    ///
    /// # Panics
    /// If the handshake has ended already.
    pub fn receive(
        &mut self,
        message: &Message,
        admit: &mut dyn FnMut(&Hello) -> Result<(), Refusal>,
    ) -> Step {
        assert!(self.state != State::Ended, "a handshake ends once");
        match self.receive_checked(message, admit) {
            Ok(step) => step,
            Err(refusal) => {
                self.state = State::Ended;
                let reply = hello::refusal_encode(self.role, &refusal);
                Step::Refused { refusal, reply }
            }
        }
    }

    fn receive_checked(
        &mut self,
        message: &Message,
        admit: &mut dyn FnMut(&Hello) -> Result<(), Refusal>,
    ) -> Result<Step, Refusal> {
        match (hello::decode(message)?, self.state) {
            (Decoded::Refusal(refusal), _) => {
                self.state = State::Ended;
                Ok(Step::RefusedByPeer(refusal))
            }
            // A message of the own role is one that was sent back.
            (Decoded::Hello(role, _) | Decoded::Proof(role, _), _) if role == self.role => {
                Err(Refusal::Order)
            }
            (Decoded::Hello(_, peer), State::HelloDue) => {
                // Known from here on, so that a refusal can name whom it is about.
                self.peer = Some(peer);
                self.hello_check(&peer)?;
                admit(&peer)?;
                self.peer_message = *message;
                self.state = State::ProofDue;
                Ok(Step::Reply(match self.role {
                    Role::Initiator => self.proof(),
                    Role::Responder => self.own_message,
                }))
            }
            (Decoded::Proof(role, code), State::ProofDue) => {
                let (first, second) = self.hellos();
                if !self.key.proves(role, first, second, &code) {
                    return Err(Refusal::Key);
                }
                self.state = State::Ended;
                let peer = self.peer.expect("a proof is due after the hello");
                let reply = (self.role == Role::Responder).then(|| self.proof());
                Ok(Step::Established { peer, reply })
            }
            _ => Err(Refusal::Order),
        }
    }

    fn hello_check(&self, peer: &Hello) -> Result<(), Refusal> {
        let own = &self.own;
        if peer.cluster != own.cluster {
            return Err(Refusal::Cluster { refuser: own.cluster, refused: peer.cluster });
        }
        if peer.limits != own.limits {
            return Err(Refusal::Limits { refuser: own.limits, refused: peer.limits });
        }
        if peer.format != own.format {
            return Err(Refusal::Format { refuser: own.format, refused: peer.format });
        }
        if peer.node == own.node {
            return Err(Refusal::NodeTwice { node: peer.node });
        }
        if peer.node == NodeId(0) {
            return Err(Refusal::NodeUnknown { node: peer.node });
        }
        match self.expected {
            Some(expected) if expected != peer.node => {
                Err(Refusal::NodeOther { expected, found: peer.node })
            }
            _ => Ok(()),
        }
    }

    /// Both hellos, the initiator's first.
    fn hellos(&self) -> (&Message, &Message) {
        match self.role {
            Role::Initiator => (&self.own_message, &self.peer_message),
            Role::Responder => (&self.peer_message, &self.own_message),
        }
    }

    fn proof(&self) -> Message {
        let (first, second) = self.hellos();
        hello::proof_encode(self.role, &self.key.proof(self.role, first, second))
    }
}

/// Feeds arbitrary messages to both sides: must neither panic nor let anybody in. The first byte
/// picks the side, the rest is cut into messages.
pub fn fuzz_handshake(data: &[u8]) {
    let Some((side, data)) = data.split_first() else { return };
    let secret: Vec<u8> = (0..64).collect();
    let key = ClusterKey::new(&secret).expect("64 bytes");
    let own = hello::Hello {
        cluster: crate::ids::ClusterId(1),
        limits: 2,
        format: hello::LogFormat { block_bytes: 512, batch_bytes_max: 1 << 20, partitions: 4 },
        node: NodeId(2),
        boot: 1,
        instance: 1,
        is_founded: false,
    };
    let nonce = [9; NONCE_BYTES];
    let mut handshake = match side % 2 {
        0 => Handshake::responder(own, key, &nonce),
        _ => Handshake::initiator(own, NodeId(3), key, &nonce).0,
    };
    for chunk in data.chunks(MESSAGE_BYTES) {
        let mut message = [0; MESSAGE_BYTES];
        message[..chunk.len()].copy_from_slice(chunk);
        match handshake.receive(&message, &mut |_| Ok(())) {
            Step::Reply(reply) => assert!(hello::decode(&reply).is_ok()),
            Step::Refused { refusal, reply } => {
                assert_eq!(hello::decode(&reply), Ok(Decoded::Refusal(refusal)));
                return;
            }
            Step::RefusedByPeer(_) => return,
            Step::Established { .. } => panic!("somebody without the key was let in"),
        }
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
