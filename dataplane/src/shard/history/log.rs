//! The events of one subscription, in order, within its bounds.
//!
//! Invariants: each publication is there once; `bytes` is the sum over the events; what is over a bound goes oldest first.

use super::event::{Event, Key};
use super::stamp::ms_of;
use crate::shard::conn::IdMap;
use common::history::History;
use foldhash::fast::RandomState;
use std::collections::BTreeMap;

/// Events between two, both of them included, forward or back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::shard) struct Filter {
    pub from: Key,
    pub until: Key,
    pub reverse: bool,
    pub topic: Option<String>,
    /// Who asks.
    pub authid: String,
    pub authrole: String,
}

impl Filter {
    fn takes(&self, event: &Event) -> bool {
        self.topic.as_ref().is_none_or(|topic| *event.topic == **topic)
            && event.admits(&self.authid, &self.authrole)
    }
}

#[derive(Debug)]
pub(super) struct Log {
    pub bounds: History,
    events: BTreeMap<Key, Event>,
    /// By publication.
    stamps: IdMap<u64>,
    bytes: usize,
}

impl Log {
    pub fn new(bounds: History, hasher: &RandomState) -> Self {
        Self { bounds, events: BTreeMap::new(), stamps: IdMap::with_hasher(hasher.clone()), bytes: 0 }
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps an event, and gives up the oldest ones until all bounds hold; `bytes_max`: what this log may take now, beside
    /// its own bound. False: the event was not kept.
    pub fn put(&mut self, event: Event, now_ms: u64, bytes_max: usize) -> bool {
        let (key, publication) = (event.key(), event.publication);
        if self.stamps.contains_key(&publication) {
            return true;
        }
        self.bytes += event.bytes();
        self.stamps.insert(publication, event.stamp);
        self.events.insert(key, event);
        self.trim(now_ms, bytes_max);
        self.stamps.contains_key(&publication)
    }

    /// Gives up what is over a bound, or too old.
    pub fn trim(&mut self, now_ms: u64, bytes_max: usize) {
        let bytes_max = bytes_max.min(usize::try_from(self.bounds.bytes_max).unwrap_or(usize::MAX));
        let (events_max, age_max_ms) = (self.bounds.events_max as usize, self.bounds.age_max_ms);
        while let Some((key, _)) = self.events.first_key_value() {
            let is_old = age_max_ms > 0 && ms_of(key.0).saturating_add(age_max_ms) < now_ms;
            if !is_old && self.events.len() <= events_max && self.bytes <= bytes_max {
                return;
            }
            if let Some((_, event)) = self.events.pop_first() {
                self.bytes -= event.bytes();
                self.stamps.remove(&event.publication);
            }
        }
    }

    /// An event without what it says.
    pub fn find(&self, publication: u64) -> Option<Event> {
        let stamp = self.stamps.get(&publication)?;
        self.events.get(&(*stamp, publication)).map(Event::head)
    }

    /// The first events that `filter` takes, in its direction, and whether there are more. Always one if there is one.
    pub fn select(&self, filter: &Filter, events_max: usize, bytes_max: usize) -> (Vec<Event>, bool) {
        if filter.from > filter.until {
            return (Vec::new(), false);
        }
        let between = self.events.range(filter.from..=filter.until).map(|(_, event)| event);
        if filter.reverse {
            first_of(between.rev(), filter, events_max, bytes_max)
        } else {
            first_of(between, filter, events_max, bytes_max)
        }
    }
}

fn first_of<'a>(
    events: impl Iterator<Item = &'a Event>,
    filter: &Filter,
    events_max: usize,
    bytes_max: usize,
) -> (Vec<Event>, bool) {
    let (mut found, mut bytes) = (Vec::new(), 0);
    for event in events.filter(|event| filter.takes(event)) {
        bytes += event.bytes();
        if found.len() >= events_max || !found.is_empty() && bytes > bytes_max {
            return (found, true);
        }
        found.push(event.clone());
    }
    (found, false)
}

#[cfg(test)]
pub(in crate::shard) mod tests {
    use super::*;
    use common::ids::Match;
    use common::wire::Serializer;

    pub(in crate::shard) fn event(ms: u64, publication: u64, topic: &str) -> Event {
        Event {
            stamp: ms << 16,
            publication,
            topic: topic.into(),
            serializer: Serializer::Json,
            extra: Box::default(),
            args: Some(Box::from(&b"[1]"[..])),
            kwargs: None,
        }
    }

    pub(in crate::shard) fn all() -> Filter {
        Filter {
            from: (0, 0),
            until: (u64::MAX, u64::MAX),
            reverse: false,
            topic: None,
            authid: "joe".into(),
            authrole: "user".into(),
        }
    }

    fn log(events_max: u32, age_max_ms: u64) -> Log {
        let bounds = History { events_max, age_max_ms, ..History::of(Match::Prefix, "a") };
        Log::new(bounds, &RandomState::default())
    }

    fn ids(log: &Log, filter: &Filter) -> Vec<u64> {
        log.select(filter, 100, 1 << 20).0.iter().map(|event| event.publication).collect()
    }

    #[test]
    fn events_come_in_one_order_and_once() {
        let mut log = log(10, 0);
        for (ms, publication) in [(5, 3), (4, 9), (5, 1), (5, 3)] {
            assert!(log.put(event(ms, publication, "a"), 9, usize::MAX));
        }
        assert_eq!(ids(&log, &all()), [9, 1, 3]);
        assert_eq!(ids(&log, &Filter { reverse: true, ..all() }), [3, 1, 9]);
        assert_eq!(log.find(1).map(|event| event.key()), Some((5 << 16, 1)));
        assert_eq!(log.find(2), None);
    }

    #[test]
    fn what_is_over_a_bound_goes_oldest_first() {
        let mut log = log(3, 0);
        (1..=5).for_each(|n| assert!(log.put(event(n, n, "a"), 9, usize::MAX)));
        assert_eq!(ids(&log, &all()), [3, 4, 5]);
        assert!(!log.put(event(1, 1, "a"), 9, usize::MAX), "it is older than all that are kept");
        let two = log.bytes() / 3 * 2;
        assert!(log.put(event(6, 6, "a"), 9, two));
        assert_eq!((ids(&log, &all()), log.bytes()), (vec![5, 6], two));
        assert!(!log.put(event(7, 7, "a"), 9, 10), "there is no room for one");
        assert_eq!((log.len(), log.bytes()), (0, 0));
    }

    #[test]
    fn what_is_too_old_goes() {
        let mut log = log(10, 100);
        [1, 50, 90].iter().for_each(|ms| assert!(log.put(event(*ms, *ms, "a"), 100, usize::MAX)));
        log.trim(151, usize::MAX);
        assert_eq!(ids(&log, &all()), [90]);
    }

    #[test]
    fn filters_are_all_obeyed() {
        let mut log = log(10, 0);
        (1..=6)
            .for_each(|n| assert!(log.put(event(n, n, if n % 2 == 0 { "a" } else { "ab" }), 9, usize::MAX)));
        let of = |from: u64, until: u64| Filter { from: (from << 16, 0), until: (until << 16, 99), ..all() };
        assert_eq!(ids(&log, &of(2, 4)), [2, 3, 4]);
        assert_eq!(ids(&log, &of(5, 4)), Vec::<u64>::new());
        assert_eq!(ids(&log, &Filter { topic: Some("a".into()), ..all() }), [2, 4, 6]);
        let (found, more) = log.select(&Filter { reverse: true, ..of(1, 5) }, 2, 1 << 20);
        assert_eq!((found.len(), found[0].publication, more), (2, 5, true));
        assert_eq!(log.select(&all(), 100, 1).0.len(), 1, "one always fits");
        assert!(!log.select(&all(), 6, 1 << 20).1);
    }

    #[test]
    fn events_are_for_those_they_admit() {
        let mut log = log(10, 0);
        // Flags of a list of eligible authroles, one entry.
        let extra: Vec<u8> = [&(1_u16 << 7).to_le_bytes()[..], &[1, 0, 5, 0], b"admin"].concat();
        let restricted = Event { extra: extra.into(), ..event(1, 1, "a") };
        assert!(log.put(restricted, 9, usize::MAX) && log.put(event(2, 2, "a"), 9, usize::MAX));
        assert_eq!(ids(&log, &all()), [2]);
        assert_eq!(ids(&log, &Filter { authrole: "admin".into(), ..all() }), [1, 2]);
    }
}
