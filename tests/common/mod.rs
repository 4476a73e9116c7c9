//! A real node in a directory of its own, as a child process.
#![allow(dead_code, reason = "not every test file uses everything")]
#![expect(clippy::disallowed_methods, reason = "tests prepare and damage files on their own")]

pub mod bystander;
pub mod cluster;
pub mod raw;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// What a node's configuration says beside its directories; each text is lines of TOML.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// Of `[node]`, `listen` included.
    pub node: &'a str,
    /// Of `[log]`.
    pub log: &'a str,
    /// Of `[memory]`.
    pub memory: &'a str,
    /// Of `[network]`.
    pub network: &'a str,
}

/// A log of 8 segments of 8 MiB, the least there is, the smallest memory there is, any port.
pub const SMALL: Settings<'static> = Settings {
    node: "listen = '127.0.0.1:0'\nshards = 1",
    log: "bytes_total = 67108864\nsegment_bytes = 8388608",
    memory: "budget_bytes = 268435456",
    network: "",
};

/// A directory with a configuration, removed when dropped.
pub struct Place {
    directory: PathBuf,
}

impl Place {
    /// An empty directory on the disk of the build, with a configuration in it.
    pub fn new(name: &str, settings: Settings<'_>) -> Self {
        Self::under(Path::new(env!("CARGO_TARGET_TMPDIR")), name, settings)
    }

    /// The same in another directory.
    pub fn under(parent: &Path, name: &str, settings: Settings<'_>) -> Self {
        let directory = parent.join(format!("node-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir_all(&directory).expect("a directory for the node");
        let place = Self { directory };
        place.configure(settings);
        place
    }

    /// Writes another configuration.
    pub fn configure(&self, settings: Settings<'_>) {
        let Settings { node, log, memory, network } = settings;
        let config = format!(
            "[node]\ndirectory_log = '{0}/log'\ndirectory_data = '{0}/data'\n{node}\n[log]\n{log}\n\
             [memory]\n{memory}\n[network]\n{network}\n",
            self.directory.display()
        );
        self.configure_text(&config);
    }

    /// Writes a configuration as it stands.
    pub fn configure_text(&self, text: &str) {
        std::fs::write(self.config(), text).expect("written");
    }

    /// The node's configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("spillway.toml")
    }

    /// A file of the log directory.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.directory.join("log").join(name)
    }

    /// Runs a command of the program that takes the configuration.
    pub fn spillway(&self, command: &str) -> Output {
        spillway(&[command, "--config", &self.config().to_string_lossy()])
    }

    /// Formats the node, which must succeed.
    pub fn format(&self) {
        let format = self.spillway("format");
        assert!(format.status.success(), "{}", String::from_utf8_lossy(&format.stderr));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// A running node. Killed and removed when dropped.
pub struct TestNode {
    place: Place,
    child: Child,
    addresses: Vec<SocketAddr>,
}

/// Runs the binary under test.
pub fn spillway(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spillway")).args(arguments).output().expect("the binary runs")
}

impl TestNode {
    /// Formats and starts a node with one shard.
    pub fn start(name: &str) -> Self {
        Self::start_with(name, "")
    }

    /// Formats and starts a node; `extra` is appended to the `[node]` section.
    pub fn start_with(name: &str, extra: &str) -> Self {
        let settings = Settings {
            node: &format!("listen = '127.0.0.1:0'\n{extra}"),
            log: "bytes_total = 67108864\nsegment_bytes = 8388608",
            memory: "budget_bytes = 536870912",
            network: "",
        };
        Self::start_settings(name, settings)
    }

    /// Formats and starts a node with these settings.
    pub fn start_settings(name: &str, settings: Settings<'_>) -> Self {
        let place = Place::new(name, settings);
        place.format();
        Self::start_place(place)
    }

    /// Starts a node that is formatted already.
    pub fn start_place(place: Place) -> Self {
        let (child, addresses) = run(&place);
        Self { place, child, addresses }
    }

    /// Address of shard 0.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Addresses of all shards.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where the node lives.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The node's configuration file.
    pub fn config(&self) -> PathBuf {
        self.place.config()
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// What the node has told its operator since it was started last.
    pub fn messages(&self) -> String {
        std::fs::read_to_string(self.place.directory.join("stderr"))
            .expect("it has a standard error")
    }

    /// A number of /proc/PID/status in KiB, for example `VmHWM`.
    pub fn memory_kib(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the process runs");
        let line = status.lines().find(|line| line.starts_with(name)).expect("a known name");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self) {
        self.child.kill().expect("running");
        self.child.wait().expect("ended");
    }

    /// SIGKILL, at once, and a start on the same files.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// SIGTERM; returns whether the node ended in order.
    pub fn stop(&mut self) -> bool {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("ended").success()
    }

    /// Starts a node that was stopped.
    pub fn start_again(&mut self) {
        (self.child, self.addresses) = run(&self.place);
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts the program and waits until it serves. Its messages go to a file, so that it never
/// waits for somebody to read them.
fn run(place: &Place) -> (Child, Vec<SocketAddr>) {
    let stderr = place.directory.join("stderr");
    let mut child = Command::new(env!("CARGO_BIN_EXE_spillway"))
        .args(["start", "--config", &place.config().to_string_lossy()])
        .stdout(Stdio::piped())
        .stderr(File::create(&stderr).expect("a file for messages"))
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut addresses = Vec::new();
    loop {
        let Some(Ok(line)) = lines.next() else {
            drop(child.kill());
            drop(child.wait());
            let text = std::fs::read_to_string(&stderr).expect("its messages");
            panic!("the node did not start: {text}");
        };
        match line.rsplit_once("address=") {
            Some((_, address)) => addresses.push(address.parse().expect("an address")),
            None => break assert_eq!(line, "ready"),
        }
    }
    (child, addresses)
}
