//! The shards of one node: their configuration, and the queues between them.

use common::config::{Config, Listener, Transport};
use common::ids::{BootEpoch, ShardId, ShardSet};
use dataplane::mesh::Batch;
use dataplane::shard::{ConnId, Output, Shard, ShardConfig};
use std::collections::VecDeque;
use std::time::Instant;

/// Batches one shard-to-shard queue holds here.
const MESH_ENTRIES: usize = 2;

/// Queues from each shard to each other.
pub struct Mesh(Vec<Vec<VecDeque<Box<Batch>>>>);

impl Mesh {
    pub fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect())
    }

    /// A turn of one shard: at most one batch of each other one, and what it has for them.
    pub fn turn(&mut self, shards: &mut [Shard], now: Instant, at: usize) {
        for (from, queues) in self.0.iter_mut().enumerate() {
            if let Some(batch) = queues[at].pop_front() {
                shards[at].mesh_in(now, ShardId(from as u8), batch);
            }
        }
        let mut full = ShardSet::EMPTY;
        for to in shards[at].mesh_ready().iter() {
            let queue = &mut self.0[at][to.index()];
            if queue.len() < MESH_ENTRIES {
                queue.push_back(shards[at].take_batch(to));
            } else {
                full = full.with(to);
            }
        }
        shards[at].mesh_full(now, full);
    }

    pub fn is_quiet(&self, shards: &[Shard]) -> bool {
        self.0.iter().flatten().all(VecDeque::is_empty)
            && shards.iter().all(|shard| shard.mesh_ready().is_empty())
    }
}

/// The client's connection that an output is for.
pub fn conn_of(output: &Output) -> ConnId {
    match *output {
        Output::Send(conn)
        | Output::ShutdownWrite(conn)
        | Output::Close(conn)
        | Output::Park(conn)
        | Output::ResumeReads(conn) => conn,
        Output::Connect { .. } => panic!("an attempt to connect is between nodes"),
    }
}

/// The configuration of a shard of a node by itself: RawSocket and WebSocket, the defaults otherwise.
pub fn config(shard: usize, shards: usize, epoch: BootEpoch, seed: u64) -> ShardConfig {
    let listeners = vec![Listener::of(Transport::RawSocket), Listener::of(Transport::WebSocket)];
    let config = Config { listeners, ..Config::default() };
    let (secret, seed) = ([shard as u8; 32], seed * 1_000 + shard as u64);
    ShardConfig {
        memory_max: 1 << 30,
        ..ShardConfig::new(&config, ShardId(shard as u8), shards, epoch, secret, seed)
    }
}
