//! Calls to callees on other nodes, and from their callers.

use super::super::answers::{Answer, Answering};
use super::super::conn::Route;
use super::super::dealer::{Calling, Came};
use super::super::identity::DISCLOSED_BYTES_MAX;
use super::super::options::PASSTHRU_BYTES_MAX;
use super::super::{CancelMode, Shard};
use super::frames::BadFrame;
use super::lanes::{Outgoing, Passed};
use super::{CALLS_MAX, SCRATCH_KEEP_BYTES_MAX};
use crate::mesh::{Caller, Owner, Terms};
use common::ids::RealmId;
use common::limits::URI_BYTES_MAX;
use common::metrics::Counter;
use common::relay::{Content, EXTRA_BYTES_MAX, Frame, Kind, put_with_extra};
use common::uri::wamp;

/// The terms of a call as they are packed: `session u64 │ timeout u32 │ flags u8 │ length u16 of who calls`. The routing key
/// follows if there is one, then what may be told of who calls, then the attributes of payload passthru mode.
const TERMS_BYTES: usize = 15;
const KEY_BYTES: usize = 8;
const _: () = assert!(TERMS_BYTES + KEY_BYTES + DISCLOSED_BYTES_MAX + PASSTHRU_BYTES_MAX <= EXTRA_BYTES_MAX);

fn pack(calling: &Calling<'_>, out: &mut Vec<u8>) {
    let Calling { terms, key, who, ppt, .. } = *calling;
    out.clear();
    out.extend_from_slice(&terms.session.to_le_bytes());
    out.extend_from_slice(&terms.timeout_ms.to_le_bytes());
    out.push(terms.flags);
    out.extend_from_slice(&(who.len() as u16).to_le_bytes());
    if terms.is(Terms::KEYED) {
        out.extend_from_slice(&key.to_le_bytes());
    }
    out.extend_from_slice(who);
    out.extend_from_slice(ppt);
}

/// What a call asks for, its routing key, what may be told of who calls, and its attributes of payload passthru mode.
fn unpack(extra: &[u8]) -> Option<(Terms, u64, &[u8], &[u8])> {
    let (head, rest) = extra.split_first_chunk::<TERMS_BYTES>()?;
    let (session, head) = head.split_first_chunk::<8>()?;
    let (timeout, head) = head.split_first_chunk::<4>()?;
    let (flags, who) = head.split_first_chunk::<1>()?;
    let who = usize::from(u16::from_le_bytes(*who.first_chunk()?));
    let terms = Terms {
        session: u64::from_le_bytes(*session),
        timeout_ms: u32::from_le_bytes(*timeout),
        flags: flags[0],
    };
    let (key, rest) = if terms.is(Terms::KEYED) {
        let (key, rest) = rest.split_first_chunk::<KEY_BYTES>()?;
        (u64::from_le_bytes(*key), rest)
    } else {
        (0, rest)
    };
    let (who, ppt) = rest.split_at_checked(who)?;
    Some((terms, key, who, ppt))
}

impl Shard {
    /// Passes a call of a session of this shard to a node that has its callee. The way it went, unless it was answered.
    pub(in crate::shard) fn relay_call(
        &mut self,
        node: u16,
        realm: u32,
        procedure: &str,
        calling: &Calling<'_>,
    ) -> Option<Route> {
        let caller = calling.caller;
        let at = self.lane_of(node, caller.owner.slot);
        let realm = self.realms[realm as usize].id;
        let Some(Some(lane)) = self.relay.lanes.get_mut(at) else {
            return self.call_refused(caller, Passed::Down);
        };
        if lane.calls.len() >= CALLS_MAX {
            self.metrics.count(Counter::LimitReached);
            return self.call_refused(caller, Passed::Full);
        }
        lane.last_call += 1;
        let id = lane.last_call;
        let passed = self.lane_send_call(at, Kind::Call, (realm, id), procedure, calling);
        if passed != Passed::Yes {
            return self.call_refused(caller, passed);
        }
        self.metrics.count(Counter::RelayHops);
        if let Some(Some(lane)) = self.relay.lanes.get_mut(at) {
            lane.calls.insert(id, caller);
        }
        Some(Route::Lane { at, id })
    }

    fn lane_send_call(
        &mut self,
        at: usize,
        kind: Kind,
        (realm, id): (RealmId, u64),
        uri: &str,
        calling: &Calling<'_>,
    ) -> Passed {
        let mut scratch = std::mem::take(&mut self.relay.scratch);
        let mut extra = std::mem::take(&mut self.relay.extra);
        scratch.clear();
        pack(calling, &mut extra);
        let (serializer, payload) = (calling.from, calling.payload);
        Content { kind, realm, id, uri, extra: &extra, progress: false, serializer, payload }
            .put(&mut scratch);
        let passed = self.lane_send(at, Outgoing::Copied(&scratch), 0);
        scratch.shrink_to(SCRATCH_KEEP_BYTES_MAX);
        self.relay.scratch = scratch;
        self.relay.extra = extra;
        passed
    }

    #[cold]
    fn call_refused(&mut self, caller: Caller, passed: Passed) -> Option<Route> {
        self.metrics.count(Counter::RelayCallsRefused);
        let text = match passed {
            Passed::Full => "the queue to the callee's node is full",
            _ => "the callee's node cannot be reached",
        };
        self.answer_error(caller, wamp::UNAVAILABLE, text);
        None
    }

    /// A further part of a call that went by this lane. When it cannot leave, the call ends.
    pub(in crate::shard) fn relay_more(&mut self, at: usize, id: u64, calling: &Calling<'_>) {
        if !self.lane_has_call(at, id, calling.caller) {
            return;
        }
        let passed = self.lane_send_call(at, Kind::CallMore, (RealmId(0), id), "", calling);
        if passed != Passed::Yes {
            self.relay_cancel(at, id, CancelMode::KillNoWait, false);
            self.call_refused(calling.caller, passed);
        }
    }

    fn lane_has_call(&self, at: usize, id: u64, caller: Caller) -> bool {
        let lane = self.relay.lanes.get(at).and_then(Option::as_ref);
        lane.is_some_and(|lane| lane.calls.get(&id) == Some(&caller))
    }

    /// Tells the other node that a call is given up.
    pub(in crate::shard) fn relay_cancel(&mut self, at: usize, id: u64, mode: CancelMode, timeout: bool) {
        let Some(Some(lane)) = self.relay.lanes.get_mut(at) else { return };
        if mode != CancelMode::Kill && lane.calls.remove(&id).is_none() {
            return;
        }
        let mut frame = Vec::new();
        put_with_extra(&mut frame, Kind::Cancel, id, &[mode as u8, timeout.into()]);
        // Without it the callee works in vain; its answer will find nobody.
        let _ = self.lane_send(at, Outgoing::Copied(&frame), 0);
    }

    /// An answer came from another node. One for a call that was given up is late.
    pub(super) fn lane_answered(&mut self, at: usize, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let Some(lane) = self.relay.lanes[at].as_mut() else { return Ok(()) };
        if frame.id > lane.last_call {
            return Err(BadFrame::Answer(frame.id));
        }
        let progress = frame.kind == Kind::Result && frame.progress;
        let caller = if progress { lane.calls.get(&frame.id).copied() } else { lane.calls.remove(&frame.id) };
        let Some(caller) = caller else { return Ok(()) };
        let kind = match frame.kind {
            Kind::Result if progress => Answer::Progress,
            Kind::Result => Answer::Result,
            _ => Answer::Error(frame.uri),
        };
        let (ppt, from, payload) = (frame.extra, frame.serializer, frame.payload);
        self.answer_here(caller, &Answering { kind, ppt, from, payload });
        Ok(())
    }

    /// A call from another node, for a callee of this one.
    pub(super) fn guest_calls(&mut self, slot: u32, link: u64, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let (terms, key, who, ppt) = unpack(frame.extra).ok_or(BadFrame::Extra)?;
        let Some(guest) = self.relay.links.get_mut(&slot) else { return Ok(()) };
        let full = guest.calls.len() >= CALLS_MAX;
        if guest.calls.insert(frame.id, Route::Nowhere).is_some() {
            return Err(BadFrame::Call(frame.id));
        }
        let caller = self.guest_caller(slot, link, frame.id);
        if full {
            self.metrics.count(Counter::LimitReached);
            self.answer_error(caller, wamp::UNAVAILABLE, "too many calls from one node wait for an answer");
            return Ok(());
        }
        let Some(realm) = self.realm_index.get(&frame.realm).copied() else {
            self.answer_error(caller, wamp::NO_SUCH_PROCEDURE, "the callee has left");
            return Ok(());
        };
        let calling =
            Calling { caller, terms, key, who, ppt, from: frame.serializer, payload: frame.payload };
        if let Some(route) = self.call_from_elsewhere(realm, frame.uri, &calling, Came::Node) {
            self.relay_set_route(caller, route);
        }
        Ok(())
    }

    fn guest_caller(&self, slot: u32, link: u64, request: u64) -> Caller {
        Caller { owner: Owner { shard: self.me, slot, session: link }, request }
    }

    /// A further part of a call from another node.
    pub(super) fn guest_continues(
        &mut self,
        slot: u32,
        link: u64,
        frame: &Frame<'_>,
    ) -> Result<(), BadFrame> {
        let (terms, key, who, ppt) = unpack(frame.extra).ok_or(BadFrame::Extra)?;
        let caller = self.guest_caller(slot, link, frame.id);
        if let Some(route) = self.relay_route(caller) {
            let calling =
                Calling { caller, terms, key, who, ppt, from: frame.serializer, payload: frame.payload };
            self.pass_more(route, &calling);
        }
        Ok(())
    }

    /// Another node's caller gives a call up.
    pub(super) fn guest_cancels(&mut self, slot: u32, link: u64, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let &[mode, timeout] = frame.extra else { return Err(BadFrame::Extra) };
        let mode = CancelMode::from_number(mode).ok_or(BadFrame::Extra)?;
        let caller = self.guest_caller(slot, link, frame.id);
        let Some(route) = self.relay_route(caller) else { return Ok(()) };
        if mode != CancelMode::Kill
            && let Some(guest) = self.relay.links.get_mut(&slot)
        {
            guest.calls.remove(&frame.id);
        }
        self.cancel_route(route, caller, mode, timeout != 0);
        Ok(())
    }

    /// The link of a guest is gone: its calls are given up.
    pub(super) fn guest_gone(&mut self, slot: u32, link: u64, calls: impl Iterator<Item = (u64, Route)>) {
        for (request, route) in calls {
            let caller = self.guest_caller(slot, link, request);
            self.cancel_route(route, caller, CancelMode::KillNoWait, false);
        }
    }

    /// The way a guest's call went.
    pub(in crate::shard) fn relay_route(&self, caller: Caller) -> Option<Route> {
        let link = self.relay.links.get(&caller.owner.slot)?;
        (link.id == caller.owner.session).then(|| link.calls.get(&caller.request).copied()).flatten()
    }

    pub(in crate::shard) fn relay_set_route(&mut self, caller: Caller, route: Route) {
        let link = self.relay.links.get_mut(&caller.owner.slot);
        if let Some(link) = link.filter(|link| link.id == caller.owner.session)
            && let Some(way) = link.calls.get_mut(&caller.request)
        {
            *way = route;
        }
    }

    /// Brings an answer to the guest that called; to nobody when that is gone.
    pub(in crate::shard) fn relay_answer(&mut self, caller: Caller, answering: &Answering<'_>) {
        let slot = caller.owner.slot;
        let Some(guest) = self.relay.links.get_mut(&slot).filter(|link| link.id == caller.owner.session)
        else {
            return;
        };
        let progress = answering.kind == Answer::Progress;
        let open = if progress {
            guest.calls.contains_key(&caller.request)
        } else {
            guest.calls.remove(&caller.request).is_some()
        };
        if !open {
            return;
        }
        let (kind, uri) = match answering.kind {
            Answer::Progress | Answer::Result => (Kind::Result, ""),
            // A callee may say anything; a frame may not.
            Answer::Error(uri) if uri.is_empty() || uri.len() > URI_BYTES_MAX => {
                (Kind::Error, wamp::INVALID_URI)
            }
            Answer::Error(uri) => (Kind::Error, uri),
        };
        let content = Content {
            kind,
            realm: RealmId(0),
            id: caller.request,
            uri,
            extra: answering.ppt,
            progress,
            serializer: answering.from,
            payload: answering.payload,
        };
        self.link_reply(slot, |out| content.put(out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_read_back() {
        for flags in [Terms::PROGRESS, Terms::PROGRESS | Terms::KEYED] {
            let terms = Terms { session: 1 << 53, timeout_ms: 1_500, flags };
            let key = if terms.is(Terms::KEYED) { u64::MAX - 1 } else { 0 };
            let owner = Owner { shard: common::ids::ShardId(0), slot: 0, session: 1 };
            let calling = Calling {
                caller: Caller { owner, request: 1 },
                terms,
                key,
                who: b"who",
                ppt: b"ppt",
                from: common::wire::Serializer::Json,
                payload: common::wire::Payload::default(),
            };
            let mut extra = Vec::new();
            pack(&calling, &mut extra);
            assert_eq!(unpack(&extra), Some((terms, key, &b"who"[..], &b"ppt"[..])));
            let whole = extra.len() - b"ppt".len();
            assert!((0..whole).all(|cut| unpack(&extra[..cut]).is_none()));
        }
    }
}
