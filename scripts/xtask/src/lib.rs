//! The one door to daily work: house rules, fuzzers, crash runs.
//!
//! Reading order: [`house`] says what the rules are, [`rules`] applies them, [`exceptions`] says
//! who is excused; [`fuzz`] runs the targets that [`fuzz_targets`] lists.

pub mod exceptions;
pub mod functions;
pub mod fuzz;
pub mod fuzz_targets;
pub mod house;
pub mod rules;
pub mod source;
pub mod tree;
