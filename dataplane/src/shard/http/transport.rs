//! A transport: the connection of a session that has no socket.

use super::staged::{Form, Staged};
use super::{Ask, Asker, Http, Tell};
use crate::shard::conn::{Conn, Phase};
use crate::shard::timers::{Tick, Timers};
use crate::shard::{ConnId, Flow, Shard};
use common::limits::{LOGIN_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX};
use common::metrics::Counter;
use common::transport::http::{Content, Kind, Opening, Problem, TransportId, answer};
use common::transport::{Framer, Framing, Role, batch};
use std::time::Duration;

/// How long a transport whose session has ended is kept for a client that still receives.
const FLUSH_TIME: Duration = Duration::from_secs(3);

/// The close code of a transport that nobody closed.
const EXPIRED: u16 = 0;
/// The close codes (RFC 6455, 7.4.1) of an end that somebody wanted.
const WANTED: [u16; 2] = [1000, 1001];

#[derive(Debug)]
pub(in crate::shard) struct Transport {
    kind: Kind,
    secret: [u8; TransportId::SECRET_BYTES],
    /// Of what the client sends and receives.
    framing: Framing,
    staged: Staged,
    /// Messages are on their way by this one.
    serving: Option<Asker>,
    /// Gets the next ones.
    waiting: Option<Asker>,
    /// When it has waited long enough; a stream never has.
    poll_until: Option<Tick>,
    /// Is told that its messages were taken once there is room for more.
    held: Option<Asker>,
    /// There was a session.
    joined: bool,
    /// It was aborted for what the client sent.
    violated: bool,
    close_code: u16,
}

impl Transport {
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn form(&self) -> Form {
        match (self.kind, self.framing) {
            (Kind::Events, _) => Form::Events,
            (Kind::LongPoll, framing) if framing.is_batched() => Form::Batch(framing),
            (Kind::LongPoll, _) => Form::Single,
        }
    }
}

impl Conn {
    fn transport(&mut self) -> Option<&mut Transport> {
        match self.http.as_deref_mut() {
            Some(Http::Transport(transport)) => Some(transport),
            _ => None,
        }
    }

    /// The client broke the protocol, which the request in hand is to be told.
    pub fn note_violation(&mut self) {
        if let Some(transport) = self.transport() {
            transport.violated = true;
        }
    }

    /// Why a connection is closed, for whoever asks its transport then.
    pub fn note_close(&mut self, close_code: u16) {
        if let Some(transport) = self.transport() {
            transport.close_code = close_code;
        }
    }
}

impl Shard {
    /// Opens a transport for a client of the connection in `peer`.
    pub(super) fn open_transport(&mut self, peer: u32, kind: Kind, opening: Opening) -> Option<TransportId> {
        let conn = self.at(peer);
        let (listener, origin) = (conn.listener, conn.origin);
        if self.draining || !self.has_room(usize::from(listener)) {
            self.metrics.count(Counter::ConnectionsRefused);
            return None;
        }
        let Some((slot, generation)) = self.transports.take(self.config.first_slot()) else {
            self.metrics.count(Counter::LimitReached);
            return None;
        };
        let http = self.config.http.as_mut().expect("there are slots of transports where HTTP is served");
        let secret = *http.entropy.draw().first_chunk().expect("more is drawn");
        let serializer = opening.subprotocol.serializer;
        let mut conn = Conn::new(generation, listener, origin, self.tick);
        conn.introduced = true;
        conn.phase = Phase::Login;
        conn.serializer = serializer;
        conn.sending = true;
        conn.peer_message_max = MESSAGE_BYTES_MAX as u32;
        // It keeps the bound of messages, as everywhere; no bytes come to it.
        conn.framer =
            Some(Framer::new(Framing::RawSocket, Role::Server, serializer, LOGIN_MESSAGE_BYTES_MAX));
        conn.http = Some(Box::new(Http::Transport(Transport {
            kind,
            secret,
            framing: opening.subprotocol.framing(),
            staged: Staged::default(),
            serving: None,
            waiting: None,
            poll_until: None,
            held: None,
            joined: false,
            violated: false,
            close_code: EXPIRED,
        })));
        if self.conns.len() <= slot as usize {
            self.conns.resize_with(slot as usize + 1, || None);
        }
        self.conns[slot as usize] = Some(Box::new(conn));
        self.conns_len += 1;
        self.logins += 1;
        self.by_listener[usize::from(listener)] += 1;
        self.set_deadline(slot, self.config.timeouts.login);
        self.metrics.count(Counter::HttpTransportsOpened);
        Some(TransportId { shard: self.me.0, slot, secret })
    }

    /// The transport of this shard that an id names.
    pub(super) fn transport_of(&mut self, kind: Kind, id: TransportId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(id.slot as usize)?.as_mut()?;
        let transport = conn.transport()?;
        (transport.secret == id.secret && transport.kind == kind && !conn.gone).then_some(conn)
    }

    /// A request for a transport of this shard, if there is such a one.
    pub(super) fn ask_here(&mut self, from: Asker, (kind, id): (Kind, TransportId), ask: Ask, body: &[u8]) {
        let tick = self.tick;
        let Some(conn) = self.transport_of(kind, id) else {
            if !matches!(ask, Ask::Taken | Ask::Gone) {
                self.tell_peer(from, Tell::Refused(Problem::Transport), &[]);
            }
            return;
        };
        conn.last_heard = tick;
        match ask {
            Ask::Send(content) => self.asked_to_send(from, id.slot, content, body),
            Ask::Receive => self.asked_to_receive(from, id.slot),
            Ask::Close => {
                conn.note_close(1000);
                let polls = kind == Kind::LongPoll;
                let waiting =
                    conn.transport().filter(|_| polls).and_then(|transport| transport.waiting.take());
                self.tell_peer(from, Tell::Accepted, &[]);
                // It was the client's wish, so there is nothing to complain of.
                if let Some(waiting) = waiting {
                    self.tell_peer(waiting, Tell::Empty, &[]);
                }
                self.forget(id.slot);
            }
            Ask::Taken => self.taken_from(from, id.slot),
            Ask::Gone => self.gone(from, id.slot),
        }
    }

    fn asked_to_send(&mut self, from: Asker, slot: u32, content: Content, body: &[u8]) {
        let conn = self.at(slot);
        let id = ConnId { slot, generation: conn.generation };
        let is_member = matches!(conn.phase, Phase::Open | Phase::Leaving);
        let (suits, paused, listener) = (content.suits(conn.serializer), conn.paused, conn.listener);
        let bytes_max = match is_member {
            true => self.config.listeners[usize::from(listener)].message_max as usize,
            false => LOGIN_MESSAGE_BYTES_MAX,
        };
        let problem = match () {
            () if !suits => Some(Problem::MediaType),
            () if body.len() > bytes_max => Some(Problem::TooLarge),
            // One that was told to wait sends the next all the same.
            () if paused => Some(Problem::Unavailable),
            () => None,
        };
        if let Some(problem) = problem {
            return self.tell_peer(from, Tell::Refused(problem), &[]);
        }
        self.take_messages(slot, body);
        let Some(conn) = self.conn_mut(id) else { return };
        let is_open = conn.phase == Phase::Open;
        let Some(transport) = conn.transport() else { return };
        transport.joined |= is_open;
        if transport.violated {
            return self.tell_peer(from, Tell::Refused(Problem::Violation), &[]);
        }
        if self.flow(id) == Flow::Continue {
            self.tell_peer(from, Tell::Accepted, &[]);
        } else if let Some(transport) = self.at(slot).transport() {
            transport.held = Some(from);
        }
    }

    /// Handles what a request carried: a message, or a batch of them as long as the session is heard.
    fn take_messages(&mut self, slot: u32, body: &[u8]) {
        let conn = self.at(slot);
        let (generation, serializer) = (conn.generation, conn.serializer);
        let Some(transport) = conn.transport() else { return };
        if transport.framing.is_batched() {
            transport.framing = batch::dialect(serializer, body);
        }
        for message in batch::split(transport.framing, serializer, body) {
            if !self.is_read(slot, generation) {
                return;
            }
            match message {
                Ok(message) => self.message(slot, message),
                Err(error) => return self.bad_frame(slot, &error),
            }
        }
    }

    /// There is room again for what the session sends.
    pub(in crate::shard) fn resume_transport(&mut self, slot: u32) {
        if let Some(held) = self.at(slot).transport().and_then(|transport| transport.held.take()) {
            self.tell_peer(held, Tell::Accepted, &[]);
        }
    }

    fn asked_to_receive(&mut self, from: Asker, slot: u32) {
        let http = self.config.http.as_ref().expect("there are transports where HTTP is served");
        let until = self.tick + Timers::<ConnId>::ticks(http.settings.poll_timeout);
        let Some(transport) = self.at(slot).transport() else { return };
        if transport.waiting.is_some() {
            return self.tell_peer(from, Tell::Refused(Problem::Busy), &[]);
        }
        transport.waiting = Some(from);
        match transport.kind {
            Kind::Events => self.tell_peer(from, Tell::Begin, &[]),
            Kind::LongPoll => {
                transport.poll_until = Some(until);
                if until < self.at(slot).scheduled {
                    self.schedule(slot, until);
                }
            }
        }
        self.transport_ready(slot);
    }

    /// What was told to a request has been sent.
    fn taken_from(&mut self, from: Asker, slot: u32) {
        let conn = self.conns[slot as usize].as_mut().expect("the slot of a connection in hand is taken");
        let Some(transport) = conn.transport().filter(|transport| transport.serving == Some(from)) else {
            return;
        };
        transport.serving = None;
        let bytes = transport.staged.commit();
        if transport.staged.is_empty() {
            transport.staged.recycle(&mut self.pool);
        }
        conn.sending_bytes -= bytes as u32;
        self.queued_bytes -= bytes;
        self.transport_ready(slot);
        self.resume();
    }

    /// A connection ended: what it was to carry goes another way.
    fn gone(&mut self, from: Asker, slot: u32) {
        let Some(transport) = self.at(slot).transport() else { return };
        if transport.serving == Some(from) {
            // What is staged is taken again.
            transport.serving = None;
        }
        if transport.waiting == Some(from) {
            transport.waiting = None;
            transport.poll_until = None;
        }
        if transport.held == Some(from) {
            transport.held = None;
        }
        self.transport_ready(slot);
    }

    /// Something was queued to a transport, a request waits for it, or it is to end.
    pub(in crate::shard) fn transport_ready(&mut self, slot: u32) {
        let Some(Some(conn)) = self.conns.get_mut(slot as usize) else { return };
        let (serializer, phase, queued) = (conn.serializer, conn.phase, conn.out.bytes());
        // The connection's other parts are needed beside it.
        let Some(Http::Transport(transport)) = conn.http.as_deref_mut() else { return };
        if transport.serving.is_some() {
            return;
        }
        if transport.staged.is_empty() && queued > 0 && transport.waiting.is_some() {
            transport.staged = Staged::new(conn.out.take(&mut self.pool));
            conn.sending_bytes = queued as u32;
        }
        if transport.staged.is_empty() {
            // A client that polls has a moment to close it first; one with a stream sees the end of that.
            let lingers = transport.kind == Kind::LongPoll && !self.draining;
            if phase == Phase::Flushing && queued == 0 && !lingers {
                self.forget(slot);
            }
            return;
        }
        let Some(to) = transport.waiting else { return };
        let mut bytes = Vec::new();
        transport.staged.take(transport.form(), serializer, &mut bytes);
        transport.serving = Some(to);
        let tell = match transport.kind {
            Kind::Events => Tell::Events,
            Kind::LongPoll => {
                transport.waiting = None;
                transport.poll_until = None;
                Tell::Messages(serializer)
            }
        };
        self.metrics.add(Counter::BytesSent, bytes.len() as u64);
        self.tell_peer(to, tell, &bytes);
    }

    pub(super) fn look_at_transport(&mut self, slot: u32) {
        let tick = self.tick;
        let Some(transport) = self.at(slot).transport() else { return };
        if transport.poll_until.is_some_and(|until| until <= tick) {
            transport.poll_until = None;
            if let Some(to) = transport.waiting.take() {
                self.tell_peer(to, Tell::Empty, &[]);
            }
            self.at(slot).last_heard = tick;
        }
        if self.at(slot).deadline <= tick && !self.transport_is_due(slot) {
            return;
        }
        let conn = self.at(slot);
        let deadline = conn.deadline;
        let until = conn.transport().and_then(|transport| transport.poll_until);
        self.schedule(slot, until.map_or(deadline, |until| until.min(deadline)));
    }

    /// The deadline of a transport's phase has come. False: it is gone.
    fn transport_is_due(&mut self, slot: u32) -> bool {
        let http = self.config.http.as_ref().expect("there are transports where HTTP is served");
        let idle = Timers::<ConnId>::ticks(http.settings.idle_timeout);
        let flush = Timers::<ConnId>::ticks(FLUSH_TIME);
        let tick = self.tick;
        let conn = self.at(slot);
        let (phase, last_heard) = (conn.phase, conn.last_heard);
        let queued = !conn.out.is_empty();
        let (mut is_awaited, mut is_left) = (false, queued);
        if let Some(transport) = conn.transport() {
            is_awaited = transport.waiting.or(transport.serving).is_some();
            is_left |= !transport.staged.is_empty();
        }
        let next = match phase {
            Phase::Open if is_awaited => tick + idle,
            Phase::Open => last_heard + idle,
            // As long as somebody fetches what is left of a session.
            Phase::Flushing if is_left => last_heard + flush,
            Phase::Leaving => {
                self.hang_up(slot, 1000);
                return true;
            }
            _ => tick,
        };
        if next <= tick {
            let conn = self.at(slot);
            if conn.transport().is_some_and(|transport| transport.joined && phase == Phase::Login) {
                conn.note_close(1000);
            } else if phase == Phase::Login {
                self.metrics.count(Counter::LoginTimeouts);
            } else if phase == Phase::Open {
                self.metrics.count(Counter::HttpTransportsExpired);
            }
            self.forget(slot);
            return false;
        }
        self.at(slot).deadline = next;
        true
    }

    /// The node drains: the session of this transport was told so, and the client may fetch that.
    pub(in crate::shard) fn drain_transport(&mut self, slot: u32) {
        if self.at(slot).transport().is_some() {
            self.hang_up(slot, 1001);
        }
    }

    /// Nobody can ask a transport any more: who waits for it is told.
    pub(super) fn forgotten_transport(&mut self, slot: u32, mut transport: Transport) {
        transport.staged.recycle(&mut self.pool);
        self.transports.give_back(slot);
        self.tell_end(transport.end());
    }

    /// The transport will be forgotten once its session has left all topics.
    pub(in crate::shard) fn forget_transport_later(&mut self, slot: u32) {
        if let Some(end) = self.at(slot).transport().map(Transport::end) {
            self.tell_end(end);
        }
    }

    fn tell_end(&mut self, end: End) {
        if let Some(to) = end.held {
            self.tell_peer(to, Tell::Accepted, &[]);
        }
        match (end.waiting, end.kind) {
            (None, _) => {}
            (Some(to), Kind::LongPoll) => self.tell_peer(to, Tell::Refused(Problem::Transport), &[]),
            (Some(to), Kind::Events) => {
                let (name, text) = end.event();
                let mut event = Vec::new();
                answer::event(name, text.as_bytes(), &mut event);
                self.tell_peer(to, Tell::End, &event);
            }
        }
    }
}

/// A transport that ends, and who is to know.
struct End {
    kind: Kind,
    held: Option<Asker>,
    waiting: Option<Asker>,
    close_code: u16,
}

impl Transport {
    fn end(&mut self) -> End {
        let (held, waiting) = (self.held.take(), self.waiting.take());
        End { kind: self.kind, held, waiting, close_code: self.close_code }
    }
}

impl End {
    /// The last event of a stream.
    fn event(&self) -> (&'static str, String) {
        match self.close_code {
            code if WANTED.contains(&code) => {
                ("session_terminated", "{\"message\":\"the session has ended\"}".to_owned())
            }
            EXPIRED => ("transport_error", "{\"message\":\"no session began in time\"}".to_owned()),
            code => {
                let text = format!("{{\"message\":\"the router closed the transport\",\"code\":{code}}}");
                ("transport_error", text)
            }
        }
    }
}
