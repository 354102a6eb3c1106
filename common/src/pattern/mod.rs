//! A changing map from (matching policy, URI pattern) to values, answering which patterns match a URI.
//!
//! | policy | structure | cost of a look-up |
//! | --- | --- | --- |
//! | exact | hash table | one hash |
//! | prefix | hash table and the distinct lengths | one pass over the URI, a probe for each length in use |
//! | wildcard | trie by components | the trie nodes whose literals agree with the URI |
//!
//! URIs are compared as bytes. A pattern of more than [`crate::limits::URI_BYTES_MAX`] bytes (prefix) or
//! [`crate::limits::URI_COMPONENTS_MAX`] components (wildcard) may be stored, but matches nothing.

pub(crate) mod hash;
pub(crate) mod prefix;
mod table;
pub(crate) mod walk;
mod wildcard;

use crate::ids::Match;
use hash::UriHash;
use prefix::Prefixes;
use std::hash::BuildHasher;
use table::Table;
use wildcard::Wildcards;

/// A map keyed by (policy, pattern). Look-ups by URI allocate nothing. Hashing is keyed at random, so a peer cannot
/// choose URIs that collide.
#[derive(Clone, Debug)]
pub struct PatternMap<V> {
    exact: Table<V>,
    prefixes: Prefixes<V>,
    wildcards: Wildcards<V>,
}

impl<V> Default for PatternMap<V> {
    /// An empty map whose hashes are keyed at random.
    fn default() -> Self {
        Self::with_seed(std::collections::hash_map::RandomState::new().hash_one(0))
    }
}

impl<V> PatternMap<V> {
    /// An empty map whose hashes are keyed by `seed`, which peers must not be able to guess. Equal seeds and
    /// operations give equal orders of [`iter`](Self::iter) and [`retain`](Self::retain).
    pub fn with_seed(seed: u64) -> Self {
        let hash = UriHash::new(seed);
        Self { exact: Table::new(hash), prefixes: Prefixes::new(hash), wildcards: Wildcards::new(hash) }
    }

    pub fn len(&self) -> usize {
        self.exact.len() + self.prefixes.len() + self.wildcards.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    pub fn get(&self, policy: Match, pattern: &str) -> Option<&V> {
        match policy {
            Match::Exact => self.exact.get(pattern),
            Match::Prefix => self.prefixes.get(pattern),
            Match::Wildcard => self.wildcards.get(pattern),
        }
    }

    #[inline]
    pub fn get_mut(&mut self, policy: Match, pattern: &str) -> Option<&mut V> {
        match policy {
            Match::Exact => self.exact.get_mut(pattern),
            Match::Prefix => self.prefixes.get_mut(pattern),
            Match::Wildcard => self.wildcards.get_mut(pattern),
        }
    }

    /// Puts a value and returns the one it replaced.
    pub fn insert(&mut self, policy: Match, pattern: &str, value: V) -> Option<V> {
        match policy {
            Match::Exact => self.exact.insert(pattern, value),
            Match::Prefix => self.prefixes.insert(pattern, value),
            Match::Wildcard => self.wildcards.insert(pattern, value),
        }
    }

    pub fn remove(&mut self, policy: Match, pattern: &str) -> Option<V> {
        match policy {
            Match::Exact => self.exact.remove(pattern),
            Match::Prefix => self.prefixes.remove(pattern),
            Match::Wildcard => self.wildcards.remove(pattern),
        }
    }

    /// Calls `found` for every pattern that matches `uri`: the exact one, then prefixes from the longest to the
    /// shortest, then wildcards, the one whose first wildcard comes latest first.
    #[inline]
    pub fn for_each_match<'a>(&'a self, uri: &str, mut found: impl FnMut(Match, &'a str, &'a V)) {
        self.find_match(uri, |policy, pattern, value| {
            found(policy, pattern, value);
            false
        });
    }

    /// The one pattern the dealer must choose for `uri` (WAMP, advanced profile, "Pattern-based Registrations"):
    /// exact, else the longest prefix, else the wildcard whose literal runs, compared from the left, are longest.
    #[inline]
    pub fn best_match(&self, uri: &str) -> Option<(Match, &str, &V)> {
        let mut best = None;
        self.find_match(uri, |policy, pattern, value| {
            best = Some((policy, pattern, value));
            true
        });
        best
    }

    /// Calls `found` for the patterns that match `uri`, best first, until it says true.
    #[inline]
    fn find_match<'a>(&'a self, uri: &str, mut found: impl FnMut(Match, &'a str, &'a V) -> bool) {
        if let Some((pattern, value)) = self.exact.find(uri)
            && found(Match::Exact, pattern, value)
        {
            return;
        }
        if self.prefixes.find_match(uri, |pattern, value| found(Match::Prefix, pattern, value)) {
            return;
        }
        self.wildcards.find_match(uri, |pattern, value| found(Match::Wildcard, pattern, value));
    }

    /// Every entry, in an unspecified order.
    pub fn iter(&self) -> impl Iterator<Item = (Match, &str, &V)> {
        let exact = self.exact.iter().map(|(pattern, value)| (Match::Exact, pattern, value));
        let prefixes = self.prefixes.iter().map(|(pattern, value)| (Match::Prefix, pattern, value));
        let wildcards = self.wildcards.iter().map(|(pattern, value)| (Match::Wildcard, pattern, value));
        exact.chain(prefixes).chain(wildcards)
    }

    /// Keeps the entries for which `keep` says true.
    pub fn retain(&mut self, mut keep: impl FnMut(Match, &str, &mut V) -> bool) {
        self.exact.retain(|pattern, value| keep(Match::Exact, pattern, value));
        self.prefixes.retain(|pattern, value| keep(Match::Prefix, pattern, value));
        self.wildcards.retain(|pattern, value| keep(Match::Wildcard, pattern, value));
    }

    /// As [`retain`](Self::retain), in slices: looks at no more than `budget` places from `cursor` on, moves it, and returns
    /// how many it looked at. When the map changes between two slices, an entry may be seen twice or not at all.
    pub fn sweep(
        &mut self,
        cursor: &mut SweepCursor,
        budget: usize,
        mut keep: impl FnMut(Match, &str, &mut V) -> bool,
    ) -> usize {
        let mut left = budget;
        while left > 0 && !cursor.is_done() {
            let places = match cursor.policy {
                Some(Match::Exact) => self.exact.places(),
                Some(Match::Prefix) => self.prefixes.places(),
                Some(Match::Wildcard) => self.wildcards.places(),
                None => break,
            };
            let (at, end) = (cursor.at, places.min(cursor.at.saturating_add(left)));
            match cursor.policy {
                Some(Match::Exact) => {
                    self.exact.sweep(at, end, |pattern, value| keep(Match::Exact, pattern, value));
                }
                Some(Match::Prefix) => {
                    self.prefixes.sweep(at, end, |pattern, value| keep(Match::Prefix, pattern, value));
                }
                Some(Match::Wildcard) => {
                    self.wildcards.sweep(at, end, |pattern, value| keep(Match::Wildcard, pattern, value));
                }
                None => {}
            }
            left -= end.saturating_sub(at).clamp(1, left);
            cursor.at = end;
            if end >= places {
                cursor.next_policy();
            }
        }
        budget - left
    }
}

/// How far a [`PatternMap::sweep`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SweepCursor {
    /// None: at the end.
    policy: Option<Match>,
    at: usize,
}

impl Default for SweepCursor {
    /// At the beginning.
    fn default() -> Self {
        Self { policy: Some(Match::Exact), at: 0 }
    }
}

impl SweepCursor {
    /// True when every place was looked at.
    pub fn is_done(&self) -> bool {
        self.policy.is_none()
    }

    fn next_policy(&mut self) {
        self.at = 0;
        self.policy = match self.policy {
            Some(Match::Exact) => Some(Match::Prefix),
            Some(Match::Prefix) => Some(Match::Wildcard),
            Some(Match::Wildcard) | None => None,
        };
    }
}

#[cfg(test)]
pub(crate) mod tests;
