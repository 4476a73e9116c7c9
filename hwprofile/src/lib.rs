//! What machine is this, which part of it may the process use, and which CPU plays which role.
//!
//! [`discover`] reads `/sys` and `/proc` below a root that is a parameter, so a recorded tree of
//! files stands for a machine. [`plan`] is a pure function of what was found. [`report`] says it to
//! a person, with what is missing for the reference machine.
//!
//! This crate changes nothing on the machine. It knows no database: a partition is a number here.

pub mod cgroup;
pub mod cpu;
pub mod list;
pub mod machine;
pub mod memory;
pub mod mount;
pub mod plan;
pub mod report;
pub mod role;
pub mod storage;
pub mod tree;

pub use machine::{DiscoverError, Machine, discover};
pub use plan::{Plan, PlanError, PlanOptions, plan};
pub use report::report;
