use super::*;

#[test]
fn three_nodes_have_one_link_per_pair() {
    let mut nodes: Vec<Node> = (1..=3).map(|id| Node::new(hello(id, 1), key(1))).collect();
    introduce(&mut nodes);
    let all = |nodes: &[Node]| {
        nodes.iter().all(|node| (1..=3).filter(|id| node.is_connected(*id)).count() == 2)
    };
    until(&mut nodes, "three nodes connect", all);
    for node in &nodes {
        assert_eq!((node.connected(), node.lost()), (2, 0), "node {}", node.id);
        assert!(node.faults().is_empty() && node.foreign.is_empty());
        assert_eq!(node.ring.connections(), 2);
    }
    // Everybody to everybody.
    for node in &mut nodes {
        let from = node.id.0;
        for to in 1..=3 {
            assert_eq!(node.send(to, &header(0, from.into()), None), from != to);
        }
    }
    until(&mut nodes, "six messages arrive", |nodes| {
        nodes.iter().all(|node| node.numbers().len() == 2)
    });
    assert_eq!(nodes[0].numbers().iter().sum::<u32>(), 5);
    assert!(!nodes[0].send(9, &header(0, 1), None), "nobody has this number");
}

#[test]
fn bodies_arrive_in_the_memory_of_the_owner() {
    let mut nodes = pair();
    // An empty ring of slots hands out its first bytes.
    let base = nodes[1].slots.reserve(1).expect("room").address();
    let sizes = [BLOCK, 1 << 20, 7 * BLOCK, 100 * BLOCK];
    for (number, bytes) in sizes.iter().enumerate() {
        let header = header(*bytes as u32, number as u32);
        assert!(nodes[0].send(2, &header, Some(body(*bytes, number as u8))));
    }
    assert!(nodes[0].links.outgoing_bytes(&nodes[0].ring, NodeId(2)) >= 1 << 20);
    until(&mut nodes, "four messages arrive", |nodes| nodes[1].numbers().len() == 4);
    let mut place = base;
    for (event, bytes) in nodes[1].told.iter().skip(1).zip(sizes) {
        let PeerEvent::Message { from, header, body: Some(slot) } = event else {
            panic!("a message with a body: {event:?}");
        };
        assert_eq!(*from, NodeId(1));
        assert_eq!(slot.address(), place, "the very bytes that were reserved");
        assert_eq!(slot.len(), BLOCK + bytes);
        assert_eq!(slot[BLOCK..], body(bytes, number_of(header) as u8)[..]);
        place += (BLOCK + bytes).next_multiple_of(4096);
    }
    assert_eq!(nodes[1].numbers(), [0, 1, 2, 3]);
    until(&mut nodes, "all was sent", |nodes| {
        nodes[0].links.outgoing_bytes(&nodes[0].ring, NodeId(2)) == 0
    });
}

#[test]
fn either_side_may_speak_first() {
    let mut nodes = [Node::new(hello(1, 1), key(1)), Node::new(hello(2, 1), key(1))];
    introduce(&mut nodes);
    // Node 2 sends as soon as it may: right behind its proof, which node 1 has not seen yet.
    until(&mut nodes, "node 2 connects", |nodes| nodes[1].is_connected(1));
    assert!(!nodes[0].send(2, &header(0, 1), None), "node 1 waits for the proof");
    assert!(nodes[1].send(1, &header(BLOCK as u32, 7), Some(body(BLOCK, 7))));
    until(&mut nodes, "the message arrives", |nodes| nodes[0].numbers() == [7]);
    assert!(matches!(nodes[0].told[0], PeerEvent::Connected(NodeId(2))), "{:?}", nodes[0].told);
}

#[test]
fn without_memory_nothing_is_received_until_there_is_some() {
    let mut nodes = pair();
    let bytes = 1 << 20;
    for number in 0..8 {
        nodes[0].send(2, &header(bytes as u32, number), Some(body(bytes, number as u8)));
    }
    nodes[0].send(2, &header(0, 8), None);
    // Three bodies with their blocks fit into 4 MiB.
    until(&mut nodes, "memory is used up", |nodes| nodes[1].numbers().len() == 3);
    // More than the silence that a link survives: the peer is not silent but not listened to.
    pass(&mut nodes, 4 * SECOND);
    assert_eq!(nodes[1].numbers(), [0, 1, 2]);
    assert_eq!((nodes[0].lost(), nodes[1].lost()), (0, 0));
    let due = nodes[1].links.deadline_nanos();
    assert!(due <= nodes[1].links.now_nanos + MEMORY_RETRY_NANOS, "it asks again soon");
    for expected in 4..=8 {
        let first = |event: &PeerEvent| matches!(event, PeerEvent::Message { body: Some(_), .. });
        let at = nodes[1].told.iter().position(first).expect("one is there");
        let PeerEvent::Message { header, body, .. } = &mut nodes[1].told[at] else {
            panic!("it was found");
        };
        let number = number_of(header);
        let slot = body.take().expect("it has a body");
        assert_eq!(slot[BLOCK..], super::body(bytes, number as u8)[..]);
        drop(slot);
        until(&mut nodes, "the next one arrives", |nodes| nodes[1].numbers().len() >= expected);
    }
    until(&mut nodes, "the last one arrives", |nodes| nodes[1].numbers().len() == 9);
    assert_eq!(nodes[1].numbers(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_node_that_starts_again_is_connected_again() {
    let mut nodes = pair().map(Some);
    for (round, restarted) in [1, 0, 1, 0].into_iter().enumerate() {
        let boot = round as u64 + 2;
        let id = restarted as u16 + 1;
        let address = nodes[restarted].take().expect("it runs").address;
        let mut other = nodes[1 - restarted].take().expect("it runs");
        let (lost, connected) = (other.lost(), other.connected());
        let fresh = Node::at(address, hello(id, boot), key(1));
        let members = [&other, &fresh].map(|node| (node.id, node.address.to_string())).to_vec();
        let mut both = [other, fresh];
        let [_, fresh] = &mut both;
        fresh.members_set(&members);
        until(&mut both, "they connect again", |both| {
            both[0].connected() == connected + 1 && both[1].connected() == 1
        });
        assert_eq!(both[0].lost(), lost + 1);
        both[0].send(id, &header(0, 77), None);
        until(&mut both, "a message arrives", |both| both[1].numbers() == [77]);
        let fresh;
        [other, fresh] = both;
        (nodes[restarted], nodes[1 - restarted]) = (Some(fresh), Some(other));
    }
}

#[test]
fn a_newer_link_of_a_node_replaces_the_older() {
    let mut nodes = vec![Node::new(hello(2, 1), key(1))];
    let members = vec![(NodeId(1), "127.0.0.1:9".to_owned())];
    nodes[0].members_set(&members);
    let mut older = Raw::shaken(&mut nodes, hello(1, 5), key(1));
    let mut newer = Raw::shaken(&mut nodes, hello(1, 5), key(1));
    until(&mut nodes, "both were seen", |nodes| nodes[0].connected() == 2);
    assert_eq!(older.read(&mut nodes, 1), [], "the older one is closed");
    let order: Vec<&str> = nodes[0]
        .told
        .iter()
        .map(|event| match event {
            PeerEvent::Connected(NodeId(1)) => "connected",
            PeerEvent::Lost(NodeId(1)) => "lost",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, ["connected", "lost", "connected"]);
    nodes[0].send(1, &header(0, 5), None);
    assert_eq!(number_of(&newer.read_message(&mut nodes)), 5);
    // The next start of the node's process.
    let _newest = Raw::shaken(&mut nodes, hello(1, 6), key(1));
    assert_eq!(newer.read(&mut nodes, 1), []);
}

#[test]
fn links_that_nothing_travels_on_stay() {
    let mut nodes = pair();
    pass(&mut nodes, 20 * SECOND);
    assert_eq!((nodes[0].lost(), nodes[1].lost()), (0, 0));
    assert_eq!((nodes[0].numbers().len(), nodes[1].numbers().len()), (0, 0), "no ping is told");
}

#[test]
fn a_silent_node_is_given_up() {
    let mut nodes = pair();
    // Only node 1 lives on.
    pass(&mut nodes[..1], 4 * SECOND);
    assert_eq!(nodes[0].lost(), 1);
    assert_eq!(nodes[0].faults(), [&Fault::Silent]);
    assert!(!nodes[0].is_connected(2));
    // Node 2 was only stopped. It goes on and blames nobody for the time that it lost.
    nodes[1].now_nanos += 60 * SECOND;
    until(&mut nodes, "they connect again", |nodes| {
        nodes[0].connected() == 2 && nodes[1].connected() == 2
    });
    assert!(nodes[1].faults().is_empty(), "{:?}", nodes[1].faults());
}

#[test]
fn a_pause_of_the_own_process_is_nobodys_silence() {
    let mut nodes = pair();
    nodes[0].now_nanos += 60 * SECOND;
    nodes[0].turn();
    assert_eq!(nodes[0].lost(), 0);
    pass(&mut nodes, 4 * SECOND);
    assert_eq!(nodes[0].lost(), 0);
}

#[test]
fn members_can_change() {
    let mut nodes: Vec<Node> = (1..=3).map(|id| Node::new(hello(id, 1), key(1))).collect();
    introduce(&mut nodes[..2]);
    // Node 3 knows the others; they do not know it yet.
    let members: Vec<(NodeId, String)> =
        nodes.iter().map(|node| (node.id, node.address.to_string())).collect();
    nodes[2].members_set(&members);
    until(&mut nodes, "two nodes connect", |nodes| nodes[0].is_connected(2));
    assert!(!nodes[2].is_connected(1));
    introduce(&mut nodes);
    until(&mut nodes, "the third one, too", |nodes| {
        nodes[0].is_connected(3) && nodes[1].is_connected(3)
    });
    for node in &mut nodes[..2] {
        node.log_set(&members[..2], &[3]);
        node.turn();
    }
    assert_eq!((nodes[0].lost(), nodes[1].lost()), (1, 1));
    assert!(nodes[0].is_connected(2) && !nodes[0].is_connected(3));
    until(&mut nodes, "node 3 has lost both", |nodes| nodes[2].lost() == 2);
}

#[test]
fn host_names_are_looked_up() {
    let mut nodes = [Node::new(hello(1, 1), key(1)), Node::new(hello(2, 1), key(1))];
    let port = nodes[1].address.port();
    let members = vec![(NodeId(1), "h:1".to_owned()), (NodeId(2), format!("localhost:{port}"))];
    for node in &mut nodes {
        node.members_set(&members);
    }
    until(&mut nodes, "they connect by name", |nodes| nodes[0].is_connected(2));
}

#[test]
fn a_stopped_node_ends_its_links() {
    let mut nodes = pair();
    let node = &mut nodes[0];
    node.links.stop(&mut node.ring);
    until(&mut nodes, "both see the end", |nodes| nodes[0].lost() == 1 && nodes[1].lost() == 1);
    pass(&mut nodes, SECOND);
    assert_eq!((nodes[0].connected(), nodes[1].connected()), (1, 1));
    assert_eq!(nodes[0].ring.connections(), 0);
}

fn addresses(nodes: &[Node]) -> Vec<(NodeId, String)> {
    nodes.iter().map(|node| (node.id, node.address.to_string())).collect()
}

#[test]
fn the_higher_number_connects_where_the_lower_one_does_not() {
    let mut nodes = [Node::new(hello(1, 1), key(1)), Node::new(hello(2, 1), key(1))];
    let known = addresses(&nodes);
    // Node 2 has moved, and only its own new start knows it.
    nodes[0].members_set(&[(NodeId(2), "127.0.0.1:9".to_owned())]);
    nodes[1].members_set(&known);
    pass(&mut nodes, SECOND);
    assert!(!nodes[0].is_connected(2), "the lower one has its time first");
    pass(&mut nodes, 2 * SECOND);
    until(&mut nodes, "node 2 connects", |nodes| {
        nodes[0].is_connected(2) && nodes[1].is_connected(1)
    });
    // Node 1 learns of it, and the link stays.
    nodes[0].members_set(&known);
    pass(&mut nodes, 10 * SECOND);
    assert_eq!((nodes[0].connected(), nodes[1].connected()), (1, 1));
    assert_eq!((nodes[0].ring.connections(), nodes[1].ring.connections()), (1, 1));
}

#[test]
fn a_node_that_missed_a_replacement_is_met_by_the_new_one() {
    let ids = [3, 4, 1];
    let mut nodes: Vec<Node> = ids.iter().map(|id| Node::new(hello(*id, 1), key(1))).collect();
    let all = addresses(&nodes);
    // Node 4 has taken the place of node 1, which still runs. Node 3 knows node 1, at an address
    // where nobody is any more.
    nodes[0].log_set(&[all[0].clone(), (NodeId(1), "127.0.0.1:9".to_owned())], &[]);
    nodes[1].log_set(&all[..2], &[1]);
    nodes[2].log_set(&all, &[]);
    pass(&mut nodes, 4 * SECOND);
    until(&mut nodes, "node 4 meets node 3", |nodes| {
        nodes[0].is_connected(4) && nodes[1].is_connected(3)
    });
    assert!(nodes[0].faults().contains(&&Fault::Guest), "{:?}", nodes[0].faults());
    // To node 3 node 1 is a member still; to node 4 it is none.
    until(&mut nodes, "node 1 is told", |nodes| {
        nodes[2].is_connected(3) && !nodes[1].faults().is_empty() && !nodes[2].faults().is_empty()
    });
    let refusal = Refusal::NodeUnknown { node: NodeId(1) };
    assert_eq!(nodes[1].faults(), [&Fault::Refused(refusal)]);
    assert_eq!(nodes[2].faults(), [&Fault::RefusedByPeer(refusal)]);
    assert!(nodes[0].send(4, &header(0, 7), None), "a guest is spoken to");
    until(&mut nodes, "the message arrives", |nodes| nodes[1].numbers() == [7]);
    // Node 3 has caught up: node 4 stays, node 1 goes.
    nodes[0].log_set(&all[..2], &[1]);
    pass(&mut nodes, 6 * SECOND);
    assert_eq!((nodes[1].connected(), nodes[1].lost()), (1, 0));
    assert!(!nodes[0].is_connected(1) && nodes[0].is_connected(4));
}

/// Both connect at the same time, in either order and with different delays in between.
#[test]
fn of_crossed_connections_one_stays() {
    for delay in 0..24 {
        let mut nodes = [Node::new(hello(1, 1), key(1)), Node::new(hello(2, 1), key(1))];
        let known = addresses(&nodes);
        nodes[0].members_set(&[(NodeId(2), "127.0.0.1:9".to_owned())]);
        nodes[1].members_set(&known);
        pass(&mut nodes, SECOND);
        // Node 2 dials in the turn after the last one of these, and node 1 when it learns where
        // node 2 is.
        let due = nodes[1].links.book.deadline_nanos();
        let [first, second] = if delay % 2 == 0 { [0, 1] } else { [1, 0] };
        for turn in 0..200 {
            if turn == 12 {
                nodes[1].now_nanos = due;
            }
            if turn == delay / 2 + 6 {
                nodes[0].members_set(&known);
            }
            nodes[first].turn();
            nodes[second].turn();
        }
        until(&mut nodes, "they meet", |nodes| {
            nodes[0].is_connected(2) && nodes[1].is_connected(1)
        });
        pass(&mut nodes, SECOND);
        let told: Vec<usize> = nodes.iter().map(Node::connected).collect();
        for node in &nodes {
            assert!(node.connected() <= 2, "delay {delay}: {:?}", node.told);
            assert_eq!(node.connected(), node.lost() + 1, "delay {delay}: {:?}", node.told);
            assert_eq!(node.ring.connections(), 1, "delay {delay}: one stays");
            let is_told = |fault: &&Fault| !matches!(fault, Fault::Unreachable(_));
            assert_eq!(node.faults().into_iter().find(is_told), None, "delay {delay}");
        }
        pass(&mut nodes, 10 * SECOND);
        assert_eq!(nodes.iter().map(Node::connected).collect::<Vec<_>>(), told, "delay {delay}");
    }
}

#[test]
fn the_other_side_cannot_replace_the_connection_that_both_keep_but_its_next_start_can() {
    let mut nodes = pair();
    // Node 2 connects, too, as the same process: it gets no proof and the end.
    let mut crossed = Raw::connect(nodes[0].address);
    let (mut handshake, first) = Handshake::initiator(hello(2, 1), NodeId(1), key(1), &[3; 32]);
    crossed.write(&first);
    let reply = crossed.read_message(&mut nodes);
    let Step::Reply(proof) = handshake.receive(&reply, &mut |_| Ok(())) else {
        panic!("a proof is due");
    };
    crossed.write(&proof);
    assert_eq!(crossed.read(&mut nodes, 1), [], "it is one too many");
    assert_eq!((nodes[0].connected(), nodes[0].lost()), (1, 0));
    assert!(nodes[0].faults().is_empty());
    // The next start of its process has nothing left of the old connection.
    let _newer = Raw::shaken(&mut nodes, hello(2, 2), key(1));
    assert_eq!((nodes[0].connected(), nodes[0].lost()), (2, 1));
}
