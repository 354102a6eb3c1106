//! Who is seen alive.

use super::{DETECTION_MAX, HEAL_MAX};
use crate::cluster::Cluster;
use crate::lab::Lab;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub fn crash(lab: &Lab) {
    let mut cluster = lab.cluster(3);
    cluster.nodes[2].kill();
    let took = cluster.await_alive(&[0, 1], &[0, 1], DETECTION_MAX);
    lab.say(format_args!("the crash was seen after {:.1} s", took.as_secs_f64()));
    let took = cluster.launch_ready(2);
    lab.say(format_args!("ready again after {:.1} s", took.as_secs_f64()));
    cluster.await_whole(HEAL_MAX);
}

pub fn short_pause(lab: &Lab) {
    let cluster = lab.cluster(3);
    cluster.nodes[1].stop_processes();
    watch(&cluster, &[0, 2], Duration::from_secs(5), |_| {});
    cluster.nodes[1].continue_processes();
    let took = cluster.await_whole(HEAL_MAX);
    lab.say(format_args!("whole again {:.1} s after a pause of 5 s", took.as_secs_f64()));
}

pub fn long_pause(lab: &Lab) {
    let cluster = lab.cluster(3);
    cluster.nodes[1].stop_processes();
    let paused = Instant::now();
    let took = cluster.await_alive(&[0, 2], &[0, 2], DETECTION_MAX);
    lab.say(format_args!("the pause was seen after {:.1} s", took.as_secs_f64()));
    let left = LONG_PAUSE.saturating_sub(paused.elapsed());
    watch(&cluster, &[0, 2], left, |alive| assert_eq!(alive, [0, 2], "before the node went on"));
    cluster.nodes[1].continue_processes();
    let took = cluster.await_whole(HEAL_MAX);
    lab.say(format_args!("whole again {:.1} s after a pause of 45 s", took.as_secs_f64()));
}

pub fn loss(lab: &Lab) {
    let cluster = lab.cluster(3);
    cluster.net.lose(10);
    let mut looks = 0;
    watch(&cluster, &[0, 1, 2], Duration::from_secs(20), |alive| {
        looks += 1;
        assert_eq!(alive, [0, 1, 2], "somebody was taken for dead");
    });
    assert!(looks > 0, "every look met a suspicion");
    cluster.net.heal();
    cluster.await_whole(HEAL_MAX);
}

pub fn cut(lab: &Lab) {
    let cluster = lab.cluster(3);
    cluster.net.set_link(2, false);
    let took = cluster.await_alive(&[0, 1], &[0, 1], DETECTION_MAX);
    lab.say(format_args!("the cut was seen after {:.1} s", took.as_secs_f64()));
    cluster.net.set_link(2, true);
    let took = cluster.await_whole(HEAL_MAX);
    lab.say(format_args!("whole again {:.1} s after the healing", took.as_secs_f64()));
}

pub fn partial_cut(lab: &Lab) {
    let cluster = lab.cluster(3);
    cluster.net.cut(0, 1);
    watch(&cluster, &[0, 1, 2], Duration::from_secs(8), |alive| assert_eq!(alive, [0, 1, 2]));
    cluster.net.heal();
    cluster.net.cut_one_way(0, 1);
    watch(&cluster, &[0, 1, 2], Duration::from_secs(8), |alive| assert_eq!(alive, [0, 1, 2]));
    cluster.net.heal();
    cluster.await_whole(HEAL_MAX);
}

/// Looks for a while at whom each watcher sees alive, whenever it suspects nobody.
fn watch(cluster: &Cluster, watchers: &[usize], time: Duration, mut look: impl FnMut(&[usize])) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        for watcher in watchers {
            if let Some(alive) = cluster.alive(*watcher) {
                look(&alive);
            }
        }
        sleep(Duration::from_millis(200));
    }
}

const LONG_PAUSE: Duration = Duration::from_secs(45);
