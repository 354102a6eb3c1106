//! The slot of a session that is not, or no longer, on the slot's own connection.

use super::super::conn::{Conn, Phase};
use super::super::flow::{Queued, Queues};
use super::super::outbound::Outbound;
use super::super::timers::{TICK, Tick, Timers};
use super::super::{ConnId, Output, SendBuf, Shard};
use super::ask::Ask;
use super::{Away, Carrier, EXPIRE_SLICE, FRAMES_WINDOW, LAST_TIME, ToPort, ToSeat};
use common::features::Feature;
use common::metrics::Counter;
use common::resume::ResumeToken;
use common::transport::{FrameKind, Framing, HEADER_BYTES_MAX, write_header, write_message};
use std::time::Duration;

/// How often a carried session is looked at: its connection is watched where its port is.
const CARRIED_LOOK: Duration = Duration::from_secs(3_600);
/// With what a connection is closed whose session another one carries now.
const TAKEN_OVER_CODE: u16 = 1_000;

/// What detached sessions may keep, and do.
pub(in crate::shard) struct Keeping<'a> {
    pub kept_bytes: &'a mut usize,
    pub kept_bytes_max: usize,
    pub buffer_max: usize,
}

impl Keeping<'_> {
    /// Counts what a detached session has queued now.
    fn recount(&mut self, conn: &mut Conn) {
        let bytes = conn.out.bytes();
        if let Some(away) = &mut conn.away {
            *self.kept_bytes = *self.kept_bytes + bytes - std::mem::replace(&mut away.counted, bytes);
        }
    }

    /// Bytes that one may keep which is not counted yet.
    fn first_room(&self) -> usize {
        self.buffer_max.min(self.kept_bytes_max.saturating_sub(*self.kept_bytes))
    }

    /// Bytes that more may be queued to it.
    fn room(&self, conn: &Conn) -> usize {
        let own = self.buffer_max.saturating_sub(conn.out.bytes());
        own.min(self.kept_bytes_max.saturating_sub(*self.kept_bytes))
    }
}

impl Queues<'_> {
    /// Keeps an event for a session that waits for its client. Without room the oldest ones are dropped, else this one.
    pub fn keep(&mut self, conn: &mut Conn, message: &[u8]) -> Queued {
        if message.len() > conn.peer_message_max as usize {
            return Queued::TooLarge;
        }
        let bytes = message.len() + HEADER_BYTES_MAX;
        self.keeping.recount(conn);
        if self.keeping.room(conn) < bytes {
            // A quarter at once, so that not every event has the queue walked.
            let bytes_max = self.keeping.buffer_max / 4 * 3;
            self.drop_kept(conn, bytes_max.saturating_sub(bytes));
        }
        if self.keeping.room(conn) < bytes {
            self.metrics.count(Counter::DroppedDetached);
            conn.dropped = conn.dropped.saturating_add(1);
            return Queued::Full;
        }
        let (framing, serializer) = (conn.framing, conn.serializer);
        *self.queued_bytes +=
            conn.out.append(self.pool, |out| write_message(framing, serializer, message, out));
        self.keeping.recount(conn);
        self.metrics.count(Counter::MessagesSent);
        Queued::Yes
    }

    /// Drops the oldest events of a session until so many bytes are left.
    fn drop_kept(&mut self, conn: &mut Conn, bytes_max: usize) {
        let before = conn.out.bytes();
        let dropped = conn.out.drop_oldest_events(conn.framing, conn.serializer, bytes_max);
        *self.queued_bytes -= before - conn.out.bytes();
        self.metrics.add(Counter::DroppedDetached, dropped);
        conn.dropped = conn.dropped.saturating_add(dropped as u32);
        self.keeping.recount(conn);
    }
}

impl Shard {
    /// The connection in a slot is broken. A session that may wait for its client does, any other ends with it.
    pub(in crate::shard) fn lose(&mut self, slot: u32) {
        if self.at(slot).away.is_none() && !self.detach(slot, Outbound::default()) {
            return self.forget(slot);
        }
        self.park(slot);
    }

    /// The session in a slot has lost the connection it had, its own or one that carried it, and waits for its client. `last` is
    /// said on its own connection before that is closed. False: it may not wait.
    pub(in crate::shard) fn detach(&mut self, slot: u32, last: Outbound) -> bool {
        if !self.may_wait(slot) {
            return false;
        }
        self.publish_detached(slot);
        if self.at(slot).session.is_none() {
            return false;
        }
        let (conns, mut queues) = self.queues();
        if let Some(Some(conn)) = conns.get_mut(slot as usize) {
            let bytes_max = queues.keeping.first_room();
            if conn.out.bytes() > bytes_max {
                queues.drop_kept(conn, bytes_max);
            }
        }
        if self.at(slot).away.is_none() {
            self.leave_own(slot, last);
        }
        self.resumption.detached += 1;
        self.metrics.count(Counter::SessionsDetached);
        let window = self.config.resume.window;
        let until = self.tick + Timers::<ConnId>::ticks(window);
        let conn = self.at(slot);
        conn.holding = true;
        let mut is_parked = true;
        if let Some(away) = &mut conn.away {
            (away.carrier, away.in_flight, away.owed, away.until) = (None, false, 0, until);
            is_parked = away.parked;
        }
        self.session(slot).set_waiting(true);
        let (conns, mut queues) = self.queues();
        if let Some(Some(conn)) = conns.get_mut(slot as usize) {
            queues.keeping.recount(conn);
        }
        self.set_deadline(slot, if is_parked { window } else { LAST_TIME });
        true
    }

    fn may_wait(&mut self, slot: u32) -> bool {
        let is_full = self.resumption.detached >= self.config.resume.sessions_max;
        let draining = self.draining;
        let conn = self.at(slot);
        let can = conn.phase == Phase::Open
            && conn.session.as_ref().is_some_and(|session| session.token.is_some())
            && !conn.is_detached();
        if !can {
            return false;
        }
        self.renew_rules(slot);
        let is_off = self.session(slot).rules.off.has(Feature::SessionResumption);
        if is_full {
            self.metrics.count(Counter::LimitReached);
        }
        !is_off && !is_full && !draining
    }

    /// Takes the session in a slot off the slot's own connection, which is closed once `last` has gone out.
    fn leave_own(&mut self, slot: u32, last: Outbound) {
        let conn = self.conns[slot as usize].as_mut().expect("the slot of a connection in hand is taken");
        let id = ConnId { slot, generation: conn.generation };
        let (sending, framing) = (conn.sending, conn.framing);
        let before = conn.out.bytes() + std::mem::take(&mut conn.sending_bytes) as usize;
        conn.out.reframe(&mut self.pool, framing, conn.serializer);
        self.queued_bytes = self.queued_bytes + conn.out.bytes() + last.bytes() - before;
        self.partial_bytes -= std::mem::take(&mut conn.partial_bytes) as usize;
        self.context_bytes -= conn.context_bytes();
        self.by_listener[usize::from(conn.listener)] -= 1;
        self.resumption.seated += 1;
        (conn.packing, conn.framer) = (None, None);
        // To the driver nothing is sent on this slot any more: `carry_on` is called instead.
        (conn.framing, conn.sending) = (Framing::RawSocket, true);
        let says = !last.is_empty();
        conn.away = Some(Box::new(Away {
            carrier: None,
            last,
            sending: sending || says,
            parked: false,
            in_flight: false,
            owed: 0,
            counted: 0,
            until: self.tick,
            framing,
            close_code: TAKEN_OVER_CODE,
        }));
        if std::mem::take(&mut conn.paused) {
            self.paused.retain(|other| *other != id);
        }
        match (sending, says) {
            (true, _) => {}
            (false, true) => self.outputs.push_back(Output::Send(id)),
            (false, false) => self.park(slot),
        }
    }

    /// Has the driver close the slot's own connection and keep the slot.
    fn park(&mut self, slot: u32) {
        let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return };
        let id = ConnId { slot, generation: conn.generation };
        let Some(away) = conn.away.as_mut().filter(|away| !away.parked) else { return };
        (away.parked, away.sending) = (true, false);
        self.queued_bytes -=
            away.last.clear(&mut self.pool) + std::mem::take(&mut conn.sending_bytes) as usize;
        self.outputs.retain(|output| *output != Output::Send(id));
        self.outputs.push_back(Output::Park(id));
    }

    /// As [`Shard::take_send`], of a connection whose session has left it.
    #[cold]
    pub(in crate::shard) fn take_last(&mut self, conn: ConnId) -> SendBuf {
        let Some(Some(state)) = self.conns.get_mut(conn.slot as usize) else { return SendBuf::default() };
        let Some(away) = &mut state.away else { return SendBuf::default() };
        state.sending_bytes = away.last.bytes() as u32;
        self.metrics.add(Counter::BytesSent, u64::from(state.sending_bytes));
        away.last.take(&mut self.pool)
    }

    /// As [`Shard::sent`], of a connection whose session has left it.
    #[cold]
    pub(in crate::shard) fn last_sent(&mut self, conn: ConnId, ok: bool) {
        let Some(Some(state)) = self.conns.get_mut(conn.slot as usize) else { return };
        self.queued_bytes -= std::mem::take(&mut state.sending_bytes) as usize;
        let says = state.away.as_ref().is_some_and(|away| !away.last.is_empty());
        if ok && says {
            self.outputs.push_back(Output::Send(conn));
        } else {
            self.park(conn.slot);
        }
    }

    /// Something from the connection that carries a session, or asks for one.
    pub(in crate::shard) fn seat_told(&mut self, carrier: Carrier, op: ToSeat, bytes: &[u8]) {
        if op == ToSeat::Ask {
            let slot = Ask::unpack(bytes).and_then(|ask| Some((self.seat_of(&ask)?, ask)));
            return match slot {
                Some((slot, ask)) => self.take_seat(slot, carrier, &ask),
                None => self.tell_port(carrier, ToPort::Refused, &[]),
            };
        }
        let Some(slot) = self.resumption.seats.get(&carrier).copied() else { return };
        match op {
            ToSeat::Ask => {}
            ToSeat::Message => self.seat_message(slot, carrier, bytes),
            ToSeat::Taken => {
                if let Some(away) = &mut self.at(slot).away {
                    away.in_flight = false;
                }
                self.mark_dirty(slot);
            }
            ToSeat::Gone => {
                self.resumption.seats.remove(&carrier);
                if !self.detach(slot, Outbound::default()) {
                    if let Some(away) = &mut self.at(slot).away {
                        away.carrier = None;
                    }
                    self.forget(slot);
                }
            }
            ToSeat::Broken => {
                let Some((code, text)) = bytes.split_first_chunk::<2>() else { return };
                if self.at(slot).phase == Phase::Open {
                    self.violation(slot, &String::from_utf8_lossy(text));
                }
                if let Some(away) = &mut self.at(slot).away {
                    away.close_code = u16::from_le_bytes(*code);
                }
            }
        }
    }

    /// The slot of the session a client wants, if it may have it.
    fn seat_of(&self, ask: &Ask<'_>) -> Option<u32> {
        let slot = self.ids.slot_of(ask.session)?;
        let conn = self.conns.get(slot as usize)?.as_ref().filter(|conn| conn.phase == Phase::Open)?;
        let session = conn.session.as_ref()?;
        let is_on = !session.rules.off.has(Feature::SessionResumption);
        let is_right = is_on
            && session.token.is_some_and(|token| token.is(&ask.token))
            && self.realms[session.realm as usize].id == ask.realm
            && conn.serializer == ask.serializer
            && session.identity.with_call(session.id) == ask.who;
        (is_right && !self.draining).then_some(slot)
    }

    /// A client is back: from now on this connection carries its session, and no other does.
    fn take_seat(&mut self, slot: u32, carrier: Carrier, ask: &Ask<'_>) {
        self.waits_no_more(slot);
        if self.at(slot).away.is_none() {
            // Its connection has broken without a word, or its client has given it up.
            self.leave_own(slot, Outbound::default());
            self.park(slot);
        }
        let token = self.new_token();
        let conn = self.at(slot);
        (conn.peer_message_max, conn.origin) = (ask.peer_message_max, ask.origin);
        let mut before = None;
        if let Some(away) = &mut conn.away {
            before = away.carrier.replace(carrier);
            (away.in_flight, away.owed, away.framing) = (false, 0, ask.framing);
        }
        let session = self.session(slot);
        session.token = Some(token);
        session.set_waiting(false);
        session.gap = true;
        let holds = session.held_events.holds_any();
        self.at(slot).holding = holds;
        self.resumption.seats.insert(carrier, slot);
        if let Some(before) = before {
            self.resumption.seats.remove(&before);
            self.tell_port(before, ToPort::End, &TAKEN_OVER_CODE.to_le_bytes());
        }
        self.metrics.count(Counter::SessionsResumed);
        let waits = std::mem::take(&mut self.at(slot).out);
        self.queued_bytes -= waits.bytes();
        self.push_welcome(slot, Some(true));
        self.queued_bytes += waits.bytes();
        self.at(slot).out.append_all(waits);
        self.mark_dirty(slot);
        self.set_deadline(slot, CARRIED_LOOK);
        // What is queued follows.
        self.tell_port(carrier, ToPort::Accepted, &[]);
    }

    /// A token that nobody has had.
    pub(in crate::shard) fn new_token(&mut self) -> ResumeToken {
        ResumeToken::new(&self.config.resume.entropy.draw(), self.me, self.config.epoch)
    }

    fn seat_message(&mut self, slot: u32, carrier: Carrier, bytes: &[u8]) {
        self.message(slot, bytes);
        let is_short = self.is_pressed();
        let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return };
        let id = ConnId { slot, generation: conn.generation };
        let Some(away) = conn.away.as_mut().filter(|away| away.carrier == Some(carrier)) else { return };
        if !is_short {
            return self.tell_port(carrier, ToPort::Handled, &(bytes.len() as u32).to_le_bytes());
        }
        if away.owed == 0 {
            self.resumption.owing.push(id);
        }
        away.owed += bytes.len();
    }

    /// Acknowledges what was handled while there was no room for more.
    pub(in crate::shard) fn pay_ports(&mut self) {
        for id in std::mem::take(&mut self.resumption.owing) {
            let Some(away) = self.conn_mut(id).and_then(|conn| conn.away.as_mut()) else { continue };
            let owed = std::mem::take(&mut away.owed);
            if let Some(carrier) = away.carrier {
                self.tell_port(carrier, ToPort::Handled, &(owed as u32).to_le_bytes());
            }
        }
    }

    pub(in crate::shard) fn owes_ports(&self) -> bool {
        !self.resumption.owing.is_empty()
    }

    /// What is queued to a session that is not on its own connection goes to the one that carries it, up to a window.
    #[cold]
    pub(in crate::shard) fn carry_on(&mut self, slot: u32) {
        let conn = self.conns[slot as usize].as_mut().expect("the slot of a connection in hand is taken");
        let (phase, framing) = (conn.phase, conn.framing);
        let Some(away) = &mut conn.away else { return };
        let Some(carrier) = away.carrier else {
            if phase == Phase::Flushing {
                self.forget(slot);
            }
            return;
        };
        if away.in_flight {
            return;
        }
        if conn.out.is_empty() {
            if phase == Phase::Flushing {
                self.forget(slot);
            }
            return;
        }
        away.in_flight = true;
        let frames = conn.out.take_front(&mut self.pool, framing, FRAMES_WINDOW);
        self.queued_bytes -= frames.len();
        self.tell_port(carrier, ToPort::Frames, &frames);
    }

    /// The session in a slot that is not on its own connection has ended.
    pub(in crate::shard) fn waits_no_more(&mut self, slot: u32) {
        let conn = self.at(slot);
        if !conn.is_detached() {
            return;
        }
        if let Some(away) = &mut conn.away {
            let counted = std::mem::take(&mut away.counted);
            self.resumption.kept_bytes -= counted;
            self.resumption.detached -= 1;
        }
    }

    /// The slot is about to be given up: the connection that carries its session is told.
    pub(in crate::shard) fn leave_seat(&mut self, slot: u32) {
        let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return };
        let Some(away) = &mut conn.away else { return };
        let (carrier, code) = (away.carrier.take(), away.close_code);
        self.queued_bytes -= away.last.clear(&mut self.pool);
        if let Some(carrier) = carrier {
            self.resumption.seats.remove(&carrier);
            self.tell_port(carrier, ToPort::End, &code.to_le_bytes());
        }
    }

    /// With what the connection that carries the session in a slot is to be closed.
    pub(in crate::shard) fn close_seat_with(&mut self, slot: u32, close_code: u16) {
        if let Some(away) = &mut self.at(slot).away {
            away.close_code = close_code;
        }
    }

    /// The peer closes its end of a WebSocket connection without GOODBYE.
    pub(in crate::shard) fn close_came(&mut self, slot: u32, code: u16) {
        let conn = self.at(slot);
        let (framing, serializer) = (conn.framing, conn.serializer);
        if conn.session.as_ref().is_some_and(|session| session.token.is_some()) {
            let mut last = Outbound::default();
            last.append(&mut self.pool, |out| {
                write_header(framing, serializer, FrameKind::Close, 2, out);
                out.extend_from_slice(&code.to_be_bytes());
            });
            if self.detach(slot, last) {
                return;
            }
        }
        self.hang_up(slot, code);
    }

    /// The entry in the timer wheel of a session that is not on its own connection came up.
    pub(in crate::shard) fn look_at_seat(&mut self, id: ConnId) {
        self.park(id.slot);
        let tick = self.tick;
        let Some(away) = &self.at(id.slot).away else { return };
        if away.carrier.is_some() {
            return self.set_deadline_again(id, CARRIED_LOOK);
        }
        if away.until > tick {
            let left = TICK * (away.until - tick);
            return self.set_deadline_again(id, left);
        }
        self.at(id.slot).scheduled = Tick::MAX;
        self.resumption.expired.push_back(id);
    }

    /// As [`Shard::set_deadline`], of a connection whose entry has just come up.
    fn set_deadline_again(&mut self, id: ConnId, after: Duration) {
        let deadline = self.tick + Timers::<ConnId>::ticks(after);
        self.at(id.slot).deadline = deadline;
        self.schedule(id.slot, deadline);
    }

    /// Ends sessions whose window is over, some in each turn.
    pub(in crate::shard) fn go_on_expiring(&mut self) {
        for _ in 0..EXPIRE_SLICE {
            let Some(id) = self.resumption.expired.pop_front() else { return };
            let tick = self.tick;
            let Some(conn) = self.conn_mut(id) else { continue };
            if conn.is_detached() && conn.away.as_ref().is_some_and(|away| away.until <= tick) {
                self.metrics.count(Counter::SessionsExpired);
                self.forget(id.slot);
            }
        }
    }
}
