//! Brings a payload to every node: Plumtree (Leitão, Pereira, Rodrigues: "Epidemic Broadcast Trees", 2007) with what its
//! implementations were found to lack. Sans-IO.
//!
//! ```text
//! send ─▶ Gossip to eager peers ─▶ first copy: deliver, Gossip on, Ack │ second copy: Prune
//!      └▶ Ihave to lazy peers, in batches ─▶ unknown after a while: Graft to one who announced it ─▶ Gossip
//! ```
//! One tree serves all senders: they are many and the cluster is small. Up to [`MESH_MAX`] nodes a sender pushes to everybody
//! and receivers only announce, which saves the copies a tree would prune.
//!
//! A payload that was pushed or announced to a peer is *outstanding* until the peer says by any message that it has it. What
//! is outstanding for longer than a tick is announced again, so a lost push is a late one. Where that has a bound (too
//! much outstanding, too many grafts in vain, a payload that left the cache) the peer is *owed*: an exchange of objects with it
//! must run at once.
//!
//! Invariants: a payload is delivered once as long as its id is in the cache; nothing is delivered whose id is not the keyed
//! hash of its bytes; caches, batches and tables are bounded; a peer that comes adds one edge and resets nothing.

mod cache;
pub mod message;
mod missing;
mod peer;
mod tree;

#[cfg(test)]
mod tests;

pub use message::{Id, IdKey, Message};
pub use tree::{Broadcast, Counts, Output, Settings};

use std::time::Duration;

/// Clusters of at most this many nodes push to everybody.
pub const MESH_MAX: usize = 8;
/// Ids that are remembered, and for how long.
pub const IDS_MAX: usize = 65_536;
pub const IDS_TIME: Duration = Duration::from_secs(60);
/// Bytes of payloads kept for peers that ask for them.
pub const CACHE_BYTES_MAX: usize = 32 << 20;
/// Ids of one message.
pub const BATCH_MAX: usize = 256;
/// How long an announcement waits for others.
pub const BATCH_DELAY: Duration = Duration::from_millis(20);
/// Ids outstanding at one peer; beyond it the peer is owed an exchange.
pub const OUTSTANDING_MAX: usize = 8_192;
/// Ids that were announced to us and have not come.
pub const MISSING_MAX: usize = 8_192;
/// Peers remembered as having announced one id.
pub const ANNOUNCERS_MAX: usize = 8;
/// Times a missing payload is asked for.
pub const GRAFTS_MAX: u8 = 3;
/// A missing payload is first asked for after this many round-trip times, and at least [`FIRST_GRAFT_MIN`].
pub const FIRST_GRAFT_TRIPS: u32 = 4;
pub const FIRST_GRAFT_MIN: Duration = Duration::from_millis(150);
/// The next peer is asked after this many round-trip times, and at least [`NEXT_GRAFT_MIN`].
pub const NEXT_GRAFT_TRIPS: u32 = 2;
pub const NEXT_GRAFT_MIN: Duration = Duration::from_millis(50);
/// Bytes of payloads that one graft is answered with; the last one may go beyond.
pub const GRAFT_BYTES_MAX: usize = 1 << 20;
/// Round trips that were measured longer count as this.
pub const RTT_MAX: Duration = Duration::from_secs(5);
/// An announcer that was this many hops nearer to the sender takes the place of whoever pushed.
pub const OPTIMISE_HOPS: u8 = 3;
