//! What the workloads want to send, and which connections they want renewed. Holds bytes, moves none.

use common::transport::{FrameKind, Framing, write_client_frame};
use common::wire::Serializer;

/// Bytes queued to one connection above which a workload stops writing to it.
pub const QUEUE_BYTES_MAX: usize = 256 * 1_024;

/// All outbound queues of one thread.
#[derive(Debug, Default)]
pub struct Outbox {
    queues: Vec<Queue>,
    /// Connections with bytes to send that the socket may take.
    dirty: Vec<u32>,
    /// Connections to be closed politely and opened again.
    pub renewals: Vec<u32>,
    mask: fastrand::Rng,
}

#[derive(Debug)]
pub struct Queue {
    framing: Framing,
    serializer: Serializer,
    pub bytes: Vec<u8>,
    /// How many of `bytes` the socket took.
    pub sent: usize,
    dirty: bool,
    /// The socket takes no more for now.
    pub blocked: bool,
}

impl Outbox {
    pub fn new(connections: impl IntoIterator<Item = (Framing, Serializer)>) -> Self {
        let queue = |(framing, serializer)| Queue {
            framing,
            serializer,
            bytes: Vec::new(),
            sent: 0,
            dirty: false,
            blocked: false,
        };
        Self { queues: connections.into_iter().map(queue).collect(), ..Self::default() }
    }

    /// Queues one message.
    #[inline]
    pub fn message(&mut self, connection: usize, message: &[u8]) {
        let mask = self.mask.u32(..).to_le_bytes();
        let queue = &mut self.queues[connection];
        write_client_frame(
            queue.framing,
            queue.serializer,
            FrameKind::Message,
            message,
            mask,
            &mut queue.bytes,
        );
        self.mark(connection);
    }

    /// True while a workload may queue more.
    #[inline]
    pub fn has_room(&self, connection: usize) -> bool {
        self.queues[connection].bytes.len() < QUEUE_BYTES_MAX
    }

    pub fn queue(&mut self, connection: usize) -> &mut Queue {
        &mut self.queues[connection]
    }

    /// Says that `connection` may have bytes to send.
    #[inline]
    pub fn mark(&mut self, connection: usize) {
        let queue = &mut self.queues[connection];
        if !queue.dirty && !queue.blocked && !queue.bytes.is_empty() {
            queue.dirty = true;
            self.dirty.push(connection as u32);
        }
    }

    /// The next connection to flush.
    #[inline]
    pub fn take_dirty(&mut self) -> Option<usize> {
        let connection = self.dirty.pop()? as usize;
        self.queues[connection].dirty = false;
        Some(connection)
    }

    /// Forgets what was queued to a connection that ended.
    pub fn reset(&mut self, connection: usize) {
        let queue = &mut self.queues[connection];
        queue.bytes.clear();
        queue.sent = 0;
        queue.blocked = false;
    }
}

impl Queue {
    /// The socket took `count` more bytes.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        } else if self.sent >= QUEUE_BYTES_MAX / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    #[inline]
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_dirty_once_until_it_is_taken() {
        let mut outbox = Outbox::new([(Framing::RawSocket, Serializer::Json); 2]);
        outbox.message(1, b"[1]");
        outbox.message(1, b"[2]");
        assert_eq!(outbox.take_dirty(), Some(1));
        assert_eq!(outbox.take_dirty(), None);
        assert_eq!(outbox.queue(1).unsent(), b"\0\0\0\x03[1]\0\0\0\x03[2]");
        outbox.queue(1).advance(7);
        assert_eq!(outbox.queue(1).unsent(), b"\0\0\0\x03[2]");
        outbox.queue(1).blocked = true;
        outbox.mark(1);
        assert_eq!(outbox.take_dirty(), None, "blocked until the socket says otherwise");
        outbox.reset(1);
        assert!(outbox.queue(1).unsent().is_empty());
    }

    #[test]
    fn a_full_queue_has_no_room_until_it_drains() {
        let mut outbox = Outbox::new([(Framing::RawSocket, Serializer::MsgPack)]);
        outbox.message(0, &vec![0; QUEUE_BYTES_MAX]);
        assert!(!outbox.has_room(0));
        let half = QUEUE_BYTES_MAX / 2;
        outbox.queue(0).advance(half);
        assert!(outbox.has_room(0));
        assert_eq!(outbox.queue(0).unsent().len(), half + 4);
    }
}
