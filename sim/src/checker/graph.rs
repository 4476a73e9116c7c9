//! What must come before what: a directed graph in compressed rows.
//!
//! Nodes are the transactions, behind them the unknown writers of versions that somebody saw, and
//! hubs. A hub stands for nobody; it only spares edges where many transactions precede many, and a
//! way through it is one step of the kind by which it enters the hub.

/// Why one transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EdgeKind {
    /// Both wrote a key, in this order.
    WriteWrite,
    /// The second read what the first wrote.
    WriteRead,
    /// The first read what the second's write replaced.
    ReadWrite,
    /// Out of a hub.
    Through,
    /// The first ended before the second began. Not in the graph: times tell it.
    Realtime,
}

const KINDS: [EdgeKind; 4] =
    [EdgeKind::WriteWrite, EdgeKind::WriteRead, EdgeKind::ReadWrite, EdgeKind::Through];
const KEY_BITS: u32 = 29;

/// A kind and a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(u32);

impl Label {
    /// Of an edge for a key.
    pub fn new(kind: EdgeKind, key: u32) -> Self {
        assert!(kind != EdgeKind::Realtime, "times tell what was before in real time");
        assert!(key < 1 << KEY_BITS, "keys fit {KEY_BITS} bits");
        Self((kind as u32) << KEY_BITS | key)
    }

    /// Kind.
    pub fn kind(self) -> EdgeKind {
        KINDS[(self.0 >> KEY_BITS) as usize]
    }

    /// Key.
    pub fn key(self) -> u32 {
        self.0 & ((1 << KEY_BITS) - 1)
    }
}

/// Which edges count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask(u8);

impl Mask {
    /// Those between writes.
    pub const WRITES: Self = Self(0b1001);
    /// Those of writes and of reads from them.
    pub const READS: Self = Self(0b1011);
    /// All.
    pub const ALL: Self = Self(0b1111);

    fn has(self, label: Label) -> bool {
        self.0 >> (label.0 >> KEY_BITS) & 1 == 1
    }
}

/// What a node behind the transactions is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// See the module.
    Hub,
    /// Whoever wrote this version of this key.
    Writer {
        /// Key.
        key: u32,
        /// Version.
        version: u64,
    },
}

/// Collects edges.
#[derive(Debug)]
pub struct Builder {
    transactions: u32,
    extras: Vec<Extra>,
    edges: Vec<(u32, u32, Label)>,
}

impl Builder {
    /// Of a history with so many transactions.
    pub fn new(transactions: usize) -> Self {
        let transactions = u32::try_from(transactions).expect("transactions fit 32 bits");
        Self { transactions, extras: Vec::new(), edges: Vec::new() }
    }

    /// Adds a node.
    pub fn extra(&mut self, extra: Extra) -> u32 {
        let node = self.transactions as usize + self.extras.len();
        self.extras.push(extra);
        u32::try_from(node).expect("nodes fit 32 bits")
    }

    /// Adds an edge. Nobody precedes itself.
    pub fn edge(&mut self, from: u32, to: u32, kind: EdgeKind, key: u32) {
        if from != to {
            self.edges.push((from, to, Label::new(kind, key)));
        }
    }

    /// Every source comes before every target but itself. Targets are sorted, without repetition.
    pub fn fan(&mut self, sources: &[(u32, EdgeKind)], targets: &[u32], key: u32) {
        assert!(targets.is_sorted_by(|a, b| a < b), "targets are sorted");
        if sources.len() * targets.len() <= 4 * (sources.len() + targets.len()) {
            for (source, kind) in sources {
                targets.iter().for_each(|target| self.edge(*source, *target, *kind, key));
            }
            return;
        }
        // One hub leads to the targets from its place on, the other to those up to it: a source
        // that is a target, too, takes the hubs beside its place.
        let hubs = |builder: &mut Self| -> Vec<u32> {
            targets.iter().map(|_| builder.extra(Extra::Hub)).collect()
        };
        let (from, up_to) = (hubs(self), hubs(self));
        for (at, target) in targets.iter().enumerate() {
            self.edge(from[at], *target, EdgeKind::Through, key);
            self.edge(up_to[at], *target, EdgeKind::Through, key);
            if at > 0 {
                self.edge(from[at - 1], from[at], EdgeKind::Through, key);
                self.edge(up_to[at], up_to[at - 1], EdgeKind::Through, key);
            }
        }
        for (source, kind) in sources {
            match targets.binary_search(source) {
                Err(_) => self.edge(*source, from[0], *kind, key),
                Ok(at) => {
                    if at > 0 {
                        self.edge(*source, up_to[at - 1], *kind, key);
                    }
                    if at + 1 < targets.len() {
                        self.edge(*source, from[at + 1], *kind, key);
                    }
                }
            }
        }
    }

    /// The graph of all that was added.
    pub fn finish(self) -> Graph {
        let nodes = self.transactions as usize + self.extras.len();
        let rows = Rows::new(nodes, &self.edges);
        Graph { transactions: self.transactions, extras: self.extras, rows }
    }
}

/// Edges by their origin.
#[derive(Debug)]
struct Rows {
    begins: Vec<u32>,
    to: Vec<u32>,
    labels: Vec<Label>,
}

impl Rows {
    fn new(nodes: usize, edges: &[(u32, u32, Label)]) -> Self {
        assert!(u32::try_from(edges.len()).is_ok(), "edges fit 32 bits");
        let mut begins = vec![0u32; nodes + 1];
        for (from, _, _) in edges {
            begins[*from as usize + 1] += 1;
        }
        for at in 1..begins.len() {
            begins[at] += begins[at - 1];
        }
        let mut next = begins.clone();
        let mut to = vec![0; edges.len()];
        let mut labels = vec![Label(0); edges.len()];
        for (from, target, label) in edges {
            let next = &mut next[*from as usize];
            to[*next as usize] = *target;
            labels[*next as usize] = *label;
            *next += 1;
        }
        Self { begins, to, labels }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Graph {
    transactions: u32,
    extras: Vec<Extra>,
    rows: Rows,
}

/// Nodes in an order in which every node stands behind all it leads to, and the groups of nodes
/// that lead to each other: each is a stretch of that order.
#[derive(Debug, Default)]
pub struct Components {
    /// The order.
    pub order: Vec<u32>,
    /// Begin and end of the groups of more than one node.
    pub cyclic: Vec<(u32, u32)>,
}

const UNSEEN: u32 = u32::MAX;
const DONE: u32 = u32::MAX - 1;

impl Graph {
    /// Nodes.
    pub fn nodes(&self) -> usize {
        self.transactions as usize + self.extras.len()
    }

    /// Edges.
    pub fn edges(&self) -> usize {
        self.rows.to.len()
    }

    /// Whether a node is a transaction.
    pub fn is_transaction(&self, node: u32) -> bool {
        node < self.transactions
    }

    /// What a node is that is no transaction.
    pub fn extra(&self, node: u32) -> Option<Extra> {
        self.extras.get(node.checked_sub(self.transactions)? as usize).copied()
    }

    /// Whether a node stands for nobody.
    pub fn is_hub(&self, node: u32) -> bool {
        self.extra(node) == Some(Extra::Hub)
    }

    /// The edges out of a node that count.
    pub fn out(&self, node: u32, mask: Mask) -> impl Iterator<Item = (u32, Label)> {
        let range =
            self.rows.begins[node as usize] as usize..self.rows.begins[node as usize + 1] as usize;
        let row = self.rows.to[range.clone()].iter().zip(&self.rows.labels[range]);
        row.map(|(to, label)| (*to, *label)).filter(move |(_, label)| mask.has(*label))
    }

    /// Tarjan's strongly connected components of the nodes that are not left out, without
    /// recursion.
    pub fn components(&self, mask: Mask, among: &[u32], left_out: &[bool]) -> Components {
        let mut seen = vec![UNSEEN; self.nodes()];
        let mut low = vec![0u32; self.nodes()];
        let mut found = Components::default();
        let mut stack: Vec<u32> = Vec::new();
        // A node and how many of its edges have been looked at.
        let mut path: Vec<(u32, u32)> = Vec::new();
        let mut count = 0;
        let (begins, to) = (&self.rows.begins, &self.rows.to);
        for root in among {
            if seen[*root as usize] != UNSEEN || left_out[*root as usize] {
                continue;
            }
            path.push((*root, begins[*root as usize]));
            while let Some((node, next)) = path.last_mut() {
                let node = *node as usize;
                if seen[node] == UNSEEN {
                    (seen[node], low[node]) = (count, count);
                    count += 1;
                    stack.push(node as u32);
                }
                if *next < begins[node + 1] {
                    let (target, label) = (to[*next as usize], self.rows.labels[*next as usize]);
                    *next += 1;
                    let place = target as usize;
                    if !mask.has(label) || left_out[place] || seen[place] == DONE {
                        continue;
                    }
                    if seen[place] == UNSEEN {
                        path.push((target, begins[place]));
                    } else {
                        low[node] = low[node].min(seen[place]);
                    }
                    continue;
                }
                path.pop();
                if let Some((parent, _)) = path.last() {
                    let parent = *parent as usize;
                    low[parent] = low[parent].min(low[node]);
                }
                if low[node] == seen[node] {
                    found.take(&mut stack, node as u32, &mut seen);
                }
            }
        }
        found
    }
}

impl Components {
    /// Takes a component off the stack.
    fn take(&mut self, stack: &mut Vec<u32>, root: u32, seen: &mut [u32]) {
        let begin = self.order.len() as u32;
        while let Some(node) = stack.pop() {
            seen[node as usize] = DONE;
            self.order.push(node);
            if node == root {
                break;
            }
        }
        let end = self.order.len() as u32;
        if end - begin > 1 {
            self.cyclic.push((begin, end));
        }
    }
}
