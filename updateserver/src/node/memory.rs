//! Memory for memtables: chunks on huge pages, faulted in ahead of their use.
//!
//! A page fault inside a transaction costs more than the transaction. So a thread of its own
//! touches the next chunks while the shard fills the present one; if it falls behind, the shard
//! takes an untouched chunk and pays for the faults itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use spillway_runtime::error::RuntimeError;
use spillway_runtime::file;
use spillway_runtime::region::{HUGE_PAGE_BYTES, HugePages, Region};
use spillway_runtime::thread;

use crate::memtable::{Chunk, ChunkSource};

/// Bytes of one chunk: eight huge pages.
pub(super) const CHUNK_BYTES: usize = 16 << 20;
/// Chunks kept ready: half a second of the fastest burst measured (250 MB/s).
const CHUNKS_AHEAD: usize = 8;

/// Chunks of one shard, up to its share of the budget.
pub(super) struct RegionChunks {
    ready: Receiver<Region>,
    taken: BTreeMap<usize, Region>,
    /// Chunks that may still be made, by whoever claims them first.
    unclaimed: Arc<AtomicUsize>,
    chunks_max: usize,
}

/// Claims the right to make one chunk, so that maker and shard together keep to the budget.
fn claim(unclaimed: &AtomicUsize) -> bool {
    let less = |left: usize| left.checked_sub(1);
    unclaimed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

impl RegionChunks {
    /// A source of up to `budget_bytes`, with a thread that prepares chunks.
    pub fn new(name: &str, budget_bytes: u64) -> Result<Self, RuntimeError> {
        let chunks_max = (budget_bytes / CHUNK_BYTES as u64) as usize;
        let (sender, ready) = sync_channel(CHUNKS_AHEAD);
        let unclaimed = Arc::new(AtomicUsize::new(chunks_max));
        let claims = Arc::clone(&unclaimed);
        thread::spawn(&format!("{name}-memory"), None, move || {
            // A whole chunk can take tens of milliseconds to clear: not at a core's cost.
            thread::yield_to_others();
            // Ends with the budget or with the shard. What it claimed it delivers, touched or not.
            while claim(&claims) {
                let mut region = Region::new(CHUNK_BYTES, HugePages::Try)
                    .expect("address space within the budget is there");
                let untouched = (0..CHUNK_BYTES)
                    .step_by(HUGE_PAGE_BYTES)
                    .any(|page| region.populate(page..page + HUGE_PAGE_BYTES).is_err());
                if sender.send(region).is_err() || untouched {
                    return;
                }
            }
        })?;
        Ok(Self { ready, taken: BTreeMap::new(), unclaimed, chunks_max })
    }
}

impl ChunkSource for RegionChunks {
    fn chunk_bytes(&self) -> usize {
        CHUNK_BYTES
    }

    fn chunks_ready(&self) -> usize {
        self.chunks_max - self.taken.len()
    }

    fn take(&mut self) -> Option<Chunk> {
        if self.taken.len() >= self.chunks_max {
            return None;
        }
        let region = match self.ready.try_recv() {
            Ok(region) => region,
            Err(_) if claim(&self.unclaimed) => Region::new(CHUNK_BYTES, HugePages::Try)
                .expect("address space within the budget is there"),
            // The maker has claimed the last ones and is about to deliver.
            Err(_) => self.ready.recv().expect("what is claimed is delivered"),
        };
        let base = NonNull::new(region.as_ptr()).expect("a mapping is never at address 0");
        self.taken.insert(base.addr().get(), region);
        // SAFETY: the region stays mapped in `taken` until the chunk is given back, and nobody
        // else uses it.
        Some(unsafe { Chunk::new(base, CHUNK_BYTES) })
    }

    fn give_back(&mut self, chunk: Chunk) {
        let region = self.taken.remove(&chunk.base().addr().get());
        assert!(region.is_some(), "only chunks of this source come back");
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Half of the memory that the machine or its control group has, for a budget left open.
pub(super) fn budget_default() -> Result<u64, RuntimeError> {
    let text = file::read_to_string(Path::new("/proc/meminfo"))?;
    let machine = total_bytes(&text).unwrap_or(2 << 30);
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = limits
        .iter()
        .filter_map(|path| file::read_to_string(Path::new(path)).ok()?.trim().parse::<u64>().ok());
    Ok(limits.fold(machine, u64::min) / 2)
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_memory_is_read_from_the_kernels_text() {
        let text = "MemTotal:       24576000 kB\nMemFree: 1 kB\n";
        assert_eq!(total_bytes(text), Some(24_576_000 * 1024));
        assert_eq!(total_bytes("garbage"), None);
    }

    #[test]
    fn chunks_end_at_the_budget_and_come_back() {
        let mut source = RegionChunks::new("test", 3 * CHUNK_BYTES as u64).expect("small");
        let first = source.take().expect("first");
        let _second = source.take().expect("second");
        let _third = source.take().expect("third");
        assert_eq!(source.chunks_ready(), 0);
        assert!(source.take().is_none());
        source.give_back(first);
        assert_eq!(source.chunks_ready(), 1);
        assert!(source.take().is_some());
    }
}
