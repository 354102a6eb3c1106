//! Sessions that have ended and are not yet out of all topics.
//!
//! A session may hold thousands of subscriptions, and each of them is taken out of the tables, said to the other shards and
//! claimed as gone. That is done in slices, one a turn. Until it is over the connection's slot stays taken and gets no events.

use super::Shard;
use super::conn::{Conn, Phase, Session};
use common::metrics::Counter;

/// Subscriptions given up in one turn.
const LEAVE_SLICE: usize = 128;
/// Subscriptions given up at once although other sessions wait for their turns.
const LEAVE_AT_ONCE: usize = 16;

impl Conn {
    /// The session in the tables of topics: the one that is there, or the one that leaves.
    pub fn holding(&mut self) -> Option<&mut Session> {
        self.session.as_deref_mut().or(self.leaving.as_deref_mut())
    }
}

impl Shard {
    /// The session of a slot has ended; it is in the tables still.
    pub(super) fn begin_leaving(&mut self, slot: u32, mut session: Box<Session>) {
        session.held = session.subscriptions.keys().copied().collect();
        let conn = self.at(slot);
        // Events find a reason to look whether there is a session.
        conn.dropped = u32::from(!session.held.is_empty());
        conn.leaving = Some(session);
    }

    /// Gives up the first subscriptions, and has the others wait for turns to come. When many sessions end in one turn, the
    /// large ones among them wait as a whole.
    pub(super) fn leave_topics(&mut self, slot: u32) {
        let mut budget = if self.leaving.is_empty() { LEAVE_SLICE } else { LEAVE_AT_ONCE };
        if !self.leave_some(slot, &mut budget) {
            self.leaving.push_back(slot);
        }
    }

    /// One turn's share of what waits.
    pub(super) fn go_on_leaving(&mut self) {
        let mut budget = LEAVE_SLICE;
        while budget > 0
            && let Some(slot) = self.leaving.pop_front()
        {
            if self.leave_some(slot, &mut budget) {
                self.left_all(slot);
            } else {
                self.leaving.push_back(slot);
            }
        }
    }

    /// All of it: the connection is to carry another session.
    pub(super) fn finish_leaving(&mut self, slot: u32) {
        if self.at(slot).leaving.is_some() {
            let mut all = usize::MAX;
            self.leave_some(slot, &mut all);
            self.leaving.retain(|other| *other != slot);
        }
    }

    /// Gives up at most `budget` subscriptions, and leaves what is over of it. True: none is left.
    fn leave_some(&mut self, slot: u32, budget: &mut usize) -> bool {
        let Some(realm) = self.at(slot).leaving.as_ref().map(|session| session.realm) else { return true };
        // Asked once: with each topic that goes, what the cache knows of the realm is out of date.
        let heard = self.hears_unsubscribing(realm);
        while *budget > 0 {
            *budget -= 1;
            let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return true };
            let Some(session) = &mut conn.leaving else { return true };
            let Some(subscription) = session.held.pop() else { break };
            if let Some(held) = session.subscriptions.remove(&subscription) {
                if heard {
                    self.remove_subscriber(held.topic, held.place);
                } else {
                    self.take_out_subscriber(held.topic, held.place);
                }
            }
        }
        let conn = self.at(slot);
        let done = conn.leaving.as_ref().is_none_or(|session| session.held.is_empty());
        if done {
            conn.leaving = None;
            conn.dropped = 0;
        }
        done
    }

    fn left_all(&mut self, slot: u32) {
        if let Some(Some(conn)) = self.conns.get(slot as usize)
            && conn.gone
        {
            self.forget(slot);
        }
    }

    /// The connection has ended; its slot is free once its session has left all topics.
    pub(super) fn forget_later(&mut self, slot: u32) {
        let conn = self.conns[slot as usize].as_mut().expect("the slot of a connection in hand is taken");
        conn.gone = true;
        self.forget_transport_later(slot);
        let conn = self.conns[slot as usize].as_mut().expect("the slot of a connection in hand is taken");
        self.queued_bytes -= conn.out.clear(&mut self.pool);
        if conn.phase.is_login() {
            self.logins -= 1;
            self.metrics.count(Counter::HandshakesFailed);
        }
        self.at(slot).phase = Phase::Lingering;
    }
}
