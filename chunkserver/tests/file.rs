//! Tablets on a real disk, through its ring.
//!
//! The directory lies beside the build output: a temporary directory may be on a file system
//! without direct I/O.

use spillway_chunkserver::file::DataDisk;
use spillway_chunkserver::fuzz::sample_tablet;
use spillway_chunkserver::{Entry, ReadError, TabletError, TabletOptions, TabletWriter};
use spillway_net::ids::TableId;
use spillway_runtime::{RuntimeError, file};
use std::path::Path;
use tempfile::TempDir;

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn disk() -> DataDisk {
    DataDisk::new().expect("a ring").0
}

fn names(directory: &TempDir) -> usize {
    file::list_dir(directory.path()).expect("readable").len()
}

/// Writes a tablet of several MiB row by row: more pieces than buffers, the last one short.
fn write_large(disk: &mut DataDisk, path: &Path) -> u64 {
    let writer = disk.create(path).expect("writable");
    let mut tablet = TabletWriter::new(writer, TabletOptions::new(TableId(1), 2, 3));
    for number in 0..40_000u64 {
        let row = [number as u8; 100];
        let entry = Entry { version: number, row: Some(&row) };
        tablet.add(&number.to_be_bytes(), entry).expect("sorted");
    }
    let (writer, summary) = tablet.finish().expect("writable");
    writer.finish().expect("durable");
    summary.image_bytes
}

#[test]
fn a_tablet_comes_back_from_the_disk() {
    let (directory, mut disk) = (directory(), disk());
    let path = directory.path().join("1.tablet");
    let bytes = write_large(&mut disk, &path);
    assert_eq!(file::bytes_of(&path).expect("there"), bytes);
    assert!(bytes > 4 << 20, "{bytes} bytes are more than all buffers hold");
    assert_eq!(names(&directory), 1, "nothing else is left behind");
    let mut reader = disk.open(&path).expect("sound");
    reader.verify().expect("sound");
    for number in [0u64, 1, 20_000, 39_999] {
        let row = reader.get(&number.to_be_bytes()).expect("sound");
        let row = row.expect("there");
        assert_eq!((row.version, row.row), (number, Some(vec![number as u8; 100])));
    }
    assert_eq!(reader.get(&40_000u64.to_be_bytes()).expect("sound"), None);
    let mut first = None;
    let scanned = reader.scan(&12_345u64.to_be_bytes(), |key, _| {
        first = Some(key.to_vec());
        false
    });
    scanned.expect("sound");
    assert_eq!(first, Some(12_345u64.to_be_bytes().to_vec()));
}

#[test]
fn the_ring_serves_one_file_after_another() {
    let (directory, mut disk) = (directory(), disk());
    for number in 0..20 {
        let path = directory.path().join(format!("{number}.tablet"));
        disk.write(&path, &sample_tablet()).expect("writable");
        disk.open(&path).expect("sound").verify().expect("sound");
    }
    assert_eq!(names(&directory), 20);
}

#[test]
fn an_unfinished_file_never_appears() {
    let (directory, mut disk) = (directory(), disk());
    let path = directory.path().join("1.tablet");
    drop(disk.create(&path).expect("writable"));
    assert_eq!(names(&directory), 0);
    // What a killed process leaves behind is in nobody's way.
    let left_behind = directory.path().join("1.tablet.part");
    file::write_atomic(&left_behind, b"half").expect("writable");
    disk.write(&path, &sample_tablet()).expect("writable");
    assert_eq!(names(&directory), 1);
}

#[test]
fn wrong_bytes_on_the_disk_are_seen() {
    let (directory, mut disk) = (directory(), disk());
    let path = directory.path().join("1.tablet");
    let mut image = sample_tablet();
    image[100] ^= 1;
    disk.write(&path, &image).expect("writable");
    let seen = disk.open(&path).expect("the block is read later").verify();
    assert!(
        matches!(seen, Err(ReadError::Tablet(TabletError::Block { block: 0, .. }))),
        "{seen:?}"
    );
    let mut longer = sample_tablet();
    longer.push(0);
    for odd in [&sample_tablet()[..4_000], &longer] {
        file::write_atomic(&path, odd).expect("writable");
        let seen = disk.open(&path).map(|_| ());
        assert_eq!(seen, Err(ReadError::Tablet(TabletError::Magic)), "{} bytes", odd.len());
    }
}

#[test]
fn a_missing_file_is_named() {
    let (directory, mut disk) = (directory(), disk());
    let path = directory.path().join("gone.tablet");
    let seen = disk.open(&path).map(|_| ());
    assert!(matches!(seen, Err(ReadError::Source(RuntimeError::NotFound { .. }))), "{seen:?}");
}
