//! Real nodes and blocking WAMP clients for the integration tests.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

pub mod client;
pub mod cluster;
pub mod http;
pub mod node;

pub use client::{Client, Wire};
pub use node::{Node, Setup};

use std::time::{Duration, Instant};

/// How long anything may take before a test fails; generous, because machines are slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within [`PATIENCE`].
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, ask)
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within `bound`.
pub fn eventually_within<T>(bound: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + bound;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "did not happen within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
