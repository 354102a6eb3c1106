//! TCP connections between nodes as the world carries them.

use dataplane::shard::{ConnId, SendBuf};
use std::collections::VecDeque;

/// Where a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub node: usize,
    pub shard: usize,
    pub conn: ConnId,
}

pub struct End {
    pub place: Place,
    pub open: bool,
    pub paused: bool,
    pub sending: Option<SendBuf>,
    /// Bytes on their way to this end.
    pub coming: VecDeque<u8>,
    /// Nothing follows them.
    pub last: bool,
}

pub struct Wire {
    pub ends: [End; 2],
}

impl End {
    pub fn new(place: Place) -> Self {
        Self { place, open: true, paused: false, sending: None, coming: VecDeque::new(), last: false }
    }

    /// Something can still happen to this end.
    pub fn is_busy(&self) -> bool {
        self.open && (self.last || self.sending.is_some() || !self.coming.is_empty() && !self.paused)
    }
}

impl Wire {
    /// The network fails: each end still gets some of what was on its way, then the end of the connection.
    pub fn cut(&mut self, rng: &mut fastrand::Rng) {
        for end in &mut self.ends {
            let kept = rng.usize(0..=end.coming.len());
            end.coming.truncate(kept);
            end.last = true;
        }
    }
}
