//! What an exchange needs of a node's objects.

use super::hashtree::{HashTree, Sum};
use std::ops::ControlFlow;

/// Where an object is kept: see [`place`](crate::store::record::place).
pub type Place = [u8; 32];

/// Takes a place, its part of the tree and its record, and says whether to go on.
pub type Found<'a> = &'a mut dyn FnMut(&Place, Sum, &[u8]) -> ControlFlow<()>;

/// The objects of one node, as others may see them: what would survive a crash, and nothing else. A dot that were shown
/// before it is stored could be given out twice.
///
/// Records that are damaged do not exist here, and the tree does not count them.
pub trait Objects {
    fn tree(&self) -> &HashTree;

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
