use super::*;
use crate::features::FeatureSet;
use crate::limits::{URI_BYTES_MAX, URI_COMPONENTS_MAX};
use crate::pattern::PatternMap;
use crate::pattern::tests::{oracle, pattern, policy, uri};
use crate::rules::{BOUNDS, Bounds, RoleRules, Rules};
use crate::share::Share;
use proptest::prelude::*;
use rkyv::util::AlignedVec;
use std::collections::{BTreeMap, BTreeSet};

type Key = (RealmId, RouteKind, Match, String);

const REALMS: [RealmId; 3] = [RealmId(1), RealmId(7), RealmId(u64::MAX)];
const KINDS: [RouteKind; 2] = [RouteKind::Topic, RouteKind::Procedure];

/// Of a realm with rules for one role, and the place of the count of roles in them.
fn rules() -> Rules {
    let role = RoleRules { name: "r".into(), off: Some(FeatureSet(1)), bounds: Bounds::NONE };
    Rules::new(FeatureSet(2), Bounds::NONE, vec![role]).expect("one role")
}
const RULES_BYTES: usize = 8 + 4 * BOUNDS.len();

fn realm_id() -> impl Strategy<Value = RealmId> {
    prop::sample::select(&REALMS)
}

fn kind() -> impl Strategy<Value = RouteKind> {
    prop::sample::select(&KINDS)
}

fn routes() -> impl Strategy<Value = BTreeMap<Key, u128>> {
    prop::collection::btree_map((realm_id(), kind(), policy(), pattern()), any::<u128>(), 0..60)
}

/// Some nodes for a route wanted by these shards; not all routes have any.
fn nodes_of(shards: u128) -> Vec<NodeId> {
    (0..6).filter(|bit| shards >> bit & 1 == 1).map(|bit| NodeId([9 - bit as u8; 16])).rev().collect()
}

fn source_of(routes: &BTreeMap<Key, u128>) -> Source {
    let route = |((realm, kind, policy, uri), shards): (&Key, &u128)| Route {
        realm: *realm,
        kind: *kind,
        policy: *policy,
        uri: uri.clone(),
        shards: *shards,
        nodes: nodes_of(*shards),
    };
    Source {
        version: SnapshotVersion(3),
        epoch: BootEpoch(4),
        claims_folded: vec![5, 6],
        nodes_folded: 7,
        shares: vec![],
        realms: vec![
            Realm {
                id: REALMS[1],
                name: "réalm".into(),
                strict: true,
                uri_strict: false,
                anonymous: Anonymous::Nobody,
                rules: vec![],
                histories: vec![],
            },
            Realm {
                id: REALMS[0],
                name: "realm1".into(),
                strict: false,
                uri_strict: true,
                anonymous: Anonymous::Anybody,
                rules: rules().pack(),
                histories: vec![History::of(Match::Wildcard, "a..c"), History::of(Match::Exact, "a.b")],
            },
        ],
        routes: routes.iter().map(route).collect(),
    }
}

fn all_matches<B: Deref<Target = [u8]>>(
    snapshot: &Snapshot<B>,
    realm: RealmId,
    kind: RouteKind,
    uri: &str,
) -> Vec<(Match, String, u128)> {
    let mut found = Vec::new();
    snapshot.for_each_match(realm, kind, uri, |route| {
        found.push((route.policy, route.uri.to_owned(), route.shards.0));
    });
    found
}

/// The nodes that want a route.
fn named<B: Deref<Target = [u8]>>(snapshot: &Snapshot<B>, route: RouteView<'_>) -> Vec<NodeId> {
    let nodes: Vec<_> = snapshot.nodes().collect();
    route.nodes.iter().map(|index| nodes[usize::from(index)]).collect()
}

/// Calls everything a snapshot offers.
fn use_all<B: Deref<Target = [u8]>>(snapshot: &Snapshot<B>, uris: &[String]) {
    let _ = format!("{snapshot:?} {} {:?}", snapshot.claims_folded(0), snapshot.epoch());
    let realms: Vec<_> = snapshot.realms().map(|realm| realm.id).collect();
    assert!(realms.iter().all(|&id| snapshot.realm(id).is_some()));
    for (_, _, route) in snapshot.routes() {
        assert_eq!(named(snapshot, route).is_empty(), route.nodes.is_empty());
    }
    let routes: Vec<_> = snapshot.routes().map(|(realm, kind, route)| (realm, kind, route.uri)).collect();
    let asked = routes.iter().copied();
    let others = uris.iter().flat_map(|uri| {
        REALMS.into_iter().flat_map(move |realm| KINDS.map(|kind| (realm, kind, uri.as_str())))
    });
    for (realm, kind, uri) in asked.chain(others) {
        let all = all_matches(snapshot, realm, kind, uri);
        let best = snapshot.best_match(realm, kind, uri);
        assert_eq!(best.map(|route| route.uri), all.first().map(|(_, uri, _)| uri.as_str()));
    }
}

proptest! {
    #[test]
    fn snapshots_pattern_maps_and_the_definition_agree(
        routes in routes(), uris in prop::collection::vec(uri(), 20), seed: u64,
    ) {
        let snapshot = Snapshot::check(build(&source_of(&routes), seed)).unwrap();
        prop_assert_eq!(snapshot.routes_len(), routes.len());
        for ((realm, kind, policy, pattern), shards) in &routes {
            let route = snapshot.get(*realm, *kind, *policy, pattern);
            let route = route.unwrap();
            prop_assert_eq!((route.policy, route.uri, route.shards.0), (*policy, pattern.as_str(), *shards));
            prop_assert_eq!(named(&snapshot, route), nodes_of(*shards));
        }
        for (realm, kind) in REALMS.into_iter().flat_map(|realm| KINDS.map(|kind| (realm, kind))) {
            let mut map = PatternMap::default();
            let mut entries = Vec::new();
            for ((_, _, policy, pattern), shards) in routes.iter().filter(|(key, _)| (key.0, key.1) == (realm, kind)) {
                map.insert(*policy, pattern, *shards);
                entries.push(((*policy, pattern.clone()), *shards));
            }
            for uri in &uris {
                let ours = all_matches(&snapshot, realm, kind, uri);
                let mut theirs = Vec::new();
                map.for_each_match(uri, |policy, pattern, shards| theirs.push((policy, pattern.to_owned(), *shards)));
                prop_assert_eq!(&ours, &theirs);
                let defined = oracle(entries.iter().map(|(key, shards)| (key, *shards)), uri);
                let defined = defined.into_iter().map(|(policy, pattern, shards)| (policy, pattern.to_owned(), shards));
                prop_assert_eq!(&ours, &defined.collect::<Vec<_>>());
                let exact = snapshot.exact(realm, kind, uri).map(|route| route.shards.0);
                prop_assert_eq!(exact, map.get(Match::Exact, uri).copied());
                let best = snapshot.best_match(realm, kind, uri).map(|route| route.uri);
                prop_assert_eq!(best, map.best_match(uri).map(|(_, pattern, _)| pattern));
            }
        }
    }

    #[test]
    fn equal_routes_in_any_order_give_equal_bytes(
        routes in routes(), seed: u64, by in prop::collection::vec(any::<u64>(), 60),
    ) {
        let source = source_of(&routes);
        let mut shuffled = source.clone();
        let mut order: Vec<_> = by.into_iter().zip(shuffled.routes).collect();
        order.sort();
        shuffled.routes = order.into_iter().map(|(_, route)| route).collect();
        shuffled.realms.reverse();
        prop_assert_eq!(&build(&source, seed)[..], &build(&shuffled, seed)[..]);
    }

    #[test]
    fn corrupt_snapshots_are_refused_or_safe_to_use(
        routes in routes(),
        uris in prop::collection::vec(uri(), 5),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = build(&source_of(&routes), 9);
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        if let Ok(snapshot) = Snapshot::check(bytes) {
            use_all(&snapshot, &uris);
        }
    }

    #[test]
    fn cut_snapshots_are_refused_or_safe_to_use(
        routes in routes(), uris in prop::collection::vec(uri(), 5), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = build(&source_of(&routes), 9);
        bytes.resize(cut.index(bytes.len()), 0);
        if let Ok(snapshot) = Snapshot::check(bytes) {
            use_all(&snapshot, &uris);
        }
    }
}

fn rich_source() -> Source {
    let mut routes = BTreeMap::new();
    for realm in &REALMS[..2] {
        for (policy, pattern) in [
            (Match::Exact, "a.b.c"),
            (Match::Exact, "é.b"),
            (Match::Prefix, "a"),
            (Match::Prefix, "a.b"),
            (Match::Wildcard, "a..c"),
            (Match::Wildcard, "..c"),
            (Match::Wildcard, "a.b."),
            (Match::Wildcard, ".b"),
        ] {
            let shards = 1 + pattern.len() as u128;
            routes.insert((*realm, RouteKind::Topic, policy, pattern.to_owned()), shards);
        }
    }
    source_of(&routes)
}

/// Every bit of a small snapshot, one at a time: whatever is accepted answers without a panic.
#[test]
fn no_flipped_bit_makes_a_harmful_snapshot() {
    let bytes = build(&rich_source(), 9);
    let uris: Vec<_> = ["a.b.c", "x.y.c", "a.b.x", "é.b", ""].map(str::to_owned).into();
    let mut refused = 0;
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match Snapshot::check(bytes) {
            Ok(snapshot) => use_all(&snapshot, &uris),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > bytes.len() * 4, "{refused} of {} bits were noticed", bytes.len() * 8);
}

#[test]
fn what_goes_in_comes_out() {
    let snapshot = Snapshot::check(build(&rich_source(), 1)).unwrap();
    assert_eq!((snapshot.version(), snapshot.epoch()), (SnapshotVersion(3), BootEpoch(4)));
    assert_eq!([0, 1, 2].map(|shard| snapshot.claims_folded(shard)), [5, 6, 0]);
    assert_eq!(snapshot.nodes_folded(), 7);
    let exact = snapshot.exact(REALMS[0], RouteKind::Topic, "a.b.c").unwrap();
    assert_eq!(named(&snapshot, exact), [NodeId([7; 16]), NodeId([8; 16])], "shards 6");
    let realms: Vec<_> = snapshot.realms().collect();
    assert_eq!(realms.iter().map(|realm| realm.name).collect::<Vec<_>>(), ["realm1", "réalm"]);
    assert_eq!(
        (realms[0].strict, realms[0].uri_strict, realms[0].anonymous),
        (false, true, Anonymous::Anybody)
    );
    assert_eq!(
        (realms[1].strict, realms[1].uri_strict, realms[1].anonymous),
        (true, false, Anonymous::Nobody)
    );
    assert_eq!((Rules::unpack(realms[0].rules), realms[1].rules), (Ok(rules()), &[][..]));
    assert_eq!(snapshot.realm(REALMS[1]), Some(realms[1]));
    assert_eq!(snapshot.realm(RealmId(2)), None);
    let histories = |realm| snapshot.histories(realm).collect::<Vec<_>>();
    assert_eq!(
        histories(REALMS[0]),
        [History::of(Match::Exact, "a.b"), History::of(Match::Wildcard, "a..c")]
    );
    assert_eq!((histories(REALMS[1]), histories(RealmId(2))), (vec![], vec![]));
    let found: Vec<_> = all_matches(&snapshot, REALMS[0], RouteKind::Topic, "a.b.c");
    let uris: Vec<_> = found.iter().map(|(_, uri, _)| uri.as_str()).collect();
    assert_eq!(uris, ["a.b.c", "a.b", "a", "a.b.", "a..c", "..c"]);
    assert_eq!(all_matches(&snapshot, REALMS[0], RouteKind::Procedure, "a.b.c"), []);
    assert_eq!(all_matches(&snapshot, REALMS[2], RouteKind::Topic, "a.b.c"), []);
}

#[test]
fn wide_tries_find_each_branch() {
    let seed = 9;
    let hash = crate::pattern::hash::UriHash::new(seed);
    let mut names = std::collections::HashMap::new();
    let twins = (0..1_000_000).find_map(|n| {
        let name = format!("c{n}");
        let twin = names.insert(layout::component_tag(&hash, &name), name.clone())?;
        Some([name, twin])
    });
    let twins = twins.expect("a million 32-bit tags hold equal ones");
    let pattern = |component: &str| (REALMS[0], RouteKind::Topic, Match::Wildcard, format!("{component}."));
    let devices = (0..500).map(|n| format!("device{n}"));
    let routes =
        devices.chain(twins.clone()).chain([String::new()]).map(|name| (pattern(&name), 1)).collect();
    let snapshot = Snapshot::check(build(&source_of(&routes), seed)).unwrap();
    for n in 0..1_000 {
        let found = all_matches(&snapshot, REALMS[0], RouteKind::Topic, &format!("device{n}.x"));
        assert_eq!(found.len(), if n < 500 { 2 } else { 1 });
    }
    for name in twins {
        let found = all_matches(&snapshot, REALMS[0], RouteKind::Topic, &format!("{name}.x"));
        assert_eq!(found[0].1, format!("{name}."));
    }
}

#[test]
fn an_empty_snapshot_is_one() {
    let snapshot = Snapshot::check(build(&Source::default(), 0)).unwrap();
    assert_eq!((snapshot.routes_len(), snapshot.realms().count(), snapshot.claims_folded(0)), (0, 0, 0));
    assert_eq!(snapshot.best_match(RealmId(0), RouteKind::Topic, ""), None);
}

#[test]
fn routes_at_their_bounds_are_kept() {
    let longest = "x".repeat(URI_BYTES_MAX);
    let most = ".".repeat(URI_COMPONENTS_MAX - 1);
    let too_many = ".".repeat(URI_COMPONENTS_MAX);
    let routes = [(Match::Prefix, &longest), (Match::Wildcard, &most), (Match::Wildcard, &too_many)]
        .map(|(policy, uri)| ((REALMS[0], RouteKind::Topic, policy, uri.clone()), 1));
    let snapshot = Snapshot::check(build(&source_of(&routes.into()), 0)).unwrap();
    let count = |uri: &str| all_matches(&snapshot, REALMS[0], RouteKind::Topic, uri).len();
    assert_eq!([count(&longest), count(&(longest.clone() + "x")), count(&longest[1..])], [1, 1, 0]);
    assert_eq!([count(&most), count(&too_many)], [1, 0]);
    assert!(snapshot.get(REALMS[0], RouteKind::Topic, Match::Wildcard, &too_many).is_some());
}

#[test]
fn other_layouts_and_other_bytes_are_told_apart() {
    let bytes = build(&rich_source(), 1);
    let changed = |at: usize, to: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = to;
        Snapshot::check(bytes).map(|_| ()).unwrap_err()
    };
    assert_eq!(changed(8, 77), SnapshotError::Layout { found: 77, expected: layout::LAYOUT });
    assert!(matches!(changed(0, b'X'), SnapshotError::Invalid(_)));
    assert!(matches!(changed(15, 1), SnapshotError::Invalid(_)));
    let mut shifted = AlignedVec::<16>::new();
    shifted.push(0);
    shifted.extend_from_slice(&bytes);
    assert!(matches!(Snapshot::check(&shifted[1..]), Err(SnapshotError::Invalid(_))));
    assert!(Snapshot::check(&shifted[..0]).is_err());
}

#[test]
fn lists_of_nodes_are_kept_once_and_in_order() {
    let [a, b, c] = [1, 2, 3].map(|n| NodeId([n; 16]));
    let lists = [vec![], vec![b, a], vec![c], vec![a, b, b]];
    let route = |uri, list| RouteRef {
        realm: REALMS[0],
        kind: RouteKind::Procedure,
        policy: Match::Exact,
        uri,
        shards: ShardSet(u128::MAX - 5),
        list,
    };
    let routes = vec![route("a", 3), route("b", 0), route("c", 1), route("d", 2)];
    let bytes = build_sorted(&Source::default(), routes, &lists, 1);
    let snapshot = Snapshot::check(bytes).unwrap();
    let found: Vec<_> = snapshot.routes().map(|(_, _, route)| named(&snapshot, route)).collect();
    assert_eq!(found, [vec![a, b], vec![], vec![a, b], vec![c]]);
    assert!(snapshot.routes().all(|(_, _, route)| route.shards == ShardSet(u128::MAX - 5)));
}

#[test]
fn what_nodes_say_of_shared_procedures_is_kept_with_its_route() {
    let share = |callees| Share { callees, first: 1, last: u64::MAX, ..Share::SINGLE };
    let said = |uri: &str, n: u8, callees| NodeShare {
        realm: REALMS[0],
        policy: Match::Exact,
        uri: uri.into(),
        node: NodeId([n; 16]),
        share: share(callees),
    };
    let route = |uri: &str, nodes: &[u8]| Route {
        realm: REALMS[0],
        kind: RouteKind::Procedure,
        policy: Match::Exact,
        uri: uri.into(),
        shards: 0,
        nodes: nodes.iter().map(|n| NodeId([*n; 16])).collect(),
    };
    let source = Source {
        routes: vec![route("a", &[1, 2]), route("b", &[2, 3]), route("c", &[1])],
        shares: vec![said("b", 3, 5), said("a", 1, 2), said("b", 2, 4), said("gone", 1, 9), said("a", 9, 9)],
        ..Source::default()
    };
    let bytes = build(&source, 7);
    let snapshot = Snapshot::check(&bytes[..]).expect("a built snapshot is valid");
    let shares = |uri: &str| -> Vec<(u16, u32)> {
        let shares = snapshot.shares(REALMS[0], Match::Exact, uri);
        shares.map(|(node, share)| (node, share.callees)).collect()
    };
    assert_eq!((shares("a"), shares("b")), (vec![(0, 2)], vec![(1, 4), (2, 5)]));
    assert_eq!((shares("c"), shares("gone")), (vec![], vec![]));
    assert_eq!(snapshot.shares(REALMS[0], Match::Exact, "b").next(), Some((1, share(4))));
    let mut backwards = source.clone();
    backwards.shares.reverse();
    assert_eq!(&build(&backwards, 7)[..], &bytes[..]);
    let refused = |change: &dyn Fn(&mut layout::ShareRow)| {
        let mut tables = super::build::tables(&source, 7);
        change(&mut tables.shares[1]);
        let bytes = super::build::bytes(&tables);
        Snapshot::check(&bytes[..]).is_err()
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|row| row.route = 3) && refused(&|row| row.node = 3) && refused(&|row| row.invoke = 8));
    assert!(refused(&|row| row.forced = 2) && refused(&|row| (row.route, row.node) = (0, 0)));
}

#[test]
#[should_panic(expected = "each route has its own key")]
fn two_routes_of_one_key_are_the_callers_error() {
    let mut source = rich_source();
    source.routes.push(source.routes[0].clone());
    build(&source, 1);
}

/// Tables that build never makes; each is refused for its own reason.
mod crafted {
    use super::*;
    use crate::snapshot::layout::*;

    fn refusal(change: impl FnOnce(&mut Tables)) -> String {
        let mut tables = build::tables(&rich_source(), 9);
        change(&mut tables);
        match Snapshot::check(build::bytes(&tables)).map(|_| ()) {
            Err(SnapshotError::Invalid(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_broken_table_is_refused() {
        let reasons = [
            refusal(|tables| tables.realms.swap(0, 1)),
            refusal(|tables| tables.realms[0].flags = 4),
            refusal(|tables| tables.realms[1].name_at += 2),
            refusal(|tables| tables.realms[1].rules_at += 1_000),
            refusal(|tables| tables.realms[0].rules_bytes -= 1),
            refusal(|tables| tables.rules[RULES_BYTES] = 2),
            refusal(|tables| tables.histories.swap(0, 1)),
            refusal(|tables| tables.histories[0].realm = 2),
            refusal(|tables| tables.histories[0].uri_at = u32::MAX),
            refusal(|tables| tables.routes.swap(0, 1)),
            refusal(|tables| tables.routes[0].uri_bytes = u16::MAX),
            refusal(|tables| tables.routes[0].uri_at = u32::MAX),
            refusal(|tables| tables.routes[0].list = u32::MAX),
            refusal(|tables| tables.members.swap(0, 1)),
            refusal(|tables| tables.members.resize(NODES_MAX + 1, NodeId([255; 16]))),
            refusal(|tables| tables.members.truncate(1)),
            refusal(|tables| tables.interested.reverse()),
            refusal(|tables| tables.interested.push(0)),
            refusal(|tables| tables.list_ends[0] = 0),
            refusal(|tables| tables.list_ends[1] = tables.list_ends[0]),
            refusal(|tables| *tables.list_ends.last_mut().unwrap() += 1),
            refusal(|tables| tables.slots.truncate(16)),
            refusal(|tables| tables.slots.iter_mut().for_each(|slot| slot.route = 0)),
            refusal(|tables| tables.slots.iter_mut().for_each(|slot| slot.route = EMPTY)),
            refusal(|tables| tables.slots.reverse()),
            refusal(|tables| tables.seed += 1),
            refusal(|tables| tables.groups.truncate(1)),
            refusal(|tables| tables.groups.clear()),
            refusal(|tables| tables.groups[0].kind = RouteKind::Procedure),
            refusal(|tables| tables.groups[1].lengths_first = 0),
            refusal(|tables| tables.groups[1].tries_len += 1),
            refusal(|tables| tables.lengths[0] += 1),
            refusal(|tables| tables.lengths.push(9)),
            refusal(|tables| tables.tries.swap(0, 1)),
            refusal(|tables| tables.tries[0] += 10),
            refusal(|tables| tables.nodes.truncate(2)),
            refusal(|tables| tables.nodes[0].first = 0),
            refusal(|tables| tables.nodes[0].children_len += 1),
            refusal(|tables| tables.nodes[0].children_len = 0),
            refusal(|tables| tables.nodes[0].any = 0),
            refusal(|tables| tables.nodes[0].any = 2),
            refusal(|tables| tables.nodes.last_mut().unwrap().first = u32::MAX),
            refusal(|tables| tables.nodes.last_mut().unwrap().first -= 1),
            refusal(|tables| tables.nodes.last_mut().unwrap().component_bytes = 1),
        ];
        let distinct: BTreeSet<_> = reasons.iter().collect();
        assert!(distinct.len() >= 17, "{reasons:#?}");
    }

    #[test]
    fn a_route_missing_from_an_index_is_noticed() {
        let missing = |policy| {
            refusal(move |tables| {
                let route = tables.routes.iter().position(|route| route.policy == policy).unwrap();
                tables.routes.remove(route);
            })
        };
        missing(Match::Exact);
        missing(Match::Prefix);
        missing(Match::Wildcard);
    }
}
