//! The bytes of a snapshot: a header, then one rkyv archive of [`Tables`].
//!
//! ```text
//! 0        8        12       16
//! │ MAGIC  │ LAYOUT │ zero   │ archive ... root │
//! ```
//! The header has its place and meaning in every layout, so a reader of another one can say so. Rows name text by
//! its place in one pool and each other by index; their sizes leave no padding, so equal tables are equal bytes.

use crate::ids::{BootEpoch, Match, NodeId, RealmId, RouteKind, ShardSet, SnapshotVersion};
use crate::pattern::hash::UriHash;
use crate::snapshot::Anonymous;
use rkyv::{Archive, Archived, Serialize};

pub(super) const MAGIC: [u8; 8] = *b"SBSNAPSH";

/// The version of everything after the header. Any change of the types below is another one.
pub(super) const LAYOUT: u32 = 4;

pub(super) const HEADER_BYTES: usize = 16;

/// What the bytes of a snapshot are aligned to.
pub(super) const ALIGN: usize = 16;

#[derive(Archive, Serialize)]
pub(super) struct Tables {
    pub version: SnapshotVersion,
    pub epoch: BootEpoch,
    /// The key of the hashes in `slots`.
    pub seed: u64,
    pub claims_folded: Vec<u64>,
    pub nodes_folded: u64,
    /// Ascending.
    pub members: Vec<NodeId>,
    /// Indexes of `members`, list after list, ascending within a list.
    pub interested: Vec<u16>,
    /// Where each list ends in `interested`. List `i` begins where list `i - 1` ends, the first one at 0.
    pub list_ends: Vec<u32>,
    /// The names of realms and the URIs of routes, one after the other.
    pub text: String,
    /// The packed rules of realms, one after the other.
    pub rules: Vec<u8>,
    /// By ascending id.
    pub realms: Vec<RealmRow>,
    /// By ascending (realm, policy, URI).
    pub histories: Vec<HistoryRow>,
    /// By ascending (realm, kind, policy, URI).
    pub routes: Vec<RouteRow>,
    /// By ascending (route, node).
    pub shares: Vec<ShareRow>,
    /// A hash table of `routes` with linear probing: a power of two, at least twice the routes.
    pub slots: Vec<Slot>,
    /// One for each (realm, kind) with a prefix or wildcard route, by ascending (realm, kind).
    pub groups: Vec<Group>,
    /// The distinct lengths of each group's prefixes in bytes, ascending within the group.
    pub lengths: Vec<u16>,
    /// The number of components of the patterns in each trie, ascending within the group. Trie `i` has its root at
    /// node `i`.
    pub tries: Vec<u16>,
    /// Level by level: all roots, then the children of node 0, of node 1 ...
    pub nodes: Vec<Node>,
}

#[derive(Archive, Serialize)]
pub(super) struct RealmRow {
    pub id: u64,
    pub name_at: u32,
    pub name_bytes: u16,
    /// [`STRICT`] and [`URI_STRICT`].
    pub flags: u8,
    pub anonymous: Anonymous,
    pub rules_at: u32,
    pub rules_bytes: u16,
    pub unused: [u8; 2],
}

/// A topic whose events are kept.
#[derive(Archive, Serialize)]
pub(super) struct HistoryRow {
    /// The id of a realm that is there.
    pub realm: u64,
    pub bytes_max: u64,
    pub age_max_ms: u64,
    pub events_max: u32,
    pub uri_at: u32,
    pub uri_bytes: u16,
    pub policy: Match,
    pub unused: [u8; 5],
}

/// Flag of a [`RealmRow`].
pub(super) const STRICT: u8 = 1;
/// Flag of a [`RealmRow`].
pub(super) const URI_STRICT: u8 = 2;

#[derive(Archive, Serialize)]
pub(super) struct RouteRow {
    /// The lower and the upper half of a [`crate::ids::ShardSet`]; one word of 128 bits would make rows larger.
    pub shards: [u64; 2],
    pub realm: u64,
    /// One more than the index of its list of other nodes, or 0 for none.
    pub list: u32,
    pub uri_at: u32,
    pub uri_bytes: u16,
    pub kind: RouteKind,
    pub policy: Match,
    pub unused: [u8; 4],
}

/// What one node says of its callees that share a procedure.
#[derive(Archive, Serialize)]
pub(super) struct ShareRow {
    pub first: u64,
    pub last: u64,
    /// An index of `routes`.
    pub route: u32,
    pub callees: u32,
    /// An index of `members`.
    pub node: u16,
    /// A number of [`crate::share::Invoke`].
    pub invoke: u8,
    /// 0 or 1.
    pub forced: u8,
    pub unused: [u8; 4],
}

#[derive(Clone, Copy, Archive, Serialize)]
pub(super) struct Slot {
    /// The upper half of the hash, so most of the others' slots are passed without a look at their routes.
    pub tag: u32,
    /// An index of `routes`, or [`EMPTY`].
    pub route: u32,
}

pub(super) const EMPTY: u32 = u32::MAX;

#[derive(Archive, Serialize)]
pub(super) struct Group {
    pub realm: u64,
    /// The first of `lengths_len` lengths of the group.
    pub lengths_first: u32,
    /// The first of `tries_len` tries of the group.
    pub tries_first: u32,
    pub lengths_len: u16,
    pub tries_len: u16,
    pub kind: RouteKind,
    pub unused: [u8; 3],
}

/// A node of a trie by components: a leaf has no children and names a route.
#[derive(Archive, Serialize)]
pub(super) struct Node {
    /// The component that leads here, a part of some route's URI; empty for a root and for a wildcard.
    pub component_at: u32,
    pub component_bytes: u16,
    /// 1 when the first child is the one for any component, else 0. The others ascend by (tag, component).
    pub any: u16,
    /// See [`component_tag`]; of no meaning for a root and for a wildcard.
    pub tag: u32,
    /// The first of `children_len` children; for a leaf the route.
    pub first: u32,
    pub children_len: u32,
}

const _: () = assert!(size_of::<ArchivedRealmRow>() == 24);
const _: () = assert!(size_of::<ArchivedHistoryRow>() == 40);
const _: () = assert!(size_of::<ArchivedRouteRow>() == 40);
const _: () = assert!(size_of::<ArchivedShareRow>() == 32);
const _: () = assert!(size_of::<ArchivedSlot>() == 8);
const _: () = assert!(size_of::<ArchivedGroup>() == 24);
const _: () = assert!(size_of::<ArchivedNode>() == 20);
const _: () = assert!(align_of::<ArchivedTables>() <= ALIGN && HEADER_BYTES.is_multiple_of(ALIGN));

impl ArchivedTables {
    /// A part of the text pool that `check` has found to be text.
    #[inline]
    pub(super) fn text(&self, at: u32, bytes: u16) -> &str {
        &self.text[at as usize..at as usize + usize::from(bytes)]
    }

    /// What `check` has found to be rules.
    pub(super) fn rules_of(&self, realm: &ArchivedRealmRow) -> &[u8] {
        let at = realm.rules_at.to_native() as usize;
        &self.rules[at..at + usize::from(realm.rules_bytes.to_native())]
    }

    #[inline]
    pub(super) fn uri(&self, route: &ArchivedRouteRow) -> &str {
        self.text(route.uri_at.to_native(), route.uri_bytes.to_native())
    }

    /// The list of other nodes of a route that `check` has found to have one.
    #[inline]
    pub(super) fn list(&self, route: &ArchivedRouteRow) -> &[Archived<u16>] {
        let Some(list) = (route.list.to_native() as usize).checked_sub(1) else { return &[] };
        let end_of = |list: usize| self.list_ends[list].to_native() as usize;
        &self.interested[list.checked_sub(1).map_or(0, end_of)..end_of(list)]
    }

    #[inline]
    pub(super) fn component(&self, node: &ArchivedNode) -> &str {
        self.text(node.component_at.to_native(), node.component_bytes.to_native())
    }
}

impl ArchivedRouteRow {
    #[inline]
    pub(super) fn shards(&self) -> ShardSet {
        ShardSet(u128::from(self.shards[0].to_native()) | u128::from(self.shards[1].to_native()) << 64)
    }

    #[inline]
    pub(super) fn kind(&self) -> RouteKind {
        native_kind(self.kind)
    }

    #[inline]
    pub(super) fn policy(&self) -> Match {
        policy(self.policy)
    }
}

impl ArchivedHistoryRow {
    pub(super) fn policy(&self) -> Match {
        policy(self.policy)
    }
}

#[inline]
fn policy(archived: Archived<Match>) -> Match {
    match archived {
        Archived::<Match>::Exact => Match::Exact,
        Archived::<Match>::Prefix => Match::Prefix,
        Archived::<Match>::Wildcard => Match::Wildcard,
    }
}

impl ArchivedGroup {
    /// What the groups are sorted by.
    #[inline]
    pub(super) fn key(&self) -> (u64, RouteKind) {
        (self.realm.to_native(), native_kind(self.kind))
    }
}

#[inline]
fn native_kind(kind: Archived<RouteKind>) -> RouteKind {
    match kind {
        Archived::<RouteKind>::Topic => RouteKind::Topic,
        Archived::<RouteKind>::Procedure => RouteKind::Procedure,
    }
}

/// What is hashed before the URI of a route. Its size is a multiple of the hash's word.
#[inline]
pub(super) fn hash_head(realm: RealmId, kind: RouteKind, policy: Match) -> [u8; 16] {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&realm.0.to_le_bytes());
    head[8] = kind as u8;
    head[9] = policy as u8;
    head
}

/// The keyed hash of a component by which the children of a node are sorted.
#[inline]
pub(super) fn component_tag(hash: &UriHash, component: &str) -> u32 {
    (hash.of(component.as_bytes()) >> 32) as u32
}
