//! What operators are told of the cluster: one value with everything the admin endpoint shows. Plain data.

use super::exchanges::Abort;
use super::machine::Machine;
use crate::broadcast;
use crate::claims::OwnerView;
use crate::swim::State;
use common::ids::NodeId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct ClusterStatus {
    pub env: String,
    pub local: NodeId,
    pub readiness: Readiness,
    /// The other nodes that membership knows, by id; those that are down or have left too.
    pub members: Vec<MemberStatus>,
    pub exchange: ExchangeStatus,
    pub broadcast: BroadcastStatus,
    pub claims: ClaimsStatus,
    pub objects: ObjectsStatus,
}

/// How far a node has come since its start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// It does not serve yet; why, and for how long that has been so.
    Joining {
        because: String,
        since: Duration,
    },
    Ready,
    /// It serves although it could not take over the state of some members.
    ReadyWithout {
        nodes: Vec<NodeId>,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberStatus {
    pub node: NodeId,
    pub state: State,
    /// Since the state or the identity changed last.
    pub state_for: Duration,
    /// Of its membership port and its control-plane port.
    pub address: SocketAddr,
    /// Of its relay, as it says it; none while it has no data plane.
    pub relay: Option<String>,
    pub pid: u32,
    pub version: String,
    pub protocol: (u16, u16),
    pub domain: String,
    /// Of its control plane.
    pub epoch: u64,
    pub generation: u32,
    pub store_epoch: u64,
    /// Of its data plane, and the number of its shards; none while it has none.
    pub data_plane: Option<(u64, u8)>,
    /// None: no connection is up.
    pub link: Option<LinkStatus>,
    /// Since an exchange of ours with it ended; none: not since the link came up.
    pub synced: Option<Duration>,
    /// An exchange with it is due before its turn.
    pub owed: bool,
    /// How far its map of claims is known here, how many routes that are, and whether that is all it claims.
    pub claims_version: u64,
    pub routes: usize,
    pub claims_whole: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkStatus {
    pub up_for: Duration,
    /// Smoothed; none before the first answer to a ping.
    pub rtt: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ExchangeStatus {
    pub enabled: bool,
    /// With whom one of ours is under way.
    pub running: Option<NodeId>,
    /// Peers that are owed one at once.
    pub queued: usize,
    /// Of others, under way.
    pub inbound: usize,
    pub begun: u64,
    pub ended: u64,
    /// By the order of [`Abort::ALL`].
    pub aborted: [u64; Abort::ALL.len()],
    /// Those that found a difference.
    pub divergent: u64,
    /// Records changed here by exchanges of ours and of others, records sent in ours, and records either side refused.
    pub repaired: u64,
    pub sent: u64,
    pub refused: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Messages that `aae.exchange_rate` has made wait, and questions not answered for it.
    pub held: u64,
    pub too_busy: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BroadcastStatus {
    pub counts: broadcast::Counts,
    pub peers: usize,
    pub eager: usize,
    /// Ids remembered, and ids announced to us that have not come.
    pub ids: usize,
    pub missing: usize,
    /// Records that changed something here.
    pub merged: u64,
    /// Records that were damaged or refused by the store.
    pub refused: u64,
    /// Records that were dropped because too much waited for the store, and are owed an exchange.
    pub dropped: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ClaimsStatus {
    /// Of this node's own map.
    pub version: u64,
    pub routes: usize,
    /// Routes of other nodes that are used here.
    pub remote_routes: usize,
    /// Equal on nodes that hold equal maps of the living.
    pub digest: u64,
    pub messages_sent: u64,
    pub bytes_sent: u64,
    pub changes: u64,
    pub pulls: u64,
    pub gaps: u64,
    pub revoked: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ObjectsStatus {
    /// Equal on nodes that hold equal objects; 0: nothing is stored.
    pub digest: u64,
    pub records: u64,
}

impl Machine {
    /// Everything an operator may ask. `objects`: what the store holds.
    pub fn status(&self, now: Instant, objects: ObjectsStatus) -> ClusterStatus {
        let claims = self.claims();
        let counts = claims.counts();
        let own = claims.owners().find(|map| map.node == self.settings.node);
        ClusterStatus {
            env: self.settings.env.clone(),
            local: self.settings.node,
            readiness: self.readiness(now),
            members: self.member_rows(now),
            exchange: self.exchange_status(),
            broadcast: self.broadcast_status(),
            claims: ClaimsStatus {
                version: own.as_ref().map_or(0, |map| map.version),
                routes: own.map_or(0, |map| map.routes),
                remote_routes: self.remote_routes,
                digest: claims.digest(),
                messages_sent: counts.messages_sent,
                bytes_sent: counts.bytes_sent,
                changes: counts.changes,
                pulls: counts.pulls,
                gaps: counts.gaps,
                revoked: counts.revoked,
            },
            objects,
        }
    }

    fn readiness(&self, now: Instant) -> Readiness {
        match (self.joining.waiting(), self.joining.without()) {
            (Some(waiting), _) => Readiness::Joining {
                because: waiting.to_string(),
                since: now.saturating_duration_since(self.joining.began()),
            },
            (None, []) => Readiness::Ready,
            (None, without) => Readiness::ReadyWithout { nodes: without.to_vec() },
        }
    }

    fn member_rows(&self, now: Instant) -> Vec<MemberStatus> {
        let maps: BTreeMap<NodeId, OwnerView<'_>> =
            self.claims().owners().map(|map| (map.node, map)).collect();
        let rows = self.members.iter().filter_map(|(node, row)| {
            let member = row.member.as_ref()?;
            let (identity, about) = (&member.identity, &member.identity.about);
            let map = maps.get(&node);
            let data_plane = map.and_then(|map| Some((map.epoch?.0, map.about.shards)));
            Some(MemberStatus {
                node,
                state: member.state,
                state_for: now.saturating_duration_since(member.since),
                address: identity.address,
                relay: data_plane.and(map).map(|map| map.about.relay.clone()),
                pid: about.pid,
                version: about.version.clone(),
                protocol: about.protocol,
                domain: about.domain.clone(),
                epoch: identity.epoch,
                generation: identity.generation,
                store_epoch: about.store_epoch,
                data_plane,
                link: row.link.map(|link| link.status(now)),
                synced: self.exchanges.synced(node).map(|at| now.saturating_duration_since(at)),
                owed: self.exchanges.is_owed(node),
                claims_version: map.map_or(0, |map| map.version),
                routes: map.map_or(0, |map| map.routes),
                claims_whole: map.is_some_and(|map| map.whole),
            })
        });
        rows.collect()
    }

    fn exchange_status(&self) -> ExchangeStatus {
        let counts = self.exchanges.counts();
        ExchangeStatus {
            enabled: self.settings.aae.enabled,
            running: self.exchanges.running(),
            queued: self.exchanges.queued(),
            inbound: self.exchanges.inbound(),
            begun: counts.begun,
            ended: counts.ended,
            aborted: counts.aborted,
            divergent: counts.divergent,
            repaired: self.counts.repaired,
            sent: counts.sent,
            refused: counts.refused,
            bytes_in: counts.bytes_in,
            bytes_out: counts.bytes_out,
            held: counts.held,
            too_busy: counts.too_busy,
        }
    }

    fn broadcast_status(&self) -> BroadcastStatus {
        let ((peers, eager), (ids, missing)) = (self.broadcast.peers(), self.broadcast.ids());
        BroadcastStatus {
            counts: self.broadcast.counts(),
            peers,
            eager,
            ids,
            missing,
            merged: self.counts.merged,
            refused: self.counts.refused,
            dropped: self.counts.dropped,
        }
    }
}
