//! The network ring of one thread.
//!
//! One io_uring (single issuer, deferred task work) carries all of a thread's connections:
//! multishot accept, multishot receive into one shared ring of buffers, and one send in flight per
//! connection. Framed connections ([`TcpRing::set_framed`]) receive exact lengths into slots of
//! their owner, and any connection can send slots ([`TcpRing::send_slots`]), both without a copy
//! of the bytes outside of the kernel. [`TcpRing::turn`] is the thread's only place to sleep;
//! other descriptors (a [`crate::disk::DiskRing`], a signalfd) are watched by the same ring, and
//! other threads wake it by a [`RingWaker`] or from their own ring by [`TcpRing::wake_ring`].
//!
//! What holds: `Closed` is told exactly once per connection, after the last completion that could
//! use its memory, and nothing about the connection is told later. A steady state allocates
//! nothing but the headers of framed connections. Received bytes of one connection arrive in order.

mod complete;
mod connection;
mod framed;
mod outgoing;
mod receive;
mod socket;
mod waker;

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};

use crate::disk::setup_error;
use crate::error::{Errno, RuntimeError};
use crate::slot_ring::SlotMut;
use complete::{Completion, Kind, user_data};
use connection::{ConnectionTable, State};
use outgoing::Outgoing;
use receive::ReceivePool;
use socket::RawAddress;

pub use framed::{HEADER_BYTES_MAX, HeaderBytes};
pub use receive::ReceivedBuffer;
pub use waker::RingWaker;

/// What a [`TcpRing`] is made for.
#[derive(Clone, Copy, Debug)]
pub struct TcpRingOptions {
    /// Submissions per turn without an extra system call.
    pub entries: u32,
    /// Receive buffers, a power of two up to 32,768.
    pub receive_buffers: u16,
    /// Bytes of each.
    pub receive_buffer_bytes: u32,
    /// Connections at once; more are closed when they come.
    pub connections_max: u32,
}

/// A connection. The slot's next connection has another generation, so an old id reaches nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// Slot.
    pub index: u32,
    /// How often the slot was used before, wrapping.
    pub generation: u32,
}

/// A listening socket of one [`TcpRing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(u32);

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// [`TcpRing::close`] or [`TcpRing::close_after_send`].
    Local,
    /// The other side closed.
    Peer,
    /// The other side is gone without closing, or refused what was sent.
    Reset,
    /// It never came about.
    ConnectFailed(Errno),
    /// Any other error.
    Failed(Errno),
}

/// What happened.
#[derive(Debug)]
pub enum TcpEvent {
    /// Somebody connected.
    Accepted {
        /// To which socket.
        listener: ListenerId,
        /// The new connection.
        connection: ConnectionId,
        /// From where.
        peer: SocketAddr,
    },
    /// A connection begun by [`TcpRing::connect`] stands.
    Connected {
        /// Which.
        connection: ConnectionId,
    },
    /// Bytes arrived. Give the buffer back with [`TcpRing::release`].
    Received {
        /// On which connection.
        connection: ConnectionId,
        /// The bytes.
        buffer: ReceivedBuffer,
    },
    /// A header arrived on a framed connection, which waits to be told what comes next:
    /// [`TcpRing::receive_header`] or [`TcpRing::receive_body`].
    Header {
        /// On which connection.
        connection: ConnectionId,
        /// The bytes.
        header: HeaderBytes,
    },
    /// The body that a framed connection was told to receive arrived. It waits again.
    Body {
        /// On which connection.
        connection: ConnectionId,
        /// The slot, all of it filled.
        slot: SlotMut,
    },
    /// A connection is gone. Its last event.
    Closed {
        /// Which.
        connection: ConnectionId,
        /// Why.
        reason: CloseReason,
    },
    /// A watched descriptor is readable. At most once per turn and watch. Read it empty: only what
    /// comes after the next turn begins is told again for sure.
    Ready {
        /// The token of the watch.
        token: u64,
    },
    /// A waker or another ring woke this one. At most once per turn.
    Woken,
}

/// How long a turn may sleep if nothing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Not,
    /// So many nanoseconds.
    For(u64),
    /// Until something happens.
    Forever,
}

/// Counts of rare things, since the ring was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpStatistics {
    /// Connections closed at once because the table was full.
    pub connections_refused: u64,
    /// Accepts that failed for lack of descriptors or memory, to be retried.
    pub accepts_failed: u64,
    /// Receives that stopped because all buffers were taken, to be resumed.
    pub receives_starved: u64,
    /// Messages to other rings that did not arrive, because the ring is gone or full.
    pub wakes_failed: u64,
    /// Entries into the kernel.
    pub enters: u64,
}

struct Listener {
    socket: Option<OwnedFd>,
    is_closing: bool,
    /// Of the headers that its connections receive, if they are framed.
    header_bytes: Option<usize>,
}

struct Watch {
    fd: RawFd,
    token: u64,
    is_active: bool,
    /// Turn of the last `Ready`.
    turn_told: u64,
}

/// How long accepting rests after it failed for lack of descriptors.
const ACCEPT_RETRY_NANOS: u32 = 50_000_000;

/// Starved connections that resume at least in one turn, if there is any buffer.
const STARVED_RESUMED_MIN: usize = 32;

/// See the module. Bound to the thread that made it.
pub struct TcpRing {
    ring: IoUring,
    receive: ReceivePool,
    connections: ConnectionTable,
    listeners: Vec<Listener>,
    watches: Vec<Watch>,
    waker: RingWaker,
    /// Where the kernel puts the count of wakes.
    waker_bytes: Box<[u8; 8]>,
    retry_time: Box<types::Timespec>,
    /// Connections that came about in the last turn, by slot. They receive from the next one on,
    /// so that their owner can say first how.
    fresh: Vec<u32>,
    /// Connections with bytes to send and no send in flight, by slot.
    dirty: Vec<u32>,
    /// Connections whose receive stopped for lack of buffers, by slot.
    starved: Vec<u32>,
    /// Completions taken from the kernel and not yet looked at.
    completions: Vec<Completion>,
    /// Events that the next turn tells.
    events: Vec<TcpEvent>,
    /// Operations that still owe a completion.
    operations: u32,
    turn: u64,
    turn_woken: u64,
    is_ending: bool,
    statistics: TcpStatistics,
    /// The kernel accepts submissions of the creating thread only.
    _not_send: PhantomData<*const ()>,
}

impl TcpRing {
    /// Creates the ring for the calling thread, which alone can use it.
    ///
    /// # Errors
    /// Fails if the kernel refuses; the error says what to change.
    ///
    /// # Panics
    /// If an option is zero, `receive_buffers` no power of two, or `connections_max` above 2^24.
    pub fn new(options: TcpRingOptions) -> Result<TcpRing, RuntimeError> {
        let TcpRingOptions { entries, receive_buffers, receive_buffer_bytes, connections_max } =
            options;
        assert!((1..=32_768).contains(&entries), "{entries} entries");
        assert!((1..=1 << 24).contains(&connections_max), "{connections_max} connections");
        let completions = (entries * 2 + u32::from(receive_buffers)).next_power_of_two();
        let ring: IoUring = IoUring::builder()
            .dontfork()
            .setup_clamp()
            .setup_cqsize(completions)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .build(entries.next_power_of_two())
            .map_err(|error| setup_error(&error, "an io_uring with DEFER_TASKRUN"))?;
        let receive = ReceivePool::new(receive_buffers, receive_buffer_bytes)?;
        receive.register(&ring)?;
        let bytes = u64::from(connections_max) * size_of::<connection::Connection>() as u64;
        let connections = ConnectionTable::new(connections_max).map_err(|_| {
            let errno = Errno(libc::ENOMEM);
            RuntimeError::MemoryExhausted { what: "the connection table", bytes, errno }
        })?;
        let mut made = TcpRing {
            ring,
            receive,
            connections,
            listeners: Vec::new(),
            watches: Vec::new(),
            waker: RingWaker::new()?,
            waker_bytes: Box::new([0; 8]),
            retry_time: Box::new(types::Timespec::new().nsec(ACCEPT_RETRY_NANOS)),
            fresh: Vec::new(),
            dirty: Vec::with_capacity(connections_max as usize),
            starved: Vec::with_capacity(connections_max as usize),
            completions: Vec::with_capacity(completions as usize),
            events: Vec::with_capacity(completions as usize),
            operations: 0,
            turn: 1,
            turn_woken: 0,
            is_ending: false,
            statistics: TcpStatistics::default(),
            _not_send: PhantomData,
        };
        made.arm_waker();
        Ok(made)
    }

    /// Listens on `address`; port zero takes a free one. Returns the address that it got.
    ///
    /// # Errors
    /// Fails if the address is in use, absent, or not permitted.
    pub fn listen(
        &mut self,
        address: SocketAddr,
        backlog: u32,
    ) -> Result<(ListenerId, SocketAddr), RuntimeError> {
        let (socket, bound) = socket::listening(address, backlog)?;
        let listener = self.listeners.len() as u32;
        self.listeners.push(Listener {
            socket: Some(socket),
            is_closing: false,
            header_bytes: None,
        });
        self.arm_accept(listener);
        Ok((ListenerId(listener), bound))
    }

    /// Stops listening. Connections accepted before live on. Idempotent.
    pub fn listen_end(&mut self, listener: ListenerId) {
        let state = &mut self.listeners[listener.0 as usize];
        if state.is_closing {
            return;
        }
        state.is_closing = true;
        self.cancel(user_data(Kind::Accept, listener.0, 0));
    }

    /// Begins a connection. `Connected` or `Closed` follows. Bytes may be queued at once.
    ///
    /// # Errors
    /// Fails if the table is full or the process has too many files open.
    pub fn connect(&mut self, address: SocketAddr) -> Result<ConnectionId, RuntimeError> {
        if self.connections.used() == self.connections.capacity() {
            let connections_max = self.connections.capacity();
            return Err(RuntimeError::ConnectionsTooMany { connections_max });
        }
        let fd = socket::connecting(address)?.into_raw_fd();
        let id = self.connections.open(fd, State::Connecting).expect("the table has room");
        let raw = Box::new(RawAddress::of(address));
        let entry = opcode::Connect::new(types::Fd(fd), raw.as_ptr(), raw.bytes()).build();
        self.connections.slot(id.index).address = Some(raw);
        self.push_counted(entry.user_data(user_data(Kind::Connect, id.index, id.generation)));
        Ok(id)
    }

    /// Tells `Ready` with `token` whenever `fd` is readable. The descriptor must stay open until
    /// [`TcpRing::unwatch`] or the end of the ring.
    pub fn watch(&mut self, fd: RawFd, token: u64) {
        let free = self.watches.iter().position(|watch| !watch.is_active && watch.fd < 0);
        let watch = Watch { fd, token, is_active: true, turn_told: 0 };
        let index = match free {
            Some(index) => {
                self.watches[index] = watch;
                index
            }
            None => {
                self.watches.push(watch);
                self.watches.len() - 1
            }
        };
        self.arm_watch(index as u32);
    }

    /// Ends all watches with `token`.
    pub fn unwatch(&mut self, token: u64) {
        for index in 0..self.watches.len() {
            let watch = &mut self.watches[index];
            if watch.is_active && watch.token == token {
                watch.is_active = false;
                self.cancel(user_data(Kind::Watch, index as u32, 0));
            }
        }
    }

    /// The bytes that arrived.
    ///
    /// # Panics
    /// If the buffer belongs to another ring.
    #[must_use]
    pub fn bytes(&self, received: &ReceivedBuffer) -> &[u8] {
        self.receive.bytes(received)
    }

    /// Gives a buffer back to be filled again.
    ///
    /// # Panics
    /// If the buffer belongs to another ring.
    pub fn release(&mut self, received: ReceivedBuffer) {
        self.receive.release(received);
    }

    /// Where to append bytes to send; they leave at the next turn. `None` if the connection is
    /// gone or closing.
    pub fn outgoing(&mut self, id: ConnectionId) -> Option<&mut Vec<u8>> {
        self.outgoing_of(id).map(Outgoing::queue)
    }

    fn outgoing_of(&mut self, id: ConnectionId) -> Option<&mut Outgoing> {
        let connection = self.connections.get(id)?;
        if matches!(connection.state, State::Closing(_)) || connection.is_draining {
            return None;
        }
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(id.index);
        }
        Some(&mut connection.outgoing)
    }

    /// Bytes queued or in flight, zero if the connection is gone. Bound it: a slow reader makes it
    /// grow.
    #[must_use]
    pub fn outgoing_bytes(&self, id: ConnectionId) -> usize {
        self.connections.peek(id).map_or(0, |connection| connection.outgoing.bytes())
    }

    /// Stops receiving, so that the other side is held up. What had arrived may still be told.
    pub fn receive_pause(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        if !connection.is_receive_wanted {
            return;
        }
        connection.is_receive_wanted = false;
        if connection.is_receiving {
            self.cancel(user_data(Kind::Receive, id.index, id.generation));
        }
    }

    /// Goes on receiving.
    pub fn receive_resume(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        connection.is_receive_wanted = true;
        // A receive that is still being cancelled starts again when its end is told.
        self.arm_receive(id.index);
    }

    /// Ends a connection and drops what is queued. `Closed` follows. Idempotent.
    pub fn close(&mut self, id: ConnectionId) {
        if self.connections.get(id).is_some() {
            self.begin_close(id.index, CloseReason::Local);
        }
    }

    /// Ends a connection once what is queued has been sent: nothing more can be queued and nothing
    /// more is received. `Closed` follows, as late as the other side reads. Idempotent.
    pub fn close_after_send(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        if matches!(connection.state, State::Closing(_)) || connection.is_draining {
            return;
        }
        let has_queued = connection.outgoing.has_queued();
        if connection.state == State::Open && !has_queued && !connection.is_sending {
            self.begin_close(id.index, CloseReason::Local);
            return;
        }
        connection.is_draining = true;
        self.receive_pause(id);
    }

    /// Something that wakes this ring from any thread.
    #[must_use]
    pub fn waker(&self) -> RingWaker {
        self.waker.clone()
    }

    /// The descriptor by which other rings wake this one. Valid while the ring lives.
    #[must_use]
    pub fn ring_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Wakes another ring when this one enters the kernel next. A ring that is gone is counted,
    /// not an error.
    pub fn wake_ring(&mut self, target: RawFd) {
        let woken = user_data(Kind::Woken, 0, 0);
        let entry = opcode::MsgRingData::new(types::Fd(target), 0, woken, None)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(user_data(Kind::Message, 0, 0));
        self.push(entry);
    }

    /// Counts of rare things.
    #[must_use]
    pub fn statistics(&self) -> TcpStatistics {
        self.statistics
    }

    /// Connections now, including those that are being closed.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.used()
    }

    /// Starts all queued work with one entry into the kernel, sleeps there as told until
    /// something completes, and appends what happened to `events`.
    ///
    /// # Errors
    /// Fails if the kernel refuses the entry, which no single connection can cause.
    pub fn turn(&mut self, wait: Wait, events: &mut Vec<TcpEvent>) -> Result<(), RuntimeError> {
        self.flush();
        self.turn += 1;
        let is_resuming = !self.starved.is_empty() && self.receive.free() > 0;
        let has_news = is_resuming || !self.events.is_empty() || !self.completions.is_empty();
        self.enter(if has_news { Wait::Not } else { wait })?;
        self.collect();
        while self.ring.submission().cq_overflow() {
            // More completed than the queue holds; the kernel hands over the rest on entry.
            self.enter(Wait::Not)?;
            self.collect();
        }
        self.complete_all();
        events.append(&mut self.events);
        Ok(())
    }

    /// Turns what the owner did since the last turn into submissions.
    fn flush(&mut self) {
        self.receive.publish();
        for position in 0..self.fresh.len() {
            self.arm_receive(self.fresh[position]);
        }
        self.fresh.clear();
        // Somewhat more than there are buffers, since some have nothing to receive; not all, since
        // most would only starve again. Those left over keep the turn from sleeping.
        let resumable = match usize::from(self.receive.free()) {
            0 => 0,
            free => self.starved.len().min(free.max(STARVED_RESUMED_MIN)),
        };
        for position in 0..resumable {
            let index = self.starved[position];
            self.connections.slot(index).is_starved = false;
            self.arm_receive(index);
        }
        self.starved.drain(..resumable);
        for position in 0..self.dirty.len() {
            let index = self.dirty[position];
            self.connections.slot(index).is_dirty = false;
            self.send_queued(index);
        }
        self.dirty.clear();
    }

    fn enter(&mut self, wait: Wait) -> Result<(), RuntimeError> {
        let submission = self.ring.submission();
        let is_idle = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        if is_idle && wait == Wait::Not {
            return Ok(());
        }
        self.statistics.enters += 1;
        let submitter = self.ring.submitter();
        let entered = match wait {
            Wait::Not => submitter.submit(),
            Wait::Forever => submitter.submit_and_wait(1),
            Wait::For(nanos) => {
                let time = types::Timespec::new()
                    .sec(nanos / 1_000_000_000)
                    .nsec((nanos % 1_000_000_000) as u32);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        let Err(error) = entered else { return Ok(()) };
        match Errno::of(&error) {
            // Time is up, a signal came, or the completion queue is full: all are told by what
            // the queue holds.
            Errno(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            errno => Err(RuntimeError::System { operation: "io_uring_enter", errno }),
        }
    }

    /// Queues an operation that will owe a final completion.
    fn push_counted(&mut self, entry: squeue::Entry) {
        self.operations += 1;
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: what entries point to - bytes and slots in flight and the list of them,
            // headers and slots that are received into, addresses, the waker's count, the retry
            // time - stays in place and untouched until their completion: the fields in
            // `Connection` and `TcpRing` say so, and `drop` waits for all of them.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            if let Err(error) = self.enter(Wait::Not) {
                panic!("the submission queue is full and the kernel takes nothing: {error}");
            }
            self.collect();
        }
    }

    /// Asks for the end of the operation with this user data. Nothing is told about the asking.
    fn cancel(&mut self, target: u64) {
        let entry = opcode::AsyncCancel::new(target)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(user_data(Kind::Cancel, 0, 0));
        self.push(entry);
    }
}

impl Drop for TcpRing {
    fn drop(&mut self) {
        // The kernel may use our memory until the last operation has ended.
        self.is_ending = true;
        for index in self.connections.used_indices() {
            self.begin_close(index, CloseReason::Local);
        }
        while self.operations > 0 {
            let everything = types::CancelBuilder::any().all();
            let entry = opcode::AsyncCancel2::new(everything).build();
            self.push(entry.user_data(user_data(Kind::Cancel, 0, 0)));
            if let Err(error) = self.enter(Wait::For(10_000_000)) {
                panic!("the network ring cannot be emptied: {error}");
            }
            self.collect();
            self.complete_all();
        }
    }
}
