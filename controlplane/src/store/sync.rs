//! Exchanges on the store: each step runs on the store's thread, between two groups, and reads and writes what is
//! committed.

use super::engine::{EngineError, Place};
use super::record::{Hlc, Object, place};
use super::stage::Overlay;
use super::worker::{Change, Worker};
use super::{StoreError, sums};
use crate::replica::exchange::{self, Exchange, ExchangeError, Next, SCAN_MAX};
use crate::replica::floor::{Stale, Stamps};
use crate::replica::hashtree::{FINGERPRINT_BYTES, HashTree, bucket_of, shard_of};
use crate::replica::message::Message;
use crate::replica::objects::{Found, MergeTally, Objects, Unreadable};
use common::ids::NodeId;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tracing::error;

/// What a message of another node led to.
#[derive(Debug)]
pub struct Answered {
    /// To be sent back.
    pub reply: Option<Message>,
    pub changes: Changes,
}

/// What an answer of another node led to.
#[derive(Debug)]
pub struct Stepped {
    pub next: Result<Option<Next>, ExchangeError>,
    pub changes: Changes,
}

/// What became of the objects.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Changes {
    /// All that there were are gone: this node was stale and begins anew. They come back by exchange; until it has ended
    /// without a difference the node is as good as new.
    pub reset: bool,
    /// Objects that changed after that, as they are now.
    pub changed: Vec<Object>,
}

impl Worker {
    /// Begins an exchange with `peer`: see [`Exchange::start`].
    pub fn exchange_start(
        &mut self,
        peer: NodeId,
        round: u64,
        now: Instant,
        timeout: Duration,
    ) -> (Exchange, Message) {
        self.floor.met(peer, self.moment());
        Exchange::start(round, self, now, timeout)
    }

    /// Takes an answer of `peer` in an exchange that this node began: see [`Exchange::handle`].
    pub fn exchange_step(
        &mut self,
        peer: NodeId,
        exchange: &mut Exchange,
        message: Message,
        now: Instant,
    ) -> Stepped {
        self.peer = Some(peer);
        let next = exchange.handle(self, message, now);
        self.peer = None;
        Stepped { next, changes: self.take_changes() }
    }

    /// Answers a message in an exchange that `peer` began: see [`exchange::answer`].
    pub fn exchange_answer(&mut self, peer: NodeId, message: Message) -> Answered {
        self.floor.met(peer, self.moment());
        self.peer = Some(peer);
        let reply = exchange::answer(self, message).unwrap_or_else(|error| {
            error!(%error, "an exchange is not answered");
            None
        });
        self.peer = None;
        Answered { reply, changes: self.take_changes() }
    }

    /// The objects from a place on, as many as are read at once, and the place of the next.
    pub fn page(&mut self, from: &Place) -> Result<(Vec<Object>, Option<Place>), StoreError> {
        let (mut objects, mut next) = (Vec::new(), None);
        let walked = self.walk(from, &mut |place, _, record| {
            if objects.len() >= SCAN_MAX {
                next = Some(*place);
                return ControlFlow::Break(());
            }
            objects.extend(Object::decode(record).ok());
            ControlFlow::Continue(())
        });
        walked.map_err(|error| StoreError::Read(error.0))?;
        Ok((objects, next))
    }

    pub(super) fn take_changes(&mut self) -> Changes {
        Changes { reset: std::mem::take(&mut self.reset), changed: std::mem::take(&mut self.changed) }
    }
}

impl Objects for Worker {
    fn tree(&self) -> &HashTree {
        &self.tree
    }

    fn fingerprint(&self) -> [u8; FINGERPRINT_BYTES] {
        self.key.fingerprint()
    }

    fn life(&self) -> u64 {
        self.identity.actor.epoch
    }

    fn promise(&self) -> Hlc {
        self.floor.promise()
    }

    fn floors(&self) -> Stamps {
        *self.floor.floors()
    }

    fn adopt(&mut self, floors: &Stamps) -> Result<(), Stale> {
        self.adopt_floors(floors)
    }

    fn marks(&self) -> Stamps {
        *self.floor.marks()
    }

    fn bounds(&self) -> Stamps {
        self.floor.bounds(self.moment())
    }

    fn begins(&mut self, bounds: &Stamps) {
        let now = self.moment();
        self.peer.into_iter().for_each(|peer| self.floor.begins(peer, bounds, now));
    }

    fn synced(&mut self, shard: usize, promise: Hlc, mark: Hlc) {
        self.peer.into_iter().for_each(|peer| self.floor.synced(peer, shard, promise, mark));
    }

    fn walk(&mut self, from: &Place, found: Found<'_>) -> Result<(), Unreadable> {
        let walked = self.engine.walk(from, &mut |at, record| match sums::sound(at, record) {
            Some((place, object)) if self.counts(&place, &object) => {
                found(&place, self.key.hash(&place, record), record)
            }
            _ => ControlFlow::Continue(()),
        });
        walked.map_err(unreadable)
    }

    fn record(&mut self, place: &Place) -> Result<Option<Vec<u8>>, Unreadable> {
        let record = self.engine.get(place).map_err(unreadable)?;
        let is_there = |record: &Vec<u8>| {
            sums::sound(place, record).is_some_and(|(place, object)| self.counts(&place, &object))
        };
        Ok(record.filter(is_there))
    }

    fn merge(&mut self, records: &[Vec<u8>]) -> MergeTally {
        let all_refused = MergeTally { changed: 0, refused: records.len() as u32 };
        if self.poisoned {
            return all_refused;
        }
        let (mut tally, mut changed) = (MergeTally::default(), Vec::new());
        let (mut overlay, clock) = (Overlay::new(), self.clock);
        for record in records {
            let merged = match Object::decode(record) {
                Ok(theirs) => {
                    let shard = shard_of(bucket_of(&place(theirs.kind, &theirs.key)));
                    self.peer.into_iter().for_each(|peer| self.floor.takes(peer, shard));
                    self.apply(&Change::Merge(theirs), &mut overlay).ok()
                }
                Err(_) => None,
            };
            match merged {
                Some(object) => changed.extend(object),
                None => tally.refused += 1,
            }
        }
        self.stats.refused.fetch_add(tally.refused.into(), Relaxed);
        match self.commit(overlay) {
            Ok(()) => {
                self.stats.operations.fetch_add(changed.len() as u64, Relaxed);
                tally.changed = changed.len() as u32;
                self.changed.append(&mut changed);
                tally
            }
            Err(EngineError::Full { .. }) => {
                self.clock = clock;
                all_refused
            }
            Err(EngineError::Broken(cause)) => {
                self.poison(&*cause);
                all_refused
            }
        }
    }
}

fn unreadable(error: EngineError) -> Unreadable {
    Unreadable(error.to_string())
}
