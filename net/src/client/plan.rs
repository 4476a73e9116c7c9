//! A core's effects of one step, for shells that cannot carry them out while the core runs.

use crate::client::answer::FrameAnswer;
use crate::client::core::ClientEffects;

/// What one step wants of the network; results go through at once.
pub(crate) struct Plan<'a> {
    /// Frames to send, one behind the other.
    pub(crate) outbox: &'a mut Vec<u8>,
    /// Close the connection, whatever is to be sent.
    pub(crate) close: bool,
    /// Make a connection to this address.
    pub(crate) connect: Option<String>,
    /// Frames that have ended.
    pub(crate) ended: usize,
    answers: &'a mut dyn FnMut(FrameAnswer<'_>),
}

impl<'a> Plan<'a> {
    pub(crate) fn new(
        outbox: &'a mut Vec<u8>,
        answers: &'a mut dyn FnMut(FrameAnswer<'_>),
    ) -> Self {
        outbox.clear();
        Self { outbox, close: false, connect: None, ended: 0, answers }
    }
}

impl ClientEffects for Plan<'_> {
    fn connect(&mut self, address: &str) {
        assert!(!self.close, "a core connects in another step than it closes");
        self.connect = Some(address.to_owned());
    }

    fn send(&mut self, frame: &[u8]) {
        assert!(!self.close && self.connect.is_none(), "a core sends on a standing connection");
        self.outbox.extend_from_slice(frame);
    }

    fn close(&mut self) {
        self.close = true;
    }

    fn answer(&mut self, answer: FrameAnswer<'_>) {
        self.ended += 1;
        (self.answers)(answer);
    }
}
