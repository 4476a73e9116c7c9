//! A real node in a directory of its own, as a child process.

#![expect(clippy::disallowed_methods, reason = "tests lay out files as an operator would")]

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running node. Killed and removed when dropped.
pub struct TestNode {
    directory: PathBuf,
    child: Child,
    addresses: Vec<SocketAddr>,
}

/// Runs the binary under test.
pub fn spillway(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_spillway")).args(arguments).output().expect("the binary runs")
}

impl TestNode {
    /// Formats and starts a node with one shard.
    pub fn start(name: &str) -> Self {
        Self::start_with(name, "")
    }

    /// Formats and starts a node; `extra` is appended to the `[node]` section.
    pub fn start_with(name: &str, extra: &str) -> Self {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let directory = place.join(format!("node-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir_all(&directory).expect("a directory for the node");
        let config = format!(
            "[node]\ndirectory_log = '{0}/log'\ndirectory_data = '{0}/data'\n\
             listen = '127.0.0.1:0'\n{extra}\n[log]\nbytes_total = 67108864\n\
             segment_bytes = 8388608\n[memory]\nbudget_bytes = 536870912\n",
            directory.display()
        );
        std::fs::write(directory.join("spillway.toml"), config).expect("written");
        let config = directory.join("spillway.toml");
        let format = spillway(&["format", "--config", &config.to_string_lossy()]);
        assert!(format.status.success(), "{}", String::from_utf8_lossy(&format.stderr));
        let (child, addresses) = run(&config);
        Self { directory, child, addresses }
    }

    /// Address of shard 0.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Addresses of all shards.
    #[allow(dead_code, reason = "not every test file looks at several shards")]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The node's configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("spillway.toml")
    }

    /// Whether the process still runs.
    #[allow(dead_code, reason = "not every test file asks")]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// SIGKILL, at once, and a start on the same files.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().expect("running");
        self.child.wait().expect("ended");
        (self.child, self.addresses) = run(&self.config());
    }

    /// SIGTERM; returns whether the node ended in order.
    #[allow(dead_code, reason = "not every test file stops its node in order")]
    pub fn stop(&mut self) -> bool {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("ended").success()
    }

    /// Starts a node that was stopped.
    #[allow(dead_code, reason = "not every test file starts again")]
    pub fn start_again(&mut self) {
        (self.child, self.addresses) = run(&self.config());
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

fn run(config: &Path) -> (Child, Vec<SocketAddr>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_spillway"))
        .args(["start", "--config", &config.to_string_lossy()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut addresses = Vec::new();
    loop {
        let Some(Ok(line)) = lines.next() else {
            let mut text = String::new();
            drop(child.stderr.take().expect("piped").read_to_string(&mut text));
            panic!("the node did not start: {text}");
        };
        match line.rsplit_once("address=") {
            Some((_, address)) => addresses.push(address.parse().expect("an address")),
            None => break assert_eq!(line, "ready"),
        }
    }
    (child, addresses)
}
