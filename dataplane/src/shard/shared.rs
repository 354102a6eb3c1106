//! Calls to registrations of several callees, at the shard that chooses the callee.
//!
//! The shard stands between both: to the callee it is the caller, so answers, cancelling, timeouts and further parts of a call take
//! the ways of all calls. What a call may need to be routed again is kept as long as that can happen (WAMP, advanced
//! profile, "Call Re-Routing").
//!
//! Invariants: every entry has a caller that waits; a call is with one callee at a time; no callee gets it twice.

use super::Shard;
use super::answers::{Answer, Answering};
use super::conn::Route;
use super::dealer::{Calling, HeldCall};
use super::members::Key;
use super::options::CancelMode;
use crate::mesh::{Caller, Item, Owner, Terms};
use common::metrics::Counter;
use common::uri::wamp;
use slab::Slab;

/// The calls for which a shard chose the callee.
#[derive(Debug, Default)]
pub(super) struct Shared {
    calls: Slab<SharedCall>,
    last_serial: u64,
    kept_bytes: usize,
}

#[derive(Debug)]
struct SharedCall {
    /// Tells it from others that had its place.
    serial: u64,
    caller: Caller,
    group: u32,
    registration: u64,
    /// The number of the callee that has the call.
    member: u64,
    route: Route,
    /// Callees that could not take it.
    tried: Vec<u64>,
    /// What it takes to route it again.
    kept: Option<Box<HeldCall>>,
    /// It is just being passed on: an answer now is the refusal to take it.
    is_passing: bool,
}

/// In place of a slot: the caller is an entry of [`Shared`].
const SHARED_SLOT: u32 = u32::MAX;
/// A longer call is not routed again.
pub(super) const REROUTED_BYTES_MAX: usize = 64 << 10;
/// Bytes of calls that a shard keeps to route them again; calls beyond it are not.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Callees that are asked to take one call.
const TRIES_MAX: usize = 32;

/// True when the caller is an entry of [`Shared`].
#[inline]
pub(super) fn is_shared(caller: Caller) -> bool {
    caller.owner.slot == SHARED_SLOT
}

impl Shared {
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    fn get(&mut self, at: u32, serial: u64) -> Option<&mut SharedCall> {
        self.calls.get_mut(at as usize).filter(|call| call.serial == serial)
    }

    fn of_caller(&mut self, at: u32, caller: Caller) -> Option<&mut SharedCall> {
        self.calls.get_mut(at as usize).filter(|call| call.caller == caller)
    }

    /// Keeps what it takes to route a call again, if there is room.
    fn keep(&mut self, at: u32, uri: &str, calling: &Calling<'_>) {
        let payload = [calling.payload.args, calling.payload.kwargs].into_iter().flatten();
        let bytes = calling.ppt.len() + calling.who.len() + payload.map(<[u8]>::len).sum::<usize>();
        if bytes > REROUTED_BYTES_MAX || self.kept_bytes + bytes > KEPT_BYTES_MAX {
            return;
        }
        let held = Box::new(HeldCall::new(uri, calling));
        if let Some(call) = self.calls.get_mut(at as usize) {
            self.kept_bytes += held.bytes();
            call.kept = Some(held);
        }
    }

    fn take_kept(&mut self, at: u32) -> Option<Box<HeldCall>> {
        let kept = self.calls.get_mut(at as usize)?.kept.take()?;
        self.kept_bytes -= kept.bytes();
        Some(kept)
    }
}

impl Shard {
    /// A call to a group of this shard. The way it went, unless it was answered.
    pub(super) fn call_group(&mut self, group: u32, uri: &str, calling: &Calling<'_>) -> Option<Route> {
        let caller = calling.caller;
        let Some(held) = self.groups.get(group as usize) else {
            self.answer_error(caller, wamp::NO_SUCH_PROCEDURE, "the callee has left");
            return None;
        };
        if !held.spread.missing.is_empty() {
            return self.hold_call(Route::HeldByGroup(group), uri, calling);
        }
        let registration = held.id;
        self.shared.last_serial += 1;
        let serial = self.shared.last_serial;
        let at = self.shared.calls.insert(SharedCall {
            serial,
            caller,
            group,
            registration,
            member: 0,
            route: Route::Nowhere,
            tried: Vec::new(),
            kept: None,
            is_passing: false,
        }) as u32;
        if !self.pass_shared(at, serial, uri, calling) {
            return None;
        }
        let route = Route::Shared(at);
        if caller.owner.shard != self.me {
            self.foreign.insert(caller, route);
        }
        Some(route)
    }

    /// Passes a call to the callee that comes next. False: there was none, and it was answered.
    fn pass_shared(&mut self, at: u32, serial: u64, uri: &str, calling: &Calling<'_>) -> bool {
        let terms = Terms { flags: calling.terms.flags & !Terms::CHOICE, ..calling.terms };
        let owner = Owner { shard: self.me, slot: SHARED_SLOT, session: serial };
        let proxied = Calling { caller: Caller { owner, request: at.into() }, terms, ..*calling };
        loop {
            let Some((callee, registration, may_go_on)) = self.choose(at, serial, calling) else {
                self.no_callee_left(at, serial);
                return false;
            };
            let route = if callee.shard == self.me {
                self.invoke_member(callee, registration, uri, &proxied)
            } else {
                Some(self.pass_to_member(callee, registration, uri, &proxied))
            };
            let Some(call) = self.shared.get(at, serial) else { return false };
            call.is_passing = false;
            let Some(route) = route else {
                self.next_callee(at, serial);
                continue;
            };
            call.route = route;
            if may_go_on {
                self.shared.keep(at, uri, calling);
            }
            return true;
        }
    }

    /// The callee that gets the call, the registration, and whether another one might.
    fn choose(&mut self, at: u32, serial: u64, calling: &Calling<'_>) -> Option<(Owner, u64, bool)> {
        let call = self.shared.get(at, serial)?;
        let group = self.groups.get_mut(call.group as usize)?;
        if group.id != call.registration || call.tried.len() >= TRIES_MAX {
            return None;
        }
        let bound = calling.terms.is(Terms::PARTITION);
        // Without a key calls of one caller go to one callee.
        let hash = if calling.terms.is(Terms::KEYED) { calling.key } else { calling.terms.session };
        let number = group.members.pick(Key { hash, bound }, &call.tried, &mut self.rng)?;
        let callee = group.members.get(number)?.owner;
        group.members.take(number);
        call.member = number;
        call.is_passing = true;
        let others = group.members.len() > call.tried.len() + 1;
        let may_go_on = others && !bound && !calling.terms.is(Terms::PROGRESS);
        Some((callee, call.registration, may_go_on))
    }

    fn pass_to_member(
        &mut self,
        callee: Owner,
        registration: u64,
        uri: &str,
        calling: &Calling<'_>,
    ) -> Route {
        let Calling { caller, terms, key, who, ppt, from, payload } = *calling;
        let batch = self.mesh(callee.shard);
        let procedure = batch.put(uri.as_bytes());
        let who = batch.put(who);
        let ppt = batch.put_attributes(terms, key, ppt);
        let payload = batch.put_payload(from, payload);
        let session = batch.put_callee(callee.slot, callee.session);
        batch.push(Item::Invoke {
            registration,
            callee: session,
            procedure,
            caller,
            terms,
            who,
            ppt,
            payload,
        });
        Route::Shard(callee.shard)
    }

    /// A call that its home shard chose this callee for.
    pub(super) fn invoke_member(
        &mut self,
        callee: Owner,
        registration: u64,
        uri: &str,
        calling: &Calling<'_>,
    ) -> Option<Route> {
        let held = self.session_of(callee).and_then(|session| session.registrations.get(&registration));
        match held.copied().filter(|index| self.procedures[*index as usize].is_shared()) {
            Some(index) => self.invoke(index, uri, calling),
            None => {
                // It never got the call, so another one may.
                self.answer_error(calling.caller, wamp::NO_AVAILABLE_CALLEE, "the callee has left");
                None
            }
        }
    }

    /// The callee that had the call could not take it.
    fn next_callee(&mut self, at: u32, serial: u64) {
        let Some(call) = self.shared.get(at, serial) else { return };
        call.tried.push(call.member);
        if let Some(group) = self.groups.get_mut(call.group as usize) {
            group.members.release(call.member);
        }
        call.member = 0;
    }

    fn no_callee_left(&mut self, at: u32, serial: u64) {
        if self.shared.get(at, serial).is_none() {
            return;
        }
        let Some(call) = self.end_shared(at) else { return };
        let (uri, text) = if call.tried.is_empty() {
            self.metrics.count(Counter::LimitReached);
            (wamp::UNAVAILABLE, "every callee has as many calls as it takes")
        } else {
            (wamp::NO_AVAILABLE_CALLEE, "no callee could take the call")
        };
        self.answer_error(call.caller, uri, text);
    }

    /// The entry of a call goes: it is answered or given up.
    fn end_shared(&mut self, at: u32) -> Option<SharedCall> {
        self.shared.take_kept(at);
        let call = self.shared.calls.try_remove(at as usize)?;
        if let Some(group) = self.groups.get_mut(call.group as usize) {
            group.members.release(call.member);
        }
        self.foreign.remove(&call.caller);
        Some(call)
    }

    /// A callee has answered a call that was passed to it.
    pub(super) fn shared_answered(&mut self, proxy: Caller, answering: &Answering<'_>) {
        let (at, serial) = (proxy.request as u32, proxy.owner.session);
        let Some(call) = self.shared.get(at, serial) else { return };
        let caller = call.caller;
        match answering.kind {
            Answer::Progress => {
                self.shared.take_kept(at);
                self.answer(caller, answering);
            }
            Answer::Error(wamp::NO_AVAILABLE_CALLEE) if call.is_passing => {}
            Answer::Error(wamp::NO_AVAILABLE_CALLEE) if call.kept.is_some() => {
                let Some(kept) = self.shared.take_kept(at) else { return };
                self.metrics.count(Counter::CallsRerouted);
                self.next_callee(at, serial);
                self.pass_shared(at, serial, &kept.procedure, &kept.calling());
            }
            Answer::Result | Answer::Error(_) => {
                self.end_shared(at);
                self.answer(caller, answering);
            }
        }
    }

    /// A further part of a call: from here on no other callee can have it.
    pub(super) fn more_of_shared(&mut self, at: u32, calling: &Calling<'_>) {
        let me = self.me;
        let Some(call) = self.shared.of_caller(at, calling.caller) else { return };
        let (route, serial) = (call.route, call.serial);
        self.shared.take_kept(at);
        let owner = Owner { shard: me, slot: SHARED_SLOT, session: serial };
        self.pass_more(route, &Calling { caller: Caller { owner, request: at.into() }, ..*calling });
    }

    /// A call is given up.
    pub(super) fn cancel_shared(&mut self, at: u32, caller: Caller, mode: CancelMode, timeout: bool) {
        let me = self.me;
        let Some(call) = self.shared.of_caller(at, caller) else { return };
        let (route, serial) = (call.route, call.serial);
        if mode == CancelMode::Kill {
            self.shared.take_kept(at);
        } else {
            self.end_shared(at);
        }
        let owner = Owner { shard: me, slot: SHARED_SLOT, session: serial };
        self.cancel_route(route, Caller { owner, request: at.into() }, mode, timeout);
    }
}
