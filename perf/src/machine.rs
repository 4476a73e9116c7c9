//! What the figures were taken on.

use std::path::Path;

use serde::Serialize;
use spillway_runtime::buffer::{BufferIndex, BufferPool};
use spillway_runtime::clock::monotonic_now;
use spillway_runtime::device::{DeviceFacts, DurableWriteMode};
use spillway_runtime::direct::{DirectFile, DirectMode};
use spillway_runtime::disk::{DiskRing, DiskRingOptions, WriteRequest};
use spillway_runtime::file;
use spillway_runtime::metrics::{Histogram, Precision};
use spillway_runtime::prewrite::prewrite;

use crate::cpu;
use crate::error::PerfError;

/// Durable writes of the device measurement.
const WRITES: u64 = 2000;
/// Bytes of each.
const WRITE_BYTES: u32 = 4096;
/// The file they go to, again and again from its beginning, as a log does.
const FILE_BYTES: u64 = 4 << 20;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// CPUs this process may use.
    pub cpus: usize,
    /// The CPUs' name.
    pub cpu_model: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// The disk under the log; empty if there is none.
    pub log_device: String,
    /// How a durable write is made on it.
    pub log_write_mode: &'static str,
}

impl Machine {
    /// This machine, with its log below `directory`.
    pub fn describe(directory: &Path) -> Result<Self, PerfError> {
        let text = |path: &str| file::read_to_string(Path::new(path)).unwrap_or_default();
        let cpuinfo = text("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let device = DeviceFacts::of(directory).map_err(PerfError::from)?;
        Ok(Self {
            cpus: cpu::allowed().len(),
            cpu_model: model.unwrap_or("").trim_start_matches([' ', '\t', ':']).to_owned(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_bytes: meminfo(&text("/proc/meminfo"), "MemTotal:").unwrap_or(0),
            log_write_mode: match device.durable_write_mode() {
                DurableWriteMode::DataSync => "O_DSYNC",
                DurableWriteMode::WriteThenFlush => "write, FDATASYNC",
            },
            log_device: device.name,
        })
    }
}

/// Memory that can be had without swapping, bytes.
pub fn memory_available_bytes() -> Option<u64> {
    meminfo(&file::read_to_string(Path::new("/proc/meminfo")).ok()?, "MemAvailable:")
}

fn meminfo(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Time of durable writes of 4 KiB, one at a time, on an idle device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceWrite {
    /// Median, microseconds.
    pub write_p50_us: u64,
    /// 99th percentile, microseconds.
    pub write_p99_us: u64,
}

/// Writes to a file below `directory` the way the node's log does and takes the time.
pub fn measure_device(directory: &Path) -> Result<DeviceWrite, PerfError> {
    let durability = DeviceFacts::of(directory)?.durable_write_mode().durability();
    let path = directory.join("device-measurement");
    prewrite(&path, FILE_BYTES, &mut |_| ())?;
    let target = DirectFile::open(&path, DirectMode::ReadWrite)?;
    let mut ring = DiskRing::new(DiskRingOptions {
        entries: 4,
        files_max: 1,
        name: "measurement".to_owned(),
    })?;
    ring.attach_buffers(BufferPool::new(1, WRITE_BYTES as usize)?);
    let slot = ring.register_file(&target)?;
    let mut latency = Histogram::new(Precision::ThreeDigits);
    let mut completions = Vec::new();
    for write in 0..WRITES {
        ring.buffer_mut(BufferIndex(0)).fill(write as u8);
        let began = monotonic_now();
        ring.write(WriteRequest {
            file: slot,
            file_offset: write * u64::from(WRITE_BYTES) % FILE_BYTES,
            buffer: BufferIndex(0),
            buffer_offset: 0,
            bytes: WRITE_BYTES,
            durability,
            token: write,
        });
        ring.submit_and_wait(1)?;
        ring.reap(&mut completions);
        while completions.is_empty() {
            ring.submit_and_wait(1)?;
            ring.reap(&mut completions);
        }
        let ended = monotonic_now();
        for completion in completions.drain(..) {
            let errno = completion.result.err();
            if let Some(errno) = errno {
                return Err(PerfError::Refused(format!("the device measurement: {errno}")));
            }
        }
        latency.record(ended.saturating_nanos_since(began));
    }
    drop(ring);
    file::remove_file(&path)?;
    let us = |percent| (latency.percentile(percent) + 500) / 1000;
    Ok(DeviceWrite { write_p50_us: us(50.0), write_p99_us: us(99.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24576 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(24 << 20));
        assert_eq!(meminfo(text, "MemAvailable:"), Some(1 << 20));
        assert_eq!(meminfo(text, "MemFree:"), None);
        assert!(memory_available_bytes().expect("Linux tells") > 0);
    }

    #[test]
    fn this_machine_can_be_described() {
        let machine = Machine::describe(Path::new("/")).expect("the root exists");
        assert!(machine.cpus > 0 && !machine.kernel.is_empty() && machine.memory_bytes > 0);
    }
}
