//! Which packets of a node were seen already. Pure.
//!
//! A node numbers its packets from 1 in each life. A packet counts once; one that is older than the window, or from an
//! earlier life, does not count at all.

/// The packets of one node.
#[derive(Clone, Debug)]
pub struct Window {
    epoch: u64,
    /// The greatest number seen.
    top: u64,
    /// Bit `n % WINDOW` is set when number `n`, of the last [`WINDOW`] up to `top`, was seen.
    seen: [u64; WORDS],
}

impl Window {
    pub fn new(epoch: u64) -> Self {
        Self { epoch, top: 0, seen: [0; WORDS] }
    }

    /// True when the packet is new.
    pub fn take(&mut self, epoch: u64, number: u64) -> bool {
        if epoch > self.epoch {
            *self = Self::new(epoch);
        }
        if epoch < self.epoch || number == 0 || self.top.saturating_sub(number) >= WINDOW {
            return false;
        }
        if number > self.top {
            // The places of numbers that were skipped belong to packets of one window ago.
            if number - self.top >= WINDOW {
                self.seen = [0; WORDS];
            } else {
                (self.top + 1..=number).for_each(|passed| self.set(passed, false));
            }
            self.top = number;
        } else if self.is_set(number) {
            return false;
        }
        self.set(number, true);
        true
    }

    fn place(number: u64) -> (usize, u64) {
        let bit = number % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn is_set(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        self.seen[word] & bit != 0
    }

    fn set(&mut self, number: u64, to: bool) {
        let (word, bit) = Self::place(number);
        if to {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
    }
}

/// How far a packet may be behind. A node's numbers count its packets to all others, so a delay of one of them looks long.
const WINDOW: u64 = 1_024;
const WORDS: usize = (WINDOW / 64) as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn an_earlier_life_is_over() {
        let mut window = Window::new(5);
        assert!(window.take(5, 9) && window.take(6, 9) && !window.take(5, 10) && !window.take(6, 9));
        assert!(window.take(6, u64::MAX) && !window.take(6, u64::MAX) && !window.take(6, 10));
    }

    proptest! {
        #[test]
        fn a_packet_counts_once_unless_it_is_too_old(numbers in proptest::collection::vec(1u64..5_000, 0..400)) {
            let mut window = Window::new(1);
            let (mut seen, mut top) = (HashSet::new(), 0u64);
            for number in numbers {
                let new = top.saturating_sub(number) < WINDOW && seen.insert(number);
                top = top.max(number);
                prop_assert_eq!(window.take(1, number), new);
            }
        }
    }
}
