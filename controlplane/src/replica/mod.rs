//! Replication of objects, as machines without IO: no socket, clock, thread or store inside.
//!
//! ```text
//! put ─▶ hlc, dvvset ─▶ record ─▶ store: record and hash-tree sums in one transaction
//! exchange ◀─ message ─▶ exchange of another node; both sides work on `objects`, which the store implements
//! ```

pub mod dvvset;
pub mod exchange;
pub mod floor;
pub mod hashtree;
pub mod hlc;
pub mod message;
pub mod objects;
