//! Histories: events that are kept for whoever asks later (WAMP, advanced profile, "Event History").
//!
//! ```text
//! PUBLISH ─▶ stamp ─▶ as any event ─▶ home shard of each node ─▶ log
//! get_events ─▶ meta::history ─▶ home shard of each node ─▶ merged by (stamp, publication)
//! ```
//! Which subscriptions have a history is a setting of the realm. On every node the home shard of such a subscription holds it
//! without a session, so each node gets each publication once, by the routes that subscriptions have, and keeps a log of its own:
//! what one node has lost the others still answer. The stamp is given where the PUBLISH came in, so all nodes tell the same order.
//!
//! Invariants: a log belongs to a topic of this shard that is marked `kept`, and the other way round; `bytes` is the sum over
//! all logs.

mod event;
mod log;
mod stamp;

use super::Shard;
use super::delivery::Published;
use super::publication::{Extra, with_stamp};
use common::history::History;
use common::ids::{Match, RouteKind, ShardId, route_id};
use common::metrics::Counter;
use common::uri::is_reserved;
pub(super) use event::{Event, Key};
use log::Log;
#[cfg(test)]
pub(super) use log::tests as test_events;
pub(super) use log::{Filter, Selection};
pub(super) use stamp::{Stamps, first_of, last_of, ms_of};
use std::collections::BTreeMap;

/// Logs that are looked at, whenever an event is kept, for events that are too old.
const SWEEP_LOGS: usize = 2;
/// Events of histories that were given up that go in one turn.
const DROP_SLICE: usize = 1_024;

/// The logs of a shard.
#[derive(Debug, Default)]
pub(super) struct Histories {
    /// By index of the topic.
    logs: BTreeMap<u32, Log>,
    bytes: usize,
    /// Of histories that nobody wants any more.
    given_up: Vec<Log>,
    /// Where the sweep for events that are too old is.
    swept: u32,
}

impl Histories {
    pub fn len(&self) -> usize {
        self.logs.len()
    }

    pub fn events(&self) -> usize {
        self.logs.values().map(Log::len).sum()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes a log, and sums up.
    fn change<T>(&mut self, topic: u32, change: impl FnOnce(&mut Log, usize) -> T) -> Option<T> {
        let log = self.logs.get_mut(&topic)?;
        let others = self.bytes - log.bytes();
        let changed = change(log, others);
        self.bytes = others + log.bytes();
        Some(changed)
    }

    fn put(&mut self, topic: u32, event: Event, now_ms: u64, bytes_max: usize) -> bool {
        let room = |others: usize| bytes_max.saturating_sub(others);
        let kept = self.change(topic, |log, others| log.put(event, now_ms, room(others)));
        for _ in 0..SWEEP_LOGS.min(self.logs.len()) {
            let next = self.logs.range(self.swept..).next().or_else(|| self.logs.first_key_value());
            let Some(topic) = next.map(|(topic, _)| *topic) else { break };
            self.change(topic, |log, _| log.trim(now_ms, usize::MAX));
            self.swept = topic + 1;
        }
        kept.unwrap_or(false)
    }

    /// An event of a log without what it says.
    pub fn find(&self, topic: u32, publication: u64) -> Option<Event> {
        self.logs.get(&topic)?.find(publication)
    }

    /// Begins to look for the events of a log that `filter` takes, so many and of so many bytes at most. None: there is no
    /// log of this topic.
    pub fn begin(
        &mut self,
        topic: u32,
        filter: Filter,
        bounds: (usize, usize),
        now_ms: u64,
    ) -> Option<Selection> {
        self.change(topic, |log, _| log.trim(now_ms, usize::MAX));
        self.logs.get(&topic).map(|log| log.begin(filter, bounds, now_ms))
    }

    /// Looks at so many events more. Whether there are more than may be told; none: not all were looked at.
    pub fn go_on(&self, topic: u32, selection: &mut Selection, looks: &mut usize) -> Option<bool> {
        self.logs.get(&topic).map_or(Some(false), |log| log.go_on(selection, looks))
    }

    /// Forgets a log; its events go in turns to come.
    fn give_up(&mut self, topic: u32) {
        let Some(log) = self.logs.remove(&topic) else { return };
        self.bytes -= log.bytes();
        self.given_up.push(log);
    }

    /// True when logs that were given up have events still.
    pub fn owes(&self) -> bool {
        !self.given_up.is_empty()
    }

    /// One turn's share of them.
    pub fn go_on_dropping(&mut self) {
        if self.given_up.last_mut().is_some_and(|log| log.drop_some(DROP_SLICE)) {
            self.given_up.pop();
        }
    }
}

impl Shard {
    /// The shard that keeps the history of a subscription in its node.
    fn history_home(&self, realm: u32, policy: Match, uri: &str) -> ShardId {
        let id = route_id(self.realms[realm as usize].id, RouteKind::Topic, policy, uri);
        ShardId((id % self.config.shards as u64) as u8)
    }

    /// Keeps the histories that the realm is to have, those whose home this shard is, and no others.
    pub(super) fn keep_histories(&mut self, realm: u32) {
        let settings = self.realms[realm as usize].settings.as_ref();
        let wanted: Vec<History> = settings.map_or_else(Vec::new, |settings| settings.histories.clone());
        let is_mine = |history: &History| self.history_home(realm, history.policy, &history.uri) == self.me;
        let mine: Vec<History> = wanted.into_iter().filter(is_mine).collect();
        for topic in std::mem::take(&mut self.realms[realm as usize].kept) {
            let state = &mut self.topics[topic as usize];
            if !mine.iter().any(|history| history.policy == state.policy && *history.uri == *state.uri) {
                state.kept = false;
                self.histories.give_up(topic);
                self.drop_topic_if_unused(topic);
            }
        }
        let kept = mine.into_iter().map(|history| self.keep_history(realm, history)).collect();
        let state = &mut self.realms[realm as usize];
        state.kept = kept;
        state.version += 1;
    }

    /// The topic whose history is kept.
    fn keep_history(&mut self, realm: u32, bounds: History) -> u32 {
        let topic = match self.realms[realm as usize].topics.get(bounds.policy, &bounds.uri) {
            Some(topic) => *topic,
            None => self.new_topic(realm, bounds.policy, &bounds.uri),
        };
        let state = &mut self.topics[topic as usize];
        (state.kept, state.is_first) = (true, false);
        let log = self.histories.logs.entry(topic);
        log.or_insert_with(|| Log::new(bounds.clone(), &self.hasher)).bounds.clone_from(&bounds);
        let now_ms = self.unix_ms();
        self.histories.change(topic, |log, _| log.trim(now_ms, usize::MAX));
        topic
    }

    /// What is packed of a publication that some node keeps, with the time it was made.
    #[cold]
    pub(super) fn stamp(&mut self, extra: &[u8]) -> Vec<u8> {
        let unix_ms = self.unix_ms();
        with_stamp(extra, self.stamps.next(unix_ms))
    }

    /// A publication was made elsewhere before what this shard will publish.
    pub(super) fn follow_stamp(&mut self, stamp: u64) {
        let unix_ms = self.unix_ms();
        self.stamps.follow(stamp, unix_ms);
    }

    /// Keeps a publication in the histories of this shard among `topics`, unless it is for certain sessions: who asks for a
    /// history is never one of them (WAMP, advanced profile, "Event History", Security Aspects).
    #[cold]
    pub(super) fn keep(&mut self, topics: &[u32], published: &Published<'_>) {
        let Some(extra) = Extra::parse(published.extra) else { return };
        if extra.is_for_sessions() || is_reserved(published.topic) {
            return;
        }
        let now_ms = self.unix_ms();
        // Where it came in, the realm may not have had a history yet.
        let stamp = extra.stamp.unwrap_or_else(|| self.stamps.next(now_ms));
        let bytes_max = self.config.limits.history_memory_max as usize / self.config.shards;
        let is_short = published.payload.bytes_len() <= self.config.limits.history_event_max as usize;
        for topic in topics {
            if !self.topics.get(*topic as usize).is_some_and(|topic| topic.kept) {
                continue;
            }
            let event = Event::of(published, stamp);
            let kept = is_short && self.histories.put(*topic, event, now_ms, bytes_max);
            self.metrics.count(if kept { Counter::EventsKept } else { Counter::HistoryRefused });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldhash::fast::RandomState;

    #[test]
    fn events_that_are_too_old_go_while_others_are_kept() {
        let mut histories = Histories::default();
        let bounds = History { age_max_ms: 100, ..History::of(Match::Exact, "a") };
        for topic in 0..5 {
            histories.logs.insert(topic, Log::new(bounds.clone(), &RandomState::default()));
        }
        for topic in 0..4 {
            assert!(histories.put(topic, test_events::event(1, u64::from(topic), "a"), 1, usize::MAX));
        }
        assert_eq!(histories.events(), 4);
        for n in 10..13 {
            assert!(histories.put(4, test_events::event(200, n, "a"), 200, usize::MAX));
        }
        assert_eq!(histories.events(), 3);
        assert_eq!(histories.bytes(), histories.logs[&4].bytes());
    }
}
