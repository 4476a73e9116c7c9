//! Dependencies between our crates point downwards only.

use crate::house::{Rule, Violation};
use crate::tree::File;

/// Our crates from top to bottom. A crate may depend on those below it.
const ORDER: [&str; 7] = [
    "spillway",
    "spillway-perf",
    "spillway-sim",
    "spillway-updateserver",
    "spillway-chunkserver",
    "spillway-net",
    "spillway-runtime",
];
/// Stands beside the order: it looks at the machine, before there is a database.
const HWPROFILE: &str = "spillway-hwprofile";
/// Above everything: runs the fuzz targets of all crates.
const FUZZ: &str = "spillway-fuzz";
/// Above everything: runs real nodes on disks that fail.
const RIGS: &str = "spillway-rigs";
/// Apart: depends on no crate of ours, so that it builds while they do not.
const XTASK: &str = "xtask";

/// Checks every manifest of the tree.
pub fn check(files: &[File], out: &mut Vec<Violation>) {
    for file in files.iter().filter(|f| f.path == "Cargo.toml" || f.path.ends_with("/Cargo.toml")) {
        let Some(text) = &file.text else { continue };
        check_manifest(&file.path, text, out);
    }
}

fn check_manifest(path: &str, text: &str, out: &mut Vec<Violation>) {
    let mut push = |message| {
        out.push(Violation { rule: Rule::CrateDirection, path: path.into(), line: 0, message });
    };
    let manifest: toml::Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return push(format!("does not parse: {error}")),
    };
    let name = manifest.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str());
    let Some(name) = name else { return };
    for dependency in dependencies(&manifest) {
        let ours = dependency == XTASK || dependency.starts_with("spillway");
        if ours && !allowed(name, &dependency) {
            push(format!(
                "`{name}` depends on `{dependency}`: dependencies point downwards only, {}",
                ORDER.join(" > ")
            ));
        }
    }
}

fn allowed(from: &str, to: &str) -> bool {
    let rank = |name: &str| ORDER.iter().position(|other| *other == name);
    match (from, to) {
        (FUZZ, to) => !matches!(to, FUZZ | RIGS),
        (RIGS, to) => !matches!(to, RIGS | FUZZ | XTASK),
        (_, FUZZ | RIGS | XTASK) | (XTASK, _) => false,
        (HWPROFILE, to) => to == "spillway-runtime",
        // The database may ask for a plan; what lies below the update server has no use for one.
        (from, HWPROFILE) => matches!(from, "spillway" | "spillway-perf" | "spillway-updateserver"),
        (from, to) => match (rank(from), rank(to)) {
            (Some(from), Some(to)) => from < to,
            _ => false,
        },
    }
}

/// Names of all dependencies: of the crate, of its tests and build script, and per target.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
    let mut tables: Vec<&toml::Table> = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(|t| t.as_table()) {
        tables.extend(targets.values().filter_map(|t| t.as_table()));
    }
    let mut names = Vec::new();
    for table in tables {
        for kind in KINDS {
            let Some(entries) = table.get(kind).and_then(|k| k.as_table()) else { continue };
            for (key, value) in entries {
                let renamed = value.get("package").and_then(|p| p.as_str());
                names.push(renamed.unwrap_or(key).to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(name: &str, rest: &str) -> usize {
        let mut out = Vec::new();
        check_manifest("x/Cargo.toml", &format!("[package]\nname = \"{name}\"\n{rest}"), &mut out);
        out.len()
    }

    #[test]
    fn upward_dependencies_are_refused() {
        let on = |to: &str| format!("[dependencies]\n{to} = {{ workspace = true }}");
        assert_eq!(count("spillway-net", &on("spillway-runtime")), 0);
        assert_eq!(count("spillway-net", &on("spillway-updateserver")), 1);
        assert_eq!(count("spillway-net", &on("spillway-net")), 1);
        assert_eq!(count("spillway-runtime", &on("spillway-hwprofile")), 1);
        assert_eq!(count("spillway-chunkserver", &on("xtask")), 1);
        assert_eq!(count("xtask", &on("spillway-runtime")), 1);
        assert_eq!(count("spillway-fuzz", &on("spillway-net")), 0);
        assert_eq!(count("spillway-net", &on("spillway-fuzz")), 1);
        assert_eq!(count("spillway-rigs", &on("spillway-perf")), 0);
        assert_eq!(count("spillway-rigs", &on("xtask")), 1);
        assert_eq!(count("spillway-perf", &on("spillway-rigs")), 1);
        assert_eq!(count("spillway-unknown", &on("spillway-net")), 1);
    }

    #[test]
    fn hwprofile_stands_beside() {
        let on = |to: &str| format!("[dependencies]\n{to} = {{ workspace = true }}");
        assert_eq!(count("spillway-hwprofile", &on("spillway-runtime")), 0);
        assert_eq!(count("spillway-hwprofile", &on("spillway-net")), 1);
        assert_eq!(count("spillway", &on("spillway-hwprofile")), 0);
        assert_eq!(count("spillway-net", &on("spillway-hwprofile")), 1);
    }

    #[test]
    fn every_kind_of_dependency_counts() {
        let up = "spillway-perf = { path = \"../perf\" }";
        for table in ["dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"] {
            assert_eq!(count("spillway-net", &format!("[{table}]\n{up}")), 1, "{table}");
        }
        let renamed = "[dependencies]\nload = { package = \"spillway-perf\", path = \"../perf\" }";
        assert_eq!(count("spillway-net", renamed), 1);
    }

    #[test]
    fn a_broken_manifest_is_refused() {
        assert_eq!(count("spillway-net", "[dependencies"), 1);
    }
}
