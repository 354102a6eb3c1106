//! The hash tree as the store keeps it, and the proof that it agrees with the records.
//!
//! Rows: `bucket u16 big-endian` to its digest, and `"key"` to the fingerprint of the key the sums were made with. A
//! bucket without a row is empty. Rows are written in the transactions of the records they sum up.

use super::engine::{Engine, EngineError, Place, Write};
use super::graves::Graves;
use super::record::{Object, place};
use crate::replica::floor::Stamps;
use crate::replica::hashtree::{Digest, FINGERPRINT_BYTES, HashTree, TreeKey, bucket_of, shard_of};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// What the rows say.
#[derive(Debug)]
pub enum Stored {
    /// None, or those of another key: to be written anew, and no sign of damage.
    Unknown,
    Tree(Box<HashTree>),
}

/// Reads the rows. One that cannot be read counts as empty and so shows up as a difference.
pub fn load(engine: &dyn Engine, key: &TreeKey) -> Result<Stored, EngineError> {
    let mut tree = HashTree::default();
    let mut known = false;
    engine.sums(&mut |row, bytes| {
        if row == KEY_ROW {
            known = bytes == key.fingerprint();
        } else if let (Ok(bucket), Some(digest)) = (row.try_into(), Digest::decode(bytes)) {
            tree.set(u16::from_be_bytes(bucket), digest);
        }
    })?;
    Ok(if known { Stored::Tree(Box::new(tree)) } else { Stored::Unknown })
}

/// Writes the rows in which `tree` differs from what is stored, and the key's. Returns how many differ though they should
/// not.
pub fn settle(engine: &mut dyn Engine, key: &TreeKey, tree: &HashTree) -> Result<usize, EngineError> {
    let (stored, known) = match load(engine, key)? {
        Stored::Unknown => (HashTree::default(), false),
        Stored::Tree(stored) => (*stored, true),
    };
    let mut buckets: Vec<_> = tree.differences(&stored).collect();
    let differences = if known { buckets.len() } else { 0 };
    if !known {
        // Rows of another key may be anywhere.
        engine.sums(&mut |row, _| buckets.extend(row.try_into().map(u16::from_be_bytes)))?;
    }
    if buckets.is_empty() && known {
        return Ok(0);
    }
    let mut writes = vec![key_row(key)];
    writes.extend(buckets.into_iter().map(|bucket| row(bucket, tree.bucket(bucket))));
    engine.commit(&writes)?;
    Ok(differences)
}

/// Says what key the sums are made with.
pub fn key_row(key: &TreeKey) -> Write {
    Write::Sum { row: KEY_ROW.to_vec(), bytes: key.fingerprint().to_vec() }
}

pub fn row(bucket: u16, digest: Digest) -> Write {
    Write::Sum { row: bucket.to_be_bytes().to_vec(), bytes: digest.encode().to_vec() }
}

/// Adds up the records of the buckets `first` to `last` for which `counts` is true; a bucket that is not in the answer is
/// empty. Damaged ones do not count: their sums then differ from those of the other nodes, which is how they come back.
pub fn recompute(
    engine: &dyn Engine,
    key: &TreeKey,
    (first, last): (u16, u16),
    mut counts: impl FnMut(&Place, &Object) -> bool,
) -> Result<BTreeMap<u16, Digest>, EngineError> {
    let mut digests = BTreeMap::<u16, Digest>::new();
    engine.walk(&first.to_be_bytes(), &mut |at, record| {
        if at.get(..2).is_none_or(|bucket| *bucket > last.to_be_bytes()[..]) {
            return ControlFlow::Break(());
        }
        if let Some((at, _)) = sound(at, record).filter(|(at, object)| counts(at, object)) {
            digests.entry(bucket_of(&at)).or_default().add(key.hash(&at, record));
        }
        ControlFlow::Continue(())
    })?;
    Ok(digests)
}

/// A record that is undamaged and where it belongs.
pub fn sound(at: &[u8], record: &[u8]) -> Option<(Place, Object)> {
    let object = Object::decode(record).ok()?;
    let place = place(object.kind, &object.key);
    (place == at).then_some((place, object))
}

/// Whether the tree counts an object: not if it is a deletion below the floor of its shard.
pub fn counts(floors: &Stamps, place: &Place, object: &Object) -> bool {
    Graves::stamp(object).is_none_or(|stamp| stamp >= floors[shard_of(bucket_of(place))])
}

const KEY_ROW: &[u8] = b"key";

const _: () = assert!(KEY_ROW.len() != 2 && FINGERPRINT_BYTES > 0);
