//! The header of every message between nodes: 128 bytes of fixed layout, little-endian.
//!
//! ```text
//! 0 magic  4 version  6 kind  8 from  10 to  12 body bytes  16 cluster  32 term  40 applied
//! 48 five fields of the kind  88 flags  96 committed  104 time  112 zeros
//! 120 XXH3-64 of all before
//! ```
//!
//! A header that announces a body is followed by exactly that many bytes: an entry as it stands on
//! the disks, without the local header. [`PeerHeader::decode`] is fed bytes from the network: it
//! checks everything before it believes anything, and never panics.

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, WallMicros};
use spillway_net::limits::NODE_ID_MAX;
use xxhash_rust::xxh3::xxh3_64;

use crate::log::Geometry;

/// Bytes of an encoded header.
pub const PEER_HEADER_BYTES: usize = 128;
/// First bytes of a header: "SPPM".
const MAGIC: u32 = u32::from_le_bytes(*b"SPPM");
const VERSION: u16 = 1;
const CHECKSUM_AT: usize = 120;
const FIELDS_AT: usize = 48;
const FLAGS_AT: usize = 88;
const COMMITTED_AT: usize = 96;
const TIME_AT: usize = 104;
const ZEROS_AT: usize = 112;
/// No counter comes near this.
const COUNTER_LIMIT: u64 = 1 << 62;

const FLAG_REJECT: u64 = 1;
const FLAG_PRE: u64 = 2;
const FLAG_FORCED: u64 = 4;
const FLAG_FOUND: u64 = 8;

/// A message to or from another node, without the entry that may follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHeader {
    /// Cluster of both.
    pub cluster: ClusterId,
    /// Who sends it.
    pub from: NodeId,
    /// Whom it is for.
    pub to: NodeId,
    /// The sender's term; of a pre-vote, the term that it would campaign in.
    pub term: Epoch,
    /// Up to this index the sender has applied everything.
    pub applied: Lsn,
    /// Up to this index the sender knows everything to be committed, whether or not the receiver
    /// has it.
    pub committed: Lsn,
    /// Of a leader: the newest time, by its wall clock, at which it is proven that nobody else led;
    /// 0: none. A node that has applied `committed` is as fresh as this.
    pub time: WallMicros,
    /// Bytes that follow the header: 0, or an entry's body in whole blocks.
    pub body_bytes: u32,
    /// What it says.
    pub message: PeerMessage,
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// From the leader: an entry, or only how far the log is committed.
    Append {
        /// Index before the entry.
        previous: Lsn,
        /// Term of that index.
        previous_term: Epoch,
        /// The leader's committed index.
        commit: Lsn,
        /// Term in which the entry that follows was proposed; `None` without an entry.
        entry_term: Option<Epoch>,
        /// Up to here the receiver has acknowledged in this term: it must have it.
        matched: Lsn,
    },
    /// Everything up to `index` is durable here, or does not fit.
    AppendReply {
        /// Last index that equals the leader's; of a rejection, the index that did not fit.
        index: Lsn,
        /// Committed index here.
        commit: Lsn,
        /// The append did not fit; try from here.
        reject: Option<AppendReject>,
    },
    /// Asks for a vote, or whether one would be given.
    Vote {
        /// Only asks; no term changes.
        pre: bool,
        /// The leader itself asked for this election: a live lease does not count.
        forced: bool,
        /// Last index of the candidate.
        last: Lsn,
        /// Its term.
        last_term: Epoch,
        /// Committed index of the candidate.
        commit: Lsn,
        /// Its term.
        commit_term: Epoch,
    },
    /// A vote given or refused.
    VoteReply {
        /// Answer to a question only.
        pre: bool,
        /// Refused.
        reject: bool,
        /// Committed index of the voter, told with a refusal.
        commit: Lsn,
        /// Its term.
        commit_term: Epoch,
    },
    /// The leader is alive.
    Heartbeat {
        /// Committed, as far as the receiver is known to have it.
        commit: Lsn,
        /// Up to here the receiver has acknowledged in this term: it must have it.
        matched: Lsn,
    },
    /// Answer to a heartbeat; leaves when the receiver's log is durable up to here.
    HeartbeatReply {
        /// Committed index here.
        commit: Lsn,
    },
    /// The leader hands over: campaign now.
    TimeoutNow,
    /// Is the term still the sender's?
    Confirm {
        /// Number of the leader's round.
        round: u64,
    },
    /// Yes, the receiver has not moved on.
    ConfirmReply {
        /// Number of the round.
        round: u64,
    },
    /// A node that repairs its log asks for an entry.
    Fetch {
        /// Index.
        lsn: Lsn,
    },
    /// Answer to [`Self::Fetch`], with the entry behind the header if `found`.
    FetchReply {
        /// Index that was asked for.
        lsn: Lsn,
        /// The entry follows.
        found: bool,
        /// Last index of the answering node.
        last: Lsn,
        /// Committed index of the answering node.
        commit: Lsn,
        /// The leader that it knows in its term; 0 for none.
        leader: NodeId,
    },
}

/// Where an append that did not fit should be tried next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendReject {
    /// Index that may fit.
    pub hint: Lsn,
    /// Its term on the sender.
    pub hint_term: Epoch,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerHeaderFault {
    /// Too few bytes.
    #[error("{0} bytes where a peer header has {PEER_HEADER_BYTES}")]
    Length(usize),
    /// The magic number is missing.
    #[error("no peer header")]
    Magic,
    /// The version is not known to this build.
    #[error("peer protocol version {0} is not known to this build: install one build on all nodes")]
    Version(u16),
    /// The header does not fit its checksum.
    #[error("peer header checksum mismatch")]
    Checksum,
    /// A field is outside its range although the checksum fits.
    #[error("peer header field out of range: {0}")]
    Field(&'static str),
}

fn put(bytes: &mut [u8; PEER_HEADER_BYTES], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn get<const N: usize>(bytes: &[u8; PEER_HEADER_BYTES], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("all offsets lie within the header")
}

/// Fields and flags of a message in their places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Packed {
    kind: u16,
    fields: [u64; 5],
    flags: u64,
}

impl Packed {
    fn new(kind: u16, fields: [u64; 5], flags: &[(bool, u64)]) -> Self {
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, bit)| all | bit);
        Self { kind, fields, flags }
    }
}

fn require(holds: bool, field: &'static str) -> Result<(), PeerHeaderFault> {
    if holds { Ok(()) } else { Err(PeerHeaderFault::Field(field)) }
}

impl PeerMessage {
    /// True when a body follows.
    pub fn has_body(&self) -> bool {
        matches!(
            self,
            Self::Append { entry_term: Some(_), .. } | Self::FetchReply { found: true, .. }
        )
    }

    fn pack(&self) -> Packed {
        match *self {
            Self::Append { previous, previous_term, commit, entry_term, matched } => {
                let entry = entry_term.map_or(0, |term| term.0);
                let fields = [previous.0, previous_term.0, commit.0, entry, matched.0];
                Packed::new(1, fields, &[])
            }
            Self::AppendReply { index, commit, reject } => {
                let (hint, term) = reject.map_or((0, 0), |r| (r.hint.0, r.hint_term.0));
                let flags = [(reject.is_some(), FLAG_REJECT)];
                Packed::new(2, [index.0, commit.0, hint, term, 0], &flags)
            }
            Self::Vote { pre, forced, last, last_term, commit, commit_term } => {
                let fields = [last.0, last_term.0, commit.0, commit_term.0, 0];
                Packed::new(3, fields, &[(pre, FLAG_PRE), (forced, FLAG_FORCED)])
            }
            Self::VoteReply { pre, reject, commit, commit_term } => {
                let flags = [(pre, FLAG_PRE), (reject, FLAG_REJECT)];
                Packed::new(4, [commit.0, commit_term.0, 0, 0, 0], &flags)
            }
            Self::Heartbeat { commit, matched } => {
                Packed::new(5, [commit.0, matched.0, 0, 0, 0], &[])
            }
            Self::HeartbeatReply { commit } => Packed::new(6, [commit.0, 0, 0, 0, 0], &[]),
            Self::TimeoutNow => Packed::new(7, [0; 5], &[]),
            Self::Confirm { round } => Packed::new(8, [round, 0, 0, 0, 0], &[]),
            Self::ConfirmReply { round } => Packed::new(9, [round, 0, 0, 0, 0], &[]),
            Self::Fetch { lsn } => Packed::new(10, [lsn.0, 0, 0, 0, 0], &[]),
            Self::FetchReply { lsn, found, last, commit, leader } => {
                let fields = [lsn.0, last.0, commit.0, u64::from(leader.0), 0];
                Packed::new(11, fields, &[(found, FLAG_FOUND)])
            }
        }
    }

    fn unpack(packed: &Packed) -> Result<Self, PeerHeaderFault> {
        let [a, b, c, d, e] = packed.fields;
        let flag = |bit: u64| packed.flags & bit != 0;
        let message = match packed.kind {
            1 => Self::Append {
                previous: Lsn(a),
                previous_term: Epoch(b),
                commit: Lsn(c),
                entry_term: (d > 0).then_some(Epoch(d)),
                matched: Lsn(e),
            },
            2 => Self::AppendReply {
                index: Lsn(a),
                commit: Lsn(b),
                reject: flag(FLAG_REJECT)
                    .then_some(AppendReject { hint: Lsn(c), hint_term: Epoch(d) }),
            },
            3 => Self::Vote {
                pre: flag(FLAG_PRE),
                forced: flag(FLAG_FORCED),
                last: Lsn(a),
                last_term: Epoch(b),
                commit: Lsn(c),
                commit_term: Epoch(d),
            },
            4 => Self::VoteReply {
                pre: flag(FLAG_PRE),
                reject: flag(FLAG_REJECT),
                commit: Lsn(a),
                commit_term: Epoch(b),
            },
            5 => Self::Heartbeat { commit: Lsn(a), matched: Lsn(b) },
            6 => Self::HeartbeatReply { commit: Lsn(a) },
            7 => Self::TimeoutNow,
            8 => Self::Confirm { round: a },
            9 => Self::ConfirmReply { round: a },
            10 => Self::Fetch { lsn: Lsn(a) },
            11 => Self::FetchReply {
                lsn: Lsn(a),
                found: flag(FLAG_FOUND),
                last: Lsn(b),
                commit: Lsn(c),
                leader: NodeId(u16::try_from(d).map_err(|_| PeerHeaderFault::Field("leader"))?),
            },
            _ => return Err(PeerHeaderFault::Field("kind")),
        };
        // What does not come back as it was has a bit set where none belongs.
        require(message.pack() == *packed, "unused fields")?;
        Ok(message)
    }

    /// Relations between the fields, without which the state machine behind would stop.
    fn check(&self, term: Epoch) -> Result<(), PeerHeaderFault> {
        match *self {
            Self::Append { previous_term, entry_term, .. } => {
                require(previous_term <= term, "previous term")?;
                let order = |entry: Epoch| entry >= previous_term && entry <= term;
                require(entry_term.is_none_or(order), "entry term")
            }
            Self::AppendReply { index, reject, .. } => {
                require(reject.is_none_or(|r| r.hint <= index), "reject hint")
            }
            Self::Vote { pre, forced, last_term, commit, last, .. } => {
                require(!(pre && forced), "pre-vote by order")?;
                require(last_term <= term && commit <= last, "candidate's log")
            }
            Self::Fetch { lsn } | Self::FetchReply { lsn, .. } => require(lsn.0 > 0, "index"),
            _ => Ok(()),
        }
    }
}

impl PeerHeader {
    /// The header as it is sent.
    ///
    /// # Panics
    /// When the message and the number of body bytes contradict each other.
    pub fn encode(&self) -> [u8; PEER_HEADER_BYTES] {
        assert_eq!(self.message.has_body(), self.body_bytes > 0, "an entry follows, or none");
        assert!(self.from != self.to, "no node sends to itself");
        let packed = self.message.pack();
        let mut bytes = [0; PEER_HEADER_BYTES];
        put(&mut bytes, 0, &MAGIC.to_le_bytes());
        put(&mut bytes, 4, &VERSION.to_le_bytes());
        put(&mut bytes, 6, &packed.kind.to_le_bytes());
        put(&mut bytes, 8, &self.from.0.to_le_bytes());
        put(&mut bytes, 10, &self.to.0.to_le_bytes());
        put(&mut bytes, 12, &self.body_bytes.to_le_bytes());
        put(&mut bytes, 16, &self.cluster.0.to_le_bytes());
        put(&mut bytes, 32, &self.term.0.to_le_bytes());
        put(&mut bytes, 40, &self.applied.0.to_le_bytes());
        for (index, field) in packed.fields.iter().enumerate() {
            put(&mut bytes, FIELDS_AT + index * 8, &field.to_le_bytes());
        }
        put(&mut bytes, FLAGS_AT, &packed.flags.to_le_bytes());
        put(&mut bytes, COMMITTED_AT, &self.committed.0.to_le_bytes());
        put(&mut bytes, TIME_AT, &self.time.0.to_le_bytes());
        let checksum = xxh3_64(&bytes[..CHECKSUM_AT]);
        put(&mut bytes, CHECKSUM_AT, &checksum.to_le_bytes());
        bytes
    }

    /// Reads a header that came from the network. `geometry` bounds the body.
    ///
    /// # Errors
    /// Says what is wrong first. The connection should be closed: what follows cannot be framed.
    pub fn decode(geometry: &Geometry, bytes: &[u8]) -> Result<Self, PeerHeaderFault> {
        let Some(bytes) = bytes.first_chunk::<PEER_HEADER_BYTES>() else {
            return Err(PeerHeaderFault::Length(bytes.len()));
        };
        let u64_at = |at: usize| u64::from_le_bytes(get(bytes, at));
        if u32::from_le_bytes(get(bytes, 0)) != MAGIC {
            return Err(PeerHeaderFault::Magic);
        }
        let version = u16::from_le_bytes(get(bytes, 4));
        if version != VERSION {
            return Err(PeerHeaderFault::Version(version));
        }
        if u64_at(CHECKSUM_AT) != xxh3_64(&bytes[..CHECKSUM_AT]) {
            return Err(PeerHeaderFault::Checksum);
        }
        let packed = Packed {
            kind: u16::from_le_bytes(get(bytes, 6)),
            fields: std::array::from_fn(|index| u64_at(FIELDS_AT + index * 8)),
            flags: u64_at(FLAGS_AT),
        };
        let header = Self {
            cluster: ClusterId(u128::from_le_bytes(get(bytes, 16))),
            from: NodeId(u16::from_le_bytes(get(bytes, 8))),
            to: NodeId(u16::from_le_bytes(get(bytes, 10))),
            term: Epoch(u64_at(32)),
            applied: Lsn(u64_at(40)),
            committed: Lsn(u64_at(COMMITTED_AT)),
            time: WallMicros(u64_at(TIME_AT)),
            body_bytes: u32::from_le_bytes(get(bytes, 12)),
            message: PeerMessage::unpack(&packed)?,
        };
        require(bytes[ZEROS_AT..CHECKSUM_AT].iter().all(|byte| *byte == 0), "reserved")?;
        require(packed.fields.iter().all(|field| *field < COUNTER_LIMIT), "counter")?;
        header.check(geometry)?;
        Ok(header)
    }

    fn check(&self, geometry: &Geometry) -> Result<(), PeerHeaderFault> {
        let nodes = 1..=NODE_ID_MAX;
        require(nodes.contains(&self.from.0) && nodes.contains(&self.to.0), "node")?;
        require(self.from != self.to, "node")?;
        require(self.term.0 < COUNTER_LIMIT, "term")?;
        require(self.applied.0 < COUNTER_LIMIT, "applied")?;
        require(self.committed.0 < COUNTER_LIMIT, "committed")?;
        let bytes = self.body_bytes;
        let bytes_max = geometry.batch_bytes_max - geometry.block_bytes;
        require(bytes <= bytes_max && bytes.is_multiple_of(geometry.block_bytes), "body size")?;
        require(self.message.has_body() == (bytes > 0), "body size")?;
        // A node that repairs its log may not know any term.
        let termless =
            matches!(self.message, PeerMessage::Fetch { .. } | PeerMessage::FetchReply { .. });
        require(termless || self.term.0 > 0, "term")?;
        self.message.check(self.term)
    }
}

/// Entry point for fuzzing: any bytes decode to an error or to a header that encodes to them.
///
/// # Panics
/// When they do not: a bug.
pub fn fuzz_peer_header(geometry: &Geometry, data: &[u8]) {
    if let Ok(header) = PeerHeader::decode(geometry, data) {
        let bytes = &data[..PEER_HEADER_BYTES];
        assert_eq!(header.encode(), bytes, "a header that decodes encodes to itself");
    }
    // With a valid checksum the checks behind it are reached.
    let mut sealed = [0; PEER_HEADER_BYTES];
    let length = data.len().min(CHECKSUM_AT);
    sealed[..length].copy_from_slice(&data[..length]);
    put(&mut sealed, 0, &MAGIC.to_le_bytes());
    put(&mut sealed, 4, &VERSION.to_le_bytes());
    let checksum = xxh3_64(&sealed[..CHECKSUM_AT]);
    put(&mut sealed, CHECKSUM_AT, &checksum.to_le_bytes());
    if let Ok(header) = PeerHeader::decode(geometry, &sealed) {
        assert_eq!(header.encode(), sealed, "a header that decodes encodes to itself");
    }
}
