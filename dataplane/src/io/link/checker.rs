//! A thread beside the link's that maps and checks snapshots, and lets go of those no shard uses any more.
//!
//! Both take long for a million routes, and frames of routes must not wait for them. (Snapshots of less than
//! [`CHECKED_HERE_BYTES`] are checked by the link thread: a change of threads costs more.) It runs at a lower priority, since it may
//! share its CPU with a shard.

use super::map_snapshot;
use crate::feed::SharedSnapshot;
use common::ids::SnapshotVersion;
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::process::{Pid, setpriority_process};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A snapshot to be checked.
pub(super) struct Check {
    /// The connection it came on, by number.
    pub connection: u64,
    pub version: SnapshotVersion,
    pub descriptor: OwnedFd,
    pub bytes: u64,
}

/// A snapshot that was checked, or why it is none.
pub(super) struct Checked {
    pub connection: u64,
    pub version: SnapshotVersion,
    pub result: Result<SharedSnapshot, String>,
}

enum Work {
    Check(Check),
    Drop(SharedSnapshot),
}

pub(super) struct Checker {
    work: Sender<Work>,
    done: Receiver<Checked>,
    is_busy: bool,
    next: VecDeque<Check>,
    /// Snapshots that were handed to the shards, the newest last.
    handed: Vec<SharedSnapshot>,
}

impl Checker {
    /// `wake` is written to after each check.
    pub fn start(wake: Arc<OwnedFd>) -> io::Result<Self> {
        let (work, works) = bounded(WORKS_MAX);
        let (done_sender, done) = bounded(1);
        std::thread::Builder::new().name("snapshots".to_owned()).spawn(move || {
            let thread = Pid::from_raw(rustix::thread::gettid().as_raw_nonzero().get());
            if let Err(error) = setpriority_process(thread, NICE) {
                tracing::debug!(%error, "could not lower the priority of the thread that checks snapshots");
            }
            run(&works, &done_sender, &wake);
        })?;
        Ok(Self { work, done, is_busy: false, next: VecDeque::new(), handed: Vec::new() })
    }

    /// Checks this one after those before it. A control plane sends one and waits, so when more than some wait, the oldest
    /// are of control planes that are gone.
    pub fn check(&mut self, check: Check) {
        self.next.push_back(check);
        if self.next.len() > CHECKS_MAX {
            self.next.pop_front();
        }
        self.go_on();
    }

    /// What was checked since the last call.
    pub fn checked(&mut self) -> Option<Checked> {
        let checked = self.done.try_recv().ok()?;
        self.is_busy = false;
        self.go_on();
        Some(checked)
    }

    /// The shards were given this snapshot. Older ones are let go of here once no shard uses them: giving back the memory of
    /// a large one would stop a shard for some milliseconds.
    pub fn handed(&mut self, snapshot: SharedSnapshot) {
        self.handed.push(snapshot);
    }

    fn go_on(&mut self) {
        if !self.is_busy
            && let Some(check) = self.next.pop_front()
        {
            // There is room: one check is under way at a time, and at most one snapshot waits to be let go of.
            self.is_busy = self.work.try_send(Work::Check(check)).is_ok();
        }
    }

    /// Lets go of one that no shard uses.
    pub fn let_go(&mut self) {
        let Some(old) = self.handed.len().checked_sub(1).filter(|_| self.work.is_empty()) else { return };
        let unused = |snapshot: &SharedSnapshot| Arc::strong_count(snapshot) == 1;
        if let Some(at) = self.handed[..old].iter().position(unused) {
            let snapshot = self.handed.remove(at);
            // There is room, as above.
            let _ = self.work.try_send(Work::Drop(snapshot));
        }
    }
}

fn run(works: &Receiver<Work>, done: &Sender<Checked>, wake: &OwnedFd) {
    for work in works {
        match work {
            Work::Drop(snapshot) => drop(snapshot),
            Work::Check(Check { connection, version, descriptor, bytes }) => {
                let result = map_snapshot(&descriptor, bytes);
                if done.send(Checked { connection, version, result }).is_err() {
                    return;
                }
                // The only possible failure is a full counter: the link thread has been woken already.
                let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
            }
        }
    }
}

/// Snapshots shorter than this, some thousand routes, are not given to the thread.
pub(super) const CHECKED_HERE_BYTES: u64 = 256 * 1_024;
/// Checks that wait for the one under way.
const CHECKS_MAX: usize = 4;
/// Work in the channel: a check, and a snapshot to be let go of.
const WORKS_MAX: usize = 2;
/// Niceness of the thread: a third of a shard's share of a CPU they both want.
const NICE: i32 = 5;
