//! The events of one subscription, in order, within its bounds.
//!
//! Invariants: each publication is there once; `bytes` is the sum over the events; what is over a bound goes oldest first.

use super::event::{Event, Key};
use super::stamp::{first_of, ms_of};
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

/// The events that a filter takes, and how far they were looked for.
#[derive(Debug)]
pub(in crate::shard) struct Selection {
    /// Between its bounds is what was not looked at.
    filter: Filter,
    events_max: usize,
    bytes_max: usize,
    pub events: Vec<Event>,
    bytes: usize,
}

/// Bytes of events whose copying counts as one look.
const LOOK_BYTES: usize = 256;
/// Events that are given up at a time for their age or their number.
const TRIM_SLICE: usize = 256;

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

    /// Gives up what is over a bound, or too old: a slice of it, if the bytes fit.
    pub fn trim(&mut self, now_ms: u64, bytes_max: usize) {
        let bytes_max = bytes_max.min(usize::try_from(self.bounds.bytes_max).unwrap_or(usize::MAX));
        let (events_max, age_max_ms) = (self.bounds.events_max as usize, self.bounds.age_max_ms);
        let mut slice = TRIM_SLICE;
        while let Some((key, _)) = self.events.first_key_value() {
            let is_old = age_max_ms > 0 && ms_of(key.0).saturating_add(age_max_ms) < now_ms;
            let may_wait = !is_old && self.events.len() <= events_max || slice == 0;
            if may_wait && self.bytes <= bytes_max {
                return;
            }
            slice = slice.saturating_sub(1);
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, event)) = self.events.pop_first() {
            self.bytes -= event.bytes();
            self.stamps.remove(&event.publication);
        }
    }

    /// Drops so many events of a log that nobody wants any more. True: there is none left.
    pub fn drop_some(&mut self, events: usize) -> bool {
        (0..events).for_each(|_| self.drop_oldest());
        self.events.is_empty()
    }

    /// An event without what it says.
    pub fn find(&self, publication: u64) -> Option<Event> {
        let stamp = self.stamps.get(&publication)?;
        self.events.get(&(*stamp, publication)).map(Event::head)
    }

    /// Begins to look for the first events that `filter` takes, in its direction. Those that are too old are not meant, nor what is
    /// put behind the last one from now on.
    pub fn begin(
        &self,
        mut filter: Filter,
        (events_max, bytes_max): (usize, usize),
        now_ms: u64,
    ) -> Selection {
        if self.bounds.age_max_ms > 0 {
            let first_ms = now_ms.saturating_sub(self.bounds.age_max_ms);
            filter.from = filter.from.max((first_of(first_ms), 0));
        }
        if let Some((last, _)) = self.events.last_key_value() {
            filter.until = filter.until.min(*last);
        }
        Selection { filter, events_max, bytes_max, events: Vec::new(), bytes: 0 }
    }

    /// Looks at the next events, at most `looks`, from which they are taken. Whether there are more than may be told, of which
    /// one is always told; none: not all were looked at.
    pub fn go_on(&self, selection: &mut Selection, looks: &mut usize) -> Option<bool> {
        let Filter { from, until, reverse, .. } = selection.filter;
        if from > until {
            return Some(false);
        }
        let mut between = self.events.range(from..=until);
        loop {
            let next = if reverse { between.next_back() } else { between.next() };
            let Some((_, event)) = next else { return Some(false) };
            if *looks == 0 {
                return None;
            }
            *looks -= 1;
            match selection.look_at(event) {
                Some(true) => *looks = looks.saturating_sub(event.bytes() / LOOK_BYTES),
                Some(false) => return Some(true),
                None => {}
            }
        }
    }
}

impl Selection {
    /// Whether there was room for an event; none: the filter does not take it.
    fn look_at(&mut self, event: &Event) -> Option<bool> {
        let (stamp, publication) = event.key();
        if self.filter.reverse {
            self.filter.until = (stamp, publication - 1);
        } else {
            self.filter.from = (stamp, publication + 1);
        }
        if !self.filter.takes(event) {
            return None;
        }
        self.bytes += event.bytes();
        if self.events.len() >= self.events_max || !self.events.is_empty() && self.bytes > self.bytes_max {
            return Some(false);
        }
        self.events.push(event.clone());
        Some(true)
    }
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

    /// All slices of a selection, each of so many looks.
    fn select(log: &Log, filter: &Filter, bounds: (usize, usize), slice: usize) -> (Vec<Event>, bool) {
        let mut selection = log.begin(filter.clone(), bounds, 0);
        let more = (0..1_000).find_map(|_| log.go_on(&mut selection, &mut { slice }));
        (selection.events, more.expect("it comes to an end"))
    }

    fn ids(log: &Log, filter: &Filter) -> Vec<u64> {
        let whole = select(log, filter, (100, 1 << 20), 1_000);
        for slice in 1..5 {
            assert_eq!(select(log, filter, (100, 1 << 20), slice), whole, "slices do not matter");
        }
        whole.0.iter().map(|event| event.publication).collect()
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
        let bytes = log.bytes();
        assert!(log.put(event(7, 3, "a"), 9, usize::MAX), "by two ways it has two stamps");
        assert_eq!((ids(&log, &all()), log.bytes()), (vec![9, 1, 3], bytes));
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
        log.trim(150, usize::MAX);
        assert_eq!(ids(&log, &all()), [50, 90]);
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
        for slice in [1, 2, 100] {
            let (found, more) = select(&log, &Filter { reverse: true, ..of(1, 5) }, (2, 1 << 20), slice);
            assert_eq!((found.len(), found[0].publication, more), (2, 5, true));
            assert_eq!(select(&log, &all(), (100, 1), slice).0.len(), 1, "one always fits");
            assert!(!select(&log, &all(), (6, 1 << 20), slice).1);
        }
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
