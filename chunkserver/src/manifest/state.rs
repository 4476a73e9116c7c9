//! The files in force, and the rules of their change.

use super::edit::{EDIT_HEAD_BYTES, ManifestEdit};
use super::entry::{COUNTER_LIMIT, FileEntry, FileId, FileKind};
use crate::limits::{MANIFEST_FILES_MAX, MANIFEST_STATE_BYTES_MAX};
use spillway_net::ids::{PartitionId, TableId};
use std::collections::{BTreeMap, BTreeSet};

/// Why an edit does not fit the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditFault {
    /// Too many files.
    #[error(
        "the manifest would name {files} files, and at most {MANIFEST_FILES_MAX} are allowed: let \
         the merge catch up, so that runs and old tablets can go"
    )]
    Files {
        /// How many it would be.
        files: usize,
    },
    /// Too many bytes.
    #[error(
        "the manifest or its change would take {bytes} bytes, and at most \
         {MANIFEST_STATE_BYTES_MAX} are allowed: let the merge catch up, so that runs and old \
         tablets can go"
    )]
    Bytes {
        /// How many it would be.
        bytes: usize,
    },
    /// A counter that may only rise would fall, or is beyond its range.
    #[error("{0} of the manifest would fall, or is out of range")]
    Counter(&'static str),
    /// An entry breaks a rule of its own.
    #[error("file {id}: {what}")]
    Entry {
        /// Which file.
        id: FileId,
        /// Which rule.
        what: &'static str,
    },
    /// Two tablets would be in force for one key of one version.
    #[error("table {table}: two tablets would be in force for one key at version {version}")]
    Overlap {
        /// Whose tablets.
        table: TableId,
        /// Where.
        version: u64,
    },
}

impl EditFault {
    /// True when a limit is in the way, which may happen in operation; everything else is a
    /// mistake of who made the edit.
    pub fn is_limit(&self) -> bool {
        matches!(self, EditFault::Files { .. } | EditFault::Bytes { .. })
    }
}

/// All files in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestState {
    version: u64,
    baseline: u64,
    file_id_max: u64,
    files: BTreeMap<FileId, FileEntry>,
    /// Length of the state as a snapshot, without the head.
    entries_bytes: usize,
}

/// A tablet's place: keys and versions.
#[derive(Clone, Copy)]
struct Extent<'a> {
    table: TableId,
    first_key: &'a [u8],
    last_key: &'a [u8],
    from: u64,
    until: Option<u64>,
}

impl ManifestState {
    /// Every change up to this freeze is in files of this node.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The version at which tablets are read.
    pub fn baseline(&self) -> u64 {
        self.baseline
    }

    /// The highest file id ever given out.
    pub fn file_id_max(&self) -> u64 {
        self.file_id_max
    }

    /// All files, by id.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &FileEntry> {
        self.files.values()
    }

    /// One file.
    pub fn file(&self, id: FileId) -> Option<&FileEntry> {
        self.files.get(&id)
    }

    /// The tablets of a table that are in force at `version`, in key order.
    pub fn tablets(&self, table: TableId, version: u64) -> Vec<&FileEntry> {
        let is_there = |entry: &&FileEntry| {
            entry.is_tablet_at(version) && extent(entry).is_some_and(|at| at.table == table)
        };
        let mut tablets: Vec<_> = self.files().filter(is_there).collect();
        tablets.sort_by_key(|entry| extent(entry).map(|at| at.first_key));
        tablets
    }

    /// The runs of a partition behind one version and up to another, the newest first.
    pub fn runs(&self, partition: PartitionId, behind: u64, up_to: u64) -> Vec<&FileEntry> {
        let of_partition = FileKind::Run { partition };
        let is_there = |entry: &&FileEntry| {
            entry.kind == of_partition && behind < entry.version && entry.version <= up_to
        };
        let mut runs: Vec<_> = self.files().filter(is_there).collect();
        runs.sort_by_key(|entry| std::cmp::Reverse(entry.version));
        runs
    }

    /// The edit that leads from nothing to this state.
    pub fn snapshot(&self) -> ManifestEdit {
        ManifestEdit {
            version: self.version,
            baseline: self.baseline,
            file_id_max: self.file_id_max,
            adds: self.files.values().cloned().collect(),
            ..ManifestEdit::default()
        }
    }

    /// Length of the snapshot's bytes.
    pub fn snapshot_bytes(&self) -> usize {
        EDIT_HEAD_BYTES + self.entries_bytes
    }

    /// Whether the edit keeps all rules.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self, edit: &ManifestEdit) -> Result<(), EditFault> {
        self.check_limits(edit)?;
        for (before, after, what) in [
            (self.version, edit.version, "the version"),
            (self.baseline, edit.baseline, "the baseline"),
            (self.file_id_max, edit.file_id_max, "the highest file id"),
        ] {
            if after < before || after >= COUNTER_LIMIT {
                return Err(EditFault::Counter(what));
            }
        }
        if edit.baseline > edit.version {
            return Err(EditFault::Counter("the baseline, which is ahead of the version,"));
        }
        let mut touched = BTreeSet::new();
        for (id, until) in &edit.ends {
            let what = self.end_fault(edit, *id, *until).or_else(|| twice(touched.insert(*id)));
            what.map_or(Ok(()), |what| Err(EditFault::Entry { id: *id, what }))?;
        }
        for id in &edit.removes {
            let what = self.removal_fault(edit, *id).or_else(|| twice(touched.insert(*id)));
            what.map_or(Ok(()), |what| Err(EditFault::Entry { id: *id, what }))?;
        }
        for entry in &edit.adds {
            let what = self.addition_fault(edit, entry).or_else(|| twice(touched.insert(entry.id)));
            what.map_or(Ok(()), |what| Err(EditFault::Entry { id: entry.id, what }))?;
        }
        self.check_runs(edit)?;
        self.check_overlap(edit)
    }

    /// Changes the state.
    ///
    /// # Panics
    /// If the edit breaks a rule: [`ManifestState::check`] comes first.
    pub fn apply(&mut self, edit: &ManifestEdit) {
        for (id, end) in &edit.ends {
            let entry = self.files.get_mut(id).expect("the edit was checked: the file is there");
            let FileKind::Tablet { until, .. } = &mut entry.kind else {
                panic!("the edit was checked: file {id} is a tablet");
            };
            *until = *end;
        }
        for id in &edit.removes {
            let entry = self.files.remove(id).expect("the edit was checked: the file is there");
            self.entries_bytes -= entry.encoded_bytes();
        }
        for entry in &edit.adds {
            assert!(entry.id.0 > self.file_id_max, "file id {} is used again", entry.id);
            self.entries_bytes += entry.encoded_bytes();
            self.files.insert(entry.id, entry.clone());
        }
        assert!(edit.version >= self.version && edit.baseline >= self.baseline, "versions rise");
        self.version = edit.version;
        self.baseline = edit.baseline;
        self.file_id_max = edit.file_id_max;
    }

    fn check_limits(&self, edit: &ManifestEdit) -> Result<(), EditFault> {
        let files = self.files.len() + edit.adds.len();
        if files > MANIFEST_FILES_MAX + edit.removes.len() {
            return Err(EditFault::Files { files: files - edit.removes.len() });
        }
        // Removals are not taken off: they may name what is not there.
        let adds: usize = edit.adds.iter().map(FileEntry::encoded_bytes).sum();
        for bytes in [edit.encoded_bytes(), self.snapshot_bytes() + adds] {
            if bytes > MANIFEST_STATE_BYTES_MAX {
                return Err(EditFault::Bytes { bytes });
            }
        }
        Ok(())
    }

    fn end_fault(&self, edit: &ManifestEdit, id: FileId, end: Option<u64>) -> Option<&'static str> {
        let Some(entry) = self.files.get(&id) else { return Some("is not there and cannot end") };
        let FileKind::Tablet { until, .. } = &entry.kind else {
            return Some("is no tablet and has no end");
        };
        if until.is_some_and(|until| until <= self.baseline) {
            return Some("ended in front of the baseline, and stays so");
        }
        let is_behind = |end: u64| end > self.baseline && end > entry.version;
        match end {
            Some(end) if !is_behind(end) || end > edit.version => {
                Some("cannot end at or in front of the baseline, nor ahead of the version")
            }
            _ => None,
        }
    }

    /// What the baseline and the runs behind it need stays.
    fn removal_fault(&self, edit: &ManifestEdit, id: FileId) -> Option<&'static str> {
        let Some(entry) = self.files.get(&id) else { return Some("is not there and cannot go") };
        if matches!(entry.kind, FileKind::Run { .. }) {
            let is_merged = entry.version <= edit.baseline;
            return (!is_merged).then_some("is a run that the baseline does not include");
        }
        let is_same = |other: &&FileEntry| {
            other.digest == entry.digest && other.rows == entry.rows && {
                let (one, other) = (extent(entry), extent(other));
                one.zip(other).is_some_and(|(one, other)| {
                    one.table == other.table
                        && (one.first_key, one.last_key) == (other.first_key, other.last_key)
                        && (one.from, one.until) == (other.from, other.until)
                })
            }
        };
        if entry.is_tablet_at(edit.baseline) && edit.adds.iter().find(is_same).is_none() {
            return Some("is a tablet of the baseline, and no equal one comes in its place");
        }
        None
    }

    fn addition_fault(&self, edit: &ManifestEdit, entry: &FileEntry) -> Option<&'static str> {
        if entry.id.0 <= self.file_id_max || entry.id.0 > edit.file_id_max {
            return Some("has an id that was given out before, or not yet");
        }
        match &entry.kind {
            FileKind::Run { .. } if entry.version <= self.version => {
                Some("is a run of a freeze that was complete")
            }
            FileKind::Tablet { until, .. }
                if entry.version > edit.version || until.is_some_and(|end| end > edit.version) =>
            {
                Some("is a tablet ahead of the version")
            }
            _ => entry.fault(),
        }
    }

    fn check_runs(&self, edit: &ManifestEdit) -> Result<(), EditFault> {
        let added = edit.adds.iter().filter_map(run);
        let Some(lowest) = added.clone().map(|(_, version)| version).min() else { return Ok(()) };
        let kept = self.files().filter(|entry| entry.version >= lowest);
        let mut seen: BTreeSet<_> = kept.filter_map(run).collect();
        for entry in &edit.adds {
            if run(entry).is_some_and(|run| !seen.insert(run)) {
                let what = "is a second run of its partition and freeze";
                return Err(EditFault::Entry { id: entry.id, what });
            }
        }
        Ok(())
    }

    /// Walks up the versions with the tablets that are in force, of the tables that change.
    fn check_overlap(&self, edit: &ManifestEdit) -> Result<(), EditFault> {
        let ends: BTreeMap<_, _> = edit.ends.iter().copied().collect();
        let removes: BTreeSet<_> = edit.removes.iter().copied().collect();
        let of_ends = ends.keys().filter_map(|id| self.files.get(id));
        let changed: BTreeSet<_> = edit
            .adds
            .iter()
            .chain(of_ends)
            .filter_map(|entry| Some(extent(entry)?.table))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let stays = self.files().filter(|entry| !removes.contains(&entry.id));
        let extents = stays.filter_map(|entry| {
            let mut at = extent(entry)?;
            if let Some(until) = ends.get(&entry.id) {
                at.until = *until;
            }
            Some(at)
        });
        let extents = extents.chain(edit.adds.iter().filter_map(extent));
        let extents = extents.filter(|at| changed.contains(&at.table));
        let mut events: Vec<(TableId, u64, bool, Extent<'_>)> = Vec::new();
        for at in extents {
            events.push((at.table, at.from, true, at));
            events.extend(at.until.map(|until| (at.table, until, false, at)));
        }
        // What ends at a version ends before anything begins there.
        events
            .sort_by_key(|(table, version, begins, at)| (*table, *version, *begins, at.first_key));
        let mut active: BTreeMap<(TableId, &[u8]), &[u8]> = BTreeMap::new();
        for (table, version, begins, at) in events {
            if !begins {
                active.remove(&(table, at.first_key));
                continue;
            }
            let before = active.range(..=(table, at.last_key)).next_back();
            if before.is_some_and(|((of, _), last)| *of == table && *last >= at.first_key) {
                return Err(EditFault::Overlap { table, version });
            }
            active.insert((table, at.first_key), at.last_key);
        }
        Ok(())
    }
}

fn twice(is_first: bool) -> Option<&'static str> {
    (!is_first).then_some("is named twice in one edit")
}

fn run(entry: &FileEntry) -> Option<(PartitionId, u64)> {
    match entry.kind {
        FileKind::Run { partition } => Some((partition, entry.version)),
        FileKind::Tablet { .. } => None,
    }
}

fn extent(entry: &FileEntry) -> Option<Extent<'_>> {
    match &entry.kind {
        FileKind::Run { .. } => None,
        FileKind::Tablet { table, first_key, last_key, until, .. } => {
            let (from, until) = (entry.version, *until);
            Some(Extent { table: *table, first_key, last_key, from, until })
        }
    }
}
