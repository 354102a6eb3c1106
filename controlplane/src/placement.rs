//! Which CPUs the control plane runs on. Pure, but for the functions that ask and tell the kernel.

use common::config::Cores;
use rustix::io::Errno;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::io;

/// The CPUs of the shards: those of the configuration, or all `allowed`.
pub fn shard_cpus(cores: &Cores, allowed: &[u32]) -> Vec<u32> {
    match cores {
        Cores::Auto => allowed.to_vec(),
        Cores::List(cpus) => cpus.clone(),
    }
}

/// The CPUs of the control plane: those of the configuration, or those of `allowed` that no shard is pinned to, or all
/// of them.
pub fn control_cpus(control: &Cores, shards: &[u32], allowed: &[u32]) -> Vec<u32> {
    match control {
        Cores::List(cpus) => cpus.clone(),
        Cores::Auto => {
            let free: Vec<_> = allowed.iter().copied().filter(|cpu| !shards.contains(cpu)).collect();
            if free.is_empty() { allowed.to_vec() } else { free }
        }
    }
}

/// The CPUs this thread may run on.
pub fn allowed() -> io::Result<Vec<u32>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).map(|cpu| cpu as u32).collect())
}

/// Binds this thread, and those it starts from now on, to `cpus`.
pub fn bind(cpus: &[u32]) -> io::Result<()> {
    Ok(sched_setaffinity(None, &set_of(cpus)?)?)
}

/// As [`bind`], with every thread this process has: libraries have started some.
pub fn bind_all(cpus: &[u32]) -> io::Result<()> {
    let set = set_of(cpus)?;
    for entry in std::fs::read_dir("/proc/self/task")? {
        let thread = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        match thread.map_or(Ok(()), |thread| sched_setaffinity(Some(thread), &set)) {
            // It has ended meanwhile.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn set_of(cpus: &[u32]) -> io::Result<CpuSet> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        if *cpu as usize >= CpuSet::MAX_CPU {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no CPU {cpu}")));
        }
        set.set(*cpu as usize);
    }
    Ok(set)
}

/// `0-3,6`
pub fn show(cpus: &[u32]) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut rest = cpus;
    while let Some(&first) = rest.first() {
        let run = 1 + rest.windows(2).take_while(|pair| pair[0].checked_add(1) == Some(pair[1])).count();
        out.push(if run == 1 { first.to_string() } else { format!("{first}-{}", rest[run - 1]) });
        rest = &rest[run..];
    }
    out.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_plane_leaves_the_shards_alone_when_it_can() {
        let allowed = [0, 1, 2, 3];
        let shards = shard_cpus(&Cores::List(vec![0, 2]), &allowed);
        assert_eq!(control_cpus(&Cores::Auto, &shards, &allowed), [1, 3]);
        let shards = shard_cpus(&Cores::Auto, &allowed);
        assert_eq!(control_cpus(&Cores::Auto, &shards, &allowed), allowed);
        assert_eq!(control_cpus(&Cores::List(vec![2]), &shards, &allowed), [2]);
    }

    #[test]
    fn cpus_are_shown_as_they_are_written() {
        assert_eq!(show(&[0, 1, 2, 3, 6]), "0-3,6");
        assert_eq!(show(&[5]), "5");
        assert_eq!(show(&[]), "");
        assert_eq!(show(&[u32::MAX]), u32::MAX.to_string());
    }

    #[test]
    fn this_thread_may_run_somewhere_and_can_be_bound_there() {
        let all = allowed().unwrap();
        bind(&all[..1]).unwrap();
        assert_eq!(allowed().unwrap(), all[..1]);
        bind(&all).unwrap();
        assert!(bind(&[1 << 20]).is_err());
    }
}
