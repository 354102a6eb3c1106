//! What one thread counted, and sums of that.

use hdrhistogram::Histogram;

/// Largest latency told apart, in nanoseconds.
pub const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// Counts over a whole run; latencies over its measured part only.
#[derive(Debug)]
pub struct Tally {
    /// Messages given to the router: PUBLISH or CALL.
    pub sent: u64,
    /// Messages that arrived for the first time: EVENT or RESULT.
    pub delivered: u64,
    /// PUBLISHED answers.
    pub acknowledged: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Messages that a later one of the same source had overtaken.
    pub reordered: u64,
    /// Results that a later one had overtaken; WAMP allows it.
    pub results_reordered: u64,
    /// Messages whose payload was not what was sent.
    pub corrupt: u64,
    /// Messages for another receiver.
    pub misrouted: u64,
    /// ERROR answers.
    pub refused: u64,
    /// Sessions opened again by churn.
    pub renewed: u64,
    /// The first thing that went wrong, in words.
    pub first_fault: Option<String>,
    /// Nanoseconds.
    pub latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are valid");
        Self {
            sent: 0,
            delivered: 0,
            acknowledged: 0,
            lost: 0,
            duplicated: 0,
            reordered: 0,
            results_reordered: 0,
            corrupt: 0,
            misrouted: 0,
            refused: 0,
            renewed: 0,
            first_fault: None,
            latency,
        }
    }
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.results_reordered += other.results_reordered;
        self.corrupt += other.corrupt;
        self.misrouted += other.misrouted;
        self.refused += other.refused;
        self.renewed += other.renewed;
        if self.first_fault.is_none() {
            self.first_fault.clone_from(&other.first_fault);
        }
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
    }

    /// Remembers the first fault.
    #[cold]
    pub fn fault(&mut self, what: impl FnOnce() -> String) {
        self.first_fault.get_or_insert_with(what);
    }

    /// True when every message arrived once, whole, in order and where it belonged.
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.corrupt + self.misrouted + self.refused == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_keep_every_count_and_the_first_fault() {
        let mut one = Tally { sent: 1, lost: 2, ..Tally::default() };
        one.latency.saturating_record(5);
        let mut two = Tally { sent: 10, reordered: 1, ..Tally::default() };
        two.fault(|| "first".into());
        two.fault(|| "second".into());
        two.latency.saturating_record(u64::MAX);
        one.add(&two);
        assert_eq!((one.sent, one.lost, one.reordered, one.latency.len()), (11, 2, 1, 2));
        assert_eq!(one.first_fault.as_deref(), Some("first"));
        assert!(!one.is_clean());
        assert!(Tally { results_reordered: 4, ..Tally::default() }.is_clean());
    }
}
