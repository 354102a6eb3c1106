//! Frames out of received bytes, and what each kind means at which end.

use super::super::Shard;
use super::link::{Phase, Role};
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

/// An incomplete frame's buffer that is kept when the frame was handled.
const INPUT_KEEP_BYTES_MAX: usize = 1 << 16;
/// Queued bytes beyond which pings are not answered.
const PONG_QUEUE_BYTES_MAX: usize = 1 << 16;

impl Shard {
    /// Takes frames out of what an open link received and handles them.
    #[inline]
    pub(super) fn relay_frames(&mut self, slot: u32, bytes: &[u8]) {
        let Some(link) = self.relay.links.get_mut(&slot) else { return };
        let mut input = std::mem::take(&mut link.input);
        let (role, id) = (link.role, link.id);
        let done = self.relay_take_frames(slot, role, id, &mut input, bytes);
        if let Err(bad) = done {
            self.metrics.count(Counter::RelayBadFrames);
            tracing::warn!(%bad, "closing a relay connection");
            return self.relay_drop(slot);
        }
        if let Some(link) = self.relay.links.get_mut(&slot) {
            link.input = input;
        }
    }

    fn relay_take_frames(
        &mut self,
        slot: u32,
        role: Role,
        id: u64,
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
            self.relay_frame(slot, role, id, &frame[LENGTH_BYTES..])?;
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
            self.relay_frame(slot, role, id, &frame[LENGTH_BYTES..])?;
        }
        input.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn relay_frame(&mut self, slot: u32, role: Role, id: u64, bytes: &[u8]) -> Result<(), BadFrame> {
        let frame = Frame::check(bytes)?;
        self.metrics.count(Counter::RelayFramesReceived);
        match (frame.kind, role) {
            (Kind::Publish, Role::Guest) => self.guest_publishes(slot, &frame)?,
            (Kind::Call, Role::Guest) => self.guest_calls(slot, id, &frame)?,
            (Kind::CallMore, Role::Guest) => self.guest_continues(slot, id, &frame)?,
            (Kind::Cancel, Role::Guest) => self.guest_cancels(slot, id, &frame)?,
            (Kind::Result | Kind::Error, Role::Lane(at)) => self.lane_answered(at, &frame)?,
            (Kind::PublishAck, Role::Lane(at)) => self.publish_acknowledged(at, frame.id),
            (Kind::Ask, Role::Guest) => self.guest_asks(slot, id, &frame)?,
            (Kind::Tell, Role::Lane(at)) => self.lane_told(at, &frame)?,
            (Kind::Ping, _) => self.link_pong(slot, frame.id),
            (Kind::Pong, _) => self.link_ponged(slot, frame.id),
            (kind, _) => return Err(BadFrame::Direction(kind)),
        }
        Ok(())
    }

    /// Answers a ping, unless much waits already: that the other end gets something shows it that we live.
    fn link_pong(&mut self, slot: u32, id: u64) {
        let waits = self.relay.links.get(&slot).map_or(0, |link| link.queued_bytes());
        if waits <= PONG_QUEUE_BYTES_MAX {
            self.link_reply(slot, |out| put_bare(out, Kind::Pong, id));
        }
    }

    /// Queues a frame that is never dropped. An end that lets too many of them pile up loses the link.
    pub(super) fn link_reply(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        // Any one answer may follow a queue that is full.
        let queue_max = self.relay.config.as_ref().map_or(0, |config| config.queue_max + FRAME_BYTES_MAX);
        let Some(link) = self.relay.links.get_mut(&slot) else { return };
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
