//! Blocks in memory, within a budget. Each core has its own, so there are no locks.
//!
//! The policy is S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache
//! eviction", SOSP 2023): a small queue of a tenth of the budget for what is new, a main queue for
//! what was asked for again, and a ghost queue that remembers what left the small one unasked. A
//! scan passes through the small queue and leaves the main one alone; a hit only counts, and moves
//! nothing.

use crate::manifest::FileId;
use crate::reader::CheckedBlock;
use std::collections::{HashMap, VecDeque};
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// Which block of which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The file.
    pub file: FileId,
    /// Where the block begins in the file.
    pub offset: u64,
}

/// What is kept for a block beside its bytes, bytes; generous. It counts against the budget.
const OVERHEAD_BYTES: usize = 192;
/// The small queue has one of so many parts of the budget.
const SMALL_PART: usize = 10;
/// Hits that a block is credited with at most.
const HITS_MAX: u8 = 3;
/// A block of the small queue with this many hits goes to the main one.
const HITS_PROMOTED: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Debug)]
struct Cached {
    block: CheckedBlock,
    hits: u8,
    queue: Queue,
}

/// What became of the requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Blocks that were there.
    pub hits: u64,
    /// Blocks that were not.
    pub misses: u64,
    /// Blocks that made room for others.
    pub evictions: u64,
}

/// The cache of one core.
#[derive(Debug)]
pub struct BlockCache {
    budget_bytes: usize,
    blocks: HashMap<BlockKey, Cached, Xxh3DefaultBuilder>,
    small: VecDeque<BlockKey>,
    main: VecDeque<BlockKey>,
    small_bytes: usize,
    main_bytes: usize,
    /// Keys that left the small queue, the oldest first, each with its number; stale where
    /// `ghost_numbers` has another number for the key.
    ghost: VecDeque<(BlockKey, u64)>,
    ghost_numbers: HashMap<BlockKey, u64, Xxh3DefaultBuilder>,
    ghost_next: u64,
    counts: CacheCounts,
}

impl BlockCache {
    /// An empty cache that holds at most this much.
    pub fn new(budget_bytes: usize) -> BlockCache {
        BlockCache {
            budget_bytes,
            blocks: HashMap::default(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_bytes: 0,
            main_bytes: 0,
            ghost: VecDeque::new(),
            ghost_numbers: HashMap::default(),
            ghost_next: 0,
            counts: CacheCounts::default(),
        }
    }

    /// Bytes that it holds, never more than its budget.
    pub fn bytes(&self) -> usize {
        self.small_bytes + self.main_bytes
    }

    /// Blocks that it holds.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// What became of the requests so far.
    pub fn counts(&self) -> CacheCounts {
        self.counts
    }

    /// The block, if it is there.
    pub fn get(&mut self, key: BlockKey) -> Option<CheckedBlock> {
        let Some(cached) = self.blocks.get_mut(&key) else {
            self.counts.misses += 1;
            return None;
        };
        cached.hits = (cached.hits + 1).min(HITS_MAX);
        self.counts.hits += 1;
        Some(cached.block.clone())
    }

    /// Keeps a block that was read, without what is stored of a compressed one: merges do not read
    /// through a cache. A block that alone is beyond the budget is not kept.
    pub fn insert(&mut self, key: BlockKey, block: CheckedBlock) {
        let block = block.to_read();
        let bytes = cost(&block);
        if bytes > self.budget_bytes || self.blocks.contains_key(&key) {
            return;
        }
        while self.bytes() + bytes > self.budget_bytes {
            self.evict();
        }
        let was_ghost = self.ghost_numbers.remove(&key).is_some();
        let queue = if was_ghost { Queue::Main } else { Queue::Small };
        self.enqueue(queue, key, bytes);
        self.blocks.insert(key, Cached { block, hits: 0, queue });
        assert!(self.bytes() <= self.budget_bytes, "the cache keeps its budget");
    }

    /// Drops all blocks of a file that is removed.
    pub fn forget(&mut self, file: FileId) {
        let (mut small_bytes, mut main_bytes) = (0, 0);
        self.blocks.retain(|key, cached| {
            let stays = key.file != file;
            if !stays {
                match cached.queue {
                    Queue::Small => small_bytes += cost(&cached.block),
                    Queue::Main => main_bytes += cost(&cached.block),
                }
            }
            stays
        });
        self.small_bytes -= small_bytes;
        self.main_bytes -= main_bytes;
        self.small.retain(|key| key.file != file);
        self.main.retain(|key| key.file != file);
        self.ghost.retain(|(key, _)| key.file != file);
        self.ghost_numbers.retain(|key, _| key.file != file);
    }

    fn enqueue(&mut self, queue: Queue, key: BlockKey, bytes: usize) {
        match queue {
            Queue::Small => {
                self.small.push_back(key);
                self.small_bytes += bytes;
            }
            Queue::Main => {
                self.main.push_back(key);
                self.main_bytes += bytes;
            }
        }
    }

    /// Lets at least one block go, or moves one nearer to it.
    fn evict(&mut self) {
        let small_is_full = self.small_bytes > self.budget_bytes / SMALL_PART;
        if small_is_full || self.main.is_empty() {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        let key = self.small.pop_front().expect("a full cache has blocks");
        let cached = self.blocks.get_mut(&key).expect("what is queued is there");
        assert_eq!(cached.queue, Queue::Small, "a block is in one queue");
        let bytes = cost(&cached.block);
        self.small_bytes -= bytes;
        if cached.hits >= HITS_PROMOTED {
            (cached.hits, cached.queue) = (0, Queue::Main);
            self.enqueue(Queue::Main, key, bytes);
            return;
        }
        self.blocks.remove(&key);
        self.counts.evictions += 1;
        self.remember(key);
    }

    fn evict_main(&mut self) {
        let key = self.main.pop_front().expect("the caller has looked");
        let cached = self.blocks.get_mut(&key).expect("what is queued is there");
        assert_eq!(cached.queue, Queue::Main, "a block is in one queue");
        if cached.hits > 0 {
            cached.hits -= 1;
            self.main.push_back(key);
            return;
        }
        self.main_bytes -= cost(&cached.block);
        self.blocks.remove(&key);
        self.counts.evictions += 1;
    }

    /// As many keys as there are blocks are remembered.
    fn remember(&mut self, key: BlockKey) {
        self.ghost.push_back((key, self.ghost_next));
        self.ghost_numbers.insert(key, self.ghost_next);
        self.ghost_next += 1;
        while self.ghost.len() > self.blocks.len().max(1) {
            let (key, number) = self.ghost.pop_front().expect("it is longer than something");
            if self.ghost_numbers.get(&key) == Some(&number) {
                self.ghost_numbers.remove(&key);
            }
        }
    }
}

fn cost(block: &CheckedBlock) -> usize {
    block.bytes().len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Entry;
    use crate::reader::{TabletMeta, TabletReader};
    use crate::writer::{TabletOptions, TabletWriter};
    use bytes::Bytes;
    use spillway_net::ids::TableId;
    use std::collections::BTreeMap;

    /// A tablet of blocks of about 1,000 bytes, and its parts.
    struct Sample {
        image: Vec<u8>,
        meta: TabletMeta,
    }

    impl Sample {
        fn new(blocks: u64) -> Sample {
            let options = TabletOptions::new(TableId(1), 2, 3);
            let options = TabletOptions { block_bytes_target: 1, ..options };
            let mut writer = TabletWriter::new(Vec::new(), options);
            for number in 0..blocks {
                let row = [number as u8; 970];
                let entry = Entry { version: number, row: Some(&row) };
                writer.add(&number.to_be_bytes(), entry).expect("in order");
            }
            let image = writer.finish().expect("rows").0;
            let meta = TabletReader::open(image.as_slice()).expect("sound").meta().clone();
            Sample { image, meta }
        }

        fn block(&self, number: u32) -> (BlockKey, CheckedBlock) {
            let handle = self.meta.handle(number);
            let start = handle.offset as usize;
            let bytes = &self.image[start..start + handle.length as usize];
            let bytes = Bytes::copy_from_slice(bytes);
            let key = BlockKey { file: FileId(1), offset: handle.offset };
            (key, CheckedBlock::new(&self.meta, handle, bytes).expect("sound"))
        }

        /// Asks as a reader does; true if the block was there.
        fn ask(&self, cache: &mut BlockCache, number: u32) -> bool {
            let (key, block) = self.block(number);
            if let Some(found) = cache.get(key) {
                assert_eq!(found.bytes(), block.bytes(), "the block that was asked for");
                return true;
            }
            cache.insert(key, block);
            false
        }
    }

    fn draw(state: &mut u64) -> u64 {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn a_budget_is_kept_and_blocks_are_right() {
        let sample = Sample::new(300);
        for seed in 0..20 {
            let (mut state, mut model) = (seed, BTreeMap::new());
            let mut cache = BlockCache::new(40_000);
            let mut hits = 0;
            for _ in 0..5_000 {
                let number = (draw(&mut state) % 300).min(draw(&mut state) % 300) as u32;
                let was_there = sample.ask(&mut cache, number);
                hits += u64::from(was_there);
                assert!(!was_there || model.contains_key(&number), "seed {seed}: never inserted");
                model.insert(number, ());
                assert!(cache.bytes() <= 40_000 && cache.len() <= 40);
                assert_eq!(cache.is_empty(), cache.bytes() == 0);
            }
            assert_eq!(cache.counts().hits, hits);
            assert!(cache.len() >= 25, "the budget is used: {} blocks", cache.len());
            assert!(cache.ghost.len() <= cache.len() + 1, "what is remembered has a limit");
            assert!(cache.ghost_numbers.len() <= cache.ghost.len());
            cache.forget(FileId(2));
            assert!(!cache.is_empty());
            cache.forget(FileId(1));
            assert_eq!((cache.bytes(), cache.len(), cache.small.len()), (0, 0, 0));
        }
    }

    /// Blocks in use survive a scan over ten times the budget. A queue by the time of the last use
    /// would hold none of them after it.
    #[test]
    fn a_scan_does_not_drive_out_what_is_in_use() {
        let sample = Sample::new(1_000);
        let mut cache = BlockCache::new(100_000);
        for _ in 0..5 {
            (0..40).for_each(|number| {
                sample.ask(&mut cache, number);
            });
        }
        for number in 40..1_000 {
            sample.ask(&mut cache, number);
        }
        let kept = (0..40).filter(|number| sample.ask(&mut cache, *number)).count();
        assert!(kept >= 36, "{kept} of 40 blocks are still there");
    }

    /// What is asked for again soon after it left comes back to stay.
    #[test]
    fn ghosts_return_to_the_main_queue() {
        let sample = Sample::new(200);
        let mut cache = BlockCache::new(50_000);
        for number in 0..60 {
            sample.ask(&mut cache, number);
        }
        let gone: Vec<u32> =
            (0..60).filter(|number| !cache.blocks.contains_key(&sample.block(*number).0)).collect();
        assert!(!gone.is_empty());
        sample.ask(&mut cache, gone[gone.len() - 1]);
        assert_eq!(cache.main.len(), 1);
        for number in 60..200 {
            sample.ask(&mut cache, number);
        }
        assert!(sample.ask(&mut cache, gone[gone.len() - 1]), "a scan has left it alone");
    }

    #[test]
    fn a_block_beyond_the_budget_is_not_kept() {
        let sample = Sample::new(3);
        let mut cache = BlockCache::new(900);
        assert!(!sample.ask(&mut cache, 1) && !sample.ask(&mut cache, 1));
        assert!(cache.is_empty());
    }
}
