//! The messages of the handshake as bytes.
//!
//! ```text
//! offset size field          all messages, little-endian
//!      0    4 magic          "SPLH"
//!      4    2 version        PEER_PROTOCOL_VERSION; magic, version and kind never move
//!      6    1 kind           1 hello, 2 proof, 3 refusal
//!      7    1 role           1 initiator, 2 responder
//!    120    8 checksum       XXH3-64 of bytes 0..120
//!
//! offset size field          hello
//!      8   16 cluster
//!     24    8 limits         fingerprint of net/src/limits.rs
//!     32    4 block          log block, bytes
//!     36    4 batch          largest batch, bytes
//!     40    2 partitions
//!     42    2 node
//!     44    1 founded        1 if its log names members
//!     45    3 reserved       zero
//!     48    8 boot           how often the node was started
//!     56    8 instance       drawn when the process started; 0 while it repairs its log
//!     64   32 nonce          drawn for this connection
//!     96   24 reserved       zero
//!
//! offset size field          proof
//!      8   32 code           HMAC-SHA256
//!     40   80 reserved       zero
//!
//! offset size field          refusal
//!      8    2 reason
//!     10    6 reserved       zero
//!     16   16 refuser        what the refuser has
//!     32   16 refused        what the refused one has
//!     48   72 reserved       zero
//! ```

use xxhash_rust::xxh3::xxh3_64;

use super::refusal::Refusal;
use super::{MESSAGE_BYTES, Message, NONCE_BYTES};
use crate::ids::{ClusterId, NodeId};

/// Version of what nodes say to each other.
pub const PEER_PROTOCOL_VERSION: u16 = 2;

const MAGIC: u32 = u32::from_le_bytes(*b"SPLH");
const CHECKSUM_AT: usize = MESSAGE_BYTES - 8;
/// Bytes of a proof.
pub(super) const CODE_BYTES: usize = 32;

const KIND_HELLO: u8 = 1;
const KIND_PROOF: u8 = 2;
const KIND_REFUSAL: u8 = 3;

/// Who began the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Connected.
    Initiator = 1,
    /// Was connected to.
    Responder = 2,
}

impl Role {
    /// The other side's.
    #[must_use]
    pub fn other(self) -> Role {
        match self {
            Role::Initiator => Role::Responder,
            Role::Responder => Role::Initiator,
        }
    }
}

/// What log frames look like: must be the same on both sides, since frames travel as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFormat {
    /// Bytes of a log block.
    pub block_bytes: u32,
    /// Bytes of the largest batch.
    pub batch_bytes_max: u32,
    /// Partitions of the cluster.
    pub partitions: u16,
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its limits: [`crate::limits::fingerprint`].
    pub limits: u64,
    /// Its log.
    pub format: LogFormat,
    /// Its number.
    pub node: NodeId,
    /// How often it was started. Rises with every start, so that two processes that claim one
    /// number can be told apart.
    pub boot: u64,
    /// Drawn when its process started, or [`Self::INSTANCE_REPAIRING`].
    pub instance: u64,
    /// Whether its log names members of the cluster. Before that only its configuration does.
    pub is_founded: bool,
}

impl Hello {
    /// Instance of a process that takes no part yet because it repairs its log from the others.
    /// Its boot is that of the last start that took part.
    pub const INSTANCE_REPAIRING: u64 = 0;

    /// Whether the process only repairs its log.
    #[must_use]
    pub fn is_repairing(&self) -> bool {
        self.instance == Self::INSTANCE_REPAIRING
    }
}

/// A message that is whole and of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Hello(Role, Hello),
    Proof(Role, [u8; CODE_BYTES]),
    Refusal(Refusal),
}

pub(super) fn hello_encode(role: Role, hello: &Hello, nonce: &[u8; NONCE_BYTES]) -> Message {
    let mut message = begin(KIND_HELLO, role);
    message[8..24].copy_from_slice(&hello.cluster.0.to_le_bytes());
    message[24..32].copy_from_slice(&hello.limits.to_le_bytes());
    message[32..36].copy_from_slice(&hello.format.block_bytes.to_le_bytes());
    message[36..40].copy_from_slice(&hello.format.batch_bytes_max.to_le_bytes());
    message[40..42].copy_from_slice(&hello.format.partitions.to_le_bytes());
    message[42..44].copy_from_slice(&hello.node.0.to_le_bytes());
    message[44] = u8::from(hello.is_founded);
    message[48..56].copy_from_slice(&hello.boot.to_le_bytes());
    message[56..64].copy_from_slice(&hello.instance.to_le_bytes());
    message[64..96].copy_from_slice(nonce);
    finish(message)
}

pub(super) fn proof_encode(role: Role, code: &[u8; CODE_BYTES]) -> Message {
    let mut message = begin(KIND_PROOF, role);
    message[8..40].copy_from_slice(code);
    finish(message)
}

pub(super) fn refusal_encode(role: Role, refusal: &Refusal) -> Message {
    let (reason, refuser, refused) = refusal.to_wire();
    let mut message = begin(KIND_REFUSAL, role);
    message[8..10].copy_from_slice(&reason.to_le_bytes());
    message[16..32].copy_from_slice(&refuser.to_le_bytes());
    message[32..48].copy_from_slice(&refused.to_le_bytes());
    finish(message)
}

fn begin(kind: u8, role: Role) -> Message {
    let mut message = [0; MESSAGE_BYTES];
    message[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    message[4..6].copy_from_slice(&PEER_PROTOCOL_VERSION.to_le_bytes());
    message[6] = kind;
    message[7] = role as u8;
    message
}

fn finish(mut message: Message) -> Message {
    let checksum = xxh3_64(&message[..CHECKSUM_AT]);
    message[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    message
}

fn array_at<const N: usize>(message: &Message, at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&message[at..at + N]);
    out
}

/// Reads a message. The error is the refusal to answer with.
pub(super) fn decode(message: &Message) -> Result<Decoded, Refusal> {
    if u32::from_le_bytes(array_at(message, 0)) != MAGIC {
        return Err(Refusal::of_strange_bytes(message));
    }
    let version = u16::from_le_bytes(array_at(message, 4));
    if version != PEER_PROTOCOL_VERSION {
        if message[6] == KIND_REFUSAL {
            // Not answered: the other side knows already.
            let refusal = Refusal::Version { refuser: version, refused: PEER_PROTOCOL_VERSION };
            return Ok(Decoded::Refusal(refusal));
        }
        return Err(Refusal::Version { refuser: PEER_PROTOCOL_VERSION, refused: version });
    }
    let checksum = u64::from_le_bytes(array_at(message, CHECKSUM_AT));
    if xxh3_64(&message[..CHECKSUM_AT]) != checksum {
        return Err(Refusal::Protocol);
    }
    let role = match message[7] {
        1 => Role::Initiator,
        2 => Role::Responder,
        _ => return Err(Refusal::Protocol),
    };
    let is_zero = |from: usize, to: usize| message[from..to].iter().all(|byte| *byte == 0);
    match message[6] {
        KIND_HELLO if message[44] <= 1 && is_zero(45, 48) && is_zero(96, CHECKSUM_AT) => {
            Ok(Decoded::Hello(role, hello_decode(message)))
        }
        KIND_PROOF if is_zero(40, CHECKSUM_AT) => Ok(Decoded::Proof(role, array_at(message, 8))),
        KIND_REFUSAL if is_zero(10, 16) && is_zero(48, CHECKSUM_AT) => {
            let reason = u16::from_le_bytes(array_at(message, 8));
            let refuser = u128::from_le_bytes(array_at(message, 16));
            let refused = u128::from_le_bytes(array_at(message, 32));
            Ok(Decoded::Refusal(Refusal::from_wire(reason, refuser, refused)))
        }
        _ => Err(Refusal::Protocol),
    }
}

fn hello_decode(message: &Message) -> Hello {
    Hello {
        cluster: ClusterId(u128::from_le_bytes(array_at(message, 8))),
        limits: u64::from_le_bytes(array_at(message, 24)),
        format: LogFormat {
            block_bytes: u32::from_le_bytes(array_at(message, 32)),
            batch_bytes_max: u32::from_le_bytes(array_at(message, 36)),
            partitions: u16::from_le_bytes(array_at(message, 40)),
        },
        node: NodeId(u16::from_le_bytes(array_at(message, 42))),
        boot: u64::from_le_bytes(array_at(message, 48)),
        instance: u64::from_le_bytes(array_at(message, 56)),
        is_founded: message[44] == 1,
    }
}
