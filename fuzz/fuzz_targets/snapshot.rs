//! Snapshots: one of fuzzed routes answers as a `PatternMap` does; with fuzzed changes to its bytes it is refused, or
//! answers without a panic.

#![no_main]

use arbitrary::Arbitrary;
use common::ids::{Match, NodeId, RealmId, RouteKind};
use common::limits::URI_BYTES_MAX;
use common::pattern::PatternMap;
use common::snapshot::{Route, Snapshot, Source, build};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::ops::Deref;

const REALM: RealmId = RealmId(1);
const KIND: RouteKind = RouteKind::Procedure;

#[derive(Arbitrary, Debug)]
struct Input {
    routes: Vec<(Policy, String, u128)>,
    uris: Vec<String>,
    changes: Vec<(u32, u8)>,
    seed: u64,
}

#[derive(Clone, Copy, Arbitrary, Debug)]
enum Policy {
    Exact,
    Prefix,
    Wildcard,
}

fuzz_target!(|input: Input| {
    let routes: BTreeMap<_, _> = input
        .routes
        .into_iter()
        .filter(|(_, uri, _)| uri.len() <= URI_BYTES_MAX)
        .map(|(policy, uri, shards)| ((policy_of(policy), uri), shards))
        .collect();
    let mut bytes = build(&source(&routes), input.seed);

    let snapshot = Snapshot::check(&bytes[..]).expect("build makes snapshots");
    let mut map = PatternMap::with_seed(input.seed);
    for ((policy, uri), shards) in &routes {
        map.insert(*policy, uri, *shards);
        let route = snapshot.get(REALM, KIND, *policy, uri).expect("routes are found");
        assert_eq!(route.shards.0, *shards);
        let nodes: Vec<_> = snapshot.nodes().collect();
        let named: Vec<_> = route.nodes.iter().map(|index| nodes[usize::from(index)]).collect();
        assert_eq!(named, nodes_of(*shards));
    }
    for uri in routes.keys().map(|(_, uri)| uri).chain(&input.uris) {
        let mut expected = Vec::new();
        map.for_each_match(uri, |policy, uri, shards| expected.push((policy, uri, *shards)));
        assert_eq!(matches(&snapshot, uri), expected);
    }

    for (at, to) in input.changes {
        let at = at as usize % bytes.len();
        bytes[at] = to;
    }
    if let Ok(snapshot) = Snapshot::check(bytes) {
        let nodes = snapshot.nodes().len();
        for (realm, kind, route) in snapshot.routes() {
            assert!(route.nodes.iter().all(|index| usize::from(index) < nodes));
            snapshot.for_each_match(realm, kind, route.uri, |_| {});
        }
        for uri in &input.uris {
            matches(&snapshot, uri);
        }
    }
});

fn policy_of(policy: Policy) -> Match {
    match policy {
        Policy::Exact => Match::Exact,
        Policy::Prefix => Match::Prefix,
        Policy::Wildcard => Match::Wildcard,
    }
}

/// Some nodes for a route wanted by these shards.
fn nodes_of(shards: u128) -> Vec<NodeId> {
    (0..8).filter(|bit| shards >> bit & 1 == 1).map(|bit| NodeId([bit; 16])).collect()
}

fn source(routes: &BTreeMap<(Match, String), u128>) -> Source {
    let route = |((policy, uri), shards): (&(Match, String), &u128)| Route {
        realm: REALM,
        kind: KIND,
        policy: *policy,
        uri: uri.clone(),
        shards: *shards,
        nodes: nodes_of(*shards),
    };
    Source { routes: routes.iter().map(route).collect(), ..Source::default() }
}

fn matches<'a, B: Deref<Target = [u8]>>(snapshot: &'a Snapshot<B>, uri: &str) -> Vec<(Match, &'a str, u128)> {
    let mut found = Vec::new();
    snapshot.for_each_match(REALM, KIND, uri, |route| found.push((route.policy, route.uri, route.shards.0)));
    found
}
