//! What the store thread needs of a key-value engine, and how an engine fails.

use super::record::PLACE_BYTES;

pub type Place = [u8; PLACE_BYTES];

/// Keeps records by place. Used by one thread.
pub trait Engine: Send {
    fn get(&self, place: &Place) -> Result<Option<Vec<u8>>, EngineError>;

    /// Calls `found` with every (key, record), in the order of the keys.
    fn scan(&self, found: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), EngineError>;

    /// Calls `found` with every (key, record) of the buckets `first` to `last`, in the order of the keys.
    fn scan_buckets(
        &self,
        first: u16,
        last: u16,
        found: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), EngineError>;

    /// Calls `found` with every row of the hash tree.
    fn sums(&self, found: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), EngineError>;

    fn meta(&self) -> Result<Option<Vec<u8>>, EngineError>;

    /// Writes all or nothing, and returns only when it would survive a power cut. Grows the room for them if it can.
    fn commit(&mut self, writes: &[Write]) -> Result<(), EngineError>;

    fn usage(&self) -> Usage;

    /// Leaves a sign for the next start that a commit failed. As good as it can: the disk may be broken.
    fn mark_broken(&mut self);
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    Object {
        place: Place,
        record: Vec<u8>,
    },
    /// A row of the hash tree: see `sums`.
    Sum {
        row: Vec<u8>,
        bytes: Vec<u8>,
    },
    Meta(Vec<u8>),
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
