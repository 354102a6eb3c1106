//! Realms at run time: list, put, remove.
//!
//! A put or removal is checked, stored, then put in force; it is answered when every shard of the data plane uses it, so
//! a client can use the realm as soon as the command returns.

use super::pages::{fail, stopping};
use super::{Admin, Peer, guard, read_body, rules};
use crate::catalog::{Entry, RealmError};
use crate::io::driver::{Change, ChangeError};
use crate::store::StoreError;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use common::config::RealmConfig;
use common::history::{History, HistoryError};
use common::ids::{Match, RealmId};
use common::rules::Rules;
use common::snapshot::Anonymous;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::time::timeout;

/// A realm as it is put, without its [`rules`]; what is left out has its default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    degree: Degree,
    uri: Rule,
    anonymous: Who,
    history: Vec<WantedHistory>,
}

/// A topic whose events are kept; what is left out has its default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedHistory {
    uri: String,
    #[serde(rename = "match", default)]
    policy: Policy,
    events_max: Option<u32>,
    bytes_max: Option<u64>,
    age_max_ms: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Policy {
    #[default]
    Exact,
    Prefix,
    Wildcard,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Degree {
    Compatible,
    Strict,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Rule {
    Loose,
    Strict,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Who {
    Nobody,
    Loopback,
    Anybody,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { degree: Degree::Compatible, uri: Rule::Loose, anonymous: Who::Loopback, history: Vec::new() }
    }
}

pub async fn list(State(admin): State<Admin>) -> Response {
    let realms = admin.handle.view(|view| {
        let sessions = view.node.registry().sessions_by_realm();
        let realm = |entry: &Entry| show(entry, sessions.get(&RealmId::of(&entry.config.name)).copied());
        view.node.catalog().iter().map(realm).collect::<Vec<_>>()
    });
    match realms.await {
        Some(realms) => Json(json!({ "realms": realms })).into_response(),
        None => stopping(),
    }
}

pub async fn put(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if let Err(refusal) = guard::check_change(&admin.facts, peer, &headers) {
        return fail(StatusCode::FORBIDDEN, &refusal.to_string());
    }
    let (wanted, rules) = match read(body).await {
        Ok(read) => read,
        Err(response) => return response,
    };
    let config = match wanted.realm(name) {
        Ok(config) => RealmConfig { rules, ..config },
        Err(error) => return fail(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let name = config.name.clone();
    let change = admin.handle.realm_put(config).await;
    in_force(&name, change).await
}

pub async fn remove(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Err(refusal) = guard::check_change(&admin.facts, peer, &headers) {
        return fail(StatusCode::FORBIDDEN, &refusal.to_string());
    }
    let change = admin.handle.realm_remove(name.clone()).await;
    in_force(&name, change).await
}

/// A realm as JSON.
pub fn show(entry: &Entry, sessions: Option<u64>) -> Value {
    let mut shown = show_wanted(&entry.config);
    shown.insert("name".to_owned(), json!(entry.config.name));
    shown.insert("origin".to_owned(), json!(entry.origin.name()));
    shown.insert("sessions".to_owned(), json!(sessions.unwrap_or(0)));
    Value::Object(shown)
}

/// A realm without its name as JSON, as it is put.
pub fn show_wanted(realm: &RealmConfig) -> Map<String, Value> {
    let degree = if realm.strict { "strict" } else { "compatible" };
    let uri = if realm.uri_strict { "strict" } else { "loose" };
    let anonymous = match realm.anonymous {
        Anonymous::Nobody => "nobody",
        Anonymous::Loopback => "loopback",
        Anonymous::Anybody => "anybody",
    };
    let history = realm.histories.iter().map(show_history).collect();
    let values = [
        ("degree", json!(degree)),
        ("uri", json!(uri)),
        ("anonymous", json!(anonymous)),
        ("history", history),
    ];
    let mut shown: Map<_, _> = values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    rules::show(&realm.rules, &mut shown);
    shown
}

/// A history as JSON, as it is put.
fn show_history(history: &History) -> Value {
    json!({
        "uri": history.uri,
        "match": history.policy.name(),
        "events_max": history.events_max,
        "bytes_max": history.bytes_max,
        "age_max_ms": history.age_max_ms,
    })
}

impl WantedHistory {
    fn history(self) -> History {
        let policy = match self.policy {
            Policy::Exact => Match::Exact,
            Policy::Prefix => Match::Prefix,
            Policy::Wildcard => Match::Wildcard,
        };
        let default = History::of(policy, &self.uri);
        History {
            events_max: self.events_max.unwrap_or(default.events_max),
            bytes_max: self.bytes_max.unwrap_or(default.bytes_max),
            age_max_ms: self.age_max_ms.unwrap_or(default.age_max_ms),
            ..default
        }
    }
}

impl Wanted {
    fn realm(self, name: String) -> Result<RealmConfig, HistoryError> {
        let mut histories: Vec<_> = self.history.into_iter().map(WantedHistory::history).collect();
        History::check_all(&mut histories)?;
        Ok(RealmConfig {
            strict: matches!(self.degree, Degree::Strict),
            uri_strict: matches!(self.uri, Rule::Strict),
            anonymous: match self.anonymous {
                Who::Nobody => Anonymous::Nobody,
                Who::Loopback => Anonymous::Loopback,
                Who::Anybody => Anonymous::Anybody,
            },
            histories,
            ..RealmConfig::named(&name)
        })
    }
}

/// An empty body asks for the defaults.
async fn read(body: Body) -> Result<(Wanted, Rules), Response> {
    let bytes = read_body(body).await?;
    if bytes.is_empty() {
        return Ok(Default::default());
    }
    let bad = |error: String| fail(StatusCode::BAD_REQUEST, &format!("the body: {error}"));
    let mut given: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let rules = rules::take(&mut given).map_err(bad)?;
    check_keys(&given).map_err(bad)?;
    let wanted = serde_json::from_value(given.into()).map_err(|error| bad(error.to_string()))?;
    Ok((wanted, rules))
}

/// Keys of [`Wanted`].
const KEYS: [&str; 4] = ["degree", "uri", "anonymous", "history"];

/// What is left when the keys of rules are taken out has the other keys only. The error names all there are.
fn check_keys(left: &Map<String, Value>) -> Result<(), String> {
    let Some(key) = left.keys().find(|key| !KEYS.contains(&key.as_str())) else { return Ok(()) };
    let known: Vec<&str> = KEYS.into_iter().chain(rules::keys()).collect();
    Err(format!("{key:?} is no key of a realm; there are {}", known.join(", ")))
}

/// Waits until all shards use the change, for a while.
async fn in_force(name: &str, change: Option<Result<Change, ChangeError>>) -> Response {
    let change = match change {
        Some(Ok(change)) => change,
        Some(Err(ChangeError::Realm(error))) => return refused(&error),
        Some(Err(ChangeError::Store(error))) => return not_stored(&error),
        None => return stopping(),
    };
    let note = match change.taken {
        None => Some("stored; no data plane is linked, the next one will use it"),
        Some(taken) => match timeout(TAKEN_MAX, taken).await {
            Ok(Ok(())) => None,
            Ok(Err(_)) => return stopping(),
            Err(_) => Some("stored; the data plane has not confirmed it yet"),
        },
    };
    Json(json!({ "name": name, "stored": true, "in_force": note.is_none(), "note": note })).into_response()
}

fn refused(error: &RealmError) -> Response {
    let status = match error {
        RealmError::Name { .. } | RealmError::Reserved { .. } | RealmError::History(_) => {
            StatusCode::BAD_REQUEST
        }
        RealmError::Unknown { .. } => StatusCode::NOT_FOUND,
        RealmError::Configured { .. } | RealmError::Collision { .. } | RealmError::Full { .. } => {
            StatusCode::CONFLICT
        }
    };
    fail(status, &error.to_string())
}

fn not_stored(error: &StoreError) -> Response {
    let status = match error {
        StoreError::Full { .. } | StoreError::Graves => StatusCode::INSUFFICIENT_STORAGE,
        StoreError::Object(_) | StoreError::Future(_) => StatusCode::BAD_REQUEST,
        StoreError::Poisoned | StoreError::Busy | StoreError::Read(_) | StoreError::Closed => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    fail(status, &error.to_string())
}

/// How long a change of realms waits for the data plane.
const TAKEN_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_none_is_answered_with_all_there_are() {
        let left = |text: &str| serde_json::from_str::<Map<String, Value>>(text).expect("an object");
        assert_eq!(check_keys(&left(r#"{"degree": "strict", "history": []}"#)), Ok(()));
        let error = check_keys(&left(r#"{"feature_off": []}"#)).unwrap_err();
        let all = KEYS.into_iter().chain(rules::keys());
        for known in ["\"feature_off\" is no key"].into_iter().chain(all) {
            assert!(error.contains(known), "{known}: {error}");
        }
        for key in KEYS {
            let wanted = json!({ key: null });
            let error = serde_json::from_value::<Wanted>(wanted).map(|_| ()).unwrap_err().to_string();
            assert!(!error.contains("unknown field"), "{error}");
        }
    }
}
