//! Many sessions that are ended together: killed by the meta API, with their realm, or because the shard drains.
//!
//! To end a session is to say so to its peers, to other shards and to the control plane, so it is done in slices, one a turn.
//! Sessions that join meanwhile are not meant; while a shard drains there are none. A drain goes on slot by slot beside the
//! endings that were begun, and what it has not come to is served as ever.

use super::Shard;
use super::conn::{Phase, Session};
use super::meta::Part;
use super::timers::{TICK, Tick, Timers};
use common::ids::ShardId;
use common::metrics::Counter;
use common::uri::wamp;
use std::collections::VecDeque;
use std::time::Duration;

/// Sessions ended in one turn.
const END_SLICE: usize = 32;
/// What counts as one session more, because it is given up, or published, with its session.
const REGISTRATIONS_PER_END: usize = 64;
const TESTAMENTS_PER_END: usize = 4;
const TESTAMENT_BYTES_PER_END: usize = 16 << 10;
/// Sessions, or connections, looked at in one turn.
const LOOK_SLICE: usize = 1_024;
/// Connections whose time has come that are looked at in one turn.
const DUE_SLICE: usize = 256;
/// Endings for which questions wait; more are refused.
const ENDINGS_MAX: usize = 64;
/// How long the connection of such a session may take to answer GOODBYE.
const GOODBYE_TIME: Duration = Duration::from_secs(2);

/// Which sessions of a realm are meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Whom {
    All,
    Authid(String),
    Authrole(String),
}

/// Sessions that are to end.
#[derive(Debug)]
pub(super) struct Ending {
    pub realm: u32,
    pub whom: Whom,
    /// Not this one.
    pub except: u64,
    pub reason: String,
    pub message: String,
    /// Nobody is left who could hear of it: there are no meta events and no testaments.
    pub silent: bool,
    /// Counted for each session.
    pub counter: Option<Counter>,
    /// Most ids in the answer.
    pub limit: usize,
    /// The shard that asked for it, and its question; none: nobody waits.
    pub asker: Option<(ShardId, u64)>,
}

/// An ending, and how far it has come.
#[derive(Debug)]
struct Begun {
    ending: Ending,
    /// Sessions that joined later are not meant; see [`Session::born`].
    before: u64,
    /// Sessions up to this id were looked at.
    after: u64,
    part: Part,
}

/// How far a drain has come.
#[derive(Debug)]
struct Drain {
    /// Connections in slots below this one were told.
    next: u32,
    /// Until when clients have time to answer GOODBYE, also those that are told late.
    until: Tick,
}

/// The endings of one shard, first come first.
#[derive(Debug, Default)]
pub(super) struct Endings {
    begun: VecDeque<Begun>,
    /// None: the shard does not drain, or everybody was told.
    drain: Option<Drain>,
}

impl Endings {
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.drain.is_none()
    }

    pub fn len(&self) -> usize {
        self.begun.len()
    }
}

/// What is left of a turn.
struct Budget {
    looks: usize,
    ends: usize,
}

impl Budget {
    const fn new() -> Self {
        Self { looks: LOOK_SLICE, ends: END_SLICE }
    }

    const fn is_spent(&self) -> bool {
        self.looks == 0 || self.ends == 0
    }
}

impl Shard {
    /// Ends the first of the sessions that are meant, and has the others wait for turns to come. What there is to say when that
    /// was all of them; else it is told to the asker later.
    pub(super) fn end_sessions(&mut self, ending: Ending) -> Option<Part> {
        if ending.asker.is_some() && self.endings.len() >= ENDINGS_MAX {
            self.metrics.count(Counter::LimitReached);
            return Some(Part { partial: true, ..Part::default() });
        }
        let mut begun = Begun { ending, before: self.token(), after: 0, part: Part::default() };
        if self.endings.is_empty() && self.end_some(&mut begun, &mut Budget::new()) {
            return Some(begun.part);
        }
        self.endings.begun.push_back(begun);
        None
    }

    /// Says GOODBYE to every session and refuses new connections. The first are told at once, the others in turns to come.
    pub(super) fn drain(&mut self) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        let wait = self.config.timeouts.drain.max(TICK);
        let until = self.tick + Timers::<super::ConnId>::ticks(wait);
        self.endings.drain = Some(Drain { next: 0, until });
        if self.endings.begun.is_empty() {
            self.drain_some(&mut Budget::new());
        }
    }

    /// One turn's share of what waits.
    pub(super) fn go_on_ending(&mut self) {
        let mut budget = Budget::new();
        while !budget.is_spent()
            && let Some(mut begun) = self.endings.begun.pop_front()
        {
            if !self.end_some(&mut begun, &mut budget) {
                self.endings.begun.push_front(begun);
                return;
            }
            let Begun { ending, part, .. } = begun;
            if let Some((shard, token)) = ending.asker {
                self.tell_shard(shard, token, part);
            }
        }
        self.drain_some(&mut budget);
    }

    /// Tells the connections that come next that the node shuts down.
    fn drain_some(&mut self, budget: &mut Budget) {
        let Some(Drain { mut next, until }) = self.endings.drain.take() else { return };
        while !budget.is_spent() {
            if next as usize >= self.conns.len() {
                return;
            }
            budget.looks -= 1;
            budget.ends = budget.ends.saturating_sub(self.weight_of(next));
            self.drain_one(next, until);
            next += 1;
        }
        self.endings.drain = Some(Drain { next, until });
    }

    /// As how many sessions the end of a connection counts.
    fn weight_of(&self, slot: u32) -> usize {
        let Some(Some(conn)) = self.conns.get(slot as usize) else { return 0 };
        let Some(session) = &conn.session else { return 1 };
        let (registrations, testaments) = (session.registrations.len(), &session.testaments);
        1 + registrations / REGISTRATIONS_PER_END
            + testaments.len() / TESTAMENTS_PER_END
            + testaments.bytes() / TESTAMENT_BYTES_PER_END
    }

    fn drain_one(&mut self, slot: u32, until: Tick) {
        let Some(Some(conn)) = self.conns.get(slot as usize) else { return };
        let phase = conn.phase;
        let left = TICK * until.saturating_sub(self.tick).max(1);
        match phase {
            Phase::Open => {
                self.leave(slot, wamp::SYSTEM_SHUTDOWN, "the node is shutting down");
                self.drain_transport(slot);
                self.set_deadline(slot, left);
            }
            // The session says GOODBYE where it is.
            Phase::Carrying if self.carries_own(slot) => {}
            Phase::Opening | Phase::Login | Phase::Resuming | Phase::Carrying | Phase::Echo => {
                self.hang_up(slot, 1001);
            }
            Phase::Http => self.drain_peer(slot, left),
            Phase::Leaving | Phase::Flushing | Phase::Lingering => {}
        }
    }

    /// True: all are ended.
    fn end_some(&mut self, begun: &mut Begun, budget: &mut Budget) -> bool {
        while !budget.is_spent() {
            let Some((id, slot)) = self.ids.session_after(begun.after) else {
                begun.part.bound(begun.ending.limit);
                return true;
            };
            begun.after = id;
            budget.looks -= 1;
            if self.is_meant(slot, begun) {
                budget.ends = budget.ends.saturating_sub(self.weight_of(slot));
                begun.part.count += 1;
                // One more than is wanted shows that there are more.
                if begun.part.ids[0].len() <= begun.ending.limit {
                    begun.part.ids[0].push(id);
                }
                self.end_one(slot, &begun.ending);
            }
        }
        false
    }

    /// One turn's share of the connections whose time has come. Those of many sessions may come in one tick: they began together,
    /// or were told to end together.
    pub(super) fn look_at_due(&mut self) {
        if self.due.is_empty() {
            self.timers.advance(self.tick, &mut self.due);
        }
        let before = self.sessions;
        for _ in 0..DUE_SLICE {
            if before.saturating_sub(self.sessions) >= END_SLICE as u32 {
                return;
            }
            let Some(conn) = self.due.pop() else { return };
            self.look_at(conn);
        }
    }

    fn is_meant(&self, slot: u32, Begun { ending, before, .. }: &Begun) -> bool {
        let Some(Some(conn)) = self.conns.get(slot as usize) else { return false };
        let Some(session) = conn.session.as_deref().filter(|_| conn.phase == Phase::Open) else {
            return false;
        };
        let Session { id, realm, born, ref identity, .. } = *session;
        let is_whom = match &ending.whom {
            Whom::All => true,
            Whom::Authid(authid) => *identity.authid == **authid,
            Whom::Authrole(authrole) => identity.authrole == *authrole,
        };
        realm == ending.realm && born < *before && id != ending.except && is_whom
    }

    fn end_one(&mut self, slot: u32, ending: &Ending) {
        if ending.silent {
            let session = self.session(slot);
            session.silent = true;
            session.testaments.clear();
        }
        if let Some(counter) = ending.counter {
            self.metrics.count(counter);
        }
        self.leave(slot, &ending.reason, &ending.message);
        self.set_deadline(slot, GOODBYE_TIME);
    }
}
