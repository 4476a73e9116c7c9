//! What the shards were told about leadership.

use spillway_net::ids::{Epoch, Lsn};

use super::effects::{Committed, Role, RoleChange};

/// The role as announced, and how far a new one has come.
#[derive(Debug)]
pub struct Roles {
    role: Role,
    /// Number of the last change.
    number: u64,
    /// Changes up to this one were acted on by all shards.
    acknowledged: u64,
    /// Term in which the state machine leads, from its election on.
    elected: Option<Epoch>,
    /// Index of the first entry of that term, when it is known.
    first: Option<Lsn>,
}

impl Roles {
    /// A node starts as a follower.
    pub fn new() -> Self {
        Self { role: Role::Follow, number: 0, acknowledged: 0, elected: None, first: None }
    }

    /// The epoch in which shards execute.
    pub fn epoch(&self) -> Option<Epoch> {
        match self.role {
            Role::Lead { epoch } => Some(epoch),
            Role::Follow => None,
        }
    }

    /// All shards have acted on this change.
    pub fn acknowledge(&mut self, number: u64) {
        assert!(number <= self.number, "only what was announced is acknowledged");
        self.acknowledged = self.acknowledged.max(number);
    }

    /// True when committed entries may be applied: the shards follow, and know it.
    pub fn applies(&self) -> bool {
        self.role == Role::Follow && self.acknowledged == self.number
    }

    /// The state machine was elected in this term. False when that was known.
    pub fn elect(&mut self, term: Epoch) -> bool {
        if self.elected == Some(term) {
            return false;
        }
        assert!(self.elected.is_none_or(|before| before < term), "terms rise");
        self.elected = Some(term);
        self.first = None;
        true
    }

    /// The first entry of the term got this index.
    pub fn first_entry(&mut self, lsn: Lsn) {
        assert!(self.elected.is_some(), "only a leader has a first entry");
        self.first.get_or_insert(lsn);
    }

    /// The state machine leads in `leading`, or does not. Ends a leadership that was announced.
    pub fn step_down(&mut self, leading: Option<Epoch>, barrier: Committed) -> Option<RoleChange> {
        let epoch = self.epoch()?;
        if leading == Some(epoch) {
            return None;
        }
        self.role = Role::Follow;
        self.number += 1;
        assert!(self.acknowledged < self.number, "the shards do not know it yet");
        Some(RoleChange { number: self.number, role: self.role, barrier })
    }

    /// Announces leadership when the first entry of the term is committed, everything committed is
    /// applied, and the last change was acted on.
    pub fn lead(
        &mut self,
        leading: Option<Epoch>,
        committed: Committed,
        applied: Lsn,
    ) -> Option<RoleChange> {
        let epoch = leading.filter(|epoch| self.elected == Some(*epoch))?;
        let first = self.first?;
        let begun = committed.lsn >= first || spillway_runtime::planted!(LeadsBeforeOwnEntry);
        let ready =
            begun && (applied >= committed.lsn || spillway_runtime::planted!(LeadsBeforeApplied));
        if self.role != Role::Follow || !ready || self.acknowledged < self.number {
            return None;
        }
        assert_eq!(committed.epoch, epoch, "the committed end is of the own term");
        self.role = Role::Lead { epoch };
        self.number += 1;
        Some(RoleChange { number: self.number, role: self.role, barrier: committed })
    }
}

#[cfg(test)]
mod tests {
    use spillway_net::ids::WallMicros;

    use super::*;

    fn committed(epoch: u64, lsn: u64) -> Committed {
        Committed { epoch: Epoch(epoch), lsn: Lsn(lsn), ticket: 0, timestamp: WallMicros(lsn) }
    }

    #[test]
    fn leads_only_after_its_own_entry_is_committed_and_applied() {
        let mut roles = Roles::new();
        let term = Some(Epoch(4));
        assert!(roles.elect(Epoch(4)) && !roles.elect(Epoch(4)));
        assert_eq!(roles.lead(term, committed(3, 9), Lsn(9)), None);
        roles.first_entry(Lsn(10));
        assert_eq!(roles.lead(term, committed(3, 9), Lsn(9)), None);
        assert_eq!(roles.lead(term, committed(4, 10), Lsn(9)), None);
        assert_eq!(roles.lead(None, committed(4, 10), Lsn(10)), None);
        let change = roles.lead(term, committed(4, 10), Lsn(10)).expect("leads");
        assert_eq!((change.number, change.role), (1, Role::Lead { epoch: Epoch(4) }));
        assert_eq!(roles.lead(term, committed(4, 11), Lsn(11)), None);
        assert_eq!(roles.step_down(term, committed(4, 11)), None);
        let change = roles.step_down(None, committed(4, 11)).expect("ends");
        assert_eq!((change.number, change.role, change.barrier.lsn), (2, Role::Follow, Lsn(11)));
        assert!(!roles.applies());
        roles.elect(Epoch(6));
        roles.first_entry(Lsn(15));
        assert_eq!(roles.lead(Some(Epoch(6)), committed(6, 15), Lsn(15)), None);
        roles.acknowledge(2);
        assert!(roles.applies());
        assert!(roles.lead(Some(Epoch(6)), committed(6, 15), Lsn(15)).is_some());
    }
}
