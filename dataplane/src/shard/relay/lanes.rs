//! Lanes: which connections this shard wants, and what waits for them.

use super::super::outbound::{Outbound, Pool};
use super::super::{ConnId, Output, Shard};
use super::link::{Link, Phase, Role};
use super::open::Callers;
use super::{BACKOFF_MAX, BACKOFF_MIN, GREETING_MAX, HOLD_TIME};
use crate::shard::Dial;
use bytes::Bytes;
use common::ids::BootEpoch;
use common::metrics::Counter;
use common::uri::wamp;
use std::net::SocketAddr;
use std::time::Instant;

/// Where a lane is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LaneState {
    /// It connects then.
    Waiting {
        until: Instant,
    },
    Dialing(Dial),
    /// On the link in this slot, which may not be open yet.
    Linked {
        slot: u32,
        open: bool,
    },
}

/// One of the connections to one node.
#[derive(Debug)]
pub(super) struct Lane {
    pub node: u16,
    pub address: SocketAddr,
    pub epoch: BootEpoch,
    pub state: LaneState,
    /// Number of the last attempt that was answered.
    pub attempt: u64,
    /// Attempts since a link was open.
    failures: u32,
    /// Since when no link has been open.
    down_since: Instant,
    /// What waits for a link.
    held: Outbound,
    held_events: u64,
    /// Calls that wait for an answer.
    pub calls: Callers,
}

/// What became of a frame for another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Passed {
    Yes,
    /// The node does not keep up.
    Full,
    /// There is no connection to it.
    Down,
}

impl Lane {
    /// New frames wait for a link.
    fn holds(&self, now: Instant) -> bool {
        now < self.down_since + HOLD_TIME
    }
}

impl Shard {
    /// The lane of a session's requests to a node.
    #[inline]
    pub(in crate::shard) fn lane_of(&self, node: u16, slot: u32) -> usize {
        match self.relay.config.as_ref().map_or(1, |config| config.connections) {
            1 => usize::from(node),
            connections => usize::from(node) * connections + slot as usize % connections,
        }
    }

    /// Follows the list of nodes: lanes to those that came, none to those that went or began a new life.
    pub(in crate::shard) fn relay_peers(&mut self) {
        let Some(config) = &self.relay.config else { return };
        let connections = config.connections;
        if self.relay.finishing {
            return;
        }
        for at in 0..self.relay.lanes.len() {
            let Some(lane) = &self.relay.lanes[at] else { continue };
            let node = self.nodes.get(lane.node).filter(|_| self.nodes.live().contains(lane.node));
            let stays = node.is_some_and(|node| node.epoch == lane.epoch && node.relay == Some(lane.address));
            if !stays {
                self.lane_remove(at, false);
            }
        }
        for index in self.nodes.live().iter() {
            let Some(node) = self.nodes.get(index) else { continue };
            let (epoch, Some(address)) = (node.epoch, node.relay) else { continue };
            let first = usize::from(index) * connections;
            if self.relay.lanes.len() < first + connections {
                self.relay.lanes.resize_with(first + connections, || None);
            }
            for at in first..first + connections {
                if self.relay.lanes[at].is_none() {
                    self.relay.lanes[at] = Some(Box::new(self.new_lane(index, epoch, address)));
                    self.lane_dial(at);
                }
            }
        }
        self.acks_follow_peers();
    }

    fn new_lane(&self, node: u16, epoch: BootEpoch, address: SocketAddr) -> Lane {
        Lane {
            node,
            address,
            epoch,
            state: LaneState::Waiting { until: self.now },
            attempt: 0,
            failures: 0,
            down_since: self.now,
            held: Outbound::default(),
            held_events: 0,
            calls: Callers::default(),
        }
    }

    /// Connects.
    pub(super) fn lane_dial(&mut self, at: usize) {
        self.relay.last_dial += 1;
        let dial = Dial(self.relay.last_dial);
        let Some(lane) = self.relay.lanes.get_mut(at).and_then(Option::as_mut) else { return };
        lane.state = LaneState::Dialing(dial);
        let address = lane.address;
        self.metrics.count(Counter::RelayDials);
        self.outputs.push_back(Output::Connect { dial, address });
    }

    fn dialing(&self, dial: Dial) -> Option<usize> {
        let mut lanes = self.relay.lanes.iter();
        lanes.position(|lane| lane.as_ref().is_some_and(|lane| lane.state == LaneState::Dialing(dial)))
    }

    pub(super) fn lane_connected(&mut self, dial: Dial, conn: ConnId) -> bool {
        let Some(at) = self.dialing(dial) else { return false };
        let Some(lane) = self.relay.lanes[at].as_mut() else { return false };
        lane.state = LaneState::Linked { slot: conn.slot, open: false };
        lane.attempt = dial.0;
        let deadline = self.now + GREETING_MAX;
        let (id, role) = (self.relay.link_id(), Role::Lane(at));
        let link = Link::new(conn.generation, id, role, self.now, deadline);
        self.relay.links.insert(conn.slot, link);
        self.relay.look_at(deadline);
        self.relay_begin(conn.slot)
    }

    pub(super) fn lane_dial_failed(&mut self, dial: Dial) {
        if let Some(at) = self.dialing(dial) {
            self.lane_back_off(at);
        }
    }

    /// Waits before the lane connects again.
    fn lane_back_off(&mut self, at: usize) {
        let Some(lane) = self.relay.lanes[at].as_mut() else { return };
        let pause = (BACKOFF_MIN * 2u32.pow(lane.failures.min(10))).min(BACKOFF_MAX);
        let until = self.now + pause + pause.mul_f64(self.rng.f64() / 2.0);
        lane.failures += 1;
        lane.state = LaneState::Waiting { until };
        self.relay.look_at(until);
    }

    /// The lane's link is open: what waited goes.
    pub(super) fn lane_ready(&mut self, at: usize, slot: u32) {
        let Some(lane) = self.relay.lanes[at].as_mut() else { return };
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        lane.state = LaneState::Linked { slot, open: true };
        lane.failures = 0;
        link.events_queued += std::mem::take(&mut lane.held_events);
        link.out.append_all(std::mem::take(&mut lane.held));
    }

    /// The lane's link ended: what it carried is lost, and calls that wait for an answer get an error.
    pub(super) fn lane_lost(&mut self, at: usize) {
        let now = self.now;
        let Some(lane) = self.relay.lanes[at].as_mut() else { return };
        let was_open = matches!(lane.state, LaneState::Linked { open: true, .. });
        if was_open {
            lane.down_since = now;
            self.relay.look_at(now + HOLD_TIME);
            self.lane_fail(at, wamp::CANCELED, "the connection to the callee's node was lost");
        }
        self.lane_back_off(at);
    }

    /// What a lane has held for too long is dropped.
    pub(super) fn lane_expire(&mut self, at: usize) {
        self.lane_fail(at, wamp::UNAVAILABLE, "the callee's node cannot be reached");
    }

    /// Drops what waits, and answers what waits for an answer.
    fn lane_fail(&mut self, at: usize, uri: &'static str, text: &'static str) {
        let Some(lane) = self.relay.lanes[at].as_mut() else { return };
        self.relay.queued_bytes -= lane.held.clear(&mut self.pool);
        self.metrics.add(Counter::DroppedRelayDown, std::mem::take(&mut lane.held_events));
        let node = lane.node;
        let calls = lane.calls.drain();
        self.metrics.add(Counter::RelayCallsLost, calls.len() as u64);
        self.fail_passed(calls, uri, text);
        self.acks_lost(node, at);
        self.asks_lost(node, at);
        self.ports_lost(at);
    }

    /// The node is no longer to be sent to. `flush`: what is queued still goes out.
    pub(super) fn lane_remove(&mut self, at: usize, flush: bool) {
        let Some(lane) = self.relay.lanes.get(at).and_then(Option::as_ref) else { return };
        let state = lane.state;
        self.lane_fail(at, wamp::CANCELED, "the callee's node is gone");
        self.relay.lanes[at] = None;
        if let (LaneState::Linked { slot, .. }, false) = (state, flush) {
            self.relay_drop(slot);
        }
    }

    /// Queues a frame of at most `bytes_max` bytes that `write` appends; 0: a short one that is not refused by a node that does not
    /// keep up. `events`: how many events it is.
    #[inline]
    pub(super) fn lane_send(
        &mut self,
        at: usize,
        bytes_max: usize,
        events: u64,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Passed {
        self.lane_append(at, bytes_max, events, |out, pool| {
            out.append(pool, |out| {
                out.reserve(bytes_max);
                write(out);
            })
        })
    }

    /// Queues a frame that several lanes share.
    pub(super) fn lane_share(&mut self, at: usize, frame: &Bytes, events: u64) -> Passed {
        self.lane_append(at, frame.len(), events, |out, _| {
            out.append_shared(frame.clone());
            frame.len()
        })
    }

    /// `append` returns the bytes of what it appends.
    #[inline]
    fn lane_append(
        &mut self,
        at: usize,
        bytes_max: usize,
        events: u64,
        append: impl FnOnce(&mut Outbound, &mut Pool) -> usize,
    ) -> Passed {
        let is_crowded = self.relay.queued_bytes + bytes_max > self.relay.memory_max / 2;
        let (queue_max, fits) =
            if is_crowded { self.relay.crowded(bytes_max) } else { (self.relay.lane_queue_max, true) };
        let Some(Some(lane)) = self.relay.lanes.get_mut(at) else { return Passed::Down };
        let link = match lane.state {
            LaneState::Linked { slot, open: true } => self
                .relay
                .links
                .get_mut(slot)
                .filter(|link| matches!(link.phase, Phase::Open))
                .map(|link| (slot, link)),
            _ => None,
        };
        let (out, count, queued, flush) = match link {
            Some((slot, link)) => {
                let queued = link.queued_bytes();
                (&mut link.out, &mut link.events_queued, queued, Some((slot, &mut link.dirty)))
            }
            None if lane.holds(self.now) => {
                let queued = lane.held.bytes();
                (&mut lane.held, &mut lane.held_events, queued, None)
            }
            None => return Passed::Down,
        };
        // Whatever its length, one frame fits into an empty queue.
        // One that may not be refused says that it has no bytes.
        if (queued + bytes_max > queue_max && queued > 0 || !fits) && bytes_max > 0 {
            if is_crowded {
                self.metrics.count(Counter::RelayMemoryFull);
            }
            return Passed::Full;
        }
        self.relay.queued_bytes += append(out, &mut self.pool);
        *count += events;
        self.metrics.count(Counter::RelayFramesSent);
        match flush {
            Some((_, true)) => {}
            Some((slot, dirty)) => {
                *dirty = true;
                self.relay.dirty.push(slot);
            }
            None => {
                let until = lane.down_since + HOLD_TIME;
                self.relay.look_at(until);
            }
        }
        Passed::Yes
    }

    /// A lane's time to act, and when it next has something to do.
    pub(super) fn lane_timeout(&mut self, at: usize) -> Option<Instant> {
        let now = self.now;
        let lane = self.relay.lanes[at].as_ref()?;
        let open = matches!(lane.state, LaneState::Linked { open: true, .. });
        let idle = lane.held.is_empty() && lane.calls.is_empty();
        if !open && !idle && !lane.holds(now) {
            self.lane_expire(at);
        }
        let lane = self.relay.lanes[at].as_ref()?;
        let hold = (!open && lane.holds(now)).then(|| lane.down_since + HOLD_TIME);
        match lane.state {
            LaneState::Waiting { until } if until <= now => {
                self.lane_dial(at);
                hold
            }
            LaneState::Waiting { until } => Some(hold.map_or(until, |hold| hold.min(until))),
            LaneState::Dialing(_) | LaneState::Linked { .. } => hold,
        }
    }
}
