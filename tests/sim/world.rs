//! Shards, clients and the schedule that moves bytes between them.

use crate::client::{Client, Mark, Request};
use crate::control::Control;
use crate::shards::{self, Mesh, conn_of};
use common::config::{SlowPolicy, SlowReceiver};
use common::ids::{BootEpoch, Match};
use common::metrics::Gauge;
use common::transport::Framing;
use common::uri;
use common::wire::Serializer;
use dataplane::feed::{FeedDown, FeedUp, SharedSnapshot};
use dataplane::shard::{ConnId, Flow, Output, SendBuf, Shard, ShardConfig};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const URIS: [&str; 6] = ["a", "a.b", "a.b.c", "a.x.c", "b.b", "b.b.c"];
const PATTERNS: [(&str, &str); 8] = [
    ("exact", "a"),
    ("exact", "a.b"),
    ("exact", "a.b.c"),
    ("exact", "b.b"),
    ("prefix", "a"),
    ("prefix", "a.b"),
    ("wildcard", "a..c"),
    ("wildcard", ".b"),
];

struct Peer {
    client: Client,
    shard: usize,
    conn: ConnId,
    /// The driver's side of the connection is open.
    open: bool,
    paused: bool,
    sending: Option<SendBuf>,
    write_shut: bool,
}

/// What a run exercised.
#[derive(Default, Debug)]
pub struct Tally {
    pub events: u64,
    pub results: u64,
}

struct Published {
    mark: Mark,
    at: u64,
}

pub struct World {
    rng: fastrand::Rng,
    now: Instant,
    step: u64,
    shards: Vec<Shard>,
    mesh: Mesh,
    peers: Vec<Peer>,
    next_slot: u32,
    next_name: u64,
    control: Control,
    published: Vec<Published>,
    snapshots: Vec<VecDeque<SharedSnapshot>>,
    hash: DefaultHasher,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.usize(1..=4);
        let now = Instant::now();
        let epoch = BootEpoch(seed);
        let shards = (0..count).map(|shard| Shard::new(config(shard, count, epoch, seed), now)).collect();
        let mut world = Self {
            rng,
            now,
            step: 0,
            shards,
            mesh: Mesh::new(count),
            peers: Vec::new(),
            next_slot: 0,
            next_name: 0,
            control: Control::new(epoch, count),
            published: Vec::new(),
            snapshots: (0..count).map(|_| VecDeque::new()).collect(),
            hash: DefaultHasher::new(),
        };
        let first = world.control.publish();
        for shard in 0..count {
            world.shards[shard].feed(now, FeedDown::Snapshot(first.clone()));
        }
        world
    }

    pub fn steps(&mut self) -> usize {
        self.rng.usize(50..800)
    }

    pub fn digest(&self) -> u64 {
        self.hash.finish()
    }

    /// One random thing happens.
    pub fn step(&mut self) {
        self.step += 1;
        self.now += Duration::from_millis(self.rng.u64(0..20));
        match self.rng.u32(0..100) {
            0..=3 if self.peers.iter().filter(|peer| peer.open).count() < 8 => self.connect(),
            4..=34 => self.act(),
            35..=54 => self.deliver_to_router(),
            55..=69 => self.complete_send(),
            70..=89 => self.run_shard(),
            90..=93 => self.publish_snapshot(),
            94..=95 => self.take_snapshot(),
            96 => self.restart_control(),
            97 => self.vanish(),
            _ => {
                for shard in &mut self.shards {
                    shard.timeout(self.now);
                }
            }
        }
    }

    fn connect(&mut self) {
        const FRAMINGS: [Framing; 4] =
            [Framing::RawSocket, Framing::WebSocket, Framing::Batched, Framing::BatchedCan];
        let framing = FRAMINGS[self.rng.usize(0..4)];
        let serializer = Serializer::ALL[self.rng.usize(0..3)];
        let shard = self.rng.usize(0..self.shards.len());
        self.next_name += 1;
        let conn = ConnId { slot: self.next_slot, generation: self.next_name as u32 };
        self.next_slot += 1;
        let listener = usize::from(framing.is_websocket());
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert!(self.shards[shard].accept(self.now, conn, listener, peer));
        let client = Client::new(self.next_name, framing, serializer);
        self.peers.push(Peer {
            client,
            shard,
            conn,
            open: true,
            paused: false,
            sending: None,
            write_shut: false,
        });
    }

    fn any_open(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.peers.len()).filter(|at| self.peers[*at].open).collect();
        (!open.is_empty()).then(|| open[self.rng.usize(0..open.len())])
    }

    /// A logged-in client does something a client may do.
    fn act(&mut self) {
        let Some(at) = self.any_open() else { return };
        let rng = &mut self.rng;
        let client = &mut self.peers[at].client;
        if client.session.is_none() || client.gone {
            return;
        }
        let uri = URIS[rng.usize(0..URIS.len())];
        match rng.u32(0..100) {
            0..=14 => {
                let (policy, uri) = PATTERNS[rng.usize(0..PATTERNS.len())];
                client.subscribe(policy, uri);
            }
            15..=19 => {
                let held: Vec<u64> = client.subscriptions.keys().copied().collect();
                if !held.is_empty() {
                    client.unsubscribe(held[rng.usize(0..held.len())]);
                }
            }
            20..=49 => {
                let padding = if rng.u32(0..10) == 0 { 3_000 } else { rng.usize(0..40) };
                let mark = client.publish(uri, rng.bool(), padding);
                self.published.push(Published { mark, at: self.step });
            }
            50..=57 => client.register(uri),
            58..=61 => {
                let held: Vec<u64> = client.registrations.keys().copied().collect();
                if !held.is_empty() {
                    client.unregister(held[rng.usize(0..held.len())]);
                }
            }
            62..=79 => client.call(uri),
            80..=98 => {
                if !client.invocations.is_empty() {
                    let index = rng.usize(0..client.invocations.len());
                    client.answer(index, rng.bool());
                }
            }
            _ => client.goodbye(),
        }
    }

    fn deliver_to_router(&mut self) {
        let Some(at) = self.any_open() else { return };
        let most = self.rng.usize(1..400);
        self.deliver(at, most);
    }

    fn deliver(&mut self, at: usize, most: usize) {
        let peer = &mut self.peers[at];
        if peer.paused || peer.client.outgoing.is_empty() {
            return;
        }
        let rest = peer.client.outgoing.split_off(most.min(peer.client.outgoing.len()));
        let mut bytes = std::mem::replace(&mut peer.client.outgoing, rest);
        let flow = self.shards[peer.shard].receive(self.now, peer.conn, &mut bytes);
        self.peers[at].paused = flow == Flow::Pause;
        self.drain_outputs(self.peers[at].shard);
    }

    fn drain_outputs(&mut self, shard: usize) {
        while let Some(output) = self.shards[shard].poll() {
            let conn = conn_of(&output);
            let found = self.peers.iter_mut().find(|peer| peer.shard == shard && peer.conn == conn);
            let peer = found.expect("outputs name connections the driver opened");
            assert!(peer.open, "nothing is wanted of a closed connection");
            match output {
                Output::Send(_) => {
                    assert!(peer.sending.is_none() && !peer.write_shut);
                    let buf = self.shards[shard].take_send(conn);
                    assert!(!buf.segments.is_empty());
                    peer.sending = Some(buf);
                }
                Output::ShutdownWrite(_) => peer.write_shut = true,
                Output::Close(_) => {
                    peer.open = false;
                    peer.client.gone = true;
                }
                Output::ResumeReads(_) => peer.paused = false,
                Output::Park(_) => panic!("no client asks for a session that waits"),
                Output::Connect { .. } => {}
            }
        }
    }

    fn complete_send(&mut self) {
        let Some(at) = self.any_open() else { return };
        self.finish_send(at);
    }

    fn finish_send(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        let Some(buf) = peer.sending.take() else { return };
        for segment in &buf.segments {
            segment.as_slice().hash(&mut self.hash);
            let mut rest = segment.as_slice();
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(self.rng.usize(1..=rest.len()));
                peer.client.receive(self.step, piece);
                rest = later;
            }
        }
        let (shard, conn) = (peer.shard, peer.conn);
        self.shards[shard].sent(self.now, conn, buf, true);
        self.drain_outputs(shard);
    }

    /// A turn of a random shard: batches in, batches out, feed.
    fn run_shard(&mut self) {
        let shard = self.rng.usize(0..self.shards.len());
        self.turn(shard);
    }

    fn turn(&mut self, shard: usize) {
        self.mesh.turn(&mut self.shards, self.now, shard);
        while let Some(up) = self.shards[shard].take_feed() {
            self.control.take(up);
        }
        self.drain_outputs(shard);
    }

    fn publish_snapshot(&mut self) {
        let snapshot = self.control.publish();
        for queue in &mut self.snapshots {
            queue.push_back(snapshot.clone());
        }
    }

    fn take_snapshot(&mut self) {
        let shard = self.rng.usize(0..self.shards.len());
        if let Some(snapshot) = self.snapshots[shard].pop_front() {
            self.shards[shard].feed(self.now, FeedDown::Snapshot(snapshot));
            self.drain_outputs(shard);
        }
    }

    /// The control plane is killed; its successor says so to every shard.
    fn restart_control(&mut self) {
        self.control.forget();
        self.publish_snapshot();
        for shard in &mut self.shards {
            shard.feed(self.now, FeedDown::Resync);
        }
    }

    /// A client's machine is switched off.
    fn vanish(&mut self) {
        if let Some(at) = self.any_open() {
            self.disconnect(at);
        }
    }

    fn disconnect(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        let (shard, conn) = (peer.shard, peer.conn);
        self.shards[shard].closed(self.now, conn);
        self.drain_outputs(shard);
        assert!(!self.peers[at].open, "a broken connection is closed");
    }

    /// Lets everything under way arrive, and every invocation be answered.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            self.step += 1;
            for at in 0..self.peers.len() {
                if !self.peers[at].open {
                    continue;
                }
                while !self.peers[at].client.invocations.is_empty() && !self.peers[at].client.gone {
                    self.peers[at].client.answer(0, false);
                }
                self.deliver(at, usize::MAX);
                if self.peers[at].open {
                    self.finish_send(at);
                }
            }
            for shard in 0..self.shards.len() {
                self.turn(shard);
            }
            if self.is_quiet() {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    fn is_quiet(&self) -> bool {
        let quiet = |peer: &Peer| {
            !peer.open
                || peer.sending.is_none()
                    && peer.client.outgoing.is_empty()
                    && peer.client.invocations.is_empty()
                || peer.client.gone && peer.sending.is_none()
        };
        self.peers.iter().all(quiet) && self.mesh.is_quiet(&self.shards) && !self.control.is_resyncing()
    }

    /// Nothing that had to arrive is missing.
    pub fn check_complete(&self) {
        for peer in self.peers.iter().filter(|peer| peer.open && !peer.client.gone) {
            let client = &peer.client;
            assert!(client.requests.is_empty(), "client {} waits for {:?}", client.name, client.requests);
            for subscription in client.subscriptions.values() {
                let policy = match subscription.policy {
                    "prefix" => Match::Prefix,
                    "wildcard" => Match::Wildcard,
                    _ => Match::Exact,
                };
                for published in &self.published {
                    let due = published.at > subscription.since
                        && published.mark.sender != client.name
                        && self.was_handled(published)
                        && uri::matches(&subscription.uri, policy, &published.mark.uri);
                    assert!(
                        !due || subscription.got.contains(&published.mark),
                        "client {} misses {:?} on {} {}",
                        client.name,
                        published.mark,
                        subscription.policy,
                        subscription.uri
                    );
                }
            }
        }
        let open = self.peers.iter().filter(|peer| peer.open && !peer.client.gone);
        let sessions = open.filter(|peer| peer.client.session.is_some()).count();
        assert_eq!(self.control.sessions(), sessions, "the control plane knows every session");
    }

    /// The publisher is still there, so all it sent was received.
    fn was_handled(&self, published: &Published) -> bool {
        self.peers
            .iter()
            .any(|peer| peer.client.name == published.mark.sender && peer.open && !peer.client.gone)
    }

    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for peer in &self.peers {
            tally.results += peer.client.answered;
            tally.events += peer.client.subscriptions.values().map(|held| held.got.len() as u64).sum::<u64>();
        }
        tally
    }

    pub fn leave_all(&mut self) {
        for at in 0..self.peers.len() {
            if self.peers[at].open {
                self.disconnect(at);
            }
        }
        for _ in 0..1_000 {
            (0..self.shards.len()).for_each(|shard| self.turn(shard));
        }
    }

    /// Everything that clients held is gone, on every shard and in the control plane.
    pub fn check_empty(&mut self) {
        assert_eq!((self.control.sessions(), self.control.routes()), (0, 0));
        for shard in &mut self.shards {
            shard.feed(self.now, FeedDown::Stats);
            let Some(FeedUp::Stats { metrics, .. }) = shard.take_feed() else { panic!("stats are reported") };
            for gauge in [
                Gauge::Connections,
                Gauge::Sessions,
                Gauge::Subscriptions,
                Gauge::Registrations,
                Gauge::CallsPending,
                Gauge::QueuedBytes,
                Gauge::MeshBacklogBytes,
            ] {
                assert_eq!(metrics.gauge(gauge), 0, "{gauge:?}");
            }
            let remains = shard.remains();
            assert!(remains.is_empty(), "{remains:?}");
        }
        let last = self.control.publish();
        for shard in &mut self.shards {
            shard.feed(self.now, FeedDown::Snapshot(last.clone()));
            shard.feed(self.now, FeedDown::Stats);
            let mut overlay = None;
            while let Some(up) = shard.take_feed() {
                if let FeedUp::Stats { metrics, .. } = up {
                    overlay =
                        Some((metrics.gauge(Gauge::OverlayRoutes), metrics.gauge(Gauge::SnapshotRoutes)));
                }
            }
            assert_eq!(overlay, Some((0, 0)), "the last snapshot folds every route away");
        }
    }
}

fn config(shard: usize, shards: usize, epoch: BootEpoch, seed: u64) -> ShardConfig {
    let slow_receiver =
        SlowReceiver { policy: SlowPolicy::DropOldest, queue_max: 64 << 20, reply_reserve: 1 << 20 };
    ShardConfig { slow_receiver, ..shards::config(shard, shards, epoch, seed) }
}

/// Requests that stay open are named in failures.
impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open: Vec<&Request> = self.peers.iter().flat_map(|peer| peer.client.requests.values()).collect();
        write!(f, "step {} open requests {open:?}", self.step)
    }
}
