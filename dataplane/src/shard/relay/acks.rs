//! Publications whose publisher waits until other nodes have taken them.

use super::super::Shard;
use super::super::nodes::NodeSet;
use super::{ACK_TIME, ACKS_MAX};
use crate::mesh::Owner;
use common::metrics::Counter;
use common::uri::wamp;
use common::wire::encode;
use common::wire::message::code;
use std::time::Instant;

/// A publication that waits.
#[derive(Debug)]
pub(super) struct Ack {
    owner: Owner,
    request: u64,
    /// Nodes that have not said that they have it.
    missing: NodeSet,
    deadline: Instant,
}

impl Shard {
    /// A publication was handed to the lanes of `taken`, and not to that of `refused`. True when it is answered from
    /// here.
    pub(super) fn await_acks(
        &mut self,
        slot: u32,
        request: u64,
        publication: u64,
        taken: NodeSet,
        refused: Option<u16>,
    ) -> bool {
        let owner = self.owner(slot);
        if let Some(node) = refused {
            self.ack_failed(owner, request, node, "cannot be handed the event");
            return true;
        }
        if taken.is_empty() {
            return false;
        }
        if self.relay.acks.len() >= ACKS_MAX {
            self.metrics.count(Counter::LimitReached);
            self.metrics.count(Counter::RelayAcksFailed);
            let text = "too many publications wait for other nodes";
            self.error(slot, code::PUBLISH, request, wamp::UNAVAILABLE, text);
            return true;
        }
        let deadline = self.now + ACK_TIME;
        self.relay.acks.insert(publication, Ack { owner, request, missing: taken, deadline });
        self.relay.look_at(deadline);
        true
    }

    /// The node of a lane has taken a publication.
    pub(super) fn publish_acknowledged(&mut self, at: usize, publication: u64) {
        let Some(node) = self.relay.lanes[at].as_ref().map(|lane| lane.node) else { return };
        let Some(ack) = self.relay.acks.get_mut(&publication) else { return };
        ack.missing.remove(node);
        if ack.missing.is_empty() {
            self.ack_complete(publication);
        }
    }

    fn ack_complete(&mut self, publication: u64) {
        let Some(ack) = self.relay.acks.remove(&publication) else { return };
        self.published_to_all(ack.owner, ack.request, publication);
    }

    /// PUBLISHED, if the publisher is there still.
    pub(in crate::shard) fn published_to_all(&mut self, owner: Owner, request: u64, publication: u64) {
        if self.session_of(owner).is_some() {
            self.reply(owner.slot, |serializer, out| {
                encode::ids(serializer, out, code::PUBLISHED, &[request, publication]);
            });
        }
    }

    pub(in crate::shard) fn ack_failed(&mut self, owner: Owner, request: u64, node: u16, what: &str) {
        self.metrics.count(Counter::RelayAcksFailed);
        if self.session_of(owner).is_none() {
            return;
        }
        let name = self.nodes.get(node).map(|node| node.id.to_string()).unwrap_or_default();
        let text = format!("node {name} {what}; other subscribers may have it");
        self.error(owner.slot, code::PUBLISH, request, wamp::UNAVAILABLE, &text);
    }

    /// A lane lost what it had: whoever waits for that node is told, unless it is gone.
    pub(super) fn acks_lost(&mut self, node: u16, lane: usize) {
        let live = self.nodes.live().contains(node);
        if !live {
            return;
        }
        let lost = |shard: &Self, ack: &Ack| {
            ack.missing.contains(node) && shard.lane_of(node, ack.owner.slot) == lane
        };
        let lost: Vec<u64> =
            self.relay.acks.iter().filter(|(_, ack)| lost(self, ack)).map(|(id, _)| *id).collect();
        self.give_up_acks(lost, Some(node), "was lost before it had the event");
    }

    /// `node`: the one for which these publications fail; else it is the first that is missing.
    fn give_up_acks(&mut self, publications: Vec<u64>, node: Option<u16>, what: &'static str) {
        let acks = publications.into_iter().filter_map(|publication| {
            let ack = self.relay.acks.remove(&publication)?;
            let node = node.or_else(|| ack.missing.iter().next());
            Some((ack.owner, ack.request, node.unwrap_or_default()))
        });
        let acks = acks.collect();
        self.fail_publications(acks, what);
    }

    /// Nodes that are gone are not waited for.
    pub(super) fn acks_follow_peers(&mut self) {
        let live = self.nodes.live();
        let mut complete = Vec::new();
        for (publication, ack) in &mut self.relay.acks {
            let missing = ack.missing;
            missing.iter().filter(|node| !live.contains(*node)).for_each(|node| ack.missing.remove(node));
            if ack.missing.is_empty() {
                complete.push(*publication);
            }
        }
        let acks = complete.into_iter().filter_map(|publication| {
            let ack = self.relay.acks.remove(&publication)?;
            Some((ack.owner, ack.request, publication))
        });
        let acks = acks.collect();
        self.complete_publications(acks);
    }

    /// Publications that waited too long, and when the next one will have.
    pub(super) fn acks_timeout(&mut self) -> Option<Instant> {
        let now = self.now;
        let due = self.relay.acks.iter().filter(|(_, ack)| ack.deadline <= now);
        let due: Vec<u64> = due.map(|(publication, _)| *publication).collect();
        self.give_up_acks(due, None, "did not say in time that it has the event");
        self.relay.acks.values().map(|ack| ack.deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{lane, shard_with};
    use super::*;
    use common::ids::ShardId;

    #[test]
    fn publications_are_lost_with_their_lane_and_no_other() {
        let now = Instant::now();
        let mut shard = shard_with(now, 1, 2);
        lane(&mut shard, now);
        let node = shard.nodes.live().iter().next().expect("a node");
        for slot in 0..4 {
            let owner = Owner { shard: ShardId(0), slot, session: 1 };
            let mut missing = NodeSet::default();
            missing.insert(node);
            let ack = Ack { owner, request: 1, missing, deadline: now + ACK_TIME };
            shard.relay.acks.insert(u64::from(slot), ack);
        }
        let lost = shard.lane_of(node, 1);
        shard.acks_lost(node, lost);
        let mut left: Vec<u64> = shard.relay.acks.keys().copied().collect();
        left.sort_unstable();
        assert_eq!(left, [0, 2]);
        assert_eq!(shard.metrics.get(Counter::RelayAcksFailed), 2);
    }
}
