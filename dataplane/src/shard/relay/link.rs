//! One TCP connection between two shards.

use super::super::outbound::Outbound;
use super::frames::Guess;
use super::open::Routes;
use super::tls::Tls;
use crate::mesh::LaneName;
use common::noise::Handshake;
use std::time::Instant;

/// Which end of a link this shard is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// The link of the lane with this index.
    Lane(usize),
    /// Another shard made it.
    Guest,
}

/// Where a link is in its life.
#[derive(Debug)]
pub(super) enum Phase {
    /// The handshake of TLS, before ours.
    Securing,
    /// The handshake.
    Greeting(Box<Handshake>),
    /// Frames.
    Open,
    /// Nothing is read any more; what is queued still goes out.
    Closing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PhaseName {
    Securing,
    Greeting,
    Open,
    Closing,
}

#[derive(Debug)]
pub(super) struct Link {
    pub generation: u32,
    /// Of this shard's links in its whole life.
    pub id: u64,
    pub role: Role,
    pub phase: Phase,
    pub tls: Option<Box<Tls>>,
    /// A guest's lane at the other end, and the number of this attempt.
    pub lane: Option<(LaneName, u64)>,
    /// The other end has proved who it is.
    pub greeted: bool,
    /// In the list of links to flush.
    pub dirty: bool,
    /// A `SendBuf` is with the driver.
    pub sending: bool,
    pub paused: bool,
    /// Bytes with the driver.
    pub sending_bytes: usize,
    /// Bytes of `input`, as the shard has counted them.
    pub partial_bytes: usize,
    /// Events in `out`.
    pub events_queued: u64,
    pub out: Outbound,
    /// The incomplete frame.
    pub input: Vec<u8>,
    pub guess: Guess,
    pub heard: Instant,
    /// The ping that is out, and since when.
    pub pinged: Option<(u64, Instant)>,
    pub ping_at: Instant,
    /// When a link must be open, or gone.
    pub deadline: Instant,
    /// A guest's calls that wait for an answer here.
    pub calls: Routes,
}

impl Link {
    pub fn new(generation: u32, id: u64, role: Role, now: Instant, deadline: Instant) -> Self {
        Self {
            generation,
            id,
            role,
            phase: Phase::Securing,
            tls: None,
            lane: None,
            greeted: false,
            dirty: false,
            sending: false,
            paused: false,
            sending_bytes: 0,
            partial_bytes: 0,
            events_queued: 0,
            out: Outbound::default(),
            input: Vec::new(),
            guess: Guess::NONE,
            heard: now,
            pinged: None,
            ping_at: now,
            deadline,
            calls: Routes::default(),
        }
    }

    #[inline]
    pub fn phase_name(&self) -> PhaseName {
        match self.phase {
            Phase::Securing => PhaseName::Securing,
            Phase::Greeting(_) => PhaseName::Greeting,
            Phase::Open => PhaseName::Open,
            Phase::Closing => PhaseName::Closing,
        }
    }

    /// There is something to send.
    #[inline]
    pub fn has_output(&self) -> bool {
        !self.out.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_send())
    }

    /// Bytes that wait for the other end.
    #[inline]
    pub fn queued_bytes(&self) -> usize {
        self.out.bytes() + self.sending_bytes
    }
}
