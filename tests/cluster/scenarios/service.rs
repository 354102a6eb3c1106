//! What a cluster without faults does, and how nodes come and go on purpose.

use super::{EQUAL_MAX, FLOW, HEAL_MAX, check_whole};
use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::load::{Load, await_service};
use crate::record::{self, Writes};
use crate::support::eventually_within;
use std::process::Command;
use std::time::Instant;

pub fn steady(lab: &Lab) {
    let cluster = lab.cluster(3);
    await_service(&cluster, &[0, 1, 2], "realm1", HEAL_MAX);
    let load = Load::start(&cluster);
    load.await_results(10 * FLOW, HEAL_MAX);
    let report = load.finish();
    check_whole(lab, &cluster, &report);
    report.check_no_event_lost();
    // Callees of the load may not be known everywhere when its first calls come; after that nothing fails.
    let other: Vec<_> = report.errors.keys().filter(|uri| *uri != "wamp.error.no_such_procedure").collect();
    assert!(other.is_empty(), "calls failed with {other:?}");
    assert_eq!(report.cut_off, 0, "sessions ended");
}

pub fn autobahn(lab: &Lab) {
    let cluster = lab.cluster(3);
    await_service(&cluster, &[0, 1, 2], "realm1", HEAL_MAX);
    let python = lab.python.as_ref().expect("checked before");
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/python/cluster.py");
    let output = Command::new(python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(program)
        .args(cluster.nodes.iter().map(crate::node::Node::url))
        .output()
        .expect("python runs");
    let text = String::from_utf8_lossy(&output.stdout);
    lab.say(format_args!("{} cases", text.lines().filter(|line| line.starts_with("passed")).count()));
    let failed: Vec<_> = text.lines().filter(|line| !line.starts_with("passed")).collect();
    assert!(output.status.success(), "{failed:#?}\n{}", String::from_utf8_lossy(&output.stderr));
}

pub fn join(lab: &Lab) {
    let mut cluster = lab.cluster(2);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    let mut before = Writes::default();
    for number in 0..REALMS_BEFORE {
        let node = number % 2;
        assert!(before.add(&cluster.net.namespace(node), &format!("{}.before{number}", record::PREFIX)));
    }
    let joining = cluster.add();
    let took = cluster.launch_ready(joining);
    lab.say(format_args!("ready {:.1} s after its start", took.as_secs_f64()));
    // At once, not in the end.
    before.check_added(&cluster, &[joining]);
    load.await_results(FLOW, HEAL_MAX);
    let mut report = load.finish();
    report.writes.merge(before);
    check_whole(lab, &cluster, &report);
}

/// The commands, as an operator would use them.
pub fn operate(lab: &Lab) {
    let mut cluster = lab.cluster_without_seeds(2);
    assert_eq!(cluster.alive(0).as_deref(), Some(&[0][..]), "nodes without seeds found each other");
    let target = format!("{}:{}", cluster.nodes[1].ip, crate::node::CLUSTER_PORT);
    let joined = cluster.must(0, &["cluster", "join", &target]);
    assert!(joined.contains(&target), "{joined}");
    let took = cluster.await_whole(HEAL_MAX);
    lab.say(format_args!("joined after {:.1} s", took.as_secs_f64()));
    let added = cluster.must(0, &["realm", "add", "com.lab.realm.operated", "--anonymous", "anybody"]);
    assert!(added.contains("added"), "{added}");
    cluster.await_equal(&[0, 1], EQUAL_MAX);
    await_service(&cluster, &[0, 1], "com.lab.realm.operated", HEAL_MAX);

    let members = cluster.must(0, &["cluster", "members"]);
    let status = cluster.must(1, &["cluster", "status"]);
    let (page, local) = cluster.page_and_local(1);
    assert!(members.contains(&local) && members.contains("(this)"), "{members}");
    assert!(status.contains("joined         yes") && status.contains("2 alive"), "{status}");
    for key in
        ["id", "address", "relay", "pid", "state", "version", "boot_epoch", "store_epoch", "data_epoch"]
    {
        let missing = page["nodes"].as_array().expect("nodes").iter().any(|node| node[key].is_null());
        assert!(!missing, "{key} is missing: {page}");
    }
    assert!(cluster.must(0, &["cluster", "conflicts"]).contains("no object was written"));

    cluster.must(1, &["cluster", "leave"]);
    eventually_within(HEAL_MAX, "node 0 sees that node 1 has left", || {
        (cluster.states(0)?.get(&1)? == "left").then_some(())
    });
    let started = Instant::now();
    await_service(&cluster, &[0], "realm1", HEAL_MAX);
    await_service(&cluster, &[1], "realm1", HEAL_MAX);
    lab.say(format_args!("each served alone after {:.1} s", started.elapsed().as_secs_f64()));
    cluster.must(0, &["cluster", "forget", &local]);
    assert_eq!(cluster.states(0).expect("/cluster").len(), 1);
    // Started again it is a member again.
    assert!(cluster.nodes[1].drain().success());
    cluster.launch_ready(1);
    cluster.must(1, &["cluster", "join", &format!("{}:{}", cluster.nodes[0].ip, crate::node::CLUSTER_PORT)]);
    cluster.await_whole(HEAL_MAX);
    check_metrics(&cluster);
}

/// Every metric the operators' page promises is there, with labels that do not grow with load.
fn check_metrics(cluster: &Cluster) {
    let text = cluster.nodes[0].get("/metrics").expect("/metrics").body;
    for name in METRICS {
        let is_there =
            text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        assert!(is_there, "/metrics has no {name}");
    }
}

const REALMS_BEFORE: usize = 20;
const METRICS: &[&str] = &[
    "signalbox_cluster_members",
    "signalbox_cluster_health_score",
    "signalbox_cluster_link_rtt_seconds",
    "signalbox_exchange_queue",
    "signalbox_exchange_repairs_total",
    "signalbox_exchanges_divergent_total",
    "signalbox_store_conflicts_total",
    "signalbox_cluster_joined",
    "signalbox_relay_hops_total",
    "signalbox_relay_bytes_total",
    "signalbox_events_dropped_total",
    "signalbox_snapshot_published_version",
    "signalbox_snapshot_build_seconds",
];
