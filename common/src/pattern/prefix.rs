//! Prefix patterns: a hash table, and the distinct lengths of its patterns.
//!
//! A look-up hashes the URI once, from the left, and asks the table at each length that some pattern has: at most
//! `min(URI bytes, distinct lengths) + 1` probes, however many patterns there are and however they were chosen.

use super::hash::{Running, UriHash};
use super::table::Table;
use crate::limits::URI_BYTES_MAX;
use arrayvec::ArrayVec;

#[derive(Clone, Debug)]
pub(super) struct Prefixes<V> {
    hash: UriHash,
    table: Table<V>,
    /// (length in bytes, patterns of that length), ascending, no count zero.
    lengths: Vec<(usize, usize)>,
}

impl<V> Prefixes<V> {
    pub(super) fn new(hash: UriHash) -> Self {
        Self { hash, table: Table::new(hash), lengths: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn get(&self, pattern: &str) -> Option<&V> {
        self.table.get(pattern)
    }

    pub(super) fn get_mut(&mut self, pattern: &str) -> Option<&mut V> {
        self.table.get_mut(pattern)
    }

    pub(super) fn insert(&mut self, pattern: &str, value: V) -> Option<V> {
        let old = self.table.insert(pattern, value);
        if old.is_none() {
            match self.lengths.binary_search_by_key(&pattern.len(), |&(length, _)| length) {
                Ok(at) => self.lengths[at].1 += 1,
                Err(at) => self.lengths.insert(at, (pattern.len(), 1)),
            }
        }
        old
    }

    pub(super) fn remove(&mut self, pattern: &str) -> Option<V> {
        let value = self.table.remove(pattern)?;
        forget(&mut self.lengths, pattern.len());
        Some(value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.table.iter()
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&str, &mut V) -> bool) {
        let lengths = &mut self.lengths;
        self.table.retain(|pattern, value| {
            let kept = keep(pattern, value);
            if !kept {
                forget(lengths, pattern.len());
            }
            kept
        });
    }

    /// As [`super::PatternMap::sweep`], of places `at` up to but not including `end`.
    pub(super) fn sweep(&mut self, at: usize, end: usize, mut keep: impl FnMut(&str, &mut V) -> bool) {
        let lengths = &mut self.lengths;
        self.table.sweep(at, end, |pattern, value| {
            let kept = keep(pattern, value);
            if !kept {
                forget(lengths, pattern.len());
            }
            kept
        });
    }

    pub(super) fn places(&self) -> usize {
        self.table.places()
    }

    /// Calls `found` for the patterns that are prefixes of `uri`, longest first, until it says true; false when it
    /// never did.
    #[inline]
    pub(super) fn find_match<'a>(&'a self, uri: &str, mut found: impl FnMut(&'a str, &'a V) -> bool) -> bool {
        if self.lengths.is_empty() {
            return false;
        }
        let mut probes = Probes::new();
        probe(&mut probes, self.hash.running(&[]), uri, self.lengths.iter().map(|&(length, _)| length));
        for (&hash, &(length, _)) in probes.iter().zip(&self.lengths).rev() {
            if let Some((pattern, value)) = self.table.find_hashed(hash, &uri.as_bytes()[..length])
                && found(pattern, value)
            {
                return true;
            }
        }
        false
    }
}

fn forget(lengths: &mut Vec<(usize, usize)>, length: usize) {
    let at = lengths
        .binary_search_by_key(&length, |&(length, _)| length)
        .expect("every pattern's length is counted");
    lengths[at].1 -= 1;
    if lengths[at].1 == 0 {
        lengths.remove(at);
    }
}

/// The hashes to probe for the prefixes of one URI.
pub(crate) type Probes = ArrayVec<u64, PROBES_MAX>;

/// Most probes of one look-up: every length from 0 to [`URI_BYTES_MAX`].
pub(crate) const PROBES_MAX: usize = URI_BYTES_MAX + 1;

/// Adds a hash for each of the `lengths`, which ascend, that `uri` has: that of what `running` was given and of so many
/// bytes of `uri`. Patterns longer than [`URI_BYTES_MAX`] are no patterns.
///
/// `probes` is lent, since moving so large a value would cost more than the rest of most look-ups.
#[inline]
pub(crate) fn probe(
    probes: &mut Probes,
    mut running: Running,
    uri: &str,
    lengths: impl Iterator<Item = usize>,
) {
    let uri = uri.as_bytes();
    let length_max = uri.len().min(URI_BYTES_MAX);
    let mut hashed = 0;
    for length in lengths.take_while(|&length| length <= length_max) {
        running.extend(&uri[hashed..length]);
        hashed = length;
        probes.push(running.hash());
    }
}
