//! Processes stand still.

use super::{DETECTION_MAX, FLOW, HEAL_MAX, check_slowest, check_whole};
use crate::lab::Lab;
use crate::load::Load;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub fn short(lab: &Lab) {
    let cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    cluster.nodes[1].stop_processes();
    sleep(Duration::from_secs(5));
    cluster.nodes[1].continue_processes();
    let took = cluster.await_whole(HEAL_MAX);
    lab.say(format_args!("whole again {:.1} s after a pause of 5 s", took.as_secs_f64()));
    load.await_results(FLOW, HEAL_MAX);
    let report = load.finish();
    check_whole(lab, &cluster, &report);
    check_slowest(&report, &[0, 2]);
}

pub fn long(lab: &Lab) {
    let cluster = lab.cluster(3);
    let load = Load::start(&cluster);
    load.await_results(FLOW, HEAL_MAX);
    cluster.nodes[1].stop_processes();
    let paused = Instant::now();
    let took = cluster.await_alive(&[0, 2], &[0, 2], DETECTION_MAX);
    lab.say(format_args!("the pause was seen after {:.1} s", took.as_secs_f64()));
    load.await_results(FLOW, HEAL_MAX);
    while paused.elapsed() < LONG_PAUSE {
        for alive in [0, 2].into_iter().filter_map(|node| cluster.alive(node)) {
            assert_eq!(alive, [0, 2], "before the node went on");
        }
        sleep(Duration::from_millis(200));
    }
    cluster.nodes[1].continue_processes();
    let took = cluster.await_whole(HEAL_MAX);
    lab.say(format_args!("whole again {:.1} s after a pause of 45 s", took.as_secs_f64()));
    load.await_results(FLOW, HEAL_MAX);
    let report = load.finish();
    check_whole(lab, &cluster, &report);
    check_slowest(&report, &[0, 2]);
}

const LONG_PAUSE: Duration = Duration::from_secs(45);
