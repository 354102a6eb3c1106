//! Were the messages of one source to one receiver all there, once, and in order?
//!
//! Invariants: `missing` is sorted and disjoint, all of it below `expected`; every sequence number below `expected`
//! was either accepted, is in `missing`, or is counted in `forgotten`.

use std::ops::Range;

/// Gaps remembered at a time; beyond it the oldest counts as lost for good.
pub const GAPS_MAX: usize = 1_024;

/// What was seen so far.
#[derive(Clone, Default, Debug)]
pub struct Checker {
    expected: u64,
    missing: Vec<Range<u64>>,
    forgotten: u64,
    pub duplicated: u64,
    pub reordered: u64,
}

/// What one message was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// New; the `skipped` messages before it are missing so far.
    Fresh { skipped: u64 },
    /// It filled a gap: a later message overtook it.
    Late,
    /// It was there before.
    Duplicate,
}

impl Checker {
    /// Takes the message with this sequence number, of which `bits` are known.
    #[inline]
    pub fn accept(&mut self, sequence: u32, bits: u32) -> (u64, Verdict) {
        let sequence = expand(self.expected, sequence, bits);
        if sequence == self.expected {
            self.expected += 1;
            return (sequence, Verdict::Fresh { skipped: 0 });
        }
        (sequence, self.accept_unexpected(sequence))
    }

    #[cold]
    fn accept_unexpected(&mut self, sequence: u64) -> Verdict {
        if sequence > self.expected {
            let skipped = sequence - self.expected;
            if self.missing.len() == GAPS_MAX {
                let oldest = self.missing.remove(0);
                self.forgotten += oldest.end - oldest.start;
            }
            self.missing.push(self.expected..sequence);
            self.expected = sequence + 1;
            return Verdict::Fresh { skipped };
        }
        let Some(index) = self.missing.iter().position(|gap| gap.contains(&sequence)) else {
            self.duplicated += 1;
            return Verdict::Duplicate;
        };
        let gap = self.missing.remove(index);
        let rest = [gap.start..sequence, sequence + 1..gap.end];
        for part in rest.into_iter().rev().filter(|part| !part.is_empty()) {
            self.missing.insert(index, part);
        }
        self.reordered += 1;
        Verdict::Late
    }

    /// Messages that never came, of the first `sent`.
    pub fn lost(&self, sent: u64) -> u64 {
        let gaps: u64 = self.missing.iter().map(|gap| gap.end - gap.start).sum();
        gaps + self.forgotten + sent.saturating_sub(self.expected)
    }
}

/// The number nearest to `expected` whose low `bits` are `low`.
#[inline]
fn expand(expected: u64, low: u32, bits: u32) -> u64 {
    let modulus = 1u64 << bits;
    let ahead = u64::from(low).wrapping_sub(expected) & (modulus - 1);
    if ahead < modulus / 2 || expected + ahead < modulus {
        expected + ahead
    } else {
        expected + ahead - modulus
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(checker: &mut Checker, sequence: u32) -> Verdict {
        checker.accept(sequence, 32).1
    }

    #[test]
    fn in_order_is_clean() {
        let mut checker = Checker::default();
        for sequence in 0..100 {
            assert_eq!(accept(&mut checker, sequence), Verdict::Fresh { skipped: 0 });
        }
        assert_eq!((checker.lost(100), checker.duplicated, checker.reordered), (0, 0, 0));
        assert_eq!(checker.lost(103), 3, "the tail counts too");
    }

    #[test]
    fn a_gap_is_lost_until_it_is_filled() {
        let mut checker = Checker::default();
        assert_eq!(accept(&mut checker, 0), Verdict::Fresh { skipped: 0 });
        assert_eq!(accept(&mut checker, 5), Verdict::Fresh { skipped: 4 });
        assert_eq!(checker.lost(6), 4);
        assert_eq!(accept(&mut checker, 2), Verdict::Late);
        assert_eq!(accept(&mut checker, 2), Verdict::Duplicate);
        assert_eq!(accept(&mut checker, 1), Verdict::Late);
        assert_eq!(accept(&mut checker, 4), Verdict::Late);
        assert_eq!(checker.lost(6), 1);
        assert_eq!(accept(&mut checker, 3), Verdict::Late);
        assert_eq!((checker.lost(6), checker.duplicated, checker.reordered), (0, 1, 4));
    }

    #[test]
    fn a_repeated_message_is_a_duplicate() {
        let mut checker = Checker::default();
        accept(&mut checker, 0);
        assert_eq!(accept(&mut checker, 0), Verdict::Duplicate);
        assert_eq!(checker.duplicated, 1);
    }

    #[test]
    fn forgotten_gaps_stay_lost() {
        let mut checker = Checker::default();
        let gaps = GAPS_MAX as u32 + 10;
        for sequence in 0..gaps {
            accept(&mut checker, sequence * 2 + 1);
        }
        assert_eq!(checker.missing.len(), GAPS_MAX);
        assert_eq!(checker.lost(u64::from(gaps) * 2), u64::from(gaps));
        assert_eq!(accept(&mut checker, 0), Verdict::Duplicate, "no longer known to be missing");
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut checker = Checker { expected: (1 << 30) - 1, ..Checker::default() };
        assert_eq!(checker.accept((1 << 30) - 1, 30), ((1 << 30) - 1, Verdict::Fresh { skipped: 0 }));
        assert_eq!(checker.accept(0, 30), (1 << 30, Verdict::Fresh { skipped: 0 }));
        assert_eq!(checker.accept((1 << 30) - 1, 30).1, Verdict::Duplicate);
        assert_eq!(expand(0, u32::MAX, 32), u64::from(u32::MAX), "nothing lies before zero");
    }
}
