//! The disk ring on real files.

use std::path::PathBuf;

use spillway_runtime::Errno;
use spillway_runtime::buffer::{AlignedBuffer, BufferIndex, BufferPool};
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::disk::{
    DiskCompletion, DiskRing, DiskRingOptions, Durability, FileSlot, ReadRequest, ReadSlotRequest,
    WriteRequest, WriteSlotRequest,
};
use spillway_runtime::prewrite::prewrite;
use spillway_runtime::slot_ring::{Slot, SlotMut, SlotRing};
use tempfile::TempDir;

const BLOCK: u32 = 4096;

fn temp_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temp dir")
}

fn ring(entries: u32, buffers: u16) -> DiskRing {
    let options = DiskRingOptions { entries, files_max: 4, name: "test".to_owned() };
    let mut ring = DiskRing::new(options).expect("ring");
    let pool = BufferPool::new(buffers, 4 * BLOCK as usize).expect("pool");
    if let Some(warning) = ring.register_buffers(pool).expect("register") {
        assert!(warning.contains("LimitMEMLOCK"), "{warning}");
    }
    ring
}

fn prewritten(root: &TempDir, name: &str, mode: DirectMode) -> DirectFile {
    let path = root.path().join(name);
    prewrite(&path, 64 * u64::from(BLOCK), &mut |_| {}).expect("prewrite");
    DirectFile::open(&path, mode).expect("open")
}

fn write(file: FileSlot, block: u64, buffer: u16, durability: Durability) -> WriteRequest {
    WriteRequest {
        file,
        file_offset: block * u64::from(BLOCK),
        buffer: BufferIndex(buffer),
        buffer_offset: 0,
        bytes: BLOCK,
        durability,
        token: block,
    }
}

fn read(file: FileSlot, block: u64, buffer: u16) -> ReadRequest {
    ReadRequest {
        file,
        file_offset: block * u64::from(BLOCK),
        buffer: BufferIndex(buffer),
        buffer_offset: BLOCK,
        bytes: BLOCK,
        token: block,
    }
}

/// Waits for everything in flight.
fn finish(ring: &mut DiskRing) -> Vec<DiskCompletion> {
    let mut ended = Vec::new();
    while ring.in_flight() > 0 {
        ring.submit_and_wait(1).expect("submit");
        ring.reap(&mut ended);
    }
    ended.sort_by_key(|completion| completion.token);
    ended
}

#[test]
fn each_durability_writes_what_reads_back() {
    for durability in [Durability::None, Durability::DataSync, Durability::WriteThenFlush] {
        let root = temp_dir();
        let file = prewritten(&root, "log", DirectMode::ReadWrite);
        let mut ring = ring(16, 8);
        let slot = ring.register_file(&file).expect("register");
        for block in 0..8u16 {
            ring.buffer_mut(BufferIndex(block)).fill(block as u8 + 1);
            ring.write(write(slot, u64::from(block), block, durability));
        }
        assert_eq!((ring.in_flight(), ring.room()), (8, 8));
        let ended = finish(&mut ring);
        assert_eq!(ended.len(), 8, "one completion per request: {ended:?}");
        for (token, completion) in ended.iter().enumerate() {
            assert_eq!(*completion, DiskCompletion { token: token as u64, result: Ok(BLOCK) });
        }
        for block in 0..8u16 {
            ring.buffer_mut(BufferIndex(block)).fill(0);
            ring.read(read(slot, u64::from(block), block));
        }
        assert_eq!(finish(&mut ring).len(), 8);
        for block in 0..8u16 {
            let bytes = ring.buffer(BufferIndex(block));
            let (before, at) = (&bytes[..BLOCK as usize], &bytes[BLOCK as usize..][..4096]);
            assert!(before.iter().all(|byte| *byte == 0), "outside the range asked for");
            assert!(at.iter().all(|byte| *byte == block as u8 + 1), "{durability:?} {block}");
        }
    }
}

#[test]
fn failed_write_and_its_flush_are_one_error() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::Read);
    let mut ring = ring(8, 4);
    let slot = ring.register_file(&file).expect("register");
    for durability in [Durability::None, Durability::DataSync, Durability::WriteThenFlush] {
        ring.write(write(slot, 3, 0, durability));
        let ended = finish(&mut ring);
        let expected = DiskCompletion { token: 3, result: Err(Errno(libc::EBADF)) };
        assert_eq!(ended, [expected], "{durability:?}");
        assert!(!ring.buffer_in_flight(BufferIndex(0)));
    }
    // The ring goes on: a read of the same file works.
    ring.read(read(slot, 1, 0));
    assert_eq!(finish(&mut ring), [DiskCompletion { token: 1, result: Ok(BLOCK) }]);
}

#[test]
fn failure_of_one_chain_leaves_the_others_alone() {
    let root = temp_dir();
    let good = prewritten(&root, "good", DirectMode::ReadWrite);
    let bad = prewritten(&root, "bad", DirectMode::Read);
    let mut ring = ring(16, 8);
    let good = ring.register_file(&good).expect("register");
    let bad = ring.register_file(&bad).expect("register");
    for block in 0..8u16 {
        let file = if block % 2 == 0 { good } else { bad };
        ring.write(write(file, u64::from(block), block, Durability::WriteThenFlush));
    }
    for completion in finish(&mut ring) {
        let expected = if completion.token % 2 == 0 { Ok(BLOCK) } else { Err(Errno(libc::EBADF)) };
        assert_eq!(completion.result, expected, "{completion:?}");
    }
}

#[test]
fn misaligned_request_is_an_error_of_the_kernel() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let mut ring = ring(8, 4);
    let slot = ring.register_file(&file).expect("register");
    let mut request = write(slot, 0, 0, Durability::WriteThenFlush);
    request.file_offset = 7;
    ring.write(request);
    let ended = finish(&mut ring);
    assert_eq!(ended, [DiskCompletion { token: 0, result: Err(Errno(libc::EINVAL)) }]);
}

#[test]
fn short_write_is_an_error_and_short_read_is_not() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let mut ring = ring(8, 4);
    let slot = ring.register_file(&file).expect("register");
    // The file ends after block 63: a read of two blocks at 63 gets one.
    let mut request = read(slot, 63, 0);
    request.bytes = 2 * BLOCK;
    ring.read(request);
    assert_eq!(finish(&mut ring), [DiskCompletion { token: 63, result: Ok(BLOCK) }]);
    // A limit on the file size, for a process of its own, makes the kernel cut a write short.
    run_alone("child_short_write", &root);
}

/// Runs one of the ignored tests below in a process of its own, on files in `root`.
fn run_alone(test: &str, root: &TempDir) {
    let program = std::env::current_exe().expect("test binary");
    let output = std::process::Command::new(program)
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env("CHILD_DIRECTORY", root.path())
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

fn child_directory() -> PathBuf {
    std::env::var_os("CHILD_DIRECTORY").expect("run by the parent test").into()
}

#[test]
fn too_little_locked_memory_is_a_warning() {
    run_alone("child_without_locked_memory", &temp_dir());
}

#[test]
#[ignore = "limits the process; run by too_little_locked_memory_is_a_warning"]
fn child_without_locked_memory() {
    let path = child_directory().join("log");
    let file = DirectFile::open(&path, DirectMode::Create).expect("create");
    // Enough for the ring itself, which newer kernels charge too, and not for the buffers.
    let limit = libc::rlimit { rlim_cur: 128 << 10, rlim_max: 128 << 10 };
    // SAFETY: the limit lives through the call. An ordinary user's process is under the limit,
    // the administrator's is not: become nobody, which fails for ordinary users and need not work.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534);
    }
    let options = DiskRingOptions { entries: 4, files_max: 1, name: "log".to_owned() };
    let mut ring = DiskRing::new(options).expect("ring");
    let pool = BufferPool::new(4, 1 << 20).expect("pool");
    let warning = ring.register_buffers(pool).expect("works without").expect("a warning");
    assert!(warning.contains("the log disk") && warning.contains("LimitMEMLOCK"), "{warning}");
    let slot = ring.register_file(&file).expect("register");
    ring.write(write(slot, 0, 0, Durability::WriteThenFlush));
    assert_eq!(finish(&mut ring)[0].result, Ok(BLOCK));
    let options = DiskRingOptions { entries: 4, files_max: 1, name: "log".to_owned() };
    let mut ring = DiskRing::new(options).expect("ring");
    let mut slots = SlotRing::new("log", 4 << 20).expect("map");
    let pool = BufferPool::new(1, BLOCK as usize).expect("pool");
    let warning = ring.register_buffers_and_slots(pool, &slots).expect("works").expect("warns");
    assert!(warning.contains("4198400 bytes") && warning.contains("LimitMEMLOCK"), "{warning}");
    let file = ring.register_file(&file).expect("register");
    ring.write_slot(write_slot(file, 0, &filled(&mut slots, 1, 3), Durability::DataSync));
    assert_eq!(finish(&mut ring)[0].result, Ok(BLOCK));
}

#[test]
#[ignore = "limits the process; run by short_write_is_an_error_and_short_read_is_not"]
fn child_short_write() {
    let path = child_directory().join("limited");
    let file = DirectFile::open(&path, DirectMode::Create).expect("create");
    let limit = libc::rlimit { rlim_cur: u64::from(BLOCK), rlim_max: u64::from(BLOCK) };
    // SAFETY: the limit lives through the call; ignoring a signal is always allowed.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
        assert_ne!(libc::signal(libc::SIGXFSZ, libc::SIG_IGN), libc::SIG_ERR);
    }
    let mut ring = ring(8, 4);
    let slot = ring.register_file(&file).expect("register");
    for durability in [Durability::None, Durability::DataSync, Durability::WriteThenFlush] {
        let mut request = write(slot, 0, 0, durability);
        request.bytes = 2 * BLOCK;
        ring.write(request);
        let ended = finish(&mut ring);
        let expected = DiskCompletion { token: 0, result: Err(Errno::SHORT_TRANSFER) };
        assert_eq!(ended, [expected], "{durability:?}");
    }
}

#[test]
fn full_ring_is_used_over_and_over() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let mut ring = ring(4, 4);
    let slot = ring.register_file(&file).expect("register");
    let (mut begun, mut ended) = (0u64, Vec::new());
    let mut busy = [false; 4];
    while ended.len() < 200 {
        while begun < 200 && ring.room() > 0 {
            let buffer = busy.iter().position(|busy| !busy).expect("as many buffers as entries");
            busy[buffer] = true;
            let mut request = write(slot, begun % 64, buffer as u16, Durability::WriteThenFlush);
            request.token = begun << 8 | buffer as u64;
            ring.write(request);
            begun += 1;
        }
        ring.submit_and_wait(1).expect("submit");
        let seen = ended.len();
        ring.reap(&mut ended);
        for completion in &ended[seen..] {
            assert_eq!(completion.result, Ok(BLOCK));
            busy[(completion.token & 0xff) as usize] = false;
        }
    }
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn plain_buffers_work_too() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let options = DiskRingOptions { entries: 4, files_max: 1, name: "plain".to_owned() };
    let mut ring = DiskRing::new(options).expect("ring");
    ring.attach_buffers(BufferPool::new(2, 4 * BLOCK as usize).expect("pool"));
    let slot = ring.register_file(&file).expect("register");
    ring.buffer_mut(BufferIndex(0)).fill(9);
    ring.write(write(slot, 5, 0, Durability::DataSync));
    assert_eq!(finish(&mut ring)[0].result, Ok(BLOCK));
    let mut buffer = AlignedBuffer::new(BLOCK as usize);
    assert_eq!(file.read_at(&mut buffer, 5 * u64::from(BLOCK)).expect("read"), 4096);
    assert!(buffer.iter().all(|byte| *byte == 9));
}

#[test]
fn files_outlive_their_owner_and_their_slots_are_reused() {
    let root = temp_dir();
    let mut ring = ring(4, 4);
    for round in 0..10u64 {
        let file = prewritten(&root, &format!("segment{round}"), DirectMode::ReadWrite);
        let slot = ring.register_file(&file).expect("register");
        drop(file);
        ring.write(write(slot, round, 0, Durability::WriteThenFlush));
        assert_eq!(finish(&mut ring)[0].result, Ok(BLOCK));
        ring.unregister_file(slot).expect("unregister");
    }
}

#[test]
fn dropping_a_busy_ring_ends_its_writes() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let mut ring = ring(16, 8);
    let slot = ring.register_file(&file).expect("register");
    for block in 0..8u16 {
        ring.buffer_mut(BufferIndex(block)).fill(7);
        ring.write(write(slot, u64::from(block), block, Durability::WriteThenFlush));
    }
    drop(ring);
    let mut buffer = AlignedBuffer::new(8 * BLOCK as usize);
    file.read_at(&mut buffer, 0).expect("read");
    assert!(buffer.iter().all(|byte| *byte == 7), "what was accepted was written");
}

#[test]
fn ring_moves_to_the_thread_that_runs_it() {
    let mut ring = ring(4, 4);
    let moved = move || {
        ring.buffer_mut(BufferIndex(1)).fill(1);
        ring.in_flight()
    };
    let handle = spillway_runtime::thread::spawn("disk", None, moved).expect("spawn");
    assert_eq!(handle.join().expect("join"), 0);
}

#[test]
#[should_panic(expected = "buffer 0 is in flight")]
fn buffer_in_flight_cannot_be_touched() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let mut ring = ring(4, 4);
    let slot = ring.register_file(&file).expect("register");
    ring.write(write(slot, 0, 0, Durability::None));
    ring.buffer_mut(BufferIndex(0)).fill(1);
}

#[test]
#[should_panic(expected = "a read into buffer 1 is in flight")]
fn buffer_being_read_into_cannot_be_seen() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let mut ring = ring(4, 4);
    let slot = ring.register_file(&file).expect("register");
    ring.read(read(slot, 0, 1));
    assert_eq!(ring.buffer(BufferIndex(1)).len(), 0);
}

#[test]
#[should_panic(expected = "file 0 is in use")]
fn file_in_use_cannot_be_unregistered() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let mut ring = ring(4, 4);
    let slot = ring.register_file(&file).expect("register");
    ring.write(write(slot, 0, 0, Durability::None));
    ring.unregister_file(slot).expect("never reached");
}

/// A ring with one small buffer and all of a slot ring registered.
fn slot_ring(entries: u32, blocks: u32) -> (DiskRing, SlotRing) {
    let options = DiskRingOptions { entries, files_max: 4, name: "test".to_owned() };
    let mut ring = DiskRing::new(options).expect("ring");
    let slots = SlotRing::new("test", (blocks * BLOCK) as usize).expect("map");
    let pool = BufferPool::new(2, BLOCK as usize).expect("pool");
    if let Some(warning) = ring.register_buffers_and_slots(pool, &slots).expect("register") {
        assert!(warning.contains("LimitMEMLOCK"), "{warning}");
    }
    (ring, slots)
}

fn filled(slots: &mut SlotRing, blocks: u32, byte: u8) -> Slot {
    let mut slot = slots.reserve((blocks * BLOCK) as usize).expect("room");
    slot.fill(byte);
    slot.freeze()
}

fn write_slot(file: FileSlot, block: u64, slot: &Slot, durability: Durability) -> WriteSlotRequest {
    let file_offset = block * u64::from(BLOCK);
    WriteSlotRequest { file, file_offset, slot: slot.clone(), durability, token: block }
}

fn read_slot(file: FileSlot, block: u64, slot: SlotMut) -> ReadSlotRequest {
    ReadSlotRequest { file, file_offset: block * u64::from(BLOCK), slot, token: block }
}

#[test]
fn slots_are_written_and_read_in_place() {
    for durability in [Durability::None, Durability::DataSync, Durability::WriteThenFlush] {
        let root = temp_dir();
        let file = prewritten(&root, "log", DirectMode::ReadWrite);
        let (mut ring, mut slots) = slot_ring(16, 16);
        let file = ring.register_file(&file).expect("register");
        let mut other = SlotRing::new("not registered", 4 * BLOCK as usize).expect("map");
        let whole = filled(&mut slots, 4, 1);
        // The middle of a slot, one of another ring, one of the heap, and a buffer of the pool.
        let middle = whole.slice(BLOCK as usize..3 * BLOCK as usize);
        ring.write_slot(write_slot(file, 0, &middle, durability));
        ring.write_slot(write_slot(file, 2, &filled(&mut other, 1, 3), durability));
        let heap = Slot::from_vec(vec![4; BLOCK as usize]);
        ring.write_slot(write_slot(file, 3, &heap, durability));
        ring.buffer_mut(BufferIndex(1)).fill(5);
        ring.write(write(file, 4, 1, durability));
        let ended = finish(&mut ring);
        let results: Vec<_> = ended.iter().map(|ended| ended.result).collect();
        assert_eq!(results, [Ok(2 * BLOCK), Ok(BLOCK), Ok(BLOCK), Ok(BLOCK)]);
        assert!(ring.take_slot(0).is_none(), "only reads give a slot back");
        let slot = slots.reserve(2 * BLOCK as usize).expect("room");
        let address = slot.address();
        ring.read_slot(read_slot(file, 1, slot));
        ring.read_slot(read_slot(file, 3, SlotMut::heap(2 * BLOCK as usize)));
        assert!(ring.take_slot(1).is_none(), "it is the kernel's");
        assert_eq!(finish(&mut ring).len(), 2);
        let (heap, slot) = (ring.take_slot(3).expect("read"), ring.take_slot(1).expect("read"));
        assert_eq!((slot.address(), slot.len()), (address, 2 * BLOCK as usize));
        for (slot, bytes) in [(slot, [1, 3]), (heap, [4, 5])] {
            let (first, second) = slot.split_at(BLOCK as usize);
            assert!(first.iter().all(|byte| *byte == bytes[0]), "{durability:?}");
            assert!(second.iter().all(|byte| *byte == bytes[1]), "{durability:?}");
        }
    }
}

#[test]
fn slot_lives_until_its_write_has_ended() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let (mut ring, mut slots) = slot_ring(16, 8);
    let slot = ring.register_file(&file).expect("register");
    for block in 0..8u64 {
        let bytes = filled(&mut slots, 1, block as u8 + 1);
        ring.write_slot(write_slot(slot, block, &bytes, Durability::WriteThenFlush));
    }
    ring.submit().expect("submit");
    // Nobody but the ring has them, and it has not reaped: no byte may be handed out again.
    assert!(slots.reserve(1).is_none());
    assert_eq!(finish(&mut ring).len(), 8);
    assert_eq!(slots.reserve(8 * BLOCK as usize).expect("all is free").len(), 8 * BLOCK as usize);
    let mut buffer = AlignedBuffer::new(8 * BLOCK as usize);
    file.read_at(&mut buffer, 0).expect("read");
    for (block, bytes) in buffer.chunks(BLOCK as usize).enumerate() {
        assert!(bytes.iter().all(|byte| usize::from(*byte) == block + 1), "block {block}");
    }
}

#[test]
fn failed_and_short_slot_requests_end_too() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::Read);
    let (mut ring, mut slots) = slot_ring(8, 8);
    let file = ring.register_file(&file).expect("register");
    let bytes = filled(&mut slots, 1, 1);
    for durability in [Durability::None, Durability::DataSync, Durability::WriteThenFlush] {
        ring.write_slot(write_slot(file, 3, &bytes, durability));
        let expected = DiskCompletion { token: 3, result: Err(Errno(libc::EBADF)) };
        assert_eq!(finish(&mut ring), [expected], "{durability:?}");
    }
    let slot = slots.reserve(2 * BLOCK as usize).expect("room");
    ring.read_slot(read_slot(file, 63, slot));
    assert_eq!(finish(&mut ring), [DiskCompletion { token: 63, result: Ok(BLOCK) }]);
    let slot = ring.take_slot(63).expect("ended");
    let mut request = read_slot(file, 0, slot);
    request.file_offset = 7;
    ring.read_slot(request);
    let expected = DiskCompletion { token: 0, result: Err(Errno(libc::EINVAL)) };
    assert_eq!(finish(&mut ring), [expected]);
    assert!(ring.take_slot(0).is_some() && ring.take_slot(0).is_none());
}

#[test]
fn slots_of_a_dropped_ring_are_written_and_free() {
    let root = temp_dir();
    let file = prewritten(&root, "log", DirectMode::ReadWrite);
    let (mut ring, mut slots) = slot_ring(16, 8);
    let slot = ring.register_file(&file).expect("register");
    let bytes = filled(&mut slots, 7, 9);
    ring.write_slot(write_slot(slot, 0, &bytes, Durability::DataSync));
    ring.read_slot(read_slot(slot, 8, slots.reserve(BLOCK as usize).expect("room")));
    drop(bytes);
    assert!(slots.reserve(1).is_none());
    drop(ring);
    assert!(slots.reserve(8 * BLOCK as usize).is_some(), "the ring let go of both");
    let mut buffer = AlignedBuffer::new(8 * BLOCK as usize);
    file.read_at(&mut buffer, 0).expect("read");
    assert!(buffer[..7 * BLOCK as usize].iter().all(|byte| *byte == 9));
}
