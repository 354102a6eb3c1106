//! How soon one node's news is of use on the others: real nodes on loopback, at the settings of a fresh install.
//!
//! `cargo bench --bench propagation` starts three nodes and prints, of many tries, the median, the 99th percentile and the
//! longest time
//! - from SUBSCRIBED on one node to the first publication on another that is routed there,
//! - from the answer that a realm is in force on one node to WELCOME to it on the others,
//!
//! and then how long a node takes to be ready that joins one with 100,000 objects. `-- --tries N`, `-- --objects N`;
//! without `--bench` it does each a few times and prints nothing that counts. The machine should be idle: the nodes share
//! it with this program.

#[path = "../../tests/support/mod.rs"]
mod support;

use serde_json::json;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::cluster::{Cluster, get};
use support::{Client, Node, Wire, http};

/// Between two publications, and between two tries to join.
const STEP: Duration = Duration::from_micros(250);
/// A try that takes longer has failed.
const BOUND: Duration = Duration::from_secs(10);
/// Requests to the admin endpoint under way at once while objects are made.
const MAKERS: usize = 32;

const ROUTE_WANTED: Duration = Duration::from_millis(20);
const REALM_WANTED: Duration = Duration::from_millis(50);
const READY_WANTED: Duration = Duration::from_secs(15);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let measure = args.iter().any(|arg| arg == "--bench");
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1)?.parse::<usize>().ok()
    };
    let tries = value("--tries").unwrap_or(if measure { 1_000 } else { 3 });
    let objects = value("--objects").unwrap_or(if measure { 100_000 } else { 50 });

    println!("{:<58} {:>6} {:>9} {:>9} {:>9}  wanted", "milliseconds", "tries", "p50", "p99", "longest");
    let cluster = Cluster::start(3, "");
    let times = (0..tries).map(|n| route(&cluster.nodes, n)).collect();
    print("SUBSCRIBED on one node to routed from another", times, ROUTE_WANTED);
    let times = (0..tries).flat_map(|n| realm(&cluster.nodes, n)).collect();
    print("realm in force on one node to joined on another", times, REALM_WANTED);
    drop(cluster);
    joining(objects);
}

fn print(name: &str, mut times: Vec<Duration>, wanted: Duration) {
    times.sort();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times[index.min(times.len() - 1)].as_secs_f64() * 1e3
    };
    let (p50, p99, longest) = (at(0.5), at(0.99), at(1.0));
    println!("{name:<58} {:>6} {p50:>9.2} {p99:>9.2} {longest:>9.2}  ≤ {wanted:?}", times.len());
}

fn soon() -> Instant {
    Instant::now() + STEP
}

/// The publications carry when they were made; the first that arrives is the first that was routed.
fn route(nodes: &[Node], n: usize) -> Duration {
    let topic = format!("com.example.topic{n}");
    let mut subscriber = Client::join(&nodes[n % nodes.len()], Wire::PLAIN);
    let mut publisher = Client::join(&nodes[(n + 1) % nodes.len()], Wire::PLAIN);
    subscriber.subscribe(&topic);
    let began = Instant::now();
    while began.elapsed() < BOUND {
        publisher.publish(&topic, &json!([began.elapsed().as_nanos() as u64]));
        if let Some(event) = subscriber.wait_for(soon(), |message| message[0] == 36) {
            return Duration::from_nanos(event[4][0].as_u64().expect("when it was published"));
        }
    }
    panic!("{topic} is not routed within {BOUND:?}");
}

/// The time to each of the other nodes.
fn realm(nodes: &[Node], n: usize) -> Vec<Duration> {
    let (made, name) = (n % nodes.len(), format!("com.example.realm{n}"));
    put_realm(nodes[made].admin().expect("the admin address"), &name);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let others = nodes.iter().enumerate().filter(|(at, _)| *at != made);
        let joins: Vec<_> = others
            .map(|(_, node)| {
                let (address, name) = (node.address(Wire::PLAIN), &name);
                scope.spawn(move || join(address, name, began))
            })
            .collect();
        joins.into_iter().map(|join| join.join().expect("joined")).collect()
    })
}

fn join(address: SocketAddr, realm: &str, began: Instant) -> Duration {
    while began.elapsed() < BOUND {
        let mut client = Client::connect_to(address, Wire::PLAIN).expect("a connection");
        client.send(&json!([1, realm, {"roles": {"subscriber": {}}}]));
        if client.recv()[0] == 2 {
            return began.elapsed();
        }
        std::thread::sleep(STEP);
    }
    panic!("{realm} cannot be joined within {BOUND:?}");
}

fn put_realm(admin: SocketAddr, name: &str) {
    let answer = http::request(admin, "PUT", &format!("/realms/{name}"), "").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// A node with many objects is joined by one with none.
fn joining(objects: usize) {
    let mut cluster = Cluster::with_room(2, 1, "[limits]\nrealms_max = 100000\n");
    cluster.add();
    let admin = cluster.nodes[0].admin().expect("the admin address");
    let next = AtomicUsize::new(1);
    std::thread::scope(|scope| {
        for _ in 0..MAKERS {
            scope.spawn(|| {
                while let n = next.fetch_add(1, Ordering::Relaxed)
                    && n < objects
                {
                    put_realm(admin, &format!("com.example.realm{n}"));
                }
            });
        }
    });
    let began = Instant::now();
    cluster.add();
    let ready = began.elapsed();
    let count = |node: &Node| get(node, "/status")["realms_total"].clone();
    assert_eq!(count(&cluster.nodes[1]), count(&cluster.nodes[0]), "ready means that it has all");
    println!(
        "process started to ready, joining a node with {objects} objects: {ready:.2?}  ≤ {READY_WANTED:?}"
    );
}
