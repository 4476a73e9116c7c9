use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use spillway_runtime::file;
use tempfile::TempDir;

use super::*;
use crate::config::ClusterTls;

/// An authority with a directory for what it signs.
struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        Authority { directory: tempfile::tempdir().expect("a directory"), issuer }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        file::write_atomic(&path, text.as_bytes()).expect("written");
        path
    }

    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> ClusterTls {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        ClusterTls {
            ca: self.write("ca.pem", &self.issuer.pem()),
            certificate: self.write(&format!("{name}.pem"), &certificate.pem()),
            key: self.write(&format!("{name}.key"), &key.serialize_pem()),
        }
    }

    fn tls(&self, node: u16) -> PeerTls {
        let files = self.issue(&format!("node-{node}.spillway"), |_| {});
        PeerTls::load(&files, NodeId(node)).expect("a good certificate")
    }
}

fn node(hello: Hello, key: ClusterKey, tls: Option<PeerTls>) -> Node {
    Node::with("127.0.0.1:0".parse().expect("an address"), hello, key, tls)
}

fn tls_faults(node: &Node) -> String {
    let text = |fault: &&Fault| match fault {
        Fault::Tls(text) => Some(text.clone()),
        _ => None,
    };
    node.faults().iter().filter_map(text).collect::<Vec<_>>().join("; ")
}

#[test]
fn encrypted_links_carry_messages_with_bodies() {
    let authority = Authority::new();
    let mut nodes: Vec<Node> = (1..=3)
        .map(|id| node(hello(id, 1), ClusterKey::certified(), Some(authority.tls(id))))
        .collect();
    introduce(&mut nodes);
    until(&mut nodes, "three nodes connect", |nodes| {
        nodes.iter().all(|node| (1..=3).filter(|id| node.is_connected(*id)).count() == 2)
    });
    let base = nodes[2].slots.reserve(1).expect("room").address();
    let sizes = [BLOCK, 1 << 20, 0, 33 * BLOCK];
    for (number, bytes) in sizes.iter().enumerate() {
        let content = (*bytes > 0).then(|| body(*bytes, number as u8));
        assert!(nodes[0].send(3, &header(*bytes as u32, number as u32), content));
    }
    assert!(nodes[0].links.outgoing_bytes(&nodes[0].ring, NodeId(3)) > 1 << 20);
    until(&mut nodes, "four messages arrive", |nodes| nodes[2].numbers().len() == 4);
    assert_eq!(nodes[2].numbers(), [0, 1, 2, 3]);
    let mut place = base;
    for event in &nodes[2].told {
        let PeerEvent::Message { header, body: Some(slot), .. } = event else { continue };
        assert_eq!(slot.address(), place, "the slot that was reserved");
        let bytes = slot.len() - BLOCK;
        assert_eq!(slot[BLOCK..], body(bytes, number_of(header) as u8)[..]);
        place += slot.len().next_multiple_of(4096);
    }
    assert_eq!(nodes[2].count(|event| matches!(event, PeerEvent::Message { .. })), 4);
    for node in &nodes {
        assert!(node.faults().is_empty(), "{:?}", node.faults());
    }
}

#[test]
fn without_memory_an_encrypted_link_waits() {
    let authority = Authority::new();
    let mut nodes: Vec<Node> =
        (1..=2).map(|id| node(hello(id, 1), key(1), Some(authority.tls(id)))).collect();
    introduce(&mut nodes);
    until(&mut nodes, "two nodes connect", |nodes| {
        nodes[0].is_connected(2) && nodes[1].is_connected(1)
    });
    let bytes = 1 << 20;
    for number in 0..20 {
        nodes[0].send(2, &header(bytes as u32, number), Some(body(bytes, number as u8)));
    }
    until(&mut nodes, "memory is used up", |nodes| nodes[1].numbers().len() == 3);
    pass(&mut nodes, 4 * SECOND);
    assert_eq!((nodes[1].numbers().len(), nodes[1].lost()), (3, 0));
    let held = nodes[0].links.outgoing_bytes(&nodes[0].ring, NodeId(2));
    assert!(held > bytes, "the sender is held up: {held} bytes");
    for expected in 0..20 {
        until(&mut nodes, "the next one", |nodes| nodes[1].numbers().len() > expected);
        let PeerEvent::Message { header, body, .. } = &mut nodes[1].told[expected + 1] else {
            panic!("a message");
        };
        let number = number_of(header);
        assert_eq!(number as usize, expected);
        let slot = body.take().expect("a body");
        assert_eq!(slot[BLOCK..], super::body(bytes, number as u8)[..]);
    }
}

#[test]
fn the_key_counts_beside_the_certificates() {
    let authority = Authority::new();
    let mut nodes = [
        node(hello(1, 1), key(1), Some(authority.tls(1))),
        node(hello(2, 1), key(2), Some(authority.tls(2))),
    ];
    introduce(&mut nodes);
    until(&mut nodes, "both tell", |nodes| nodes.iter().all(|node| !node.faults().is_empty()));
    assert_eq!(nodes[0].faults(), [&Fault::RefusedByPeer(Refusal::Key)]);
    assert_eq!(nodes[1].faults(), [&Fault::Refused(Refusal::Key)]);
}

#[test]
fn a_certificate_of_another_node_is_refused() {
    // Node 1 shows that of node 3: node 2 sees it when node 1 says who it is.
    let authority = Authority::new();
    let mut nodes = [
        node(hello(1, 1), key(1), Some(authority.tls(3))),
        node(hello(2, 1), key(1), Some(authority.tls(2))),
    ];
    introduce(&mut nodes);
    until(&mut nodes, "both tell", |nodes| nodes.iter().all(|node| !node.faults().is_empty()));
    let refusal = Refusal::Certificate { node: NodeId(1) };
    assert_eq!(nodes[0].faults(), [&Fault::RefusedByPeer(refusal)]);
    assert_eq!(nodes[1].faults(), [&Fault::Refused(refusal)]);
    // Node 2 shows that of node 3: node 1 wants node 2.
    let mut nodes = [
        node(hello(1, 1), key(1), Some(authority.tls(1))),
        node(hello(2, 1), key(1), Some(authority.tls(3))),
    ];
    introduce(&mut nodes);
    until(&mut nodes, "both tell", |nodes| nodes.iter().all(|node| !tls_faults(node).is_empty()));
    assert!(tls_faults(&nodes[0]).contains("node-2.spillway"), "{}", tls_faults(&nodes[0]));
    assert!(tls_faults(&nodes[1]).contains("see its log"), "{}", tls_faults(&nodes[1]));
    assert_eq!(nodes[0].connected() + nodes[1].connected(), 0);
}

#[test]
fn another_authority_is_refused() {
    let (one, other) = (Authority::new(), Authority::new());
    let mut nodes = [
        node(hello(1, 1), key(1), Some(one.tls(1))),
        node(hello(2, 1), key(1), Some(other.tls(2))),
    ];
    introduce(&mut nodes);
    until(&mut nodes, "both tell", |nodes| nodes.iter().all(|node| !tls_faults(node).is_empty()));
    assert!(tls_faults(&nodes[0]).contains("cluster.tls.ca"), "{}", tls_faults(&nodes[0]));
    pass(&mut nodes, 10 * SECOND);
    assert_eq!(nodes[0].connected() + nodes[1].connected(), 0);
}

#[test]
fn tls_on_one_side_only_is_told_on_both() {
    let authority = Authority::new();
    for encrypted in [1, 2] {
        let tls = |id| (id == encrypted).then(|| authority.tls(id));
        let mut nodes = [node(hello(1, 1), key(1), tls(1)), node(hello(2, 1), key(1), tls(2))];
        introduce(&mut nodes);
        until(&mut nodes, "both tell", |nodes| nodes.iter().all(|node| !node.faults().is_empty()));
        for node in &nodes {
            let text = node.faults()[0].to_string();
            assert!(text.contains("cluster.tls"), "{text}");
        }
        assert_eq!(nodes[0].connected() + nodes[1].connected(), 0);
    }
}

#[test]
fn a_stranger_without_certificate_is_refused() {
    let authority = Authority::new();
    let mut nodes = [node(hello(2, 1), key(1), Some(authority.tls(2)))];
    nodes[0].members_set(&[(NodeId(1), "127.0.0.1:9".to_owned())]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).expect("an authority");
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "node-2.spillway".try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(config.into(), name).expect("a client");
    let mut raw = Raw::connect(nodes[0].address);
    // A whole TLS handshake, and then a hello inside.
    let (_, first) = Handshake::initiator(hello(1, 1), NodeId(2), key(1), &[3; 32]);
    client.writer().write_all(&first).expect("kept");
    let mut out = Vec::new();
    for _ in 0..TURNS_MAX {
        while client.wants_write() {
            client.write_tls(&mut out).expect("a vector");
        }
        raw.write(&std::mem::take(&mut out));
        let mut bytes = [0; 4096];
        if let Ok(read) = raw.0.read(&mut bytes) {
            if read == 0 {
                break;
            }
            client.read_tls(&mut &bytes[..read]).expect("room");
            if client.process_new_packets().is_err() {
                break;
            }
        }
        nodes[0].turn();
    }
    until(&mut nodes, "it is told", |nodes| !nodes[0].faults().is_empty());
    assert!(tls_faults(&nodes[0]).contains("no certificate"), "{:?}", nodes[0].faults());
    assert_eq!(nodes[0].connected(), 0);
}

fn refused(files: &ClusterTls, node: u16, expected: &[&str]) {
    let error = PeerTls::load(files, NodeId(node)).expect_err("a mistake").to_string();
    for part in expected {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
}

#[test]
fn certificates_that_others_would_refuse_are_refused_at_the_start() {
    let authority = Authority::new();
    let good = authority.issue("node-1.spillway", |_| {});
    PeerTls::load(&good, NodeId(1)).expect("a good one");
    refused(&good, 2, &["node-2.spillway", "node-1.spillway.pem"]);
    let expired = authority.issue("node-3.spillway", |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    refused(&expired, 3, &["not valid at this time"]);
    for purpose in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        let half = authority.issue("node-4.spillway", |params| {
            params.extended_key_usages = vec![purpose];
        });
        refused(&half, 4, &["for servers and for clients"]);
    }
    let both = authority.issue("node-4.spillway", |params| {
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    });
    PeerTls::load(&both, NodeId(4)).expect("both uses");
    let other = Authority::new();
    let foreign = ClusterTls { ca: other.write("other.pem", &other.issuer.pem()), ..good.clone() };
    refused(&foreign, 1, &["cluster.tls.ca"]);
    let strange = ClusterTls { key: both.key.clone(), ..good.clone() };
    refused(&strange, 1, &["private key"]);
    // Files that are swapped, missing, or something else.
    let swapped = ClusterTls { certificate: good.key.clone(), ..good.clone() };
    refused(&swapped, 1, &["node-1.spillway.key", "no certificate"]);
    let swapped = ClusterTls { key: good.certificate.clone(), ..good.clone() };
    refused(&swapped, 1, &["node-1.spillway.pem", "no private key"]);
    let missing = ClusterTls { ca: Path::new("/nowhere/ca.pem").to_owned(), ..good.clone() };
    refused(&missing, 1, &["/nowhere/ca.pem"]);
    let noise = authority.write("noise", "-----BEGIN CERTIFICATE-----\n!\n");
    refused(&ClusterTls { ca: noise, ..good }, 1, &["noise"]);
}
