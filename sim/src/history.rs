//! What all nodes together have put into the log, and what of it is committed.
//!
//! Every entry that a node writes or sends is noted; when the first node says that the committed
//! end has moved, the chain of checksums names the entries up to there. From then on they stay as
//! they are, on every node: that is the promise that everything else stands on.

use std::collections::BTreeMap;
use std::rc::Rc;

use spillway_net::ids::{Epoch, Lsn};
use spillway_updateserver::log::{BodyView, Geometry};
use spillway_updateserver::redo::{FragmentReader, PARTITION_SYSTEM};

use crate::Failure;
use crate::entry::Entry;
use crate::model::{Model, ModelRow, RowKey};
use crate::reads::Versions;
use crate::worker::Tables;

/// An entry that a node wrote or sent.
#[derive(Clone, Debug)]
pub struct Proposed {
    /// The entry.
    pub entry: Rc<Entry>,
    /// Whether nobody wrote or sent it before.
    pub is_new: bool,
}

/// See the module.
#[derive(Debug)]
pub struct History {
    geometry: Geometry,
    /// A lone node may repeat a term whose beginning a crash took back.
    alone: bool,
    /// By index and checksum.
    proposed: BTreeMap<(u64, u64), Rc<Entry>>,
    /// Checksum by index and term.
    of_term: BTreeMap<(u64, u64), u64>,
    committed: Vec<Rc<Entry>>,
    /// The term whose leader committed each of them, its own or a later one.
    committed_in: Vec<Epoch>,
    /// What the committed entries make.
    pub model: Model,
    /// All that the model ever held.
    pub versions: Versions,
    /// LSN of every committed outcome, by session and number.
    pub lsn_of: BTreeMap<(u64, u64), Lsn>,
    /// Running digest of every partition at the committed end.
    pub digests: Vec<u128>,
}

impl History {
    /// Of an empty log.
    pub fn new(geometry: Geometry, alone: bool) -> Self {
        Self {
            geometry,
            alone,
            proposed: BTreeMap::new(),
            of_term: BTreeMap::new(),
            committed: Vec::new(),
            committed_in: Vec::new(),
            model: Model::default(),
            versions: Versions::default(),
            lsn_of: BTreeMap::new(),
            digests: vec![0; usize::from(geometry.partitions)],
        }
    }

    /// A node wrote or sent this body. `None` for a watermark's.
    pub fn propose(&mut self, body: &[u8]) -> Result<Option<Proposed>, Failure> {
        let view = BodyView::new(&self.geometry, body)
            .map_err(|fault| Failure::new(format!("the body of a frame: {fault}")))?;
        let shared = view.shared;
        if let Some(known) = self.proposed.get(&(shared.index.0, shared.checksum)) {
            if known.body != body {
                return Err(changed(shared.index));
            }
            return Ok(Some(Proposed { entry: Rc::clone(known), is_new: false }));
        }
        let Some(entry) = Entry::of(&self.geometry, body)? else { return Ok(None) };
        let (lsn, term) = (entry.lsn.0, entry.term.0);
        let before = self.of_term.insert((lsn, term), entry.checksum);
        if before.is_some() && !self.alone {
            return Err(Failure::new(format!("LSN {lsn} of term {term} exists twice")));
        }
        self.proposed.insert((lsn, entry.checksum), Rc::clone(&entry));
        Ok(Some(Proposed { entry, is_new: true }))
    }

    /// Index of the last committed entry.
    pub fn last(&self) -> Lsn {
        Lsn(self.committed.len() as u64)
    }

    /// A committed entry.
    pub fn at(&self, lsn: Lsn) -> Option<&Rc<Entry>> {
        self.committed.get((lsn.0 as usize).checked_sub(1)?)
    }

    /// The last entry that a leader of an earlier term committed. Entries of an earlier term that a
    /// later one committed may be missing in the log of a leader in between: those who voted for it
    /// may have got them after their vote.
    pub fn last_before(&self, term: Epoch) -> Lsn {
        Lsn(self.committed_in.partition_point(|of| *of < term) as u64)
    }

    /// Whether a log that ends with this entry holds everything committed up to `committed`.
    pub fn descends(&self, last: Lsn, last_term: Epoch, committed: Lsn) -> bool {
        if committed.0 == 0 {
            return true;
        }
        let of_term = self.of_term.get(&(last.0, last_term.0)).copied();
        let (mut at, mut checksum) = (last.0, of_term);
        // Entries that are committed continue each other: one of them is as good as all.
        while at > committed.0 {
            checksum = checksum.and_then(|sum| Some(self.proposed.get(&(at, sum))?.previous));
            at -= 1;
        }
        at == committed.0 && checksum == self.at(committed).map(|entry| entry.checksum)
    }

    /// Whether this was ever proposed.
    pub fn knows(&self, entry: &Entry) -> bool {
        let known = self.proposed.get(&(entry.lsn.0, entry.checksum));
        known.is_some_and(|known| known.body == entry.body)
    }

    /// A node says now that everything up to the entry of this index and term is committed.
    /// Returns what nobody had said before.
    pub fn commit(
        &mut self,
        now: u64,
        lsn: Lsn,
        term: Epoch,
        tables: &Tables,
    ) -> Result<Vec<Rc<Entry>>, Failure> {
        if let Some(known) = self.at(lsn) {
            let same = known.term == term;
            return if same { Ok(Vec::new()) } else { Err(replaced(lsn, known.term, term)) };
        }
        let unknown = || Failure::new(format!("LSN {lsn} of term {term} is committed, not known"));
        let mut checksum = *self.of_term.get(&(lsn.0, term.0)).ok_or_else(unknown)?;
        let mut new = Vec::new();
        for at in (self.last().0 + 1..=lsn.0).rev() {
            let entry = self.proposed.get(&(at, checksum)).ok_or_else(unknown)?;
            checksum = entry.previous;
            new.push(Rc::clone(entry));
        }
        if let Some(last) = self.committed.last()
            && last.checksum != checksum
        {
            let first = new.last().expect("there is at least one");
            return Err(replaced(last.lsn, last.term, first.term));
        }
        new.reverse();
        for entry in &new {
            self.apply(entry, now, tables)?;
            self.committed.push(Rc::clone(entry));
            // Who says so first leads, and commits with an entry of its own term.
            self.committed_in.push(term);
        }
        Ok(new)
    }

    fn apply(&mut self, entry: &Entry, now: u64, tables: &Tables) -> Result<(), Failure> {
        if let Some(last) = self.committed.last()
            && (entry.timestamp <= last.timestamp || entry.term < last.term)
        {
            return Err(Failure::new(format!("LSN {} goes back in time or term", entry.lsn)));
        }
        let lsn = entry.lsn;
        self.versions.entry(now);
        for section in entry.sections.iter().filter(|s| s.partition != PARTITION_SYSTEM) {
            let versions = &mut self.versions;
            let changed = |key: &RowKey, row: &ModelRow| versions.changed(key, row);
            self.model.redo(lsn, section.partition, &section.bytes, tables, changed)?;
            self.digests[usize::from(section.partition)] = section.digest;
            let reader = FragmentReader::new(&section.bytes)
                .map_err(|error| Failure::new(format!("a shard handed over no redo: {error}")))?;
            for outcome in reader.outcomes() {
                self.lsn_of.insert((outcome.session, outcome.number), lsn);
            }
        }
        Ok(())
    }
}

fn changed(lsn: Lsn) -> Failure {
    Failure::new(format!("LSN {lsn} is not what was appended"))
}

fn replaced(lsn: Lsn, before: Epoch, now: Epoch) -> Failure {
    Failure::new(format!(
        "LSN {lsn} of term {before} was committed, and what was committed now, of term {now}, \
         does not continue it: something acknowledged is lost"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use crate::draw::Draw;
    use crate::options::Sizes;

    /// Nodes 2 and 3 voted for 3 in term 4; node 2 votes for 1 in term 5 before the last vote for 3
    /// arrives, gets an entry of term 2 from it, and 1 commits that with one of its own.
    #[test]
    fn what_a_later_term_committed_is_not_asked_of_an_earlier_leader() {
        let sizes = Sizes::draw(&mut Draw::new(1), &Options::cluster(1, 3));
        let mut history = History::new(sizes.geometry, false);
        history.committed_in.extend([1, 2, 5, 5].map(Epoch));
        assert_eq!(history.last_before(Epoch(4)), Lsn(2));
        assert_eq!(history.last_before(Epoch(5)), Lsn(2));
        assert_eq!(history.last_before(Epoch(6)), Lsn(4));
        assert_eq!(history.last_before(Epoch(1)), Lsn(0));
    }
}
