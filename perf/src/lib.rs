//! Load generator: drives a burst of transactions at a node that it started, kills it, starts it
//! again, and checks that everything that was acknowledged is there.

pub mod arguments;
mod burst;
pub mod command;
pub mod config;
pub mod control;
pub mod cpu;
pub mod drive;
pub mod error;
pub mod generator;
pub mod identity;
pub mod interval_set;
pub mod latest;
pub mod ledger;
pub mod machine;
pub mod node;
pub mod pacer;
pub mod progress;
pub mod recorder;
pub mod report;
pub mod schedule;
pub mod shape;
mod site;
pub mod verification;
pub mod workload;
pub mod zipf;

pub use arguments::{BurstArguments, BurstOptions};
pub use burst::burst;
pub use command::PerfCommand;
pub use error::PerfError;
pub use report::BurstReport;
