use proptest::prelude::*;

use super::super::hello::LogFormat;
use super::*;
use crate::ids::ClusterId;

fn key(seed: u8) -> ClusterKey {
    let bytes: Vec<u8> = (0..48).map(|at| seed ^ at).collect();
    ClusterKey::new(&bytes).expect("48 bytes")
}

fn node(number: u16) -> Hello {
    Hello {
        cluster: ClusterId(0xabcd),
        limits: 77,
        format: LogFormat { block_bytes: 4096, batch_bytes_max: 1 << 20, partitions: 256 },
        node: NodeId(number),
        boot: 5,
        instance: 1000 + u64::from(number),
        is_founded: number.is_multiple_of(2),
    }
}

fn first(own: Hello, seed: u8, nonce: u8) -> (Handshake, Message) {
    Handshake::initiator(own, NodeId(2), key(seed), &[nonce; NONCE_BYTES])
}

fn second(own: Hello, seed: u8, nonce: u8) -> Handshake {
    Handshake::responder(own, key(seed), &[nonce; NONCE_BYTES])
}

fn anybody(_: &Hello) -> Result<(), Refusal> {
    Ok(())
}

fn reply(step: Step) -> Message {
    match step {
        Step::Reply(message) => message,
        other => panic!("a reply is due, not {other:?}"),
    }
}

fn refusal(step: Step) -> (Refusal, Message) {
    match step {
        Step::Refused { refusal, reply } => (refusal, reply),
        other => panic!("a refusal is due, not {other:?}"),
    }
}

fn is_refused(step: &Step) -> bool {
    matches!(step, Step::Refused { .. })
}

fn damaged(mut message: Message, at: usize, bytes: &[u8]) -> Message {
    message[at..at + bytes.len()].copy_from_slice(bytes);
    let checksum = xxhash_rust::xxh3::xxh3_64(&message[..120]);
    message[120..].copy_from_slice(&checksum.to_le_bytes());
    message
}

#[test]
fn two_nodes_with_one_key_come_together() {
    come_together(1);
    // The higher number may connect, too.
    come_together(3);
}

fn come_together(number: u16) {
    let (mut one, hello_one) = first(node(number), 3, 1);
    let mut two = second(node(2), 3, 2);
    let hello_two = reply(two.receive(&hello_one, &mut anybody));
    let proof_one = reply(one.receive(&hello_two, &mut anybody));
    let Step::Established { peer, reply: Some(proof_two) } = two.receive(&proof_one, &mut anybody)
    else {
        panic!("the proof is right");
    };
    assert_eq!(peer, node(number));
    let end = one.receive(&proof_two, &mut anybody);
    assert_eq!(end, Step::Established { peer: node(2), reply: None });
}

/// Whoever finds the fault first refuses, and the other side is told the same reason.
fn both_are_told(one: Hello, two: Hello) -> Refusal {
    let (mut initiator, hello_one) = first(one, 3, 1);
    let mut responder = second(two, 3, 2);
    let (found, message) = refusal(responder.receive(&hello_one, &mut anybody));
    assert_eq!(initiator.receive(&message, &mut anybody), Step::RefusedByPeer(found));
    // The initiator would have found it, too.
    let (mut initiator, _) = first(one, 3, 1);
    let hello_two = hello::hello_encode(Role::Responder, &two, &[2; NONCE_BYTES]);
    let (own, _) = refusal(initiator.receive(&hello_two, &mut anybody));
    assert_eq!(own.reason(), found.reason());
    found
}

#[test]
fn what_differs_is_refused_with_both_values() {
    let mut other = node(1);
    other.cluster = ClusterId(9);
    let expected = Refusal::Cluster { refuser: ClusterId(0xabcd), refused: ClusterId(9) };
    assert_eq!(both_are_told(other, node(2)), expected);
    let mut other = node(1);
    other.limits = 78;
    assert_eq!(both_are_told(other, node(2)), Refusal::Limits { refuser: 77, refused: 78 });
    for change in 0..3 {
        let mut other = node(1);
        match change {
            0 => other.format.block_bytes = 512,
            1 => other.format.batch_bytes_max = 1 << 19,
            _ => other.format.partitions = 128,
        }
        let expected = Refusal::Format { refuser: node(2).format, refused: other.format };
        assert_eq!(both_are_told(other, node(2)), expected);
    }
}

#[test]
fn other_versions_are_refused_on_both_sides() {
    let (mut one, hello_one) = first(node(1), 3, 1);
    let mut two = second(node(2), 3, 2);
    let newer = damaged(hello_one, 4, &7u16.to_le_bytes());
    let (found, message) = refusal(two.receive(&newer, &mut anybody));
    assert_eq!(found, Refusal::Version { refuser: 2, refused: 7 });
    assert_eq!(one.receive(&message, &mut anybody), Step::RefusedByPeer(found));
    // The refusal of a later release is understood as far as it can be, and not answered.
    let (mut one, _) = first(node(1), 3, 1);
    let strange = damaged(message, 4, &7u16.to_le_bytes());
    let expected = Refusal::Version { refuser: 7, refused: 2 };
    assert_eq!(one.receive(&strange, &mut anybody), Step::RefusedByPeer(expected));
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    // The own number, from a second process that has it.
    let hello = hello::hello_encode(Role::Initiator, &node(2), &[1; NONCE_BYTES]);
    let (found, _) = refusal(second(node(2), 3, 2).receive(&hello, &mut anybody));
    assert_eq!(found, Refusal::NodeTwice { node: NodeId(2) });
    // Nobody's number.
    let hello = hello::hello_encode(Role::Initiator, &node(0), &[1; NONCE_BYTES]);
    let (found, _) = refusal(second(node(2), 3, 2).receive(&hello, &mut anybody));
    assert_eq!(found, Refusal::NodeUnknown { node: NodeId(0) });
    // The address leads to somebody else, or back to the node itself.
    let (mut one, _) = first(node(1), 3, 1);
    let hello = hello::hello_encode(Role::Responder, &node(4), &[1; NONCE_BYTES]);
    let (found, _) = refusal(one.receive(&hello, &mut anybody));
    assert_eq!(found, Refusal::NodeOther { expected: NodeId(2), found: NodeId(4) });
    let (mut one, _) = first(node(1), 3, 1);
    let hello = hello::hello_encode(Role::Responder, &node(1), &[1; NONCE_BYTES]);
    let (found, _) = refusal(one.receive(&hello, &mut anybody));
    assert_eq!(found, Refusal::NodeTwice { node: NodeId(1) });
}

#[test]
fn the_owner_has_the_last_word() {
    let (_, hello_one) = first(node(1), 3, 1);
    let mut two = second(node(2), 3, 2);
    let mut nobody = |peer: &Hello| Err(Refusal::NodeUnknown { node: peer.node });
    let (found, _) = refusal(two.receive(&hello_one, &mut nobody));
    assert_eq!(found, Refusal::NodeUnknown { node: NodeId(1) });
    assert_eq!(two.claimed().map(|peer| peer.node), Some(NodeId(1)));
}

#[test]
fn another_key_is_refused_by_whoever_sees_the_proof_first() {
    let (mut one, hello_one) = first(node(1), 3, 1);
    let mut two = second(node(2), 4, 2);
    let hello_two = reply(two.receive(&hello_one, &mut anybody));
    let proof_one = reply(one.receive(&hello_two, &mut anybody));
    let (found, message) = refusal(two.receive(&proof_one, &mut anybody));
    assert_eq!(found, Refusal::Key);
    assert_eq!(one.receive(&message, &mut anybody), Step::RefusedByPeer(Refusal::Key));
    // A responder that lets anybody in is found out by the initiator.
    let (mut one, hello_one) = first(node(1), 3, 1);
    let mut two = second(node(2), 3, 2);
    let hello_two = reply(two.receive(&hello_one, &mut anybody));
    reply(one.receive(&hello_two, &mut anybody));
    let forged = key(4).proof(Role::Responder, &hello_one, &hello_two);
    let forged = hello::proof_encode(Role::Responder, &forged);
    assert_eq!(refusal(one.receive(&forged, &mut anybody)).0, Refusal::Key);
}

#[test]
fn replayed_messages_prove_nothing() {
    // Everything that node 1 sent in a good handshake.
    let (mut one, hello_one) = first(node(1), 3, 1);
    let mut two = second(node(2), 3, 2);
    let hello_two = reply(two.receive(&hello_one, &mut anybody));
    let proof_one = reply(one.receive(&hello_two, &mut anybody));
    let Step::Established { reply: Some(proof_two), .. } = two.receive(&proof_one, &mut anybody)
    else {
        panic!("the proof is right");
    };
    // Sent again to node 2, which has drawn another nonce.
    let mut again = second(node(2), 3, 12);
    reply(again.receive(&hello_one, &mut anybody));
    assert_eq!(refusal(again.receive(&proof_one, &mut anybody)).0, Refusal::Key);
    // And what node 2 sent, to node 1.
    let (mut again, _) = first(node(1), 3, 11);
    reply(again.receive(&hello_two, &mut anybody));
    assert_eq!(refusal(again.receive(&proof_two, &mut anybody)).0, Refusal::Key);
}

#[test]
fn messages_sent_back_prove_nothing() {
    let (mut one, hello_one) = first(node(1), 3, 1);
    assert_eq!(refusal(one.receive(&hello_one, &mut anybody)).0, Refusal::Order);
    // The own hello with the other role in it is the own number.
    let (mut one, hello_one) = first(node(1), 3, 1);
    let turned = damaged(hello_one, 7, &[2]);
    let (found, _) = refusal(one.receive(&turned, &mut anybody));
    assert_eq!(found, Refusal::NodeTwice { node: NodeId(1) });
    // The own proof sent back, as it is and with the other role in it.
    for turn in [false, true] {
        let (mut one, hello_one) = first(node(1), 3, 1);
        let mut two = second(node(2), 3, 2);
        let hello_two = reply(two.receive(&hello_one, &mut anybody));
        let mut proof = reply(one.receive(&hello_two, &mut anybody));
        if turn {
            proof = damaged(proof, 7, &[2]);
        }
        let expected = if turn { Refusal::Key } else { Refusal::Order };
        assert_eq!(refusal(one.receive(&proof, &mut anybody)).0, expected);
    }
    // Two connections to one responder: what it sends on one is of no use on the other.
    let (_, hello_one) = first(node(1), 3, 1);
    let mut two = second(node(2), 3, 2);
    let mut other = second(node(2), 3, 3);
    let hello_two = reply(two.receive(&hello_one, &mut anybody));
    assert_eq!(refusal(other.receive(&hello_two, &mut anybody)).0, Refusal::Order);
}

#[test]
fn messages_out_of_turn_end_it() {
    let proof = hello::proof_encode(Role::Initiator, &[7; 32]);
    assert_eq!(refusal(second(node(2), 3, 2).receive(&proof, &mut anybody)).0, Refusal::Order);
    let (_, hello_one) = first(node(1), 3, 1);
    let mut two = second(node(2), 3, 2);
    reply(two.receive(&hello_one, &mut anybody));
    assert_eq!(refusal(two.receive(&hello_one, &mut anybody)).0, Refusal::Order);
}

#[test]
fn strange_bytes_are_named() {
    let mut two = second(node(2), 3, 2);
    let mut http = [b' '; 128];
    http[..14].copy_from_slice(b"GET / HTTP/1.1");
    assert_eq!(refusal(two.receive(&http, &mut anybody)).0, Refusal::Protocol);
    let mut tls = [0; 128];
    tls[..3].copy_from_slice(&[0x16, 0x03, 0x01]);
    let mut two = second(node(2), 3, 2);
    assert_eq!(refusal(two.receive(&tls, &mut anybody)).0, Refusal::Tls);
}

proptest! {
    #[test]
    fn one_flipped_bit_never_passes(bit in 0usize..1024, which in 0usize..4) {
        let (mut one, hello_one) = first(node(1), 3, 1);
        let mut two = second(node(2), 3, 2);
        let flip = |message: Message, now: usize| {
            let mut message = message;
            if now == which {
                message[bit / 8] ^= 1 << (bit % 8);
            }
            message
        };
        let step = two.receive(&flip(hello_one, 0), &mut anybody);
        if which == 0 {
            prop_assert!(is_refused(&step));
            return Ok(());
        }
        let step = one.receive(&flip(reply(step), 1), &mut anybody);
        if which == 1 {
            prop_assert!(is_refused(&step));
            return Ok(());
        }
        let step = two.receive(&flip(reply(step), 2), &mut anybody);
        let Step::Established { reply: Some(proof_two), .. } = step else {
            prop_assert!(which == 2 && is_refused(&step));
            return Ok(());
        };
        let end = one.receive(&flip(proof_two, 3), &mut anybody);
        prop_assert!(is_refused(&end));
    }

    /// Somebody who knows everything but the key, and so makes whole messages with any content.
    #[test]
    fn whole_messages_without_the_key_let_nobody_in(
        side in any::<u8>(),
        kinds in prop::collection::vec((1u8..4, 1u8..3, any::<[u8; 32]>()), 1..6),
    ) {
        let mut data = vec![side];
        for (kind, role, bytes) in kinds {
            let message = match kind {
                1 => {
                    let mut peer = node(if side % 2 == 0 { 1 } else { 3 });
                    peer.cluster = ClusterId(1);
                    peer.limits = 2;
                    peer.format.block_bytes = 512;
                    peer.format.partitions = 4;
                    hello::hello_encode(Role::Initiator, &peer, &bytes)
                }
                2 => hello::proof_encode(Role::Initiator, &bytes),
                _ => hello::refusal_encode(Role::Initiator, &Refusal::Order),
            };
            data.extend_from_slice(&damaged(message, 7, &[role]));
        }
        fuzz_handshake(&data);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(data in prop::collection::vec(any::<u8>(), 0..700)) {
        fuzz_handshake(&data);
    }
}
