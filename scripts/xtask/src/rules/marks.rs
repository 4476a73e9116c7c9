//! Marks of unfinished work.

use crate::house::{Rule, Violation};
use crate::rules::RustFile;
use crate::source::is_identifier;

/// Refused in code.
const CODE: [&str; 2] = ["todo!", "unimplemented!"];
/// Refused anywhere, comments included. Split, so that this file does not refuse itself.
const TEXT: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];

/// Unfinished code, notes to oneself, and tests that do not run.
pub fn check(file: &RustFile<'_>, out: &mut Vec<Violation>) {
    let mut push = |offset: usize, message: String| {
        let line = file.source.line_of(offset);
        out.push(Violation { rule: Rule::LeftoverMark, path: file.path.into(), line, message });
    };
    for word in CODE {
        for offset in file.source.find_word(word) {
            push(offset, format!("`{word}`: finish it, or return a typed error"));
        }
    }
    let text = file.source.text();
    for word in TEXT {
        for (offset, _) in text.match_indices(word) {
            let bytes = text.as_bytes();
            let left = offset.checked_sub(1).is_some_and(|at| is_identifier(bytes[at]));
            let right = bytes.get(offset + word.len()).is_some_and(|byte| is_identifier(*byte));
            if !left && !right {
                push(offset, format!("`{word}`: mend it, or say as a fact what holds"));
            }
        }
    }
    for (offset, _) in file.source.code().match_indices("#[ignore") {
        if !is_run_by_another(file, offset) {
            let message = "`#[ignore]`: a test that never runs proves nothing; mend or remove it, \
                           or name the test that runs it: `#[ignore = \"why; run by NAME\"]`";
            push(offset, message.into());
        }
    }
}

/// Whether the attribute names a test of the same file that starts this one in a process of its
/// own: the way to test what ends a process.
fn is_run_by_another(file: &RustFile<'_>, offset: usize) -> bool {
    let attribute = file.source.text()[offset..].split(']').next().unwrap_or("");
    let Some((_, name)) = attribute.split_once("; run by ") else { return false };
    let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let runner = file.source.find_word(&format!("fn {name}"));
    !name.is_empty() && !runner.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> usize {
        let mut out = Vec::new();
        check(&RustFile::new("net/src/a.rs", text), &mut out);
        out.len()
    }

    #[test]
    fn each_mark_is_refused() {
        assert_eq!(count("fn a() { todo!() }"), 1);
        assert_eq!(count("fn a() { unimplemented!(\"later\") }"), 1);
        for word in TEXT {
            assert_eq!(count(&format!("// {word}: later")), 1);
        }
        assert_eq!(count("#[test]\n#[ignore = \"slow\"]\nfn a() {}"), 1);
    }

    #[test]
    fn a_test_that_another_runs_is_free() {
        let child = "#[test]\n#[ignore = \"aborts; run by parent\"]\nfn child() {}\n";
        assert_eq!(count(child), 1, "nobody runs it");
        assert_eq!(count(&format!("{child}#[test]\nfn parent() {{}}")), 0);
    }

    #[test]
    fn words_that_contain_a_mark_are_free() {
        assert_eq!(count("// xxh3 and fixmes\nfn mastodon() { \"todo!\" }"), 0);
        assert_eq!(count(&format!("// A{}B", TEXT[1])), 0);
    }
}
