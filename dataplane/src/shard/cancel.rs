//! Calls given up: by CANCEL, by time, by a caller that leaves (WAMP, advanced profile, "Call Canceling", "Call
//! Timeouts"; basic profile, "Caller Leaving").
//!
//! The caller's shard decides and answers; the callee's shard, found by the way the call went, tells the callee.

use super::Shard;
use super::conn::Route;
use super::features::Features;
use super::options::CancelMode;
use crate::mesh::{Caller, Item};
use common::uri::wamp;
use common::wire::Dict;
use common::wire::encode::{self, Field};
use common::wire::message::code;
use std::time::{Duration, Instant};

use super::flow::Class;

/// Calls ended in one turn because their time is over.
const TIMEOUT_SLICE: usize = 256;

impl Shard {
    /// CANCEL. One for a call that is not open is late and ignored; in a strict realm one for a call that never was is a
    /// violation.
    pub(super) fn cancel(&mut self, slot: u32, request: u64, options: &Dict<'_>) {
        let session = self.session(slot);
        let (strict, watermark) = (session.strict, session.last_request);
        let mode = match CancelMode::read(options, strict) {
            Ok(mode) => mode,
            Err(bad) => return self.bad_option(slot, &bad),
        };
        let Some(call) = self.session(slot).calls.get(&request).copied() else {
            if strict && request > watermark && !self.session(slot).gap {
                let text = format!("CANCEL for request {request}, which is no CALL of this session");
                self.violation(slot, &text);
            }
            return;
        };
        if mode == CancelMode::Kill {
            let caller = Caller { owner: self.owner(slot), request };
            return self.cancel_route(call.route, caller, mode, false);
        }
        self.give_up_call(slot, request, mode, wamp::CANCELED, "the call was canceled");
    }

    /// Ends an open call with an ERROR, and tells the callee by `mode`.
    pub(super) fn give_up_call(&mut self, slot: u32, request: u64, mode: CancelMode, uri: &str, text: &str) {
        let caller = Caller { owner: self.owner(slot), request };
        let Some(call) = self.session(slot).calls.remove(&request) else { return };
        self.call_ended(slot, request, &call);
        self.refuse_call(slot, request, uri, text);
        self.cancel_route(call.route, caller, mode, uri == wamp::TIMEOUT);
    }

    /// Tells whoever has to answer a call that it is given up.
    pub(super) fn cancel_route(&mut self, route: Route, caller: Caller, mode: CancelMode, timeout: bool) {
        match route {
            Route::Here { slot, invocation } => {
                self.cancel_invocation(slot, invocation, caller, mode, timeout);
            }
            Route::Held(_) | Route::HeldByGroup(_) => self.cancel_held(route, caller, mode),
            Route::Shared(at) => self.cancel_shared(at, caller, mode, timeout),
            Route::Shard(shard) => self.mesh(shard).push(Item::Cancel { caller, mode, timeout }),
            Route::Lane { at, id } => self.relay_cancel(at, id, mode, timeout),
            Route::Asked(token) => {
                self.drop_question(token);
                if mode == CancelMode::Kill {
                    self.answer_error(caller, wamp::CANCELED, "the call was canceled");
                }
            }
            Route::Nowhere => {}
        }
    }

    /// A call that waits for a callee's REGISTERED never gets there.
    fn cancel_held(&mut self, route: Route, caller: Caller, mode: CancelMode) {
        self.foreign.remove(&caller);
        let mut freed = 0;
        if let Some(held) = self.held(route) {
            held.retain(|call| {
                let stays = call.caller != caller;
                freed += if stays { 0 } else { call.bytes() };
                stays
            });
        }
        self.held_bytes -= freed;
        if mode == CancelMode::Kill {
            self.answer_error(caller, wamp::CANCELED, "the call was canceled");
        }
    }

    fn cancel_invocation(
        &mut self,
        slot: u32,
        invocation: u64,
        caller: Caller,
        mode: CancelMode,
        timeout: bool,
    ) {
        if self.invocation_of(slot, invocation, caller).is_none() {
            return;
        }
        let told = mode != CancelMode::Skip && self.session(slot).features.has(Features::CALLEE_CANCELING);
        if mode == CancelMode::Kill {
            if told {
                self.interrupt(slot, invocation, mode, timeout);
            } else {
                // A callee that cannot be told is not waited for.
                self.drop_invocation(slot, invocation, None);
                self.answer_error(caller, wamp::CANCELED, "the call was canceled");
            }
            return;
        }
        let reason = told.then_some(if timeout { wamp::TIMEOUT } else { wamp::CANCELED });
        self.drop_invocation(slot, invocation, reason);
    }

    /// Forgets an open invocation: what the callee answers is dropped. `reason`: it is told.
    pub(super) fn drop_invocation(&mut self, slot: u32, invocation: u64, reason: Option<&str>) {
        let session = self.session(slot);
        let Some(open) = session.invocations.remove(&invocation) else { return };
        let can_tell = session.features.has(Features::CALLEE_CANCELING);
        self.foreign.remove(&open.caller);
        if let Some(reason) = reason.filter(|_| can_tell) {
            self.interrupt(slot, invocation, CancelMode::KillNoWait, reason == wamp::TIMEOUT);
        }
    }

    /// INTERRUPT. A callee too slow to be told will find its answer dropped.
    fn interrupt(&mut self, slot: u32, invocation: u64, mode: CancelMode, timeout: bool) {
        let reason = if timeout { wamp::TIMEOUT } else { wamp::CANCELED };
        let options = [("mode", Field::Str(mode.name())), ("reason", Field::Str(reason))];
        self.push(slot, Class::Invocation, |serializer, out| {
            encode::id_dict(serializer, out, code::INTERRUPT, invocation, &options);
        });
    }

    /// Sets when a call times out: the caller's wish within the configured bound, else the configured default.
    #[inline]
    pub(super) fn set_call_deadline(&mut self, slot: u32, request: u64, timeout_ms: u32) {
        let limits = &self.config.limits;
        if timeout_ms == 0 && limits.call_timeout.is_zero() {
            return;
        }
        let wanted = Duration::from_millis(timeout_ms.into());
        let wanted = if timeout_ms == 0 { limits.call_timeout } else { wanted };
        let deadline = (self.now + wanted.min(limits.call_timeout_max), self.token());
        let owner = self.owner(slot);
        self.deadlines
            .insert(deadline, (Caller { owner, request }, wanted.min(self.config.limits.call_timeout_max)));
        if let Some(call) = self.session(slot).calls.get_mut(&request) {
            call.deadline = Some(deadline);
        }
    }

    /// A progressive result: the time of the call begins anew.
    pub(super) fn prolong_call(&mut self, slot: u32, request: u64) {
        let Some(old) = self.session(slot).calls.get(&request).and_then(|call| call.deadline) else { return };
        let Some((caller, time)) = self.deadlines.remove(&old) else { return };
        let new = (self.now + time, old.1);
        self.deadlines.insert(new, (caller, time));
        if let Some(call) = self.session(slot).calls.get_mut(&request) {
            call.deadline = Some(new);
        }
    }

    /// When the next call times out.
    pub(super) fn calls_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((at, _), _)| *at)
    }

    /// Ends calls whose time is over, some in each turn.
    pub(super) fn calls_timeout(&mut self) {
        for _ in 0..TIMEOUT_SLICE {
            let due = self.deadlines.first_entry().filter(|entry| entry.key().0 <= self.now);
            let Some(entry) = due else { return };
            let (_, (caller, _)) = entry.remove_entry();
            if self.session_of(caller.owner).is_none() {
                continue;
            }
            self.metrics.count(common::metrics::Counter::CallsTimedOut);
            let (slot, request) = (caller.owner.slot, caller.request);
            let text = "the call took longer than it may";
            self.give_up_call(slot, request, CancelMode::KillNoWait, wamp::TIMEOUT, text);
        }
    }
}
