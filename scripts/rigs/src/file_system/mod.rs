//! A file system that keeps its files in another directory, and fails as its disks are told to.
//!
//! Redo files and superblocks lie on disks: what is written to them and not flushed is in memory
//! only, and goes with a power cut. All other files are passed on as they are. A directory
//! `node-N` somewhere above a file puts it on disk N; without one it is on disk 1.
//!
//! What names, sizes and directories say is durable at once: a power cut takes content only. A
//! file descriptor does not outlive a power cut: what a killed process still had under way must
//! not reach the disk after the power is back.

mod calls;
mod late;
mod serve;
mod tree;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Counters, Disk, Part};
use crate::error::RigError;
use crate::order::{DiskOrder, Order};
use crate::sectors::{Keep, Sectors, Unflushed, pieces};

pub use calls::FileSystem;
use late::Late;
use tree::Tree;

/// Name of the file in the root that takes orders, see [`crate::order`], and tells numbers.
pub const CONTROL: &str = ".disks";
/// Sectors that a file's cache holds; then the disk writes it back, as disks do.
const UNFLUSHED_SECTORS_MAX: usize = 1 << 17;

/// The disks of a file system, for whoever orders what they do.
#[derive(Clone)]
pub struct Disks {
    shared: Arc<Shared>,
}

/// A file and what of it is volatile.
struct Backed {
    file: File,
    /// Its disk, counted from 0, and what is on it; none: passed on.
    place: Option<(usize, Part)>,
    unflushed: Mutex<Unflushed>,
}

struct Shared {
    root: PathBuf,
    disks: Vec<Mutex<Disk>>,
    tree: Mutex<Tree>,
    late: Late,
}

impl Disks {
    /// Files in `root`, on so many disks. What is random about faults follows from the seed.
    ///
    /// # Errors
    /// If there is no thread for late answers.
    pub fn new(root: &Path, disks: usize, seed: u64) -> Result<Self, RigError> {
        assert!(disks > 0, "there is a disk");
        let disks = (0..disks).map(|at| Mutex::new(Disk::new(seed, at as u64))).collect();
        let root = root.to_owned();
        let (late, thread) = Late::new();
        let shared = Arc::new(Shared { root, disks, tree: Mutex::default(), late });
        thread.start(Arc::downgrade(&shared))?;
        Ok(Self { shared })
    }

    /// The file system, to be mounted.
    pub fn file_system(&self) -> FileSystem {
        FileSystem { shared: self.shared.clone() }
    }

    /// How many disks there are.
    pub fn len(&self) -> usize {
        self.shared.disks.len()
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.shared.disks.is_empty()
    }

    /// What has happened to a disk, counted from 0.
    pub fn counters(&self, disk: usize) -> Counters {
        self.shared.disk(disk).counters
    }

    /// Whether a disk, counted from 0, has power.
    pub fn is_powered(&self, disk: usize) -> bool {
        self.shared.disk(disk).is_powered()
    }

    /// Tells a disk, counted from 0, what to do from now on.
    ///
    /// # Errors
    /// If the directory below fails.
    pub fn order(&self, disk: usize, order: Order) -> Result<(), RigError> {
        self.shared.order(disk, order)
    }

    /// The power of these disks, counted from 0, goes in one moment.
    pub fn cut(&self, disks: &[usize]) {
        let mut all: Vec<_> = disks.iter().map(|disk| self.shared.disk(*disk)).collect();
        all.iter_mut().for_each(|disk| disk.cut());
    }
}

impl Shared {
    fn disk(&self, disk: usize) -> MutexGuard<'_, Disk> {
        self.disks[disk].lock().expect("nobody panics with it")
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().expect("nobody panics with it")
    }

    fn order(&self, disk: usize, order: Order) -> Result<(), RigError> {
        match order {
            Order::Fault(fault) => {
                if !self.disk(disk).arm(fault) {
                    let text = format!("disk {} has too many faults: heal it", disk + 1);
                    return Err(RigError::Options(text));
                }
            }
            Order::Slow(delay) => self.disk(disk).delay_set(delay),
            Order::Stall => self.disk(disk).stall(u64::MAX),
            Order::StallOpen => {
                let next = self.tree().handle_next();
                self.disk(disk).stall(next);
            }
            Order::Resume => self.disk(disk).stall(0),
            Order::Heal => self.disk(disk).heal(),
            Order::Cut => self.disk(disk).cut(),
            Order::CutAt(operation, nth) => self.disk(disk).cut_at(operation, nth),
            Order::PowerOn(keep) => {
                let power_on = self.power_on(disk, keep);
                return power_on.map_err(RigError::system("writing what a power cut kept"));
            }
            Order::Room(room) => self.disk(disk).room_set(room),
        }
        Ok(())
    }

    /// Settles what became of the sectors that were not flushed, and lets the disk work again.
    fn power_on(&self, number: usize, keep: Keep) -> io::Result<()> {
        let files = self.tree().files_of(number);
        for file in files {
            let mut unflushed = file.unflushed.lock().expect("nobody panics with it");
            let mut disk = self.disk(number);
            let (kept, lost) = unflushed.cut(keep, disk.draw());
            disk.counters.sectors_lost += lost;
            disk.counters.sectors_kept += kept.len() as u64;
            file.put(kept)?;
        }
        self.disk(number).power_on();
        Ok(())
    }

    /// Takes a line of the control file.
    fn order_line(&self, line: &str) -> Result<(), RigError> {
        let DiskOrder { disk, order } = line.parse()?;
        if disk > self.disks.len() {
            let text = format!("there are {} disks", self.disks.len());
            return Err(RigError::Options(text));
        }
        self.order(disk - 1, order)
    }

    /// What the control file says.
    fn numbers(&self) -> String {
        let one = |at| format!("disk {}: {:?}\n", at + 1, self.disk(at).counters);
        (0..self.disks.len()).map(one).collect()
    }
}

impl Backed {
    /// Reads up to the end of the file; what is volatile counts.
    fn read(&self, unflushed: &Unflushed, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let size = self.file.metadata()?.len();
        let bytes = (size.saturating_sub(offset)).min(bytes as u64) as usize;
        let mut out = vec![0; bytes];
        self.file.read_exact_at(&mut out, offset)?;
        unflushed.overlay(offset, &mut out);
        Ok(out)
    }

    /// Writes into the volatile cache.
    fn write(&self, unflushed: &mut Unflushed, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        if self.file.metadata()?.len() < end {
            self.file.set_len(end)?;
        }
        let mut below = |number: u64, out: &mut [u8]| {
            let mut done = 0;
            while done < out.len() {
                let at = number * out.len() as u64 + done as u64;
                match self.file.read_at(&mut out[done..], at)? {
                    0 => break,
                    read => done += read,
                }
            }
            Ok::<(), io::Error>(())
        };
        unflushed.write(offset, data, &mut below)?;
        if unflushed.len() > UNFLUSHED_SECTORS_MAX {
            self.put(unflushed.take())?;
        }
        Ok(())
    }

    /// Makes sectors durable.
    fn put(&self, sectors: Sectors) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        for (at, bytes) in pieces(sectors) {
            // The last sector of a file may be a part.
            let count = (size.saturating_sub(at)).min(bytes.len() as u64) as usize;
            self.file.write_all_at(&bytes[..count], at)?;
        }
        Ok(())
    }
}
