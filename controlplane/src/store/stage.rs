//! Changes before they are committed: each reads what is there, or what the group has made of it so far, and says what
//! becomes of it and of the hash tree.

use super::conflict;
use super::engine::{EngineError, Place, Row, Write};
use super::graves::{GRAVES_SHARD_MAX, Graves};
use super::realm::{self, Settings};
use super::record::{Hlc, Kind, Merged, Object, ObjectError, Value, place};
use super::worker::{Change, Worker};
use super::{StoreError, sums};
use crate::replica::hashtree::{Digest, Sum, bucket_of, shard_of};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;
use tracing::{error, warn};

/// What a group has made of records, by place.
pub(super) type Overlay = HashMap<Place, Staged>;

pub(super) struct Staged {
    record: Vec<u8>,
    before: Before,
    /// The stamp of the deletion that was there, and that of the one that is now.
    grave_before: Option<Hlc>,
    grave: Option<Hlc>,
    /// What the hash tree is to have.
    sum: Option<Sum>,
    competes: bool,
}

/// What the hash tree has for a record that is replaced.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    Hash(Sum),
    /// The record is damaged; what it was is not known.
    Unknown,
}

impl Worker {
    /// Adds a change to the group. Returns the object as the change leaves it; none: it changed none. On error the group
    /// is as before.
    pub(super) fn apply(
        &mut self,
        change: &Change,
        overlay: &mut Overlay,
    ) -> Result<Option<Object>, StoreError> {
        let wall_ms = (self.sources.wall_ms)();
        match change {
            Change::ReserveVersions { up_to } => {
                self.identity.versions_reserved = self.identity.versions_reserved.max(*up_to);
                self.identity_dirty = true;
                Ok(None)
            }
            Change::Put { kind, key, bytes } => self.change_object(*kind, key, overlay, |worker, object| {
                worker.put_value(object, bytes.as_deref(), wall_ms).map(|()| true)
            }),
            Change::Merge(theirs) => {
                if let Err(error) = theirs.last().check(wall_ms) {
                    self.stats.future.fetch_add(1, Relaxed);
                    warn!(kind = ?theirs.kind, key = theirs.key, %error, "another node's object is refused");
                    return Err(error.into());
                }
                self.change_object(theirs.kind, &theirs.key, overlay, |worker, object| {
                    worker.merge_value(object, theirs, wall_ms)
                })
            }
        }
    }

    /// Writes over all that is known of an object.
    fn put_value(
        &mut self,
        object: &mut Object,
        bytes: Option<&[u8]>,
        wall_ms: u64,
    ) -> Result<(), StoreError> {
        let shard = shard_of(bucket_of(&place(object.kind, &object.key)));
        let is_new = object.values().next().is_none();
        if is_new && bytes.is_some() && self.graves.len(shard) >= GRAVES_SHARD_MAX {
            return Err(StoreError::Graves);
        }
        let mut clock = self.clock;
        let hlc = clock.tick(wall_ms);
        let bytes = bytes.map(|bytes| match object.kind {
            Kind::Realm => realm::stamped(bytes, realm_settings(object), hlc),
            Kind::Retained => bytes.to_vec(),
        });
        object.put(self.identity.actor, self.floor.counter(), Value { hlc, bytes })?;
        self.clock = clock;
        Ok(())
    }

    /// True if it changed anything.
    fn merge_value(
        &mut self,
        object: &mut Object,
        theirs: &Object,
        wall_ms: u64,
    ) -> Result<bool, StoreError> {
        let place = place(theirs.kind, &theirs.key);
        if object.values().next().is_none() && !self.counts(&place, theirs) {
            // A deletion of what nobody has any more.
            return Ok(false);
        }
        let clashes = object.clock.clashes(&theirs.clock);
        if clashes > 0 {
            let (kind, key) = (object.kind, &object.key);
            error!(?kind, key, clashes, "two values were written under one dot: a store was used twice");
            self.stats.clashes.fetch_add(clashes as u64, Relaxed);
        }
        let before = object.clone();
        let merged = match object.merge(theirs) {
            // Refused here is refused for good, and another node may hold it: somebody must look.
            Err(error @ (ObjectError::Merged | ObjectError::Bytes)) => {
                error!(kind = ?theirs.kind, key = theirs.key, %error, "an object of another node is too large");
                return Err(error.into());
            }
            merged => merged?,
        };
        if merged == Merged::Cut {
            warn!(kind = ?object.kind, key = object.key, "values that competed were given up");
        }
        self.clock.observe(theirs.last(), wall_ms)?;
        if merged == Merged::Known {
            return Ok(false);
        }
        if let Some(rule) = self.conflicts.note(&before, object, wall_ms) {
            self.stats.conflicts[rule as usize].fetch_add(1, Relaxed);
            let values = object.values().count();
            if values > SIBLINGS_USUAL {
                warn!(kind = ?object.kind, key = object.key, values, "many values of one object compete");
            }
        }
        Ok(true)
    }

    /// Reads an object, changes it and stages it if `change` says that it was changed.
    pub(super) fn change_object(
        &mut self,
        kind: Kind,
        key: &str,
        overlay: &mut Overlay,
        change: impl FnOnce(&mut Self, &mut Object) -> Result<bool, StoreError>,
    ) -> Result<Option<Object>, StoreError> {
        let place = place(kind, key);
        let slot = overlay.entry(place);
        let current = match &slot {
            Entry::Occupied(staged) => Some(staged.get().record.clone()),
            Entry::Vacant(_) => {
                self.engine.get(&place).map_err(|error| StoreError::Read(error.to_string()))?
            }
        };
        let (mut object, is_damaged) = self.current(kind, key, current.as_deref());
        let (grave_before, counted) = (Graves::stamp(&object), self.counts(&place, &object));
        if !change(self, &mut object)? {
            return Ok(None);
        }
        let record = object.encode();
        let sum = self.counts(&place, &object).then(|| self.key.hash(&place, &record));
        let (grave, competes) = (Graves::stamp(&object), conflict::competes(&object));
        match slot {
            Entry::Occupied(mut staged) => {
                let staged = staged.get_mut();
                (staged.record, staged.grave, staged.sum, staged.competes) = (record, grave, sum, competes);
            }
            Entry::Vacant(slot) => {
                let before = match current {
                    _ if is_damaged => Before::Unknown,
                    Some(current) if counted => Before::Hash(self.key.hash(&place, &current)),
                    _ => Before::Nothing,
                };
                slot.insert(Staged { record, before, grave_before, grave, sum, competes });
            }
        }
        Ok(Some(object))
    }

    /// Whether the hash tree has a record: all but deletions below the floor.
    pub(super) fn counts(&self, place: &Place, object: &Object) -> bool {
        sums::counts(self.floor.floors(), place, object)
    }

    /// The stored object, and whether it was damaged. A damaged one is given up: its history is unknown, so this node
    /// goes on under a new actor, whose dots nobody has seen.
    fn current(&mut self, kind: Kind, key: &str, record: Option<&[u8]>) -> (Object, bool) {
        let Some(record) = record else { return (Object::new(kind, key), false) };
        match Object::decode(record) {
            Ok(object) if object.kind == kind && object.key == key => (object, false),
            other => {
                let reason =
                    other.err().map_or("it is another object's".to_owned(), |error| error.to_string());
                error!(?kind, key, reason, "a damaged record is overwritten");
                self.stats.corrupt.fetch_add(1, Relaxed);
                self.begin_epoch();
                (Object::new(kind, key), true)
            }
        }
    }

    /// From the next commit on this node writes as somebody whose dots nobody has seen.
    pub(super) fn begin_epoch(&mut self) {
        self.identity.actor.epoch = (self.sources.random)();
        self.stats.epoch.store(self.identity.actor.epoch, Relaxed);
        self.identity_dirty = true;
    }

    pub(super) fn commit(&mut self, overlay: Overlay) -> Result<(), EngineError> {
        let digests = self.digests(&overlay)?;
        let mut writes = Vec::with_capacity(overlay.len() + digests.len() + 2);
        let mut after = Vec::with_capacity(overlay.len());
        for (place, staged) in overlay {
            after.push((place, staged.grave_before, staged.grave, staged.competes));
            writes.push(Write::Object { place, record: staged.record });
        }
        self.commit_all(writes, digests)?;
        let wall_ms = (self.sources.wall_ms)();
        for (place, grave_before, grave, competes) in after {
            grave_before.into_iter().for_each(|stamp| self.graves.remove(place, stamp));
            grave.into_iter().for_each(|stamp| self.graves.add(place, stamp));
            if !competes {
                self.siblings.remove(&place);
            } else if self.siblings.len() < SIBLINGS_WATCHED_MAX {
                self.siblings.entry(place).or_insert(wall_ms);
            }
        }
        self.measure();
        Ok(())
    }

    /// One transaction with all that is to be stored beside `writes`. On success the tree has `digests`.
    pub(super) fn commit_all(
        &mut self,
        mut writes: Vec<Write>,
        digests: BTreeMap<u16, Digest>,
    ) -> Result<(), EngineError> {
        writes.extend(digests.iter().map(|(bucket, digest)| sums::row(*bucket, *digest)));
        if self.identity_dirty {
            writes.push(Write::Meta { row: Row::Identity, bytes: self.identity.encode() });
        }
        writes.extend(self.floor.row().map(|bytes| Write::Meta { row: Row::Floor, bytes }));
        if writes.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        self.engine.commit(&writes)?;
        self.stats.committed(started.elapsed());
        self.identity_dirty = false;
        self.floor.stored();
        digests.into_iter().for_each(|(bucket, digest)| self.tree.set(bucket, digest));
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
                Before::Hash(hash) => digest.remove(hash),
                Before::Unknown => {
                    unknown.insert(bucket);
                }
            }
            staged.sum.into_iter().for_each(|sum| digest.add(sum));
        }
        for bucket in unknown {
            let others = |at: &Place, object: &Object| !overlay.contains_key(at) && self.counts(at, object);
            let fresh = sums::recompute(&*self.engine, &self.key, (bucket, bucket), others)?;
            let mut digest = fresh.get(&bucket).copied().unwrap_or_default();
            let staged = overlay.iter().filter(|(place, _)| bucket_of(place) == bucket);
            staged.filter_map(|(_, staged)| staged.sum).for_each(|sum| digest.add(sum));
            digests.insert(bucket, digest);
        }
        Ok(digests)
    }
}

/// The settings in use of a realm that is there.
fn realm_settings(object: &Object) -> Option<Settings> {
    let value = object.resolved()?;
    Settings::decode(value.bytes.as_deref()?, value.hlc).ok()
}

/// Values of one object beyond which it is worth a line in the log.
const SIBLINGS_USUAL: usize = 3;
/// Objects with values that compete which are settled by themselves; others wait for a write.
pub(super) const SIBLINGS_WATCHED_MAX: usize = 4_096;
