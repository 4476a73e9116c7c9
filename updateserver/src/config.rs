//! The configuration file: TOML, every key with its meaning and default in this one place. A key
//! that is not here is an error, and so is a value outside its range.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spillway_net::limits;
use spillway_net::peer::KeyError;
use spillway_runtime::error::RuntimeError;
use spillway_runtime::file;

mod cluster;

pub use cluster::{ClusterConfig, ClusterNode, ClusterTls};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("{0}")]
    Read(#[from] RuntimeError),
    /// Its syntax, an unknown key, a value of the wrong type.
    #[error("{path}: {error}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        error: Box<toml::de::Error>,
    },
    /// A value outside its range.
    #[error("{path}: {key} = {value}: {expected}")]
    Range {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// The cluster's key is none.
    #[error("{path}: {error}")]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why.
        error: KeyError,
    },
    /// The cluster's key is another file by mistake.
    #[error("{path}: {bytes} bytes are no cluster key: correct cluster.key_file")]
    KeyFileLarge {
        /// The key file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[node]`: who and where.
    pub node: NodeConfig,
    /// `[log]`: the log's space and writes.
    #[serde(default)]
    pub log: LogConfig,
    /// `[memory]`: the budget.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// `[network]`: connections and their buffers.
    #[serde(default)]
    pub network: NetworkConfig,
    /// `[threads]`: cores.
    #[serde(default)]
    pub threads: ThreadsConfig,
    /// `[cluster]`: the other nodes.
    #[serde(default)]
    pub cluster: ClusterConfig,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// This node's number in the cluster, 1 to 999, never used again for another disk. Fixed at
    /// format. Default 1.
    #[serde(default = "one")]
    pub id: u16,
    /// Directory on the log disk. No default.
    pub directory_log: PathBuf,
    /// Directory on the data disk. No default.
    pub directory_data: PathBuf,
    /// Address of shard 0; shard n listens n ports above. Port 0 lets the system choose all
    /// ports. Default 127.0.0.1:7400.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Shards, each a thread with its share of the partitions. 0: by the number of allowed CPUs,
    /// one less, from four on two less (for the log and for the kernel). Default 0.
    #[serde(default)]
    pub shards: u16,
    /// Partitions, a power of two up to 1,024. Fixed at format. Default 256.
    #[serde(default = "partitions")]
    pub partitions: u16,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Space for redo, written in full at format, so that an append cannot meet a full disk.
    /// Fixed at format. Default 4 GiB.
    pub bytes_total: u64,
    /// Size of one segment file, from 8 MiB. Fixed at format. Default 64 MiB.
    pub segment_bytes: u64,
    /// What the log disk writes as a whole or not at all: 512, 1024, 2048 or 4096 bytes; 0: the
    /// physical block of the disk. Fixed at format. Default 0.
    pub block_bytes: u32,
    /// Batches in flight to the disk, 1 to 4. Default 4.
    pub writes_in_flight_max: usize,
    /// With fewer batches in flight the next one goes at once, however small. Default 2.
    pub writes_in_flight_small_max: usize,
    /// With more batches in flight, the next one waits until it holds this much or one of them is
    /// durable. Default 32 KiB.
    pub batch_bytes_wait: usize,
    /// Silence after which a watermark covers the last batch, microseconds. Default 2,000.
    pub watermark_idle_us: u64,
}

/// `[memory]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// Memory for rows and their indexes. 0: half of the machine's. Default 0.
    pub budget_bytes: u64,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Connections per shard; more are closed at once. Default 16,384.
    pub connections_max: u32,
    /// Receive buffers per shard, a power of two. Default 256.
    pub receive_buffers: u16,
    /// Bytes of each. Default 64 KiB.
    pub receive_buffer_bytes: u32,
    /// Bytes of frames per shard that have arrived and wait; receiving stops there. Default 64
    /// MiB.
    pub input_bytes_max: usize,
    /// Answers a client has not read; a client that reads nothing is cut off there. Default 16
    /// MiB.
    pub output_bytes_max: usize,
    /// Time from connecting to the hello, milliseconds. Default 3,000.
    pub hello_timeout_ms: u64,
    /// Time from the first byte of a frame to its last, milliseconds; a slower client is cut off.
    /// Time that the input budget held the client up does not count. Default 10,000.
    pub frame_timeout_ms: u64,
    /// Silence of a client's machine after which its connection is given up, milliseconds, from
    /// 2,000; its kernel answers for an idle client. Default 60,000.
    pub silence_timeout_ms: u32,
}

/// `[threads]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThreadsConfig {
    /// Whether each thread stays on one CPU: for dedicated machines. Default false.
    pub pin: bool,
    /// Whether the log has a thread of its own: `auto` gives it one from four allowed CPUs on.
    /// Default `auto`.
    pub log: LogThread,
}

/// `threads.log`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogThread {
    /// By the number of CPUs.
    #[default]
    Auto,
    /// A thread of its own.
    Own,
    /// On shard 0's thread.
    Shared,
}

fn one() -> u16 {
    1
}

fn partitions() -> u16 {
    limits::PARTITIONS_DEFAULT as u16
}

fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400))
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            bytes_total: 4 << 30,
            segment_bytes: 64 << 20,
            block_bytes: 0,
            writes_in_flight_max: limits::LOG_WRITES_IN_FLIGHT_MAX,
            writes_in_flight_small_max: 2,
            batch_bytes_wait: 32 << 10,
            watermark_idle_us: 2000,
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            receive_buffers: 256,
            receive_buffer_bytes: 64 << 10,
            input_bytes_max: 64 << 20,
            output_bytes_max: 16 << 20,
            hello_timeout_ms: 3000,
            frame_timeout_ms: 10_000,
            silence_timeout_ms: 60_000,
        }
    }
}

fn range(
    path: &Path,
    good: bool,
    key: &'static str,
    value: impl ToString,
    expected: &str,
) -> Result<(), ConfigError> {
    if good {
        return Ok(());
    }
    let (path, value, expected) = (path.to_owned(), value.to_string(), expected.to_owned());
    Err(ConfigError::Range { path, key, value, expected })
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &file::read_to_string(path)?)
    }

    /// Reads and checks a file's text; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            error: Box::new(error),
        })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let (node, network) = (&self.node, &self.network);
        let range =
            |good: bool, key, value: u64, expected: &str| range(path, good, key, value, expected);
        let good = (1..=limits::NODE_ID_MAX).contains(&node.id);
        range(good, "node.id", node.id.into(), "from 1 to 999")?;
        let partitions = usize::from(node.partitions);
        let good = partitions.is_power_of_two() && partitions <= limits::PARTITIONS_MAX;
        range(good, "node.partitions", partitions as u64, "a power of two up to 1024")?;
        let good = node.shards <= node.partitions;
        range(good, "node.shards", node.shards.into(), "not more than there are partitions")?;
        let port = node.listen.port();
        let good = port == 0 || port.checked_add(node.shards.saturating_sub(1)).is_some();
        range(good, "node.listen", port.into(), "a port above which every shard has one")?;
        self.log.check(path)?;
        let budget = self.memory.budget_bytes;
        let good = budget == 0 || budget >= 256 << 20;
        range(
            good,
            "memory.budget_bytes",
            budget,
            "0 (half of the machine's) or at least 256 MiB",
        )?;
        let connections = network.connections_max;
        let good = (1..=1 << 20).contains(&connections);
        range(good, "network.connections_max", connections.into(), "from 1 to 1,048,576")?;
        let buffers = network.receive_buffers;
        let good = buffers.is_power_of_two() && (8..=32_768).contains(&buffers);
        range(good, "network.receive_buffers", buffers.into(), "a power of two, 8 to 32,768")?;
        let bytes = network.receive_buffer_bytes;
        let good = (1024..=1 << 20).contains(&bytes);
        range(good, "network.receive_buffer_bytes", bytes.into(), "from 1 KiB to 1 MiB")?;
        let input = network.input_bytes_max;
        let good = input >= 4 * limits::FRAME_PAYLOAD_BYTES_MAX;
        range(good, "network.input_bytes_max", input as u64, "at least 4 MiB")?;
        let output = network.output_bytes_max;
        let good = output >= 2 * limits::ANSWER_PAYLOAD_BYTES_MAX;
        range(good, "network.output_bytes_max", output as u64, "at least 8 MiB")?;
        let hello = network.hello_timeout_ms;
        range((10..=600_000).contains(&hello), "network.hello_timeout_ms", hello, "10 to 600,000")?;
        let frame = network.frame_timeout_ms;
        range((10..=600_000).contains(&frame), "network.frame_timeout_ms", frame, "10 to 600,000")?;
        let silence = network.silence_timeout_ms;
        let good = (2_000..=600_000).contains(&silence);
        range(good, "network.silence_timeout_ms", silence.into(), "2,000 to 600,000")?;
        self.cluster.check(path, node.id)
    }
}

impl LogConfig {
    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let range =
            |good: bool, key, value: u64, expected: &str| range(path, good, key, value, expected);
        let good = (8 << 20..=1 << 30).contains(&self.segment_bytes)
            && self.segment_bytes.is_multiple_of(4096);
        range(good, "log.segment_bytes", self.segment_bytes, "from 8 MiB to 1 GiB, in 4 KiB")?;
        let block = self.block_bytes;
        let good = block == 0 || (block.is_power_of_two() && (512..=4096).contains(&block));
        range(good, "log.block_bytes", block.into(), "0, 512, 1024, 2048 or 4096")?;
        let segments = self.bytes_total / self.segment_bytes;
        let good =
            (8..=65_536).contains(&segments) && self.bytes_total.is_multiple_of(self.segment_bytes);
        range(good, "log.bytes_total", self.bytes_total, "8 to 65,536 whole segments")?;
        let writes = self.writes_in_flight_max;
        let good = (1..=limits::LOG_WRITES_IN_FLIGHT_MAX).contains(&writes);
        range(good, "log.writes_in_flight_max", writes as u64, "from 1 to 4")?;
        let small = self.writes_in_flight_small_max;
        let good = (1..=limits::LOG_WRITES_IN_FLIGHT_MAX).contains(&small);
        range(good, "log.writes_in_flight_small_max", small as u64, "from 1 to 4")?;
        let wait = self.batch_bytes_wait;
        let good = (1..=limits::BATCH_BYTES_MAX).contains(&wait);
        range(good, "log.batch_bytes_wait", wait as u64, "from 1 byte to 1 MiB")?;
        let idle = self.watermark_idle_us;
        range(
            (100..=1_000_000).contains(&idle),
            "log.watermark_idle_us",
            idle,
            "100 to 1,000,000",
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[node]\ndirectory_log = '/l'\ndirectory_data = '/d'\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("test.toml"), text)
    }

    #[test]
    fn the_least_a_file_needs() {
        let config = parse(MINIMAL).expect("two directories suffice");
        assert_eq!(config.node.partitions, 256);
        assert_eq!(config.log, LogConfig::default());
    }

    #[test]
    fn unknown_keys_are_errors_that_name_the_key() {
        let error = parse(&format!("{MINIMAL}[log]\nbytes_totl = 1\n")).expect_err("a typo");
        assert!(error.to_string().contains("bytes_totl"), "{error}");
        assert!(error.to_string().contains("test.toml"), "{error}");
        assert!(parse(&format!("{MINIMAL}[lgo]\n")).is_err());
    }

    #[test]
    fn values_outside_their_range_are_errors_that_name_the_range() {
        for (section, line, expected) in [
            ("node", "partitions = 100", "power of two"),
            ("node", "id = 1000", "1 to 999"),
            ("log", "[log]\nbytes_total = 1000", "whole segments"),
            ("log", "[log]\nsegment_bytes = 4194304\nbytes_total = 33554432", "8 MiB"),
            ("log", "[log]\nblock_bytes = 600", "0, 512, 1024, 2048 or 4096"),
            ("log", "[log]\nblock_bytes = 8192", "0, 512, 1024, 2048 or 4096"),
            ("log", "[log]\nwrites_in_flight_max = 5", "1 to 4"),
            ("memory", "[memory]\nbudget_bytes = 5", "256 MiB"),
            ("network", "[network]\nreceive_buffers = 9", "power of two"),
        ] {
            let error = parse(&format!("{MINIMAL}{line}\n")).expect_err(line);
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains(section), "{text}");
        }
    }
}
