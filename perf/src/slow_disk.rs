//! A disk that is slow for one process: the kernel's control groups let it have few writes per
//! second. Needs root, and a kernel that lets block devices be controlled.

use std::ffi::CString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use spillway_runtime::file;

use crate::error::PerfError;

/// How much slower than healthy a slowed disk is.
const FACTOR: u64 = 100;

/// The disk under the logs, as it is when nobody slows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthyDisk {
    /// Name of the whole disk; empty if there is none.
    pub name: String,
    /// Median time of a durable write, microseconds.
    pub write_us: u64,
}

impl HealthyDisk {
    /// Writes per second of a disk that takes so many times longer for each.
    fn slowed_per_second(&self) -> u64 {
        (1_000_000 / (self.write_us.max(1) * FACTOR)).max(1)
    }
}

/// A group of processes whose writes are slow, until it is dropped.
#[derive(Debug)]
pub struct SlowDisk {
    group: PathBuf,
    parent: PathBuf,
    process: u32,
}

impl SlowDisk {
    /// Slows the disk for one process.
    pub fn begin(disk: &HealthyDisk, process: u32) -> Result<Self, PerfError> {
        let refuse = |what: String| {
            PerfError::Refused(format!("the disk cannot be slowed here ({what}): it takes root"))
        };
        if disk.name.is_empty() {
            return Err(refuse("the log is on no disk".to_owned()));
        }
        let number = file::read_to_string(&Path::new("/sys/block").join(&disk.name).join("dev"))?;
        let (number, writes) = (number.trim(), disk.slowed_per_second());
        let old = PathBuf::from("/sys/fs/cgroup/blkio");
        let is_old = file::exists(&old);
        let parent = if is_old { old } else { PathBuf::from("/sys/fs/cgroup") };
        let group = parent.join(format!("spillway-slow-{process}"));
        file::create_dir_all(&group).map_err(|error| refuse(error.to_string()))?;
        let slow = Self { group, parent, process };
        let set = |name: &str, text: String| write(&slow.group.join(name), &text);
        let limited = match is_old {
            true => set("blkio.throttle.write_iops_device", format!("{number} {writes}")),
            false => write(&slow.parent.join("cgroup.subtree_control"), "+io")
                .and_then(|()| set("io.max", format!("{number} wiops={writes}"))),
        };
        let entered = limited.and_then(|()| set("cgroup.procs", process.to_string()));
        entered.map_err(|error| refuse(error.to_string()))?;
        Ok(slow)
    }
}

fn write(path: &Path, text: &str) -> Result<(), PerfError> {
    let mut file = file::append(path)?;
    let doing = || format!("writing {text:?} to {}", path.display());
    file.write_all(text.as_bytes()).map_err(|error| PerfError::system(doing())(error))
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // The process may have ended, and then the group is empty already.
        drop(write(&self.parent.join("cgroup.procs"), &self.process.to_string()));
        let path = CString::new(self.group.as_os_str().as_bytes()).expect("no zero in it");
        // SAFETY: the path is a string that ends with a zero and outlives the call.
        unsafe { libc::rmdir(path.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_hundred_times_slower_is_few_writes() {
        let disk = |write_us| HealthyDisk { name: "vda".to_owned(), write_us };
        assert_eq!(disk(80).slowed_per_second(), 125);
        assert_eq!(disk(0).slowed_per_second(), 10_000);
        assert_eq!(disk(1_000_000).slowed_per_second(), 1);
        SlowDisk::begin(&HealthyDisk::default(), 1).expect_err("no disk");
    }

    #[test]
    fn a_process_comes_and_goes() {
        let disk = spillway_runtime::device::DeviceFacts::of(Path::new(".")).expect("a disk").name;
        let mut child =
            Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().expect("runs");
        let healthy = HealthyDisk { name: disk, write_us: 80 };
        match SlowDisk::begin(&healthy, child.id()) {
            Ok(slow) => {
                let group = slow.group.clone();
                let inside = file::read_to_string(&group.join("cgroup.procs")).expect("read");
                assert_eq!(inside.trim(), child.id().to_string());
                drop(slow);
                assert!(!file::exists(&group));
            }
            Err(reason) => println!("skipped: {reason}"),
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
}
