//! One session's messages: who may send what, and how it ends.

use super::Shard;
use super::conn::{Call, Invocation, Phase};
use super::options::BadOption;
use crate::mesh::{Owner, Terms};
use common::link::Claim;
use common::metrics::Counter;
use common::transport::{Frame, FrameError, FrameKind};
use common::uri::wamp;
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Message, OwnedValue, Payload, WireError, decode};

impl Shard {
    /// Takes the frames out of received bytes and handles them, as long as the connection is read.
    pub(super) fn frames(&mut self, slot: u32, mut chunk: &mut [u8]) {
        if self.is_to_wait(slot) {
            return self.put_off(slot, chunk);
        }
        let Some(mut framer) = self.at(slot).framer.take() else { return };
        let conn = self.at(slot);
        let (generation, framing) = (conn.generation, conn.framing);
        loop {
            let failed = match framer.next(&mut chunk) {
                Ok(Some(Frame::Message(bytes))) => {
                    self.carried(slot, framing, bytes);
                    false
                }
                Ok(Some(Frame::Compressed(bytes))) => {
                    self.compressed(slot, framing, bytes);
                    if !chunk.is_empty() && self.inflating.is_spent() && self.is_read(slot, generation) {
                        if let Some(bound) = self.new_bound.take() {
                            framer.set_message_bytes_max(bound);
                        }
                        self.at(slot).framer = Some(framer);
                        return self.put_off(slot, chunk);
                    }
                    false
                }
                Ok(Some(Frame::Ping(payload))) => {
                    self.push_control(slot, FrameKind::Pong, payload);
                    false
                }
                Ok(Some(Frame::Pong(_))) => false,
                Ok(Some(Frame::Close { code })) => {
                    self.close_came(slot, if code == 1005 { 1000 } else { code });
                    true
                }
                Ok(None) => break,
                Err(error) => {
                    self.bad_frame(slot, &error);
                    true
                }
            };
            if failed || !self.is_read(slot, generation) {
                return;
            }
            if let Some(bound) = self.new_bound.take() {
                framer.set_message_bytes_max(bound);
            }
        }
        self.at(slot).framer = Some(framer);
    }

    /// A stream that cannot go on: a session is told why, then the connection is closed with the transport's code.
    pub(super) fn bad_frame(&mut self, slot: u32, error: &FrameError) {
        if self.at(slot).phase == Phase::Carrying {
            return self.carry_broken(slot, error);
        }
        if matches!(self.at(slot).phase, Phase::Open | Phase::Login) {
            self.metrics.count(Counter::ProtocolViolations);
            self.at(slot).note_violation();
            self.queue_abort(slot, wamp::PROTOCOL_VIOLATION, &error.to_string());
        }
        self.hang_up(slot, error.close_code());
    }

    #[inline]
    pub(super) fn message(&mut self, slot: u32, bytes: &[u8]) {
        let conn = self.at(slot);
        let (phase, serializer) = (conn.phase, conn.serializer);
        if phase == Phase::Carrying {
            return self.carry_message(slot, bytes);
        }
        self.metrics.count(Counter::MessagesReceived);
        match decode(serializer, bytes) {
            Err(error) => self.bad_message(slot, phase, &error),
            Ok(message) => match phase {
                Phase::Open => self.request(slot, &message),
                Phase::Login => self.login_message(slot, &message),
                Phase::Resuming => self.violation(slot, "a message before WELCOME"),
                // Everything but GOODBYE is ignored once we said it.
                Phase::Leaving if matches!(message, Message::Goodbye { .. }) => self.hang_up(slot, 1000),
                _ => {}
            },
        }
    }

    fn bad_message(&mut self, slot: u32, phase: Phase, error: &WireError) {
        if phase != Phase::Leaving {
            self.violation(slot, &error.to_string());
        }
    }

    fn login_message(&mut self, slot: u32, message: &Message<'_>) {
        match message {
            Message::Hello { realm, details } => self.hello(slot, realm, details),
            Message::Abort { .. } => self.hang_up(slot, 1000),
            other => {
                let text = format!("{} before a session is established; HELLO must come first", other.name());
                self.violation(slot, &text);
            }
        }
    }

    /// A message of an established session.
    #[inline]
    fn request(&mut self, slot: u32, message: &Message<'_>) {
        match message {
            Message::Publish { .. }
            | Message::Call { .. }
            | Message::Yield { .. }
            | Message::Error { .. }
                if self.is_ruled(slot) && !self.may(slot, message) => {}
            Message::Publish { request, options, topic, payload } => {
                if self.in_sequence(slot, "PUBLISH", *request) {
                    self.publish(slot, *request, options, topic, *payload);
                }
            }
            Message::Call { request, options, procedure, payload } => {
                if self.continues(slot, *request) || self.in_sequence(slot, "CALL", *request) {
                    self.call(slot, *request, options, procedure, *payload);
                }
            }
            Message::Yield { request, options, payload } => self.yielded(slot, *request, options, *payload),
            Message::Error { kind, request, details, error, payload } => {
                self.failed(slot, (*kind, *request), details, error, *payload);
            }
            other => self.rare_request(slot, other),
        }
    }

    fn rare_request(&mut self, slot: u32, message: &Message<'_>) {
        if !self.may(slot, message) {
            return;
        }
        match message {
            Message::Subscribe { request, options, topic } => {
                if self.in_sequence(slot, "SUBSCRIBE", *request) {
                    self.subscribe(slot, *request, options, topic);
                }
            }
            Message::Unsubscribe { request, subscription } => {
                if self.in_sequence(slot, "UNSUBSCRIBE", *request) {
                    self.unsubscribe(slot, *request, *subscription);
                }
            }
            Message::Register { request, options, procedure } => {
                if self.in_sequence(slot, "REGISTER", *request) {
                    self.register(slot, *request, options, procedure);
                }
            }
            Message::Unregister { request, registration } => {
                if self.in_sequence(slot, "UNREGISTER", *request) {
                    self.unregister(slot, *request, *registration);
                }
            }
            Message::Goodbye { .. } => {
                self.end_session(slot);
                self.reply(slot, |serializer, out| {
                    encode::dict_uri(serializer, out, code::GOODBYE, &[], wamp::GOODBYE_AND_OUT);
                });
                self.await_reuse(slot);
            }
            Message::Abort { .. } => self.hang_up(slot, 1000),
            Message::Cancel { request, options } => self.cancel(slot, *request, options),
            Message::Hello { .. } => self.violation(slot, "HELLO after the session was established"),
            other => {
                let text = format!("{} is not a message a client may send here", other.name());
                self.violation(slot, &text);
            }
        }
    }

    /// True when a CALL is a further part of a call that came in parts, so that its id is not the next one.
    #[inline]
    fn continues(&mut self, slot: u32, request: u64) -> bool {
        let session = self.session(slot);
        session.strict
            && (session.unfinished.contains(&request)
                || session.calls.get(&request).is_some_and(|call| call.terms.is(Terms::PROGRESS)))
    }

    /// In a strict realm request ids must be 1, 2, 3 ... (WAMP, basic profile, "IDs"); after 2^53 comes 1.
    #[inline]
    pub(super) fn in_sequence(&mut self, slot: u32, message: &'static str, request: u64) -> bool {
        let session = self.session(slot);
        if !session.strict {
            return true;
        }
        let gap = std::mem::take(&mut session.gap);
        let expected = if session.last_request == common::ids::ID_MAX { 1 } else { session.last_request + 1 };
        if request == expected || gap && request > expected {
            session.last_request = request;
            return true;
        }
        let text = format!("{message}.Request is {request}, but the next id in sequence is {expected}");
        self.violation(slot, &text);
        false
    }

    #[inline]
    pub(super) fn session(&mut self, slot: u32) -> &mut super::conn::Session {
        self.at(slot).session.as_mut().expect("phase Open has a session")
    }

    /// ABORT `wamp.error.protocol_violation`, then close.
    pub(super) fn violation(&mut self, slot: u32, text: &str) {
        self.metrics.count(Counter::ProtocolViolations);
        self.at(slot).note_violation();
        self.abort(slot, wamp::PROTOCOL_VIOLATION, text);
    }

    pub(super) fn bad_option(&mut self, slot: u32, bad: &BadOption) {
        self.violation(slot, &bad.0);
    }

    /// ABORT, then close.
    pub(super) fn abort(&mut self, slot: u32, reason: &str, message: &str) {
        self.queue_abort(slot, reason, message);
        self.hang_up(slot, 1002);
    }

    fn queue_abort(&mut self, slot: u32, reason: &str, message: &str) {
        self.end_session(slot);
        self.reply(slot, |serializer, out| {
            encode::dict_uri(serializer, out, code::ABORT, &[("message", Field::Str(message))], reason);
        });
    }

    /// ERROR for a request of this session, with a message for people as its only argument.
    pub(super) fn error(&mut self, slot: u32, kind: u64, request: u64, uri: &str, message: &str) {
        self.reply(slot, |serializer, out| {
            let mut args = Vec::new();
            OwnedValue::List(vec![OwnedValue::Str(message.to_owned())]).encode(serializer, &mut args);
            let payload = Payload { args: Some(&args), kwargs: None };
            encode::error(serializer, out, kind, request, &[], uri, payload);
        });
    }

    /// Everything a session holds is given up: subscriptions, registrations, calls to answer. The connection stays.
    pub(super) fn end_session(&mut self, slot: u32) {
        let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return };
        let Some(session) = &conn.session else { return };
        if !session.testaments.is_empty() {
            self.publish_testaments(slot);
        }
        self.waits_no_more(slot);
        let conn = self.at(slot);
        let Some(mut session) = conn.session.take() else { return };
        conn.dropped = 0;
        conn.trusting = false;
        conn.holding = false;
        // The connection is in no counted phase until the caller gives it one.
        conn.phase = Phase::Leaving;
        self.sessions -= 1;
        self.realms[session.realm as usize].sessions -= 1;
        self.metrics.count(Counter::SessionsClosed);
        self.ids.leave(session.id);
        let registrations: Vec<u32> = session.registrations.drain().map(|(_, index)| index).collect();
        let invocations: Vec<Invocation> = session.invocations.drain().map(|(_, open)| open).collect();
        let calls: Vec<(u64, Call)> = session.calls.drain().collect();
        let owner = Owner { shard: self.me, slot, session: session.id };
        self.claims.push(Claim::Left { session: session.id }, &mut self.metrics);
        // From here on it gets no events, those of its own end least of all.
        self.begin_leaving(slot, session);
        self.left(slot);
        for procedure in registrations {
            self.remove_procedure(procedure, 0);
        }
        self.fail_invocations(invocations);
        self.abandon_calls(owner, calls);
        self.leave_topics(slot);
    }
}
