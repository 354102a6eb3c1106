//! Whole sets of replicas in one thread, from one seed: loss, delay, duplication, reordering, one-way and full cuts,
//! crashes, wiped and restored stores, clocks that jump. Then all faults are lifted and the nodes must agree, with no
//! acknowledged write lost and nothing there that nobody wrote.
//!
//! A failing seed is printed. `REPLICA_SIM_SEED=7 cargo test -p controlplane --test replica_sim` runs one seed,
//! `REPLICA_SIM_SEEDS=10000` many.

mod floor;
mod world;

use world::{Bug, Tally, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn run(seed: u64, bug: Option<Bug>) -> Result<Tally, String> {
    World::new(seed, bug).run().map_err(|error| format!("seed {seed}: {error}"))
}

#[test]
fn replicas_agree_once_the_faults_are_gone() {
    let seeds = match number("REPLICA_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("REPLICA_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut total = Tally::default();
    for seed in seeds.clone() {
        match run(seed, None) {
            Ok(tally) => total.add(&tally),
            Err(error) => panic!("{error}\nreplay with REPLICA_SIM_SEED={seed}"),
        }
    }
    println!("{} seeds: {total:?}", seeds.end - seeds.start);
    // A run in which nothing goes wrong proves nothing.
    if seeds.end - seeds.start >= SEEDS {
        for happened in
            [total.dropped, total.crashes, total.wiped, total.restored, total.refused, total.siblings]
        {
            assert!(happened > 0, "{total:?}");
        }
    }
}

#[test]
fn a_seed_replays_exactly() {
    assert_eq!(run(3, None).unwrap(), run(3, None).unwrap());
    assert_ne!(run(3, None).unwrap(), run(4, None).unwrap());
}

/// Without this nothing above counts.
#[test]
fn planted_bugs_are_caught() {
    for bug in [Bug::ReuseActor, Bug::AckBeforeStore, Bug::LastWriteWins] {
        let caught = (0..BUG_SEEDS).find_map(|seed| run(seed, Some(bug)).err());
        let caught = caught.unwrap_or_else(|| panic!("{bug:?} survived {BUG_SEEDS} seeds"));
        println!("{bug:?}: {caught}");
    }
}

const SEEDS: u64 = 16;
const BUG_SEEDS: u64 = 30;
