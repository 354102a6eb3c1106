//! The router's own procedures: what a call asks for, and what it is answered (WAMP, advanced profile, "Session Meta API",
//! "Registration Meta API", "Subscription Meta API").
//!
//! Beside the specification: lists take the keyword arguments `limit` and `after` (an id) for paging, and an answer's
//! keyword arguments say `more` when a list was cut and `partial` when a node or shard did not answer in time.

use super::gather::Asker;
use super::look::{FIXED_DETAILS, best};
use super::query::{IDS_MAX, Op, Part, Query, RouteInfo, TEXT_BYTES_MAX};
use crate::mesh::Caller;
use crate::shard::Shard;
use crate::shard::answers::{Answer, Answering};
use crate::shard::clock::iso_8601;
use crate::shard::conn::Route;
use crate::shard::dealer::Calling;
use common::ids::{ID_MAX, Match, RealmId, RouteKind, route_id};
use common::uri::{UriRule, is_valid, is_valid_pattern, wamp};
use common::wire::{OwnedValue, Payload, Serializer};

/// Longest arguments of a call to the router itself, bytes: they are read as a whole.
pub(super) const ARGUMENTS_BYTES_MAX: usize = 64 << 10;
/// Roles in a filter.
const ROLES_MAX: usize = 64;

/// Why a call is refused: error URI and text.
pub(super) type Refused = (&'static str, String);

pub(super) fn refuse<T>(uri: &'static str, text: impl Into<String>) -> Result<T, Refused> {
    Err((uri, text.into()))
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    args: Vec<OwnedValue>,
    kwargs: Vec<(String, OwnedValue)>,
}

impl Arguments {
    pub fn read(from: Serializer, payload: Payload<'_>) -> Result<Self, Refused> {
        if payload.bytes_len() > ARGUMENTS_BYTES_MAX {
            let text = format!("the router takes arguments of at most {ARGUMENTS_BYTES_MAX} bytes");
            return refuse(wamp::PAYLOAD_SIZE_EXCEEDED, text);
        }
        let read = |part: Option<&[u8]>| match part.map(|bytes| OwnedValue::decode(from, bytes)) {
            None => Ok(OwnedValue::Null),
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => refuse(wamp::INVALID_ARGUMENT, error.to_string()),
        };
        let mut arguments = Self::default();
        if let OwnedValue::List(args) = read(payload.args)? {
            arguments.args = args;
        }
        if let OwnedValue::Dict(kwargs) = read(payload.kwargs)? {
            arguments.kwargs = kwargs;
        }
        Ok(arguments)
    }

    /// A positional argument; null counts as absent.
    pub fn at(&self, at: usize) -> Option<&OwnedValue> {
        self.args.get(at).filter(|value| !value.is_null())
    }

    pub fn named(&self, key: &str) -> Option<&OwnedValue> {
        self.kwargs
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
            .filter(|v| !v.is_null())
    }

    pub fn id(&self, at: usize, what: &str) -> Result<u64, Refused> {
        match self.at(at).and_then(OwnedValue::as_whole) {
            Some(id) => Ok(id),
            None => refuse(wamp::INVALID_ARGUMENT, format!("argument {at} must be the id of a {what}")),
        }
    }

    pub fn text(&self, at: usize, what: &str) -> Result<&str, Refused> {
        match self.at(at).and_then(OwnedValue::as_str) {
            Some(text) if text.len() <= TEXT_BYTES_MAX => Ok(text),
            _ => refuse(wamp::INVALID_ARGUMENT, format!("argument {at} must be a string: {what}")),
        }
    }

    fn roles(&self) -> Result<Vec<String>, Refused> {
        let Some(filter) = self.at(0) else { return Ok(Vec::new()) };
        let text = || format!("argument 0 must be a list of up to {ROLES_MAX} authroles");
        let Some(roles) = filter.as_list().filter(|roles| roles.len() <= ROLES_MAX) else {
            return refuse(wamp::INVALID_ARGUMENT, text());
        };
        let role =
            |role: &OwnedValue| role.as_str().filter(|role| role.len() <= TEXT_BYTES_MAX).map(str::to_owned);
        roles.iter().map(role).collect::<Option<_>>().ok_or_else(|| (wamp::INVALID_ARGUMENT, text()))
    }

    /// Reason and message for a GOODBYE, or for a revocation.
    fn reason(&self) -> Result<[String; 2], Refused> {
        let reason = match self.named("reason").map(OwnedValue::as_str) {
            None => wamp::KILLED,
            Some(Some(reason)) if is_valid(reason, UriRule::Loose) => reason,
            Some(_) => return refuse(wamp::INVALID_URI, "reason must be a valid URI"),
        };
        let message = match self.named("message").map(OwnedValue::as_str) {
            None => "",
            Some(Some(message)) if message.len() <= TEXT_BYTES_MAX => message,
            Some(_) => {
                let text = format!("message must be a string of at most {TEXT_BYTES_MAX} bytes");
                return refuse(wamp::INVALID_ARGUMENT, text);
            }
        };
        Ok([reason.to_owned(), message.to_owned()])
    }

    /// The page that is wanted of a list.
    fn page(&self, query: &mut Query) -> Result<(), Refused> {
        for (key, max) in [("limit", IDS_MAX as u64), ("after", ID_MAX)] {
            let Some(value) = self.named(key) else { continue };
            let Some(value) = value.as_whole().filter(|value| *value <= max) else {
                return refuse(wamp::INVALID_ARGUMENT, format!("{key} must be an integer up to {max}"));
            };
            if key == "limit" {
                query.limit = value as usize;
            } else {
                query.after = value;
            }
        }
        Ok(())
    }

    /// The policy in the options of a look-up, which are those of SUBSCRIBE or REGISTER.
    fn policy(&self) -> Result<Match, Refused> {
        match self.at(1).and_then(|options| options.get("match")) {
            None | Some(OwnedValue::Null) => Ok(Match::Exact),
            Some(name) => [Match::Exact, Match::Prefix, Match::Wildcard]
                .into_iter()
                .find(|policy| name.as_str() == Some(policy.name()))
                .ok_or_else(|| (wamp::INVALID_ARGUMENT, "options.match is no matching policy".to_owned())),
        }
    }
}

/// The question a call asks, if it is one; none: there is no such procedure.
fn question(procedure: &str, me: u64, realm: RealmId, given: &Arguments) -> Result<Option<Query>, Refused> {
    let (kind, name) = if let Some(name) = procedure.strip_prefix("wamp.session.") {
        return session_question(name, me, given);
    } else if let Some(name) = procedure.strip_prefix("wamp.registration.") {
        (RouteKind::Procedure, name)
    } else if let Some(name) = procedure.strip_prefix("wamp.subscription.") {
        (RouteKind::Topic, name)
    } else {
        return Ok(None);
    };
    let what = if kind == RouteKind::Topic { "subscription" } else { "registration" };
    let ask = |op| Query { kind, ..Query::new(op) };
    let about = |op| Ok::<_, Refused>(Query { id: given.id(0, what)?, ..ask(op) });
    let mut query = match (name, kind) {
        ("list", _) => ask(Op::ListRoutes),
        ("lookup", _) => {
            let (uri, policy) = (given.text(0, "a URI")?, given.policy()?);
            if !is_valid_pattern(uri, policy, UriRule::Loose) {
                return refuse(wamp::INVALID_URI, "argument 0 is no valid URI");
            }
            Query {
                id: route_id(realm, kind, policy, uri),
                texts: vec!["lookup".into()],
                ..ask(Op::GetRoute)
            }
        }
        ("match", _) => Query { texts: vec![given.text(0, "a URI")?.to_owned()], ..ask(Op::MatchRoutes) },
        ("get", _) => about(Op::GetRoute)?,
        ("list_callees", RouteKind::Procedure) | ("list_subscribers", RouteKind::Topic) => {
            about(Op::ListPeers)?
        }
        ("count_callees", RouteKind::Procedure) | ("count_subscribers", RouteKind::Topic) => {
            about(Op::CountPeers)?
        }
        ("remove_callee", RouteKind::Procedure) | ("remove_subscriber", RouteKind::Topic) => {
            let [reason, _] = given.reason()?;
            Query { session: given.id(1, "session")?, texts: vec![reason], ..about(Op::RemovePeer)? }
        }
        _ => return Ok(None),
    };
    given.page(&mut query)?;
    Ok(Some(query))
}

fn session_question(name: &str, me: u64, given: &Arguments) -> Result<Option<Query>, Refused> {
    let by_name = |op, what| {
        let [reason, message] = given.reason()?;
        let texts = vec![given.text(0, what)?.to_owned(), reason, message];
        Ok::<_, Refused>(Query { session: me, texts, ..Query::new(op) })
    };
    let mut query = match name {
        "count" => Query { texts: given.roles()?, ..Query::new(Op::CountSessions) },
        "list" => Query { texts: given.roles()?, ..Query::new(Op::ListSessions) },
        "get" => Query { session: given.id(0, "session")?, ..Query::new(Op::GetSession) },
        "kill" => {
            let session = given.id(0, "session")?;
            let reason = given.reason()?;
            if session == me {
                return refuse(wamp::NO_SUCH_SESSION, "a session cannot kill itself");
            }
            Query { session, texts: reason.into(), ..Query::new(Op::Kill) }
        }
        "kill_by_authid" => by_name(Op::KillByAuthid, "an authid")?,
        "kill_by_authrole" => by_name(Op::KillByAuthrole, "an authrole")?,
        "kill_all" => Query { session: me, texts: given.reason()?.into(), ..Query::new(Op::KillAll) },
        "modify_details" => {
            let session = given.id(0, "session")?;
            let details = given.at(1).and_then(OwnedValue::as_dict).unwrap_or_default();
            if details.is_empty() || details.iter().any(|(key, _)| FIXED_DETAILS.contains(&&**key)) {
                let text = "argument 1 must be a dictionary of details that are not the router's own";
                return refuse(wamp::INVALID_ARGUMENT, text);
            }
            Query { session, details: OwnedValue::Dict(details.to_vec()), ..Query::new(Op::ModifyDetails) }
        }
        _ => return Ok(None),
    };
    given.page(&mut query)?;
    Ok(Some(query))
}

/// The answer to a question: its positional argument, if it has one.
fn result(query: &Query, realm: RealmId, part: &Part) -> Result<Option<OwnedValue>, Refused> {
    let no_session = || refuse(wamp::NO_SUCH_SESSION, format!("there is no session {}", query.session));
    let no_route = || match query.kind {
        RouteKind::Topic => {
            refuse(wamp::NO_SUCH_SUBSCRIPTION, format!("there is no subscription {}", query.id))
        }
        RouteKind::Procedure => {
            refuse(wamp::NO_SUCH_REGISTRATION, format!("there is no registration {}", query.id))
        }
    };
    let ids = |at: usize| OwnedValue::list(part.ids[at].iter().copied());
    let found = part.count > 0;
    Ok(Some(match query.op {
        Op::CountSessions | Op::KillByAuthrole | Op::KillAll => part.count.into(),
        Op::ListSessions | Op::KillByAuthid => ids(0),
        Op::GetSession => match &part.details {
            Some(details) => details.clone(),
            None => return no_session(),
        },
        Op::Kill | Op::ModifyDetails if !found => return no_session(),
        Op::ModifyDetails if part.more => {
            return refuse(wamp::INVALID_ARGUMENT, "the session's details would be too long");
        }
        Op::Kill | Op::ModifyDetails => return Ok(None),
        Op::ListRoutes => OwnedValue::dict([("exact", ids(0)), ("prefix", ids(1)), ("wildcard", ids(2))]),
        Op::MatchRoutes if query.kind == RouteKind::Procedure => match best(&part.routes) {
            Some(route) => route_id(realm, query.kind, route.policy, &route.uri).into(),
            None => OwnedValue::Null,
        },
        Op::MatchRoutes if part.ids[0].is_empty() => OwnedValue::Null,
        Op::MatchRoutes => ids(0),
        Op::GetRoute if !query.texts.is_empty() => {
            if found {
                query.id.into()
            } else {
                OwnedValue::Null
            }
        }
        Op::GetRoute => match part.routes.first() {
            Some(route) => route_details(query.kind, query.id, route),
            None => return no_route(),
        },
        Op::ListPeers | Op::CountPeers | Op::RemovePeer if !found => return no_route(),
        Op::ListPeers => ids(0),
        Op::CountPeers => part.count.into(),
        Op::RemovePeer if part.ids[0].is_empty() => return no_session(),
        // Those about events have their own answer.
        Op::RemovePeer | Op::FindEvents | Op::GetEvents => return Ok(None),
    }))
}

/// RegistrationDetails or SubscriptionDetails.
pub(super) fn route_details(kind: RouteKind, id: u64, route: &RouteInfo) -> OwnedValue {
    let mut details = vec![
        ("id".to_owned(), id.into()),
        ("created".to_owned(), iso_8601(route.created_ms).into()),
        ("uri".to_owned(), route.uri.as_str().into()),
        ("match".to_owned(), route.policy.name().into()),
    ];
    if kind == RouteKind::Procedure {
        details.push(("invoke".to_owned(), route.invoke.as_str().into()));
    }
    OwnedValue::Dict(details)
}

impl Shard {
    /// A CALL to a URI that is reserved for the router. The way it went; none: it was answered.
    #[cold]
    pub(in crate::shard) fn call_router(
        &mut self,
        slot: u32,
        procedure: &str,
        calling: &Calling<'_>,
    ) -> Option<Route> {
        let caller = calling.caller;
        match self.serve(slot, procedure, calling) {
            Ok(Served::Answered(value)) => {
                self.answer_value(caller, value.as_ref(), &Part::default());
                None
            }
            Ok(Served::Asks(query)) => {
                let realm = self.session(slot).realm;
                self.ask(Asker::Session(caller), realm, *query).map(Route::Asked)
            }
            Err((uri, text)) => {
                self.answer_error(caller, uri, &text);
                None
            }
        }
    }

    fn serve(&mut self, slot: u32, procedure: &str, calling: &Calling<'_>) -> Result<Served, Refused> {
        if let Some(refused) = self.closed_procedure(slot, procedure) {
            return Err(refused);
        }
        let given = Arguments::read(calling.from, calling.payload)?;
        let session = self.session(slot);
        let (me, realm) = (session.id, session.realm);
        match procedure {
            "wamp.session.add_testament" => return self.add_testament(slot, &given).map(Served::Answered),
            "wamp.session.flush_testaments" => {
                return self.flush_testaments(slot, &given).map(Served::Answered);
            }
            "wamp.subscription.get_events" => {
                return self.events_question(slot, &given).map(|query| Served::Asks(Box::new(query)));
            }
            _ => {}
        }
        match question(procedure, me, self.realms[realm as usize].id, &given)? {
            Some(query) => Ok(Served::Asks(Box::new(query))),
            None => refuse(wamp::NO_SUCH_PROCEDURE, format!("the router has no procedure {procedure}")),
        }
    }

    /// Everybody has answered, or the time is over. No part: too many questions are under way.
    pub(super) fn answer_query(&mut self, caller: Caller, query: &Query, part: Option<Part>) {
        let Some(session) = self.session_of(caller.owner) else { return };
        let index = session.realm;
        let realm = self.realms[index as usize].id;
        let Some(part) = part else {
            let text = "too many questions to the router are under way";
            return self.answer_error(caller, wamp::UNAVAILABLE, text);
        };
        if query.op.is_about_events() {
            return self.events_told(caller, index, query, &part);
        }
        match result(query, realm, &part) {
            Ok(value) => self.answer_value(caller, value.as_ref(), &part),
            Err((uri, text)) => self.answer_error(caller, uri, &text),
        }
    }

    fn answer_value(&mut self, caller: Caller, value: Option<&OwnedValue>, part: &Part) {
        let from = Serializer::MsgPack;
        let args = value.map(|value| OwnedValue::List(vec![value.clone()]).to_bytes(from));
        let said = [("more", part.more), ("partial", part.partial)];
        let said: Vec<_> = said.into_iter().filter(|(_, is_so)| *is_so).collect();
        let kwargs = (!said.is_empty()).then(|| OwnedValue::dict(said).to_bytes(from));
        // Arguments by name come after those by position.
        let args = args.or_else(|| kwargs.is_some().then(|| OwnedValue::List(Vec::new()).to_bytes(from)));
        let payload = Payload { args: args.as_deref(), kwargs: kwargs.as_deref() };
        self.answer(caller, &Answering { kind: Answer::Result, ppt: &[], from, payload });
    }
}

/// What became of a call to the router.
enum Served {
    Answered(Option<OwnedValue>),
    Asks(Box<Query>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &str, kwargs: &str) -> Arguments {
        let payload = Payload { args: Some(args.as_bytes()), kwargs: Some(kwargs.as_bytes()) };
        Arguments::read(Serializer::Json, payload).expect("JSON")
    }

    fn asks(procedure: &str, args: &str, kwargs: &str) -> Result<Option<Query>, &'static str> {
        question(procedure, 7, RealmId(1), &given(args, kwargs)).map_err(|(uri, _)| uri)
    }

    #[test]
    fn wrong_arguments_have_the_errors_of_the_specification() {
        for (procedure, args, kwargs, error) in [
            ("wamp.session.get", "[]", "{}", wamp::INVALID_ARGUMENT),
            ("wamp.session.get", "[\"x\"]", "{}", wamp::INVALID_ARGUMENT),
            ("wamp.session.kill", "[7]", "{}", wamp::NO_SUCH_SESSION),
            ("wamp.session.kill", "[8]", "{\"reason\":\"a b\"}", wamp::INVALID_URI),
            ("wamp.session.kill", "[8]", "{\"reason\":\"\"}", wamp::INVALID_URI),
            ("wamp.session.kill", "[8]", "{\"message\":1}", wamp::INVALID_ARGUMENT),
            ("wamp.session.kill_by_authid", "[8]", "{}", wamp::INVALID_ARGUMENT),
            ("wamp.session.count", "[\"anonymous\"]", "{}", wamp::INVALID_ARGUMENT),
            ("wamp.session.list", "[]", "{\"limit\":10001}", wamp::INVALID_ARGUMENT),
            ("wamp.session.modify_details", "[8,{\"authid\":1}]", "{}", wamp::INVALID_ARGUMENT),
            ("wamp.registration.lookup", "[\"a\",{\"match\":\"x\"}]", "{}", wamp::INVALID_ARGUMENT),
            ("wamp.subscription.lookup", "[\"a..b\"]", "{}", wamp::INVALID_URI),
        ] {
            assert_eq!(asks(procedure, args, kwargs), Err(error), "{procedure} {args} {kwargs}");
        }
    }

    #[test]
    fn null_counts_as_absent_and_other_procedures_are_not_there() {
        let query = asks("wamp.session.count", "[null]", "{\"reason\":null}").unwrap().unwrap();
        assert_eq!(query, Query::new(Op::CountSessions));
        for name in
            ["wamp.session.x", "wamp.registration.list_subscribers", "wamp.subscription.remove_callee"]
        {
            assert_eq!(asks(name, "[1,2]", "{}"), Ok(None), "{name}");
        }
    }

    #[test]
    fn long_arguments_are_not_read() {
        let long = format!("[\"{}\"]", "x".repeat(ARGUMENTS_BYTES_MAX));
        let payload = Payload { args: Some(long.as_bytes()), kwargs: None };
        let refused = Arguments::read(Serializer::Json, payload).map_err(|(uri, _)| uri);
        assert_eq!(refused.err(), Some(wamp::PAYLOAD_SIZE_EXCEEDED));
    }
}
