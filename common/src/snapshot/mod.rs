//! The immutable routing table that the control plane publishes: built here, checked here, read here.
//!
//! ```text
//! Source ─ build ─▶ bytes ─ memfd, mmap ─▶ check ─▶ Snapshot ─ lookup ─▶ routes
//! ```
//! Invariants: equal sources and seeds give equal bytes; nothing is read from bytes that `check` has not accepted;
//! look-ups allocate nothing, and cost what [`crate::pattern`] says, however many routes there are.

use crate::history::History;
use crate::ids::{BootEpoch, Match, NODES_MAX, NodeId, RealmId, RouteKind, ShardSet, SnapshotVersion};
use crate::share::Share;
use rkyv::{Archive, Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;

const _: () = assert!(NODES_MAX <= u16::MAX as usize);

mod build;
mod check;
mod layout;
mod lookup;

pub use build::{RouteRef, build, build_sorted};

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
    /// Packed [`crate::rules::Rules`].
    pub rules: Vec<u8>,
    /// Topics whose events are kept; `History::check_all` has put them in order.
    pub histories: Vec<History>,
}

impl Realm {
    /// A compatible one without rules and histories.
    pub fn new(name: &str, anonymous: Anonymous) -> Self {
        let (rules, histories) = (vec![], vec![]);
        Self {
            id: RealmId::of(name),
            name: name.to_owned(),
            strict: false,
            uri_strict: false,
            anonymous,
            rules,
            histories,
        }
    }

    pub fn view(&self) -> RealmView<'_> {
        let Self { id, strict, uri_strict, anonymous, .. } = *self;
        RealmView { id, name: &self.name, strict, uri_strict, anonymous, rules: &self.rules }
    }
}

/// One route: which shards of this node, and which other nodes, want (realm, kind, policy, URI).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Route {
    pub realm: RealmId,
    pub kind: RouteKind,
    pub policy: Match,
    pub uri: String,
    pub shards: u128,
    /// Ascending.
    pub nodes: Vec<NodeId>,
}

/// What another node says of its callees that share a procedure.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeShare {
    pub realm: RealmId,
    pub policy: Match,
    pub uri: std::sync::Arc<str>,
    pub node: NodeId,
    pub share: Share,
}

/// What a snapshot is built from. `build` sorts, so the order of `realms` and `routes` is of no matter; two entries of
/// one key are an error of the caller (asserted).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Source {
    pub version: SnapshotVersion,
    /// The data-plane process whose claims are folded in.
    pub epoch: BootEpoch,
    /// For each shard of that process, the sequence number of the last claim that is folded in.
    pub claims_folded: Vec<u64>,
    /// The number of the last change of other nodes' routes ([`crate::link::Down::Routes`]) that is folded in.
    pub nodes_folded: u64,
    pub realms: Vec<Realm>,
    pub routes: Vec<Route>,
    /// Of procedures among the routes and nodes that want them; others are left out.
    pub shares: Vec<NodeShare>,
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

/// A checked snapshot over bytes that never change (a sealed, private-read mapping, or a buffer).
pub struct Snapshot<B> {
    bytes: B,
    /// Address and length of the slice that was checked.
    proven: (usize, usize),
}

/// A realm inside a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RealmView<'a> {
    pub id: RealmId,
    pub name: &'a str,
    pub strict: bool,
    pub uri_strict: bool,
    pub anonymous: Anonymous,
    /// Packed [`crate::rules::Rules`].
    pub rules: &'a [u8],
}

/// A route inside a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteView<'a> {
    pub policy: Match,
    pub uri: &'a str,
    pub shards: ShardSet,
    /// The other nodes that want it.
    pub nodes: NodeList<'a>,
}

/// Other nodes that want a route, as indexes into [`Snapshot::nodes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeList<'a>(&'a [rkyv::Archived<u16>]);

impl<'a> NodeList<'a> {
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Ascending.
    #[inline]
    pub fn iter(self) -> impl ExactSizeIterator<Item = u16> + 'a {
        self.0.iter().map(|index| index.to_native())
    }
}

impl<B: Deref<Target = [u8]>> Snapshot<B> {
    /// The one door to a snapshot: proves layout, offsets, order, and that the indexes agree with the entries. Takes
    /// time in proportion to the bytes.
    ///
    /// `bytes` must be 16-byte aligned, must lie in one place however `B` is moved, and must not change as long as the
    /// snapshot lives.
    pub fn check(bytes: B) -> Result<Self, SnapshotError> {
        let slice: &[u8] = &bytes;
        check::check(slice)?;
        let proven = (slice.as_ptr().addr(), slice.len());
        Ok(Self { bytes, proven })
    }

    #[inline]
    fn tables(&self) -> &layout::ArchivedTables {
        let slice: &[u8] = &self.bytes;
        assert!(
            (slice.as_ptr().addr(), slice.len()) == self.proven,
            "the bytes of a snapshot stay where they were checked"
        );
        // SAFETY: `check` accessed this very slice (same address and length) with full validation before the snapshot
        // was made, and its bytes do not change: they are borrowed shared from `B`, which is never lent out mutably.
        unsafe { rkyv::access_unchecked::<layout::ArchivedTables>(&slice[layout::HEADER_BYTES..]) }
    }

    pub fn version(&self) -> SnapshotVersion {
        SnapshotVersion(self.tables().version.0.to_native())
    }

    pub fn epoch(&self) -> BootEpoch {
        BootEpoch(self.tables().epoch.0.to_native())
    }

    /// See [`Source::claims_folded`]; 0 for shards it does not name.
    pub fn claims_folded(&self, shard: usize) -> u64 {
        self.tables().claims_folded.get(shard).map_or(0, |seq| seq.to_native())
    }

    /// See [`Source::nodes_folded`].
    pub fn nodes_folded(&self) -> u64 {
        self.tables().nodes_folded.to_native()
    }

    /// The nodes that routes name, ascending, at most [`NODES_MAX`].
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = NodeId> + '_ {
        self.tables().members.iter().map(|node| NodeId(node.0))
    }

    /// By ascending id.
    pub fn realms(&self) -> impl Iterator<Item = RealmView<'_>> {
        let tables = self.tables();
        tables.realms.iter().map(|row| realm_view(tables, row))
    }

    /// As [`Snapshot::realms`], without the first `from`.
    pub fn realms_from(&self, from: usize) -> impl Iterator<Item = RealmView<'_>> {
        let tables = self.tables();
        tables.realms.get(from..).unwrap_or_default().iter().map(|row| realm_view(tables, row))
    }

    pub fn realm(&self, id: RealmId) -> Option<RealmView<'_>> {
        let tables = self.tables();
        let at = tables.realms.binary_search_by_key(&id.0, |row| row.id.to_native()).ok()?;
        Some(realm_view(tables, &tables.realms[at]))
    }

    /// Topics of a realm whose events are kept, in order.
    pub fn histories(&self, realm: RealmId) -> impl Iterator<Item = History> {
        let tables = self.tables();
        let rows = &tables.histories;
        let first = rows.partition_point(|row| row.realm.to_native() < realm.0);
        rows[first..].iter().take_while(move |row| row.realm.to_native() == realm.0).map(|row| History {
            policy: row.policy(),
            uri: tables.text(row.uri_at.to_native(), row.uri_bytes.to_native()).to_owned(),
            events_max: row.events_max.to_native(),
            bytes_max: row.bytes_max.to_native(),
            age_max_ms: row.age_max_ms.to_native(),
        })
    }

    /// Routes of every kind.
    pub fn routes_len(&self) -> usize {
        self.tables().routes.len()
    }

    /// Every route, by ascending (realm, kind, policy, URI).
    pub fn routes(&self) -> impl Iterator<Item = (RealmId, RouteKind, RouteView<'_>)> {
        let tables = self.tables();
        tables.routes.iter().map(|row| (RealmId(row.realm.to_native()), row.kind(), tables.view(row)))
    }
}

impl<B: Deref<Target = [u8]>> fmt::Debug for Snapshot<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("version", &self.version())
            .field("routes", &self.routes_len())
            .field("bytes", &self.proven.1)
            .finish()
    }
}

fn realm_view<'a>(tables: &'a layout::ArchivedTables, row: &layout::ArchivedRealmRow) -> RealmView<'a> {
    RealmView {
        id: RealmId(row.id.to_native()),
        name: tables.text(row.name_at.to_native(), row.name_bytes.to_native()),
        rules: tables.rules_of(row),
        strict: row.flags & layout::STRICT != 0,
        uri_strict: row.flags & layout::URI_STRICT != 0,
        anonymous: match row.anonymous {
            ArchivedAnonymous::Nobody => Anonymous::Nobody,
            ArchivedAnonymous::Loopback => Anonymous::Loopback,
            ArchivedAnonymous::Anybody => Anonymous::Anybody,
        },
    }
}

#[cfg(test)]
mod tests;
