//! This process and others on the same host: who owns a run, and is the owner still alive? How
//! much of the machine has this one used?

use std::path::Path;
use std::time::Duration;

/// The name of this host, `unknown` if the system does not tell.
pub fn host_name() -> String {
    #[cfg(unix)]
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").unwrap_or_default();
    if name.is_empty() {
        "unknown".to_owned()
    } else {
        name
    }
}

/// Whether a process with this id runs on this host. Where that cannot be asked, the answer is no.
pub fn is_alive(pid: u32) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        use rustix::process::{Pid, test_kill_process};
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // A process of another user may not be signalled, which proves that it exists.
        pid.is_some_and(|pid| matches!(test_kill_process(pid), Ok(()) | Err(Errno::PERM)))
    }
    #[cfg(not(unix))]
    {
        pid == std::process::id()
    }
}

/// Asks a child process to save and stop; one that is gone already needs no asking. Does nothing
/// where there are no signals.
pub fn ask_to_stop(pid: u32) {
    #[cfg(unix)]
    {
        use rustix::process::{Pid, Signal, kill_process};
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// CPU time of all threads of this process so far. `None` where the system does not tell.
pub fn cpu_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        use rustix::time::{ClockId, clock_gettime};
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = u64::try_from(time.tv_sec).ok()?;
        Some(Duration::new(seconds, u32::try_from(time.tv_nsec).ok()?))
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// Gives the calling thread what the others of this host leave over, where a thread has a priority
/// of its own (Linux).
pub fn yield_to_other_threads() {
    // That it could not be lowered costs a little speed, no more.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, 19);
}

/// How many bytes may still be written to the file system that holds `path`. `None` where the system
/// does not tell.
pub fn free_space(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let system = rustix::fs::statvfs(path).ok()?;
        Some(system.f_bavail.saturating_mul(system.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// The most memory this process has had at a time, in bytes. `None` where the system does not tell.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_a_finished_child_is_not() {
        assert!(is_alive(std::process::id()));
        let program = std::env::current_exe().expect("the path of this test");
        let mut child = std::process::Command::new(program)
            .arg("--list")
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("a child starts");
        child.wait().expect("the child ends");
        assert!(!is_alive(child.id()));
        assert!(!is_alive(0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn work_takes_time_and_memory() {
        let before = cpu_time().expect("Linux tells");
        let buffer: Vec<u64> = (0..8 << 20).collect();
        assert_eq!(buffer.iter().max(), Some(&((8 << 20) - 1)));
        assert!(cpu_time().expect("Linux tells") > before);
        assert!(peak_memory().expect("Linux tells") >= 64 << 20);
    }

    #[test]
    fn the_host_has_a_name() {
        assert!(!host_name().is_empty());
    }
}
