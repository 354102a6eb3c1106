//! The collection of deletions on the store, and the settling of values that compete: see `replica::floor` and
//! `conflict`.

use super::engine::{EngineError, Place, Write};
use super::graves::Graves;
use super::record::{Hlc, Object, RecordError, Value};
use super::stage::Overlay;
use super::sync::Changes;
use super::worker::Worker;
use super::{conflict, quarantine, sums};
use crate::replica::floor::{Announcement, Stale, Stamps};
use crate::replica::hashtree::{Digest, HashTree, SHARDS, bucket_of};
use crate::replica::hlc::Clock;
use common::ids::NodeId;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use tracing::{error, info, warn};

/// What regular work has led to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Upkeep {
    /// Objects that were settled are to be sent to the other nodes.
    pub changes: Changes,
    /// To be sent to every connected node over the floor's channel.
    pub announcement: Option<Vec<u8>>,
}

impl Worker {
    /// Regular work of a node in a cluster, about once a second: settles values that compete, moves the floor on, forgets
    /// deletions below it.
    pub fn upkeep(&mut self) -> Upkeep {
        if self.poisoned {
            return Upkeep::default();
        }
        self.settle();
        self.collect();
        let announcement = self.floor.announcement().map(|announcement| announcement.encode());
        Upkeep { changes: self.take_changes(), announcement }
    }

    /// What a node that has just connected is to be told over the floor's channel.
    pub fn announcement(&mut self) -> Vec<u8> {
        self.store_floor();
        self.floor.state().encode()
    }

    /// Takes another node's announcement.
    pub fn heard(&mut self, peer: NodeId, announcement: &[u8]) -> Result<Changes, RecordError> {
        let announcement = Announcement::decode(announcement)?;
        self.floor.heard(peer, &announcement, self.moment());
        // If it is stale it says so itself, in the log.
        let _ = self.adopt_floors(&announcement.floors);
        Ok(self.take_changes())
    }

    /// These nodes belong to the cluster, whether they live or not. Whoever was named stays a member until it is
    /// forgotten.
    pub fn members(&mut self, nodes: &[NodeId]) {
        let now = self.moment();
        nodes.iter().for_each(|node| self.floor.met(*node, now));
        self.store_floor();
    }

    /// A node will not come back. If it does, it may find that it is stale and must begin anew.
    pub fn forget(&mut self, node: NodeId) {
        if self.floor.forget(node, self.moment()) {
            info!(%node, "forgotten: deletions it has not seen may be forgotten too");
        }
        self.store_floor();
    }

    /// Adopts floors that are higher than ours. A node that is stale gives up what it holds.
    pub(super) fn adopt_floors(&mut self, floors: &Stamps) -> Result<(), Stale> {
        let wall_ms = (self.sources.wall_ms)();
        match self.floor.rises(floors, wall_ms, self.is_empty()) {
            Ok(rising) => {
                self.raise(&rising, floors);
                Ok(())
            }
            Err(stale) => {
                error!(%stale, "this node was away for too long; it gives up what it holds and gets it anew");
                let near = |floor: &Hlc| floor.check(wall_ms).map_or(Hlc::default(), |()| *floor);
                self.give_up(&std::array::from_fn(|shard| near(&floors[shard])));
                Err(stale)
            }
        }
    }

    /// Moves marks and floors on, and forgets deletions below the floors.
    pub(super) fn collect(&mut self) {
        if self.poisoned {
            return;
        }
        let wall_ms = (self.sources.wall_ms)();
        let before = self.floor.clone();
        self.floor.tick(self.clock.last(), wall_ms);
        if !self.floor.is_fresh() {
            let floors = self.floor.worked_out(wall_ms);
            // A node is never stale by its own reckoning.
            if let Ok(rising) = self.floor.rises(&floors, wall_ms, false) {
                self.raise(&rising, &floors);
            }
        }
        if self.floor.row().is_some() && !self.store_floor() {
            // What is not stored must not be told.
            self.floor = before;
        }
        self.follow_floors();
        self.purge(wall_ms);
        self.measure();
    }

    /// The deletions between the old floors and the new ones leave the tree, in one transaction with the floors.
    fn raise(&mut self, rising: &[usize], floors: &Stamps) {
        if rising.is_empty() {
            return;
        }
        let mut digests = BTreeMap::<u16, Digest>::new();
        for &shard in rising {
            let (old, new) = (self.floor.floors()[shard], floors[shard]);
            for (_, place) in self.graves.between(shard, old, new) {
                let Ok(Some(record)) = self.engine.get(&place) else { continue };
                if sums::sound(&place, &record).is_some() {
                    let bucket = bucket_of(&place);
                    let digest = digests.entry(bucket).or_insert_with(|| self.tree.bucket(bucket));
                    digest.remove(self.key.hash(&place, &record));
                }
            }
        }
        let before = self.floor.clone();
        rising.iter().for_each(|shard| self.floor.adopt(*shard, floors[*shard]));
        if !self.try_commit(vec![], digests) {
            self.floor = before;
        }
        self.follow_floors();
    }

    /// Removes deletions that nobody compares any more. Bounded: the rest is removed next time.
    fn purge(&mut self, wall_ms: u64) {
        let is_fresh = self.floor.is_fresh() && self.floor.members() == 0;
        // A node that never met another needs no floor: nobody can bring back what it has deleted.
        let youngest = Hlc::at(wall_ms.saturating_sub(self.floor.grace_ms()));
        let limit = |shard: usize| if is_fresh { youngest } else { self.floor.floors()[shard] };
        let dead = (0..SHARDS).flat_map(|shard| self.graves.between(shard, Hlc::default(), limit(shard)));
        let dead: Vec<(Hlc, Place)> = dead.take(PURGE_MAX).collect();
        if dead.is_empty() {
            return;
        }
        let (mut writes, mut digests) = (Vec::new(), BTreeMap::<u16, Digest>::new());
        let before = self.floor.clone();
        for (_, place) in &dead {
            let Ok(Some(record)) = self.engine.get(place) else { continue };
            writes.push(Write::Gone { place: *place });
            let Some((_, object)) = sums::sound(place, &record) else { continue };
            let own =
                object.clock.entries().iter().filter(|entry| entry.actor.node == self.identity.actor.node);
            self.floor.forgot_counter(own.map(|entry| entry.counter).max().unwrap_or(0));
            if self.counts(place, &object) {
                let bucket = bucket_of(place);
                let digest = digests.entry(bucket).or_insert_with(|| self.tree.bucket(bucket));
                digest.remove(self.key.hash(place, &record));
            }
        }
        if !self.try_commit(writes, digests) {
            self.floor = before;
            return;
        }
        dead.iter().for_each(|(stamp, place)| self.graves.remove(*place, *stamp));
        self.stats.purged.fetch_add(dead.len() as u64, Relaxed);
    }

    /// Writes one value over those that have competed for a while. One node does it for each object: the least of those
    /// that wrote the values and are still there. Were it more than one, their values would compete again.
    fn settle(&mut self) {
        let wall_ms = (self.sources.wall_ms)();
        let due = |(place, since): (&Place, &u64)| {
            (wall_ms.saturating_sub(*since) >= SETTLE_AFTER_MS).then_some(*place)
        };
        let due: Vec<Place> = self.siblings.iter().filter_map(due).take(SETTLE_MAX).collect();
        let (mut overlay, mut settled) = (Overlay::new(), Vec::new());
        for place in due {
            // Looked at again later, if it is another node's or cannot be settled now.
            self.siblings.insert(place, wall_ms);
            let Ok(Some(record)) = self.engine.get(&place) else { continue };
            let Some((_, object)) = sums::sound(&place, &record) else { continue };
            if !conflict::competes(&object) {
                self.siblings.remove(&place);
            } else if self.is_settler(&object) {
                settled.extend(self.settle_one(&object, &mut overlay, wall_ms));
            }
        }
        match self.commit(overlay) {
            Ok(()) => self.changed.append(&mut settled),
            Err(EngineError::Full { .. }) => warn!("no room to settle values that compete"),
            Err(EngineError::Broken(cause)) => self.poison(&*cause),
        }
    }

    fn settle_one(&mut self, object: &Object, overlay: &mut Overlay, wall_ms: u64) -> Option<Object> {
        let settled = self.change_object(object.kind, &object.key, overlay, |worker, object| {
            let Some(used) = object.resolved() else { return Ok(false) };
            let mut clock = worker.clock;
            let value = Value { hlc: clock.tick(wall_ms), bytes: used.bytes };
            object.put(worker.identity.actor, worker.floor.counter(), value)?;
            worker.clock = clock;
            Ok(true)
        });
        settled.unwrap_or_else(|error| {
            warn!(kind = ?object.kind, key = object.key, %error, "values that compete cannot be settled");
            None
        })
    }

    fn is_settler(&self, object: &Object) -> bool {
        let own = NodeId(self.identity.actor.node);
        let writers = object.clock.entries().iter().filter(|entry| !entry.values.is_empty());
        let is_there = |node: &NodeId| *node == own || self.floor.is_member(*node);
        let least = writers.map(|entry| NodeId(entry.actor.node)).filter(is_there).min();
        least == Some(own)
    }

    /// Sets aside what only this node may know, then forgets everything.
    fn give_up(&mut self, floors: &Stamps) {
        let wall_ms = (self.sources.wall_ms)();
        let own = NodeId(self.identity.actor.node);
        if let Err(error) = quarantine::set_aside(&mut *self.engine, own, self.floor.marks(), wall_ms) {
            return error!(%error, "what only this node knows cannot be set aside; it keeps what it holds");
        }
        let (floor, actor) = (self.floor.clone(), self.identity.actor);
        self.begin_epoch();
        self.floor.begin_anew(floors);
        if !self.try_commit(vec![Write::Clear, sums::key_row(&self.key)], BTreeMap::new()) {
            (self.floor, self.identity.actor) = (floor, actor);
            return;
        }
        (self.tree, self.graves) = (HashTree::default(), Graves::default());
        self.siblings.clear();
        self.changed.clear();
        self.reset = true;
        self.stats.resets.fetch_add(1, Relaxed);
        self.follow_floors();
        self.measure();
    }

    /// Stamps below a floor would be forgotten at once, and those below the promise were promised not to be.
    fn follow_floors(&mut self) {
        let last = self.clock.last().max(self.floor.promise());
        self.clock = Clock::new(self.floor.floors().iter().fold(last, |last, floor| last.max(*floor)));
    }

    /// A stamp of now that is given to nothing.
    pub(super) fn moment(&self) -> Hlc {
        self.clock.last().max(Hlc::at((self.sources.wall_ms)()))
    }

    fn is_empty(&self) -> bool {
        self.graves.total() == 0 && self.tree.roots().iter().all(|root| root.count == 0)
    }

    /// Stores what has changed of the floor. False: it is not stored.
    fn store_floor(&mut self) -> bool {
        self.try_commit(vec![], BTreeMap::new())
    }

    fn try_commit(&mut self, writes: Vec<Write>, digests: BTreeMap<u16, Digest>) -> bool {
        if self.poisoned {
            return false;
        }
        match self.commit_all(writes, digests) {
            Ok(()) => true,
            Err(EngineError::Full { .. }) => {
                warn!("no room to move the collection floor on");
                false
            }
            Err(EngineError::Broken(cause)) => {
                self.poison(&*cause);
                false
            }
        }
    }
}

/// Deletions removed at once.
const PURGE_MAX: usize = 512;
/// How long values compete before one is written over them: those of a few writes in a row, or of two sides of a cut,
/// come together.
const SETTLE_AFTER_MS: u64 = 2_000;
/// Objects settled at once.
const SETTLE_MAX: usize = 64;
