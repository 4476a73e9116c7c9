//! The superblock: what the node must know before it can read its log.
//!
//! Four copies of one block each, in a file of their own. An update writes two copies, waits until
//! they are durable, and then writes the other two, so that at any moment at least two copies are
//! not being written.

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, WallMicros};
use spillway_net::limits;

use super::bytes::{
    CHECKSUM_OFFSET, COUNTER_LIMIT, get_u16, get_u32, get_u64, get_u128, header_checksum,
    header_seal, is_zero, put_u16, put_u32, put_u64, put_u128,
};
use super::geometry::{BLOCK_BYTES_MIN, Geometry, GeometryError};
use super::members::{MEMBERS_BYTES, Members};
use super::position::{ChainState, Floor, Tail};

/// First bytes of a superblock copy: "SPSB".
pub const SUPERBLOCK_MAGIC: u32 = u32::from_le_bytes(*b"SPSB");
/// Version of the superblock and of the whole log format.
pub const SUPERBLOCK_VERSION: u16 = 2;
/// Copies.
pub const SUPERBLOCK_COPIES: usize = 4;
/// Which copies are written together, round after round.
pub const SUPERBLOCK_ROUNDS: [[usize; 2]; 2] = [[0, 1], [2, 3]];

/// How a write to the log disk becomes durable, chosen at format by what the device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DurableWrite {
    /// `O_DSYNC`: the cache is write-through, or the device knows FUA.
    SyncedWrite = 1,
    /// A write with a linked `fdatasync`.
    WriteThenFlush = 2,
}

/// Contents of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Rises by one with every update; the highest valid copy counts.
    pub sequence: u64,
    /// Cluster, drawn at format.
    pub cluster: ClusterId,
    /// Node within the cluster.
    pub node: NodeId,
    /// Sizes, fixed at format.
    pub geometry: Geometry,
    /// How writes become durable, fixed at format.
    pub durable_write: DurableWrite,
    /// [`limits::fingerprint`] of the build that formatted the node.
    pub fingerprint: u64,
    /// Current term.
    pub term: Epoch,
    /// Whom the node voted for in that term; node 0 is nobody.
    pub vote: NodeId,
    /// Starts of the node; 0 after format.
    pub boot: u64,
    /// Oldest segment that is still needed.
    pub floor: Floor,
    /// Where the current boot began.
    pub tail: Tail,
    /// Up to this frame sequence everything was durable when the superblock was written: a log
    /// that ends earlier has lost something. As new as is cheap; never ahead.
    pub durable_sequence: u64,
    /// The cluster's members as of the floor. At format: those that the cluster begins with, or
    /// none on a node that joins later.
    pub members: Members,
}

/// Why a copy, or the superblock as a whole, cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// The device did not give it.
    #[error(
        "a superblock copy cannot be read (errno {0}), and no other one is whole: check the log \
         disk, then start the node again; if the disk is lost, let the node join anew with \
         `spillway admin replace-node`"
    )]
    Unreadable(i32),
    /// No magic number: never written, overwritten, or a file of something else.
    #[error("not a superblock")]
    Magic,
    /// Written by another version.
    #[error("superblock version {0} is not known to this build: install the build that wrote it")]
    Version(u16),
    /// Damaged.
    #[error("superblock checksum mismatch")]
    Checksum,
    /// A copy stands in another copy's place.
    #[error("superblock copy {found} in the place of copy {expected}: a misdirected write")]
    Misplaced {
        /// Where it was read.
        expected: usize,
        /// What it says.
        found: usize,
    },
    /// A field is outside its range although the checksum fits.
    #[error("superblock field out of range: {0}")]
    Field(&'static str),
    /// The geometry breaks a relation.
    #[error("superblock: {0}")]
    Geometry(#[from] GeometryError),
    /// The limits of this build are not those of the format.
    #[error(
        "this node was formatted with other limits (fingerprint {found:#x}, this build has \
         {expected:#x}): install the build that formatted it, or format the node anew and let it \
         copy from its peers"
    )]
    Fingerprint {
        /// Of this build.
        expected: u64,
        /// Of the format.
        found: u64,
    },
    /// All copies are bad.
    #[error(
        "all {SUPERBLOCK_COPIES} superblock copies are unreadable or damaged: the node cannot \
         know its term, vote and log; it must be formatted anew and rejoin as a new member"
    )]
    AllBad,
    /// Copies disagree about what never changes, or have one sequence and two contents.
    #[error(
        "superblock copies disagree about {0}: the file mixes two nodes or two formats; restore \
         the right file or format the node anew and let it rejoin as a new member"
    )]
    Disagree(&'static str),
}

const AT_CHAIN: usize = 168;
const AT_MEMBERS: usize = AT_CHAIN + 48;
const USED_BYTES: usize = AT_MEMBERS + MEMBERS_BYTES;
const _: () = assert!(USED_BYTES <= BLOCK_BYTES_MIN as usize);

impl Superblock {
    /// Writes copy number `copy` over the whole block.
    pub fn encode(&self, copy: usize, block: &mut [u8]) {
        assert!(copy < SUPERBLOCK_COPIES, "superblock has no copy {copy}");
        assert_eq!(block.len(), self.geometry.block(), "a superblock copy is one block");
        block.fill(0);
        put_u32(block, 0, SUPERBLOCK_MAGIC);
        put_u16(block, 4, SUPERBLOCK_VERSION);
        put_u16(block, 6, copy as u16);
        put_u128(block, 16, self.cluster.0);
        put_u16(block, 32, self.node.0);
        put_u16(block, 34, self.durable_write as u16);
        put_u32(block, 36, self.geometry.block_bytes);
        put_u32(block, 40, self.geometry.segment_bytes);
        put_u32(block, 44, self.geometry.segments_count);
        put_u16(block, 48, self.geometry.partitions);
        put_u16(block, 50, self.vote.0);
        put_u32(block, 52, self.geometry.batch_bytes_max);
        put_u64(block, 56, self.fingerprint);
        put_u64(block, 64, self.sequence);
        put_u64(block, 72, self.term.0);
        put_u64(block, 80, self.boot);
        put_u64(block, 88, self.tail.ordinal);
        put_u64(block, 96, self.tail.offset);
        put_u64(block, 104, self.tail.sequence);
        put_u64(block, 112, self.tail.wipe_end);
        put_u64(block, 120, self.durable_sequence);
        put_u64(block, 160, self.floor.ordinal);
        put_u64(block, AT_CHAIN, self.floor.chain.sequence);
        put_u64(block, AT_CHAIN + 8, self.floor.chain.local);
        put_u64(block, AT_CHAIN + 16, self.floor.chain.lsn.0);
        put_u64(block, AT_CHAIN + 24, self.floor.chain.shared);
        put_u64(block, AT_CHAIN + 32, self.floor.chain.timestamp.0);
        put_u64(block, AT_CHAIN + 40, self.floor.chain.entry_term.0);
        self.members.encode(&mut block[AT_MEMBERS..USED_BYTES]);
        header_seal(block);
    }

    /// Reads the copy that stands at place `copy`. The block may be longer than the superblock's
    /// own block size: the size is only known from within.
    ///
    /// # Errors
    /// Says what is wrong first.
    pub fn decode(copy: usize, bytes: &[u8]) -> Result<Self, SuperblockError> {
        if bytes.len() < BLOCK_BYTES_MIN as usize || get_u32(bytes, 0) != SUPERBLOCK_MAGIC {
            return Err(SuperblockError::Magic);
        }
        let version = get_u16(bytes, 4);
        if version != SUPERBLOCK_VERSION {
            return Err(SuperblockError::Version(version));
        }
        let block_bytes = get_u32(bytes, 36);
        let sane = block_bytes.is_power_of_two() && block_bytes >= BLOCK_BYTES_MIN;
        if !sane || block_bytes as usize > bytes.len() {
            return Err(SuperblockError::Checksum);
        }
        let block = &bytes[..block_bytes as usize];
        if get_u64(block, CHECKSUM_OFFSET) != header_checksum(block) {
            return Err(SuperblockError::Checksum);
        }
        let found = usize::from(get_u16(block, 6));
        if found != copy {
            return Err(SuperblockError::Misplaced { expected: copy, found });
        }
        let superblock = Self::fields(block)?;
        superblock.check(block)?;
        Ok(superblock)
    }

    fn fields(block: &[u8]) -> Result<Self, SuperblockError> {
        let durable_write = match get_u16(block, 34) {
            1 => DurableWrite::SyncedWrite,
            2 => DurableWrite::WriteThenFlush,
            _ => return Err(SuperblockError::Field("durable write mode")),
        };
        let chain = ChainState {
            sequence: get_u64(block, AT_CHAIN),
            local: get_u64(block, AT_CHAIN + 8),
            lsn: Lsn(get_u64(block, AT_CHAIN + 16)),
            shared: get_u64(block, AT_CHAIN + 24),
            timestamp: WallMicros(get_u64(block, AT_CHAIN + 32)),
            entry_term: Epoch(get_u64(block, AT_CHAIN + 40)),
        };
        Ok(Self {
            cluster: ClusterId(get_u128(block, 16)),
            node: NodeId(get_u16(block, 32)),
            durable_write,
            geometry: Geometry {
                block_bytes: get_u32(block, 36),
                segment_bytes: get_u32(block, 40),
                segments_count: get_u32(block, 44),
                partitions: get_u16(block, 48),
                batch_bytes_max: get_u32(block, 52),
            },
            vote: NodeId(get_u16(block, 50)),
            fingerprint: get_u64(block, 56),
            sequence: get_u64(block, 64),
            term: Epoch(get_u64(block, 72)),
            boot: get_u64(block, 80),
            tail: Tail {
                ordinal: get_u64(block, 88),
                offset: get_u64(block, 96),
                sequence: get_u64(block, 104),
                wipe_end: get_u64(block, 112),
            },
            durable_sequence: get_u64(block, 120),
            floor: Floor { ordinal: get_u64(block, 160), chain },
            members: Members::decode(&block[AT_MEMBERS..USED_BYTES]),
        })
    }

    fn check(&self, block: &[u8]) -> Result<(), SuperblockError> {
        let require = |holds: bool, field: &'static str| {
            if holds { Ok(()) } else { Err(SuperblockError::Field(field)) }
        };
        self.geometry.check()?;
        let node_max = limits::NODE_ID_MAX;
        require(is_zero(&block[128..160]), "reserved")?;
        require(is_zero(&block[USED_BYTES..]), "padding")?;
        self.members.fault().map_or(Ok(()), |fault| Err(SuperblockError::Field(fault)))?;
        require((1..=node_max).contains(&self.node.0), "node")?;
        require(self.vote.0 <= node_max, "vote")?;
        let chain = &self.floor.chain;
        for (value, field) in [
            (self.sequence, "sequence"),
            (self.term.0, "term"),
            (self.boot, "boot"),
            (self.tail.sequence, "tail sequence"),
            (self.durable_sequence, "durable sequence"),
            (self.tail.ordinal, "tail segment"),
            (self.floor.ordinal, "floor segment"),
            (chain.sequence, "floor sequence"),
            (chain.lsn.0, "floor index"),
            (chain.timestamp.0, "floor timestamp"),
            (chain.entry_term.0, "floor term"),
        ] {
            require(value < COUNTER_LIMIT, field)?;
        }
        require(self.sequence > 0, "sequence")?;
        require(self.tail.sequence > 0 && chain.sequence > 0, "frame sequence")?;
        require(chain.entry_term <= self.term, "floor term")?;
        let end = u64::from(self.geometry.segment_bytes);
        let aligned = |offset: u64| offset.is_multiple_of(u64::from(self.geometry.block_bytes));
        let tail = &self.tail;
        require(tail.offset >= self.geometry.data_offset(), "tail offset")?;
        require(tail.offset <= tail.wipe_end && tail.wipe_end <= end, "wiped range")?;
        require(aligned(tail.offset) && aligned(tail.wipe_end), "tail alignment")?;
        let reach = self.floor.ordinal + u64::from(self.geometry.segments_count);
        require(tail.ordinal < reach, "tail segment")
    }

    /// Refuses a superblock whose format has other limits than this build.
    ///
    /// # Errors
    /// [`SuperblockError::Fingerprint`].
    pub fn check_fingerprint(&self) -> Result<(), SuperblockError> {
        let expected = limits::fingerprint();
        if self.fingerprint == expected {
            return Ok(());
        }
        Err(SuperblockError::Fingerprint { expected, found: self.fingerprint })
    }

    fn immutable_difference(&self, other: &Self) -> Option<&'static str> {
        let fields = [
            (self.cluster == other.cluster, "the cluster id"),
            (self.node == other.node, "the node id"),
            (self.geometry == other.geometry, "the geometry"),
            (self.durable_write == other.durable_write, "the durable write mode"),
            (self.fingerprint == other.fingerprint, "the limits"),
        ];
        fields.iter().find(|(equal, _)| !equal).map(|(_, field)| *field)
    }
}

/// The superblock that counts, and how many of its copies are in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperblockChosen {
    /// The valid copy of the highest sequence.
    pub superblock: Superblock,
    /// Copies that could not be read or are damaged. More than 0 deserves a word to the operator.
    pub copies_bad: usize,
    /// Valid copies of an older sequence: an update was cut short.
    pub copies_old: usize,
}

/// Chooses among the four copies; what could not be read is an error in its place.
///
/// # Errors
/// All copies bad, or valid copies that contradict each other.
pub fn superblock_choose(
    copies: &[Result<Superblock, SuperblockError>; SUPERBLOCK_COPIES],
) -> Result<SuperblockChosen, SuperblockError> {
    let valid = || copies.iter().filter_map(|copy| copy.as_ref().ok());
    let mut best = valid().max_by_key(|copy| copy.sequence);
    if spillway_runtime::planted!(SuperblockOldestChosen) {
        best = valid().min_by_key(|copy| copy.sequence);
    }
    let Some(best) = best else {
        // A build that is too old says so instead of calling the file damaged; and what was not
        // read may be whole. Another build writes its version into all copies: one copy that has it
        // is a damaged one.
        let errors = || copies.iter().filter_map(|copy| copy.as_ref().err());
        let version = errors().find(|error| {
            let agree = errors().filter(|other| other == error).count();
            matches!(error, SuperblockError::Version(_)) && agree >= 2
        });
        let unreadable = || errors().find(|error| matches!(error, SuperblockError::Unreadable(_)));
        let error = version.or_else(unreadable);
        return Err(error.copied().unwrap_or(SuperblockError::AllBad));
    };
    for copy in valid() {
        if let Some(field) = best.immutable_difference(copy) {
            return Err(SuperblockError::Disagree(field));
        }
        if copy.sequence == best.sequence && copy != best {
            return Err(SuperblockError::Disagree("the state of one update"));
        }
        if copy.boot > best.boot || copy.term > best.term {
            return Err(SuperblockError::Disagree("the order of updates"));
        }
    }
    let copies_bad = copies.iter().filter(|copy| copy.is_err()).count();
    let copies_old = valid().filter(|copy| copy.sequence < best.sequence).count();
    Ok(SuperblockChosen { superblock: *best, copies_bad, copies_old })
}

/// One copy to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperblockWrite {
    /// Offset in the superblock file.
    pub offset: u64,
    /// One block.
    pub bytes: Vec<u8>,
}

/// The writes of one update, in two rounds. The second round starts when the first is durable; the
/// update is in force when the second is durable.
pub fn superblock_update(superblock: &Superblock) -> [Vec<SuperblockWrite>; 2] {
    let block = superblock.geometry.block();
    SUPERBLOCK_ROUNDS.map(|round| {
        round
            .into_iter()
            .map(|copy| {
                let mut bytes = vec![0; block];
                superblock.encode(copy, &mut bytes);
                SuperblockWrite { offset: (copy * block) as u64, bytes }
            })
            .collect()
    })
}
