//! Reads entries back from the segments, for peers that lag behind what memory holds. A ring of
//! its own: a peer that catches up must not stand before a commit.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;

use spillway_net::ids::Lsn;
use spillway_runtime::direct::DirectFile;
use spillway_runtime::disk::{
    DiskCompletion, DiskRing, DiskRingOptions, FileSlot, ReadSlotRequest,
};
use spillway_runtime::error::{Errno, RuntimeError};
use spillway_runtime::slot_ring::{Slot, SlotMut};

use crate::quorum::EntryReadRequest;

/// Reads in flight.
const READS_MAX: u32 = 16;

/// See the module.
pub(super) struct EntryReader {
    disk: DiskRing,
    segments: Vec<FileSlot>,
    waiting: VecDeque<EntryReadRequest>,
    /// The entry that each read in flight is of, by a number of its own: the ring gives memory back
    /// by that, and an entry may be read again while an earlier read of it is on its way.
    reads: BTreeMap<u64, Lsn>,
    reads_begun: u64,
    completions: Vec<DiskCompletion>,
}

impl EntryReader {
    pub fn new(files: &[DirectFile]) -> Result<Self, RuntimeError> {
        let mut disk = DiskRing::new(DiskRingOptions {
            entries: READS_MAX,
            files_max: files.len() as u32,
            name: "log catch-up".to_owned(),
        })?;
        let segments =
            files.iter().map(|file| disk.register_file(file)).collect::<Result<_, _>>()?;
        Ok(Self {
            disk,
            segments,
            waiting: VecDeque::new(),
            reads: BTreeMap::new(),
            reads_begun: 0,
            completions: Vec::new(),
        })
    }

    /// Readable when a read has completed.
    pub fn fd(&self) -> RawFd {
        self.disk.fd()
    }

    /// Orders a read. It starts at the next [`Self::submit`].
    pub fn read(&mut self, request: &EntryReadRequest) {
        self.waiting.push_back(*request);
    }

    /// Starts what was ordered, as far as there is room.
    pub fn submit(&mut self) -> Result<(), RuntimeError> {
        while self.disk.room() > 0 {
            let Some(request) = self.waiting.pop_front() else { break };
            self.reads_begun += 1;
            self.reads.insert(self.reads_begun, request.lsn);
            self.disk.read_slot(ReadSlotRequest {
                file: self.segments[request.segment as usize],
                file_offset: request.offset,
                slot: SlotMut::heap(request.bytes),
                token: self.reads_begun,
            });
        }
        self.disk.submit()
    }

    /// The next entry that was read, or why it could not be.
    pub fn reap(&mut self) -> Option<(Lsn, Result<Slot, i32>)> {
        if self.completions.is_empty() {
            self.disk.reap(&mut self.completions);
        }
        let completion = self.completions.pop()?;
        let lsn = self.reads.remove(&completion.token).expect("a completion belongs to a read");
        let slot = self.disk.take_slot(completion.token).expect("each read fills a slot");
        let result = match completion.result {
            Ok(bytes) if bytes as usize == slot.len() => Ok(slot.freeze()),
            Ok(_) => Err(Errno::SHORT_TRANSFER.0),
            Err(Errno(errno)) => Err(errno),
        };
        Some((lsn, result))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "a test makes files as it likes")]

    use spillway_runtime::direct::DirectMode;

    use super::*;

    /// An entry was superseded and its place is read again: each result has its own bytes.
    #[test]
    fn two_reads_of_one_entry_are_not_mixed_up() {
        let root = tempfile::tempdir_in(".").expect("a directory");
        let path = root.path().join("segment");
        let content: Vec<u8> = (0..8192).map(|at| (at / 4096) as u8 + 1).collect();
        std::fs::write(&path, &content).expect("written");
        let file = DirectFile::open(&path, DirectMode::Read).expect("opens");
        let mut reader = EntryReader::new(std::slice::from_ref(&file)).expect("a ring");
        // One ends beyond the end of the file, and is short.
        for (lsn, offset) in [(7, 0), (7, 8192), (7, 4096), (8, 0)] {
            let request = EntryReadRequest { lsn: Lsn(lsn), segment: 0, offset, bytes: 4096 };
            reader.read(&request);
        }
        reader.submit().expect("submitted");
        reader.disk.submit_and_wait(4).expect("all ended");
        let mut results: Vec<_> = std::iter::from_fn(|| reader.reap())
            .map(|(lsn, result)| (lsn.0, result.map(|slot| (slot[0], slot[4095]))))
            .collect();
        results.sort_unstable();
        let short = Err(Errno::SHORT_TRANSFER.0);
        assert_eq!(results, [(7, Ok((1, 1))), (7, Ok((2, 2))), (7, short), (8, Ok((1, 1)))]);
        assert!(reader.reads.is_empty());
    }
}
