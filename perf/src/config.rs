//! The node's configuration file. The only place that knows the names of its keys.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// What a burst decides about its node.
#[derive(Clone, Debug)]
pub struct NodeConfig<'a> {
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
}

impl NodeConfig<'_> {
    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: String| {
            writeln!(text, "{key} = {value}").expect("writing to memory");
        };
        line("node.shards", self.shards.to_string());
        line("node.id", "1".to_owned());
        line("node.directory_log", quoted(self.directory_log));
        line("node.directory_data", quoted(self.directory_data));
        line("node.listen", format!("\"{}\"", self.listen));
        line("log.bytes_total", self.log_bytes.to_string());
        line("log.segment_bytes", self.segment_bytes.to_string());
        line("memory.budget_bytes", self.memory_bytes.to_string());
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
        let config = NodeConfig {
            directory_log: Path::new("/tmp/a \"b\"/log"),
            directory_data: Path::new("/tmp/data\\"),
            listen: "127.0.0.1:0".parse().expect("an address"),
            shards: 2,
            log_bytes: 1 << 30,
            segment_bytes: 64 << 20,
            memory_bytes: 1 << 31,
        };
        let table: toml::Table = config.text().parse().expect("TOML");
        assert_eq!(table["node"]["shards"].as_integer(), Some(2));
        assert_eq!(table["node"]["directory_log"].as_str(), Some("/tmp/a \"b\"/log"));
        assert_eq!(table["node"]["directory_data"].as_str(), Some("/tmp/data\\"));
        assert_eq!(table["node"]["listen"].as_str(), Some("127.0.0.1:0"));
        assert_eq!(table["log"]["bytes_total"].as_integer(), Some(1 << 30));
        assert_eq!(table["log"]["segment_bytes"].as_integer(), Some(64 << 20));
        assert_eq!(table["memory"]["budget_bytes"].as_integer(), Some(1 << 31));
    }
}
