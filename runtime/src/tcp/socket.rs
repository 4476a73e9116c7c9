//! Socket calls that have no ring operation, or are too rare to need one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{Errno, RuntimeError};

/// A socket address in the kernel's form.
#[derive(Clone, Copy)]
pub(super) struct RawAddress {
    storage: libc::sockaddr_storage,
    bytes: libc::socklen_t,
}

impl RawAddress {
    fn empty() -> RawAddress {
        // SAFETY: all-zero is a valid sockaddr_storage of no family.
        let storage = unsafe { std::mem::zeroed() };
        RawAddress { storage, bytes: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    pub(super) fn of(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::empty();
        let storage = (&raw mut raw.storage).cast::<u8>();
        match address {
            SocketAddr::V4(address) => {
                let value = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: a sockaddr_storage is large and aligned enough for every family.
                unsafe { storage.cast::<libc::sockaddr_in>().write(value) };
                raw.bytes = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(address) => {
                let value = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: as above.
                unsafe { storage.cast::<libc::sockaddr_in6>().write(value) };
                raw.bytes = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        raw
    }

    fn to_address(self) -> Option<SocketAddr> {
        let storage = (&raw const self.storage).cast::<u8>();
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says which type the storage holds.
                let value = unsafe { storage.cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(u32::from_be(value.sin_addr.s_addr));
                Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(value.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let value = unsafe { storage.cast::<libc::sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(value.sin6_addr.s6_addr);
                let port = u16::from_be(value.sin6_port);
                let (flow, scope) = (value.sin6_flowinfo, value.sin6_scope_id);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
            }
            _ => None,
        }
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(super) fn bytes(&self) -> libc::socklen_t {
        self.bytes
    }
}

/// A listening socket and the address it got (the port, if zero was asked for).
pub(super) fn listening(
    address: SocketAddr,
    backlog: u32,
) -> Result<(OwnedFd, SocketAddr), RuntimeError> {
    let explain = |errno| RuntimeError::listen(address, errno);
    let socket = stream(address).map_err(explain)?;
    // Set on the listener because accepted sockets inherit it: one call, not one per connection.
    set_flag(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY).map_err(explain)?;
    set_flag(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR).map_err(explain)?;
    let raw = RawAddress::of(address);
    // SAFETY: the address lives through the call and has the length given.
    if unsafe { libc::bind(socket.as_raw_fd(), raw.as_ptr(), raw.bytes()) } != 0 {
        return Err(explain(Errno::last()));
    }
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: the descriptor is open; no memory is passed.
    if unsafe { libc::listen(socket.as_raw_fd(), backlog) } != 0 {
        return Err(explain(Errno::last()));
    }
    let bound = name_of(socket.as_raw_fd(), libc::getsockname);
    let bound = bound.ok_or_else(|| explain(Errno::last()))?;
    Ok((socket, bound))
}

/// A socket that can be connected to `address`.
pub(super) fn connecting(address: SocketAddr) -> Result<OwnedFd, RuntimeError> {
    let explain = |errno: Errno| match errno.0 {
        libc::EMFILE | libc::ENFILE => {
            RuntimeError::FilesTooMany { what: format!("connect to {address}") }
        }
        _ => RuntimeError::System { operation: "socket", errno },
    };
    let socket = stream(address).map_err(explain)?;
    set_flag(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY).map_err(explain)?;
    Ok(socket)
}

/// The address of the other side, if it is still there.
pub(super) fn peer_of(fd: RawFd) -> Option<SocketAddr> {
    name_of(fd, libc::getpeername)
}

/// Ends both directions, so that every pending operation on the socket ends.
pub(super) fn shut_down(fd: RawFd) {
    // SAFETY: the descriptor is open; no memory is passed. A socket whose peer is gone says
    // ENOTCONN, and then nothing is pending on it.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

type NameCall = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name_of(fd: RawFd, call: NameCall) -> Option<SocketAddr> {
    let mut raw = RawAddress::empty();
    // SAFETY: the storage is writable for the length given.
    let result = unsafe { call(fd, (&raw mut raw.storage).cast(), &raw mut raw.bytes) };
    if result == 0 { raw.to_address() } else { None }
}

/// Blocking on purpose: the ring waits for a blocking socket and gives up on a non-blocking one.
fn stream(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the descriptor is new and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// See [`super::TcpRing::set_silence_max`].
pub(super) fn set_silence_max(fd: RawFd, millis: u32) -> Result<(), Errno> {
    // Zero would mean the system's default, and above the range of the kernel's type is forever.
    let millis = i32::try_from(millis.max(1)).unwrap_or(i32::MAX);
    // While there is something to send, or a probe is unanswered.
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, millis)?;
    // While there is nothing to send: the first probe half way, the verdict at the end. The kernel
    // counts in seconds and allows at most 32,767.
    let idle = (millis / 2_000).clamp(1, 32_767);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}

/// See [`super::TcpRing::received_bytes`].
pub(super) fn received_bytes(fd: RawFd) -> Result<u64, Errno> {
    // `tcpi_bytes_received` of the kernel's `struct tcp_info`, which grows at its end only; the
    // one of the C library ends before it.
    const AT: usize = 128;
    let mut info = [0u8; AT + 8];
    let mut bytes = info.len() as libc::socklen_t;
    // SAFETY: the buffer lives through the call and has the length given.
    let result = unsafe {
        let value = info.as_mut_ptr().cast();
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut bytes)
    };
    if result != 0 {
        return Err(Errno::last());
    }
    let field = info.last_chunk::<8>().expect("the field is at the end");
    if (bytes as usize) < info.len() {
        // A kernel before 4.1.
        return Err(Errno(libc::ENOSYS));
    }
    Ok(u64::from_ne_bytes(*field))
}

fn set_flag(socket: &OwnedFd, level: i32, name: i32) -> Result<(), Errno> {
    set_option(socket.as_raw_fd(), level, name, 1)
}

fn set_option(fd: RawFd, level: i32, name: i32, value: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the value lives through the call and has the length given.
    let result = unsafe {
        let bytes = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(fd, level, name, (&raw const value).cast(), bytes)
    };
    if result == 0 { Ok(()) } else { Err(Errno::last()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernel_form() {
        for text in ["127.0.0.1:80", "255.1.2.3:65535", "[::1]:1", "[fe80::1%7]:9"] {
            let address: SocketAddr = text.parse().expect("valid");
            assert_eq!(RawAddress::of(address).to_address(), Some(address));
        }
        assert_eq!(RawAddress::empty().to_address(), None);
    }

    #[test]
    fn port_in_use_is_named() {
        let (_first, bound) = listening("127.0.0.1:0".parse().expect("valid"), 1).expect("listen");
        assert_ne!(bound.port(), 0);
        let error = listening(bound, 1).expect_err("taken");
        assert_eq!(error, RuntimeError::AddressInUse { address: bound });
    }

    #[test]
    fn received_bytes_count_whether_read_or_not() {
        use std::io::{Read, Write};
        use std::net::{TcpListener, TcpStream};
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut sender = TcpStream::connect(address).expect("somebody listens");
        let (mut receiver, _) = listener.accept().expect("it connects");
        let fd = receiver.as_raw_fd();
        assert_eq!(received_bytes(fd), Ok(0));
        sender.write_all(&[7; 1000]).expect("it fits the buffer");
        receiver.read_exact(&mut [0; 300]).expect("they were sent");
        assert_eq!(received_bytes(fd), Ok(1000));
        sender.write_all(&[7; 5]).expect("it fits the buffer");
        receiver.read_exact(&mut [0; 705]).expect("they were sent");
        assert_eq!(received_bytes(fd), Ok(1005));
        assert_eq!(received_bytes(-1), Err(Errno(libc::EBADF)));
    }

    #[test]
    fn silence_is_limited_by_every_option() {
        let get = |fd, level, name| {
            let (mut value, mut bytes): (libc::c_int, libc::socklen_t) = (0, 4);
            // SAFETY: the value is writable for the length given.
            let result = unsafe {
                libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut bytes)
            };
            assert_eq!((result, bytes), (0, 4));
            value
        };
        let socket = connecting("127.0.0.1:1".parse().expect("valid")).expect("socket");
        let fd = socket.as_raw_fd();
        for (millis, idle) in [(300, 1), (2_000, 1), (10_000, 5), (u32::MAX, 32_767)] {
            set_silence_max(fd, millis).expect("set");
            let timeout = millis.min(i32::MAX as u32) as libc::c_int;
            assert_eq!(get(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT), timeout);
            assert_eq!(get(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE), idle);
            assert_eq!(get(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL), 1);
            assert_eq!(get(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
        }
        assert_eq!(set_silence_max(-1, 1), Err(Errno(libc::EBADF)));
    }

    #[test]
    fn foreign_address_is_named() {
        let address = "192.0.2.1:1".parse().expect("valid");
        let error = listening(address, 1).expect_err("not ours");
        assert_eq!(error, RuntimeError::AddressUnavailable { address });
    }
}
