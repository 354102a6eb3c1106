//! What lanes, links and acknowledged publications do when time has passed.
//!
//! All of them are looked at together, at the earliest time one of them named: they are few, and pings come every second.

use super::super::Shard;
use super::link::{Phase, PhaseName};
use super::{PING_INTERVAL, SILENCE_MAX, STANDSTILL};
use common::metrics::Counter;
use common::relay::{Kind, put_bare};
use std::time::{Duration, Instant};

impl Shard {
    pub(in crate::shard) fn relay_timeout(&mut self) {
        let Some(due) = self.relay.next.filter(|due| *due <= self.now) else { return };
        let late = self.now - due;
        if late > STANDSTILL {
            self.relay_stood_still(late);
        }
        self.relay.next = None;
        let mut next: Option<Instant> = None;
        let mut earliest = |at: Option<Instant>| next = [next, at].into_iter().flatten().min();
        for at in 0..self.relay.lanes.len() {
            earliest(self.lane_timeout(at));
        }
        let slots: Vec<u32> = self.relay.links.slots();
        for slot in slots {
            earliest(self.link_timeout(slot));
        }
        earliest(self.acks_timeout());
        if let Some(next) = next {
            self.relay.look_at(next);
        }
    }

    /// This process stood still: the other ends were not silent, they were not listened to.
    fn relay_stood_still(&mut self, time: Duration) {
        for link in self.relay.links.values_mut() {
            link.heard += time;
            link.deadline += time;
        }
    }

    /// A link's time to act, and when it next has something to do.
    fn link_timeout(&mut self, slot: u32) -> Option<Instant> {
        let now = self.now;
        let link = self.relay.links.get_mut(slot)?;
        let silent_at = if link.paused { now + SILENCE_MAX } else { link.heard + SILENCE_MAX };
        let ends_at = match link.phase_name() {
            PhaseName::Securing | PhaseName::Greeting | PhaseName::Closing => link.deadline,
            PhaseName::Open => silent_at,
        };
        if ends_at <= now {
            self.relay_drop(slot);
            return None;
        }
        if !matches!(link.phase, Phase::Open) {
            return Some(ends_at);
        }
        if link.ping_at <= now {
            link.ping_at = now + PING_INTERVAL;
            let ping_at = link.ping_at;
            self.link_ping(slot);
            return Some(ends_at.min(ping_at));
        }
        Some(ends_at.min(link.ping_at))
    }

    /// Says that we live, and measures the way there and back. One ping is under way at a time, so one that cannot leave
    /// has no followers.
    fn link_ping(&mut self, slot: u32) {
        let now = self.now;
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        if link.sending {
            // The other end hears of us once it reads.
            return;
        }
        self.relay.last_ping += 1;
        let id = self.relay.last_ping;
        link.pinged = Some((id, now));
        self.relay.queued_bytes += link.out.append(&mut self.pool, |out| put_bare(out, Kind::Ping, id));
        self.metrics.count(Counter::RelayFramesSent);
        self.relay.mark_dirty(slot);
    }

    /// A pong.
    pub(super) fn link_ponged(&mut self, slot: u32, id: u64) {
        let now = self.now;
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        if let Some((_, since)) = link.pinged.take_if(|(pinged, _)| *pinged == id) {
            self.metrics.count(Counter::RelayRoundTrips);
            self.metrics.add(Counter::RelayRoundTripMicros, (now - since).as_micros() as u64);
        }
    }
}
