//! The immutable routing table that the control plane publishes: built here, checked here, read here.
//!
//! ```text
//! Source ─ build ─▶ bytes ─ memfd, mmap ─▶ check ─▶ Snapshot ─ lookup ─▶ routes
//! ```
//! Invariants: equal sources and seeds give equal bytes; nothing is read from bytes that `check` has not accepted;
//! look-ups allocate nothing and take time independent of the number of routes (exact), or in proportion to the
//! URI's length and the patterns that match (prefix, wildcard).

use crate::ids::{BootEpoch, Match, RealmId, RouteKind, ShardSet, SnapshotVersion};
use rkyv::{Archive, Deserialize, Serialize};
use std::ops::Deref;

/// Who may join a realm without credentials.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
#[repr(u8)]
pub enum Anonymous {
    Nobody = 0,
    /// Only peers whose address is a loopback address (or a Unix socket).
    Loopback = 1,
    Anybody = 2,
}

/// One realm as the shards need it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub struct Realm {
    pub id: RealmId,
    pub name: String,
    /// All of the specification's rules are enforced; otherwise what real clients send is accepted.
    pub strict: bool,
    /// The strict URI rule instead of the loose one.
    pub uri_strict: bool,
    pub anonymous: Anonymous,
}

/// One route of this node: which of its shards want (realm, kind, policy, URI).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Route {
    pub realm: RealmId,
    pub kind: RouteKind,
    pub policy: Match,
    pub uri: String,
    pub shards: u128,
}

/// What a snapshot is built from. `build` sorts, so the order of `realms` and `routes` is of no matter; two entries of
/// one key are an error of the caller (asserted).
#[derive(Clone, Default, Debug)]
pub struct Source {
    pub version: SnapshotVersion,
    /// The data-plane process whose claims are folded in.
    pub epoch: BootEpoch,
    /// For each shard of that process, the sequence number of the last claim that is folded in.
    pub claims_folded: Vec<u64>,
    pub realms: Vec<Realm>,
    pub routes: Vec<Route>,
}

/// A change of realms between two snapshots; travels in a link frame.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Delta {
    pub version: SnapshotVersion,
    /// The version this follows; a receiver at another version must wait for a full snapshot.
    pub follows: SnapshotVersion,
    pub realms_put: Vec<Realm>,
    pub realms_removed: Vec<RealmId>,
}

/// Why bytes are not a snapshot. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("layout {found}, this build reads {expected}")]
    Layout { found: u32, expected: u32 },
    #[error("not a valid snapshot: {0}")]
    Invalid(String),
}

/// The bytes of a snapshot of `source`; `seed` keys the hashes of its indexes.
pub fn build(source: &Source, seed: u64) -> rkyv::util::AlignedVec<16> {
    let _ = (source, seed);
    unimplemented!()
}

/// A checked snapshot over bytes that never change (a sealed, private-read mapping, or a buffer).
#[derive(Debug)]
pub struct Snapshot<B> {
    bytes: B,
}

/// A realm inside a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RealmView<'a> {
    pub id: RealmId,
    pub name: &'a str,
    pub strict: bool,
    pub uri_strict: bool,
    pub anonymous: Anonymous,
}

/// A route inside a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteView<'a> {
    pub policy: Match,
    pub uri: &'a str,
    pub shards: ShardSet,
}

impl<B: Deref<Target = [u8]>> Snapshot<B> {
    /// The one door to a snapshot: proves layout, offsets, order, and that the indexes agree with the entries.
    ///
    /// `bytes` must be 16-byte aligned and must not change as long as the snapshot lives.
    pub fn check(bytes: B) -> Result<Self, SnapshotError> {
        let _ = &bytes;
        unimplemented!()
    }

    pub fn version(&self) -> SnapshotVersion {
        let _ = &self.bytes;
        unimplemented!()
    }

    pub fn epoch(&self) -> BootEpoch {
        unimplemented!()
    }

    /// See [`Source::claims_folded`]; 0 for shards it does not name.
    pub fn claims_folded(&self, shard: usize) -> u64 {
        let _ = shard;
        unimplemented!()
    }

    pub fn realms(&self) -> impl Iterator<Item = RealmView<'_>> {
        std::iter::empty()
    }

    pub fn realm(&self, id: RealmId) -> Option<RealmView<'_>> {
        let _ = id;
        unimplemented!()
    }

    /// Routes of every kind, in an unspecified order.
    pub fn routes_len(&self) -> usize {
        unimplemented!()
    }

    pub fn exact(&self, realm: RealmId, kind: RouteKind, uri: &str) -> Option<RouteView<'_>> {
        let _ = (realm, kind, uri);
        unimplemented!()
    }

    /// The route of exactly this policy and pattern.
    pub fn get(&self, realm: RealmId, kind: RouteKind, policy: Match, uri: &str) -> Option<RouteView<'_>> {
        let _ = (realm, kind, policy, uri);
        unimplemented!()
    }

    /// As [`crate::pattern::PatternMap::for_each_match`].
    pub fn for_each_match<'a>(
        &'a self,
        realm: RealmId,
        kind: RouteKind,
        uri: &str,
        found: impl FnMut(RouteView<'a>),
    ) {
        let _ = (realm, kind, uri, found);
        unimplemented!()
    }
}
