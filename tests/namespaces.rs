//! Nodes on machines of their own, as far as the network goes: network namespaces, joined by a
//! bridge whose ports can be kept apart. Needs root and iproute2; says so and does nothing
//! without them.

mod common;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::cluster::{seed, under_load};
use spillway_perf::script::Field;
use spillway_perf::{Host, PerfError, Topology};

const NODES: usize = 3;

/// Namespaces, and the bridge between them. Removed when dropped.
struct Network {
    name: String,
    subnet: [u8; 3],
}

fn run(words: &[&str]) -> Result<Output, String> {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.map_err(|error| format!("{}: {error}", words[0]))?;
    match output.status.success() {
        true => Ok(output),
        false => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!("{}: {}", words.join(" "), text.trim()))
        }
    }
}

impl Network {
    /// The namespaces; the error says why there cannot be any here.
    fn new() -> Result<Self, String> {
        let id = run(&["id", "-u"])?;
        if String::from_utf8_lossy(&id.stdout).trim() != "0" {
            return Err("network namespaces need root".to_owned());
        }
        run(&["ip", "-V"])?;
        // Tests of one process run side by side.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let subnet = [10, 200 + (process % 50) as u8, (process / 50 + count * 100) as u8];
        let network = Self { name: format!("sw{process}x{count}"), subnet };
        network.build()?;
        Ok(network)
    }

    fn build(&self) -> Result<(), String> {
        let (bridge, [a, b, c]) = (self.name.as_str(), self.subnet);
        run(&["ip", "link", "add", bridge, "type", "bridge"])?;
        let address = format!("{a}.{b}.{c}.254/24");
        run(&["ip", "address", "add", &address, "dev", bridge])?;
        run(&["ip", "link", "set", bridge, "up"])?;
        for node in 0..NODES {
            let (space, outer) = (self.namespace(node), self.port(node));
            run(&["ip", "netns", "add", &space])?;
            let add = ["ip", "link", "add", &outer, "type", "veth", "peer", "name", "eth0"];
            run(&[&add[..], &["netns", &space]].concat())?;
            run(&["ip", "link", "set", &outer, "master", bridge, "up"])?;
            let address = format!("{}/24", self.ip(node));
            run(&["ip", "-n", &space, "address", "add", &address, "dev", "eth0"])?;
            run(&["ip", "-n", &space, "link", "set", "eth0", "up"])?;
            run(&["ip", "-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}-{}", self.name, node + 1)
    }

    /// The bridge's port to a node.
    fn port(&self, node: usize) -> String {
        format!("{}p{}", self.name, node + 1)
    }

    fn ip(&self, node: usize) -> IpAddr {
        let [a, b, c] = self.subnet;
        IpAddr::V4(Ipv4Addr::new(a, b, c, node as u8 + 1))
    }

    fn topology(&self) -> Topology {
        let host = |node| Host {
            ip: self.ip(node),
            wrapper: ["ip", "netns", "exec", &self.namespace(node)].map(str::to_owned).to_vec(),
        };
        Topology { hosts: (0..NODES).map(host).collect(), is_proxied: false }
    }

    /// Nodes whose ports are isolated reach everybody but each other.
    fn isolate(&self, nodes: &[usize], isolated: bool) -> Result<(), String> {
        let state = if isolated { "on" } else { "off" };
        for node in nodes {
            let port = self.port(*node);
            let set = ["ip", "link", "set", "dev", &port, "type", "bridge_slave"];
            run(&[&set[..], &["isolated", state]].concat())?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What is not there needs no removing.
        for node in 0..NODES {
            drop(run(&["ip", "link", "del", &self.port(node)]));
            drop(run(&["ip", "netns", "del", &self.namespace(node)]));
        }
        drop(run(&["ip", "link", "del", &self.name]));
    }
}

fn network(test: &str) -> Option<Network> {
    match Network::new() {
        Ok(network) => Some(network),
        Err(reason) => {
            // Past the test harness, which keeps the output of a test that passes to itself.
            let line = format!("skipped {test}: {reason}\n");
            drop(std::io::stderr().write_all(line.as_bytes()));
            None
        }
    }
}

/// Cuts nodes off each other, writes through the rest, heals, and waits until all are equal.
fn cut(field: &mut Field<'_>, network: &Network, nodes: &[usize]) -> Result<(), PerfError> {
    let now = spillway_runtime::clock::monotonic_now();
    network.isolate(nodes, true).map_err(PerfError::Refused)?;
    field.note("cut off each other", nodes, now);
    // Longer than any node waits for a leader that it does not hear.
    field.sleep(Duration::from_millis(2500))?;
    for _ in 0..20 {
        field.progress_wait()?;
    }
    network.isolate(nodes, false).map_err(PerfError::Refused)?;
    field.progress_wait()?;
    field.caught_up_wait()
}

#[test]
fn two_nodes_cut_off_each_other_do_not_stop_the_third() {
    let test = "two_nodes_cut_off_each_other_do_not_stop_the_third";
    let Some(network) = network(test) else { return };
    let seed = seed(test);
    let (topology, network) = (network.topology(), Arc::new(network));
    let scene = network.clone();
    let report = under_load(seed, "", topology, move |field| {
        field.progress_wait()?;
        for distance in [0, 1, 2] {
            let leader = field.cluster.leader_wait()?;
            let node = |step: usize| (leader + step) % NODES;
            // The leader and one follower, the other one, and both followers.
            let pair = [node(distance), node(distance + 1)];
            cut(field, &scene, &pair)?;
        }
        Ok(())
    });
    assert_eq!(report.events.len(), 3);
    drop(network);
}

#[test]
fn a_whole_network_that_falls_apart_heals() {
    let test = "a_whole_network_that_falls_apart_heals";
    let Some(network) = network(test) else { return };
    let seed = seed(test);
    let (topology, network) = (network.topology(), Arc::new(network));
    let scene = network.clone();
    under_load(seed, "", topology, move |field| {
        field.progress_wait()?;
        for _ in 0..3 {
            // Nobody hears anybody: the leader must notice and stop answering.
            scene.isolate(&[0, 1, 2], true).map_err(PerfError::Refused)?;
            field.cluster.wait("the end of leadership without a quorum", |cluster| {
                cluster.leader().is_none().then_some(())
            })?;
            scene.isolate(&[0, 1, 2], false).map_err(PerfError::Refused)?;
            field.progress_wait()?;
            field.caught_up_wait()?;
        }
        Ok(())
    });
    drop(network);
}
