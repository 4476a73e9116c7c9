//! Networks between nodes that lose one direction, lose both, break off or slow down, by a
//! seeded schedule, under load.

mod common;

use std::time::Duration;

use common::cluster::{seed, under_load};
use spillway_perf::identity::Draw;
use spillway_perf::proxy::{Mesh, Weather};
use spillway_perf::{PerfError, Topology};

const NODES: usize = 3;

/// What goes wrong; followers are named by their distance from the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A follower hears nothing from the leader.
    ToFollower(usize),
    /// The leader hears nothing from a follower.
    FromFollower(usize),
    /// Nobody hears the leader.
    FromLeader,
    /// The leader hears nobody.
    ToLeader,
    /// The leader is cut off in both directions.
    Leader,
    /// The followers are cut off each other.
    Followers,
    /// All connections of the leader break off.
    BreakOff,
    /// Everything is late.
    Delay(Duration),
}

impl Fault {
    fn draw(draw: &mut Draw) -> Self {
        let follower = 1 + draw.below(NODES as u64 - 1) as usize;
        match draw.below(8) {
            0 => Self::ToFollower(follower),
            1 => Self::FromFollower(follower),
            2 => Self::FromLeader,
            3 => Self::ToLeader,
            4 => Self::Leader,
            5 => Self::Followers,
            6 => Self::BreakOff,
            _ => Self::Delay(Duration::from_millis(1 + draw.below(20))),
        }
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::ToFollower(_) => "cut leader to follower",
            Self::FromFollower(_) => "cut follower to leader",
            Self::FromLeader => "cut leader to all",
            Self::ToLeader => "cut all to leader",
            Self::Leader => "cut leader off",
            Self::Followers => "cut followers off each other",
            Self::BreakOff => "leader's connections broken off",
            Self::Delay(_) => "delay",
        }
    }

    fn begin(self, mesh: &Mesh, leader: usize) {
        let node = |distance: usize| (leader + distance) % NODES;
        let followers = [node(1), node(2)];
        match self {
            Self::ToFollower(follower) => mesh.cut(leader, node(follower)),
            Self::FromFollower(follower) => mesh.cut(node(follower), leader),
            Self::FromLeader => followers.iter().for_each(|to| mesh.cut(leader, *to)),
            Self::ToLeader => followers.iter().for_each(|from| mesh.cut(*from, leader)),
            Self::Leader => {
                Self::FromLeader.begin(mesh, leader);
                Self::ToLeader.begin(mesh, leader);
            }
            Self::Followers => {
                mesh.cut(followers[0], followers[1]);
                mesh.cut(followers[1], followers[0]);
            }
            Self::BreakOff => {
                for follower in followers {
                    mesh.break_off(leader, follower);
                }
            }
            Self::Delay(delay) => {
                for from in 0..NODES {
                    for to in (0..NODES).filter(|to| *to != from) {
                        mesh.set(from, to, Weather { is_cut: false, delay });
                    }
                }
            }
        }
    }

    /// Whether a majority can still hear each other through the leader, so that commits must go
    /// on while it lasts.
    const fn leaves_a_quorum(self) -> bool {
        matches!(
            self,
            Self::ToFollower(_) | Self::FromFollower(_) | Self::Followers | Self::Delay(_)
        )
    }
}

/// Cuts, waits, heals, and wants commits to go on, `rounds` times.
fn play(rounds: usize, seed: u64) -> spillway_perf::script::Script {
    Box::new(move |field| {
        let mut draw = Draw::new(seed, 0xC075);
        field.progress_wait()?;
        for round in 0..rounds {
            let fault = Fault::draw(&mut draw);
            let leader = field.cluster.leader_wait()?;
            let now = spillway_runtime::clock::monotonic_now();
            field.note(fault.kind(), &[leader], now);
            fault.begin(mesh(field.cluster)?, leader);
            field.sleep(Duration::from_millis(100 + draw.below(1900)))?;
            if fault.leaves_a_quorum() {
                field.progress_wait()?;
            }
            mesh(field.cluster)?.heal();
            field.progress_wait()?;
            if draw.below(2) == 0 {
                field.caught_up_wait()?;
            }
            field.say(format!("round {round}: {fault:?}, node {} led", leader + 1));
        }
        field.caught_up_wait()
    })
}

fn mesh(cluster: &spillway_perf::cluster::Cluster) -> Result<&Mesh, PerfError> {
    cluster.mesh().ok_or_else(|| PerfError::Refused("there are no proxies".to_owned()))
}

#[test]
fn cuts_and_delays_between_nodes_lose_nothing() {
    let seed = seed("cuts_and_delays_between_nodes_lose_nothing");
    let topology = Topology { is_proxied: true, ..Topology::default() };
    let report = under_load(seed, "", topology, play(25, seed));
    assert_eq!(report.events.len(), 25);
}

#[test]
fn a_leader_that_nobody_hears_is_replaced_while_it_is_cut() {
    let seed = seed("a_leader_that_nobody_hears_is_replaced_while_it_is_cut");
    let topology = Topology { is_proxied: true, ..Topology::default() };
    under_load(seed, "", topology, |field| {
        field.progress_wait()?;
        for fault in [Fault::FromLeader, Fault::ToLeader, Fault::Leader] {
            let old = field.cluster.leader_wait()?;
            fault.begin(mesh(field.cluster)?, old);
            field.cluster.wait("the election of another leader", |cluster| {
                cluster.leader().filter(|next| *next != old)
            })?;
            // Commits go on without it.
            field.progress_wait()?;
            mesh(field.cluster)?.heal();
            field.caught_up_wait()?;
        }
        Ok(())
    });
}
