//! Reads, writes and flushes, as a disk carries them out.

use std::io;
use std::time::Duration;

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyWrite};
use spillway_runtime::clock::monotonic_now;

use super::Shared;
use super::tree::Handle;
use crate::disk::{Disk, Operation, Part, Verdict};
use crate::sectors::{Keep, SECTOR_BYTES, Unflushed};

/// How long an operation hangs that the power cut hit: by then its process is killed.
const DARK: Duration = Duration::from_millis(20);
/// How often somebody who waits for a stalled disk looks again.
const STALLED: Duration = Duration::from_millis(1);

/// What is asked for, and where the answer goes. Dropped without one, it answers EIO.
pub enum Ask {
    Read {
        offset: u64,
        bytes: usize,
        reply: ReplyData,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
        is_synced: bool,
        reply: ReplyWrite,
    },
    Flush {
        reply: ReplyEmpty,
    },
    /// Nothing but the answer is left.
    Fail {
        answer: Answer,
        errno: i32,
    },
}

/// Where an answer goes.
pub enum Answer {
    Data(ReplyData),
    Written(ReplyWrite),
    Done(ReplyEmpty),
}

impl Answer {
    fn fail(self, errno: i32) {
        let errno = Errno::from_i32(errno);
        match self {
            Self::Data(reply) => reply.error(errno),
            Self::Written(reply) => reply.error(errno),
            Self::Done(reply) => reply.error(errno),
        }
    }
}

/// Something asked of an open file.
pub struct Job {
    pub handle: Handle,
    pub ask: Ask,
}

/// What came of it.
enum Served {
    Data(Vec<u8>),
    Done,
    Failed(i32),
    /// The answer comes too late for anybody.
    Dark,
}

impl Ask {
    fn operation(&self) -> Operation {
        match self {
            Self::Read { .. } => Operation::Read,
            Self::Write { .. } => Operation::Write,
            Self::Flush { .. } | Self::Fail { .. } => Operation::Flush,
        }
    }

    fn is_synced(&self) -> bool {
        matches!(self, Self::Write { is_synced: true, .. })
    }

    fn answer(self) -> (Answer, usize) {
        match self {
            Self::Read { reply, bytes, .. } => (Answer::Data(reply), bytes),
            Self::Write { reply, data, .. } => (Answer::Written(reply), data.len()),
            Self::Flush { reply } => (Answer::Done(reply), 0),
            Self::Fail { answer, .. } => (answer, 0),
        }
    }
}

impl Shared {
    /// Takes what a process asks for: now, or as late as the disk is slow.
    pub fn take(&self, job: Job) {
        let Some((disk, _)) = job.handle.backed.place else { return self.serve(job) };
        let disk = self.disk(disk);
        let delay = if disk.is_stalled(job.handle.id) { STALLED } else { disk.delay() };
        drop(disk);
        if delay.is_zero() { self.serve(job) } else { self.late.after(delay, job) }
    }

    /// Takes what was put off.
    pub fn take_late(&self, job: Job) {
        let disk = job.handle.backed.place.map(|(disk, _)| disk);
        let is_over = matches!(job.ask, Ask::Fail { .. });
        if let Some(disk) = disk.filter(|_| !is_over) {
            let mut disk = self.disk(disk);
            if disk.is_stalled(job.handle.id) {
                drop(disk);
                return self.late.after(STALLED, job);
            }
            disk.counters.ghosts += u64::from(matches!(job.ask, Ask::Write { .. }));
        }
        self.serve(job);
    }

    fn serve(&self, job: Job) {
        let Job { handle, ask } = job;
        if let Ask::Fail { answer, errno } = ask {
            return answer.fail(errno);
        }
        let served = self.carry_out(&handle, &ask);
        let (answer, bytes) = ask.answer();
        match (served, answer) {
            (Served::Dark, answer) => {
                let ask = Ask::Fail { answer, errno: libc::EIO };
                self.late.after(DARK, Job { handle, ask });
            }
            (Served::Failed(errno), answer) => answer.fail(errno),
            (Served::Data(data), Answer::Data(reply)) => reply.data(&data),
            (Served::Done, Answer::Written(reply)) => reply.written(bytes as u32),
            (Served::Done, Answer::Done(reply)) => reply.ok(),
            (Served::Data(_) | Served::Done, _) => unreachable!("an answer of its kind"),
        }
    }

    fn carry_out(&self, handle: &Handle, ask: &Ask) -> Served {
        // Held from the verdict to the end: a power cut comes before or after, not between.
        let mut unflushed = handle.backed.unflushed.lock().expect("nobody panics with it");
        let verdict = match handle.backed.place {
            None => Verdict::Done,
            Some((disk, part)) => {
                let mut disk = self.disk(disk);
                if !grows(&mut disk, handle, ask) {
                    return Served::Failed(libc::ENOSPC);
                }
                let Some(verdict) = judge(&mut disk, handle, ask, part) else {
                    return Served::Dark;
                };
                verdict
            }
        };
        let served = self.apply(handle, ask, verdict, &mut unflushed);
        served.unwrap_or_else(|error| Served::Failed(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn apply(
        &self,
        handle: &Handle,
        ask: &Ask,
        verdict: Verdict,
        unflushed: &mut Unflushed,
    ) -> io::Result<Served> {
        let backed = &handle.backed;
        match (ask, verdict) {
            (_, Verdict::Fail { errno, drops }) => {
                self.fail(handle, ask, drops, unflushed)?;
                Ok(Served::Failed(errno))
            }
            (Ask::Read { .. }, Verdict::Dark) | (Ask::Flush { .. }, Verdict::Dark) => {
                Ok(Served::Dark)
            }
            (Ask::Read { offset, bytes, .. }, verdict) => {
                let mut data = backed.read(unflushed, *offset, *bytes)?;
                if let (Verdict::FlipBit(bit), false) = (verdict, data.is_empty()) {
                    let bit = bit % (data.len() as u64 * 8);
                    data[(bit / 8) as usize] ^= 1 << (bit % 8);
                }
                Ok(Served::Data(data))
            }
            (Ask::Write { offset, data, .. }, Verdict::Torn(sectors)) => {
                let whole = (sectors as usize).saturating_mul(SECTOR_BYTES).min(data.len());
                backed.write(unflushed, *offset, &data[..whole])?;
                backed.put(unflushed.take_range(*offset, whole))?;
                Ok(Served::Failed(libc::EIO))
            }
            (Ask::Write { offset, data, is_synced, .. }, verdict) => {
                backed.write(unflushed, *offset, data)?;
                if verdict == Verdict::Dark {
                    return Ok(Served::Dark);
                }
                if *is_synced && verdict != Verdict::Lie || backed.place.is_none() {
                    backed.put(unflushed.take_range(*offset, data.len()))?;
                }
                Ok(Served::Done)
            }
            (Ask::Flush { .. }, Verdict::Lie) => Ok(Served::Done),
            (Ask::Flush { .. }, _) => {
                backed.put(unflushed.take())?;
                Ok(Served::Done)
            }
            (Ask::Fail { .. }, _) => unreachable!("answered before"),
        }
    }

    /// An operation fails, and has done what such operations do.
    fn fail(
        &self,
        handle: &Handle,
        ask: &Ask,
        drops: bool,
        unflushed: &mut Unflushed,
    ) -> io::Result<()> {
        let Some((disk, _)) = handle.backed.place else { return Ok(()) };
        match ask {
            Ask::Write { offset, data, .. } => {
                // Sectors of it that the disk took lie in its cache like others.
                let keep = Keep::draw(self.disk(disk).draw());
                let mut arrived = Unflushed::default();
                handle.backed.write(&mut arrived, *offset, data)?;
                let (kept, _) = arrived.cut(keep, self.disk(disk).draw());
                for (number, sector) in kept {
                    let at = number * SECTOR_BYTES as u64;
                    handle.backed.write(unflushed, at, sector.as_slice())?;
                }
            }
            Ask::Flush { .. } if drops => drop(unflushed.take()),
            Ask::Flush { .. } | Ask::Read { .. } | Ask::Fail { .. } => {}
        }
        Ok(())
    }
}

/// The verdict; none about what a process asks that did not outlive a power cut.
fn judge(disk: &mut Disk, handle: &Handle, ask: &Ask, part: Part) -> Option<Verdict> {
    if disk.is_powered() && handle.cuts != disk.counters.cuts {
        disk.counters.unanswered += 1;
        return None;
    }
    let now = monotonic_now().0;
    Some(disk.judge(ask.operation(), part, ask.is_synced(), now))
}

/// Whether there is room for what a write adds to its file.
fn grows(disk: &mut Disk, handle: &Handle, ask: &Ask) -> bool {
    let Ask::Write { offset, data, .. } = ask else { return true };
    let Ok(facts) = handle.backed.file.metadata() else { return true };
    let growth = (offset + data.len() as u64).saturating_sub(facts.len());
    growth == 0 || disk.grow(growth)
}
