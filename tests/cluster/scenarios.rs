//! The scenarios.

mod members;

use crate::lab::Lab;
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

pub const ALL: &[Scenario] = &[
    scenario("a_crash_is_seen_by_all_and_so_is_the_return", 10, members::crash),
    scenario("a_node_that_stands_still_for_5_s_comes_back", 15, members::short_pause),
    scenario("a_node_that_stands_still_for_45_s_is_taken_for_dead_and_comes_back", 55, members::long_pause),
    scenario("loss_of_a_tenth_of_all_packets_kills_nobody", 25, members::loss),
    scenario("a_cut_and_its_healing_are_seen", 15, members::cut),
    scenario("nodes_that_cannot_reach_each_other_directly_stay_members", 15, members::partial_cut),
];

/// A crash is to be seen by all within 5 s; the rest is for slow machines.
const DETECTION_MAX: Duration = Duration::from_secs(20);
const HEAL_MAX: Duration = Duration::from_secs(60);
