//! Whole sets of nodes in one thread from a seed: loss, delay, links that come and go.
//!
//! A failing seed is in the message of the failure. `BROADCAST_SEEDS=1000` runs more of them.

use super::*;
use bytes::Bytes;
use common::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

struct World {
    rng: fastrand::Rng,
    start: Instant,
    now: Instant,
    nodes: Vec<Node>,
    /// By the time they arrive, and a number that keeps them apart.
    frames: BTreeMap<(Instant, u64), (usize, usize, Bytes)>,
    numbers: u64,
    /// Of a hundred frames.
    loss: u32,
    links: BTreeSet<(usize, usize)>,
    exchanges: u64,
    /// Payloads that came by exchange alone.
    exchanged: u64,
}

struct Node {
    machine: Broadcast,
    deadline: Option<Instant>,
    delivered: BTreeMap<Vec<u8>, u32>,
    holds: BTreeSet<Vec<u8>>,
    owes: BTreeSet<usize>,
}

fn id_of(node: usize) -> NodeId {
    NodeId([node as u8; 16])
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl World {
    fn new(seed: u64, nodes: usize, mesh_max: usize) -> Self {
        let start = Instant::now();
        let settings = Settings { mesh_max, ..Settings::new(IdKey::of(b"k"), ms(1_000), ms(60_000)) };
        let node = || Node {
            machine: Broadcast::new(start, settings.clone()),
            deadline: None,
            delivered: BTreeMap::new(),
            holds: BTreeSet::new(),
            owes: BTreeSet::new(),
        };
        Self {
            rng: fastrand::Rng::with_seed(seed),
            start,
            now: start,
            nodes: (0..nodes).map(|_| node()).collect(),
            frames: BTreeMap::new(),
            numbers: 0,
            loss: 0,
            links: BTreeSet::new(),
            exchanges: 0,
            exchanged: 0,
        }
    }

    /// All pairs, in an order of chance.
    fn connected(seed: u64, nodes: usize, mesh_max: usize) -> Self {
        let mut world = Self::new(seed, nodes, mesh_max);
        let mut pairs: Vec<_> = (0..nodes).flat_map(|a| (a + 1..nodes).map(move |b| (a, b))).collect();
        world.rng.shuffle(&mut pairs);
        pairs.into_iter().for_each(|(a, b)| world.link(a, b));
        world
    }

    fn link(&mut self, a: usize, b: usize) {
        if self.links.insert((a.min(b), a.max(b))) {
            for (one, other) in [(a, b), (b, a)] {
                self.nodes[one].machine.up(id_of(other));
                let rtt = ms(self.rng.u64(1..20));
                self.nodes[one].machine.rtt(id_of(other), rtt);
                self.drain(one);
            }
            self.exchange(a, b);
        }
    }

    fn unlink(&mut self, a: usize, b: usize) {
        if self.links.remove(&(a.min(b), a.max(b))) {
            for (one, other) in [(a, b), (b, a)] {
                self.nodes[one].machine.down(id_of(other));
                self.nodes[one].owes.remove(&other);
                self.drain(one);
            }
            self.frames.retain(|_, (from, to, _)| (*from.min(to), *from.max(to)) != (a.min(b), a.max(b)));
        }
    }

    fn exchange(&mut self, a: usize, b: usize) {
        let all: BTreeSet<_> = self.nodes[a].holds.union(&self.nodes[b].holds).cloned().collect();
        self.exchanges += 1;
        for (one, other) in [(a, b), (b, a)] {
            self.exchanged += (all.len() - self.nodes[one].holds.len()) as u64;
            self.nodes[one].holds = all.clone();
            self.nodes[one].owes.remove(&other);
            self.nodes[one].machine.exchanged(id_of(other));
        }
    }

    fn send(&mut self, from: usize, payload: &[u8]) {
        self.nodes[from].holds.insert(payload.to_vec());
        self.nodes[from].machine.send(self.now, payload.to_vec());
        self.drain(from);
    }

    fn drain(&mut self, from: usize) {
        while let Some(output) = self.nodes[from].machine.poll() {
            match output {
                Output::Send { to, bytes } => {
                    let to = usize::from(to.0[0]);
                    assert!(
                        self.links.contains(&(from.min(to), from.max(to))),
                        "sent to who is not connected"
                    );
                    if self.rng.u32(0..100) >= self.loss {
                        self.numbers += 1;
                        let at = self.now + ms(self.rng.u64(1..10));
                        self.frames.insert((at, self.numbers), (from, to, bytes));
                    }
                }
                Output::Deliver { payload, .. } => {
                    let node = &mut self.nodes[from];
                    *node.delivered.entry(payload.to_vec()).or_default() += 1;
                    node.holds.insert(payload.to_vec());
                }
                Output::Owes(peer) => _ = self.nodes[from].owes.insert(usize::from(peer.0[0])),
            }
        }
        self.nodes[from].deadline = self.nodes[from].machine.deadline();
    }

    /// Lets time pass. What is owed is exchanged when `exchange` says so.
    fn run(&mut self, time: Duration, exchange: bool) {
        let until = self.now + time;
        loop {
            let frame = self.frames.first_key_value().map(|((at, _), _)| *at);
            let timers = self.nodes.iter().filter_map(|node| node.deadline);
            let Some(next) = frame.into_iter().chain(timers).min().filter(|at| *at <= until) else { break };
            self.now = self.now.max(next);
            if frame == Some(next) {
                let (_, (from, to, bytes)) = self.frames.pop_first().unwrap();
                self.nodes[to].machine.frame(self.now, id_of(from), &bytes).unwrap();
                self.drain(to);
            } else {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].deadline.is_some_and(|at| at <= self.now) {
                        self.nodes[node].machine.timeout(self.now);
                        self.drain(node);
                        assert!(self.nodes[node].deadline.is_none_or(|at| at > self.now));
                    }
                }
            }
            for node in 0..self.nodes.len() {
                while let Some(&peer) = self.nodes[node].owes.first().filter(|_| exchange) {
                    self.exchange(node, peer);
                }
            }
        }
        self.now = until;
    }

    fn total(&self, count: impl Fn(Counts) -> u64) -> u64 {
        self.nodes.iter().map(|node| count(node.machine.counts())).sum()
    }

    /// Everybody but its sender was delivered each of `sent` once.
    fn check_delivered(&self, seed: u64, sent: &BTreeMap<Vec<u8>, usize>) {
        for (index, node) in self.nodes.iter().enumerate() {
            for (payload, sender) in sent {
                let times = node.delivered.get(payload).copied().unwrap_or(0);
                let after = self.now - self.start;
                assert_eq!(
                    times,
                    u32::from(index != *sender),
                    "seed {seed}: node {index} of {sender}, {after:?}"
                );
            }
        }
    }
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let more = std::env::var("BROADCAST_SEEDS").ok().map(|text| text.parse().expect("a number"));
    0..more.unwrap_or(count)
}

#[test]
fn lost_frames_are_late_and_nothing_is_delivered_twice() {
    let mut repaired = 0;
    for seed in seeds(24) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let nodes = rng.usize(3..=30);
        let mesh_max = if rng.bool() { MESH_MAX } else { 1 };
        let mut world = World::connected(seed, nodes, mesh_max);
        world.loss = rng.u32(0..20);
        let mut sent = BTreeMap::new();
        for number in 0..30u8 {
            let from = rng.usize(0..nodes);
            sent.insert(vec![number], from);
            world.send(from, &[number]);
            world.run(ms(rng.u64(0..200)), false);
        }
        world.run(Duration::from_secs(30), false);
        world.check_delivered(seed, &sent);
        // Three grafts in vain happen, and harm nothing.
        assert!(world.total(|counts| counts.owed) <= 30, "seed {seed}");
        assert!(world.nodes.iter().all(|node| node.machine.ids() == (30, 0)), "seed {seed}");
        let outstanding =
            |node: &Node| (0..nodes).filter_map(|n| node.machine.outstanding(id_of(n))).sum::<usize>();
        let outstanding: usize = world.nodes.iter().map(outstanding).sum();
        assert_eq!(outstanding, 0, "seed {seed}: all of it was acknowledged");
        repaired += world.total(|counts| counts.grafted);
    }
    assert!(repaired > 0, "a run without a loss proves nothing");
}

#[test]
fn a_tree_that_has_settled_carries_hardly_any_copy_twice() {
    for seed in seeds(6) {
        let nodes = 12 + seed as usize % 19;
        let mut world = World::connected(seed, nodes, 1);
        for number in 0..20u8 {
            world.send(0, &[number]);
            world.run(ms(400), false);
        }
        let before = (world.total(|counts| counts.pushed), world.total(|counts| counts.duplicates));
        for number in 20..40u8 {
            world.send(0, &[number]);
            world.run(ms(400), false);
        }
        let pushed = world.total(|counts| counts.pushed) - before.0;
        let duplicates = world.total(|counts| counts.duplicates) - before.1;
        let needed = 20 * (nodes as u64 - 1);
        assert_eq!(pushed - duplicates, needed, "seed {seed}");
        assert!(duplicates * 20 <= needed, "seed {seed}: {duplicates} of {pushed}");
    }
}

#[test]
fn a_small_mesh_pushes_one_copy_to_each_at_once() {
    let mut world = World::connected(1, MESH_MAX, MESH_MAX);
    for number in 0..10u8 {
        world.send(usize::from(number) % MESH_MAX, &[number]);
        world.run(ms(10), false);
        assert!(world.nodes.iter().all(|node| node.holds.contains(&vec![number])));
    }
    world.run(ms(500), false);
    assert_eq!(world.total(|counts| counts.pushed), 10 * (MESH_MAX as u64 - 1));
    assert_eq!(world.total(|counts| counts.duplicates), 0);
}

#[test]
fn links_that_come_and_go_leave_nobody_without_a_payload() {
    let mut by_exchange = 0;
    for seed in seeds(24) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let nodes = rng.usize(3..=30);
        let mesh_max = if rng.bool() { MESH_MAX } else { 1 };
        let mut world = World::connected(seed, nodes, mesh_max);
        world.loss = rng.u32(0..10);
        for number in 0..40u8 {
            for _ in 0..rng.usize(0..nodes) {
                let (a, b) = (rng.usize(0..nodes), rng.usize(0..nodes));
                match rng.u8(0..3) {
                    _ if a == b => {}
                    0 => world.unlink(a, b),
                    _ => world.link(a, b),
                }
            }
            world.send(rng.usize(0..nodes), &[number]);
            world.run(ms(rng.u64(0..300)), true);
        }
        let all: Vec<_> = (0..nodes).flat_map(|a| (a + 1..nodes).map(move |b| (a, b))).collect();
        all.into_iter().for_each(|(a, b)| world.link(a, b));
        world.run(Duration::from_secs(20), true);
        for node in &world.nodes {
            assert_eq!(node.holds.len(), 40, "seed {seed}");
            assert!(node.delivered.values().all(|times| *times == 1), "seed {seed}");
        }
        by_exchange += world.exchanged;
    }
    assert!(by_exchange > 0);
}

#[test]
fn a_peer_that_says_nothing_for_long_is_owed_an_exchange() {
    // It takes everything and answers nothing, and connections stay up.
    let mut world = World::connected(3, 2, MESH_MAX);
    world.loss = 100;
    world.send(0, b"lost");
    world.run(IDS_TIME - ms(2_000), false);
    assert!(world.nodes[0].owes.is_empty(), "it may still be announced and asked for");
    world.run(ms(4_000), false);
    assert_eq!(world.nodes[0].owes, BTreeSet::from([1]));
    world.loss = 0;
    world.exchange(0, 1);
    assert!(world.nodes[1].holds.contains(&b"lost"[..]));
    world.send(0, b"later");
    world.run(ms(100), false);
    assert_eq!((world.nodes[1].delivered.len(), world.nodes[0].machine.counts().owed), (1, 1));
}

#[test]
fn more_than_may_be_outstanding_makes_an_exchange_due_at_once() {
    let mut world = World::connected(3, 3, MESH_MAX);
    world.loss = 100;
    for number in 0..=OUTSTANDING_MAX as u32 {
        world.send(0, &number.to_le_bytes());
    }
    assert_eq!(world.nodes[0].owes, BTreeSet::from([1, 2]));
    assert_eq!(world.nodes[0].machine.outstanding(id_of(1)), Some(OUTSTANDING_MAX));
    assert_eq!(world.nodes[0].machine.counts().owed, 2, "said once");
}

#[test]
fn a_payload_that_is_announced_and_never_given_is_owed() {
    let (a, now) = (id_of(1), Instant::now());
    let mut machine = Broadcast::new(now, Settings::new(IdKey::of(b"k"), ms(1_000), ms(60_000)));
    machine.up(a);
    let announced = Message::Ihave(vec![(Id([9; 16]), 0)]).encode();
    machine.frame(now, a, &announced).unwrap();
    let mut grafts = 0;
    let mut at = now;
    while machine.counts().given_up == 0 {
        at = machine.deadline().unwrap();
        machine.timeout(at);
        while let Some(output) = machine.poll() {
            match output {
                Output::Send { bytes, .. } => {
                    let wanted = Message::Graft(vec![Id([9; 16])]).encode();
                    grafts += u8::from(bytes == wanted);
                }
                Output::Owes(peer) => assert_eq!(peer, a),
                Output::Deliver { .. } => panic!("nothing came"),
            }
        }
    }
    assert_eq!((grafts, machine.counts().owed), (GRAFTS_MAX, 1));
    assert_eq!(at - now, FIRST_GRAFT_MIN + NEXT_GRAFT_MIN * 3);
}

#[test]
fn a_payload_under_a_wrong_id_and_a_stranger_change_nothing() {
    let (a, now) = (id_of(1), Instant::now());
    let mut machine = Broadcast::new(now, Settings::new(IdKey::of(b"k"), ms(1_000), ms(60_000)));
    let payload = &b"payload"[..];
    let good = Message::Gossip { round: 0, id: IdKey::of(b"k").id(payload), payload }.encode();
    machine.frame(now, a, &good).unwrap();
    assert_eq!((machine.poll(), machine.ids()), (None, (0, 0)), "a stranger");
    machine.up(a);
    let bad = Message::Gossip { round: 0, id: IdKey::of(b"other").id(payload), payload }.encode();
    assert!(machine.frame(now, a, &bad).is_err());
    assert_eq!(machine.ids(), (0, 0));
    machine.frame(now, a, &good).unwrap();
    assert_eq!(machine.ids(), (1, 0));
}

#[test]
fn a_graft_is_answered_with_so_many_bytes() {
    let (a, b, now) = (id_of(1), id_of(2), Instant::now());
    let mut machine = Broadcast::new(now, Settings::new(IdKey::of(b"k"), ms(1_000), ms(60_000)));
    machine.up(a);
    let mut ids = vec![];
    for number in 0..20u8 {
        let payload = vec![number; 256 * 1_024];
        ids.push(IdKey::of(b"k").id(&payload));
        machine.send(now, payload);
    }
    machine.up(b);
    while machine.poll().is_some() {}
    machine.frame(now, b, &Message::Graft(ids).encode()).unwrap();
    let mut bytes = 0;
    while let Some(output) = machine.poll() {
        let Output::Send { bytes: sent, .. } = output else { panic!("{output:?}") };
        bytes += sent.len();
    }
    assert!((GRAFT_BYTES_MAX..GRAFT_BYTES_MAX + 300 * 1_024).contains(&bytes), "{bytes}");
}

#[test]
fn a_path_that_is_much_longer_than_an_announced_one_is_left() {
    let (near, far, now) = (id_of(1), id_of(2), Instant::now());
    let settings = Settings { mesh_max: 1, ..Settings::new(IdKey::of(b"k"), ms(1_000), ms(60_000)) };
    let mut machine = Broadcast::new(now, settings);
    machine.up(far);
    machine.up(near);
    while machine.poll().is_some() {}
    let payload = &b"payload"[..];
    let id = IdKey::of(b"k").id(payload);
    machine.frame(now, near, &Message::Ihave(vec![(id, 1)]).encode()).unwrap();
    let gossip = Message::Gossip { round: 1 + OPTIMISE_HOPS, id, payload }.encode();
    machine.frame(now, far, &gossip).unwrap();
    let sent: Vec<_> = std::iter::from_fn(|| machine.poll())
        .filter_map(|output| match output {
            Output::Send { to, bytes } => Some((to, bytes.to_vec())),
            _ => None,
        })
        .collect();
    let expected = [(near, Message::Graft(vec![]).encode()), (far, Message::Prune(id).encode())];
    assert_eq!(sent, expected);
}
