//! Threads: named, pinned, and never outlived by the process when they panic.

use std::sync::Once;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::error::{Errno, RuntimeError};
use crate::placement::{self, CpuId};

/// Starts a thread that carries `name`, runs on `cpu` alone if one is given (else where its
/// starter may run), and aborts the process if `f` panics.
///
/// Returns once the thread is pinned, so that whatever `f` touches first is local to its CPU.
///
/// # Errors
/// Fails if the CPU is not allowed to this process or the kernel refuses the thread.
pub fn spawn<T, F>(name: &str, cpu: Option<CpuId>, f: F) -> Result<JoinHandle<T>, RuntimeError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let not_allowed = |cpu: CpuId| RuntimeError::CpuNotAllowed { thread: name.into(), cpu: cpu.0 };
    if let Some(cpu) = cpu
        && cpu.0 >= placement::CPUS_MAX
    {
        return Err(not_allowed(cpu));
    }
    let (pinned_sender, pinned) = sync_channel(1);
    let body = move || {
        let guard = AbortOnUnwind;
        let done = cpu.is_none_or(|cpu| {
            core_affinity::set_for_current(core_affinity::CoreId { id: cpu.0 as usize })
        });
        pinned_sender.send(done).expect("the starter waits for this message");
        let result = f();
        drop(guard);
        result
    };
    let handle = Builder::new().name(name.to_owned()).spawn(body).map_err(|error| {
        RuntimeError::System { operation: "start a thread", errno: Errno::of(&error) }
    })?;
    match (pinned.recv(), cpu) {
        (Ok(true), _) => Ok(handle),
        (Ok(false), Some(cpu)) => Err(not_allowed(cpu)),
        _ => unreachable!("the thread reports once, and only a given CPU can fail"),
    }
}

/// Sleeps for `duration`. For tools and start-up only: a core waits in its ring.
pub fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// Gives the calling thread the least weight among ordinary threads, for good: it then runs in
/// the time that cores leave, and hardly delays one that shares its CPU.
pub fn yield_to_others() {
    const NICE_MAX: libc::c_int = 19;
    // SAFETY: takes no memory; 0 is the calling thread. Lowering one's own weight cannot fail.
    let lowered = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE_MAX) };
    assert_eq!(lowered, 0, "every thread may lower its own weight");
}

/// From now on every panic of any thread prints its message and place and aborts the process:
/// another zone takes over. Calling it again changes nothing.
pub fn install_abort_on_panic() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let thread = std::thread::current();
            eprintln!("abort: thread {}: {info}", thread.name().unwrap_or("unnamed"));
            std::process::abort();
        }));
    });
}

/// Aborts if it is dropped by unwinding: a thread of ours never dies alone, whatever the build's
/// panic strategy.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn is_named_and_pinned() {
        let cpu = *placement::cpus_allowed().expect("affinity").last().expect("one CPU");
        let handle = spawn("pinned-test", Some(cpu), || {
            let name = std::thread::current().name().map(str::to_owned);
            (name, placement::cpus_allowed().expect("affinity"))
        });
        let (name, cpus) = handle.expect("spawn").join().expect("join");
        assert_eq!(name.as_deref(), Some("pinned-test"));
        assert_eq!(cpus, vec![cpu]);
    }

    #[test]
    fn refuses_a_cpu_that_is_not_allowed() {
        for cpu in [placement::CPUS_MAX - 1, 100_000] {
            let error = spawn("nowhere", Some(CpuId(cpu)), || ()).expect_err("no such CPU");
            assert!(error.to_string().contains(&format!("CPU {cpu}")), "{error}");
        }
    }

    /// Runs one of the ignored tests below in a process of its own.
    fn run_alone(test: &str) -> (Option<i32>, String) {
        let program = std::env::current_exe().expect("test binary");
        let output = Command::new(program)
            .args([test, "--exact", "--ignored", "--nocapture"])
            .output()
            .expect("run");
        (output.status.signal(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    #[ignore = "aborts; run by panic_of_a_thread_aborts"]
    fn child_thread_panics() {
        let handle = spawn("doomed", None, || panic!("one thread fell")).expect("spawn");
        handle.join().expect("never reached");
    }

    #[test]
    fn panic_of_a_thread_aborts() {
        let (signal, text) = run_alone("thread::tests::child_thread_panics");
        assert_eq!(signal, Some(libc::SIGABRT), "{text}");
        assert!(text.contains("one thread fell"), "{text}");
    }

    #[test]
    #[ignore = "aborts; run by hook_prints_and_aborts"]
    fn child_hook() {
        install_abort_on_panic();
        install_abort_on_panic();
        panic!("told to fall");
    }

    #[test]
    fn hook_prints_and_aborts() {
        let (signal, text) = run_alone("thread::tests::child_hook");
        assert_eq!(signal, Some(libc::SIGABRT), "{text}");
        assert!(text.contains("told to fall") && text.contains("thread.rs"), "{text}");
    }
}
