//! One connection of the blocking face: a core and a socket with time-outs.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use spillway_runtime::clock::monotonic_now;
use spillway_runtime::thread;

use crate::client::answer::{FrameAnswer, FrameToken, LossReason};
use crate::client::core::{ClientCore, ClientInput, CoreOptions};
use crate::client::error::ClientError;
use crate::client::plan::Plan;

const RECEIVE_BYTES: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    core: ClientCore,
    address: SocketAddr,
    stream: Option<TcpStream>,
    timeout: Duration,
    outbox: Vec<u8>,
    received: Box<[u8]>,
}

fn now() -> u64 {
    monotonic_now().0
}

impl Link {
    /// Connects and waits for the greeting.
    pub(crate) fn open(address: SocketAddr, options: CoreOptions) -> Result<Self, ClientError> {
        let timeout = Duration::from_nanos(options.request_timeout_nanos);
        let mut link = Self {
            core: ClientCore::new(options),
            address,
            stream: None,
            timeout,
            outbox: Vec::new(),
            received: vec![0; RECEIVE_BYTES].into_boxed_slice(),
        };
        link.step(ClientInput::Start, &mut |_| {});
        while !link.core.is_ready() {
            if let Some(reason) = link.core.ended() {
                let error = link.core.take_error();
                return Err(connect_error(address, reason, error));
            }
            link.wait(&mut |_| {});
        }
        Ok(link)
    }

    /// The core.
    pub(crate) fn core(&self) -> &ClientCore {
        &self.core
    }

    /// Queues something by `launch` and waits until it has ended; `take` reads its end.
    pub(crate) fn call<R>(
        &mut self,
        launch: impl FnOnce(&mut ClientCore, u64, &mut Plan<'_>) -> Result<FrameToken, ClientError>,
        mut take: impl FnMut(&FrameAnswer<'_>) -> Result<R, ClientError>,
    ) -> Result<R, ClientError> {
        let mut nobody = |_: FrameAnswer<'_>| unreachable!("queueing a frame ends nothing");
        let mut plan = Plan::new(&mut self.outbox, &mut nobody);
        let token = launch(&mut self.core, now(), &mut plan)?;
        let (close, connect) = (plan.close, plan.connect);
        let mut end = None;
        let mut answers = |answer: FrameAnswer<'_>| {
            if answer.token == token {
                end = Some(take(&answer));
            }
        };
        self.carry_out(close, connect, &mut answers);
        while self.core.in_flight() > 0 {
            self.wait(&mut answers);
        }
        end.expect("the core ends every frame")
    }

    /// Sleeps until bytes arrive or the core's next deadline.
    fn wait(&mut self, answers: &mut dyn FnMut(FrameAnswer<'_>)) {
        let deadline = self.core.deadline().unwrap_or_else(|| now() + 1_000_000);
        let nanos = deadline.saturating_sub(now());
        // The kernel counts in microseconds and takes zero for no limit.
        let wait = Duration::from_nanos(nanos.max(1_000_000));
        let Some(stream) = &mut self.stream else {
            thread::sleep(Duration::from_nanos(nanos));
            self.step(ClientInput::Tick, answers);
            return;
        };
        let read = stream.set_read_timeout(Some(wait)).and_then(|()| {
            let received = &mut self.received;
            stream.read(received)
        });
        match read {
            Ok(0) => self.lost("closed by the node", answers),
            Ok(bytes) => {
                let received = std::mem::take(&mut self.received);
                self.step(ClientInput::Received(&received[..bytes]), answers);
                self.received = received;
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => self.lost(&error.to_string(), answers),
            },
        }
        self.step(ClientInput::Tick, answers);
    }

    fn lost(&mut self, cause: &str, answers: &mut dyn FnMut(FrameAnswer<'_>)) {
        self.stream = None;
        self.step(ClientInput::Disconnected(cause), answers);
    }

    fn step(&mut self, input: ClientInput<'_>, answers: &mut dyn FnMut(FrameAnswer<'_>)) {
        let mut plan = Plan::new(&mut self.outbox, answers);
        self.core.step(now(), input, &mut plan);
        let (close, connect) = (plan.close, plan.connect);
        self.carry_out(close, connect, answers);
    }

    fn carry_out(&mut self, close: bool, connect: bool, answers: &mut dyn FnMut(FrameAnswer<'_>)) {
        if close {
            self.stream = None;
        } else if connect {
            match self.connect() {
                Ok(stream) => {
                    self.stream = Some(stream);
                    self.step(ClientInput::Connected, answers);
                }
                Err(error) => self.lost(&error.to_string(), answers),
            }
        } else if !self.outbox.is_empty()
            && let Some(stream) = &mut self.stream
            && let Err(error) = stream.write_all(&self.outbox)
        {
            self.lost(&error.to_string(), answers);
        }
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, self.timeout)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(stream)
    }
}

/// Why a connection was never ready, as the caller should read it.
pub(crate) fn connect_error(
    address: SocketAddr,
    reason: LossReason,
    error: Option<ClientError>,
) -> ClientError {
    match error {
        Some(ClientError::Lost(cause)) => ClientError::Connect { address, cause },
        Some(ClientError::TimedOut(ms)) => {
            ClientError::Connect { address, cause: format!("no greeting within {ms} ms") }
        }
        Some(error) => error,
        None => ClientError::NotSent(reason),
    }
}
