//! The file system itself: what is durable when, and what disks do as they are told.
#![expect(clippy::disallowed_methods, reason = "tests use files as programs do")]

use std::fs::{File, OpenOptions};
use std::io::{Error, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use spillway_rigs::RigError;
use spillway_rigs::disk::{Counters, Effect, Fault, Operation, Part, When};
use spillway_rigs::mount::Mount;
use spillway_rigs::order::Order;
use spillway_rigs::sectors::Keep;

const BLOCK: usize = 4096;

/// A mount, unless the machine has no FUSE.
fn mounted(test: &str, disks: usize) -> Option<Mount> {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    match Mount::new(Some(parent), disks, 7) {
        Ok(mount) => Some(mount),
        Err(error @ RigError::NoFuse(_)) => {
            eprintln!("{test}: skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// One block, aligned for direct I/O.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

fn block(byte: u8) -> Box<Block> {
    Box::new(Block([byte; BLOCK]))
}

fn redo(mount: &Mount) -> PathBuf {
    mount.path().join("segment-00000.log")
}

fn direct(path: &Path, more: i32) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).custom_flags(libc::O_DIRECT | more);
    options.open(path).expect("opened for direct I/O")
}

/// A file of so many blocks of zeros that are durable.
fn zeros(mount: &Mount, blocks: usize) -> File {
    let file = direct(&redo(mount), 0);
    for at in 0..blocks {
        file.write_all_at(&block(0).0, (at * BLOCK) as u64).expect("written");
    }
    file.sync_data().expect("flushed");
    file
}

/// What the file holds, by its first bytes of blocks, read anew.
fn blocks(mount: &Mount) -> Vec<u8> {
    let bytes = std::fs::read(redo(mount)).expect("read");
    bytes.chunks(BLOCK).map(|block| block[0]).collect()
}

fn order(mount: &Mount, order: Order) {
    mount.disks().order(0, order).expect("ordered");
}

fn counters(mount: &Mount) -> Counters {
    mount.disks().counters(0)
}

fn power_cycle(mount: &Mount, keep: Keep) {
    order(mount, Order::Cut);
    order(mount, Order::PowerOn(keep));
}

fn fault(operation: Operation, effect: Effect, when: When) -> Order {
    Order::Fault(Fault { operation, part: Some(Part::Segments), effect, when })
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn a_power_cut_takes_what_was_not_flushed() {
    let Some(mount) = mounted("a_power_cut_takes_what_was_not_flushed", 1) else { return };
    let file = zeros(&mount, 4);
    file.write_all_at(&block(1).0, 0).expect("written");
    file.sync_data().expect("flushed");
    file.write_all_at(&block(2).0, BLOCK as u64).expect("written");
    assert_eq!(blocks(&mount), [1, 2, 0, 0], "a reader sees what is in the cache");
    power_cycle(&mount, Keep::None);
    assert_eq!(blocks(&mount), [1, 0, 0, 0]);
    assert_eq!(counters(&mount).sectors_lost, 8);
    // What was opened before the cut belongs to a process that is dead.
    assert_eq!(errno(file.write_all_at(&block(3).0, 0)), Some(libc::EIO));
    let file = direct(&redo(&mount), 0);
    file.write_all_at(&block(3).0, 0).expect("written");
    file.sync_all().expect("flushed");
    file.write_all_at(&block(4).0, BLOCK as u64).expect("written");
    power_cycle(&mount, Keep::All);
    assert_eq!(blocks(&mount), [3, 4, 0, 0]);
}

#[test]
fn any_sectors_may_outlive_a_power_cut() {
    let Some(mount) = mounted("any_sectors_may_outlive_a_power_cut", 1) else { return };
    zeros(&mount, 4);
    let mut torn = 0;
    for round in 1..=20 {
        let file = direct(&redo(&mount), 0);
        file.write_all_at(&block(round).0, 0).expect("written");
        power_cycle(&mount, Keep::Some(128));
        let bytes = std::fs::read(redo(&mount)).expect("read");
        let new: Vec<bool> =
            bytes[..BLOCK].chunks(512).map(|sector| sector == [round; 512]).collect();
        torn += u32::from(new.contains(&true) && new.contains(&false));
    }
    assert!(torn >= 10, "{torn} of 20 writes of a block were torn");
    let Counters { sectors_lost, sectors_kept, .. } = counters(&mount);
    assert_eq!(sectors_lost + sectors_kept, 20 * 8);
}

#[test]
fn o_dsync_is_durable_without_a_flush() {
    let Some(mount) = mounted("o_dsync_is_durable_without_a_flush", 1) else { return };
    zeros(&mount, 4);
    let before = counters(&mount);
    let plain = direct(&redo(&mount), 0);
    plain.write_all_at(&block(1).0, 0).expect("written");
    let synced = direct(&redo(&mount), libc::O_DSYNC);
    synced.write_all_at(&block(2).0, BLOCK as u64).expect("written");
    let after = counters(&mount);
    assert_eq!(after.writes_synced - before.writes_synced, 1, "the write itself says so");
    assert_eq!(after.flushes, before.flushes, "and no FSYNC comes behind it");
    power_cycle(&mount, Keep::None);
    assert_eq!(blocks(&mount), [0, 2, 0, 0], "and it makes nothing else durable");
}

#[test]
fn pwritev2_with_rwf_dsync_is_durable_alone() {
    let Some(mount) = mounted("pwritev2_with_rwf_dsync_is_durable_alone", 1) else { return };
    let file = zeros(&mount, 4);
    let before = counters(&mount);
    let write = |byte: u8, at: usize, flags: libc::c_int| {
        let data = block(byte);
        let vector = libc::iovec { iov_base: data.0.as_ptr().cast_mut().cast(), iov_len: BLOCK };
        let offset = (at * BLOCK) as libc::off_t;
        // SAFETY: the vector names one block that outlives the call.
        let written = unsafe { libc::pwritev2(file.as_raw_fd(), &vector, 1, offset, flags) };
        assert_eq!(written, BLOCK as isize, "{}", Error::last_os_error());
    };
    write(1, 0, 0);
    write(2, 1, libc::RWF_DSYNC);
    write(3, 2, libc::RWF_SYNC);
    let after = counters(&mount);
    assert_eq!(after.writes_synced - before.writes_synced, 2);
    assert_eq!(after.flushes, before.flushes);
    power_cycle(&mount, Keep::None);
    assert_eq!(blocks(&mount), [0, 2, 3, 0]);
}

/// Submits entries and returns their results in the order of their numbers.
fn ring(entries: &[squeue::Entry]) -> Vec<i32> {
    let mut ring = IoUring::new(8).expect("a ring");
    // SAFETY: the buffers live in the caller until all completions are there.
    unsafe { ring.submission().push_multiple(entries) }.expect("room");
    ring.submit_and_wait(entries.len()).expect("submitted");
    let mut ended: Vec<(u64, i32)> =
        ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
    ended.sort_unstable();
    ended.into_iter().map(|one| one.1).collect()
}

#[test]
fn a_ring_writes_durably_both_ways() {
    let Some(mount) = mounted("a_ring_writes_durably_both_ways", 1) else { return };
    let file = zeros(&mount, 4);
    let fd = types::Fd(file.as_raw_fd());
    let data = [block(1), block(2), block(3)];
    let write = |at: usize| {
        let start = data[at].0.as_ptr();
        opcode::Write::new(fd, start, BLOCK as u32).offset((at * BLOCK) as u64)
    };
    let before = counters(&mount);
    let plain = write(0).build().user_data(1);
    assert_eq!(ring(&[plain]), [BLOCK as i32]);
    let synced = write(1).rw_flags(libc::RWF_DSYNC).build().user_data(1);
    assert_eq!(ring(&[synced]), [BLOCK as i32]);
    let middle = counters(&mount);
    assert_eq!(middle.writes_synced - before.writes_synced, 1);
    assert_eq!(middle.flushes, before.flushes);
    power_cycle(&mount, Keep::None);
    assert_eq!(blocks(&mount), [0, 2, 0, 0]);
    let file = direct(&redo(&mount), 0);
    let fd = types::Fd(file.as_raw_fd());
    let write = opcode::Write::new(fd, data[2].0.as_ptr(), BLOCK as u32).offset(0).build();
    let flush = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
    let linked = [write.flags(squeue::Flags::IO_LINK).user_data(1), flush.user_data(2)];
    assert_eq!(ring(&linked), [BLOCK as i32, 0]);
    let after = counters(&mount);
    assert_eq!((after.flushes - middle.flushes, after.writes_synced), (1, middle.writes_synced));
    power_cycle(&mount, Keep::None);
    assert_eq!(blocks(&mount), [3, 2, 0, 0]);
}

#[test]
fn errors_come_when_they_were_ordered() {
    let Some(mount) = mounted("errors_come_when_they_were_ordered", 1) else { return };
    let file = zeros(&mount, 4);
    let write = |at: usize| errno(file.write_all_at(&block(9).0, (at * BLOCK) as u64));
    order(&mount, fault(Operation::Write, Effect::Error(libc::EIO), When::Nth(2)));
    assert_eq!([write(0), write(1), write(2)], [None, Some(libc::EIO), None]);
    order(&mount, Order::Heal);
    order(&mount, fault(Operation::Flush, Effect::Error(libc::EIO), When::From(1)));
    assert_eq!(errno(file.sync_data()), Some(libc::EIO));
    assert_eq!(errno(file.sync_data()), Some(libc::EIO));
    order(&mount, Order::Heal);
    order(&mount, fault(Operation::Read, Effect::Error(libc::EIO), When::Nth(1)));
    assert_eq!(errno(std::fs::read(redo(&mount))), Some(libc::EIO));
    assert!(std::fs::read(redo(&mount)).is_ok());
    assert_eq!(counters(&mount).faults, 4);
}

#[test]
fn a_torn_write_leaves_its_first_sectors_for_good() {
    let Some(mount) = mounted("a_torn_write_leaves_its_first_sectors_for_good", 1) else { return };
    let file = zeros(&mount, 4);
    order(&mount, fault(Operation::Write, Effect::Torn(3), When::Nth(1)));
    assert_eq!(errno(file.write_all_at(&block(5).0, 0)), Some(libc::EIO));
    power_cycle(&mount, Keep::None);
    let bytes = std::fs::read(redo(&mount)).expect("read");
    assert!(bytes[..3 * 512].iter().all(|byte| *byte == 5));
    assert!(bytes[3 * 512..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_lying_disk_and_a_flipped_bit() {
    let Some(mount) = mounted("a_lying_disk_and_a_flipped_bit", 1) else { return };
    let file = zeros(&mount, 4);
    order(&mount, fault(Operation::Flush, Effect::Lie, When::From(1)));
    file.write_all_at(&block(1).0, 0).expect("written");
    file.sync_data().expect("it says so");
    power_cycle(&mount, Keep::None);
    assert_eq!(blocks(&mount), [0; 4]);
    order(&mount, Order::Heal);
    order(&mount, fault(Operation::Read, Effect::FlippedBit, When::Nth(1)));
    let bits = |bytes: Vec<u8>| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
    assert_eq!(bits(std::fs::read(redo(&mount)).expect("read")), 1);
    assert_eq!(bits(std::fs::read(redo(&mount)).expect("read")), 0);
}

#[test]
fn a_full_disk_refuses_growth_alone() {
    let Some(mount) = mounted("a_full_disk_refuses_growth_alone", 1) else { return };
    let file = zeros(&mount, 2);
    order(&mount, Order::Room(Some(BLOCK as u64)));
    let free = spillway_runtime::file::free_bytes(&mount.path()).expect("told");
    assert_eq!(free, BLOCK as u64);
    file.write_all_at(&block(1).0, BLOCK as u64).expect("it is there already");
    file.write_all_at(&block(1).0, 2 * BLOCK as u64).expect("as much as there is room for");
    let more = file.write_all_at(&block(1).0, 3 * BLOCK as u64);
    assert_eq!(errno(more), Some(libc::ENOSPC));
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    let reserved = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 5 * BLOCK as libc::off_t) };
    assert_eq!((reserved, Error::last_os_error().raw_os_error()), (-1, Some(libc::ENOSPC)));
    drop(file);
    std::fs::remove_file(redo(&mount)).expect("removed");
    zeros(&mount, 3);
}

#[test]
fn one_slow_disk_holds_up_no_other() {
    let Some(mount) = mounted("one_slow_disk_holds_up_no_other", 2) else { return };
    let [slow, quick] = [1, 2].map(|node| {
        let home = mount.path().join(format!("node-{node}"));
        std::fs::create_dir_all(&home).expect("made");
        direct(&home.join("segment-00000.log"), 0)
    });
    order(&mount, Order::Stall);
    let stalled = std::thread::spawn(move || {
        slow.write_all_at(&block(1).0, 0).expect("in the end");
        Instant::now()
    });
    for at in 0..50 {
        quick.write_all_at(&block(1).0, at * BLOCK as u64).expect("at once");
    }
    // Long enough to be taken up.
    std::thread::sleep(Duration::from_millis(30));
    assert!(!stalled.is_finished(), "nothing is answered");
    let resumed = Instant::now();
    order(&mount, Order::Resume);
    assert!(stalled.join().expect("written") >= resumed);
    order(&mount, Order::Slow(Duration::from_millis(20)));
    let home = mount.path().join("node-1");
    let file = direct(&home.join("segment-00001.log"), 0);
    let began = Instant::now();
    for _ in 0..3 {
        file.write_all_at(&block(1).0, 0).expect("slowly");
    }
    assert!(began.elapsed() >= Duration::from_millis(60));
}

#[test]
fn a_write_that_the_cut_hits_may_be_torn_and_is_not_answered() {
    let Some(mount) = mounted("a_write_that_the_cut_hits_may_be_torn_and_is_not_answered", 1)
    else {
        return;
    };
    let file = zeros(&mount, 4);
    order(&mount, Order::Cut);
    assert_eq!(errno(file.write_all_at(&block(6).0, 0)), Some(libc::EIO));
    assert_eq!(errno(file.sync_data()), Some(libc::EIO));
    order(&mount, Order::PowerOn(Keep::Some(128)));
    let bytes = std::fs::read(redo(&mount)).expect("read");
    let new = bytes[..BLOCK].chunks(512).filter(|sector| **sector == [6; 512]).count();
    assert!((1..8).contains(&new), "{new} of 8 sectors, with this seed");
    assert_eq!(counters(&mount).unanswered, 2);
}

#[test]
fn names_are_files_of_the_directory_below() {
    let Some(mount) = mounted("names_are_files_of_the_directory_below", 1) else { return };
    let root = mount.path();
    let below = mount.below();
    std::fs::create_dir_all(root.join("a/b")).expect("made");
    std::fs::write(root.join("a/b/note"), "text").expect("written");
    assert_eq!(std::fs::read(below.join("a/b/note")).expect("read"), b"text");
    std::fs::rename(root.join("a/b"), root.join("c")).expect("renamed");
    let mut note = OpenOptions::new().append(true).open(root.join("c/note")).expect("opened");
    note.write_all(b" and more").expect("written");
    assert_eq!(std::fs::read_to_string(root.join("c/note")).expect("read"), "text and more");
    let names = |path: &Path| {
        let entries = std::fs::read_dir(path).expect("listed");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("one").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&root), ["a", "c"]);
    // An open file outlives its name.
    std::fs::remove_file(root.join("c/note")).expect("removed");
    note.write_all(b"!").expect("written");
    assert!(File::open(root.join("c/note")).is_err());
    std::fs::remove_dir(root.join("c")).expect("removed");
    assert_eq!(names(&below), ["a"]);
}

#[test]
fn the_control_file_takes_orders() {
    let Some(mount) = mounted("the_control_file_takes_orders", 1) else { return };
    let file = zeros(&mount, 1);
    let control = mount.path().join(".disks");
    let tell = |line: &str| {
        let mut control = OpenOptions::new().write(true).open(&control).expect("opened");
        control.write_all(line.as_bytes())
    };
    tell("1 fault write all eio nth=1\n").expect("understood");
    assert_eq!(errno(file.write_all_at(&block(1).0, 0)), Some(libc::EIO));
    assert_eq!(errno(tell("1 explode\n")), Some(libc::EINVAL));
    assert_eq!(errno(tell("2 cut\n")), Some(libc::EINVAL));
    let numbers = std::fs::read_to_string(&control).expect("read");
    assert!(numbers.contains("disk 1:") && numbers.contains("faults: 1"), "{numbers}");
}

#[test]
fn nothing_is_left_behind() {
    let Some(mount) = mounted("nothing_is_left_behind", 1) else { return };
    let directory = mount.beside().to_owned();
    // Somebody still has a file open.
    let file = zeros(&mount, 1);
    drop(mount);
    assert!(!directory.exists());
    let mounts = std::fs::read_to_string("/proc/mounts").expect("read");
    assert!(!mounts.contains(&*directory.to_string_lossy()), "{mounts}");
    drop(file);
}
