//! Starts one pinned thread a shard and hands out the ends of its channels.

use crate::feed::{FeedDown, FeedUp};
use crate::io::probe::Features;
use crate::io::wake::{LinkWaker, ShardWaker};
use common::config::Config;
use common::ids::ShardId;
use crossbeam_channel::{Receiver, Sender};
use std::net::SocketAddr;
use std::thread::JoinHandle;

/// What the shards of a data plane are started from.
#[derive(Clone)]
pub struct Plan {
    pub config: Config,
    /// One shard each, in this order; at least one, at most [`common::ids::SHARDS_MAX`].
    pub cores: Vec<u32>,
    pub features: Features,
    /// One random number a shard.
    pub seeds: Vec<u64>,
    /// Called after something was put into [`Running::feed_up`].
    pub link_waker: LinkWaker,
}

/// The running shards.
#[derive(Debug)]
pub struct Running {
    pub shards: Vec<ShardHandle>,
    /// From all shards.
    pub feed_up: Receiver<FeedUp>,
    /// The address each of `config.listeners` is bound to, in that order, with real ports. Bound from the start; a
    /// shard listens and accepts once it has its first [`FeedDown::Snapshot`].
    pub listening: Vec<SocketAddr>,
}

/// One shard's thread and the sender of its feed.
#[derive(Debug)]
pub struct ShardHandle {
    pub shard: ShardId,
    pub cpu: u32,
    /// Bounded; call [`ShardWaker::wake`] after sending. When the sender is dropped and the shard woken its thread
    /// closes everything and ends.
    pub feed: Sender<FeedDown>,
    pub waker: ShardWaker,
    /// An error says why the shard stopped: its ring failed.
    pub thread: JoinHandle<Result<(), SpawnError>>,
}

/// Why the shards did not start, or one stopped. All of them are gone again.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start a shard on CPU {cpu}: {reason}")]
    Executor { cpu: u32, reason: String },
    #[error("cannot set up the ring of the shard on CPU {cpu}")]
    Ring {
        cpu: u32,
        #[source]
        source: std::io::Error,
    },
    #[error("could not make an eventfd")]
    Eventfd(#[source] std::io::Error),
    #[error("the shard on CPU {cpu} ended unexpectedly: {reason}")]
    Ended { cpu: u32, reason: String },
}

/// Binds the listeners, starts a pinned thread for each core and returns when all of them have their rings.
///
/// # Errors
/// [`SpawnError`]; then no thread is left.
pub fn spawn_shards(plan: Plan) -> Result<Running, SpawnError> {
    let _ = plan;
    unimplemented!()
}
