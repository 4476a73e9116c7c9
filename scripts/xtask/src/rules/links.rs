//! Links between documents.

use crate::house::{Rule, Violation};
use crate::tree::File;

/// Every relative link of every document must lead to a file or directory of the tree.
pub fn check(files: &[File], out: &mut Vec<Violation>) {
    for file in files.iter().filter(|file| file.extension() == "md") {
        let Some(text) = &file.text else { continue };
        for (index, line) in text.lines().enumerate() {
            for target in targets(line) {
                if !leads_somewhere(files, &file.path, target) {
                    let message = format!("the link to `{target}` leads nowhere");
                    let (path, line) = (file.path.clone(), index + 1);
                    out.push(Violation { rule: Rule::DeadLink, path, line, message });
                }
            }
        }
    }
}

/// Targets of the inline links of a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(at, _)| {
        let rest = &line[at + 2..];
        Some(&rest[..rest.find(')')?])
    })
}

fn leads_somewhere(files: &[File], from: &str, target: &str) -> bool {
    let target = target.split(['#', ' ']).next().unwrap_or(target);
    if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
        return true;
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return false;
                }
            }
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    files.iter().any(|file| {
        file.path == path || file.path.strip_prefix(&path).is_some_and(|rest| rest.starts_with('/'))
    }) || path.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        let files = [File::fake(path, text), File::fake("docs/STYLE.md", "")];
        let mut out = Vec::new();
        check(&files, &mut out);
        out.len()
    }

    #[test]
    fn dead_links_are_refused() {
        assert_eq!(count("README.md", "see [a](docs/STYLE.md) and [b](docs/GONE.md#x)"), 1);
        assert_eq!(count("docs/A.md", "[a](STYLE.md) [b](../docs/STYLE.md#x) [c](../docs)"), 0);
        assert_eq!(count("docs/A.md", "[a](../../outside.md)"), 1);
    }

    #[test]
    fn other_links_are_free() {
        assert_eq!(count("README.md", "[a](https://example.org/x) [b](#part)"), 0);
    }
}
