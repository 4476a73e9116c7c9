//! The files of one node's data disk, and the manifest that says which are in force.
//!
//! These calls wait for the disk: they are for background cores, for the start, and for tools. A
//! shard drives the same cores ([`crate::merge`]) with its own ring.
//!
//! A file is written under an id that the manifest has not given out, made durable, read again
//! where it is to replace memory, and only then named by an edit. So what a crash leaves behind is
//! a file that no edit names; it is removed at the next start.

use crate::error::{ReadError, TabletError, WriteError};
use crate::file::{DataDisk, TabletFileWriter};
use crate::manifest::file::{EditError, ManifestFiles, OpenError};
use crate::manifest::{FileEntry, FileId, FileKind, ManifestEdit, ManifestOptions, ManifestState};
use crate::merge::{
    BlockNeed, KeyRange, MergeError, MergeIterator, MergeStep, MergeTarget, MergeUnit, PlanError,
    TabletOfView, TabletSource, UnitMerge, UnitNeed, UnitOutcome, UnitStep, is_done, plan,
    unit_edit,
};
use crate::reader::CheckedBlock;
use crate::run::{RunOptions, RunWriter};
use crate::source::ByteSink;
use bytes::Bytes;
use spillway_net::ids::TableId;
use spillway_runtime::buffer::{AlignedBuffer, BUFFER_ALIGNMENT};
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::{RuntimeError, file};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the entries of a run got into its writer.
pub type Filled = Result<(), WriteError<RuntimeError>>;

/// What can go wrong with the files of the data disk.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The file system failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The manifest could not be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The manifest could not be changed.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A file is damaged.
    #[error("file {id}: {error}")]
    Damaged {
        /// Which file.
        id: FileId,
        /// What is wrong with it.
        error: TabletError,
    },
    /// A file is not the one that the manifest names.
    #[error(
        "file {id} is not the one that the manifest names ({what}): it was cut, replaced, or is \
         missing; copy it from another zone"
    )]
    Strange {
        /// Which file.
        id: FileId,
        /// What differs.
        what: &'static str,
    },
    /// A run or tablet could not be written.
    #[error(transparent)]
    Write(WriteError<RuntimeError>),
    /// The layers do not belong together, or are damaged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The tablets do not fit the merge.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// What a merge has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MergeReport {
    /// The units, in the order in which they were done.
    pub outcomes: Vec<UnitOutcome>,
    /// Units that an earlier attempt had done.
    pub units_found_done: usize,
}

/// The data disk of a node.
pub struct Baseline {
    directory: PathBuf,
    manifest: ManifestFiles,
    disk: DataDisk,
    /// The highest id in use, named by the manifest or not.
    file_id_last: u64,
    files: BTreeMap<FileId, DirectFile>,
    /// What of tablets, and of sections of runs, stays in memory.
    parts: BTreeMap<(FileId, TableId), TabletOfView>,
}

impl Baseline {
    /// Opens the manifest, sees that every file that it names is there, and removes those that it
    /// does not name. With it comes the warning to log if buffers could not be locked.
    ///
    /// # Errors
    /// As the file system fails, and what is damaged. Then nothing is removed.
    pub fn open(
        directory: &Path,
        options: &ManifestOptions,
    ) -> Result<(Baseline, Option<String>), BaselineError> {
        let manifest = ManifestFiles::open(directory, options)?;
        let (disk, warning) = DataDisk::new()?;
        let (directory, file_id_last) = (directory.to_owned(), manifest.state().file_id_max());
        let (files, parts) = (BTreeMap::new(), BTreeMap::new());
        let mut baseline = Baseline { directory, manifest, disk, file_id_last, files, parts };
        let entries: Vec<_> = baseline.state().files().cloned().collect();
        for entry in &entries {
            baseline.open_file(entry)?;
        }
        baseline.remove_strangers()?;
        Ok((baseline, warning))
    }

    /// The files in force.
    pub fn state(&self) -> &ManifestState {
        self.manifest.state()
    }

    /// Writes the changes of one partition as a file, makes it durable and reads it again. `fill`
    /// gives the tables and entries in order. The file is not in force before an edit names it.
    ///
    /// # Errors
    /// As the disk fails, and when what is read is not what was written. The file is gone then.
    pub fn write_run(
        &mut self,
        options: RunOptions,
        fill: impl FnOnce(&mut RunWriter<TabletFileWriter<'_>>) -> Filled,
    ) -> Result<FileEntry, BaselineError> {
        let id = self.next_id();
        let path = self.path(id);
        let mut writer = RunWriter::new(self.disk.create(&path)?, options);
        fill(&mut writer).map_err(BaselineError::Write)?;
        let (sink, summary) = writer.finish().map_err(BaselineError::Write)?;
        sink.finish()?;
        let entry = FileEntry {
            id,
            version: options.version,
            kind: FileKind::Run { partition: options.partition },
            rows: summary.directory.rows(),
            bytes: summary.image_bytes,
            digest: summary.directory.digest(),
            footer_checksum: summary.directory_checksum,
        };
        if let Err(error) = self.verify_entry(&entry) {
            file::remove_file(&path)?;
            return Err(error);
        }
        self.open_file(&entry)?;
        Ok(entry)
    }

    /// Changes what is in force, then removes the files that are not any more: who reads them
    /// elsewhere has let go of them before.
    ///
    /// # Errors
    /// When the edit is not in force, or nobody knows; or a file could not be removed, which the
    /// next start does.
    ///
    /// # Panics
    /// If the edit breaks a rule.
    pub fn apply(&mut self, edit: ManifestEdit) -> Result<u64, BaselineError> {
        let removes = edit.removes.clone();
        let sequence = self.manifest.apply(edit)?;
        for id in removes {
            self.files.remove(&id);
            self.parts.retain(|(file, _), _| *file != id);
            file::remove_file(&self.path(id))?;
        }
        Ok(sequence)
    }

    /// Reads a file from front to back, and checks that it is sound and the one that the manifest
    /// names.
    ///
    /// # Errors
    /// As the disk fails, and what is wrong.
    pub fn verify(&mut self, id: FileId) -> Result<(), BaselineError> {
        let what = "it is not in the manifest";
        let entry = self.state().file(id).ok_or(BaselineError::Strange { id, what })?.clone();
        self.verify_entry(&entry)
    }

    /// Gives every row of a table to `visit` in key order, until it answers `false`: what tablets
    /// and runs amount to.
    ///
    /// # Errors
    /// As the disk fails, and what is wrong with the files.
    pub fn scan(
        &self,
        table: TableId,
        range: &KeyRange,
        mut visit: impl FnMut(&[u8], u64, &[u8]) -> bool,
    ) -> Result<(), BaselineError> {
        let (from, to) = (self.state().baseline(), u64::MAX);
        let mut sources = self.changes(table, (from, to), range);
        let tablets = self.tablets(table, from);
        sources.push(TabletSource::new(tablets, range.clone()));
        let mut merge = MergeIterator::new(sources);
        loop {
            match merge.step()? {
                MergeStep::Ended => return Ok(()),
                MergeStep::Blocked => {
                    let needs: Vec<_> = merge.needs().collect();
                    for (source, need) in needs {
                        merge.supply(source, self.read(table, &need)?);
                    }
                }
                MergeStep::Entry { key, entry, .. } => {
                    if entry.row.is_some_and(|row| !visit(key, entry.version, row)) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Merges the runs behind the baseline, up to the target's version, into the tablets of one
    /// table. Each unit is in force with an edit of its own; `goes_on` is asked before each, and
    /// what is left is done by the next call. The new tablets are read once an edit moves the
    /// baseline.
    ///
    /// # Errors
    /// As the disk fails, and what is wrong with the files.
    pub fn merge(
        &mut self,
        target: &MergeTarget,
        mut goes_on: impl FnMut(&MergeReport) -> bool,
    ) -> Result<MergeReport, BaselineError> {
        assert!(target.version <= self.state().version(), "a merge of what is on the disk");
        assert!(target.version > self.state().baseline(), "a merge goes forward");
        let mut report = MergeReport::default();
        for unit in plan(target, &self.tablets(target.table, self.state().baseline()))? {
            if is_done(self.state(), target, &unit) {
                report.units_found_done += 1;
            } else if goes_on(&report) {
                let outcome = self.merge_unit(target, unit)?;
                report.outcomes.push(outcome);
            } else {
                break;
            }
        }
        Ok(report)
    }

    /// Reads tablets at this version from now on, and lets everything go that only an older one
    /// needs. All tables have to be merged to it.
    ///
    /// # Errors
    /// As [`Baseline::apply`].
    pub fn advance(&mut self, version: u64) -> Result<u64, BaselineError> {
        let state = self.state();
        let is_needed = |entry: &&FileEntry| match &entry.kind {
            FileKind::Run { .. } => entry.version > version,
            FileKind::Tablet { until, .. } => until.is_none_or(|until| until > version),
        };
        let removes = state.files().filter(|entry| !is_needed(entry)).map(|entry| entry.id);
        let edit = ManifestEdit {
            version: state.version(),
            baseline: version,
            file_id_max: state.file_id_max(),
            removes: removes.collect(),
            ..ManifestEdit::default()
        };
        self.apply(edit)
    }

    fn merge_unit(
        &mut self,
        target: &MergeTarget,
        unit: MergeUnit,
    ) -> Result<UnitOutcome, BaselineError> {
        let versions = (self.state().baseline(), target.version);
        let changes = self.changes(target.table, versions, &unit.range);
        let mut merge = UnitMerge::new(target, unit, changes);
        let mut ids = Vec::new();
        let outcome = loop {
            match go_on(&self.files, &self.parts, target.table, &mut merge)? {
                UnitStep::Append(bytes) => {
                    let id = self.next_id();
                    self.write_tablet(id, &bytes, target.table, &mut merge)?;
                    ids.push(id);
                }
                UnitStep::Ended(outcome) => break outcome,
                step => panic!("a tablet begins with bytes: {step:?}"),
            }
        };
        if !outcome.is_kept {
            let edit = unit_edit(self.state(), target, &outcome, &ids);
            for entry in &edit.adds {
                self.open_file(entry)?;
            }
            self.apply(edit)?;
        }
        Ok(outcome)
    }

    /// Writes one tablet of a merge, of which the first bytes have come.
    fn write_tablet(
        &mut self,
        id: FileId,
        first: &[u8],
        table: TableId,
        merge: &mut UnitMerge<TabletSource>,
    ) -> Result<(), BaselineError> {
        let mut writer = self.disk.create(&path_of(&self.directory, id))?;
        writer.append(first)?;
        loop {
            match go_on(&self.files, &self.parts, table, merge)? {
                UnitStep::Append(bytes) => writer.append(&bytes)?,
                UnitStep::Tablet(_) => return Ok(writer.finish()?),
                step => panic!("a tablet that is not complete: {step:?}"),
            }
        }
    }

    /// The tablets of a table at a version, in key order.
    fn tablets(&self, table: TableId, version: u64) -> Vec<TabletOfView> {
        let entries = self.state().tablets(table, version);
        entries.iter().map(|entry| self.parts[&(entry.id, table)].clone()).collect()
    }

    /// The runs behind one version and up to another that hold the table, the newest first.
    fn changes(
        &self,
        table: TableId,
        (behind, up_to): (u64, u64),
        range: &KeyRange,
    ) -> Vec<TabletSource> {
        let is_run = |entry: &&FileEntry| matches!(entry.kind, FileKind::Run { .. });
        let in_time = |entry: &&FileEntry| behind < entry.version && entry.version <= up_to;
        let mut runs: Vec<_> = self.state().files().filter(is_run).filter(in_time).collect();
        runs.sort_by_key(|entry| (std::cmp::Reverse(entry.version), entry.id));
        let parts = runs.iter().filter_map(|entry| self.parts.get(&(entry.id, table)));
        parts.map(|part| TabletSource::new(vec![part.clone()], range.clone())).collect()
    }

    fn read(&self, table: TableId, need: &BlockNeed) -> Result<CheckedBlock, BaselineError> {
        read(&self.files, &self.parts, table, need)
    }

    fn next_id(&mut self) -> FileId {
        self.file_id_last += 1;
        FileId(self.file_id_last)
    }

    fn path(&self, id: FileId) -> PathBuf {
        path_of(&self.directory, id)
    }

    /// Opens a file, and keeps of it what stays in memory.
    fn open_file(&mut self, entry: &FileEntry) -> Result<(), BaselineError> {
        let (id, path) = (entry.id, self.path(entry.id));
        if !file::exists(&path) {
            return Err(BaselineError::Strange { id, what: "missing" });
        }
        let target = DirectFile::open(&path, DirectMode::Read)?;
        if target.bytes()? != entry.bytes {
            return Err(BaselineError::Strange { id, what: "length" });
        }
        let of_read = |error| of_read(id, error);
        let strange = |what| Err(BaselineError::Strange { id, what });
        match &entry.kind {
            FileKind::Tablet { table, .. } => {
                let reader = self.disk.open(&path).map_err(of_read)?;
                if reader.footer_checksum() != entry.footer_checksum {
                    return strange("footer");
                }
                let (image_offset, meta) = (0, Arc::new(reader.meta().clone()));
                let part = TabletOfView { file: id, image_offset, meta };
                self.parts.insert((id, *table), part);
            }
            FileKind::Run { .. } => {
                let mut reader = self.disk.open_run(&path).map_err(of_read)?;
                if reader.directory_checksum() != entry.footer_checksum {
                    return strange("directory");
                }
                for section in reader.directory().sections.clone() {
                    let table = reader.table(section.table).map_err(of_read)?;
                    let meta = table.expect("a table of the directory").meta().clone();
                    let (image_offset, meta) = (section.offset, Arc::new(meta));
                    let part = TabletOfView { file: id, image_offset, meta };
                    self.parts.insert((id, section.table), part);
                }
            }
        }
        self.files.insert(id, target);
        Ok(())
    }

    fn verify_entry(&mut self, entry: &FileEntry) -> Result<(), BaselineError> {
        let (id, path) = (entry.id, self.path(entry.id));
        let of_read = |error| of_read(id, error);
        let found = match entry.kind {
            FileKind::Run { .. } => {
                let mut reader = self.disk.open_run(&path).map_err(of_read)?;
                reader.verify().map_err(of_read)?;
                let directory = reader.directory();
                (reader.directory_checksum(), directory.rows(), directory.digest())
            }
            FileKind::Tablet { .. } => {
                let mut reader = self.disk.open(&path).map_err(of_read)?;
                reader.verify().map_err(of_read)?;
                let footer = reader.meta().footer();
                (reader.footer_checksum(), footer.rows, footer.digest)
            }
        };
        if found != (entry.footer_checksum, entry.rows, entry.digest) {
            return Err(BaselineError::Strange { id, what: "content" });
        }
        Ok(())
    }

    fn remove_strangers(&mut self) -> Result<(), BaselineError> {
        for path in file::list_dir(&self.directory)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let id = name.strip_suffix(".part").unwrap_or(name).strip_suffix(FILE_SUFFIX);
            let Some(id) = id.and_then(|id| id.parse().ok()).map(FileId) else { continue };
            if name.ends_with(".part") || self.state().file(id).is_none() {
                file::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Runs and tablets are named by their ids.
const FILE_SUFFIX: &str = ".data";

fn path_of(directory: &Path, id: FileId) -> PathBuf {
    directory.join(format!("{id}{FILE_SUFFIX}"))
}

fn of_read(id: FileId, error: ReadError<RuntimeError>) -> BaselineError {
    match error {
        ReadError::Source(error) => BaselineError::Runtime(error),
        ReadError::Tablet(error) => BaselineError::Damaged { id, error },
    }
}

/// Steps until there is something to write, or the unit is done.
fn go_on(
    files: &BTreeMap<FileId, DirectFile>,
    parts: &BTreeMap<(FileId, TableId), TabletOfView>,
    table: TableId,
    merge: &mut UnitMerge<TabletSource>,
) -> Result<UnitStep, BaselineError> {
    loop {
        match merge.step()? {
            UnitStep::Working => {}
            UnitStep::Blocked => {
                let needs: Vec<_> = merge.needs().collect();
                for need in needs {
                    let (UnitNeed::Old(of_file) | UnitNeed::Changes(_, of_file)) = need;
                    merge.supply(need, read(files, parts, table, &of_file)?);
                }
            }
            step => return Ok(step),
        }
    }
}

/// Reads a block with whole blocks of the disk around it, and checks it.
fn read(
    files: &BTreeMap<FileId, DirectFile>,
    parts: &BTreeMap<(FileId, TableId), TabletOfView>,
    table: TableId,
    need: &BlockNeed,
) -> Result<CheckedBlock, BaselineError> {
    let (start, id) = (need.offset(), need.file);
    let (target, part) = (&files[&id], &parts[&(id, table)]);
    let window = start - start % BUFFER_ALIGNMENT as u64;
    let skip = (start - window) as usize;
    let length = need.handle.length as usize;
    let mut buffer = AlignedBuffer::new(skip + length);
    let got = target.read_at(&mut buffer, window)?;
    if got < skip + length {
        return Err(BaselineError::Strange { id, what: "length" });
    }
    let bytes = Bytes::copy_from_slice(&buffer[skip..skip + length]);
    CheckedBlock::new(&part.meta, need.handle, bytes)
        .map_err(|error| BaselineError::Damaged { id, error })
}
