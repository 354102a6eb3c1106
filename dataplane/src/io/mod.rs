//! Sockets, rings, threads: the only place that names glommio and io-uring.
//!
//! ```text
//! boot ▶ spawn ▶ driver (one thread a shard) ▶ turn ▶ shard
//!                  │ ring, buffers, conns, listen, mesh ▶ kernel
//! ```
//! Files here move bytes and decide nothing; what the bytes mean is [`crate::shard`]'s.

mod buffers;
mod conns;
mod driver;
pub mod link;
mod listen;
mod machine;
mod mesh;
pub mod probe;
mod ring;
pub mod spawn;
#[cfg(test)]
mod tests;
mod token;
mod turn;
mod vectors;
pub mod wake;

pub use listen::Place;
pub use machine::Machine;
pub use probe::{Features, ProbeError};
pub use spawn::{Plan, Running, ShardHandle, SpawnError, spawn_machines, spawn_shards};
pub use turn::Accepting;
pub use wake::{LinkWaker, ShardWaker};
