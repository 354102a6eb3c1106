//! Where other nodes may be, looked up again and again.
//!
//! ```text
//! static      hosts and ports of the configuration ─ resolver of the system ─┐
//! dns         one name: its addresses, or its SRV records ─ resolv.conf ─────┤
//! kubernetes  endpoints of a service ─ API of the cluster ───────────────────┼─▶ addresses ─▶ swim
//! multicast   whoever announces itself in the group ─────────────────────────┘
//! ```
//! A look-up that fails or hangs is made again with growing pauses, and what was found last stays in use. Failures are
//! told once in a while and counted.

pub mod dns;
pub mod kubernetes;
pub mod multicast;

use crate::io::complaints::Complaints;
use crate::swim::machine::SEEDS_MAX;
use dns::{Dns, DnsError};
use kubernetes::{Api, ApiError};
use multicast::Group;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::warn;

/// Where to look.
pub enum Source {
    /// `host:port` each.
    Static(Vec<Host>),
    Dns(Dns),
    Kubernetes(Api),
    Multicast(Group),
}

/// A host of the configuration and what was found of it last.
pub struct Host {
    target: String,
    last: Vec<SocketAddr>,
}

/// Why a look-up found nothing.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("no answer within {0:?}")]
    Slow(Duration),
    #[error("{target}: {source}")]
    Host { target: String, source: io::Error },
    #[error("{0} has no address")]
    Empty(String),
    #[error(transparent)]
    Dns(#[from] DnsError),
    #[error(transparent)]
    Kubernetes(#[from] ApiError),
    #[error("{group}: {source}")]
    Multicast { group: SocketAddr, source: io::Error },
}

/// Counters since the start.
#[derive(Default, Debug)]
pub struct DiscoveryCounts {
    pub lookups: AtomicU64,
    pub failures: AtomicU64,
    /// Of the last look-up that failed in no part.
    pub addresses: AtomicU64,
}

/// Looks until nobody listens any more.
pub async fn run(source: Source, found: mpsc::Sender<Vec<SocketAddr>>, counts: Arc<DiscoveryCounts>) {
    let mut report = Report { counts, complaints: Complaints::new(COMPLAINT_PAUSE) };
    let mut source = match source {
        Source::Multicast(group) => return multicast::run(group, found, report).await,
        source => source,
    };
    let mut pause = Pause::default();
    loop {
        let (addresses, error) = source.look().await;
        let failed = error.is_some();
        match error {
            Some(error) => report.failed(&error),
            None => report.found(addresses.len()),
        }
        // Nothing at all is no news: what was found before stays in use.
        if !addresses.is_empty() && found.send(addresses).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause.next(failed)) => {}
            () = found.closed() => return,
        }
    }
}

impl Source {
    /// What is found, and what failed of it, at least in part.
    async fn look(&mut self) -> (Vec<SocketAddr>, Option<DiscoveryError>) {
        let one = |result: Result<Vec<SocketAddr>, DiscoveryError>| match result {
            Ok(addresses) => (merge(addresses), None),
            Err(error) => (vec![], Some(error)),
        };
        match self {
            Self::Static(hosts) => {
                let mut error = None;
                for host in &mut *hosts {
                    match resolve(&host.target).await {
                        Ok(addresses) => host.last = addresses,
                        Err(failed) => error = Some(failed),
                    }
                }
                (merge(hosts.iter().flat_map(|host| host.last.iter().copied())), error)
            }
            Self::Dns(dns) => one(within(LOOKUP_MAX, dns.look()).await),
            Self::Kubernetes(api) => one(within(LOOKUP_MAX, api.look()).await),
            Self::Multicast(_) => unreachable!("a group is listened to and not looked up"),
        }
    }
}

impl Host {
    pub fn new(target: String) -> Self {
        Self { target, last: vec![] }
    }
}

/// Tells what became of look-ups.
pub struct Report {
    counts: Arc<DiscoveryCounts>,
    complaints: Complaints<1>,
}

impl Report {
    pub fn found(&self, addresses: usize) {
        self.counts.lookups.fetch_add(1, Relaxed);
        self.counts.addresses.store(addresses as u64, Relaxed);
    }

    pub fn failed(&mut self, error: &DiscoveryError) {
        self.counts.lookups.fetch_add(1, Relaxed);
        self.counts.failures.fetch_add(1, Relaxed);
        if let Some(more) = self.complaints.may_tell(Instant::now(), 0) {
            warn!(%error, more, "cannot look up other nodes; trying again");
        }
    }
}

async fn within<E: Into<DiscoveryError>>(
    time: Duration,
    look: impl Future<Output = Result<Vec<SocketAddr>, E>>,
) -> Result<Vec<SocketAddr>, DiscoveryError> {
    match tokio::time::timeout(time, look).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(DiscoveryError::Slow(time)),
    }
}

async fn resolve(target: &str) -> Result<Vec<SocketAddr>, DiscoveryError> {
    let lookup = tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host(target)).await;
    let lookup = lookup.map_err(|_| DiscoveryError::Slow(RESOLVE_MAX))?;
    let failed = |source| DiscoveryError::Host { target: target.to_owned(), source };
    let found: Vec<_> = lookup.map_err(failed)?.take(SEEDS_MAX).collect();
    if found.is_empty() { Err(DiscoveryError::Empty(target.to_owned())) } else { Ok(found) }
}

/// All addresses, each once, in an order that does not depend on the resolver's.
fn merge(found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut all: Vec<_> = found.into_iter().collect();
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
/// For one name of several.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
const LOOKUP_MAX: Duration = Duration::from_secs(10);
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn pauses_grow_while_the_resolver_fails() {
        let mut pause = Pause::default();
        let failing: Vec<_> = (0..9).map(|_| pause.next(true).as_millis()).collect();
        assert_eq!(failing, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(pause.next(false), AGAIN);
        assert_eq!(pause.next(true), RETRY_MIN);
    }

    #[test]
    fn addresses_count_once() {
        assert_eq!(merge([2, 1, 2].map(address)), [1, 2].map(address));
        assert_eq!(merge((1..=2 * SEEDS_MAX as u16).map(address)).len(), SEEDS_MAX);
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver_and_a_bad_name_does_not_hide_the_others() {
        let hosts = ["127.0.0.1:5", "no such name:5", "127.0.0.1:4"];
        let mut source = Source::Static(hosts.map(|host| Host::new(host.to_owned())).into());
        let (found, error) = source.look().await;
        assert_eq!(found, [4, 5].map(address));
        assert!(matches!(error, Some(DiscoveryError::Host { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn failures_are_counted_and_found_addresses_are_told() {
        let counts = Arc::new(DiscoveryCounts::default());
        let (found, mut seeds) = mpsc::channel(1);
        let hosts = vec![Host::new("127.0.0.1:5".into()), Host::new("no such name:5".into())];
        let task = tokio::spawn(run(Source::Static(hosts), found, Arc::clone(&counts)));
        assert_eq!(seeds.recv().await, Some(vec![address(5)]));
        assert_eq!(counts.failures.load(Relaxed), 1);
        drop(seeds);
        task.await.expect("it ends when nobody listens");
    }
}
