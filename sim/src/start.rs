//! The start of a node: superblock, scan of the log, replay, and what the judge says of it.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use spillway_net::ids::{Lsn, PartitionId, ShardIndex, WallMicros};
use spillway_runtime::slot_ring::Slot;
use spillway_updateserver::log::{
    FrameKind, LogDamaged, LogScanner, Recovered, ScanItem, Superblock, Verdict,
};
use spillway_updateserver::memtable::HeapChunks;
use spillway_updateserver::redo::{PARTITION_SYSTEM, SystemCommand};
use spillway_updateserver::root::Root;
use spillway_updateserver::session::SessionDirectory;
use spillway_updateserver::shard::{ReplayError, Shard, ShardOptions, system_commands};

use crate::Failure;
use crate::disk::{CLUSTER, Disk};
use crate::draw::Draw;
use crate::entry::Entry;
use crate::history::History;
use crate::options::{Bug, Sizes};
use crate::worker::port;

pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that transactions may not use, as in production.
const CHUNKS_WITHHELD: usize = 4;

/// A node that has read its log.
pub struct Started {
    /// Its shards, replayed.
    pub shards: Vec<Shard>,
    /// Its root service, replayed.
    pub root: Root,
    /// The log as it was found.
    pub log: RecoveredLog,
    /// The superblock to write before anything else.
    pub superblock: Superblock,
}

/// The log as it was found.
pub struct RecoveredLog {
    /// Where it ended.
    pub recovered: Recovered,
    /// Everything up to here is committed, and was given to the shards.
    pub applied: Lsn,
    /// Entries behind that, which a leader may still replace: their bodies.
    pub tail: Vec<(Lsn, Slot)>,
    /// Changes of members up to `applied`, in order.
    pub config_entries: Vec<Vec<u8>>,
    /// Entries that were superseded.
    pub superseded: u64,
}

/// Why there is none.
#[derive(Debug)]
pub enum StartError {
    /// The node refuses to start and says why.
    Refused(String),
    /// The log is damaged; the peers may have what stood there.
    Damaged(Box<LogDamaged>),
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

/// What a start works with.
pub struct StartScene<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// Sizes of the run.
    pub sizes: &'a Sizes,
    /// What was appended, and what is committed.
    pub history: &'a History,
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
    let (mut held, recovered) = scan(&superblock, scene)?;
    if scene.sizes.nodes == 1 {
        nothing_lost(&held, scene.history)?;
    }
    if scene.bug == Some(Bug::ReplayOneLess) {
        while held.applied.pop().is_some_and(|entry| !entry.has_sections()) {}
    }
    let (shards, root) = replay(&held.applied, scene)?;
    // An election moves the term: a start only takes over what the log knows.
    let next = recovered.superblock_next(&superblock, recovered.term, recovered.vote);
    let body = |entry: Rc<Entry>| (entry.lsn, Slot::from_vec(entry.body.clone()));
    let log = RecoveredLog {
        recovered,
        applied: held.applied_to,
        tail: held.waiting.into_iter().map(body).collect(),
        config_entries: held.config_entries,
        superseded: held.superseded,
    };
    Ok(Started { shards, root, log, superblock: next })
}

/// Reads the log and does nothing with it, as a repair does after each frame that it wrote.
pub fn check(disk: &Disk) -> Result<(), StartError> {
    let superblock = disk.superblock().map_err(|error| StartError::Refused(error.to_string()))?;
    let mut scanner = LogScanner::new(&superblock, 4 << 20);
    while let Some(request) = scanner.next_read() {
        let fed = scanner.feed(disk.read(&request), &mut |_| {});
        fed.map_err(|damaged| StartError::Damaged(Box::new(damaged)))?;
    }
    Ok(())
}

/// Entries that are not known to be committed wait until they are.
struct HeldBack {
    waiting: VecDeque<Rc<Entry>>,
    applied: Vec<Rc<Entry>>,
    applied_to: Lsn,
    config_entries: Vec<Vec<u8>>,
    superseded: u64,
}

impl HeldBack {
    fn release(&mut self, committed: Lsn) {
        while self.waiting.front().is_some_and(|entry| entry.lsn <= committed) {
            let entry = self.waiting.pop_front().expect("seen above");
            assert!(entry.lsn > self.applied_to, "entries are applied in order");
            self.applied_to = entry.lsn;
            if entry.kind == FrameKind::Config {
                self.config_entries.push(entry.sections[0].bytes.clone());
            }
            self.applied.push(entry);
        }
    }

    fn truncate(&mut self, lsn: Lsn) -> Result<(), Failure> {
        if lsn < self.applied_to {
            return Err(Failure::new(format!("entries behind LSN {lsn} were committed")));
        }
        while self.waiting.back().is_some_and(|entry| entry.lsn > lsn) {
            self.waiting.pop_back();
            self.superseded += 1;
        }
        Ok(())
    }

    fn last(&self) -> Lsn {
        self.waiting.back().map_or(self.applied_to, |entry| entry.lsn)
    }
}

fn scan(
    superblock: &Superblock,
    scene: &mut StartScene<'_>,
) -> Result<(HeldBack, Recovered), StartError> {
    let mut scanner = LogScanner::new(superblock, scene.draw.pick(&[1, 100 << 10, 4 << 20]));
    let mut held = HeldBack {
        waiting: VecDeque::new(),
        applied: Vec::new(),
        applied_to: superblock.floor.chain.lsn,
        config_entries: Vec::new(),
        superseded: 0,
    };
    let mut failure = None;
    let alone = scene.sizes.nodes == 1;
    while let Some(request) = scanner.next_read() {
        let fed = scanner.feed(scene.disk.read(&request), &mut |item| {
            let taken = match item {
                ScanItem::Truncated(lsn) if alone => {
                    Err(Failure::new(format!("entries behind LSN {lsn} are superseded")))
                }
                ScanItem::Truncated(lsn) => held.truncate(lsn),
                ScanItem::Entry(entry) => {
                    let hint = match scene.bug {
                        Some(Bug::TailNotHeldBack) => entry.view.shared.index,
                        _ => entry.commit_hint,
                    };
                    let known = known(entry.body, &held, superblock, scene.history);
                    known.map(|entry| {
                        held.waiting.push_back(entry);
                        held.release(hint);
                    })
                }
            };
            failure = failure.take().or(taken.err());
        });
        fed.map_err(|damaged| StartError::Damaged(Box::new(damaged)))?;
        if let Some(failure) = failure.take() {
            return Err(failure.into());
        }
    }
    let recovered = scanner.finish();
    held.release(recovered.commit_hint);
    Ok((held, recovered))
}

/// What the log holds must have been appended, byte for byte, by whomever, and follow what stands
/// before it.
fn known(
    body: &[u8],
    held: &HeldBack,
    superblock: &Superblock,
    history: &History,
) -> Result<Rc<Entry>, Failure> {
    let entry = Entry::of(&superblock.geometry, body)?;
    let entry = entry.ok_or(Failure::new("the scan gave something that is no entry"))?;
    let before = held.waiting.back().or(held.applied.last());
    let (lsn, timestamp) =
        before.map_or((Lsn(0), WallMicros(0)), |entry| (entry.lsn, entry.timestamp));
    if entry.lsn.0 != lsn.0 + 1 || entry.timestamp <= timestamp {
        return Err(Failure::new(format!("entry {} behind entry {lsn}", entry.lsn)));
    }
    if !history.knows(&entry) {
        return Err(Failure::new(format!("LSN {} is not what was appended", entry.lsn)));
    }
    Ok(entry)
}

/// A node on its own has everything that was ever committed.
fn nothing_lost(held: &HeldBack, history: &History) -> Result<(), Failure> {
    if held.last() < history.last() {
        return Err(Failure::new(format!(
            "the log ends at LSN {}, and LSN {} was acknowledged and is lost",
            held.last(),
            history.last()
        )));
    }
    let found = held.applied.iter().chain(&held.waiting);
    for (entry, committed) in found.zip((1..).map_while(|lsn| history.at(Lsn(lsn)))) {
        if entry.checksum != committed.checksum {
            return Err(Failure::new(format!("LSN {} was committed and is another", entry.lsn)));
        }
    }
    Ok(())
}

fn shards_new(
    superblock: &Superblock,
    scene: &StartScene<'_>,
    directory: &Arc<SessionDirectory>,
) -> Vec<Shard> {
    let sizes = scene.sizes;
    let number = superblock.node.0 - 1;
    (0..sizes.shards)
        .map(|index| {
            let options = ShardOptions {
                index: ShardIndex(index),
                shards: sizes.shards,
                partitions: sizes.geometry.partitions.into(),
                cluster: CLUSTER,
                node: superblock.node,
                shard_ports: (0..sizes.shards).map(|shard| port(number, shard)).collect(),
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
    entries: &[Rc<Entry>],
    scene: &mut StartScene<'_>,
) -> Result<(Vec<Shard>, Root), StartError> {
    let superblock =
        scene.disk.superblock().map_err(|error| StartError::Refused(error.to_string()))?;
    let directory = Arc::new(SessionDirectory::default());
    let mut shards = shards_new(&superblock, scene, &directory);
    let mut root = Root::new(Arc::clone(&directory), scene.sizes.shards);
    let mut sessions = Vec::new();
    for entry in entries.iter().filter(|entry| entry.has_sections()) {
        entry.with_batch(|batch| {
            for section in batch.sections {
                let partition = section.partition;
                if partition.0 == PARTITION_SYSTEM {
                    let lsn = batch.lsn;
                    let wrong = |error| refused(ReplayError::Redo { partition, lsn, error });
                    for command in system_commands(lsn, section).map_err(refused)? {
                        for shard in &mut shards {
                            shard.replay_command(&command).map_err(wrong)?;
                        }
                        root.replay(&command, scene.now).map_err(wrong)?;
                        if let SystemCommand::SessionOpen { session, .. } = command {
                            sessions.push(session);
                        }
                    }
                    continue;
                }
                if scene.bug == Some(Bug::ReplaySectionSkipped) && scene.draw.once_in(40) {
                    continue;
                }
                let PartitionId(number) = partition;
                let shard = &mut shards[usize::from(number % scene.sizes.shards)];
                shard
                    .replay_section(batch.lsn, partition, section.bytes, section.digest)
                    .map_err(refused)?;
            }
            Ok::<(), StartError>(())
        })?;
    }
    if scene.bug == Some(Bug::SessionsForgotten) {
        for session in sessions {
            let close = SystemCommand::SessionClose { session };
            for shard in &mut shards {
                shard.replay_command(&close).expect("any session can be closed");
            }
        }
    }
    Ok((shards, root))
}

fn refused(error: ReplayError) -> StartError {
    match error {
        ReplayError::MemoryFull => StartError::MemoryFull,
        error => StartError::Refused(error.to_string()),
    }
}

/// Whether the log's end was torn.
pub fn is_torn(recovered: &Recovered) -> bool {
    matches!(recovered.verdict, Verdict::TailTorn { .. })
}
