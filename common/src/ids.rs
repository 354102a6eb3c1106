//! Identifiers. WAMP ids are integers from 1 to 2^53 (WAMP, basic profile, "IDs").

use rkyv::{Archive, Deserialize, Serialize};
use std::fmt;

/// Largest WAMP id, 2^53.
pub const ID_MAX: u64 = 1 << 53;

/// Most shards one node may have; a [`ShardSet`] is one word of this many bits.
pub const SHARDS_MAX: usize = 128;

/// Most nodes of a cluster, those that are down included.
pub const NODES_MAX: usize = 256;

/// A node of the cluster: the UUID its store got when it was made, in network order.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Archive, Serialize, Deserialize,
)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug))]
pub struct NodeId(pub [u8; 16]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = u128::from_be_bytes(self.0);
        let part = |shift: u32, bits: u32| number >> shift & ((1 << bits) - 1);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            part(96, 32),
            part(80, 16),
            part(64, 16),
            part(48, 16),
            part(0, 48)
        )
    }
}

/// True when `id` may be used as a WAMP id of any scope.
#[inline]
pub const fn is_wamp_id(id: u64) -> bool {
    id >= 1 && id <= ID_MAX
}

/// A realm, named by a hash of its name, so the number is the same on every node.
/// The control plane refuses a realm whose name collides with another's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug))]
pub struct RealmId(pub u64);

impl RealmId {
    /// The id of the realm called `name`: the first eight bytes of its BLAKE3 hash.
    pub fn of(name: &str) -> Self {
        let hash = blake3::hash(name.as_bytes());
        let mut head = [0; 8];
        head.copy_from_slice(&hash.as_bytes()[..8]);
        Self(u64::from_le_bytes(head))
    }
}

/// A shard's index inside its node: 0 for the first configured core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug))]
pub struct ShardId(pub u8);

impl ShardId {
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of shards of one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub struct ShardSet(pub u128);

impl ShardSet {
    pub const EMPTY: Self = Self(0);

    #[inline]
    pub const fn one(shard: ShardId) -> Self {
        Self(1 << shard.0)
    }

    /// The first `count` shards.
    pub const fn first(count: usize) -> Self {
        if count >= SHARDS_MAX { Self(u128::MAX) } else { Self((1 << count) - 1) }
    }

    #[inline]
    pub const fn contains(self, shard: ShardId) -> bool {
        self.0 >> shard.0 & 1 == 1
    }

    #[inline]
    #[must_use]
    pub const fn with(self, shard: ShardId) -> Self {
        Self(self.0 | 1 << shard.0)
    }

    #[inline]
    #[must_use]
    pub const fn without(self, shard: ShardId) -> Self {
        Self(self.0 & !(1 << shard.0))
    }

    #[inline]
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[inline]
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The shards of the set, lowest first.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let shard = rest.trailing_zeros() as u8;
            rest &= rest - 1;
            Some(ShardId(shard))
        })
    }
}

/// The version of a published snapshot; a later one is greater.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Archive, Serialize, Deserialize,
)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug))]
pub struct SnapshotVersion(pub u64);

/// One life of a data-plane process: a random number drawn at its start.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Archive, Serialize, Deserialize,
)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug))]
pub struct BootEpoch(pub u64);

/// What a route is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug))]
#[repr(u8)]
pub enum RouteKind {
    /// Subscriptions: the URI is a topic.
    Topic = 0,
    /// Registrations: the URI is a procedure.
    Procedure = 1,
}

/// The matching policy of a subscription or registration (WAMP, advanced profile, "Pattern-based ...").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug))]
#[repr(u8)]
pub enum Match {
    Exact = 0,
    /// The pattern is a prefix of the string, not of the components.
    Prefix = 1,
    /// An empty component of the pattern matches any one component.
    Wildcard = 2,
}

impl Match {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Prefix => "prefix",
            Self::Wildcard => "wildcard",
        }
    }
}

/// The subscription or registration id of a route: a 53-bit BLAKE3 hash of (realm, kind, match, URI), 1 to 2^53,
/// equal on all nodes.
pub fn route_id(realm: RealmId, kind: RouteKind, policy: Match, uri: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&realm.0.to_le_bytes());
    hasher.update(&[kind as u8, policy as u8]);
    hasher.update(uri.as_bytes());
    let mut head = [0; 8];
    head.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(head) & (ID_MAX - 1)) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_ids_are_wamp_ids_and_depend_on_every_part() {
        let realm = RealmId::of("realm1");
        let id = route_id(realm, RouteKind::Topic, Match::Exact, "a.b");
        assert!(is_wamp_id(id));
        assert_eq!(id, route_id(realm, RouteKind::Topic, Match::Exact, "a.b"));
        assert_ne!(id, route_id(realm, RouteKind::Procedure, Match::Exact, "a.b"));
        assert_ne!(id, route_id(realm, RouteKind::Topic, Match::Prefix, "a.b"));
        assert_ne!(id, route_id(RealmId::of("realm2"), RouteKind::Topic, Match::Exact, "a.b"));
    }

    #[test]
    fn nodes_are_shown_as_uuids() {
        let node = NodeId([0x0f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff]);
        assert_eq!(node.to_string(), "0f010203-0405-0607-0809-0a0b0c0d0eff");
    }

    #[test]
    fn shard_sets_list_their_members_in_order() {
        let set = ShardSet::EMPTY.with(ShardId(5)).with(ShardId(0)).with(ShardId(127));
        assert_eq!(set.iter().collect::<Vec<_>>(), [ShardId(0), ShardId(5), ShardId(127)]);
        assert_eq!(set.without(ShardId(5)).len(), 2);
        assert!(!set.contains(ShardId(1)));
        assert_eq!(ShardSet::first(3), ShardSet(7));
    }
}
