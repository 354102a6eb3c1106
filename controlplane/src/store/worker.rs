//! The store thread's work: puts are read-modify-writes, gathered into groups, committed, then acknowledged.
//!
//! ```text
//! requests ─▶ group (GROUP_MAX requests or GROUP_DELAY) ─▶ read, change, encode, sum up ─▶ commit ─▶ acknowledge
//! ```
//! Between groups it scrubs: now and then the sums of one shard are computed from its records and compared.
//!
//! Invariants: the hash tree is that of the last commit; nothing is acknowledged before the commit that holds it has returned; after the first commit that failed
//! nothing is acknowledged any more; no actor gives a dot out twice.

use super::engine::{Engine, EngineError, Place, Write};
use super::identity::Identity;
use super::record::{Actor, Hlc, Kind, Merged, Object, Value, place};
use super::{Request, Stats, StoreError, sums};
use crate::replica::hashtree::{Digest, HashTree, SHARDS, Sum, TreeKey, bucket_of};
use crate::replica::hlc::Clock;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tracing::{error, warn};

pub struct Worker<E> {
    engine: E,
    identity: Identity,
    clock: Clock,
    key: TreeKey,
    tree: HashTree,
    /// The shard to be scrubbed next.
    scrubbed_next: usize,
    /// The identity is to be written with the next group.
    identity_dirty: bool,
    poisoned: bool,
    stats: Arc<Stats>,
    wall_ms: fn() -> u64,
}

/// What a request asks of the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// `None` deletes.
    Put {
        kind: Kind,
        key: String,
        bytes: Option<Vec<u8>>,
    },
    /// Another node's object.
    Merge(Object),
    ReserveVersions {
        up_to: u64,
    },
}

/// A record of the group that is not committed yet.
struct Staged {
    record: Vec<u8>,
    before: Before,
}

/// What the hash tree has for a record that is replaced.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    Hash(Sum),
    /// The record is damaged; what it was is not known.
    Unknown,
}

type Overlay = HashMap<Place, Staged>;

impl<E: Engine> Worker<E> {
    /// `hlc`: the greatest stamp in the store. `tree`: the sums of its records, made with the key beside it.
    pub fn new(
        engine: E,
        identity: Identity,
        hlc: Hlc,
        (key, tree): (TreeKey, HashTree),
        stats: Arc<Stats>,
        wall_ms: fn() -> u64,
    ) -> Self {
        let clock = Clock::new(hlc);
        let (identity_dirty, poisoned, scrubbed_next) = (false, false, 0);
        let worker = Self {
            engine,
            identity,
            clock,
            key,
            tree,
            scrubbed_next,
            identity_dirty,
            poisoned,
            stats,
            wall_ms,
        };
        worker.measure();
        worker
    }

    /// Works until every sender is gone.
    pub fn run(mut self, requests: &Receiver<Request>) {
        let mut scrub_at = Instant::now() + SCRUB_INTERVAL;
        loop {
            let first = match requests.recv_deadline(scrub_at) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    self.scrub();
                    scrub_at = Instant::now() + SCRUB_INTERVAL;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let until = Instant::now() + GROUP_DELAY;
            let mut group = vec![first];
            while group.len() < GROUP_MAX {
                match requests.recv_deadline(until) {
                    Ok(request) => group.push(request),
                    Err(_) => break,
                }
            }
            self.work(group);
        }
    }

    /// Commits a group and answers every request in it.
    pub fn work(&mut self, group: Vec<Request>) {
        if self.poisoned {
            return answer(group, || Err(StoreError::Poisoned));
        }
        let mut overlay = Overlay::new();
        let mut accepted = Vec::with_capacity(group.len());
        let clock = self.clock;
        for request in group {
            match self.apply(&request.change, &mut overlay) {
                Ok(()) => accepted.push(request),
                Err(error) => {
                    self.stats.refused.fetch_add(1, Relaxed);
                    let _ = request.reply.send(Err(error));
                }
            }
        }
        if accepted.is_empty() {
            return;
        }
        match self.commit(&overlay) {
            Ok(()) => {
                self.stats.operations.fetch_add(accepted.len() as u64, Relaxed);
                answer(accepted, || Ok(()));
            }
            // One alone may still fit, and whoever does not is told so.
            Err(EngineError::Full { .. }) if accepted.len() > 1 => {
                self.clock = clock;
                for request in accepted {
                    self.work(vec![request]);
                }
            }
            Err(EngineError::Full { map_bytes }) => {
                self.stats.refused.fetch_add(1, Relaxed);
                answer(accepted, || Err(StoreError::Full { map_bytes }));
            }
            Err(EngineError::Broken(cause)) => {
                self.poison(&*cause);
                answer(accepted, || Err(StoreError::Poisoned));
            }
        }
    }

    /// Adds a change to the group. On error the group is as before.
    fn apply(&mut self, change: &Change, overlay: &mut Overlay) -> Result<(), StoreError> {
        match change {
            Change::ReserveVersions { up_to } => {
                self.identity.versions_reserved = self.identity.versions_reserved.max(*up_to);
                self.identity_dirty = true;
                Ok(())
            }
            Change::Put { kind, key, bytes } => {
                let wall_ms = (self.wall_ms)();
                self.change_object(*kind, key, overlay, |worker, object| {
                    let mut clock = worker.clock;
                    let value = Value { hlc: clock.tick(wall_ms), bytes: bytes.clone() };
                    object.put(worker.identity.actor, value)?;
                    worker.clock = clock;
                    Ok(true)
                })
            }
            Change::Merge(theirs) => {
                theirs.last().check((self.wall_ms)())?;
                let wall_ms = (self.wall_ms)();
                self.change_object(theirs.kind, &theirs.key, overlay, |worker, object| {
                    let merged = object.merge(theirs)?;
                    if merged == Merged::Cut {
                        warn!(kind = ?object.kind, key = object.key, "values that competed were given up");
                    }
                    worker.clock.observe(theirs.last(), wall_ms)?;
                    Ok(merged != Merged::Known)
                })
            }
        }
    }

    /// Reads an object, changes it and stages it if `change` says that it was changed.
    fn change_object(
        &mut self,
        kind: Kind,
        key: &str,
        overlay: &mut Overlay,
        change: impl FnOnce(&mut Self, &mut Object) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let place = place(kind, key);
        let slot = overlay.entry(place);
        let current = match &slot {
            Entry::Occupied(staged) => Some(staged.get().record.clone()),
            Entry::Vacant(_) => {
                self.engine.get(&place).map_err(|error| StoreError::Read(error.to_string()))?
            }
        };
        let (mut object, is_damaged) = self.current(kind, key, current.as_deref());
        if !change(self, &mut object)? {
            return Ok(());
        }
        let record = object.encode();
        match slot {
            Entry::Occupied(mut staged) => staged.get_mut().record = record,
            Entry::Vacant(slot) => {
                let before = match current {
                    _ if is_damaged => Before::Unknown,
                    Some(current) => Before::Hash(self.key.hash(&place, &current)),
                    None => Before::Nothing,
                };
                slot.insert(Staged { record, before });
            }
        }
        Ok(())
    }

    /// The stored object, and whether it was damaged. A damaged one is given up: its history is unknown, so the write that replaces it gets a new
    /// actor, whose dots nobody has seen.
    fn current(&mut self, kind: Kind, key: &str, record: Option<&[u8]>) -> (Object, bool) {
        let Some(record) = record else { return (Object::new(kind, key), false) };
        match Object::decode(record) {
            Ok(object) if object.kind == kind && object.key == key => (object, false),
            other => {
                let reason =
                    other.err().map_or("it is another object's".to_owned(), |error| error.to_string());
                error!(?kind, key, reason, "a damaged record is overwritten");
                self.stats.corrupt.fetch_add(1, Relaxed);
                self.identity.actor = Actor { epoch: new_epoch(), ..self.identity.actor };
                self.identity_dirty = true;
                (Object::new(kind, key), true)
            }
        }
    }

    fn commit(&mut self, overlay: &Overlay) -> Result<(), EngineError> {
        let digests = self.digests(overlay)?;
        let records = overlay.iter().map(|(place, staged)| (*place, staged.record.clone()));
        let mut writes: Vec<_> = records.map(|(place, record)| Write::Object { place, record }).collect();
        writes.extend(digests.iter().map(|(bucket, digest)| sums::row(*bucket, *digest)));
        if self.identity_dirty {
            writes.push(Write::Meta(self.identity.encode()));
        }
        if writes.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        self.engine.commit(&writes)?;
        self.stats.committed(started.elapsed());
        self.identity_dirty = false;
        digests.into_iter().for_each(|(bucket, digest)| self.tree.set(bucket, digest));
        self.measure();
        Ok(())
    }

    /// The buckets as they will be when the group is committed.
    fn digests(&self, overlay: &Overlay) -> Result<BTreeMap<u16, Digest>, EngineError> {
        let mut digests = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        for (place, staged) in overlay {
            let bucket = bucket_of(place);
            let digest = digests.entry(bucket).or_insert_with(|| self.tree.bucket(bucket));
            match staged.before {
                Before::Nothing => {}
                Before::Hash(hash) => {
                    digest.sum -= hash;
                    digest.count = digest.count.wrapping_sub(1);
                }
                Before::Unknown => {
                    unknown.insert(bucket);
                }
            }
            digest.sum += self.key.hash(place, &staged.record);
            digest.count = digest.count.wrapping_add(1);
        }
        for bucket in unknown {
            let others = |at: &Place| !overlay.contains_key(at);
            let mut tree = sums::recompute(&self.engine, &self.key, (bucket, bucket), others)?;
            for (place, staged) in overlay.iter().filter(|(place, _)| bucket_of(place) == bucket) {
                tree.add(bucket, self.key.hash(place, &staged.record));
            }
            digests.insert(bucket, tree.bucket(bucket));
        }
        Ok(digests)
    }

    /// Computes the sums of one shard from its records. A difference is damage: it is reported, and the sums follow the
    /// records, so that an exchange finds what is missing.
    pub fn scrub(&mut self) {
        if self.poisoned {
            return;
        }
        let shard = self.scrubbed_next;
        self.scrubbed_next = (shard + 1) % SHARDS;
        let (first, last) = sums::buckets_of(shard);
        let fresh = match sums::recompute(&self.engine, &self.key, (first, last), |_| true) {
            Ok(fresh) => fresh,
            Err(cause) => return error!(shard, %cause, "a shard cannot be scrubbed"),
        };
        let differ = |bucket: &u16| fresh.bucket(*bucket) != self.tree.bucket(*bucket);
        let buckets: Vec<_> = (first..=last).filter(differ).collect();
        if buckets.is_empty() {
            return;
        }
        error!(shard, buckets = buckets.len(), "the hash tree disagrees with the records: some are damaged");
        self.stats.sum_differences.fetch_add(buckets.len() as u64, Relaxed);
        let rows: Vec<_> = buckets.iter().map(|bucket| sums::row(*bucket, fresh.bucket(*bucket))).collect();
        match self.engine.commit(&rows) {
            Ok(()) => buckets.iter().for_each(|bucket| self.tree.set(*bucket, fresh.bucket(*bucket))),
            Err(EngineError::Full { .. }) => warn!(shard, "no room for the sums of a scrubbed shard"),
            Err(EngineError::Broken(cause)) => self.poison(&*cause),
        }
    }

    /// The first failed commit is the last: after it a flush may say that all is well while nothing was written.
    fn poison(&mut self, cause: &(dyn std::error::Error + Send + Sync)) {
        error!(%cause, "a commit failed: the store takes no more writes until the control plane is restarted");
        self.poisoned = true;
        self.stats.poisoned.store(true, Relaxed);
        self.engine.mark_broken();
    }

    fn measure(&self) {
        let usage = self.engine.usage();
        self.stats.map_bytes.store(usage.map_bytes, Relaxed);
        self.stats.used_bytes.store(usage.used_bytes, Relaxed);
    }
}

/// An epoch no store had before.
pub fn new_epoch() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1
}

fn answer(group: Vec<Request>, result: impl Fn() -> Result<(), StoreError>) {
    for request in group {
        // Who asked may have stopped waiting.
        let _ = request.reply.send(result());
    }
}

/// How long the first request of a group waits for others.
pub const GROUP_DELAY: Duration = Duration::from_millis(2);
/// One shard is scrubbed this often.
const SCRUB_INTERVAL: Duration = Duration::from_secs(60);
/// Most requests of one commit.
pub const GROUP_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::super::engine::Usage;
    use super::*;
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::Mutex;
    use tokio::sync::oneshot;
    use tokio::sync::oneshot::error::TryRecvError;

    type Answer = oneshot::Receiver<Result<(), StoreError>>;

    /// An engine in memory that does as told.
    #[derive(Clone, Default)]
    struct Scripted(Arc<Mutex<Script>>);

    #[derive(Default)]
    struct Script {
        objects: BTreeMap<Vec<u8>, Vec<u8>>,
        sums: BTreeMap<Vec<u8>, Vec<u8>>,
        meta: Option<Vec<u8>>,
        commits: Vec<usize>,
        broken: bool,
        /// Writes of at least this many objects do not fit.
        full_at: Option<usize>,
        marked: bool,
    }

    impl Engine for Scripted {
        fn get(&self, place: &Place) -> Result<Option<Vec<u8>>, EngineError> {
            Ok(self.0.lock().unwrap().objects.get(&place[..]).cloned())
        }

        fn scan(&self, found: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), EngineError> {
            self.0.lock().unwrap().objects.iter().for_each(|(key, record)| found(key, record));
            Ok(())
        }

        fn scan_buckets(
            &self,
            first: u16,
            last: u16,
            found: &mut dyn FnMut(&[u8], &[u8]),
        ) -> Result<(), EngineError> {
            self.scan(&mut |key, record| {
                if (first..=last).contains(&u16::from_be_bytes([key[0], key[1]])) {
                    found(key, record);
                }
            })
        }

        fn sums(&self, found: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), EngineError> {
            self.0.lock().unwrap().sums.iter().for_each(|(row, bytes)| found(row, bytes));
            Ok(())
        }

        fn meta(&self) -> Result<Option<Vec<u8>>, EngineError> {
            Ok(self.0.lock().unwrap().meta.clone())
        }

        fn commit(&mut self, writes: &[Write]) -> Result<(), EngineError> {
            let mut script = self.0.lock().unwrap();
            let objects = writes.iter().filter(|write| matches!(write, Write::Object { .. })).count();
            script.commits.push(objects);
            if script.broken {
                return Err(EngineError::Broken(io::Error::from_raw_os_error(libc::EIO).into()));
            }
            if script.full_at.is_some_and(|full| objects >= full) {
                return Err(EngineError::Full { map_bytes: 9 });
            }
            for write in writes {
                match write {
                    Write::Object { place, record } => {
                        script.objects.insert(place.to_vec(), record.clone());
                    }
                    Write::Sum { row, bytes } => {
                        script.sums.insert(row.clone(), bytes.clone());
                    }
                    Write::Meta(bytes) => script.meta = Some(bytes.clone()),
                }
            }
            Ok(())
        }

        fn usage(&self) -> Usage {
            Usage::default()
        }

        fn mark_broken(&mut self) {
            self.0.lock().unwrap().marked = true;
        }
    }

    fn worker(engine: &Scripted) -> Worker<Scripted> {
        let actor = Actor { node: [1; 16], epoch: 1 };
        let identity = Identity { actor, inode: 1, versions_reserved: 0 };
        let key = TreeKey::of(b"");
        let tree = sums::recompute(engine, &key, (0, u16::MAX), |_| true).unwrap();
        Worker::new(engine.clone(), identity, Hlc::default(), (key, tree), Arc::default(), || 1_000)
    }

    /// The sums in memory and those stored are those of the records.
    fn assert_sums(worker: &Worker<Scripted>) {
        let fresh = sums::recompute(&worker.engine, &worker.key, (0, u16::MAX), |_| true).unwrap();
        assert_eq!(worker.tree, fresh);
        let rows = worker.engine.0.lock().unwrap().sums.clone();
        for (row, bytes) in rows {
            let bucket = u16::from_be_bytes(row.try_into().unwrap());
            assert_eq!(Digest::decode(&bytes), Some(fresh.bucket(bucket)));
        }
    }

    fn put(key: &str, bytes: Option<&[u8]>) -> (Request, Answer) {
        let (reply, answer) = oneshot::channel();
        let bytes = bytes.map(<[u8]>::to_vec);
        (Request { change: Change::Put { kind: Kind::Realm, key: key.into(), bytes }, reply }, answer)
    }

    fn stored(engine: &Scripted, key: &str) -> Object {
        Object::decode(&engine.get(&place(Kind::Realm, key)).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn a_group_is_one_commit_and_is_answered_after_it() {
        let engine = Scripted::default();
        let mut worker = worker(&engine);
        let (requests, answers): (Vec<_>, Vec<_>) =
            ["a", "b", "a"].iter().map(|key| put(key, Some(key.as_bytes()))).unzip();
        let (sender, queue) = crossbeam_channel::unbounded();
        requests.into_iter().for_each(|request| sender.send(request).unwrap());
        drop(sender);
        // `a` is in the group twice: the second put sees the first.
        worker.engine.0.lock().unwrap().commits.clear();
        let stats = Arc::clone(&worker.stats);
        worker.run(&queue);
        assert_eq!(engine.0.lock().unwrap().commits, [2]);
        for mut answer in answers {
            assert_eq!(answer.try_recv().unwrap(), Ok(()));
        }
        assert_eq!(stored(&engine, "a").clock.entries()[0].counter, 2);
        assert_eq!((stats.operations.load(Relaxed), stats.commits.load(Relaxed)), (3, 1));
        worker = self::worker(&engine);
        let (request, mut answer) = put("a", None);
        assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
        worker.work(vec![request]);
        assert_eq!(stored(&engine, "a").winner().unwrap().bytes, None);
    }

    #[test]
    fn the_first_failed_commit_poisons_for_ever() {
        let engine = Scripted::default();
        let mut worker = worker(&engine);
        let (request, mut answer) = put("a", Some(b"1"));
        worker.work(vec![request]);
        assert_eq!(answer.try_recv().unwrap(), Ok(()));
        engine.0.lock().unwrap().broken = true;
        let (request, mut answer) = put("a", Some(b"2"));
        worker.work(vec![request]);
        assert_eq!(answer.try_recv().unwrap(), Err(StoreError::Poisoned));
        // The engine says that all is well again; nobody believes it.
        engine.0.lock().unwrap().broken = false;
        let commits = engine.0.lock().unwrap().commits.len();
        let (request, mut answer) = put("a", Some(b"3"));
        worker.work(vec![request]);
        assert_eq!(answer.try_recv().unwrap(), Err(StoreError::Poisoned));
        assert_eq!(engine.0.lock().unwrap().commits.len(), commits);
        assert!(engine.0.lock().unwrap().marked && worker.stats.poisoned.load(Relaxed));
        assert_eq!(stored(&engine, "a").winner().unwrap().bytes.as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn a_full_store_refuses_one_by_one_and_goes_on() {
        let engine = Scripted::default();
        let mut worker = worker(&engine);
        engine.0.lock().unwrap().full_at = Some(2);
        let (requests, answers): (Vec<_>, Vec<_>) = ["a", "b"].iter().map(|key| put(key, Some(b"1"))).unzip();
        worker.work(requests);
        for mut answer in answers {
            assert_eq!(answer.try_recv().unwrap(), Ok(()), "each fits alone");
        }
        engine.0.lock().unwrap().full_at = Some(1);
        let (request, mut answer) = put("c", Some(b"1"));
        worker.work(vec![request]);
        assert_eq!(answer.try_recv().unwrap(), Err(StoreError::Full { map_bytes: 9 }));
        engine.0.lock().unwrap().full_at = None;
        let (request, mut answer) = put("c", Some(b"1"));
        worker.work(vec![request]);
        assert_eq!(answer.try_recv().unwrap(), Ok(()));
        assert_eq!(stored(&engine, "c").clock.entries()[0].counter, 1);
    }

    #[test]
    fn a_damaged_record_is_replaced_under_a_new_actor() {
        let engine = Scripted::default();
        let mut worker = worker(&engine);
        worker.work(vec![put("a", Some(b"1")).0]);
        let key = place(Kind::Realm, "a").to_vec();
        engine.0.lock().unwrap().objects.get_mut(&key).unwrap()[20] ^= 4;
        worker.work(vec![put("a", Some(b"2")).0]);
        let object = stored(&engine, "a");
        assert_eq!((object.clock.entries().len(), object.clock.entries()[0].counter), (1, 1));
        assert_ne!(object.clock.entries()[0].actor.epoch, 1);
        let meta = Identity::decode(engine.0.lock().unwrap().meta.as_ref().unwrap()).unwrap();
        assert_eq!(meta.actor, object.clock.entries()[0].actor, "the new epoch is in the same commit");
        assert_eq!(worker.stats.corrupt.load(Relaxed), 1);
        assert_sums(&worker);
    }

    #[test]
    fn a_bad_put_harms_nobody_else_in_its_group() {
        let engine = Scripted::default();
        let mut worker = worker(&engine);
        let (bad, mut bad_answer) = put("", Some(b"1"));
        let (good, mut good_answer) = put("a", Some(b"1"));
        worker.work(vec![bad, good]);
        assert!(matches!(bad_answer.try_recv().unwrap(), Err(StoreError::Object(_))));
        assert_eq!(good_answer.try_recv().unwrap(), Ok(()));
    }

    #[test]
    fn reserved_versions_only_grow() {
        let engine = Scripted::default();
        let mut worker = worker(&engine);
        for up_to in [7, 3] {
            let (reply, mut answer) = oneshot::channel();
            worker.work(vec![Request { change: Change::ReserveVersions { up_to }, reply }]);
            assert_eq!(answer.try_recv().unwrap(), Ok(()));
        }
        let meta = Identity::decode(engine.0.lock().unwrap().meta.as_ref().unwrap()).unwrap();
        assert_eq!(meta.versions_reserved, 7);
    }

    #[test]
    fn another_nodes_object_is_merged_unless_it_is_from_the_future() {
        let engine = Scripted::default();
        let mut worker = worker(&engine);
        worker.work(vec![put("a", Some(b"ours")).0]);
        let other = Actor { node: [2; 16], epoch: 1 };
        let mut merge = |wall_ms: u64| {
            let mut theirs = Object::new(Kind::Realm, "a");
            theirs.put(other, Value { hlc: Hlc::at(wall_ms), bytes: Some(b"theirs".to_vec()) }).unwrap();
            let (reply, mut answer) = oneshot::channel();
            worker.work(vec![Request { change: Change::Merge(theirs), reply }]);
            assert_sums(&worker);
            answer.try_recv().unwrap()
        };
        assert!(matches!(merge(61_001), Err(StoreError::Future(_))));
        assert_eq!(merge(2_000), Ok(()));
        assert_eq!(merge(2_000), Ok(()), "again");
        assert_eq!(engine.0.lock().unwrap().commits, [1, 1], "what is known is not written");
        assert_eq!(stored(&engine, "a").values().count(), 2);
        worker.work(vec![put("a", Some(b"both seen")).0]);
        let object = stored(&engine, "a");
        assert_eq!(object.values().count(), 1);
        assert!(object.last() > Hlc::at(2_000), "the merged stamp was learnt");
    }

    #[test]
    fn a_scrub_finds_a_record_that_was_damaged() {
        let engine = Scripted::default();
        let mut worker = worker(&engine);
        worker.work((0..50).map(|n| put(&format!("k{n}"), Some(b"1")).0).collect());
        (0..SHARDS).for_each(|_| worker.scrub());
        assert_eq!(worker.stats.sum_differences.load(Relaxed), 0);
        engine.0.lock().unwrap().objects.values_mut().next().unwrap()[20] ^= 1;
        (0..SHARDS).for_each(|_| worker.scrub());
        assert_eq!(worker.stats.sum_differences.load(Relaxed), 1);
        assert_sums(&worker);
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(16))]

        #[test]
        fn sums_after_any_history_are_those_of_the_records(
            steps in proptest::collection::vec((0u8..8, proptest::option::of(0u8..9), 0u8..10), 1..40),
        ) {
            let engine = Scripted::default();
            let mut worker = worker(&engine);
            let mut group = vec![];
            for (key, value, what) in steps {
                group.push(put(&key.to_string(), value.as_ref().map(std::slice::from_ref)).0);
                engine.0.lock().unwrap().full_at = (what == 0).then_some(2);
                match what {
                    0..4 => worker.work(std::mem::take(&mut group)),
                    4 => worker = self::worker(&engine),
                    _ => {}
                }
                assert_sums(&worker);
            }
        }
    }
}
