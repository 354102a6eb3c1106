//! The meta API: procedures the router itself answers, events it publishes of sessions, subscriptions and registrations, and
//! testaments (WAMP, advanced profile).
//!
//! ```text
//! CALL wamp.… ─▶ procedures ─▶ gather ─▶ look (here, other shards, other nodes) ─▶ RESULT
//! join, subscribe, register and their ends ─▶ events ─▶ as any other publication
//! ```
//! A question is answered by those who hold what it is about, so there is no table of all sessions that could be stale.

mod events;
mod gather;
mod history;
mod ids;
mod look;
mod procedures;
mod query;
mod searches;
mod testaments;

pub(super) use events::ROUTERS;
pub(super) use gather::{Asker, Asks};
pub(super) use ids::Ids;
pub(super) use query::Part;
pub(super) use searches::Searches;
pub(super) use testaments::Testaments;
