//! When publications were made, in one order for all nodes: a hybrid logical clock (Kulkarni et al. 2014, "Logical Physical
//! Clocks"). The shard a publication came in on stamps it, and every copy of it keeps that stamp.
//!
//! Invariant: the stamps a shard gives ascend, and follow those of publications that were delivered on it before.

/// How far ahead of this node's time of day another's stamp is followed.
const AHEAD_MS_MAX: u64 = 60_000;
/// Bits below the milliseconds.
const COUNT_BITS: u32 = 16;
const MS_MAX: u64 = u64::MAX >> COUNT_BITS;

/// The stamps of one shard.
#[derive(Debug, Default)]
pub(in crate::shard) struct Stamps {
    last: u64,
}

impl Stamps {
    /// Greater than all before. `unix_ms`: since 1970-01-01 UTC.
    pub fn next(&mut self, unix_ms: u64) -> u64 {
        self.last = first_of(unix_ms).max(self.last.saturating_add(1));
        self.last
    }

    /// A publication that was stamped elsewhere is known here: what is published from now on comes after it.
    pub fn follow(&mut self, stamp: u64, unix_ms: u64) {
        if stamp <= last_of(unix_ms.saturating_add(AHEAD_MS_MAX)) {
            self.last = self.last.max(stamp);
        }
    }
}

/// Milliseconds since 1970-01-01 UTC.
pub(in crate::shard) const fn ms_of(stamp: u64) -> u64 {
    stamp >> COUNT_BITS
}

/// The first stamp of a millisecond.
pub(in crate::shard) fn first_of(unix_ms: u64) -> u64 {
    unix_ms.min(MS_MAX) << COUNT_BITS
}

/// The last one.
pub(in crate::shard) fn last_of(unix_ms: u64) -> u64 {
    first_of(unix_ms) | ((1 << COUNT_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_ascend_whatever_the_clock_does() {
        let mut stamps = Stamps::default();
        let (one, two) = (stamps.next(5), stamps.next(5));
        assert!(one < two && ms_of(one) == 5 && ms_of(two) == 5);
        let back = stamps.next(3);
        assert!(back > two && ms_of(stamps.next(9)) == 9);
    }

    #[test]
    fn what_was_heard_of_comes_before_what_is_said_unless_it_is_far_ahead() {
        let mut stamps = Stamps::default();
        stamps.follow(first_of(2_000), 1_000);
        assert!(stamps.next(1_000) > first_of(2_000));
        stamps.follow(first_of(1_000 + AHEAD_MS_MAX + 1), 1_000);
        assert!(ms_of(stamps.next(1_000)) == 2_000);
        stamps.follow(u64::MAX, u64::MAX);
        assert_eq!(stamps.next(u64::MAX), u64::MAX);
    }
}
