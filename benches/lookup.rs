//! What it costs to find the routes of a URI, in a `PatternMap` and in a `Snapshot`, and to build and check a snapshot.
//!
//! `cargo bench --bench lookup` measures 1 k, 100 k and 1 M routes; `cargo bench --bench lookup -- --test`, like
//! `cargo test`, runs each case once on 1 k routes. Each case checks what it finds, and prints a checksum of it.

mod support;

use common::ids::{Match, RealmId, RouteKind};
use common::pattern::PatternMap;
use common::snapshot::{Route, Snapshot, Source, build};
use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::time::Duration;
use support::cpu_time::CpuTime;
use support::is_measured;

const REALM: RealmId = RealmId(42);
const KIND: RouteKind = RouteKind::Topic;
const SEED: u64 = 0x5eed;

/// URIs looked up in turn, spread over all routes, so that large tables miss the caches as they would in use.
const LOOKUPS: usize = 4_096;

const FULL: [usize; 3] = [1_000, 100_000, 1_000_000];
const SMOKE: [usize; 1] = [1_000];

fn main() {
    let sizes: &[usize] = if is_measured() { &FULL } else { &SMOKE };
    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for &routes in sizes {
        for policy in [Match::Exact, Match::Prefix, Match::Wildcard] {
            lookups(&mut criterion, policy, routes);
        }
        mixed(&mut criterion, routes);
        snapshots(&mut criterion, routes);
    }
    crafted(&mut criterion);
    criterion.final_summary();
}

/// The URI a device publishes to; device `n` stands at site `n / 100`.
fn uri(n: usize) -> String {
    format!("com.example.site{}.device{n}.temperature", n / 100)
}

/// A pattern that matches `uri(n)` and no other one.
fn pattern(policy: Match, n: usize) -> String {
    match policy {
        Match::Exact => uri(n),
        Match::Prefix => format!("com.example.site{}.device{n}.", n / 100),
        Match::Wildcard => format!("com.example..device{n}."),
    }
}

/// `LOOKUPS` of the numbers below `routes`, in no order.
fn spread(routes: usize) -> impl Iterator<Item = usize> {
    (0..LOOKUPS as u64).map(move |n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize % routes)
}

fn source(patterns: impl Iterator<Item = (Match, String)>) -> Source {
    let route = |(policy, uri)| Route { realm: REALM, kind: KIND, policy, uri, shards: 1, nodes: vec![] };
    Source { routes: patterns.map(route).collect(), ..Source::default() }
}

fn map_of(source: &Source) -> PatternMap<u128> {
    let mut map = PatternMap::default();
    for route in &source.routes {
        map.insert(route.policy, &route.uri, route.shards);
    }
    map
}

fn in_map(map: &PatternMap<u128>, uri: &str) -> u64 {
    let mut found = 0;
    map.for_each_match(uri, |_, _, shards| found += *shards as u64);
    found
}

fn in_snapshot<B: std::ops::Deref<Target = [u8]>>(snapshot: &Snapshot<B>, uri: &str) -> u64 {
    let mut found = 0;
    snapshot.for_each_match(REALM, KIND, uri, |route| found += route.shards.0 as u64);
    found
}

/// Measures one look-up of one of `uris`, each of which `find` must find `expected` times.
fn measure(
    criterion: &mut Criterion<CpuTime>,
    name: &str,
    case: impl ToString,
    uris: &[String],
    expected: u64,
    find: impl Fn(&str) -> u64,
) {
    let case = case.to_string();
    let checksum: u64 = uris.iter().map(|uri| find(uri)).sum();
    assert_eq!(checksum, expected * uris.len() as u64, "{name}/{case}");
    println!("{name}/{case}: checksum {checksum}");
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1));
    let mut next = 0;
    group.bench_function(BenchmarkId::from_parameter(case), |bencher| {
        bencher.iter(|| {
            next = (next + 1) % uris.len();
            black_box(find(black_box(&uris[next])))
        });
    });
    group.finish();
}

/// Routes of one policy; each look-up finds one of them, or, just beside, none.
fn lookups(criterion: &mut Criterion<CpuTime>, policy: Match, routes: usize) {
    let source = source((0..routes).map(|n| (policy, pattern(policy, n))));
    let map = map_of(&source);
    let snapshot = Snapshot::check(build(&source, SEED)).expect("build makes snapshots");
    let hits: Vec<_> = spread(routes).map(uri).collect();
    let misses: Vec<_> = spread(routes).map(|n| uri(n + routes)).collect();
    let name = policy.name();
    measure(criterion, &format!("map/{name}"), routes, &hits, 1, |uri| in_map(&map, uri));
    measure(criterion, &format!("map/{name}/miss"), routes, &misses, 0, |uri| in_map(&map, uri));
    measure(criterion, &format!("snapshot/{name}"), routes, &hits, 1, |uri| in_snapshot(&snapshot, uri));
    measure(criterion, &format!("snapshot/{name}/miss"), routes, &misses, 0, |uri| {
        in_snapshot(&snapshot, uri)
    });
}

/// Mostly exact routes, with a few patterns of either policy that match everything or a part.
fn mixed(criterion: &mut Criterion<CpuTime>, routes: usize) {
    let patterns =
        [(Match::Prefix, "com."), (Match::Prefix, "org."), (Match::Wildcard, "com.example...temperature")];
    let patterns = patterns.map(|(policy, pattern)| (policy, pattern.to_owned()));
    let source = source((0..routes).map(|n| (Match::Exact, uri(n))).chain(patterns));
    let map = map_of(&source);
    let snapshot = Snapshot::check(build(&source, SEED)).expect("build makes snapshots");
    let uris: Vec<_> = spread(routes).map(uri).collect();
    measure(criterion, "map/mixed", routes, &uris, 3, |uri| in_map(&map, uri));
    measure(criterion, "snapshot/mixed", routes, &uris, 3, |uri| in_snapshot(&snapshot, uri));
}

/// Building and checking a snapshot of 98 % exact routes, 1 % prefixes and 1 % wildcards.
fn snapshots(criterion: &mut Criterion<CpuTime>, routes: usize) {
    let policy = |n| match n % 100 {
        0 => Match::Prefix,
        1 => Match::Wildcard,
        _ => Match::Exact,
    };
    let mut source = source((0..routes).map(|n| (policy(n), pattern(policy(n), n))));
    let bytes = build(&source, SEED);
    println!("snapshot/{routes}: {} bytes, {} a route", bytes.len(), bytes.len() / routes);
    let mut group = criterion.benchmark_group("snapshot");
    group.sample_size(10).throughput(Throughput::Elements(routes as u64));
    group.bench_function(BenchmarkId::new("build/unsorted", routes), |bencher| {
        bencher.iter(|| build(black_box(&source), SEED).len());
    });
    source.routes.sort();
    group.bench_function(BenchmarkId::new("build/sorted", routes), |bencher| {
        bencher.iter(|| build(black_box(&source), SEED).len());
    });
    group.bench_function(BenchmarkId::new("check", routes), |bencher| {
        bencher.iter(|| Snapshot::check(black_box(&bytes[..])).is_ok());
    });
    group.finish();
}

/// What a hostile client can make of prefixes and wildcards that never match.
fn crafted(criterion: &mut Criterion<CpuTime>) {
    let long = "x".repeat(1_024);
    let prefixes = source((0..1_024).map(|len| (Match::Prefix, format!("{}y", &long[..len]))));
    let wildcards = source((0..1u32 << 12).map(|set| {
        let literal = |bit: u32| if set >> bit & 1 == 1 { "x." } else { "." };
        (Match::Wildcard, (0..12u32).map(literal).chain(["y"]).collect())
    }));
    for (case, source, uri) in
        [("1024 prefixes", prefixes, long), ("4096 wildcards", wildcards, "x.".repeat(12) + "z")]
    {
        let map = map_of(&source);
        let snapshot = Snapshot::check(build(&source, SEED)).expect("build makes snapshots");
        measure(criterion, "map/crafted", case, std::slice::from_ref(&uri), 0, |uri| in_map(&map, uri));
        measure(criterion, "snapshot/crafted", case, std::slice::from_ref(&uri), 0, |uri| {
            in_snapshot(&snapshot, uri)
        });
    }
}
