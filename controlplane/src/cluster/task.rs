//! Work that the machine has for the store, and what came of it.

use crate::replica::exchange::Exchange;
use crate::replica::message::Message;
use crate::store::record::{Kind, Object, RecordError};
use crate::store::worker::Worker;
use crate::store::{Answered, Changes, Stepped, StoreError, Upkeep};
use common::ids::NodeId;
use std::time::{Duration, Instant};

/// Tells pieces of work apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

#[derive(Debug)]
pub enum StoreTask {
    /// No bytes delete.
    Put { kind: Kind, key: String, bytes: Option<Vec<u8>> },
    /// Another node's object.
    Merge(Object),
    /// Begin an exchange with `peer` that may take so long in all.
    Start { peer: NodeId, round: u64, timeout: Duration },
    /// Take an answer in an exchange of ours.
    Step { peer: NodeId, exchange: Box<Exchange>, message: Message },
    /// Answer a question of another's.
    Answer { peer: NodeId, message: Message },
    /// What a node that has just connected is to be told of the floor of deletions.
    Announce,
    /// Take another node's announcement.
    Hear { peer: NodeId, announcement: Vec<u8> },
    /// Regular work.
    Upkeep,
    /// These nodes belong to the cluster.
    Members(Vec<NodeId>),
}

#[derive(Debug)]
pub enum StoreDone {
    /// The record as it is now.
    Put(Result<Vec<u8>, StoreError>),
    /// The object as it is now, if it was changed.
    Merge(Result<Option<Object>, StoreError>),
    Start(Result<(Box<Exchange>, Message), StoreError>),
    Step(Result<(Box<Exchange>, Stepped), StoreError>),
    Answer(Result<Answered, StoreError>),
    Announce(Result<Vec<u8>, StoreError>),
    Hear(Result<Result<Changes, RecordError>, StoreError>),
    Upkeep(Result<Upkeep, StoreError>),
    Members(Result<(), StoreError>),
}

impl StoreTask {
    /// Does the work on a worker that is at hand, as a simulation has it.
    pub fn perform(self, worker: &mut Worker, now: Instant) -> StoreDone {
        match self {
            Self::Put { kind, key, bytes } => {
                StoreDone::Put(worker.put(kind, &key, bytes).map(|object| object.encode()))
            }
            Self::Merge(object) => StoreDone::Merge(worker.merge_one(object)),
            Self::Start { peer, round, timeout } => {
                let (exchange, message) = worker.exchange_start(peer, round, now, timeout);
                StoreDone::Start(Ok((Box::new(exchange), message)))
            }
            Self::Step { peer, mut exchange, message } => {
                let stepped = worker.exchange_step(peer, &mut exchange, message, now);
                StoreDone::Step(Ok((exchange, stepped)))
            }
            Self::Answer { peer, message } => StoreDone::Answer(Ok(worker.exchange_answer(peer, message))),
            Self::Announce => StoreDone::Announce(Ok(worker.announcement())),
            Self::Hear { peer, announcement } => StoreDone::Hear(Ok(worker.heard(peer, &announcement))),
            Self::Upkeep => StoreDone::Upkeep(Ok(worker.upkeep())),
            Self::Members(nodes) => {
                worker.members(&nodes);
                StoreDone::Members(Ok(()))
            }
        }
    }
}
