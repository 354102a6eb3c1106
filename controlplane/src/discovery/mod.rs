//! Where other nodes may be: host names and addresses of the configuration, resolved again and again.
//!
//! ```text
//! "10.0.0.1:18083", "node2.example.com:18083" ─ resolver of the system ─▶ addresses ─▶ swim
//! ```
//! Every address of a name counts, so one name that lists all nodes is enough. A resolver that fails or hangs is asked
//! again with growing pauses, and what was found last stays in use.

use crate::swim::machine::SEEDS_MAX;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Resolves `targets` (`host:port`) until nobody listens any more.
pub async fn run(targets: Vec<String>, found: mpsc::Sender<Vec<SocketAddr>>) {
    let mut last: Vec<Vec<SocketAddr>> = vec![vec![]; targets.len()];
    let mut pause = Pause::default();
    loop {
        let mut failed = false;
        for (target, last) in targets.iter().zip(&mut last) {
            match resolve(target).await {
                Ok(addresses) => *last = addresses,
                Err(error) => {
                    failed = true;
                    // Once loud, then quiet: the resolver may be away for long.
                    if pause.is_first() {
                        warn!(target, error, "cannot resolve a seed; trying again");
                    } else {
                        debug!(target, error, "cannot resolve a seed; trying again");
                    }
                }
            }
        }
        if found.send(merge(&last)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause.next(failed)).await;
    }
}

async fn resolve(target: &str) -> Result<Vec<SocketAddr>, String> {
    let lookup = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host(target)).await;
    let found = lookup.map_err(|_| format!("no answer within {LOOKUP_MAX:?}"))?;
    let found: Vec<_> = found.map_err(|error| error.to_string())?.take(SEEDS_MAX).collect();
    if found.is_empty() { Err("it has no address".into()) } else { Ok(found) }
}

/// All addresses, each once, in an order that does not depend on the resolver's.
fn merge(found: &[Vec<SocketAddr>]) -> Vec<SocketAddr> {
    let mut all: Vec<_> = found.iter().flatten().copied().collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(SEEDS_MAX);
    all
}

/// How long to wait before the next look.
#[derive(Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn is_first(&self) -> bool {
        self.failures == 0
    }

    fn next(&mut self, failed: bool) -> Duration {
        self.failures = if failed { self.failures.saturating_add(1) } else { 0 };
        match self.failures {
            0 => AGAIN,
            failures => (RETRY_MIN * 2u32.saturating_pow(failures.min(10) - 1)).min(AGAIN),
        }
    }
}

/// Names may get other addresses.
const AGAIN: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_millis(500);
const LOOKUP_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_the_resolver_fails() {
        let mut pause = Pause::default();
        let failing: Vec<_> = (0..9).map(|_| pause.next(true).as_millis()).collect();
        assert_eq!(failing, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(pause.next(false), AGAIN);
        assert!(pause.is_first());
    }

    #[test]
    fn addresses_count_once() {
        let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let merged = merge(&[vec![address(2), address(1)], vec![], vec![address(2)]]);
        assert_eq!(merged, [address(1), address(2)]);
        let many = (1..=2 * SEEDS_MAX as u16).map(address).collect();
        assert_eq!(merge(&[many]).len(), SEEDS_MAX);
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver_and_a_bad_name_is_an_error() {
        assert_eq!(resolve("127.0.0.1:5").await, Ok(vec![SocketAddr::from(([127, 0, 0, 1], 5))]));
        assert!(resolve("no such name:5").await.is_err());
    }
}
