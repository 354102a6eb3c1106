//! What the router's process uses: CPU by thread and memory, from `/proc`.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// A process to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouterProcess {
    pub pid: u32,
    /// Another node's process, whose use is added.
    pub far: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path} is not as expected")]
    Format { path: String },
}

/// CPU used, since the process began or between two looks.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CpuUse {
    /// `schedstat` (nanoseconds on the CPU) or `stat` (user and system time in clock ticks).
    pub source: &'static str,
    pub seconds: f64,
    pub threads: Vec<ThreadUse>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ThreadUse {
    pub tid: u32,
    pub name: String,
    pub seconds: f64,
}

impl RouterProcess {
    /// CPU of the process so far. The kernel's exact `schedstat` where it has it, else `stat`; both count user and
    /// system time of every thread, kernel workers of its rings included. Threads that ended are not in `schedstat`.
    ///
    /// # Errors
    /// When the process is gone or not ours to look at.
    pub fn cpu(self) -> Result<CpuUse, ProcessError> {
        let mut used = Self::cpu_of(self.pid)?;
        if let Some(far) = self.far {
            let more = Self::cpu_of(far)?;
            used.seconds += more.seconds;
            used.threads.extend(more.threads);
        }
        Ok(used)
    }

    fn cpu_of(pid: u32) -> Result<CpuUse, ProcessError> {
        let folder = format!("/proc/{pid}/task");
        let entries =
            fs::read_dir(&folder).map_err(|source| ProcessError::Read { path: folder.clone(), source })?;
        let tids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let exact = fs::metadata(format!("/proc/{pid}/schedstat")).is_ok();
        let mut threads: Vec<ThreadUse> = Vec::new();
        for tid in tids {
            let read = if exact { thread_schedstat(&folder, tid) } else { thread_stat(&folder, tid) };
            match read {
                Ok(thread) => threads.push(thread),
                // A thread that ended between the two reads.
                Err(ProcessError::Read { source, .. }) if is_gone(&source) => {}
                Err(error) => return Err(error),
            }
        }
        threads.sort_by_key(|thread| thread.tid);
        let seconds = threads.iter().map(|thread| thread.seconds).sum();
        Ok(CpuUse { source: if exact { "schedstat" } else { "stat" }, seconds, threads })
    }

    /// Memory of the process in bytes: its proportional set size.
    ///
    /// # Errors
    /// When the process is gone or not ours to look at.
    pub fn memory_bytes(self) -> Result<u64, ProcessError> {
        let path = format!("/proc/{}/smaps_rollup", self.pid);
        let text = read(&path)?;
        parse_pss(&text).ok_or(ProcessError::Format { path })
    }
}

impl CpuUse {
    /// What was used after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let earlier: BTreeMap<u32, f64> =
            before.threads.iter().map(|thread| (thread.tid, thread.seconds)).collect();
        let threads: Vec<_> = self
            .threads
            .iter()
            .map(|thread| {
                let seconds = thread.seconds - earlier.get(&thread.tid).copied().unwrap_or(0.0);
                ThreadUse { seconds: seconds.max(0.0), ..thread.clone() }
            })
            .collect();
        Self { source: self.source, seconds: threads.iter().map(|thread| thread.seconds).sum(), threads }
    }
}

/// The file is gone, or was opened before its thread ended.
fn is_gone(error: &io::Error) -> bool {
    let ended = rustix::io::Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ended)
}

fn read(path: &str) -> Result<String, ProcessError> {
    fs::read_to_string(path).map_err(|source| ProcessError::Read { path: path.to_owned(), source })
}

fn thread_schedstat(folder: &str, tid: u32) -> Result<ThreadUse, ProcessError> {
    let path = format!("{folder}/{tid}/schedstat");
    let seconds = parse_schedstat(&read(&path)?).ok_or(ProcessError::Format { path })?;
    let name = read(&format!("{folder}/{tid}/comm"))?.trim_end().to_owned();
    Ok(ThreadUse { tid, name, seconds })
}

fn thread_stat(folder: &str, tid: u32) -> Result<ThreadUse, ProcessError> {
    let path = format!("{folder}/{tid}/stat");
    let ticks_per_s = rustix::param::clock_ticks_per_second();
    let (name, ticks) = parse_stat(&read(&path)?).ok_or(ProcessError::Format { path })?;
    Ok(ThreadUse { tid, name, seconds: ticks as f64 / ticks_per_s as f64 })
}

/// Nanoseconds on the CPU, as seconds: the first field.
fn parse_schedstat(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse::<u64>().ok().map(|ns| ns as f64 / 1e9)
}

/// Name and utime + stime, fields 14 and 15; the name may hold spaces and parentheses.
fn parse_stat(text: &str) -> Option<(String, u64)> {
    let (start, end) = (text.find('(')?, text.rfind(')')?);
    let fields: Vec<&str> = text.get(end + 1..)?.split_whitespace().collect();
    let user: u64 = fields.get(11)?.parse().ok()?;
    let system: u64 = fields.get(12)?.parse().ok()?;
    Some((text.get(start + 1..end)?.to_owned(), user + system))
}

fn parse_pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let stat = "12 (a b) c) S 1 12 12 0 -1 4194304 1 2 3 4 1000 250 5 6 20 0 1 0 9 0 0";
        assert_eq!(parse_stat(stat), Some(("a b) c".into(), 1_250)));
        assert_eq!(parse_stat("12 (x"), None);
        assert_eq!(parse_schedstat("1500000000 7 8\n"), Some(1.5));
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(
            parse_pss("00-ff ---p 00 00:00 0 [rollup]\nRss:  9 kB\nPss:   2048 kB\n"),
            Some(2_048 * 1_024)
        );
        assert_eq!(parse_pss("Rss: 9 kB"), None);
    }

    #[test]
    fn our_own_process_can_be_looked_at() {
        let this = RouterProcess { pid: std::process::id(), far: None };
        let before = this.cpu().unwrap();
        assert!(before.threads.len() > 1, "the test's own thread at least");
        assert!(this.memory_bytes().unwrap() > 4_096);
        let used = this.cpu().unwrap().since(&before);
        assert!(used.seconds >= 0.0 && used.seconds < before.seconds + 60.0);
    }

    #[test]
    fn a_thread_that_has_ended_is_gone_by_either_error() {
        let gone = |number| is_gone(&io::Error::from_raw_os_error(number));
        assert!(
            gone(rustix::io::Errno::SRCH.raw_os_error()) && gone(rustix::io::Errno::NOENT.raw_os_error())
        );
        assert!(!gone(rustix::io::Errno::ACCESS.raw_os_error()));
    }

    #[test]
    fn new_threads_count_from_zero() {
        let thread = |tid, seconds| ThreadUse { tid, name: "t".into(), seconds };
        let before = CpuUse { source: "stat", seconds: 5.0, threads: vec![thread(1, 5.0)] };
        let after = CpuUse { source: "stat", seconds: 8.0, threads: vec![thread(1, 6.0), thread(2, 2.0)] };
        assert_eq!(after.since(&before).seconds, 3.0);
    }
}
