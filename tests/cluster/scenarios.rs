//! The scenarios.

mod cuts;
mod deaths;
mod disks;
mod pauses;
mod service;

use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::load::{Report, await_service};
use std::time::Duration;

pub struct Scenario {
    pub name: &'static str,
    pub run: fn(&Lab),
    /// What it takes on a quiet machine, seconds; the longest begin first.
    pub seconds: u32,
    /// It needs Autobahn for Python.
    pub python: bool,
    /// Not run without SIGNALBOX_CLUSTER_LONG=1.
    pub long: bool,
}

const fn scenario(name: &'static str, seconds: u32, run: fn(&Lab)) -> Scenario {
    Scenario { name, run, seconds, python: false, long: false }
}

const fn with_python(scenario: Scenario) -> Scenario {
    Scenario { python: true, ..scenario }
}

const fn long(scenario: Scenario) -> Scenario {
    Scenario { long: true, ..scenario }
}

pub const ALL: &[Scenario] = &[
    scenario("calls_and_events_reach_every_node_and_none_is_lost", 15, service::steady),
    with_python(scenario("autobahn_clients_on_different_nodes_reach_each_other", 30, service::autobahn)),
    scenario("a_node_that_joins_has_everything_once_it_is_ready", 20, service::join),
    scenario("operators_see_join_leave_and_forget_nodes", 20, service::operate),
    scenario("one_node_is_killed_under_load_and_returns", 25, deaths::one),
    scenario("all_nodes_are_killed_at_once_and_return", 25, deaths::all),
    scenario("nodes_are_restarted_one_after_the_other_under_load", 40, deaths::rolling),
    scenario("a_cut_under_load_heals", 35, cuts::clean),
    scenario("a_pulled_cable_is_seen_and_plugged_in_again", 15, cuts::cable),
    scenario("a_one_way_cut_under_load_heals", 35, cuts::one_way),
    scenario("a_cut_between_two_of_three_under_load_heals", 35, cuts::partial),
    scenario("two_sides_of_a_cut_register_the_same_procedure_and_agree_afterwards", 30, cuts::same_procedure),
    scenario("loss_of_a_tenth_of_all_packets_under_load_kills_nobody", 30, cuts::loss),
    scenario("a_node_that_stands_still_for_5_s_comes_back", 25, pauses::short),
    scenario("a_node_that_stands_still_for_45_s_is_taken_for_dead_and_comes_back", 60, pauses::long),
    scenario("a_node_whose_disk_was_wiped_takes_everything_over", 25, disks::wiped),
    scenario("an_old_backup_brings_nothing_back_that_was_removed", 30, disks::old_backup),
    scenario("a_full_disk_refuses_writes_and_nothing_else", 30, disks::full),
    long(scenario("after_a_cut_has_healed_nothing_is_repaired_for_60_s", 100, cuts::quiet_afterwards)),
];

/// A crash is to be seen by all within 5 s on a quiet machine.
const DETECTION_MAX: Duration = Duration::from_secs(20);
/// Nodes are to agree within 25 s after a fault on a quiet machine.
const EQUAL_MAX: Duration = Duration::from_secs(60);
const HEAL_MAX: Duration = Duration::from_secs(60);
/// Calls that must succeed after each step of a scenario under load.
const FLOW: u64 = 100;

/// After the last fault: all are alive and agree, what the load saw is right, nothing written is lost, and everybody reaches
/// everybody.
fn check_whole(lab: &Lab, cluster: &Cluster, report: &Report) {
    lab.say(report.summary());
    let all: Vec<usize> = (0..cluster.nodes.len()).collect();
    let whole = cluster.await_whole(HEAL_MAX);
    let equal = cluster.await_equal(&all, EQUAL_MAX);
    let service = await_service(cluster, &all, "realm1", HEAL_MAX);
    lab.say(format_args!(
        "all members after {:.1} s, equal after another {:.1} s, all reach all after another {:.1} s",
        whole.as_secs_f64(),
        equal.as_secs_f64(),
        service.as_secs_f64()
    ));
    report.check();
    report.writes.check(cluster, &all);
}

/// No caller on a node that ran all the time waited longer than it takes to find out that another is gone.
fn check_slowest(report: &Report, nodes: &[usize]) {
    let slowest = report.slowest(|node| nodes.contains(&node));
    assert!(slowest < DETECTION_MAX, "a caller waited {slowest:?} for an answer");
}
