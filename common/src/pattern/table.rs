//! A hash table keyed by strings, looked up by a string or by bytes and their hash.

use super::hash::UriHash;
use hashbrown::HashTable;

/// Strings to values. Memory follows the number of entries, down as well as up.
#[derive(Clone, Debug)]
pub(crate) struct Table<V> {
    hash: UriHash,
    entries: HashTable<Entry<V>>,
}

/// The hash is kept so that a table that grows reads no key: those of a large one are in no cache.
#[derive(Clone, Debug)]
struct Entry<V> {
    hash: u64,
    key: Box<str>,
    value: V,
}

impl<V> Table<V> {
    pub(crate) fn new(hash: UriHash) -> Self {
        Self { hash, entries: HashTable::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    #[inline]
    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        self.find(key).map(|(_, value)| value)
    }

    #[inline]
    pub(crate) fn find(&self, key: &str) -> Option<(&str, &V)> {
        self.find_hashed(self.hash.of(key.as_bytes()), key.as_bytes())
    }

    /// The entry of the string `bytes`, whose hash is `hash`.
    #[inline]
    pub(crate) fn find_hashed(&self, hash: u64, bytes: &[u8]) -> Option<(&str, &V)> {
        let entry = self.entries.find(hash, |entry| entry.key.as_bytes() == bytes)?;
        Some((&entry.key, &entry.value))
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        let hash = self.hash.of(key.as_bytes());
        self.entries.find_mut(hash, |entry| *entry.key == *key).map(|entry| &mut entry.value)
    }

    /// Puts a value and returns the one it replaced.
    pub(crate) fn insert(&mut self, key: &str, value: V) -> Option<V> {
        if let Some(old) = self.get_mut(key) {
            return Some(std::mem::replace(old, value));
        }
        let hash = self.hash.of(key.as_bytes());
        self.entries.insert_unique(hash, Entry { hash, key: key.into(), value }, |entry| entry.hash);
        None
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        let hash = self.hash.of(key.as_bytes());
        let entry = self.entries.find_entry(hash, |entry| *entry.key == *key).ok()?;
        let (entry, _) = entry.remove();
        self.shrink();
        Some(entry.value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.entries.iter().map(|entry| (&*entry.key, &entry.value))
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&str, &mut V) -> bool) {
        self.entries.retain(|entry| keep(&entry.key, &mut entry.value));
        self.shrink();
    }

    /// As [`super::PatternMap::sweep`], of places `at` up to but not including `end`.
    pub(crate) fn sweep(&mut self, at: usize, end: usize, mut keep: impl FnMut(&str, &mut V) -> bool) {
        for place in at..end.min(self.places()) {
            if let Ok(mut entry) = self.entries.get_bucket_entry(place) {
                let Entry { key, value, .. } = entry.get_mut();
                if !keep(key, value) {
                    entry.remove();
                }
            }
        }
        if end >= self.places() {
            self.shrink();
        }
    }

    /// Places an entry may be at.
    pub(crate) fn places(&self) -> usize {
        self.entries.num_buckets()
    }

    fn shrink(&mut self) {
        if let Some(capacity) = shrunk(self.entries.len(), self.entries.capacity()) {
            self.entries.shrink_to(capacity, |entry| entry.hash);
        }
    }
}

/// The capacity to shrink to when `len` entries leave most of `capacity` idle. Between two shrinks of one table a
/// share of its entries is removed, so the work is constant for each removal.
pub(crate) fn shrunk(len: usize, capacity: usize) -> Option<usize> {
    (capacity > CAPACITY_KEPT && len < capacity / 8).then_some(len * 2)
}

/// Tables of at most this capacity are not shrunk.
const CAPACITY_KEPT: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_the_entries_down() {
        let mut table = Table::new(UriHash::new(1));
        for n in 0..10_000 {
            table.insert(&format!("topic.{n}"), n);
        }
        for n in 0..10_000 {
            assert_eq!(table.remove(&format!("topic.{n}")), Some(n));
        }
        assert!(table.entries.capacity() <= CAPACITY_KEPT, "{}", table.entries.capacity());
    }
}
