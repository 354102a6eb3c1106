//! How much a shard unfolds in one turn, whoever sends it: a few KiB may unfold to as much as a message may have, again and
//! again. What comes when the turn's share is spent waits for later turns, and its connection is read no further until then.
//!
//! A message is unfolded in one go, so a turn may take one message more than its share.

use super::conn::Conn;
use super::{ConnId, Flow, Output, Shard};
use common::ids::ShardSet;
use common::metrics::Counter;
use std::collections::VecDeque;

/// Bytes that received messages may unfold to in one turn; those that waited have as many for themselves.
const TURN_BYTES_MAX: usize = 256 << 10;

/// What is unfolded in this turn, and who waits for the next.
#[derive(Debug, Default)]
pub(super) struct Inflating {
    bytes: usize,
    /// First come first; each is there once, because it is not read.
    waiting: VecDeque<ConnId>,
    /// The connection whose input is in hand waits.
    put_off: bool,
}

impl Inflating {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    #[inline]
    pub const fn next_turn(&mut self) {
        self.bytes = 0;
    }

    pub const fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    pub const fn is_spent(&self) -> bool {
        self.bytes >= TURN_BYTES_MAX
    }

    /// True, once, when the input in hand was put off.
    #[inline]
    pub const fn take_put_off(&mut self) -> bool {
        std::mem::replace(&mut self.put_off, false)
    }
}

impl Conn {
    /// Bytes that wait to be looked at.
    #[inline]
    pub fn put_off_bytes(&self) -> usize {
        self.packing.as_ref().map_or(0, |packing| packing.put_off.len())
    }
}

impl Shard {
    /// What a connection sends may have to be unfolded, and this turn has unfolded enough.
    #[inline]
    pub(super) fn is_to_wait(&mut self, slot: u32) -> bool {
        self.at(slot).packing.is_some() && self.inflating.is_spent()
    }

    /// Keeps received bytes for a later turn.
    #[cold]
    pub(super) fn put_off(&mut self, slot: u32, bytes: &[u8]) {
        let conn = self.at(slot);
        let id = ConnId { slot, generation: conn.generation };
        let Some(packing) = &mut conn.packing else { return };
        packing.put_off.extend_from_slice(bytes);
        conn.paused = true;
        self.inflating.waiting.push_back(id);
        self.inflating.put_off = true;
        self.metrics.count(Counter::InflatesPutOff);
    }

    /// Looks at what was put off, as far as this turn's share goes.
    pub(super) fn go_on_inflating(&mut self) {
        self.inflating.next_turn();
        for _ in 0..self.inflating.waiting.len() {
            if self.inflating.is_spent() {
                return;
            }
            let Some(id) = self.inflating.waiting.pop_front() else { return };
            let Some(conn) = self.conn_mut(id) else { continue };
            conn.paused = false;
            let packing = conn.packing.as_mut();
            let mut bytes = packing.map(|packing| std::mem::take(&mut packing.put_off)).unwrap_or_default();
            self.fed = ShardSet::EMPTY;
            self.frames(id.slot, &mut bytes);
            let waits_again = self.inflating.take_put_off();
            self.hold_partial(id);
            self.bury();
            if !waits_again && self.conn_mut(id).is_some() && self.flow(id) == Flow::Continue {
                self.outputs.push_back(Output::ResumeReads(id));
            }
        }
    }
}
