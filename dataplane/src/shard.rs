//! All state of one core: connections, sessions, routes. Sans-IO: the driver in `io` feeds it and drains it.
//!
//! The driver's turn: hand over what was received (`receive`), accepted, sent, closed and what other shards sent
//! (`mesh_in`), then `poll` until `None`, then move the mesh batches (`mesh_ready`, `take_batch`) and claims.

use crate::feed::{FeedDown, FeedUp};
use crate::mesh::Batch;
use common::config::{Limits, Listener, SlowReceiver, Timeouts};
use common::ids::{ShardId, ShardSet};
use common::metrics::Metrics;
use std::net::IpAddr;
use std::time::Instant;

/// A connection of this shard. The driver chooses `slot` (dense, reused once every kernel operation of the old
/// connection has ended) and `generation` (different at each reuse of a slot).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnId {
    pub slot: u32,
    pub generation: u32,
}

/// What a shard is made from.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub shard: ShardId,
    pub shards: usize,
    pub cpu: u32,
    pub listeners: Vec<Listener>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub slow_receiver: SlowReceiver,
    /// This shard's part of `memory.max`, bytes.
    pub memory_max: u64,
    /// Seeds session ids, publication ids and hashes.
    pub seed: u64,
}

/// Bytes to send on one connection, in order. The driver owns it while the kernel reads it and gives it back to
/// [`Shard::sent`].
#[derive(Debug, Default)]
pub struct SendBuf {
    /// Never empty when taken from a shard.
    pub segments: Vec<Segment>,
}

/// A piece of a [`SendBuf`].
#[derive(Debug)]
pub enum Segment {
    Owned(Vec<u8>),
    Shared(bytes::Bytes),
}

impl Segment {
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// What `receive` asks of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    Continue,
    /// Read no more from this connection until [`Output::ResumeReads`].
    Pause,
}

/// What a shard wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Call [`Shard::take_send`] and send it whole (`MSG_WAITALL`). Said once until `sent` is called.
    Send(ConnId),
    /// Shut down writing; reads go on and are discarded by the shard until the peer closes or `Close` follows.
    ShutdownWrite(ConnId),
    /// Close the socket; the shard has forgotten the connection. Operations under way are cancelled, a `SendBuf` still
    /// with the kernel is dropped when it comes back.
    Close(ConnId),
    ResumeReads(ConnId),
}

#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
}

impl Shard {
    pub fn new(config: ShardConfig, now: Instant) -> Self {
        let _ = now;
        Self { config }
    }

    /// A connection was accepted on `config.listeners[listener]`. False: refused, the driver closes it (the shard has
    /// already counted it and holds nothing).
    pub fn accept(&mut self, now: Instant, conn: ConnId, listener: usize, peer: IpAddr) -> bool {
        let _ = (now, conn, listener, peer, &self.config);
        unimplemented!()
    }

    /// Bytes came from the peer; they may be changed in place (unmasking).
    pub fn receive(&mut self, now: Instant, conn: ConnId, bytes: &mut [u8]) -> Flow {
        let _ = (now, conn, bytes);
        unimplemented!()
    }

    /// The peer closed, or the connection broke. The shard answers with [`Output::Close`].
    pub fn closed(&mut self, now: Instant, conn: ConnId) {
        let _ = (now, conn);
    }

    /// The connection's bytes to send, after [`Output::Send`].
    pub fn take_send(&mut self, conn: ConnId) -> SendBuf {
        let _ = conn;
        unimplemented!()
    }

    /// A `SendBuf` went out whole (`ok`), or the connection broke.
    pub fn sent(&mut self, now: Instant, conn: ConnId, buf: SendBuf, ok: bool) {
        let _ = (now, conn, buf, ok);
    }

    /// A batch from another shard; it is emptied and may be kept for reuse.
    pub fn mesh_in(&mut self, now: Instant, from: ShardId, batch: Box<Batch>) {
        let _ = (now, from, batch);
    }

    /// The shards something is to be sent to.
    pub fn mesh_ready(&self) -> ShardSet {
        ShardSet::EMPTY
    }

    /// Takes all that waits for `to`. Only called when the queue to it has room.
    pub fn take_batch(&mut self, to: ShardId) -> Box<Batch> {
        let _ = to;
        unimplemented!()
    }

    /// The queues to these shards are full. Connections that feed them are paused until a later call leaves them out.
    pub fn mesh_full(&mut self, now: Instant, full: ShardSet) {
        let _ = (now, full);
    }

    /// Something from the link thread.
    pub fn feed(&mut self, now: Instant, down: FeedDown) {
        let _ = (now, down);
    }

    /// The next thing for the link thread, at most one claims frame's worth. When the channel is full the driver keeps
    /// what it took and calls again only after that was sent; claims wait in the shard up to a bound and are then
    /// replaced by a whole resync.
    pub fn take_feed(&mut self) -> Option<FeedUp> {
        None
    }

    /// The next thing to do. Cheap when there is none.
    pub fn poll(&mut self) -> Option<Output> {
        None
    }

    /// When [`Shard::timeout`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Time has passed; due timers act.
    pub fn timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// Counters of the driver are added here.
    pub fn metrics_mut(&mut self) -> &mut Metrics {
        unimplemented!()
    }

    /// True once a drain was asked for and the last connection is gone.
    pub fn is_drained(&self) -> bool {
        false
    }
}
