//! Calls on their way to callees: CALL in, INVOCATION out. [`super::answers`] is the way back.
//!
//! The caller's shard knows that the call is open and which way it went (`Session::calls`), the callee's shard knows whom
//! to answer (`Session::invocations`). Whichever leaves first, the other side is told or the late answer is dropped.
//! A call from another shard or node is found by its caller in `Shard::foreign` or in the relay's link.

use super::Shard;
use super::conn::{Call, Invocation, Route, Session};
use super::features::Features;
use super::flow::{Class, Queued};
use super::options::{BadOption, call_key, call_terms, passthru};
use super::routes::{Callee, Sharer, resolve_procedure};
use super::said::Said;
use super::shared::is_shared;
use crate::mesh::{Caller, Item, Terms};
use common::features::Feature;
use common::ids::{ID_MAX, Match, RouteKind, ShardId};
use common::metrics::Counter;
use common::rules::Bound;
use common::uri::{is_valid, wamp};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Dict, Payload, Serializer};

/// A call on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calling<'a> {
    pub caller: Caller,
    pub terms: Terms,
    /// The hash of the routing key, of meaning with [`Terms::KEYED`].
    pub key: u64,
    /// What the callee may be told of the caller, packed; empty: it is anonymous.
    pub who: &'a [u8],
    /// Attributes of payload passthru mode, packed.
    pub ppt: &'a [u8],
    pub from: Serializer,
    pub payload: Payload<'a>,
}

/// Whence a call came to this shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Came {
    /// From another shard, straight from the caller's.
    Shard,
    /// From another shard by way of a third, or on another node's behalf.
    Forwarded,
    /// From another node: it stays in this one.
    Node,
}

/// A call, or the continuation of one, that came before its callee's REGISTERED could be sent.
#[derive(Debug)]
pub(super) struct HeldCall {
    pub caller: Caller,
    pub terms: Terms,
    pub key: u64,
    pub procedure: Box<str>,
    pub who: Vec<u8>,
    pub serializer: Serializer,
    pub ppt: Vec<u8>,
    pub args: Option<Vec<u8>>,
    pub kwargs: Option<Vec<u8>>,
}

impl HeldCall {
    pub fn new(procedure: &str, calling: &Calling<'_>) -> Self {
        let Calling { caller, terms, key, who, ppt, from, payload } = *calling;
        Self {
            caller,
            terms,
            key,
            procedure: procedure.into(),
            who: who.to_vec(),
            serializer: from,
            ppt: ppt.to_vec(),
            args: payload.args.map(<[u8]>::to_vec),
            kwargs: payload.kwargs.map(<[u8]>::to_vec),
        }
    }

    pub fn calling(&self) -> Calling<'_> {
        Calling {
            caller: self.caller,
            terms: self.terms,
            key: self.key,
            who: &self.who,
            ppt: &self.ppt,
            from: self.serializer,
            payload: Payload { args: self.args.as_deref(), kwargs: self.kwargs.as_deref() },
        }
    }

    pub fn bytes(&self) -> usize {
        let payload = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        size_of::<Self>()
            + self.procedure.len()
            + self.who.len()
            + self.ppt.len()
            + payload(&self.args)
            + payload(&self.kwargs)
    }
}

/// What the router's own procedures begin with.
const ROUTER: &str = "wamp.";
/// Calls held for one registration, and bytes of the calls that a shard holds for all of them.
const HELD_CALLS_MAX: usize = 256;
const HELD_BYTES_MAX: usize = 16 << 20;

impl Shard {
    /// CALL from a session of this shard.
    #[inline]
    pub(super) fn call(
        &mut self,
        slot: u32,
        request: u64,
        options: &Dict<'_>,
        procedure: &str,
        payload: Payload<'_>,
    ) {
        let from = self.at(slot).serializer;
        let session = self.session(slot);
        let (realm, guess) = (session.realm, session.last_procedure);
        let (mut terms, key, ppt) = match self.what_call_asks(slot, options) {
            Ok(asked) => asked,
            Err(bad) => return self.bad_option(slot, &bad),
        };
        let caller = Caller { owner: self.owner(slot), request };
        terms.session = caller.owner.session;
        let who = self.session(slot).identity.with_call(terms.session);
        let session = self.session(slot);
        let calls_max = session.rules.bounds.get(Bound::CallsPending) as usize;
        if !session.unfinished.is_empty() && session.take_unfinished(request, terms.is(Terms::PROGRESS)) {
            // It continues a call that has ended; its caller is about to hear of that.
            return;
        }
        if let Some(call) = session.calls.get(&request) {
            if !call.terms.is(Terms::PROGRESS) {
                let text = format!("CALL.Request {request} is the id of a call that is not yet answered");
                return self.violation(slot, &text);
            }
            let calling = Calling { caller, terms, key, who: &[], ppt: &[], from, payload };
            return self.continue_call(slot, &calling);
        }
        let in_parts = terms.is(Terms::PROGRESS);
        if session.calls.len() >= calls_max {
            self.metrics.count(Counter::LimitReached);
            let text = format!("{calls_max} calls of this session wait for an answer already");
            return self.refuse_new_call(slot, (request, in_parts), wamp::UNAVAILABLE, &text);
        }
        if terms.is(Terms::PARTITION) && !terms.is(Terms::KEYED) {
            let text = "CALL.Options.runmode \"partition\" needs a routing key, CALL.Options.rkey";
            return self.refuse_new_call(slot, (request, in_parts), wamp::INVALID_ARGUMENT, text);
        }
        session.calls.insert(request, Call::new(terms));
        self.calls += 1;
        self.metrics.count(Counter::Calls);
        self.set_call_deadline(slot, request, terms.timeout_ms);
        let calling = Calling { caller, terms, key, who: &who, ppt: &ppt, from, payload };
        let route = if procedure.starts_with(ROUTER) {
            self.call_router(slot, procedure, &calling)
        } else {
            self.call_callee(slot, realm, procedure, guess, &calling)
        };
        if let Some(route) = route
            && let Some(call) = self.session(slot).calls.get_mut(&request)
        {
            call.route = route;
        }
    }

    /// A call to a callee, wherever it is. The way it went, unless it was answered.
    #[inline]
    fn call_callee(
        &mut self,
        slot: u32,
        realm: u32,
        procedure: &str,
        guess: u32,
        calling: &Calling<'_>,
    ) -> Option<Route> {
        let caller = calling.caller;
        match self.callee_from(slot, realm, procedure, guess) {
            Some(Callee::Local(index)) => self.invoke(index, procedure, calling),
            Some(Callee::Group(index)) => self.call_group(index, procedure, calling),
            Some(Callee::Remote(shard)) => Some(self.pass_call(shard, realm, procedure, calling, false)),
            Some(Callee::Node(node)) => self.relay_call(node, realm, procedure, calling),
            Some(Callee::Nodes) => self.call_nodes(realm, procedure, calling),
            Some(Callee::Nobody) => {
                let text = format!("no callee has registered {procedure}");
                self.answer_error(caller, wamp::NO_SUCH_PROCEDURE, &text);
                None
            }
            None => {
                let text = format!("{:?} is not a valid procedure", super::login::shorten(procedure));
                self.answer_error(caller, wamp::INVALID_URI, &text);
                None
            }
        }
    }

    /// Reads a CALL's options. What only peers may ask for that announced it is a violation in a strict realm.
    #[inline]
    fn what_call_asks(&mut self, slot: u32, options: &Dict<'_>) -> Result<(Terms, u64, Vec<u8>), BadOption> {
        if options.is_empty() {
            return Ok((Terms::default(), 0, Vec::new()));
        }
        let session = self.session(slot);
        let (strict, features) = (session.strict, session.features);
        let mut terms = call_terms(options, strict)?;
        let (flags, key) = call_key(options, strict)?;
        terms.flags |= flags;
        let ppt = passthru(options, "CALL", strict)?;
        for (asked, feature, name) in [
            (
                terms.is(Terms::PROGRESS),
                Features::CALLER_PROGRESSIVE_INVOCATIONS,
                "progressive_call_invocations",
            ),
            (!ppt.is_empty(), Features::PASSTHRU, "payload_passthru_mode"),
        ] {
            if strict && asked && !features.has(feature) {
                return Err(BadOption(format!("CALL asks for {name}, which this client did not announce")));
            }
        }
        Ok((terms, key, ppt))
    }

    /// A call that does not begin. `in_parts`: others follow, and are dropped.
    pub(super) fn refuse_new_call(
        &mut self,
        slot: u32,
        (request, in_parts): (u64, bool),
        uri: &str,
        message: &str,
    ) {
        if in_parts {
            self.session(slot).put_unfinished(request);
        }
        self.refuse_call(slot, request, uri, message);
    }

    pub(super) fn refuse_call(&mut self, slot: u32, request: u64, uri: &str, message: &str) {
        self.metrics.count(Counter::CallsFailed);
        self.error(slot, code::CALL, request, uri, message);
    }

    /// As `callee`, looking first where `guess` says that the route cache may have it.
    #[inline]
    pub(super) fn callee_near(&mut self, realm: u32, procedure: &str, guess: &mut u32) -> Option<Callee> {
        let version = self.routes_version(realm);
        if self.cache.is_at(*guess, realm, RouteKind::Procedure, procedure, version) {
            self.metrics.count(Counter::RouteCacheHits);
            return Some(self.cache.get(*guess as usize).callee);
        }
        let (callee, at) = self.callee(realm, procedure)?;
        *guess = at as u32;
        Some(callee)
    }

    /// As `callee_near`, with the guess of the session in `slot`.
    #[inline]
    fn callee_from(&mut self, slot: u32, realm: u32, procedure: &str, guess: u32) -> Option<Callee> {
        let mut near = guess;
        let callee = self.callee_near(realm, procedure, &mut near)?;
        if near != guess {
            self.session(slot).last_procedure = near;
        }
        Some(callee)
    }

    /// The other nodes whose callees share a procedure, and how often they were asked for.
    pub(super) fn sharers_of(&mut self, realm: u32, procedure: &str) -> (Vec<Sharer>, u32) {
        let Some((_, at)) = self.callee(realm, procedure) else { return (Vec::new(), 0) };
        let resolved = self.cache.get(at);
        resolved.turn = resolved.turn.wrapping_add(1);
        (resolved.sharers.clone(), resolved.turn)
    }

    /// Who is to be called, and the cache entry that says so; nothing when the URI is invalid.
    #[inline]
    pub(super) fn callee(&mut self, realm: u32, procedure: &str) -> Option<(Callee, usize)> {
        let (state, version) = (&self.realms[realm as usize], self.routes_version(realm));
        if let Some(at) = self.cache.find(realm, RouteKind::Procedure, procedure, version) {
            self.metrics.count(Counter::RouteCacheHits);
            return Some((self.cache.get(at).callee, at));
        }
        let rule = state.settings.as_ref().map_or_else(Default::default, |settings| settings.uri_rule);
        if !is_valid(procedure, rule) {
            return None;
        }
        self.metrics.count(Counter::RouteCacheMisses);
        let resolved = resolve_procedure(state, &self.folded, self.me, procedure);
        let callee = resolved.callee;
        let at = self.cache.put(realm, RouteKind::Procedure, procedure, version, resolved);
        Some((callee, at))
    }

    fn pass_call(
        &mut self,
        shard: ShardId,
        realm: u32,
        procedure: &str,
        calling: &Calling<'_>,
        forwarded: bool,
    ) -> Route {
        let Calling { caller, terms, key, who, ppt, from, payload } = *calling;
        let realm = self.realms[realm as usize].id;
        let batch = self.mesh(shard);
        let procedure = batch.put(procedure.as_bytes());
        let who = batch.put(who);
        let ppt = batch.put_attributes(terms, key, ppt);
        let payload = batch.put_payload(from, payload);
        batch.push(Item::Call { realm, procedure, caller, terms, who, ppt, payload, forwarded });
        Route::Shard(shard)
    }

    /// A call that another shard or node routed here, to whom `callee` says. When its callee has just moved to another shard it goes there, once.
    /// The way it went, unless it was answered.
    pub(super) fn call_from_elsewhere(
        &mut self,
        callee: Option<Callee>,
        realm: u32,
        procedure: &str,
        calling: &Calling<'_>,
        came: Came,
    ) -> Option<Route> {
        match callee {
            Some(Callee::Local(index)) => self.invoke(index, procedure, calling),
            Some(Callee::Group(index)) => {
                let stays = if came == Came::Shard { 0 } else { Terms::STAYS };
                let terms = Terms { flags: calling.terms.flags | stays, ..calling.terms };
                self.call_group(index, procedure, &Calling { terms, ..*calling })
            }
            Some(Callee::Remote(shard)) if came != Came::Forwarded => {
                Some(self.pass_call(shard, realm, procedure, calling, true))
            }
            _ => {
                self.answer_error(calling.caller, wamp::NO_SUCH_PROCEDURE, "the callee has left");
                None
            }
        }
    }

    /// Sends an INVOCATION to the callee of a procedure of this shard. Nothing: the call was answered with an error.
    #[inline]
    pub(super) fn invoke(&mut self, index: u32, uri: &str, calling: &Calling<'_>) -> Option<Route> {
        let caller = calling.caller;
        let procedure = &self.procedures[index as usize];
        if !procedure.spread.missing.is_empty() {
            return self.hold_call(Route::Held(index), uri, calling);
        }
        let (slot, registration) = (procedure.callee, procedure.id);
        let plain = !procedure.detailed && calling.terms.is_plain() && calling.ppt.is_empty();
        let session = self.session(slot);
        if session.invocations.len() >= session.invocations_max as usize {
            self.refuse_invocation(slot, caller);
            return None;
        }
        if !plain && !self.can_invoke(slot, calling) {
            return None;
        }
        let session = self.session(slot);
        let request = if session.last_invocation == ID_MAX { 1 } else { session.last_invocation + 1 };
        let progress = calling.terms.is(Terms::RECEIVE_PROGRESS) && gives_progress(session);
        let mut parts = None;
        let queued = if plain {
            self.send_invocation(slot, request, registration, &[], calling)
        } else {
            let said = self.what_is_said(slot, index, uri, progress, calling);
            let in_parts = calling.terms.is(Terms::PROGRESS);
            parts = in_parts.then(|| said.keep());
            said.details(in_parts, |details| {
                self.send_invocation(slot, request, registration, details, calling)
            })
        };
        if !self.was_invoked(queued, caller) {
            return None;
        }
        let session = self.session(slot);
        session.last_invocation = request;
        session.invocations.insert(request, Invocation { caller, registration, progress, parts });
        let route = Route::Here { slot, invocation: request };
        if caller.owner.shard != self.me {
            self.foreign.insert(caller, route);
        }
        Some(route)
    }

    /// The callee takes no more invocations. One that waits for its client takes none; when others share its registration, the
    /// call goes to one of them.
    #[cold]
    fn refuse_invocation(&mut self, slot: u32, caller: Caller) {
        if self.at(slot).is_detached() {
            let uri = if is_shared(caller) { wamp::UNAVAILABLE } else { wamp::SESSION_UNATTACHED };
            return self.answer_error(caller, uri, "the callee has lost its connection and may come back");
        }
        self.metrics.count(Counter::LimitReached);
        let text =
            format!("the callee has {} invocations to answer already", self.session(slot).invocations_max);
        self.answer_error(caller, wamp::UNAVAILABLE, &text);
    }

    /// Keeps a call until a REGISTERED is sent, that of the callee or the group `route` names.
    #[cold]
    pub(super) fn hold_call(&mut self, route: Route, uri: &str, calling: &Calling<'_>) -> Option<Route> {
        let caller = calling.caller;
        let bytes_left = HELD_BYTES_MAX.saturating_sub(self.held_bytes);
        let call = HeldCall::new(uri, calling);
        let bytes = call.bytes();
        let held = self.held(route).filter(|held| held.len() < HELD_CALLS_MAX && bytes <= bytes_left);
        let Some(held) = held else {
            self.metrics.count(Counter::LimitReached);
            self.answer_error(caller, wamp::UNAVAILABLE, "the callee is still being registered");
            return None;
        };
        held.push(call);
        self.held_bytes += bytes;
        if caller.owner.shard != self.me {
            self.foreign.insert(caller, route);
        }
        Some(route)
    }

    /// The calls that wait where `route` says.
    pub(super) fn held(&mut self, route: Route) -> Option<&mut Vec<HeldCall>> {
        match route {
            Route::Held(index) => {
                self.procedures.get_mut(index as usize).map(|procedure| &mut procedure.held)
            }
            Route::HeldByGroup(index) => self.groups.get_mut(index as usize).map(|group| &mut group.held),
            _ => None,
        }
    }

    /// Sends what was held, in order. Calls whose callers gave them up are no longer among them.
    pub(super) fn release_held(
        &mut self,
        held: Vec<HeldCall>,
        mut go: impl FnMut(&mut Self, &HeldCall) -> Option<Route>,
    ) {
        for call in held {
            self.held_bytes -= call.bytes();
            let calling = call.calling();
            match self.route_of(calling.caller) {
                Some(Route::Held(_) | Route::HeldByGroup(_)) => {
                    self.foreign.remove(&calling.caller);
                    if let Some(route) = go(self, &call) {
                        self.set_route(calling.caller, route);
                    }
                }
                Some(route) => self.pass_more(route, &calling),
                None => {}
            }
        }
    }

    /// True when the callee can take what the call asks for; else the call was answered.
    #[cold]
    fn can_invoke(&mut self, slot: u32, calling: &Calling<'_>) -> bool {
        let Session { features, strict, ref rules, .. } = *self.session(slot);
        let unpassable =
            strict && !features.has(Features::PASSTHRU) || rules.off.has(Feature::PayloadPassthruMode);
        let lacks = if calling.terms.is(Terms::PROGRESS) && !takes_progress(features, strict) {
            "progressive call invocations"
        } else if !calling.ppt.is_empty() && unpassable {
            "payload passthru mode"
        } else {
            return true;
        };
        let text = format!("the callee did not announce {lacks}");
        self.answer_error(calling.caller, wamp::FEATURE_NOT_SUPPORTED, &text);
        false
    }

    #[inline]
    fn send_invocation(
        &mut self,
        slot: u32,
        request: u64,
        registration: u64,
        details: &[(&str, Field<'_>)],
        calling: &Calling<'_>,
    ) -> Option<Queued> {
        self.pass_payload(slot, Class::Invocation, calling.from, calling.payload, |to, out, payload| {
            encode::invocation(to, out, request, registration, details, payload);
        })
    }

    /// What the INVOCATIONs of a call say to the callee of a procedure.
    #[cold]
    fn what_is_said<'a>(
        &mut self,
        slot: u32,
        index: u32,
        uri: &'a str,
        receive_progress: bool,
        calling: &Calling<'a>,
    ) -> Said<'a> {
        let features = self.session(slot).features;
        let procedure = &self.procedures[index as usize];
        let terms = calling.terms;
        let is_timed = features.has(Features::CALLEE_TIMEOUT) || procedure.options.forward_timeout;
        let is_named = procedure.options.disclose_caller || terms.is(Terms::DISCLOSE);
        Said {
            procedure: (procedure.policy != Match::Exact).then_some(uri),
            receive_progress,
            trustlevel: features.has(Features::CALLEE_TRUSTLEVELS),
            timeout_ms: if is_timed { terms.timeout_ms } else { 0 },
            caller: is_named.then_some((terms.session, calling.who)),
            ppt: calling.ppt,
        }
    }

    /// True when an INVOCATION was queued; else the call was answered.
    #[inline]
    fn was_invoked(&mut self, queued: Option<Queued>, caller: Caller) -> bool {
        let (uri, text) = match queued {
            Some(Queued::Yes) => return true,
            Some(Queued::TooLarge) => {
                (wamp::PAYLOAD_SIZE_EXCEEDED, "the call is longer than the callee accepts")
            }
            Some(Queued::Full | Queued::Doomed) => {
                (wamp::UNAVAILABLE, "the callee is too slow: its queue is full")
            }
            None => (wamp::INVALID_ARGUMENT, "the payload cannot be said in the callee's serializer"),
        };
        self.answer_error(caller, uri, text);
        false
    }

    /// CALL that continues an open call (WAMP, advanced profile, "Progressive Call Invocations").
    #[cold]
    fn continue_call(&mut self, slot: u32, calling: &Calling<'_>) {
        let Some(call) = self.session(slot).calls.get_mut(&calling.caller.request) else { return };
        if !calling.terms.is(Terms::PROGRESS) {
            call.terms.flags &= !Terms::PROGRESS;
        }
        let (route, wanted) = (call.route, call.terms);
        // What the first CALL asked for holds for all of them.
        let terms = Terms {
            flags: wanted.flags & !(Terms::PROGRESS | Terms::CHOICE) | calling.terms.flags & Terms::PROGRESS,
            ..wanted
        };
        self.pass_more(route, &Calling { terms, ..*calling });
    }

    /// Passes the continuation of a call the way the call went.
    pub(super) fn pass_more(&mut self, route: Route, calling: &Calling<'_>) {
        match route {
            Route::Here { slot, invocation } => self.invoke_more(slot, invocation, calling),
            Route::Held(_) | Route::HeldByGroup(_) => {
                self.hold_call(route, "", calling);
            }
            Route::Shared(at) => self.more_of_shared(at, calling),
            Route::Shard(shard) => {
                let Calling { caller, terms, key, ppt, from, payload, .. } = *calling;
                let batch = self.mesh(shard);
                let ppt = batch.put_attributes(terms, key, ppt);
                let payload = batch.put_payload(from, payload);
                batch.push(Item::CallMore { caller, terms, ppt, payload });
            }
            Route::Lane { at, id } => self.relay_more(at, id, calling),
            Route::Nowhere | Route::Asked(_) => {}
        }
    }

    /// Another INVOCATION of the same id. Without room for it the call cannot go on: it ends with an error.
    fn invoke_more(&mut self, slot: u32, invocation: u64, calling: &Calling<'_>) {
        let more = calling.terms.is(Terms::PROGRESS);
        let Some(open) = self.session(slot).invocations.get_mut(&invocation) else { return };
        if open.caller != calling.caller {
            return;
        }
        let registration = open.registration;
        let Some(parts) = open.parts.take() else { return };
        let queued = parts
            .said()
            .details(more, |details| self.send_invocation(slot, invocation, registration, details, calling));
        if more && let Some(open) = self.session(slot).invocations.get_mut(&invocation) {
            open.parts = Some(parts);
        }
        if queued != Some(Queued::Yes) {
            self.drop_invocation(slot, invocation, Some(wamp::UNAVAILABLE));
            self.was_invoked(queued, calling.caller);
        }
    }
}

/// Whether a callee can be asked for progressive results. The specification wants them and call cancelling announced;
/// clients that give progressive results do not all say so, and the others ignore the question.
fn gives_progress(callee: &Session) -> bool {
    let features = callee.features;
    let announced =
        features.has(Features::CALLEE_PROGRESSIVE_RESULTS) && features.has(Features::CALLEE_CANCELING);
    (!callee.strict || announced) && !callee.rules.off.has(Feature::ProgressiveCallResults)
}

/// Whether a callee takes calls in parts.
fn takes_progress(features: Features, strict: bool) -> bool {
    features.has(Features::CALLEE_PROGRESSIVE_INVOCATIONS)
        && (!strict || features.has(Features::CALLEE_CANCELING))
}
