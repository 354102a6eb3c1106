//! Finding receivers: local tables, overlay and snapshot, behind a cache.
//!
//! ```text
//! (realm, URI) ─▶ cache ─miss─▶ local topics | procedures
//!                               overlay   what other shards said since the snapshot
//!                               snapshot  what the control plane has folded in
//! ```
//! Invariants: this shard's own routes are answered by its local tables alone; an overlay entry leaves only when a
//! snapshot in use stands for the claim it came from; the cache holds valid URIs only.

use super::nodes::NodeSet;
use super::realm::Realm;
use crate::feed::SharedSnapshot;
use common::ids::{BootEpoch, Match, RealmId, RouteKind, ShardId, ShardSet};
use common::pattern::PatternMap;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// One other shard's latest word on a route.
#[derive(Clone, Copy, Debug)]
struct Word {
    shard: ShardId,
    wanted: bool,
    /// The number of the claim that says the same to the control plane.
    seq: u64,
}

/// What other shards said about one route since the snapshot.
#[derive(Debug, Default)]
pub(super) struct Words(Vec<Word>);

impl Words {
    fn say(&mut self, shard: ShardId, wanted: bool, seq: u64) {
        match self.0.iter_mut().find(|word| word.shard == shard) {
            Some(word) => *word = Word { shard, wanted, seq },
            None => self.0.push(Word { shard, wanted, seq }),
        }
    }

    fn wanted(&self) -> ShardSet {
        self.0.iter().filter(|word| word.wanted).fold(ShardSet::EMPTY, |set, word| set.with(word.shard))
    }

    fn unwanted(&self) -> ShardSet {
        self.0.iter().filter(|word| !word.wanted).fold(ShardSet::EMPTY, |set, word| set.with(word.shard))
    }
}

/// The routes of other shards.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    topics: PatternMap<Words>,
    procedures: PatternMap<Words>,
    /// Routes that were left when it was last thinned out.
    thinned: usize,
}

/// Routes of an overlay below which nothing is thinned out.
const OVERLAY_THIN_MIN: usize = 4_096;

impl Overlay {
    pub fn kind(&self, kind: RouteKind) -> &PatternMap<Words> {
        match kind {
            RouteKind::Topic => &self.topics,
            RouteKind::Procedure => &self.procedures,
        }
    }

    fn kind_mut(&mut self, kind: RouteKind) -> &mut PatternMap<Words> {
        match kind {
            RouteKind::Topic => &mut self.topics,
            RouteKind::Procedure => &mut self.procedures,
        }
    }

    pub fn len(&self) -> usize {
        self.topics.len() + self.procedures.len()
    }

    pub fn say(&mut self, kind: RouteKind, policy: Match, uri: &str, shard: ShardId, wanted: bool, seq: u64) {
        let map = self.kind_mut(kind);
        match map.get_mut(policy, uri) {
            Some(words) => words.say(shard, wanted, seq),
            None => {
                let mut words = Words::default();
                words.say(shard, wanted, seq);
                map.insert(policy, uri, words);
            }
        }
    }

    /// True when the overlay has doubled since it was last thinned out. Without a control plane no snapshot folds it,
    /// and clients that come and go would leave their removals here for ever.
    pub fn is_thick(&self) -> bool {
        self.len() >= OVERLAY_THIN_MIN.max(2 * self.thinned)
    }

    /// Forgets removals of what `folded`, the snapshot's word on a route, does not have.
    pub fn thin_out(&mut self, folded: impl Fn(RouteKind, Match, &str) -> ShardSet) {
        for kind in [RouteKind::Topic, RouteKind::Procedure] {
            self.kind_mut(kind).retain(|policy, uri, words| {
                let held = folded(kind, policy, uri);
                words.0.retain(|word| word.wanted || held.contains(word.shard));
                !words.0.is_empty()
            });
        }
        self.thinned = self.len();
    }

    /// Forgets what the snapshot stands for: claims of shard `i` up to `folded(i)`.
    pub fn fold(&mut self, folded: impl Fn(usize) -> u64) {
        for map in [&mut self.topics, &mut self.procedures] {
            map.retain(|_, _, words| {
                words.0.retain(|word| word.seq > folded(word.shard.index()));
                !words.0.is_empty()
            });
        }
    }
}

/// The routes of the snapshot in use, when they are those of this process.
#[derive(Debug, Default)]
pub(super) struct Folded {
    snapshot: Option<SharedSnapshot>,
}

impl Folded {
    /// Takes the routes of a newer snapshot. False, and nothing changed, when they belong to another process or lack
    /// claims that the routes in use have (a control plane that has just come back).
    pub fn take(&mut self, snapshot: &SharedSnapshot, epoch: BootEpoch, shards: usize) -> bool {
        let covers = |old: &SharedSnapshot| {
            (0..shards).all(|shard| snapshot.claims_folded(shard) >= old.claims_folded(shard))
        };
        let fits = snapshot.epoch() == epoch && self.snapshot.as_ref().is_none_or(covers);
        if fits {
            self.snapshot = Some(snapshot.clone());
        }
        fits
    }

    pub fn len(&self) -> usize {
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.routes_len())
    }

    /// The shards that want what goes to exactly this route.
    pub fn shards(&self, realm: RealmId, kind: RouteKind, policy: Match, uri: &str) -> ShardSet {
        let mut shards = ShardSet::EMPTY;
        // A pattern matches itself, read as a URI.
        self.for_each_match(realm, kind, uri, |found_policy, found, wanted| {
            if found_policy == policy && found == uri {
                shards = wanted;
            }
        });
        shards
    }

    fn for_each_match<'a>(
        &'a self,
        realm: RealmId,
        kind: RouteKind,
        uri: &str,
        mut found: impl FnMut(Match, &'a str, ShardSet),
    ) {
        if let Some(snapshot) = &self.snapshot {
            snapshot.for_each_match(realm, kind, uri, |route| found(route.policy, route.uri, route.shards));
        }
    }
}

/// Where a call goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Callee {
    Local(u32),
    Remote(ShardId),
    /// On another node.
    Node(u16),
    Nobody,
}

/// A resolved URI.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Local topics (broker) that match.
    pub topics: Vec<u32>,
    /// Other shards that want the event.
    pub shards: ShardSet,
    /// Other nodes that want the event, live ones only.
    pub nodes: NodeSet,
    pub callee: Callee,
}

#[derive(Debug)]
struct Entry {
    realm: u32,
    kind: RouteKind,
    version: u64,
    uri: Box<str>,
    resolved: Resolved,
}

/// Resolved URIs by (realm, kind, URI), good for one version of the realm's routes.
#[derive(Debug)]
pub(super) struct Cache {
    index: HashTable<u32>,
    entries: Vec<Entry>,
    hasher: RandomState,
}

/// Entries after which the cache starts afresh.
pub(super) const ROUTE_CACHE_MAX: usize = 65_536;

impl Cache {
    pub fn new(hasher: RandomState) -> Self {
        Self { index: HashTable::new(), entries: Vec::new(), hasher }
    }

    #[inline]
    fn hash(hasher: &RandomState, realm: u32, kind: RouteKind, uri: &str) -> u64 {
        hasher.hash_one((u64::from(realm) << 1 | kind as u64, uri.as_bytes()))
    }

    /// The entry of a URI, when it is good for `version`: its index, and whether it is there at all.
    #[inline]
    pub fn find(&self, realm: u32, kind: RouteKind, uri: &str, version: u64) -> Option<usize> {
        let hash = Self::hash(&self.hasher, realm, kind, uri);
        let at = *self.index.find(hash, |at| {
            let entry = &self.entries[*at as usize];
            entry.realm == realm && entry.kind == kind && *entry.uri == *uri
        })?;
        (self.entries[at as usize].version == version).then_some(at as usize)
    }

    /// True when the entry at `at`, a guess, is that of this URI and good for `version`.
    #[inline]
    pub fn is_at(&self, at: u32, realm: u32, kind: RouteKind, uri: &str, version: u64) -> bool {
        self.entries.get(at as usize).is_some_and(|entry| {
            entry.version == version && entry.realm == realm && entry.kind == kind && *entry.uri == *uri
        })
    }

    #[inline]
    pub fn get(&mut self, at: usize) -> &mut Resolved {
        &mut self.entries[at].resolved
    }

    /// Puts a resolved URI and returns its index.
    pub fn put(&mut self, realm: u32, kind: RouteKind, uri: &str, version: u64, resolved: Resolved) -> usize {
        if self.entries.len() >= ROUTE_CACHE_MAX {
            self.entries = Vec::new();
            self.index = HashTable::new();
        }
        let hash = Self::hash(&self.hasher, realm, kind, uri);
        let same = |at: &u32| {
            let entry = &self.entries[*at as usize];
            entry.realm == realm && entry.kind == kind && *entry.uri == *uri
        };
        if let Some(at) = self.index.find(hash, same) {
            let at = *at as usize;
            self.entries[at].version = version;
            self.entries[at].resolved = resolved;
            return at;
        }
        let at = self.entries.len();
        self.entries.push(Entry { realm, kind, version, uri: uri.into(), resolved });
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index.insert_unique(hash, at as u32, |at| {
            let entry = &entries[*at as usize];
            Self::hash(hasher, entry.realm, entry.kind, &entry.uri)
        });
        at
    }
}

/// Everyone who wants an event on `uri`.
pub(super) fn resolve_topic(realm: &Realm, folded: &Folded, me: ShardId, uri: &str) -> Resolved {
    let mut topics = Vec::new();
    realm.topics.for_each_match(uri, |_, _, topic| topics.push(*topic));
    let mut shards = ShardSet::EMPTY;
    let overlay = realm.overlay.kind(RouteKind::Topic);
    overlay.for_each_match(uri, |_, _, words| shards = shards.union(words.wanted()));
    folded.for_each_match(realm.id, RouteKind::Topic, uri, |policy, pattern, wanted| {
        let gone = overlay.get(policy, pattern).map_or(ShardSet::EMPTY, Words::unwanted);
        shards = shards.union(wanted.minus(gone));
    });
    Resolved { topics, shards: shards.without(me), nodes: NodeSet::EMPTY, callee: Callee::Nobody }
}

/// The one callee of a call to `uri`: exact, else the longest prefix, else the wildcard whose literal runs are longest
/// from the left (WAMP, advanced profile, "Pattern-based Registrations"). A local callee is preferred to another
/// shard's for the same pattern.
pub(super) fn resolve_procedure(realm: &Realm, folded: &Folded, me: ShardId, uri: &str) -> Resolved {
    let mut best: Option<(Match, &str, Callee)> = None;
    let mut offer = |policy: Match, pattern, callee| {
        let better = match best {
            None => true,
            Some((best_policy, best_pattern, best_callee)) => {
                match precedence(policy, pattern).cmp(&precedence(best_policy, best_pattern)) {
                    std::cmp::Ordering::Equal => {
                        !matches!(best_callee, Callee::Local(_)) && callee != Callee::Nobody
                    }
                    order => order.is_gt(),
                }
            }
        };
        if better {
            best = Some((policy, pattern, callee));
        }
    };
    realm.procedures.for_each_match(uri, |policy, pattern, procedure| {
        offer(policy, pattern, Callee::Local(*procedure));
    });
    let overlay = realm.overlay.kind(RouteKind::Procedure);
    folded.for_each_match(realm.id, RouteKind::Procedure, uri, |policy, pattern, shards| {
        let gone = overlay.get(policy, pattern).map_or(ShardSet::EMPTY, Words::unwanted);
        if let Some(shard) = shards.minus(gone).without(me).iter().next() {
            offer(policy, pattern, Callee::Remote(shard));
        }
    });
    overlay.for_each_match(uri, |policy, pattern, words| {
        if let Some(shard) = words.wanted().without(me).iter().next() {
            offer(policy, pattern, Callee::Remote(shard));
        }
    });
    Resolved {
        topics: Vec::new(),
        shards: ShardSet::EMPTY,
        nodes: NodeSet::EMPTY,
        callee: best.map_or(Callee::Nobody, |(_, _, callee)| callee),
    }
}

/// How strong a matching pattern's claim on a call is; the greatest is chosen.
fn precedence(policy: Match, pattern: &str) -> (u8, Vec<usize>) {
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
    use common::ids::SnapshotVersion;
    use std::sync::Arc;

    fn realm() -> Realm {
        Realm::new(RealmId::of("realm1"))
    }

    #[test]
    fn the_latest_word_of_a_shard_counts() {
        let mut realm = realm();
        let (a, b) = (ShardId(1), ShardId(2));
        realm.overlay.say(RouteKind::Topic, Match::Exact, "t.x", a, true, 1);
        realm.overlay.say(RouteKind::Topic, Match::Prefix, "t", b, true, 1);
        let folded = Folded::default();
        let resolved = resolve_topic(&realm, &folded, ShardId(0), "t.x");
        assert_eq!(resolved.shards, ShardSet::one(a).with(b));
        realm.overlay.say(RouteKind::Topic, Match::Exact, "t.x", a, false, 2);
        assert_eq!(resolve_topic(&realm, &folded, ShardId(0), "t.x").shards, ShardSet::one(b));
        realm.overlay.fold(|_| 1);
        assert_eq!(realm.overlay.len(), 1, "the removal is newer than the fold and stays");
    }

    #[test]
    fn removals_do_not_pile_up_while_no_snapshot_comes() {
        let (epoch, a) = (BootEpoch(1), ShardId(1));
        let mut realm = realm();
        let held = [(Match::Exact, "held.x"), (Match::Prefix, "held"), (Match::Wildcard, "held..y")];
        let mut routes: Vec<_> = held
            .map(|(policy, uri)| common::snapshot::Route {
                realm: realm.id,
                kind: RouteKind::Topic,
                policy,
                uri: uri.to_owned(),
                shards: ShardSet::one(a).0,
                nodes: vec![],
            })
            .to_vec();
        routes.sort_by(|x, y| (x.policy, &x.uri).cmp(&(y.policy, &y.uri)));
        let source = common::snapshot::Source {
            version: SnapshotVersion(1),
            epoch,
            claims_folded: vec![0, 3],
            nodes_folded: 0,
            realms: vec![common::snapshot::Realm {
                id: realm.id,
                name: "realm1".to_owned(),
                strict: false,
                uri_strict: false,
                anonymous: common::snapshot::Anonymous::Anybody,
            }],
            routes,
        };
        let bytes = bytes::Bytes::from_owner(common::snapshot::build(&source, 1));
        let mut folded = Folded::default();
        let snapshot = Arc::new(common::snapshot::Snapshot::check(bytes).expect("a built snapshot is valid"));
        assert!(folded.take(&snapshot, epoch, 2));

        for (seq, (policy, uri)) in (4..).zip(held) {
            realm.overlay.say(RouteKind::Topic, policy, uri, a, false, seq);
        }
        for seq in 10..100_000 {
            let uri = format!("come.and.gone{seq}");
            realm.overlay.say(RouteKind::Topic, Match::Exact, &uri, a, true, seq);
            realm.overlay.say(RouteKind::Topic, Match::Exact, &uri, a, false, seq + 1);
            if realm.overlay.is_thick() {
                realm.overlay.thin_out(|kind, policy, uri| folded.shards(realm.id, kind, policy, uri));
            }
            assert!(realm.overlay.len() <= OVERLAY_THIN_MIN);
        }
        realm.overlay.thin_out(|kind, policy, uri| folded.shards(realm.id, kind, policy, uri));
        assert_eq!(realm.overlay.len(), held.len(), "what the snapshot still has stays removed");
        assert_eq!(resolve_topic(&realm, &folded, ShardId(0), "held.x").shards, ShardSet::EMPTY);
    }

    #[test]
    fn calls_go_to_the_exact_then_the_longest_prefix_then_the_best_wildcard() {
        let mut realm = realm();
        let say = |realm: &mut Realm, policy, uri, shard| {
            realm.overlay.say(RouteKind::Procedure, policy, uri, ShardId(shard), true, 1);
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

    #[test]
    fn the_cache_answers_one_version_only_and_stays_bounded() {
        let mut cache = Cache::new(RandomState::default());
        let resolved = || Resolved {
            topics: vec![1],
            shards: ShardSet::EMPTY,
            nodes: NodeSet::EMPTY,
            callee: Callee::Nobody,
        };
        let at = cache.put(0, RouteKind::Topic, "a", 1, resolved());
        assert_eq!(cache.find(0, RouteKind::Topic, "a", 1), Some(at));
        assert_eq!(cache.find(0, RouteKind::Procedure, "a", 1), None);
        assert_eq!(cache.find(0, RouteKind::Topic, "a", 2), None);
        assert_eq!(cache.put(0, RouteKind::Topic, "a", 2, resolved()), at, "an outdated entry is replaced");
        for n in 0..ROUTE_CACHE_MAX + 10 {
            cache.put(0, RouteKind::Topic, &format!("u{n}"), 2, resolved());
        }
        assert!(cache.entries.len() <= ROUTE_CACHE_MAX);
    }
}
