//! `[cluster]`: which nodes there are, how they reach and trust each other, and when they elect.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spillway_net::ids::{ClusterId, NodeId};
use spillway_net::limits;
use spillway_net::peer::ClusterKey;
use spillway_runtime::file;

use super::{ConfigError, range};

/// Longest key file that is read at all.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest text of an address: a host name has up to 253 bytes.
const ADDRESS_BYTES_MAX: usize = 260;

/// `[cluster]`. Without this section the node is alone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// The cluster's number, 32 hexadecimal digits, the same on all nodes. A node that is alone
    /// may draw its own at format. Fixed at format. No default.
    #[serde(with = "cluster_id", skip_serializing_if = "Option::is_none")]
    pub id: Option<ClusterId>,
    /// File with the secret that all nodes share: 32 bytes or more, every one of which counts.
    /// No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Where the other nodes reach this one. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_peers: Option<SocketAddr>,
    /// The first members, this node among them, the same on all nodes. Who is a member later on
    /// stands in the log; the addresses here help to find them. Empty: this node alone.
    pub nodes: Vec<ClusterNode>,
    /// Whether this node is new and waits until `admin replace-node` takes it in. Default false.
    pub join: bool,
    /// Length of a tick, milliseconds: the unit of the settings below. Default 10.
    pub tick_ms: u64,
    /// A leader is heard at least this often. Default 5.
    pub heartbeat_ticks: usize,
    /// Silence of the leader after which a node asks for an election: at least this. Default 50.
    pub election_ticks_min: usize,
    /// And less than this; drawn anew each time, so that two nodes seldom ask at once. Default
    /// 100.
    pub election_ticks_max: usize,
    /// Bytes of log on their way to one node that it has not confirmed. Default 16 MiB.
    pub peer_bytes_in_flight_max: u64,
    /// Memory for log batches: being filled, written, sent, applied, and kept for nodes that lag.
    /// Default 64 MiB.
    pub slot_ring_bytes: usize,
    /// Certificates for the links between nodes. Without them the links are not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClusterTls>,
}

/// One of `cluster.nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterNode {
    /// Its `node.id`.
    pub id: u16,
    /// Where other nodes reach it, as `host:port`: its `cluster.listen_peers`.
    pub peer: String,
    /// Where clients reach it, as `host:port`: its `node.listen`.
    pub client: String,
}

/// `cluster.tls`: files in PEM form.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterTls {
    /// Certificate of the authority that signed those of all nodes. It signs nothing else.
    pub ca: PathBuf,
    /// This node's certificate, for the name `node-ID.spillway`, with any between it and the
    /// authority behind it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            id: None,
            key_file: None,
            listen_peers: None,
            nodes: Vec::new(),
            join: false,
            tick_ms: 10,
            heartbeat_ticks: 5,
            election_ticks_min: 50,
            election_ticks_max: 100,
            peer_bytes_in_flight_max: 16 << 20,
            slot_ring_bytes: 64 << 20,
            tls: None,
        }
    }
}

impl ClusterConfig {
    /// Whether other nodes exist, or may come.
    #[must_use]
    pub fn has_peers(&self) -> bool {
        self.listen_peers.is_some()
    }

    /// The numbers of the first members, `own` alone if none are given and the node is not new.
    #[must_use]
    pub fn members(&self, own: NodeId) -> Vec<NodeId> {
        if self.nodes.is_empty() && !self.join {
            return vec![own];
        }
        self.nodes.iter().map(|node| NodeId(node.id)).collect()
    }

    /// Reads the key, if one is configured.
    ///
    /// # Errors
    /// If the file cannot be read or holds no key.
    pub fn key_load(&self) -> Result<Option<ClusterKey>, ConfigError> {
        let Some(path) = &self.key_file else { return Ok(None) };
        let bytes = file::bytes_of(path)?;
        if bytes > KEY_FILE_BYTES_MAX {
            return Err(ConfigError::KeyFileLarge { path: path.clone(), bytes });
        }
        let key = ClusterKey::new(&file::read(path)?);
        Ok(Some(key.map_err(|error| ConfigError::Key { path: path.clone(), error })?))
    }

    pub(super) fn check(&self, path: &Path, own: u16) -> Result<(), ConfigError> {
        self.check_members(path, own)?;
        self.check_trust(path)?;
        self.check_times(path)?;
        let bytes = self.slot_ring_bytes;
        let good = (16 << 20..=1 << 30).contains(&bytes) && bytes.is_multiple_of(4096);
        range(path, good, "cluster.slot_ring_bytes", bytes, "16 MiB to 1 GiB, in 4 KiB")?;
        let flight = self.peer_bytes_in_flight_max;
        let good = flight >= 2 * limits::BATCH_BYTES_MAX as u64 && flight <= bytes as u64 / 2;
        let expected = "at least 2 MiB, at most half of cluster.slot_ring_bytes";
        range(path, good, "cluster.peer_bytes_in_flight_max", flight, expected)
    }

    fn check_members(&self, path: &Path, own: u16) -> Result<(), ConfigError> {
        let nodes = |good, value: &dyn ToString, expected: &str| {
            range(path, good, "cluster.nodes", value.to_string(), expected)
        };
        let count = self.nodes.len();
        nodes(count <= limits::NODES_MAX, &format_args!("{count} nodes"), "1 to 7 nodes")?;
        for (at, node) in self.nodes.iter().enumerate() {
            let id = format!("id {}", node.id);
            let good = (1..=limits::NODE_ID_MAX).contains(&node.id);
            nodes(good, &id, "ids from 1 to 999")?;
            let again = self.nodes[..at].iter().any(|earlier| earlier.id == node.id);
            nodes(!again, &id, "each id once")?;
            for address in [&node.peer, &node.client] {
                let expected = "addresses as host:port, an IPv6 host in square brackets";
                nodes(is_address(address), address, expected)?;
            }
            let taken = self.nodes[..at].iter().any(|earlier| earlier.peer == node.peer);
            nodes(!taken, &node.peer, "another peer address for each node")?;
        }
        let contains_own = self.nodes.iter().any(|node| node.id == own);
        if self.join {
            let expected = "false, or the members that are there already in cluster.nodes";
            range(path, count > 0, "cluster.join", true, expected)?;
            let expected = "without node.id, since the node is to join those that are there";
            return nodes(!contains_own, &format_args!("id {own}"), expected);
        }
        let expected = "a list with node.id in it, or cluster.join = true";
        nodes(count == 0 || contains_own, &format_args!("no id {own}"), expected)
    }

    fn check_trust(&self, path: &Path) -> Result<(), ConfigError> {
        let zero = self.id == Some(ClusterId(0));
        range(path, !zero, "cluster.id", "0", "32 hexadecimal digits that are not all 0")?;
        let required = self.nodes.len() > 1 || self.join;
        if !required && self.listen_peers.is_none() {
            return Ok(());
        }
        let missing =
            |there: bool, key, expected: &str| range(path, there, key, "not set", expected);
        let expected = "32 hexadecimal digits, the same on every node (draw them once with \
                        `head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'`)";
        missing(self.id.is_some(), "cluster.id", expected)?;
        let expected = "the address that the other nodes connect to";
        missing(self.listen_peers.is_some(), "cluster.listen_peers", expected)?;
        let expected = "a file with 32 or more secret bytes, the same on every node (make one \
                        with `head -c 32 /dev/urandom > FILE`), or cluster.tls";
        missing(self.key_file.is_some() || self.tls.is_some(), "cluster.key_file", expected)
    }

    fn check_times(&self, path: &Path) -> Result<(), ConfigError> {
        let tick = self.tick_ms;
        range(path, (1..=1000).contains(&tick), "cluster.tick_ms", tick, "1 to 1,000")?;
        let heartbeat = self.heartbeat_ticks;
        let good = (1..=1000).contains(&heartbeat);
        range(path, good, "cluster.heartbeat_ticks", heartbeat, "1 to 1,000")?;
        let (least, most) = (self.election_ticks_min, self.election_ticks_max);
        let good = least >= 3 * heartbeat && least <= 10_000;
        let expected = "at least 3 times cluster.heartbeat_ticks, at most 10,000";
        range(path, good, "cluster.election_ticks_min", least, expected)?;
        let good = most >= least + least.div_ceil(2) && most <= 20_000;
        let expected = "at least half more than cluster.election_ticks_min, at most 20,000";
        range(path, good, "cluster.election_ticks_max", most, expected)
    }
}

/// Whether a text is `host:port`. Whether the host exists is seen when it is connected to.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port_good = port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let host_good = match text.parse::<SocketAddr>() {
        Ok(address) => !address.ip().is_unspecified(),
        Err(_) => !host.is_empty() && host.chars().all(is_name),
    };
    port_good && host_good && text.len() <= ADDRESS_BYTES_MAX
}

mod cluster_id {
    use super::*;

    pub fn serialize<S: Serializer>(id: &Option<ClusterId>, out: S) -> Result<S::Ok, S::Error> {
        id.map(|id| format!("{:032x}", id.0)).serialize(out)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ClusterId>, D::Error> {
        let text = String::deserialize(from)?;
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u128::from_str_radix(&text, 16).ok().filter(|_| is_hex);
        let id = id.ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is not 32 hexadecimal digits"))
        })?;
        Ok(Some(ClusterId(id)))
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
