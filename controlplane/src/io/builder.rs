//! Building of snapshots, on a thread that gives way to others.

use super::memfd;
use crate::fold::Fold;
use rustix::process::{Pid, setpriority_process};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Lets this thread have less of a CPU than those it shares it with: the driver's, or a shard's.
pub fn lower_priority() {
    let thread = Pid::from_raw(rustix::thread::gettid().as_raw_nonzero().get());
    if let Err(error) = setpriority_process(thread, NICE) {
        tracing::debug!(%error, "could not lower the priority of the thread that builds snapshots");
    }
}

/// A sealed memory file with the snapshot, and its length in bytes.
pub fn build(fold: &Fold, seed: u64) -> io::Result<(OwnedFd, u64)> {
    let bytes = catch_unwind(AssertUnwindSafe(|| fold.build(seed)))
        .map_err(|_| io::Error::other("the builder panicked; the panic is in the log"))?;
    let bytes = bytes.as_ref();
    Ok((memfd::sealed(bytes)?, bytes.len() as u64))
}

/// Niceness of the thread: a third of another's share of a CPU they both want.
const NICE: i32 = 5;
