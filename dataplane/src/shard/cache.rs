//! Resolved URIs, each good for one version of its realm's routes. Invariant: only valid URIs are here.

use super::routes::Resolved;
use common::ids::RouteKind;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

#[derive(Debug)]
struct Entry {
    realm: u32,
    kind: RouteKind,
    version: u64,
    uri: Box<str>,
    resolved: Resolved,
}

/// Resolved URIs by (realm, kind, URI), good for one version of the realm's routes.
#[derive(Debug)]
pub(super) struct Cache {
    index: HashTable<u32>,
    entries: Vec<Entry>,
    hasher: RandomState,
}

/// A version no realm's routes have.
const NEVER: u64 = 0;

/// Entries after which the cache starts afresh.
pub(super) const ROUTE_CACHE_MAX: usize = 65_536;

impl Cache {
    pub fn new(hasher: RandomState) -> Self {
        Self { index: HashTable::new(), entries: Vec::new(), hasher }
    }

    #[inline]
    fn hash(hasher: &RandomState, realm: u32, kind: RouteKind, uri: &str) -> u64 {
        hasher.hash_one((u64::from(realm) << 1 | kind as u64, uri.as_bytes()))
    }

    /// The entry of a URI, when it is good for `version`: its index, and whether it is there at all.
    #[inline]
    pub fn find(&self, realm: u32, kind: RouteKind, uri: &str, version: u64) -> Option<usize> {
        let hash = Self::hash(&self.hasher, realm, kind, uri);
        let at = *self.index.find(hash, |at| {
            let entry = &self.entries[*at as usize];
            entry.realm == realm && entry.kind == kind && *entry.uri == *uri
        })?;
        (self.entries[at as usize].version == version).then_some(at as usize)
    }

    /// True when the entry at `at`, a guess, is that of this URI and good for `version`.
    #[inline]
    pub fn is_at(&self, at: u32, realm: u32, kind: RouteKind, uri: &str, version: u64) -> bool {
        self.entries.get(at as usize).is_some_and(|entry| {
            entry.version == version && entry.realm == realm && entry.kind == kind && *entry.uri == *uri
        })
    }

    /// Forgets what a URI was resolved to.
    pub fn forget(&mut self, realm: u32, kind: RouteKind, uri: &str) {
        let hash = Self::hash(&self.hasher, realm, kind, uri);
        let found = self.index.find(hash, |at| {
            let entry = &self.entries[*at as usize];
            entry.realm == realm && entry.kind == kind && *entry.uri == *uri
        });
        if let Some(at) = found {
            self.entries[*at as usize].version = NEVER;
        }
    }

    #[inline]
    pub fn get(&mut self, at: usize) -> &mut Resolved {
        &mut self.entries[at].resolved
    }

    /// Puts a resolved URI and returns its index.
    pub fn put(&mut self, realm: u32, kind: RouteKind, uri: &str, version: u64, resolved: Resolved) -> usize {
        if self.entries.len() >= ROUTE_CACHE_MAX {
            self.entries = Vec::new();
            self.index = HashTable::new();
        }
        let hash = Self::hash(&self.hasher, realm, kind, uri);
        let same = |at: &u32| {
            let entry = &self.entries[*at as usize];
            entry.realm == realm && entry.kind == kind && *entry.uri == *uri
        };
        if let Some(at) = self.index.find(hash, same) {
            let at = *at as usize;
            self.entries[at].version = version;
            self.entries[at].resolved = resolved;
            return at;
        }
        let at = self.entries.len();
        self.entries.push(Entry { realm, kind, version, uri: uri.into(), resolved });
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index.insert_unique(hash, at as u32, |at| {
            let entry = &entries[*at as usize];
            Self::hash(hasher, entry.realm, entry.kind, &entry.uri)
        });
        at
    }
}

#[cfg(test)]
mod tests {
    use super::super::nodes::NodeSet;
    use super::super::routes::Callee;
    use super::*;
    use common::ids::ShardSet;

    #[test]
    fn the_cache_answers_one_version_only_and_stays_bounded() {
        let mut cache = Cache::new(RandomState::default());
        let resolved = || Resolved {
            topics: vec![1],
            keeps: false,
            stamps: false,
            shards: ShardSet::EMPTY,
            nodes: NodeSet::EMPTY,
            subscription: 0,
            callee: Callee::Nobody,
            sharers: Vec::new(),
            turn: 0,
        };
        let at = cache.put(0, RouteKind::Topic, "a", 1, resolved());
        assert_eq!(cache.find(0, RouteKind::Topic, "a", 1), Some(at));
        assert_eq!(cache.find(0, RouteKind::Procedure, "a", 1), None);
        assert_eq!(cache.find(0, RouteKind::Topic, "a", 2), None);
        cache.forget(0, RouteKind::Topic, "a");
        cache.forget(0, RouteKind::Topic, "never");
        assert_eq!(cache.find(0, RouteKind::Topic, "a", 1), None);
        assert_eq!(cache.put(0, RouteKind::Topic, "a", 2, resolved()), at, "an outdated entry is replaced");
        for n in 0..ROUTE_CACHE_MAX + 10 {
            cache.put(0, RouteKind::Topic, &format!("u{n}"), 2, resolved());
        }
        assert!(cache.entries.len() <= ROUTE_CACHE_MAX);
    }
}
