//! Routes in order, in chunks that are shared with whoever builds a snapshot of them.
//!
//! ```text
//! chunks ─ share ─▶ a list of the chunks ─▶ builder, on another thread
//!    └─ a change copies the one chunk it is in, if somebody else still reads it
//! ```
//! Invariants: rows ascend by key over all chunks; no chunk is empty or longer than [`CHUNK_ROWS_MAX`]. A change costs a
//! search and at most the copy of a chunk, whatever the number of routes; sharing costs one count a chunk.

use common::ids::{Match, RealmId, RouteKind};
use std::sync::Arc;

/// What routes are sorted by: the order of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key<'a> {
    pub realm: RealmId,
    pub kind: RouteKind,
    pub policy: Match,
    pub uri: &'a str,
}

/// A route and what is known of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row<V> {
    pub realm: RealmId,
    pub kind: RouteKind,
    pub policy: Match,
    pub uri: Arc<str>,
    pub value: V,
}

impl<V> Row<V> {
    pub fn key(&self) -> Key<'_> {
        Key { realm: self.realm, kind: self.kind, policy: self.policy, uri: &self.uri }
    }
}

/// A part of a table that does not change while it is shared.
pub type Chunk<V> = Arc<Vec<Row<V>>>;

#[derive(Clone, Debug)]
pub struct Table<V> {
    chunks: Vec<Chunk<V>>,
    len: usize,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<V: Clone> Table<V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, key: Key<'_>) -> Option<&V> {
        let (chunk, at) = self.find(key).ok()?;
        Some(&self.chunks[chunk][at].value)
    }

    /// The value of a key, which is put there when it is new.
    pub fn get_or_insert(&mut self, key: Key<'_>, value: impl FnOnce() -> V) -> &mut V {
        let (chunk, at) = match self.find(key) {
            Ok(place) => place,
            Err(place) => {
                let row = Row {
                    realm: key.realm,
                    kind: key.kind,
                    policy: key.policy,
                    uri: key.uri.into(),
                    value: value(),
                };
                self.insert(place, row)
            }
        };
        &mut Arc::make_mut(&mut self.chunks[chunk])[at].value
    }

    /// Changes the value of a key, if there is one. The row goes when `change` says false.
    pub fn update(&mut self, key: Key<'_>, change: impl FnOnce(&mut V) -> bool) {
        let Ok((chunk, at)) = self.find(key) else { return };
        let rows = Arc::make_mut(&mut self.chunks[chunk]);
        if !change(&mut rows[at].value) {
            rows.remove(at);
            self.len -= 1;
            self.merge(chunk);
        }
    }

    /// The chunks as they are now.
    pub fn share(&self) -> Vec<Chunk<V>> {
        self.chunks.clone()
    }

    /// In order.
    pub fn rows(&self) -> impl Iterator<Item = &Row<V>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Changes all rows for which `wanted` says true; those go for which `change` says false.
    pub fn sweep_all(&mut self, wanted: impl Fn(&V) -> bool, mut change: impl FnMut(&mut Row<V>) -> bool) {
        let mut at = 0;
        while at < self.chunks.len() {
            at = self.sweep_chunk(at, &wanted, &mut change);
        }
    }

    /// As [`Table::sweep_all`], of the chunk from the row after `from` on. Returns the last row that was looked at, or
    /// none when it was the last chunk.
    pub fn sweep(
        &mut self,
        from: Option<&Row<V>>,
        wanted: impl Fn(&V) -> bool,
        mut change: impl FnMut(&mut Row<V>) -> bool,
    ) -> Option<Row<V>> {
        let at = from.map_or(0, |from| {
            let after = |chunk: &Chunk<V>| chunk.last().is_none_or(|last| last.key() <= from.key());
            self.chunks.partition_point(after)
        });
        let last = self.chunks.get(at)?.last().cloned();
        self.sweep_chunk(at, &wanted, &mut change);
        last
    }

    /// Returns the index of the next chunk.
    fn sweep_chunk(
        &mut self,
        at: usize,
        wanted: impl Fn(&V) -> bool,
        change: &mut impl FnMut(&mut Row<V>) -> bool,
    ) -> usize {
        if !self.chunks[at].iter().any(|row| wanted(&row.value)) {
            return at + 1;
        }
        let rows = Arc::make_mut(&mut self.chunks[at]);
        let before = rows.len();
        rows.retain_mut(|row| !wanted(&row.value) || change(row));
        self.len -= before - rows.len();
        if rows.is_empty() {
            self.chunks.remove(at);
            return at;
        }
        at + 1
    }

    /// Chunk and place of a key, or where it belongs.
    fn find(&self, key: Key<'_>) -> Result<(usize, usize), (usize, usize)> {
        let after = self.chunks.partition_point(|chunk| chunk[0].key() <= key);
        let Some(chunk) = after.checked_sub(1) else { return Err((0, 0)) };
        match self.chunks[chunk].binary_search_by(|row| row.key().cmp(&key)) {
            Ok(at) => Ok((chunk, at)),
            Err(at) => Err((chunk, at)),
        }
    }

    /// Puts a row where it belongs and returns where it is.
    fn insert(&mut self, (chunk, at): (usize, usize), row: Row<V>) -> (usize, usize) {
        self.len += 1;
        let Some(shared) = self.chunks.get_mut(chunk) else {
            self.chunks.push(Arc::new(vec![row]));
            return (chunk, 0);
        };
        if shared.len() < CHUNK_ROWS_MAX {
            Arc::make_mut(shared).insert(at, row);
            return (chunk, at);
        }
        if at == CHUNK_ROWS_MAX {
            // Rows that come in order fill their chunks.
            self.chunks.insert(chunk + 1, Arc::new(vec![row]));
            return (chunk + 1, 0);
        }
        let upper = Arc::make_mut(shared).split_off(CHUNK_ROWS_MAX / 2);
        self.chunks.insert(chunk + 1, Arc::new(upper));
        let (chunk, at) =
            if at > CHUNK_ROWS_MAX / 2 { (chunk + 1, at - CHUNK_ROWS_MAX / 2) } else { (chunk, at) };
        Arc::make_mut(&mut self.chunks[chunk]).insert(at, row);
        (chunk, at)
    }

    /// Joins a chunk that has lost a row with the next one, when both are short.
    fn merge(&mut self, chunk: usize) {
        if self.chunks[chunk].is_empty() {
            self.chunks.remove(chunk);
            return;
        }
        let next = self.chunks.get(chunk + 1).map_or(usize::MAX, |next| next.len());
        if self.chunks[chunk].len().saturating_add(next) <= CHUNK_ROWS_MAX / 2 {
            let next = self.chunks.remove(chunk + 1);
            let next = Arc::try_unwrap(next).unwrap_or_else(|shared| (*shared).clone());
            Arc::make_mut(&mut self.chunks[chunk]).extend(next);
        }
    }
}

/// Rows of a chunk: few enough to be copied in some microseconds, many enough that a list of the chunks of a million
/// routes is short.
pub const CHUNK_ROWS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(uri: &str) -> Key<'_> {
        Key { realm: RealmId(1), kind: RouteKind::Topic, policy: Match::Exact, uri }
    }

    fn check(table: &Table<u32>, model: &BTreeMap<String, u32>) {
        let rows: Vec<_> = table.rows().map(|row| (row.uri.to_string(), row.value)).collect();
        assert_eq!(rows, model.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(table.len(), model.len());
        assert!(table.chunks.iter().all(|chunk| (1..=CHUNK_ROWS_MAX).contains(&chunk.len())));
    }

    proptest! {
        #[test]
        fn a_table_is_a_sorted_map(ops in proptest::collection::vec((0u8..8, 0u32..3_000), 0..3_000)) {
            let (mut table, mut model) = (Table::default(), BTreeMap::new());
            for (op, n) in ops {
                let uri = format!("{:04}", n * 7 % 3_000);
                match op {
                    0..=4 => {
                        *table.get_or_insert(key(&uri), || 0) += n;
                        *model.entry(uri.clone()).or_insert(0) += n;
                    }
                    5..=6 => {
                        table.update(key(&uri), |value| *value % 3 == 0);
                        if model.get(&uri).is_some_and(|value| value % 3 != 0) {
                            model.remove(&uri);
                        }
                    }
                    _ => table.update(key(&uri), |value| {
                        *value += 1;
                        model.insert(uri.clone(), *value);
                        true
                    }),
                }
                assert_eq!(table.get(key(&uri)), model.get(&uri));
            }
            check(&table, &model);
        }
    }

    #[test]
    fn chunks_fill_split_and_merge() {
        let (mut table, mut model) = (Table::default(), BTreeMap::new());
        for n in 0..5_000 {
            let uri = format!("{n:05}");
            table.get_or_insert(key(&uri), || n);
            model.insert(uri, n);
        }
        assert_eq!(table.chunks.len(), 5_000usize.div_ceil(CHUNK_ROWS_MAX), "in order, chunks fill");
        for n in (0..5_000).rev() {
            let uri = format!("{n:05}x");
            table.get_or_insert(key(&uri), || n);
            model.insert(uri, n);
        }
        check(&table, &model);
        for n in 0..4_990 {
            table.update(key(&format!("{n:05}")), |_| false);
            table.update(key(&format!("{n:05}x")), |_| false);
            model.retain(|uri, _| !uri.starts_with(&format!("{n:05}")));
        }
        check(&table, &model);
        assert_eq!(table.chunks.len(), 1);
    }

    #[test]
    fn what_was_shared_stays_as_it_was() {
        let mut table = Table::default();
        for n in 0..2_000 {
            table.get_or_insert(key(&format!("{n:05}")), || n);
        }
        let shared = table.share();
        table.update(key("00003"), |_| false);
        *table.get_or_insert(key("01999"), || 0) += 1;
        table.get_or_insert(key("00003y"), || 7);
        let values: Vec<_> = shared.iter().flat_map(|chunk| chunk.iter().map(|row| row.value)).collect();
        assert_eq!(values, (0..2_000).collect::<Vec<_>>());
        let copied = table.chunks.iter().zip(&shared).filter(|(new, old)| !Arc::ptr_eq(new, old)).count();
        assert_eq!(copied, 2, "the others are still the same");
    }

    #[test]
    fn a_sweep_in_slices_sees_every_row() {
        for gone in [2, 3] {
            let mut table = Table::default();
            for n in 0..3_000u32 {
                table.get_or_insert(key(&format!("{n:05}")), || n);
            }
            let (mut from, mut seen) = (None, 0);
            loop {
                from = table.sweep(
                    from.as_ref(),
                    |value| value % gone == 0,
                    |_| {
                        seen += 1;
                        false
                    },
                );
                if from.is_none() {
                    break;
                }
            }
            assert_eq!((seen, table.len()), (3_000 / gone, (3_000 - 3_000 / gone) as usize));
        }
        let mut table = Table::default();
        for n in 0..3_000u32 {
            table.get_or_insert(key(&format!("{n:05}")), || n);
        }
        table.sweep_all(|_| true, |row| row.value == 5);
        assert_eq!(table.rows().map(|row| row.value).collect::<Vec<_>>(), [5]);
    }
}
