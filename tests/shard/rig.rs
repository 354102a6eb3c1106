//! Shards with a driver that moves bytes when it is told to: connections, queues between shards, time.

use common::config::{Config, Listener, Transport};
use common::ids::{BootEpoch, RealmId, ShardId, ShardSet, SnapshotVersion};
use common::metrics::Gauge;
use common::snapshot::{Anonymous, Realm, Snapshot, Source, build};
use dataplane::feed::{FeedDown, FeedUp, SharedSnapshot};
use dataplane::mesh::Batch;
use dataplane::shard::{ConnId, Flow, Output, SendBuf, Shard, ShardConfig};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Batches one queue between two shards holds.
const MESH_ENTRIES: usize = 4;
/// Rounds after which [`Rig::run`] gives up.
const ROUNDS_MAX: usize = 100_000;

/// One connection, seen from the driver.
pub struct Link {
    pub shard: usize,
    conn: ConnId,
    pub open: bool,
    pub paused: bool,
    /// The peer reads nothing: sends do not complete.
    pub stuck: bool,
    sending: Option<SendBuf>,
    /// Bytes on their way to the shard.
    coming: VecDeque<Vec<u8>>,
    /// All the shard sent.
    pub got: Vec<u8>,
}

pub struct Rig {
    pub now: Instant,
    shards: Vec<Shard>,
    queues: Vec<Vec<VecDeque<Box<Batch>>>>,
    pub links: Vec<Link>,
    /// Slots to be used again, by shard.
    free: Vec<Vec<u32>>,
    slots: Vec<u32>,
    generation: u32,
}

impl Rig {
    /// `realm1` is compatible, `strict` is strict; both admit everybody.
    pub fn new(shards: usize, change: impl Fn(&mut ShardConfig)) -> Self {
        let now = Instant::now();
        let epoch = EPOCH;
        let snapshot = snapshot(&source(1));
        let make = |shard| {
            let mut config = config(shard, shards, epoch);
            change(&mut config);
            let mut shard = Shard::new(config, now);
            shard.feed(now, FeedDown::Snapshot(snapshot.clone()));
            shard
        };
        Self {
            now,
            shards: (0..shards).map(make).collect(),
            queues: (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect(),
            links: Vec::new(),
            free: vec![Vec::new(); shards],
            slots: vec![0; shards],
            generation: 0,
        }
    }

    /// The version a shard last said it uses, if it said so since it was last asked.
    pub fn taken(&mut self, shard: usize) -> Option<SnapshotVersion> {
        let mut taken = None;
        while let Some(up) = self.shards[shard].take_feed() {
            if let FeedUp::Taken { version, .. } = up {
                taken = Some(version);
            }
        }
        taken
    }

    /// A new connection on listener 0 (RawSocket) or 1 (WebSocket), or nothing when the shard refuses it.
    pub fn connect(&mut self, shard: usize, listener: usize) -> Option<usize> {
        let slot = self.free[shard].pop().unwrap_or_else(|| {
            self.slots[shard] += 1;
            self.slots[shard] - 1
        });
        self.generation += 1;
        let conn = ConnId { slot, generation: self.generation };
        if !self.shards[shard].accept(self.now, conn, listener, IpAddr::V4(Ipv4Addr::LOCALHOST)) {
            self.free[shard].push(slot);
            return None;
        }
        self.links.push(Link {
            shard,
            conn,
            open: true,
            paused: false,
            stuck: false,
            sending: None,
            coming: VecDeque::new(),
            got: Vec::new(),
        });
        Some(self.links.len() - 1)
    }

    /// Bytes arrive on a connection, or wait while it is paused.
    pub fn receive(&mut self, at: usize, bytes: &[u8]) {
        self.links[at].coming.push_back(bytes.to_vec());
        self.let_in(at);
    }

    fn let_in(&mut self, at: usize) {
        let link = &mut self.links[at];
        if !link.open || link.paused {
            return;
        }
        let Some(mut bytes) = link.coming.pop_front() else { return };
        let (shard, conn) = (link.shard, link.conn);
        link.paused = self.shards[shard].receive(self.now, conn, &mut bytes) == Flow::Pause;
        self.act(shard);
    }

    /// The peer closes.
    pub fn close(&mut self, at: usize) {
        let link = &self.links[at];
        if link.open {
            let (shard, conn) = (link.shard, link.conn);
            self.shards[shard].closed(self.now, conn);
            self.act(shard);
            assert!(!self.links[at].open, "what the peer closed is closed");
        }
    }

    /// The control plane says something to every shard.
    pub fn feed(&mut self, down: &FeedDown) {
        for shard in 0..self.shards.len() {
            self.shards[shard].feed(self.now, down.clone());
            self.act(shard);
        }
        self.run();
    }

    /// Time passes, and every shard looks at its timers.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        for shard in 0..self.shards.len() {
            if self.shards[shard].deadline().is_some_and(|deadline| deadline <= self.now) {
                self.shards[shard].timeout(self.now);
                self.act(shard);
            }
        }
    }

    fn act(&mut self, shard: usize) {
        while let Some(output) = self.shards[shard].poll() {
            let (Output::Send(conn)
            | Output::ShutdownWrite(conn)
            | Output::Close(conn)
            | Output::ResumeReads(conn)) = output
            else {
                panic!("a node by itself connects to nobody");
            };
            let found = self.links.iter().rposition(|link| link.shard == shard && link.conn == conn);
            let at = found.expect("outputs name connections the driver opened");
            let link = &mut self.links[at];
            assert!(link.open, "nothing is wanted of a closed connection: {output:?}");
            match output {
                Output::Send(_) => {
                    assert!(link.sending.is_none(), "one send at a time");
                    let buf = self.shards[shard].take_send(conn);
                    assert!(!buf.segments.is_empty(), "a send has something to send");
                    link.sending = Some(buf);
                }
                Output::ShutdownWrite(_) => {}
                Output::Close(_) => {
                    link.open = false;
                    link.sending = None;
                    self.free[shard].push(conn.slot);
                }
                Output::ResumeReads(_) => link.paused = false,
                Output::Connect { .. } => {}
            }
        }
    }

    /// The kernel took what was sent on a connection (`ok`), or found it broken. True when there was something.
    pub fn finish_send(&mut self, at: usize, ok: bool) -> bool {
        let link = &mut self.links[at];
        let Some(buf) = link.sending.take() else { return false };
        for segment in &buf.segments {
            link.got.extend_from_slice(segment.as_slice());
        }
        let (shard, conn) = (link.shard, link.conn);
        self.shards[shard].sent(self.now, conn, buf, ok);
        self.act(shard);
        true
    }

    /// One turn of a shard: at most one batch of each other, and what it has for them.
    pub fn turn(&mut self, shard: usize) {
        for from in 0..self.shards.len() {
            if let Some(batch) = self.queues[from][shard].pop_front() {
                self.shards[shard].mesh_in(self.now, ShardId(from as u8), batch);
            }
        }
        self.act(shard);
        let mut full = ShardSet::EMPTY;
        for to in self.shards[shard].mesh_ready().iter() {
            if self.queues[shard][to.index()].len() < MESH_ENTRIES {
                let batch = self.shards[shard].take_batch(to);
                self.queues[shard][to.index()].push_back(batch);
            } else {
                full = full.with(to);
            }
        }
        self.shards[shard].mesh_full(self.now, full);
        while self.shards[shard].take_feed().is_some() {}
        self.act(shard);
    }

    /// Lets everything under way arrive but what goes to stuck peers.
    pub fn run(&mut self) {
        for _ in 0..ROUNDS_MAX {
            for at in 0..self.links.len() {
                self.let_in(at);
                if !self.links[at].stuck {
                    self.finish_send(at, true);
                }
            }
            (0..self.shards.len()).for_each(|shard| self.turn(shard));
            if self.is_quiet() {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    fn is_quiet(&self) -> bool {
        let quiet = |link: &Link| {
            let waits = link.paused || link.coming.is_empty();
            !link.open || waits && (link.stuck || link.sending.is_none())
        };
        self.links.iter().all(quiet)
            && self.queues.iter().flatten().all(VecDeque::is_empty)
            && self.shards.iter().all(|shard| shard.mesh_ready().is_empty())
    }

    pub fn gauge(&mut self, shard: usize, gauge: Gauge) -> u64 {
        self.shards[shard].feed(self.now, FeedDown::Stats);
        let mut value = None;
        while let Some(up) = self.shards[shard].take_feed() {
            if let FeedUp::Stats { metrics, .. } = up {
                value = Some(metrics.gauge(gauge));
            }
        }
        value.expect("stats are reported")
    }

    /// With every connection gone, the shards hold nothing of them.
    pub fn check_empty(&mut self) {
        for at in 0..self.links.len() {
            self.close(at);
        }
        self.run();
        for shard in 0..self.shards.len() {
            for gauge in [
                Gauge::Connections,
                Gauge::Sessions,
                Gauge::Subscriptions,
                Gauge::Registrations,
                Gauge::CallsPending,
                Gauge::SharedCalls,
                Gauge::HeldCallBytes,
                Gauge::QueuedBytes,
                Gauge::MeshBacklogBytes,
            ] {
                assert_eq!(self.gauge(shard, gauge), 0, "{gauge:?} of shard {shard}");
            }
        }
    }
}

const EPOCH: BootEpoch = BootEpoch(7);

pub fn realm(name: &str) -> Realm {
    Realm {
        id: RealmId::of(name),
        name: name.to_owned(),
        strict: name == "strict",
        uri_strict: false,
        anonymous: Anonymous::Anybody,
    }
}

/// What the first snapshot is made from, in a version. It stands for no claim.
pub fn source(version: u64) -> Source {
    let realms = vec![realm("realm1"), realm("strict")];
    Source { version: SnapshotVersion(version), epoch: EPOCH, realms, ..Source::default() }
}

pub fn snapshot(source: &Source) -> SharedSnapshot {
    let bytes = bytes::Bytes::from_owner(build(source, 1));
    Arc::new(Snapshot::check(bytes).expect("a built snapshot is valid"))
}

fn config(shard: usize, shards: usize, epoch: BootEpoch) -> ShardConfig {
    let defaults = Config::default();
    let listener = |transport, path: &str| Listener {
        transport,
        address: "127.0.0.1:0".parse().expect("an address"),
        path: path.to_owned(),
        connections_max: 10_000,
        message_max: 1 << 20,
        backlog: 16,
    };
    ShardConfig {
        shard: ShardId(shard as u8),
        shards,
        cpu: shard as u32,
        epoch,
        listeners: vec![listener(Transport::RawSocket, ""), listener(Transport::WebSocket, "/ws")],
        limits: defaults.limits,
        timeouts: defaults.timeouts,
        slow_receiver: defaults.slow_receiver,
        relay: None,
        memory_max: 1 << 30,
        seed: shard as u64 + 1,
    }
}
