//! `cargo xtask miri`: the unsafe code that makes no system calls, under the interpreter that
//! holds every access against the language's rules.
//!
//! Needs a nightly toolchain with miri: `rustup component add --toolchain nightly miri rust-src`.

use crate::run_with;

/// One run of `cargo miri test`.
struct Part {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Threads take part: worth several schedules.
    threads: bool,
}

/// What needs the kernel (rings, files, mappings) is not here: miri cannot judge it.
const PARTS: [Part; 4] = [
    Part {
        name: "memtable",
        arguments: &["-p", "spillway-updateserver", "--lib", "--", "memtable::"],
        threads: false,
    },
    Part {
        name: "memory",
        arguments: &["-p", "spillway-runtime", "--lib", "--", "slot_ring", "buffer::", "region::"],
        threads: false,
    },
    Part {
        name: "slots",
        arguments: &["-p", "spillway-runtime", "--test", "slot_ring_model"],
        threads: false,
    },
    Part {
        name: "queues",
        arguments: &["-p", "spillway-runtime", "--test", "queue_threads"],
        threads: true,
    },
];

/// Runs one part, or all of them.
pub fn run(part: Option<&str>, tree_borrows: bool, seeds: u32) -> Result<(), String> {
    let chosen: Vec<&Part> =
        PARTS.iter().filter(|known| part.is_none_or(|wanted| known.name == wanted)).collect();
    if chosen.is_empty() {
        let names = PARTS.map(|part| part.name).join(", ");
        return Err(format!("no such part; there are {names}"));
    }
    for part in chosen {
        let mut arguments = vec!["+nightly", "miri", "test"];
        arguments.extend(part.arguments);
        run_with("cargo", &arguments, &[("MIRIFLAGS", &flags(part, tree_borrows, seeds))])?;
    }
    Ok(())
}

/// Isolation is off because proptest asks for the current directory.
fn flags(part: &Part, tree_borrows: bool, seeds: u32) -> String {
    let mut flags = String::from("-Zmiri-disable-isolation");
    if tree_borrows {
        flags.push_str(" -Zmiri-tree-borrows");
    }
    if part.threads {
        flags.push_str(&format!(" -Zmiri-many-seeds=0..{seeds}"));
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_of_the_part() {
        let of = |name: &str| PARTS.iter().find(|part| part.name == name).expect("a part");
        assert_eq!(flags(of("memtable"), false, 8), "-Zmiri-disable-isolation");
        let both = "-Zmiri-disable-isolation -Zmiri-tree-borrows -Zmiri-many-seeds=0..8";
        assert_eq!(flags(of("queues"), true, 8), both);
    }

    #[test]
    fn an_unknown_part_is_refused() {
        let error = run(Some("nothing"), false, 1).expect_err("no such part");
        assert!(error.contains("memtable"), "{error}");
    }
}
