//! Tests of the quorum: named scenarios and random runs of whole clusters in virtual time, with the
//! real recovery on simulated disks.

mod members;
mod memory;
mod node;
mod oracle;
mod random;
mod scenarios;
mod wire;
mod world;
