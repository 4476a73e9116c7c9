//! Merges against a map: the same rows, the same bytes whatever the changes were read from and in
//! whatever order, and no more written than has to be.

mod common;
#[path = "common/layers.rs"]
mod layers_of_changes;

use common::{Draw, for_seeds};
use layers_of_changes::{Files, Layer, SCHEMA, TABLE};
use spillway_chunkserver::codec::Codec;
use spillway_chunkserver::digest::{ContentDigest, Digester};
use spillway_chunkserver::manifest::{FileId, ManifestEdit, ManifestState};
use spillway_chunkserver::merge::{
    MergeError, MergeTarget, MergeUnit, PlanError, SortedSource, Source, TabletOfView,
    TabletSource, UnitMerge, UnitNeed, UnitOutcome, UnitStep, is_done, plan, unit_edit,
};
use spillway_chunkserver::{EntryOwned, TabletReader};
use std::collections::BTreeMap;
use std::sync::Arc;

const TABLET: u64 = 6_000;
const BLOCK: usize = 400;

fn target(version: u64) -> MergeTarget {
    // The option changes between rounds, as an operator may change it.
    let codec = if version.is_multiple_of(3) { Codec::Plain } else { Codec::Lz4 };
    MergeTarget {
        codec,
        block_bytes: BLOCK,
        tablet_bytes: TABLET,
        ..MergeTarget::new(TABLE, SCHEMA, version)
    }
}

/// The changes of one freeze, and what they are read from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Memory,
    /// Runs with blocks of this size, the keys dealt out to this many partitions.
    Runs {
        block: usize,
        partitions: usize,
    },
}

struct Node {
    files: Files,
    state: ManifestState,
    metas: BTreeMap<FileId, TabletOfView>,
}

impl Node {
    fn new() -> Node {
        let (files, state) = (Files::default(), ManifestState::default());
        Node { files, state, metas: BTreeMap::new() }
    }

    fn tablets(&self, version: u64) -> Vec<TabletOfView> {
        let entries = self.state.tablets(TABLE, version);
        entries.iter().map(|entry| self.metas[&entry.id].clone()).collect()
    }

    /// All rows as they are read from the tablets, each of which is sound.
    fn rows(&self, version: u64) -> Layer {
        let mut rows = Layer::new();
        for tablet in self.tablets(version) {
            let image = &self.files.images[&tablet.file];
            let mut reader = TabletReader::open(image.as_slice()).expect("sound");
            reader.verify().expect("sound");
            let scan = reader.scan(&[], |key, entry| {
                assert!(rows.insert(key.to_vec(), entry.to_owned()).is_none(), "a row twice");
                true
            });
            scan.expect("sound");
        }
        rows
    }

    /// Merges all units that are left in a random order, blocks coming when they like. With `until`
    /// at most so many are done, and one may be given up half-way.
    fn merge(
        &mut self,
        draw: &mut Draw,
        layers: &[Layer],
        from: From,
        until: usize,
    ) -> Vec<UnitOutcome> {
        let target = target(self.state.version());
        let units = plan(&target, &self.tablets(self.state.baseline())).expect("of one table");
        let mut todo = units;
        todo.retain(|unit| !is_done(&self.state, &target, unit));
        let mut outcomes = Vec::new();
        while !todo.is_empty() && outcomes.len() < until {
            let unit = todo.remove(draw.below(todo.len()));
            let steps = if until < usize::MAX { draw.below(60) } else { usize::MAX };
            match self.merge_unit(draw, &target, unit, (layers, from), steps) {
                Some(outcome) => outcomes.push(outcome),
                None => break,
            }
        }
        outcomes
    }

    fn merge_unit(
        &mut self,
        draw: &mut Draw,
        target: &MergeTarget,
        unit: MergeUnit,
        (layers, from): (&[Layer], From),
        steps_max: usize,
    ) -> Option<UnitOutcome> {
        let in_range = |layer: &Layer| -> Vec<(Vec<u8>, EntryOwned)> {
            layer.iter().map(|(key, entry)| (key.clone(), entry.clone())).collect()
        };
        let memory: Vec<_> = layers.iter().map(in_range).collect();
        let (mut view, mut runs) = (unit.tablets.clone(), Files::default());
        let mut sources: Vec<Box<dyn Source + '_>> = Vec::new();
        for (number, layer) in layers.iter().enumerate().rev() {
            match from {
                From::Memory => {
                    sources.push(Box::new(SortedSource::new(&memory[number], &unit.range)));
                }
                From::Runs { block, partitions } => {
                    for partition in 0..partitions {
                        let of_partition = |key: &[u8]| key.len() % partitions == partition;
                        let part: Layer = layer
                            .clone()
                            .into_iter()
                            .filter(|(key, _)| of_partition(key))
                            .collect();
                        let Some(mut run) = runs.run(&part, number as u64 + 1, block) else {
                            continue;
                        };
                        // Ids beside those of the node's files.
                        let image = runs.images[&run.file].clone();
                        run.file = self.files.add(image);
                        view.push(run.clone());
                        let source = TabletSource::new(vec![run], unit.range.clone());
                        sources.push(Box::new(source));
                    }
                }
            }
        }
        let mut merge = UnitMerge::new(target, unit, sources);
        let (mut image, mut ids) = (Vec::new(), Vec::new());
        let mut steps = 0;
        let outcome = loop {
            steps += 1;
            if steps > steps_max {
                return None;
            }
            match merge.step().expect("sound layers") {
                UnitStep::Working => {}
                UnitStep::Blocked => {
                    let needs: Vec<_> = merge.needs().collect();
                    let need = needs[draw.below(needs.len())];
                    merge.supply(need, self.read(&view, need));
                }
                UnitStep::Append(bytes) => image.extend(bytes),
                UnitStep::Tablet(summary) => {
                    assert_eq!(image.len() as u64, summary.image_bytes);
                    let image = std::mem::take(&mut image);
                    let reader = TabletReader::open(image.as_slice()).expect("sound");
                    assert_eq!(reader.meta().footer(), &summary.footer);
                    assert_eq!(reader.footer_checksum(), summary.footer_checksum);
                    let meta = Arc::new(reader.meta().clone());
                    let file = self.files.add(image);
                    self.metas.insert(file, TabletOfView { file, image_offset: 0, meta });
                    ids.push(file);
                }
                UnitStep::Ended(outcome) => break outcome,
            }
            let ahead: Vec<_> = merge.needs_ahead().collect();
            if !ahead.is_empty() && draw.once_in(4) {
                let need = ahead[draw.below(ahead.len())];
                merge.supply(need, self.read(&view, need));
            }
        };
        assert!(image.is_empty(), "no bytes behind the last tablet");
        let edit = unit_edit(&self.state, target, &outcome, &ids);
        self.state.check(&edit).expect("a merge keeps the rules");
        self.state.apply(&edit);
        Some(outcome)
    }

    fn read(
        &self,
        view: &[TabletOfView],
        need: UnitNeed,
    ) -> spillway_chunkserver::reader::CheckedBlock {
        let (UnitNeed::Old(need) | UnitNeed::Changes(_, need)) = need;
        self.files.read(view, &need)
    }

    /// The next freeze, whose runs are not part of this test.
    fn freeze(&mut self) {
        let version = self.state.version() + 1;
        self.state.apply(&ManifestEdit { version, ..edit_of(&self.state) });
    }

    /// The merged version is read from now on, and old tablets go.
    fn release(&mut self) {
        let baseline = self.state.version();
        let old = self.state.files().filter(|entry| !entry.is_tablet_at(baseline));
        let removes: Vec<_> = old.map(|entry| entry.id).collect();
        let edit = ManifestEdit { baseline, removes, ..edit_of(&self.state) };
        self.state.check(&edit).expect("lawful");
        self.state.apply(&edit);
    }

    fn images(&self, version: u64) -> Vec<&[u8]> {
        let tablets = self.tablets(version);
        tablets.iter().map(|tablet| self.files.images[&tablet.file].as_slice()).collect()
    }
}

fn edit_of(state: &ManifestState) -> ManifestEdit {
    ManifestEdit { adds: Vec::new(), ..state.snapshot() }
}

/// Changes of one freeze: dense, sparse, or in one place; row versions go on rising.
fn changes(draw: &mut Draw, version: &mut u64, model: &Layer) -> Layer {
    let mut layer = Layer::new();
    let (near, kind) = (draw.below(4_000), draw.below(4));
    let count = draw.pick(&[0, 1, 5, 100, 400]);
    let deletes = draw.pick(&[2, 2, 8, 100]);
    for _ in 0..count {
        let number = match kind {
            0 => near + draw.below(60),
            _ => draw.below(4_000),
        };
        *version += 1;
        let row = vec![*version as u8; draw.below(80)];
        let row = (!draw.once_in(deletes)).then_some(row);
        let key = format!("{number:05}{}", "x".repeat(number % 3)).into_bytes();
        layer.insert(key, EntryOwned { version: *version, row });
    }
    // Now and then nearly everything goes.
    if draw.once_in(12) {
        for key in model.keys().filter(|_| !draw.once_in(50)) {
            *version += 1;
            layer.insert(key.clone(), EntryOwned { version: *version, row: None });
        }
    }
    layer
}

fn apply(model: &mut Layer, layers: &[Layer]) {
    for (key, entry) in layers.iter().flatten() {
        match entry.row {
            Some(_) => model.insert(key.clone(), entry.clone()),
            None => model.remove(key),
        };
    }
}

fn digest(rows: &Layer) -> ContentDigest {
    let mut digester = Digester::new(TABLE);
    for (key, entry) in rows {
        let mut payload = Vec::new();
        entry.as_entry().encode(&mut payload);
        digester.add(key, &payload);
    }
    digester.digest()
}

/// Tablets and blocks are not longer than the rule says, a unit is not cut into small tablets, and
/// only its last block may be small.
fn check_sizes(tablets: &[TabletOfView], outcomes: &[UnitOutcome]) {
    for tablet in tablets {
        let meta = &tablet.meta;
        let bytes = meta.footer().plain_bytes;
        assert!(bytes <= TABLET * 3 / 2 + 2 * BLOCK as u64, "a tablet of {bytes}");
        for block in 0..meta.blocks() {
            let length = meta.handle(block).plain_length as usize;
            assert!(length <= BLOCK * 3 / 2 + 120, "a block of {length}");
            let is_last = block + 1 == meta.blocks();
            assert!(length >= BLOCK / 2 || is_last, "a block of {length} that is not the last");
        }
    }
    for outcome in outcomes.iter().filter(|outcome| outcome.tablets.len() > 1) {
        for tablet in &outcome.tablets {
            assert!(2 * tablet.footer.plain_bytes >= TABLET, "a unit cut into small tablets");
        }
    }
}

/// What deletions have left small joins its neighbours, and then nothing is rewritten any more.
fn check_rest(node: &mut Node, draw: &mut Draw) {
    for round in 0..4 {
        node.freeze();
        let outcomes = node.merge(draw, &[Layer::new()], From::Memory, usize::MAX);
        node.release();
        let is_still = outcomes.iter().all(|outcome| outcome.is_kept || outcome.old.is_empty());
        assert!(round < 3 || is_still, "tablets without changes are rewritten for ever");
    }
    let tablets = node.tablets(node.state.version());
    for tablet in &tablets {
        let bytes = tablet.meta.footer().plain_bytes;
        assert!(2 * bytes >= TABLET || tablets.len() == 1, "a tablet of {bytes} stays");
    }
}

#[derive(Debug, Default)]
struct Met {
    kept: usize,
    emptied: usize,
    joined: usize,
    split: usize,
    copied: u64,
    resumed: usize,
}

/// A life of freezes and merges on three nodes that read the changes from different places, in
/// different orders, one of them with crashes between units: all hold the model, in equal bytes.
#[test]
fn zones_merge_to_the_same_bytes() {
    let mut met = Met::default();
    for_seeds("zones_merge_to_the_same_bytes", 120, |mut draw| {
        let mut nodes = [Node::new(), Node::new(), Node::new()];
        let mut model = Layer::new();
        let mut version = 0;
        for _ in 0..draw.range(2, 9) {
            let layers: Vec<_> = (0..draw.range(1, 4))
                .map(|_| {
                    let layer = changes(&mut draw, &mut version, &model);
                    nodes.iter_mut().for_each(Node::freeze);
                    layer
                })
                .collect();
            let before = nodes[0].rows(nodes[0].state.baseline());
            let outcomes = nodes[0].merge(&mut draw, &layers, From::Memory, usize::MAX);
            let partitions = draw.range(1, 4);
            let runs = From::Runs { block: draw.pick(&[60, 300, 5_000]), partitions };
            nodes[1].merge(&mut draw, &layers, runs, usize::MAX);
            for _ in 0..draw.below(4) {
                let until = draw.range(1, 4);
                met.resumed += nodes[2].merge(&mut draw, &layers, runs, until).len();
            }
            nodes[2].merge(&mut draw, &layers, From::Memory, usize::MAX);
            apply(&mut model, &layers);
            let target = nodes[0].state.version();
            assert_eq!(nodes[0].rows(target), model);
            for node in &nodes[1..] {
                assert!(node.images(target) == nodes[0].images(target), "zones differ");
            }
            assert_eq!(nodes[0].rows(nodes[0].state.baseline()), before, "the old view stays");
            check_sizes(&nodes[0].tablets(target), &outcomes);
            let footers = nodes[0].tablets(target);
            let sum =
                |sum: u128, tablet: &TabletOfView| sum.wrapping_add(tablet.meta.footer().digest.0);
            assert_eq!(ContentDigest(footers.iter().fold(0, sum)), digest(&model));
            for outcome in &outcomes {
                met.kept += usize::from(outcome.is_kept);
                met.emptied += usize::from(!outcome.is_kept && outcome.tablets.is_empty());
                met.joined += usize::from(outcome.old.len() > 1);
                met.split += usize::from(outcome.tablets.len() > 1);
                met.copied += outcome.blocks_copied;
            }
            nodes.iter_mut().for_each(Node::release);
        }
        check_rest(&mut nodes[0], &mut draw);
        assert_eq!(nodes[0].rows(nodes[0].state.version()), model);
    });
    println!("{met:?}");
    if std::env::var("SPILLWAY_SEED").is_err() {
        assert!(met.kept > 100 && met.emptied > 10 && met.joined > 10, "{met:?}");
        assert!(met.split > 100 && met.copied > 1_000 && met.resumed > 100, "{met:?}");
    }
}

fn full_node(rows: usize) -> (Node, Layer) {
    let mut node = Node::new();
    node.freeze();
    let entry = |number: usize| EntryOwned { version: number as u64, row: Some(vec![7; 40]) };
    let model: Layer =
        (0..rows).map(|number| (format!("{number:05}").into_bytes(), entry(number))).collect();
    node.merge(&mut Draw(1), std::slice::from_ref(&model), From::Memory, usize::MAX);
    node.release();
    (node, model)
}

/// One changed row: one tablet is written, one block of it is not copied, and nothing else is read.
#[test]
fn one_change_costs_one_tablet() {
    let (mut node, _) = full_node(3_000);
    let before = node.tablets(1);
    assert!(before.len() > 10, "{} tablets", before.len());
    let blocks: u32 = before.iter().map(|tablet| tablet.meta.blocks()).max().expect("tablets");
    node.freeze();
    let change = (b"01500".to_vec(), EntryOwned { version: 9_999, row: Some(vec![8; 40]) });
    let outcomes = node.merge(&mut Draw(2), &[[change].into()], From::Memory, usize::MAX);
    let changed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_kept).collect();
    assert_eq!((outcomes.len(), changed.len()), (before.len(), 1));
    assert_eq!(changed[0].tablets.len(), 1, "it has not grown");
    assert_eq!(changed[0].blocks_copied + 1, u64::from(changed[0].tablets[0].blocks));
    assert!(changed[0].blocks_copied < u64::from(blocks));
    let after = node.tablets(2);
    let kept = |tablet: &&TabletOfView| before.iter().any(|old| old.file == tablet.file);
    assert_eq!(after.iter().filter(kept).count(), before.len() - 1);
}

/// Untouched units need no block of the old tablets.
#[test]
fn an_untouched_unit_reads_nothing() {
    let (node, _) = full_node(500);
    let tablets = node.tablets(1);
    let target = target(2);
    for unit in plan(&target, &tablets).expect("of one table") {
        let none = vec![SortedSource::new(&[], &unit.range)];
        let mut merge = UnitMerge::new(&target, unit, none);
        assert_eq!(merge.needs().count(), 0);
        let UnitStep::Ended(outcome) = merge.step().expect("sound") else { panic!("not at once") };
        assert!(outcome.is_kept && outcome.tablets.is_empty());
    }
}

#[test]
fn strange_tablets_and_old_changes_are_refused() {
    let (mut node, _) = full_node(300);
    let tablets = node.tablets(1);
    let other = MergeTarget { schema: SCHEMA + 1, ..target(2) };
    assert!(matches!(plan(&other, &tablets), Err(PlanError::Schema { .. })));
    let run = node.files.run(&full_node(10).1, 2, 100).expect("entries");
    let file = run.file;
    assert_eq!(plan(&target(2), &[run]).map(|_| ()), Err(PlanError::Strange(file)));
    // A change that is older than the row in the tablet.
    let unit = plan(&target(2), &tablets).expect("of one table").remove(0);
    let old = [(b"00002".to_vec(), EntryOwned { version: 1, row: None })];
    let source = SortedSource::new(&old, &unit.range);
    let view = unit.tablets.clone();
    let mut merge = UnitMerge::new(&target(2), unit, vec![source]);
    let error = loop {
        match merge.step() {
            Ok(UnitStep::Blocked) => {
                let need = merge.needs().next().expect("blocked by something");
                merge.supply(need, node.read(&view, need));
            }
            Ok(UnitStep::Ended(_)) => panic!("a wrong order passed"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, MergeError::VersionOrder { version: 2, newer_version: 1, .. }));
}
