//! Where two peers of a history can sit.

use crate::rig::Rig;
use dataplane::shard::ShardConfig;
use std::fmt;
use std::time::Duration;

/// The shards of two peers, in one node or in two.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Shards of each node; shards are numbered over all of them.
    nodes: &'static [usize],
    pub first: usize,
    pub second: usize,
}

const ONE: &[usize] = &[2];
const TWO: &[usize] = &[2, 2];

/// One shard, two shards either way, and two nodes: by the shard where the relay's connection ends, by another one, and back.
pub const PLACES: [Place; 6] = [
    Place { nodes: ONE, first: 0, second: 0 },
    Place { nodes: ONE, first: 0, second: 1 },
    Place { nodes: ONE, first: 1, second: 0 },
    Place { nodes: TWO, first: 0, second: 2 },
    Place { nodes: TWO, first: 0, second: 3 },
    Place { nodes: TWO, first: 3, second: 0 },
];

/// The names of a compatible and a strict realm.
pub const REALMS: [&str; 2] = ["realm1", "strict"];

impl Place {
    /// The same nodes with the first peer at another shard.
    pub const fn with_first(self, first: usize) -> Self {
        Self { first, ..self }
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.nodes.iter().sum()
    }

    /// The peers are on two nodes.
    pub fn is_apart(&self) -> bool {
        self.nodes.len() > 1
    }

    /// Nobody there is pinged: time may pass without an answer.
    pub fn rig(&self, change: impl Fn(&mut ShardConfig)) -> Rig {
        let change = |config: &mut ShardConfig| {
            config.timeouts.ping_interval = Duration::from_secs(86_400);
            change(config);
        };
        if self.is_apart() { Rig::cluster(self.nodes, change) } else { Rig::new(self.nodes[0], change) }
    }
}

/// Runs a history in every place in both degrees of strictness. One that fails is named.
pub fn everywhere(history: impl Fn(&Place, &str)) {
    for place in &PLACES {
        for realm in REALMS {
            named(&(realm, place), || history(place, realm));
        }
    }
}

/// Runs a history, and says where it was if it fails.
pub fn named(place: &impl fmt::Debug, history: impl FnOnce()) {
    struct Named<'a>(&'a dyn fmt::Debug);
    impl Drop for Named<'_> {
        fn drop(&mut self) {
            eprintln!("the history fails at {:?}", self.0);
        }
    }
    let named = Named(place);
    history();
    std::mem::forget(named);
}
