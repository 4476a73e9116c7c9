//! The orderly end: SIGTERM and SIGINT become a readable descriptor and a flag.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Errno, RuntimeError};

/// Catches the signals. One per process, created before any other thread, so that all threads
/// inherit the block and the signals reach nobody else.
#[derive(Debug)]
pub struct Shutdown {
    signals: OwnedFd,
    flag: ShutdownFlag,
}

/// Tells any thread whether the end was asked for.
#[derive(Clone, Debug, Default)]
pub struct ShutdownFlag {
    requested: Arc<AtomicBool>,
}

impl ShutdownFlag {
    /// Asks for the end, as a signal would. Does not wake anybody.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }
}

impl Shutdown {
    /// Blocks SIGTERM and SIGINT for this thread and all it will start, and collects them.
    ///
    /// # Errors
    /// Fails if the kernel refuses, such as for too many open files.
    pub fn install() -> Result<Shutdown, RuntimeError> {
        let set = signal_set();
        // SAFETY: the set is initialised, and no old set is asked for.
        let blocked =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(RuntimeError::System { operation: "block signals", errno: Errno(blocked) });
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(RuntimeError::System { operation: "signalfd", errno: Errno::last() });
        }
        // SAFETY: the descriptor is new and ours alone.
        let signals = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Shutdown { signals, flag: ShutdownFlag::default() })
    }

    /// The descriptor to watch: readable when a signal came. Then ask [`Shutdown::requested`].
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.signals.as_raw_fd()
    }

    /// The flag for other threads. It rises when [`Shutdown::requested`] notices a signal.
    #[must_use]
    pub fn flag(&self) -> ShutdownFlag {
        self.flag.clone()
    }

    /// Whether a signal came, now or earlier, or somebody raised the flag. Does not wait.
    #[must_use]
    pub fn requested(&self) -> bool {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        loop {
            // SAFETY: the buffer is writable and its length is given.
            let bytes = unsafe { libc::read(self.fd(), info.as_mut_ptr().cast(), info.len()) };
            if bytes <= 0 {
                return self.flag.requested();
            }
            self.flag.request();
        }
    }
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: all-zero memory is what sigemptyset initialises, and both signals exist.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        assert!(libc::sigemptyset(&raw mut set) == 0, "sigemptyset cannot fail");
        assert!(libc::sigaddset(&raw mut set, libc::SIGTERM) == 0, "SIGTERM exists");
        assert!(libc::sigaddset(&raw mut set, libc::SIGINT) == 0, "SIGINT exists");
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_raise_the_flag_and_kill_nobody() {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // A signal sent to a thread is read by that thread, so tests do not disturb others.
            let check = move || {
                let shutdown = Shutdown::install().expect("install");
                let flag = shutdown.flag();
                assert!(!shutdown.requested());
                // SAFETY: the target is the calling thread.
                assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), signal) }, 0);
                assert!(!flag.requested());
                assert!(shutdown.requested() && flag.requested());
                assert!(shutdown.requested(), "once asked for, always asked for");
            };
            crate::thread::spawn("signalled", None, check).expect("spawn").join().expect("join");
        }
    }

    #[test]
    fn flag_works_without_a_signal() {
        let flag = ShutdownFlag::default();
        let other = flag.clone();
        assert!(!flag.requested());
        other.request();
        assert!(flag.requested());
    }
}
