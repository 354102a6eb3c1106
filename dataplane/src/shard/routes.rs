//! Finding receivers: local tables, overlay and snapshot, behind a cache ([`super::cache`]).
//!
//! ```text
//! (realm, URI) ─▶ cache ─miss─▶ local topics | procedures
//!                               overlay   what other shards and nodes said since the snapshot
//!                               snapshot  what the control plane has folded in
//! ```
//! Invariants: this shard's own routes are answered by its local tables alone; an overlay entry loses its weight only when a
//! snapshot in use stands for the claim or change it came from; only nodes that live are answered.

use super::nodes::{NodeSet, Nodes};
use super::overlay::{Source, Sources, Words};
use super::realm::{Local, Realm};
use crate::feed::SharedSnapshot;
use common::ids::{BootEpoch, Match, RealmId, RouteKind, ShardId, ShardSet, route_id};
use common::share::Share;
use common::snapshot::RouteView;
use common::uri::matches;

/// The routes of the snapshot in use, when they are those of this process, and which nodes live.
#[derive(Debug, Default)]
pub(super) struct Folded {
    snapshot: Option<SharedSnapshot>,
    /// For each node of the snapshot, its index here; none when there are too many nodes.
    indexes: Vec<Option<u16>>,
    /// The number of the last change of other nodes' routes the snapshot stands for, as this shard counts them.
    nodes_folded: u64,
    /// For each node here, the number of the change that ended all it wanted before, or 0.
    ends: Vec<u64>,
    /// For each node here, the number of the last change of the node that had its index before, or 0.
    before: Vec<u64>,
    /// The nodes whose end the snapshot does not stand for.
    ended: NodeSet,
    /// The nodes that may be sent to.
    pub live: NodeSet,
}

impl Folded {
    /// Takes the routes of a newer snapshot. False, and nothing changed, when they belong to another process or lack
    /// claims that the routes in use have (a control plane that has just come back). `changes_before` is
    /// added to the snapshot's number of changes of other nodes' routes to make it one of this shard's; `changes_last` is the
    /// last of those so far.
    pub fn take(
        &mut self,
        snapshot: &SharedSnapshot,
        (epoch, shards): (BootEpoch, usize),
        nodes: &mut Nodes,
        (changes_before, changes_last): (u64, u64),
    ) -> bool {
        let covers = |old: &SharedSnapshot| {
            (0..shards).all(|shard| snapshot.claims_folded(shard) >= old.claims_folded(shard))
        };
        let fits = snapshot.epoch() == epoch && self.snapshot.as_ref().is_none_or(covers);
        if fits {
            self.snapshot = Some(snapshot.clone());
            self.indexes = snapshot.nodes().map(|node| nodes.index(node)).collect();
            for index in nodes.take_reused() {
                self.reuse(index, changes_last);
                // With more nodes than indexes the snapshot itself may have taken one twice; it is the last one's.
                let last = self.indexes.iter().rposition(|other| *other == Some(index));
                self.forget(index, last);
            }
            self.nodes_folded = changes_before.saturating_add(snapshot.nodes_folded());
            self.find_ended();
        }
        fits
    }

    /// Change `seq`: the node wants nothing any more.
    pub fn end(&mut self, node: u16, seq: u64) {
        let at = usize::from(node);
        if self.ends.len() <= at {
            self.ends.resize(at + 1, 0);
        }
        self.ends[at] = self.ends[at].max(seq);
        self.find_ended();
    }

    /// An index has another node since change `last`.
    pub fn index_reused(&mut self, index: u16, last: u64) {
        self.reuse(index, last);
        self.forget(index, None);
    }

    fn reuse(&mut self, index: u16, last: u64) {
        let at = usize::from(index);
        if self.before.len() <= at {
            self.before.resize(at + 1, 0);
        }
        self.before[at] = last;
        if let Some(end) = self.ends.get_mut(at) {
            *end = 0;
        }
        self.find_ended();
    }

    /// The snapshot names nobody by this index but at the place `but`.
    fn forget(&mut self, index: u16, but: Option<usize>) {
        for (place, other) in self.indexes.iter_mut().enumerate() {
            if *other == Some(index) && Some(place) != but {
                *other = None;
            }
        }
    }

    fn find_ended(&mut self) {
        self.ended = NodeSet::EMPTY;
        for (node, end) in (0..).zip(&self.ends) {
            if *end > self.nodes_folded {
                self.ended.insert(node);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.routes_len())
    }

    /// True when a word counts: the snapshot does not stand for it.
    #[inline]
    pub fn lacks(&self, source: Source, seq: u64) -> bool {
        match source {
            Source::Shard(shard) => {
                seq > self.snapshot.as_ref().map_or(0, |snapshot| snapshot.claims_folded(shard.index()))
            }
            Source::Node(node) => {
                let of = |numbers: &[u64]| numbers.get(usize::from(node)).copied().unwrap_or(0);
                seq > self.nodes_folded && seq > of(&self.ends) && seq > of(&self.before)
            }
        }
    }

    /// Who wants what goes to exactly this route.
    pub fn exactly(&self, realm: RealmId, kind: RouteKind, policy: Match, uri: &str) -> Sources {
        let route = self.snapshot.as_ref().and_then(|snapshot| snapshot.get(realm, kind, policy, uri));
        route.map_or_else(Sources::default, |route| self.sources(&route))
    }

    /// What nodes say of callees that share exactly this procedure.
    fn shares(&self, realm: RealmId, policy: Match, uri: &str) -> impl Iterator<Item = (u16, Share)> {
        let said = self.snapshot.iter().flat_map(move |snapshot| snapshot.shares(realm, policy, uri));
        said.filter_map(|(node, share)| Some((self.indexes.get(usize::from(node)).copied()??, share)))
    }

    fn sources(&self, route: &RouteView<'_>) -> Sources {
        let mut nodes = NodeSet::EMPTY;
        for index in route.nodes.iter() {
            if let Some(Some(node)) = self.indexes.get(usize::from(index)) {
                nodes.insert(*node);
            }
        }
        Sources { shards: route.shards, nodes: nodes.minus(self.ended) }
    }

    fn for_each_match<'a>(
        &'a self,
        realm: RealmId,
        kind: RouteKind,
        uri: &str,
        mut found: impl FnMut(Match, &'a str, Sources),
    ) {
        if let Some(snapshot) = &self.snapshot {
            snapshot.for_each_match(realm, kind, uri, |route| {
                found(route.policy, route.uri, self.sources(&route));
            });
        }
    }
}

/// Where a call goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Callee {
    Local(u32),
    /// One of several, which this shard chooses.
    Group(u32),
    Remote(ShardId),
    /// On another node.
    Node(u16),
    /// On one of the nodes whose callees share it.
    Nodes,
    Nobody,
}

impl Callee {
    fn nearness(self) -> u8 {
        match self {
            Self::Local(_) | Self::Group(_) => 3,
            Self::Remote(_) => 2,
            Self::Node(_) | Self::Nodes => 1,
            Self::Nobody => 0,
        }
    }
}

/// A resolved URI.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Local topics (broker) that match.
    pub topics: Vec<u32>,
    /// This shard keeps the history of one of them.
    pub keeps: bool,
    /// Some shard of some node keeps the event: it is to be stamped.
    pub stamps: bool,
    /// Other shards that want the event.
    pub shards: ShardSet,
    /// Other nodes that want the event, live ones only.
    pub nodes: NodeSet,
    /// When there are such nodes: the id of subscriptions to exactly this topic, on all nodes.
    pub subscription: u64,
    pub callee: Callee,
    /// Other nodes whose callees share the procedure, live ones only.
    pub sharers: Vec<Sharer>,
    /// How often a node was chosen.
    pub turn: u32,
}

/// A node whose callees share a procedure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sharer {
    pub node: u16,
    pub share: Share,
}

/// Everyone who wants an event on `uri`.
pub(super) fn resolve_topic(realm: &Realm, folded: &Folded, me: ShardId, uri: &str) -> Resolved {
    let mut topics = Vec::new();
    realm.topics.for_each_match(uri, |_, _, topic| topics.push(*topic));
    let (mut shards, mut nodes) = (ShardSet::EMPTY, NodeSet::EMPTY);
    let mut add = |found: Sources| {
        shards = shards.union(found.shards);
        nodes = nodes.union(found.nodes);
    };
    let overlay = realm.overlay.kind(RouteKind::Topic);
    overlay.for_each_match(uri, |_, _, words| add(words.wanted(folded)));
    folded.for_each_match(realm.id, RouteKind::Topic, uri, |policy, pattern, held| {
        add(still_wanted(held, overlay.get(policy, pattern), folded));
    });
    let nodes = nodes.intersection(folded.live);
    let exact = || route_id(realm.id, RouteKind::Topic, Match::Exact, uri);
    let keeps = topics.iter().any(|topic| realm.kept.contains(topic));
    let mut histories = realm.settings.iter().flat_map(|settings| &settings.histories);
    let stamps = histories.any(|history| matches(&history.uri, history.policy, uri));
    Resolved {
        topics,
        keeps,
        stamps,
        shards: shards.without(me),
        nodes,
        subscription: if nodes.is_empty() { 0 } else { exact() },
        callee: Callee::Nobody,
        sharers: Vec::new(),
        turn: 0,
    }
}

/// Calls `found` for the patterns of topics that match and that another shard, or a node that lives, wants; for some twice.
pub(super) fn for_each_elsewhere(
    realm: &Realm,
    folded: &Folded,
    me: ShardId,
    uri: &str,
    mut found: impl FnMut(&str),
) {
    let mut offer = |pattern: &str, from: Sources| {
        if !from.shards.without(me).is_empty() || !from.nodes.intersection(folded.live).is_empty() {
            found(pattern);
        }
    };
    let overlay = realm.overlay.kind(RouteKind::Topic);
    overlay.for_each_match(uri, |_, pattern, words| offer(pattern, words.wanted(folded)));
    folded.for_each_match(realm.id, RouteKind::Topic, uri, |policy, pattern, held| {
        offer(pattern, still_wanted(held, overlay.get(policy, pattern), folded));
    });
}

/// What of a route of the snapshot was not taken back since.
fn still_wanted(held: Sources, words: Option<&Words>, folded: &Folded) -> Sources {
    let Some(words) = words else { return held };
    let gone = words.unwanted(folded);
    Sources { shards: held.shards.minus(gone.shards), nodes: held.nodes.minus(gone.nodes) }
}

/// The one callee of a call to `uri`: exact, else the longest prefix, else the wildcard whose literal runs are longest
/// from the left (WAMP, advanced profile, "Pattern-based Registrations"). For the same pattern a local callee is
/// preferred to another shard's, and that to another node's.
pub(super) fn resolve_procedure<'a>(
    realm: &'a Realm,
    folded: &'a Folded,
    me: ShardId,
    uri: &str,
) -> Resolved {
    let mut best: Option<(Precedence, Callee, (Match, &'a str))> = None;
    let mut offer = |policy: Match, pattern: &'a str, callee: Callee| {
        let offered = (precedence(policy, pattern), callee, (policy, pattern));
        let better = |best: &(Precedence, Callee, _)| {
            offered.0.cmp(&best.0).then(offered.1.nearness().cmp(&best.1.nearness())).is_gt()
        };
        if best.as_ref().is_none_or(better) {
            best = Some(offered);
        }
    };
    realm.procedures.for_each_match(uri, |policy, pattern, local| {
        let callee = match *local {
            Local::Callee(procedure) => Callee::Local(procedure),
            Local::Group(group) => Callee::Group(group),
        };
        offer(policy, pattern, callee);
    });
    let mut offer_sources = |policy: Match, pattern: &'a str, sources: Sources| {
        if let Some(shard) = sources.shards.without(me).iter().next() {
            offer(policy, pattern, Callee::Remote(shard));
        } else if let Some(node) = sources.nodes.intersection(folded.live).iter().next() {
            offer(policy, pattern, Callee::Node(node));
        }
    };
    let overlay = realm.overlay.kind(RouteKind::Procedure);
    folded.for_each_match(realm.id, RouteKind::Procedure, uri, |policy, pattern, held| {
        offer_sources(policy, pattern, still_wanted(held, overlay.get(policy, pattern), folded));
    });
    overlay.for_each_match(uri, |policy, pattern, words| {
        offer_sources(policy, pattern, words.wanted(folded));
    });
    let (mut callee, mut sharing) = (Callee::Nobody, Vec::new());
    if let Some((_, best, (policy, pattern))) = best {
        callee = best;
        if matches!(callee, Callee::Group(_) | Callee::Node(_)) && !folded.live.is_empty() {
            sharing = sharers(realm, folded, policy, pattern);
        }
        if matches!(callee, Callee::Node(_)) && sharing.len() > 1 {
            callee = Callee::Nodes;
        }
    }
    Resolved {
        topics: Vec::new(),
        keeps: false,
        stamps: false,
        shards: ShardSet::EMPTY,
        nodes: NodeSet::EMPTY,
        subscription: 0,
        callee,
        sharers: sharing,
        turn: 0,
    }
}

/// The other nodes that live and hold exactly this registration.
pub(super) fn holders(realm: &Realm, folded: &Folded, policy: Match, uri: &str) -> NodeSet {
    let words = realm.overlay.kind(RouteKind::Procedure).get(policy, uri);
    let held = folded.exactly(realm.id, RouteKind::Procedure, policy, uri);
    let held = still_wanted(held, words, folded).nodes;
    let said = words.map_or(NodeSet::EMPTY, |words| words.wanted(folded).nodes);
    held.union(said).intersection(folded.live)
}

/// Those of [`holders`] whose callees share it, by ascending node.
pub(super) fn sharers(realm: &Realm, folded: &Folded, policy: Match, uri: &str) -> Vec<Sharer> {
    let words = realm.overlay.kind(RouteKind::Procedure).get(policy, uri);
    let said = words.map_or(NodeSet::EMPTY, |words| words.wanted(folded).nodes);
    let mut sharers: Vec<Sharer> = Vec::new();
    let mut add = |(node, share)| sharers.push(Sharer { node, share });
    folded.shares(realm.id, policy, uri).filter(|(node, _)| !said.contains(*node)).for_each(&mut add);
    words.into_iter().flat_map(|words| words.shares(folded)).for_each(&mut add);
    let holders = holders(realm, folded, policy, uri);
    sharers.retain(|sharer| holders.contains(sharer.node));
    sharers.sort_by_key(|sharer| sharer.node);
    sharers
}

/// True when another shard, or another node that lives, is known to have this route.
pub(super) fn is_known_elsewhere(
    realm: &Realm,
    folded: &Folded,
    me: ShardId,
    (kind, policy, uri): (RouteKind, Match, &str),
) -> bool {
    let words = realm.overlay.kind(kind).get(policy, uri);
    let held = still_wanted(folded.exactly(realm.id, kind, policy, uri), words, folded);
    let said = words.map_or_else(Sources::default, |words| words.wanted(folded));
    let nodes = held.nodes.union(said.nodes).intersection(folded.live);
    !nodes.is_empty() || !held.shards.union(said.shards).without(me).is_empty()
}

pub(super) type Precedence = (u8, Vec<usize>);

/// How strong a matching pattern's claim on a call is; the greatest is chosen.
pub(super) fn precedence(policy: Match, pattern: &str) -> Precedence {
    match policy {
        Match::Exact => (2, Vec::new()),
        Match::Prefix => (1, vec![pattern.split('.').count(), pattern.len()]),
        Match::Wildcard => (0, literal_runs(pattern)),
    }
}

/// Lengths, in components, of the literal runs of a wildcard pattern, from the left. A leading wildcard is an empty
/// first run.
fn literal_runs(pattern: &str) -> Vec<usize> {
    let mut runs = vec![0];
    for component in pattern.split('.') {
        match (component.is_empty(), runs.last_mut()) {
            (false, Some(run)) => *run += 1,
            _ => runs.push(0),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::overlay::{OVERLAY_THIN_MIN, Sweep};
    use common::ids::{NodeId, SnapshotVersion};
    use common::link::Peer;
    use common::share::Invoke;
    use common::snapshot::{Route, Snapshot};
    use std::sync::Arc;

    const EPOCH: BootEpoch = BootEpoch(1);
    const ME: ShardId = ShardId(0);
    const A: ShardId = ShardId(1);
    const B: ShardId = ShardId(2);

    fn realm() -> Realm {
        Realm::new(RealmId::of("realm1"))
    }

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    /// Nodes 1 to 4, of which 1 to 3 live, and what is folded.
    struct Cluster {
        folded: Folded,
        nodes: Nodes,
        version: u64,
        /// What the next snapshot has of p.a, by number of the node.
        shares: Vec<(u8, Share)>,
    }

    impl Cluster {
        fn new() -> Self {
            let mut cluster =
                Self { folded: Folded::default(), nodes: Nodes::default(), version: 0, shares: vec![] };
            for n in 1..5 {
                cluster.nodes.index(node(n));
            }
            let peer = |n| Peer { node: node(n), epoch: EPOCH, relay: "127.0.0.1:1".into() };
            cluster.nodes.replace(&[1, 2, 3].map(peer));
            cluster.folded.live = cluster.nodes.live();
            cluster
        }

        /// A snapshot of routes of realm1, taken after `changes_before` changes of earlier links.
        fn take(
            &mut self,
            routes: &[(RouteKind, Match, &str, ShardSet, &[u8])],
            (claims_folded, nodes_folded): (u64, u64),
            changes_before: u64,
        ) {
            self.version += 1;
            let route =
                |(kind, policy, uri, shards, nodes): &(RouteKind, Match, &str, ShardSet, &[u8])| Route {
                    realm: RealmId::of("realm1"),
                    kind: *kind,
                    policy: *policy,
                    uri: (*uri).to_owned(),
                    shards: shards.0,
                    nodes: nodes.iter().copied().map(node).collect(),
                };
            let share = |(n, share): &(u8, Share)| common::snapshot::NodeShare {
                realm: RealmId::of("realm1"),
                policy: Match::Exact,
                uri: "p.a".into(),
                node: node(*n),
                share: *share,
            };
            let source = common::snapshot::Source {
                version: SnapshotVersion(self.version),
                epoch: EPOCH,
                claims_folded: vec![claims_folded; 3],
                nodes_folded,
                routes: routes.iter().map(route).collect(),
                shares: self.shares.iter().map(share).collect(),
                ..Default::default()
            };
            let bytes = bytes::Bytes::from_owner(common::snapshot::build(&source, 1));
            let snapshot = Arc::new(Snapshot::check(bytes).expect("a built snapshot is valid"));
            let changes = (changes_before, changes_before);
            assert!(self.folded.take(&snapshot, (EPOCH, 3), &mut self.nodes, changes));
        }

        fn nodes_of(&self, realm: &Realm, uri: &str) -> Vec<u16> {
            resolve_topic(realm, &self.folded, ME, uri).nodes.iter().collect()
        }
    }

    fn sweep(realm: &mut Realm, folded: &Folded) {
        let mut sweep = Sweep::default();
        while !sweep.is_done() {
            realm.overlay.sweep(&mut sweep, folded, 3);
        }
    }

    #[test]
    fn the_latest_word_of_a_shard_counts() {
        let mut realm = realm();
        realm.overlay.say(RouteKind::Topic, Match::Exact, "t.x", Source::Shard(A), true, 1);
        realm.overlay.say(RouteKind::Topic, Match::Prefix, "t", Source::Shard(B), true, 1);
        let mut cluster = Cluster::new();
        let shards =
            |realm: &Realm, cluster: &Cluster| resolve_topic(realm, &cluster.folded, ME, "t.x").shards;
        assert_eq!(shards(&realm, &cluster), ShardSet::one(A).with(B));
        realm.overlay.say(RouteKind::Topic, Match::Exact, "t.x", Source::Shard(A), false, 2);
        assert_eq!(shards(&realm, &cluster), ShardSet::one(B));
        cluster.take(&[], (1, 0), 0);
        assert_eq!(shards(&realm, &cluster), ShardSet::EMPTY, "what the snapshot stands for has no weight");
        sweep(&mut realm, &cluster.folded);
        assert_eq!(realm.overlay.len(), 1, "the removal is newer than the snapshot and stays");
    }

    #[test]
    fn nodes_come_from_overlay_and_snapshot_and_only_live_ones_are_named() {
        let (mut realm, mut cluster) = (realm(), Cluster::new());
        let exact = (RouteKind::Topic, Match::Exact, "a.b", ShardSet::one(A), &[1, 2, 4][..]);
        let prefix = (RouteKind::Topic, Match::Prefix, "a", ShardSet::EMPTY, &[3][..]);
        cluster.take(&[exact, prefix], (0, 10), 0);
        assert_eq!(cluster.nodes_of(&realm, "a.b"), [0, 1, 2], "4 is down");
        assert_eq!(cluster.nodes_of(&realm, "a.c"), [2]);
        realm.overlay.say(RouteKind::Topic, Match::Exact, "a.b", Source::Node(1), false, 11);
        realm.overlay.say(RouteKind::Topic, Match::Wildcard, "a.", Source::Node(0), true, 12);
        assert_eq!(cluster.nodes_of(&realm, "a.b"), [0, 2]);
        assert_eq!(cluster.nodes_of(&realm, "a.c"), [0, 2]);
        cluster.nodes.replace(&[]);
        cluster.folded.live = cluster.nodes.live();
        assert!(cluster.nodes_of(&realm, "a.b").is_empty());
        assert_eq!(resolve_topic(&realm, &cluster.folded, ME, "a.b").shards, ShardSet::one(A));
    }

    #[test]
    fn a_snapshot_stands_for_changes_up_to_its_number_and_for_all_of_earlier_links() {
        let (mut realm, mut cluster) = (realm(), Cluster::new());
        realm.overlay.say(RouteKind::Topic, Match::Exact, "a", Source::Node(0), true, 5);
        realm.overlay.say(RouteKind::Topic, Match::Exact, "a", Source::Node(1), true, 6);
        cluster.take(&[(RouteKind::Topic, Match::Exact, "a", ShardSet::EMPTY, &[3])], (0, 5), 0);
        assert_eq!(cluster.nodes_of(&realm, "a"), [1, 2], "change 5 is folded in, and is a removal by now");
        cluster.take(&[], (0, 0), 100);
        assert!(cluster.nodes_of(&realm, "a").is_empty());
        sweep(&mut realm, &cluster.folded);
        assert_eq!(realm.overlay.len(), 0);
        realm.overlay.say(RouteKind::Topic, Match::Exact, "a", Source::Node(2), true, 101);
        assert_eq!(cluster.nodes_of(&realm, "a"), [2]);
    }

    #[test]
    fn a_node_that_ended_wants_only_what_it_said_afterwards() {
        let (mut realm, mut cluster) = (realm(), Cluster::new());
        let routes = [(RouteKind::Topic, Match::Exact, "a", ShardSet::EMPTY, &[1, 2][..])];
        cluster.take(&routes, (0, 3), 0);
        realm.overlay.say(RouteKind::Topic, Match::Exact, "b", Source::Node(0), true, 4);
        cluster.folded.end(0, 5);
        assert_eq!((cluster.nodes_of(&realm, "a"), cluster.nodes_of(&realm, "b")), (vec![1], vec![]));
        realm.overlay.say(RouteKind::Topic, Match::Exact, "a", Source::Node(0), true, 6);
        assert_eq!(cluster.nodes_of(&realm, "a"), [0, 1]);
        cluster.take(&routes, (0, 4), 0);
        assert!(cluster.nodes_of(&realm, "b").is_empty(), "a snapshot from before the end changes nothing");
        cluster.take(&routes, (0, 6), 0);
        assert_eq!(cluster.nodes_of(&realm, "a"), [0, 1], "one from after it has the node's new routes");
    }

    #[test]
    fn a_node_that_takes_over_an_index_has_none_of_the_routes_of_the_one_before() {
        let (mut realm, mut cluster) = (realm(), Cluster::new());
        cluster.take(&[(RouteKind::Topic, Match::Exact, "a", ShardSet::EMPTY, &[1])], (0, 3), 0);
        realm.overlay.say(RouteKind::Topic, Match::Exact, "b", Source::Node(0), true, 4);
        cluster.folded.index_reused(0, 4);
        assert!(cluster.nodes_of(&realm, "a").is_empty() && cluster.nodes_of(&realm, "b").is_empty());
        realm.overlay.say(RouteKind::Topic, Match::Exact, "b", Source::Node(0), true, 5);
        assert_eq!(cluster.nodes_of(&realm, "b"), [0]);
        cluster.take(&[(RouteKind::Topic, Match::Exact, "a", ShardSet::EMPTY, &[1])], (0, 3), 0);
        assert_eq!(cluster.nodes_of(&realm, "a"), [0], "a snapshot names nodes, not indexes");
    }

    #[test]
    fn calls_prefer_the_better_pattern_then_the_nearer_callee() {
        let (mut realm, mut cluster) = (realm(), Cluster::new());
        let callee = |realm: &Realm, cluster: &Cluster, uri: &str| {
            resolve_procedure(realm, &cluster.folded, ME, uri).callee
        };
        let routes = [
            (RouteKind::Procedure, Match::Exact, "p.a", ShardSet::EMPTY, &[4, 2][..]),
            (RouteKind::Procedure, Match::Prefix, "p", ShardSet::one(A), &[1]),
        ];
        cluster.take(&routes, (0, 0), 0);
        assert_eq!(callee(&realm, &cluster, "p.a"), Callee::Node(1), "exact before prefix; 4 is down");
        assert_eq!(callee(&realm, &cluster, "p.b"), Callee::Remote(A), "this node before another");
        realm.overlay.say(RouteKind::Procedure, Match::Exact, "p.a", Source::Shard(B), true, 1);
        assert_eq!(callee(&realm, &cluster, "p.a"), Callee::Remote(B));
        realm.procedures.insert(Match::Exact, "p.a", Local::Callee(7));
        assert_eq!(callee(&realm, &cluster, "p.a"), Callee::Local(7));
        realm.overlay.say(RouteKind::Procedure, Match::Exact, "p.b", Source::Node(2), true, 1);
        assert_eq!(callee(&realm, &cluster, "p.b"), Callee::Node(2));
        realm.overlay.say(RouteKind::Procedure, Match::Exact, "p.b", Source::Node(2), false, 2);
        assert_eq!(callee(&realm, &cluster, "p.b"), Callee::Remote(A));
        assert!(is_held(&realm, &cluster, Match::Exact, "p.a"));
        assert!(!is_held(&realm, &cluster, Match::Exact, "p.b"));
        assert!(!is_held(&realm, &cluster, Match::Prefix, "p.a"));
        cluster.nodes.replace(&[]);
        cluster.folded.live = cluster.nodes.live();
        assert!(!is_held(&realm, &cluster, Match::Exact, "p.a"), "its node is down");
    }

    fn is_held(realm: &Realm, cluster: &Cluster, policy: Match, uri: &str) -> bool {
        !holders(realm, &cluster.folded, policy, uri).is_empty()
    }

    #[test]
    fn nodes_that_share_a_procedure_are_known_from_overlay_and_snapshot() {
        let (mut realm, mut cluster) = (realm(), Cluster::new());
        let share = |callees| Share { invoke: Invoke::Random, callees, ..Share::SINGLE };
        let say = |realm: &mut Realm, node, share, seq| {
            let route = (RouteKind::Procedure, Match::Exact, "p.a");
            realm.overlay.say_shared(route, Source::Node(node), (true, share), seq);
        };
        let known = |realm: &Realm, cluster: &Cluster| -> Vec<(u16, u32)> {
            let sharers = sharers(realm, &cluster.folded, Match::Exact, "p.a");
            sharers.iter().map(|sharer| (sharer.node, sharer.share.callees)).collect()
        };
        let callee =
            |realm: &Realm, cluster: &Cluster| resolve_procedure(realm, &cluster.folded, ME, "p.a").callee;
        say(&mut realm, 0, Some(share(3)), 1);
        assert_eq!((known(&realm, &cluster), callee(&realm, &cluster)), (vec![(0, 3)], Callee::Node(0)));
        say(&mut realm, 2, Some(share(4)), 2);
        say(&mut realm, 3, Some(share(9)), 3);
        assert_eq!(known(&realm, &cluster), [(0, 3), (2, 4)], "node 3 is down");
        assert_eq!(callee(&realm, &cluster), Callee::Nodes);
        cluster.shares = vec![(1, share(5)), (2, share(6))];
        let routes = [(RouteKind::Procedure, Match::Exact, "p.a", ShardSet::EMPTY, &[1, 2, 3][..])];
        cluster.take(&routes, (0, 1), 0);
        assert_eq!(known(&realm, &cluster), [(0, 5), (1, 6), (2, 4)], "change 1 is folded in, 2 is not");
        say(&mut realm, 1, None, 4);
        assert_eq!(known(&realm, &cluster), [(0, 5), (2, 4)], "it is one callee's alone now");
        realm.overlay.say(RouteKind::Procedure, Match::Exact, "p.a", Source::Node(2), false, 5);
        assert_eq!((known(&realm, &cluster), callee(&realm, &cluster)), (vec![(0, 5)], Callee::Node(0)));
    }

    #[test]
    fn removals_do_not_pile_up_while_no_snapshot_comes() {
        let mut realm = realm();
        let held = [(Match::Exact, "held.x"), (Match::Prefix, "held"), (Match::Wildcard, "held..y")];
        let route = |(policy, uri)| (RouteKind::Topic, policy, uri, ShardSet::one(A), &[][..]);
        let mut cluster = Cluster::new();
        cluster.take(&held.map(route), (3, 0), 0);
        let folded = &cluster.folded;

        for (seq, (policy, uri)) in (4..).zip(held) {
            realm.overlay.say(RouteKind::Topic, policy, uri, Source::Shard(A), false, seq);
        }
        realm.overlay.say(RouteKind::Topic, Match::Exact, "other", Source::Node(0), false, 1);
        let thin_out = |realm: &mut Realm| {
            let id = realm.id;
            realm.overlay.thin_out(|kind, policy, uri| folded.exactly(id, kind, policy, uri).shards);
        };
        for seq in 10..100_000 {
            let uri = format!("come.and.gone{seq}");
            realm.overlay.say(RouteKind::Topic, Match::Exact, &uri, Source::Shard(A), true, seq);
            realm.overlay.say(RouteKind::Topic, Match::Exact, &uri, Source::Shard(A), false, seq + 1);
            if realm.overlay.is_thick() {
                thin_out(&mut realm);
            }
            assert!(realm.overlay.len() <= OVERLAY_THIN_MIN);
        }
        thin_out(&mut realm);
        assert_eq!(realm.overlay.len(), held.len() + 1, "what the snapshot still has stays removed");
        assert_eq!(resolve_topic(&realm, folded, ME, "held.x").shards, ShardSet::EMPTY);
    }

    #[test]
    fn calls_go_to_the_exact_then_the_longest_prefix_then_the_best_wildcard() {
        let mut realm = realm();
        let say = |realm: &mut Realm, policy, uri, shard| {
            let source = Source::Shard(ShardId(shard));
            realm.overlay.say(RouteKind::Procedure, policy, uri, source, true, 1);
        };
        say(&mut realm, Match::Exact, "a1.b2.c3.d4.e55", 1);
        say(&mut realm, Match::Prefix, "a1.b2.c3", 2);
        say(&mut realm, Match::Prefix, "a1.b2.c3.d4", 3);
        say(&mut realm, Match::Wildcard, "a1.b2..d4.e5", 4);
        say(&mut realm, Match::Wildcard, "a1.b2.d33..e5", 5);
        say(&mut realm, Match::Wildcard, "a1.b2..d4.e5..g7", 6);
        say(&mut realm, Match::Wildcard, "a1.b2..d4..f6.g7", 7);
        let callee = |uri| resolve_procedure(&realm, &Folded::default(), ShardId(0), uri).callee;
        assert_eq!(callee("a1.b2.c3.d4.e55"), Callee::Remote(ShardId(1)));
        assert_eq!(callee("a1.b2.c3.d98.e74"), Callee::Remote(ShardId(2)));
        assert_eq!(callee("a1.b2.c3.d4.e325"), Callee::Remote(ShardId(3)));
        assert_eq!(callee("a1.b2.c55.d4.e5"), Callee::Remote(ShardId(4)));
        assert_eq!(callee("a1.b2.d33.d4.e5"), Callee::Remote(ShardId(5)));
        assert_eq!(callee("a1.b2.c88.d4.e5.f6.g7"), Callee::Remote(ShardId(6)));
        assert_eq!(callee("a2.b2.c2.d2.e2"), Callee::Nobody);
    }
}
