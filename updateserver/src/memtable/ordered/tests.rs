//! The ordered index against ordered maps of others, and under readers.

use super::super::arena::{Arena, HeapChunks, SizeClass};
use super::super::row::{RowRef, key_hash, row_bytes};
use super::super::{OrderState, SliceIndex, TableSlice, UndoLog};
use super::node::INTERLEAVED;
use super::{OrderedReader, OrderedTree};
use crossbeam_skiplist::SkipMap;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

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
        batches in prop::collection::vec(
            prop::collection::vec(0u32..3000, 1..if cfg!(miri) { 100 } else { 400 }),
            1..if cfg!(miri) { 6 } else { 12 },
        ),
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
    let count = if cfg!(miri) { 1_500 } else { 50_000 };
    for family in [2, 3] {
        let mut arena = arena();
        let mut tree = OrderedTree::new();
        let mut rows: Vec<RowRef> = (0..count).map(|n| row(&mut arena, &key(family, n))).collect();
        rows.reverse();
        while !rows.is_empty() {
            let mut batch = rows.split_off(rows.len().saturating_sub(512));
            tree.insert(&mut arena, &mut batch).unwrap();
        }
        tree.check();
        // Of few rows a node holds several groups, and these share nothing that could be left out.
        let is_dense = !cfg!(miri);
        assert!(!is_dense || tree.ties() < 50_000 / 20, "family {family}: {} ties", tree.ties());
    }
}

#[test]
#[cfg_attr(miri, ignore = "the least arena takes ten thousand rows: minutes")]
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

/// A tree with rows that stay and others that come and go.
struct Restless {
    arena: Arena,
    tree: OrderedTree,
    /// Rows with whether they are in the tree.
    moving: Vec<(RowRef, bool)>,
    random: SmallRng,
}

impl Restless {
    /// Of the numbers below `count` the even ones stay.
    fn new(family: u8, count: u32, seed: u64) -> (Restless, Vec<Vec<u8>>) {
        let mut arena = arena();
        let mut tree = OrderedTree::new();
        let mut settled = BTreeMap::new();
        let mut moving = BTreeMap::new();
        for number in 0..count {
            // Some that move share nothing with the others: what all share narrows meanwhile.
            let is_stranger = number % 2 == 1 && number % 41 == 1;
            let key = key(if is_stranger { 0 } else { family }, number);
            if !settled.contains_key(&key) && !moving.contains_key(&key) {
                let row = row(&mut arena, &key);
                let map = if number % 2 == 0 { &mut settled } else { &mut moving };
                map.insert(key, row);
            }
        }
        tree.insert(&mut arena, &mut settled.values().copied().collect()).unwrap();
        let moving = moving.into_values().map(|row| (row, false)).collect();
        let random = SmallRng::seed_from_u64(seed);
        (Restless { arena, tree, moving, random }, settled.into_keys().collect())
    }

    /// Enters or takes out some rows that are neighbours.
    fn change(&mut self) {
        if self.moving.is_empty() {
            return;
        }
        let first = self.random.random_range(0..self.moving.len());
        let end = (first + self.random.random_range(1..60)).min(self.moving.len());
        let mut entering = Vec::new();
        for (row, is_in) in &mut self.moving[first..end] {
            if *is_in {
                self.tree.remove(*row);
            } else {
                entering.push(*row);
            }
            *is_in = !*is_in;
        }
        self.tree.insert(&mut self.arena, &mut entering).unwrap();
    }
}

/// Scans and checks: rows rise from the start on, and those that stay are all met. Returns how
/// many rows there were.
fn check_scan(reader: &OrderedReader, settled: &[Vec<u8>], start: &[u8], rows_max: usize) -> usize {
    let first = settled.partition_point(|key| &key[..] < start);
    let mut expected = settled[first..].iter().peekable();
    let mut last: Option<RowRef> = None;
    let mut count = 0;
    for row in reader.seek(Bound::Included(start)).take(rows_max) {
        assert!(row.key() >= start, "a row before the start");
        assert!(last.is_none_or(|last| last.key() < row.key()), "rows out of order");
        assert!(expected.peek().is_none_or(|key| row.key() <= &key[..]), "a row was missed");
        expected.next_if(|key| row.key() == &key[..]);
        last = Some(row);
        count += 1;
    }
    assert!(count == rows_max || expected.peek().is_none(), "rows missed at the end");
    count
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 100 }))]
    /// The writer gets in between any two steps of a reader, on one thread.
    #[test]
    fn a_reader_survives_changes_between_its_steps(
        family in 0u8..8,
        count in 10u32..if cfg!(miri) { 500 } else { 2500 },
        one_in in 1u32..40,
        seed: u64,
        starts in prop::collection::vec((any::<bool>(), 0u8..8, 0u32..2500), 1..6),
    ) {
        let (restless, settled) = Restless::new(family, count, seed);
        let reader = restless.tree.reader();
        let restless = Rc::new(RefCell::new(restless));
        let changes = Rc::new(Cell::new(0));
        let (hook_restless, left) = (Rc::clone(&restless), Rc::clone(&changes));
        INTERLEAVED.set(Some(Box::new(move || {
            let mut restless = hook_restless.borrow_mut();
            if left.get() > 0 && restless.random.random_ratio(1, one_in) {
                left.set(left.get() - 1);
                restless.change();
            }
        })));
        for (is_of_family, other_family, number) in starts {
            let start = key(if is_of_family { family } else { other_family }, number);
            // Bounded, since a reader begins again at every change of where it is.
            changes.set(200);
            check_scan(&reader, &settled, &start, usize::MAX);
            restless.borrow().tree.check();
        }
        INTERLEAVED.set(None);
    }
}

/// The same on several threads, so that readers also meet nodes in the middle of a change.
#[test]
fn readers_on_other_threads_see_all_settled_rows_in_order() {
    let changes = if cfg!(miri) { 20 } else { 20_000 };
    for family in [0, 1, 4] {
        let count = if cfg!(miri) { 400 } else { 3000 };
        let (mut restless, settled) = Restless::new(family, count, 7);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2usize {
                let reader = restless.tree.reader();
                let (settled, done) = (&settled, &done);
                scope.spawn(move || {
                    let mut scans = thread;
                    while scans < 10 || !done.load(Ordering::Acquire) {
                        let met =
                            check_scan(&reader, settled, &settled[scans * 37 % settled.len()], 150);
                        assert!(met > 0);
                        scans += 1;
                    }
                });
            }
            for _ in 0..changes {
                restless.change();
            }
            restless.tree.check();
            done.store(true, Ordering::Release);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 60 }))]
    /// Rows come, the order is built in steps meanwhile, transactions are undone.
    #[test]
    fn a_slice_keeps_its_order_complete(
        before in 0u32..if cfg!(miri) { 300 } else { 3000 },
        steps in prop::collection::vec(
            (1u32..if cfg!(miri) { 80 } else { 400 }, any::<bool>(), any::<bool>(), 1usize..2000),
            1..if cfg!(miri) { 8 } else { 25 },
        ),
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
