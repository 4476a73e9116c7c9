//! Tablets against a model, and against broken bytes.

use bytes::Bytes;
use proptest::prelude::*;
use spillway_chunkserver::block::{BlockBuilder, BlockView, checksum};
use spillway_chunkserver::codec::Codec;
use spillway_chunkserver::fuzz::{
    fuzz_block, fuzz_footer, fuzz_index, fuzz_tablet, sample_parts, sample_tablet,
    sample_tablet_compressed,
};
use spillway_chunkserver::reader::CheckedBlock;
use spillway_chunkserver::{
    BlockError, Entry, TabletError, TabletOptions, TabletReader, TabletSummary, TabletWriter,
    WriteError,
};
use spillway_net::ids::TableId;
use std::collections::BTreeMap;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn write(model: &Model, block_bytes_target: usize) -> (Vec<u8>, TabletSummary) {
    write_as(Codec::Plain, model, block_bytes_target)
}

fn write_as(codec: Codec, model: &Model, block_bytes_target: usize) -> (Vec<u8>, TabletSummary) {
    let options = TabletOptions::new(TableId(1), 2, 3);
    let options = TabletOptions { block_bytes_target, codec, ..options };
    let mut writer = TabletWriter::new(Vec::new(), options);
    for (key, row) in model {
        writer.add(key, entry(row)).expect("a model is sorted");
        assert!(writer.bytes() > 0);
    }
    let bytes_max = writer.bytes();
    let (image, summary) = writer.finish().expect("a model has rows");
    assert!(image.len() as u64 <= bytes_max + 8_192, "{} of {bytes_max}", image.len());
    (image, summary)
}

/// The version follows from the row, so that it can be told.
fn entry(row: &[u8]) -> Entry<'_> {
    Entry { version: row.len() as u64, row: Some(row) }
}

fn rows() -> impl Strategy<Value = Model> {
    let key = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..12),
        proptest::collection::vec(0u8..3, 1..4),
        proptest::collection::vec(any::<u8>(), 1_000..1_024),
    ];
    let row = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..120),
        proptest::collection::vec(any::<u8>(), 4_000..4_100),
    ];
    proptest::collection::btree_map(key, row, 1..120)
}

fn probes(model: &Model) -> Vec<Vec<u8>> {
    let mut probes: Vec<Vec<u8>> = vec![vec![], vec![0], vec![1, 1], vec![255; 9]];
    for key in model.keys() {
        let mut longer = key.clone();
        longer.push(0);
        let shorter = key[..key.len() - 1].to_vec();
        probes.extend([key.clone(), longer, shorter]);
    }
    probes
}

proptest! {
    #[test]
    fn a_tablet_is_the_map_it_was_written_from(
        model in rows(),
        target in prop_oneof![Just(1usize), Just(300), Just(16 << 10)],
        codec in prop_oneof![Just(Codec::Plain), Just(Codec::Lz4)],
    ) {
        let (image, summary) = write_as(codec, &model, target);
        prop_assert_eq!(summary.footer.digest, write(&model, 16 << 10).1.footer.digest);
        prop_assert_eq!(image.len() as u64, summary.image_bytes);
        prop_assert_eq!(image.len() % 4_096, 0);
        let mut reader = TabletReader::open(image.as_slice()).expect("sound");
        prop_assert_eq!(reader.verify(), Ok(()));
        prop_assert_eq!(reader.meta().footer(), &summary.footer);
        prop_assert_eq!(reader.meta().blocks(), summary.blocks);
        if target == 1 {
            prop_assert_eq!(summary.blocks as usize, model.len(), "a block per row");
        }
        for probe in probes(&model) {
            let found = reader.get(&probe).expect("sound");
            let expected = model.get(&probe).map(|row| entry(row));
            prop_assert_eq!(found.as_ref().map(|found| found.as_entry()), expected);
            let mut scanned = Vec::new();
            let scan = reader.scan(&probe, |key, found| {
                assert_eq!(found, entry(found.row.expect("a row")));
                scanned.push((key.to_vec(), found.row.expect("a row").to_vec()));
                scanned.len() < 5
            });
            prop_assert_eq!(scan, Ok(()));
            let expected: Vec<_> =
                model.range(probe..).take(5).map(|(k, v)| (k.clone(), v.clone())).collect();
            prop_assert_eq!(scanned, expected);
        }
    }

    #[test]
    fn the_digest_does_not_depend_on_blocks(model in rows()) {
        let (one, other) = (write(&model, 200).1, write(&model, 16 << 10).1);
        prop_assert_eq!(one.footer.digest, other.footer.digest);
        let mut changed = model.clone();
        let first = changed.keys().next().expect("not empty").clone();
        changed.get_mut(&first).expect("there").push(1);
        prop_assert_ne!(write(&changed, 200).1.footer.digest, one.footer.digest);
    }

    #[test]
    fn a_block_is_the_map_it_was_built_from(model in rows()) {
        let mut builder = BlockBuilder::default();
        for (key, row) in &model {
            prop_assert!(builder.bytes_with(key, row) > builder.bytes());
            builder.push(key, row);
        }
        let (bytes, mut out) = (builder.bytes(), b"before".to_vec());
        builder.finish(&mut out);
        let block = &out[6..];
        prop_assert_eq!(block.len(), bytes);
        let view = BlockView::open(block, checksum(block)).expect("sound");
        for probe in probes(&model) {
            prop_assert_eq!(view.get(&probe), model.get(&probe).map(Vec::as_slice));
            let sought = view.seek(&probe).next().map(|row| row.key);
            prop_assert_eq!(sought, model.range(probe..).next().map(|(key, _)| key.as_slice()));
        }
        let backwards: Vec<_> = view.iter().rev().map(|row| row.key).collect();
        let expected: Vec<_> = model.keys().rev().map(Vec::as_slice).collect();
        prop_assert_eq!(backwards, expected);
    }

    #[test]
    fn any_bytes_harm_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz_block(&bytes);
        fuzz_index(&bytes);
        fuzz_footer(&bytes);
        fuzz_tablet(&bytes);
    }

    #[test]
    fn mutated_parts_harm_nobody(
        which in 0usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let [mut block, mut index, mut footer] = sample_parts();
        let part = [&mut block, &mut index, &mut footer].into_iter().nth(which).expect("one of 3");
        for (at, value) in changes {
            let at = at.index(part.len());
            part[at] = value;
        }
        for length in [part.len(), cut.index(part.len() + 1)] {
            let part = &part[..length];
            [fuzz_block, fuzz_index, fuzz_footer][which](part);
        }
    }

    #[test]
    fn mutated_tablets_harm_nobody(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        for mut image in [sample_tablet(), sample_tablet_compressed()] {
            for (at, value) in &changes {
                let at = at.index(image.len());
                image[at] = *value;
            }
            fuzz_tablet(&image);
        }
    }
}

/// Every byte of an image is vouched for: flip any of its bits, and somebody notices.
#[test]
fn every_flipped_byte_is_seen() {
    for image in [sample_tablet(), sample_tablet_compressed()] {
        flip_every_byte(&image);
    }
}

fn flip_every_byte(image: &[u8]) {
    let footer = TabletReader::open(image).expect("sound").meta().footer().clone();
    let is_packed = footer.blocks_bytes < footer.plain_bytes;
    assert_eq!(is_packed, image == sample_tablet_compressed(), "a sample of what it is called");
    let mut broken = image.to_vec();
    for at in 0..image.len() {
        broken[at] ^= 1 << (at % 8);
        let seen = TabletReader::open(broken.as_slice()).and_then(|mut reader| reader.verify());
        assert!(seen.is_err(), "byte {at} of {}", image.len());
        broken[at] = image[at];
    }
    assert_eq!(TabletReader::open(image).expect("sound").verify(), Ok(()));
}

#[test]
fn a_cut_image_is_refused() {
    let image = sample_tablet();
    for length in (0..image.len()).step_by(97).chain([image.len() - 1, image.len() - 4_096]) {
        assert!(TabletReader::open(&image[..length]).is_err(), "{length}");
    }
    let mut longer = image;
    longer.extend([0; 4_096]);
    assert!(TabletReader::open(longer.as_slice()).is_err());
}

#[test]
fn a_block_of_another_tablet_is_refused() {
    let image = sample_tablet();
    let reader = TabletReader::open(image.as_slice()).expect("sound");
    let (one, other) = (reader.meta().handle(0), reader.meta().handle(1));
    let end = other.offset + u64::from(other.length);
    let bytes = Bytes::copy_from_slice(&image[other.offset as usize..end as usize]);
    let refused = CheckedBlock::new(reader.meta(), one, bytes).expect_err("the other block");
    assert!(matches!(refused, TabletError::Block { error: BlockError::Checksum { .. }, .. }));
}

#[test]
fn rows_that_no_table_has_are_refused() {
    let options = TabletOptions::new(TableId(1), 2, 3);
    let mut writer = TabletWriter::new(Vec::new(), options);
    assert_eq!(writer.add(b"", entry(b"")), Err(WriteError::KeySize { row: 0, bytes: 0 }));
    let key = vec![1; 1_025];
    assert_eq!(writer.add(&key, entry(b"")), Err(WriteError::KeySize { row: 0, bytes: 1_025 }));
    let row = vec![1; 65_537];
    assert_eq!(writer.add(b"a", entry(&row)), Err(WriteError::RowSize { row: 0, bytes: 65_537 }));
    assert_eq!(writer.add(b"b", entry(b"")), Ok(()));
    assert_eq!(writer.add(b"b", entry(b"")), Err(WriteError::Order { row: 1 }));
    assert_eq!(writer.add(b"a", entry(b"")), Err(WriteError::Order { row: 1 }));
    let (image, summary) = writer.finish().expect("one row");
    assert_eq!(summary.footer.rows, 1);
    assert_eq!(TabletReader::open(image.as_slice()).expect("sound").verify(), Ok(()));
    let empty = TabletWriter::new(Vec::new(), options).finish().expect_err("no rows");
    assert_eq!(empty, WriteError::Empty);
}

#[test]
fn rows_that_are_alike_take_less() {
    let model: Model = (0..2_000u32).map(|n| (n.to_be_bytes().to_vec(), vec![7; 100])).collect();
    let (plain, packed) = (write(&model, 16 << 10), write_as(Codec::Lz4, &model, 16 << 10));
    assert!(4 * packed.0.len() < plain.0.len(), "{} of {}", packed.0.len(), plain.0.len());
    let (plain, packed) = (plain.1.footer, packed.1.footer);
    assert_eq!(plain.plain_bytes, packed.plain_bytes);
    assert_eq!((plain.plain_bytes, plain.digest), (plain.blocks_bytes, packed.digest));
}

#[test]
fn the_largest_rows_fit() {
    let model: Model = (0..5u8).map(|n| (vec![n + 1; 1_024], vec![n; 65_536])).collect();
    let (image, summary) = write(&model, 16 << 10);
    assert_eq!(summary.blocks, 5);
    assert_eq!(TabletReader::open(image.as_slice()).expect("sound").verify(), Ok(()));
}
