//! Calls to callees on other nodes, and from their callers.

use super::super::answers::{Answer, Answering};
use super::super::conn::Route;
use super::super::dealer::{Calling, Came};
use super::super::identity::DISCLOSED_BYTES_MAX;
use super::super::options::PASSTHRU_BYTES_MAX;
use super::super::{CancelMode, Shard};
use super::frames::{BadFrame, Guess};
use super::lanes::Passed;
use super::open::Before;
use crate::mesh::{Caller, Owner, Terms};
use common::ids::RealmId;
use common::limits::URI_BYTES_MAX;
use common::metrics::Counter;
use common::relay::{BARE_BYTES, Content, EXTRA_BYTES_MAX, Frame, Kind, put_with_extra};
use common::uri::wamp;
use std::vec::IntoIter;

/// The terms of a call as they are packed: `session u64 │ timeout u32 │ flags u8 │ length u16 of who calls`. The routing key
/// follows if there is one, then what may be told of who calls, then the attributes of payload passthru mode.
const TERMS_BYTES: usize = 15;
const KEY_BYTES: usize = 8;
const _: () = assert!(TERMS_BYTES + KEY_BYTES + DISCLOSED_BYTES_MAX + PASSTHRU_BYTES_MAX <= EXTRA_BYTES_MAX);

fn pack_terms(calling: &Calling<'_>) -> [u8; TERMS_BYTES] {
    let Calling { terms, who, .. } = *calling;
    let mut packed = [0; TERMS_BYTES];
    packed[..8].copy_from_slice(&terms.session.to_le_bytes());
    packed[8..12].copy_from_slice(&terms.timeout_ms.to_le_bytes());
    packed[12] = terms.flags;
    packed[13..].copy_from_slice(&(who.len() as u16).to_le_bytes());
    packed
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
        let Some(id) = lane.calls.insert(caller) else {
            self.metrics.count(Counter::LimitReached);
            return self.call_refused(caller, Passed::Full);
        };
        let passed = self.lane_send_call(at, Kind::Call, (realm, id), procedure, calling);
        if passed != Passed::Yes {
            if let Some(Some(lane)) = self.relay.lanes.get_mut(at) {
                lane.calls.remove(id);
            }
            return self.call_refused(caller, passed);
        }
        self.metrics.count(Counter::RelayHops);
        Some(Route::Lane { at, id })
    }

    #[inline]
    fn lane_send_call(
        &mut self,
        at: usize,
        kind: Kind,
        (realm, id): (RealmId, u64),
        uri: &str,
        calling: &Calling<'_>,
    ) -> Passed {
        let Calling { key, who, ppt, from: serializer, payload, .. } = *calling;
        let (terms, key) = (pack_terms(calling), key.to_le_bytes());
        let key = if calling.terms.is(Terms::KEYED) { &key[..] } else { &[] };
        let extra = &[&terms, key, who, ppt];
        let frame = Content { kind, realm, id, uri, extra, progress: false, serializer, payload };
        self.lane_send(at, frame.bytes(), 0, |out| frame.put(out))
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
        lane.is_some_and(|lane| lane.calls.get(id) == Some(caller))
    }

    /// Tells the other node that a call is given up.
    pub(in crate::shard) fn relay_cancel(&mut self, at: usize, id: u64, mode: CancelMode, timeout: bool) {
        let Some(Some(lane)) = self.relay.lanes.get_mut(at) else { return };
        if mode != CancelMode::Kill && lane.calls.remove(id).is_none() {
            return;
        }
        let extra = [mode as u8, timeout.into()];
        // Without it the callee works in vain; its answer will find nobody.
        let _ = self.lane_send(at, BARE_BYTES + extra.len(), 0, |out| {
            put_with_extra(out, Kind::Cancel, id, &extra);
        });
    }

    /// An answer came from another node. One for a call that was given up is late.
    pub(super) fn lane_answered(&mut self, at: usize, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let Some(lane) = self.relay.lanes[at].as_mut() else { return Ok(()) };
        let progress = frame.kind == Kind::Result && frame.progress;
        let caller = if progress { lane.calls.get(frame.id) } else { lane.calls.remove(frame.id) };
        let Some(caller) = caller else {
            return if lane.calls.knows(frame.id) { Ok(()) } else { Err(BadFrame::Answer(frame.id)) };
        };
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
    #[inline]
    pub(super) fn guest_calls(
        &mut self,
        slot: u32,
        link: u64,
        frame: &Frame<'_>,
        guess: &mut Guess,
    ) -> Result<(), BadFrame> {
        let (terms, key, who, ppt) = unpack(frame.extra).ok_or(BadFrame::Extra)?;
        let Some(guest) = self.relay.links.get_mut(slot) else { return Ok(()) };
        match guest.calls.insert(frame.id) {
            Before::Nothing => {}
            Before::Other(given_up, route) => {
                let caller = self.guest_caller(slot, link, given_up);
                self.cancel_route(route, caller, CancelMode::KillNoWait, false);
            }
            Before::Same => return Err(BadFrame::Call(frame.id)),
        }
        let caller = self.guest_caller(slot, link, frame.id);
        let Some(realm) = self.realm_near(frame.realm, guess) else {
            self.answer_error(caller, wamp::NO_SUCH_PROCEDURE, "the callee has left");
            return Ok(());
        };
        let calling =
            Calling { caller, terms, key, who, ppt, from: frame.serializer, payload: frame.payload };
        let callee = self.callee_near(realm, frame.uri, &mut guess.procedure);
        if let Some(route) = self.call_from_elsewhere(callee, realm, frame.uri, &calling, Came::Node) {
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
            && let Some(guest) = self.relay.links.get_mut(slot)
        {
            guest.calls.remove(frame.id);
        }
        self.cancel_route(route, caller, mode, timeout != 0);
        Ok(())
    }

    /// The link of a guest is gone: its calls are given up.
    pub(super) fn guest_gone(&mut self, slot: u32, link: u64, calls: IntoIter<Option<(u64, Route)>>) {
        let owner = Owner { shard: self.me, slot, session: link };
        self.abandon_guest(owner, calls);
    }

    /// The way a guest's call went.
    pub(in crate::shard) fn relay_route(&self, caller: Caller) -> Option<Route> {
        let link = self.relay.links.get(caller.owner.slot)?;
        (link.id == caller.owner.session).then(|| link.calls.get(caller.request)).flatten()
    }

    pub(in crate::shard) fn relay_set_route(&mut self, caller: Caller, route: Route) {
        let link = self.relay.links.get_mut(caller.owner.slot);
        if let Some(link) = link.filter(|link| link.id == caller.owner.session) {
            link.calls.set(caller.request, route);
        }
    }

    /// Brings an answer to the guest that called; to nobody when that is gone.
    pub(in crate::shard) fn relay_answer(&mut self, caller: Caller, answering: &Answering<'_>) {
        let slot = caller.owner.slot;
        let Some(guest) = self.relay.links.get_mut(slot).filter(|link| link.id == caller.owner.session)
        else {
            return;
        };
        let progress = answering.kind == Answer::Progress;
        let open = if progress {
            guest.calls.get(caller.request).is_some()
        } else {
            guest.calls.remove(caller.request)
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
            extra: &[answering.ppt],
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
            let mut extra = pack_terms(&calling).to_vec();
            if terms.is(Terms::KEYED) {
                extra.extend_from_slice(&key.to_le_bytes());
            }
            extra.extend_from_slice(b"whoppt");
            assert_eq!(unpack(&extra), Some((terms, key, &b"who"[..], &b"ppt"[..])));
            let whole = extra.len() - b"ppt".len();
            assert!((0..whole).all(|cut| unpack(&extra[..cut]).is_none()));
        }
    }
}
