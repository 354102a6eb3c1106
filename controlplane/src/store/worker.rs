//! The store thread's work: changes are read-modify-writes, gathered into groups, committed, then acknowledged; steps of
//! exchanges run between groups and see what is committed.
//!
//! ```text
//! changes ─▶ group (GROUP_MAX changes or GROUP_DELAY) ─▶ read, change, encode, sum up ─▶ commit ─▶ acknowledge
//! steps ─────────────────────────────────────────▶ one after the other, never in the middle of a group
//! ```
//! Between them it scrubs: see `upkeep`.
//!
//! Invariants: the hash tree is that of the last commit; nothing is acknowledged or shown to another node before the
//! commit that holds it has returned; after the first commit that failed nothing is acknowledged any more; no actor
//! gives a dot out twice.

use super::conflict::{Conflict, Conflicts};
use super::engine::{Engine, EngineError, Files, Place};
use super::graves::Graves;
use super::identity::Identity;
use super::open::{self, Loaded};
use super::record::{Actor, Kind, Object};
use super::stage::Overlay;
use super::upkeep::Scrub;
use super::{Settings, Stats, StoreError, sums};
use crate::replica::floor::{Floor, Pace};
use crate::replica::hashtree::{HashTree, TreeKey};
use crate::replica::hlc::Clock;
use common::ids::NodeId;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tracing::error;

/// The objects of one node. The store's thread drives it; a simulation can do so as well.
pub struct Worker {
    pub(super) engine: Box<dyn Engine>,
    pub(super) identity: Identity,
    pub(super) clock: Clock,
    pub(super) key: TreeKey,
    pub(super) tree: HashTree,
    pub(super) sources: Sources,
    pub(super) scrub: Scrub,
    pub(super) floor: Floor,
    pub(super) graves: Graves,
    /// Objects with values that compete, and when that was noticed, milliseconds since 1970.
    pub(super) siblings: BTreeMap<Place, u64>,
    pub(super) conflicts: Conflicts,
    /// Whom the step at hand is for, the objects it has changed, and whether all there were are gone.
    pub(super) peer: Option<NodeId>,
    pub(super) changed: Vec<Object>,
    pub(super) reset: bool,
    /// The identity is to be written with the next group.
    pub(super) identity_dirty: bool,
    pub(super) poisoned: bool,
    pub(super) stats: Arc<Stats>,
}

/// What a worker cannot know by itself.
pub struct Sources {
    /// Milliseconds since 1970.
    pub wall_ms: Box<dyn Fn() -> u64 + Send>,
    /// Numbers nobody drew before: nodes and epochs are named with them.
    pub random: Box<dyn FnMut() -> u64 + Send>,
}

/// What the thread is asked.
pub enum Order {
    Change(Request),
    Step(Box<dyn FnOnce(&mut Worker) + Send>),
}

/// A change, and where to answer with the objects it has changed.
#[derive(Debug)]
pub struct Request {
    pub change: Change,
    pub reply: oneshot::Sender<Result<Vec<Object>, StoreError>>,
}

/// A change of the store.
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

impl Worker {
    /// Reads and proves all that the engine holds.
    pub fn open(
        mut engine: Box<dyn Engine>,
        files: Files,
        settings: &Settings,
        mut sources: Sources,
        stats: Arc<Stats>,
    ) -> Result<(Self, Loaded), EngineError> {
        let pace = Pace::of(settings.grace);
        let (identity, floor) = open::identify(&mut *engine, files, pace, &mut sources, &stats)?;
        let key = TreeKey::of(&settings.secret);
        let scan = open::scan(&*engine, &key, &floor, &stats)?;
        let differences = sums::settle(&mut *engine, &key, &scan.tree)?;
        if differences > 0 {
            error!(buckets = differences, "the hash tree disagreed with the records and is written anew");
            stats.sum_differences.fetch_add(differences as u64, Relaxed);
        }
        stats.epoch.store(identity.actor.epoch, Relaxed);
        let last = floor.floors().iter().fold(scan.hlc.max(floor.promise()), |last, floor| last.max(*floor));
        let worker = Self {
            engine,
            identity,
            clock: Clock::new(last),
            key,
            tree: scan.tree,
            sources,
            scrub: Scrub::new(settings),
            floor,
            graves: scan.graves,
            siblings: scan.siblings,
            conflicts: Conflicts::default(),
            peer: None,
            changed: Vec::new(),
            reset: false,
            identity_dirty: false,
            poisoned: false,
            stats,
        };
        worker.measure();
        let versions_reserved = identity.versions_reserved;
        Ok((worker, Loaded { objects: scan.objects, corrupt: scan.corrupt, versions_reserved }))
    }

    /// Works until every sender is gone.
    pub fn run(mut self, orders: &Receiver<Order>) {
        self.scrub.begin(Instant::now());
        loop {
            match orders.recv_deadline(self.scrub.due()) {
                Ok(Order::Step(step)) => step(&mut self),
                Ok(Order::Change(first)) => {
                    let until = Instant::now() + GROUP_DELAY;
                    let (mut group, mut after) = (vec![first], None);
                    while group.len() < GROUP_MAX && after.is_none() {
                        match orders.recv_deadline(until) {
                            Ok(Order::Change(request)) => group.push(request),
                            Ok(Order::Step(step)) => after = Some(step),
                            Err(_) => break,
                        }
                    }
                    self.work(group);
                    if let Some(step) = after {
                        step(&mut self);
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.scrub_on(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Who writes now.
    pub fn actor(&self) -> Actor {
        self.identity.actor
    }

    /// Stores an object's value, or its deletion. Returns the object as it is now.
    pub fn put(&mut self, kind: Kind, key: &str, bytes: Option<Vec<u8>>) -> Result<Object, StoreError> {
        let objects = self.change(Change::Put { kind, key: key.to_owned(), bytes })?;
        objects.into_iter().next().ok_or(StoreError::Closed)
    }

    /// Merges another node's object into ours. Returns it as it is now, if that changed it.
    pub fn merge_one(&mut self, object: Object) -> Result<Option<Object>, StoreError> {
        self.change(Change::Merge(object)).map(|objects| objects.into_iter().next())
    }

    /// The last conflicts, the oldest first.
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.conflicts.list()
    }

    fn change(&mut self, change: Change) -> Result<Vec<Object>, StoreError> {
        let (reply, mut answer) = oneshot::channel();
        self.work(vec![Request { change, reply }]);
        answer.try_recv().unwrap_or(Err(StoreError::Closed))
    }

    /// Commits a group and answers every request in it.
    pub fn work(&mut self, group: Vec<Request>) {
        if self.poisoned {
            group.into_iter().for_each(|request| request.answer(Err(StoreError::Poisoned)));
            return;
        }
        let mut overlay = Overlay::new();
        let mut accepted = Vec::with_capacity(group.len());
        let clock = self.clock;
        for request in group {
            match self.apply(&request.change, &mut overlay) {
                Ok(object) => accepted.push((request, object)),
                Err(error) => {
                    self.stats.refused.fetch_add(1, Relaxed);
                    request.answer(Err(error));
                }
            }
        }
        if accepted.is_empty() {
            return;
        }
        match self.commit(overlay) {
            Ok(()) => {
                self.stats.operations.fetch_add(accepted.len() as u64, Relaxed);
                for (request, object) in accepted {
                    request.answer(Ok(object.into_iter().collect()));
                }
            }
            // One alone may still fit, and whoever does not is told so.
            Err(EngineError::Full { .. }) if accepted.len() > 1 => {
                self.clock = clock;
                for (request, _) in accepted {
                    self.work(vec![request]);
                }
            }
            Err(EngineError::Full { map_bytes }) => {
                self.stats.refused.fetch_add(1, Relaxed);
                accepted
                    .into_iter()
                    .for_each(|(request, _)| request.answer(Err(StoreError::Full { map_bytes })));
            }
            Err(EngineError::Broken(cause)) => {
                self.poison(&*cause);
                accepted.into_iter().for_each(|(request, _)| request.answer(Err(StoreError::Poisoned)));
            }
        }
    }

    /// The first failed commit is the last: after it a flush may say that all is well while nothing was written.
    pub(super) fn poison(&mut self, cause: &(dyn std::error::Error + Send + Sync)) {
        error!(%cause, "a commit failed: the store takes no more writes until the control plane is restarted");
        self.poisoned = true;
        self.stats.poisoned.store(true, Relaxed);
        self.engine.mark_broken();
    }

    pub(super) fn measure(&self) {
        let usage = self.engine.usage();
        self.stats.map_bytes.store(usage.map_bytes, Relaxed);
        self.stats.used_bytes.store(usage.used_bytes, Relaxed);
        self.stats.graves.store(self.graves.total() as u64, Relaxed);
        self.stats.siblings.store(self.siblings.len() as u64, Relaxed);
        let (digest, records) = self.tree.digest();
        self.stats.digest.store(digest, Relaxed);
        self.stats.records.store(records, Relaxed);
    }
}

impl Request {
    fn answer(self, result: Result<Vec<Object>, StoreError>) {
        // Who asked may have stopped waiting.
        let _ = self.reply.send(result);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Worker").field("actor", &self.identity.actor).finish_non_exhaustive()
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(request) => request.change.fmt(out),
            Self::Step(_) => out.write_str("Step"),
        }
    }
}

/// How long the first change of a group waits for others.
pub const GROUP_DELAY: Duration = Duration::from_millis(2);
/// Most changes of one commit.
pub const GROUP_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::super::engine::Row;
    use super::super::memory::Memory;
    use super::super::record::{Hlc, Value, place};
    use super::*;
    use crate::replica::hashtree::{BUCKETS, Digest};
    use tokio::sync::oneshot::error::TryRecvError;

    type Answer = oneshot::Receiver<Result<Vec<Object>, StoreError>>;

    const ACTOR: Actor = Actor { node: [1; 16], epoch: 1 };

    /// On the same disk as before; the clock stands at one second.
    fn worker(disk: &Memory) -> Worker {
        let identity = Identity { actor: ACTOR, inode: 0, versions_reserved: 0 };
        disk.disk().meta.insert(Row::Identity, identity.encode());
        let day = Duration::from_secs(86_400);
        let settings = Settings { secret: vec![], scrub_timer: day, scrub_ttl: day, grace: day };
        let mut drawn = 1;
        let random = move || {
            drawn += 1;
            drawn
        };
        let sources = Sources { wall_ms: Box::new(|| 1_000), random: Box::new(random) };
        let opened = Worker::open(Box::new(disk.clone()), disk.files(), &settings, sources, Arc::default());
        disk.disk().commits.clear();
        opened.unwrap().0
    }

    /// The sums in memory and those stored are those of the records.
    fn assert_sums(worker: &Worker) {
        let fresh = sums::recompute(&*worker.engine, &worker.key, (0, u16::MAX), |_, _| true).unwrap();
        let fresh = |bucket: u16| fresh.get(&bucket).copied().unwrap_or_default();
        assert!((0..=u16::MAX).all(|bucket| worker.tree.bucket(bucket) == fresh(bucket)));
        let mut rows = vec![];
        worker.engine.sums(&mut |row, bytes| rows.push((row.to_vec(), bytes.to_vec()))).unwrap();
        for (row, bytes) in rows {
            let Ok(bucket) = row.try_into().map(u16::from_be_bytes) else { continue };
            assert_eq!(Digest::decode(&bytes), Some(fresh(bucket)));
        }
    }

    fn put(key: &str, bytes: Option<&[u8]>) -> (Request, Answer) {
        let (reply, answer) = oneshot::channel();
        let bytes = bytes.map(<[u8]>::to_vec);
        (Request { change: Change::Put { kind: Kind::Realm, key: key.into(), bytes }, reply }, answer)
    }

    fn stored(engine: &Memory, key: &str) -> Object {
        Object::decode(&engine.get(&place(Kind::Realm, key)).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn a_group_is_one_commit_and_is_answered_after_it() {
        let engine = Memory::default();
        let mut worker = worker(&engine);
        let (requests, answers): (Vec<_>, Vec<_>) =
            ["a", "b", "a"].iter().map(|key| put(key, Some(key.as_bytes()))).unzip();
        let (sender, queue) = crossbeam_channel::unbounded();
        requests.into_iter().for_each(|request| sender.send(Order::Change(request)).unwrap());
        drop(sender);
        // `a` is in the group twice: the second put sees the first.
        let stats = Arc::clone(&worker.stats);
        worker.run(&queue);
        assert_eq!(engine.disk().commits, [2]);
        for mut answer in answers {
            assert!(answer.try_recv().unwrap().is_ok());
        }
        assert_eq!(stored(&engine, "a").clock.entries()[0].counter, 2);
        assert_eq!((stats.operations.load(Relaxed), stats.commits.load(Relaxed)), (3, 1));
        worker = self::worker(&engine);
        let (request, mut answer) = put("a", None);
        assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
        worker.work(vec![request]);
        assert_eq!(stored(&engine, "a").resolved().unwrap().bytes, None);
    }

    #[test]
    fn the_first_failed_commit_poisons_for_ever() {
        let engine = Memory::default();
        let mut worker = worker(&engine);
        let (request, mut answer) = put("a", Some(b"1"));
        worker.work(vec![request]);
        assert!(answer.try_recv().unwrap().is_ok());
        engine.disk().broken = true;
        let (request, mut answer) = put("a", Some(b"2"));
        worker.work(vec![request]);
        assert_eq!(answer.try_recv().unwrap(), Err(StoreError::Poisoned));
        // The engine says that all is well again; nobody believes it.
        engine.disk().broken = false;
        let commits = engine.disk().commits.len();
        let (request, mut answer) = put("a", Some(b"3"));
        worker.work(vec![request]);
        assert_eq!(answer.try_recv().unwrap(), Err(StoreError::Poisoned));
        assert_eq!(engine.disk().commits.len(), commits);
        assert!(engine.disk().marked_broken && worker.stats.poisoned.load(Relaxed));
        assert_eq!(stored(&engine, "a").resolved().unwrap().bytes.as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn a_full_store_refuses_one_by_one_and_goes_on() {
        let engine = Memory::default();
        let mut worker = worker(&engine);
        engine.disk().full_at = Some(2);
        let (requests, answers): (Vec<_>, Vec<_>) = ["a", "b"].iter().map(|key| put(key, Some(b"1"))).unzip();
        worker.work(requests);
        for mut answer in answers {
            assert!(answer.try_recv().unwrap().is_ok(), "each fits alone");
        }
        engine.disk().full_at = Some(1);
        let (request, mut answer) = put("c", Some(b"1"));
        worker.work(vec![request]);
        assert_eq!(answer.try_recv().unwrap(), Err(StoreError::Full { map_bytes: 9 }));
        engine.disk().full_at = None;
        let (request, mut answer) = put("c", Some(b"1"));
        worker.work(vec![request]);
        assert!(answer.try_recv().unwrap().is_ok());
        assert_eq!(stored(&engine, "c").clock.entries()[0].counter, 1);
    }

    #[test]
    fn a_damaged_record_is_replaced_under_a_new_actor() {
        let engine = Memory::default();
        let mut worker = worker(&engine);
        worker.work(vec![put("a", Some(b"1")).0]);
        let key = place(Kind::Realm, "a").to_vec();
        engine.disk().objects.get_mut(&key).unwrap()[20] ^= 4;
        worker.work(vec![put("a", Some(b"2")).0]);
        let object = stored(&engine, "a");
        assert_eq!((object.clock.entries().len(), object.clock.entries()[0].counter), (1, 1));
        assert_ne!(object.clock.entries()[0].actor.epoch, 1);
        let meta = Identity::decode(&engine.disk().meta[&Row::Identity]).unwrap();
        assert_eq!(meta.actor, object.clock.entries()[0].actor, "the new epoch is in the same commit");
        assert_eq!(worker.stats.corrupt.load(Relaxed), 1);
        assert_sums(&worker);
    }

    #[test]
    fn a_bad_put_harms_nobody_else_in_its_group() {
        let engine = Memory::default();
        let mut worker = worker(&engine);
        let (bad, mut bad_answer) = put("", Some(b"1"));
        let (good, mut good_answer) = put("a", Some(b"1"));
        worker.work(vec![bad, good]);
        assert!(matches!(bad_answer.try_recv().unwrap(), Err(StoreError::Object(_))));
        assert!(good_answer.try_recv().unwrap().is_ok());
    }

    #[test]
    fn reserved_versions_only_grow() {
        let engine = Memory::default();
        let mut worker = worker(&engine);
        for up_to in [7, 3] {
            let (reply, mut answer) = oneshot::channel();
            worker.work(vec![Request { change: Change::ReserveVersions { up_to }, reply }]);
            assert!(answer.try_recv().unwrap().is_ok());
        }
        let meta = Identity::decode(&engine.disk().meta[&Row::Identity]).unwrap();
        assert_eq!(meta.versions_reserved, 7);
    }

    #[test]
    fn another_nodes_object_is_merged_unless_it_is_from_the_future() {
        let engine = Memory::default();
        let mut worker = worker(&engine);
        worker.work(vec![put("a", Some(b"ours")).0]);
        let other = Actor { node: [2; 16], epoch: 1 };
        let mut merge = |wall_ms: u64| {
            let mut theirs = Object::new(Kind::Realm, "a");
            theirs.put(other, 0, Value { hlc: Hlc::at(wall_ms), bytes: Some(b"theirs".to_vec()) }).unwrap();
            let (reply, mut answer) = oneshot::channel();
            worker.work(vec![Request { change: Change::Merge(theirs), reply }]);
            assert_sums(&worker);
            answer.try_recv().unwrap()
        };
        assert!(matches!(merge(61_001), Err(StoreError::Future(_))));
        assert_eq!(merge(2_000).unwrap().len(), 1);
        assert_eq!(merge(2_000), Ok(vec![]), "again");
        assert_eq!(engine.disk().commits, [1, 1], "what is known is not written");
        assert_eq!(stored(&engine, "a").values().count(), 2);
        worker.work(vec![put("a", Some(b"both seen")).0]);
        let object = stored(&engine, "a");
        assert_eq!(object.values().count(), 1);
        assert!(object.last() > Hlc::at(2_000), "the merged stamp was learnt");
    }

    #[test]
    fn a_scrub_finds_a_record_that_was_damaged() {
        let engine = Memory::default();
        let mut worker = worker(&engine);
        worker.work((0..50).map(|n| put(&format!("k{n}"), Some(b"1")).0).collect());
        (0..BUCKETS / 64).for_each(|_| worker.scrub_on(Instant::now()));
        assert_eq!(worker.stats.sum_differences.load(Relaxed), 0);
        engine.disk().objects.values_mut().next().unwrap()[20] ^= 1;
        (0..BUCKETS / 64).for_each(|_| worker.scrub_on(Instant::now()));
        assert_eq!(worker.stats.sum_differences.load(Relaxed), 1);
        assert_sums(&worker);
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(16))]

        #[test]
        fn sums_after_any_history_are_those_of_the_records(
            steps in proptest::collection::vec((0u8..8, proptest::option::of(0u8..9), 0u8..10), 1..40),
        ) {
            let engine = Memory::default();
            let mut worker = worker(&engine);
            let mut group = vec![];
            for (key, value, what) in steps {
                group.push(put(&key.to_string(), value.as_ref().map(std::slice::from_ref)).0);
                engine.disk().full_at = (what == 0).then_some(2);
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
