//! The house rules hold for the whole tree.

use xtask::{house, tree};

#[test]
fn the_tree_keeps_the_house_rules() {
    let files = tree::files(&tree::root()).expect("the tree is readable");
    assert!(files.iter().any(|file| file.path == "Cargo.toml"), "the root was found");
    let violations = house::check(&files);
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}
