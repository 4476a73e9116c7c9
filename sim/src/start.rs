//! The start of a node: superblock, scan of the log, replay, and what the judge says of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use spillway_net::ids::{Epoch, Lsn, PartitionId, ShardIndex, WallMicros};
use spillway_net::message;
use spillway_updateserver::log::{LogScanner, Recovered, ScanItem, Superblock, Verdict};
use spillway_updateserver::memtable::HeapChunks;
use spillway_updateserver::redo::{
    FragmentReader, PARTITION_SYSTEM, SystemCommand, SystemFragment, system_digest,
};
use spillway_updateserver::root::Root;
use spillway_updateserver::session::SessionDirectory;
use spillway_updateserver::shard::{ReplayError, Shard, ShardOptions};

use crate::Failure;
use crate::disk::{CLUSTER, Disk, NODE};
use crate::draw::Draw;
use crate::model::Model;
use crate::node::Entries;
use crate::options::{Bug, Sizes};
use crate::worker::{PORT_BASE, Tables};

const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that transactions may not use, as in production.
const CHUNKS_WITHHELD: usize = 4;

/// A node that has read its log.
pub struct Started {
    /// Its shards, replayed.
    pub shards: Vec<Shard>,
    /// Its root service, replayed.
    pub root: Root,
    /// Where the log ended.
    pub recovered: Recovered,
    /// Running digests there.
    pub digests: Vec<u128>,
    /// The superblock to write before anything else.
    pub superblock: Superblock,
    /// What the log holds, for the judge.
    pub model: Model,
    /// Where each outcome stands.
    pub lsn_of: BTreeMap<(u64, u64), Lsn>,
}

/// Why there is none.
#[derive(Debug)]
pub enum StartError {
    /// The node refuses to start and says why.
    Refused(String),
    /// The budget is too small for what the log holds.
    MemoryFull,
    /// Something happened that must not.
    Failure(Failure),
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

struct ScannedSection {
    partition: u16,
    /// Running digest behind it.
    digest: u128,
    bytes: Vec<u8>,
}

struct ScannedEntry {
    lsn: Lsn,
    sections: Vec<ScannedSection>,
}

/// What a start works with.
pub struct StartScene<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// Sizes of the run.
    pub sizes: &'a Sizes,
    /// The tables.
    pub tables: &'a Tables,
    /// What was appended.
    pub entries: &'a mut Entries,
    /// The planted bug.
    pub bug: Option<Bug>,
    /// Chance.
    pub draw: &'a mut Draw,
    /// Virtual time.
    pub now: u64,
}

/// Reads the log and builds a node from it.
pub fn start(scene: &mut StartScene<'_>) -> Result<Started, StartError> {
    let superblock =
        scene.disk.superblock().map_err(|error| StartError::Refused(error.to_string()))?;
    let mut scanned = covered(&superblock, scene)?;
    let (entries, recovered) = scan(&superblock, scene)?;
    scanned.extend(entries);
    compare(&scanned, &recovered, scene)?;
    // What comes after the end never happened.
    scene.entries.split_off(&(recovered.last_lsn.0 + 1));

    let (mut model, mut lsn_of) = (Model::default(), BTreeMap::new());
    let mut digests = vec![0u128; usize::from(scene.sizes.geometry.partitions)];
    for entry in &scanned {
        for section in entry.sections.iter().filter(|s| s.partition != PARTITION_SYSTEM) {
            model.redo(entry.lsn, section.partition, &section.bytes, scene.tables)?;
            digests[usize::from(section.partition)] = section.digest;
            let reader = FragmentReader::new(&section.bytes)
                .map_err(|error| Failure::new(error.to_string()))?;
            for outcome in reader.outcomes() {
                lsn_of.insert((outcome.session, outcome.number), entry.lsn);
            }
        }
    }
    if scene.bug == Some(Bug::ReplayOneLess) {
        while scanned.pop().is_some_and(|entry| entry.sections.is_empty()) {}
    }
    let (shards, root) = replay(&scanned, scene)?;
    let term = Epoch(1).max(recovered.term);
    let superblock = recovered.superblock_next(&superblock, term, NODE);
    Ok(Started { shards, root, recovered, digests, superblock, model, lsn_of })
}

/// The entries below the floor, which the scan does not read.
fn covered(
    superblock: &Superblock,
    scene: &StartScene<'_>,
) -> Result<Vec<ScannedEntry>, StartError> {
    let mut digests = vec![0u128; usize::from(scene.sizes.geometry.partitions)];
    let mut covered = Vec::new();
    for (lsn, sections) in scene.entries.range(..=superblock.floor.chain.lsn.0) {
        let section = |section: &crate::node::EntrySection| {
            let digest = if section.partition == PARTITION_SYSTEM {
                section.digest
            } else {
                let running = &mut digests[usize::from(section.partition)];
                *running = running.wrapping_add(section.digest);
                *running
            };
            let (partition, bytes) = (section.partition, section.bytes.clone());
            ScannedSection { partition, digest, bytes }
        };
        let sections = sections.iter().map(section).collect();
        covered.push(ScannedEntry { lsn: Lsn(*lsn), sections });
    }
    Ok(covered)
}

fn scan(
    superblock: &Superblock,
    scene: &mut StartScene<'_>,
) -> Result<(Vec<ScannedEntry>, Recovered), StartError> {
    let mut scanner = LogScanner::new(superblock, scene.draw.pick(&[1, 100 << 10, 4 << 20]));
    let mut found = Vec::new();
    let mut last = (superblock.floor.chain.lsn, superblock.floor.chain.timestamp);
    let mut failure = None;
    while let Some(request) = scanner.next_read() {
        let fed = scanner.feed(scene.disk.read(&request), &mut |item| match item {
            ScanItem::Truncated(lsn) => {
                failure = Some(format!("entries behind LSN {lsn} are superseded on a lone node"));
            }
            ScanItem::Entry(frame) => {
                let next = (frame.shared.index, frame.shared.timestamp);
                failure = failure.take().or_else(|| order_broken(last, next));
                last = next;
                let sections = frame
                    .sections()
                    .map(|section| ScannedSection {
                        partition: section.partition.0,
                        digest: section.digest,
                        bytes: section.bytes.to_vec(),
                    })
                    .collect();
                found.push(ScannedEntry { lsn: frame.shared.index, sections });
            }
        });
        fed.map_err(|damaged| StartError::Refused(damaged.to_string()))?;
        if let Some(failure) = failure.take() {
            return Err(Failure::new(failure).into());
        }
    }
    Ok((found, scanner.finish()))
}

fn order_broken(last: (Lsn, WallMicros), next: (Lsn, WallMicros)) -> Option<String> {
    let rises = next.0.0 == last.0.0 + 1 && next.1 > last.1;
    (!rises).then(|| format!("entry {next:?} behind entry {last:?}"))
}

/// The log must hold what was appended, byte for byte.
fn compare(
    scanned: &[ScannedEntry],
    recovered: &Recovered,
    scene: &StartScene<'_>,
) -> Result<(), Failure> {
    let mut expected = scene.entries.range(..=recovered.last_lsn.0);
    for entry in scanned.iter().filter(|entry| !entry.sections.is_empty()) {
        let equal = expected.next().is_some_and(|(lsn, sections)| {
            *lsn == entry.lsn.0
                && sections.len() == entry.sections.len()
                && sections
                    .iter()
                    .zip(&entry.sections)
                    .all(|(a, b)| a.partition == b.partition && a.bytes == b.bytes)
        });
        if !equal {
            return Err(Failure::new(format!("LSN {} is not what was appended", entry.lsn)));
        }
    }
    match expected.next() {
        Some((lsn, _)) => Err(Failure::new(format!("LSN {lsn} was appended and not read back"))),
        None => Ok(()),
    }
}

fn shards_new(scene: &StartScene<'_>, directory: &Arc<SessionDirectory>) -> Vec<Shard> {
    let sizes = scene.sizes;
    (0..sizes.shards)
        .map(|index| {
            let options = ShardOptions {
                index: ShardIndex(index),
                shards: sizes.shards,
                partitions: sizes.geometry.partitions.into(),
                cluster: CLUSTER,
                node: NODE,
                epoch: Epoch(1),
                shard_ports: (0..sizes.shards).map(|shard| PORT_BASE + shard).collect(),
                handovers_in_flight_max: sizes.handovers_max,
                held_bytes_max: 256 << 10,
                outcomes_bytes_max: 64 << 20,
            };
            let chunks = HeapChunks::new(CHUNK_BYTES, sizes.chunks);
            let withheld = CHUNKS_WITHHELD * CHUNK_BYTES;
            Shard::new(options, Arc::clone(directory), Box::new(chunks), withheld)
        })
        .collect()
}

fn replay(
    scanned: &[ScannedEntry],
    scene: &mut StartScene<'_>,
) -> Result<(Vec<Shard>, Root), StartError> {
    let directory = Arc::new(SessionDirectory::default());
    let mut shards = shards_new(scene, &directory);
    let mut root = Root::new(Arc::clone(&directory), scene.sizes.shards);
    let mut digests = vec![0u128; usize::from(scene.sizes.geometry.partitions)];
    let mut sessions = Vec::new();
    for entry in scanned {
        for section in &entry.sections {
            if section.partition == PARTITION_SYSTEM {
                for command in system(entry.lsn, section)? {
                    shards.iter_mut().for_each(|shard| shard.replay_command(&command));
                    root.replay(&command, scene.now);
                    if let SystemCommand::SessionOpen { session, .. } = command {
                        sessions.push(session);
                    }
                }
                continue;
            }
            let skip = scene.bug == Some(Bug::ReplaySectionSkipped) && scene.draw.once_in(40);
            if skip {
                continue;
            }
            let before = &mut digests[usize::from(section.partition)];
            let shard = &mut shards[usize::from(section.partition % scene.sizes.shards)];
            let partition = PartitionId(section.partition);
            shard
                .replay_section(entry.lsn, partition, &section.bytes, *before, section.digest)
                .map_err(|error| match error {
                    ReplayError::MemoryFull => StartError::MemoryFull,
                    error => StartError::Refused(error.to_string()),
                })?;
            *before = section.digest;
        }
    }
    if scene.bug == Some(Bug::SessionsForgotten) {
        for session in sessions {
            let close = SystemCommand::SessionClose { session };
            shards.iter_mut().for_each(|shard| shard.replay_command(&close));
        }
    }
    Ok((shards, root))
}

fn system(lsn: Lsn, section: &ScannedSection) -> Result<Vec<SystemCommand>, StartError> {
    if system_digest(&section.bytes) != section.digest {
        return Err(StartError::Refused(format!("LSN {lsn}: digest of a system section")));
    }
    let fragment = message::decode::<SystemFragment>(&section.bytes)
        .map_err(|error| StartError::Refused(format!("LSN {lsn}: {error}")))?;
    Ok(fragment.commands)
}

/// Whether the log's end was torn.
pub fn is_torn(recovered: &Recovered) -> bool {
    matches!(recovered.verdict, Verdict::TailTorn { .. })
}
