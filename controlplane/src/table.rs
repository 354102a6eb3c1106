//! Routes in order, in groups of chunks that are shared with whoever builds a snapshot of them.
//!
//! ```text
//! groups ─ share ─▶ a list of the groups ─▶ builder, on another thread
//!    └─ a change copies the one chunk it is in, and the list of chunks of its group, if somebody else still reads them
//! ```
//! Invariants: rows ascend by key over all chunks; no chunk is empty or longer than [`CHUNK_ROWS_MAX`], no group empty or longer
//! than [`GROUP_CHUNKS_MAX`]. A change costs a search and at most the copies of a chunk and of a list of chunks, whatever the number
//! of routes; sharing costs one count a group, of which a million routes have about a hundred.

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
type Chunk<V> = Arc<Vec<Row<V>>>;
type Group<V> = Arc<Vec<Chunk<V>>>;
/// Group, chunk in it, row in that.
type Place = (usize, usize, usize);

#[derive(Clone, Debug)]
pub struct Table<V> {
    groups: Vec<Group<V>>,
    len: usize,
}

/// The rows of a table as they were when it was shared.
#[derive(Clone, PartialEq, Debug)]
pub struct Rows<V> {
    groups: Vec<Group<V>>,
    len: usize,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { groups: Vec::new(), len: 0 }
    }
}

impl<V> Default for Rows<V> {
    fn default() -> Self {
        Self { groups: Vec::new(), len: 0 }
    }
}

impl<V> Rows<V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Row<V>> {
        rows(&self.groups)
    }
}

fn rows<V>(groups: &[Group<V>]) -> impl Iterator<Item = &Row<V>> {
    groups.iter().flat_map(|group| group.iter()).flat_map(|chunk| chunk.iter())
}

impl<V: Clone> Table<V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, key: Key<'_>) -> Option<&V> {
        let (group, chunk, at) = self.find(key).ok()?;
        Some(&self.groups[group][chunk][at].value)
    }

    /// The value of a key, which is put there when it is new.
    pub fn get_or_insert(&mut self, key: Key<'_>, value: impl FnOnce() -> V) -> &mut V {
        let (group, chunk, at) = match self.find(key) {
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
        &mut self.chunk(group, chunk)[at].value
    }

    /// Changes the value of a key, if there is one. The row goes when `change` says false.
    pub fn update(&mut self, key: Key<'_>, change: impl FnOnce(&mut V) -> bool) {
        let Ok((group, chunk, at)) = self.find(key) else { return };
        let rows = self.chunk(group, chunk);
        if !change(&mut rows[at].value) {
            rows.remove(at);
            self.len -= 1;
            self.merge(group, chunk);
        }
    }

    /// The rows as they are now.
    pub fn share(&self) -> Rows<V> {
        Rows { groups: self.groups.clone(), len: self.len }
    }

    /// In order.
    pub fn rows(&self) -> impl Iterator<Item = &Row<V>> {
        rows(&self.groups)
    }

    /// Changes all rows for which `wanted` says true; those go for which `change` says false.
    pub fn sweep_all(&mut self, wanted: impl Fn(&V) -> bool, mut change: impl FnMut(&mut Row<V>) -> bool) {
        let (mut group, mut chunk) = (0, 0);
        while let Some(chunks) = self.groups.get(group) {
            if chunk == chunks.len() {
                (group, chunk) = (group + 1, 0);
                continue;
            }
            // Where a chunk goes, and its group with the last one, the next one takes its place.
            if self.sweep_chunk(group, chunk, &wanted, &mut change) {
                chunk += 1;
            }
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
        let (mut group, mut chunk) = (0, 0);
        if let Some(from) = from {
            let is_over = |chunk: &Chunk<V>| chunk.last().is_none_or(|last| last.key() <= from.key());
            group = self.groups.partition_point(|chunks| chunks.last().is_none_or(is_over));
            chunk = self.groups.get(group)?.partition_point(is_over);
        }
        let last = self.groups.get(group)?.get(chunk)?.last().cloned();
        self.sweep_chunk(group, chunk, &wanted, &mut change);
        last
    }

    /// False when nothing is left of the chunk.
    fn sweep_chunk(
        &mut self,
        group: usize,
        chunk: usize,
        wanted: impl Fn(&V) -> bool,
        change: &mut impl FnMut(&mut Row<V>) -> bool,
    ) -> bool {
        if !self.groups[group][chunk].iter().any(|row| wanted(&row.value)) {
            return true;
        }
        let rows = self.chunk(group, chunk);
        let before = rows.len();
        rows.retain_mut(|row| !wanted(&row.value) || change(row));
        let after = rows.len();
        self.len -= before - after;
        if after == 0 {
            self.remove_chunk(group, chunk);
        }
        after > 0
    }

    /// The rows of a chunk, to be changed.
    fn chunk(&mut self, group: usize, chunk: usize) -> &mut Vec<Row<V>> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.groups[group])[chunk])
    }

    /// The place of a key, or where it belongs.
    fn find(&self, key: Key<'_>) -> Result<Place, Place> {
        let after = self.groups.partition_point(|chunks| chunks[0][0].key() <= key);
        let Some(group) = after.checked_sub(1) else { return Err((0, 0, 0)) };
        let chunks = &self.groups[group];
        let chunk = chunks.partition_point(|chunk| chunk[0].key() <= key) - 1;
        match chunks[chunk].binary_search_by(|row| row.key().cmp(&key)) {
            Ok(at) => Ok((group, chunk, at)),
            Err(at) => Err((group, chunk, at)),
        }
    }

    /// Puts a row where it belongs and returns where it is.
    fn insert(&mut self, (group, chunk, at): Place, row: Row<V>) -> Place {
        if self.groups.is_empty() {
            self.len += 1;
            self.groups.push(Arc::new(vec![Arc::new(vec![row])]));
            return (0, 0, 0);
        }
        if self.groups[group][chunk].len() < CHUNK_ROWS_MAX {
            self.len += 1;
            self.chunk(group, chunk).insert(at, row);
            return (group, chunk, at);
        }
        if at == CHUNK_ROWS_MAX {
            // Rows that come in order fill their chunks.
            self.len += 1;
            let (group, chunk) = self.insert_chunk(group, chunk + 1, vec![row]);
            return (group, chunk, 0);
        }
        let upper = self.chunk(group, chunk).split_off(CHUNK_ROWS_MAX / 2);
        self.insert_chunk(group, chunk + 1, upper);
        match self.find(row.key()) {
            // Both halves have room.
            Err(place) => self.insert(place, row),
            Ok(place) => place,
        }
    }

    /// Puts a chunk before that at `chunk` of a group and returns where it is.
    fn insert_chunk(&mut self, group: usize, chunk: usize, rows: Vec<Row<V>>) -> (usize, usize) {
        let new = Arc::new(rows);
        if self.groups[group].len() < GROUP_CHUNKS_MAX {
            Arc::make_mut(&mut self.groups[group]).insert(chunk, new);
            return (group, chunk);
        }
        if chunk == GROUP_CHUNKS_MAX {
            self.groups.insert(group + 1, Arc::new(vec![new]));
            return (group + 1, 0);
        }
        let upper = Arc::make_mut(&mut self.groups[group]).split_off(GROUP_CHUNKS_MAX / 2);
        self.groups.insert(group + 1, Arc::new(upper));
        let (group, chunk) = match chunk.checked_sub(GROUP_CHUNKS_MAX / 2) {
            Some(chunk) => (group + 1, chunk),
            None => (group, chunk),
        };
        Arc::make_mut(&mut self.groups[group]).insert(chunk, new);
        (group, chunk)
    }

    fn remove_chunk(&mut self, group: usize, chunk: usize) {
        if self.groups[group].len() == 1 {
            self.groups.remove(group);
        } else {
            Arc::make_mut(&mut self.groups[group]).remove(chunk);
        }
    }

    /// Joins a chunk that has lost a row with its neighbours in its group where both are short, and its group with its own.
    fn merge(&mut self, group: usize, chunk: usize) {
        if self.groups[group][chunk].is_empty() {
            self.remove_chunk(group, chunk);
        } else {
            self.join_chunks(group, chunk);
            chunk.checked_sub(1).into_iter().for_each(|before| self.join_chunks(group, before));
        }
        self.join_groups(group);
        group.checked_sub(1).into_iter().for_each(|before| self.join_groups(before));
    }

    /// Joins a chunk with the next one of its group, if there is one and both are short.
    fn join_chunks(&mut self, group: usize, chunk: usize) {
        let chunks = &self.groups[group];
        let Some(next) = chunks.get(chunk + 1) else { return };
        if chunks[chunk].len() + next.len() <= CHUNK_ROWS_MAX / 2 {
            let next = Arc::make_mut(&mut self.groups[group]).remove(chunk + 1);
            let next = Arc::try_unwrap(next).unwrap_or_else(|shared| (*shared).clone());
            self.chunk(group, chunk).extend(next);
        }
    }

    /// Joins a group with the next one, if there is one and both are short.
    fn join_groups(&mut self, group: usize) {
        if let (Some(one), Some(next)) = (self.groups.get(group), self.groups.get(group + 1))
            && one.len() + next.len() <= GROUP_CHUNKS_MAX / 2
        {
            let next = self.groups.remove(group + 1);
            Arc::make_mut(&mut self.groups[group]).extend(next.iter().cloned());
        }
    }
}

/// Rows of a chunk: few enough to be copied in some microseconds.
pub const CHUNK_ROWS_MAX: usize = 512;
/// Chunks of a group: few enough for their list to be copied in some microseconds, many enough that a list of the groups of a
/// million routes is short.
pub const GROUP_CHUNKS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(uri: &str) -> Key<'_> {
        Key { realm: RealmId(1), kind: RouteKind::Topic, policy: Match::Exact, uri }
    }

    fn chunks(table: &Table<u32>) -> impl Iterator<Item = &Chunk<u32>> {
        table.groups.iter().flat_map(|group| group.iter())
    }

    fn check(table: &Table<u32>, model: &BTreeMap<String, u32>) {
        let rows: Vec<_> = table.rows().map(|row| (row.uri.to_string(), row.value)).collect();
        assert_eq!(rows, model.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(table.len(), model.len());
        assert!(chunks(table).all(|chunk| (1..=CHUNK_ROWS_MAX).contains(&chunk.len())));
        assert!(table.groups.iter().all(|group| (1..=GROUP_CHUNKS_MAX).contains(&group.len())));
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
        assert_eq!(chunks(&table).count(), 5_000usize.div_ceil(CHUNK_ROWS_MAX), "in order, chunks fill");
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
        assert_eq!(chunks(&table).count(), 1);
    }

    /// Many groups that fill, split, are swept and merge, against a map.
    #[test]
    fn groups_fill_split_and_merge() {
        let rows = (GROUP_CHUNKS_MAX * CHUNK_ROWS_MAX * 5 / 2) as u32;
        let (mut table, mut model) = (Table::default(), BTreeMap::new());
        for n in 0..rows {
            let uri = format!("{:06}", u64::from(n) * 7_919 % u64::from(rows));
            table.get_or_insert(key(&uri), || n);
            model.insert(uri, n);
        }
        check(&table, &model);
        assert!(table.groups.len() > 3);
        let shared = table.share();
        let mut emptied = table.clone();
        emptied.sweep_all(|_| true, |_| false);
        check(&emptied, &BTreeMap::new());
        table.sweep_all(|value| value % 3 == 0, |_| false);
        model.retain(|_, value| *value % 3 != 0);
        check(&table, &model);
        for (uri, value) in model.clone() {
            if value % 1_009 > 0 {
                table.update(key(&uri), |_| false);
                model.remove(&uri);
            }
        }
        check(&table, &model);
        assert_eq!(table.groups.len(), 1, "short groups are joined");
        assert!(chunks(&table).count() <= 4, "and short chunks in them");
        assert_eq!(shared.iter().count(), rows as usize);
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
        let values: Vec<_> = shared.iter().map(|row| row.value).collect();
        assert_eq!((values, shared.len()), ((0..2_000).collect::<Vec<_>>(), 2_000));
        let before = shared.groups.iter().flat_map(|group| group.iter());
        let copied = chunks(&table).zip(before).filter(|(new, old)| !Arc::ptr_eq(new, old)).count();
        assert_eq!(copied, 2, "the others are still the same");
    }

    #[test]
    fn a_sweep_in_slices_sees_every_row() {
        for gone in [2, 3] {
            let mut table = Table::default();
            for n in 0..3_000u32 {
                table.get_or_insert(key(&format!("{n:05}")), || n);
            }
            let (mut from, mut seen, mut slices) = (None, 0, 0);
            loop {
                slices += 1;
                assert!(slices < 100, "a sweep comes to an end");
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
