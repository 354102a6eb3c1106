//! The node's objects on disk.
//!
//! One thread owns the LMDB environment ([`env`], the only file that names heed); the rest of the process sends it
//! requests over a bounded channel and waits for the flush ([`worker`]). Objects are kept in the form of [`record`].
//! ```text
//! put ─▶ bounded channel ─▶ store thread: group ─▶ one transaction, flushed ─▶ answer
//! ```
//! The first commit that fails poisons the store: nothing is acknowledged any more, what was read goes on being served,
//! and the next start takes a new epoch.

pub mod engine;
mod env;
mod identity;
pub mod realm;
pub mod record;
mod sums;
mod worker;

pub use env::MapBytes;

use crate::replica::hashtree::{HashTree, TreeKey, bucket_of};
use crate::replica::hlc::FutureStamp;
use crossbeam_channel::{Sender, TrySendError};
use engine::{Engine, EngineError};
use env::{Files, LmdbEngine};
use identity::Identity;
use record::{Actor, Hlc, Kind, Object, ObjectError, place};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use tracing::{error, info, warn};
use worker::{Change, Worker, new_epoch};

/// Access to the store thread.
#[derive(Clone, Debug)]
pub struct Store {
    requests: Sender<Request>,
    stats: Arc<Stats>,
    actor: Actor,
}

/// A store that was opened.
#[derive(Debug)]
pub struct Opened {
    pub store: Store,
    pub thread: StoreThread,
    pub objects: Vec<Object>,
    /// Records that are not served, and why.
    pub corrupt: Vec<Corrupt>,
    /// Snapshot versions up to this one may have been used.
    pub versions_reserved: u64,
}

/// A damaged record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Corrupt {
    /// Its key in the store, as hexadecimal digits.
    pub place: String,
    pub reason: String,
}

/// Joins the store thread on drop, once every [`Store`] is gone.
#[derive(Debug)]
pub struct StoreThread(Option<JoinHandle<()>>);

/// Why a change is not stored.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// It is not known whether it is stored.
    #[error("the store is out of order after a failed write; restart the control plane")]
    Poisoned,
    /// Nothing was stored.
    #[error("the store has reached its largest size, {map_bytes} bytes")]
    Full { map_bytes: u64 },
    /// Nothing was stored.
    #[error("{REQUESTS_MAX} changes wait for the disk already; try again later")]
    Busy,
    /// Nothing was stored.
    #[error("the store cannot be read: {0}")]
    Read(String),
    /// Nothing was stored.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Nothing was stored.
    #[error(transparent)]
    Future(#[from] FutureStamp),
    /// It is not known whether it is stored.
    #[error("the store is closed")]
    Closed,
}

/// Why a store cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot make the folder {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot open the store in {}", path.display())]
    Engine {
        path: PathBuf,
        #[source]
        source: EngineError,
    },
    #[error("cannot start the store thread")]
    Thread(#[source] std::io::Error),
}

/// Measurements, readable from any thread.
#[derive(Debug, Default)]
pub struct Stats {
    pub commits: AtomicU64,
    pub operations: AtomicU64,
    pub refused: AtomicU64,
    pub corrupt: AtomicU64,
    /// Buckets of the hash tree that disagreed with their records.
    pub sum_differences: AtomicU64,
    pub poisoned: AtomicBool,
    pub map_bytes: AtomicU64,
    pub used_bytes: AtomicU64,
    pub commit_us_sum: AtomicU64,
    /// Commits that took at most [`COMMIT_MS`] milliseconds, each bound by itself.
    pub commit_buckets: [AtomicU64; COMMIT_MS.len()],
}

#[derive(Debug)]
struct Request {
    change: Change,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

impl Store {
    /// Opens or creates the store in `folder` and starts its thread. `map`: see [`MAP_BYTES`].
    pub fn open(folder: &Path, map: MapBytes) -> Result<Opened, OpenError> {
        let path = || folder.to_owned();
        std::fs::create_dir_all(folder).map_err(|source| OpenError::Folder { path: path(), source })?;
        warn_if_full(folder);
        let failed = |source| OpenError::Engine { path: path(), source };
        let (mut engine, files) = LmdbEngine::open(folder, map).map_err(failed)?;
        let stats = Arc::new(Stats::default());
        let identity = identify(&mut engine, files, &stats).map_err(failed)?;
        engine.forget_broken();
        let key = TreeKey::of(SECRET);
        let Scan { objects, corrupt, hlc, tree } = scan(&engine, &key, &stats).map_err(failed)?;
        let differences = sums::settle(&mut engine, &key, &tree).map_err(failed)?;
        if differences > 0 {
            error!(buckets = differences, "the hash tree disagreed with the records and is written anew");
            stats.sum_differences.fetch_add(differences as u64, Relaxed);
        }
        let (requests, queue) = crossbeam_channel::bounded(REQUESTS_MAX);
        let worker = Worker::new(engine, identity, hlc, (key, tree), Arc::clone(&stats), wall_ms);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || worker.run(&queue))
            .map_err(OpenError::Thread)?;
        let store = Self { requests, stats, actor: identity.actor };
        info!(actor = %identity.actor, objects = objects.len(), corrupt = corrupt.len(), "store opened");
        Ok(Opened {
            store,
            thread: StoreThread(Some(thread)),
            objects,
            corrupt,
            versions_reserved: identity.versions_reserved,
        })
    }

    /// Stores an object's value; returns when it would survive a power cut.
    pub async fn put(&self, kind: Kind, key: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.change(Change::Put { kind, key: key.to_owned(), bytes: Some(bytes) }).await
    }

    /// Stores an object's deletion; returns when it would survive a power cut.
    pub async fn delete(&self, kind: Kind, key: &str) -> Result<(), StoreError> {
        self.change(Change::Put { kind, key: key.to_owned(), bytes: None }).await
    }

    /// Merges another node's object into ours; returns when it would survive a power cut.
    pub async fn merge(&self, object: Object) -> Result<(), StoreError> {
        self.change(Change::Merge(object)).await
    }

    /// Snapshot versions up to `up_to` may be used from now on.
    pub async fn reserve_versions(&self, up_to: u64) -> Result<(), StoreError> {
        self.change(Change::ReserveVersions { up_to }).await
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Who we were when the store was opened.
    pub fn actor(&self) -> Actor {
        self.actor
    }

    async fn change(&self, change: Change) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(Request { change, reply }).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Stats {
    fn committed(&self, took: Duration) {
        self.commits.fetch_add(1, Relaxed);
        self.commit_us_sum.fetch_add(took.as_micros() as u64, Relaxed);
        if let Some(bucket) = COMMIT_MS.iter().position(|ms| took <= Duration::from_millis(*ms)) {
            self.commit_buckets[bucket].fetch_add(1, Relaxed);
        }
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic in it has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Who the store is. A new, copied or restored one, one whose last commit failed and one that has forgotten who it is
/// get a new epoch.
fn identify(engine: &mut LmdbEngine, files: Files, stats: &Stats) -> Result<Identity, EngineError> {
    let known = match engine.meta()?.map(|bytes| Identity::decode(&bytes)) {
        None => None,
        Some(Ok(known)) => Some(known),
        Some(Err(reason)) => {
            error!(%reason, "the store's identity is damaged; the node gets a new one");
            stats.corrupt.fetch_add(1, Relaxed);
            None
        }
    };
    let identity = match known {
        Some(known) if known.inode == files.inode && !files.was_broken => return Ok(known),
        Some(known) => {
            let actor = Actor { epoch: new_epoch(), ..known.actor };
            warn!(was_broken = files.was_broken, %actor, "the store begins a new epoch");
            Identity { actor, inode: files.inode, ..known }
        }
        None => {
            let actor = Actor { node: uuid::Uuid::new_v4().into_bytes(), epoch: new_epoch() };
            Identity { actor, inode: files.inode, versions_reserved: 0 }
        }
    };
    engine.commit(&[engine::Write::Meta(identity.encode())])?;
    Ok(identity)
}

#[derive(Default)]
struct Scan {
    objects: Vec<Object>,
    corrupt: Vec<Corrupt>,
    hlc: Hlc,
    tree: HashTree,
}

/// Reads and proves every record.
fn scan(engine: &impl Engine, tree_key: &TreeKey, stats: &Stats) -> Result<Scan, EngineError> {
    let mut scan = Scan::default();
    engine.scan(&mut |key, record| match Object::decode(record) {
        Ok(object) if place(object.kind, &object.key) == key => {
            scan.hlc = scan.hlc.max(object.last());
            let place = place(object.kind, &object.key);
            scan.tree.add(bucket_of(&place), tree_key.hash(&place, record));
            scan.objects.push(object);
        }
        other => {
            let place: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            let reason = other.err().map_or("it is another object's".to_owned(), |error| error.to_string());
            error!(place, reason, "a damaged record is not served");
            stats.corrupt.fetch_add(1, Relaxed);
            scan.corrupt.push(Corrupt { place, reason });
        }
    })?;
    Ok(scan)
}

fn warn_if_full(folder: &Path) {
    if let Ok(disk) = rustix::fs::statvfs(folder) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < FREE_BYTES_MIN {
            warn!(free, folder = %folder.display(), "the disk is nearly full; writes may be refused");
        }
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What the sums are keyed with as long as no cluster gives its secret. Sums of another key are replaced at the next start.
const SECRET: &[u8] = b"";
/// Sizes of the store's memory map: address space, not disk.
pub const MAP_BYTES: MapBytes = MapBytes { start: 256 << 20, max: 64 << 30 };
/// Changes that may wait for the store thread.
pub const REQUESTS_MAX: usize = 4_096;
/// Bounds of the buckets of commit times, milliseconds.
pub const COMMIT_MS: [u64; 10] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000];
/// Free disk space below which a warning is logged at start.
const FREE_BYTES_MIN: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: MapBytes = MapBytes { start: 1 << 20, max: 8 << 20 };

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn put(opened: &Opened, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        block_on(opened.store.put(Kind::Realm, key, bytes.to_vec()))
    }

    fn close(opened: Opened) -> Actor {
        let actor = opened.store.actor();
        let Opened { store, thread, .. } = opened;
        drop(store);
        drop(thread);
        actor
    }

    fn values(opened: &Opened) -> Vec<(String, Option<Vec<u8>>)> {
        let mut values: Vec<_> = opened
            .objects
            .iter()
            .map(|object| (object.key.clone(), object.winner().unwrap().bytes.clone()))
            .collect();
        values.sort();
        values
    }

    #[test]
    fn what_is_acknowledged_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Store::open(dir.path(), MAP).unwrap();
        put(&opened, "a", b"1").unwrap();
        put(&opened, "b", b"2").unwrap();
        put(&opened, "a", b"3").unwrap();
        block_on(opened.store.delete(Kind::Realm, "b")).unwrap();
        block_on(opened.store.reserve_versions(77)).unwrap();
        let actor = close(opened);
        let opened = Store::open(dir.path(), MAP).unwrap();
        assert_eq!(values(&opened), [("a".into(), Some(b"3".to_vec())), ("b".into(), None)]);
        assert_eq!((opened.store.actor(), opened.versions_reserved), (actor, 77));
        assert!(opened.corrupt.is_empty());
        close(opened);
    }

    #[test]
    fn a_restored_or_broken_store_begins_a_new_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let first = close(Store::open(&dir.path().join("a"), MAP).unwrap());
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::copy(dir.path().join("a/data.mdb"), dir.path().join("b/data.mdb")).unwrap();
        let copy = close(Store::open(&dir.path().join("b"), MAP).unwrap());
        assert_eq!(copy.node, first.node);
        assert_ne!(copy.epoch, first.epoch);
        std::fs::write(dir.path().join("a/broken"), "").unwrap();
        let after = close(Store::open(&dir.path().join("a"), MAP).unwrap());
        assert_ne!(after.epoch, first.epoch);
        assert_eq!(close(Store::open(&dir.path().join("a"), MAP).unwrap()), after, "once");
    }

    #[test]
    fn a_flipped_bit_on_disk_is_reported_and_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Store::open(dir.path(), MAP).unwrap();
        put(&opened, "good", b"1").unwrap();
        put(&opened, "unlucky", b"secret-value").unwrap();
        close(opened);
        let file = dir.path().join("data.mdb");
        let mut bytes = std::fs::read(&file).unwrap();
        let mut flipped = 0;
        // Old pages may hold the bytes as well.
        for at in 0..bytes.len() - 12 {
            if &bytes[at..at + 12] == b"secret-value" {
                bytes[at] ^= 1;
                flipped += 1;
            }
        }
        assert!(flipped > 0);
        std::fs::write(&file, bytes).unwrap();
        let opened = Store::open(dir.path(), MAP).unwrap();
        assert_eq!(values(&opened), [("good".into(), Some(b"1".to_vec()))]);
        assert_eq!(opened.corrupt.len(), 1);
        assert_eq!(opened.corrupt[0].reason, "the checksum does not match");
        assert_eq!(opened.store.stats().corrupt.load(Relaxed), 1);
        // An operator may write it anew.
        put(&opened, "unlucky", b"2").unwrap();
        close(opened);
        let opened = Store::open(dir.path(), MAP).unwrap();
        assert!(opened.corrupt.is_empty());
        assert_eq!(opened.objects.len(), 2);
        close(opened);
    }

    /// Changes a row behind the store's back, as a flipped bit would.
    fn damage_sums(folder: &Path) {
        let (mut engine, _) = LmdbEngine::open(folder, MAP).unwrap();
        let mut rows = vec![];
        engine.sums(&mut |row, bytes| rows.push((row.to_vec(), bytes.to_vec()))).unwrap();
        let (row, mut bytes) = rows.into_iter().find(|(row, _)| row.len() == 2).unwrap();
        bytes[3] ^= 1;
        engine.commit(&[engine::Write::Sum { row, bytes }]).unwrap();
    }

    #[test]
    fn sums_agree_after_a_restart_and_a_difference_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let reopened = || {
            let opened = Store::open(dir.path(), MAP).unwrap();
            let differences = opened.store.stats().sum_differences.load(Relaxed);
            close(opened);
            differences
        };
        let opened = Store::open(dir.path(), MAP).unwrap();
        for number in 0..20 {
            put(&opened, &format!("k{}", number % 7), b"1").unwrap();
        }
        block_on(opened.store.delete(Kind::Realm, "k3")).unwrap();
        close(opened);
        assert_eq!(reopened(), 0);
        damage_sums(dir.path());
        assert_eq!(reopened(), 1);
        assert_eq!(reopened(), 0);
    }

    #[test]
    fn a_full_store_refuses_and_still_reads() {
        let dir = tempfile::tempdir().unwrap();
        let map = MapBytes { start: 256 << 10, max: 512 << 10 };
        let opened = Store::open(dir.path(), map).unwrap();
        let large = vec![1; 100_000];
        let stored = (0..20).take_while(|n| put(&opened, &format!("k{n}"), &large).is_ok()).count();
        assert!((1..6).contains(&stored), "{stored}");
        let refused = put(&opened, "more", &large);
        assert_eq!(refused, Err(StoreError::Full { map_bytes: 512 << 10 }));
        close(opened);
        let opened = Store::open(dir.path(), map).unwrap();
        assert_eq!(opened.objects.len(), stored);
        close(opened);
    }
}
