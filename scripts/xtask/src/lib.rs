//! The one door to daily work. The library holds the house rules.
//!
//! Reading order: [`house`] says what the rules are, [`rules`] applies them, [`exceptions`] says
//! who is excused. It depends on no other crate of the workspace: the rules can be checked while
//! one of them does not compile.

pub mod exceptions;
pub mod functions;
pub mod house;
pub mod rules;
pub mod source;
pub mod tree;
