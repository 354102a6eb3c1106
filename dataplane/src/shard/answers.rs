//! Answers on their way to callers: YIELD and ERROR in, RESULT and ERROR out.

use super::Shard;
use super::conn::{Call, Invocation, Route};
use super::dealer::HeldCall;
use super::features::Features;
use super::flow::{Class, Queued};
use super::options::{BadOption, is_progress, passthru, unpacked};
use super::shared::is_shared;
use crate::mesh::{Caller, Item, Terms};
use common::features::Feature;
use common::metrics::Counter;
use common::uri::{UriRule, is_valid, wamp};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Dict, OwnedValue, Payload, Serializer};

/// What an answer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer<'a> {
    /// A result that others follow.
    Progress,
    Result,
    Error(&'a str),
}

/// An answer on its way to a caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answering<'a> {
    pub kind: Answer<'a>,
    /// Attributes of payload passthru mode, packed.
    pub ppt: &'a [u8],
    pub from: Serializer,
    pub payload: Payload<'a>,
}

impl Shard {
    /// YIELD.
    #[inline]
    pub(super) fn yielded(&mut self, slot: u32, request: u64, options: &Dict<'_>, payload: Payload<'_>) {
        let from = self.at(slot).serializer;
        if options.is_empty() {
            if let Some(caller) = self.take_invocation(slot, "YIELD", request) {
                self.answer(caller, &Answering { kind: Answer::Result, ppt: &[], from, payload });
            }
            return;
        }
        let (progress, ppt) = match self.what_yield_says(slot, options) {
            Ok(said) => said,
            Err(bad) => return self.bad_option(slot, &bad),
        };
        if !progress {
            if let Some(caller) = self.take_invocation(slot, "YIELD", request) {
                self.answer(caller, &Answering { kind: Answer::Result, ppt: &ppt, from, payload });
            }
            return;
        }
        let Some(open) = self.session(slot).invocations.get(&request) else {
            return self.late_answer(slot, "YIELD", request);
        };
        let caller = open.caller;
        if open.progress {
            self.answer(caller, &Answering { kind: Answer::Progress, ppt: &ppt, from, payload });
        } else if self.session(slot).strict {
            let text = format!("progressive YIELD for request {request}, which did not ask for progress");
            self.violation(slot, &text);
        }
    }

    fn what_yield_says(&mut self, slot: u32, options: &Dict<'_>) -> Result<(bool, Vec<u8>), BadOption> {
        let session = self.session(slot);
        let (strict, features) = (session.strict, session.features);
        let ppt = passthru(options, "YIELD", strict)?;
        if strict && !ppt.is_empty() && !features.has(Features::PASSTHRU) {
            let text = "YIELD asks for payload_passthru_mode, which this client did not announce";
            return Err(BadOption(text.to_owned()));
        }
        Ok((is_progress(options, strict)?, ppt))
    }

    /// ERROR from a client: only an INVOCATION can be answered with one.
    pub(super) fn failed(
        &mut self,
        slot: u32,
        (kind, request): (u64, u64),
        details: &Dict<'_>,
        uri: &str,
        payload: Payload<'_>,
    ) {
        if kind != code::INVOCATION {
            let text = format!("ERROR.REQUEST.Type is {kind}; a client may only answer an INVOCATION (68)");
            return self.violation(slot, &text);
        }
        let strict = self.session(slot).strict;
        let ppt = match passthru(details, "ERROR", strict) {
            Ok(ppt) => ppt,
            Err(bad) => return self.bad_option(slot, &bad),
        };
        let from = self.at(slot).serializer;
        if let Some(caller) = self.take_invocation(slot, "ERROR", request) {
            let uri = match uri {
                wamp::UNAVAILABLE => self.unavailable(slot),
                // Callers end their sessions over a message that breaks the rules, and this one is not theirs.
                uri if !is_valid(uri, UriRule::Loose) => wamp::INVALID_URI,
                uri => uri,
            };
            self.answer(caller, &Answering { kind: Answer::Error(uri), ppt: &ppt, from, payload });
        }
    }

    /// What a callee says of itself with `wamp.error.unavailable`: that the call may go to another one, and that there is none
    /// unless somebody finds one (WAMP, advanced profile, "Call Re-Routing"). In a strict realm only those may that announced it;
    /// of others it is an error like any other.
    fn unavailable(&mut self, slot: u32) -> &'static str {
        let session = self.session(slot);
        let unannounced = session.strict && !session.features.has(Features::CALLEE_REROUTE);
        if unannounced || session.rules.off.has(Feature::CallReroute) {
            return wamp::UNAVAILABLE;
        }
        wamp::NO_AVAILABLE_CALLEE
    }

    /// The caller of an invocation this session answers for good.
    #[inline]
    pub(super) fn take_invocation(&mut self, slot: u32, message: &str, request: u64) -> Option<Caller> {
        let Some(open) = self.session(slot).invocations.remove(&request) else {
            self.late_answer(slot, message, request);
            return None;
        };
        if open.caller.owner.shard != self.me {
            self.foreign.remove(&open.caller);
        }
        Some(open.caller)
    }

    /// An answer nobody waits for is dropped; an id that was never sent is a violation (WAMP, basic profile, "Protocol
    /// errors").
    #[cold]
    fn late_answer(&mut self, slot: u32, message: &str, request: u64) {
        if request > self.session(slot).last_invocation {
            let text = format!("{message} for request {request}, which is no INVOCATION of this session");
            self.violation(slot, &text);
        }
    }

    /// An invocation that is still open and belongs to this caller.
    pub(super) fn invocation_of(&self, slot: u32, invocation: u64, caller: Caller) -> Option<&Invocation> {
        let session = self.conns.get(slot as usize)?.as_ref()?.session.as_ref()?;
        session.invocations.get(&invocation).filter(|open| open.caller == caller)
    }

    /// The callee for which these calls were held will not be registered.
    pub(super) fn fail_held(&mut self, held: Vec<HeldCall>) {
        for call in held {
            self.held_bytes -= call.bytes();
            self.foreign.remove(&call.caller);
            self.answer_error(call.caller, wamp::NO_SUCH_PROCEDURE, "the callee has left");
        }
    }

    /// An ERROR of the router itself to a caller anywhere.
    pub(super) fn answer_error(&mut self, caller: Caller, uri: &str, message: &str) {
        // The callee that was chosen cannot take the call, but another one may.
        let uri = if is_shared(caller) && uri == wamp::UNAVAILABLE { wamp::NO_AVAILABLE_CALLEE } else { uri };
        self.metrics.count(Counter::CallsFailed);
        let mut args = Vec::new();
        let from = Serializer::MsgPack;
        OwnedValue::List(vec![OwnedValue::Str(message.to_owned())]).encode(from, &mut args);
        let payload = Payload { args: Some(&args), kwargs: None };
        self.answer(caller, &Answering { kind: Answer::Error(uri), ppt: &[], from, payload });
    }

    /// Brings an answer to the caller's shard.
    #[inline]
    pub(super) fn answer(&mut self, caller: Caller, answering: &Answering<'_>) {
        if caller.owner.shard == self.me {
            return self.answer_here(caller, answering);
        }
        let batch = self.mesh(caller.owner.shard);
        let ppt = batch.put(answering.ppt);
        let payload = batch.put_payload(answering.from, answering.payload);
        let item = match answering.kind {
            Answer::Progress => Item::Result { caller, progress: true, ppt, payload },
            Answer::Result => Item::Result { caller, progress: false, ppt, payload },
            Answer::Error(uri) => Item::Error { caller, uri: batch.put(uri.as_bytes()), ppt, payload },
        };
        batch.push(item);
    }

    /// Answers a call of this shard. A caller that has left is not looked for.
    #[inline]
    pub(super) fn answer_here(&mut self, caller: Caller, answering: &Answering<'_>) {
        let (slot, request) = (caller.owner.slot, caller.request);
        let Some(session) = self.session_of(caller.owner) else {
            if is_shared(caller) {
                return self.shared_answered(caller, answering);
            }
            return self.relay_answer(caller, answering);
        };
        let progress = answering.kind == Answer::Progress;
        if progress {
            let wanted = session.calls.get(&request).map(|call| call.terms.is(Terms::RECEIVE_PROGRESS));
            if wanted != Some(true) {
                return;
            }
            self.prolong_call(slot, request);
        } else {
            let Some(call) = session.calls.remove(&request) else { return };
            self.call_ended(slot, request, &call);
        }
        self.metrics.count(Counter::Results);
        let Answering { kind, ppt, from, payload } = *answering;
        let queued = if ppt.is_empty() && !progress {
            self.send_answer(slot, request, kind, &[], from, payload)
        } else {
            let mut details: Vec<_> = unpacked(ppt).map(|(key, text)| (key, Field::Str(text))).collect();
            if progress {
                details.push(("progress", Field::Bool(true)));
            }
            self.send_answer(slot, request, kind, &details, from, payload)
        };
        let (uri, text) = match queued {
            Some(Queued::Yes | Queued::Full | Queued::Doomed) => return,
            Some(Queued::TooLarge) => {
                (wamp::PAYLOAD_SIZE_EXCEEDED, "the answer is longer than this client accepts")
            }
            None => {
                (wamp::INVALID_ARGUMENT, "the answer's payload cannot be said in this client's serializer")
            }
        };
        if progress {
            self.give_up_call(slot, request, super::CancelMode::KillNoWait, uri, text);
        } else {
            self.refuse_call(slot, request, uri, text);
        }
    }

    #[inline]
    fn send_answer(
        &mut self,
        slot: u32,
        request: u64,
        kind: Answer<'_>,
        details: &[(&str, Field<'_>)],
        from: Serializer,
        payload: Payload<'_>,
    ) -> Option<Queued> {
        self.pass_payload(slot, Class::Reply, from, payload, |to, out, payload| match kind {
            Answer::Progress | Answer::Result => encode::result(to, out, request, details, payload),
            Answer::Error(uri) => encode::error(to, out, code::CALL, request, details, uri, payload),
        })
    }

    /// A call of a session here is no longer open.
    #[inline]
    pub(super) fn call_ended(&mut self, slot: u32, request: u64, call: &Call) {
        self.calls -= 1;
        if let Some(deadline) = call.deadline {
            self.deadlines.remove(&deadline);
        }
        if call.terms.is(Terms::PROGRESS) {
            self.session(slot).put_unfinished(request);
        }
    }

    /// Queues a message with a payload that may have to be transcoded for the receiver. Nothing: it cannot be.
    #[inline]
    pub(super) fn pass_payload(
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

    /// The way a call went, wherever its caller is; nothing when it is no longer open.
    pub(super) fn route_of(&mut self, caller: Caller) -> Option<Route> {
        if caller.owner.shard != self.me {
            return self.foreign.get(&caller).copied();
        }
        match self.session_of(caller.owner) {
            Some(session) => session.calls.get(&caller.request).map(|call| call.route),
            None => self.relay_route(caller),
        }
    }

    /// A held call has gone its way.
    pub(super) fn set_route(&mut self, caller: Caller, route: Route) {
        if caller.owner.shard != self.me {
            return;
        }
        match self.session_of(caller.owner) {
            Some(session) => {
                if let Some(call) = session.calls.get_mut(&caller.request) {
                    call.route = route;
                }
            }
            None => self.relay_set_route(caller, route),
        }
    }
}
