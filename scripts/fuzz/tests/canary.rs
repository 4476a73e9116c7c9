//! A planted mistake is found, and the line that is printed repeats it.

use std::process::{Command, Output};

fn fuzz(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_spillway-fuzz");
    Command::new(program).args(arguments).output().expect("the program starts")
}

#[test]
fn a_planted_mistake_is_found_and_repeated() {
    let found = fuzz(&["canary", "--seed", "1", "--runs", "10000"]);
    let text = String::from_utf8_lossy(&found.stderr).into_owned();
    assert!(!found.status.success(), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("reproduce: cargo xtask fuzz "));
    let arguments: Vec<&str> = line.expect("a line to repeat it").split(' ').collect();
    assert_eq!((arguments[0], arguments[3], arguments[4]), ("canary", "--runs", "1"));
    let again = fuzz(&arguments);
    assert!(!again.status.success(), "{line:?} fails again");
    assert!(String::from_utf8_lossy(&again.stderr).contains("the canary fell"));
}

#[test]
fn an_unknown_target_is_an_error() {
    assert!(!fuzz(&["nothing"]).status.success());
    assert!(fuzz(&[]).status.success(), "without a name the targets are listed");
}
