//! Whole data planes without IO: shards, clients and a control plane in one thread, from one seed.
//!
//! Each run draws a number of shards, clients of every framing and serializer, and a schedule: bytes arrive in pieces,
//! sends complete late, batches between shards wait in short queues, snapshots reach shards at different times,
//! clients vanish. Checked at every step: answers belong to requests, events to subscriptions, order holds. Checked at
//! the end, when everything has come to rest: nothing was lost or sent twice, and what the shards hold is nothing.
//!
//! `SIM_SEEDS=from..to cargo test --test sim` hunts; a failing seed is named and replays exactly.

mod client;
mod control;
mod seeds;
#[path = "../shard/rig/shards.rs"]
mod shards;
mod world;

use world::World;

fn run(seed: u64) -> world::Tally {
    let mut world = World::new(seed);
    for _ in 0..world.steps() {
        world.step();
    }
    world.settle();
    world.check_complete();
    let tally = world.tally();
    world.leave_all();
    world.check_empty();
    tally
}

#[test]
fn seeded_runs_lose_nothing_and_leave_nothing() {
    let tallies = seeds::run_each("SIM_SEEDS", 1..700, run);
    let runs = tallies.len() as u64;
    let mut total = world::Tally::default();
    for tally in &tallies {
        total.events += tally.events;
        total.results += tally.results;
    }
    println!("{} events and {} answered calls checked in {runs} runs", total.events, total.results);
    assert!(
        runs < 100 || total.events > 5 * runs && total.results > 5 * runs,
        "the schedule exercises little"
    );
}

#[test]
fn one_seed_gives_one_run() {
    let trace = |seed| {
        let mut world = World::new(seed);
        for _ in 0..world.steps() {
            world.step();
        }
        world.settle();
        world.digest()
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}
