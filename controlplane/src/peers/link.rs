//! One connection between two control planes: handshake, frames, pings. A machine: bytes and `now` in, bytes and events out.
//!
//! ```text
//! dial ─▶ handshake ─▶ Event::Hello ─▶ (the table admits it) ─▶ frames, pings ─▶ End
//! accept ─▶ handshake ─▶ proof ─┘                            └─▶ goodbye
//! ```
//! The driver gives it bytes with [`Link::receive`], asks [`Link::poll`] for events until there is none, writes what
//! [`Link::transmit`] appends, and calls [`Link::timeout`] at [`Link::deadline`]. An [`End`] ends it; what [`Link::farewell`] then has is
//! written before the connection is closed, so that the peer learns the reason.
//!
//! Control pieces: `1 number u64` ping, `2 number u64` pong, `3 refusal u8` goodbye.

use super::hello::Hello;
use super::pieces::{Assembly, CONTROL, Queue, Whole, put_piece};
use super::{
    Channel, DownReason, HANDSHAKE_MAX, PING_PERIOD, READ_BYTES, READ_EARLY_BYTES, Refusal, SILENCE_MAX,
};
use bytes::{Buf, Bytes};
use common::ids::NodeId;
use common::noise::{self, Handshake, Progress, RECORD_PLAIN_BYTES_MAX, Terms, Transport};
use std::time::{Duration, Instant};

/// Who we are, for all links.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    pub terms: Terms,
    /// Its attempt is not looked at.
    pub hello: Hello,
}

/// What a link has to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The peer has proved that it holds a key of the cluster, and said who it is. Comes once, before any frame.
    Hello(Hello),
    Frame(Channel, Bytes),
}

/// Why a connection is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// We refuse it; `detail` may be empty.
    Refused {
        reason: Refusal,
        detail: String,
    },
    /// The peer says that it refuses us. Before the handshake is over anybody on the way can say so.
    RefusedByPeer(Refusal),
    Down(DownReason),
}

pub struct Link {
    stage: Stage,
    own: Hello,
    /// Who was dialled.
    expected: Option<NodeId>,
    peer: Option<Hello>,
    /// The peer's hello is to be told.
    news: bool,
    /// Bytes of the handshake to be sent.
    raw: Vec<u8>,
    assembly: Assembly,
    queue: Queue,
    goodbye: Option<Refusal>,
    pings: Pings,
    began: Instant,
    plain: Vec<u8>,
}

enum Stage {
    Handshake(Handshake),
    Open(Transport),
    Over,
}

/// Which pings are under way.
struct Pings {
    /// Of the last one.
    number: u64,
    /// To be sent.
    ping: bool,
    /// The answer to the peer's last one, to be sent.
    pong: Option<u64>,
    /// When the last one was sent that is not answered.
    asked_at: Option<Instant>,
    next_at: Instant,
    /// When the peer was heard, or we stood still.
    heard_at: Instant,
    /// We do not read, so we cannot hear.
    deaf: bool,
    rtt: Option<Duration>,
}

impl Link {
    /// A connection to `expected` begins. `entropy` is secret, random and used once; `attempt` grows with each call.
    pub fn dial(
        now: Instant,
        config: &LinkConfig,
        entropy: [u8; 32],
        expected: NodeId,
        attempt: u64,
    ) -> Self {
        let own = Hello { attempt, ..config.hello.clone() };
        let mut raw = vec![];
        let handshake = Handshake::initiator(config.terms.clone(), entropy, &own.encode(), &mut raw);
        Self { expected: Some(expected), raw, ..Self::new(now, own, handshake) }
    }

    /// A connection has come in. `entropy` as for [`Link::dial`].
    pub fn accept(now: Instant, config: &LinkConfig, entropy: [u8; 32]) -> Self {
        Self::new(now, config.hello.clone(), Handshake::responder(config.terms.clone(), entropy))
    }

    fn new(now: Instant, own: Hello, handshake: Handshake) -> Self {
        Self {
            stage: Stage::Handshake(handshake),
            own,
            expected: None,
            peer: None,
            news: false,
            raw: vec![],
            assembly: Assembly::default(),
            queue: Queue::default(),
            goodbye: None,
            pings: Pings {
                number: 0,
                ping: false,
                pong: None,
                asked_at: None,
                next_at: now,
                heard_at: now,
                deaf: false,
                rtt: None,
            },
            began: now,
            plain: vec![],
        }
    }

    /// How many bytes to read at a time.
    pub fn read_bytes_max(&self) -> usize {
        if matches!(self.stage, Stage::Open(_)) { READ_BYTES } else { READ_EARLY_BYTES }
    }

    /// Bytes have come, at most [`Link::read_bytes_max`]. To be followed by [`Link::poll`] until it returns none.
    ///
    /// # Errors
    /// The connection is over.
    pub fn receive(&mut self, now: Instant, mut bytes: &[u8]) -> Result<(), End> {
        while let Stage::Handshake(handshake) = &mut self.stage {
            match handshake.receive(&mut bytes) {
                Ok(Progress::More) => return Ok(()),
                Ok(Progress::Hello(hello)) => self.greeted(now, &hello)?,
                Ok(Progress::Done(transport)) => self.open(now, transport),
                Err(error) => return Err(self.reject(error)),
            }
        }
        let Stage::Open(transport) = &mut self.stage else { return Ok(()) };
        self.plain.clear();
        if transport.open(bytes, &mut self.plain).is_err() {
            return Err(self.violation("a record that is not authentic"));
        }
        if !self.plain.is_empty() {
            self.pings.heard_at = now;
            self.assembly.take(&self.plain);
        }
        Ok(())
    }

    fn greeted(&mut self, now: Instant, bytes: &[u8]) -> Result<(), End> {
        let Ok(mut hello) = Hello::decode(bytes) else {
            return Err(self.refused(Refusal::Malformed, String::new()));
        };
        let judged = self.judge(&hello);
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Handshake(handshake) if self.expected.is_some() => {
                judged?;
                hello.attempt = self.own.attempt;
                self.peer = Some(hello);
                let transport = handshake.confirm(&mut self.raw);
                self.open(now, transport);
            }
            Stage::Handshake(mut handshake) => {
                // It is told who we are even when we refuse it: it comes to the same conclusion, with the details.
                handshake.answer(&self.own.encode(), &mut self.raw);
                judged?;
                self.peer = Some(hello);
                self.stage = Stage::Handshake(handshake);
            }
            Stage::Open(_) | Stage::Over => unreachable!("hellos are part of the handshake"),
        }
        Ok(())
    }

    fn judge(&self, hello: &Hello) -> Result<(), End> {
        let refuse = |reason, detail| Err(End::Refused { reason, detail });
        if hello.common_protocol(&self.own).is_none() {
            let detail = format!(
                "{} of version {} speaks protocols {} to {}, this node {} to {}",
                hello.node,
                hello.version,
                hello.protocol.0,
                hello.protocol.1,
                self.own.protocol.0,
                self.own.protocol.1
            );
            return refuse(Refusal::Incompatible, detail);
        }
        if hello.node == self.own.node {
            return refuse(Refusal::Own, String::new());
        }
        match self.expected {
            Some(expected) if expected != hello.node => {
                refuse(Refusal::Stranger, format!("{} answers instead of {expected}", hello.node))
            }
            None if hello.node > self.own.node => refuse(Refusal::Turn, hello.node.to_string()),
            _ => Ok(()),
        }
    }

    fn open(&mut self, now: Instant, transport: Transport) {
        self.stage = Stage::Open(transport);
        self.news = true;
        self.pings.heard_at = now;
        self.pings.next_at = now;
    }

    /// What went wrong in the handshake, told to the peer where it may be.
    fn reject(&mut self, error: noise::NoiseError) -> End {
        self.stage = Stage::Over;
        if let noise::NoiseError::Refused(_) = error {
            return End::RefusedByPeer(error.into());
        }
        if let Some(refusal) = error.refusal().filter(|_| self.expected.is_none()) {
            self.raw.extend_from_slice(&refusal.bytes());
        }
        End::Refused { reason: error.into(), detail: error.to_string() }
    }

    fn refused(&mut self, reason: Refusal, detail: String) -> End {
        self.stage = Stage::Over;
        End::Refused { reason, detail }
    }

    fn violation(&mut self, what: &'static str) -> End {
        self.stage = Stage::Over;
        End::Down(DownReason::Violation(what))
    }

    /// The driver stops reading, because nobody takes what has come, or goes on: meanwhile the peer's silence is ours.
    pub fn set_deaf(&mut self, now: Instant, deaf: bool) {
        self.pings.deaf = deaf;
        self.pings.heard_at = now;
    }

    /// The next event, none when more bytes are needed.
    ///
    /// # Errors
    /// The connection is over.
    pub fn poll(&mut self, now: Instant) -> Result<Option<Event>, End> {
        if std::mem::take(&mut self.news) {
            return Ok(self.peer.clone().map(Event::Hello));
        }
        loop {
            match self.assembly.poll() {
                Ok(None) => return Ok(None),
                Ok(Some(Whole::Frame(channel, body))) => return Ok(Some(Event::Frame(channel, body))),
                Ok(Some(Whole::Control(body))) => self.control(now, body)?,
                Err(what) => return Err(self.violation(what)),
            }
        }
    }

    fn control(&mut self, now: Instant, mut body: Bytes) -> Result<(), End> {
        match (body.try_get_u8(), body.len()) {
            (Ok(PING), 8) => self.pings.pong = Some(body.get_u64()),
            (Ok(PONG), 8) => self.pings.answered(now, body.get_u64()),
            (Ok(GOODBYE), 1) => {
                let reason = Refusal::ALL.get(usize::from(body[0])).copied();
                self.stage = Stage::Over;
                return Err(reason.map_or(End::Down(DownReason::Closed), End::RefusedByPeer));
            }
            // Of a later version.
            (Ok(kind), _) if kind > GOODBYE => {}
            _ => return Err(self.violation("a control message of no use")),
        }
        Ok(())
    }

    /// The deadline has passed.
    ///
    /// # Errors
    /// The connection is over: the peer is too slow or was silent for too long.
    pub fn timeout(&mut self, now: Instant) -> Result<(), End> {
        match self.stage {
            Stage::Handshake(_) if now >= self.began + HANDSHAKE_MAX => {
                Err(self.refused(Refusal::Slow, String::new()))
            }
            Stage::Open(_) => {
                if self.pings.timeout(now) {
                    self.stage = Stage::Over;
                    return Err(End::Down(DownReason::Silent));
                }
                Ok(())
            }
            Stage::Handshake(_) | Stage::Over => Ok(()),
        }
    }

    /// When to call [`Link::timeout`].
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Handshake(_) => Some(self.began + HANDSHAKE_MAX),
            Stage::Open(_) => Some(self.pings.deadline()),
            Stage::Over => None,
        }
    }

    /// Queues a frame. False when there is no room for it or the connection is over: the sender still owes it.
    ///
    /// # Panics
    /// When `body` is longer than [`super::FRAME_BYTES_MAX`].
    pub fn send(&mut self, channel: Channel, body: Bytes) -> bool {
        matches!(self.stage, Stage::Open(_)) && self.goodbye.is_none() && self.queue.push(channel, body)
    }

    /// The peer is refused after the handshake; [`Link::farewell`] will tell it.
    pub fn refuse(&mut self, reason: Refusal) {
        self.goodbye = Some(reason);
    }

    /// Appends what is to be sent, at most one record at a time.
    pub fn transmit(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.raw);
        let Stage::Open(transport) = &mut self.stage else { return };
        self.plain.clear();
        let pings = &mut self.pings;
        if let Some(number) = pings.pong.take() {
            put_numbered(PONG, number, &mut self.plain);
        }
        if std::mem::take(&mut pings.ping) {
            put_numbered(PING, pings.number, &mut self.plain);
        }
        self.queue.fill(&mut self.plain, RECORD_PLAIN_BYTES_MAX);
        transport.seal(&self.plain, out);
    }

    /// Ends the connection: appends what tells the peer why it is refused, or nothing.
    pub fn farewell(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.raw);
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        if let (Stage::Open(mut transport), Some(reason)) = (stage, self.goodbye) {
            let mut plain = vec![];
            put_piece(CONTROL, &[GOODBYE, reason as u8], &mut plain);
            transport.seal(&plain, out);
        }
    }

    /// Smoothed round-trip time; none before the first answer.
    pub fn rtt(&self) -> Option<Duration> {
        self.pings.rtt
    }

    /// What is queued, overhead included.
    pub fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// Bytes kept of what came and is incomplete.
    pub fn held_bytes(&self) -> usize {
        let stream = match &self.stage {
            Stage::Handshake(handshake) => handshake.held_bytes(),
            Stage::Open(transport) => transport.held_bytes(),
            Stage::Over => 0,
        };
        stream + self.assembly.held_bytes()
    }
}

impl Pings {
    fn answered(&mut self, now: Instant, number: u64) {
        if number != self.number {
            return;
        }
        let Some(asked_at) = self.asked_at.take() else { return };
        let sample = now.saturating_duration_since(asked_at);
        // RFC 6298, section 2: alpha is 1/8.
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
    }

    /// True when the peer was silent for too long.
    fn timeout(&mut self, now: Instant) -> bool {
        // Time in which this process did not run is not held against the peer: what it sent waits in the socket.
        if now.saturating_duration_since(self.deadline()) > STALL_MIN {
            self.heard_at = now;
        }
        if self.silent_at().is_some_and(|at| at <= now) {
            return true;
        }
        if self.next_at <= now {
            self.next_at = now + PING_PERIOD;
            // Also when one is under way: a peer that cannot answer, because it is busy or we do not read, hears us.
            self.ping = true;
            if self.asked_at.is_none() {
                self.number += 1;
                self.asked_at = Some(now);
            }
        }
        false
    }

    fn silent_at(&self) -> Option<Instant> {
        let asked_at = self.asked_at.filter(|_| !self.deaf)?;
        Some(asked_at.max(self.heard_at) + SILENCE_MAX)
    }

    fn deadline(&self) -> Instant {
        self.silent_at().map_or(self.next_at, |at| at.min(self.next_at))
    }
}

fn put_numbered(kind: u8, number: u64, out: &mut Vec<u8>) {
    let mut body = [kind; 9];
    body[1..].copy_from_slice(&number.to_be_bytes());
    put_piece(CONTROL, &body, out);
}

const PING: u8 = 1;
const PONG: u8 = 2;
const GOODBYE: u8 = 3;
/// A deadline missed by more than this means that we stood still.
const STALL_MIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
