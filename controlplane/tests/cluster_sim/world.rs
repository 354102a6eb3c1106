//! The sites, time, and what is done to them.

use crate::checks::Baseline;
use crate::network::{Datagram, Link, Network};
use crate::oracle::{self, Oracle, Write};
use crate::site::{Site, address};
use bytes::Bytes;
use common::ids::NodeId;
use common::link::Up;
use controlplane::claims::RouteKey;
use controlplane::cluster::{Output, StoreTask, Token};
use controlplane::node::Output as FromNode;
use controlplane::peers::Channel;
use controlplane::swim;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What happened in a run.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    pub events: u64,
    pub writes: u64,
    pub acknowledged: u64,
    pub refused: u64,
    pub lost_with_disks: u64,
    pub crashes: u64,
    pub wiped: u64,
    pub restored: u64,
    pub given_up: u64,
    pub cuts: u64,
    pub links_broken: u64,
    pub datagrams_lost: u64,
    pub overflown: u64,
    pub revoked: u64,
    pub shared: u64,
    pub retained: u64,
    pub siblings: u64,
    pub repaired: u64,
    /// Messages of exchanges that waited for the rate.
    pub held: u64,
    pub converged_s_max: u64,
}

pub struct World {
    pub rng: fastrand::Rng,
    pub start: Instant,
    pub now: Instant,
    pub sites: Vec<Site>,
    pub network: Network,
    pub oracle: Oracle,
    /// What each node's data planes ever claimed.
    pub claimed: BTreeMap<NodeId, BTreeSet<RouteKey>>,
    /// Events that were published to be retained.
    pub published: BTreeSet<Vec<u8>>,
    pub tally: Tally,
    pub bug: Option<Bug>,
    pub serials: u64,
    pub epochs: u64,
    pub disks_lost: usize,
    pub maintain_at: Instant,
}

/// What a run may get wrong on purpose, in what surrounds the machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The store acknowledges and then forgets, now and then.
    AckBeforeStore,
    /// Claims do not pass between nodes.
    LoseClaims,
    /// Exchanges do not pass, so what broadcast loses stays lost.
    NoExchange,
    /// The data plane is not told which registrations lost.
    NoRevoke,
    /// The data plane goes on sending to nodes that are gone.
    StalePeers,
    /// The data plane does not learn what other nodes retain.
    NoRetained,
}

impl Bug {
    pub const ALL: [Self; 6] = [
        Self::AckBeforeStore,
        Self::LoseClaims,
        Self::NoExchange,
        Self::NoRevoke,
        Self::StalePeers,
        Self::NoRetained,
    ];
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.writes += other.writes;
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.lost_with_disks += other.lost_with_disks;
        self.crashes += other.crashes;
        self.wiped += other.wiped;
        self.restored += other.restored;
        self.given_up += other.given_up;
        self.cuts += other.cuts;
        self.links_broken += other.links_broken;
        self.datagrams_lost += other.datagrams_lost;
        self.overflown += other.overflown;
        self.revoked += other.revoked;
        self.shared += other.shared;
        self.retained += other.retained;
        self.siblings += other.siblings;
        self.repaired += other.repaired;
        self.held += other.held;
        self.converged_s_max = self.converged_s_max.max(other.converged_s_max);
    }
}

impl World {
    pub fn new(seed: u64, bug: Option<Bug>) -> Result<Self, String> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = match rng.u8(0..40) {
            0 => rng.usize(8..=30),
            1..8 => rng.usize(5..8),
            _ => rng.usize(3..5),
        };
        let start = Instant::now();
        let network =
            Network { sites: count, loss: 0.05, delay_ms_max: rng.u64(5..150), ..Network::default() };
        let mut world = Self {
            sites: (0..count).map(|n| Site::new(n as u64 + 1, rng.usize(1..3))).collect(),
            rng,
            start,
            now: start,
            network,
            oracle: Oracle::default(),
            claimed: BTreeMap::new(),
            published: BTreeSet::new(),
            tally: Tally::default(),
            bug,
            serials: 0,
            epochs: 1_000,
            disks_lost: 0,
            maintain_at: start,
        };
        for at in 0..count {
            world.start_site(at)?;
        }
        Ok(world)
    }

    pub fn run(mut self) -> Result<Tally, String> {
        self.advance(ms(5_000))?;
        for _ in 0..self.rng.usize(20..80) {
            self.act()?;
            let pause = self.rng.u64(0..2_500);
            self.advance(ms(pause))?;
            self.check_always()?;
        }
        self.lift_faults()?;
        self.converge()?;
        let before = Baseline::of(&self);
        self.advance(QUIET)?;
        self.check_always()?;
        self.check_converged()?;
        before.check(&self)?;
        self.tally.repaired = before.repaired();
        let processes = self.sites.iter().filter_map(|site| site.process.as_ref());
        let held = processes.map(|process| process.plane.status(self.now, Default::default()).exchange.held);
        self.tally.held = held.sum();
        self.tally.datagrams_lost = self.network.lost;
        self.tally.overflown = self.network.overflown;
        Ok(self.tally)
    }

    fn converge(&mut self) -> Result<(), String> {
        let began = self.now;
        loop {
            self.advance(ms(1_000))?;
            self.check_always()?;
            match self.check_converged() {
                Ok(()) => {
                    self.tally.converged_s_max = (self.now - began).as_secs();
                    return Ok(());
                }
                Err(error) if self.now > began + CONVERGE_MAX => {
                    return Err(format!("not equal after {CONVERGE_MAX:?}: {error}"));
                }
                Err(_) => {}
            }
        }
    }

    pub fn ms(&self) -> u64 {
        (self.now - self.start).as_millis() as u64
    }

    /// Lets time pass.
    pub fn advance(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        loop {
            let next = self.next();
            if next > end {
                self.now = end;
                return Ok(());
            }
            self.now = self.now.max(next);
            self.tally.events += 1;
            if self.tally.events > EVENTS_MAX {
                return Err("a storm of events".into());
            }
            self.step()?;
        }
    }

    fn next(&self) -> Instant {
        let due = self.sites.iter().filter_map(|site| {
            let deadline = site.process.as_ref()?.deadline()?;
            Some(site.paused_until.map_or(deadline, |until| until.max(deadline)))
        });
        due.chain(self.network.next(self.now)).chain([self.maintain_at]).min().expect("there is one")
    }

    fn step(&mut self) -> Result<(), String> {
        let now = self.now;
        if self.maintain_at <= now {
            self.maintain_at = now + MAINTAIN_INTERVAL;
            self.maintain()?;
        }
        while let Some(entry) = self.network.datagrams.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, number), datagram) = entry.remove_entry();
            self.datagram(number, datagram)?;
        }
        while let Some((from, to, channel, bytes)) = self.network.arrived(now) {
            self.frame(from, to, channel, &bytes)?;
        }
        for at in 0..self.sites.len() {
            self.wake(at)?;
        }
        Ok(())
    }

    fn wake(&mut self, at: usize) -> Result<(), String> {
        let (now, ms) = (self.now, self.ms());
        let site = &mut self.sites[at];
        if site.is_paused(now)
            || site.process.as_ref().and_then(|process| process.deadline()).is_none_or(|at| at > now)
        {
            return Ok(());
        }
        site.tell_time(ms);
        let process = site.process.as_mut().expect("looked at above");
        if process.swim.deadline().is_some_and(|at| at <= now) {
            process.swim.timeout(now);
        }
        if process.plane.deadline().is_some_and(|at| at <= now) {
            process.plane.timeout(now);
        }
        while let Some((token, task)) = self.sites[at].process.as_mut().and_then(|process| process.due(now)) {
            self.perform(at, token, task)?;
        }
        self.drain(at)
    }

    /// The store does a piece of work.
    pub fn perform(&mut self, at: usize, token: Token, task: StoreTask) -> Result<(), String> {
        let now = self.now;
        // What may write under this node's own name: an operator's change, or the settlement of values that compete.
        let put = match &task {
            StoreTask::Put { .. } => Some(token),
            _ => None,
        };
        let writes = put.is_some() || matches!(task, StoreTask::Upkeep);
        let disk = self.sites[at].disk.clone();
        let seen: Vec<_> = (0..if writes { oracle::KEYS } else { 0 })
            .map(|key| oracle::object(&disk, key).map(|object| oracle::history(&object)).unwrap_or_default())
            .collect();
        let forget = self.bug == Some(Bug::AckBeforeStore) && put.is_some() && self.rng.u8(0..8) == 0;
        let before = forget.then(|| disk.copy());
        let held = disk.disk().objects.len();
        let Some(process) = &mut self.sites[at].process else { return Ok(()) };
        let done = task.perform(&mut process.worker, now);
        if disk.disk().objects.len() < held {
            self.gave_up(at)?;
        }
        let Some(process) = &mut self.sites[at].process else { return Ok(()) };
        let actor = process.worker.actor();
        for (key, seen) in seen.into_iter().enumerate() {
            let Some(object) = oracle::object(&disk, key) else { continue };
            let entry = object.clock.entries().iter().find(|entry| entry.actor == actor);
            let Some(entry) = entry.filter(|entry| seen.get(&actor).is_none_or(|seen| *seen < entry.counter))
            else {
                continue;
            };
            let counter = entry.counter;
            let value = entry.values.first().and_then(|value| value.bytes.clone());
            if let Some(token) = put {
                process.puts.insert(token, Some(self.oracle.writes.len()));
            }
            self.oracle.writes.push(Write {
                key,
                actor,
                counter,
                seen,
                value,
                acknowledged: false,
                lost: false,
            });
            self.tally.writes += 1;
        }
        if let Some(before) = before {
            disk.disk().objects = before.disk().objects.clone();
        }
        self.sites[at].process.as_mut().expect("it has just done it").plane.stored(now, token, done);
        Ok(())
    }

    fn datagram(&mut self, number: u64, datagram: Datagram) -> Result<(), String> {
        let (now, ms) = (self.now, self.ms());
        let site = &mut self.sites[datagram.to];
        if let Some(until) = site.paused_until.filter(|until| *until > now) {
            self.network.datagrams.insert((until, number), datagram);
            return Ok(());
        }
        site.tell_time(ms);
        let Some(process) = &mut site.process else { return Ok(()) };
        process.swim.datagram(now, address(datagram.from), &datagram.bytes);
        self.drain(datagram.to)
    }

    fn frame(&mut self, from: usize, to: usize, channel: Channel, bytes: &Bytes) -> Result<(), String> {
        let (now, ms) = (self.now, self.ms());
        let Some(link) = self.network.links.get(&(from.min(to), from.max(to))) else { return Ok(()) };
        let node = link.ends[usize::from(from > to)].1;
        let serial = link.ends[usize::from(to > from)].0;
        let swallowed = self.swallows(channel);
        let site = &mut self.sites[to];
        site.tell_time(ms);
        let Some(process) = site.process.as_mut().filter(|process| process.serial == serial) else {
            return Ok(());
        };
        if channel == Channel::Swim {
            process.swim.linked(now, uuid::Uuid::from_bytes(node.0), address(from), bytes);
        } else if !swallowed {
            process.plane.peer_frame(now, node, channel, bytes);
        }
        self.drain(to)
    }

    fn swallows(&self, channel: Channel) -> bool {
        match self.bug {
            Some(Bug::LoseClaims) => channel == Channel::Claims,
            Some(Bug::NoExchange) => channel == Channel::Exchange,
            _ => false,
        }
    }

    /// A frame of the data plane.
    pub fn up(&mut self, at: usize, frame: Option<Up>) -> Result<(), String> {
        let (now, ms) = (self.now, self.ms());
        let site = &mut self.sites[at];
        site.tell_time(ms);
        let wall_ms = site.wall_us() / 1_000;
        let (Some(frame), Some(link), Some(process)) = (frame, site.data.link, &mut site.process) else {
            return Ok(());
        };
        process.plane.frame(now, wall_ms, link, frame);
        self.drain(at)
    }

    /// Does what the site's processes ask, until they ask for nothing.
    pub fn drain(&mut self, at: usize) -> Result<(), String> {
        loop {
            let idle = !self.drain_swim(at);
            if !self.drain_plane(at)? && idle {
                return Ok(());
            }
        }
    }

    fn drain_swim(&mut self, at: usize) -> bool {
        let now = self.now;
        let Some(process) = &mut self.sites[at].process else { return false };
        let (mut any, mut changed) = (false, false);
        while let Some(output) = process.swim.poll() {
            any = true;
            match output {
                swim::Output::Send { to, packet } => {
                    if let Some(to) = (0..self.network.sites).find(|site| address(*site) == to) {
                        let datagram = Datagram { from: at, to, bytes: packet };
                        self.network.send(now, &mut self.rng, datagram);
                    }
                }
                swim::Output::Fallback { node, packet } => {
                    let pair = self.network.links.iter().find_map(|((a, b), link)| {
                        let other = if *a == at { (*b, link.ends[1].1) } else { (*a, link.ends[0].1) };
                        ((*a == at || *b == at) && other.1.0 == node.into_bytes()).then_some(other.0)
                    });
                    if let Some(to) = pair {
                        self.network.frame(now, &mut self.rng, (at, to), (Channel::Swim, packet.into()));
                    }
                }
                swim::Output::Change(_) => changed = true,
                swim::Output::Dropped { .. } | swim::Output::Rejoined => {}
            }
        }
        if changed {
            let members: Vec<_> = process.swim.members().cloned().collect();
            process.plane.members(now, &members);
        }
        any
    }

    fn drain_plane(&mut self, at: usize) -> Result<bool, String> {
        let now = self.now;
        let mut any = false;
        loop {
            let site = &mut self.sites[at];
            let wall_us = site.wall_us();
            let Some(process) = &mut site.process else { return Ok(any) };
            process.plane.link_room(LINK_ROOM);
            let Some(output) = process.plane.poll(now, wall_us) else { return Ok(any) };
            any = true;
            match output {
                Output::Node(output) => self.on_node(at, output)?,
                Output::Send { to, channel, bytes } => {
                    let pair = self.network.links.iter().find_map(|((a, b), link)| {
                        let other = if *a == at { (*b, link.ends[1].1) } else { (*a, link.ends[0].1) };
                        ((*a == at || *b == at) && other.1 == to).then_some(other.0)
                    });
                    if let Some(to) = pair {
                        self.network.frame(now, &mut self.rng, (at, to), (channel, bytes));
                    }
                }
                Output::Close { peer } => return Err(format!("site {at} finds fault with {peer}")),
                Output::Store { token, task } => {
                    let last = process.work.back().map_or(now, |(due, ..)| *due);
                    let due = last.max(now + ms(self.rng.u64(0..12)));
                    process.work.push_back((due, token, task));
                    if process.work.len() > WORK_MAX {
                        return Err(format!("site {at} has {WORK_MAX} pieces of work for its store"));
                    }
                }
                Output::Realm { token, result } => {
                    let put = process.puts.remove(&token).flatten();
                    match (result, put) {
                        (Ok(_), Some(write)) => {
                            self.oracle.writes[write].acknowledged = true;
                            self.tally.acknowledged += 1;
                        }
                        (Ok(_), None) => return Err("a write is acknowledged that is not stored".into()),
                        (Err(_), _) => self.tally.refused += 1,
                    }
                }
                Output::Notice(_) => {}
            }
        }
    }

    fn on_node(&mut self, at: usize, output: FromNode) -> Result<(), String> {
        let now = self.now;
        let (revokes, peers) = (self.bug != Some(Bug::NoRevoke), self.bug != Some(Bug::StalePeers));
        let retained = self.bug != Some(Bug::NoRetained);
        let site = &mut self.sites[at];
        let Some(process) = &mut site.process else { return Ok(()) };
        let answers = match output {
            FromNode::Send { link, frame } if site.data.link == Some(link) => match frame {
                common::link::Down::Revoke { .. } if !revokes => vec![],
                common::link::Down::Retained { .. } if !retained => vec![],
                common::link::Down::Peers { .. } if !peers && !site.data.peers.is_empty() => vec![],
                frame => site.data.take(frame).map_err(|error| format!("data plane {at}: {error}"))?,
            },
            FromNode::Build { link, version, fold } if site.data.link == Some(link) => {
                process.plane.built(now, version, Some(ms(1)));
                vec![
                    site.data
                        .snapshot(version, &fold)
                        .map_err(|error| format!("data plane {at}: {error}"))?,
                ]
            }
            FromNode::Close { link } if site.data.link == Some(link) => {
                return Err(format!("the control plane closes the link of site {at}"));
            }
            _ => vec![],
        };
        for frame in answers {
            self.up(at, Some(frame))?;
        }
        Ok(())
    }

    /// Makes connections that can be made and breaks those that carry nothing.
    fn maintain(&mut self) -> Result<(), String> {
        let now = self.now;
        for a in 0..self.sites.len() {
            for b in a + 1..self.sites.len() {
                let stalled = self.network.is_stalled(now, (a, b));
                let sees = self.see_each_other(a, b);
                match self.network.links.get_mut(&(a, b)) {
                    Some(link) => {
                        link.cut_since = stalled.then(|| link.cut_since.unwrap_or(now));
                        let dead = link.cut_since.is_some_and(|since| now > since + LINK_SILENCE_MAX);
                        if dead || !sees || !self.is_link_of_these(a, b) {
                            self.unlink((a, b));
                        }
                    }
                    None if sees && !stalled && self.rng.bool() => self.connect(a, b)?,
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn see_each_other(&self, a: usize, b: usize) -> bool {
        let (Some(one), Some(other)) = (&self.sites[a].process, &self.sites[b].process) else { return false };
        let paused = self.sites[a].is_paused(self.now) || self.sites[b].is_paused(self.now);
        !paused && one.sees(other.node) && other.sees(one.node)
    }

    fn is_link_of_these(&self, a: usize, b: usize) -> bool {
        let serial = |at: usize| self.sites[at].process.as_ref().map(|process| process.serial);
        let link = &self.network.links[&(a, b)];
        serial(a) == Some(link.ends[0].0) && serial(b) == Some(link.ends[1].0)
    }

    fn connect(&mut self, a: usize, b: usize) -> Result<(), String> {
        let end = |at: usize| self.sites[at].process.as_ref().map(|process| (process.serial, process.node));
        let (Some(one), Some(other)) = (end(a), end(b)) else { return Ok(()) };
        let link =
            Link { ends: [one, other], queues: Default::default(), stalled_until: None, cut_since: None };
        self.network.links.insert((a, b), link);
        let (now, rtt) = (self.now, ms(self.rng.u64(1..50)));
        for (at, node) in [(a, other.1), (b, one.1)] {
            let process = self.sites[at].process.as_mut().expect("it has an end");
            process.plane.peer_up(now, node);
            process.plane.rtt(node, rtt);
            self.drain(at)?;
        }
        Ok(())
    }

    pub fn unlink(&mut self, (a, b): (usize, usize)) {
        let Some(link) = self.network.links.remove(&(a, b)) else { return };
        self.tally.links_broken += 1;
        for (at, own, other) in [(a, link.ends[0], link.ends[1]), (b, link.ends[1], link.ends[0])] {
            if let Some(process) = self.sites[at].process.as_mut().filter(|process| process.serial == own.0) {
                process.plane.peer_down(self.now, other.1);
            }
        }
    }
}

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Frames the data plane's link takes.
const LINK_ROOM: usize = 64;
/// Work that may wait for a store.
const WORK_MAX: usize = controlplane::cluster::STORE_TASKS_MAX + 256;
/// A connection that carries nothing for this long breaks.
const LINK_SILENCE_MAX: Duration = Duration::from_secs(5);
const MAINTAIN_INTERVAL: Duration = Duration::from_millis(250);
/// All nodes must agree this long after the last fault.
pub const CONVERGE_MAX: Duration = Duration::from_secs(60);
/// Then nothing is repaired for this long.
const QUIET: Duration = Duration::from_secs(60);
const EVENTS_MAX: u64 = 3_000_000;
