//! What each completion of the kernel means.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::{cqueue, opcode, types};

use super::connection::State;
use super::{CloseReason, ConnectionId, ListenerId, TcpEvent, TcpRing, receive, socket};
use crate::error::Errno;

/// What an operation was, in the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Accept = 1,
    AcceptRetry,
    Connect,
    Receive,
    Send,
    Watch,
    Waker,
    /// Posted into this ring by another one.
    Woken,
    /// A message of this ring to another; only its failure is told.
    Message,
    /// A request to end another operation.
    Cancel,
}

impl Kind {
    fn of(user_data: u64) -> Kind {
        match user_data >> 56 {
            1 => Kind::Accept,
            2 => Kind::AcceptRetry,
            3 => Kind::Connect,
            4 => Kind::Receive,
            5 => Kind::Send,
            6 => Kind::Watch,
            7 => Kind::Waker,
            8 => Kind::Woken,
            9 => Kind::Message,
            10 => Kind::Cancel,
            other => panic!("a completion of kind {other}"),
        }
    }

    /// Whether the operation was counted in `operations`.
    fn is_counted(self) -> bool {
        !matches!(self, Kind::Woken | Kind::Message | Kind::Cancel)
    }
}

/// Kind in 8 bits, index in 24, generation in 32.
pub(super) fn user_data(kind: Kind, index: u32, generation: u32) -> u64 {
    assert!(index < 1 << 24, "index {index} does not fit");
    u64::from(kind as u8) << 56 | u64::from(index) << 32 | u64::from(generation)
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    user_data: u64,
    result: i32,
    flags: u32,
}

impl Completion {
    fn has_more(self) -> bool {
        cqueue::more(self.flags)
    }

    fn index(self) -> u32 {
        (self.user_data >> 32) as u32 & 0x00ff_ffff
    }

    fn generation(self) -> u32 {
        self.user_data as u32
    }
}

impl TcpRing {
    /// Takes all completions out of the shared queue.
    pub(super) fn collect(&mut self) {
        for entry in self.ring.completion() {
            self.completions.push(Completion {
                user_data: entry.user_data(),
                result: entry.result(),
                flags: entry.flags(),
            });
        }
    }

    /// Looks at all collected completions. Handling one may submit, and so collect more.
    pub(super) fn complete_all(&mut self) {
        let mut position = 0;
        while position < self.completions.len() {
            let completion = self.completions[position];
            position += 1;
            self.complete(completion);
        }
        self.completions.clear();
    }

    fn complete(&mut self, completion: Completion) {
        let kind = Kind::of(completion.user_data);
        if kind.is_counted() && !completion.has_more() {
            assert!(self.operations > 0, "a completion nobody waits for: {completion:?}");
            self.operations -= 1;
        }
        match kind {
            Kind::Receive => self.complete_receive(completion),
            Kind::Send => self.complete_send(completion),
            Kind::Woken => self.tell_woken(),
            Kind::Watch => self.complete_watch(completion),
            Kind::Waker => {
                self.tell_woken();
                self.arm_waker();
            }
            Kind::Accept => self.complete_accept(completion),
            Kind::AcceptRetry => self.arm_accept(completion.index()),
            Kind::Connect => self.complete_connect(completion),
            Kind::Message => self.statistics.wakes_failed += u64::from(completion.result < 0),
            // The operation had ended by itself already, or ends now: its own completion tells.
            Kind::Cancel => {}
        }
    }

    fn complete_receive(&mut self, completion: Completion) {
        let index = completion.index();
        if self.connections.slot(index).framed.is_some() {
            let generation = self.connections.slot(index).generation;
            assert!(generation == completion.generation(), "a receive outlived its connection");
            self.complete_framed(index, completion.result);
            return;
        }
        let buffer = cqueue::buffer_select(completion.flags);
        let bytes = completion.result.max(0) as u32;
        let received = buffer.map(|buffer| self.receive.take(buffer, bytes));
        let connection = self.connections.slot(index);
        let generation = completion.generation();
        assert!(connection.generation == generation, "a receive outlived its connection");
        if !completion.has_more() {
            connection.is_receiving = false;
        }
        let is_open = connection.state == State::Open;
        match received {
            Some(buffer) if is_open && bytes > 0 => {
                let connection = ConnectionId { index, generation };
                self.events.push(TcpEvent::Received { connection, buffer });
            }
            Some(buffer) => self.receive.release(buffer),
            None => {}
        }
        match completion.result {
            0 => self.begin_close(index, CloseReason::Peer),
            bytes if bytes > 0 => self.arm_receive(index),
            error => self.receive_failed(index, -error),
        }
        self.finish_close(index);
    }

    pub(super) fn receive_failed(&mut self, index: u32, error: i32) {
        match error {
            libc::ENOBUFS => {
                self.statistics.receives_starved += 1;
                let connection = self.connections.slot(index);
                if !connection.is_starved {
                    connection.is_starved = true;
                    self.starved.push(index);
                }
            }
            // A pause; perhaps one that was taken back since. Or the ring is ending.
            libc::ECANCELED | libc::EINTR => self.arm_receive(index),
            libc::ECONNRESET | libc::EPIPE => self.begin_close(index, CloseReason::Reset),
            error => self.begin_close(index, CloseReason::Failed(Errno(error))),
        }
    }

    /// Starts the receive of an open connection that wants one and has none: a multishot one, or
    /// one of what a framed connection is told to receive.
    pub(super) fn arm_receive(&mut self, index: u32) {
        if self.is_ending {
            return;
        }
        let connection = self.connections.slot(index);
        if connection.state != State::Open
            || !connection.is_receive_wanted
            || connection.is_receiving
            || connection.is_starved
        {
            return;
        }
        let entry = match &mut connection.framed {
            Some(framed) if !framed.is_wanting() => return,
            Some(framed) => framed.entry(connection.fd),
            None => opcode::RecvMulti::new(types::Fd(connection.fd), receive::GROUP).build(),
        };
        connection.is_receiving = true;
        connection.has_received = true;
        let target = user_data(Kind::Receive, index, connection.generation);
        self.push_counted(entry.user_data(target));
    }

    /// Sends what is queued, unless a send is in flight: that one's end calls this again.
    pub(super) fn send_queued(&mut self, index: u32) {
        let connection = self.connections.slot(index);
        if connection.state != State::Open || connection.is_sending || self.is_ending {
            return;
        }
        if !connection.outgoing.has_queued() {
            if connection.is_draining {
                self.begin_close(index, CloseReason::Local);
            }
            return;
        }
        connection.outgoing.launch();
        self.send_flight(index);
    }

    /// Sends the rest of what is in flight.
    fn send_flight(&mut self, index: u32) {
        let connection = self.connections.slot(index);
        assert!(!connection.is_sending, "one send at a time");
        connection.is_sending = true;
        let entry = connection.outgoing.entry(connection.fd);
        let target = user_data(Kind::Send, index, connection.generation);
        self.push_counted(entry.user_data(target));
    }

    fn complete_send(&mut self, completion: Completion) {
        let index = completion.index();
        let connection = self.connections.slot(index);
        assert!(connection.generation == completion.generation(), "a send outlived its owner");
        assert!(connection.is_sending, "slot {index} sends nothing");
        connection.is_sending = false;
        let is_open = connection.state == State::Open;
        match completion.result {
            sent if sent > 0 => {
                if connection.outgoing.sent(sent as usize) {
                    self.send_queued(index);
                } else if is_open {
                    self.send_flight(index);
                }
            }
            result => {
                let reason = match -result {
                    libc::ECONNRESET | libc::EPIPE => CloseReason::Reset,
                    0 => CloseReason::Failed(Errno::SHORT_TRANSFER),
                    error => CloseReason::Failed(Errno(error)),
                };
                self.begin_close(index, reason);
            }
        }
        self.finish_close(index);
    }

    fn complete_connect(&mut self, completion: Completion) {
        let index = completion.index();
        let generation = completion.generation();
        let connection = self.connections.slot(index);
        assert!(connection.generation == generation, "a connect outlived its connection");
        connection.address = None;
        if connection.state == State::Connecting && completion.result == 0 {
            connection.state = State::Open;
            let id = ConnectionId { index, generation };
            self.events.push(TcpEvent::Connected { connection: id });
            self.fresh.push(index);
            self.send_queued(index);
        } else if completion.result < 0 {
            let reason = CloseReason::ConnectFailed(Errno(-completion.result));
            self.begin_close(index, reason);
        }
        self.finish_close(index);
    }

    pub(super) fn arm_accept(&mut self, listener: u32) {
        let state = &self.listeners[listener as usize];
        let Some(socket) = state.socket.as_ref().filter(|_| !state.is_closing) else {
            self.listeners[listener as usize].socket = None;
            return;
        };
        if self.is_ending {
            return;
        }
        let entry = opcode::AcceptMulti::new(types::Fd(socket.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC)
            .build();
        self.push_counted(entry.user_data(user_data(Kind::Accept, listener, 0)));
    }

    fn complete_accept(&mut self, completion: Completion) {
        let listener = completion.index();
        if completion.result >= 0 {
            // SAFETY: the kernel just made this descriptor for us.
            let fd = unsafe { OwnedFd::from_raw_fd(completion.result) };
            self.accepted(ListenerId(listener), fd);
        }
        if completion.has_more() {
            return;
        }
        let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
        if !exhausted.contains(&-completion.result) || self.is_ending {
            self.arm_accept(listener);
            return;
        }
        // Trying again at once would find the same want, and spin. Those who wait stay in the
        // backlog.
        self.statistics.accepts_failed += 1;
        let time: *const types::Timespec = &raw const *self.retry_time;
        let entry = opcode::Timeout::new(time).build();
        self.push_counted(entry.user_data(user_data(Kind::AcceptRetry, listener, 0)));
    }

    fn accepted(&mut self, listener: ListenerId, fd: OwnedFd) {
        use std::os::fd::IntoRawFd;
        if self.is_ending || self.listeners[listener.0 as usize].is_closing {
            return;
        }
        // A peer that is gone already is nobody's event; dropping closes the descriptor.
        let Some(peer) = socket::peer_of(fd.as_raw_fd()) else { return };
        if self.connections.used() == self.connections.capacity() {
            self.statistics.connections_refused += 1;
            return;
        }
        let opened = self.connections.open(fd.into_raw_fd(), State::Open);
        let connection = opened.expect("the table has room");
        if let Some(header_bytes) = self.listeners[listener.0 as usize].header_bytes {
            self.set_framed(connection, header_bytes);
        }
        self.events.push(TcpEvent::Accepted { listener, connection, peer });
        self.fresh.push(connection.index);
    }

    pub(super) fn arm_watch(&mut self, index: u32) {
        let watch = &mut self.watches[index as usize];
        if !watch.is_active || self.is_ending {
            // Ended by `unwatch`: the place can be used again.
            watch.fd = -1;
            return;
        }
        let entry =
            opcode::PollAdd::new(types::Fd(watch.fd), libc::POLLIN as u32).multi(true).build();
        self.push_counted(entry.user_data(user_data(Kind::Watch, index, 0)));
    }

    fn complete_watch(&mut self, completion: Completion) {
        let index = completion.index();
        let turn = self.turn;
        let watch = &mut self.watches[index as usize];
        let is_ended = !watch.is_active || self.is_ending;
        assert!(
            completion.result >= 0 || is_ended,
            "descriptor {} cannot be watched: {}",
            watch.fd,
            Errno(-completion.result)
        );
        if watch.is_active && watch.turn_told != turn {
            watch.turn_told = turn;
            let token = watch.token;
            self.events.push(TcpEvent::Ready { token });
        }
        // A watched ring ends the watch with each event, so that two rings that watch each other
        // cannot loop.
        if !completion.has_more() {
            self.arm_watch(index);
        }
    }

    pub(super) fn arm_waker(&mut self) {
        if self.is_ending {
            return;
        }
        let fd = types::Fd(self.waker.fd());
        let bytes = self.waker_bytes.as_mut_ptr();
        let entry = opcode::Read::new(fd, bytes, 8).build();
        self.push_counted(entry.user_data(user_data(Kind::Waker, 0, 0)));
    }

    fn tell_woken(&mut self) {
        if self.turn_woken != self.turn && !self.is_ending {
            self.turn_woken = self.turn;
            self.events.push(TcpEvent::Woken);
        }
    }

    /// Begins the end of a connection: every pending operation is made to end.
    pub(super) fn begin_close(&mut self, index: u32, reason: CloseReason) {
        let connection = self.connections.slot(index);
        let before = connection.state;
        if matches!(before, State::Closing(_) | State::Free) {
            return;
        }
        connection.state = State::Closing(reason);
        if connection.address.is_some() {
            let target = user_data(Kind::Connect, index, connection.generation);
            self.cancel(target);
        } else if connection.is_pending() {
            socket::shut_down(connection.fd);
        }
        self.finish_close(index);
    }

    /// Ends a closing connection if nothing of it is left in the kernel.
    pub(super) fn finish_close(&mut self, index: u32) {
        let connection = self.connections.slot(index);
        let State::Closing(reason) = connection.state else { return };
        if connection.is_pending() {
            return;
        }
        let id = ConnectionId { index, generation: connection.generation };
        let fd = self.connections.free(index);
        // SAFETY: the descriptor was the connection's alone, and no operation uses it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        self.events.push(TcpEvent::Closed { connection: id, reason });
    }
}
