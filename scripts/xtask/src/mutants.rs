//! `cargo xtask mutants`: changes the log's and the quorum's code in small ways, one at a time,
//! and looks whether a test notices. What is changed, and how it is tested, stands in
//! `.cargo/mutants.toml`.
//!
//! Needs `cargo install cargo-mutants --locked`.

use crate::run_with;

/// Runs a part of all mutants. `shard` is `k/n`: every n-th mutant, from the k-th on.
pub fn run(shard: Option<&str>, files: &[String], list: bool) -> Result<(), String> {
    let arguments = arguments(shard, files, list);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run_with("cargo", &arguments, &[])
}

/// One at a time: mutants share the target directory, and each build takes all CPUs anyway.
fn arguments(shard: Option<&str>, files: &[String], list: bool) -> Vec<String> {
    let mut arguments: Vec<String> = ["mutants", "--package", "spillway-updateserver"]
        .into_iter()
        .chain(if list { vec!["--list"] } else { vec!["--jobs", "1", "--baseline", "run"] })
        .map(str::to_owned)
        .collect();
    if let Some(shard) = shard {
        arguments.extend(["--shard".to_owned(), shard.to_owned()]);
    }
    for file in files {
        arguments.extend(["--file".to_owned(), file.clone()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_and_files_narrow_the_run() {
        let files = ["updateserver/src/log/superblock.rs".to_owned()];
        let all = arguments(Some("1/25"), &files, false).join(" ");
        assert!(all.ends_with("--shard 1/25 --file updateserver/src/log/superblock.rs"), "{all}");
        assert!(arguments(None, &[], true).contains(&"--list".to_owned()));
    }
}
