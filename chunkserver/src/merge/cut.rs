//! Where blocks and tablets end.
//!
//! Both by one rule: a piece is cut off when it has its target, **and at least half a target
//! follows**. So pieces have between half a target and one and a half (and a row, or block, more:
//! those are not cut), and nothing but the content decides: not what was read first, nor how full a
//! buffer was, nor how well it compresses. All zones cut alike because they merge the same content.
//!
//! The rule that suggests itself, to cut at the target, leaves a tiny piece behind at every merge
//! of a piece that has grown a little; those fill a system after a while.

use crate::block::{BlockBuilder, checksum};
use crate::bloom;
use crate::codec::Codec;
use crate::digest::Digester;
use crate::limits::{
    BLOCK_BYTES_TARGET_MAX, BLOCK_OVERHEAD_BYTES, BLOCK_ROW_OVERHEAD_BYTES, TABLET_BYTES_MAX,
};
use crate::reader::CheckedBlock;
use crate::writer::{FinishedBlock, TabletOptions, TabletSummary, TabletWriter};
use bytes::Bytes;
use spillway_net::ids::TableId;
use std::collections::VecDeque;
use std::convert::Infallible;

/// The largest target for blocks of merges: such a block may be half as long again.
pub const BLOCK_TARGET_MAX: usize = BLOCK_BYTES_TARGET_MAX / 2;
/// The largest target for tablets: such a tablet may be half as long again, and has an index.
pub const TABLET_TARGET_MAX: u64 = TABLET_BYTES_MAX / 4;

/// Takes rows and gives blocks. Holds less than two targets, and a row.
#[derive(Debug)]
pub struct BlockCutter {
    table: TableId,
    target: usize,
    codec: Codec,
    cells: Vec<u8>,
    /// End of key and end of row in `cells`.
    rows: VecDeque<(usize, usize)>,
    builder: BlockBuilder,
}

impl BlockCutter {
    /// Begins with no rows.
    pub fn new(table: TableId, target: usize, codec: Codec) -> BlockCutter {
        assert!((1..=BLOCK_TARGET_MAX).contains(&target), "blocks of {target} bytes");
        let (cells, rows, builder) = (Vec::new(), VecDeque::new(), BlockBuilder::default());
        BlockCutter { table, target, codec, cells, rows, builder }
    }

    /// Length of the block that all its rows would be.
    pub fn bytes(&self) -> usize {
        BLOCK_OVERHEAD_BYTES + BLOCK_ROW_OVERHEAD_BYTES * self.rows.len() + self.cells.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row; what it holds then may be enough for blocks, which go to `out`.
    pub fn push(&mut self, key: &[u8], payload: &[u8], out: &mut impl FnMut(FinishedBlock)) {
        self.cells.extend_from_slice(key);
        let key_end = self.cells.len();
        self.cells.extend_from_slice(payload);
        self.rows.push_back((key_end, self.cells.len()));
        while !self.is_empty() && self.bytes() >= self.target + self.target / 2 {
            out(self.finish(self.target));
        }
    }

    /// All that is left, as one block.
    pub fn finish_rest(&mut self, out: &mut impl FnMut(FinishedBlock)) {
        if !self.is_empty() {
            out(self.finish(usize::MAX));
        }
        assert!(self.cells.is_empty(), "nothing is left");
    }

    /// The shortest block from the front that has `least` bytes, or all rows.
    fn finish(&mut self, least: usize) -> FinishedBlock {
        let mut digester = Digester::new(self.table);
        let (mut hashes, mut start) = (Vec::new(), 0);
        let (mut first_key, mut last_key) = (Vec::new(), Vec::new());
        while self.builder.bytes() < least {
            let Some((key_end, end)) = self.rows.pop_front() else { break };
            let (key, payload) = (&self.cells[start..key_end], &self.cells[key_end..end]);
            self.builder.push(key, payload);
            digester.add(key, payload);
            hashes.push(bloom::hash(key));
            if hashes.len() == 1 {
                first_key = key.to_vec();
            }
            let is_last = self.rows.is_empty() || self.builder.bytes() >= least;
            if is_last {
                last_key = key.to_vec();
            }
            start = end;
        }
        self.cells.drain(..start);
        for (key_end, end) in &mut self.rows {
            (*key_end, *end) = (*key_end - start, *end - start);
        }
        let (rows, mut bytes) = (self.builder.rows(), Vec::with_capacity(self.builder.bytes()));
        self.builder.finish(&mut bytes);
        let plain_bytes = bytes.len() as u32;
        let bytes = self.codec.encode(&Bytes::from(bytes));
        let (checksum, digest) = (checksum(&bytes), digester.digest());
        FinishedBlock { bytes, plain_bytes, rows, first_key, last_key, checksum, digest, hashes }
    }
}

/// A block as it stands: bytes, checksum and digest are carried over, its keys are walked for the
/// filter.
pub fn copy_block(block: &CheckedBlock) -> FinishedBlock {
    let (view, handle) = (block.view(), block.handle());
    FinishedBlock {
        bytes: block.stored().expect("blocks for a merge come with what is stored").clone(),
        plain_bytes: handle.plain_length,
        rows: handle.rows,
        first_key: view.row(0).key.to_vec(),
        last_key: view.row(handle.rows - 1).key.to_vec(),
        checksum: handle.checksum,
        digest: handle.digest,
        hashes: view.iter().map(|row| bloom::hash(row.key)).collect(),
    }
}

/// What becomes of the blocks.
#[derive(Debug)]
pub enum Cut {
    /// The next bytes of the tablet that is being written.
    Bytes(Vec<u8>),
    /// That tablet is complete.
    Tablet(Box<TabletSummary>),
}

/// Takes blocks and gives tablets. Holds half a target, and a block.
#[derive(Debug)]
pub struct TabletCutter {
    target: u64,
    options: TabletOptions,
    held: VecDeque<FinishedBlock>,
    held_bytes: u64,
    writer: Option<TabletWriter<Vec<u8>>>,
    /// Blocks in the writer, bytes before compression.
    written: u64,
    out: VecDeque<Cut>,
}

impl TabletCutter {
    /// Begins with no blocks.
    pub fn new(options: TabletOptions, target: u64) -> TabletCutter {
        assert!((1..=TABLET_TARGET_MAX).contains(&target), "tablets of {target} bytes");
        let (held, held_bytes, writer, written) = (VecDeque::new(), 0, None, 0);
        TabletCutter { target, options, held, held_bytes, writer, written, out: VecDeque::new() }
    }

    /// Adds a block.
    pub fn push(&mut self, block: FinishedBlock) {
        self.held_bytes += u64::from(block.plain_bytes);
        self.held.push_back(block);
        self.release(false);
    }

    /// There are no more blocks.
    pub fn finish(&mut self) {
        self.release(true);
        self.finish_tablet();
        assert!(self.held.is_empty() && self.held_bytes == 0, "nothing is left");
    }

    /// What is to be done next.
    pub fn pop(&mut self) -> Option<Cut> {
        self.out.pop_front()
    }

    fn release(&mut self, at_end: bool) {
        while let Some(bytes) = self.held.front().map(|block| u64::from(block.plain_bytes)) {
            let follows = 2 * self.held_bytes >= self.target;
            if self.written >= self.target && follows {
                self.finish_tablet();
            }
            let left = self.held_bytes - bytes;
            if !at_end && 2 * left < self.target {
                break;
            }
            let block = self.held.pop_front().expect("seen above");
            self.held_bytes = left;
            self.written += u64::from(block.plain_bytes);
            let options = self.options;
            let writer = self.writer.get_or_insert_with(|| TabletWriter::new(Vec::new(), options));
            let Ok(()) = writer.add_block(&block).map_err(in_memory);
            let bytes = std::mem::take(writer.sink_mut());
            self.out.push_back(Cut::Bytes(bytes));
        }
    }

    fn finish_tablet(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        let Ok((bytes, summary)) = writer.finish().map_err(in_memory);
        self.out.push_back(Cut::Bytes(bytes));
        self.out.push_back(Cut::Tablet(Box::new(summary)));
        self.written = 0;
    }
}

/// A sink in memory does not fail, and blocks bring no rows that a writer would refuse.
fn in_memory(error: crate::WriteError<Infallible>) -> Infallible {
    panic!("a tablet of whole blocks: {error}")
}
