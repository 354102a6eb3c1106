//! What crosses the link between the planes: claims and measurements up, snapshots and deltas down.
//!
//! The link is a Unix `SOCK_SEQPACKET` socket; one packet is one frame, an archived [`Up`] or [`Down`], at most
//! [`crate::limits::LINK_FRAME_BYTES_MAX`] long. The control plane listens, the data plane connects and says
//! [`Up::Hello`] first. [`Down::Snapshot`] carries one descriptor, a sealed memfd.

use crate::ids::{BootEpoch, Match, RealmId, RouteKind, ShardId, SnapshotVersion};
use crate::snapshot::Delta;
use rkyv::{Archive, Deserialize, Serialize};

/// Version of the frames; the two ends must agree.
pub const LINK_PROTOCOL: u32 = 1;

/// One change of what a shard holds. Claims of a shard are numbered 1, 2, 3 ... over the life of its process.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Claim {
    Joined {
        session: u64,
        realm: RealmId,
    },
    Left {
        session: u64,
    },
    /// The shard wants what is sent to this URI.
    Routed {
        realm: RealmId,
        kind: RouteKind,
        policy: Match,
        uri: String,
    },
    Unrouted {
        realm: RealmId,
        kind: RouteKind,
        policy: Match,
        uri: String,
    },
}

/// Frames from the data plane.
#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub enum Up {
    Hello {
        protocol: u32,
        epoch: BootEpoch,
        pid: u32,
        shards: u8,
        version: String,
    },
    /// Claims `first_seq`, `first_seq + 1`, ... of one shard.
    Claims {
        shard: ShardId,
        first_seq: u64,
        claims: Vec<Claim>,
    },
    /// A whole claim set follows in `ClaimsPart` frames: forget what this shard claimed before.
    ClaimsReset {
        shard: ShardId,
    },
    ClaimsPart {
        shard: ShardId,
        claims: Vec<Claim>,
    },
    /// The set is whole and stands for everything up to claim `seq`.
    ClaimsEnd {
        shard: ShardId,
        seq: u64,
    },
    /// Counters and gauges in the order of [`crate::metrics`], and the CPU the shard is pinned to.
    Stats {
        shard: ShardId,
        cpu: u32,
        counters: Vec<u64>,
        gauges: Vec<u64>,
    },
    /// The version now in use by all shards.
    Taken {
        version: SnapshotVersion,
    },
    Refused {
        version: SnapshotVersion,
        reason: String,
    },
    /// Addresses the listeners are bound to, said once after `Hello`: (transport name, address).
    Listening {
        listeners: Vec<(String, String)>,
    },
    /// The data plane is going away on its own account (it was told to by a signal).
    Draining,
}

/// Frames from the control plane.
#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub enum Down {
    Welcome {
        protocol: u32,
        pid: u32,
    },
    /// The packet carries the descriptor of a sealed memfd of `bytes` bytes.
    Snapshot {
        version: SnapshotVersion,
        bytes: u64,
    },
    Delta(Delta),
    /// Say GOODBYE to every session and exit with status 0.
    Drain,
    /// A link of another protocol or a second data plane: `reason` says why; the sender closes.
    Refuse {
        reason: String,
    },
}

/// A packet that is no frame. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a valid link frame: {0}")]
pub struct LinkError(pub String);

impl Up {
    pub fn encode(&self) -> Vec<u8> {
        unimplemented!()
    }

    pub fn decode(packet: &[u8]) -> Result<Self, LinkError> {
        let _ = packet;
        unimplemented!()
    }
}

impl Down {
    pub fn encode(&self) -> Vec<u8> {
        unimplemented!()
    }

    pub fn decode(packet: &[u8]) -> Result<Self, LinkError> {
        let _ = packet;
        unimplemented!()
    }
}
