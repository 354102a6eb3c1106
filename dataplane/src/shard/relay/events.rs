//! Events to other nodes, and from them.

use super::super::Shard;
use super::super::delivery::Published;
use super::super::nodes::NodeSet;
use super::super::publication::Extra;
use super::SCRATCH_KEEP_BYTES_MAX;
use super::frames::{BadFrame, Guess};
use super::lanes::Passed;
use bytes::Bytes;
use common::metrics::Counter;
use common::relay::{Frame, Kind, Publish, put_bare};

/// Frames at least this long are shared by several lanes instead of copied to each.
const SHARE_BYTES_MIN: usize = 4_096;

/// A publication for other nodes.
#[derive(Clone, Copy)]
pub(in crate::shard) struct Publication<'a> {
    pub realm: u32,
    /// Of exactly its topic.
    pub subscription: u64,
    pub published: &'a Published<'a>,
    /// The request that waits for the other nodes to have taken it.
    pub acknowledge: Option<u64>,
}

impl Shard {
    /// Passes an event of the session in `slot` to each of `nodes`, once. True when PUBLISHED or an ERROR follows from
    /// here.
    pub(in crate::shard) fn relay_publish(
        &mut self,
        slot: u32,
        nodes: NodeSet,
        event: &Publication<'_>,
    ) -> bool {
        let realm = self.realms[event.realm as usize].id;
        let Published { topic, publication, extra, from, payload, .. } = *event.published;
        let frame = Publish {
            realm,
            topic,
            subscription: event.subscription,
            publication,
            wants_ack: event.acknowledge.is_some(),
            extra,
            has_details: !extra.is_empty() && Extra::parse(extra).is_some_and(|extra| extra.has_details()),
            serializer: from,
            payload,
        };
        let one = nodes.only().filter(|_| payload.bytes_len() < SHARE_BYTES_MIN);
        let Some(node) = one else {
            let (taken, refused) = self.relay_to_many(slot, nodes, &frame);
            return event
                .acknowledge
                .is_some_and(|request| self.await_acks(slot, request, publication, taken, refused));
        };
        let passed = self.lane_send(self.lane_of(node, slot), frame.bytes_max(), 1, |out| frame.put(out));
        let has_passed = self.has_passed(passed);
        event.acknowledge.is_some_and(|request| {
            let (taken, refused) = if has_passed { (nodes, None) } else { (NodeSet::EMPTY, Some(node)) };
            self.await_acks(slot, request, publication, taken, refused)
        })
    }

    /// Passes a frame that is made once to several nodes. Those whose lanes took it, and one whose lane did not.
    fn relay_to_many(&mut self, slot: u32, nodes: NodeSet, frame: &Publish<'_>) -> (NodeSet, Option<u16>) {
        let mut scratch = std::mem::take(&mut self.relay.scratch);
        scratch.clear();
        frame.put(&mut scratch);
        let shared = (scratch.len() >= SHARE_BYTES_MIN).then(|| Bytes::from(std::mem::take(&mut scratch)));
        let (mut taken, mut refused) = (NodeSet::EMPTY, None);
        for node in nodes.iter() {
            let at = self.lane_of(node, slot);
            let passed = match &shared {
                Some(frame) => self.lane_share(at, frame, 1),
                None => self.lane_send(at, scratch.len(), 1, |out| out.extend_from_slice(&scratch)),
            };
            if self.has_passed(passed) {
                taken.insert(node);
            } else {
                refused = Some(node);
            }
        }
        scratch.shrink_to(SCRATCH_KEEP_BYTES_MAX);
        self.relay.scratch = scratch;
        (taken, refused)
    }

    /// Counts what became of an event for a node.
    #[inline]
    fn has_passed(&mut self, passed: Passed) -> bool {
        self.metrics.count(match passed {
            Passed::Yes => Counter::RelayHops,
            Passed::Full => Counter::DroppedRelayFull,
            Passed::Down => Counter::DroppedRelayDown,
        });
        passed == Passed::Yes
    }

    /// An event of another node, for whoever wants it here.
    #[inline]
    pub(super) fn guest_publishes(
        &mut self,
        slot: u32,
        frame: &Frame<'_>,
        guess: &mut Guess,
    ) -> Result<(), BadFrame> {
        if !frame.extra.is_empty() && Extra::parse(frame.extra).is_none() {
            return Err(BadFrame::Extra);
        }
        // Without a realm there is nobody here who could want it.
        if let Some(realm) = self.realm_near(frame.realm, guess) {
            self.publish_from_node(realm, frame, &mut guess.topic);
        }
        if frame.wants_ack {
            self.link_reply(slot, |out| put_bare(out, Kind::PublishAck, frame.id));
        }
        Ok(())
    }
}
