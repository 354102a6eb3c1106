//! Calls to registrations of several callees, at the shard that chooses the callee.
//!
//! The shard stands between both: to the callee it is the caller, so answers, cancelling, timeouts and further parts of a call take
//! the ways of all calls. What a call may need to be routed again is kept as long as that can happen (WAMP, advanced
//! profile, "Call Re-Routing").
//!
//! Invariants: every entry has a caller that waits; a call is with one callee at a time; no callee gets it twice.

mod kept;

use super::Shard;
use super::answers::{Answer, Answering};
use super::conn::Route;
use super::dealer::Calling;
use super::members::{Key, Picked};
use super::options::CancelMode;
use super::routes::Sharer;
use super::sites::{self, Site};
use crate::mesh::{Caller, Item, Owner, Terms};
use common::metrics::Counter;
use common::uri::wamp;
use kept::{Keeper, Kept};
use slab::Slab;

/// The calls for which a shard chose the callee.
#[derive(Debug, Default)]
pub(super) struct Shared {
    calls: Slab<SharedCall>,
    last_serial: u64,
    keeper: Keeper,
}

#[derive(Debug)]
struct SharedCall {
    /// Tells it from others that had its place.
    serial: u64,
    caller: Caller,
    /// [`NO_GROUP`]: only other nodes have callees.
    group: u32,
    registration: u64,
    realm: u32,
    /// Who has the call.
    with: Target,
    route: Route,
    /// The numbers of those that could not take it.
    tried: Vec<u64>,
    /// What it takes to route it again.
    kept: Option<Kept>,
    /// It is just being passed on: an answer now is the refusal to take it.
    is_passing: bool,
    /// Somebody said that it could not take it.
    is_refused: bool,
}

/// Who gets a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Nobody,
    /// A callee of this node.
    Member(Picked),
    /// One of another node's.
    Node(u16),
}

/// Set in the number of a node; numbers of callees are smaller.
const NODE: u64 = 1 << 63;

impl Target {
    fn number(self) -> u64 {
        match self {
            Self::Nobody => 0,
            Self::Member(picked) => picked.number,
            Self::Node(node) => NODE | u64::from(node),
        }
    }

    /// An error that says that the call was not taken.
    fn may_go_on(self, uri: &str) -> bool {
        // All callees of a node may have as many calls as they take.
        uri == wamp::NO_AVAILABLE_CALLEE || uri == wamp::UNAVAILABLE && matches!(self, Self::Node(_))
    }
}

const NO_GROUP: u32 = u32::MAX;
/// In place of a slot: the caller is an entry of [`Shared`].
const SHARED_SLOT: u32 = u32::MAX;
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
        self.keeper.bytes()
    }

    fn get(&mut self, at: u32, serial: u64) -> Option<&mut SharedCall> {
        self.calls.get_mut(at as usize).filter(|call| call.serial == serial)
    }

    fn of_caller(&mut self, at: u32, caller: Caller) -> Option<&mut SharedCall> {
        self.calls.get_mut(at as usize).filter(|call| call.caller == caller)
    }

    /// Keeps what it takes to route a call again, if there is room.
    #[inline]
    fn keep(&mut self, at: u32, uri: &str, calling: &Calling<'_>) {
        if let Some(call) = self.calls.get_mut(at as usize) {
            call.kept = self.keeper.keep(uri, calling);
        }
    }

    /// The call is not routed again.
    #[inline]
    fn drop_kept(&mut self, at: u32) {
        if let Some(kept) = self.calls.get_mut(at as usize).and_then(|call| call.kept.take()) {
            self.keeper.give_back(kept);
        }
    }
}

impl Shard {
    /// A call to a group of this shard. The way it went, unless it was answered.
    pub(super) fn call_group(&mut self, group: u32, uri: &str, calling: &Calling<'_>) -> Option<Route> {
        let Some(held) = self.groups.get(group as usize) else {
            self.answer_error(calling.caller, wamp::NO_SUCH_PROCEDURE, "the callee has left");
            return None;
        };
        if !held.spread.missing.is_empty() {
            return self.hold_call(Route::HeldByGroup(group), uri, calling);
        }
        let (realm, registration) = (held.realm, held.id);
        self.begin_shared((group, registration, realm), uri, calling)
    }

    /// A call to callees that other nodes share. The way it went, unless it was answered.
    pub(super) fn call_nodes(&mut self, realm: u32, uri: &str, calling: &Calling<'_>) -> Option<Route> {
        self.begin_shared((NO_GROUP, 0, realm), uri, calling)
    }

    fn begin_shared(
        &mut self,
        (group, registration, realm): (u32, u64, u32),
        uri: &str,
        calling: &Calling<'_>,
    ) -> Option<Route> {
        let caller = calling.caller;
        self.shared.last_serial += 1;
        let serial = self.shared.last_serial;
        let at = self.shared.calls.insert(SharedCall {
            serial,
            caller,
            group,
            registration,
            realm,
            with: Target::Nobody,
            route: Route::Nowhere,
            tried: Vec::new(),
            kept: None,
            is_passing: false,
            is_refused: false,
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
        let owner = Owner { shard: self.me, slot: SHARED_SLOT, session: serial };
        let proxied = Calling { caller: Caller { owner, request: at.into() }, ..*calling };
        loop {
            let Some((target, may_go_on)) = self.choose(at, serial, uri, calling) else {
                self.no_callee_left(at, serial);
                return false;
            };
            let Some(call) = self.shared.get(at, serial) else { return false };
            (call.with, call.is_passing) = (target, true);
            let (group, registration, realm) = (call.group, call.registration, call.realm);
            let route = match target {
                Target::Member(picked) => {
                    let terms = Terms { flags: calling.terms.flags & !Terms::CHOICE, ..calling.terms };
                    self.pass_to_member((group, picked), registration, uri, &Calling { terms, ..proxied })
                }
                // There its home shard chooses among the callees.
                Target::Node(node) => self.relay_call(node, realm, uri, &proxied),
                Target::Nobody => None,
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

    /// Who gets the call, and whether another one might.
    fn choose(&mut self, at: u32, serial: u64, uri: &str, calling: &Calling<'_>) -> Option<(Target, bool)> {
        let call = self.shared.get(at, serial)?;
        if call.tried.len() >= TRIES_MAX {
            return None;
        }
        let (group_at, realm, registration) = (call.group, call.realm, call.registration);
        let tried = call.tried.clone();
        let bound = calling.terms.is(Terms::PARTITION);
        // Without a key calls of one caller go to one callee.
        let hash = if calling.terms.is(Terms::KEYED) { calling.key } else { calling.terms.session };
        let key = Key { hash, bound };
        let group = self.groups.get(group_at as usize).filter(|group| group.id == registration);
        let here = group.map(|group| (group.share(), group.prefer_local && !bound));
        let goes_on =
            |candidates: usize| candidates > tried.len() + 1 && !bound && !calling.terms.is(Terms::PROGRESS);
        let members = group.map_or(0, |group| group.members.len());
        let stays = calling.terms.is(Terms::STAYS) || self.folded.live.is_empty();
        if let Some((_, prefers)) = here
            && (stays || prefers)
            && let Some(target) = self.choose_member(group_at, key, &tried)
        {
            return Some((target, goes_on(members) || !stays && goes_on(usize::MAX)));
        }
        if stays {
            return None;
        }
        let (sharers, turn) = self.sharers_of(realm, uri);
        let mut sites: Vec<Site> = sharers.iter().map(|sharer| self.site(sharer)).collect();
        let invoke = here.map(|(share, _)| share).or(sites.first().map(|site| site.share))?.invoke;
        sites.retain(|site| site.share.invoke == invoke);
        let candidates = members + sites.len();
        if let Some((share, _)) = here {
            sites.push(Site { node: None, life: self.config.epoch.0, share });
        }
        if !bound {
            sites.retain(|site| !site.node.is_some_and(|node| tried.contains(&Target::Node(node).number())));
        }
        loop {
            let place = sites::choose(invoke, key, &sites, turn, &mut self.rng)?;
            let target = match sites[place].node {
                Some(node) if tried.contains(&Target::Node(node).number()) => None,
                Some(node) => Some(Target::Node(node)),
                None => self.choose_member(group_at, key, &tried),
            };
            if target.is_some() || bound {
                return target.map(|target| (target, goes_on(candidates)));
            }
            sites.swap_remove(place);
        }
    }

    /// A callee of this node.
    #[inline]
    fn choose_member(&mut self, group: u32, key: Key, tried: &[u64]) -> Option<Target> {
        let members = &mut self.groups.get_mut(group as usize)?.members;
        let picked = members.pick(key, tried, &mut self.rng)?;
        members.take(picked);
        Some(Target::Member(picked))
    }

    fn site(&self, sharer: &Sharer) -> Site {
        let life = self.nodes.get(sharer.node).map_or(0, |node| node.epoch.0);
        Site { node: Some(sharer.node), life, share: sharer.share }
    }

    fn pass_to_member(
        &mut self,
        (group, picked): (u32, Picked),
        registration: u64,
        uri: &str,
        calling: &Calling<'_>,
    ) -> Option<Route> {
        let callee = picked.owner;
        if callee.shard == self.me {
            let index = self.registered(callee, registration, picked.procedure);
            if let Some(index) = index.filter(|index| *index != picked.procedure) {
                self.groups[group as usize].members.learn(picked, index);
            }
            return self.invoke_registered(index, uri, calling);
        }
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
        Some(Route::Shard(callee.shard))
    }

    /// A call that its home shard chose this callee for.
    pub(super) fn invoke_member(
        &mut self,
        callee: Owner,
        registration: u64,
        uri: &str,
        calling: &Calling<'_>,
    ) -> Option<Route> {
        let index = self.registered(callee, registration, u32::MAX);
        self.invoke_registered(index, uri, calling)
    }

    /// Where a callee of this shard has a shared registration; `guess`: where it may be.
    #[inline]
    fn registered(&mut self, callee: Owner, registration: u64, guess: u32) -> Option<u32> {
        self.session_of(callee)?;
        let held = self.procedures.get(guess as usize);
        let index = match held.filter(|held| held.id == registration && held.callee == callee.slot) {
            Some(_) => Some(guess),
            None => self.session_of(callee)?.registrations.get(&registration).copied(),
        };
        index.filter(|index| self.procedures[*index as usize].is_shared())
    }

    fn invoke_registered(&mut self, index: Option<u32>, uri: &str, calling: &Calling<'_>) -> Option<Route> {
        if index.is_none() {
            // It never got the call, so another one may.
            self.answer_error(calling.caller, wamp::NO_AVAILABLE_CALLEE, "the callee has left");
        }
        self.invoke(index?, uri, calling)
    }

    /// Who had the call could not take it.
    fn next_callee(&mut self, at: u32, serial: u64) {
        let Some(call) = self.shared.get(at, serial) else { return };
        call.tried.push(call.with.number());
        let (group, with) = (call.group, std::mem::replace(&mut call.with, Target::Nobody));
        self.release_member(group, with);
    }

    /// A callee of a group has answered a call, or need not.
    fn release_member(&mut self, group: u32, with: Target) {
        if let Target::Member(Picked { number, place, .. }) = with
            && let Some(group) = self.groups.get_mut(group as usize)
        {
            group.members.release(number, place);
        }
    }

    fn no_callee_left(&mut self, at: u32, serial: u64) {
        if self.shared.get(at, serial).is_none() {
            return;
        }
        let Some(call) = self.end_shared(at) else { return };
        let (uri, text) = if !call.is_refused {
            self.metrics.count(Counter::LimitReached);
            (wamp::UNAVAILABLE, "every callee has as many calls as it takes")
        } else {
            (wamp::NO_AVAILABLE_CALLEE, "no callee could take the call")
        };
        self.answer_error(call.caller, uri, text);
    }

    /// The entry of a call goes: it is answered or given up.
    fn end_shared(&mut self, at: u32) -> Option<SharedCall> {
        self.shared.drop_kept(at);
        let call = self.shared.calls.try_remove(at as usize)?;
        self.release_member(call.group, call.with);
        if call.caller.owner.shard != self.me {
            self.foreign.remove(&call.caller);
        }
        Some(call)
    }

    /// A callee has answered a call that was passed to it.
    pub(super) fn shared_answered(&mut self, proxy: Caller, answering: &Answering<'_>) {
        let (at, serial) = (proxy.request as u32, proxy.owner.session);
        let Some(call) = self.shared.get(at, serial) else { return };
        let caller = call.caller;
        match answering.kind {
            Answer::Progress => {
                self.shared.drop_kept(at);
                self.answer(caller, answering);
            }
            Answer::Error(wamp::NO_AVAILABLE_CALLEE) if call.is_passing => call.is_refused = true,
            Answer::Error(uri) if call.kept.is_some() && call.with.may_go_on(uri) => {
                call.is_refused |= uri == wamp::NO_AVAILABLE_CALLEE;
                let Some(kept) = call.kept.take() else { return };
                self.metrics.count(Counter::CallsRerouted);
                self.next_callee(at, serial);
                let (uri, calling) = kept.calling(caller);
                self.pass_shared(at, serial, uri, &calling);
                self.shared.keeper.give_back(kept);
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
        self.shared.drop_kept(at);
        let owner = Owner { shard: me, slot: SHARED_SLOT, session: serial };
        self.pass_more(route, &Calling { caller: Caller { owner, request: at.into() }, ..*calling });
    }

    /// A call is given up.
    pub(super) fn cancel_shared(&mut self, at: u32, caller: Caller, mode: CancelMode, timeout: bool) {
        let me = self.me;
        let Some(call) = self.shared.of_caller(at, caller) else { return };
        let (route, serial) = (call.route, call.serial);
        if mode == CancelMode::Kill {
            self.shared.drop_kept(at);
        } else {
            self.end_shared(at);
        }
        let owner = Owner { shard: me, slot: SHARED_SLOT, session: serial };
        self.cancel_route(route, Caller { owner, request: at.into() }, mode, timeout);
    }
}
