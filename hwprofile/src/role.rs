//! Roles, and sets of them.

use std::fmt;

/// What a CPU or a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Left to the kernel: interrupts, agents, the operator's shell.
    Housekeeping,
    /// The log ring, consensus, peers, batch assembly.
    Log,
    /// Partitions: memtables, locks, sessions, client connections.
    Shard,
    /// Freeze dumps, merges, scrubbing, snapshot streams.
    Background,
}

impl Role {
    /// All roles, in the order in which they are printed.
    pub const ALL: [Role; 4] = [Role::Housekeeping, Role::Log, Role::Shard, Role::Background];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Housekeeping => "housekeeping",
            Role::Log => "log",
            Role::Shard => "shard",
            Role::Background => "background",
        })
    }
}

/// A set of roles.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct RoleSet(u8);

impl RoleSet {
    /// The set of the given roles.
    pub fn of(roles: &[Role]) -> RoleSet {
        RoleSet(roles.iter().fold(0, |set, role| set | 1 << *role as u8))
    }

    /// Whether `role` is in it.
    pub fn contains(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }

    /// Whether it holds no role.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for RoleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = Role::ALL
            .iter()
            .filter(|role| self.contains(**role))
            .map(ToString::to_string)
            .collect();
        f.pad(&names.join("+"))
    }
}

impl fmt::Debug for RoleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
