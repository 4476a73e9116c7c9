//! Discovery on recorded machines.

use crate::recorded::{Recorded, SMALL, reference, threaded};
use spillway_hwprofile::{DiscoverError, discover};
use std::collections::BTreeSet;
use std::path::Path;

fn allowed(machine: &spillway_hwprofile::Machine) -> Vec<u32> {
    machine.cpus_allowed().map(|cpu| cpu.id).collect()
}

#[test]
fn a_small_virtual_machine() {
    let machine = Recorded::new(SMALL).discover("/var/lib/spillway/log", "/var/lib/spillway/data");
    assert_eq!(allowed(&machine), [0, 1]);
    assert_eq!(machine.memory.total_bytes, 24_684_092 << 10);
    assert_eq!(machine.memory.huge_pages_transparent, "madvise");
    assert_eq!(machine.memory.locked_bytes_max, Some(8 << 20));
    assert_eq!(machine.memory.nodes[0].total_bytes, 24_684_092 << 10);
    let disk = machine.log.device.as_ref().expect("a disk");
    assert_eq!((disk.name.as_str(), disk.total_bytes), ("vda", 256 << 30));
    assert_eq!((disk.logical_block_bytes, disk.physical_block_bytes), (512, 4096));
    assert!(disk.write_back && !disk.fua && !disk.rotational && !disk.durable_by_itself());
    assert_eq!(disk.node, None);
    assert!(machine.log_shares_disk());
    // The directory does not exist yet: its path stays, its mount is found.
    assert_eq!(machine.log.path, Path::new("/var/lib/spillway/log"));
    assert_eq!(machine.log.mount_point, Path::new("/"));
}

#[test]
fn two_sockets_two_disks() {
    let machine = reference().discover("/srv/log", "/srv/data");
    assert_eq!(allowed(&machine), (0..32).collect::<Vec<_>>());
    assert_eq!(machine.nodes_allowed(), BTreeSet::from([0, 1]));
    assert_eq!(machine.cpus[20].package, 1);
    assert_eq!(machine.cpus[20].node, 1);
    let (log, data) = (machine.log.device.clone(), machine.data.device.clone());
    let (log, data) = (log.expect("a disk"), data.expect("a disk"));
    assert_eq!((log.name.as_str(), log.node), ("nvme0n1", Some(1)), "the disk, not its partition");
    assert_eq!((data.name.as_str(), data.node), ("nvme1n1", Some(0)));
    assert!(log.write_back && log.fua && log.durable_by_itself());
    assert!(!data.write_back && data.durable_by_itself());
    assert_eq!(log.physical_block_bytes, 4096, "not said: as large as the logical block");
    assert!(!machine.log_shares_disk());
    assert_eq!(machine.memory.locked_bytes_max, None);
    assert_eq!(machine.memory.nodes[1].huge_pages_free, 32_768);
}

#[test]
fn an_offline_cpu_is_not_allowed() {
    let recorded = Recorded::new(SMALL);
    recorded.file("proc/self/status", "Cpus_allowed_list:\t0-3");
    recorded.file("sys/devices/system/cpu/present", "0-3");
    recorded.file("sys/devices/system/cpu/online", "0,2-3");
    let machine = recorded.discover("/a", "/b");
    assert_eq!(allowed(&machine), [0, 2, 3]);
    assert!(!machine.cpus[1].online);
}

#[test]
fn the_affinity_mask_narrows() {
    let recorded = reference();
    recorded.file("proc/self/status", "Cpus_allowed_list:\t4-7,20-21");
    let machine = recorded.discover("/srv/log", "/srv/data");
    assert_eq!(allowed(&machine), [4, 5, 6, 7, 20, 21]);
    assert_eq!(machine.cpus.len(), 32);
}

#[test]
fn siblings_are_seen() {
    let machine = threaded().discover("/a", "/b");
    assert_eq!(machine.cpus[3].siblings, BTreeSet::from([3, 11]));
    assert_eq!(machine.cpus[11].siblings, BTreeSet::from([3, 11]));
}

#[test]
fn limits_of_groups_version_2() {
    let recorded = reference();
    let mounts = "27 1 259:9 / / rw - ext4 /dev/nvme2n1 rw\n\
                  28 27 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
    recorded.file("proc/self/mountinfo", mounts);
    let group = "sys/fs/cgroup/system.slice/spillway.service";
    recorded.file(&format!("{group}/cpu.max"), "max 100000");
    recorded.file(&format!("{group}/memory.max"), "68719476736");
    recorded.file("sys/fs/cgroup/system.slice/cpu.max", "450000 100000");
    recorded.file("sys/fs/cgroup/system.slice/memory.max", "max");
    let machine = recorded.discover("/a", "/b");
    assert_eq!(machine.limits.cpus, Some(4.5), "the group around it limits too");
    assert_eq!(machine.limits.memory_bytes, Some(64 << 30));
    assert_eq!(machine.memory_bytes_usable(), 64 << 30);
}

#[test]
fn limits_of_groups_version_1_in_a_container() {
    let recorded = Recorded::new(SMALL);
    let mounts = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
                  31 27 0:30 /box/7 /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                  32 27 0:31 /box/7 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
    recorded.file("proc/self/mountinfo", mounts);
    recorded.file("proc/self/cgroup", "5:cpu,cpuacct:/box/7\n4:memory:/box/7\n0::/");
    recorded.file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000");
    recorded.file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
    recorded.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
    let machine = recorded.discover("/a", "/b");
    assert_eq!(machine.limits.cpus, Some(1.5));
    assert_eq!(machine.limits.memory_bytes, None, "near 2^63 means no limit");
}

#[test]
fn stacked_devices_lead_to_their_disks() {
    let recorded = Recorded::new(SMALL);
    let mounts = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
                  33 27 253:0 / /srv rw - xfs /dev/mapper/vg-log rw\n\
                  34 27 0:50 / /tmp rw - tmpfs tmpfs rw";
    recorded.file("proc/self/mountinfo", mounts);
    let volume = "sys/devices/virtual/block/dm-0";
    recorded.file(&format!("{volume}/size"), "1000");
    recorded.link(&format!("{volume}/slaves/vda"), "../../../../virtio0/block/vda");
    recorded.link("sys/dev/block/253:0", "../../devices/virtual/block/dm-0");
    let machine = recorded.discover("/srv/log", "/data");
    assert!(machine.log_shares_disk(), "the volume lies on vda, as the data does");
    let machine = recorded.discover("/tmp/log", "/data");
    assert_eq!(machine.log.device, None);
    assert_eq!(machine.log.filesystem, "tmpfs");
    assert!(machine.log_shares_disk(), "unknown is taken for shared");
}

#[test]
fn a_device_that_says_nothing_is_taken_to_have_a_cache() {
    let recorded = Recorded::new(
        "
        proc/self/status = Cpus_allowed_list: 0
        proc/self/mountinfo = 27 1 8:0 / / rw - ext4 /dev/sda rw
        sys/dev/block/8:0/size = 8
        ",
    );
    let machine = recorded.discover("/a", "/b");
    let disk = machine.log.device.expect("a disk");
    assert!(disk.write_back && !disk.fua);
    assert_eq!((disk.logical_block_bytes, disk.physical_block_bytes), (512, 512));
    assert_eq!(machine.cpus.len(), 1, "without /sys the mask is all there is");
}

#[test]
fn errors_name_their_cause() {
    let recorded = Recorded::new("proc/self/status = Name: x");
    let error = discover(recorded.root(), Path::new("/a"), Path::new("/b"));
    assert_eq!(error, Err(DiscoverError::NoProc));
    let recorded = Recorded::new("proc/self/status = Cpus_allowed_list: 0");
    let error = discover(recorded.root(), Path::new("/a"), Path::new("/b"));
    assert_eq!(error, Err(DiscoverError::NoMount { path: "/a".into() }));
}

#[test]
fn this_machine() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let machine = discover(Path::new("/"), directory.path(), directory.path()).expect("a machine");
    assert!(machine.cpus_allowed().count() >= 1);
    assert!(machine.memory.total_bytes > 0);
    assert!(machine.log_shares_disk());
    assert!(!machine.kernel.is_empty());
}
