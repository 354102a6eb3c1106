//! A connection on which requests come in and answers go out, one at a time.

use super::{Ask, Asker, Http, Tell};
use crate::shard::conn::Phase;
use crate::shard::timers::{Tick, Timers};
use crate::shard::{ConnId, Shard};
use common::ids::ShardSet;
use common::metrics::Counter;
use common::transport::http::answer::{self, Manner};
use common::transport::http::{
    self, Action, Content, Head, Kind, Length, Method, OPEN_BYTES_MAX, Problem, Reader, Target, TransportId,
    media_type,
};
use common::wire::Serializer;
use std::time::Duration;

/// Bytes of requests that came before the one in hand was answered; clients that send more are closed.
const HELD_BYTES_MAX: usize = 64 << 10;
/// Longest body of a request that needs none.
const EMPTY_BODY_BYTES_MAX: usize = 1 << 10;
/// How much longer than a poll a connection waits for a transport.
const ASKED_TIME: Duration = Duration::from_secs(30);
/// How long a connection without a request in hand is kept while the node drains: a client may come back to receive the
/// end of its session, and cannot connect anew.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// A connection that speaks HTTP.
#[derive(Debug)]
pub(in crate::shard) struct Peer {
    reader: Reader,
    /// What came behind the request in hand.
    held: Vec<u8>,
    step: Step,
    /// Of the answer to the request in hand.
    manner: Manner,
    /// The transport that was asked and has not answered, or whose messages are under way.
    asked: Option<(Kind, TransportId)>,
    /// Messages of it are with the connection.
    carrying: bool,
    /// See [`Peer::feeds`].
    feeds: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// A request is expected or coming in.
    Head,
    /// Its body is.
    Body(Target, Content),
    /// A transport was asked.
    Asked,
    /// The answer is a stream.
    Stream,
    /// The answer is to go out before more is read.
    Answered,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            reader: Reader::default(),
            held: Vec::new(),
            step: Step::Head,
            manner: Manner::CLOSING,
            asked: None,
            carrying: false,
            feeds: true,
        }
    }
}

impl Peer {
    pub fn buffered_bytes(&self) -> usize {
        self.reader.buffered_bytes() + self.held.capacity()
    }

    /// The request in hand, or the last one, has brought messages.
    pub const fn feeds(&self) -> bool {
        self.feeds
    }

    /// What comes is looked at now.
    const fn is_reading(&self) -> bool {
        matches!(self.step, Step::Head | Step::Body(..))
    }
}

impl Shard {
    /// The connection turns out to speak HTTP. It keeps its deadline for the first request.
    pub(in crate::shard) fn begin_http(&mut self, slot: u32) {
        self.logins -= 1;
        let conn = self.at(slot);
        conn.phase = Phase::Http;
        conn.http = Some(Box::new(Http::Peer(Peer::default())));
    }

    fn peer(&mut self, slot: u32) -> &mut Peer {
        match self.at(slot).http.as_deref_mut() {
            Some(Http::Peer(peer)) => peer,
            _ => panic!("phase Http has a peer"),
        }
    }

    /// Received bytes.
    #[cold]
    pub(in crate::shard) fn http(&mut self, slot: u32, mut bytes: &[u8]) {
        let generation = self.at(slot).generation;
        while self.is_read(slot, generation) {
            let peer = self.peer(slot);
            if !peer.is_reading() {
                return self.hold(slot, bytes);
            }
            match self.next_request(slot, &mut bytes) {
                Ok(true) => {}
                Ok(false) => return,
                Err(problem) => return self.refuse_with(slot, problem, false),
            }
        }
    }

    fn hold(&mut self, slot: u32, bytes: &[u8]) {
        let peer = self.peer(slot);
        if peer.held.len() + bytes.len() > HELD_BYTES_MAX {
            self.metrics.count(Counter::LimitReached);
            return self.hang_up(slot, 1008);
        }
        peer.held.extend_from_slice(bytes);
    }

    /// Takes the next part of a request. False: more must be received.
    fn next_request(&mut self, slot: u32, bytes: &mut &[u8]) -> Result<bool, Problem> {
        let peer = self.peer(slot);
        match peer.step {
            Step::Body(target, content) => match peer.reader.body(bytes)? {
                None => Ok(false),
                Some(body) => {
                    self.serve_request(slot, target, content, &body);
                    Ok(true)
                }
            },
            _ => {
                let was_idle = peer.reader.is_idle();
                let head = peer.reader.head(bytes)?;
                if was_idle && (head.is_some() || !peer.reader.is_idle()) {
                    self.set_deadline(slot, self.config.timeouts.login);
                }
                let Some(head) = head else { return Ok(false) };
                self.take_head(slot, &head)?;
                Ok(true)
            }
        }
    }

    /// A head that is right by itself. An error is answered before the connection is closed.
    fn take_head(&mut self, slot: u32, head: &Head) -> Result<(), Problem> {
        let listener = usize::from(self.at(slot).listener);
        let listener = &self.config.listeners[listener];
        let origin = head.origin.as_ref().map(|origin| origin.as_bytes());
        let admits = origin.is_none_or(|origin| listener.admits(origin));
        let names = origin.is_some_and(|origin| listener.names(origin));
        let message_max = listener.message_max as usize;
        let mut manner = Manner::of(head, admits, names);
        manner.keep_alive &= !self.draining;
        self.peer(slot).manner = manner;
        let target = match self.check_head(head, admits) {
            Ok(target) => target,
            Err(None) => {
                self.answer_preflight(slot, head);
                return Ok(());
            }
            // What follows a head without a body is another request. An answer to HEAD would be read as two.
            Err(Some(problem)) => {
                let is_whole = head.length.is_none() && head.method != Method::Other;
                self.refuse_with(slot, problem, is_whole);
                return Ok(());
            }
        };
        let bytes_max = match target.action {
            Action::Open => OPEN_BYTES_MAX,
            Action::Send => message_max,
            Action::Receive | Action::Close => EMPTY_BODY_BYTES_MAX,
        };
        let peer = self.peer(slot);
        peer.feeds = matches!(target.action, Action::Open | Action::Send);
        peer.reader.expect(head.length, bytes_max)?;
        peer.step = Step::Body(target, head.content);
        if head.expects_continue && !head.length.is_none() {
            let mut out = Vec::new();
            answer::go_on(&mut out);
            self.push_bytes(slot, &out);
        }
        Ok(())
    }

    /// What a head asks for, or why not; nothing for a browser that asks what a page may do.
    fn check_head(&mut self, head: &Head, admits: bool) -> Result<Target, Option<Problem>> {
        if !admits {
            return Err(Some(Problem::Origin));
        }
        let target = head.target.ok_or(Problem::Path)?;
        if head.method == Method::Options && head.length.is_none() {
            return Err(None);
        }
        if head.method != target.method() {
            return Err(Some(Problem::Method(target.method())));
        }
        match (target.action, target.id) {
            (Action::Open, _) if !head.content.suits(Serializer::Json) => Err(Some(Problem::MediaType)),
            (Action::Open | Action::Send, _) if head.length == Length::Unsaid => Err(Some(Problem::Length)),
            (Action::Open, _) => Ok(target),
            (_, Some(id)) if usize::from(id.shard) == self.me.index() => {
                self.transport_of(target.kind, id).map(|_| target).ok_or(Some(Problem::Transport))
            }
            (_, Some(id)) if usize::from(id.shard) < self.config.shards => Ok(target),
            _ => Err(Some(Problem::Transport)),
        }
    }

    fn answer_preflight(&mut self, slot: u32, head: &Head) {
        let wanted = head.target.map_or(Method::Post, |target| target.method());
        let mut out = Vec::new();
        answer::preflight(&self.peer(slot).manner, wanted, &mut out);
        self.answer_request(slot, &out);
    }

    /// A whole request.
    fn serve_request(&mut self, slot: u32, target: Target, content: Content, body: &[u8]) {
        let Target { kind, action, id } = target;
        let ask = match (action, id) {
            (Action::Send, Some(_)) => Ask::Send(content),
            (Action::Receive, Some(_)) => Ask::Receive,
            (Action::Close, Some(_)) => Ask::Close,
            _ => return self.open_for(slot, kind, body),
        };
        let Some(id) = id else { return };
        let poll = self.config.http.as_ref().map_or(Duration::ZERO, |http| http.settings.poll_timeout);
        let peer = self.peer(slot);
        peer.step = Step::Asked;
        peer.asked = Some((kind, id));
        // The transport answers in time; this one is for what nobody thought of.
        self.set_deadline(slot, poll + ASKED_TIME);
        let from = self.asker(slot);
        self.ask_transport(from, (kind, id), ask, body);
    }

    fn asker(&mut self, slot: u32) -> Asker {
        Asker { shard: self.me, slot, generation: self.at(slot).generation }
    }

    fn open_for(&mut self, slot: u32, kind: Kind, body: &[u8]) {
        let opening = match http::parse_open(kind, body) {
            Ok(opening) => opening,
            Err(problem) => return self.refuse_with(slot, problem, true),
        };
        match self.open_transport(slot, kind, opening) {
            None => self.refuse_with(slot, Problem::Unavailable, true),
            Some(id) => {
                let body = http::opened(opening, id);
                self.answer_with(slot, "200 OK", media_type(Serializer::Json), body.as_bytes());
            }
        }
    }

    /// A transport says something to the request in hand, or to one whose connection has ended: then it learns of that by
    /// itself.
    pub(super) fn told_peer(&mut self, slot: u32, generation: u32, tell: Tell, bytes: &[u8]) {
        match self.conn_mut(ConnId { slot, generation }) {
            Some(conn) if conn.phase == Phase::Http => {}
            _ => return,
        }
        let is_204 = self.is_204();
        let peer = self.peer(slot);
        if !matches!(peer.step, Step::Asked | Step::Stream) {
            return;
        }
        match tell {
            Tell::Messages(_) | Tell::Events => peer.carrying = true,
            Tell::Begin => {}
            Tell::Accepted | Tell::Empty | Tell::Refused(_) | Tell::End => peer.asked = None,
        }
        match tell {
            Tell::Accepted if !is_204 => self.answer_with(slot, "202 Accepted", "", &[]),
            Tell::Accepted | Tell::Empty => self.answer_with(slot, "204 No Content", "", &[]),
            Tell::Refused(problem) => self.refuse_with(slot, problem, true),
            Tell::Messages(serializer) => self.answer_with(slot, "200 OK", media_type(serializer), bytes),
            Tell::Begin => {
                peer.step = Step::Stream;
                let mut out = Vec::new();
                answer::begin_stream(&peer.manner, &mut out);
                self.push_bytes(slot, &out);
                self.set_deadline(slot, self.ping_interval());
            }
            Tell::Events => {
                let mut out = Vec::new();
                answer::stream(&peer.manner, bytes, &mut out);
                self.push_bytes(slot, &out);
            }
            Tell::End => {
                let mut out = Vec::new();
                answer::stream(&peer.manner, bytes, &mut out);
                answer::end_stream(&peer.manner, &mut out);
                // Before HTTP/1.1 the end of the connection is the end of the stream.
                peer.manner.keep_alive &= peer.manner.is_1_1;
                self.answer_request(slot, &out);
            }
        }
    }

    fn answer_with(&mut self, slot: u32, status: &str, media_type: &str, body: &[u8]) {
        let mut out = Vec::new();
        answer::write(&self.peer(slot).manner, status, media_type, body, &mut out);
        self.answer_request(slot, &out);
    }

    /// Answers with a refusal. `is_whole`: the next request can be found.
    fn refuse_with(&mut self, slot: u32, problem: Problem, is_whole: bool) {
        self.metrics.count(Counter::HttpRefused);
        let mut out = Vec::new();
        let manner = &mut self.peer(slot).manner;
        manner.keep_alive &= is_whole;
        answer::refuse(manner, problem, &mut out);
        self.answer_request(slot, &out);
    }

    /// Queues the end of the answer to the request in hand.
    fn answer_request(&mut self, slot: u32, bytes: &[u8]) {
        self.metrics.count(Counter::HttpRequests);
        self.push_bytes(slot, bytes);
        let peer = self.peer(slot);
        peer.step = Step::Answered;
        if peer.manner.keep_alive {
            self.set_deadline(slot, self.keep_alive());
        } else {
            self.hang_up(slot, 1000);
        }
    }

    /// What was accepted is answered so.
    fn is_204(&self) -> bool {
        self.config.http.as_ref().is_some_and(|http| http.settings.accepts_without_content)
    }

    fn keep_alive(&self) -> Duration {
        self.config.http.as_ref().map_or(Duration::ZERO, |http| http.settings.keep_alive)
    }

    fn ping_interval(&self) -> Duration {
        self.config.http.as_ref().map_or(Duration::ZERO, |http| http.settings.ping_interval)
    }

    /// Bytes went out.
    #[cold]
    pub(in crate::shard) fn sent_http(&mut self, slot: u32) {
        let conn = self.at(slot);
        if !conn.out.is_empty() || conn.transport_kind().is_some() {
            return;
        }
        let is_open = conn.phase == Phase::Http;
        let tick = self.tick;
        self.fed = ShardSet::EMPTY;
        self.at(slot).last_heard = tick;
        let from = self.asker(slot);
        let peer = self.peer(slot);
        if std::mem::take(&mut peer.carrying)
            && let Some(to) = peer.asked
        {
            if peer.step != Step::Stream {
                peer.asked = None;
            }
            self.ask_transport(from, to, Ask::Taken, &[]);
        }
        let peer = self.peer(slot);
        if is_open && peer.step == Step::Answered {
            peer.step = Step::Head;
            let held = std::mem::take(&mut peer.held);
            if !held.is_empty() {
                self.http(slot, &held);
            }
            self.hold_partial(ConnId { slot, generation: from.generation });
        }
    }

    pub(super) fn look_at_peer(&mut self, slot: u32) {
        let tick = self.tick;
        let conn = self.at(slot);
        let (deadline, phase, sending, last_heard) =
            (conn.deadline, conn.phase, conn.sending, conn.last_heard);
        if deadline > tick {
            return self.schedule(slot, deadline);
        }
        if phase != Phase::Http {
            return self.forget(slot);
        }
        let interval = Timers::<ConnId>::ticks(self.ping_interval());
        let patience: Tick = interval + Timers::<ConnId>::ticks(self.config.timeouts.ping_timeout);
        let peer = self.peer(slot);
        match peer.step {
            Step::Stream if sending && tick - last_heard >= patience => {
                self.metrics.count(Counter::PingTimeouts);
                self.forget(slot);
            }
            Step::Stream => {
                let mut out = Vec::new();
                answer::stream(&peer.manner, answer::COMMENT, &mut out);
                if !sending {
                    self.push_bytes(slot, &out);
                }
                self.at(slot).deadline = tick + interval;
                self.schedule(slot, tick + interval);
            }
            Step::Head | Step::Body(..) if !peer.reader.is_idle() => {
                peer.manner = Manner::CLOSING;
                self.metrics.count(Counter::LoginTimeouts);
                self.at(slot).scheduled = Tick::MAX;
                self.refuse_with(slot, Problem::Slow, false);
            }
            _ => self.forget(slot),
        }
    }

    /// A connection with requests ended: a transport that was asked for it must not wait for it.
    ///
    /// `is_handed`: all that was to be sent is with the driver, which has not said that it failed. A client that has read its
    /// answer may close before that is known to be sent, so then it counts as taken: nothing comes twice.
    pub(super) fn forgotten_peer(&mut self, slot: u32, generation: u32, peer: &Peer, is_handed: bool) {
        if let Some(to) = peer.asked {
            let from = Asker { shard: self.me, slot, generation };
            if peer.carrying && is_handed {
                self.ask_transport(from, to, Ask::Taken, &[]);
            }
            self.ask_transport(from, to, Ask::Gone, &[]);
        }
    }

    /// The node drains; `wait` is what is left of the time for it.
    pub(in crate::shard) fn drain_peer(&mut self, slot: u32, wait: Duration) {
        let peer = self.peer(slot);
        let is_idle = peer.step == Step::Head && peer.reader.is_idle();
        peer.manner.keep_alive = false;
        self.set_deadline(slot, if is_idle { wait.min(DRAIN_TIME) } else { wait });
    }

    /// There is no memory left for what comes in pieces.
    pub(in crate::shard) fn refuse_request(&mut self, slot: u32) {
        let peer = self.peer(slot);
        if peer.is_reading() {
            self.refuse_with(slot, Problem::Unavailable, false);
        } else {
            self.hang_up(slot, 1008);
        }
        let peer = self.peer(slot);
        (peer.reader, peer.held) = (Reader::default(), Vec::new());
    }
}
