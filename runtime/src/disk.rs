//! The io_uring of one disk.
//!
//! A ring of its own per disk, with plain flags: its descriptor can be polled by a
//! [`crate::tcp::TcpRing`] ([`DiskRing::fd`]), which a ring with deferred task work cannot.
//! The ring owns its buffers, so a buffer in flight can be neither freed nor, because
//! [`DiskRing::buffer_mut`] asserts it, touched. Slots are held while the kernel uses them: a
//! clone of what is written, the slot itself while it is read into.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use crate::buffer::{BufferIndex, BufferPool};
use crate::direct::DirectFile;
use crate::error::{Errno, RuntimeError};
use crate::file;
use crate::region::Region;
use crate::slot_ring::{Slot, SlotMut, SlotRing};

/// What a [`DiskRing`] is made for.
#[derive(Clone, Debug)]
pub struct DiskRingOptions {
    /// Operations in flight at most.
    pub entries: u32,
    /// Files registered at most.
    pub files_max: u32,
    /// Name in messages, such as "log".
    pub name: String,
}

/// When a write counts as complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the device has the bytes, durable or not.
    None,
    /// When they are durable, by RWF_DSYNC.
    DataSync,
    /// When they are durable, by a write linked with FDATASYNC. One completion for both.
    WriteThenFlush,
}

/// A registered file of one [`DiskRing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileSlot(u32);

/// A write of part of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct WriteRequest {
    /// To which file.
    pub file: FileSlot,
    /// Where in the file.
    pub file_offset: u64,
    /// From which buffer.
    pub buffer: BufferIndex,
    /// Where in the buffer.
    pub buffer_offset: u32,
    /// How many bytes.
    pub bytes: u32,
    /// When it counts as complete.
    pub durability: Durability,
    /// Comes back in the completion.
    pub token: u64,
}

/// A read into part of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct ReadRequest {
    /// From which file.
    pub file: FileSlot,
    /// Where in the file.
    pub file_offset: u64,
    /// Into which buffer.
    pub buffer: BufferIndex,
    /// Where in the buffer.
    pub buffer_offset: u32,
    /// How many bytes.
    pub bytes: u32,
    /// Comes back in the completion.
    pub token: u64,
}

/// A write of a whole slot.
#[derive(Clone, Debug)]
pub struct WriteSlotRequest {
    /// To which file.
    pub file: FileSlot,
    /// Where in the file.
    pub file_offset: u64,
    /// What. The ring keeps it alive until the completion.
    pub slot: Slot,
    /// When it counts as complete.
    pub durability: Durability,
    /// Comes back in the completion.
    pub token: u64,
}

/// A read that fills a whole slot.
#[derive(Debug)]
pub struct ReadSlotRequest {
    /// From which file.
    pub file: FileSlot,
    /// Where in the file.
    pub file_offset: u64,
    /// Where to. [`DiskRing::take_slot`] gives it back after the completion.
    pub slot: SlotMut,
    /// Comes back in the completion, and names the slot to take.
    pub token: u64,
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskCompletion {
    /// That of the request.
    pub token: u64,
    /// Bytes moved. A write moved all or is an error ([`Errno::SHORT_TRANSFER`] if the kernel gave
    /// no other reason); a read is short only at the end of the file.
    pub result: Result<u32, Errno>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Operation {
    token: u64,
    bytes: u32,
    file: u32,
    /// The pool's buffer, none if it is a slot.
    buffer: Option<u16>,
    is_read: bool,
    /// Completions of the kernel still to come: two for a write with a linked flush.
    outstanding: u8,
    /// First failure seen, zero if none.
    failure: i32,
    /// What the transfer itself returned.
    moved: u32,
}

/// The slot of an operation.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Written(#[expect(dead_code, reason = "held so that its memory lives")] Slot),
    ReadInto(SlotMut),
}

#[derive(Clone, Copy, Debug, Default)]
struct BufferUse {
    readers: u16,
    writers: u16,
}

/// See the module.
pub struct DiskRing {
    /// Dropped first, by hand, so that the kernel is done with the buffers before they go.
    ring: ManuallyDrop<IoUring>,
    pool: ManuallyDrop<Option<BufferPool>>,
    /// The region of the slot ring whose slots are registered, behind the pool's buffers.
    slots: ManuallyDrop<Option<Arc<Region>>>,
    /// Per operation, what must outlive it.
    held: ManuallyDrop<Vec<Held>>,
    /// Slots that were read into, by token, until their owner takes them.
    slots_read: Vec<(u64, SlotMut)>,
    /// Whether the kernel has the buffers registered.
    is_registered: bool,
    /// Per buffer: requests that have the kernel write (a read) or read (a write) it now.
    buffers: Vec<BufferUse>,
    operations: Vec<Operation>,
    operations_free: Vec<u32>,
    files_free: Vec<u32>,
    /// Requests in flight per registered file.
    file_uses: Vec<u32>,
    in_flight: u32,
    name: String,
}

/// What is moved between a file and memory.
struct Transfer {
    file: FileSlot,
    file_offset: u64,
    start: *mut u8,
    bytes: u32,
    /// Number of the registered buffer that the memory is in.
    registered: Option<u16>,
}

impl Transfer {
    fn operation(&self, token: u64, buffer: Option<u16>) -> Operation {
        let (bytes, file) = (self.bytes, self.file.0);
        Operation { token, bytes, file, buffer, outstanding: 1, ..Operation::default() }
    }
}

/// The low bit of the user data tells a linked flush from its write.
const FLUSH_BIT: u64 = 1;

impl DiskRing {
    /// Creates the ring, without buffers or files.
    ///
    /// # Errors
    /// Fails if the kernel refuses an io_uring; the error says what to change.
    ///
    /// # Panics
    /// If `entries` or `files_max` is zero, or `entries` above 4,096.
    pub fn new(options: DiskRingOptions) -> Result<DiskRing, RuntimeError> {
        let DiskRingOptions { entries, files_max, name } = options;
        assert!((1..=4_096).contains(&entries), "{entries} entries");
        assert!(files_max > 0, "a disk ring has files");
        // Two submissions and two completions per request: a write and its linked flush.
        let ring: IoUring = IoUring::builder()
            .dontfork()
            .setup_cqsize((entries * 4).next_power_of_two())
            .build((entries * 2).next_power_of_two())
            .map_err(|error| setup_error(&error, "an io_uring for a disk"))?;
        ring.submitter().register_files_sparse(files_max).map_err(|error| {
            RuntimeError::ring_registration(Errno::of(&error), "the file table", 0)
        })?;
        Ok(DiskRing {
            ring: ManuallyDrop::new(ring),
            pool: ManuallyDrop::new(None),
            slots: ManuallyDrop::new(None),
            held: ManuallyDrop::new((0..entries).map(|_| Held::Nothing).collect()),
            slots_read: Vec::new(),
            is_registered: false,
            buffers: Vec::new(),
            operations: vec![Operation::default(); entries as usize],
            operations_free: (0..entries).rev().collect(),
            files_free: (0..files_max).rev().collect(),
            file_uses: vec![0; files_max as usize],
            in_flight: 0,
            name,
        })
    }

    /// Takes the buffers over and registers them with the kernel. If the limit on locked memory
    /// forbids that, the ring works without, and the warning to log is returned.
    ///
    /// # Errors
    /// Fails if the kernel refuses for another reason.
    ///
    /// # Panics
    /// If the ring has buffers already.
    pub fn register_buffers(&mut self, pool: BufferPool) -> Result<Option<String>, RuntimeError> {
        self.register(pool, None)
    }

    /// As [`DiskRing::register_buffers`], and registers all memory of `slots` as well, so that its
    /// slots are written and read without the kernel looking their pages up each time. Slots of
    /// other rings and of the heap work too, at that cost. The memory of `slots` lives as long as
    /// this ring.
    ///
    /// # Errors
    /// As [`DiskRing::register_buffers`].
    ///
    /// # Panics
    /// If the ring has buffers already.
    pub fn register_buffers_and_slots(
        &mut self,
        pool: BufferPool,
        slots: &SlotRing,
    ) -> Result<Option<String>, RuntimeError> {
        self.register(pool, Some(slots))
    }

    fn register(
        &mut self,
        pool: BufferPool,
        slots: Option<&SlotRing>,
    ) -> Result<Option<String>, RuntimeError> {
        let buffers = (0..pool.count()).map(|number| libc::iovec {
            iov_base: pool.as_ptr(BufferIndex(number)).cast(),
            iov_len: pool.bytes_each(),
        });
        let region = slots.map(|slots| libc::iovec {
            iov_base: slots.region().as_ptr().cast(),
            iov_len: slots.bytes_total(),
        });
        let iovecs: Vec<libc::iovec> = buffers.chain(region).collect();
        self.attach_buffers(pool);
        *self.slots = slots.map(|slots| Arc::clone(slots.region()));
        // SAFETY: the ring owns the pool and a share of the slots' region from here on, and drops
        // both after the ring.
        let registered = unsafe { self.ring.submitter().register_buffers(&iovecs) };
        let Err(error) = registered else {
            self.is_registered = true;
            return Ok(None);
        };
        let bytes = iovecs.iter().map(|iovec| iovec.iov_len as u64).sum();
        match RuntimeError::ring_registration(Errno::of(&error), "disk buffers", bytes) {
            cause @ RuntimeError::MemlockTooLow { .. } => Ok(Some(format!(
                "the {} disk works without registered buffers, at more CPU per request: {cause}",
                self.name
            ))),
            other => Err(other),
        }
    }

    /// Takes the buffers over without registering them: for a ring that does not live long.
    ///
    /// # Panics
    /// If the ring has buffers already.
    pub fn attach_buffers(&mut self, pool: BufferPool) {
        assert!(self.pool.is_none(), "the {} ring has its buffers already", self.name);
        self.buffers = vec![BufferUse::default(); usize::from(pool.count())];
        *self.pool = Some(pool);
    }

    /// Registers a file; the ring can use it from now on, also after `file` was dropped.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    ///
    /// # Panics
    /// If `files_max` files are registered.
    pub fn register_file(&mut self, file: &DirectFile) -> Result<FileSlot, RuntimeError> {
        let Some(slot) = self.files_free.pop() else {
            panic!("the {} ring has all its files: raise files_max", self.name);
        };
        if let Err(error) = self.ring.submitter().register_files_update(slot, &[file.fd()]) {
            self.files_free.push(slot);
            return Err(RuntimeError::file("register", file.path(), Errno::of(&error)));
        }
        Ok(FileSlot(slot))
    }

    /// Lets go of a file.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    ///
    /// # Panics
    /// If a request for it is in flight.
    pub fn unregister_file(&mut self, file: FileSlot) -> Result<(), RuntimeError> {
        assert!(self.file_uses[file.0 as usize] == 0, "file {} is in use", file.0);
        assert!(!self.files_free.contains(&file.0), "file {} is not registered", file.0);
        self.ring.submitter().register_files_update(file.0, &[-1]).map_err(|error| {
            RuntimeError::System { operation: "unregister a file", errno: Errno::of(&error) }
        })?;
        self.files_free.push(file.0);
        Ok(())
    }

    /// The descriptor to watch: readable while completions are waiting to be reaped.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Requests accepted and not yet reaped.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Requests that can be accepted now.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.operations_free.len() as u32
    }

    /// Number of buffers, zero before they were given.
    #[must_use]
    pub fn buffers(&self) -> u16 {
        self.pool.as_ref().map_or(0, BufferPool::count)
    }

    /// The bytes of a buffer.
    ///
    /// # Panics
    /// If a read into it is in flight, or there are no buffers.
    #[must_use]
    pub fn buffer(&self, index: BufferIndex) -> &[u8] {
        let in_use = self.buffers[usize::from(index.0)];
        assert!(in_use.readers == 0, "a read into buffer {} is in flight", index.0);
        self.pool.as_ref().expect("buffers were given").get(index)
    }

    /// The bytes of a buffer, to be written.
    ///
    /// # Panics
    /// If any request for it is in flight, or there are no buffers.
    #[must_use]
    pub fn buffer_mut(&mut self, index: BufferIndex) -> &mut [u8] {
        assert!(!self.buffer_in_flight(index), "buffer {} is in flight", index.0);
        self.pool.as_mut().expect("buffers were given").get_mut(index)
    }

    /// Whether any request for a buffer is in flight.
    #[must_use]
    pub fn buffer_in_flight(&self, index: BufferIndex) -> bool {
        let in_use = self.buffers[usize::from(index.0)];
        in_use.readers + in_use.writers > 0
    }

    /// Queues a write. It starts at the next [`DiskRing::submit`].
    ///
    /// # Panics
    /// If there is no [`DiskRing::room`], the range is outside the buffer, or a read into the
    /// buffer is in flight.
    pub fn write(&mut self, request: WriteRequest) {
        let WriteRequest { file, file_offset, buffer, buffer_offset, bytes, durability, token } =
            request;
        let start = self.range_start(buffer, buffer_offset, bytes);
        let in_use = &mut self.buffers[usize::from(buffer.0)];
        assert!(in_use.readers == 0, "a read into buffer {} is in flight", buffer.0);
        in_use.writers += 1;
        let registered = self.is_registered.then_some(buffer.0);
        let transfer = Transfer { file, file_offset, start, bytes, registered };
        let operation = transfer.operation(token, Some(buffer.0));
        self.push_write(&transfer, operation, durability, Held::Nothing);
    }

    /// Queues a write of a slot. It starts at the next [`DiskRing::submit`].
    ///
    /// # Panics
    /// If there is no [`DiskRing::room`], or the slot is empty.
    pub fn write_slot(&mut self, request: WriteSlotRequest) {
        let WriteSlotRequest { file, file_offset, slot, durability, token } = request;
        assert!(!slot.is_empty(), "a write of no bytes");
        let bytes = u32::try_from(slot.len()).expect("no slot has 4 GiB");
        let registered = self.registered_slots(|region| slot.is_in(region));
        // The kernel only reads it.
        let start = slot.as_ptr().cast_mut();
        let transfer = Transfer { file, file_offset, start, bytes, registered };
        let operation = transfer.operation(token, None);
        self.push_write(&transfer, operation, durability, Held::Written(slot));
    }

    /// Number of the registered buffer that is the slots' region, if `is_in` says that it is that.
    fn registered_slots(&self, is_in: impl FnOnce(&Arc<Region>) -> bool) -> Option<u16> {
        let region = self.slots.as_ref().filter(|_| self.is_registered)?;
        is_in(region).then(|| self.buffers())
    }

    fn push_write(
        &mut self,
        transfer: &Transfer,
        mut operation: Operation,
        durability: Durability,
        held: Held,
    ) {
        let linked = durability == Durability::WriteThenFlush;
        operation.outstanding = if linked { 2 } else { 1 };
        let user_data = self.begin(operation, held);
        let flags = if durability == Durability::DataSync { libc::RWF_DSYNC } else { 0 };
        let fd = types::Fixed(transfer.file.0);
        let (start, bytes) = (transfer.start, transfer.bytes);
        let entry = if let Some(buffer) = transfer.registered {
            opcode::WriteFixed::new(fd, start, bytes, buffer)
                .offset(transfer.file_offset)
                .rw_flags(flags)
                .build()
        } else {
            let write = opcode::Write::new(fd, start, bytes).offset(transfer.file_offset);
            write.rw_flags(flags).build()
        };
        let entry = entry.user_data(user_data);
        if !linked {
            self.push(&[entry]);
            return;
        }
        let flush = opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build()
            .user_data(user_data | FLUSH_BIT);
        self.push(&[entry.flags(squeue::Flags::IO_LINK), flush]);
    }

    /// Queues a read. It starts at the next [`DiskRing::submit`].
    ///
    /// # Panics
    /// If there is no [`DiskRing::room`], the range is outside the buffer, or any request for the
    /// buffer is in flight.
    pub fn read(&mut self, request: ReadRequest) {
        let ReadRequest { file, file_offset, buffer, buffer_offset, bytes, token } = request;
        let start = self.range_start(buffer, buffer_offset, bytes);
        assert!(!self.buffer_in_flight(buffer), "buffer {} is in flight", buffer.0);
        self.buffers[usize::from(buffer.0)].readers += 1;
        let registered = self.is_registered.then_some(buffer.0);
        let transfer = Transfer { file, file_offset, start, bytes, registered };
        let operation = transfer.operation(token, Some(buffer.0));
        self.push_read(&transfer, operation, Held::Nothing);
    }

    /// Queues a read that fills a slot. It starts at the next [`DiskRing::submit`]; after its
    /// completion [`DiskRing::take_slot`] gives the slot back, whatever the result.
    ///
    /// # Panics
    /// If there is no [`DiskRing::room`], or the slot is empty.
    pub fn read_slot(&mut self, request: ReadSlotRequest) {
        let ReadSlotRequest { file, file_offset, mut slot, token } = request;
        assert!(!slot.is_empty(), "a read of no bytes");
        let bytes = u32::try_from(slot.len()).expect("no slot has 4 GiB");
        let registered = self.registered_slots(|region| slot.is_in(region));
        let transfer = Transfer { file, file_offset, start: slot.start_ptr(), bytes, registered };
        let operation = transfer.operation(token, None);
        self.push_read(&transfer, operation, Held::ReadInto(slot));
    }

    /// The slot of a [`DiskRing::read_slot`] whose completion was reaped; of several with the same
    /// token, the one that ended first. Take it, or the ring keeps it.
    pub fn take_slot(&mut self, token: u64) -> Option<SlotMut> {
        let position = self.slots_read.iter().position(|(of, _)| *of == token)?;
        Some(self.slots_read.remove(position).1)
    }

    fn push_read(&mut self, transfer: &Transfer, mut operation: Operation, held: Held) {
        operation.is_read = true;
        let user_data = self.begin(operation, held);
        let fd = types::Fixed(transfer.file.0);
        let (start, bytes) = (transfer.start, transfer.bytes);
        let entry = if let Some(buffer) = transfer.registered {
            let read = opcode::ReadFixed::new(fd, start, bytes, buffer);
            read.offset(transfer.file_offset).build()
        } else {
            opcode::Read::new(fd, start, bytes).offset(transfer.file_offset).build()
        };
        self.push(&[entry.user_data(user_data)]);
    }

    /// Starts all queued requests.
    ///
    /// # Errors
    /// Fails if the kernel refuses the whole submission, which no single request can cause.
    pub fn submit(&mut self) -> Result<(), RuntimeError> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.enter(0)
    }

    /// Starts all queued requests and waits until at least `completions` of the kernel wait to be
    /// reaped; at most those in flight are waited for.
    ///
    /// # Errors
    /// As [`DiskRing::submit`].
    pub fn submit_and_wait(&mut self, completions: u32) -> Result<(), RuntimeError> {
        self.enter(completions.min(self.in_flight) as usize)
    }

    /// Moves all completions that are there to the end of `out`.
    pub fn reap(&mut self, out: &mut Vec<DiskCompletion>) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            if let Some(completion) = self.complete(entry.user_data(), entry.result()) {
                out.push(completion);
            }
        }
    }

    fn complete(&mut self, user_data: u64, result: i32) -> Option<DiskCompletion> {
        let number = (user_data >> 1) as usize;
        let operation = &mut self.operations[number];
        assert!(operation.outstanding > 0, "a completion nobody waits for: {user_data}");
        operation.outstanding -= 1;
        let is_flush = user_data & FLUSH_BIT != 0;
        if result < 0 {
            // A failed write cancels its flush: the write's own reason is the one to report.
            let reason = -result;
            if operation.failure == 0 || operation.failure == libc::ECANCELED {
                operation.failure = reason;
            }
        } else if !is_flush {
            operation.moved = result as u32;
        }
        if operation.outstanding > 0 {
            return None;
        }
        let ended = *operation;
        self.operations_free.push(number as u32);
        self.in_flight -= 1;
        self.file_uses[ended.file as usize] -= 1;
        match std::mem::take(&mut self.held[number]) {
            Held::ReadInto(slot) => self.slots_read.push((ended.token, slot)),
            Held::Nothing | Held::Written(_) => {}
        }
        if let Some(buffer) = ended.buffer {
            let in_use = &mut self.buffers[usize::from(buffer)];
            if ended.is_read {
                in_use.readers -= 1;
            } else {
                in_use.writers -= 1;
            }
        }
        Some(DiskCompletion { token: ended.token, result: outcome(&ended) })
    }

    fn range_start(&self, buffer: BufferIndex, offset: u32, bytes: u32) -> *mut u8 {
        let pool = self.pool.as_ref().expect("buffers were given");
        let end = offset as usize + bytes as usize;
        assert!(bytes > 0 && end <= pool.bytes_each(), "{bytes} at {offset} leave the buffer");
        // SAFETY: the range was just checked to be inside the buffer.
        unsafe { pool.as_ptr(buffer).add(offset as usize) }
    }

    fn begin(&mut self, operation: Operation, held: Held) -> u64 {
        assert!(!self.files_free.contains(&operation.file), "file {} is absent", operation.file);
        let Some(number) = self.operations_free.pop() else {
            panic!("the {} ring is full: ask room() first", self.name);
        };
        self.file_uses[operation.file as usize] += 1;
        self.in_flight += 1;
        self.operations[number as usize] = operation;
        self.held[number as usize] = held;
        u64::from(number) << 1
    }

    /// Queues entries behind each other; a chain is never torn by a submission in between.
    fn push(&mut self, entries: &[squeue::Entry]) {
        // SAFETY: the buffers named belong to the pool that outlives the ring, and the counts in
        // `buffers` keep everybody out of them until the completion; slots are in `held` until
        // then, exclusively if the kernel writes them.
        let pushed = unsafe { self.ring.submission().push_multiple(entries) };
        assert!(pushed.is_ok(), "the submission queue has two places per operation");
    }

    fn enter(&mut self, want: usize) -> Result<(), RuntimeError> {
        loop {
            match self.ring.submitter().submit_and_wait(want) {
                Ok(_) => {
                    let left = self.ring.submission().len();
                    if left == 0 {
                        return Ok(());
                    }
                }
                Err(error) => match Errno::of(&error) {
                    Errno(libc::EINTR) => {}
                    // The kernel is short of memory for the request for now.
                    Errno(libc::EAGAIN) => std::thread::yield_now(),
                    errno => {
                        return Err(RuntimeError::System { operation: "io_uring_enter", errno });
                    }
                },
            }
        }
    }
}

fn outcome(ended: &Operation) -> Result<u32, Errno> {
    let is_short = ended.moved < ended.bytes;
    if !ended.is_read && is_short && matches!(ended.failure, 0 | libc::ECANCELED) {
        // A short write makes the kernel cancel the linked flush.
        return Err(Errno::SHORT_TRANSFER);
    }
    if ended.failure != 0 { Err(Errno(ended.failure)) } else { Ok(ended.moved) }
}

/// Explains a refused ring with the setting that governs it.
pub(crate) fn setup_error(error: &std::io::Error, feature: &'static str) -> RuntimeError {
    let setting = file::read_to_string("/proc/sys/kernel/io_uring_disabled".as_ref()).ok();
    RuntimeError::ring_setup(Errno::of(error), feature, setting.as_deref())
}

impl Drop for DiskRing {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        let mut is_drained = true;
        while self.in_flight > 0 && is_drained {
            is_drained = self.submit_and_wait(1).is_ok();
            self.reap(&mut ended);
        }
        // SAFETY: none of the fields is used after this.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            if is_drained {
                // Nothing is in flight: the memory can go. Otherwise it is leaked on purpose,
                // because the kernel may still use it.
                ManuallyDrop::drop(&mut self.pool);
                ManuallyDrop::drop(&mut self.slots);
                ManuallyDrop::drop(&mut self.held);
            }
        }
    }
}
