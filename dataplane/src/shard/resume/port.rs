//! The connection of a client that wants its session back, and carries it from then on.

use super::super::conn::Phase;
use super::super::options::BadOption;
use super::super::{Shard, login::Joining};
use super::ask::Ask;
use super::{ASK_TIME, Carrier, MESSAGES_WINDOW, PORTS_MAX, ToPort, ToSeat};
use crate::mesh::Item;
use common::ids::{ShardId, is_wamp_id};
use common::metrics::Counter;
use common::resume::ResumeToken;
use common::transport::{FrameError, Framing, walk_own_frame};
use common::wire::{Dict, Value};

/// What HELLO says of resumption.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::shard) struct Wish {
    /// The session is to be one that can be resumed, or not; none: nothing is said.
    pub resumable: Option<bool>,
    /// The session to be resumed.
    pub session: Option<(u64, ResumeToken)>,
}

impl Wish {
    /// The keys are written with a hyphen in the specification and with an underscore by clients.
    pub fn read(details: &Dict<'_>, strict: bool) -> Result<Self, BadOption> {
        let either = |names: [&str; 2]| names.into_iter().find_map(|name| details.get(name));
        let bad = |key: &str, allowed: &str| Err(BadOption(format!("HELLO.Details.{key} must be {allowed}")));
        let resumable = match details.get("resumable") {
            Some(Value::Bool(resumable)) => Some(resumable),
            Some(_) if strict => return bad("resumable", "a boolean"),
            _ => None,
        };
        let session = match either(["resume-session", "resume_session"]) {
            Some(value) => match value.as_u64().filter(|id| is_wamp_id(*id)) {
                None if strict => return bad("resume-session", "the id of a session"),
                session => session,
            },
            None => None,
        };
        let token = match either(["resume-token", "resume_token"]) {
            Some(Value::Str(text)) => ResumeToken::parse(&text),
            Some(_) if strict => return bad("resume-token", "a string"),
            _ => None,
        };
        Ok(Self { resumable, session: session.zip(token) })
    }

    /// Whether the session is to be one that can be resumed; none: HELLO says nothing of resumption.
    pub fn said(&self) -> Option<bool> {
        self.resumable.or(self.session.map(|_| false))
    }
}

/// Who is at the near end of a port.
#[derive(Clone, Copy, Debug)]
enum Near {
    /// A connection of this shard whose client asks for its session; otherwise it gets this one.
    Asking { slot: u32, joining: Joining },
    /// A connection of this shard.
    Conn { slot: u32 },
    /// A connection of another node, by its number there.
    Guest { slot: u32, link: u64, id: u64 },
}

/// Where the seat is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Far {
    Shard(ShardId),
    /// In another node, by way of this lane.
    Lane(usize),
}

/// A connection that carries a session, or asks for one.
#[derive(Debug)]
pub(in crate::shard) struct Port {
    near: Near,
    far: Far,
    /// Bytes of messages that the seat has not handled.
    unhandled: usize,
    /// Frames have come that the connection has not sent.
    taking: bool,
}

impl Shard {
    /// Asks the holder of a session whether the client of a connection may have it. False: nobody holds it.
    pub(in crate::shard) fn ask_for_session(
        &mut self,
        slot: u32,
        joining: Joining,
        (session, token): (u64, ResumeToken),
        who: &[u8],
    ) -> bool {
        let Some(far) = self.holder_of(session, &token) else { return false };
        if self.resumption.ports.len() >= PORTS_MAX {
            self.metrics.count(Counter::LimitReached);
            return false;
        }
        let number = self.token();
        let conn = self.at(slot);
        (conn.phase, conn.port) = (Phase::Resuming, number);
        let (peer_message_max, serializer) = (conn.peer_message_max, conn.serializer);
        let (framing, origin) = (conn.framing, conn.origin);
        let near = Near::Asking { slot, joining };
        self.resumption.ports.insert(number, Port { near, far, unhandled: 0, taking: false });
        self.set_deadline(slot, ASK_TIME);
        let realm = self.realms[joining.realm as usize].id;
        let ask = Ask { session, token, realm, peer_message_max, serializer, framing, origin, who };
        self.tell_seat(number, ToSeat::Ask, &ask.pack());
        true
    }

    /// Where the session of a token is.
    pub(super) fn holder_of(&self, session: u64, token: &ResumeToken) -> Option<Far> {
        if token.is_of(self.config.epoch) {
            let is_shard = token.shard().index() < self.config.shards;
            return is_shard.then_some(Far::Shard(token.shard()));
        }
        let is_of = |node: &u16| self.nodes.get(*node).is_some_and(|node| token.is_of(node.epoch));
        let node = self.nodes.live().iter().find(is_of)?;
        Some(Far::Lane(self.lane_of(node, session as u32)))
    }

    /// Something for the seat of a port.
    fn tell_seat(&mut self, number: u64, op: ToSeat, bytes: &[u8]) {
        let Some(port) = self.resumption.ports.get(&number) else { return };
        self.tell_seat_by(port.far, number, op, bytes);
    }

    fn tell_seat_by(&mut self, far: Far, number: u64, op: ToSeat, bytes: &[u8]) {
        match far {
            Far::Shard(shard) if shard == self.me => {
                self.seat_told(Carrier { shard, port: number }, op, bytes);
            }
            Far::Shard(shard) => {
                let batch = self.mesh(shard);
                let bytes = batch.put(bytes);
                batch.push(Item::ToSeat { port: number, op, bytes });
            }
            Far::Lane(at) => {
                if !self.relay_to_seat(at, number, op, bytes) {
                    self.resumption.broken.push(number);
                }
            }
        }
    }

    /// Something for the connection that carries a session of this shard.
    pub(super) fn tell_port(&mut self, carrier: Carrier, op: ToPort, bytes: &[u8]) {
        if carrier.shard == self.me {
            return self.port_told(carrier.shard, carrier.port, op, bytes);
        }
        let batch = self.mesh(carrier.shard);
        let bytes = batch.put(bytes);
        batch.push(Item::ToPort { port: carrier.port, op, bytes });
    }

    /// A shard of this node says something to a port of this one.
    pub(in crate::shard) fn port_told(&mut self, from: ShardId, number: u64, op: ToPort, bytes: &[u8]) {
        self.port_told_by(Far::Shard(from), number, op, bytes);
    }

    /// Another node says something to a port of this shard.
    pub(in crate::shard) fn lane_told_port(&mut self, at: usize, number: u64, op: ToPort, bytes: &[u8]) {
        self.port_told_by(Far::Lane(at), number, op, bytes);
    }

    fn port_told_by(&mut self, from: Far, number: u64, op: ToPort, bytes: &[u8]) {
        let Some(port) = self.resumption.ports.get_mut(&number).filter(|port| port.far == from) else {
            // The connection is gone. A session that was to come by it waits again.
            if op == ToPort::Accepted {
                self.tell_seat_by(from, number, ToSeat::Gone, &[]);
            }
            return;
        };
        match (port.near, op) {
            (Near::Guest { slot, link, id }, _) => {
                let reached = self.relay_to_port(slot, link, id, op, bytes);
                if matches!(op, ToPort::Refused | ToPort::End) {
                    self.remove_port(number);
                } else if !reached {
                    self.resumption.broken.push(number);
                }
            }
            (Near::Asking { slot, .. }, ToPort::Accepted) => {
                port.near = Near::Conn { slot };
                self.begin_carrying(slot);
            }
            (Near::Asking { .. }, _) => self.port_lost(number),
            (Near::Conn { slot }, ToPort::Frames) => self.frames_came(slot, number, bytes),
            (Near::Conn { .. }, ToPort::Handled) => {
                let handled = bytes.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                port.unhandled = port.unhandled.saturating_sub(handled as usize);
            }
            (Near::Conn { slot }, ToPort::End) => {
                let code = bytes.first_chunk::<2>().map_or(1_000, |bytes| u16::from_le_bytes(*bytes));
                self.remove_port(number);
                self.at(slot).port = 0;
                self.hang_up(slot, code);
            }
            (Near::Conn { .. }, ToPort::Accepted | ToPort::Refused) => self.port_lost(number),
        }
    }

    /// The client has its session back, by this connection.
    fn begin_carrying(&mut self, slot: u32) {
        let listener = usize::from(self.at(slot).listener);
        let message_max = self.config.listeners[listener].message_max as usize;
        self.at(slot).phase = Phase::Carrying;
        self.logins -= 1;
        self.set_deadline(slot, self.config.timeouts.ping_interval);
        self.message_bound(slot, message_max);
    }

    /// Messages of the carried session, for the client.
    fn frames_came(&mut self, slot: u32, number: u64, mut frames: &[u8]) {
        let conn = self.conns[slot as usize].as_mut().expect("a port has its connection");
        let (framing, serializer, message_max) = (conn.framing, conn.serializer, conn.peer_message_max);
        let pool = &mut self.pool;
        while let Some((bytes, payload)) = walk_own_frame(Framing::RawSocket, frames) {
            let (frame, rest) = frames.split_at(bytes);
            frames = rest;
            if frame.len() - payload > message_max as usize {
                // It was queued when the client had a transport that takes more.
                self.metrics.count(Counter::DroppedTooLarge);
            } else if frame[0] & 7 == 0 {
                self.queued_bytes += conn.out.append(pool, |out| {
                    common::transport::write_message(framing, serializer, &frame[payload..], out);
                });
            }
        }
        if let Some(port) = self.resumption.ports.get_mut(&number) {
            port.taking = true;
        }
        if !frames.is_empty() {
            // No node sends half a frame.
            return self.resumption.broken.push(number);
        }
        self.mark_dirty(slot);
        self.port_drained(slot);
    }

    /// When nothing waits for the client of a port, its seat may send more.
    pub(in crate::shard) fn port_drained(&mut self, slot: u32) {
        let conn = self.at(slot);
        let (number, waits) = (conn.port, conn.sending || !conn.out.is_empty());
        if waits {
            return;
        }
        let Some(port) = self.resumption.ports.get_mut(&number) else { return };
        if std::mem::take(&mut port.taking) {
            self.tell_seat(number, ToSeat::Taken, &[]);
        }
    }

    /// The session that the connection in a slot carries is of this node.
    pub(in crate::shard) fn carries_own(&mut self, slot: u32) -> bool {
        let number = self.at(slot).port;
        self.resumption.ports.get(&number).is_some_and(|port| matches!(port.far, Far::Shard(_)))
    }

    /// A message from the client of a carried session.
    #[cold]
    pub(in crate::shard) fn carry_message(&mut self, slot: u32, bytes: &[u8]) {
        let number = self.at(slot).port;
        let Some(port) = self.resumption.ports.get_mut(&number) else { return };
        port.unhandled += bytes.len();
        if port.unhandled > MESSAGES_WINDOW {
            self.resumption.stalled = true;
        }
        self.tell_seat(number, ToSeat::Message, bytes);
    }

    /// The seat of this port has not handled what it got.
    pub(in crate::shard) fn is_stalled(&self, number: u64) -> bool {
        self.resumption.ports.get(&number).is_some_and(|port| port.unhandled > MESSAGES_WINDOW)
    }

    /// What came from the client of a carried session is no message: the session is to be told and ends.
    pub(in crate::shard) fn carry_broken(&mut self, slot: u32, error: &FrameError) {
        let mut bytes = error.close_code().to_le_bytes().to_vec();
        bytes.extend_from_slice(error.to_string().as_bytes());
        let number = self.at(slot).port;
        self.tell_seat(number, ToSeat::Broken, &bytes);
    }

    /// The connection in a slot, which carries a session or asks for one, is about to end.
    pub(in crate::shard) fn leave_port(&mut self, slot: u32) {
        let number = std::mem::take(&mut self.at(slot).port);
        if let Some(port) = self.remove_port(number) {
            self.tell_seat_by(port.far, number, ToSeat::Gone, &[]);
        }
    }

    fn remove_port(&mut self, number: u64) -> Option<Port> {
        let port = self.resumption.ports.remove(&number)?;
        if let Near::Guest { link, id, .. } = port.near {
            self.resumption.guests.remove(&(link, id));
        }
        Some(port)
    }

    /// The seat of a port cannot be reached, or has nothing for it: who asks gets a new session, who had one may ask again.
    pub(in crate::shard) fn port_lost(&mut self, number: u64) {
        let Some(port) = self.remove_port(number) else { return };
        match port.near {
            Near::Asking { slot, joining } => {
                self.at(slot).port = 0;
                self.metrics.count(Counter::ResumptionsRefused);
                self.welcome_instead(slot, joining);
            }
            Near::Conn { slot } => {
                self.at(slot).port = 0;
                self.hang_up(slot, RESTART_CODE);
            }
            Near::Guest { slot, link, id } => {
                self.relay_to_port(slot, link, id, ToPort::End, &RESTART_CODE.to_le_bytes());
            }
        }
        self.tell_seat_by(port.far, number, ToSeat::Gone, &[]);
    }

    /// Gives up ports whose ends could not be reached.
    pub(in crate::shard) fn drop_broken_ports(&mut self) {
        while let Some(number) = self.resumption.broken.pop() {
            self.port_lost(number);
        }
    }

    /// The holder of a session has not answered in time.
    pub(in crate::shard) fn ask_timed_out(&mut self, slot: u32) {
        self.port_lost(self.conns[slot as usize].as_ref().map_or(0, |conn| conn.port));
    }

    /// What a lane carried is lost. Until its turn has come a port finds no way to its seat, or a seat that does not know it.
    pub(in crate::shard) fn ports_lost(&mut self, at: usize) {
        let lost = |(number, port): (&u64, &Port)| (port.far == Far::Lane(at)).then_some(*number);
        let lost = self.resumption.ports.iter().filter_map(lost).collect();
        self.give_up_ports(lost);
    }

    /// The connections of another node that carried sessions of this one by this link are gone.
    pub(in crate::shard) fn guest_ports_lost(&mut self, gone: u64) {
        let of_link = |((link, _), number): (&(u64, u64), &u64)| (*link == gone).then_some(*number);
        let lost = self.resumption.guests.iter().filter_map(of_link).collect();
        self.give_up_guest_ports(lost);
    }

    /// A connection of another node that carried a session of this one is gone.
    pub(in crate::shard) fn guest_port_lost(&mut self, number: u64) {
        if let Some(port) = self.remove_port(number) {
            self.tell_seat_by(port.far, number, ToSeat::Gone, &[]);
        }
    }

    /// Another node's connection has something for a session of this node. False: it has sent what no node sends.
    pub(in crate::shard) fn guest_to_seat(
        &mut self,
        (slot, link, id): (u32, u64, u64),
        op: ToSeat,
        bytes: &[u8],
    ) -> bool {
        if op == ToSeat::Ask {
            return self.guest_asks_for_session((slot, link, id), bytes);
        }
        let Some(number) = self.resumption.guests.get(&(link, id)).copied() else { return true };
        if op == ToSeat::Gone {
            if let Some(port) = self.remove_port(number) {
                self.tell_seat_by(port.far, number, op, bytes);
            }
        } else {
            self.tell_seat(number, op, bytes);
        }
        true
    }

    fn guest_asks_for_session(&mut self, (slot, link, id): (u32, u64, u64), bytes: &[u8]) -> bool {
        let Some(ask) = Ask::unpack(bytes) else { return false };
        let is_known = self.resumption.guests.contains_key(&(link, id));
        let is_full = self.resumption.ports.len() >= PORTS_MAX;
        // What another node asked for is not passed on to a third one.
        let far = self.holder_of(ask.session, &ask.token).filter(|far| matches!(far, Far::Shard(_)));
        let Some(far) = far.filter(|_| !is_known && !is_full) else {
            self.relay_to_port(slot, link, id, ToPort::Refused, &[]);
            return !is_known;
        };
        let number = self.token();
        let near = Near::Guest { slot, link, id };
        self.resumption.ports.insert(number, Port { near, far, unhandled: 0, taking: false });
        self.resumption.guests.insert((link, id), number);
        self.tell_seat(number, ToSeat::Ask, bytes);
        true
    }
}

/// The connection is of no more use; the client may come back at once (WebSocket's "service restart").
const RESTART_CODE: u16 = 1_012;
