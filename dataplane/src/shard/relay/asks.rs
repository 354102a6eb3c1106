//! Questions of the meta API to other nodes, and from them.

use super::super::Shard;
use super::super::meta::Asker;
use super::frames::BadFrame;
use super::lanes::Passed;
use common::ids::RealmId;
use common::relay::{BARE_BYTES, Content, Frame, Kind};
use common::wire::{Payload, Serializer};

fn put(kind: Kind, realm: RealmId, id: u64, packed: &[u8], out: &mut Vec<u8>) {
    let payload = Payload { args: Some(packed), kwargs: None };
    let serializer = Serializer::MsgPack;
    Content { kind, realm, id, uri: "", extra: &[], progress: false, serializer, payload }.put(out);
}

impl Shard {
    /// Passes a question to one shard of a node. False: it will not be answered.
    pub(in crate::shard) fn relay_ask(
        &mut self,
        node: u16,
        realm: RealmId,
        token: u64,
        packed: &[u8],
    ) -> bool {
        let (at, bytes) = (self.lane_of(node, token as u32), BARE_BYTES + packed.len());
        self.lane_send(at, bytes, 0, |out| put(Kind::Ask, realm, token, packed, out)) == Passed::Yes
    }

    /// Answers another node's question, if its link is still there.
    pub(in crate::shard) fn relay_tell(&mut self, slot: u32, link: u64, token: u64, packed: &[u8]) {
        if self.relay.links.get(slot).is_some_and(|guest| guest.id == link) {
            self.link_reply(slot, |out| put(Kind::Tell, RealmId(0), token, packed, out));
        }
    }

    /// Another node asks.
    pub(super) fn guest_asks(&mut self, slot: u32, link: u64, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let asker = Asker::Node { slot, link, token: frame.id };
        let query = frame.payload.args.ok_or(BadFrame::Extra)?;
        if self.asked_by_node(asker, frame.realm, query) { Ok(()) } else { Err(BadFrame::Extra) }
    }

    /// Another node answers. An answer that comes too late finds nobody.
    pub(super) fn lane_told(&mut self, at: usize, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let Some(lane) = self.relay.lanes[at].as_ref() else { return Ok(()) };
        let node = lane.node;
        let part = frame.payload.args.ok_or(BadFrame::Extra)?;
        if self.node_told(node, frame.id, part) { Ok(()) } else { Err(BadFrame::Extra) }
    }
}
