//! The node under test: a child process that is formatted, started, watched and killed.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use spillway_runtime::clock::{MonotonicNanos, monotonic_now};
use spillway_runtime::{file, thread};

use crate::cpu;
use crate::error::PerfError;
use crate::ports::wait_until_free;

/// How long a node may take until it is ready: it may have a large log to replay.
const READY_SECONDS_MAX: u64 = 300;
/// How long an orderly stop may take.
const STOP_SECONDS_MAX: u64 = 60;
/// How often a starting node is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Lines of its output that go into an error.
const TAIL_LINES: usize = 20;

/// Where a node's files are, and how it is run.
#[derive(Clone, Debug)]
pub struct NodeHome {
    /// The `spillway` binary.
    pub program: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// Where its output goes.
    pub output: PathBuf,
    /// The CPUs it may use; empty: all of this process.
    pub cpus: Vec<usize>,
    /// Words in front of the program, for example to run it in another network namespace.
    pub wrapper: Vec<String>,
    /// Where it listens: looked at before every start, for a killed node leaves late.
    pub listens: Vec<SocketAddr>,
}

impl NodeHome {
    fn command(&self, verb: &str) -> Command {
        let mut words = self.wrapper.iter().map(OsStr::new).chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words).arg(verb).arg("--config").arg(&self.config).stdin(Stdio::null());
        let cpus = self.cpus.clone();
        let prepare = move || {
            if !cpus.is_empty() {
                cpu::bind(&cpus)?;
            }
            // A generator that is killed takes its node along.
            // SAFETY: this call has no pointers and is allowed between fork and exec.
            let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: the closure makes two system calls and neither allocates nor takes locks.
        unsafe { command.pre_exec(prepare) };
        command
    }

    /// The end of the node's output.
    pub fn tail(&self) -> String {
        let text = file::read(&self.output).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        if tail.is_empty() { "(it printed nothing)".to_owned() } else { tail }
    }

    fn failed(&self, what: String) -> PerfError {
        PerfError::Node { what, tail: self.tail() }
    }

    fn run_into_output(&self, verb: &str, start_output: bool) -> Result<Child, PerfError> {
        let open = if start_output { file::create } else { file::append };
        let output = open(&self.output).map_err(PerfError::from)?;
        let errors = output.try_clone().map_err(PerfError::system("the node's output file"))?;
        self.command(verb)
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(PerfError::system(format!("starting {}", self.program.display())))
    }

    /// Formats the node's directories.
    pub fn format(&self) -> Result<(), PerfError> {
        self.format_begin()?.wait()
    }

    /// Begins to format the node's directories.
    pub fn format_begin(&self) -> Result<Formatting, PerfError> {
        Ok(Formatting { home: self.clone(), child: self.run_into_output("format", true)? })
    }

    /// Starts the node and waits until it serves.
    pub fn start(&self) -> Result<Node, PerfError> {
        let mut node = self.start_begin()?;
        node.wait_ready()?;
        Ok(node)
    }

    /// Starts the node. Its output goes into an emptied file; that of the run before is kept
    /// beside it.
    pub fn start_begin(&self) -> Result<Node, PerfError> {
        wait_until_free(&self.listens)?;
        if file::exists(&self.output) {
            file::rename(&self.output, &self.output.with_extension("previous"))?;
        }
        let began = monotonic_now();
        let child = self.run_into_output("start", true)?;
        let home = self.clone();
        Ok(Node { home, child, began, addresses: Vec::new(), ready_seconds: 0.0 })
    }

    /// Writes the configuration file.
    pub fn configure(&self, text: &str) -> Result<(), PerfError> {
        file::write_atomic(&self.config, text.as_bytes()).map_err(PerfError::from)
    }
}

/// The addresses of the shards, in order, and whether the node said that it serves.
fn parse_ready(text: &str) -> (Vec<SocketAddr>, bool) {
    let mut addresses = Vec::new();
    let mut is_ready = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("ready") {
            continue;
        }
        match (words.next(), words.next()) {
            (None, None) => is_ready = true,
            (Some(shard), Some(address)) => {
                let shard: Option<usize> =
                    shard.strip_prefix("shard=").and_then(|text| text.parse().ok());
                let address = address.strip_prefix("address=").and_then(|text| text.parse().ok());
                if let (Some(shard), Some(address)) = (shard, address)
                    && addresses.len() == shard
                {
                    addresses.push(address);
                }
            }
            _ => {}
        }
    }
    (addresses, is_ready)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// A node that is being formatted.
#[derive(Debug)]
pub struct Formatting {
    home: NodeHome,
    child: Child,
}

impl Formatting {
    /// Waits for the end.
    pub fn wait(mut self) -> Result<(), PerfError> {
        let status = self.child.wait().map_err(PerfError::system("waiting for the format"))?;
        if status.success() {
            return Ok(());
        }
        Err(self.home.failed(format!("formatting the node failed: {}", describe(status))))
    }
}

/// A running node. Dropping it kills it.
#[derive(Debug)]
pub struct Node {
    home: NodeHome,
    child: Child,
    began: MonotonicNanos,
    addresses: Vec<SocketAddr>,
    ready_seconds: f64,
}

impl Node {
    /// Waits until it says that it serves.
    pub fn wait_ready(&mut self) -> Result<(), PerfError> {
        while !self.is_ready()? {
            let waited = monotonic_now().saturating_since(self.began);
            if waited.as_secs() >= READY_SECONDS_MAX {
                return Err(PerfError::TimedOut {
                    what: "the start of the node",
                    seconds: READY_SECONDS_MAX,
                    tail: self.home.tail(),
                });
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Whether it says by now that it serves. Fails if it has ended by itself.
    pub fn is_ready(&mut self) -> Result<bool, PerfError> {
        self.check_alive()?;
        let text = file::read_to_string(&self.home.output).map_err(PerfError::from)?;
        let (addresses, is_ready) = parse_ready(&text);
        if is_ready && !addresses.is_empty() {
            self.addresses = addresses;
            self.ready_seconds = monotonic_now().saturating_since(self.began).as_secs_f64();
            return Ok(true);
        }
        Ok(false)
    }

    /// The process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Address of shard 0.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// How long the start took.
    pub fn ready_seconds(&self) -> f64 {
        self.ready_seconds
    }

    /// CPU time it has used, nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        cpu::process_ns(self.child.id()).unwrap_or(0)
    }

    /// The end of its output.
    pub fn tail(&self) -> String {
        self.home.tail()
    }

    /// Fails if it has ended by itself.
    pub fn check_alive(&mut self) -> Result<(), PerfError> {
        match self.child.try_wait().map_err(PerfError::system("looking at the node"))? {
            None => Ok(()),
            Some(status) => {
                Err(self.home.failed(format!("the node ended by itself: {}", describe(status))))
            }
        }
    }

    /// Sends a signal to it, which must still run.
    fn signal(&mut self, signal: libc::c_int) -> Result<(), PerfError> {
        self.check_alive()?;
        let process = libc::pid_t::try_from(self.child.id()).expect("a process number");
        // SAFETY: the child was not waited for, so the number is still its own.
        if unsafe { libc::kill(process, signal) } != 0 {
            return Err(PerfError::system("signalling a node")(std::io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Lets it stand still.
    pub fn pause(&mut self) -> Result<(), PerfError> {
        self.signal(libc::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&mut self) -> Result<(), PerfError> {
        self.signal(libc::SIGCONT)
    }

    /// SIGKILL, without waiting.
    pub fn kill_begin(&mut self) -> Result<(), PerfError> {
        self.signal(libc::SIGKILL)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> Result<(), PerfError> {
        self.kill_begin()?;
        self.killed()
    }

    /// Waits until a killed node is gone.
    pub fn killed(&mut self) -> Result<(), PerfError> {
        self.child.wait().map_err(PerfError::system("waiting for the killed node"))?;
        Ok(())
    }

    /// SIGTERM, and waits until it has stopped in an orderly way.
    pub fn stop(mut self) -> Result<(), PerfError> {
        self.signal(libc::SIGTERM)?;
        let began = monotonic_now();
        loop {
            let ended = self.child.try_wait().map_err(PerfError::system("stopping the node"))?;
            if let Some(status) = ended {
                if status.success() {
                    return Ok(());
                }
                let what = format!("the node did not stop in an orderly way: {}", describe(status));
                return Err(self.home.failed(what));
            }
            if monotonic_now().saturating_since(began).as_secs() >= STOP_SECONDS_MAX {
                return Err(PerfError::TimedOut {
                    what: "the orderly stop of the node",
                    seconds: STOP_SECONDS_MAX,
                    tail: self.home.tail(),
                });
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Already gone is fine, and there is nobody to tell anything else to.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The node's directories below `root`.
pub fn directories(root: &Path) -> [PathBuf; 2] {
    [root.join("log"), root.join("data")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_lines_are_read_in_order() {
        let text = "listening soon\nready shard=0 address=127.0.0.1:4000\n\
                    ready shard=1 address=127.0.0.1:4001\n";
        let (addresses, is_ready) = parse_ready(text);
        assert_eq!(addresses.len(), 2);
        assert_eq!(addresses[1].port(), 4001);
        assert!(!is_ready);
        assert!(parse_ready(&format!("{text}ready\n")).1);
        assert!(!parse_ready("ready to fail\n").1);
    }

    fn home(directory: &Path, script: &str) -> NodeHome {
        let program = directory.join("node");
        file::write_atomic(&program, format!("#!/bin/sh\n{script}\n").as_bytes()).expect("write");
        let allowed = Command::new("chmod").arg("+x").arg(&program).status().expect("chmod runs");
        assert!(allowed.success());
        NodeHome {
            program,
            config: directory.join("config"),
            output: directory.join("output"),
            cpus: Vec::new(),
            wrapper: vec!["env".to_owned(), "-u".to_owned(), "NO_SUCH_NAME".to_owned()],
            listens: Vec::new(),
        }
    }

    #[test]
    fn a_node_is_started_watched_and_killed() {
        let directory = tempfile::tempdir().expect("a directory");
        let script = "echo $1 $2 $3; [ $1 = format ] && exit 0\n\
                      echo ready shard=0 address=127.0.0.1:4000; echo ready; exec sleep 1000";
        let home = home(directory.path(), script);
        home.format().expect("formats");
        let mut node = home.start().expect("starts");
        assert_eq!(node.address().port(), 4000);
        assert!(node.tail().starts_with("start --config"));
        node.check_alive().expect("runs");
        node.pause().expect("stands still");
        node.resume().expect("goes on");
        node.kill().expect("is killed");
        assert!(home.start().is_ok_and(|node| node.ready_seconds() > 0.0));
        assert!(file::exists(&home.output.with_extension("previous")));
    }

    #[test]
    fn failures_show_the_output() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = home(directory.path(), "echo the disk is on fire >&2; exit 3");
        let error = home.format().expect_err("fails").to_string();
        assert!(error.contains("exit code 3") && error.contains("on fire"), "{error}");
        let error = home.start().expect_err("fails").to_string();
        assert!(error.contains("ended by itself: exit code 3"), "{error}");
    }
}
