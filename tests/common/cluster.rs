//! Clusters of real nodes: under a load that is verified, or by hand.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use spillway_net::client::{Client, ClientOptions};
use spillway_net::ids::ClusterId;
use spillway_net::message::ClusterReport;
use spillway_perf::ports::free_blocks;
use spillway_perf::probe;
use spillway_perf::script::Field;
use spillway_perf::{BurstArguments, BurstOptions, BurstReport, PerfError, Topology, burst_with};

/// Only so that a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(args_override_self = true)]
struct Line {
    #[command(flatten)]
    burst: BurstArguments,
}

/// A seed that is printed: another one each time, or the one that `SPILLWAY_SEED` says.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("SPILLWAY_SEED").ok().and_then(|text| text.parse().ok());
    let drawn = || u64::from(std::process::id()) ^ spillway_runtime::clock::wall_now_micros();
    let seed = given.unwrap_or_else(drawn);
    eprintln!("{test}: seed {seed} (repeat: SPILLWAY_SEED={seed} cargo test {test})");
    seed
}

/// Lets `script` do things to a cluster of three under load, and verifies afterwards that nothing
/// acknowledged is lost, that the books balance, and that all nodes hold the same.
pub fn under_load(
    seed: u64,
    line: &str,
    topology: Topology,
    script: impl FnOnce(&mut Field<'_>) -> Result<(), PerfError> + Send + 'static,
) -> BurstReport {
    let directory = env!("CARGO_TARGET_TMPDIR");
    let line = format!(
        "burst --nodes 3 --dir {directory} --seed {seed} --rate 2000 --batch 5 --connections 4 \
         --in-flight 4 --accounts 3000 --log-gib 0.5 --memory-gib 0.25 --ramp 0.1 --hold 100000 \
         --fall 0 {line}"
    );
    let arguments = Line::try_parse_from(line.split_whitespace()).expect("a good line").burst;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_spillway"));
    let report = burst_with(&BurstOptions { program, topology, arguments }, Box::new(script))
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert!(report.is_good(), "seed {seed}: {}", report.text());
    let (all, kept) = (report.verification.acknowledged, report.verification.verified);
    assert!(all > 0 && all == kept, "seed {seed}: {}", report.text());
    eprintln!("{}", report.text());
    report
}

/// A cluster that is configured and started by hand.
pub struct Clique {
    directory: PathBuf,
    addresses: Vec<[SocketAddr; 2]>,
    children: Vec<Option<Child>>,
}

/// What one node's configuration says instead of what the others' say.
#[derive(Clone, Copy, Default)]
pub struct Different<'a> {
    /// `cluster.id`.
    pub id: Option<&'a str>,
    /// Content of its key file.
    pub key: Option<&'a [u8]>,
    /// Lines for `[node]`.
    pub node: &'a str,
    /// How many of the nodes make up the cluster at first; the others join later. None: all.
    pub founders: Option<usize>,
}

/// The cluster of all tests.
const CLUSTER: &str = "0000000000000000000000005b111a99";
/// Its key.
const KEY: &[u8] = b"a key for tests: not one byte of it is secret\n";

impl Clique {
    /// `nodes` nodes, none of them formatted.
    pub fn new(name: &str, nodes: usize) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("clique-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir_all(&directory).expect("a directory for the nodes");
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let seed = spillway_runtime::clock::wall_now_micros();
        let ports = free_blocks(ip, 2, nodes, seed).expect("free ports");
        let both = |port| [SocketAddr::new(ip, port), SocketAddr::new(ip, port + 1)];
        let addresses = ports.into_iter().map(both).collect();
        let clique = Self { directory, addresses, children: (0..nodes).map(|_| None).collect() };
        for node in 0..nodes {
            clique.configure(node, Different::default());
        }
        clique
    }

    fn home(&self, node: usize) -> PathBuf {
        self.directory.join(format!("node-{}", node + 1))
    }

    /// Writes a node's configuration.
    pub fn configure(&self, node: usize, different: Different<'_>) {
        let home = self.home(node);
        std::fs::create_dir_all(&home).expect("a directory for the node");
        let key_file = home.join("key");
        std::fs::write(&key_file, different.key.unwrap_or(KEY)).expect("written");
        let founders = different.founders.unwrap_or(self.addresses.len());
        let join = if node < founders { "" } else { "join = true\n" };
        let nodes: Vec<String> = (1..)
            .zip(&self.addresses[..founders])
            .map(|(id, [client, peer])| {
                format!("{{ id = {id}, peer = '{peer}', client = '{client}' }}")
            })
            .collect();
        let [client, peer] = self.addresses[node];
        let config = format!(
            "[node]\nid = {}\ndirectory_log = '{home}/log'\ndirectory_data = '{home}/data'\n\
             listen = '{client}'\nshards = 1\n{}\n\
             [log]\nbytes_total = 67108864\nsegment_bytes = 8388608\n\
             [memory]\nbudget_bytes = 268435456\n\
             [cluster]\n{join}id = '{}'\nkey_file = '{}'\nlisten_peers = '{peer}'\nnodes = [{}]\n",
            node + 1,
            different.node,
            different.id.unwrap_or(CLUSTER),
            key_file.display(),
            nodes.join(", "),
            home = home.display(),
        );
        std::fs::write(home.join("spillway.toml"), config).expect("written");
    }

    fn command(&self, verb: &str, node: usize) -> Command {
        // A write beyond a limit of the process is an error to it, not its end: see `log_fail`.
        let mut command = Command::new("env");
        command.arg("--ignore-signal=XFSZ").arg(env!("CARGO_BIN_EXE_spillway"));
        command.arg(verb).arg("--config").arg(self.home(node).join("spillway.toml"));
        command
    }

    /// Formats a node, which must succeed.
    pub fn format(&self, node: usize) {
        let output = self.command("format", node).output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a node without waiting for anything.
    pub fn start(&mut self, node: usize) {
        let file = |name: &str| {
            std::fs::File::create(self.home(node).join(name)).expect("a file for messages")
        };
        let child = self
            .command("start", node)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .expect("the binary runs");
        self.children[node] = Some(child);
    }

    /// Formats and starts all nodes.
    pub fn start_all(&mut self) {
        for node in 0..self.addresses.len() {
            self.format(node);
        }
        for node in 0..self.addresses.len() {
            self.start(node);
        }
    }

    /// Where clients reach a node.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.addresses[node][0]
    }

    /// Where other nodes reach a node.
    pub fn peer_address(&self, node: usize) -> SocketAddr {
        self.addresses[node][1]
    }

    /// The cluster's number.
    pub fn cluster(&self) -> ClusterId {
        ClusterId(u128::from_str_radix(CLUSTER, 16).expect("hexadecimal digits"))
    }

    /// The cluster's key.
    pub fn key(&self) -> Vec<u8> {
        KEY.to_vec()
    }

    /// What a node has told its operator since it was started last.
    pub fn messages(&self, node: usize) -> String {
        std::fs::read_to_string(self.home(node).join("stderr")).unwrap_or_default()
    }

    /// What all nodes have told their operators.
    fn all_messages(&self) -> String {
        let one = |node| format!("--- node {} ---\n{}", node + 1, self.messages(node));
        (0..self.addresses.len()).map(one).collect()
    }

    /// Asks until there is an answer; `what` names the question.
    pub fn wait<R>(&self, what: &str, mut question: impl FnMut(&Self) -> Option<R>) -> R {
        let began = Instant::now();
        loop {
            if let Some(answer) = question(self) {
                return answer;
            }
            assert!(began.elapsed() < PATIENCE, "no {what}:\n{}", self.all_messages());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How a node sees the cluster; none if it does not answer.
    pub fn report(&self, node: usize) -> Option<ClusterReport> {
        probe::cluster(self.address(node)).ok()
    }

    /// Waits until one of these nodes leads.
    pub fn leader(&self, nodes: &[usize]) -> usize {
        self.wait("leader", |clique| {
            let leads = |node: &usize| clique.report(*node).is_some_and(|it| it.role == "leader");
            nodes.iter().copied().find(leads)
        })
    }

    /// A client of a node.
    pub fn client(&self, node: usize) -> Client {
        let mut options = ClientOptions::new(self.address(node));
        options.connect_ms = PATIENCE.as_millis() as u64;
        Client::connect_with(options).expect("connected")
    }

    /// A file of a node's log directory.
    pub fn log_file(&self, node: usize, name: &str) -> PathBuf {
        self.home(node).join("log").join(name)
    }

    /// SIGTERM; returns whether the node ended in order.
    pub fn stop(&mut self, node: usize) -> bool {
        let child = self.children[node].as_mut().expect("it was started");
        let pid = child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        child.wait().expect("ended").success()
    }

    /// Waits until a node ends by itself; returns whether in order.
    pub fn wait_end(&mut self, node: usize) -> bool {
        let mut child = self.children[node].take().expect("it was started");
        let status = self.wait("end of a node", |_| child.try_wait().expect("a child"));
        status.success()
    }

    /// From now on every write of a frame to a node's log fails: no file may be written behind the
    /// header of a segment.
    pub fn log_fail(&self, node: usize) {
        let child = self.children[node].as_ref().expect("it was started");
        let (pid, limit) = (child.id().to_string(), "--fsize=20480");
        let set = Command::new("prlimit").args(["--pid", &pid, limit]).status();
        assert!(set.expect("prlimit runs").success());
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self, node: usize) {
        let child = self.children[node].as_mut().expect("it was started");
        child.kill().expect("running");
        child.wait().expect("ended");
    }

    /// Whether a node still runs.
    pub fn is_running(&mut self, node: usize) -> bool {
        let child = self.children[node].as_mut().expect("it was started");
        child.try_wait().expect("a child").is_none()
    }
}

impl Drop for Clique {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            drop(child.kill());
            drop(child.wait());
        }
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
