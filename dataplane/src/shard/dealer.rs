//! Calls: CALL in, INVOCATION out, YIELD or ERROR back.
//!
//! The caller's shard knows that the call is open (`Session::calls`), the callee's shard knows whom to answer
//! (`Session::invocations`). Whichever leaves first, the other side is told or the late answer is dropped.

use super::Shard;
use super::flow::{Class, Queued};
use super::options::check_announced;
use super::routes::{Callee, resolve_procedure};
use crate::mesh::{Caller, Item};
use common::ids::{Match, RouteKind, ShardId};
use common::metrics::Counter;
use common::uri::{is_valid, wamp};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Dict, OwnedValue, Payload, Serializer};

/// A call that came before its callee's REGISTERED could be sent.
#[derive(Debug)]
pub(super) struct HeldCall {
    pub caller: Caller,
    pub procedure: Box<str>,
    pub serializer: Serializer,
    pub args: Option<Vec<u8>>,
    pub kwargs: Option<Vec<u8>>,
}

/// Calls held for one registration.
const HELD_CALLS_MAX: usize = 256;

/// An answer on its way to a caller.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer<'a> {
    Result,
    Error(&'a str),
}

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
        let strict = self.session(slot).strict;
        if let Err(bad) = check_announced(options, "CALL", strict) {
            return self.bad_option(slot, &bad);
        }
        let calls_max = self.config.limits.calls_pending_max as usize;
        let serializer = self.at(slot).serializer;
        let session = self.session(slot);
        let (realm, guess) = (session.realm, session.last_procedure);
        if session.calls.len() >= calls_max {
            self.metrics.count(Counter::LimitReached);
            let text = format!("{calls_max} calls of this session wait for an answer already");
            return self.refuse_call(slot, request, wamp::UNAVAILABLE, &text);
        }
        if session.calls.insert(request, ()).is_some() {
            let text = format!("CALL.Request {request} is the id of a call that is not yet answered");
            return self.violation(slot, &text);
        }
        self.calls += 1;
        self.metrics.count(Counter::Calls);
        let caller = Caller { owner: self.owner(slot), request };
        match self.callee_from(slot, realm, procedure, guess) {
            Some(Callee::Local(index)) => self.invoke(index, procedure, caller, serializer, payload),
            Some(Callee::Remote(shard)) => {
                self.pass_call(shard, realm, procedure, caller, serializer, payload, false);
            }
            Some(Callee::Node(node)) => self.relay_call(node, realm, procedure, caller, serializer, payload),
            Some(Callee::Nobody) => {
                let text = format!("no callee has registered {procedure}");
                self.answer_error(caller, wamp::NO_SUCH_PROCEDURE, &text);
            }
            None => {
                let text = format!("{:?} is not a valid procedure", super::login::shorten(procedure));
                self.answer_error(caller, wamp::INVALID_URI, &text);
            }
        }
    }

    fn refuse_call(&mut self, slot: u32, request: u64, uri: &str, message: &str) {
        self.metrics.count(Counter::CallsFailed);
        self.error(slot, code::CALL, request, uri, message);
    }

    /// As `callee`, looking first where the session's last procedure was.
    #[inline]
    fn callee_from(&mut self, slot: u32, realm: u32, procedure: &str, guess: u32) -> Option<Callee> {
        let version = self.routes_version(realm);
        if self.cache.is_at(guess, realm, RouteKind::Procedure, procedure, version) {
            self.metrics.count(Counter::RouteCacheHits);
            return Some(self.cache.get(guess as usize).callee);
        }
        let (callee, at) = self.callee(realm, procedure)?;
        self.session(slot).last_procedure = at as u32;
        Some(callee)
    }

    /// Who is to be called, and the cache entry that says so; nothing when the URI is invalid.
    #[inline]
    fn callee(&mut self, realm: u32, procedure: &str) -> Option<(Callee, usize)> {
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
        caller: Caller,
        serializer: Serializer,
        payload: Payload<'_>,
        forwarded: bool,
    ) {
        let realm = self.realms[realm as usize].id;
        let batch = self.mesh(shard);
        let procedure = batch.put(procedure.as_bytes());
        let payload = batch.put_payload(serializer, payload);
        batch.push(Item::Call { realm, procedure, caller, payload, forwarded });
    }

    /// A call that another shard routed here. When its callee has just moved to another shard it goes there, once.
    pub(super) fn call_from_mesh(
        &mut self,
        realm: u32,
        procedure: &str,
        caller: Caller,
        serializer: Serializer,
        payload: Payload<'_>,
        forwarded: bool,
    ) {
        match self.callee(realm, procedure).map(|(callee, _)| callee) {
            Some(Callee::Local(index)) => self.invoke(index, procedure, caller, serializer, payload),
            Some(Callee::Remote(shard)) if !forwarded => {
                self.pass_call(shard, realm, procedure, caller, serializer, payload, true);
            }
            _ => self.answer_error(caller, wamp::NO_SUCH_PROCEDURE, "the callee has left"),
        }
    }

    /// A call of a session of another node, which believes that the callee is here.
    pub(super) fn call_from_node(
        &mut self,
        realm: u32,
        procedure: &str,
        caller: Caller,
        serializer: Serializer,
        payload: Payload<'_>,
    ) {
        self.call_from_mesh(realm, procedure, caller, serializer, payload, false);
    }

    /// Sends an INVOCATION to the callee of a procedure of this shard.
    #[inline]
    pub(super) fn invoke(
        &mut self,
        index: u32,
        uri: &str,
        caller: Caller,
        from: Serializer,
        payload: Payload<'_>,
    ) {
        let procedure = &mut self.procedures[index as usize];
        if !procedure.spread.missing.is_empty() {
            if procedure.held.len() >= HELD_CALLS_MAX {
                return self.answer_error(caller, wamp::UNAVAILABLE, "the callee is still being registered");
            }
            let (args, kwargs) = (payload.args.map(<[u8]>::to_vec), payload.kwargs.map(<[u8]>::to_vec));
            let call = HeldCall { caller, procedure: uri.into(), serializer: from, args, kwargs };
            return procedure.held.push(call);
        }
        let (slot, registration, exact) = (procedure.callee, procedure.id, procedure.policy == Match::Exact);
        let pending_max = self.config.limits.invocations_pending_max as usize;
        let session = self.session(slot);
        if session.invocations.len() >= pending_max {
            self.metrics.count(Counter::LimitReached);
            let text = format!("the callee has {pending_max} invocations to answer already");
            return self.answer_error(caller, wamp::UNAVAILABLE, &text);
        }
        let request =
            if session.last_invocation == common::ids::ID_MAX { 1 } else { session.last_invocation + 1 };
        let details = [("procedure", Field::Str(uri))];
        let details = if exact { &details[..0] } else { &details[..] };
        let queued = self.pass_payload(slot, Class::Invocation, from, payload, |to, out, payload| {
            encode::invocation(to, out, request, registration, details, payload);
        });
        match queued {
            Some(Queued::Yes) => {
                let session = self.session(slot);
                session.last_invocation = request;
                session.invocations.insert(request, caller);
            }
            Some(Queued::TooLarge) => {
                let text = "the call is longer than the callee accepts";
                self.answer_error(caller, wamp::PAYLOAD_SIZE_EXCEEDED, text);
            }
            Some(Queued::Full | Queued::Doomed) => {
                self.answer_error(caller, wamp::UNAVAILABLE, "the callee is too slow: its queue is full");
            }
            None => {
                let text = "the payload cannot be said in the callee's serializer";
                self.answer_error(caller, wamp::INVALID_ARGUMENT, text);
            }
        }
    }

    /// Queues a message with a payload that may have to be transcoded for the receiver. Nothing: it cannot be.
    #[inline]
    fn pass_payload(
        &mut self,
        slot: u32,
        class: Class,
        from: Serializer,
        payload: Payload<'_>,
        write: impl FnOnce(Serializer, &mut Vec<u8>, Payload<'_>),
    ) -> Option<Queued> {
        let to = self.at(slot).serializer;
        if to == from {
            return Some(self.push(slot, class, |to, out| write(to, out, payload)));
        }
        let mut transcoded = std::mem::take(self.scratch.payload(to));
        transcoded.reset();
        let queued = transcoded
            .fill(from, to, payload)
            .map(|payload| self.push(slot, class, |to, out| write(to, out, payload)));
        *self.scratch.payload(to) = transcoded;
        queued
    }

    /// YIELD.
    #[inline]
    pub(super) fn yielded(&mut self, slot: u32, request: u64, options: &Dict<'_>, payload: Payload<'_>) {
        let strict = self.session(slot).strict;
        if let Err(bad) = check_announced(options, "YIELD", strict) {
            return self.bad_option(slot, &bad);
        }
        let from = self.at(slot).serializer;
        if let Some(caller) = self.take_invocation(slot, "YIELD", request) {
            self.answer(caller, Answer::Result, from, payload);
        }
    }

    /// ERROR from a client: only an INVOCATION can be answered with one.
    pub(super) fn failed(&mut self, slot: u32, kind: u64, request: u64, uri: &str, payload: Payload<'_>) {
        if kind != code::INVOCATION {
            let text = format!("ERROR.REQUEST.Type is {kind}; a client may only answer an INVOCATION (68)");
            return self.violation(slot, &text);
        }
        let from = self.at(slot).serializer;
        if let Some(caller) = self.take_invocation(slot, "ERROR", request) {
            self.answer(caller, Answer::Error(uri), from, payload);
        }
    }

    /// The caller of an invocation this session answers. Late answers are dropped; an id that was never sent is a
    /// violation (WAMP, basic profile, "Protocol errors").
    #[inline]
    fn take_invocation(&mut self, slot: u32, message: &str, request: u64) -> Option<Caller> {
        let session = self.session(slot);
        if let Some(caller) = session.invocations.remove(&request) {
            return Some(caller);
        }
        if request > session.last_invocation {
            let text = format!("{message} for request {request}, which is no INVOCATION of this session");
            self.violation(slot, &text);
        }
        None
    }

    /// CANCEL. Call cancelling is not announced: in a strict realm it is a violation, else it has no effect.
    pub(super) fn cancel(&mut self, slot: u32, request: u64) {
        if self.session(slot).strict {
            let text = format!("CANCEL of call {request}, but the router does not announce call_canceling");
            self.violation(slot, &text);
        }
    }

    /// An ERROR of the router itself to a caller anywhere in the node.
    pub(super) fn answer_error(&mut self, caller: Caller, uri: &str, message: &str) {
        self.metrics.count(Counter::CallsFailed);
        let mut args = Vec::new();
        let serializer = Serializer::MsgPack;
        OwnedValue::List(vec![OwnedValue::Str(message.to_owned())]).encode(serializer, &mut args);
        self.answer(caller, Answer::Error(uri), serializer, Payload { args: Some(&args), kwargs: None });
    }

    /// Brings an answer to the caller's shard.
    #[inline]
    fn answer(&mut self, caller: Caller, answer: Answer<'_>, from: Serializer, payload: Payload<'_>) {
        if caller.owner.shard == self.me {
            return self.answer_here(caller, answer, from, payload);
        }
        let batch = self.mesh(caller.owner.shard);
        let payload = batch.put_payload(from, payload);
        let item = match answer {
            Answer::Result => Item::Result { caller, payload },
            Answer::Error(uri) => Item::Error { caller, uri: batch.put(uri.as_bytes()), payload },
        };
        batch.push(item);
    }

    /// Answers a call of this shard. A caller that has left is not looked for.
    #[inline]
    pub(super) fn answer_here(
        &mut self,
        caller: Caller,
        answer: Answer<'_>,
        from: Serializer,
        payload: Payload<'_>,
    ) {
        let (slot, request) = (caller.owner.slot, caller.request);
        let Some(session) = self.session_of(caller.owner) else {
            return self.relay_answer(caller, answer, from, payload);
        };
        if session.calls.remove(&request).is_none() {
            return;
        }
        self.calls -= 1;
        self.metrics.count(Counter::Results);
        let queued = self.pass_payload(slot, Class::Reply, from, payload, |to, out, payload| match answer {
            Answer::Result => encode::result(to, out, request, &[], payload),
            Answer::Error(uri) => encode::error(to, out, code::CALL, request, &[], uri, payload),
        });
        match queued {
            Some(Queued::TooLarge) => {
                let text = "the answer is longer than this client accepts";
                self.refuse_call(slot, request, wamp::PAYLOAD_SIZE_EXCEEDED, text);
            }
            None => {
                let text = "the answer's payload cannot be said in this client's serializer";
                self.refuse_call(slot, request, wamp::INVALID_ARGUMENT, text);
            }
            Some(Queued::Yes | Queued::Full | Queued::Doomed) => {}
        }
    }
}
