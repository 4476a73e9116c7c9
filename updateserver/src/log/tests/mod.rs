//! Tests of the log as a whole.

mod assembler;
mod crash;
mod damage;
mod fields;
mod follower;
mod fuzz;
mod harness;
mod repair;
mod supersede;
mod writer;
