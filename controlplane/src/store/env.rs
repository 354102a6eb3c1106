//! LMDB: the one file that names heed.
//!
//! Default sync flags: a commit is two flushes, and what is acknowledged survives a power cut. Never WRITE_MAP (a full
//! disk would kill the process), never NO_SYNC. The environment belongs to the store thread alone; a frozen disk blocks
//! that thread and nobody else.

use super::engine::{Engine, EngineError, Files, Found, Place, Row, Usage, Write};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, MdbError, WithoutTls};
use std::fs::File;
use std::io::Write as _;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Sizes of the memory map, bytes: address space, not disk. Multiples of the page size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapBytes {
    pub start: usize,
    pub max: usize,
}

#[derive(Debug)]
pub struct LmdbEngine {
    env: Env<WithoutTls>,
    objects: Database<'static, Bytes, Bytes>,
    sums: Database<'static, Bytes, Bytes>,
    meta: Database<'static, Bytes, Bytes>,
    map_max: usize,
    folder: PathBuf,
}

impl LmdbEngine {
    /// Opens or creates the store in `folder`, which exists.
    pub fn open(folder: &Path, map: MapBytes) -> Result<(Self, Files), EngineError> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.max_dbs(DATABASES_MAX).max_readers(READERS_MAX);
        let known = std::fs::metadata(folder.join(DATA_FILE)).map_or(0, |file| file.len() as usize);
        let page = rustix::param::page_size();
        options.map_size(map.start.max(known.next_multiple_of(page)));
        // SAFETY: the folder's lock file keeps other control planes out, nothing else writes the data file, no flag
        // weakens LMDB's own locking, and the environment is opened once in this process (heed refuses a second time).
        let env = unsafe { options.open(folder) }.map_err(broken)?;
        let txn = env.write_txn().map_err(broken)?;
        let (objects, sums, meta) = env
            .create_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
                let objects = opener.create_database::<Bytes, Bytes>(txn, Some("objects"))?;
                let sums = opener.create_database::<Bytes, Bytes>(txn, Some("sums"))?;
                let meta = opener.create_database::<Bytes, Bytes>(txn, Some("meta"))?;
                Ok(CommitOrAbort::<_, ()>::Commit((objects, sums, meta)))
            })
            .map_err(broken)?
            .unwrap_commit();
        let inode = std::fs::metadata(folder.join(DATA_FILE)).map_err(broken)?.ino();
        let was_broken = folder.join(BROKEN_FILE).exists();
        let files = Files { inode, was_broken };
        let engine = Self { env, objects, sums, meta, map_max: map.max, folder: folder.to_owned() };
        Ok((engine, files))
    }

    fn write(&self, writes: &[Write]) -> heed::Result<()> {
        let mut txn = self.env.write_txn()?;
        for write in writes {
            match write {
                Write::Object { place, record } => self.objects.put(&mut txn, place, record)?,
                Write::Gone { place } => {
                    self.objects.delete(&mut txn, place)?;
                }
                Write::Sum { row, bytes } => self.sums.put(&mut txn, row, bytes)?,
                Write::Meta { row, bytes } => self.meta.put(&mut txn, row.name(), bytes)?,
                Write::Clear => {
                    self.objects.clear(&mut txn)?;
                    self.sums.clear(&mut txn)?;
                }
            }
        }
        txn.commit()
    }

    fn map_bytes(&self) -> usize {
        self.env.info().map_size
    }
}

impl Engine for LmdbEngine {
    fn get(&self, place: &Place) -> Result<Option<Vec<u8>>, EngineError> {
        let txn = self.env.read_txn().map_err(broken)?;
        let record = self.objects.get(&txn, place).map_err(broken)?;
        Ok(record.map(<[u8]>::to_vec))
    }

    fn walk(&self, from: &[u8], found: Found<'_>) -> Result<(), EngineError> {
        let txn = self.env.read_txn().map_err(broken)?;
        // LMDB knows no empty key.
        let first = if from.is_empty() { Bound::Unbounded } else { Bound::Included(from) };
        let range = (first, Bound::Unbounded);
        for entry in self.objects.range(&txn, &range).map_err(broken)? {
            let (key, record) = entry.map_err(broken)?;
            if found(key, record).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn sums(&self, found: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), EngineError> {
        let txn = self.env.read_txn().map_err(broken)?;
        for entry in self.sums.iter(&txn).map_err(broken)? {
            let (row, bytes) = entry.map_err(broken)?;
            found(row, bytes);
        }
        Ok(())
    }

    fn meta(&self, row: Row) -> Result<Option<Vec<u8>>, EngineError> {
        let txn = self.env.read_txn().map_err(broken)?;
        let bytes = self.meta.get(&txn, row.name()).map_err(broken)?;
        Ok(bytes.map(<[u8]>::to_vec))
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), EngineError> {
        loop {
            match self.write(writes) {
                Ok(()) => return Ok(()),
                Err(heed::Error::Mdb(MdbError::MapFull)) => {
                    let map_bytes = self.map_bytes();
                    let larger = map_bytes.saturating_mul(2).min(self.map_max);
                    if larger <= map_bytes {
                        return Err(EngineError::Full { map_bytes: map_bytes as u64 });
                    }
                    // SAFETY: no transaction is open: transactions live inside the methods of this type, which one
                    // thread calls one after the other (`&mut self` here), and `write` has dropped its own.
                    unsafe { self.env.resize(larger) }.map_err(broken)?;
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }

    fn usage(&self) -> Usage {
        let info = self.env.info();
        let used = (info.last_page_number as u64 + 1) * rustix::param::page_size() as u64;
        Usage { map_bytes: info.map_size as u64, used_bytes: used }
    }

    fn mark_broken(&mut self) {
        let _ = std::fs::write(self.folder.join(BROKEN_FILE), b"a commit failed\n");
    }

    fn forget_broken(&mut self) {
        let _ = std::fs::remove_file(self.folder.join(BROKEN_FILE));
    }

    fn set_aside(&mut self, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        let mut file = File::create_new(self.folder.join(name)).map_err(broken)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(broken)?;
        // The name must survive as well.
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(broken)
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EngineError {
    EngineError::Broken(error.into())
}

/// LMDB's own name.
const DATA_FILE: &str = "data.mdb";
const BROKEN_FILE: &str = "broken";
const DATABASES_MAX: u32 = 8;
const READERS_MAX: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::ControlFlow;

    pub(crate) const SMALL: MapBytes = MapBytes { start: 64 << 10, max: 4 << 20 };

    fn object(number: u32, bytes: usize) -> Write {
        let mut place = [0; 32];
        place[..4].copy_from_slice(&number.to_be_bytes());
        Write::Object { place, record: vec![7; bytes] }
    }

    #[test]
    fn the_map_grows_up_to_its_bound_and_then_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let (mut engine, files) = LmdbEngine::open(dir.path(), SMALL).unwrap();
        assert!(!files.was_broken);
        let mut number = 0;
        let error = loop {
            match engine.commit(&[object(number, 100_000)]) {
                Ok(()) => number += 1,
                Err(error) => break error,
            }
            assert!(number < 100);
        };
        assert!(matches!(error, EngineError::Full { map_bytes } if map_bytes == 4 << 20), "{error}");
        assert!(number > 20, "{number}");
        assert_eq!(engine.usage().map_bytes, 4 << 20);
        let mut found = 0;
        let mut count = |_: &[u8], record: &[u8]| {
            found += usize::from(record.len() == 100_000);
            ControlFlow::Continue(())
        };
        engine.walk(&[], &mut count).unwrap();
        assert_eq!(found, number as usize);
        drop(engine);
        // A store larger than the first size of the map opens all the same.
        let (engine, _) = LmdbEngine::open(dir.path(), SMALL).unwrap();
        let Write::Object { place, .. } = object(0, 0) else { unreachable!() };
        assert_eq!(engine.get(&place).unwrap().unwrap().len(), 100_000);
    }

    #[test]
    fn a_failed_transaction_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let map = MapBytes { start: 64 << 10, max: 64 << 10 };
        let (mut engine, _) = LmdbEngine::open(dir.path(), map).unwrap();
        let writes = [object(1, 100), object(2, 100_000), Write::Meta { row: Row::Identity, bytes: vec![1] }];
        assert!(matches!(engine.commit(&writes), Err(EngineError::Full { .. })));
        engine.walk(&[], &mut |_, _| panic!("an object")).unwrap();
        assert_eq!(engine.meta(Row::Identity).unwrap(), None);
        engine.commit(&[object(1, 100)]).unwrap();
    }

    #[test]
    fn a_walk_begins_where_it_is_told_and_ends_where_it_likes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut engine, _) = LmdbEngine::open(dir.path(), SMALL).unwrap();
        engine.commit(&[object(1, 1), object(2, 2), object(3, 3), object(4, 4)]).unwrap();
        let Write::Object { place, .. } = object(3, 0) else { unreachable!() };
        engine.commit(&[Write::Gone { place }, Write::Gone { place: [9; 32] }]).unwrap();
        let walked = |from: &[u8], until: usize| {
            let mut lengths = vec![];
            let mut found = |_: &[u8], record: &[u8]| {
                lengths.push(record.len());
                if record.len() == until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            engine.walk(from, &mut found).unwrap();
            lengths
        };
        assert_eq!(walked(&[], 0), [1, 2, 4]);
        assert_eq!(walked(&2u32.to_be_bytes(), 2), [2]);
        assert_eq!(walked(&place, 0), [4]);
        engine.commit(&[Write::Clear, object(7, 7)]).unwrap();
        let mut left = vec![];
        engine
            .walk(&[], &mut |_, record| {
                left.push(record.len());
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(left, [7]);
    }

    #[test]
    fn what_is_set_aside_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (mut engine, _) = LmdbEngine::open(dir.path(), SMALL).unwrap();
        engine.set_aside("aside", b"one").unwrap();
        assert!(engine.set_aside("aside", b"other").is_err());
        assert_eq!(std::fs::read(dir.path().join("aside")).unwrap(), b"one");
    }

    #[test]
    fn the_sign_of_a_failed_commit_is_seen_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (mut engine, _) = LmdbEngine::open(dir.path(), SMALL).unwrap();
        engine.mark_broken();
        drop(engine);
        let (mut engine, files) = LmdbEngine::open(dir.path(), SMALL).unwrap();
        assert!(files.was_broken);
        engine.forget_broken();
        drop(engine);
        assert!(!LmdbEngine::open(dir.path(), SMALL).unwrap().1.was_broken);
    }
}
