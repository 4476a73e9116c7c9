//! Cycles in what must come before what, the strongest and shortest first.
//!
//! Real time needs no edges. Transactions are intervals, and of four intervals with "a ended before
//! b began" and "c ended before d began" either a ended before d began, or c before b. So a cycle
//! with several steps in real time can be cut down to one with a single such step, over some of
//! the same other edges. The history breaks real time if and only if something that must come
//! behind a transaction had ended before that transaction began: one pass over the graph tells.

use std::collections::VecDeque;

use super::finding::{Class, Findings, Party, Step};
use super::graph::{Components, EdgeKind, Extra, Graph, Label, Mask};
use super::history::{History, NEVER};

/// Edges looked at for one finding, or for one length of cycles in real time.
const BUDGET: u64 = 20_000_000;
/// How often components are looked through again for cycles without a party of those found.
const ROUNDS: usize = 8;
/// Cycles found; a history that breaks more often is broken.
const CYCLES_MAX: usize = 1_000;
/// Lengths of cycles in real time, tried one after the other.
const LENGTHS: [u32; 8] = [2, 3, 4, 5, 6, 10, 20, u32::MAX];
/// Which edges, and whether at most one of them may be a read of what was replaced; strongest
/// first.
const LEVELS: [(Mask, bool); 4] =
    [(Mask::WRITES, false), (Mask::READS, false), (Mask::ALL, true), (Mask::ALL, false)];

/// What closes a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    /// An edge back, within a component.
    Edge,
    /// One who had ended before the first began.
    Realtime,
}

/// Looks for cycles.
#[derive(Debug)]
pub(super) struct Search<'a> {
    history: &'a History,
    graph: &'a Graph,
    findings: &'a mut Findings,
    /// Parties of cycles that were found: no other cycle needs them to be seen.
    left_out: Vec<bool>,
    /// Component of each node, while there is one to look through.
    component: Vec<u32>,
    components_count: u32,
    walk: Walk,
    budget: u64,
    found: usize,
}

/// Breadth first, two states a node: before and after the one read of what was replaced.
#[derive(Debug, Default)]
struct Walk {
    distance: Vec<u32>,
    /// The state before, and the label of the edge.
    from: Vec<(u32, Label)>,
    touched: Vec<u32>,
    queue: VecDeque<u32>,
}

impl Walk {
    fn reset(&mut self, nodes: usize) {
        if self.distance.is_empty() {
            self.distance = vec![u32::MAX; nodes * 2];
            self.from = vec![(0, Label::new(EdgeKind::Through, 0)); nodes * 2];
        }
        for state in self.touched.drain(..) {
            self.distance[state as usize] = u32::MAX;
        }
        self.queue.clear();
    }

    fn reach(&mut self, state: u32, distance: u32, is_near: bool, from: (u32, Label)) {
        let known = &mut self.distance[state as usize];
        if distance >= *known {
            return;
        }
        if *known == u32::MAX {
            self.touched.push(state);
        }
        *known = distance;
        self.from[state as usize] = from;
        if is_near { self.queue.push_front(state) } else { self.queue.push_back(state) }
    }
}

impl<'a> Search<'a> {
    /// Transactions of `found` take part in cycles that are known.
    pub fn new(
        history: &'a History,
        graph: &'a Graph,
        findings: &'a mut Findings,
        found: &[u32],
    ) -> Self {
        let mut left_out = vec![false; graph.nodes()];
        found.iter().for_each(|number| left_out[*number as usize] = true);
        Self {
            history,
            graph,
            findings,
            left_out,
            component: Vec::new(),
            components_count: 0,
            walk: Walk::default(),
            budget: 0,
            found: 0,
        }
    }

    /// Adds all cycles to the findings.
    pub fn run(mut self) {
        let all: Vec<u32> = (0..self.graph.nodes() as u32).collect();
        let mut components = self.graph.components(Mask::ALL, &all, &self.left_out);
        if !components.cyclic.is_empty() {
            self.component = vec![0; self.graph.nodes()];
            self.data(&components);
            components = self.graph.components(Mask::ALL, &all, &self.left_out);
            // Whatever is left in circles has been told of as far as the limits allow.
            for (begin, end) in &components.cyclic {
                for node in &components.order[*begin as usize..*end as usize] {
                    self.left_out[*node as usize] = true;
                }
            }
        }
        self.realtime(&components.order);
    }

    fn data(&mut self, components: &Components) {
        let members = |(begin, end): &(u32, u32)| *begin as usize..*end as usize;
        let ranges = components.cyclic.iter().map(members);
        let suspects: Vec<u32> =
            ranges.flat_map(|range| components.order[range].iter().copied()).collect();
        let mut outside = vec![true; self.graph.nodes()];
        for (mask, one_replaced) in LEVELS {
            for _ in 0..ROUNDS {
                outside.fill(true);
                for node in &suspects {
                    outside[*node as usize] = self.left_out[*node as usize];
                }
                let components = self.graph.components(mask, &suspects, &outside);
                let mut found = false;
                for range in components.cyclic.iter().map(members) {
                    found |= self.in_component(&components.order[range], mask, one_replaced);
                }
                if !found {
                    break;
                }
            }
        }
    }

    /// Tells of a shortest cycle of a component, if there is one with these edges.
    fn in_component(&mut self, members: &[u32], mask: Mask, one_replaced: bool) -> bool {
        if self.found >= CYCLES_MAX {
            return false;
        }
        self.components_count += 1;
        for node in members {
            self.component[*node as usize] = self.components_count;
        }
        self.budget = BUDGET;
        let mut best: Option<Vec<Step>> = None;
        let mut starts = members.iter().filter(|node| self.graph.is_transaction(**node));
        let first = *starts.clone().next().expect("a cycle has a transaction");
        let is_cut = loop {
            let Some(start) = starts.next().copied() else { break false };
            if self.budget == 0 {
                break true;
            }
            let limit = best.as_ref().map_or(u32::MAX, |best| best.len() as u32);
            let cycle = self.shortest(start, Closing::Edge, mask, one_replaced, limit);
            best = cycle.or(best);
            if best.as_ref().is_some_and(|best| best.len() == 2) {
                break false;
            }
        };
        if best.is_none() && is_cut && !one_replaced {
            self.budget = u64::MAX;
            best = self.shortest(first, Closing::Edge, mask, false, u32::MAX);
        }
        let found = best.is_some();
        if let Some(cycle) = best {
            self.tell(cycle, is_cut);
        }
        found
    }

    fn tell(&mut self, cycle: Vec<Step>, is_cut: bool) {
        self.found += 1;
        for step in &cycle {
            if let Party::Transaction(number) = step.from {
                self.left_out[number as usize] = true;
            }
        }
        self.findings.cycle(class_of(&cycle), cycle, is_cut);
    }

    /// The shortest cycle through a transaction that is shorter than `limit`.
    fn shortest(
        &mut self,
        start: u32,
        closing: Closing,
        mask: Mask,
        one_replaced: bool,
        limit: u32,
    ) -> Option<Vec<Step>> {
        let graph = self.graph;
        let invoked = self.history.transaction(start).invoked;
        self.walk.reset(graph.nodes());
        self.walk.reach(start * 2, 0, false, (start * 2, Label::new(EdgeKind::Through, 0)));
        while let Some(state) = self.walk.queue.pop_front() {
            let (node, used) = (state / 2, state % 2);
            let distance = self.walk.distance[state as usize];
            if distance.saturating_add(1) >= limit || self.budget == 0 {
                return None;
            }
            if closing == Closing::Realtime
                && graph.is_transaction(node)
                && self.history.transaction(node).completed < invoked
            {
                return Some(self.steps(state, start, None));
            }
            for (to, label) in graph.out(node, mask) {
                self.budget = self.budget.saturating_sub(1);
                let place = to as usize;
                let within = match closing {
                    Closing::Edge => self.component[place] == self.component[start as usize],
                    Closing::Realtime => true,
                };
                let replaced = label.kind() == EdgeKind::ReadWrite && one_replaced;
                if !within || self.left_out[place] || (replaced && used == 1) {
                    continue;
                }
                let near = graph.is_hub(to);
                if to == start {
                    if closing == Closing::Edge {
                        return Some(self.steps(state, start, Some(label)));
                    }
                    continue;
                }
                let next = to * 2 + (used | u32::from(replaced));
                self.walk.reach(next, distance + u32::from(!near), near, (state, label));
            }
        }
        None
    }

    /// The steps to a state, and the one that closes the cycle.
    fn steps(&self, last: u32, start: u32, closing: Option<Label>) -> Vec<Step> {
        let party = |node: u32| match self.graph.extra(node) {
            None => Party::Transaction(node),
            Some(Extra::Writer { key, version }) => Party::Writer { key, version },
            Some(Extra::Hub) => unreachable!("hubs are passed through"),
        };
        let mut edges = Vec::new();
        if let Some(label) = closing {
            edges.push((last / 2, start, label));
        }
        let mut state = last;
        while state != start * 2 {
            let (before, label) = self.walk.from[state as usize];
            edges.push((before / 2, state / 2, label));
            state = before;
        }
        edges.reverse();
        let mut steps = Vec::new();
        let mut open: Option<(u32, Label)> = None;
        for (from, to, label) in edges {
            let (from, label) = open.take().unwrap_or((from, label));
            if self.graph.is_hub(to) {
                open = Some((from, label));
                continue;
            }
            let (kind, key) = (label.kind(), label.key());
            steps.push(Step { from: party(from), to: party(to), kind, key });
        }
        if closing.is_none() {
            let (from, to) = (party(last / 2), party(start));
            steps.push(Step { from, to, kind: EdgeKind::Realtime, key: 0 });
        }
        steps
    }

    /// When the first of those behind each node ended. The order has nodes behind what they lead
    /// to.
    fn ends(&self, order: &[u32], mask: Mask) -> Vec<u64> {
        let mut ends = vec![NEVER; self.graph.nodes()];
        for node in order {
            if self.left_out[*node as usize] {
                continue;
            }
            let mut first = NEVER;
            for (to, _) in self.graph.out(*node, mask) {
                let place = to as usize;
                if self.left_out[place] {
                    continue;
                }
                first = first.min(ends[place]);
                if self.graph.is_transaction(to) {
                    first = first.min(self.history.transaction(to).completed);
                }
            }
            ends[*node as usize] = first;
        }
        ends
    }

    fn late(&self, order: &[u32], mask: Mask) -> Vec<u32> {
        let ends = self.ends(order, mask);
        let transactions = (0u32..).zip(self.history.transactions());
        let late = transactions.filter(|(n, t)| ends[*n as usize] < t.invoked);
        late.map(|(number, _)| number).collect()
    }

    fn realtime(&mut self, order: &[u32]) {
        if self.late(order, Mask::ALL).is_empty() {
            return;
        }
        for (mask, one_replaced) in LEVELS {
            for limit in LENGTHS {
                let late = self.late(order, mask);
                if late.is_empty() {
                    break;
                }
                self.budget = BUDGET;
                self.realtime_of(&late, mask, one_replaced, limit);
            }
        }
        let late = self.late(order, Mask::ALL);
        if let Some(number) = late.first().filter(|_| self.found < CYCLES_MAX) {
            self.budget = u64::MAX;
            let cycle = self.shortest(*number, Closing::Realtime, Mask::ALL, false, u32::MAX);
            self.tell(cycle.expect("something behind it ended before"), true);
        }
    }

    fn realtime_of(&mut self, late: &[u32], mask: Mask, one_replaced: bool, limit: u32) {
        for number in late {
            if self.found >= CYCLES_MAX || self.budget == 0 {
                return;
            }
            if self.left_out[*number as usize] {
                continue;
            }
            let limit = limit.saturating_add(1);
            let cycle = self.shortest(*number, Closing::Realtime, mask, one_replaced, limit);
            if let Some(cycle) = cycle {
                self.tell(cycle, false);
            }
        }
    }
}

/// The name of a cycle.
fn class_of(cycle: &[Step]) -> Class {
    let count = |kind| cycle.iter().filter(|step| step.kind == kind).count();
    let replaced = count(EdgeKind::ReadWrite);
    let mut keys = cycle.iter().filter(|step| step.kind != EdgeKind::Realtime).map(|s| s.key);
    let key = keys.next();
    let one_key = keys.all(|other| Some(other) == key);
    let reads = count(EdgeKind::WriteRead);
    match (count(EdgeKind::Realtime), replaced) {
        (0, 0) if reads == 0 => Class::DirtyWrite,
        (0, 0) => Class::CircularInformation,
        (0, 1) if one_key && cycle.len() == 2 && reads == 0 => Class::LostUpdate,
        (0, 1) => Class::ReadSkew,
        (0, _) => Class::WriteSkew,
        (_, 0) if reads == 0 => Class::DirtyWriteRealtime,
        (_, 0) => Class::CircularInformationRealtime,
        (_, 1) if one_key => Class::StaleRead,
        (_, 1) => Class::ReadSkewRealtime,
        (_, _) => Class::WriteSkewRealtime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::graph::Builder;
    use crate::checker::history::Kind;

    fn history(times: &[(u64, u64)]) -> History {
        let mut history = History::new();
        history.key(crate::checker::history::Name::Number(0));
        for (number, times) in (0..).zip(times) {
            history.push(number, *times, Kind::Ok, &[]).expect("nothing contradicts");
        }
        history
    }

    fn classes(history: &History, graph: &Graph) -> Vec<(Class, usize)> {
        let mut findings = Findings::default();
        Search::new(history, graph, &mut findings, &[]).run();
        findings.kept.iter().map(|finding| (finding.class, finding.cycle.len())).collect()
    }

    #[test]
    fn a_way_through_a_hub_is_one_step() {
        let history = history(&[(0, 9); 40]);
        let mut builder = Builder::new(40);
        let all: Vec<u32> = (0..20).collect();
        let sources: Vec<_> = (0..20).map(|node| (node, EdgeKind::ReadWrite)).collect();
        builder.fan(&sources, &all, 0);
        let graph = builder.finish();
        assert!(graph.edges() < 200, "{} edges", graph.edges());
        // Everyone precedes everyone else: ten pairs.
        assert_eq!(classes(&history, &graph), vec![(Class::WriteSkew, 2); 8]);
    }

    #[test]
    fn nobody_precedes_himself_through_hubs() {
        for target in 0..12 {
            let history = history(&[(0, 9); 40]);
            let mut builder = Builder::new(40);
            let targets: Vec<u32> = (0..12).collect();
            let sources = (20..40).chain([target]).map(|node| (node, EdgeKind::ReadWrite));
            let sources: Vec<_> = sources.collect();
            builder.fan(&sources, &targets, 0);
            let graph = builder.finish();
            assert_eq!(classes(&history, &graph), vec![]);
            let mut seen: Vec<u32> = Vec::new();
            let mut stack = vec![target];
            while let Some(node) = stack.pop() {
                for (to, _) in graph.out(node, Mask::ALL) {
                    if graph.is_hub(to) { stack.push(to) } else { seen.push(to) }
                }
            }
            seen.sort_unstable();
            let others: Vec<u32> = targets.into_iter().filter(|other| *other != target).collect();
            assert_eq!(seen, others);
        }
    }

    #[test]
    fn real_time_closes_a_long_way() {
        // 0 -> 1 -> 2, and 2 had ended before 0 began.
        let times = [(10, 20), (0, 30), (1, 9), (0, 50)];
        let mut builder = Builder::new(4);
        builder.edge(0, 1, EdgeKind::ReadWrite, 0);
        builder.edge(1, 2, EdgeKind::WriteRead, 0);
        builder.edge(2, 3, EdgeKind::WriteRead, 0);
        let graph = builder.finish();
        assert_eq!(classes(&history(&times), &graph), vec![(Class::StaleRead, 3)]);
        let times = [(9, 20), (0, 30), (1, 9), (0, 50)];
        assert_eq!(classes(&history(&times), &graph), vec![]);
    }
}
