//! The house rules: what they are, who is excused, and the run over a tree.

use crate::exceptions::{EXCEPTIONS, Exception};
use crate::rules;
use crate::tree::File;
use std::fmt;

/// A rule that a source can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A file is too long.
    FileLength,
    /// A function is too long.
    FunctionLength,
    /// A line is too wide.
    LineWidth,
    /// A source holds something besides ASCII.
    Ascii,
    /// A call that only `runtime/` may make, or nobody.
    BannedCall,
    /// A map whose order differs from run to run, in code that must replay exactly.
    RandomState,
    /// A mark of unfinished work.
    LeftoverMark,
    /// A dependency that points upwards.
    CrateDirection,
    /// A file too big for a source repository.
    Blob,
    /// A link in a document that leads nowhere.
    DeadLink,
    /// An exception that excuses nothing.
    IdleException,
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The file, as a path below the root.
    pub path: String,
    /// The line, counted from 1; 0 if it is about the whole file.
    pub line: usize,
    /// What is wrong and what to do instead.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { rule, path, line, message } = self;
        match line {
            0 => write!(f, "{path}: {rule:?}: {message}"),
            line => write!(f, "{path}:{line}: {rule:?}: {message}"),
        }
    }
}

/// All violations in `files` that no exception excuses, and all exceptions without a use.
pub fn check(files: &[File]) -> Vec<Violation> {
    check_with(files, EXCEPTIONS)
}

fn check_with(files: &[File], exceptions: &[Exception]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files {
        rules::check_file(file, &mut violations);
    }
    rules::crates::check(files, &mut violations);
    rules::links::check(files, &mut violations);

    let mut uses = vec![0usize; exceptions.len()];
    violations.retain(|violation| {
        let excuse = exceptions
            .iter()
            .position(|e| e.rule == violation.rule && violation.path.starts_with(e.path));
        if let Some(excuse) = excuse {
            uses[excuse] += 1;
        }
        excuse.is_none()
    });
    for (exception, uses) in exceptions.iter().zip(uses) {
        if uses == 0 {
            violations.push(Violation {
                rule: Rule::IdleException,
                path: exception.path.to_owned(),
                line: 0,
                message: format!(
                    "nothing there breaks {:?}: take it out of scripts/xtask/src/exceptions.rs",
                    exception.rule
                ),
            });
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "fn main() { std::fs::read(\"a\"); }\n";

    #[test]
    fn an_exception_excuses_its_rule_and_path_only() {
        let files = [File::fake("tool/src/main.rs", LONG), File::fake("net/src/a.rs", LONG)];
        let excuse = [Exception { rule: Rule::BannedCall, path: "tool/", reason: "test" }];
        let found = check_with(&files, &excuse);
        assert!(found.iter().all(|v| v.path == "net/src/a.rs"), "{found:?}");
        assert!(!found.is_empty());
    }

    #[test]
    fn an_idle_exception_is_a_violation() {
        let excuse = [Exception { rule: Rule::Ascii, path: "tool/", reason: "test" }];
        let found = check_with(&[], &excuse);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].rule, Rule::IdleException);
    }
}
