//! Between the state machine's messages and ours. No protobuf leaves or enters the process.

use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, WallMicros};

use super::wire::{AppendReject, PeerHeader, PeerMessage};
use crate::log::FrameKind;

/// What the state machine puts into the context of a vote request that the leader asked for.
const CONTEXT_TRANSFER: &[u8] = b"CampaignTransfer";

/// The entry type of a frame kind.
pub fn entry_type(kind: FrameKind) -> EntryType {
    assert!(kind.is_entry(), "a watermark is no entry");
    match kind {
        FrameKind::Config => EntryType::EntryConfChangeV2,
        _ => EntryType::EntryNormal,
    }
}

/// The node with this number in the state machine.
pub fn node_of(id: u64) -> NodeId {
    NodeId(u16::try_from(id).expect("the state machine only knows numbers that we gave it"))
}

/// Our form of a message. `body_bytes` is the size of the entry that will follow, `matched` what
/// the receiver has acknowledged to this leader.
///
/// # Panics
/// On kinds that the state machine does not send in the way we use it.
pub fn header_of(
    message: &Message,
    cluster: ClusterId,
    applied: Lsn,
    body_bytes: u32,
    matched: Lsn,
) -> PeerHeader {
    assert!(message.entries.len() <= 1, "one entry in a message");
    assert!(message.get_snapshot().get_metadata().index == 0, "no snapshots");
    PeerHeader {
        cluster,
        from: node_of(message.from),
        to: node_of(message.to),
        term: Epoch(message.term),
        applied,
        committed: Lsn(0),
        time: WallMicros(0),
        body_bytes,
        message: message_of(message, matched),
    }
}

fn message_of(message: &Message, matched: Lsn) -> PeerMessage {
    let (index, log_term) = (Lsn(message.index), Epoch(message.log_term));
    let (commit, commit_term) = (Lsn(message.commit), Epoch(message.commit_term));
    let kind = message.get_msg_type();
    match kind {
        MessageType::MsgAppend => PeerMessage::Append {
            previous: index,
            previous_term: log_term,
            commit,
            entry_term: message.entries.first().map(|entry| Epoch(entry.term)),
            matched,
        },
        MessageType::MsgAppendResponse => PeerMessage::AppendReply {
            index,
            commit,
            reject: message
                .reject
                .then_some(AppendReject { hint: Lsn(message.reject_hint), hint_term: log_term }),
        },
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => PeerMessage::Vote {
            pre: kind == MessageType::MsgRequestPreVote,
            forced: message.context == CONTEXT_TRANSFER,
            last: index,
            last_term: log_term,
            commit,
            commit_term,
        },
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            let pre = kind == MessageType::MsgRequestPreVoteResponse;
            PeerMessage::VoteReply { pre, reject: message.reject, commit, commit_term }
        }
        MessageType::MsgHeartbeat => PeerMessage::Heartbeat { commit, matched },
        MessageType::MsgHeartbeatResponse => PeerMessage::HeartbeatReply { commit },
        MessageType::MsgTimeoutNow => PeerMessage::TimeoutNow,
        other => panic!("the state machine sent {other:?}, which is not used here"),
    }
}

/// The state machine's form of a header; `None` for messages that are not for it. The entry of an
/// append is added by [`append_entry`].
pub fn message_for(header: &PeerHeader) -> Option<Message> {
    let mut message = Message::default();
    match header.message {
        PeerMessage::Append { previous, previous_term, commit, .. } => {
            message.set_msg_type(MessageType::MsgAppend);
            message.index = previous.0;
            message.log_term = previous_term.0;
            message.commit = commit.0;
        }
        PeerMessage::AppendReply { index, commit, reject } => {
            message.set_msg_type(MessageType::MsgAppendResponse);
            message.index = index.0;
            message.commit = commit.0;
            if let Some(AppendReject { hint, hint_term }) = reject {
                message.reject = true;
                message.reject_hint = hint.0;
                message.log_term = hint_term.0;
            }
        }
        PeerMessage::Vote { pre, forced, last, last_term, commit, commit_term } => {
            let (vote, pre_vote) = (MessageType::MsgRequestVote, MessageType::MsgRequestPreVote);
            message.set_msg_type(if pre { pre_vote } else { vote });
            message.index = last.0;
            message.log_term = last_term.0;
            message.commit = commit.0;
            message.commit_term = commit_term.0;
            if forced {
                message.context = CONTEXT_TRANSFER.into();
            }
        }
        PeerMessage::VoteReply { pre, reject, commit, commit_term } => {
            let vote = MessageType::MsgRequestVoteResponse;
            let pre_vote = MessageType::MsgRequestPreVoteResponse;
            message.set_msg_type(if pre { pre_vote } else { vote });
            message.reject = reject;
            message.commit = commit.0;
            message.commit_term = commit_term.0;
        }
        PeerMessage::Heartbeat { commit, .. } => {
            message.set_msg_type(MessageType::MsgHeartbeat);
            message.commit = commit.0;
        }
        PeerMessage::HeartbeatReply { commit } => {
            message.set_msg_type(MessageType::MsgHeartbeatResponse);
            message.commit = commit.0;
        }
        PeerMessage::TimeoutNow => message.set_msg_type(MessageType::MsgTimeoutNow),
        PeerMessage::Confirm { .. }
        | PeerMessage::ConfirmReply { .. }
        | PeerMessage::Fetch { .. }
        | PeerMessage::FetchReply { .. } => return None,
    }
    assert!(header.term.0 > 0, "a message without a term would be taken for a local one");
    message.from = u64::from(header.from.0);
    message.to = u64::from(header.to.0);
    message.term = header.term.0;
    Some(message)
}

/// Adds the entry that follows an append.
pub fn append_entry(message: &mut Message, kind: FrameKind, term: Epoch, data: bytes::Bytes) {
    assert_eq!(message.get_msg_type(), MessageType::MsgAppend, "entries come with appends");
    assert!(message.entries.is_empty(), "one entry in a message");
    let mut entry = Entry::default();
    entry.set_entry_type(entry_type(kind));
    entry.term = term.0;
    entry.index = message.index + 1;
    entry.data = data;
    message.entries.push(entry);
}
