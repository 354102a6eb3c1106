//! Replication of objects, as machines without IO: no socket, clock, thread or store inside.
//!
//! ```text
//! put ─▶ hlc, dvvset ─▶ record ─▶ store: record and hash-tree sums in one transaction
//! ```

pub mod dvvset;
pub mod hashtree;
pub mod hlc;
