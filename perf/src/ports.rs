//! Ports for nodes that are killed and come back to the same ones.
//!
//! They are taken from below the range that the kernel gives to outgoing connections: there, a
//! connection could take the port of a node that is down for the moment, and an attempt to reach
//! such a node could even connect to itself.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use spillway_runtime::{file, thread};

use crate::error::PerfError;
use crate::identity::Draw;

/// Ports below are left to services.
const PORT_MIN: u16 = 10_000;
/// Where outgoing connections begin if the kernel does not tell.
const OUTGOING_MIN: u16 = 32_768;

/// What this process was given before: two clusters that are made in the same moment must not get
/// the same ports.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// `count` free ports in a row on `ip`, `blocks` times. They are free now, and not given out again
/// by this process; nothing else reserves them.
pub fn free_blocks(
    ip: IpAddr,
    count: u16,
    blocks: usize,
    seed: u64,
) -> Result<Vec<u16>, PerfError> {
    const ATTEMPTS: usize = 10_000;
    let end = outgoing_min().max(PORT_MIN + 1000);
    let mut draw = Draw::new(seed ^ u64::from(std::process::id()), 0x9027);
    let mut found: Vec<u16> = Vec::new();
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..ATTEMPTS {
        if found.len() == blocks {
            break;
        }
        let first = PORT_MIN + draw.below(u64::from(end - PORT_MIN - count)) as u16;
        let overlaps = |other: &u16| first < other + count && *other < first + count;
        let is_new = |port: u16| !given.contains(&port) && is_free(ip, port);
        if !found.iter().any(overlaps) && (first..first + count).all(is_new) {
            found.push(first);
            given.extend(first..first + count);
        }
    }
    if found.len() < blocks {
        let text = format!("there are not {blocks} times {count} free ports in a row on {ip}");
        return Err(PerfError::Refused(text));
    }
    Ok(found)
}

fn is_free(ip: IpAddr, port: u16) -> bool {
    TcpListener::bind(SocketAddr::new(ip, port)).is_ok()
}

/// The lowest port of outgoing connections.
fn outgoing_min() -> u16 {
    let path = Path::new("/proc/sys/net/ipv4/ip_local_port_range");
    let text = file::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(OUTGOING_MIN)
}

/// Waits until the ports of a killed node are free again: the kernel takes an io_uring apart, and
/// with it the listening socket that a multishot accept holds, some milliseconds after the process
/// is gone. Addresses of other network namespaces cannot be looked at and count as free.
pub fn wait_until_free(addresses: &[SocketAddr]) -> Result<(), PerfError> {
    const ATTEMPTS: usize = 5_000;
    for address in addresses {
        let mut attempts = 0;
        while let Err(error) = TcpListener::bind(address) {
            if error.kind() == io::ErrorKind::AddrNotAvailable {
                break;
            }
            attempts += 1;
            if attempts == ATTEMPTS || error.kind() != io::ErrorKind::AddrInUse {
                let doing = format!("waiting for {address} to be free after the kill");
                return Err(PerfError::system(doing)(error));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn blocks_are_free_and_apart() {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut found = free_blocks(ip, 4, 5, 7).expect("there are some");
        assert_eq!(found.len(), 5);
        found.sort_unstable();
        assert!(found.windows(2).all(|pair| pair[0] + 4 <= pair[1]), "{found:?}");
        assert!(found[0] >= PORT_MIN && found[4] + 4 <= outgoing_min().max(PORT_MIN + 1000));
        let addresses: Vec<SocketAddr> =
            found.iter().map(|port| SocketAddr::new(ip, *port)).collect();
        wait_until_free(&addresses).expect("free");
        wait_until_free(&["203.0.113.9:1".parse().expect("an address")]).expect("not here");
    }
}
