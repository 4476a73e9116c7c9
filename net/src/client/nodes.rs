//! The nodes of a cluster as far as a client knows them.

use crate::limits::NODES_MAX;
use crate::message::Welcome;

/// Nodes that were only heard of, at most. Those that the caller named are always kept.
const HEARD_OF_MAX: usize = 2 * NODES_MAX;
/// An address that a node tells is not longer: a host name and a port.
const ADDRESS_BYTES_MAX: usize = 260;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KnownNode {
    /// Where its shard 0 listens.
    address: String,
    /// Its number, 0 if not known.
    node: u16,
    /// Ports of its shards, empty if not known.
    ports: Vec<u16>,
    /// The caller named it.
    is_given: bool,
}

/// Addresses of nodes, ports of their shards, and who leads. Grows by what nodes say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeBook {
    nodes: Vec<KnownNode>,
    leader: u16,
    /// The term in which `leader` leads.
    epoch: u64,
}

/// Host and port of an address; `None` if it has not both.
fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let is_plain = host.chars().all(|c| c.is_ascii_graphic());
    let is_good = !host.is_empty() && is_plain && address.len() <= ADDRESS_BYTES_MAX;
    port.parse().ok().filter(|port| *port != 0 && is_good).map(|port| (host, port))
}

impl NodeBook {
    /// The nodes whose shards 0 listen at these addresses, each `host:port`.
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut book = Self::default();
        for address in addresses {
            let address = address.into();
            if book.find(&address).is_none() {
                book.nodes.push(KnownNode { address, node: 0, ports: Vec::new(), is_given: true });
            }
        }
        book
    }

    /// One node whose shards' ports are known.
    pub fn with_ports(address: impl Into<String>, ports: Vec<u16>) -> Self {
        let mut book = Self::new([address]);
        book.nodes[0].ports = ports;
        book
    }

    /// Nodes known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node is known.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Addresses of all nodes' shards 0.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.address.as_str())
    }

    /// The leader and its term, as far as any node that claimed to lead was met.
    pub fn leader(&self) -> Option<(u16, u64)> {
        (self.leader != 0).then_some((self.leader, self.epoch))
    }

    /// Where a node's shard 0 listens; what the caller named comes first.
    pub fn address_of(&self, node: u16) -> Option<&str> {
        let found = self.nodes.iter().find(|known| node != 0 && known.node == node);
        found.map(|known| known.address.as_str())
    }

    /// Where a shard of the node at `address` listens; `None` if its ports are not known, or it
    /// has fewer shards.
    pub fn shard_address(&self, address: &str, shard: u16) -> Option<String> {
        if shard == 0 {
            // The address given may be a forwarded one.
            return Some(address.to_owned());
        }
        let (host, _) = split(address)?;
        let port = self.nodes[self.find(address)?].ports.get(usize::from(shard))?;
        Some(format!("{host}:{port}"))
    }

    /// Begins with this node, if it is known.
    pub fn begin_with(&mut self, node: u16) {
        let at = self.nodes.iter().position(|known| node != 0 && known.node == node);
        self.nodes[..=at.unwrap_or(0)].rotate_right(1);
    }

    /// The next address after this one, around, that is not `avoided`; if all are, just the next.
    pub fn next_after(&self, address: &str, avoided: impl Fn(&str) -> bool) -> &str {
        let at = self.find(address).map_or(0, |at| at + 1);
        let count = self.nodes.len();
        let mut around = (0..count).map(|step| self.nodes[(at + step) % count].address.as_str());
        let next = around.clone().next().expect("a book names at least one node");
        around.find(|address| !avoided(address)).unwrap_or(next)
    }

    /// The ports of the node at `address` proved wrong.
    pub fn forget_ports(&mut self, address: &str) {
        if let Some(at) = self.find(address) {
            self.nodes[at].ports.clear();
        }
    }

    /// A node was said to listen at `address`. Returns where to reach it, if that can be: where it
    /// was reached before, if it was.
    pub fn heard_of(&mut self, node: u16, address: &str) -> Option<&str> {
        if self.address_of(node).is_none() {
            self.add(node, address)?;
        }
        self.address_of(node)
    }

    /// Adds an address of a node, unless it is none.
    pub fn add(&mut self, node: u16, address: &str) -> Option<()> {
        split(address).filter(|_| node != 0)?;
        match self.find(address) {
            Some(at) => self.nodes[at].node = node,
            None => self.insert(KnownNode {
                address: address.to_owned(),
                node,
                ports: Vec::new(),
                is_given: false,
            }),
        }
        Some(())
    }

    /// The node whose shard 0 listens at `address` said this. Returns whether that was news.
    pub fn greeted(&mut self, address: &str, welcome: &Welcome) -> bool {
        let before = self.clone();
        if let Some(at) = self.find(address) {
            self.nodes[at].node = welcome.node;
            self.nodes[at].ports.clone_from(&welcome.shard_ports);
        }
        let members = &welcome.members[..welcome.members.len().min(HEARD_OF_MAX)];
        let is_new = welcome.epoch >= self.epoch;
        if is_new && !members.is_empty() {
            let is_member = |node: u16| members.iter().any(|member| member.node == node);
            self.nodes.retain(|known| known.is_given || is_member(known.node));
        }
        // One that does not lead may know no term at all, and be the only one that can be reached:
        // what it says makes nobody forgotten, but all nodes may have been replaced since.
        for member in members {
            self.heard_of(member.node, &member.address);
        }
        // Only who leads says so; what others say may be old.
        if is_new && welcome.leader == welcome.node && welcome.node != 0 {
            (self.leader, self.epoch) = (welcome.leader, welcome.epoch);
        }
        *self != before
    }

    /// Takes over what another book knows. Returns whether it knows a newer leader.
    pub fn merge(&mut self, other: &Self) -> bool {
        for known in &other.nodes {
            match self.find(&known.address) {
                Some(at) => {
                    let own = &mut self.nodes[at];
                    if known.node != 0 {
                        own.node = known.node;
                    }
                    if !known.ports.is_empty() {
                        own.ports.clone_from(&known.ports);
                    }
                }
                None => self.insert(known.clone()),
            }
        }
        let newer = other.epoch > self.epoch;
        if newer {
            (self.leader, self.epoch) = (other.leader, other.epoch);
        }
        newer
    }

    fn find(&self, address: &str) -> Option<usize> {
        self.nodes.iter().position(|known| known.address == address)
    }

    fn insert(&mut self, node: KnownNode) {
        let heard_of = self.nodes.iter().filter(|known| !known.is_given);
        if heard_of.count() >= HEARD_OF_MAX
            && let Some(oldest) = self.nodes.iter().position(|known| !known.is_given)
        {
            self.nodes.remove(oldest);
        }
        self.nodes.push(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MemberAddress;

    fn welcome(node: u16, epoch: u64, leader: u16, members: &[(u16, &str)]) -> Welcome {
        let member = |(node, address): &(u16, &str)| MemberAddress {
            node: *node,
            address: (*address).into(),
        };
        Welcome {
            node,
            epoch,
            leader,
            shard_ports: vec![10 * node, 10 * node + 1],
            members: members.iter().map(member).collect(),
            ..Welcome::default()
        }
    }

    fn addresses(book: &NodeBook) -> Vec<&str> {
        book.addresses().collect()
    }

    #[test]
    fn members_are_learned_and_forgotten_but_not_what_was_given() {
        let mut book = NodeBook::new(["a:1", "b:1", "a:1"]);
        assert_eq!(addresses(&book), ["a:1", "b:1"]);
        assert!(book.greeted("a:1", &welcome(1, 5, 1, &[(1, "x:1"), (2, "y:1"), (3, "z:1")])));
        // Node 1 is at a:1: its other address is not needed.
        assert_eq!(addresses(&book), ["a:1", "b:1", "y:1", "z:1"]);
        assert!(!book.greeted("a:1", &welcome(1, 5, 1, &[(1, "x:1"), (2, "y:1"), (3, "z:1")])));
        assert_eq!(book.address_of(3), Some("z:1"));
        assert_eq!(book.leader(), Some((1, 5)));
        // An older term says nothing of members and leaders.
        book.greeted("b:1", &welcome(2, 4, 2, &[(2, "y:1")]));
        assert_eq!((book.len(), book.leader()), (4, Some((1, 5))));
        book.greeted("b:1", &welcome(2, 6, 2, &[(1, "x:1"), (2, "y:1"), (4, "w:1")]));
        assert_eq!(addresses(&book), ["a:1", "b:1", "y:1", "w:1"]);
        assert_eq!(book.leader(), Some((2, 6)));
        assert_eq!(book.address_of(2), Some("b:1"), "what was given comes first");
    }

    /// Whoever reads from any node meets followers, which may not have heard of a term since they
    /// started, while the nodes that the caller named are replaced one after the other.
    #[test]
    fn a_node_that_does_not_lead_tells_who_is_new() {
        let mut book = NodeBook::new(["a:1", "b:1", "c:1"]);
        book.greeted("a:1", &welcome(1, 5, 1, &[(1, "a:1"), (2, "b:1"), (3, "c:1")]));
        let members = [(2, "b:1"), (4, "d:1"), (5, "e:1")];
        assert!(book.greeted("b:1", &welcome(2, 0, 5, &members)));
        assert_eq!(addresses(&book), ["a:1", "b:1", "c:1", "d:1", "e:1"]);
        assert_eq!(book.leader(), Some((1, 5)), "only a leader says who leads");
        // Nobody is forgotten by what is old, or may be.
        book.greeted("c:1", &welcome(3, 4, 0, &[(3, "c:1")]));
        assert_eq!(book.len(), 5);
    }

    #[test]
    fn ports_are_those_of_each_node() {
        let mut book = NodeBook::new(["a:1", "[::1]:7"]);
        assert_eq!(book.shard_address("a:1", 0).as_deref(), Some("a:1"));
        assert_eq!(book.shard_address("a:1", 1), None);
        book.greeted("a:1", &welcome(1, 1, 1, &[]));
        book.greeted("[::1]:7", &welcome(2, 1, 1, &[]));
        assert_eq!(book.shard_address("a:1", 1).as_deref(), Some("a:11"));
        assert_eq!(book.shard_address("[::1]:7", 1).as_deref(), Some("[::1]:21"));
        assert_eq!(book.shard_address("a:1", 2), None);
        book.forget_ports("a:1");
        assert_eq!(book.shard_address("a:1", 1), None);
    }

    #[test]
    fn nonsense_is_not_kept_and_the_book_stays_small() {
        let mut book = NodeBook::new(["a:1"]);
        let long = format!("{}:1", "x".repeat(300));
        for address in ["", "a", ":1", "a:0", "a:70000", "a b:1", "a\n:1", &long] {
            assert_eq!(book.heard_of(9, address), None, "{address:?}");
        }
        assert_eq!(book.heard_of(0, "b:1"), None);
        for node in 1..1000 {
            let address = format!("n:{node}");
            assert_eq!(book.heard_of(node, &address), Some(address.as_str()));
        }
        assert_eq!(book.len(), 1 + HEARD_OF_MAX);
        assert_eq!(book.addresses().next(), Some("a:1"));
    }

    #[test]
    fn the_next_node_is_around_the_corner_and_not_an_avoided_one() {
        let book = NodeBook::new(["a:1", "b:1", "c:1"]);
        assert_eq!(book.next_after("a:1", |_| false), "b:1");
        assert_eq!(book.next_after("c:1", |_| false), "a:1");
        assert_eq!(book.next_after("a:1", |address| address == "b:1"), "c:1");
        assert_eq!(book.next_after("a:1", |_| true), "b:1");
        assert_eq!(book.next_after("gone:1", |_| false), "a:1");
    }

    #[test]
    fn a_book_begins_with_the_node_wanted() {
        let mut book = NodeBook::new(["a:1", "b:1", "c:1"]);
        book.heard_of(7, "c:1");
        book.begin_with(9);
        assert_eq!(addresses(&book), ["a:1", "b:1", "c:1"]);
        book.begin_with(7);
        assert_eq!(addresses(&book), ["c:1", "a:1", "b:1"]);
    }

    #[test]
    fn books_are_merged() {
        let mut book = NodeBook::new(["a:1"]);
        let mut other = NodeBook::new(["a:1", "b:1"]);
        assert!(!book.merge(&other));
        other.greeted("b:1", &welcome(2, 3, 2, &[]));
        assert!(book.merge(&other));
        assert!(!book.merge(&other), "no news");
        assert_eq!(book.shard_address("b:1", 1).as_deref(), Some("b:21"));
        assert_eq!((book.leader(), book.address_of(2)), (Some((2, 3)), Some("b:1")));
    }
}
