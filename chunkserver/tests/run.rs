//! Runs against a model, against broken bytes, and on a real disk.

mod common;

use common::{Draw, for_seeds};
use spillway_chunkserver::digest::Digester;
use spillway_chunkserver::file::DataDisk;
use spillway_chunkserver::fuzz::{fuzz_run, sample_run};
use spillway_chunkserver::run::{RunOptions, RunReader, RunSummary, RunWriter};
use spillway_chunkserver::{
    Entry, EntryOwned, ReadError, TabletError, TabletOptions, TabletReader, TabletWriter,
    WriteError,
};
use spillway_net::ids::{PartitionId, TableId};
use std::collections::BTreeMap;

type Table = BTreeMap<Vec<u8>, EntryOwned>;
type Model = BTreeMap<u16, Table>;

fn model(draw: &mut Draw) -> Model {
    let mut model = Model::new();
    for _ in 0..draw.range(1, 5) {
        let table = draw.range(1, 4000) as u16;
        for _ in 0..draw.range(1, 200) {
            let key = vec![draw.next() as u8; draw.range(1, 20)];
            let row = vec![draw.next() as u8; draw.below(300)];
            let row = (!draw.once_in(4)).then_some(row);
            let version = draw.next() >> 2;
            model.entry(table).or_default().insert(key, EntryOwned { version, row });
        }
    }
    model
}

fn write(model: &Model, block_bytes_target: usize) -> (Vec<u8>, RunSummary) {
    let options = RunOptions { block_bytes_target, ..RunOptions::new(PartitionId(9), 4) };
    let mut writer = RunWriter::new(Vec::new(), options);
    for (table, entries) in model {
        writer.begin_table(TableId(*table), 77).expect("a sink in memory");
        for (key, entry) in entries {
            writer.add(key, entry.as_entry()).expect("a model is sorted");
        }
    }
    writer.finish().expect("a model has entries")
}

#[test]
fn a_run_is_the_map_it_was_written_from() {
    for_seeds("a_run_is_the_map_it_was_written_from", 60, |mut draw| {
        let model = model(&mut draw);
        let (image, summary) = write(&model, draw.pick(&[1, 300, 16 << 10]));
        assert_eq!(image.len() as u64, summary.image_bytes);
        let mut reader = RunReader::open(image.as_slice()).expect("sound");
        assert_eq!(reader.verify(), Ok(()));
        assert_eq!(reader.directory(), &summary.directory);
        let directory = &summary.directory;
        assert_eq!((directory.partition, directory.version), (PartitionId(9), 4));
        assert_eq!(directory.rows(), model.values().map(|table| table.len() as u64).sum::<u64>());
        for (table, entries) in &model {
            let mut digester = Digester::new(TableId(*table));
            let mut section = reader.table(TableId(*table)).expect("sound").expect("there");
            let mut scanned = Vec::new();
            let scan = section.scan(&[], |key, entry| {
                scanned.push((key.to_vec(), entry.to_owned()));
                let mut bytes = Vec::new();
                entry.encode(&mut bytes);
                digester.add(key, &bytes);
                true
            });
            assert_eq!(scan, Ok(()));
            let expected: Vec<_> = entries.iter().map(|(k, e)| (k.clone(), e.clone())).collect();
            assert_eq!(scanned, expected);
            for key in entries.keys() {
                assert_eq!(section.get(key).expect("sound").as_ref(), entries.get(key));
            }
            let digest = directory.section(TableId(*table)).expect("there").digest;
            assert_eq!(digest, digester.digest());
        }
        assert!(reader.table(TableId(5000)).expect("sound").is_none());
        // Blocks do not matter, content does.
        assert_eq!(write(&model, 100).1.directory.digest(), directory.digest());
    });
}

#[test]
fn every_flipped_byte_is_seen() {
    let image = sample_run();
    let mut broken = image.clone();
    for at in 0..image.len() {
        broken[at] ^= 1 << (at % 8);
        let seen = RunReader::open(broken.as_slice()).and_then(|mut reader| reader.verify());
        assert!(seen.is_err(), "byte {at} of {}", image.len());
        broken[at] = image[at];
    }
    assert_eq!(RunReader::open(image.as_slice()).expect("sound").verify(), Ok(()));
}

#[test]
fn cut_or_mistaken_images_are_refused() {
    let image = sample_run();
    for length in (0..image.len()).step_by(97).chain([image.len() - 4_096]) {
        assert!(RunReader::open(&image[..length]).is_err(), "{length}");
    }
    let seen = TabletReader::open(image.as_slice()).map(|_| ());
    assert_eq!(seen, Err(ReadError::Tablet(TabletError::Magic)), "a run is no tablet");
}

/// Sections of one run in the other's place have right checksums, and are refused.
#[test]
fn a_section_of_another_run_is_refused() {
    let model: Model = [(1, [(b"a".to_vec(), EntryOwned { version: 1, row: None })].into())].into();
    let other: Model = [(1, [(b"a".to_vec(), EntryOwned { version: 2, row: None })].into())].into();
    let (mut image, summary) = write(&model, 100);
    let (strange, _) = write(&other, 100);
    let length = summary.directory.sections[0].length as usize;
    image[..length].copy_from_slice(&strange[..length]);
    let mut reader = RunReader::open(image.as_slice()).expect("the directory is sound");
    let seen = reader.verify();
    assert!(matches!(seen, Err(ReadError::Tablet(TabletError::Malformed(_)))), "{seen:?}");
}

#[test]
fn a_run_without_entries_is_none() {
    let writer = RunWriter::new(Vec::new(), RunOptions::new(PartitionId(1), 1));
    assert_eq!(writer.finish().map(|_| ()), Err(WriteError::Empty));
    let mut writer = RunWriter::new(Vec::new(), RunOptions::new(PartitionId(1), 1));
    writer.begin_table(TableId(1), 1).expect("a sink in memory");
    assert_eq!(writer.finish().map(|_| ()), Err(WriteError::Empty));
}

#[test]
#[should_panic(expected = "holds no deletions")]
fn a_tablet_takes_no_deletions() {
    let mut writer = TabletWriter::new(Vec::new(), TabletOptions::new(TableId(1), 2, 3));
    drop(writer.add(b"a", Entry { version: 1, row: None }));
}

#[test]
fn any_bytes_harm_nobody() {
    for_seeds("any_bytes_harm_nobody", 1_000, |mut draw| {
        let mut image = sample_run();
        for _ in 0..draw.range(1, 6) {
            let at = draw.below(image.len());
            image[at] = draw.next() as u8;
        }
        fuzz_run(&image);
        // Most of the directory's bytes count.
        let at = image.len() - 4_096 + draw.below(48 + 2 * 56);
        image[at] = draw.next() as u8;
        fuzz_run(&image);
        fuzz_run(&image[..draw.below(image.len())]);
    });
}

#[test]
fn a_run_comes_back_from_the_disk() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = directory.path().join("1.run");
    let mut disk = DataDisk::new().expect("a ring").0;
    disk.write(&path, &sample_run()).expect("writable");
    let mut reader = disk.open_run(&path).expect("sound");
    reader.verify().expect("sound");
    let mut table = reader.table(TableId(7)).expect("sound").expect("there");
    let found = table.get(b"key0003").expect("sound").expect("there");
    assert_eq!(found, EntryOwned { version: 3, row: None });
}
