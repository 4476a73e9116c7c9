//! Reading the manifest at start: two files in, the state or what is wrong out.

use super::block::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BlockFound, RecordHeader, RecordKind};
use super::block::{examine, record_checksum};
use super::edit::ManifestEdit;
use super::entry::COUNTER_LIMIT;
use super::state::{EditFault, ManifestState};
use crate::limits::{MANIFEST_EDITS_BYTES_MIN, MANIFEST_FILE_BYTES_MAX};
use spillway_net::ids::{ClusterId, NodeId};

/// Whose manifest it is, and what its disk writes whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestOptions {
    /// Cluster, drawn at format.
    pub cluster: ClusterId,
    /// Node within the cluster.
    pub node: NodeId,
    /// What the disk writes whole or not at all, or less: a power of two, 512 to 4,096.
    pub block_bytes: u32,
    /// Room for edits behind a snapshot, at least: how often the file changes. Not part of the
    /// format.
    pub edits_bytes_min: u64,
}

impl ManifestOptions {
    /// The usual room for edits.
    pub fn new(cluster: ClusterId, node: NodeId, block_bytes: u32) -> ManifestOptions {
        let edits_bytes_min = MANIFEST_EDITS_BYTES_MIN;
        ManifestOptions { cluster, node, block_bytes, edits_bytes_min }
    }

    /// Length of a block.
    pub fn block_bytes(&self) -> usize {
        let bytes = self.block_bytes as usize;
        assert!(bytes.is_power_of_two(), "blocks of {bytes} bytes");
        assert!((BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&bytes), "blocks of {bytes} bytes");
        bytes
    }
}

/// What was found that cannot be a write cut short by a loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamageReason {
    /// A block is neither whole nor zero.
    #[error("a block is damaged: the disk returned wrong bytes, or it tears smaller blocks")]
    Block,
    /// A whole block that belongs elsewhere.
    #[error("a block of another place, node or cluster: a misdirected write or a copied file")]
    Misplaced,
    /// A whole block of another release.
    #[error("manifest format {0}: install the release that wrote it")]
    Version(u16),
    /// The file has another length than its blocks say.
    #[error("the file is shorter or longer than its format says: it was cut or replaced")]
    Length,
    /// A record is missing in front of one that is there.
    #[error("a write that the disk had confirmed is missing in front of a later one")]
    WriteLost,
    /// Blocks contradict each other.
    #[error("records do not continue each other: a stale or misdirected write")]
    ChainBroken,
    /// The record is whole and yet no edit.
    #[error("a record is malformed")]
    Malformed,
    /// The edit breaks a rule.
    #[error("an edit breaks a rule: {0}")]
    Rule(EditFault),
    /// Both files are whole, and do not fit each other.
    #[error("the two files contradict each other: one of them was copied from elsewhere")]
    Contradiction,
    /// Neither file holds a whole state.
    #[error("neither file holds a whole state: the format was cut short, or files were lost")]
    Missing,
}

/// The manifest has lost or may have lost an edit that was acknowledged. It was left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "manifest damaged in file {file} at offset {offset}: {reason}. Nothing was changed. Check the \
     data disk; the baseline of this node has to be copied from another zone"
)]
pub struct ManifestDamaged {
    /// Which of the two files.
    pub file: usize,
    /// Offset in it.
    pub offset: u64,
    /// What was found.
    pub reason: DamageReason,
}

/// A readable manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The files in force.
    pub state: ManifestState,
    /// Number of the last edit.
    pub sequence: u64,
    /// Checksum of the last edit's record.
    pub checksum: u64,
    /// The file that holds it.
    pub file: usize,
    /// The highest generation that was seen in either file.
    pub generation_max: u64,
    /// Generation of the file in use.
    pub generation: u64,
    /// Where its next record goes.
    pub end: u64,
    /// Its length.
    pub file_bytes: u64,
    /// Remains of an edit that was cut short stand behind the end.
    pub is_torn: bool,
    /// The other file is empty or all zeros.
    pub other_is_blank: bool,
}

/// One file by itself.
enum FileFound {
    Blank,
    /// A snapshot that was cut short.
    Partial {
        generation: u64,
    },
    Whole(Box<Whole>),
    /// With the highest generation of which there is a whole block of an edit.
    Damaged {
        damage: ManifestDamaged,
        edits_of: u64,
        generation: u64,
    },
}

struct Whole {
    state: ManifestState,
    generation: u64,
    /// Sequence and checksum that the snapshot names.
    base: (u64, u64),
    /// Sequence and checksum of the last edit.
    last: (u64, u64),
    end: u64,
    is_torn: bool,
}

/// Reads both files, as they stand on the disk from front to back. Whatever the caller read must
/// be durable: it flushes both files before it reads them.
///
/// # Errors
/// What is wrong, when something acknowledged may be missing.
pub fn recover(options: &ManifestOptions, files: [&[u8]; 2]) -> Result<Recovered, ManifestDamaged> {
    let found = [0, 1].map(|file| read_file(options, file, files[file]));
    let damaged = |file, offset, reason| ManifestDamaged { file, offset, reason };
    let generation_of = |found: &FileFound| match found {
        FileFound::Blank => 0,
        FileFound::Whole(whole) => whole.generation,
        FileFound::Partial { generation } | FileFound::Damaged { generation, .. } => *generation,
    };
    let generation_max = found.iter().map(generation_of).max().unwrap_or(0);
    let blank = [0, 1].map(|file| matches!(found[file], FileFound::Blank));
    let (file, whole) = match found {
        [FileFound::Whole(one), FileFound::Whole(two)] => {
            let is_second = two.generation > one.generation;
            let (newer, older) = if is_second { (&two, &one) } else { (&one, &two) };
            // The older one may be half emptied, from its end; what is there is what the snapshot
            // was made of, and nothing more.
            let goes_on = older.last.0 > newer.base.0;
            if goes_on || (older.last.0 == newer.base.0 && older.last.1 != newer.base.1) {
                return Err(damaged(usize::from(is_second), 0, DamageReason::Contradiction));
            }
            if is_second { (1, two) } else { (0, one) }
        }
        [FileFound::Whole(whole), other] => (0, beside(whole, &other)?),
        [other, FileFound::Whole(whole)] => (1, beside(whole, &other)?),
        [FileFound::Damaged { damage, .. }, _] | [_, FileFound::Damaged { damage, .. }] => {
            return Err(damage);
        }
        _ => return Err(damaged(0, 0, DamageReason::Missing)),
    };
    Ok(Recovered {
        sequence: whole.last.0,
        checksum: whole.last.1,
        file,
        generation_max,
        generation: whole.generation,
        end: whole.end,
        file_bytes: files[file].len() as u64,
        is_torn: whole.is_torn,
        other_is_blank: blank[1 - file],
        state: whole.state,
    })
}

/// Whether a file without a whole state may stand beside one that has it. The whole one was not
/// emptied, so nothing was acknowledged in a later one: unless edits stand there, which only a lost
/// emptying explains.
fn beside(whole: Box<Whole>, other: &FileFound) -> Result<Box<Whole>, ManifestDamaged> {
    match other {
        FileFound::Damaged { damage, edits_of, .. } if *edits_of > whole.generation => Err(*damage),
        _ => Ok(whole),
    }
}

fn read_file(options: &ManifestOptions, file: usize, bytes: &[u8]) -> FileFound {
    let mut reading = FileReading::new(options, file, bytes);
    let (mut edits_of, mut generation) = (0, 0);
    for block in &reading.blocks {
        if let BlockFound::Valid { record, .. } = block {
            generation = generation.max(record.generation.min(COUNTER_LIMIT - 1));
            if record.kind == RecordKind::Edit {
                edits_of = edits_of.max(record.generation);
            }
        }
    }
    match reading
        .check_blocks()
        .and_then(|is_blank| if is_blank { Ok(FileFound::Blank) } else { reading.walk() })
    {
        Ok(found) => found,
        Err((block, reason)) => {
            let offset = (block * options.block_bytes()) as u64;
            let damage = ManifestDamaged { file, offset, reason };
            FileFound::Damaged { damage, edits_of, generation }
        }
    }
}

/// Block and reason.
type Fault = (usize, DamageReason);

struct FileReading<'a> {
    file: usize,
    file_bytes: u64,
    block_bytes: usize,
    blocks: Vec<BlockFound<'a>>,
    state: ManifestState,
}

/// A record in its place.
enum RecordFound {
    /// Nothing stands here or behind.
    End,
    /// Cut short: nothing stands behind.
    Torn,
    Whole {
        record: RecordHeader,
        payload: Vec<u8>,
    },
}

impl<'a> FileReading<'a> {
    fn new(options: &ManifestOptions, file: usize, bytes: &'a [u8]) -> FileReading<'a> {
        let block_bytes = options.block_bytes();
        let blocks = bytes.chunks(block_bytes).enumerate();
        let blocks = blocks
            .map(|(number, block)| examine(options, block, (number * block_bytes) as u64))
            .collect();
        let (file_bytes, state) = (bytes.len() as u64, ManifestState::default());
        FileReading { file, file_bytes, block_bytes, blocks, state }
    }

    /// Looks at the blocks one by one. True when all are zero.
    fn check_blocks(&self) -> Result<bool, Fault> {
        let mut generation = None;
        for (number, block) in self.blocks.iter().enumerate() {
            let record = match block {
                BlockFound::Zero => continue,
                BlockFound::Valid { record, .. } => record,
                BlockFound::Misplaced => return Err((number, DamageReason::Misplaced)),
                BlockFound::Version(found) => {
                    return Err((number, DamageReason::Version(*found)));
                }
                BlockFound::Bad => return Err((number, DamageReason::Block)),
            };
            if record.file_bytes != self.file_bytes || self.file_bytes > MANIFEST_FILE_BYTES_MAX {
                return Err((number, DamageReason::Length));
            }
            let is_here = record.generation % 2 == self.file as u64;
            let counters = [record.generation, record.sequence];
            if !is_here || counters.iter().any(|counter| *counter >= COUNTER_LIMIT) {
                return Err((number, DamageReason::Misplaced));
            }
            if generation.replace(record.generation).is_some_and(|one| one != record.generation) {
                return Err((number, DamageReason::ChainBroken));
            }
        }
        Ok(generation.is_none())
    }

    /// Follows the records from the front.
    fn walk(&mut self) -> Result<FileFound, Fault> {
        let (snapshot, payload) = match self.record(0, None)? {
            RecordFound::Whole { record, payload } => (record, payload),
            RecordFound::Torn => {
                let generation = self.generation();
                return Ok(FileFound::Partial { generation });
            }
            RecordFound::End => unreachable!("a file that is not blank has a block"),
        };
        self.apply(0, &payload)?;
        // An edit continues the last edit, not the snapshot: so the chain goes on from file to
        // file, and the snapshot vouches for it.
        let base = (snapshot.sequence, snapshot.previous);
        let (mut last, mut next) = (base, snapshot.blocks as usize);
        let is_torn = loop {
            match self.record(next, Some(last))? {
                RecordFound::End => break false,
                RecordFound::Torn => break true,
                RecordFound::Whole { record, payload } => {
                    self.apply(next, &payload)?;
                    last = (record.sequence, record.checksum);
                    next += record.blocks as usize;
                }
            }
        };
        let end = (next * self.block_bytes) as u64;
        let (state, generation) = (std::mem::take(&mut self.state), snapshot.generation);
        Ok(FileFound::Whole(Box::new(Whole { state, generation, base, last, end, is_torn })))
    }

    fn generation(&self) -> u64 {
        let generations = self.blocks.iter().filter_map(|block| match block {
            BlockFound::Valid { record, .. } => Some(record.generation),
            _ => None,
        });
        generations.max().unwrap_or(0)
    }

    /// The record that begins at block `start`: the snapshot, or the edit behind `last`.
    fn record(&self, start: usize, last: Option<(u64, u64)>) -> Result<RecordFound, Fault> {
        let valid = |at: usize| match &self.blocks[at] {
            BlockFound::Valid { record, number, part } => Some((*record, *number, *part)),
            _ => None,
        };
        let first = (start..self.blocks.len()).find_map(|at| Some((at, valid(at)?)));
        let Some((at, (record, number, _))) = first else { return Ok(RecordFound::End) };
        let continues = match last {
            None => record.kind == RecordKind::Snapshot,
            Some((sequence, checksum)) => {
                record.kind == RecordKind::Edit
                    && record.sequence == sequence + 1
                    && record.previous == checksum
            }
        };
        if !continues {
            // A later record, and the one that belongs here is not there.
            let is_later = record.kind == RecordKind::Edit
                && last.is_none_or(|(sequence, _)| record.sequence > sequence + 1);
            let reason = if is_later { DamageReason::WriteLost } else { DamageReason::ChainBroken };
            return Err((at, reason));
        }
        let end = start + record.blocks as usize;
        if number as usize != at - start || end > self.blocks.len() {
            return Err((at, DamageReason::ChainBroken));
        }
        let mut payload = Vec::with_capacity(record.payload_bytes as usize);
        let mut missing = 0;
        for at in start..end {
            match valid(at) {
                None => missing += 1,
                Some((same, number, part)) if same == record && number as usize == at - start => {
                    payload.extend_from_slice(part);
                }
                Some(_) => return Err((at, DamageReason::ChainBroken)),
            }
        }
        if missing > 0 {
            let later = (end..self.blocks.len()).find(|at| valid(*at).is_some());
            return match later {
                Some(at) => Err((at, DamageReason::WriteLost)),
                None => Ok(RecordFound::Torn),
            };
        }
        if record_checksum(&payload, record.previous) != record.checksum {
            return Err((start, DamageReason::Malformed));
        }
        Ok(RecordFound::Whole { record, payload })
    }

    fn apply(&mut self, block: usize, payload: &[u8]) -> Result<(), Fault> {
        let edit = ManifestEdit::decode(payload).ok_or((block, DamageReason::Malformed))?;
        self.state.check(&edit).map_err(|fault| (block, DamageReason::Rule(fault)))?;
        self.state.apply(&edit);
        Ok(())
    }
}
