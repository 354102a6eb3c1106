//! What membership is made from, and what foca makes of it. Pure.

use super::identity::Identity;
use super::machine::{DATAGRAM_BYTES_MAX, HINT_BYTES_MAX};
use super::seal::{Keyring, SEAL_BYTES};
use foca::{Config, PeriodicParams};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// What the machine is made from.
pub struct Settings {
    /// Who we are; its epoch is greater than that of any earlier start.
    pub identity: Identity,
    pub env: String,
    pub keys: Keyring,
    /// Random, for this start only.
    pub nonce: [u8; 16],
    /// Of all random choices.
    pub seed: u64,
    pub seeds: Vec<SocketAddr>,
    /// One other node is probed in this time.
    pub probe_interval: Duration,
    /// Others are asked to probe a node that has not answered for this long. At most half of the interval.
    pub probe_timeout: Duration,
    /// How long a suspect may object.
    pub suspicion: Duration,
    /// Nodes that are down or left are forgotten after this.
    pub forget_after: Duration,
}

impl Settings {
    pub(super) fn foca(&self) -> Config {
        let periodic = |frequency, count| {
            let num_members = NonZeroUsize::new(count).expect("counts are not zero");
            Some(PeriodicParams { frequency, num_members })
        };
        Config {
            probe_period: self.probe_interval,
            probe_rtt: self.probe_timeout,
            num_indirect_probes: NonZeroUsize::new(3).expect("not zero"),
            max_transmissions: NonZeroU8::new(10).expect("not zero"),
            suspect_to_down_after: self.suspicion,
            // The sweep does it, so that no timer outlives its member.
            remove_down_after: None,
            max_packet_size: NonZeroUsize::new(DATAGRAM_BYTES_MAX - SEAL_BYTES - HINT_BYTES_MAX)
                .expect("not zero"),
            notify_down_members: true,
            periodic_announce: periodic(Duration::from_secs(10), 1),
            periodic_announce_to_down_members: periodic(Duration::from_secs(2), 3),
            periodic_gossip: periodic(Duration::from_millis(100), 3),
        }
    }
}
