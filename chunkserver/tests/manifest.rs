//! The manifest against a model, against power losses at every step, and against flipped bits.

mod common;

use common::{Draw, for_seeds};
use spillway_chunkserver::digest::ContentDigest;
use spillway_chunkserver::fuzz::{fuzz_edit, fuzz_manifest, sample_manifest};
use spillway_chunkserver::manifest::{
    DamageReason, EditFault, FileEntry, FileId, FileKind, ManifestCore, ManifestDamaged,
    ManifestEdit, ManifestEffect, ManifestInput, ManifestOptions, ManifestState, Recovered,
    Refusal, recover,
};
use spillway_net::ids::{ClusterId, NodeId, PartitionId, TableId};
use spillway_runtime::Errno;

fn options(block_bytes: u32) -> ManifestOptions {
    // Little room, so that the files change often.
    let edits_bytes_min = 4 * u64::from(block_bytes);
    ManifestOptions {
        edits_bytes_min,
        ..ManifestOptions::new(ClusterId(7), NodeId(2), block_bytes)
    }
}

fn tablet(id: u64, version: u64, keys: (&[u8], &[u8]), until: Option<u64>) -> FileEntry {
    FileEntry {
        id: FileId(id),
        version,
        kind: FileKind::Tablet {
            table: TableId(1),
            schema: 5,
            first_key: keys.0.to_vec(),
            last_key: keys.1.to_vec(),
            until,
        },
        rows: 3,
        bytes: 4096,
        digest: ContentDigest(u128::from(id) << 64),
        footer_checksum: id,
    }
}

fn run(id: u64, version: u64, partition: u16) -> FileEntry {
    let kind = FileKind::Run { partition: PartitionId(partition) };
    FileEntry { kind, ..tablet(id, version, (b"a", b"a"), None) }
}

/// Makes lawful edits as a node would: freezes with runs, merges that replace tablets, releases.
#[derive(Clone)]
struct Life {
    draw: Draw,
}

impl Life {
    fn edit(&mut self, state: &ManifestState) -> ManifestEdit {
        let mut edit = ManifestEdit {
            version: state.version(),
            baseline: state.baseline(),
            file_id_max: state.file_id_max(),
            ..ManifestEdit::default()
        };
        match self.draw.below(4) {
            0 | 1 => self.freeze(&mut edit),
            2 if state.version() > state.baseline() => self.merge(&mut edit, state),
            _ => self.release(&mut edit, state),
        }
        edit
    }

    fn id(edit: &mut ManifestEdit) -> u64 {
        edit.file_id_max += 1;
        edit.file_id_max
    }

    fn freeze(&mut self, edit: &mut ManifestEdit) {
        edit.version += 1;
        // Now and then more than a block of 4,096 bytes.
        let most = if self.draw.once_in(3) { 120 } else { 9 };
        for partition in 0..self.draw.range(1, most) {
            let id = Life::id(edit);
            edit.adds.push(run(id, edit.version, partition as u16));
        }
    }

    /// Replaces some tablets, and moves the baseline.
    fn merge(&mut self, edit: &mut ManifestEdit, state: &ManifestState) {
        for slot in 0..self.draw.range(1, 6) as u8 {
            let (first, last) = ([b'a' + slot, 0].to_vec(), vec![b'a' + slot; 40]);
            let old = state.tablets(TableId(1), state.version()).into_iter().find(|entry| {
                matches!(&entry.kind, FileKind::Tablet { first_key, .. } if *first_key == first)
            });
            if old.is_some_and(|old| old.version == edit.version) {
                continue;
            }
            if let Some(old) = old {
                edit.ends.push((old.id, Some(edit.version)));
            }
            let id = Life::id(edit);
            edit.adds.push(tablet(id, edit.version, (&first, &last), None));
        }
        edit.baseline = edit.version;
    }

    fn release(&mut self, edit: &mut ManifestEdit, state: &ManifestState) {
        for entry in state.files() {
            let is_run = matches!(entry.kind, FileKind::Run { .. });
            let is_needed = match is_run {
                true => entry.version > edit.baseline,
                false => entry.is_tablet_at(edit.baseline) || entry.version > edit.baseline,
            };
            if !is_needed && !self.draw.once_in(3) {
                edit.removes.push(entry.id);
            }
        }
    }
}

/// Two files, and what was written to them and not flushed.
#[derive(Clone)]
struct Medium {
    tear: usize,
    durable: [Vec<u8>; 2],
    unflushed: Vec<(usize, usize, Vec<u8>)>,
}

impl Medium {
    fn format(options: &ManifestOptions, tear: usize) -> Medium {
        let durable = [ManifestCore::format(options), Vec::new()];
        Medium { tear, durable, unflushed: Vec::new() }
    }

    fn perform(&mut self, effect: &ManifestEffect) {
        match effect {
            ManifestEffect::Renew { file, bytes } => {
                assert!(self.unflushed.is_empty(), "one thing after the other");
                self.durable[*file] = vec![0; *bytes as usize];
            }
            ManifestEffect::Write { file, offset, bytes } => {
                let sectors = bytes.chunks(self.tear).enumerate();
                let at = |number| *offset as usize + number * self.tear;
                self.unflushed.extend(sectors.map(|(n, part)| (*file, at(n), part.to_vec())));
            }
            ManifestEffect::Flush { file } => {
                for (of, at, bytes) in std::mem::take(&mut self.unflushed) {
                    assert_eq!(of, *file, "what was written is flushed before anything else");
                    land(&mut self.durable[of], at, &bytes);
                }
            }
            outcome => panic!("{outcome:?} is not for the disk"),
        }
    }

    /// What may be on the disk if power fails now: no, all, each single, all but each single, and
    /// random subsets of the sectors that are not flushed.
    fn images(&self, draw: &mut Draw) -> Vec<[Vec<u8>; 2]> {
        let count = self.unflushed.len();
        let mut images = vec![self.image(|_| false), self.image(|_| true)];
        for one in 0..count {
            images.push(self.image(|number| number == one));
            images.push(self.image(|number| number != one));
        }
        for _ in 0..if count > 2 { 12 } else { 0 } {
            let mut toss = draw.clone();
            images.push(self.image(|_| toss.once_in(2)));
            draw.next();
        }
        images
    }

    fn image(&self, mut landed: impl FnMut(usize) -> bool) -> [Vec<u8>; 2] {
        let mut files = self.durable.clone();
        for (number, (file, at, bytes)) in self.unflushed.iter().enumerate() {
            if landed(number) {
                land(&mut files[*file], *at, bytes);
            }
        }
        files
    }

    /// What may be on the disk if power fails while a file becomes zeros.
    fn renewal_images(&self, file: usize, bytes: u64, draw: &mut Draw) -> Vec<[Vec<u8>; 2]> {
        let old = &self.durable[file];
        let mut contents = vec![old.clone(), Vec::new(), vec![0; bytes as usize]];
        for _ in 0..6 {
            let mut mixed = old.clone();
            for sector in mixed.chunks_mut(self.tear) {
                if draw.once_in(2) {
                    sector.fill(0);
                }
            }
            mixed.truncate(draw.below(old.len() / self.tear + 1) * self.tear);
            contents.push(mixed.clone());
            mixed.resize(bytes as usize, 0);
            contents.push(mixed);
        }
        let place = |content| {
            let mut files = self.durable.clone();
            files[file] = content;
            files
        };
        contents.into_iter().map(place).collect()
    }
}

fn land(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn read(options: &ManifestOptions, files: &[Vec<u8>; 2]) -> Result<Recovered, ManifestDamaged> {
    recover(options, [&files[0], &files[1]])
}

/// Carries an edit out to its end.
fn apply(core: &mut ManifestCore, medium: &mut Medium, edit: ManifestEdit) -> ManifestEffect {
    let (mut input, mut effects) = (ManifestInput::Edit(edit), Vec::new());
    loop {
        core.step(input, &mut effects);
        let effect = effects.pop().expect("an effect");
        assert!(effects.is_empty(), "one request at a time");
        if core.is_ready() {
            return effect;
        }
        medium.perform(&effect);
        input = ManifestInput::Ended(Ok(()));
    }
}

/// What the crash tests met, so that they can tell that they tested something.
#[derive(Debug, Default)]
struct Met {
    images: usize,
    torn: usize,
    with_pending: usize,
    changes: usize,
    both_files: usize,
}

/// Looks at one image: it holds what was acknowledged, or that and the edit on its way; and the
/// manifest goes on from there.
fn judge(
    options: &ManifestOptions,
    files: [Vec<u8>; 2],
    acknowledged: &(u64, ManifestState),
    pending: Option<&ManifestState>,
    met: &mut Met,
) {
    met.images += 1;
    let recovered = read(options, &files).expect("a loss of power damages nothing");
    met.torn += usize::from(recovered.is_torn);
    met.both_files += usize::from(!recovered.other_is_blank);
    let is_old = recovered.sequence == acknowledged.0 && recovered.state == acknowledged.1;
    let is_new = recovered.sequence == acknowledged.0 + 1 && Some(&recovered.state) == pending;
    assert!(is_old || is_new, "an edit counts as a whole or not at all");
    met.with_pending += usize::from(is_new);
    let (sequence, state) = (recovered.sequence, recovered.state.clone());
    let mut medium = Medium { tear: 512, durable: files, unflushed: Vec::new() };
    let mut core = ManifestCore::new(*options, recovered);
    let mut edit = ManifestEdit { version: state.version() + 1, ..state.snapshot() };
    edit.adds = vec![run(state.file_id_max() + 1, edit.version, 0)];
    edit.file_id_max += 1;
    let mut expected = state;
    expected.apply(&edit);
    let applied = apply(&mut core, &mut medium, edit);
    assert_eq!(applied, ManifestEffect::Applied { sequence: sequence + 1 });
    let again = read(options, &medium.durable).expect("it goes on");
    assert_eq!((again.state, again.sequence), (expected, sequence + 1));
    assert!(!again.is_torn && again.other_is_blank);
}

fn crash_life(seed: Draw, block_bytes: u32, tear: usize, edits: usize, met: &mut Met) {
    let options = options(block_bytes);
    let mut medium = Medium::format(&options, tear);
    let mut draw = Draw(seed.0 ^ 1);
    let mut life = Life { draw: seed };
    let recovered = read(&options, &medium.durable).expect("a new manifest");
    let mut core = ManifestCore::new(options, recovered);
    for _ in 0..edits {
        let acknowledged = (core.sequence(), core.state().clone());
        let edit = life.edit(core.state());
        let mut after = acknowledged.1.clone();
        after.apply(&edit);
        let (mut input, mut effects) = (ManifestInput::Edit(edit), Vec::new());
        let judge = |files, pending: bool, met: &mut Met| {
            judge(&options, files, &acknowledged, pending.then_some(&after), met);
        };
        loop {
            core.step(input, &mut effects);
            let effect = effects.pop().expect("an effect");
            if core.is_ready() {
                assert!(matches!(effect, ManifestEffect::Applied { .. }));
                break;
            }
            let is_flush = matches!(effect, ManifestEffect::Flush { .. });
            if let ManifestEffect::Renew { file, bytes } = effect {
                met.changes += usize::from(bytes > 0);
                for files in medium.renewal_images(file, bytes, &mut draw) {
                    judge(files, false, met);
                }
            }
            medium.perform(&effect);
            for files in medium.images(&mut draw) {
                let is_written = is_flush || !medium.unflushed.is_empty();
                judge(files, is_written, met);
            }
            input = ManifestInput::Ended(Ok(()));
        }
        let read = read(&options, &medium.durable).expect("whole");
        assert_eq!((&read.state, read.sequence), (core.state(), core.sequence()));
        assert_eq!(core.state(), &after);
    }
}

#[test]
fn power_may_fail_at_any_moment() {
    for (block_bytes, tear) in [(512, 512), (4096, 4096), (512, 4096)] {
        let mut met = Met::default();
        for_seeds("power_may_fail_at_any_moment", 6, |seed| {
            crash_life(seed, block_bytes, tear, 30, &mut met);
        });
        println!("blocks of {block_bytes}, torn at {tear}: {met:?}");
        if std::env::var("SPILLWAY_SEED").is_err() {
            assert!(met.images > 2_000 && met.with_pending > 200, "{met:?}");
            assert!(met.changes > 10 && met.both_files > 50, "{met:?}");
            assert!(met.torn > 30, "{met:?}");
        }
    }
}

/// A history on the disk, with the state after each edit.
fn history(seed: Draw, block_bytes: u32, edits: usize) -> (Medium, Vec<ManifestState>) {
    let options = options(block_bytes);
    let mut medium = Medium::format(&options, block_bytes as usize);
    let mut life = Life { draw: seed };
    let recovered = read(&options, &medium.durable).expect("a new manifest");
    let mut core = ManifestCore::new(options, recovered);
    let mut states = vec![core.state().clone()];
    for number in 0..edits {
        let edit = life.edit(core.state());
        core.state().check(&edit).expect("lawful");
        let applied = apply(&mut core, &mut medium, edit);
        assert_eq!(applied, ManifestEffect::Applied { sequence: number as u64 + 1 });
        states.push(core.state().clone());
    }
    (medium, states)
}

#[test]
fn edits_add_up_as_in_a_model() {
    for_seeds("edits_add_up_as_in_a_model", 20, |mut draw| {
        let block_bytes = draw.pick(&[512, 1024, 4096]);
        let (medium, states) = history(draw, block_bytes, 120);
        let read = read(&options(block_bytes), &medium.durable).expect("whole");
        let last = states.last().expect("a history");
        assert_eq!((&read.state, read.sequence), (last, 120));
        // The snapshot leads to the same state from nothing.
        let mut again = ManifestState::default();
        again.check(&last.snapshot()).expect("a state keeps the rules");
        again.apply(&last.snapshot());
        assert_eq!(&again, last);
        assert_eq!(last.snapshot().encode().len(), last.snapshot_bytes());
        assert_eq!(ManifestEdit::decode(&last.snapshot().encode()), Some(last.snapshot()));
    });
}

/// Any bit of both files: what comes out is the acknowledged state or a refusal.
fn flip_all(options: &ManifestOptions, medium: &Medium, state: &ManifestState) -> [usize; 2] {
    let mut outcomes = [0, 0];
    let mut files = medium.durable.clone();
    for file in 0..2 {
        for bit in 0..8 * files[file].len() {
            files[file][bit / 8] ^= 1 << (bit % 8);
            match read(options, &files) {
                Ok(read) => {
                    assert_eq!(&read.state, state, "file {file} bit {bit}");
                    outcomes[1] += 1;
                }
                Err(_) => outcomes[0] += 1,
            }
            files[file][bit / 8] ^= 1 << (bit % 8);
        }
    }
    outcomes
}

#[test]
fn flipped_bits_are_refused_or_harmless() {
    let options = options(512);
    let (mut medium, states) = history(Draw(5), 512, 9);
    let [refused, harmless] = flip_all(&options, &medium, states.last().expect("a history"));
    assert!(refused > 10_000 && harmless == 0, "one file: {refused} refused, {harmless} harmless");
    // Until the moment at which both files hold the state.
    let recovered = read(&options, &medium.durable).expect("whole");
    let mut core = ManifestCore::new(options, recovered);
    let mut life = Life { draw: Draw(6) };
    let mut input = ManifestInput::Edit(life.edit(core.state()));
    loop {
        let mut effects = Vec::new();
        core.step(input, &mut effects);
        let effect = effects.pop().expect("an effect");
        if matches!(effect, ManifestEffect::Renew { bytes: 0, .. }) {
            break;
        }
        input = if core.is_ready() {
            ManifestInput::Edit(life.edit(core.state()))
        } else {
            medium.perform(&effect);
            ManifestInput::Ended(Ok(()))
        };
    }
    let [refused, harmless] = flip_all(&options, &medium, core.state());
    println!("{refused} refused, {harmless} harmless");
    assert!(harmless > 10_000, "both files: {refused} refused, {harmless} harmless");
}

/// Whole blocks that are lost, zeroed, exchanged or taken from the past never pass for the truth:
/// only the blocks of the very last edit can be missing, which looks as if they were not reached.
#[test]
fn blocks_that_go_wrong_are_seen() {
    for_seeds("blocks_that_go_wrong_are_seen", 40, |mut draw| {
        let options = options(512);
        let edits = draw.range(2, 30);
        let (medium, states) = history(draw.clone(), 512, edits);
        let (last, before) = (&states[edits], &states[edits - 1]);
        let in_use = usize::from(medium.durable[0].is_empty());
        let blocks = medium.durable[in_use].len() / 512;
        let other = draw.below(blocks);
        for block in 0..blocks {
            let range = 512 * block..512 * (block + 1);
            let mut zeroed = medium.durable.clone();
            zeroed[in_use][range.clone()].fill(0);
            let from = zeroed[in_use][512 * other..512 * (other + 1)].to_vec();
            let mut moved = medium.durable.clone();
            moved[in_use][range].copy_from_slice(&from);
            for files in [zeroed, moved] {
                match read(&options, &files) {
                    Ok(read) => assert!(read.state == *last || read.state == *before),
                    Err(damage) => assert_eq!(damage.file, in_use),
                }
            }
        }
        let mut cut = medium.durable.clone();
        cut[in_use].truncate(512 * draw.below(blocks));
        let damage = read(&options, &cut).expect_err("a file that was cut");
        let reasons = [DamageReason::Length, DamageReason::Missing];
        assert!(reasons.contains(&damage.reason), "{damage}");
        let gone = [Vec::new(), Vec::new()];
        let damage = read(&options, &gone).expect_err("no manifest");
        assert_eq!(damage.reason, DamageReason::Missing);
        let strange = ManifestOptions { node: NodeId(3), ..options };
        let damage = read(&strange, &medium.durable).expect_err("of another node");
        assert_eq!(damage.reason, DamageReason::Misplaced);
    });
}

#[test]
fn files_of_two_histories_contradict_each_other() {
    let options = options(512);
    let histories: Vec<_> = (0..40).map(|n| history(Draw(n), 512, 5 + n as usize).0).collect();
    let read_one = |medium: &Medium| read(&options, &medium.durable).expect("whole");
    let mut met = 0;
    for newer in &histories {
        for older in &histories {
            let (one, other) = (read_one(newer), read_one(older));
            // The newer file was made of an earlier state than the older one shows.
            let is_odd = one.generation > other.generation && one.sequence < other.sequence;
            if one.file == other.file || !is_odd {
                continue;
            }
            let mut files = newer.durable.clone();
            files[other.file] = older.durable[other.file].clone();
            let damage = read(&options, &files).expect_err("two histories");
            assert_eq!(damage.reason, DamageReason::Contradiction);
            met += 1;
        }
    }
    assert!(met > 0, "no two histories met");
}

#[test]
fn rules_are_kept() {
    let mut state = ManifestState::default();
    let first = ManifestEdit {
        version: 2,
        baseline: 1,
        file_id_max: 9,
        adds: vec![
            tablet(1, 1, (b"a", b"c"), None),
            tablet(2, 1, (b"d", b"f"), Some(2)),
            tablet(3, 2, (b"e", b"e"), None),
            run(4, 2, 0),
        ],
        ..ManifestEdit::default()
    };
    state.check(&first).expect("lawful");
    state.apply(&first);
    let none = ManifestEdit { adds: Vec::new(), ..first.clone() };
    let add =
        |entry: FileEntry| ManifestEdit { file_id_max: 20, adds: vec![entry], ..none.clone() };
    let end = |id, until| ManifestEdit { ends: vec![(FileId(id), until)], ..none.clone() };
    let remove = |id| ManifestEdit { removes: vec![FileId(id)], ..none.clone() };
    let lawful = [
        none.clone(),
        add(tablet(10, 2, (b"f", b"g"), None)),
        add(run(10, 3, 0)),
        end(1, Some(2)),
        remove(3),
        ManifestEdit { baseline: 2, removes: vec![FileId(2), FileId(4)], ..none.clone() },
        ManifestEdit { removes: vec![FileId(3)], ends: vec![(FileId(2), None)], ..none.clone() },
    ];
    for edit in &lawful {
        assert_eq!(state.check(edit), Ok(()), "{edit:?}");
    }
    let unlawful = [
        ManifestEdit { version: 1, ..none.clone() },
        ManifestEdit { baseline: 0, ..none.clone() },
        ManifestEdit { baseline: 3, ..none.clone() },
        ManifestEdit { file_id_max: 8, ..none.clone() },
        ManifestEdit { file_id_max: u64::MAX, ..none.clone() },
        add(tablet(9, 2, (b"x", b"y"), None)),
        add(tablet(21, 2, (b"x", b"y"), None)),
        add(tablet(10, 3, (b"x", b"y"), None)),
        add(tablet(10, 2, (b"y", b"x"), None)),
        add(tablet(10, 2, (b"x", b"y"), Some(2))),
        add(tablet(10, 2, (b"c", b"c"), None)),
        add(tablet(10, 1, (b"f", b"f"), None)),
        add(run(10, 2, 1)),
        ManifestEdit { adds: vec![run(10, 3, 0), run(11, 3, 0)], ..add(run(10, 3, 0)) },
        ManifestEdit { adds: vec![run(10, 3, 0), run(10, 3, 1)], ..add(run(10, 3, 0)) },
        end(2, None),
        end(4, Some(2)),
        end(8, Some(2)),
        end(1, Some(1)),
        end(1, Some(3)),
        remove(1),
        remove(2),
        remove(4),
        remove(8),
        ManifestEdit { removes: vec![FileId(3), FileId(3)], ..none.clone() },
    ];
    for edit in &unlawful {
        let fault = state.check(edit).expect_err("a rule is broken");
        assert!(!fault.is_limit(), "{edit:?}");
    }
    // A damaged tablet of the baseline is exchanged for an equal one.
    let FileEntry { kind, digest, .. } = tablet(1, 1, (b"a", b"c"), None);
    let copy = FileEntry { digest, kind, ..tablet(10, 1, (b"a", b"c"), None) };
    let exchange = ManifestEdit { removes: vec![FileId(1)], ..add(copy.clone()) };
    assert_eq!(state.check(&exchange), Ok(()));
    let unequal = FileEntry { digest: ContentDigest(1), ..copy };
    assert!(state.check(&ManifestEdit { removes: vec![FileId(1)], ..add(unequal) }).is_err());
}

/// The sweep of the overlap rule against every pair and every version.
#[test]
fn overlaps_are_found_as_by_trying_all() {
    let (mut found, mut clear) = (0, 0);
    for_seeds("overlaps_are_found_as_by_trying_all", 3_000, |mut draw| {
        let mut adds = Vec::new();
        for id in 1..=draw.range(2, 5) as u64 {
            let (first, from) = (draw.range(1, 9) as u8, draw.range(1, 5) as u64);
            let last = first + draw.below(3) as u8;
            let until = (!draw.once_in(3)).then(|| from + draw.range(1, 3) as u64);
            adds.push(tablet(id, from, (&[first], &[last]), until));
        }
        let key_at = |key: u8, version: u64| {
            let holds = adds.iter().filter(|entry| match &entry.kind {
                FileKind::Tablet { first_key, last_key, .. } => {
                    entry.is_tablet_at(version) && first_key[0] <= key && key <= last_key[0]
                }
                FileKind::Run { .. } => false,
            });
            holds.count()
        };
        let expected = (1..12).any(|key| (1..9).any(|version| key_at(key, version) > 1));
        let (version, file_id_max) = (9, 9);
        let edit = ManifestEdit { version, file_id_max, adds, ..ManifestEdit::default() };
        let checked = ManifestState::default().check(&edit);
        assert_eq!(matches!(checked, Err(EditFault::Overlap { .. })), expected, "{edit:?}");
        *if expected { &mut found } else { &mut clear } += 1;
    });
    assert!(found > 500 && clear > 500 || found + clear == 1, "{found} {clear}");
}

#[test]
#[should_panic(expected = "breaks a rule")]
fn an_unlawful_edit_is_a_mistake() {
    let options = options(512);
    let mut medium = Medium::format(&options, 512);
    let recovered = read(&options, &medium.durable).expect("a new manifest");
    let mut core = ManifestCore::new(options, recovered);
    let edit = ManifestEdit { removes: vec![FileId(1)], ..ManifestEdit::default() };
    apply(&mut core, &mut medium, edit);
}

#[test]
fn failures_of_the_disk_refuse_or_poison() {
    let options = options(512);
    let edit_of = |state: &ManifestState| {
        let mut edit = ManifestEdit { version: state.version() + 1, ..state.snapshot() };
        edit.file_id_max += 3;
        edit.adds = (1..4).map(|n| run(state.file_id_max() + n, edit.version, n as u16)).collect();
        edit
    };
    let (mut refused, mut poisoned) = (0, 0);
    for fail_at in 0..60 {
        let mut medium = Medium::format(&options, 512);
        let recovered = read(&options, &medium.durable).expect("a new manifest");
        let mut core = ManifestCore::new(options, recovered);
        let (mut requests, mut effects) = (0, Vec::new());
        for _ in 0..8 {
            let before = core.state().clone();
            let mut input = ManifestInput::Edit(edit_of(&before));
            loop {
                core.step(input, &mut effects);
                let effect = effects.pop().expect("an effect");
                if core.is_ready() {
                    let is_applied = matches!(effect, ManifestEffect::Applied { .. });
                    assert_eq!(core.state() != &before, is_applied, "nothing half-way");
                    refused += usize::from(matches!(
                        effect,
                        ManifestEffect::Refused(Refusal::Space { errno: Errno(28) })
                    ));
                    let failed = effect == ManifestEffect::Poisoned { errno: Errno(28) };
                    poisoned += usize::from(failed);
                    break;
                }
                let fails = requests == fail_at;
                requests += 1;
                if !fails {
                    medium.perform(&effect);
                }
                input = ManifestInput::Ended(if fails { Err(Errno(28)) } else { Ok(()) });
            }
        }
        let image = medium.image(|_| true);
        let recovered = read(&options, &image).expect("an error damages nothing");
        assert!(recovered.sequence >= core.sequence(), "what was acknowledged is there");
    }
    assert!(refused >= 2 && poisoned > 5, "{refused} refused, {poisoned} poisoned");
}

#[test]
fn any_bytes_harm_nobody() {
    for_seeds("any_bytes_harm_nobody", 2_000, |mut draw| {
        let mut sample = sample_manifest();
        for _ in 0..draw.range(1, 6) {
            let at = draw.below(sample.len());
            sample[at] = draw.next() as u8;
        }
        fuzz_manifest(&sample);
        let noise: Vec<u8> = (0..draw.below(300)).map(|_| draw.pick(&[0, 1, 2, 255])).collect();
        fuzz_manifest(&noise);
        fuzz_edit(&noise);
        let mut edit = ManifestEdit {
            version: 3,
            file_id_max: 9,
            adds: vec![run(1, 2, 3), tablet(2, 1, (b"a", b"b"), Some(2))],
            ends: vec![(FileId(4), None)],
            removes: vec![FileId(5)],
            ..ManifestEdit::default()
        }
        .encode();
        let at = draw.below(edit.len());
        edit[at] = draw.next() as u8;
        fuzz_edit(&edit);
        fuzz_edit(&edit[..draw.below(edit.len())]);
    });
}
