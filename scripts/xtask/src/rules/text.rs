//! What any source may contain, whatever its language: narrow lines of ASCII.

use crate::house::{Rule, Violation};
use crate::tree::File;

/// Columns of a line.
pub const LINE_COLUMNS_MAX: usize = 100;

/// Whether a person writes the file by hand as a source. Documents are prose: their tables and
/// links may be wide, and they may name things in any script.
fn is_source(file: &File) -> bool {
    let by_name = matches!(file.extension(), "rs" | "toml" | "sh" | "service" | "conf" | "py");
    by_name || file.path.starts_with(".ci/")
}

/// Width and character set of each line.
pub fn check(file: &File, text: &str, out: &mut Vec<Violation>) {
    if !is_source(file) {
        return;
    }
    for (index, line) in text.lines().enumerate() {
        // TOML has no way to break an inline table, so a manifest may be wide.
        let columns = if file.extension() == "toml" { 0 } else { line.chars().count() };
        let mut push = |rule, message| {
            out.push(Violation { rule, path: file.path.clone(), line: index + 1, message });
        };
        if columns > LINE_COLUMNS_MAX {
            let message = format!("{columns} columns, at most {LINE_COLUMNS_MAX}");
            push(Rule::LineWidth, message);
        }
        if let Some(odd) = line.chars().find(|c| !c.is_ascii() || (c.is_control() && *c != '\t')) {
            let code = u32::from(odd);
            push(Rule::Ascii, format!("U+{code:04X}: write it as an escape (\\u{{{code:x}}})"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<Rule> {
        let mut out = Vec::new();
        check(&File::fake(path, text), text, &mut out);
        out.iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn wide_lines_are_refused() {
        assert_eq!(rules("a.rs", &"x".repeat(LINE_COLUMNS_MAX)), []);
        assert_eq!(rules("a.rs", &"x".repeat(LINE_COLUMNS_MAX + 1)), [Rule::LineWidth]);
        assert_eq!(rules("a.toml", &"x".repeat(LINE_COLUMNS_MAX + 1)), []);
        assert_eq!(rules(".ci/run", &"x".repeat(LINE_COLUMNS_MAX + 1)), [Rule::LineWidth]);
    }

    #[test]
    fn other_scripts_are_refused_in_sources() {
        assert_eq!(rules("a.rs", "// caf\u{e9}"), [Rule::Ascii]);
        assert_eq!(rules("a.toml", "a = 1\u{7}"), [Rule::Ascii]);
        assert_eq!(rules("a.md", "caf\u{e9}"), []);
    }
}
