//! Exchanges on the store: each step runs on the store's thread, between two groups, and reads and writes what is
//! committed.

use super::engine::{EngineError, Place};
use super::record::Object;
use super::worker::{Change, Overlay, Worker};
use super::{StoreError, sums};
use crate::replica::exchange::{self, Exchange, ExchangeError, Next};
use crate::replica::hashtree::HashTree;
use crate::replica::message::Message;
use crate::replica::objects::{Found, MergeTally, Objects, Unreadable};
use common::ids::NodeId;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What a message of another node led to.
#[derive(Debug)]
pub struct Answered {
    /// To be sent back.
    pub reply: Option<Message>,
    /// Objects it has changed, as they are now.
    pub changed: Vec<Object>,
}

/// What an answer of another node led to.
#[derive(Debug)]
pub struct Stepped {
    pub next: Result<Option<Next>, ExchangeError>,
    /// Objects it has changed, as they are now.
    pub changed: Vec<Object>,
}

impl Worker {
    /// Begins an exchange with `peer`: see [`Exchange::start`].
    pub fn exchange_start(
        &mut self,
        _peer: NodeId,
        round: u64,
        now: Instant,
        timeout: Duration,
    ) -> (Exchange, Message) {
        Exchange::start(round, self, now, timeout)
    }

    /// Takes an answer in an exchange that this node began: see [`Exchange::handle`].
    pub fn exchange_step(&mut self, exchange: &mut Exchange, message: Message, now: Instant) -> Stepped {
        let next = exchange.handle(self, message, now);
        Stepped { next, changed: std::mem::take(&mut self.changed) }
    }

    /// Answers a message in an exchange that `peer` began: see [`exchange::answer`].
    pub fn exchange_answer(&mut self, _peer: NodeId, message: Message) -> Result<Answered, StoreError> {
        let reply = exchange::answer(self, message);
        let changed = std::mem::take(&mut self.changed);
        let reply = reply.map_err(|error| StoreError::Read(error.0))?;
        Ok(Answered { reply, changed })
    }
}

impl Objects for Worker {
    fn tree(&self) -> &HashTree {
        &self.tree
    }

    fn walk(&mut self, from: &Place, found: Found<'_>) -> Result<(), Unreadable> {
        let key = &self.key;
        let walked = self.engine.walk(from, &mut |at, record| match sums::sound(at, record) {
            Some(place) => found(&place, key.hash(&place, record), record),
            None => ControlFlow::Continue(()),
        });
        walked.map_err(unreadable)
    }

    fn record(&mut self, place: &Place) -> Result<Option<Vec<u8>>, Unreadable> {
        let record = self.engine.get(place).map_err(unreadable)?;
        Ok(record.filter(|record| sums::sound(place, record).is_some()))
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
                Ok(theirs) => self.apply(&Change::Merge(theirs), &mut overlay).ok(),
                Err(_) => None,
            };
            match merged {
                Some(object) => changed.extend(object),
                None => tally.refused += 1,
            }
        }
        self.stats.refused.fetch_add(tally.refused.into(), Relaxed);
        match self.commit(&overlay) {
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
