//! The ordered index against ordered maps of others, and under readers.

use super::super::arena::{Arena, HeapChunks, SizeClass};
use super::super::row::{RowRef, key_hash, row_bytes};
use super::super::{OrderState, SliceIndex, TableSlice, UndoLog};
use super::OrderedTree;
use crossbeam_skiplist::SkipMap;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn arena() -> Arena {
    Arena::new(Box::new(HeapChunks::new(1 << 20, 512)), 0)
}

fn row(arena: &mut Arena, key: &[u8]) -> RowRef {
    let block = arena.alloc(SizeClass::of(row_bytes(key.len()))).unwrap();
    // SAFETY: a fresh block of that size.
    unsafe { RowRef::init(block, (key_hash(key) >> 32) as u32, key) }
}

/// Keys of different build from the same number.
fn key(family: u8, number: u32) -> Vec<u8> {
    let spread = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match family {
        // Random.
        0 => spread.to_be_bytes().to_vec(),
        // Rising.
        1 => u64::from(number).to_be_bytes().to_vec(),
        // All share more than eight bytes.
        2 => format!("customer:{number:012}").into_bytes(),
        // Groups: the first eight bytes tie within one.
        3 => [u64::from(number % 50).to_be_bytes(), spread.to_be_bytes()].concat(),
        // Groups with small numbers behind: ties whichever eight bytes one takes.
        4 => [u64::from(number % 50).to_be_bytes(), u64::from(number).to_be_bytes()].concat(),
        // One key begins the next; zeros at the end.
        5 => vec![0; number as usize % 900],
        // Long, different at the end only.
        6 => [vec![7; 300], number.to_be_bytes().to_vec()].concat(),
        // Mixed.
        _ => key((number % 7) as u8, number / 7),
    }
}

fn keys_from(tree: &OrderedTree, start: Bound<&[u8]>) -> Vec<Vec<u8>> {
    tree.reader().seek(start).map(|row| row.key().to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 150 }))]
    #[test]
    fn equals_ordered_maps(
        family in 0u8..8,
        second_family in 0u8..8,
        batches in prop::collection::vec(prop::collection::vec(0u32..3000, 1..400), 1..12),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
        sought in prop::collection::vec((0u8..8, 0u32..3000), 20),
    ) {
        let mut arena = arena();
        let mut tree = OrderedTree::new();
        let mut map = BTreeMap::new();
        let skip_list = SkipMap::new();
        for (i, batch) in batches.iter().enumerate() {
            // The second kind of keys comes later: what all shared is shared no more.
            let family = if i < batches.len() / 2 { family } else { second_family };
            let mut rows = Vec::new();
            for number in batch {
                let key = key(family, *number);
                if !map.contains_key(&key) {
                    let row = row(&mut arena, &key);
                    map.insert(key.clone(), row);
                    skip_list.insert(key, row);
                    rows.push(row);
                }
            }
            tree.insert(&mut arena, &mut rows).unwrap();
            prop_assert!(rows.is_empty());
            tree.check();
            prop_assert!(keys_from(&tree, Bound::Unbounded).iter().eq(map.keys()));
        }
        for index in removed {
            if let Some((key, row)) = map.iter().nth(index.index(map.len().max(1))) {
                let key = key.clone();
                tree.remove(*row);
                map.remove(&key);
                skip_list.remove(&key);
            }
        }
        tree.check();
        for (family, number) in sought {
            let key = key(family, number);
            for start in [Bound::Included(&key[..]), Bound::Excluded(&key[..])] {
                let found = keys_from(&tree, start);
                let expected = map.range::<[u8], _>((start, Bound::Unbounded));
                prop_assert!(found.iter().eq(expected.map(|(key, _)| key)));
                let first = skip_list.lower_bound(start).map(|entry| entry.key().clone());
                prop_assert_eq!(found.first(), first.as_ref());
            }
        }
    }
}

#[test]
fn prefixes_tell_keys_apart_that_share_their_beginning() {
    for family in [2, 3] {
        let mut arena = arena();
        let mut tree = OrderedTree::new();
        let mut rows: Vec<RowRef> = (0..50_000).map(|n| row(&mut arena, &key(family, n))).collect();
        rows.reverse();
        while !rows.is_empty() {
            let mut batch = rows.split_off(rows.len().saturating_sub(512));
            tree.insert(&mut arena, &mut batch).unwrap();
        }
        tree.check();
        assert!(tree.ties() < 50_000 / 20, "family {family}: {} ties", tree.ties());
    }
}

#[test]
fn a_full_arena_leaves_rows_waiting() {
    let mut rows_arena = arena();
    let mut small = Arena::new(Box::new(HeapChunks::new(256 << 10, 1)), 0);
    let mut tree = OrderedTree::new();
    let mut rows: Vec<RowRef> = (0..20_000).map(|n| row(&mut rows_arena, &key(0, n))).collect();
    assert!(tree.insert(&mut small, &mut rows).is_err());
    tree.check();
    assert_eq!(tree.rows() + rows.len(), 20_000);
    assert!(tree.rows() > 5000 && !rows.is_empty());
    let mut found = keys_from(&tree, Bound::Unbounded);
    tree.insert(&mut rows_arena, &mut rows).unwrap();
    tree.check();
    assert!(found.is_sorted());
    found = keys_from(&tree, Bound::Unbounded);
    assert_eq!(found.len(), 20_000);
}

/// One writer enters rows in batches and takes every third back out; the readers see order, and
/// every row that was in before they began and stays.
#[test]
fn readers_see_all_settled_rows_in_order() {
    let rounds: u32 = if cfg!(miri) { 6 } else { 300 };
    for family in [0, 1, 4] {
        let mut arena = arena();
        let mut tree = OrderedTree::new();
        let settled = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        let batch_rows = 64;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let reader = tree.reader();
                let (settled, done) = (&settled, &done);
                scope.spawn(move || {
                    let mut scans = 0;
                    while scans < 3 || !done.load(Ordering::Acquire) {
                        let rounds = settled.load(Ordering::Acquire) as u32;
                        let mut must: Vec<Vec<u8>> = (0..rounds * batch_rows)
                            .filter(|n| n % 3 != 0)
                            .map(|n| key(family, n))
                            .collect();
                        must.sort();
                        let from = must.get(scans * 37 % must.len().max(1)).cloned();
                        let start = from.as_deref().map_or(Bound::Unbounded, Bound::Included);
                        let mut must =
                            must.iter().skip_while(|k| from.as_ref().is_some_and(|f| *k < f));
                        let mut wanted = must.next();
                        let mut last: Option<Vec<u8>> = None;
                        for row in reader.seek(start) {
                            let found = row.key().to_vec();
                            assert!(last.as_ref().is_none_or(|last| *last < found));
                            assert!(wanted.is_none_or(|wanted| found <= *wanted), "a row missed");
                            if wanted == Some(&found) {
                                wanted = must.next();
                            }
                            last = Some(found);
                        }
                        assert!(wanted.is_none(), "rows missed at the end");
                        scans += 1;
                    }
                });
            }
            for round in 0..rounds {
                let numbers = round * batch_rows..(round + 1) * batch_rows;
                let batch: Vec<RowRef> =
                    numbers.clone().map(|n| row(&mut arena, &key(family, n))).collect();
                tree.insert(&mut arena, &mut batch.clone()).unwrap();
                for (n, row) in numbers.zip(batch) {
                    if n % 3 == 0 {
                        tree.remove(row);
                    }
                }
                settled.store(u64::from(round) + 1, Ordering::Release);
            }
            tree.check();
            done.store(true, Ordering::Release);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 60 }))]
    /// Rows come, the order is built in steps meanwhile, transactions are undone.
    #[test]
    fn a_slice_keeps_its_order_complete(
        before in 0u32..3000,
        steps in prop::collection::vec((1u32..400, any::<bool>(), any::<bool>(), 1usize..2000), 1..25),
        family in 0u8..8,
    ) {
        let mut arena = arena();
        let mut slices = [TableSlice::new(SliceIndex(0))];
        let mut map = BTreeMap::new();
        let mut undo = UndoLog::new();
        let mut next = 0;
        let all_steps = std::iter::once((before, false, false, 0)).chain(steps);
        for (count, undone, flushed_before, flush_rows) in all_steps {
            let kept = map.clone();
            let mark = undo.mark();
            for number in next..next + count {
                let key = key(family, number);
                let hash = key_hash(&key);
                let (row, created) = slices[0].upsert_row(&mut arena, hash, &key, &mut undo);
                prop_assert_eq!(created, map.insert(key, row).is_none());
            }
            if flushed_before {
                slices[0].flush_order(&mut arena, flush_rows).unwrap();
            }
            if undone {
                undo.rollback_to(mark, &mut arena, &mut slices);
                map = kept;
            } else {
                undo.commit(&mut arena);
                next += count;
            }
            if flush_rows > 0 {
                slices[0].flush_order(&mut arena, flush_rows).unwrap();
            }
        }
        while slices[0].flush_order(&mut arena, 1000).unwrap() == OrderState::Behind {}
        prop_assert!(!slices[0].order_is_due());
        let found: Vec<RowRef> = slices[0].seek(Bound::Unbounded).collect();
        prop_assert!(found.iter().eq(map.values()));
        // SAFETY: the reader is gone before the arena.
        let reader = unsafe { slices[0].ordered_reader() }.unwrap();
        prop_assert!(reader.seek(Bound::Unbounded).eq(map.values().copied()));
    }
}
