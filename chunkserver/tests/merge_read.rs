//! Reads through layers against a map.

mod common;
#[path = "common/layers.rs"]
mod layers_of_changes;

use common::{Draw, for_seeds};
use layers_of_changes::{Files, Layer, key, layers, newest};
use spillway_chunkserver::EntryOwned;
use spillway_chunkserver::merge::{
    KeyRange, MergeError, MergeIterator, MergeStep, PointRead, PointStep, SortedSource, Source,
    TabletOfView, TabletSource,
};

type Sorted = Vec<(Vec<u8>, EntryOwned)>;

/// Where each layer lives, the newest first.
enum Place {
    Memory(Sorted),
    Disk(Vec<TabletOfView>),
}

struct Store {
    files: Files,
    places: Vec<Place>,
    /// All parts on disk.
    view: Vec<TabletOfView>,
}

fn store(draw: &mut Draw, layers: &[Layer]) -> Store {
    let block = draw.pick(&[1, 60, 400, 16 << 10]);
    let mut files = Files::default();
    let mut places = Vec::new();
    for (number, layer) in layers.iter().enumerate().rev() {
        places.push(match draw.below(2) {
            _ if number == 0 => Place::Disk(files.tablets(draw, layer, block)),
            0 => Place::Disk(files.run(layer, number as u64, block).into_iter().collect()),
            _ => Place::Memory(layer.iter().map(|(k, e)| (k.clone(), e.clone())).collect()),
        });
    }
    let on_disk = |place: &Place| match place {
        Place::Disk(view) => view.clone(),
        Place::Memory(_) => Vec::new(),
    };
    let view = places.iter().flat_map(on_disk).collect();
    Store { files, places, view }
}

impl Store {
    fn sources(&self, range: &KeyRange) -> Vec<Box<dyn Source + '_>> {
        let mut sources: Vec<Box<dyn Source + '_>> = Vec::new();
        for place in &self.places {
            sources.push(match place {
                Place::Memory(entries) => Box::new(SortedSource::new(entries, range)),
                Place::Disk(view) => Box::new(TabletSource::new(view.clone(), range.clone())),
            });
        }
        sources
    }

    /// Reads to the end, blocks coming when they like. Returns the entries and the blocks read.
    fn scan(&self, draw: &mut Draw, range: &KeyRange) -> Result<(Sorted, usize), MergeError> {
        let mut merge = MergeIterator::new(self.sources(range));
        let (mut seen, mut blocks) = (Vec::new(), 0);
        loop {
            match merge.step()? {
                MergeStep::Entry { key, entry, .. } => seen.push((key.to_vec(), entry.to_owned())),
                MergeStep::Ended => return Ok((seen, blocks)),
                MergeStep::Blocked => {
                    let needs: Vec<_> = merge.needs().collect();
                    assert!(!needs.is_empty(), "a merge that is blocked needs something");
                    let (source, need) = needs[draw.below(needs.len())];
                    merge.supply(source, self.files.read(&self.view, &need));
                    blocks += 1;
                }
            }
            let ahead: Vec<_> = merge.needs_ahead().collect();
            if !ahead.is_empty() && draw.once_in(3) {
                let (source, need) = ahead[draw.below(ahead.len())];
                merge.supply(source, self.files.read(&self.view, &need));
                blocks += 1;
            }
        }
    }
}

fn range(draw: &mut Draw) -> KeyRange {
    let from = if draw.once_in(4) { Vec::new() } else { key(draw) };
    let to = (!draw.once_in(4)).then(|| key(draw));
    KeyRange { from, to }
}

#[test]
fn a_merge_is_the_map_of_all_layers() {
    let (mut entries, mut blocks_all, mut hidden) = (0, 0, 0);
    for_seeds("a_merge_is_the_map_of_all_layers", 1_500, |mut draw| {
        let count = draw.range(1, 9);
        let layers = layers(&mut draw, count, 60);
        let (store, model) = (store(&mut draw, &layers), newest(&layers));
        for round in 0..4 {
            let range = if round == 0 { KeyRange::all() } else { range(&mut draw) };
            let (seen, blocks) = store.scan(&mut draw, &range).expect("layers in order");
            let expected: Sorted = model
                .iter()
                .filter(|(key, _)| range.contains(key))
                .map(|(key, entry)| (key.clone(), entry.clone()))
                .collect();
            assert_eq!(seen, expected, "{range:?}");
            let of_store: u32 = store.view.iter().map(|part| part.meta.blocks()).sum();
            assert!(blocks <= of_store as usize, "no block is read twice");
            entries += seen.len();
            blocks_all += blocks;
        }
        hidden += layers.iter().map(|layer| layer.len()).sum::<usize>() - model.len();
    });
    println!("{entries} entries, {blocks_all} blocks, {hidden} entries hidden");
    assert!(std::env::var("SPILLWAY_SEED").is_ok() || (entries > 50_000 && hidden > 10_000));
}

/// A range reads the blocks that can hold it, and no other.
#[test]
fn a_range_reads_its_blocks_only() {
    for_seeds("a_range_reads_its_blocks_only", 300, |mut draw| {
        let layers = layers(&mut draw, 1, 200);
        let mut files = Files::default();
        let view = files.tablets(&mut draw, &layers[0], 100);
        let range = range(&mut draw);
        let may_hold = |part: &TabletOfView, block: u32| {
            let next = block + 1;
            let behind = next < part.meta.blocks() && part.meta.first_key(next) <= &range.from[..];
            let last_key = &part.meta.footer().last_key;
            range.ends_behind(part.meta.first_key(block)) && !behind && *last_key >= range.from
        };
        let expected: usize = view
            .iter()
            .map(|part| (0..part.meta.blocks()).filter(|block| may_hold(part, *block)).count())
            .sum();
        let mut source = TabletSource::new(view.clone(), range.clone());
        let mut read = 0;
        loop {
            if let Some(need) = source.need() {
                source.supply(files.read(&view, &need));
                read += 1;
            } else if source.key().is_some() {
                source.advance();
            } else {
                break;
            }
        }
        assert!(source.need_ahead().is_none());
        assert!(read <= expected, "{read} of {expected}");
        // The first block may hold nothing of an empty range.
        let is_empty = range.to.as_ref().is_some_and(|to| *to <= range.from);
        assert!(is_empty || read == expected, "{read} of {expected}");
    });
}

#[test]
fn points_are_found_as_in_the_map() {
    let (mut found, mut absent, mut blocks) = (0, 0, 0);
    for_seeds("points_are_found_as_in_the_map", 300, |mut draw| {
        let count = draw.range(1, 6);
        let layers = layers(&mut draw, count, 40);
        let mut files = Files::default();
        let tablets = files.tablets(&mut draw, &layers[0], 100);
        let runs: Vec<_> = (1..layers.len())
            .rev()
            .filter_map(|number| files.run(&layers[number], number as u64, 100))
            .collect();
        let view: Vec<_> = runs.iter().chain(&tablets).cloned().collect();
        let model = newest(&layers);
        for _ in 0..60 {
            let probe = key(&mut draw);
            let of_key = tablets.iter().find(|part| part.meta.footer().last_key >= probe);
            let parts = runs.iter().chain(of_key).cloned().collect();
            let mut read = PointRead::new(probe.clone(), parts);
            let mut step = read.step();
            let seen = loop {
                match step {
                    PointStep::Needs(need) => {
                        blocks += 1;
                        assert_eq!(read.step(), PointStep::Needs(need), "it waits");
                        step = read.supply(&files.read(&view, &need)).expect("sound");
                    }
                    PointStep::Found(entry) => break Some(entry),
                    PointStep::Absent => break None,
                }
            };
            assert_eq!(seen.as_ref(), model.get(&probe));
            *if seen.is_some() { &mut found } else { &mut absent } += 1;
        }
    });
    println!("{found} found, {absent} absent, {blocks} blocks");
    assert!(blocks < found * 11 / 10 + absent / 50 + 50, "filters spare nearly all blocks");
}

#[test]
fn layers_in_the_wrong_order_are_refused() {
    let entry = |version| EntryOwned { version, row: Some(vec![version as u8]) };
    let old = [(b"a".to_vec(), entry(1)), (b"k".to_vec(), entry(2))];
    let new = [(b"k".to_vec(), entry(5))];
    let all = KeyRange::all();
    let scan = |layers: [&[(Vec<u8>, EntryOwned)]; 2]| {
        let sources = layers.map(|entries| SortedSource::new(entries, &all)).into();
        let mut merge = MergeIterator::new(sources);
        let mut keys = 0;
        loop {
            match merge.step() {
                Ok(MergeStep::Entry { .. }) => keys += 1,
                Ok(MergeStep::Ended) => return Ok(keys),
                Ok(MergeStep::Blocked) => panic!("all is in memory"),
                Err(error) => return Err(error),
            }
        }
    };
    assert_eq!(scan([&new, &old]), Ok(2));
    let mixed =
        MergeError::VersionOrder { source_number: 1, version: 5, newer: 0, newer_version: 2 };
    assert_eq!(scan([&old, &new]), Err(mixed));
    assert!(scan([&new, &new]).is_err(), "one layer twice");
    let unsorted = [(b"b".to_vec(), entry(1)), (b"a".to_vec(), entry(1))];
    assert_eq!(scan([&[], &unsorted]), Err(MergeError::Order { source_number: 1 }));
    assert_eq!(scan([&[], &[]]), Ok(0));
    let mut none = MergeIterator::new(Vec::<SortedSource<'_>>::new());
    assert_eq!(none.step(), Ok(MergeStep::Ended));
}

#[test]
#[should_panic(expected = "a block nobody asked for")]
fn a_block_that_was_not_asked_for_is_a_mistake() {
    let mut draw = Draw(1);
    let layers = layers(&mut draw, 1, 100);
    let mut files = Files::default();
    let view = files.tablets(&mut Draw(1), &layers[0], 1);
    let mut source = TabletSource::new(view.clone(), KeyRange::all());
    let need = source.need().expect("a first block");
    let block = files.read(&view, &need);
    source.supply(block.clone());
    source.supply(block);
}
