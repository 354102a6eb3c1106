//! How many bytes a second go out, and what waits for its turn. Sans-IO.
//!
//! A token bucket that may be overdrawn: what comes when it is not empty goes whole, and what follows waits until that is paid
//! for. So an item larger than the bucket goes too, and the rate holds over any longer time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Budget<T> {
    bytes_per_second: u64,
    /// When what was sent so far is paid for; before now, if the bucket is not empty.
    paid_at: Instant,
    waiting: VecDeque<(usize, T)>,
    waiting_bytes: u64,
}

impl<T> Budget<T> {
    pub fn new(now: Instant, bytes_per_second: u64) -> Self {
        let (waiting, waiting_bytes) = (VecDeque::new(), 0);
        Self { bytes_per_second: bytes_per_second.max(1), paid_at: now, waiting, waiting_bytes }
    }

    /// True when so many bytes may go now; they are counted as sent.
    pub fn spend(&mut self, now: Instant, bytes: usize) -> bool {
        let goes = self.waiting.is_empty() && self.paid_at <= now;
        if goes {
            self.pay(now, bytes);
        }
        goes
    }

    /// How long something that comes now would wait.
    pub fn delay(&self, now: Instant) -> Duration {
        self.paid_at.saturating_duration_since(now) + self.time_of(self.waiting_bytes)
    }

    pub fn push(&mut self, bytes: usize, item: T) {
        self.waiting_bytes += bytes as u64;
        self.waiting.push_back((bytes, item));
    }

    /// What waits longest, once it may go.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        if self.paid_at > now {
            return None;
        }
        let (bytes, item) = self.waiting.pop_front()?;
        self.waiting_bytes -= bytes as u64;
        self.pay(now, bytes);
        Some(item)
    }

    /// Gives up what waits and is not `wanted`.
    pub fn retain(&mut self, wanted: impl Fn(&T) -> bool) {
        self.waiting.retain(|(_, item)| wanted(item));
        self.waiting_bytes = self.waiting.iter().map(|(bytes, _)| *bytes as u64).sum();
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// When to call [`Budget::pop`].
    pub fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.paid_at)
    }

    fn pay(&mut self, now: Instant, bytes: usize) {
        let full_at = now.checked_sub(BURST).unwrap_or(now);
        self.paid_at = self.paid_at.max(full_at) + self.time_of(bytes as u64);
    }

    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second)) as u64)
    }
}

/// What a full bucket is worth.
const BURST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_over_the_rate_waits_and_goes_in_order() {
        let start = Instant::now();
        let mut budget = Budget::new(start, 1_000);
        assert!(budget.spend(start, 500));
        assert!(!budget.spend(start, 1));
        assert_eq!(budget.delay(start), SECOND / 2);
        budget.push(2_000, "a");
        budget.push(1, "b");
        assert_eq!(
            (budget.delay(start), budget.deadline()),
            (SECOND * 5 / 2 + SECOND / 1_000, Some(start + SECOND / 2))
        );
        assert_eq!(budget.pop(start + SECOND / 3), None);
        assert_eq!(budget.pop(start + SECOND / 2), Some("a"));
        assert_eq!(budget.pop(start + SECOND * 2), None, "it is not yet paid for");
        assert!(!budget.spend(start + SECOND * 9, 1), "others wait longer");
        assert_eq!(budget.pop(start + SECOND * 5 / 2), Some("b"));
        assert_eq!((budget.deadline(), budget.len()), (None, 0));
    }

    #[test]
    fn a_bucket_holds_no_more_than_a_second() {
        let start = Instant::now() + SECOND * 100;
        let mut budget = Budget::<()>::new(start, 1_000);
        let later = start + SECOND * 60;
        let sent = (0..100).filter(|_| budget.spend(later, 100)).count();
        assert_eq!(sent, 11, "ten for the second, and one on credit");
    }

    #[test]
    fn the_rate_holds_over_time() {
        let start = Instant::now();
        let (mut budget, mut rng) = (Budget::new(start, 1_000), fastrand::Rng::with_seed(1));
        let mut sent = 0;
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            while let Some(bytes) = budget.pop(now) {
                sent += bytes;
            }
            let bytes = rng.usize(1..400);
            if budget.spend(now, bytes) {
                sent += bytes;
            } else if budget.len() < 5 {
                budget.push(bytes, bytes);
            }
        }
        assert!((59_000..62_000).contains(&sent), "{sent}");
        budget.retain(|bytes| *bytes > 400);
        assert_eq!(budget.delay(start + SECOND * 120), Duration::ZERO);
    }
}
