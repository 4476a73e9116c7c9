//! Feeds every decoder of the workspace with broken inputs.
//!
//! A crate of its own, because it needs all others, and the house rules must be checked also while
//! one of them does not compile. [`targets`] lists the decoders, [`run`] makes inputs.

pub mod run;
pub mod targets;
