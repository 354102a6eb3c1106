//! What this shard has to say to a question: its own sessions, and the routes they hold.

use super::query::{Op, Part, Query, RouteInfo};
use super::searches::{LOOK_SLICE, Place};
use crate::shard::Shard;
use crate::shard::conn::{Conn, Phase, Session};
use crate::shard::endings::{Ending, Whom};
use crate::shard::routes::{Precedence, precedence};
use common::ids::{Match, RouteKind, ShardId};
use common::metrics::Counter;
use common::transport::Framing;
use common::uri::wamp;
use common::wire::{OwnedValue, Serializer};
use std::time::Duration;

/// How long a killed session may take to answer GOODBYE.
const KILL_GOODBYE_TIME: Duration = Duration::from_secs(2);
/// What [`Op::ModifyDetails`] may add to a session's details, bytes.
const DETAILS_BYTES_MAX: usize = 8 << 10;

/// A session's details (WAMP, advanced profile, "Session Meta API").
pub(super) fn session_details(conn: &Conn, session: &Session) -> OwnedValue {
    let identity = &session.identity;
    let transport = match (conn.transport_kind(), conn.shown_framing()) {
        (Some(kind), _) => kind.name(),
        (None, Framing::RawSocket) => "rawsocket",
        (None, _) => "websocket",
    };
    let transport: [(&str, OwnedValue); 3] = [
        ("type", transport.into()),
        ("serializer", serializer_name(conn.serializer).into()),
        ("peer", conn.origin.to_string().into()),
    ];
    let transport = OwnedValue::dict(transport);
    let mut details = vec![
        ("session".to_owned(), session.id.into()),
        ("authid".to_owned(), (*identity.authid).into()),
        ("authrole".to_owned(), (*identity.authrole).into()),
        ("authmethod".to_owned(), identity.authmethod.into()),
        ("authprovider".to_owned(), identity.authprovider.into()),
        ("transport".to_owned(), transport),
    ];
    details.extend(session.details.iter().cloned());
    OwnedValue::Dict(details)
}

const fn serializer_name(serializer: Serializer) -> &'static str {
    match serializer {
        Serializer::Json => "json",
        Serializer::MsgPack => "msgpack",
        Serializer::Cbor => "cbor",
    }
}

/// Keys of a session's details that are not to be changed.
pub(super) const FIXED_DETAILS: [&str; 6] =
    ["session", "authid", "authrole", "authmethod", "authprovider", "transport"];

impl Shard {
    /// What is said here to a question about a realm; none: it is told to the asker later, as what is asked for takes more
    /// than one turn. The asker is a shard, and its question.
    pub(super) fn answer_of(&mut self, realm: u32, query: &Query, asker: (ShardId, u64)) -> Option<Part> {
        let begun = match query.op {
            op if op.ends_many() => return self.kill_many(realm, query, asker),
            // Without roles the realm knows.
            Op::CountSessions if !query.texts.is_empty() => (Place::Sessions(0), Part::default()),
            Op::ListSessions => (Place::Sessions(query.after), Part::default()),
            Op::ListRoutes => (Place::Routes(query.after, u32::MAX), Part::default()),
            Op::ListPeers => {
                let count = self.peers_count(realm, query);
                let part = Part { count, ..Part::default() };
                if count <= LOOK_SLICE as u64 {
                    return Some(Part { count, ..self.peers_of(realm, query) });
                }
                (Place::Sessions(query.after), part)
            }
            Op::GetEvents => match self.look_for_events(realm, query) {
                (part, Some(selection)) => (Place::Events(selection), part),
                (part, None) => return Some(part),
            },
            _ => return Some(self.look(realm, query)),
        };
        self.search(realm, query, asker, begun)
    }

    fn look(&mut self, realm: u32, query: &Query) -> Part {
        match query.op {
            Op::CountSessions => {
                Part { count: self.realms[realm as usize].sessions.into(), ..Part::default() }
            }
            Op::GetSession => {
                let found = self.session_by_id(realm, query.session);
                let details = found.map(|(_, conn, session)| session_details(conn, session));
                Part { count: details.is_some().into(), details, ..Part::default() }
            }
            Op::Kill => self.kill(realm, query),
            // See `answer_of`: they take more than one turn.
            Op::KillByAuthid | Op::KillByAuthrole | Op::KillAll => Part::default(),
            Op::ListSessions | Op::ListRoutes | Op::ListPeers | Op::GetEvents => Part::default(),
            Op::ModifyDetails => self.modify_details(realm, query),
            Op::MatchRoutes => self.match_routes(realm, query),
            Op::GetRoute => {
                let mut part = Part::default();
                match query.kind {
                    RouteKind::Topic => {
                        let topic = self.topic_of(realm, query.id);
                        part.routes.extend(topic.map(|topic| self.topic_info(topic)));
                    }
                    RouteKind::Procedure => {
                        for at in self.procedures_of(realm, query.id) {
                            part.add_route(self.procedure_info(at));
                        }
                    }
                }
                part.count = part.routes.len() as u64;
                part
            }
            Op::CountPeers => Part { count: self.peers_count(realm, query), ..Part::default() },
            Op::RemovePeer => self.remove_peer(realm, query),
            Op::FindEvents => self.look_for_events(realm, query).0,
        }
    }

    /// The open session in a slot, if it is of this realm.
    pub(super) fn session_in(&self, realm: u32, slot: u32) -> Option<(&Conn, &Session)> {
        let conn = self.conns.get(slot as usize)?.as_deref()?;
        let session = conn.session.as_deref()?;
        (session.realm == realm && conn.phase == Phase::Open).then_some((conn, session))
    }

    fn session_by_id(&self, realm: u32, session: u64) -> Option<(u32, &Conn, &Session)> {
        let slot = self.ids.slot_of(session)?;
        self.session_in(realm, slot).map(|(conn, session)| (slot, conn, session))
    }

    /// Ends one session (WAMP, advanced profile, "Session Meta API").
    fn kill(&mut self, realm: u32, query: &Query) -> Part {
        let [reason, message] = &*query.texts else { return Part::default() };
        let Some((slot, ..)) = self.session_by_id(realm, query.session) else { return Part::default() };
        self.metrics.count(Counter::KilledMeta);
        self.leave(slot, reason, message);
        self.set_deadline(slot, KILL_GOODBYE_TIME);
        Part { count: 1, ..Part::default() }
    }

    /// Ends all that are meant of a realm; none: it is told to the asker when they are.
    fn kill_many(&mut self, realm: u32, query: &Query, asker: (ShardId, u64)) -> Option<Part> {
        let (whom, reason, message) = match (query.op, &*query.texts) {
            (Op::KillAll, [reason, message]) => (Whom::All, reason, message),
            (Op::KillByAuthid, [who, reason, message]) => (Whom::Authid(who.clone()), reason, message),
            (Op::KillByAuthrole, [who, reason, message]) => (Whom::Authrole(who.clone()), reason, message),
            _ => return Some(Part::default()),
        };
        self.end_sessions(Ending {
            realm,
            whom,
            except: query.session,
            reason: reason.clone(),
            message: message.clone(),
            silent: query.op == Op::KillAll,
            counter: Some(Counter::KilledMeta),
            limit: query.limit,
            asker: Some(asker),
        })
    }

    fn modify_details(&mut self, realm: u32, query: &Query) -> Part {
        let found = self.session_by_id(realm, query.session);
        let Some((slot, ..)) = found else { return Part::default() };
        let Some(delta) = query.details.as_dict() else { return Part::default() };
        let session = self.session(slot);
        let mut details = session.details.clone();
        for (key, value) in delta.iter().filter(|(key, _)| !FIXED_DETAILS.contains(&&**key)) {
            details.retain(|(known, _)| known != key);
            if !value.is_null() {
                details.push((key.clone(), value.clone()));
            }
        }
        let bytes = OwnedValue::Dict(details.clone()).to_bytes(Serializer::MsgPack).len();
        if bytes > DETAILS_BYTES_MAX {
            self.metrics.count(Counter::LimitReached);
            return Part { count: 1, more: true, ..Part::default() };
        }
        session.details = details;
        Part { count: 1, ..Part::default() }
    }

    /// Policy and id of a route of this realm that somebody here holds.
    pub(super) fn listed(&self, realm: u32, kind: RouteKind, at: u32) -> Option<(Match, u64)> {
        match kind {
            RouteKind::Topic => {
                let topic = self.topics.get(at as usize)?;
                let is_held = topic.realm == realm && (topic.kept || !topic.subscribers.is_empty());
                is_held.then_some((topic.policy, topic.id))
            }
            RouteKind::Procedure => {
                let procedure = self.procedures.get(at as usize)?;
                (procedure.realm == realm).then_some((procedure.policy, procedure.id))
            }
        }
    }

    /// All subscriptions, or the best registration of this shard, that match a URI.
    fn match_routes(&self, realm: u32, query: &Query) -> Part {
        let mut part = Part::default();
        let Some(uri) = query.texts.first() else { return part };
        let state = &self.realms[realm as usize];
        match query.kind {
            RouteKind::Topic => {
                state.topics.for_each_match(uri, |_, _, topic| {
                    if let Some((_, id)) = self.listed(realm, query.kind, *topic) {
                        part.ids[0].push(id);
                    }
                });
                part.bound(query.limit);
            }
            RouteKind::Procedure => {
                let mut best: Option<(Precedence, Match, &str)> = None;
                state.procedures.for_each_match(uri, |policy, pattern, _| {
                    let offered = precedence(policy, pattern);
                    if best.as_ref().is_none_or(|(known, ..)| offered > *known) {
                        best = Some((offered, policy, pattern));
                    }
                });
                part.routes.extend(best.map(|(_, policy, uri)| RouteInfo {
                    policy,
                    uri: uri.to_owned(),
                    created_ms: 0,
                    invoke: String::new(),
                }));
            }
        }
        part.count = (part.ids[0].len() + part.routes.len()) as u64;
        part
    }

    pub(super) fn topic_of(&self, realm: u32, id: u64) -> Option<u32> {
        self.ids.of(RouteKind::Topic, id).find(|at| self.listed(realm, RouteKind::Topic, *at).is_some())
    }

    fn procedures_of(&self, realm: u32, id: u64) -> Vec<u32> {
        let here = self.ids.of(RouteKind::Procedure, id);
        here.filter(|at| self.listed(realm, RouteKind::Procedure, *at).is_some()).collect()
    }

    pub(super) fn topic_info(&self, at: u32) -> RouteInfo {
        let topic = &self.topics[at as usize];
        let (policy, uri, created_ms) = (topic.policy, topic.uri.to_string(), topic.created_ms);
        RouteInfo { policy, uri, created_ms, invoke: String::new() }
    }

    pub(super) fn procedure_info(&self, at: u32) -> RouteInfo {
        let found = &self.procedures[at as usize];
        RouteInfo {
            policy: found.policy,
            uri: found.uri.to_string(),
            created_ms: found.created_ms,
            invoke: found.options.wish.invoke.name().to_owned(),
        }
    }

    /// The sessions that hold a subscription or registration.
    fn peers_of(&self, realm: u32, query: &Query) -> Part {
        let slots: Vec<u32> = match query.kind {
            RouteKind::Topic => self
                .topic_of(realm, query.id)
                .map(|topic| self.topics[topic as usize].subscribers.to_vec())
                .unwrap_or_default(),
            RouteKind::Procedure => {
                let held = self.procedures_of(realm, query.id);
                held.into_iter().map(|at| self.procedures[at as usize].callee).collect()
            }
        };
        let session = |slot: &u32| Some(self.conns.get(*slot as usize)?.as_ref()?.session.as_ref()?.id);
        let ids = slots.iter().filter_map(session).filter(|id| *id > query.after);
        ids_of(ids, query.limit)
    }

    fn peers_count(&self, realm: u32, query: &Query) -> u64 {
        match query.kind {
            RouteKind::Topic => {
                let topic = self.topic_of(realm, query.id);
                topic.map_or(0, |topic| self.topics[topic as usize].subscribers.len() as u64)
            }
            RouteKind::Procedure => self.procedures_of(realm, query.id).len() as u64,
        }
    }

    /// Takes a route from a session. `count`: how many hold it; the first list names the session if it did.
    fn remove_peer(&mut self, realm: u32, query: &Query) -> Part {
        let count = self.peers_count(realm, query);
        let mut part = Part { count, ..Part::default() };
        let found = self.session_by_id(realm, query.session);
        if let Some((slot, ..)) = found {
            let reason = query.texts.first().map_or(wamp::KILLED, |reason| &**reason);
            let taken = match query.kind {
                RouteKind::Topic => self.revoke_subscription(slot, query.id, reason),
                RouteKind::Procedure => self.revoke_registration(slot, query.id, reason),
            };
            part.ids[0].extend(taken.then_some(query.session));
        }
        part
    }
}

pub(super) fn has_role(session: &Session, roles: &[String]) -> bool {
    roles.iter().any(|role| session.identity.authrole == **role)
}

/// The smallest `limit` of the ids.
fn ids_of(ids: impl Iterator<Item = u64>, limit: usize) -> Part {
    let mut part = Part { ids: [ids.collect(), Vec::new(), Vec::new()], ..Part::default() };
    part.bound(limit);
    part
}

/// The best of the registrations that match a URI.
pub(super) fn best(routes: &[RouteInfo]) -> Option<&RouteInfo> {
    routes.iter().max_by_key(|route| precedence(route.policy, &route.uri))
}

const _: () =
    assert!(Match::Exact as usize == 0 && Match::Prefix as usize == 1 && Match::Wildcard as usize == 2);
