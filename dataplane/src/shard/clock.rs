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

/// A time as in RFC 3339, such as `2026-11-21T14:40:00.25+01:00`: milliseconds since 1970-01-01 UTC, rounded down, and whether
/// nothing was lost by that. A leap second is the first of the next minute.
pub(super) fn rfc_3339(text: &str) -> Option<(i64, bool)> {
    let (date, rest) = text.as_bytes().split_at_checked(10)?;
    let (time, rest) = rest.split_at_checked(9)?;
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1] = *date else { return None };
    let [b'T' | b't' | b' ', h0, h1, b':', n0, n1, b':', s0, s1] = *time else { return None };
    let year = number(&[y0, y1])? * 100 + number(&[y2, y3])?;
    let (month, day) = (number(&[m0, m1])?, number(&[d0, d1])?);
    let (hour, minute, second) = (number(&[h0, h1])?, number(&[n0, n1])?, number(&[s0, s1])?);
    if !(1..=12).contains(&month) || !(1..=days_of(year, month)).contains(&day) {
        return None;
    }
    let (fraction, zone) = match rest {
        [b'.', rest @ ..] => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits == 0 {
                return None;
            }
            rest.split_at(digits)
        }
        _ => (&[][..], rest),
    };
    let offset_minutes = match *zone {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h0, h1, b':', m0, m1] => {
            let (hours, minutes) = (number(&[h0, h1])?, number(&[m0, m1])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if sign == b'+' { 1 } else { -1 }
        }
        _ => return None,
    };
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let digit = |at: usize| fraction.get(at).map_or(0, |digit| i64::from(digit - b'0'));
    let ms = digit(0) * 100 + digit(1) * 10 + digit(2);
    let is_whole = fraction.iter().skip(3).all(|digit| *digit == b'0');
    let minutes = (days_to(year, month, day) * 24 + hour) * 60 + minute - offset_minutes;
    Some(((minutes * 60 + second) * 1_000 + ms, is_whole))
}

fn number(digits: &[u8; 2]) -> Option<i64> {
    let [tens, ones] = *digits;
    let is_number = tens.is_ascii_digit() && ones.is_ascii_digit();
    is_number.then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date.
fn days_to(year: i64, month: i64, day: i64) -> i64 {
    // Leap days before January of a year that is not negative.
    let leaps = |year: i64| (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400;
    let years = (year - 1_970) * DAYS_1 as i64 + leaps(year) - leaps(1_970);
    years + (1..month).map(|month| days_of(year, month)).sum::<i64>() + day - 1
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
    fn times_of_rfc_3339_are_read() {
        for (text, ms, is_whole) in [
            ("1970-01-01T00:00:00Z", 0, true),
            ("1969-12-31t23:59:59.999z", -1, true),
            ("2026-11-21T14:40:00.25+01:00", 1_795_268_400_250, true),
            ("2026-11-21 13:40:00.2504-00:00", 1_795_268_400_250, false),
            ("2000-02-29T00:00:00.0000000000000001Z", 951_782_400_000, false),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000, true),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000, true),
            ("9999-12-31T23:59:59Z", 253_402_300_799_000, true),
        ] {
            assert_eq!(rfc_3339(text), Some((ms, is_whole)), "{text}");
        }
        for bad in [
            "",
            "2026-11-21",
            "2026-11-21T13:40:00",
            "2026-11-21T13:40Z",
            "2026-13-01T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T13:60:00Z",
            "2026-11-21T13:40:00.Z",
            "2026-11-21T13:40:00+1:00",
            "2026-11-21T13:40:00+24:00",
            "2026-11-21T13:40:00Z ",
            "2026-11-21T13:4\u{e9}:00Z",
            "+026-11-21T13:40:00Z",
        ] {
            assert_eq!(rfc_3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_that_are_told_read_back() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let ms = rng.u64(..253_402_300_800_000);
            assert_eq!(rfc_3339(&iso_8601(ms)), Some((ms as i64, true)));
        }
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
