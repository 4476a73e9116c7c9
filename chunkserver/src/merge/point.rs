//! One key through runs and tablets.

use super::source::{BlockNeed, TabletOfView};
use crate::entry::{Entry, EntryOwned};
use crate::error::TabletError;
use crate::reader::CheckedBlock;

/// What a step of the read gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointStep {
    /// This block has to be read.
    Needs(BlockNeed),
    /// The newest entry, which may be a deletion.
    Found(EntryOwned),
    /// No layer holds the key.
    Absent,
}

/// A read of one key. Memtables are asked before; here are the layers behind them, the newest
/// first.
#[derive(Debug)]
pub struct PointRead {
    key: Vec<u8>,
    layers: Vec<TabletOfView>,
    /// The layer that was asked last, and the block that it needs.
    layer: usize,
    need: Option<BlockNeed>,
}

impl PointRead {
    /// The layers that may hold the key: sections of runs, then the tablet.
    pub fn new(key: Vec<u8>, layers: Vec<TabletOfView>) -> PointRead {
        PointRead { key, layers, layer: 0, need: None }
    }

    /// Where the read stands. Filters of layers that do not hold the key spare their blocks.
    pub fn step(&mut self) -> PointStep {
        if let Some(need) = self.need {
            return PointStep::Needs(need);
        }
        while let Some(TabletOfView { file, image_offset, meta }) = self.layers.get(self.layer) {
            if let Some(handle) = meta.block_for(&self.key) {
                let need = BlockNeed { file: *file, image_offset: *image_offset, handle };
                self.need = Some(need);
                return PointStep::Needs(need);
            }
            self.layer += 1;
        }
        PointStep::Absent
    }

    /// Takes the block that was needed, and goes on.
    ///
    /// # Errors
    /// When the block does not hold an entry.
    pub fn supply(&mut self, block: &CheckedBlock) -> Result<PointStep, TabletError> {
        let need = self.need.take().expect("a block that nobody asked for");
        assert_eq!(need.handle, block.handle(), "another block than the one that was asked for");
        if let Some(bytes) = block.view().get(&self.key) {
            return Ok(PointStep::Found(Entry::decode(bytes)?.to_owned()));
        }
        self.layer += 1;
        Ok(self.step())
    }
}
