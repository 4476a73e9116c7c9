//! One connection of the blocking face: a core and a socket with time-outs.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use spillway_runtime::clock::monotonic_now;
use spillway_runtime::thread;

use crate::client::answer::{FrameAnswer, FrameToken, LossReason};
use crate::client::core::{ClientCore, ClientInput, CoreOptions};
use crate::client::error::ClientError;
use crate::client::nodes::NodeBook;
use crate::client::plan::Plan;

const RECEIVE_BYTES: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    core: ClientCore,
    stream: Option<TcpStream>,
    timeout: Duration,
    connect_timeout: Duration,
    outbox: Vec<u8>,
    received: Box<[u8]>,
}

fn now() -> u64 {
    monotonic_now().0
}

impl Link {
    /// Connects and waits for the greeting.
    pub(crate) fn open(options: CoreOptions) -> Result<Self, ClientError> {
        let timeout = Duration::from_nanos(options.request_timeout_nanos);
        let connect_timeout = Duration::from_nanos(options.connect_timeout_nanos);
        let mut link = Self {
            core: ClientCore::new(options),
            stream: None,
            timeout,
            connect_timeout,
            outbox: Vec::new(),
            received: vec![0; RECEIVE_BYTES].into_boxed_slice(),
        };
        link.step(ClientInput::Start, &mut |_| {});
        while !link.core.is_ready() {
            if let Some(reason) = link.core.ended() {
                return Err(connect_error(&mut link.core, reason));
            }
            link.wait(&mut |_| {});
        }
        Ok(link)
    }

    /// The core.
    pub(crate) fn core(&self) -> &ClientCore {
        &self.core
    }

    /// See [`ClientCore::take_news`].
    pub(crate) fn take_news(&mut self) -> bool {
        self.core.take_news()
    }

    /// Tells the core what others have learned of the nodes.
    pub(crate) fn learn(&mut self, nodes: &NodeBook) {
        self.step(ClientInput::Learned(nodes), &mut |_| unreachable!("nothing is in flight"));
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
        let (close, connect) = (plan.close, plan.connect.take());
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
        let (close, connect) = (plan.close, plan.connect.take());
        self.carry_out(close, connect, answers);
    }

    fn carry_out(
        &mut self,
        close: bool,
        connect: Option<String>,
        answers: &mut dyn FnMut(FrameAnswer<'_>),
    ) {
        if close {
            self.stream = None;
        } else if let Some(address) = connect {
            match self.connect(&address) {
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

    fn connect(&self, address: &str) -> std::io::Result<TcpStream> {
        let mut failure = None;
        for address in socket_addresses(address)? {
            match TcpStream::connect_timeout(&address, self.connect_timeout) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_write_timeout(Some(self.timeout))?;
                    return Ok(stream);
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| std::io::Error::other("the host has no address")))
    }
}

/// What an address stands for. One that is a name is looked up, which takes as long as it takes.
pub(crate) fn socket_addresses(address: &str) -> std::io::Result<Vec<SocketAddr>> {
    match address.parse() {
        Ok(address) => Ok(vec![address]),
        Err(_) => Ok(address.to_socket_addrs()?.collect()),
    }
}

/// Why a connection was never ready, as the caller should read it.
pub(crate) fn connect_error(core: &mut ClientCore, reason: LossReason) -> ClientError {
    let address = core.nodes().addresses().collect::<Vec<_>>().join(", ");
    match core.take_error() {
        Some(ClientError::Lost(cause)) => ClientError::Connect { address, cause },
        Some(ClientError::TimedOut(ms)) => {
            ClientError::Connect { address, cause: format!("no greeting within {ms} ms") }
        }
        Some(error) => error,
        None => ClientError::NotSent(reason),
    }
}
