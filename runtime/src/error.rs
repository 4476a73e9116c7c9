//! Operating errors. Each text names the probable cause and, where one exists, the command that
//! mends it. Programming errors are not here: they abort.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// An error number of the kernel, or one of the two of our own above the kernel's range.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// A transfer moved fewer bytes than asked, and the kernel gave no reason.
    pub const SHORT_TRANSFER: Errno = Errno(0x1_0000);

    /// The error number that the last failed libc call left for this thread.
    #[must_use]
    pub fn last() -> Errno {
        Errno::of(&std::io::Error::last_os_error())
    }

    /// The error number inside an `io::Error`, `EIO` if it carries none.
    #[must_use]
    pub fn of(error: &std::io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Errno::SHORT_TRANSFER {
            return formatter.write_str("fewer bytes were moved than asked");
        }
        write!(formatter, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Errno({}: {self})", self.0)
    }
}

/// What can go wrong between this crate and the machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The kernel refuses to create an io_uring.
    #[error(
        "io_uring is switched off (kernel.io_uring_disabled = {setting}): {errno}. \
         Mend: sysctl kernel.io_uring_disabled=0 (and allow io_uring_setup in the container's \
         seccomp profile)"
    )]
    RingDisabled {
        /// Content of /proc/sys/kernel/io_uring_disabled, or "unknown".
        setting: String,
        /// What the kernel answered.
        errno: Errno,
    },
    /// The kernel lacks a ring flag or operation.
    #[error("this kernel lacks {feature}: {errno}. Mend: run Linux 6.1 or later (see uname -r)")]
    KernelTooOld {
        /// What was asked for.
        feature: &'static str,
        /// What the kernel answered.
        errno: Errno,
    },
    /// The limit on locked memory is too low.
    #[error(
        "cannot lock {} for {what}: the limit on locked memory is too low. Mend: \
         LimitMEMLOCK=infinity in the systemd unit, or ulimit -l unlimited in the shell",
        amount(*bytes)
    )]
    MemlockTooLow {
        /// What wanted the memory.
        what: &'static str,
        /// How much it wanted, zero if unknown.
        bytes: u64,
    },
    /// No memory.
    #[error(
        "cannot map {bytes} bytes for {what}: {errno}. Mend: give the process less to hold, \
             or the machine more memory (see free -m and the cgroup's memory.max)"
    )]
    MemoryExhausted {
        /// What wanted the memory.
        what: &'static str,
        /// How much it wanted.
        bytes: u64,
        /// What the kernel answered.
        errno: Errno,
    },
    /// The file system cannot do O_DIRECT.
    #[error(
        "{}: the file system does not support O_DIRECT. Mend: put the directory on ext4 or XFS on \
         a disk of its own (findmnt -T {})", path.display(), path.display()
    )]
    DirectUnsupported {
        /// The file.
        path: PathBuf,
    },
    /// The device under the file has larger blocks than was assumed.
    #[error(
        "{}: the disk refuses direct writes of {bytes} bytes at offset {offset}: its blocks are \
         larger. Mend: set log.block_bytes = 4096 before spillway format", path.display()
    )]
    DirectUnaligned {
        /// The file.
        path: PathBuf,
        /// Where the write began.
        offset: u64,
        /// How long it was.
        bytes: u64,
    },
    /// The file system is full.
    #[error(
        "{}: no space left: {bytes_needed} bytes needed, {bytes_free} free. Mend: free space on \
         that file system (df -h {}) or use a larger disk", path.display(), path.display()
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Bytes that were to be written.
        bytes_needed: u64,
        /// Bytes free to this user when the error came.
        bytes_free: u64,
    },
    /// Too many open files.
    #[error(
        "{what}: too many open files. Mend: LimitNOFILE=1048576 in the systemd unit, or \
         ulimit -n 1048576 in the shell"
    )]
    FilesTooMany {
        /// What was to be opened.
        what: String,
    },
    /// Somebody listens there already.
    #[error(
        "{address}: address in use. Mend: stop the other process (ss -ltnp 'sport = :{}') or \
         choose another port", address.port()
    )]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The machine has no such address.
    #[error(
        "{address}: this machine has no such address. Mend: choose one of those that ip addr \
             shows"
    )]
    AddressUnavailable {
        /// The address.
        address: SocketAddr,
    },
    /// Not permitted.
    #[error("{what}: permission denied. Mend: {mend}")]
    PermissionDenied {
        /// What was attempted.
        what: String,
        /// The command that helps.
        mend: String,
    },
    /// Another process holds the directory.
    #[error(
        "{}: another process uses this directory. Mend: stop it (fuser -v {}), or give this node \
         a directory of its own", path.display(), path.display()
    )]
    DirectoryLocked {
        /// The directory.
        path: PathBuf,
    },
    /// Requests of a process that is gone are still under way.
    #[error(
        "{}: another process has it open, or what a killed one had asked the disk for was not \
         carried out within {seconds} s. It must not come after what is written next. Mend: end \
         the other process; check whether the disk answers", path.display()
    )]
    FileBusy {
        /// The file.
        path: PathBuf,
        /// How long that was waited for.
        seconds: u64,
    },
    /// No such file.
    #[error("{}: no such file or directory. Mend: check the path, or format the node first",
            path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// Any other failure of a file operation.
    #[error("{operation} {}: {errno}", path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel answered.
        errno: Errno,
    },
    /// The connection table of a ring is full.
    #[error(
        "all {connections_max} connections of this thread are in use. Mend: raise \
             connections_max, or close idle clients"
    )]
    ConnectionsTooMany {
        /// Size of the table.
        connections_max: u32,
    },
    /// A thread asked for a CPU that this process may not use.
    #[error(
        "thread {thread}: CPU {cpu} is not among the CPUs this process may use. Mend: taskset \
             -p or AllowedCPUs= in the systemd unit"
    )]
    CpuNotAllowed {
        /// Name of the thread.
        thread: String,
        /// The CPU.
        cpu: u32,
    },
    /// Any other refused system call.
    #[error("{operation}: {errno}")]
    System {
        /// The call.
        operation: &'static str,
        /// What the kernel answered.
        errno: Errno,
    },
}

fn amount(bytes: u64) -> String {
    if bytes == 0 { "memory".to_owned() } else { format!("{bytes} bytes") }
}

impl RuntimeError {
    /// Explains a failed io_uring_setup. `setting` is the content of
    /// /proc/sys/kernel/io_uring_disabled if it could be read.
    #[must_use]
    pub fn ring_setup(errno: Errno, feature: &'static str, setting: Option<&str>) -> RuntimeError {
        let setting = setting.map_or("unknown", str::trim).to_owned();
        match errno.0 {
            libc::ENOSYS | libc::EPERM | libc::EACCES => {
                RuntimeError::RingDisabled { setting, errno }
            }
            libc::EINVAL => RuntimeError::KernelTooOld { feature, errno },
            libc::EMFILE | libc::ENFILE => RuntimeError::FilesTooMany { what: feature.to_owned() },
            libc::ENOMEM => RuntimeError::MemlockTooLow { what: feature, bytes: 0 },
            _ => RuntimeError::System { operation: feature, errno },
        }
    }

    /// Explains a failed registration of `bytes` of memory with a ring.
    #[must_use]
    pub fn ring_registration(errno: Errno, what: &'static str, bytes: u64) -> RuntimeError {
        match errno.0 {
            libc::ENOMEM | libc::EPERM => RuntimeError::MemlockTooLow { what, bytes },
            libc::EINVAL => RuntimeError::KernelTooOld { feature: what, errno },
            _ => RuntimeError::System { operation: what, errno },
        }
    }

    /// Explains a failed file operation. A full file system is explained by
    /// [`RuntimeError::disk_full`], which knows how much was needed.
    #[must_use]
    pub fn file(operation: &'static str, path: &Path, errno: Errno) -> RuntimeError {
        let path = path.to_owned();
        match errno.0 {
            libc::ENOENT => RuntimeError::NotFound { path },
            libc::EMFILE | libc::ENFILE => {
                RuntimeError::FilesTooMany { what: format!("{operation} {}", path.display()) }
            }
            libc::EACCES | libc::EPERM | libc::EROFS => RuntimeError::PermissionDenied {
                what: format!("{operation} {}", path.display()),
                mend: format!(
                    "give the user of this process the directory (chown) and mount it writable \
                     (namei -l {0}; findmnt -T {0})",
                    path.display()
                ),
            },
            _ => RuntimeError::File { operation, path, errno },
        }
    }

    /// Explains a failed open with O_DIRECT.
    #[must_use]
    pub fn direct_open(path: &Path, errno: Errno) -> RuntimeError {
        match errno.0 {
            libc::EINVAL | libc::EOPNOTSUPP => {
                RuntimeError::DirectUnsupported { path: path.to_owned() }
            }
            _ => RuntimeError::file("open", path, errno),
        }
    }

    /// The file system of `path` cannot take `bytes_needed` more.
    #[must_use]
    pub fn disk_full(path: &Path, bytes_needed: u64, bytes_free: u64) -> RuntimeError {
        RuntimeError::DiskFull { path: path.to_owned(), bytes_needed, bytes_free }
    }

    /// Explains a failed write of whole blocks of 512 bytes with O_DIRECT. One that is invalid all
    /// the same meets larger blocks.
    #[must_use]
    pub fn direct_write(path: &Path, errno: Errno, offset: u64, bytes: u64) -> RuntimeError {
        match errno.0 {
            libc::EINVAL => RuntimeError::DirectUnaligned { path: path.to_owned(), offset, bytes },
            _ => RuntimeError::file("write", path, errno),
        }
    }

    /// Explains a failed socket, bind or listen.
    #[must_use]
    pub fn listen(address: SocketAddr, errno: Errno) -> RuntimeError {
        match errno.0 {
            libc::EADDRINUSE => RuntimeError::AddressInUse { address },
            libc::EADDRNOTAVAIL => RuntimeError::AddressUnavailable { address },
            libc::EACCES | libc::EPERM => RuntimeError::PermissionDenied {
                what: format!("listen on {address}"),
                mend: "choose a port above 1023, or AmbientCapabilities=CAP_NET_BIND_SERVICE in \
                       the systemd unit"
                    .to_owned(),
            },
            libc::EMFILE | libc::ENFILE => {
                RuntimeError::FilesTooMany { what: format!("listen on {address}") }
            }
            _ => RuntimeError::System { operation: "listen", errno },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: &RuntimeError, parts: &[&str]) {
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in {text:?}");
        }
    }

    #[test]
    fn ring_disabled() {
        for number in [libc::ENOSYS, libc::EPERM] {
            let error = RuntimeError::ring_setup(Errno(number), "io_uring", Some("2\n"));
            check(&error, &["switched off", "= 2)", "sysctl kernel.io_uring_disabled=0"]);
        }
        let error = RuntimeError::ring_setup(Errno(libc::ENOSYS), "io_uring", None);
        check(&error, &["= unknown)"]);
    }

    #[test]
    fn kernel_too_old() {
        let errno = Errno(libc::EINVAL);
        let error = RuntimeError::ring_setup(errno, "IORING_SETUP_DEFER_TASKRUN", None);
        check(&error, &["lacks IORING_SETUP_DEFER_TASKRUN", "Linux 6.1", "uname -r"]);
    }

    #[test]
    fn memlock_too_low() {
        let error = RuntimeError::ring_registration(Errno(libc::ENOMEM), "log buffers", 4096);
        check(&error, &["4096 bytes", "log buffers", "LimitMEMLOCK=infinity", "ulimit -l"]);
        let error = RuntimeError::ring_setup(Errno(libc::ENOMEM), "an io_uring", None);
        check(&error, &["cannot lock memory for an io_uring", "LimitMEMLOCK=infinity"]);
    }

    #[test]
    fn direct_unsupported() {
        for number in [libc::EINVAL, libc::EOPNOTSUPP] {
            let error = RuntimeError::direct_open(Path::new("/x/log"), Errno(number));
            check(&error, &["/x/log", "O_DIRECT", "findmnt -T /x/log"]);
        }
        let error = RuntimeError::direct_open(Path::new("/x/log"), Errno(libc::ENOENT));
        assert_eq!(error, RuntimeError::NotFound { path: "/x/log".into() });
    }

    #[test]
    fn direct_write_into_larger_blocks() {
        let error = RuntimeError::direct_write(Path::new("/x/log"), Errno(libc::EINVAL), 512, 1024);
        check(&error, &["/x/log", "1024 bytes at offset 512", "log.block_bytes = 4096"]);
        let error = RuntimeError::direct_write(Path::new("/x/log"), Errno(libc::ENOENT), 512, 1024);
        assert_eq!(error, RuntimeError::NotFound { path: "/x/log".into() });
    }

    #[test]
    fn disk_full() {
        let error = RuntimeError::disk_full(Path::new("/x/log"), 100, 7);
        check(&error, &["100 bytes needed", "7 free", "df -h /x/log"]);
    }

    #[test]
    fn too_many_files() {
        let error = RuntimeError::file("open", Path::new("/x"), Errno(libc::EMFILE));
        check(&error, &["open /x", "too many open files", "LimitNOFILE", "ulimit -n"]);
    }

    #[test]
    fn addresses() {
        let address: SocketAddr = "127.0.0.1:99".parse().expect("valid");
        check(
            &RuntimeError::listen(address, Errno(libc::EADDRINUSE)),
            &["127.0.0.1:99", "in use", "ss -ltnp 'sport = :99'"],
        );
        check(&RuntimeError::listen(address, Errno(libc::EADDRNOTAVAIL)), &["ip addr"]);
        check(&RuntimeError::listen(address, Errno(libc::EACCES)), &["CAP_NET_BIND_SERVICE"]);
    }

    #[test]
    fn permission() {
        let error = RuntimeError::file("create", Path::new("/x/y"), Errno(libc::EACCES));
        check(&error, &["create /x/y", "permission denied", "chown", "namei -l /x/y"]);
    }

    #[test]
    fn others_keep_the_kernel_text() {
        let error = RuntimeError::file("read", Path::new("/x"), Errno(libc::EIO));
        check(&error, &["read /x", "Input/output error"]);
        assert_eq!(Errno::SHORT_TRANSFER.to_string(), "fewer bytes were moved than asked");
    }
}
