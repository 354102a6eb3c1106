//! Meta events. They are published where what they tell of happens, to every shard and node with a subscriber.
//!
//! Nobody else may publish to the router's topics: how these are routed is kept apart in the cache, under
//! [`ROUTERS`], where PUBLISH does not look. With no subscriber an event costs a look-up there.
//!
//! `on_create` and `on_delete` tell of the first and the last holder in the cluster, as far as the shard where it happens
//! knows: two sessions that subscribe at the same moment on two shards may both be said to have created the
//! subscription; of two that leave so each sees the other still there, and neither is said to have deleted it.

use super::look::session_details;
use super::procedures::route_details;
use super::query::RouteInfo;
use crate::shard::Shard;
use crate::shard::delivery::Published;
use crate::shard::relay::Publication;
use crate::shard::routes::{holders, is_known_elsewhere, resolve_topic};
use common::ids::{Match, RouteKind, route_id};
use common::metrics::Counter;
use common::wire::{OwnedValue, Payload, Serializer};

/// Marks the realm of the cache's entries for the router's topics.
pub(in crate::shard) const ROUTERS: u32 = 1 << 31;

/// A subscription or registration that an event is about.
#[derive(Clone, Debug)]
pub(in crate::shard) struct About {
    kind: RouteKind,
    realm: u32,
    id: u64,
    policy: Match,
    uri: Box<str>,
}

impl Shard {
    /// The cache entry of one of the router's own topics.
    pub(in crate::shard) fn router_route(&mut self, realm: u32, topic: &str) -> usize {
        let (key, version) = (realm | ROUTERS, self.routes_version(realm));
        if let Some(at) = self.cache.find(key, RouteKind::Topic, topic, version) {
            return at;
        }
        let resolved = resolve_topic(&self.realms[realm as usize], &self.folded, self.me, topic);
        self.cache.put(key, RouteKind::Topic, topic, version, resolved)
    }

    /// The cache entry of a topic of the router's that somebody listens to.
    fn heard(&mut self, realm: u32, topic: &str) -> Option<usize> {
        let at = self.router_route(realm, topic);
        let resolved = self.cache.get(at);
        let heard = !resolved.topics.is_empty() || !resolved.shards.is_empty() || !resolved.nodes.is_empty();
        heard.then_some(at)
    }

    /// Publishes to a topic of the router's, on the way that the session in `slot` takes to other nodes.
    fn announce(
        &mut self,
        slot: u32,
        realm: u32,
        topic: &str,
        args: Vec<OwnedValue>,
        named: Option<(&str, &str)>,
    ) {
        let Some(at) = self.heard(realm, topic) else { return };
        let Some(extra) = self.audience_of(realm, topic) else { return };
        let from = Serializer::MsgPack;
        let args = OwnedValue::List(args).to_bytes(from);
        let kwargs = named.map(|entry| OwnedValue::dict([entry]).to_bytes(from));
        let payload = Payload { args: Some(&args), kwargs: kwargs.as_deref() };
        self.metrics.count(Counter::MetaEvents);
        let publication = self.global_id();
        let resolved = self.cache.get(at);
        let (shards, nodes, subscription) = (resolved.shards, resolved.nodes, resolved.subscription);
        let published = Published { topic, publication, extra: &extra, from, payload, encoded: None };
        self.deliver_at(at, &published, u32::MAX);
        self.publish_to_shards(realm, shards, &published);
        if !nodes.is_empty() {
            let event = Publication { realm, subscription, published: &published, acknowledge: None };
            self.relay_publish(slot, nodes, &event);
        }
    }

    /// A session was welcomed.
    pub(in crate::shard) fn joined(&mut self, slot: u32) {
        let topic = "wamp.session.on_join";
        let realm = self.session(slot).realm;
        if self.heard(realm, topic).is_none() {
            return;
        }
        let conn = self.at(slot);
        let Some(session) = &conn.session else { return };
        let details = session_details(conn, session);
        self.announce(slot, realm, topic, vec![details], None);
    }

    /// A session has ended, and is about to leave its topics.
    pub(in crate::shard) fn left(&mut self, slot: u32) {
        let topic = "wamp.session.on_leave";
        let Some(session) = self.at(slot).leaving.as_ref().filter(|session| !session.silent) else { return };
        let realm = session.realm;
        if self.heard(realm, topic).is_none() {
            return;
        }
        let Some(session) = &self.at(slot).leaving else { return };
        let identity = &session.identity;
        let args = vec![session.id.into(), (*identity.authid).into(), (*identity.authrole).into()];
        self.announce(slot, realm, topic, args, None);
    }

    /// A session has subscribed. `created`: nobody had.
    pub(in crate::shard) fn has_subscribed(&mut self, slot: u32, topic: u32, created: bool) {
        let realm = self.topics[topic as usize].realm;
        let [create, add] = ["wamp.subscription.on_create", "wamp.subscription.on_subscribe"];
        if !self.hears_any(realm, [create, add]) {
            return;
        }
        let topic = &self.topics[topic as usize];
        let about = About {
            kind: RouteKind::Topic,
            realm,
            id: topic.id,
            policy: topic.policy,
            uri: topic.uri.clone(),
        };
        let info = RouteInfo {
            policy: topic.policy,
            uri: topic.uri.to_string(),
            created_ms: topic.created_ms,
            invoke: String::new(),
        };
        self.holder_added(slot, &about, created.then_some(&info), [create, add]);
    }

    /// A session has registered. `created`: nobody had.
    pub(in crate::shard) fn has_registered(&mut self, slot: u32, index: u32, created: bool) {
        let realm = self.procedures[index as usize].realm;
        let [create, add] = ["wamp.registration.on_create", "wamp.registration.on_register"];
        if !self.hears_any(realm, [create, add]) {
            return;
        }
        let info = self.procedure_info(index);
        let procedure = &self.procedures[index as usize];
        let (id, policy, uri) = (procedure.id, procedure.policy, procedure.uri.clone());
        let about = About { kind: RouteKind::Procedure, realm, id, policy, uri };
        self.holder_added(slot, &about, created.then_some(&info), [create, add]);
    }

    fn holder_added(&mut self, slot: u32, about: &About, created: Option<&RouteInfo>, topics: [&str; 2]) {
        let Some(session) = self.holder(slot) else { return };
        let named = Some((key(about.kind), &*about.uri));
        if let Some(info) = created {
            let details = route_details(about.kind, about.id, info);
            self.announce(slot, about.realm, topics[0], vec![session.into(), details], named);
        }
        self.announce(slot, about.realm, topics[1], vec![session.into(), about.id.into()], named);
    }

    fn hears_any(&mut self, realm: u32, topics: [&str; 2]) -> bool {
        topics.into_iter().any(|topic| self.heard(realm, topic).is_some())
    }

    /// The session in a slot, or the one that is just leaving it.
    fn holder(&self, slot: u32) -> Option<u64> {
        let conn = self.conns.get(slot as usize)?.as_ref()?;
        let session = conn.session.as_ref().or(conn.leaving.as_ref())?;
        (!session.silent).then_some(session.id)
    }

    /// Somebody listens to what is told when a session loses a subscription.
    pub(in crate::shard) fn hears_unsubscribing(&mut self, realm: u32) -> bool {
        self.hears_any(realm, endings(RouteKind::Topic))
    }

    /// What is to be told when a session loses a subscription; nothing when nobody listens.
    pub(in crate::shard) fn about_topic(&mut self, topic: u32) -> Option<About> {
        let realm = self.topics[topic as usize].realm;
        let heard = self.hears_any(realm, endings(RouteKind::Topic));
        let topic = &self.topics[topic as usize];
        let (id, policy) = (topic.id, topic.policy);
        heard.then(|| About { kind: RouteKind::Topic, realm, id, policy, uri: topic.uri.clone() })
    }

    /// What is to be told when a session loses a registration; nothing when nobody listens.
    pub(in crate::shard) fn about_procedure(&mut self, index: u32) -> Option<About> {
        let realm = self.procedures[index as usize].realm;
        let heard = self.hears_any(realm, endings(RouteKind::Procedure));
        let procedure = &self.procedures[index as usize];
        let (id, policy) = (procedure.id, procedure.policy);
        heard.then(|| About { kind: RouteKind::Procedure, realm, id, policy, uri: procedure.uri.clone() })
    }

    /// A session has lost a subscription or registration. `last`: nobody here holds it any more.
    pub(in crate::shard) fn holder_removed(&mut self, slot: u32, about: Option<About>, last: bool) {
        let Some(about) = about else { return };
        let Some(session) = self.holder(slot) else { return };
        let [remove, delete] = endings(about.kind);
        let (args, named) = (vec![session.into(), about.id.into()], Some((key(about.kind), &*about.uri)));
        self.announce(slot, about.realm, remove, args.clone(), named);
        if last && !self.is_held_by_others(&about) {
            self.announce(slot, about.realm, delete, args, named);
        }
    }

    /// The last callee of a shared registration in this node, a session of this shard, has left it.
    pub(in crate::shard) fn registration_emptied(
        &mut self,
        realm: u32,
        policy: Match,
        uri: &str,
        session: u64,
    ) {
        let kind = RouteKind::Procedure;
        let state = &self.realms[realm as usize];
        if !holders(state, &self.folded, policy, uri).is_empty() {
            return;
        }
        let id = route_id(state.id, kind, policy, uri);
        let (args, named) = (vec![session.into(), id.into()], Some((key(kind), uri)));
        self.announce(0, realm, endings(kind)[1], args, named);
    }

    fn is_held_by_others(&self, about: &About) -> bool {
        let realm = &self.realms[about.realm as usize];
        is_known_elsewhere(realm, &self.folded, self.me, (about.kind, about.policy, &about.uri))
    }
}

const fn key(kind: RouteKind) -> &'static str {
    match kind {
        RouteKind::Topic => "topic",
        RouteKind::Procedure => "procedure",
    }
}

const fn endings(kind: RouteKind) -> [&'static str; 2] {
    match kind {
        RouteKind::Topic => ["wamp.subscription.on_unsubscribe", "wamp.subscription.on_delete"],
        RouteKind::Procedure => ["wamp.registration.on_unregister", "wamp.registration.on_delete"],
    }
}
