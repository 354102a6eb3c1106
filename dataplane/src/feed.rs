//! What a shard and the link thread say to each other over bounded channels.

use bytes::Bytes;
use common::ids::{Match, NodeId, RealmId, ShardId, SnapshotVersion};
use common::link::{Claim, Peer, RetainedTopic, RouteChange};
use common::metrics::Metrics;
use common::snapshot::{Delta, Snapshot};
use std::sync::Arc;

/// A checked snapshot shared by all shards.
pub type SharedSnapshot = Arc<Snapshot<Bytes>>;

/// From the link thread to a shard.
#[derive(Clone, Debug)]
pub enum FeedDown {
    Snapshot(SharedSnapshot),
    Delta(Arc<Delta>),
    /// All nodes that may be sent to.
    Peers(Arc<[Peer]>),
    /// Numbered changes of what other nodes want.
    Routes {
        first_seq: u64,
        changes: Arc<[RouteChange]>,
    },
    /// Change `seq`: the node wants nothing any more.
    Unroute {
        seq: u64,
        node: NodeId,
    },
    /// The callee of this registration loses it to another node's.
    Revoke {
        realm: RealmId,
        policy: Match,
        uri: Arc<str>,
    },
    /// What these topics retain.
    Retained(Arc<[RetainedTopic]>),
    /// The link is new: report the whole claim set again. Changes of other nodes' routes are numbered anew, and its first
    /// snapshot stands for all that came before.
    Resync,
    /// Report metrics.
    Stats,
    /// Say GOODBYE to everybody; the shard is done when its last connection is gone.
    Drain,
}

/// From a shard to the link thread.
#[derive(Debug)]
pub enum FeedUp {
    Claims {
        shard: ShardId,
        first_seq: u64,
        claims: Vec<Claim>,
    },
    ClaimsReset {
        shard: ShardId,
    },
    ClaimsPart {
        shard: ShardId,
        claims: Vec<Claim>,
    },
    ClaimsEnd {
        shard: ShardId,
        seq: u64,
    },
    /// A topic retains this, for so long; 0: for ever.
    Retain {
        topic: RetainedTopic,
        ttl_ms: u64,
    },
    Stats {
        shard: ShardId,
        cpu: u32,
        metrics: Box<Metrics>,
    },
    /// The shard uses this version now.
    Taken {
        shard: ShardId,
        version: SnapshotVersion,
    },
    /// The shard is drained: no connection is left.
    Drained {
        shard: ShardId,
    },
}
