//! What makes a control plane a member of the cluster: the machine that composes membership, links to peers, broadcast,
//! claims, exchanges and the store. Sans-IO.
//!
//! ```text
//! members, peer up/down, frames ─▶┐                      ┌─▶ frames to peers
//! puts, what the store answered ──▶ machine ─────────────┼─▶ work for the store ─▶ (stored)
//! this node's routes ────────────▶┘  ├ broadcast         └─▶ realms, routes, peers, revocations for the node
//!                                    ├ claims
//!                                    ├ exchanges: with whom and when
//!                                    └ joining: from the start to ready
//! ```
//! Invariants: nothing is broadcast or told to the node before the store has it; what the store answers is taken in the
//! order in which it was asked; at most one exchange of ours and [`INBOUND_MAX`] of others' run at a time; work that waits for
//! the store is bounded by [`STORE_TASKS_MAX`]; every wait has an end that is named here.

mod budget;
mod exchanges;
mod joining;
mod machine;
mod members;
mod plane;
mod status;
mod task;

#[cfg(test)]
mod tests;

pub use exchanges::{Abort, Exchanges};
pub use joining::{Joining, Waiting};
pub use machine::{Machine, Notice, Output as MachineOutput, Settings};
pub use plane::{NotReady, Output, Plane, RELAY, RelayAddress};
pub use status::{
    BroadcastStatus, ClaimsStatus, ClusterStatus, ExchangeStatus, LinkStatus, MemberStatus, ObjectsStatus,
    Readiness,
};
pub use task::{StoreDone, StoreTask, Token};

use std::time::Duration;

/// Exchanges of others that are answered at a time.
pub const INBOUND_MAX: usize = 2;
/// Messages of exchanges that wait for their turn under `aae.exchange_rate`; one more is answered with busy, and so is what would
/// wait for longer than half of what its asker waits.
pub const HELD_MAX: usize = 2 * INBOUND_MAX;
pub const HELD_TIME_MAX: Duration = Duration::from_millis(2_500);
/// Work for the store that may wait; beyond it broadcasts are dropped and owed, and exchanges answered with busy.
pub const STORE_TASKS_MAX: usize = 1_024;
/// A node that joins asks at once; others compare notes with a peer that has come up this much later, give or take a half.
pub const GREET_DELAY: Duration = Duration::from_millis(1_000);
/// After an exchange that broke off it is tried again this much later, give or take a half; each further time twice as much,
/// up to `aae.exchange_timer`.
pub const RETRY_MIN: Duration = Duration::from_millis(250);
/// A joining node does not wait longer than this for a link to a member that is said to live.
pub const LINK_WAIT_MAX: Duration = Duration::from_secs(10);
/// A joining node does not wait longer than this in all, once it knows of a member.
pub const JOIN_MAX: Duration = Duration::from_secs(60);
/// A data plane whose link broke may come back within this; then its claims end.
pub const DATA_PLANE_GRACE: Duration = Duration::from_secs(2);
/// How often the store does its regular work: settles values that compete, moves the floor of deletions on.
pub const UPKEEP_PERIOD: Duration = Duration::from_secs(1);
