//! Load generator: drives a burst of transactions at nodes that it started, kills them, starts them
//! again, and checks that everything that was acknowledged is there and that all nodes agree.

pub mod arguments;
mod burst;
pub mod cluster;
pub mod command;
pub mod config;
pub mod control;
pub mod cpu;
pub mod disturbance;
pub mod drive;
pub mod error;
pub mod generator;
pub mod identity;
pub mod interval_set;
pub mod kills;
pub mod latest;
pub mod ledger;
pub mod machine;
pub mod node;
pub mod pacer;
pub mod plan;
pub mod ports;
pub mod probe;
pub mod progress;
pub mod proxy;
pub mod recorder;
pub mod report;
pub mod schedule;
pub mod script;
pub mod shape;
mod site;
pub mod slow_disk;
pub mod verification;
pub mod warden;
pub mod workload;
pub mod zipf;

pub use arguments::{BurstArguments, BurstOptions};
pub use burst::{burst, burst_with};
pub use command::PerfCommand;
pub use error::PerfError;
pub use report::BurstReport;
pub use site::{Host, Topology};
