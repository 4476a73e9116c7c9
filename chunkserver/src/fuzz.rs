//! Fuzz entries: take any bytes, and panic only if a promise is broken.
//!
//! A checksum stops nearly all broken inputs at the door, so each entry also vouches for the
//! input itself, and what lies behind the door has to hold on its own.

use crate::block::{BlockView, checksum};
use crate::bloom;
use crate::codec::Codec;
use crate::entry::Entry;
use crate::footer::{Footer, Section};
use crate::index::IndexView;
use crate::manifest::block::{BLOCK_BYTES_MIN, seal as seal_block};
use crate::manifest::{
    FileEntry, FileId, FileKind, ManifestCore, ManifestEdit, ManifestEffect, ManifestInput,
    ManifestOptions, ManifestState, recover,
};
use crate::reader::TabletReader;
use crate::run::{RunOptions, RunReader, RunWriter};
use crate::trailer::{TRAILER_BYTES, seal};
use crate::writer::{TabletOptions, TabletWriter};
use spillway_net::ids::{ClusterId, NodeId, PartitionId, TableId};
use std::convert::Infallible;

/// A block that opens can be read from any side without leaving its bytes.
pub fn fuzz_block(bytes: &[u8]) {
    let Ok(block) = BlockView::open(bytes, checksum(bytes)) else { return };
    let mut total = 0;
    let mut sorted = true;
    let mut before: &[u8] = &[];
    for row in block.iter() {
        total += row.key.len() + row.row.len();
        sorted &= row.key > before;
        before = row.key;
    }
    assert!(total < bytes.len(), "rows lie side by side in the block");
    assert_eq!(block.iter().len(), block.rows() as usize);
    for row in block.iter() {
        let found = block.get(row.key);
        assert!(!sorted || found == Some(row.row), "a row of a sorted block is found");
        assert!(!sorted || block.seek(row.key).next() == Some(row));
    }
    let after = block.seek(&[0xff; 16]).count();
    assert!(after <= block.rows() as usize);
}

/// An index that opens leads every key to a block, and every first key to its own.
pub fn fuzz_index(bytes: &[u8]) {
    for blocks_bytes in [0, 100, 200, u64::MAX, bytes.len() as u64] {
        let Ok(index) = IndexView::open(bytes.to_vec(), checksum(bytes), blocks_bytes) else {
            continue;
        };
        for block in 0..index.blocks() {
            assert_eq!(index.block_of(index.first_key(block)), Some(block));
            let handle = index.handle(block);
            assert!(handle.offset + u64::from(handle.length) <= blocks_bytes);
        }
    }
}

/// A footer that decodes encodes to one that decodes alike.
pub fn fuzz_footer(bytes: &[u8]) {
    for offset in [0, 4_096, u64::MAX] {
        let section = Section { offset, length: bytes.len() as u64, checksum: checksum(bytes) };
        let Ok(footer) = Footer::decode(bytes, section) else { continue };
        let again = footer.encode();
        let section = Section { checksum: checksum(&again), length: again.len() as u64, ..section };
        assert_eq!(Footer::decode(&again, section), Ok(footer));
    }
}

/// A tablet that opens can be read, scanned and verified; with a repaired trailer too.
pub fn fuzz_tablet(bytes: &[u8]) {
    read_all(bytes);
    let Some(start) = bytes.len().checked_sub(TRAILER_BYTES) else { return };
    let mut repaired = bytes.to_vec();
    let mut trailer: [u8; TRAILER_BYTES] = repaired[start..].try_into().expect("its length");
    let word = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("8 bytes"));
    let (offset, length) = (word(16) as usize, (word(8) >> 32) as usize);
    if let Some(footer) = bytes.get(offset..offset.saturating_add(length)) {
        trailer[32..40].copy_from_slice(&checksum(footer).to_le_bytes());
    }
    seal(&mut trailer);
    repaired[start..].copy_from_slice(&trailer);
    read_all(&repaired);
}

fn read_all(bytes: &[u8]) {
    let Ok(mut reader) = TabletReader::open(bytes) else { return };
    let verified = reader.verify().is_ok();
    let (first, last) = (reader.meta().footer().first_key.clone(), [0xff; 8]);
    let mut rows = 0u64;
    let scanned = reader.scan(&[], |_, _| {
        rows += 1;
        true
    });
    assert!(!verified || (scanned.is_ok() && rows == reader.meta().footer().rows));
    let found = reader.get(&first);
    assert!(!verified || matches!(found, Ok(Some(_))), "the first key is there");
    // An error here is one of a block: the reader reports it and lives on.
    let _absent = reader.get(&last);
}

/// A run that opens can be read and verified; with a repaired trailer too.
pub fn fuzz_run(bytes: &[u8]) {
    read_run(bytes);
    let Some(start) = bytes.len().checked_sub(TRAILER_BYTES) else { return };
    let mut repaired = bytes.to_vec();
    let mut trailer: [u8; TRAILER_BYTES] = repaired[start..].try_into().expect("its length");
    let word = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("8 bytes"));
    let (offset, length) = (word(16) as usize, (word(8) >> 32) as usize);
    if let Some(directory) = bytes.get(offset..offset.saturating_add(length)) {
        trailer[32..40].copy_from_slice(&checksum(directory).to_le_bytes());
    }
    seal(&mut trailer);
    repaired[start..].copy_from_slice(&trailer);
    read_run(&repaired);
}

fn read_run(bytes: &[u8]) {
    let Ok(mut reader) = RunReader::open(bytes) else { return };
    let directory = reader.directory().clone();
    let verified = reader.verify().is_ok();
    for section in &directory.sections {
        let Ok(Some(mut table)) = reader.table(section.table) else {
            assert!(!verified, "a table of a sound run opens");
            continue;
        };
        let mut rows = 0;
        let scanned = table.scan(&[], |_, _| {
            rows += 1;
            true
        });
        assert!(!verified || (scanned.is_ok() && rows == section.rows));
    }
}

/// A small run of two tables, with deletions.
pub fn sample_run() -> Vec<u8> {
    let options = RunOptions { block_bytes_target: 256, ..RunOptions::new(PartitionId(5), 9) };
    let mut writer = RunWriter::new(Vec::new(), options);
    for table in [2, 7] {
        writer.begin_table(TableId(table), 1).expect("a sink in memory");
        for number in 0..40u64 {
            let row = (!number.is_multiple_of(3)).then_some(&b"columns"[..]);
            let entry = Entry { version: number, row };
            writer.add(format!("key{number:04}").as_bytes(), entry).expect("entries in order");
        }
    }
    writer.finish().expect("entries are there").0
}

/// A small tablet of several blocks: the sample to mutate.
pub fn sample_tablet() -> Vec<u8> {
    sample_tablet_of(Codec::Plain)
}

/// The same with compressed blocks.
pub fn sample_tablet_compressed() -> Vec<u8> {
    sample_tablet_of(Codec::Lz4)
}

fn sample_tablet_of(codec: Codec) -> Vec<u8> {
    let options = TabletOptions { block_bytes_target: 256, ..TabletOptions::new(TableId(3), 7, 1) };
    let options = TabletOptions { codec, ..options };
    let mut writer = TabletWriter::new(Vec::new(), options);
    for number in 0..60u64 {
        let added: Result<(), crate::WriteError<Infallible>> =
            writer.add(format!("key{number:04}").as_bytes(), entry(number, &number.to_le_bytes()));
        added.expect("rows in order");
    }
    writer.finish().expect("rows are there").0
}

/// Blocks, index and footer of [`sample_tablet`]: samples to mutate.
pub fn sample_parts() -> [Vec<u8>; 3] {
    let image = sample_tablet();
    let reader = TabletReader::open(image.as_slice()).expect("sound");
    let (footer, block) = (reader.meta().footer().clone(), reader.meta().handle(0));
    let index = footer.index.range();
    assert!(bloom::BITS_PER_KEY > 0 && index.start < index.end);
    [
        image[..block.length as usize].to_vec(),
        image[index.start as usize..index.end as usize].to_vec(),
        footer.encode(),
    ]
}

fn entry(version: u64, row: &[u8]) -> Entry<'_> {
    Entry { version, row: Some(row) }
}

fn manifest_options() -> ManifestOptions {
    let options = ManifestOptions::new(ClusterId(7), NodeId(2), BLOCK_BYTES_MIN as u32);
    ManifestOptions { edits_bytes_min: 2048, ..options }
}

/// An edit that decodes encodes to the same bytes, and is lawful or refused.
pub fn fuzz_edit(bytes: &[u8]) {
    let Some(edit) = ManifestEdit::decode(bytes) else { return };
    assert_eq!(edit.encode(), bytes, "there is one way to write an edit");
    let mut state = ManifestState::default();
    if state.check(&edit).is_ok() {
        state.apply(&edit);
        assert_eq!(state.snapshot().encode().len(), state.snapshot_bytes());
    }
}

/// Two manifest files, one behind the other in halves, are read or refused; with the checksums of
/// all blocks repaired too. What is read takes another edit.
pub fn fuzz_manifest(bytes: &[u8]) {
    read_manifest(bytes);
    let mut sealed = bytes.to_vec();
    for block in sealed.chunks_exact_mut(BLOCK_BYTES_MIN) {
        if block.iter().any(|byte| *byte != 0) {
            seal_block(block);
        }
    }
    read_manifest(&sealed);
}

fn read_manifest(bytes: &[u8]) {
    let options = manifest_options();
    let (one, two) = bytes.split_at(bytes.len() / 2);
    let Ok(recovered) = recover(&options, [one, two]) else { return };
    let state = recovered.state.clone();
    let mut again = ManifestState::default();
    assert_eq!(again.check(&state.snapshot()), Ok(()), "a state keeps the rules");
    again.apply(&state.snapshot());
    assert_eq!(again, state);
    let mut core = ManifestCore::new(options, recovered);
    let mut effects = Vec::new();
    let edit = ManifestEdit { adds: Vec::new(), ..state.snapshot() };
    core.step(ManifestInput::Edit(edit), &mut effects);
    assert!(!matches!(effects[..], [ManifestEffect::Applied { .. }]), "nothing is written yet");
}

/// An edit that adds two runs.
pub fn sample_edit() -> Vec<u8> {
    let entry = |id: u64| FileEntry {
        id: FileId(id),
        version: id,
        kind: FileKind::Run { partition: PartitionId(3) },
        rows: 1,
        bytes: 4096,
        digest: crate::digest::ContentDigest(1),
        footer_checksum: 2,
    };
    let adds = vec![entry(1), entry(2)];
    ManifestEdit { version: 2, file_id_max: 2, adds, ..ManifestEdit::default() }.encode()
}

/// Two manifest files of one length, one behind the other: the second is in use and holds two
/// edits, the first is all zeros.
pub fn sample_manifest() -> Vec<u8> {
    let options = manifest_options();
    let mut files = [ManifestCore::format(&options), Vec::new()];
    let found = recover(&options, [&files[0], &files[1]]).expect("a new manifest");
    let mut core = ManifestCore::new(options, found);
    while files[0].len() > files[1].len() {
        let state = core.state();
        let (id, version) = (state.file_id_max() + 1, state.version() + 1);
        let entry = FileEntry {
            id: FileId(id),
            version,
            kind: FileKind::Run { partition: PartitionId(3) },
            rows: 1,
            bytes: 4096,
            digest: crate::digest::ContentDigest(1),
            footer_checksum: 2,
        };
        let adds = vec![entry];
        let edit = ManifestEdit { version, file_id_max: id, adds, ..ManifestEdit::default() };
        let mut input = ManifestInput::Edit(edit);
        loop {
            let mut effects = Vec::new();
            core.step(input, &mut effects);
            match effects.pop().expect("every step has an effect") {
                ManifestEffect::Renew { file, bytes } => files[file] = vec![0; bytes as usize],
                ManifestEffect::Write { file, offset, bytes } => {
                    let range = offset as usize..offset as usize + bytes.len();
                    files[file][range].copy_from_slice(&bytes);
                }
                ManifestEffect::Flush { .. } => {}
                _ => break,
            }
            input = ManifestInput::Ended(Ok(()));
        }
    }
    let [mut first, second] = files;
    first.resize(second.len(), 0);
    [first, second].concat()
}
