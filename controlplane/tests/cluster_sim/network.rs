//! What lies between the sites: datagrams that are lost, late, doubled and out of order; connections that keep order,
//! stand still and break.

use bytes::Bytes;
use common::ids::NodeId;
use controlplane::peers::Channel;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

pub struct Datagram {
    pub from: usize,
    pub to: usize,
    pub bytes: Vec<u8>,
}

/// A connection between two processes; index 0 is the site with the smaller number.
pub struct Link {
    /// The processes it connects, by their serial numbers, and their nodes.
    pub ends: [(u64, NodeId); 2],
    pub queues: [VecDeque<(Instant, Channel, Bytes)>; 2],
    pub stalled_until: Option<Instant>,
    /// Nothing has passed since.
    pub cut_since: Option<Instant>,
}

#[derive(Default)]
pub struct Network {
    pub sites: usize,
    pub datagrams: BTreeMap<(Instant, u64), Datagram>,
    pub sent: u64,
    pub links: BTreeMap<(usize, usize), Link>,
    /// Nothing passes from the first to the second.
    pub cuts: BTreeSet<(usize, usize)>,
    /// Parts of 1.
    pub loss: f64,
    pub delay_ms_max: u64,
    /// Frames that found a full queue.
    pub overflown: u64,
    pub lost: u64,
}

impl Network {
    pub fn send(&mut self, now: Instant, rng: &mut fastrand::Rng, datagram: Datagram) {
        let lost = self.cuts.contains(&(datagram.from, datagram.to)) || rng.f64() < self.loss;
        if lost {
            self.lost += 1;
            return;
        }
        let copies = if self.loss > 0.0 && rng.u8(0..20) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            let at = now + Duration::from_micros(rng.u64(100..1_000 * self.delay_ms_max));
            let Datagram { from, to, ref bytes } = datagram;
            self.sent += 1;
            self.datagrams.insert((at, self.sent), Datagram { from, to, bytes: bytes.clone() });
        }
    }

    /// Queues a frame, if there is a connection and room.
    pub fn frame(
        &mut self,
        now: Instant,
        rng: &mut fastrand::Rng,
        (from, to): (usize, usize),
        frame: (Channel, Bytes),
    ) {
        let Some(link) = self.links.get_mut(&(from.min(to), from.max(to))) else { return };
        let queue = &mut link.queues[usize::from(from > to)];
        if queue.len() >= LINK_FRAMES_MAX {
            self.overflown += 1;
            return;
        }
        let last = queue.back().map_or(now, |(at, ..)| *at);
        let at = last.max(now + Duration::from_micros(rng.u64(100..1_000 * self.delay_ms_max)));
        queue.push_back((at, frame.0, frame.1));
    }

    /// Nothing passes in this direction or over this connection.
    pub fn is_stalled(&self, now: Instant, (from, to): (usize, usize)) -> bool {
        let cut = |pair| self.cuts.contains(&pair);
        let link = self.links.get(&(from.min(to), from.max(to)));
        cut((from, to))
            || cut((to, from))
            || link.is_some_and(|link| link.stalled_until.is_some_and(|at| at > now))
    }

    /// When the next thing arrives.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let datagram = self.datagrams.first_key_value().map(|((at, _), _)| *at);
        let frames =
            self.links.iter().filter(|(pair, _)| !self.is_stalled(now, **pair)).flat_map(|(_, link)| {
                link.queues.iter().filter_map(|queue| queue.front().map(|(at, ..)| *at))
            });
        frames.chain(datagram).min()
    }

    /// The next frame that has arrived: from, to, and what.
    pub fn arrived(&mut self, now: Instant) -> Option<(usize, usize, Channel, Bytes)> {
        let pairs: Vec<_> = self.links.keys().copied().filter(|pair| !self.is_stalled(now, *pair)).collect();
        for (a, b) in pairs {
            let link = self.links.get_mut(&(a, b)).expect("a key just read");
            for (at, (from, to)) in [(a, b), (b, a)].into_iter().enumerate() {
                if link.queues[at].front().is_some_and(|(at, ..)| *at <= now) {
                    let (_, channel, bytes) = link.queues[at].pop_front().expect("looked at above");
                    return Some((from, to, channel, bytes));
                }
            }
        }
        None
    }

    /// Cuts the sites in two, in both directions or in one, or a single pair.
    pub fn cut(&mut self, rng: &mut fastrand::Rng) {
        let sites = self.sites;
        let side: Vec<bool> = (0..sites).map(|_| rng.bool()).collect();
        let (one_way, single) = (rng.bool(), rng.bool());
        let pick = (rng.usize(..sites), rng.usize(..sites));
        for from in 0..sites {
            for to in 0..sites {
                let apart = side[from] != side[to] && (!one_way || side[from]);
                let picked = (from, to) == pick || (!one_way && (to, from) == pick);
                if from != to && if single { picked } else { apart } {
                    self.cuts.insert((from, to));
                }
            }
        }
    }
}

/// Frames a connection's queue takes; more are lost, as between real nodes.
pub const LINK_FRAMES_MAX: usize = 1_024;
