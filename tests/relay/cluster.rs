//! Real data planes in this process, on loopback, and a control plane reduced to telling each what the others want.
#![allow(dead_code, reason = "each user needs its own part")]

use common::config::{Config, Cores, Listener, Transport};
use common::ids::{BootEpoch, Match, NodeId, RealmId, RouteKind, SnapshotVersion};
use common::keys::ClusterKeys;
use common::link::{Claim, Peer, RouteChange};
use common::metrics::{Counter, Gauge, Metrics};
use common::noise::{Entropy, Purpose, Terms};
use common::snapshot::{Anonymous, Realm, Snapshot, Source, build};
use dataplane::feed::{FeedDown, FeedUp};
use dataplane::io::{Features, Plan, ShardHandle, spawn_shards};
use dataplane::shard::{RelayConfig, TlsConfig};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

type Key = (RealmId, RouteKind, Match, String);

pub struct Cluster {
    pub nodes: Vec<Node>,
    shared: Arc<Shared>,
    pump: Option<JoinHandle<()>>,
}

pub struct Node {
    pub id: NodeId,
    pub epoch: BootEpoch,
    pub rawsocket: SocketAddr,
    pub websocket: SocketAddr,
    pub relay: SocketAddr,
    shards: usize,
}

struct Shared {
    state: Mutex<Vec<State>>,
    stop: AtomicBool,
}

/// What the control plane knows of one node.
struct State {
    id: NodeId,
    handles: Vec<ShardHandle>,
    up: crossbeam_channel::Receiver<FeedUp>,
    wanted: BTreeMap<Key, usize>,
    last_seq: u64,
    stats: Vec<Option<Metrics>>,
}

pub fn terms(key: u8) -> Terms {
    let keys = ClusterKeys::parse(&format!("{key:02x}").repeat(32)).expect("a key");
    Terms { keys, env: "test".into(), purpose: Purpose::Relay }
}

impl Cluster {
    /// Nodes that know of each other.
    pub fn start(nodes: usize, shards: usize, change: impl Fn(&mut Config)) -> Self {
        Self::start_each(nodes, shards, |_, config| change(config))
    }

    /// As `start`, with a configuration for each node.
    pub fn start_each(nodes: usize, shards: usize, change: impl Fn(usize, &mut Config)) -> Self {
        let mut states = Vec::new();
        let mut started = Vec::new();
        for index in 0..nodes {
            let (node, state) = start(index, shards, &change);
            started.push(node);
            states.push(state);
        }
        let shared = Arc::new(Shared { state: Mutex::new(states), stop: AtomicBool::new(false) });
        let own = shared.clone();
        let pump = std::thread::spawn(move || pump(&own));
        let cluster = Self { nodes: started, shared, pump: Some(pump) };
        cluster.tell_peers(&(0..nodes).collect::<Vec<_>>());
        cluster
    }

    /// Every node is told that these are alive.
    pub fn tell_peers(&self, alive: &[usize]) {
        let peers: Vec<Vec<Peer>> = (0..self.nodes.len())
            .map(|me| alive.iter().filter(|at| **at != me).map(|at| self.peer(*at)).collect())
            .collect();
        for (at, peers) in peers.into_iter().enumerate() {
            self.feed(at, &FeedDown::Peers(peers.into()));
        }
    }

    pub fn peer(&self, at: usize) -> Peer {
        let node = &self.nodes[at];
        Peer { node: node.id, epoch: node.epoch, relay: node.relay.to_string() }
    }

    pub fn feed(&self, at: usize, down: &FeedDown) {
        feed(&self.shared.state.lock().expect("unpoisoned")[at], down);
    }

    /// The node is there no more; its connections break.
    pub fn kill(&self, at: usize) {
        let handles = std::mem::take(&mut self.shared.state.lock().expect("unpoisoned")[at].handles);
        for handle in handles {
            handle.stop().expect("the shard ran");
        }
    }

    /// A counter of all shards of a node.
    pub fn counter(&self, at: usize, counter: Counter) -> u64 {
        self.metrics(at).iter().map(|metrics| metrics.get(counter)).sum()
    }

    pub fn gauge(&self, at: usize, gauge: Gauge) -> u64 {
        self.metrics(at).iter().map(|metrics| metrics.gauge(gauge)).sum()
    }

    fn metrics(&self, at: usize) -> Vec<Metrics> {
        {
            let mut state = self.shared.state.lock().expect("unpoisoned");
            state[at].stats = vec![None; self.nodes[at].shards];
            feed(&state[at], &FeedDown::Stats);
        }
        crate::support::eventually("the shards report", || {
            self.shared.state.lock().expect("unpoisoned")[at].stats.iter().cloned().collect()
        })
    }

    /// Every shard of these nodes has its connections to the other ones.
    pub fn wait_connected(&self, alive: &[usize]) {
        let shards: usize = alive.iter().map(|at| self.nodes[*at].shards).sum();
        for at in alive {
            let own = self.nodes[*at].shards;
            let wanted = own * (alive.len() - 1) + shards - own;
            crate::support::eventually("the relays are connected", || {
                (self.gauge(*at, Gauge::RelayConnections) >= wanted as u64).then_some(())
            });
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
        if let Ok(mut state) = self.shared.state.lock() {
            for handle in state.iter_mut().flat_map(|state| std::mem::take(&mut state.handles)) {
                let _ = handle.stop();
            }
        }
    }
}

fn start(index: usize, shards: usize, change: &impl Fn(usize, &mut Config)) -> (Node, State) {
    let address = "127.0.0.1:0".parse().expect("an address");
    let listener = |transport| Listener { address, ..Listener::of(transport) };
    let mut config = Config {
        listeners: vec![listener(Transport::RawSocket), listener(Transport::WebSocket)],
        ..Config::default()
    };
    config.relay.address = Some(address);
    change(index, &mut config);
    let epoch = BootEpoch(1_000 + index as u64);
    let relay = |shard: usize| {
        let mut seed = [index as u8 + 1; 32];
        seed[0] = shard as u8;
        RelayConfig {
            terms: terms(7),
            connections: config.relay.connections as usize,
            queue_max: config.relay.queue_max as usize,
            tls: config.relay.tls.then(|| tls(&config)),
            entropy: Entropy::new(seed),
        }
    };
    let cpus = match &config.cores {
        Cores::List(cpus) => cpus.clone(),
        Cores::Auto => dataplane::cpus::allowed().expect("affinity"),
    };
    let plan = Plan {
        relays: (0..shards).map(relay).collect(),
        https: vec![],
        cores: (0..shards).map(|shard| cpus[shard % cpus.len()]).collect(),
        features: Features::probe().expect("io_uring"),
        epoch,
        seeds: (0..shards as u64).map(|shard| 100 * index as u64 + shard).collect(),
        secrets: (0..shards as u8).map(|shard| [10 * index as u8 + shard; 32]).collect(),
        link_waker: Arc::new(|| {}),
        config,
    };
    let running = spawn_shards(plan).expect("the shards start");
    let id = NodeId([index as u8 + 1; 16]);
    let node = Node {
        id,
        epoch,
        rawsocket: running.listening[0].ip(),
        websocket: running.listening[1].ip(),
        relay: running.listening[2].ip(),
        shards,
    };
    let state = State {
        id,
        handles: running.shards,
        up: running.feed_up,
        wanted: BTreeMap::new(),
        last_seq: 0,
        stats: Vec::new(),
    };
    feed(&state, &FeedDown::Snapshot(Arc::new(snapshot(epoch, shards))));
    (node, state)
}

/// Keys and certificates made for these tests, good for a hundred years.
fn tls(config: &Config) -> TlsConfig {
    let other = config.relay.tls_authorities.ends_with("other");
    let (certificate, key, authority) = if other {
        (OTHER_CERTIFICATE, OTHER_KEY, OTHER_AUTHORITY)
    } else {
        (OWN_CERTIFICATE, OWN_KEY, OWN_AUTHORITY)
    };
    TlsConfig::new(certificate, key, authority).expect("good files")
}

pub const OWN_CERTIFICATE: &[u8] = include_bytes!("tls/own-node.pem");
pub const OWN_KEY: &[u8] = include_bytes!("tls/own-node.key");
pub const OWN_AUTHORITY: &[u8] = include_bytes!("tls/own-authority.pem");
pub const OTHER_CERTIFICATE: &[u8] = include_bytes!("tls/other-node.pem");
pub const OTHER_KEY: &[u8] = include_bytes!("tls/other-node.key");
pub const OTHER_AUTHORITY: &[u8] = include_bytes!("tls/other-authority.pem");

fn snapshot(epoch: BootEpoch, shards: usize) -> Snapshot<bytes::Bytes> {
    let source = Source {
        version: SnapshotVersion(1),
        epoch,
        claims_folded: vec![0; shards],
        realms: vec![Realm::new("realm1", Anonymous::Anybody)],
        ..Source::default()
    };
    Snapshot::check(bytes::Bytes::from_owner(build(&source, 1))).expect("a built snapshot is valid")
}

fn feed(state: &State, down: &FeedDown) {
    for handle in &state.handles {
        handle.feed.send(down.clone()).expect("the shard runs");
        handle.waker.wake();
    }
}

/// Passes claims of each node on to the others.
fn pump(shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        let mut busy = false;
        let mut states = shared.state.lock().expect("unpoisoned");
        for at in 0..states.len() {
            let ups: Vec<FeedUp> = states[at].up.try_iter().collect();
            busy |= !ups.is_empty();
            let mut changes = Vec::new();
            for up in ups {
                match up {
                    FeedUp::Claims { claims, .. } => {
                        claims.into_iter().for_each(|claim| states[at].claim(claim, &mut changes));
                    }
                    FeedUp::Stats { shard, metrics, .. } => {
                        if let Some(slot) = states[at].stats.get_mut(shard.index()) {
                            *slot = Some(*metrics);
                        }
                    }
                    _ => {}
                }
            }
            if changes.is_empty() {
                continue;
            }
            let changes: Arc<[RouteChange]> = changes.into();
            for other in (0..states.len()).filter(|other| *other != at) {
                let first_seq = states[other].last_seq + 1;
                states[other].last_seq += changes.len() as u64;
                feed(&states[other], &FeedDown::Routes { first_seq, changes: changes.clone() });
            }
        }
        drop(states);
        if !busy {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl State {
    fn claim(&mut self, claim: Claim, changes: &mut Vec<RouteChange>) {
        let node = self.id;
        let mut change = |(realm, kind, policy, uri): Key, wanted, share| {
            changes.push(RouteChange { node, realm, kind, policy, uri, wanted, share });
        };
        match claim {
            Claim::Routed { realm, kind, policy, uri } => {
                let key = (realm, kind, policy, uri);
                let shards = self.wanted.entry(key.clone()).or_default();
                *shards += 1;
                if *shards == 1 {
                    change(key, true, None);
                }
            }
            Claim::Shared { realm, policy, uri, share } => {
                let key = (realm, RouteKind::Procedure, policy, uri);
                self.wanted.insert(key.clone(), 1);
                change(key, true, Some(share));
            }
            Claim::Unrouted { realm, kind, policy, uri } => {
                let key = (realm, kind, policy, uri);
                if let Some(shards) = self.wanted.get_mut(&key) {
                    *shards -= 1;
                    if *shards == 0 {
                        self.wanted.remove(&key);
                        change(key, false, None);
                    }
                }
            }
            Claim::Joined { .. } | Claim::Left { .. } => {}
        }
    }
}
