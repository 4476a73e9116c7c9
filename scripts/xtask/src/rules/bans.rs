//! Calls with a replacement, and maps with a random order.
//!
//! Clippy refuses the same calls by their resolved path wherever the compiler sees them, in tests
//! too. This rule sees the words: also behind a `cfg`, in a macro and under an `#[expect]`, so
//! that an excuse for product code has to stand in the list of exceptions.

use crate::house::{Rule, Violation};
use crate::rules::RustFile;
use crate::source::closing;

/// A word that may not stand in code outside `runtime/`, and what to use instead.
struct Ban {
    word: &'static str,
    instead: &'static str,
}

const FILE: &str = "use spillway_runtime::file (metadata) or spillway_runtime::disk (data)";
const CLOCK: &str = "time enters a core as an argument; a shell takes it from \
                     spillway_runtime::clock";
const THREAD: &str = "use spillway_runtime::thread: it names, pins, and aborts on panic";

const BANS: &[Ban] = &[
    Ban { word: "std::fs", instead: FILE },
    Ban { word: "fs::", instead: FILE },
    Ban { word: "File::open", instead: FILE },
    Ban { word: "File::create", instead: FILE },
    Ban { word: "OpenOptions", instead: FILE },
    Ban { word: "Instant::now", instead: CLOCK },
    Ban { word: "SystemTime", instead: CLOCK },
    Ban { word: "thread::spawn", instead: THREAD },
    Ban { word: "thread::Builder", instead: THREAD },
];

/// Code that a seed must replay exactly: the pure cores. A map with a random order there makes
/// two runs of one seed differ.
const CORES: [&str; 4] = ["log", "memtable", "shard", "quorum"];

/// Banned calls and random maps in product code.
pub fn check(file: &RustFile<'_>, out: &mut Vec<Violation>) {
    if file.path.starts_with("runtime/") {
        return;
    }
    let mut lines_reported = Vec::new();
    for ban in BANS {
        for offset in file.source.find_word(ban.word) {
            let line = file.source.line_of(offset);
            let excused = file.is_test(offset) || is_of_runtime(file, ban.word, offset);
            if excused || lines_reported.contains(&line) {
                continue;
            }
            lines_reported.push(line);
            let message = format!("`{}` outside runtime/: {}", ban.word, ban.instead);
            out.push(Violation { rule: Rule::BannedCall, path: file.path.into(), line, message });
        }
    }
    if is_core(file.path) {
        check_maps(file, out);
    }
}

/// Whether `word`, such as `thread::spawn`, is written with the module of the same name that the
/// runtime has: in full, or through an import from there.
fn is_of_runtime(file: &RustFile<'_>, word: &str, offset: usize) -> bool {
    const RUNTIME: &str = "spillway_runtime::";
    let code = file.source.code();
    let Some((module, _)) = word.split_once("::").filter(|(module, _)| *module != "std") else {
        return false;
    };
    if code[..offset].ends_with("::") {
        return code[..offset].ends_with(RUNTIME);
    }
    code.match_indices("use spillway_runtime::").any(|(start, _)| {
        let import = code[start..].split(';').next().unwrap_or("");
        import.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|name| name == module)
    })
}

fn is_core(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("updateserver/src/") else { return false };
    let first = rest.split('/').next().unwrap_or(rest);
    CORES.contains(&first.strip_suffix(".rs").unwrap_or(first))
}

fn check_maps(file: &RustFile<'_>, out: &mut Vec<Violation>) {
    for (name, arguments_with_hasher) in [("HashMap", 3), ("HashSet", 2)] {
        for offset in file.source.find_word(name) {
            let after = &file.source.code()[offset + name.len()..];
            let random = match arguments(after) {
                Some(count) => count < arguments_with_hasher,
                // `new` and `with_capacity` exist for the random state only.
                None => after.starts_with("::new") || after.starts_with("::with_capacity("),
            };
            if random && !file.is_test(offset) {
                push_random(file, offset, name, out);
            }
        }
    }
    for offset in file.source.find_word("RandomState") {
        if !file.is_test(offset) {
            push_random(file, offset, "RandomState", out);
        }
    }
}

fn push_random(file: &RustFile<'_>, offset: usize, name: &str, out: &mut Vec<Violation>) {
    let message = format!(
        "`{name}` with a random order in a core: name a hasher with a fixed seed, or use BTreeMap"
    );
    let line = file.source.line_of(offset);
    out.push(Violation { rule: Rule::RandomState, path: file.path.into(), line, message });
}

/// How many type arguments follow: `None` if none do. Arrows in closures' types do not close.
fn arguments(after: &str) -> Option<usize> {
    let code = after.strip_prefix("::").unwrap_or(after).as_bytes();
    if code.first() != Some(&b'<') {
        return None;
    }
    let (mut depth, mut count, mut at, mut last) = (0usize, 1, 0, b' ');
    while at < code.len() {
        match code[at] {
            b'<' => depth += 1,
            b'>' if code[at - 1] != b'-' => {
                depth -= 1;
                if depth == 0 {
                    // A trailing comma adds no argument.
                    return Some(if last == b',' { count - 1 } else { count });
                }
            }
            b',' if depth == 1 => count += 1,
            b'(' | b'[' => at = closing(code, at).unwrap_or(code.len() - 1),
            _ => {}
        }
        if !code[at].is_ascii_whitespace() {
            last = code[at];
        }
        at += 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(Rule, usize)> {
        let mut out = Vec::new();
        check(&RustFile::new(path, text), &mut out);
        out.iter().map(|violation| (violation.rule, violation.line)).collect()
    }

    #[test]
    fn each_ban_bites_and_names_its_replacement() {
        for ban in BANS {
            let text = format!("fn a() {{ {}(x) }}", ban.word);
            let mut out = Vec::new();
            check(&RustFile::new("net/src/a.rs", &text), &mut out);
            assert_eq!(out.len(), 1, "{}", ban.word);
            assert!(out[0].message.contains("spillway_runtime"), "{}", out[0].message);
        }
    }

    #[test]
    fn imports_are_seen() {
        let hit = [(Rule::BannedCall, 1)];
        assert_eq!(found("net/src/a.rs", "use std::fs;"), hit);
        assert_eq!(found("net/src/a.rs", "use std::{fs::File, io};"), hit);
        assert_eq!(found("net/src/a.rs", "use std::time::SystemTime;"), hit);
    }

    #[test]
    fn runtime_tests_strings_and_lookalikes_are_free() {
        let text = "fn a() { std::fs::read(x) }";
        assert_eq!(found("runtime/src/file.rs", text), []);
        assert_eq!(found("net/tests/a.rs", text), []);
        assert_eq!(found("net/src/a.rs", "#[cfg(test)]\nmod t { use std::fs; }"), []);
        assert_eq!(found("net/src/a.rs", "// std::fs\nlet a = \"Instant::now\"; vfs::x();"), []);
    }

    #[test]
    fn the_runtimes_own_modules_are_free() {
        let call = "fn a() { thread::spawn(x) }";
        let hit = [(Rule::BannedCall, 1)];
        assert_eq!(found("net/src/a.rs", call), hit);
        let import = |path: &str| format!("use {path}; {call}");
        assert_eq!(found("net/src/a.rs", &import("std::thread")), hit);
        assert_eq!(found("net/src/a.rs", &import("spillway_runtime::{clock, threads}")), hit);
        assert_eq!(found("net/src/a.rs", &import("spillway_runtime::thread")), []);
        assert_eq!(found("net/src/a.rs", &import("spillway_runtime::{clock, thread}")), []);
        assert_eq!(found("net/src/a.rs", "fn a() { spillway_runtime::thread::spawn(x) }"), []);
        let mixed = "use spillway_runtime::thread; fn a() { std::thread::spawn(x) }";
        assert_eq!(found("net/src/a.rs", mixed), hit);
    }

    #[test]
    fn random_maps_are_refused_in_cores() {
        let hit = [(Rule::RandomState, 1)];
        let core = "updateserver/src/shard/locks.rs";
        assert_eq!(found(core, "x: HashMap<u64, Vec<(u8, u8)>>,"), hit);
        assert_eq!(found(core, "x: HashMap<u64, u8, Fixed>,"), []);
        assert_eq!(found(core, "x: HashSet<u64>,"), hit);
        assert_eq!(found(core, "x: HashSet<(u8, u8), Fixed,>,"), []);
        assert_eq!(found(core, "let x = HashMap::new();"), hit);
        assert_eq!(found(core, "let x = HashMap::<u8, fn(u8) -> u8>::default();"), hit);
        assert_eq!(found("updateserver/src/log.rs", "HashSet::with_capacity(3)"), hit);
        assert_eq!(found("updateserver/src/logger.rs", "HashSet::with_capacity(3)"), []);
        assert_eq!(found("perf/src/shard.rs", "let x = HashMap::new();"), []);
    }
}
