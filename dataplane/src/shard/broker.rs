//! Subscriptions and events: PUBLISH in, EVENTs out.
//!
//! An event is encoded once for each serializer among its receivers here, whatever their number, and goes to another
//! shard once, whatever the number of receivers there.

use super::conn::{Conn, Subscribed};
use super::flow::{Class, Queued, Queues};
use super::options::{self, PublishOptions};
use super::realm::{Spread, Topic, Waiting};
use super::relay::Publication;
use super::routes::resolve_topic;
use super::{ConnId, Shard};
use crate::mesh::Item;
use bytes::Bytes;
use common::ids::{Match, RouteKind, route_id};
use common::link::Claim;
use common::metrics::Counter;
use common::relay::Frame;
use common::transport::{FrameKind, HEADER_BYTES_MAX, write_header};
use common::uri::{is_reserved, is_valid, is_valid_pattern, wamp};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Dict, Payload, Serializer, transcode};

/// Events at least this long are shared by their receivers instead of copied to each.
const SHARE_BYTES_MIN: usize = 2_048;

/// Memory that is reused from message to message.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The payload transcoded, by serializer.
    payloads: [Transcoded; 3],
    /// The event encoded, by serializer.
    events: [Vec<u8>; 3],
    /// The event framed for sharing, by serializer and framing.
    shared: [[Option<Bytes>; 2]; 3],
    /// Something is in `shared`.
    is_shared: bool,
}

/// Bytes each scratch buffer keeps from message to message.
const SCRATCH_KEEP_BYTES_MAX: usize = 1 << 16;

/// A payload in another serializer.
#[derive(Debug, Default)]
pub(super) struct Transcoded {
    state: TranscodeState,
    bytes: Vec<u8>,
    args_len: usize,
    has_args: bool,
    has_kwargs: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum TranscodeState {
    #[default]
    Not,
    Done,
    /// The payload cannot be said in this serializer.
    Impossible,
}

impl Transcoded {
    /// Transcodes once; later calls for the same payload (until `reset`) only read.
    pub fn fill(&mut self, from: Serializer, to: Serializer, payload: Payload<'_>) -> Option<Payload<'_>> {
        if self.state == TranscodeState::Not {
            self.bytes.clear();
            self.has_args = payload.args.is_some();
            self.has_kwargs = payload.kwargs.is_some();
            let args = payload.args.map_or(Ok(()), |args| transcode::value(from, args, to, &mut self.bytes));
            self.args_len = self.bytes.len();
            let kwargs =
                payload.kwargs.map_or(Ok(()), |kwargs| transcode::value(from, kwargs, to, &mut self.bytes));
            self.state =
                if args.and(kwargs).is_ok() { TranscodeState::Done } else { TranscodeState::Impossible };
        }
        if self.state == TranscodeState::Impossible {
            return None;
        }
        let (args, kwargs) = self.bytes.split_at(self.args_len);
        Some(Payload { args: self.has_args.then_some(args), kwargs: self.has_kwargs.then_some(kwargs) })
    }

    pub fn reset(&mut self) {
        if self.state != TranscodeState::Not {
            self.state = TranscodeState::Not;
            self.bytes.clear();
            self.bytes.shrink_to(SCRATCH_KEEP_BYTES_MAX);
        }
    }
}

/// One event to deliver here.
struct Event<'a> {
    subscription: u64,
    publication: u64,
    /// The topic, said to pattern subscribers (WAMP, advanced profile, "Pattern-based Subscriptions").
    topic: Option<&'a str>,
    from: Serializer,
    payload: Payload<'a>,
    /// The whole message in `from`, as another node encoded it.
    encoded: Option<&'a [u8]>,
    /// Subscribers here; for few, encoding in place is cheaper than encoding once and copying.
    receivers: usize,
}

impl Event<'_> {
    #[inline]
    fn write(&self, to: Serializer, out: &mut Vec<u8>, payload: Payload<'_>) {
        match self.topic {
            None => encode::event(to, out, self.subscription, self.publication, &[], payload),
            Some(topic) => {
                let details = [("topic", Field::Str(topic))];
                encode::event(to, out, self.subscription, self.publication, &details, payload);
            }
        }
    }
}

impl Scratch {
    /// The event in `to`, or nothing when its payload cannot be said in it.
    #[inline]
    fn event(&mut self, event: &Event<'_>, to: Serializer) -> Option<&[u8]> {
        let at = to.index();
        if let Some(encoded) = event.encoded.filter(|_| to == event.from && self.events[at].is_empty()) {
            self.events[at].extend_from_slice(encoded);
        }
        if self.events[at].is_empty() {
            let payload = if to == event.from {
                event.payload
            } else {
                self.payloads[at].fill(event.from, to, event.payload)?
            };
            event.write(to, &mut self.events[at], payload);
        }
        Some(&self.events[at])
    }

    /// The event's whole frame for `conn`, shared with every receiver of the same framing and serializer.
    fn shared(&mut self, conn: &Conn) -> Bytes {
        let (serializer, framing) = (conn.serializer, conn.framing);
        let message = &self.events[serializer.index()];
        self.is_shared = true;
        let slot = &mut self.shared[serializer.index()][framing as usize];
        slot.get_or_insert_with(|| {
            let mut frame = Vec::with_capacity(message.len() + HEADER_BYTES_MAX);
            write_header(framing, serializer, FrameKind::Message, message.len(), &mut frame);
            frame.extend_from_slice(message);
            frame.into()
        })
        .clone()
    }

    fn next_subscription(&mut self) {
        for event in &mut self.events {
            event.clear();
            if event.capacity() > SCRATCH_KEEP_BYTES_MAX {
                *event = Vec::new();
            }
        }
        if std::mem::take(&mut self.is_shared) {
            self.shared = Default::default();
        }
    }

    fn next_payload(&mut self) {
        self.payloads.iter_mut().for_each(Transcoded::reset);
    }

    pub(super) fn payload(&mut self, to: Serializer) -> &mut Transcoded {
        &mut self.payloads[to.index()]
    }
}

impl Shard {
    /// PUBLISH from a session of this shard.
    #[inline]
    pub(super) fn publish(
        &mut self,
        slot: u32,
        request: u64,
        options: &Dict<'_>,
        topic: &str,
        payload: Payload<'_>,
    ) {
        let conn = self.at(slot);
        let from = conn.serializer;
        let session = self.session(slot);
        let (realm, strict, guess) = (session.realm, session.strict, session.last_topic);
        let options = match PublishOptions::read(options, strict) {
            Ok(options) => options,
            Err(bad) => return self.bad_option(slot, &bad),
        };
        let Some(at) = self.topic_route_from(slot, realm, topic, guess) else {
            if options.acknowledge {
                let text = format!("topic {:?} cannot be published to", super::login::shorten(topic));
                self.error(slot, code::PUBLISH, request, wamp::INVALID_URI, &text);
            }
            return;
        };
        self.metrics.count(Counter::Publishes);
        let publication = self.global_id();
        let resolved = self.cache.get(at);
        let (shards, nodes, subscription) = (resolved.shards, resolved.nodes, resolved.subscription);
        let topics = std::mem::take(&mut resolved.topics);
        let except = if options.exclude_me { slot } else { u32::MAX };
        self.deliver(&topics, publication, topic, from, payload, None, except);
        self.cache.get(at).topics = topics;
        for shard in shards.iter() {
            let realm = self.realms[realm as usize].id;
            let batch = self.mesh(shard);
            let topic = batch.put(topic.as_bytes());
            let payload = batch.put_payload(from, payload);
            batch.push(Item::Publish { realm, topic, publication, payload, event: None });
        }
        let acknowledge = options.acknowledge.then_some(request);
        let answered = !nodes.is_empty() && {
            let serializer = from;
            let event =
                Publication { realm, topic, subscription, publication, serializer, payload, acknowledge };
            self.relay_publish(slot, nodes, &event)
        };
        if options.acknowledge && !answered {
            self.reply(slot, |serializer, out| {
                encode::ids(serializer, out, code::PUBLISHED, &[request, publication]);
            });
        }
    }

    /// PUBLISH that came in on another shard.
    pub(super) fn publish_from_mesh(
        &mut self,
        realm: u32,
        topic: &str,
        publication: u64,
        from: Serializer,
        payload: Payload<'_>,
        event: Option<&[u8]>,
    ) {
        let Some(at) = self.topic_route(realm, topic) else { return };
        let topics = std::mem::take(&mut self.cache.get(at).topics);
        self.deliver(&topics, publication, topic, from, payload, event, u32::MAX);
        self.cache.get(at).topics = topics;
    }

    /// PUBLISH that came in on another node: for this node's sessions only.
    pub(super) fn publish_from_node(&mut self, realm: u32, frame: &Frame<'_>) {
        let (topic, from, payload) = (frame.uri, frame.serializer, frame.payload);
        let Some(at) = self.topic_route(realm, topic) else { return };
        let resolved = self.cache.get(at);
        let shards = resolved.shards;
        let topics = std::mem::take(&mut resolved.topics);
        self.deliver(&topics, frame.id, topic, from, payload, frame.event, u32::MAX);
        self.cache.get(at).topics = topics;
        for shard in shards.iter() {
            let batch = self.mesh(shard);
            let topic = batch.put(topic.as_bytes());
            let (event, payload) = match frame.event {
                Some(event) => {
                    let (event, payload) = batch.put_event(from, event, payload);
                    (Some(event), payload)
                }
                None => (None, batch.put_payload(from, payload)),
            };
            batch.push(Item::Publish { realm: frame.realm, topic, publication: frame.id, payload, event });
        }
    }

    /// As `topic_route`, looking first where the session's last topic was.
    #[inline]
    fn topic_route_from(&mut self, slot: u32, realm: u32, topic: &str, guess: u32) -> Option<usize> {
        let version = self.routes_version(realm);
        if self.cache.is_at(guess, realm, RouteKind::Topic, topic, version) {
            self.metrics.count(Counter::RouteCacheHits);
            return Some(guess as usize);
        }
        let at = self.topic_route(realm, topic)?;
        self.session(slot).last_topic = at as u32;
        Some(at)
    }

    /// The cache entry of a topic, or nothing when it may not be published to.
    #[inline]
    fn topic_route(&mut self, realm: u32, topic: &str) -> Option<usize> {
        let (state, version) = (&self.realms[realm as usize], self.routes_version(realm));
        if let Some(at) = self.cache.find(realm, RouteKind::Topic, topic, version) {
            self.metrics.count(Counter::RouteCacheHits);
            return Some(at);
        }
        let rule = state.settings.as_ref().map_or_else(Default::default, |settings| settings.uri_rule);
        if is_reserved(topic) || !is_valid(topic, rule) {
            return None;
        }
        self.metrics.count(Counter::RouteCacheMisses);
        let resolved = resolve_topic(state, &self.folded, self.me, topic);
        Some(self.cache.put(realm, RouteKind::Topic, topic, version, resolved))
    }

    /// Queues an event to every subscriber here of `topics`, except the connection in slot `except`. `encoded`: the
    /// message for subscribers of exactly this topic, if it came as one.
    fn deliver(
        &mut self,
        topics: &[u32],
        publication: u64,
        topic: &str,
        from: Serializer,
        payload: Payload<'_>,
        encoded: Option<&[u8]>,
        except: u32,
    ) {
        let scratch = &mut self.scratch;
        scratch.next_payload();
        for index in topics {
            let Some(subscription) = self.topics.get(*index as usize) else { continue };
            scratch.next_subscription();
            let event = Event {
                subscription: subscription.id,
                publication,
                topic: (subscription.policy != Match::Exact).then_some(topic),
                from,
                payload,
                encoded: encoded.filter(|_| subscription.policy == Match::Exact),
                receivers: subscription.subscribers.len(),
            };
            let conns = &mut self.conns;
            let mut queues = Queues {
                pool: &mut self.pool,
                metrics: &mut self.metrics,
                dirty: &mut self.dirty,
                queued_bytes: &mut self.queued_bytes,
                policy: &self.config.slow_receiver,
            };
            let mut events = 0;
            for slot in &subscription.subscribers {
                if *slot == except {
                    continue;
                }
                let Some(Some(conn)) = conns.get_mut(*slot as usize) else { continue };
                match queue_event(&mut queues, scratch, &event, *slot, conn) {
                    Queued::Yes => events += 1,
                    Queued::Doomed => self.doomed.push(ConnId { slot: *slot, generation: conn.generation }),
                    Queued::TooLarge => queues.metrics.count(Counter::DroppedTooLarge),
                    Queued::Full => {}
                }
            }
            self.metrics.add(Counter::Events, events);
        }
    }

    /// SUBSCRIBE (WAMP, basic profile, "Subscribing and Unsubscribing").
    pub(super) fn subscribe(&mut self, slot: u32, request: u64, options: &Dict<'_>, uri: &str) {
        let session = self.session(slot);
        let (realm, strict) = (session.realm, session.strict);
        let held = session.subscriptions.len() + session.pending as usize;
        let policy = match options::policy(options, "SUBSCRIBE", strict) {
            Ok(policy) => policy,
            Err(bad) => return self.bad_option(slot, &bad),
        };
        let settings = self.realms[realm as usize].settings.as_ref();
        let rule = settings.map_or_else(Default::default, |settings| settings.uri_rule);
        if !is_valid_pattern(uri, policy, rule) {
            let text = format!("{:?} is not a valid {} topic", super::login::shorten(uri), policy.name());
            return self.error(slot, code::SUBSCRIBE, request, wamp::INVALID_URI, &text);
        }
        if held >= self.config.limits.subscriptions_max as usize {
            self.metrics.count(Counter::LimitReached);
            let text = format!("a session may hold {} subscriptions", self.config.limits.subscriptions_max);
            return self.error(slot, code::SUBSCRIBE, request, wamp::UNAVAILABLE, &text);
        }
        let topic = match self.realms[realm as usize].topics.get(policy, uri) {
            Some(topic) => *topic,
            None => self.new_topic(realm, policy, uri),
        };
        let id = self.topics[topic as usize].id;
        if self.session(slot).subscriptions.get(&id).is_some_and(|held| held.topic != topic) {
            self.metrics.count(Counter::IdCollisions);
            self.drop_topic_if_unused(topic);
            let text = "its subscription id belongs to another subscription of this session";
            return self.error(slot, code::SUBSCRIBE, request, wamp::UNAVAILABLE, text);
        }
        let waiting = Waiting { owner: self.owner(slot), request };
        if self.topics[topic as usize].spread.missing.is_empty() {
            self.subscribed(topic, waiting);
        } else {
            self.session(slot).pending += 1;
            self.topics[topic as usize].spread.waiting.push(waiting);
        }
    }

    fn new_topic(&mut self, realm: u32, policy: Match, uri: &str) -> u32 {
        let realm_id = self.realms[realm as usize].id;
        let id = route_id(realm_id, RouteKind::Topic, policy, uri);
        let spread = Spread { missing: self.others(), token: self.token(), waiting: Vec::new() };
        let token = spread.token;
        let topic = Topic { id, realm, policy, uri: uri.into(), subscribers: Vec::new(), spread };
        let index = self.topics.insert(topic) as u32;
        let state = &mut self.realms[realm as usize];
        state.topics.insert(policy, uri, index);
        state.version += 1;
        self.spread_route(
            realm,
            RouteKind::Topic,
            policy,
            uri,
            token,
            super::register::Awaited::Topic(index),
        );
        index
    }

    /// Answers a SUBSCRIBE whose topic every shard routes here.
    pub(super) fn subscribed(&mut self, topic: u32, waiting: Waiting) {
        let slot = waiting.owner.slot;
        let state = &self.topics[topic as usize];
        let (subscription, place) = (state.id, state.subscribers.len() as u32);
        let Some(session) = self.session_of(waiting.owner) else { return };
        if !session.subscriptions.contains_key(&subscription) {
            session.subscriptions.insert(subscription, Subscribed { topic, place });
            self.topics[topic as usize].subscribers.push(slot);
            self.subscriptions += 1;
        }
        self.reply(slot, |serializer, out| {
            encode::ids(serializer, out, code::SUBSCRIBED, &[waiting.request, subscription]);
        });
    }

    /// UNSUBSCRIBE.
    pub(super) fn unsubscribe(&mut self, slot: u32, request: u64, subscription: u64) {
        match self.session(slot).subscriptions.remove(&subscription) {
            Some(held) => {
                self.remove_subscriber(held.topic, held.place);
                self.reply(slot, |serializer, out| {
                    encode::ids(serializer, out, code::UNSUBSCRIBED, &[request])
                });
            }
            None => {
                let text = format!("this session holds no subscription {subscription}");
                self.error(slot, code::UNSUBSCRIBE, request, wamp::NO_SUCH_SUBSCRIPTION, &text);
            }
        }
    }

    /// Takes a subscriber out of a topic; the session's own table is the caller's business.
    pub(super) fn remove_subscriber(&mut self, topic: u32, place: u32) {
        let state = &mut self.topics[topic as usize];
        state.subscribers.swap_remove(place as usize);
        self.subscriptions -= 1;
        let id = state.id;
        if let Some(moved) = state.subscribers.get(place as usize).copied()
            && let Some(session) = &mut self.at(moved).session
            && let Some(subscribed) = session.subscriptions.get_mut(&id)
        {
            subscribed.place = place;
        }
        self.drop_topic_if_unused(topic);
    }

    pub(super) fn drop_topic_if_unused(&mut self, topic: u32) {
        let state = &self.topics[topic as usize];
        if !state.subscribers.is_empty() || !state.spread.waiting.is_empty() {
            return;
        }
        let state = self.topics.remove(topic as usize);
        self.awaited.remove(&state.spread.token);
        let realm = &mut self.realms[state.realm as usize];
        realm.topics.remove(state.policy, &state.uri);
        realm.version += 1;
        self.unspread_route(state.realm, RouteKind::Topic, state.policy, &state.uri);
    }

    /// Reports a route of this shard and asks every other shard to route to it.
    pub(super) fn spread_route(
        &mut self,
        realm: u32,
        kind: RouteKind,
        policy: Match,
        uri: &str,
        token: u64,
        awaited: super::register::Awaited,
    ) {
        let realm = self.realms[realm as usize].id;
        let claim = Claim::Routed { realm, kind, policy, uri: uri.to_owned() };
        let seq = self.claims.push(claim, &mut self.metrics);
        if !self.others().is_empty() {
            self.awaited.insert(token, awaited);
        }
        for shard in self.others().iter() {
            let batch = self.mesh(shard);
            let route = batch.put_route(realm, kind, policy, uri);
            batch.push(Item::RouteAdd { route, seq, token });
        }
    }

    /// Takes a route of this shard back.
    pub(super) fn unspread_route(&mut self, realm: u32, kind: RouteKind, policy: Match, uri: &str) {
        let realm = self.realms[realm as usize].id;
        let claim = Claim::Unrouted { realm, kind, policy, uri: uri.to_owned() };
        let seq = self.claims.push(claim, &mut self.metrics);
        for shard in self.others().iter() {
            let batch = self.mesh(shard);
            let route = batch.put_route(realm, kind, policy, uri);
            batch.push(Item::RouteRemove { route, seq });
        }
    }
}

/// Queues one event to one receiver.
#[inline]
fn queue_event(
    queues: &mut Queues<'_>,
    scratch: &mut Scratch,
    event: &Event<'_>,
    slot: u32,
    conn: &mut Conn,
) -> Queued {
    if conn.dropped > 0 {
        return queue_event_after_loss(queues, scratch, event, slot, conn);
    }
    if let Some(message) = event.encoded
        && conn.serializer == event.from
        && message.len() < SHARE_BYTES_MIN
    {
        return queues.push(slot, conn, Class::Event, message);
    }
    if event.receivers <= 2 && conn.serializer == event.from {
        return queues.push_with(slot, conn, Class::Event, |to, out| event.write(to, out, event.payload));
    }
    let Some(message) = scratch.event(event, conn.serializer) else {
        queues.metrics.count(Counter::DroppedTranscode);
        return Queued::Full;
    };
    if message.len() < SHARE_BYTES_MIN {
        return queues.push(slot, conn, Class::Event, message);
    }
    let bytes = message.len();
    let frame = scratch.shared(conn);
    queues.push_shared(slot, conn, frame, bytes)
}

/// As `queue_event`, to a session that has lost events and is not yet told: this event says how many
/// (`Details._dropped`).
#[cold]
fn queue_event_after_loss(
    queues: &mut Queues<'_>,
    scratch: &mut Scratch,
    event: &Event<'_>,
    slot: u32,
    conn: &mut Conn,
) -> Queued {
    let dropped = std::mem::take(&mut conn.dropped);
    let to = conn.serializer;
    let payload = if to == event.from {
        Some(event.payload)
    } else {
        scratch.payloads[to.index()].fill(event.from, to, event.payload)
    };
    let Some(payload) = payload else {
        queues.metrics.count(Counter::DroppedTranscode);
        return Queued::Full;
    };
    let mut details = vec![("_dropped", Field::UInt(u64::from(dropped)))];
    details.extend(event.topic.map(|topic| ("topic", Field::Str(topic))));
    let queued = queues.push_with(slot, conn, Class::Event, |to, out| {
        encode::event(to, out, event.subscription, event.publication, &details, payload);
    });
    if queued != Queued::Yes {
        conn.dropped = conn.dropped.saturating_add(dropped);
    }
    queued
}
