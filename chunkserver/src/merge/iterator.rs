//! Many sources, one order: each key once, with its newest entry.

use super::source::{BlockNeed, Source};
use super::tree::LoserTree;
use crate::entry::Entry;
use crate::error::TabletError;
use crate::reader::CheckedBlock;

/// Why a merge stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// What was read is wrong.
    #[error("source {source_number}: {error}")]
    Tablet {
        /// Which source.
        source_number: usize,
        /// What is wrong.
        error: TabletError,
    },
    /// A key does not follow the one before it in the same source.
    #[error("source {source_number}: keys do not rise")]
    Order {
        /// Which source.
        source_number: usize,
    },
    /// An older source holds a newer change of a key.
    #[error(
        "source {source_number} is older than source {newer}, and holds row version {version} of \
         a key that has version {newer_version} there: the view mixes layers that do not belong \
         together"
    )]
    VersionOrder {
        /// The older source.
        source_number: usize,
        /// Its row version.
        version: u64,
        /// The newer source.
        newer: usize,
        /// Its row version.
        newer_version: u64,
    },
}

/// What a step of the merge gives.
#[derive(Debug, PartialEq, Eq)]
pub enum MergeStep<'a> {
    /// The newest entry of the next key. Deletions too: they hide what older sources hold.
    Entry {
        /// The number of the source that holds it.
        source: usize,
        /// The key.
        key: &'a [u8],
        /// The entry.
        entry: Entry<'a>,
    },
    /// Sources need blocks: [`MergeIterator::needs`].
    Blocked,
    /// There are no more keys.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The tree was not built: sources may need their first blocks.
    New,
    /// The winner's entry has not been given.
    AtWinner,
    /// The entry of this source and version was given; its key is in `key`.
    Given { source: usize, version: u64 },
    /// The same, and the winner has moved but has not played again.
    Moving { source: usize, version: u64 },
}

/// The merge. It holds its sources, and one key.
#[derive(Debug)]
pub struct MergeIterator<S> {
    sources: Vec<S>,
    tree: LoserTree,
    stage: Stage,
    /// The key that was given last.
    key: Vec<u8>,
}

impl<S: Source> MergeIterator<S> {
    /// A merge of these sources, the newest first.
    pub fn new(sources: Vec<S>) -> MergeIterator<S> {
        let (tree, stage) = (LoserTree::default(), Stage::New);
        MergeIterator { sources, tree, stage, key: Vec::new() }
    }

    /// The blocks without which it cannot go on, each with the number of its source.
    pub fn needs(&self) -> impl Iterator<Item = (usize, BlockNeed)> {
        let sources = self.sources.iter().enumerate();
        sources.filter_map(|(number, source)| Some((number, source.need()?)))
    }

    /// The blocks that will be needed next: reading them now spares a wait.
    pub fn needs_ahead(&self) -> impl Iterator<Item = (usize, BlockNeed)> {
        let sources = self.sources.iter().enumerate();
        sources.filter_map(|(number, source)| Some((number, source.need_ahead()?)))
    }

    /// Hands a block to the source that needs it.
    pub fn supply(&mut self, source: usize, block: CheckedBlock) {
        self.sources[source].supply(block);
    }

    /// How many sources there are.
    pub fn sources_count(&self) -> usize {
        self.sources.len()
    }

    /// Goes on to the next key. Does work for at most one entry of each source.
    ///
    /// # Errors
    /// When sources hold what they must not; it makes no sense to go on then.
    pub fn step(&mut self) -> Result<MergeStep<'_>, MergeError> {
        if !self.settle()? {
            return Ok(MergeStep::Blocked);
        }
        let Some((source, _)) = self.winner() else { return Ok(MergeStep::Ended) };
        let version = self.entry(source)?.version;
        self.key.clear();
        let key = self.sources[source].key().expect("the winner is at an entry");
        self.key.extend_from_slice(key);
        self.stage = Stage::Given { source, version };
        Ok(MergeStep::Entry { source, key: &self.key, entry: self.entry(source)? })
    }

    /// Moves every source behind the key that was given, and finds the next. `false` if a block is
    /// needed first.
    fn settle(&mut self) -> Result<bool, MergeError> {
        loop {
            match self.stage {
                Stage::New => {
                    if self.needs().next().is_some() {
                        return Ok(false);
                    }
                    let sources = &self.sources;
                    self.tree = LoserTree::new(sources.len(), |one, two| less(sources, one, two));
                    self.stage = Stage::AtWinner;
                }
                Stage::AtWinner => return Ok(true),
                Stage::Given { source, version } => {
                    let Some((winner, key)) = self.winner() else { return Ok(true) };
                    if key != self.key {
                        self.stage = Stage::AtWinner;
                        return Ok(true);
                    }
                    if winner != source {
                        self.check_older(winner, source, version)?;
                    }
                    self.sources[winner].advance();
                    self.stage = Stage::Moving { source, version };
                }
                Stage::Moving { source, version } => {
                    let winner = self.tree.winner().expect("somebody moved");
                    if self.sources[winner].need().is_some() {
                        return Ok(false);
                    }
                    let key = self.sources[winner].key();
                    if key.is_some_and(|key| key <= self.key.as_slice()) {
                        return Err(MergeError::Order { source_number: winner });
                    }
                    let sources = &self.sources;
                    self.tree.replay(|one, two| less(sources, one, two));
                    self.stage = Stage::Given { source, version };
                }
            }
        }
    }

    fn check_older(
        &self,
        older: usize,
        newer: usize,
        newer_version: u64,
    ) -> Result<(), MergeError> {
        let version = self.entry(older)?.version;
        if version < newer_version {
            return Ok(());
        }
        Err(MergeError::VersionOrder { source_number: older, version, newer, newer_version })
    }

    /// The source that is first, and its key; `None` when all have ended.
    fn winner(&self) -> Option<(usize, &[u8])> {
        let winner = self.tree.winner()?;
        Some((winner, self.sources[winner].key()?))
    }

    fn entry(&self, source: usize) -> Result<Entry<'_>, MergeError> {
        let entry = self.sources[source].entry();
        entry.map_err(|error| MergeError::Tablet { source_number: source, error })
    }
}

/// Whether source `one` comes first: the smaller key, then the newer source; ended ones last.
fn less<S: Source>(sources: &[S], one: usize, two: usize) -> bool {
    match (sources[one].key(), sources[two].key()) {
        (Some(key_one), Some(key_two)) => (key_one, one) < (key_two, two),
        (Some(_), None) => true,
        (None, Some(_)) => false,
        (None, None) => one < two,
    }
}
