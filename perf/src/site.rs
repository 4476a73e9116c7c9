//! Where a burst takes place: directories, CPUs, sizes, the measured device.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use spillway_runtime::{file, thread};

use crate::arguments::{BurstArguments, BurstOptions};
use crate::config::NodeConfig;
use crate::cpu;
use crate::error::PerfError;
use crate::machine::{DeviceWrite, Machine, measure_device, memory_available_bytes};
use crate::node::{NodeHome, directories};
use crate::workload::WorkloadKind;

/// Bytes of a log segment, unless the log is small.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of the smallest segment.
const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Segments of a log at least.
const SEGMENTS_MIN: u64 = 8;
/// Room that must stay free on the log's file system.
const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// Where the burst takes place.
#[derive(Debug)]
pub(crate) struct Site {
    directory: tempfile::TempDir,
    /// How the node is run.
    pub(crate) home: NodeHome,
    /// Bytes of the log.
    pub(crate) log_bytes: u64,
    memory_bytes: u64,
    generator_cpus: Vec<usize>,
    pub(crate) is_pinned: bool,
    pub(crate) machine: Machine,
    pub(crate) device: DeviceWrite,
}

impl Site {
    /// Makes the directories, sizes the node and measures the device.
    pub(crate) fn prepare(options: &BurstOptions) -> Result<Self, PerfError> {
        let arguments = &options.arguments;
        let parent = match &arguments.dir {
            Some(parent) => {
                file::create_dir_all(parent)?;
                parent.clone()
            }
            None => std::env::temp_dir(),
        };
        let directory = tempfile::Builder::new()
            .prefix("spillway-burst-")
            .tempdir_in(&parent)
            .map_err(PerfError::system(format!("a directory in {}", parent.display())))?;
        let root = directory.path().to_owned();
        for path in directories(&root) {
            file::create_dir_all(&path)?;
        }
        let log_bytes = log_bytes(arguments);
        check_disk(&root, log_bytes)?;
        let allowed = cpu::allowed();
        // On two CPUs the node's memory and disk workers need the generator's idle time.
        let is_pinned =
            allowed.len() >= 2 && (arguments.pin || (!arguments.no_pin && allowed.len() > 2));
        // The generator takes the last CPU: interrupts and the node's first shard like the first.
        let split = if is_pinned { allowed.len() - 1 } else { 0 };
        let (server_cpus, generator_cpus) = allowed.split_at(split);
        let site = Self {
            home: NodeHome {
                program: options.program.clone(),
                config: root.join("node.toml"),
                output: root.join("node.output"),
                cpus: server_cpus.to_vec(),
            },
            log_bytes,
            memory_bytes: memory_bytes(arguments),
            generator_cpus: generator_cpus.to_vec(),
            is_pinned,
            machine: Machine::describe(&root)?,
            device: measure_device(&root)?,
            directory,
        };
        site.configure(listen(arguments.shards)?, arguments.shards)?;
        Ok(site)
    }

    /// Writes the node's configuration.
    pub(crate) fn configure(&self, listen: SocketAddr, shards: u16) -> Result<(), PerfError> {
        let [directory_log, directory_data] = directories(self.directory.path());
        let config = NodeConfig {
            directory_log: &directory_log,
            directory_data: &directory_data,
            listen,
            shards,
            log_bytes: self.log_bytes,
            segment_bytes: segment_bytes(self.log_bytes),
            memory_bytes: self.memory_bytes,
        };
        self.home.configure(&config.text())
    }

    /// Binds the calling thread to the generator's CPUs, if node and generator have their own.
    pub(crate) fn bind_generator(&self) -> Result<(), PerfError> {
        if self.is_pinned {
            cpu::bind(&self.generator_cpus).map_err(PerfError::system("binding the generator"))?;
        }
        Ok(())
    }

    /// Gives the calling thread all CPUs again.
    pub(crate) fn unbind_generator(&self) -> Result<(), PerfError> {
        if self.is_pinned {
            let all = [&self.home.cpus[..], &self.generator_cpus].concat();
            cpu::bind(&all).map_err(PerfError::system("unbinding the generator"))?;
        }
        Ok(())
    }

    /// CPUs the node may use.
    pub(crate) fn server_cpus(&self) -> usize {
        if self.is_pinned { self.home.cpus.len() } else { self.machine.cpus }
    }

    /// Removes the directory, or keeps it and tells where.
    pub(crate) fn close(self, arguments: &BurstArguments) -> Result<Option<String>, PerfError> {
        if arguments.keep {
            let kept: PathBuf = self.directory.keep();
            return Ok(Some(kept.display().to_string()));
        }
        self.directory.close().map_err(PerfError::system("removing the burst's directory"))?;
        Ok(None)
    }
}

/// The size of the log: what was asked for, or enough for the load as it is known to be.
fn log_bytes(arguments: &BurstArguments) -> u64 {
    const GIB: f64 = (1u64 << 30) as f64;
    const BYTES_PER_SECOND_MAX: f64 = 400e6;
    const BYTES_MAX: f64 = 24.0 * GIB;
    if let Some(gib) = arguments.log_gib {
        return whole_segments((gib * GIB) as u64);
    }
    // What one transaction leaves in the log, and what loading does; on the high side.
    let payload = |default: usize| arguments.payload.unwrap_or(default) as f64;
    let (per_transaction, load) = match arguments.workload {
        WorkloadKind::Transfer => (250.0 + payload(56), arguments.accounts as f64 * 120.0),
        WorkloadKind::Insert => (100.0 + payload(100), 0.0),
        WorkloadKind::Hot => (120.0, 0.0),
        WorkloadKind::YcsbA => (1200.0, 256e6),
        WorkloadKind::Cluster12 => (1300.0, 256e6),
        WorkloadKind::Cluster15 | WorkloadKind::Cluster31 => (250.0, 512e6),
        WorkloadKind::Cluster37 => (12_000.0, 256e6),
    };
    let seconds = arguments.ramp + arguments.hold + arguments.fall;
    let rate = if arguments.rate > 0.0 {
        arguments.rate * per_transaction
    } else {
        // As fast as possible: large values reach more bytes per second.
        BYTES_PER_SECOND_MAX * (per_transaction / 1000.0).clamp(1.0, 4.0)
    };
    // One transaction per batch fills a block of its own at worst.
    let blocks = if arguments.batch < 32 { 2.0 } else { 1.0 };
    whole_segments((rate * seconds * blocks + load).min(BYTES_MAX) as u64 + (512 << 20))
}

/// Bytes of a segment of a log of so many bytes.
fn segment_bytes(log_bytes: u64) -> u64 {
    if log_bytes >= SEGMENTS_MIN * SEGMENT_BYTES { SEGMENT_BYTES } else { SEGMENT_BYTES_MIN }
}

/// The next number of bytes that is a log of whole segments.
fn whole_segments(bytes: u64) -> u64 {
    let bytes = bytes.max(SEGMENTS_MIN * SEGMENT_BYTES_MIN);
    bytes.next_multiple_of(segment_bytes(bytes))
}

/// Where the node is to listen. It must come back there after the kill. One shard can choose a
/// port itself and be given the same one again; several need ports in a row, looked for here.
fn listen(shards: u16) -> Result<SocketAddr, PerfError> {
    const ATTEMPTS: usize = 100;
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    if shards == 1 {
        return Ok(address(0));
    }
    let bind = |port| TcpListener::bind(address(port));
    for _ in 0..ATTEMPTS {
        let first = bind(0).and_then(|listener| listener.local_addr());
        let first = first.map_err(PerfError::system("looking for free ports"))?.port();
        let mut others = (0..shards).map(|shard| first.checked_add(shard).map(bind));
        if others.all(|other| matches!(other, Some(Ok(_)))) {
            return Ok(address(first));
        }
    }
    Err(PerfError::Refused(format!("there are no {shards} free ports in a row on 127.0.0.1")))
}

fn memory_bytes(arguments: &BurstArguments) -> u64 {
    match arguments.memory_gib {
        Some(gib) => (gib * (1u64 << 30) as f64) as u64,
        None => memory_available_bytes().unwrap_or(4 << 30) / 10 * 6,
    }
}

fn check_disk(directory: &Path, log_bytes: u64) -> Result<(), PerfError> {
    let free = file::free_bytes(directory)?;
    if free < log_bytes + DISK_RESERVE_BYTES {
        return Err(PerfError::DiskFull {
            directory: directory.display().to_string(),
            free_mib: free >> 20,
            needed_mib: (log_bytes + DISK_RESERVE_BYTES) >> 20,
        });
    }
    Ok(())
}

/// Waits until the ports of a killed node are free again: the kernel takes an io_uring apart, and
/// with it the listening socket that a multishot accept holds, some milliseconds after the process
/// is gone.
pub(crate) fn wait_until_free(listen: SocketAddr, shards: u16) -> Result<(), PerfError> {
    const ATTEMPTS: usize = 5_000;
    for shard in 0..shards {
        let address = SocketAddr::new(listen.ip(), listen.port().saturating_add(shard));
        let mut attempts = 0;
        while let Err(error) = TcpListener::bind(address) {
            attempts += 1;
            if attempts == ATTEMPTS || error.kind() != std::io::ErrorKind::AddrInUse {
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
    use super::*;

    #[test]
    fn logs_are_whole_segments() {
        for bytes in [1, 32 << 20, 100 << 20, 500 << 20, (1 << 30) + 1, 9 << 30] {
            let log_bytes = whole_segments(bytes);
            let segment = segment_bytes(log_bytes);
            assert!(log_bytes >= bytes && log_bytes.is_multiple_of(segment), "{bytes}");
            assert!((SEGMENT_BYTES_MIN..=SEGMENT_BYTES).contains(&segment));
            assert!(segment.is_multiple_of(4096) && log_bytes / segment >= SEGMENTS_MIN);
        }
    }

    #[test]
    fn ports_in_a_row_are_found() {
        assert_eq!(listen(1).expect("needs none").port(), 0);
        assert!(listen(4).expect("there are some").port() > 0);
    }
}
