use super::*;

/// Two nodes that differ, until both have told a fault.
fn refused(one: Hello, two: Hello, keys: [u8; 2]) -> [Vec<Fault>; 2] {
    let mut nodes = [Node::new(one, key(keys[0])), Node::new(two, key(keys[1]))];
    introduce(&mut nodes);
    until(&mut nodes, "both tell", |nodes| nodes.iter().all(|node| !node.faults().is_empty()));
    // They try again and again, and tell it once.
    pass(&mut nodes, 10 * SECOND);
    assert_eq!((nodes[0].connected(), nodes[1].connected()), (0, 0));
    nodes.map(|node| node.faults().into_iter().cloned().collect())
}

/// Each connects to the other one in its turn, and the responder sees the difference first:
/// `second` is what node 2 finds, `first` what node 1 does.
fn told(second: Refusal, first: Refusal) -> [Vec<Fault>; 2] {
    let one = vec![Fault::RefusedByPeer(second), Fault::Refused(first)];
    [one, vec![Fault::Refused(second), Fault::RefusedByPeer(first)]]
}

#[test]
fn another_cluster() {
    let other = Hello { cluster: ClusterId(7), ..hello(2, 1) };
    let expected = |refuser, refused| Refusal::Cluster { refuser, refused };
    let (one, two) = (hello(1, 1).cluster, other.cluster);
    let told = told(expected(two, one), expected(one, two));
    assert_eq!(refused(hello(1, 1), other, [1, 1]), told);
}

#[test]
fn other_limits() {
    let other = Hello { limits: 6, ..hello(2, 1) };
    let expected = |refuser, refused| Refusal::Limits { refuser, refused };
    assert_eq!(refused(hello(1, 1), other, [1, 1]), told(expected(6, 5), expected(5, 6)));
}

#[test]
fn another_log_format() {
    let mut other = hello(2, 1);
    other.format.partitions = 8;
    let expected = |refuser, refused| Refusal::Format { refuser, refused };
    let (one, two) = (hello(1, 1).format, other.format);
    let told = told(expected(two, one), expected(one, two));
    assert_eq!(refused(hello(1, 1), other, [1, 1]), told);
}

#[test]
fn another_key() {
    assert_eq!(refused(hello(1, 1), hello(2, 1), [1, 2]), told(Refusal::Key, Refusal::Key));
}

#[test]
fn another_version() {
    let mut nodes = pair();
    nodes.swap(0, 1);
    let (_, mut first) = Handshake::initiator(hello(1, 1), NodeId(2), key(1), &[3; 32]);
    first[4] = 9;
    let expected = Refusal::Version { refuser: 2, refused: 9 };
    assert_eq!(Raw::refusal(&mut nodes, &first), expected);
    assert_eq!(nodes[0].faults(), [&Fault::Refused(expected)]);
    assert!(nodes[0].is_connected(1), "the link that stands is left alone");
}

#[test]
fn no_member() {
    let mut nodes: Vec<Node> = (1..=3).map(|id| Node::new(hello(id, 1), key(1))).collect();
    let members: Vec<(NodeId, String)> =
        nodes.iter().map(|node| (node.id, node.address.to_string())).collect();
    // Node 1 knows everybody, and nobody knows node 1.
    for (at, known) in [&members[..], &members[1..], &members[1..]].iter().enumerate() {
        nodes[at].members_set(known);
    }
    until(&mut nodes, "all tell", |nodes| nodes.iter().all(|node| !node.faults().is_empty()));
    let refusal = Refusal::NodeUnknown { node: NodeId(1) };
    assert_eq!(nodes[0].faults()[0], &Fault::RefusedByPeer(refusal));
    assert_eq!(nodes[1].faults(), [&Fault::Refused(refusal)]);
    until(&mut nodes, "the others have each other", |nodes| nodes[1].is_connected(3));
}

#[test]
fn a_number_used_twice() {
    // Two processes with number 1, both known to node 2 by that number.
    let mut nodes = vec![
        Node::new(hello(2, 1), key(1)),
        Node::new(hello(1, 5), key(1)),
        Node::new(hello(1, 4), key(1)),
    ];
    let members: Vec<(NodeId, String)> =
        nodes[..2].iter().map(|node| (node.id, node.address.to_string())).collect();
    for node in &mut nodes[..2] {
        node.members_set(&members);
    }
    until(&mut nodes[..2], "the first one connects", |nodes| nodes[0].is_connected(1));
    nodes[2].members_set(&members);
    until(&mut nodes, "both tell", |nodes| {
        !nodes[0].faults().is_empty() && !nodes[2].faults().is_empty()
    });
    let refusal = Refusal::NodeTwice { node: NodeId(1) };
    assert_eq!(nodes[0].faults(), [&Fault::Refused(refusal)]);
    assert_eq!(nodes[2].faults(), [&Fault::RefusedByPeer(refusal)]);
    assert_eq!((nodes[0].connected(), nodes[0].lost()), (1, 0), "the first one stays");
}

#[test]
fn an_address_that_leads_elsewhere() {
    let mut nodes = [Node::new(hello(1, 1), key(1)), Node::new(hello(3, 1), key(1))];
    // Both have node 2 and node 3, but at one address.
    let address = nodes[1].address.to_string();
    let members = vec![(NodeId(1), "h:1".to_owned()), (NodeId(2), address.clone())];
    nodes[0].members_set(&members);
    nodes[1].members_set(&[(NodeId(1), "h:1".to_owned())]);
    until(&mut nodes, "node 1 tells", |nodes| !nodes[0].faults().is_empty());
    let refusal = Refusal::NodeOther { expected: NodeId(2), found: NodeId(3) };
    assert_eq!(nodes[0].faults(), [&Fault::Refused(refusal)]);
    until(&mut nodes, "node 3 tells", |nodes| !nodes[1].faults().is_empty());
    assert_eq!(nodes[1].faults(), [&Fault::RefusedByPeer(refusal)]);
}

#[test]
fn nobody_there() {
    let mut nodes = [Node::new(hello(1, 1), key(1))];
    let gone = Node::new(hello(2, 1), key(1)).address;
    nodes[0].members_set(&[(NodeId(2), gone.to_string())]);
    pass(&mut nodes, 10 * SECOND);
    let faults = nodes[0].faults();
    assert_eq!(faults.len(), 1, "told once, and not before it lasts: {faults:?}");
    let text = faults[0].to_string();
    assert!(text.contains("refused") && text.contains("cluster.listen_peers"), "{text}");
}
