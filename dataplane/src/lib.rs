//! The data plane: sessions, routing and delivery, one shard a core.
//!
//! ```text
//! bytes ▶ io ▶ shard ▶ session ▶ broker | dealer ▶ session ▶ io ▶ bytes
//!                │ claims (feed)            ▲ snapshots (feed)
//! ```
//! Only `io` names the kernel and the runtime. A [`shard::Shard`] is plain state: input and `now` in, outputs out.
//! No shard reads another's state; they speak by [`mesh`] batches.

pub mod boot;
pub mod cpus;
pub mod feed;
pub mod io;
pub mod link;
pub mod mesh;
pub mod shard;

pub use boot::run;
