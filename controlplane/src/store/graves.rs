//! Where the deletions are, by shard and stamp: so that those below a floor are found without a look at all objects. Pure.

use super::engine::Place;
use super::record::{Hlc, Object};
use crate::replica::hashtree::{SHARDS, bucket_of, shard_of};
use std::collections::BTreeSet;

#[derive(Debug)]
pub struct Graves(Vec<BTreeSet<(Hlc, Place)>>);

impl Graves {
    /// The stamp of an object that is nothing but its deletion.
    pub fn stamp(object: &Object) -> Option<Hlc> {
        (object.is_tombstone() && object.values().next().is_some()).then(|| object.last())
    }

    pub fn add(&mut self, place: Place, stamp: Hlc) {
        self.0[shard_of(bucket_of(&place))].insert((stamp, place));
    }

    pub fn remove(&mut self, place: Place, stamp: Hlc) {
        self.0[shard_of(bucket_of(&place))].remove(&(stamp, place));
    }

    /// Deletions of a shard with stamps from `from` on and below `floor`.
    pub fn between(&self, shard: usize, from: Hlc, floor: Hlc) -> impl Iterator<Item = (Hlc, Place)> {
        let (first, end) = ((from, [0; 32]), (floor.max(from), [0; 32]));
        self.0[shard].range(first..end).copied()
    }

    /// Of one shard.
    pub fn len(&self, shard: usize) -> usize {
        self.0[shard].len()
    }

    /// Of all shards.
    pub fn total(&self) -> usize {
        self.0.iter().map(BTreeSet::len).sum()
    }
}

impl Default for Graves {
    fn default() -> Self {
        Self(vec![BTreeSet::new(); SHARDS])
    }
}

/// Deletions of one shard beyond which no new object is made in it. Deletions are never refused.
pub const GRAVES_SHARD_MAX: usize = 65_536;
