//! What the memtable's operations cost. `cargo bench -p spillway-updateserver --bench memtable`
//!
//! One thread, one million rows of 16 bytes of key and 100 of value over 256 slices unless said;
//! chunks are huge pages, faulted in beforehand. Figures are processor time, the best of five
//! runs.

use crossbeam_skiplist::SkipMap;
use spillway_updateserver::memtable::{
    Arena, CHUNK_BYTES_MIN, Chunk, ChunkSource, OrderState, RowRef, SliceIndex, Stamp, TableSlice,
    UndoLog, VersionKind, WriteVersion, key_hash, write,
};
use spillway_updateserver::redo::record_digest;
use std::hint::black_box;
use std::ops::Bound;
use std::ptr::NonNull;

const ROWS: u64 = 1_000_000;
const LARGE_ROWS: u64 = 5_000_000;
const SLICES: usize = 256;
const GROUP: usize = 16;
const VALUE_BYTES: usize = 100;
const CHUNK_BYTES: usize = 32 << 20;
const CHUNKS: usize = 14;
const LARGE_CHUNKS: usize = 64;
const RUNS: usize = 5;

/// Chunks of mapped memory, in huge pages where the system has them, faulted in before use.
struct MappedChunks {
    ready: Vec<Chunk>,
}

impl MappedChunks {
    fn new(chunks: usize, huge: bool) -> MappedChunks {
        const { assert!(CHUNK_BYTES >= CHUNK_BYTES_MIN) };
        let ready = (0..chunks).map(|_| map_chunk(huge)).collect();
        MappedChunks { ready }
    }
}

fn map_chunk(huge: bool) -> Chunk {
    // SAFETY: an anonymous mapping of its own, twice as long as needed, so that a part that
    // starts on a huge page can be cut out of it; nothing of it is ever unmapped.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let base = libc::mmap(std::ptr::null_mut(), 2 * CHUNK_BYTES, protection, flags, -1, 0);
        assert!(base != libc::MAP_FAILED, "no memory for a chunk");
        let base = base.cast::<u8>();
        let base = base.add(base.align_offset(2 << 20));
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        assert_eq!(libc::madvise(base.cast(), CHUNK_BYTES, advice), 0, "advice on huge pages");
        for page in (0..CHUNK_BYTES).step_by(4096) {
            base.add(page).write_volatile(1);
        }
        Chunk::new(NonNull::new(base).expect("a mapping has an address"), CHUNK_BYTES)
    }
}

impl Drop for MappedChunks {
    fn drop(&mut self) {
        while let Some(chunk) = self.ready.pop() {
            self.give_back(chunk);
        }
    }
}

impl ChunkSource for MappedChunks {
    fn chunk_bytes(&self) -> usize {
        CHUNK_BYTES
    }

    fn chunks_ready(&self) -> usize {
        self.ready.len()
    }

    fn take(&mut self) -> Option<Chunk> {
        self.ready.pop()
    }

    fn give_back(&mut self, chunk: Chunk) {
        // SAFETY: the chunk is a mapping of this length, and nobody uses it any more.
        let freed = unsafe { libc::munmap(chunk.base().as_ptr().cast(), chunk.bytes()) };
        assert_eq!(freed, 0, "a chunk is unmapped");
    }
}

/// Processor time of this thread: what others on the machine do does not count.
fn thread_nanos() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to a place of its type.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "the thread has a clock");
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

type Key = [u8; 16];
type KeyOf = fn(u64) -> Key;

fn join(high: u64, low: u64) -> Key {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&high.to_be_bytes());
    key[8..].copy_from_slice(&low.to_be_bytes());
    key
}

fn random_key(id: u64) -> Key {
    join(mix(id), mix(id ^ 0xabcd))
}

fn rising_key(id: u64) -> Key {
    join(id, mix(id))
}

/// One tenant: the first eight bytes are always the same.
fn tenant_key(id: u64) -> Key {
    join(7, mix(id))
}

/// 10,000 groups of 100, numbered within the group.
fn composite_key(id: u64) -> Key {
    join(mix(id % 10_000), id / 10_000)
}

/// The same with small group numbers.
fn dense_composite_key(id: u64) -> Key {
    join(id % 10_000, id / 10_000)
}

struct Rig {
    arena: Arena,
    slices: Vec<TableSlice>,
    undo: UndoLog,
    number: u64,
}

impl Rig {
    fn new(slices: usize, huge: bool) -> Rig {
        Rig::with_chunks(slices, huge, CHUNKS)
    }

    fn with_chunks(slices: usize, huge: bool, chunks: usize) -> Rig {
        Rig {
            arena: Arena::new(Box::new(MappedChunks::new(chunks, huge)), 0),
            slices: (0..slices).map(|i| TableSlice::new(SliceIndex(i as u32))).collect(),
            undo: UndoLog::new(),
            number: 0,
        }
    }

    fn slice_of(&self, hash: u64) -> usize {
        (hash >> 16) as usize % self.slices.len()
    }

    fn write(&mut self, row: RowRef, stamp: u64, value: &[u8]) {
        self.number += 1;
        let version = WriteVersion {
            stamp: Stamp(stamp),
            number: self.number,
            kind: VersionKind::Full,
            floor: Stamp(stamp - 1),
            value,
        };
        write(&mut self.arena, row, version, &mut self.undo);
    }

    fn insert_group(&mut self, keys: &[Key], ahead: bool, order: bool) {
        let value = [5u8; VALUE_BYTES];
        let mut hashes = [0; GROUP];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = key_hash(key);
            if ahead {
                self.slices[self.slice_of(*hash)].prefetch_slot(*hash);
            }
        }
        for (hash, key) in hashes.iter().zip(keys) {
            let slice = self.slice_of(*hash);
            let (row, _) =
                self.slices[slice].upsert_row(&mut self.arena, *hash, key, &mut self.undo);
            self.write(row, 1, &value);
            self.undo.commit(&mut self.arena);
            if order && self.slices[slice].order_is_due() {
                self.slices[slice].flush_order(&mut self.arena, 512).expect("room");
            }
        }
    }

    fn update_group(&mut self, keys: &[Key], ahead: bool, older: bool, stamp: u64) {
        let value = [6u8; VALUE_BYTES];
        let mut hashes = [(0, 0); GROUP];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            hash.0 = key_hash(key);
            hash.1 = self.slice_of(hash.0);
        }
        let hashes = &hashes[..keys.len()];
        if ahead {
            hashes.iter().for_each(|(hash, slice)| self.slices[*slice].prefetch_slot(*hash));
            hashes.iter().for_each(|(hash, slice)| self.slices[*slice].prefetch_head(*hash));
            hashes.iter().for_each(|(hash, slice)| self.slices[*slice].prefetch_version(*hash));
            if older {
                hashes.iter().for_each(|(hash, slice)| self.slices[*slice].prefetch_older(*hash));
            }
        }
        for ((hash, slice), key) in hashes.iter().zip(keys) {
            let row = self.slices[*slice].find(*hash, key).expect("the row was inserted");
            self.write(row, stamp, &value);
            self.undo.commit(&mut self.arena);
        }
    }

    fn each_group(
        &mut self,
        ids: impl Fn(u64) -> u64,
        key: KeyOf,
        mut run: impl FnMut(&mut Rig, &[Key]),
    ) {
        let mut keys = [[0; 16]; GROUP];
        for group in 0..ROWS / GROUP as u64 {
            for (i, slot) in keys.iter_mut().enumerate() {
                *slot = key(ids(group * GROUP as u64 + i as u64));
            }
            run(self, &keys);
        }
    }
}

fn report(name: &str, nanos: f64) {
    println!("{name:<66} {nanos:>8.1} ns");
}

fn best(mut run: impl FnMut() -> f64) -> f64 {
    (0..RUNS).map(|_| run()).fold(f64::INFINITY, f64::min)
}

fn timed(operations: u64, run: impl FnOnce()) -> f64 {
    let start = thread_nanos();
    run();
    (thread_nanos() - start) as f64 / operations as f64
}

fn random_ids(i: u64) -> u64 {
    mix(i ^ 0x5555_0000) % ROWS
}

fn bench_point(huge: bool) {
    let pages = if huge { "huge pages" } else { "4 KiB pages" };
    for ahead in [false, true] {
        let nanos = best(|| {
            let mut rig = Rig::new(SLICES, huge);
            timed(ROWS, || {
                rig.each_group(
                    |i| i,
                    random_key,
                    |rig, keys| {
                        rig.insert_group(keys, ahead, false);
                    },
                )
            })
        });
        report(&format!("insert, {pages}, prefetch {ahead}"), nanos);
    }
    let mut rig = Rig::new(SLICES, huge);
    rig.each_group(|i| i, random_key, |rig, keys| rig.insert_group(keys, true, false));
    for ahead in [false, true] {
        let nanos = best(|| {
            timed(ROWS, || {
                rig.each_group(random_ids, random_key, |rig, keys| {
                    rig.update_group(keys, ahead, false, 1);
                })
            })
        });
        report(&format!("find + write in place, {pages}, prefetch {ahead}"), nanos);
    }
    let mut stamp = 2;
    for (ahead, older) in [(false, false), (true, false), (true, true)] {
        let nanos = best(|| {
            timed(ROWS, || {
                rig.each_group(random_ids, random_key, |rig, keys| {
                    stamp += 1;
                    rig.update_group(keys, ahead, older, stamp);
                })
            })
        });
        report(
            &format!("find + new version + recycling, {pages}, prefetch {ahead}, older {older}"),
            nanos,
        );
    }
    let nanos = best(|| {
        timed(ROWS, || {
            rig.each_group(
                |_| 1,
                random_key,
                |rig, keys| {
                    rig.update_group(keys, false, false, stamp);
                },
            )
        })
    });
    report(&format!("find + write in place, one hot row, {pages}"), nanos);
}

fn bench_large() {
    let mut rig = Rig::with_chunks(SLICES, true, LARGE_CHUNKS);
    let nanos = timed(LARGE_ROWS, || {
        for part in 0..LARGE_ROWS / ROWS {
            rig.each_group(
                |i| part * ROWS + i,
                random_key,
                |rig, keys| rig.insert_group(keys, true, false),
            );
        }
    });
    report("insert, 5 M rows, prefetch true", nanos);
    let mut stamp = 2;
    for (ahead, older) in [(false, false), (true, false), (true, true)] {
        let nanos = best(|| {
            let seed = stamp;
            timed(ROWS, || {
                rig.each_group(
                    |i| mix(i ^ seed << 32) % LARGE_ROWS,
                    random_key,
                    |rig, keys| {
                        stamp += 1;
                        rig.update_group(keys, ahead, older, stamp);
                    },
                )
            })
        });
        let name = format!("find + new version, 5 M rows, prefetch {ahead}, older {older}");
        report(&name, nanos);
    }
}

fn bench_digest() {
    let key = random_key(1);
    for value_bytes in [32, 100, 1000, 4096] {
        let value = vec![3u8; value_bytes];
        let nanos = best(|| {
            timed(ROWS, || {
                for number in 0..ROWS {
                    let row = Some(black_box(&value[..]));
                    black_box(record_digest(1, black_box(&key), number, row));
                }
            })
        });
        report(&format!("record digest of {value_bytes} bytes, cached"), nanos);
    }
}

fn bench_pause() {
    let mut rig = Rig::new(1, true);
    let mut worst = 0;
    let mut over = 0;
    let total = timed(ROWS, || {
        for id in 0..ROWS {
            let start = thread_nanos();
            rig.insert_group(&[random_key(id)], false, false);
            let nanos = thread_nanos() - start;
            worst = worst.max(nanos);
            over += u32::from(nanos > 10_000);
        }
    });
    report("insert into one slice, timed one by one", total);
    println!("  worst single insert {worst} ns, {over} of {ROWS} above 10 us");
}

fn bench_order(name: &str, slices: usize, key: KeyOf) {
    let plain = best(|| {
        let mut rig = Rig::new(slices, true);
        timed(ROWS, || rig.each_group(|i| i, key, |rig, keys| rig.insert_group(keys, true, false)))
    });
    let mut scan = f64::INFINITY;
    let mut bytes = 0;
    let ordered = best(|| {
        let mut rig = Rig::new(slices, true);
        for slice in &mut rig.slices {
            slice.flush_order(&mut rig.arena, 1).expect("room");
        }
        let nanos = timed(ROWS, || {
            rig.each_group(|i| i, key, |rig, keys| rig.insert_group(keys, true, true));
        });
        for slice in &mut rig.slices {
            let state = slice.flush_order(&mut rig.arena, usize::MAX).expect("room");
            assert_eq!(state, OrderState::Complete);
        }
        bytes = rig.arena.bytes_used();
        scan = scan.min(timed(ROWS, || {
            let rows: usize = rig.slices.iter().map(|s| s.seek(Bound::Unbounded).count()).sum();
            assert_eq!(rows as u64, ROWS);
        }));
        nanos
    });
    let mut bytes_without = 0;
    let built = best(|| {
        let mut rig = Rig::new(slices, true);
        rig.each_group(|i| i, key, |rig, keys| rig.insert_group(keys, true, false));
        bytes_without = rig.arena.bytes_used();
        timed(ROWS, || {
            for slice in &mut rig.slices {
                while slice.flush_order(&mut rig.arena, 16_384).expect("room") == OrderState::Behind
                {
                }
            }
        })
    });
    println!(
        "order, {name}, {slices} slices: +{:.0} ns per insert, {built:.0} built afterwards, \
         scan {scan:.1}, {:.1} bytes per row, whole row {:.1} over key and value",
        ordered - plain,
        (bytes - bytes_without) as f64 / ROWS as f64,
        bytes as f64 / ROWS as f64 - (16 + VALUE_BYTES) as f64,
    );
}

fn bench_skip_list(name: &str, slices: usize, key: KeyOf) {
    let lists: Vec<SkipMap<Key, u64>> = (0..slices).map(|_| SkipMap::new()).collect();
    let nanos = timed(ROWS, || {
        for id in 0..ROWS {
            let key = key(id);
            lists[(key_hash(&key) >> 16) as usize % slices].insert(key, id);
        }
    });
    println!("skip list, {name}, {slices} slices: {nanos:.0} ns per insert");
}

/// Runs the sections whose names are given as arguments, all without any.
fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let runs = |section: &str| wanted.is_empty() || wanted.iter().any(|w| w == section);
    if runs("point") {
        bench_point(true);
        bench_point(false);
    }
    if runs("large") {
        bench_large();
    }
    if runs("digest") {
        bench_digest();
    }
    if runs("pause") {
        bench_pause();
    }
    let kinds: [(&str, KeyOf); 5] = [
        ("random", random_key),
        ("rising", rising_key),
        ("one tenant", tenant_key),
        ("composite", composite_key),
        ("dense composite", dense_composite_key),
    ];
    if runs("order") {
        for (name, key) in kinds {
            for slices in [1, SLICES] {
                bench_order(name, slices, key);
            }
        }
    }
    if runs("skiplist") {
        for (name, key) in &kinds[..2] {
            bench_skip_list(name, SLICES, *key);
        }
    }
}
