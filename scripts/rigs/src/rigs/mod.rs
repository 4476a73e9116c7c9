//! What is done to nodes, one file per rig.

pub mod errors;
pub mod flip;
pub mod full;
pub mod pause;
pub mod power;
pub mod slow;
pub mod synced;
