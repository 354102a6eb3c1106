//! Retained events on their way to a subscriber that asked for them (WAMP, advanced profile, "Event Retention").
//!
//! ```text
//! SUBSCRIBED ─▶ ask the home shards ─▶ sync with all shards ─▶ retained events ─▶ what was published meanwhile
//! ```
//! The subscriber is among the receivers from SUBSCRIBED on. What comes for this subscription is held back until the retained
//! events can go first. What was published before a retained event may be on its way still when that comes from its home shard,
//! and so may the event itself: once every shard has answered another message, both have arrived. An event that came both ways
//! is delivered as a live one, in its place. What comes from another node may come later than that: for a while its publication is
//! recognized, and dropped.

use super::conn::{Conn, IdMap};
use super::delivery::{Published, TRUST};
use super::flow::{Class, Queued, Queues};
use super::publication::Extra;
use super::retained::{Asking, Kept};
use super::scans::Scan;
use super::{ConnId, Shard};
use crate::mesh::{Item, Owner};
use common::ids::{Match, ShardId, ShardSet};
use common::metrics::Counter;
use common::wire::encode::{self, Field};
use common::wire::transcode;
use foldhash::fast::RandomState;
use std::time::{Duration, Instant};

/// Bytes of events held back from one session; what is beyond is dropped.
const HELD_BYTES_MAX: usize = 1 << 23;
/// How long another node's event may take that was retained here already.
const PASSING_TIME: Duration = Duration::from_secs(10);
/// What an event costs that is held back, beside its bytes.
const HELD_EVENT_BYTES: usize = 64;

/// Events held back from a session.
#[derive(Debug)]
pub(super) struct Held {
    /// By subscription.
    holds: IdMap<Hold>,
    bytes: usize,
}

/// A subscription whose retained events are on their way.
#[derive(Debug, Default)]
struct Hold {
    token: u64,
    /// Shards that have not answered.
    missing: ShardSet,
    /// The home shards have answered, now all others are to.
    syncs: bool,
    /// Publications of this shard that were replayed at once.
    replayed: Vec<u64>,
    /// Publications, whole messages in the connection's serializer: retained, and come since.
    retained: Vec<(u64, Vec<u8>)>,
    events: Vec<(u64, Vec<u8>)>,
    /// All that was held back is delivered: until then publications that were replayed are dropped.
    passing: Option<(Instant, Vec<u64>)>,
}

impl Held {
    pub fn new(hasher: &RandomState) -> Self {
        Self { holds: IdMap::with_hasher(hasher.clone()), bytes: 0 }
    }

    /// Something is held back.
    pub fn holds_any(&self) -> bool {
        !self.holds.is_empty()
    }

    fn get(&mut self, subscription: u64, token: u64) -> Option<&mut Hold> {
        self.holds.get_mut(&subscription).filter(|hold| hold.token == token)
    }

    /// False: there is no room for so many bytes.
    fn take_room(&mut self, bytes: usize) -> bool {
        let fits = self.bytes + bytes + HELD_EVENT_BYTES <= HELD_BYTES_MAX;
        if fits {
            self.bytes += bytes + HELD_EVENT_BYTES;
        }
        fits
    }

    fn remove(&mut self, subscription: u64) -> Option<Hold> {
        let hold = self.holds.remove(&subscription)?;
        let held = hold.retained.iter().chain(&hold.events);
        self.bytes -= held.map(|(_, message)| message.len() + HELD_EVENT_BYTES).sum::<usize>();
        if let Some((_, replayed)) = &hold.passing {
            self.bytes -= replayed.len() * HELD_EVENT_BYTES;
        }
        Some(hold)
    }
}

impl Shard {
    /// A session that has just been told SUBSCRIBED wants the retained events of its topic.
    pub(super) fn replay_retained(&mut self, slot: u32, index: u32) {
        let topic = &self.topics[index as usize];
        let (subscription, realm, policy, uri) = (topic.id, topic.realm, topic.policy, topic.uri.clone());
        let homes = match policy {
            Match::Exact => ShardSet::EMPTY.with(self.retained_home(realm, &uri)),
            Match::Prefix | Match::Wildcard => self.others().with(self.me),
        };
        let owner = self.owner(slot);
        let identity = self.session(slot).identity.clone();
        let who = Asking { session: owner.session, authid: &identity.authid, authrole: &identity.authrole };
        let others = homes.without(self.me);
        let (mut missing, mut scanned) = (others, None);
        if homes.contains(self.me) {
            let mut scan = Scan::new((realm, policy, &uri), &who);
            let (found, done) = self.scan_slice(&mut scan);
            if done {
                // Whatever was published before these was delivered here before.
                for (topic, kept) in &found {
                    self.deliver_retained(owner, subscription, &published(topic, kept));
                }
                let publications = found.iter().map(|(_, kept)| kept.publication).collect();
                self.pass_replayed(slot, subscription, publications);
            } else {
                missing = homes;
                scanned = Some((scan, found));
            }
        }
        if missing.is_empty() {
            return;
        }
        let token = self.token();
        let held = &mut self.session(slot).held_events;
        let hold = held.holds.entry(subscription).or_default();
        (hold.token, hold.missing, hold.syncs) = (token, missing, false);
        let passing = hold.passing.take();
        self.at(slot).holding = true;
        if let Some((_, replayed)) = passing {
            // Those of this shard; they are recognized with the others.
            let held = &mut self.session(slot).held_events;
            held.bytes -= replayed.len() * HELD_EVENT_BYTES;
            if let Some(hold) = held.holds.get_mut(&subscription) {
                hold.replayed = replayed;
            }
        }
        if let Some((scan, found)) = scanned {
            let asker = (owner, token, subscription);
            self.give_found(asker, &found);
            self.go_on_later(asker, scan, false);
        }
        let realm = self.realms[realm as usize].id;
        for shard in others.iter() {
            let batch = self.mesh(shard);
            let uri = batch.put(uri.as_bytes());
            let authid = batch.put(identity.authid.as_bytes());
            let authrole = batch.put(identity.authrole.as_bytes());
            batch.push(Item::RetainedAsk {
                owner,
                token,
                subscription,
                realm,
                policy,
                uri,
                authid,
                authrole,
            });
        }
    }

    /// A retained event from its home shard.
    pub(super) fn retained_came(
        &mut self,
        (owner, token, subscription): (Owner, u64, u64),
        published: &Published<'_>,
    ) {
        let Some(session) = self.session_of(owner) else { return };
        if session.held_events.get(subscription, token).is_none() {
            return;
        }
        let Some(message) = self.encode_retained(owner, subscription, published) else { return };
        let held = &mut self.session(owner.slot).held_events;
        if held.take_room(message.len()) {
            if let Some(hold) = held.get(subscription, token) {
                hold.retained.push((published.publication, message));
            }
        } else {
            self.metrics.count(Counter::DroppedSlow);
        }
    }

    /// A shard has given all it retains, or has sent all that it had to send before it was asked.
    pub(super) fn retained_ended(&mut self, (owner, token, subscription): (Owner, u64, u64), from: ShardId) {
        let others = self.others();
        let Some(session) = self.session_of(owner) else { return };
        let Some(hold) = session.held_events.get(subscription, token) else { return };
        hold.missing = hold.missing.without(from);
        if !hold.missing.is_empty() {
            return;
        }
        if !hold.syncs && !others.is_empty() {
            (hold.missing, hold.syncs) = (others, true);
            for shard in others.iter() {
                self.mesh(shard).push(Item::RetainedSync { owner, token, subscription });
            }
            return;
        }
        let hold = session.held_events.remove(subscription).unwrap_or_default();
        let holds = !session.held_events.holds.is_empty();
        let subscribed = session.subscriptions.contains_key(&subscription);
        let conn = self.at(owner.slot);
        conn.holding = holds || conn.is_detached();
        if !subscribed {
            return;
        }
        let mut replayed = hold.replayed;
        for (publication, message) in &hold.retained {
            if !hold.events.iter().any(|(live, _)| live == publication) {
                self.push_event(owner.slot, message, Counter::EventsReplayed);
                replayed.push(*publication);
            }
        }
        for (publication, message) in &hold.events {
            if !replayed.contains(publication) {
                self.push_event(owner.slot, message, Counter::Events);
            }
        }
        self.pass_replayed(owner.slot, subscription, replayed);
    }

    /// These were delivered as retained events, and may come from another node yet.
    fn pass_replayed(&mut self, slot: u32, subscription: u64, replayed: Vec<u64>) {
        if replayed.is_empty() || self.nodes.live().is_empty() {
            return;
        }
        let until = self.now + PASSING_TIME;
        let held = &mut self.session(slot).held_events;
        let bytes = replayed.len() * HELD_EVENT_BYTES;
        if held.bytes + bytes > HELD_BYTES_MAX || held.holds.contains_key(&subscription) {
            return;
        }
        held.bytes += bytes;
        let passing = Some((until, replayed));
        held.holds.insert(subscription, Hold { passing, ..Hold::default() });
        self.at(slot).holding = true;
    }

    /// Queues an event that was encoded before.
    fn push_event(&mut self, slot: u32, message: &[u8], counter: Counter) {
        let (conns, mut queues) = self.queues();
        let Some(Some(conn)) = conns.get_mut(slot as usize) else { return };
        match queues.push(slot, conn, Class::Event, message) {
            Queued::Yes => self.metrics.count(counter),
            Queued::Doomed => {
                let id = ConnId { slot, generation: conn.generation };
                self.doomed.push(id);
            }
            Queued::TooLarge => self.metrics.count(Counter::DroppedTooLarge),
            Queued::Full => {}
        }
    }

    /// Queues a retained event, unless the session has given the subscription up.
    fn deliver_retained(&mut self, owner: Owner, subscription: u64, published: &Published<'_>) {
        if let Some(message) = self.encode_retained(owner, subscription, published) {
            self.push_event(owner.slot, &message, Counter::EventsReplayed);
        }
    }

    /// A retained event as this session gets it.
    fn encode_retained(
        &mut self,
        owner: Owner,
        subscription: u64,
        published: &Published<'_>,
    ) -> Option<Vec<u8>> {
        let held = self.session_of(owner)?.subscriptions.get(&subscription).copied()?;
        let is_exact = self.topics[held.topic as usize].policy == Match::Exact;
        let extra = Extra::parse(published.extra)?;
        let conn = self.at(owner.slot);
        let (trusting, to) = (conn.trusting, conn.serializer);
        let mut details = Vec::new();
        details.extend((!is_exact).then_some(("topic", Field::Str(published.topic))));
        details.extend(extra.details());
        details.push(("retained", Field::Bool(true)));
        details.extend(trusting.then_some(TRUST));
        let (mut message, mut other) = (Vec::new(), Vec::new());
        let payload = if to == published.from {
            Ok(published.payload)
        } else {
            transcode::payload(published.from, published.payload, to, &mut other)
        };
        match payload {
            Ok(payload) => {
                let publication = published.publication;
                encode::event(to, &mut message, subscription, publication, &details, payload);
                Some(message)
            }
            Err(_) => {
                self.metrics.count(Counter::DroppedTranscode);
                None
            }
        }
    }
}

/// Holds an event back if the retained ones of its subscription are still to come, or drops it if it was one of them. False: it
/// is to be delivered.
#[cold]
pub(super) fn hold_back(
    queues: &mut Queues<'_>,
    conn: &mut Conn,
    (subscription, publication): (u64, u64),
    now: Instant,
    encode: impl FnOnce() -> Option<Vec<u8>>,
) -> bool {
    let Some(held) = conn.session.as_mut().map(|session| &mut session.held_events) else { return false };
    let Some(hold) = held.holds.get(&subscription) else { return false };
    if let Some((until, replayed)) = &hold.passing {
        if *until > now {
            return replayed.contains(&publication);
        }
        held.remove(subscription);
        conn.holding = !held.holds.is_empty();
        return false;
    }
    let Some(message) = encode() else {
        queues.metrics.count(Counter::DroppedTranscode);
        return true;
    };
    let fits = held.take_room(message.len());
    match held.holds.get_mut(&subscription) {
        Some(hold) if fits => hold.events.push((publication, message)),
        _ => {
            queues.metrics.count(Counter::DroppedSlow);
            conn.dropped = conn.dropped.saturating_add(1);
        }
    }
    true
}

pub(super) fn published<'a>(topic: &'a str, kept: &'a Kept) -> Published<'a> {
    Published {
        topic,
        publication: kept.publication,
        extra: &kept.extra,
        from: kept.serializer,
        payload: kept.payload(),
        encoded: None,
    }
}
