//! Caps on files and functions.

use crate::functions::functions;
use crate::house::{Rule, Violation};
use crate::rules::RustFile;
use crate::tree::File;

/// Lines of a source file.
pub const FILE_LINES_MAX: usize = 1_500;
/// Lines of a function, from `fn` to the closing brace.
pub const FUNCTION_LINES_MAX: usize = 70;
/// Lines of a function that only tests compile. A test tells one story from top to bottom, and
/// cutting the story into pieces hides it; but past this it is two stories.
pub const TEST_FUNCTION_LINES_MAX: usize = 120;
/// Bytes of any file. Recorded inputs go in as generators or small samples.
pub const FILE_BYTES_MAX: u64 = 512 << 10;

/// Length of the file and of its functions.
pub fn check_rust(file: &RustFile<'_>, out: &mut Vec<Violation>) {
    let lines = file.source.text().lines().count();
    let path = file.path;
    if lines > FILE_LINES_MAX {
        let message = format!("{lines} lines, at most {FILE_LINES_MAX}: one noun per file");
        out.push(Violation { rule: Rule::FileLength, path: path.into(), line: 0, message });
    }
    for function in functions(&file.source) {
        let max = match file.is_test(function.offset) {
            true => TEST_FUNCTION_LINES_MAX,
            false => FUNCTION_LINES_MAX,
        };
        if function.lines > max {
            let message = format!(
                "fn {} has {} lines, at most {max}: keep the decisions here, move the loops down",
                function.name, function.lines
            );
            let (path, line) = (path.into(), function.line);
            out.push(Violation { rule: Rule::FunctionLength, path, line, message });
        }
    }
}

/// Size of any file.
pub fn check_blob(file: &File, out: &mut Vec<Violation>) {
    if file.bytes_total > FILE_BYTES_MAX {
        let message = format!(
            "{} bytes, at most {FILE_BYTES_MAX}: every clone carries it for ever; generate it",
            file.bytes_total
        );
        out.push(Violation { rule: Rule::Blob, path: file.path.clone(), line: 0, message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<Rule> {
        let mut out = Vec::new();
        check_rust(&RustFile::new(path, text), &mut out);
        out.iter().map(|violation| violation.rule).collect()
    }

    fn function(lines: usize) -> String {
        format!("fn long() {{\n{}}}\n", "a();\n".repeat(lines - 2))
    }

    #[test]
    fn long_files_are_refused() {
        assert_eq!(rules("a.rs", &"\n".repeat(FILE_LINES_MAX)), []);
        assert_eq!(rules("a.rs", &"\n".repeat(FILE_LINES_MAX + 1)), [Rule::FileLength]);
    }

    #[test]
    fn long_functions_are_refused() {
        assert_eq!(rules("a.rs", &function(FUNCTION_LINES_MAX)), []);
        assert_eq!(rules("a.rs", &function(FUNCTION_LINES_MAX + 1)), [Rule::FunctionLength]);
    }

    #[test]
    fn tests_have_their_own_cap() {
        let inside = |lines| format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(lines));
        assert_eq!(rules("a.rs", &inside(TEST_FUNCTION_LINES_MAX)), []);
        assert_eq!(rules("a.rs", &inside(TEST_FUNCTION_LINES_MAX + 1)), [Rule::FunctionLength]);
        assert_eq!(rules("net/tests/a.rs", &function(TEST_FUNCTION_LINES_MAX)), []);
    }

    #[test]
    fn blobs_are_refused() {
        let mut out = Vec::new();
        let blob = |bytes_total| File { path: "data/a.bin".into(), bytes_total, text: None };
        check_blob(&blob(FILE_BYTES_MAX), &mut out);
        assert!(out.is_empty());
        check_blob(&blob(FILE_BYTES_MAX + 1), &mut out);
        assert_eq!(out[0].rule, Rule::Blob);
    }
}
