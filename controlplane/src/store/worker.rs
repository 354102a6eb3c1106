//! The store thread's work: puts are read-modify-writes, gathered into groups, committed, then acknowledged.
//!
//! ```text
//! requests ─▶ group (GROUP_MAX requests or GROUP_DELAY) ─▶ read, change, encode ─▶ commit ─▶ acknowledge
//! ```
//! Invariants: nothing is acknowledged before the commit that holds it has returned; after the first commit that failed
//! nothing is acknowledged any more; no actor gives a dot out twice.

use super::engine::{Engine, EngineError, Place, Write};
use super::identity::Identity;
use super::record::{Actor, Hlc, Kind, Object, Value, place};
use super::{Request, Stats, StoreError};
use crossbeam_channel::Receiver;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tracing::error;

pub struct Worker<E> {
    engine: E,
    identity: Identity,
    hlc: Hlc,
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
    ReserveVersions {
        up_to: u64,
    },
}

impl<E: Engine> Worker<E> {
    /// `hlc`: the greatest stamp in the store.
    pub fn new(engine: E, identity: Identity, hlc: Hlc, stats: Arc<Stats>, wall_ms: fn() -> u64) -> Self {
        let worker = Self { engine, identity, hlc, identity_dirty: false, poisoned: false, stats, wall_ms };
        worker.measure();
        worker
    }

    /// Works until every sender is gone.
    pub fn run(mut self, requests: &Receiver<Request>) {
        while let Ok(first) = requests.recv() {
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
        let mut overlay = HashMap::new();
        let mut accepted = Vec::with_capacity(group.len());
        let hlc = self.hlc;
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
        match self.commit(overlay) {
            Ok(()) => {
                self.stats.operations.fetch_add(accepted.len() as u64, Relaxed);
                answer(accepted, || Ok(()));
            }
            // One alone may still fit, and whoever does not is told so.
            Err(EngineError::Full { .. }) if accepted.len() > 1 => {
                self.hlc = hlc;
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
    fn apply(&mut self, change: &Change, overlay: &mut HashMap<Place, Vec<u8>>) -> Result<(), StoreError> {
        match change {
            Change::ReserveVersions { up_to } => {
                self.identity.versions_reserved = self.identity.versions_reserved.max(*up_to);
                self.identity_dirty = true;
            }
            Change::Put { kind, key, bytes } => {
                let place = place(*kind, key);
                let current = match overlay.get(&place) {
                    Some(record) => Some(record.clone()),
                    None => self.engine.get(&place).map_err(|error| StoreError::Read(error.to_string()))?,
                };
                let mut object = self.current(*kind, key, current.as_deref());
                let hlc = self.hlc.next((self.wall_ms)());
                object.put(self.identity.actor, Value { hlc, bytes: bytes.clone() })?;
                self.hlc = hlc;
                overlay.insert(place, object.encode());
            }
        }
        Ok(())
    }

    /// The stored object. A damaged one is given up: its history is unknown, so the write that replaces it gets a new
    /// actor, whose dots nobody has seen.
    fn current(&mut self, kind: Kind, key: &str, record: Option<&[u8]>) -> Object {
        let Some(record) = record else { return Object::new(kind, key) };
        match Object::decode(record) {
            Ok(object) if object.kind == kind && object.key == key => object,
            other => {
                let reason =
                    other.err().map_or("it is another object's".to_owned(), |error| error.to_string());
                error!(?kind, key, reason, "a damaged record is overwritten");
                self.stats.corrupt.fetch_add(1, Relaxed);
                self.identity.actor = Actor { epoch: new_epoch(), ..self.identity.actor };
                self.identity_dirty = true;
                Object::new(kind, key)
            }
        }
    }

    fn commit(&mut self, overlay: HashMap<Place, Vec<u8>>) -> Result<(), EngineError> {
        let mut writes: Vec<_> =
            overlay.into_iter().map(|(place, record)| Write::Object { place, record }).collect();
        if self.identity_dirty {
            writes.push(Write::Meta(self.identity.encode()));
        }
        let started = Instant::now();
        self.engine.commit(&writes)?;
        self.stats.committed(started.elapsed());
        self.identity_dirty = false;
        self.measure();
        Ok(())
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

        fn meta(&self) -> Result<Option<Vec<u8>>, EngineError> {
            Ok(self.0.lock().unwrap().meta.clone())
        }

        fn commit(&mut self, writes: &[Write]) -> Result<(), EngineError> {
            let mut script = self.0.lock().unwrap();
            script.commits.push(writes.len());
            if script.broken {
                return Err(EngineError::Broken(io::Error::from_raw_os_error(libc::EIO).into()));
            }
            if script.full_at.is_some_and(|full| writes.len() >= full) {
                return Err(EngineError::Full { map_bytes: 9 });
            }
            for write in writes {
                match write {
                    Write::Object { place, record } => {
                        script.objects.insert(place.to_vec(), record.clone());
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
        Worker::new(engine.clone(), identity, Hlc::default(), Arc::default(), || 1_000)
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
        assert_eq!(stored(&engine, "a").entries[0].counter, 2);
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
        assert_eq!(stored(&engine, "c").entries[0].counter, 1);
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
        assert_eq!((object.entries.len(), object.entries[0].counter), (1, 1));
        assert_ne!(object.entries[0].actor.epoch, 1);
        let meta = Identity::decode(engine.0.lock().unwrap().meta.as_ref().unwrap()).unwrap();
        assert_eq!(meta.actor, object.entries[0].actor, "the new epoch is in the same commit");
        assert_eq!(worker.stats.corrupt.load(Relaxed), 1);
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
}
