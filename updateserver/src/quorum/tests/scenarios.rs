//! Named scenarios.

use super::world::{MILLI, World};

#[test]
fn three_nodes_elect_commit_and_agree() {
    let mut world = World::new(1, 3);
    let leader = world.wait_leader();
    world.run(2_000 * MILLI);
    assert_eq!(world.leader(), Some(leader), "a healthy leader stays");
    assert!(world.oracle.acked.len() > 100, "{} answered", world.oracle.acked.len());
    world.check_end();
}
