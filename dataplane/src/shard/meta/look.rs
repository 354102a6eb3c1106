//! What this shard has to say to a question: its own sessions, and the routes they hold.

use super::query::{Op, Part, Query, RouteInfo};
use crate::shard::Shard;
use crate::shard::conn::{Conn, Phase, Session};
use crate::shard::routes::precedence;
use common::ids::{Match, RouteKind};
use common::metrics::Counter;
use common::transport::Framing;
use common::uri::{matches, wamp};
use common::wire::{OwnedValue, Serializer};
use std::time::Duration;

/// How long a killed session may take to answer GOODBYE.
const KILL_GOODBYE_TIME: Duration = Duration::from_secs(2);
/// What [`Op::ModifyDetails`] may add to a session's details, bytes.
const DETAILS_BYTES_MAX: usize = 8 << 10;

/// A session's details (WAMP, advanced profile, "Session Meta API").
pub(super) fn session_details(conn: &Conn, session: &Session) -> OwnedValue {
    let identity = &session.identity;
    let transport = match conn.framing {
        Framing::RawSocket => "rawsocket",
        _ => "websocket",
    };
    let transport = OwnedValue::dict([("type", transport), ("serializer", serializer_name(conn.serializer))]);
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
    /// What is said here to a question about a realm.
    pub(super) fn look(&mut self, realm: u32, query: &Query) -> Part {
        match query.op {
            Op::CountSessions => {
                let roles = &query.texts;
                let wanted = |session: &Session| roles.is_empty() || has_role(session, roles);
                let count = self.sessions_of(realm).filter(|(_, _, session)| wanted(session)).count();
                Part { count: count as u64, ..Part::default() }
            }
            Op::ListSessions => {
                let roles = &query.texts;
                let wanted = |session: &Session| {
                    session.id > query.after && (roles.is_empty() || has_role(session, roles))
                };
                let ids = self.sessions_of(realm).map(|(_, _, session)| session);
                ids_of(ids.filter(|session| wanted(session)).map(|session| session.id), query.limit)
            }
            Op::GetSession => {
                let found = self.sessions_of(realm).find(|(_, _, session)| session.id == query.session);
                let details = found.map(|(_, conn, session)| session_details(conn, session));
                Part { count: details.is_some().into(), details, ..Part::default() }
            }
            Op::Kill | Op::KillByAuthid | Op::KillByAuthrole | Op::KillAll => self.kill(realm, query),
            Op::ModifyDetails => self.modify_details(realm, query),
            Op::ListRoutes => self.list_routes(realm, query),
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
            Op::ListPeers | Op::CountPeers => self.peers_of(realm, query),
            Op::RemovePeer => self.remove_peer(realm, query),
        }
    }

    fn sessions_of(&self, realm: u32) -> impl Iterator<Item = (u32, &Conn, &Session)> {
        let taken = (0..).zip(&self.conns).filter_map(|(slot, conn)| Some((slot, conn.as_deref()?)));
        taken.filter_map(move |(slot, conn)| {
            let session = conn.session.as_deref()?;
            (session.realm == realm && conn.phase == Phase::Open).then_some((slot, conn, session))
        })
    }

    /// Ends the sessions that are meant, and says which (WAMP, advanced profile, "Session Meta API").
    fn kill(&mut self, realm: u32, query: &Query) -> Part {
        let (who, reason, message) = match &*query.texts {
            [reason, message] => ("", &**reason, &**message),
            [who, reason, message] => (&**who, &**reason, &**message),
            _ => return Part::default(),
        };
        let is_meant = |session: &Session| match query.op {
            Op::Kill => session.id == query.session,
            Op::KillByAuthid => *session.identity.authid == *who && session.id != query.session,
            Op::KillByAuthrole => session.identity.authrole == who && session.id != query.session,
            _ => session.id != query.session,
        };
        let meant: Vec<(u32, u64)> = self
            .sessions_of(realm)
            .filter(|(_, _, session)| is_meant(session))
            .map(|(slot, _, session)| (slot, session.id))
            .collect();
        let count = meant.len() as u64;
        for (slot, _) in &meant {
            if query.op == Op::KillAll {
                let session = self.session(*slot);
                // Nobody is left who could hear of it.
                session.silent = true;
                session.testaments.clear();
            }
            self.metrics.count(Counter::KilledMeta);
            self.leave(*slot, reason, message);
            self.set_deadline(*slot, KILL_GOODBYE_TIME);
        }
        Part { count, ..ids_of(meant.into_iter().map(|(_, session)| session), query.limit) }
    }

    fn modify_details(&mut self, realm: u32, query: &Query) -> Part {
        let found = self.sessions_of(realm).find(|(_, _, session)| session.id == query.session);
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

    fn list_routes(&self, realm: u32, query: &Query) -> Part {
        let mut part = Part::default();
        match query.kind {
            RouteKind::Topic => {
                let here = self.topics.iter().map(|(_, topic)| topic);
                for topic in here.filter(|topic| topic.realm == realm && !topic.subscribers.is_empty()) {
                    if topic.id > query.after {
                        part.ids[topic.policy as usize].push(topic.id);
                    }
                }
            }
            RouteKind::Procedure => {
                let here = self.procedures.iter().map(|(_, procedure)| procedure);
                for procedure in here.filter(|procedure| procedure.realm == realm) {
                    if procedure.id > query.after {
                        part.ids[procedure.policy as usize].push(procedure.id);
                    }
                }
            }
        }
        part.bound(query.limit);
        part
    }

    /// All subscriptions, or the best registration of this shard, that match a URI.
    fn match_routes(&self, realm: u32, query: &Query) -> Part {
        let mut part = Part::default();
        let Some(uri) = query.texts.first() else { return part };
        match query.kind {
            RouteKind::Topic => {
                self.realms[realm as usize].topics.for_each_match(uri, |_, _, topic| {
                    if let Some(topic) = self.topics.get(*topic as usize)
                        && !topic.subscribers.is_empty()
                    {
                        part.ids[0].push(topic.id);
                    }
                });
                part.bound(query.limit);
            }
            RouteKind::Procedure => {
                let here = self.procedures.iter().filter(|(_, procedure)| procedure.realm == realm);
                let matching = here.filter(|(_, found)| matches(&found.uri, found.policy, uri));
                let best = matching.max_by_key(|(_, found)| precedence(found.policy, &found.uri));
                part.routes.extend(best.map(|(at, _)| self.procedure_info(at as u32)));
            }
        }
        part.count = (part.ids[0].len() + part.routes.len()) as u64;
        part
    }

    fn topic_of(&self, realm: u32, id: u64) -> Option<u32> {
        let (at, topic) = self.topics.iter().find(|(_, topic)| topic.id == id && topic.realm == realm)?;
        (!topic.subscribers.is_empty()).then_some(at as u32)
    }

    fn procedures_of(&self, realm: u32, id: u64) -> Vec<u32> {
        let here = self.procedures.iter();
        here.filter(|(_, found)| found.id == id && found.realm == realm).map(|(at, _)| at as u32).collect()
    }

    fn topic_info(&self, at: u32) -> RouteInfo {
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
        let count = slots.len() as u64;
        if query.op == Op::CountPeers {
            return Part { count, ..Part::default() };
        }
        let session = |slot: &u32| Some(self.conns.get(*slot as usize)?.as_ref()?.session.as_ref()?.id);
        let ids = slots.iter().filter_map(session).filter(|id| *id > query.after);
        Part { count, ..ids_of(ids, query.limit) }
    }

    /// Takes a route from a session. `count`: how many hold it; the first list names the session if it did.
    fn remove_peer(&mut self, realm: u32, query: &Query) -> Part {
        let count = self.peers_of(realm, &Query { op: Op::CountPeers, ..query.clone() }).count;
        let mut part = Part { count, ..Part::default() };
        let found = self.sessions_of(realm).find(|(_, _, session)| session.id == query.session);
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

fn has_role(session: &Session, roles: &[String]) -> bool {
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
