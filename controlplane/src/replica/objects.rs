//! What an exchange needs of a node's objects.

use super::floor::{Stale, Stamps};
use super::hashtree::{FINGERPRINT_BYTES, HashTree, Sum};
use super::hlc::Hlc;
use std::ops::ControlFlow;

/// Where an object is kept: see [`place`](crate::store::record::place).
pub type Place = [u8; 32];

/// Takes a place, its part of the tree and its record, and says whether to go on.
pub type Found<'a> = &'a mut dyn FnMut(&Place, Sum, &[u8]) -> ControlFlow<()>;

/// The objects of one node, as others may see them: what would survive a crash, and nothing else. A dot that were shown
/// before it is stored could be given out twice.
///
/// Records that are damaged and deletions below the floor do not exist here, and the tree does not count them.
pub trait Objects {
    fn tree(&self) -> &HashTree;

    /// Of the key the tree's sums are made with.
    fn fingerprint(&self) -> [u8; FINGERPRINT_BYTES];

    /// Another number once something that was held may be gone.
    fn life(&self) -> u64;

    /// Every later stamp of this node is greater.
    fn promise(&self) -> Hlc;

    fn floors(&self) -> Stamps;

    /// Takes over another node's floors where they are higher. On error this node has begun anew: see
    /// [`floor`](super::floor).
    fn adopt(&mut self, floors: &Stamps) -> Result<(), Stale>;

    /// Up to these stamps this node holds every write: see [`floor`](super::floor).
    fn marks(&self) -> Stamps;

    /// Before these, nothing that this node holds was deleted elsewhere: see [`floor`](super::floor).
    fn bounds(&self) -> Stamps;

    /// An exchange begins with another node, which has these bounds.
    fn begins(&mut self, bounds: &Stamps);

    /// All that the other node held in a shard when it gave its promise, and had this mark, is held here.
    fn synced(&mut self, shard: usize, promise: Hlc, mark: Hlc);

    /// Calls `found` with every place, its part of the tree and its record, from `from` on, in the order of places, until
    /// it breaks.
    fn walk(&mut self, from: &Place, found: Found<'_>) -> Result<(), Unreadable>;

    fn record(&mut self, place: &Place) -> Result<Option<Vec<u8>>, Unreadable>;

    /// Takes over what another node knows, all that can be taken in one commit. Returns when it would survive a power
    /// cut.
    fn merge(&mut self, records: &[Vec<u8>]) -> MergeTally;
}

/// What became of records of another node; the others were known.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MergeTally {
    pub changed: u32,
    /// Damaged, from the future, too large, or there was no room.
    pub refused: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the objects cannot be read: {0}")]
pub struct Unreadable(pub String);
