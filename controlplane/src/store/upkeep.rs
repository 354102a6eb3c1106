//! What the store does when nobody asks: it proves its records against the hash tree, a slice at a time.

use super::engine::EngineError;
use super::worker::Worker;
use super::{Settings, sums};
use crate::replica::hashtree::BUCKETS;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tracing::{error, warn};

/// When the next slice is due: so many buckets every `timer` that all are done once in `ttl`.
#[derive(Debug)]
pub struct Scrub {
    next: u16,
    timer: Duration,
    each: usize,
    /// Buckets of the current turn that are left.
    owed: usize,
    due: Option<Instant>,
}

impl Scrub {
    pub fn new(settings: &Settings) -> Self {
        let turns = settings.scrub_ttl.as_secs_f64() / settings.scrub_timer.as_secs_f64();
        let each = (BUCKETS as f64 / turns).ceil().clamp(1.0, BUCKETS as f64) as usize;
        Self { next: 0, timer: settings.scrub_timer, each, owed: 0, due: None }
    }

    pub fn begin(&mut self, now: Instant) {
        self.due = Some(now + self.timer);
    }

    /// When [`Worker::scrub_on`] is to be called.
    pub fn due(&self) -> Instant {
        self.due.unwrap_or_else(Instant::now)
    }
}

impl Worker {
    /// Scrubs the next slice. Between the slices of a turn whoever waits for the store is served.
    pub fn scrub_on(&mut self, now: Instant) {
        if self.scrub.owed == 0 {
            self.scrub.owed = self.scrub.each;
        }
        let slice = self.scrub.owed.min(SLICE_BUCKETS).min(BUCKETS - usize::from(self.scrub.next));
        self.scrub_slice(slice as u16);
        self.scrub.owed -= slice;
        if self.scrub.owed > 0 {
            self.scrub.due = Some(now);
        } else {
            self.scrub.due = Some(now + self.scrub.timer);
            self.collect();
        }
    }

    /// Computes the sums of the next few buckets from their records. A difference is damage: it is reported, and the sums
    /// follow the records, so that the bucket differs from those of other nodes and an exchange brings what is missing.
    fn scrub_slice(&mut self, slice: u16) {
        let first = self.scrub.next;
        let last = first + (slice - 1);
        self.scrub.next = last.wrapping_add(1);
        if self.poisoned {
            return;
        }
        let fresh = match sums::recompute(&*self.engine, &self.key, (first, last), |at, object| {
            self.counts(at, object)
        }) {
            Ok(fresh) => fresh,
            Err(cause) => return error!(first, %cause, "a part of the store cannot be scrubbed"),
        };
        let fresh = |bucket: u16| fresh.get(&bucket).copied().unwrap_or_default();
        let differ = |bucket: &u16| fresh(*bucket) != self.tree.bucket(*bucket);
        let buckets: Vec<_> = (first..=last).filter(differ).collect();
        self.stats.scrubbed.fetch_add(slice.into(), Relaxed);
        if buckets.is_empty() {
            return;
        }
        error!(first, buckets = buckets.len(), "the hash tree disagrees with the records: some are damaged");
        self.stats.sum_differences.fetch_add(buckets.len() as u64, Relaxed);
        let rows: Vec<_> = buckets.iter().map(|bucket| sums::row(*bucket, fresh(*bucket))).collect();
        match self.engine.commit(&rows) {
            Ok(()) => buckets.iter().for_each(|bucket| self.tree.set(*bucket, fresh(*bucket))),
            Err(EngineError::Full { .. }) => warn!(first, "no room for the sums of a scrubbed part"),
            Err(EngineError::Broken(cause)) => self.poison(&*cause),
        }
    }
}

/// Most buckets of one slice.
const SLICE_BUCKETS: usize = 64;

const _: () = assert!(BUCKETS.is_multiple_of(SLICE_BUCKETS));
