//! The hybrid logical clock: stamps that follow the wall clock where they can and causality always. Pure.
//!
//! Invariants of a [`Clock`]: each stamp it gives is greater than every stamp it gave or accepted; it accepts no stamp
//! that lies more than [`DRIFT_MS_MAX`] after its own wall clock, so one node with a wrong clock cannot drag the others
//! along or win for ever.

/// A stamp: 48 bits of milliseconds since 1970, 16 bits that count within one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Hlc(pub u64);

/// Gives stamps and learns from those of others.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Clock {
    last: Hlc,
}

/// A stamp from the future. Nothing was changed, and what carries it must not be stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("stamp {stamp_ms} ms is more than {DRIFT_MS_MAX} ms after this node's clock, {wall_ms} ms")]
pub struct FutureStamp {
    pub stamp_ms: u64,
    pub wall_ms: u64,
}

impl Hlc {
    /// The first stamp of a millisecond since 1970.
    pub const fn at(wall_ms: u64) -> Self {
        Self((if wall_ms < WALL_MS_MAX { wall_ms } else { WALL_MS_MAX }) << COUNTER_BITS)
    }

    /// The stamp after `self` at `wall_ms` milliseconds since 1970. A wall clock that stands still or steps back does no
    /// harm.
    #[must_use]
    pub fn next(self, wall_ms: u64) -> Self {
        Self::at(wall_ms).max(Self(self.0.saturating_add(1)))
    }

    /// Milliseconds since 1970.
    pub const fn wall_ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// Whether a node whose clock shows `wall_ms` takes this stamp.
    pub fn check(self, wall_ms: u64) -> Result<(), FutureStamp> {
        if self.wall_ms() > wall_ms.saturating_add(DRIFT_MS_MAX) {
            return Err(FutureStamp { stamp_ms: self.wall_ms(), wall_ms });
        }
        Ok(())
    }
}

impl Clock {
    /// `last`: the greatest stamp known.
    pub const fn new(last: Hlc) -> Self {
        Self { last }
    }

    pub const fn last(self) -> Hlc {
        self.last
    }

    /// A stamp for something that happens now.
    pub fn tick(&mut self, wall_ms: u64) -> Hlc {
        self.last = self.last.next(wall_ms);
        self.last
    }

    /// Learns of a stamp another node gave. On error nothing was changed.
    pub fn observe(&mut self, stamp: Hlc, wall_ms: u64) -> Result<(), FutureStamp> {
        stamp.check(wall_ms)?;
        self.last = self.last.max(stamp);
        Ok(())
    }
}

const COUNTER_BITS: u32 = 16;
const WALL_MS_MAX: u64 = u64::MAX >> COUNTER_BITS;
/// How far another node's stamp may lie after our wall clock, milliseconds.
pub const DRIFT_MS_MAX: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stamps_grow_though_the_clock_steps_back() {
        let first = Hlc::default().next(1_000);
        let second = first.next(999);
        assert!(second > first && first == Hlc(1_000 << 16));
        assert_eq!(second.next(2_000), Hlc(2_000 << 16));
    }

    #[test]
    fn a_stamp_from_the_future_is_refused_and_changes_nothing() {
        let mut clock = Clock::new(Hlc::at(1_000));
        let before = clock;
        assert_eq!(clock.observe(Hlc::at(1_000 + DRIFT_MS_MAX), 1_000), Ok(()));
        let error = clock.observe(Hlc::at(1_001 + DRIFT_MS_MAX), 1_000).unwrap_err();
        assert_eq!(error, FutureStamp { stamp_ms: 1_001 + DRIFT_MS_MAX, wall_ms: 1_000 });
        assert!(clock.last() > before.last() && clock.last() == Hlc::at(1_000 + DRIFT_MS_MAX));
        assert!(Hlc(u64::MAX).check(4_102_444_800_000).is_err(), "even in the year 2100");
    }

    proptest! {
        #[test]
        fn every_stamp_is_after_all_that_was_seen_and_near_the_clock(
            steps in proptest::collection::vec((any::<bool>(), 0u64..200_000, any::<u32>()), 1..60),
        ) {
            let mut clock = Clock::default();
            let (mut seen, mut wall_max) = (Hlc::default(), 0);
            for (ticks, wall_ms, stamp) in steps {
                wall_max = wall_max.max(wall_ms);
                if ticks {
                    let given = clock.tick(wall_ms);
                    prop_assert!(given > seen);
                    seen = given;
                } else {
                    let stamp = Hlc(u64::from(stamp) << 4);
                    match clock.observe(stamp, wall_ms) {
                        Ok(()) => seen = seen.max(stamp),
                        Err(_) => prop_assert!(stamp.wall_ms() > wall_ms + DRIFT_MS_MAX),
                    }
                }
                prop_assert_eq!(clock.last(), seen);
                prop_assert!(seen.wall_ms() <= wall_max + DRIFT_MS_MAX + 1);
            }
        }
    }
}
