//! What a log writer asks of its shell, and what the shell reports.

use std::fmt;

use spillway_net::ids::Lsn;
use spillway_runtime::slot_ring::Slot;

use super::entries::EntryPlace;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum LogInput {
    /// Entries may have been given to the writer.
    TurnEnd,
    /// A frame write ended: bytes written, or errno.
    WriteCompleted {
        /// Of the [`LogWrite`].
        sequence: u64,
        /// Bytes written, or errno.
        result: Result<u32, i32>,
    },
    /// A [`RawWrite`] ended: bytes written, or errno.
    RawCompleted {
        /// Of the write.
        id: u32,
        /// Bytes written, or errno.
        result: Result<u32, i32>,
    },
    /// Time has passed.
    Tick,
}

/// A frame to write, durably.
#[derive(Clone, Debug)]
pub struct LogWrite {
    /// Physical sequence; comes back with the completion.
    pub sequence: u64,
    /// The whole frame. Its memory stays as it is until the last clone is dropped.
    pub slot: Slot,
    /// Length of the frame, a multiple of the block.
    pub bytes: u32,
    /// Segment file.
    pub segment: u32,
    /// Offset in the file, a multiple of the block.
    pub offset: u64,
}

/// Content of a write that is no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawContent {
    /// This many zeros.
    Zeros(u32),
    /// Header and table of a segment, or a copy of the superblock.
    Bytes(Vec<u8>),
}

impl RawContent {
    /// Length.
    pub fn len(&self) -> u32 {
        match self {
            Self::Zeros(bytes) => *bytes,
            Self::Bytes(bytes) => bytes.len() as u32,
        }
    }

    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawFile {
    /// A segment, by number.
    Segment(u32),
    /// The superblock.
    Superblock,
}

impl fmt::Display for RawFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(number) => write!(f, "segment {number}"),
            Self::Superblock => f.write_str("the superblock file"),
        }
    }
}

/// A write that is no frame, durable like one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawWrite {
    /// Comes back with the completion.
    pub id: u32,
    /// Where it goes.
    pub file: RawFile,
    /// Offset in the file, a multiple of the block.
    pub offset: u64,
    /// What to write.
    pub content: RawContent,
}

/// Why a log takes no more writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Poisoned {
    /// The device returned an error.
    #[error(
        "the log device failed a write to {file} at offset {offset} ({}): nothing more is \
         acknowledged; replace or check the log disk, then start the node again, which reads back \
         what is durable", std::io::Error::from_raw_os_error(*errno)
    )]
    Failed {
        /// Error number.
        errno: i32,
        /// File of the log.
        file: RawFile,
        /// Offset in it.
        offset: u64,
    },
    /// The device wrote less than it was asked to.
    #[error(
        "the log device wrote {written} of {expected} bytes to {file} at offset {offset}: nothing \
         more is acknowledged; check that the files of the log have their full size, then start \
         the node again, which reads back what is durable"
    )]
    Short {
        /// Bytes written.
        written: u32,
        /// Bytes asked for.
        expected: u32,
        /// File of the log.
        file: RawFile,
        /// Offset in it.
        offset: u64,
    },
}

/// An entry got its place in the physical log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Number that [`super::LogWriter::write`] gave it.
    pub number: u64,
    /// Index.
    pub lsn: Lsn,
    /// Shared checksum.
    pub checksum: u64,
    /// Where its frame stands; it can be read there when it is durable.
    pub place: EntryPlace,
}

/// What the shell has to do, and what has become of the entries.
#[derive(Clone, Debug, Default)]
pub struct LogEffects {
    /// Frames to write.
    pub writes: Vec<LogWrite>,
    /// Other writes.
    pub raw_writes: Vec<RawWrite>,
    /// Entries that were issued.
    pub issued: Vec<Issued>,
    /// All entries up to this write number are durable, and were not before.
    pub durable: Option<u64>,
    /// The superblock of this sequence is in force: all its copies are durable.
    pub superblock_durable: Option<u64>,
    /// The log takes no more writes. Reported once.
    pub poisoned: Option<Poisoned>,
    /// A tick is wanted at this time.
    pub next_deadline_nanos: Option<u64>,
}

impl LogEffects {
    /// Empties the lists and keeps their memory.
    pub fn clear(&mut self) {
        self.writes.clear();
        self.raw_writes.clear();
        self.issued.clear();
        self.durable = None;
        self.superblock_durable = None;
        self.poisoned = None;
        self.next_deadline_nanos = None;
    }
}
