//! Sessions of this node carried by connections of others, and the reverse.
//!
//! The id of a frame is the number of the connection's port at its node, its extra the one octet that says what it is.

use super::super::Shard;
use super::super::resume::{ToPort, ToSeat};
use super::frames::BadFrame;
use super::lanes::Passed;
use common::ids::RealmId;
use common::relay::{BARE_BYTES, Content, Frame, Kind};
use common::wire::{Payload, Serializer};

/// Queued bytes of a link beyond which it carries no frames of sessions: their connections are closed instead, and their
/// clients come back when there is room.
const CARRIED_QUEUE_PART: usize = 2;

fn put(kind: Kind, id: u64, op: u8, bytes: &[u8], out: &mut Vec<u8>) {
    let payload = Payload { args: Some(bytes), kwargs: None };
    let (realm, serializer) = (RealmId(0), Serializer::MsgPack);
    Content { kind, realm, id, uri: "", extra: &[&[op]], progress: false, serializer, payload }.put(out);
}

fn unpack<'a, T>(frame: &Frame<'a>, op: fn(u8) -> Option<T>) -> Result<(T, &'a [u8]), BadFrame> {
    let &[number] = frame.extra else { return Err(BadFrame::Extra) };
    Ok((op(number).ok_or(BadFrame::Extra)?, frame.payload.args.ok_or(BadFrame::Extra)?))
}

impl Shard {
    /// Something for a session of another node. False: it does not get there.
    pub(in crate::shard) fn relay_to_seat(&mut self, at: usize, port: u64, op: ToSeat, bytes: &[u8]) -> bool {
        // A session whose connection is gone must not take it for slow: of these there is one a connection.
        let bytes_max = if op == ToSeat::Gone { 0 } else { BARE_BYTES + 1 + bytes.len() };
        self.lane_send(at, bytes_max, 0, |out| put(Kind::ToSeat, port, op as u8, bytes, out)) == Passed::Yes
    }

    /// Something for a connection of another node. False: it does not get there.
    pub(in crate::shard) fn relay_to_port(
        &mut self,
        slot: u32,
        link: u64,
        port: u64,
        op: ToPort,
        bytes: &[u8],
    ) -> bool {
        let queue_max = self.relay.config.as_ref().map_or(0, |config| config.queue_max);
        let Some(guest) = self.relay.links.get(slot).filter(|guest| guest.id == link) else { return false };
        let waits = guest.queued_bytes();
        if op == ToPort::Frames && waits > 0 && waits + bytes.len() > queue_max / CARRIED_QUEUE_PART {
            return false;
        }
        self.link_reply(slot, |out| put(Kind::ToPort, port, op as u8, bytes, out));
        true
    }

    /// A connection of another node carries a session of this one, or asks for one.
    pub(super) fn guest_carries(&mut self, slot: u32, link: u64, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let (op, bytes) = unpack(frame, ToSeat::from_number)?;
        if self.guest_to_seat((slot, link, frame.id), op, bytes) { Ok(()) } else { Err(BadFrame::Extra) }
    }

    /// A session of another node has something for a connection of this one.
    pub(super) fn lane_carries(&mut self, at: usize, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let (op, bytes) = unpack(frame, ToPort::from_number)?;
        self.lane_told_port(at, frame.id, op, bytes);
        Ok(())
    }
}
