//! Freezes and merges on a real disk against a map, over many starts.

mod common;

use common::{Draw, for_seeds};
use spillway_chunkserver::Entry;
use spillway_chunkserver::baseline::{Baseline, BaselineError};
use spillway_chunkserver::codec::Codec;
use spillway_chunkserver::manifest::file::format;
use spillway_chunkserver::manifest::{FileKind, ManifestEdit, ManifestOptions};
use spillway_chunkserver::merge::{KeyRange, MergeTarget};
use spillway_chunkserver::run::RunOptions;
use spillway_net::ids::{ClusterId, NodeId, PartitionId, TableId};
use spillway_runtime::file;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

const TABLES: [TableId; 2] = [TableId(2), TableId(9)];
const PARTITIONS: u16 = 3;

/// Per table and key: row version and row.
type Model = BTreeMap<(TableId, Vec<u8>), (u64, Option<Vec<u8>>)>;

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn options() -> ManifestOptions {
    let options = ManifestOptions::new(ClusterId(7), NodeId(2), 512);
    ManifestOptions { edits_bytes_min: 8 << 10, ..options }
}

fn open(directory: &Path) -> Baseline {
    Baseline::open(directory, &options()).expect("whole").0
}

fn target(table: TableId, version: u64) -> MergeTarget {
    let codec = if table == TABLES[0] { Codec::Plain } else { Codec::Lz4 };
    MergeTarget {
        block_bytes: 1_000,
        tablet_bytes: 20_000,
        codec,
        ..MergeTarget::new(table, 5, version)
    }
}

fn partition_of(key: &[u8]) -> u16 {
    u16::from(key[key.len() - 1]) % PARTITIONS
}

/// Writes the changes as runs, and puts them in force together.
fn freeze(baseline: &mut Baseline, changes: &Model) {
    let version = baseline.state().version() + 1;
    let mut adds = Vec::new();
    for partition in 0..PARTITIONS {
        let of_partition = |table: TableId| {
            changes
                .range((table, Vec::new())..(TableId(table.0 + 1), Vec::new()))
                .filter(|((_, key), _)| partition_of(key) == partition)
        };
        if TABLES.iter().all(|table| of_partition(*table).next().is_none()) {
            continue;
        }
        let options = RunOptions::new(PartitionId(partition), version);
        let options = RunOptions { block_bytes_target: 700, ..options };
        let written = baseline.write_run(options, |writer| {
            for table in TABLES {
                if of_partition(table).next().is_none() {
                    continue;
                }
                writer.begin_table(table, 5)?;
                for ((_, key), (version, row)) in of_partition(table) {
                    writer.add(key, Entry { version: *version, row: row.as_deref() })?;
                }
            }
            Ok(())
        });
        adds.push(written.expect("a disk with room"));
    }
    let state = baseline.state();
    let file_id_max = adds.iter().map(|entry| entry.id.0).fold(state.file_id_max(), u64::max);
    let baseline_version = state.baseline();
    let edit = ManifestEdit {
        version,
        baseline: baseline_version,
        file_id_max,
        adds,
        ..ManifestEdit::default()
    };
    baseline.apply(edit).expect("durable");
}

fn changes(draw: &mut Draw, version: &mut u64) -> Model {
    let mut changes = Model::new();
    for _ in 0..draw.pick(&[0, 3, 200, 1_500]) {
        *version += 1;
        let key = (draw.pick(&TABLES), format!("{:05}", draw.below(3_000)).into_bytes());
        let row = (!draw.once_in(4)).then(|| vec![*version as u8; draw.below(120)]);
        changes.insert(key, (*version, row));
    }
    changes
}

/// Everything that the files amount to is the model.
fn check(baseline: &Baseline, model: &Model) {
    for table in TABLES {
        let mut seen = Vec::new();
        let scanned = baseline.scan(table, &KeyRange::all(), |key, version, row| {
            seen.push((key.to_vec(), (version, Some(row.to_vec()))));
            true
        });
        scanned.expect("sound");
        let expected: Vec<_> = model
            .iter()
            .filter(|((of, _), (_, row))| *of == table && row.is_some())
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        assert!(seen == expected, "table {table}: {} of {}", seen.len(), expected.len());
    }
}

fn names(directory: &Path) -> usize {
    file::list_dir(directory).expect("readable").len()
}

#[test]
fn freezes_and_merges_over_many_starts() {
    let (mut merges, mut resumed, mut orphans) = (0, 0, 0);
    for_seeds("freezes_and_merges_over_many_starts", 6, |mut draw| {
        let place = directory();
        format(place.path(), &options()).expect("an empty directory");
        let (mut model, mut version) = (Model::new(), 0);
        let mut baseline = open(place.path());
        for _ in 0..12 {
            let changes = changes(&mut draw, &mut version);
            freeze(&mut baseline, &changes);
            model.extend(changes);
            check(&baseline, &model);
            if draw.once_in(2) {
                let to = baseline.state().version();
                // An attempt that ends early, and a start that goes on with what is left.
                if draw.once_in(2) {
                    let units = draw.below(6);
                    let table = draw.pick(&TABLES);
                    let begun =
                        baseline.merge(&target(table, to), |done| done.outcomes.len() < units);
                    begun.expect("sound");
                    check(&baseline, &model);
                    drop(baseline);
                    baseline = open(place.path());
                }
                for table in TABLES {
                    let report = baseline.merge(&target(table, to), |_| true).expect("sound");
                    resumed += report.units_found_done;
                }
                check(&baseline, &model);
                baseline.advance(to).expect("durable");
                merges += 1;
                assert!(baseline.state().files().all(|file| file.is_tablet_at(to)));
                check(&baseline, &model);
            }
            if draw.once_in(3) {
                // Files that no edit names: a run that was written before a crash, and a half one.
                let next = baseline.state().file_id_max() + 1;
                drop(baseline);
                for name in [format!("{next}.data"), format!("{}.data.part", next + 1)] {
                    file::write_atomic(&place.path().join(name), b"half").expect("writable");
                    orphans += 1;
                }
                baseline = open(place.path());
                check(&baseline, &model);
            }
            assert_eq!(names(place.path()), 2 + baseline.state().files().len(), "no other files");
        }
        let ids: Vec<_> = baseline.state().files().map(|entry| entry.id).collect();
        for id in ids {
            baseline.verify(id).expect("sound");
        }
    });
    println!("{merges} merges, {resumed} units found done, {orphans} files without an edit");
    assert!(std::env::var("SPILLWAY_SEED").is_ok() || (merges > 10 && resumed > 5 && orphans > 5));
}

#[test]
fn files_that_are_not_the_manifests_are_refused() {
    let place = directory();
    format(place.path(), &options()).expect("an empty directory");
    let mut baseline = open(place.path());
    let (mut draw, mut version) = (Draw(4), 0);
    while baseline.state().version() < 2 || baseline.state().files().len() < 4 {
        freeze(&mut baseline, &changes(&mut draw, &mut version));
    }
    let freezes = baseline.state().version();
    let ids: Vec<_> = baseline
        .state()
        .files()
        .filter(|entry| entry.kind == FileKind::Run { partition: PartitionId(1) })
        .map(|entry| entry.id)
        .collect();
    drop(baseline);
    let path = |id| place.path().join(format!("{id}.data"));
    let sound = file::read(&path(ids[0])).expect("readable");
    let is_refused = |content: &[u8]| {
        file::write_atomic(&path(ids[0]), content).expect("writable");
        match Baseline::open(place.path(), &options()).map(|_| ()) {
            Err(BaselineError::Strange { id, what }) => (id == ids[0]).then_some(what),
            Err(BaselineError::Damaged { id, .. }) => (id == ids[0]).then_some("damaged"),
            _ => None,
        }
    };
    assert_eq!(is_refused(&sound[..sound.len() - 4_096]), Some("length"));
    let mut broken = sound.clone();
    broken[sound.len() - 1] ^= 1;
    assert_eq!(is_refused(&broken), Some("damaged"));
    let other = file::read(&path(ids[1])).expect("readable");
    assert!(other.len() != sound.len() || is_refused(&other) == Some("directory"));
    file::remove_file(&path(ids[0])).expect("there");
    let opened = Baseline::open(place.path(), &options()).map(|_| ());
    assert!(matches!(opened, Err(BaselineError::Strange { what: "missing", .. })));
    // A block that goes wrong is seen by whoever reads it.
    let mut broken = sound.clone();
    broken[60] ^= 1;
    file::write_atomic(&path(ids[0]), &broken).expect("writable");
    let mut baseline = open(place.path());
    let seen = baseline.verify(ids[0]);
    assert!(matches!(seen, Err(BaselineError::Damaged { .. })), "{seen:?}");
    let scanned = baseline.scan(TABLES[0], &KeyRange::all(), |_, _, _| true);
    assert!(matches!(scanned, Err(BaselineError::Damaged { .. })), "{scanned:?}");
    let merged = baseline.merge(&target(TABLES[0], freezes), |_| true);
    assert!(matches!(merged, Err(BaselineError::Damaged { .. })), "{merged:?}");
    drop(baseline);
    file::write_atomic(&path(ids[0]), &sound).expect("writable");
    open(place.path()).verify(ids[0]).expect("sound");
}
