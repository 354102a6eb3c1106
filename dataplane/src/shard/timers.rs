//! A timer wheel: one entry a connection, tenths of a second, lazily moved.
//!
//! An entry that comes up is only a reason to look at its connection, which says when to look again. So a message
//! never touches the wheel.

use std::time::{Duration, Instant};

/// Time since the shard started, in [`TICK`]s.
pub(super) type Tick = u32;

pub(super) const TICK: Duration = Duration::from_millis(100);
const BUCKETS: usize = 512;

#[derive(Debug)]
pub(super) struct Timers<T> {
    start: Instant,
    buckets: Vec<Vec<T>>,
    /// Everything before this tick has come up.
    next: Tick,
    /// No entry is due before this tick; `Tick::MAX` when there is none.
    earliest: Tick,
    len: usize,
}

impl<T: Copy> Timers<T> {
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            next: 0,
            earliest: Tick::MAX,
            len: 0,
        }
    }

    pub fn tick(&self, now: Instant) -> Tick {
        (now.saturating_duration_since(self.start).as_millis() / TICK.as_millis()) as Tick
    }

    /// Ticks in `duration`, at least one.
    pub fn ticks(duration: Duration) -> Tick {
        (duration.as_millis().div_ceil(TICK.as_millis())).clamp(1, u128::from(Tick::MAX / 4)) as Tick
    }

    /// Adds an entry that comes up at `tick`, or earlier when that is further away than the wheel reaches. Returns when.
    pub fn add(&mut self, tick: Tick, entry: T) -> Tick {
        let tick = tick.clamp(self.next, self.next + BUCKETS as Tick - 1);
        self.buckets[tick as usize % BUCKETS].push(entry);
        self.earliest = self.earliest.min(tick);
        self.len += 1;
        tick
    }

    pub fn deadline(&self) -> Option<Instant> {
        (self.len > 0).then(|| self.start + TICK * self.earliest)
    }

    /// Moves every entry that is due at `now` to `due`.
    pub fn advance(&mut self, now: Tick, due: &mut Vec<T>) {
        if self.len == 0 || self.earliest > now {
            self.next = self.next.max(now);
            return;
        }
        let last = now.min(self.next + BUCKETS as Tick - 1);
        for tick in self.next..=last {
            let bucket = &mut self.buckets[tick as usize % BUCKETS];
            self.len -= bucket.len();
            due.append(bucket);
            if bucket.capacity() > 1024 {
                bucket.shrink_to(1024);
            }
        }
        self.next = now + 1;
        self.earliest = (self.next..self.next + BUCKETS as Tick)
            .find(|tick| !self.buckets[*tick as usize % BUCKETS].is_empty())
            .unwrap_or(Tick::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_up_when_due_and_never_early() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        timers.add(5, "five");
        timers.add(300, "three hundred");
        timers.add(5_000, "clamped");
        assert_eq!(timers.deadline(), Some(start + TICK * 5));
        let mut due = Vec::new();
        timers.advance(4, &mut due);
        assert!(due.is_empty());
        timers.advance(5, &mut due);
        assert_eq!(due, ["five"]);
        timers.advance(400, &mut due);
        assert_eq!(due, ["five", "three hundred"]);
        timers.advance(511, &mut due);
        assert_eq!(due.len(), 3, "an entry beyond the wheel comes up at its end, to be added again");
        assert_eq!(timers.deadline(), None);
    }

    #[test]
    fn a_long_pause_loses_nothing() {
        let mut timers = Timers::new(Instant::now());
        for tick in 1..400 {
            timers.add(tick, tick);
        }
        let mut due = Vec::new();
        timers.advance(100_000, &mut due);
        assert_eq!(due.len(), 399);
        timers.add(1, 0);
        timers.advance(100_001, &mut due);
        assert_eq!(due.len(), 400);
    }
}
