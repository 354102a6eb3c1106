//! Which seeds are run.

use std::ops::Range;
use std::panic::{RefUnwindSafe, catch_unwind};

/// Runs the seeds that the environment's `variable` names as `from..to`, or the usual ones.
///
/// # Panics
/// When a run does. The message says which seed replays it.
pub fn run_each<T>(variable: &str, usual: Range<u64>, run: impl Fn(u64) -> T + RefUnwindSafe) -> Vec<T> {
    let seeds = match std::env::var(variable) {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("from..to");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
        Err(_) => usual,
    };
    let run = |seed| {
        let outcome = catch_unwind(|| run(seed));
        outcome.unwrap_or_else(|_| panic!("seed {seed} fails; {variable}={seed}..{} replays it", seed + 1))
    };
    seeds.map(run).collect()
}
