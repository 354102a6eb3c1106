//! Processes end, asked or not.

use super::{DETECTION_MAX, FLOW, HEAL_MAX, check_slowest, check_whole};
use crate::lab::Lab;
use crate::load::Load;

pub fn one(lab: &Lab) {
    let mut cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    cluster.nodes[2].kill();
    let took = cluster.await_alive(&[0, 1], &[0, 1], DETECTION_MAX);
    lab.say(format_args!("the crash was seen after {:.1} s", took.as_secs_f64()));
    load.await_results(FLOW, HEAL_MAX);
    let took = cluster.launch_ready(2);
    lab.say(format_args!("ready again after {:.1} s", took.as_secs_f64()));
    load.await_results(FLOW, HEAL_MAX);
    let report = load.finish();
    check_whole(lab, &cluster, &report);
    check_slowest(&report, &[0, 1]);
}

pub fn all(lab: &Lab) {
    let mut cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    cluster.nodes.iter_mut().for_each(crate::node::Node::kill);
    (0..3).for_each(|node| cluster.launch(node));
    let took = cluster.await_whole(HEAL_MAX);
    lab.say(format_args!("whole again after {:.1} s", took.as_secs_f64()));
    load.await_results(FLOW, HEAL_MAX);
    let report = load.finish();
    check_whole(lab, &cluster, &report);
}

pub fn rolling(lab: &Lab) {
    let mut cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    for node in 0..3 {
        load.await_results(FLOW, HEAL_MAX);
        let status = cluster.nodes[node].drain();
        assert!(status.success(), "node {node} drained with {status}");
        let others: Vec<usize> = (0..3).filter(|other| *other != node).collect();
        // It said good-bye: nobody has to suspect it first.
        let took = cluster.await_alive(&others, &others, DETECTION_MAX);
        let ready = cluster.launch_ready(node);
        cluster.await_whole(HEAL_MAX);
        lab.say(format_args!(
            "node {node}: gone for the others after {:.1} s, ready again after {:.1} s",
            took.as_secs_f64(),
            ready.as_secs_f64()
        ));
    }
    load.await_results(FLOW, HEAL_MAX);
    let report = load.finish();
    check_whole(lab, &cluster, &report);
}
