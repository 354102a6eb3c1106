//! What a shard is made from.

use super::{HttpConfig, RelayConfig, ResumeConfig};
use common::config::{Config, Limits, Listener, SlowReceiver, Timeouts};
use common::ids::{BootEpoch, ShardId};

/// What a shard is made from.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub shard: ShardId,
    pub shards: usize,
    pub cpu: u32,
    /// This process's life; snapshots name the life whose claims they hold.
    pub epoch: BootEpoch,
    pub listeners: Vec<Listener>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub slow_receiver: SlowReceiver,
    pub resume: ResumeConfig,
    /// None: the node is by itself.
    pub relay: Option<RelayConfig>,
    /// None: no listener serves HTTP clients.
    pub http: Option<HttpConfig>,
    /// This shard's part of `memory.max`, bytes.
    pub memory_max: u64,
    /// Seeds session ids, publication ids and hashes.
    pub seed: u64,
}

impl ShardConfig {
    /// One of so many shards of a node by itself that serves no HTTP clients, on CPU 0. `secret`: as [`ResumeConfig::new`] wants its seed.
    pub fn new(
        config: &Config,
        shard: ShardId,
        shards: usize,
        epoch: BootEpoch,
        secret: [u8; 32],
        seed: u64,
    ) -> Self {
        Self {
            shard,
            shards,
            cpu: 0,
            epoch,
            listeners: config.listeners.clone(),
            limits: config.limits.clone(),
            timeouts: config.timeouts.clone(),
            slow_receiver: config.slow_receiver.clone(),
            resume: ResumeConfig::new(&config.resume, shards, secret),
            relay: None,
            http: None,
            memory_max: config.memory.max / shards as u64,
            seed,
        }
    }
}
