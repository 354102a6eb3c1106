//! Whole clusters in one thread, from one seed: 3 to 30 control planes with membership, links, stores in memory and data
//! planes by script; loss, delay, duplication and reordering of datagrams, connections that stall and break, cuts (clean,
//! one-way, partial), crashes, pauses, wiped and restored disks, full disks, clocks that jump, nodes that leave. Safety is
//! checked at each step; then all faults are lifted, and everything must become equal and stay so.
//!
//! A failing seed is printed and replays exactly: `CLUSTER_SIM_SEEDS=7..8 cargo test -p controlplane --test cluster_sim`.

mod checks;
mod data;
mod faults;
mod network;
mod oracle;
mod site;
mod world;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use world::{Bug, Tally, World};

fn run(seed: u64, bug: Option<Bug>) -> Result<Tally, String> {
    World::new(seed, bug).and_then(World::run).map_err(|error| format!("seed {seed}: {error}"))
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("CLUSTER_SIM_SEEDS") else { return 0..SEEDS };
    let (first, end) = text.split_once("..").expect("CLUSTER_SIM_SEEDS=a..b");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Runs the seeds on all CPUs; each run is one thread's.
fn run_all(seeds: Range<u64>, bug: Option<Bug>) -> Result<Tally, String> {
    let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
    let total = Mutex::new(Ok(Tally::default()));
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || total.lock().expect("no run panics with it").is_err() {
                        return;
                    }
                    let result = run(seed, bug);
                    let mut total = total.lock().expect("no run panics with it");
                    match (&mut *total, result) {
                        (Ok(total), Ok(tally)) => total.add(&tally),
                        (Ok(_), Err(error)) => *total = Err(error),
                        (Err(_), _) => return,
                    }
                }
            });
        }
    });
    total.into_inner().expect("no run panics with it")
}

#[test]
fn clusters_agree_once_the_faults_are_gone() {
    let seeds = seeds();
    let total = run_all(seeds.clone(), None).unwrap_or_else(|error| {
        panic!("{error}\nreplay with CLUSTER_SIM_SEEDS=N..N+1 and that seed for N");
    });
    println!("{seeds:?}: {total:?}");
    // A run in which nothing goes wrong proves nothing.
    if seeds.end - seeds.start >= SEEDS {
        for happened in [
            total.acknowledged,
            total.refused,
            total.crashes,
            total.wiped,
            total.restored,
            total.cuts,
            total.links_broken,
            total.datagrams_lost,
            total.siblings,
            total.shared,
            total.retained,
            total.repaired,
            total.held,
        ] {
            assert!(happened > 0, "{total:?}");
        }
    }
}

#[test]
fn a_seed_replays_exactly() {
    assert_eq!(run(3, None), run(3, None));
    assert_ne!(run(3, None).unwrap(), run(4, None).unwrap());
}

/// Without this nothing above counts.
#[test]
fn planted_bugs_are_caught() {
    for bug in Bug::ALL {
        let caught = run_all(0..BUG_SEEDS, Some(bug)).err();
        let caught = caught.unwrap_or_else(|| panic!("{bug:?} survived {BUG_SEEDS} seeds"));
        println!("{bug:?}: {}", caught.chars().take(200).collect::<String>());
    }
}

const SEEDS: u64 = 100;
const BUG_SEEDS: u64 = 40;
