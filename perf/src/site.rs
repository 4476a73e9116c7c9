//! Where a burst takes place: directories, addresses, CPUs, sizes, the measured device.

use std::io::{Error, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spillway_runtime::clock::wall_now_micros;
use spillway_runtime::file;

use crate::arguments::{BurstArguments, BurstOptions};
use crate::config::{ClusterConfig, ClusterNode, NodeConfig};
use crate::cpu;
use crate::error::PerfError;
use crate::identity::{Draw, mix};
use crate::machine::{DeviceWrite, Machine, measure_device, memory_available_bytes};
use crate::node::{NodeHome, directories};
use crate::ports::free_blocks;
use crate::proxy::Mesh;
use crate::workload::WorkloadKind;

/// Bytes of a log segment, unless the log is small.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of the smallest segment.
const SEGMENT_BYTES_MIN: u64 = 8 << 20;
/// Segments of a log at least.
const SEGMENTS_MIN: u64 = 8;
/// The smallest memory budget of a node.
const MEMORY_BYTES_MIN: u64 = 256 << 20;
/// Port of shard 0 of a node that has an address of its own.
const HOST_PORT: u16 = 7400;
/// Names the clusters of bursts; they differ by their keys.
const CLUSTER_ID: u64 = 0xB0A5;
/// Room that must stay free on the log's file system.
const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// Where one node of a cluster runs, if not simply on loopback.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its address there.
    pub ip: IpAddr,
    /// Words in front of the node's program that take it there.
    pub wrapper: Vec<String>,
}

/// How the nodes of a burst are laid out.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// Where each node runs; empty: all on loopback.
    pub hosts: Vec<Host>,
    /// Whether connections between nodes go through proxies that can cut and delay them.
    pub is_proxied: bool,
}

/// Where the burst takes place.
#[derive(Debug)]
pub(crate) struct Site {
    directory: tempfile::TempDir,
    /// How each node is run.
    pub(crate) homes: Vec<NodeHome>,
    /// The nodes as clients and each other see them.
    pub(crate) nodes: Vec<ClusterNode>,
    /// The proxies between them, if there are any.
    pub(crate) mesh: Option<Arc<Mesh>>,
    /// Bytes of each node's log.
    pub(crate) log_bytes: u64,
    memory_bytes: u64,
    server_cpus: Vec<usize>,
    generator_cpus: Vec<usize>,
    pub(crate) is_pinned: bool,
    pub(crate) machine: Machine,
    pub(crate) device: DeviceWrite,
}

impl Site {
    /// Makes the directories, sizes the nodes and measures the device.
    pub(crate) fn prepare(options: &BurstOptions, seed: u64) -> Result<Self, PerfError> {
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
        let log_bytes = log_bytes(arguments);
        check_disk(&root, log_bytes * u64::from(arguments.nodes))?;
        let allowed = cpu::allowed();
        // On two CPUs the node's memory and disk workers need the generator's idle time.
        let is_pinned =
            allowed.len() >= 2 && (arguments.pin || (!arguments.no_pin && allowed.len() > 2));
        // The generator takes the last CPU: interrupts and the node's first shard like the first.
        let split = if is_pinned { allowed.len() - 1 } else { 0 };
        let (server_cpus, generator_cpus) = allowed.split_at(split);
        let nodes = addresses(arguments, &options.topology, seed)?;
        let mesh = match options.topology.is_proxied {
            true => Some(Arc::new(Mesh::new(&nodes)?)),
            false => None,
        };
        let mut site = Self {
            homes: Vec::new(),
            nodes,
            mesh,
            log_bytes,
            memory_bytes: memory_bytes(arguments),
            server_cpus: server_cpus.to_vec(),
            generator_cpus: generator_cpus.to_vec(),
            is_pinned,
            machine: Machine::describe(&root)?,
            device: measure_device(&root)?,
            directory,
        };
        site.write_key(seed)?;
        for index in 0..site.nodes.len() {
            let home = site.home(options, index)?;
            site.homes.push(home);
        }
        Ok(site)
    }

    /// The key that the nodes share: anything that nobody else on the machine can read.
    fn write_key(&self, seed: u64) -> Result<(), PerfError> {
        let mut file = file::create(&self.key_file())?;
        // SAFETY: the call has no pointers, and the descriptor is open as long as `file` lives.
        if unsafe { libc::fchmod(file.as_raw_fd(), 0o600) } != 0 {
            return Err(PerfError::system("the key file")(Error::last_os_error()));
        }
        let mut draw = Draw::new(seed ^ wall_now_micros(), 0x4B59);
        let words: String = (0..4).map(|_| format!("{:016x}", draw.bits())).collect();
        file.write_all(format!("{words}\n").as_bytes()).map_err(PerfError::system("the key file"))
    }

    fn key_file(&self) -> PathBuf {
        self.directory.path().join("cluster.key")
    }

    /// Makes the directories of one node and writes its configuration.
    fn home(&self, options: &BurstOptions, index: usize) -> Result<NodeHome, PerfError> {
        let (arguments, node) = (&options.arguments, self.nodes[index]);
        let is_alone = self.nodes.len() == 1;
        let root = match is_alone {
            true => self.directory.path().to_owned(),
            false => self.directory.path().join(format!("node-{}", node.id)),
        };
        let [directory_log, directory_data] = directories(&root);
        file::create_dir_all(&directory_log)?;
        file::create_dir_all(&directory_data)?;
        let seen = match &self.mesh {
            Some(mesh) => mesh.seen(&self.nodes),
            None => self.nodes.clone(),
        };
        let key_file = self.key_file();
        let cluster = ClusterConfig {
            id: u128::from(mix(CLUSTER_ID)) << 64 | u128::from(CLUSTER_ID),
            key_file: &key_file,
            listen_peers: node.peer,
            nodes: &seen,
        };
        let config = NodeConfig {
            id: node.id,
            directory_log: &directory_log,
            directory_data: &directory_data,
            listen: node.client,
            shards: arguments.shards,
            log_bytes: self.log_bytes,
            segment_bytes: segment_bytes(self.log_bytes),
            memory_bytes: self.memory_bytes,
            cluster: (!is_alone).then_some(cluster),
            extra: "",
        };
        let port = |shard| SocketAddr::new(node.client.ip(), node.client.port() + shard);
        let host = options.topology.hosts.get(index);
        let home = NodeHome {
            program: options.program.clone(),
            config: root.join("node.toml"),
            output: root.join("node.output"),
            cpus: self.server_cpus.clone(),
            wrapper: host.map_or_else(Vec::new, |host| host.wrapper.clone()),
            listens: (0..arguments.shards).map(port).chain([node.peer]).collect(),
        };
        home.configure(&config.text())?;
        Ok(home)
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
            let all = [&self.server_cpus[..], &self.generator_cpus].concat();
            cpu::bind(&all).map_err(PerfError::system("unbinding the generator"))?;
        }
        Ok(())
    }

    /// Where the nodes' directories are.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// CPUs the nodes may use.
    pub(crate) fn server_cpus(&self) -> usize {
        if self.is_pinned { self.server_cpus.len() } else { self.machine.cpus }
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
        // Nodes of a cluster share the machine, and each writes everything.
        let bytes_per_second = BYTES_PER_SECOND_MAX / f64::from(arguments.nodes);
        bytes_per_second * (per_transaction / 1000.0).clamp(1.0, 4.0)
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

/// Where the nodes listen. They must come back there after a kill.
fn addresses(
    arguments: &BurstArguments,
    topology: &Topology,
    seed: u64,
) -> Result<Vec<ClusterNode>, PerfError> {
    let nodes = usize::from(arguments.nodes);
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    // One port per shard, and one for the other nodes.
    let ports = match topology.hosts.is_empty() {
        true => free_blocks(loopback, arguments.shards + 1, nodes, seed)?,
        false => vec![HOST_PORT; nodes],
    };
    let node = |(index, port): (usize, u16)| {
        let ip = topology.hosts.get(index).map_or(loopback, |host| host.ip);
        let [client, peer] = [port, port + arguments.shards].map(|port| SocketAddr::new(ip, port));
        ClusterNode { id: index as u16 + 1, peer, client }
    };
    Ok(ports.into_iter().enumerate().map(node).collect())
}

fn memory_bytes(arguments: &BurstArguments) -> u64 {
    match arguments.memory_gib {
        Some(gib) => (gib * (1u64 << 30) as f64) as u64,
        None => {
            let all = memory_available_bytes().unwrap_or(4 << 30) / 10 * 6;
            (all / u64::from(arguments.nodes)).max(MEMORY_BYTES_MIN)
        }
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
}
