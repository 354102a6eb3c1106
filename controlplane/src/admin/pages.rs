//! The pages that only look.

use super::{Admin, Facts, metrics};
use crate::io::driver::View;
use crate::io::proc;
use crate::node::DataPlane;
use crate::store::Store;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use common::ids::RealmId;
use common::metrics::Gauge;
use serde_json::{Value, json};
use std::sync::atomic::Ordering::Relaxed;

pub async fn index() -> &'static str {
    "Signalbox. See /ping, /ready, /metrics, /status, /realms and /cluster.\n"
}

pub async fn ping() -> &'static str {
    "pong"
}

pub async fn not_found() -> Response {
    fail(
        StatusCode::NOT_FOUND,
        "there is no such page; see /ping, /ready, /metrics, /status, /realms and /cluster",
    )
}

/// 200 while clients are served, 503 with the reason while they are not.
pub async fn ready(State(admin): State<Admin>) -> Response {
    match admin.handle.view(|view| view.plane.ready()).await {
        Some(Ok(())) => "ready\n".into_response(),
        Some(Err(reason)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
        None => stopping(),
    }
}

pub async fn metrics(State(admin): State<Admin>) -> Response {
    let (store, facts) = (admin.store.clone(), admin.facts.clone());
    let cluster = match &admin.cluster {
        Some(cluster) => cluster.view().await,
        None => None,
    };
    let text = admin.handle.view(move |view| metrics::render(view, &store, &facts, cluster.as_ref())).await;
    match text {
        Some(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        None => stopping(),
    }
}

pub async fn status(State(admin): State<Admin>) -> Response {
    let (store, facts) = (admin.store.clone(), admin.facts.clone());
    match admin.handle.view(move |view| render(view, &store, &facts)).await {
        Some(status) => Json(status).into_response(),
        None => stopping(),
    }
}

/// An error as JSON.
pub fn fail(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

pub fn stopping() -> Response {
    fail(StatusCode::SERVICE_UNAVAILABLE, "the control plane is stopping")
}

fn render(view: &View<'_>, store: &Store, facts: &Facts) -> Value {
    let node = view.node;
    let registry = node.registry();
    let publisher = node.publisher();
    let counts = publisher.counts();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": view.plane.ready().is_ok(),
        "not_ready_because": view.plane.ready().err().map(|reason| reason.to_string()),
        "uptime_seconds": view.now.saturating_duration_since(facts.started).as_secs(),
        "data_dir": facts.data_dir,
        "control_plane": {
            "pid": facts.pid,
            "cpus": facts.control_cpus,
            "supervises": facts.supervise,
            "memory_bytes": proc::memory_bytes(facts.pid),
            "admin": facts.address.to_string(),
        },
        "data_plane": node.data_plane().map(|data| data_plane(view, data)),
        "realms": realms(view),
        "realms_total": node.catalog().len(),
        "sessions": registry.sessions_len(),
        "routes": registry.routes_len(),
        "claims": {
            "epoch": registry.epoch().map(|epoch| format!("{:016x}", epoch.0)),
            "folded": registry.claims_folded(),
            "settled": registry.is_settled(),
            "received": registry.counts().claims,
            "resyncs": registry.counts().resyncs,
        },
        "snapshot": {
            "version": publisher.last().0,
            "taken": publisher.taken_version().map(|version| version.0),
            "full": counts.full,
            "deltas": counts.deltas,
            "refused": counts.refused,
            "bytes": view.builds.bytes_last,
            "build_seconds": view.builds.time_last.as_secs_f64(),
        },
        "store": store_status(store),
    })
}

fn data_plane(view: &View<'_>, data: &DataPlane) -> Value {
    let gauge = |gauge: Gauge| -> Vec<_> {
        let values = data.stats.iter().flatten();
        values.map(|stats| stats.gauges.get(gauge as usize).copied().unwrap_or(0)).collect()
    };
    json!({
        "pid": data.pid,
        "version": data.version,
        "epoch": format!("{:016x}", data.epoch.0),
        "linked_seconds": view.now.saturating_duration_since(data.linked_at).as_secs(),
        "draining": data.draining,
        "memory_bytes": proc::memory_bytes(data.pid),
        "listeners": data.listeners.iter()
            .map(|(transport, address)| json!({ "transport": transport, "address": address }))
            .collect::<Vec<_>>(),
        "shards": data.shards,
        "cpus": data.stats.iter().map(|stats| stats.as_ref().map(|stats| stats.cpu)).collect::<Vec<_>>(),
        "connections": gauge(Gauge::Connections).iter().sum::<u64>(),
        "sessions": gauge(Gauge::Sessions),
        "queued_bytes": gauge(Gauge::QueuedBytes).iter().sum::<u64>(),
    })
}

fn realms(view: &View<'_>) -> Vec<Value> {
    let sessions = view.node.registry().sessions_by_realm();
    view.node
        .catalog()
        .iter()
        .take(REALMS_SHOWN_MAX)
        .map(|entry| super::realms::show(entry, sessions.get(&RealmId::of(&entry.config.name)).copied()))
        .collect()
}

fn store_status(store: &Store) -> Value {
    let stats = store.stats();
    json!({
        "node": uuid::Uuid::from_bytes(store.actor().node).to_string(),
        "epoch": format!("{:016x}", store.actor().epoch),
        "poisoned": stats.poisoned.load(Relaxed),
        "commits": stats.commits.load(Relaxed),
        "corrupt_records": stats.corrupt.load(Relaxed),
        "map_bytes": stats.map_bytes.load(Relaxed),
        "used_bytes": stats.used_bytes.load(Relaxed),
    })
}

/// Realms listed in `/status`; `/realms` lists all.
const REALMS_SHOWN_MAX: usize = 1_000;
