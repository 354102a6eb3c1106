//! A control plane reduced to its duty: it collects claims and publishes snapshots of them.

use common::ids::{BootEpoch, Match, RealmId, RouteKind, SnapshotVersion};
use common::link::Claim;
use common::snapshot::{Anonymous, Realm, Route, Snapshot, Source, build};
use dataplane::feed::{FeedUp, SharedSnapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type Key = (RealmId, RouteKind, Match, String);

#[derive(Default, Debug)]
struct ShardClaims {
    sessions: BTreeSet<u64>,
    routes: BTreeSet<Key>,
    folded: u64,
    resyncing: bool,
}

#[derive(Debug)]
pub struct Control {
    epoch: BootEpoch,
    version: u64,
    shards: Vec<ShardClaims>,
}

impl Control {
    pub fn new(epoch: BootEpoch, shards: usize) -> Self {
        Self { epoch, version: 0, shards: (0..shards).map(|_| ShardClaims::default()).collect() }
    }

    /// The process was killed and started again: it knows nothing but goes on with greater versions.
    pub fn forget(&mut self) {
        self.shards.iter_mut().for_each(|shard| *shard = ShardClaims::default());
    }

    pub fn take(&mut self, up: FeedUp) {
        match up {
            FeedUp::Claims { shard, first_seq, claims } => {
                let state = &mut self.shards[shard.index()];
                if !state.resyncing && first_seq != state.folded + 1 {
                    return; // Frames were lost with the old process; a whole set is on its way.
                }
                if !state.resyncing {
                    state.folded += claims.len() as u64;
                }
                claims.into_iter().for_each(|claim| state.apply(claim));
            }
            FeedUp::ClaimsReset { shard } => {
                self.shards[shard.index()] = ShardClaims { resyncing: true, ..ShardClaims::default() };
            }
            FeedUp::ClaimsPart { shard, claims } => {
                claims.into_iter().for_each(|claim| self.shards[shard.index()].apply(claim));
            }
            FeedUp::ClaimsEnd { shard, seq } => {
                let state = &mut self.shards[shard.index()];
                state.resyncing = false;
                state.folded = seq;
            }
            FeedUp::Stats { .. } | FeedUp::Taken { .. } | FeedUp::Drained { .. } | FeedUp::Retain { .. } => {}
        }
    }

    /// A snapshot of what is known.
    pub fn publish(&mut self) -> SharedSnapshot {
        self.version += 1;
        let mut routes: BTreeMap<Key, u128> = BTreeMap::new();
        for (shard, state) in self.shards.iter().enumerate().filter(|(_, state)| !state.resyncing) {
            for key in &state.routes {
                *routes.entry(key.clone()).or_default() |= 1 << shard;
            }
        }
        let source = Source {
            version: SnapshotVersion(self.version),
            epoch: self.epoch,
            claims_folded: self.shards.iter().map(|s| if s.resyncing { 0 } else { s.folded }).collect(),
            nodes_folded: 0,
            shares: vec![],
            realms: vec![Realm { strict: true, ..Realm::new("realm1", Anonymous::Loopback) }],
            routes: routes
                .into_iter()
                .map(|((realm, kind, policy, uri), shards)| Route {
                    realm,
                    kind,
                    policy,
                    uri,
                    shards,
                    nodes: vec![],
                })
                .collect(),
        };
        let bytes = bytes::Bytes::from_owner(build(&source, 99));
        Arc::new(Snapshot::check(bytes).expect("a built snapshot is valid"))
    }

    pub fn sessions(&self) -> usize {
        self.shards.iter().map(|shard| shard.sessions.len()).sum()
    }

    pub fn routes(&self) -> usize {
        self.shards.iter().map(|shard| shard.routes.len()).sum()
    }

    pub fn is_resyncing(&self) -> bool {
        self.shards.iter().any(|shard| shard.resyncing)
    }
}

impl ShardClaims {
    fn apply(&mut self, claim: Claim) {
        match claim {
            Claim::Joined { session, .. } => {
                self.sessions.insert(session);
            }
            Claim::Left { session } => {
                self.sessions.remove(&session);
            }
            Claim::Routed { realm, kind, policy, uri } => {
                self.routes.insert((realm, kind, policy, uri));
            }
            Claim::Shared { realm, policy, uri, .. } => {
                self.routes.insert((realm, RouteKind::Procedure, policy, uri));
            }
            Claim::Unrouted { realm, kind, policy, uri } => {
                self.routes.remove(&(realm, kind, policy, uri));
            }
        }
    }
}
