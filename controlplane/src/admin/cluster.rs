//! `/cluster`: the nodes as this one sees them, and how far they agree; join, leave and forget.

use super::guard::check_change;
use super::pages::{fail, stopping};
use super::{Admin, Peer, read_body};
use crate::cluster::{BroadcastStatus, ClaimsStatus, ClusterStatus, ExchangeStatus, MemberStatus, Readiness};
use crate::io::driver::View;
use crate::io::udp::{ClusterView, JoinError};
use crate::store::conflict::{Conflict, Sibling};
use crate::store::record::Kind;
use crate::swim::State;
use axum::body::Body;
use axum::extract::{Path, State as From};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use common::ids::NodeId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::atomic::Ordering::Relaxed;
use uuid::Uuid;

pub async fn show(From(admin): From<Admin>) -> Response {
    let Some(cluster) = &admin.cluster else {
        return Json(json!({ "configured": false, "nodes": [], "note": NOT_CONFIGURED })).into_response();
    };
    let machine = admin.handle.view(|view| (view.cluster(), Local::of(view)));
    match (cluster.view().await, machine.await) {
        (Some(members), Some((status, local))) => Json(render(&members, &status, &local)).into_response(),
        _ => stopping(),
    }
}

/// The last conflicts of stored objects, the newest first.
pub async fn conflicts(From(admin): From<Admin>) -> Response {
    let listed = match admin.store.conflicts().await {
        Ok(listed) => listed,
        Err(error) => return fail(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    };
    let stats = admin.store.stats();
    let rows: Vec<_> = listed.iter().rev().map(conflict).collect();
    let total: u64 = stats.conflicts.iter().map(|count| count.load(Relaxed)).sum();
    Json(json!({ "conflicts": rows, "total": total, "competing": stats.siblings.load(Relaxed) }))
        .into_response()
}

fn conflict(conflict: &Conflict) -> Value {
    let value = |bytes: &Option<Vec<u8>>| if bytes.is_some() { "value" } else { "deletion" };
    let sibling = |sibling: &Sibling| {
        json!({
            "node": Uuid::from_bytes(sibling.actor.node).to_string(),
            "store_epoch": hex(sibling.actor.epoch),
            "stamp_ms": sibling.stamp.wall_ms(),
            "wrote": value(&sibling.bytes),
        })
    };
    json!({
        "type": kind(conflict.kind),
        "name": conflict.key,
        "found_ms": conflict.at_ms,
        "siblings": conflict.siblings.iter().map(sibling).collect::<Vec<_>>(),
        "rule": conflict.rule.name(),
        "used": value(&conflict.used),
    })
}

/// Which node to ask.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Host and port of its `cluster.address`.
    target: String,
}

pub async fn join(
    From(admin): From<Admin>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if let Err(refusal) = check_change(&admin.facts, peer, &headers) {
        return fail(StatusCode::FORBIDDEN, &refusal.to_string());
    }
    let wanted = match read_body(body).await {
        Ok(bytes) => serde_json::from_slice::<Wanted>(&bytes),
        Err(response) => return response,
    };
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return fail(StatusCode::BAD_REQUEST, &format!("the body: {error}")),
    };
    let Some(cluster) = &admin.cluster else { return fail(StatusCode::CONFLICT, NOT_CONFIGURED) };
    match cluster.join(&wanted.target).await {
        Ok(asked) => Json(json!({ "asked": asked })).into_response(),
        Err(error @ (JoinError::Resolve { .. } | JoinError::Useless { .. })) => {
            fail(StatusCode::BAD_REQUEST, &error.to_string())
        }
        Err(error @ (JoinError::Left | JoinError::Many)) => fail(StatusCode::CONFLICT, &error.to_string()),
        Err(JoinError::Stopping) => stopping(),
    }
}

pub async fn leave(
    From(admin): From<Admin>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    if let Err(refusal) = check_change(&admin.facts, peer, &headers) {
        return fail(StatusCode::FORBIDDEN, &refusal.to_string());
    }
    let Some(cluster) = &admin.cluster else { return fail(StatusCode::CONFLICT, NOT_CONFIGURED) };
    match cluster.leave().await {
        Some(()) => Json(json!({ "left": true })).into_response(),
        None => stopping(),
    }
}

pub async fn forget(
    From(admin): From<Admin>,
    Extension(peer): Extension<Peer>,
    Path(node): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Err(refusal) = check_change(&admin.facts, peer, &headers) {
        return fail(StatusCode::FORBIDDEN, &refusal.to_string());
    }
    let Ok(node) = node.parse::<Uuid>() else { return fail(StatusCode::BAD_REQUEST, "a node id is a UUID") };
    let Some(cluster) = &admin.cluster else { return fail(StatusCode::CONFLICT, NOT_CONFIGURED) };
    match cluster.forget(node).await {
        Some(Ok(())) => {
            // Deletions that it has not seen are no longer kept for its sake.
            if let Err(error) = admin.store.forget(NodeId(node.into_bytes())).await {
                return fail(StatusCode::SERVICE_UNAVAILABLE, &error.to_string());
            }
            Json(json!({ "forgotten": node.to_string() })).into_response()
        }
        Some(Err(error)) => fail(StatusCode::CONFLICT, &error.to_string()),
        None => stopping(),
    }
}

/// This node's own row.
struct Local {
    relay: String,
    data_epoch: Option<u64>,
    shards: Option<u8>,
}

impl Local {
    fn of(view: &View<'_>) -> Self {
        let data = view.node.data_plane();
        Self {
            relay: view.plane.about().relay,
            data_epoch: data.map(|data| data.epoch.0),
            shards: data.map(|data| data.shards),
        }
    }
}

fn render(members: &ClusterView, status: &ClusterStatus, local: &Local) -> Value {
    let (waiting, waiting_seconds, without) = match &status.readiness {
        Readiness::Joining { because, since } => (Some(because), Some(since.as_secs()), &[][..]),
        Readiness::Ready => (None, None, &[][..]),
        Readiness::ReadyWithout { nodes } => (None, None, &nodes[..]),
    };
    let mut nodes = vec![own_row(members, status, local)];
    nodes.extend(status.members.iter().map(row));
    json!({
        "configured": true,
        "env": members.env,
        "local": members.local.node.to_string(),
        "health_score": members.health_score,
        "waiting_for": waiting,
        "waiting_seconds": waiting_seconds,
        "without": without.iter().map(uuid).collect::<Vec<_>>(),
        "nodes": nodes,
        "objects": { "records": status.objects.records, "digest": hex(status.objects.digest) },
        "claims": claims(&status.claims),
        "exchange": exchange(&status.exchange),
        "broadcast": broadcast(&status.broadcast),
    })
}

fn own_row(members: &ClusterView, status: &ClusterStatus, local: &Local) -> Value {
    let (identity, about) = (&members.local, &members.local.about);
    let state = if members.left { State::Left } else { State::Alive };
    json!({
        "id": identity.node.to_string(),
        "address": identity.address.to_string(),
        "relay": local.relay,
        "state": state.name(),
        "pid": about.pid,
        "version": about.version,
        "protocol": [about.protocol.0, about.protocol.1],
        "failure_domain": about.domain,
        "boot_epoch": hex(identity.epoch),
        "store_epoch": hex(about.store_epoch),
        "generation": identity.generation,
        "data_epoch": local.data_epoch.map(hex),
        "shards": local.shards,
        "routes": status.claims.routes,
    })
}

fn row(member: &MemberStatus) -> Value {
    json!({
        "id": uuid(&member.node),
        "address": member.address.to_string(),
        "relay": member.relay,
        "state": member.state.name(),
        "state_seconds": member.state_for.as_secs(),
        "pid": member.pid,
        "version": member.version,
        "protocol": [member.protocol.0, member.protocol.1],
        "failure_domain": member.domain,
        "boot_epoch": hex(member.epoch),
        "store_epoch": hex(member.store_epoch),
        "generation": member.generation,
        "data_epoch": member.data_plane.map(|(epoch, _)| hex(epoch)),
        "shards": member.data_plane.map(|(_, shards)| shards),
        "link_seconds": member.link.map(|link| link.up_for.as_secs()),
        "rtt_ms": member.link.and_then(|link| link.rtt).map(|rtt| rtt.as_secs_f64() * 1_000.0),
        "synced_seconds": member.synced.map(|ago| ago.as_secs()),
        "exchange_owed": member.owed,
        "routes": member.routes,
        "routes_whole": member.claims_whole,
    })
}

fn claims(claims: &ClaimsStatus) -> Value {
    json!({
        "version": claims.version,
        "routes": claims.routes,
        "remote_routes": claims.remote_routes,
        "digest": hex(claims.digest),
        "messages_sent": claims.messages_sent,
        "bytes_sent": claims.bytes_sent,
        "changes": claims.changes,
        "pulls": claims.pulls,
        "gaps": claims.gaps,
        "revoked": claims.revoked,
    })
}

fn exchange(exchange: &ExchangeStatus) -> Value {
    json!({
        "enabled": exchange.enabled,
        "running_with": exchange.running.as_ref().map(uuid),
        "queued": exchange.queued,
        "inbound": exchange.inbound,
        "begun": exchange.begun,
        "ended": exchange.ended,
        "aborted": exchange.aborted.iter().sum::<u64>(),
        "divergent": exchange.divergent,
        "repaired": exchange.repaired,
        "sent": exchange.sent,
        "refused": exchange.refused,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "held": exchange.held,
        "too_busy": exchange.too_busy,
    })
}

fn broadcast(broadcast: &BroadcastStatus) -> Value {
    let counts = &broadcast.counts;
    json!({
        "peers": broadcast.peers,
        "eager": broadcast.eager,
        "missing": broadcast.missing,
        "sent": counts.sent,
        "delivered": counts.delivered,
        "duplicates": counts.duplicates,
        "merged": broadcast.merged,
        "refused": broadcast.refused,
        "dropped": broadcast.dropped,
    })
}

fn kind(kind: Kind) -> &'static str {
    kind.name()
}

/// Epochs and digests are no numbers to calculate with, and too long for those of JSON.
fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn uuid(node: &NodeId) -> String {
    Uuid::from_bytes(node.0).to_string()
}

const NOT_CONFIGURED: &str = "this node is in no cluster: cluster.discovery is none";
