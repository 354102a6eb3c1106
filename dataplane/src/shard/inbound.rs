//! From what a frame carries to WAMP messages.

use super::Shard;
use super::conn::Phase;
use common::transport::{Framing, batch};

impl Shard {
    /// Handles what one frame carried: a message, or a batch of them as long as the connection is read.
    #[inline]
    pub(super) fn carried(&mut self, slot: u32, framing: Framing, bytes: &[u8]) {
        if framing.is_batched() {
            self.batch(slot, framing, bytes);
        } else {
            self.message(slot, bytes);
        }
    }

    fn batch(&mut self, slot: u32, framing: Framing, bytes: &[u8]) {
        let conn = self.at(slot);
        let (generation, serializer) = (conn.generation, conn.serializer);
        if conn.phase == Phase::Login {
            conn.framing = batch::dialect(serializer, bytes);
        }
        for message in batch::split(framing, serializer, bytes) {
            match message {
                Ok(message) => self.message(slot, message),
                Err(error) => return self.bad_frame(slot, &error),
            }
            if !self.is_read(slot, generation) {
                return;
            }
        }
    }

    /// The connection is there and what it sends is still looked at.
    pub(super) fn is_read(&self, slot: u32, generation: u32) -> bool {
        self.conns.get(slot as usize).and_then(Option::as_ref).is_some_and(|conn| {
            conn.generation == generation && !matches!(conn.phase, Phase::Flushing | Phase::Lingering)
        })
    }
}
