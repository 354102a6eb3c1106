//! Events that topics retain (WAMP, advanced profile, "Event Retention"), each kept by the home shard of its topic.
//!
//! A topic has one event that everybody could get, and after it those that only some could: one of them is the most recent
//! for whom it admits. All of a topic is packed into one piece for the control plane, which stores it and brings it to the
//! other nodes; the later piece replaces the earlier.
//!
//! Invariants: the list of a topic is never empty, and only its first event may be for everybody; `bytes` is the sum over all
//! events; what is packed fits a frame of the link.

use super::Shard;
use super::delivery::Published;
use super::publication::Extra;
use super::scans::Scans;
use crate::feed::FeedUp;
use crate::mesh::Item;
use common::ids::{Match, RealmId, RouteKind, ShardId, route_id};
use common::limits::RETAINED_BYTES_MAX;
use common::link::RetainedTopic;
use common::metrics::Counter;
use common::uri::matches;
use common::wire::{Payload, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

/// Events for some that a topic retains beside the one for everybody; the oldest goes first.
const RESTRICTED_MAX: usize = 8;
/// Topics that are looked at, whenever one is put, for events whose time is over.
const SWEEP_TOPICS: usize = 4;
/// What a topic costs beside the bytes of its events.
const TOPIC_BYTES: usize = 256;

/// A retained event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Kept {
    pub publication: u64,
    /// The session that published it and wanted it not itself; 0: none.
    pub except: u64,
    /// When it is forgotten.
    pub until: Option<Instant>,
    pub serializer: Serializer,
    /// What was packed of who may get it, and what it tells.
    pub extra: Box<[u8]>,
    pub args: Option<Box<[u8]>>,
    pub kwargs: Option<Box<[u8]>>,
}

impl Kept {
    pub fn of(published: &Published<'_>, except: u64, until: Option<Instant>) -> Self {
        let Published { publication, from, payload, .. } = *published;
        let (args, kwargs) = (payload.args.map(Into::into), payload.kwargs.map(Into::into));
        Self { publication, except, until, serializer: from, extra: published.extra.into(), args, kwargs }
    }

    pub fn payload(&self) -> Payload<'_> {
        Payload { args: self.args.as_deref(), kwargs: self.kwargs.as_deref() }
    }

    fn bytes(&self) -> usize {
        HEAD_BYTES + self.extra.len() + self.payload().bytes_len()
    }

    fn is_restricted(&self) -> bool {
        Extra::parse(&self.extra).is_some_and(|extra| extra.is_restricted())
    }

    fn lives(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// Whether a subscriber would have got it.
    fn admits(&self, who: &Asking<'_>) -> bool {
        self.except != who.session
            && (self.extra.is_empty()
                || Extra::parse(&self.extra)
                    .is_some_and(|extra| extra.admits(who.session, who.authid, who.authrole)))
    }
}

/// Who asks for retained events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    pub session: u64,
    pub authid: &'a str,
    pub authrole: &'a str,
}

/// The bounds of what a shard retains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    pub topics: usize,
    pub bytes: usize,
    pub event_bytes: usize,
}

type Key = (u32, Box<str>);

/// What a shard retains, by realm and topic.
#[derive(Debug, Default)]
pub(super) struct Retained {
    topics: BTreeMap<Key, Topic>,
    bytes: usize,
    /// Topics whose events the control plane is to be told.
    untold: BTreeSet<Key>,
    /// Where the sweep for events whose time is over is.
    swept: Option<Key>,
    /// Questions of subscribers that are answered in later turns.
    pub scans: Scans,
}

#[derive(Debug, Default)]
struct Topic {
    /// The most recent last.
    events: Vec<Kept>,
    /// They were put here, and the control plane has not given them back.
    unconfirmed: bool,
}

impl Topic {
    fn bytes(&self) -> usize {
        TOPIC_BYTES + self.events.iter().map(Kept::bytes).sum::<usize>()
    }
}

impl Retained {
    pub fn len(&self) -> usize {
        self.topics.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Retains an event that was published on this node. False: a bound is reached, and nothing was changed.
    pub fn put(&mut self, realm: u32, topic: &str, kept: Kept, now: Instant, bounds: Bounds) -> bool {
        self.sweep(now);
        let (new_bytes, key) = (kept.bytes(), (realm, Box::from(topic)));
        let is_new = !self.topics.contains_key(&key);
        if kept.payload().bytes_len() > bounds.event_bytes
            || new_bytes + PACK_BYTES > RETAINED_BYTES_MAX
            || is_new && self.topics.len() >= bounds.topics
            || self.bytes + new_bytes + TOPIC_BYTES > bounds.bytes
        {
            return false;
        }
        let topic = self.topics.entry(key.clone()).or_default();
        let before = if is_new { 0 } else { topic.bytes() };
        if kept.is_restricted() {
            topic.events.retain(|kept| kept.lives(now));
        } else {
            topic.events.clear();
        }
        topic.events.push(kept);
        while topic.events.len() > RESTRICTED_MAX + 1
            || topic.events.iter().map(Kept::bytes).sum::<usize>() + PACK_BYTES > RETAINED_BYTES_MAX
        {
            // The one for everybody stays if others can go.
            let oldest = usize::from(topic.events.len() > 2 && !topic.events[0].is_restricted());
            topic.events.remove(oldest);
        }
        topic.unconfirmed = true;
        self.bytes = self.bytes + topic.bytes() - before;
        self.untold.insert(key);
        true
    }

    /// Takes what the cluster holds of a topic in place of what is here; no events: it retains none any more. False: a bound
    /// is reached.
    pub fn replace(&mut self, realm: u32, topic: &str, events: Vec<Kept>, bounds: Bounds) -> bool {
        let key: Key = (realm, topic.into());
        let last = events.last().map(|kept| kept.publication);
        // What was put here meanwhile is on its way, and will come back.
        if self.untold.contains(&key) {
            return true;
        }
        if let Some(old) = self.topics.remove(&key) {
            self.bytes -= old.bytes();
        }
        let new = Topic { events, unconfirmed: false };
        if last.is_none() {
            return true;
        }
        if self.topics.len() >= bounds.topics || self.bytes + new.bytes() > bounds.bytes {
            return false;
        }
        self.bytes += new.bytes();
        self.topics.insert(key, new);
        true
    }

    /// The control plane may have missed what was put here and has not come back.
    pub fn tell_again(&mut self) {
        let lost = self.topics.iter().filter(|(_, topic)| topic.unconfirmed);
        self.untold.extend(lost.map(|(key, _)| key.clone()));
    }

    /// Everything of a realm is forgotten.
    pub fn forget(&mut self, realm: u32) {
        let of_realm = (realm, Box::from(""))..(realm + 1, Box::from(""));
        let keys: Vec<Key> = self.topics.range(of_realm).map(|(key, _)| key.clone()).collect();
        for key in keys {
            if let Some(topic) = self.topics.remove(&key) {
                self.bytes -= topic.bytes();
            }
            self.untold.remove(&key);
        }
    }

    /// Topics that may match, in order, those after `after`; and of each the most recent event that `who` would have got if it
    /// matches.
    pub fn matching<'a>(
        &'a self,
        (realm, policy, uri): (u32, Match, &'a str),
        after: Option<&str>,
        who: &'a Asking<'a>,
        now: Instant,
    ) -> impl Iterator<Item = (&'a str, Option<&'a Kept>)> {
        // What all matching topics begin with.
        let literal = match policy {
            Match::Exact | Match::Prefix => uri,
            Match::Wildcard => literal_head(uri),
        };
        let first = match after {
            Some(after) => Bound::Excluded((realm, Box::from(after))),
            None => Bound::Included((realm, Box::from(literal))),
        };
        self.topics
            .range((first, Bound::Unbounded))
            .take_while(move |((of, topic), _)| *of == realm && topic.starts_with(literal))
            .take_while(move |((_, topic), _)| policy != Match::Exact || **topic == *uri)
            .map(move |((_, topic), held)| {
                let is_match = policy != Match::Wildcard || matches(uri, policy, topic);
                let mut events = held.events.iter().rev().filter(|kept| is_match && kept.lives(now));
                (&**topic, events.find(|kept| kept.admits(who)))
            })
    }

    /// The next topic the control plane is to be told: its realm, its name, its events packed and how long they are good for,
    /// in milliseconds; 0: for ever.
    pub fn take_untold(&mut self, now: Instant) -> Option<(u32, Box<str>, Vec<u8>, u64)> {
        loop {
            let key = self.untold.pop_first()?;
            if let Some(topic) = self.topics.get(&key) {
                return Some((key.0, key.1, pack(&topic.events, now), ttl_ms(&topic.events, now)));
            }
        }
    }

    /// Looks at a few topics for events whose time is over.
    fn sweep(&mut self, now: Instant) {
        let from = self.swept.take().map_or(Bound::Unbounded, Bound::Excluded);
        let keys: Vec<Key> = self
            .topics
            .range((from, Bound::Unbounded))
            .take(SWEEP_TOPICS)
            .map(|(key, _)| key.clone())
            .collect();
        self.swept = keys.last().filter(|_| keys.len() == SWEEP_TOPICS).cloned();
        for key in keys {
            let Some(topic) = self.topics.get_mut(&key) else { continue };
            let before = topic.bytes();
            topic.events.retain(|kept| kept.lives(now));
            if topic.events.is_empty() {
                self.topics.remove(&key);
                self.bytes -= before;
            } else {
                self.bytes = self.bytes + topic.bytes() - before;
            }
        }
    }
}

/// A pattern up to its first empty component.
fn literal_head(pattern: &str) -> &str {
    if pattern.starts_with('.') {
        return "";
    }
    pattern
        .find("..")
        .map_or_else(|| pattern.strip_suffix('.').map_or(pattern, |_| pattern), |at| &pattern[..=at])
}

/// An event packed: `publication u64 │ except u64 │ ttl_ms u64 │ serializer u8 │ 3 × length u32 │ extra │ args │ kwargs`; a length
/// of `ABSENT`: there is none. A topic: `count u8 │ events`.
const HEAD_BYTES: usize = 8 * 3 + 1 + 3 * 4;
const PACK_BYTES: usize = 1;
const ABSENT: u32 = u32::MAX;

fn remaining_ms(until: Option<Instant>, now: Instant) -> u64 {
    until.map_or(0, |until| (until.saturating_duration_since(now).as_millis() as u64).max(1))
}

fn ttl_ms(events: &[Kept], now: Instant) -> u64 {
    let each = || events.iter().map(|kept| remaining_ms(kept.until, now));
    if each().any(|ttl| ttl == 0) { 0 } else { each().max().unwrap_or(0) }
}

fn pack(events: &[Kept], now: Instant) -> Vec<u8> {
    let mut out = vec![events.len() as u8];
    for kept in events {
        for number in [kept.publication, kept.except, remaining_ms(kept.until, now)] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(kept.serializer.index() as u8);
        let parts = [Some(&*kept.extra), kept.args.as_deref(), kept.kwargs.as_deref()];
        for part in parts {
            out.extend_from_slice(&part.map_or(ABSENT, |part| part.len() as u32).to_le_bytes());
        }
        parts.into_iter().flatten().for_each(|part| out.extend_from_slice(part));
    }
    out
}

/// Reads what a shard of any node has packed `age_ms` ago. Events whose time is over are left out. None: it is malformed.
fn unpack(mut from: &[u8], age_ms: u64, now: Instant) -> Option<Vec<Kept>> {
    fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
        let (taken, rest) = from.split_first_chunk::<N>()?;
        *from = rest;
        Some(*taken)
    }
    let from = &mut from;
    let [count] = take(from)?;
    let mut events = Vec::new();
    for _ in 0..count {
        let mut number = || take(from).map(u64::from_le_bytes);
        let (publication, except, ttl) = (number()?, number()?, number()?);
        let [serializer] = take(from)?;
        let mut length = || take(from).map(u32::from_le_bytes);
        let lengths = [length()?, length()?, length()?];
        let mut part = |length: u32| {
            if length == ABSENT {
                return Some(None);
            }
            let (part, rest) = from.split_at_checked(length as usize)?;
            *from = rest;
            Some(Some(Box::<[u8]>::from(part)))
        };
        let (extra, args, kwargs) =
            (part(lengths[0])?.unwrap_or_default(), part(lengths[1])?, part(lengths[2])?);
        Extra::parse(&extra)?;
        let serializer = *Serializer::ALL.get(usize::from(serializer))?;
        let until = match ttl {
            0 => None,
            ttl => match ttl.checked_sub(age_ms).filter(|left| *left > 0) {
                Some(left) => now.checked_add(Duration::from_millis(left)),
                None => continue,
            },
        };
        events.push(Kept { publication, except, until, serializer, extra, args, kwargs });
    }
    from.is_empty().then_some(events)
}

impl Shard {
    fn retained_bounds(&self) -> Bounds {
        let (limits, shards) = (&self.config.limits, self.config.shards);
        Bounds {
            topics: (limits.retained_max as usize).div_ceil(shards),
            bytes: limits.retained_memory_max as usize / shards,
            event_bytes: limits.retained_event_max as usize,
        }
    }

    /// The shard that retains the events of a topic.
    pub(super) fn retained_home(&self, realm: u32, topic: &str) -> ShardId {
        let id = route_id(self.realms[realm as usize].id, RouteKind::Topic, Match::Exact, topic);
        ShardId((id % self.config.shards as u64) as u8)
    }

    /// Has a publication of this node retained. `ttl`: none said.
    pub(super) fn retain(
        &mut self,
        realm: u32,
        published: &Published<'_>,
        except: u64,
        ttl: Option<Duration>,
    ) {
        let ttl = ttl.unwrap_or(self.config.limits.retained_ttl);
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let home = self.retained_home(realm, published.topic);
        if home == self.me {
            return self.retain_here(realm, published, except, ttl_ms);
        }
        let realm = self.realms[realm as usize].id;
        let batch = self.mesh(home);
        let topic = batch.put(published.topic.as_bytes());
        let extra = batch.put(published.extra);
        let payload = batch.put_payload(published.from, published.payload);
        batch.push(Item::Retain {
            realm,
            topic,
            publication: published.publication,
            except,
            ttl_ms,
            extra,
            payload,
        });
    }

    /// As the home shard.
    pub(super) fn retain_here(&mut self, realm: u32, published: &Published<'_>, except: u64, ttl_ms: u64) {
        let until = (ttl_ms > 0).then(|| self.now.checked_add(Duration::from_millis(ttl_ms))).flatten();
        let kept = Kept::of(published, except, until);
        let (now, bounds) = (self.now, self.retained_bounds());
        let put = self.retained.put(realm, published.topic, kept, now, bounds);
        self.metrics.count(if put { Counter::EventsRetained } else { Counter::RetainedRefused });
    }

    /// What the cluster retains for topics; those of this shard are taken.
    pub(super) fn take_retained(&mut self, topics: &[RetainedTopic]) {
        let bounds = self.retained_bounds();
        for topic in topics {
            let realm = self.realm_of(topic.realm);
            if self.retained_home(realm, &topic.topic) != self.me {
                continue;
            }
            let events = if topic.bytes.is_empty() {
                Some(Vec::new())
            } else {
                unpack(&topic.bytes, topic.age_ms, self.now)
            };
            let taken =
                events.is_some_and(|events| self.retained.replace(realm, &topic.topic, events, bounds));
            if !taken {
                self.metrics.count(Counter::RetainedRefused);
            }
        }
    }

    /// The next topic to tell the control plane.
    pub(super) fn tell_retained(&mut self) -> Option<FeedUp> {
        let (realm, topic, bytes, ttl_ms) = self.retained.take_untold(self.now)?;
        let realm: RealmId = self.realms[realm as usize].id;
        let topic = RetainedTopic { realm, topic: topic.into(), age_ms: 0, bytes };
        Some(FeedUp::Retain { topic, ttl_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { topics: 100, bytes: 1 << 20, event_bytes: 1 << 16 };
    const ANYBODY: Asking<'static> = Asking { session: 5, authid: "5", authrole: "anonymous" };

    fn kept(publication: u64, eligible: Option<u64>) -> Kept {
        // Flags of a list of eligible sessions, one entry.
        let extra: Vec<u8> =
            eligible.map_or_else(Vec::new, |session| [&[8, 0, 1, 0][..], &session.to_le_bytes()].concat());
        Kept {
            publication,
            except: 0,
            until: None,
            serializer: Serializer::Json,
            extra: extra.into(),
            args: Some(Box::from(&b"[1]"[..])),
            kwargs: None,
        }
    }

    fn found(
        retained: &Retained,
        policy: Match,
        uri: &str,
        who: &Asking<'_>,
        now: Instant,
    ) -> Vec<(String, u64)> {
        let found = retained.matching((1, policy, uri), None, who, now);
        found.filter_map(|(topic, kept)| Some((topic.to_owned(), kept?.publication))).collect()
    }

    #[test]
    fn the_most_recent_event_one_could_have_got_is_found() {
        let (mut retained, now) = (Retained::default(), Instant::now());
        let get = |retained: &Retained, session| {
            let who = Asking { session, ..ANYBODY };
            found(retained, Match::Exact, "a.b", &who, now).first().map(|(_, publication)| *publication)
        };
        retained.put(1, "a.b", kept(1, Some(7)), now, BOUNDS);
        assert_eq!((get(&retained, 7), get(&retained, 5)), (Some(1), None));
        retained.put(1, "a.b", kept(2, None), now, BOUNDS);
        retained.put(1, "a.b", kept(3, Some(7)), now, BOUNDS);
        assert_eq!((get(&retained, 7), get(&retained, 5)), (Some(3), Some(2)));
        for publication in 10..30 {
            retained.put(1, "a.b", kept(publication, Some(8)), now, BOUNDS);
        }
        assert_eq!(
            (get(&retained, 8), get(&retained, 5)),
            (Some(29), Some(2)),
            "the one for everybody stays"
        );
        retained.put(1, "a.b", Kept { except: 5, ..kept(40, None) }, now, BOUNDS);
        assert_eq!((get(&retained, 8), get(&retained, 5)), (Some(40), None), "its publisher did not want it");
    }

    #[test]
    fn topics_are_found_by_every_policy() {
        let (mut retained, now) = (Retained::default(), Instant::now());
        for (publication, topic) in (1..).zip(["a.b", "a.b.c", "a.x.c", "ab.b.c", "b"]) {
            retained.put(1, topic, kept(publication, None), now, BOUNDS);
        }
        retained.put(2, "a.b", kept(9, None), now, BOUNDS);
        let all = |policy, uri: &str| -> Vec<String> {
            found(&retained, policy, uri, &ANYBODY, now).into_iter().map(|(topic, _)| topic).collect()
        };
        assert_eq!(all(Match::Exact, "a.b"), ["a.b"]);
        assert_eq!(all(Match::Exact, "a"), [""; 0]);
        assert_eq!(all(Match::Prefix, "a.b"), ["a.b", "a.b.c"]);
        assert_eq!(all(Match::Prefix, "").len(), 5);
        assert_eq!(all(Match::Wildcard, "a..c"), ["a.b.c", "a.x.c"]);
        assert_eq!(all(Match::Wildcard, ".b.c"), ["a.b.c", "ab.b.c"]);
        assert_eq!(all(Match::Wildcard, "a."), ["a.b"]);
        retained.forget(1);
        assert_eq!((retained.len(), retained.bytes() > 0), (1, true));
        retained.forget(2);
        assert_eq!((retained.len(), retained.bytes()), (0, 0));
    }

    #[test]
    fn what_is_retained_has_bounds_and_an_end() {
        let (mut retained, now) = (Retained::default(), Instant::now());
        let few = Bounds { topics: 2, bytes: 2_000, event_bytes: 3 };
        assert!(
            retained.put(1, "a", kept(1, None), now, few) && retained.put(1, "b", kept(2, None), now, few)
        );
        assert!(!retained.put(1, "c", kept(3, None), now, few), "a third topic");
        assert!(retained.put(1, "b", kept(4, None), now, few), "no new topic");
        let long = Kept { args: Some(Box::from(&b"[10]"[..])), ..kept(5, None) };
        assert!(!retained.put(1, "a", long, now, few), "too long");
        let until = Some(now + Duration::from_secs(1));
        retained.put(1, "a", Kept { until, ..kept(6, None) }, now, few);
        let later = now + Duration::from_secs(1);
        assert_eq!(found(&retained, Match::Exact, "a", &ANYBODY, later), []);
        assert!(retained.put(1, "b", kept(7, None), later, few));
        assert_eq!(retained.len(), 1, "swept up");
    }

    #[test]
    fn what_the_cluster_holds_replaces_what_is_here_unless_it_is_on_its_way() {
        let (mut here, mut there, now) = (Retained::default(), Retained::default(), Instant::now());
        here.put(1, "a", kept(1, None), now, BOUNDS);
        let (realm, topic, bytes, ttl) = here.take_untold(now).unwrap();
        assert_eq!((realm, &*topic, ttl), (1, "a", 0));
        assert!(there.replace(1, "a", unpack(&bytes, 50, now).unwrap(), BOUNDS));
        assert_eq!(found(&there, Match::Exact, "a", &ANYBODY, now), [("a".to_owned(), 1)]);
        there.put(1, "a", kept(2, None), now, BOUNDS);
        there.replace(1, "a", unpack(&bytes, 50, now).unwrap(), BOUNDS);
        assert_eq!(found(&there, Match::Exact, "a", &ANYBODY, now), [("a".to_owned(), 2)], "on its way");
        assert!(there.take_untold(now).is_some() && there.take_untold(now).is_none());
        there.tell_again();
        assert!(there.take_untold(now).is_some(), "it has not come back");
        there.replace(1, "a", Vec::new(), BOUNDS);
        assert_eq!((there.len(), there.bytes()), (0, 0));
    }

    proptest! {
        #[test]
        fn packed_events_come_back(
            publications in proptest::collection::vec((any::<u64>(), any::<Option<u64>>(), 0u64..9_000), 0..5),
            age_ms in 0u64..9_000,
        ) {
            let now = Instant::now();
            let events: Vec<_> = publications.iter().map(|(publication, eligible, ttl)| Kept {
                until: (*ttl > 0).then(|| now + Duration::from_millis(*ttl)),
                ..kept(*publication, *eligible)
            }).collect();
            let packed = pack(&events, now);
            let live = |kept: &&Kept| kept.lives(now + Duration::from_millis(age_ms));
            let expected: Vec<_> = events.iter().filter(live).map(|kept| kept.publication).collect();
            let unpacked = unpack(&packed, age_ms, now).unwrap();
            prop_assert_eq!(unpacked.iter().map(|kept| kept.publication).collect::<Vec<_>>(), expected);
            for cut in 0..packed.len() {
                prop_assert!(unpack(&packed[..cut], age_ms, now).is_none());
            }
        }

        #[test]
        fn any_bytes_are_events_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = unpack(&bytes, 0, Instant::now());
        }
    }
}
