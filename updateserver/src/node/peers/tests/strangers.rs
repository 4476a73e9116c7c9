use super::*;

fn node_two() -> Vec<Node> {
    let mut nodes = vec![Node::new(hello(2, 1), key(1))];
    nodes[0].members_set(&[(NodeId(1), "127.0.0.1:9".to_owned())]);
    nodes
}

#[test]
fn rubbish_instead_of_a_hello() {
    let mut nodes = node_two();
    let mut first = [b'x'; MESSAGE_BYTES];
    assert_eq!(Raw::refusal(&mut nodes, &first), Refusal::Protocol);
    // A client of this or another protocol, with TLS.
    first[..3].copy_from_slice(&[0x16, 3, 1]);
    assert_eq!(Raw::refusal(&mut nodes, &first), Refusal::Tls);
    let expected = [&Fault::Refused(Refusal::Protocol), &Fault::Refused(Refusal::Tls)];
    assert_eq!(nodes[0].faults(), expected);
    assert_eq!(Raw::refusal(&mut nodes, &first), Refusal::Tls);
    assert_eq!(nodes[0].faults().len(), 2, "told once");
    // Part of a hello and the end.
    let mut raw = Raw::connect(nodes[0].address);
    raw.write(&first[..100]);
    drop(raw);
    until(&mut nodes, "the rest of it is gone", |nodes| nodes[0].ring.connections() == 0);
}

#[test]
fn rubbish_after_the_handshake() {
    for (bad, what) in [
        (header(u32::MAX, 1), "a bad header"),
        (header(BLOCK as u32 + 1, 1), "513"),
        (header((1 << 20) + BLOCK as u32, 1), "1049088"),
        (header(u32::MAX - 511, 1), "4294966784"),
    ] {
        let mut nodes = node_two();
        let mut raw = Raw::shaken(&mut nodes, hello(1, 1), key(1));
        raw.write(&header(0, 3));
        raw.write(&bad);
        raw.write(&header(0, 4));
        until(&mut nodes, "the link ends", |nodes| nodes[0].lost() == 1);
        assert_eq!(nodes[0].numbers(), [3], "what came before counts, what comes after does not");
        let Fault::Rubbish(text) = nodes[0].faults()[0] else { panic!("{:?}", nodes[0].told) };
        assert!(text.contains(what), "{text}");
        assert_eq!(nodes[0].slots.bytes_used(), 0, "nothing was reserved for it");
    }
}

#[test]
fn a_stranger_who_says_nothing_is_given_up() {
    let mut nodes = node_two();
    let mut raw = Raw::connect(nodes[0].address);
    let (_, first) = Handshake::initiator(hello(1, 1), NodeId(2), key(1), &[3; 32]);
    let mut half = Raw::connect(nodes[0].address);
    half.write(&first);
    until(&mut nodes, "both are there", |nodes| nodes[0].ring.connections() == 2);
    half.read_message(&mut nodes);
    pass(&mut nodes, 2 * SECOND);
    assert_eq!(nodes[0].ring.connections(), 2);
    pass(&mut nodes, 2 * SECOND);
    assert_eq!(raw.read(&mut nodes, 1), []);
    assert_eq!(half.read(&mut nodes, 1), []);
    let mut faults = nodes[0].faults();
    // The member itself is not there.
    faults.retain(|fault| !matches!(fault, Fault::Unreachable(_)));
    assert_eq!(faults, [&Fault::HandshakeSlow, &Fault::HandshakeSlow]);
}

#[test]
fn many_strangers_do_not_keep_a_member_out() {
    let mut nodes = node_two();
    let mut strangers: Vec<Raw> = Vec::new();
    for _ in 0..3 * STRANGERS_MAX {
        strangers.push(Raw::connect(nodes[0].address));
        nodes[0].turn();
    }
    until(&mut nodes, "all but 16 are gone", |nodes| {
        nodes[0].ring.connections() as usize == STRANGERS_MAX
    });
    assert_eq!(strangers[0].read(&mut nodes, 1), [], "the oldest went first");
    let mut member = Raw::shaken(&mut nodes, hello(1, 1), key(1));
    member.write(&header(0, 9));
    until(&mut nodes, "the member is heard", |nodes| nodes[0].numbers() == [9]);
    // It is no stranger any more: more of them do not push it out.
    for _ in 0..3 * STRANGERS_MAX {
        strangers.push(Raw::connect(nodes[0].address));
        nodes[0].turn();
    }
    assert_eq!(nodes[0].lost(), 0);
}

#[test]
fn a_body_that_does_not_come_holds_memory_for_a_second() {
    let mut nodes = node_two();
    let mut raw = Raw::shaken(&mut nodes, hello(1, 1), key(1));
    raw.write(&header(8 * BLOCK as u32, 1));
    raw.write(&[1; BLOCK]);
    until(&mut nodes, "memory is reserved", |nodes| nodes[0].slots.bytes_used() > 0);
    pass(&mut nodes, 2 * SECOND);
    until(&mut nodes, "the link is gone", |nodes| nodes[0].ring.connections() == 0);
    assert_eq!(nodes[0].lost(), 1);
    nodes[0].slots.reclaim();
    assert_eq!(nodes[0].slots.bytes_used(), 0);
}

#[test]
fn a_body_may_take_long_but_must_come() {
    const PIECE: usize = 64 << 10;
    let mut nodes = node_two();
    let mut raw = Raw::shaken(&mut nodes, hello(1, 1), key(1));
    let pieces = 12;
    raw.write(&header((pieces * PIECE) as u32, 1));
    for _ in 0..pieces {
        assert!(nodes[0].numbers().is_empty() && nodes[0].lost() == 0);
        raw.write(&[1; PIECE]);
        pass(&mut nodes, SECOND / 2);
    }
    // Longer than a node may be silent, and never silent.
    until(&mut nodes, "the body is whole", |nodes| nodes[0].numbers() == [1]);
    assert_eq!(nodes[0].lost(), 0);
    // A trickle is not enough.
    raw.write(&header((pieces * PIECE) as u32, 2));
    for _ in 0..2 {
        raw.write(&[1; PIECE / 4]);
        pass(&mut nodes, SECOND / 2);
    }
    until(&mut nodes, "the link is gone", |nodes| nodes[0].ring.connections() == 0);
    assert_eq!((nodes[0].lost(), nodes[0].numbers()), (1, vec![1]));
}

#[test]
fn a_stranger_cannot_take_a_members_place() {
    let mut nodes = node_two();
    let mut member = Raw::shaken(&mut nodes, hello(1, 1), key(1));
    // It knows everything but the key.
    let mut raw = Raw::connect(nodes[0].address);
    let (mut handshake, first) = Handshake::initiator(hello(1, 9), NodeId(2), key(2), &[4; 32]);
    raw.write(&first);
    let reply = raw.read_message(&mut nodes);
    let Step::Reply(proof) = handshake.receive(&reply, &mut |_| Ok(())) else {
        panic!("a proof is due");
    };
    raw.write(&proof);
    let reply = raw.read_message(&mut nodes);
    let step = handshake.receive(&reply, &mut |_| Ok(()));
    assert_eq!(step, Step::RefusedByPeer(Refusal::Key));
    assert_eq!((nodes[0].connected(), nodes[0].lost()), (1, 0));
    member.write(&header(0, 2));
    until(&mut nodes, "the member is heard", |nodes| nodes[0].numbers() == [2]);
}
