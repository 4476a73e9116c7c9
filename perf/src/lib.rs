//! Load generator: drives a burst of transactions at a node that it started, kills it, starts it
//! again, and checks that everything that was acknowledged is there.

pub mod arguments;
pub mod config;
pub mod cpu;
pub mod error;
pub mod identity;
pub mod interval_set;
pub mod latest;
pub mod ledger;
pub mod machine;
pub mod node;
pub mod schedule;
pub mod shape;
pub mod verification;
pub mod workload;
pub mod zipf;
