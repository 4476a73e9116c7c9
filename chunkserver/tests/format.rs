//! Tablets, runs and manifest read by hand, as docs/FORMAT.md says, without the code that wrote
//! them.

use spillway_chunkserver::fuzz::{
    sample_manifest, sample_run, sample_tablet, sample_tablet_compressed,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

/// Key, head and row of an entry.
type Read = (Vec<u8>, u64, Vec<u8>);

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes")))
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")) as usize
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes[at..at + 16].try_into().expect("16 bytes"))
}

/// An array of an archive whose root or field stands at `at`: the begin and the count.
fn array_at(bytes: &[u8], at: usize) -> (usize, usize) {
    let offset = i32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    ((at as i64 + i64::from(offset)) as usize, u32_at(bytes, at + 4))
}

fn key_at(bytes: &[u8], at: usize) -> Vec<u8> {
    let (start, count) = array_at(bytes, at);
    bytes[start..start + count].to_vec()
}

/// What the trailer of an image leads to, and its checksum.
fn footer_of<'a>(image: &'a [u8], magic: &[u8]) -> (&'a [u8], u64) {
    let trailer = &image[image.len() - 48..];
    assert_eq!((&trailer[..8], u32_at(trailer, 8)), (magic, 1));
    assert_eq!(u64_at(trailer, 24), image.len() as u64);
    assert!(image.len().is_multiple_of(4096));
    assert_eq!(u64_at(trailer, 40), xxh3_64(&trailer[..40]));
    let (start, length) = (u64_at(trailer, 16) as usize, u32_at(trailer, 12));
    let footer = &image[start..start + length];
    assert_eq!(u64_at(trailer, 32), xxh3_64(footer));
    assert!(image[start + length..image.len() - 48].iter().all(|byte| *byte == 0));
    (footer, u64_at(trailer, 32))
}

fn filter_has(filter: &[u8], key: &[u8]) -> bool {
    let hash = xxh3_64_with_seed(key, 0x5350_494C_4C42_4C4D);
    let blocks = (filter.len() / 64) as u128;
    let block = ((u128::from(hash) * blocks) >> 64) as usize;
    let mixed = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = mixed ^ (mixed >> 32);
    (0..7).map(|turn| (mixed >> (9 * turn)) as usize % 512).all(|bit| {
        let byte = filter[64 * block + bit / 8];
        byte & (1 << (bit % 8)) != 0
    })
}

/// Key, head and row of every entry of a block, and the digest of the entries.
fn entries_of(block: &[u8], table: u16) -> (Vec<Read>, u128) {
    let rows = u32_at(block, 0);
    assert_eq!((u32_at(block, 4), u32_at(block, 4 + 4 * rows)), (8 + 4 * rows, block.len()));
    let (mut entries, mut digest) = (Vec::new(), 0u128);
    for row in 0..rows {
        let entry = &block[u32_at(block, 4 + 4 * row)..u32_at(block, 8 + 4 * row)];
        let (key, payload) = entry[2..].split_at(u16_at(entry, 0));
        entries.push((key.to_vec(), u64_at(payload, 0), payload[8..].to_vec()));
        let head = [&table.to_le_bytes()[..], &(key.len() as u32).to_le_bytes(), key].concat();
        digest = digest.wrapping_add(xxh3_128(&[&head[..], payload].concat()));
    }
    (entries, digest)
}

/// Reads a tablet, or a section of a run: key, head and row of every entry.
fn tablet(image: &[u8], content: u8) -> Vec<Read> {
    let (footer, _) = footer_of(image, b"SPLLTABL");
    let root = &footer[footer.len() - 123..];
    let base = footer.len() - 123;
    let table = u16_at(root, 0) as u16;
    assert_eq!(root[2], content);
    let section = |at: usize| {
        let start = u64_at(root, at) as usize;
        let bytes = &image[start..start + u64_at(root, at + 8) as usize];
        assert_eq!(u64_at(root, at + 16), xxh3_64(bytes));
        (start, bytes)
    };
    let ((index_start, index), (filter_start, filter)) = (section(59), section(83));
    assert_eq!(u64_at(root, 43), index_start as u64, "the index is behind the blocks");
    assert_eq!(filter_start, index_start + index.len());
    let rows = u64_at(root, 19) as usize;
    assert_eq!(filter.len(), 64 * (12 * rows).div_ceil(512).max(1));
    let (first, blocks) = array_at(index, index.len() - 8);
    let (mut entries, mut digest, mut plain_bytes, mut end) = (Vec::new(), 0u128, 0, 0);
    for block in 0..blocks {
        let at = first + 52 * block;
        let (offset, length) = (u64_at(index, at + 8) as usize, u32_at(index, at + 16));
        assert_eq!(offset, end, "blocks lie side by side");
        let stored = &image[offset..offset + length];
        assert_eq!(u64_at(index, at + 28), xxh3_64(stored));
        let plain_length = u32_at(index, at + 20);
        let plain = match plain_length == length {
            true => stored.to_vec(),
            false => lz4_flex::block::decompress(stored, plain_length).expect("LZ4"),
        };
        let (of_block, digest_of_block) = entries_of(&plain, table);
        assert_eq!(of_block.len(), u32_at(index, at + 24));
        assert_eq!(
            (key_at(index, at), digest_of_block),
            (of_block[0].0.clone(), u128_at(index, at + 36))
        );
        assert!(of_block.iter().all(|(key, _, _)| filter_has(filter, key)));
        digest = digest.wrapping_add(digest_of_block);
        (plain_bytes, end) = (plain_bytes + plain_length as u64, offset + length);
        entries.extend(of_block);
    }
    assert_eq!((end as u64, plain_bytes), (u64_at(root, 43), u64_at(root, 51)));
    assert_eq!((entries.len(), digest), (rows, u128_at(root, 27)));
    assert_eq!(key_at(footer, base + 107), entries[0].0);
    assert_eq!(key_at(footer, base + 115), entries[rows - 1].0);
    entries
}

#[test]
fn tablets_are_as_documented() {
    for image in [sample_tablet(), sample_tablet_compressed()] {
        let entries = tablet(&image, 1);
        assert_eq!(entries.len(), 60);
        for (number, (key, head, row)) in entries.into_iter().enumerate() {
            assert_eq!(key, format!("key{number:04}").into_bytes());
            assert_eq!((head, row), (2 * number as u64, (number as u64).to_le_bytes().to_vec()));
        }
    }
}

#[test]
fn runs_are_as_documented() {
    let image = sample_run();
    let (directory, _) = footer_of(&image, b"SPLLRUNF");
    assert_eq!((u64_at(directory, 0), u16_at(directory, 8), u16_at(directory, 10)), (9, 5, 0));
    let sections = u32_at(directory, 12);
    assert_eq!((sections, u64_at(directory, 16), u64_at(directory, 24)), (2, 80, 0));
    let (mut end, mut digest) = (0, 0u128);
    for (section, table) in (0..sections).zip([2, 7]) {
        let at = 48 + 56 * section;
        assert_eq!((u64_at(directory, at), u64_at(directory, at + 8)), (table, end as u64));
        let start = end;
        end += u64_at(directory, at + 16) as usize;
        let entries = tablet(&image[start..end], 2);
        assert_eq!(entries.len() as u64, u64_at(directory, at + 24));
        digest = digest.wrapping_add(u128_at(directory, at + 32));
        assert_eq!(footer_of(&image[start..end], b"SPLLTABL").1, u64_at(directory, at + 48));
        for (number, (_, head, row)) in entries.into_iter().enumerate() {
            let is_deleted = number % 3 == 0;
            assert_eq!(head, 2 * number as u64 + u64::from(is_deleted));
            assert_eq!(row, if is_deleted { &b""[..] } else { b"columns" });
        }
    }
    assert_eq!((directory.len(), u128_at(directory, 32)), (48 + 2 * 56, digest));
}

#[test]
fn the_manifest_is_as_documented() {
    let files = sample_manifest();
    let (other, file) = files.split_at(files.len() / 2);
    assert!(other.iter().all(|byte| *byte == 0));
    let (mut at, mut records, mut expected) = (0, Vec::new(), None);
    while file[at..at + 512].iter().any(|byte| *byte != 0) {
        let (blocks, payload_bytes) = (u32_at(file, at + 44), u32_at(file, at + 48));
        let (previous, checksum) = (u64_at(file, at + 80), u64_at(file, at + 88));
        let (kind, sequence) = (u16_at(file, at + 6), u64_at(file, at + 72));
        let mut payload = Vec::new();
        for number in 0..blocks {
            let block = &file[at..at + 512];
            assert_eq!((&block[..4], u16_at(block, 4)), (&b"SPMB"[..], 1));
            assert_eq!(u64_at(block, 8), xxh3_64(&block[16..]));
            assert_eq!((u128_at(block, 16), u16_at(block, 32), u32_at(block, 36)), (7, 2, 512));
            assert_eq!((u32_at(block, 40), u64_at(block, 56)), (number, file.len() as u64));
            assert_eq!((u64_at(block, 64) % 2, u64_at(block, 96)), (1, at as u64));
            payload.extend_from_slice(&block[104..]);
            at += 512;
        }
        assert!(payload[payload_bytes..].iter().all(|byte| *byte == 0));
        payload.truncate(payload_bytes);
        assert_eq!(checksum, xxh3_64_with_seed(&payload, previous));
        assert_eq!(kind, if records.is_empty() { 1 } else { 2 });
        if let Some(before) = expected {
            assert_eq!((sequence, previous), before);
        }
        // Edits continue the last edit, which the snapshot names.
        let last = if kind == 1 { previous } else { checksum };
        expected = Some((sequence + 1, last));
        records.push(payload);
    }
    assert!(records.len() >= 2, "{} records", records.len());
    // The last edit: one run is added.
    let edit = records.last().expect("records");
    let version = u64_at(edit, 0);
    assert_eq!((u64_at(edit, 8), u64_at(edit, 16)), (0, version));
    assert_eq!([24, 28, 32, 36].map(|at| u32_at(edit, at)), [1, 0, 0, 0]);
    let entry = &edit[40..];
    assert_eq!(entry.len(), 88);
    assert_eq!(
        [0, 8, 16, 24, 32, 40].map(|at| u64_at(entry, at)),
        [version, version, 0, 0, 1, 4096]
    );
    assert_eq!((u128_at(entry, 48), u64_at(entry, 64)), (1, 2));
    assert_eq!([72, 74, 76, 78, 80].map(|at| u16_at(entry, at)), [1, 0, 3, 0, 0]);
}
