//! What the broadcast keeps of one peer. Pure.

use super::message::Id;
use super::{BATCH_DELAY, BATCH_MAX, OUTSTANDING_MAX, RTT_MAX};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Peer {
    /// Payloads are pushed to it, not only announced.
    pub eager: bool,
    pub rtt: Duration,
    /// What it may lack: the round, and when it was pushed or announced last.
    outstanding: BTreeMap<Id, (u8, Instant)>,
    /// To be sent with the next batch.
    announcements: Vec<(Id, u8)>,
    acks: Vec<Id>,
    flush_at: Option<Instant>,
    /// An exchange with it must run.
    pub owed: bool,
}

impl Peer {
    pub fn new(eager: bool) -> Self {
        Self {
            eager,
            rtt: Duration::ZERO,
            outstanding: BTreeMap::new(),
            announcements: Vec::new(),
            acks: Vec::new(),
            flush_at: None,
            owed: false,
        }
    }

    pub fn set_rtt(&mut self, rtt: Duration) {
        self.rtt = rtt.min(RTT_MAX);
    }

    /// It is being pushed or announced an id. False: too much is outstanding to remember it.
    pub fn remember(&mut self, now: Instant, id: Id, round: u8) -> bool {
        if self.outstanding.len() >= OUTSTANDING_MAX && !self.outstanding.contains_key(&id) {
            return false;
        }
        self.outstanding.insert(id, (round, now));
        true
    }

    /// The id goes out with the next batch. True: the batch is full.
    pub fn announce(&mut self, now: Instant, id: Id, round: u8) -> bool {
        self.announcements.push((id, round));
        self.flush_at.get_or_insert(now + BATCH_DELAY);
        self.announcements.len() >= BATCH_MAX
    }

    /// As [`Peer::announce`], to say that we have it.
    pub fn ack(&mut self, now: Instant, id: Id) -> bool {
        self.acks.push(id);
        self.flush_at.get_or_insert(now + BATCH_DELAY);
        self.acks.len() >= BATCH_MAX
    }

    /// It has it.
    pub fn has(&mut self, id: &Id) {
        self.outstanding.remove(id);
    }

    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Announces again what was pushed or announced before `before`, if `held` says that it can still be had. Returns how
    /// many were given up because it cannot.
    pub fn announce_again(&mut self, now: Instant, before: Instant, held: impl Fn(&Id) -> bool) -> usize {
        let count = self.outstanding.len();
        self.outstanding.retain(|id, _| held(id));
        let gone = count - self.outstanding.len();
        for (id, (round, at)) in &mut self.outstanding {
            if *at <= before {
                *at = now;
                self.announcements.push((*id, *round));
                self.flush_at.get_or_insert(now);
            }
        }
        gone
    }

    pub fn flush_at(&self) -> Option<Instant> {
        self.flush_at
    }

    /// What the batches hold.
    pub fn flush(&mut self) -> (Vec<(Id, u8)>, Vec<Id>) {
        self.flush_at = None;
        (std::mem::take(&mut self.announcements), std::mem::take(&mut self.acks))
    }
}
