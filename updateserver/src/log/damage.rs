//! Why a log is not usable as it is, and what that means for the operator.

use spillway_net::ids::Lsn;

use super::frame::FrameFault;
use super::repair::FrameRepair;

/// What recovery found that cannot be a write cut short by a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamageReason {
    /// The device returned an error.
    #[error("the log device failed a read ({})", std::io::Error::from_raw_os_error(*errno))]
    ReadFailed {
        /// Error number.
        errno: i32,
    },
    /// The file ends too early.
    #[error("the segment file is shorter than its format says: it was truncated or replaced")]
    ReadShort,
    /// A segment header is invalid, or belongs to another use of the file.
    #[error(
        "the segment header is damaged or of another generation: the file was overwritten, \
         restored from a copy, or lost a write"
    )]
    SegmentHeader,
    /// The table of a segment's previous contents is damaged just where it is needed.
    #[error(
        "the segment's table of previous contents is damaged, and without it a write cut short \
         by a crash cannot be told from damage at the end of the log"
    )]
    SegmentTable,
    /// A block where a frame header belongs is neither a header nor what was there before.
    #[error("a frame header is damaged ({0}): the disk returned wrong bytes")]
    LocalHeader(FrameFault),
    /// A valid header of another place, node or cluster.
    #[error(
        "a frame of another place, node or cluster stands here: a misdirected write or a \
             copied file"
    )]
    Misplaced,
    /// The shared header does not fit, and no block of it still has its old contents.
    #[error("a batch header is damaged ({0}): the disk returned wrong bytes")]
    SharedHeader(FrameFault),
    /// A sector holds neither the frame's contents nor what was there before.
    #[error("a sector of a batch is damaged: the disk returned wrong bytes")]
    Sector,
    /// Sectors hold old contents although later frames prove that the frame was durable.
    #[error(
        "a write that the disk had confirmed is missing: the disk lost it (a volatile cache \
         without flush is the usual cause)"
    )]
    WriteLost,
    /// The frame does not continue the one before.
    #[error("a frame does not continue the one before it: a stale or misdirected write")]
    ChainBroken,
    /// Index, term or timestamp contradict the frames before.
    #[error("index, term or timestamp of a frame contradict the frames before it")]
    OrderBroken,
    /// A frame of a boot that the superblock does not know.
    #[error(
        "the superblock is older than the log: its file was restored from a copy or lost \
             writes"
    )]
    SuperblockOld,
    /// The log does not reach the place where the current boot began, or passes by it.
    #[error("the log does not meet the place that the superblock names as its former end")]
    TailMissed,
}

impl DamageReason {
    /// True when what is wrong is in the body of a frame, so that the right body mends it.
    pub(super) fn is_in_body(self) -> bool {
        match self {
            Self::SharedHeader(fault) => fault.is_of_bytes(),
            Self::Sector | Self::WriteLost | Self::SegmentTable | Self::ReadFailed { .. } => true,
            _ => false,
        }
    }
}

/// The log has lost or may have lost something that was acknowledged. It is never shortened
/// because of that: the node does not take part until it is repaired from a peer or replaced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "log damaged in segment file {segment} at offset {offset}: {reason}. Batches up to LSN \
     {lsn_good} are intact; LSN {} {} may be lost on this node. The log was left as it is. Do not \
     format or truncate it: check the disk. {} A cluster of one node has no peer and needs its \
     backup",
    .lsn_good.0 + 1,
    .lsn_last.map_or("and all behind it".to_owned(), |lsn| format!("to {lsn} or more")),
    if .repair.is_some() {
        "A node that has peers repairs this from them at its start."
    } else {
        "This cannot be repaired, since nothing says for sure what stood there: let the node join \
         anew with `spillway admin replace-node`."
    },
)]
pub struct LogDamaged {
    /// Segment file.
    pub segment: u32,
    /// Offset of the damage, or of the frame it is in.
    pub offset: u64,
    /// Physical sequence of the first frame that could not be read.
    pub sequence: u64,
    /// Last index that was read in full.
    pub lsn_good: Lsn,
    /// Highest index that is known to have been committed, when that is beyond `lsn_good`.
    pub lsn_last: Option<Lsn>,
    /// What was found.
    pub reason: DamageReason,
    /// How to mend it, if a peer still has what stood there.
    pub repair: Option<Box<FrameRepair>>,
}
