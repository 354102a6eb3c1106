//! `/cluster`: the nodes as this one sees them; leave and forget.

use super::guard::check_change;
use super::pages::{fail, stopping};
use super::{Admin, Peer};
use crate::io::udp::ClusterView;
use crate::swim::State;
use crate::swim::identity::Identity;
use axum::extract::{Path, State as From};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use common::ids::NodeId;
use serde_json::{Value, json};
use uuid::Uuid;

pub async fn show(From(admin): From<Admin>) -> Response {
    let Some(cluster) = &admin.cluster else {
        return Json(json!({ "configured": false, "nodes": [], "note": NOT_CONFIGURED })).into_response();
    };
    match cluster.view().await {
        Some(view) => Json(render(&view)).into_response(),
        None => stopping(),
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

fn render(view: &ClusterView) -> Value {
    let local = &view.local;
    let state = if view.left { State::Left } else { State::Alive };
    let mut nodes = vec![node(local, state, None)];
    nodes.extend(view.members.iter().map(|member| {
        let since = view.now.saturating_duration_since(member.since).as_secs();
        node(&member.identity, member.state, Some(since))
    }));
    json!({
        "configured": true,
        "env": view.env,
        "local": local.node.to_string(),
        "health_score": view.health_score,
        "note": MEMBERSHIP_ONLY,
        "nodes": nodes,
    })
}

fn node(identity: &Identity, state: State, since: Option<u64>) -> Value {
    let about = &identity.about;
    json!({
        "id": identity.node.to_string(),
        "address": identity.address.to_string(),
        "state": state.name(),
        "state_seconds": since,
        "pid": about.pid,
        "version": about.version,
        "protocol": [about.protocol.0, about.protocol.1],
        "failure_domain": about.domain,
        "boot_epoch": format!("{:016x}", identity.epoch),
        "store_epoch": format!("{:016x}", about.store_epoch),
        "generation": identity.generation,
    })
}

const NOT_CONFIGURED: &str = "this node is in no cluster: cluster.discovery is none";
const MEMBERSHIP_ONLY: &str = "membership only: nothing is replicated or relayed between nodes yet";
