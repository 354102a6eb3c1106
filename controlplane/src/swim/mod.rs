//! Membership: which nodes there are and which of them live. SWIM by the `foca` crate, with what it lacks.
//!
//! ```text
//! datagram ─▶ seal (key, env, version) ─▶ replay ─▶ machine: filter ─▶ foca ─▶ sends, timers ─▶ seal ─▶ datagram
//! link ─────┘                                          └─▶ changes of members    late pings ─▶ seal ─▶ link
//! ```
//! Ours: packets sealed and counted once; a local health score that slows probing down; timers that stand still while the
//! process does; a suspect is told so with the next packet to it; late pings are repeated over TCP; good-byes that read as left and not as down; seeds that
//! are asked as long as the node is alone. Everything is sans-IO: datagrams, timers and `now` go in.
//!
//! Invariants: nothing of a packet is looked at before it is authenticated; members, timers and windows are bounded by
//! [`MEMBERS_MAX`]; what we know of ourselves comes from no other node.

pub mod changes;
mod fallback;
pub mod health;
pub mod identity;
pub mod machine;
mod replay;
pub mod seal;
pub mod settings;
mod timers;

#[cfg(test)]
mod tests;

pub use changes::{News, View};
pub use machine::{Counts, ForgetError, Output, Swim};
pub use settings::Settings;

use identity::Identity;
use std::time::Instant;

/// How a node is seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum State {
    Alive,
    /// It did not answer; it has some time to object.
    Suspect,
    Down,
    /// It said good-bye.
    Left,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct Member {
    pub identity: Identity,
    pub state: State,
    /// When the state or the identity changed last.
    pub since: Instant,
}

/// A member that is new or has changed.
#[derive(Clone, Debug)]
pub struct Change {
    pub member: Member,
    /// None: it was not known.
    pub before: Option<State>,
    /// It was started again or has come back under a new identity.
    pub renewed: bool,
}

/// Why a packet was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// It is no packet of a Signalbox node.
    Foreign,
    Version,
    Env,
    Key,
    Malformed,
    Replayed,
    /// The sender speaks no protocol version that we speak.
    Incompatible,
    /// It came from ourselves, or from a copy of our data folder.
    Own,
    /// There are [`MEMBERS_MAX`] members.
    Full,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Alive, Self::Suspect, Self::Down, Self::Left];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        }
    }
}

impl DropReason {
    pub const ALL: [Self; 9] = [
        Self::Foreign,
        Self::Version,
        Self::Env,
        Self::Key,
        Self::Malformed,
        Self::Replayed,
        Self::Incompatible,
        Self::Own,
        Self::Full,
    ];

    /// The label of the metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Version => "version",
            Self::Env => "env",
            Self::Key => "key",
            Self::Malformed => "malformed",
            Self::Replayed => "replayed",
            Self::Incompatible => "incompatible",
            Self::Own => "own",
            Self::Full => "full",
        }
    }

    /// What happened and what to do, for the log.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Foreign => "it is no packet of a Signalbox node; keep strangers away from cluster.address",
            Self::Version => "its packet version is not ours; run versions of Signalbox that go together",
            Self::Env => "it belongs to another cluster.env; set the same env on all nodes of a cluster",
            Self::Key => "no key opens it; put the same keys into cluster.key_file on all nodes",
            Self::Malformed => "its content makes no sense; is a node of the cluster damaged?",
            Self::Replayed => "it was seen before or is too old; somebody may be sending recorded packets",
            Self::Incompatible => {
                "it speaks no protocol version that this node speaks; upgrade the older one"
            }
            Self::Own => "it has our own node id; a data folder must not be used by two nodes",
            Self::Full => "there are too many members; forget nodes that are gone for good",
        }
    }
}

/// Most nodes known at a time, those that are down included.
pub const MEMBERS_MAX: usize = 256;
/// The protocol versions this build speaks, least and greatest.
pub const PROTOCOL: (u16, u16) = (1, 1);
