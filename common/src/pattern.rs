//! A changing map from (matching policy, URI pattern) to values, answering which patterns match a URI.

use crate::ids::Match;

/// A map keyed by (policy, pattern). Look-ups by URI allocate nothing. Hashing is keyed at random, so a peer cannot
/// choose URIs that collide.
#[derive(Debug)]
pub struct PatternMap<V> {
    _todo: std::marker::PhantomData<V>,
}

impl<V> Default for PatternMap<V> {
    fn default() -> Self {
        unimplemented!()
    }
}

impl<V> PatternMap<V> {
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, policy: Match, pattern: &str) -> Option<&V> {
        let _ = (policy, pattern);
        unimplemented!()
    }

    pub fn get_mut(&mut self, policy: Match, pattern: &str) -> Option<&mut V> {
        let _ = (policy, pattern);
        unimplemented!()
    }

    /// Puts a value and returns the one it replaced.
    pub fn insert(&mut self, policy: Match, pattern: &str, value: V) -> Option<V> {
        let _ = (policy, pattern, value);
        unimplemented!()
    }

    pub fn remove(&mut self, policy: Match, pattern: &str) -> Option<V> {
        let _ = (policy, pattern);
        unimplemented!()
    }

    /// Calls `found` for every pattern that matches `uri`: the exact one, then prefixes from the longest to the
    /// shortest, then wildcards in an unspecified but repeatable order.
    pub fn for_each_match<'a>(&'a self, uri: &str, found: impl FnMut(Match, &'a str, &'a V)) {
        let _ = (uri, found);
        unimplemented!()
    }

    /// The one pattern the dealer must choose for `uri` (WAMP, advanced profile, "Pattern-based Registrations"):
    /// exact, else the longest prefix, else the wildcard whose literal runs, compared from the left, are longest.
    pub fn best_match(&self, uri: &str) -> Option<(Match, &str, &V)> {
        let _ = uri;
        unimplemented!()
    }

    /// Every entry, in an unspecified order.
    pub fn iter(&self) -> impl Iterator<Item = (Match, &str, &V)> {
        std::iter::empty()
    }

    /// Keeps the entries for which `keep` says true.
    pub fn retain(&mut self, keep: impl FnMut(Match, &str, &mut V) -> bool) {
        let _ = keep;
        unimplemented!()
    }
}
