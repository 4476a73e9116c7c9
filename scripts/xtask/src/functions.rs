//! Where functions begin and end, and which of the code is test code.

use crate::source::{Source, closing, is_identifier};
use std::ops::Range;

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// The name, without `r#`.
    pub name: String,
    /// The line of its `fn`, counted from 1.
    pub line: usize,
    /// Lines from its `fn` to its closing brace, both included.
    pub lines: usize,
    /// The offset of its `fn`.
    pub offset: usize,
}

/// All functions with a body, nested ones too, in the order of the text.
pub fn functions(source: &Source) -> Vec<Function> {
    let code = source.code().as_bytes();
    let mut found = Vec::new();
    for offset in source.find_word("fn") {
        let mut at = offset + 2;
        while code.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        if code[at..].starts_with(b"r#") {
            at += 2;
        }
        let name: String = code[at..]
            .iter()
            .take_while(|byte| is_identifier(**byte))
            .map(|b| char::from(*b))
            .collect();
        if name.is_empty() {
            continue; // The type `fn(u32) -> u32`.
        }
        let Some(open) = body_open(code, at) else { continue };
        let close = closing(code, open).unwrap_or(code.len());
        let line = source.line_of(offset);
        let lines = source.line_of(close) - line + 1;
        found.push(Function { name, line, lines, offset });
    }
    found
}

/// The offset of the brace that opens the body; `None` for a declaration that ends with `;`.
fn body_open(code: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    let mut before = b' ';
    while at < code.len() {
        match code[at] {
            b'(' | b'[' => at = closing(code, at)?,
            b'{' if before == b'<' => at = closing(code, at)?, // A const argument, `Ring<{ N }>`.
            b'{' => return Some(at),
            b';' => return None,
            _ => {}
        }
        if !code[at].is_ascii_whitespace() {
            before = code[at];
        }
        at += 1;
    }
    None
}

/// Byte ranges of the code that only a test build compiles: items behind `#[cfg(test)]`, and
/// functions marked `#[test]`.
pub fn test_ranges(source: &Source) -> Vec<Range<usize>> {
    let code = source.code().as_bytes();
    let mut ranges = Vec::new();
    for (start, _) in source.code().match_indices("#[") {
        let Some(end) = closing(code, start + 1) else { continue };
        let attribute: String =
            source.code()[start + 2..end].chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let is_test = attribute == "test"
            || attribute == "cfg(test)"
            || attribute.starts_with("cfg(all(test,")
            || attribute.starts_with("cfg(any(test,");
        if is_test {
            ranges.push(start..item_end(code, end + 1));
        }
    }
    ranges
}

/// The end of the item that follows an attribute: its closing brace or its semicolon.
fn item_end(code: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < code.len() {
        match code[at] {
            b'(' | b'[' => match closing(code, at) {
                Some(close) => at = close,
                None => return code.len(),
            },
            b'{' => return closing(code, at).unwrap_or(code.len()),
            b';' => return at,
            _ => {}
        }
        at += 1;
    }
    code.len()
}

/// Whether every byte of the file is test code because of where the file stands.
pub fn is_test_path(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let (file, directories) = parts.split_last().expect("split yields at least one part");
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    directories.iter().any(|part| matches!(*part, "tests" | "benches"))
        || stem == "tests"
        || stem.ends_with("_test")
        || stem.ends_with("_tests")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, usize, usize)]) {
        let found = functions(&Source::new(text));
        let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.line, f.lines)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn bodies_are_measured() {
        check("fn a() {}\n", &[("a", 1, 1)]);
        check("\nfn a(\n  x: u8,\n) -> u8 {\n  x\n}\n", &[("a", 2, 5)]);
        check("trait T {\n fn a();\n fn b() {\n }\n}", &[("b", 3, 2)]);
    }

    #[test]
    fn braces_that_are_not_code_do_not_count() {
        check("fn a() {\n \"}\"; '}'; // }\n /* } */\n}\nfn b() {}", &[("a", 1, 4), ("b", 5, 1)]);
    }

    #[test]
    fn function_types_and_const_arguments() {
        check("type F = fn(u8) -> u8;", &[]);
        check("fn a(x: [u8; 3]) -> R<{ N }> {\n}\n", &[("a", 1, 2)]);
        check("fn r#move() {}", &[("move", 1, 1)]);
    }

    #[test]
    fn test_code_is_recognised() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n";
        let source = Source::new(text);
        let ranges = test_ranges(&source);
        let inside: Vec<_> = functions(&source)
            .iter()
            .map(|f| (f.name.clone(), ranges.iter().any(|r| r.contains(&f.offset))))
            .collect();
        assert_eq!(inside, [("a".into(), false), ("b".into(), true), ("c".into(), false)]);
        assert!(test_ranges(&Source::new("#[cfg(not(test))]\nfn a() {}")).is_empty());
    }

    #[test]
    fn test_paths_are_recognised() {
        assert!(is_test_path("net/tests/frame.rs"));
        assert!(is_test_path("net/src/frame_tests.rs"));
        assert!(is_test_path("net/src/frame/tests.rs"));
        assert!(!is_test_path("net/src/latest.rs"));
        assert!(!is_test_path("net/src/contests/a.rs"));
    }
}
