//! Disks are emptied, put back and filled.

use super::{EQUAL_MAX, FLOW, HEAL_MAX, check_whole};
use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::load::{Load, ask, await_service, join};
use crate::record::{self, Writes};
use serde_json::json;
use std::time::Instant;

pub fn wiped(lab: &Lab) {
    let mut cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    cluster.nodes[1].kill();
    cluster.nodes[1].wipe();
    let took = cluster.launch_ready(1);
    lab.say(format_args!("ready {:.1} s after its start with an empty disk", took.as_secs_f64()));
    load.await_results(FLOW, HEAL_MAX);
    let mut report = load.finish();
    // What it writes now is new to the others.
    for number in 0..REALMS {
        let name = format!("{}.wiped{number}", record::PREFIX);
        assert!(report.writes.add(&cluster.net.namespace(1), &name), "{name} was refused");
    }
    check_whole(lab, &cluster, &report);
}

pub fn old_backup(lab: &Lab) {
    let mut cluster = lab.cluster(3);
    let mut writes = Writes::default();
    let name = |part: &str, number: usize| format!("{}.{part}{number}", record::PREFIX);
    add(&mut writes, &cluster, 1, |number| name("kept", number));
    add(&mut writes, &cluster, 1, |number| name("gone", number));
    cluster.await_equal(&[0, 1, 2], EQUAL_MAX);
    assert!(cluster.nodes[1].drain().success());
    cluster.nodes[1].back_up();
    cluster.launch_ready(1);
    cluster.await_whole(HEAL_MAX);
    // All this the backup does not know, and half of it was its own writing.
    for number in 0..REALMS {
        let node = number % 2;
        assert!(writes.remove(&cluster.net.namespace(node), &name("gone", number)), "not removed");
    }
    add(&mut writes, &cluster, 1, |number| name("later", number));
    cluster.await_equal(&[0, 1, 2], EQUAL_MAX);
    cluster.nodes[1].kill();
    cluster.nodes[1].restore();
    let took = cluster.launch_ready(1);
    lab.say(format_args!("ready {:.1} s after its start with an old disk", took.as_secs_f64()));
    // Names that it gives out again must not be taken for the old ones.
    add(&mut writes, &cluster, 1, |number| name("newer", number));
    cluster.await_whole(HEAL_MAX);
    let took = cluster.await_equal(&[0, 1, 2], EQUAL_MAX);
    lab.say(format_args!("equal after another {:.1} s", took.as_secs_f64()));
    writes.check(&cluster, &[0, 1, 2]);
    await_service(&cluster, &[0, 1, 2], "realm1", HEAL_MAX);
}

pub fn full(lab: &Lab) {
    let mut cluster = lab.cluster_prepared(3);
    cluster.nodes[1].mount_small_disk("16m");
    (0..3).for_each(|node| cluster.launch(node));
    cluster.await_whole(HEAL_MAX);
    let mut writes = Writes::default();
    add(&mut writes, &cluster, 1, |number| format!("{}.before{number}", record::PREFIX));
    let ballast = cluster.nodes[1].fill_disk();
    // A commit may find room in pages that are free already, so it takes some.
    let namespace = cluster.net.namespace(1);
    let started = Instant::now();
    let mut number = 0;
    while writes.refused.is_empty() && !writes.has_unknown() {
        number += 1;
        writes.add(&namespace, &format!("{}.full{number}", record::PREFIX));
        assert!(started.elapsed() < HEAL_MAX, "{number} writes on a full disk were acknowledged");
    }
    lab.say(format_args!("write {number} on the full disk was refused"));
    // Nothing else suffers.
    await_service(&cluster, &[0, 1, 2], "realm1", HEAL_MAX);
    assert!(cluster.nodes[1].page("/realms").is_some());
    add(&mut writes, &cluster, 0, |number| format!("{}.elsewhere{number}", record::PREFIX));
    let refused = cluster.nodes[1].metric("signalbox_store_poisoned", "");
    assert_eq!(refused, 1.0, "the store does not say that it takes no writes");
    // With room again the control plane is started again; clients do not notice.
    std::fs::remove_file(ballast).expect("the ballast is removed");
    let mut client = join(cluster.nodes[1].rawsocket(), "realm1").expect("a session");
    cluster.nodes[1].kill_control();
    let took = cluster.launch_ready(1);
    lab.say(format_args!("ready {:.1} s after a restart with room", took.as_secs_f64()));
    add(&mut writes, &cluster, 1, |number| format!("{}.after{number}", record::PREFIX));
    assert!(ask(&mut client, json!([32, 0, {}, "com.lab.stayed"]), HEAL_MAX).is_some(), "the session ended");
    let took = cluster.await_equal(&[0, 1, 2], EQUAL_MAX);
    lab.say(format_args!("equal after another {:.1} s", took.as_secs_f64()));
    writes.check(&cluster, &[0, 1, 2]);
}

/// Adds realms on a node; all are acknowledged.
fn add(writes: &mut Writes, cluster: &Cluster, node: usize, name: impl Fn(usize) -> String) {
    let namespace = cluster.net.namespace(node);
    for number in 0..REALMS {
        assert!(writes.add(&namespace, &name(number)), "{} was refused", name(number));
    }
}

const REALMS: usize = 20;
