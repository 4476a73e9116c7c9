//! What the log core and the shards tell each other: state that is overwritten, never a queue.

/// What the log core tells every shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Published {
    /// Committed end of the log.
    pub lsn: u64,
    /// Highest ticket of this node's items in the log up to there.
    pub ticket: u64,
    /// The log's budget is used up.
    pub full: bool,
    /// The log's device failed.
    pub failed: bool,
    /// Too much is on its way already: new writes are refused for a moment.
    pub limited: bool,
    /// This node leads term `epoch`, and everything before that term is applied here.
    pub leading: bool,
    /// An operator keeps reads and leadership away from this node.
    pub drained: bool,
    /// The leader this node knows, 0 if none.
    pub leader: u16,
    /// The term this node leads or follows in.
    pub epoch: u64,
    /// Number of the last change of role. Shards act on it and then repeat it in [`ShardWord`].
    pub role_number: u64,
    /// When leadership ended: the highest ticket whose item is committed for sure.
    pub barrier_ticket: u64,
    /// When leadership ended: the committed end of the log.
    pub barrier_lsn: u64,
    /// Leadership rounds begun.
    pub round_started: u64,
    /// Leadership rounds that a quorum has confirmed.
    pub round_confirmed: u64,
    /// The leader's time up to which everything committed is known here, microseconds.
    pub fresh_micros: u64,
}

impl Published {
    pub const WORDS: usize = 10;

    pub fn words(self) -> [u64; Self::WORDS] {
        let flags = u64::from(self.full)
            | u64::from(self.failed) << 1
            | u64::from(self.limited) << 2
            | u64::from(self.leading) << 3
            | u64::from(self.drained) << 4
            | u64::from(self.leader) << 16;
        [
            self.lsn,
            self.ticket,
            flags,
            self.epoch,
            self.role_number,
            self.barrier_ticket,
            self.barrier_lsn,
            self.round_started,
            self.round_confirmed,
            self.fresh_micros,
        ]
    }

    pub fn of(words: [u64; Self::WORDS]) -> Self {
        let [lsn, ticket, flags, epoch, role_number, ..] = words;
        let [.., barrier_ticket, barrier_lsn, round_started, round_confirmed, fresh_micros] = words;
        Self {
            lsn,
            ticket,
            full: flags & 1 != 0,
            failed: flags & 2 != 0,
            limited: flags & 4 != 0,
            leading: flags & 8 != 0,
            drained: flags & 16 != 0,
            leader: (flags >> 16) as u16,
            epoch,
            role_number,
            barrier_ticket,
            barrier_lsn,
            round_started,
            round_confirmed,
            fresh_micros,
        }
    }
}

/// What a shard tells the log core.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ShardWord {
    /// The last change of role that the shard has acted on.
    pub role_number: u64,
    /// Everything up to this LSN is applied or was executed here.
    pub applied: u64,
    /// The highest leadership round that an answer waits for.
    pub round_wanted: u64,
}

impl ShardWord {
    pub const WORDS: usize = 3;

    pub fn words(self) -> [u64; Self::WORDS] {
        [self.role_number, self.applied, self.round_wanted]
    }

    pub fn of([role_number, applied, round_wanted]: [u64; Self::WORDS]) -> Self {
        Self { role_number, applied, round_wanted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        let published = Published {
            lsn: 1,
            ticket: 2,
            full: true,
            failed: false,
            limited: true,
            leading: true,
            drained: true,
            leader: 65_535,
            epoch: 3,
            role_number: 4,
            barrier_ticket: 5,
            barrier_lsn: 9,
            round_started: 6,
            round_confirmed: 7,
            fresh_micros: 8,
        };
        assert_eq!(Published::of(published.words()), published);
        let word = ShardWord { role_number: 1, applied: 2, round_wanted: 3 };
        assert_eq!(ShardWord::of(word.words()), word);
    }
}
