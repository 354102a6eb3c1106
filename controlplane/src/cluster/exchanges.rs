//! With whom objects are compared, and when. Sans-IO.
//!
//! ```text
//! link up, owed ─▶ soon ─┐
//! exchange_timer ────────┴▶ Start ─▶ (store) ─▶ question ─▶ peer's store ─▶ answer ─▶ Step ─▶ (store) ─▶ ... ─▶ Ended
//! ```
//! What goes to a peer with which an exchange of ours has ended is held back beyond so many bytes a second. A peer that has come
//! up is given all it lacks at once: that is how nodes join and cuts heal.
//!
//! On the wire: `0 message` (see [`crate::replica::message`]), `1 round u64` too busy to answer, `2 round u64` the asker is done.
//!
//! Invariants: one exchange of ours at a time; [`INBOUND_MAX`] of others'; what the asker sent is answered in its order; a peer
//! that is owed an exchange gets it or goes; what is held back is bounded by [`HELD_MAX`].

use super::budget::Budget;
use super::{GREET_DELAY, HELD_MAX, HELD_TIME_MAX, INBOUND_MAX, RETRY_MIN};
use crate::replica::exchange::{Exchange, ExchangeError, Next, STEP_TIMEOUT, Tally};
use crate::replica::message::{Body, Message};
use crate::store::record::{Reader, RecordError, require};
use bytes::Bytes;
use common::ids::NodeId;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// What the scheduler is made from.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `aae.enabled`
    pub enabled: bool,
    /// `aae.exchange_timer`: a node exchanges with one other in this time, give or take a fifth.
    pub timer: Duration,
    /// `aae.data_exchange_timeout`
    pub timeout: Duration,
    /// `aae.exchange_rate`, bytes a second
    pub rate: u64,
    /// Of all random choices, and of the numbers of rounds.
    pub seed: u64,
}

/// What is to be done.
#[derive(Debug)]
pub enum Todo {
    /// Ask the store to begin; then [`Exchanges::started`].
    Start {
        peer: NodeId,
        round: u64,
    },
    /// Ask the store to take an answer; then [`Exchanges::stepped`].
    Step {
        peer: NodeId,
        exchange: Box<Exchange>,
        message: Message,
    },
    /// Ask the store to answer; then [`Exchanges::answered`].
    Answer {
        peer: NodeId,
        message: Message,
    },
    Send {
        to: NodeId,
        bytes: Bytes,
    },
    /// An exchange of ours ended: both sides have what either had when it was compared.
    Ended {
        peer: NodeId,
        tally: Tally,
    },
    Aborted {
        peer: NodeId,
        why: Abort,
    },
}

/// An exchange and what its last answer led to.
pub type Step = (Box<Exchange>, Result<Option<Next>, ExchangeError>);

/// Why an exchange of ours broke off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Abort {
    #[error("no answer in time")]
    TimedOut,
    #[error("an answer that does not fit the question")]
    Unexpected,
    #[error("the peer has enough to do")]
    Busy,
    #[error("the link is gone")]
    Down,
    #[error("the peer refuses: it has another env, or begins anew")]
    Refused,
    #[error("the objects here begin anew")]
    Anew,
    #[error("the store cannot do its part")]
    Store,
}

impl Abort {
    pub const ALL: [Self; 7] =
        [Self::TimedOut, Self::Unexpected, Self::Busy, Self::Down, Self::Refused, Self::Anew, Self::Store];

    /// The label of the metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TimedOut => "timeout",
            Self::Unexpected => "unexpected",
            Self::Busy => "busy",
            Self::Down => "down",
            Self::Refused => "refused",
            Self::Anew => "anew",
            Self::Store => "store",
        }
    }
}

/// What happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    pub begun: u64,
    pub ended: u64,
    /// By the order of [`Abort::ALL`].
    pub aborted: [u64; Abort::ALL.len()],
    /// Those that found a difference.
    pub divergent: u64,
    /// Records sent in exchanges of ours, and records either side refused.
    pub sent: u64,
    pub refused: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Messages that had to wait, and answers that were not given because they would have waited too long.
    pub held: u64,
    pub too_busy: u64,
}

#[derive(Debug)]
pub struct Exchanges {
    settings: Settings,
    rng: SmallRng,
    peers: BTreeMap<NodeId, Peer>,
    outbound: Option<Outbound>,
    /// Whom we answer, and until when that counts.
    inbound: BTreeMap<NodeId, Instant>,
    budget: Budget<Held>,
    next_at: Instant,
    rounds_last: u64,
    todo: VecDeque<Todo>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Peer {
    /// It is owed an exchange, at this time.
    soon: Option<Instant>,
    /// When the last one of ours ended.
    synced: Option<Instant>,
    failures: u32,
}

/// A message that waits for its turn.
#[derive(Debug)]
struct Held {
    to: NodeId,
    /// In an exchange of ours.
    is_ours: bool,
    bytes: Bytes,
}

#[derive(Debug)]
struct Outbound {
    peer: NodeId,
    round: u64,
    began: Instant,
    /// Its message waits for its turn.
    is_held: bool,
    /// None: it is at the store.
    exchange: Option<Box<Exchange>>,
}

impl Exchanges {
    pub fn new(now: Instant, settings: Settings) -> Self {
        Self {
            settings,
            rng: SmallRng::seed_from_u64(settings.seed),
            peers: BTreeMap::new(),
            outbound: None,
            inbound: BTreeMap::new(),
            budget: Budget::new(now, settings.rate),
            next_at: now + settings.timer,
            rounds_last: settings.seed,
            todo: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// A link has come up. `at_once`: this node joins and cannot wait for its turn.
    pub fn up(&mut self, now: Instant, peer: NodeId, at_once: bool) {
        let pause = if at_once { Duration::ZERO } else { self.about(GREET_DELAY) };
        let soon = self.settings.enabled.then_some(now + pause);
        self.peers.insert(peer, Peer { soon, ..Peer::default() });
    }

    pub fn down(&mut self, now: Instant, peer: NodeId) {
        self.peers.remove(&peer);
        self.inbound.remove(&peer);
        self.budget.retain(|held| held.to != peer);
        if self.outbound.as_ref().is_some_and(|outbound| outbound.peer == peer) {
            self.abort(now, Abort::Down);
        }
    }

    /// Something may have been lost between this peer and us.
    pub fn owe(&mut self, now: Instant, peer: NodeId) {
        if let Some(peer) = self.peers.get_mut(&peer).filter(|_| self.settings.enabled) {
            peer.soon = Some(peer.soon.map_or(now, |soon| soon.min(now)));
        }
    }

    /// A frame of `from` has come. On error nothing was changed.
    pub fn frame(&mut self, now: Instant, from: NodeId, bytes: &[u8]) -> Result<(), RecordError> {
        let (kind, rest) = bytes.split_first().ok_or(RecordError::Form("an empty frame"))?;
        let round = |rest| -> Result<u64, RecordError> {
            let mut reader = Reader(rest);
            let round = reader.u64()?;
            require(reader.0.is_empty(), "bytes after the end")?;
            Ok(round)
        };
        let message = match kind {
            0 => Message::decode(rest)?,
            1 => {
                let round = round(rest)?;
                if self.outbound.as_ref().is_some_and(|ours| (ours.peer, ours.round) == (from, round)) {
                    self.abort(now, Abort::Busy);
                }
                return Ok(());
            }
            2 => {
                round(rest)?;
                self.inbound.remove(&from);
                self.budget.retain(|held| held.to != from || held.is_ours);
                return Ok(());
            }
            _ => return Err(RecordError::Form("type of frame")),
        };
        if !self.peers.contains_key(&from) {
            return Ok(());
        }
        self.counts.bytes_in += bytes.len() as u64;
        if is_question(&message.body) {
            self.question(now, from, message)
        } else {
            self.answer(from, message)
        }
        Ok(())
    }

    /// The store has begun the exchange of `round`, or could not.
    pub fn started(&mut self, now: Instant, round: u64, begun: Option<(Box<Exchange>, Message)>) {
        let Some(outbound) = self.outbound.as_mut().filter(|ours| ours.round == round) else { return };
        match begun {
            Some((exchange, message)) => {
                outbound.exchange = Some(exchange);
                self.ask(now, &message);
            }
            None => self.abort(now, Abort::Store),
        }
    }

    /// The store has taken an answer in the exchange of `round`; none: it could not.
    pub fn stepped(&mut self, now: Instant, round: u64, stepped: Option<Step>) {
        let Some(outbound) = self.outbound.as_mut().filter(|ours| ours.round == round) else { return };
        match stepped {
            Some((exchange, Ok(next))) => {
                outbound.exchange = Some(exchange);
                match next {
                    Some(Next::Send(message)) => self.ask(now, &message),
                    Some(Next::Done(tally)) => self.ended(now, tally),
                    None => {}
                }
            }
            Some((_, Err(ExchangeError::TimedOut))) => self.abort(now, Abort::TimedOut),
            Some((_, Err(ExchangeError::Unexpected))) => self.abort(now, Abort::Unexpected),
            Some((_, Err(ExchangeError::Refused(_)))) => self.abort(now, Abort::Refused),
            Some((_, Err(ExchangeError::Stale(_) | ExchangeError::NewEpoch))) => self.abort(now, Abort::Anew),
            Some((_, Err(ExchangeError::Unreadable(_)))) | None => self.abort(now, Abort::Store),
        }
    }

    /// The store has answered a question of `peer`; no reply: it could not, or there is nothing to say.
    pub fn answered(&mut self, now: Instant, peer: NodeId, reply: Option<Message>) {
        let Some(message) = reply.filter(|_| self.peers.contains_key(&peer)) else { return };
        if matches!(message.body, Body::Shards { bits: 0, .. } | Body::Refused(_)) {
            self.inbound.remove(&peer);
        }
        let bytes = packed(&message);
        if self.may_go(now, peer, bytes.len()) {
            self.send(peer, bytes);
        } else if self.budget.len() >= HELD_MAX || self.budget.delay(now) > HELD_TIME_MAX {
            self.counts.too_busy += 1;
            self.unanswered(peer, message.round);
        } else {
            if let Some(until) = self.inbound.get_mut(&peer) {
                *until = now + self.budget.delay(now) + STEP_TIMEOUT;
            }
            self.hold(Held { to: peer, is_ours: false, bytes });
        }
    }

    /// A question was not put to the store because it has enough to do.
    pub fn unanswered(&mut self, peer: NodeId, round: u64) {
        self.inbound.remove(&peer);
        self.say(peer, 1, round);
    }

    /// The deadline has passed.
    pub fn timeout(&mut self, now: Instant) {
        self.inbound.retain(|_, until| *until > now);
        while let Some(Held { to, is_ours, bytes }) = self.budget.pop(now) {
            if let Some(outbound) = self.outbound.as_mut().filter(|_| is_ours) {
                outbound.is_held = false;
                outbound.exchange.iter_mut().for_each(|exchange| exchange.sent(now));
            }
            self.send(to, bytes);
        }
        if self.outbound_deadline().is_some_and(|at| at <= now) {
            self.abort(now, Abort::TimedOut);
        }
        if self.outbound.is_some() {
            return;
        }
        let due = self.peers.iter().filter_map(|(node, peer)| Some((peer.soon?, *node))).min();
        let owed = due.filter(|(at, _)| *at <= now).map(|(_, node)| node);
        let next = match owed {
            Some(node) => Some(node),
            None if self.settings.enabled && self.next_at <= now => {
                self.next_at = now + self.settings.timer.mul_f64(self.rng.random_range(0.8..1.2));
                self.peers.iter().min_by_key(|(_, peer)| peer.synced).map(|(node, _)| *node)
            }
            None => None,
        };
        if let Some(node) = next {
            self.begin(now, node);
        }
    }

    /// When to call [`Exchanges::timeout`].
    pub fn deadline(&self) -> Option<Instant> {
        let held = self.budget.deadline();
        if self.outbound.is_some() {
            return self.outbound_deadline().into_iter().chain(held).min();
        }
        let soon = self.peers.values().filter_map(|peer| peer.soon).min();
        let timer = (self.settings.enabled && !self.peers.is_empty()).then_some(self.next_at);
        soon.into_iter().chain(timer).chain(held).min()
    }

    pub fn poll(&mut self) -> Option<Todo> {
        self.todo.pop_front()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// With whom one of ours is under way.
    pub fn running(&self) -> Option<NodeId> {
        self.outbound.as_ref().map(|outbound| outbound.peer)
    }

    /// Of others, under way.
    pub fn inbound(&self) -> usize {
        self.inbound.len()
    }

    /// Peers that are owed one.
    pub fn queued(&self) -> usize {
        self.peers.values().filter(|peer| peer.soon.is_some()).count()
    }

    pub fn is_owed(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.soon.is_some())
    }

    /// When the last exchange of ours with a peer ended, since the link to it came up.
    pub fn synced(&self, peer: NodeId) -> Option<Instant> {
        self.peers.get(&peer)?.synced
    }

    fn begin(&mut self, now: Instant, peer: NodeId) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.soon = None;
        self.rounds_last = self.rounds_last.wrapping_add(1);
        let round = self.rounds_last;
        self.counts.begun += 1;
        self.outbound = Some(Outbound { peer, round, began: now, is_held: false, exchange: None });
        self.todo.push_back(Todo::Start { peer, round });
    }

    fn question(&mut self, now: Instant, from: NodeId, message: Message) {
        self.inbound.retain(|_, until| *until > now);
        if !self.inbound.contains_key(&from) && self.inbound.len() >= INBOUND_MAX {
            return self.say(from, 1, message.round);
        }
        // Who asks has this long to go on.
        self.inbound.insert(from, now + STEP_TIMEOUT);
        self.todo.push_back(Todo::Answer { peer: from, message });
    }

    fn answer(&mut self, from: NodeId, message: Message) {
        let ours = |ours: &&mut Outbound| (ours.peer, ours.round) == (from, message.round);
        let Some(outbound) = self.outbound.as_mut().filter(ours) else { return };
        // While it is at the store, or its question waits, no answer is awaited: this is a copy.
        if let Some(exchange) = outbound.exchange.take_if(|_| !outbound.is_held) {
            self.todo.push_back(Todo::Step { peer: from, exchange, message });
        }
    }

    fn outbound_deadline(&self) -> Option<Instant> {
        let outbound = self.outbound.as_ref()?;
        let at_last = outbound.began + self.settings.timeout + STEP_TIMEOUT;
        let awaits = outbound.exchange.as_ref().filter(|_| !outbound.is_held);
        Some(awaits.map_or(at_last, |exchange| exchange.deadline()))
    }

    fn ended(&mut self, now: Instant, tally: Tally) {
        let Some(Outbound { peer, round, .. }) = self.outbound.take() else { return };
        self.counts.ended += 1;
        self.counts.divergent += u64::from(tally.shards > 0);
        self.counts.sent += u64::from(tally.sent);
        self.counts.refused += u64::from(tally.refused);
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.synced = Some(now);
            peer.failures = 0;
        }
        if tally.shards > 0 {
            self.say(peer, 2, round);
        }
        self.todo.push_back(Todo::Ended { peer, tally });
    }

    fn abort(&mut self, now: Instant, why: Abort) {
        let Some(Outbound { peer, round, .. }) = self.outbound.take() else { return };
        self.budget.retain(|held| !held.is_ours);
        self.counts.aborted[why as usize] += 1;
        let pause = match self.peers.get_mut(&peer) {
            Some(_) if why == Abort::Busy => RETRY_MIN,
            Some(state) => {
                state.failures = state.failures.saturating_add(1);
                let longer = RETRY_MIN.saturating_mul(1 << (state.failures - 1).min(16));
                longer.min(self.settings.timer)
            }
            None => Duration::ZERO,
        };
        let at = now + self.about(pause);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.soon = Some(state.soon.map_or(at, |soon| soon.min(at)));
            self.say(peer, 2, round);
        }
        self.todo.push_back(Todo::Aborted { peer, why });
    }

    /// Half to one and a half of it.
    fn about(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.rng.random_range(0.5..1.5))
    }

    /// The next message of the exchange of ours.
    fn ask(&mut self, now: Instant, message: &Message) {
        let Some(peer) = self.outbound.as_ref().map(|outbound| outbound.peer) else { return };
        let bytes = packed(message);
        if self.may_go(now, peer, bytes.len()) {
            return self.send(peer, bytes);
        }
        if let Some(outbound) = &mut self.outbound {
            outbound.is_held = true;
        }
        self.hold(Held { to: peer, is_ours: true, bytes });
    }

    /// Whether so many bytes go to a peer now. One with which nothing was compared since it came up is not made to wait.
    fn may_go(&mut self, now: Instant, peer: NodeId, bytes: usize) -> bool {
        let is_new = self.peers.get(&peer).is_some_and(|peer| peer.synced.is_none());
        is_new || self.budget.spend(now, bytes)
    }

    fn hold(&mut self, held: Held) {
        self.counts.held += 1;
        self.budget.push(held.bytes.len(), held);
    }

    fn send(&mut self, to: NodeId, bytes: Bytes) {
        self.counts.bytes_out += bytes.len() as u64;
        self.todo.push_back(Todo::Send { to, bytes });
    }

    fn say(&mut self, to: NodeId, kind: u8, round: u64) {
        let bytes = [&[kind][..], &round.to_le_bytes()].concat();
        self.counts.bytes_out += bytes.len() as u64;
        self.todo.push_back(Todo::Send { to, bytes: bytes.into() });
    }
}

fn packed(message: &Message) -> Bytes {
    [&[0][..], &message.encode()].concat().into()
}

fn is_question(body: &Body) -> bool {
    matches!(body, Body::Roots { .. } | Body::Buckets { .. } | Body::Rows { .. } | Body::Push(_))
}
