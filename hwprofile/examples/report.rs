//! Prints this machine and the plan for it: `cargo run -p spillway-hwprofile --example report`.

use spillway_hwprofile::{PlanOptions, discover, plan, report};
use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let log = arguments.next().unwrap_or_else(|| "/var/lib/spillway/log".into());
    let data = arguments.next().unwrap_or_else(|| "/var/lib/spillway/data".into());
    let machine = discover(Path::new("/"), &log, &data)?;
    let plan = plan(&machine, PlanOptions { partitions: 256, shards: None })?;
    print!("{}", report(&machine, &plan));
    Ok(())
}
