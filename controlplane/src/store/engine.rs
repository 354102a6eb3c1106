//! What the store thread needs of a key-value engine, and how an engine fails.

use super::record::PLACE_BYTES;
use std::ops::ControlFlow;

pub type Place = [u8; PLACE_BYTES];

/// Takes a key and a record of a walk, and says whether to go on.
pub type Found<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Keeps records by place. Used by one thread.
pub trait Engine: Send {
    fn get(&self, place: &Place) -> Result<Option<Vec<u8>>, EngineError>;

    /// Calls `found` with every (key, record) from the key `from` on, in the order of the keys, until it breaks. What it
    /// sees is of one commit.
    fn walk(&self, from: &[u8], found: Found<'_>) -> Result<(), EngineError>;

    /// Calls `found` with every row of the hash tree.
    fn sums(&self, found: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), EngineError>;

    fn meta(&self, row: Row) -> Result<Option<Vec<u8>>, EngineError>;

    /// Writes all or nothing, in the order given, and returns only when it would survive a power cut. Grows the room for
    /// them if it can.
    fn commit(&mut self, writes: &[Write]) -> Result<(), EngineError>;

    fn usage(&self) -> Usage;

    /// Leaves a sign for the next start that a commit failed. As good as it can: the disk may be broken.
    fn mark_broken(&mut self);

    /// The sign of a failed commit was heeded.
    fn forget_broken(&mut self);

    /// Keeps bytes beside the store, as a file of this name, for an operator to look at. Returns when they would survive
    /// a power cut.
    fn set_aside(&mut self, name: &str, bytes: &[u8]) -> Result<(), EngineError>;
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    Object {
        place: Place,
        record: Vec<u8>,
    },
    /// The record at a place goes, if there is one.
    Gone {
        place: Place,
    },
    /// A row of the hash tree: see `sums`.
    Sum {
        row: Vec<u8>,
        bytes: Vec<u8>,
    },
    Meta {
        row: Row,
        bytes: Vec<u8>,
    },
    /// All records and all rows of the hash tree go.
    Clear,
}

/// What is kept beside the objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Row {
    /// See `identity`.
    Identity,
    /// See `replica::floor`.
    Floor,
}

/// What is known of the store's files beside their content.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Files {
    /// The data file's number: a copy has another.
    pub inode: u64,
    /// A commit failed when it was open last.
    pub was_broken: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Bytes reserved, and bytes in use of them.
    pub map_bytes: u64,
    pub used_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing was written; later writes may succeed.
    #[error("the store has reached its largest size, {map_bytes} bytes")]
    Full { map_bytes: u64 },
    /// After a commit: it is not known what was written.
    #[error("{0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Row {
    /// Its key on disk.
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::Identity => b"node",
            Self::Floor => b"floor",
        }
    }
}
