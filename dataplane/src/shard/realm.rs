//! A realm as one shard sees it.

use super::overlay::Overlay;
use crate::mesh::Owner;
use common::ids::{Match, RealmId, ShardId, ShardSet};
use common::pattern::PatternMap;
use common::snapshot::Anonymous;
use common::uri::UriRule;

/// What the control plane says of a realm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Settings {
    pub name: Box<str>,
    pub strict: bool,
    pub uri_rule: UriRule,
    pub anonymous: Anonymous,
}

/// A realm's state in this shard.
#[derive(Debug)]
pub(super) struct Realm {
    pub id: RealmId,
    /// `None`: not (or no longer) a realm sessions may join; other shards' routes may already be here.
    pub settings: Option<Settings>,
    /// Grows with every change that can change many answers of the route cache; see `Shard::routes_version`.
    pub version: u64,
    /// Topics this shard's sessions are subscribed to, as indexes of the shard's topic table.
    pub topics: PatternMap<u32>,
    /// Procedures this shard's sessions have registered.
    pub procedures: PatternMap<u32>,
    pub overlay: Overlay,
    /// Registrations this shard is the home of, and which shard holds each.
    pub home: PatternMap<ShardId>,
    pub sessions: u32,
}

impl Realm {
    pub fn new(id: RealmId) -> Self {
        Self {
            id,
            settings: None,
            version: 1,
            topics: PatternMap::default(),
            procedures: PatternMap::default(),
            overlay: Overlay::default(),
            home: PatternMap::default(),
            sessions: 0,
        }
    }
}

/// A subscription or registration on its way to being known by every shard.
#[derive(Debug)]
pub(super) struct Spread {
    /// Shards that have not yet said that they route here; empty: all do.
    pub missing: ShardSet,
    /// Names this spread in `RouteAck`.
    pub token: u64,
    /// Requests to answer when the spread is complete.
    pub waiting: Vec<Waiting>,
}

/// A SUBSCRIBE or REGISTER that waits to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub owner: Owner,
    pub request: u64,
}

/// A subscription: everyone on this shard who wants one (realm, policy, URI).
#[derive(Debug)]
pub(super) struct Topic {
    pub id: u64,
    pub realm: u32,
    pub policy: Match,
    pub uri: Box<str>,
    /// Slots of the subscribed connections.
    pub subscribers: Vec<u32>,
    pub spread: Spread,
}

/// A registration held on this shard.
#[derive(Debug)]
pub(super) struct Procedure {
    pub id: u64,
    pub realm: u32,
    pub policy: Match,
    pub uri: Box<str>,
    /// Slot of the callee.
    pub callee: u32,
    pub options: super::options::RegisterOptions,
    pub spread: Spread,
    /// Calls that came before REGISTERED could be sent.
    pub held: Vec<super::dealer::HeldCall>,
}
