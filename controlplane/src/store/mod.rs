//! The node's objects on disk.
//!
//! One thread owns the LMDB environment ([`env`], the only file that names heed); the rest of the process sends it
//! requests over a bounded channel and waits for the flush ([`worker`]). Objects are kept in the form of [`record`].
//! ```text
//! put ─▶ bounded channel ─▶ store thread: group ─▶ one transaction, flushed ─▶ answer
//! ```
//! The first commit that fails poisons the store: nothing is acknowledged any more, what was read goes on being served,
//! and the next start takes a new epoch.

mod collect;
pub mod conflict;
pub mod engine;
mod env;
mod graves;
mod identity;
pub mod memory;
mod open;
mod quarantine;
pub mod realm;
pub mod record;
mod stage;
mod sums;
mod sync;
mod upkeep;
pub mod worker;

pub use collect::Upkeep;
pub use env::MapBytes;
pub use open::Loaded;
pub use sync::{Answered, Changes, Stepped};

use crate::replica::exchange::Exchange;
use crate::replica::hlc::FutureStamp;
use crate::replica::message::Message;
use common::config::Config;
use common::ids::NodeId;
use conflict::{Conflict, Rule};
use crossbeam_channel::{Sender, TrySendError};
use engine::EngineError;
use env::LmdbEngine;
use graves::GRAVES_SHARD_MAX;
use record::{Actor, Kind, Object, ObjectError, PLACE_BYTES, RecordError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use tracing::{info, warn};
use worker::{Change, Order, Request, Sources, Worker};

/// Access to the store thread.
#[derive(Clone, Debug)]
pub struct Store {
    orders: Sender<Order>,
    stats: Arc<Stats>,
    node: [u8; 16],
}

/// What a store is opened with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What the sums of the hash tree are keyed with; equal on all nodes of a cluster. With another one the sums are
    /// computed anew.
    pub secret: Vec<u8>,
    /// How often a part of the store is scrubbed, and in what time all of it is.
    pub scrub_timer: Duration,
    pub scrub_ttl: Duration,
    /// Deletions are remembered for at least this long.
    pub grace: Duration,
}

/// A store that was opened.
#[derive(Debug)]
pub struct Opened {
    pub store: Store,
    pub thread: StoreThread,
    pub loaded: Loaded,
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
    #[error("{ORDERS_MAX} changes wait for the disk already; try again later")]
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
    /// Nothing was stored.
    #[error(
        "{GRAVES_SHARD_MAX} deletions of one part of the store are remembered because a member of the cluster has not seen \
         them; bring it back or forget it"
    )]
    Graves,
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
    /// Buckets of the hash tree that disagreed with their records, and buckets proven.
    pub sum_differences: AtomicU64,
    pub scrubbed: AtomicU64,
    /// Over all records, and how many there are: see [`HashTree::digest`](crate::replica::hashtree::HashTree::digest).
    pub digest: AtomicU64,
    pub records: AtomicU64,
    /// Of the actor that writes now.
    pub epoch: AtomicU64,
    /// Objects of other nodes with stamps from the future.
    pub future: AtomicU64,
    /// Dots that were given out twice.
    pub clashes: AtomicU64,
    /// Conflicts, by [`Rule`].
    pub conflicts: [AtomicU64; Rule::ALL.len()],
    /// Objects whose values compete.
    pub siblings: AtomicU64,
    /// Deletions that are remembered, and those forgotten.
    pub graves: AtomicU64,
    pub purged: AtomicU64,
    /// Times this node was stale and began anew.
    pub resets: AtomicU64,
    pub poisoned: AtomicBool,
    pub map_bytes: AtomicU64,
    pub used_bytes: AtomicU64,
    pub commit_us_sum: AtomicU64,
    /// Commits that took at most [`COMMIT_MS`] milliseconds, each bound by itself.
    pub commit_buckets: [AtomicU64; COMMIT_MS.len()],
}

impl Settings {
    /// The sums are keyed with the env, not with the keys of the cluster: those rotate, and while they do nodes that have
    /// different keys must have comparable sums. What is given up is small: to make records whose sums collide, one
    /// would have to choose the stamps and dots in them too, and those are the store's.
    pub fn of(config: &Config) -> Self {
        Self {
            secret: config.cluster.env.clone().into_bytes(),
            scrub_timer: config.aae.hashtree_timer,
            scrub_ttl: config.aae.hashtree_ttl,
            grace: config.aae.tombstone_grace,
        }
    }
}

impl Store {
    /// Opens or creates the store in `folder` and starts its thread. `map`: see [`MAP_BYTES`].
    pub fn open(folder: &Path, map: MapBytes, settings: &Settings) -> Result<Opened, OpenError> {
        let path = || folder.to_owned();
        std::fs::create_dir_all(folder).map_err(|source| OpenError::Folder { path: path(), source })?;
        warn_if_full(folder);
        let failed = |source| OpenError::Engine { path: path(), source };
        let (engine, files) = LmdbEngine::open(folder, map).map_err(failed)?;
        let stats = Arc::new(Stats::default());
        let sources = Sources { wall_ms: Box::new(wall_ms), random: Box::new(random) };
        let (worker, loaded) =
            Worker::open(Box::new(engine), files, settings, sources, Arc::clone(&stats)).map_err(failed)?;
        let actor = worker.actor();
        let (orders, queue) = crossbeam_channel::bounded(ORDERS_MAX);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || worker.run(&queue))
            .map_err(OpenError::Thread)?;
        let store = Self { orders, stats, node: actor.node };
        info!(%actor, objects = loaded.objects.len(), corrupt = loaded.corrupt.len(), "store opened");
        Ok(Opened { store, thread: StoreThread(Some(thread)), loaded })
    }

    /// Stores an object's value; returns when it would survive a power cut. Returns the record, which other nodes are to
    /// be sent.
    pub async fn put(&self, kind: Kind, key: &str, bytes: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        self.put_or_delete(kind, key, Some(bytes)).await
    }

    /// Stores an object's deletion; returns when it would survive a power cut. Returns the record, which other nodes are
    /// to be sent.
    pub async fn delete(&self, kind: Kind, key: &str) -> Result<Vec<u8>, StoreError> {
        self.put_or_delete(kind, key, None).await
    }

    /// Merges another node's object into ours; returns when it would survive a power cut. Returns the object as it is
    /// now, if that changed it.
    pub async fn merge(&self, object: Object) -> Result<Option<Object>, StoreError> {
        self.change(Change::Merge(object)).await.map(|objects| objects.into_iter().next())
    }

    /// Snapshot versions up to `up_to` may be used from now on.
    pub async fn reserve_versions(&self, up_to: u64) -> Result<(), StoreError> {
        self.change(Change::ReserveVersions { up_to }).await.map(drop)
    }

    /// Begins an exchange with `peer`; the message is to be sent. `round` tells it from earlier ones with the same node,
    /// `timeout` is how long it may take in all.
    pub async fn exchange_start(
        &self,
        peer: NodeId,
        round: u64,
        now: Instant,
        timeout: Duration,
    ) -> Result<(Exchange, Message), StoreError> {
        self.step(move |worker| worker.exchange_start(peer, round, now, timeout)).await
    }

    /// Takes an answer in an exchange that this node began.
    pub async fn exchange_step(
        &self,
        peer: NodeId,
        mut exchange: Exchange,
        message: Message,
        now: Instant,
    ) -> Result<(Exchange, Stepped), StoreError> {
        let step = move |worker: &mut Worker| {
            let stepped = worker.exchange_step(peer, &mut exchange, message, now);
            (exchange, stepped)
        };
        self.step(step).await
    }

    /// Answers a message in an exchange that `peer` began.
    pub async fn exchange_answer(&self, peer: NodeId, message: Message) -> Result<Answered, StoreError> {
        self.step(move |worker| worker.exchange_answer(peer, message)).await
    }

    /// See [`Worker::upkeep`].
    pub async fn upkeep(&self) -> Result<Upkeep, StoreError> {
        self.step(Worker::upkeep).await
    }

    /// See [`Worker::announcement`].
    pub async fn announcement(&self) -> Result<Vec<u8>, StoreError> {
        self.step(Worker::announcement).await
    }

    /// See [`Worker::heard`].
    pub async fn heard(
        &self,
        peer: NodeId,
        announcement: Vec<u8>,
    ) -> Result<Result<Changes, RecordError>, StoreError> {
        self.step(move |worker| worker.heard(peer, &announcement)).await
    }

    /// See [`Worker::members`].
    pub async fn members(&self, nodes: Vec<NodeId>) -> Result<(), StoreError> {
        self.step(move |worker| worker.members(&nodes)).await
    }

    /// See [`Worker::forget`].
    pub async fn forget(&self, node: NodeId) -> Result<(), StoreError> {
        self.step(move |worker| worker.forget(node)).await
    }

    /// The last conflicts, the oldest first.
    pub async fn conflicts(&self) -> Result<Vec<Conflict>, StoreError> {
        self.step(|worker| worker.conflicts()).await
    }

    /// Every object that is there, for whoever has lost track. Read in slices: what changes meanwhile may be seen as it
    /// was or as it is.
    pub async fn objects(&self) -> Result<Vec<Object>, StoreError> {
        let (mut objects, mut from) = (Vec::new(), Some([0; PLACE_BYTES]));
        while let Some(at) = from {
            let (page, next) = self.step(move |worker| worker.page(&at)).await??;
            objects.extend(page);
            from = next;
        }
        Ok(objects)
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Who writes now. The epoch changes when what was written under it may be lost.
    pub fn actor(&self) -> Actor {
        Actor { node: self.node, epoch: self.stats.epoch.load(Relaxed) }
    }

    async fn put_or_delete(
        &self,
        kind: Kind,
        key: &str,
        bytes: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, StoreError> {
        let objects = self.change(Change::Put { kind, key: key.to_owned(), bytes }).await?;
        objects.first().map(Object::encode).ok_or(StoreError::Closed)
    }

    async fn change(&self, change: Change) -> Result<Vec<Object>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::Change(Request { change, reply }))?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Runs `step` on the store's thread, between two groups.
    async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        // Who asked may have stopped waiting.
        self.order(Order::Step(Box::new(move |worker| drop(reply.send(step(worker))))))?;
        answer.await.map_err(|_| StoreError::Closed)
    }

    fn order(&self, order: Order) -> Result<(), StoreError> {
        self.orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })
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

fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1
}

/// Sizes of the store's memory map: address space, not disk.
pub const MAP_BYTES: MapBytes = MapBytes { start: 256 << 20, max: 64 << 30 };
/// Changes and steps that may wait for the store thread.
pub const ORDERS_MAX: usize = 4_096;
/// Bounds of the buckets of commit times, milliseconds.
pub const COMMIT_MS: [u64; 10] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000];
/// Free disk space below which a warning is logged at start.
const FREE_BYTES_MIN: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{Engine, Write};

    const MAP: MapBytes = MapBytes { start: 1 << 20, max: 8 << 20 };

    fn open(folder: &Path, map: MapBytes) -> Opened {
        let day = Duration::from_secs(86_400);
        let settings = Settings { secret: vec![1], scrub_timer: day, scrub_ttl: day, grace: day };
        Store::open(folder, map, &settings).unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn put(opened: &Opened, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        block_on(opened.store.put(Kind::Realm, key, bytes.to_vec())).map(drop)
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
            .loaded
            .objects
            .iter()
            .map(|object| (object.key.clone(), object.resolved().unwrap().bytes))
            .collect();
        values.sort();
        values
    }

    #[test]
    fn what_is_acknowledged_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path(), MAP);
        put(&opened, "a", b"1").unwrap();
        put(&opened, "b", b"2").unwrap();
        put(&opened, "a", b"3").unwrap();
        block_on(opened.store.delete(Kind::Realm, "b")).unwrap();
        block_on(opened.store.reserve_versions(77)).unwrap();
        let actor = close(opened);
        let opened = open(dir.path(), MAP);
        assert_eq!(values(&opened), [("a".into(), Some(b"3".to_vec())), ("b".into(), None)]);
        assert_eq!((opened.store.actor(), opened.loaded.versions_reserved), (actor, 77));
        assert!(opened.loaded.corrupt.is_empty());
        close(opened);
    }

    #[test]
    fn a_restored_or_broken_store_begins_a_new_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let first = close(open(&dir.path().join("a"), MAP));
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::copy(dir.path().join("a/data.mdb"), dir.path().join("b/data.mdb")).unwrap();
        let copy = close(open(&dir.path().join("b"), MAP));
        assert_eq!(copy.node, first.node);
        assert_ne!(copy.epoch, first.epoch);
        std::fs::write(dir.path().join("a/broken"), "").unwrap();
        let after = close(open(&dir.path().join("a"), MAP));
        assert_ne!(after.epoch, first.epoch);
        assert_eq!(close(open(&dir.path().join("a"), MAP)), after, "once");
    }

    #[test]
    fn a_flipped_bit_on_disk_is_reported_and_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path(), MAP);
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
        let opened = open(dir.path(), MAP);
        assert_eq!(values(&opened), [("good".into(), Some(b"1".to_vec()))]);
        assert_eq!(opened.loaded.corrupt.len(), 1);
        assert_eq!(opened.loaded.corrupt[0].reason, "the checksum does not match");
        assert_eq!(opened.store.stats().corrupt.load(Relaxed), 1);
        // An operator may write it anew.
        put(&opened, "unlucky", b"2").unwrap();
        close(opened);
        let opened = open(dir.path(), MAP);
        assert!(opened.loaded.corrupt.is_empty());
        assert_eq!(opened.loaded.objects.len(), 2);
        close(opened);
    }

    /// Changes a row behind the store's back, as a flipped bit would.
    fn damage_sums(folder: &Path) {
        let (mut engine, _) = LmdbEngine::open(folder, MAP).unwrap();
        let mut rows = vec![];
        engine.sums(&mut |row, bytes| rows.push((row.to_vec(), bytes.to_vec()))).unwrap();
        let (row, mut bytes) = rows.into_iter().find(|(row, _)| row.len() == 2).unwrap();
        bytes[3] ^= 1;
        engine.commit(&[Write::Sum { row, bytes }]).unwrap();
    }

    #[test]
    fn sums_agree_after_a_restart_and_a_difference_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let reopened = || {
            let opened = open(dir.path(), MAP);
            let differences = opened.store.stats().sum_differences.load(Relaxed);
            close(opened);
            differences
        };
        let opened = open(dir.path(), MAP);
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
        let opened = open(dir.path(), map);
        let large = vec![1; 100_000];
        let stored = (0..20).take_while(|n| put(&opened, &format!("k{n}"), &large).is_ok()).count();
        assert!((1..6).contains(&stored), "{stored}");
        let refused = put(&opened, "more", &large);
        assert_eq!(refused, Err(StoreError::Full { map_bytes: 512 << 10 }));
        close(opened);
        let opened = open(dir.path(), map);
        assert_eq!(opened.loaded.objects.len(), stored);
        close(opened);
    }
}
