//! Routes and realms in, bytes out.

use super::layout::*;
use super::{Route, Source};
use crate::history::History;
use crate::ids::{Match, NODES_MAX, NodeId, RealmId, RouteKind, ShardSet};
use crate::limits::{URI_BYTES_MAX, URI_COMPONENTS_MAX};
use crate::pattern::hash::UriHash;
use crate::rules::RULES_BYTES_MAX;
use rkyv::rancor;
use rkyv::util::AlignedVec;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The bytes of a snapshot of `source`; `seed` keys the hashes of its indexes.
///
/// The time is that of sorting the routes (close to linear when they come sorted) and a pass over each index.
///
/// # Panics
/// When two realms have one id or two routes one key, a name or URI is longer than
/// [`URI_BYTES_MAX`], or the snapshot is larger than an archive can be (2 GiB).
pub fn build(source: &Source, seed: u64) -> AlignedVec<16> {
    bytes(&tables(source, seed))
}

/// As [`build`], of `routes` instead of the source's, which come by ascending (realm, kind, policy, URI) and name
/// their nodes by index of `lists`. List 0 is that of routes no other node wants.
///
/// # Panics
/// As [`build`], and when a route names a list that is not there, or there are more than [`NODES_MAX`] nodes.
pub fn build_sorted(
    source: &Source,
    routes: Vec<RouteRef<'_>>,
    lists: &[Vec<NodeId>],
    seed: u64,
) -> AlignedVec<16> {
    bytes(&tables_of(source, routes, lists, seed))
}

/// A route of [`build_sorted`].
#[derive(Clone, Copy, Debug)]
pub struct RouteRef<'a> {
    pub realm: RealmId,
    pub kind: RouteKind,
    pub policy: Match,
    pub uri: &'a str,
    pub shards: ShardSet,
    /// The index of its list of nodes.
    pub list: u32,
}

pub(super) fn bytes(tables: &Tables) -> AlignedVec<16> {
    let mut bytes = AlignedVec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&LAYOUT.to_le_bytes());
    bytes.resize(HEADER_BYTES, 0);
    rkyv::api::high::to_bytes_in::<_, rancor::Error>(tables, bytes).expect("a snapshot is smaller than 2 GiB")
}

pub(super) fn tables(source: &Source, seed: u64) -> Tables {
    let mut lists = vec![Vec::new()];
    let mut found: BTreeMap<&[NodeId], u32> = BTreeMap::from([(&[][..], 0)]);
    let mut routes: Vec<_> = source
        .routes
        .iter()
        .map(|route: &Route| RouteRef {
            realm: route.realm,
            kind: route.kind,
            policy: route.policy,
            uri: &route.uri,
            shards: ShardSet(route.shards),
            list: *found.entry(&route.nodes).or_insert_with(|| {
                lists.push(route.nodes.clone());
                lists.len() as u32 - 1
            }),
        })
        .collect();
    routes.sort_by(|a, b| key(a).cmp(&key(b)));
    tables_of(source, routes, &lists, seed)
}

fn tables_of(source: &Source, sorted: Vec<RouteRef<'_>>, lists: &[Vec<NodeId>], seed: u64) -> Tables {
    let mut text = Text::default();
    let mut rules = Vec::new();
    let realms = realm_rows(source, &mut text, &mut rules);
    assert!(sorted.is_sorted_by(|a, b| key(a) < key(b)), "each route has its own key");
    let histories = history_rows(source, &mut text);
    let mut lists = Lists::new(lists);
    let routes: Vec<_> = sorted.iter().map(|route| route_row(route, &mut text, &mut lists)).collect();
    let shares = share_rows(source, &sorted, &lists.members);
    let mut patterns = Patterns::default();
    for range in groups(&sorted) {
        patterns.add_group(&sorted, &routes, range);
    }
    let hash = UriHash::new(seed);
    let nodes = patterns.nodes(&sorted, &routes, &hash);
    Tables {
        version: source.version,
        epoch: source.epoch,
        seed,
        claims_folded: source.claims_folded.clone(),
        nodes_folded: source.nodes_folded,
        members: lists.members,
        interested: lists.interested,
        list_ends: lists.ends,
        slots: slots(&sorted, &hash),
        text: text.pool,
        rules,
        realms,
        histories,
        routes,
        shares,
        groups: patterns.groups,
        lengths: patterns.lengths,
        tries: patterns.tries,
        nodes,
    }
}

fn key<'a>(route: &RouteRef<'a>) -> (u64, RouteKind, Match, &'a str) {
    (route.realm.0, route.kind, route.policy, route.uri)
}

fn realm_rows(source: &Source, text: &mut Text, rules: &mut Vec<u8>) -> Vec<RealmRow> {
    let mut sorted: Vec<_> = source.realms.iter().collect();
    sorted.sort_by_key(|realm| realm.id);
    assert!(sorted.is_sorted_by(|a, b| a.id < b.id), "each realm has its own id");
    let mut row = |realm: &super::Realm| {
        assert!(realm.rules.len() <= RULES_BYTES_MAX, "packed rules are bounded");
        let rules_at = u32::try_from(rules.len()).expect("a snapshot is smaller than 2 GiB");
        rules.extend_from_slice(&realm.rules);
        let (name_at, name_bytes) = text.add(&realm.name);
        let strict = if realm.strict { STRICT } else { 0 };
        let uri_strict = if realm.uri_strict { URI_STRICT } else { 0 };
        RealmRow {
            id: realm.id.0,
            name_at,
            name_bytes,
            flags: strict | uri_strict,
            anonymous: realm.anonymous,
            rules_at,
            rules_bytes: realm.rules.len() as u16,
            unused: [0; 2],
        }
    };
    sorted.into_iter().map(&mut row).collect()
}

fn history_rows(source: &Source, text: &mut Text) -> Vec<HistoryRow> {
    let mut rows: Vec<_> = source
        .realms
        .iter()
        .flat_map(|realm| realm.histories.iter().map(|history| (realm.id.0, history)))
        .collect();
    rows.sort_by_key(|(realm, history)| (*realm, history.policy, &history.uri));
    let row = |(realm, history): (u64, &History)| {
        let (uri_at, uri_bytes) = text.add(&history.uri);
        HistoryRow {
            realm,
            bytes_max: history.bytes_max,
            age_max_ms: history.age_max_ms,
            events_max: history.events_max,
            uri_at,
            uri_bytes,
            policy: history.policy,
            unused: [0; 5],
        }
    };
    rows.into_iter().map(row).collect()
}

fn route_row(route: &RouteRef<'_>, text: &mut Text, lists: &mut Lists<'_>) -> RouteRow {
    let (uri_at, uri_bytes) = text.add(route.uri);
    RouteRow {
        shards: [route.shards.0 as u64, (route.shards.0 >> 64) as u64],
        realm: route.realm.0,
        list: lists.add(route.list),
        uri_at,
        uri_bytes,
        kind: route.kind,
        policy: route.policy,
        unused: [0; 4],
    }
}

/// What is said of routes and nodes that are there.
fn share_rows(source: &Source, sorted: &[RouteRef<'_>], members: &[NodeId]) -> Vec<ShareRow> {
    let row = |said: &super::NodeShare| {
        let wanted = (said.realm.0, RouteKind::Procedure, said.policy, &*said.uri);
        let route = sorted.binary_search_by(|route| key(route).cmp(&wanted)).ok()?;
        let node = members.binary_search(&said.node).ok()?;
        let share = said.share;
        Some(ShareRow {
            first: share.first,
            last: share.last,
            route: route as u32,
            callees: share.callees,
            node: node as u16,
            invoke: share.invoke as u8,
            forced: share.forced.into(),
            unused: [0; 4],
        })
    };
    let mut rows: Vec<_> = source.shares.iter().filter_map(row).collect();
    rows.sort_by_key(|row| (row.route, row.node));
    rows.dedup_by_key(|row| (row.route, row.node));
    rows
}

/// The lists of nodes that routes name, numbered in the order of the first route of each, so that equal routes give equal
/// bytes. A list that is repeated is kept once.
struct Lists<'a> {
    given: &'a [Vec<NodeId>],
    /// For each given list, what a row says of it, once it is known.
    known: Vec<Option<u32>>,
    found: BTreeMap<Vec<u16>, u32>,
    members: Vec<NodeId>,
    interested: Vec<u16>,
    ends: Vec<u32>,
}

impl<'a> Lists<'a> {
    fn new(given: &'a [Vec<NodeId>]) -> Self {
        let members: BTreeSet<_> = given.iter().flatten().copied().collect();
        assert!(members.len() <= NODES_MAX, "a cluster has at most {NODES_MAX} nodes");
        Self {
            given,
            known: vec![None; given.len()],
            found: BTreeMap::from([(Vec::new(), 0)]),
            members: members.into_iter().collect(),
            interested: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// What a row says of a given list.
    fn add(&mut self, list: u32) -> u32 {
        if let Some(known) = self.known[list as usize] {
            return known;
        }
        let index = |node: &NodeId| self.members.binary_search(node).expect("members are those of the lists");
        let indexes: BTreeSet<_> = self.given[list as usize].iter().map(|node| index(node) as u16).collect();
        let indexes: Vec<_> = indexes.into_iter().collect();
        let known = *self.found.entry(indexes).or_insert_with_key(|indexes| {
            self.interested.extend_from_slice(indexes);
            self.ends.push(self.interested.len().try_into().expect("a snapshot is smaller than 2 GiB"));
            self.ends.len() as u32
        });
        self.known[list as usize] = Some(known);
        known
    }
}

#[derive(Default)]
struct Text {
    pool: String,
}

impl Text {
    /// Where `part` is now, and its length in bytes.
    fn add(&mut self, part: &str) -> (u32, u16) {
        assert!(part.len() <= URI_BYTES_MAX, "names and URIs are within their bound");
        let at = self.pool.len().try_into().expect("a snapshot is smaller than 2 GiB");
        self.pool.push_str(part);
        (at, part.len() as u16)
    }
}

fn slots(sorted: &[RouteRef<'_>], hash: &UriHash) -> Vec<Slot> {
    let mut slots = vec![Slot { tag: 0, route: EMPTY }; (sorted.len() * 2).next_power_of_two()];
    let mask = slots.len() - 1;
    for (index, route) in (0..).zip(sorted) {
        let mut running = hash.running(&hash_head(route.realm, route.kind, route.policy));
        running.extend(route.uri.as_bytes());
        let hash = running.hash();
        let mut at = hash as usize & mask;
        while slots[at].route != EMPTY {
            at = (at + 1) & mask;
        }
        slots[at] = Slot { tag: (hash >> 32) as u32, route: index };
    }
    slots
}

/// The ranges of routes of one (realm, kind) that hold a pattern; each range has all its prefixes and wildcards.
fn groups(sorted: &[RouteRef<'_>]) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    std::iter::from_fn(move || {
        let is_pattern = |route: &RouteRef<'_>| route.policy != Match::Exact;
        let start = end + sorted[end..].iter().position(is_pattern)?;
        let key = |route: &RouteRef<'_>| (route.realm, route.kind);
        end = start + sorted[start..].iter().take_while(|route| key(route) == key(&sorted[start])).count();
        Some(start..end)
    })
}

/// The tables for prefixes and wildcards.
#[derive(Default)]
struct Patterns {
    groups: Vec<Group>,
    lengths: Vec<u16>,
    tries: Vec<u16>,
    /// For each trie, its routes in `order`.
    trie_routes: Vec<Range<usize>>,
    /// The wildcard routes: trie by trie, and by components within a trie.
    order: Vec<u32>,
}

impl Patterns {
    fn add_group(&mut self, sorted: &[RouteRef<'_>], routes: &[RouteRow], range: Range<usize>) {
        let (lengths_first, tries_first) = (self.lengths.len(), self.tries.len());
        let wildcards_first =
            range.start + sorted[range.clone()].iter().filter(|route| route.policy == Match::Prefix).count();
        let lengths: BTreeSet<_> =
            routes[range.start..wildcards_first].iter().map(|route| route.uri_bytes).collect();
        self.lengths.extend(lengths);
        self.add_tries(sorted, wildcards_first..range.end);
        self.groups.push(Group {
            realm: sorted[range.start].realm.0,
            kind: sorted[range.start].kind,
            lengths_first: lengths_first as u32,
            lengths_len: (self.lengths.len() - lengths_first) as u16,
            tries_first: tries_first as u32,
            tries_len: (self.tries.len() - tries_first) as u16,
            unused: [0; 3],
        });
    }

    fn add_tries(&mut self, sorted: &[RouteRef<'_>], wildcards: Range<usize>) {
        let uri = |route: u32| sorted[route as usize].uri;
        let mut counted: Vec<(usize, u32)> = wildcards
            .map(|route| (uri(route as u32).split('.').count(), route as u32))
            .filter(|&(components, _)| components <= URI_COMPONENTS_MAX)
            .collect();
        // Two stable sorts: the routes of one count come in the order of their strings, which is nearly that of
        // their components.
        counted.sort_by_key(|&(components, _)| components);
        for trie in counted.chunk_by_mut(|a, b| a.0 == b.0) {
            trie.sort_by(|a, b| uri(a.1).split('.').cmp(uri(b.1).split('.')));
            let first = self.order.len();
            self.order.extend(trie.iter().map(|&(_, route)| route));
            self.tries.push(trie[0].0 as u16);
            self.trie_routes.push(first..self.order.len());
        }
    }

    /// The nodes of all tries, level by level.
    fn nodes(&self, sorted: &[RouteRef<'_>], routes: &[RouteRow], hash: &UriHash) -> Vec<Node> {
        let mut nodes: Vec<_> = self.tries.iter().map(|_| NO_NODE).collect();
        let span = |(routes, &components): (&Range<usize>, &u16)| Span {
            routes: routes.clone(),
            skip: 0,
            components_left: components,
        };
        let mut spans: Vec<_> = self.trie_routes.iter().zip(&self.tries).map(span).collect();
        let mut children = Vec::new();
        for parent in 0.. {
            let Some(span) = spans.get(parent).cloned() else { break };
            if span.components_left == 0 {
                nodes[parent].first = self.order[span.routes.start];
                continue;
            }
            self.children(sorted, routes, hash, span, &mut children);
            nodes[parent].any = u16::from(children[0].0.component_bytes == 0);
            nodes[parent].children_len = children.len() as u32;
            nodes[parent].first = nodes.len().try_into().expect("a snapshot is smaller than 2 GiB");
            for (node, span) in children.drain(..) {
                nodes.push(node);
                spans.push(span);
            }
        }
        nodes
    }

    /// The children of the node with this span: the one for any component, then the others by (tag, component).
    fn children(
        &self,
        sorted: &[RouteRef<'_>],
        routes: &[RouteRow],
        hash: &UriHash,
        span: Span,
        children: &mut Vec<(Node, Span)>,
    ) {
        let mut at = span.routes.start;
        while at < span.routes.end {
            let component = self.component(sorted, at, span.skip);
            let same = |&route: &usize| self.component(sorted, route, span.skip) == component;
            let end = at + (at..span.routes.end).take_while(same).count();
            let node = Node {
                component_at: routes[self.order[at] as usize].uri_at + span.skip as u32,
                component_bytes: component.len() as u16,
                tag: component_tag(hash, component),
                ..NO_NODE
            };
            let skip = span.skip + component.len() + 1;
            children.push((node, Span { routes: at..end, skip, components_left: span.components_left - 1 }));
            at = end;
        }
        // They come by component, and a stable sort keeps that order among equal tags.
        children.sort_by_key(|(node, _)| (node.component_bytes != 0, node.tag));
    }

    /// The component that starts at byte `skip` of the pattern at `at` in the order.
    fn component<'a>(&self, sorted: &[RouteRef<'a>], at: usize, skip: usize) -> &'a str {
        let rest = &sorted[self.order[at] as usize].uri[skip..];
        &rest[..memchr::memchr(b'.', rest.as_bytes()).unwrap_or(rest.len())]
    }
}

const NO_NODE: Node = Node { component_at: 0, component_bytes: 0, any: 0, tag: 0, first: 0, children_len: 0 };

/// The patterns below a node.
#[derive(Clone)]
struct Span {
    /// Of the order; they agree in their first `skip` bytes.
    routes: Range<usize>,
    skip: usize,
    components_left: u16,
}
