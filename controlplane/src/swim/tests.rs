//! Whole clusters in one thread, from one seed: loss, delay, pauses, crashes, cuts.

mod leaving;

use super::identity::{About, Identity};
use super::seal::Keyring;
use super::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

struct Host {
    swim: Swim,
    /// Stands still until then; what arrives waits.
    paused_until: Option<Instant>,
    inbox: Vec<Packet>,
}

#[derive(Clone)]
struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    /// The node whose link it came over.
    link: Option<Uuid>,
    bytes: Vec<u8>,
}

impl Host {
    fn take(&mut self, now: Instant, packet: Packet) {
        match packet.link {
            Some(node) => self.swim.linked(now, node, packet.from, &packet.bytes),
            None => self.swim.datagram(now, packet.from, &packet.bytes),
        }
    }
}

/// A network of hosts; the index is the node.
struct World {
    now: Instant,
    start: Instant,
    rng: fastrand::Rng,
    seed: u64,
    hosts: Vec<Option<Host>>,
    flying: BTreeMap<(Instant, u64), Packet>,
    sent: u64,
    /// Of UDP; parts of 1.
    loss: f64,
    /// There are links between all hosts.
    links: bool,
    /// Nothing passes from the first to the second.
    cuts: Vec<(usize, usize)>,
    /// Hosts with different numbers do not hear each other.
    sides: Vec<u8>,
    starts: u64,
    changes: Vec<(Instant, usize, Change)>,
    dropped: Vec<(usize, DropReason, String)>,
}

fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host as u8 + 1], 7_000))
}

fn node(host: usize) -> Uuid {
    Uuid::from_u128(host as u128 + 1)
}

fn settings(host: usize, epoch: u64, seed: u64) -> Settings {
    let about = About { protocol: PROTOCOL, version: "1".into(), ..About::default() };
    let identity =
        Identity { node: node(host), epoch, about: Arc::new(about), ..Identity::unknown_at(address(host)) };
    Settings {
        identity,
        env: "test".into(),
        keys: Keyring::parse(KEY).unwrap(),
        nonce: Uuid::from_u64_pair(epoch, host as u64).into_bytes(),
        seed,
        seeds: vec![address(0), address(1)],
        probe_interval: Duration::from_millis(250),
        probe_timeout: Duration::from_millis(100),
        suspicion: Duration::from_millis(2_500),
        forget_after: Duration::from_secs(86_400),
    }
}

impl World {
    fn new(hosts: usize, seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            start: now,
            rng: fastrand::Rng::with_seed(seed),
            seed,
            hosts: (0..hosts).map(|_| None).collect(),
            flying: BTreeMap::new(),
            sent: 0,
            loss: 0.0,
            links: false,
            cuts: vec![],
            sides: vec![0; hosts],
            starts: 0,
            changes: vec![],
            dropped: vec![],
        };
        (0..hosts).for_each(|host| world.boot(host));
        world
    }

    /// A cluster in which everybody knows everybody.
    fn joined(hosts: usize, seed: u64) -> Self {
        let mut world = Self::new(hosts, seed);
        world.run(Duration::from_secs(5));
        world.demand_all(State::Alive);
        world
    }

    fn boot(&mut self, host: usize) {
        self.starts += 1;
        let settings = settings(host, self.starts, self.rng.u64(..));
        self.boot_with(host, settings);
    }

    fn boot_with(&mut self, host: usize, settings: Settings) {
        let swim = Swim::new(self.now, settings);
        self.hosts[host] = Some(Host { swim, paused_until: None, inbox: vec![] });
    }

    fn swim(&mut self, host: usize) -> &mut Swim {
        &mut self.hosts[host].as_mut().expect("a host that runs").swim
    }

    fn pause(&mut self, host: usize, time: Duration) {
        let until = self.now + time;
        self.hosts[host].as_mut().expect("a host that runs").paused_until = Some(until);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.next().filter(|next| *next <= end) {
            self.now = next.max(self.now);
            self.deliver();
            (0..self.hosts.len()).for_each(|host| self.wake(host));
            (0..self.hosts.len()).for_each(|host| self.drain(host));
        }
        self.now = end;
    }

    fn next(&self) -> Option<Instant> {
        let flying = self.flying.keys().next().map(|(at, _)| *at);
        let hosts = self.hosts.iter().flatten().filter_map(|host| host.paused_until.or(host.swim.deadline()));
        flying.into_iter().chain(hosts).min()
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let packet = entry.remove();
            let index =
                self.hosts.iter().flatten().position(|host| host.swim.identity().address == packet.to);
            let Some(host) = index.and_then(|index| self.hosts.iter_mut().flatten().nth(index)) else {
                continue;
            };
            match host.paused_until {
                Some(_) => host.inbox.push(packet),
                None => host.take(self.now, packet),
            }
        }
    }

    /// What a process does when its time has come: it may see its timers or its packets first.
    fn wake(&mut self, index: usize) {
        let timers_first = self.rng.bool();
        let Some(host) = &mut self.hosts[index] else { return };
        if host.paused_until.is_some_and(|until| until > self.now) {
            return;
        }
        let resumed = host.paused_until.take().is_some();
        if (!resumed || timers_first) && host.swim.deadline().is_some_and(|at| at <= self.now) {
            host.swim.timeout(self.now);
        }
        for packet in std::mem::take(&mut host.inbox) {
            host.take(self.now, packet);
        }
        if host.swim.deadline().is_some_and(|at| at <= self.now) {
            host.swim.timeout(self.now);
        }
    }

    fn drain(&mut self, index: usize) {
        loop {
            let Some(host) = &mut self.hosts[index] else { return };
            let from = host.swim.identity().address;
            match host.swim.poll() {
                Some(Output::Send { to, packet }) => self.send(index, from, to, packet),
                Some(Output::Fallback { node, packet }) => self.send_linked(index, from, node, packet),
                Some(Output::Change(change)) => self.changes.push((self.now, index, change)),
                Some(Output::Dropped { reason, detail, .. }) => self.dropped.push((index, reason, detail)),
                Some(Output::Rejoined) => {}
                None => return,
            }
        }
    }

    fn send(&mut self, index: usize, from: SocketAddr, to: SocketAddr, packet: Vec<u8>) {
        assert!(packet.len() <= machine::DATAGRAM_BYTES_MAX);
        let target = self.hosts.iter().position(|host| {
            let host = host.as_ref();
            host.is_some_and(|host| host.swim.identity().address == to)
        });
        let heard = target.is_some_and(|target| self.passes(index, target));
        if !heard || self.rng.f64() < self.loss {
            return;
        }
        let delay = Duration::from_micros(self.rng.u64(100..20_000));
        self.fly(delay, Packet { from, to, link: None, bytes: packet });
    }

    /// A link carries packets as long as both directions pass.
    fn send_linked(&mut self, index: usize, from: SocketAddr, node: Uuid, bytes: Vec<u8>) {
        let target = self.hosts.iter().position(|host| {
            let host = host.as_ref();
            host.is_some_and(|host| host.swim.identity().node == node)
        });
        let Some(target) = target.filter(|_| self.links) else { return };
        if self.passes(index, target) && self.passes(target, index) {
            let to = self.hosts[target].as_ref().expect("it was found").swim.identity().address;
            let own = self.hosts[index].as_ref().expect("it sends").swim.identity().node;
            let delay = Duration::from_micros(self.rng.u64(1_000..30_000));
            self.fly(delay, Packet { from, to, link: Some(own), bytes });
        }
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        self.sides[from] == self.sides[to] && !self.cuts.contains(&(from, to))
    }

    fn fly(&mut self, delay: Duration, packet: Packet) {
        self.sent += 1;
        self.flying.insert((self.now + delay, self.sent), packet);
    }

    /// Most changes that one host saw of one other since then.
    fn changes_max(&self, since: Instant) -> usize {
        let mut counts = BTreeMap::<_, usize>::new();
        for (_, by, change) in self.changes.iter().filter(|(at, ..)| *at >= since) {
            *counts.entry((*by, change.member.identity.node)).or_default() += 1;
        }
        counts.values().copied().max().unwrap_or_default()
    }

    fn view(&self, host: usize) -> BTreeMap<Uuid, State> {
        let host = self.hosts[host].as_ref().expect("a host that runs");
        host.swim.members().map(|member| (member.identity.node, member.state)).collect()
    }

    /// Everybody who runs sees everybody else as `state`.
    fn demand_all(&self, state: State) {
        for host in (0..self.hosts.len()).filter(|host| self.hosts[*host].is_some()) {
            let others = (0..self.hosts.len()).filter(|other| *other != host && self.hosts[*other].is_some());
            let view = self.view(host);
            for other in others {
                let seen = view.get(&node(other));
                assert_eq!(seen, Some(&state), "seed {}: {other} as {host} sees it: {view:?}", self.seed);
            }
        }
    }

    /// How long after `since` each other host that runs saw `host` become `state`.
    fn seen_after(&self, since: Instant, host: usize, state: State) -> Vec<Duration> {
        let watchers = (0..self.hosts.len()).filter(|other| *other != host && self.hosts[*other].is_some());
        let first = |watcher: usize| {
            let mut changes = self.changes.iter().filter(|(at, by, change)| {
                let right = change.member.identity.node == node(host) && change.member.state == state;
                *at >= since && *by == watcher && right
            });
            changes.next().map(|(at, ..)| *at - since)
        };
        watchers
            .map(|watcher| first(watcher).unwrap_or_else(|| panic!("seed {}: never seen", self.seed)))
            .collect()
    }

    fn false_deaths(&self) -> usize {
        self.changes.iter().filter(|(.., change)| change.member.state == State::Down).count()
    }
}

/// A few; a longer hunt says how many in `SWIM_SEEDS`.
fn seeds() -> std::ops::Range<u64> {
    0..std::env::var("SWIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

#[test]
fn a_node_from_an_old_disk_comes_back_though_others_know_a_later_life() {
    for seed in 0..5 {
        let mut world = World::joined(4, seed);
        world.hosts[3] = None;
        world.run(Duration::from_secs(20));
        world.boot_with(3, settings(3, 0, seed));
        world.run(Duration::from_secs(15));
        world.demand_all(State::Alive);
        assert!(world.swim(3).identity().epoch > 0);
    }
}

#[test]
fn a_crash_is_seen_by_all_within_five_seconds() {
    let mut slowest = Duration::ZERO;
    for seed in seeds() {
        for hosts in [3, 5, 9] {
            let mut world = World::joined(hosts, seed);
            // At any moment of the others' rounds.
            let until = Duration::from_millis(world.rng.u64(0..2_000));
            world.run(until);
            let since = world.now;
            world.hosts[hosts - 1] = None;
            world.run(Duration::from_secs(8));
            let longest = world.seen_after(since, hosts - 1, State::Down).into_iter().max();
            slowest = slowest.max(longest.expect("somebody watches"));
            assert!(longest < Some(Duration::from_secs(5)), "seed {seed}, {hosts} hosts: {longest:?}");
        }
    }
    println!("slowest: {slowest:?}");
}

#[test]
fn loss_and_pauses_kill_nobody() {
    for seed in seeds() {
        for hosts in [3, 6, 9] {
            let mut world = World::joined(hosts, seed);
            world.loss = 0.1;
            for _ in 0..6 {
                let host = world.rng.usize(0..hosts);
                world.pause(host, Duration::from_secs(2));
                let next = Duration::from_millis(world.rng.u64(2_500..5_000));
                world.run(next);
            }
            assert_eq!(world.false_deaths(), 0, "seed {seed}, {hosts} hosts");
            world.loss = 0.0;
            world.run(Duration::from_secs(5));
            world.demand_all(State::Alive);
        }
    }
}

#[test]
fn a_cut_heals_on_both_sides() {
    for seed in seeds() {
        for (hosts, minority) in [(3, 1), (6, 3), (9, 2)] {
            let mut world = World::joined(hosts, seed);
            world.loss = 0.05;
            world.sides[..minority].fill(1);
            world.run(Duration::from_secs(30));
            assert_eq!(world.view(0)[&node(hosts - 1)], State::Down, "seed {seed}");
            world.sides.fill(0);
            world.run(Duration::from_secs(8));
            // What is under suspicion because of lost packets has time to object.
            world.loss = 0.0;
            world.run(Duration::from_secs(2));
            world.demand_all(State::Alive);
        }
    }
}

#[test]
fn a_node_comes_back_after_a_crash_and_at_another_address() {
    for seed in seeds() {
        let mut world = World::joined(4, seed);
        world.hosts[3] = None;
        world.run(Duration::from_millis(world.seed * 200));
        world.starts += 1;
        let mut settings = settings(3, world.starts, seed);
        settings.identity.address = "10.0.9.9:7001".parse().unwrap();
        let since = world.now;
        world.boot_with(3, settings);
        world.run(Duration::from_secs(5));
        world.demand_all(State::Alive);
        assert!(world.seen_after(since, 3, State::Alive).iter().all(|after| *after < Duration::from_secs(2)));
        let moved = world.swim(0).members().find(|member| member.identity.node == node(3)).cloned();
        assert_eq!(moved.map(|member| member.identity.address.port()), Some(7_001));
    }
}

#[test]
fn links_keep_nodes_alive_when_udp_is_lost() {
    for seed in seeds() {
        for hosts in [2, 3, 9] {
            let mut world = World::joined(hosts, seed);
            world.links = true;
            world.loss = 1.0;
            let since = world.now;
            world.run(Duration::from_secs(60));
            assert_eq!(world.changes_max(since), 0, "seed {seed}, {hosts} hosts");
            world.demand_all(State::Alive);
            assert!(world.swim(0).counts().fallbacks > 100);
            // A crash is still a crash; the news travels with probes only.
            let since = world.now;
            world.hosts[hosts - 1] = None;
            world.run(Duration::from_secs(10));
            let longest = world.seen_after(since, hosts - 1, State::Down).into_iter().max();
            assert!(longest < Some(Duration::from_secs(8)), "seed {seed}, {hosts} hosts: {longest:?}");
            // Without either path everybody is gone.
            world.links = false;
            world.run(Duration::from_secs(30));
            let view = world.view(0);
            assert!(view.values().all(|state| *state == State::Down), "seed {seed}: {view:?}");
        }
    }
}

#[test]
fn links_between_nodes_change_nothing_about_crashes_losses_and_pauses() {
    for seed in seeds() {
        let mut world = World::joined(6, seed);
        world.links = true;
        world.loss = 0.1;
        for _ in 0..6 {
            let host = world.rng.usize(0..6);
            world.pause(host, Duration::from_secs(2));
            let next = Duration::from_millis(world.rng.u64(2_500..5_000));
            world.run(next);
        }
        assert_eq!(world.false_deaths(), 0, "seed {seed}");
        world.loss = 0.0;
        let since = world.now;
        world.hosts[5] = None;
        world.run(Duration::from_secs(8));
        let longest = world.seen_after(since, 5, State::Down).into_iter().max();
        assert!(longest < Some(Duration::from_secs(5)), "seed {seed}: {longest:?}");
    }
}

/// Between the first two hosts nothing passes in one direction, or in either; the others hear everybody.
#[test]
fn cuts_that_others_see_around_make_nobody_flap() {
    for seed in seeds() {
        for hosts in [3, 6] {
            for cuts in [vec![(0, 1)], vec![(1, 0)], vec![(0, 1), (1, 0)]] {
                let mut world = World::joined(hosts, seed);
                world.links = true;
                world.cuts = cuts;
                let since = world.now;
                world.run(Duration::from_secs(60));
                let changes = world.changes_max(since);
                assert!(changes <= 2, "seed {seed}, {hosts} hosts, {:?}: {changes}", world.cuts);
                world.cuts.clear();
                world.run(Duration::from_secs(10));
                world.demand_all(State::Alive);
                let healed = world.now;
                world.run(Duration::from_secs(60));
                assert_eq!(world.changes_max(healed), 0, "seed {seed}, {hosts} hosts");
            }
        }
    }
}

/// One of two hears the other and is not heard: nobody can tell it so.
#[test]
fn a_one_way_cut_between_the_only_two_is_a_cut() {
    for seed in seeds() {
        let mut world = World::joined(2, seed);
        world.links = true;
        world.cuts = vec![(0, 1)];
        let since = world.now;
        world.run(Duration::from_secs(60));
        assert!(world.changes_max(since) <= 2, "seed {seed}: {:?}", world.changes);
        assert_eq!(world.view(1)[&node(0)], State::Down, "seed {seed}");
        world.cuts.clear();
        world.run(Duration::from_secs(10));
        world.demand_all(State::Alive);
        let healed = world.now;
        world.run(Duration::from_secs(30));
        assert_eq!(world.changes_max(healed), 0, "seed {seed}");
    }
}

/// Its seeds are of no use to it any more: it finds those that it knew.
#[test]
fn an_isolated_node_comes_back_without_its_seeds() {
    for seed in seeds() {
        let mut world = World::joined(4, seed);
        world.sides[3] = 1;
        world.run(Duration::from_secs(30));
        assert!(world.view(3).values().all(|state| *state == State::Down), "seed {seed}");
        let now = world.now;
        world.swim(3).found(now, vec![]);
        for host in 0..3 {
            world.swim(host).found(now, vec![]);
        }
        world.sides[3] = 0;
        world.run(Duration::from_secs(8));
        world.demand_all(State::Alive);
    }
}

/// It moves while nobody hears it, and all others move on too.
#[test]
fn a_node_with_a_new_address_is_the_same_member() {
    for seed in seeds() {
        let mut world = World::joined(4, seed);
        world.sides[3] = 1;
        world.run(Duration::from_secs(20));
        world.hosts[3] = None;
        world.starts += 1;
        let mut settings = settings(3, world.starts, seed);
        settings.identity.address = "10.0.7.7:7007".parse().unwrap();
        world.boot_with(3, settings);
        world.run(Duration::from_secs(5));
        world.sides[3] = 0;
        world.run(Duration::from_secs(8));
        world.demand_all(State::Alive);
        for host in 0..3 {
            assert_eq!(world.view(host).len(), 3);
            let moved = world.swim(host).members().find(|member| member.identity.node == node(3)).cloned();
            assert_eq!(moved.map(|member| member.identity.address.port()), Some(7_007), "seed {seed}");
        }
        let healed = world.now;
        world.run(Duration::from_secs(30));
        assert_eq!(world.changes_max(healed), 0, "seed {seed}");
    }
}

#[test]
fn a_node_that_an_operator_names_is_asked_until_it_answers() {
    let mut world = World::new(3, 2);
    world.hosts[2] = None;
    let mut settings = settings(2, 9, 9);
    settings.seeds = vec![];
    world.boot_with(2, settings);
    world.run(Duration::from_secs(5));
    assert!(world.view(2).is_empty());
    let now = world.now;
    world.loss = 1.0;
    assert!(world.swim(2).ask(now, &[address(0)]));
    world.run(Duration::from_secs(10));
    world.loss = 0.0;
    world.run(Duration::from_secs(7));
    world.demand_all(State::Alive);
    let many: Vec<_> =
        (0..machine::SEEDS_MAX as u16).map(|port| SocketAddr::from(([10, 9, 9, 9], port + 1))).collect();
    let now = world.now;
    assert!(!world.swim(2).ask(now, &many), "they are bounded");
}

#[test]
fn a_lone_node_keeps_asking_until_its_seed_is_there() {
    let mut world = World::new(2, 1);
    world.hosts[0] = None;
    world.run(Duration::from_secs(60));
    assert!(world.view(1).is_empty());
    world.boot(0);
    world.run(Duration::from_secs(6));
    world.demand_all(State::Alive);
}

#[test]
fn nodes_of_another_env_key_or_protocol_stay_strangers_and_are_named() {
    let other_env = Settings { env: "other".into(), ..settings(2, 9, 9) };
    let other_key = Settings { keys: Keyring::parse(&"02".repeat(32)).unwrap(), ..settings(2, 9, 9) };
    let mut other_protocol = settings(2, 9, 9);
    let about = About { protocol: (PROTOCOL.1 + 1, PROTOCOL.1 + 2), version: "9".into(), ..About::default() };
    other_protocol.identity.about = Arc::new(about);
    for (settings, reason, detail) in [
        (other_env, DropReason::Env, ""),
        (other_key, DropReason::Key, ""),
        (other_protocol, DropReason::Incompatible, "of version 9 speaks protocols 2 to 3, this node 1 to 1"),
    ] {
        let mut world = World::new(3, 3);
        world.boot_with(2, settings);
        world.run(Duration::from_secs(20));
        assert_eq!(world.view(0).keys().collect::<Vec<_>>(), [&node(1)]);
        assert!(world.view(2).is_empty());
        let told = world.dropped.iter().find(|(by, why, _)| *by == 0 && *why == reason).expect("it is told");
        assert!(told.2.contains(detail), "{}", told.2);
        assert!(world.swim(0).counts().dropped[reason as usize] > 0);
    }
}

#[test]
fn recorded_packets_change_nothing() {
    let mut world = World::new(3, 5);
    let mut recorded = vec![];
    for _ in 0..500 {
        world.run(Duration::from_millis(10));
        recorded.extend(world.flying.values().cloned());
    }
    world.hosts[2] = None;
    world.run(Duration::from_secs(6));
    assert_eq!(world.view(0)[&node(2)], State::Down);
    let before = world.changes.len();
    for round in 0..1_000 {
        let packet = recorded[round % recorded.len()].clone();
        for host in 0..2 {
            let now = world.now;
            if address(host) == packet.to {
                world.swim(host).datagram(now, packet.from, &packet.bytes);
            }
        }
        world.run(Duration::from_millis(10));
    }
    assert_eq!(world.changes.len(), before, "{:?}", &world.changes[before..]);
    assert!(world.swim(0).counts().dropped[DropReason::Replayed as usize] > 100);
}

#[test]
fn members_are_bounded() {
    let now = Instant::now();
    let mut swim = Swim::new(now, settings(0, 1, 1));
    for stranger in 1..MEMBERS_MAX + 50 {
        let mut other = settings(1, 1, 1);
        other.identity.node = Uuid::from_u128(stranger as u128 + 1);
        other.seeds = vec![address(0)];
        let mut other = Swim::new(now, other);
        other.timeout(now);
        while let Some(output) = other.poll() {
            let Output::Send { packet, .. } = output else { continue };
            swim.datagram(now, address(1), &packet);
        }
    }
    assert_eq!(swim.members().count(), MEMBERS_MAX);
    assert_eq!(swim.counts().dropped[DropReason::Full as usize], 49);
}

#[test]
fn one_seed_gives_one_run() {
    let trace = |seed| {
        let mut world = World::new(5, seed);
        world.loss = 0.2;
        world.run(Duration::from_secs(20));
        let changes = world.changes.iter();
        changes.map(|(at, by, change)| (*at - world.start, *by, change.member.state)).collect::<Vec<_>>()
    };
    assert_eq!(trace(4), trace(4));
    assert_ne!(trace(4), trace(5));
}

proptest::proptest! {
    #[test]
    fn any_content_of_a_sealed_packet_is_taken_or_dropped(content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), honest: bool) {
        let now = Instant::now();
        let mut swim = Swim::new(now, settings(0, 1, 1));
        let keys = Keyring::parse(KEY).unwrap();
        let mut sealer = seal::Sealer::new(keys, "test", [3; 16]);
        let mut plain = vec![0];
        if honest {
            // A good head from a good source, and then anything.
            let header = foca::Header {
                src: settings(1, 1, 1).identity,
                src_incarnation: 0,
                dst: swim.identity().clone(),
                message: foca::Message::Gossip,
            };
            foca::Codec::encode_header(&mut identity::Wire, &header, &mut plain).unwrap();
        }
        plain.extend(content);
        swim.datagram(now, address(1), &sealer.seal(&plain));
        while swim.poll().is_some() {}
        proptest::prop_assert!(swim.members().count() <= MEMBERS_MAX);
    }
}
