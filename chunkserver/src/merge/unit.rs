//! Merging: old tablets and what changed since, into new tablets.
//!
//! The work is cut into units ([`plan`]): one old tablet, or several small neighbours. Units know
//! nothing of each other, so they can be done in any order and side by side, and a merge that was
//! cut short goes on with the units that the manifest does not show as done. What comes out depends
//! on the content of the old tablets and of the changes, and on nothing else: not on what the
//! changes were read from, nor in what order blocks arrived.
//!
//! - A unit of one tablet in which nothing changed is left as it is, and its file stays.
//! - A block of at least half the target in which nothing changed is copied as it stands; what was
//!   collected in front of it becomes a block first, if that has half the target too. Else the
//!   block's rows are collected with it.
//! - Deletions, and what they hide, are not in the new tablets.

use super::cut::{BlockCutter, Cut, TabletCutter, copy_block};
use super::iterator::{MergeError, MergeIterator, MergeStep};
use super::source::{BlockNeed, KeyRange, Source, TabletOfView, TabletSource};
use crate::codec::Codec;
use crate::entry::EntryOwned;
use crate::footer::Content;
use crate::limits::{BLOCK_BYTES_TARGET, INDEX_BYTES_MAX};
use crate::manifest::{FileEntry, FileId, FileKind, ManifestEdit, ManifestState};
use crate::reader::CheckedBlock;
use crate::writer::{INDEX_ENTRY_BYTES_MAX, TabletOptions, TabletSummary};
use spillway_net::ids::TableId;
use spillway_net::limits::KEY_BYTES_MAX;

/// Where a tablet is cut unless told otherwise, bytes of blocks.
pub const TABLET_BYTES_TARGET: u64 = 64 << 20;
/// Rows of one step at most: then whoever drives it can look to other work.
const STEP_ROWS_MAX: usize = 1024;

/// What a merge leads to. All zones have to say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeTarget {
    /// The table.
    pub table: TableId,
    /// Fingerprint of its schema.
    pub schema: u64,
    /// The freeze up to which changes are merged.
    pub version: u64,
    /// Where blocks are cut, bytes.
    pub block_bytes: usize,
    /// Where tablets are cut, bytes of blocks before compression.
    pub tablet_bytes: u64,
    /// How blocks are written; those that are copied stay as they are.
    pub codec: Codec,
}

impl MergeTarget {
    /// Blocks and tablets of the usual size.
    pub fn new(table: TableId, schema: u64, version: u64) -> MergeTarget {
        let (block_bytes, tablet_bytes) = (BLOCK_BYTES_TARGET, TABLET_BYTES_TARGET);
        let codec = Codec::Plain;
        MergeTarget { table, schema, version, block_bytes, tablet_bytes, codec }
    }
}

/// A part of the work.
#[derive(Debug, Clone)]
pub struct MergeUnit {
    /// The keys: those of all units lie side by side and leave none out.
    pub range: KeyRange,
    /// The old tablets in it.
    pub tablets: Vec<TabletOfView>,
}

/// Why a merge cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A file of another table, or no tablet.
    #[error("file {0} is no tablet of the table")]
    Strange(FileId),
    /// Rows of another schema would have to be decoded.
    #[error("the tablet in file {file} has schema {found:016x}, the merge leads to {wanted:016x}")]
    Schema {
        /// Which file.
        file: FileId,
        /// Its schema.
        found: u64,
        /// That of the merge.
        wanted: u64,
    },
}

/// Cuts a merge into units. `tablets` are all of the table that are in force, in key order.
///
/// Tablets below half the target join with their neighbours, until the unit has half the target:
/// what is tiny after deletions does not stay so.
///
/// # Errors
/// When a tablet is not one of this table and schema.
pub fn plan(target: &MergeTarget, tablets: &[TabletOfView]) -> Result<Vec<MergeUnit>, PlanError> {
    let mut groups: Vec<Vec<TabletOfView>> = Vec::new();
    let mut bytes_last = u64::MAX;
    for tablet in tablets {
        let (file, footer) = (tablet.file, tablet.meta.footer());
        if footer.table != target.table || footer.content != Content::Rows {
            return Err(PlanError::Strange(file));
        }
        if footer.schema != target.schema {
            let (found, wanted) = (footer.schema, target.schema);
            return Err(PlanError::Schema { file, found, wanted });
        }
        match groups.last_mut() {
            Some(group) if bytes_last < target.tablet_bytes / 2 => {
                group.push(tablet.clone());
                bytes_last += footer.plain_bytes;
            }
            _ => {
                groups.push(vec![tablet.clone()]);
                bytes_last = footer.plain_bytes;
            }
        }
    }
    if groups.len() > 1 && bytes_last < target.tablet_bytes / 2 {
        let last = groups.pop().expect("more than one");
        groups.last_mut().expect("at least one").extend(last);
    }
    if groups.is_empty() {
        groups.push(Vec::new());
    }
    let first_key = |group: &Vec<TabletOfView>| group.first().map(first_key_of);
    let borders: Vec<_> = groups.iter().skip(1).map(first_key).chain([None]).collect();
    let mut from = Vec::new();
    let mut units = Vec::new();
    for (tablets, to) in groups.into_iter().zip(borders) {
        let next = to.clone().unwrap_or_default();
        units.push(MergeUnit { range: KeyRange { from, to }, tablets });
        from = next;
    }
    Ok(units)
}

fn first_key_of(tablet: &TabletOfView) -> Vec<u8> {
    tablet.meta.footer().first_key.clone()
}

/// Whether the manifest shows that a unit was merged to this target: a merge that was cut short
/// goes on with the others. What was left as it is does not show, and is soon found so again.
pub fn is_done(state: &ManifestState, target: &MergeTarget, unit: &MergeUnit) -> bool {
    let is_there =
        |id: FileId| state.file(id).is_some_and(|file| file.is_tablet_at(target.version));
    if unit.tablets.is_empty() {
        // The only unit of a table that had no tablets.
        return !state.tablets(target.table, target.version).is_empty();
    }
    unit.tablets.iter().all(|tablet| !is_there(tablet.file))
}

/// What has become of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitOutcome {
    /// Nothing changed, and the old tablet stays.
    pub is_kept: bool,
    /// The old tablets.
    pub old: Vec<FileId>,
    /// The new ones, in key order; none if no row is left.
    pub tablets: Vec<TabletSummary>,
    /// Blocks that were copied.
    pub blocks_copied: u64,
}

/// The edit that puts the new tablets of a unit beside the old ones: these end at the target.
/// `ids` are those of the new files.
pub fn unit_edit(
    state: &ManifestState,
    target: &MergeTarget,
    outcome: &UnitOutcome,
    ids: &[FileId],
) -> ManifestEdit {
    assert_eq!(ids.len(), outcome.tablets.len(), "a file for each tablet");
    let add = |(summary, id): (&TabletSummary, &FileId)| {
        let footer = &summary.footer;
        assert_eq!((footer.table, footer.version), (target.table, target.version), "of this merge");
        FileEntry {
            id: *id,
            version: footer.version,
            kind: FileKind::Tablet {
                table: footer.table,
                schema: footer.schema,
                first_key: footer.first_key.clone(),
                last_key: footer.last_key.clone(),
                until: None,
            },
            rows: footer.rows,
            bytes: summary.image_bytes,
            digest: footer.digest,
            footer_checksum: summary.footer_checksum,
        }
    };
    let ends = if outcome.is_kept { &[][..] } else { &outcome.old[..] };
    ManifestEdit {
        version: state.version(),
        baseline: state.baseline(),
        file_id_max: ids.iter().map(|id| id.0).fold(state.file_id_max(), u64::max),
        adds: outcome.tablets.iter().zip(ids).map(add).collect(),
        ends: ends.iter().map(|id| (*id, Some(target.version))).collect(),
        removes: Vec::new(),
    }
}

/// A block that a unit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitNeed {
    /// Of the old tablets.
    Old(BlockNeed),
    /// Of the changes, with the number of the source.
    Changes(usize, BlockNeed),
}

/// What a step gives.
#[derive(Debug)]
pub enum UnitStep {
    /// Blocks are needed: [`UnitMerge::needs`].
    Blocked,
    /// There is more to do.
    Working,
    /// The next bytes of the tablet that is being written; the first ones begin a file.
    Append(Vec<u8>),
    /// That tablet is complete: its file is to be made durable. The next bytes begin another.
    Tablet(Box<TabletSummary>),
    /// The unit is done.
    Ended(UnitOutcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Running,
    Done,
}

/// The merge of one unit. Memory: two blocks for the old tablets and for each source of changes,
/// less than two blocks of rows, half a tablet of blocks, and the index and hashes of one tablet.
#[derive(Debug)]
pub struct UnitMerge<S> {
    range: KeyRange,
    half_block: usize,
    old: TabletSource,
    changes: MergeIterator<S>,
    /// The next change; the outer `None` while it is not known.
    change: Option<Option<(Vec<u8>, EntryOwned)>>,
    blocks: BlockCutter,
    tablets: TabletCutter,
    outcome: UnitOutcome,
    stage: Stage,
    payload: Vec<u8>,
}

impl<S: Source> UnitMerge<S> {
    /// The merge of a unit with the changes in its range: sources newest first, as for a
    /// [`MergeIterator`].
    pub fn new(target: &MergeTarget, unit: MergeUnit, changes: Vec<S>) -> UnitMerge<S> {
        let blocks_max = 4 * target.tablet_bytes / target.block_bytes as u64;
        let index_bytes = blocks_max * (INDEX_ENTRY_BYTES_MAX + KEY_BYTES_MAX as u64);
        assert!(index_bytes <= INDEX_BYTES_MAX, "blocks too small for the tablets");
        let options = TabletOptions::new(target.table, target.schema, target.version);
        let old = unit.tablets.iter().map(|tablet| tablet.file).collect();
        let (is_kept, tablets, blocks_copied) = (false, Vec::new(), 0);
        UnitMerge {
            half_block: target.block_bytes / 2,
            old: TabletSource::new(unit.tablets, KeyRange::all()),
            range: unit.range,
            changes: MergeIterator::new(changes),
            change: None,
            blocks: BlockCutter::new(target.table, target.block_bytes, target.codec),
            tablets: TabletCutter::new(options, target.tablet_bytes),
            outcome: UnitOutcome { is_kept, old, tablets, blocks_copied },
            stage: Stage::New,
            payload: Vec::new(),
        }
    }

    /// The blocks without which it cannot go on.
    pub fn needs(&self) -> impl Iterator<Item = UnitNeed> {
        // An old tablet may turn out to be untouched: then none of its blocks is read.
        let is_running = self.stage == Stage::Running;
        let old = self.old.need().filter(|_| is_running).map(UnitNeed::Old);
        old.into_iter().chain(changes(self.changes.needs()))
    }

    /// The blocks that it is going to need next.
    pub fn needs_ahead(&self) -> impl Iterator<Item = UnitNeed> {
        let is_running = self.stage == Stage::Running;
        let old = self.old.need_ahead().filter(|_| is_running).map(UnitNeed::Old);
        old.into_iter().chain(changes(self.changes.needs_ahead()))
    }

    /// Hands it a block.
    pub fn supply(&mut self, need: UnitNeed, block: CheckedBlock) {
        match need {
            UnitNeed::Old(_) => self.old.supply(block),
            UnitNeed::Changes(source, _) => self.changes.supply(source, block),
        }
    }

    /// Goes on.
    ///
    /// # Errors
    /// When a source holds what it must not. The unit is lost then, and nothing else.
    pub fn step(&mut self) -> Result<UnitStep, MergeError> {
        for _ in 0..STEP_ROWS_MAX {
            match self.tablets.pop() {
                Some(Cut::Bytes(bytes)) => return Ok(UnitStep::Append(bytes)),
                Some(Cut::Tablet(summary)) => {
                    self.outcome.tablets.push((*summary).clone());
                    return Ok(UnitStep::Tablet(summary));
                }
                None if self.stage == Stage::Done => {
                    return Ok(UnitStep::Ended(self.outcome.clone()));
                }
                None => {}
            }
            if !self.look_at_change()? {
                return Ok(UnitStep::Blocked);
            }
            if self.stage == Stage::New {
                let is_untouched = self.change == Some(None) && self.outcome.old.len() <= 1;
                self.outcome.is_kept = is_untouched && !self.outcome.old.is_empty();
                self.stage = if is_untouched { Stage::Done } else { Stage::Running };
            } else if self.old.need().is_some() {
                return Ok(UnitStep::Blocked);
            } else {
                self.advance()?;
            }
        }
        Ok(UnitStep::Working)
    }

    /// Makes the next change known. `false` if a block is needed first.
    fn look_at_change(&mut self) -> Result<bool, MergeError> {
        if self.change.is_some() {
            return Ok(true);
        }
        self.change = match self.changes.step()? {
            MergeStep::Blocked => return Ok(false),
            MergeStep::Ended => Some(None),
            MergeStep::Entry { key, entry, .. } => {
                assert!(self.range.contains(key), "changes of a unit lie in its range");
                Some(Some((key.to_vec(), entry.to_owned())))
            }
        };
        Ok(true)
    }

    /// Does one row or one block.
    fn advance(&mut self) -> Result<(), MergeError> {
        if self.copy_if_unchanged() {
            return Ok(());
        }
        let change = self.change.as_ref().and_then(Option::as_ref);
        let Some(old_key) = self.old.key() else {
            let Some((key, entry)) = change.cloned() else {
                self.blocks.finish_rest(&mut |block| self.tablets.push(block));
                self.tablets.finish();
                self.stage = Stage::Done;
                return Ok(());
            };
            self.change = None;
            self.push(&key, &entry);
            return Ok(());
        };
        // The old tablets count as the last source.
        let source_number = self.changes.sources_count();
        let old = self.old.entry().map_err(|error| MergeError::Tablet { source_number, error })?;
        match change {
            Some((key, entry)) if key.as_slice() <= old_key => {
                let is_same = key.as_slice() == old_key;
                if is_same && old.version >= entry.version {
                    let (version, newer_version) = (old.version, entry.version);
                    let newer = 0;
                    return Err(MergeError::VersionOrder {
                        source_number,
                        version,
                        newer,
                        newer_version,
                    });
                }
                let change = self.change.take().flatten();
                let (key, entry) = change.expect("matched above");
                self.push(&key, &entry);
                if is_same {
                    self.old.advance();
                }
            }
            _ => {
                self.payload.clear();
                old.encode(&mut self.payload);
                self.blocks.push(old_key, &self.payload, &mut |block| self.tablets.push(block));
                self.old.advance();
            }
        }
        Ok(())
    }

    /// Adds what a change leaves of its row.
    fn push(&mut self, key: &[u8], entry: &EntryOwned) {
        if entry.row.is_none() {
            return;
        }
        self.payload.clear();
        entry.as_entry().encode(&mut self.payload);
        self.blocks.push(key, &self.payload, &mut |block| self.tablets.push(block));
    }

    fn copy_if_unchanged(&mut self) -> bool {
        let Some((_, block)) = self.old.block_begun() else { return false };
        let behind = self.old.block_end_key();
        let change = self.change.as_ref().and_then(Option::as_ref);
        let is_unchanged = match (change, behind) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some((key, _)), Some(behind)) => key.as_slice() >= behind,
        };
        let is_large = |bytes: usize| bytes >= self.half_block;
        let front_is_fit = self.blocks.is_empty() || is_large(self.blocks.bytes());
        // The last one of all has nobody to join with.
        let is_alone = behind.is_none() && self.blocks.is_empty();
        let is_fit = is_large(block.bytes().len()) || is_alone;
        if !is_unchanged || !front_is_fit || !is_fit {
            return false;
        }
        let copy = copy_block(block);
        self.blocks.finish_rest(&mut |block| self.tablets.push(block));
        self.tablets.push(copy);
        self.outcome.blocks_copied += 1;
        self.old.skip_block();
        true
    }
}

fn changes(needs: impl Iterator<Item = (usize, BlockNeed)>) -> impl Iterator<Item = UnitNeed> {
    needs.map(|(source, need)| UnitNeed::Changes(source, need))
}
