//! The calls of the kernel.
#![expect(clippy::disallowed_methods, reason = "it passes errors on as the system tells them")]

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use spillway_runtime::file;

use super::serve::{Ask, Job};
use super::tree::{CONTROL_NUMBER, Handle, place};
use super::{CONTROL, Shared};

/// Names and facts are asked for every time: they may change below.
const TTL: Duration = Duration::ZERO;
/// Handle of the control file.
const CONTROL_HANDLE: u64 = 0;
/// Operations of all processes that may be under way at once.
const BACKGROUND_MAX: u16 = 1024;
/// Bytes of one write; larger ones come in pieces.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Size of a block, as told to whoever asks for free space.
const BLOCK_BYTES: u64 = 4096;

/// See [`super`].
pub struct FileSystem {
    pub(super) shared: Arc<Shared>,
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Nothing is cached, and writes to one file do not wait for each other, as with a disk.
fn open_flags() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}

fn kind_of(kind: fs::FileType) -> FileType {
    match kind {
        kind if kind.is_dir() => FileType::Directory,
        kind if kind.is_symlink() => FileType::Symlink,
        kind if kind.is_socket() => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn attributes(number: u64, facts: &Metadata) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: facts.len(),
        blocks: facts.blocks(),
        atime: facts.accessed().unwrap_or(UNIX_EPOCH),
        mtime: facts.modified().unwrap_or(UNIX_EPOCH),
        ctime: facts.modified().unwrap_or(UNIX_EPOCH),
        crtime: UNIX_EPOCH,
        kind: kind_of(facts.file_type()),
        perm: (facts.mode() & 0o7777) as u16,
        nlink: facts.nlink() as u32,
        uid: facts.uid(),
        gid: facts.gid(),
        rdev: 0,
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    }
}

impl Shared {
    fn control_attributes(&self) -> FileAttr {
        // SAFETY: the calls have no arguments and cannot fail.
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        FileAttr {
            ino: INodeNo(CONTROL_NUMBER),
            size: self.numbers().len() as u64,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            blksize: BLOCK_BYTES as u32,
            flags: 0,
        }
    }

    fn is_control(parent: INodeNo, name: &OsStr) -> bool {
        parent == INodeNo::ROOT && name == CONTROL
    }

    fn facts(&self, number: u64) -> io::Result<FileAttr> {
        if number == CONTROL_NUMBER {
            return Ok(self.control_attributes());
        }
        let tree = self.tree();
        let facts = match tree.backed(number) {
            Some(backed) => backed.file.metadata()?,
            None => fs::symlink_metadata(self.root.join(tree.path(number)?))?,
        };
        Ok(attributes(number, &facts))
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        if Self::is_control(parent, name) {
            return Ok(self.control_attributes());
        }
        let mut tree = self.tree();
        let path = tree.path_in(parent.0, name)?;
        let facts = fs::symlink_metadata(self.root.join(&path))?;
        Ok(attributes(tree.number(&path)?, &facts))
    }

    fn handle(&self, handle: FileHandle) -> io::Result<Handle> {
        self.tree().handle(handle.0)
    }

    fn open(&self, number: u64) -> io::Result<u64> {
        let cuts = |disk: usize| self.disk(disk).counters.cuts;
        self.tree().open(&self.root, number, self.disks.len(), cuts)
    }

    fn create(&self, parent: INodeNo, name: &OsStr, mode: u32) -> io::Result<(FileAttr, u64)> {
        let path = self.root.join(self.tree().path_in(parent.0, name)?);
        // It exists only if the caller does not mind.
        drop(OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(path)?);
        let facts = self.lookup(parent, name)?;
        let handle = self.open(facts.ino.0)?;
        Ok((facts, handle))
    }

    fn mkdir(&self, parent: INodeNo, name: &OsStr, mode: u32) -> io::Result<FileAttr> {
        let path = self.tree().path_in(parent.0, name)?;
        fs::DirBuilder::new().mode(mode).create(self.root.join(path))?;
        self.lookup(parent, name)
    }

    fn unlink(&self, parent: INodeNo, name: &OsStr) -> io::Result<()> {
        let path = self.tree().path_in(parent.0, name)?;
        let bytes = fs::symlink_metadata(self.root.join(&path))?.len();
        fs::remove_file(self.root.join(&path))?;
        if let Some((disk, _)) = place(&path, self.disks.len()) {
            let mut disk = self.disk(disk);
            let room = disk.room_bytes().map(|room| room + bytes);
            disk.room_set(room);
        }
        self.tree().remove(&path);
        Ok(())
    }

    fn rmdir(&self, parent: INodeNo, name: &OsStr) -> io::Result<()> {
        let path = self.tree().path_in(parent.0, name)?;
        fs::remove_dir(self.root.join(&path))?;
        self.tree().remove(&path);
        Ok(())
    }

    fn rename(
        &self,
        (parent, name): (INodeNo, &OsStr),
        (parent_new, name_new): (INodeNo, &OsStr),
    ) -> io::Result<()> {
        let mut tree = self.tree();
        let from = tree.path_in(parent.0, name)?;
        let to = tree.path_in(parent_new.0, name_new)?;
        fs::rename(self.root.join(&from), self.root.join(&to))?;
        tree.rename(&from, &to);
        Ok(())
    }

    /// Makes a file so long. What is behind a smaller end is forgotten.
    fn resize(&self, number: u64, bytes: u64) -> io::Result<()> {
        let (path, backed) = {
            let tree = self.tree();
            (tree.path(number), tree.backed(number))
        };
        match backed {
            Some(backed) => {
                let mut unflushed = backed.unflushed.lock().expect("nobody panics with it");
                self.grow(&backed.file, backed.place.map(|place| place.0), bytes)?;
                unflushed.truncate(bytes);
                backed.file.set_len(bytes)
            }
            None => {
                let path = path?;
                let file = OpenOptions::new().write(true).open(self.root.join(&path))?;
                let disk = place(&path, self.disks.len()).map(|place| place.0);
                self.grow(&file, disk, bytes)?;
                file.set_len(bytes)
            }
        }
    }

    fn grow(&self, file: &File, disk: Option<usize>, bytes: u64) -> io::Result<()> {
        let growth = bytes.saturating_sub(file.metadata()?.len());
        match disk {
            Some(disk) if growth > 0 && !self.disk(disk).grow(growth) => {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            _ => Ok(()),
        }
    }

    fn allocate(&self, handle: u64, offset: u64, bytes: u64, mode: i32) -> io::Result<()> {
        let backed = self.tree().handle(handle)?.backed;
        let disk = backed.place.map(|place| place.0);
        self.grow(&backed.file, disk, offset + bytes)?;
        let (offset, bytes) = (offset as libc::off_t, bytes as libc::off_t);
        // SAFETY: the descriptor is open; the call touches no memory of ours.
        match unsafe { libc::fallocate(backed.file.as_raw_fd(), mode, offset, bytes) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn entries(&self, number: u64) -> io::Result<Vec<(u64, FileType, std::ffi::OsString)>> {
        let path = self.tree().path(number)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join(&path))? {
            let entry = entry?;
            let number = self.tree().number(&path.join(entry.file_name()))?;
            found.push((number, kind_of(entry.file_type()?), entry.file_name()));
        }
        found.sort_by(|a, b| a.2.cmp(&b.2));
        Ok(found)
    }

    /// Free bytes: the least room of a disk that has a limit, or what there is below.
    fn free_bytes(&self) -> io::Result<u64> {
        let below = file::free_bytes(&self.root).map_err(io::Error::other)?;
        let rooms = (0..self.disks.len()).filter_map(|disk| self.disk(disk).room_bytes());
        Ok(rooms.fold(below, u64::min))
    }

    /// Passes an operation on, or answers for the control file.
    fn control_write(&self, data: &[u8], reply: ReplyWrite) {
        let Ok(text) = std::str::from_utf8(data) else { return reply.error(Errno::EINVAL) };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Err(error) = self.order_line(line) {
                eprintln!("{error}");
                return reply.error(Errno::EINVAL);
            }
        }
        reply.written(data.len() as u32);
    }
}

fn answer_entry(found: io::Result<FileAttr>, reply: ReplyEntry) {
    match found {
        Ok(facts) => reply.entry(&TTL, &facts, Generation(0)),
        Err(error) => reply.error(errno(&error)),
    }
}

fn answer_attributes(found: io::Result<FileAttr>, reply: ReplyAttr) {
    match found {
        Ok(facts) => reply.attr(&TTL, &facts),
        Err(error) => reply.error(errno(&error)),
    }
}

fn answer_empty(done: io::Result<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

impl Filesystem for FileSystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it the kernel lets an asynchronous direct write wait for the one before.
        if config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).is_err() {
            eprintln!("note: this kernel's FUSE knows no asynchronous direct I/O");
        }
        config.set_max_background(BACKGROUND_MAX).expect("more than none");
        config.set_max_write(WRITE_BYTES_MAX).expect("within what FUSE allows");
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer_entry(self.shared.lookup(parent, name), reply);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attributes(self.shared.facts(number.0), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let shared = &self.shared;
        let set = || {
            if number.0 == CONTROL_NUMBER {
                return shared.facts(number.0);
            }
            if let Some(bytes) = size {
                shared.resize(number.0, bytes)?;
            }
            if let Some(mode) = mode {
                let path = shared.root.join(shared.tree().path(number.0)?);
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            }
            shared.facts(number.0)
        };
        answer_attributes(set(), reply);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        answer_entry(self.shared.mkdir(parent, name, mode), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(self.shared.unlink(parent, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(self.shared.rmdir(parent, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        parent_new: INodeNo,
        name_new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        answer_empty(self.shared.rename((parent, name), (parent_new, name_new)), reply);
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if number.0 == CONTROL_NUMBER {
            return reply.opened(FileHandle(CONTROL_HANDLE), open_flags());
        }
        match self.shared.open(number.0) {
            Ok(handle) => reply.opened(FileHandle(handle), open_flags()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.shared.create(parent, name, mode) {
            Ok((facts, handle)) => {
                reply.created(&TTL, &facts, Generation(0), FileHandle(handle), open_flags());
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = size as usize;
        if handle.0 == CONTROL_HANDLE {
            let numbers = self.shared.numbers();
            let rest = numbers.as_bytes().get(offset as usize..).unwrap_or(&[]);
            return reply.data(&rest[..rest.len().min(bytes)]);
        }
        match self.shared.handle(handle) {
            Ok(handle) => {
                self.shared.take(Job { handle, ask: Ask::Read { offset, bytes, reply } });
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if handle.0 == CONTROL_HANDLE {
            return self.shared.control_write(data, reply);
        }
        // The kernel sets it for files opened with O_DSYNC or O_SYNC, and for single writes with
        // RWF_DSYNC or RWF_SYNC; no FSYNC follows.
        let is_synced = flags.0 & libc::O_DSYNC != 0;
        match self.shared.handle(handle) {
            Ok(handle) => {
                let ask = Ask::Write { offset, data: data.to_vec(), is_synced, reply };
                self.shared.take(Job { handle, ask });
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.tree().close(handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        if handle.0 == CONTROL_HANDLE {
            return reply.ok();
        }
        match self.shared.handle(handle) {
            Ok(handle) => self.shared.take(Job { handle, ask: Ask::Flush { reply } }),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.shared.entries(number.0) {
            Ok(entries) => {
                let rest = entries.iter().enumerate().skip(offset as usize);
                for (at, (number, kind, name)) in rest {
                    if reply.add(INodeNo(*number), at as u64 + 1, *kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.shared.free_bytes() {
            Ok(free) => {
                let blocks = free / BLOCK_BYTES;
                let block = BLOCK_BYTES as u32;
                reply.statfs(blocks.max(1), blocks, blocks, 1 << 16, 1 << 16, block, 255, block);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer_empty(self.shared.allocate(handle.0, offset, length, mode), reply);
    }
}
