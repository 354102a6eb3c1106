//! Calls to callees on other nodes, and from their callers.

use super::super::Shard;
use super::super::dealer::Answer;
use super::frames::BadFrame;
use super::lanes::{Outgoing, Passed};
use super::{CALLS_MAX, SCRATCH_KEEP_BYTES_MAX};
use crate::mesh::{Caller, Owner};
use common::limits::URI_BYTES_MAX;
use common::metrics::Counter;
use common::relay::{Frame, Kind, put_call, put_error, put_result};
use common::uri::wamp;
use common::wire::{Payload, Serializer};

impl Shard {
    /// Passes a call of a session of this shard to a node that has its callee.
    pub(in crate::shard) fn relay_call(
        &mut self,
        node: u16,
        realm: u32,
        procedure: &str,
        caller: Caller,
        from: Serializer,
        payload: Payload<'_>,
    ) {
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
        let mut scratch = std::mem::take(&mut self.relay.scratch);
        scratch.clear();
        put_call(&mut scratch, realm, id, procedure, from, payload);
        let passed = self.lane_send(at, Outgoing::Copied(&scratch), 0);
        scratch.shrink_to(SCRATCH_KEEP_BYTES_MAX);
        self.relay.scratch = scratch;
        if passed != Passed::Yes {
            return self.call_refused(caller, passed);
        }
        self.metrics.count(Counter::RelayHops);
        if let Some(Some(lane)) = self.relay.lanes.get_mut(at) {
            lane.calls.insert(id, caller);
        }
    }

    #[cold]
    fn call_refused(&mut self, caller: Caller, passed: Passed) {
        self.metrics.count(Counter::RelayCallsRefused);
        let text = match passed {
            Passed::Full => "the queue to the callee's node is full",
            _ => "the callee's node cannot be reached",
        };
        self.answer_error(caller, wamp::UNAVAILABLE, text);
    }

    /// An answer came from another node.
    pub(super) fn lane_answered(&mut self, at: usize, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let lane = self.relay.lanes[at].as_mut();
        let caller = lane.and_then(|lane| lane.calls.remove(&frame.id)).ok_or(BadFrame::Answer(frame.id))?;
        let answer = if frame.kind == Kind::Result { Answer::Result } else { Answer::Error(frame.uri) };
        self.answer_here(caller, answer, frame.serializer, frame.payload);
        Ok(())
    }

    /// A call from another node, for a callee of this one.
    pub(super) fn guest_calls(&mut self, slot: u32, link: u64, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let Some(guest) = self.relay.links.get_mut(&slot) else { return Ok(()) };
        let full = guest.calls.len() >= CALLS_MAX;
        if guest.calls.insert(frame.id, ()).is_some() {
            return Err(BadFrame::Call(frame.id));
        }
        let caller = Caller { owner: Owner { shard: self.me, slot, session: link }, request: frame.id };
        if full {
            self.metrics.count(Counter::LimitReached);
            self.answer_error(caller, wamp::UNAVAILABLE, "too many calls from one node wait for an answer");
            return Ok(());
        }
        match self.realm_index.get(&frame.realm).copied() {
            Some(realm) => self.call_from_node(realm, frame.uri, caller, frame.serializer, frame.payload),
            None => self.answer_error(caller, wamp::NO_SUCH_PROCEDURE, "the callee has left"),
        }
        Ok(())
    }

    /// Brings an answer to the guest that called; to nobody when that is gone.
    pub(in crate::shard) fn relay_answer(
        &mut self,
        caller: Caller,
        answer: Answer<'_>,
        from: Serializer,
        payload: Payload<'_>,
    ) {
        let slot = caller.owner.slot;
        let Some(guest) = self.relay.links.get_mut(&slot).filter(|link| link.id == caller.owner.session)
        else {
            return;
        };
        if guest.calls.remove(&caller.request).is_none() {
            return;
        }
        match answer {
            Answer::Result => self.link_reply(slot, |out| put_result(out, caller.request, from, payload)),
            Answer::Error(uri) => {
                // A callee may say anything; a frame may not.
                let fits = !uri.is_empty() && uri.len() <= URI_BYTES_MAX;
                let uri = if fits { uri } else { wamp::INVALID_URI };
                self.link_reply(slot, |out| put_error(out, caller.request, uri, from, payload));
            }
        }
    }
}
