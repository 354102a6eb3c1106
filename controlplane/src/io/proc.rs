//! What the kernel says about processes: memory and CPU time.

use std::path::PathBuf;

/// Bytes of memory in use by a process (resident set); none when it is gone.
pub fn memory_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/statm"))).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Seconds of CPU time a process has used, user and system.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).ok()?;
    // The second field is a name in parentheses that may hold anything (proc_pid_stat(5)).
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_use_memory_and_nobody_is_process_zero() {
        assert!(memory_bytes(std::process::id()).unwrap() > 100_000);
        assert!(cpu_seconds(std::process::id()).is_some());
        assert_eq!((memory_bytes(0), cpu_seconds(0)), (None, None));
    }
}
