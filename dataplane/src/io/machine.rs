//! What the driver drives: a [`Shard`], or a small stand-in in tests.

use crate::feed::{FeedDown, FeedUp};
use crate::mesh::Batch;
use crate::shard::{ConnId, Dial, Flow, Origin, Output, SendBuf, Shard};
use common::ids::{ShardId, ShardSet};
use common::metrics::Metrics;
use std::time::Instant;

/// Methods as documented at [`Shard`]. What the driver promises beyond that: `closed` is called at most once for a
/// connection; a connection whose send failed gets `sent` with `ok` false and then, unless it was called before,
/// `closed`; after [`Output::Close`] and [`Output::Park`] nothing is called for it. `sent` may come as late as the next event, so
/// `take_send` should give all there is.
pub trait Machine {
    /// What shards send each other.
    type Batch: Send + 'static;

    fn accept(&mut self, now: Instant, conn: ConnId, listener: usize, origin: Origin) -> bool;
    fn receive(&mut self, now: Instant, conn: ConnId, bytes: &mut [u8]) -> Flow;
    fn closed(&mut self, now: Instant, conn: ConnId);
    fn take_send(&mut self, conn: ConnId) -> SendBuf;
    fn sent(&mut self, now: Instant, conn: ConnId, buf: SendBuf, ok: bool);
    fn mesh_in(&mut self, now: Instant, from: ShardId, batch: Self::Batch);
    fn mesh_ready(&self) -> ShardSet;
    fn take_batch(&mut self, to: ShardId) -> Self::Batch;
    fn mesh_full(&mut self, now: Instant, full: ShardSet);
    fn feed(&mut self, now: Instant, down: FeedDown);
    fn take_feed(&mut self) -> Option<FeedUp>;
    fn poll(&mut self) -> Option<Output>;
    fn deadline(&self) -> Option<Instant>;
    fn timeout(&mut self, now: Instant);
    fn metrics_mut(&mut self) -> &mut Metrics;

    /// Only called after [`Output::Connect`], like the next.
    fn connected(&mut self, _now: Instant, _dial: Dial, _conn: ConnId) -> bool {
        false
    }

    fn dial_failed(&mut self, _now: Instant, _dial: Dial) {}
}

impl Machine for Shard {
    type Batch = Box<Batch>;

    #[inline]
    fn accept(&mut self, now: Instant, conn: ConnId, listener: usize, origin: Origin) -> bool {
        Self::accept(self, now, conn, listener, origin)
    }

    #[inline]
    fn receive(&mut self, now: Instant, conn: ConnId, bytes: &mut [u8]) -> Flow {
        Self::receive(self, now, conn, bytes)
    }

    #[inline]
    fn closed(&mut self, now: Instant, conn: ConnId) {
        Self::closed(self, now, conn);
    }

    #[inline]
    fn take_send(&mut self, conn: ConnId) -> SendBuf {
        Self::take_send(self, conn)
    }

    #[inline]
    fn sent(&mut self, now: Instant, conn: ConnId, buf: SendBuf, ok: bool) {
        Self::sent(self, now, conn, buf, ok);
    }

    #[inline]
    fn mesh_in(&mut self, now: Instant, from: ShardId, batch: Box<Batch>) {
        Self::mesh_in(self, now, from, batch);
    }

    #[inline]
    fn mesh_ready(&self) -> ShardSet {
        Self::mesh_ready(self)
    }

    #[inline]
    fn take_batch(&mut self, to: ShardId) -> Box<Batch> {
        Self::take_batch(self, to)
    }

    #[inline]
    fn mesh_full(&mut self, now: Instant, full: ShardSet) {
        Self::mesh_full(self, now, full);
    }

    #[inline]
    fn feed(&mut self, now: Instant, down: FeedDown) {
        Self::feed(self, now, down);
    }

    #[inline]
    fn take_feed(&mut self) -> Option<FeedUp> {
        Self::take_feed(self)
    }

    #[inline]
    fn poll(&mut self) -> Option<Output> {
        Self::poll(self)
    }

    #[inline]
    fn deadline(&self) -> Option<Instant> {
        Self::deadline(self)
    }

    #[inline]
    fn timeout(&mut self, now: Instant) {
        Self::timeout(self, now);
    }

    #[inline]
    fn metrics_mut(&mut self) -> &mut Metrics {
        Self::metrics_mut(self)
    }

    fn connected(&mut self, now: Instant, dial: Dial, conn: ConnId) -> bool {
        Self::connected(self, now, dial, conn)
    }

    fn dial_failed(&mut self, now: Instant, dial: Dial) {
        Self::dial_failed(self, now, dial);
    }
}
