//! Sockets, rings, threads: the only place that names glommio and io-uring.
//!
//! ```text
//! boot ▶ spawn ▶ driver (one thread a shard) ▶ turn ▶ shard
//!                  │ ring, conns, listen, mesh ▶ kernel
//! ```
//! Files here move bytes and decide nothing; what the bytes mean is [`crate::shard`]'s.

pub mod link;
pub mod probe;
pub mod spawn;
pub mod wake;

pub use probe::{Features, ProbeError};
pub use spawn::{Plan, Running, ShardHandle, SpawnError, spawn_shards};
pub use wake::{LinkWaker, ShardWaker};
