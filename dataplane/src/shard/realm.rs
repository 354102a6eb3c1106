//! A realm as one shard sees it.

use super::members::Members;
use super::overlay::Overlay;
use super::rules::RealmRules;
use super::sharded::Keys;
use crate::mesh::Owner;
use common::history::History;
use common::ids::{Match, RealmId, RouteKind, ShardSet};
use common::link::Claim;
use common::pattern::PatternMap;
use common::share::Share;
use common::snapshot::Anonymous;
use common::uri::UriRule;

/// What the control plane says of a realm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Settings {
    pub name: Box<str>,
    pub strict: bool,
    pub uri_rule: UriRule,
    pub anonymous: Anonymous,
    pub histories: Vec<History>,
}

/// A realm's state in this shard.
#[derive(Debug)]
pub(super) struct Realm {
    pub id: RealmId,
    /// `None`: not (or no longer) a realm sessions may join; other shards' routes may already be here.
    pub settings: Option<Settings>,
    pub rules: RealmRules,
    /// Grows with every change that can change many answers of the route cache; see `Shard::routes_version`.
    pub version: u64,
    /// Topics this shard's sessions are subscribed to, as indexes of the shard's topic table.
    pub topics: PatternMap<u32>,
    /// Those of them whose history this shard keeps; see `history`.
    pub kept: Vec<u32>,
    /// Procedures whose calls come to this shard.
    pub procedures: PatternMap<Local>,
    pub overlay: Overlay,
    /// Registrations this shard is the home of, and who holds each.
    pub home: PatternMap<Home>,
    pub sessions: u32,
}

impl Realm {
    pub fn new(id: RealmId) -> Self {
        Self {
            id,
            settings: None,
            rules: RealmRules::default(),
            version: 1,
            topics: PatternMap::default(),
            kept: Vec::new(),
            procedures: PatternMap::default(),
            overlay: Overlay::default(),
            home: PatternMap::default(),
            sessions: 0,
        }
    }
}

/// Who takes the calls of a procedure that come to this shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Local {
    /// The one callee, by index of the shard's procedures.
    Callee(u32),
    /// One of several, by index of the shard's groups: this shard is its home.
    Group(u32),
}

/// Who holds a registration, as its home shard knows it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Home {
    /// One callee, to which calls go directly.
    Callee { owner: Owner, grant: u64 },
    /// By index of the shard's groups.
    Group(u32),
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
    /// Milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// Nobody elsewhere was known to have it when it began here.
    pub is_first: bool,
    /// This shard keeps its history, and so holds it without subscribers.
    pub kept: bool,
    /// Of subscribers that share its events by resource keys.
    pub keys: Keys,
    /// Slots of the subscribed connections.
    pub subscribers: Vec<u32>,
    pub spread: Spread,
}

/// A registration held by a session of this shard.
#[derive(Debug)]
pub(super) struct Procedure {
    pub id: u64,
    pub realm: u32,
    pub policy: Match,
    pub uri: Box<str>,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// Nobody held it before, as far as its home shard knows.
    pub is_first: bool,
    /// Slot of the callee.
    pub callee: u32,
    pub options: super::options::RegisterOptions,
    /// The number under which its home shard gave it.
    pub grant: u64,
    /// An INVOCATION has details whatever the call asks for.
    pub detailed: bool,
    /// Complete from the start when the home shard passes the calls on.
    pub spread: Spread,
    /// Calls that came before REGISTERED could be sent.
    pub held: Vec<super::dealer::HeldCall>,
}

impl Procedure {
    /// What the control plane is told of a callee that is called directly.
    pub fn claim(&self, realm: RealmId) -> Claim {
        let (policy, uri) = (self.policy, self.uri.to_string());
        if !self.options.wish.force {
            return Claim::Routed { realm, kind: RouteKind::Procedure, policy, uri };
        }
        let share = Share { forced: true, first: self.grant, last: self.grant, ..Share::SINGLE };
        Claim::Shared { realm, policy, uri, share }
    }

    /// Calls come by way of the home shard, which chooses the callee and counts.
    pub fn is_shared(&self) -> bool {
        !self.options.wish.is_direct()
    }
}

/// A registration whose calls its home shard, this one, passes to one of its callees in the node.
#[derive(Debug)]
pub(super) struct Group {
    pub id: u64,
    pub realm: u32,
    pub policy: Match,
    pub uri: Box<str>,
    pub members: Members,
    /// It took the place of all who held the registration before.
    pub forced: bool,
    /// No other node had callees when it was made.
    pub is_first: bool,
    /// Callees of this node are called while one is free.
    pub prefer_local: bool,
    pub spread: Spread,
    /// Members that are told when every shard routes here.
    pub asked: Vec<(Asker, u64)>,
    /// Calls that came before that.
    pub held: Vec<super::dealer::HeldCall>,
}

impl Group {
    /// What other nodes are told.
    pub fn share(&self) -> Share {
        let (first, last) = self.members.span();
        let callees = self.members.len() as u32;
        Share { invoke: self.members.invoke, forced: self.forced, callees, first, last }
    }
}

/// Who asked for a registration: a shard, and its name for the question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asker {
    pub shard: common::ids::ShardId,
    pub token: u64,
}
