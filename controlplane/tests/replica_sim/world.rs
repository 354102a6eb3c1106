//! The replicas, the network between them, and what must hold.

use common::ids::NodeId;
use controlplane::replica::dvvset::Actor;
use controlplane::replica::exchange::{Exchange, Next};
use controlplane::replica::message::Message;
use controlplane::replica::objects::Objects;
use controlplane::store::Settings;
use controlplane::store::memory::Memory;
use controlplane::store::record::{Kind, Object, place};
use controlplane::store::worker::{Sources, Worker};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What a run may get wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A wiped or restored store goes on under its old name.
    ReuseActor,
    /// A crash takes writes along that were acknowledged.
    AckBeforeStore,
    /// Of two values that compete a node keeps the later one for good.
    LastWriteWins,
}

/// What happened in a run.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    pub writes: u64,
    pub lost_with_disks: u64,
    pub packets: u64,
    pub dropped: u64,
    pub crashes: u64,
    pub wiped: u64,
    pub restored: u64,
    pub refused: u64,
    pub siblings: u64,
    pub exchanges: u64,
    pub ticks_max: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.lost_with_disks += other.lost_with_disks;
        self.packets += other.packets;
        self.dropped += other.dropped;
        self.crashes += other.crashes;
        self.wiped += other.wiped;
        self.restored += other.restored;
        self.refused += other.refused;
        self.siblings += other.siblings;
        self.exchanges += other.exchanges;
        self.ticks_max = self.ticks_max.max(other.ticks_max);
    }
}

struct Node {
    /// What is acknowledged is on it.
    disk: Memory,
    worker: Worker,
    up: bool,
    /// Its clock, milliseconds since 1970, and how far it is off.
    wall_ms: Arc<AtomicU64>,
    clock_ms: i64,
    asks: Option<(usize, Exchange)>,
    /// A copy of the disk from earlier.
    backup: Memory,
    /// The disk before the last write.
    unflushed: Option<Memory>,
}

struct Packet {
    from: usize,
    to: usize,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Broadcast(Vec<u8>),
    Ask(Vec<u8>),
    Answer(Vec<u8>),
}

/// An acknowledged write.
struct Write {
    key: usize,
    actor: Actor,
    counter: u64,
    /// What it had seen, and so overwrote.
    seen: BTreeMap<Actor, u64>,
    value: Option<Vec<u8>>,
    /// It was on no other disk when its own was lost.
    lost: bool,
}

pub struct World {
    rng: fastrand::Rng,
    bug: Option<Bug>,
    start: Instant,
    now_ms: u64,
    nodes: Vec<Node>,
    /// By arrival.
    network: BTreeMap<(u64, u64), Packet>,
    /// (from, to) that nothing passes.
    cuts: BTreeSet<(usize, usize)>,
    faulty: bool,
    writes: Vec<Write>,
    epochs: u64,
    /// Copies of packets put on the network.
    sent: u64,
    rounds: u64,
    /// Records an exchange changed, in the nodes that asked.
    repairs: u64,
    tally: Tally,
}

impl World {
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.usize(3..=10);
        let nodes = (0..count)
            .map(|_| {
                let (disk, wall_ms) = (Memory::default(), Arc::new(AtomicU64::new(WALL_MS)));
                let worker = open(&disk, &wall_ms, rng.u64(..));
                let backup = disk.copy();
                Node { disk, worker, up: true, wall_ms, clock_ms: 0, asks: None, backup, unflushed: None }
            })
            .collect();
        Self {
            rng,
            bug,
            start: Instant::now(),
            now_ms: 0,
            nodes,
            network: BTreeMap::new(),
            cuts: BTreeSet::new(),
            faulty: true,
            writes: Vec::new(),
            epochs: 0,
            sent: 0,
            rounds: 0,
            repairs: 0,
            tally: Tally::default(),
        }
    }

    pub fn run(mut self) -> Result<Tally, String> {
        for _ in 0..STEPS {
            self.step();
            let ms = self.rng.u64(1..20);
            self.advance(ms);
        }
        self.lift_faults();
        self.converge()?;
        self.check_objects()?;
        Ok(self.tally)
    }

    fn step(&mut self) {
        let node = self.rng.usize(..self.nodes.len());
        match self.rng.u32(..1_000) {
            0..350 => self.write(node),
            350..450 => self.ask(node),
            450..470 => self.cut(),
            470..490 => self.cuts.clear(),
            490..510 => self.crash(node),
            510..560 => self.rise(node),
            560..570 => self.nodes[node].clock_ms = self.rng.i64(-3_600_000..=3_600_000),
            570..600 => self.nodes[node].clock_ms = self.rng.i64(-20_000..=20_000),
            600..620 => self.nodes[node].backup = self.nodes[node].disk.copy(),
            620..623 if self.epochs < LOST_DISKS_MAX => self.lose_disk(node),
            _ => {}
        }
    }

    fn write(&mut self, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        let key = self.rng.usize(..KEYS);
        let seen = self.object(node, key).map(|object| history(&object)).unwrap_or_default();
        let value = (self.rng.u32(..5) > 0).then(|| (self.writes.len() as u64).to_le_bytes().to_vec());
        let unflushed = self.bug == Some(Bug::AckBeforeStore);
        let at = self.at(node);
        if unflushed {
            at.unflushed = Some(at.disk.copy());
        }
        let put = at.worker.put(Kind::Realm, &name(key), value.clone());
        let object = put.expect("a small value fits");
        let actor = at.worker.actor();
        assert_eq!(object.resolved().unwrap().bytes, value, "a session reads its own write");
        let counter = history(&object)[&actor];
        self.writes.push(Write { key, actor, counter, seen, value, lost: false });
        self.tally.writes += 1;
        let record = object.encode();
        for to in (0..self.nodes.len()).filter(|to| *to != node) {
            self.send(node, to, Body::Broadcast(record.clone()));
        }
    }

    /// Starts an exchange with anybody.
    fn ask(&mut self, node: usize) {
        let peer = (node + self.rng.usize(1..self.nodes.len())) % self.nodes.len();
        let (now, id) = (self.now(), self.id(peer));
        self.rounds += 1;
        let round = self.rounds;
        let at = self.at(node);
        if !at.up || at.asks.is_some() {
            return;
        }
        let (exchange, message) = at.worker.exchange_start(id, round, now, EXCHANGE_TIMEOUT);
        at.asks = Some((peer, exchange));
        self.tally.exchanges += 1;
        self.send(node, peer, Body::Ask(message.encode()));
    }

    /// Cuts the nodes in two, in both directions or in one, or a single link.
    fn cut(&mut self) {
        let side: Vec<bool> = self.nodes.iter().map(|_| self.rng.bool()).collect();
        let (one_way, single) = (self.rng.bool(), self.rng.u32(..3) == 0);
        let pick = (self.rng.usize(..side.len()), self.rng.usize(..side.len()));
        for from in 0..side.len() {
            for to in 0..side.len() {
                let apart = side[from] != side[to] && (!one_way || side[from]);
                if if single { (from, to) == pick } else { apart } {
                    self.cuts.insert((from, to));
                }
            }
        }
    }

    fn crash(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        if !at.up {
            return;
        }
        at.up = false;
        at.asks = None;
        if let Some(before) = at.unflushed.take() {
            at.disk = before;
        }
        self.tally.crashes += 1;
    }

    /// Starts a node that is down from its disk.
    fn rise(&mut self, node: usize) {
        let seed = self.rng.u64(..);
        let at = self.at(node);
        if !at.up {
            at.up = true;
            at.worker = open(&at.disk, &at.wall_ms, seed);
        }
    }

    /// The disk is wiped, or an old copy takes its place. Either begins a new epoch.
    fn lose_disk(&mut self, node: usize) {
        self.epochs += 1;
        let (wiped, reused) = (self.rng.bool(), self.bug == Some(Bug::ReuseActor));
        let (at, inode) = (&mut self.nodes[node], self.epochs);
        let old = at.disk.copy();
        at.disk = if wiped { Memory::default() } else { at.backup.copy() };
        if reused {
            at.disk.disk().meta = old.disk().meta.clone();
            at.disk.disk().inode = old.disk().inode;
        } else {
            at.disk.disk().inode = inode;
        }
        (at.asks, at.up, at.backup) = (None, false, at.disk.copy());
        if wiped {
            self.tally.wiped += 1;
        } else {
            self.tally.restored += 1;
        }
        self.rise(node);
        // What was under way goes down with it, so that "on no other disk" is the truth.
        self.network.retain(|_, packet| packet.from != node);
        self.strike();
    }

    /// Marks the writes nobody knows any more.
    fn strike(&mut self) {
        let mut known = BTreeMap::<(usize, Actor), u64>::new();
        for node in 0..self.nodes.len() {
            for key in 0..KEYS {
                let Some(object) = self.object(node, key) else { continue };
                for (actor, counter) in history(&object) {
                    let most = known.entry((key, actor)).or_default();
                    *most = counter.max(*most);
                }
            }
        }
        for write in self.writes.iter_mut().filter(|write| !write.lost) {
            if known.get(&(write.key, write.actor)).is_none_or(|most| *most < write.counter) {
                write.lost = true;
                self.tally.lost_with_disks += 1;
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, body: Body) {
        self.tally.packets += 1;
        let copies = match self.rng.u32(..100) {
            0..10 if self.faulty => 0,
            10..15 if self.faulty => 2,
            _ => 1,
        };
        if copies == 0 || self.cuts.contains(&(from, to)) {
            self.tally.dropped += 1;
            return;
        }
        for _ in 0..copies {
            let delay = if self.faulty { self.rng.u64(1..200) } else { 1 };
            self.sent += 1;
            self.network.insert((self.now_ms + delay, self.sent), Packet { from, to, body: body.clone() });
        }
    }

    /// Lets time pass and delivers what is due.
    fn advance(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= until) {
            let ((at, _), packet) = entry.remove_entry();
            self.now_ms = self.now_ms.max(at);
            if self.nodes[packet.to].up && !self.cuts.contains(&(packet.from, packet.to)) {
                self.deliver(packet);
            } else {
                self.tally.dropped += 1;
            }
        }
        self.now_ms = until;
        let now = self.now();
        for node in &mut self.nodes {
            node.asks = node.asks.take().filter(|(_, exchange)| exchange.timeout(now).is_ok());
        }
    }

    fn deliver(&mut self, packet: Packet) {
        let Packet { from, to, body } = packet;
        let (now, id, bug) = (self.now(), self.id(from), self.bug);
        let at = self.at(to);
        match body {
            Body::Broadcast(record) => {
                let object = Object::decode(&record).expect("our own bytes");
                let refused = at.worker.merge_one(object.clone()).is_err();
                if bug == Some(Bug::LastWriteWins) {
                    keep_winner(&mut at.worker, &object);
                }
                self.tally.refused += u64::from(refused);
            }
            Body::Ask(bytes) => {
                let message = Message::decode(&bytes).expect("our own bytes");
                let answered = at.worker.exchange_answer(id, message);
                if let Some(reply) = answered.reply {
                    self.send(to, from, Body::Answer(reply.encode()));
                }
            }
            Body::Answer(bytes) => {
                let message = Message::decode(&bytes).expect("our own bytes");
                let Some((_, exchange)) = at.asks.as_mut().filter(|(peer, _)| *peer == from) else { return };
                match at.worker.exchange_step(id, exchange, message, now).next {
                    Ok(None) => {}
                    Ok(Some(Next::Send(next))) => self.send(to, from, Body::Ask(next.encode())),
                    Ok(Some(Next::Done(tally))) => {
                        at.asks = None;
                        self.repairs += u64::from(tally.merged + tally.sent);
                        self.tally.refused += u64::from(tally.refused);
                    }
                    Err(_) => at.asks = None,
                }
            }
        }
    }

    /// From now on everything works, and the clocks are right for so long that no stamp is from the future any more.
    fn lift_faults(&mut self) {
        self.advance(3 * 3_600_000);
        self.cuts.clear();
        self.faulty = false;
        for node in 0..self.nodes.len() {
            self.rise(node);
            let at = &mut self.nodes[node];
            (at.clock_ms, at.asks, at.unflushed) = (0, None, None);
        }
    }

    /// Everybody exchanges with anybody, tick by tick, until all trees are equal; then one tick more repairs nothing.
    fn converge(&mut self) -> Result<(), String> {
        for tick in 0..TICKS_MAX {
            if self.nodes.windows(2).all(|pair| pair[0].worker.tree() == pair[1].worker.tree()) {
                self.tally.ticks_max = tick;
                self.repairs = 0;
                self.tick();
                return if self.repairs == 0 { Ok(()) } else { Err("equal trees were repaired".into()) };
            }
            self.tick();
        }
        Err(format!("{} nodes still differ after {TICKS_MAX} exchange ticks", self.nodes.len()))
    }

    fn tick(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.ask(node));
        // Not until the network is empty: an endless exchange must fail the run, not hang it.
        self.advance(4_000);
    }

    /// Every node holds the writes that no later write had seen, and no others.
    fn check_objects(&mut self) -> Result<(), String> {
        for key in 0..KEYS {
            let of_key: Vec<&Write> =
                self.writes.iter().filter(|write| write.key == key && !write.lost).collect();
            let is_seen = |write: &Write| {
                let seen =
                    |other: &&Write| other.seen.get(&write.actor).is_some_and(|seen| *seen >= write.counter);
                of_key.iter().any(seen)
            };
            let mut wanted: Vec<_> =
                of_key.iter().filter(|write| !is_seen(write)).map(|write| &write.value).collect();
            wanted.sort();
            for node in 0..self.nodes.len() {
                let object = self.object(node, key);
                let mut found: Vec<_> =
                    object.iter().flat_map(Object::values).map(|value| &value.bytes).collect();
                found.sort();
                if found != wanted {
                    return Err(format!("key {key} on node {node}: {found:?} instead of {wanted:?}"));
                }
            }
            self.tally.siblings += u64::from(wanted.len() > 1);
        }
        Ok(())
    }

    fn object(&self, node: usize, key: usize) -> Option<Object> {
        let disk = self.nodes[node].disk.disk();
        let record = disk.objects.get(&place(Kind::Realm, &name(key))[..])?;
        Some(Object::decode(record).expect("a sound record"))
    }

    fn id(&self, node: usize) -> NodeId {
        NodeId(self.nodes[node].worker.actor().node)
    }

    /// A node, and its clock set.
    fn at(&mut self, node: usize) -> &mut Node {
        let at = &mut self.nodes[node];
        at.wall_ms.store((WALL_MS + self.now_ms).saturating_add_signed(at.clock_ms), Relaxed);
        at
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }
}

/// Overwrites values that compete with the later one.
fn keep_winner(worker: &mut Worker, theirs: &Object) {
    let record = worker.record(&place(theirs.kind, &theirs.key)).expect("a disk in memory is readable");
    let Some(ours) = record.map(|record| Object::decode(&record).expect("a sound record")) else { return };
    if ours.values().count() > 1 {
        let value = ours.resolved().and_then(|value| value.bytes);
        worker.put(ours.kind, &ours.key, value).expect("a small value fits");
    }
}

/// Starts a worker from a disk; deletions are kept for ever.
fn open(disk: &Memory, wall_ms: &Arc<AtomicU64>, seed: u64) -> Worker {
    open_with(disk, wall_ms, seed, Duration::from_secs(365 * 86_400))
}

/// Starts a worker from a disk.
pub fn open_with(disk: &Memory, wall_ms: &Arc<AtomicU64>, seed: u64, grace: Duration) -> Worker {
    let day = Duration::from_secs(86_400);
    let settings = Settings { secret: b"simulated".to_vec(), scrub_timer: day, scrub_ttl: day, grace };
    let (wall_ms, mut rng) = (Arc::clone(wall_ms), fastrand::Rng::with_seed(seed));
    let sources =
        Sources { wall_ms: Box::new(move || wall_ms.load(Relaxed)), random: Box::new(move || rng.u64(..)) };
    let opened = Worker::open(Box::new(disk.clone()), disk.files(), &settings, sources, Arc::default());
    opened.expect("a disk in memory opens").0
}

fn history(object: &Object) -> BTreeMap<Actor, u64> {
    object.clock.entries().iter().map(|entry| (entry.actor, entry.counter)).collect()
}

fn name(key: usize) -> String {
    format!("realm{key}")
}

/// Milliseconds since 1970 when a run begins.
const WALL_MS: u64 = 1_795_000_000_000;
const STEPS: usize = 600;
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);
const KEYS: usize = 8;
/// Disks that are lost in one run: more actors than siblings fit would end in cut values.
const LOST_DISKS_MAX: u64 = 4;
/// Exchange ticks within which everybody must agree.
const TICKS_MAX: u64 = 12;
