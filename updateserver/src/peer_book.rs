//! Who the other nodes are, which of them this node connects to and when, whom it lets in, and
//! which of two connections stays. Pure: the shells make the connections.
//!
//! Of two nodes the one with the lower number connects. Where that does not come about for a while
//! the other one tries, too: the lower one may not know where it is. And a node that the own log
//! does not know yet is let in as a *guest*, since this log may be behind. So two nodes meet if
//! one of them knows where the other is, by its log or by its configuration.
//!
//! A guest has proven that it belongs to the cluster as everybody has, by key or certificate; what
//! it may do is the quorum's business, whose members are those of the log. A node that the log
//! has as removed is no guest. Nor is anybody as long as neither log names members: then only the
//! configurations say who founds the cluster, and a node that founds another one with the same
//! key must not find voters here.

use std::collections::{BTreeMap, BTreeSet};

use spillway_net::ids::NodeId;
use spillway_net::limits::NODES_MAX;
use spillway_net::peer::{Hello, Refusal};

/// First pause after a connection that failed or ended.
const BACKOFF_NANOS_MIN: u64 = 10_000_000;
/// Each pause is twice the one before, up to this.
const BACKOFF_NANOS_MAX: u64 = 1_000_000_000;
/// The longest pause after a link that stood, however short: whoever came so far is there and belongs
/// here, and where links break all the time a second without each of them is a second without a
/// quorum.
const BACKOFF_LINKED_NANOS_MAX: u64 = 40_000_000;
/// Failing for so long is worth a word.
const TRIED_NANOS_MIN: u64 = 1_000_000_000;
/// A link that stood for so long was a good one: the pauses begin anew.
const GOOD_NANOS_MIN: u64 = 1_000_000_000;
/// How long a node with a lower number has time to connect before this one tries, and again.
const REVERSE_NANOS: u64 = 2_000_000_000;
/// Guests that are known at a time: those of a cluster that was replaced meanwhile, twice.
const GUESTS_MAX: usize = 2 * NODES_MAX;

/// What a log says of the members of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogMembers {
    /// All nodes that are known, and where their peers reach them.
    pub known: Vec<(NodeId, String)>,
    /// Nodes that were members and are none any more.
    pub removed: Vec<NodeId>,
    /// Whether the log names members at all. Before that only the configuration does.
    pub is_founded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dial {
    /// Not before this time, and not while there is a link.
    At(u64),
    /// A connection that this node made is there, or is being made.
    Busy,
}

#[derive(Debug)]
struct Peer {
    /// Where it may be, in the order in which it is tried. None: it is a guest.
    addresses: Vec<String>,
    dial: Dial,
    backoff_nanos: u64,
    /// Counts attempts, to try one address after the other.
    attempts: usize,
    /// Boot and instance of the process that was connected last.
    seen: Option<(u64, u64)>,
    /// Since when there is a link.
    linked_nanos: Option<u64>,
    /// Whether there was a link since the last attempt.
    was_linked: bool,
    /// When the first of the attempts was made that have not led to a link yet.
    tried_nanos: Option<u64>,
}

impl Peer {
    fn new(addresses: Vec<String>, dial_nanos: u64) -> Self {
        Self {
            addresses,
            dial: Dial::At(dial_nanos),
            backoff_nanos: BACKOFF_NANOS_MIN,
            attempts: 0,
            seen: None,
            linked_nanos: None,
            was_linked: false,
            tried_nanos: None,
        }
    }

    fn is_guest(&self) -> bool {
        self.addresses.is_empty()
    }

    /// How long nothing is tried after an attempt or a link has ended.
    fn pause_nanos(&self) -> u64 {
        let nanos_max = if self.was_linked { BACKOFF_LINKED_NANOS_MAX } else { BACKOFF_NANOS_MAX };
        self.backoff_nanos.min(nanos_max)
    }

    /// When a connection is to be made.
    fn due_nanos(&self) -> u64 {
        match self.dial {
            Dial::At(at) if self.linked_nanos.is_none() && !self.is_guest() => at,
            Dial::At(_) | Dial::Busy => u64::MAX,
        }
    }
}

/// A connection that is to be made.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// To whom.
    pub node: NodeId,
    /// Where it may be, `host:port`.
    pub address: String,
    /// How often this address was tried, to try all that its name stands for.
    pub attempt: usize,
}

/// See the module. Without this node itself.
#[derive(Debug)]
pub struct PeerBook {
    own: NodeId,
    /// Where the configuration has the nodes. Their addresses in the log may be the older ones.
    configured: BTreeMap<NodeId, String>,
    peers: BTreeMap<NodeId, Peer>,
    removed: BTreeSet<NodeId>,
    is_founded: bool,
}

impl PeerBook {
    /// Of node `own`, which knows what it is configured with.
    pub fn new(own: NodeId, configured: Vec<(NodeId, String)>, now_nanos: u64) -> Self {
        let known = LogMembers { known: configured.clone(), ..LogMembers::default() };
        let mut made = Self {
            own,
            configured: configured.into_iter().collect(),
            peers: BTreeMap::new(),
            removed: BTreeSet::new(),
            is_founded: false,
        };
        made.set(known, now_nanos);
        made
    }

    /// Replaces what is known by the log. What is remembered of the nodes that stay is kept, and
    /// so are guests.
    pub fn set(&mut self, members: LogMembers, now_nanos: u64) {
        self.is_founded |= members.is_founded;
        self.removed = members.removed.into_iter().collect();
        let mut before = std::mem::take(&mut self.peers);
        for (node, address) in members.known {
            assert!(node != NodeId(0), "a member has a number");
            if node == self.own {
                continue;
            }
            let mut addresses = vec![address];
            let configured = self.configured.get(&node).filter(|other| **other != addresses[0]);
            addresses.extend(configured.cloned());
            let first = self.dial_first(node, now_nanos);
            let mut peer =
                before.remove(&node).unwrap_or_else(|| Peer::new(addresses.clone(), first));
            if peer.addresses != addresses {
                (peer.addresses, peer.backoff_nanos) = (addresses, BACKOFF_NANOS_MIN);
                peer.attempts = 0;
                if matches!(peer.dial, Dial::At(_)) {
                    peer.dial = Dial::At(first);
                }
            }
            self.peers.insert(node, peer);
        }
        before.retain(|node, peer| peer.is_guest() && !self.removed.contains(node));
        self.peers.append(&mut before);
    }

    /// When a node is dialed that was just heard of, or whose link has gone.
    fn dial_first(&self, node: NodeId, now_nanos: u64) -> u64 {
        if self.own < node { now_nanos } else { now_nanos + REVERSE_NANOS }
    }

    /// Whether the log, as far as it was told, names members.
    pub fn is_founded(&self) -> bool {
        self.is_founded
    }

    /// Whether a node may have a link.
    pub fn contains(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    /// Whether a node has a link without being known here otherwise.
    pub fn is_guest(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(Peer::is_guest)
    }

    /// Whether somebody may have a link, if it is who it says.
    ///
    /// # Errors
    /// What it is told.
    pub fn admit(&self, peer: &Hello) -> Result<(), Refusal> {
        let node = peer.node;
        let Some(known) = self.peers.get(&node) else {
            let is_founded = self.is_founded || peer.is_founded;
            let is_guest = is_founded && node != self.own && !self.removed.contains(&node);
            let has_room = self.guests().count() < GUESTS_MAX || self.guest_idle().is_some();
            let refusal = Refusal::NodeUnknown { node };
            return if is_guest && has_room { Ok(()) } else { Err(refusal) };
        };
        // The number of a boot rises with every start, so an earlier one, or the same one in
        // another process, means two disks with one number. One that only repairs its log has not
        // begun a boot of its own, so it comes with that of its last process.
        match known.seen {
            Some((boot, _)) if peer.boot < boot => Err(Refusal::NodeTwice { node }),
            Some(_) if peer.is_repairing() => Ok(()),
            Some((boot, instance)) if peer.boot == boot && peer.instance != instance => {
                Err(Refusal::NodeTwice { node })
            }
            _ => Ok(()),
        }
    }

    fn guests(&self) -> impl Iterator<Item = (&NodeId, &Peer)> {
        self.peers.iter().filter(|(_, peer)| peer.is_guest())
    }

    /// A guest that has gone, and may be forgotten.
    fn guest_idle(&self) -> Option<NodeId> {
        self.guests().find(|(_, peer)| peer.linked_nanos.is_none()).map(|(node, _)| *node)
    }

    /// Somebody who was admitted has a link. One that it had before was told to be [`Self::lost`].
    ///
    /// # Panics
    /// If it was not admitted.
    pub fn connected(&mut self, peer: &Hello, now_nanos: u64) {
        assert!(self.admit(peer).is_ok(), "only who is admitted has a link");
        if !self.contains(peer.node) {
            if self.guests().count() >= GUESTS_MAX {
                let idle = self.guest_idle().expect("there is room, or nobody is admitted");
                self.peers.remove(&idle);
            }
            self.peers.insert(peer.node, Peer::new(Vec::new(), now_nanos));
        }
        let known = self.peers.get_mut(&peer.node).expect("it was put in if it was not there");
        assert!(known.linked_nanos.is_none(), "one link at a time");
        if !peer.is_repairing() {
            known.seen = Some((peer.boot, peer.instance));
        }
        (known.linked_nanos, known.was_linked) = (Some(now_nanos), true);
        known.tried_nanos = None;
    }

    /// A link is gone.
    pub fn lost(&mut self, node: NodeId, now_nanos: u64) {
        let first = self.dial_first(node, now_nanos);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let good = peer.linked_nanos.take().is_some_and(|at| at + GOOD_NANOS_MIN <= now_nanos);
        if good {
            peer.backoff_nanos = BACKOFF_NANOS_MIN;
        }
        if matches!(peer.dial, Dial::At(_)) {
            peer.dial = Dial::At(first + peer.pause_nanos());
        }
    }

    /// The next connection to make. Its end is told by [`Self::ended`].
    pub fn due(&mut self, now_nanos: u64) -> Option<Due> {
        let is_due = |(_, peer): &(&NodeId, &Peer)| peer.due_nanos() <= now_nanos;
        let node = *self.peers.iter().find(is_due)?.0;
        self.due_to(node, now_nanos)
    }

    /// The connection to a node, if it is due.
    pub fn due_to(&mut self, node: NodeId, now_nanos: u64) -> Option<Due> {
        let peer = self.peers.get_mut(&node).filter(|peer| peer.due_nanos() <= now_nanos)?;
        let (count, attempt) = (peer.addresses.len(), peer.attempts);
        (peer.dial, peer.was_linked) = (Dial::Busy, false);
        peer.tried_nanos.get_or_insert(now_nanos);
        peer.attempts = attempt.wrapping_add(1);
        let address = peer.addresses[attempt % count].clone();
        Some(Due { node, address, attempt: attempt / count })
    }

    /// A connection that was due ended or was not made.
    pub fn ended(&mut self, node: NodeId, now_nanos: u64) {
        let is_lower = self.own < node;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.dial != Dial::Busy {
            // It was taken out and in again meanwhile.
            return;
        }
        let pause = peer.pause_nanos();
        peer.dial = Dial::At(now_nanos + if is_lower { pause } else { REVERSE_NANOS });
        peer.backoff_nanos = (2 * pause).min(BACKOFF_NANOS_MAX);
    }

    /// Whether of two connections to one process, each made by another side, that stays which this
    /// node `accepted`, or has made: the one made by the lower number. Both sides decide so, so
    /// they keep the same one.
    pub fn is_preferred(&self, node: NodeId, accepted: bool) -> bool {
        assert!(node != self.own, "nobody connects to itself");
        accepted == (node < self.own)
    }

    /// Whether a node could not be reached for so long that it is worth a word: not if it only
    /// starts a moment later than this one.
    pub fn is_tried_long(&self, node: NodeId, now_nanos: u64) -> bool {
        let tried = self.peers.get(&node).and_then(|peer| peer.tried_nanos);
        tried.is_some_and(|at| at + TRIED_NANOS_MIN <= now_nanos)
    }

    /// Whether a node has a link.
    pub fn is_linked(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.linked_nanos.is_some())
    }

    /// When the next connection is to be made.
    pub fn deadline_nanos(&self) -> u64 {
        self.peers.values().map(Peer::due_nanos).min().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use spillway_net::ids::ClusterId;
    use spillway_net::peer::LogFormat;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn members(list: &[(u16, &str)]) -> Vec<(NodeId, String)> {
        list.iter().map(|(node, address)| (NodeId(*node), (*address).to_owned())).collect()
    }

    fn book(own: u16, list: &[(u16, &str)]) -> PeerBook {
        PeerBook::new(NodeId(own), members(list), 0)
    }

    fn in_log(list: &[(u16, &str)], removed: &[u16]) -> LogMembers {
        let removed = removed.iter().map(|node| NodeId(*node)).collect();
        LogMembers { known: members(list), removed, is_founded: true }
    }

    fn hello(node: u16, boot: u64, instance: u64) -> Hello {
        let format = LogFormat { block_bytes: 512, batch_bytes_max: 1 << 20, partitions: 1 };
        let (node, is_founded) = (NodeId(node), false);
        Hello { cluster: ClusterId(1), limits: 1, format, node, boot, instance, is_founded }
    }

    fn founded(node: u16) -> Hello {
        Hello { is_founded: true, ..hello(node, 1, 1) }
    }

    fn unknown(node: u16) -> Result<(), Refusal> {
        Err(Refusal::NodeUnknown { node: NodeId(node) })
    }

    #[test]
    fn the_lower_number_connects_and_the_higher_one_after_a_while() {
        let mut made = PeerBook::new(NodeId(2), members(&[(1, "a"), (2, "b"), (3, "c")]), 5);
        assert_eq!(made.deadline_nanos(), 5);
        assert_eq!(made.due(4), None);
        let due = made.due(5).expect("node 3");
        assert_eq!(due, Due { node: NodeId(3), address: "c".to_owned(), attempt: 0 });
        assert_eq!(made.due(REVERSE_NANOS + 4), None);
        assert_eq!(made.deadline_nanos(), 5 + REVERSE_NANOS);
        let due = made.due(5 + REVERSE_NANOS).expect("node 1");
        assert_eq!(due, Due { node: NodeId(1), address: "a".to_owned(), attempt: 0 });
        assert_eq!(made.deadline_nanos(), u64::MAX);
        assert!(made.contains(NodeId(1)) && !made.contains(NodeId(2)));
        // And at the same pace again.
        made.ended(NodeId(1), 3 * SECOND);
        assert_eq!(made.deadline_nanos(), 3 * SECOND + REVERSE_NANOS);
    }

    #[test]
    fn whoever_has_a_link_dials_nobody_and_begins_anew_when_it_is_gone() {
        for own in [1, 2] {
            let other = 3 - own;
            let mut made = book(own, &[(other, "a")]);
            // The other side has made the connection.
            made.connected(&hello(other, 1, 1), 0);
            assert!(made.is_linked(NodeId(other)));
            assert_eq!((made.due(100 * SECOND), made.deadline_nanos()), (None, u64::MAX));
            made.lost(NodeId(other), 100 * SECOND);
            assert!(!made.is_linked(NodeId(other)));
            let patience = if own == 1 { 0 } else { REVERSE_NANOS };
            assert_eq!(made.deadline_nanos(), 100 * SECOND + patience + BACKOFF_NANOS_MIN);
            // The own connection and one of the other side at once: the end of the own one, which
            // is not kept, makes no other.
            made.due(200 * SECOND).expect("due");
            made.connected(&hello(other, 1, 1), 200 * SECOND);
            made.ended(NodeId(other), 201 * SECOND);
            assert_eq!((made.due(300 * SECOND), made.deadline_nanos()), (None, u64::MAX));
        }
    }

    #[test]
    fn of_two_connections_both_sides_keep_the_same() {
        let (one, two) = (book(1, &[(2, "b")]), book(2, &[(1, "a")]));
        for made_by_one in [true, false] {
            let at_one = one.is_preferred(NodeId(2), !made_by_one);
            let at_two = two.is_preferred(NodeId(1), made_by_one);
            assert_eq!((at_one, at_two), (made_by_one, made_by_one));
        }
    }

    #[test]
    fn pauses_double_up_to_a_second_and_begin_anew_after_a_good_link() {
        let mut made = book(1, &[(2, "a")]);
        let mut now = 0;
        let mut pauses = Vec::new();
        for attempt in 0..10 {
            assert_eq!(made.due(now).expect("due").attempt, attempt);
            made.ended(NodeId(2), now);
            pauses.push((made.deadline_nanos() - now) / 1_000_000);
            now = made.deadline_nanos();
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        assert!(made.is_tried_long(NodeId(2), now));
        let link = |made: &mut PeerBook, now: u64, nanos: u64| {
            made.due(now).expect("due");
            made.connected(&hello(2, 1, 1), now);
            made.lost(NodeId(2), now + nanos);
            made.ended(NodeId(2), now + nanos);
        };
        // One that stood only for a moment proves that the other side is there.
        link(&mut made, now, SECOND - 1);
        assert_eq!(made.deadline_nanos(), now + SECOND - 1 + BACKOFF_LINKED_NANOS_MAX);
        now = made.deadline_nanos();
        assert!(!made.is_tried_long(NodeId(2), now));
        link(&mut made, now, SECOND);
        assert_eq!(made.deadline_nanos(), now + SECOND + BACKOFF_NANOS_MIN);
        made.due(made.deadline_nanos()).expect("due");
        assert!(!made.is_tried_long(NodeId(2), now + SECOND));
        assert!(made.is_tried_long(NodeId(2), now + 3 * SECOND));
    }

    #[test]
    fn one_number_belongs_to_one_process_at_a_time() {
        let mut made = book(2, &[(1, "a")]);
        let twice = Err(Refusal::NodeTwice { node: NodeId(1) });
        assert_eq!(made.admit(&hello(1, 5, 50)), Ok(()));
        made.connected(&hello(1, 5, 50), 0);
        assert_eq!(made.admit(&hello(1, 5, 50)), Ok(()), "a new connection of the same process");
        assert_eq!(made.admit(&hello(1, 5, 51)), twice, "another process");
        assert_eq!(made.admit(&hello(1, 4, 40)), twice, "an old copy of the disk");
        assert_eq!(made.admit(&hello(1, 6, 60)), Ok(()), "the next start");
    }

    #[test]
    fn a_node_that_repairs_its_log_comes_with_the_boot_of_its_last_process() {
        let mut made = book(2, &[(1, "a")]);
        let link = |made: &mut PeerBook, peer: &Hello| {
            made.connected(peer, 0);
            made.lost(NodeId(1), 1);
        };
        link(&mut made, &hello(1, 5, 50));
        let repairing = hello(1, 5, Hello::INSTANCE_REPAIRING);
        assert_eq!(made.admit(&repairing), Ok(()));
        link(&mut made, &repairing);
        let copy = Hello { boot: 4, ..repairing };
        assert!(made.admit(&copy).is_err(), "an old copy of the disk");
        assert!(made.admit(&hello(1, 5, 51)).is_err(), "another process of that boot");
        assert_eq!(made.admit(&hello(1, 6, 60)), Ok(()), "repaired");
        // A node that has heard of nobody yet remembers nothing of it.
        let mut fresh = book(2, &[(1, "a")]);
        link(&mut fresh, &repairing);
        assert_eq!(fresh.admit(&hello(1, 1, 10)), Ok(()));
    }

    #[test]
    fn members_that_stay_are_kept() {
        let mut made = book(1, &[]);
        made.set(in_log(&[(2, "a"), (3, "b")], &[]), 0);
        made.due(0).expect("node 2");
        made.connected(&hello(2, 7, 70), 0);
        made.set(in_log(&[(2, "other"), (4, "d")], &[3]), 9);
        assert!(!made.contains(NodeId(3)));
        assert!(made.admit(&hello(2, 6, 1)).is_err(), "what was seen is still known");
        let due = made.due(9).expect("node 4");
        assert_eq!((due.node, due.address.as_str()), (NodeId(4), "d"));
        made.lost(NodeId(2), 10);
        made.ended(NodeId(2), 10);
        let due = made.due(10 + BACKOFF_NANOS_MIN).expect("node 2 again");
        assert_eq!((due.node, due.address.as_str()), (NodeId(2), "other"));
        // Taken out while it was connected, and in again: the end of the old connection does not
        // make a second one.
        made.set(in_log(&[(4, "d")], &[2]), 11);
        made.set(in_log(&[(2, "a"), (4, "d")], &[]), 12);
        made.ended(NodeId(2), 13);
        assert_eq!(made.due(13).expect("at once").node, NodeId(2));
        assert_eq!(made.due(u64::MAX - 1), None);
    }

    /// All three moved while the cluster was down: their logs have the old addresses, and only the
    /// configurations the new ones.
    #[test]
    fn the_address_of_the_log_and_that_of_the_configuration_are_both_tried() {
        let mut made = book(1, &[(2, "new"), (3, "same")]);
        made.set(in_log(&[(2, "old"), (3, "same"), (4, "log")], &[]), 0);
        let mut tried = Vec::new();
        for _ in 0..4 {
            let due = made.due_to(NodeId(2), 100 * SECOND).expect("due");
            tried.push((due.address, due.attempt));
            made.ended(NodeId(2), 0);
        }
        let expected = [("old", 0), ("new", 0), ("old", 1), ("new", 1)];
        assert_eq!(tried, expected.map(|(address, attempt)| (address.to_owned(), attempt)));
        for (node, address) in [(3, "same"), (4, "log")] {
            for attempt in 0..3 {
                let due = made.due_to(NodeId(node), 100 * SECOND).expect("due");
                assert_eq!((due.address.as_str(), due.attempt), (address, attempt));
                made.ended(NodeId(node), 0);
            }
        }
    }

    /// Node 4 has taken the place of node 1, and node 3 was not there: it knows 1 and 2. Node 4
    /// knows it, dials it, and is let in, by its log or by that of node 3.
    #[test]
    fn a_node_that_missed_a_change_meets_one_that_it_does_not_know() {
        for behind_is_founded in [true, false] {
            let mut behind = book(3, &[(1, "a"), (2, "b"), (3, "c")]);
            if behind_is_founded {
                behind.set(in_log(&[(1, "a"), (2, "b"), (3, "c")], &[]), 0);
            }
            let mut new = book(4, &[(2, "b")]);
            new.set(in_log(&[(2, "b"), (3, "c"), (4, "d")], &[1]), 0);
            let due = new.due_to(NodeId(3), REVERSE_NANOS).expect("the lower one is dialed");
            assert_eq!(due.address, "c");
            let own = Hello { is_founded: new.is_founded(), ..hello(4, 1, 1) };
            assert_eq!(behind.admit(&own), Ok(()));
            behind.connected(&own, REVERSE_NANOS);
            assert!(behind.is_guest(NodeId(4)) && behind.is_linked(NodeId(4)));
            // Nobody knows where a guest is.
            behind.lost(NodeId(4), 3 * SECOND);
            assert_eq!(behind.due_to(NodeId(4), 100 * SECOND), None);
            behind.connected(&own, 100 * SECOND);
            // It is none any more when the log has it, and its link stays.
            behind.set(in_log(&[(2, "b"), (3, "c"), (4, "d")], &[1]), 101 * SECOND);
            assert!(!behind.is_guest(NodeId(4)) && behind.is_linked(NodeId(4)));
            behind.lost(NodeId(4), 102 * SECOND);
            let due = behind.due_to(NodeId(4), 103 * SECOND).expect("it is known now");
            assert_eq!(due.address, "d");
            // Node 1 is told that it is no member any more.
            assert_eq!(behind.admit(&founded(1)), unknown(1));
        }
    }

    /// Each of the configurations may have another third node by mistake. Who founds the cluster is
    /// then a matter of these alone, and a node must not vote for one that counts other votes.
    #[test]
    fn nobody_is_a_guest_before_any_log_names_members() {
        let mut made = book(2, &[(1, "a"), (3, "c")]);
        assert_eq!(made.admit(&hello(9, 1, 1)), unknown(9));
        assert_eq!(made.admit(&founded(9)), Ok(()));
        made.set(in_log(&[(1, "a"), (2, "b"), (3, "c")], &[]), 0);
        assert_eq!(made.admit(&hello(9, 1, 1)), Ok(()));
        assert_eq!(made.admit(&founded(2)), unknown(2), "the own number");
    }

    #[test]
    fn guests_are_few_and_those_that_left_make_room() {
        let mut made = book(1, &[(2, "b")]);
        let first = 10;
        let numbers = first..first + GUESTS_MAX as u16;
        for node in numbers.clone() {
            made.connected(&founded(node), 0);
        }
        assert_eq!(made.admit(&founded(99)), unknown(99));
        assert_eq!(made.admit(&founded(2)), Ok(()), "members need no room");
        for node in numbers {
            assert_eq!(made.admit(&founded(node)), Ok(()));
        }
        made.lost(NodeId(first), 1);
        made.connected(&founded(99), 2);
        assert!(made.contains(NodeId(99)) && !made.contains(NodeId(first)));
        assert_eq!(made.admit(&founded(first)), unknown(first));
        // The log is told of a removal: whoever is a guest under that number is none any more.
        made.set(in_log(&[(2, "b")], &[99]), 3);
        assert!(!made.contains(NodeId(99)));
        assert_eq!(made.admit(&founded(first)), Ok(()));
    }
}
