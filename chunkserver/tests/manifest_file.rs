//! The manifest on a real disk.

use spillway_chunkserver::digest::ContentDigest;
use spillway_chunkserver::manifest::file::{ManifestFiles, OpenError, format, paths};
use spillway_chunkserver::manifest::{
    DamageReason, FileEntry, FileId, FileKind, ManifestEdit, ManifestOptions,
};
use spillway_net::ids::{ClusterId, NodeId, PartitionId};
use spillway_runtime::{RuntimeError, file};
use tempfile::TempDir;

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn options() -> ManifestOptions {
    let options = ManifestOptions::new(ClusterId(7), NodeId(2), 4096);
    ManifestOptions { edits_bytes_min: 16 << 10, ..options }
}

/// The next freeze, with 100 runs; those of the one before go.
fn freeze(files: &ManifestFiles) -> ManifestEdit {
    let state = files.state();
    let version = state.version() + 1;
    let run = |partition: u16| FileEntry {
        id: FileId(state.file_id_max() + 1 + u64::from(partition)),
        version,
        kind: FileKind::Run { partition: PartitionId(partition) },
        rows: 1,
        bytes: 4096,
        digest: ContentDigest(1),
        footer_checksum: 2,
    };
    ManifestEdit {
        version,
        baseline: state.version(),
        file_id_max: state.file_id_max() + 100,
        adds: (0..100).map(run).collect(),
        ends: Vec::new(),
        removes: state.files().map(|entry| entry.id).collect(),
    }
}

#[test]
fn edits_come_back_from_the_disk() {
    let directory = directory();
    format(directory.path(), &options()).expect("an empty directory");
    let again = format(directory.path(), &options());
    assert!(matches!(again, Err(RuntimeError::File { .. })), "{again:?}");
    let mut in_use = Vec::new();
    for round in 1..=12 {
        let mut files = ManifestFiles::open(directory.path(), &options()).expect("whole");
        for _ in 0..3 {
            let edit = freeze(&files);
            files.apply(edit).expect("durable");
        }
        let state = files.state().clone();
        assert_eq!((files.sequence(), state.files().len()), (3 * round, 100));
        drop(files);
        let files = ManifestFiles::open(directory.path(), &options()).expect("whole");
        assert_eq!(files.state(), &state);
        let lengths = paths(directory.path()).map(|path| file::bytes_of(&path).expect("there"));
        assert!(lengths.contains(&0) && lengths.iter().sum::<u64>() < 100 << 10, "{lengths:?}");
        in_use.push(lengths[0] > 0);
    }
    assert!(in_use.contains(&true) && in_use.contains(&false), "the files take turns: {in_use:?}");
}

#[test]
fn only_one_may_have_it_open() {
    let directory = directory();
    format(directory.path(), &options()).expect("an empty directory");
    let files = ManifestFiles::open(directory.path(), &options()).expect("whole");
    let second = ManifestFiles::open(directory.path(), &options()).map(|_| ());
    let path = directory.path().to_owned();
    assert_eq!(second, Err(OpenError::Runtime(RuntimeError::DirectoryLocked { path })));
    drop(files);
    ManifestFiles::open(directory.path(), &options()).expect("free again");
}

#[test]
fn damage_is_refused_and_left_as_it_is() {
    let directory = directory();
    format(directory.path(), &options()).expect("an empty directory");
    let [first, _] = paths(directory.path());
    let mut bytes = file::read(&first).expect("readable");
    bytes[200] ^= 1;
    file::write_atomic(&first, &bytes).expect("writable");
    let opened = ManifestFiles::open(directory.path(), &options()).map(|_| ());
    let Err(OpenError::Damaged(damage)) = opened else { panic!("{opened:?}") };
    assert_eq!((damage.file, damage.offset, damage.reason), (0, 0, DamageReason::Block));
    assert_eq!(file::read(&first).expect("readable"), bytes);
    file::write_atomic(&first, &[]).expect("writable");
    let opened = ManifestFiles::open(directory.path(), &options()).map(|_| ());
    let Err(OpenError::Damaged(damage)) = opened else { panic!("{opened:?}") };
    assert_eq!(damage.reason, DamageReason::Missing);
}
