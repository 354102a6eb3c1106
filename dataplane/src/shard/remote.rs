//! What the control plane says of other nodes: which there are, what they want, and which registrations are theirs.

use super::Shard;
use super::overlay::Source;
use super::realm::Local;
use crate::mesh::Lost;
use common::ids::{Match, NodeId, RealmId};
use common::link::{Peer, RouteChange};

/// Numbers of changes of other nodes' routes that grow over all links.
///
/// Each link numbers them anew, and its first snapshot stands for all changes of the links before. So the numbers of a
/// link are counted on from the last one seen before it.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Changes {
    /// What is added to a number of this link.
    before: u64,
    /// The greatest number so far.
    last: u64,
}

impl Changes {
    /// A new link begins.
    pub fn begin(&mut self) {
        self.before = self.last;
    }

    /// What is added to a number of this link, and the greatest number so far.
    pub fn span(self) -> (u64, u64) {
        (self.before, self.last)
    }

    /// Changes from `first_seq` on come. Numbers of one link only grow, so one that was there before is another control
    /// plane's.
    fn expect(&mut self, first_seq: u64) {
        if self.before.saturating_add(first_seq) <= self.last {
            self.begin();
        }
    }

    /// The number of a change that this link numbers `seq`.
    fn number(&mut self, seq: u64) -> u64 {
        let number = self.before.saturating_add(seq);
        self.last = self.last.max(number);
        number
    }
}

impl Shard {
    /// A new list of nodes that may be sent to.
    pub(super) fn take_peers(&mut self, peers: &[Peer]) {
        self.nodes.replace(peers);
        self.forget_reused();
        self.folded.live = self.nodes.live();
        self.generation += 1;
        self.relay_peers();
    }

    /// Changes `first_seq`, `first_seq + 1`, ... of what other nodes want.
    pub(super) fn take_routes(&mut self, first_seq: u64, changes: &[RouteChange]) {
        self.changes.expect(first_seq);
        for (seq, change) in (first_seq..).zip(changes) {
            let index = self.nodes.index(change.node);
            self.forget_reused();
            let seq = self.changes.number(seq);
            // Without an index it is not in the list of those that may be sent to.
            let Some(source) = index.map(Source::Node) else { continue };
            if !self.folded.lacks(source, seq) {
                continue;
            }
            let realm = self.realm_of(change.realm);
            let overlay = &mut self.realms[realm as usize].overlay;
            let route = (change.kind, change.policy, &*change.uri);
            overlay.say_shared(route, source, (change.wanted, change.share), seq);
            self.route_changed(realm, change.kind, change.policy, &change.uri);
        }
    }

    /// What was known of a node whose index another one has now does not count any more.
    fn forget_reused(&mut self) {
        for index in self.nodes.take_reused() {
            self.folded.index_reused(index, self.changes.span().1);
            self.generation += 1;
        }
    }

    /// Change `seq`: the node wants nothing any more.
    pub(super) fn take_unroute(&mut self, seq: u64, node: NodeId) {
        self.changes.expect(seq);
        let seq = self.changes.number(seq);
        if let Some(node) = self.nodes.known(node) {
            self.folded.end(node, seq);
            self.generation += 1;
            self.start_sweep();
        }
    }

    /// The callees here of a registration lose it to another node's. Only the shard that takes its calls acts.
    pub(super) fn revoke(&mut self, realm: RealmId, policy: Match, uri: &str) {
        let Some(realm) = self.realm_index.get(&realm).copied() else { return };
        match self.realms[realm as usize].procedures.get(policy, uri).copied() {
            Some(Local::Callee(index)) => {
                let procedure = self.take_away(index, Lost::OtherNode.reason());
                self.release((realm, policy, uri), procedure.grant, 0);
            }
            Some(Local::Group(_)) => self.evict((realm, policy, uri), Lost::OtherNode),
            None => self.lose_wanted((realm, policy, uri)),
        }
    }
}
