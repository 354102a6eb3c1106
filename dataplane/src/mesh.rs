//! Batches of messages between the shards of a node.

/// What one shard sends another in one turn. Reused: an emptied batch keeps its memory.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) arena: Vec<u8>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.arena.is_empty()
    }
}
