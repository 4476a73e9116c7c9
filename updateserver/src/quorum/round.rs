//! Rounds of "is the term still mine?": what makes a read strong without any clock (rule R25).
//!
//! A read that came before a round began, and sees the state as of then, is linearizable once a
//! quorum has answered the round: none of them had moved on when it answered, so nobody else can
//! have committed anything before the round began.

use spillway_net::ids::{Epoch, NodeId};

use super::membership::Membership;

/// How far the rounds are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// The last round that has begun. A read that comes now must wait for the next one.
    pub started: u64,
    /// Up to this round leadership is confirmed.
    pub confirmed: u64,
}

/// The rounds of a node. Numbers rise over all terms in which it leads.
#[derive(Debug, Default)]
pub struct Rounds {
    round: Round,
    wanted: u64,
    /// Term of the rounds that may still be confirmed; 0 when the node does not lead.
    term: Epoch,
    /// The first round of that term: answers to earlier ones do not count.
    first: u64,
    answers: Vec<(NodeId, u64)>,
}

impl Rounds {
    /// How far the rounds are.
    pub fn round(&self) -> Round {
        self.round
    }

    /// The node leads in this term from now on.
    pub fn lead(&mut self, term: Epoch) {
        assert!(term > self.term, "every leadership has a term of its own");
        self.term = term;
        self.first = self.round.started + 1;
        self.answers.clear();
    }

    /// The node does not lead any more. Rounds that are not confirmed by now never will be.
    pub fn end(&mut self) {
        self.first = u64::MAX;
        self.wanted = self.round.started;
        self.answers.clear();
    }

    /// A read waits for this round.
    pub fn want(&mut self, number: u64) {
        assert!(number <= self.round.started + 1, "no round is left out");
        self.wanted = self.wanted.max(number);
    }

    /// True while the node leads.
    fn is_open(&self) -> bool {
        self.first <= self.round.started + 1
    }

    /// Begins the next round if one is wanted. From then on, and before any message of it leaves,
    /// reads that come must wait for the round after it.
    pub fn begin(&mut self) -> Option<(Epoch, u64)> {
        if !self.is_open() || self.wanted <= self.round.started {
            return None;
        }
        self.round.started += 1;
        assert!(self.wanted <= self.round.started, "wants are for the next round at most");
        Some((self.term, self.round.started))
    }

    /// The round to ask for again, if one is open.
    pub fn open(&self) -> Option<(Epoch, u64)> {
        let open = self.is_open() && self.round.confirmed < self.round.started;
        let begun = self.first <= self.round.started;
        (open && begun).then_some((self.term, self.round.started))
    }

    /// A node, or this one, says that it has not moved on.
    pub fn answered(&mut self, node: NodeId, term: Epoch, round: u64, members: &Membership) {
        let counts = term == self.term && round >= self.first && round <= self.round.started;
        if !counts || !self.is_open() {
            return;
        }
        match self.answers.iter_mut().find(|(from, _)| *from == node) {
            Some((_, last)) => *last = (*last).max(round),
            None => self.answers.push((node, round)),
        }
        let answer = |voter: NodeId| {
            self.answers.iter().find(|(from, _)| *from == voter).map_or(0, |(_, last)| *last)
        };
        let alone = spillway_runtime::planted!(RoundConfirmedAlone);
        let confirmed = if alone { round } else { members.quorum_value(answer) };
        assert!(confirmed <= self.round.started, "only rounds that have begun are confirmed");
        self.round.confirmed = self.round.confirmed.max(confirmed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u16) -> Membership {
        Membership::of_voters((1..=count).map(NodeId))
    }

    #[test]
    fn a_quorum_confirms_and_strangers_do_not() {
        let (mut rounds, members) = (Rounds::default(), members(5));
        rounds.lead(Epoch(3));
        assert_eq!(rounds.begin(), None);
        rounds.want(1);
        assert_eq!(rounds.begin(), Some((Epoch(3), 1)));
        assert_eq!(rounds.begin(), None);
        rounds.answered(NodeId(1), Epoch(3), 1, &members);
        rounds.answered(NodeId(1), Epoch(3), 1, &members);
        rounds.answered(NodeId(7), Epoch(3), 1, &members);
        rounds.answered(NodeId(2), Epoch(2), 1, &members);
        rounds.answered(NodeId(3), Epoch(3), 2, &members);
        assert_eq!(rounds.round(), Round { started: 1, confirmed: 0 });
        rounds.answered(NodeId(4), Epoch(3), 1, &members);
        assert_eq!(rounds.round().confirmed, 0);
        rounds.answered(NodeId(5), Epoch(3), 1, &members);
        assert_eq!(rounds.round().confirmed, 1);
    }

    #[test]
    fn rounds_of_a_lost_leadership_are_never_confirmed() {
        let (mut rounds, members) = (Rounds::default(), members(3));
        rounds.lead(Epoch(3));
        rounds.want(1);
        rounds.begin();
        rounds.answered(NodeId(1), Epoch(3), 1, &members);
        rounds.end();
        rounds.answered(NodeId(2), Epoch(3), 1, &members);
        assert_eq!(rounds.round(), Round { started: 1, confirmed: 0 });
        assert_eq!(rounds.begin(), None);
        rounds.lead(Epoch(8));
        rounds.want(2);
        assert_eq!(rounds.begin(), Some((Epoch(8), 2)));
        rounds.answered(NodeId(2), Epoch(8), 1, &members);
        rounds.answered(NodeId(1), Epoch(8), 2, &members);
        assert_eq!(rounds.round().confirmed, 0);
        rounds.answered(NodeId(3), Epoch(8), 2, &members);
        assert_eq!(rounds.round().confirmed, 2);
    }
}
