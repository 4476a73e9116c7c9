//! Names of things that travel: newtypes so that an LSN is never taken for a session number.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id!(
    /// Log sequence number: the index of a batch in the log. The first batch has index 1; 0 means
    /// "none".
    Lsn(u64)
);
id!(
    /// The leader's term. Starts at 1.
    Epoch(u64)
);
id!(
    /// A hash slice of all keys, `0..partitions` of the node's format.
    PartitionId(u16)
);
id!(
    /// A core's share of the partitions, `0..shards` of the running process.
    ShardIndex(u16)
);
id!(
    /// A table, never reused after a drop. 0 is no table.
    TableId(u16)
);
id!(
    /// A client session, never reused. 0 is no session.
    SessionId(u64)
);
id!(
    /// A session's number of one of its transactions: rises, never reused, the first is 1.
    TransactionNumber(u64)
);
id!(
    /// A cluster, drawn at format.
    ClusterId(u128)
);
id!(
    /// A node of the cluster; 0 is nobody. Never given out again after its disk was lost.
    NodeId(u16)
);

/// Wall-clock microseconds since 1970-01-01T00:00:00Z, as the log's batch timestamps carry them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallMicros(pub u64);
