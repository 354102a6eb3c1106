//! The small languages inside values: sizes, times, CPU lists, names.

use super::Cores;
use super::schema::CPU_MAX;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Units of sizes, smallest first.
pub(super) const SIZE_UNITS: &[(&str, u64)] =
    &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Units of times, smallest first.
pub(super) const TIME_UNITS: &[(&str, Duration)] = &[
    ("us", Duration::from_micros(1)),
    ("ms", Duration::from_millis(1)),
    ("s", Duration::from_secs(1)),
    ("m", Duration::from_secs(60)),
    ("h", Duration::from_secs(60 * 60)),
    ("d", Duration::from_secs(24 * 60 * 60)),
    ("w", Duration::from_secs(7 * 24 * 60 * 60)),
];

/// Bytes of `4MiB`.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    number.checked_mul(unit_of(SIZE_UNITS, unit)?)
}

/// The time of `250ms`.
pub(super) fn time(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    unit_of(TIME_UNITS, unit)?.checked_mul(u32::try_from(number).ok()?)
}

/// A decimal number and what follows it; a space between them is allowed.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

fn unit_of<T: Copy>(units: &[(&str, T)], name: &str) -> Option<T> {
    units.iter().find(|(unit, _)| *unit == name).map(|(_, value)| *value)
}

/// The CPUs of `0-3,6`, ascending and each once.
fn cpus(text: &str) -> Option<Vec<u32>> {
    let mut set = [false; CPU_MAX as usize + 1];
    for part in text.split(',') {
        let part = part.trim();
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (cpu(first)?, cpu(last)?);
        if first > last {
            return None;
        }
        set[first as usize..=last as usize].fill(true);
    }
    Some((0..=CPU_MAX).filter(|cpu| set[*cpu as usize]).collect())
}

fn cpu(text: &str) -> Option<u32> {
    let text = text.trim();
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|cpu| plain && *cpu <= CPU_MAX)
}

/// `auto`, or CPU numbers and ranges; how many there may be is checked where the list is used.
impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "auto" {
            return Ok(Self::Auto);
        }
        cpus(text).map(Self::List).ok_or_else(|| {
            format!("allowed: auto, or CPUs from 0 to {CPU_MAX} and ranges of them, such as 0-3,6")
        })
    }
}

/// What [`Cores::from_str`] reads: `auto` or the shortest list of ranges.
impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::List(cpus) = self else {
            return f.write_str("auto");
        };
        let mut separator = "";
        for run in cpus.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            match run {
                [one] => write!(f, "{separator}{one}")?,
                [first, .., last] => write!(f, "{separator}{first}-{last}")?,
                [] => {}
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_binary_units_or_none() {
        assert_eq!(size("4MiB"), Some(4 << 20));
        assert_eq!(size("64 KiB"), Some(64 << 10));
        assert_eq!(size("16TiB"), Some(16 << 40));
        for wrong in ["", "MiB", "4", "4MB", "4mib", "-1KiB", "1.5KiB", "+1KiB", "99999999999999TiB"] {
            assert_eq!(size(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(time("10s"), Some(Duration::from_secs(10)));
        assert_eq!(time("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(time("2h"), Some(Duration::from_secs(7_200)));
        assert_eq!(time("1w"), Some(Duration::from_secs(604_800)));
        for wrong in ["", "10", "s", "10S", "10 sec", "-1s", "1e3s", "18446744073709551616s"] {
            assert_eq!(time(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn cpu_lists_are_sorted_and_name_each_cpu_once() {
        assert_eq!("auto".parse(), Ok(Cores::Auto));
        assert_eq!("6, 0-3,2".parse(), Ok(Cores::List(vec![0, 1, 2, 3, 6])));
        for wrong in ["", ",", "3-1", "1024", "0-", "a", "1,,2", "+1", "0-4294967296"] {
            assert!(wrong.parse::<Cores>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn cores_read_back_what_they_show(mut cpus in proptest::collection::vec(0..=CPU_MAX, 1..40)) {
            cpus.sort_unstable();
            cpus.dedup();
            let cores = Cores::List(cpus);
            prop_assert_eq!(cores.to_string().parse(), Ok(cores));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = (size(&text), time(&text), text.parse::<Cores>());
        }
    }
}
