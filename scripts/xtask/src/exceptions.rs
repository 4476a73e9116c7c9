//! Who is excused from which rule, and why. The only such list.

use crate::house::Rule;

/// One excuse. It must be in use: a test refuses an idle one.
#[derive(Debug, Clone, Copy)]
pub struct Exception {
    /// The rule.
    pub rule: Rule,
    /// The beginning of the excused files' paths.
    pub path: &'static str,
    /// Why. One sentence that would convince a stranger.
    pub reason: &'static str,
}

/// All excuses.
pub const EXCEPTIONS: &[Exception] = &[
    Exception {
        rule: Rule::BannedCall,
        path: "scripts/xtask/",
        reason: "a developer's tool that reads sources, beside no database",
    },
    Exception {
        rule: Rule::BannedCall,
        path: "scripts/rigs/src/file_system/",
        reason: "it is itself a file system, and passes on what another one tells",
    },
];
