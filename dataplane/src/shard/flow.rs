//! Queues and their bounds: what happens when a receiver is slow, another shard is full or memory runs short; and how
//! a connection ends.

use super::conn::{Conn, Phase};
use super::outbound::Pool;
use super::resume::Keeping;
use super::timers::{Tick, Timers};
use super::{ConnId, Flow, Output, SPARE_BATCHES_MAX, Shard};
use crate::mesh::{Batch, Item};
use bytes::Bytes;
use common::config::{SlowPolicy, SlowReceiver};
use common::ids::{ShardId, ShardSet};
use common::metrics::{Counter, Metrics};
use common::transport::{
    FrameKind, HEADER_BYTES_MAX, HEADER_ROOM, finish_frame, write_header, write_message,
};
use common::uri::wamp;
use common::wire::{Serializer, encode};
use std::time::{Duration, Instant};

/// Bytes waiting for one other shard at which the connections that feed it are paused.
pub(super) const MESH_BACKLOG_MAX: usize = 1 << 20;
/// How long a closing connection may take to read what is queued, and then to close.
const FLUSH_TIME: Duration = Duration::from_secs(3);
const LINGER_TIME: Duration = Duration::from_secs(1);

/// How much a message matters when its receiver is slow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// May be dropped by the slow-receiver policy.
    Event,
    /// Fails its call when the queue is full.
    Invocation,
    /// Never dropped: the session is closed instead.
    Reply,
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Queued {
    Yes,
    /// Longer than the peer wants to receive.
    TooLarge,
    /// No room; for events they were dropped and counted.
    Full,
    /// No room, and the connection has to be closed.
    Doomed,
}

/// The parts of a shard that queuing changes, borrowed apart from its tables.
pub(super) struct Queues<'a> {
    pub pool: &'a mut Pool,
    pub metrics: &'a mut Metrics,
    pub dirty: &'a mut Vec<u32>,
    pub queued_bytes: &'a mut usize,
    pub policy: &'a SlowReceiver,
    pub keeping: Keeping<'a>,
}

impl Queues<'_> {
    /// Queues one message to the connection in `slot`.
    #[inline]
    pub fn push(&mut self, slot: u32, conn: &mut Conn, class: Class, message: &[u8]) -> Queued {
        if message.len() > conn.peer_message_max as usize {
            return Queued::TooLarge;
        }
        let bytes = message.len() + HEADER_BYTES_MAX;
        if conn.out.bytes() + bytes > self.policy.queue_max as usize {
            match self.make_room(conn, class, bytes) {
                Queued::Yes => {}
                refused => return refused,
            }
        }
        let (framing, serializer) = (conn.framing, conn.serializer);
        let queued = conn.out.append(self.pool, |out| {
            out.reserve(bytes);
            write_message(framing, serializer, message, out);
        });
        self.queued(slot, conn, queued)
    }

    /// Queues one message that `write` encodes where it will be sent from.
    #[inline]
    pub fn push_with(
        &mut self,
        slot: u32,
        conn: &mut Conn,
        class: Class,
        write: impl FnOnce(Serializer, &mut Vec<u8>),
    ) -> Queued {
        let (framing, serializer) = (conn.framing, conn.serializer);
        let message_max = conn.peer_message_max as usize;
        let room = (self.policy.queue_max as usize).saturating_sub(conn.out.bytes());
        let mut refused = None;
        let queued = conn.out.append(self.pool, |out| {
            let start = out.len();
            out.extend_from_slice(&[0; HEADER_ROOM]);
            write(serializer, out);
            let message = &out[start + HEADER_ROOM..];
            if message.len() > message_max || message.len() + HEADER_BYTES_MAX > room {
                refused = Some(message.to_vec());
                out.truncate(start);
            } else {
                finish_frame(framing, serializer, start, out);
            }
        });
        match refused {
            None => self.queued(slot, conn, queued),
            Some(message) => self.push(slot, conn, class, &message),
        }
    }

    /// Queues a large event's whole frame, which other receivers share.
    pub fn push_shared(&mut self, slot: u32, conn: &mut Conn, frame: Bytes, message_bytes: usize) -> Queued {
        if message_bytes > conn.peer_message_max as usize {
            return Queued::TooLarge;
        }
        if conn.out.bytes() + frame.len() > self.policy.queue_max as usize {
            match self.make_room(conn, Class::Event, frame.len()) {
                Queued::Yes => {}
                refused => return refused,
            }
        }
        let bytes = frame.len();
        conn.out.append_shared(frame);
        self.queued(slot, conn, bytes)
    }

    #[inline]
    fn queued(&mut self, slot: u32, conn: &mut Conn, bytes: usize) -> Queued {
        *self.queued_bytes += bytes;
        self.metrics.count(Counter::MessagesSent);
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(slot);
        }
        Queued::Yes
    }

    /// The queue is at its bound: acts by the class of what is to come and the configured policy.
    #[cold]
    fn make_room(&mut self, conn: &mut Conn, class: Class, bytes: usize) -> Queued {
        let queue_max = self.policy.queue_max as usize;
        match (class, self.policy.policy) {
            (Class::Reply, _) => {
                let reserve = self.policy.reply_reserve as usize;
                if conn.out.bytes() + bytes > queue_max + reserve { Queued::Doomed } else { Queued::Yes }
            }
            (Class::Invocation, _) => Queued::Full,
            (Class::Event, SlowPolicy::Close) => Queued::Doomed,
            (Class::Event, SlowPolicy::DropOldest) => {
                let before = conn.out.bytes();
                let keep = (queue_max - queue_max / 4).saturating_sub(bytes);
                let mut dropped = conn.out.drop_oldest_events(conn.framing, conn.serializer, keep);
                *self.queued_bytes -= before - conn.out.bytes();
                let fits = conn.out.bytes() + bytes <= queue_max;
                dropped += u64::from(!fits);
                self.metrics.add(Counter::DroppedSlow, dropped);
                conn.dropped = conn.dropped.saturating_add(dropped as u32);
                if fits { Queued::Yes } else { Queued::Full }
            }
        }
    }
}

impl Shard {
    pub(super) fn queues(&mut self) -> (&mut [Option<Box<Conn>>], Queues<'_>) {
        let kept_bytes_max = self.kept_bytes_max();
        (
            &mut self.conns,
            Queues {
                pool: &mut self.pool,
                metrics: &mut self.metrics,
                dirty: &mut self.dirty,
                queued_bytes: &mut self.queued_bytes,
                policy: &self.config.slow_receiver,
                keeping: Keeping {
                    kept_bytes: &mut self.resumption.kept_bytes,
                    kept_bytes_max,
                    buffer_max: self.config.resume.buffer_max,
                },
            },
        )
    }

    /// Queues a message that `write` encodes in the connection's serializer.
    pub(super) fn push(
        &mut self,
        slot: u32,
        class: Class,
        write: impl FnOnce(Serializer, &mut Vec<u8>),
    ) -> Queued {
        let (conns, mut queues) = self.queues();
        let conn = conns[slot as usize].as_mut().expect("the slot of a connection in hand is taken");
        let queued = queues.push_with(slot, conn, class, write);
        if queued == Queued::Doomed {
            let id = ConnId { slot, generation: conn.generation };
            self.doomed.push(id);
        }
        queued
    }

    /// Queues a reply.
    #[inline]
    pub(super) fn reply(&mut self, slot: u32, write: impl FnOnce(Serializer, &mut Vec<u8>)) {
        self.push(slot, Class::Reply, write);
    }

    /// Queues a transport frame that is no message. Bounded like replies.
    pub(super) fn push_control(&mut self, slot: u32, kind: FrameKind, payload: &[u8]) {
        let policy = &self.config.slow_receiver;
        let bytes_max = policy.queue_max as usize + policy.reply_reserve as usize;
        let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return };
        if conn.out.bytes() + payload.len() + HEADER_BYTES_MAX > bytes_max {
            let id = ConnId { slot, generation: conn.generation };
            return self.doomed.push(id);
        }
        let (framing, serializer) = (conn.framing, conn.serializer);
        self.queued_bytes += conn.out.append(&mut self.pool, |out| {
            write_header(framing, serializer, kind, payload.len(), out);
            out.extend_from_slice(payload);
        });
        self.mark_dirty(slot);
    }

    /// Queues the answer to a transport handshake.
    pub(super) fn push_bytes(&mut self, slot: u32, bytes: &[u8]) {
        let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return };
        self.queued_bytes += conn.out.append_unframed(&mut self.pool, bytes);
        self.mark_dirty(slot);
    }

    /// Ends the session, if any, and closes the connection when what is queued has gone out.
    pub(super) fn hang_up(&mut self, slot: u32, close_code: u16) {
        self.end_session(slot);
        self.leave_port(slot);
        let conn = self.at(slot);
        if matches!(conn.phase, Phase::Flushing | Phase::Lingering) {
            return;
        }
        conn.note_close(close_code);
        self.close_seat_with(slot, close_code);
        let conn = self.at(slot);
        if conn.phase.is_login() {
            self.logins -= 1;
            self.metrics.count(Counter::HandshakesFailed);
        }
        let conn = self.at(slot);
        let closes = conn.framing.is_websocket() && conn.phase != Phase::Opening;
        conn.phase = Phase::Flushing;
        conn.handshake = Vec::new();
        if closes {
            self.push_control(slot, FrameKind::Close, &close_code.to_be_bytes());
        }
        self.set_deadline(slot, FLUSH_TIME);
        self.mark_dirty(slot);
    }

    /// Everything went out: the peer is given a moment to close first.
    pub(super) fn linger(&mut self, slot: u32) {
        self.at(slot).phase = Phase::Lingering;
        self.set_deadline(slot, LINGER_TIME);
    }

    /// Forgets a connection at once and has its socket closed.
    pub(super) fn forget(&mut self, slot: u32) {
        self.leave_port(slot);
        self.end_session(slot);
        self.leave_seat(slot);
        if self.at(slot).leaving.is_some() {
            return self.forget_later(slot);
        }
        let conn = self.conns[slot as usize].take().expect("the slot of a connection in hand is taken");
        if conn.phase.is_login() {
            self.logins -= 1;
            self.metrics.count(Counter::HandshakesFailed);
        }
        self.conns_len -= 1;
        if conn.away.is_none() {
            self.by_listener[usize::from(conn.listener)] -= 1;
        } else {
            self.resumption.seated -= 1;
        }
        self.queued_bytes -= conn.held_bytes();
        self.partial_bytes -= conn.partial_bytes as usize;
        self.context_bytes -= conn.context_bytes();
        let has_socket = conn.transport_kind().is_none();
        if has_socket {
            self.outputs.push_back(Output::Close(ConnId { slot, generation: conn.generation }));
        }
        if conn.http.is_some() {
            self.forgotten_http(slot, *conn);
        }
    }

    /// Sets when a connection is looked at next.
    pub(super) fn set_deadline(&mut self, slot: u32, after: Duration) {
        let deadline = self.tick + Timers::<ConnId>::ticks(after);
        let conn = self.at(slot);
        conn.deadline = deadline;
        if deadline < conn.scheduled {
            self.schedule(slot, deadline);
        }
    }

    /// Puts a connection's one valid entry into the wheel; an earlier entry is stale from now on.
    pub(super) fn schedule(&mut self, slot: u32, tick: Tick) {
        let conn = self.conns[slot as usize].as_mut().expect("the slot of a connection in hand is taken");
        conn.scheduled = self.timers.add(tick, ConnId { slot, generation: conn.generation });
    }

    /// A connection's entry in the timer wheel came up.
    pub(super) fn look_at(&mut self, id: ConnId) {
        let tick = self.tick;
        let Some(conn) = self.conn_mut(id) else { return };
        if conn.scheduled > tick {
            return;
        }
        if conn.http.is_some() {
            return self.look_at_http(id.slot);
        }
        let deadline = conn.deadline;
        match conn.phase {
            _ if deadline > tick => self.schedule(id.slot, deadline),
            Phase::Open if conn.away.is_some() => self.look_at_seat(id),
            Phase::Open | Phase::Carrying | Phase::Echo => self.look_at_idle(id),
            Phase::Resuming => {
                self.at(id.slot).scheduled = Tick::MAX;
                self.ask_timed_out(id.slot);
            }
            Phase::Opening | Phase::Login => {
                self.metrics.count(Counter::LoginTimeouts);
                self.forget(id.slot);
            }
            Phase::Leaving => {
                self.at(id.slot).scheduled = Tick::MAX;
                self.hang_up(id.slot, 1000);
            }
            Phase::Http | Phase::Flushing | Phase::Lingering => self.forget(id.slot),
        }
    }

    fn look_at_idle(&mut self, id: ConnId) {
        let interval = Timers::<ConnId>::ticks(self.config.timeouts.ping_interval);
        let timeout = Timers::<ConnId>::ticks(self.config.timeouts.ping_timeout);
        let tick = self.tick;
        let conn = self.at(id.slot);
        let idle: Tick = tick - conn.last_heard;
        let next = if idle >= interval + timeout && conn.pinged {
            self.metrics.count(Counter::PingTimeouts);
            // Its entry has come up: a session that waits needs another.
            self.at(id.slot).scheduled = Tick::MAX;
            return self.lose(id.slot);
        } else if idle >= interval && !conn.pinged {
            conn.pinged = true;
            self.push_control(id.slot, FrameKind::Ping, b"signalbox");
            tick + timeout
        } else if idle >= interval {
            (conn.last_heard + interval + timeout).max(tick + 1)
        } else {
            conn.last_heard + interval
        };
        self.at(id.slot).deadline = next;
        self.schedule(id.slot, next);
    }

    /// Ends an input: closes the connections whose queues overflowed while it was handled, and lets others be read
    /// again when there is room for what they send.
    pub(super) fn bury(&mut self) {
        self.drop_broken_ports();
        while let Some(id) = self.doomed.pop() {
            let Some(conn) = self.conn_mut(id) else { continue };
            if matches!(conn.phase, Phase::Flushing | Phase::Lingering) {
                continue;
            }
            self.metrics.count(Counter::KilledSlow);
            let queued = self.at(id.slot).out.bytes();
            self.end_session(id.slot);
            let Some(Some(conn)) = self.conns.get_mut(id.slot as usize) else { continue };
            self.queued_bytes -= conn.out.clear(&mut self.pool);
            let text = format!("receiver too slow: {queued} bytes were queued");
            self.goodbye(id.slot, wamp::KILLED, &text);
            self.hang_up(id.slot, 1008);
        }
        if self.draining && self.conns_len == 0 && self.orphans.is_empty() {
            self.relay_finish();
        }
        self.resume();
    }

    /// Queues a GOODBYE; without a message if that is empty.
    pub(super) fn goodbye(&mut self, slot: u32, reason: &str, message: &str) {
        use common::wire::message::code::GOODBYE;
        let details = [("message", encode::Field::Str(message))];
        let details = if message.is_empty() { &[] } else { &details[..] };
        self.reply(slot, |serializer, out| encode::dict_uri(serializer, out, GOODBYE, details, reason));
    }

    /// Counts what a connection has sent of an incomplete message. Pausing would not help against too many of them,
    /// because none could end: beyond half of the memory the connection in hand is closed.
    #[inline]
    pub(super) fn hold_partial(&mut self, id: ConnId) {
        let Some(conn) = self.conn_mut(id) else { return };
        let held = match (&conn.framer, &conn.http) {
            (Some(framer), _) => framer.buffered_bytes(),
            (None, Some(http)) => http.buffered_bytes(),
            (None, None) => 0,
        };
        let held = held + conn.put_off_bytes();
        let before = std::mem::replace(&mut conn.partial_bytes, held as u32) as usize;
        if held == before {
            return;
        }
        self.partial_bytes = self.partial_bytes + held - before;
        if held > before && self.partial_bytes as u64 > self.config.memory_max / 2 {
            self.refuse_partial(id.slot);
        }
    }

    #[cold]
    fn refuse_partial(&mut self, slot: u32) {
        self.metrics.count(Counter::LimitReached);
        match self.at(slot).phase {
            Phase::Open | Phase::Login => {
                let text = "the node has no memory left for messages that come in pieces";
                self.abort(slot, wamp::UNAVAILABLE, text);
            }
            Phase::Http => self.refuse_request(slot),
            _ => self.hang_up(slot, 1008),
        }
        let conn = self.at(slot);
        conn.framer = None;
        let held = std::mem::take(&mut conn.partial_bytes);
        self.partial_bytes -= held as usize;
    }

    /// Bytes that count against `memory.max`.
    fn memory(&self) -> u64 {
        (self.queued_bytes + self.partial_bytes + self.context_bytes + self.relay.queued_bytes) as u64
    }

    /// Whether a connection may be read further, after an input of it was handled.
    pub(super) fn flow(&mut self, id: ConnId) -> Flow {
        if self.inflating.take_put_off() {
            return Flow::Pause;
        }
        let feeds_short = self.fed.0 & self.short_shards.0 != 0;
        let stalled = self.resumption.stalled;
        if self.memory() <= self.config.memory_max
            && !feeds_short
            && !stalled
            && !self.is_backlogged(self.fed)
        {
            return Flow::Continue;
        }
        let Some(conn) = self.conn_mut(id) else { return self.relay_pause(id) };
        if conn.away.is_some() || !conn.feeds() {
            return Flow::Continue;
        }
        if !conn.paused {
            conn.paused = true;
            self.paused.push(id);
            self.metrics.count(Counter::ReadsPaused);
        }
        Flow::Pause
    }

    fn is_backlogged(&self, fed: ShardSet) -> bool {
        let mut shards = ShardSet(fed.0 & self.mesh_blocked.0).iter();
        shards.any(|shard| self.mesh_out[shard.index()].bytes_len() > MESH_BACKLOG_MAX)
    }

    /// Resumes the paused connections once there is room again.
    pub(super) fn resume(&mut self) {
        self.tell_memory();
        if self.owes_ports() && !self.is_pressed() {
            self.pay_ports();
        }
        if self.paused.is_empty() || !self.has_room_again() || !self.short_shards.is_empty() {
            return;
        }
        if self.is_backlogged(self.mesh_blocked) {
            return;
        }
        for id in std::mem::take(&mut self.paused) {
            let port = self.conn_mut(id).map_or(0, |conn| conn.port);
            if port != 0 && self.is_stalled(port) {
                self.paused.push(id);
            } else if let Some(conn) = self.conn_mut(id) {
                conn.paused = false;
                match conn.transport_kind() {
                    None => self.outputs.push_back(Output::ResumeReads(id)),
                    Some(_) => self.resume_transport(id.slot),
                }
            } else if self.relay.unpause(id, self.now) {
                self.outputs.push_back(Output::ResumeReads(id));
            }
        }
    }

    /// What is let in now would find no room.
    pub(super) fn is_pressed(&self) -> bool {
        let is_short = self.memory() > self.config.memory_max || !self.short_shards.is_empty();
        is_short || self.is_backlogged(self.mesh_blocked)
    }

    /// Enough of the queued bytes went out for more to be let in.
    fn has_room_again(&self) -> bool {
        self.memory() <= self.config.memory_max / 4 * 3
    }

    /// Tells the other shards when this one gets short of memory and when it has room again: the connections that
    /// feed it from there cannot be paused here.
    fn tell_memory(&mut self) {
        let short =
            if self.is_short { !self.has_room_again() } else { self.memory() > self.config.memory_max };
        if std::mem::replace(&mut self.is_short, short) == short {
            return;
        }
        for shard in self.others().iter() {
            self.mesh(shard).push(Item::Memory { short });
        }
    }

    /// The shards something is to be sent to.
    pub fn mesh_ready(&self) -> ShardSet {
        self.mesh_ready
    }

    /// Takes all that waits for `to`. Only called when the queue to it has room.
    pub fn take_batch(&mut self, to: ShardId) -> Box<Batch> {
        self.mesh_ready = self.mesh_ready.without(to);
        let empty = self.spare_batches.pop().unwrap_or_default();
        let batch = std::mem::replace(&mut self.mesh_out[to.index()], empty);
        self.resume();
        batch
    }

    /// Keeps an emptied batch for reuse.
    pub(super) fn spare(&mut self, mut batch: Box<Batch>) {
        if self.spare_batches.len() < SPARE_BATCHES_MAX {
            batch.clear();
            self.spare_batches.push(batch);
        }
    }

    /// The queues to these shards are full. Connections that feed them are paused until a later call leaves them out.
    pub fn mesh_full(&mut self, now: Instant, full: ShardSet) {
        self.set_now(now);
        self.mesh_blocked = full;
        self.resume();
    }

    /// Says GOODBYE first: the session is over, the connection waits for the peer's GOODBYE. The caller sets the
    /// deadline.
    pub(super) fn leave(&mut self, slot: u32, reason: &str, message: &str) {
        self.end_session(slot);
        self.goodbye(slot, reason, message);
        let conn = self.at(slot);
        conn.phase = Phase::Leaving;
        if conn.is_forsaken() {
            // There is nobody to answer.
            self.hang_up(slot, 1000);
        }
    }
}
