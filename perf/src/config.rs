//! The node's configuration file. The only place that knows the names of its keys.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// What a burst decides about one of its nodes.
#[derive(Clone, Debug)]
pub struct NodeConfig<'a> {
    /// Its number.
    pub id: u16,
    /// Directory of the log.
    pub directory_log: &'a Path,
    /// Directory of everything else.
    pub directory_data: &'a Path,
    /// Where shard 0 listens; port 0: the node chooses.
    pub listen: SocketAddr,
    /// Shards.
    pub shards: u16,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Bytes of one of its segments.
    pub segment_bytes: u64,
    /// Memory budget, bytes.
    pub memory_bytes: u64,
    /// The cluster it belongs to; none: it is alone.
    pub cluster: Option<ClusterConfig<'a>>,
    /// Further lines of TOML, for what a test wants to be different.
    pub extra: &'a str,
}

/// The cluster as one of its nodes is told of it.
#[derive(Clone, Debug)]
pub struct ClusterConfig<'a> {
    /// Its identity.
    pub id: u128,
    /// The file with the key that all nodes share.
    pub key_file: &'a Path,
    /// Where this node listens for the others.
    pub listen_peers: SocketAddr,
    /// All nodes, this one included.
    pub nodes: &'a [ClusterNode],
}

/// One node of a cluster as the others are told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its number.
    pub id: u16,
    /// Where other nodes reach it.
    pub peer: SocketAddr,
    /// Where clients reach its shard 0.
    pub client: SocketAddr,
}

impl NodeConfig<'_> {
    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: String| {
            writeln!(text, "{key} = {value}").expect("writing to memory");
        };
        line("node.shards", self.shards.to_string());
        line("node.id", self.id.to_string());
        line("node.directory_log", quoted(self.directory_log));
        line("node.directory_data", quoted(self.directory_data));
        line("node.listen", format!("\"{}\"", self.listen));
        line("log.bytes_total", self.log_bytes.to_string());
        line("log.segment_bytes", self.segment_bytes.to_string());
        line("memory.budget_bytes", self.memory_bytes.to_string());
        if let Some(cluster) = &self.cluster {
            let node = |node: &ClusterNode| {
                let ClusterNode { id, peer, client } = node;
                format!("{{ id = {id}, peer = \"{peer}\", client = \"{client}\" }}")
            };
            let nodes: Vec<String> = cluster.nodes.iter().map(node).collect();
            line("cluster.id", format!("\"{:032x}\"", cluster.id));
            line("cluster.key_file", quoted(cluster.key_file));
            line("cluster.listen_peers", format!("\"{}\"", cluster.listen_peers));
            line("cluster.nodes", format!("[{}]", nodes.join(", ")));
        }
        text.push_str(self.extra);
        text
    }
}

/// A path as a TOML string.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            c if c.is_control() => {
                write!(quoted, "\\u{:04X}", u32::from(c)).expect("writing to memory");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_toml_with_every_key() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let nodes = [1, 2].map(|id| ClusterNode {
            id,
            peer: address(7500 + id),
            client: address(7400 + id),
        });
        let config = NodeConfig {
            id: 2,
            directory_log: Path::new("/tmp/a \"b\"/log"),
            directory_data: Path::new("/tmp/data\\"),
            listen: "127.0.0.1:0".parse().expect("an address"),
            shards: 2,
            log_bytes: 1 << 30,
            segment_bytes: 64 << 20,
            memory_bytes: 1 << 31,
            cluster: Some(ClusterConfig {
                id: 7,
                key_file: Path::new("/tmp/key"),
                listen_peers: address(7502),
                nodes: &nodes,
            }),
            extra: "log.watermark_idle_us = 9\n",
        };
        let table: toml::Table = config.text().parse().expect("TOML");
        assert_eq!(table["node"]["shards"].as_integer(), Some(2));
        assert_eq!(table["node"]["directory_log"].as_str(), Some("/tmp/a \"b\"/log"));
        assert_eq!(table["node"]["directory_data"].as_str(), Some("/tmp/data\\"));
        assert_eq!(table["node"]["listen"].as_str(), Some("127.0.0.1:0"));
        assert_eq!(table["log"]["bytes_total"].as_integer(), Some(1 << 30));
        assert_eq!(table["log"]["segment_bytes"].as_integer(), Some(64 << 20));
        assert_eq!(table["memory"]["budget_bytes"].as_integer(), Some(1 << 31));
        assert_eq!(table["node"]["id"].as_integer(), Some(2));
        assert_eq!(table["log"]["watermark_idle_us"].as_integer(), Some(9));
        let cluster = &table["cluster"];
        assert_eq!(cluster["id"].as_str(), Some("00000000000000000000000000000007"));
        assert_eq!(cluster["key_file"].as_str(), Some("/tmp/key"));
        assert_eq!(cluster["listen_peers"].as_str(), Some("127.0.0.1:7502"));
        assert_eq!(cluster["nodes"][1]["id"].as_integer(), Some(2));
        assert_eq!(cluster["nodes"][1]["peer"].as_str(), Some("127.0.0.1:7502"));
        assert_eq!(cluster["nodes"][0]["client"].as_str(), Some("127.0.0.1:7401"));
        let alone = NodeConfig { cluster: None, extra: "", ..config };
        let table: toml::Table = alone.text().parse().expect("TOML");
        assert!(!table.contains_key("cluster"));
    }
}
