//! Which connections there are and which of them counts. A machine: members and what became of connections in, dials and
//! closes out.
//!
//! ```text
//! members ──▶ row of a node: dialing ─▶ waiting ─▶ link ──▶ Up ... Down
//! accepted connections ─────────────────▶┘
//! ```
//! Of two nodes the one with the smaller id dials. It has one connection under way at a time, and numbers them; so of two
//! that prove to be from one life of a node the one with the greater number is the one it still holds, whatever the order in
//! which they arrive. A connection of a node that membership does not (yet) know to live in that life waits for a while.
//!
//! Invariants: at most [`NODES_MAX`] rows of nodes that live and [`STRANGERS_MAX`] of others; `Up` and `Down` of a node alternate; a link is replaced only after its `Down`.

use super::hello::Hello;
use super::{DownReason, Refusal, UNKNOWN_MAX};
use common::ids::{NODES_MAX, NodeId};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// One connection, for as long as the table lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(pub u64);

/// A node that membership says lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Live {
    pub node: NodeId,
    /// Of its control plane.
    pub epoch: u64,
    pub address: SocketAddr,
}

/// What the driver does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Connect; report with [`Table::hello`] or [`Table::closed`].
    Dial { connection: ConnectionId, node: NodeId, address: SocketAddr, attempt: u64 },
    /// Its frames are wanted from now on.
    Up { connection: ConnectionId, hello: Hello },
    /// The node's link is no more; its connection is closed already.
    Down { node: NodeId, reason: DownReason },
    /// Tell the peer why, and close; report with [`Table::closed`].
    Refuse { connection: ConnectionId, reason: Refusal, detail: String },
    /// Close; report with [`Table::closed`].
    Close { connection: ConnectionId },
}

pub struct Table {
    own: NodeId,
    rows: BTreeMap<NodeId, Row>,
    connections_last: u64,
    attempts_last: u64,
    jitter: SmallRng,
    outputs: VecDeque<Output>,
}

#[derive(Default)]
struct Row {
    live: Option<Live>,
    dialing: Option<(ConnectionId, SocketAddr)>,
    waiting: Option<Waiting>,
    link: Option<Current>,
    /// When to dial next, if it is on us.
    dial_at: Option<Instant>,
    failures: u32,
}

struct Waiting {
    connection: ConnectionId,
    hello: Hello,
    until: Instant,
}

struct Current {
    connection: ConnectionId,
    /// The peer's epoch and the attempt.
    life: (u64, u64),
    since: Instant,
    /// It is being closed.
    closing: Option<DownReason>,
}

impl Table {
    pub fn new(own: NodeId, seed: u64) -> Self {
        Self {
            own,
            rows: BTreeMap::new(),
            connections_last: 0,
            attempts_last: 0,
            jitter: SmallRng::seed_from_u64(seed),
            outputs: VecDeque::new(),
        }
    }

    /// A name for a connection that has come in.
    pub fn accepted(&mut self) -> ConnectionId {
        self.connections_last += 1;
        ConnectionId(self.connections_last)
    }

    /// All nodes that live, as membership has it now.
    pub fn members(&mut self, now: Instant, live: &[Live]) {
        for row in self.rows.values_mut() {
            row.live = None;
        }
        for live in live.iter().filter(|live| live.node != self.own).take(NODES_MAX) {
            self.rows.entry(live.node).or_default().live = Some(*live);
        }
        self.settle_all(now);
    }

    /// The peer of a connection has proved who it is.
    pub fn hello(&mut self, now: Instant, connection: ConnectionId, hello: Hello) {
        let node = hello.node;
        if !self.rows.contains_key(&node) {
            let strangers = self.rows.values().filter(|row| row.live.is_none()).count();
            if strangers >= STRANGERS_MAX {
                return self.refuse(now, connection, Refusal::Full, &hello);
            }
        }
        let row = self.rows.entry(node).or_default();
        let dialed = row.dialing.take_if(|(dialing, _)| *dialing == connection).is_some();
        let current = row.link.as_ref().filter(|link| link.closing.is_none()).map(|link| link.life);
        let waiting = row.waiting.as_ref().map(|waiting| life(&waiting.hello));
        // One that we dialled and have given up may still prove itself.
        if (self.own < node && !dialed) || current.max(waiting) >= Some(life(&hello)) {
            self.refuse(now, connection, Refusal::Stale, &hello);
        } else {
            let old = row.waiting.replace(Waiting { connection, hello, until: now + UNKNOWN_MAX });
            if let Some(old) = old {
                self.refuse(now, old.connection, Refusal::Stale, &old.hello);
            }
        }
        self.settle(now, node);
    }

    /// A connection is no more, whoever ended it; or it could not be made.
    pub fn closed(&mut self, now: Instant, connection: ConnectionId, reason: DownReason) {
        let Some(node) = self.node_of(connection) else { return };
        let row = self.rows.get_mut(&node).expect("node_of() found it");
        let is = |known: ConnectionId| known == connection;
        if row.waiting.as_ref().is_some_and(|waiting| is(waiting.connection)) {
            row.waiting = None;
            row.failures = row.failures.saturating_add(1);
        } else if row.dialing.is_some_and(|(dialing, _)| is(dialing)) {
            row.dialing = None;
            row.failures = row.failures.saturating_add(1);
        } else if let Some(link) = row.link.take_if(|link| is(link.connection)) {
            let steady = now.saturating_duration_since(link.since) >= STEADY_MIN;
            row.failures = if steady { 0 } else { row.failures.saturating_add(1) };
            self.outputs.push_back(Output::Down { node, reason: link.closing.unwrap_or(reason) });
        }
        self.pause(now, node);
        self.settle(now, node);
    }

    /// The link to `node` is not wanted as it is; a new one is made.
    pub fn close(&mut self, now: Instant, node: NodeId) {
        if let Some(row) = self.rows.get_mut(&node) {
            end(row, DownReason::Asked, &mut self.outputs);
            self.settle(now, node);
        }
    }

    /// The deadline has passed.
    pub fn timeout(&mut self, now: Instant) {
        let late = |row: &Row| row.waiting.as_ref().is_some_and(|waiting| waiting.until <= now);
        let late: Vec<_> = self.rows.iter().filter(|(_, row)| late(row)).map(|(node, _)| *node).collect();
        for node in late {
            let waiting = self.rows.get_mut(&node).and_then(|row| row.waiting.take());
            if let Some(Waiting { connection, hello, .. }) = waiting {
                self.refuse(now, connection, Refusal::Unknown, &hello);
            }
        }
        self.settle_all(now);
    }

    /// When to call [`Table::timeout`].
    pub fn deadline(&self) -> Option<Instant> {
        let row = |row: &Row| {
            let dial = row.dial_at.filter(|_| row.may_dial());
            let until = row.waiting.as_ref().map(|waiting| waiting.until);
            dial.into_iter().chain(until).min()
        };
        self.rows.values().filter_map(row).min()
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn node_of(&self, connection: ConnectionId) -> Option<NodeId> {
        let has = |row: &Row| {
            let waiting = row.waiting.as_ref().map(|waiting| waiting.connection);
            let link = row.link.as_ref().map(|link| link.connection);
            [row.dialing.map(|(dialing, _)| dialing), waiting, link].contains(&Some(connection))
        };
        self.rows.iter().find(|(_, row)| has(row)).map(|(node, _)| *node)
    }

    /// A connection that has no place in its row any more is sent away.
    fn refuse(&mut self, now: Instant, connection: ConnectionId, reason: Refusal, hello: &Hello) {
        if let Some(row) = self.rows.get_mut(&hello.node) {
            row.failures = row.failures.saturating_add(1);
            self.pause(now, hello.node);
        }
        let detail = format!("{} of epoch {}", hello.node, hello.epoch);
        self.outputs.push_back(Output::Refuse { connection, reason, detail });
    }

    fn settle_all(&mut self, now: Instant) {
        let nodes: Vec<_> = self.rows.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.settle(now, node));
    }

    /// Does what follows from a row.
    fn settle(&mut self, now: Instant, node: NodeId) {
        let Some(row) = self.rows.get_mut(&node) else { return };
        let live = row.live;
        if let Some(epoch) = row.link.as_ref().map(|link| link.life.0) {
            match live {
                None => end(row, DownReason::Gone, &mut self.outputs),
                Some(live) if live.epoch != epoch => end(row, DownReason::Renewed, &mut self.outputs),
                // It stays until the new one may take its place.
                Some(live) => {
                    if row.waiting.as_ref().is_some_and(|waiting| waiting.hello.epoch == live.epoch) {
                        end(row, DownReason::Replaced, &mut self.outputs);
                    }
                }
            }
        }
        let old = |waiting: &mut Waiting| live.is_some_and(|live| waiting.hello.epoch < live.epoch);
        if let Some(Waiting { connection, hello, .. }) = row.waiting.take_if(old) {
            self.refuse(now, connection, Refusal::Stale, &hello);
            return self.settle_dial(now, node);
        }
        let fits = |waiting: &mut Waiting| live.is_some_and(|live| waiting.hello.epoch == live.epoch);
        if row.link.is_none()
            && let Some(waiting) = row.waiting.take_if(fits)
        {
            let Waiting { connection, hello, .. } = waiting;
            row.link = Some(Current { connection, life: life(&hello), since: now, closing: None });
            self.outputs.push_back(Output::Up { connection, hello });
        }
        self.settle_dial(now, node);
    }

    fn settle_dial(&mut self, now: Instant, node: NodeId) {
        let Some(row) = self.rows.get_mut(&node) else { return };
        if let Some((connection, address)) = row.dialing
            && row.live.is_none_or(|live| live.address != address)
        {
            // What becomes of it is of no interest any more.
            row.dialing = None;
            row.failures = 0;
            self.outputs.push_back(Output::Close { connection });
        }
        let Some(live) = row.live else {
            row.dial_at = None;
            row.failures = 0;
            if row.waiting.is_none() && row.link.is_none() {
                self.rows.remove(&node);
            }
            return;
        };
        if self.own < node && row.may_dial() && *row.dial_at.get_or_insert(now) <= now {
            self.connections_last += 1;
            self.attempts_last += 1;
            let connection = ConnectionId(self.connections_last);
            row.dialing = Some((connection, live.address));
            let attempt = self.attempts_last;
            self.outputs.push_back(Output::Dial { connection, node, address: live.address, attempt });
        }
    }

    /// The next connection waits: longer with each that failed, and not equally long on all nodes.
    fn pause(&mut self, now: Instant, node: NodeId) {
        let Some(row) = self.rows.get_mut(&node).filter(|_| self.own < node) else { return };
        let pause = (PAUSE_MIN * 2u32.saturating_pow(row.failures.min(10))).min(PAUSE_MAX);
        row.dial_at = Some(now + pause / 2 + pause.mul_f64(self.jitter.random_range(0.0..0.5)));
    }
}

impl Row {
    fn may_dial(&self) -> bool {
        self.live.is_some() && self.dialing.is_none() && self.waiting.is_none() && self.link.is_none()
    }
}

/// Of two connections of one pair the greater counts.
fn life(hello: &Hello) -> (u64, u64) {
    (hello.epoch, hello.attempt)
}

/// Has the link closed, for the first reason there is.
fn end(row: &mut Row, reason: DownReason, outputs: &mut VecDeque<Output>) {
    if let Some(link) = row.link.as_mut().filter(|link| link.closing.is_none()) {
        link.closing = Some(reason);
        outputs.push_back(Output::Close { connection: link.connection });
    }
}

/// Nodes that prove to hold a key and that membership does not know; more are refused.
pub const STRANGERS_MAX: usize = 32;
/// The pause after a connection that failed; doubled each time, then halved or less by chance ...
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// ... up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A link that was up for this long was a good one.
const STEADY_MIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
