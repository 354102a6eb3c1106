//! The data planes of a cluster without IO: nodes, their shards and clients in one thread, the bytes between nodes carried
//! by the world, from one seed.
//!
//! Half of the runs cut no connection, and nothing may be lost in them. In the others connections are cut at any byte and
//! nodes die: every call is still answered exactly once, order holds, and nothing is left behind.
//!
//! `RELAY_SEEDS=from..to cargo test --test relay_sim` hunts; a failing seed is named and replays exactly.

#[path = "../sim/client.rs"]
mod client;
#[path = "../shard/rig/node.rs"]
mod node;
#[path = "../sim/seeds.rs"]
mod seeds;
#[path = "../shard/rig/shards.rs"]
mod shards;
#[path = "../shard/rig/wires.rs"]
mod wires;
mod world;

use world::{Faults, World};

fn run(seed: u64) -> world::Tally {
    let faults = if seed.is_multiple_of(2) { Faults::None } else { Faults::Cuts };
    let mut world = World::new(seed, faults);
    for _ in 0..world.steps() {
        world.step();
    }
    world.settle();
    world.check_answered();
    world.lift_faults();
    world.settle();
    world.check_all_reach_all();
    let tally = world.tally();
    world.leave_all();
    world.check_empty();
    tally
}

#[test]
fn seeded_runs_lose_nothing_on_whole_connections_and_answer_every_call() {
    let tallies = seeds::run_each("RELAY_SEEDS", 1..300, run);
    let runs = tallies.len() as u64;
    let mut total = world::Tally::default();
    tallies.iter().for_each(|tally| total.add(tally));
    println!("{total:?} in {runs} runs");
    let exercised = total.hops > 20 * runs && total.lost > runs / 4 && total.results > 5 * runs;
    assert!(runs < 100 || exercised, "the schedule exercises little: {total:?}");
}

#[test]
fn one_seed_gives_one_run() {
    let trace = |seed| {
        let mut world = World::new(seed, Faults::Cuts);
        for _ in 0..world.steps() {
            world.step();
        }
        world.settle();
        world.digest()
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}
