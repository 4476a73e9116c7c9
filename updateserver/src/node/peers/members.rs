//! Who the other nodes are, which of them this node connects to, and when.

use std::collections::BTreeMap;

use spillway_net::ids::NodeId;
use spillway_net::peer::{Hello, Refusal};

/// First pause after a connection that failed or ended.
const BACKOFF_NANOS_MIN: u64 = 10_000_000;
/// Each pause is twice the one before, up to this.
const BACKOFF_NANOS_MAX: u64 = 1_000_000_000;
/// Failing for so long is worth a word.
const TRIED_NANOS_MIN: u64 = 1_000_000_000;
/// A link that stood for so long was a good one: the pauses begin anew.
const GOOD_NANOS_MIN: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dial {
    /// The other node connects.
    Never,
    /// Not before this time.
    At(u64),
    /// A connection is there, or is being made.
    Busy,
}

#[derive(Debug)]
struct Member {
    address: String,
    dial: Dial,
    backoff_nanos: u64,
    /// Counts attempts, to try one address of a name after the other.
    attempts: usize,
    /// Boot and instance of the process that was connected last.
    seen: Option<(u64, u64)>,
    connected_nanos: Option<u64>,
    /// When the first of the attempts was made that have not led to a link yet.
    tried_nanos: Option<u64>,
}

/// A connection that is to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub node: NodeId,
    pub address: String,
    pub attempt: usize,
}

/// See the module. Without this node itself.
#[derive(Debug)]
pub(super) struct Members {
    own: NodeId,
    members: BTreeMap<NodeId, Member>,
}

impl Members {
    pub fn new(own: NodeId, members: Vec<(NodeId, String)>, now_nanos: u64) -> Self {
        let mut made = Self { own, members: BTreeMap::new() };
        made.set(members, now_nanos);
        made
    }

    /// Replaces the members. What is known of those that stay is kept.
    pub fn set(&mut self, members: Vec<(NodeId, String)>, now_nanos: u64) {
        let mut before = std::mem::take(&mut self.members);
        for (node, address) in members {
            assert!(node != NodeId(0), "a member has a number");
            if node == self.own {
                continue;
            }
            let is_dialed = self.own < node;
            let first = if is_dialed { Dial::At(now_nanos) } else { Dial::Never };
            let mut member = before.remove(&node).unwrap_or_else(|| Member {
                address: address.clone(),
                dial: first,
                backoff_nanos: BACKOFF_NANOS_MIN,
                attempts: 0,
                seen: None,
                connected_nanos: None,
                tried_nanos: None,
            });
            if member.address != address {
                (member.address, member.backoff_nanos) = (address, BACKOFF_NANOS_MIN);
                if matches!(member.dial, Dial::At(_)) {
                    member.dial = first;
                }
            }
            self.members.insert(node, member);
        }
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.members.contains_key(&node)
    }

    /// Whether somebody may have a link, if it is who it says.
    pub fn admit(&self, peer: &Hello) -> Result<(), Refusal> {
        let node = peer.node;
        let Some(member) = self.members.get(&node) else {
            return Err(Refusal::NodeUnknown { node });
        };
        // The number of a boot rises with every start, so an earlier one, or the same one in
        // another process, means two disks with one number. One that only repairs its log has not
        // begun a boot of its own, so it comes with that of its last process.
        match member.seen {
            Some((boot, _)) if peer.boot < boot => Err(Refusal::NodeTwice { node }),
            Some(_) if peer.is_repairing() => Ok(()),
            Some((boot, instance)) if peer.boot == boot && peer.instance != instance => {
                Err(Refusal::NodeTwice { node })
            }
            _ => Ok(()),
        }
    }

    pub fn connected(&mut self, peer: &Hello, now_nanos: u64) {
        let member = self.members.get_mut(&peer.node).expect("only members are let in");
        if !peer.is_repairing() {
            member.seen = Some((peer.boot, peer.instance));
        }
        member.connected_nanos = Some(now_nanos);
        member.tried_nanos = None;
    }

    /// The next connection to make. Its end is told by [`Self::dial_again`].
    pub fn due(&mut self, now_nanos: u64) -> Option<Due> {
        let is_due = |member: &Member| matches!(member.dial, Dial::At(at) if at <= now_nanos);
        let (node, member) = self.members.iter_mut().find(|(_, member)| is_due(member))?;
        let due = Due { node: *node, address: member.address.clone(), attempt: member.attempts };
        member.dial = Dial::Busy;
        member.tried_nanos.get_or_insert(now_nanos);
        member.attempts = member.attempts.wrapping_add(1);
        Some(due)
    }

    /// A connection ended or was not made.
    pub fn dial_again(&mut self, node: NodeId, now_nanos: u64) {
        let Some(member) = self.members.get_mut(&node) else { return };
        if member.dial != Dial::Busy {
            // It was taken out and in again meanwhile.
            return;
        }
        let good = member.connected_nanos.take().is_some_and(|at| at + GOOD_NANOS_MIN <= now_nanos);
        if good {
            member.backoff_nanos = BACKOFF_NANOS_MIN;
        }
        member.dial = Dial::At(now_nanos + member.backoff_nanos);
        member.backoff_nanos = (2 * member.backoff_nanos).min(BACKOFF_NANOS_MAX);
    }

    /// Whether a node could not be reached for so long that it is worth a word: not if it only
    /// starts a moment later than this one.
    pub fn is_tried_long(&self, node: NodeId, now_nanos: u64) -> bool {
        let tried = self.members.get(&node).and_then(|member| member.tried_nanos);
        tried.is_some_and(|at| at + TRIED_NANOS_MIN <= now_nanos)
    }

    /// When the next connection is to be made.
    pub fn deadline_nanos(&self) -> u64 {
        let times = self.members.values().map(|member| match member.dial {
            Dial::At(at) => at,
            Dial::Never | Dial::Busy => u64::MAX,
        });
        times.min().unwrap_or(u64::MAX)
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

    fn hello(node: u16, boot: u64, instance: u64) -> Hello {
        let format = LogFormat { block_bytes: 512, batch_bytes_max: 1 << 20, partitions: 1 };
        Hello { cluster: ClusterId(1), limits: 1, format, node: NodeId(node), boot, instance }
    }

    #[test]
    fn the_lower_number_connects() {
        let mut made = Members::new(NodeId(2), members(&[(1, "a"), (2, "b"), (3, "c")]), 5);
        assert_eq!(made.deadline_nanos(), 5);
        assert_eq!(made.due(4), None);
        let due = made.due(5).expect("node 3");
        assert_eq!(due, Due { node: NodeId(3), address: "c".to_owned(), attempt: 0 });
        assert_eq!(made.due(SECOND), None);
        assert_eq!(made.deadline_nanos(), u64::MAX);
        assert!(made.contains(NodeId(1)) && !made.contains(NodeId(2)));
    }

    #[test]
    fn pauses_double_up_to_a_second_and_begin_anew_after_a_good_link() {
        let mut made = Members::new(NodeId(1), members(&[(2, "a")]), 0);
        let mut now = 0;
        let mut pauses = Vec::new();
        for attempt in 0..10 {
            assert_eq!(made.due(now).expect("due").attempt, attempt);
            made.dial_again(NodeId(2), now);
            pauses.push((made.deadline_nanos() - now) / 1_000_000);
            now = made.deadline_nanos();
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        assert!(made.is_tried_long(NodeId(2), now));
        // One that stood only for a moment changes nothing.
        made.due(now).expect("due");
        made.connected(&hello(2, 1, 1), now);
        made.dial_again(NodeId(2), now + SECOND - 1);
        assert_eq!(made.deadline_nanos(), now + 2 * SECOND - 1);
        now = made.deadline_nanos();
        assert!(!made.is_tried_long(NodeId(2), now));
        made.due(now).expect("due");
        made.connected(&hello(2, 1, 1), now);
        made.dial_again(NodeId(2), now + SECOND);
        assert_eq!(made.deadline_nanos(), now + SECOND + BACKOFF_NANOS_MIN);
        made.due(made.deadline_nanos()).expect("due");
        assert!(!made.is_tried_long(NodeId(2), now + SECOND));
        assert!(made.is_tried_long(NodeId(2), now + 3 * SECOND));
    }

    #[test]
    fn one_number_belongs_to_one_process_at_a_time() {
        let mut made = Members::new(NodeId(2), members(&[(1, "a")]), 0);
        let twice = Err(Refusal::NodeTwice { node: NodeId(1) });
        assert_eq!(made.admit(&hello(3, 1, 1)), Err(Refusal::NodeUnknown { node: NodeId(3) }));
        assert_eq!(made.admit(&hello(1, 5, 50)), Ok(()));
        made.connected(&hello(1, 5, 50), 0);
        assert_eq!(made.admit(&hello(1, 5, 50)), Ok(()), "a new connection of the same process");
        assert_eq!(made.admit(&hello(1, 5, 51)), twice, "another process");
        assert_eq!(made.admit(&hello(1, 4, 40)), twice, "an old copy of the disk");
        assert_eq!(made.admit(&hello(1, 6, 60)), Ok(()), "the next start");
    }

    #[test]
    fn a_node_that_repairs_its_log_comes_with_the_boot_of_its_last_process() {
        let mut made = Members::new(NodeId(2), members(&[(1, "a")]), 0);
        made.connected(&hello(1, 5, 50), 0);
        let repairing = hello(1, 5, Hello::INSTANCE_REPAIRING);
        assert_eq!(made.admit(&repairing), Ok(()));
        made.connected(&repairing, 1);
        let copy = Hello { boot: 4, ..repairing };
        assert!(made.admit(&copy).is_err(), "an old copy of the disk");
        assert!(made.admit(&hello(1, 5, 51)).is_err(), "another process of that boot");
        assert_eq!(made.admit(&hello(1, 6, 60)), Ok(()), "repaired");
        // A node that has heard of nobody yet remembers nothing of it.
        let mut fresh = Members::new(NodeId(2), members(&[(1, "a")]), 0);
        fresh.connected(&repairing, 0);
        assert_eq!(fresh.admit(&hello(1, 1, 10)), Ok(()));
    }

    #[test]
    fn members_that_stay_are_kept() {
        let mut made = Members::new(NodeId(1), members(&[(2, "a"), (3, "b")]), 0);
        made.due(0).expect("node 2");
        made.connected(&hello(2, 7, 70), 0);
        made.set(members(&[(2, "other"), (4, "d")]), 9);
        assert!(!made.contains(NodeId(3)));
        assert!(made.admit(&hello(2, 6, 1)).is_err(), "what was seen is still known");
        let due = made.due(9).expect("node 4");
        assert_eq!((due.node, due.address.as_str()), (NodeId(4), "d"));
        made.dial_again(NodeId(2), 10);
        let due = made.due(10 + BACKOFF_NANOS_MIN).expect("node 2 again");
        assert_eq!((due.node, due.address.as_str()), (NodeId(2), "other"));
        // Taken out while it was connected, and in again: the end of the old connection does not
        // make a second one.
        made.set(members(&[(4, "d")]), 11);
        made.set(members(&[(2, "a"), (4, "d")]), 12);
        made.dial_again(NodeId(2), 13);
        assert_eq!(made.due(13).expect("at once").node, NodeId(2));
        assert_eq!(made.due(u64::MAX), None);
    }
}
