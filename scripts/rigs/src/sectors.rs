//! What was written to a file and not flushed: the content of a disk's volatile cache, by sector.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use spillway_perf::identity::Draw;

/// What a disk writes as a whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// One sector.
pub type Sector = Box<[u8; SECTOR_BYTES]>;

/// Sectors by number.
pub type Sectors = BTreeMap<u64, Sector>;

/// Reads what the disk has of a sector.
pub type Below<'a, E> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<(), E>;

/// Which of the sectors that were not flushed outlive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None.
    None,
    /// All: the cache had been written back by chance.
    All,
    /// Each with this chance, in 256ths: disks write their caches in any order.
    Some(u8),
}

impl Keep {
    /// Any of them, and most often some.
    pub fn draw(draw: &mut Draw) -> Self {
        match draw.below(4) {
            0 => Self::None,
            1 => Self::All,
            _ => Self::Some(draw.below(256) as u8),
        }
    }

    fn keeps(self, draw: &mut Draw) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(chance) => draw.below(256) < u64::from(chance),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Unflushed {
    sectors: Sectors,
}

impl Unflushed {
    /// How many sectors there are.
    pub fn len(&self) -> usize {
        self.sectors.len()
    }

    /// Whether everything is flushed.
    pub fn is_empty(&self) -> bool {
        self.sectors.is_empty()
    }

    /// Writes `data` at `offset`. `below` reads what the disk has of a sector of which only a part
    /// is written.
    pub fn write<E>(&mut self, offset: u64, data: &[u8], below: Below<'_, E>) -> Result<(), E> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (number, start) = (at / BYTES, (at % BYTES) as usize);
            let count = (SECTOR_BYTES - start).min(data.len() - done);
            if count < SECTOR_BYTES && !self.sectors.contains_key(&number) {
                let mut sector = Box::new([0; SECTOR_BYTES]);
                below(number, sector.as_mut_slice())?;
                self.sectors.insert(number, sector);
            }
            let sector = self.sectors.entry(number).or_insert_with(|| Box::new([0; SECTOR_BYTES]));
            sector[start..start + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
        Ok(())
    }

    /// Puts what is here over `out`, which was read from the disk at `offset`.
    pub fn overlay(&self, offset: u64, out: &mut [u8]) {
        let Some(range) = range_of(offset, out.len()) else { return };
        let end = offset + out.len() as u64;
        for (number, sector) in self.sectors.range(range) {
            let sector_at = number * BYTES;
            let (from, to) = (sector_at.max(offset), (sector_at + BYTES).min(end));
            let source = &sector[(from - sector_at) as usize..(to - sector_at) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
    }

    /// Takes everything out.
    pub fn take(&mut self) -> Sectors {
        std::mem::take(&mut self.sectors)
    }

    /// Takes out the sectors that a write touched.
    pub fn take_range(&mut self, offset: u64, bytes: usize) -> Sectors {
        let Some(range) = range_of(offset, bytes) else { return Sectors::new() };
        let mut rest = self.sectors.split_off(range.start());
        let mut after = rest.split_off(&(range.end() + 1));
        self.sectors.append(&mut after);
        rest
    }

    /// Takes out those that outlive a power cut, and drops the others, whose number comes second.
    pub fn cut(&mut self, keep: Keep, draw: &mut Draw) -> (Sectors, u64) {
        let all = self.take();
        let count = all.len();
        let kept: Sectors = all.into_iter().filter(|_| keep.keeps(draw)).collect();
        let lost = (count - kept.len()) as u64;
        (kept, lost)
    }

    /// Forgets what lies behind a new, smaller end of the file.
    pub fn truncate(&mut self, bytes: u64) {
        drop(self.sectors.split_off(&bytes.div_ceil(BYTES)));
        if let Some(last) = self.sectors.get_mut(&(bytes / BYTES)) {
            last[(bytes % BYTES) as usize..].fill(0);
        }
    }
}

const BYTES: u64 = SECTOR_BYTES as u64;

fn range_of(offset: u64, bytes: usize) -> Option<RangeInclusive<u64>> {
    let last = bytes.checked_sub(1)? as u64;
    Some(offset / BYTES..=(offset + last) / BYTES)
}

/// Sectors that follow each other, as one piece each: where it begins, and its bytes.
pub fn pieces(sectors: Sectors) -> Vec<(u64, Vec<u8>)> {
    let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
    for (number, sector) in sectors {
        let at = number * BYTES;
        match pieces.last_mut() {
            Some((start, bytes)) if *start + bytes.len() as u64 == at => {
                bytes.extend_from_slice(sector.as_slice());
            }
            _ => pieces.push((at, sector.to_vec())),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file beside what a cache and a disk make of it.
    struct Pair {
        cache: Unflushed,
        disk: Vec<u8>,
        model: Vec<u8>,
    }

    impl Pair {
        fn write(&mut self, offset: usize, data: &[u8]) {
            let disk = &self.disk;
            let mut below = |number: u64, out: &mut [u8]| -> Result<(), ()> {
                let at = number as usize * SECTOR_BYTES;
                out.copy_from_slice(&disk[at..at + SECTOR_BYTES]);
                Ok(())
            };
            self.cache.write(offset as u64, data, &mut below).expect("memory");
            self.model[offset..offset + data.len()].copy_from_slice(data);
        }

        fn put(&mut self, sectors: Sectors) {
            for (at, bytes) in pieces(sectors) {
                self.disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
            }
        }

        fn check(&self, draw: &mut Draw) {
            let from = draw.below(self.disk.len() as u64) as usize;
            let to = from + draw.below((self.disk.len() - from) as u64) as usize;
            let mut out = self.disk[from..to].to_vec();
            self.cache.overlay(from as u64, &mut out);
            assert!(out == self.model[from..to], "{from}..{to}");
        }
    }

    #[test]
    fn cache_and_disk_together_are_the_file() {
        for seed in 0..20 {
            let mut draw = Draw::new(seed, 1);
            let zeros = vec![0; 64 * SECTOR_BYTES];
            let mut pair = Pair { cache: Unflushed::default(), disk: zeros.clone(), model: zeros };
            for _ in 0..400 {
                let from = draw.below(pair.disk.len() as u64) as usize;
                let count = draw.below(3000).min((pair.disk.len() - from) as u64) as usize;
                let mut data = Vec::new();
                draw.fill(&mut data, count);
                pair.write(from, &data);
                match draw.below(8) {
                    0 => {
                        let all = pair.cache.take();
                        pair.put(all);
                        assert!(pair.disk == pair.model, "seed {seed}");
                    }
                    1 => {
                        let some = pair.cache.take_range(from as u64, count);
                        pair.put(some);
                        let to = from + count;
                        assert!(pair.disk[from..to] == pair.model[from..to], "seed {seed}");
                    }
                    _ => {}
                }
                pair.check(&mut draw);
            }
        }
    }

    #[test]
    fn a_cut_keeps_what_it_says() {
        let mut draw = Draw::new(7, 1);
        let filled = || {
            let mut cache = Unflushed::default();
            let mut never = |_: u64, _: &mut [u8]| -> Result<(), ()> { panic!("whole sectors") };
            cache.write(0, &[1; 1000 * SECTOR_BYTES], &mut never).expect("memory");
            cache
        };
        let mut cut = |keep| {
            let mut cache = filled();
            let (kept, lost) = cache.cut(keep, &mut draw);
            assert!(cache.is_empty());
            assert_eq!(kept.len() as u64 + lost, 1000);
            kept.len()
        };
        assert_eq!((cut(Keep::None), cut(Keep::All)), (0, 1000));
        let half = cut(Keep::Some(128));
        assert!((400..600).contains(&half), "{half}");
    }

    #[test]
    fn a_smaller_file_has_no_old_end() {
        let mut cache = Unflushed::default();
        let mut below = |_: u64, _: &mut [u8]| -> Result<(), ()> { Ok(()) };
        cache.write(0, &[9; 3 * SECTOR_BYTES], &mut below).expect("memory");
        cache.truncate(700);
        assert_eq!(cache.len(), 2);
        let mut out = [1; 2 * SECTOR_BYTES];
        cache.overlay(0, &mut out);
        assert!(out[..700].iter().all(|byte| *byte == 9));
        assert!(out[700..].iter().all(|byte| *byte == 0));
    }
}
