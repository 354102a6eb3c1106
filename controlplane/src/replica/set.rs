//! All objects of one node, with their hash tree and clock, in memory. Pure.
//!
//! Invariants: every record is sound and at its place; the tree is that of the records; nothing with a stamp from the
//! future is ever taken.

use super::dvvset::Actor;
use super::hashtree::{HashTree, Sum, TreeKey, bucket_of};
use super::hlc::{Clock, FutureStamp, Hlc};
use crate::store::record::{Kind, Merged, Object, ObjectError, RecordError, Value, place};
use std::collections::BTreeMap;

pub type Place = [u8; 32];

#[derive(Clone)]
pub struct Replica {
    actor: Actor,
    clock: Clock,
    key: TreeKey,
    tree: HashTree,
    records: BTreeMap<Place, Vec<u8>>,
}

/// Why another node's record was not taken. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Future(#[from] FutureStamp),
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl Replica {
    /// An empty one, written to by `actor`.
    pub fn new(actor: Actor, key: TreeKey) -> Self {
        Self { actor, clock: Clock::default(), key, tree: HashTree::default(), records: BTreeMap::new() }
    }

    /// From now on `actor` writes: the store began a new epoch.
    pub fn begin_epoch(&mut self, actor: Actor) {
        self.actor = actor;
    }

    pub fn actor(&self) -> Actor {
        self.actor
    }

    /// Overwrites all that is known of an object here; no bytes delete it. Returns it as it is now. On error nothing
    /// was changed.
    pub fn put(
        &mut self,
        kind: Kind,
        key: &str,
        bytes: Option<Vec<u8>>,
        wall_ms: u64,
    ) -> Result<Object, ObjectError> {
        let mut object = self.object(kind, key);
        let mut clock = self.clock;
        object.put(self.actor, Value { hlc: clock.tick(wall_ms), bytes })?;
        self.clock = clock;
        self.set(&object);
        Ok(object)
    }

    /// Takes over what another node knows. On error nothing was changed.
    pub fn merge(&mut self, record: &[u8], wall_ms: u64) -> Result<Merged, Refused> {
        let theirs = Object::decode(record)?;
        theirs.last().check(wall_ms)?;
        let mut object = self.object(theirs.kind, &theirs.key);
        let merged = object.merge(&theirs)?;
        self.clock.observe(theirs.last(), wall_ms)?;
        if merged != Merged::Known {
            self.set(&object);
        }
        Ok(merged)
    }

    pub fn record(&self, place: &Place) -> Option<&[u8]> {
        self.records.get(place).map(Vec::as_slice)
    }

    /// In the order of their places.
    pub fn records(&self) -> impl Iterator<Item = (&Place, &[u8])> {
        self.records.iter().map(|(place, record)| (place, record.as_slice()))
    }

    /// The records of one bucket.
    pub fn bucket(&self, bucket: u16) -> impl Iterator<Item = (&Place, &[u8])> {
        let (mut first, mut last) = ([0; 32], [0xff; 32]);
        first[..2].copy_from_slice(&bucket.to_be_bytes());
        last[..2].copy_from_slice(&bucket.to_be_bytes());
        self.records.range(first..=last).map(|(place, record)| (place, record.as_slice()))
    }

    pub fn tree(&self) -> &HashTree {
        &self.tree
    }

    /// The greatest stamp given or seen.
    pub fn last(&self) -> Hlc {
        self.clock.last()
    }

    pub fn hash(&self, place: &Place, record: &[u8]) -> Sum {
        self.key.hash(place, record)
    }

    fn object(&self, kind: Kind, key: &str) -> Object {
        let record = self.records.get(&place(kind, key));
        record.map_or_else(
            || Object::new(kind, key),
            |record| Object::decode(record).expect("only sound records are kept"),
        )
    }

    fn set(&mut self, object: &Object) {
        let (place, record) = (place(object.kind, &object.key), object.encode());
        let bucket = bucket_of(&place);
        self.tree.add(bucket, self.key.hash(&place, &record));
        if let Some(was) = self.records.insert(place, record) {
            self.tree.remove(bucket, self.key.hash(&place, &was));
        }
    }
}
