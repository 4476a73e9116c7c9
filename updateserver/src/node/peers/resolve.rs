//! Looking up host names, which can take seconds, on a thread of its own. A configuration of IP
//! addresses never starts it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, Sender, channel};

use spillway_net::ids::NodeId;
use spillway_runtime::error::RuntimeError;
use spillway_runtime::tcp::RingWaker;
use spillway_runtime::thread;

use crate::peer_book::Due;

/// What became of a question.
pub(super) struct Answer {
    pub node: NodeId,
    pub address: String,
    pub found: Result<SocketAddr, String>,
}

/// See the module. Its thread ends when this is dropped and the last question is answered.
pub(super) struct Resolver {
    questions: Sender<Due>,
    answers: Receiver<Answer>,
}

impl Resolver {
    /// Starts the thread, which wakes the ring for each answer.
    pub fn new(waker: RingWaker) -> Result<Self, RuntimeError> {
        let (questions, asked) = channel::<Due>();
        let (answer, answers) = channel();
        // Detached: a question may take longer than the process lives.
        drop(thread::spawn("resolver", None, move || {
            for due in asked {
                if answer.send(resolve(due)).is_err() {
                    return;
                }
                waker.wake();
            }
        })?);
        Ok(Self { questions, answers })
    }

    /// Each question is answered once.
    pub fn ask(&self, due: Due) {
        self.questions.send(due).expect("the thread lives as long as this");
    }

    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

/// Addresses of one name are tried one after the other.
fn resolve(due: Due) -> Answer {
    let Due { node, address, attempt } = due;
    let found = match address.to_socket_addrs() {
        Ok(addresses) => {
            let addresses: Vec<SocketAddr> = addresses.collect();
            match addresses.len() {
                0 => Err("the name has no address".to_owned()),
                count => Ok(addresses[attempt % count]),
            }
        }
        Err(error) => Err(error.to_string()),
    };
    Answer { node, address, found }
}
