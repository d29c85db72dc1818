//! This process and others on the same host: who owns a run, and is the owner still alive?

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

    #[test]
    fn the_host_has_a_name() {
        assert!(!host_name().is_empty());
    }
}
