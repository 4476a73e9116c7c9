//! What the judge knows of each node's own log, and what no node may do with it.
//!
//! - Log matching: a node writes its log without gaps, and each entry names the one before it.
//! - A node never replaces an entry that is committed.
//! - A node acknowledges only what has landed on its disk, without a gap.
//! - What is committed was durable on a majority of the nodes when the first node said so.
//! - The committed end of a node only rises from its start on, and lies within its log.
//! - A term has one leader, and the log with which it was elected has everything that older terms
//!   committed.

use std::collections::{BTreeMap, VecDeque};

use spillway_net::ids::{Epoch, Lsn};
use spillway_updateserver::log::EntryIndex;
use spillway_updateserver::quorum::{PeerHeader, PeerMessage};

use crate::Failure;
use crate::entry::Entry;
use crate::history::History;

/// A frame on its way to the disk.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    sequence: u64,
    lsn: u64,
    checksum: u64,
    landed: bool,
}

/// The log of one node as it wrote it.
#[derive(Clone, Debug, Default)]
struct NodeLog {
    /// The entry before the first, and its checksum.
    base: (u64, u64),
    checksums: Vec<u64>,
    /// End of what has landed without a gap.
    durable: u64,
    /// End of what has landed without a gap, also if another entry has its place meanwhile.
    landed: u64,
    /// The highest term it has spoken of, since its start.
    term: u64,
    /// In the order of their writing.
    in_flight: VecDeque<InFlight>,
    /// What it said is committed, since its start.
    committed: u64,
}

impl NodeLog {
    fn checksum(&self, lsn: u64) -> Option<u64> {
        if lsn == self.base.0 {
            return Some(self.base.1);
        }
        self.checksums.get(lsn.checked_sub(self.base.0 + 1)? as usize).copied()
    }
}

/// With which log a node asked for votes.
#[derive(Clone, Copy, Debug)]
struct Candidacy {
    term: u64,
    last: Lsn,
    last_term: Epoch,
}

/// See the module.
#[derive(Debug)]
pub struct Replicas {
    alone: bool,
    /// Nodes that make a majority.
    majority: u32,
    logs: BTreeMap<u16, NodeLog>,
    /// Nodes on which an entry ever was durable, by index and checksum, as bits.
    durable_at: BTreeMap<(u64, u64), u64>,
    /// By term.
    leaders: BTreeMap<u64, u16>,
    /// By node, the newest one.
    candidacies: BTreeMap<u16, Candidacy>,
}

impl Replicas {
    /// Of so many voters.
    pub fn new(voters: u16) -> Self {
        Self {
            alone: voters == 1,
            majority: u32::from(voters / 2 + 1),
            logs: BTreeMap::new(),
            durable_at: BTreeMap::new(),
            leaders: BTreeMap::new(),
            candidacies: BTreeMap::new(),
        }
    }

    fn log(&mut self, node: u16) -> &mut NodeLog {
        self.logs.entry(node).or_default()
    }

    /// A node has started with what its disk holds.
    pub fn started(&mut self, node: u16, entries: &EntryIndex, history: &History) {
        let base = entries.base();
        let checksum = |lsn| entries.get(Lsn(lsn)).map(|meta| meta.checksum);
        let checksums: Vec<u64> = (base.lsn.0 + 1..=entries.last().0).map_while(checksum).collect();
        assert_eq!(checksums.len(), entries.len(), "an index has no gaps");
        for (lsn, checksum) in (base.lsn.0 + 1..).zip(&checksums) {
            if lsn > history.last().0 {
                *self.durable_at.entry((lsn, *checksum)).or_default() |= 1 << node;
            }
        }
        *self.log(node) = NodeLog {
            base: (base.lsn.0, base.checksum),
            checksums,
            durable: entries.last().0,
            landed: entries.last().0,
            term: 0,
            in_flight: VecDeque::new(),
            committed: 0,
        };
    }

    /// A node writes an entry.
    pub fn wrote(
        &mut self,
        node: u16,
        sequence: u64,
        entry: &Entry,
        history: &History,
    ) -> Result<(), Failure> {
        let log = self.logs.entry(node).or_default();
        let (lsn, checksum) = (entry.lsn.0, entry.checksum);
        let before = lsn.checked_sub(1).and_then(|before| log.checksum(before));
        if before != Some(entry.previous) {
            return Err(Failure::new(format!(
                "logs do not match: node {} writes LSN {lsn} behind another entry than it has",
                node + 1
            )));
        }
        let held = log.checksum(lsn);
        if held != Some(checksum) {
            let committed = history.at(entry.lsn).map(|entry| entry.checksum);
            if committed.is_some() && held == committed {
                return Err(Failure::new(format!(
                    "node {} replaces LSN {lsn}, which is committed",
                    node + 1
                )));
            }
            log.checksums.truncate((lsn - 1 - log.base.0) as usize);
            log.checksums.push(checksum);
            log.durable = log.durable.min(lsn - 1);
        }
        log.in_flight.push_back(InFlight { sequence, lsn, checksum, landed: false });
        Ok(())
    }

    /// A frame of a node has landed on its disk.
    pub fn landed(&mut self, node: u16, sequence: u64, history: &History) {
        let log = self.logs.entry(node).or_default();
        if let Some(write) = log.in_flight.iter_mut().find(|write| write.sequence == sequence) {
            write.landed = true;
        }
        while let Some(write) = log.in_flight.front().copied().filter(|write| write.landed) {
            log.in_flight.pop_front();
            let is_next = write.lsn <= log.durable + 1;
            if is_next {
                log.landed = log.landed.max(write.lsn);
            }
            if !is_next || log.checksum(write.lsn) != Some(write.checksum) {
                continue;
            }
            log.durable = log.durable.max(write.lsn);
            if write.lsn > history.last().0 {
                *self.durable_at.entry((write.lsn, write.checksum)).or_default() |= 1 << node;
            }
        }
    }

    /// Up to here a node's log has landed on its disk without a gap.
    pub fn durable(&self, node: u16) -> u64 {
        self.logs.get(&node).map_or(0, |log| log.durable)
    }

    /// A node says that everything up to an entry is committed: first of all or again.
    pub fn committed(
        &mut self,
        node: u16,
        lsn: Lsn,
        new: &[std::rc::Rc<Entry>],
        history: &History,
    ) -> Result<(), Failure> {
        let log = self.logs.entry(node).or_default();
        if lsn.0 < log.committed {
            return Err(Failure::new(format!(
                "the committed end of node {} falls from LSN {} to {lsn}",
                node + 1,
                log.committed
            )));
        }
        log.committed = lsn.0;
        // Its disk may still hold another entry at this place: a node that has taken over the right
        // one in memory may say so before its own write is issued.
        for entry in new {
            let at = (entry.lsn.0, entry.checksum);
            let durable = self.durable_at.remove(&at).unwrap_or_default();
            if durable.count_ones() < self.majority {
                return Err(Failure::new(format!(
                    "LSN {} is committed, and was durable on {} node(s) of {} needed",
                    entry.lsn,
                    durable.count_ones(),
                    self.majority
                )));
            }
        }
        // What was not chosen will never be.
        let last = history.last().0;
        self.durable_at.retain(|(lsn, _), _| *lsn > last);
        Ok(())
    }

    /// A node sends a message.
    pub fn sent(&mut self, header: &PeerHeader, history: &History) -> Result<(), Failure> {
        let (node, term) = (header.from.0 - 1, header.term.0);
        if !matches!(header.message, PeerMessage::Vote { pre: true, .. }) {
            let log = self.log(node);
            log.term = log.term.max(term);
        }
        match header.message {
            PeerMessage::AppendReply { index, reject: None, .. } => {
                // What was taken in an earlier term may become durable, and be acknowledged in that
                // term, when a later leader's entry is in its place already. It counts for nobody
                // who does not lead that term, and who does has it from a time before the vote.
                let log = self.log(node);
                let is_old = term < log.term;
                let durable = if is_old { log.landed.max(log.durable) } else { log.durable };
                if index.0 > durable {
                    return Err(Failure::new(format!(
                        "node {} acknowledges LSN {index}, and its log is durable up to {durable}",
                        node + 1
                    )));
                }
            }
            PeerMessage::Vote { pre: false, last, last_term, .. } => {
                self.candidacies.insert(node, Candidacy { term, last, last_term });
            }
            PeerMessage::Append { .. } | PeerMessage::Heartbeat { .. } => {
                return self.leads(node, term, history);
            }
            _ => {}
        }
        Ok(())
    }

    /// A node acts as the leader of a term.
    pub fn leads(&mut self, node: u16, term: u64, history: &History) -> Result<(), Failure> {
        match self.leaders.insert(term, node) {
            Some(before) if before == node => return Ok(()),
            // A lone node may repeat a term whose beginning a crash took back.
            Some(before) => {
                let (before, node) = (before + 1, node + 1);
                return Err(Failure::new(format!("nodes {before} and {node} lead term {term}")));
            }
            None if self.alone => return Ok(()),
            None => {}
        }
        let candidacy = self.candidacies.get(&node).filter(|candidacy| candidacy.term == term);
        let Some(Candidacy { last, last_term, .. }) = candidacy.copied() else {
            let node = node + 1;
            return Err(Failure::new(format!("node {node} leads term {term} without an election")));
        };
        let committed = history.last_before(Epoch(term));
        if history.descends(last, last_term, committed) {
            return Ok(());
        }
        Err(Failure::new(format!(
            "node {} was elected for term {term} with a log up to LSN {last} of term {last_term} \
             that has not all that is committed up to LSN {committed}",
            node + 1
        )))
    }
}

#[cfg(test)]
mod tests {
    use spillway_net::ids::{NodeId, WallMicros};
    use spillway_updateserver::log::{ChainState, FrameKind};

    use super::*;
    use crate::Options;
    use crate::disk::CLUSTER;
    use crate::draw::Draw;
    use crate::options::Sizes;

    fn entry(lsn: u64, checksum: u64, previous: u64) -> Entry {
        Entry {
            lsn: Lsn(lsn),
            term: Epoch(1),
            timestamp: WallMicros(lsn),
            kind: FrameKind::Data,
            checksum,
            previous,
            sections: Vec::new(),
            body: Vec::new(),
        }
    }

    fn judge() -> (Replicas, History) {
        let sizes = Sizes::draw(&mut Draw::new(1), &Options::cluster(1, 3));
        let (mut replicas, history) = (Replicas::new(3), History::new(sizes.geometry, false));
        for node in 0..3 {
            replicas.started(node, &EntryIndex::behind(&ChainState::EMPTY), &history);
        }
        (replicas, history)
    }

    fn message(from: u16, term: u64, message: PeerMessage) -> PeerHeader {
        let (from, to) = (NodeId(from + 1), NodeId(from % 3 + 2));
        PeerHeader {
            cluster: CLUSTER,
            from,
            to,
            term: Epoch(term),
            applied: Lsn(0),
            committed: Lsn(0),
            time: WallMicros(0),
            body_bytes: 0,
            message,
        }
    }

    fn acknowledges(replicas: &mut Replicas, history: &History, lsn: u64) -> bool {
        let reply = PeerMessage::AppendReply { index: Lsn(lsn), commit: Lsn(0), reject: None };
        replicas.sent(&message(0, 1, reply), history).is_ok()
    }

    #[test]
    fn only_what_is_durable_without_a_gap_is_acknowledged() {
        let (mut replicas, history) = judge();
        for lsn in 1..=3 {
            replicas
                .wrote(0, lsn, &entry(lsn, lsn + 10, (lsn + 9) * u64::from(lsn > 1)), &history)
                .expect("a log without gaps");
        }
        replicas.landed(0, 2, &history);
        replicas.landed(0, 3, &history);
        assert!(!acknowledges(&mut replicas, &history, 1));
        replicas.landed(0, 1, &history);
        assert!(acknowledges(&mut replicas, &history, 3));
        assert!(!acknowledges(&mut replicas, &history, 4));
        // Another leader's entry takes the place of the second.
        replicas.wrote(0, 4, &entry(2, 22, 11), &history).expect("it continues the first");
        assert!(acknowledges(&mut replicas, &history, 1));
        assert!(!acknowledges(&mut replicas, &history, 2));
    }

    #[test]
    fn logs_that_do_not_match_are_found() {
        let (mut replicas, history) = judge();
        replicas.wrote(0, 1, &entry(1, 11, 0), &history).expect("the first entry");
        for wrong in [entry(2, 12, 10), entry(3, 13, 12), entry(1, 11, 7)] {
            assert!(replicas.wrote(0, 2, &wrong, &history).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_term_has_one_leader_who_was_elected() {
        let (mut replicas, history) = judge();
        let beat = PeerMessage::Heartbeat { commit: Lsn(0), matched: Lsn(0) };
        assert!(replicas.sent(&message(0, 2, beat), &history).is_err(), "nobody voted");
        for node in [0, 1] {
            let vote = PeerMessage::Vote {
                pre: false,
                forced: false,
                last: Lsn(0),
                last_term: Epoch(0),
                commit: Lsn(0),
                commit_term: Epoch(0),
            };
            replicas.sent(&message(node, 3, vote), &history).expect("anybody may ask");
        }
        replicas.sent(&message(0, 3, beat), &history).expect("the first leader");
        replicas.sent(&message(0, 3, beat), &history).expect("the same");
        let second = replicas.sent(&message(1, 3, beat), &history).expect_err("the second");
        assert_eq!(second.to_string(), "nodes 1 and 2 lead term 3");
    }
}
