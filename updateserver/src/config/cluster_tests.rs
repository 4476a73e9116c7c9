use super::super::Config;
use super::*;

const NODE: &str = "[node]\nid = 2\ndirectory_log = '/l'\ndirectory_data = '/d'\n";
const ID: &str = "id = '00112233445566778899aabbccddeeff'\n";
const KEY: &str = "key_file = '/k'\n";
const LISTEN: &str = "listen_peers = '10.0.0.2:7500'\n";

fn nodes(ids: &[u16]) -> String {
    let node =
        |id: &u16| format!("{{ id = {id}, peer = 'host-{id}:7500', client = '10.0.0.{id}:7400' }}");
    format!("nodes = [{}]\n", ids.iter().map(node).collect::<Vec<_>>().join(", "))
}

fn parse(lines: &[&str]) -> Result<ClusterConfig, ConfigError> {
    let text = format!("{NODE}[cluster]\n{}", lines.concat());
    Config::parse(Path::new("test.toml"), &text).map(|config| config.cluster)
}

fn refused(lines: &[&str], expected: &[&str]) {
    let text = parse(lines).expect_err("a mistake").to_string();
    for part in expected {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
}

#[test]
fn without_the_section_a_node_is_alone() {
    let config = Config::parse(Path::new("test.toml"), NODE).expect("a whole file");
    assert_eq!(config.cluster, ClusterConfig::default());
    assert!(!config.cluster.has_peers());
    assert_eq!(config.cluster.members(NodeId(2)), [NodeId(2)]);
    assert_eq!(config.cluster.key_load().expect("none is configured").map(|_| ()), None);
}

#[test]
fn three_nodes() {
    let cluster = parse(&[ID, KEY, LISTEN, &nodes(&[1, 2, 3])]).expect("a whole section");
    assert_eq!(cluster.id, Some(ClusterId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff)));
    assert_eq!(cluster.members(NodeId(2)), [NodeId(1), NodeId(2), NodeId(3)]);
    assert!(cluster.has_peers());
    assert_eq!(cluster.nodes[2].peer, "host-3:7500");
    let text = toml::to_string(&cluster).expect("everything can be written");
    assert_eq!(toml::from_str::<ClusterConfig>(&text).expect("and read again"), cluster);
    let tls = "tls = { ca = '/ca', certificate = '/c', key = '/p' }\n";
    let cluster = parse(&[ID, LISTEN, &nodes(&[1, 2, 3]), tls]).expect("TLS instead of a key");
    assert_eq!(cluster.tls.expect("given").ca, Path::new("/ca"));
}

#[test]
fn a_new_node_names_those_that_are_there() {
    let join = "join = true\n";
    let cluster = parse(&[ID, KEY, LISTEN, &nodes(&[1, 3, 4]), join]).expect("a whole section");
    assert_eq!(cluster.members(NodeId(2)), [NodeId(1), NodeId(3), NodeId(4)]);
    refused(&[ID, KEY, LISTEN, &nodes(&[1, 2]), join], &["cluster.nodes", "without node.id"]);
    refused(&[ID, KEY, LISTEN, join], &["cluster.join", "cluster.nodes"]);
}

#[test]
fn what_is_missing_is_named() {
    let three = nodes(&[1, 2, 3]);
    refused(&[KEY, LISTEN, &three], &["cluster.id", "urandom"]);
    refused(&[ID, LISTEN, &three], &["cluster.key_file", "urandom", "cluster.tls"]);
    refused(&[ID, KEY, &three], &["cluster.listen_peers"]);
    // One node that may get company later.
    refused(&[ID, LISTEN], &["cluster.key_file"]);
    parse(&[ID, KEY, LISTEN, &nodes(&[2])]).expect("one node");
    parse(&[&nodes(&[2])]).expect("one node that stays alone");
}

#[test]
fn members_that_cannot_be_are_refused() {
    let with = |nodes: &str, expected: &[&str]| refused(&[ID, KEY, LISTEN, nodes], expected);
    with(&nodes(&[1, 3]), &["cluster.nodes", "no id 2", "cluster.join"]);
    with(&nodes(&[1, 2, 1]), &["id 1", "each id once"]);
    with(&nodes(&[1, 2, 0]), &["id 0", "from 1"]);
    with(&nodes(&[1, 2, 1000]), &["id 1000", "to 999"]);
    with(&nodes(&[1, 2, 3, 4, 5, 6, 7, 8]), &["8 nodes", "1 to 7"]);
    for address in ["host", ":7500", "host:0", "host:65536", "a b:1", "1::2:80", "0.0.0.0:1"] {
        let line = format!("nodes = [{{ id = 2, peer = '{address}', client = 'h:1' }}]\n");
        with(&line, &[address, "host:port"]);
    }
    let line = "nodes = [{ id = 2, peer = '[::1]:80', client = 'h:1' }]\n";
    parse(&[ID, KEY, LISTEN, line]).expect("an IPv6 address");
    let twice = "nodes = [{ id = 2, peer = 'h:1', client = 'h:2' }, \
                 { id = 3, peer = 'h:1', client = 'h:3' }]\n";
    with(twice, &["h:1", "another peer address"]);
}

#[test]
fn values_outside_their_range_are_refused() {
    for (line, key) in [
        ("id = '00000000000000000000000000000000'", "cluster.id"),
        ("id = '0011'", "32 hexadecimal digits"),
        ("id = '+0112233445566778899aabbccddeeff'", "32 hexadecimal digits"),
        ("tick_ms = 0", "cluster.tick_ms"),
        ("heartbeat_ticks = 0", "cluster.heartbeat_ticks"),
        ("election_ticks_min = 14", "cluster.election_ticks_min"),
        ("election_ticks_max = 74", "cluster.election_ticks_max"),
        ("slot_ring_bytes = 1048576", "cluster.slot_ring_bytes"),
        ("slot_ring_bytes = 67108865", "cluster.slot_ring_bytes"),
        ("peer_bytes_in_flight_max = 100", "cluster.peer_bytes_in_flight_max"),
        ("peer_bytes_in_flight_max = 67108864", "cluster.peer_bytes_in_flight_max"),
        ("peers = 1", "peers"),
    ] {
        refused(&[line], &[key, "test.toml"]);
    }
}

#[test]
fn key_files_are_checked() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("key");
    let cluster = ClusterConfig { key_file: Some(path.clone()), ..ClusterConfig::default() };
    let error = cluster.key_load().expect_err("no file").to_string();
    assert!(error.contains("key"), "{error}");
    file::write_atomic(&path, b"short").expect("written");
    let error = cluster.key_load().expect_err("too short").to_string();
    assert!(error.contains(&path.display().to_string()) && error.contains("32"), "{error}");
    file::write_atomic(&path, &vec![1; 2 << 20]).expect("written");
    let error = cluster.key_load().expect_err("too long").to_string();
    assert!(error.contains("2097152"), "{error}");
    let secret: Vec<u8> = (0..40).collect();
    file::write_atomic(&path, &secret).expect("written");
    assert!(cluster.key_load().expect("a good key").is_some());
}
