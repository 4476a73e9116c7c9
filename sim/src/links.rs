//! The links between the nodes.
//!
//! Fault model: a link is made again and again until it stands; each side hears of it, and of its
//! end, at a time of its own. What is sent over a link arrives in order, late, whole. A link may
//! end at any moment, with everything on its way, or with what was on its way in one direction
//! (the other one arrived, and its sender does not know it: it is sent again over the next link);
//! it ends when a message is lost, and when a side was not heard for a second. What was sent over
//! an earlier link never arrives. One direction may be cut or clogged for a while without anybody
//! being told: what is sent, or what is on its way, arrives afterwards, if the link still stands.
//! Cuts and clogs strike one link, all of a node, all between two halves that one node in the
//! middle still joins, or a random set of directions, closed and opened in different orders. A
//! link may be a hundred times as slow for a while.
//!
//! Beyond what TCP does, if a run is `lossy`: single messages are lost, or arrive twice, and what
//! meets a cut is gone.

use std::collections::BTreeMap;

use crate::draw::Draw;

/// Two nodes, counted from 0, the lower one first.
pub type Pair = (u16, u16);

/// One link. Sides and the directions from them are 0 and 1.
#[derive(Clone, Debug)]
pub struct Link {
    /// Whether it stands.
    pub is_up: bool,
    /// Rises whenever it comes up or ends: what belongs to an earlier one is void.
    pub generation: u64,
    /// Whether a side knows that it stands.
    pub told: [bool; 2],
    /// Whether an attempt to connect is under way.
    pub is_tried: bool,
    /// What is sent in a direction is lost until this time.
    pub cut_until: [u64; 2],
    /// Time of the last arrival at each side.
    pub last_at: [u64; 2],
    /// Bytes on their way from each side.
    pub outgoing: [usize; 2],
    /// How many of the next messages from each side are lost.
    pub lose_next: [u32; 2],
    /// How many of the next messages from each side arrive twice.
    pub twice_next: [u32; 2],
    /// Until then everything takes long.
    pub slow_until: u64,
    /// Chance of what goes over it.
    pub draw: Draw,
}

impl Link {
    fn new(draw: Draw) -> Self {
        Self {
            is_up: false,
            generation: 0,
            told: [false; 2],
            is_tried: false,
            cut_until: [0; 2],
            last_at: [0; 2],
            outgoing: [0; 2],
            lose_next: [0; 2],
            twice_next: [0; 2],
            slow_until: 0,
            draw,
        }
    }

    /// How long something takes that is sent now.
    pub fn latency(&mut self, now: u64, typical: u64) -> u64 {
        self.draw.nanos(if now < self.slow_until { 100 * typical } else { typical })
    }

    /// A time of arrival at a side that keeps the order.
    pub fn arrival(&mut self, side: usize, at: u64) -> u64 {
        let last = &mut self.last_at[side];
        *last = at.max(*last + 1);
        *last
    }
}

/// All of them.
#[derive(Clone, Debug)]
pub struct Links(BTreeMap<Pair, Link>);

/// The pair of two nodes, and the side of the first.
pub fn pair_of(node: u16, other: u16) -> (Pair, usize) {
    assert!(node != other, "a link has two ends");
    if node < other { ((node, other), 0) } else { ((other, node), 1) }
}

impl Links {
    /// Between so many nodes of a seed.
    pub fn new(seed: u64, nodes: u16) -> Self {
        let mut links = Self(BTreeMap::new());
        (1..nodes).for_each(|node| links.add(seed, node));
        links
    }

    /// A node is new: links to all that come before it.
    pub fn add(&mut self, seed: u64, node: u16) {
        for pair in (0..node).map(|other| (other, node)) {
            let draw = Draw::stream(seed, &format!("link {pair:?}"));
            self.0.insert(pair, Link::new(draw));
        }
    }

    /// One of them.
    pub fn get_mut(&mut self, pair: Pair) -> &mut Link {
        self.0.get_mut(&pair).expect("all pairs have a link")
    }

    /// Whether all between these nodes stand, and nothing is between them.
    pub fn are_well(&self, nodes: &[u16], now: u64) -> bool {
        let is_well = |link: &Link| {
            let through = link.cut_until.iter().all(|until| *until <= now);
            link.is_up && link.told == [true; 2] && through && link.slow_until <= now
        };
        let among = |pair: &Pair| nodes.contains(&pair.0) && nodes.contains(&pair.1);
        self.0.iter().filter(|(pair, _)| among(pair)).all(|(_, link)| is_well(link))
    }

    /// All pairs.
    pub fn pairs(&self) -> Vec<Pair> {
        self.0.keys().copied().collect()
    }
}
