//! Tests of the log as a whole.

mod crash;
mod damage;
mod fields;
mod fuzz;
mod harness;
mod supersede;
mod writer;
