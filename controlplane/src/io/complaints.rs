//! Keeps the log from being filled by whoever sends us things: each reason is told once in a while. Pure.

use std::time::{Duration, Instant};

/// `N` reasons, by number.
pub struct Complaints<const N: usize> {
    pause: Duration,
    last: [Option<Instant>; N],
    quiet: [u64; N],
}

impl<const N: usize> Default for Complaints<N> {
    fn default() -> Self {
        Self::new(COMPLAINT_PAUSE)
    }
}

impl<const N: usize> Complaints<N> {
    /// Each reason is told once in `pause`.
    pub fn new(pause: Duration) -> Self {
        Self { pause, last: [None; N], quiet: [0; N] }
    }

    /// How many of the kind were passed over, when it is to be told.
    pub fn may_tell(&mut self, now: Instant, reason: usize) -> Option<u64> {
        let (last, quiet) = (&mut self.last[reason], &mut self.quiet[reason]);
        if last.is_some_and(|last| now.saturating_duration_since(last) < self.pause) {
            *quiet += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(quiet))
    }
}

const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_once_in_a_while() {
        let (mut complaints, now) = (Complaints::<2>::default(), Instant::now());
        assert_eq!(complaints.may_tell(now, 0), Some(0));
        assert_eq!(complaints.may_tell(now, 0), None);
        assert_eq!(complaints.may_tell(now, 1), Some(0));
        assert_eq!(complaints.may_tell(now + COMPLAINT_PAUSE, 0), Some(1));
    }
}
