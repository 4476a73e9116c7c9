//! The peer header.

use proptest::prelude::*;
use spillway_net::ids::{Epoch, Lsn, NodeId, WallMicros};

use super::world::geometry;
use crate::log::testing::CLUSTER;
use crate::quorum::{
    AppendReject, PEER_HEADER_BYTES, PeerHeader, PeerHeaderFault, PeerMessage, fuzz_peer_header,
};

fn messages() -> Vec<PeerMessage> {
    let (lsn, commit, term) = (Lsn(77), Lsn(70), Epoch(8));
    let reject = Some(AppendReject { hint: Lsn(60), hint_term: Epoch(3) });
    let (pre, forced) = (false, true);
    vec![
        PeerMessage::Append {
            previous: lsn,
            previous_term: Epoch(7),
            commit,
            entry_term: Some(term),
            matched: Lsn(76),
        },
        PeerMessage::Append {
            previous: lsn,
            previous_term: term,
            commit,
            entry_term: None,
            matched: Lsn(0),
        },
        PeerMessage::AppendReply { index: lsn, commit, reject: None },
        PeerMessage::AppendReply { index: lsn, commit, reject },
        PeerMessage::Vote { pre, forced, last: lsn, last_term: term, commit, commit_term: term },
        PeerMessage::VoteReply { pre: true, reject: true, commit, commit_term: term },
        PeerMessage::Heartbeat { commit, matched: lsn },
        PeerMessage::HeartbeatReply { commit },
        PeerMessage::TimeoutNow,
        PeerMessage::Confirm { round: 9 },
        PeerMessage::ConfirmReply { round: 9 },
        PeerMessage::Fetch { lsn },
        PeerMessage::FetchReply { lsn, found: true, last: lsn, commit, leader: NodeId(2) },
        PeerMessage::FetchReply { lsn, found: false, last: lsn, commit, leader: NodeId(0) },
    ]
}

fn header(message: PeerMessage) -> PeerHeader {
    PeerHeader {
        cluster: CLUSTER,
        from: NodeId(3),
        to: NodeId(1),
        term: Epoch(9),
        committed: Lsn(6),
        time: WallMicros(7),
        applied: Lsn(55),
        body_bytes: if message.has_body() { 1024 } else { 0 },
        message,
    }
}

#[test]
fn every_message_survives_and_every_flip_is_seen() {
    for message in messages() {
        let header = header(message);
        let bytes = header.encode();
        assert_eq!(PeerHeader::decode(&geometry(), &bytes), Ok(header));
        fuzz_peer_header(&geometry(), &bytes);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(PeerHeader::decode(&geometry(), &damaged).is_err(), "bit {bit}");
        }
        assert_eq!(
            PeerHeader::decode(&geometry(), &bytes[..PEER_HEADER_BYTES - 1]),
            Err(PeerHeaderFault::Length(PEER_HEADER_BYTES - 1))
        );
    }
}

#[test]
fn impossible_headers_are_refused() {
    let append = |previous_term, entry_term| PeerMessage::Append {
        previous: Lsn(5),
        previous_term: Epoch(previous_term),
        commit: Lsn(1),
        entry_term: Some(Epoch(entry_term)),
        matched: Lsn(0),
    };
    let large = geometry().batch_bytes_max;
    let faults = [
        (PeerHeader { body_bytes: large, ..header(append(1, 2)) }, "body size"),
        (PeerHeader { body_bytes: 513, ..header(append(1, 2)) }, "body size"),
        (header(append(3, 2)), "entry term"),
        (header(append(3, 10)), "entry term"),
        (PeerHeader { term: Epoch(0), ..header(PeerMessage::TimeoutNow) }, "term"),
        (PeerHeader { from: NodeId(1000), ..header(PeerMessage::TimeoutNow) }, "node"),
        (header(PeerMessage::Fetch { lsn: Lsn(0) }), "index"),
    ];
    for (header, field) in faults {
        let fault = Err(PeerHeaderFault::Field(field));
        assert_eq!(PeerHeader::decode(&geometry(), &header.encode()), fault, "{header:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_understood(bytes in prop::collection::vec(any::<u8>(), 0..140)) {
        fuzz_peer_header(&geometry(), &bytes);
    }

    #[test]
    fn near_misses_are_refused_or_understood(
        which in 0..14usize,
        at in 6..120usize,
        value in any::<u8>(),
    ) {
        let mut bytes = header(messages()[which]).encode();
        bytes[at] = value;
        fuzz_peer_header(&geometry(), &bytes);
    }
}
