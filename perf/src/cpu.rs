//! Which CPUs there are, who runs where, and how much of them was used.

use std::io;
use std::mem;

/// The CPUs this process may use, ascending.
pub fn allowed() -> Vec<usize> {
    // SAFETY: a `cpu_set_t` is a plain array of bits, all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    let result =
        unsafe { libc::sched_getaffinity(0, mem::size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result != 0 {
        return vec![0];
    }
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the index is below the size of the set.
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect()
}

/// Binds the calling thread, and children it starts later, to these CPUs. Allocates nothing, so
/// that it may be called between fork and exec.
pub fn bind(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: a `cpu_set_t` is a plain array of bits, all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    for &cpu in cpus {
        assert!(cpu < libc::CPU_SETSIZE as usize, "CPUs come from `allowed`");
        // SAFETY: the index is below the size of the set, as asserted.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    let result =
        unsafe { libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How much later than asked the calling thread may wake up; 0 is the system's default of 50 us.
pub fn timer_slack(nanos: u64) {
    // SAFETY: this call has no pointers. It cannot fail, and precision is all that depends on it.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, nanos) };
}

/// CPU time of a running process, nanoseconds; none once it has ended.
pub fn process_ns(process: u32) -> Option<u64> {
    let process = libc::pid_t::try_from(process).ok()?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid place for the result.
    if unsafe { libc::clock_getcpuclockid(process, &raw mut clock) } != 0 {
        return None;
    }
    clock_ns(clock)
}

/// CPU time of this process, nanoseconds.
pub fn own_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0)
}

fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cpu_time_is_seen_from_both_sides() {
        assert!(!allowed().is_empty());
        let before = own_ns();
        let seen = process_ns(std::process::id()).expect("this process runs");
        assert!(before > 0 && seen >= before);
        assert_eq!(process_ns(u32::MAX), None);
    }
}
