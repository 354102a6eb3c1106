//! Prefix patterns: a hash table, and the distinct lengths of its patterns.
//!
//! A look-up hashes the URI once, from the left, and asks the table at each length that some pattern has: at most
//! `min(URI bytes, distinct lengths) + 1` probes, however many patterns there are and however they were chosen.

use super::hash::UriHash;
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

    /// The patterns that are prefixes of `uri`, longest first.
    #[inline]
    pub(super) fn matches(&self, uri: &str) -> impl Iterator<Item = (&str, &V)> {
        let lengths = self.lengths.iter().map(|&(length, _)| length);
        let probes = probes(self.hash, &[], uri, lengths);
        let uri = uri.as_bytes();
        probes
            .into_iter()
            .rev()
            .filter_map(move |(length, hash)| self.table.find_hashed(hash, uri.get(..usize::from(length))?))
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

/// Where to probe for the prefixes of one URI: (length, hash of `head` and that many bytes), shortest first.
pub(crate) type Probes = ArrayVec<(u16, u64), PROBES_MAX>;

/// Most probes of one look-up: every length from 0 to [`URI_BYTES_MAX`].
pub(crate) const PROBES_MAX: usize = URI_BYTES_MAX + 1;

const _: () = assert!(URI_BYTES_MAX <= u16::MAX as usize);

/// The probes of `uri` at `lengths`, which ascend. Patterns longer than [`URI_BYTES_MAX`] are no patterns.
#[inline]
pub(crate) fn probes(hash: UriHash, head: &[u8], uri: &str, lengths: impl Iterator<Item = usize>) -> Probes {
    let uri = uri.as_bytes();
    let length_max = uri.len().min(URI_BYTES_MAX);
    let mut probes = Probes::new();
    let mut running = None;
    let mut hashed = 0;
    for length in lengths.take_while(|&length| length <= length_max) {
        let running = running.get_or_insert_with(|| hash.running(head));
        running.extend(&uri[hashed..length]);
        hashed = length;
        probes.push((length as u16, running.hash()));
    }
    probes
}
