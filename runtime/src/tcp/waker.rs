//! Waking a ring from a thread that has none.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::error::{Errno, RuntimeError};

/// Wakes one ring, from any thread. Threads with a ring of their own use
/// [`crate::tcp::TcpRing::wake_ring`], which costs no system call of its own.
#[derive(Clone, Debug)]
pub struct RingWaker {
    event: Arc<OwnedFd>,
}

impl RingWaker {
    pub(super) fn new() -> Result<RingWaker, RuntimeError> {
        // SAFETY: no memory is passed. Blocking, because the ring waits for a blocking descriptor
        // and gives up on a non-blocking one.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(match Errno::last() {
                Errno(libc::EMFILE | libc::ENFILE) => {
                    RuntimeError::FilesTooMany { what: "eventfd".to_owned() }
                }
                errno => RuntimeError::System { operation: "eventfd", errno },
            });
        }
        // SAFETY: the descriptor is new and ours alone.
        Ok(RingWaker { event: Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }) })
    }

    /// Makes the ring's next or current `turn` return with an event. Wakes that come before the
    /// ring looks are one wake.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are readable. The write blocks only at 2^64 - 2 unread wakes.
        let bytes = unsafe { libc::write(self.fd(), one.as_ptr().cast(), one.len()) };
        assert!(
            bytes == 8 || Errno::last() == Errno(libc::EINTR),
            "an eventfd takes every wake: {}",
            Errno::last()
        );
    }

    pub(super) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
