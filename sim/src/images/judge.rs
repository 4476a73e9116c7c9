//! Reads an image back and says what is wrong with it.

use std::collections::BTreeMap;
use std::rc::Rc;

use spillway_net::ids::Lsn;
use spillway_updateserver::log::{LogScanner, Recovered, ScanItem, Superblock};

use super::medium::Medium;

/// A frame that was issued.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Index of its entry; a watermark has none.
    pub lsn: Option<u64>,
    /// Term in its local header.
    pub term: u64,
    /// Its body.
    pub body: Rc<[u8]>,
}

/// What a node was told, and what it has told: what must be found again.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Frames in the order of the physical log, by sequence.
    pub frames: BTreeMap<u64, Kept>,
    /// Everything up to this frame was reported durable, or was read back at a start.
    pub acknowledged: u64,
    /// The node was told that everything up to here is committed.
    pub committed: u64,
    /// Every term and vote that the node ever had.
    pub hard_states: Vec<(u64, u16)>,
    /// The last of them that was reported durable.
    pub promised: (u64, u16),
    /// The last boot whose superblock was durable.
    pub boot: u64,
}

/// Why an image is none that may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The start is refused.
    Refused(String),
    /// Something is missing, another, or too much.
    Wrong(String),
}

fn wrong<T>(what: impl Into<String>) -> Result<T, Bad> {
    Err(Bad::Wrong(what.into()))
}

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), Bad> {
    if holds { Ok(()) } else { Err(Bad::Wrong(what())) }
}

/// What the scan has given so far, held against what was issued.
struct Heard<'a> {
    expected: std::collections::btree_map::Range<'a, u64, Kept>,
    /// Index and shared checksum of the entries that stand.
    log: Vec<(u64, u64)>,
    base: u64,
    truncated: Option<u64>,
    entries: u64,
}

impl Heard<'_> {
    fn last(&self) -> u64 {
        self.log.last().map_or(self.base, |(lsn, _)| *lsn)
    }

    fn take(&mut self, item: &ScanItem<'_>) -> Result<(), Bad> {
        match item {
            ScanItem::Truncated(Lsn(lsn)) => {
                require(*lsn < self.last() && *lsn >= self.base, || {
                    format!("LSN {} to {lsn} are taken back", self.last())
                })?;
                self.log.truncate((lsn - self.base) as usize);
                self.truncated = Some(*lsn);
                Ok(())
            }
            ScanItem::Entry(entry) => {
                let lsn = entry.view.shared.index.0;
                let kept = self.expected.find(|(_, kept)| kept.lsn.is_some());
                let Some((sequence, kept)) = kept else {
                    return wrong(format!("LSN {lsn} was never written"));
                };
                require(*kept.body == *entry.body, || {
                    format!("LSN {lsn} is not what frame {sequence} was")
                })?;
                require(lsn == self.last() + 1, || format!("LSN {lsn} after {}", self.last()))?;
                self.log.push((lsn, entry.view.shared.checksum));
                self.entries += 1;
                Ok(())
            }
        }
    }
}

/// Reads an image back.
///
/// # Errors
/// It is refused, or not what the model says.
pub fn recover(
    medium: &Medium,
    model: &Model,
    read_bytes: usize,
) -> Result<(Superblock, Recovered), Bad> {
    let superblock = medium.superblock().map_err(|error| Bad::Refused(error.to_string()))?;
    let floor = superblock.floor.chain;
    let mut scanner = LogScanner::new(&superblock, read_bytes);
    let mut heard = Heard {
        expected: model.frames.range(floor.sequence..),
        log: Vec::new(),
        base: floor.lsn.0,
        truncated: None,
        entries: 0,
    };
    let mut taken = Ok(());
    while let Some(request) = scanner.next_read() {
        let fed = scanner.feed(Ok(medium.read(&request)), &mut |item| {
            if taken.is_ok() {
                taken = heard.take(&item);
            }
        });
        taken.clone()?;
        fed.map_err(|damaged| Bad::Refused(damaged.to_string()))?;
    }
    let recovered = scanner.finish();
    compare(&superblock, &recovered, &heard, model)?;
    Ok((superblock, recovered))
}

fn compare(
    superblock: &Superblock,
    recovered: &Recovered,
    heard: &Heard<'_>,
    model: &Model,
) -> Result<(), Bad> {
    let next = recovered.position.cursor.chain.sequence;
    require(next > model.acknowledged, || {
        format!("frame {} was reported durable, the log ends before {next}", model.acknowledged)
    })?;
    let from = superblock.floor.chain.sequence;
    let frames = model.frames.range(from..next);
    let written = frames.clone().filter(|(_, kept)| kept.lsn.is_some()).count() as u64;
    require(written == heard.entries && frames.count() as u64 == next - from, || {
        format!("{written} entries were written up to frame {next}, {} are there", heard.entries)
    })?;
    let entries = &recovered.entries;
    require(entries.len() == heard.log.len() && recovered.last_lsn.0 == heard.last(), || {
        format!("the index has {} entries of {}", entries.len(), heard.log.len())
    })?;
    for (lsn, checksum) in &heard.log {
        let found = entries.get(Lsn(*lsn)).map(|meta| meta.checksum);
        require(found == Some(*checksum), || format!("the index has another LSN {lsn}"))?;
    }
    require(recovered.commit_hint.0 <= model.committed, || {
        format!("LSN {} counts as committed, and is not", recovered.commit_hint)
    })?;
    require(superblock.floor.chain.lsn.0 <= model.committed, || {
        "the floor lies behind what is committed".to_owned()
    })?;
    require(superblock.boot >= model.boot, || format!("boot {} again", superblock.boot))?;
    hard_state(recovered, model)
}

/// Neither a term nor a vote is forgotten, and none is invented.
fn hard_state(recovered: &Recovered, model: &Model) -> Result<(), Bad> {
    let (term, vote) = (recovered.term.0, recovered.vote.0);
    let (term_promised, vote_promised) = model.promised;
    let of_frames = model.frames.range(..=model.acknowledged).map(|(_, kept)| kept.term);
    let least = of_frames.max().unwrap_or(0).max(term_promised);
    require(term >= least, || format!("term {term} after term {least}"))?;
    require(term > term_promised || vote_promised == 0 || vote == vote_promised, || {
        format!("the vote for {vote_promised} in term {term} is {vote}")
    })?;
    let known = |state: &(u64, u16)| state.0 == term && (vote == 0 || state.1 == vote);
    require(model.hard_states.iter().any(known), || {
        format!("term {term} with a vote for {vote} was never set")
    })
}
