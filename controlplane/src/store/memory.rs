//! An engine in memory, for simulations and tests: what is committed survives a crash, and it fails as told.
//!
//! A clone is another handle on the same disk, so a test holds one while a worker owns the other; what a worker has not
//! committed is nowhere but in the worker.

use super::engine::{Engine, EngineError, Files, Found, Place, Row, Usage, Write};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Default, Debug)]
pub struct Memory(Arc<Mutex<Disk>>);

/// What is on it, and how it fails.
#[derive(Clone, Default, Debug)]
pub struct Disk {
    pub objects: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sums: BTreeMap<Vec<u8>, Vec<u8>>,
    pub meta: BTreeMap<Row, Vec<u8>>,
    /// What was set aside, by name.
    pub aside: BTreeMap<String, Vec<u8>>,
    /// A copied or restored disk gets another number.
    pub inode: u64,
    /// A commit failed; the next start begins a new epoch.
    pub marked_broken: bool,
    /// Every commit fails from now on.
    pub broken: bool,
    /// Commits of at least this many objects do not fit.
    pub full_at: Option<usize>,
    /// Objects of each commit that was tried.
    pub commits: Vec<usize>,
}

impl Memory {
    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        // A panic of a test that held it has been reported.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of all that is committed, on a disk of its own.
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.disk().clone())))
    }

    /// For [`Worker::open`](super::worker::Worker::open).
    pub fn files(&self) -> Files {
        let disk = self.disk();
        Files { inode: disk.inode, was_broken: disk.marked_broken }
    }
}

impl Engine for Memory {
    fn get(&self, place: &Place) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(self.disk().objects.get(&place[..]).cloned())
    }

    fn walk(&self, from: &[u8], found: Found<'_>) -> Result<(), EngineError> {
        let disk = self.disk();
        let _ = disk.objects.range(from.to_vec()..).try_for_each(|(key, record)| found(key, record));
        Ok(())
    }

    fn sums(&self, found: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), EngineError> {
        self.disk().sums.iter().for_each(|(row, bytes)| found(row, bytes));
        Ok(())
    }

    fn meta(&self, row: Row) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(self.disk().meta.get(&row).cloned())
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), EngineError> {
        let mut disk = self.disk();
        let objects = writes.iter().filter(|write| matches!(write, Write::Object { .. })).count();
        if disk.commits.len() < COMMITS_KEPT {
            disk.commits.push(objects);
        }
        if disk.broken {
            return Err(EngineError::Broken(io::Error::from_raw_os_error(libc::EIO).into()));
        }
        if disk.full_at.is_some_and(|full| objects >= full) {
            return Err(EngineError::Full { map_bytes: 9 });
        }
        for write in writes {
            match write {
                Write::Object { place, record } => {
                    disk.objects.insert(place.to_vec(), record.clone());
                }
                Write::Gone { place } => {
                    disk.objects.remove(&place[..]);
                }
                Write::Sum { row, bytes } => {
                    disk.sums.insert(row.clone(), bytes.clone());
                }
                Write::Meta { row, bytes } => {
                    disk.meta.insert(*row, bytes.clone());
                }
                Write::Clear => {
                    disk.objects.clear();
                    disk.sums.clear();
                }
            }
        }
        Ok(())
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }

    fn mark_broken(&mut self) {
        self.disk().marked_broken = true;
    }

    fn forget_broken(&mut self) {
        self.disk().marked_broken = false;
    }

    fn set_aside(&mut self, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        let mut disk = self.disk();
        if disk.broken {
            return Err(EngineError::Broken(io::Error::from_raw_os_error(libc::EIO).into()));
        }
        disk.aside.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }
}

/// Commits whose sizes are remembered.
const COMMITS_KEPT: usize = 1_000;
