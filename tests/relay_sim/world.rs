//! Nodes, clients and the schedule that moves bytes between them.

use crate::client::{Client, Mark, Request};
use crate::node::{self, Node};
use crate::shards::conn_of;
use crate::wires::{Wire, Wires};
use common::config::{SlowPolicy, SlowReceiver};
use common::ids::{Match, SnapshotVersion};
use common::metrics::Counter;
use common::snapshot::{Anonymous, Realm, Source};
use common::transport::Framing;
use common::uri;
use common::wire::Serializer;
use dataplane::feed::FeedDown;
use dataplane::shard::{ConnId, Flow, Output, SendBuf, ShardConfig};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const TOPICS: [&str; 5] = ["a", "a.b", "a.b.c", "a.x.c", "b.b"];
const PATTERNS: [(&str, &str); 6] = [
    ("exact", "a"),
    ("exact", "a.b"),
    ("exact", "b.b"),
    ("prefix", "a.b"),
    ("wildcard", "a..c"),
    ("wildcard", ".b"),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Faults {
    None,
    /// Connections are cut, and a node may die.
    Cuts,
}

struct Seat {
    client: Client,
    node: usize,
    shard: usize,
    conn: ConnId,
    open: bool,
    paused: bool,
    sending: Option<SendBuf>,
}

/// What a run exercised.
#[derive(Default, Debug)]
pub struct Tally {
    pub events: u64,
    pub results: u64,
    pub hops: u64,
    pub lost: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.results += other.results;
        self.hops += other.hops;
        self.lost += other.lost;
    }
}

pub struct World {
    rng: fastrand::Rng,
    faults: Faults,
    now: Instant,
    step: u64,
    nodes: Vec<Node>,
    seats: Vec<Seat>,
    wires: Wires,
    next_name: u64,
    hash: DefaultHasher,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let now = Instant::now();
        let (count, connections) = (rng.usize(2..=3), rng.usize(1..=2));
        let source = source();
        let node = |node| {
            let shards = rng.usize(1..=2);
            let configs = (0..shards).map(|shard| config(node, shard, shards, connections, seed)).collect();
            Node::new(node, configs, &source, now)
        };
        let nodes = (0..count).map(node).collect();
        let mut world = Self {
            rng,
            faults,
            now,
            step: 0,
            nodes,
            seats: Vec::new(),
            wires: Wires::default(),
            next_name: 0,
            hash: DefaultHasher::new(),
        };
        Node::tell_peers(&mut world.nodes);
        world
    }

    pub fn steps(&mut self) -> usize {
        self.rng.usize(100..1_200)
    }

    pub fn digest(&self) -> u64 {
        self.hash.finish()
    }

    /// One random thing happens.
    pub fn step(&mut self) {
        self.step += 1;
        self.now += Duration::from_micros(self.rng.u64(0..4_000));
        match self.rng.u32(0..200) {
            0..=7 if self.seats.iter().filter(|seat| seat.open).count() < 10 => self.connect(),
            8..=59 => self.act(),
            60..=89 => {
                if let Some(at) = self.any_seat() {
                    let most = self.rng.usize(1..400);
                    self.deliver(at, most);
                }
            }
            90..=109 => {
                if let Some(at) = self.any_seat() {
                    self.finish_send(at);
                }
            }
            110..=149 => self.move_wire(),
            150..=154 => self.answer_dial(),
            155..=169 => {
                let (node, shard) = self.any_shard();
                self.nodes[node].feed(self.now, shard);
                self.drain_outputs(node, shard);
            }
            170..=189 => {
                let (node, shard) = self.any_shard();
                self.turn(node, shard);
            }
            190..=194 => self.pass_time(),
            195 if self.faults == Faults::Cuts => self.cut(),
            196 if self.faults == Faults::Cuts && self.rng.u32(0..20) == 0 => self.kill(),
            197 => {
                if let Some(at) = self.any_seat() {
                    self.disconnect(at);
                }
            }
            _ => {}
        }
    }

    fn any_shard(&mut self) -> (usize, usize) {
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].alive).collect();
        let node = alive[self.rng.usize(0..alive.len())];
        (node, self.rng.usize(0..self.nodes[node].shards.len()))
    }

    fn any_seat(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.seats.len()).filter(|at| self.seats[*at].open).collect();
        (!open.is_empty()).then(|| open[self.rng.usize(0..open.len())])
    }

    fn connect(&mut self) {
        let framing = if self.rng.bool() { Framing::RawSocket } else { Framing::WebSocket };
        let serializer = Serializer::ALL[self.rng.usize(0..3)];
        let (node, shard) = self.any_shard();
        self.next_name += 1;
        let conn = self.nodes[node].conn(shard);
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert!(self.nodes[node].shards[shard].accept(self.now, conn, framing as usize, peer));
        let client = Client::new(self.next_name, framing, serializer);
        self.seats.push(Seat { client, node, shard, conn, open: true, paused: false, sending: None });
    }

    /// A logged-in client does something a client may do. A procedure belongs to one node, so that no two nodes hold one
    /// registration.
    fn act(&mut self) {
        let Some(at) = self.any_seat() else { return };
        let nodes = self.nodes.len();
        let rng = &mut self.rng;
        let node = self.seats[at].node;
        let client = &mut self.seats[at].client;
        if client.session.is_none() || client.gone {
            return;
        }
        let procedure = |node: usize, rng: &mut fastrand::Rng| format!("p{node}.{}", rng.u32(0..2));
        match rng.u32(0..100) {
            0..=14 => {
                let (policy, uri) = PATTERNS[rng.usize(0..PATTERNS.len())];
                client.subscribe(policy, uri);
            }
            15..=17 => {
                let held: Vec<u64> = client.subscriptions.keys().copied().collect();
                if !held.is_empty() {
                    client.unsubscribe(held[rng.usize(0..held.len())]);
                }
            }
            18..=44 => {
                let padding = if rng.u32(0..10) == 0 { 9_000 } else { rng.usize(0..40) };
                client.publish(TOPICS[rng.usize(0..TOPICS.len())], rng.bool(), padding);
            }
            45..=54 => client.register(&procedure(node, rng)),
            55..=56 => {
                let held: Vec<u64> = client.registrations.keys().copied().collect();
                if !held.is_empty() {
                    client.unregister(held[rng.usize(0..held.len())]);
                }
            }
            57..=79 => client.call(&procedure(rng.usize(0..nodes), rng)),
            80..=98 => {
                if !client.invocations.is_empty() {
                    let index = rng.usize(0..client.invocations.len());
                    client.answer(index, rng.bool());
                }
            }
            _ => client.goodbye(),
        }
    }

    fn deliver(&mut self, at: usize, most: usize) {
        let seat = &mut self.seats[at];
        if seat.paused || seat.client.outgoing.is_empty() {
            return;
        }
        let rest = seat.client.outgoing.split_off(most.min(seat.client.outgoing.len()));
        let mut bytes = std::mem::replace(&mut seat.client.outgoing, rest);
        let (node, shard, conn) = (seat.node, seat.shard, seat.conn);
        let flow = self.nodes[node].shards[shard].receive(self.now, conn, &mut bytes);
        self.seats[at].paused = flow == Flow::Pause;
        self.drain_outputs(node, shard);
    }

    fn drain_outputs(&mut self, node: usize, shard: usize) {
        while let Some(output) = self.nodes[node].shards[shard].poll() {
            if self.wires.act(&mut self.nodes, (node, shard), output) {
                continue;
            }
            let conn = conn_of(&output);
            let of_conn = |seat: &&mut Seat| (seat.node, seat.shard, seat.conn) == (node, shard, conn);
            let seat =
                self.seats.iter_mut().find(of_conn).expect("outputs name connections that were opened");
            assert!(seat.open, "nothing is wanted of a closed connection");
            match output {
                Output::Send(_) => seat.sending = Some(self.nodes[node].shards[shard].take_send(conn)),
                Output::ResumeReads(_) => seat.paused = false,
                Output::Close(_) => {
                    seat.open = false;
                    seat.client.gone = true;
                    seat.sending = None;
                    self.nodes[node].release(shard, conn);
                }
                _ => {}
            }
        }
    }

    fn finish_send(&mut self, at: usize) {
        let seat = &mut self.seats[at];
        let Some(buf) = seat.sending.take() else { return };
        for segment in &buf.segments {
            segment.as_slice().hash(&mut self.hash);
            seat.client.receive(self.step, segment.as_slice());
        }
        let (node, shard, conn) = (seat.node, seat.shard, seat.conn);
        self.nodes[node].shards[shard].sent(self.now, conn, buf, true);
        self.drain_outputs(node, shard);
    }

    /// Something happens on a random connection between nodes.
    fn move_wire(&mut self) {
        let busy = self.wires.busy();
        if busy.is_empty() {
            return;
        }
        let end = busy[self.rng.usize(0..busy.len())];
        let most = if self.rng.u32(0..4) == 0 { self.rng.usize(1..200) } else { usize::MAX };
        self.move_end(end, most);
    }

    fn move_end(&mut self, end: (usize, usize), most: usize) {
        let (place, sent) = self.wires.advance(&mut self.nodes, self.now, end, most);
        sent.hash(&mut self.hash);
        self.drain_outputs(place.node, place.shard);
        self.wires.sweep();
    }

    fn answer_dial(&mut self) {
        if self.wires.dials.is_empty() {
            return;
        }
        let at = self.rng.usize(0..self.wires.dials.len());
        let call = self.wires.dials.swap_remove(at);
        let target = &self.nodes[call.target];
        let refused = !target.alive || self.faults == Faults::Cuts && self.rng.u32(0..8) == 0;
        let shard = (!refused).then(|| self.rng.usize(0..target.shards.len()));
        self.wires.answer(&mut self.nodes, self.now, call, shard);
        self.drain_outputs(call.node, call.shard);
    }

    fn turn(&mut self, node: usize, shard: usize) {
        let changes = self.nodes[node].turn(self.now, shard);
        let from = self.nodes[node].id;
        if !changes.is_empty() {
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                self.nodes[other].tell_routes(from, &changes);
            }
        }
        self.drain_outputs(node, shard);
    }

    fn pass_time(&mut self) {
        for node in 0..self.nodes.len() {
            for shard in 0..self.nodes[node].shards.len() {
                if self.nodes[node].alive {
                    self.nodes[node].shards[shard].timeout(self.now);
                    self.drain_outputs(node, shard);
                }
            }
        }
    }

    fn cut(&mut self) {
        let wires = &mut self.wires.wires;
        if !wires.is_empty() {
            let at = self.rng.usize(0..wires.len());
            wires[at].cut(|coming| self.rng.usize(0..=coming));
        }
    }

    /// A node and its clients are gone; the others learn of it at different times.
    fn kill(&mut self) {
        if self.nodes.iter().filter(|node| node.alive).count() < 2 {
            return;
        }
        let (node, _) = self.any_shard();
        self.nodes[node].alive = false;
        for seat in self.seats.iter_mut().filter(|seat| seat.node == node) {
            seat.open = false;
            seat.client.gone = true;
        }
        self.wires.kill(node, |coming| self.rng.usize(0..=coming));
        Node::tell_peers(&mut self.nodes);
        let id = self.nodes[node].id;
        self.nodes.iter_mut().for_each(|node| node.tell_gone(id));
    }

    fn disconnect(&mut self, at: usize) {
        let (node, shard, conn) = (self.seats[at].node, self.seats[at].shard, self.seats[at].conn);
        self.nodes[node].shards[shard].closed(self.now, conn);
        self.drain_outputs(node, shard);
        assert!(!self.seats[at].open, "a broken connection is closed");
    }

    /// Lets everything under way arrive, and every invocation be answered.
    pub fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..20_000 {
            self.step += 1;
            self.now += Duration::from_millis(2);
            for at in 0..self.seats.len() {
                if !self.seats[at].open {
                    continue;
                }
                while !self.seats[at].client.invocations.is_empty() && !self.seats[at].client.gone {
                    self.seats[at].client.answer(0, false);
                }
                self.deliver(at, usize::MAX);
                if self.seats[at].open {
                    self.finish_send(at);
                }
            }
            for end in self.wires.busy().into_iter().rev() {
                if self.wires.is_busy(end) {
                    self.move_end(end, usize::MAX);
                }
            }
            self.answer_dial();
            for node in 0..self.nodes.len() {
                for shard in 0..self.nodes[node].shards.len() {
                    if self.nodes[node].alive {
                        self.nodes[node].feed(self.now, shard);
                        self.turn(node, shard);
                    }
                }
            }
            self.pass_time();
            quiet = if self.is_quiet() { quiet + 1 } else { 0 };
            if quiet > 3 {
                return;
            }
        }
        panic!("the world does not come to rest: {self:?}");
    }

    fn is_quiet(&self) -> bool {
        let quiet = |seat: &Seat| {
            !seat.open
                || seat.sending.is_none()
                    && (seat.client.gone
                        || seat.client.outgoing.is_empty()
                            && seat.client.invocations.is_empty()
                            && seat.client.requests.is_empty())
        };
        self.seats.iter().all(quiet)
            && self.nodes.iter().all(|node| !node.alive || node.is_quiet())
            && self.wires.is_quiet()
    }

    /// Nothing that was asked waits for an answer.
    pub fn check_answered(&self) {
        for seat in self.seats.iter().filter(|seat| seat.open && !seat.client.gone) {
            assert!(seat.client.requests.is_empty(), "{:?}", seat.client.requests);
        }
    }

    pub fn lift_faults(&mut self) {
        self.faults = Faults::None;
        // Lanes that back off connect again.
        self.now += Duration::from_secs(3);
        self.pass_time();
    }

    /// With every connection there, what is published and called anywhere reaches everywhere.
    pub fn check_all_reach_all(&mut self) {
        let mut published: Vec<Mark> = Vec::new();
        let mut held: Vec<String> = Vec::new();
        let errors: Vec<usize> = self.seats.iter().map(|seat| seat.client.errors.len()).collect();
        for seat in self.seats.iter().filter(|seat| seat.open && !seat.client.gone) {
            held.extend(seat.client.registrations.values().cloned());
        }
        for round in 0..2 {
            for seat in self.seats.iter_mut().filter(|seat| seat.open && seat.client.session.is_some()) {
                if seat.client.gone {
                    continue;
                }
                for topic in TOPICS {
                    published.push(seat.client.publish(topic, round == 1, 5));
                }
                held.iter().for_each(|procedure| seat.client.call(procedure));
            }
        }
        self.settle();
        self.check_answered();
        for (seat, errors) in self.seats.iter().zip(errors).filter(|(seat, _)| seat.open && !seat.client.gone)
        {
            assert_eq!(seat.client.errors[errors..], [] as [String; 0], "client {}", seat.client.name);
            for subscription in seat.client.subscriptions.values() {
                let policy = match subscription.policy {
                    "prefix" => Match::Prefix,
                    "wildcard" => Match::Wildcard,
                    _ => Match::Exact,
                };
                for mark in &published {
                    let due =
                        mark.sender != seat.client.name && uri::matches(&subscription.uri, policy, &mark.uri);
                    assert!(
                        !due || subscription.got.contains(mark),
                        "client {} misses {mark:?} on {policy:?} {}",
                        seat.client.name,
                        subscription.uri
                    );
                }
            }
        }
    }

    pub fn tally(&mut self) -> Tally {
        let mut tally = Tally::default();
        for seat in &self.seats {
            tally.results += seat.client.answered;
            tally.events += seat.client.subscriptions.values().map(|held| held.got.len() as u64).sum::<u64>();
        }
        let now = self.now;
        for metrics in self.nodes.iter_mut().flat_map(|node| node.metrics(now)) {
            tally.hops += metrics.get(Counter::RelayHops);
            tally.lost += metrics.get(Counter::RelayLost);
            assert_eq!(metrics.get(Counter::RelayBadFrames), 0);
        }
        tally
    }

    pub fn leave_all(&mut self) {
        for at in 0..self.seats.len() {
            if self.seats[at].open {
                self.disconnect(at);
            }
        }
        self.settle();
    }

    /// Everything that clients held is gone, on every shard of every node.
    pub fn check_empty(&mut self) {
        let now = self.now;
        self.nodes.iter_mut().filter(|node| node.alive).for_each(|node| node.check_empty(now));
        // A drained node keeps no connection.
        for at in 0..self.nodes.len() {
            self.nodes[at].tell(&FeedDown::Drain);
        }
        self.settle();
        let open = |wire: &Wire| wire.ends.iter().any(|end| end.open);
        assert!(!self.wires.wires.iter().any(open), "every connection was closed");
        let drained =
            |node: &Node| !node.alive || node.shards.iter().all(dataplane::shard::Shard::is_drained);
        assert!(self.nodes.iter().all(drained));
    }
}

/// One realm, strict.
fn source() -> Source {
    let realm = Realm { strict: true, ..Realm::new("realm1", Anonymous::Anybody) };
    Source { version: SnapshotVersion(1), realms: vec![realm], ..Source::default() }
}

fn config(node: usize, shard: usize, shards: usize, connections: usize, seed: u64) -> ShardConfig {
    let mut config = node::config(node, shard, shards, seed);
    config.slow_receiver =
        SlowReceiver { policy: SlowPolicy::DropOldest, queue_max: 64 << 20, reply_reserve: 1 << 20 };
    if let Some(relay) = &mut config.relay {
        relay.connections = connections;
    }
    config
}

/// Requests that stay open are named in failures.
impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open: Vec<&Request> = self.seats.iter().flat_map(|seat| seat.client.requests.values()).collect();
        write!(f, "step {} open requests {open:?} dials {:?}", self.step, self.wires.dials)
    }
}
