//! A connection that sends whatever bytes a test wants.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use spillway_net::frame::{self, FrameHeader, FrameKind, HEADER_BYTES};
use spillway_net::ids::Lsn;
use spillway_net::limits::{ANSWER_PAYLOAD_BYTES_MAX, fingerprint};
use spillway_net::message::{
    self, Hello, OperationHead, OperationKind, OutcomeHead, OutcomeStatus, Outcomes, Payload,
    Refusal, RefusalCode, SessionOpen, SessionOpened, Submit, TransactionHead,
};

/// A frame as it came: kind, request, payload.
pub struct Answer {
    pub kind: FrameKind,
    pub request: u64,
    pub payload: Vec<u8>,
}

impl Answer {
    /// The refusal in it.
    pub fn refusal(&self) -> (RefusalCode, String) {
        assert_eq!(self.kind, FrameKind::Refusal, "a refusal");
        let refusal = message::decode::<Refusal>(&self.payload).expect("valid");
        (RefusalCode::from_wire(refusal.code).expect("a known code"), refusal.message)
    }

    /// The outcomes in it.
    pub fn outcomes(&self) -> Vec<OutcomeHead> {
        if self.kind == FrameKind::Refusal {
            panic!("refused: {:?}", self.refusal());
        }
        assert_eq!(self.kind, FrameKind::Outcomes, "outcomes");
        message::decode::<Outcomes>(&self.payload).expect("valid").outcomes
    }

    /// The status of the only outcome in it.
    pub fn status(&self) -> OutcomeStatus {
        let outcomes = self.outcomes();
        assert_eq!(outcomes.len(), 1);
        OutcomeStatus::from_wire(outcomes[0].status).expect("a known status")
    }
}

/// The bytes of a frame.
pub fn frame_of<T: Payload>(kind: FrameKind, request: u64, message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    message::write_frame(&mut out, kind, request, Lsn(0), message);
    out
}

/// The bytes of a frame with this payload and a right checksum.
pub fn frame_with(kind: FrameKind, request: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::begin(&mut out);
    out.extend_from_slice(payload);
    frame::finish(&mut out, kind, request, Lsn(0));
    out
}

/// A hello with a session, 0 for none.
pub fn hello_frame(session: u64) -> Vec<u8> {
    let hello = Hello { limits_fingerprint: fingerprint(), cluster: 0, session, attempt: 0 };
    frame_of(FrameKind::Hello, 1, &hello)
}

/// One operation of a transaction: kind, table, column, key, value.
pub type RawOperation<'a> = (OperationKind, u16, u16, &'a [u8], &'a [u8]);

/// A submit of one transaction.
pub fn submit_of(number: u64, operations: &[RawOperation<'_>]) -> Submit {
    let mut submit = Submit {
        acknowledged_below: 1,
        first_number: number,
        transactions: vec![TransactionHead {
            number_offset: 0,
            operations: operations.len() as u16,
        }],
        ..Submit::default()
    };
    for (kind, table, column, key, value) in operations {
        submit.operations.push(OperationHead {
            kind: *kind as u8,
            reserved: 0,
            table: *table,
            column: *column,
            key_length: key.len() as u16,
            value_length: value.len() as u32,
        });
        submit.bytes.extend_from_slice(key);
        submit.bytes.extend_from_slice(value);
    }
    submit
}

/// See the module.
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// Connects and says nothing.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_nodelay(true).expect("set");
        // Only so that a test fails instead of hanging.
        stream.set_read_timeout(Some(Duration::from_secs(40))).expect("set");
        stream.set_write_timeout(Some(Duration::from_secs(40))).expect("set");
        Self { stream }
    }

    /// Connects and says hello.
    pub fn greeted(address: SocketAddr, session: u64) -> Self {
        let mut raw = Self::connect(address);
        raw.send(&hello_frame(session));
        assert_eq!(raw.answer().kind, FrameKind::Welcome);
        raw
    }

    /// Connects with a new session, which it returns.
    pub fn with_session(address: SocketAddr) -> (Self, u64) {
        let mut raw = Self::greeted(address, 0);
        let open = SessionOpen { client_name: "raw".to_owned() };
        raw.send(&frame_of(FrameKind::SessionOpen, 2, &open));
        let answer = raw.answer();
        assert_eq!(answer.kind, FrameKind::SessionOpened);
        let opened = message::decode::<SessionOpened>(&answer.payload).expect("valid");
        (Self::greeted(address, opened.session), opened.session)
    }

    /// Sends bytes that must go out.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// Sends bytes; false if the node has closed the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        match self.stream.write_all(bytes) {
            Ok(()) => true,
            Err(error) if closed(error.kind()) => false,
            Err(error) => panic!("sending failed: {error}"),
        }
    }

    /// Sends a transaction and waits for its outcome.
    pub fn submit(&mut self, number: u64, operations: &[RawOperation<'_>]) -> Answer {
        self.send(&frame_of(FrameKind::Submit, number, &submit_of(number, operations)));
        let answer = self.answer();
        assert_eq!(answer.request, number);
        answer
    }

    /// The next frame; `None` when the node has closed the connection.
    pub fn answer_or_end(&mut self) -> Option<Answer> {
        let mut head = [0; HEADER_BYTES];
        if !self.read(&mut head) {
            return None;
        }
        let header = FrameHeader::parse(&head, ANSWER_PAYLOAD_BYTES_MAX).expect("a good header");
        let mut frame = vec![0; header.frame_bytes()];
        frame[..HEADER_BYTES].copy_from_slice(&head);
        if !self.read(&mut frame[HEADER_BYTES..]) {
            return None;
        }
        header.check(&frame).expect("a good checksum");
        let payload = frame.split_off(HEADER_BYTES);
        Some(Answer { kind: header.kind, request: header.request, payload })
    }

    /// The next frame, which must come.
    pub fn answer(&mut self) -> Answer {
        self.answer_or_end().expect("an answer and not the end of the connection")
    }

    /// Reads to the end of the connection; returns the refusal that came before it.
    pub fn end(&mut self) -> Option<(RefusalCode, String)> {
        let mut refusal = None;
        while let Some(answer) = self.answer_or_end() {
            refusal = Some(answer.refusal());
        }
        refusal
    }

    /// Reads and forgets until the node has closed the connection.
    pub fn drained(&mut self) {
        let mut bytes = vec![0; 1 << 16];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if closed(error.kind()) => return,
                Err(error) => panic!("the connection was not closed: {error}"),
            }
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> bool {
        match self.stream.read_exact(bytes) {
            Ok(()) => true,
            Err(error) if closed(error.kind()) => false,
            Err(error) => panic!("no answer and no end: {error}"),
        }
    }
}

fn closed(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, UnexpectedEof | ConnectionReset | BrokenPipe | ConnectionAborted)
}
