//! Which topics of a realm keep a history of their events (WAMP, advanced profile, "Event History").

use crate::ids::Match;
use crate::uri::{UriRule, is_reserved, is_valid_pattern};
use rkyv::{Archive, Deserialize, Serialize};

/// Histories of one realm.
pub const HISTORIES_MAX: usize = 32;
/// Events of one history.
pub const HISTORY_EVENTS_MAX: u32 = 100_000;
/// Least and most bytes of one history.
pub const HISTORY_BYTES: (u64, u64) = (1 << 10, 1 << 40);

/// A subscription whose events are kept, and how many of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub struct History {
    pub policy: Match,
    pub uri: String,
    /// The last so many events; each node keeps as many.
    pub events_max: u32,
    /// The last events that together take no more bytes.
    pub bytes_max: u64,
    /// Only events that are no older, milliseconds; 0: of any age.
    pub age_max_ms: u64,
}

/// Why a realm cannot have such histories. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("a realm may have {HISTORIES_MAX} histories")]
    Count,
    #[error("{uri:?} is not a topic to keep a history of, by the policy {policy}, or belongs to the router")]
    Uri { uri: String, policy: &'static str },
    #[error("{uri:?} has two histories")]
    Twice { uri: String },
    #[error(
        "a history has 1 to {HISTORY_EVENTS_MAX} events and {} bytes to {} bytes",
        HISTORY_BYTES.0, HISTORY_BYTES.1
    )]
    Bounds,
}

impl History {
    /// With the bounds of one that says nothing of them.
    pub fn of(policy: Match, uri: &str) -> Self {
        Self { policy, uri: uri.to_owned(), events_max: 1_000, bytes_max: 16 << 20, age_max_ms: 0 }
    }

    /// Puts histories in order and checks them.
    ///
    /// # Errors
    /// One is of no topic, beyond a bound, or there twice, or they are too many.
    pub fn check_all(histories: &mut [Self]) -> Result<(), HistoryError> {
        if histories.len() > HISTORIES_MAX {
            return Err(HistoryError::Count);
        }
        histories.sort();
        for history in &*histories {
            let Self { policy, uri, events_max, bytes_max, .. } = history;
            if !is_valid_pattern(uri, *policy, UriRule::Loose) || is_reserved(uri) {
                return Err(HistoryError::Uri { uri: uri.clone(), policy: policy.name() });
            }
            if !(1..=HISTORY_EVENTS_MAX).contains(events_max)
                || !(HISTORY_BYTES.0..=HISTORY_BYTES.1).contains(bytes_max)
            {
                return Err(HistoryError::Bounds);
            }
        }
        let same = |pair: &[Self]| (pair[0].policy, &pair[0].uri) == (pair[1].policy, &pair[1].uri);
        match histories.windows(2).find(|pair| same(pair)) {
            Some(pair) => Err(HistoryError::Twice { uri: pair[0].uri.clone() }),
            None => Ok(()),
        }
    }

    /// What it takes in messages and records beside its URI, rounded up.
    pub const HEAD_BYTES: usize = 48;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_are_of_topics_and_bounded() {
        let good = [History::of(Match::Wildcard, "a..c"), History::of(Match::Exact, "a.b")];
        let mut sorted = good.clone();
        assert_eq!(History::check_all(&mut sorted), Ok(()));
        assert_eq!(sorted[0].policy, Match::Exact);
        let uri = |policy: Match, uri: &str| History::check_all(&mut [History::of(policy, uri)]);
        for (policy, bad) in [(Match::Exact, "a..b"), (Match::Exact, "wamp.a"), (Match::Prefix, "wamp")] {
            assert!(matches!(uri(policy, bad), Err(HistoryError::Uri { .. })), "{bad}");
        }
        let mut twice = [good[0].clone(), History { events_max: 1, ..good[0].clone() }];
        assert!(matches!(History::check_all(&mut twice), Err(HistoryError::Twice { .. })));
        for wrong in [
            History { events_max: 0, ..good[0].clone() },
            History { events_max: HISTORY_EVENTS_MAX + 1, ..good[0].clone() },
            History { bytes_max: 1, ..good[0].clone() },
        ] {
            assert_eq!(History::check_all(&mut [wrong]), Err(HistoryError::Bounds));
        }
        let mut many: Vec<_> =
            (0..=HISTORIES_MAX).map(|n| History::of(Match::Exact, &format!("a{n}"))).collect();
        assert_eq!(History::check_all(&mut many), Err(HistoryError::Count));
    }
}
