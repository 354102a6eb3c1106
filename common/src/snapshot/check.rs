//! Bytes in, a proof that look-ups may trust them out.
//!
//! rkyv's validation proves that every array and the text lie within the bytes; what follows proves the rest: that
//! indexes and places are in range, tables sorted, and the hash table and tries hold every route exactly once. All
//! proofs are linear in the bytes, since a URI has a bounded length.

use super::SnapshotError;
use super::layout::*;
use crate::history::HISTORIES_MAX;
use crate::ids::{Match, NODES_MAX, RealmId, RouteKind};
use crate::limits::{URI_BYTES_MAX, URI_COMPONENTS_MAX};
use crate::rules::Rules;
use crate::share::Invoke;
use rkyv::rancor;
use std::ops::Range;

/// The tables in `bytes`, proven.
pub(super) fn check(bytes: &[u8]) -> Result<&ArchivedTables, SnapshotError> {
    let archive = header(bytes)?;
    let tables = rkyv::access::<ArchivedTables, rancor::Error>(archive)
        .map_err(|error| SnapshotError::Invalid(error.to_string()))?;
    prove(tables).map_err(SnapshotError::Invalid)?;
    Ok(tables)
}

/// What follows the header.
fn header(bytes: &[u8]) -> Result<&[u8], SnapshotError> {
    let invalid = |what: &str| Err(SnapshotError::Invalid(what.into()));
    if !bytes.as_ptr().addr().is_multiple_of(ALIGN) {
        return invalid("the bytes are not aligned");
    }
    let Some((header, archive)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return invalid("shorter than a header");
    };
    let [m0, m1, m2, m3, m4, m5, m6, m7, l0, l1, l2, l3, rest @ ..] = *header;
    if [m0, m1, m2, m3, m4, m5, m6, m7] != MAGIC {
        return invalid("it does not begin like a snapshot");
    }
    let found = u32::from_le_bytes([l0, l1, l2, l3]);
    if found != LAYOUT {
        return Err(SnapshotError::Layout { found, expected: LAYOUT });
    }
    if rest != [0; 4] {
        return invalid("the header has unknown parts");
    }
    Ok(archive)
}

type Proof = Result<(), String>;

fn require(holds: bool, what: &str) -> Proof {
    if holds { Ok(()) } else { Err(what.into()) }
}

fn prove(tables: &ArchivedTables) -> Proof {
    realms(tables)?;
    histories(tables)?;
    nodes(tables)?;
    routes(tables)?;
    shares(tables)?;
    slots(tables)?;
    let wildcards = groups(tables)?;
    tries(tables, wildcards)
}

/// Proves that a part of the pool is text; [`ArchivedTables::text`] relies on it.
fn text(tables: &ArchivedTables, at: u32, bytes: u16) -> Result<&str, String> {
    if usize::from(bytes) > URI_BYTES_MAX {
        return Err("a text is too long".into());
    }
    let (start, end) = (at as usize, at as usize + usize::from(bytes));
    tables.text.get(start..end).ok_or_else(|| "a text is outside of the pool".into())
}

fn realms(tables: &ArchivedTables) -> Proof {
    for realm in tables.realms.iter() {
        text(tables, realm.name_at.to_native(), realm.name_bytes.to_native())?;
        require(realm.flags & !(STRICT | URI_STRICT) == 0, "a realm has unknown flags")?;
        let (at, bytes) = (realm.rules_at.to_native() as usize, usize::from(realm.rules_bytes.to_native()));
        let rules = tables.rules.get(at..at + bytes).ok_or("a realm's rules are outside of the pool")?;
        Rules::unpack(rules).map_err(|error| format!("a realm's rules: {error}"))?;
    }
    require(tables.realms.is_sorted_by(|a, b| a.id < b.id), "realms are not sorted")
}

/// Proves that each is of a realm that is there, that no realm has too many, and that they are sorted.
fn histories(tables: &ArchivedTables) -> Proof {
    let mut last = None;
    for row in tables.histories.iter() {
        let uri = text(tables, row.uri_at.to_native(), row.uri_bytes.to_native())?;
        let realm = row.realm.to_native();
        let is_there = tables.realms.binary_search_by_key(&realm, |row| row.id.to_native()).is_ok();
        require(is_there, "a history is of no realm")?;
        let key = (realm, row.policy(), uri);
        require(last.is_none_or(|last| last < key), "histories are not sorted")?;
        last = Some(key);
    }
    let of_realm = tables.histories.chunk_by(|a, b| a.realm == b.realm);
    require(of_realm.clone().all(|rows| rows.len() <= HISTORIES_MAX), "a realm has too many histories")
}

/// Proves that the lists share out all indexes of nodes, none is empty, and each ascends within the table of nodes.
fn nodes(tables: &ArchivedTables) -> Proof {
    require(tables.members.len() <= NODES_MAX, "there are too many nodes")?;
    require(tables.members.is_sorted_by(|a, b| a < b), "nodes are not sorted")?;
    let mut start = 0;
    for end in tables.list_ends.iter() {
        let end = end.to_native() as usize;
        let Some(list) = tables.interested.get(start..end).filter(|list| !list.is_empty()) else {
            return Err("a list of nodes is misplaced".into());
        };
        let last = list[list.len() - 1].to_native();
        require(
            list.is_sorted_by(|a, b| a < b) && usize::from(last) < tables.members.len(),
            "a list of nodes is not of known ones in order",
        )?;
        start = end;
    }
    require(start == tables.interested.len(), "a node is in no list")
}

fn routes(tables: &ArchivedTables) -> Proof {
    require(tables.routes.len() < EMPTY as usize, "there are too many routes")?;
    let mut last = None;
    for route in tables.routes.iter() {
        let uri = text(tables, route.uri_at.to_native(), route.uri_bytes.to_native())?;
        let key = (route.realm.to_native(), route.kind(), route.policy(), uri);
        require(last.is_none_or(|last| last < key), "routes are not sorted")?;
        require(
            route.list.to_native() as usize <= tables.list_ends.len(),
            "a route's list of nodes is not there",
        )?;
        last = Some(key);
    }
    Ok(())
}

/// Proves that each is of a procedure and a node that are there, and that they are sorted.
fn shares(tables: &ArchivedTables) -> Proof {
    for row in tables.shares.iter() {
        let route = tables.routes.get(row.route.to_native() as usize);
        require(
            route.is_some_and(|route| route.kind() == RouteKind::Procedure),
            "a share is of no procedure",
        )?;
        require(usize::from(row.node.to_native()) < tables.members.len(), "a share is of no node")?;
        require(Invoke::from_number(row.invoke).is_some() && row.forced <= 1, "a share has unknown parts")?;
    }
    require(
        tables.shares.is_sorted_by(|a, b| {
            (a.route.to_native(), a.node.to_native()) < (b.route.to_native(), b.node.to_native())
        }),
        "shares are not sorted",
    )
}

/// Proves that the hash table holds every route exactly once, where a look-up finds it, and that look-ups end.
fn slots(tables: &ArchivedTables) -> Proof {
    let (slots, routes) = (&tables.slots, &tables.routes);
    require(
        slots.len().is_power_of_two() && slots.len() >= routes.len() * 2,
        "the hash table's size is wrong",
    )?;
    let mask = slots.len() - 1;
    // One slot is empty at least: half of them are, or the count below fails.
    let Some(empty) = slots.iter().position(|slot| slot.route == EMPTY) else {
        return Err("the hash table is full".into());
    };
    let mut seen = Seen::new(routes.len());
    // Slots from the empty one on, around the end; `run` counts those in use since the last empty one.
    let mut run = 0;
    for at in (empty + 1..=empty + slots.len()).map(|at| at & mask) {
        let slot = &slots[at];
        if slot.route == EMPTY {
            run = 0;
            continue;
        }
        let Some(route) = routes.get(slot.route.to_native() as usize) else {
            return Err("a slot names no route".into());
        };
        require(seen.first_time(slot.route.to_native() as usize), "two slots name one route")?;
        let realm = RealmId(route.realm.to_native());
        let hash = tables.hash(realm, route.kind(), route.policy(), tables.uri(route));
        let distance = at.wrapping_sub(hash as usize) & mask;
        require(slot.tag == (hash >> 32) as u32 && distance <= run, "a slot is not where its hash says")?;
        run += 1;
    }
    require(seen.all(), "a route is in no slot")
}

/// Proves that there is a group for each (realm, kind) with patterns, that its lengths are those of its prefixes, and
/// that the groups share out all lengths and tries. Returns the number of routes that belong in tries.
fn groups(tables: &ArchivedTables) -> Result<usize, String> {
    let mut wildcards = 0;
    let (mut lengths_next, mut tries_next) = (0, 0);
    let mut groups = tables.groups.iter();
    let same_group = |a: &ArchivedRouteRow, b: &ArchivedRouteRow| (a.realm, a.kind) == (b.realm, b.kind);
    for members in tables.routes.chunk_by(same_group) {
        if members.iter().all(|route| route.policy() == Match::Exact) {
            continue;
        }
        let key = (members[0].realm.to_native(), members[0].kind());
        let Some(group) = groups.next().filter(|group| group.key() == key) else {
            return Err("the groups are not those of the routes".into());
        };
        let lengths = part(tables.lengths.len(), &mut lengths_next, group.lengths_first, group.lengths_len)?;
        prove_lengths(members, &tables.lengths[lengths])?;
        let tries = part(tables.tries.len(), &mut tries_next, group.tries_first, group.tries_len)?;
        require(tables.tries[tries].is_sorted_by(|a, b| a < b), "tries are not sorted")?;
        wildcards += members.iter().filter(|route| belongs_in_trie(tables, route)).count();
    }
    require(groups.next().is_none(), "a group has no routes")?;
    require(
        lengths_next == tables.lengths.len() && tries_next == tables.tries.len(),
        "a list is in no group",
    )?;
    Ok(wildcards)
}

/// The part of an array that begins where the last one ended.
fn part(
    whole: usize,
    next: &mut usize,
    first: rkyv::Archived<u32>,
    len: rkyv::Archived<u16>,
) -> Result<Range<usize>, String> {
    let range = *next..*next + usize::from(len.to_native());
    require(first.to_native() as usize == range.start && range.end <= whole, "a group's list is misplaced")?;
    *next = range.end;
    Ok(range)
}

fn prove_lengths(members: &[ArchivedRouteRow], lengths: &[rkyv::Archived<u16>]) -> Proof {
    let mut used = [false; URI_BYTES_MAX + 1];
    for route in members.iter().filter(|route| route.policy() == Match::Prefix) {
        used[usize::from(route.uri_bytes.to_native())] = true;
    }
    let used = (0..=URI_BYTES_MAX).filter(|&length| used[length]);
    require(
        used.eq(lengths.iter().map(|length| usize::from(length.to_native()))),
        "lengths are not those of the prefixes",
    )
}

fn belongs_in_trie(tables: &ArchivedTables, route: &ArchivedRouteRow) -> bool {
    route.policy() == Match::Wildcard && tables.uri(route).split('.').count() <= URI_COMPONENTS_MAX
}

/// Proves that each trie holds the wildcard routes of its group and number of components, all `wildcards` of them once,
/// and nothing else.
fn tries(tables: &ArchivedTables, wildcards: usize) -> Proof {
    let parents = parents(tables)?;
    let mut groups = Vec::with_capacity(tables.tries.len());
    for group in tables.groups.iter() {
        groups.extend((0..group.tries_len.to_native()).map(|_| group.key()));
    }
    let mut seen = Seen::new(tables.routes.len());
    for (index, node) in (0u32..).zip(tables.nodes.iter()) {
        if node.children_len != 0 {
            continue;
        }
        let route = node.first.to_native() as usize;
        require(route < tables.routes.len() && seen.first_time(route), "a leaf names no route of its own")?;
        leaf(tables, &parents, &groups, index, &tables.routes[route])?;
    }
    require(seen.count == wildcards, "a wildcard is in no trie")
}

/// Proves that the nodes are trees below the roots, each child's index above its parent's, with sorted children.
/// Returns each node's parent; a root is its own.
fn parents(tables: &ArchivedTables) -> Result<Vec<u32>, String> {
    let nodes = &tables.nodes;
    require(u32::try_from(nodes.len()).is_ok(), "there are too many nodes")?;
    let roots = tables.tries.len();
    require(roots <= nodes.len(), "a trie has no root")?;
    let mut parents: Vec<u32> = (0..roots as u32).collect();
    for (index, node) in (0u32..).zip(nodes.iter()) {
        text(tables, node.component_at.to_native(), node.component_bytes.to_native())?;
        let children = node.children_len.to_native();
        if children == 0 {
            require(index as usize >= roots && node.any == 0, "a leaf has no place for branches")?;
            continue;
        }
        // A node is reached before its children because its own parent has put it there.
        require((index as usize) < parents.len(), "a node has no parent")?;
        let first = node.first.to_native() as usize;
        require(
            first == parents.len() && children as usize <= nodes.len() - first,
            "children are misplaced",
        )?;
        parents.resize(first + children as usize, index);
        let literals = first + usize::from(node.any.to_native());
        require(literals - first <= 1, "a node has more than one branch for any component")?;
        require(
            literals == first || nodes[first].component_bytes == 0,
            "the branch for any component is misplaced",
        )?;
        sorted_children(tables, literals..first + children as usize)?;
    }
    require(parents.len() == nodes.len(), "a node has no parent")?;
    Ok(parents)
}

fn sorted_children(tables: &ArchivedTables, range: Range<usize>) -> Proof {
    let hash = tables.hasher();
    let mut last = None;
    for child in &tables.nodes[range] {
        let component = text(tables, child.component_at.to_native(), child.component_bytes.to_native())?;
        let tag = component_tag(&hash, component);
        require(!component.is_empty() && child.tag == tag, "a branch has another component's tag")?;
        require(last.is_none_or(|last| last < (tag, component)), "children are not sorted")?;
        last = Some((tag, component));
    }
    Ok(())
}

/// Proves that the way from the root to this leaf spells the pattern of its route.
fn leaf(
    tables: &ArchivedTables,
    parents: &[u32],
    groups: &[(u64, RouteKind)],
    leaf: u32,
    route: &ArchivedRouteRow,
) -> Proof {
    let mut node = leaf as usize;
    let mut depth = 0;
    for component in tables.uri(route).rsplit('.') {
        let spelled = node >= groups.len() && tables.component(&tables.nodes[node]) == component;
        require(spelled, "a leaf is not at its pattern")?;
        node = parents[node] as usize;
        depth += 1;
    }
    let is_root = groups.get(node).is_some_and(|group| *group == (route.realm.to_native(), route.kind()));
    require(
        is_root
            && route.policy() == Match::Wildcard
            && depth <= URI_COMPONENTS_MAX
            && depth == usize::from(tables.tries[node].to_native()),
        "a leaf is in another route's trie",
    )
}

/// Which of `len` things were seen.
struct Seen {
    words: Vec<u64>,
    len: usize,
    count: usize,
}

impl Seen {
    fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len, count: 0 }
    }

    /// Notes `index`; false when it was seen before.
    fn first_time(&mut self, index: usize) -> bool {
        let (word, bit) = (&mut self.words[index / 64], 1 << (index % 64));
        let first = *word & bit == 0;
        *word |= bit;
        self.count += usize::from(first);
        first
    }

    fn all(&self) -> bool {
        self.count == self.len
    }
}
