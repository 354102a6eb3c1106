//! Subscriptions and publications: PUBLISH in, each node and shard with a subscriber told once.

use super::Shard;
use super::conn::Subscribed;
use super::delivery::Published;
use super::features::Features;
use super::options::{self, BadOption};
use super::publication::{self, Extra, PublishOptions, Refused};
use super::realm::{Spread, Topic, Waiting};
use super::relay::Publication;
use super::routes::{is_known_elsewhere, resolve_topic};
use super::sharded::{Keys, NODE_KEYS_MAX};
use crate::mesh::Item;
use common::ids::{Match, RealmId, RouteKind, ShardSet, route_id};
use common::limits::AUDIENCE_ENTRIES_MAX;
use common::link::Claim;
use common::metrics::Counter;
use common::relay::Frame;
use common::rules::Bound;
use common::uri::{is_reserved, is_valid, is_valid_pattern, wamp};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Dict, Payload};
use std::time::Duration;

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
        let strict = self.session(slot).strict;
        match PublishOptions::read(options, strict) {
            Ok(asked) if asked.is_plain => {
                self.publish_with(slot, request, asked, &[], topic, payload);
            }
            Ok(asked) => self.publish_special(slot, request, asked, options, topic, payload),
            Err(bad) => self.bad_option(slot, &bad),
        }
    }

    /// PUBLISH that asks for more than most.
    #[cold]
    fn publish_special(
        &mut self,
        slot: u32,
        request: u64,
        asked: PublishOptions,
        options: &Dict<'_>,
        topic: &str,
        payload: Payload<'_>,
    ) {
        let session = self.session(slot);
        let strict = session.strict;
        let unannounced = strict && !session.features.has(Features::PASSTHRU);
        match publication::pack(options, &session.identity.disclosed(session.id), strict) {
            Ok(packed) if unannounced && Extra::parse(&packed).is_some_and(|extra| !extra.ppt.is_empty()) => {
                let text = "PUBLISH asks for payload_passthru_mode, which this client did not announce";
                self.bad_option(slot, &BadOption(text.to_owned()));
            }
            Ok(packed) if asked.retain => match publication::retained_ttl(options, strict) {
                Ok(ttl) => self.publish_retained(slot, request, (asked, ttl), &packed, topic, payload),
                Err(bad) => self.bad_option(slot, &bad),
            },
            Ok(packed) => _ = self.publish_with(slot, request, asked, &packed, topic, payload),
            Err(Refused::BadOption(bad)) => self.bad_option(slot, &bad),
            Err(Refused::TooLong) => {
                self.metrics.count(Counter::LimitReached);
                if asked.acknowledge {
                    let text = format!("the lists of receivers may have {AUDIENCE_ENTRIES_MAX} entries");
                    self.error(slot, code::PUBLISH, request, wamp::INVALID_ARGUMENT, &text);
                }
            }
        }
    }

    /// PUBLISH of an event that its topic is to retain.
    fn publish_retained(
        &mut self,
        slot: u32,
        request: u64,
        (asked, ttl): (PublishOptions, Option<Duration>),
        extra: &[u8],
        topic: &str,
        payload: Payload<'_>,
    ) {
        let from = self.at(slot).serializer;
        let session = self.session(slot);
        let (realm, except) = (session.realm, if asked.exclude_me { session.id } else { 0 });
        let Some(publication) = self.publish_with(slot, request, asked, extra, topic, payload) else {
            return;
        };
        let published = Published { topic, publication, extra, from, payload, encoded: None };
        self.retain(realm, &published, except, ttl);
    }

    /// `extra`: what was packed; no bytes for most publications. Returns the id of the publication, unless there is none.
    #[inline]
    fn publish_with(
        &mut self,
        slot: u32,
        request: u64,
        options: PublishOptions,
        extra: &[u8],
        topic: &str,
        payload: Payload<'_>,
    ) -> Option<u64> {
        let conn = self.at(slot);
        let from = conn.serializer;
        let session = self.session(slot);
        let (realm, guess) = (session.realm, session.last_topic);
        let Some(at) = self.topic_route_from(slot, realm, topic, guess) else {
            if options.acknowledge {
                let text = format!("topic {:?} cannot be published to", super::login::shorten(topic));
                self.error(slot, code::PUBLISH, request, wamp::INVALID_URI, &text);
            }
            return None;
        };
        self.metrics.count(Counter::Publishes);
        let publication = self.global_id();
        let resolved = self.cache.get(at);
        let (shards, nodes, subscription) = (resolved.shards, resolved.nodes, resolved.subscription);
        let stamped = if resolved.stamps { self.stamp(extra) } else { Vec::new() };
        let extra = if stamped.is_empty() { extra } else { &stamped };
        let except = if options.exclude_me { slot } else { u32::MAX };
        let published = Published { topic, publication, extra, from, payload, encoded: None };
        self.deliver_at(at, &published, except);
        self.publish_to_shards(realm, shards, &published);
        let acknowledge = options.acknowledge.then_some(request);
        let published = &published;
        let answered = !nodes.is_empty()
            && self.relay_publish(slot, nodes, &Publication { realm, subscription, published, acknowledge });
        if options.acknowledge && !answered {
            self.reply(slot, |serializer, out| {
                encode::ids(serializer, out, code::PUBLISHED, &[request, publication]);
            });
        }
        Some(publication)
    }

    /// Delivers to the subscribers here that the cache's entry `at` names.
    #[inline]
    pub(super) fn deliver_at(&mut self, at: usize, published: &Published<'_>, except: u32) {
        let resolved = self.cache.get(at);
        if resolved.topics.is_empty() {
            return;
        }
        let (topics, keeps) = (std::mem::take(&mut resolved.topics), resolved.keeps);
        if published.extra.is_empty() {
            self.deliver(&topics, published, None, except);
        } else if let Some(extra) = Extra::parse(published.extra) {
            if let Some(stamp) = extra.stamp {
                self.follow_stamp(stamp);
            }
            self.deliver(&topics, published, Some(&extra), except);
        }
        if keeps {
            self.keep(&topics, published);
        }
        self.cache.get(at).topics = topics;
    }

    #[inline]
    pub(super) fn publish_to_shards(&mut self, realm: u32, shards: ShardSet, published: &Published<'_>) {
        let realm = self.realms[realm as usize].id;
        let Published { publication, from, payload, .. } = *published;
        for shard in shards.iter() {
            let batch = self.mesh(shard);
            let topic = batch.put(published.topic.as_bytes());
            let extra = batch.put(published.extra);
            let (event, payload) = match published.encoded {
                Some(event) => {
                    let (event, payload) = batch.put_event(from, event, payload);
                    (Some(event), payload)
                }
                None => (None, batch.put_payload(from, payload)),
            };
            batch.push(Item::Publish { realm, topic, publication, extra, payload, event });
        }
    }

    /// PUBLISH that came in on another shard.
    pub(super) fn publish_from_mesh(&mut self, realm: u32, published: &Published<'_>) {
        if let Some(at) = self.any_topic_route(realm, published.topic) {
            self.deliver_at(at, published, u32::MAX);
        }
    }

    /// PUBLISH that came in on another node: for this node's sessions only.
    /// `guess`: where the route cache may have its topic.
    #[inline]
    pub(super) fn publish_from_node(&mut self, realm: u32, frame: &Frame<'_>, guess: &mut u32) {
        let version = self.routes_version(realm);
        if self.cache.is_at(*guess, realm, RouteKind::Topic, frame.uri, version) {
            self.metrics.count(Counter::RouteCacheHits);
        } else {
            let Some(at) = self.any_topic_route(realm, frame.uri) else { return };
            *guess = at as u32;
        }
        let at = *guess as usize;
        let shards = self.cache.get(at).shards;
        let published = Published {
            topic: frame.uri,
            publication: frame.id,
            extra: frame.extra,
            from: frame.serializer,
            payload: frame.payload,
            encoded: frame.event,
        };
        self.deliver_at(at, &published, u32::MAX);
        self.publish_to_shards(realm, shards, &published);
    }

    /// As `topic_route`, of what the router may publish to as well.
    #[inline]
    fn any_topic_route(&mut self, realm: u32, topic: &str) -> Option<usize> {
        let at = self.topic_route(realm, topic);
        at.or_else(|| is_reserved(topic).then(|| self.router_route(realm, topic)))
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

    /// SUBSCRIBE (WAMP, basic profile, "Subscribing and Unsubscribing").
    pub(super) fn subscribe(&mut self, slot: u32, request: u64, options: &Dict<'_>, uri: &str) {
        let session = self.session(slot);
        let (realm, strict) = (session.realm, session.strict);
        let held = session.subscriptions.len() + session.pending as usize;
        let subscriptions_max = session.rules.bounds.get(Bound::Subscriptions);
        let policy = match options::policy(options, "SUBSCRIBE", strict) {
            Ok(policy) => policy,
            Err(bad) => return self.bad_option(slot, &bad),
        };
        let get_retained = match options::get_retained(options, strict) {
            Ok(get_retained) => get_retained,
            Err(bad) => return self.bad_option(slot, &bad),
        };
        let node_key = match options::node_key(options, strict) {
            Ok(node_key) => node_key,
            Err(bad) => return self.bad_option(slot, &bad),
        };
        let settings = self.realms[realm as usize].settings.as_ref();
        let rule = settings.map_or_else(Default::default, |settings| settings.uri_rule);
        if !is_valid_pattern(uri, policy, rule) {
            let text = format!("{:?} is not a valid {} topic", super::login::shorten(uri), policy.name());
            return self.error(slot, code::SUBSCRIBE, request, wamp::INVALID_URI, &text);
        }
        if held >= subscriptions_max as usize {
            self.metrics.count(Counter::LimitReached);
            let text = format!("this session may hold {subscriptions_max} subscriptions");
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
        if get_retained {
            self.session(slot).get_retained.push(request);
        }
        self.session(slot).node_keys.extend(node_key.map(|key| (request, key)));
        if self.topics[topic as usize].spread.missing.is_empty() {
            self.subscribed(topic, waiting);
        } else {
            self.session(slot).pending += 1;
            self.topics[topic as usize].spread.waiting.push(waiting);
        }
    }

    pub(super) fn new_topic(&mut self, realm: u32, policy: Match, uri: &str) -> u32 {
        let realm_id = self.realms[realm as usize].id;
        let id = route_id(realm_id, RouteKind::Topic, policy, uri);
        let spread = Spread { missing: self.others(), token: self.token(), waiting: Vec::new() };
        let token = spread.token;
        let state = &self.realms[realm as usize];
        let is_first = !is_known_elsewhere(state, &self.folded, self.me, (RouteKind::Topic, policy, uri));
        let (uri_kept, created_ms, subscribers) = (uri.into(), self.unix_ms(), Vec::new());
        let topic = Topic {
            id,
            realm,
            policy,
            uri: uri_kept,
            created_ms,
            is_first,
            kept: false,
            keys: Keys::default(),
            subscribers,
            spread,
        };
        let index = self.topics.insert(topic) as u32;
        self.ids.insert(RouteKind::Topic, id, index as usize);
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
        let named = &mut session.node_keys;
        let at = named.iter().position(|(request, _)| *request == waiting.request);
        let key = at.map(|at| named.swap_remove(at).1);
        if key.is_some_and(|key| self.topics[topic as usize].keys.is_full_for(key)) {
            return self.no_more_keys(waiting);
        }
        let Some(session) = self.session_of(waiting.owner) else { return };
        let added = !session.subscriptions.contains_key(&subscription);
        if added {
            session.subscriptions.insert(subscription, Subscribed { topic, place });
            self.topics[topic as usize].subscribers.push(slot);
            self.subscriptions += 1;
        }
        self.reply(slot, |serializer, out| {
            encode::ids(serializer, out, code::SUBSCRIBED, &[waiting.request, subscription]);
        });
        if added {
            let state = &mut self.topics[topic as usize];
            let created = std::mem::take(&mut state.is_first);
            self.has_subscribed(slot, topic, created);
        }
        if key.is_some() || !self.topics[topic as usize].keys.is_empty() {
            self.set_node_key(topic, slot, key);
        }
        let wanting = &mut self.session(slot).get_retained;
        if let Some(at) = wanting.iter().position(|request| *request == waiting.request) {
            wanting.swap_remove(at);
            self.replay_retained(slot, topic);
        }
    }

    /// A SUBSCRIBE names a node key, and there are too many others: so the topic is in use, and stays.
    #[cold]
    fn no_more_keys(&mut self, waiting: Waiting) {
        let slot = waiting.owner.slot;
        self.session(slot).get_retained.retain(|request| *request != waiting.request);
        self.metrics.count(Counter::LimitReached);
        let text = format!("a subscription may have {NODE_KEYS_MAX} node keys on each shard");
        self.error(slot, code::SUBSCRIBE, waiting.request, wamp::UNAVAILABLE, &text);
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

    /// Takes a subscription away from the session in a slot (WAMP, advanced profile, "Subscription Revocation"). False:
    /// the session does not hold it.
    pub(super) fn revoke_subscription(&mut self, slot: u32, subscription: u64, reason: &str) -> bool {
        let session = self.session(slot);
        let is_told = session.features.has(Features::SUBSCRIBER_REVOCATION);
        let Some(held) = session.subscriptions.remove(&subscription) else { return false };
        self.remove_subscriber(held.topic, held.place);
        self.metrics.count(Counter::SubscriptionsRevoked);
        if is_told {
            self.reply(slot, |serializer, out| {
                let details = [("subscription", Field::UInt(subscription)), ("reason", Field::Str(reason))];
                encode::id_dict(serializer, out, code::UNSUBSCRIBED, 0, &details);
            });
        }
        true
    }

    /// Takes a subscriber out of a topic; the session's own table is the caller's business.
    pub(super) fn remove_subscriber(&mut self, topic: u32, place: u32) {
        let about = self.about_topic(topic);
        let (slot, last) = self.take_out_subscriber(topic, place);
        self.holder_removed(slot, about, last);
    }

    /// As `remove_subscriber`, and nobody is told. The slot, and whether nobody here is subscribed any more.
    pub(super) fn take_out_subscriber(&mut self, topic: u32, place: u32) -> (u32, bool) {
        let state = &mut self.topics[topic as usize];
        let slot = state.subscribers.swap_remove(place as usize);
        let has_keys = !state.keys.is_empty();
        let last = state.subscribers.is_empty() && !state.kept;
        self.subscriptions -= 1;
        let id = state.id;
        if let Some(moved) = state.subscribers.get(place as usize).copied()
            && let Some(session) = self.at(moved).holding()
            && let Some(subscribed) = session.subscriptions.get_mut(&id)
        {
            subscribed.place = place;
        }
        if has_keys {
            self.set_node_key(topic, slot, None);
        }
        self.drop_topic_if_unused(topic);
        (slot, last)
    }

    pub(super) fn drop_topic_if_unused(&mut self, topic: u32) {
        let state = &self.topics[topic as usize];
        if state.kept || !state.subscribers.is_empty() || !state.spread.waiting.is_empty() {
            return;
        }
        let state = self.topics.remove(topic as usize);
        self.ids.remove(RouteKind::Topic, state.id, topic as usize);
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
        let id = self.realms[realm as usize].id;
        let claim = Claim::Routed { realm: id, kind, policy, uri: uri.to_owned() };
        self.spread_claim(claim, (id, kind, policy, uri), token, awaited);
    }

    /// As [`Shard::spread_route`], with a claim that says more.
    pub(super) fn spread_claim(
        &mut self,
        claim: Claim,
        (realm, kind, policy, uri): (RealmId, RouteKind, Match, &str),
        token: u64,
        awaited: super::register::Awaited,
    ) {
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
