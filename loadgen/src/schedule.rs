//! When messages of an open loop are due, whatever the router does.
//!
//! The k-th message of a run is due `k / rate` after its start. Messages that could not be sent in time keep their
//! due time as the stamp, so the wait is part of their latency (no coordinated omission).

/// A fixed rate over all sources of one thread.
#[derive(Clone, Debug)]
pub struct Schedule {
    start_ns: u64,
    /// Messages per second.
    rate: f64,
    next: u64,
}

impl Schedule {
    /// `rate` is in messages per second and must be positive.
    pub fn new(start_ns: u64, rate: f64) -> Self {
        assert!(rate > 0.0, "options are checked to have a positive rate");
        Self { start_ns, rate, next: 0 }
    }

    /// When the next message is due, in nanoseconds of the run's clock.
    #[inline]
    pub fn due_ns(&self) -> u64 {
        self.start_ns + (self.next as f64 * 1e9 / self.rate) as u64
    }

    /// Index of the next message.
    #[inline]
    pub fn index(&self) -> u64 {
        self.next
    }

    /// The next message was sent.
    #[inline]
    pub fn advance(&mut self) {
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_at_the_rate() {
        let mut schedule = Schedule::new(1_000, 1e6);
        assert_eq!((schedule.index(), schedule.due_ns()), (0, 1_000));
        schedule.advance();
        assert_eq!((schedule.index(), schedule.due_ns()), (1, 2_000));
    }

    #[test]
    fn odd_rates_do_not_drift() {
        let mut schedule = Schedule::new(0, 3.0);
        for _ in 0..3_000_000 {
            schedule.advance();
        }
        assert_eq!(schedule.due_ns(), 1_000_000 * 1_000_000_000);
    }
}
