//! What publishing one changed route costs beside many others, step by step and thread by thread.
//!
//! `cargo bench --bench publish` has 1,000,000 routes in the table, half of this node's and half of other nodes';
//! `cargo bench --bench publish -- --test`, like `cargo test`, 20,000. Each step is timed alone, in CPU time of its
//! thread, and the longest one is what it can stop its core for. Snapshots are built and checked on threads that nobody
//! waits for; what they take is shown too.

mod support;

use bytes::Bytes;
use common::ids::{BootEpoch, Match, NodeId, RealmId, RouteKind, ShardId, SnapshotVersion};
use common::link::{Claim, Down, LINK_PROTOCOL, Peer, RouteChange, Up};
use common::snapshot::Snapshot;
use controlplane::catalog::Catalog;
use controlplane::fold::Fold;
use controlplane::node::{LinkId, Node, NodeConfig, Output};
use controlplane::publish::Policy;
use dataplane::feed::{FeedDown, FeedUp, SharedSnapshot};
use dataplane::shard::Shard;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::cpu_time::cpu_time;
use support::{config, is_measured};

const FULL: usize = 1_000_000;
const SMOKE: usize = 20_000;
/// Changes that are timed one by one.
const CHANGES: usize = 10_000;
/// Realms the routes are spread over.
const REALMS: usize = 10;
const LINK: LinkId = LinkId(1);
const EPOCH: BootEpoch = BootEpoch(7);
/// Times a snapshot is taken.
const SNAPSHOTS: usize = 10;
/// Changes a shard keeps beside its snapshot when it takes the next one.
const OVERLAY: usize = controlplane::remote::UNFOLDED_MAX as usize;

fn main() {
    let routes = if is_measured() { FULL } else { SMOKE };
    println!("{routes} routes; microseconds of CPU time of one step");
    println!("{:<58} {:>7} {:>8} {:>8} {:>8}", "", "steps", "p50", "p99", "longest");
    let (mut node, fold) = node(routes);
    control_plane(&mut node, routes / 2);
    control_plane_while_building(&mut node, routes / 2, fold);
    shard(&mut node, routes);
}

/// How long each step of one kind took.
struct Steps {
    name: &'static str,
    times: Vec<Duration>,
}

impl Steps {
    fn new(name: &'static str) -> Self {
        Self { name, times: Vec::new() }
    }

    fn time<T>(&mut self, step: impl FnOnce() -> T) -> T {
        let start = cpu_time();
        let value = step();
        self.times.push(cpu_time() - start);
        value
    }

    fn print(mut self) {
        self.times.sort();
        let at = |share: f64| {
            let index = (self.times.len() as f64 * share) as usize;
            self.times[index.min(self.times.len() - 1)].as_nanos() as f64 / 1e3
        };
        let (p50, p99, longest) = (at(0.5), at(0.99), at(1.0));
        println!("{:<58} {:>7} {p50:>8.1} {p99:>8.1} {longest:>8.1}", self.name, self.times.len());
    }
}

fn realm(n: usize) -> RealmId {
    RealmId::of(&format!("com.example.realm{}", n % REALMS))
}

fn uri(n: usize) -> String {
    format!("com.example.site{}.device{n}.temperature", n / 100)
}

fn other(n: usize) -> NodeId {
    NodeId([n as u8 % 5 + 1; 16])
}

fn change(n: usize, wanted: bool) -> RouteChange {
    let (kind, policy) = (RouteKind::Topic, Match::Exact);
    RouteChange { node: other(n), realm: realm(n), kind, policy, uri: uri(n), wanted, share: None }
}

fn claim(n: usize, wanted: bool) -> Claim {
    let (realm, kind, policy, uri) = (realm(n), RouteKind::Topic, Match::Exact, uri(n));
    if wanted {
        Claim::Routed { realm, kind, policy, uri }
    } else {
        Claim::Unrouted { realm, kind, policy, uri }
    }
}

/// Numbers of routes in no order, all different.
fn scattered(count: usize, below: usize) -> impl Iterator<Item = usize> {
    // A prime that does not divide `below`, whose factors are 2 and 5.
    (0..count).map(move |n| (n * 7_919 + 13) % below)
}

fn outputs(node: &mut Node, now: Instant) -> Vec<Output> {
    std::iter::from_fn(|| node.poll(now, 0)).collect()
}

fn built(node: &mut Node, now: Instant, outputs: Vec<Output>) -> Option<Box<Fold>> {
    outputs.into_iter().find_map(|output| match output {
        Output::Build { version, fold, .. } => {
            // As long as it takes for this many.
            node.built(now, version, Some(Duration::from_secs(1)));
            node.frame(now, LINK, Up::Taken { version });
            Some(fold)
        }
        _ => None,
    })
}

/// A control plane with its data plane linked and half of the routes on each side, and what its snapshot is built from.
fn node(routes: usize) -> (Node, Box<Fold>) {
    let now = Instant::now();
    let policy = Policy { min_interval: Duration::from_millis(100), fold_min: 4_096 };
    let catalog = Catalog::new(&[], 10_000).expect("no realm, no error");
    let mut node = Node::new(NodeConfig { pid: 1, catalog, policy, version_last: SnapshotVersion(0) });
    node.hold(true);
    let hello = Up::Hello { protocol: LINK_PROTOCOL, epoch: EPOCH, pid: 2, shards: 2, version: "1".into() };
    node.frame(now, LINK, hello);
    let peers = (0..5).map(|n| Peer { node: other(n), epoch: EPOCH, relay: "127.0.0.1:1".into() });
    node.peers(peers.collect());
    for n in 0..routes / 2 {
        let frame =
            Up::Claims { shard: ShardId(0), first_seq: n as u64 + 1, claims: vec![claim(2 * n, true)] };
        node.frame(now, LINK, frame);
    }
    node.remote_routes(now, (0..routes / 2).map(|n| change(2 * n + 1, true)).collect());
    node.hold(false);
    let outputs = outputs(&mut node, now);
    let fold = built(&mut node, now, outputs).expect("the first snapshot is due");
    (node, fold)
}

/// One change at a time, from its arrival to the bytes for the data plane.
fn remote_changes(node: &mut Node, name: &'static str, half: usize, wanted: bool) {
    let now = Instant::now();
    let mut steps = Steps::new(name);
    let mut bytes = 0;
    for n in scattered(CHANGES.min(half), half) {
        let change = change(2 * n + 1, wanted);
        bytes += steps.time(|| {
            node.remote_routes(now, vec![change]);
            let mut bytes = 0;
            while let Some(output) = node.poll(now, 0) {
                if let Output::Send { frame, .. } = output {
                    bytes += frame.encode().len();
                }
            }
            bytes
        });
    }
    assert!(bytes > 0, "changes are sent");
    steps.print();
}

fn local_changes(node: &mut Node, name: &'static str, half: usize, wanted: bool) {
    let now = Instant::now();
    let mut steps = Steps::new(name);
    let first = node.registry().claims_folded()[0] + 1;
    for (seq, n) in (first..).zip(scattered(CHANGES.min(half), half)) {
        let frame = Up::Claims { shard: ShardId(0), first_seq: seq, claims: vec![claim(2 * n, wanted)] };
        steps.time(|| {
            node.frame(now, LINK, frame);
            while node.poll(now, 0).is_some() {}
        });
    }
    steps.print();
}

fn control_plane(node: &mut Node, half: usize) {
    remote_changes(node, "control plane: another node's route, as a frame", half, false);
    local_changes(node, "control plane: a claim of this node", half, false);
}

/// The same while a thread builds a snapshot: what it reads must not change under it.
fn control_plane_while_building(node: &mut Node, half: usize, first: Box<Fold>) {
    drop(first);
    let mut steps = Steps::new("control plane: a frame, or the table for the builder");
    let mut folds = Vec::new();
    let mut now = Instant::now();
    for n in 0..SNAPSHOTS {
        now += Duration::from_secs(60);
        node.remote_routes(now, (0..5_000).map(|at| change(2 * at + 1, n % 2 == 0)).collect());
        let mut outputs = Vec::new();
        while let Some(output) = steps.time(|| node.poll(now, 0)) {
            outputs.push(output);
        }
        folds.push(built(node, now, outputs).expect("so many changes are folded in"));
        folds.drain(..folds.len() - 1);
    }
    steps.print();
    remote_changes(node, "control plane: another node's route, while building", half, true);
    local_changes(node, "control plane: a claim, while building", half, true);
}

/// The next snapshot, built and checked as the two planes do.
fn snapshot(node: &mut Node, now: Instant, n: usize) -> (SharedSnapshot, u64) {
    let mut build = Steps::new("builder's thread: a full snapshot");
    let mut check = Steps::new("checker's thread: a full snapshot");
    node.remote_routes(now, (0..5_000).map(|at| change(2 * at + 1, n.is_multiple_of(2))).collect());
    let outputs = outputs(node, now);
    let fold = built(node, now, outputs).expect("so many changes are folded in");
    let bytes = build.time(|| fold.build(n as u64));
    let folded = fold.head.nodes_folded;
    let bytes = Bytes::from_owner(bytes);
    let checked = check.time(|| Snapshot::check(bytes)).expect("a built snapshot is valid");
    if n == 0 {
        build.print();
        check.print();
    }
    (Arc::new(checked), folded)
}

/// Feeds a shard and lets it do in later turns what it left. The longest turn counts.
fn feed(shard: &mut Shard, now: Instant, down: FeedDown, steps: &mut Steps) {
    steps.time(|| shard.feed(now, down));
    while shard.deadline().is_some_and(|deadline| deadline <= now) {
        steps.time(|| shard.timeout(now));
    }
    while shard.take_feed().is_some_and(|up| !matches!(up, FeedUp::Drained { .. })) {}
}

fn shard(node: &mut Node, routes: usize) {
    let now = Instant::now();
    let mut later = now + Duration::from_secs(3_600);
    let mut shard = Shard::new(config(1, 2, EPOCH), now);
    let mut one = Steps::new("shard: one changed route");
    let mut many = Steps::new("shard: a frame of 256 changed routes");
    let mut ended = Steps::new("shard: a turn after a node ended");
    let mut taken = Steps::new("shard: a turn of taking a full snapshot");
    // As the link thread does, so that no shard gives a large piece of memory back.
    let mut handed = Vec::new();
    for n in 0..SNAPSHOTS {
        later += Duration::from_secs(60);
        let (snapshot, folded) = snapshot(node, later, n);
        handed.push(Arc::clone(&snapshot));
        feed(&mut shard, now, FeedDown::Snapshot(snapshot), &mut taken);
        handed.drain(..handed.len() - 1);
        let mut seq = folded + 1;
        let routes_frame = |first_seq, changes: Vec<RouteChange>| {
            let frame = Down::Routes { first_seq, changes };
            match Down::decode(&frame.encode()).expect("a frame") {
                Down::Routes { first_seq, changes } => {
                    FeedDown::Routes { first_seq, changes: changes.into() }
                }
                _ => unreachable!("it was one"),
            }
        };
        for at in scattered(OVERLAY / 256 * 4, routes) {
            feed(&mut shard, now, routes_frame(seq, vec![change(at, false)]), &mut one);
            seq += 1;
        }
        for block in 0..OVERLAY / 256 {
            let changes: Vec<_> =
                (0..256).map(|at| change((block * 256 + at) * 3 % routes, at % 2 == 0)).collect();
            feed(&mut shard, now, routes_frame(seq, changes), &mut many);
            seq += 256;
        }
        if n % 2 == 1 {
            feed(&mut shard, now, FeedDown::Unroute { seq, node: other(1) }, &mut ended);
        }
    }
    one.print();
    many.print();
    ended.print();
    taken.print();
}
