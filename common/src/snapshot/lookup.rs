//! URI in, routes out. Nothing here allocates.

use super::layout::*;
use super::{NodeList, RouteView, Snapshot};
use crate::ids::{Match, RealmId, RouteKind};
use crate::pattern::hash::UriHash;
use crate::pattern::prefix::{Probes, probe};
use crate::pattern::walk::{Components, Trie, Walk};
use crate::share::{Invoke, Share};
use std::cmp::Ordering;
use std::ops::{Deref, Range};

impl<B: Deref<Target = [u8]>> Snapshot<B> {
    /// The route whose policy is exact and whose URI is `uri`.
    #[inline]
    pub fn exact(&self, realm: RealmId, kind: RouteKind, uri: &str) -> Option<RouteView<'_>> {
        self.get(realm, kind, Match::Exact, uri)
    }

    /// The route of exactly this policy and pattern.
    #[inline]
    pub fn get(&self, realm: RealmId, kind: RouteKind, policy: Match, uri: &str) -> Option<RouteView<'_>> {
        let tables = self.tables();
        let hash = tables.hash(realm, kind, policy, uri);
        Some(tables.view(tables.find(hash, realm, kind, policy, uri.as_bytes())?))
    }

    /// What other nodes, by index of [`Snapshot::nodes`], say of their callees that share exactly this procedure; none of a
    /// node: it has a single one.
    pub fn shares(&self, realm: RealmId, policy: Match, uri: &str) -> impl Iterator<Item = (u16, Share)> {
        let tables = self.tables();
        let hash = tables.hash(realm, RouteKind::Procedure, policy, uri);
        let route = tables.find_index(hash, realm, RouteKind::Procedure, policy, uri.as_bytes());
        let shares = &tables.shares;
        let first =
            route.map_or(shares.len(), |route| shares.partition_point(|row| row.route.to_native() < route));
        let of_route = shares[first..]
            .iter()
            .take_while(move |row| route.is_some_and(|route| row.route.to_native() == route));
        of_route.filter_map(|row| {
            let share = Share {
                invoke: Invoke::from_number(row.invoke)?,
                forced: row.forced != 0,
                callees: row.callees.to_native(),
                first: row.first.to_native(),
                last: row.last.to_native(),
            };
            Some((row.node.to_native(), share))
        })
    }

    /// As [`crate::pattern::PatternMap::for_each_match`].
    #[inline]
    pub fn for_each_match<'a>(
        &'a self,
        realm: RealmId,
        kind: RouteKind,
        uri: &str,
        mut found: impl FnMut(RouteView<'a>),
    ) {
        self.find_match(realm, kind, uri, |route| {
            found(route);
            false
        });
    }

    /// As [`crate::pattern::PatternMap::best_match`].
    #[inline]
    pub fn best_match(&self, realm: RealmId, kind: RouteKind, uri: &str) -> Option<RouteView<'_>> {
        let mut best = None;
        self.find_match(realm, kind, uri, |route| {
            best = Some(route);
            true
        });
        best
    }

    /// Calls `found` for the routes that match, best first, until it says true.
    #[inline]
    fn find_match<'a>(
        &'a self,
        realm: RealmId,
        kind: RouteKind,
        uri: &str,
        mut found: impl FnMut(RouteView<'a>) -> bool,
    ) {
        if let Some(route) = self.exact(realm, kind, uri)
            && found(route)
        {
            return;
        }
        let tables = self.tables();
        let Ok(group) = tables.groups.binary_search_by(|group| group.key().cmp(&(realm.0, kind))) else {
            return;
        };
        let group = &tables.groups[group];
        if tables.find_prefix(group, realm, kind, uri, &mut found) || group.tries_len == 0 {
            return;
        }
        let Some(components) = Components::of(uri) else { return };
        let Some(root) = tables.trie(group, components.len()) else { return };
        for leaf in Walk::new(tables, root, &components) {
            let route = &tables.routes[tables.nodes[leaf as usize].first.to_native() as usize];
            if found(tables.view(route)) {
                return;
            }
        }
    }
}

impl ArchivedTables {
    #[inline]
    pub(super) fn hasher(&self) -> UriHash {
        UriHash::new(self.seed.to_native())
    }

    #[inline]
    pub(super) fn hash(&self, realm: RealmId, kind: RouteKind, policy: Match, uri: &str) -> u64 {
        let mut running = self.hasher().running(&hash_head(realm, kind, policy));
        running.extend(uri.as_bytes());
        running.hash()
    }

    /// The route of this key, whose hash is `hash`. It ends because half of the slots are empty.
    #[inline]
    fn find(
        &self,
        hash: u64,
        realm: RealmId,
        kind: RouteKind,
        policy: Match,
        uri: &[u8],
    ) -> Option<&ArchivedRouteRow> {
        let index = self.find_index(hash, realm, kind, policy, uri)?;
        Some(&self.routes[index as usize])
    }

    #[inline]
    fn find_index(
        &self,
        hash: u64,
        realm: RealmId,
        kind: RouteKind,
        policy: Match,
        uri: &[u8],
    ) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = &self.slots[at];
            if slot.route == EMPTY {
                return None;
            }
            if slot.tag == (hash >> 32) as u32 {
                let index = slot.route.to_native();
                let route = &self.routes[index as usize];
                if route.realm == realm.0
                    && (route.kind(), route.policy()) == (kind, policy)
                    && self.uri(route).as_bytes() == uri
                {
                    return Some(index);
                }
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    pub(super) fn view<'a>(&'a self, route: &'a ArchivedRouteRow) -> RouteView<'a> {
        RouteView {
            policy: route.policy(),
            uri: self.uri(route),
            shards: route.shards(),
            nodes: NodeList(self.list(route)),
        }
    }

    /// Calls `found` for the prefixes of `uri`, longest first, until it says true; false when it never did.
    #[inline]
    fn find_prefix<'a>(
        &'a self,
        group: &ArchivedGroup,
        realm: RealmId,
        kind: RouteKind,
        uri: &str,
        found: &mut impl FnMut(RouteView<'a>) -> bool,
    ) -> bool {
        if group.lengths_len == 0 {
            return false;
        }
        let first = group.lengths_first.to_native() as usize;
        let lengths = &self.lengths[first..first + usize::from(group.lengths_len.to_native())];
        let mut probes = Probes::new();
        let running = self.hasher().running(&hash_head(realm, kind, Match::Prefix));
        probe(&mut probes, running, uri, lengths.iter().map(|length| usize::from(length.to_native())));
        for (&hash, length) in probes.iter().zip(lengths).rev() {
            let prefix = &uri.as_bytes()[..usize::from(length.to_native())];
            if let Some(route) = self.find(hash, realm, kind, Match::Prefix, prefix)
                && found(self.view(route))
            {
                return true;
            }
        }
        false
    }

    /// The root of the group's trie for this number of components.
    #[inline]
    fn trie(&self, group: &ArchivedGroup, components: usize) -> Option<u32> {
        let first = group.tries_first.to_native();
        let end = first + u32::from(group.tries_len.to_native());
        let tries = &self.tries[first as usize..end as usize];
        let at = tries.binary_search_by_key(&components, |trie| usize::from(trie.to_native())).ok()?;
        Some(first + at as u32)
    }
}

impl Trie for ArchivedTables {
    #[inline]
    fn literal(&self, node: u32, component: &str) -> Option<u32> {
        let node = &self.nodes[node as usize];
        let any = u32::from(node.any.to_native());
        let (first, end) =
            (node.first.to_native() + any, node.first.to_native() + node.children_len.to_native());
        let is_it = |child: &u32| self.component(&self.nodes[*child as usize]) == component;
        if end - first <= SCANNED_MAX {
            return (first..end).find(is_it);
        }
        let tag = component_tag(&self.hasher(), component);
        self.tagged(first..end, tag).find(is_it)
    }

    #[inline]
    fn any(&self, node: u32) -> Option<u32> {
        let node = &self.nodes[node as usize];
        (node.any == 1).then(|| node.first.to_native())
    }
}

/// Most children that are compared one by one rather than searched by tag.
const SCANNED_MAX: u32 = 4;

impl ArchivedTables {
    /// Those of `children`, which ascend by tag, that have this tag: interpolation search. Tags are keyed hashes, so
    /// they are spread evenly, and it takes about log log n steps.
    #[inline]
    fn tagged(&self, children: Range<u32>, tag: u32) -> Range<u32> {
        let tag_of = |child: u32| self.nodes[child as usize].tag.to_native();
        let (mut low, mut high) = (children.start, children.end);
        // Children before `low` have tags of at most `tag_low`, those from `high` on tags of at least `tag_high`.
        let (mut tag_low, mut tag_high) = (0, u32::MAX);
        while low < high {
            let share =
                u64::from(tag - tag_low) * u64::from(high - low) / (u64::from(tag_high - tag_low) + 1);
            let guess = low + share as u32;
            let found = tag_of(guess);
            match found.cmp(&tag) {
                Ordering::Less => (low, tag_low) = (guess + 1, found),
                Ordering::Greater => (high, tag_high) = (guess, found),
                Ordering::Equal => {
                    let before = (low..guess).rev().take_while(|&child| tag_of(child) == tag).count();
                    let after = (guess..high).take_while(|&child| tag_of(child) == tag).count();
                    return guess - before as u32..guess + after as u32;
                }
            }
        }
        low..low
    }
}
