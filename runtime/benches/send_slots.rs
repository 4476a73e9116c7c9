//! Whether slots should leave by plain sendmsg or by its zero-copy form: messages of a 128-byte
//! header and a 64 KiB body over one loopback connection, one send in flight, as the network ring
//! does it. Five runs of each, interleaved.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use io_uring::{IoUring, cqueue, opcode, types};
use spillway_runtime::clock::{monotonic_now, thread_cpu_nanos};
use spillway_runtime::placement::{CpuId, cpus_allowed};
use spillway_runtime::slot_ring::{Slot, SlotRing};
use spillway_runtime::thread;

const HEADER_BYTES: usize = 128;
const BODY_BYTES: usize = 64 * 1024;
const MESSAGES: usize = 40_000;
/// Bodies that the kernel may hold at once.
const BODIES: usize = 32;
const RUNS: usize = 5;
/// IORING_SEND_ZC_REPORT_USAGE: the notification says whether the kernel copied after all.
const REPORT_USAGE: u16 = 1 << 3;
const FLAGS: u32 = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    ZeroCopy,
}

#[derive(Clone, Copy, Default)]
struct Figures {
    messages_per_second: f64,
    sender_nanos: f64,
    receiver_nanos: f64,
    copied_share: f64,
}

/// One message as the kernel wants it. Stays in place while its send is in flight.
struct Message {
    header: Box<[u8; HEADER_BYTES]>,
    body: Slot,
    pieces: Box<[libc::iovec; 2]>,
    message: Box<libc::msghdr>,
}

impl Message {
    fn new(slots: &mut SlotRing) -> Message {
        let mut body = slots.reserve(BODY_BYTES).expect("room");
        body.fill(7);
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Message {
            header: Box::new([1; HEADER_BYTES]),
            body: body.freeze(),
            pieces: Box::new([empty; 2]),
            // SAFETY: all-zero is a valid message header.
            message: Box::new(unsafe { std::mem::zeroed() }),
        }
    }

    fn prepare(&mut self, sent: usize) -> *const libc::msghdr {
        let head = sent.min(HEADER_BYTES);
        for (piece, rest) in
            self.pieces.iter_mut().zip([&self.header[head..], &self.body[sent - head..]])
        {
            *piece = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
        }
        self.message.msg_iov = self.pieces.as_mut_ptr();
        self.message.msg_iovlen = 2;
        &raw const *self.message
    }
}

struct Sender {
    ring: IoUring,
    messages: Vec<Message>,
    form: Form,
    /// Sends of each message whose memory the kernel still holds.
    held: Vec<u32>,
    notified: u64,
    copied: u64,
}

impl Sender {
    fn new(form: Form) -> Sender {
        let mut slots = SlotRing::new("bodies", BODIES * BODY_BYTES).expect("map");
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(64)
            .expect("an io_uring");
        let messages = (0..BODIES).map(|_| Message::new(&mut slots)).collect();
        Sender { ring, messages, form, held: vec![0; BODIES], notified: 0, copied: 0 }
    }

    /// Takes completions until there was one of a send; its result.
    fn wait(&mut self, is_send_wanted: bool) -> usize {
        loop {
            let mut sent = None;
            for entry in self.ring.completion() {
                if cqueue::notif(entry.flags()) {
                    self.held[entry.user_data() as usize] -= 1;
                    self.notified += 1;
                    self.copied += u64::from(entry.result() != 0);
                    continue;
                }
                assert!(entry.result() > 0, "a send failed: {}", entry.result());
                sent = Some(entry.result() as usize);
                if !cqueue::more(entry.flags()) {
                    self.held[entry.user_data() as usize] -= 1;
                }
            }
            if sent.is_some() || !is_send_wanted {
                return sent.unwrap_or(0);
            }
            self.ring.submit_and_wait(1).expect("enter");
        }
    }

    fn send(&mut self, fd: types::Fd, number: usize) {
        while self.held[number] > 0 {
            self.ring.submit_and_wait(1).expect("enter");
            self.wait(false);
        }
        let mut sent = 0;
        while sent < HEADER_BYTES + BODY_BYTES {
            let message = self.messages[number].prepare(sent);
            let entry = match self.form {
                Form::Plain => opcode::SendMsg::new(fd, message).flags(FLAGS).build(),
                Form::ZeroCopy => {
                    opcode::SendMsgZc::new(fd, message).ioprio(REPORT_USAGE).flags(FLAGS).build()
                }
            };
            self.held[number] += 1;
            // SAFETY: the message stays in place until `held` says that the kernel is done.
            unsafe { self.ring.submission().push(&entry.user_data(number as u64)) }.expect("room");
            sent += self.wait(true);
        }
    }
}

fn send_all(stream: &TcpStream, form: Form) -> (u64, f64) {
    let mut sender = Sender::new(form);
    let start = thread_cpu_nanos();
    for message in 0..MESSAGES {
        sender.send(types::Fd(stream.as_raw_fd()), message % BODIES);
    }
    while sender.held.iter().any(|held| *held > 0) {
        sender.ring.submit_and_wait(1).expect("enter");
        sender.wait(false);
    }
    let share = sender.copied as f64 / sender.notified.max(1) as f64;
    (thread_cpu_nanos() - start, share)
}

fn receive_all(mut stream: TcpStream) -> u64 {
    let mut buffer = vec![0; BODY_BYTES];
    let start = thread_cpu_nanos();
    let mut rest = MESSAGES * (HEADER_BYTES + BODY_BYTES);
    while rest > 0 {
        let bytes = stream.read(&mut buffer).expect("read");
        assert!(bytes > 0, "the stream ended early");
        rest -= bytes;
    }
    thread_cpu_nanos() - start
}

fn run(form: Form, sender_cpu: CpuId, receiver_cpu: CpuId) -> Figures {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
    stream.set_nodelay(true).expect("set");
    let (peer, _) = listener.accept().expect("accept");
    let start = monotonic_now();
    let receiver = thread::spawn("receiver", Some(receiver_cpu), move || receive_all(peer));
    let receiver = receiver.expect("spawn");
    let sender = thread::spawn("sender", Some(sender_cpu), move || send_all(&stream, form));
    let (sender_nanos, copied_share) = sender.expect("spawn").join().expect("sender");
    let receiver_nanos = receiver.join().expect("receiver");
    let nanos = monotonic_now().saturating_nanos_since(start);
    Figures {
        messages_per_second: MESSAGES as f64 * 1e9 / nanos as f64,
        sender_nanos: sender_nanos as f64 / MESSAGES as f64,
        receiver_nanos: receiver_nanos as f64 / MESSAGES as f64,
        copied_share,
    }
}

fn median(runs: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let cpus = cpus_allowed().expect("affinity");
    let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
    let (mut plain, mut zero_copy) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        plain.push(run(Form::Plain, first, last));
        zero_copy.push(run(Form::ZeroCopy, first, last));
    }
    for (name, runs) in [("SENDMSG", &plain), ("SENDMSG_ZC", &zero_copy)] {
        println!(
            "{name:10}: {:7.0} messages/s, {:6.0} ns CPU of the sender and {:6.0} ns of the \
             receiver per message, {:3.0} % copied after all",
            median(runs, |figures| figures.messages_per_second),
            median(runs, |figures| figures.sender_nanos),
            median(runs, |figures| figures.receiver_nanos),
            median(runs, |figures| figures.copied_share) * 100.0,
        );
    }
}
