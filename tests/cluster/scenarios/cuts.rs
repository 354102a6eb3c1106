//! Packets do not arrive.

use super::{DETECTION_MAX, EQUAL_MAX, FLOW, HEAL_MAX, check_slowest, check_whole};
use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::load::{Load, ask, await_service, join};
use crate::support::{Client, eventually_within};
use serde_json::json;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Both sides serve and write; afterwards they agree.
pub fn clean(lab: &Lab) {
    let cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    cut_off(&cluster, 2);
    let took = cluster.await_alive(&[0, 1], &[0, 1], DETECTION_MAX);
    lab.say(format_args!("the cut was seen after {:.1} s", took.as_secs_f64()));
    cluster.await_alive(&[2], &[2], DETECTION_MAX);
    await_service(&cluster, &[0, 1], "realm1", HEAL_MAX);
    await_service(&cluster, &[2], "realm1", HEAL_MAX);
    load.await_results(FLOW, HEAL_MAX);
    cluster.net.heal();
    let healed = Instant::now();
    cluster.await_whole(HEAL_MAX);
    let report = load.finish();
    check_whole(lab, &cluster, &report);
    check_slowest(&report, &[0, 1, 2]);
    lab.say(format_args!("all of it {:.1} s after the healing", healed.elapsed().as_secs_f64()));
}

pub fn cable(lab: &Lab) {
    let cluster = lab.cluster(3);
    cluster.net.set_link(2, false);
    let took = cluster.await_alive(&[0, 1], &[0, 1], DETECTION_MAX);
    lab.say(format_args!("the pulled cable was seen after {:.1} s", took.as_secs_f64()));
    cluster.net.set_link(2, true);
    let took = cluster.await_whole(HEAL_MAX);
    cluster.await_equal(&[0, 1, 2], EQUAL_MAX);
    await_service(&cluster, &[0, 1, 2], "realm1", HEAL_MAX);
    lab.say(format_args!("whole again {:.1} s after it was plugged in", took.as_secs_f64()));
}

pub fn one_way(lab: &Lab) {
    cut_for_a_while(lab, |cluster| cluster.net.cut_one_way(0, 1));
}

/// The third sees both, so both stay members.
pub fn partial(lab: &Lab) {
    cut_for_a_while(lab, |cluster| cluster.net.cut(0, 1));
}

fn cut_for_a_while(lab: &Lab, cut: impl FnOnce(&Cluster)) {
    let cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    cut(&cluster);
    // Long enough for suspicion, and for calls over the cut to come to their end.
    sleep(CUT);
    // The third reaches both and is reached.
    await_service(&cluster, &[0, 2], "realm1", HEAL_MAX);
    await_service(&cluster, &[1, 2], "realm1", HEAL_MAX);
    cluster.net.heal();
    let healed = Instant::now();
    cluster.await_whole(HEAL_MAX);
    load.await_results(FLOW, HEAL_MAX);
    let report = load.finish();
    check_whole(lab, &cluster, &report);
    check_slowest(&report, &[0, 1, 2]);
    lab.say(format_args!("all of it {:.1} s after the healing", healed.elapsed().as_secs_f64()));
}

pub fn loss(lab: &Lab) {
    let cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    cluster.net.lose(10);
    let mut looks = 0;
    let until = Instant::now() + LOSSY;
    while Instant::now() < until {
        for alive in (0..3).filter_map(|node| cluster.alive(node)) {
            looks += 1;
            assert_eq!(alive, [0, 1, 2], "somebody was taken for dead");
        }
        sleep(Duration::from_millis(200));
    }
    assert!(looks > 0, "every look met a suspicion");
    cluster.net.heal();
    load.await_results(FLOW, HEAL_MAX);
    let report = load.finish();
    check_whole(lab, &cluster, &report);
}

/// One of two callees loses the registration, and is told; calls from everywhere reach the other.
pub fn same_procedure(lab: &Lab) {
    let cluster = lab.cluster(3);
    cut_off(&cluster, 2);
    cluster.await_alive(&[0, 1], &[0, 1], DETECTION_MAX);
    cluster.await_alive(&[2], &[2], DETECTION_MAX);
    let mut callees: Vec<Client> = [0, 2]
        .map(|node| {
            let address = cluster.nodes[node].rawsocket();
            let mut callee = eventually_within(HEAL_MAX, "a session", || join(address, "realm1"));
            let answer = ask(&mut callee, json!([64, 0, {}, PROCEDURE]), HEAL_MAX).expect("an answer");
            assert_eq!(answer[0], 65, "{answer}");
            callee
        })
        .into();
    cluster.net.heal();
    cluster.await_whole(HEAL_MAX);
    let told =
        |callee: &mut Client| callee.wait_for(Instant::now() + Duration::from_millis(20), |m| m[0] == 67);
    let loser = eventually_within(EQUAL_MAX, "one of the callees is told", || {
        callees.iter_mut().position(|callee| told(callee).is_some())
    });
    lab.say(format_args!("the callee on node {} lost", [0, 2][loser]));
    cluster.await_equal(&[0, 1, 2], EQUAL_MAX);
    let winner = &mut callees[1 - loser];
    for node in 0..3 {
        let mut caller = join(cluster.nodes[node].rawsocket(), "realm1").expect("a session");
        let request = caller.request(json!([48, 0, {}, PROCEDURE, [node]]));
        let called = winner.wait_for(Instant::now() + HEAL_MAX, |message| message[0] == 68);
        let called = called
            .unwrap_or_else(|| panic!("the call from node {node} did not reach the callee that is left"));
        winner.send(&json!([70, called[1], {}, [node]]));
        let answer =
            caller.wait_for(Instant::now() + HEAL_MAX, |message| message[0] == 50 && message[1] == request);
        assert!(answer.is_some(), "node {node} got no result");
    }
    assert!(told(&mut callees[1 - loser]).is_none(), "both callees lost");
    let other: Vec<_> = callees[loser].arrived().into_iter().filter(|message| message[0] == 68).collect();
    assert!(other.is_empty(), "the loser was called: {other:?}");
}

/// Repairs end once nodes agree.
pub fn quiet_afterwards(lab: &Lab) {
    let cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    cut_off(&cluster, 2);
    cluster.await_alive(&[0, 1], &[0, 1], DETECTION_MAX);
    load.await_results(FLOW, HEAL_MAX);
    let report = load.finish();
    cluster.net.heal();
    check_whole(lab, &cluster, &report);
    let repaired = || -> Vec<f64> {
        (0..3).map(|node| cluster.nodes[node].metric("signalbox_exchange_repairs_total", "")).collect()
    };
    let before = repaired();
    sleep(Duration::from_secs(60));
    assert_eq!(repaired(), before, "records repaired on each node");
}

/// Nothing passes between a node and the others.
fn cut_off(cluster: &Cluster, node: usize) {
    (0..cluster.nodes.len()).filter(|other| *other != node).for_each(|other| cluster.net.cut(node, other));
}

const PROCEDURE: &str = "com.lab.same";
const CUT: Duration = Duration::from_secs(10);
const LOSSY: Duration = Duration::from_secs(15);
