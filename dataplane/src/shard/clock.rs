//! The time of day in a machine that looks at no clock: it is told once what it was, and counts on from there.

use std::time::{Duration, Instant};

/// What the time of day was at an instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    at: Instant,
    /// Since 1970-01-01 UTC.
    unix: Duration,
}

impl Clock {
    /// Until it is told otherwise the year 1970 began at `now`.
    pub const fn new(now: Instant) -> Self {
        Self { at: now, unix: Duration::ZERO }
    }

    pub const fn set(&mut self, now: Instant, unix: Duration) {
        *self = Self { at: now, unix };
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub fn unix_ms(&self, now: Instant) -> u64 {
        (self.unix + now.saturating_duration_since(self.at)).as_millis() as u64
    }
}

const DAY_MS: u64 = 86_400_000;
/// Days of 400, 100, 4 and 1 years of the Gregorian calendar.
const DAYS_400: u64 = 146_097;
const DAYS_100: u64 = 36_524;
const DAYS_4: u64 = 1_461;
const DAYS_1: u64 = 365;
/// From 1600-03-01 to 1970-01-01. Years are counted from March, so that leap days come last.
const DAYS_TO_1970: u64 = 135_080;

/// ISO 8601, in UTC: `2026-11-21T13:40:00.000Z`.
pub(super) fn iso_8601(unix_ms: u64) -> String {
    let days = unix_ms / DAY_MS + DAYS_TO_1970;
    let (cycles, rest) = (days / DAYS_400, days % DAYS_400);
    let centuries = (rest / DAYS_100).min(3);
    let rest = rest - centuries * DAYS_100;
    let (fours, rest) = (rest / DAYS_4, rest % DAYS_4);
    let ones = (rest / DAYS_1).min(3);
    let day_of_year = rest - ones * DAYS_1;
    // From March on the months have 31, 30, 31, 30, 31 days, again and again.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = 1_600 + 400 * cycles + 100 * centuries + 4 * fours + ones + u64::from(month >= 10);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let ms = unix_ms % DAY_MS;
    let (seconds, ms) = (ms / 1_000, ms % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (1_795_268_400, "2026-11-21T13:40:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (4_107_456_000, "2100-02-28T00:00:00.000Z"),
        ] {
            assert_eq!(iso_8601(seconds * 1_000), text);
        }
        assert_eq!(iso_8601(1_001), "1970-01-01T00:00:01.001Z");
    }

    #[test]
    fn time_goes_on_from_what_was_told() {
        let now = Instant::now();
        let mut clock = Clock::new(now);
        assert_eq!(clock.unix_ms(now + Duration::from_secs(2)), 2_000);
        clock.set(now, Duration::from_secs(100));
        assert_eq!(clock.unix_ms(now + Duration::from_millis(1)), 100_001);
    }
}
