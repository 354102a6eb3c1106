//! One node: its shards, the queues between them, and a control plane reduced to passing on what other nodes want.

use common::config::{Config, Listener, SlowPolicy, SlowReceiver, Transport};
use common::ids::{BootEpoch, Match, NodeId, RealmId, RouteKind, ShardId, ShardSet, SnapshotVersion};
use common::keys::ClusterKeys;
use common::link::{Claim, Peer, RouteChange};
use common::metrics::Metrics;
use common::noise::{Entropy, Purpose, Terms};
use common::snapshot::{Anonymous, Realm, Snapshot, Source, build};
use dataplane::feed::{FeedDown, FeedUp};
use dataplane::mesh::Batch;
use dataplane::shard::{RelayConfig, Shard, ShardConfig};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// Batches one shard-to-shard queue holds here.
const MESH_ENTRIES: usize = 2;

pub type Key = (RealmId, RouteKind, Match, String);

pub struct Node {
    pub id: NodeId,
    pub epoch: BootEpoch,
    pub address: SocketAddr,
    pub alive: bool,
    pub shards: Vec<Shard>,
    queues: Vec<Vec<VecDeque<Box<Batch>>>>,
    /// Routes by shard.
    claims: Vec<BTreeSet<Key>>,
    /// How many shards want a route.
    wanted: BTreeMap<Key, usize>,
    /// What each shard will be fed, in order.
    feeds: Vec<VecDeque<FeedDown>>,
    /// Number of the last change of other nodes' routes.
    last_seq: u64,
    pub next_slot: u32,
}

impl Node {
    pub fn new(index: usize, shards: usize, connections: usize, seed: u64, now: Instant) -> Self {
        let epoch = BootEpoch(seed * 100 + index as u64 + 1);
        let make = |shard| Shard::new(config(index, shard, shards, connections, epoch, seed), now);
        let mut node = Self {
            id: NodeId([index as u8 + 1; 16]),
            epoch,
            address: SocketAddr::from(([127, 0, 0, 1], 9_000 + index as u16)),
            alive: true,
            shards: (0..shards).map(make).collect(),
            queues: (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect(),
            claims: vec![BTreeSet::new(); shards],
            wanted: BTreeMap::new(),
            feeds: (0..shards).map(|_| VecDeque::new()).collect(),
            last_seq: 0,
            next_slot: 0,
        };
        let source = Source {
            version: SnapshotVersion(1),
            epoch,
            claims_folded: vec![0; shards],
            nodes_folded: 0,
            realms: vec![Realm {
                id: RealmId::of("realm1"),
                name: "realm1".to_owned(),
                strict: true,
                uri_strict: false,
                anonymous: Anonymous::Anybody,
            }],
            routes: Vec::new(),
        };
        let bytes = bytes::Bytes::from_owner(build(&source, 99));
        let snapshot = Arc::new(Snapshot::check(bytes).expect("a built snapshot is valid"));
        node.shards.iter_mut().for_each(|shard| shard.feed(now, FeedDown::Snapshot(snapshot.clone())));
        node
    }

    pub fn peer(&self) -> Peer {
        Peer { node: self.id, epoch: self.epoch, relay: self.address.to_string() }
    }

    pub fn tell(&mut self, down: &FeedDown) {
        self.feeds.iter_mut().for_each(|feed| feed.push_back(down.clone()));
    }

    /// Passes on what another node wants.
    pub fn tell_routes(&mut self, from: NodeId, changes: &[(Key, bool)]) {
        let change = |((realm, kind, policy, uri), wanted): &(Key, bool)| RouteChange {
            node: from,
            realm: *realm,
            kind: *kind,
            policy: *policy,
            uri: uri.clone(),
            wanted: *wanted,
        };
        let first_seq = self.last_seq + 1;
        self.last_seq += changes.len() as u64;
        self.tell(&FeedDown::Routes { first_seq, changes: changes.iter().map(change).collect() });
    }

    /// One thing from the control plane reaches a shard.
    pub fn feed(&mut self, now: Instant, shard: usize) {
        if let Some(down) = self.feeds[shard].pop_front() {
            self.shards[shard].feed(now, down);
        }
    }

    /// A turn of one shard: batches in, batches out, claims. Returns what the node began or ceased to want.
    pub fn turn(&mut self, now: Instant, shard: usize) -> Vec<(Key, bool)> {
        for from in 0..self.shards.len() {
            if let Some(batch) = self.queues[from][shard].pop_front() {
                self.shards[shard].mesh_in(now, ShardId(from as u8), batch);
            }
        }
        let mut full = ShardSet::EMPTY;
        for to in self.shards[shard].mesh_ready().iter() {
            if self.queues[shard][to.index()].len() < MESH_ENTRIES {
                let batch = self.shards[shard].take_batch(to);
                self.queues[shard][to.index()].push_back(batch);
            } else {
                full = full.with(to);
            }
        }
        self.shards[shard].mesh_full(now, full);
        let mut changes = Vec::new();
        while let Some(up) = self.shards[shard].take_feed() {
            if let FeedUp::Claims { shard, claims, .. } = up {
                claims.into_iter().for_each(|claim| self.claim(shard.index(), claim, &mut changes));
            }
        }
        changes
    }

    fn claim(&mut self, shard: usize, claim: Claim, changes: &mut Vec<(Key, bool)>) {
        match claim {
            Claim::Routed { realm, kind, policy, uri } => {
                let key = (realm, kind, policy, uri);
                assert!(self.claims[shard].insert(key.clone()), "claimed once");
                let wanted = self.wanted.entry(key.clone()).or_default();
                *wanted += 1;
                if *wanted == 1 {
                    changes.push((key, true));
                }
            }
            Claim::Unrouted { realm, kind, policy, uri } => {
                let key = (realm, kind, policy, uri);
                assert!(self.claims[shard].remove(&key), "given up once");
                let wanted = self.wanted.get_mut(&key).expect("it was claimed");
                *wanted -= 1;
                if *wanted == 0 {
                    self.wanted.remove(&key);
                    changes.push((key, false));
                }
            }
            Claim::Joined { .. } | Claim::Left { .. } => {}
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.queues.iter().flatten().all(VecDeque::is_empty)
            && self.shards.iter().all(|shard| shard.mesh_ready().is_empty())
            && self.feeds.iter().all(VecDeque::is_empty)
    }

    pub fn metrics(&mut self, now: Instant) -> Vec<Metrics> {
        let report = |shard: &mut Shard| {
            shard.feed(now, FeedDown::Stats);
            let mut found = None;
            while let Some(up) = shard.take_feed() {
                if let FeedUp::Stats { metrics, .. } = up {
                    found = Some(*metrics);
                }
            }
            found.expect("stats are reported")
        };
        self.shards.iter_mut().map(report).collect()
    }
}

fn config(
    node: usize,
    shard: usize,
    shards: usize,
    connections: usize,
    epoch: BootEpoch,
    seed: u64,
) -> ShardConfig {
    let defaults = Config::default();
    let listener = |transport, path: &str| Listener {
        transport,
        address: "127.0.0.1:0".parse().expect("an address"),
        path: path.to_owned(),
        connections_max: 10_000,
        message_max: 1 << 20,
        backlog: 16,
        ..Listener::of(Transport::RawSocket)
    };
    let mut entropy = [0; 32];
    entropy[..8].copy_from_slice(&seed.to_le_bytes());
    entropy[8] = node as u8;
    entropy[9] = shard as u8;
    let keys = ClusterKeys::parse(&"5a".repeat(32)).expect("a key");
    ShardConfig {
        shard: ShardId(shard as u8),
        shards,
        cpu: shard as u32,
        epoch,
        listeners: vec![listener(Transport::RawSocket, ""), listener(Transport::WebSocket, "/ws")],
        limits: defaults.limits,
        timeouts: defaults.timeouts,
        slow_receiver: SlowReceiver {
            policy: SlowPolicy::DropOldest,
            queue_max: 64 << 20,
            reply_reserve: 1 << 20,
        },
        relay: Some(RelayConfig {
            terms: Terms { keys, env: "sim".into(), purpose: Purpose::Relay },
            connections,
            queue_max: 64 << 20,
            tls: None,
            entropy: Entropy::new(entropy),
        }),
        memory_max: 1 << 30,
        seed: seed * 1_000 + node as u64 * 100 + shard as u64,
    }
}
