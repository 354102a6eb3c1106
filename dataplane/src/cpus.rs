//! Which CPUs the shards and the other threads run on.
//!
//! A CPU is *allowed* when the kernel would run this process on it. The kernel folds the cgroup's cpuset into the
//! affinity mask, so `sched_getaffinity` answers for both.

use common::config::Cores;
use common::ids::SHARDS_MAX;
use rustix::io::Errno;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::io;
use std::path::Path;

/// Why the configured CPUs cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error("could not ask which CPUs this process may run on")]
    Affinity(#[source] io::Error),
    #[error("{key} names CPU {cpu}, but this process may only run on {allowed}")]
    NotAllowed { key: &'static str, cpu: u32, allowed: String },
    #[error("cores names CPU {cpu} twice")]
    Twice { cpu: u32 },
    #[error("cores names {count} CPUs; a node has at least 1 and at most {SHARDS_MAX} shards")]
    Count { count: usize },
}

/// Where everything of the data plane runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The CPU of each shard, shard 0 first.
    pub shards: Vec<u32>,
    /// The CPUs of the threads that are no shard.
    pub helpers: Vec<u32>,
}

impl Placement {
    /// Decides from the configuration and the CPUs allowed, which must be in ascending order.
    ///
    /// `auto` takes all allowed CPUs (the first [`SHARDS_MAX`] of them) for shards; a list keeps its order. Threads
    /// that are no shard get `control`'s CPUs, or with `auto` those that no shard is pinned to, or all when there are none.
    pub fn decide(cores: &Cores, control: &Cores, allowed: &[u32]) -> Result<Self, CpuError> {
        let shards = match cores {
            Cores::Auto => allowed.iter().copied().take(SHARDS_MAX).collect(),
            Cores::List(list) => {
                check_allowed("cores", list, allowed)?;
                if let Some(cpu) = first_repeated(list) {
                    return Err(CpuError::Twice { cpu });
                }
                list.clone()
            }
        };
        if shards.is_empty() || shards.len() > SHARDS_MAX {
            return Err(CpuError::Count { count: shards.len() });
        }
        let helpers = match control {
            Cores::Auto => allowed.iter().copied().filter(|cpu| !shards.contains(cpu)).collect(),
            Cores::List(list) => {
                check_allowed("control.cpus", list, allowed)?;
                list.clone()
            }
        };
        let helpers = if helpers.is_empty() { allowed.to_vec() } else { helpers };
        Ok(Self { shards, helpers })
    }
}

/// The CPUs this process may run on, in ascending order.
pub fn allowed() -> Result<Vec<u32>, CpuError> {
    let set = sched_getaffinity(None).map_err(|error| CpuError::Affinity(error.into()))?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(|cpu| cpu as u32).collect())
}

/// Lets every thread this process has, and those they start from now on, run on `cpus` only.
pub fn restrict_process(cpus: &[u32]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus.iter().filter(|&&cpu| (cpu as usize) < CpuSet::MAX_CPU) {
        set.set(cpu as usize);
    }
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

/// The NUMA node of `cpu`; `None` on a kernel without NUMA or for a CPU that is not there.
pub fn numa_node(cpu: u32) -> Option<u32> {
    numa_node_under(Path::new("/sys/devices/system/cpu"), cpu)
}

/// The kernel links each CPU's folder to its node's as `node<N>`.
fn numa_node_under(root: &Path, cpu: u32) -> Option<u32> {
    let entries = std::fs::read_dir(root.join(format!("cpu{cpu}"))).ok()?;
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("node")?.parse().ok()).min()
}

/// CPU numbers as a list of ranges, for example `0-3,6`.
pub fn list_text(cpus: &[u32]) -> String {
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for cpu in sorted {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let texts = parts.iter().map(
        |&(first, last)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        },
    );
    texts.collect::<Vec<_>>().join(",")
}

fn check_allowed(key: &'static str, list: &[u32], allowed: &[u32]) -> Result<(), CpuError> {
    match list.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(&cpu) => Err(CpuError::NotAllowed { key, cpu, allowed: list_text(allowed) }),
        None => Ok(()),
    }
}

fn first_repeated(list: &[u32]) -> Option<u32> {
    list.iter().enumerate().find(|(index, cpu)| list[..*index].contains(cpu)).map(|(_, &cpu)| cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(cores: Cores, control: Cores, allowed: &[u32]) -> Result<Placement, String> {
        Placement::decide(&cores, &control, allowed).map_err(|error| error.to_string())
    }

    #[test]
    fn auto_takes_every_allowed_cpu_and_helpers_share_them() {
        let placement = decide(Cores::Auto, Cores::Auto, &[1, 4]).unwrap();
        assert_eq!(placement, Placement { shards: vec![1, 4], helpers: vec![1, 4] });
    }

    #[test]
    fn auto_stops_at_the_most_shards_a_node_may_have() {
        let allowed: Vec<u32> = (0..SHARDS_MAX as u32 + 5).collect();
        let placement = decide(Cores::Auto, Cores::Auto, &allowed).unwrap();
        assert_eq!(placement.shards.len(), SHARDS_MAX);
        assert_eq!(placement.helpers, [128, 129, 130, 131, 132]);
    }

    #[test]
    fn a_list_keeps_its_order_and_helpers_take_the_rest() {
        let placement = decide(Cores::List(vec![3, 0]), Cores::Auto, &[0, 1, 2, 3]).unwrap();
        assert_eq!(placement, Placement { shards: vec![3, 0], helpers: vec![1, 2] });
    }

    #[test]
    fn helpers_run_where_control_cpus_says() {
        let placement = decide(Cores::List(vec![0]), Cores::List(vec![0, 2]), &[0, 1, 2]).unwrap();
        assert_eq!(placement.helpers, [0, 2]);
    }

    #[test]
    fn a_cpu_that_is_not_allowed_is_named_with_those_that_are() {
        assert_eq!(
            decide(Cores::List(vec![0, 9]), Cores::Auto, &[0, 1, 2, 5]).unwrap_err(),
            "cores names CPU 9, but this process may only run on 0-2,5"
        );
        assert_eq!(
            decide(Cores::Auto, Cores::List(vec![7]), &[0]).unwrap_err(),
            "control.cpus names CPU 7, but this process may only run on 0"
        );
    }

    #[test]
    fn a_cpu_can_hold_one_shard_only() {
        assert_eq!(
            decide(Cores::List(vec![1, 0, 1]), Cores::Auto, &[0, 1]).unwrap_err(),
            "cores names CPU 1 twice"
        );
    }

    #[test]
    fn no_shard_and_too_many_shards_are_refused() {
        let many: Vec<u32> = (0..SHARDS_MAX as u32 + 1).collect();
        assert!(decide(Cores::List(vec![]), Cores::Auto, &[0]).is_err());
        assert!(decide(Cores::List(many.clone()), Cores::Auto, &many).is_err());
    }

    #[test]
    fn the_numa_node_is_read_from_the_link_the_kernel_makes() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("cpu6/node3")).unwrap();
        std::fs::create_dir_all(root.path().join("cpu6/topology")).unwrap();
        std::fs::create_dir_all(root.path().join("cpu7/cache")).unwrap();
        assert_eq!(numa_node_under(root.path(), 6), Some(3));
        assert_eq!(numa_node_under(root.path(), 7), None);
        assert_eq!(numa_node_under(root.path(), 8), None);
    }

    #[test]
    fn cpu_lists_are_written_as_ranges() {
        assert_eq!(list_text(&[5, 0, 1, 2, 9, 8]), "0-2,5,8-9");
        assert_eq!(list_text(&[]), "");
    }
}
