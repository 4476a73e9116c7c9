//! Reads entries back from the segments, for peers that lag behind what memory holds. A ring of
//! its own: a peer that catches up must not stand before a commit.

use std::collections::VecDeque;
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
        Ok(Self { disk, segments, waiting: VecDeque::new(), completions: Vec::new() })
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
            self.disk.read_slot(ReadSlotRequest {
                file: self.segments[request.segment as usize],
                file_offset: request.offset,
                slot: SlotMut::heap(request.bytes),
                token: request.lsn.0,
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
        let slot = self.disk.take_slot(completion.token).expect("each read fills a slot");
        let result = match completion.result {
            Ok(bytes) if bytes as usize == slot.len() => Ok(slot.freeze()),
            Ok(_) => Err(Errno::SHORT_TRANSFER.0),
            Err(Errno(errno)) => Err(errno),
        };
        Some((Lsn(completion.token), result))
    }
}
