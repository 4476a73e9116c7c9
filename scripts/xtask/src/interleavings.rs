//! `cargo xtask interleavings`: what passes between threads, under two model checkers.

use crate::run_with;

/// Test targets of the runtime. Each holds planted bugs that must be found.
const MODELS: [&str; 3] = ["queue_model", "queue_memory_order", "slot_ring_memory_order"];

/// Runs all models; with `filter` only the tests whose names contain it.
pub fn run(filter: Option<&str>) -> Result<(), String> {
    let mut arguments = vec!["test", "-p", "spillway-runtime"];
    for model in MODELS {
        arguments.extend(["--test", model]);
    }
    arguments.extend(["--"].into_iter().chain(filter));
    run_with("cargo", &arguments, &[])
}
