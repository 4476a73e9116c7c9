//! The memtable against a model that forgets nothing.

use super::version::VERSION_HEAD_BYTES;
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

type ModelVersion = (Stamp, u64, VersionKind, Vec<u8>);
/// Versions of each row, newest first.
type Model = BTreeMap<Vec<u8>, Vec<ModelVersion>>;

#[derive(Clone, Debug)]
struct Write {
    key: u8,
    slice: bool,
    kind: VersionKind,
    value_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Commit,
    RollbackAll,
    /// Roll back the writes after this many, commit the others.
    RollbackFrom(usize),
}

#[derive(Clone, Debug)]
enum Action {
    Transaction(Vec<Write>, Outcome),
    NextFragment,
    /// The floor moves to this many fragments below the open one.
    Floor(u64),
    DropUncommitted,
}

fn write_strategy() -> impl Strategy<Value = Write> {
    let kind = prop_oneof![
        4 => Just(VersionKind::Full),
        4 => Just(VersionKind::Patch),
        1 => Just(VersionKind::Delete)
    ];
    let large = if cfg!(miri) { 3_000 } else { 64 << 10 };
    let bytes = prop_oneof![6 => 0usize..200, 1 => 200usize..5000, 1 => Just(large)];
    (0u8..24, any::<bool>(), kind, bytes).prop_map(|(key, slice, kind, value_bytes)| Write {
        key,
        slice,
        kind,
        value_bytes: if kind == VersionKind::Delete { 0 } else { value_bytes },
    })
}

fn action_strategy() -> impl Strategy<Value = Action> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Commit),
        1 => Just(Outcome::RollbackAll),
        1 => (0usize..6).prop_map(Outcome::RollbackFrom)
    ];
    prop_oneof![
        8 => (prop::collection::vec(write_strategy(), 1..8), outcome)
            .prop_map(|(writes, outcome)| Action::Transaction(writes, outcome)),
        4 => Just(Action::NextFragment),
        3 => (1u64..12).prop_map(Action::Floor),
        1 => Just(Action::DropUncommitted)
    ]
}

struct Rig {
    arena: Arena,
    slices: Vec<TableSlice>,
    models: [Model; 2],
    undo: UndoLog,
    open: Stamp,
    floor: Stamp,
    number: u64,
}

impl Rig {
    fn new() -> Rig {
        Rig {
            arena: Arena::new(Box::new(HeapChunks::new(1 << 20, 64)), 0),
            slices: vec![TableSlice::new(SliceIndex(0)), TableSlice::new(SliceIndex(1))],
            models: [Model::new(), Model::new()],
            undo: UndoLog::new(),
            open: Stamp(1),
            floor: Stamp(0),
            number: 0,
        }
    }

    fn write(&mut self, change: &Write) {
        let key = vec![change.key; 1 + usize::from(change.key) * 3];
        let slice = usize::from(change.slice);
        self.number += 1;
        let value = vec![self.number as u8; change.value_bytes];
        let hash = key_hash(&key);
        let (row, created) =
            self.slices[slice].upsert_row(&mut self.arena, hash, &key, &mut self.undo);
        let chain = self.models[slice].entry(key.clone()).or_default();
        assert_eq!(created, chain.is_empty());
        let version = WriteVersion {
            stamp: self.open,
            number: self.number,
            kind: change.kind,
            floor: self.floor,
            value: &value,
        };
        let wrote = write(&mut self.arena, row, version, &mut self.undo);
        if chain.first().is_some_and(|newest| newest.0 == self.open) {
            assert_eq!(wrote, Wrote::SameFragment);
            chain.remove(0);
        } else {
            assert_eq!(wrote, Wrote::NewInFragment);
        }
        chain.insert(0, (self.open, self.number, change.kind, value));
    }

    fn transaction(&mut self, writes: &[Write], outcome: Outcome) {
        let before = self.models.clone();
        let start = self.undo.mark();
        match outcome {
            Outcome::Commit => writes.iter().for_each(|write| self.write(write)),
            Outcome::RollbackAll => {
                writes.iter().for_each(|write| self.write(write));
                self.check();
                self.undo.rollback_to(start, &mut self.arena, &mut self.slices);
                self.models = before;
            }
            Outcome::RollbackFrom(count) => {
                let (kept, undone) = writes.split_at(count.min(writes.len()));
                kept.iter().for_each(|write| self.write(write));
                let middle = self.models.clone();
                let mark = self.undo.mark();
                undone.iter().for_each(|write| self.write(write));
                self.undo.rollback_to(mark, &mut self.arena, &mut self.slices);
                self.models = middle;
            }
        }
        self.check();
        self.undo.commit(&mut self.arena);
        self.check_bytes();
    }

    fn drop_uncommitted(&mut self) {
        for (slice, model) in self.slices.iter_mut().zip(&mut self.models) {
            let mut rows = Vec::new();
            for key in model.keys() {
                rows.push(slice.find(key_hash(key), key).unwrap());
            }
            slice.rollback_above(&mut self.arena, rows, self.floor);
            for chain in model.values_mut() {
                chain.retain(|version| version.0 <= self.floor);
            }
            model.retain(|_, chain| !chain.is_empty());
        }
        self.check();
        self.check_bytes();
    }

    /// The chain of every row is the model's, cut at the earliest behind what readers need.
    fn check(&self) {
        for (slice, model) in self.slices.iter().zip(&self.models) {
            assert_eq!(slice.rows_count(), model.len());
            for (key, chain) in model {
                let row = slice.find(key_hash(key), key).unwrap();
                assert_eq!(row.key(), key);
                let held: Vec<ModelVersion> = row
                    .versions()
                    .map(|v| (v.stamp(), v.number(), v.kind(), v.value().to_vec()))
                    .collect();
                assert!(chain.starts_with(&held), "{held:?} is not the head of {chain:?}");
                let visible = chain.iter().position(|version| version.0 <= self.floor);
                let visible = visible.unwrap_or(chain.len() - 1);
                let base = chain[visible..].iter().position(|v| v.2 != VersionKind::Patch);
                let needed = base.map_or(chain.len(), |base| visible + base + 1);
                assert!(held.len() >= needed, "{held:?} lacks versions of {chain:?}");
                let patches = chain.iter().take_while(|v| v.2 == VersionKind::Patch).count();
                assert_eq!(usize::from(row.newest().unwrap().patches()), patches.min(63));
            }
            let mut met = BTreeSet::new();
            let mut from = Some(0);
            while let Some(start) = from {
                from = slice.visit_rows(start, |row| assert!(met.insert(row.key().to_vec())));
            }
            assert!(met.iter().eq(model.keys()));
        }
    }

    /// Every block is in use or on a free list: nothing leaks.
    fn check_bytes(&self) {
        let mut bytes = 0;
        for slice in &self.slices {
            bytes += slice.segment_bytes();
            let mut from = Some(0);
            while let Some(start) = from {
                from = slice.visit_rows(start, |row| {
                    bytes += row.class().bytes();
                    bytes +=
                        row.versions().map(|v| v.capacity() + VERSION_HEAD_BYTES).sum::<usize>();
                });
            }
        }
        assert_eq!(self.arena.bytes_used(), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 400 }))]
    #[test]
    fn equals_the_model(
        actions in prop::collection::vec(
            action_strategy(),
            1..if cfg!(miri) { 25 } else { 60 },
        ),
    ) {
        let mut rig = Rig::new();
        for action in actions {
            match action {
                Action::Transaction(writes, outcome) => rig.transaction(&writes, outcome),
                Action::NextFragment => rig.open = Stamp(rig.open.0 + 1),
                Action::Floor(distance) => {
                    let floor = Stamp(rig.open.0.saturating_sub(distance));
                    rig.floor = rig.floor.max(floor);
                }
                Action::DropUncommitted => rig.drop_uncommitted(),
            }
        }
    }
}

#[test]
fn a_hot_row_takes_constant_memory() {
    let mut rig = Rig::new();
    let change = Write { key: 1, slice: false, kind: VersionKind::Full, value_bytes: 100 };
    let unit = if cfg!(miri) { 60 } else { 20_000 };
    for fragment in 1..unit {
        rig.open = Stamp(fragment);
        rig.floor = Stamp(fragment.saturating_sub(4));
        rig.write(&change);
        rig.undo.commit(&mut rig.arena);
        rig.models[0].values_mut().for_each(|chain| chain.truncate(8));
    }
    assert!(rig.arena.bytes_used() < 2000, "{}", rig.arena.bytes_used());
    // An old snapshot holds the floor for a while; then the memory comes back.
    for fragment in unit..3 * unit {
        rig.open = Stamp(fragment);
        rig.write(&change);
        rig.undo.commit(&mut rig.arena);
        rig.models[0].values_mut().for_each(|chain| chain.truncate(8));
    }
    assert!(rig.arena.bytes_used() > 2 * unit as usize * 132);
    for fragment in 3 * unit..10 * unit {
        rig.open = Stamp(fragment);
        rig.floor = Stamp(fragment - 1);
        rig.write(&change);
        rig.undo.commit(&mut rig.arena);
        rig.models[0].values_mut().for_each(|chain| chain.truncate(8));
    }
    assert!(rig.arena.bytes_used() < 2000, "{}", rig.arena.bytes_used());
}

fn insert(slice: &mut TableSlice, arena: &mut Arena, hash: u64, key: &[u8]) -> RowRef {
    let mut undo = UndoLog::off();
    let (row, created) = slice.upsert_row(arena, hash, key, &mut undo);
    assert!(created);
    let version = WriteVersion {
        stamp: Stamp::REPLAYED,
        number: 1,
        kind: VersionKind::Full,
        floor: Stamp::REPLAYED,
        value: key,
    };
    assert_eq!(write(arena, row, version, &mut undo), Wrote::NewInFragment);
    row
}

#[test]
fn a_million_rows_grow_and_are_found() {
    let count: u64 = if cfg!(miri) { 700 } else { 1_000_000 };
    let mut arena = Arena::new(Box::new(HeapChunks::new(4 << 20, 200)), 0);
    let mut slice = TableSlice::new(SliceIndex(0));
    for i in 0..count {
        let key = i.to_be_bytes();
        insert(&mut slice, &mut arena, key_hash(&key), &key);
        let before = (i / 2).to_be_bytes();
        assert!(slice.find(key_hash(&before), &before).is_some());
    }
    assert_eq!(slice.rows_count() as u64, count);
    assert_eq!(slice.spilled(), 0);
    assert!(slice.slot_bytes() as u64 <= 24 * count, "{}", slice.slot_bytes());
    let mut met = 0;
    let mut from = Some(0);
    while let Some(start) = from {
        from = slice.visit_rows(start, |_| met += 1);
    }
    assert_eq!(met, count);
    for i in 0..count {
        let key = i.to_be_bytes();
        let hash = key_hash(&key);
        slice.prefetch_slot(hash);
        slice.prefetch_head(hash);
        slice.prefetch_version(hash);
        assert_eq!(slice.find(hash, &key).unwrap().newest().unwrap().value(), key);
        let absent = (i + count).to_be_bytes();
        assert!(slice.find(key_hash(&absent), &absent).is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 60 }))]
    /// Hashes of few bits: full segments, equal tags, keys that no split tells apart.
    #[test]
    fn bad_hashes_only_cost_time(
        mask in prop::sample::select(vec![
            0, 0xff, 0x1_0000_0000, 0x0f00_0000_0000_00ff, 0xffff_0000_0000_0000, u64::MAX,
        ]),
        count in 1u64..if cfg!(miri) { 700 } else { 4000 },
        keep in 1u64..4,
    ) {
        let mut arena = Arena::new(Box::new(HeapChunks::new(1 << 20, 200)), 0);
        let mut slices = [TableSlice::new(SliceIndex(0))];
        let mut undo = UndoLog::new();
        let hash = |i: u64| key_hash(&i.to_be_bytes()) & mask;
        for i in 0..count {
            if i % keep == 0 {
                insert(&mut slices[0], &mut arena, hash(i), &i.to_be_bytes());
            } else {
                slices[0].upsert_row(&mut arena, hash(i), &i.to_be_bytes(), &mut undo);
            }
        }
        prop_assert_eq!(slices[0].rows_count() as u64, count);
        undo.rollback_to(UndoLog::new().mark(), &mut arena, &mut slices);
        for i in 0..count {
            let found = slices[0].find(hash(i), &i.to_be_bytes());
            prop_assert_eq!(found.is_some(), i % keep == 0);
        }
        prop_assert_eq!(slices[0].rows_count() as u64, count.div_ceil(keep));
    }
}
