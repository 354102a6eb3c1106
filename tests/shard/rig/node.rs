//! One node: its shards, the queues between them, and a control plane reduced to passing on what other nodes want.

use super::shards::{self, Mesh};
use common::config::Config;
use common::ids::{BootEpoch, Match, NodeId, RealmId, RouteKind, SnapshotVersion};
use common::keys::ClusterKeys;
use common::link::{Claim, Peer, RetainedTopic, RouteChange};
use common::metrics::{Gauge, Metrics};
use common::noise::{Entropy, Purpose, Terms};
use common::share::Share;
use common::snapshot::{Snapshot, Source, build};
use dataplane::feed::{FeedDown, FeedUp, SharedSnapshot};
use dataplane::shard::{ConnId, RelayConfig, ResumeConfig, Shard, ShardConfig};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// What is zero when no client is there.
const EMPTY: [Gauge; 12] = [
    Gauge::Connections,
    Gauge::Sessions,
    Gauge::Subscriptions,
    Gauge::Registrations,
    Gauge::CallsPending,
    Gauge::SharedCalls,
    Gauge::HeldCallBytes,
    Gauge::QueuedBytes,
    Gauge::HttpTransports,
    Gauge::MeshBacklogBytes,
    Gauge::RelayCallsPending,
    Gauge::RelayQueuedBytes,
];

pub type Key = (RealmId, RouteKind, Match, String);
/// A route, whether it is wanted, and what is said of callees that share it.
pub type Change = (Key, bool, Option<Share>);

pub struct Node {
    pub id: NodeId,
    pub epoch: BootEpoch,
    pub address: SocketAddr,
    pub alive: bool,
    pub shards: Vec<Shard>,
    mesh: Mesh,
    claims: Vec<Claimed>,
    /// How many shards want a route.
    wanted: BTreeMap<Key, usize>,
    /// What each shard will be fed, in order.
    feeds: Vec<VecDeque<FeedDown>>,
    /// Number of the last change of other nodes' routes.
    last_seq: u64,
    /// The version each shard last said it uses.
    pub taken: Vec<Option<SnapshotVersion>>,
    /// Shards that said so.
    pub drained: Vec<bool>,
    /// What topics retain, to be told to all nodes.
    pub retained: Vec<RetainedTopic>,
    /// Slots to be used again, by shard.
    free: Vec<Vec<u32>>,
    slots: Vec<u32>,
    generation: u32,
}

/// What one shard claims.
#[derive(Default)]
struct Claimed {
    routes: BTreeSet<Key>,
    /// What it has listed so far of its whole set.
    listing: Option<BTreeSet<Key>>,
}

impl Node {
    /// Node `index` of a cluster, with a shard for each configuration, all with the same snapshot.
    pub fn new(index: usize, configs: Vec<ShardConfig>, source: &Source, now: Instant) -> Self {
        let (shards, epoch) = (configs.len(), configs[0].epoch);
        let source = Source { epoch, claims_folded: vec![0; shards], ..source.clone() };
        let first = FeedDown::Snapshot(snapshot(&source));
        let slots = configs.iter().map(ShardConfig::first_slot).collect();
        let make = |config| {
            let mut shard = Shard::new(config, now);
            shard.feed(now, first.clone());
            shard
        };
        Self {
            id: NodeId([index as u8 + 1; 16]),
            epoch,
            address: SocketAddr::from(([127, 0, 0, 1], 9_000 + index as u16)),
            alive: true,
            shards: configs.into_iter().map(make).collect(),
            mesh: Mesh::new(shards),
            claims: (0..shards).map(|_| Claimed::default()).collect(),
            wanted: BTreeMap::new(),
            feeds: (0..shards).map(|_| VecDeque::new()).collect(),
            last_seq: 0,
            taken: vec![None; shards],
            drained: vec![false; shards],
            retained: Vec::new(),
            free: vec![Vec::new(); shards],
            slots,
            generation: 0,
        }
    }

    /// Names a new connection of a shard.
    pub fn conn(&mut self, shard: usize) -> ConnId {
        let slot = self.free[shard].pop().unwrap_or_else(|| {
            self.slots[shard] += 1;
            self.slots[shard] - 1
        });
        self.generation += 1;
        ConnId { slot, generation: self.generation }
    }

    /// A connection is closed, or was refused: its slot may be used again.
    pub fn release(&mut self, shard: usize, conn: ConnId) {
        self.free[shard].push(conn.slot);
    }

    pub fn peer(&self) -> Peer {
        Peer { node: self.id, epoch: self.epoch, relay: self.address.to_string() }
    }

    /// Tells each node which others there are.
    pub fn tell_peers(nodes: &mut [Self]) {
        for at in 0..nodes.len() {
            let others = |node: &&Self| node.alive && node.id != nodes[at].id;
            let peers = FeedDown::Peers(nodes.iter().filter(others).map(Self::peer).collect());
            nodes[at].tell(&peers);
        }
    }

    pub fn tell(&mut self, down: &FeedDown) {
        self.feeds.iter_mut().for_each(|feed| feed.push_back(down.clone()));
    }

    /// Passes on what another node wants.
    pub fn tell_routes(&mut self, from: NodeId, changes: &[Change]) {
        let change = |((realm, kind, policy, uri), wanted, share): &Change| RouteChange {
            node: from,
            realm: *realm,
            kind: *kind,
            policy: *policy,
            uri: uri.clone(),
            wanted: *wanted,
            share: *share,
        };
        let first_seq = self.last_seq + 1;
        self.last_seq += changes.len() as u64;
        self.tell(&FeedDown::Routes { first_seq, changes: changes.iter().map(change).collect() });
    }

    /// Another node wants nothing any more.
    pub fn tell_gone(&mut self, node: NodeId) {
        self.last_seq += 1;
        self.tell(&FeedDown::Unroute { seq: self.last_seq, node });
    }

    /// One thing from the control plane reaches a shard.
    pub fn feed(&mut self, now: Instant, shard: usize) {
        if let Some(down) = self.feeds[shard].pop_front() {
            self.shards[shard].feed(now, down);
        }
    }

    /// A turn of one shard: batches in, batches out, claims. Returns what the node began or ceased to want.
    pub fn turn(&mut self, now: Instant, shard: usize) -> Vec<Change> {
        self.mesh.turn(&mut self.shards, now, shard);
        self.hear(shard)
    }

    /// Takes what a shard says to the control plane. Returns what the node began or ceased to want.
    pub fn hear(&mut self, shard: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some(up) = self.shards[shard].take_feed() {
            self.hear_one(shard, up, &mut changes);
        }
        changes
    }

    fn hear_one(&mut self, shard: usize, up: FeedUp, changes: &mut Vec<Change>) {
        match up {
            FeedUp::Claims { claims, .. } => {
                for (key, wanted, share) in claims.into_iter().filter_map(route) {
                    let claimed = &mut self.claims[shard];
                    if let Some(listing) = &mut claimed.listing {
                        put(listing, &key, wanted);
                    }
                    let is_listing = claimed.listing.is_some();
                    let is_news = put(&mut claimed.routes, &key, wanted);
                    assert!(
                        is_news || is_listing || share.is_some(),
                        "claimed once and given up once: {key:?}"
                    );
                    if is_news {
                        self.want(key, wanted, share, changes);
                    } else if share.is_some() {
                        changes.push((key, wanted, share));
                    }
                }
            }
            FeedUp::ClaimsReset { .. } => self.claims[shard].listing = Some(BTreeSet::new()),
            FeedUp::ClaimsPart { claims, .. } => {
                let listing = self.claims[shard].listing.as_mut().expect("a set begins with a reset");
                listing.extend(claims.into_iter().filter_map(route).map(|(key, ..)| key));
            }
            FeedUp::ClaimsEnd { .. } => {
                let listed = self.claims[shard].listing.take().expect("a set begins with a reset");
                let before = std::mem::replace(&mut self.claims[shard].routes, listed.clone());
                before.difference(&listed).for_each(|key| self.want(key.clone(), false, None, changes));
                listed.difference(&before).for_each(|key| self.want(key.clone(), true, None, changes));
            }
            FeedUp::Taken { version, .. } => self.taken[shard] = Some(version),
            FeedUp::Retain { topic, .. } => self.retained.push(topic),
            FeedUp::Drained { .. } => {
                assert!(
                    self.shards[shard].is_drained() && !self.drained[shard],
                    "said once, when it is true"
                );
                self.drained[shard] = true;
            }
            FeedUp::Stats { .. } => {}
        }
    }

    /// A shard began or ceased to want a route.
    fn want(&mut self, key: Key, wanted: bool, share: Option<Share>, changes: &mut Vec<Change>) {
        let shards = self.wanted.entry(key.clone()).or_default();
        let before = *shards;
        *shards = if wanted { before + 1 } else { before - 1 };
        if before == 0 || *shards == 0 {
            changes.push((key.clone(), wanted, share));
        }
        if *shards == 0 {
            self.wanted.remove(&key);
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.mesh.is_quiet(&self.shards) && self.feeds.iter().all(VecDeque::is_empty)
    }

    /// What each shard has counted. A node that lives is quiet.
    pub fn metrics(&mut self, now: Instant) -> Vec<Metrics> {
        let alive = self.alive;
        let report = |shard: &mut Shard| {
            shard.feed(now, FeedDown::Stats);
            let mut found = None;
            while let Some(up) = shard.take_feed() {
                match up {
                    FeedUp::Stats { metrics, .. } => found = Some(*metrics),
                    other => assert!(!alive, "it had said all before: {other:?}"),
                }
            }
            found.expect("stats are reported")
        };
        self.shards.iter_mut().map(report).collect()
    }

    /// With every client gone and nothing under way, the shards hold nothing, and the control plane knows of no route.
    pub fn check_empty(&mut self, now: Instant) {
        for (shard, metrics) in self.metrics(now).into_iter().enumerate() {
            for gauge in EMPTY {
                assert_eq!(metrics.gauge(gauge), 0, "{gauge:?} of shard {shard}");
            }
        }
        for shard in &self.shards {
            let remains = shard.remains();
            assert!(remains.is_empty(), "{remains:?}");
        }
        assert!(self.wanted.is_empty(), "the control plane knows of {:?}", self.wanted);
    }
}

/// The route of a claim, if it is about one, and whether it is wanted.
fn route(claim: Claim) -> Option<Change> {
    match claim {
        Claim::Routed { realm, kind, policy, uri } => Some(((realm, kind, policy, uri), true, None)),
        Claim::Shared { realm, policy, uri, share } => {
            Some(((realm, RouteKind::Procedure, policy, uri), true, Some(share)))
        }
        Claim::Unrouted { realm, kind, policy, uri } => Some(((realm, kind, policy, uri), false, None)),
        Claim::Joined { .. } | Claim::Left { .. } => None,
    }
}

/// Puts a key in or takes it out; false when that changes nothing.
fn put(set: &mut BTreeSet<Key>, key: &Key, wanted: bool) -> bool {
    if wanted { set.insert(key.clone()) } else { set.remove(key) }
}

pub fn snapshot(source: &Source) -> SharedSnapshot {
    let bytes = bytes::Bytes::from_owner(build(source, 1));
    Arc::new(Snapshot::check(bytes).expect("a built snapshot is valid"))
}

/// The life of a node's data plane.
pub fn epoch(seed: u64, node: usize) -> BootEpoch {
    BootEpoch(seed * 100 + node as u64 + 1)
}

/// The configuration of a shard in a cluster.
pub fn config(node: usize, shard: usize, shards: usize, seed: u64) -> ShardConfig {
    let mut entropy = [0; 32];
    entropy[..8].copy_from_slice(&seed.to_le_bytes());
    entropy[8] = node as u8;
    entropy[9] = shard as u8;
    let keys = ClusterKeys::parse(&"5a".repeat(32)).expect("a key");
    let mut config = shards::config(shard, shards, epoch(seed, node), seed);
    config.seed += node as u64 * 100;
    config.resume = ResumeConfig::new(&Config::default().resume, shards, entropy);
    config.relay = Some(RelayConfig {
        terms: Terms { keys, env: "sim".into(), purpose: Purpose::Relay },
        connections: 1,
        queue_max: 64 << 20,
        tls: None,
        entropy: Entropy::new(entropy),
    });
    config
}
