//! The nodes under test, all together: started, watched, killed, compared.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spillway_net::message::ClusterReport;
use spillway_runtime::clock::{MonotonicNanos, monotonic_now};
use spillway_runtime::thread;

use crate::config::ClusterNode;
use crate::cpu;
use crate::error::PerfError;
use crate::node::{Node, NodeHome};
use crate::probe::{self, Applied};
use crate::proxy::Mesh;
use crate::slow_disk::{HealthyDisk, SlowDisk};

/// How often a question is asked again.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// How long the cluster may take to agree on a leader, and a node to catch up.
pub const RECOVER_SECONDS_MAX: u64 = 120;
/// How often two nodes that have applied the same log must be seen to differ before they do.
const DIFFERENT_TIMES: u32 = 3;

/// The processes of the nodes, for whoever measures them, while somebody else kills them.
#[derive(Debug, Default)]
pub struct Processes {
    /// By node: the process, and the CPU time of those before it, nanoseconds.
    nodes: Mutex<Vec<(Option<u32>, u64)>>,
}

impl Processes {
    /// CPU time of each node so far, all its processes together, nanoseconds.
    pub fn cpu_ns(&self) -> Vec<u64> {
        let nodes = self.nodes.lock().expect("nobody panics with it");
        let used = |process: Option<u32>| process.and_then(cpu::process_ns).unwrap_or(0);
        nodes.iter().map(|(process, before)| used(*process) + before).collect()
    }

    /// SIGKILL to all, from the very thread that has just sent them work: another one might come
    /// too late. Whoever owns the nodes must bury them, see [`Cluster::bury`].
    pub fn kill(&self) -> Result<(), PerfError> {
        let nodes = self.nodes.lock().expect("nobody panics with it");
        for process in nodes.iter().filter_map(|(process, _)| *process) {
            let process = libc::pid_t::try_from(process).expect("a process number");
            // SAFETY: the call has no pointers. The number is the node's own until it is buried.
            if unsafe { libc::kill(process, libc::SIGKILL) } != 0 {
                let error = std::io::Error::last_os_error();
                return Err(PerfError::system("killing a node")(error));
            }
        }
        Ok(())
    }

    fn set(&self, node: usize, process: Option<u32>) {
        let mut nodes = self.nodes.lock().expect("nobody panics with it");
        let (current, before) = &mut nodes[node];
        *before += current.and_then(cpu::process_ns).unwrap_or(0);
        *current = process;
    }
}

/// What all nodes have applied, once they agree on how much.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// By node.
    pub nodes: Vec<Applied>,
    /// What is wrong, for people.
    pub findings: Vec<String>,
}

impl Agreement {
    /// Compares what the nodes have applied.
    pub fn of(nodes: Vec<Applied>) -> Self {
        let mut findings = Vec::new();
        let first = &nodes[0];
        for (index, node) in nodes.iter().enumerate() {
            let number = index + 1;
            if node.digest.is_none() && nodes.len() > 1 {
                findings.push(format!("node {number} tells no digest of what it holds"));
            }
            if node != first {
                findings.push(format!(
                    "node {number} holds {} rows with digest {:016x} at LSN {}, node 1 {} rows \
                     with {:016x} at {}",
                    node.rows,
                    node.digest.unwrap_or(0),
                    node.lsn,
                    first.rows,
                    first.digest.unwrap_or(0),
                    first.lsn
                ));
            }
        }
        Self { nodes, findings }
    }

    /// Whether all nodes hold the same.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}

/// The nodes. Dropping it kills them.
#[derive(Debug)]
pub struct Cluster {
    homes: Vec<NodeHome>,
    addresses: Vec<ClusterNode>,
    nodes: Vec<Option<Node>>,
    processes: Arc<Processes>,
    mesh: Option<Arc<Mesh>>,
    is_abandoned: Arc<AtomicBool>,
    disk: HealthyDisk,
}

impl Cluster {
    /// Nodes that are neither formatted nor started.
    pub fn new(homes: Vec<NodeHome>, addresses: Vec<ClusterNode>, mesh: Option<Arc<Mesh>>) -> Self {
        assert_eq!(homes.len(), addresses.len(), "every node has a home and an address");
        let processes = Processes { nodes: Mutex::new(vec![(None, 0); homes.len()]) };
        Self {
            nodes: homes.iter().map(|_| None).collect(),
            homes,
            addresses,
            processes: Arc::new(processes),
            mesh,
            is_abandoned: Arc::default(),
            disk: HealthyDisk::default(),
        }
    }

    /// The disk under the logs is this one.
    pub fn with_disk(self, disk: HealthyDisk) -> Self {
        Self { disk, ..self }
    }

    /// Set when nobody is interested in the nodes any more: whoever waits for them gives up.
    pub fn abandonment(&self) -> Arc<AtomicBool> {
        self.is_abandoned.clone()
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.homes.len()
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.homes.is_empty()
    }

    /// The processes, for whoever measures them.
    pub fn processes(&self) -> Arc<Processes> {
        self.processes.clone()
    }

    /// The network between the nodes, if it can be told to misbehave.
    pub fn mesh(&self) -> Option<&Mesh> {
        self.mesh.as_deref()
    }

    /// Where clients reach a node.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.addresses[node].client
    }

    /// Where clients reach the nodes.
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.addresses.iter().map(|node| node.client).collect()
    }

    /// The end of a node's output.
    pub fn tail(&self, node: usize) -> String {
        self.homes[node].tail()
    }

    /// The ends of all nodes' outputs.
    pub fn tails(&self) -> String {
        let tail = |(at, home): (usize, &NodeHome)| format!("node {}:\n{}", at + 1, home.tail());
        let all: Vec<String> = self.homes.iter().enumerate().map(tail).collect();
        if all.len() == 1 { self.homes[0].tail() } else { all.join("\n") }
    }

    /// Formats all nodes, side by side.
    pub fn format(&self) -> Result<(), PerfError> {
        let begun: Result<Vec<_>, _> = self.homes.iter().map(NodeHome::format_begin).collect();
        begun?.into_iter().try_for_each(|formatting| formatting.wait())
    }

    /// Starts the nodes that do not run and waits until all say that they serve. Returns the
    /// longest start, seconds.
    pub fn start_all(&mut self) -> Result<f64, PerfError> {
        let down: Vec<usize> = (0..self.len()).filter(|at| !self.is_up(*at)).collect();
        for &at in &down {
            let node = self.homes[at].start_begin()?;
            self.processes.set(at, Some(node.process()));
            self.nodes[at] = Some(node);
        }
        let mut seconds: f64 = 0.0;
        for at in down {
            let node = self.nodes[at].as_mut().expect("just started");
            node.wait_ready()?;
            seconds = seconds.max(node.ready_seconds());
            // What it chose itself, if it was free to choose.
            self.addresses[at].client = node.address();
        }
        Ok(seconds)
    }

    /// Starts a node that is down and waits until it says that it serves. Returns how long that
    /// took, seconds.
    pub fn start(&mut self, at: usize) -> Result<f64, PerfError> {
        self.start_begin(at)?;
        let node = self.up(at);
        node.wait_ready()?;
        Ok(node.ready_seconds())
    }

    /// Starts a node that is down, and waits for nothing.
    pub fn start_begin(&mut self, at: usize) -> Result<(), PerfError> {
        assert!(!self.is_up(at), "it is down");
        let node = self.homes[at].start_begin()?;
        self.processes.set(at, Some(node.process()));
        self.nodes[at] = Some(node);
        Ok(())
    }

    /// Whether a node that was started says by now that it serves. Fails if it has ended by
    /// itself.
    pub fn is_ready(&mut self, at: usize) -> Result<bool, PerfError> {
        self.up(at).is_ready()
    }

    /// Whether a node was started and not killed since.
    pub fn is_up(&self, at: usize) -> bool {
        self.nodes[at].is_some()
    }

    fn up(&mut self, at: usize) -> &mut Node {
        self.nodes[at].as_mut().expect("the node is up")
    }

    /// SIGKILL to these nodes, as much at once as can be. Returns when they were hit.
    pub fn kill(&mut self, nodes: &[usize]) -> Result<MonotonicNanos, PerfError> {
        for &at in nodes {
            self.up(at).check_alive()?;
        }
        let now = monotonic_now();
        for &at in nodes {
            self.up(at).kill_begin()?;
        }
        self.bury(nodes)?;
        Ok(now)
    }

    /// Waits until these killed nodes are gone.
    pub fn bury(&mut self, nodes: &[usize]) -> Result<(), PerfError> {
        for &at in nodes {
            self.processes.set(at, None);
            self.up(at).killed()?;
            self.nodes[at] = None;
        }
        Ok(())
    }

    /// Lets a node stand still.
    pub fn pause(&mut self, at: usize) -> Result<(), PerfError> {
        self.up(at).pause()
    }

    /// Lets it go on.
    pub fn resume(&mut self, at: usize) -> Result<(), PerfError> {
        self.up(at).resume()
    }

    /// Slows the log disk for a node, until the result is dropped.
    pub fn slow_disk(&mut self, at: usize) -> Result<SlowDisk, PerfError> {
        let process = self.up(at).process();
        SlowDisk::begin(&self.disk, process)
    }

    /// Fails if a node has ended by itself, or if nobody is interested any more.
    pub fn check_alive(&mut self) -> Result<(), PerfError> {
        if self.is_abandoned.load(Ordering::Acquire) {
            return Err(PerfError::Refused("the burst has ended".to_owned()));
        }
        self.nodes.iter_mut().flatten().try_for_each(Node::check_alive)
    }

    /// SIGTERM to all, one after the other; each must stop in an orderly way.
    pub fn stop(&mut self) -> Result<(), PerfError> {
        for at in 0..self.len() {
            if let Some(node) = self.nodes[at].take() {
                self.processes.set(at, None);
                node.stop()?;
            }
        }
        Ok(())
    }

    /// How the nodes that are up see the cluster; none where one does not answer.
    pub fn reports(&self) -> Vec<Option<ClusterReport>> {
        let ask = |at| if self.is_up(at) { probe::cluster(self.address(at)).ok() } else { None };
        (0..self.len()).map(ask).collect()
    }

    /// The node that leads: of those that say so, the one with the highest term.
    pub fn leader(&self) -> Option<usize> {
        if self.len() == 1 {
            return Some(0);
        }
        leader_of(&self.reports())
    }

    /// Waits until a node leads.
    pub fn leader_wait(&mut self) -> Result<usize, PerfError> {
        self.wait("the election of a leader", Self::leader)
    }

    /// Asks `question` until it has an answer.
    pub fn wait<R>(
        &mut self,
        what: &'static str,
        mut question: impl FnMut(&Self) -> Option<R>,
    ) -> Result<R, PerfError> {
        let began = monotonic_now();
        loop {
            if let Some(answer) = question(self) {
                return Ok(answer);
            }
            self.check_alive()?;
            if monotonic_now().saturating_since(began).as_secs() >= RECOVER_SECONDS_MAX {
                let seconds = RECOVER_SECONDS_MAX;
                return Err(PerfError::TimedOut { what, seconds, tail: self.tails() });
            }
            thread::sleep(ASK_EVERY);
        }
    }

    /// Waits until a node has applied everything that is committed now.
    pub fn caught_up_wait(&mut self, at: usize) -> Result<(), PerfError> {
        let target = self.wait("the committed end", |cluster| {
            let leader = cluster.leader()?;
            probe::cluster(cluster.address(leader)).ok().map(|report| report.vdl)
        })?;
        self.wait("a restarted node's catching up", |cluster| {
            let report = probe::cluster(cluster.address(at)).ok()?;
            (report.applied >= target).then_some(())
        })
    }

    /// Waits until all nodes have applied the same, while nobody writes, and compares them.
    pub fn agreement(&mut self) -> Result<Agreement, PerfError> {
        let mut different = 0;
        self.wait("the nodes' agreement on what is applied", |cluster| {
            let mut nodes = Vec::new();
            for at in 0..cluster.len() {
                nodes.push(Applied::of(&probe::status(cluster.address(at)).ok()?));
            }
            if nodes.iter().any(|node| node.lsn != nodes[0].lsn) {
                return None;
            }
            let agreement = Agreement::of(nodes);
            // The numbers of one node may be of two moments.
            different += u32::from(!agreement.is_good());
            (agreement.is_good() || different == DIFFERENT_TIMES).then_some(agreement)
        })
    }
}

/// See [`Cluster::leader`].
fn leader_of(reports: &[Option<ClusterReport>]) -> Option<usize> {
    let all = reports.iter().enumerate();
    let leads = |(at, report): (usize, &Option<ClusterReport>)| {
        let report = report.as_ref().filter(|report| report.role == "leader")?;
        Some((report.term, at))
    };
    all.filter_map(leads).max().map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_leader_leads() {
        let report = |role: &str, term| {
            Some(ClusterReport { role: role.to_owned(), term, ..ClusterReport::default() })
        };
        assert_eq!(leader_of(&[None, report("follower", 9)]), None);
        let old_and_new = [report("leader", 3), None, report("leader", 4), report("candidate", 5)];
        assert_eq!(leader_of(&old_and_new), Some(2));
    }

    #[test]
    fn nodes_agree_only_with_equal_digests() {
        let applied = |lsn, digest, rows| Applied { lsn, digest, rows };
        assert!(Agreement::of(vec![applied(5, Some(7), 3); 3]).is_good());
        assert!(Agreement::of(vec![applied(5, None, 3)]).is_good(), "there is nobody to differ");
        for other in [applied(5, Some(8), 3), applied(5, Some(7), 4), applied(5, None, 3)] {
            let agreement = Agreement::of(vec![applied(5, Some(7), 3), other]);
            assert!(!agreement.is_good(), "{agreement:?}");
        }
        assert!(!Agreement::of(vec![applied(5, None, 3); 2]).is_good(), "nothing was compared");
    }
}
