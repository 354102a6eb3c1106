//! Frames out of received bytes, and what each kind means at which end.

use super::super::Shard;
use super::link::{Phase, Role};
use common::ids::RealmId;
use common::metrics::Counter;
use common::relay::{FRAME_BYTES_MAX, Frame, FrameError, Kind, LENGTH_BYTES, frame_bytes, put_bare};

/// Why a link cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFrame {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a {0:?} frame from this end of a connection")]
    Direction(Kind),
    #[error("an answer to call {0}, which never was")]
    Answer(u64),
    #[error("call {0} is open already")]
    Call(u64),
    #[error("what a call, a publication or a question asks for is malformed")]
    Extra,
}

/// The link whose frames are in hand.
struct Frames {
    slot: u32,
    role: Role,
    id: u64,
    guess: Guess,
}

/// An incomplete frame's buffer that is kept when the frame was handled.
const INPUT_KEEP_BYTES_MAX: usize = 1 << 16;
/// Queued bytes beyond which pings are not answered.
const PONG_QUEUE_BYTES_MAX: usize = 1 << 16;

/// Where the frames of a link found their realms, topics and procedures last: the next one is mostly of the same.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Guess {
    realm: (RealmId, u32),
    /// Places in the route cache.
    pub topic: u32,
    pub procedure: u32,
}

impl Guess {
    pub const NONE: Self = Self { realm: (RealmId(0), NO_REALM), topic: 0, procedure: 0 };
}

const NO_REALM: u32 = u32::MAX;

impl Shard {
    /// The index of a realm, which is its own for ever.
    #[inline]
    pub(super) fn realm_near(&self, realm: RealmId, guess: &mut Guess) -> Option<u32> {
        if guess.realm.0 != realm || guess.realm.1 == NO_REALM {
            guess.realm = (realm, *self.realm_index.get(&realm)?);
        }
        Some(guess.realm.1)
    }

    /// Takes frames out of what an open link received and handles them.
    #[inline]
    pub(super) fn relay_frames(&mut self, slot: u32, bytes: &[u8]) {
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        let mut input = std::mem::take(&mut link.input);
        let mut link = Frames { slot, role: link.role, id: link.id, guess: link.guess };
        let done = self.relay_take_frames(&mut link, &mut input, bytes);
        let guess = link.guess;
        if let Err(bad) = done {
            self.metrics.count(Counter::RelayBadFrames);
            tracing::warn!(%bad, "closing a relay connection");
            return self.relay_drop(slot);
        }
        if let Some(link) = self.relay.links.get_mut(slot) {
            link.input = input;
            link.guess = guess;
        }
    }

    fn relay_take_frames(
        &mut self,
        link: &mut Frames,
        input: &mut Vec<u8>,
        mut bytes: &[u8],
    ) -> Result<(), BadFrame> {
        if !input.is_empty() {
            // What came before is completed by as much as its frame needs.
            loop {
                let wanted = frame_bytes(input)?.map_or(LENGTH_BYTES, |length| LENGTH_BYTES + length);
                let (taken, rest) = bytes.split_at((wanted - input.len()).min(bytes.len()));
                input.extend_from_slice(taken);
                bytes = rest;
                if input.len() < wanted {
                    return Ok(());
                }
                if wanted > LENGTH_BYTES {
                    break;
                }
            }
            let frame = std::mem::take(input);
            self.relay_frame(link, &frame[LENGTH_BYTES..])?;
            if frame.capacity() <= INPUT_KEEP_BYTES_MAX {
                *input = frame;
                input.clear();
            }
        }
        while let Some(length) = frame_bytes(bytes)?
            && bytes.len() >= LENGTH_BYTES + length
        {
            let (frame, rest) = bytes.split_at(LENGTH_BYTES + length);
            bytes = rest;
            self.relay_frame(link, &frame[LENGTH_BYTES..])?;
        }
        input.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn relay_frame(&mut self, link: &mut Frames, bytes: &[u8]) -> Result<(), BadFrame> {
        let frame = Frame::check(bytes)?;
        let (slot, id, guess) = (link.slot, link.id, &mut link.guess);
        self.metrics.count(Counter::RelayFramesReceived);
        match (frame.kind, link.role) {
            (Kind::Publish, Role::Guest) => self.guest_publishes(slot, &frame, guess)?,
            (Kind::Call, Role::Guest) => self.guest_calls(slot, id, &frame, guess)?,
            (Kind::CallMore, Role::Guest) => self.guest_continues(slot, id, &frame)?,
            (Kind::Cancel, Role::Guest) => self.guest_cancels(slot, id, &frame)?,
            (Kind::Result | Kind::Error, Role::Lane(at)) => self.lane_answered(at, &frame)?,
            (Kind::PublishAck, Role::Lane(at)) => self.publish_acknowledged(at, frame.id),
            (Kind::Ask, Role::Guest) => self.guest_asks(slot, id, &frame)?,
            (Kind::Tell, Role::Lane(at)) => self.lane_told(at, &frame)?,
            (Kind::ToSeat, Role::Guest) => self.guest_carries(slot, id, &frame)?,
            (Kind::ToPort, Role::Lane(at)) => self.lane_carries(at, &frame)?,
            (Kind::Ping, _) => self.link_pong(slot, frame.id),
            (Kind::Pong, _) => self.link_ponged(slot, frame.id),
            (kind, _) => return Err(BadFrame::Direction(kind)),
        }
        Ok(())
    }

    /// Answers a ping, unless much waits already: that the other end gets something shows it that we live.
    fn link_pong(&mut self, slot: u32, id: u64) {
        let waits = self.relay.links.get(slot).map_or(0, |link| link.queued_bytes());
        if waits <= PONG_QUEUE_BYTES_MAX {
            self.link_reply(slot, |out| put_bare(out, Kind::Pong, id));
        }
    }

    /// Queues a frame that is never dropped. An end that lets too many of them pile up loses the link.
    pub(super) fn link_reply(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        // Any one answer may follow a queue that is full.
        let queue_max = self.relay.config.as_ref().map_or(0, |config| config.queue_max + FRAME_BYTES_MAX);
        let Some(link) = self.relay.links.get_mut(slot) else { return };
        if !matches!(link.phase, Phase::Open) {
            return;
        }
        if link.queued_bytes() > queue_max {
            self.metrics.count(Counter::RelaySlow);
            let now = self.now;
            self.relay.queued_bytes -= link.out.clear(&mut self.pool);
            return self.relay_close(slot, now);
        }
        self.relay.queued_bytes += link.out.append(&mut self.pool, write);
        self.metrics.count(Counter::RelayFramesSent);
        self.relay.mark_dirty(slot);
    }
}
